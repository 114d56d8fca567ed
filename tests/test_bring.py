"Bring your encoder: cards, loaders, twins, the verdict on planted and on empty features, the template"
import numpy as np
import pandas as pd
import pytest
import torch
from neurossl.bring import against_twins, contamination_table, guest_row, judge_guest, open_guest, read_card, twin_of
from neurossl.core import Problem, paths, read_json
from neurossl.encoders import SFCN, EncoderError, ResNet3D
from neurossl.guests import MedicalNet
from neurossl.phantom import demo_batch, phantom_cohort


@pytest.mark.parametrize('bad,word', [(dict(), 'no name'), (dict(name='x', entry='a:b', loader='sfcn'), 'one of entry'), (dict(name='x', entry='a:b', drop='fc.'), 'drop'), (dict(name='x', loader='ukb-sfcn'), 'without weights'),
                                      (dict(name='x', entry='a:b', weight='w'), "Did you mean 'weights'"), (dict(name='x', entry='a:b', contract=dict(like='sfcn')), 'contract')])
def test_cards_are_checked(bad, word):
    with pytest.raises(Problem, match=word): read_card(bad)


def test_card_files(tmp_path):
    with pytest.raises(Problem, match='no such file'): read_card(tmp_path/'x.yaml')
    (tmp_path/'y.yaml').write_text('name: [unclosed'); (tmp_path/'z.yaml').write_text('- a')
    for f,word in (('y', 'not YAML'), ('z', 'list')):
        with pytest.raises(Problem, match=word): read_card(tmp_path/f'{f}.yaml')
    assert read_card(paths().root/'examples'/'encoder.yaml')['home']==str(paths().root/'examples')


def test_published_kinds_are_read_under_their_contracts(tmp_path):
    torch.manual_seed(0); x = demo_batch(2, 32)['x']; med,sfcn,s2 = MedicalNet(10, 4),SFCN((4, 4, 8, 8, 8), 8, ceil=False),ResNet3D(10, 2, 4, shortcut_bias=False)
    torch.save({'state_dict': {f'module.{k}': v for k,v in med.state_dict().items()}}, tmp_path/'med.pth'); torch.save({f'module.{k}': v for k,v in sfcn.state_dict().items()}, tmp_path/'sfcn.p'); torch.save(s2.state_dict(), tmp_path/'plain.pth')
    small = dict(size=32, box_mm=None)
    for card,f in ((dict(loader='medicalnet', weights='med.pth', contract=dict(small, like='medicalnet')), 32), (dict(loader='ukb-sfcn', weights='sfcn.p', contract=dict(small, like='ukb-sfcn')), 8),
                   (dict(loader='monai-resnet', weights='plain.pth', stem_stride=2, contract=small), 32)):
        card = dict(read_card(dict(card, name='g')), home=str(tmp_path)); g,info = open_guest(card, 32); t = twin_of(card, g, 5)
        assert info['trained'] and len(info['sha256'])==64 and info['n_features']==f==g(x).shape[1]==t(x).shape[1]
        assert not torch.allclose(g(x), t(x)) and sum(p.numel() for p in t.parameters())==info['parameters']
        with pytest.raises(EncoderError, match='not the file'): open_guest(dict(card, sha256='0'*64), 32)
    assert contamination_table(dict(card, trained_on=['ADNI']), info, ('adni',)).verdict[0]=='contaminated'
    with pytest.raises(Problem, match='weights of'): open_guest(dict(card, loader='ukb-sfcn'), 32)


def made(gain, seed, n=80, twins=3): # features without content, and one arm with a planted column
    man = phantom_cohort(n, 3, 'clinical_a', hashes=False); man = man[man.dx.isin(['CN', 'AD'])]; g = np.random.default_rng(seed)
    t = lambda up: pd.DataFrame(g.normal(0, 1, (len(man), 6)), man.index).assign(f=lambda d: d[0]+up*man.dx.eq('AD')).drop(columns=0).set_axis([f'f{i}' for i in range(6)], axis=1)
    return judge_guest([('guest', 'simclr', t(gain)), *[(f'random-init {i}', 'random-init', t(0)) for i in range(twins)]], man, 'clinical_a', probes=('linear',), folds=3)


@pytest.mark.slow
def test_the_verdict_finds_what_was_planted_and_nothing_where_nothing_is():
    r = against_twins(made(3., 0), 'guest', 400).iloc[0]; assert r.verdict=='better than random init' and r.value>.2 and r.twins==3
    said = [against_twins(made(0., s), 'guest', 200).verdict[0] for s in range(12)]; assert said.count('indistinguishable from random init')>=11
    one = against_twins(made(0., 1, twins=1), 'guest', 200).iloc[0]; assert one.sd_twins==0 and one.lo<one.value<one.hi


def test_the_row_for_the_leaderboard():
    pred = made(2., 0); v = against_twins(pred, 'guest', 200); row = guest_row(dict(name='guest', core_seconds=None), dict(parameters=7, sha256='ab', trained=True), pred, v, 200)
    assert {'arm', 'saw', 'value', 'lo', 'hi', 'core_seconds', 'parameters', 'verdict', 'sha256', 'n_seeds'}<=set(row) and row.verdict[0]==v.verdict[0] and row.lo[0]<=row.value[0]<=row.hi[0] and row.lo[0]<row.hi[0]


@pytest.mark.slow
def test_the_template_judges_the_example(tmp_path):
    from neurossl.bring import summary
    from neurossl.run import run_notebook
    run_notebook('encoder', tmp_path/'encoder.ipynb', dict(profile='smoke', out=str(tmp_path/'run')))
    assert read_json(tmp_path/'run'/'run.json')['metrics']['verdict']=='indistinguishable from random init' and 'indistinguishable' in summary(tmp_path/'run')

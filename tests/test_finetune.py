"Fine-tuning: a frozen encoder stays frozen to the last bit, arms share their people, the test people are judged once, a planted effect is found and chance stays chance."
import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import neurossl.finetune as ft
from neurossl.core import Problem
from neurossl.data import ScanDataset, build_cache
from neurossl.encoders import SFCN
from neurossl.finetune import (ClassTask, Classifier, Features, MaskTask, Segmenter, Target, ValueTask, all_baselines, finetune, finetune_masks, fit_best, fit_net,
                               learning_folds, make_encoder, overlap, read_target, supervised, task_of)
from neurossl.manifest import empty_manifest
from neurossl.metrics import score, score_age
from neurossl.phantom import phantom_cohort
from neurossl.preprocess import Recipe
from neurossl.probes import cross_probe, embed
from neurossl.splits import LeakError
from neurossl.stats import paired_ci
from neurossl.train import TrainConfig, encoder_hash, fit, refresh_bn

torch.set_num_threads(1)
CFG = TrainConfig(epochs=5, lr=1e-2, batch=16)

def tiny(): return SFCN(channels=(4,8,8,16,16), n_features=16)

def people(n, visits=1, first=0):
    return empty_manifest([dict(scan_id=f'p{i:03d}-{v}', subject=f'p{i:03d}', session=str(v), cohort='c', age=round(60+i*.7%30+v, 1), sex='FM'[i//2%2], dx=('CN','AD')[i%2], site='abc'[i%3])
                           for i in range(first, first+n) for v in range(visits)])

class Noise:
    "Scans of 32^3 noise; people with AD have a brighter cube, and brightness grows with age"
    asked = []
    def __init__(self, man, cube=1.): self.man,self.cube = man,cube
    def __len__(self): return len(self.man)
    def batch(self, idx):
        m = self.man.iloc[[int(i) for i in idx]]; Noise.asked.append(list(m.index)); x = []
        for i,r in m.iterrows():
            g = torch.Generator().manual_seed(int(i[1:4])*10+int(i[5:])); v = .3*torch.rand(1, 32, 32, 32, generator=g)
            v[:,8:20,8:20,8:20] += self.cube*float(r.dx=='AD'); v[:,24:30,24:30,:] += float(r.age-60)/20; x.append(v)
        return dict(x=torch.stack(x), scan_id=list(m.index))
    def __getitem__(self, i): return {k: v[0] for k,v in self.batch([i]).items()}

def table(man, gap=0., features=8, seed=0):
    g = np.random.default_rng(seed); x = g.normal(size=(len(man), features)); x[:,0] += gap*man.dx.eq('AD')
    return pd.DataFrame(x.astype(np.float32), man.index, [f'f{k:03d}' for k in range(features)])

class Given(nn.Module):
    "An encoder whose features are never asked for"
    n_features = 8

@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    man = phantom_cohort(40, seed=11, cohort='clinical_a', hashes=False)
    return man, build_cache(man, Recipe('s1', 32), folder=tmp_path_factory.mktemp('cache'))[0]

# frozen

@pytest.mark.parametrize('start', ['train', 'eval'])
def test_a_frozen_encoder_changes_in_no_tensor_and_no_buffer(tmp_path, start):
    man = people(20); e = getattr(tiny(), start)(); refresh_bn(e, Noise(man)); before = {k: v.clone() for k,v in e.state_dict().items()}; t = read_target(man, 'dx')
    net = Classifier(e, 1, freeze=True); assert net.encoder is e and {n.split('.')[0] for n,_ in net.named_parameters()}=={'head'} and set(net.state_dict())=={'head.weight', 'head.bias', 'mean', 'std'}
    fit(net, task_of(t, man.index[:16]), _typed(man[:16]), _typed(man[16:]), TrainConfig(epochs=2, lr=.1, batch=8, weight_decay=.5), tmp_path) # the other loop, which re-estimates BatchNorm
    fit_best(net, task_of(t, man.index[:16]), Noise(man[:16]), Noise(man[16:]), TrainConfig(epochs=2, lr=.1, batch=8, weight_decay=.5))
    refresh_bn(net, Noise(man)); net.train(); net(torch.rand(3, 1, 32, 32, 32)).sum().backward()
    after = e.state_dict(); assert set(after)==set(before) and all(torch.equal(after[k], before[k]) for k in before), [k for k in before if not torch.equal(after[k], before[k])]
    assert not e.training and all(p.grad is None for p in e.parameters()) and net.head.weight.grad is not None

class _typed(Noise):
    "With what `fit` records about its scans"
    class cache:
        class recipe: key = 'noise-32'

def test_a_free_encoder_learns_and_its_batchnorm_moves():
    man = people(16); net = Classifier(tiny(), 1); before = {k: v.clone() for k,v in net.encoder.state_dict().items()}
    fit_best(net, task_of(read_target(man, 'dx'), man.index), Noise(man[:12]), Noise(man[12:]), replace(CFG, epochs=1))
    moved = [k for k,v in net.encoder.state_dict().items() if not torch.equal(v, before[k])]; assert any('running_mean' in k for k in moved) and any('0.weight' in k for k in moved)

def test_the_given_encoder_is_never_changed():
    man = people(24); e = tiny(); before = encoder_hash(e)
    for freeze in (True, False): finetune(e, man, Noise, folds=2, freeze=freeze, cfg=replace(CFG, epochs=1))
    assert encoder_hash(e)==before and encoder_hash(make_encoder(tiny, 3))==encoder_hash(make_encoder(tiny, 3))!=encoder_hash(make_encoder(tiny, 4))

def test_features_in_the_place_of_scans_give_the_same_numbers(scans):
    man,cache = scans; e = tiny(); refresh_bn(e, ScanDataset(man, cache)); net = Classifier(e, 2, freeze=True).eval(); net.mean += .1; net.std *= 2
    a,b = embed(net, ScanDataset(man, cache)),embed(net, Features(man, embed(e, ScanDataset(man, cache)))); assert np.abs(a-b).max(axis=None)<1e-5
    with pytest.raises(Problem, match='without features'): Features(man, embed(e, ScanDataset(man[2:], cache)))

# targets

def test_targets():
    man = people(12); man.loc['p003-0', 'dx'] = 'MCI'; man.loc['p004-0', ['sex', 'age']] = ['', np.nan]; dx,sex,age,site = (read_target(man, k) for k in ('dx', 'sex', 'age', 'site'))
    assert dx.classes==('CN', 'AD') and 'p003-0' not in dx.y and dx.y['p001-0']==1 and len(dx.y)==11
    assert sex.classes==('F', 'M') and len(sex.y)==11 and (sex.y==man.sex[sex.y.index].eq('M')).all()
    assert age.classes==() and len(age.y)==11 and site.classes==('a', 'b', 'c') and (dx.n_out, age.n_out, site.n_out)==(1, 1, 3)
    assert read_target(man, lambda m: m.age*2).y['p001-0']==2*man.age['p001-0'] and read_target(man[:6], site).y.index.tolist()==man.index[:6].tolist()
    for bad,words in ((('Age',), "'age'"), ((lambda m: m.age*0,), '1 different'), ((lambda m: m.cohort,), '1 classes')):
        with pytest.raises(Problem, match=words): read_target(man, *bad)
    with pytest.raises(Problem, match='CN and AD'): read_target(man[man.dx!='AD'], 'dx')

def test_losses_by_hand():
    y = {'a': 1., 'b': 0., 'c': 2.}; z = torch.tensor([[.5], [-1.], [2.]])
    out = ClassTask(y).loss(z[:2], ['a', 'b']); assert float(out['loss'])==pytest.approx((np.log1p(np.exp(-.5))+np.log1p(np.exp(-1)))/2) and float(out['accuracy'])==1
    out = ClassTask(y, 3).loss(torch.eye(3)[:2]*5, ['a', 'b']); assert float(out['accuracy'])==0
    t = ValueTask(y, 1., .5); out = t.loss(z, list(y)); assert float(out['loss'])==pytest.approx(np.mean([.5**2, (-1+2)**2, 0])) and float(out['mae'])==pytest.approx((.25+.5)/3)
    assert t.scores(z.numpy())==pytest.approx([1.25, .5, 2.]) and ClassTask(y).scores(z.numpy())==pytest.approx(1/(1+np.exp(-z.numpy()[:,0])))
    with pytest.raises(Problem): ValueTask(y, 1., 0.)

def test_units_come_from_the_training_scans():
    man = people(40); f,learn,test = next(learning_folds(man, 'age', 4)); train = learn[learn.split=='train']; emb = table(man)
    net = fit_net(Given(), learn, emb, 'age', freeze=True); assert (net.task.mean, net.task.std)==pytest.approx((train.age.mean(), train.age.std(ddof=0)))
    x = emb.loc[train.index]; assert np.allclose(net.model.mean, x.mean(), atol=1e-6) and np.allclose(net.model.std, x.std(ddof=0), atol=1e-6)
    assert set(net.task.y)==set(learn.index)

# who learns, who is judged

@pytest.mark.parametrize('n_train', [None, 12, .5, 1000])
def test_folds_and_labelled_people_are_those_of_the_probes(n_train):
    man = people(40, visits=2); man.loc[man.subject.isin(['p000', 'p007']), 'dx'] = 'MCI'; emb = table(man)
    p = cross_probe(emb, man, 'linear', folds=4, seed=3, n_train=n_train, valid=True)
    for f,learn,test in learning_folds(man, 'dx', 4, 3, n_train):
        q = p[p.fold==f]; assert set(test.index)==set(q.scan_id[q.split=='test']) and set(learn.index)==set(q.scan_id[q.split=='valid'])
        who = learn.groupby('subject').split.nunique(); assert who.max()==1 and set(learn.split)=={'train', 'valid'} and not set(learn.subject)&set(test.subject)
    assert f==3
    a,b = cross_probe(emb, man, 'linear', folds=4, seed=3),finetune(Given(), man, emb_source(emb), folds=4, seed=3, freeze=True, cfg=TrainConfig(epochs=1))
    assert paired_ci(a, b, n=50)['n_subjects']==38 # refuses arms that do not pair

def emb_source(emb): # the encoder is never asked: its features are these
    class Source(Features):
        def __init__(self, man): super().__init__(man, emb)
    return Source

@pytest.fixture(autouse=True)
def given(monkeypatch):
    "`Given` passes features through"
    monkeypatch.setattr(Given, 'forward', lambda self, x: x, raising=False)

def test_labelled_people_are_nested_and_paired():
    man = people(60); who = {n: {f: set(l.index) for f,l,_ in learning_folds(man, 'dx', 3, 1, n)} for n in (8, 16, .9)}
    assert all(who[8][f]<who[16][f]<who[.9][f] for f in range(3)) and [f for f,_,_ in learning_folds(man, only=(2, 0))]==[2, 0]
    with pytest.raises(Problem, match='0 to 4'): list(learning_folds(man, only=(5,)))

@pytest.mark.parametrize('target', ['sex', 'age', 'site'])
def test_other_targets_are_dealt_by_themselves(target):
    man = people(60); seen = []
    for f,learn,test in learning_folds(man, target, 3): seen += list(test.index); assert target=='age' or set(man[target][test.index])==set(man[target])
    assert sorted(seen)==sorted(man.index)

def test_test_and_sealed_rows_are_refused():
    man = people(30); t = read_target(man, 'dx')
    for split in ('test', 'sealed'):
        leak = man.assign(split=['train']*20+['valid']*9+[split])
        for f in (lambda: finetune(tiny, leak, Noise), lambda: fit_net(tiny, leak, Noise), lambda: list(learning_folds(leak)), lambda: finetune_masks(tiny, leak, Noise, {}, ('a',)),
                  lambda: fit_best(Classifier(tiny(), 1), task_of(t, man.index), Noise(leak[20:]), Noise(man[:20]), CFG), lambda: fit_best(Classifier(tiny(), 1), task_of(t, man.index), Noise(man[:20]), Noise(leak[20:]), CFG)):
            with pytest.raises(LeakError, match='p029'): f()
    with pytest.raises(LeakError, match='more than one'): fit_best(Classifier(tiny(), 1), task_of(t, man.index), Noise(man[:20]), Noise(man[19:]), CFG)
    parts = man.assign(split=['train']*16+['valid']*4+['']*10); net = fit_net(Given(), parts[:20], table(man), freeze=True, cfg=TrainConfig(epochs=2, batch=8))
    with pytest.raises(LeakError, match='learned from'): net.predict(man[15:], table(man), 'dx')
    assert len(net.predict(parts[20:].assign(split='sealed'), table(man), 'dx'))==10 and 'of 2)' in repr(net)

def test_the_test_people_are_looked_at_once_and_last():
    man = people(24); f,learn,test = next(learning_folds(man, 'dx', 3, only=(1,))); Noise.asked.clear()
    p = finetune(tiny, man, Noise, folds=3, only=(1,), cfg=replace(CFG, epochs=2)); seen = [bool(set(ids)&set(test.index)) for ids in Noise.asked]
    once = [i for ids in Noise.asked for i in ids if i in test.index][-len(test):]
    assert sorted(once)==sorted(test.index) and not any(seen[:seen.index(True)]) and all(seen[seen.index(True):]) and sum(len(set(ids)&set(test.index)) for ids in Noise.asked)<=len(test)+1 # one more look tells the size of a scan
    alone = fit_net(tiny, learn, Noise, 'dx', cfg=replace(CFG, epochs=2)).predict(test, Noise, 'dx', fold=1) # the same without ever having had them
    assert set(alone.scan_id)==set(p.scan_id) and np.array_equal(alone.set_index('scan_id').score[p.scan_id], p.score)

def test_the_validation_people_choose_the_step_size():
    man = people(24); one = {lr: finetune(tiny, man, Noise, folds=2, cfg=replace(CFG, epochs=2, lr=lr)) for lr in (1e-4, 1e-2)}; Noise.asked.clear()
    p = finetune(tiny, man, Noise, folds=2, cfg=replace(CFG, epochs=2), lrs=(1e-4, 1e-2)); fits = pd.DataFrame(p.attrs['fits'])
    assert fits.lr.tolist()==[1e-4, 1e-2]*2 and fits.groupby('fold').chosen.sum().eq(1).all()
    for k,g in fits.groupby('fold'):
        best = max(g.to_dict('records'), key=lambda r: (round(r['valid_auc'], 9), -r['valid_loss'])); assert best['chosen']
        a,b = (t[t.fold==k].set_index('scan_id').score for t in (one[best['lr']], p)); assert a.equals(b) # what the chosen one says, and nothing of the other
    f,learn,test = next(learning_folds(man, 'dx', 2, only=(1,)))
    seen = [i for ids in Noise.asked[-2:] for i in ids if i in test.index]; assert sorted(set(seen))==sorted(test.index) and len(seen)<=len(test)+1 # once, by the chosen one alone

# the best epoch

def test_the_best_epoch_remains(monkeypatch):
    man = people(20); t = read_target(man, 'dx'); task = task_of(t, man.index); seen = []
    monkeypatch.setattr(ClassTask, 'judge', lambda self, model, ds, batch=None: (seen.append(encoder_hash(model)), dict(loss=[.5, .4, .6, .4, .7][len(seen)-1], auc=[.6, .8, .8, .8, .5][len(seen)-1]))[1])
    net = Classifier(tiny(), 1); h = fit_best(net, task, Noise(man[:16]), Noise(man[16:]), CFG)
    assert h.table.kept.tolist()==[False, True, False, False, False] and encoder_hash(net)==seen[1] and not net.training
    seen.clear(); h = fit_best(Classifier(tiny(), 1), task, Noise(man[:16]), Noise(man[16:]), CFG, patience=2); assert len(h)==4
    seen.clear(); monkeypatch.setattr(ClassTask, 'judge', lambda *a, **k: dict(loss=1.)); assert len(fit_best(Classifier(tiny(), 1), task, Noise(man[:16]), Noise(man[16:]), CFG, min_steps=9))==9
    with pytest.raises(Problem, match='n_train'): fit_best(Classifier(tiny(), 1), task, Noise(man[:1]), Noise(man[16:]), CFG)

def test_same_seed_same_numbers_and_folds_are_kept(tmp_path, monkeypatch):
    man = people(24); kw = dict(folds=2, cfg=replace(CFG, epochs=1), keep=tmp_path); a = finetune(tiny, man, Noise, **kw); b = finetune(tiny, man, Noise, **{**kw, 'keep': None})
    pd.testing.assert_frame_equal(a, b); assert len(list(tmp_path.iterdir()))==2 and [f['fold'] for f in a.attrs['fits']]==[0, 1]
    torch.manual_seed(5); c = finetune(tiny, man, Noise, seed=1, **kw); assert not np.array_equal(a.score, c.score) and len(list(tmp_path.iterdir()))==4
    monkeypatch.setattr(ft, 'fit_net', lambda *a, **k: pytest.fail('a finished fold is only read')); d = finetune(tiny, man, Noise, **kw); pd.testing.assert_frame_equal(a, d); assert d.attrs==a.attrs

# does it find what is there, and nothing where nothing is

def test_a_planted_effect_is_found():
    man = people(48); p = finetune(tiny, man, Noise, folds=3, cfg=CFG, valid=True, run='scratch')
    t = p[p.split=='test']; assert score(p)['auc']>.95 and score(p)['balanced_accuracy']>.85 and sorted(t.scan_id)==sorted(man.index) and set(p.split)=={'test', 'valid'} and set(p.run)=={'scratch'}
    assert list(p)==['run', 'fold', 'seed', 'scan_id', 'subject', 'split', 'y', 'score'] and (t.y.to_numpy()==man.dx.eq('AD')[t.scan_id]).all()

def test_age_is_predicted_in_years_here_and_elsewhere():
    man,other = people(48),people(16, first=48); p = finetune(tiny, man, Noise, 'age', folds=2, only=(0,), out=(other, Noise), cfg=replace(CFG, epochs=12)); here,there = p[p['where']=='in'],p[p['where']=='out']
    assert score_age(here)['r2']>.5 and set(there.scan_id)==set(other.index) and score_age(there)['mae']<8 and (there.y.to_numpy()==other.age[there.scan_id]).all()

def test_a_cohort_with_fewer_classes_keeps_the_numbers_of_training():
    man,other = people(30),people(12, first=30); only = other[other.site=='c']; e = table(pd.concat([man, other]))
    p = finetune(Given(), man, emb_source(e), 'site', folds=2, freeze=True, out=(only, emb_source(e)), cfg=TrainConfig(epochs=2))
    q = p[p['where']=='out']; assert set(q.y)=={2} and np.allclose(p[['p_a', 'p_b', 'p_c']].sum(1), 1) and (p.score==p[['p_a', 'p_b', 'p_c']].to_numpy().argmax(1)).all()

def test_frozen_features_that_know_are_used_and_random_labels_give_one_half():
    man = people(60); assert score(finetune(Given(), man, emb_source(table(man, 3.)), folds=3, freeze=True))['auc']>.9
    auc = [score(finetune(Given(), people(60).assign(age=70., sex='F', dx=np.random.default_rng(i).permutation(man.dx)), emb_source(table(man, seed=i)), folds=2, seed=i, freeze=True))['auc'] for i in range(24)]
    assert abs(np.mean(auc)-.5)<3*np.std(auc, ddof=1)/24**.5+.01 and np.std(auc)<.2, auc

def test_bad_calls_are_named():
    man = people(30)
    for f,words in ((lambda: finetune('sfnc', man, Noise), 'sfcn'), (lambda: fit_net(tiny, man.assign(split='train'), table(man)), 'freeze=True'), (lambda: finetune(tiny, man, Noise, n_train=2, folds=2), 'n_train')):
        with pytest.raises(Problem, match=words): f()
    with pytest.raises(Problem, match='smaller lr'): finetune(tiny, man, lambda m: Noise(m, float('nan')), folds=2)

# baselines

def test_all_baselines_judge_the_same_people(scans):
    man,cache = scans; p = all_baselines(man, cache, encoder=tiny, labels=(tiny,), folds=2, kinds=('age+sex', 'PCA'), cfg=TrainConfig(epochs=1, batch=8))
    assert {a: set(g.saw) for a,g in p.groupby('arm')}=={'age+sex': {'demographic'}, 'PCA': {'self-supervised'}, 'random-init': {'self-supervised'}, 'supervised': {'supervised'}}
    assert p.groupby('arm').apply(lambda g: tuple(sorted(zip(g.fold, g.scan_id, g.y)))).nunique()==1
    q = all_baselines(man, cache, encoder=tiny, labels=(), folds=2, kinds=('age+sex',), only=(1,)); assert set(q.fold)=={1} and 'supervised' not in set(q.arm)
    r = supervised(man, cache, tiny, folds=2, cfg=TrainConfig(epochs=1, batch=8)); assert np.array_equal(r.score, p.score[p.arm=='supervised']) and set(r.run)=={'supervised tiny'}

# structures

def test_a_cube_is_outlined():
    man = people(24).assign(dx='AD'); man.loc[man.index[::2], 'dx'] = 'CN'; mask = np.zeros((32,)*3, np.uint8); mask[8:20,8:20,8:20] = 1
    truth = {i: mask*(man.dx[i]=='AD') for i in man.index}; p = finetune_masks(tiny, man, Noise, truth, ('background', 'cube'), folds=3, only=(0,), cfg=TrainConfig(epochs=8, lr=1e-2, batch=4))
    assert p.dice[p.true>0].min()>.8 and set(p.structure)=={'cube'} and (p.found[p.true==0]<200).all() and set(p.true)<={0, 12**3}

def test_masks_by_hand_and_a_frozen_encoder():
    a,b = torch.tensor([1, 1, 0, 0.]),torch.tensor([0, 1, 1, 0.]); assert overlap(a, b)==.5 and overlap(a, a)==1 and overlap(a*0, a*0)==1 and overlap(a, a*0)==0
    e = tiny(); before = encoder_hash(e); net = Segmenter(e, 3, freeze=True).train(); truth = {'p000-0': np.ones((32,)*3), 'p001-0': np.zeros((32,)*3)}
    out = MaskTask(truth, 3)(net, Noise(people(2)).batch([0, 1])); out['loss'].backward(); assert encoder_hash(e)==before and not e.training and all(p.grad is None for p in e.parameters())
    y = torch.full((2, 3, 32, 32, 32), -50.); y[0,1] = 50; y[1,0] = 50
    out = MaskTask(truth, 3)(lambda x: y, dict(x=None, scan_id=list(truth))); assert float(out['loss'])<1e-3 and float(out['dice'])>.999
    assert Segmenter(tiny(), 3)(torch.rand(2, 1, 48, 40, 33)).shape==(2, 3, 48, 40, 33)

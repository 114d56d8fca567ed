"The OASIS-1 path from a fabricated folder to a report; the planner's notebook"
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from neurossl.core import read_json
from neurossl.phantom import phantom, sample_latents
from neurossl.run import parameters, resolve, run_notebook


def table(root, rows):
    "The table of OASIS-1, of (ID, sex, age, CDR)"
    names = ['ID', 'M/F', 'Hand', 'Age', 'Educ', 'SES', 'MMSE', 'CDR', 'eTIV', 'nWBV', 'ASF', 'Delay']
    rows = [[name, sex, 'R', str(age), '3', '2', '28', cdr, '1400', '.75', '1.2', 'N/A'] for name,sex,age,cdr in rows]
    (root/'oasis_cross-sectional.csv').write_text('\n'.join(map(','.join, [names, *rows]))+'\n')


def disc(root, name, k=1):
    "Where a disc has the masked atlas scan of a session"
    at = root/f'disc{k}'/name/'PROCESSED'/'MPRAGE'/'T88_111'; at.mkdir(parents=True); return at/f'{name}_mpr_n4_anon_111_t88_masked_gfc.img'


def fabricated(root, people=24, side=40):
    "Discs with masked atlas scans (Analyze pairs) and the table: every second person of sixty and more is rated above 0; the first two are young and not rated, one scan is broken"
    import nibabel as nib
    rows = []
    for i in range(1, people+1):
        name = f'OAS1_{i:04d}_MR1'; old,ad = i>2,i%2==0; at = disc(root, name, 1+i%3)
        v = phantom(sample_latents(5, i, 'clinical_a', dx='AD' if ad and old else 'CN', age=60.+i, severity=1.2*(ad and old)), side).data
        img = nib.Spm99AnalyzeImage(v.astype(np.int16), np.diag([-192/side, 192/side, 192/side, 1])); nib.save(img, at)
        if i==people: at.write_bytes(b'')
        rows.append((name, 'MF'[i%2], 60+i if old else 20, ('0.5' if ad else '0') if old else ''))
    table(root, rows)
    return root


def test_the_fabricated_folder_is_read_as_oasis1_is(tmp_path):
    from neurossl.cohorts import index_oasis1
    root = fabricated(tmp_path, 8, 32); m = index_oasis1(root, root); assert len(m)==8 and m.dx.tolist()==['', '', 'CN', 'AD', 'CN', 'AD', 'CN', 'AD'] and m.age.iloc[2]==63


def test_templates_declare_what_make_gives():
    assert {'root', 'rule', 'pretrain', 'card'}<=set(parameters('oasis1')) and resolve('oasis1', dict(profile='smoke', root='x'))['folds']==2
    assert resolve('planner', {})['power']==.8 and resolve('encoder', dict(profile='smoke'))['bootstrap']==200


@pytest.mark.slow
def test_from_folder_to_report(tmp_path):
    run_notebook('oasis1', tmp_path/'oasis1.ipynb', dict(profile='smoke', size=32, root=str(fabricated(tmp_path/'data')), out=str(tmp_path/'run')))
    m,flow = read_json(tmp_path/'run'/'run.json')['metrics'],pd.read_csv(tmp_path/'run'/'flow.csv').scans.tolist()
    assert flow==[24, 22, 22, 21] and m['n_scans']==21 and m['n_ad']==10 and .4<m['auc']<=1
    r = pd.read_csv(tmp_path/'run'/'results.csv'); assert set(r.arm)=={'age+sex', 'ROI volumes', 'voxels 16^3', 'PCA', 'random-init'} and len(pd.read_csv(tmp_path/'run'/'excluded.csv'))==1
    assert 'OAS1_' not in (tmp_path/'oasis1.ipynb').read_text(), 'no participant is named on the page'
    with pytest.raises(Exception, match='ROOT'): run_notebook('oasis1', tmp_path/'x.ipynb', dict(profile='smoke', out=str(tmp_path/'x')))


@pytest.mark.slow
@pytest.mark.skipif('NEUROSSL_SCANS' not in os.environ, reason='NEUROSSL_SCANS is not set: no real scans at hand')
def test_the_real_scans_under_made_up_ratings(tmp_path):
    "Nineteen scans of OASIS-1, their ages and sexes, laid out as the discs are; every second person is given a rating above 0, so scores mean nothing and all the rest is real"
    import nibabel as nib
    bids = Path(os.environ['NEUROSSL_SCANS'])/'oasis1_bids'; root = tmp_path/'data'; people = pd.read_csv(bids/'participants.tsv', sep='\t', dtype=str).set_index('participant_id'); rows = []
    for f in sorted(bids.glob('sub-*/ses-*/anat/*_T1w.nii.gz')):
        sub,ses = f.name.split('_')[:2]; i = int(sub[-4:]); name = f'OAS1_{i:04d}_MR{int(ses[-2:])}'
        img = nib.load(f); nib.save(nib.Spm99AnalyzeImage(np.asarray(img.dataobj, np.int16), img.affine), disc(root, name))
        rows.append((name, people.sex[sub][0].upper(), round(float(people.age[sub])), ('0', '0.5')[sorted(people.index).index(sub)%2]))
    table(root, rows); assert len(rows)==19
    run_notebook('oasis1', tmp_path/'oasis1.ipynb', dict(profile='smoke', size=40, least_age=18., root=str(root), out=str(tmp_path/'run')))
    m,flow = read_json(tmp_path/'run'/'run.json')['metrics'],pd.read_csv(tmp_path/'run'/'flow.csv').scans.tolist()
    assert flow==[17]*4 and m['n_scans']==17 and not len(pd.read_csv(tmp_path/'run'/'excluded.csv')), 'the first session of each person, none refused'
    r = pd.read_csv(tmp_path/'run'/'results.csv'); assert set(r.arm)=={'age+sex', 'ROI volumes', 'voxels 16^3', 'PCA', 'random-init'} and r.value.between(0, 1).all()


@pytest.mark.slow
@pytest.mark.skipif('NEUROSSL_SCANS' not in os.environ, reason='NEUROSSL_SCANS is not set: no real scans at hand')
def test_outlines_of_real_scans_are_learned_from_labels_drawn_by_hand(tmp_path):
    from neurossl.cohorts import index_bids
    from neurossl.manifest import write_manifest
    bids = Path(os.environ['NEUROSSL_SCANS'])/'oasis1_bids'; man = index_bids(bids); write_manifest(man, tmp_path/'man.csv')
    run_notebook('finetune', tmp_path/'finetune.ipynb', dict(profile='smoke', manifest=str(tmp_path/'man.csv'), data=str(bids), tasks=['masks'], size=48, fractions=[1.], folds=4, epochs=16, batch=4, lrs=[.003], out=str(tmp_path/'run')))
    t = pd.read_csv(tmp_path/'run'/'dice.csv').set_index('structure'); assert t.n_subjects.eq(4).all() and t.value.hippocampi>.4 and t.value.ventricles>.3, t # a network that outlines nothing has 0
    assert 'OAS1' not in (tmp_path/'finetune.ipynb').read_text(), 'no participant is named on the page'


@pytest.mark.slow
def test_the_planners_notebook(tmp_path):
    run_notebook('planner', tmp_path/'plan.ipynb', dict(labels=[20, 50, 100, 200], label_aucs=[.7, .76, .8, .82], out=str(tmp_path/'run')))
    assert read_json(tmp_path/'run'/'run.json')['metrics']['needed']==479 and len(pd.read_csv(tmp_path/'run'/'sizes.csv'))==5

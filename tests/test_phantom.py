"The phantom: same bytes everywhere, one factor at a time, and the sizes and difficulty of real brains (wide bounds; nbs/experiments/calibration.csv has the narrow ones)."
import subprocess, sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neurossl import anatomy, rendering as ph
from neurossl.core import Problem, paths
from neurossl.phantom import (COHORTS, EMBEDDED, P, atrophy_map, demo_batch, embedded_cohort, healthy_twin, latents_of, phantom, phantom_cohort, render,
                              sample_latents, verify_cohort, volumes_ml)
from neurossl.volume import fingerprint, voxel_hash

ROOT = Path(__file__).resolve().parents[1]
A = dict(cohort='clinical_a')

def test_two_processes_make_the_same_bytes():
    code = "from neurossl.phantom import *; from neurossl.volume import voxel_hash; print(voxel_hash(phantom(sample_latents(5, 3, 'clinical_b'), 48)))"
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    assert there==voxel_hash(phantom(sample_latents(5, 3, 'clinical_b'), 48))

def test_the_number_of_threads_is_irrelevant_and_restored():
    n = torch.get_num_threads(); l = sample_latents(1, 1, **A)
    try:
        torch.set_num_threads(2); two = voxel_hash(phantom(l, 64)); assert torch.get_num_threads()==2
        torch.set_num_threads(1); assert voxel_hash(phantom(l, 64))==two
    finally: torch.set_num_threads(n)
    assert torch.is_grad_enabled()

def test_random_numbers_of_the_caller_are_untouched():
    np.random.seed(0); torch.manual_seed(0); phantom(sample_latents(1, 1, **A), 32)
    a,b = np.random.rand(), torch.rand(1); np.random.seed(0); torch.manual_seed(0)
    assert a==np.random.rand() and b==torch.rand(1)

def test_a_volume_holds_grey_levels_in_the_192_mm_cube():
    for size in (16, 33, 48):
        v = phantom(sample_latents(1, 2, **A), size); d = v.data
        assert v.shape==(size,)*3 and d.dtype==np.float32 and d.min()==0 and 200<d.max()<=255 and np.array_equal(d, np.rint(d))
        assert np.allclose(v.spacing_mm, 192/size) and np.allclose((v.affine @ [*[(size-1)/2]*3, 1])[:3], (-.5, -17.5, 4.5))

@pytest.mark.parametrize('size', [0, 15, 257, 48., '48', None])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(Problem, match='16 to 256'): phantom(sample_latents(1, 1), size)

def test_one_subject_is_the_same_at_every_size():
    l = sample_latents(2, 5, **A)
    small = phantom(l, 48).data; large = phantom(l, 96).data.reshape(48, 2, 48, 2, 48, 2).mean((1, 3, 5)); m = (small>0)&(large>0)
    assert np.corrcoef(small[m], large[m])[0, 1]>.95
    a,b = volumes_ml(l, 48), volumes_ml(l, 96)
    assert abs(a['tiv']/b['tiv']-1)<.01 and abs(a['vent']/b['vent']-1)<.05 and abs(a['hip']/b['hip']-1)<.12

def test_a_switched_factor_changes_nothing_else():
    base = sample_latents(3, 4, **A)
    for k,v in dict(dx='AD' if base['dx']!='AD' else 'CN', site=base['site']+1, age=base['age']+5, severity=base['severity']+.5).items():
        new = sample_latents(3, 4, **A, **{k: v}); moved = {n for n in base if base[n]!=new[n]}
        anatomy = {'vent', 'hip', 'cort', 'sig'}
        assert moved <= {k, *dict(dx=anatomy|{'severity'}, severity=anatomy, age=anatomy-{'sig'}|{'brain_age'}).get(k, set())}
    a,b = render(base, 32), render({**base, 'site': base['site']+1}, 32)
    assert a[1]==b[1] and not np.array_equal(a[0].data, b[0].data)

def test_the_age_effect_can_be_switched_off():
    a,b = (sample_latents(3, 4, 'population', age_effect=False, age=x) for x in (48, 84))
    assert np.array_equal(phantom(a, 32).data, phantom(b, 32).data)
    assert sample_latents(3, 4, 'population_ageless', age=84)['brain_age']==70
    a,b = (volumes_ml(sample_latents(3, 4, 'population', age=x)) for x in (48, 84)); assert b['vent']>1.5*a['vent']

def test_healthy_twin_and_atrophy_map():
    ill = sample_latents(3, 4, **A, dx='AD', severity=1.2); well = sample_latents(3, 4, **A, dx='AD', severity=0)
    assert all(np.isclose(healthy_twin(ill)[k], well[k]) for k in ('vent', 'hip', 'cort', 'sig'))
    m = atrophy_map(ill).data
    assert m.min()>=0 and m.max()<=1 and m.sum()>20 and atrophy_map(well).data.max()==0
    with ph._one_thread(): hip = ph._anatomy(well, 48, P).hip.numpy()
    assert (m*hip).sum()/hip.sum()>3*m[phantom(well).data>0].mean()

def test_skull_surrounds_the_same_brain():
    l = sample_latents(2, 6, **A); bare,head = phantom(l).data, phantom(l, skull=True).data
    assert (head>20).sum()>1.3*(bare>20).sum() and np.corrcoef(bare[bare>0], head[bare>0])[0, 1]>.99

def test_bad_names_are_refused():
    for bad,match in ((lambda: sample_latents(0, 1, 'clinic_a'), 'clinical_a'), (lambda: sample_latents(0, 1, agee=3), "'age'"), (lambda: sample_latents(0, 1, sex='m'), 'F, M'),
                      (lambda: sample_latents(0, 1, age=7), '18 to 100')):
        with pytest.raises(Problem, match=match): bad()

def test_an_absent_template_is_named():
    with pytest.raises(Problem, match='mni_icbm152_t9_tal'): anatomy._mni('t9')

def test_a_broken_template_cache_is_rebuilt_once(monkeypatch, tmp_path):
    kept = anatomy.template(); monkeypatch.setenv('NEUROSSL_HOME', str(tmp_path)); monkeypatch.setattr(anatomy, '_build_template', lambda: dict(maps=kept.maps.numpy(), field=kept.field[0].numpy().astype(np.float16)))
    anatomy.template.cache_clear()
    try:
        anatomy.template(); f, = paths().cache.glob('template-*.npz'); f.write_bytes(f.read_bytes()[:1000]); anatomy.template.cache_clear()
        assert torch.equal(anatomy.template().maps, kept.maps) and not list(paths().cache.glob('.*'))
        anatomy.template.cache_clear(); monkeypatch.setattr(anatomy, '_build_template', lambda: 1/0); assert torch.equal(anatomy.template().field, kept.field)
        assert 'Louis Collins' in str(np.load(f)['notice'])
    finally: anatomy.template.cache_clear()

def test_demo_batch():
    b = demo_batch(3, 32, seed=1); c = demo_batch(3, 32, seed=1)
    assert b['x'].shape==(3, 1, 32, 32, 32) and b['x'].dtype==torch.float32 and 0<=b['x'].min() and b['x'].max()<=1 and torch.equal(b['x'], c['x'])
    assert b['dx'].dtype==b['sex'].dtype==torch.int64 and b['age'].dtype==torch.float32 and len(b['scan_id'])==3

# ------------------------------------------------------------------ manifests
def test_cohort_rows_lead_back_to_their_scans():
    man = phantom_cohort(3, 9, 'clinical_b', split='sealed'); r = man.iloc[1]; l = latents_of(r)
    assert list(man.index)==[f'clinical_b-s-{i:04d}' for i in (1, 2, 3)] and (man.split=='sealed').all() and man.synthetic.all()
    assert (l['age'], l['dx'], l['sex'], f"site{l['site']:02d}")==(r.age, r.dx, r.sex, r.site)
    assert voxel_hash(phantom(l))==r.sha256 and fingerprint(phantom(l))==r.fingerprint
    assert verify_cohort(man)==dict(scans=3, compared=3, identical=3, equivalent=0)

def test_verify_names_the_scan_that_differs():
    man = phantom_cohort(3, 9, 'clinical_a'); bad = man.copy()
    bad.loc[bad.index[1], 'sha256'] = '0'*64; assert verify_cohort(bad)['equivalent']==1
    bad.loc[bad.index[1], 'fingerprint'] = man.fingerprint.iloc[0]
    with pytest.raises(Problem, match=bad.index[1]): verify_cohort(bad)
    bad = man.copy(); bad.loc[bad.index[2], 'dx'] = 'CN' if man.dx.iloc[2]!='CN' else 'AD'
    with pytest.raises(Problem, match=f'{bad.index[2]}, dx'): verify_cohort(bad)
    bad = man.copy(); bad['seed'] = pd.array([None]*3, 'Int64')
    with pytest.raises(Problem, match='no seed and index'): verify_cohort(bad)

def test_data_manifest_is_the_embedded_cohort():
    man = embedded_cohort()
    assert len(man)==sum(n for n,*_ in EMBEDDED) and man.subject.is_unique and man.sha256.is_unique and man.sha256.str.len().eq(64).all()
    for n,seed,cohort,split in EMBEDDED:
        m = man[(man.cohort==cohort)&(man.split==split)]; assert len(m)==n and (m.seed==seed).all() and m['index'].is_unique
    assert len({seed for _,seed,*_ in EMBEDDED})==len(EMBEDDED)
    found = verify_cohort(man, sample=15); assert found['compared']==15==found['identical']+found['equivalent']

def test_the_command_line_says_what_it_can():
    r = subprocess.run([sys.executable, '-m', 'neurossl.phantom'], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode and '--write | --verify' in r.stderr and 'Traceback' not in r.stderr

# ------------------------------------------------------------------ calibration in small
@pytest.fixture(scope='module')
def small():
    ls = [sample_latents(411, i, 'clinical_a') for i in range(1, 261)]; d = pd.DataFrame(ls).drop(columns=['vent', 'hip']).join(pd.DataFrame([volumes_ml(l) for l in ls]))
    return d.assign(nwbv=(d.gm+d.wm)/d.tiv, latent_hip=[l['hip'] for l in ls], latent_vent=[l['vent'] for l in ls])

def test_sizes_of_heads_ventricles_and_hippocampi(small):
    sex = small.groupby('sex').tiv.mean(); dx = small.groupby('dx')[['vent', 'hip']].median()
    assert 1530<sex.M<1655 and 1350<sex.F<1475
    assert 27<dx.vent.CN<41 and 41<dx.vent.AD<60 and 6<dx.hip.CN<7.1 and -.25<dx.hip.AD/dx.hip.CN-1<-.11

def test_ageing_and_disease_shrink_the_brain(small):
    cn = small[(small.dx=='CN')&(small.age>60)]; slope,base = np.polyfit(cn.age, cn.nwbv, 1); left = small.nwbv-base-slope*small.age
    assert -.0048<slope<-.0016 and -.042<left[small.dx=='AD'].mean()-left[small.dx=='CN'].mean()<-.018

def test_disease_is_plain_to_the_oracle_and_not_to_raw_intensity(small):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    d = small[small.dx!='MCI']; y = d.dx=='AD'
    auc = lambda x: roc_auc_score(y, cross_val_predict(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), x, y, cv=10, method='decision_function'))
    who = d[['age']].assign(male=d.sex=='M').to_numpy(float)
    assert auc(np.c_[who, d[['latent_hip', 'latent_vent', 'cort', 'sig', 'head']]])>.88 and .80<auc(np.c_[who, d[['tiv', 'gm', 'wm', 'vent', 'hip']]])<.96 and auc(who)<.68
    inside = [x[x>0] for x in (phantom(latents_of(r.to_dict())).data for _,r in d.iterrows())]
    assert auc(np.array([[x.mean(), x.std(), *np.percentile(x, [5, 25, 50, 75, 95])] for x in inside]))<.72

def test_clinical_b_has_other_sites_and_an_age_gap():
    d = pd.DataFrame([sample_latents(7, i, 'clinical_b') for i in range(1, 801)]); age = d.groupby('dx').age.mean()
    assert 6<age.AD-age.CN<10.5 and not set(d.site) & set(COHORTS['clinical_a'].sites)

def test_parameters_can_be_replaced_and_carry_their_provenance():
    l = sample_latents(1, 1, **A); still = replace(P, warp=((0., 44.), (0., 20.)))
    assert not np.array_equal(phantom(l, 32).data, phantom(l, 32, p=still).data)
    assert {f.metadata['source'] for f in fields(P)}=={'OASIS-1 table', 'OASIS-1 labels', 'assumed'}

def test_calibration_table_is_inside_its_targets():
    t = pd.read_csv(ROOT/'nbs'/'experiments'/'calibration.csv')
    assert list(t)==['quantity', 'target_lo', 'target_hi', 'measured', 'n'] and len(t)>=15
    out = t[(t.measured<t.target_lo)|(t.measured>t.target_hi)]; assert out.empty, out.to_string()

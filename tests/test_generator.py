"Generators, switches, lesions, visits and truth of the phantoms: what they change, and what they leave alone."
import subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurossl import rendering
from neurossl.core import Problem
from neurossl.generator import COHORTS, FOREIGN, P, SHIFT_MM, SWITCHES, SYNTHETIC, anatomical, cohort_names, cohort_spec, follow_up, rescan, sample_latents
from neurossl.phantom import demo_batch, healthy_twin, latents_of, lesions, phantom_cohort, verify_cohort
from neurossl.rendering import LABELS, atrophy_map, lesion_map, phantom, render, truth_masks, volumes_ml
from neurossl.volume import voxel_hash

ROOT = Path(__file__).resolve().parents[1]
ANATOMY = ('vent', 'hip', 'cort', 'sig', 'head')
h = lambda l, size=32: voxel_hash(phantom(l, size))

# ------------------------------------------------------------------ names
def test_every_public_name_is_still_in_phantom():
    import neurossl.phantom as m
    old = '''CUBE_MM CENTRE_MM MAPS LANDMARKS NOTICE P COHORTS EMBEDDED template Params CohortSpec sample_latents healthy_twin scanner render phantom volumes_ml atrophy_map
             phantom_cohort latents_of embedded_cohort write_embedded verify_cohort main demo_batch'''.split()
    assert all(hasattr(m, n) for n in old) and set(old)<=set(m.__all__)

@pytest.mark.parametrize('cohort', cohort_names())
def test_every_cohort_names_its_rows(cohort):
    man = phantom_cohort(2, 31, cohort, hashes=False); r = man.iloc[1]; l = latents_of(r)
    assert l==sample_latents(31, 2, cohort) and r.subject==f'{anatomical(cohort)}-31-0002' and (l['age'], l['dx'])==(r.age, r.dx)

@pytest.mark.parametrize('cohort', [*COHORTS, 'clinical_a_agecortex_skull_unregistered'])
def test_every_cohort_renders_from_its_row_alone(cohort):
    r = phantom_cohort(1, 31, cohort, hashes=False).iloc[0]; l = latents_of(r)
    v,ml = render(l, 32); assert voxel_hash(v)==h(latents_of(r)) and 1000<ml['tiv']<2300 and ml['hip']>1.5 and 200<v.data.max()<=255

def test_misspelt_cohorts_are_answered():
    for bad,want in (('clinical_a_skul', "'clinical_a_skull'"), ('population_sythetic', "'population_synthetic'"), ('clinical_strok', "'clinical_stroke'")):
        with pytest.raises(Problem, match=f'Did you mean {want}'): cohort_spec(bad)
    for bad in ('clinical_a_skull_ageless', 'clinical_a_skull_skull', 'clinical_a_', '', 'skull', 'clinical_a_ageless_agecortex'):
        with pytest.raises(Problem, match='one of population'): phantom_cohort(1, 1, bad)

def test_usual_latents_carry_nothing_new():
    assert list(sample_latents(3, 7, 'clinical_a'))==['seed', 'index', 'cohort', 'dx', 'age', 'sex', 'site', 'severity', 'brain_age', 'head', 'vent', 'hip', 'cort', 'sig']

# ------------------------------------------------------------------ switches
def test_switches_keep_the_people():
    a = sample_latents(3, 7, 'clinical_a')
    for s in ('skull', 'unregistered', 'skull_unregistered'):
        b = sample_latents(3, 7, f'clinical_a_{s}'); assert all(a[k]==b[k] for k in ('age', 'sex', 'dx', 'site', *ANATOMY)) and h(a)!=h(b)
    assert h(sample_latents(3, 7, 'clinical_a_skull'))==voxel_hash(phantom(a, 32, skull=True))
    assert h(sample_latents(3, 7, 'clinical_a_unregistered'))==voxel_hash(phantom(a, 32, p=replace(P, pose=(8., 8., .05))))
    assert h({**sample_latents(3, 7, 'clinical_a_skull')})!=voxel_hash(phantom(sample_latents(3, 7, 'clinical_a_skull'), 32, skull=False))
    x,y = (volumes_ml(sample_latents(3, 7, c), 48) for c in ('clinical_a', 'clinical_a_unregistered')); assert abs(x['tiv']/y['tiv']-1)<.02 and abs(x['vent']/y['vent']-1)<.06

def test_unregistered_heads_stay_in_the_field_of_view():
    p = cohort_spec('clinical_a_unregistered').p; poses = [rendering._pose(sample_latents(5, i, 'clinical_a_unregistered'), p) for i in range(1, 301)]
    turn,shift = np.array([x[0] for x in poses]),np.array([x[1] for x in poses]); assert 7<turn.std()<9 and abs(shift).max()<=SHIFT_MM and shift.std()>5

def test_a_change_of_another_generator_changes_the_latents(monkeypatch):
    a = sample_latents(1, 1, 'population_synthetic'); assert 'params' in a and 'params' not in sample_latents(1, 1, 'population')
    monkeypatch.setitem(COHORTS, 'population_synthetic', replace(COHORTS['population_synthetic'], p=replace(SYNTHETIC, noise=(.1, .1)))); cohort_spec.cache_clear()
    try: assert sample_latents(1, 1, 'population_synthetic')['params']!=a['params'] # so the cache makes its entries again
    finally: monkeypatch.undo(); cohort_spec.cache_clear()

def test_age_moves_to_the_cortex():
    y,o = (sample_latents(3, 7, 'population_agecortex', age=a) for a in (50, 85)); a,b = volumes_ml(y), volumes_ml(o)
    assert all(y[k]==o[k] for k in ANATOMY) and o['front']>y['front'] and abs(b['vent']/a['vent']-1)<.005 and abs(b['hip']/a['hip']-1)<.005 and b['gm']<.985*a['gm']
    ill,well = (sample_latents(3, 7, 'clinical_a_agecortex', dx='AD', severity=s) for s in (1.2, 0)); assert ill['front']==well['front'] and ill['hip']<well['hip']
    assert follow_up(y, 35, 0.)['front']==pytest.approx(o['front']) and follow_up(y, 35, 0.)['vent']==y['vent']

def test_generators_differ_where_they_should():
    def variety(c):
        xs = [phantom(sample_latents(6, i, c), 32).data for i in range(1, 13)]; g = [x[x>0].mean()/x.max() for x in xs]
        return np.std(g), np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a,b in zip(xs, xs[1:])])
    real,syn,foreign = (variety(c) for c in ('population', 'population_synthetic', 'population_foreign'))
    assert syn[0]<.6*real[0] and syn[1]>real[1]+.03 and foreign[1]<real[1]
    sites = [set(COHORTS[c].sites) for c in ('population_synthetic', 'population_foreign')]; assert not (sites[0]|sites[1]) & {s for k,c in COHORTS.items() if c.p==P for s in c.sites}
    for k in ('vent', 'hip', 'cort', 'sig'): assert getattr(P, f'{k}_ad')==getattr(SYNTHETIC, f'{k}_ad')==getattr(FOREIGN, f'{k}_ad')

def test_mixed_populations_have_no_age_gap():
    d = pd.DataFrame([sample_latents(7, i, 'population_mixed') for i in range(1, 1501)]); age = d.groupby('dx').age.mean()
    assert .20<(d.dx=='AD').mean()<.30 and abs(age.AD-age.CN)<2 and abs(d.age[d.lesion.notna()].mean()-d.age[d.lesion.isna()].mean())<2 and .15<d.lesion.notna().mean()<.25

# ------------------------------------------------------------------ lesions and truth
@pytest.mark.parametrize('kind', ['stroke', 'mass'])
def test_a_lesion_has_its_size_side_and_darkness(kind):
    for i in range(1, 9):
        l = sample_latents(8, i, f'clinical_{kind}', lesion_ml=18.); bare = sample_latents(8, i, f'clinical_{kind}', lesion_ml=0); m = lesion_map(l).data
        assert .75<volumes_ml(l)['lesion']/18<1.3 and m.sum()*.064==pytest.approx(volumes_ml(l)['lesion'], rel=1e-4) and 0<=m.min() and m.max()<=1
        right = m[24:].sum()/m.sum(); assert right>.9 if l['lesion_side']=='R' else right<.1
        x,y = phantom(l).data, phantom(bare).data; core = m>.95
        assert x[core].mean()<.8*y[core].mean() and not lesion_map(bare).data.any() and 'lesion' not in volumes_ml(bare)

def test_a_lesion_changes_nothing_far_away():
    l = sample_latents(8, 3, 'clinical_stroke', lesion_ml=15.); bare = sample_latents(8, 3, 'clinical_stroke', lesion_ml=0)
    a,b,m = phantom(l).data, phantom(bare).data, lesion_map(l).data; assert (abs(a-b)[m<1e-3]).mean()<1.5 and abs(a-b)[m>.5].mean()>20

def test_lesions_are_labels_of_a_manifest():
    man = phantom_cohort(200, 4, 'clinical_stroke', hashes=False); ml = lesions(man)
    assert .4<(ml>0).mean()<.6 and 5<=ml[ml>0].min() and ml.max()<=40 and not lesions(phantom_cohort(5, 4, 'clinical_a', hashes=False)).any()
    assert (man.age[ml>0].mean()-man.age[ml==0].mean())<2.5
    with pytest.raises(Problem, match='2 to 80 mL'): sample_latents(1, 1, 'clinical_stroke', lesion_ml=300.)

def test_labels_hold_the_volumes():
    l = sample_latents(21, 4, 'clinical_stroke', lesion_ml=20.)
    for size in (32, 48):
        x = truth_masks(l, size).data; v = (192/size)**3/1000; ml = volumes_ml(l, size); assert set(np.unique(x))==set(range(len(LABELS)))
        for want,js in ((ml['hip'], (1, 2)), (ml['vent'], (3,)), (ml['lesion'], (4,))): assert abs(v*np.isin(x, js).sum()-want)<.05*want+v
    x = truth_masks(l).data; left,right = (np.argwhere(x==k)[:, 0].mean() for k in (1, 2)); assert left<20 and right>27 # RAS+: x grows to the right
    assert not (truth_masks(healthy_twin(sample_latents(21, 4, 'clinical_a'))).data==4).any()

def test_the_atrophy_map_leaves_the_lesion_out():
    l = sample_latents(8, 3, 'clinical_stroke', lesion_ml=15., dx='AD', severity=1.); assert (atrophy_map(l).data*(lesion_map(l).data>.99)).max()<.05

# ------------------------------------------------------------------ visits
def test_a_follow_up_of_no_time_is_a_rescan():
    l = sample_latents(3, 9, 'clinical_a'); f = follow_up(l, 0)
    assert all(f[k]==l[k] for k in ANATOMY+('age', 'dx', 'severity')) and f['scan']==100 and h(f)!=h(l)!=h(rescan(l))!=h(f)

def test_time_and_disease_go_forward():
    l = sample_latents(3, 9, 'clinical_a', dx='MCI', severity=.6, age=70.); far = follow_up(l, 6, .1)
    assert far['dx']=='AD' and far['vent']>l['vent'] and far['hip']<l['hip'] and far['severity']==pytest.approx(1.2)
    assert follow_up(l, 6, 0.)['dx']=='MCI' and {k: follow_up(l, 6, 0.)[k] for k in ANATOMY}==pytest.approx({k: sample_latents(3, 9, 'clinical_a', dx='MCI', severity=.6, age=76.)[k] for k in ANATOMY})
    old = sample_latents(3, 9, 'clinical_a_ageless', dx='CN', severity=0.); assert follow_up(old, 8, 0.)['vent']==old['vent']
    with pytest.raises(Problem, match='100 years'): follow_up(l, 40)

def test_a_repeat_keeps_anatomy_and_texture():
    l = sample_latents(3, 9, 'clinical_a'); a,b = volumes_ml(l), volumes_ml(rescan(l, site=3)); assert all(abs(a[k]/b[k]-1)<.03 for k in a)
    still = replace(P, pose=(0., 0., .02), noise=(0., 0.), mask_sd=0., bias=0., gm_sd=(.06, 0.), csf_sd=(.06, 0.), gamma_sd=(.2, 0.), blur_mm=0.)
    assert voxel_hash(phantom(l, 32, p=still))==voxel_hash(phantom(rescan(l), 32, p=still))

def test_manifests_name_visits_and_repeats():
    man = phantom_cohort(2, 5, 'clinical_a', visits=2, years=1.5, repeats=1, repeat_site=14)
    assert list(man.session)==['1', '1r1', '2', '2r1']*2 and man.subject.nunique()==2 and man.sha256.nunique()==8 and man.index[3]=='clinical_a-5-0001-2r1'
    assert verify_cohort(man)==dict(scans=8, compared=8, identical=8, equivalent=0) and (man.site[man.session.str.contains('r')]=='site14').all()
    for _,r in man.iterrows(): assert voxel_hash(phantom(latents_of(r)))==r.sha256
    bad = man.iloc[2].copy(); bad['age'] -= 9
    with pytest.raises(Problem, match='0 or more'): latents_of(bad)
    bad = man.iloc[2].copy(); bad['session'] = 'm12'
    with pytest.raises(Problem, match='1r1'): latents_of(bad)

def test_the_cache_renders_what_the_row_says(tmp_path):
    from neurossl.data import build_cache, _source
    from neurossl.preprocess import Recipe
    man = pd.concat([phantom_cohort(1, 5, c, hashes=False, **k) for c,k in (('clinical_a', dict(visits=2, repeats=1, repeat_site=3)), ('clinical_a_skull', {}), ('clinical_stroke', {}), ('population_synthetic', {}))])
    cache,out = build_cache(man, Recipe('s1', 32), folder=tmp_path); assert out.empty and len({cache.key(r) for _,r in man.iterrows()})==len(man)
    for _,r in man.iterrows(): assert voxel_hash(_source(cache, r)[0])==h(latents_of(r))

"Grids, arms, and the tables made of finished runs"
import json
import re

import numpy as np
import pandas as pd
import pytest

import neurossl.study as study
from neurossl.compare import SETTING, contrasts, estimates, operating_points, pairs_of, widened
from neurossl.core import paths
from neurossl.grid import expand, load_grid, overlaid, study_cells
from neurossl.ledger import read_ledger
from neurossl.metrics import predictions
from neurossl.report import not_run, results_of
from neurossl.run import ParameterError, profiles

G = dict(name='g', template='pretrain', id='{arm}-s{seed}', arms=dict(age=dict(task='age'), rot=dict(task='rotation', seed=[0])), axes=dict(seed=[0, 1]))

def test_arms_cross_axes_and_may_narrow_them():
    assert [c['id'] for c in expand(G)]==['age-s0', 'age-s1', 'rot-s0'] and expand(G)[0]['params']['arm']=='age'
    assert [c['id'] for c in expand(dict(G, profiles=dict(smoke=dict(arms=['age'], axes=dict(seed=[7])))), 'smoke')]==['age-s7']

def test_a_grid_runs_in_its_profiles_only():
    assert expand({**G, 'in': ['full']}, 'smoke')==[] and len(expand({**G, 'in': ['full']}, 'full'))==3 and overlaid({**G, 'in': ['full']}, 'gpu')=={}

def test_a_missing_arm_is_named():
    with pytest.raises(ParameterError, match="Did you mean 'age'"): overlaid(dict(G, profiles=dict(full=dict(arms=['aeg']))), 'full')

def test_a_profile_changes_what_its_arms_have():
    g = dict(G, arms=dict(G['arms'], age=dict(task='age', keep=[1, 2])), profiles=dict(default=dict(arms=dict(age=dict(keep=[])))))
    assert overlaid(g, 'default')['arms']=={'age': dict(task='age', keep=[])} and overlaid(g, 'full')['arms']==g['arms'], 'the others keep theirs'

def test_yaml_takes_off_for_false(tmp_path):
    f = tmp_path/'g.yaml'; f.write_text('template: pretrain\nid: a\narms: {b: {options: {off: .02}}}\n')
    with pytest.raises(ParameterError, match='quotes'): load_grid(f)
    f.write_text(f.read_text().replace('off', 'null'))
    with pytest.raises(ParameterError, match='None as a name'): load_grid(f)
    f.write_text(f.read_text().replace('null', '"off"')); assert load_grid(f)['arms']['b']['options']=={'off': .02}

def test_the_commands_that_pages_name_run_something():
    pages = [paths().root/'README.md', *paths().nbs.glob('*.ipynb'), *paths().nbs.glob('*/*.ipynb')]
    named = {m for f in pages for m in re.findall(r'make grid GRID=([\w-]+) PROFILE=(\w+)', f.read_text(encoding='utf-8')) if m[0]!='yours'}
    assert len(named)>5 and not [m for m in named if not expand(*m)]

def test_of_selects_what_a_grid_stands_on():
    ids = [c['id'] for c in expand('s1-imbalance', 'full')]
    assert ids==['age-s0', 'age-s1', 'age-s2'] and all(c['needs'][0].startswith('s1-pretext/age-s') for c in expand('s1-imbalance', 'full'))

def test_every_contrast_names_arms_that_a_profile_runs():
    def named(f, pool='mean', **_): return f if pool=='mean' else f'{f} {pool}' # as `arm_features` does
    cells = [c for p in ('full', 'gpu') for c in study_cells(p)] # what two cores leave out, a GPU runs
    arms = {c['params'].get('arm') for c in cells} | {named(f, **c['params']) for c in cells for f in c['params'].get('features') or []}
    for g in {c['grid'] for c in cells}:
        if g[:3]!='s1-': continue
        for _,a,b in pairs_of(load_grid(g).get('contrasts')): assert a in arms and b in arms, (g, a, b)

def test_families_that_decide_claims_are_in_the_ledger():
    known = set(read_ledger().id); import re
    for g in {c['grid'] for c in study_cells('full')}:
        for f,_,_ in pairs_of(load_grid(g).get('contrasts')): assert f in known or not re.fullmatch(r'S\d-C\d+', f), f

def made(arm, shift, seed, n=120):
    r = np.random.default_rng(5); y = r.integers(0, 2, n); e = r.normal(0, 1, n); own = np.random.default_rng(100+seed).normal(0, .3, n)
    p = predictions(y, 1/(1+np.exp(-(shift*y+e+own))), [f's{i}' for i in range(n)], scan_id=[f's{i}' for i in range(n)], seed=seed)
    return p.assign(arm=arm, saw='x', cohort='c', adjust='none', n_train=50, ad_share='', remedy='', epoch='', probe='svc')

def test_contrasts_find_what_was_planted_and_pair_by_seed():
    pred = pd.concat([made('a', 2., s) for s in (0, 1, 2)]+[made('b', 0., s) for s in (0, 1)])
    t = contrasts(pred, [('f', 'a', 'b'), ('f', 'a', 'nobody')], n=300)
    assert len(t)==1 and t.n_seeds[0]==2 and t.lo[0]>0 and t.family[0]=='f' and t.p_holm[0]>=t.p[0]-1e-12
    same = contrasts(pd.concat([made('a', 1., 0), made('b', 1., 0)]), [('f', 'a', 'b')], n=300)
    assert same.value[0]==0 and np.isnan(same.seed_sd[0])
    assert len(contrasts(pred.iloc[:0], [('f', 'a', 'b')]))==0

def test_an_arm_with_a_classifier_of_its_own_stands_beside_every_other():
    pred = pd.concat([made('a', 2., 0), made('a', 2., 0).assign(probe='rf'), made('v', 0., 0).assign(probe='linear')])
    t = contrasts(pred, [('f', 'a', 'v')], n=300)
    assert sorted(t.probe)==['rf', 'svc'] and (t.value>0).all()

def test_settings_are_never_mixed():
    pred = pd.concat([made('a', 2., 0), made('b', 0., 0), made('a', 0., 0).assign(adjust='age-matched')])
    t = contrasts(pred, [('f', 'a', 'b')], n=300)
    assert t.adjust.tolist()==['none'] and set(SETTING)<=set(t)

def test_the_variance_between_seeds_widens_an_interval():
    row = dict(value=.1, lo=.05, hi=.15, se=.025)
    w = widened(row, pd.Series([.0, .1, .2]))
    assert w['lo']<.05 and w['hi']>.15 and np.isclose(w['se'], (.025**2+.1**2/3)**.5) and w['n_seeds']==3
    assert widened(row, pd.Series([.1]))['lo']==.05 and widened(row, pd.Series([.1, .1, .1]))['lo']==.05

def test_estimates_and_operating_points():
    pred = pd.concat([made('a', 2., s) for s in (0, 1, 2)])
    t,o = estimates(pred, 200),operating_points(pred)
    assert t.metric.tolist()==['auc', 'balanced_accuracy'] and t.n_seeds.eq(3).all() and (t.lo<=t.value).all() and (t.value<=t.hi).all()
    assert len(o)==1 and {'accuracy', 'sensitivity', 'specificity', 'prevalence', 'majority_accuracy', 'f1'}<=set(o)
    assert len(estimates(pred.iloc[:0]))==0 and len(operating_points(pred.iloc[:0]))==0

def test_tables_of_a_profile_that_was_never_run(tmp_path):
    r = results_of('no such profile')
    assert r.said=='not run' and len(r.ledger)==0 and 'Not run' in not_run(r.probe, lambda t: t).data

def test_keep_refuses_a_profile_without_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(study, 'tables', lambda profile: tmp_path); monkeypatch.setattr(study, 'study_cells', lambda profile: [])
    with pytest.raises(Exception, match='no complete run'): study.keep('full')

def test_kept_tables_have_a_record_of_each_run():
    for home in (paths().nbs/'report'/'results').glob('*/'):
        runs = pd.read_csv(home/'runs.csv'); records = [json.loads(l) for l in (home/'runs.jsonl').read_text().splitlines()]
        assert runs.complete.sum()==len(records) and home.name in profiles() and all(r['files'] and r['git'] for r in records)
        assert sum(f.stat().st_size for f in home.rglob('*') if f.is_file())<3e6, 'kept results are small'
        from neurossl.kept import read_kept
        packs = {f'runs/{home.name}/{f.name[:-8]}/{i}': p for f in (home/'runs').glob('*.json.xz') for i,p in read_kept(f).items()}
        assert {f"runs/{r['run']}" for r in records}<=set(packs), 'and the light part of each'

def test_a_grid_without_each_waits_for_all_that_it_needs():
    g = {k: v for k,v in load_grid('s1-imbalance').items() if k not in ('each', 'profiles')}; g = dict(g, id='both', base=dict(g['base'], pretrain='runs/{profile}/s1-pretext/age-s0;runs/{profile}/s1-pretext/age-s1'))
    c, = expand(g, 'full')
    assert c['needs']==['s1-pretext/age-s0', 's1-pretext/age-s1', 's1-pretext/age-s2'] and c['params']['pretrain'].startswith('runs/full/s1-pretext/age-s0;runs/full/')

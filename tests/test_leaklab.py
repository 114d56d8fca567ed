"The leakage laboratory: a clean twin knows nothing of whom it judges, a leak does, and a leak without anything to leak adds nothing."
import numpy as np
import pandas as pd
import pytest
import torch

from neurossl import leaklab
from neurossl.core import Problem
from neurossl.grid import expand
from neurossl.leaklab import (FITTED, LEAKAGE, Lab, contamination_report, inflation, lab_scans, leak_arms, leak_lab, leak_table, null_inflation, one_label, possible,
                              relabel, show_leaks)
from neurossl.manifest import empty_manifest
from neurossl.metrics import auc, predictions
from neurossl.phantom import embedded_cohort
from neurossl.run import ParameterError, resolve
from neurossl.splits import LEAKS, LeakError, people_of

def made(n=30, person=1., signal=0., scan=.5, seed=0):
    "A laboratory of made-up features: what belongs to the person, to the diagnosis, and to the scan"
    g = np.random.default_rng(seed); rows = [dict(scan_id=f'm{i:03d}-{v}{r}', subject=f'm{i:03d}', session=f'{v}{r}', cohort='made', age=round(60+i*.7%30+2*(v-1), 1), sex='FM'[i//2%2], dx=('CN', 'AD')[i%2])
                                             for i in range(n) for v in (1, 2) for r in ('', 'r1')]
    man = empty_manifest(rows); y = np.arange(n)%2; who = person*g.normal(size=(n, 60))+signal*y[:,None]*np.eye(60)[0]
    of = lambda x, k: np.repeat(x, k, 0)+scan*g.normal(size=(k*len(x), x.shape[1]))
    fine = np.c_[who, g.normal(size=(n, 400))]
    return Lab(man, (man.session=='1').to_numpy(), of(who, 4), fine, of(who, 6).reshape(n, 6, -1), of(who, 3).reshape(n, 3, -1))

def test_the_leaks_of_the_splits_are_all_here(): assert set(LEAKS)<=set(LEAKAGE) and set(FITTED)<=set(LEAKAGE) and len(LEAKAGE)==9

@pytest.mark.parametrize('leak', LEAKAGE)
def test_both_arms_judge_the_same_scans_once(leak):
    lab = made(); a,b = leak_arms(lab, leak, folds=3, looks=4); again = leak_arms(lab, leak, folds=3, looks=4)
    assert sorted(a.scan_id)==sorted(b.scan_id) and a.scan_id.is_unique and b.scan_id.is_unique and a.groupby('subject').fold.nunique().max()==1
    assert a.equals(again[0]) and b.equals(again[1]) and (a.run=='clean').all() and (b.run=='leaky').all()
    n = dict(slice=180, scan=120, visit=30, late=90).get(leak, 30); assert len(a)==n and set(a.subject)==set(lab.man.subject)

@pytest.mark.parametrize('leak', ['slice', 'scan', 'visit', 'late'])
def test_only_the_leaky_arm_learns_from_whom_it_judges(leak, monkeypatch):
    seen,real = [],leaklab._judged
    def spy(clf, x, rows, learn, test, **kw): seen.append((kw['run'], set(rows.subject[learn])&set(rows.subject[test]), int(learn.sum()), int((learn&test).sum()))); return real(clf, x, rows, learn, test, **kw)
    monkeypatch.setattr(leaklab, '_judged', spy); leak_arms(made(), leak, folds=3)
    assert all(not both for run,both,*_ in seen if run=='clean') and all(len(both)>5 for run,both,*_ in seen if run=='leaky') and not any(k for *_,k in seen)
    n = {run: np.array([k for r,_,k,_ in seen if r==run]) for run in ('clean', 'leaky')}; assert abs(n['clean']-n['leaky']).max()<=6 # as many rows to learn from

@pytest.mark.parametrize('leak', LEAKAGE)
def test_nothing_of_the_judged_people_reaches_the_clean_arm(leak):
    lab = made(); clean,leaky = leak_arms(lab, leak, folds=3, looks=4); there = clean[clean.fold==1].subject.unique(); hit = set(there[:len(there)//2]); rest = set(there)-hit
    bad = lab.man.subject.isin(hit).to_numpy(); one = lab.man.subject[lab.first].isin(hit).to_numpy(); spoil = lambda x, m: np.where(m.reshape(-1, *[1]*(x.ndim-1)), 9*x[...,::-1], x)
    c,l = leak_arms(lab._replace(voxels=spoil(lab.voxels, bad), fine=spoil(lab.fine, one), slices=spoil(lab.slices, one), copies=spoil(lab.copies, one)), leak, folds=3, looks=4)
    of = lambda p: p[p.fold.eq(1)&p.subject.isin(rest)].set_index('scan_id').score if leak not in ('slice', 'scan', 'late') else p[p.subject.isin(rest)].set_index('scan_id').score
    mine = clean[clean.fold.eq(1)&clean.subject.isin(rest)].scan_id
    assert np.array_equal(of(clean)[mine], of(c)[mine])
    if leak!='choice': assert not np.array_equal(of(leaky)[mine], of(l)[mine])

def test_random_labels_show_the_leaks_and_leave_the_clean_twin_alone():
    t = leak_table(made(24), ['slice', 'scan', 'late', 'selection', 'choice', 'pretrain', 'pretrain-dx'], folds=2, repeats=1, relabellings=12, looks=15, n=100); r = t[t.labels=='random'].set_index('leak')
    assert (r.value[['slice', 'scan', 'late']]>.25).all() and (r.lo[['selection', 'choice', 'pretrain-dx']]>0).all() and abs(r.value['pretrain'])<.08
    assert (abs(r.clean-.5)<.13).all() and (r.clean_lo<=r.clean).all() and np.allclose(r.value, r.leaky-r.clean)
    assert list(t)==['leak', 'labels', 'value', 'lo', 'hi', 'clean', 'leaky', 'clean_lo', 'clean_hi', 'n_subjects', 'n_scans', 'seed'] and list(t.labels)==['real', 'random']*7

def test_without_anything_that_belongs_to_the_person_dealing_rows_leaks_nothing():
    lab = made(40, person=0., scan=1.); t = null_inflation([leak_arms(lab._replace(man=relabel(lab.man, s)), 'scan', 3, s) for s in range(12)]); assert abs(t['value'])<.06

def test_real_labels_bound_the_inflation():
    lab = made(signal=8.); c,l = leak_arms(lab, 'scan', 3); r = inflation(c, l, n=200); assert r['clean']>.85 and 0<=r['value']<=1-r['clean']+1e-9 and r['lo']<=r['value']<=r['hi']

def test_inflation_of_known_scores():
    y = np.arange(20)%2; clean,leaky = (predictions(y, s, scan_id=[f's{i}' for i in range(20)], run=r) for r,s in (('clean', np.zeros(20)), ('leaky', y)))
    r = inflation(clean, leaky, n=100); assert r['value']==.5 and r['clean']==.5 and r['leaky']==1. and r['lo']==r['hi']==.5 and r['n_subjects']==20 and r['n_scans']==20
    r = null_inflation([(clean, leaky), (leaky, leaky)]); assert r['value']==.25 and r['clean']==.75 and r['lo']<.25<r['hi'] # t with one degree of freedom
    with pytest.raises(Problem, match='two or more'): null_inflation([(clean, leaky)])

def test_the_better_half_of_forty_tries_is_no_better_in_truth():
    lab = made(60); pairs = [leak_arms(lab._replace(man=relabel(lab.man, s)), 'choice', 3, s, k) for k in (1, 40) for s in range(8)]; one,many = null_inflation(pairs[:8]),null_inflation(pairs[8:])
    assert one['value']==0. and many['lo']>.05 # a single try leaves nothing to choose

def test_ridge_classifiers_are_those_of_scikit_learn():
    from sklearn.linear_model import Ridge
    g = np.random.default_rng(0); x,y,v = g.normal(size=(30, 8)),np.arange(30)%2,g.normal(size=(5, 8)); pick = np.array([[0, 3, 5], [1, 2, 7]]); c = np.array([.1, 2.]); got = leaklab._ridges(x, y, pick, c)(v)
    for k in range(2):
        z = x[:,pick[k]]; m,s = z.mean(0),z.std(0)+1e-6; r = Ridge(30*c[k], fit_intercept=True).fit((z-m)/s, y); assert np.allclose(r.predict((v[:,pick[k]]-m)/s)-r.intercept_, got[k])

def test_dealt_rows_fill_the_folds():
    lab = made(); f = leaklab._dealt(lab.man, 7, 0); assert set(f)==set(range(7)) and np.ptp(np.bincount(f))<=1 and not np.array_equal(f, leaklab._dealt(lab.man, 7, 1))

def test_labels_belong_to_people():
    man = made().man; new = relabel(man, 3); assert new.groupby('subject').dx.nunique().max()==1 and new.dx.value_counts().to_dict()==man.dx.value_counts().to_dict() and not new.dx.equals(man.dx)
    assert abs(np.mean([(relabel(man, s).dx==man.dx).mean() for s in range(60)])-.5)<.05
    twin = man.assign(sha256=np.where(man.subject.isin(['m000', 'm002']), 'same', '')); assert relabel(twin, 1).groupby(people_of(twin)).dx.nunique().max()==1
    with pytest.raises(Problem, match='one a person'): relabel(man.assign(dx=['CN', 'AD']*60))
    changed = man.copy(); changed.loc['m000-2', 'dx'] = 'AD'; changed.loc[changed.subject=='m001', 'dx'] = ['MCI', 'MCI', 'AD', 'AD']; one = one_label(changed.iloc[::-1])
    assert one.dx['m000-2']=='CN' and 'm001' not in set(one.subject) and len(one)==116

def test_scans_of_the_laboratory_are_those_of_the_development_cohort():
    man,table = lab_scans(12, visits=3, repeats=1),embedded_cohort(); first = man[man.session=='1']
    assert man.groupby('subject').size().eq(6).all() and man.subject.nunique()==12 and set(first.index)<=set(table.index) and (first.sha256==table.sha256[first.index]).all()
    assert table.split[first.index].eq('development').all() and not set(man.subject)&set(table.subject[table.split=='sealed']) and set(man.dx)=={'CN', 'AD'}
    assert set(lab_scans(5, 'clinical_b', 1, 0).cohort)=={'clinical_b'} and set(lab_scans(4, 'clinical_a_skull', 1, 0).subject)<=set(man.subject)
    with pytest.raises(Problem, match='clinical_a or clinical_b'): lab_scans(5, 'population')

class Fake:
    "A dataset of noise"
    def __init__(self, man, size=16): g = torch.Generator().manual_seed(0); self.man,self.x = man,torch.rand((len(man), 1, *[size]*3), generator=g)
    def batch(self, idx): return dict(x=self.x[torch.as_tensor(idx)], scan_id=[self.man.index[int(i)] for i in idx])

def test_features_are_made_scan_by_scan():
    man = made(12).man; ds = Fake(man); lab = leak_lab(ds, 4, 8, slices=6, copies=3); assert lab.voxels.shape==(48, 64) and lab.fine.shape==(12, 512) and lab.slices.shape==(12, 6, 256) and lab.copies.shape==(12, 3, 64)
    assert list(lab.man.index[lab.first])==[f'm{i:03d}-1' for i in range(12)] and lab.voxels.dtype==np.float32 and np.isfinite(lab.copies).all() and not np.allclose(lab.copies[:,0], lab.copies[:,1])
    ds.x[5] = 0; ds.x[5,:,2:9] = .7; other = leak_lab(ds, 4, 8, slices=6, copies=3); assert np.array_equal(np.delete(other.voxels, 5, 0), np.delete(lab.voxels, 5, 0)) and np.array_equal(other.slices, lab.slices) # scan 5 is no first scan
    with pytest.raises(LeakError, match='sealed'): leak_lab(Fake(man.assign(split='sealed')))

def test_what_the_scans_do_not_allow_is_said():
    lab = made(); alone = Lab(lab.man[lab.first], np.ones(30, bool), lab.voxels[lab.first], *lab[3:]); assert possible(lab)==list(LEAKAGE) and set(LEAKAGE)-set(possible(alone))=={'scan', 'visit'}
    for leak in ('scan', 'visit'):
        with pytest.raises(Problem, match='one scan a subject'): leak_arms(alone, leak)
    with pytest.raises(Problem, match="Did you mean 'late'"): leak_arms(lab, 'lat')

def test_the_contamination_is_counted_by_people():
    man = made(10).man.assign(sha256=[f'{i:064d}' for i in range(40)]); pre = man.iloc[:8].assign(subject='x'); pre.index = [f'p{i}' for i in range(8)]; r = contamination_report(pre, man)
    assert r.test_people.to_dict()=={'voxels': 2, 'near duplicate': 0, 'subject': 0, 'any': 2} and r.share['any']==.2 and r.test_scans['any']==8
    r = contamination_report(man.iloc[2:4].assign(sha256=''), man.iloc[:2]); assert r.test_people['subject']==1 and r.pairs['any']==4
    assert contamination_report(man.iloc[:4], man.iloc[4:]).pairs.sum()==0

def test_the_figure_shows_every_leak():
    t = pd.DataFrame([dict(leak=k, labels=l, value=.1, lo=0., hi=.2) for k in LEAKAGE for l in ('real', 'random')]); ax = show_leaks(t).axes[0]
    assert [x.get_text() for x in ax.get_yticklabels()]==list(LEAKAGE.values()) and len(ax.get_legend().get_texts())==2
    assert len(show_leaks(t[t.labels=='real']).axes[0].get_legend().get_texts())==1

def test_the_template_runs_without_a_row_in_the_profiles():
    assert resolve('leaklab', {})['relabellings']>=20 and expand('leaklab', 'default')==[] and {p: [c['template'] for c in expand('leaklab', p)] for p in ('smoke', 'full', 'gpu', 'paper')}==dict.fromkeys(('smoke', 'full', 'gpu', 'paper'), ['leaklab'])
    with pytest.raises(ParameterError, match='leek'): resolve('leaklab', dict(leek=1))

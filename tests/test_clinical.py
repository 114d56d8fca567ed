"Clinical questions: three classes, progression from the same anatomy, intraclass correlations with known answers, the existing cohorts untouched"
import numpy as np
import pandas as pd
import pytest
from neurossl.clinical import ICCS, confusion, icc, pair, progression, retest, three_class, three_scores, travelling
from neurossl.core import Problem
from neurossl.generator import STEPS
from neurossl.phantom import embedded_cohort, latents_of, phantom_cohort, verify_cohort


def cohort(n=200, seed=4): return phantom_cohort(n, seed, 'clinical_a', hashes=False)


def planted(man, gain, seed=0): return pd.DataFrame(np.random.default_rng(seed).normal(0, 1, (len(man), 3)), man.index).assign(f=lambda d: d[0]+gain*man.dx.map({'CN': 0, 'MCI': 1, 'AD': 2}))[['f', 1, 2]].rename(columns=str)


def test_three_classes_find_what_was_planted_and_nothing_else():
    man = cohort(); a,b = (three_scores(three_class(planted(man, g), man, folds=3), 200).set_index('metric') for g in (2.5, 0.))
    assert a.lo['auc_ovr']>.75 and a.lo['balanced_accuracy']>1/3 and a.value['auc MCI']<a.value['auc AD']
    assert b.lo['auc_ovr']<.5<b.hi['auc_ovr'] and b.chance['balanced_accuracy']==pytest.approx(1/3)
    p = three_class(planted(man, 2.5), man, folds=3); assert p.scan_id.is_unique and len(p)==len(man) and np.allclose(p[['p0', 'p1', 'p2']].sum(axis=1), 1); assert confusion(p).to_numpy().trace()>.5*len(man)
    with pytest.raises(Problem): three_class(planted(man, 1), man.assign(split='test'))


def test_progression_is_what_the_followed_anatomy_does():
    m = progression(400, 9, years=4.); two = phantom_cohort(400, 9, 'clinical_a', hashes=False, visits=2, years=4.).set_index(['subject', 'session'])
    assert set(m.dx)=={'CN', 'AD'} and (m.session=='1').all() and m.subject.is_unique
    for i,r in m.iterrows():
        first,last = two.loc[(r.subject, '1')],two.loc[(r.subject, '2')]
        assert first.dx=='MCI' and latents_of(first)['severity']<STEPS[1] and last.dx==('AD' if r.dx=='AD' else 'MCI') and abs(last.age-first.age-4)<.02
    assert progression(400, 9, years=8.).dx.eq('AD').mean()>m.dx.eq('AD').mean()


def test_pairs(): m = pair(cohort(), 'CN', 'MCI'); assert set(m.dx)=={'CN', 'AD'} and m.dx.eq('AD').sum()==cohort().dx.eq('MCI').sum()


def table(x): n,k = x.shape[:2]; i = [f'{a}-{b}' for a in range(n) for b in range(k)]; return pd.DataFrame(x.reshape(n*k, -1), i),pd.DataFrame(dict(subject=[f"{s.split('-')[0]:>03}" for s in i], site=[s.split('-')[1] for s in i], session='1'), i)


@pytest.mark.parametrize('kind,value', [('1,1', .1657), ('2,1', .2898), ('3,1', .7148)])
def test_shrout_and_fleiss(kind, value):
    x = np.array([[9,2,5,8], [6,1,3,2], [8,4,6,8], [7,1,2,6], [10,5,6,9], [6,2,4,7]], float); assert icc(*table(x), kind, 20)['value']==pytest.approx(value, abs=1e-4)


def test_icc_finds_the_share_of_the_person_and_sees_shifts_of_sites():
    g = np.random.default_rng(0); n,k,f = 150,3,10; person,noise,site = g.normal(0, 1, (n, 1, f)),g.normal(0, .5, (n, k, f)),g.normal(0, 1, (1, k, f))
    r = icc(*table(person+noise), '1,1', 300); assert abs(r['value']-1/1.25)<.03 and r['lo']<.8<r['hi'] and r['repeats']==3
    a,b = (icc(*table(person+noise+site), kind, 50)['value'] for kind in ('2,1', '3,1')); assert abs(b-.8)<.03 and a<.65
    assert abs(icc(*table(g.normal(0, 1, (n, k, f))), '1,1', 200)['value'])<.06
    t,m = table(person+noise)
    with pytest.raises(Problem, match='same number'): icc(t.iloc[1:], m.iloc[1:])
    with pytest.raises(Problem, match='kind'): icc(t, m, '4,1')


def test_repeats_share_the_anatomy():
    for m,k in ((retest(4, repeats=3), 3), (travelling(4), 6)):
        assert m.groupby('subject').size().eq(k).all()
        for _,p in m.groupby('subject'):
            ls = [latents_of(r) for _,r in p.iterrows()]; assert len({tuple(l[x] for x in ('vent', 'hip', 'cort', 'sig', 'head', 'age')) for l in ls})==1 and len({l.get('scan', 0) for l in ls})==k
    assert travelling(4).site.nunique()==6 and set(ICCS)=={'1,1', '2,1', '3,1'}


def test_the_embedded_cohort_is_as_it_was(): r = verify_cohort(embedded_cohort(), sample=6); assert r['compared']==6==r['identical']+r['equivalent']

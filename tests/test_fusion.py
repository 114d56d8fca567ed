"Fusion: factors from the subject's own seed, a planted increment found and an empty one not, weights, refusals"
import numpy as np
import pandas as pd
import pytest
from neurossl.core import Problem
from neurossl.fusion import ARMS, CARRIERS, added_value, clinical_table, fuse, risk_factors
from neurossl.phantom import phantom_cohort
from neurossl.stats import auc


def people(n=220, seed=3): m = phantom_cohort(n, seed, 'clinical_a', hashes=False); return m[m.dx.isin(['CN', 'AD'])]


def test_factors_have_their_shares_and_belong_to_the_subject():
    man = phantom_cohort(1500, 11, 'clinical_a', hashes=False); t = risk_factors(man)
    for dx,share in CARRIERS.items(): assert abs(t.apoe[man.dx.eq(dx)].mean()-share)<.05
    assert t.education.between(6, 22).all() and risk_factors(man.iloc[::-1]).loc[t.index].equals(t)
    two = phantom_cohort(40, 11, 'clinical_a', hashes=False, visits=2, years=6.); r = risk_factors(two).groupby(two.subject).nunique(); assert (r==1).all(axis=None)
    assert r.index.size==40 and two.groupby('subject').dx.nunique().max()==2 # although some change their diagnosis
    with pytest.raises(Problem, match='phantoms'): risk_factors(man.assign(seed=np.nan))


def noise(man, k=5, seed=0, up=0.): return pd.DataFrame(np.random.default_rng(seed).normal(0, 1, (len(man), k)), man.index).assign(**{'0': lambda d: d[0]+up*man.dx.eq('AD')}).drop(columns=0).rename(columns=str)


@pytest.mark.parametrize('probe', ['linear', 'svc'])
def test_a_planted_increment_is_found(probe):
    man = people(); t = clinical_table(man); p = fuse(noise(man, up=2.), t, man, folds=3, probe=probe); a = added_value(p, 400).set_index(['arm', 'reference'])
    assert set(p.arm)==set(ARMS) and p.groupby('arm').scan_id.nunique().eq(len(man)).all() and a.lo['stacked', 'table']>0 and a.value['stacked', 'image']>-.02


def test_an_empty_image_adds_nothing_and_gets_no_weight():
    man = people(seed=8); t = clinical_table(man); w = []
    for s in range(3):
        p = fuse(noise(man, seed=s), t, man, folds=3, seed=s); a = added_value(p, 300).iloc[0]; assert a.lo<=1e-9 and a.value<.04; w.append(p[['weight_image', 'weight_table']].mean())
    assert np.mean([v.weight_image for v in w])<np.mean([v.weight_table for v in w])
    good = fuse(noise(man, up=2.), t, man, folds=3); by = {k: auc(g.y, g.score) for k,g in good.groupby('arm')}; assert by['stacked']>by['table']


def test_refusals():
    man = people(60); t = clinical_table(man)
    with pytest.raises(Problem): fuse(noise(man), t, man.assign(split='sealed'))
    with pytest.raises(Problem, match='without a row'): clinical_table(man, more=pd.DataFrame(dict(apoe=[1.]), index=man.index[:1]))
    with pytest.raises(Problem, match='missing value'): clinical_table(man.assign(age=np.nan))

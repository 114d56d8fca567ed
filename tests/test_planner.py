"The planner: exact variances, simulated power within .03, inverses, components found where they were planted"
import numpy as np
import pandas as pd
import pytest
from neurossl.core import Problem
from neurossl.metrics import auc, predictions
from neurossl.planner import auc_covariance, components, curve_at, detectable, difference_se, label_plan, learning_curve, needed, power_of
from neurossl.significance import auc_se, delong
from scipy.stats import norm


def draw(a, b, rho, n_pos, n_neg, g):
    y = np.r_[np.ones(n_pos), np.zeros(n_neg)].astype(int)
    return y, g.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n_pos+n_neg)+y[:,None]*np.sqrt(2)*norm.ppf([a, b])


def test_variance_at_one_half_is_the_rank_sum():
    for p,q in ((5, 9), (50, 20)): assert auc_covariance(.5, .5, p, q)==pytest.approx((p+q+1)/(12*p*q), rel=1e-6)


def test_close_to_hanley_and_mcneil_and_without_correlation_nothing():
    assert auc_covariance(.85, .85, 100, 100)**.5==pytest.approx(auc_se(.85, 100, 100), rel=.05)
    assert auc_covariance(.85, .7, 30, 30, 0.)==pytest.approx(0, abs=1e-9)
    assert auc_covariance(.8, .8, 30, 40, 1.)==pytest.approx(auc_covariance(.8, .8, 30, 40)) and auc_covariance(.9, .8, 30, 30, .5)==pytest.approx(auc_covariance(.8, .9, 30, 30, .5))


@pytest.mark.parametrize('a,b,rho,share,sizes', [(.85, .80, .6, .5, (100, 200, 400)), (.92, .84, .3, .3, (160,)), (.75, .65, .8, .4, (120,))])
def test_power_curve_is_met_by_simulation(a, b, rho, share, sizes):
    for n in sizes:
        g = np.random.default_rng(n); hit = 0
        for _ in range(1500): y,s = draw(a, b, rho, round(n*share), n-round(n*share), g); hit += delong(y, s[:,0], s[:,1])['p']<.05
        assert abs(hit/1500-power_of(n, a, b, rho=rho, share=share))<.03


def test_the_level_is_kept_where_nothing_differs():
    assert power_of(200, .8, .8)==pytest.approx(.05, abs=1e-9); assert power_of(200, .8, .8, level=.01)==pytest.approx(.01)


def test_inverses_and_monotony():
    for rho in (.2, .7):
        n = needed(.9, .85, rho=rho); assert power_of(n, .9, .85, rho=rho)>=.8>power_of(n-1, .9, .85, rho=rho)
        assert power_of(150, .7+detectable(150, .7, rho=rho), .7, rho=rho)==pytest.approx(.8, abs=1e-3)
    p = [power_of(n, .85, .8) for n in (50, 100, 200, 400, 800)]; assert all(x<y for x,y in zip(p, p[1:]))
    assert needed(.9, .85, rho=.8)<needed(.9, .85, rho=.2) and needed(.9, .85, power=.9)>needed(.9, .85)
    assert np.isnan(detectable(10, .97)) and needed(.8001, .8, most=1000) is None


def test_trainings_are_a_floor():
    a,b = (difference_se(10**6, .85, .8, sd_seed=.04, seeds=k) for k in (1, 4)); assert a==pytest.approx(.04, rel=.01) and b==pytest.approx(.02, rel=.01)
    assert needed(.85, .8, sd_seed=.04) is None and needed(.85, .8, sd_seed=.04, seeds=16) is not None


def test_components_are_found():
    g = np.random.default_rng(0); parts = []
    y,s = draw(.85, .75, .5, 600, 900, g)
    for seed in range(6): e = g.normal(0, .1, 2); parts.append([predictions(y, s[:,i]*(1+seed)+y*e[i]*0, seed=seed, fold=0) for i in (0, 1)])
    c = components(*(pd.concat(p) for p in zip(*parts))); assert abs(c['rho']-.5)<.05 and c['share']==.4 and c['n']==1500 and c['seeds']==6 and c['sd_seed']<1e-12
    assert c['auc']==pytest.approx(auc(y, s[:,0])) and c['reference']==pytest.approx(auc(y, s[:,1]))
    with pytest.raises(Problem, match='no scan that both'): components(predictions(y, s[:,0]), predictions(y, s[:,0]).assign(scan_id='x'+predictions(y, s[:,0]).scan_id))


def test_learning_curve():
    true = dict(a=.88, b=2., c=.8); m = [10, 20, 50, 100, 400]; g = np.random.default_rng(1); c = learning_curve(m, [curve_at(true, k)+g.normal(0, .002) for k in m])
    assert abs(curve_at(c, 200)-curve_at(true, 200))<.01 and c['rmse']<.005
    t = label_plan(c, m, 500); assert t.loss.iloc[-1]==0 and (t.power.diff()[1:]<=1e-9).all()


@pytest.mark.parametrize('bad', [dict(auc=.4), dict(auc=1.), dict(reference=.3), dict(rho=1.5)])
def test_refusals(bad):
    kw = dict(dict(auc=.85, reference=.8, rho=.5), **bad)
    with pytest.raises(Problem): difference_se(100, kw['auc'], kw['reference'], rho=kw['rho'])
    with pytest.raises(Problem): needed(.8, .8)

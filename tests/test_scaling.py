"Curves of scores against scans and labels: known surfaces, what lies outside, and labels saved"
import numpy as np
import pandas as pd
import pytest

from neurossl.core import Problem
from neurossl.scaling import fit_surface, labels_for, labels_saved, saved_interval

P,L = (a.ravel() for a in np.meshgrid([50., 200, 800], [20., 60, 180, 540]))

@pytest.mark.parametrize('c,a,b,e,f', [(.9, .1, .2, .5, .5), (.8, .02, .1, 1., .3), (.75, .05, .0, .4, .4)])
def test_a_known_surface_comes_back(c, a, b, e, f):
    v = c-a*(P/50)**-e-b*(L/20)**-f; s = fit_surface(P, L, v)
    assert s.rmse<1e-6 and np.allclose(s.value(P, L), v, atol=1e-6) and abs(s.ceiling-c)<1e-4
    assert s.value(100, 100)==pytest.approx(c-a*2**-e-b*5**-f, abs=1e-5), 'and between the points'

def test_losses_are_not_negative():
    s = fit_surface(P, L, .8+.1*(L/20)**-.5); assert s.loss[1]==0, 'a score that falls with labels is not called a law'

def test_outside_is_not_said():
    s = fit_surface(P, L, .9-.1*(P/50)**-.5-.1*(L/20)**-.5); assert np.isnan([s.value(49, 100), s.value(100, 541), s.value(801, 20)]).all()

def test_errors_weigh_the_points():
    v = .9-.2*(L/20)**-.5; bad = v.copy(); bad[0] = .2; se = np.full(len(v), .005); se[0] = 10.
    assert abs(fit_surface(P, L, bad, se).value(200, 60)-.9+.2*3**-.5)<.01<abs(fit_surface(P, L, bad).value(50, 60)-.9+.2*3**-.5)

def test_labels_saved_by_a_known_factor():
    l = np.array([20., 60, 180, 540]); z = np.zeros(4); a,b = fit_surface(z, l, .8-.2*(l/20)**-.5),fit_surface(z+100, l, .8-.1*(l/20)**-.5)
    r = labels_saved(b, a, 60); assert r['needed']==pytest.approx(240, rel=1e-3) and r['saved']==pytest.approx(180, rel=1e-2)
    assert labels_saved(a, b, 180)['saved']<0 and labels_saved(b, a, 540)['saved']==np.inf and labels_for(b, .65)==20

def test_no_difference_has_an_interval_over_zero():
    g = np.random.default_rng(1); l = np.array([20., 60, 180, 540]); v = .8-.2*(l/20)**-.5
    t = pd.DataFrame([dict(arm=k, scans=s, labels=x, value=y, se=.01) for k,s in (('pretrained', 100), ('scratch', 0)) for x,y in zip(l, v+.003*g.normal(size=4))])
    r = saved_interval(t, 60, 120); assert r['lo']<0<r['hi'] and saved_interval(t, 60, 40, 3)==saved_interval(t, 60, 40, 3)

@pytest.mark.parametrize('p,l,v,say', [([1, 1], [5, 5], [.5, .6], 'two counts of labels'), ([0, 1, 2]*2, [1, 1, 1, 2, 2, 2], [.5]*6, 'above 0'), ([1, 1], [5, 9], [.5, np.nan], 'missing')])
def test_too_little_is_refused(p, l, v, say):
    with pytest.raises(Problem, match=say): fit_surface(p, l, v)

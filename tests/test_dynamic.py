"Pooling of slices: known answers, the solver against scikit-learn, refusals."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.svm import LinearSVC

from neurossl.core import Problem
from neurossl.dynamic import KINDS, POOLS, LearnedPool, as_rgb, dynamic_image, pool_volume, rank_weights, ranksvm_image, ranksvm_weights, slice_range
from neurossl.spatial import mni_template, resize

def scans(n=2, shape=(9, 10, 11), seed=0): return torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_sums_and_symmetry(t):
    a,h,r = (rank_weights(t, k) for k in KINDS)
    assert a.dtype==torch.float64 and len(a)==t
    assert abs(float(a.sum()))<1e-8 and abs(float(h.sum()))<1e-8 and abs(float(r.sum())-t)<1e-8
    assert torch.equal(a, -a.flip(0)) and torch.equal(a, 2*torch.arange(1, t+1)-t-1.)


def test_correlations_at_110():
    a,h,r = (rank_weights(110, k).numpy() for k in KINDS); c = lambda x, y: np.corrcoef(x, y)[0,1]
    assert round(c(a, r), 3)==.518 and round(c(a, h), 3)==.525 and round(c(h, r), 5)==.99997
    assert (a[0], a[-1])==(-109, 109) and round(h[0])==-366 and round(h[-1], 2)==.99
    assert round(np.abs(h[:10]).sum()/np.abs(h).sum(), 2)==.41 and round(np.abs(a[:10]).sum()/np.abs(a).sum(), 2)==.17


def test_released_weights_are_the_double_loop_of_the_code():
    T = 23; w = [sum((2*i-T)/i for i in range(n, T+1)) for n in range(1, T+1)]
    assert np.allclose(rank_weights(T, 'released'), w)
    w = [sum((2*i-T-1)/i for i in range(n, T+1)) for n in range(1, T+1)]
    assert np.allclose(rank_weights(T, 'harmonic'), w)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dim', [-3, -2, -1])
def test_equals_the_sum_of_slices(kind, dim):
    x = scans()
    want = sum(w*s for w,s in zip(rank_weights(x.shape[dim], kind), x.double().unbind(dim)))
    y = dynamic_image(x, dim, kind)
    assert y.shape==want.shape and y.dtype==torch.float32 and torch.allclose(y.double(), want, atol=1e-3)
    assert torch.allclose(dynamic_image(x[0,0], dim, kind), y[0,0], atol=1e-4)                      # one scan, no batch
    assert torch.allclose(dynamic_image(x.flip(dim), dim, kind), dynamic_image(x, dim, kind, reverse=True), atol=1e-3)
    assert torch.allclose(dynamic_image(x.transpose(3, 4), dim, kind) if dim==-3 else y, y.transpose(2, 3) if dim==-3 else y, atol=1e-4) # memory order


@pytest.mark.parametrize('dim', [-3, -2, -1])
def test_constant_stack_and_sign(dim):
    x = torch.ones(2, 1, 6, 7, 8)
    assert dynamic_image(x, dim).abs().max()==0 and dynamic_image(x, dim, 'harmonic').abs().max()<1e-4
    assert torch.allclose(dynamic_image(x, dim, 'released'), torch.tensor(float(x.shape[dim])), atol=1e-4)
    y = scans(); assert torch.allclose(dynamic_image(y, dim), -dynamic_image(y, dim, reverse=True), atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_types_and_autocast(dtype):
    x = (scans()*100).to(dtype); y = dynamic_image(x)
    assert y.dtype==(torch.float64 if dtype==torch.float64 else torch.float32)
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(dynamic_image(x), y)


@pytest.mark.parametrize('dim', [-3, -2, -1])
@pytest.mark.parametrize('how', [*KINDS, 'average'])
def test_trimming_forgets_the_border(how, dim):
    x = scans(3); pads = [(2, 5), (0, 1), (3, 0)]
    far = torch.zeros(3, 1, *[n+8 if i==dim+3 else n for i,n in enumerate(x.shape[2:])])
    for i,(a,_) in enumerate(pads): far[i].narrow(dim, a, x.shape[dim]).copy_(x[i])
    for reverse in (False, True):
        assert torch.allclose(pool_volume(far, how, dim, reverse, trim=0.), pool_volume(x, how, dim, reverse), atol=1e-4)
    lo,hi = slice_range(far, dim)
    assert lo.tolist()==[2, 0, 3] and (hi-lo).tolist()==[x.shape[dim]]*3


def test_max_and_average():
    x = scans()
    assert torch.equal(pool_volume(x, 'max', -2), x.amax(-2)) and torch.allclose(pool_volume(x, 'average', -3), x.mean(-3), atol=1e-6)
    assert {how: pool_volume(x, how).shape for how in POOLS}=={how: (2, 1, 9, 10) for how in POOLS}


def others(x, C, loss):
    T = len(x); v = np.cumsum(x.reshape(T, -1), 0)/np.arange(1, T+1)[:,None]; q,t = np.tril_indices(T, -1); s = np.where(np.arange(len(q))%2, 1, -1)
    return LinearSVC(C=C, loss=loss, fit_intercept=False, dual=True, tol=1e-7, max_iter=500_000).fit((v[q]-v[t])*s[:,None], s).coef_[0]


@pytest.mark.parametrize('loss', ['squared_hinge', 'hinge'])
@pytest.mark.parametrize('C', [1., .01])
@pytest.mark.parametrize('dim', [-3, -1])
def test_exact_rank_pooling_equals_liblinear_on_a_real_brain(dim, C, loss):
    x = torch.from_numpy(resize(mni_template().data, 20)).double(); x = x/x.max()
    y = ranksvm_image(x, dim, C, loss).flatten().numpy(); z = others(x.movedim(dim, 0).numpy(), C, loss)
    assert np.linalg.norm(y-z)<1e-3*np.linalg.norm(z)


def test_exact_rank_pooling_is_a_weighted_sum_and_batches():
    x = scans(3).double()
    for d in (-3, -2, -1):
        y = ranksvm_image(x, d)
        for i in range(3): s = x[i,0].movedim(d, 0).flatten(1); assert torch.allclose((ranksvm_weights(s) @ s).view_as(y[i,0]), y[i,0], atol=1e-8)
    assert torch.allclose(ranksvm_image(x, reverse=True), ranksvm_image(x.flip(-1)))
    assert ranksvm_image(x.float()).dtype==torch.float32


def test_learned_pool_begins_as_the_ramp_and_learns():
    for dim in (-3, -2, -1):
        x = scans(); p = LearnedPool(x.shape[dim], dim); assert torch.allclose(p(x), dynamic_image(x, dim), atol=1e-3)
        assert abs(float(p.weight.detach().square().mean())-1)<1e-5
        p(x).square().mean().backward(); assert p.weight.grad.isfinite().all() and p.weight.grad.abs().sum()>0
    assert torch.allclose(LearnedPool(11, reverse=True)(x), dynamic_image(x, reverse=True), atol=1e-3)
    q = LearnedPool(11, kind='harmonic'); q.load_state_dict(LearnedPool(11).state_dict())


def test_rgb():
    y = dynamic_image(scans(3)); r = as_rgb(y, imagenet=False)
    assert r.shape==(3, 3, 9, 10) and all((c.min(), c.max())==(0, 1) for c in r.flatten(2).flatten(0, 1))
    u = as_rgb(y, uint8=True, imagenet=False); assert torch.equal(u, u.floor()) and (u.max(), u.min())==(255, 0)
    m,s = torch.tensor([.485, .456, .406]).view(1, 3, 1, 1), torch.tensor([.229, .224, .225]).view(1, 3, 1, 1)
    assert torch.allclose(as_rgb(y), (r-m)/s, atol=1e-6)
    assert torch.allclose(as_rgb(y, uint8=True), (u/255-m)/s, atol=1e-5)
    assert as_rgb(torch.ones(1, 1, 4, 4), imagenet=False).abs().max()==0                              # no division by zero


@pytest.mark.parametrize('f,say', [
    (lambda: rank_weights(5, 'aprox'), "Did you mean 'approx'"), (lambda: rank_weights(0), 'at least one slice'), (lambda: dynamic_image(scans(), 1), 'from the end'),
    (lambda: dynamic_image(torch.rand(4, 4)), 'Give a scan'), (lambda: dynamic_image(torch.zeros(1, 1, 4, 4, 4), trim=0), 'empty scans'), (lambda: pool_volume(scans(), 'mean'), 'average'),
    (lambda: pool_volume(scans(), 'ranksvm', trim=0), 'leave trim out'), (lambda: ranksvm_weights(torch.zeros(4, 5)), 'empty scans'), (lambda: ranksvm_weights(torch.rand(4, 5), C=0), 'above 0'),
    (lambda: ranksvm_weights(torch.rand(4, 5), loss='l2'), 'hinge'), (lambda: LearnedPool(9)(scans()), 'resize the scans'), (lambda: as_rgb(scans()), 'Pool the scans first')])
def test_refusals(f, say):
    with pytest.raises(Problem, match=say): f()

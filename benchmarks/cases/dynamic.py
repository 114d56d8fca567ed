"Rows 3a and 3b: a scan pooled into a picture"
import numpy as np
import torch
from neurossl.dynamic import dynamic_image, ranksvm_image
from sklearn.svm import LinearSVC

from ..harness import Case, GateError, same
from . import case, grey

def _scan(size): # (size,size,size) float32 in 0..1
    x = grey(next(s for s in (24, 48, 96, 192) if s>=size)).data[:size,:size,:size] if size>24 else grey(24).data
    return np.ascontiguousarray(x/x.max(), dtype=np.float32)

def loop(x): # the formula of the released code, slice by slice, as a NumPy user writes it
    "Pool along the first axis"
    T = len(x); w = np.zeros(T)
    for n in range(T):
        i = np.arange(n, T)+1
        w[n] = np.sum((2*i-T)/i)
    return np.sum(x[...,None]*w.reshape(T, 1, 1, 1), axis=0).squeeze()

@case
def dynamic(size, folder):
    x = _scan(min(size, 110)); t = torch.from_numpy(x)
    def gate():
        y = loop(x); same('dynamic_image and the formula', dynamic_image(t, -3, 'released'), y, 1e-4*float(np.abs(y).max()))
        for a,v in ((1, -2), (2, -1)): y = loop(np.moveaxis(x, a, 0)); same(f'along axis {a}', dynamic_image(t, v, 'released'), y, 1e-4*float(np.abs(y).max()))
    ours = {'dynamic_image': lambda: dynamic_image(t, -3, 'released'), 'dynamic_image along z': lambda: dynamic_image(t, -1, 'released')}
    return Case('dynamic', ours, {'NumPy formula': lambda: loop(x)}, {'read': lambda: t.sum()}, gate, x.nbytes/2**20)

def _pairs(x): # differences of running averages, all pairs, half of them turned around
    T = len(x); v = np.cumsum(x.reshape(T, -1).astype(np.float64), 0)/np.arange(1, T+1)[:,None]; q,t = np.tril_indices(T, -1)
    sign = np.where(np.arange(len(q))%2, 1, -1)
    return (v[q]-v[t])*sign[:,None], sign

@case
def ranksvm(size, folder):
    x = _scan({24: 16, 96: 64}.get(size, 110)); t = torch.from_numpy(x)
    def liblinear(): return LinearSVC(C=1, fit_intercept=False, dual=False, tol=1e-6, max_iter=10_000).fit(*_pairs(x)).coef_.reshape(x.shape[1:])
    def gate():
        y = liblinear(); d = float(np.linalg.norm(ranksvm_image(t, -3)-y)/np.linalg.norm(y))
        if not d<1e-3: raise GateError(f'ranksvm_image and liblinear: relative difference {d:.1e}, allowed are 1e-3')
    flat = t.flatten(1).double()
    return Case('ranksvm', {'ranksvm_image': lambda: ranksvm_image(t, -3)}, {'liblinear': liblinear}, {'products of slices': lambda: flat @ flat.T}, gate, x.nbytes/2**20)

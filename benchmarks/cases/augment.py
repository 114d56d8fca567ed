"Rows 4 and 1d: a view for contrastive learning, and a sample of two views from the disk, beside the chain of the second study's code"
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from neurossl.augment import masked_zscore
from neurossl.data import Cache, make, read
from neurossl.manifest import empty_manifest
from neurossl.preprocess import Recipe
from neurossl.views import PUBLISHED, _row, direct_warp, view_params, views_at, warp
from neurossl.volume import Volume, save_volume

from ..harness import Case, GateError, same
from . import case, grey, preprocess

RECIPE = replace(PUBLISHED, axes='zyx')
KINDS = ((False, 1.), (False, .8), (True, 1.2), (True, .8)) # turned, exponent: one view of each, as often as the released settings turn

def _box(size): return slice(size*10//192, size*10//192+size*150//192), slice(size*19//192, size*19//192+size), slice(1, None) # of (z,y,x), as t1_datasets.py:56

def _params(x):
    "Drawn views of one scan, with the kind fixed: what was drawn, a scan at a time"
    out = []
    for k,(turned,g) in enumerate(KINDS):
        p = view_params(dict(x=x[None,None], scan_id=[f'{k}']), replace(RECIPE, angle_p=float(turned), brain=.05), 0, 0); p['gamma'][:] = g
        out.append(p)
    return out

def _chain(x, mask, p):
    "The released chain with given numbers, step by step in MONAI; x and mask (1,Z,Y,X)"
    from monai.transforms import AdjustContrast, Flip, Resize, Rotate, ShiftIntensity, SpatialCrop
    p = _row(p, 0); start = p['start'].tolist(); crop = SpatialCrop(roi_start=start, roi_end=[a+b for a,b in zip(start, p['size'].tolist())]); size = tuple(x.shape[1:])
    def geometry(v, resize, turn):
        y = Resize(size, mode=resize)(crop(v))
        if p['flip']: y = Flip(spatial_axis=2)(y)
        return Rotate((p['angle'], 0, 0), mode=turn)(y) if p['angle'] else y
    y,m = geometry(x, 'trilinear', 'bilinear'),geometry(mask, 'nearest', 'nearest')
    y = ShiftIntensity(p['shift'])(y)
    if p['gamma']!=1: y = AdjustContrast(p['gamma'])(y)
    y,m = y.as_tensor(),m.as_tensor(); n = m.sum().clamp_min(1); y = y*m; mean = y.sum()/n # standardise, t1_datasets.py:58-67
    return (y-mean).div(torch.sqrt(y.pow(2).sum()/n-mean**2+1e-12)).mul(m)

def _torchio(x, p):
    "The same steps in TorchIO; its turn is about the same axis, its resampling its own"
    import torchio as tio
    p = _row(p, 0); shape = tuple(x.shape[1:]); lo,n = p['start'].tolist(),p['size'].tolist()
    y = tio.Resize(shape)(tio.Crop([k for a,b,m in zip(lo, n, shape) for k in (a, m-a-b)])(x))
    if p['flip']: y = tio.Flip(2)(y)
    if p['angle']: y = tio.Affine((1, 1, 1), (float(np.degrees(p['angle'])), 0, 0), (0, 0, 0))(y)
    y = y+p['shift']
    return masked_zscore((tio.Gamma(float(np.log(p['gamma'])))(y) if p['gamma']!=1 else y)[None])[0]

def _nnunet(x, p):
    "Crop, stretch and turn in one resampling, as nnU-Net does; then the exponent"
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    p = _row(p, 0); shape = tuple(x.shape[1:]); s = float((p['size']/np.array(shape)).mean())
    y = SpatialTransform(shape, 0, False, p_rotation=float(p['angle']!=0), rotation=float(p['angle']), p_scaling=1., scaling=s)(image=x)['image']+p['shift']
    if p['gamma']!=1: y = GammaTransform(float(p['gamma']), 0., True, 1., 1.)(image=y-y.min())['image']
    return masked_zscore(y[None])[0]

def _compare(x, views, monai):
    "Ours against the definition, each other, and MONAI"
    b = dict(x=x[None,None], scan_id=['x']); mask = (x!=0).float()
    for p in views:
        r = _row(p, 0); y,m = warp(x, None, r, RECIPE); t,n = (views_at(b, RECIPE, p, e)[0,0] for e in ('torch', 'numba'))
        same('one resampling and the definition', y, direct_warp(x, r, RECIPE), 1e-4*float(x.abs().max()))
        same('numba and torch', n, t, 1e-4)
        if monai:
            z = _chain(x[None], mask[None], p)[0]; both = ((z!=0)&m).numpy()
            if r['angle']==0: same('a view without a turn, and MONAI', t, z, 1e-3)
            else: same('share of the mask that differs from MONAI', np.mean(m.numpy()!=(z!=0).numpy()), 0., 2e-3); \
                  same('correlation of a turned view with MONAI, which resamples twice', np.corrcoef(t.numpy()[both], z.numpy()[both])[0,1], 1., .03)

def _copy(shape, n):
    "The bandwidth of the memory: n volumes from one place to another"
    x = np.zeros(shape, np.float32); y = np.empty_like(x)
    def f():
        for _ in range(n): np.copyto(y, x)
    return f

@case
def ssl_view(size, folder):
    v = torch.from_numpy(grey(size).data.T[_box(size)[0]].copy()); x = masked_zscore(v[None,None], v[None,None]>0)[0,0]; views = _params(x)
    b = dict(x=x[None,None], scan_id=['x']); mask = (x!=0).float(); monai = preprocess.have('monai')
    ours = {e: lambda e=e: [views_at(b, RECIPE, p, e) for p in views] for e in ('torch', 'numba')}
    others = {'TorchIO': ('torchio', _torchio), 'batchgeneratorsv2': ('batchgeneratorsv2', _nnunet)} # timed: where a voxel comes from is their own affair
    peers = {k: (lambda f=f: [f(x[None], p) for p in views]) if preprocess.have(m) else None for k,(m,f) in others.items()}
    def gate():
        _compare(x, views, monai)
        for k,f in peers.items():
            if f and not all(v.shape==x[None].shape and v.isfinite().all() and v.std()>0 for v in f()): raise GateError(f'{k}: no view of {tuple(x.shape)}')
    return Case('ssl_view', ours, {'MONAI chain': (lambda: [_chain(x[None], mask[None], p) for p in views]) if monai else None, **peers},
                {'memcpy': _copy(x.shape, len(views))}, gate, x.numel()*4/2**20)

@case
def ssl_sample(size, folder):
    folder = Path(folder); g = grey(size).data; D = size*150//192; full = np.zeros((size+1, size*229//192, size+1), np.float32); zz,yy,xx = _box(size) # a scan in template space
    full[1:, yy, zz] = g[:, :, (size-D)//2:(size-D)//2+D]; full += (full>0)*np.random.default_rng(2).random(full.shape, np.float32)
    f = {k: folder/f'sample-{k}-{size}.nii.gz' for k in ('image', 'mask', 'box')}
    for k,a in (('image', full), ('mask', (full>0).astype(np.float32)), ('box', full[xx, yy, zz])): save_volume(Volume(a, np.eye(4)), f[k], 'float32')
    row = empty_manifest([dict(scan_id='sample', subject='bench-1', cohort='bench', path=f['box'].name)]).iloc[0]
    cache = Cache(folder/'ssl', Recipe('bench', (D,size,size), ('resize', 'zscore'), 'zyx'), folder)
    plain = Cache(folder/'ssl', cache.recipe, folder, 'npy')
    for c in (cache, plain):
        if not c.path(row).exists(): make(c, row)
    def released(): # t1_datasets.py: the two files, as float64, then cut
        return [torch.from_numpy(np.transpose(nib.load(f[k]).get_fdata().astype(np.float32))[zz, yy, xx].copy()) for k in ('image', 'mask')]
    q,meta = read(cache, row); views = _params(torch.from_numpy(q))[1:3] # one turned, one not
    def ours(engine):
        b = dict(x=torch.from_numpy(read(cache, row)[0])[None,None], scan_id=['x'])
        return [views_at(b, RECIPE, p, engine) for p in views]
    def neuro():
        x,m = released()
        return [_chain(x[None], m[None], p) for p in views]
    def raw(): return torch.from_numpy(np.array(read(plain, row)[0])) # what a device is given that makes its views itself
    def gate():
        same('integers for the device', raw(), q)
        x,m = released(); z = torch.from_numpy(q).float()*meta['scale']
        same('cached voxels, and the released reading after a z-score', z, masked_zscore(x[None,None], m[None,None])[0,0], 2*meta['scale'])
        _compare(z, views, preprocess.have('monai'))
        for p in views: # the integers of the cache need no scale
            for e in ('torch', 'numba'): same(f'{e}: integers and grey levels', views_at(dict(x=torch.from_numpy(q)[None,None]), RECIPE, p, e), views_at(dict(x=z[None,None]), RECIPE, p, e), 1e-2)
    return Case('ssl_sample', {**{f'cache + {e}': lambda e=e: ours(e) for e in ('torch', 'numba')}, 'int16 for the device': raw}, {'3D-Neuro-SimCLR sample': neuro if preprocess.have('monai') else None},
                {'memcpy': _copy(q.shape, len(views))}, gate, q.size*4/2**20)

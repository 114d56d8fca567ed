"Rows 2a to 2c: the steps of the first study's recipe, and all of it from .nii.gz to the cache"
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from neurossl.data import Cache, decode, make
from neurossl.manifest import empty_manifest
from neurossl.preprocess import Recipe, clahe, minmax
from neurossl.spatial import resize
from neurossl.volume import load_volume
from scipy import ndimage
from skimage.exposure import equalize_adapthist

from ..harness import Case, have, same
from . import case, files, grey

def _minmax(x): return ((x-x.min())/(x.max()-x.min())).astype(np.float32)

def _copy(x):
    "The bandwidth of the memory: voxels from one place to another"
    y = np.empty_like(x)
    return lambda: np.copyto(y, x)

@case
def clahe_3d(size, folder):
    x = minmax(grey(size).data)
    def gate():
        r = np.random.default_rng(0); inside = tuple(slice(max(size//2-a, 0), size//2+b) for a,b in ((16,17), (20,27), (19,21)))
        odd = [r.random(s, np.float32) for s in ((24,24,24), (31,40,23), (17,50,33))] + [minmax(x[inside]), (x>.3).astype(np.float32)]
        for y in [x, *odd]: same(f'clahe of {y.shape} and scikit-image', clahe(y), equalize_adapthist(y))
        for o in (dict(clip_limit=.03), dict(nbins=64), dict(kernel_size=9), dict(clip_limit=0.)): same(f'clahe {o}', clahe(odd[3], **o), equalize_adapthist(odd[3], **o))
    return Case('clahe_3d', {'clahe': lambda: clahe(x)}, {'scikit-image equalize_adapthist': lambda: equalize_adapthist(x)}, {'memcpy': _copy(x)}, gate, x.nbytes/2**20)

def _monai(size):
    from monai.transforms import Resize
    f = Resize((size,)*3, mode='trilinear')
    return lambda x: f(torch.from_numpy(np.ascontiguousarray(x))[None])[0].numpy()

def _zoom(size, order): return lambda x: ndimage.zoom(x, [size/n for n in x.shape], order=order)

def _sitk(x, size):
    import SimpleITK as sitk
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    im,n = sitk.GetImageFromArray(x),x.shape[::-1]; s = [k/size for k in n] # voxel centres as in torch: the field of view stays
    return sitk.GetArrayFromImage(sitk.Resample(im, [size]*3, sitk.Transform(), sitk.sitkLinear, [(a-1)/2 for a in s], s, im.GetDirection()))

def _tio(x, size):
    import torchio
    return torchio.Resize(size, image_interpolation='linear')(torch.from_numpy(x)[None])[0].numpy()

@case
def resize_up(size, folder):
    x = np.ascontiguousarray(load_volume(files(size, folder).box).data); monai = _monai(size) if have('monai') else None
    peers = {'MONAI Resize': (lambda: monai(x)) if monai else None, 'scipy zoom order 1': lambda: _zoom(size, 1)(x), 'scipy zoom order 3': lambda: _zoom(size, 3)(x),
             'SimpleITK': (lambda: _sitk(x, size)) if have('SimpleITK') else None, 'TorchIO Resize': (lambda: _tio(x, size)) if have('torchio') else None}
    def gate(): # scipy's zoom aligns the corners and SimpleITK ends at the outermost centres: those are timed, not compared voxel by voxel
        y = resize(x, size)
        if monai: same('resize and MONAI', y, monai(x), 1e-5*float(x.max()))
        if have('SimpleITK'): c = (slice(2, -2),)*3; same('resize and SimpleITK, inside', y[c], _sitk(x, size)[c], 1e-3*float(x.max()))
    return Case('resize_up', {'resize': lambda: resize(x, size)}, peers, {'memcpy': _copy(resize(x, size))}, gate, size**3*4/2**20)

@case
def chain(size, folder):
    folder = Path(folder); f = files(size, folder).box; row = empty_manifest([dict(scan_id='scan', subject='bench-1', cohort='bench', path=f.name)]).iloc[0]
    fresh = lambda codec: Cache(folder/f'chain-{codec}', Recipe('s1', size), folder, codec)
    def other(resize):
        x = equalize_adapthist(_minmax(resize(nib.load(f).get_fdata(dtype=np.float32))))
        np.save(folder/'chain.npy', x)
        return x
    peers = {'scipy + scikit-image': lambda: other(_zoom(size, 3)), 'MONAI + scikit-image': (lambda: other(_monai(size))) if have('monai') else None}
    def gate():
        for codec in ('blosc2', 'npy'):
            c = fresh(codec); make(c, row); q,meta = decode(c.path(row)); x = q*np.float32(meta['scale'])
            y = equalize_adapthist(minmax(resize(nib.load(f).get_fdata(dtype=np.float32), size)))
            same(f'{codec} chain and scikit-image, within the rounding to int16', x, y, .51*meta['scale'])
            if have('monai'):
                d = np.abs(x-other(_monai(size))) # a grey level on the edge of a bin may fall to either side
                same('share of voxels that differ from MONAI + scikit-image', np.mean(d>meta['scale']), 0., 1e-3)
    return Case('chain', {k: lambda k=k: make(fresh(k), row) for k in ('blosc2', 'npy')}, peers, {'memcpy': _copy(np.zeros((size,)*3, np.float32))}, gate, size**3*4/2**20)

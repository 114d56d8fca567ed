"Rows 1b and 1c: a prepared scan, and a part of it, from the cache to float32"
from itertools import cycle
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from neurossl.data import Cache, make, read, voxels
from neurossl.manifest import empty_manifest
from neurossl.preprocess import Recipe

from ..harness import Case, have, same
from . import case, files

def _entries(size, folder):
    "The two caches, the row of the manifest, and the same voxels as .nii.gz and .pt"
    f = files(size, folder).int16
    row = empty_manifest([dict(scan_id='scan', subject='bench-1', cohort='bench', path=f.name)]).iloc[0]
    caches = {c: Cache(Path(folder)/f'cache-{c}', Recipe('s1', size), Path(folder), c) for c in ('npy', 'blosc2')}
    for c in caches.values():
        if not c.path(row).exists(): make(c, row)
    q,meta = read(caches['npy'], row); gz,pt = Path(folder)/f'prepared-{size}.nii.gz', Path(folder)/f'prepared-{size}.pt'
    nib.save(nib.Nifti1Image(np.asarray(q), np.eye(4)), gz) # unscaled integers: the quickest that nibabel can be given
    torch.save(torch.from_numpy(voxels(caches['npy'], row)), pt)
    n = caches['npy'].path(row).stat().st_size; z = Path(folder)/f'prepared-{size}.zarr'
    if have('zarr') and not z.exists():
        import zarr
        zarr.create_array(store=str(z), data=np.array(q), chunks=(min(96, size),)*3) # its own zstd
    return caches, row, gz, pt, z, np.array(q), np.float32(meta['scale']), {k: dict(size_fraction=c.path(row).stat().st_size/n) for k,c in caches.items()}

def _zarr(path):
    import zarr
    return lambda s=(): zarr.open_array(str(path), mode='r')[s or ...]

@case
def cache_whole(size, folder):
    caches,row,gz,pt,z,q,scale,facts = _entries(size, folder)
    ours = {k: lambda c=c: voxels(c, row) for k,c in caches.items()}; zr = _zarr(z) if have('zarr') else None
    peers = {'nibabel get_fdata': lambda: nib.load(gz).get_fdata(), 'nibabel get_fdata float32': lambda: nib.load(gz).get_fdata(dtype=np.float32),
             'torch.load': lambda: torch.load(pt), 'zarr': (lambda: zr()*scale) if zr else None}
    def gate():
        x = peers['nibabel get_fdata float32']()*scale
        for k,f in ours.items(): same(f'{k} and nibabel', f(), x)
        for k in ('torch.load', 'zarr'):
            if peers[k]: same(k, peers[k](), x)
    return Case('cache_whole', ours, peers, {'int16 to float32': lambda: np.multiply(q, scale, dtype=np.float32)}, gate, q.size*4/2**20, facts)

def _crops(size, n=24):
    "The same random places for everyone: cubes of half the size"
    at = np.random.default_rng(3).integers(0, size-size//2+1, (n,3))
    return [tuple(slice(int(a), int(a)+size//2) for a in p) for p in at]

@case
def cache_crop(size, folder):
    caches,row,gz,pt,z,q,scale,facts = _entries(size, folder); places = _crops(size)
    def walk(f):
        at = cycle(places)
        return lambda: f(next(at))
    ours = {k: lambda s, c=c: voxels(c, row, s) for k,c in caches.items()}
    peers = {'nibabel get_fdata': lambda s: nib.load(gz).get_fdata()[s].astype(np.float32), 'nibabel dataobj': lambda s: np.float32(nib.load(gz).dataobj[s]),
             'torch.load': lambda s: torch.load(pt)[s].clone(), 'zarr': _zarr(z) if have('zarr') else None}
    def gate():
        for s in places[:6]:
            x = peers['nibabel get_fdata'](s)*scale
            for k,f in ours.items(): same(f'{k} and nibabel at {s}', f(s), x)
            same('nibabel dataobj', peers['nibabel dataobj'](s)*scale, x); same('torch.load', peers['torch.load'](s), x)
            if peers['zarr']: same('zarr', peers['zarr'](s)*scale, x)
    limit = {'int16 to float32': walk(lambda s: np.multiply(q[s], scale, dtype=np.float32))}
    return Case('cache_crop', {k: walk(f) for k,f in ours.items()}, {k: walk(f) if f else None for k,f in peers.items()}, limit, gate, (size//2)**3*4/2**20, facts)

"The work that is compared. A case is a function of the volume's size and a folder to write into"
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from neurossl.phantom import phantom, sample_latents
from neurossl.volume import Volume, save_volume

CASES = {} # name -> function of (size, folder) that gives a Case

def case(f):
    "Register a case under the function's name"
    CASES[f.__name__] = f
    return f

@lru_cache(2)
def grey(
    size, # voxels a side, a divisor of 192
)->Volume:
    "A skull-stripped phantom with as much detail in its grey levels as a scan: integers from 0 to about 2,000"
    v = phantom(sample_latents(0, 1, 'clinical_a'), size)
    fine = np.random.default_rng(0).integers(0, 8, v.shape)
    return Volume(np.where(v.data>0, v.data*8+fine, 0), v.affine)

@lru_cache(8)
def files(
    size,
    folder,
)->SimpleNamespace: # paths: int16 and float32 (a cube), box (int16, 5/6 of the cube along x and z)
    "Scans on the disk, as .nii.gz"
    v = grey(size); out = SimpleNamespace(**{k: Path(folder)/f'{k}-{size}.nii.gz' for k in ('int16', 'float32', 'box')})
    save_volume(v, out.int16, 'int16')
    save_volume(Volume(v.data*np.float32(.37)+np.where(v.data>0, np.random.default_rng(1).normal(0, 1, v.shape), 0), v.affine), out.float32, 'float32')
    c = size//12
    save_volume(Volume(v.data[c:size-c,:,c:size-c], v.affine), out.box, 'int16')
    return out

from . import load, loss, augment, cache, dynamic, preprocess, train # noqa: E402, F401  they register their cases

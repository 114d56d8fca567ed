"Rows 1a: a scan from .nii.gz to float32"
import nibabel as nib
import numpy as np
from isal import isal_zlib
from neurossl.volume import load_volume

from ..harness import Case, have, same
from . import case, files

def _load(path):
    def nibabel(): return nib.load(path).get_fdata()
    def nibabel32(): return nib.load(path).get_fdata(dtype=np.float32)
    def torchio():
        import torchio
        return torchio.ScalarImage(path).data[0].numpy()
    peers = {'nibabel get_fdata': nibabel, 'nibabel get_fdata float32': nibabel32, 'TorchIO ScalarImage': torchio if have('torchio') else None}
    packed = path.read_bytes(); plain = isal_zlib.decompress(packed, wbits=31)
    def gate():
        v = load_volume(path)
        for k,f in peers.items():
            if f: same(f'load_volume and {k}', v.data, f())
        same('the affine', v.affine, nib.load(path).affine)
    limit = {'inflate': lambda: isal_zlib.decompress(packed, wbits=31, bufsize=len(plain)), }
    return dict(ours={'load_volume': lambda: load_volume(path)}, peers=peers, limit=limit, gate=gate, unit_mib=load_volume(path).data.nbytes/2**20)

@case
def load_int16(size, folder): return Case('load_int16', **_load(files(size, folder).int16))

@case
def load_float32(size, folder): return Case('load_float32', **_load(files(size, folder).float32))

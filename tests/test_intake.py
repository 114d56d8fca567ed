"Intake: bad scans are refused by name, copies are found, hashes are held against"
import gzip

import nibabel as nib
import numpy as np
import pytest

from neurossl.core import Problem
from neurossl.intake import intake
from neurossl.manifest import check_manifest, duplicates, empty_manifest
from neurossl.phantom import phantom_cohort
from neurossl.splits import check_disjoint, contamination, split_subjects
from neurossl.volume import Volume, save_volume

def scan(seed, n=16): return Volume(np.random.default_rng(seed).integers(1, 200, (n,n+2,n+4)).astype(np.float32), np.diag([6.,6,6,1]))
def table(*names): return empty_manifest([dict(scan_id=f's{i}', cohort='a', subject=f'a-{i}', path=f) for i,f in enumerate(names)])

def test_copies_are_found_however_they_are_stored(tmp_path):
    v = scan(0); save_volume(v, tmp_path/'a.nii.gz'); save_volume(scan(1), tmp_path/'b.nii.gz')
    (tmp_path/'again.nii.gz').write_bytes(gzip.compress(gzip.decompress((tmp_path/'a.nii.gz').read_bytes()), 1, mtime=9))   # recompressed
    img = nib.Nifti1Image(v.data[::-1].astype('>i2'), v.affine@np.array([[-1,0,0,15],[0,1,0,0],[0,0,1,0],[0,0,0,1.]])); img.header['descrip'] = b'edited'
    nib.save(img, tmp_path/'turned.nii')                                                                                     # reoriented, header edited
    man,seen = intake(table('b.nii.gz', 'a.nii.gz', 'again.nii.gz', 'turned.nii'), tmp_path)
    assert seen.same_as.tolist()==['', '', 's1', 's1'] and (seen.code=='OK').all() and set(duplicates(man).index)=={'s1', 's2', 's3'}
    check_manifest(man, root=tmp_path); check_disjoint(split_subjects(man, .5))
    assert len(contamination(man.loc[['s1']], man.loc[['s2', 's3']].assign(subject=['b-1', 'b-2'])))==2

def test_the_bad_are_named_and_the_rest_goes_on(tmp_path):
    for n in 'abc': save_volume(scan(ord(n)), tmp_path/f'{n}.nii.gz')
    save_volume(scan(9, 12), tmp_path/'small.nii'); (tmp_path/'cut.nii.gz').write_bytes((tmp_path/'a.nii.gz').read_bytes()[:-4])
    man = table('a.nii.gz', 'cut.nii.gz', 'gone.nii.gz', 'b.nii.gz', 'c.nii.gz'); man.loc['s3', 'mask'] = 'small.nii'; man.loc['s4', 'sha256'] = '0'*64
    kept,seen = intake(man, tmp_path)
    assert seen.code.tolist()==['OK', 'GZ_TRUNCATED', 'MISSING', 'MASK_SHAPE', 'CHANGED'] and kept.index.tolist()==['s0'] and seen.remedy[1:].ne('').all()
    assert man.sha256.tolist()==['']*4+['0'*64], 'the table that came in is as it was'
    for bad in ('s1', 's3', 's4'):
        with pytest.raises(Problem, match=seen.code[bad]): intake(man.loc[[bad]], tmp_path, strict=True)
    with pytest.raises(Problem, match='data root'): intake(man.assign(path='../x.nii').iloc[:1], tmp_path)
    one,_ = intake(kept, tmp_path); assert one.equals(kept)

def test_phantoms_pass_and_two_processes_see_the_same(tmp_path):
    for n in 'abcd': save_volume(scan(ord(n)), tmp_path/f'{n}.nii.gz')
    man = table(*[f'{n}.nii.gz' for n in 'abcd']); a,s = intake(man, tmp_path); b,t = intake(man, tmp_path, jobs=2); assert a.equals(b) and s.equals(t)
    ph = phantom_cohort(2, 1, 'clinical_a', hashes=False); kept,seen = intake(ph, tmp_path); assert kept.equals(ph) and not len(seen)

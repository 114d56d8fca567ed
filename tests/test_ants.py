"ANTs in an environment of its own: clear when it is absent, and a real run where it is there (NEUROSSL_ANTS names another Python that has it)"
import os
import time
from pathlib import Path

import numpy as np
import pytest

from neurossl import ants
from neurossl.ants import ants_python, ants_syn, ants_version, itk_affine
from neurossl.core import Problem
from neurossl.phantom import phantom, sample_latents
from neurossl.preprocess import Recipe, prepare, versions
from neurossl.spatial import brain_centre, find_affine, mni_template, register, resample_to, resize, shift
from neurossl.volume import Volume, load_volume

V = phantom(sample_latents(1, 4, 'clinical_a'), 64)

@pytest.fixture
def absent(monkeypatch, tmp_path): monkeypatch.setattr(ants, 'paths', lambda: type('P', (), dict(root=tmp_path)))

def stub(tmp_path, text):
    "A program in the place of ANTs' Python"
    p = tmp_path/'.venv-ants'/'bin'/'python'; p.parent.mkdir(parents=True); p.write_text('#!/bin/sh\n'+text); p.chmod(0o755)

def test_absent_says_what_to_do(absent):
    with pytest.raises(Problem, match='make extras-ants'): register(V, mm=8, how='syn')
    assert ants_version()=='' and versions(Recipe('r', 16, (('register', dict(how='syn', mm=8)),)))['antspyx']==''

def test_what_does_not_ask_for_it_does_not_need_it(absent):
    assert 'antspyx' not in versions(Recipe('s3')); register(V, mm=8)
    with pytest.raises(Problem, match="Did you mean 'affine'"): register(V, how='afine')

def test_failures_are_told(absent, tmp_path):
    stub(tmp_path, 'echo "Traceback"; echo "ModuleNotFoundError: No module named ants" >&2; exit 3\n')
    with pytest.raises(Problem, match='status 3; it said: ModuleNotFoundError'): register(V, mm=8, how='syn')
    with pytest.raises(Problem, match='status 3'): prepare(V, Recipe('r', 16, ('strip_skull', ('register', dict(how='syn', mm=8)), 'minmax')))

def test_it_is_ended_in_time(absent, tmp_path):
    stub(tmp_path, 'exec sleep 30\n'); t = time.monotonic()
    with pytest.raises(Problem, match='still at work after 0.3 s'): ants_syn(V, V, np.eye(4), V.affine, V.shape, timeout_s=.3)
    assert time.monotonic()-t<10

def test_the_affine_in_itks_directions():
    "ITK's x and y point the other way: p_lps = F p_ras with F = diag(-1, -1, 1)"
    r = np.random.default_rng(0); M = np.eye(4); M[:3] = r.normal(size=(3,4)); f = np.array([-1,-1,1])
    n = np.array(itk_affine(M).splitlines()[3].split()[1:], float); A,t = n[:9].reshape(3,3),n[9:]; p = r.normal(size=3)
    assert np.allclose(A @ (f*p)+t, f*(M @ [*p, 1])[:3])

HERE = os.environ.get('NEUROSSL_ANTS') or ants.paths().root/ants.HOME/'bin'/'python'
real = pytest.mark.skipif(not Path(HERE).is_file(), reason='no ANTs: make extras-ants')

@pytest.fixture
def present(monkeypatch):
    monkeypatch.setattr(ants, 'ants_python', lambda python=None: Path(HERE))

@pytest.mark.slow
@real
def test_bending_a_phantom(present):
    assert ants_version(HERE)
    t = resize(mni_template(), np.array(mni_template().shape)//3); inside = t.data>5; m = V.data>0
    like = lambda w: np.corrcoef(w.data[inside], t.data[inside])[0,1]
    (a,M,ma),(b,N,mb) = (register(V, 9, t.affine, t.shape, mm=3., how=how, mask=m) for how in ('affine', 'syn'))
    assert np.array_equal(M, N) and like(b)>like(a)+.02 and b.shape==t.shape and np.allclose(b.affine, t.affine)
    dice = 2*(mb&(b.data>0)).sum()/(mb.sum()+(b.data>0).sum()); assert mb.dtype==bool and dice>.9, 'the mask is bent along'
    assert np.array_equal(register(V, 9, t.affine, t.shape, mm=3., how='syn')[0].data, b.data), 'the same every time'
    mirror = register(Volume(V.data[::-1].copy(), V.affine), 9, t.affine, t.shape, mm=3., how='syn')[1]; assert np.linalg.det(mirror)>0

SCANS = os.environ.get('NEUROSSL_SCANS', '')
@pytest.mark.slow
@real
@pytest.mark.skipif(not SCANS, reason='NEUROSSL_SCANS is unset')
def test_bending_a_real_scan(present):
    v = load_volume(sorted(Path(SCANS).glob('oasis1_bids/sub-*/ses-*/anat/*_T1w.nii.gz'))[0]); t = resize(mni_template(), np.round(np.array(mni_template().shape)/2).astype(int))
    inside = t.data>5; like = lambda w: float(np.corrcoef(w.data[inside], t.data[inside])[0,1])
    before = like(resample_to(v, t.affine, t.shape, matrix=shift(brain_centre(v)-brain_centre(mni_template()))))
    s = time.perf_counter(); a = like(resample_to(v, t.affine, t.shape, matrix=find_affine(v)[0])); s1 = time.perf_counter()-s
    w,M = register(v, how='syn'); s2 = time.perf_counter()-s-s1; b = like(w)
    print(f'correlation with the template: {before:.3f} before, {a:.3f} affine ({s1:.0f} s), {b:.3f} SyN ({s2:.0f} s with the affine)')
    assert b>a+.02>before+.05

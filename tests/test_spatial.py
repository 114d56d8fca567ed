"Moving scans: grids, cube, registration"
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neurossl import spatial
from neurossl.core import Problem
from neurossl.phantom import phantom, sample_latents
from neurossl.spatial import (BRAIN_MM, PrepareError, brain_centre, cube, find_affine, is_stripped, pad_cube, mni_template, register, resample_to, resize, shift)
from neurossl.volume import Volume, load_volume

def ball(n=40, at=(20,20,20), r=12, spacing=2.):
    g = np.stack(np.meshgrid(*[np.arange(n)]*3, indexing='ij'), -1)
    d = np.sqrt(((g-np.array(at))**2).sum(-1)); x = (d<r)*(100+40*np.sin(g[...,0]/3)+g[...,1])
    return Volume(x.astype(np.float32), np.diag([spacing]*3+[1.]))

def rot(deg):
    a = np.deg2rad(deg); return np.array([[np.cos(a),-np.sin(a),0,0],[np.sin(a),np.cos(a),0,0],[0,0,1,0],[0,0,0,1]])

def test_resize_grows_as_torch_does():
    x = np.random.default_rng(0).random((7,11,5), np.float32)
    assert np.array_equal(resize(x, (9,11,20)), F.interpolate(torch.from_numpy(x)[None,None], (9,11,20), mode='trilinear', align_corners=False)[0,0].numpy())

def test_resize_averages_when_it_shrinks():
    x = np.random.default_rng(0).random((64,)*3, np.float32); y = resize(x, 16)
    assert abs(y.mean()-x.mean())<.005 and y.std()<x.std()/4
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:,None,None], (64,)*3)
    assert np.allclose(resize(ramp, 16)[1:-1,0,0], np.arange(1.5, 63, 4)[1:-1])
    for d in range(3):  # one axis only, and the same whichever axis it is
        s = [64]*3; s[d] = 20; t = [64]*3; t[0] = 20
        assert np.allclose(resize(np.moveaxis(x, 0, d), s), np.moveaxis(resize(x, t), 0, d), atol=1e-5)
    mixed = resize(x, (20,90,64)); assert np.allclose(mixed, resize(resize(x, (20,64,64)), (20,90,64)), atol=1e-5)

def test_resize_keeps_the_field_of_view():
    v = ball(); w = resize(v, (20,40,30)); corner = lambda u, c: u.affine @ [*(np.array(u.shape)*c-.5), 1]
    for c in (0, 1): assert np.allclose(corner(v, c), corner(w, c))
    assert np.allclose(brain_centre(w, w.data>50), brain_centre(v, v.data>50), atol=.3)
    with pytest.raises(Problem, match='trilinear'): resize(v, 20, 'cubic')

def test_nearest_keeps_labels():
    assert set(np.unique(resize((ball().data>0).astype(np.float32), 23, 'nearest')))=={0., 1.}

def test_resample_to_itself_and_by_whole_voxels():
    v = ball(); assert np.allclose(resample_to(v, v.affine, v.shape).data, v.data, atol=.02)
    A = v.affine.copy(); A[:3,3] = v.affine[:3,:3] @ [3,-2,5]; w = resample_to(v, A, (30,35,30))
    assert np.allclose(w.data[2:20,5:30,2:20], v.data[5:23,3:28,7:25], atol=.02)
    M = shift([6,-4,10]); assert np.allclose(resample_to(v, v.affine, (30,35,30), matrix=M).data, w.data, atol=.02)

def test_resample_to_a_coarse_grid_averages():
    v = ball(48, (24,24,24), 16); A = np.diag([8.,8,8,1]); A[:3,3] = 3  # blocks of 4
    assert np.allclose(resample_to(v, A, 12).data, v.data.reshape(12,4,12,4,12,4).mean((1,3,5)), atol=.05)

@pytest.mark.parametrize('spacing,shape,move', [((1,1,1.5), (160,190,120), (9,-20,11)), ((2,2,2), (96,96,96), (0,0,0))])
def test_cube_puts_a_tilted_scan_in_its_place(spacing, shape, move):
    v = ball(60, (33,27,30), 17, 3.)
    A = rot(14) @ np.diag([*spacing, 1.]); A[:3,3] = [*(np.array([90,90,90])-A[:3,:3]@(np.array(shape)/2)+move)]
    w = resample_to(v, A, shape); c = cube(w, 48)
    assert c.shape==(48,)*3 and np.allclose(c.spacing_mm, 4)
    want = c.affine @ [23.5,23.5,23.5,1]; assert np.allclose(brain_centre(c, c.data>60)-want[:3], BRAIN_MM, atol=1)
    assert np.allclose(brain_centre(c, c.data>60), brain_centre(v, v.data>60), atol=1)    # the same place in the room
    assert abs((c.data>60).sum()*64/((v.data>60).sum()*27)-1)<.05                          # and the same size
    with pytest.raises(Problem, match='brain'): cube(w, 48, centre='brian')

def test_phantoms_stay_where_they_are_in_the_cube():
    off = [brain_centre(cube(p, 48))-brain_centre(p) for p in (phantom(sample_latents(1, i), 48) for i in range(1, 5))]
    move = [cube(p, 48).affine[:3,3]-p.affine[:3,3] for p in (phantom(sample_latents(1, i), 48) for i in range(1, 5))]
    assert abs(np.array(off)).max()<2.5 and abs(np.mean(move, 0)).max()<4

def test_pad_cube_makes_equal_sides_in_mm():
    v = Volume(np.ones((10,20,8), np.float32), np.diag([3.,1,2,1])); p = pad_cube(v)
    assert np.allclose(np.array(p.shape)*p.spacing_mm, 30, atol=3) and p.data.sum()==v.data.sum()
    assert np.allclose(brain_centre(p), brain_centre(v))

def test_no_brain_is_an_error():
    with pytest.raises(PrepareError) as e: brain_centre(Volume(np.zeros((5,5,5)), np.eye(4)))
    assert e.value.code=='NO_BRAIN'

def wrong_by(i, size, mm, dof=9, seed=0):
    "Degrees and mm by which registration misses a known transform of a phantom, CPU seconds, smallest determinant"
    r = np.random.default_rng([seed, i]); w = phantom(sample_latents(2, i, 'clinical_b'), size); c = brain_centre(w)
    p = np.r_[np.radians(r.uniform(-20, 20, 3))*80, r.uniform(-15, 15, 3), np.log(1+r.uniform(-.1, .1, 3))*80, np.zeros(3)]
    T = shift(c) @ spatial._matrix(torch.from_numpy(p)).numpy() @ shift(-c); n = size//8
    moved = resample_to(w, w.affine @ shift([-n]*3), (size+2*n,)*3, matrix=np.linalg.inv(T))
    t = time.process_time(); A,B = (find_affine(u, dof, mm=mm)[0] for u in (w, moved)); t = (time.process_time()-t)/2
    E = np.linalg.inv(T @ A) @ B; u,_,vt = np.linalg.svd(E[:3,:3]); b = brain_centre(mni_template()) + 70*np.vstack([np.eye(3), -np.eye(3)])
    return np.degrees(np.arccos(min(1, (np.trace(u@vt)-1)/2))), max(np.linalg.norm((E-np.eye(4)) @ [*q, 1]) for q in b), t, min(np.linalg.det(A), np.linalg.det(B))

def test_registration_recovers_known_transforms():
    w = np.array([wrong_by(i, 64, 4.) for i in range(1, 5)]); assert (w[:,:2]<2).all() and (w[:,3]>.3).all(), w

@pytest.mark.slow
def test_registration_recovers_known_transforms_at_2mm():
    w = np.array([wrong_by(i, 96, 2., seed=1) for i in range(1, 21)]); assert (w[:,:2]<2).all() and (w[:,2]<15).all() and (w[:,3]>.3).all(), w.max(0)

@pytest.mark.parametrize('dof', [6, 9, 12])
def test_registration_never_mirrors(dof):
    v = phantom(sample_latents(1, 4, 'clinical_a'), 48)
    for w in (v, Volume(v.data[::-1].copy(), v.affine), Volume(v.data[:,::-1].copy(), v.affine)):
        assert np.linalg.det(find_affine(w, dof, mm=4)[0])>0
    u,s,vt = np.linalg.svd(find_affine(v, 6, mm=4)[0][:3,:3]); assert np.allclose(s, 1)

def test_registered_side_is_the_same_side():
    v = phantom(sample_latents(1, 4, 'clinical_a'), 64); x = v.data.copy(); mm = v.affine[0,0]*np.arange(64)+v.affine[0,3]
    x[(mm>10)&(mm<40)] *= 1.15  # the right side, brighter
    g = register(Volume(x, resample_to(v, rot(15) @ v.affine, 64).affine), mm=4)[0]; half = g.affine[0,0]*np.arange(g.shape[0])+g.affine[0,3]
    mean = lambda s: g.data[s][g.data[s]>20].mean(); assert mean((half>15)&(half<35))>mean((half<-15)&(half>-35))*1.05

def test_heads_and_nonsense_are_refused():
    head = phantom(sample_latents(1, 5), 48, skull=True); assert not is_stripped(head)
    with pytest.raises(PrepareError, match='strip_skull') as e: register(head)
    assert e.value.code=='SKULL'
    v = phantom(sample_latents(1, 5), 48)
    with pytest.raises(PrepareError, match='truth about its axes'): register(Volume(v.data[:,:,::-1].copy(), v.affine), mm=4)
    with pytest.raises(Problem, match='6, 9 or 12'): find_affine(v, 7)

def test_threads_change_nothing():
    v = phantom(sample_latents(1, 3), 48); n = torch.get_num_threads(); a = find_affine(v, mm=4)[0]
    torch.set_num_threads(2); b = find_affine(v, mm=4)[0]; assert torch.get_num_threads()==2; torch.set_num_threads(n)
    assert np.array_equal(a, b)

SCANS = os.environ.get('NEUROSSL_SCANS', '')
@pytest.mark.slow
@pytest.mark.skipif(not SCANS, reason='NEUROSSL_SCANS is unset')
def test_registration_raises_the_correlation_of_real_scans():
    t = resize(mni_template(), np.array(mni_template().shape)//2); inside = t.data>5
    like = lambda v, M: np.corrcoef(resample_to(v, t.affine, t.shape, matrix=M).data[inside], t.data[inside])[0,1]
    for f in sorted(Path(SCANS).glob('oasis1_bids/sub-*/ses-*/anat/*_T1w.nii.gz')):
        v = load_volume(f); assert is_stripped(v)
        M,_ = find_affine(v); before = like(v, shift(brain_centre(v)-brain_centre(mni_template()))); assert like(v, M)>before+.03 and np.linalg.det(M)>.5, f.name

"Steps of preprocessing against their references; recipes"
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neurossl.core import Problem
from neurossl.phantom import phantom, sample_latents
from neurossl.preprocess import (G2009C, NAMED, RECIPES, VERSION, PrepareError, Recipe, clahe, minmax, mni_box, n4, prepare, read_turboprep, resample_to,
                                 strip_skull, versions, zscore)
from neurossl.spatial import find_affine, is_stripped, mni_template
from neurossl.volume import Volume, load_volume, save_volume

def ball(n=40, at=(20,20,20), r=12, spacing=2.):
    g = np.stack(np.meshgrid(*[np.arange(n)]*3, indexing='ij'), -1)
    d = np.sqrt(((g-np.array(at))**2).sum(-1)); x = (d<r)*(100+40*np.sin(g[...,0]/3)+g[...,1])
    return Volume(x.astype(np.float32), np.diag([spacing]*3+[1.]))

def test_minmax_and_zscore():
    v = ball(); m = v.data>0; y = minmax(v).data
    assert y.min()==0 and y.max()==1 and y.dtype==np.float32
    z = zscore(v, m).data; assert abs(z[m].mean())<1e-5 and abs(z[m].std()-1)<1e-5 and not z[~m].any()
    assert np.allclose(zscore(v.data*3+10, m), z, atol=1e-5)
    big = (v.data+1e6).astype(np.float32); assert abs(zscore(big, m)[m].std()-1)<1e-3     # E[x2]-E[x]2 in float32 fails here
    for f in (minmax, zscore):
        with pytest.raises(Problem, match='contrast'): f(np.ones((5,5,5), np.float32))
    with pytest.raises(Problem, match='mask of this scan'): zscore(v, m[:-1])

@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(2, 40).filter(lambda n: n not in (3, 4))]*3), st.integers(0, 2**32-1), st.sampled_from(['noise', 'sparse', 'few', 'dark', 'two', 'flat']))
def test_clahe_equals_scikit_image(shape, seed, kind):
    from skimage.exposure import equalize_adapthist
    r = np.random.default_rng(seed); x = r.random(shape, np.float32)
    x = dict(noise=x, sparse=x*(x>.9), few=np.round(x*5)/5, dark=x**6*.2, two=(x>.5)*np.float32(.7), flat=x*0+.3)[kind].astype(np.float32)
    assert np.array_equal(clahe(x), equalize_adapthist(x))

@pytest.mark.parametrize('kw', [dict(clip_limit=0), dict(clip_limit=.5), dict(kernel_size=5), dict(kernel_size=(4,9,6)), dict(nbins=64), dict(nbins=300)])
def test_clahe_options_equal_scikit_image(kw):
    from skimage.exposure import equalize_adapthist
    x = (np.random.default_rng(1).random((21,18,26), np.float32)**2).astype(np.float32)
    assert np.array_equal(clahe(x, **kw), equalize_adapthist(x, **kw))

@pytest.mark.parametrize('kind', [np.float64, np.uint8, np.uint16])
def test_clahe_other_types_equal_scikit_image(kind):
    from skimage.exposure import equalize_adapthist
    x = np.random.default_rng(1).random((24,18,26)); x = x if kind==np.float64 else (x*200).astype(kind)
    a,b = clahe(x),equalize_adapthist(x); assert a.dtype==b.dtype and np.array_equal(a, b)

def test_clahe_leaves_its_input_alone_and_reads_any_layout():
    x = np.random.default_rng(1).random((20,30,40), np.float32); y = x.copy(); a = clahe(x)
    assert np.array_equal(x, y) and np.array_equal(clahe(np.asfortranarray(x)), a)
    for bad in (x+.5, x-.5, np.where(x>.99, np.nan, x).astype(np.float32), (x+.5).astype(np.float64)):
        with pytest.raises(Problem, match='minmax before clahe'): clahe(bad)

def test_recipe_is_strict_and_its_key_tells():
    assert Recipe('s1', 48).key==Recipe('s1', (48,48,48)).key==Recipe('s1', 48, ('resize','minmax','clahe')).key
    keys = [Recipe(*a).key for a in (('s1',48), ('s1',64), ('plain',48), ('s1_pad',48), ('x',48,('resize',)), ('s1',(48,48,50)), ('s1',48,('resize','minmax',('clahe',{'clip_limit':.02}))))]
    assert len(set(keys))==len(keys) and all(set(k)<=set('abcdefghijklmnopqrstuvwxyz0123456789-_') for k in keys)
    for bad,say in ((('s1',48,('resize','min_max')), "'minmax'"), (('nope',), 'Name one'), (('x',48,(('clahe',{'limit':1}),)), 'option'), (('s1',4), 'from 8')):
        with pytest.raises(Problem, match=say): Recipe(*bad)
    assert set(RECIPES)==set(NAMED) and RECIPES['s1'].size==192
    with pytest.raises(AttributeError): Recipe().size = 3
    assert {hash(r) for r in RECIPES.values()}

@pytest.mark.parametrize('name', ['s1', 's1_pad', 'plain', 'cube'])
def test_prepare(name):
    v = Volume(ball().data[4:36], ball().affine); x,qc = prepare(v, Recipe(name, 32))
    assert x.shape==(32,32,32) and x.dtype==np.float32 and x.flags.c_contiguous and x.min()==0 and x.max()==1
    assert qc['shape']==(32,40,40) and qc['spacing_mm']==(2.,2.,2.) and 0<qc['foreground']<1
    assert np.array_equal(prepare(v, Recipe(name, 32))[0], x)

def test_the_mask_follows_the_scan():
    v = ball(); m = v.data>0
    for steps in (('resize','zscore'), ('pad','resize','zscore'), ('cube','zscore')):
        x,_ = prepare(v, Recipe('m', 20, steps), m); assert abs(x[x!=0].mean())<.1 and (x==0).mean()>.3
    with pytest.raises(Problem, match='on the same grid'): prepare(v, Recipe('plain', 20), m[1:])

def test_results_have_not_drifted():
    "If this fails because a step was changed on purpose: raise VERSION in 05_preprocess and correct the numbers"
    x,_ = prepare(ball(), Recipe('s1', 32)); assert (VERSION, round(float(x.mean()), 3), round(float(x[16,16,16]), 2))==(1, .083, .81)

def published(vol, mask):
    "The second study's array and normalisation, as its t1_datasets.py states them (lines 54-67)"
    x,m = (a[None].transpose(0,3,2,1)[:,10:160,19:211,1:][0].astype(np.float64) for a in (vol, mask))
    x = x*m; b = x[m>0]; return (x-b.mean())/b.std()*m

def test_turboprep_output_becomes_the_second_studys_array(tmp_path):
    r = np.random.default_rng(0); x = r.random(G2009C[1], np.float32)*100; m = np.zeros(G2009C[1], np.float32); m[40:150,50:180,30:150] = 1
    save_volume(Volume(x, G2009C[0]), tmp_path/'normalized.nii.gz'); save_volume(Volume(m, G2009C[0]), tmp_path/'mask.nii.gz')
    v,mask = read_turboprep(tmp_path); y,_ = prepare(v, RECIPES['s2_turboprep'], mask)
    assert y.shape==(150,192,192) and np.allclose(y, published(x, m), atol=1e-4)
    save_volume(Volume(m[:-1], G2009C[0]), tmp_path/'mask.nii.gz')
    with pytest.raises(PrepareError, match='one run of TurboPrep'): read_turboprep(tmp_path)

def test_mni_box_is_the_papers():
    b = mni_box(Volume(np.zeros(G2009C[1]), G2009C[0])); hi = b.affine @ [191,191,149,1]
    assert b.affine[:3,3].tolist()==[-95,-113,-68] and hi[:3].tolist()==[96,78,81]
    with pytest.raises(PrepareError, match='2009c'): mni_box(Volume(np.zeros((197,233,189)), G2009C[0]))

COARSE = dict(s2=('strip_skull', ('register', dict(dof=6, grid='2009c', mm=4)), 'mni_box', 'resize', 'zscore'), s3=('strip_skull', ('register', dict(mm=4)), 'minmax'))

@pytest.mark.parametrize('name,size', [('s2', (38,48,48)), ('s3', 55)])
def test_template_recipes_bring_two_poses_together(name, size):
    a = np.deg2rad(12); T = np.array([[np.cos(a),0,np.sin(a),9],[0,1,0,-12],[-np.sin(a),0,np.cos(a),5],[0,0,0,1]])
    v = phantom(sample_latents(2, 3, 'clinical_a'), 64); w = resample_to(v, v.affine, 64, matrix=T); r = Recipe(name, size, COARSE[name])
    (x,qc),(y,_) = prepare(v, r), prepare(w, r)
    A,B = (find_affine(u, 6 if name=='s2' else 9, mm=4)[0] for u in (v, w)); E = T @ B-A; near = mni_template().affine @ [98,116,94,1]
    assert abs(E[:3,:3]).max()<.02 and abs(E @ near).max()<2
    inside = (x!=0)&(y!=0)&(abs(x)<2); assert x.shape==r.shape and qc['scale']>.7 and np.corrcoef(x[inside], y[inside])[0,1]>.9
    m = (v.data>0); assert np.allclose(prepare(v, r, m)[0], x, atol=.35)
    up = x if name=='s2' else x.T  # (z,y,x): the cerebellum is below and behind, the forehead in front
    half = up.shape[1]//2; assert (up[:up.shape[0]//3, :half]!=0).sum()>(up[:up.shape[0]//3, half:]!=0).sum()*.8

def test_strip_skull_without_deepbet(monkeypatch):
    v = phantom(sample_latents(1, 2), 48); head = phantom(sample_latents(1, 2), 48, skull=True)
    monkeypatch.setitem(sys.modules, 'deepbet', None)
    assert strip_skull(v)[0] is v and np.array_equal(strip_skull(v)[1], v.data>0)
    with pytest.raises(PrepareError, match='make extras') as e: strip_skull(head)
    assert e.value.code=='SKULL'
    w,m = strip_skull(head, v.data>0); assert np.array_equal(m, v.data>0) and not w.data[~m].any() and is_stripped(w)

def test_n4_without_simpleitk(monkeypatch):
    monkeypatch.setitem(sys.modules, 'SimpleITK', None)
    with pytest.raises(Problem, match='make extras'): n4(phantom(sample_latents(1, 2), 32))

def test_n4_flattens_a_known_field():
    pytest.importorskip('SimpleITK')
    v = phantom(sample_latents(1, 2), 32); g = np.linspace(-.35, .35, 32, dtype=np.float32)
    w = n4(Volume(v.data*np.exp(g)[:,None,None], v.affine), levels=3); m = v.data>60
    left = np.log(w.data[m]/v.data[m]); assert left.std()<.7*np.log(np.exp(g)[:,None,None]*np.ones((32,)*3))[m].std()
    assert not w.data[v.data==0].any()
    assert np.array_equal(n4(v, levels=2).data, n4(v, levels=2).data)

def test_versions_follow_the_steps():
    assert set(versions(Recipe('s1', 48)))=={'steps', 'numpy', 'torch'} and 'deepbet' in versions(RECIPES['s2']) and 'SimpleITK' in versions(RECIPES['s3'])

SCANS = os.environ.get('NEUROSSL_SCANS', '')
@pytest.mark.slow
@pytest.mark.skipif(not SCANS, reason='NEUROSSL_SCANS is unset')
@pytest.mark.parametrize('name', ['studyforrest_T1w_1mm', 'chris_t1'])
def test_deepbet_strips_real_heads(name):
    pytest.importorskip('deepbet', reason='deepbet is not installed (make extras)')
    v = load_volume(Path(SCANS)/'single'/f'{name}.nii.gz'); assert not is_stripped(v)
    w,m = strip_skull(v); ml = m.sum()*np.prod(v.spacing_mm)/1000
    assert 1200<ml<2000 and is_stripped(w)
    x,qc = prepare(w, Recipe('s2', (75,96,96), COARSE['s2'])); assert x.shape==(75,96,96) and .6<qc['scale']<1.3

@pytest.mark.slow
@pytest.mark.skipif(not SCANS, reason='NEUROSSL_SCANS is unset')
@pytest.mark.parametrize('name', ['s1', 's2', 's3', 'cube'])
def test_real_scans_through_the_studies_recipes(name):
    pytest.importorskip('SimpleITK')
    v = load_volume(sorted(Path(SCANS).glob('oasis1_bids/sub-*/ses-*/anat/*_T1w.nii.gz'))[0])
    x,_ = prepare(v, RECIPES[name]); assert x.shape==RECIPES[name].shape and np.isfinite(x).all()
    if name=='s3': assert np.corrcoef(x.ravel(), prepare(mni_template(), Recipe('t', 110, ('register', 'minmax')))[0].ravel())[0,1]>.8

"Room 02: every broken file is refused under its own name, every whole file loads the right way up"
import gzip, itertools, os, pickle, stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fixture_bad import BROKEN, GZ, MM, RAW, SOUND, WARNED, X, Z, head, nifti, pix, with_value
from neurossl.volume import (CODES, ScanError, Volume, fingerprint, fingerprint_distance, load_volume, qc_file, read_scan, save_volume, show_grid,
                             show_volume, voxel_hash)

@pytest.mark.parametrize('case', BROKEN)
def test_catalogue(case, tmp_path):
    name,b,code = BROKEN[case]
    p = tmp_path/name; p.write_bytes(b)
    qc = qc_file(p)
    assert (qc['code'], qc['ok'])==(code, False) and qc['reason'] and qc['remedy']==CODES[code][1]
    with pytest.raises(ScanError) as e: load_volume(p)
    assert e.value.code==code and str(p) in str(e.value) and code in str(e.value) and CODES[code][1] in str(e.value)
    assert pickle.loads(pickle.dumps(e.value)).code==code

def test_catalogue_covers_every_code(tmp_path):
    elsewhere = {'MISSING', 'IS_FOLDER', 'UNREADABLE'}
    assert {c for *_,c in BROKEN.values()}|elsewhere==set(CODES)

def test_no_file(tmp_path):
    (tmp_path/'loop').symlink_to('loop'); (tmp_path/'dead.nii').symlink_to('gone.nii'); (tmp_path/'folder.nii').mkdir(); os.mkfifo(tmp_path/'pipe.nii')
    want = {'gone.nii':'MISSING', 'loop':'MISSING', 'dead.nii':'MISSING', 'folder.nii':'IS_FOLDER', 'pipe.nii':'UNREADABLE'}
    assert {n: qc_file(tmp_path/n)['code'] for n in want}==want
    p = tmp_path/'locked.nii'; p.write_bytes(RAW); p.chmod(0)
    if os.geteuid(): assert qc_file(p)['code']=='UNREADABLE'

@pytest.mark.parametrize('case', WARNED)
def test_warned_but_right(case, tmp_path):
    name,b,code = WARNED[case]
    p = tmp_path/name; p.write_bytes(b)
    v,qc = read_scan(p)
    assert qc['code']=='OK' and any(w.startswith(code+':') for w in qc['warnings'])
    assert np.array_equal(v.data, X[::-1] if case==27 else X) # without directions: radiological, as nibabel and FSL read it

@pytest.mark.parametrize('case', SOUND)
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz', '.NII.GZ'])
def test_sound_files(case, ending, tmp_path):
    p = tmp_path/f'ä b {case}{ending}'; p.write_bytes(Z(SOUND[case]) if ending.lower().endswith('gz') else SOUND[case])
    v,qc = read_scan(p)
    assert np.array_equal(v.data, X) and v.data.dtype==np.float32 and np.allclose(v.affine, MM)
    assert qc['shape']==X.shape and qc['spacing_mm']==(2., 2., 2.) and [w.split(':')[0] for w in qc['warnings']]==['FIELD_OF_VIEW']

def test_members_of_gzip_are_joined_and_padding_is_fine(tmp_path):
    p = tmp_path/'a.nii.gz'; p.write_bytes(Z(RAW[:777])+Z(RAW[777:])+bytes(512))
    assert np.array_equal(load_volume(p).data, X) and 'GZ_JUNK' not in str(qc_file(p)['warnings'])

def test_every_changed_byte_is_rejected_or_harmless(tmp_path):
    p,x = tmp_path/'a.nii.gz',np.random.default_rng(0).integers(0, 200, (11,13,13)).astype(np.uint8)
    gz = gzip.compress(nifti(x), mtime=0)
    assert 1800<len(gz)<2200
    ok = set()
    for i,b in enumerate(gz):
        for flip in {1<<i%8, 255 if i<40 or i>len(gz)-20 else 1<<i%8}:
            p.write_bytes(gz[:i]+bytes([b^flip])+gz[i+1:])
            try: v = load_volume(p)
            except ScanError: continue
            assert np.array_equal(v.data, x), (i, flip)
            ok.add(i)
    assert {4, 5, 6, 7}<=ok and len(ok)<16 # the time stamp, a few unused bits, and nothing else

@pytest.fixture(scope='module')
def scratch(tmp_path_factory): return tmp_path_factory.mktemp('fuzz')

@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6), st.sampled_from(['nii', 'nii.gz', 'mgh', 'hdr']))
def test_a_damaged_header_never_surprises(scratch, edits, kind):
    d = scratch
    b = bytearray(nib.MGHImage(X, MM).to_bytes() if kind=='mgh' else nifti(magic=b'ni1', vox_offset=0) if kind=='hdr' else RAW)
    for i,v in edits: b[i] = v
    p = d/f'a.{kind}'; p.write_bytes(Z(bytes(b)) if kind.endswith('gz') else bytes(b[:352]) if kind=='hdr' else bytes(b))
    if kind=='hdr': (d/'a.img').write_bytes(X.tobytes('F'))
    qc = qc_file(p)
    if qc['ok']: assert np.isfinite(load_volume(p).data).all()
    else:
        with pytest.raises(ScanError): load_volume(p)

def test_all_48_orders_of_storage_give_one_volume(tmp_path):
    p,ref = tmp_path/'a.nii',Volume(X, MM)
    for perm,flips in itertools.product(itertools.permutations(range(3)), itertools.product((1,-1), repeat=3)):
        ornt = np.column_stack([perm, flips])
        a = MM@nib.orientations.inv_ornt_aff(ornt, X.shape)
        p.write_bytes(nifti(np.ascontiguousarray(nib.apply_orientation(X, ornt)), a))
        v = load_volume(p)
        assert np.array_equal(v.data, X) and np.allclose(v.affine, MM) and voxel_hash(v)==voxel_hash(ref) and min(v.data.strides)>0

@pytest.mark.parametrize('ending', ['hdr', 'img', 'hdr.gz', 'IMG'])
@pytest.mark.parametrize('analyze', [False, True])
def test_pairs(ending, analyze, tmp_path):
    img = (nib.AnalyzeImage if analyze else nib.Nifti1Pair)(X.astype('>i2'), np.diag([-2,2,2,1.]) if analyze else MM)
    img.to_filename(tmp_path/'x.hdr')
    for e in ('hdr', 'img'):
        b = (tmp_path/f'x.{e}').read_bytes()
        if ending.endswith('gz'): (tmp_path/f'x.{e}.gz').write_bytes(Z(b))
        if ending.isupper(): (tmp_path/f'x.{e.upper()}').write_bytes(b)
    v,qc = read_scan(tmp_path/f'x.{ending}')
    assert np.array_equal(v.data, X[::-1] if analyze else X)
    assert ('NO_ORIENTATION' in str(qc['warnings']))==analyze

@pytest.mark.parametrize('name,dtype', [('a.mgz', '>f4'), ('a.mgh', '>i2'), ('a.mgz', 'u1')])
def test_mgh(name, dtype, tmp_path):
    nib.MGHImage(X[::-1].astype(dtype), MM@np.diag([-1,1,1,1.])@np.array([[1,0,0,-10],[0,1,0,0],[0,0,1,0],[0,0,0,1]])).to_filename(tmp_path/name)
    v = load_volume(tmp_path/name)
    ref = nib.as_closest_canonical(nib.load(tmp_path/name))
    assert np.array_equal(v.data, X) and np.allclose(v.affine, ref.affine)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(['u1', 'i2', 'f4']), st.sampled_from(['.nii', '.nii.gz']))
def test_what_is_saved_comes_back(tmp_path_factory, seed, kind, ending):
    g = np.random.default_rng(seed)
    x = g.integers(0, 255, (8,9,10)) if kind=='u1' else g.integers(-3000, 3000, (8,9,10)) if kind=='i2' else g.normal(size=(8,9,10))*10.**g.integers(-14, 14)
    q = np.linalg.qr(np.eye(3)+g.normal(size=(3,3))*.1)[0]; q *= np.sign(np.diag(q))
    a = np.eye(4); a[:3,:3] = q*g.uniform(.3, 5, 3); a[:3,3] = g.normal(size=3)*50
    v,p = Volume(x, a),tmp_path_factory.mktemp('s')/f'v{ending}'
    save_volume(v, p); first = p.read_bytes(); save_volume(v, p)
    w = load_volume(p)
    assert first==p.read_bytes() and np.array_equal(w.data, v.data) and np.allclose(w.affine, a, rtol=1e-6, atol=1e-5) and voxel_hash(v)==voxel_hash(w)
    assert nib.load(p).get_data_dtype()==np.dtype(dict(u1='u1', i2='<i2', f4='<f4')[kind])
    assert not list(p.parent.glob('.*'))

def test_saved_headers_are_fresh(tmp_path):
    img = nib.Nifti1Image(X, MM); img.header['descrip'] = b'CANARY JANE'; img.header['aux_file'] = b'CANARY'; img.header['db_name'] = b'CANARY'
    img.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'CANARY 1941-02-03'))
    img.to_filename(tmp_path/'in.nii.gz')
    save_volume(load_volume(tmp_path/'in.nii.gz'), tmp_path/'out.nii.gz')
    assert b'CANARY' in gzip.decompress((tmp_path/'in.nii.gz').read_bytes()) and b'CANARY' not in gzip.decompress((tmp_path/'out.nii.gz').read_bytes())
    assert stat.S_IMODE((tmp_path/'out.nii.gz').stat().st_mode)==0o644
    for bad,name in ((with_value(np.nan), 'x.nii'), (X, 'x.img')):
        with pytest.raises(ScanError): save_volume(Volume(bad, MM), tmp_path/name)

def test_volume_refuses_what_is_no_volume():
    for x,a in ((X[0], MM), (X, np.eye(3)), (X, np.diag([-1,1,1,1])), (X, MM*np.nan), (X[:0], MM)):
        with pytest.raises(ValueError): Volume(x, a)
    v = Volume(X.astype(np.float64), MM.tolist())
    assert repr(v)=='Volume(11, 12, 13) 2 x 2 x 2 mm, range [0, 219]' and v.data.dtype==np.float32

def test_hash_and_fingerprint(tmp_path):
    g = np.random.default_rng(1); x = g.integers(0, 256, (48,48,48)).astype(np.float32)
    v = Volume(x, MM)
    assert voxel_hash(v)==voxel_hash(Volume(np.asfortranarray(x), np.eye(4))) and voxel_hash(v)!=voxel_hash(Volume(x.reshape(24,96,48), MM))
    f = fingerprint(v)
    assert len(f)==1024
    blocks = x.reshape(8,6,8,6,8,6).mean((1,3,5))
    assert np.array_equal(np.frombuffer(bytes.fromhex(f), np.uint8).reshape(8,8,8), np.rint(blocks).astype(np.uint8))
    y = x.copy(); y[7,7,7] = 255-y[7,7,7]
    assert voxel_hash(Volume(y, MM))!=voxel_hash(v) and fingerprint_distance(f, fingerprint(Volume(y, MM)))<=1
    assert fingerprint_distance(f, fingerprint(Volume(x[::-1], MM)))>1
    assert voxel_hash(Volume(x*0, MM))==voxel_hash(Volume(-x*0, MM))
    with pytest.raises(ValueError): fingerprint(Volume(x[:7], MM))
    with pytest.raises(ValueError): fingerprint_distance(f, f[:-2])

def test_pictures():
    import torch
    from matplotlib import pyplot as plt
    before = len(plt.get_fignums())
    figs = [show_volume(Volume(X, MM)), show_grid([Volume(X, MM), X]), show_grid(torch.zeros(3,1,8,8,8)), show_grid(torch.zeros(2,1,8,8), titles='ab'), show_grid([X]*9)]
    assert [len(f.axes) for f in figs]==[3, 2, 3, 2, 16] and len(plt.get_fignums())==before
    assert {t.get_text() for t in figs[0].axes[1].texts}==set('LRIS')

SCANS = os.environ.get('NEUROSSL_SCANS')

@pytest.mark.skipif(not SCANS, reason='NEUROSSL_SCANS is not set')
def test_real_scans():
    files = sorted(f for d in (Path(SCANS)/'oasis1_bids', Path(SCANS)/'single') for f in d.rglob('*.nii*') if 'derivatives' not in f.parts)
    assert len(files)==24
    for f in files:
        v,qc = read_scan(f)
        ref = nib.load(f); can = nib.as_closest_canonical(ref)
        assert nib.aff2axcodes(v.affine)==tuple('RAS') and np.allclose(v.affine, can.affine)
        want = np.squeeze(np.asarray(can.dataobj, np.float32))
        assert np.array_equal(v.data, want) and np.allclose(v.spacing_mm, can.header.get_zooms()[:3], rtol=1e-3), f.name
        assert not qc['warnings'] or f.name.startswith('papaya'), (f.name, qc['warnings'])

"Cache: never stale, never torn, heals; dataset and loader: order by name"
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from neurossl import data, entries
from neurossl.core import Problem
from neurossl.data import BadScan, Cache, ScanDataset, build_cache, decode, encode, epoch_order, loader, qc_table, read, verify, voxels
from neurossl.manifest import empty_manifest
from neurossl.phantom import phantom_cohort
from neurossl.preprocess import Recipe
from neurossl.volume import Volume, save_volume, voxel_hash

R = Recipe('plain', 16)

def scan(seed=0, n=24): return Volume(np.random.default_rng(seed).integers(0, 200, (n,)*3).astype(np.float32), np.diag([8.,8,8,1]))

@pytest.fixture
def own(tmp_path):
    "Three files and their manifest"
    for i in range(3): save_volume(scan(i), tmp_path/f'{i}.nii.gz')
    return tmp_path, empty_manifest([dict(scan_id=f'a-{i}', cohort='a', subject=f'a-{i}', path=f'{i}.nii.gz', dx='CN', age=60.+i) for i in range(3)])

def build(own, recipe=R, **k): return build_cache(own[1], recipe, root=own[0], folder=own[0]/'cache', **k)

@pytest.mark.parametrize('codec', data.CODECS)
@pytest.mark.parametrize('shape', [(48,)*3, (15,33,64), (8,8,130), (70,9,65)])
def test_entries_keep_the_voxels_and_read_crops(tmp_path, codec, shape):
    x = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    f = tmp_path/f'x{data.CODECS[codec]}'; f.write_bytes(encode(x, dict(a=1), codec))
    q,m = decode(f); assert q.dtype==np.int16 and m['a']==1
    assert abs(q*m['scale']-x).max() <= abs(x).max()/entries.LEVELS/2*1.01 and q.flags.writeable
    for c in ((slice(2,7), slice(0,8), slice(3,8)), (slice(5,6), slice(None), slice(-4,None)), (slice(0,8),)*3, (slice(None),)*3):
        assert np.array_equal(decode(f, c)[0], q[c]) and np.array_equal(decode(f, c, grey=True)[0], q[c]*np.float32(m['scale'])), c
    assert np.array_equal(decode(f, grey=True)[0], q*np.float32(m['scale']))

def test_zeros_stay_zero(tmp_path):
    f = tmp_path/'x.b2nd'; f.write_bytes(encode(np.zeros((16,)*3, np.float32), {})); assert not decode(f)[0].any()

@pytest.mark.parametrize('codec', data.CODECS)
def test_every_damage_is_found(tmp_path, codec):
    f = tmp_path/f'x{data.CODECS[codec]}'; b = encode(scan(n=16).data, dict(a=1), codec); r = np.random.default_rng(0)
    for i in [*r.integers(0, len(b), 200), *range(len(b)-16, len(b))]:
        c = bytearray(b); c[i] ^= 1 << r.integers(8); f.write_bytes(c)
        with pytest.raises(ValueError): decode(f)
    for n in r.integers(0, len(b), 50):
        f.write_bytes(b[:n])
        with pytest.raises(ValueError): decode(f)

@pytest.mark.parametrize('codec', data.CODECS)
def test_damage_in_what_a_crop_reads_is_found(tmp_path, codec):
    "A flipped bit is found, or it lies in a plane that the crop does not read"
    f = tmp_path/f'x{data.CODECS[codec]}'; b = encode(scan(n=16).data, {}, codec); f.write_bytes(b); whole = decode(f)[0].copy(); r = np.random.default_rng(1); found = 0
    for i in r.integers(0, len(b), 300):
        lo = r.integers(0, 10, 3); s = tuple(slice(int(a), int(a)+6) for a in lo); c = bytearray(b); c[i] ^= 1 << r.integers(8); f.write_bytes(c)
        try: assert np.array_equal(decode(f, s)[0], whole[s])
        except ValueError: found += 1
    assert found==300 if codec=='blosc2' else 100<found<250

def test_a_damaged_crop_heals(own):
    c,_ = build(own, codec='npy'); row = own[1].iloc[0]; s = (slice(3,9),)*3; x = voxels(c, row, s); f = c.path(row); b = bytearray(f.read_bytes())
    b[128+5*16*16*2] ^= 4; f.write_bytes(b); assert np.array_equal(voxels(c, row, s), x) and verify(c)['damaged']==[]

@pytest.mark.parametrize('codec', data.CODECS)
def test_npy_and_blosc2_read_alike_without_warnings(own, codec, recwarn):
    c,_ = build(own, codec=codec); ds = ScanDataset(own[1], c, threads=1); x = ds[1]['x']; row = own[1].iloc[1]
    assert np.array_equal(voxels(c, row), x[0].numpy()) and np.array_equal(voxels(c, row, (slice(3,9),)*3), x[0,3:9,3:9,3:9].numpy())
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]

@pytest.mark.parametrize('codec', data.CODECS)
def test_damaged_entries_heal(own, codec):
    c,e = build(own, codec=codec); row = own[1].iloc[0]; q = read(c, row)[0].copy(); whole = c.path(row).read_bytes()
    for bad in (b'', whole[:100], whole[:-1], b'\0'*len(whole)):
        c.path(row).write_bytes(bad); assert np.array_equal(read(c, row)[0], q) and c.path(row).read_bytes()==whole
    c.path(row).write_bytes(c.path(own[1].iloc[1]).read_bytes())  # a whole entry of another scan
    assert np.array_equal(read(c, row)[0], q)
    c.path(row).unlink(); assert np.array_equal(read(c, row)[0], q)

def test_verify_names_and_removes(own):
    c,_ = build(own); f = c.path(own[1].iloc[1]); b = bytearray(f.read_bytes()); b[40] ^= 8; f.write_bytes(b)
    assert verify(c)['damaged']==[f.name] and verify(c, remove=True)['entries']==3 and not f.exists()
    build(own); assert verify(c)['damaged']==[] and verify(c)['entries']==3

def test_a_changed_file_gets_a_new_entry(own):
    root,man = own; c,_ = build(own); old = c.path(man.iloc[0])
    st = os.stat(root/'0.nii.gz'); save_volume(scan(9), root/'0.nii.gz'); os.utime(root/'0.nii.gz', ns=(st.st_atime_ns, st.st_mtime_ns))  # same date
    c,_ = build(own); assert c.path(man.iloc[0])!=old
    v = replace(scan(9), affine=np.diag([9.,9,9,1])); save_volume(v, root/'0.nii.gz')  # same voxels, other geometry
    assert build(own)[0].path(man.iloc[0]) not in (old, c.path(man.iloc[0]))

def test_recipe_versions_and_generator_are_in_the_key(own, monkeypatch):
    c,_ = build(own); row = own[1].iloc[0]; keys = {c.key(row)}
    keys.add(build(own, Recipe('plain', 17))[0].key(row)); keys.add(build(own, Recipe('s1', 16))[0].key(row))
    monkeypatch.setattr(data, 'FORMAT', 99); keys.add(build(own)[0].key(row))
    monkeypatch.setattr(data, 'versions', lambda r: dict(numpy='9')); keys.add(build(own)[0].key(row))
    assert len(keys)==5
    ph = phantom_cohort(1, 1, hashes=False).iloc[0]; a = Cache(own[0], R).key(ph)
    monkeypatch.setattr(data, 'P', replace(data.P, noise=(0.,0.))); assert Cache(own[0], R).key(ph)!=a

def test_bad_scans_are_named_and_the_rest_goes_on(own, capfd):
    root,man = own; b = (root/'0.nii.gz').read_bytes(); (root/'1.nii.gz').write_bytes(b[:len(b)//2]); (root/'2.nii.gz').unlink()
    c,e = build(own)
    assert list(e.index)==['a-1', 'a-2'] and list(e.code)==['GZ_TRUNCATED', 'MISSING'] and e.index.name=='scan_id'
    lines = [l for l in capfd.readouterr().err.splitlines() if 'excluded' in l]
    assert len(lines)==2 and any('GZ_TRUNCATED a-1' in l for l in lines) and str(root) not in e.reason.str.cat()
    with pytest.raises(BadScan, match='a-'): build(own, strict=True)
    assert len(ScanDataset(man.drop(e.index), c))==1

def test_changed_voxels_are_refused(own):
    root,man = own; man.loc['a-0', 'sha256'] = voxel_hash(scan(0)); man.loc['a-1', 'sha256'] = voxel_hash(scan(0))
    assert list(build(own)[1].code)==['CHANGED']

def test_paths_stay_below_the_data_root(own):
    root,man = own; man.loc['a-0', 'path'] = '../'*20+'etc/passwd'
    assert list(build(own)[1].index)==['a-0']
    with pytest.raises(Problem, match='Give root'): build_cache(man, R, folder=root/'cache')

def test_masks_reach_the_recipe(own):
    root,man = own; m = np.zeros((24,)*3, np.float32); m[4:20,4:20,4:20] = 1; save_volume(Volume(m, scan().affine), root/'m.nii.gz')
    man['mask'] = 'm.nii.gz'; c,e = build(own, Recipe('z', 24, ('resize', 'zscore')))
    assert not len(e); q,s = read(c, man.iloc[0]); assert not q[m==0].any() and abs((q*s['scale'])[m>0].mean())<1e-3

def test_a_full_disk_is_not_the_scans_fault(own, monkeypatch):
    def full(*a): raise Problem('entry', '0 MiB free', 'room', 'The disk is full')
    monkeypatch.setattr(data, 'atomic_write', full)
    with pytest.raises(Problem, match='disk is full') as e: build(own)
    assert not isinstance(e.value, BadScan)

def test_bad_scan_survives_a_process_border():
    import pickle
    e = pickle.loads(pickle.dumps(BadScan('a', 'C', 'w', 'f', 'x', 'r'))); assert (e.scan_id, e.code, e.found)==('a', 'C', 'f')

@pytest.mark.slow
def test_processes_give_the_same_entries(own, monkeypatch):
    man = phantom_cohort(10, 3, 'clinical_a', hashes=False); monkeypatch.setattr(data, 'START_S', -1)
    a,_ = build_cache(man, R, jobs=2, folder=own[0]/'two'); b,_ = build_cache(man, R, folder=own[0]/'one')
    for (_,r) in man.iterrows(): assert a.path(r).read_bytes()==b.path(r).read_bytes()

CODE = '''
import sys
from neurossl import data, entries
from neurossl.manifest import read_manifest
from neurossl.preprocess import Recipe
if len(sys.argv)>2:
    make = data.make
    def slow(*a): print('go', flush=True); import time; time.sleep(.3); return make(*a)
    data.make = slow
cache,e = data.build_cache(read_manifest(sys.argv[1]+'/man.csv'), Recipe('plain', 16), root=sys.argv[1], folder=sys.argv[1]+'/cache')
print(data.verify(cache))
'''

def start(root, *a): return subprocess.Popen([sys.executable, '-c', CODE, str(root), *a], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.slow
def test_two_builders_and_a_killed_one(own):
    from neurossl.manifest import write_manifest
    write_manifest(own[1], own[0]/'man.csv')
    p = start(own[0], 'slow'); p.stdout.readline(); p.stdout.readline(); p.send_signal(signal.SIGKILL); p.communicate()
    assert len(list((own[0]/'cache').rglob('*.b2nd')))<3
    two = [start(own[0]) for _ in range(2)]
    for q in two:
        out,err = q.communicate(); assert q.returncode==0, err
        assert "'entries': 3" in out and "'damaged': []" in out

def test_dataset_and_labels(own):
    root,man = own; man.loc['a-1', ['dx','sex']] = ['', 'M']; man.loc['a-2', 'dx'] = 'AD'; man.loc['a-1', 'age'] = np.nan
    c,_ = build(own); ds = ScanDataset(man, c); b = ds.batch([2,1])
    assert b['x'].shape==(2,1,16,16,16) and b['x'].dtype==torch.float32 and b['scan_id']==['a-2','a-1']
    assert b['dx'].tolist()==[2,-1] and b['sex'].tolist()==[-1,1] and b['age'][0]==62 and b['age'][1].isnan() and b['dx'].dtype==torch.int64
    disk = ScanDataset(man, c, memory_gib=0); assert not disk.keep
    for i in range(3): assert torch.equal(disk[i]['x'], ds[i]['x']) and ds[i]['scan_id']==man.index[i]
    assert torch.equal(ds[-1]['x'], ds[2]['x'])
    with pytest.raises(IndexError): ds[3]
    with pytest.raises(Problem, match='twice'): ScanDataset(pd.concat([man, man]), c)
    assert list(qc_table(man, c).index)==list(man.index)

def test_loader_order(own):
    c,_ = build(own); ds = ScanDataset(own[1], c); ids = lambda **k: [s for b in loader(ds, 2, **k) for s in b['scan_id']]
    assert ids(seed=1)==ids(seed=1)==ids(seed=1, workers=2) and sorted(ids(seed=5))==list(own[1].index)
    assert len({tuple(ids(seed=0, epoch=e)) for e in range(10)})>2
    assert ids(shuffle=False)==list(own[1].index)
    assert len(loader(ds, 2))==2 and len(list(loader(ds, 2, drop_last=True)))==len(loader(ds, 2, drop_last=True))==1
    names = [f's{i}' for i in range(50)]; o = epoch_order(names, 3, 1)
    assert [names[i] for i in o]==[names[::-1][i] for i in epoch_order(names[::-1], 3, 1)]
    with pytest.raises(Problem): loader(ds, 0)

"Fuzz: ten thousand inputs each through the scan intake, the manifest reader, the checkpoint loader and the grid reader. The same inputs each time; only typed errors come out, and nothing else"
import gzip
import io
import json
import os
import struct
import zlib
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from fixture_bad import GZ, MM, RAW, ROWS, X
from neurossl.checkpoint import TrainError, load_ckpt, read_ckpt, save_ckpt
from neurossl.core import Problem
from neurossl.encoders import build_encoder, load_foreign
from neurossl.grid import expand, load_grid
from neurossl.manifest import ManifestError, check_manifest, read_manifest
from neurossl.policy import card_of, read_cards
from neurossl.volume import ScanError, load_volume, qc_file

N = int(os.environ.get("FUZZ", 10_000))
many = settings(max_examples=N, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.slow
TALLY = Counter() # conftest.py says the sums

@pytest.fixture(scope='module')
def here(tmp_path_factory): return tmp_path_factory.mktemp('fuzz')

def tried(b, ok): TALLY['inputs'] += 1; TALLY['input bytes'] += len(b); TALLY['accepted'] += bool(ok)

edits = st.lists(st.tuples(st.sampled_from(['set', 'flip', 'cut', 'drop', 'twice', 'insert', 'swap']), st.integers(0, 2**20), st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=5)

def damaged(b, todo):
    "A few edits of some bytes"
    b = bytearray(b)
    for how,i,j,v in todo:
        if not b: break
        i,j = i%len(b),j%len(b); i,j = min(i, j), max(i, j)
        if how=='set': b[i] = v
        elif how=='flip': b[i] ^= 1<<v%8
        elif how=='cut': del b[i:]
        elif how=='drop': del b[i:min(j, i+v)]
        elif how=='twice': b[i:i] = b[i:min(j, i+v)]
        elif how=='insert': b[i:i] = bytes([v])*(v%9+1)
        elif how=='swap': b[i],b[j] = b[j],b[i]
    return bytes(b)

SMALL = nib.Nifti1Image(X[2:7,2:8,2:9].copy(), MM).to_bytes()
SEEDS = [SMALL, gzip.compress(SMALL, mtime=0), nib.Nifti2Image(X[2:7,2:8,2:9].copy(), MM).to_bytes(), gzip.compress(nib.MGHImage(X[2:7,2:8,2:9].copy(), MM).to_bytes(), mtime=0)]
NAMES = ['a.nii', 'a.nii.gz', 'a.nii', 'a.mgz']
field = st.tuples(st.sampled_from([0, 40, 42, 44, 46, 48, 70, 72, 76, 80, 84, 88, 108, 112, 116, 252, 254, 256, 280, 284, 296, 312, 344]), st.sampled_from(['<h', '<f', '>h', '>i', '<i']),
                  st.sampled_from([0, 1, -1, 2, 7, 16, 64, 128, 255, 32767, -32768, float('nan'), float('inf'), -float('inf'), 1e38, 1e-38, 348, 540, 352]))

def write_field(b, f):
    at,fmt,v = f; b = bytearray(b)
    try: p = struct.pack(fmt, v if fmt[1]=='f' else int(v))
    except (struct.error, ValueError, OverflowError): return bytes(b)
    b[at:at+len(p)] = p; return bytes(b)

@many
@given(k=st.integers(0, 3), fields=st.lists(field, max_size=4), todo=st.one_of(st.just([]), edits), again=st.booleans())
def test_scans(here, k, fields, todo, again):
    b = SEEDS[k]
    if fields: # header fields, behind the compression
        raw = gzip.decompress(b) if b[:2]==b'\x1f\x8b' else b
        for f in fields: raw = write_field(raw, f)
        b = gzip.compress(raw, 1, mtime=0) if NAMES[k].endswith('z') else raw
    b = damaged(b, todo); p = here/NAMES[k]; p.write_bytes(b); qc = qc_file(p); tried(b, qc['ok'])
    if qc['ok']: v = load_volume(p); assert np.isfinite(v.data).all() and v.data.ndim==3 and v.data.std()>0 and np.isfinite(v.affine).all()
    else:
        assert qc['reason'] and qc['remedy'] and qc['code']
        if again:
            with pytest.raises(ScanError): load_volume(p)

cell = st.one_of(st.sampled_from(['', 'CN', 'AD', 'MCI', 'F', 'M', '63', '63,5', '1941-02-03', 'NA', '=1+1', '../x', 'a-1', '"', "'", '\0', '\r', '\n', ';', '\t', '1e999', '-0', 'nan', 'ٱ', '٣', '²', '\u202e', '\ud7ff', 'x'*300, '[', '{', '\\']), st.text(max_size=8))
HEADS = ['scan_id', 'cohort', 'subject', 'session', 'path', 'mask', 'age', 'sex', 'dx', 'seed', 'index', 'field_T', 'dx_gap_days', 'sha256', 'fingerprint', 'synthetic', 'split', 'site', 'nonsense', '']

@many
@given(kind=st.integers(0, 2), todo=edits, names=st.lists(st.sampled_from(HEADS), min_size=1, max_size=8), rows=st.lists(st.lists(cell, min_size=1, max_size=8), max_size=4), sep=st.sampled_from(',;\t|'), code=st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1']))
def test_manifests(here, kind, todo, names, rows, sep, code):
    if kind==0: b = damaged(ROWS.encode(), todo)
    elif kind==1: b = '\n'.join(sep.join(r) for r in [names, *rows]).encode(code, 'replace')
    else: b = '\n'.join(sep.join((*r, *['']*9)[:9]) for r in [['scan_id', 'cohort', 'subject', 'session', 'age', 'sex', 'dx', 'site', 'path'], *([f's{i}', 'a', f'a-{i}', *r] for i,r in enumerate(rows))]).encode('utf-8', 'replace')
    p = here/'m.csv'; p.write_bytes(b)
    try: m = read_manifest(p); ok = True
    except ManifestError as e: ok = False; assert e.remedy and len(str(e))<1500
    tried(b, ok)
    if ok: assert check_manifest(m).equals(m) and m.age.dropna().between(0, 120).all() and not m.path.str.contains(r'^/|\.\.(?:/|$)', regex=True).any()

@pytest.fixture(scope='module')
def weights(here):
    torch.manual_seed(0); net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)); save_ckpt(here/'w.safetensors', dict(net=net), dict(epoch=3, history=[dict(loss=.5)])); return net, (here/'w.safetensors').read_bytes()

@many
@given(kind=st.integers(0, 2), todo=edits, head=st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)), lambda c: st.one_of(st.lists(c, max_size=3), st.dictionaries(st.sampled_from(['net.0.weight', 'dtype', 'shape', 'data_offsets', '__metadata__', 'neurossl']), c, max_size=4)), max_leaves=8))
def test_checkpoints(here, weights, kind, todo, head):
    net,good = weights; before = {k: v.clone() for k,v in net.state_dict().items()}
    if kind==2: h = json.dumps(head).encode('utf-8', 'replace'); b = struct.pack('<Q', len(h))+h+good[-64:]
    elif kind==1: n = struct.unpack('<Q', good[:8])[0]; h = damaged(good[8:8+n], todo); b = struct.pack('<Q', len(h))+h+good[8+n:] # the header alone, with its length put right
    else: b = damaged(good, todo)
    p = here/'x.safetensors'; p.write_bytes(b)
    try: load_ckpt(p, net=net); ok = True
    except TrainError as e: ok = False; assert e.remedy
    tried(b, ok)
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()), 'what is not refused is what was written'

@many
@given(todo=edits, kind=st.integers(0, 1))
def test_foreign_weights(here, weights, todo, kind):
    "torch.save and pickle, damaged: refused, and no code of theirs is run"
    f = io.BytesIO(); torch.save({k: v for k,v in weights[0].state_dict().items()}, f, _use_new_zipfile_serialization=bool(kind)); b = damaged(f.getvalue(), todo); p = here/'w.pt'; p.write_bytes(b)
    try: load_foreign(p); ok = True
    except Problem as e: ok = False; assert e.remedy
    tried(b, ok)

GRID = '''title: "A grid"
template: pretrain
id: "{arm}-s{seed}"
arms: {age: {task: age, keep: [1, 2]}, rot: {task: rotation, seed: [0]}}
axes: {seed: [0, 1]}
profiles: {smoke: {arms: [age]}}
contrasts: [[f, age, rot]]
seconds: {smoke: 15}
'''
leaf = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.sampled_from(['age', 'pretrain', 'probe', '{arm}', '{', '{x}', '{0}', '{arm.x}', '{arm!r}', 'smoke', '../x', 's1-pretext', '']), st.text(max_size=4))
tree = st.recursive(leaf, lambda c: st.one_of(st.lists(c, max_size=3), st.dictionaries(st.one_of(st.sampled_from(['task', 'seed', 'arm', 'smoke', 'arms', 'axes', 'encoder']), leaf.filter(lambda x: x==x)), c, max_size=3)), max_leaves=6)
KEYS = ['title', 'template', 'in', 'id', 'needs', 'of', 'base', 'arms', 'axes', 'each', 'profiles', 'seconds', 'contrasts', 'extra']

@many
@given(kind=st.integers(0, 1), todo=edits, key=st.sampled_from(KEYS), value=tree, profile=st.sampled_from(['smoke', 'full', 'nowhere']))
def test_grids(here, kind, todo, key, value, profile):
    if kind: b = yaml.safe_dump(dict(yaml.safe_load(GRID), **{key: value}), allow_unicode=True).encode('utf-8', 'surrogatepass')
    else: b = damaged(GRID.encode(), todo)
    p = here/'g.yaml'; p.write_bytes(b)
    try: cells = expand(load_grid(p), profile); ok = True
    except Problem as e: ok = False; assert e.remedy and len(str(e))<3000
    tried(b, ok)
    if ok: assert all(c['run'].startswith(f'runs/{profile}/g/') and '..' not in c['run'].split('/') for c in cells) and len({c['id'] for c in cells})==len(cells)

@many
@given(todo=edits, value=tree, kind=st.integers(0, 1))
def test_cohort_cards(here, todo, value, kind):
    b = damaged(b'memory: {policy: open, title: A clinic}\nother:\n  policy: protected\n', todo) if kind else yaml.safe_dump(value).encode('utf-8', 'surrogatepass'); card_of(here/'c.csv').write_bytes(b)
    try: cards = read_cards(here/'c.csv'); ok = True
    except Problem as e: ok = False; assert e.remedy
    tried(b, ok)
    if ok: assert all(c['policy'] in ('open', 'protected') for c in cards.values())

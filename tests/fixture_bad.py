"Every bad input we know of, what becomes of it, and how it is made: one list for the tests, and for the page nbs/bad_inputs.ipynb"
import argparse, errno, gzip, os, pickle, re, signal, time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import nibabel as nib
import numpy as np
import torch

from neurossl.checkpoint import TrainError, encoder_hash, load_ckpt, read_ckpt, save_ckpt
from neurossl.core import Problem, atomic_write, device, digest, sweep
from neurossl.data import ScanDataset, build_cache, loader, read
from neurossl.data import verify as verify_cache
from neurossl.encoders import build_encoder, convert, load_foreign
from neurossl.intake import intake
from neurossl.manifest import ManifestError, duplicates, empty_manifest, read_manifest, write_manifest
from neurossl.preprocess import Recipe
from neurossl.pretext import build_task
from neurossl.run import ParameterError, Run, run_notebook
from neurossl.splits import LeakError, check_disjoint, people_of, subject_folds
from neurossl.train import TrainConfig, fit
from neurossl.volume import CODES, ScanError, Volume, load_volume, qc_file, save_volume

MM = np.array([[2., 0, 0, -20], [0, 2, 0, -30], [0, 0, 2, -10], [0, 0, 0, 1]])

def head(shape=(11,12,13)):
    x = np.zeros(shape, np.float32)
    x[2:-2,2:-2,2:-2] = np.arange(np.prod([n-4 for n in shape])).reshape([n-4 for n in shape])%200 + 20
    return x

def nifti(x=None, affine=MM, endian='<', cls=nib.Nifti1Image, **fields):
    "Bytes of a NIfTI file; `fields` overwrite header fields, sane or not"
    H = cls.header_class
    x = head() if x is None else x
    h = H(endianness=endian); h.set_data_dtype(x.dtype.newbyteorder('='))
    b = cls(x, affine, h).to_bytes()
    h = H(b[:H.sizeof_hdr], endian, check=False)
    with np.errstate(all='ignore'):
        for k,v in fields.items(): h[k] = v
    return h.binaryblock + b[len(h.binaryblock):]

Z = lambda b: gzip.compress(b, mtime=0)
X = head()
def with_value(v, dtype=np.float32): x = X.astype(dtype); x[5,5,5] = v; return x
RAW = nifti(); GZ = Z(RAW)
pix = lambda *p: dict(pixdim=[1,*p,0,0,0,0])
dim = lambda *d: dict(dim=list(d)+[1]*(8-len(d)))
sform = lambda a: dict(srow_x=a[0], srow_y=a[1], srow_z=a[2])

BROKEN = { # case of the catalogue: (name, bytes, code)
    1: ('a.nii.gz', GZ[:len(GZ)//2], 'GZ_TRUNCATED'), 2: ('a.nii.gz', GZ[:-8], 'GZ_TRUNCATED'), '2b': ('a.nii.gz', GZ[:-1], 'GZ_TRUNCATED'),
    3: ('a.nii.gz', GZ[:-8]+bytes([GZ[-8]^1])+GZ[-7:], 'GZ_CRC'), 4: ('a.nii.gz', GZ[:-4]+bytes([GZ[-4]^1])+GZ[-3:], 'GZ_CRC'),
    6: ('a.nii.gz', b'', 'EMPTY'), '6b': ('a.nii', b'', 'EMPTY'), 7: ('a.nii', b'randomrandom'*99, 'HEADER'), '7b': ('a.nii', bytes(128)+b'DICM'+bytes(400), 'DICOM'),
    '7c': ('a.nii.gz', Z(bytes(128)+b'DICM'+bytes(400)), 'DICOM'), '7d': ('a.dcm', bytes(128)+b'DICM'+bytes(400), 'DICOM'), '7e': ('a.zip', b'PK\3\4'+bytes(9), 'FORMAT'),
    '7f': ('a.txt', b'hello', 'FORMAT'), '7g': ('a.nii.gz', b'version https://git-lfs.github.com/spec/v1', 'FORMAT'),
    8: ('a.nii.gz', b'<!DOCTYPE html>', 'HTML'), '8b': ('a.nii', b'\n <html>', 'HTML'), 9: ('a.nii', GZ, 'IS_GZIP'), '9b': ('a.nii.gz', RAW, 'NOT_GZIP'),
    11: ('a.nii', RAW[:-1], 'SHORT_DATA'), '11b': ('a.nii.gz', Z(RAW[:-1]), 'SHORT_DATA'), '11c': ('a.nii', RAW[:200], 'SHORT_DATA'), '11d': ('a.nii', RAW[:2], 'SHORT_DATA'),
    12: ('a.nii', nifti(**dim(3,11,12,12)), 'LONG_DATA'), '12b': ('a.nii.gz', Z(nifti(**dim(3,11,12,12))), 'LONG_DATA'),
    13: ('a.nii', nifti(**dim(3,30000,30000,30000)), 'TOO_LARGE'), '13b': ('a.nii.gz', Z(nifti(**dim(3,2000,2000,2000))), 'TOO_LARGE'),
    14: ('a.nii.gz', Z(RAW+bytes(3*10**6)), 'BOMB'), '14b': ('a.nii.gz', Z(RAW)+Z(bytes(3*10**6)), 'BOMB'),
    15: ('a.nii', nifti(**dim(0)), 'ZERO_DIM'), '15b': ('a.nii', nifti(**dim(3,11,0,13)), 'ZERO_DIM'), 16: ('a.nii', nifti(**dim(3,11,-12,13)), 'NEGATIVE_DIM'),
    '16b': ('a.nii', nifti(**dim(9,11,12,13)), 'HEADER'),
    17: ('a.nii', nifti(with_value(np.nan)), 'NON_FINITE'), '17b': ('a.nii.gz', Z(nifti(with_value(-np.inf))), 'NON_FINITE'), '17c': ('a.nii', nifti(with_value(np.nan, '>f8'), endian='>'), 'NON_FINITE'),
    18: ('a.nii', nifti(X*0), 'CONSTANT'), '18b': ('a.nii', nifti(X*0+7), 'CONSTANT'), '18c': ('a.nii', nifti(with_value(1e30)), 'OUTLIER'),
    '18d': ('a.nii', nifti(with_value(-1e30)), 'OUTLIER'), 19: ('a.nii', nifti(X[:,:,3]), 'NOT_3D'), '19b': ('a.nii', nifti(X[:,:,3:4]), 'NOT_3D'),
    21: ('a.nii', nifti(np.stack([X]*3, -1)), 'FOUR_D'), '21b': ('a.nii', nifti(np.stack([X]*3, -1)[:,:,:,None]), 'FOUR_D'),
    22: ('a.nii', nifti(datatype=128, bitpix=24), 'RGB'), '22b': ('a.nii', nifti(datatype=2304), 'RGB'), 23: ('a.nii', nifti(X.astype(np.complex64)), 'COMPLEX'),
    '23b': ('a.nii', nifti(datatype=1), 'DTYPE'), '23c': ('a.nii', nifti(datatype=999), 'DTYPE'),
    25: ('a.nii', nifti(**pix(2,0,2)), 'SPACING'), 26: ('a.nii', nifti(**pix(2,np.nan,2)), 'SPACING'), '26b': ('a.nii', nifti(**pix(np.inf,2,2)), 'SPACING'),
    28: ('a.nii', nifti(**pix(1,1,1)), 'QS_CONFLICT'), '28b': ('a.nii', nifti(qform_code=1, quatern_b=0, quatern_c=1, quatern_d=0), 'QS_CONFLICT'),
    29: ('a.nii', nifti(**sform(np.zeros((3,4)))), 'AFFINE'), '29b': ('a.nii', nifti(**sform(np.full((3,4), np.nan))), 'AFFINE'),
    '29c': ('a.nii', nifti(**sform(np.array([[2.,2,0,0],[0,1e-5,0,0],[0,0,2,0]]))), 'AFFINE'),
    '29d': ('a.nii', nifti(sform_code=0, qform_code=1, quatern_b=5), 'AFFINE'), 30: ('a.nii', nifti(affine=np.diag([.001,.001,.001,1])), 'SPACING'),
    '30b': ('a.nii', nifti(affine=np.diag([1000,1000,1000,1])), 'SPACING'), 31: ('a.nii', nifti(scl_slope=np.inf), 'SCALE'), '31b': ('a.nii', nifti(scl_slope=2, scl_inter=np.nan), 'SCALE'),
    '31c': ('a.nii', nifti(scl_slope=1e38, scl_inter=0), 'OVERFLOW'), '31d': ('a.nii', nifti(scl_slope=1e-38, scl_inter=0), 'OVERFLOW'), 32: ('a.nii', nifti(with_value(1e300, np.float64)), 'OVERFLOW'),
    34: ('a.img', X.tobytes(), 'NO_PAIR'), '34b': ('a.hdr', RAW[:348], 'NO_PAIR'), '35m': ('a.nii', nifti(magic=b'ni1'), 'HEADER'), '35o': ('a.nii', nifti(vox_offset=np.nan), 'HEADER'),
    '35p': ('a.nii', nifti(vox_offset=-16), 'HEADER'), '35q': ('a.mgz', Z(b'\0\0\0\2'+bytes(400)), 'HEADER'), '35r': ('a.mgh', b'\0\0\0\1', 'SHORT_DATA'),
}

WARNED = {20: ('a.nii', nifti(X[...,None]), 'SQUEEZED'), 24: ('a.nii', nifti(**pix(-2,2,2)), 'PIXDIM'), 27: ('a.nii', nifti(sform_code=0), 'NO_ORIENTATION'),
          10: ('a.nii.gz', GZ+b'junk', 'GZ_JUNK'), '28w': ('a.nii', nifti(qform_code=1, qoffset_x=-20, qoffset_y=-33, qoffset_z=-10), 'QS_DIFFER')}

SOUND = {'slope 0': nifti(scl_slope=0), 'slope nan': nifti(scl_slope=np.nan, scl_inter=3), 'big-endian': nifti(endian='>'), 'nifti-2': nifti(cls=nib.Nifti2Image),
         'nifti-2 big-endian': nifti(cls=nib.Nifti2Image, endian='>'), 'qfac 0': nifti(sform_code=0, qform_code=1, qoffset_x=-20, qoffset_y=-30, qoffset_z=-10, pixdim=[0,2,2,2,0,0,0,0]),
         **{k: nifti(X.astype(k)) for k in ('u1', 'i2', '>i2', 'i4', 'f8', 'i8', 'u2', 'u4', 'u8')}, 'scaled': nifti((X-20).astype(np.int16), scl_slope=1, scl_inter=20)}


# ---------------------------------------------------------------- the catalogue: every bad input we know of, and what becomes of it
class Case:
    def __init__(self, n, level, what, outcome, run): self.n,self.level,self.what,self.outcome,self.run = str(n),level,what,outcome,run
    @property
    def number(self): return int(re.match(r'\d+', self.n)[0])
    def __repr__(self): return f'{self.level}-{self.n}'

CASES = []

def case(n, level, what, outcome):
    "Register a function (folder) -> what is said; it asserts the outcome by itself"
    def add(f): CASES.append(Case(n, level, what, outcome, f)); return f
    return add

def refused(do, *says, kind=Problem):
    "The message of a refusal: where, found, expected, remedy, in one paragraph"
    try: do()
    except kind as e:
        for s in says: assert s in str(e), (s, str(e))
        assert e.found and e.expected and e.remedy and '; expected ' in str(e) and '\n' not in str(e).strip(), str(e)
        return str(e)
    raise AssertionError('it was accepted')

# -- files
FILES = {1: 'file cut in half', 2: 'the last bytes are missing', 3: 'CRC in the trailer flipped', 4: 'length in the trailer flipped', 6: 'zero bytes', 7: 'not a scan: noise, DICOM, zip, text, a git-LFS pointer',
    8: 'a web page saved as a scan', 9: 'the ending and gzip disagree', 11: 'data shorter than the header says', 12: 'data longer than the header says', 13: 'a header of 108 TB', 14: 'a gzip bomb', 15: 'no dimensions, or one of 0',
    16: 'a negative dimension', 17: 'NaN or Inf voxels', 18: 'constant voxels, or all range in one of them', 19: 'a slice', 21: 'several volumes', 22: 'colours', 23: 'complex or unknown voxels', 25: 'zero spacing', 26: 'spacing NaN or Inf',
    28: 'qform, sform and pixdim disagree', 29: 'singular or NaN affine', 30: 'absurd spacing', 31: 'slope Inf, intercept NaN, product above float32', 32: 'float64 values above float32', 34: '.img without .hdr', 35: 'a header field out of range'}

def _cohort(d, name, b):
    "A good scan and one under test, as a manifest"
    (d/'good.nii').write_bytes(RAW)
    if b is not None: (d/name).parent.mkdir(parents=True, exist_ok=True); (d/name).write_bytes(b)
    return empty_manifest([dict(scan_id='a-good', cohort='a', subject='a-good', path='good.nii', dx='CN'), dict(scan_id='a-bad', cohort='a', subject='a-bad', path=name, dx='AD')])

def excluded(d, name, b, code):
    "The scan is named and left out, by the intake and by the cache; the good one goes on; strict stops"
    man = _cohort(d, name, b); kept,seen = intake(man, d); row = seen.loc['a-bad']
    assert row.code==code and row.reason and row.remedy==CODES[code][1] and list(kept.index)==['a-good'] and seen.code['a-good']=='OK'
    cache,out = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache')
    assert list(out.index)==['a-bad'] and out.code['a-bad']==code and len(ScanDataset(man.drop(out.index), cache)[0]['x'])
    for strict in (lambda: intake(man, d, strict=True), lambda: build_cache(man, Recipe('plain', 8), root=d, folder=d/'again', strict=True)):
        said = refused(strict, 'a-bad', name, code, CODES[code][1])
    assert not list(d.rglob('.*.tmp'))
    return said.replace(f'{d}/', '')

def _add_files():
    for n,(name,b,code) in BROKEN.items():
        number = int(re.match(r'\d+', str(n))[0]); CASES.append(Case(n, 'file', FILES[number], f'excluded, {code}', lambda d, name=name, b=b, code=code: excluded(d, name, b, code)))
    for n,(name,b,code) in WARNED.items():
        what = {20: 'one volume in four dimensions', 24: 'negative spacing', 27: 'no orientation', 10: 'junk behind the compressed data', 28: 'qform and sform differ by some mm'}[int(re.match(r'\d+', str(n))[0])]
        def warned(d, name=name, b=b, code=code):
            kept,seen = intake(_cohort(d, name, b), d); assert len(kept)==2 and f'{code}:' in seen.warnings['a-bad']; return next(w for w in seen.warnings['a-bad'].split('; ') if w.startswith(code))
        CASES.append(Case(n, 'file', what, f'read, warned: {code}', warned))
    for n,k,what in ((31, 'slope 0', 'slope 0 or NaN'), ('31n', 'slope nan', 'slope 0 or NaN'), (33, 'big-endian', 'big-endian'), (37, 'i2', 'blanks and other alphabets in the path')):
        def sound(d, k=k, n=n):
            name = 'mit Leerzeichen/ä ö 脑.nii' if n==37 else 'a.nii'; man = _cohort(d, name, SOUND[k]); kept,seen = intake(man, d); assert len(kept)==2 and np.array_equal(load_volume(d/name).data, X); return 'the voxels are those of the file'
        CASES.append(Case(n if n!=31 else '31s', 'file', what, 'read', sound))
_add_files()

@case(5, 'file', 'a byte flipped in the compressed stream', 'excluded, or the voxels are equal')
def flipped(d):
    gz = gzip.compress(RAW, mtime=0); r = np.random.default_rng(5); seen = {}
    for at in r.integers(10, len(gz)-8, 40):
        (d/'a.nii.gz').write_bytes(gz[:at]+bytes([gz[at]^(1<<int(r.integers(8)))])+gz[at+1:])
        try: assert np.array_equal(load_volume(d/'a.nii.gz').data, X); code = 'equal'
        except ScanError as e: code = e.code
        seen[code] = seen.get(code, 0)+1
    assert sum(seen.values())==40 and set(seen)<={'GZ_CRC', 'GZ_TRUNCATED', 'equal'} and seen.get('equal', 0)<4
    return ', '.join(f'{k} {v}' for k,v in sorted(seen.items()))

@case(35, 'file', 'a folder, nothing, or a link in a circle', 'excluded, MISSING or IS_FOLDER')
def nowhere(d):
    (d/'folder.nii').mkdir(); (d/'loop.nii').symlink_to('loop.nii'); man = _cohort(d, 'gone.nii', None); said = []
    for name,code in (('gone.nii', 'MISSING'), ('folder.nii', 'IS_FOLDER'), ('loop.nii', 'MISSING')):
        man.loc['a-bad', 'path'] = name
        if name=='loop.nii': said.append(refused(lambda: intake(man, d), 'circle')); continue
        kept,seen = intake(man, d); assert seen.code['a-bad']==code and list(kept.index)==['a-good']; said.append(code)
    return said[0]+', '+said[1]+'; the circle stops: '+said[2].replace(f'{d}/', '')[-60:]

@case(36, 'file', 'no right to read, or no regular file', 'excluded, UNREADABLE')
def unreadable(d):
    man = _cohort(d, 'pipe.nii', None); os.mkfifo(d/'pipe.nii'); kept,seen = intake(man, d); assert seen.code['a-bad']=='UNREADABLE' and len(kept)==1
    if os.geteuid(): (d/'locked.nii').write_bytes(RAW); (d/'locked.nii').chmod(0); assert qc_file(d/'locked.nii')['code']=='UNREADABLE'
    return seen.reason['a-bad']

# -- manifests
HEAD = 'scan_id,cohort,subject,session,age,sex,dx,site,path\n'
ROWS = HEAD+'001,a,a-1,1,63,F,CN,NA,a/1.nii\n002,a,a-1,2,64,F,MCI,None,a/2.nii\n003,a,a-2,1,70.25,M,AD,null,a/3.nii\n'

def table(d, text, encoding='utf-8'): p = d/'my.csv'; p.write_bytes(text if isinstance(text, bytes) else text.encode(encoding)); return p
def swap(old, new): i = ROWS.rindex(old); return ROWS[:i]+new+ROWS[i+len(old):]

def _manifest(n, what, text, *says, encoding='utf-8', **kw):
    CASES.append(Case(n, 'manifest', what, 'refused', lambda d: refused(lambda: read_manifest(table(d, text, encoding), **kw), 'my.csv', *says, kind=ManifestError).replace(f'{d}/', '')))
def _accepted(n, what, text, check, encoding='utf-8', **kw):
    def run(d): m = read_manifest(table(d, text, encoding), **kw); assert check(m); return f'{len(m)} rows'
    CASES.append(Case(n, 'manifest', what, 'read', run))

same = lambda m: list(m.index)==['001', '002', '003'] and list(m.site)==['NA', 'None', 'null'] and list(m.age)==[63, 64, 70.25]
_accepted(38, 'a byte-order mark', ROWS, same, 'utf-8-sig')
_accepted(39, 'line ends of Windows or of old Macs', ROWS.replace('\n', '\r\n'), same); _accepted('39b', 'line ends of Windows or of old Macs', ROWS.replace('\n', '\r'), same)
_accepted(40, 'semicolons, and commas as decimal points', ROWS.replace(',', ';').replace('70.25', '70,25'), same)
_manifest(41, 'a row with too many or too few cells', ROWS+'4,a,a-4,1,63,5,F,CN,s,x.nii\n', 'line 5', '10 cells'); _manifest('41b', 'a row with too many or too few cells', ROWS+'4,a\n', 'line 5', '2 cells')
_manifest(42, 'Latin-1', (ROWS+'4,a,a-4,1,63,F,CN,K\xf6ln,x.nii\n').encode('latin-1'), 'line 5', 'CSV UTF-8'); _manifest('42b', 'UTF-16', ROWS, 'CSV UTF-8', encoding='utf-16')
_accepted(43, 'ids with leading zeros', ROWS, same); _accepted(44, 'a site called NA, None or null', ROWS, same)
for n,t,says in ((45, '1941-02-03', 'Dates identify'), ('45b', '19410203', 'Dates identify'), ('45c', '1941', 'year of birth'), ('45d', '756', 'months'), (46, 'inf', 'Give years'), ('46b', '1e400', 'Give years'), ('46c', '-1', 'Give years')):
    _manifest(n, {45: 'a date or a year of birth as age', 46: 'an age without end, or below 0'}[int(str(n)[:2])], swap('70.25', t), says, "scan '003', column age")
_accepted('45u', 'ages with a unit', swap('70.25', '063Y'), lambda m: m.age['003']==63); _accepted('45k', 'ages with a decimal comma', ROWS.replace(',', ';').replace('70.25', '63,5'), lambda m: m.age['003']==63.5)
_manifest(47, 'sex as an unexplained number', swap('M,AD', '2,AD'), 'sex={'); _accepted('47b', 'sex as words or explained numbers', ROWS.replace(',F,', ',2,').replace(',M,', ',male,'), lambda m: list(m.sex)==['F', 'F', 'M'], sex={'2': 'F'})
_manifest(48, 'a misspelt diagnosis', swap('AD,', 'Alzhimer,'), "Did you mean 'AD'?"); _manifest('48b', 'a misspelt diagnosis', swap('AD,', 'ad ,'), "Did you mean 'AD'?")
_manifest(49, 'a column twice', ROWS.replace('session', 'age'), "'age' twice")
_manifest(50, 'a scan or a file twice', swap('003', '001'), 'each scan_id once'); _manifest('50b', 'a scan or a file twice', swap('a/3.nii', 'a/2.nii'), 'each file in one row')
_manifest(52, 'one session, two diagnoses; a subject of two sexes; an age that falls', swap('2,64', '1,63'), 'one diagnosis for one session'); _manifest('52b', 'one session, two diagnoses; a subject of two sexes; an age that falls', swap('2,64,F', '2,64,M'), 'one sex')
_manifest('52c', 'one session, two diagnoses; a subject of two sexes; an age that falls', swap('2,64', '2,60'), 'grows from session')
for n,t in ((53, '../../etc/passwd'), ('53b', '/etc/passwd'), ('53c', 'C:\\\\x.nii'), ('53d', 'https://x/y.nii'), ('53e', '~/x.nii')): _manifest(n, 'a path that leads out of the data root', swap('a/3.nii', t), 'below it')
_manifest(55, 'an empty table', b'', 'an empty file'); _manifest('55b', 'an empty table', HEAD, 'a header without rows'); _manifest('55d', 'an empty table', '', 'an empty file', encoding='utf-8-sig'); _manifest('55e', 'no table at all', 'x'*140_000, 'no header'); _manifest('55c', 'a workbook', b'PK\3\4'+bytes(99), 'workbook')
for n,t in ((56, '<b>3</b>'), ('56b', '$x^2$'), ('56c', '"a\nb"'), ('56d', '<script>x</script>')): _manifest(n, 'ids with markup or line breaks', swap('003', t), 'letters, digits')

@case('50s', 'manifest', 'one subject in two parts', 'refused')
def two_parts(d): return refused(lambda: check_disjoint(read_manifest(table(d, ROWS)).assign(split=['train', 'test', 'train'])), "'a-1'", 'each person in one split', kind=LeakError)

@case(51, 'manifest', 'one scan under two ids: recompressed, turned, header edited', 'found, counted as one person')
def twice(d):
    img = nib.Nifti1Image(X[::-1].astype('>i2'), MM@np.array([[-1,0,0,10],[0,1,0,0],[0,0,1,0],[0,0,0,1.]])); img.header['descrip'] = b'edited'; nib.save(img, d/'turned.nii.gz')
    man,seen = intake(_cohort(d, 'turned.nii.gz', None), d); dup = duplicates(man); assert len(dup)==2 and people_of(man).nunique()==1 and seen.same_as['a-good']=='a-bad'
    return refused(lambda: check_disjoint(man.assign(split=['train', 'test'])), 'more than one split', kind=LeakError)

@case('53l', 'manifest', 'a link that leads out of the data root', 'refused')
def link(d):
    (d/'root'/'a').mkdir(parents=True); (d/'secret.nii').write_bytes(RAW)
    for n in '12': (d/'root'/'a'/f'{n}.nii').write_bytes(RAW)
    (d/'root'/'a'/'3.nii').symlink_to(d/'secret.nii'); return refused(lambda: read_manifest(table(d, ROWS), root=d/'root'), 'a/3.nii', kind=ManifestError).replace(f'{d}/', '')

@case(54, 'manifest', 'a cell that a spreadsheet would run', 'kept, neutralised in every table that is written')
def formula(d):
    man = read_manifest(table(d, swap('null', '"=HYPERLINK(""x"")"'))); write_manifest(man, d/'out.csv'); assert read_manifest(d/'out.csv').equals(man)
    run = Run('probe', {}, d/'run'); run.write('t.csv', man[['site']]); assert all("'=HYPERLINK" in f.read_text() and ',=' not in f.read_text() for f in (d/'out.csv', d/'run'/'t.csv'))
    return (d/'run'/'t.csv').read_text().splitlines()[-1]

# -- runs
def _net(seed=0):
    torch.manual_seed(seed); e = build_encoder('sfcn', channels=(4,4,4,4,4), n_features=8); return e

def _weights(d, **k): return save_ckpt(d/'w.safetensors', dict(encoder=_net()), dict(epoch=1))

class Full:
    "A disk that is full from some byte on"
    def __init__(self, at): self.left = at
    def __enter__(self):
        self.write = os.fdopen
        def opened(fd, *a, **k):
            f = self.write(fd, *a, **k); put = f.write
            def limited(b):
                self.left -= len(b)
                if self.left<0: raise OSError(errno.ENOSPC, 'No space left on device')
                return put(b)
            class Disk:
                def __enter__(s): return s
                def __exit__(s, *e): f.close()
                def __getattr__(s, k): return limited if k=='write' else getattr(f, k)
            return Disk()
        os.fdopen = opened
    def __exit__(self, *e): os.fdopen = self.write

@case(57, 'run', 'the disk is full while a checkpoint is written', 'stopped; the old checkpoint is whole')
def full(d):
    p = _weights(d); before = p.read_bytes()
    with Full(1000): said = refused(lambda: save_ckpt(p, dict(encoder=_net(1)), dict(epoch=2)), 'The disk is full', 'the previous file is untouched')
    assert p.read_bytes()==before and read_ckpt(p)[1]['epoch']==1 and not list(d.glob('.*')); return said.replace(f'{d}/', '')

@case(58, 'run', 'kill -9 while a checkpoint is written', 'the old checkpoint is whole; the half one is swept at the next start')
def killed(d):
    p = _weights(d); before = p.read_bytes(); r,w = os.pipe(); pid = os.fork()
    if not pid:
        try:
            with atomic_write(p) as f: f.write(b'half'); f.flush(); os.write(w, b'x'); time.sleep(60)
        finally: os._exit(0)
    os.read(r, 1); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); os.close(r); os.close(w)
    assert p.read_bytes()==before and len(list(d.glob('.*.tmp')))==1 and sweep(d)==1 and not list(d.glob('.*.tmp')); return '1 temporary file swept'

@case(59, 'run', 'a bit flipped in a checkpoint', 'refused')
def bit(d):
    p = _weights(d); b = bytearray(p.read_bytes()); b[-100] ^= 1; p.write_bytes(b); return refused(lambda: read_ckpt(p), 'sha256', kind=TrainError).replace(f'{d}/', '')

@case(60, 'run', 'junk in place of a checkpoint', 'refused')
def junk(d):
    p = _weights(d); said = ''
    for b in (b'', b'junk'*99, os.urandom(999), b'PK\3\4'+bytes(99)): p.write_bytes(b); said = refused(lambda: read_ckpt(p), 'w.safetensors', kind=TrainError)
    return said.replace(f'{d}/', '')

class Harm:
    def __init__(self, f): self.f = f
    def __reduce__(self): return os.mkdir, (str(self.f),)

@case(61, 'run', 'a pickle that runs code', 'refused, nothing is run')
def harm(d):
    for wrap in ('p', 'pt'):
        f = d/f'w.{wrap}'; f.write_bytes(pickle.dumps(dict(state_dict=Harm(d/'harmed')))) if wrap=='p' else torch.save(dict(state_dict=Harm(d/'harmed')), f)
        said = refused(lambda: convert(f, d/'out')); assert not (d/'harmed').exists() and not (d/'out').exists()
        refused(lambda: read_ckpt(f), kind=TrainError)
    return said.replace(f'{d}/', '')

@case(62, 'run', 'a foreign checkpoint with objects beside the weights', 'refused, nothing is run')
def objects(d): torch.save(dict(state_dict={}, args=argparse.Namespace(lr=1), at=Path('x')), d/'w.pt'); return refused(lambda: convert(d/'w.pt', d/'out')).replace(f'{d}/', '')

@case(63, 'run', 'weights of another architecture, or under another prefix', 'refused; all or nothing is loaded')
def other(d):
    p,net = _weights(d),build_encoder('sfcn', channels=(4,4,4,4), n_features=8); before = encoder_hash(net); said = refused(lambda: load_ckpt(p, encoder=net), 'unexpected', kind=TrainError)
    refused(lambda: load_ckpt(p, module=_net()), '0 of 42 tensors matched', kind=TrainError); assert encoder_hash(net)==before; return said.replace(f'{d}/', '')

@case(64, 'run', 'weights with NaN', 'neither written nor read')
def nan_weights(d):
    net = _net()
    with torch.no_grad(): next(net.parameters())[0] = float('nan')
    return refused(lambda: save_ckpt(d/'w.safetensors', dict(encoder=net), {}), 'finite', kind=TrainError).replace(f'{d}/', '')

@case(65, 'run', 'a cache entry cut, zeroed, filled with junk, or of another scan', 'healed: made again, equal')
def cache(d):
    man = _cohort(d, 'b.nii', nifti(X[::-1].copy())); c,_ = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); row,two = man.iloc[0],man.iloc[1]; f = c.path(row); good = f.read_bytes()
    for bad in (good[:len(good)//2], bytes(len(good)), b'', os.urandom(300), c.path(two).read_bytes()): f.write_bytes(bad); read(c, row); assert f.read_bytes()==good
    save_volume(Volume(X+1, MM), d/'good.nii'); assert build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache')[0].path(row)!=f, 'a changed file has an entry of its own'
    assert build_cache(man, Recipe('plain', 9), root=d, folder=d/'cache')[0].path(row).parent!=f.parent; return '5 damages healed; a changed file and a changed recipe get entries of their own'

@case(66, 'run', 'two processes write one entry', 'both succeed, one whole entry')
def two_writers(d):
    man = _cohort(d, 'b.nii', nifti(X[::-1].copy())); pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            try: [build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache') and [f.unlink(missing_ok=True) for f in (d/'cache').rglob('*.b2nd')] for _ in range(5)]; os._exit(0)
            except BaseException: os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]==[0, 0, 0]; c,_ = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); v = verify_cache(c); assert v['entries']==2 and not v['damaged'] and not list(d.rglob('.*.tmp')); return '3 processes, 5 rounds, no damage'

@case(67, 'run', 'a worker that builds the cache is killed', 'stopped; what is made is kept')
def worker(d):
    import neurossl.data as data
    man,make,start = _cohort(d, 'b.nii', RAW),data._results,data.START_S
    from concurrent.futures.process import BrokenProcessPool
    class Dead:
        def __init__(self, *a, **k): pass
        def __call__(self, todo): raise BrokenProcessPool('A process was terminated abruptly')
    import joblib; old = joblib.Parallel; rows = [r for _,r in man.iterrows()]*4
    try: joblib.Parallel = Dead; data.START_S = -1; said = refused(lambda: list(data._results(data.Cache(d/'cache', Recipe('plain', 8), d), rows, 2)), 'killed', 'fewer jobs')
    finally: joblib.Parallel,data.START_S = old,start
    assert list((d/'cache').rglob('*.b2nd')); return said

@case(68, 'run', 'a scan vanishes while the network learns', 'stopped, the scan is named')
def vanished(d):
    man = _cohort(d, 'b.nii', nifti(X[::-1].copy())); c,_ = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); ds = ScanDataset(man, c, memory_gib=0); (d/'b.nii').unlink(); c.path(man.iloc[1]); [f.unlink() for f in c.folder.glob('a-bad*')]
    return refused(lambda: list(loader(ds, 1, workers=2)), 'a-bad', 'MISSING').replace(f'{d}/', '')

@case(69, 'run', 'workers that share a generator repeat each other', 'every draw has a seed of its own')
def draws(d):
    from neurossl.augment import item_seed
    seeds = {item_seed(s, e, i, v) for s in range(3) for e in range(3) for i in ('a', 'b', 'c') for v in range(2)}; assert len(seeds)==54; return '54 draws, 54 seeds'

@case(70, 'run', 'another number of workers, another stream', 'the same batches with 0, 1, 2 and 4')
def workers(d):
    man = _cohort(d, 'b.nii', nifti(X[::-1].copy())); c,_ = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); ds = ScanDataset(man, c, memory_gib=0)
    got = [digest([[b['scan_id'], b['x'].numpy()] for e in range(3) for b in loader(ds, 1, seed=1, epoch=e, workers=w)]) for w in (0, 1, 2, 4)]; assert len(set(got))==1; return '1 hash of 4 streams'

class Blobs:
    "Noise whose brightness is the age"
    cache = SimpleNamespace(recipe=SimpleNamespace(key='blobs-32'))
    def __init__(self, n, bad=()): self.bad,self.man = bad,empty_manifest([dict(scan_id=f'scan-{i:03d}', cohort='c', subject=f'c-{i:03d}', age=50.+i%30, sex='F', split='train', synthetic=True) for i in range(n)])
    def __len__(self): return len(self.man)
    def batch(self, idx):
        ids = [self.man.index[i] for i in idx]; x = torch.stack([torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(int(i[5:])))*(50+int(i[5:])%30)/80 for i in ids])
        for j,i in enumerate(ids):
            if i in self.bad: x[j,0,0,0,0] = float('nan')
        return dict(x=x, scan_id=ids, age=torch.tensor([50.+int(i[5:])%30 for i in ids]))

@case(71, 'run', 'a loss that is not finite', 'stopped, the scans are named, the last good checkpoint is kept')
def nan_loss(d):
    net = _net(); task = build_task('age', 8, Blobs(12).man)
    class Late(Blobs):
        def batch(self, idx): self.seen = getattr(self, 'seen', 0)+1; self.bad = ('scan-003',) if self.seen>8 else (); return super().batch(idx)
    said = refused(lambda: fit(net, task, Late(12), None, TrainConfig(epochs=9, batch=4), d/'run'), 'not finite: scan-003', 'last good checkpoint', kind=TrainError)
    assert read_ckpt(d/'run'/'checkpoint.safetensors')[1]['epoch']>=1 and not (d/'run'/'weights.safetensors').exists(); return said

def _people(n, dx): return empty_manifest([dict(scan_id=f'a-{i}', cohort='a', subject=f'a-{i}', dx=dx[i%len(dx)], age=60., sex='F') for i in range(n)])

@case(72, 'run', 'one class in a fold', 'refused')
def one_class(d): return refused(lambda: subject_folds(_people(8, ['CN']), 2), 'class')
@case(73, 'run', 'fewer people than folds', 'refused')
def few(d): return refused(lambda: subject_folds(_people(3, ['CN', 'AD']), 5), 'Use fewer folds')
@case(74, 'run', 'a GPU that is not there, or without memory', 'refused; a batch size is advised')
def gpu(d):
    if not torch.cuda.is_available(): refused(lambda: device('cuda'), "device='auto'")
    class Oom(Blobs):
        def batch(self, idx): raise torch.OutOfMemoryError('CUDA out of memory')
    return refused(lambda: fit(_net(), build_task('age', 8, Blobs(12).man), Oom(12), None, TrainConfig(epochs=1, batch=8), d/'run'), 'Try batch=4', kind=TrainError)
@case(75, 'run', 'a download that was interrupted', 'refused by its sha256')
def download(d): (d/'w.pt').write_bytes(b'half'); return refused(lambda: load_foreign(d/'w.pt', sha256='0'*64), 'sha256').replace(f'{d}/', '')
@case(76, 'run', 'a clock that was set back', 'no date of a file is trusted')
def clock_back(d):
    man = _cohort(d, 'b.nii', nifti(X[::-1].copy())); c,_ = build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); f = c.path(man.iloc[0]); future = time.time()+9e6
    for g in (f, d/'good.nii'): os.utime(g, (future, future))
    at = f.stat().st_ino; build_cache(man, Recipe('plain', 8), root=d, folder=d/'cache'); assert f.stat().st_ino==at
    (d/'.x.elsewhere-1.a.tmp').write_text(''); os.utime(d/'.x.elsewhere-1.a.tmp', (future, future)); assert sweep(d)==1; return 'the entry is used, a temporary file from the future is swept'

# -- notebooks
def _template(d, first, *cells):
    cells = [nbformat.v4.new_code_cell(first, metadata=dict(tags=['parameters'])), *map(nbformat.v4.new_code_cell, cells)]; nbformat.write(nbformat.v4.new_notebook(cells=cells), d/'t.ipynb'); return d/'t.ipynb'

def failing(d, first, *cells, says=(), timeout=None, kind=Exception, **params):
    "A notebook that does not come to its end: no output under its name"
    try: run_notebook(_template(d, first, *cells), d/'out.ipynb', params, timeout)
    except kind as e: said = str(e)
    else: raise AssertionError('it ran')
    assert not (d/'out.ipynb').exists() and not list(d.glob('*.part.ipynb')) and not (d/'run.json').exists(); assert all(s in said for s in says), said
    return re.sub(r'\x1b\[[0-9;]*m', '', said).strip().splitlines()[-1][:160]

P = 'epochs: int = 2\nlr: float = .1\nflag: bool = False\nname: str = "a" # one of a | b'
for n,what,params,says in ((77, 'an unknown parameter', dict(epoch=1), "Did you mean 'epochs'"), (79, "the text 'false' for a switch", dict(flag='false'), "'false' (str)"), (80, 'a value of another kind', dict(epochs=2.5), '2.5 (float)'),
                           ('80b', 'a value of another kind', dict(lr='abc'), "'abc' (str)"), ('80c', 'a choice that does not exist', dict(name='c'), 'a | b')):
    CASES.append(Case(n, 'notebook', what, 'refused before a kernel starts', lambda d, params=params, says=says: failing(d, P, says=(says,), kind=ParameterError, **params)))

@case(78, 'notebook', 'no cell tagged parameters', 'refused before a kernel starts')
def untagged(d): nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('x = 1')]), d/'t.ipynb'); return refused(lambda: run_notebook(d/'t.ipynb', d/'out.ipynb', {}), 'no cell with the tag', kind=ParameterError).replace(f'{d}/', '')
@case(81, 'notebook', 'braces in the path of the output', 'written as it stands')
def braces(d): run_notebook(_template(d, 'x: int = 1', 'x'), d/'{x}'/'o.ipynb', {}); assert (d/'{x}'/'o.ipynb').exists(); return '{x}/o.ipynb'
@case(82, 'notebook', 'no folder for the output', 'made')
def folder(d): run_notebook(_template(d, 'x: int = 1', 'x'), d/'a'/'b'/'o.ipynb', {}); assert (d/'a'/'b'/'o.ipynb').exists(); return 'a/b/o.ipynb'
@case(83, 'notebook', 'a cell raises', 'stopped; kept as .failed.ipynb')
def raises(d): said = failing(d, 'x: int = 1', '1/0', says=('ZeroDivisionError',)); assert (d/'out.failed.ipynb').exists(); return said
@case(84, 'notebook', 'the kernel dies', 'stopped; kept as .failed.ipynb')
def dies(d): return failing(d, 'x: int = 1', 'import os; os._exit(3)', '"never"')
@case(85, 'notebook', 'a cell takes too long', 'stopped')
def slow(d): return failing(d, 'x: int = 1', 'import time; time.sleep(60)', timeout=2)
@case(86, 'notebook', 'sys.exit(0) in a cell', 'stopped')
def leaves(d): return failing(d, 'x: int = 1', 'import sys; sys.exit(0)', '"never"')

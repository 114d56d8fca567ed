"A canary cohort goes through the pipeline and the site; then every byte that was produced is opened, down to the last layer, and the canary is nowhere"
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from fixture_study import TINY, call, home_of, write_template
from neurossl.checkpoint import read_ckpt
from neurossl.cohorts import index_bids
from neurossl.core import Problem, read_json, write_json
from neurossl.data import build_cache
from neurossl.kept import GROUPED, LIGHT, packed
from neurossl.manifest import ManifestError, cohort_table, empty_manifest, harmless, read_manifest, write_manifest
from neurossl.phantom import phantom, phantom_cohort, sample_latents
from neurossl.policy import admitted, blank, card_of, masked, named, names_in, pictures, policy_of, policy_of_run, private_key, pseudonym, read_cards, secret_words, whois
from neurossl.preprocess import Recipe
from neurossl.release import export_weights
from neurossl.run import Run, run_notebook
from neurossl.scan import find, look, scan
from neurossl.splits import contamination, people_of

ROOT = Path(__file__).resolve().parents[1]
NAME,BORN,HEADER,CELL = 'CanaryJane','1941-02-03','CANARYHDR',"=cmd|'/C calc'!A0"
NEEDLES = [NAME, BORN, BORN.replace('-', ''), HEADER, "cmd|'/C calc", '<script>canary']


def canary_scan(path, i, size=32):
    "A phantom whose header tells everything"
    v = phantom(sample_latents(9, i, 'clinical_a', dx=('CN', 'AD')[i%2]), size); img = nib.Nifti1Image(v.data.astype(np.float32), v.affine); h = img.header
    h['descrip'],h['aux_file'],h['db_name'] = f'{HEADER} {NAME}'.encode(),HEADER.encode(),NAME.encode()
    h.extensions.append(nib.nifti1.Nifti1Extension('comment', f'{NAME} {BORN} <script>canary()</script>'.encode())); path.parent.mkdir(parents=True, exist_ok=True); nib.save(img, path)

@pytest.fixture(scope='module')
def canaries(tmp_path_factory):
    "Fourteen people in BIDS, two scanned twice, one file cut in half; a table with a birth date, a formula and a script"
    root = tmp_path_factory.mktemp('given')/'memory'; rows = []
    for i in range(14):
        for ses in (1, 2) if i<2 else (1,): f = root/f'sub-{NAME}{i}'/f'ses-{ses:02d}'/'anat'/f'sub-{NAME}{i}_ses-{ses:02d}_T1w.nii.gz'; canary_scan(f, i)
        rows.append((f'sub-{NAME}{i}', 60+i, 'FM'[i%2], ('CN', 'AD')[i%2], CELL, BORN, '<script>canary()</script>'))
    f.write_bytes(f.read_bytes()[:f.stat().st_size//2])
    pd.DataFrame(rows, columns=['participant_id', 'age', 'sex', 'diagnosis', 'site', 'birth_date', 'note']).to_csv(root/'participants.tsv', sep='\t', index=False)
    return root


def test_the_canary_is_really_there(canaries):
    assert {n for _,_,n in find([canaries], NEEDLES)}>={NAME, BORN, HEADER, '<script>canary', "cmd|'/C calc"}
    man = index_bids(canaries); assert man.site.eq(CELL).all() and all(NAME in i for i in man.index)

GRIDS = dict(a=dict(title='A', template='pretrain', id='{arm}', arms=dict(age=dict(task='age')), base=dict(manifest='cohort.csv', cohort='memory', data='given'), axes=dict(seed=[0])),
             b=dict(title='B', template='probe', id='p', base=dict(features=['encoder', 'random-init'], manifest='cohort.csv', data='given', pretrain='runs/tiny/a/age'), needs='a', axes=dict(seed=[0])))

@pytest.mark.slow
def test_the_canary_appears_nowhere(canaries, tmp_path):
    "Index, cache, pretraining, probe, real, tables, report, site, keep and a notebook that fails"
    home = home_of(tmp_path/'home', GRIDS); (home/'given').symlink_to(canaries); man = index_bids(canaries, cohort='memory'); write_manifest(man, home/'cohort.csv')
    card_of(home/'cohort.csv').write_text('memory: {policy: protected}')
    p = call(home, 'neurossl.study', 'study', 'tiny', '1'); said = p.stdout+p.stderr+(home/'runs'/'snakemake.log').read_text()
    assert p.returncode==0, said[-3000:]+''.join(f.read_text()[-1500:] for f in (home/'runs').rglob('*.log'))
    q = call(home, 'neurossl.study', 'real', 'tiny', '1', 'given', 'protected') if (home/'nbs'/'experiments'/'grids'/'s1-pretext.yaml').exists() else call(home, 'neurossl.run', 'real', 'results/real/r.ipynb', 'profile=tiny', 'scans=given', 'pretrain=runs/tiny/a/age', 'out=runs/tiny/real/r')
    assert q.returncode==0, q.stderr[-2000:]
    write_template(home, 'slip', 'manifest: str = ""\nprofile: str = "tiny"\nout: str = ""', 'from neurossl.manifest import read_manifest\nman = read_manifest(manifest)\nprint(man.index[0])', f'raise ValueError("no scan of "+man.subject.iloc[3]+" in "+man.path.iloc[3])')
    s = call(home, 'neurossl.run', 'slip', 'results/slip/slip.ipynb', 'manifest=cohort.csv'); assert s.returncode==1 and (home/'results'/'slip'/'slip.failed.ipynb').exists()
    k = call(home, 'neurossl.study', 'keep', 'tiny'); assert k.returncode==0, k.stderr
    made = [home/d for d in ('runs', 'results', '_site', 'nbs/report/results', '.snakemake')]; (tmp_path/'said.txt').write_text(said+q.stdout+q.stderr+s.stdout+s.stderr+k.stdout)
    n = [f for d in made for f in d.rglob('*') if f.is_file()]
    assert len(n)>60 and (home/'_site'/'index.html').exists() and list((home/'_site').rglob('p.html')), 'there is something to look at'
    found = find([*made, tmp_path/'said.txt'], NEEDLES); assert not found, found[:10]
    print(f"\nprivacy: {len(n)} files, {sum(f.stat().st_size for f in n)/2**20:.1f} MiB opened to the last layer; the canary was found {len(found)} times")
    runs = [read_json(f) for f in (home/'runs').rglob('run.json')]; assert len(runs)==3 and all(r['policy']=='protected' for r in runs)
    assert not [f for f in (home/'nbs'/'report'/'results').rglob('*') if 'predictions' in f.name] and not any(set(packed(f.parent)['tables'])-set(GROUPED) for f in (home/'runs').rglob('run.json'))
    assert read_ckpt(home/'runs'/'tiny'/'a'/'age'/'weights.safetensors')[1]['policy']=='protected'
    with pytest.raises(Problem, match='protected=True'): export_weights(home/'runs'/'tiny'/'a'/'age', tmp_path/'w.safetensors')
    out = pd.read_csv(home/'runs'/'tiny'/'a'/'age'/'excluded.csv'); assert out.code.tolist()==['GZ_TRUNCATED']
    assert [r[0] for r in whois(man, out.scan_id[0], private_key(home/'runs'/'private.key'))]==[f'memory-sub-{NAME}13_ses-01'], 'whoever holds the key finds the file'
    v = call(home, 'neurossl.verify'); assert [l for l in v.stdout.splitlines()[1:] if 'slip' not in l and ' file' not in l]==[], v.stdout
    v = call(home, 'neurossl.scan', 'results', '_site'); assert v.returncode==0, v.stdout

def notebook(home, *cells): write_template(home, 't', 'manifest: str = ""', *cells); return home/'nbs'/'experiments'/'t.ipynb'

@pytest.fixture
def small(tmp_path, monkeypatch, canaries):
    home = home_of(tmp_path/'home', {}); write_manifest(index_bids(canaries, cohort='memory'), home/'cohort.csv'); monkeypatch.setenv('NEUROSSL_HOME', str(home)); return home

def test_a_notebook_that_names_somebody_is_not_kept(small):
    nb = notebook(small, 'from neurossl.manifest import read_manifest\nread_manifest(manifest).index[0]'); out = small/'results'/'o.ipynb'
    with pytest.raises(Problem, match='names of participants'): run_notebook(nb, out, dict(manifest='cohort.csv'))
    assert not list(small.joinpath('results').iterdir())
    card_of(small/'cohort.csv').write_text('memory: {policy: open}'); run_notebook(nb, out, dict(manifest='cohort.csv'))
    assert find([out], [NAME]), 'an open cohort may be shown: the search can find it'

def test_a_failed_notebook_is_kept_without_names(small):
    nb = notebook(small, 'from neurossl.manifest import read_manifest\nman = read_manifest(manifest); print(man.path.iloc[2])\nraise KeyError(man.index[1])')
    with pytest.raises(Problem, match='KeyError') as e: run_notebook(nb, small/'results'/'o.ipynb', dict(manifest='cohort.csv'))
    assert NAME not in str(e.value) and [f.name for f in (small/'results').iterdir()]==['o.failed.ipynb'] and not find([small/'results'], [NAME]) and '…' in (small/'results'/'o.failed.ipynb').read_text()

def test_pseudonyms(small):
    man,key = read_manifest(small/'cohort.csv'),private_key(small/'k'); a,b,c = masked(man, key),masked(man.sample(frac=1, random_state=0), key),masked(man, bytes(32))
    assert a.equals(b.loc[a.index]) and not set(a.index)&set(c.index) and people_of(a).nunique()==people_of(man).nunique()==14
    assert not named(a.drop(columns=['path', 'mask']).to_csv(), names_in(man)) and (a.path==man.path.to_numpy()).all() and (a.sex==man.sex.to_numpy()).all()
    adni = lambda c, i: masked(empty_manifest([dict(scan_id=f'{c}-{i}', cohort=c, subject=f'{c}-{i}')]), key)
    assert list(contamination(adni('adni', '123_S_4567'), adni('copy', '123S4567')).why)==['subject'], 'one person in two copies of ADNI is still one person'
    (small/'k').write_bytes(b'short')
    with pytest.raises(Problem, match='32'): private_key(small/'k')

def test_two_processes_make_one_key(tmp_path):
    code = f"from neurossl.policy import private_key; print(private_key({str(tmp_path/'k')!r}).hex())"
    keys = {p.communicate()[0] for p in [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) for _ in range(3)]}
    assert len(keys)==1 and [f.name for f in tmp_path.iterdir()]==['k'] and (tmp_path/'k').stat().st_mode & 0o777==0o600

@pytest.mark.parametrize('text,says', [('a: {policy: opened}', "Did you mean 'open'"), ('a: open', 'an entry with a policy'), ('adni: {policy: open}', 'terms of use'), ('OASIS-3: {policy: open}', 'terms of use'),
    ('AIBL_2: {policy: open}', 'terms of use'), ('a: {policy: open, term: x}', "Did you mean 'terms'"), ('a: [b', 'not YAML'), ('[]', ''), ('3', 'int')])
def test_cards(tmp_path, text, says):
    card_of(tmp_path/'m.csv').write_text(text)
    if says:
        with pytest.raises(Problem) as e: read_cards(tmp_path/'m.csv')
        assert says in str(e.value)
    else: assert read_cards(tmp_path/'m.csv')=={}

def test_nothing_said_is_protected(tmp_path):
    real = empty_manifest([dict(scan_id='a-1', cohort='a', subject='a-1'), dict(scan_id='b-1', cohort='b', subject='b-1')]); write_manifest(real, tmp_path/'m.csv')
    assert policy_of(real)=='protected' and policy_of(real, dict(a=dict(policy='open')))=='protected' and policy_of(real, dict.fromkeys('ab', dict(policy='open')))=='open'
    ph = phantom_cohort(2, 0, hashes=False); assert policy_of(ph)=='open' and policy_of(pd.concat([ph, real]))=='protected' and policy_of_run({})=='open'
    with pytest.raises(Problem, match='Did you mean'): admitted(real, 'protectd')
    kept = admitted(real, 'open'); assert policy_of(kept)=='open'==policy_of(kept[kept.cohort=='a'].assign(age=3.).drop('a-1'))

def test_small_cells_and_group_pictures():
    people = lambda n, dx, k: [dict(scan_id=f'a-{dx}{i}', cohort='a', subject=f'a-{dx}{i}', dx=dx, age=60.+i, sex='F') for i in range(n)]
    man = empty_manifest(people(4, 'AD', 0)+people(9, 'CN', 0)); man.attrs['policy'] = 'protected'; t = cohort_table(man, by='dx')
    assert t.loc['AD'].tolist()==['<5', '<5', '', '', '', '', ''] and t.loc['CN', 'scans']==9 and cohort_table(man).loc['a', 'AD']=='<5'
    man.attrs = {}; assert cohort_table(man, by='dx').loc['AD', 'scans']==4
    class D:
        def __init__(self, m): self.man = m
        def __len__(self): return len(self.man)
        def __getitem__(self, i): return dict(x=torch.full((1,2,2,2), float(i)))
    assert pictures(D(man[:9]))==[] and len(pictures(D(man)))==1 and len(pictures(D(phantom_cohort(3, 0, hashes=False))))==3

def test_weights_know_whose_they_are(tmp_path):
    from neurossl.encoders import build_encoder
    from neurossl.pretext import build_task
    from neurossl.train import TrainConfig, fit
    from neurossl.data import ScanDataset
    man = phantom_cohort(6, 5, 'population'); cache,_ = build_cache(man, Recipe('s1', size=32), folder=tmp_path/'c')
    for name,synthetic,policy in (('open', True, 'open'), ('closed', False, 'protected')):
        m = man.assign(synthetic=synthetic); net = build_encoder('sfcn', channels=(4,4,4,4,4), n_features=8); fit(net, build_task('age', 8, m), ScanDataset(m, cache), None, TrainConfig(epochs=1, batch=4), tmp_path/name)
        assert read_ckpt(tmp_path/name/'weights.safetensors')[1]['policy']==policy
    assert export_weights(tmp_path/'open', tmp_path/'w.safetensors').exists() and not find([tmp_path/'w.safetensors', tmp_path/'w.json'], [*man.index])
    with pytest.raises(Problem, match='protected=True'): export_weights(tmp_path/'closed', tmp_path/'v.safetensors')
    assert not (tmp_path/'v.safetensors').exists() and export_weights(tmp_path/'closed', tmp_path/'v.safetensors', protected=True).exists()
    assert json.loads((tmp_path/'v.json').read_text())['policy']=='protected'

def test_cache_entries_hold_nothing_of_the_header(canaries, tmp_path, capfd):
    man = masked(index_bids(canaries, cohort='memory'), bytes(32)); cache,out = build_cache(man, Recipe('s1', size=32), root=canaries, folder=tmp_path/'cache')
    assert len(out)==1 and not find([tmp_path/'cache'], NEEDLES) and NAME not in capfd.readouterr().err and len(list(cache.folder.iterdir()))==15

def test_tables_do_not_run(tmp_path):
    t = pd.DataFrame(dict(site=[CELL, '+1 (555)', '@x', '-3.5', 'fine'], n=[-1, 2, 3, 4, 5], arm=['-a', '=1', 'b', '1e-3', '-2']), index=pd.Index(['a', 'b', 'c', 'd', 'e'], name='scan_id'))
    run = Run('probe', {}, tmp_path); run.write('t.csv', t); back = pd.read_csv(tmp_path/'t.csv')
    assert back.site.tolist()==["'"+CELL, "'+1 (555)", "'@x", '-3.5', 'fine'] and back.n.tolist()==[-1, 2, 3, 4, 5] and back.arm.tolist()==["'-a", "'=1", 'b', '1e-3', '-2'] and t.site.iloc[0]==CELL
    assert harmless(t.iloc[:0]).empty

def test_a_script_in_an_id_never_gets_in(canaries):
    with pytest.raises(ManifestError, match='markup|letters'): write_manifest(index_bids(canaries).assign(site='<script>canary()</script>'), canaries/'x.csv')

@pytest.mark.slow # CI runs `make scan` itself
def test_what_the_project_holds_is_clean():
    found = scan(); assert not found, '\n'.join(f'{f.name}: {r}: {w}' for f,r,w in found[:20])

def test_an_archive_that_hides_something_is_a_finding():
    "An encrypted file, a damaged one beside a good one, and streams that do not open; the names and the good file are still read"
    import io, lzma, zipfile
    def zipped(kind=zipfile.ZIP_DEFLATED):
        f = io.BytesIO()
        with zipfile.ZipFile(f, 'w', kind) as z: z.writestr('123_S_4567.txt', bytes(range(256))*20); z.writestr('good.txt', b'by 321_'+b'S_7654')
        return bytearray(f.getvalue())
    hidden = ('archive that cannot be opened', 'zip 123_S_4567.txt'); named = [('participant id', '123_S_'+'4567'), ('participant id', '321_S_'+'7654')]
    assert [r for r in look(bytes(zipped())) if r[0]==hidden[0]]==[] and set(named)<=set(look(bytes(zipped())))
    locked = zipped(); locked[6] |= 1; locked[locked.index(b'PK\1\2')+8] |= 1
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        hurt = zipped(kind); hurt[60:90] = bytes(30); assert set(look(bytes(hurt)))=={hidden, *named}, kind
    assert set(look(bytes(locked)))=={hidden, *named}
    assert look(lzma.compress(b'fine text')[:8]+bytes(60))==[(hidden[0], 'xz')] and look(lzma.compress(b'fine text'))==[]

@pytest.mark.parametrize('b,rule', [(b'see 123_S_4567', 'participant id'), (b'OAS31234_MR_d0001', 'participant id'), (b'date of birth: 1941-02-03', 'date of birth'), (b'"PatientName": "Doe"', 'patient record'),
    (b'open("/home/jane/x")', 'absolute path'), (rb'C:\\Users\\jane\\x', 'absolute path'), (b'<script type="application/vnd.jupyter.widget-state+json">', 'widget state'),
    (b'PK\3\4'+bytes(60), 'archive that cannot be opened')])
def test_rules(b, rule):
    assert [r for r,_ in look(b)]==[rule]
    import base64
    assert rule in [r for r,_ in look(json.dumps(dict(a=base64.b64encode(gzip.compress(b)).decode())).encode())], 'also packed'

def test_before_a_commit_and_in_ci(tmp_path):
    "What the pre-commit configuration starts stops an id that is staged, whatever folder it lies in; CI looks at everything"
    import yaml
    (hook,) = yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text())['repos'][0]['hooks']; words = hook['entry'].split(); assert words[0]=='.venv/bin/python' and hook['always_run'] and not hook['pass_filenames']
    git = lambda *a: subprocess.run(['git', *a], cwd=tmp_path, check=True, capture_output=True); git('init', '-q'); (tmp_path/'nbs').mkdir(); (tmp_path/'settings.ini').write_text('')
    def staged(text): (tmp_path/'nbs'/'a.md').write_text(text); git('add', '.'); return subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env={**os.environ, 'NEUROSSL_HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    p = staged('seen by 123_'+'S_4567'); assert p.returncode==1 and 'nbs/a.md: participant id' in p.stdout
    p = staged('seen by us'); assert p.returncode==0, p.stdout+p.stderr
    assert '\nmake scan\n' in (ROOT/'.ci'/'run').read_text()

def test_words_that_are_no_names(): assert names_in(empty_manifest([dict(scan_id='mem-001', cohort='mem', subject='mem-001', path='001/brain.nii.gz', mask='001/mask.nii')]))=={'mem-001'}
def test_blank_takes_out_the_longest_first(): assert blank('sub-Jane12_T1w and Jane12', {'Jane12', 'sub-Jane12_T1w'})=='… and …'

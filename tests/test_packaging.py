"The package as a user gets it: what is in it, that it installs without the development extras, and that its encoder embeds a scan"
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from neurossl.core import file_sha256
from neurossl.embed import WEIGHTS, embed_folder, embed_scan, main
from neurossl.phantom import phantom, sample_latents
from neurossl.volume import save_volume

ROOT = Path(__file__).resolve().parents[1]
CFG = ConfigParser(delimiters=['=']); CFG.read(ROOT/'settings.ini'); CFG = CFG['DEFAULT']

def brain(i, n=56, **w): return phantom(sample_latents(11, i, 'clinical_a', **w), n)

@pytest.fixture(scope='module')
def bids(tmp_path_factory):
    home = tmp_path_factory.mktemp('bids')
    for i,age in enumerate((58., 70, 82), 1): save_volume(brain(i, dx='CN', age=age), home/f'sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz')
    return home

def test_the_weights_are_those_of_their_run():
    file = WEIGHTS/'age_phantom.safetensors'; card = json.loads((WEIGHTS/'age_phantom.json').read_text())
    assert file.stat().st_size<15e6 and file_sha256(file)==card['sha256'] and b'/home' not in (text := (WEIGHTS/'age_phantom.json').read_bytes()) and b'/tmp' not in text
    kept = [json.loads(l) for l in (ROOT/'nbs/report/results/full/runs.jsonl').read_text().splitlines()]
    run, = [r for r in kept if r['run']=='full/s1-long/age-long-s0']
    assert run['files']['weights.safetensors']==card['sha256'] and run['metrics']['valid_mae_years']==card['history'][-1]['valid_mae_years']

def test_one_line_embeds_a_scan(bids):
    f = bids/'sub-01/anat/sub-01_T1w.nii.gz'; e = embed_scan(f)
    assert e.shape==(64,) and e.dtype==np.float32 and np.isfinite(e).all() and e.equals(embed_scan(str(f))) and not e.equals(embed_scan(bids/'sub-02/anat/sub-02_T1w.nii.gz'))

def test_it_does_not_matter_how_a_scan_is_stored(bids, tmp_path):
    "Turned axes, an offset in space, other intensities: the brain is the same"
    import nibabel as nib
    v = brain(1, dx='CN', age=58.); e = embed_scan(bids/'sub-01/anat/sub-01_T1w.nii.gz'); flip = np.diag([-1., 1, 1, 1]); flip[0,3] = v.shape[0]-1; move = np.eye(4); move[0,3] = 30
    for k,(x,a) in dict(flipped=(v.data[::-1], v.affine@flip), moved=(v.data, move@v.affine), brighter=(v.data*7, v.affine)).items():
        nib.save(nib.Nifti1Image(np.ascontiguousarray(x), a), tmp_path/f'{k}.nii.gz')
        assert np.abs(embed_scan(tmp_path/f'{k}.nii.gz')-e).max()<.05*np.abs(e).max(), k

def test_a_folder_gives_embeddings_exclusions_and_a_page(bids, tmp_path, capsys):
    work = tmp_path/'bids'; shutil.copytree(bids, work); (work/'sub-09/anat').mkdir(parents=True); (work/'sub-09/anat/sub-09_T1w.nii.gz').write_bytes(b'torn')
    main([str(work), str(tmp_path/'out')]); t = pd.read_csv(tmp_path/'out/embeddings.csv', index_col=0); bad = pd.read_csv(tmp_path/'out/excluded.csv'); page = (tmp_path/'out/qc.html').read_text()
    assert t.shape==(3, 64) and len(bad)==1 and page.count('<img')==3 and page.count('alt="sagittal')==3 and 'sub-09' in page and not re.search(r'(src|href)="(?!data:)', page)
    one = embed_scan(work/'sub-01/anat/sub-01_T1w.nii.gz'); assert np.abs(t.iloc[0].values-one.values).max()<.02*np.abs(one).max()

@pytest.mark.parametrize('make, said', [(lambda d: d/'nowhere', 'existing BIDS folder'), (lambda d: d, 'no T1w scan')])
def test_a_wrong_folder_is_one_paragraph(make, said, tmp_path):
    with pytest.raises(SystemExit, match=said): main([str(make(tmp_path)), str(tmp_path/'out')])

def test_a_folder_of_bad_scans_still_says_why(tmp_path):
    (tmp_path/'b/sub-01/anat').mkdir(parents=True); (tmp_path/'b/sub-01/anat/sub-01_T1w.nii.gz').write_bytes(b'')
    assert not len(embed_folder(tmp_path/'b', tmp_path/'o')) and len(pd.read_csv(tmp_path/'o/excluded.csv'))==1 and 'Left out' in (tmp_path/'o/qc.html').read_text()

def test_the_citation_agrees_with_the_settings():
    c = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license', 'date-released', 'repository-code'}<=set(c) and c['version']==CFG['version'] and c['repository-code']==CFG['git_url'] and c['license']=='Apache-2.0'

def test_the_workflow_renders_with_quarto_and_says_it_has_not_run():
    text = (ROOT/'.github/workflows/site.yml').read_text(); w = yaml.safe_load(text); steps = [s.get('uses', s.get('run')) for s in w['jobs']['build']['steps']]
    assert 'Not yet run' in text and any('quarto-actions/setup' in s for s in steps) and 'make site-check' in steps and any('upload-pages-artifact' in s for s in steps)
    assert all(re.search(rf'(?m)^{t}:', (ROOT/'Makefile').read_text()) for t in re.findall(r'make ([a-z-]+)', text))

def test_every_target_has_its_line_of_help():
    text = (ROOT/'Makefile').read_text(); targets = set(re.findall(r'(?m)^([a-z][a-z0-9-]*):(?!=)', text)); said = subprocess.run(['make', 'help'], cwd=ROOT, capture_output=True, text=True).stdout
    assert {'study', 'smoke', 'test', 'site-check', 'browser', 'lab'}<=targets and not [t for t in targets if not re.search(rf'(?m)^{t} +\S', said)]

def test_every_template_has_its_line_of_help():
    said = subprocess.run([sys.executable, '-m', 'neurossl.run', '--help'], cwd=ROOT, capture_output=True, text=True).stdout
    assert not [p.stem for p in (ROOT/'nbs/experiments').glob('*.ipynb') if not re.search(rf'(?m)^ +{p.stem} +\S', said)]

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Wheel and sdist of a copy of the tree"
    home = tmp_path_factory.mktemp('build'); src = home/'src'; src.mkdir()
    for f in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'CITATION.cff', 'constraints.txt'): shutil.copy(ROOT/f, src)
    shutil.copytree(ROOT/'neurossl', src/'neurossl', ignore=shutil.ignore_patterns('__pycache__'))
    p = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(home/'dist'), str(src)], capture_output=True, text=True); assert p.returncode==0, p.stderr[-2000:]+p.stdout[-2000:]
    return next((home/'dist').glob('*.whl')), next((home/'dist').glob('*.tar.gz'))

@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_should(built):
    wheel,sdist = built; names = zipfile.ZipFile(wheel).namelist(); modules = {p.name for p in (ROOT/'neurossl').glob('*.py')}
    assert modules=={Path(n).name for n in names if n.startswith('neurossl/') and n.endswith('.py')} and 'neurossl/weights/age_phantom.safetensors' in names
    assert not [n for n in names if not re.match(r'neurossl(/|-)', n)] and wheel.stat().st_size<15e6
    with tarfile.open(sdist) as t: inside = {n.partition('/')[2] for n in t.getnames()}
    assert {'settings.ini', 'LICENSE', 'CITATION.cff', 'neurossl/weights/age_phantom.safetensors', 'setup.py'}<=inside and not [n for n in inside if n.startswith(('nbs', 'tests'))]

@pytest.mark.slow
def test_it_installs_without_the_development_extras_and_embeds_a_scan(built, bids, tmp_path):
    uv = shutil.which('uv') or str(Path(sys.executable).parent/'uv'); env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'NEUROSSL_HOME')}
    venv = tmp_path/'venv'; subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True); py = venv/'bin/python'
    p = subprocess.run([uv, 'pip', 'install', '-q', '--system-certs', '-c', str(ROOT/'constraints.txt'), str(built[0])], env={**env, 'VIRTUAL_ENV': str(venv)}, capture_output=True, text=True); assert p.returncode==0, p.stderr[-2000:]
    modules = sorted(f.stem for f in (ROOT/'neurossl').glob('[a-z]*.py'))
    code = f'''
import importlib, importlib.util, sys
assert not [m for m in ("nbdev", "fastcore", "pytest", "snakemake", "smalldocs", "jupyterlab") if importlib.util.find_spec(m)], "a development package came along"
for m in {modules}: importlib.import_module("neurossl."+m)
from neurossl.embed import embed_scan
print(*embed_scan(sys.argv[1]).values)'''
    scan = bids/'sub-01/anat/sub-01_T1w.nii.gz'; p = subprocess.run([str(py), '-c', code, str(scan)], cwd=tmp_path, env=env, capture_output=True, text=True); assert p.returncode==0, p.stderr[-3000:]
    assert np.allclose(np.array(p.stdout.split(), float), embed_scan(scan).values, atol=1e-4)
    p = subprocess.run([str(py), '-m', 'neurossl.embed', str(bids), 'out'], cwd=tmp_path, env=env, capture_output=True, text=True); assert p.returncode==0 and (tmp_path/'out/qc.html').exists(), p.stderr[-2000:]

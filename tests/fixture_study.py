"A study at its smallest, in a folder of its own: the real templates, Snakefile and report over grids, profiles and cohorts that a test chooses"
import os, shutil, subprocess, sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(study=dict(population=8, clinical=8, bootstrap=20), pretrain=dict(size=32, n_scans=24, epochs=1, batch=4, precision='fp32'),
            probe=dict(size=32, n_scans=40, n_train=[8], folds=2, bootstrap=20, probes=['knn']), real=dict(size=32))

def home_of(tmp, grids, profiles=None, templates=()):
    "A project folder with these grids; `templates` are notebooks added to the real ones: name -> list of code cells, the first holds the parameters"
    tmp = Path(tmp); (tmp/'nbs'/'experiments'/'grids').mkdir(parents=True); (tmp/'neurossl').symlink_to(ROOT/'neurossl')
    for f in ('settings.ini', '_quarto.yml', 'Snakefile', 'data_manifest.csv'): shutil.copy(ROOT/f, tmp/f)
    for f in (ROOT/'nbs').iterdir():
        if f.suffix in ('.css', '.html', '.bib') or f.name=='index.ipynb': shutil.copy(f, tmp/'nbs'/f.name)
    shutil.copytree(ROOT/'nbs'/'report', tmp/'nbs'/'report', ignore=shutil.ignore_patterns('results')); (tmp/'nbs'/'assets').symlink_to(ROOT/'nbs'/'assets')
    for f in (ROOT/'nbs'/'experiments').glob('*.*'): shutil.copy(f, tmp/'nbs'/'experiments'/f.name)
    for name,cells in dict(templates).items(): write_template(tmp, name, *cells)
    (tmp/'nbs'/'experiments'/'profiles.yaml').write_text(yaml.safe_dump(profiles or dict(tiny=TINY)))
    for name,g in grids.items(): (tmp/'nbs'/'experiments'/'grids'/f'{name}.yaml').write_text(g if isinstance(g, str) else yaml.safe_dump(g, sort_keys=False))
    return tmp

def write_template(home, name, first, *cells):
    new = nbformat.v4; front = new.new_raw_cell(f'---\ntitle: {name}\nskip_exec: true\n---', id='front')
    nb = new.new_notebook(cells=[front, new.new_code_cell(first, id='first', metadata=dict(tags=['parameters'])), *(new.new_code_cell(c, id=f'c{i}') for i,c in enumerate(cells))])
    nbformat.write(nb, Path(home)/'nbs'/'experiments'/f'{name}.ipynb')

def env_of(home, **kw):
    return {**os.environ, 'NEUROSSL_HOME': str(home), 'OMP_NUM_THREADS': '1', 'THP_MEM_ALLOC_ENABLE': '1', 'PYTHONPATH': str(ROOT), 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', **kw}

def call(home, *words, timeout=3600, **kw):
    "python -m ... in that study"
    return subprocess.run([sys.executable, '-m', *words], cwd=home, env=env_of(home, **kw), capture_output=True, text=True, timeout=timeout)

def start(home, *words, **kw): return subprocess.Popen([sys.executable, '-m', *words], cwd=home, env=env_of(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **kw)

"What the README says about your own data works by copy and paste: its blocks are run as they stand, on a fabricated BIDS folder and a fabricated OASIS-3"
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fixture_trees import study
from neurossl.manifest import read_manifest
from neurossl.phantom import phantom, sample_latents
from neurossl.policy import masked, private_key
from neurossl.volume import save_volume

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT/'README.md').read_text(encoding='utf-8')
SECTION = TEXT[TEXT.index('## Use your own data'):TEXT.index('## Read on')]
BLOCKS = [(kind, code) for kind,code in re.findall(r'```(python|sh)\n(.*?)```', SECTION, re.S) if 'make real' not in code]

def test_the_readme_is_the_home_page():
    "The blocks stand in nbs/index.ipynb, from which README.md is written"
    home = '\n'.join(''.join(c['source']) for c in json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells'])
    assert [k for k,_ in BLOCKS]==['python', 'sh']*2 and all(code in home for _,code in BLOCKS)

@pytest.fixture(scope='module', params=['bids', 'oasis3'])
def pasted(request, tmp_path_factory):
    "The folder in which a reader has pasted the two blocks of one cohort, with the paths put in"
    here = tmp_path_factory.mktemp('reader'); (here/'nbs').symlink_to(ROOT/'nbs'); scan = lambda f,i,dx: save_volume(phantom(sample_latents(3, i, 'clinical_a', dx=dx), 32), f)
    data,tables = study(here/'disk', request.param, scan)
    env = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', 'NEUROSSL_HOME': str(here), 'OMP_NUM_THREADS': '1', 'THP_MEM_ALLOC_ENABLE': '1'}
    said = []
    for kind,code in [b for b in BLOCKS if f'/path/to/{request.param}' in b[1]]:
        code = code.replace(f'/path/to/{request.param}', str(data)).replace('/path/to/clinical', str(tables)); assert '/path/to' not in code
        p = subprocess.run([sys.executable, '-c', code] if kind=='python' else ['bash', '-euc', code], cwd=here, env=env, capture_output=True, text=True)
        assert p.returncode==0, p.stderr[-3000:]
        said.append(p.stdout)
    return request.param, here, said

@pytest.mark.slow # .ci/run runs it
def test_the_manifest(pasted):
    name,here,said = pasted; man = read_manifest(here/f'my_{name}.csv')
    assert (len(man), man.subject.nunique())==(20, 16) and man.dx.value_counts().to_dict()=={'CN': 12, 'AD': 8} and man.sha256.ne('').all()
    assert man.sex.isin(['F', 'M']).all() and man.age.between(60, 78).all() and 'indexed' in said[0] and '16' in said[0]

@pytest.mark.slow
def test_the_probe_has_run(pasted):
    name,here,_ = pasted; nb = json.loads((here/f'my_{name}.ipynb').read_text())
    assert not [o for c in nb['cells'] for o in c.get('outputs', []) if o['output_type']=='error']
    done = list((here/'runs').rglob('run.json')); assert len(done)==1 and json.loads(done[0].read_text())['metrics']
    pred = pd.read_parquet(done[0].parent/'predictions.parquet') if (done[0].parent/'predictions.parquet').exists() else pd.read_csv(next(done[0].parent.glob('predictions*')))
    man = read_manifest(here/f'my_{name}.csv')
    assert pred.subject.nunique()<=16 and set(pred.scan_id)<=set(masked(man, private_key(here/'runs'/'private.key')).index) and not set(pred.scan_id)&set(man.index), 'without a card a cohort is protected'

"Real scans: a BIDS folder with a broken file goes through the whole template."
import json, os
from pathlib import Path

import pandas as pd
import pytest
from neurossl.cohorts import index_bids
from neurossl.core import read_json
from neurossl.data import ScanDataset, build_cache
from neurossl.encoders import build_encoder
from neurossl.phantom import phantom, phantom_cohort, sample_latents
from neurossl.policy import whois
from neurossl.preprocess import Recipe
from neurossl.pretext import build_task
from neurossl.run import run_notebook
from neurossl.train import TrainConfig, fit
from neurossl.volume import save_volume

@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    "A run folder with an encoder that has seen eight phantoms"
    tmp = tmp_path_factory.mktemp('encoder'); man = phantom_cohort(8, 5, 'population')
    cache,_ = build_cache(man, Recipe('s1', size=32), folder=tmp/'cache'); ds = ScanDataset(man, cache); net = build_encoder('sfcn')
    fit(net, build_task('age', net.n_features, man), ds, None, TrainConfig(epochs=1, batch=4, lr=1e-3), tmp/'run')
    return tmp/'run'

@pytest.fixture(scope='module')
def bids(tmp_path_factory):
    "Six subjects called canary, the first two scanned twice, the last one's file cut in half"
    root = tmp_path_factory.mktemp('canary_bids')
    (root/'dataset_description.json').write_text('{"Name": "canary", "BIDSVersion": "1.8.0"}')
    rows = []
    for i in range(6):
        lat = sample_latents(9, i, 'clinical_a', dx='CN'); rows.append((f'sub-canary{i}', round(lat['age'], 1), lat['sex'], 'CN'))
        for ses in (1, 2) if i<2 else (1,):
            f = root/f'sub-canary{i}'/f'ses-{ses:02d}'/'anat'/f'sub-canary{i}_ses-{ses:02d}_T1w.nii.gz'
            f.parent.mkdir(parents=True); save_volume(phantom(lat, 64), f)
    pd.DataFrame(rows, columns=['participant_id', 'age', 'sex', 'diagnosis']).to_csv(root/'participants.tsv', sep='\t', index=False)
    f.write_bytes(f.read_bytes()[:f.stat().st_size//2])
    return root

@pytest.mark.parametrize('policy', [pytest.param('protected', marks=pytest.mark.slow), 'open'])
def test_a_folder_with_a_broken_file(bids, encoder, policy, tmp_path):
    run_notebook('real', tmp_path/'real.ipynb', dict(profile='smoke', size=32, scans=str(bids), policy=policy, pretrain=str(encoder), out=str(tmp_path/'run')))
    done = read_json(tmp_path/'run'/'run.json')['metrics']
    assert (done['n_scans'], done['n_subjects'], done['n_excluded'])==(7, 5, 1)
    bad = pd.read_csv(tmp_path/'run'/'excluded.csv')
    assert bad.code.tolist()==['GZ_TRUNCATED'] and ('canary5' in bad.iloc[0, 0])==(policy=='open'), 'under the protected policy the run folder holds pseudonyms'
    if policy=='protected': assert 'canary5' in whois(index_bids(bids), bad.iloc[0, 0])[0][0]
    assert (pd.read_csv(tmp_path/'run'/'ranks.csv')['first']=='4 of 4').all(), 'two scans of the same anatomy are nearest neighbours'
    nb = json.loads((tmp_path/'real.ipynb').read_text())
    shown = json.dumps([c.get('outputs') for c in nb['cells']])
    pictures = sum('image/png' in o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', []))
    if policy=='protected': assert 'canary' not in shown and pictures==0, 'no name and, below ten scans, no picture'
    else: assert 'canary5' in shown and pictures==1

@pytest.mark.skipif('NEUROSSL_SCANS' not in os.environ, reason='NEUROSSL_SCANS is not set: no real scans at hand')
def test_the_real_scans(encoder, tmp_path):
    run_notebook('real', tmp_path/'real.ipynb', dict(profile='smoke', size=32, scans=str(Path(os.environ['NEUROSSL_SCANS'])/'oasis1_bids'), policy='protected', pretrain=str(encoder), out=str(tmp_path/'run')))
    done = read_json(tmp_path/'run'/'run.json')['metrics']
    assert (done['n_scans'], done['n_subjects'], done['n_excluded'])==(19, 17, 0)

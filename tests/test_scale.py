"A hundred thousand scans and a thousand cells: every step below a minute of one core and 2 GB, with its growth; the same grid on one machine and on Slurm"
import json
import math
import os
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fixture_slurm import absent, slurm
from fixture_study import ROOT, TINY, env_of, home_of
from neurossl.cluster import measured, resources
from neurossl.core import read_json, write_json

def step(name, n, tmp):
    "Seconds of one core and MiB of one step in a process of its own"
    p = subprocess.run([sys.executable, __file__, name, str(n), str(tmp)], capture_output=True, text=True, env=env_of(tmp), timeout=3600)
    assert p.returncode==0, p.stderr[-2000:]
    return json.loads(p.stdout.splitlines()[-1])

def rows(n):
    "A manifest of n simulated rows, of people with two or three visits, from five cohorts"
    from neurossl.manifest import empty_manifest
    g = np.random.default_rng(0); who = np.arange(n)//3; cohort = np.array([f'c{k}' for k in range(5)])[who%5]; age0 = g.uniform(50, 85, who.max()+1); sex = np.array(['F', 'M'])[g.integers(0, 2, who.max()+1)]; dx = np.array(['CN', 'MCI', 'AD'])[g.integers(0, 3, who.max()+1)]
    base = empty_manifest([]).reset_index()
    df = pd.DataFrame(dict(scan_id=[f'{c}-{p}_{i%3}' for i,(c,p) in enumerate(zip(cohort, who))], cohort=cohort, subject=[f'{c}-{p}' for c,p in zip(cohort, who)], session=[f'ses-{i%3:02d}' for i in range(n)],
                           path=[f'{c}/{p}/{i}.nii.gz' for i,(c,p) in enumerate(zip(cohort, who))], age=np.round(age0[who]+np.arange(n)%3, 1), sex=sex[who], dx=dx[who], sha256=[f'{i:064x}' for i in range(n)]))
    return df.set_index('scan_id').astype(dict(age=float))

def bids(tmp, n):
    "A BIDS folder of n empty files: the index reads names and tables, not voxels"
    root = Path(tmp)/f'bids{n}'
    if root.exists(): return root
    for i in range(n//2):
        for s in (1, 2): f = root/f'sub-{i:06d}'/f'ses-{s:02d}'/'anat'/f'sub-{i:06d}_ses-{s:02d}_T1w.nii.gz'; f.parent.mkdir(parents=True); f.touch()
    (root/'participants.tsv').write_text('participant_id\tage\tsex\tdiagnosis\n'+''.join(f'sub-{i:06d}\t{60+i%30}\t{"FM"[i%2]}\t{("CN", "AD")[i%2]}\n' for i in range(n//2))); return root

def grid_home(tmp, n):
    home = Path(tmp)/f'grid{n}'
    if not home.exists():
        home_of(home, dict(a=dict(title='A', template='pretrain', id='{arm}-s{seed}', arms={f'a{i}': dict(task='age') for i in range(n//20)}, axes=dict(seed=list(range(10)))),
                           b=dict(title='B', template='probe', id='{arm}-s{seed}', base=dict(features=['encoder']), each=dict(arm='{arm}', pretrain='{out}', seed='{seed}'), needs='a')))
    return home

def predictions(home, n):
    "Finished runs of all probes, with two hundred people each"
    from neurossl.grid import study_cells
    for c in study_cells('tiny'):
        f = home/c['run']; f.mkdir(parents=True, exist_ok=True); m = 200; g = np.random.default_rng(len(c['id'])); y = np.arange(m)%2
        if c['template']=='probe':
            pd.DataFrame(dict(run='', fold=np.arange(m)//2%2, seed=c['params']['seed'], scan_id=[f's{i}' for i in range(m)], subject=[f's{i}' for i in range(m)], split='test', y=y, score=1/(1+np.exp(-(y+g.normal(size=m)))), cohort='clinical_a',
                              arm=c['params']['arm'], saw='x', probe='svc', n_train=50, adjust='none', ad_share='', remedy='', epoch='')).to_csv(f/'predictions.csv', index=False)
        write_json(f/'run.json', dict(run=c['id'], template=c['template'], params=c['params'], metrics={}, files={}, git='x', dirty=False, wall_s=1., python='3', machine='m', packages={}))

def work(name, n, tmp):
    "What is measured; returns what must hold, after the clock has stopped"
    if name=='index': from neurossl.cohorts import index_bids; root = bids(tmp, n); return lambda: len(index_bids(root))==n
    if name in ('write and read', 'check', 'split', 'folds', 'pseudonyms', 'overlap', 'epoch order', 'flow and table'):
        man = rows(n); from neurossl import data, manifest, policy, splits
        if name=='write and read': return lambda: [manifest.write_manifest(man, Path(tmp)/'m.csv'), len(manifest.read_manifest(Path(tmp)/'m.csv'))][1]==n
        full = manifest.check_manifest(man)
        if name=='check': return lambda: len(manifest.check_manifest(man))==n
        if name=='split': return lambda: set(splits.split_subjects(full, .1, .2).split)=={'train', 'valid', 'test'}
        if name=='folds': return lambda: splits.subject_folds(full, 5).nunique()==5
        if name=='pseudonyms': return lambda: len(policy.masked(full, bytes(32)))==n
        if name=='overlap': return lambda: len(splits.contamination(full.iloc[:n//2], full.iloc[n//2+3:]))<9
        if name=='epoch order': return lambda: len(data.epoch_order(list(full.index), 0, 1))==n
        return lambda: len(manifest.cohort_table(full))==5 and len(manifest.flow_table(dict(all=full, first=manifest.subset(full, visits='first'))))==2
    home = grid_home(tmp, n); os.environ['NEUROSSL_HOME'] = str(home)
    if name=='expand': from neurossl.grid import cell_keys, study_cells; return lambda: len(cell_keys(study_cells('tiny')))==n
    if name=='DAG':
        return lambda: subprocess.run([sys.executable, '-m', 'snakemake', '-n', '--quiet', 'all', '--config', 'profile=tiny', '--nolock'], cwd=home, env=env_of(home), capture_output=True, text=True).returncode==0
    predictions(home, n); from neurossl.grid import collect; from neurossl import compare, leaklab, ledger # the clock is for what grows
    return lambda: len(collect('tiny')['runs'])==n

ROWS,CELLS = ('write and read', 'check', 'split', 'folds', 'pseudonyms', 'overlap', 'epoch order', 'flow and table', 'index'),('expand', 'DAG', 'collect')

@pytest.mark.slow
@pytest.mark.parametrize('name', ROWS+CELLS)
def test_a_step_at_full_size(name, tmp_path):
    "Below 60 s and 2 GB, and no worse than n^1.3 from a tenth of the size"
    n = 100_000 if name in ROWS else 1000; part = step(name, n//10, tmp_path); whole = step(name, n, tmp_path)
    power = math.log(max(whole['s'], .05)/max(part['s'], .05))/math.log(10); print(f"scale: {name}: {n:,} in {whole['s']:.1f} s and {whole['mib']:.0f} MiB; growth n^{power:.2f}")
    assert whole['s']<60 and whole['mib']<2048 and (power<1.3 or whole['s']<5), (part, whole)

@pytest.mark.parametrize('name', ROWS[1:4])
def test_a_step_in_small(name, tmp_path): assert work(name, 600, tmp_path)()

def test_resources_come_from_what_was_measured(tmp_path):
    cell = dict(template='pretrain', params=dict(profile='p', size=96), seconds=600); assert resources(cell, root=tmp_path/'none')['mem_mb']>3000 and all(resources(cell, 3, tmp_path/'none')[k]==4*resources(cell, 1, tmp_path/'none')[k] for k in ('mem_mb', 'runtime'))
    for i,(m,s) in enumerate(((5000, 1200.), (3000, 4000.))): write_json(tmp_path/'runs'/'p'/'g'/str(i)/'run.json', dict(template='pretrain', peak_mb=m, wall_s=s))
    write_json(tmp_path/'runs'/'p'/'cohort.json', dict(scans=3, peak_mb=2400, wall_s=900.))
    measured.cache_clear(); assert measured('p', tmp_path)=={'pretrain': (5000, 4000.), 'cohort': (2400, 900.)} and resources(dict(cell, template='cohort'), root=tmp_path)==dict(mem_mb=3600, runtime=46, gpu=0) and resources(cell, root=tmp_path)==dict(mem_mb=7500, runtime=201, gpu=0)
    assert resources(dict(cell, params=dict(profile='gpu')), root=tmp_path/'none')['gpu']==1 and resources(dict(cell, template='confounds', params=dict(profile='gpu')), root=tmp_path/'none')['gpu']==0

def test_the_slurm_profile_is_valid():
    cfg = yaml.safe_load((ROOT/'nbs'/'experiments'/'slurm'/'config.yaml').read_text()); assert cfg['executor']=='slurm' and cfg['rerun-triggers']==['params', 'input'] and 'slurm_partition' in cfg['default-resources']

GRIDS = dict(a=dict(title='A', template='pretrain', id='{arm}-s{seed}', arms=dict(age=dict(task='age')), axes=dict(seed=[0, 1])),
             b=dict(title='B', template='probe', id='{arm}-s{seed}', base=dict(features=['encoder'], cohorts=['clinical_a']), each=dict(arm='{arm}', pretrain='{out}', seed='{seed}'), needs='a'))

@lru_cache
def results_tables(home):
    "What the report is made from, without the seconds that a run took"
    p = subprocess.run([sys.executable, '-c', 'from neurossl.study import tables; tables("tiny")'], cwd=home, env=env_of(home), capture_output=True, text=True); assert p.returncode==0, p.stderr[-2000:]
    return {f.stem: pd.read_csv(f).drop(columns='wall_s', errors='ignore') for f in sorted((home/'results'/'tables'/'tiny').glob('*.csv')) if f.stat().st_size>2}

@pytest.mark.slow
@pytest.mark.skipif(bool(absent()), reason=absent() or 'x')
def test_slurm_gives_the_tables_of_one_machine(tmp_path):
    "Pretraining and probes of phantoms, by `make`'s way here and by the profile on a Slurm of one node; the same tables, byte for byte"
    here,there = (home_of(tmp_path/n, GRIDS) for n in ('here', 'there')); profile = there/'nbs'/'experiments'/'slurm'; profile.mkdir(exist_ok=True)
    (profile/'config.yaml').write_text((ROOT/'nbs'/'experiments'/'slurm'/'config.yaml').read_text().replace('latency-wait: 60', 'latency-wait: 20'))
    p = subprocess.run([sys.executable, '-c', 'import sys; from neurossl.study import snake; sys.exit(snake("tiny", 1))'], cwd=here, env=env_of(here), capture_output=True, text=True); assert p.returncode==0, (here/'runs'/'snakemake.log').read_text()[-2000:]
    with slurm(tmp_path/'slurm') as env:
        q = subprocess.run([sys.executable, '-m', 'snakemake', '--workflow-profile', 'nbs/experiments/slurm', '--config', 'profile=tiny'], cwd=there, env={**env_of(there), 'SLURM_CONF': env['SLURM_CONF'], 'PATH': f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}, capture_output=True, text=True, timeout=1500)
        assert q.returncode==0, q.stderr[-3000:]+''.join(f.read_text()[-500:] for f in there.rglob('*.log') if '.snakemake' in f.parts)[-3000:]
        jobs = subprocess.run(['squeue', '-h', '-t', 'all', '-o', '%j %T'], env=env, capture_output=True, text=True).stdout.splitlines()
    assert len(jobs)==5 and all('COMPLETED' in j for j in jobs), jobs # the cohort and four cells
    names = lambda h: {f.relative_to(h).as_posix(): f.read_bytes() for f in sorted((h/'runs').rglob('*.csv'))}
    a,b = names(here),names(there); assert len(a)>=12 and set(a)==set(b); odd = [k for k in a if a[k]!=b[k]]+[k for k,t in results_tables(here).items() if not t.equals(results_tables(there)[k])]
    w = lambda h: [read_json(f)['encoder_sha256'] for f in sorted((h/'runs').rglob('weights.json'))]
    assert not odd and w(here)==w(there), odd
    print(f'\nslurm: {len(jobs)} jobs; {len(a)} tables of runs, {len(results_tables(here))} tables of results and {len(w(here))} encoders equal to those of the local run')

if __name__=='__main__':
    name,n,tmp = sys.argv[1],int(sys.argv[2]),sys.argv[3]; do = work(name, n, tmp); used = lambda: [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]; cpu = lambda: sum(u.ru_utime+u.ru_stime for u in used()) # other people's work does not count
    t = cpu(); ok = do(); s = cpu()-t; assert ok
    print(json.dumps(dict(s=s, mib=max(u.ru_maxrss for u in used())/1024)))

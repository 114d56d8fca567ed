"Faults: killed at random moments, a full disk, a read-only folder, two at once, a clock set back. After each, the same call again gives what an undisturbed run gives, and no temporary file is left"
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from fixture_bad import Blobs
from fixture_study import call, env_of, home_of, start
from neurossl.checkpoint import encoder_hash, read_ckpt, save_ckpt
from neurossl.core import Problem, atomic_write, digest, file_sha256, read_json, sweep, write_json
from neurossl.data import build_cache, verify
from neurossl.encoders import build_encoder
from neurossl.manifest import empty_manifest
from neurossl.phantom import phantom_cohort
from neurossl.preprocess import Recipe
from neurossl.pretext import build_task
from neurossl.run import claim, free, run_notebook
from neurossl.train import TrainConfig, fit
from neurossl.volume import Volume, save_volume

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get('KILLS', 12))
TALLY = Counter() # conftest.py says the sums

def fault(kind): TALLY[f'fault: {kind}'] += 1

@pytest.fixture(autouse=True)
def one_thread(): n = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(n) # a forked process cannot use its parent's threads

def equal(a, b, skip=()):
    "Two folders hold the same files"
    have = [{f.relative_to(d).as_posix(): f for f in Path(d).rglob('*') if f.is_file() and not any(s in f.name for s in skip)} for d in (a, b)]
    lost = [n for n in have[0] if n not in have[1] or file_sha256(have[0][n])!=file_sha256(have[1][n])]; TALLY['lost'] += len(lost); TALLY['compared'] += sum(f.stat().st_size for f in have[0].values())
    assert not lost and set(have[0])==set(have[1]), (lost, set(have[0])^set(have[1]))
    assert not [f for d in (a, b) for f in Path(d).rglob('.*.tmp')], 'no temporary file is left'

def killed_after(seconds, do, what):
    "Run something in a process of its own and kill it; whether it was still at work"
    pid = os.fork()
    if not pid:
        try:
            os.setsid(); sys.stderr = open(os.devnull, 'w'); do(); os._exit(0)
        except BaseException: os._exit(1)
    end = time.monotonic()+seconds
    while time.monotonic()<end:
        if os.waitpid(pid, os.WNOHANG)[0]: return False
        time.sleep(.001)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); fault(f'kill -9, {what}'); return True

def how_long(do, *a): t = time.monotonic(); do(*a); return time.monotonic()-t

def bombard(what, do, whole, cut, seconds, skip=()):
    "Kill `do` at KILLS random moments, without cleaning up between: each call goes on where the last one was killed, until one comes to its end and has made what an undisturbed one makes"
    r,hits,tries = random.Random(7),0,0
    while hits<KILLS and tries<20*KILLS:
        tries += 1
        if killed_after(r.uniform(.02, .95)*seconds, do, what): hits += 1
        else: equal(whole, cut, skip); shutil.rmtree(cut)
    assert hits==KILLS, hits
    do(); equal(whole, cut, skip)

@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    d = tmp_path_factory.mktemp('scans'); g = np.random.default_rng(0)
    for i in range(24): save_volume(Volume(g.integers(0, 200, (40,44,40)).astype(np.float32), np.diag([4.,4,4,1])), d/f'{i}.nii.gz')
    return d, empty_manifest([dict(scan_id=f'a-{i}', cohort='a', subject=f'a-{i}', path=f'{i}.nii.gz', dx='CN', age=60.+i) for i in range(24)])

def build(scans, folder): return build_cache(scans[1], Recipe('s1', 32), root=scans[0], folder=folder)

def test_kill_9_while_the_cache_is_built(scans, tmp_path):
    build(scans, tmp_path/'warm'); s = how_long(build, scans, tmp_path/'whole'); cut = tmp_path/'cut'
    bombard('cache', lambda: build(scans, cut), tmp_path/'whole', cut, s)

def learn(folder, epochs=5, task='age'):
    torch.manual_seed(0); ds = Blobs(16); net = build_encoder('sfcn', channels=(4,4,4,4,4), n_features=8); fit(net, build_task(task, 8, ds.man), ds, None, TrainConfig(epochs=epochs, batch=4, keep=(2,)), folder); return encoder_hash(net)

def test_kill_9_while_a_network_learns(tmp_path):
    learn(tmp_path/'warm'); t = time.monotonic(); want = learn(tmp_path/'whole'); s = time.monotonic()-t; cut = tmp_path/'cut'
    bombard('training', lambda: learn(cut), tmp_path/'whole', cut, s, skip=('log.txt',)); assert learn(cut)==want

class Big:
    "A checkpoint that takes a while to write"
    def __init__(self, k): self.k = k
    def state_dict(self): return {f't{i}': torch.full((2**18,), float(self.k)) for i in range(8)}

def test_kill_9_while_a_checkpoint_is_written(tmp_path):
    f = tmp_path/'w.safetensors'; save_ckpt(f, dict(net=Big(0)), dict(epoch=0)); s = how_long(save_ckpt, f, dict(net=Big(1)), dict(epoch=1)); r,last = random.Random(3),1
    def forever():
        for k in range(last+1, 10**6): save_ckpt(f, dict(net=Big(k)), dict(epoch=k))
    for _ in range(KILLS):
        assert killed_after(r.uniform(.1, 4)*s, forever, 'checkpoint'); tensors,facts = read_ckpt(f); assert facts['epoch']>=last and all((t==facts['epoch']).all() for t in tensors.values()), 'whole, and of one epoch'
        last = facts['epoch']; TALLY['compared'] += f.stat().st_size
    left = len(list(tmp_path.glob('.*.tmp'))); assert sweep(tmp_path)==left and sorted(g.name for g in tmp_path.iterdir())==['w.json', 'w.safetensors']

CELLS = ['x: int = 3', 'import time\nfrom pathlib import Path\ntime.sleep(.1)', *[f'time.sleep(.1); y{i} = x*{i}; y{i}' for i in range(5)]]

def _notebook(folder):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS[0], id='first', metadata=dict(tags=['parameters'])), *(nbformat.v4.new_code_cell(c, id=f'c{i}') for i,c in enumerate(CELLS[1:]))])
    folder.mkdir(parents=True, exist_ok=True); nbformat.write(nb, folder/'t.ipynb'); return folder/'t.ipynb'

def test_kill_9_while_a_notebook_is_executed(tmp_path):
    "The process of papermill is killed; its kernel ends by itself"
    t = _notebook(tmp_path); code = f'from neurossl.run import run_notebook; print("go", flush=True); run_notebook({str(t)!r}, {str(tmp_path/"out"/"o.ipynb")!r}, dict(x=4))'
    def go(): p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL); p.stdout.readline(); return p
    p = go(); s = how_long(p.wait); assert p.returncode==0; whole = read_json(tmp_path/'out'/'o.ipynb'); r,hits = random.Random(5),0
    for _ in range(4*KILLS):
        if hits==KILLS: break
        (tmp_path/'out'/'o.ipynb').unlink(missing_ok=True); p = go(); time.sleep(r.uniform(.02, .9)*s)
        if p.poll() is None: p.kill(); hits += 1; fault('kill -9, notebook')
        p.wait(); o = tmp_path/'out'/'o.ipynb'; assert not o.exists() or read_json(o)['cells']==whole['cells'] or [c.get('outputs') for c in read_json(o)['cells']]==[c.get('outputs') for c in whole['cells']]
    assert hits==KILLS
    p = go(); assert p.wait()==0; again = read_json(tmp_path/'out'/'o.ipynb'); TALLY['compared'] += len(json.dumps(again))
    assert [c.get('outputs') for c in again['cells']]==[c.get('outputs') for c in whole['cells']] and [f.name for f in (tmp_path/'out').iterdir()]==['o.ipynb']

WORK = '''
from neurossl.run import start_run
run = start_run('work', locals())''', '''
import time
import pandas as pd
from neurossl.core import digest
t = pd.DataFrame(dict(i=range(50), v=[digest([run.p.arm, run.p.seed, i], 8) for i in range(50)])); time.sleep(.3)
run.write('values.csv', t, index=False)''', '''
run.finish(n=len(t))'''
PARAMS = 'profile: str = "tiny"\narm: str = "a"\nseed: int = 0\nabove: str = ""\nout: str = ""'
LIGHT = dict(a=dict(title='A', template='work', id='{arm}-s{seed}', arms=dict(a={}, b={}), axes=dict(seed=[0, 1])), b=dict(title='B', template='work', id='{arm}-s{seed}', each=dict(arm='{arm}', seed='{seed}', above='{out}'), needs='a'))

@pytest.fixture
def light(tmp_path):
    "A study of eight quick cells; its Snakefile has the real rules, the cohort is one line"
    def make(name):
        home = home_of(tmp_path/name, LIGHT, templates=dict(work=[PARAMS, *WORK])); s = (home/'Snakefile').read_text()
        (home/'Snakefile').write_text(s.replace('"{sys.executable} -m neurossl.study cohort {PROFILE} {threads} {output} > {log} 2>&1"', '"echo {{}} > {output}"')); return home
    return make

def grid(home):
    p = subprocess.Popen([sys.executable, '-c', 'import sys; from neurossl.study import snake; sys.exit(snake("tiny", 2))'], cwd=home, env=env_of(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: p.wait(3000); return p
    finally: _kill_tree(p.pid) # nothing goes on where a test has failed

def tables_of(home): return {f.relative_to(home).as_posix(): f.read_text() for f in sorted((home/'runs').rglob('values.csv'))}

def test_kill_9_while_a_grid_runs(light):
    "Snakemake, its jobs and their kernels are killed together, as by a power cut; then the same command again"
    whole,home = light('whole'),light('cut'); p = grid(whole); assert p.returncode==0, (whole/'runs'/'snakemake.log').read_text()[-2000:]; want = tables_of(whole); assert len(want)==8
    r = random.Random(11); code = 'import sys; from neurossl.study import snake; print("go", flush=True); sys.exit(snake("tiny", 2))'; hits = 0
    for _ in range(3*KILLS):
        if hits==KILLS: break
        q = subprocess.Popen([sys.executable, '-c', code], cwd=home, env=env_of(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True); q.stdout.readline(); time.sleep(r.uniform(1, 25))
        if q.poll() is None: _kill_tree(q.pid); hits += 1; fault('kill -9, grid')
        q.wait()
        for f in (home/'runs').rglob('run.json'): assert set(read_json(f)['files'])=={'key.json', 'metrics.json', 'params.json', 'values.csv'} and all(file_sha256(f.parent/n)==s for n,s in read_json(f)['files'].items()), 'complete or absent'
        if len(list((home/'runs').rglob('run.json')))==8: assert tables_of(home)==want; shutil.rmtree(home/'runs'); shutil.rmtree(home/'results')
    assert hits==KILLS
    p = grid(home); assert p.returncode==0, (home/'runs'/'snakemake.log').read_text()[-2000:]; have = tables_of(home); assert have==want; TALLY['compared'] += sum(map(len, have.values()))
    assert not list(home.rglob('.*.tmp')) and not list(home.rglob('*.part.ipynb')) and call(home, 'neurossl.verify').returncode==0

def _kill_tree(pid):
    "A process and all below it, whatever their session"
    kids = [int(c) for t in Path(f'/proc/{pid}/task').glob('*/children') for c in t.read_text().split()] if Path(f'/proc/{pid}').exists() else []
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: return
    for k in kids: _kill_tree(k)

def test_a_full_disk_in_every_part(scans, tmp_path):
    "A disk of 2 MB: cache, training, notebook, table. A message with what to do; after space is made the same call gives the undisturbed result"
    disk = tmp_path/'disk'; disk.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('needs the right to mount a tmpfs')
    try:
        fill = lambda room: (disk/'ballast').write_bytes(bytes(max(0, shutil.disk_usage(disk).free-room)))
        build(scans, tmp_path/'whole'); learn(tmp_path/'learnt'); t = _notebook(tmp_path/'nb'); run_notebook(t, tmp_path/'nb'/'o.ipynb', dict(x=4))
        for name,room,do in (('cache', 60_000, lambda: build(scans, disk/'cache')), ('learn', 20_000, lambda: learn(disk/'run')), ('notebook', 4096, lambda: run_notebook(t, disk/'o.ipynb', dict(x=4))), ('record', 0, lambda: write_json(disk/'r.json', list(range(9999))))):
            fill(room)
            with pytest.raises(Problem, match='disk is full') as e: do()
            assert 'MiB free' in str(e.value) and not list(disk.rglob('.*.tmp')), name
            fault('full disk'); (disk/'ballast').unlink()
            do()
        equal(tmp_path/'learnt', disk/'run', skip=('log.txt',)); assert digest([c.get('outputs') for c in read_json(disk/'o.ipynb')['cells']])==digest([c.get('outputs') for c in read_json(tmp_path/'nb'/'o.ipynb')['cells']])
        equal(tmp_path/'whole', disk/'cache')
    finally: subprocess.run(['umount', str(disk)], check=True)

def test_a_read_only_folder(scans, tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m,ro', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('needs the right to mount a tmpfs')
    try:
        for do in (lambda: build(scans, disk/'cache'), lambda: learn(disk/'run'), lambda: run_notebook(_notebook(tmp_path/'nb'), disk/'o.ipynb', {}), lambda: write_json(disk/'r.json', 1)):
            with pytest.raises(Problem, match='read-only'): do()
            fault('read-only disk')
    finally: subprocess.run(['umount', str(disk)], check=True)

def test_two_at_once_on_one_cache(scans, tmp_path):
    build(scans, tmp_path/'whole'); pids = []
    for _ in range(3):
        if not (pid := os.fork()):
            try: sys.stderr = open(os.devnull, 'w'); build(scans, tmp_path/'both'); os._exit(0)
            except BaseException: os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]==[0, 0, 0]; fault('two at once'); equal(tmp_path/'whole', tmp_path/'both'); assert verify(build(scans, tmp_path/'both')[0])['damaged']==[]

def test_two_at_once_on_one_grid_and_one_run(light, tmp_path):
    home = light('both'); code = 'import sys; from neurossl.study import snake\nfrom neurossl.core import Problem\ntry: sys.exit(snake("tiny", 1))\nexcept Problem as e: sys.exit(str(e))'
    two = [subprocess.Popen([sys.executable, '-c', code], cwd=home, env=env_of(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]; said = [p.communicate() for p in two]
    assert sorted(p.returncode for p in two)==[0, 1] and any('a study at work in this folder' in e for _,e in said) and len(tables_of(home))==8; fault('two at once')
    claim(tmp_path/'r')
    p = subprocess.run([sys.executable, '-c', f'from neurossl.run import claim; claim({str(tmp_path/"r")!r}, .5)'], capture_output=True, text=True); free(tmp_path/'r'); assert 'another process at work in this run' in p.stderr; fault('two at once')

def test_a_worker_is_killed(tmp_path):
    "Of four that build a cache; what is made stays, and the same call again completes it"
    code = f'''
import os, signal, sys
from neurossl import data
from neurossl.core import Problem
from neurossl.phantom import phantom_cohort
from neurossl.preprocess import Recipe
from pathlib import Path
data.START_S = -1
if len(sys.argv)>1:
    import threading, time, psutil
    def kill():
        for _ in range(3000):
            time.sleep(.1)
            for c in psutil.Process().children(recursive=True):
                if 'LokyProcess' in ' '.join(c.cmdline()): time.sleep(1); c.kill(); print('killed', flush=True); return
    threading.Thread(target=kill, daemon=True).start()
try: c,e = data.build_cache(phantom_cohort(40, 3, 'clinical_a', hashes=False), Recipe('s1', 32), jobs=2, folder={str(tmp_path/'cut')!r}); print(data.verify(c)['entries'])
except Problem as e: sys.exit(str(e))
'''
    p = subprocess.run([sys.executable, '-c', code, 'kill'], capture_output=True, text=True, env=env_of(tmp_path), timeout=300); fault('worker killed')
    assert 'killed' in p.stdout and (p.returncode==0 or 'fewer jobs' in p.stderr), p.stderr[-1500:]
    q = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env_of(tmp_path)); assert q.stdout.strip()=='40', q.stderr[-1500:]
    build_cache(phantom_cohort(40, 3, 'clinical_a', hashes=False), Recipe('s1', 32), folder=tmp_path/'whole'); equal(tmp_path/'whole', tmp_path/'cut')

def test_a_loss_that_is_not_finite_then_the_scan_is_mended(tmp_path):
    want = learn(tmp_path/'whole')
    class Late(Blobs):
        n = 0
        def batch(self, idx): Late.n += 1; self.bad = ('scan-003',) if Late.n>13 else (); return super().batch(idx)
    torch.manual_seed(0); ds = Late(16); net = build_encoder('sfcn', channels=(4,4,4,4,4), n_features=8)
    with pytest.raises(Problem, match='scan-003'): fit(net, build_task('age', 8, ds.man), ds, None, TrainConfig(epochs=5, batch=4, keep=(2,)), tmp_path/'cut')
    fault('loss not finite'); assert learn(tmp_path/'cut')==want; equal(tmp_path/'whole', tmp_path/'cut', skip=('log.txt',))

def test_a_clock_that_was_set_back(scans, light, tmp_path):
    "All files are an hour from the future: nothing is made again, nothing is thought finished that is not"
    home = light('clock'); assert grid(home).returncode==0; future = time.time()+3600; before = {f: f.stat().st_ino for f in home.rglob('run.json')}
    for f in home.rglob('*'):
        if f.is_file() and not f.is_symlink() and 'neurossl' not in f.parts: os.utime(f, (future+random.Random(f.name).uniform(-900, 900),)*2)
    (home/'runs'/'tiny'/'a'/'a-s0'/'.x.elsewhere-3.q.tmp').write_text('half'); os.utime(home/'runs'/'tiny'/'a'/'a-s0'/'.x.elsewhere-3.q.tmp', (future+9000,)*2); fault('clock set back')
    assert grid(home).returncode==0 and {f: f.stat().st_ino for f in home.rglob('run.json')}==before, 'complete cells are left alone'
    (home/'runs'/'tiny'/'a'/'b-s1'/'run.json').unlink(); assert grid(home).returncode==0; now = {f: f.stat().st_ino for f in home.rglob('run.json')}; assert len(now)==8 and now[home/'runs'/'tiny'/'a'/'a-s0'/'run.json']==before[home/'runs'/'tiny'/'a'/'a-s0'/'run.json']
    assert sweep(home/'runs')==1
    build(scans, tmp_path/'c'); fs = {f: f.stat().st_ino for f in (tmp_path/'c').rglob('*.b2nd')}
    for f in fs: os.utime(f, (future,)*2)
    build(scans, tmp_path/'c'); assert {f: f.stat().st_ino for f in fs}==fs

def test_papermill_is_told_to_stop(tmp_path):
    "87 of the catalogue: SIGTERM and SIGINT leave no notebook under its name"
    t = _notebook(tmp_path)
    for sig in (signal.SIGTERM, signal.SIGINT):
        p = subprocess.Popen([sys.executable, '-m', 'neurossl.run', str(t), str(tmp_path/'o.ipynb'), 'x=4'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)); end = time.monotonic()+60 # a job in the background ignores SIGINT
        while not (tmp_path/'o.part.ipynb').exists() and time.monotonic()<end: time.sleep(.05)
        p.send_signal(sig); p.communicate(timeout=60); assert p.returncode and not (tmp_path/'o.ipynb').exists(); fault('told to stop')
    run_notebook(t, tmp_path/'o.ipynb', dict(x=4)); assert sorted(f.name for f in tmp_path.iterdir())==['o.ipynb', 't.ipynb']

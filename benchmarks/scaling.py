"""What a scan costs as scans grow and as they become more, and what that predicts

    python -m benchmarks scaling          # a few minutes; writes benchmarks/results/scaling-<fingerprint>.json
    python -m benchmarks.scaling size 48 64 # these rows, in this process; the smallest first
    python -m benchmarks.scaling count 100 1000

CPU seconds of one thread. The rows of many scans are simulated: their entries in the cache are empty files, since planning looks at names, not voxels.
"""
import json, sys, tempfile, time
from pathlib import Path

import numpy as np

from .harness import asked
from .memory import peak_mb

SIZES,COUNTS = (48, 64, 96, 128, 192),(100, 300, 1000, 3000, 10_000)
STAGES = ('generate', 'prepare', 'write', 'read', 'step', 'embed')   # of one scan; a step is one of training, bfloat16
S2 = dict(scans=44_958, epochs=1000, tflop=3.76, views=2)            # the second study's recipe: operations of a view in a step

def _seconds(f, n=2):
    "CPU seconds of a call, the least of `n`"
    out = []
    for _ in range(n): t = time.process_time(); f(); out.append(time.process_time()-t)
    return min(out)

def of_size(size):
    "A scan at each stage in seconds, and how far memory rises, MB"
    import torch
    from neurossl.data import Cache, voxels
    from neurossl.entries import encode
    from neurossl.phantom import latents_of, phantom, phantom_cohort
    from neurossl.preprocess import Recipe, prepare
    from .harness import peak_mib
    from .steps import features, step
    torch.set_num_threads(1); size = int(size); row = next(r for _,r in phantom_cohort(1, 9, hashes=False).iterrows()); l = latents_of(row)
    prepare(phantom(l, 24), Recipe('s1', 24)); encode(np.zeros((24,)*3, np.float32), {}) # compiled before the clock starts
    v = phantom(l, size); r = Recipe('s1', size); x,qc = prepare(v, r); out = dict(size=size, generate=_seconds(lambda: phantom(l, size)), prepare=_seconds(lambda: prepare(v, r)))
    with tempfile.TemporaryDirectory() as d:
        c = Cache(Path(d), r); f = c.path(row); f.parent.mkdir(parents=True)
        def write(): f.write_bytes(encode(x, dict(scan_id=row.name, key=c.key(row), qc=qc), c.codec))
        out['write'] = _seconds(write); voxels(c, row); out['read'] = _seconds(lambda: voxels(c, row)); out['mib_on_disk'] = f.stat().st_size/2**20
    out['prepare_peak_mb'] = peak_mib(lambda: prepare(v, r))*1.048576; f = step('sfcn', (size,)*3, 2, 'bf16'); out['step_peak_mb'] = peak_mib(f)*1.048576; out['step'] = _seconds(f)/2 # memory of the first step: later ones find it
    del f; f = features('sfcn', (size,)*3, 1, 'fp32'); f(); out['embed'] = _seconds(f)
    return out

def of_count(n):
    "Seconds and peak MB of what is done for all scans at once: rows, splits, finding them in the cache, the order of an epoch"
    from neurossl.data import ScanDataset, build_cache, epoch_order
    from neurossl.phantom import phantom_cohort
    from neurossl.preprocess import Recipe
    from neurossl.splits import split_subjects
    n = int(n); out = dict(scans=n); phantom_cohort(2, 9, hashes=False)
    def clock(k, f): t = time.process_time(); y = f(); out[k] = time.process_time()-t; return y
    man = clock('rows', lambda: phantom_cohort(n, 9, hashes=False)); man = clock('split', lambda: split_subjects(man, valid=.1, seed=0))
    with tempfile.TemporaryDirectory() as d:
        r = Recipe('s1', 48); cache,_ = build_cache(man.iloc[:0], r, folder=Path(d)); cache.folder.mkdir(parents=True, exist_ok=True)
        for _,row in man.iterrows(): cache.path(row).touch()
        clock('found in the cache', lambda: build_cache(man, r, folder=Path(d))); ds = clock('data set', lambda: ScanDataset(man, cache)); clock('order', lambda: epoch_order(list(ds.man.index), 0, 0))
    return out | dict(peak_mb=peak_mb())

def power(x, y):
    "Factor and exponent of y = a x^p, by least squares of the logarithms"
    p,a = np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)
    return float(np.exp(a)), float(p)

def fits(rows, over, names):
    return {k: dict(zip(('factor', 'exponent'), power([r[over] for r in rows], [r[k] for r in rows]))) for k in names}

def predicted(fit, size, scans, epochs, judged=0):
    "CPU seconds of a study: scans prepared once, read and learned from in every epoch; `judged` more are prepared and embedded"
    at = {k: f['factor']*size**f['exponent'] for k,f in fit.items()}; once = at['generate']+at['prepare']+at['write']
    return dict(prepare=once*(scans+judged), train=epochs*scans*(at['read']+at['step']), embed=judged*(at['read']+at['embed']))

def small(fit, size=48, n=16):
    "A small study, predicted and measured"
    from .study import ours
    with tempfile.TemporaryDirectory() as d: f = ours(n, size, d); f(); s = f()['seconds']
    p = predicted(fit, size, n, 1, n)
    return [dict(stage=k, predicted_s=p[a], measured_s=s[b]) for k,a,b in (('generate, prepare, cache', 'prepare', 'generate and cache'), ('one epoch', 'train', 'epoch'), ('embed', 'embed', 'embed'))]

def _row(*words): return asked('benchmarks.scaling', *words)

def measure(sizes=SIZES, counts=COUNTS):
    "Everything the page shows"
    from .harness import progress
    a = progress(f'one scan of {sizes} voxels a side', lambda: _row('size', *sizes)); b = progress(f'{counts} scans', lambda: _row('count', *counts)); n = max(2, len(a)-2)
    for r in b: r['above_mb'] = r['peak_mb']-b[0]['peak_mb']
    fit = fits(a, 'size', STAGES); near = fits(a[:n], 'size', STAGES) # what the small ones say about the large
    held = [dict(size=r['size'], stage=k, predicted_s=near[k]['factor']*r['size']**near[k]['exponent'], measured_s=r[k]) for r in a[n:] for k in ('generate', 'prepare', 'step', 'embed')]
    big = max(a, key=lambda r: r['size']); gflop = _gflop(big['size']); rate = gflop/big['step'] # of this core
    far = dict(S1={f'{s}': predicted(fit, s, 100_000, 1, 0) for s in (96, 192)}, S2_core_years=S2['scans']*S2['epochs']*S2['views']*S2['tflop']*1e3/rate/3600/24/365.25, gflop_s=rate)
    return dict(sizes=a, counts=b, fit=fit, count_fit=fits(b, 'scans', ('rows', 'split', 'found in the cache', 'data set', 'order')), held_out=held, small=_row('small', json.dumps(fit)), far=far)

def _gflop(size):
    from neurossl.sizing import sizing
    from .steps import network
    return float(sizing(network('sfcn', (size,)*3), (size,)*3).measured.step_gflop)

if __name__=='__main__':
    what,*words = sys.argv[1:]
    print(json.dumps(small(json.loads(words[0])) if what=='small' else [dict(size=of_size, count=of_count)[what](n) for n in sorted(map(int, words))]))

"""How much memory training and preparing take at most, each in a process of its own

    python -m benchmarks.memory sfcn 192 fp32     # two steps of one scan: peak of the process, MB
    python -m benchmarks.memory cache 100 1000    # peak after 100 scans and after 1,000, MB
"""
import json, resource, sys, tempfile
from pathlib import Path

from .harness import asked

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3 # MB of 1000 kB; Linux says kB

def sfcn(size, precision):
    "Two training steps of one scan"
    import torch
    from .steps import step
    torch.set_num_threads(1); before = peak_mb(); f = step('sfcn', (int(size),)*3, 1, precision); f(); f()
    return dict(before_mb=before, peak_mb=peak_mb())

def cache(*counts):
    "A cache that grows: small scans, one process"
    from neurossl.data import build_cache
    from neurossl.phantom import phantom_cohort
    from neurossl.preprocess import Recipe
    man = phantom_cohort(max(map(int, counts)), 5, hashes=False); out = {}
    with tempfile.TemporaryDirectory() as d:
        for n in sorted(map(int, counts)): build_cache(man.iloc[:n], Recipe('bench', 24, ('minmax',)), folder=Path(d)); out[str(n)] = peak_mb()
    return out

def apart(*words): return asked('benchmarks.memory', *words) # words as on the command line -> MB

def table()->list: # rows what, measured MB, limit MB
    "What the issue asks for"
    a,b,c = apart('sfcn', 192, 'fp32'),apart('sfcn', 192, 'bf16'),apart('cache', 100, 1000)
    return [dict(what='SFCN, a training step of one scan of 192³, float32', mb=a['peak_mb'], at_most_mb=5000.), dict(what='the same in bfloat16', mb=b['peak_mb'], at_most_mb=5000.),
            dict(what='a cache of 1,000 scans above one of 100', mb=c['1000']-c['100'], at_most_mb=32.)]

if __name__=='__main__': print(json.dumps(dict(sfcn=sfcn, cache=cache)[sys.argv[1]](*sys.argv[2:])))

"python -m benchmarks [ci|full]: equality gates, timings, goals"
import os, sys
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy and torch are imported
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1') # as `make` sets it
import tempfile, time, tomllib
from pathlib import Path

import numpy as np

from neurossl.core import log, paths, write_json

from .harness import compare, judge, machine

PROFILES = dict(ci=dict(size=96, rounds=5, share=.5), full=dict(size=192, rounds=9, share=1.)) # share: of each goal that is asked for
PACKAGES = ['numpy', 'scipy', 'torch', 'numba', 'isal', 'blosc2', 'nibabel', 'scikit-image', 'SimpleITK', 'monai', 'torchio']

def goals(): return tomllib.loads((Path(__file__).parent/'goals.toml').read_text(encoding='utf-8'))['goal']

def measure(
    name,     # of a case
    profile,  # one of PROFILES
    folder,   # to write into
)->dict:      # timings of every function, and the goals
    "One case: its gate, then the clock"
    from .cases import CASES
    c = CASES[name](profile['size'], folder)
    log(f'{name}: comparing results'); c.gate()
    log(f'{name}: timing')
    t = compare({k: f for k,f in (c.ours|c.peers|c.limit).items() if f}, profile['rounds'])
    seen = {k: dict(kind='ours' if k in c.ours else 'limit' if k in c.limit else 'peer', cpu_ms=round(1e3*float(np.median(v.cpu_s)), 3),
                    wall_ms=round(1e3*float(np.median(v.wall_s)), 3), page_faults=round(v.faults),
                    peak_mib=round(v.peak_mib, 1) if np.isfinite(v.peak_mib) else None, **c.facts.get(k, {})) for k,v in t.items()}
    seen |= {k: dict(kind='peer', not_measured=True) for k,f in c.peers.items() if f is None}
    return dict(gate='passed', functions=seen, goals=[judge(g, c, t, profile['share']) for g in goals() if g['case']==name])

def table(result)->str: # GitHub table, one row per goal, then one per function
    "The result for people"
    rows = ['| case | ours | against | goal | measured [95 % interval] | of the limit | peak memory | verdict |', '|---|---|---|---|---|---|---|---|']
    for name,c in result['cases'].items():
        for g in c['goals']:
            o = g['goal']; m = g['measured'].get('ratio_min')
            value = f"{m:.2f}x [{g['ratio_ci'][0]:.2f}, {g['ratio_ci'][1]:.2f}]" if m is not None else '-'
            extra = ', '.join(f"{k} {g['measured'][k]:.2f} (goal {g['asked'][k]:.2f})" for k in g['failed'] if k!='ratio_min')
            size = f", {g['measured']['size_fraction_max']:.2f} of the bytes" if 'size_fraction_max' in g['measured'] else ''
            rows.append(f"| {name} | {o['ours']} | {o['peer']} | {g['asked'].get('ratio_min', o['ratio_min']):g}x | {value}{size} | {g.get('limit_fraction', float('nan')):.2f} | "
                        f"{g.get('mem', float('nan')):.1f} | {g['verdict']}{': '+extra if extra else ''} |")
    rows += ['', '| case | function | CPU ms | wall ms | page faults | peak MiB |', '|---|---|---|---|---|---|']
    for name,c in result['cases'].items():
        for k,f in c['functions'].items():
            rows.append(f'| {name} | {k} ({f["kind"]}) | not measured | | | |' if f.get('not_measured') else
                        f"| {name} | {k} ({f['kind']}) | {f['cpu_ms']:.2f} | {f['wall_ms']:.2f} | {f['page_faults']} | {f['peak_mib'] if f['peak_mib'] is not None else '-'} |")
    return '\n'.join(rows)

def clearly_missed(g)->bool:
    "Whether a goal is missed beyond doubt: by the whole interval, or in memory or bytes"
    return g['verdict']=='missed' and (g['failed']!=['ratio_min'] or g['ratio_ci'][1]<g['asked']['ratio_min'])

def main(args=None):
    "Run a profile; the exit status is 1 when a guard of ci is clearly missed, 0 otherwise; the table shows every miss"
    args = sys.argv[1:] if args is None else args; which = args[0] if args else 'ci'
    if len(args)>1 or which not in PROFILES: sys.exit(f"found {' '.join(args)!r}, expected one of {', '.join(PROFILES)}: python -m benchmarks [ci|full]")
    import torch
    from .cases import CASES
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS'])); p = PROFILES[which]; t = time.perf_counter()
    result = dict(profile=which, machine=machine(PACKAGES), **p, cases={})
    with tempfile.TemporaryDirectory(prefix='neurossl-bench-') as folder:
        for name in CASES: result['cases'][name] = measure(name, p, folder)
    result['seconds'] = round(time.perf_counter()-t, 1)
    write_json(paths().results/'benchmarks'/f'{which}.json', result)
    print(table(result))
    verdicts = [g['verdict'] for c in result['cases'].values() for g in c['goals']]
    print(f"\nAll {len(result['cases'])} equality gates passed. Goals{' (half of them asked for)' if p['share']<1 else ''}: "
          + ', '.join(f'{verdicts.count(v)} {v}' for v in ('met', 'missed', 'not measured')) + f". {result['seconds']} s, results/benchmarks/{which}.json")
    return int(which=='ci' and any(clearly_missed(g) for c in result['cases'].values() for g in c['goals']))

if __name__=='__main__': sys.exit(main())

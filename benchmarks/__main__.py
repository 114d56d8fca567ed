"python -m benchmarks [ci|full] [case ...], or cuda, or scaling: equality gates, timings, goals"
import os, sys
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy and torch are imported
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1') # as `make` sets it
import json, tempfile, time, tomllib
from pathlib import Path

import numpy as np

from neurossl.core import atomic_write, digest, log, paths, read_json, write_json

from .harness import compare, judge, machine

HERE = Path(__file__).resolve().parent
PROFILES = dict( # share: of each goal that is asked for; most_s: seconds of rounds in a case, fewer rounds where they would take longer; gate: voxels a side where nothing is timed
    ci=dict(size=96, gate=24, rounds=5, share=.5, most_s=6.), full=dict(size=192, rounds=9, share=1., most_s=10.))
PACKAGES = ['numpy', 'scipy', 'torch', 'numba', 'isal', 'blosc2', 'nibabel', 'scikit-image', 'scikit-learn', 'SimpleITK', 'monai', 'torchio', 'batchgeneratorsv2', 'zarr']

def goals(): return tomllib.loads((HERE/'goals.toml').read_text(encoding='utf-8'))['goal']

def fingerprint(m)->str: # 10 hex characters
    "The machine of a result: the same processor, cores and memory give the same name, whatever is installed"
    return digest({k: m[k] for k in ('cpu', 'family', 'model', 'flags', 'cores', 'memory_gib', 'system', 'machine')}, 10)

def measure(
    name,     # of a case
    profile,  # one of PROFILES
    folder,   # to write into
)->dict:      # timings of every function, and the goals
    "One case: its gate, then the clock"
    from .cases import CASES
    mine = [g for g in goals() if g['case']==name and (profile['share']==1 or g.get('guard'))]
    c = CASES[name](profile['size'] if mine else profile.get('gate', profile['size']), folder)
    log(f'{name}: comparing results'); c.gate()
    if not mine: return dict(gate='passed', functions={}, goals=[])
    log(f'{name}: timing')
    t = compare({k: f for k,f in (c.ours|c.peers|c.limit).items() if f}, min(profile['rounds'], c.rounds), most_s=profile['most_s'])
    seen = {k: dict(kind='ours' if k in c.ours else 'limit' if k in c.limit else 'peer', cpu_ms=round(1e3*float(np.median(v.cpu_s)), 3),
                    wall_ms=round(1e3*float(np.median(v.wall_s)), 3), page_faults=round(v.faults),
                    peak_mib=round(v.peak_mib, 1) if np.isfinite(v.peak_mib) else None, **c.facts.get(k, {})) for k,v in t.items()}
    for k,f in (c.ours|c.peers).items():
        if hasattr(f, 'stages') and (s := f.stages()): seen[k]['stages_s'] = s # where its time goes
    seen |= {k: dict(kind='peer', not_measured=True) for k,f in c.peers.items() if f is None}
    return dict(gate='passed', functions=seen, goals=[judge(g, c, t, profile['share']) for g in mine])

def table(result)->str: # GitHub table, one row per goal, then one per function
    "The result for people"
    rows = ['| case | ours | against | goal | measured [95 % interval] | of the limit | peak memory | verdict |', '|---|---|---|---|---|---|---|---|']
    for name,c in result['cases'].items():
        for g in c['goals']:
            o = g['goal']; m = g['measured'].get('ratio_min')
            value = f"{m:.2f}x [{g['ratio_ci'][0]:.2f}, {g['ratio_ci'][1]:.2f}]" if m is not None else '-'
            extra = ', '.join(f"{k} {g['measured'][k]:.2f} (goal {g['asked'][k]:.2f})" for k in g['failed'] if k!='ratio_min')
            size = f", {g['measured']['size_fraction_max']:.2f} of the bytes" if 'size_fraction_max' in g['measured'] else ''
            rows.append(f"| {name} | {o['ours']} | {o['peer']} | {'%gx' % g['asked'].get('ratio_min', o['ratio_min']) if 'ratio_min' in o else '-'} | {value}{size} | {g.get('limit_fraction', float('nan')):.2f} | "
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

def readme(
    result, # of the profile full
    name,   # its file below benchmarks/results
)->str:     # Markdown
    "The table of the README"
    m = result['machine']; p = {k: v for k,v in m['packages'].items() if v}; short = lambda v: v.partition('+')[0]
    rows = ['| task | here | elsewhere | times faster (95 % interval) | of the limit | goal | met |', '|---|---|---|---|---|---|---|']
    for case,c in result['cases'].items():
        for g in c['goals']:
            o,r = g['goal'],g['measured'].get('ratio_min'); goal = f"{o['ratio_min']:g}" if 'ratio_min' in o else ''
            met = dict(met='yes', reported='').get(g['verdict'], g['verdict']); value = f"{r:.3g} ({g['ratio_ci'][0]:.3g} to {g['ratio_ci'][1]:.3g})" if r is not None else 'not measured'
            limit = f"{100*g['limit_fraction']:.0f} %" if 'limit_fraction' in g else ''
            if g['verdict']=='missed' and g['failed']!=['ratio_min']: met = 'missed: '+', '.join(f"{k.rpartition('_')[0].replace('_', ' ')} {g['measured'][k]:.2g}, goal {g['asked'][k]:.2g}" for k in g['failed'] if k!='ratio_min')
            rows.append(f"| {case.replace('_', ' ')} | {o['ours']} | {o['peer']} | {value} | {limit} | {goal} | {met if r is not None else ''} |")
    return (f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, one thread; Python {m['python']}, " + ', '.join(f'{k} {short(v)}' for k,v in p.items()) +
            f". Each row's results were compared before the clock started; times are CPU seconds, taken in turn. `make bench` measures it on your machine, `benchmarks/results/{name}` holds these numbers.\n\n" + '\n'.join(rows))

MARKS = '<!-- benchmarks -->','<!-- /benchmarks -->'

def put(text, new)->str:
    "Text with what stands between the marks replaced"
    a,b = MARKS
    if text.count(a)!=1 or text.count(b)!=1: raise ValueError(f'expected {a} and {b} once each')
    return text[:text.index(a)+len(a)]+f'\n{new}\n'+text[text.index(b):]

def write_table(name, root=HERE.parent): # file below benchmarks/results
    "Put the table of a result into the home page and the README that is made from it"
    new = readme(read_json(HERE/'results'/name), name); page = root/'nbs'/'index.ipynb'; nb = read_json(page)
    for c in nb['cells']:
        if MARKS[0] in ''.join(c['source']): c['source'] = put(''.join(c['source']), new).splitlines(keepends=True)
    for f,text in ((page, json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n'), (root/'README.md', put((root/'README.md').read_text(encoding='utf-8'), new))):
        with atomic_write(f, 'w') as h: h.write(text)

def _plain(o): # as JSON knows it: no nan, few digits
    return {k: _plain(v) for k,v in o.items()} if isinstance(o, dict) else [_plain(v) for v in o] if isinstance(o, (list, tuple)) else (float(f'{o:.4g}') if np.isfinite(o) else None) if isinstance(o, float) else o

def elsewhere(which)->int: # exit status
    "The profiles that are no table of goals"
    m = machine(PACKAGES); m.pop('load')
    if which=='scaling': from .memory import table; from .scaling import measure as run; out = dict(run(), memory=table())
    else:
        from .cuda import main as run
        with tempfile.TemporaryDirectory(prefix='neurossl-bench-') as folder: out = run(folder)
        if not out: return 0
    f = HERE/'results'/f'{which}-{fingerprint(m)}.json'; write_json(f, _plain(dict(out, machine=m))); print(f'benchmarks/results/{f.name}')
    return 0

def main(args=None):
    "Run a profile; the exit status is 1 when a guard of ci is clearly missed, 0 otherwise; the table shows every miss"
    args = sys.argv[1:] if args is None else args; which,names = (args[0] if args else 'ci'),args[1:]
    if which in ('cuda', 'scaling') and not names: return elsewhere(which)
    from .cases import CASES
    if which not in PROFILES or set(names)-set(CASES): sys.exit(f"found {' '.join(args)!r}, expected one of {', '.join(PROFILES)}, cuda, scaling, and perhaps cases: {', '.join(CASES)}")
    import torch
    from .apart import stop
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS'])); p = PROFILES[which]; t = time.perf_counter()
    result = dict(profile=which, machine=machine(PACKAGES), **p, cases={})
    with tempfile.TemporaryDirectory(prefix='neurossl-bench-') as folder:
        for name in names or CASES: result['cases'][name] = measure(name, p, folder)
        stop()
    result['seconds'] = round(time.perf_counter()-t, 1); kept = which=='full' and not names
    f = HERE/'results'/f"{fingerprint(result['machine'])}.json" if kept else paths().results/'benchmarks'/f'{which}.json'
    write_json(f, _plain(result)); print(table(result))
    if kept: write_table(f.name)
    verdicts = [g['verdict'] for c in result['cases'].values() for g in c['goals']]
    print(f"\nAll {len(result['cases'])} equality gates passed. Goals{' (half of four of them asked for)' if p['share']<1 else ''}: "
          + ', '.join(f'{verdicts.count(v)} {v}' for v in ('met', 'missed', 'reported', 'not measured')) + f". {result['seconds']} s, {f.parent.parent.name}/{f.parent.name}/{f.name}")
    return int(which=='ci' and any(clearly_missed(g) for c in result['cases'].values() for g in c['goals']))

if __name__=='__main__': sys.exit(main())

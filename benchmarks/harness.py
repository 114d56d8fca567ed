"""Compare functions that do the same work: equal first, then timed in turn

Everything runs in one process and in turn (A B C, C B A, ...), so that a busy machine slows all of them alike. A ratio is
taken within each round and its median is reported with a bootstrap interval. Seconds are CPU seconds of the process
(user and system, all threads); wall-clock seconds are kept beside them.
"""
import ctypes, gc, json, math, os, platform, resource, subprocess, sys, time
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

import numpy as np

class GateError(AssertionError):
    "Two functions that were to be compared do not give the same result"

@dataclass
class Case:
    "The same work, done by several functions without arguments"
    name:str
    ours:dict     # name -> function
    peers:dict    # name -> function; None: its package is not installed
    limit:dict    # name -> function: the least that any of them must do
    gate:object   # function that raises GateError unless the results are the same
    unit_mib:float=0                       # size of the float32 result, the unit of peak memory
    facts:dict=field(default_factory=dict) # numbers that need no clock: {name: {fact: value}}
    rounds:int=99                          # at most, where a call takes long

@dataclass
class Timing:
    "What was measured of one function"
    cpu_s:np.ndarray  # (rounds,) CPU seconds of a call
    wall_s:np.ndarray # (rounds,) seconds of a call
    faults:float      # page faults of a call, median
    peak_mib:float    # memory above what was in use before the call; nan where the system does not tell

def have(module):
    "Whether a peer is installed; nothing is imported"
    return util.find_spec(module) is not None

def same(name, a, b, atol=0.):
    "Raise GateError unless two arrays are equal, or differ by at most `atol`"
    a,b = np.asarray(a),np.asarray(b)
    if a.shape!=b.shape: raise GateError(f'{name}: shape {a.shape}, expected {b.shape}')
    if atol==0:
        if not np.array_equal(a, b): raise GateError(f'{name}: {np.count_nonzero(a!=b)} of {a.size} values differ')
        return
    worst = float(np.abs(a.astype(np.float64)-b).max())
    if not worst<=atol: raise GateError(f'{name}: values differ by up to {worst:.3g}, allowed are {atol:.3g}')

def _sample(f, n):
    "CPU seconds, seconds and page faults of one of `n` calls"
    if hasattr(f, 'sample'): return f.sample(n) # it lives in another process
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    w,c = time.perf_counter(),time.process_time()
    for _ in range(n): f()
    c,w = time.process_time()-c,time.perf_counter()-w
    return c/n, w/n, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt-faults)/n

def _status(key):
    "A line of /proc/self/status in MiB"
    for l in Path('/proc/self/status').read_text().splitlines():
        if l.startswith(key+':'): return int(l.split()[1])/1024
    return float('nan')

def peak_mib(
    f, # function without arguments
)->float: # MiB; nan where the system does not tell
    "How far the memory of the process rises during one call"
    if hasattr(f, 'peak'): return f.peak()
    clear = Path('/proc/self/clear_refs')
    if not clear.exists(): return float('nan')
    gc.collect()
    try: ctypes.CDLL(None).malloc_trim(0) # what was freed must not hide what is taken
    except AttributeError: pass           # not glibc
    try: clear.write_text('5')            # sets the high-water mark to the present
    except OSError: return float('nan')
    before = _status('VmRSS'); f()
    return max(_status('VmHWM')-before, 0.)

def compare(
    fns,         # name -> function without arguments
    rounds=9,    # samples of each
    least_s=.01, # a sample is as many calls as take this long
    memory=True, # also measure peak memory, in one call outside the timed ones
    most_s=math.inf, # fewer rounds where they would take longer, but three at least
)->dict:         # name -> Timing
    "Time functions in turn"
    calls,peak,took = {},{},0.
    for k,f in fns.items(): # warm-up: compile, import, fill the page cache
        t = time.perf_counter(); first = peak_mib(f) if memory else f(); once = time.perf_counter()-t
        faults = math.inf
        if once>2: peak[k] = first if memory else float('nan') # a long call warms up and tells its memory in one
        else: _,once,faults = _sample(f, 1)
        calls[k] = max(1, min(1000, round(least_s/max(once, 1e-7)))); took += once*calls[k]
        for _ in range(4): # until it no longer needs ever less new memory: whoever trains, trains for hours
            if faults<=16: break
            last,faults = faults,_sample(f, 1)[2]
            if faults>=.9*last: break
    out = {k: [] for k in fns}
    for r in range(max(min(rounds, 3), int(min(rounds, most_s/max(took, 1e-9))))):
        for k in list(fns)[::1 if r%2==0 else -1]: out[k].append(_sample(fns[k], calls[k]))
    peak = {k: peak[k] if k in peak else peak_mib(f) if memory else float('nan') for k,f in fns.items()}
    return {k: Timing(*np.array(v).T[:2], float(np.median(np.array(v)[:,2])), peak[k]) for k,v in out.items()}

def ratio(
    slow,    # Timing of the numerator
    fast,    # Timing of the denominator, of the same `compare`
    n=2000,  # bootstrap samples
    seed=0,
)->tuple:    # median ratio of CPU seconds, lower and upper end of its 95 % interval
    "How many times faster, paired by round"
    r = slow.cpu_s/np.maximum(fast.cpu_s, 1e-12)
    b = np.median(r[np.random.default_rng(seed).integers(0, len(r), (n, len(r)))], axis=1)
    return float(np.median(r)), *map(float, np.quantile(b, (.025, .975)))

def judge(
    goal,   # row of goals.toml; without ratio_min it is only reported
    case:Case,
    t,      # name -> Timing, of `compare`
    share=1.,# of the goal that is asked for; below 1 it is a guard
)->dict:    # what was asked, what was measured, and 'met', 'missed', 'reported' or 'not measured'
    "Hold one goal against the measurement"
    ours,peer = goal['ours'],goal['peer']; out = dict(goal=goal, asked={}, measured={}, failed=[])
    if peer not in t: return out | dict(verdict='not measured')
    def hold(key, value, asked, ok):
        out['asked'][key],out['measured'][key] = asked,value
        if not ok: out['failed'].append(key)
    value,lo,hi = ratio(t[peer], t[ours]); out['ratio_ci'] = [lo, hi]
    if 'ratio_min' not in goal: return out | dict(measured=dict(ratio_min=value), verdict='reported')
    asked = goal.get('ratio_min_ci', goal['ratio_min']*share) if share<1 else goal['ratio_min']
    hold('ratio_min', value, asked, value>=asked)
    fraction = min(ratio(t[k], t[ours])[0] for k in case.limit); out['limit_fraction'] = fraction
    if 'limit_fraction_min' in goal: hold('limit_fraction_min', fraction, goal['limit_fraction_min']*share, fraction>=goal['limit_fraction_min']*share)
    mem = t[ours].peak_mib/case.unit_mib if case.unit_mib else float('nan'); out['mem'] = mem
    if 'mem_max' in goal and np.isfinite(mem): hold('mem_max', mem, goal['mem_max']/share, mem<=goal['mem_max']/share)
    size = case.facts.get(ours, {}).get('size_fraction')
    if 'size_fraction_max' in goal: hold('size_fraction_max', size, goal['size_fraction_max']/share, size<=goal['size_fraction_max']/share)
    return out | dict(verdict='missed' if out['failed'] else 'met')

def machine(packages)->dict: # without names of hosts or folders
    "What the numbers were measured on"
    info = Path('/proc/cpuinfo'); mem = Path('/proc/meminfo')
    lines = info.read_text().splitlines() if info.exists() else []
    get = lambda key: next((l.split(':', 1)[1].strip() for l in lines if l.startswith(key)), '')
    flags = [f for f in ('avx2', 'avx512f', 'avx512_bf16') if f in get('flags').split()]
    found = {}
    for p in packages:
        try: found[p] = metadata.version(p)
        except metadata.PackageNotFoundError: found[p] = None
    return dict(cpu=get('model name') or platform.processor(), family=get('cpu family'), model=get('model'), flags=flags, cores=os.cpu_count(),
                memory_gib=round(int(mem.read_text().split()[1])/2**20) if mem.exists() else None, system=platform.system(), machine=platform.machine(),
                python=platform.python_version(), packages=found, threads=os.environ.get('OMP_NUM_THREADS', ''),
                load=round(os.getloadavg()[0], 2) if sys.platform!='win32' else None)

def asked(
    module, # run with -m
    *words, # on its command line
):          # the JSON of the last line that it prints
    "Ask a module in a process of its own, whose memory and imports nobody else has touched"
    p = subprocess.run([sys.executable, '-m', module, *map(str, words)], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1],
                       env={**os.environ, 'OMP_NUM_THREADS': '1', 'THP_MEM_ALLOC_ENABLE': '1', 'TQDM_DISABLE': '1'})
    if p.returncode: raise RuntimeError(p.stderr[-2000:])
    return json.loads(p.stdout.splitlines()[-1])

def progress(what, f):
    "The value of a function, after a line that says what is being done"
    from neurossl.core import log
    log(what); return f()

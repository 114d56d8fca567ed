"""Functions in processes of their own, because an allocator is chosen before torch is imported; the clock runs there

A process is known by its environment and keeps its functions, so that few of them serve many cases, and only one of them works at a time.
"""
import os, pickle, subprocess, sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_processes,_wanted = {},[] # environment -> Popen; environments of functions that nobody has asked yet

def _process(env):
    key = tuple(sorted(env.items()))
    if key not in _processes or _processes[key].poll() is not None:
        _processes[key] = subprocess.Popen([sys.executable, '-m', 'benchmarks.apart'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, **env})
    return _processes[key]

def stop():
    "End the processes"
    for p in _processes.values(): p.stdin.close(); p.wait()
    _processes.clear()

class Apart:
    "A function without arguments that lives in another process; it is made when it is first asked"
    def __init__(self,
        where, # 'module:maker' below benchmarks; maker(*args) makes the function
        *args, # numbers, text, tuples
        **env, # environment of its process
    ): self.where,self.args,self.env = where,args,env; _wanted.append(env)
    def ask(self, what, n=1): # n: calls in a sample; of a call, an argument
        while _wanted: _process(_wanted.pop()) # they import side by side, before any clock runs
        p = _process(self.env)
        try: pickle.dump((self.where, self.args, what, n), p.stdin); p.stdin.flush(); ok,out = pickle.load(p.stdout)
        except (EOFError, BrokenPipeError) as e: raise RuntimeError(f'{self.where}{self.args}: its process ended, exit status {p.wait()}') from e
        if not ok: raise RuntimeError(f'{self.where}{self.args}: {out}')
        return out
    def __call__(self): return self.ask('call')
    def stages(self): # seconds of each stage in its last call, where it says so
        out = self.ask('last')
        return out['seconds'] if isinstance(out, dict) else None
    def sample(self, n): return self.ask('sample', n)
    def peak(self): return self.ask('peak')

def serve(): # the other side
    "Answer until the input ends"
    import traceback
    from .harness import _sample, peak_mib
    out,made,last = os.fdopen(os.dup(1), 'wb'),{},{}; os.dup2(2, 1) # what libraries print must not get between the answers
    import torch
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    while True:
        try: where,args,what,n = pickle.load(sys.stdin.buffer)
        except EOFError: return
        try:
            if (where, args) not in made:
                made.clear() if len(made)>6 else None # large networks of earlier cases
                module,_,maker = where.partition(':'); made[where, args] = getattr(import_module(f'benchmarks.{module}'), maker)(*args)
            f = made[where, args]
            def g(*a): last[where, args] = f(*a); return last[where, args]
            answer = True, (g() if n==1 else g(n)) if what=='call' else _sample(g, n) if what=='sample' else peak_mib(g) if what=='peak' else last.get((where, args))
        except Exception: answer = False, traceback.format_exc()[-2000:]
        pickle.dump(answer, out); out.flush()

if __name__=='__main__': serve()

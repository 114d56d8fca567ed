"Rows 5a to 5c, 6a and 1e: a training step, features with the encoder frozen, and the loading of a batch beside the step it feeds"
from pathlib import Path

import numpy as np

from neurossl.core import SMALL

from ..apart import Apart
from ..harness import Case, GateError, same
from ..steps import EAGER, KEPT, TUNED
from . import case, preprocess

def _near(name, a, b, rtol):
    "Within a share of the largest number"
    same(name, a, b, rtol*float(np.abs(b).max()))

def _agree(name, a, b, rtol):
    "Loss within `rtol`; gradients, by their norms and some of their numbers, correlate as well as that allows"
    same(f'{name}: loss', a[:1], b[:1], rtol*float(abs(b[0]))); c,least = float(np.corrcoef(a[1:], b[1:])[0,1]),1-2*rtol
    if not c>least: raise GateError(f'{name}: gradients correlate by {c:.4f}, expected are {least:.4f}')

def _steps(name, kind, shape, batch, rounds, bf16=.02):
    env = KEPT if batch*np.prod(shape)<=SMALL else TUNED # as training chooses, see neurossl.train
    eager = Apart('steps:step', kind, shape, batch, 'eager', **EAGER); ours = {m: Apart('steps:step', kind, shape, batch, m, **env) for m in ('fp32', 'bf16')}
    def gate():
        y = eager()
        for m,tol in (('fp32', 1e-4), ('bf16', bf16)): _agree(f'{m} and eager float32', ours[m](), y, tol)
    return Case(name, ours, {'eager float32': eager}, {'convolutions bf16': Apart('steps:convolutions', kind, shape, batch, **env)}, gate, rounds=rounds)

@case
def train_sfcn(size, folder): return _steps('train_sfcn', 'sfcn', ({24: 32, 96: 48}.get(size, 96),)*3, 2, 5)

@case
def train_resnet18(size, folder): return _steps('train_resnet18', 'resnet18', {24: (32, 32, 32), 96: (32, 40, 40)}.get(size, (75, 96, 96)), 1 if size>96 else 2, 5, .05) # deeper: more roundings

@case
def features(size, folder):
    shape = ({24: 32, 96: 64}.get(size, size),)*3; f = lambda mode, env: Apart('steps:features', 'sfcn', shape, 1, mode, **env)
    eager,ours = f('eager', EAGER),{'exact': f('fp32', KEPT), 'bf16': f('bf16', KEPT)}
    def gate():
        y = eager()
        _near('folded BatchNorm and eager float32', ours['exact'](), y, 1e-5); _near('bfloat16 and eager float32', ours['bf16'](), y, 3e-2)
    return Case('features', ours, {'eager float32': eager}, {'convolutions bf16': Apart('steps:convolutions', 'sfcn', shape, 1, False, **TUNED)}, gate)

S3 = {'3D-VGG': '3D-VGG', '3D-ResNet': '3D-ResNet', 'dynamic image': 'vgg11'} # of the third study's table 5

@case
def s3_table5(size, folder):
    n,batch = {24: 32, 96: 48}.get(size, 110),2; f = lambda k, mode, env, n=n, batch=batch: Apart('steps:step', k, (n,)*3, batch, mode, **env)
    tuned,eager = ({k: f(v, mode, env) for k,v in S3.items()} for mode,env in (('fp32', TUNED), ('eager', EAGER)))
    def gate(): # small scans, and enough of them for BatchNorm
        for k,v in S3.items(): _agree(f'{k}, tuned and eager', f(v, 'fp32', TUNED, 48, 4)(), f(v, 'eager', EAGER, 48, 4)(), 1e-3)
    here = {'dynamic image': tuned['dynamic image'], 'dynamic image, eager': eager['dynamic image']}
    there = {k+mode: t[k] for mode,t in (('', tuned), (', eager', eager)) for k in S3 if k!='dynamic image'}
    return Case('s3_table5', here, there, {'convolutions': Apart('steps:convolutions', 'vgg11', (n,)*3, batch, True, 'fp32', **TUNED)}, gate, rounds=2)

@case
def loading(size, folder):
    from neurossl.phantom import latents_of, phantom, phantom_cohort
    n = {24: 24, 96: 48}.get(size, 96); f = Apart('steps:load', n, 2, str(Path(folder)/'loading'), **TUNED); m = max(n, 32)
    def gate():
        from neurossl.preprocess import minmax
        man = phantom_cohort(8, 7, hashes=False); want = [minmax(phantom(latents_of(r), n)).data for _,r in man.iloc[:2].iterrows()]
        same('the first batch and its scans', f.ask('call', 'first'), np.stack(want)[:,None], 1e-4)
    return Case('loading', {'load a batch': f}, {'training step': Apart('steps:step', 'sfcn', (m,)*3, 2, 'bf16', **KEPT)}, {'memcpy': Apart('steps:copy', 2*n**3, **TUNED)}, gate, rounds=5)

@case
def study(size, folder):
    side,folder = {24: 32, 96: 48}.get(size, 96),str(folder); ours,monai = (lambda side, *a, k=k, env=env: Apart(f'study:{k}', 8, side, folder, *a, **env) for k,env in (('ours', TUNED), ('monai', EAGER)))
    def gate(): # at a size that is quick; in float32 all of it, in bfloat16 as far as eight scans can tell
        if not preprocess.have('monai'): return
        b,a,h = (f.ask('call', 'whole') for f in (monai(48), ours(48, 'fp32'), ours(48)))
        same('prepared scans', a['prepared'], b['prepared'], 1e-4); _near('loss of the epoch', a['loss'], b['loss'], .005); _near('loss in bfloat16', h['loss'], b['loss'], .03)
        for k,v,least in (('features', a, .995), ('scores', a, .98), ('features', h, .9)):
            c = float(np.corrcoef(v[k].ravel(), b[k].ravel())[0,1])
            if not c>least: raise GateError(f'{k} correlate by {c:.3f}, expected are {least}')
    return Case('study', {'S1, this library': ours(side)}, {'S1, MONAI and eager': monai(side) if preprocess.have('monai') else None}, {'one epoch, bf16': Apart('study:epoch', 8, side, **TUNED)}, gate, rounds=2)

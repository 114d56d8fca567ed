"Two processes compute what one computes. Run by torchrun, this file is the worker that the tests start"
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from neurossl.checkpoint import read_ckpt
from neurossl.encoders import SFCN
from neurossl.manifest import empty_manifest
from neurossl.pretext import AgeTask
from neurossl.processes import gather, joined, mean_over, synced, world
from neurossl.settings import TrainConfig, optimiser
from neurossl.simclr import SimCLRTask, nt_xent
from neurossl.train import _Both, _place, _step, fit
from torch import nn


TALLY = Counter() # conftest.py says the sums


class Blobs:
    "Scans of noise; two visits of each subject"
    cache = SimpleNamespace(recipe=SimpleNamespace(key='blobs-32'))
    def __init__(self, n):
        self.man = empty_manifest([dict(scan_id=f'scan-{i:03d}', cohort='c', subject=f'c-{i//2:03d}', age=50.+i%30, sex='F', split='train', synthetic=True) for i in range(n)])
    def __len__(self): return len(self.man)
    def batch(self, idx):
        ids = [self.man.index[i] for i in idx]; x = [torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(int(i[5:]))) for i in ids]
        return dict(x=torch.stack(x), scan_id=ids, age=torch.tensor([50.+int(i[5:])%30 for i in ids]))


class Plain(nn.Module):
    "Without BatchNorm"
    def __init__(self): super().__init__(); self.a,self.b,self.n_features = nn.Conv3d(1, 6, 4, stride=4),nn.Conv3d(6, 8, 4, stride=4),8
    def forward(self, x): return self.b(F.relu(self.a(x))).mean((2,3,4))


def nets(kind):
    torch.manual_seed(0)
    if kind=='age': e = Plain(); return e, AgeTask(8, 62, 8)
    e = Plain() if kind=='plain' else SFCN(channels=(4,4,4,4,4), n_features=8)
    return e, SimCLRTask(8, hidden=16, out=8)


def gradients(kind, **kw):
    "Of one batch of eight scans, averaged over processes"
    e,t = nets(kind); net = _Both(_place(e, 'cpu'), t); cfg = TrainConfig(batch=8, **kw)
    if world()[1]>1: net = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    with synced(e, t, on=cfg.sync_bn and world()[1]>1): out,_ = _step(net, Blobs(8), [3,0,7,2,5,6,1,4], cfg, 0, None)
    stats = {f'stats.{k}': v for k,v in e.state_dict().items() if 'running' in k} if cfg.sync_bn else {}
    values = {f'out.{k}': mean_over(v) for k,v in out.items()}
    return {k: v.detach().clone() for k,v in {**{f'{n}.{k}': p.grad for n,m in (('e', e), ('t', t)) for k,p in m.named_parameters()}, **stats, **values}.items()}


CASES = dict(plain=dict(kind='plain'), bn=dict(kind='bn', sync_bn=True), parts=dict(kind='age', accumulate=2))


def one_step(folder):
    e,t = nets('plain')
    fit(e, t, Blobs(8), None, TrainConfig(epochs=1, batch=8, lr=1e-2, weight_decay=.1, decay='weights', grad_clip=.5), folder)
    return {f'{n}.{k}': v for n,m in (('e', e), ('t', t)) for k,v in m.state_dict().items()}


class _LocalSlice(torch.autograd.Function): # the released code's gather
    @staticmethod
    def forward(ctx, x): return gather(x)
    @staticmethod
    def backward(ctx, g): return g.chunk(world()[1])[world()[0]]


def batchnorm():
    "The same in float64 through two layers of BatchNorm: gradients and running statistics, as a share of the largest"
    torch.manual_seed(0); x = torch.randn(2, 8, 1, 6, 6, 6, dtype=torch.float64); rank,size = world(); mine = slice(rank*8//size, (rank+1)*8//size); got = []
    for share,everywhere in ((slice(0, 8), False), (mine, True)):
        torch.manual_seed(1); net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 5, 3), nn.BatchNorm3d(5, momentum=None), nn.Flatten(), nn.Linear(40, 3)).double()
        with synced(net, on=everywhere): nt_xent(*net(x[:,share].flatten(0, 1)).chunk(2), everywhere=everywhere).backward()
        got.append({**{k: mean_over(p.grad) if everywhere else p.grad for k,p in net.named_parameters()}, **dict(net.named_buffers())})
    return max(float((got[0][k]-v).abs().max()/max(1., float(v.abs().max()))) for k,v in got[1].items())


def linear():
    "Gradient of a matrix through NT-Xent: one process with all, gathered, gathered with the local slice only, in pieces, with siblings"
    g = torch.Generator().manual_seed(1); x = torch.randn(2, 8, 12, generator=g, dtype=torch.float64); w = torch.randn(12, 4, generator=g, dtype=torch.float64).requires_grad_()
    rank,size = world(); mine = slice(rank*8//size, (rank+1)*8//size); who = torch.arange(8)//2; out = {}
    of = lambda loss: mean_over(torch.autograd.grad(loss, w)[0])
    for name,kw in dict(dense={}, pieces=dict(chunk=0)).items():
        for s in (None, who):
            full = torch.autograd.grad(nt_xent(x[0]@w, x[1]@w, same=s, everywhere=False), w)[0]
            part = of(nt_xent(*(v[mine]@w for v in x), same=None if s is None else s[mine], **kw))
            out[f'{name}, {"siblings out" if s is not None else "all"}'] = float((part-full).abs().max()/full.abs().max())
    full = torch.autograd.grad(nt_xent(x[0]@w, x[1]@w, everywhere=False), w)[0]
    wrong = of(nt_xent(*(_LocalSlice.apply(v[mine]@w) for v in x), everywhere=False))
    out['local slice over full'] = float((wrong*full).sum()/(full*full).sum()); out['local slice, off its line'] = float((wrong-full/size).abs().max())
    return out


def worker(folder):
    with joined():
        assert world()[1]==2
        found = dict(linear=linear(), batchnorm=batchnorm()); tensors = {k: gradients(**c) for k,c in CASES.items()}; tensors['step'] = one_step(Path(folder)/'two')
        seen = mean_over(torch.stack([v.double().sum() for v in tensors['step'].values()]))
        found['same everywhere'] = float((seen-torch.stack([v.double().sum() for v in tensors['step'].values()])).abs().max())
        if world()[0]==0: torch.save(tensors, Path(folder)/'two.pt'); (Path(folder)/'two.json').write_text(json.dumps(found))


def torchrun(n, *args, **kw):
    env = dict(os.environ, OMP_NUM_THREADS='1', **kw)
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}'] if n>1 else [sys.executable]
    return subprocess.Popen([*cmd, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    if not dist.is_gloo_available(): pytest.skip('this torch has no gloo')
    folder = tmp_path_factory.mktemp('two'); p = torchrun(2, __file__, folder); said = p.communicate(timeout=600)[0]
    assert p.returncode==0, said[-3000:]
    return torch.load(folder/'two.pt'), json.loads((folder/'two.json').read_text())


def test_nt_xent_gradient_is_that_of_one_process(two):
    found = two[1]['linear']
    for k in ('dense, all', 'dense, siblings out', 'pieces, all', 'pieces, siblings out'): assert found[k]<1e-12, k


def test_the_released_gather_gives_half_of_it(two):
    assert two[1]['linear']['local slice over full']==pytest.approx(.5, abs=1e-12) and two[1]['linear']['local slice, off its line']<1e-12


def test_batchnorm_over_both_is_that_of_one_process(two): assert two[1]['batchnorm']<1e-12


@pytest.mark.parametrize('case', CASES)
def test_gradients_and_metrics_of_a_batch(two, case):
    "NT-Xent without BatchNorm, with BatchNorm over both processes (float32 through five of them: three digits), and a mean loss in two parts"
    one = gradients(**{**CASES[case], **(dict(accumulate=1) if case=='parts' else {})}); got = two[0][case]
    assert set(one)==set(got)
    far = 1e-3 if case=='bn' else 1e-5 # float32 sums over voxels in another order; in float64 the same gradients agree to 1e-12, see above
    for k in one: assert (one[k]-got[k]).abs().max()<=far*max(1, float(one[k].abs().max())), k


def test_one_optimiser_step(two, tmp_path):
    one,start = one_step(tmp_path/'one'),nets('plain')
    for k,v in two[0]['step'].items(): assert (one[k]-v).abs().max()<1e-6, k
    assert max(float((one[f'e.{k}']-v).abs().max()) for k,v in start[0].state_dict().items())>5e-3
    assert two[1]['same everywhere']==0


def _children(pid): return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize('n', [1, 2])
def test_kill_9_and_the_same_command_again(tmp_path, n):
    "The command line: killed after the first epoch, started again, equal to an uninterrupted run by the hash of its weights"
    if not Path('/proc/self/task').exists(): pytest.skip('needs /proc')
    from neurossl.manifest import write_manifest
    from neurossl.phantom import phantom_cohort
    write_manifest(phantom_cohort(20, 0, 'population', hashes=False), tmp_path/'scans.csv')
    def start(name):
        plan = dict(out=name, task=dict(name='simclr', hidden=16, out=8), encoder=dict(name='sfcn', channels=[4,4,4,4,4], n_features=8), manifest='scans.csv', valid=.2,
                    recipe=dict(size=32), cfg=dict(epochs=12, batch=8, warmup=1, sync_bn=True, keep=[2]))
        (tmp_path/f'{name}.json').write_text(json.dumps(plan))
        return torchrun(n, '-m', 'neurossl.train', tmp_path/f'{name}.json', NEUROSSL_HOME=str(tmp_path))
    def end(p): said = p.communicate(timeout=600)[0]; assert p.returncode==0, said[-3000:]; return said
    assert 'History of 12 epochs' in end(start('whole'))
    p = start('cut'); ck = tmp_path/'cut'/'checkpoint.safetensors'; limit = time.monotonic()+300
    while not ck.exists() and p.poll() is None and time.monotonic()<limit: time.sleep(.005)
    for c in [*_children(p.pid), p.pid]: os.kill(c, signal.SIGKILL)
    p.communicate(); TALLY[f'fault: kill -9, command of {n} process{"es"*(n>1)}'] += 1
    assert not (tmp_path/'cut'/'weights.safetensors').exists() and 1<=read_ckpt(ck)[1]['epoch']<12
    end(start('cut'))
    facts = [json.loads((tmp_path/k/'weights.json').read_text()) for k in ('whole', 'cut')]
    assert facts[0]['encoder_sha256']==facts[1]['encoder_sha256'] and facts[0]['sha256']==facts[1]['sha256']
    assert (tmp_path/'whole'/'epoch_2.safetensors').read_bytes()==(tmp_path/'cut'/'epoch_2.safetensors').read_bytes(); TALLY['compared'] += sum((tmp_path/'whole'/f).stat().st_size for f in ('weights.safetensors', 'epoch_2.safetensors'))
    if n==2: assert facts[0]['identity']['processes']==2


@pytest.mark.parametrize('argv,said', [([], 'RUN.JSON'), (['none.json'], 'no such file')])
def test_the_command_explains_itself(argv, said):
    from neurossl.train import main
    with pytest.raises(SystemExit, match=said): main(argv)


if __name__=='__main__': worker(sys.argv[1])

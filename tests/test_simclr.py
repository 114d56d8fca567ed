"NT-Xent: closed forms, an independent implementation, pieces, siblings; the task; the 1/W error"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from neurossl.core import Problem
from neurossl.encoders import SFCN
from neurossl.phantom import demo_batch
from neurossl.pretext import TaskError, build_task
from neurossl.simclr import VIEWS, CropViews, Projector, SimCLRTask, _dense, effective_rank, nt_xent, pair_metrics, subject_ids
from torch import nn


def pairs(n, d=16, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=g, dtype=dtype)


def grads(f, *xs):
    xs = [x.clone().requires_grad_() for x in xs]
    return torch.autograd.grad(f(*xs), xs)


def by_hand(z1, z2, t, who=None):
    "A double loop in numpy"
    z = np.concatenate([z1, z2]).astype(float); z /= np.linalg.norm(z, axis=1, keepdims=True)
    n = len(z1); total = 0.
    for i in range(2*n):
        p = (i+n)%(2*n); others = [j for j in range(2*n) if j!=i and (j==p or who is None or who[j%n]!=who[i%n])]
        total += math.log(sum(math.exp(z[i]@z[j]/t) for j in others))-z[i]@z[p]/t
    return total/(2*n)


@pytest.mark.parametrize('n', [1, 2, 4, 32])
@pytest.mark.parametrize('t', [.07, .5, 1.])
def test_closed_forms(n, t):
    eye,one = torch.eye(n),torch.ones(n, 5)
    for chunk in (2048, 0):
        assert float(nt_xent(eye, eye, t, chunk=chunk))==pytest.approx(math.log(1+(2*n-2)*math.exp(-1/t)), abs=1e-6)
        assert float(nt_xent(one, one, t, chunk=chunk))==pytest.approx(math.log(2*n-1), abs=1e-6)
    assert float(nt_xent(torch.ones(4, 3), torch.ones(4, 3)))==pytest.approx(1.94591, abs=1e-5)


@pytest.mark.parametrize('who', [None, [0,0,1,2,2,2,3]])
@pytest.mark.parametrize('chunk', [2048, 0])
def test_a_double_loop(who, chunk):
    z1,z2 = pairs(7)
    assert float(nt_xent(z1, z2, .3, who, chunk))==pytest.approx(by_hand(z1.numpy(), z2.numpy(), .3, who), rel=1e-6)
    if who: assert nt_xent(z1, z2, .3, torch.tensor(who), chunk)==nt_xent(z1, z2, .3, who, chunk)


def test_monai_agrees():
    from monai.losses import ContrastiveLoss
    for n,t in ((2, .5), (9, .1), (40, 1.)):
        z1,z2 = pairs(n, seed=n); other = ContrastiveLoss(temperature=t)
        assert float(nt_xent(z1, z2, t))==pytest.approx(float(other(z1, z2)), abs=1e-6)
        for a,b in zip(grads(lambda x, y: nt_xent(x, y, t), z1, z2), grads(other, z1, z2)): assert (a-b).abs().max()<1e-6


@pytest.mark.parametrize('siblings', [False, True])
def test_pieces_equal_the_whole(siblings):
    z1,z2 = pairs(700, 24); who = None if siblings else torch.arange(700)//2
    assert float(nt_xent(z1, z2, .1, who, chunk=0))==pytest.approx(float(nt_xent(z1, z2, .1, who)), abs=1e-6)
    for a,b in zip(*(grads(lambda x, y, c=c: 3*nt_xent(x, y, .1, who, chunk=c), z1, z2) for c in (0, 2048))): assert (a-b).abs().max()<1e-6


def test_derivatives_are_right():
    z1,z2 = pairs(6, 4, dtype=torch.float64)
    for chunk in (0, 2048): assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, .5, [0,0,1,2,3,4], chunk), (z1.requires_grad_(), z2.requires_grad_()))


def test_memory_grows_with_n_not_n_squared():
    "16,384 rows: the table of similarities would take a gigabyte"
    seen = []
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if torch.is_tensor(out): seen.append(out.numel())
            return out
    z1,z2 = (z.requires_grad_() for z in pairs(2500, 8))
    with Watch(): nt_xent(z1, z2, same=torch.arange(2500)).backward()
    assert max(seen)<=2**22 and z1.grad.isfinite().all()


def test_float32_under_autocast():
    z1,z2 = pairs(50, 32)
    with torch.autocast('cpu', torch.bfloat16): loss = nt_xent(z1, z2, .05)
    assert loss.dtype==torch.float32 and loss==nt_xent(z1, z2, .05)
    assert nt_xent(z1.bfloat16(), z2.bfloat16(), .05).dtype==torch.float32


def test_scale_and_order_do_not_matter():
    z1,z2 = pairs(20); p = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(3*z1, .1*z2))==pytest.approx(float(nt_xent(z1, z2)), abs=1e-6)
    assert float(nt_xent(z1[p], z2[p]))==pytest.approx(float(nt_xent(z1, z2)), abs=1e-6)==pytest.approx(float(nt_xent(z2, z1)), abs=1e-6)


def test_refusals():
    z1,z2 = pairs(4)
    for bad in (lambda: nt_xent(z1, z2[:3]), lambda: nt_xent(z1[0], z2[0]), lambda: nt_xent(z1, z2, 0), lambda: nt_xent(z1, z2, -1.), lambda: nt_xent(z1, z2, float('nan')),
                lambda: SimCLRTask(8, t=0), lambda: SimCLRTask(8, views='crop'), lambda: build_task('simclr', 8, None, tau=1)):
        with pytest.raises(Problem): bad()


@pytest.mark.parametrize('W', [2, 4])
def test_the_local_slice_alone_gives_one_part_in_w(W):
    g = torch.Generator().manual_seed(0); x = torch.randn(2, 8, 6, generator=g, dtype=torch.float64); w = torch.randn(6, 3, generator=g, dtype=torch.float64).requires_grad_()
    full = torch.autograd.grad(nt_xent(x[0]@w, x[1]@w), w)[0]; released,ours = torch.zeros_like(full),torch.zeros_like(full); n = 8//W
    for r in range(W):
        mine = (torch.arange(8)//n==r)[:,None]
        released += torch.autograd.grad(nt_xent(*(torch.where(mine, v@w, (v@w).detach()) for v in x)), w)[0]/W
        cols = torch.cat([F.normalize(v@w, dim=1) for v in x]); me = torch.arange(r*n, r*n+n); me = torch.cat([me, me+8])
        ours += torch.autograd.grad(_dense(cols[me], cols, me, None, .5), w)[0]/W
    assert (released-full/W).abs().max()<1e-12 and (ours-full).abs().max()<1e-12


def test_subject_ids():
    ids = subject_ids(['a-1', 'a-2', 'a-1'])
    assert ids.dtype==torch.int64 and ids[0]==ids[2]!=ids[1] and (ids>=0).all() and ids[0]==subject_ids(['a-1'])[0]


def test_effective_rank_and_metrics():
    g = torch.Generator().manual_seed(0); x = torch.randn(4000, 3, generator=g)
    assert float(effective_rank(x))==pytest.approx(3, abs=.02) and float(effective_rank(x[:,:1].expand(-1, 9)))==pytest.approx(1, abs=1e-2)
    assert float(effective_rank(torch.ones(5, 3)))==1
    u = F.normalize(x[:200], dim=1); m = pair_metrics(u, u, torch.cat([u, u]))
    assert float(m['alignment'])==0 and float(m['top1'])==1 and float(m['uniformity'])<-1
    assert float(pair_metrics(u, u.roll(1, 0), torch.cat([u, u]))['top1'])<.1
    twins = u.clone(); twins[1] = twins[0]; other = u+.3*torch.randn(200, 3, generator=g)
    assert float(pair_metrics(twins, twins, twins)['top1'])<1==float(pair_metrics(twins, twins, twins, same=[0,0,*range(1, 199)])['top1'])
    assert all(v.isfinite() for v in pair_metrics(u[:1], other[:1], torch.cat([u[:1], other[:1]])).values())


def test_projector():
    p = Projector()
    assert [tuple(v.shape) for v in p.state_dict().values()]==[(512,512), (64,512)] and list(p.state_dict())==['0.weight', '2.weight']


def test_task_and_views():
    b = dict(demo_batch(4, size=32), seed=3, epoch=1); torch.manual_seed(0)
    e,t = SFCN(channels=(4,4,4,4,4), n_features=8),build_task('simclr', 8, None, hidden=16, out=8)
    assert t.spec['name']=='simclr' and not any('bias' in k for k in t.state_dict())
    out = t(e, b); out['loss'].backward()
    assert set(out)=={'loss', 'alignment', 'uniformity', 'effective_rank', 'top1'} and all(p.grad is not None for p in (*e.parameters(), *t.parameters()))
    e.eval(); t.eval()
    with torch.no_grad(): a,same,later = (t(e, dict(b, **k))['loss'] for k in ({}, {}, dict(epoch=2)))
    assert a==same and a!=later
    part = {k: v[2:3] if not isinstance(v, int) else v for k,v in b.items()} # a view depends on its scan alone
    for whole,one in zip(CropViews()(b, 3, 1), CropViews()(part, 3, 1)): assert torch.equal(whole[2:3], one)
    x1,x2 = CropViews()(b, 3, 1); assert x1.shape==x2.shape==b['x'].shape and not torch.equal(x1, x2)


def test_own_views_and_siblings():
    b = dict(demo_batch(4, size=32), subject=['a','a','b','c'])
    class Same:
        def __call__(self, batch, seed, epoch): return batch['x'],batch['x']
    class Mean(nn.Module):
        def forward(self, x): return F.adaptive_avg_pool3d(x, 2).flatten(1)
    torch.manual_seed(0); t = SimCLRTask(8, views=Same(), hidden=8, out=4).eval(); r = SimCLRTask(8, views=Same(), hidden=8, out=4, siblings=True).eval(); r.load_state_dict(t.state_dict())
    with torch.no_grad():
        a,c = t(Mean(), b),r(Mean(), b); z = t.projector(Mean()(b['x']))
        assert float(a['alignment'])==0 and a['loss']<c['loss']
        assert float(a['loss'])==pytest.approx(float(nt_xent(z, z, .5, ['a','a','b','c'])), abs=1e-6) and float(c['loss'])==pytest.approx(float(nt_xent(z, z)), abs=1e-6)
    assert 'crops' in VIEWS and 'Same' in t.spec['views']


def test_recipes_of_the_views():
    from dataclasses import replace
    from neurossl import views as room
    assert VIEWS['published'] is room.PUBLISHED and VIEWS['corrected'] is room.CORRECTED and SimCLRTask(8).spec['views']=='corrected'==build_task('simclr', 8, None).spec['views']
    b = demo_batch(3, size=32); part = {k: v[1:2] for k,v in b.items()}
    for name in ('published', 'corrected', 'gentle'):
        x1,x2 = VIEWS[name](b, 3, 1); inside = x1!=0
        assert x1.shape==x2.shape==b['x'].shape and not torch.equal(x1, x2) and torch.equal(VIEWS[name](part, 3, 1)[0], x1[1:2])
        assert not torch.equal(VIEWS[name](b, 3, 2)[0], x1) and abs(float(x1[inside].mean()))<.05 and abs(float(x1[inside].std())-1)<.05
    assert replace(VIEWS['gentle'], name='corrected', least=room.CORRECTED.least, angle=room.CORRECTED.angle, gammas=room.CORRECTED.gammas)==room.CORRECTED


def test_what_is_had_without_learning():
    rows = {m: (r, c) for m,r,c in SimCLRTask(8).without_learning(None, range(100))}
    assert rows['loss']==(math.log(31), 0.) and rows['top1']==(1/31, 1.)
    one = torch.ones(16, 4); assert float(nt_xent(one, one))==pytest.approx(rows['loss'][0], abs=1e-5)

"y-aware contrast, VICReg, Barlow Twins and DINO: closed forms, slow twins, the contract of tasks, pieces of a batch"
import math

import numpy as np
import pytest
import torch
from neurossl.brainage import rebuild
from neurossl.dino import DINOTask, NameHead, dino_loss, small_views
from neurossl.encoders import SFCN
from neurossl.joint import age_weights, barlow_terms, vicreg_terms, yaware_loss
from neurossl.phantom import demo_batch
from neurossl.pretext import TaskError, build_task
from neurossl.simclr import nt_xent

SMALL = dict(channels=(8, 8, 16, 16, 16), n_features=16)
NAMES = ('yaware', 'vicreg', 'barlow', 'dino')


def pairs(n, d=6, seed=0): return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))


def make(name, **kw):
    if name=='dino': kw = dict(dict(encoder=dict(name='sfcn', **SMALL), local=1), **kw)
    return build_task(name, 16, None, **dict(dict(views='crops', hidden=16, out=8), **kw))


def by_hand(z1, z2, age, t, sigma):
    "A double loop in numpy"
    z = np.concatenate([z1, z2]).astype(float); z /= np.linalg.norm(z, axis=1, keepdims=True); a = np.concatenate([age, age]); n,total = len(a),0.
    for i in range(n):
        p = (i+n//2)%n; others = [j for j in range(n) if j!=i]
        w = {j: 1. if j==p else 0. if np.isnan(a[i]) or np.isnan(a[j]) else math.exp(-(a[i]-a[j])**2/(2*sigma**2)) for j in others}
        low = math.log(sum(math.exp(z[i]@z[j]/t) for j in others)); total += sum(w[j]*(low-z[i]@z[j]/t) for j in others)/sum(w.values())
    return total/n


@pytest.mark.parametrize('t,sigma', [(.1, 5.), (.5, 2.), (1., 30.)])
def test_yaware_equals_a_double_loop(t, sigma):
    z1,z2 = pairs(7); age = torch.tensor([50., 51, 60, math.nan, 72, 72, 80])
    assert float(yaware_loss(z1, z2, age, t, sigma))==pytest.approx(by_hand(z1.numpy(), z2.numpy(), age.numpy(), t, sigma), rel=1e-5)


def test_yaware_without_a_kernel_is_nt_xent_with_its_gradient():
    z1,z2 = pairs(9, seed=1); age = 40+3*torch.arange(9.); g = []
    for f in (lambda a, b: nt_xent(a, b, .2), lambda a, b: yaware_loss(a, b, age, .2, 1e-3)):
        x = z1.clone().requires_grad_(); g.append(torch.autograd.grad(f(x, z2), x)[0])
    assert (g[0]-g[1]).abs().max()<1e-6
    w = age_weights(age, age, 3.); assert w.diagonal().eq(1).all() and float(w[0,1])==pytest.approx(math.exp(-.5))
    for bad in (dict(t=0), dict(sigma=0.)):
        with pytest.raises(TaskError): yaware_loss(z1, z2, age, **bad)
    with pytest.raises(TaskError): yaware_loss(z1, z2, age[:3])


def test_vicreg_against_numpy():
    z1,z2 = pairs(12, 5, 3); t = vicreg_terms(z1, z2); a,b = (z.numpy().astype(float) for z in (z1, z2)); C = [np.cov(z.T) for z in (a, b)]
    assert float(t['invariance'])==pytest.approx(((a-b)**2).mean(), rel=1e-5)
    assert float(t['covariance'])==pytest.approx(sum((c**2).sum()-(np.diag(c)**2).sum() for c in C)/5, rel=1e-4)
    assert float(t['variance'])==pytest.approx(np.mean([np.maximum(1-np.sqrt(np.diag(c)+1e-4), 0).mean() for c in C]), rel=1e-4)
    with pytest.raises(TaskError): vicreg_terms(z1[:1], z2[:1])


def test_barlow_against_numpy_and_blind_to_scale():
    z1,z2 = pairs(20, 4, 5); t = barlow_terms(z1, z2); c = np.corrcoef(z1.numpy().T, z2.numpy().T)[:4,4:]
    assert float(t['on'])==pytest.approx(((1-np.diag(c))**2).sum(), rel=1e-3) and float(t['off'])==pytest.approx((c**2).sum()-(np.diag(c)**2).sum(), rel=1e-3)
    u = barlow_terms(7*z1+3, z2); assert float(u['on'])==pytest.approx(float(t['on']), rel=1e-3)


def test_dino_loss_leaves_out_the_same_view():
    s,t = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)),torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)); c = torch.full((6,), .1)
    p = ((t-c)/.04).softmax(2); q = (s/.1).log_softmax(2)
    want = np.mean([float(-(p[i]*q[j]).sum(1).mean()) for i in range(2) for j in range(3) if i!=j])
    assert float(dino_loss(list(s), list(t), c))==pytest.approx(want, rel=1e-5)
    z,k = NameHead(6, 8, 5, 4)(t[0]); assert z.norm(dim=1).sub(1).abs().max()<1e-6 and k.abs().max()<=1+1e-6


@pytest.mark.parametrize('name', NAMES)
def test_contract(name):
    torch.manual_seed(0); net,task,batch = SFCN(**SMALL),make(name),dict(demo_batch(4, 32), seed=0, epoch=0)
    r = task(net, batch); r['loss'].backward()
    assert {'loss', 'alignment', 'uniformity', 'effective_rank', 'top1'}<=set(r) and all(np.isfinite(float(v.detach())) for v in r.values())
    assert all(p.grad is not None for p in net.parameters())
    again = rebuild(task.spec, 16); assert again.spec==task.spec and again.state_dict().keys()==task.state_dict().keys()
    task.eval(); net.eval(); a,b = (task(net, batch)['loss'].item() for _ in range(2)); assert a==b
    task.train(); net.train(); assert task(net, dict(batch, epoch=1))['loss'].item()!=r['loss'].item() # other views
    for m,ref,_ in task.without_learning(None, range(20), 16): assert m in r and np.isfinite(ref)


def test_fit_and_resume(tmp_path):
    from neurossl.data import ScanDataset, build_cache
    from neurossl.phantom import phantom_cohort
    from neurossl.preprocess import Recipe
    from neurossl.splits import split_subjects
    from neurossl.train import TrainConfig, encoder_hash, fit
    man = split_subjects(phantom_cohort(20, 5, hashes=False), valid=.2, seed=0); cache,_ = build_cache(man, Recipe('s1_zscore', size=32), folder=tmp_path/'cache')
    train,valid = (ScanDataset(man[man.split==s], cache) for s in ('train', 'valid')); found = []
    for stop in (False, True):
        torch.manual_seed(3); net,task = SFCN(**SMALL),make('dino'); cfg,run = TrainConfig(epochs=2, batch=8, seed=3),tmp_path/str(stop)
        if stop:
            class Halt(Exception): pass
            class Stops(type(task)):
                def forward(self, encoder, batch):
                    if batch.get('epoch')==1 and self.training: raise Halt
                    return super().forward(encoder, batch)
            kind,task.__class__ = task.__class__,Stops; Stops.__name__,Stops.__qualname__ = kind.__name__,kind.__qualname__
            with pytest.raises(Halt): fit(net, task, train, valid, cfg, run)
            torch.manual_seed(9); net,task = SFCN(**SMALL),make('dino')
        fit(net, task, train, valid, cfg, run); found.append([encoder_hash(net), encoder_hash(task)])
    assert found[0]==found[1] # the teacher goes on where it was


def test_yaware_finds_a_planted_age():
    "Free embeddings under the y-aware loss line up with age; under NT-Xent they do not"
    g = torch.Generator().manual_seed(0); age = 50+30*torch.rand(24, generator=g); found = []
    for f in (lambda a, b: yaware_loss(a, b, age, .2, 5.), lambda a, b: nt_xent(a, b, .2)):
        z = torch.randn(24, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(); opt = torch.optim.Adam([z], .05)
        for _ in range(200): opt.zero_grad(); f(z, z).backward(); opt.step()
        d,gap = 1-torch.nn.functional.normalize(z.detach(), dim=1)@torch.nn.functional.normalize(z.detach(), dim=1).T,(age[:,None]-age).abs()
        i = torch.triu_indices(24, 24, 1); found.append(float(np.corrcoef(d[i[0],i[1]], gap[i[0],i[1]])[0,1]))
    assert found[0]>.7 and abs(found[1])<.4


def test_refusals():
    with pytest.raises(TaskError, match='Did you mean'): make('barlow', views='crop')
    with pytest.raises(TaskError, match='an option'): make('vicreg', tau=1)
    with pytest.raises(TaskError, match='from 0 to below 1'): make('dino', momentum=1.)
    x = small_views(demo_batch(2, 32), 2, .5, 16); assert [tuple(v.shape) for v in x]==[(2, 1, 16, 16, 16)]*2 and not torch.equal(*x)

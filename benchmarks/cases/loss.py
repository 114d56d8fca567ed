"Row 5d: NT-Xent, forward and backward"
import torch
import torch.nn.functional as F
from neurossl.simclr import nt_xent

from ..harness import Case, have, same
from . import case

def _both(loss, z1, z2):
    "Loss and gradients"
    z1,z2 = (z.detach().requires_grad_() for z in (z1, z2))
    out = loss(z1, z2); g = torch.autograd.grad(out, (z1, z2))
    return torch.cat([out.detach().view(1), *(x.flatten() for x in g)]).numpy()

def _broadcast(z1, z2, t=.5):
    "As it is often written, and as the released code of S2 does: cosines of a broadcast, then two lists of them"
    z = torch.cat([z1, z2]); n = len(z); s = F.cosine_similarity(z[:,None], z[None], dim=2)/t
    partner = torch.arange(n).roll(n//2); own = s[torch.arange(n), partner][:,None]
    rest = torch.ones(n, n, dtype=torch.bool).fill_diagonal_(False); rest[torch.arange(n), partner] = False
    return F.cross_entropy(torch.cat([own, s[rest].view(n, -1)], 1), torch.zeros(n, dtype=torch.long))

def _monai(t=.5):
    from monai.losses import ContrastiveLoss
    return ContrastiveLoss(temperature=t)

def _ntxent(name, n):
    torch.manual_seed(0); z1,z2 = torch.randn(2, n, 64); monai = _monai() if have('monai') else None
    ours = {'nt_xent': lambda: _both(nt_xent, z1, z2), 'nt_xent in pieces': lambda: _both(lambda a, b: nt_xent(a, b, chunk=0), z1, z2)}
    peers = {'broadcast cosine': lambda: _both(_broadcast, z1, z2), 'MONAI ContrastiveLoss': (lambda: _both(monai, z1, z2)) if monai else None}
    z = torch.cat([z1, z2])
    def gate():
        for k,f in [*ours.items(), *peers.items()]:
            if f: same(f'{k} and the broadcast', f(), peers['broadcast cosine'](), 5e-6)
    return Case(name, ours, peers, {'three products': lambda: (z@z.T@z, z@z.T)}, gate, 4*n*n*4/2**20) # unit: one table of similarities

@case
def ntxent(size, folder): return _ntxent('ntxent', 64)

@case
def ntxent_1024(size, folder): return _ntxent('ntxent_1024', 1024 if size>96 else 256) # ci and the tests of the gates: the broadcast takes gigabytes

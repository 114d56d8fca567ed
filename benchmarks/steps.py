"Training steps and features, as PyTorch does them when nothing is asked for, and as this library does; made in processes of their own, see apart.py"
import numpy as np
import torch
import torch.nn.functional as F
from neurossl.core import keep_memory
from neurossl.encoders import folded, head
from neurossl.nets import SFCN, ResNet3D
from neurossl.settings import TrainConfig, autocast, optimiser
from neurossl.train import _place
from torch import nn

EAGER,TUNED = dict(THP_MEM_ALLOC_ENABLE='0'),dict(THP_MEM_ALLOC_ENABLE='1') # allocators; the tuned one as `make` and the package set it
KEPT = dict(TUNED, NEUROSSL_BENCH='kept') # freed memory is kept, as it is for small batches and for features, see core.keep_memory

class _Classifier(nn.Module): # an encoder with as many classes as the rotations of S1 have
    def __init__(self, net): super().__init__(); self.encoder,self.head = net,head(net.n_features, 32)
    def forward(self, x): return self.head(self.encoder(x))

def _s3(name, size):
    from neurossl.slicenets import networks
    net = networks(size)[name]()
    for m in net.modules():
        if type(m).__name__=='Dropout': m.p = 0. # both sides compute the same
    return net

def network(
    kind, # 'sfcn', 'resnet18', or a network of S3
    shape,# voxels
):        # logits of a batch
    "A network with the same weights in every process"
    torch.manual_seed(0)
    return _Classifier(dict(sfcn=SFCN, resnet18=ResNet3D)[kind]()) if kind in ('sfcn', 'resnet18') else _s3(kind, shape[0])

def _plain(net): # the order of PyTorch's defaults
    for p in net.parameters(): p.data = p.data.contiguous()
    return net

def step(
    kind, shape, # as for `network`
    batch,       # scans
    mode,        # 'eager', 'fp32' or 'bf16'
):               # function: one step of Adam, at a step size of 0 so that every call gives the same; loss, then of each gradient its norm and some numbers
    "One step of training"
    net = network(kind, shape); dev = torch.device('cpu'); net = _plain(net) if mode=='eager' else _place(net, dev)
    g = torch.Generator().manual_seed(1); x = torch.rand(batch, 1, *shape, generator=g); y = torch.arange(batch)%2
    if mode!='eager': keep_memory(x)
    opt = optimiser([net], TrainConfig())
    for group in opt.param_groups: group['lr'] = 0.
    net.train()
    def f():
        opt.zero_grad()
        with autocast(mode, dev): loss = F.cross_entropy(net(x).float(), y)
        loss.backward(); opt.step(); grads = [p.grad for p in net.parameters()]
        return np.array([loss.item(), *(float(n) for n in torch._foreach_norm(grads)), *(v for q in grads for v in q.flatten()[:8].tolist())])
    return f

def _statistics(net): # of BatchNorm, as after training: not the neutral ones of the start
    g = torch.Generator().manual_seed(2)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm3d): m.running_mean.copy_(torch.rand(m.num_features, generator=g)*.1); m.running_var.copy_(torch.rand(m.num_features, generator=g)*.1+.05)
    return net

def features(
    kind, shape, batch, mode, # as for `step`
):               # function: features (B,F)
    "Features of a batch with the encoder frozen"
    dev = torch.device('cpu'); net = _statistics(network(kind, shape).encoder).eval(); x = torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(1))
    net = _plain(net) if mode=='eager' else folded(_place(net, dev))
    if mode!='eager': keep_memory() # as embed does
    def f():
        with torch.no_grad(), autocast(mode, dev): return net(x).float().numpy()
    return f

def load(
    size, batch, folder, n=8, # scans in the cache of a folder
):               # function: the next batch, from the disk to float32
    "Loading as training does it when the scans do not fit into memory"
    from itertools import cycle
    from neurossl.data import ScanDataset, build_cache
    from neurossl.phantom import phantom_cohort
    from neurossl.preprocess import Recipe
    man = phantom_cohort(n, 7, hashes=False); cache,_ = build_cache(man, Recipe('bench', size, ('minmax',)), folder=folder)
    ds = ScanDataset(man, cache, memory_gib=0., threads=1); at = cycle([list(range(i, i+batch)) for i in range(0, n-batch+1, batch)])
    def f(what=None): return ds.batch(range(batch) if what=='first' else next(at))['x'].numpy() if what=='first' else float(ds.batch(next(at))['x'][0, 0, 0, 0, 0])
    return f

def copy(
    n,# float32 numbers
):    # function
    "The bandwidth of the memory"
    x = np.zeros(n, np.float32); y = np.empty_like(x)
    def f(): np.copyto(y, x)
    return f

def convolutions(
    kind, shape, batch, # as for `step`
    back=True,          # forward and backward, or forward only
    precision='bf16',
):                      # function
    "As many operations as a network takes, in a convolution that the processor is good at"
    from neurossl.sizing import sizing
    row = 'step_gflop' if back else 'forward_gflop'; work = float(sizing(network(kind, shape), shape).measured[row])*batch
    side = 16 if min(shape)<64 else 48; conv = _place(nn.Conv3d(32, 64, 3, padding=1), torch.device('cpu')); x = torch.rand(1, 32, *(side,)*3).to(memory_format=torch.channels_last_3d).requires_grad_(back)
    one = 2*32*27*64*side**3*(3 if back else 1)/1e9; times = max(1, round(work/one))
    def f():
        for _ in range(times):
            with torch.set_grad_enabled(back), autocast(precision, x.device): y = conv(x)
            if back: y.backward(y.detach())
    return f

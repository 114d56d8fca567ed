"""On a GPU: what it can do at best, and how much of that training, augmentation and loading reach

`python -m benchmarks cuda`. Every time is between two events of the device. Channels-last order, torch.compile and bfloat16 are tried
on and off, after the losses have been compared; the line "quickest" says which settings should be the default there.
"""
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .harness import GateError, same
from .steps import network

def seconds(
    f,    # function without arguments
    dev,  # torch.device
    n=10, # calls; their median counts
)->float:
    "How long one call takes on the device"
    for _ in range(2): f()
    out = []
    for _ in range(n):
        if dev.type=='cuda':
            a,b = (torch.cuda.Event(enable_timing=True) for _ in range(2)); a.record(); f(); b.record(); b.synchronize(); out.append(a.elapsed_time(b)/1e3)
        else: t = time.perf_counter(); f(); out.append(time.perf_counter()-t)
    return float(np.median(out))

def limits(
    dev,
    mib=1024, # copied
    side=8192,# of the matrices
)->dict:      # copy_gb_s, matmul_bf16_tflop_s, matmul_fp32_tflop_s
    "Bandwidth and matmul rate of the device, measured"
    x = torch.empty(mib*2**18, device=dev); y = torch.empty_like(x); out = dict(copy_gb_s=2*x.numel()*4/seconds(lambda: y.copy_(x), dev)/1e9)
    for k,t in (('bf16', torch.bfloat16), ('fp32', torch.float32)):
        a = torch.randn(side, side, device=dev, dtype=t); out[f'matmul_{k}_tflop_s'] = 2*side**3/seconds(lambda: a@a, dev)/1e12
    return out

def steps(
    dev, top,         # of `limits`
    kind='sfcn', size=96, batch=16, tries=(True, False), # of torch.compile
)->list:              # a row a setting: channels_last, compile, precision, ms, scans_s, of_matmul, peak_mib
    "A training step under each setting; gate: the losses agree"
    from neurossl.sizing import sizing
    shape = (size,)*3; gflop = float(sizing(network(kind, shape), shape).measured.step_gflop)*batch; rows,first = [],None
    g = torch.Generator().manual_seed(1); x = torch.rand(batch, 1, *shape, generator=g).to(dev); y = (torch.arange(batch)%2).to(dev)
    for last,compiled,precision in product((False, True), tries, ('fp32', 'bf16')):
        net = network(kind, shape).to(dev).train()
        for p in net.parameters():
            if p.ndim==5: p.data = p.data.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
        opt = torch.optim.AdamW(net.parameters(), lr=0.); run = torch.compile(net) if compiled else net
        def step():
            opt.zero_grad()
            with torch.autocast(dev.type, torch.bfloat16, enabled=precision=='bf16'): loss = F.cross_entropy(run(x).float(), y)
            loss.backward(); opt.step(); return loss
        loss = step().detach().cpu().numpy(); first = loss if first is None else first
        same(f'loss, channels_last {last}, compile {compiled}, {precision}', loss, first, (.03 if precision=='bf16' else 2e-3)*abs(float(first)))
        if dev.type=='cuda': torch.cuda.reset_peak_memory_stats(dev)
        s = seconds(step, dev); peak = torch.cuda.max_memory_allocated(dev)/2**20 if dev.type=='cuda' else float('nan')
        rows.append(dict(channels_last=last, compile=compiled, precision=precision, ms=1e3*s, scans_s=batch/s, of_matmul=gflop/s/1e3/top[f'matmul_{precision}_tflop_s'], peak_mib=peak))
    return rows

def views(
    dev, top,
    size=96, batch=16,
)->dict: # ms_a_view, of_bandwidth: of reading int16 and writing float32 once
    "Views drawn and made on the device from the integers of the cache; gate: the same as on the CPU"
    from dataclasses import replace
    from neurossl.views import PUBLISHED, view_params, views_at
    recipe = replace(PUBLISHED, axes='zyx'); q = torch.randint(0, 30000, (batch, 1, *(size,)*3), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    b = dict(x=q, scan_id=[f's{i}' for i in range(batch)]); p = view_params(b, recipe, 0, 0); there = dict(b, x=q.to(dev))
    same('a view on the device and on the CPU', views_at(there, recipe, p).float().cpu(), views_at(b, recipe, p).float(), 5e-3)
    s = seconds(lambda: views_at(there, recipe, p), dev)
    return dict(ms_a_view=1e3*s/batch, of_bandwidth=q.numel()*6/s/1e9/top['copy_gb_s'])

def feeding(
    dev, folder,
    step_s=float('nan'),       # seconds of a training step on such a batch
    size=96, batch=16, n=64,
)->dict: # ms a batch: read (alone), one_by_one and ahead (beside work of the same length); share_of_a_step
    "Batches from the disk to the device, with and without pinned double buffering; gate: the same batches"
    from neurossl.data import ScanDataset, batches, build_cache
    from neurossl.phantom import phantom_cohort
    from neurossl.preprocess import Recipe
    man = phantom_cohort(n, 7, hashes=False); cache,_ = build_cache(man, Recipe('bench', size, ('minmax',)), folder=Path(folder), codec='npy', jobs=4)
    ds = ScanDataset(man, cache, memory_gib=0.); plan = [list(range(i, i+batch)) for i in range(0, n-batch+1, batch)]
    for a,b in zip(batches(ds, plan, dev, ahead=False), batches(ds, plan, dev, ahead=True)): same('one by one and ahead', b['x'].cpu(), a['x'].cpu())
    work = torch.randn(2048, 2048, device=dev)
    def epoch(ahead, times):
        t = time.perf_counter()
        for b in batches(ds, plan, dev, ahead=ahead):
            for _ in range(times): work@work
            b['x'].sum().item()
        return 1e3*(time.perf_counter()-t)/len(plan)
    epoch(False, 0); read = epoch(False, 0); times = max(1, round(read/1e3/max(seconds(partial(torch.mm, work, work), dev), 1e-6))) # as much work as reading takes
    return dict(read=read, one_by_one=epoch(False, times), ahead=epoch(True, times), share_of_a_step=read/1e3/step_s)

def main(
    folder,   # to write into
    dev=None, # None: the GPU
    **small,  # of a check on a CPU: size, batch, mib, side, n
)->dict:      # {} without a GPU
    "The whole profile"
    if dev is None and not torch.cuda.is_available(): print('no CUDA device: nothing was measured'); return {}
    dev = dev or torch.device('cuda'); pick = lambda *ks: {k: small[k] for k in ks if k in small}
    out = dict(device=torch.cuda.get_device_name(dev) if dev.type=='cuda' else dev.type, torch=torch.__version__, limits=limits(dev, **pick('mib', 'side')))
    out['steps'] = steps(dev, out['limits'], **pick('size', 'batch', 'tries')); best = min(out['steps'], key=lambda r: r['ms']); out['quickest'] = {k: best[k] for k in ('channels_last', 'compile', 'precision')}
    out['views'] = views(dev, out['limits'], **pick('size', 'batch')); out['feeding'] = feeding(dev, folder, best['ms']/1e3, **pick('size', 'batch', 'n'))
    print('device:', out['device'], *(f'{k} {v:.3g}' for k,v in out['limits'].items()), sep='\n  ')
    for r in out['steps']: print('  step: channels_last {channels_last!s:5} compile {compile!s:5} {precision} {ms:9.2f} ms, {scans_s:7.1f} scans/s, {of_matmul:.2f} of the matmul rate, {peak_mib:.0f} MiB'.format(**r))
    print('quickest:', out['quickest']); print('a view: {ms_a_view:.3f} ms, {of_bandwidth:.2f} of the bandwidth'.format(**out['views']))
    print('a batch, ms: read {read:.1f}; with as much work beside it {one_by_one:.1f} one by one, {ahead:.1f} ahead; reading is {share_of_a_step:.2f} of a step'.format(**out['feeding']))
    return out

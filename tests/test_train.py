"Training: equal after a kill, whole or absent on disk, and refusals that name what is wrong"
import hashlib
import json
import os
import signal
import time
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from neurossl.core import Problem
from neurossl.encoders import SFCN
from neurossl.manifest import empty_manifest
from neurossl.pretext import AgeTask, RotationTask
from neurossl.splits import LeakError
from neurossl.train import (TrainConfig, TrainError, encoder_hash, evaluate, fit, load_ckpt, load_encoder, read_ckpt, refresh_bn, save_ckpt,
                            step_size)
from torch import nn


class Blobs:
    "A data set of 32^3 noise whose brightness is the age; has what `loader` and `fit` ask for"
    cache = SimpleNamespace(recipe=SimpleNamespace(key='blobs-32'))
    def __init__(self, n, first=0, split='train'):
        self.man = empty_manifest([dict(scan_id=f'scan-{i:03d}', cohort='c', subject=f'c-{i:03d}', age=50.+i%30, sex='F', split=split, synthetic=True)
                                   for i in range(first, first+n)])
    def __len__(self): return len(self.man)
    def __getitem__(self, i):
        k = int(self.man.index[i][5:]); g = torch.Generator().manual_seed(k)
        return dict(x=torch.rand(1, 32, 32, 32, generator=g)*(50+k%30)/80, scan_id=self.man.index[i], age=float(self.man.age.iloc[i]))
    def batch(self, idx):
        b = [self[i] for i in idx]
        return dict(x=torch.stack([d['x'] for d in b]), scan_id=[d['scan_id'] for d in b], age=torch.tensor([d['age'] for d in b]))


TRAIN,VALID,CFG = Blobs(20),Blobs(6, 100, 'valid'),TrainConfig(epochs=3, batch=6, lr=1e-2)


def fresh(seed=0, kind='age', dropout=0.):
    torch.manual_seed(seed); e = SFCN(channels=(4,4,4,4,4), n_features=8)
    t = AgeTask(8, 62, 8) if kind=='age' else RotationTask(8)
    if dropout: t.head = nn.Sequential(nn.Dropout(dropout), t.head)
    return e,t


class Stop:
    "An augmentation that stops the run once in a given epoch"
    def __init__(self, epoch, error): self.epoch,self.error = epoch,error
    def __call__(self, b, seed, epoch):
        if self.epoch==epoch: self.epoch = None; raise self.error
        return b


def test_config():
    assert TrainConfig(epochs=2).epochs==2 and replace(CFG, lr=1)==TrainConfig(epochs=3, batch=6, lr=1)
    with pytest.raises(FrozenInstanceError): CFG.lr = 1
    for bad in (dict(epochs=0), dict(epochs=2.), dict(epochs=True), dict(batch=1), dict(lr=0), dict(lr=-1), dict(lr=float('inf')), dict(lr='1e-3'), dict(seed=-1),
                dict(weight_decay=2), dict(precision='fp16'), dict(schedule='cos'), dict(grad_clip=-1), dict(epoch=3), dict(epochs=None)):
        with pytest.raises(Problem) as e: TrainConfig(**bad)
        assert next(iter(bad)) in str(e.value)
    assert TrainConfig(epochs=np.int64(3), lr=1).epochs==3


def test_step_size():
    lrs = [step_size(TrainConfig(lr=2e-3), i, 100) for i in range(100)]
    assert lrs[0]==2e-3 and all(a>b>0 for a,b in zip(lrs, lrs[1:])) and lrs[50]==pytest.approx(1e-3)
    assert step_size(TrainConfig(lr=2e-3, schedule='constant'), 99, 100)==2e-3


@pytest.mark.parametrize('kind', ['age', 'rotation'])
def test_resume_is_bit_exact(tmp_path, kind):
    "With dropout, so that the random numbers count too; stopped in the middle of an epoch"
    never,late = Stop(-1, None),Stop(2, InterruptedError('stop'))
    a,b,c = (fresh(0, kind, .5) for _ in range(3))
    whole = fit(*a, TRAIN, VALID, CFG, tmp_path/'a', augment=never)
    with pytest.raises(InterruptedError): fit(*b, TRAIN, VALID, CFG, tmp_path/'b', augment=late)
    assert read_ckpt(tmp_path/'b'/'checkpoint.safetensors')[1]['epoch']==2
    torch.rand(7)                                                 # another state of the caller's generator
    rest = fit(*c, TRAIN, VALID, CFG, tmp_path/'b', augment=late)
    assert [encoder_hash(m) for m in a]==[encoder_hash(m) for m in c]
    assert whole.rows==rest.rows and len(rest)==3
    assert (tmp_path/'a'/'weights.safetensors').read_bytes()==(tmp_path/'b'/'weights.safetensors').read_bytes()
    assert (tmp_path/'a'/'history.csv').read_text()==(tmp_path/'b'/'history.csv').read_text()


def test_same_seed_same_weights_other_seed_other_weights(tmp_path):
    a,b,c = fresh(0),fresh(0),fresh(0)
    state = torch.get_rng_state()
    for i,(m,seed) in enumerate(zip((a, b, c), (0, 0, 1))): fit(*m, TRAIN, None, TrainConfig(epochs=1, batch=6, seed=seed), tmp_path/str(i))
    assert encoder_hash(a[0])==encoder_hash(b[0])!=encoder_hash(c[0])
    assert torch.equal(state, torch.get_rng_state())              # the caller's randomness is its own


def test_ctrl_c_then_finished_run_is_read(tmp_path):
    light = Stop(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): fit(*fresh(), TRAIN, VALID, CFG, tmp_path, augment=light)
    assert 'interrupted; the same call continues' in (tmp_path/'log.txt').read_text()
    with pytest.raises(TrainError, match='stopped after epoch 1'): load_encoder(tmp_path)
    a = fresh(); h = fit(*a, TRAIN, VALID, CFG, tmp_path, augment=light)
    assert sorted(f.name for f in tmp_path.iterdir())==['history.csv', 'log.txt', 'weights.json', 'weights.safetensors']
    b = fresh(1); before = (tmp_path/'log.txt').read_text()
    assert fit(*b, TRAIN, VALID, CFG, tmp_path, augment=light).rows==h.rows and encoder_hash(a[0])==encoder_hash(b[0])
    assert (tmp_path/'log.txt').read_text()==before and not b[0].training
    assert encoder_hash(load_encoder(tmp_path))==encoder_hash(a[0])
    lines = before.splitlines()
    assert sum('epoch' in l and 'left' in l and 'gone' in l for l in lines)==3
    assert list(pd.read_csv(tmp_path/'history.csv').epoch)==[1,2,3] and {'train_loss', 'valid_loss', 'valid_mae_years', 'lr'}<=set(h.table)
    assert 'History of 3 epochs' in repr(h)


def test_kill_9(tmp_path):
    "A process killed without warning leaves a whole checkpoint; the next one ends where an uninterrupted one does"
    threads = torch.get_num_threads(); torch.set_num_threads(1)   # a forked process cannot use its parent's threads
    pid = os.fork()
    if pid==0:
        try: fit(*fresh(), TRAIN, VALID, CFG_LONG, tmp_path/'b', augment=Slow(-1, None))
        finally: os._exit(0)
    end,ck = time.monotonic()+60,tmp_path/'b'/'checkpoint.safetensors'
    while not ck.exists() and time.monotonic()<end: time.sleep(.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    assert 1<=read_ckpt(ck)[1]['epoch']<CFG_LONG.epochs
    b = fresh(); fit(*b, TRAIN, VALID, CFG_LONG, tmp_path/'b', augment=Slow(-1, None))
    a = fresh(); fit(*a, TRAIN, VALID, CFG_LONG, tmp_path/'a', augment=Slow(-1, None))
    torch.set_num_threads(threads)
    assert encoder_hash(a[0])==encoder_hash(b[0])


class Slow(Stop):
    def __call__(self, b, seed, epoch): time.sleep(.01); return b


CFG_LONG = TrainConfig(epochs=6, batch=6)


def test_another_training_is_refused(tmp_path):
    fit(*fresh(), TRAIN, VALID, TrainConfig(epochs=1, batch=6), tmp_path)
    for change,args in dict(lr=(*fresh(), TRAIN, VALID, TrainConfig(epochs=1, batch=6, lr=.5)), epochs=(*fresh(), TRAIN, VALID, TrainConfig(epochs=2, batch=6)),
                            task=(*fresh(0, 'rotation'), TRAIN, VALID, TrainConfig(epochs=1, batch=6)), train=(*fresh(), Blobs(18), VALID, TrainConfig(epochs=1, batch=6)),
                            encoder=(SFCN(n_features=16), AgeTask(16, 62, 8), TRAIN, VALID, TrainConfig(epochs=1, batch=6))).items():
        with pytest.raises(TrainError, match='another training') as e: fit(*args, tmp_path)
        assert f'{change}=' in str(e.value)
    with pytest.raises(TrainError, match='augment'): fit(*fresh(), TRAIN, VALID, TrainConfig(epochs=1, batch=6), tmp_path, augment=Stop(-1, None))


def test_data_refusals(tmp_path):
    for split in ('test', 'sealed'):
        with pytest.raises(LeakError): fit(*fresh(), Blobs(20, split=split), VALID, CFG, tmp_path)
        with pytest.raises(LeakError): fit(*fresh(), TRAIN, Blobs(6, 100, split), CFG, tmp_path)
    with pytest.raises(LeakError, match='scan-000'): fit(*fresh(), TRAIN, Blobs(3), CFG, tmp_path)
    with pytest.raises(TrainError, match='Use batch=2'): fit(*fresh(), Blobs(5), VALID, CFG, tmp_path)
    with pytest.raises(TrainError, match='no scans'): fit(*fresh(), TRAIN, Blobs(0), CFG, tmp_path)
    assert not list(tmp_path.iterdir())


class Poison:
    def __init__(self, value, epoch=1): self.value,self.epoch = value,epoch
    def __call__(self, b, seed, epoch):
        if epoch==self.epoch and 'scan-007' in b['scan_id']: b['x'][b['scan_id'].index('scan-007'), 0, 3, 3, 3] = self.value
        return b


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_nan_names_the_scan_and_keeps_the_last_good(tmp_path, value):
    m = fresh()
    with pytest.raises(TrainError, match=r'epoch 2, step \d.*not finite: scan-007') as e: fit(*m, TRAIN, VALID, CFG, tmp_path, augment=Poison(value))
    assert 'scan-001' not in str(e.value)
    assert read_ckpt(tmp_path/'checkpoint.safetensors')[1]['epoch']==1
    assert all(p.isfinite().all() for p in m[0].parameters())     # the bad step was not taken


def test_gradient_that_explodes_is_named_by_batch(tmp_path):
    class Bomb(AgeTask):
        def forward(self, encoder, b): out = super().forward(encoder, b); out['loss'] = out['loss']*float('inf'); return out
    with pytest.raises(TrainError, match='finite voxels; the scans were scan-'): fit(fresh()[0], Bomb(8, 62, 8), TRAIN, VALID, CFG, tmp_path)


def test_out_of_memory_advice(tmp_path):
    def oom(b, seed, epoch): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(TrainError, match='Try batch=3, or precision bf16'): fit(*fresh(), TRAIN, VALID, CFG, tmp_path, augment=oom)
    def other(b, seed, epoch): raise RuntimeError('shapes differ')
    with pytest.raises(RuntimeError, match='shapes differ'): fit(*fresh(), TRAIN, VALID, CFG, tmp_path, augment=other)


def test_looks_on_the_way_are_in_bf16_and_the_last_judgement_is_not(tmp_path):
    seen = []
    class Blobs2(Blobs):
        def batch(self, idx): seen.append(torch.is_autocast_enabled('cpu')); return super().batch(idx)
    cfg = TrainConfig(epochs=2, batch=6, lr=1e-2, precision='bf16'); e,t = fresh()
    rows = fit(e, t, TRAIN, Blobs2(6, 100, 'valid'), cfg, tmp_path)
    assert seen==[True, False]
    assert rows.table.valid_loss.iloc[-1]==evaluate(refresh_bn(e, TRAIN, 6), t, VALID, 6, cfg.seed)['loss']


def test_clip_bf16_constant_and_frozen_parts(tmp_path):
    cfg = TrainConfig(epochs=1, batch=6, precision='bf16', grad_clip=.1, schedule='constant', weight_decay=.01)
    e,t = fresh(); e.feature_extractor.conv_0[0].weight.requires_grad_(False); w = e.feature_extractor.conv_0[0].weight.clone()
    h = fit(e, t, TRAIN, VALID, cfg, tmp_path)
    assert torch.equal(w, e.feature_extractor.conv_0[0].weight) and np.isfinite(h.table.to_numpy(float)).all()
    assert {p.dtype for p in e.parameters()}=={torch.float32}


def test_fit_learns(tmp_path):
    "Brightness is age: half of the error of the mean is gone in a few epochs"
    m,ds = fresh(),Blobs(30)
    h = fit(*m, ds, Blobs(10, 100, 'valid'), TrainConfig(epochs=6, batch=10, lr=2e-2), tmp_path)
    ages = ds.man.age; assert h.table.valid_mae_years.iloc[-1]<.5*(ages-ages.mean()).abs().mean()


def test_checkpoint_round_trip(tmp_path):
    a,b = fresh(0),fresh(1)
    p = save_ckpt(tmp_path/'x.safetensors', dict(encoder=a[0], task=a[1]), dict(epoch=4, note='x', history=[dict(loss=.1+.2)]))
    assert load_ckpt(p, dict(encoder=b[0]))==load_ckpt(p, task=b[1])==dict(epoch=4, note='x', history=[dict(loss=.1+.2)])
    assert [encoder_hash(m) for m in a]==[encoder_hash(m) for m in b]
    side = json.loads((tmp_path/'x.json').read_text())
    assert side['sha256']==hashlib.sha256(p.read_bytes()).hexdigest() and side['epoch']==4


def test_every_flipped_byte_is_noticed(tmp_path):
    a,b = fresh(0)[0],fresh(1)[0]; before = encoder_hash(b)
    p = save_ckpt(tmp_path/'x.safetensors', dict(encoder=a), dict(epoch=4)); good = p.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(0, 8), *rng.integers(8, len(good), 120), *range(len(good)-3, len(good))]:
        bad = bytearray(good); bad[at] ^= 1<<int(rng.integers(8)); p.write_bytes(bad)
        try: load_ckpt(p, encoder=b)
        except Problem: assert encoder_hash(b)==before
        else: assert encoder_hash(b)==encoder_hash(a); b = fresh(1)[0] # a flip that changes nothing that counts
    for n in (0, 1, 7, 8, 100, len(good)//2, len(good)-1):
        p.write_bytes(good[:n])
        with pytest.raises(TrainError): load_ckpt(p, encoder=b)
    with pytest.raises(TrainError, match='no such file'): load_ckpt(tmp_path/'none.safetensors')


def test_strict_loading_changes_all_or_nothing(tmp_path):
    a = fresh(0); p = save_ckpt(tmp_path/'x.safetensors', dict(encoder=a[0], task=a[1]), {})
    b,wide = fresh(1)[0],AgeTask(16); before = encoder_hash(b)
    with pytest.raises(TrainError, match='misshapen'): load_ckpt(p, encoder=b, task=wide)
    assert encoder_hash(b)==before
    with pytest.raises(TrainError, match='0 of 42 tensors matched; 42 missing'): load_ckpt(p, other=b)
    small = SFCN(channels=(4,4,4,4), n_features=8)
    with pytest.raises(TrainError, match='unexpected'): load_ckpt(p, encoder=small)


def test_not_finite_is_neither_written_nor_read(tmp_path):
    a = fresh(0)[0]; p = save_ckpt(tmp_path/'x.safetensors', dict(encoder=a), {}); good = p.read_bytes()
    with torch.no_grad(): a.feature_extractor.conv_1[0].weight[0] = float('inf')
    with pytest.raises(TrainError, match='conv_1.0.weight'): save_ckpt(p, dict(encoder=a), {})
    assert p.read_bytes()==good


def test_foreign_safetensors_are_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({'encoder.x': torch.ones(2)}, tmp_path/'f.safetensors')
    with pytest.raises(TrainError, match='without facts'): read_ckpt(tmp_path/'f.safetensors')


def test_refresh_bn():
    e = fresh()[0]; weights = [p.clone() for p in e.parameters()]
    e.train(); e.feature_extractor.conv_2.eval()
    assert refresh_bn(e, TRAIN, batch=20) is e
    x = torch.stack([TRAIN[i]['x'] for i in range(20)]); first = e.feature_extractor.conv_0
    with torch.no_grad(): y = first[0](x)
    assert torch.allclose(first[1].running_mean, y.mean((0,2,3,4)), atol=1e-3) and torch.allclose(first[1].running_var, y.var((0,2,3,4)), rtol=5e-3)
    assert all(torch.equal(p, q) for p,q in zip(weights, e.parameters()))
    assert e.training and not e.feature_extractor.conv_2.training and first[1].momentum==.1
    assert encoder_hash(refresh_bn(fresh()[0], TRAIN, batch=5))==encoder_hash(refresh_bn(fresh()[0], TRAIN, batch=5))
    with pytest.raises(TrainError): refresh_bn(e, Blobs(1))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)); assert refresh_bn(plain, TRAIN) is plain


def test_refresh_bn_through_a_task_and_at_most_n():
    seen = []
    class Spy(nn.Module):
        def forward(self, encoder, b): seen.extend(b['scan_id']); encoder(b['x'])
    refresh_bn(fresh()[0], TRAIN, batch=5, n=10, task=Spy())
    assert len(seen)==10==len(set(seen))


def test_evaluate_weighs_scans_not_batches():
    m = fresh()
    for ds in (VALID, Blobs(7, 200)):
        a,b = (evaluate(*m, ds, batch=k) for k in (4, 7))
        assert a==pytest.approx(b, rel=1e-5) and set(a)=={'loss', 'mae_years'}


def test_evaluate_names_a_bad_scan():
    class Bad(Blobs):
        def __getitem__(self, i): d = super().__getitem__(i); d['x'] = d['x']*(float('nan') if d['scan_id']=='scan-102' else 1); return d
    with pytest.raises(TrainError, match='not finite: scan-102;'): evaluate(*fresh(), Bad(6, 100, 'valid'), batch=3)


def test_encoder_hash_sees_one_bit():
    e = fresh()[0]; h = encoder_hash(e)
    with torch.no_grad(): e.feature_extractor.conv_3[0].bias[0] = torch.nextafter(e.feature_extractor.conv_3[0].bias[0], torch.tensor(9.))
    assert encoder_hash(e)!=h and len(h)==64 and encoder_hash(e.to(memory_format=torch.channels_last_3d))==encoder_hash(e)


def test_new_settings_leave_old_identities_alone():
    from neurossl.settings import settings
    assert list(settings(TrainConfig()))==['epochs', 'lr', 'batch', 'weight_decay', 'seed', 'precision', 'schedule', 'grad_clip', 'bn_scans']
    assert settings(TrainConfig(keep=[2,1], warmup=.5))['keep']==[1,2]
    for bad in (dict(warmup=5), dict(accumulate=3), dict(accumulate=16), dict(keep=(0,)), dict(keep=(6,)), dict(keep=1), dict(decay='bias'), dict(sync_bn=1)):
        with pytest.raises(TrainError, match=next(iter(bad))): TrainConfig(**bad)


def test_warm_up_decay_parts_and_kept_epochs(tmp_path):
    from neurossl.settings import optimiser
    lrs = [step_size(TrainConfig(epochs=10, lr=1e-3, warmup=2), i, 100) for i in range(100)]
    assert lrs[0]==pytest.approx(5e-5) and lrs[19]==lrs[20]==1e-3 and all(a<b for a,b in zip(lrs[:19], lrs[1:20])) and all(a>b for a,b in zip(lrs[20:], lrs[21:]))
    e,t = fresh(); groups = optimiser([e, t], TrainConfig(weight_decay=.1, decay='weights')).param_groups
    assert [g['weight_decay'] for g in groups]==[.1, 0.] and all(p.ndim>1 for p in groups[0]['params']) and all(p.ndim<2 for p in groups[1]['params'])
    a,b = fresh(),fresh(); cfg = TrainConfig(epochs=2, batch=6, warmup=1, accumulate=3, decay='weights', weight_decay=.1)
    fit(*a, TRAIN, VALID, cfg, tmp_path/'a'); fit(*b, TRAIN, VALID, replace(cfg, keep=(1,)), tmp_path/'b')
    assert encoder_hash(a[0])==encoder_hash(b[0])!=encoder_hash(load_encoder(tmp_path/'b', epoch=1))
    with pytest.raises(TrainError, match='one of 1'): load_encoder(tmp_path/'b', epoch=2)
    with pytest.raises(TrainError, match='keep='): fit(*fresh(), TRAIN, VALID, replace(cfg, keep=(1,)), tmp_path/'a')
    with pytest.raises(TrainError, match='keep='): fit(*fresh(), TRAIN, VALID, cfg, tmp_path/'b')

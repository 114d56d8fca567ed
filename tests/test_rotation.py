"Rotations: known counts, exact quarter turns, nothing that gives the class away"
import math

import numpy as np
import pytest
import torch
from neurossl.core import Problem
from neurossl.encoders import SFCN
from neurossl.phantom import demo_batch
from neurossl.rotation import KINDS, RotationTask, audit_rotations, blur_leak, rotation_table, turned


def batch(n=4, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(x=torch.rand(n, 1, size, size, size, generator=g), scan_id=[f'scan-{i}' for i in range(n)])


def tiny(): torch.manual_seed(0); return SFCN(channels=(4,4,4,4,4), n_features=8)


@pytest.mark.parametrize('kind,labels,distinct,least', [('8x4', 32, 32, 45), ('euler32', 32, 24, 90), ('rot24', 24, 24, 90), ('rot10', 10, 10, 90)])
def test_tables(kind, labels, distinct, least):
    R = rotation_table(kind)
    assert R.shape==(labels, 3, 3) and R.dtype==torch.float64
    assert torch.allclose(R@R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(labels, dtype=torch.float64), atol=1e-12)
    assert torch.equal(R[0], torch.eye(3, dtype=torch.float64))
    assert len({tuple((r.numpy()*1e6).round().astype(int).ravel()) for r in R})==distinct   # another way to count
    assert audit_rotations(kind)==dict(labels=labels, distinct=distinct, bayes_ceiling=distinct/labels, min_angle_deg=least)


def test_cube_group_is_closed():
    R = rotation_table('rot24'); members = {tuple(r.long().flatten().tolist()) for r in R}
    assert all(tuple((a@b).round().long().flatten().tolist()) in members for a in R for b in R)


def test_unknown_kind():
    with pytest.raises(Problem, match="Did you mean 'euler32'"): rotation_table('euler')


@pytest.mark.parametrize('size', [32, 33])
def test_quarter_turns_move_voxels_exactly(size):
    x = batch(2, size)['x']; still = turned(x, torch.eye(3).expand(2, 3, 3))
    inside = turned(torch.ones_like(x), torch.eye(3).expand(2, 3, 3))>0
    assert torch.allclose(still[inside], x[inside], atol=1e-5) and (still[~inside]==0).all()
    for axis,dims in enumerate([(3,4), (4,2), (2,3)]):
        R = rotation_table('rot10')[1+3*axis]
        assert torch.allclose(turned(x, R.expand(2, 3, 3)), torch.rot90(still, 1, dims), atol=1e-4)


def test_turning_is_about_voxels_not_the_box():
    "In a box of unequal sides a quarter turn still keeps distances"
    x = torch.zeros(1, 1, 40, 32, 48); x[0,0,20+8,16,24] = 1
    y = turned(x, rotation_table('rot10')[7:8])       # 90 degrees about z: +x goes to +y
    at = [int(i) for i in np.unravel_index(int(y.argmax()), y.shape[2:])]
    assert abs(at[0]-19.5)<=1 and abs(at[1]-(15.5+8.5))<=1 and at[2] in (23, 24)


def test_every_class_is_equally_blurred():
    g = torch.Generator().manual_seed(1); task = RotationTask(8)
    b = dict(x=torch.randn(64, 1, 32, 32, 32, generator=g), scan_id=[f's{i}' for i in range(64)])
    y,R,shift = task.draw(b)
    z = turned(b['x'], R, shift)[:,0]; v = z[:,z[0]!=0].var(1)
    slow = (y//4%2).bool()                            # the 45 degree classes
    assert abs(v[slow].mean()/v[~slow].mean()-1)<.1 and v.std()/v.mean()<.15
    w = turned(b['x'], task.table[y])[:,0]; w = w[:,z[0]!=0].var(1)
    assert w[slow].mean()/w[~slow].mean()<.7          # the shortcut that the jitter removes


def test_draws_depend_on_scan_epoch_and_seed_only():
    task,b = RotationTask(8),batch(6)
    def classes(**kw): return task.draw(dict(b, **kw))[0].tolist()
    one = classes(seed=0, epoch=0)
    back = {k: (v[::-1] if isinstance(v, list) else v.flip(0)) for k,v in b.items()}
    assert task.draw(dict(back, seed=0, epoch=0))[0].tolist()==one[::-1]
    assert one!=classes(seed=0, epoch=1) and one!=classes(seed=1, epoch=0)
    assert RotationTask(8, seed=1).draw(dict(b, seed=0, epoch=0))[0].tolist()!=one
    torch.manual_seed(9); assert classes(seed=0, epoch=0)==one


def test_classes_are_uniform():
    y = RotationTask(8).draw(dict(scan_id=[f's{i}' for i in range(3200)]))[0]
    assert (y.bincount(minlength=32)-100).abs().max()<45


def test_rotation_task_contract_and_autocast():
    task,b = RotationTask(8, kind='rot24'),batch()
    out = task(tiny(), b)
    assert set(out)=={'loss', 'accuracy'} and 0<=float(out['accuracy'])<=1 and out['loss'].requires_grad
    x,_ = task.rotate(b)
    with torch.autocast('cpu', torch.bfloat16): low,_ = task.rotate(b)
    assert torch.equal(x, low)                        # coordinates are never rounded to bfloat16
    assert task.head.out_features==24


@pytest.fixture(scope='module')
def many(): return demo_batch(16, size=32, cohort='population')


def test_copied_quarter_turns_leak_and_equal_resampling_does_not(many):
    leaky,fair = blur_leak(many, _resample='needed'),blur_leak(many)
    assert leaky['two_way']>.85 and leaky['times_chance']>1.3   # perfect knowledge of two groups among 32 classes is twice chance
    assert .4<fair['two_way']<.6 and fair['times_chance']<=2 and fair['chance']==1/32
    assert blur_leak(many)==fair


def test_sets_of_quarter_turns_have_one_group(many):
    out = blur_leak(many, 'rot10'); assert math.isnan(out['two_way']) and out['times_chance']<=2
    with pytest.raises(Problem, match='at least 4'): blur_leak({k: v[:2] for k,v in many.items()})


def test_a_copied_identity_would_be_found(many):
    "A leak of another kind, planted: the first class is sharper than the others"
    from neurossl import rotation
    feats,y,scan = rotation._every_class(many, 'rot24', 0, 5., 'all'); sharp = rotation._texture(turned(many['x'], rotation_table('rot10')[:1].expand(16, 3, 3)))
    assert (sharp[:,7].numpy()>feats[y==0][:,7]).all()         # fine detail is lost by resampling


def test_halves_of_the_task():
    task,b,net = RotationTask(8),batch(),tiny().eval()
    with torch.no_grad(): x,y = task.look(b); a,c = task(net, b),task.judge(net(x), y)
    assert a.keys()==c.keys() and all(torch.equal(a[k], c[k]) for k in a)
    assert set(KINDS)=={'8x4', 'euler32', 'rot24', 'rot10'}

"Random crops: replayable, uniform, blind to batch order"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from neurossl.augment import Augment, crop_at, crop_offsets, item_seed, random_crop, uniforms
from neurossl.core import Problem

def batch(n=5, size=12):
    return dict(x=torch.arange(n*size**3, dtype=torch.float32).reshape(n,1,size,size,size), scan_id=[f's{i}' for i in range(n)])

def test_seeds_are_fixed_for_ever():
    assert item_seed(0, 0, 'a') ==5854815807368864626
    assert np.allclose(uniforms([1], 2, 'crop'), [[.5265066024734054, .4262696291391893]])

def test_seeds_differ():
    s = {item_seed(a, b, c, d) for a in range(5) for b in range(5) for c in ('a', 'b', '1', '11') for d in range(3)}
    assert len(s)==5*5*4*3

@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 2**31), st.integers(0, 100), st.integers(1, 12))
def test_order_and_batching_change_nothing(order, seed, epoch, size):
    b,a = batch(),Augment(crop=size)
    whole = a(b, seed, epoch)['x']
    assert torch.equal(a(dict(x=b['x'][order], scan_id=[b['scan_id'][i] for i in order]), seed, epoch)['x'], whole[order])
    assert torch.equal(torch.cat([a(dict(x=b['x'][i:i+1], scan_id=b['scan_id'][i:i+1]), seed, epoch)['x'] for i in range(5)]), whole)

def test_crop_is_the_slice_it_says():
    b = batch(); y,o = random_crop(b['x'], (5,7,12), range(5))
    for x,v,(i,j,k) in zip(b['x'], y, o.tolist()): assert torch.equal(v, x[:,i:i+5,j:j+7,k:k+12])
    assert torch.equal(crop_at(b['x'], o, (5,7,12)), y)

def test_device_path_equals_cpu_path():
    b = batch(); o = crop_offsets((12,)*3, 7, range(5))
    w = b['x'].unfold(2,7,1).unfold(3,7,1).unfold(4,7,1)
    assert torch.equal(w[torch.arange(5), :, o[:,0], o[:,1], o[:,2]], crop_at(b['x'], o, 7))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_crops_are_the_cpu_crops():
    b = batch(); a = Augment(crop=7)
    assert torch.equal(a(dict(b, x=b['x'].cuda()), 0, 0)['x'].cpu(), a(b, 0, 0)['x'])

def test_every_place_is_equally_likely():
    o = crop_offsets((12,)*3, 10, [item_seed(0, e, 'x') for e in range(3000)])
    for d in range(3): assert abs(np.bincount(o[:,d], minlength=3)-1000).max()<130
    assert abs(np.corrcoef(o.T.numpy())-np.eye(3)).max()<.08

def test_other_fields_pass_and_the_batch_is_not_changed():
    b = dict(batch(), age=torch.ones(5)); x = b['x'].clone()
    y = Augment(crop=6)(b, 0, 0)
    assert y['age'] is b['age'] and torch.equal(b['x'], x) and b['x'].shape[-1]==12

def test_too_big_a_crop_is_refused():
    with pytest.raises(Problem, match='Crop less'): Augment(crop=13)(batch(), 0, 0)
    with pytest.raises(Problem, match='Crop less'): random_crop(batch()['x'], 0, range(5))

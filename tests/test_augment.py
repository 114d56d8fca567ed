"Random views: replayable, uniform, blind to batch order"
import dataclasses, json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from neurossl.augment import (Augment, crop_at, crop_offsets, item_seed, masked_zscore, noise, normals, random_crop, random_resized_crop, resized_boxes,
                              rotate, uniforms)
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

# --- the other transforms

def everything(): return Augment(resized=.3, flip=.5, rotate=.785, gamma=(.5, 1.5), shift=.1, noise=.05, p=.8)

def test_the_crop_alone_draws_what_it_always_drew():
    o = Augment(crop=7).params(batch(), 3, 2)
    assert list(o)==['crop'] and o['crop'].tolist()==crop_offsets((12,)*3, 7, [item_seed(3, 2, f's{i}') for i in range(5)]).tolist()
    b = batch(); assert Augment()(b, 0, 0) is b and Augment().params(b, 0, 0)=={}
    assert crop_offsets((12,)*3, 7, [1, 2, 3]).tolist()==[[3, 2, 3], [1, 2, 0], [0, 4, 1]] # as before there were other transforms

@pytest.mark.parametrize('axes', ['xyz', 'zyx'])
def test_a_view_depends_on_the_scan_alone_and_is_replayable(axes):
    b = batch(); a = dataclasses.replace(everything(), axes=axes); whole = a(b, 1, 2)['x']; order = [3,0,4,1,2]
    assert torch.equal(a(dict(x=b['x'][order], scan_id=[b['scan_id'][i] for i in order]), 1, 2)['x'], whole[order])
    assert torch.equal(a.replay(b, a.params(b, 1, 2))['x'], whole)
    assert not torch.equal(a(b, 1, 3)['x'], whole) and not torch.equal(a(b, 1, 2, 1)['x'], whole) and whole.shape==b['x'].shape

def test_streams_are_independent():
    b = batch(); both,alone = everything().params(b, 0, 0),Augment(flip=.5).params(b, 0, 0)
    assert torch.equal(both['flip'], alone['flip'])
    p = everything().params(dict(x=b['x'][:1].expand(3000, -1, -1, -1, -1), scan_id=[str(i) for i in range(3000)]), 0, 0)
    c = np.corrcoef(np.stack([p[k].double().numpy() for k in ('flip', 'rotate', 'gamma', 'shift', 'noise')]+list(p['size'].T[:1].double().numpy())))
    assert abs(c-np.eye(6)).max()<.07
    assert abs(float(p['flip'].double().mean())-.5)<.04 and abs(float((p['gamma']==1).double().mean())-.2)<.03

def test_axes_turn_the_same_anatomy():
    b = batch(); xyz,zyx = (dataclasses.replace(everything(), resized=None, noise=0., axes=a) for a in ('xyz', 'zyx'))
    p = xyz.params(b, 0, 0); y = xyz.replay(b, p)['x']
    z = zyx.replay(dict(b, x=b['x'].permute(0,1,4,3,2)), dict(p, rotate=-p['rotate']))['x'] # (y,x) counts angles the other way round than (x,y)
    assert torch.allclose(z.permute(0,1,4,3,2), y, atol=1e-4*float(y.max()))

def test_rotate_is_exact_by_quarters_and_restores():
    g = torch.Generator().manual_seed(0); x = torch.rand(2,1,9,9,7, generator=g)
    for axis,dims in ((2, (2,3)), (0, (3,4)), (1, (2,4))):
        if axis!=2: x = torch.rand(2,1,8,8,8, generator=g)
        assert torch.allclose(rotate(x, torch.tensor([np.pi/2, np.pi]).float(), axis)[0], x[0].rot90(-1, [d-1 for d in dims]), atol=1e-4)
        assert torch.allclose(rotate(x, torch.tensor([0., np.pi]).float(), axis)[1], x[1].rot90(2, [d-1 for d in dims]), atol=1e-4)
    y = rotate(x, torch.tensor([.3, 0.])); assert torch.equal(y[1], x[1]) and rotate(x, torch.zeros(2)) is x

def test_resized_crop_is_the_interpolated_box():
    x = torch.rand(3,1,11,12,13, generator=torch.Generator().manual_seed(0)); y,(o,n) = random_resized_crop(x, [4,5,6], .2, per_axis=True)
    for v,w,(i,j,k),(a,b,c) in zip(x, y, o.tolist(), n.tolist()):
        assert torch.equal(w[None], torch.nn.functional.interpolate(v[None,:,i:i+a,j:j+b,k:k+c], (11,12,13), mode='trilinear', align_corners=False))
    share = lambda per_axis: (resized_boxes((50,60,70), range(4000), .2, per_axis)[1].double().prod(1)/210000)
    assert .19<share(False).min() and share(False).max()<=1 and abs(share(False).mean()-.6)<.01 and .15<share(True).min()

def test_noise_is_normal_and_is_the_same_for_every_batch():
    z = torch.cat([normals(item_seed(0, 0, i), 4001) for i in range(50)]).double()
    assert abs(z.mean())<.01 and abs(z.std()-1)<.01 and abs((z**4).mean()-3)<.1 and z.isfinite().all() and normals(3, 5).shape==(5,)
    x = torch.zeros(2,1,8,8,8); y = noise(x, torch.tensor([.5, 0.]), [1, 2])
    assert abs(float(y[0].std())-.5)<.06 and torch.equal(y[1], x[1]) and torch.equal(noise(x[:1], torch.tensor([.5]), [1])[0], y[0])
    assert all(float(normals(s, 4000).abs().max())<6 for s in range(200)) and not torch.equal(normals(0, 64).sort()[0], normals(1, 64).sort()[0]) # small seeds too

def test_masked_zscore_is_blind_to_shift_and_scale():
    x = torch.rand(2,1,6,6,6, generator=torch.Generator().manual_seed(0)); m = x>.4; z = masked_zscore(x, m)
    assert torch.allclose(masked_zscore(x*3+5, m), z, atol=1e-4) and (z[~m]==0).all() and abs(float(z[0][m[0]].mean()))<1e-5
    assert torch.equal(masked_zscore(x*m), masked_zscore(x*m, m)) and masked_zscore(x, m*0).abs().max()==0

@pytest.mark.parametrize('kw', [dict(flip=1.5), dict(p=-.1), dict(gamma=(2, 1)), dict(gamma=(1,)), dict(crop=5, resized=.5), dict(axes='xy'), dict(noise=-1), dict(rotate=-1)])
def test_wrong_settings_are_refused(kw):
    with pytest.raises(Problem, match='Augment'): Augment(**kw)

def test_settings_survive_json():
    a = everything(); assert Augment(**json.loads(json.dumps(dataclasses.asdict(a))))==a

"Views: one resampling equals the definition, F.interpolate and MONAI; tapes and no-ops are found"
import dataclasses, sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from neurossl.augment import Augment, gamma, item_seed, masked_zscore, noise, shift, uniforms
from neurossl.core import Problem
from neurossl.tape import noop_detector, tape_detector
from neurossl.views import CORRECTED, PUBLISHED, VIEWS, _row, bend, crop_statistics, direct_warp, draw_views, two_views, view_params, views_at, warp

forks = pytest.mark.skipif(sys.platform=='win32', reason='no fork')

def scan(shape=(20,24,24), seed=0):
    "A smooth blob with detail, 0 outside"
    r = np.random.default_rng(seed); g = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    x = ndimage.gaussian_filter(r.normal(size=shape), 1.5); return torch.from_numpy(((x/x.std())*((g**2).sum(0)<.8)).astype(np.float32))

def batch(n=4, **k): return dict(x=torch.stack([scan(seed=i, **k) for i in range(n)])[:,None], scan_id=[f's{i}' for i in range(n)])
def drawn(recipe, n, shape=(20,24,24)): return [_row(draw_views(shape, recipe, [item_seed(0, k, 'x')]), 0) for k in range(n)]

@pytest.mark.parametrize('axes', ['xyz', 'zyx'])
@pytest.mark.parametrize('recipe', VIEWS.values(), ids=lambda r: r.name)
def test_one_resampling_equals_the_definition(recipe, axes):
    r = dataclasses.replace(recipe, axes=axes, angle_p=.7); x = scan()
    for p in drawn(r, 25): assert float((warp(x, None, p, r)[0]-direct_warp(x, p, r)).abs().max())<1e-4*float(x.abs().max())

@pytest.mark.parametrize('axes', ['xyz', 'zyx'])
def test_without_a_turn_it_is_interpolate(axes):
    r = dataclasses.replace(PUBLISHED, axes=axes, angle_p=0.); x = scan()
    for p in drawn(r, 25):
        (i,j,k),(a,b,c) = p['start'].tolist(),p['size'].tolist(); box = x[None,None,i:i+a,j:j+b,k:k+c]; y,m = warp(x, None, p, r)
        for got,want in ((y, F.interpolate(box, x.shape, mode='trilinear', align_corners=False)), (m, F.interpolate((box!=0).float(), x.shape, mode='nearest')>0)):
            want = want[0,0].flip(axes.index('x')) if p['flip'] else want[0,0]; assert torch.equal(got, want) if got is m else float((got-want).abs().max())<1e-5*float(x.abs().max())

def test_monai_gives_the_same_view():
    T = pytest.importorskip('monai.transforms'); r = dataclasses.replace(PUBLISHED, axes='zyx', angle_p=.5); x = scan((40,48,48)); size = tuple(x.shape); near = []
    for p in drawn(r, 16, size):
        o,n = p['start'].tolist(),p['size'].tolist(); box = T.SpatialCrop(roi_start=o, roi_end=[a+b for a,b in zip(o, n)])
        def chain(v, mode):
            y = T.Resize(size, mode=mode)(box(v[None]))
            if p['flip']: y = T.Flip(spatial_axis=2)(y)
            return T.Rotate((p['angle'], 0, 0), mode='bilinear' if mode=='trilinear' else 'nearest')(y) if p['angle'] else y
        y,m = chain(x, 'trilinear'),chain((x!=0).float(), 'nearest')
        if m.sum()<2000: continue
        if p['shift']: y = T.ShiftIntensity(p['shift'])(y)
        if p['gamma']!=1: y = T.AdjustContrast(p['gamma'])(y)
        y,(g,mask) = masked_zscore(torch.as_tensor(y)[None], torch.as_tensor(m)[None])[0,0],warp(x, None, p, r); ours = bend(g, mask, p['gamma']); both = mask & (m[0]>0)
        assert float((mask==(m[0]>0)).float().mean())>.998
        if p['angle']==0: assert float((ours-y).abs().max())<1e-3                  # the same interpolation
        else: near.append((float(np.corrcoef(ours[both], y[both])[0,1]), float((ours-y)[both].abs().mean()))) # two interpolations there, one here
    assert len(near)>3 and min(c for c,_ in near)>.99 and max(d for _,d in near)<.1

@pytest.mark.parametrize('axes', ['xyz', 'zyx'])
@pytest.mark.parametrize('recipe', VIEWS.values(), ids=lambda r: r.name)
def test_numba_equals_torch(recipe, axes):
    b = batch(); r = dataclasses.replace(recipe, axes=axes)
    for e in range(6):
        for k in (0, 1):
            p = view_params(b, r, 0, e, k)
            for y,z in zip(views_at(b, r, p), views_at(b, r, p, 'numba')):
                if (y!=0).sum()>99: assert float((y-z).abs().max())<1e-4
    masked = dict(b, mask=b['x']>.2); p = view_params(masked, r, 0, 0)
    assert torch.allclose(views_at(masked, r, p), views_at(masked, r, p, 'numba'), atol=1e-4)

def test_integers_give_the_same_views():
    b = batch(); q = dict(b, x=(b['x']*5000).round().to(torch.int16))
    for engine in ('torch', 'numba'):
        for y,z in zip(two_views(b, CORRECTED, 0, 0), two_views(q, CORRECTED, 0, 0, engine)): assert z.dtype==torch.float32 and float((y-z).abs().mean())<.01

def test_views_do_not_depend_on_the_batch_and_leave_it_alone():
    b = batch(); x = b['x'].clone()
    for r in VIEWS.values():
        for e in range(30):
            v = two_views(b, r, 3, e)
            if e<3: assert all(torch.equal(a, c[[2,1]]) for a,c in zip(two_views(dict(x=x[[2,1]], scan_id=['s2','s1']), r, 3, e), v))
            assert torch.equal(b['x'], x) and v[0].shape==x.shape and not torch.equal(*v)
    whole = dataclasses.replace(CORRECTED, least=1., flip=0., angle_p=0., gamma_p=0.) # the box is the scan itself: it must be copied
    assert torch.allclose(two_views(b, whole, 0, 0)[0], masked_zscore(x), atol=1e-5) and torch.equal(b['x'], x)
    assert torch.equal(PUBLISHED(b, 1, 2)[1], two_views(b, 'published', 1, 2)[1])

def test_views_are_standardised_in_the_brain():
    for v in two_views(batch(), CORRECTED, 0, 0):
        for y in v: w = y[y!=0]; assert abs(float(w.mean()))<1e-3 and abs(float(w.std())-1)<1e-3

def test_the_shift_cannot_be_seen():
    y = scan(); m = y!=0
    for g in (.5, 1., 1.5): assert torch.allclose(bend(y.clone(), m, g), masked_zscore(gamma(shift(y[None,None], torch.tensor([.4])), torch.tensor([g])), m[None,None])[0,0], atol=1e-4)

def test_crop_statistics_of_the_released_chain():
    s = crop_statistics(PUBLISHED)
    assert np.allclose(s.loc['volume', ['mean', 'median', 'q05', 'q95']].astype(float), [.22, .18, .046, .54], atol=.01)
    assert np.allclose(s.loc['stretch', ['median', 'q95']].astype(float), [2.05, 3.9], atol=.05) and 4.5<s.loc['stretch', 'max']<=5
    c = crop_statistics(CORRECTED); assert c.loc['stretch', 'max']<1.02 and c.loc['volume', 'q05']>.3

def test_boxes_stay_inside_and_honour_the_released_minimum():
    d = draw_views((150,192,192), dataclasses.replace(PUBLISHED, axes='zyx'), range(3000))
    assert d['size'].amin(0).tolist()==[30,40,40] and d['size'].amax(0).tolist()==[150,192,192] and (d['start']>=0).all() and ((d['start']+d['size']).amax(0)==torch.tensor([150,192,192])).all()
    assert abs(float((d['angle']!=0).float().mean())-.5)<.04 and abs(float((d['gamma']!=1).float().mean())-.8)<.03 and float(d['angle'].abs().max())<=.785

def test_empty_boxes_are_drawn_again_and_empty_scans_refused():
    b = batch(); b['x'][:, :, :, :, :20] = 0; shape = tuple(b['x'].shape[2:])
    for e in range(20):
        p = view_params(b, PUBLISHED, 0, e)
        for i in range(4): o,n = p['start'][i],p['size'][i]; assert (b['x'][i,0][tuple(slice(int(a), int(a+c)) for a,c in zip(o, n))]!=0).any()
    with pytest.raises(Problem, match='scan s0'): two_views(dict(b, x=b['x']*0), PUBLISHED, 0, 0)
    with pytest.raises(Problem, match="Did you mean 'corrected'"): two_views(batch(), 'correct', 0, 0)
    with pytest.raises(Problem, match='engine'): two_views(batch(), 'corrected', 0, 0, 'jax')

def test_every_setting_of_the_published_recipe_has_a_source():
    t = PUBLISHED.table(); assert (t.source!='assumed').all() and set(dict(CORRECTED.sources))<=set(t.index)

def test_the_tape_can_be_played():
    r = dataclasses.replace(PUBLISHED, tape=2); box = lambda step, epoch: view_params(dict(batch(), step=step), r, 0, epoch)['size']
    assert torch.equal(box(0, 0), box(1, 5)) and not torch.equal(box(0, 0), box(2, 0))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_views_are_the_cpu_views():
    b = batch()
    for r in VIEWS.values():
        for y,z in zip(two_views(b, CORRECTED, 0, 0), two_views(dict(b, x=b['x'].cuda()), CORRECTED, 0, 0)): assert torch.allclose(y, z.cpu(), atol=1e-3)

# --- detectors

@forks
def test_the_released_loader_is_on_tape():
    "MONAI's random transforms in a plain torch loader with forked workers, as main.py:103-127 has them"
    T = pytest.importorskip('monai.transforms'); k = ['MRI', 'MASK']; crop = T.RandSpatialCropd(k, roi_size=(3,4,4), random_center=True, random_size=True); turn = T.RandRotated(k, range_x=.785, prob=.5, mode=['trilinear', 'nearest'])
    chain = T.Compose([crop, T.Resized(k, spatial_size=(15,19,19), mode=['trilinear', 'nearest']), T.RandFlipd(k, prob=.5, spatial_axis=[2]), turn, T.RandShiftIntensityd(['MRI'], offsets=.5, prob=.8), T.RandAdjustContrastd(['MRI'], gamma=(.5,1.5), prob=.8)])
    x = np.random.default_rng(0).normal(size=(1,15,19,19)).astype(np.float32)
    def draw(scan, epoch, view):
        y = chain(dict(MRI=x, MASK=np.ones_like(x)))
        return dict(size=list(map(int, crop.cropper._size)), volume=np.asarray(y['MRI']))
    t = tape_detector(draw, epochs=2, workers=2, scans=8, batch=2)
    for name in ('size', 'volume'):
        q = t[(t.drawn==name)].set_index('between'); assert q.tape[['workers', 'epochs']].all() and (q.equal==q.pairs)[['workers', 'epochs']].all() and not q.tape[['scans', 'views']].any()

@forks
def test_ours_are_not():
    assert not tape_detector(Augment(crop=20, flip=.5, gamma=(.5, 1.5))).tape.any()
    x = scan()[None,None]
    def view(s, e, v): return dict(_row(view_params(dict(x=x, scan_id=[s]), PUBLISHED, 0, e, v), 0))
    assert not tape_detector(view, epochs=2, scans=16).tape.any()
    t = tape_detector(lambda s, e, v: two_views(dict(x=x, scan_id=[s]), CORRECTED, 0, e)[v][0,0], epochs=2, scans=8, batch=2); assert not t.tape.any() and t.equal.sum()==0

@forks
@pytest.mark.parametrize('seed_of,between', [(lambda s, e, v: item_seed(0, 0, s, v), ['scans']), (lambda s, e, v: item_seed(0, e, s), ['views']), (lambda s, e, v: item_seed(0, e, s, v), [])])
def test_other_tapes(seed_of, between):
    t = tape_detector(lambda s, e, v: dict(u=uniforms([seed_of(s, e, v)], 1)[0].tolist())); assert t[t.tape].between.tolist()==between

@forks
def test_chance_is_not_a_tape():
    for seed in range(4): # coins and a constant
        assert not tape_detector(lambda s, e, v: dict(coin=bool(uniforms([item_seed(seed, e, s, v)], 1)[0,0]<.8), one=1), scans=16).tape.any()

def test_noop_detector():
    x = torch.rand(2,1,8,8,8, generator=torch.Generator().manual_seed(0)); m = x>.2; c = lambda a: torch.tensor([a, a])
    t = noop_detector(dict(shift=lambda x: shift(x, c(.5)), gamma=lambda x: gamma(x, c(.7)), noise=lambda x: noise(x, c(.1), [1, 2]), crop=lambda x: x[...,1:]), lambda x: masked_zscore(x, m[...,:x.shape[-1]]), x)
    assert t.noop.to_dict()==dict(shift=True, gamma=False, noise=False, crop=False) and t.after['shift']<1e-5 and t.before['shift']==pytest.approx(.5, abs=1e-5)

def test_noop_detector_on_monai():
    T = pytest.importorskip('monai.transforms'); x = torch.rand(1,1,8,8,8, generator=torch.Generator().manual_seed(0)); m = x>.2; f = T.RandShiftIntensity(offsets=.5, prob=1.); f.set_random_state(0)
    t = noop_detector(dict(shift=lambda x: torch.as_tensor(f(x[0]))[None]), lambda x: masked_zscore(x, m), x); assert t.noop.all() and t.before.iloc[0]>.01

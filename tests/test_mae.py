"Masked autoencoder: cubes, masks, fillings, what the encoder may see, both decoders"
import numpy as np
import pytest
import torch
from neurossl.core import Problem
from neurossl.encoders import SFCN, ResNet3D, build_encoder
from neurossl.mae import MAEEncoder, MAETask, TokenDecoder, cubes, draw_masks, grid_of, inpaint_table, joined, mean_fill, spread, trilinear_inpaint, visible_tokens
from neurossl.phantom import demo_batch
from neurossl.pretext import TASKS, TaskError, build_task


def tiny(**kw): return build_encoder('mae', **dict(dict(img_size=32, patch=8, width=48, depth=2, heads=4), **kw))
def task(n=48, **kw): torch.manual_seed(0); return build_task('mae', n, None, **dict(dict(width=48, depth=1), **kw))


@pytest.mark.parametrize('shape', [(16,16,16), (8,16,24)])
def test_cubes_and_back(shape):
    x = torch.randn(2, 1, *shape); c = cubes(x, 8); g = grid_of(shape, 8)
    assert c.shape==(2, g[0]*g[1]*g[2], 512) and torch.equal(joined(c, g), x)
    for k in range(c.shape[1]):
        i,j,l = np.unravel_index(k, g)
        assert torch.equal(c[1,k].view(8,8,8), x[1,0,8*i:8*i+8,8*j:8*j+8,8*l:8*l+8])


def test_cubes_lie_as_the_tokens_do():
    e = tiny(positions='learnable'); x = torch.zeros(1, 1, 32, 32, 32); x[:,:,8:16,16:24,24:32] = 1
    with torch.no_grad(): t = e.tokens(x)-e.tokens(torch.zeros_like(x))
    hit = t.abs().sum(2)[0]>1e-6
    assert hit.sum()==1 and torch.equal(hit, cubes(x, 8)[0].sum(1)>0)


@pytest.mark.parametrize('ratio, n, k', [(.75, 216, 162), (.6, 64, 38), (.01, 8, 1), (.99, 8, 7)])
def test_masks_hide_as_many_in_every_scan(ratio, n, k):
    assert (draw_masks([f's{i}' for i in range(20)], n, ratio).sum(1)==k).all()


def test_masks_follow_names_not_places():
    a = draw_masks(['a', 'b', 'c'], 100, .75, 3, 1)
    assert torch.equal(draw_masks(['c', 'b'], 100, .75, 3, 1), a[[2, 1]])
    for other in (dict(seed=4, epoch=1), dict(seed=3, epoch=2)): assert not torch.equal(draw_masks(['a', 'b', 'c'], 100, .75, **other), a)
    many = draw_masks([f's{i}' for i in range(3000)], 100, .75).float().mean(0)
    assert abs(many-.75).max()<.04 # each cube as often as any other


def by_hand(x, hole):
    "Nearest visible voxels along the axes, a loop over voxels"
    y = x.copy(); mean = x[~hole].mean() if (~hole).any() else 0.
    for at in zip(*np.nonzero(hole)):
        top = w = 0.
        for axis in range(3):
            for step in (-1, 1):
                q = list(at)
                while 0<=q[axis]<x.shape[axis] and hole[tuple(q)]: q[axis] += step
                if 0<=q[axis]<x.shape[axis]: d = abs(q[axis]-at[axis]); top += x[tuple(q)]/d; w += 1/d
        y[at] = top/w if w else mean
    return y


@pytest.mark.parametrize('share', [.3, .8, .97])
def test_interpolation_by_hand(share):
    g = np.random.default_rng(0); x = g.normal(size=(5,6,7)).astype(np.float32); hole = g.random((5,6,7))<share
    y = trilinear_inpaint(torch.tensor(x)[None,None], torch.tensor(hole)[None,None])[0,0].numpy()
    assert np.allclose(y, by_hand(x, hole), atol=1e-5) and np.array_equal(y[~hole], x[~hole])


def test_interpolation_continues_a_slope():
    a = torch.arange(16.); x = (a[:,None,None]-3*a[:,None]+.5*a)[None,None]; hole = torch.zeros_like(x, dtype=torch.bool); hole[...,2:14,3:12,5:9] = True
    assert (trilinear_inpaint(x, hole)-x).abs().max()<1e-4


def test_mean_fill():
    x = torch.randn(3, 1, 8, 8, 8); hole = torch.rand(3, 1, 8, 8, 8)<.5; mean = torch.randn(1, 8, 8, 8)
    y = mean_fill(x, hole)
    for i in range(3): assert torch.allclose(y[i][hole[i]], x[i][~hole[i]].mean(), atol=1e-5)
    assert torch.equal(mean_fill(x, hole, mean)[hole], mean.expand(3, 1, 8, 8, 8)[hole]) and torch.equal(y[~hole], x[~hole])


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_hidden_cubes_are_not_seen(pool):
    e = tiny(pool=pool); x = torch.rand(2, 1, 32, 32, 32); m = draw_masks(['a', 'b'], 64, .75); other = torch.where(spread(m, (4,4,4), 8), torch.rand_like(x), x)
    with torch.no_grad():
        a = e.visible(x, m); assert torch.equal(a, e.visible(other, m)) and a.shape==(2, 16, 48)
        if pool=='mean': assert torch.allclose(visible_tokens(e, x, torch.zeros_like(m)).mean(1), e(x), atol=1e-5)
    t = task(); b = dict(x=x, scan_id=['a', 'b'])
    hole = spread(t.draw(b)[0], (4,4,4), 8); moved = torch.where(hole, torch.rand_like(x), x)
    with torch.no_grad():
        for net,part in ((e, t), (SFCN(channels=(4,)*5, n_features=8).eval(), task(8, decoder='map'))):
            mask,g = part.draw(b); assert torch.equal(part.predict(net, x, mask, g), part.predict(net, moved, mask, g))


def test_the_loss_is_that_of_the_hidden_voxels():
    b = demo_batch(3, size=32); e,t = tiny(),task()
    with torch.no_grad():
        out = t(e, b); m,g = t.draw(b); p = joined(t.predict(e, b['x'], m, g), g); hole = spread(m, g, 8)
    assert float(out['loss'])==pytest.approx(float((p-b['x'])[hole].square().mean()), rel=1e-5)
    assert float(out['mse_fill'])==pytest.approx(float((mean_fill(b['x'], hole)-b['x'])[hole].square().mean()), rel=1e-4)
    table = inpaint_table(t, e, [b], b['x'].mean(0))
    assert float(out['mse'])==pytest.approx(table.loc['network', 'all'], rel=1e-5) and float(out['mse_fill'])==pytest.approx(table.loc['mean of the visible', 'all'], rel=1e-4)


def test_normalised_targets():
    b = demo_batch(2, size=32); e,t = tiny(),task(norm_targets=True); a = t(e, b)['loss']
    a = a.detach(); assert 'mse' not in t(e, b) and float(t(e, dict(b, x=b['x']*1.))['loss'].detach())==float(a)
    m,g = t.draw(b); want = cubes(b['x'], 8); z = (want-want.mean(2, keepdim=True))/(want.var(2, keepdim=True, correction=0)+1e-6).sqrt()
    with torch.no_grad(): assert float(a)==pytest.approx(float((t.predict(e, b['x'], m, g)-z)[m].square().mean()), rel=1e-5)


@pytest.mark.parametrize('encoder, options', [('mae', dict()), ('sfcn', dict(decoder='map')), ('resnet10', dict(decoder='map'))])
def test_everything_learns(encoder, options):
    e = tiny() if encoder=='mae' else SFCN(channels=(4,)*5, n_features=8) if encoder=='sfcn' else ResNet3D(10, 2, 8); t = task(e.n_features, **options)
    out = t(e, demo_batch(4, size=32)); out['loss'].backward()
    assert all(v.isfinite() for v in out.values()) and all(p.grad is not None for m in (e, t) for p in m.parameters() if p.requires_grad)
    assert t(e, dict(demo_batch(4, size=32), epoch=1))['loss']!=out['loss']


def test_the_same_masks_for_both_kinds():
    b = dict(demo_batch(2, size=32), seed=3, epoch=2)
    assert torch.equal(task().draw(b)[0], task(8, decoder='map').draw(b)[0])


def test_a_task_is_rebuilt_from_its_spec():
    for t in (task(), task(8, decoder='map', ratio=.6, norm_targets=True)):
        spec = dict(t.spec); again = TASKS[spec.pop('name')][0](48 if t.kind=='tokens' else 8, **spec); again.load_state_dict(t.state_dict()); assert again.spec==t.spec


def test_weights_fit_the_plain_transformer():
    e = tiny(); again = build_encoder(**e.spec); again.load_state_dict(e.state_dict()); x = torch.rand(1, 1, 32, 32, 32)
    assert isinstance(e, MAEEncoder) and e.spec['name']=='vit3d' and torch.equal(e(x), again(x))


def test_what_is_had_without_learning():
    b = demo_batch(4, size=32); t = inpaint_table(task(), None, [b])
    assert list(t.index)==['mean of the visible', 'straight lines'] and t.loc['straight lines', 'brain']<t.loc['mean of the visible', 'brain']


def test_refusals():
    b = demo_batch(2, size=32); e = tiny()
    for bad in (lambda: task(ratio=0.), lambda: task(ratio=1.), lambda: task(decoder='x'), lambda: TokenDecoder(48, 8, width=50), lambda: grid_of((30,32,32), 8), lambda: grid_of((8,8,8), 8),
                lambda: task(patch=4)(e, b), lambda: task()(SFCN(), b)):
        with pytest.raises(TaskError): bad()
    with pytest.raises(Problem): task()(tiny(img_size=48), b)

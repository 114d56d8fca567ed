"Ages in bins and in years, scans drawn again, several tasks on one encoder, what a crop leaves: units, refusals, exact numbers"
import numpy as np
import pandas as pd
import pytest
import torch
from neurossl.core import Problem
from neurossl.encoders import SFCN
from neurossl.phantom import CENTRE_MM, demo_batch, template
from neurossl.pretext import (HEADS, KINDS, TASKS, AgeTask, MultiTask, ReconTask, RotationTask, age_bins, audit_rotations, build_task, crop_share, mean_image,
                              pooled, recon_gain, rotation_table, soft_label)

MAN = pd.DataFrame(dict(age=[50., 60., 70., float('nan')]))
SMALL = dict(channels=(8,8,8,8,8), groups=2)
BINS = dict(head='softbin', bins=(40, 90))
NAMES = ['age', 'rotation', 'recon', 'age+rotation', 'age+recon', 'rotation+recon', 'multi']


def batch(n=4, size=32, seed=0, age=60.):
    g = torch.Generator().manual_seed(seed)
    return dict(x=torch.rand(n, 1, size, size, size, generator=g), scan_id=[f'scan-{i}' for i in range(n)], age=torch.full((n,), age))


def tiny(seed=0): torch.manual_seed(seed); return SFCN(channels=(4,4,4,4,4), n_features=8)


def build(name, **kw): # small decoder wherever there is one
    recon = SMALL if name=='recon' else dict(recon=SMALL) if 'recon' in name or name=='multi' else {}
    return build_task(name, 8, MAN, **recon, **kw)


def steps(net, task, b, n, lr=1e-2, turn=False): # turn: new classes and jitter in each step
    opt,seen = torch.optim.Adam([*net.parameters(), *task.parameters()], lr),[]
    for i in range(n):
        out = task(net, dict(b, epoch=i if turn else 0)); opt.zero_grad(); out['loss'].backward(); opt.step(); seen.append({k: float(v.detach()) for k,v in out.items()})
    return seen


# --- age ---

@pytest.mark.parametrize('ages,bins', [(np.linspace(44, 82, 1000), (42, 82)),         # LDM100K: the published forty bins
                                       (np.linspace(45, 85, 1000), (45, 85)), (np.linspace(40.5, 79.2, 1000), (40, 80)),
                                       (np.linspace(50, 55, 1000), (47, 57)), ([61., 64.5, 66., 68., 70., 73., 79.], (52, 92)), ([1., 2.], (0, 10))])
def test_bins_come_from_the_ages(ages, bins):
    assert age_bins(ages)==bins==age_bins(np.random.default_rng(0).permutation(ages)) and (bins[1]-bins[0])%10==0


def test_few_scans_get_bins_that_hold_the_others():
    r = np.random.default_rng(0); out = 0
    for _ in range(200):
        a = r.uniform(45, 85, 40); lo,hi = age_bins(a[:32]); out += ((a<lo)|(a>hi)).any()
    assert out==0


def test_soft_labels_are_the_published_ones():
    "Peng's num2vect: differences of the normal distribution at the borders of the bins"
    from scipy.stats import norm
    edges = torch.arange(42., 83); age = torch.tensor([42., 60.2, 71.5, 82.])
    p = soft_label(age, edges); assert p.shape==(4, 40) and torch.allclose(p.sum(1), torch.ones(4))
    want = np.diff(norm.cdf(edges.numpy()[None], age.numpy()[:,None], 1), axis=1)
    assert np.allclose(p[1:3], want[1:3], atol=1e-6) and np.allclose(p, want/want.sum(1, keepdims=True), atol=1e-6)
    centre = (edges[1:]+edges[:-1])/2
    assert torch.allclose((p@centre)[1:3], age[1:3], atol=1e-3) and (p@centre)[3]<82


def test_softbin_loss_is_the_divergence():
    task,b,net = AgeTask(8, **BINS),batch(age=61.3),tiny().eval()
    with torch.no_grad(): out = task(net, b); q = task.head(net(b['x'])).softmax(1); p = soft_label(b['age'], task.edges)
    assert torch.allclose(out['loss'], (p*(p.clamp_min(1e-30).log()-q.log())).sum(1).mean(), atol=1e-5)
    assert torch.allclose(out['mae_years'], (q@torch.arange(40.5, 90)-61.3).abs().mean(), atol=1e-3)
    with torch.no_grad(): task.head.weight.zero_(); task.head.bias.copy_(p[0].clamp_min(1e-9).log())
    assert float(task(net, b)['loss'].detach())==pytest.approx(0, abs=1e-5) and float(task(net, b)['mae_years'])<.01


def test_regression_in_years():
    for head,power in (('l2', 2), ('l1', 1)):
        task,b,net = AgeTask(8, mean=70, std=10, head=head),batch(age=75.),tiny().eval()
        with torch.no_grad(): out = task(net, b); years = task.years(net(b['x']))
        assert torch.allclose(out['mae_years'], (years-75).abs().mean(), atol=1e-4) and torch.allclose(out['loss'], ((years-75)/10).abs().pow(power).mean())
        with torch.no_grad(): task.head.weight.zero_(); task.head.bias.fill_(.5)
        assert float(task(net, b)['mae_years'])==pytest.approx(0, abs=1e-4) # half a standard deviation above the mean


def test_the_plain_head_is_the_one_of_before():
    "Name, first weights and identity of the l2 head: earlier runs stay what they were"
    torch.manual_seed(3); task = AgeTask(8, 62, 8)
    torch.manual_seed(3); lin = torch.nn.Linear(8, 1)
    assert torch.equal(task.head.weight, lin.weight) and task.spec==dict(name='age', mean=62., std=8.) and set(task.state_dict())=={'mean', 'std', 'head.weight', 'head.bias'}


def test_ages_that_cannot_be_learned_are_named():
    b = batch(); b['age'][2] = float('nan')
    for task in (AgeTask(8, 60, 15), AgeTask(8, **BINS)):
        with pytest.raises(Problem, match=r'no age for 1 scan \(scan-2\)'): task(tiny(), b)
    b['age'][2] = 90.5; AgeTask(8, 60, 15)(tiny(), b)
    for mode in (True, False):
        with pytest.raises(Problem, match=r'outside the bins for 1 scan \(scan-2: 90.5\)'): AgeTask(8, **BINS).train(mode)(tiny(), b)
    b['age'][2] = 90; assert AgeTask(8, **BINS)(tiny(), b)['loss'].isfinite()
    for std in (0, float('nan'), -1):
        with pytest.raises(Problem, match='standard deviation'): AgeTask(8, 60, std)
    with pytest.raises(Problem, match="Did you mean 'softbin'"): AgeTask(8, head='soft-bin')
    for bins in (None, (50, 50), (60, 50)):
        with pytest.raises(Problem, match='two whole years'): AgeTask(8, head='softbin', bins=bins)


def test_published_number_of_parameters():
    def n(*ms): return sum(p.numel() for m in ms for p in m.parameters())
    assert n(SFCN(), AgeTask(64, head='softbin', bins=(42, 82)))==2_952_936 and n(SFCN(), RotationTask(64))==2_952_416
    assert n(SFCN(), AgeTask(64, 60, 10))==2_950_336+65


# --- reconstruction ---

@pytest.mark.parametrize('shape', [(32, 32, 32), (33, 41, 48), (48, 48, 48)])
def test_a_scan_comes_back_in_its_own_shape(shape):
    x = torch.rand(2, 1, *shape); task = ReconTask(8, **SMALL); y = task.reconstruct(tiny(), x)
    assert y.shape==x.shape and y.dtype==torch.float32
    for sides in ((1,1,1), (3,4,5), (8,8,8)):                                       # maps of other encoders, coarser or finer
        assert task.decode(torch.rand(2, 8, *sides), shape).shape==x.shape


def test_the_decoder_mirrors_the_encoder():
    task = ReconTask(64); convs = [m for m in task.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d))]
    assert [(c.in_channels, c.out_channels) for c in convs]==[(64,256), (256,256), (256,128), (128,64), (64,32), (32,1)]
    sides = []; hooks = [u.register_forward_hook(lambda m, i, y: sides.append(y.shape[2])) for u in task.up]  # before the cut
    with torch.no_grad(): task.decode(torch.rand(1, 64, 2, 2, 2), (49, 49, 49))
    for h in hooks: h.remove()
    assert sides==[4, 8, 14, 26, 50]


def test_a_scan_is_drawn_alike_in_training_and_validation():
    "No running statistics: fit re-estimates those of the encoder only"
    task = ReconTask(8, **SMALL); assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in task.modules())
    m = torch.rand(3, 8, 1, 1, 1)
    assert torch.equal(task.train().decode(m, (32,)*3), task.eval().decode(m, (32,)*3))
    assert torch.allclose(task.decode(m, (32,)*3)[1:2], task.decode(m[1:2], (32,)*3), atol=1e-6)


def test_the_loss_is_the_squared_error_of_what_went_in():
    task,net,b = ReconTask(8, **SMALL),tiny().eval(),batch(2, 40)
    with torch.no_grad():
        out = task(net, b); assert torch.allclose(out['loss'], (task.reconstruct(net, b['x'])-b['x']).square().mean())
        with torch.autocast('cpu', torch.bfloat16): low = task(net, b)
    assert low['loss'].dtype==torch.float32 and torch.allclose(low['loss'], out['loss'], rtol=.05)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(Problem, match='a map of 8 channels'): ReconTask(16, **SMALL)(tiny(), batch(2))
    class Plain(torch.nn.Module): n_features = 8
    with pytest.raises(Problem, match='without `features`'): ReconTask(8, **SMALL)(Plain(), batch(2))


class Scans: # as much of a ScanDataset as the loader needs
    def __init__(self, x): self.x = x; self.man = pd.DataFrame(index=[f's{i}' for i in range(len(x))])
    def __len__(self): return len(self.x)
    def batch(self, idx): return dict(x=self.x[torch.as_tensor(idx)], scan_id=[f's{i}' for i in idx])


def test_gain_over_the_mean_image():
    x = batch(5)['x']; mean = mean_image(Scans(x), batch=2)
    assert torch.allclose(mean, x.mean(0), atol=1e-6)
    class Copy(ReconTask):
        def reconstruct(self, encoder, x): return x
    class Mean(ReconTask):
        def reconstruct(self, encoder, x): return mean.expand_as(x)
    a,b = (recon_gain(c(8, **SMALL), tiny(), Scans(x), mean, batch=2) for c in (Copy, Mean))
    assert a['mse']==0 and a['explained']==1 and b['explained']==pytest.approx(0, abs=1e-6) and b['mse_mean']==pytest.approx(float((x-mean).square().mean()), rel=1e-5)
    assert set(recon_gain(MultiTask(dict(age=AgeTask(8), recon=ReconTask(8, **SMALL))), tiny(), Scans(x), mean))=={'mse', 'mse_mean', 'explained'}


# --- several at once ---

def test_the_loss_is_the_weighted_sum_of_the_tasks_alone():
    tasks,net,b = dict(age=AgeTask(8, **BINS), rotation=RotationTask(8), recon=ReconTask(8, **SMALL)),tiny().eval(),batch()
    with torch.no_grad(): # in evaluation BatchNorm does not mix scans: one pass or three, the same numbers
        out = MultiTask(tasks, (1, .5, 7)).eval()(net, b); alone = {n: t(net, b) for n,t in tasks.items()}
    for n,r in alone.items():
        for k,v in r.items(): assert torch.allclose(out[f'{n}_{k}'], v, atol=1e-5), (n, k)
    assert torch.allclose(out['loss'], alone['age']['loss']+.5*alone['rotation']['loss']+7*alone['recon']['loss'], atol=1e-5)
    assert not [k for k in out if k.endswith('grad')]


def test_plain_scans_are_computed_once():
    seen = []; net = tiny(); net.feature_extractor[0].register_forward_pre_hook(lambda m, i: seen.append(len(i[0])))
    for name,n in (('age+recon', 4), ('age+rotation', 8), ('multi', 8)):
        build(name)(net, batch()); assert seen.pop()==n and not seen


def test_gradient_norms_are_those_of_the_weighted_losses():
    task,b,net = build('multi', weights=dict(recon=3)),batch(),tiny()
    out = task(net, b); assert all(float(out[f'{n}_grad'])==0 for n in task.tasks)  # before the backward pass
    out['loss'].backward(); got = {n: float(out[f'{n}_grad']) for n in task.tasks}; weights = {p: p.grad.clone() for p in net.parameters()}
    net.zero_grad(); task.zero_grad()
    looks = {n: t.look(b) for n,t in task.tasks.items()}; m = net.features(torch.cat((looks['age'][0], looks['rotation'][0]))); plain,rot = m.split(4)
    for n,seen in (('age', plain), ('rotation', rot), ('recon', plain)):
        t = task.tasks[n]; loss = t.judge(seen if t.reads=='map' else pooled(net, seen), looks[n][1])['loss']*task.weights[n]
        g, = torch.autograd.grad(loss, m, retain_graph=True); assert got[n]==pytest.approx(float(g.norm()), rel=1e-4)
    out = task.eval()(net, b); out['loss'].backward()                                # the log changes no gradient
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p,g in weights.items())


def test_the_log_is_kept_by_a_training_step():
    "fit stacks the values after the backward pass: so the norms arrive in the history"
    seen = steps(tiny(), build('multi'), batch(), 2)
    assert all('age_grad' in s for s in seen)
    task = build('age+recon'); out = task(tiny(), batch()); out['loss'].backward()
    values = dict(zip(out, torch.stack([v.detach().float() for v in out.values()]).tolist()))
    assert values['age_grad']>0 and values['recon_grad']>0


def test_weights():
    def w(names, given=None): return MultiTask({n: dict(age=AgeTask(8), rotation=RotationTask(8), recon=ReconTask(8, **SMALL))[n] for n in names}, given).weights
    assert w(['age', 'rotation', 'recon'])==dict(age=1, rotation=1, recon=10) and w(['recon', 'age'], [2, 3])==dict(recon=2, age=3)
    assert w(['age', 'recon'], dict(age=.5))==dict(age=.5, recon=10)
    for given,words in (((1, 2, 3), '3 weights'), (dict(recom=1), "Did you mean 'recon'"), (dict(age=-1), 'from 0 up'), (dict(age=float('nan')), 'from 0 up'), ((0, 0), 'one of them above 0')):
        with pytest.raises(Problem, match=words): w(['age', 'recon'], given)
    with pytest.raises(Problem, match='at least 2'): MultiTask(dict(age=AgeTask(8)))


@pytest.mark.parametrize('name', NAMES)
def test_equal_seeds_equal_bits(name):
    def run(): net = tiny(); task = build(name); return steps(net, task, batch(), 2)[-1], net.feature_extractor[0][0].weight.detach()
    (a,wa),(b,wb) = run(),run()
    assert a==b and torch.equal(wa, wb)


@pytest.mark.parametrize('name', NAMES)
def test_tasks_learn_a_handful_of_phantoms(name):
    b = demo_batch(4, size=32); b['age'] = torch.tensor([50., 58., 62., 70.])
    seen = steps(tiny(), build(name), b, 30)
    assert seen[-1]['loss']<.6*seen[0]['loss']


# --- planted and null ---

def marked(n, seed, plant): # ages, written into the brightness of a corner or not at all
    b = batch(n, 32, seed); b['age'] = torch.linspace(50, 70, n)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    if plant: b['x'][:,:,:16] += (b['age'][:,None,None,None,None]-60)/5
    return b


@pytest.mark.parametrize('kw', [dict(mean=60, std=6), BINS], ids=['l2', 'softbin'])
def test_a_planted_age_is_found_and_an_absent_one_is_not(kw):
    for plant in (True, False):
        net,task = tiny(),AgeTask(8, **kw); steps(net, task, marked(16, 1, plant), 40 if plant else 10, lr=2e-2)
        new = marked(16, 2, plant); base = float((new['age']-60).abs().mean())
        with torch.no_grad(): mae = float(task(net, new)['mae_years'])
        assert mae<.6*base if plant else mae>.85*base


def test_a_planted_direction_is_found_and_an_absent_one_is_not():
    for plant in (True, False):
        net,task = tiny(),RotationTask(8, kind='rot10'); b = batch(20)
        if plant: b['x'] *= .2; b['x'][:,:,16:,16:,8:24] += torch.linspace(.5, 2, 16)[:,None,None]
        steps(net, task, b, 50 if plant else 8, turn=True)
        new = dict(b if plant else batch(60, seed=5)); new['scan_id'] = [f'other-{i}' for i in range(len(new['x']))]
        with torch.no_grad(): hits = float(task(net, new)['accuracy'])
        assert hits>.5 if plant else hits<=.25


# --- names, crops ---

def test_build_task():
    task = build_task('age', 8, MAN, head='softbin'); assert task.spec==dict(name='age', head='softbin', bins=[30, 90], sigma=1.) and 'edges' in task.state_dict()
    task = build_task('age', 8, MAN); assert task.spec==dict(name='age', mean=60., std=10.) and float(task.mean)==60 and float(task.std)==10
    assert build_task('age', 8, MAN, head='softbin', bins=(40, 80)).bins==(40, 80) and build_task('rotation', 8, MAN, kind='rot10').head.out_features==10
    with pytest.raises(Problem, match="Did you mean 'rotation'"): build_task('Rotations', 8, MAN)
    with pytest.raises(Problem, match="Did you mean 'recon'"): build_task('age+recom', 8, MAN)
    with pytest.raises(Problem, match='different ones'): build_task('age+age', 8, MAN)
    with pytest.raises(Problem, match="Did you mean 'jitter_deg'"): build_task('rotation', 8, MAN, jitter=3)
    with pytest.raises(Problem, match="Did you mean 'jitter_deg'"): build_task('age+rotation', 8, MAN, rotation=dict(jitter=3))
    with pytest.raises(Problem, match='0 known ages'): build_task('age', 8, MAN.iloc[3:])
    assert set(HEADS)=={'softbin', 'l2', 'l1'} and set(TASKS)>={'age', 'rotation', 'recon'}


def test_names_make_sets_of_tasks():
    assert list(build('multi').tasks)==['age', 'rotation', 'recon'] and list(build('rotation+age').tasks)==['rotation', 'age']
    task = build_task('age+rotation', 8, MAN, weights=(1, .5), age=dict(head='l1'), rotation=dict(kind='rot24'))
    assert task.spec['tasks']['age']['head']=='l1' and task.spec['tasks']['rotation']['kind']=='rot24' and task.weights==dict(age=1, rotation=.5)


def test_rotation_is_offered_here_too():
    assert audit_rotations('euler32')['distinct']==24 and audit_rotations('8x4')['distinct']==32 and len(rotation_table())==32 and len(KINDS)==4


def test_crop_shares_against_drawn_crops():
    from neurossl.augment import crop_offsets
    from neurossl.pretext import _hippocampus
    boxes = _hippocampus(1.)
    for c in (24, 32, 38):
        o = crop_offsets((48,)*3, c, list(range(20000))).numpy()*4.; e = o+c*4.
        held = [((o<=lo)&(e>=hi)).all(1) for lo,hi in boxes.values()]; got = crop_share(c, 48, 1.)
        assert got['both']==pytest.approx((held[0]&held[1]).mean(), abs=.012) and got['either']==pytest.approx((held[0]|held[1]).mean(), abs=.012)
    assert crop_share(48)==dict(crop=48, mm=192., both=1., either=1.) and crop_share(8)['either']==0
    for c in (0, 49):
        with pytest.raises(Problem, match='1 to 48'): crop_share(c)


def test_the_box_is_that_of_the_template():
    from neurossl.pretext import _hippocampus
    hip = template().maps[4].numpy()>127; lo,hi = np.array(np.nonzero(hip)).min(1),np.array(np.nonzero(hip)).max(1)+1
    boxes = _hippocampus(1.); a,b = np.minimum(*[v[0] for v in boxes.values()]),np.maximum(*[v[1] for v in boxes.values()])
    assert (a<=lo+1.).all() and (b>=hi-1.).all() and (lo-a).max()<9 and (b-hi).max()<9   # the map is the tube's grey matter: never outside the box

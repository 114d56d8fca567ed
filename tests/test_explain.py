"Explanations: a network whose answer is known is explained rightly, one that learned nothing is not mistaken for one that did."
import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import nn

from neurossl.core import Problem
from neurossl.data import ScanDataset, build_cache
from neurossl.encoders import Pooled, build_encoder
from neurossl.explain import (METHODS, Score, blocks, cam, explain, follow, from_middle, gradcam, gradient, gradient_input, group_average, integrated_gradients, judge_maps,
                              label_codes, label_file, localises, map_correlation, naive_maps, occlusion, outlines, overlay, pointing, randomised, strength, sum_up, torch_head, truth_of)
from neurossl.finetune import Classifier
from neurossl.korolev import VoxResNet, VoxVGG
from neurossl.manifest import empty_manifest
from neurossl.nets import SFCN, Encoder
from neurossl.phantom import atrophy_map, healthy_twin, latents_of, phantom, phantom_cohort, sample_latents, truth_masks
from neurossl.preprocess import Recipe, minmax, prepare
from neurossl.probes import fit_probe
from neurossl.volume import Volume, save_volume

PLACE = np.zeros((16,)*3, bool); PLACE[4:8,8:12,6:8] = True

class Only(nn.Module):
    def __init__(self): super().__init__(); self.register_buffer('place', torch.tensor(PLACE[::2,::2,::2]))
    def forward(self, x): return x*self.place

class Planted(Encoder):
    "Looks at one place of a 16³ scan"
    n_features = 1
    def __init__(self): super().__init__(); self.feature_extractor = nn.Sequential(nn.AvgPool3d(2), Only())
    def stages(self, x):
        for f in self.feature_extractor: x = f(x); yield x

def planted(w=100., b=-1.):
    head = nn.Linear(1, 1); head.weight.data[:],head.bias.data[:] = w,b
    return Score(Planted(), head)

def small(seed=0):
    torch.manual_seed(seed); return Score(SFCN((4, 6), 5), nn.Linear(5, 1))

@pytest.fixture
def x(): return torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    man = phantom_cohort(24, 3, 'clinical_a', hashes=False); man = man[man.dx.isin(['CN', 'AD'])].iloc[:6]; recipe = Recipe('s1', 32)
    return ScanDataset(man, build_cache(man, recipe, folder=tmp_path_factory.mktemp('cache'))[0]), recipe

# ---- one number to explain

def toy(n=60, f=5, seed=0):
    g = np.random.default_rng(seed); rows = [dict(scan_id=f't{i}', subject=f't{i}', session='1', cohort='toy', age=70., sex='F', dx=('CN', 'AD')[i%2]) for i in range(n)]
    man = empty_manifest(rows); y = np.arange(n)%2
    return man, pd.DataFrame(g.normal(5, 3, (n, f))+2*y[:,None]*np.eye(f)[1], index=man.index)

@pytest.mark.parametrize('probe, f', [('linear', 5), ('linear', 90), ('pca', 12)]) # fewer people than features: the probe turns them first
def test_the_layer_is_the_probe(probe, f):
    man,emb = toy(f=f); p = fit_probe(emb, man.iloc[:40], probe); q = p.predict(emb, man.iloc[40:])
    z = torch_head(p)(torch.tensor(emb.loc[q.scan_id].to_numpy(np.float32)))
    assert z.shape==(20, 1) and np.allclose(z.sigmoid()[:,0].detach(), q.score, atol=1e-4)

def test_a_classifier_of_scikit_learn_is_read_with_and_without_a_pipeline():
    man,emb = toy(); y = man.dx.eq('AD')
    for c in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
        c.fit(emb.to_numpy(), y); z = torch_head(c)(torch.tensor(emb.to_numpy(np.float32)))[:,0].detach()
        assert np.allclose(z, c.decision_function(emb.to_numpy()), atol=1e-4)

def test_what_is_not_linear_is_refused():
    man,emb = toy(); a,y = emb.to_numpy(),man.dx.eq('AD')
    for p in ('svc', 'rf', 'knn'):
        with pytest.raises(Problem, match='no linear layer'): torch_head(fit_probe(emb, man, p))
    with pytest.raises(Problem, match='no linear layer'): torch_head(RandomForestClassifier(3).fit(a, y))
    with pytest.raises(Problem, match='no linear layer'): torch_head(LogisticRegression())                                   # not fitted
    with pytest.raises(Problem, match='bends'): torch_head(make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=1000)).fit(a, y))
    with pytest.raises(Problem, match='takes age out'): torch_head(fit_probe(emb, man.assign(age=np.linspace(60, 80, len(man))), 'linear', deconfound='age'))
    with pytest.raises(Problem, match='two classes'): torch_head(LogisticRegression().fit(a, np.arange(60)%3))

def test_score_is_a_copy_in_evaluation_mode(x):
    e = SFCN((4, 6), 5).train(); h = nn.Linear(5, 1); s = Score(e, h); a = s(x); before = {k: v.clone() for k,v in e.state_dict().items()}
    e.feature_extractor[0][0].weight.data.zero_(); h.weight.data.zero_()
    assert torch.allclose(s(x), a, atol=1e-6) and e.training and not s.training and torch.allclose(s(x[:1]), s(x)[:1], atol=1e-5) and not torch.equal(before['feature_extractor.conv_0.0.weight'], e.feature_extractor[0][0].weight)

@pytest.mark.parametrize('freeze', [True, False])
def test_score_of_a_classifier_is_its_number(x, freeze):
    c = Classifier(SFCN((4, 6), 5), 1, freeze).eval(); c.mean += .3; c.std *= 2
    assert torch.allclose(Score(c)(x), c(x)[:,0], atol=1e-5) and gradient(Score(c), x).abs().sum()>0

def test_score_of_several_classes_is_log_odds(x):
    c = Classifier(SFCN((4, 6), 5), 3).eval(); p = c(x).softmax(1)
    for k in range(3): assert torch.allclose(Score(c, of=k)(x).sigmoid(), p[:,k], atol=1e-5)
    for net in (VoxVGG(16).eval(), VoxResNet().eval()): assert torch.allclose(Score(net)(x).sigmoid(), net(x).softmax(1)[:,1], atol=1e-5)
    with pytest.raises(Problem, match='an encoder alone'): Score(SFCN())

# ---- maps

def test_gradients_see_the_planted_place_only(x):
    s = planted()
    for m in (gradient(s, x), gradient_input(s, x), integrated_gradients(s, x, steps=2), gradient_input(s, x, x.mean(0))): assert np.array_equal((m!=0).all(0).numpy(), PLACE)
    assert torch.allclose(gradient(s, x)[0][PLACE], torch.tensor(100/16**3))

def test_integrated_gradients_are_complete(x):
    s = small(); base = x.mean(0); want = s(x)-s(base[None]); gaps = [float((integrated_gradients(s, x, base, k).sum((1,2,3))-want).abs().max()) for k in (1, 64)]
    assert gaps[1]<.02*float(want.abs().max()) and gaps[1]<=gaps[0]
    assert float(integrated_gradients(s, x[:1], x[0]).abs().max())==0, 'nothing differs from the base: nothing is explained'

def test_a_map_of_a_scan_does_not_depend_on_its_batch(x):
    s = small()
    for f in (gradient, lambda s, x: gradcam(s, x, 0), lambda s, x: occlusion(s, x, size=8), lambda s, x: integrated_gradients(s, x, steps=2)): assert torch.allclose(f(s, x)[1], f(s, x[1:])[0], atol=1e-6)

def test_gradcam_is_monais(x):
    from monai.visualize import GradCAM
    s = small(); g = GradCAM(nn.Sequential(copy.deepcopy(s.net), s.head).requires_grad_(True).eval(), '0.feature_extractor.conv_1', postprocessing=lambda a: a, upsampler=lambda n: lambda a: a)
    theirs = g(x, class_idx=0)
    assert theirs.shape[2:]==(4, 4, 4) and torch.allclose(F.interpolate(theirs, size=(16,)*3, mode='trilinear')[:,0], gradcam(s, x, 1), atol=1e-6) and float(theirs.detach().abs().sum())>0

def test_the_pooled_gradient_forgets_places(x):
    s = planted(); a,b = gradcam(s, x, 0),gradcam(s, x, 0, pool=False)
    assert (a>0).all(), 'all of the scan lights up'
    near = np.kron(PLACE[::2,::2,::2], np.ones((2,)*3))>0; assert (b[:,torch.tensor(near)]>0).all() and float(b[0][9:].abs().sum())==0
    t = small(); assert torch.allclose(gradcam(t, x, -1), gradcam(t, x, -1, pool=False), atol=1e-7)
    assert float(gradcam(planted(-100.), x, 0).abs().sum())==0 and float(gradcam(planted(-100.), x, 0, relu=False).max())<0, 'evidence against is left out, or negative'

def test_cam_adds_up_to_the_score(x):
    s = small(); m = list(s.net.stages(x))[-1]; w = s.head.weight[0]
    assert torch.allclose((w[:,None,None,None]*m).sum(1).mean((1,2,3))+s.head.bias, s(x), atol=1e-5)
    cells = F.interpolate((w[:,None,None,None]*m).sum(1, keepdim=True)/m[0,0].numel(), size=(16,)*3, mode='trilinear')[:,0]; assert torch.allclose(cam(s, x), cells, atol=1e-7)
    for net in (VoxVGG(16), VoxResNet()): assert cam(Score(net), x).shape==(2, 16, 16, 16)

def test_the_default_block_is_the_coarsest_with_eight_cells():
    torch.manual_seed(0); s = Score(SFCN((4, 4, 4), 4), nn.Linear(4, 1))
    for size,layer in ((16, 0), (32, 1), (64, 2)):
        x = torch.rand(1, 1, *(size,)*3); assert torch.equal(gradcam(s, x), gradcam(s, x, layer))
    with pytest.raises(Problem, match='0 to 3'): gradcam(s, x, 4)

def test_blocks_of_every_network_with_maps():
    assert [len(blocks(n)) for n in (SFCN(), build_encoder('resnet10', width=4), VoxVGG(16), VoxResNet(), Pooled(SFCN(), 'max'))]==[6, 4, 4, 3, 6]
    r = Score(build_encoder('resnet10', width=4), nn.Linear(32, 1)); assert gradcam(r, torch.rand(1, 1, 32, 32, 32), 0).shape==(1, 32, 32, 32)
    v = Score(build_encoder('vit3d', img_size=16, patch=8, width=24, depth=1, heads=2), nn.Linear(24, 1)); z = torch.rand(1, 1, 16, 16, 16)
    with pytest.raises(Problem, match='no maps in between'): gradcam(v, z)
    assert gradient(v, z).abs().sum()>0 and occlusion(v, z).shape==(1, 16, 16, 16)

@pytest.mark.filterwarnings('ignore')
def test_occlusion_is_monais_where_that_one_is_right(x):
    from monai.visualize import OcclusionSensitivity
    s = small(); net = nn.Sequential(s.net, s.head).eval(); theirs = OcclusionSensitivity(net, mask_size=4, n_batch=8, verbose=False, mode=0., overlap=.5, activate=False)(x[:1])[0]
    assert torch.allclose(float(s(x[:1]).detach())-theirs.as_tensor()[0,0], occlusion(s, x[:1], size=4)[0], atol=1e-5)

def test_occlusion_puts_the_base_in(x):
    s = planted(); o = occlusion(s, x, x.flip(0), size=16)
    assert torch.allclose(o, (s(x)-s(x.flip(0)))[:,None,None,None].expand_as(o), atol=1e-4), 'the whole scan is swapped for the other'
    assert np.array_equal((occlusion(s, x, size=2, step=2).abs()>1e-6).all(0).numpy(), PLACE) and float(occlusion(s, x, x, size=4).abs().max())==0

def test_empty_cubes_are_not_tried(x):
    calls = []; s = planted(); s.register_forward_hook(lambda m, i, o: calls.append(len(o))); z = torch.zeros_like(x[:1]); z[...,4:8,8:12,6:8] = 1
    occlusion(s, z, size=4, step=4); assert sum(calls)==1+1, 'the scan, and the one cube that holds something'

def test_last_cube_reaches_the_edge():
    x = torch.ones(1, 1, 16, 16, 16); o = occlusion(planted(), x, size=6, step=5); assert torch.isfinite(o).all()

def test_explain_keeps_the_order_and_names_its_methods(scans):
    ds,_ = scans; torch.manual_seed(0); s = Score(SFCN((4, 4), 4), nn.Linear(4, 1)); x = ds.batch(range(6))['x']
    for k in METHODS:
        m = explain(s, ds, k, x.mean(0), batch=4); assert m.shape==(6, 32, 32, 32) and m.dtype==np.float32 and np.isfinite(m).all()
    assert np.allclose(explain(s, ds, 'gradient', batch=4), gradient(s, x), atol=1e-6)
    with pytest.raises(Problem, match="Did you mean 'occlusion'"): explain(s, ds, 'oclusion')

def test_strength_is_size():
    m = np.random.default_rng(0).normal(size=(2, 8, 8, 8)); assert np.allclose(strength(m, 0), abs(m)) and np.allclose(strength(m), strength(-m)) and strength(m).std()<strength(m, 0).std()

# ---- truth

def test_truth_lies_on_the_grid_of_the_prepared_scan():
    man = phantom_cohort(6, 3, 'clinical_a', hashes=False); row = man[man.dx.eq('AD')].iloc[0]; l = latents_of(row); t = truth_of(row, Recipe('s1', 40))
    organs = np.isin(truth_masks(l, 40).data, (1, 2, 3)); twin = np.isin(truth_masks(healthy_twin(l), 40).data, (1, 2, 3))
    assert np.array_equal(t['region'], organs|twin) and np.array_equal(t['hippocampi'], np.isin([truth_masks(k, 40).data for k in (l, healthy_twin(l))], (1, 2)).any(0)) and np.allclose(t['atrophy'], atrophy_map(l, 40).data, atol=1e-4) and np.array_equal(t['brain'], phantom(l, 40).data>0)
    assert t['region'][t['brain']].mean()>.03 and t['region'][t['brain']].sum()>.9*t['region'].sum() and t['atrophy'][t['region']].mean()>3*t['atrophy'][t['brain']&~t['region']].mean()

@pytest.mark.parametrize('recipe', [Recipe('mine', 24, ('resize', 'minmax')), Recipe('mine', 24, ('cube', 'minmax')), Recipe('mine', 24, ('pad', 'resize', 'minmax')), Recipe('mine', (24, 20, 28), ('resize', 'minmax'), 'zyx')], ids=lambda r: r.steps[0]+r.axes)
def test_a_truth_that_is_the_scan_stays_the_scan(recipe):
    v = phantom(sample_latents(1, 2, 'clinical_a'), 48); a,b = minmax(follow(v, v, recipe)),prepare(v, recipe)[0]
    assert a.shape==recipe.shape and np.corrcoef(a.ravel(), b.ravel())[0,1]>.99
    labels = set(np.unique(follow(truth_masks(sample_latents(1, 2, 'clinical_a'), 48), v, recipe, nearest=True))); assert labels<={0., 1., 2., 3.}
    with pytest.raises(Problem, match='register'): follow(v, v, Recipe('s3', 24))

def test_a_skull_is_not_brain():
    man = phantom_cohort(1, 3, 'clinical_a_skull', hashes=False); row = man.iloc[0]; t = truth_of(row, Recipe('s1', 32)); v = phantom(latents_of(row), 32).data>0
    assert t['brain'].sum()<.7*v.sum()

# ---- judgement

BRAIN = np.linalg.norm(np.indices((24,)*3)-11.5, axis=0)<10

def test_localises_known_answers():
    r = np.zeros((24,)*3, bool); r[6:9,10:14,10:14] = True; g = np.random.default_rng(0)
    assert localises(r*1., r, BRAIN)==1 and localises(-1.*r, r, BRAIN)==0 and localises(r*0., r, BRAIN)==.5 and abs(localises(g.random(r.shape), r, BRAIN)-.5)<.12
    m = g.random(r.shape)+r; assert localises(np.exp(m), r, BRAIN)==localises(m, r, BRAIN) and localises(np.where(BRAIN, m, 1e9), r, BRAIN)==localises(m, r, BRAIN), 'what lies outside does not count'
    assert np.isnan(localises(m, r&False, BRAIN)) and np.isnan(localises(m, r&False, BRAIN, from_middle(BRAIN)))

def test_the_middle_of_the_brain_is_no_finding_among_alike():
    d = from_middle(BRAIN); r = (d<5)&(np.indices(d.shape)[0]<12); g = np.random.default_rng(0)
    assert localises(-d, r, BRAIN)>.9 and abs(localises(-d, r, BRAIN, d)-.5)<.05
    assert localises(-np.indices(d.shape)[0], r, BRAIN, d)>.95, 'what knows the side still finds it'
    assert abs(localises(g.random(d.shape), r, BRAIN, d)-.5)<.05

def test_pointing_allows_one_voxel():
    r = np.zeros((24,)*3, bool); r[10:13,10:13,10:13] = True; m = np.zeros(r.shape)
    for at,hits in (((11, 11, 11), (1, 1)), ((13, 11, 11), (0, 1)), ((13, 13, 13), (0, 1)), ((14, 11, 11), (0, 0))):
        m[:] = 0; m[at] = 1; assert (pointing(m, r, BRAIN, 0), pointing(m, r, BRAIN))==hits
    m[:] = 0; m[0,0,0],m[11,11,11] = 9,1; assert pointing(m, r, BRAIN) and not pointing(m, r), 'the highest voxel of the brain'

def test_random_weights_are_drawn_anew_and_repeatably(x):
    s = small(); a,b,c = randomised(s, 1),randomised(s, 1),randomised(s, 2); before = s(x); state = torch.get_rng_state()
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x)) and torch.equal(s(x), before)
    randomised(s, 3); assert torch.equal(state, torch.get_rng_state()), 'no draw is taken from others'
    for k,v in s.state_dict().items():
        if v.ndim>1: assert not torch.equal(v, a.state_dict()[k]), k
    e = build_encoder('vit3d', img_size=16, patch=8, width=24, depth=1, heads=2); r = randomised(e, 0); assert not torch.equal(r.blocks[0].attn.qkv.weight, e.blocks[0].attn.qkv.weight) and r.spec==e.spec
    class Lone(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(3))
    with pytest.raises(Problem, match='draws no weights'): randomised(nn.Sequential(Lone()), 0)

def test_random_networks_pass_signals_on(scans):
    ds,_ = scans; e = SFCN((4, 8, 8, 8), 8); r = randomised(e, 0, ds); f = r(ds.batch(range(6))['x']); assert f.std(0).min()>0 or (f.std(0)>0).float().mean()>.5
    assert not r.training and all(int(m.num_batches_tracked)>0 for m in r.modules() if isinstance(m, nn.BatchNorm3d))

def test_map_correlation():
    g = np.random.default_rng(0); a,b = g.random((2, 24, 24, 24))
    assert map_correlation(a, a**3, BRAIN)==pytest.approx(1) and map_correlation(a, -a)==pytest.approx(-1) and abs(map_correlation(a, b, BRAIN))<.06 and map_correlation(a, a*0)==0
    from scipy.stats import spearmanr
    assert map_correlation(a, a+b, BRAIN)==pytest.approx(spearmanr(a[BRAIN], (a+b)[BRAIN])[0])

def test_a_planted_sign_is_found_and_random_weights_are_told_apart():
    "Half of the scans hold a bright cube; a small network learns it in a few steps"
    g = torch.Generator().manual_seed(0); place = np.zeros((16,)*3, bool); place[3:8,8:13,5:10] = True; y = torch.arange(48)%2
    x = F.avg_pool3d(torch.rand(48, 1, 20, 20, 20, generator=g), 5, 1)+.35*y[:,None,None,None,None]*torch.tensor(place); torch.manual_seed(0)
    net = nn.Sequential(SFCN((8, 8), 8), nn.Linear(8, 1)); opt = torch.optim.Adam(net.parameters(), .01)
    for i in range(40): k = torch.randperm(32, generator=g)[:16]; l = F.binary_cross_entropy_with_logits(net(x[k])[:,0], y[k].float()); opt.zero_grad(); l.backward(); opt.step()
    s = Score(*net); held = x[33::2]; t = {f's{i}': dict(region=place, hippocampi=place, brain=np.ones_like(place), atrophy=place*.5) for i in range(len(held))}
    maps = lambda n: strength(gradcam(n, held, 0, pool=False)); blind = [randomised(s, k) for k in (1, 2, 3)]; table = judge_maps(maps(s), t, [maps(n) for n in blind])
    r = sum_up(table, 200); assert (s(x[32:])[1::2].min()>s(x[32:])[::2].max()) and r['auc']>.85 and r['lo']>.75 and r['random_correlation']<.4 and r['auc']>r['auc_random']+.1
    noise = sum_up(judge_maps(np.random.default_rng(0).random((8, 16, 16, 16)), t), 200); assert noise['lo']<.5<noise['hi'] or abs(noise['auc']-.5)<.05, 'a map of noise finds nothing'

def test_sum_up_resamples_subjects():
    t = pd.DataFrame(dict(auc=[.6, .8]*20, pointing=[0., 1.]*20, auc_random=[.5, .7]*20)); r = sum_up(t, 500)
    assert r['auc']==pytest.approx(.7) and r['lo']<.7<r['hi'] and r['hi']-r['lo']<.1 and r['pointing']==.5 and r['n_subjects']==40 and sum_up(t, 500)==r
    assert r['gain']==pytest.approx(.1) and r['gain_lo']==pytest.approx(.1) and np.isnan(sum_up(t.assign(auc_random=np.nan), 50)['gain'])

def test_naive_maps_need_no_network(scans):
    ds,recipe = scans; truths = {i: truth_of(r, recipe) for i,r in ds.man.iloc[:2].iterrows()}; x = ds.batch([0, 1])['x'][:,0].numpy()
    n = {k: sum_up(judge_maps(m, truths), 50) for k,m in naive_maps(x, truths).items()}; assert n['middle']['auc']>.8>n['middle']['auc_alike'] and n['darkness']['auc']>.8 and np.isnan(n['darkness']['random_correlation'])

# ---- pictures

def test_everyone_counts_the_same_in_the_average():
    a,b = np.zeros((2, 24, 24, 24)); a[5,5,5],b[9,9,9] = 1,1000; brains = np.ones((2, 24, 24, 24), bool); m = group_average([a, b], brains)
    assert m[5,5,5]==m[9,9,9]>0 and m.mean()==pytest.approx(1) and group_average([a*0], brains[:1]).sum()==0

def test_overlay_marks_the_directions():
    s = np.random.default_rng(0).random((24, 20, 16)); m = np.zeros(s.shape); m[20,3,10] = 1; f = overlay(s, {'a': m, 'b': m})
    said = [''.join(t.get_text() for t in ax.texts) for ax in f.axes]; assert said==['PAIS', 'LRIS', 'LRPA']*2
    axial = f.axes[2].images[1].get_array(); at = np.unravel_index(np.asarray(axial)[...,3].argmax(), axial.shape[:2])
    assert at==(3, 20) and f.axes[2].images[1].origin=='lower', 'x grows to the right, y to the top: left is left, back is below'
    assert len(overlay(s, m*0).axes)==3

def test_the_template_runs_without_a_profile():
    from neurossl.run import resolve
    p = resolve('explain', {}); assert set(p['methods'])==set(METHODS) and p['n_explain']==40 and not any(v is None for v in p.values())


MICCAI = 'Label Number,Label Name,Class\n31,Right Amygdala,GM\n47,Right Hippocampus,GM\n48,Left Hippocampus,GM\n49,Right Inf Lat Vent,CSF\n51,Right Lateral Ventricle,CSF\n52,Left Lateral Ventricle,CSF\n4,3rd Ventricle,CSF\n'

def drawn_by_hand(root, scan, kinds, where='derivatives/hand/sub-01/ses-1'):
    "A BIDS folder with one scan and labels drawn on it"
    at = root/'sub-01'/'ses-1'/'anat'; at.mkdir(parents=True, exist_ok=True); (root/where).mkdir(parents=True, exist_ok=True)
    save_volume(scan, at/'sub-01_ses-1_T1w.nii.gz'); save_volume(kinds, root/where/'sub-01_ses-1_dseg.nii.gz'); (root/'Some-Label-Information.csv').write_text(MICCAI)
    return pd.Series(dict(path='sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz'))


@pytest.mark.parametrize('shift', [0, 3])
def test_labels_drawn_by_hand_follow_the_scan(tmp_path, shift):
    l = sample_latents(1, 5, 'clinical_a', dx='AD', age=80., sex='M', severity=2.); scan,true = phantom(l, 40),truth_masks(l, 40); x = np.select([true.data==1, true.data==2, true.data==3], [48, 47, 51], 31.)
    x[true.data==0] = 0; x[0,0,0] = 4; a = true.affine.copy(); a[:3,3] -= shift*a[:3,:3].sum(1) # on a grid of its own, some voxels larger
    row = drawn_by_hand(tmp_path, scan, Volume(np.pad(x, shift).astype(np.float32), a)); o = outlines(row, Recipe('plain', 40), tmp_path)
    assert np.array_equal(o==1, np.isin(true.data, (1, 2))) and np.array_equal(o==2, true.data==3) and o.dtype==np.uint8


def test_labels_that_are_no_good_are_named(tmp_path):
    scan = phantom(sample_latents(1, 5, 'clinical_a'), 40); none = Volume(np.zeros((40,)*3, np.float32)+(np.indices((40,)*3)[0]>20), scan.affine); row = drawn_by_hand(tmp_path, scan, none); r = Recipe('plain', 40)
    assert label_codes(tmp_path)=={47: 1, 48: 1, 49: 2, 51: 2, 52: 2} and outlines(pd.Series(dict(path='sub-02/anat/sub-02_T1w.nii.gz')), r, tmp_path) is None and label_file('scan.nii.gz') is None
    with pytest.raises(Problem, match='no voxel of hippocampi'): outlines(row, r, tmp_path)
    drawn_by_hand(tmp_path, scan, none, 'derivatives/other/sub-01/ses-1/anat')
    with pytest.raises(Problem, match='2 files of labels'): outlines(row, r, tmp_path)
    (tmp_path/'Some-Label-Information.csv').write_text(MICCAI.replace('Hippocampus', 'Thalamus'))
    with pytest.raises(Problem, match='numbers of 3 structures'): label_codes(tmp_path)
    (tmp_path/'Some-Label-Information.csv').unlink()
    with pytest.raises(Problem, match='no table of their numbers'): label_codes(tmp_path)

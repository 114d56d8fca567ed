"Encoders: shapes, counts, names, refusals; pooling and folding; foreign weights; sizing against torch's own counters"
import copy, io, os, pickle, tarfile

import numpy as np
import pytest
import torch
from torch import nn
from neurossl import encoders as E
from neurossl.core import Problem, read_json
from neurossl.encoders import (ENCODERS, SFCN, Pooled, bins_to_years, build_encoder, contamination_of, convert, equal_compute, folded, head, load_foreign,
                               resnet3d, s2_contract, sfcn_contract, sizing, vit3d)
from neurossl.nets import TokenBlock, position_waves
from neurossl.preprocess import G2009C
from neurossl.spatial import shift
from neurossl.volume import Volume


def count(*ms): return sum(p.numel() for m in ms for p in m.parameters())


def test_parameter_counts():
    encoder = SFCN()
    assert count(encoder)==2_950_336
    assert {k: count(encoder, head(encoder.n_features, k)) for k in (1, 32, 40)}=={1: 2_950_401, 32: 2_952_416, 40: 2_952_936}


def test_map_at_full_size_on_the_meta_device():
    encoder = SFCN().to('meta').eval()
    assert encoder.features(torch.empty(1, 1, 192, 192, 192, device='meta')).shape==(1, 64, 6, 6, 6)
    assert encoder.features(torch.empty(1, 1, 160, 192, 160, device='meta')).shape==(1, 64, 5, 6, 5)


def test_odd_sides_round_up_unless_told():
    x = torch.rand(1, 1, 48, 33, 64)
    with torch.no_grad():
        assert SFCN().eval().features(x).shape[2:]==(2, 2, 2) and SFCN(ceil=False).eval().features(x).shape[2:]==(1, 1, 2)
        torch.manual_seed(0); a = SFCN().eval(); torch.manual_seed(0); b = SFCN(ceil=False).eval()
        assert torch.equal(a(x[:,:,:32,:32]), b(x[:,:,:32,:32]))  # no difference at multiples of 32


@pytest.mark.parametrize('shape', [(32,32,32), (33,48,40), (64,32,32)])
def test_any_size_gives_the_same_features_shape(shape):
    encoder = SFCN().eval()
    with torch.no_grad(): z = encoder(torch.rand(2, 1, *shape))
    assert z.shape==(2, encoder.n_features) and z.dtype==torch.float32


@pytest.mark.parametrize('shape', [(2,1,31,48,48), (2,1,48,48,20), (2,2,32,32,32), (1,32,32,32), (32,32,32)])
def test_refusals(shape):
    with pytest.raises(Problem, match='at least 32 voxels') as e: SFCN()(torch.rand(*shape))
    assert str(shape) in str(e.value)


def test_published_key_names():
    keys = set(SFCN().state_dict())
    for i in range(6): assert {f'feature_extractor.conv_{i}.0.weight', f'feature_extractor.conv_{i}.1.running_var'}<=keys
    shapes = {k: tuple(v.shape) for k,v in SFCN().state_dict().items()}
    assert shapes['feature_extractor.conv_0.0.weight']==(32,1,3,3,3) and shapes['feature_extractor.conv_5.0.weight']==(64,256,1,1,1)


def test_layer_order_is_conv_norm_pool_relu():
    names = [type(m).__name__ for m in SFCN().feature_extractor.conv_2]
    assert names==['Conv3d', 'BatchNorm3d', 'MaxPool', 'ReLU']
    assert [type(m).__name__ for m in SFCN().feature_extractor.conv_5]==['Conv3d', 'BatchNorm3d', 'ReLU']


def test_channels_last_and_bf16_change_little():
    torch.manual_seed(0)
    encoder,x = SFCN().eval(),torch.rand(2, 1, 32, 32, 32)
    plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    assert encoder.feature_extractor.conv_0[0](x).is_contiguous(memory_format=torch.channels_last_3d)   # also behind the one input channel
    with torch.no_grad():
        z = encoder(x)
        assert torch.allclose(z, plain(x), atol=1e-5)
        with torch.autocast('cpu', torch.bfloat16): low = encoder(x)
    assert low.dtype==torch.float32 and torch.allclose(z, low, atol=.05)


@pytest.mark.parametrize('size', [32, 33, 48])
def test_bf16_gradients_are_never_read_from_dirty_memory(size):
    "oneDNN's weight gradient is garbage for maps of two voxels; the encoder computes those in float32"
    torch.manual_seed(0); encoder = SFCN(); y = torch.linspace(-2, 2, 8)
    x = torch.rand(8, 1, size, size, size)*torch.linspace(.2, 1, 8).view(8, 1, 1, 1, 1)
    def gradients(low):
        dirt = [torch.full((1<<20,), float('nan')) for _ in range(8)]; del dirt
        encoder.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=low): z = encoder(x)
        (8*z.mean(1)-y).square().mean().backward()
        return [p.grad.flatten().clone() for k,p in encoder.named_parameters() if k.endswith('0.weight')]
    for a,b in zip(gradients(False), gradients(True)):
        assert b.isfinite().all() and torch.cosine_similarity(a, b, dim=0)>.6 and .6<a.norm()/b.norm()<1.6


def test_build_by_name():
    small = build_encoder('sfcn', channels=(4,8,8), n_features=8)
    assert small.spec==build_encoder(**small.spec).spec and small.min_side==8
    assert build_encoder('sfcn', ceil=False).spec['ceil'] is False
    with pytest.raises(Problem, match="Did you mean 'sfcn'"): build_encoder('SFC')
    with pytest.raises(Problem, match="Did you mean 'channels'"): build_encoder('sfcn', chanels=(4,))
    assert 'sfcn' in ENCODERS


def test_head_with_dropout():
    h = head(8, 3, dropout=.5)
    assert h(torch.rand(4, 8)).shape==(4, 3) and h[0].p==.5 and count(h)==count(head(8, 3))


@pytest.mark.parametrize('n', [32, 48, 192])
def test_sizing_by_hand_equals_measured(n):
    encoder = SFCN(); before = copy.deepcopy(encoder.state_dict())
    s = sizing(encoder, (n,n,n))
    assert ((s.ratio-1).abs()<.01).all() and s.loc['parameters', 'by_hand']==2_950_336
    assert all(torch.equal(v, before[k]) for k,v in encoder.state_dict().items()) and encoder.training


def test_sizing_of_full_resolution_in_numbers(): # 0.557 TFLOP a training sample at 192^3
    assert abs(sizing(SFCN(), (192,192,192)).loc['step_gflop', 'measured']-557)<1


# residual network

def test_resnet_counts_names_and_maps():
    with torch.device('meta'): n = {d: (count(resnet3d(d)), len(resnet3d(d).state_dict())) for d in (10, 18, 34)}
    assert n[18]==(33_160_896, 123) and n[10][0]<n[18][0]<n[34][0]
    full = resnet3d().to('meta').eval()
    maps = [tuple(h.shape[1:]) for h in full.stages(torch.empty(1, 1, 150, 192, 192, device='meta'))]
    assert maps==[(64,75,96,96), (128,38,48,48), (256,19,24,24), (512,10,12,12)]
    with torch.device('meta'): half = resnet3d(stem_stride=2)
    assert half.features(torch.empty(2, 1, 96, 96, 96, device='meta')).shape[1:]==(512, 3, 3, 3) and half.min_side==32


@pytest.mark.parametrize('depth', [10, 18, 34])
def test_resnet_equals_monai(depth):
    from monai.networks.nets import resnet
    torch.manual_seed(depth); net = resnet3d(depth, width=8); x = torch.rand(2, 1, 35, 32, 40)
    with torch.no_grad(): net.train()(x); net.eval()
    theirs = resnet.ResNet('basic', list(E.RESNET_BLOCKS[depth]), [8,16,32,64], n_input_channels=1, feed_forward=False).eval()
    theirs.load_state_dict(net.state_dict())
    with torch.no_grad(): assert torch.allclose(net(x), theirs(x), atol=1e-6) and net(x).shape==(2, net.n_features)


@pytest.mark.parametrize('size,stem', [(32, 1), (16, 1), (32, 2), (48, 2)])
def test_bf16_gradients_of_the_resnet(size, stem):
    torch.manual_seed(0); encoder = resnet3d(18, stem, width=8)
    x = torch.rand(8, 1, size, size, size)*torch.linspace(.2, 1, 8).view(8, 1, 1, 1, 1)
    def gradients(low):
        dirt = [torch.full((1<<18,), float('nan')) for _ in range(8)]+[torch.full((1<<12,), 1e30) for _ in range(32)]; del dirt
        encoder.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=low): z = encoder(x)
        (z*torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
        return [p.grad.flatten().clone() for p in encoder.layer4.parameters() if p.ndim==5]
    for a,b in zip(gradients(False), gradients(True)): assert b.isfinite().all() and torch.cosine_similarity(a, b, dim=0)>.6 and .6<a.norm()/b.norm()<1.6


def test_resnet_refusals():
    with pytest.raises(Problem, match='10, 18, 34'): resnet3d(50)
    with pytest.raises(Problem, match='1 or 2'): resnet3d(stem_stride=3)
    with pytest.raises(Problem, match='at least 32 voxels'): resnet3d(10, 2, width=4)(torch.rand(1, 1, 31, 48, 48))
    with pytest.raises(Problem, match='at least 16 voxels'): resnet3d(10, width=4)(torch.rand(2, 48, 48, 48))


# transformer

def test_token_block_equals_torch():
    torch.manual_seed(0)
    ours,theirs = TokenBlock(24, 3),nn.TransformerEncoderLayer(24, 3, 96, 0., 'gelu', batch_first=True, norm_first=True)
    names = {'attn.qkv.weight': 'self_attn.in_proj_weight', 'attn.out_proj': 'self_attn.out_proj', 'mlp.linear': 'linear'}
    theirs.load_state_dict({next((k.replace(a, b) for a,b in names.items() if k.startswith(a)), k): v for k,v in ours.state_dict().items()} | {'self_attn.in_proj_bias': torch.zeros(72)})
    x = torch.randn(2, 11, 24)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize('pool', ['mean', 'cls'])
@pytest.mark.parametrize('positions', ['sincos', 'learnable'])
def test_vit_shapes(pool, positions):
    net = vit3d((32,40,48), (8,8,16), 24, 2, 4, positions=positions, pool=pool).eval(); x = torch.rand(2, 1, 32, 40, 48)
    with torch.no_grad(): z,m,s = net(x),net.features(x),list(net.stages(x))
    assert z.shape==(2, 24) and m.shape==(2, 24, 4, 5, 3) and [h.shape[1] for h in s]==list(net.stage_features) and net.n_features==24
    assert (pool=='cls')!=torch.allclose(z, m.mean((2,3,4)), atol=1e-5)
    assert build_encoder(**net.spec).spec==net.spec
    trained = net.patch_embedding.position_embeddings.requires_grad
    assert trained==(positions=='learnable')
    net(x).sum().backward(); assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_vit_positions_follow_the_grid():
    net = vit3d(32, 8, 12, 1, 2).eval(); x = torch.zeros(1, 1, 32, 32, 32); y = x.clone(); y[:,:,8:16,16:24,24:] = 1
    with torch.no_grad(): d = (net.tokens(y)-net.tokens(x)).norm(dim=2)[0].unflatten(0, net.grid)
    assert (d>0).nonzero().tolist()==[[1,2,3]]
    assert torch.equal(position_waves((4,4,4), 12)[0].unflatten(0, (4,4,4))[1,2,3,:2], torch.tensor([1., .01]).sin())


def test_vit_refusals():
    net = vit3d(32, 8, 24, 1, 4)
    with pytest.raises(Problem, match='made for one size'): net(torch.rand(1, 1, 48, 48, 48))
    for kw,word in ((dict(img_size=50), 'patch'), (dict(width=100), 'heads'), (dict(width=64, heads=8), 'divisible by 6'), (dict(pool='max'), "'cls'"), (dict(positions='none'), 'positions')):
        with pytest.raises(Problem, match=word): vit3d(**kw)


# pooling and folding

SMALL = [dict(name='sfcn', channels=(4,8,8,8,8), n_features=8), dict(name='resnet10', width=4), dict(name='vit3d', img_size=64, width=24, depth=3, heads=4)]

@pytest.mark.parametrize('spec', SMALL, ids=lambda s: s['name'])
def test_pooling_is_exact(spec):
    torch.manual_seed(0); encoder = build_encoder(**spec).eval(); x = torch.rand(2, 1, 64, 64, 64)
    with torch.no_grad():
        maps = list(encoder.stages(x)); m = maps[-1]; n = m.shape[2]//2
        octants = torch.stack([m[:,:,i*n:(i+1)*n,j*n:(j+1)*n,k*n:(k+1)*n].mean((2,3,4)) for i in (0,1) for j in (0,1) for k in (0,1)], 2).flatten(1)
        want = dict(mean=encoder(x), max=m.amax((2,3,4)), grid2=octants, layers=torch.cat([h.mean((2,3,4)) for h in maps[-2:]], 1))
        want['mean+max'] = torch.cat([want['mean'], want['max']], 1)
        for how,z in want.items():
            p = Pooled(encoder, how, last=2).eval()
            assert torch.allclose(p(x), z, atol=1e-5) and p.n_features==z.shape[1], how
            assert build_encoder(**p.spec).spec==p.spec and build_encoder(**p.spec).n_features==p.n_features
    assert {k.removeprefix('encoder.') for k in Pooled(encoder).state_dict()}==set(encoder.state_dict())


def test_pooling_refusals():
    with pytest.raises(Problem, match="Did you mean 'grid2'"): Pooled(dict(SMALL[0]), 'grid3')
    with pytest.raises(Problem, match='1 to 6'): Pooled(dict(SMALL[0]), 'layers', last=7)


@pytest.mark.parametrize('spec', SMALL, ids=lambda s: s['name'])
def test_folding_changes_nothing(spec):
    torch.manual_seed(0); encoder = build_encoder(**spec); x = torch.rand(3, 1, 64, 64, 64)
    with torch.no_grad():
        encoder.train()(x); z = encoder.eval()(x); f = folded(encoder.train())
        assert torch.allclose(f(x), z, atol=1e-5, rtol=1e-5) and not f.training and encoder.training
        assert torch.allclose(folded(Pooled(encoder, 'layers', last=2))(x), Pooled(encoder, 'layers', last=2).eval()(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in f.modules()) and f.spec is None


# foreign weights: made here, under the published names

@pytest.fixture(scope='module')
def release(tmp_path_factory):
    "(path, MONAI's network, state) of a file like simclr_3d_brain_foundation.tar"
    from monai.networks.nets.resnet import resnet18
    torch.manual_seed(0); net = resnet18(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=True)
    with torch.no_grad(): net.train()(torch.rand(2, 1, 32, 32, 32)); net.eval()
    state = {f'module.encoder.{k}': v for k,v in net.state_dict().items()} | {'module.projector.0.weight': torch.randn(512, 512), 'module.projector.2.weight': torch.randn(64, 512)}
    assert len(state)==125
    path = tmp_path_factory.mktemp('s2')/'simclr_3d_brain_foundation.tar'
    torch.save({'epoch': 150, 'model_state_dict': state, 'optimizer_state_dict': {'state': {}, 'param_groups': [dict(lr=3e-4)]}}, path)
    return path,net,state


def test_release_gives_monais_features(release):
    path,net,state = release; encoder,info = load_foreign(path); x = torch.rand(2, 1, 32, 40, 48)
    with torch.no_grad(): assert torch.allclose(encoder(x), net(x), atol=1e-6)
    assert (info['kind'], info['epoch'], info['n_tensors'], info['projector'], info['known'], info['container'])==('3d-neuro-simclr', 150, 123, True, False, 'torch')
    assert torch.equal(info['heads']['projector'][2].weight, state['module.projector.2.weight']) and not encoder.training
    assert len(info['trained_on'])==11 and len(info['sha256'])==64 and build_encoder(**info['spec']).spec==encoder.spec


def test_release_in_a_tar_and_checked_by_sha256(release, tmp_path):
    path,_,_ = release; sha = load_foreign(path)[1]['sha256']
    with tarfile.open(tmp_path/'t.tar', 'w') as t: t.add(path, 'inner.pth')
    assert load_foreign(tmp_path/'t.tar')[1]['container']=='tar around torch'
    assert load_foreign(path, sha.upper())[1]['sha256']==sha
    with pytest.raises(Problem, match='not the file that was meant'): load_foreign(path, sha256='0'*64)
    with tarfile.open(tmp_path/'two.tar', 'w') as t: t.add(path, 'a'); t.add(path, 'b')
    with pytest.raises(Problem, match='a tar of 2 things'): load_foreign(tmp_path/'two.tar')
    with pytest.raises(Problem, match='must not be extracted'): load_foreign(tmp_path)
    with pytest.raises(Problem, match='no such file'): load_foreign(tmp_path/'none.tar')


def test_known_sha256_is_reported(release, monkeypatch):
    sha = load_foreign(release[0])[1]['sha256']; monkeypatch.setitem(E.KNOWN_SHA256, sha, '3d-neuro-simclr')
    assert load_foreign(release[0])[1]['known'] and 'f046dafe009de0cfa113a022c1ef9603d123834f217074eb86d26037e72b98f5' in E.KNOWN_SHA256


@pytest.mark.parametrize('change,word', [('missing', '1 missing'), ('extra', '1 unexpected'), ('shape', '1 misshapen'), ('nan', 'NaN or Inf'), ('twice', 'another architecture'), ('resnet10', 'missing')])
def test_incomplete_states_are_refused(release, tmp_path, change, word):
    state = dict(release[2]); k = 'module.encoder.layer3.1.bn2.running_var'
    if change=='missing': del state[k]
    if change=='extra': state['module.encoder.fc.weight'] = torch.ones(1)
    if change=='shape': state[k] = torch.ones(3)
    if change=='nan': state[k] = torch.full_like(state[k], torch.nan)
    if change=='twice': state = {f'module.{k}': v for k,v in state.items()}
    if change=='resnet10': state = {k: v for k,v in state.items() if '.1.' not in k or 'downsample' in k}
    torch.save({'model_state_dict': state}, tmp_path/'x.tar')
    with pytest.raises(Problem, match=word): load_foreign(tmp_path/'x.tar')


class Harmful:
    def __init__(self, at): self.at = at
    def __reduce__(self): return os.mkdir, (str(self.at),)

@pytest.mark.parametrize('new', [True, False])
def test_code_is_never_run(tmp_path, new):
    torch.save({'model_state_dict': {'w': torch.ones(1)}, 'x': Harmful(tmp_path/'harm')}, tmp_path/'x.tar', _use_new_zipfile_serialization=new)
    with pytest.raises(Problem, match='Nothing of it was run') as e: load_foreign(tmp_path/'x.tar')
    assert 'mkdir' in str(e.value) and not (tmp_path/'harm').exists()
    (tmp_path/'plain.p').write_bytes(pickle.dumps(Harmful(tmp_path/'harm')))
    with pytest.raises(Problem): load_foreign(tmp_path/'plain.p')
    torch.save(nn.Linear(2, 2), tmp_path/'whole.pt')
    with pytest.raises(Problem, match='Nothing of it was run'): load_foreign(tmp_path/'whole.pt')
    assert not (tmp_path/'harm').exists()


@pytest.mark.parametrize('new', [True, False])
def test_truncated_files_are_refused(tmp_path, new):
    torch.save(resnet3d(10, width=4).state_dict(), tmp_path/'whole.p', _use_new_zipfile_serialization=new); b = (tmp_path/'whole.p').read_bytes()
    for n in (0, 1, 3, 20, 100, 500, 3000, len(b)//2, len(b)-30, len(b)-1):
        (tmp_path/'cut.p').write_bytes(b[:n])
        with pytest.raises(Problem): load_foreign(tmp_path/'cut.p')
    for text in (b'<html>404</html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'):
        (tmp_path/'page.p').write_bytes(text)
        with pytest.raises(Problem, match='a file that begins with'): load_foreign(tmp_path/'page.p')


@pytest.mark.parametrize('obj', [{}, [1], {'state_dict': {'w': 'text'}}, {'epoch': 1}, torch.ones(3), {'cls_token': torch.ones(1), 'blocks.0.norm1.weight': torch.ones(4)}])
def test_foreign_contents_are_refused(tmp_path, obj):
    torch.save(obj, tmp_path/'x.pth')
    with pytest.raises(Problem, match='named'): load_foreign(tmp_path/'x.pth')


@pytest.mark.parametrize('depth,stem,bias', [(10, 1, True), (18, 2, False), (34, 1, True)])
def test_plain_monai_states(tmp_path, depth, stem, bias):
    net = resnet3d(depth, stem, 4, bias).eval(); state = net.state_dict()
    torch.save(dict(state, **{'fc.weight': torch.ones(2, 32), 'fc.bias': torch.zeros(2)}), tmp_path/'x.pth')
    encoder,info = load_foreign(tmp_path/'x.pth', stem_stride=stem); x = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad(): assert torch.equal(encoder(x), net(x))
    assert encoder.spec==net.spec and info['kind']=='monai-resnet' and set(info['heads'])=={'output'}


def test_resnet50_is_refused(tmp_path):
    from monai.networks.nets.resnet import ResNet
    torch.save(ResNet('bottleneck', [3,4,6,3], [4,8,16,32], n_input_channels=1, feed_forward=False).state_dict(), tmp_path/'x.pth')
    with pytest.raises(Problem, match='ResNet-10, -18 and -34'): load_foreign(tmp_path/'x.pth')


class Peng(nn.Module):
    "UK Biobank's SFCN as its equations say, with its fixed pooling"
    def __init__(self, k=40):
        super().__init__(); c = (1,32,64,128,256,256,64)
        self.feature_extractor = nn.Sequential(); self.classifier = nn.Sequential()
        for i in range(6):
            self.feature_extractor.add_module(f'conv_{i}', nn.Sequential(nn.Conv3d(c[i], c[i+1], 3 if i<5 else 1, padding=int(i<5)), nn.BatchNorm3d(c[i+1]), *([nn.MaxPool3d(2, 2)] if i<5 else []), nn.ReLU()))
        self.classifier.add_module('average_pool', nn.AvgPool3d([1,2,1])); self.classifier.add_module('dropout', nn.Dropout(.5)); self.classifier.add_module('conv_6', nn.Conv3d(64, k, 1))
    def forward(self, x): return self.classifier(self.feature_extractor(x)).flatten(1).log_softmax(1)


@pytest.mark.parametrize('k,name', [(40, 'age'), (2, 'sex')])
def test_uk_biobank_sfcn(tmp_path, k, name):
    torch.manual_seed(0); net = Peng(k); x = torch.rand(3, 1, 48, 64, 40)
    with torch.no_grad(): net.train()(x); net.eval()
    torch.save({f'module.{a}': v for a,v in net.state_dict().items()}, tmp_path/'run.p', _use_new_zipfile_serialization=False)
    encoder,info = load_foreign(tmp_path/'run.p')
    with torch.no_grad(): assert torch.allclose(info['heads'][name](encoder(x)).log_softmax(1), net(x), atol=1e-5)
    assert encoder.spec['ceil'] is False and info['n_tensors']==42 and info['kind']=='ukb-sfcn'
    again,facts = load_foreign(convert(tmp_path/'run.p', tmp_path/'out'))
    with torch.no_grad(): assert torch.equal(again(x), encoder(x)) and torch.equal(facts['heads'][name].weight, info['heads'][name].weight)


def test_bins_to_years():
    assert bins_to_years(torch.eye(40)*1e4).tolist()==[42.5+i for i in range(40)] and abs(bins_to_years(torch.zeros(1, 40)).item()-62)<1e-4


def test_convert_writes_weights_facts_and_card(release, tmp_path):
    out = convert(release[0], tmp_path/'s2'); encoder,info = load_foreign(out); first = (out/'weights.safetensors').read_bytes()
    with torch.no_grad(): x = torch.rand(1, 1, 32, 32, 32); assert torch.allclose(encoder(x), release[1](x), atol=1e-6)
    conf,card = read_json(out/'config.json'),(out/'card.md').read_text()
    assert info['epoch']==150 and info['sha256']==conf['sha256']==load_foreign(release[0])[1]['sha256'] and info['projector'] and info['container']=='safetensors'
    assert 'ADNI' in card and 'MIT' in card and conf['spec']['name']=='resnet18' and contamination_of(conf, 'adni')=='contaminated'
    assert convert(release[0], tmp_path/'s2')==out and (out/'weights.safetensors').read_bytes()==first
    (out/'weights.safetensors').write_bytes(first[:-4]+b'\0\1\2\3')
    with pytest.raises(Problem, match='damaged'): load_foreign(out)


# contracts

def test_s2_contract_is_the_released_code():
    rng = np.random.default_rng(0); v = rng.normal(1, .3, (193,229,193)).astype(np.float32); m = np.zeros(v.shape, bool); m[40:150,50:190,30:140] = True
    a,b = (t[None].transpose(0,3,2,1)[:,10:160,19:211,1:][0] for t in (v*m, m))
    want = (a-a[b].mean(dtype=float))/a[b].std(dtype=float)*b
    for scan,mask in ((v, m), (Volume(v, G2009C[0]), m), (Volume(v, G2009C[0]), Volume(m.astype(np.float32), G2009C[0]))):
        x = s2_contract(scan, mask)
        assert x.shape==(150,192,192) and x.dtype==np.float32 and np.abs(x-want).max()<1e-4
    with pytest.raises(Problem): s2_contract(v[:-1], m[:-1])
    with pytest.raises(Problem): s2_contract(Volume(v, shift([0.,0,0])), m)


def test_sfcn_contract_divides_before_it_crops():
    rng = np.random.default_rng(0); v = np.zeros((182,218,182), np.float32); v[20:150,30:190,20:140] = rng.uniform(50, 150, (130,160,120))
    x = sfcn_contract(v)
    assert x.shape==(160,192,160) and np.allclose(x, (v/v.mean(dtype=float))[11:-11,13:-13,11:-11], atol=1e-6)
    crop = v[11:-11,13:-13,11:-11]; assert not np.allclose(x, crop/crop.mean(), atol=.1)
    assert np.array_equal(sfcn_contract(Volume(v[::-1].copy(), E.FSL_GRID[0])), x)
    for bad in (crop, np.zeros_like(v), Volume(v, shift([0.,0,0]))):
        with pytest.raises(Problem): sfcn_contract(bad)


def test_contamination():
    s2,ukb,other = (dict(trained_on=E.FOREIGN[k]['trained_on']) for k in ('3d-neuro-simclr', 'ukb-sfcn', 'monai-resnet'))
    for c in (*E.S2_SETS, 'adni', 'ADNI-3', 'ADNIGO', 'habs_hd', 'NKI', 'ppmi'): assert contamination_of(s2, c)=='contaminated', c
    for c in ('AIBL', 'oasis3', 'clinical_a', 'LDM100K'): assert contamination_of(s2, c)=='overlap not verifiable', c
    assert [contamination_of(ukb, c) for c in ('LDM100K', 'UKB', 'UK Biobank', 'ADNI')]==['contaminated']*3+['overlap not verifiable']
    assert contamination_of(other, 'ADNI')=='overlap not verifiable'


# sizing of the other architectures

@pytest.mark.parametrize('make,shape', [(lambda: resnet3d(), (48,48,48)), (lambda: resnet3d(stem_stride=2), (150,192,192)), (lambda: resnet3d(34, width=16), (64,64,64)),
                                        (lambda: vit3d(96), (96,96,96)), (lambda: vit3d((150,192,192), (15,16,16), pool='cls'), (150,192,192))], ids=range(5))
def test_sizing_of_other_encoders(make, shape):
    with torch.device('meta'): s = sizing(make(), shape)
    assert ((s.ratio-1).abs()<.01).all(), s


def test_equal_compute():
    goal = sizing(SFCN(), (48,48,48)).loc['step_gflop', 'measured']
    w,g = equal_compute(lambda w: resnet3d(stem_stride=2, width=w), (40, 56, 72), (48,48,48), goal)
    assert w==56 and abs(g/goal-1)<.15
    with pytest.raises(Problem, match='Offer other widths'): equal_compute(lambda w: vit3d(48, 8, w), [48], (48,48,48), goal)


def test_pooling_stays_in_the_precision_of_its_input():
    from neurossl.nets import MaxPool
    x = torch.randn(2, 3, 7, 6, 5)
    for ceil in (False, True):
        assert torch.equal(MaxPool(2, ceil_mode=ceil)(x), nn.MaxPool3d(2, ceil_mode=ceil)(x))
        with torch.autocast('cpu', torch.bfloat16):
            assert MaxPool(2, ceil_mode=ceil)(x.bfloat16()).dtype==torch.bfloat16 and nn.MaxPool3d(2)(x.bfloat16()).dtype==torch.float32, 'if torch no longer widens, MaxPool may go'
    assert sum(isinstance(m, MaxPool) for m in SFCN().modules())==5 and sum(isinstance(m, MaxPool) for m in resnet3d().modules())==1

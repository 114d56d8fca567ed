"SFCN: shapes, counts, names, refusals; sizing against torch's own counters"
import copy

import pytest
import torch
from neurossl.core import Problem
from neurossl.encoders import ENCODERS, SFCN, build_encoder, head, sizing


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
    assert names==['Conv3d', 'BatchNorm3d', 'MaxPool3d', 'ReLU']
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

"The 3D networks: sizes, the released defects, learning."
import pytest
import torch
from torch.nn.functional import cross_entropy

from neurossl.core import Problem
from neurossl.korolev import VoxRes, VoxResNet, VoxVGG

def count(m): return sum(p.numel() for p in m.parameters())
def batch(n=32, b=4): return torch.rand(b, 1, n, n, n, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])

def idle(net, x=None):
    cross_entropy(net(batch() if x is None else x), LABELS).backward()
    return [k for k,p in net.named_parameters() if p.grad is None]


def test_released_residual_network_has_24_idle_tensors_and_the_fixed_one_none():
    torch.manual_seed(0); dead = idle(VoxResNet(as_released=True)); net = VoxResNet(as_released=True)
    assert len(dead)==24 and {k.rsplit('.', 2)[1] for k in dead}=={'bn1', 'conv1'}
    assert sum(net.get_parameter(k).numel() for k in dead)==1_328_640 and count(net)==3_205_026
    assert idle(VoxResNet())==[] and idle(VoxVGG(32))==[] and idle(VoxVGG(32, as_released=True))==[]


def test_layer_sizes():
    net = VoxVGG(110); convs = [m.out_channels for m in net.features.modules() if isinstance(m, torch.nn.Conv3d)]
    assert convs==[8, 8, 16, 16, 32, 32, 32, 64, 64, 64]
    lin = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert lin==[(13824, 128), (128, 64), (64, 2)] and count(net)==2_136_618
    res = VoxResNet(); assert [m.in_features for m in res.modules() if isinstance(m, torch.nn.Linear)]==[1024, 128]
    assert sum(isinstance(m, VoxRes) for m in res.modules())==6


def test_pool_at_110_is_the_released_one():
    x = torch.rand(2, 128, 14, 14, 14)
    assert torch.equal(VoxResNet().pool(x), torch.nn.functional.max_pool3d(x, 7))


@pytest.mark.parametrize('size', [16, 32, 48, 110, (32, 48, 40)])
def test_built_for_a_size(size):
    s = (size,)*3 if isinstance(size, int) else size; x = torch.empty(2, 1, *s, device='meta')
    for net in (VoxVGG(size), VoxResNet()):
        net = net.to('meta').eval(); assert net(x).shape==(2, 2) and net.embed(x).shape==(2, net.n_features)


def test_block_adds_what_two_convolutions_make():
    torch.manual_seed(0); b = VoxRes(4).eval(); x = torch.rand(1, 4, 5, 5, 5); f = torch.relu
    assert torch.allclose(b(x), x+b.conv2(f(b.bn2(b.conv1(f(b.bn1(x)))))))
    b.as_released = True; assert torch.allclose(b(x), x+b.conv2(f(b.bn2(x))))


def test_sigmoid_floor_and_dropout_that_stays_on():
    torch.manual_seed(0); x = batch()
    with torch.no_grad():
        y = VoxResNet(as_released=True).eval()(x); assert (y>0).all() and (y<1).all()
        net = VoxVGG(32, as_released=True).eval(); assert not torch.equal(net(x), net(x))
        net = VoxVGG(32).eval(); assert torch.equal(net(x), net(x))
    assert abs(float(cross_entropy(torch.tensor([[0., 1.]]), torch.tensor([1])))-.313)<1e-3


@pytest.mark.parametrize('make', [lambda: VoxVGG(32), VoxResNet])
def test_bf16_and_memory_order(make):
    torch.manual_seed(0); net = make().eval(); x = batch(b=2)
    with torch.no_grad():
        y = net(x); assert torch.allclose(net.to(memory_format=torch.contiguous_format)(x), y, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): z = net(x)
    assert z.dtype==torch.float32 and torch.allclose(y, z, atol=.1)


@pytest.mark.parametrize('make', [lambda: VoxVGG(16, dropout=0.), VoxResNet])
def test_overfits_20_scans(make):
    torch.manual_seed(0); net = make(); x = batch(16, 20); y = torch.arange(20)%2
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        opt.zero_grad(); out = net(x); loss = cross_entropy(out, y); loss.backward(); opt.step()
        if loss<.05: break
    assert (out.argmax(1)==y).all()


def test_refusals():
    for f,say in ((lambda: VoxVGG(15), 'at least 16'), (lambda: VoxVGG(32)(batch(48, 1)), 'Build it with size='), (lambda: VoxResNet()(torch.rand(1, 2, 32, 32, 32)), r'\(B, 1, X, Y, Z\)'),
                  (lambda: VoxResNet()(torch.rand(1, 1, 8, 32, 32)), 'at least 16')):
        with pytest.raises(Problem, match=say): f()

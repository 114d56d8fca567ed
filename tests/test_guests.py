"Guests: contracts by known places and grey levels, MedicalNet against its equations, strict loading of any network, the numeric contract test, published contracts of S2 and SFCN"
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from neurossl.anatomy import CENTRE_MM
from neurossl.encoders import EncoderError, SFCN, s2_contract, sfcn_contract
from neurossl.guests import CONTRACTS, INTENSITIES, MEDICALNET, Guest, MedicalNet, contract_match, entry_point, load_medicalnet, load_state, read_contract, under_contract
from neurossl.phantom import demo_batch
from torch import nn


def test_s2_box_and_axes_agree_with_the_published_contract():
    "A cube of 192 mm at 1 mm, and the same brain on the 2009c grid (193 x 229 x 193, x from -96, y from -132, z from -78)"
    g = np.random.default_rng(0); v = np.zeros((193, 229, 193), np.float32); v[60:130,70:180,40:150] = g.uniform(.5, 1, (70, 110, 110))
    half = F.avg_pool3d(F.pad(torch.from_numpy(v)[None,None], (0, 1)*3), 2, 1); half = F.pad(half, (20, 20)*3)[0,0] # values half-way between voxels: the cube's centres lie at -95.5 ... 95.5
    a = [int(np.floor(m-95.5+o))+20 for m,o in zip(CENTRE_MM, (96, 132, 78))]
    cube = half[None,None,a[0]:a[0]+192,a[1]:a[1]+192,a[2]:a[2]+192]
    mine = under_contract(cube, read_contract(dict(like='3d-neuro-simclr', intensity='none')))[0,0].numpy(); theirs = v.transpose(2, 1, 0)[10:160,19:211,1:]
    assert mine.shape==theirs.shape==(150, 192, 192) and s2_contract(v).shape==mine.shape
    smooth = F.avg_pool3d(F.avg_pool3d(F.pad(torch.from_numpy(theirs.copy())[None,None], (1, 1)*3), 2, 1), 2, 1)[0,0].numpy()
    assert np.corrcoef(mine.ravel(), smooth.ravel())[0,1]>.9999


def test_sfcn_divides_by_the_mean_of_the_whole_field():
    x = torch.zeros(1, 1, 96, 96, 96); x[:,:,20:80,20:80,20:80] = 3.; c = read_contract(dict(like='ukb-sfcn', size=(80, 96, 80)))
    y = under_contract(x, c); assert y.shape==(1, 1, 80, 96, 80) and float(y.max())==pytest.approx(3/float(x.mean()), rel=1e-3)
    v = np.zeros((182, 218, 182), np.float32); v[40:140,40:180,40:140] = 3.; assert float(sfcn_contract(v).max())==pytest.approx(3/v.mean(), rel=1e-5)


@pytest.mark.parametrize('axes,at', [('RAS', (9, 2, 5)), ('LAS', (2, 2, 5)), ('SAR', (5, 2, 9)), ('ILP', (6, 2, 9)), ('PIR', (9, 6, 9))])
def test_axes(axes, at):
    x = torch.zeros(1, 1, 12, 12, 12); x[0,0,9,2,5] = 1.
    assert tuple(under_contract(x, read_contract(dict(axes=axes, intensity='none')))[0,0].nonzero()[0].tolist())==at


def test_intensities_are_what_they_say():
    x = demo_batch(3, 32)['x']; m = x>0
    for k in INTENSITIES: assert torch.isfinite(under_contract(x, read_contract(dict(intensity=k)))).all() and torch.isfinite(INTENSITIES[k](torch.zeros_like(x), m)).all()
    z = under_contract(x, read_contract('plain'))
    for i in range(3): assert abs(float(z[i][m[i]].mean()))<1e-4 and float(z[i][m[i]].std(correction=0))==pytest.approx(1, abs=1e-3) and (z[i][~m[i]]==0).all()
    a,b = (under_contract(s*x, read_contract(dict(intensity='zscore'))) for s in (1., 200.)); assert (a-b).abs().max()<1e-3
    assert torch.equal(*(under_contract(x, read_contract('plain' if i<0 else dict(intensity='zscore_noise')))[~m] for i in (0, 1)))


@pytest.mark.parametrize('depth', MEDICALNET)
def test_medicalnet_keeps_its_map_and_loads_strictly(depth, tmp_path):
    torch.manual_seed(0); net = MedicalNet(depth, 4).eval(); x = torch.randn(1, 1, 32, 48, 32)
    maps = list(net.stages(x)); assert [m.shape[2:] for m in maps]==[(8, 12, 8), (4, 6, 4), (4, 6, 4), (4, 6, 4)] and maps[-1].shape[1]==net.n_features
    state = {f'module.{k}': v for k,v in net.state_dict().items()}; torch.save({'state_dict': state, 'epoch': 7}, tmp_path/'x.pth')
    again,info = load_medicalnet(tmp_path/'x.pth'); assert info['epoch']==7 and torch.equal(again(x), net(x)) and info['spec']==net.spec
    state.pop('module.layer2.0.bn1.weight'); torch.save(state, tmp_path/'y.pth')
    with pytest.raises(EncoderError, match='1 missing'): load_medicalnet(tmp_path/'y.pth')


def test_medicalnet_10_has_the_published_number_of_parameters():
    layers = 64*343+128+sum(27*(i*o+o*o)+4*o+(i*o+2*o)*(i!=o) for i,o in ((64, 64), (64, 128), (128, 256), (256, 512)))
    with torch.device('meta'): assert sum(p.numel() for p in MedicalNet(10).parameters())==layers


def test_load_state(tmp_path):
    build = lambda: nn.Sequential(nn.Conv3d(1, 3, 3, stride=2), nn.BatchNorm3d(3))
    torch.manual_seed(0); a = build(); torch.save({'model_state_dict': {f'module.enc.{k}': v for k,v in a.state_dict().items()} | {'module.fc.weight': torch.ones(1)}}, tmp_path/'a.pt')
    torch.manual_seed(1); b = build(); info = load_state(b, tmp_path/'a.pt', 'enc.', ['fc.']); assert all(torch.equal(p, q) for p,q in zip(a.state_dict().values(), b.state_dict().values())) and info['n_tensors']==7
    for kw,word in ((dict(strip='enc.'), 'unexpected'), (dict(drop=['fc.']), 'missing'), (dict(strip='enc.', drop=['fc.'], sha256='1'*64), 'not the file')):
        with pytest.raises(EncoderError, match=word): load_state(build(), tmp_path/'a.pt', **kw)
    torch.save({f'{k}': v*float('nan') if v.is_floating_point() else v for k,v in a.state_dict().items()}, tmp_path/'n.pt')
    with pytest.raises(EncoderError, match='NaN'): load_state(build(), tmp_path/'n.pt')


class Many(nn.Module):
    def __init__(self, how): super().__init__(); self.c,self.how = nn.Conv3d(1, 4, 3, stride=4),how
    def forward(self, x): h = self.c(x); return dict(map=h, list=[h, h.mean((2,3,4))], dict=dict(z=h.mean((2,3,4)), y=h), tokens=h.flatten(2).transpose(1, 2))[self.how]


def test_outputs_of_any_kind():
    x = demo_batch(2, 32)['x']; found = []
    for how,pick in (('map', None), ('list', None), ('list', 0), ('dict', 'z'), ('tokens', None)):
        torch.manual_seed(0); g = Guest(Many(how), pick=pick, side=32).eval(); assert g.n_features==4; found.append(g(x).detach())
    assert all(torch.allclose(found[0], f, atol=1e-6) for f in found[1:])
    with pytest.raises(EncoderError, match='one of z, y'): Guest(Many('dict'), pick='x')


def test_contract_match_needs_a_memory_and_leaves_the_network_alone():
    torch.manual_seed(0); net = SFCN((8, 8, 8, 8, 8), 8); x = demo_batch(6, 32)['x']; assert contract_match(net, x)['holds'] is None
    for m in net.modules():
        if isinstance(m, nn.BatchNorm3d): m.momentum = None
    net.train()(x); before = {k: v.clone() for k,v in net.state_dict().items()}
    assert contract_match(net, x)['holds'] and net.training and all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert not contract_match(net, 255*x)['holds'] and not contract_match(net, x+3)['holds'] and not contract_match(net, x/4)['holds']


def test_refusals(tmp_path):
    for bad in (dict(axes='RAA'), dict(size=[4, 4]), dict(size=2), dict(intensity='z'), dict(colour=1), dict(like='sfcn')):
        with pytest.raises(EncoderError): read_contract(bad)
    for bad in ('nothing:here', 'monai.networks.nets', 'gone.py:build', 'torch.nn:Conv9d'):
        with pytest.raises(EncoderError): entry_point(bad, tmp_path)
    assert set(CONTRACTS)=={'plain', '3d-neuro-simclr', 'ukb-sfcn', 'medicalnet'}

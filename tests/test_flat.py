"Self-supervision on dynamic images, and the leaderboard with its Pareto front"
import json

import numpy as np
import pandas as pd
import pytest
import torch
from neurossl.dynamic import dynamic_image
from neurossl.encoders import EncoderError, Pooled, build_encoder
from neurossl.flat import FlatNet, FlatViews, pictures
from neurossl.leaderboard import leaderboard, pareto, parameters_of, training_costs
from neurossl.phantom import demo_batch
from neurossl.pretext import build_task


def test_a_picture_is_the_standardised_dynamic_image():
    x = demo_batch(3, 32)['x']; p = pictures(x, (-2,), 'harmonic'); d = dynamic_image(x[:,0], -2, 'harmonic')
    assert np.corrcoef(p.flatten(), ((d-d.mean((1,2), keepdim=True))/d.std((1,2), keepdim=True)).flatten())[0,1]>.9999
    with pytest.raises(EncoderError): pictures(x[:,0])


def test_the_network_takes_scans_and_pictures_and_pools_as_others_do():
    torch.manual_seed(0); n,x = FlatNet((-3, -2, -1)).eval(),demo_batch(2, 32)['x']
    assert torch.allclose(n(x), n(pictures(x, (-3, -2, -1))), atol=1e-6) and n.features(x).shape[-1]==1
    assert Pooled(n, 'layers')(x).shape==(2, 256+256+64) and Pooled(n, 'mean+max')(x).shape==(2, 128)
    assert build_encoder(**n.spec).spec==n.spec and parameters_of('flat', axes=[-3, -2, -1])==sum(p.numel() for p in n.parameters())


def test_views_belong_to_the_scan_and_change_with_the_epoch():
    b = demo_batch(4, 32); v = FlatViews(); a,c = v(b, 0, 0),v({k: w[1:] if hasattr(w, '__len__') else w for k,w in b.items()}, 0, 0)
    assert torch.allclose(a[0][1:], c[0], atol=1e-5) and not torch.allclose(a[0], a[1]) and not torch.allclose(a[0], v(b, 0, 1)[0]) and not torch.allclose(a[0], v(b, 1, 0)[0])
    task = build_task('simclr', 64, None, views='flat', hidden=16, out=8); r = task(FlatNet(), dict(b, seed=0, epoch=0)); r['loss'].backward(); assert torch.isfinite(r['loss'])


def rows(**kw): return dict(dict(cohort='clinical_a', adjust='none', n_train=250, ad_share=None, remedy=None, epoch=None, probe='svc', saw='self-supervised', metric='auc', value=.7, lo=.6, hi=.8, se=.05, n_subjects=9, seed_sd=0., n_seeds=1), **kw)


def test_the_board_picks_one_row_an_arm_and_its_cost():
    probe = pd.DataFrame([rows(arm='dino'), rows(arm='dino', probe='rf', value=.9), rows(arm='dino', epoch=2, value=.95), rows(arm='dino', cohort='clinical_b', value=.99), rows(arm='voxels 16^3', probe='linear', value=.8), rows(arm='supervised', probe='all weights', value=.75)])
    runs = pd.DataFrame([dict(template='pretrain', complete=True, wall_s=10*k, params=json.dumps(dict(task='dino', arm='dino', encoder='resnet10'))) for k in (1, 3)]
                        +[dict(template='pretrain', complete=False, wall_s=np.nan, params='{}'), dict(template='probe', complete=True, wall_s=99, params=json.dumps(dict(arm='supervised', features=['supervised'])))])
    b = leaderboard(probe, runs, expected=('dino', 'mae')).set_index('arm'); assert b.auc[:3].tolist()==[.8, .75, .7] and b.core_seconds.to_dict()['dino']==20 and b.core_seconds['supervised']==99 and b.core_seconds['voxels 16^3']==0
    assert b.parameters['dino']==parameters_of('resnet10') and b.state['mae']=='not run yet' and training_costs(runs).trainings['dino']==2
    assert 'tune-dino' not in set(leaderboard(pd.concat([probe, pd.DataFrame([rows(arm='tune-dino', value=.99)])]), runs, expected=()).arm), 'an attempt is no method'
    g = pd.DataFrame([rows(arm='guest', value=.99, core_seconds=5., parameters=7)]); b = leaderboard(probe, runs, g, expected=()); assert b.arm.iloc[0]=='guest' and b.parameters.iloc[0]==7


def test_pareto_against_a_double_loop():
    g = np.random.default_rng(0); t = pd.DataFrame(dict(auc=g.random(30).round(1), core_seconds=g.integers(0, 10, 30).astype(float)))
    want = [not any((t.auc[j]>=t.auc[i]) and (t.core_seconds[j]<=t.core_seconds[i]) and (t.auc[j]>t.auc[i] or t.core_seconds[j]<t.core_seconds[i]) for j in t.index) for i in t.index]
    assert pareto(t).tolist()==want and any(want) and not all(want)

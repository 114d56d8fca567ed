"Probes: nobody is learned from and judged on, chance is one half, and what should not matter does not."
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import nn

from neurossl.core import Problem
from neurossl.data import ScanDataset, build_cache
from neurossl.manifest import empty_manifest
from neurossl.metrics import judged, score
from neurossl.phantom import phantom_cohort
from neurossl.preprocess import Recipe
from neurossl.probes import (PCA_PROBE, PROBES, REMEDIES, SAW, Residualise, age_matched, baseline_features, baselines, cross_probe, embed, fit_probe, make_probe, saw,
                             with_prevalence)
from neurossl.splits import LeakError

QUICK = make_probe(LogisticRegression(solver='newton-cholesky'), C=(.01, .1))

def toy(n=40, gap=2., seed=0, visits=2, features=5):
    "Manifest and features; the first feature knows the diagnosis, every person has some scans"
    g = np.random.default_rng(seed); y = np.arange(n)%2
    x = np.repeat(g.normal(size=(n, features))+gap*y[:,None]*np.eye(features)[0], visits, 0)+.3*g.normal(size=(n*visits, features))
    rows = [dict(scan_id=f't{i:03d}-{v}', subject=f't{i:03d}', session=str(v), cohort='toy', age=round(60+i*.7%30, 1), sex='FM'[i//2%2], dx=('CN','AD')[i%2]) for i in range(n) for v in range(visits)]
    man = empty_manifest(rows); return man, pd.DataFrame(x.astype(np.float32), index=man.index, columns=[f'f{i:03d}' for i in range(features)])

@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    man = phantom_cohort(40, seed=11, cohort='clinical_a', hashes=False)
    return man, build_cache(man, Recipe('s1', 32), folder=tmp_path_factory.mktemp('cache'))[0]

class Blocks(nn.Module):
    "64 block means, then a BatchNorm that would show a training mode"
    n_features = 64
    def __init__(self): super().__init__(); self.bn = nn.BatchNorm1d(64)
    def forward(self, x): return self.bn(nn.functional.adaptive_avg_pool3d(x, 4).flatten(1))

def test_embed_is_frozen_and_in_order(scans):
    man,cache = scans; ds,e = ScanDataset(man, cache),Blocks().train(); before = {k: v.clone() for k,v in e.state_dict().items()}
    a,b = embed(e, ds),embed(e, ds, batch=7)
    assert list(a.index)==list(man.index) and list(a)[:2]==['f000', 'f001'] and a.shape==(40, 64) and (a.dtypes==np.float32).all() and a.index.name=='scan_id'
    assert np.array_equal(a, b) and e.training and all(torch.equal(v, before[k]) for k,v in e.state_dict().items())
    with pytest.raises(Problem, match='at least one scan'): embed(e, ScanDataset(man[:0], cache))
    e.bn.weight.data[3] = float('nan')
    with pytest.raises(Problem, match='may have diverged'): embed(e, ds)

@pytest.mark.parametrize('probe', [*PROBES, 'pca'])
def test_every_scan_is_judged_once_by_strangers(probe):
    man,emb = toy(30); p = cross_probe(emb, man, probe, folds=2, run='arm')
    assert list(p)==['run', 'fold', 'seed', 'scan_id', 'subject', 'split', 'y', 'score'] and sorted(p.scan_id)==sorted(man.index)
    assert p.groupby('subject').fold.nunique().eq(1).all() and p.score.between(0, 1).all() and set(p.run)=={'arm'} and set(p.split)=={'test'}
    assert (p.y.to_numpy()==man.dx.eq('AD')[p.scan_id].to_numpy(int)).all() and score(p)['auc']>.6
    assert p.equals(cross_probe(emb.sample(frac=1, random_state=0), man, probe, folds=2, run='arm')), 'same seed, same answer, in any order of the features'

def test_test_and_sealed_rows_are_refused():
    man,emb = toy()
    for split in ('test', 'sealed'):
        leak = man.assign(split=['train']*79+[split])
        for f in (cross_probe, fit_probe):
            with pytest.raises(LeakError, match='t039-1'): f(emb, leak, QUICK)
    p = fit_probe(emb, man[:60], QUICK)
    with pytest.raises(LeakError, match='people it learned from'): p.predict(emb, man[50:])
    twin = man[60:].assign(sha256='same'); known = man[:60].assign(sha256=['same']+['']*59)
    with pytest.raises(LeakError): fit_probe(emb, known, QUICK).predict(emb, twin)
    assert set(p.predict(emb, man[60:].assign(split='sealed')).scan_id)==set(man.index[60:])

def test_nothing_of_the_held_out_fold_reaches_the_classifier():
    man,emb = toy(); a = cross_probe(emb, man, QUICK); bad = emb.copy(); hit = a.scan_id[(a.fold==2)&(np.arange(len(a))%2==0)]; bad.loc[hit] = 1e3
    b = cross_probe(bad, man, QUICK); keep = (a.fold==2)&~a.scan_id.isin(hit)
    assert np.array_equal(a.score[keep], b.score[keep]) and not np.array_equal(a.score[a.fold==1], b.score[b.fold==1])

def test_inner_rows_are_training_rows():
    man,emb = toy(); p = cross_probe(emb, man, 'svc', folds=4, valid=True); t = p[p.split=='test']
    for f,v in p[p.split=='valid'].groupby('fold'): assert not set(v.subject)&set(t.subject[t.fold==f]) and sorted(v.scan_id)==sorted(set(man.index)-set(t.scan_id[t.fold==f]))
    assert judged(p).threshold.nunique()>1 and t.reset_index(drop=True).equals(cross_probe(emb, man, 'svc', folds=4))

def test_probabilities_keep_every_order_of_the_margins():
    for seed in range(4):
        man,emb = toy(30, seed=seed, gap=3.*seed); fit,rest = man[:36],man[36:]
        for c in (.001, .01, 1., 100.):
            for w in (None, 'balanced'):
                p = fit_probe(emb, fit, make_probe(SVC(class_weight=w), C=(c,))); d = p.pipe.decision_function(emb.loc[rest.index].to_numpy(float))
                s = p.predict(emb, rest).set_index('scan_id').score[rest.index]
                assert (np.argsort(d, kind='stable')==np.argsort(s, kind='stable')).all() and s.nunique()==len(set(d)), (seed, c, w)

def test_labelled_subsets_are_nested_paired_and_capped():
    man,emb = toy(60); who = {n: fit_probe(emb, man, QUICK, seed=3, n_train=n).man.subject for n in (6, 12, 30, .5, 1000, None)}
    assert set(who[6])<set(who[12])<set(who[30]) and who[12].nunique()==12 and set(who[.5])==set(who[30]) and set(who[1000])==set(who[None])
    assert set(fit_probe(emb*0+np.arange(len(emb))[:,None], man, 'knn', seed=3, n_train=12).man.subject)==set(who[12]), 'the same people for every arm and probe'
    assert set(fit_probe(emb, man, QUICK, seed=4, n_train=12).man.subject)!=set(who[12])
    for probe in PROBES: assert len(cross_probe(emb, man, probe, folds=2, n_train=2))==len(man) # one CN, one AD: no inner choice is possible

def test_folds_are_the_same_for_every_arm():
    man,emb = toy(); a,b = (cross_probe(e, man, p).set_index('scan_id').fold for e,p in ((emb, 'svc'), (emb*0+1, QUICK)))
    assert a.sort_index().equals(b.sort_index()) and not a.sort_index().equals(cross_probe(emb, man, QUICK, seed=1).set_index('scan_id').fold.sort_index())

def test_bad_input_is_named():
    man,emb = toy()
    for f,words in ((lambda: cross_probe(emb[2:], man, QUICK), "t000-0.*2 of 80 scans without features"), (lambda: cross_probe(emb.assign(f000=np.nan), man, QUICK), 'finite features'),
                    (lambda: cross_probe(emb, man, 'svm'), 'svc'), (lambda: cross_probe(emb, man[man.dx=='CN'], QUICK), 'class|AD'), (lambda: cross_probe(emb, man, QUICK, folds=30), 'folds'),
                    (lambda: cross_probe(emb, man.assign(dx='MCI'), QUICK), ''), (lambda: fit_probe(emb, man[man.dx=='AD'], QUICK), 'CN and AD')):
        with pytest.raises(Problem, match=words): f()

def test_mci_and_unknown_rows_are_left_out():
    man,emb = toy(); man.loc[man.subject.isin(['t000', 't001']), 'dx'] = ['MCI', 'MCI', '', '']
    assert set(cross_probe(emb[4:], man, QUICK).scan_id)==set(man.index[4:])

@pytest.mark.parametrize('probe', [*PROBES, 'pca'])
def test_a_year_on_every_age_changes_no_auc(probe):
    man = phantom_cohort(60, seed=3, cohort='clinical_b', hashes=False); old = man.assign(age=man.age+1)
    a,b = (cross_probe(baseline_features(m, 'age+sex'), m, probe, folds=2) for m in (man, old))
    assert score(a)['auc']==score(b)['auc'] and a.fold.equals(b.fold)

@pytest.mark.parametrize('probe', ['svc', 'linear', 'knn'])
def test_units_of_a_feature_do_not_matter(probe):
    man,emb = toy(); a,b = (cross_probe(e.astype(float), man, probe) for e in (emb, emb.astype(float)*[1e3, 1, 1, 1e-3, 1]+[0, 50, 0, 0, 0])); assert score(a)['auc']==score(b)['auc']

def test_random_labels_give_one_half():
    man,emb = toy(120, visits=1, features=8); man = man.assign(age=70., sex='F'); auc = []
    for i in range(20): auc.append(score(cross_probe(emb, man.assign(dx=np.random.default_rng(i).permutation(man.dx)), ('linear', 'knn')[i%2], folds=4, seed=i))['auc'])
    assert abs(np.mean(auc)-.5)<.03 and np.std(auc)>.02, auc

@pytest.mark.slow
@pytest.mark.parametrize('probe', [*PROBES, 'pca'])
def test_random_labels_give_one_half_for_every_probe(probe):
    man,emb = toy(200, visits=1, features=16)
    auc = [score(cross_probe(emb, man.assign(dx=np.random.default_rng(i).permutation(man.dx)), probe, seed=i))['auc'] for i in range(20)]
    assert abs(np.mean(auc)-.5)<.03, auc

def test_baselines(scans):
    man,cache = scans; t = {k: baseline_features(man, k, cache) for k in ('voxels 16^3', 'age+sex', 'ROI volumes', 'oracle')}
    assert {k: v.shape[1] for k,v in t.items()}=={'voxels 16^3': 4096, 'age+sex': 2, 'ROI volumes': 9, 'oracle': 7} and all(list(v.index)==list(man.index) for v in t.values())
    assert {k: v.attrs['saw'] for k,v in t.items()}=={k: SAW[k] for k in t} and np.isfinite(t['voxels 16^3']).all(axis=None)
    v = t['voxels 16^3'].to_numpy().reshape(-1, 16, 16, 16); x = ScanDataset(man, cache)[3]['x'][0].numpy(); m = x>0; z = np.where(m, (x-x[m].mean())/x[m].std(), 0)
    assert v[3]==pytest.approx(z.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5)), abs=1e-5)
    p = baselines(man, cache, folds=3); assert set(p.arm)=={'age+sex', 'voxels 16^3', 'PCA', 'ROI volumes', 'oracle'} and p.groupby('arm').size().nunique()==1
    a = {k: score(g)['auc'] for k,g in p.groupby('arm')}; assert a['oracle']>.8 and a['oracle']>=a['age+sex']
    for args,words in (((man, 'age'), "age\\+sex"), ((man, 'PCA'), "probe 'pca'"), ((man, 'voxels 16^3'), 'build_cache'), ((man.assign(path='x.nii'), 'oracle', cache), 'phantoms only')):
        with pytest.raises(Problem, match=words): baseline_features(*args)

def test_components_are_fitted_in_the_fold():
    assert [n for n,_ in PCA_PROBE.pipe.steps][:1]==['standardscaler'] and 'pca' in dict(PCA_PROBE.pipe.steps)

# batches, what an arm saw

def test_the_batch_follows_the_size_of_a_scan_and_changes_nothing(scans):
    man,cache = scans; ds,e = ScanDataset(man[:9], cache),Blocks().eval(); a = embed(e, ds); assert all(np.abs(embed(e, ds, batch=b)-a).max(axis=None)<1e-6 for b in (1, 2, 9))
    seen,rows = [],man[:40]
    class Big:
        man = rows
        def __init__(self, side): self.side = side
        def __len__(self): return 40
        def __getitem__(self, i): return dict(x=torch.zeros(1, 1, 1, 1).expand(1, *[self.side]*3))
        def batch(self, idx): seen.append(len(idx)); return dict(x=torch.zeros(len(idx), 1, 4, 4, 4), scan_id=[self.man.index[i] for i in idx])
    for side,n in ((32, 32), (48, 32), (64, 13), (96, 4), (122, 1), (192, 1)): seen.clear(); embed(e, Big(side)); assert seen[0]==n, side

def test_what_an_arm_saw():
    assert {a: saw(a) for a in ('recon', 'simclr', 'mae', 'rotation+recon', 'simclr tau=.1', 'PCA', 'multi', 'age+rotation', 'recon+age', 'age+sex', 'supervised', 'supervised sfcn', 'oracle+rotation')}==dict(
        zip(('recon', 'simclr', 'mae', 'rotation+recon', 'simclr tau=.1', 'PCA'), ['self-supervised']*6))|dict.fromkeys(('multi', 'age+rotation', 'recon+age', 'age+sex'), 'demographic')|{
        'supervised': 'supervised', 'supervised sfcn': 'supervised', 'oracle+rotation': 'privileged'}
    for bad in ('rotatoin', 'age+rotatoin', ''):
        with pytest.raises(Problem): saw(bad)

# rare classes

def test_remedies_change_the_decision_and_keep_the_people():
    man,emb = toy(120, gap=1.5, visits=1); s = {}
    for r in REMEDIES:
        p = cross_probe(emb, man, QUICK, remedy=r, prevalence=.1, valid=True); s[r] = score(p); assert p.threshold.notna().all() and sorted(p.scan_id[p.split=='test'])==sorted(man.index)
        assert p.groupby('fold').threshold.nunique().eq(1).all() and s[r]['n_subjects']==120
    assert s['none']['sensitivity']<.2 and all(s[r]['balanced_accuracy']>s['none']['balanced_accuracy']+.1 and s[r]['f1']>s['none']['f1'] for r in REMEDIES if r!='none')
    assert s['threshold']['auc']==s['none']['auc']!=s['class_weight']['auc']
    a,b = (cross_probe(emb, man, QUICK, remedy=r).drop(columns='threshold', errors='ignore') for r in (None, 'none')); assert a.equals(b), 'a probe without class weights in its grid is the same with the remedy none'

def test_the_own_decision_is_the_threshold():
    man,emb = toy(80, gap=1., visits=1); fit,rest = man[:50],man[50:]
    for r in ('none', 'class_weight', 'upsample', 'downsample'):
        p = fit_probe(emb, fit, 'svc', remedy=r); q = p.predict(emb, rest); assert ((q.score>=q.threshold)==(p.pipe.decision_function(emb.loc[q.scan_id].to_numpy(float))>=0)).all() and p.best['class_weight']==('balanced' if r=='class_weight' else None)
    assert fit_probe(emb, fit, 'rf', remedy='upsample').threshold==.5
    for args,words in ((('knn', 'class_weight'), 'upsample'), (('svc', 'upsampel'), 'upsample')):
        with pytest.raises(Problem, match=words): fit_probe(emb, fit, args[0], remedy=args[1])

def test_levelling_stays_inside_the_training_part(monkeypatch):
    import neurossl.probes as probes
    man,emb = toy(60, visits=2); man = with_prevalence(man, .2); seen = []; search = probes._search
    monkeypatch.setattr(probes, '_search', lambda pipe, grid, x, y, folds: (seen.append((y, folds)), search(pipe, grid, x, y, folds))[1])
    for r in ('upsample', 'downsample'): p = fit_probe(emb, man, QUICK, remedy=r); assert sorted(p.valid.scan_id)==sorted(man.index)
    for y,folds in seen:
        for a,b in folds: assert not set(a)&set(b) and y[a].mean()==.5 and len(set(b))==len(b) and y[b].mean()<.5
    assert max(len(a) for a,_ in seen[1][1])<len(man)/2<max(len(a) for a,_ in seen[0][1])

def test_prevalence_is_exact_nested_and_seeded():
    man,_ = toy(100); d = {s: with_prevalence(man, s, seed=4) for s in (.1, .3, .5, .9)}; n = {m.subject.nunique() for m in d.values()}; assert n=={55}
    ad,cn = ({s: set(m.subject[m.dx==c]) for s,m in d.items()} for c in ('AD', 'CN')); assert ad[.1]<ad[.3]<ad[.5]<ad[.9] and cn[.9]<cn[.5]<cn[.1] and [len(v) for v in ad.values()]==[6, 16, 28, 50]
    small = with_prevalence(man, .5, n=20, seed=4); assert set(small.subject)<set(d[.5].subject) and small.dx.value_counts().to_dict()=={'CN': 20, 'AD': 20} and set(with_prevalence(man, .5, n=20, seed=5).subject)!=set(small.subject)
    with pytest.raises(Problem, match='1 to 50'): with_prevalence(man, .9, n=100)
    with pytest.raises(LeakError): with_prevalence(man.assign(split='test'), .5)
    emb = toy(100)[1]; a,b = (cross_probe(emb, man, QUICK, prevalence=s) for s in (.1, .9)); assert a.scan_id.equals(b.scan_id) and a.fold.equals(b.fold), 'the people who judge stay'

# confounds

def aged(n=120, gap=8, seed=0):
    "People with AD are older; features know age and nothing else"
    g = np.random.default_rng(seed); man,_ = toy(n, visits=1); man['age'] = (70+gap*man.dx.eq('AD')+g.normal(0, 6, n)).round(1)
    return man, pd.DataFrame(man.age.to_numpy()[:,None]+g.normal(0, 2, (n, 3)), man.index, ['a', 'b', 'c'])

def test_taking_age_out_leaves_chance_and_keeps_the_rest():
    man,emb = aged(300); raw,out = (score(cross_probe(emb, man, QUICK, deconfound=d))['auc'] for d in (None, 'age')); assert raw>.75 and abs(out-.5)<.08
    own = emb.assign(d=np.random.default_rng(1).normal(size=300)+1.5*man.dx.eq('AD')); assert score(cross_probe(own, man, QUICK, deconfound='age'))['auc']>.75
    with pytest.raises(Problem, match="'age' or None"): cross_probe(emb, man, QUICK, deconfound='sex')
    with pytest.raises(Problem, match='without age'): cross_probe(emb, man.assign(age=man.age.where(man.index!=man.index[3])), QUICK, deconfound='age')

def test_the_line_is_fitted_on_training_rows_only():
    man,emb = aged(); x = np.c_[emb, man.age]; r = Residualise().fit(x[:60]); b = np.polyfit(man.age[:60], emb[:60], 1)[0]; assert r.transform(x)-(emb-np.outer(man.age-man.age[:60].mean(), b)).to_numpy()==pytest.approx(0, abs=1e-9)
    a = cross_probe(emb, man, QUICK, deconfound='age'); hit = a.scan_id[(a.fold==2)&(np.arange(len(a))%2==0)]; bad = emb.copy(); bad.loc[hit] = 1e3
    c = cross_probe(bad, man, QUICK, deconfound='age'); keep = (a.fold==2)&~a.scan_id.isin(hit); assert np.array_equal(a.score[keep], c.score[keep]) and not np.array_equal(a.score[a.fold==1], c.score[a.fold==1])
    p = fit_probe(emb, man[:80], QUICK, deconfound='age'); other = man[80:].copy(); before = p.predict(emb, other).set_index('scan_id').score; other.iloc[0, other.columns.get_loc('age')] += 20
    after = p.predict(emb, other).set_index('scan_id').score; assert (before!=after).sum()==1, 'the age of one held-out person moves that person only'

def test_matched_people_have_the_same_ages():
    man,emb = aged(200); man = pd.concat([man, man.assign(session='2', age=man.age+1).rename(index=lambda i: i+'b')]); m = age_matched(man, seed=1); first = m.drop_duplicates('subject').groupby('dx').age
    assert first.size().nunique()==1 and first.size().iloc[0]>30 and abs(first.mean().diff().iloc[-1])<1 and (m.groupby('subject').size()==2).all()
    pairs = [np.sort(g) for _,g in first]; assert np.abs(pairs[0]-pairs[1]).max()<=2 and set(age_matched(man, seed=1).index)==set(m.index)
    old = man.copy(); old.loc[old.index[0], 'age'] = np.nan; assert len(age_matched(old))>0
    assert abs(score(cross_probe(aged(400)[1], age_matched(aged(400)[0]), QUICK))['auc']-.5)<.12
    with pytest.raises(Problem, match='Widen'): age_matched(man.assign(age=man.dx.map(dict(CN=50., AD=80.))))

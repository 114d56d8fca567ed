"Confounds: what is planted is found, what is absent is not, and nothing that is fitted sees whom it judges."
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neurossl.confounds import (TURNS, Blocks, Turned, confound_table, cross_residualised, groups_of, orientation_probe, residuals, site_held_out, site_probe,
                                subgroup_differences, subgroups, turn)
from neurossl.core import Problem
from neurossl.manifest import empty_manifest
from neurossl.metrics import predictions
from neurossl.probes import Span, cross_probe, embed, make_probe
from neurossl.splits import LeakError, subject_folds
from neurossl.stats import ci, delong, paired_ci

QUICK = make_probe(LogisticRegression(solver='newton-cholesky'), Span(), inner=2, C=(.01,))

def toy(n=120, sites=4, scans=1, seed=0):
    "Manifest of people at several sites, and features that know nothing"
    g = np.random.default_rng(seed); rows = [dict(scan_id=f't{i:03d}-{v}', subject=f't{i:03d}', session=str(v), cohort='toy', age=round(60+i*.7%30+v, 1), sex='FM'[i//2%2], dx=('CN', 'AD')[i%2], site=f'site{g.integers(sites)}')
                                             for i in range(n) for v in range(1, scans+1)]
    man = empty_manifest(rows); man['site'] = man.groupby('subject').site.transform('first')
    return man, pd.DataFrame(g.normal(size=(len(man), 20)), index=man.index, columns=[f'f{i:03d}' for i in range(20)])

def stamped(man, emb, by='site', size=3., seed=1): codes = pd.Categorical(man[by]).codes; return emb+size*np.random.default_rng(seed).normal(size=(codes.max()+1, emb.shape[1]))[codes]
value = lambda p: ci(p, n=2)['value']

def test_a_planted_site_is_found_and_an_absent_one_is_not():
    man,emb = toy(scans=2); a,b = site_probe(stamped(man, emb), man, n=200),site_probe(emb, man, n=200); assert a['found'] and a['value']>.95 and a['chance']==.25 and a['n_sites']==4 and a['n_subjects']==120
    assert not b['found'] and abs(b['value']-.25)<.12 and b['lo']<=b['value']<=b['hi'] and b==site_probe(emb, man, n=200)
    s = site_probe(stamped(man, emb, 'sex'), man, by='sex', n=100); assert s['chance']==.5 and s['found']

def test_a_person_in_the_features_is_no_site():
    man,emb = toy(60, scans=3); people = stamped(man, emb, 'subject', 5.); assert abs(site_probe(people, man, n=50)['value']-.25)<.15 # folds by person

def test_small_sites_are_left_out():
    man,emb = toy(); man.loc[man.index[:3], 'site'] = 'tiny'; r = site_probe(stamped(man, emb), man, n=50); assert r['n_sites']==4 and r['n_subjects']==117
    with pytest.raises(Problem, match='two or more'): site_probe(emb, man.assign(site='one'))
    with pytest.raises(Problem, match='without features'): site_probe(emb.iloc[5:], man)

@pytest.mark.parametrize('f', [site_probe, site_held_out, cross_residualised])
def test_sealed_rows_are_refused(f):
    man,emb = toy()
    with pytest.raises(LeakError, match='test or sealed'): f(emb, man.assign(split=['sealed']+['train']*119))

def test_what_the_site_was_worth_is_lost_at_a_new_site():
    man,emb = toy(240); g = np.random.default_rng(2); low = man.site.isin(['site0', 'site1']); rigged = man.assign(dx=np.where(g.random(240)<np.where(low, .85, .15), 'AD', 'CN')); table = stamped(man, emb)
    cv,held = cross_probe(table, rigged, QUICK),site_held_out(table, rigged, QUICK, run='held'); assert value(cv)>.75 and abs(value(held)-.5)<.12 and (held.run=='held').all()
    assert sorted(held.scan_id)==sorted(man.index) and (held.site==man.site[held.scan_id].to_numpy()).all() and held.groupby('site').fold.nunique().eq(1).all()
    true = emb+2*rigged.dx.eq('AD').to_numpy()[:,None]*np.eye(20)[0]; assert abs(value(cross_probe(true, rigged, QUICK))-value(site_held_out(true, rigged, QUICK)))<.08

def test_a_held_out_site_and_its_travellers_teach_nothing():
    man,emb = toy(scans=2); man.loc['t005-2', 'site'] = 'site0' if man.site['t005-1']!='site0' else 'site1'; here = man.site['t005-2']; p = site_held_out(emb, man, QUICK)
    other = emb.copy(); other.loc[man.index[(man.site==here)&(man.subject!='t005')]] *= 7.; other.loc['t005-1'] = 50. # the traveller's scan elsewhere, and the site itself
    q = site_held_out(other, man, QUICK).set_index('scan_id'); assert q.score['t005-2']==p.set_index('scan_id').score['t005-2'] # judged on its own row alone
    lone = man.assign(dx=np.where(man.site=='site0', 'CN', man.dx)); assert set(site_held_out(emb, lone, QUICK).site)=={'site1', 'site2', 'site3'}
    with pytest.raises(Problem, match='one to judge'): site_held_out(emb, man.assign(site='one'), QUICK)

def test_residuals_are_those_of_least_squares():
    man,emb = toy(); t = emb+2*man.age.to_numpy()[:,None]+stamped(man, emb*0, size=5.); r = residuals(t, man, ('age', 'site')); assert abs(np.corrcoef(r.T, man.age)[-1,:-1]).max()<1e-9 and abs(r.groupby(man.site).mean()).to_numpy().max()<1e-9
    learn = np.arange(120)<80; a = residuals(t, man, ('age',), learn); far = t.copy(); far.iloc[100:] += 99.; b = residuals(far, man, ('age',), learn); assert np.allclose(a.iloc[:100], b.iloc[:100]) and np.allclose(b.iloc[100:]-a.iloc[100:], 99.)
    assert list(r.index)==list(man.index) and list(r)==list(emb)
    with pytest.raises(Problem, match="Did you mean 'site'"): residuals(emb, man, ('sites',))
    with pytest.raises(Problem, match='without age'): residuals(emb, man.assign(age=np.nan))

def test_one_confound_is_what_the_probe_does():
    man,emb = toy(); t = emb+.1*man.age.to_numpy()[:,None]; a,b = cross_residualised(t, man, probe=QUICK),cross_probe(t, man, QUICK, deconfound='age'); assert abs(value(a)-value(b))<1e-3 and a.set_index('scan_id').fold.equals(b.set_index('scan_id').fold)

def test_offsets_fitted_on_everybody_give_matched_pairs_away():
    man,_ = toy(80); man = man.assign(site=[f'site{i//2:02d}' for i in range(80)]); clean,leaky = [],[]
    for s in range(5):
        dust = pd.DataFrame(np.random.default_rng(s).normal(size=(80, 120)), index=man.index); clean.append(value(cross_residualised(dust, man, ('site',), False, QUICK, seed=s))); leaky.append(value(cross_residualised(dust, man, ('site',), True, QUICK, seed=s)))
    assert np.mean(leaky)>.85 and abs(np.mean(clean)-.5)<.1

class Lopsided:
    "A dataset of noise whose left half is bright"
    def __init__(self, man, size=8): g = torch.Generator().manual_seed(0); self.man,self.x = man,torch.rand((len(man), 1, *[size]*3), generator=g)+.1; self.x[:,:,:size//2] += .5
    def __len__(self): return len(self.man)
    def batch(self, idx): i = [int(k) for k in idx]; return dict(x=self.x[i], scan_id=[self.man.index[k] for k in i])
    def __getitem__(self, i): return dict(x=self.x[i], scan_id=self.man.index[i])

def test_turns_undo_themselves():
    x = torch.rand(3, 1, 4, 4, 4); on = torch.tensor([True, False, True])
    for how in ('lr', 'ap', 'si', 'none'): assert torch.equal(turn(turn(x, on, how), on, how), x) and torch.equal(turn(x, on, how)[1], x[1]) and torch.equal(turn(x, on, how), x)==(how=='none')
    y = turn(x, on, 'axes'); assert torch.equal(y[0,0,1,2,3], x[0,0,2,3,1]) and torch.equal(y[1], x[1]) and set(TURNS)=={'none', 'lr', 'ap', 'si', 'axes'}
    with pytest.raises(Problem, match='equal sides'): turn(x[...,:3], on, 'axes')
    with pytest.raises(Problem, match='turn'): turn(x, on, 'upside down')

def test_a_mirror_is_found_where_left_and_right_differ():
    ds = Lopsided(toy(60)[0]); found = {h: orientation_probe(Blocks(2), ds, h, probe=QUICK, n=100) for h in ('lr', 'ap', 'none')}
    assert found['lr']['lo']>.95 and abs(found['ap']['value']-.5)<.2 and found['none']['lo']<.5<found['none']['hi'] and found['lr']['n_subjects']==60
    a = orientation_probe(Blocks(2), ds, 'lr', 'AD', QUICK, n=50); assert a['value']>.95 and abs(orientation_probe(Blocks(2), ds, 'none', 'AD', QUICK, n=50)['value']-.5)<.2 # a wrong converter passes for a diagnosis
    with pytest.raises(Problem, match='half'): orientation_probe(Blocks(2), ds, who='CN')

def test_turned_scans_keep_their_place():
    ds = Lopsided(toy(6)[0]); on = np.arange(6)%2==1; t = Turned(ds, on, 'lr'); x = t.batch(range(6))['x']; assert torch.equal(x[1], ds.x[1].flip(1)) and torch.equal(x[2], ds.x[2]) and len(t)==6
    assert all(torch.equal(t[i]['x'], x[i]) for i in range(6)) and list(embed(Blocks(2), t).index)==list(ds.man.index)

def scores(man, knows, seed=3): ad = man.dx.eq('AD').to_numpy(int); return predictions(ad, np.random.default_rng(seed).normal(size=len(man))+1.5*ad*knows, man.subject, scan_id=man.index, fold=subject_folds(man, 3, 0).to_numpy())

def test_groups_are_named():
    man,_ = toy(90, scans=2); age = groups_of(man, 'age'); assert age.nunique()==3 and age.groupby(man.subject).nunique().eq(1).all() and age.value_counts().max()<=64
    lo = man.age.groupby(age).min(); assert list(lo.sort_values().index)==sorted(set(age)) and groups_of(man.assign(sex=''), 'sex').eq('').all() and groups_of(man.assign(age=np.nan).assign(age=lambda m: m.age.where(m.subject!='t000', 60.)), 'age').eq('').sum()==178
    with pytest.raises(Problem, match="Did you mean 'sex'"): groups_of(man, 'sexs')

def test_a_group_that_is_not_known_is_found():
    man,_ = toy(240); f = man.sex.eq('F').to_numpy(); t = subgroups(scores(man, f), man, n=200); s = t.set_index('group')
    assert list(t.by.unique())==['sex', 'age', 'site'] and s.lo['F']>.6 and abs(s.value['M']-.5)<.15 and s.n_subjects['F']+s.n_subjects['M']==240 and len(subgroups(scores(man, f), man, 'sex', n=50))==2
    d = subgroup_differences(scores(man, f), man, 'sex', n=200); assert len(d)==1 and d.lo[0]>.1 and d.p_holm[0]<.02 and d.against[0]=='M' and abs(d.value[0]-(s.value['F']-s.value['M']))<1e-9

def test_equal_groups_are_rarely_told_apart():
    man,_ = toy(160); p = [subgroup_differences(scores(man, 1., seed), man, 'sex', n=150).p[0] for seed in range(25)]; assert np.mean(np.array(p)<.05)<.2 and np.mean(p)>.3

def test_a_difference_on_one_fold_is_that_of_delong():
    man,_ = toy(200); one = scores(man, man.sex.eq('F')).assign(fold=0); d = subgroup_differences(one, man, 'sex', n=800); f = man.sex[one.scan_id].eq('F').to_numpy()
    a,b = (delong(one.y[m], one.score[m]) for m in (f, ~f)); assert abs(d.value[0]-(a['auc1']-b['auc1']))<1e-9 and abs((d.hi[0]-d.lo[0])/(2*1.96*np.hypot(a['se1'], b['se1']))-1)<.2

def test_people_in_both_groups_are_drawn_together():
    man,_ = toy(60, scans=2); man = man.assign(site=np.where(man.session=='1', 'a', 'b')); ad = man.dx.eq('AD').to_numpy(int); s = np.repeat(np.random.default_rng(0).normal(size=60), 2)+ad
    p = predictions(ad, s, man.subject, scan_id=man.index); d = subgroup_differences(p, man, 'site', n=100); assert d.value[0]==d.lo[0]==d.hi[0]==0. # the same scores at both sites, so never a difference
    with pytest.raises(Problem, match='five subjects'): subgroup_differences(p.iloc[:8], man, 'site')

def test_the_table_holds_every_check():
    man,emb = toy(); t = confound_table(emb+1.5*man.dx.eq('AD').to_numpy()[:,None]*np.eye(20)[0], man, QUICK, folds=3, n=50).set_index('check')
    assert list(t.index)==['as they are', 'age-matched', 'age regressed out', 'age, sex, site regressed out', 'site held out', 'age and sex alone', 'site alone'] and (t.value.iloc[:5]>.7).all() and (t.value.iloc[5:]<.7).all()
    assert len(confound_table(emb, man.assign(site='one'), QUICK, folds=3, n=50))==5

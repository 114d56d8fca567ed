"Metrics, tests and intervals: known answers of the literature, and what must not change when it should not."
import time
import numpy as np
import pandas as pd
import pytest
from scipy import stats as st
from sklearn import metrics as skm

from neurossl.core import Problem
from neurossl.metrics import COUNTS, METRICS, auc, average_precision, calibration, check_predictions, cool, evaluator, judged, operating_point, predictions
from neurossl.metrics import score, score_age, temperature
from neurossl.significance import auc_se, best_of, bh, corrected_ttest, delong, delong_unpaired, fitting_matrices, friedman_nemenyi, holm, mcnemar
from neurossl.significance import proportion_ci
from neurossl.stats import agreement, bootstrap, by_group, ci, equivalence, interval_table, mde, paired_ci, per_fit, permutation_test, resamples, variance_parts

def made(n=60, gap=1., seed=0, folds=5, visits=1, noise=0., **kw):
    "Predictions of n subjects with some visits each; another `noise` is another arm on the same people"
    g = np.random.default_rng(seed); y = np.arange(n)%2; x = gap*y+g.normal(size=n)
    x = np.repeat(x, visits)+np.random.default_rng([seed, 7]).normal(0, .3, n*visits)+np.random.default_rng([seed, 8]).normal(0, 1, n*visits)*noise
    who = np.repeat([f's{i:03d}' for i in range(n)], visits)
    return predictions(np.repeat(y, visits), 1/(1+np.exp(-x+gap/2)), who, scan_id=[f'{w}-{i}' for i,w in enumerate(who)],
                       fold=np.repeat(np.arange(n)//2%folds, visits), **kw)

# ---------------------------------------------------------------- metrics

def test_metrics_equal_scikit_learn_on_tied_scores():
    for seed in range(10):
        g = np.random.default_rng(seed); y = np.r_[0, 1, g.integers(0, 2, 50)]; s = g.integers(0, 7, 52)/7
        p = predictions(y, s); r = score(p); d = s>=.5
        ref = dict(auc=skm.roc_auc_score(y, s), ap=skm.average_precision_score(y, s), accuracy=skm.accuracy_score(y, d), f1=skm.f1_score(y, d), mcc=skm.matthews_corrcoef(y, d),
                   balanced_accuracy=skm.balanced_accuracy_score(y, d), sensitivity=skm.recall_score(y, d), specificity=skm.recall_score(1-y, ~d), precision=skm.precision_score(y, d),
                   brier=skm.brier_score_loss(y, s), prevalence=y.mean(), majority_accuracy=max(y.mean(), 1-y.mean()))
        for k,v in ref.items(): assert r[k]==pytest.approx(v, abs=1e-12), k

def test_weights_are_repeats():
    g = np.random.default_rng(1); p = made(40, visits=2); w = g.integers(0, 3, 40).astype(float); w[:20] = np.maximum(w[:20], 1)
    rep = pd.concat([p[p.subject==u].assign(subject=f'{u}-{k}', scan_id=lambda d: d.scan_id+f'x{k}') for i,u in enumerate(sorted(set(p.subject))) for k in range(int(w[i]))])
    for m in ('auc', 'ap', 'accuracy', 'mcc', 'f1', 'brier', 'mae', 'rmse', 'r2'):
        assert evaluator(p, m)[0](w[None])[0]==pytest.approx(evaluator(rep, m)[0]()[0], abs=1e-12), m

def test_auc_is_averaged_over_fits_and_never_pooled():
    a = predictions([0,0,1,1], [.1,.2,.3,.4], fold=0)
    for change in (dict(fold=1), dict(seed=1, fold=0), dict(run='r', fold=0)):
        b = predictions([0,0,1,1], [.6,.7,.8,.9], **change, scan_id=list('abcd'), subject=list('abcd'))
        assert score(pd.concat([a, b]))['auc']==1. and auc([0,0,1,1]*2, [.1,.2,.3,.4,.6,.7,.8,.9])==.75
    p = made(); assert score(p)['auc']==pytest.approx(per_fit(p).value.mean(), abs=1e-12)

def test_threshold_comes_from_validation_rows():
    v = predictions([0,0,1,1], [.1,.2,.3,.4], split='valid'); t = predictions([0,1,0,1], [.22,.27,.24,.35])
    r = score(pd.concat([v, t])); assert r['threshold']==pytest.approx(.25) and r['accuracy']==1. and r['n_scans']==4 and score(t)['accuracy']==.5
    for f in (operating_point, temperature):
        with pytest.raises(Problem, match='validation rows only'): f(t)
    with pytest.raises(Problem, match='beside others'): score(pd.concat([v, t, t.assign(fold=1)]))
    assert judged(t.assign(score=t.score-1)).threshold.eq(0).all()     # decision values are cut at 0
    assert operating_point(v, 'specificity', 1.)['sensitivity']==1. and operating_point(v, 'sensitivity', .5)['threshold']==pytest.approx(.35)

def test_validation_thresholds_reach_every_statistic():
    p = made(); p = pd.concat([p, p.assign(split='valid', score=p.score-.2)]); t = judged(p)
    assert ci(p, 'accuracy')['value']==pytest.approx(score(p)['accuracy'], abs=1e-12)
    assert per_fit(p, 'accuracy').value.tolist()==[skm.accuracy_score(g.y, g.score>=g.threshold) for _,g in t.groupby('fold')]
    d = t.score>=t.threshold; assert agreement(p, p)[0,0]==(d==(t.y==1)).sum()

@pytest.mark.parametrize('change,words', [(lambda p: p.drop(columns='subject'), 'no column subject'), (lambda p: p[:0], 'no rows'), (lambda p: pd.concat([p, p]), 'judged twice'),
                                          (lambda p: p.assign(score=np.nan), 'finite'), (lambda p: p.assign(y=2), '0 \\(CN\\) or 1'), (lambda p: p.assign(y=1), 'one class')])
def test_bad_tables_are_refused(change, words):
    with pytest.raises(Problem, match=words): score(change(made()))

def test_mistyped_metric_is_named():
    with pytest.raises(Problem, match="Did you mean 'balanced_accuracy'"): ci(made(), 'balanced_acuracy')

def test_age_regression():
    g = np.random.default_rng(0); y = g.uniform(50, 90, 40); s = y+g.normal(0, 5, 40); r = score_age(predictions(y, s))
    assert r['mae']==pytest.approx(skm.mean_absolute_error(y, s)) and r['rmse']==pytest.approx(skm.root_mean_squared_error(y, s)) and r['r2']==pytest.approx(skm.r2_score(y, s))

def test_calibration_known_answers():
    assert calibration([0,1,1,0], [.1,.9,.8,.3])['brier']==pytest.approx(.0375, abs=1e-12)
    c = calibration([0,0,1,1,1], [.25,.25,.55,.75,.75], bins=2)
    assert [round(c[k], 4) for k in ('ece', 'ece_l2', 'ece_max')]==[.2900, .2918, .3167]

def test_calibration_slope_and_temperature():
    g = np.random.default_rng(0); z = g.normal(0, 1.5, 20000); y = (g.random(20000)<1/(1+np.exp(-z))).astype(int)
    for k in (.5, 1., 2.):
        p = predictions(y, 1/(1+np.exp(-k*z)), split='valid'); c = calibration(p)
        assert c['slope']==pytest.approx(1/k, abs=.05/k) and temperature(p)==pytest.approx(k, rel=.05)
        assert auc(y, cool(p, 3.).score)==auc(y, p.score) and calibration(cool(p, k))['slope']==pytest.approx(1, abs=.05)
    assert calibration([0,0,1,1], [.1,.2,.8,.9])['slope']==np.inf
    import statsmodels.api as sm
    x = np.log(p.score/(1-p.score)); fit = sm.Logit(y, sm.add_constant(x)).fit(disp=0); assert c['slope']==pytest.approx(fit.params.iloc[1], abs=1e-3)
    with pytest.raises(Problem, match='probabilities'): calibration(made().assign(score=lambda d: d.score*3))

def test_a_table_read_back_from_a_file_is_the_same(tmp_path):
    for kw in ({}, dict(run='a')):
        p = pd.concat([made(**kw), made(**kw).assign(split='valid')]); p.to_csv(tmp_path/'p.csv', index=False); q = pd.read_csv(tmp_path/'p.csv')
        assert score(q)==score(p) and ci(q, n=50)==ci(p, n=50) and paired_ci(p, q, n=50)['value']==0. and permutation_test(q, 50)==permutation_test(p, 50)
    mixed = check_predictions(pd.concat([made(), made(run='b')]).replace({'run': {'': np.nan}})); assert set(mixed.run)=={'', 'b'}

# ---------------------------------------------------------------- plain tests

def brute(y, s1, s2):
    "DeLong from the pair-by-pair definition"
    def place(s): b = np.array([[(a>c)+.5*(a==c) for c in s[y==0]] for a in s[y==1]]); return b.mean(1), b.mean(0)
    (a,b),(c,d) = place(s1),place(s2); v = np.cov(a, c)/len(a)+np.cov(b, d)/len(b); v = v[0,0]+v[1,1]-2*v[0,1]
    return a.mean(), c.mean(), np.sqrt(max(v, 0))

def test_delong_equals_brute_force_on_tied_data():
    for seed in range(200):
        g = np.random.default_rng(seed); y = np.r_[0,0,1,1, g.integers(0, 2, g.integers(4, 40))]; s1,s2 = g.integers(0, g.integers(2, 9), (2, len(y)))+g.random()*y
        r = delong(y, s1, s2); assert np.abs(np.array(brute(y, s1, s2))-[r['auc1'], r['auc2'], r['se']]).max()<1e-7
        a,b,se = brute(y, s1, s2)
        if se>1e-6: assert abs((a-b)/se-r['z'])<1e-10*max(1, abs(r['z'])) and abs(a-r['auc1'])<1e-10

def test_delong_twenty_rows():
    y = np.array([0]*11+[1]*9); a = np.array([1,2,2,3,3,3,4,4,5,6,7,3,4,5,5,6,6,7,8,9.]); b = np.array([2,1,3,3,5,4,4,6,2,7,5,3,3,5,6,4,8,6,5,7.])
    r,s = delong(y, a, b),delong(y, b, a)
    assert [round(r[k], 4) for k in ('auc1', 'auc2', 'z', 'p')]==[.8081, .7121, 1.0267, .3046]
    assert s['z']==-r['z'] and s['p']==r['p'] and delong(y, a, a)['p']==1. and delong(y, np.exp(a), b)['z']==pytest.approx(r['z'])
    assert delong(y, a)['auc1']==r['auc1'] and delong_unpaired(y, a, y, b)['se']==pytest.approx(np.hypot(r['se1'], r['se2']))
    with pytest.raises(Problem, match='one class'): delong([1,1], [1,2])

def test_delong_and_bootstrap_agree():
    p,q = made(300, folds=1),made(300, folds=1, noise=1.); d,b = delong(p.y, p.score, q.score),paired_ci(p, q)
    assert b['value']==pytest.approx(d['diff'], abs=1e-12) and b['se']==pytest.approx(d['se'], rel=.1) and b['lo']==pytest.approx(d['lo'], abs=.01)

def test_nadeau_bengio_known_answer():
    from sklearn.datasets import make_moons
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.svm import SVC
    x,y = make_moons(noise=.352, random_state=1, n_samples=100); cv = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    a,b = (cross_val_score(SVC(kernel=k, random_state=0), x, y, cv=cv, scoring='roc_auc') for k in ('rbf', 'linear'))
    new,old = corrected_ttest(a-b, 90, 10, 'greater'),corrected_ttest(a-b, 90, 0, 'greater')
    assert [round(v, 3) for v in (new['t'], new['p'], old['t'], old['p'])]==[.750, .227, 2.611, .005]
    t = st.ttest_1samp(a-b, 0); two = corrected_ttest(a-b, 90, 0); assert two['p']==pytest.approx(t.pvalue) and two['lo']==pytest.approx(t.confidence_interval().low)
    with pytest.raises(Problem, match='two-sided'): corrected_ttest(a-b, 90, 10, 'two sided')

def test_holm_and_bh():
    from statsmodels.stats.multitest import multipletests
    assert holm([.01,.02,.03,.04])==pytest.approx([.04,.06,.06,.06]) and bh([.01,.02,.03,.04])==pytest.approx([.04]*4)
    for seed in range(20):
        p = np.random.default_rng(seed).random(12)**3
        assert holm(p)==pytest.approx(multipletests(p, method='holm')[1]) and bh(p)==pytest.approx(multipletests(p, method='fdr_bh')[1])

@pytest.mark.parametrize('k,n,lo,hi', [(81,263,.2553,.3662), (15,148,.0624,.1605), (0,20,0,.1611), (1,29,.0061,.1718)])
def test_wilson(k, n, lo, hi): assert [round(v, 4) for v in proportion_ci(k, n)]==[lo, hi]

def test_clopper_pearson_and_mcnemar():
    assert [round(v, 4) for v in proportion_ci(81, 263, method='exact')]==[.2527, .3676]
    a,b = mcnemar([[794,86],[150,570]]),mcnemar([[101,121],[59,33]], exact=True)
    assert round(a['chi2'], 4)==16.8178 and f"{a['p']:.3e}"=='4.115e-05' and f"{b['p']:.3e}"=='4.434e-06' and mcnemar([[9,0],[0,9]])['p']==1.
    with pytest.raises(Problem): proportion_ci(5, 4)

def test_friedman_nemenyi():
    d = pd.DataFrame([[.763,.768,.771,.798],[.599,.591,.590,.569],[.954,.971,.968,.967],[.628,.661,.654,.657],[.882,.888,.886,.898],[.936,.931,.916,.931],[.661,.668,.609,.685],
        [.583,.583,.563,.625],[.775,.838,.866,.875],[1,1,1,1],[.940,.962,.965,.962],[.619,.666,.614,.669],[.972,.981,.9751,.975],[.957,.978,.946,.970]])
    r = friedman_nemenyi(d)
    assert r['ranks'].round(3).tolist()==[3.143, 2.000, 2.893, 1.964] and [round(r[k], 2) for k in ('chi2', 'chi2_ties', 'f', 'cd')]==[9.28, 10.23, 3.69, 1.25]
    assert r['chi2_ties']==pytest.approx(st.friedmanchisquare(*d.to_numpy().T).statistic)

def test_optimism_meter():
    assert round(best_of([20]*5, 150), 4)==.7877 and round(best_of([23,17,18,28,14], 150), 4)==.7853
    g = np.random.default_rng(0); sim = g.binomial(20, .6, (20000, 10)).max(1).mean()/20; assert best_of([20], 10, .6)==pytest.approx(sim, abs=.002)
    assert best_of([23,17], 1, .6)==pytest.approx(.6)

def test_fitting_matrices():
    t = fitting_matrices(10, 10, accuracy=.80, sensitivity=.90); assert t.to_dict('records')==[dict(tp=9, fn=1, tn=7, fp=3)]
    assert len(fitting_matrices(49, 51, accuracy=.92, precision=.97, sensitivity=.85))==0 # the best published row of S3 is no pooled matrix
    assert {*(fitting_matrices(49, 51, accuracy=.92).eval('tp+tn'))}=={92} and {*(fitting_matrices(49, 51, accuracy=.91).eval('tp+tn'))}=={91}
    with pytest.raises(Problem, match='sensitivity'): fitting_matrices(9, 9, recall=.5)

def test_hanley_mcneil(): assert round(auc_se(.893, 51, 58), 4)==.0325

# ---------------------------------------------------------------- resampling

def test_bca_known_answer():
    x = np.array([48,36,20,29,42,42,20,42,22,41,45,14,6,0,33,28,34,4,32,24,47,41,24,26,30,41.])
    def f(w): w = np.ones((1, 26)) if w is None else w; m = w@x/w.sum(1); return (w*(x-m[:,None])**2).sum(1)/w.sum(1)
    p,b = (bootstrap(f, 26, n=20000, level=.9, method=m) for m in ('percentile', 'bca'))
    assert p['value']==pytest.approx(171.534, abs=1e-3) and (p['lo'], p['hi'])==pytest.approx((97.6, 236.3), abs=4) and (b['lo'], b['hi'])==pytest.approx((116.7, 263.0), abs=4)
    ref = st.bootstrap((x,), lambda v, axis: v.var(axis=axis), n_resamples=20000, confidence_level=.9, method='BCa', rng=np.random.default_rng(0)).confidence_interval
    assert (b['lo'], b['hi'])==pytest.approx((ref.low, ref.high), abs=4)

@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('method', ['percentile', 'bca'])
def test_duplicated_scans_leave_the_cluster_interval(metric, method):
    p = made(40); five = pd.concat([p.assign(scan_id=p.scan_id+f'-{i}') for i in range(5)])
    a,b = (ci(t, metric, n=300, method=method) for t in (p, five)); keys = ('value', 'lo', 'hi', 'se', 'n_subjects')
    if metric in ('auc', *COUNTS) and metric!='mcc': assert [a[k] for k in keys]==[b[k] for k in keys]
    assert [a[k] for k in keys]==pytest.approx([b[k] for k in keys], abs=1e-9)
    if metric=='auc': scan = ci(five, by='scan_id', n=300); assert scan['hi']-scan['lo']<.6*(a['hi']-a['lo'])

def test_interval_does_not_depend_on_row_order_or_names():
    p = made(50, visits=2); a = ci(p, n=200); b = ci(p.sample(frac=1, random_state=1), n=200); c = ci(p.assign(subject='x'+p.subject), n=200)
    assert a==pytest.approx(b, abs=1e-12) and a==c and ci(p, n=200, seed=1)['lo']!=a['lo']

def test_resamples_draw_whole_subjects(): w = resamples(30, 100, 3); assert (w.sum(1)==30).all() and abs(w.mean()-1)<1e-12 and (w==resamples(30, 100, 3)).all()

def test_resampling_is_fast():
    p = made(750); t = time.process_time(); ci(p); paired_ci(p, made(750, noise=.5)); assert time.process_time()-t<4

def test_paired_ci_pairs():
    a,b = made(200),made(200, noise=1.5); r = paired_ci(a, b, n=500); alone = np.hypot(ci(a, n=500)['se'], ci(b, n=500)['se'])
    assert r['value']==pytest.approx(score(a)['auc']-score(b)['auc']) and r['se']<alone and paired_ci(b, a, n=500)['value']==-r['value']
    assert paired_ci(a, b.sample(frac=1, random_state=0), n=500)==r and paired_ci(a, b.assign(run='other'), n=500)==r
    same = paired_ci(a, a, n=500); assert (same['lo'], same['hi'], same['p'])==(0., 0., 1.)
    for other,words in ((b[1:], 'one arm only'), (b.assign(seed=1), 'one arm only'), (b.assign(y=1-b.y), 'another y'), (pd.concat([b, b.assign(run='again')]), 'one run in each arm')):
        with pytest.raises(Problem, match=words): paired_ci(a, other)
    more = [pd.concat([made(60, seed=0, noise=z).assign(seed=s, score=lambda d: d.score+.001*s) for s in range(3)]) for z in (0, 1.)]
    assert paired_ci(*more, n=200)['value']==pytest.approx(np.subtract(*[score(m)['auc'] for m in more]))

def test_too_few_subjects_are_refused():
    with pytest.raises(Problem, match='too few subjects'): ci(made(60, folds=1).query('y==0 or subject=="s001"'))
    with pytest.raises(Problem, match='percentile'): ci(made(), method='basic')

def test_equivalence_and_mde():
    a = made(400); near,far = a.assign(score=a.score+np.random.default_rng(0).normal(0, .003, len(a))),made(400, noise=1.5)
    assert equivalence(a, near, .03)['equivalent'] and not equivalence(a, far, .03)['equivalent'] and equivalence(a, far, .03)['p']>.5
    assert equivalence(a, near, .03)['p']<.001 and not equivalence(made(30), made(30, noise=.7), .01)['equivalent']
    assert mde(1.)==pytest.approx(2.801585, abs=1e-5) and mde(paired_ci(a, far))==mde(paired_ci(a, far)['se'])
    with pytest.raises(Problem, match='positive'): equivalence(a, near, 0.)

def test_permutation():
    p = made(visits=2); r = permutation_test(p, 500); assert r['value']==pytest.approx(score(p)['auc']) and r['p']==1/501 and r['null_mean']==pytest.approx(.5, abs=.02)
    ps = [permutation_test(made(30, gap=0., seed=i), 200)['p'] for i in range(60)]; assert st.kstest(ps, 'uniform').pvalue>.01
    with pytest.raises(Problem, match='two diagnoses'): permutation_test(p.assign(y=np.arange(len(p))%2))

def test_variance_parts():
    g = np.random.default_rng(2); a,b = g.normal(0, .01, 60),g.normal(0, .04, 60)
    t = pd.DataFrame([dict(seed=i, fold=j, value=.8+a[i]+b[j]+g.normal(0, .02)) for i in range(60) for j in range(60)]); r = variance_parts(t)
    assert [r[f'sd_{k}'] for k in ('start', 'split', 'rest')]==pytest.approx([a.std(ddof=1), b.std(ddof=1), .02], abs=.002)
    with pytest.raises(Problem, match='crossed'): variance_parts(t[1:])

def test_tables_for_the_report():
    p = pd.concat([made(40, gap=g, run=r) for g,r in ((1., 'a'), (0., 'b'))]).assign(n_train=None); t = interval_table(p, ['run', 'n_train'], ('auc', 'accuracy'), n=100)
    assert t.shape[0]==4 and list(t)[:4]==['run', 'n_train', 'metric', 'value'] and t.value.iloc[0]==score(p[p.run=='a'])['auc']
    with pytest.raises(Problem, match='no column arm'): interval_table(p, 'arm')
    q = made(80); sex = pd.Series(['F']*70+['M']*6+['']*4, index=q.scan_id); g = by_group(q, sex, n=100)
    assert g.group.tolist()==['F', 'M'] and np.isfinite(g.value[0]) and np.isnan(g.value[1])

@pytest.mark.slow
def test_coverage_of_the_interval():
    "95 % intervals hold the truth about 95 times in 100, for people with several scans"
    truth = st.norm.cdf(1/np.sqrt(2*(1+.09))); hit = {'percentile': 0, 'bca': 0}
    for seed in range(300):
        for m in hit: r = ci(made(100, seed=seed, visits=2, folds=1), n=500, method=m); hit[m] += r['lo']<=truth<=r['hi']
    assert all(.91<=h/300<=.985 for h in hit.values()), hit

def test_a_classifier_without_a_threshold_beside_one_that_has_it():
    g = np.random.default_rng(3); y = np.arange(60)%2; one,two = (predictions(y, np.clip(.5+.3*(y-.5)+.2*g.normal(size=60), 0, 1), seed=s) for s in (0, 1))
    both = pd.concat([one, two.assign(threshold=.4)]) # as tables of several runs are stacked
    assert score(both[both.seed.eq(0)])==score(one) and judged(both).threshold.tolist()==[.5]*60+[.4]*60
    assert score(both)['sensitivity']==pytest.approx((score(one)['sensitivity']+score(two.assign(threshold=.4))['sensitivity'])/2)

def test_a_group_that_resamples_would_lose_has_no_number():
    y = np.r_[np.zeros(20), np.ones(6)].astype(int); p = predictions(np.r_[y, y], np.r_[y, y]*.3+.3, fold=np.r_[np.zeros(26), np.ones(26)].astype(int), subject=[f's{i}' for i in range(52)], scan_id=[f's{i}' for i in range(52)])
    few = p.groupby('fold').head(22); g = pd.Series('a', index=p.scan_id) # two with the disease in each fold
    assert np.isnan(by_group(few, g, n=100).value[0]) and by_group(p, g, n=100).value[0]==1.

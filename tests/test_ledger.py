"The ledger: rules of the verdicts, exact checks, published intervals"
import itertools, re

import numpy as np
import pandas as pd
import pytest
from scipy import stats as st

from neurossl.core import Problem, paths
from neurossl.ledger import CLAIM, VERDICTS, exact_checks, fits, judge, published, ratio, read_ledger, verdict

PUB = published(); LEDGER = read_ledger(); EXACT = exact_checks(PUB)

def test_every_claim_is_there():
    assert LEDGER.id.tolist()==[f'S{s}-C{i}' for s,n in ((1, 6), (2, 5), (3, 9)) for i in range(1, n+1)]
    assert tuple(LEDGER)==CLAIM and LEDGER.claim.str.len().gt(0).all() and LEDGER.test.str.len().gt(0).all()

@pytest.mark.parametrize('old,new,say', [(',exact,', ',exakt,', 'exact'), ('auc,0.02,superiority', 'auc,,superiority', 'positive'), ('auc,0.02,superiority', 'auc,-1,superiority', 'positive'),
                                         ('S1-C2,', 'S1-C1,', 'twice'), ('id,study', 'id,paper', 'columns')])
def test_a_broken_ledger_is_refused(tmp_path, old, new, say):
    f = tmp_path/'l.csv'; f.write_text((paths().nbs/'report'/'ledger.csv').read_text().replace(old, new))
    with pytest.raises(Problem, match=say): read_ledger(f)

@pytest.mark.parametrize('kind,value,lo,hi,mde,word', [
    ('superiority', .06, .03, .09, .09, 'reproduced'), ('superiority', .06, .02, .1, .09, 'reproduced'), ('superiority', .025, .012, .038, .019, 'reproduced'),
    ('superiority', .018, .008, .028, .014, 'partly'), ('superiority', .01, .004, .016, .09, 'partly'), ('superiority', .002, -.008, .012, .09, 'contradicted'),
    ('superiority', -.04, -.07, -.01, .09, 'contradicted'), ('superiority', .04, .001, .08, .056, 'inconclusive'), ('superiority', .01, 0, .021, .015, 'inconclusive'),
    ('superiority', .01, -.03, .05, .057, 'inconclusive'), ('equivalence', .001, -.013, .015, .02, 'reproduced'), ('equivalence', .015, .003, .027, .017, 'partly'),
    ('equivalence', .05, .02, .08, .03, 'contradicted'), ('equivalence', -.05, -.07, -.03, .03, 'contradicted'), ('equivalence', .01, -.04, .06, .07, 'inconclusive'),
    ('equivalence', .025, .015, .035, .014, 'inconclusive'), ('equivalence', 0, -.02, .01, .03, 'inconclusive')])
def test_verdicts(kind, value, lo, hi, mde, word): assert verdict(kind, value, lo, hi, .02, mde)==word

def test_verdicts_of_counting():
    assert [verdict('exact', v) for v in (1, 2/3, 0)]==['reproduced', 'partly', 'contradicted'] and verdict('not testable here')=='not testable here'

@pytest.mark.parametrize('args', [('superiority', np.nan, 0, 1, .02, .1), ('superiority', .1, .2, .3, .02, .1), ('superiority', .1, 0, .3, np.nan, .1), ('superiority', .1, 0, .3, 0, .1),
                                  ('superiority', .1, 0, .3, .02, np.nan), ('exact', np.nan), ('exact', 2), ('noninferiority', 1)])
def test_no_verdict_from_nothing(args):
    with pytest.raises(Problem): verdict(*args)

def test_verdicts_cover_everything_and_follow_the_difference():
    rank = dict(contradicted=0, inconclusive=1, partly=1, reproduced=2)
    for half,margin in itertools.product((.004, .01, .03, .1), (.01, .03)):
        words = [verdict('superiority', v, v-half, v+half, margin, half*2.8/1.96) for v in np.linspace(-.3, .3, 241)]
        assert set(words)<=set(VERDICTS) and words[0]=='contradicted' and words[-1]=='reproduced' and (np.diff([rank[w] for w in words])>=0).all()
        even = [[verdict('equivalence', s*v, s*v-half, s*v+half, margin, half*2.8/1.96) for v in np.linspace(0, .3, 121)] for s in (1, -1)]
        assert even[0]==even[1]

def test_published_intervals():
    row = PUB[PUB.row.eq('Ours (Dyn + VGG11 + Att)')].iloc[0]; want = st.beta.ppf(.025, 92, 9), st.beta.ppf(.975, 93, 8) # Clopper and Pearson's own formula
    assert np.allclose((row.lo, row.hi), want) and (round(row.lo, 4), round(row.hi, 4))==(.8484, .9648)
    assert PUB[PUB.study.ne('S3')][['lo', 'hi']].isna().all(axis=None) and PUB.n[PUB.study.ne('S3')].isna().all()
    four = PUB[PUB.source.eq('section 4.3')].iloc[0]
    assert np.isnan(four.lo) and four.matrices==0, 'no count out of 100 is .8484'
    assert len(PUB)==len(pd.read_csv(paths().nbs/'report'/'published.csv'))==21

def brute(row, pos=49, neg=51):
    n = 0; r = lambda v, k: pd.isna(row[k]) or abs(v-row[k])<=.5*10.**-row.digits+1e-9
    for tp,tn in itertools.product(range(pos+1), range(neg+1)):
        fp,fn = neg-tn,pos-tp
        if tp and r((tp+tn)/(pos+neg), 'acc') and r(tp/(tp+fp), 'precision') and r(tp/pos, 'recall') and r(2*tp/(2*tp+fp+fn), 'f1'): n += 1
    return n

def test_matrices_that_fit():
    rows = PUB[PUB.matrices.notna()]
    assert len(rows)==15 and rows.matrices.tolist()==[brute(r) for r in rows.itertuples(index=False) for r in [pd.Series(r._asdict())]]
    assert PUB[PUB.row.eq('Ours (Dyn + VGG11 + Att)')].matrices.item()==0 and PUB[PUB.source.str.startswith('log')].matrices.item()==1
    with pytest.raises(Problem): fits(dict(acc=np.nan, f1=np.nan, precision=np.nan, recall=np.nan, digits=2))

def test_exact_checks():
    e = EXACT.set_index(['id', 'part'])
    assert e.found['S1-C5'].item()=='2,952,936' and e.holds['S1-C5'].item() is True
    assert e.found['S1-C4'].item().startswith('84.9 % if balanced') and e.holds['S1-C4'].isna().all()
    assert e.found['S3-C4'].item().startswith('1 subject of 100') and e.holds['S3-C4'].isna().all()
    assert re.match(r'110, correlation 0\.52', e.found['S3-C6'].item()) and e.claimed['S3-C6'].item()=='0' and e.holds['S3-C6'].item() is False
    c7 = e.loc['S3-C7']
    assert c7.holds.tolist()==[True, True, False] and c7.found.iloc[0].startswith('9.52 %') and c7.found.iloc[1].startswith('15.85 % (14.55 to 17.18')
    assert c7.found['time']=="10.6 % of 3D-ResNet's, 17.5 % of 3D-VGG's"
    assert ratio(.9, .8)[1]<.9/.8<ratio(.9, .8)[2] and set(EXACT.id)<=set(LEDGER.id)

def contrast(value=.1, half=.01, **kw): return dict(family='S1-C1', cohort='clinical_a', probe='svc', arm='a', reference='b', value=value, lo=value-half, hi=value+half, se=half/1.96, n_subjects=100, n_seeds=5)|kw

def claim(kind='superiority', **kw): return LEDGER[:1].assign(kind=kind, margin=.02, cohort='', probe='', **kw)

def one(rows, **kw): return judge(claim(**kw), pd.DataFrame(rows)).iloc[0]

def test_judge_with_runs():
    assert one([contrast()]).verdict=='reproduced' and one([contrast(-.1)]).verdict=='contradicted' and one([contrast(0)], kind='equivalence').verdict=='reproduced'
    assert one([contrast(), contrast(-.1, probe='rf')]).verdict=='partly' and one([contrast(-.1), contrast(.02, .2, probe='rf')]).verdict=='inconclusive'
    assert one([contrast(), contrast(-.1, family='S1-C2')]).verdict=='reproduced', 'another family does not count'
    assert one([contrast(n_seeds=2)]).verdict==one([contrast(n_seeds=np.nan)]).verdict=='inconclusive'
    e = one([contrast()]).evidence
    assert all(t in e for t in ('+0.100 [+0.090, +0.110]', '100 subjects', '5 seeds', 'clinical_a', 'svc')) and 'not recorded' in one([contrast(n_seeds=np.nan)]).evidence
    r = one([contrast()], kind='not testable here')
    assert r.verdict=='not testable here' and '+0.100' in r.evidence, 'shown, not judged'

def test_a_claim_without_a_run_has_no_verdict():
    assert one([contrast(family='S1-C2')]).verdict=='not run yet' and 'not run yet' not in VERDICTS
    for con in (None, pd.DataFrame()): assert judge(claim(), con).verdict.item()=='not run yet'
    assert judge(claim('exact'), pd.DataFrame([contrast()])).verdict.item()=='not run yet', 'a contrast does not decide arithmetic'

def test_the_ledger_today():
    t = judge(LEDGER, None, EXACT).set_index('id').verdict
    assert len(t)==20 and t.index.is_unique and t[['S1-C5', 'S2-C5', 'S3-C6', 'S3-C7']].tolist()==['reproduced', 'contradicted', 'contradicted', 'partly']
    assert set(t[t.eq('not testable here')].index)=={'S1-C4', 'S2-C4', 'S3-C1'} and t.eq('not run yet').sum()==13
    assert judge(LEDGER, None, EXACT).set_index('id').evidence['S3-C4'].startswith('gain of attention: 1 subject of 100')

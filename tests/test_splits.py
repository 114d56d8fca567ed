"""Splits: 500 random manifests never leak, row order is without effect, label sets are nested."""
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurossl.core import Problem
from neurossl.manifest import empty_manifest
from neurossl.splits import LEAKS, LeakError, check_disjoint, contamination, label_fraction, leaky_split, people_of, refuse_known, refuse_test, split_subjects, subject_folds


def manifest(seed):
    "A random manifest: 4 to 60 people, 1 to 4 scans each, changing diagnoses, missing values, copied scans, some ids of ADNI in two cohorts"
    r = random.Random(seed); rows = []
    for i in range(r.randint(4, 60)):
        cohort = r.choice(['a', 'b']); dx = r.choice(['CN', 'AD', 'MCI', ''])
        subject = f'{cohort}-{i}' if r.random()<.8 else f'{cohort}-{r.choice(["", "sub-"])}{r.randint(1, 9):03d}_S_0001'
        for v in range(r.randint(1, 4)):
            rows.append(dict(scan_id=f'{cohort}{i}v{v}', cohort=cohort, subject=subject, session=f'{v}', sex=r.choice('FM') if r.random()<.9 else '',
                             age=r.uniform(50, 90) if r.random()<.9 else np.nan, dx='AD' if dx=='MCI' and v>2 else dx,
                             sha256=f'{r.randint(0, 400):064x}' if r.random()<.5 else ''))
    r.shuffle(rows)
    return empty_manifest(rows)


def separate(man, part):
    "An independent check, by brute force: no two parts share a subject, a public id or a voxel hash"
    for key in (man.subject, man.subject.str.extract(r'(\d{3}_S_\d{4})')[0], man.sha256.where(man.sha256.ne(''))):
        t = pd.DataFrame(dict(k=key.to_numpy(), p=part.loc[man.index].to_numpy())).dropna()
        assert t.groupby('k').p.nunique().le(1).all()


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31), deal=st.integers(0, 5), valid=st.sampled_from([.1, .2, .3]), test=st.sampled_from([0, .2, .3]))
def test_no_split_of_500_random_manifests_leaks(seed, deal, valid, test):
    man = manifest(seed)
    try: out = split_subjects(man, valid, test, deal)
    except LeakError: raise
    except Problem: return # too few people
    separate(man, out.split); check_disjoint(out)
    assert out.drop(columns='split').equals(man.drop(columns='split')) and set(out.split) == {'train', 'valid'} | ({'test'} if test else set())
    mixed = man.sample(frac=1, random_state=deal)
    assert split_subjects(mixed, valid, test, deal).split.loc[man.index].equals(out.split)
    fold = subject_folds(man, 3, deal, by='')
    separate(man, fold); assert subject_folds(mixed, 3, deal, by='').loc[man.index].equals(fold)
    train = out[out.split.eq('train')]; n = people_of(train).nunique()
    if n>=8:
        sets = [set(label_fraction(train, k, deal).index) for k in (4, n//2, 1.)]
        assert all(a<=b for a,b in zip(sets, sets[1:])) and sets[-1]==set(train.index)
        assert sets[0]==set(label_fraction(train.sample(frac=1, random_state=1), 4, deal).index)


def cohort(n=120, twice=3, seed=0):
    r = np.random.default_rng(seed); rows = []
    for i in range(n):
        dx,sex,age = ('CN', 'AD')[int(r.random()<.3)], 'FM'[r.integers(2)], float(60+r.integers(25))
        rows += [dict(scan_id=f's{i}-{v}', cohort='c', subject=f'c-{i}', session=str(v), age=age+v/10, sex=sex, dx=dx) for v in range(1+(i%twice==0))]
    return empty_manifest(rows)


@pytest.mark.parametrize('seed', range(5))
def test_balance(seed):
    man = cohort(seed=seed); one = man[man.session.eq('0')]
    fold = subject_folds(man, 5, seed).loc[one.index]
    for by,tol in (([one.dx], 1), ([one.dx, one.sex], 1), ([one.sex], 2)):
        t = pd.crosstab(fold, by); assert (t.max()-t.min()).max() <= tol
    decade = pd.crosstab(fold, one.age//10); assert (decade.max()-decade.min()).max() <= 4
    out = split_subjects(man, .2, .2, seed).loc[one.index]
    assert (out.groupby('split').dx.agg(lambda s: (s=='AD').mean()) - (one.dx=='AD').mean()).abs().max() < .05
    for n in (10, 30, 60):
        part = label_fraction(man, n, seed); p = one[one.subject.isin(part.subject)]
        assert part.subject.nunique()==n and abs((p.dx=='AD').sum() - n*(one.dx=='AD').mean()) <= 1.5
        assert abs((p.sex=='F').mean()-(one.sex=='F').mean()) < .2
        assert len(part)==man.subject.isin(part.subject).sum() # every scan of a chosen person


def test_seeds_differ():
    man = cohort()
    assert not subject_folds(man, 5, 0).equals(subject_folds(man, 5, 1)) and set(label_fraction(man, 20, 0).index) != set(label_fraction(man, 20, 1).index)
    a,b = (pd.get_dummies(subject_folds(man, 5, s)) for s in (0, 1))
    assert (a.T.astype(int)@b.astype(int)).to_numpy().max() < 30 # not the same folds under other numbers


def test_refusals():
    man = cohort()
    with pytest.raises(LeakError): split_subjects(man.assign(split='sealed'))
    for s in ('test', 'sealed'):
        with pytest.raises(LeakError, match='fit'): refuse_test(man.assign(split=['train']*(len(man)-1)+[s]), 'fit')
        with pytest.raises(LeakError): label_fraction(man.assign(split=s), 10)
    assert refuse_test(man.assign(split='development'), 'fit') is not None
    with pytest.raises(Problem, match='one class'): subject_folds(man.assign(dx='CN'), 5)
    with pytest.raises(Problem, match='without any AD'): subject_folds(man.assign(dx=['AD']*2+['CN']*(len(man)-2)), 5)
    with pytest.raises(Problem, match='people'): subject_folds(man.iloc[:3], 5)
    with pytest.raises(Problem): split_subjects(man, valid=1.)
    for n in (0, -1, True, 1.01, float('nan'), 121, 1):
        with pytest.raises(Problem): label_fraction(man.assign(dx=['CN', 'AD']*(len(man)//2)), n)


def test_leaks_are_leaks():
    man = cohort()
    for kind in LEAKS:
        out = leaky_split(man, kind, n=3)
        assert out.attrs['leak']==kind and set(out.split)=={'train', 'valid'} and out.index.is_unique
        with pytest.raises(LeakError): check_disjoint(out)
        assert 'leak' not in split_subjects(out).attrs
        mixed = leaky_split(man.sample(frac=1, random_state=0), kind, n=3); assert mixed.split.loc[out.index].equals(out.split)
    assert len(leaky_split(man, 'slice', n=3))==3*len(man) and 'leak' not in man.attrs


def test_contamination_equals_brute_force():
    r = np.random.default_rng(0); base = r.integers(2, 250, (12, 512))
    def rows(c, off): return empty_manifest([dict(scan_id=f'{c}{i}', cohort=c, subject=f'{c}-{i}', sha256=f'{r.integers(40):064x}',
                                                  fingerprint=(base[r.integers(12)]+r.integers(-1, 2, 512)*off).astype(np.uint8).tobytes().hex()) for i in range(300)])
    a,b = rows('a', 0), rows('b', 1)
    b.loc[b.index[:3], 'subject'] = a.subject.iloc[:3].to_numpy()
    got = set(map(tuple, contamination(a, b)[['test', 'pretrain']].to_numpy()))
    P = {m.index[i]: np.frombuffer(bytes.fromhex(m.fingerprint.iloc[i]), np.uint8).astype(int) for m in (a, b) for i in range(len(m))}
    want = {(t, p) for t in b.index[:60] for p in a.index if a.sha256[p]==b.sha256[t] or a.subject[p]==b.subject[t] or abs(P[t]-P[p]).max()<=1}
    assert {x for x in got if x[0] in set(b.index[:60])}==want and want
    assert not len(contamination(a.assign(sha256='', fingerprint=''), b.iloc[3:].assign(fingerprint='')))


def test_a_person_who_was_learned_from_is_not_judged():
    man = manifest(3)
    who = people_of(man); one = who.iloc[0]; learned,judged = man[who==one],man[who!=one]
    assert refuse_known(learned, judged, 'probe') is judged
    with pytest.raises(LeakError, match='people it learned from'): refuse_known(learned, man, 'probe')

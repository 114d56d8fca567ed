"The seal: one way in, a line for each opening, rows that nothing may learn from"
import multiprocessing as mp

import numpy as np
import pandas as pd
import pytest

from neurossl.core import Problem
from neurossl.manifest import empty_manifest, subset
from neurossl.phantom import embedded_cohort
from neurossl.probes import cross_probe, fit_probe
from neurossl.seal import LOG, open_sealed, read_log
from neurossl.splits import LeakError, label_fraction, refuse_test
from neurossl.train import TrainConfig, fit

def study(n=30, cohorts=('clinical_a', 'clinical_b')):
    return empty_manifest([dict(scan_id=f'{c}-{i:02d}', cohort=c, subject=f'{c}-{i:04d}', age=60.+i%20, sex='FM'[i%2], dx=('CN', 'AD')[i//2%2],
                                split='sealed' if i>=n//2 else 'development') for c in cohorts for i in range(n)])

def test_never_opened_is_an_empty_table(tmp_path):
    t = read_log(tmp_path/'absent.csv')
    assert tuple(t)==LOG and len(t)==0 and not (tmp_path/'absent.csv').exists()

def test_opening_twice_is_visible(tmp_path):
    man,log = study(),tmp_path/'new'/'seal_log.csv'
    a = open_sealed(man, 'clinical_a', 'first author', 'v1.0', log); b = open_sealed(man, 'clinical_a', 'reviewer', 'v1.0', log)
    open_sealed(man, 'clinical_a', 'first author', 'v1.1', log)
    t = read_log(log)
    assert t.opening.tolist()==[1, 2, 1] and t.who.tolist()==['first author', 'reviewer', 'first author']
    assert t.scans.tolist()==t.subjects.tolist()==[15]*3 and t.git.str.fullmatch('[0-9a-f]{40}|no commit').all() and t.dirty.isin(['yes', 'no']).all()
    assert pd.to_datetime(t.utc, utc=True).is_monotonic_increasing
    assert a.equals(b) and set(a.split)=={'sealed'} and set(a.cohort)=={'clinical_a'} and a.drop(columns='split').equals(subset(man, 'clinical_a', split='sealed').drop(columns='split'))
    assert set(man.split)=={'development', 'sealed'}, 'the manifest itself stays as it was'

def test_the_sealed_cohort_of_the_study_opens(tmp_path):
    man = embedded_cohort()
    assert [len(open_sealed(man, c, 'a test', 'none', tmp_path/'log.csv')) for c in ('clinical_a', 'clinical_b')]==[600, 600]
    with pytest.raises(Problem, match='without sealed rows'): open_sealed(man, 'population', 'a test', 'none', tmp_path/'log.csv')

def test_what_learns_refuses_the_opened_rows(tmp_path):
    man = study(); rows = open_sealed(man, 'clinical_a', 'a test', 'v1', tmp_path/'log.csv')
    dev = subset(man, 'clinical_a', split='development'); both = pd.concat([dev, rows.iloc[:1]])
    emb = pd.DataFrame(np.random.default_rng(0).normal(size=(len(man), 4)).astype('float32'), man.index, [f'f{i:03d}' for i in range(4)])
    class Scans: # what `fit` reads first
        def __init__(self, man): self.man = man
        def __len__(self): return len(self.man)
    for m in (rows, both):
        for f in (lambda: cross_probe(emb, m, 'knn'), lambda: fit_probe(emb, m, 'knn', 0), lambda: label_fraction(m, 2), lambda: refuse_test(m, 'x'),
                  lambda: fit(None, None, Scans(m), Scans(dev), TrainConfig(), tmp_path/'run'), lambda: fit(None, None, Scans(dev), Scans(m), TrainConfig(), tmp_path/'run')):
            with pytest.raises(LeakError): f()
    assert not (tmp_path/'run').exists() and len(fit_probe(emb, dev, 'knn', 0).predict(emb, rows, run='x', fold=0, seed=0))==len(rows)

@pytest.mark.parametrize('who,result,cohort', [('', 'v1', 'clinical_a'), (None, 'v1', 'clinical_a'), (' ', 'v1', 'clinical_a'), ('me', '', 'clinical_a'), ('me', None, 'clinical_a'),
                                               ('me\nyou', 'v1', 'clinical_a'), ('me', '<b>', 'clinical_a'), ('me', 'v'*201, 'clinical_a'), ('me', 'v1', 'clinical_c'), ('me', 'v1', '')])
def test_a_refused_opening_leaves_no_line(tmp_path, who, result, cohort):
    with pytest.raises(Problem): open_sealed(study(), cohort, who, result, tmp_path/'log.csv')
    assert not list(tmp_path.iterdir())

def test_a_person_on_both_sides_is_refused(tmp_path):
    man = study(); man = man.assign(subject=['clinical_a-0000' if i=='clinical_a-29' else s for i,s in man.subject.items()])
    with pytest.raises(LeakError): open_sealed(man, 'clinical_a', 'me', 'v1', tmp_path/'log.csv')
    assert not list(tmp_path.iterdir())

def test_text_that_a_spreadsheet_would_run_comes_back_as_it_was(tmp_path):
    log = tmp_path/'log.csv'
    for _ in range(2): open_sealed(study(), 'clinical_a', '=1+1, "me"', '@v1', log)
    assert "'=1+1" in log.read_text() and read_log(log).who.tolist()==['=1+1, "me"']*2 and read_log(log).opening.tolist()==[1, 2]

@pytest.mark.parametrize('change', [('opening,utc', 'opening,when'), ('\n1,', '\none,'), (',15,', ',-1,')])
def test_an_edited_log_is_refused_and_kept(tmp_path, change):
    log = tmp_path/'log.csv'; open_sealed(study(), 'clinical_a', 'me', 'v1', log); log.write_text(log.read_text().replace(*change)); before = log.read_bytes()
    with pytest.raises(Problem): open_sealed(study(), 'clinical_a', 'me', 'v1', log)
    assert log.read_bytes()==before

def test_no_rows_where_the_log_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError): open_sealed(study(), 'clinical_a', 'me', 'v1', tmp_path/'file'/'log.csv')

def test_two_processes_lose_no_line(tmp_path):
    jobs = [mp.get_context('fork').Process(target=open_sealed, args=(study(), 'clinical_a', f'p{i}', 'v1', tmp_path/'log.csv')) for i in range(6)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert sorted(read_log(tmp_path/'log.csv').opening)==[1, 2, 3, 4, 5, 6]

def test_opened_rows_are_not_dealt_anew(tmp_path):
    from neurossl.splits import LeakError, split_subjects
    rows = open_sealed(study(), 'clinical_a', 'a test', 'a result', tmp_path/'log.csv')
    with pytest.raises(LeakError): split_subjects(rows)

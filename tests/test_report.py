"The report shows what the tables hold: nothing of a grid that was not run, and a changed number where a table changed"
import ast, json, shutil

import pandas as pd
import pytest

from neurossl.core import paths
from neurossl.report import Results

CELLS = [''.join(c['source']) for c in json.loads((paths().nbs/'report'/'report.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']
NAMES = [next((l.split('label: ')[1] for l in c.splitlines() if l.startswith('#| label: ')), '') for c in CELLS]

def shown(home, monkeypatch):
    "label -> what the cell shows, as text, with all profiles read from `home`"
    monkeypatch.setattr('neurossl.report.results_of', lambda profile: Results(profile, home)); space,out = {},{}
    for name,c in zip(NAMES, CELLS):
        tree = ast.parse(c); last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name or 'cell', 'exec'), space)
        v = eval(compile(ast.Expression(last.value), name or 'cell', 'eval'), space) if last is not None else None
        out[name] = getattr(v, 'data', None) or (v._repr_html_() if hasattr(v, '_repr_html_') else repr(v))
    return out

@pytest.fixture
def home(tmp_path): return shutil.copytree(paths().nbs/'report'/'results'/'full', tmp_path/'full', ignore=shutil.ignore_patterns('runs', '*.jsonl'))

RESULTS = {n for n in NAMES if n.startswith(('tbl-', 'fig-'))} - {'tbl-ledger', 'tbl-published', 'tbl-claim', 'tbl-tripod', 'tbl-datasheet', 'tbl-model-card', 'tbl-seal', 'fig-s3-pictures', 'fig-s3-weights'} # these hold what needs no run

def test_nothing_run_shows_nothing_in_its_place(home, monkeypatch):
    for f in home.glob('*.csv'):
        if f.name in ('ledger.csv', 'published.csv'): continue
        f.write_text('' if f.name!='runs.csv' else '\n'.join([f.read_text().splitlines()[0]])+'\n')
    out = shown(home, monkeypatch)
    assert {n for n in RESULTS if 'Not run' not in out[n]}==set() and 'was not run' in out['tbl-model-card'] and out['tbl-claim'].count('\n')==43

def test_a_missing_grid_leaves_the_others(home, monkeypatch):
    pd.DataFrame().to_csv(home/'leaks.csv', index=False); out = shown(home, monkeypatch)
    assert 'Not run' in out['fig-leaks'] and 'Not run' in out['tbl-leaks'] and 'Not run' not in out['tbl-probe']

def test_a_changed_table_changes_the_report(home, monkeypatch):
    t = pd.read_csv(home/'probe.csv'); before = shown(home, monkeypatch)['tbl-probe']; at = t.arm.eq('age')&t.metric.eq('auc')&t.cohort.eq('clinical_a')&t.probe.eq('svc')&t.adjust.eq('none')&t.epoch.isna()
    assert at.any() and '0.12 [' not in before
    t.loc[at, 'value'] = .1234; t.to_csv(home/'probe.csv', index=False)
    assert '0.12 [' in shown(home, monkeypatch)['tbl-probe']

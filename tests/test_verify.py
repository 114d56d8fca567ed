"verify: what was changed, what is missing, what is extra, in a run, a notebook, tables and kept runs; nothing else"
import json
import subprocess
import sys
from collections import Counter

import nbformat
import pandas as pd
import pytest

from conftest import paragraph
from neurossl.core import Problem, file_sha256, read_json, write_json
from neurossl.kept import packed, unpack, write_kept
from neurossl.run import Run, contents, run_notebook
from neurossl.verify import check_kept, check_notebook, check_run, check_tables, main, verify


def made(folder):
    run = Run('probe', dict(seed=0), folder); run.write('predictions.csv', pd.DataFrame(dict(scan_id=['a', 'b'], y=[0, 1], score=[.25, .75])), index=False)
    write_json(folder/'params.json', run.params); run.finish(auc=1.); return folder

@pytest.fixture
def study(tmp_path):
    "One run with its notebook, tables, and a kept run"
    made(tmp_path/'runs'/'full'/'g'/'a'); nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1+1', id='a', outputs=[nbformat.v4.new_output('stream', text='2\n3\n')])])
    nb.metadata['neurossl'] = dict(sha256=contents(nb)); write_json(tmp_path/'results'/'g-full'/'a.ipynb', nb)
    t = tmp_path/'results'/'tables'/'full'; t.mkdir(parents=True); (t/'probe.csv').write_text('a\n1\n'); write_json(t/'made.json', {'probe.csv': file_sha256(t/'probe.csv')}); write_json(t/'key.json', 'x')
    f = tmp_path/'nbs'/'report'/'results'/'full'/'runs'/'g.json.xz'; write_kept(f, dict(b=packed(tmp_path/'runs'/'full'/'g'/'a')))
    k = tmp_path/'results'/'kept'/'full'/'g'; unpack(packed(tmp_path/'runs'/'full'/'g'/'a'), k/'b'); write_json(k/'sha256.json', file_sha256(f))
    return tmp_path

def states(root): return [(f.rpartition('/')[2], s) for f,s in verify(root=root)[['file', 'state']].itertuples(index=False)]

def test_all_is_well(study):
    v = verify(root=study); assert not len(v) and {k: v.attrs['checked'][k] for k in ('runs', 'notebooks', 'tables', 'kept')}==dict(runs=1, notebooks=1, tables=1, kept=1)

@pytest.mark.parametrize('name', ['predictions.csv', 'params.json', 'metrics.json', 'run.json'])
@pytest.mark.parametrize('how', ['changed', 'missing'])
def test_every_file_of_a_run(study, name, how):
    f = study/'runs'/'full'/'g'/'a'/name; b = bytearray(f.read_bytes())
    if how=='missing': f.unlink()
    elif name=='run.json': write_json(f, dict(read_json(f), metrics=dict(auc=.5)))
    else: b[len(b)//2] ^= 1; f.write_bytes(b)
    found = states(study)
    if (name, how)==('run.json', 'missing'): assert found==[], 'a run without run.json does not exist'
    else: assert (name, how) in found and len(found)==1, found

def test_extras_and_leftovers(study):
    for f in ('runs/full/g/a/extra.csv', 'runs/full/g/a/deep/x.bin', 'results/g-full/b.failed.ipynb', 'results/g-full/b.part.ipynb', 'results/tables/full/mine.csv', 'runs/.w.1.tmp', 'results/kept/full/g/c/run.json'):
        (study/f).parent.mkdir(parents=True, exist_ok=True); (study/f).write_text('{}')
    assert sorted(n for n,s in states(study) if s=='extra')==['.w.1.tmp', 'b.failed.ipynb', 'b.part.ipynb', 'c', 'extra.csv', 'mine.csv', 'x.bin']

def test_log_and_notebook_layout_may_change(study):
    with open(study/'runs'/'full'/'g'/'a'/'log.txt', 'a') as f: f.write('more\n')
    p = study/'results'/'g-full'/'a.ipynb'; nbformat.write(nbformat.read(p, 4), p) # another layout of the same notebook
    assert states(study)==[]
    nb = json.loads(p.read_text()); nb['cells'][0]['outputs'][0]['text'] = ['2\n', '4\n']; write_json(p, nb); assert states(study)==[('a.ipynb', 'changed')]
    del nb['metadata']['neurossl']; write_json(p, nb); assert states(study)==[('a.ipynb', 'extra')]
    p.write_bytes(b'\xff{'); assert states(study)==[('a.ipynb', 'changed')]
    p.unlink(); assert states(study)==[('a.ipynb', 'missing')]

def test_tables_and_kept_runs(study):
    t = study/'results'/'tables'/'full'; (t/'probe.csv').write_text('a\n2\n'); assert states(study)==[('probe.csv', 'changed')]
    (t/'made.json').unlink(); assert [s for _,s,_ in check_tables(t)]==['missing']; write_json(t/'made.json', {'probe.csv': file_sha256(t/'probe.csv')})
    k,f = study/'results'/'kept'/'full'/'g',study/'nbs'/'report'/'results'/'full'/'runs'/'g.json.xz'
    p = k/'b'/'predictions.csv'; p.write_text(p.read_text().replace('0.75', '0.95')); assert [(x.name, s) for x,s,_ in check_kept(k, f)]==[('b', 'changed')]
    write_kept(f, {}); assert [s for _,s,_ in check_kept(k, f)]==['changed']; f.unlink(); assert [s for _,s,_ in check_kept(k, f)]==['missing']

@pytest.mark.parametrize('text', ['', '{', '[]', '"x"', '{"files": 3}', '{"files": {}, "metrics": {}}'])
def test_a_record_that_is_none(tmp_path, text):
    r = made(tmp_path/'r'); (r/'run.json').write_text(text); assert {s for _,s,_ in check_run(r)}<={'changed', 'extra'} and check_run(r)

def test_an_executed_notebook_passes_and_one_output_changed_does_not(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('x: int = 1', metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell('x/3')]); nbformat.write(nb, tmp_path/'t.ipynb')
    run_notebook(tmp_path/'t.ipynb', tmp_path/'o.ipynb', dict(x=2)); assert check_notebook(tmp_path/'o.ipynb')==[]
    (tmp_path/'o.ipynb').write_text((tmp_path/'o.ipynb').read_text().replace('0.666', '0.667')); assert check_notebook(tmp_path/'o.ipynb')[0][1]=='changed'

def test_the_command(study, capsys, monkeypatch):
    monkeypatch.setenv('NEUROSSL_HOME', str(study)); assert main([])==0 and '0 differences' in capsys.readouterr().out
    (study/'runs'/'full'/'g'/'a'/'x').write_text(''); assert main(['results', 'runs'])==1 and 'extra' in capsys.readouterr().out and main(['results'])==0
    with pytest.raises(Problem, match='no such folder'): main(['gone'])
    r = subprocess.run([sys.executable, '-m', 'neurossl.verify', 'gone'], capture_output=True, text=True); assert r.returncode==1 and 'Traceback' not in r.stderr and 'make study' in r.stderr

def test_what_make_faults_says():
    n = Counter({'fault: kill -9, cache': 12, 'fault: kill -9, grid': 13, 'fault: full disk': 4, 'compared': 4096, 'inputs': 10_000, 'input bytes': 70_000, 'accepted': 9}); said = paragraph(n, [])
    assert said=='29 faults: 25 kill -9 (cache 12, grid 13), 4 full disk; after each the same call again, 4,096 bytes held against undisturbed runs. 10,000 damaged inputs of 70,000 bytes: 9 were sound and accepted, 9,991 refused by a typed error. Lost: nothing.'
    assert paragraph(Counter(), [])=='' and paragraph(n+Counter(lost=2), []).endswith('Lost: 2 files.') and paragraph(n, ['one']).endswith('Lost: see the failures above.')

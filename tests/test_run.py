"Runs: strict parameters, whole or absent outputs."
import json, subprocess, sys
from pathlib import Path

import nbformat, pytest
from neurossl.core import Problem, atomic_write, read_json
from neurossl.grid import expand, find_cell, study_cells
from neurossl.run import ParameterError, check_values, declared, parameters, profiles, resolve, run_notebook, start_run, template

ROOT = Path(__file__).resolve().parents[1]

def notebook(path, *cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cells[0], metadata=dict(tags=['parameters'])), *map(nbformat.v4.new_code_cell, cells[1:])])
    nbformat.write(nb, path)

def test_a_disk_that_fills_up_keeps_the_old_file(tmp_path):
    import errno
    f = tmp_path/'x.bin'; f.write_bytes(b'old')
    with pytest.raises(Problem, match='disk is full'):
        with atomic_write(f) as h: h.write(b'new'); raise OSError(errno.ENOSPC, 'no space')
    assert f.read_bytes()==b'old' and [p.name for p in tmp_path.iterdir()]==['x.bin']

def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(tmp_path/'x.bin') as h: h.write(b'half'); raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('values, says', [
    (dict(profil='smoke'), "Did you mean 'profile'"), (dict(profile='smok'), "Did you mean 'smoke'"), (dict(seed='0'), "'0' (str)"),
    (dict(epochs=2.5), '2.5 (float)'), (dict(crop='false'), "'false' (str)"), (dict(task='agee'), "Did you mean 'age'"), (dict(lr=None), 'None (NoneType)')])
def test_wrong_parameters_are_refused(values, says):
    with pytest.raises(ParameterError) as e: resolve('pretrain', values)
    assert says in str(e.value)

def test_wrong_parameters_fail_before_a_kernel_starts(tmp_path, monkeypatch):
    import papermill
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *a, **k: pytest.fail('a kernel was started'))
    with pytest.raises(ParameterError): run_notebook('pretrain', tmp_path/'out.ipynb', dict(epoch=1))
    assert not list(tmp_path.iterdir())

def test_an_absent_template_lists_those_that_exist():
    with pytest.raises(ParameterError, match="one of .*pretrain.*Did you mean 'probe'"): template('prob')

@pytest.mark.parametrize('word', ['x: int = 1', 'y: list = [1, 2]', 'z: float | None = None # none: a lot', 'k: str = "a" # one of a | b'])
def test_declared_round_trip(word):
    d = declared(word); (n,(t,default,*_)), = d.items()
    assert check_values(d, {}, 'here')=={n: default}

def test_a_failed_notebook_is_named_and_the_output_is_absent(tmp_path):
    notebook(tmp_path/'bad.ipynb', 'x: int = 1', '1/0')
    with pytest.raises(Exception, match='ZeroDivisionError'): run_notebook(tmp_path/'bad.ipynb', tmp_path/'out.ipynb', {})
    assert sorted(p.name for p in tmp_path.iterdir())==['bad.ipynb', 'out.failed.ipynb']

def test_a_dead_kernel_leaves_no_finished_notebook(tmp_path):
    notebook(tmp_path/'dead.ipynb', 'x: int = 1', 'import os; os._exit(3)', '"never"')
    with pytest.raises(Exception, match='[Kk]ernel'): run_notebook(tmp_path/'dead.ipynb', tmp_path/'out.ipynb', {})
    assert not (tmp_path/'out.ipynb').exists()

def test_executed_notebook_carries_provenance(tmp_path):
    notebook(tmp_path/'ok.ipynb', 'x: int = 1', 'x+1')
    run_notebook(tmp_path/'ok.ipynb', tmp_path/'out.ipynb', dict(x=4))
    nb = json.loads((tmp_path/'out.ipynb').read_text())
    assert nb['metadata']['neurossl']['params']=={'x': 4} and {'git', 'packages', 'wall_s'}<=set(nb['metadata']['neurossl'])
    assert any('5' in str(c.get('outputs')) for c in nb['cells']) and nb['cells'][-1]['id']=='provenance'

def test_run_json_comes_last_and_goes_first(tmp_path):
    run = start_run('pretrain', dict(profile='smoke', out=str(tmp_path/'r')))
    assert not (tmp_path/'r'/'run.json').exists()
    run.finish(loss=1.)
    assert read_json(tmp_path/'r'/'run.json')['files'].keys()=={'metrics.json', 'params.json'}
    start_run('pretrain', dict(profile='smoke', out=str(tmp_path/'r')))
    assert not (tmp_path/'r'/'run.json').exists(), 'a run that starts again is incomplete'

def test_the_command_line_says_one_paragraph():
    r = subprocess.run([sys.executable, '-m', 'neurossl.run', 'pretrain', 'o.ipynb', 'epochs=two'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==1 and 'parameter epochs: found \'two\'' in r.stderr and 'Traceback' not in r.stderr

def test_every_grid_expands_in_every_profile():
    for p in profiles():
        cells = study_cells(p); names = {f"{c['grid']}/{c['id']}" for c in cells}
        assert cells and all(n in names for c in cells for n in c['needs'])
        for c in cells: assert set(c['params'])<=set(parameters(c['template']))

def test_the_dag_builds():
    r = subprocess.run([sys.executable, '-m', 'snakemake', '-n', '--quiet', 'all', '--config', 'profile=smoke', '--nolock'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    assert find_cell('smoke', 's1-probe/age-s0')['needs']==['s1-pretext/age-s0'] and len(expand('s1-probe', 'full'))==len(expand('s1-pretext', 'full'))

def test_a_page_tells_no_place_on_the_disk(tmp_path):
    notebook(tmp_path/'ok.ipynb', 'folder: str = ""', 'len(folder)')
    run_notebook(tmp_path/'ok.ipynb', tmp_path/'out.ipynb', dict(folder=str(tmp_path/'scans')))
    assert str(tmp_path) not in (tmp_path/'out.ipynb').read_text() and '…/scans' in (tmp_path/'out.ipynb').read_text()

def test_a_value_that_no_profile_gives_is_named(monkeypatch):
    import neurossl.run as run
    monkeypatch.setattr(run, '_profiles', lambda: {'default': {}})
    with pytest.raises(ParameterError, match='parameter size'): resolve('pretrain', {})

"What is kept of a run: nothing is lost but decimals, sittings add up, another's parameters do not count"
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import neurossl.grid as grid
import neurossl.kept as kept
import neurossl.study as study
from neurossl.core import Problem, read_json, write_json
from neurossl.kept import packed, place, read_kept, thaw, unpack, write_kept


def probe_run(folder, seed, arm='age', n=200, shift=1.):
    "A complete run of a probe: predictions and a record"
    g = np.random.default_rng(seed); y = np.arange(n)%2
    t = pd.DataFrame(dict(run='', fold=np.arange(n)%5, seed=seed, scan_id=[f's{i}' for i in range(n)], subject=[f's{i}' for i in range(n)], split='test', y=y, score=1/(1+np.exp(-(shift*y+g.normal(size=n)))),
                          cohort='clinical_a', arm=arm, saw='x', probe='svc', n_train=50, adjust='none', ad_share='', remedy='', epoch=''))
    folder.mkdir(parents=True); t.to_csv(folder/'predictions.csv', index=False)
    write_json(folder/'run.json', dict(run='/'.join(folder.parts[-3:]), template='probe', params=dict(arm=arm, seed=seed), files={'predictions.csv': 'x'}, git='0123abc', dirty=False, wall_s=1.))
    return t

def test_a_packed_run_comes_back(tmp_path):
    t = probe_run(tmp_path/'full'/'g'/'a', 0); u = pd.read_csv(unpack(packed(tmp_path/'full'/'g'/'a'), tmp_path/'b')/'predictions.csv')
    pd.testing.assert_frame_equal(u.drop(columns='score'), pd.read_csv(tmp_path/'full'/'g'/'a'/'predictions.csv').drop(columns='score'))
    assert abs(u.score-t.score).max()<=5.1e-5 and read_json(tmp_path/'b'/'run.json')==read_json(tmp_path/'full'/'g'/'a'/'run.json')
    assert packed(tmp_path/'b')==packed(tmp_path/'full'/'g'/'a'), 'packing twice changes nothing more'

def test_text_stays_text(tmp_path):
    probe_run(tmp_path/'a', 0); pd.DataFrame(dict(arm=['007', 'NA', '']*2, x=['1e3', '1000', 'nan']*2)).to_csv(tmp_path/'a'/'history.csv', index=False)
    assert (unpack(packed(tmp_path/'a'), tmp_path/'b')/'history.csv').read_text()==(tmp_path/'a'/'history.csv').read_text()

def test_a_table_with_nothing_in_it_is_kept_and_stacked(tmp_path, monkeypatch):
    a,b = probe_run(tmp_path/'runs'/'a', 0),probe_run(tmp_path/'runs'/'b', 1); pd.DataFrame().to_csv(tmp_path/'runs'/'a'/'summary.csv', index=False); pd.DataFrame(dict(metric=['mse'])).to_csv(tmp_path/'runs'/'b'/'summary.csv', index=False)
    back = unpack(packed(tmp_path/'runs'/'a'), tmp_path/'again'); assert kept.read_table(back/'summary.csv').empty and len(kept.read_table(back/'predictions.csv'))==len(a)
    monkeypatch.setattr(grid, 'home', lambda c, root: tmp_path/'runs'/c['id']); cells = [dict(grid='g', id=i) for i in 'ab']
    assert grid._stack(tmp_path, cells, 'summary.csv').to_dict('list')==dict(metric=['mse'], run=['g/b']) and len(grid._stack(tmp_path, cells, 'predictions.csv'))==len(a)+len(b) and grid._stack(tmp_path, cells[:1], 'summary.csv').empty


def test_an_incomplete_run_and_a_broken_file_are_refused(tmp_path):
    (tmp_path/'a').mkdir()
    with pytest.raises(Problem, match='no run.json'): packed(tmp_path/'a')
    write_kept(tmp_path/'g.json.xz', dict(a=dict(run={}, tables={}))); raw = (tmp_path/'g.json.xz').read_bytes()
    for bad in (raw[:-9], b'', raw[:20]+b'x'+raw[21:]):
        (tmp_path/'g.json.xz').write_bytes(bad)
        with pytest.raises(Problem, match='cannot be read'): read_kept(tmp_path/'g.json.xz')

@pytest.fixture
def house(monkeypatch, tmp_path):
    "A project with a grid of three cells, of which any may be complete"
    cells = [dict(grid='g', id=k, run=f'runs/full/g/{k}', template='probe', params=dict(arm='age', seed=i), needs=[], notebook=f'{k}.ipynb') for i,k in enumerate('abc')]
    places = lambda: SimpleNamespace(root=tmp_path, nbs=tmp_path/'nbs')
    for m in (study, grid, kept): monkeypatch.setattr(m, 'paths', places)
    for m in (study, grid): monkeypatch.setattr(m, 'study_cells', lambda profile: cells)
    monkeypatch.setattr(grid, 'resolve', lambda template, params: params)
    monkeypatch.setattr(study, 'tables', lambda profile: thaw(profile)/'none')
    return tmp_path

def test_sittings_add_up(house):
    import shutil
    for k,i in (('a', 0), ('b', 1)):
        probe_run(house/'runs'/'full'/'g'/k, i); dst = study.keep('full'); shutil.rmtree(house/'runs')
    assert sorted(read_kept(dst/'runs'/'g.json.xz'))==['a', 'b'] and len((dst/'runs.jsonl').read_text().splitlines())==2
    probe_run(house/'runs'/'full'/'g'/'c', 2); study.keep('full'); thaw('full')
    t = grid._stack(house, study.study_cells('full'), 'predictions.csv')
    assert sorted(t.seed.unique())==[0, 1, 2] and len(t)==600 and grid._runs(house, study.study_cells('full')).complete.all()

def test_a_kept_run_with_other_parameters_is_not_used(house):
    probe_run(house/'results'/'kept'/'full'/'g'/'a', 0); cell = study.study_cells('full')[0]
    assert place(cell, house, dict(arm='age', seed=0))!=house/cell['run'] and place(cell, house, dict(arm='age', seed=1))==house/cell['run']

def test_this_machine_comes_first(house):
    cell = study.study_cells('full')[0]; probe_run(house/'results'/'kept'/'full'/'g'/'a', 0); probe_run(house/cell['run'], 0)
    assert place(cell, house, dict(arm='age', seed=0))==house/cell['run']

def test_a_changed_file_is_thawed_again(house):
    dst = house/'nbs'/'report'/'results'/'full'/'runs'; probe_run(house/'x', 0); write_kept(dst/'g.json.xz', dict(a=packed(house/'x'))); home = thaw('full')
    assert (home/'full'/'g'/'a'/'run.json').exists()
    probe_run(house/'y', 1); write_kept(dst/'g.json.xz', dict(b=packed(house/'y'))); thaw('full')
    assert not (home/'full'/'g'/'a').exists() and (home/'full'/'g'/'b'/'predictions.csv').exists()

def test_the_same_probe_in_two_grids_counts_once(tmp_path):
    t = probe_run(tmp_path/'a', 0); twice = pd.concat([t, t.assign(run='other')]); later = t.assign(epoch='2')
    assert len(grid._once(twice))==len(t) and len(grid._once(pd.concat([twice, later])))==2*len(t) and len(grid._once(t.iloc[:0]))==0

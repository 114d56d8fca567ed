"The harness measures what it says, and stops before the clock when results differ."
import json, os, re, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

from importlib.util import find_spec

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import __main__ as cli, memory, scaling
from benchmarks.apart import Apart, stop
from benchmarks.cases import CASES
from benchmarks.harness import Case, GateError, Timing, compare, have, judge, machine, peak_mib, ratio, same

@pytest.fixture(autouse=True)
def without_monai(monkeypatch):
    "Importing MONAI takes longer than all of these tests; its gates run in `python -m benchmarks ci`"
    from benchmarks.cases import preprocess
    monkeypatch.setattr(preprocess, 'have', lambda m: m!='monai' and have(m))

def work(n):
    "n times the same arithmetic, without memory"
    def f():
        s = 0
        for i in range(n): s += i*i%7
        return s
    return f

def test_a_known_ratio_is_recovered():
    t = compare(dict(once=work(20000), twice=work(40000)), rounds=15, memory=False)
    value,lo,hi = ratio(t['twice'], t['once'])
    assert 1.7<value<2.35 and lo<=value<=hi and hi-lo<.6
    assert ratio(t['once'], t['once'])==(1., 1., 1.)

def test_pairing_removes_what_slows_both():
    "A machine that is three times slower in some rounds changes the medians, not the paired ratio"
    slow = np.array([1,3,1,3,3,1,3,1,3.])*.01
    a,b = (Timing(slow*k, slow*k, 0, 0) for k in (2, 1))
    assert ratio(a, b)==pytest.approx((2, 2, 2))

def test_order_alternates_and_everyone_has_as_many_rounds():
    seen = []
    compare(dict(a=lambda: seen.append('a'), b=lambda: seen.append('b')), rounds=4, least_s=0., memory=False)
    assert ''.join(seen)=='aabb'+'ab'+'ba'+'ab'+'ba'

def test_peak_memory():
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('the system does not tell')
    v = peak_mib(lambda: np.ones(2**23).sum()) # 64 MiB
    if np.isnan(v): pytest.skip('the system does not tell')
    assert 60<v<75

def test_a_gate_that_fails_stops_before_the_clock(monkeypatch, tmp_path):
    def wrong(size, folder):
        def gate(): same('ours and the peer', np.array([1.,2]), np.array([1.,2.0001]))
        return Case('wrong', {'f': work(9)}, {'g': work(9)}, {'h': work(9)}, gate)
    monkeypatch.setitem(CASES, 'wrong', wrong)
    monkeypatch.setattr(cli, 'compare', lambda *a: pytest.fail('the clock ran'))
    with pytest.raises(GateError, match='1 of 2 values differ'): cli.measure('wrong', cli.PROFILES['ci'], tmp_path)

@pytest.mark.parametrize('a,b,tol,ok', [([1.,2], [1.,2], 0, True), ([1.,2], [1.,2.001], .01, True), ([1.,2], [1.,2.1], .01, False),
                                        ([1.,2], [1.,2,3], 9, False), ([np.nan], [np.nan], .1, False)])
def test_same(a, b, tol, ok):
    if ok: same('x', a, b, tol)
    else:
        with pytest.raises(GateError): same('x', a, b, tol)

def test_goals_name_cases_and_their_functions(tmp_path):
    goals = cli.goals(); known = {'case','ours','peer','ratio_min','ratio_min_ci','limit_fraction_min','mem_max','size_fraction_max','guard'}
    assert sum('guard' in g for g in goals)==4 and all('ratio_min' in g for g in goals if 'guard' in g)
    assert {g['case'] for g in goals}==set(CASES), 'every case has a goal and every goal a case'
    for name in CASES:
        c = CASES[name](24, tmp_path)
        assert c.name==name and c.limit
        for g in goals:
            if g['case']==name: assert g['ours'] in c.ours and g['peer'] in c.peers and g.get('ratio_min', 1)>0 and set(g)<=known

def test_a_missing_peer_is_not_measured(tmp_path):
    c = CASES['resize_up'](24, tmp_path); t = {k: Timing(np.ones(3), np.ones(3), 0, 1.) for k in ('resize', 'memcpy')}
    assert c.peers['MONAI Resize'] is None
    assert [judge(g, c, t)['verdict'] for g in cli.goals() if g['case']=='resize_up']==['not measured']

def run(*words, **env):
    p = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', 'THP_MEM_ALLOC_ENABLE': '1', **env})
    assert p.returncode==0, p.stderr[-3000:]+p.stdout[-1000:]
    return p.stdout

def test_the_ci_profile(tmp_path):
    "Every gate passes, and no guard is clearly missed"
    said = run('-m', 'benchmarks', 'ci', NEUROSSL_HOME=str(tmp_path)); result = json.loads((tmp_path/'results/benchmarks/ci.json').read_text()); print(said.splitlines()[-1])
    assert set(result['cases'])==set(CASES) and all(c['gate']=='passed' for c in result['cases'].values())
    assert sum(len(c['goals']) for c in result['cases'].values())==4

@pytest.mark.parametrize('change', ['load', 'cache', 'clahe', pytest.param('resize', marks=pytest.mark.skipif(
    find_spec('SimpleITK') is None, reason='SimpleITK is not installed (make extras): without it the fast resize gate has no peer'))])
def test_a_gate_notices_one_changed_result(change, monkeypatch, tmp_path):
    from benchmarks.cases import cache, load, preprocess
    def off(x): x = np.array(x); x[tuple(n//2 for n in x.shape)] += .01*abs(x).max(); return x
    mod,f,name = dict(load=(load, 'load_volume', 'load_int16'), cache=(cache, 'voxels', 'cache_whole'), clahe=(preprocess, 'clahe', 'clahe_3d'),
                      resize=(preprocess, 'resize', 'resize_up'))[change]
    c,true = CASES[name](24, tmp_path),getattr(mod, f)
    monkeypatch.setattr(mod, f, (lambda *a, **k: SimpleNamespace(data=off(true(*a).data), affine=true(*a).affine)) if change=='load' else lambda *a, **k: off(true(*a, **k)))
    with pytest.raises(GateError): c.gate()

def test_verdicts():
    def t(s): return Timing(np.full(5, s), np.full(5, s), 0, 20.)
    c = Case('c', {'ours':None}, {'peer':None, 'gone':None}, {'limit':None}, None, 10., {'ours': dict(size_fraction=.3)}); m = dict(ours=t(1.), peer=t(3.), limit=t(.2))
    say = lambda share=1., **k: judge(dict(dict(case='c', ours='ours', peer='peer', ratio_min=2.), **k), c, m, share)
    assert say()['verdict']=='met' and say()['measured']['ratio_min']==3 and say()['limit_fraction']==pytest.approx(.2)
    assert say(ratio_min=4.)['verdict']=='missed' and say(ratio_min=4., share=.5)['verdict']=='met'
    assert say(mem_max=1.5)['failed']==['mem_max'] and say(size_fraction_max=.2)['failed']==['size_fraction_max'] and say(limit_fraction_min=.5)['verdict']=='missed'
    assert say(peer='gone')['verdict']=='not measured'
    assert say(ratio_min=9., ratio_min_ci=2.5, share=.5)['verdict']=='met' and say(ratio_min=9., ratio_min_ci=2.5)['verdict']=='missed'

def test_ci_fails_only_where_the_interval_is_below_the_guard():
    g = lambda verdict, hi, failed: dict(verdict=verdict, ratio_ci=[1., hi], asked=dict(ratio_min=5.), failed=failed)
    assert not cli.clearly_missed(g('missed', 5.2, ['ratio_min'])) and not cli.clearly_missed(g('met', 7., [])) and not cli.clearly_missed(dict(verdict='not measured'))
    assert cli.clearly_missed(g('missed', 4.9, ['ratio_min'])) and cli.clearly_missed(g('missed', 9., ['mem_max']))

def test_a_missed_goal_is_printed_with_its_number():
    g = dict(goal=dict(case='c', ours='o', peer='p', ratio_min=10.), asked=dict(ratio_min=10.), measured=dict(ratio_min=8.25), failed=['ratio_min'], ratio_ci=[8, 8.5],
             limit_fraction=.1, mem=2., verdict='missed')
    s = cli.table(dict(share=1., cases=dict(c=dict(goals=[g], functions=dict(t=dict(kind='peer', not_measured=True))))))
    assert '8.25x [8.00, 8.50]' in s and 'missed' in s and '| c | t (peer) | not measured' in s

def test_the_fingerprint_names_no_place(tmp_path):
    import getpass, socket
    s = json.dumps(machine(cli.PACKAGES+['no-such-package']))
    assert '"no-such-package": null' in s and json.loads(s)['cores']>0
    assert socket.gethostname() not in s and str(ROOT) not in s and not re.search(r'/(home|work|tmp|Users)/', s)

HEAVY = ('torch', 'pandas', 'scipy', 'monai', 'sklearn', 'matplotlib', 'skimage', 'nibabel', 'numba', 'papermill')

@pytest.mark.parametrize('what', ['import neurossl', 'import neurossl.policy', 'import runpy; sys.argv = ["run", "--help"]; runpy.run_module("neurossl.run", run_name="__main__")'])
def test_what_only_answers_imports_nothing_heavy(what):
    "`import neurossl` and `python -m neurossl.run --help` come at once"
    said = run('-c', f'import sys\n{what}\nprint("HEAVY", *[m for m in {HEAVY} if m in sys.modules])').splitlines()
    assert said[-1].split()==['HEAVY'] and ('help' not in what or any('pretrain' in l for l in said))

def test_a_process_has_its_own_allocator():
    try:
        f = Apart('steps:copy', 1000, THP_MEM_ALLOC_ENABLE='1'); assert f() is None and f.sample(3)[0]>=0
        t = compare(dict(a=f, b=Apart('steps:copy', 4_000_000, THP_MEM_ALLOC_ENABLE='1')), rounds=3, least_s=0., memory=False); assert ratio(t['b'], t['a'])[0]>5
        with pytest.raises(RuntimeError, match='no_such_maker'): Apart('steps:no_such_maker', THP_MEM_ALLOC_ENABLE='1')()
        assert f() is None, 'an error ends no process'
    finally: stop()

def test_long_calls_have_fewer_rounds():
    import time
    t = compare(dict(a=lambda: time.sleep(.05)), rounds=9, least_s=0., memory=False, most_s=.2); assert 3<=len(t['a'].cpu_s)<=4
    assert len(compare(dict(a=lambda: time.sleep(.05)), rounds=9, least_s=0., memory=False, most_s=0.)['a'].cpu_s)==3

def test_a_row_without_a_goal_is_reported():
    t = {k: Timing(np.full(3, s), np.full(3, s), 0, 1.) for k,s in (('a', 1.), ('b', 6.), ('l', .5))}; c = Case('c', {'a': None}, {'b': None}, {'l': None}, None)
    g = judge(dict(case='c', ours='a', peer='b'), c, t); assert g['verdict']=='reported' and g['measured']['ratio_min']==6
    assert '6 (6 to 6)' in cli.readme(dict(machine=machine(['numpy']), cases=dict(c=dict(goals=[g]))), 'x.json')

REGION = lambda text: text[text.index(cli.MARKS[0])+len(cli.MARKS[0]):text.index(cli.MARKS[1])].strip('\n')

def test_the_table_of_the_readme_is_the_committed_result():
    home = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8')); cell = next(t for c in home['cells'] if cli.MARKS[0] in (t := ''.join(c['source'])))
    there = REGION((ROOT/'README.md').read_text(encoding='utf-8')); assert REGION(cell)==there
    name = re.search(r'benchmarks/results/(\w+\.json)', there); kept = [f.name for f in (ROOT/'benchmarks'/'results').glob('*.json') if '-' not in f.name]
    if not kept: assert there=='not measured yet'; return
    assert name and name[1] in kept and there==cli.readme(json.loads((ROOT/'benchmarks'/'results'/name[1]).read_text()), name[1]).strip('\n')
    result = json.loads((ROOT/'benchmarks'/'results'/name[1]).read_text()); assert result['profile']=='full' and cli.fingerprint(result['machine'])+'.json'==name[1] and set(result['cases'])==set(CASES)

def test_results_name_no_place():
    import socket
    for f in (ROOT/'benchmarks'/'results').glob('*.json'): assert not re.search(rf'/(home|root|work|tmp|Users|var|opt)/|\b{re.escape(socket.gethostname())}\b', f.read_text()), f.name

def test_the_table_is_put_between_the_marks():
    a,b = cli.MARKS; assert cli.put(f'x\n{a}\nold\n{b}\ny', 'new')==f'x\n{a}\nnew\n{b}\ny'
    with pytest.raises(ValueError): cli.put('x', 'new')

def test_the_fingerprint_is_of_the_machine_alone():
    a,b = machine(['numpy']),machine([]); b['load'] = 9.; assert cli.fingerprint(a)==cli.fingerprint(b)!=cli.fingerprint(dict(a, cores=999))

def test_without_a_gpu_the_cuda_profile_says_so(monkeypatch, capsys):
    import torch
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False); assert cli.main(['cuda'])==0 and 'no CUDA device' in capsys.readouterr().out

@pytest.mark.slow
def test_the_cuda_profile_on_another_device(tmp_path):
    "Everything but the events and the streams"
    import torch
    from benchmarks.cuda import main
    r = main(tmp_path, torch.device('cpu'), size=32, batch=2, n=6, mib=4, side=128, tries=(False,))
    assert len(r['steps'])==4 and all(0<s['ms'] and s['of_matmul']>0 for s in r['steps']) and r['views']['ms_a_view']>0 and r['feeding']['read']>0

def test_an_exponent_comes_back():
    a,p = scaling.power([48, 96, 192], [2e-6*s**3 for s in (48, 96, 192)]); assert a==pytest.approx(2e-6) and p==pytest.approx(3)
    fit = {k: dict(factor=1., exponent=0.) for k in scaling.STAGES}; assert scaling.predicted(fit, 96, 10, 2, 5)==dict(prepare=45., train=40., embed=10.)

@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_training_at_192_fits_into_five_gigabytes(precision):
    if sys.platform!='linux': pytest.skip('peak memory is counted in another unit')
    m = memory.apart('sfcn', 192, precision); print(m); assert 500<m['peak_mb']<5000

@pytest.mark.slow
def test_a_cache_is_built_in_constant_memory():
    if sys.platform!='linux': pytest.skip('peak memory is counted in another unit')
    m = memory.apart('cache', 100, 1000); print(m); assert 0<=m['1000']-m['100']<32

def test_a_wrong_profile_is_named():
    with pytest.raises(SystemExit, match='ci, full'): cli.main(['fast'])

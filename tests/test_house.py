"The house rules of the notebooks: what fails here is a defect; what is only reported is printed with `pytest -rP`."
import ast, importlib.util, json, re, subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
TEMPLATES = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))
PAGES = sorted((ROOT/'nbs').glob('[a-z]*.ipynb'))
REPORT = ROOT/'nbs'/'report'/'report.ipynb'
NOTEBOOKS = [*ROOMS, *TEMPLATES, *PAGES, REPORT]
name = lambda p: p.stem

def load(p): return json.loads(p.read_text(encoding='utf-8'))
def text(c): return ''.join(c['source'])
def code(p): return [c for c in load(p)['cells'] if c['cell_type']=='code']
def exported(p): return [c for c in code(p) if re.search(r'(?m)^#\|\s*export\b', text(c))]
def lines(c): return [l for l in text(c).splitlines() if l.strip() and not l.startswith('#|')]
def module(p): return next(re.search(r'#\|\s*default_exp\s+(\w+)', text(c))[1] for c in code(p) if 'default_exp' in text(c))
def outputs(c): return ''.join(str(o.get('text', ''))+json.dumps(o.get('data', {})) for o in c.get('outputs', []))
LAYER = {module(p): int(p.stem[:2]) for p in ROOMS}

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_a_room_imports_only_from_lower_rooms(room):
    me = LAYER[module(room)]
    for n in ast.walk(ast.parse((ROOT/'neurossl'/f'{module(room)}.py').read_text())):
        if isinstance(n, ast.Import): assert not any(a.name.startswith('neurossl') for a in n.names), 'write: from neurossl.room import name'
        if not isinstance(n, ast.ImportFrom): continue
        assert not any(a.name=='*' for a in n.names), f'import * from {n.module}'
        if n.level or (n.module or '').startswith('neurossl.'): # nbdev makes our imports relative
            other = n.module.split('.')[-1]
            assert LAYER[other]<me, f'{room.stem} ({me}) imports {other} ({LAYER[other]})'

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_cells_have_stored_ids(nb):
    d = load(nb); ids = [c.get('id') for c in d['cells']]
    assert (d['nbformat'], d['nbformat_minor'])==(4, 5) and all(ids) and len(set(ids))==len(ids)

@pytest.mark.parametrize('nb', [*TEMPLATES, REPORT], ids=name)
def test_templates_hold_parameters_and_no_outputs(nb):
    cells = load(nb)['cells']; tagged = [c for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged)==1, 'one cell tagged parameters'
    assert not any(c.get('outputs') or c.get('execution_count') for c in cells), 'templates are committed without outputs'
    assert 'skip_exec: true' in text(cells[0])

@pytest.mark.parametrize('nb', TEMPLATES, ids=name)
def test_templates_define_nothing_long(nb):
    for c in code(nb):
        for n in ast.walk(ast.parse(text(c))):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)): assert n.end_lineno-n.lineno<6, f'{n.name} belongs into a room'

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_figures_have_label_caption_and_alternative_text(nb):
    for c in code(nb):
        has = 'image/png' in outputs(c); labelled = re.search(r'#\|\s*label:\s*fig-', text(c))
        if has or labelled:
            for key in ('label: fig-', 'fig-cap:', 'fig-alt:'): assert re.search(rf'#\|\s*{key}', text(c)), f'{key} missing in {text(c)[:80]!r}'

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_no_swallowed_exceptions_and_no_shortcuts(room):
    src = (ROOT/'neurossl'/f'{module(room)}.py').read_text(); tree = ast.parse(src)
    for n in ast.walk(tree):
        if isinstance(n, ast.ExceptHandler):
            wide = n.type is None or (isinstance(n.type, ast.Name) and n.type.id in ('Exception', 'BaseException'))
            assert not wide or any(isinstance(x, ast.Raise) for x in ast.walk(n)), f'line {n.lineno}: a wide except that does not raise'
        if isinstance(n, ast.While): assert not (isinstance(n.test, ast.Constant) and n.test.value), f'line {n.lineno}: while True'
        if isinstance(n, ast.Call): assert not any(k.arg=='strict' and isinstance(k.value, ast.Constant) and k.value.value is False and 'load_state' in ast.unparse(n.func) for k in n.keywords), f'line {n.lineno}: strict=False'
    if module(room)!='core': assert 'os.environ' not in src, 'only core reads the environment'

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_every_public_name_has_one_line(room):
    tree = ast.parse((ROOT/'neurossl'/f'{module(room)}.py').read_text()); named = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
    mute = [n.name for n in named if not ast.get_docstring(n)]; assert not mute, f'public, without a docstring: {mute}'
    assert not (long := [n.name for n in named if '\n' in (ast.get_docstring(n) or '')]), f'a docstring of more than one line: {long}'

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_no_absolute_paths_and_no_warnings(nb):
    for c in load(nb)['cells']:
        t = text(c)+outputs(c)
        assert not re.search(r'(?<![\w.<:/])/(?:home|root|Users|work|mnt|tmp|usr|var)/\w', t), f"absolute path in {text(c)[:80]!r}"
        for o in c.get('outputs', []):
            assert o.get('name')!='stderr' and o['output_type']!='error', f'stored stderr or traceback after {text(c)[:80]!r}'

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_exported_cells_stay_readable(room):
    long = [(c['id'], len(lines(c))) for c in exported(room) if len(lines(c))>40]
    total = sum(len(lines(c)) for c in exported(room))
    if long: print(f'{room.stem}: exported cells above 40 lines: {long}')
    if total>250: print(f'{room.stem}: {total} exported lines')
    assert all(n<=80 for _,n in long)

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_reports_exports_without_lesson(room):
    cells = [c for c in load(room)['cells'] if c['cell_type']=='code' and not re.search(r'default_exp|eval: false', text(c))]
    for c,after in zip(cells, cells[1:]+[None]):
        public = [n.name for n in ast.parse(text(c)).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
        if re.search(r'(?m)^#\|\s*export\b', text(c)) and public and (after is None or re.search(r'(?m)^#\|\s*export\b', text(after))): print(f'{room.stem}: no lesson right after {public}')
    assert cells[0] is not None

@pytest.mark.parametrize('room', ROOMS, ids=name)
def test_first_cells(room):
    cells = load(room)['cells']
    assert re.match(rf'# {module(room)}\n+> \S', text(cells[0])), 'a room opens with its name and a subtitle'
    assert text(cells[1]).strip()==f'#| default_exp {module(room)}'

def test_stored_outputs_are_small():
    for p in [*ROOMS, *PAGES]:
        for c in code(p):
            for o in c.get('outputs', []):
                assert len(str(o.get('text', '')).splitlines())<=40, f'{p.stem}: long output after {text(c)[:60]!r}'
        assert p.stat().st_size<700_000, f'{p.name}: {p.stat().st_size} bytes'

def test_report_holds_no_typed_results():
    md = '\n'.join(text(c) for c in load(REPORT)['cells'] if c['cell_type']=='markdown')
    found = re.findall(r'(?i)\b(?:accuracy|AUC|MAE|sensitivity)\b[^.\n]{0,30}?\d*\.\d+', md)
    if found: print('numbers typed in the report:', found)
    assert len(found)<10

def test_versions_agree():
    cfg = ConfigParser(delimiters=['=']); cfg.read(ROOT/'settings.ini'); c = cfg['DEFAULT']
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().split())
    want = [re.match(r'[\w-]+', r)[0] for r in (c['requirements']+' '+c['dev_requirements']).split()]
    assert not [w for w in want if w.lower().replace('_', '-') not in {p.lower().replace('_', '-') for p in pins}]
    assert pins['torch']=='2.13.0', 'a range would pull the CUDA build'
    assert f"__version__ = \"{c['version']}\"" in (ROOT/'neurossl'/'__init__.py').read_text()

def test_torchvision_is_absent(): assert importlib.util.find_spec('torchvision') is None, 'its only wheel for this torch breaks MONAI on a CPU'

def test_no_stray_files():
    r = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    tops = {f.split('/')[0] for f in r.stdout.split()}
    assert tops<=set('nbs neurossl examples settings.ini setup.py _quarto.yml tests data_manifest.csv constraints.txt Makefile Snakefile LICENSE CITATION.cff .gitignore .gitattributes .gitconfig .ci README.md CONTRIBUTING.md SECURITY.md benchmarks pytest.ini MANIFEST.in .github .pre-commit-config.yaml'.split()), tops

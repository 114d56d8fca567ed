"Pages and site: both renderers see the same notebooks, and a broken page is found by `check_site`."
import io, json, subprocess, sys
from pathlib import Path

import pytest

from neurossl import pages, site
from neurossl.core import Problem, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='

def md(s): return dict(cell_type='markdown', metadata={}, source=s)
def code(s, *outputs): return dict(cell_type='code', metadata={}, execution_count=None, outputs=list(outputs), source=s)
def nb(*cells, **meta): return dict(nbformat=4, nbformat_minor=5, metadata=meta, cells=[md(c) if isinstance(c, str) else c for c in cells])
def show(**data): return dict(output_type='display_data', metadata={}, data=data)
FIG = code('#| export\n#| label: fig-a\n#| fig-cap: "One: $x^2$, see @tbl-a and @delong1988."\n#| fig-alt: "a dot"\nplot()', show(**{'image/png': PNG, 'text/plain': '<Figure>'}))
DOT = code('#| label: fig-dot\n#| fig-cap: "A dot."\n#| fig-alt: "a dot"\nplot()', show(**{'image/png': PNG}))
TBL = code('#| label: tbl-a\n#| tbl-cap: "Two."\nt', show(**{'text/html': '<table class="dataframe"><tr><td>1</td></tr></table>'}))

@pytest.fixture
def project(tmp_path):
    "A small project under the real configuration, style and bibliography"
    for f in ('_quarto.yml', 'settings.ini', 'nbs/site.css', 'nbs/site_head.html', 'nbs/references.bib'):
        (tmp_path/f).parent.mkdir(exist_ok=True); (tmp_path/f).write_bytes((ROOT/f).read_bytes())
    write_json(tmp_path/'nbs/index.ipynb', nb('# home\n\n> Why', '`manifest > **volume**`\n\n[core](00_core.ipynb), [report](../results/report/report.ipynb), [set](../settings.ini)', DOT))
    write_json(tmp_path/'nbs/00_core.ipynb', nb('# core\n\n> Words', code('#| default_exp core'), code('#| hide\nsecret()'), code('#| export\nimport os'),
        '@fig-a, @tbl-a, [@zheng2024], [S1 table 2], $a_b*c*$ and @eq-a.\n\n$$\\hat x = \\frac{1}{2}$$ {#eq-a}', FIG, TBL, '::: {.callout-note title="Departure"}\nOurs.\n:::'))
    site.sync_sidebar(tmp_path)
    return tmp_path

def test_hidden_cells_and_directives_go():
    out = pages.strip_directives(nb('# t\n> s', code('#| hide\nx'), code('#|default_exp a'), code('#| export\n#| eval: false\ny = 1  #| not an option\n'), code('#| hide_input\nz')))
    assert [pages.cell_text(c) for c in out['cells'][1:]]==['#| eval: false\n#| label: "exported-0"\ny = 1  #| not an option\n', '#| echo: false\nz']
    assert all(isinstance(c['source'], list) for c in out['cells']) and pages.front(out)[0]==dict(title='t', subtitle='s')

def test_the_filter_changes_nothing_the_second_time():
    S = dict(S1='https://x.org')
    once = pages.strip_directives(nb('# t', 'See [S1 eq. 2] and [S1](a) and `[S1]`.', FIG, code('import os\nfrom a import (b,\n  c)')), S)
    assert pages.strip_directives(once, S)==once
    assert pages.cell_text(once['cells'][1])=='See [\\[S1 eq. 2\\]](https://x.org) and [S1](a) and `[S1]`.'

def test_the_filter_as_a_command():
    raw = nb('# t', code('#| export\nx = 1'))
    p = subprocess.run([sys.executable, '-m', 'neurossl.site'], input=json.dumps(raw), capture_output=True, text=True, cwd=ROOT/'nbs')
    assert p.returncode==0, p.stderr
    assert json.loads(p.stdout)==pages.strip_directives(raw)

def test_an_unknown_command_is_one_paragraph():
    p = subprocess.run([sys.executable, '-m', 'neurossl.site', 'bild'], capture_output=True, text=True, cwd=ROOT)
    assert p.returncode and 'Traceback' not in p.stderr and "Did you mean 'build'?" in p.stderr

def test_executed_notebooks_are_folded_and_rooms_are_not():
    folded = pages.resolve_refs(pages.strip_directives(nb('# t', code('x'), neurossl={})))
    assert pages.cell_options(folded['cells'][1])[0]=={'code-fold': True}
    assert pages.cell_options(pages.resolve_refs(pages.strip_directives(nb('# t', code('x'))))['cells'][1])[0]=={}

def test_code_is_never_touched():
    s = 'a `@fig-a $x$` b\n\n```sh\n$HOME @fig-a [@delong1988]\n```\n'
    assert pages.cell_text(pages.resolve_refs(nb('# t', s, FIG), {})['cells'][1])==s

def test_sections_are_numbered_where_the_page_asks():
    cells = '# One\n## Deep {#sec-d}\n# Two {#sec-t}\nSee @sec-d and @sec-t.'
    text = lambda front: ''.join(pages.cell_text(c) for c in pages.resolve_refs(nb(f'---\n{front}\n---', cells))['cells'])
    assert '[Section\u00a01.1](#sec-d) and [Section\u00a02](#sec-t)' in text('number-sections: true')
    assert '[Deep](#sec-d) and [Two](#sec-t)' in text('title: t')

def test_mathematics_survives_markdown():
    from smalldocs.markdown import render
    html = render(pages._math(r'Let $a*b*c_d + e_f^*$ and $x<y$; \$5 and \$6 are money.'), {})
    assert html.count('<math')==2 and '<em>' not in html and '&lt;' in html and '$5 and $6' in html

def test_the_bibliography_is_complete():
    bib = pages.read_bib((ROOT/'nbs/references.bib').read_text(encoding='utf-8'))
    assert pages.sources(bib).keys()>={'S1', 'S2', 'S3'}
    for k,b in bib.items():
        assert b['year'].isdigit() and k.endswith(b['year']) and len(b['text'])>60 and not set('{}\\')&set(b['text'].replace('\\&', '')), k
    assert bib['xing2020']['short']=='Xing et al.' and bib['nadeau2003']['short']=='Nadeau and Bengio'

def test_a_broken_bibliography_is_named():
    with pytest.raises(Problem, match='closing brace'): pages.read_bib('@article{a, title={Open')

def test_a_page_shows_figures_tables_references_and_mathematics(project):
    out = site.render(project); html = (out/'nbs/00_core.html').read_text(encoding='utf-8')
    for want in ('<a href="#fig-a">Figure\u00a01</a>', '<a href="#tbl-a">Table\u00a01</a>', 'id="ref-zheng2024"', 'id="ref-delong1988"', '(<a href="#ref-zheng2024">Zheng 2024</a>)',
                 '<a href="https://arxiv.org/abs/2406.14210">[S1 table 2]</a>', 'id="eq-a"', '(1)</span>', '<caption>Table\u00a01: Two.</caption>', 'alt="a dot"', 'callout-note', 'Departure'):
        assert want in html, want
    caption = html[html.index('<figcaption>'):html.index('</figcaption>')]
    assert '<math' in caption and '<a href="#ref-delong1988">' in caption and '&lt;' not in caption
    assert 'secret' not in html and 'default_exp' not in html and '<summary>Imports</summary>' in html
    assert not len(bad := site.check_site(out)), bad.to_string()

def test_what_does_not_exist_yet_is_not_offered(project):
    out = site.render(project); home = (out/'nbs/index.html').read_text(encoding='utf-8')
    assert 'report.html' not in home and 'Executed runs' not in home and 'blob/main/settings.ini' in home and 'class="stations"' in home
    write_json(project/'results/report/report.ipynb', nb('---\ntitle: Report\nabstract: In short $x$.\n---', DOT, neurossl={}))
    write_json(project/'results/probe-smoke/age-s0.ipynb', nb('---\ntitle: "Probe: age-s0"\n---', code('x'), neurossl={}))
    for kind in ('failed', 'part'): write_json(project/f'results/probe-smoke/age-s1.{kind}.ipynb', nb('# no'))
    out = site.render(project); home,report = ((out/p).read_text(encoding='utf-8') for p in ('nbs/index.html', 'results/report/report.html'))
    assert '../results/report/report.html' in home and 'probe-smoke' in home and '>age-s0<' in home and 'age-s1' not in home
    assert '<div class="abstract">' in report and not len(site.check_site(out))

def test_the_site_stands_alone(project):
    out = site.render(project)
    assert 'nbs/index.html' in (out/'index.html').read_text() and (out/'search.js').read_text().startswith('window.searchIndex=[')
    assert not [p for p in out.rglob('*.css') if '@import url(http' in p.read_text(encoding='utf-8')]
    assert not (project/'_proc').exists()

def test_a_failed_rendering_leaves_the_old_site(project):
    out = site.render(project); (project/'nbs/00_core.ipynb').write_text('{"cells": [')
    with pytest.raises(Problem, match='00_core'): site.render(project)
    assert (out/'nbs/00_core.html').exists()

def test_quarto_is_used_where_it_is_found(project, monkeypatch):
    tool = project/'bin'/'quarto'; tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nmkdir "$2/_site" && cp "$2/_quarto.yml" "$2/_site/" && cp "$2/nbs/00_core.ipynb" "$2/_site/core.json"\n'); tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tool.parent), prepend=':')
    out = site.build_site(project)
    assert (out/'core.json').exists() and '@fig-a' in (out/'core.json').read_text() and 'bibliography' in (out/'_quarto.yml').read_text()

def test_check_site_finds_what_jars(tmp_path):
    (tmp_path/'a.html').write_text('<p id="x">@tbl-q {{&lt; embed &gt;}} ::: {.cell} $$x$$</p><img src="https://e.org/a.png"><a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a><pre>#| export\ncode ::: @fig-q</pre>')
    (tmp_path/'a.css').write_text('@import url(https://fonts.example.org/x);'); (tmp_path/'big.html').write_text('<p>'+'x'*3_000_000)
    (tmp_path/'c.html').write_text('<html><b id="x"></b><b id="x"></b><figure><img alt="a" src="data:,"></figure>')
    found = set(site.check_site(tmp_path).problem)
    assert found=={'unresolved reference', 'raw shortcode', 'raw fence', 'raw attributes', 'raw TeX', 'raw directive', 'picture without alt', 'fetched from elsewhere', 'broken link', 'broken anchor', 'heavy page',
                    'id twice', 'page without language', 'picture without caption'}

def test_the_sidebar_lists_the_rooms():
    assert site.sync_sidebar(ROOT, write=False)==(ROOT/'_quarto.yml').read_text(encoding='utf-8'), 'run: python -m neurossl.site sync'

def test_a_page_that_nobody_placed_is_listed_under_more(project):
    write_json(project/'nbs/extra.ipynb', nb('# extra\n\n> One more')); text = site.sync_sidebar(project)
    assert '- nbs/extra.ipynb' in text and 'section: More' in text and text==site.sync_sidebar(project)
    assert 'extra.html' in (site.render(project)/'nbs/index.html').read_text(encoding='utf-8')
    (project/'nbs/extra.ipynb').unlink(); assert 'section: More' not in site.sync_sidebar(project)

def test_a_page_wears_its_origin_its_run_and_its_words(project):
    write_json(project/'nbs/glossary.ipynb', nb('# Glossary\n\n> Words', '### probe {#term-probe}\n\nA classifier.'))
    for name in ('s1-probe-smoke/age-s0', 'real/clinic'):
        write_json(project/f'results/{name}.ipynb', nb('---\ntitle: "Probe: x"\n---', 'A probe.', DOT, neurossl=dict(git='ab'*20, params=dict(profile='smoke', scans='secret-folder'), wall_s=61), papermill=dict(x=1)))
    out = site.render(project); page,real = ((out/f'results/{p}.html').read_text(encoding='utf-8') for p in ('s1-probe-smoke/age-s0', 'real/clinic'))
    assert '<strong>smoke</strong>' in page and 'ababababab' in page and '1:01' in page and 'href="../../nbs/glossary.html#term-probe"' in page
    copy = read_json(out/'notebooks/results/s1-probe-smoke/age-s0.ipynb'); assert 'papermill' not in copy['metadata'] and len(copy['cells'])==3
    caption = page[page.index('<figcaption>'):page.index('</figcaption>')]; assert 'notebooks/results/s1-probe-smoke/age-s0.ipynb' in caption and 'source notebook' in caption
    assert not (out/'notebooks/results/real').exists() and 'source notebook' not in real and (out/'notebooks/nbs/00_core.ipynb').exists()
    assert not len(bad := site.check_site(out)), bad.to_string()

def test_what_a_page_shows_of_the_study_is_made_with_the_site(project):
    from neurossl.exhibits import EXHIBITS
    write_json(project/'nbs/shelf.ipynb', nb('# shelf\n\n> All', *[code(f'#| echo: false\n#| exhibit: {k}\n{k}()') for k in EXHIBITS]))
    key = site.page_key(project); html = (site.render(project)/'nbs/shelf.html').read_text(encoding='utf-8')
    for k,mark in dict(cards='card-verdict', explorer='class="sortable"', costs='hours', gallery='href="00_core.html#fig-a"', house='id="room-core"').items(): assert mark in html, k
    assert not len(bad := site.check_site(project/'_site')), bad.to_string()
    table = project/'results/tables/smoke/runs.csv'; table.parent.mkdir(parents=True); table.write_text('run,grid,template,complete,notebook,git,dirty,wall_s,params\na/b-s0,a,probe,True,results/a/b.ipynb,1e10,False,12.5,{}\n')
    assert site.page_key(project)!=key and '<td>1e10</td>' in (site.render(project), (project/'_site/nbs/shelf.html').read_text(encoding='utf-8'))[1]
    write_json(project/'nbs/shelf.ipynb', nb('# shelf', code('#| exhibit: galery\nx')))
    with pytest.raises(Problem, match="Did you mean 'gallery'"): site.render(project)

def test_an_unknown_word_of_the_glossary_stays_as_it_is():
    terms = pages.terms_of(nb('# G', '### AD, Alzheimer\'s disease {#term-ad}', '### probe {#term-probe}'))
    assert terms=={'AD': 'term-ad', "Alzheimer's disease": 'term-ad', 'probe': 'term-probe'}
    say = lambda s: pages.cell_text(pages.link_terms(nb(s), terms, 'g.ipynb')['cells'][0])
    assert say('ad hoc, AD and Probes')=='ad hoc, [AD](g.ipynb#term-ad){.term} and [Probes](g.ipynb#term-probe){.term}'
    for s in ('# probe', '`probe` $probe$ [probe](x) ![probe](y.png)', 'a-probe probe_x reprobed', '| probe | x |', '::: {.probe}', '```\nprobe\n```', 'https://a.org/probe'): assert say(s)==s, s

API = '''def fit(
    x, y,            # scans, ages
    lr:float=1e-3,   # step; `0` < lr
    fs=(lambda v: v),
    *rest, seed=0,   # of the order
)->dict[str, float]: # loss of each epoch
    "Fit a <network>"
def near(a, b): return a # the closer one
def table(
    n, # rows
):     # DataFrame
    "A table"
def _private(x): pass
class Net(Base):
    "A network"
    def __init__(self,
        size=3, # voxels
    ): self.size = size
    def forward(self, x:int)->int: # (B,)
        "Apply it"
    @property
    def depth(self): "Layers"; return 1
    @staticmethod
    def load(path): "Read it"
    def _hide(self): pass
@dataclass(frozen=True)
class Recipe:
    "Numbers"
    mm:float=1. # spacing, mm
    _kept:int=0
'''

def test_the_reference_says_what_signatures_and_comments_say():
    from neurossl.dress import api_of
    got = {x['name']: x for x in api_of(API)}; assert list(got)==['fit', 'near', 'table', 'Net', 'Recipe']
    assert got['fit']['params']==[('x', '', '', 'scans, ages'), ('y', '', '', 'scans, ages'), ('lr', '1e-3', 'float', 'step; `0` < lr'), ('fs', 'lambda v: v', '', ''), ('*rest', '', '', 'of the order'), ('seed', '0', '', 'of the order')]
    assert got['fit']['returns']==('dict[str, float]', 'loss of each epoch') and got['fit']['doc']=='Fit a <network>'
    assert (got['near']['note'], got['near']['params'][0], got['near']['returns'])==('the closer one', ('a', '', '', ''), ('', ''))
    assert got['table']['returns']==('', 'DataFrame') and got['table']['params']==[('n', '', '', 'rows')]
    net = got['Net']; assert net['params']==[('size', '3', '', 'voxels')] and net['returns']==('', '')
    assert [(m['name'], m['doc'], [p[0] for p in m['params']]) for m in net['methods']]==[('forward', 'Apply it', ['x']), ('depth', 'Layers', []), ('load', 'Read it', ['path'])]
    assert got['Recipe']['params']==[('mm', '1.', 'float', 'spacing, mm')]

def test_a_room_shows_its_reference(project):
    f = project/'nbs/00_core.ipynb'; raw = read_json(f); raw['cells'] += [md('## Near'), code('#| export\n'+API), code('#| hide\n#| export\ndef hidden(): pass'), code('def shown(): pass')]; write_json(f, raw)
    out = site.render(project); page = (out/'nbs/00_core.html').read_text(encoding='utf-8')
    for want in ('<p id="fit">', '<p id="api-near">', '<p id="Net">', '<td rowspan=2>scans, ages</td>', '<code>0</code> &lt; lr', 'Fit a &lt;network&gt;', 'Returns <code>dict[str, float]</code>: loss of each epoch', '<code>depth</code></td><td>Layers', '<code>load(path)</code>'):
        assert want in page, want
    for no in ('API: <code>_private', '<code>_hide', 'id="hidden"', 'id="shown"', 'id="plot"'): assert no not in page, no
    assert 'class="api"' not in (out/'nbs/index.html').read_text(encoding='utf-8') and 'API: near' in (out/'search.json').read_text(encoding='utf-8')
    assert not len(bad := site.check_site(out)), bad.to_string()

def test_a_new_page_changes_the_key(project):
    key = site.page_key(project)
    assert key==site.page_key(project)
    (project/'nbs/site.css').write_text('p {}')
    assert key!=site.page_key(project)

def test_readme(project):
    write_json(project/'nbs/index.ipynb', nb('# home\n\n> Why', 'See [core](00_core.ipynb#words), [runs](../results/x.ipynb) and <https://a.org>.\n\n::: {.callout-note title="Departure"}\nOurs.\n:::\n\n`manifest > **volume**`',
        code('#| hide\nimport os'), code('1+1', show(**{'text/plain': '2'})), FIG))
    text = site.write_readme(project/'nbs/index.ipynb', project/'README.md').read_text()
    for want in ('# home\n\n> Why\n', '[core](nbs/00_core.ipynb#words), runs and <https://a.org>', '> **Departure.**\n>\n> Ours.', 'manifest → **volume**\n', '```python\n1+1\n```\n\n```\n2\n```', '![a dot](nbs/assets/a.png)'):
        assert want in text, want
    assert ':::' not in text and 'import os' not in text and (project/'nbs/assets/a.png').read_bytes()[:4]==b'\x89PNG'

@pytest.mark.skipif(not ((ROOT/'nbs/index.ipynb').exists() and (ROOT/'README.md').exists()), reason='no home page yet')
def test_the_readme_is_the_home_page():
    text,pics = site.readme_text(ROOT/'nbs/index.ipynb', ROOT)
    assert (ROOT/'README.md').read_text(encoding='utf-8')==text, 'run: python -m neurossl.site readme'
    for name,png in pics.items(): assert (ROOT/name).read_bytes()==png, name

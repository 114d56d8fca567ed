"The site in a real browser, from a folder and without a network: every page, and everything a reader can press"
import json
from pathlib import Path

import pandas as pd
import pytest

import chromium
from neurossl import site
from neurossl.core import write_json

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT/'runs'/'browser' # kept for whoever looks
pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.find() is None, reason='no Chromium: install it (apt-get install chromium) or name it in CHROMIUM')]
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The site of this checkout with three executed runs and a report beside it"
    home = tmp_path_factory.mktemp('project')
    for f in ('nbs', '_quarto.yml', 'settings.ini'): (home/f).symlink_to(ROOT/f)
    rows = []
    for i,(arm,secs) in enumerate([('age', 30.5), ('rotation', 9.25), ('recon', 100.)]):
        run = f's1-pretext/{arm}-s0'; nb = f'results/s1-pretext-smoke/{arm}-s0.ipynb'
        rows.append(dict(run=run, grid='s1-pretext', template='pretrain', complete=True, notebook=nb, git='0'*40, dirty=False, wall_s=secs, params=json.dumps(dict(arm=arm, seed=0))))
        write_json(home/'runs/smoke'/run/'run.json', dict(run=f'smoke/{run}', metrics=dict(valid_loss=1.+i), template='pretrain'))
        cells = [dict(cell_type='raw', id='a', metadata={}, source=f'---\ntitle: "Pretrain: {arm}-s0"\n---'), dict(cell_type='code', id='b', metadata={}, execution_count=1, outputs=[], source='fit(encoder)')]
        write_json(home/nb, dict(nbformat=4, nbformat_minor=5, metadata=dict(neurossl=dict(git='0'*40, params=dict(profile='smoke'), wall_s=secs)), cells=cells))
    (home/'results/tables/smoke').mkdir(parents=True); pd.DataFrame(rows).to_csv(home/'results/tables/smoke/runs.csv', index=False)
    report = ['---\ntitle: Report\nabstract: In short, $p<.05$.\n---', '## Claims {#claims}\n\nSee @fig-a and [@delong1988].']
    fig = dict(cell_type='code', id='f', metadata={}, execution_count=1, source='#| label: fig-a\n#| fig-cap: "A dot, $x^2$."\n#| fig-alt: "a dot"\nplot()', outputs=[dict(output_type='display_data', metadata={}, data={'image/png': PNG})])
    write_json(home/'results/report/report.ipynb', dict(nbformat=4, nbformat_minor=5, metadata=dict(neurossl=dict(params=dict(profile='smoke'))),
        cells=[dict(cell_type='raw' if i==0 else 'markdown', id=f'm{i}', metadata={}, source=s) for i,s in enumerate(report)]+[fig]))
    out = site.render(home); bad = site.check_site(out)
    assert not len(bad), bad.to_string()
    return out

@pytest.fixture(scope='module')
def tab():
    b = chromium.Browser()
    yield b
    b.close()

LOOK = '''(() => {
  const prose = document.body.cloneNode(true); prose.querySelectorAll("pre, code, script, style, math").forEach((e) => e.remove());
  const tex = prose.textContent.match(/\\\\$\\\\$|\\\\\\\\(frac|sum|alpha|text|mathbf|begin|hat)\\\\b|(^|\\\\s)\\\\$[^$\\\\s][^$]*\\\\$/);
  return {title: document.title, tex: tex && tex[0], noalt: [...document.images].filter((i) => !i.alt.trim()).length, blank: [...document.images].filter((i) => i.complete && !i.naturalWidth).length};
})()'''.replace('\\\\', '\\')

def test_every_page_loads_fits_a_phone_and_shows_no_raw_marks(built, tab):
    wrong,n = [],0
    for p in sorted(built.rglob('*.html')):
        if p==built/'index.html': continue # the door
        tab.open(p); n += 1; name = p.relative_to(built).as_posix(); seen = tab.run(LOOK)
        if tab.errors: wrong.append((name, 'console', tab.errors[:2]))
        if away := [u for u in tab.fetched if not u.startswith(('file:', 'data:', 'blob:', 'about:'))]: wrong.append((name, 'fetched', away[:2]))
        if seen['tex'] or seen['noalt'] or seen['blank'] or not seen['title']: wrong.append((name, seen))
        tab.size(390)
        if (wide := tab.run('document.documentElement.scrollWidth'))>390: wrong.append((name, 'scrolls sideways at 390 px', wide, tab.run('''[...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right>391 && !e.closest(".scroll, pre, .cell-output-display, table, .math")).slice(0, 3).map((e) => e.tagName+"."+e.className)''')))
    assert n>70 and not wrong, wrong

def test_the_door_leads_home(built, tab):
    tab.open(built/'index.html'); tab.wait('location.pathname.endsWith("nbs/index.html") && document.querySelector(".card-verdict")')
    tab.shot(SHOTS/'home.png'); tab.size(390, 2400); tab.shot(SHOTS/'home-390.png')
    assert tab.run('document.querySelectorAll(".card-verdict").length')==3 and tab.run('document.querySelectorAll(".door a").length')>9

def test_search_finds_clahe(built, tab):
    tab.open(built/'nbs/index.html'); tab.run('[...document.querySelectorAll(".smalldocs-search input")].find((e) => e.offsetParent).focus()'); tab.type('CLAHE')
    found = tab.wait('[...document.querySelectorAll(".search-result")].map((e) => e.textContent).join("|")'); tab.shot(SHOTS/'search.png')
    assert 'clahe' in found.lower()
    tab.key('Enter'); tab.wait('!location.pathname.endsWith("nbs/index.html") && document.readyState=="complete"')
    assert not tab.errors and 'clahe' in tab.run('document.body.textContent.toLowerCase()')

ROWS = '[...document.querySelectorAll(".sortable tbody tr")].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)'
def column(tab, name): return tab.run(f'[...document.querySelectorAll(".sortable thead th")].findIndex((h) => h.textContent=={json.dumps(name)})+1')

def test_the_explorer_filters_sorts_and_opens_a_run(built, tab):
    tab.open(built/'nbs/runs.html'); every = len(tab.run(ROWS)); profile = column(tab, 'profile'); assert every>=3
    tab.run(f'(() => {{ const m = document.querySelector("select[data-column=\'{profile-1}\']"); m.value = "smoke"; m.dispatchEvent(new Event("change")); }})()')
    assert sorted(tab.run(ROWS))==['age-s0', 'recon-s0', 'rotation-s0'] and tab.run('document.querySelector(".sortable output").textContent')==f'3 of {every} rows'
    head = f'.sortable thead th:nth-child({column(tab, "seconds")})'
    tab.click(f'{head} button'); assert tab.run(ROWS)==['rotation-s0', 'age-s0', 'recon-s0'] and tab.run(f'document.querySelector("{head}").ariaSort')=='ascending' # as numbers, 9.25 before 30.5
    tab.click(f'{head} button'); assert tab.run(ROWS)==['recon-s0', 'age-s0', 'rotation-s0']; tab.shot(SHOTS/'runs.png')
    tab.run('document.querySelector(".sortable input").focus()'); tab.type('rotation'); assert tab.run(ROWS)==['rotation-s0']
    tab.click('.sortable tbody tr:not([hidden]) a'); tab.wait('location.pathname.endsWith("rotation-s0.html") && document.querySelector(".facts")')
    facts = tab.run('document.querySelector(".facts").textContent'); assert 'profile smoke' in facts and 'source notebook' in facts

def test_dark_and_light(built, tab):
    tab.open(built/'nbs/33_brainage.html'); ground = 'getComputedStyle(document.body).backgroundColor'; dark = 'document.documentElement.classList.contains("quarto-dark")'
    was = tab.run(ground), tab.run(dark); tab.run('document.querySelector(".quarto-color-scheme-toggle").click()'); tab.wait(f'{dark}!={json.dumps(was[1])}')
    assert tab.run(ground)!=was[0]; tab.shot(SHOTS/'dark.png')
    tab.open(built/'nbs/index.html'); tab.wait(f'{dark}!={json.dumps(was[1])}'); tab.shot(SHOTS/'home-dark.png') # remembered
    tab.run('document.querySelector(".quarto-color-scheme-toggle").click()'); tab.wait(f'{dark}=={json.dumps(was[1])}')

def test_the_slider_moves_the_slices(built, tab):
    tab.open(built/'nbs/slices.html'); at = 'getComputedStyle(document.querySelector(".slices [role=img]")).backgroundPosition'
    was = tab.run(at); tab.run('document.querySelector(".slices input").focus()')
    for _ in range(3): tab.key('ArrowRight')
    assert tab.run(at)!=was and tab.run('document.querySelector(".slices input").getAttribute("aria-valuetext")').startswith('slice '); tab.shot(SHOTS/'slices.png')

def test_the_house_shows_what_a_room_stands_on_and_opens_it(built, tab):
    tab.open(built/'nbs/house.html'); tab.hover('#room-site'); tab.wait('document.querySelector("#room-pages.needed")'); tab.shot(SHOTS/'house.png')
    assert tab.run('document.querySelector("#room-core.user")') is None
    tab.hover('#room-pages'); tab.wait('document.querySelector("#room-site.user") && document.querySelector("#room-core.needed")')
    tab.click('#room-volume'); tab.wait('location.pathname.endsWith("02_volume.html")')

def test_a_picture_of_the_gallery_leads_to_its_cell(built, tab):
    tab.open(built/'nbs/gallery.html'); tab.shot(SHOTS/'gallery.png'); assert tab.run('document.querySelectorAll(".thumb").length')>40
    tab.click('.thumb'); tab.wait('location.hash.startsWith("#fig-") && document.querySelector(location.hash)')
    assert tab.run('document.querySelector(location.hash+" figcaption .source").href').endswith('report.ipynb')

def test_the_keyboard_reaches_everything(built, tab):
    "Tab goes through links, buttons and menus, and each shows that it has the focus"
    tab.open(built/'nbs/runs.html'); tab.run('document.body.focus()'); seen = []
    for _ in range(150):
        tab.key('Tab'); seen.append(tab.run('(() => { const e = document.activeElement; return [e.tagName, e.closest("th") ? "head" : e.closest(".tools") ? "tools" : e.className.includes("scroll") ? "scroll" : "", getComputedStyle(e).outlineStyle]; })()'))
        if any(s[1]=='head' for s in seen): break
    assert {'tools', 'scroll', 'head'}<={s[1] for s in seen} and all(o!='none' for tag,where,o in seen if where in ('head', 'scroll'))

def test_code_is_folded_in_runs_and_open_in_rooms(built, tab):
    tab.open(built/'results/s1-pretext-smoke/age-s0.html'); assert tab.run('[...document.querySelectorAll("details.code-fold, details")].some((d) => !d.open && d.textContent.includes("fit(encoder)"))')
    tab.open(built/'nbs/33_brainage.html'); assert tab.run('[...document.querySelectorAll("pre")].some((p) => p.textContent.includes("def brain_age") && !p.closest("details"))')

def test_a_word_leads_to_the_glossary(built, tab):
    tab.open(built/'nbs/31_probes.html'); tab.click('main a.term'); tab.wait('location.pathname.endsWith("glossary.html") && document.querySelector(location.hash)')

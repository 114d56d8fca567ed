"Checklists, model card and datasheet: filled from the records, or said to be empty"
import json

import pandas as pd
import pytest

from neurossl.cards import checklist, datasheet, facts, linked, model_card
from neurossl.core import Problem, paths
from neurossl.report import Results, claim_cards, flow_diagram, results_of
from neurossl.ledger import judge, read_ledger

def tables(home, seeds=(0, 1), excluded=3):
    home.mkdir(parents=True, exist_ok=True); rows = []
    for s in seeds:
        rows.append(dict(run=f's1-pretext/age-s{s}', grid='s1-pretext', template='pretrain', complete=True, git='abc', wall_s=9., excluded=0, params=json.dumps(dict(profile='full', task='age', arm='age', seed=s))))
        rows.append(dict(run=f's1-probe/age-s{s}', grid='s1-probe', template='probe', complete=True, git='abc', wall_s=9., excluded=excluded, params=json.dumps(dict(profile='full', arm='age', seed=s, n_train=[77]))))
    rows.append(dict(rows[0], run='s1-pretext/age-s9', complete=False, params=json.dumps(dict(profile='full', task='age', arm='age', seed=9))))
    pd.DataFrame(rows).to_csv(home/'runs.csv', index=False)
    pd.DataFrame([dict(arm='age', task='age', seed=s, metric='mae_years', value=5.+s, reference=10.5) for s in seeds]).to_csv(home/'pretext.csv', index=False)
    pd.DataFrame([dict(judged='clinical_a, sealed', why='any', pairs=2)]).to_csv(home/'contamination.csv', index=False)
    pd.DataFrame([dict(name='torch', version='2.13.0', runs=4), dict(name='machine', version='m', runs=4)]).to_csv(home/'environment.csv', index=False)
    return Results('full', home)

def test_facts_follow_the_runs(tmp_path):
    f = facts(tables(tmp_path/'a')); assert f['n_done']=='4' and f['seeds']=='0, 1' and f['n_train']=='77' and f['contaminated']=='2' and f['n_excluded']=='3 at most' and f['software']=='torch 2.13.0'
    g = facts(tables(tmp_path/'b', (0, 1, 2), 5)); assert g['seeds']=='0, 1, 2' and g['n_excluded']=='5 at most', 'a run more is a fact changed'

def test_unfinished_runs_are_no_facts(tmp_path): assert '9' not in facts(tables(tmp_path))['seeds']

def test_nothing_run_is_said(tmp_path):
    r = Results('full', tmp_path/'none'); f = facts(r)
    assert f['n_done']=='no' and f['seeds']==f['software']=='not run' and 'was not run' in model_card(r) and 'not run' in datasheet(r)
    assert all(checklist(n, f).answer.str.len().gt(0).all() for n in ('CLAIM', 'TRIPOD+AI'))

def test_checklists_are_whole_and_lead_somewhere():
    f = facts(results_of('full')); report = json.dumps(json.loads((paths().nbs/'report'/'report.ipynb').read_text(encoding='utf-8')))
    for name,n in (('CLAIM', 42), ('TRIPOD+AI', 27)):
        t = checklist(name, f); assert t.item.astype(int).tolist()==list(range(1, n+1)) and not t.answer.str.contains('[{}]', regex=True).any()
        for w in t['where']:
            if w.startswith('report#'): assert (f'label: {w[7:]}\\n' in report) or ('{#'+w[7:]+'}' in report), w
            elif w and w!='report': assert (paths().nbs/f'{w}.ipynb').exists(), w
        text = linked(t); assert text.count('\n')==n+1 and '](#tbl-' in text

def test_a_hole_that_nothing_fills_is_an_error(tmp_path):
    (tmp_path/'c.csv').write_text('list,item,topic,answer,where\nCLAIM,1,title,{nonsense},\n')
    with pytest.raises(Problem, match='nonsense'): checklist('CLAIM', {}, tmp_path/'c.csv')

def test_model_card_prints_the_runs_of_its_arm(tmp_path):
    r = tables(tmp_path); c = model_card(r); assert '5.5 over 2 seeds, without learning 10.5' in c and 'Not for' in c and 'ages' in c
    assert 'was not run' in model_card(r, 'rotation')

def test_every_claim_has_a_card():
    claims = read_ledger(); shown = claim_cards(judge(claims), claims); page = shown._repr_html_()
    assert page.count('<section')==len(claims) and all(f'id="{i.lower()}"' in page for i in claims.id) and 'nan' not in page
    with pytest.raises(Problem, match='on one side only'): claim_cards(judge(claims)[1:], claims)

def test_flow_draws_each_count_once():
    t = pd.DataFrame([dict(cohort='a', split='sealed', step=s, scans=n, subjects=n) for s,n in (('all', 30), ('CN or AD', 20))])
    texts = [x.get_text() for x in flow_diagram(t).axes[0].texts]; assert sum('30 scans' in x for x in texts)==1 and sum('20 scans' in x for x in texts)==1 and 'CN or AD' in texts

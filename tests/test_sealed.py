"The notebook that opens the sealed cohort, at its smallest"
import pandas as pd
import pytest

from neurossl.core import read_json
from neurossl.run import run_notebook
from neurossl.seal import read_log

def opened(tmp_path, n, **kw):
    run_notebook('sealed', tmp_path/f'{n}.ipynb', dict(dict(profile='smoke', who='a test', result='a lesson', features=['random-init', 'age+sex'], cohorts=['clinical_b'],
                                                            n_train=[20], log=str(tmp_path/'log.csv'), out=str(tmp_path/f'run{n}')), **kw))
    return tmp_path/f'run{n}'

@pytest.mark.slow # .ci/run runs it
def test_opening_twice_is_visible_and_judges_other_people(tmp_path):
    run = opened(tmp_path, 1); r = pd.read_csv(run/'results.csv'); pred = pd.read_csv(run/'predictions.csv')
    assert set(r.arm)=={'random-init', 'age+sex'} and r.result.eq('a lesson').all() and r[r.metric.eq('auc')].value.between(0, 1).all()
    assert pred.scan_id.str.startswith('clinical_b-s-').all() and pred.split.eq('test').all(), 'only sealed scans are judged'
    assert read_json(run/'run.json')['template']=='sealed' and read_log(tmp_path/'log.csv').opening.tolist()==[1]
    opened(tmp_path, 2, features=['age+sex'])
    log = read_log(tmp_path/'log.csv')
    assert log.opening.tolist()==[1, 2] and log.who.eq('a test').all() and log.result.eq('a lesson').all()

@pytest.mark.slow
def test_nobody_opens_it_without_a_name(tmp_path):
    with pytest.raises(Exception, match='plain text of 1 to 200'): opened(tmp_path, 3, who='')
    assert len(read_log(tmp_path/'log.csv'))==0

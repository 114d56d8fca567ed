"Room 01: a table is read as it stands, or refused with the cell that is wrong"
import os, string

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from neurossl.manifest import (COLUMNS, SPLITS, ManifestError, check_manifest, cohort_table, duplicates, empty_manifest, flow_table, neutralise, parse_age,
                               read_manifest, read_rows, restore, scan_path, subset, write_manifest)

HEAD = 'scan_id,cohort,subject,session,age,sex,dx,site,path\n'
ROWS = HEAD + '001,a,a-1,1,63,F,CN,NA,a/1.nii\n002,a,a-1,2,64,F,MCI,None,a/2.nii\n003,a,a-2,1,70.25,M,AD,null,a/3.nii\n'

def put(tmp_path, text, name='my.csv', encoding='utf-8'):
    p = tmp_path/name; p.write_bytes(text.encode(encoding) if isinstance(text, str) else text); return p

def refused(tmp_path, text, *contains, **kw):
    with pytest.raises(ManifestError) as e: read_manifest(put(tmp_path, text), **kw)
    for c in contains: assert c in str(e.value), str(e.value)
    assert '\n' not in str(e.value)
    return str(e.value)

def test_text_stays_text(tmp_path):
    m = read_manifest(put(tmp_path, ROWS))
    assert list(m.index)==['001', '002', '003'] and list(m.site)==['NA', 'None', 'null'] and list(m.columns)==list(COLUMNS)
    assert m.index.name=='scan_id' and list(m.age)==[63, 64, 70.25] and m.synthetic.eq(False).all() and m['index'].isna().all()

@pytest.mark.parametrize('sep', [',', ';', '\t', '|'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_separators_line_ends_and_marks(sep, end, encoding, tmp_path):
    m = read_manifest(put(tmp_path, ROWS.replace('\n', end).replace(',', sep), encoding=encoding))
    pd.testing.assert_frame_equal(m, read_manifest(put(tmp_path, ROWS)))

def test_quotes_decimal_commas_and_blank_lines(tmp_path):
    m = read_manifest(put(tmp_path, ROWS.replace(',', ';').replace('70.25', '70,25').replace('null', '"a;""b"""')+'\n\n'))
    assert m.age['003']==70.25 and m.site['003']=='a;"b"'

@pytest.mark.parametrize('data,contains', [
    (b'', 'an empty file'), (b' \n\n', 'an empty file'), (HEAD.encode(), 'a header without rows'), (b'PK\3\4'+bytes(99), 'workbook'), (b'\x1f\x8b\x08', 'archive'),
    (ROWS.encode('utf-16'), 'CSV UTF-8'), (ROWS.encode('utf-16-le'), 'CSV UTF-8'), ((ROWS+'4,a,a-4,1,63,F,CN,K\xf6ln,x.nii\n').encode('latin-1'), 'line 5'),
    (ROWS.replace('scan_id', 'scanid').encode(), "Rename 'scanid'."), (ROWS.replace('session', 'age').encode(), "'age' twice"),
    (ROWS.replace('dx', 'Age').encode(), "Did you mean 'age'?"), (ROWS.replace('cohort', 'colour').encode(), 'colour'), (ROWS.replace('subject', 'mask').encode(), "'subject'"),
    ((ROWS+'4,a,a-4,1,63,5,F,CN,s,x.nii\n').encode(), 'line 5: found 10 cells'), ((ROWS+'4,a\n').encode(), 'line 5: found 2 cells'),
    ((ROWS+'"4,a').encode(), 'broken quoting'), (b'no table at all', 'scan_id')])
def test_broken_files(data, contains, tmp_path):
    with pytest.raises(ManifestError) as e: read_manifest(put(tmp_path, data))
    assert contains in str(e.value), str(e.value)

def test_absent_files_and_folders(tmp_path):
    for p in (tmp_path/'gone.csv', tmp_path):
        with pytest.raises(ManifestError, match='Check the path'): read_manifest(p)

@pytest.mark.parametrize('t,years', [('63', 63), ('63.5', 63.5), ('63,5', 63.5), ('063Y', 63), ('63 years', 63), ('756M', 63), ('0', 0), ('120', 120), ('365D', 365/365.25), ('5218W', 5218*7/365.25)])
def test_ages(t, years): assert np.isclose(parse_age(t), years)

@pytest.mark.parametrize('t,contains', [('1941-02-03', 'Dates identify'), ('03.02.1941', 'Dates identify'), ('2/3/41', 'Dates identify'), ('19410203', 'Dates identify'), ('3-Feb-1941', 'Dates identify'),
    ('1941-02-03T00:00', 'Dates identify'), ('1941', 'year of birth'), ('756', 'months (63.0'), ('27000', 'days (73.9'), ('-1', 'Give years'), ('inf', 'Give years'), ('1e400', 'Give years'), ('1e-400e', 'Give years'),
    ('NA', 'leave the cell empty'), ('n/a', 'leave the cell empty'), ('90+', 'Give years'), ('sixty', 'Give years'), ('999999', 'Give years')])
def test_no_ages(t, contains, tmp_path):
    said = refused(tmp_path, ROWS.replace('70.25', t), contains, "scan '003', column age")
    assert '1941' not in said and 'Feb' not in said

@pytest.mark.parametrize('old,new,contains', [
    ('AD,', 'ad ,', "Did you mean 'AD'?"), ('AD,', 'Alzhimer,', "Did you mean 'AD'?"), ('AD,', 'Dementia,', "Did you mean 'AD'?"), ('CN,', 'NC,', "Did you mean 'CN'?"), ('MCI,', 'EMCI,', "Did you mean 'MCI'?"),
    ('AD,', 'NA,', "one of CN, MCI, AD, or an empty cell"), ('M,AD', 'X,AD', 'one of F, M'), ('M,AD', '2,AD', 'sex='), ('003', '<b>3</b>', 'letters, digits'), ('003', 'a/../b', 'letters, digits'),
    ('003', '..', 'letters, digits'), ('003', '"a\nb"', 'letters, digits'), ('003', '$x^2$', 'letters, digits'), ('003', 'x'*201, 'letters, digits'), ('003', '', 'letters, digits'), ('003', '001', 'each scan_id once'),
    ('a-2', 'a 2', 'letters, digits'), ('a/3.nii', '/etc/passwd', 'below it'), ('a/3.nii', '../../etc', 'below it'), ('a/3.nii', 'C:\\x.nii', 'below it'), ('a/3.nii', 'a\\3.nii', 'below it'),
    ('a/3.nii', 'https://x/y.nii', 'below it'), ('a/3.nii', '~/x.nii', 'below it'), ('a/3.nii', 'a/2.nii', 'each file in one row'), ('null', '"x\ny"', 'line breaks'), ('null', ' x', 'blanks'),
    ('null', '<script>', 'markup'), ('2,64,F', '2,64,M', 'one sex'), ('2,64', '2,60', 'grows'), ('2,64', '1,63', 'one diagnosis for one session')])
def test_wrong_cells(old, new, contains, tmp_path):
    assert old in ROWS
    i = ROWS.rindex(old)
    refused(tmp_path, ROWS[:i]+new+ROWS[i+len(old):], contains, 'my.csv')

def test_more_wrong_cells():
    base = dict(scan_id='x', cohort='a', subject='a-1')
    for bad in (dict(field_T=-3.), dict(dx_gap_days=np.inf), dict(seed=-1), dict(sha256='xyz'), dict(fingerprint='00'), dict(split='training'), dict(age=121.), dict(dx_rule='a\nb')):
        with pytest.raises(ManifestError): check_manifest(empty_manifest([base|bad]))
    text = pd.DataFrame([base])
    for bad in (dict(synthetic='maybe'), dict(seed='1.5'), dict(field_T='3T'), dict(dx_gap_days='1_0'), dict(subject=7), dict(dx_gap_days='nan')):
        with pytest.raises(ManifestError): check_manifest(text.assign(**bad))
    with pytest.raises(ManifestError, match="Did you mean 'dx'"): empty_manifest([base|dict(dxx='AD')])
    with pytest.raises(ManifestError): empty_manifest([dict(cohort='a')])
    with pytest.raises(ManifestError, match='named with their cohort'): check_manifest(empty_manifest([base|dict(subject='1'), base|dict(scan_id='y', cohort='b', subject='1')]))
    assert len(check_manifest(empty_manifest([base|dict(cohort='adni1', subject='adni-1'), base|dict(scan_id='y', cohort='adni2', subject='adni-1')])))==2
    with pytest.raises(ManifestError, match='upper and lower'): check_manifest(empty_manifest([base, base|dict(scan_id='X', subject='a-2')]))

def test_sex_spellings_and_maps(tmp_path):
    m = read_manifest(put(tmp_path, ROWS.replace(',F,', ',female,').replace(',M,', ',Male,')))
    assert list(m.sex)==['F', 'F', 'M']
    m = read_manifest(put(tmp_path, ROWS.replace(',F,', ',2,').replace(',M,', ',1,')), sex={'1': 'M', '2': 'F'})
    assert list(m.sex)==['F', 'F', 'M']
    refused(tmp_path, ROWS.replace(',F,', ',2,').replace(',M,', ',9,'), "'9'", sex={'2': 'F'})

def test_sessions_without_order_are_not_compared(tmp_path):
    rows = [dict(scan_id=str(i), cohort='a', subject='a-1', session=s, age=a) for i,(s,a) in enumerate([('ses-2', 60.), ('ses-10', 61.), ('followup', 70.), ('screening', 59.)])]
    assert len(check_manifest(empty_manifest(rows)))==4
    rows[1]['age'] = 59.
    with pytest.raises(ManifestError, match='grows from session'): check_manifest(empty_manifest(rows))

def test_paths_stay_below_the_root(tmp_path):
    root = tmp_path/'root'; (root/'a').mkdir(parents=True); (tmp_path/'secret.nii').write_bytes(b'x')
    for n in '123': (root/'a'/f'{n}.nii').write_bytes(b'x')
    p = put(tmp_path, ROWS)
    assert len(read_manifest(p, root=root))==3
    (root/'a'/'3.nii').unlink(); (root/'a'/'3.nii').symlink_to(root/'a'/'1.nii')
    assert len(read_manifest(p, root=root))==3 # a link that stays inside
    for target in (tmp_path/'secret.nii', '3.nii'):
        (root/'a'/'3.nii').unlink(); (root/'a'/'3.nii').symlink_to(target)
        with pytest.raises(ManifestError): read_manifest(p, root=root)
    (root/'a'/'3.nii').unlink()
    with pytest.raises(ManifestError, match="scan '003', column path"): read_manifest(p, root=root)
    assert scan_path(root, 'a/1.nii').is_absolute()
    for bad in ('', '..', '/etc/passwd', 'a/../../secret.nii'):
        with pytest.raises(ManifestError): scan_path(root, bad)
    (tmp_path/'link').symlink_to(root) # the root itself may be a link
    assert len(read_manifest(put(tmp_path, ROWS.replace('003', '009').replace('a/3', 'a/1').replace('001,a,a-1,1,63,F,CN,NA,a/1.nii\n', '')), root=tmp_path/'link'))==2

@given(st.text(max_size=20))
def test_neutralised_text_never_runs_and_comes_back(t):
    n = neutralise(t)
    assert restore(n)==t and n[:1] not in tuple('=+-@\t\r＝＋－＠') or n==''

word = st.text(string.ascii_letters+string.digits+'_äß', min_size=1, max_size=6)
free = st.text(st.characters(codec='utf-8', exclude_characters='<>'), max_size=12).map(lambda t: ''.join(c for c in t if c.isprintable()).strip())
maybe = lambda s, empty='': st.one_of(st.just(empty), s)
row = st.fixed_dictionaries(dict(session=free, age=maybe(st.floats(0, 120), np.nan), dx=st.sampled_from(['', 'CN', 'MCI', 'AD']), dx_rule=free, dx_source=free.map(lambda t: '=' + t).map(str.strip),
    dx_gap_days=maybe(st.floats(-3e4, 3e4), np.nan), field_T=maybe(st.floats(.5, 9), np.nan), site=st.one_of(free, st.sampled_from(["=1+1", "'=x", "''@", 'NA', 'None', '-', '"', ';', "'"])),
    seed=maybe(st.integers(0, 2**53), None), index=maybe(st.integers(0, 10**6), None), sha256=maybe(st.binary(min_size=32, max_size=32).map(bytes.hex)), synthetic=st.booleans(),
    split=st.sampled_from(SPLITS)))

@settings(max_examples=30, deadline=None)
@given(st.lists(row, min_size=1, max_size=5), st.lists(word, min_size=5, max_size=5), st.randoms(use_true_random=False))
def test_what_is_written_comes_back(tmp_path_factory, rows, ids, rnd):
    man = check_manifest(empty_manifest([r|dict(scan_id=f'{i}-{w}', cohort=w, subject=f'{w}-{i}', path=f'{w}/{i} x.nii', sex=rnd.choice(['', 'F', 'M'])) for i,(r,w) in enumerate(zip(rows, ids))]))
    p = tmp_path_factory.getbasetemp()/'m.csv'
    write_manifest(man, p); back = read_manifest(p)
    pd.testing.assert_frame_equal(back, man); assert back.equals(man)
    first = p.read_bytes(); write_manifest(back, p)
    assert first==p.read_bytes()
    cells = pd.read_csv(p, dtype=str, keep_default_na=False)[['session', 'site', 'dx_source', 'dx_rule']].to_numpy().ravel()
    assert not any(c[:1] in tuple('=+-@\t\r') and c for c in cells)

def test_check_changes_nothing_and_keeps_notes():
    man = empty_manifest([dict(scan_id='b', cohort='a', subject='a-1'), dict(scan_id='a', cohort='a', subject='a-2')]); man.attrs['flow'] = 'kept'
    before = man.copy(); out = check_manifest(man)
    assert out.equals(before) and man.equals(before) and out is not man and out.attrs=={'flow': 'kept'} and list(out.index)==['b', 'a']
    assert check_manifest(empty_manifest([])).shape==(0, len(COLUMNS)) and check_manifest(man.reset_index()).equals(man)
    assert check_manifest(man[['subject', 'cohort']].astype(object)).equals(man)

def test_no_rows_are_not_written(tmp_path):
    (tmp_path/'m.csv').write_text('old')
    with pytest.raises(ManifestError, match='no rows'): write_manifest(empty_manifest([]), tmp_path/'m.csv')
    with pytest.raises(ManifestError): write_manifest(empty_manifest([dict(scan_id='x', cohort='a', subject='a b')]), tmp_path/'m.csv')
    assert (tmp_path/'m.csv').read_text()=='old' and os.listdir(tmp_path)==['m.csv']

def people():
    rows = [dict(scan_id=f'{c}-{i}_{v}', cohort=c, subject=f'{c}-{i}', session=f'ses-{v}', age=60+i+v, sex='FM'[i%2], dx=['CN', 'MCI', 'AD', ''][i%4], split=['train', 'test'][i%2])
            for c in ('a', 'b') for i in range(6) for v in (9, 10)]
    return empty_manifest(rows)

def test_subset_and_tables_do_not_depend_on_order():
    man = people(); mixed = man.sample(frac=1, random_state=0)
    f = subset(man, visits='first')
    assert list(f.session.unique())==['ses-9'] and len(f)==12 and set(subset(mixed, visits='first').index)==set(f.index)
    assert set(subset(man, cohort='a', dx=['CN', 'AD'], split='train').dx)=={'CN', 'AD'} and len(subset(man, dx=''))==4
    same_age = man.assign(age=70.)
    assert set(subset(same_age.sample(frac=1, random_state=1), visits='first').index)==set(f.index)
    assert list(subset(mixed, cohort='a').index)==[i for i in mixed.index if i.startswith('a')]
    for bad in (dict(cohort='c'), dict(dx='CU'), dict(split='training'), dict(visits='last')):
        with pytest.raises(ManifestError): subset(man, **bad)
    t = cohort_table(man)
    pd.testing.assert_frame_equal(t, cohort_table(mixed))
    assert t.loc['a'].to_dict()==dict(scans=12, subjects=6, age=f'{72:.1f} ± {man.age[:12].std():.1f}', female='50 %', CN=4, MCI=4, AD=2)
    assert cohort_table(man, ['cohort', 'split']).index.names==['cohort', 'split'] and cohort_table(man.iloc[:0]).empty
    assert cohort_table(empty_manifest([dict(scan_id='x', cohort='a', subject='a-1')])).loc['a', ['age', 'female']].tolist()==['', '']

def test_flow():
    man = people()
    t = flow_table({'all': man, 'train': subset(man, split='train'), 'first': subset(man, split='train', visits='first')})
    assert t.scans.tolist()==[24, 12, 6] and t.dropped_scans.tolist()==[0, 12, 6] and t.dropped_subjects.tolist()==[0, 6, 0]
    with pytest.raises(ManifestError, match='only drop'): flow_table({'train': subset(man, split='train'), 'all': man})

def test_duplicates():
    man = people().assign(sha256=''); man.loc[['b-1_9', 'a-0_9', 'a-0_10'], 'sha256'] = 'f'*64; man.loc[['b-2_9', 'b-2_10'], 'sha256'] = 'e'*64
    d = duplicates(man.sample(frac=1, random_state=3))
    assert set(d.index)=={'b-1_9', 'a-0_9', 'a-0_10', 'b-2_9', 'b-2_10'} and d['first'].to_dict()=={'b-1_9':'a-0_10', 'a-0_9':'a-0_10', 'a-0_10':'a-0_10', 'b-2_9':'b-2_10', 'b-2_10':'b-2_10'}
    assert d.same_subject.to_dict()['b-2_9'] and not d.same_subject['a-0_9'] and duplicates(people()).empty

def test_read_rows_is_for_any_table(tmp_path):
    t = read_rows(put(tmp_path, 'participant_id\tage\nsub-01\tn/a\n', 'p.tsv'), need='participant_id')
    assert t.iloc[0].tolist()==['sub-01', 'n/a']

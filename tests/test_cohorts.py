"""Cohort readers on fabricated trees: layouts, labels, joins, what is left out, contracts."""
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixture_trees import TREES, build
from neurossl.cohorts import (RULES, apply_rule, index_adni, index_aibl, index_bids, index_flow, index_ldm100k, index_oasis1, index_oasis3, ldm100k_table,
                              nearest_dx, read_clinicadl_tsv, read_simclr_csv, read_table, write_clinicadl_tsv, write_simclr_csv)
from neurossl.core import Problem
from neurossl.manifest import COLUMNS, check_manifest
from neurossl.splits import check_disjoint, split_subjects, subject_folds

READ = dict(oasis3=lambda r, **k: index_oasis3(r/'oasis3_xnat', r/'clinical', **k), adni=lambda r, **k: index_adni(r, r/'tables', **k),
            aibl=lambda r, **k: index_aibl(r, r/'tables', **k), oasis1=lambda r, **k: index_oasis1(r, r, **k),
            ldm100k=lambda r, **k: index_ldm100k(r/'LDM_100k', **k), bids=lambda r, **k: index_bids(r/'bids', **k))
SHOWN = ['dx','sex','age','field_T','gap']
WANT = { # what a careful person reads off the fixtures: dx, sex, age, field, gap
    'oasis3': {'OAS30001 d0129': ('CN','F',61.5+129/365.25,1.5,29), 'OAS30002 d2340': ('AD','M',62.5+2340/365.25,3,40), 'OAS30003 d0100': ('CN','F',63.5+100/365.25,3,5),
               'OAS30003 d1500': ('','F',63.5+1500/365.25,3,100), 'OAS30004 d0110': ('AD','M',64.5+110/365.25,1.5,5), 'OAS30005 d0120': ('AD','F',65.5+120/365.25,3,10),
               'OAS30006 d0900': ('','M',66.5+900/365.25,1.5,None), 'OAS30007 d0339': ('CN','F',67.5+339/365.25,3,0), 'OAS30008 d0339': ('AD','M',68.5+339/365.25,1.5,0),
               'OAS30009 d0339': ('CN','F',69.5+339/365.25,3,0), 'OAS30010 d0500': ('AD','M',70.5+500/365.25,1.5,10)},
    'adni': {'002_S_0295 2006-11-02': ('MCI','M',70.1,1.5,0), '002_S_0295 2008-11-05': ('AD','M',70.1+734/365.25,1.5,1), '941_S_10012 2020-01-05': ('','F',66.5+3/365.25,3,3),
             '005_S_0221 2012-05-05': ('MCI','F',75+2196/365.25,3,4), '022_S_0130 2006-03-01': ('CN','F',80-1/365.25,1.5,1), '022_S_0130 2010-03-01': ('','F',80+1460/365.25,None,None),
             '007_S_0041 2007-01-10': ('AD','M',72+1/365.25,1.5,1)},
    'aibl': {'342 2009-05-04': ('AD','M',68.84,None,0), '7 2007-03-05': ('CN','F',71.68,1.5,0), '12 2008-09-20': ('MCI','M',78.22,None,11)},
    'oasis1': {'OAS1_0001 MR1': ('CN','F',74,1.5,0), 'OAS1_0028 MR1': ('AD','F',86,1.5,0), 'OAS1_0061 MR1': ('','M',20,1.5,None), 'OAS1_0061 MR2': ('','M',20,1.5,None),
               'OAS1_0080 MR1': ('AD','F',77,1.5,0)},
    'ldm100k': {'000000 ': ('','F',63.2,None,None), '000001 ': ('','M',71,None,None), '000007 ': ('','F',48,None,None)},
    'bids': {'01 M000': ('CN','F',70,None,0), '01 M012': ('MCI','F',71,None,0), '01 M024': ('','F',72,None,None), '002 ': ('AD','M',None,1.5,None), '003 ': ('','F',81,None,None)}}


def seen(man):
    "What a manifest says, in the form of WANT"
    short = lambda x, n: None if x!=x else round(x, n)
    return {f"{s.split('-', 1)[1]} {r.session}": (r.dx, r.sex, short(r.age, 2), short(r.field_T, 1), short(r.dx_gap_days, 0)) for s,r in zip(man.subject, man.itertuples())}
def same(man, name): return seen(man)=={k: (d, s, a if a is None else round(a, 2), f, g) for k,(d,s,a,f,g) in WANT[name].items()}


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp('trees')
    return {name: build(root/name, name) for name in TREES}


@pytest.mark.parametrize('name', TREES)
def test_reader_reads_what_stands_there(trees, name):
    man = READ[name](trees[name])
    assert same(man, name), seen(man)
    check_manifest(man); assert list(man)==list(COLUMNS) and man.index.is_unique and man.cohort.nunique()==1
    assert man.subject.str.startswith(man.cohort.iloc[0]+'-').all() and not man.path.str.startswith('/').any() and (man.synthetic==(name=='ldm100k')).all()
    root = trees[name]/{'oasis3':'oasis3_xnat', 'ldm100k':'LDM_100k', 'bids':'bids'}.get(name, '')
    assert all((root/p).is_file() for p in man.path)
    assert ((man.dx_source!='') == (man.dx_rule!='')).all() and (man.dx_rule[man.dx!='']!='').all()
    t = index_flow(man); assert t.scans[0]+t.scans[t.step.str.startswith('left out')].sum()==len(man)==t.scans[t.step.str.startswith('of these')].sum()


@pytest.mark.parametrize('name', TREES)
def test_order_of_table_rows_has_no_effect(tmp_path, trees, name):
    man,back = READ[name](trees[name]), READ[name](build(tmp_path, name, reverse=True))
    assert man.drop(columns='dx_source').equals(back.drop(columns='dx_source'))


def used(root, name):
    "The rows of the tables that a label, an age, a sex or a field strength of the fixtures rests on"
    man = READ[name](root); lines = {s.rsplit('/', 1)[-1] for s in man.dx_source}
    for table,column,value in TREES[name]['keys']:
        head,*rows = TREES[name]['tables'][table]
        for i,r in enumerate(rows, 1):
            is_visit = any(w in table for w in ('cdr','MERGE','DXSUM','pdxconv','sessions'))
            spare = table.endswith('participants.tsv') and r[0] in ('sub-77','sub-000008')
            spare |= 'mmse' in table and r[0]!='12' or 'mrimeta' in table and r[0]!='7' # dates nobody needs
            if (not is_visit or f'{Path(table).name}:{i+1}' in lines) and not spare: yield table,i,column,value


@pytest.mark.parametrize('name', TREES)
def test_changing_any_join_key_is_noticed(tmp_path, trees, name):
    n = 0
    for n,(table,i,column,value) in enumerate(used(trees[name], name), 1):
        root = build(tmp_path/str(n), name, table, i, column, value)
        try: assert not same(READ[name](root), name), f'{table} line {i+1}: another {column} changes nothing'
        except Problem: pass
    assert n>=len(TREES[name]['keys'])


def test_a_file_under_another_name_is_noticed(tmp_path):
    for name,old,new in (('oasis3', 'oasis3_xnat/OAS30003_MR_d0100', 'oasis3_xnat/OAS30004_MR_d0100'), ('adni', 'ADNI/002_S_0295', 'ADNI/002_S_0296'), ('bids', 'bids/sub-002', 'bids/sub-006'),
                         ('aibl', 'AIBL/342', 'AIBL/343'), ('oasis1', 'disc1/OAS1_0001_MR1', 'disc1/OAS1_0002_MR1'), ('ldm100k', 'LDM_100k/rawdata/sub-000000', 'LDM_100k/rawdata/sub-000005')):
        root = build(tmp_path/name, name); (root/old).rename(root/new); man = READ[name](root)
        assert not same(man, name) and 'name disagrees with its folder' in {d['reason'] for d in man.attrs['flow']}, name


def test_the_join_by_session_of_another_converter(trees):
    "Merging clinical scores on the session only gives three people of one 6-month bin the score of one of them; here each keeps its own"
    v = pd.DataFrame(read_table(trees['oasis3']/'clinical/OASIS3_UDSb4_cdr.csv', 'CDRTOT')); v['day'] = v.days_to_visit.astype(float); v['session'] = (v.day//182.5).astype(int)
    scans = pd.DataFrame(dict(OASISID=['OAS30003','OAS30004','OAS30005'], day=[100., 110., 120.], session=0))
    v = v[v.OASISID.isin(scans.OASISID) & v.session.eq(0)]
    bug = scans.merge(v.drop_duplicates('session')[['session','CDRTOT']], on='session')
    assert v.CDRTOT.tolist()==['0','0.5','2'] and bug.CDRTOT.nunique()==1 # the bug: one score for all three
    ours = nearest_dx(scans.rename(columns=dict(OASISID='subject')), v.assign(subject=v.OASISID, dx=v.CDRTOT), 365)
    assert ours.dx.tolist()==['0','0.5','2']
    man = READ['oasis3'](trees['oasis3'], rule='cdr3')
    assert [man[man.subject.eq(f'oasis3-OAS3000{i}')].dx.iloc[0] for i in (3, 4, 5)]==['CN','MCI','AD']


@pytest.mark.parametrize('seed', range(20))
def test_nearest_equals_a_plain_loop(seed):
    r = random.Random(seed); scans = pd.DataFrame([dict(subject=f's{r.randint(1, 6)}', day=float(r.randint(0, 400))) for _ in range(40)], index=[f'i{i}' for i in range(40)])
    visits = pd.DataFrame([dict(subject=f's{r.randint(1, 7)}', day=r.choice([float(r.randint(0, 400)), np.nan]), dx=r.choice(['CN','MCI','AD','',np.nan]), source=f't:{i}') for i in range(60)])
    got = nearest_dx(scans, visits, 50); assert got.index.equals(scans.index)
    assert nearest_dx(scans, visits.sample(frac=1, random_state=seed), 50).equals(got)
    for (i,s),g in zip(scans.iterrows(), got.itertuples()):
        ok = [(abs(v.day-s.day), v.day, -['','CN','MCI','AD'].index(v.dx), v.source, v.dx) for v in visits.itertuples() if v.subject==s.subject and v.dx==v.dx and abs(v.day-s.day)<=50]
        assert (g.dx, g.dx_source)==((min(ok)[4], min(ok)[3]) if ok else ('', '')) and (g.dx_gap_days==min(ok)[0] if ok else np.isnan(g.dx_gap_days))


def test_oasis3_policies(trees, tmp_path):
    read = lambda **k: READ['oasis3'](trees['oasis3'], **k)
    runs = {p: read(runs=p) for p in ('first','best','all')}
    assert [len(m) for m in runs.values()]==[11, 11, 12] and 'run-01' in runs['first'].path.iloc[0] and 'run-02' in runs['best'].path.iloc[0]
    assert 'another run of the session (runs=best)' in {d['reason'] for d in runs['best'].attrs['flow']}
    assert len(read(visits='first'))==10 and read(visits='first').subject.is_unique
    assert {d['reason'] for d in read().attrs['flow']}=={'not a T1w scan', 'not an MR session of OASIS-3', 'another run of the session (runs=first)'}
    assert (read(days=3).dx!='').sum()==3 and read(days=401).loc['oasis3-OAS30006_d0900','dx']=='AD'
    late = read(rule='any_cdr').loc['oasis3-OAS30003_d1500']; assert (late.dx, late.dx_rule, late.dx_gap_days)==('AD', 'any_cdr', 100)
    # CDR 0.5 is outside 'cdr': the visit stays the source and no farther visit takes its place
    late = read(rule='cdr').loc['oasis3-OAS30003_d1500']; assert (late.dx, late.dx_source)==('', 'OASIS3_UDSb4_cdr.csv:14')
    assert read(rule='stable_cn').loc['oasis3-OAS30003_d0100','dx']=='' and read(rule='stable_cn').loc['oasis3-OAS30009_d0339','dx']=='CN'
    own = read(rule=[('AD', dict(cdr=(2, 3)))]); assert own.dx[own.dx!=''].tolist()==['AD'] and set(own.dx_rule)=={'custom', ''}
    with pytest.raises(Problem, match="Did you mean 'any_cdr'"): read(rule='anycdr')
    with pytest.raises(Problem, match='normcog'): read(rule='brlp')


def test_oasis3_bids_layout_and_d1_form_and_old_columns(trees, tmp_path):
    root = build(tmp_path, 'oasis3')
    for s,d in (('30003','0100'), ('30004','0110')):
        f = root/f'native/sub-OAS{s}/ses-d{d}/anat/sub-OAS{s}_ses-d{d}_T1w.nii.gz'; f.parent.mkdir(parents=True); f.touch()
    (root/'clinical/OASIS3_UDSd1_diagnoses.csv').write_text('OASISID,OASIS_session_label,days_to_visit,NORMCOG,DEMENTED,MCIAMEM,MCIAPLUS,alzdis\n'
        'OAS30003,OAS30003_UDSd1_d0095,95,0,0,1,0,0\nOAS30004,OAS30004_UDSd1_d0105,0105,0,1,0,0,1\n')
    man = index_oasis3(root/'native', root/'clinical', rule='brlp')
    assert man.dx.tolist()==['MCI','AD'] and man.session.tolist()==['d0100','d0110'] and man.field_T.tolist()==[3, 1.5]
    (root/'old').mkdir(); (root/'clinical/OASIS3_demographics.csv').rename(root/'old/OASIS3_demographics.csv')
    (root/'old/ADRC_ClinicalData.csv').write_text('ADRC_ADRCCLINICALDATA ID,Subject,mmse,cdr,dx1\nOAS30003_ClinicalData_d0095,OAS30003,30,0,Cognitively normal\n')
    assert index_oasis3(root/'native', root/'old').dx.tolist()==['CN','']


def test_rules_are_data():
    v = pd.DataFrame(dict(cdr=[0, 0, .5, .5, 1, 3, np.nan], dx1=[CN := 'Cognitively normal', 'No dementia', 'ad dem/FLD', 'Incipient demt PTP', 'AD Dementia', 'Q', CN], max_cdr=3.))
    got = {r: apply_rule(v, r).fillna('?').tolist() for r in ('strict','cdr','any_cdr','clinica','cdr3','stable_cn')}
    assert got==dict(strict=['CN','','AD','','AD','','?'], cdr=['CN','CN','','','AD','AD','?'], any_cdr=['CN','CN','AD','AD','AD','AD','?'],
                     clinica=['CN','CN','AD','AD','AD','AD','?'], cdr3=['CN','CN','MCI','MCI','AD','AD','?'], stable_cn=['','','','','AD','AD','?'])
    assert all(d in ('CN','MCI','AD') for rule in RULES.values() for d,_ in rule)


def test_adni_details(trees, tmp_path):
    read = lambda root=trees['adni'], **k: READ['adni'](root, **k)
    man = read(); why = {d['path'].split('/')[1:3][-1]: d['reason'] for d in man.attrs['flow']}
    assert why=={'Mask':'excluded series', 'HarP_135_final_release_2015':'excluded series', 'Accelerated_Sagittal_MPRAGE':'DICOM: convert with dcm2niix',
                 'MPR__GradWarp':'another run of the session (runs=best)'}
    assert read(smc='CN').loc['adni-941_S_10012_2020-01-05_I123456','dx']=='CN' and 'smc_drop' in man.dx_rule.iloc[0]
    assert read(runs='first').path.str.contains('/MPR__GradWarp/').sum()==1 and len(read(runs='all'))==8
    assert read(series='Spatially_Normalized.*').subject.tolist()==['adni-941_S_10012']
    assert man.loc['adni-002_S_0295_2008-11-05_I50966','dx_source']=='DXSUM_05Mar2026.csv:2' # DX is blank there
    assert man.loc['adni-005_S_0221_2012-05-05_I300001','dx']=='MCI' # AD at baseline, MCI at the visit
    assert man.loc['adni-022_S_0130_2010-03-01_I60001','dx_source']=='' # last seen 364 days before
    assert read(days=365).loc['adni-022_S_0130_2010-03-01_I60001','dx']=='CN'
    with pytest.raises(Problem, match='smc'): read(smc='keep')
    root = build(tmp_path, 'adni'); (root/'tables/DXSUM_05Mar2026.csv').rename(root/'tables/DXSUM_PDXCONV_ADNIALL.csv'); (root/'tables/ADNIMERGE_05Mar2026.csv').rename(root/'tables/ADNIMERGE.csv')
    assert seen(read(root))==seen(man)
    old = (root/'tables/ADNIMERGE.csv').read_text(); (root/'tables/ADNIMERGE_01Jan2019.csv').write_text(old.replace('Male', 'Female')) # an older download
    (root/'tables/ADNIMERGE_05Mar2026.csv').write_text(old); (root/'tables/ADNIMERGE_DICT_06Mar2026.csv').write_text('a\n'); assert seen(read(root))==seen(man)
    (root/'tables/DXSUM_PDXCONV_ADNIALL.csv').write_text('RID,VISCODE,VISCODE2,EXAMDATE,DXCHANGE\n295,m24,m24,,5\n130,sc,sc,,7\n') # no PTID, no dates, older codes
    assert read(root).loc['adni-002_S_0295_2008-11-05_I50966','dx']=='AD'


def test_aibl_details(trees):
    man = READ['aibl'](trees['aibl'])
    assert man.loc['aibl-342_2009-05-04_I22222','dx_source'].endswith(':5') # the wrong date of the SAG series stands for month 54
    assert man.loc['aibl-7_2007-03-05_I33333','path'].split('/')[2]=='MPRAGE_ADNI_confirmed' and READ['aibl'](trees['aibl'], runs='first').path.str.contains('/MPRAGE/').sum()==2
    assert (READ['aibl'](trees['aibl'], days=5).dx=='').sum()==1


def test_oasis1_details(trees):
    read = lambda **k: READ['oasis1'](trees['oasis1'], **k)
    assert read(blank_cn=40.).loc['oasis1-OAS1_0061_MR2', ['dx','dx_gap_days','dx_rule']].tolist()==['CN', 5, 'any_cdr_blank_cn_40'] or read(blank_cn=40.).loc['oasis1-OAS1_0061_MR2','dx']=='CN'
    assert read(rule='cdr').loc['oasis1-OAS1_0080_MR1','dx']=='' and len(read(visits='first'))==4
    for kind,part in (('masked','masked_gfc'), ('t88','t88_gfc'), ('native','sbj_111')): assert read(kind=kind).path.str.contains(part).all()
    assert sum(d['reason']=='scan without a row in the table' for d in read().attrs['flow'])==1


def test_ldm100k_columns(trees, tmp_path):
    assert ldm100k_table(trees['ldm100k']/'LDM_100k').loc['000001', ['ventricles','brain']].tolist()==[41, 1390]
    for head in ('participant_id\tage\tsex\tVol. of CSF\tBrain\n', 'participant_id\tage\tsex\tx\ty\n', 'participant_id\tage\tgender\tv\tbrain_vol\n'):
        (tmp_path/'participants.tsv').write_text(head+'sub-000001\t71\t1\t41\t1390\n')
        assert ldm100k_table(tmp_path).loc['000001', ['age','sex','ventricles','brain']].tolist()==[71, 'M', 41, 1390]
    (tmp_path/'participants.tsv').write_text('participant_id\tage\tsex\n')
    with pytest.raises(Problem): ldm100k_table(tmp_path)
    assert {d['reason'] for d in READ['ldm100k'](trees['ldm100k']).attrs['flow']}=={'row without a scan', 'scan without a row in the table'}


def test_bids_details(trees, tmp_path):
    read = lambda root=trees['bids'], **k: READ['bids'](root, **k)
    man = read(cohort='mine'); assert set(man.cohort)=={'mine'} and len(read(runs='all'))==7 and len(read(visits='first'))==3
    assert man.loc['mine-sub-01_ses-M12_run-1','dx_source']=='sub-01/sub-01_sessions.tsv:3' and man.loc['mine-sub-002','dx_source']=='participants.tsv:3'
    assert man.loc['mine-sub-003','path'].endswith('sub-003_T1w.nii.gz') and man.loc['mine-sub-003','dx']=='' # the plain name; PD is none of the three
    assert {d['reason'] for d in man.attrs['flow']}=={'not a T1w scan', 'name disagrees with its folder', 'another run of the session (runs=first)', 'participant without a folder'}
    root = build(tmp_path/'a', 'bids'); (root/'bids/participants.tsv').unlink(); assert len(read(root))==5 # tables are optional
    for column,bad,hint in (('group','Alzhimer disease','alzheimer disease'), ('sex','2','female'), ('age','1941-02-03','date'), ('participant_id','sub-002','two lines')):
        with pytest.raises(Problem, match=hint): read(build(tmp_path/column, 'bids', 'bids/participants.tsv', 3 if column=='participant_id' else 2, column, bad))


def test_contracts(trees, tmp_path):
    man = READ['bids'](trees['bids'], cohort='b').assign(mask='m/brain.nii.gz')
    write_simclr_csv(man, tmp_path/'pre.csv', root=tmp_path); t = read_table(tmp_path/'pre.csv', 'image_path'); assert list(t[0])==['image_path','mask_path','source'] and len(t)==5
    back = read_simclr_csv(tmp_path/'pre.csv', root=tmp_path, cohort='b')
    assert back.path.tolist()==man.path.tolist() and back.subject.tolist()==man.subject.tolist() and set(back['mask'])=={'m/brain.nii.gz'}
    write_simclr_csv(man, tmp_path/'task.csv', labels=dict(CN=0, AD=1)); assert [r['label'] for r in read_table(tmp_path/'task.csv', 'label')]==['1','0']
    assert read_simclr_csv(tmp_path/'task.csv', labels=dict(AD=1)).dx.tolist()==['AD','']
    for bad in ('/etc/sub-01.nii.gz', '../sub-01.nii.gz'):
        (tmp_path/'bad.csv').write_text(f'image_path,mask_path\n{bad},\n')
        with pytest.raises(Problem, match='inside the data root'): read_simclr_csv(tmp_path/'bad.csv', root=tmp_path)
    (tmp_path/'bad.csv').write_text('image_path,mask_path\nx/normalized.nii.gz,\n')
    with pytest.raises(Problem, match='bad.csv:2'): read_simclr_csv(tmp_path/'bad.csv')
    write_clinicadl_tsv(man, tmp_path/'c.tsv'); t = read_table(tmp_path/'c.tsv', 'session_id')
    assert [r['session_id'] for r in t]==['ses-M000','ses-M000','ses-M000','ses-M012','ses-M024'] and {r['diagnosis'] for r in t}=={'CN','MCI','AD','n/a'} and 'n/a' in [r['age'] for r in t]
    back = read_clinicadl_tsv(tmp_path/'c.tsv', man.assign(dx='')); assert back.dx.tolist()==man.dx.tolist() and set(back.dx_rule)=={'clinicadl'}
    (tmp_path/'c.tsv').write_text('participant_id\tsession_id\tdiagnosis\tage\tsex\nsub-01\tses-M00\tAD\t70\tF\nsub-77\tses-M000\tCN\t70\tF\n') # months of two digits
    back = read_clinicadl_tsv(tmp_path/'c.tsv', man); assert (back.index.tolist(), back.dx.tolist())==(['b-sub-01_ses-M000'], ['AD']) and len(back.attrs['flow'])==1
    with pytest.raises(Problem, match='twice'): write_clinicadl_tsv(READ['bids'](trees['bids'], runs='all'), tmp_path/'d.tsv')


def test_bad_tables(tmp_path):
    f = tmp_path/'t.csv'
    for raw in (b'', 'a,b\n1,\xe9\n'.encode('latin-1'), 'a,b\n1,2\n'.encode('utf-16')):
        f.write_bytes(raw)
        with pytest.raises(Problem, match='t.csv'): read_table(f, 'a')
    f.write_bytes('\ufeffa, b\r\n007,NA\r\n'.encode()); assert read_table(f, 'a')==[dict(a='007', b='NA', source='t.csv:2')]
    with pytest.raises(Problem, match='a column'): read_table(f, 'A')
    with pytest.raises(Problem, match='no such table'): index_adni(tmp_path, tmp_path)
    with pytest.raises(Problem, match='no such folder'): index_adni(tmp_path/'x', tmp_path/'x')


@pytest.mark.skipif('NEUROSSL_SCANS' not in os.environ, reason='NEUROSSL_SCANS is not set')
def test_real_scans():
    man = index_bids(Path(os.environ['NEUROSSL_SCANS'])/'oasis1_bids')
    assert len(man)==19 and man.subject.nunique()==17 and man.dx.value_counts().to_dict()=={'CN':18, '':1} and man[man.dx.eq('')].subject.tolist()==['oasis1_bids-OAS10300']
    assert man.age.between(19, 83).all() and man.attrs['flow']==[] and len(index_bids(Path(os.environ['NEUROSSL_SCANS'])/'oasis1_bids', visits='first'))==17
    for seed in range(20): # repeat scans of a person stay together
        check_disjoint(split_subjects(man, .2, .2, seed)); assert subject_folds(man, 5, seed, by='').groupby(man.subject).nunique().max()==1

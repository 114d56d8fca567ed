"""Fabricated folders and tables of the gated cohorts, written from their documented layouts; knows nothing of the readers under test."""
from copy import deepcopy
from pathlib import Path


def t1(sub, day, ents='', kind='T1w'): return f'sub-OAS{sub}_ses-d{day}{ents}_{kind}.nii.gz'
def adni(ptid, series, when, uid, sid=21856):
    return f'ADNI/{ptid}/{series}/{when}_08_16_44.0/I{uid}/ADNI_{ptid}_MR_{series}_Br_20070219173850420_S{sid}_I{uid}.nii'
def aibl(rid, series, when, uid): return f'AIBL/{rid}/{series}/{when}_10_00_00.0/I{uid}/AIBL_{rid}_MR_{series}_Br_20090504_S1_I{uid}.nii'


def cdr(sub, day, cdrtot, dx1, text=None):
    text = str(day) if text is None else text
    return [f'OAS{sub}', f'OAS{sub}_UDSb4_d{day:04d}', text, '70', '28', *['0']*7, str(cdrtot), dx1]


CN, AD, B1 = 'Cognitively normal', 'AD Dementia', 'MPR__GradWarp__B1_Correction__N3__Scaled'
TREES = dict(
    oasis3=dict(
        files=['oasis3_xnat/OAS30001_MR_d0129/anat1/'+t1(30001, '0129', '_run-01'), 'oasis3_xnat/OAS30001_MR_d0129/anat3/'+t1(30001, '0129', '_run-02'),
               'oasis3_xnat/OAS30001_MR_d0129/anat2/'+t1(30001, '0129', '_acq-TSE', 'T2w'), 'oasis3_xnat/OAS30002_MR_d2340/anat4/NIFTI/'+t1(30002, '2340'),
               'oasis3_xnat/OAS30002_AV45_d2340/pet1/NIFTI/sub-OAS30002_ses-d2340_acq-AV45_pet.nii.gz',
               *(f'oasis3_xnat/OAS{s}_MR_d{d}/anat1/'+t1(s, d) for s,d in (('30003','0100'), ('30004','0110'), ('30005','0120'), ('30006','0900'),
                 ('30007','0339'), ('30008','0339'), ('30009','0339'), ('30010','0500'), ('30003','1500')))],
        texts={'oasis3_xnat/OAS30002_MR_d2340/anat4/BIDS/sub-OAS30002_ses-d2340_T1w.json': '{"MagneticFieldStrength": 3}'},
        tables={
            'clinical/OASIS3_UDSb4_cdr.csv': [
                ['OASISID','OASIS_session_label','days_to_visit','age at visit','MMSE','memory','orient','judgment','commun','homehobb','perscare','CDRSUM','CDRTOT','dx1'],
                cdr(30001, 100, 0, CN), cdr(30002, 2300, 1, AD),
                cdr(30003, 95, 0, CN), cdr(30004, 105, .5, AD), cdr(30005, 130, 2, 'AD dem w/depresss- not contribut'), # three people, one 6-month bin
                cdr(30006, 500, 1, AD), cdr(30001, 900, 0, CN), # 30006: 400 days away; somebody else is seen on the very day
                cdr(30007, 339, 0, CN, '0339'), cdr(30008, 339, 1, AD, '339.0'), cdr(30009, 339, 0, CN),
                cdr(30010, 510, 0, CN), cdr(30010, 510, 1, AD), cdr(30003, 1600, .5, 'uncertain dementia')],
            'clinical/OASIS3_demographics.csv': [['OASISID','AgeatEntry','AgeatDeath','EDUC','SES','GENDER','HAND','APOE'],
                *([f'OAS{30000+i}', f'{60+i}.5', '90+' if i==2 else '#N/A', '16', '2', str(1+i%2), 'R', '33' if i%3 else '#N/A'] for i in range(1, 11))],
            'clinical/OASIS3_MR_json.csv': [['label','Manufacturer','ManufacturersModelName','MagneticFieldStrength'],
                *([f'OAS{s}_MR_d{d}', 'Siemens', 'TrioTim' if i%2 else 'Vision', '3.0' if i%2 else '1.5'] for i,(s,d) in enumerate((('30001','0129'), ('30003','0100'),
                  ('30004','0110'), ('30005','0120'), ('30006','0900'), ('30007','0339'), ('30008','0339'), ('30009','0339'), ('30010','0500'), ('30003','1500'))))]},
        keys=[('clinical/OASIS3_UDSb4_cdr.csv','OASISID','OAS39999'), ('clinical/OASIS3_UDSb4_cdr.csv','days_to_visit','9999'),
              ('clinical/OASIS3_demographics.csv','OASISID','OAS39999'), ('clinical/OASIS3_MR_json.csv','label','OAS39999_MR_d0001')]),
    adni=dict(
        files=[adni('002_S_0295', B1, '2006-11-02', 40966), adni('002_S_0295', 'Mask', '2006-11-02', 40967), adni('002_S_0295', 'MPR__GradWarp', '2006-11-02', 30000),
               adni('002_S_0295', B1, '2008-11-05', 50966), adni('002_S_0295', 'HarP_135_final_release_2015', '2008-11-05', 50967),
               *(f'ADNI/011_S_0003/Accelerated_Sagittal_MPRAGE/2018-03-01_09_11_12.0/S663311/{i}.dcm' for i in range(3)),
               adni('941_S_10012', 'Spatially_Normalized__Masked_and_N3_corrected_T1_images', '2020-01-05', 123456), adni('005_S_0221', 'MT1__N3m', '2012-05-05', 300001),
               adni('022_S_0130', 'MP-RAGE', '2006-03-01', 20001), adni('022_S_0130', B1, '2010-03-01', 60001), adni('007_S_0041', B1, '2007-01-10', 41111)],
        tables={
            'tables/ADNIMERGE_05Mar2026.csv': [['RID','PTID','VISCODE','COLPROT','EXAMDATE','DX_bl','AGE','PTGENDER','DX','EXAMDATE_bl','FLDSTRENG','IMAGEUID','MMSE','CDRSB'],
                ['295','002_S_0295','bl','ADNI1','2006-11-02','LMCI','70.1','Male','MCI','2006-11-02','1.5 Tesla MRI','','28','1'],
                ['295','002_S_0295','m24','ADNI1','2008-11-04','LMCI','70.1','Male','','2006-11-02','1.5 Tesla MRI','','20','5'],
                ['10012','941_S_10012','bl','ADNI3','2020-01-02','SMC','66.5','Female','CN','2020-01-02','3 Tesla MRI','','30','0'],
                ['221','005_S_0221','m72','ADNI2','2012-05-01','AD','75','Female','MCI','2006-05-01','3 Tesla MRI','','25','2'],
                ['130','022_S_0130','bl','ADNI1','2006-03-02','CN','80','Female','CN','2006-03-02','1.5 Tesla MRI','','29','0'],
                ['130','022_S_0130','m36','ADNI1','2009-03-02','CN','80','Female','CN','2006-03-02','1.5 Tesla MRI','','29','0'],
                ['130','022_S_0130','nv','ADNI1','','CN','80','Female','','2006-03-02','','','',''],
                ['41','007_S_0041','bl','ADNI1','2007-01-09','AD','72','Male','Dementia','2007-01-09','1.5 Tesla MRI','20001','22','5'],
                ['41','007_S_0041','y1','ADNI4','','AD','72','Male','','2007-01-09','','','','']],
            'tables/DXSUM_05Mar2026.csv': [['RID','PTID','VISCODE','VISCODE2','EXAMDATE','DIAGNOSIS'],
                ['295','002_S_0295','m24','m24','2008-11-04','3'], ['295','002_S_0295','uns1','uns1','','1'], ['130','022_S_0130','f','f','','2'],
                ['41','007_S_0041','sc','sc','','3'], ['41','007_S_0041','scmri','scmri','',''], ['130','022_S_0130','nv','nv','','']]},
        keys=[('tables/ADNIMERGE_05Mar2026.csv','PTID','999_S_9999'), ('tables/ADNIMERGE_05Mar2026.csv','EXAMDATE','1999-01-01'),
              ('tables/DXSUM_05Mar2026.csv','PTID','999_S_9999'), ('tables/DXSUM_05Mar2026.csv','EXAMDATE','1999-01-01')]),
    aibl=dict(
        files=[aibl(342, 'MPRAGE_SAG_ISO_p2', '2009-05-04', 22222), aibl(7, 'MPRAGE_ADNI_confirmed', '2007-03-05', 33333), aibl(7, 'MPRAGE', '2007-03-05', 33000),
               aibl(7, 'Axial_PD-T2_TSE_FS', '2007-03-05', 33335), aibl(12, 'MPRAGE', '2008-09-20', 44444)],
        tables={
            'tables/aibl_pdxconv_01-Jun-2018.csv': [['RID','SITEID','VISCODE','DXCURREN'], ['7','2','bl','1'], ['7','2','m18','-4'], ['342','3','bl','1'], ['342','3','m54','3'],
                                                   ['12','2','m18','2']],
            'tables/aibl_ptdemog_01-Jun-2018.csv': [['RID','SITEID','VISCODE','PTGENDER','PTDOB'], ['7','2','bl','2','/1935'], ['342','3','bl','1','/1940'], ['12','2','bl','1','/1930']],
            'tables/aibl_mrimeta_01-Jun-2018.csv': [['RID','SITEID','VISCODE','EXAMDATE'], ['7','2','bl','03/05/2007'], ['12','2','m18','-4']],
            'tables/aibl_mmse_01-Jun-2018.csv': [['RID','SITEID','VISCODE','EXAMDATE','MMSCORE'], ['7','2','bl','02/20/2007','29'], ['12','2','m18','10/01/2008','27'],
                                                ['342','3','bl','11/01/2004','28']]},
        keys=[('tables/aibl_pdxconv_01-Jun-2018.csv','RID','999'), ('tables/aibl_pdxconv_01-Jun-2018.csv','VISCODE','m99'), ('tables/aibl_ptdemog_01-Jun-2018.csv','RID','999'),
              ('tables/aibl_mrimeta_01-Jun-2018.csv','RID','999'), ('tables/aibl_mrimeta_01-Jun-2018.csv','EXAMDATE','01/01/1999'),
              ('tables/aibl_mmse_01-Jun-2018.csv','RID','999'), ('tables/aibl_mmse_01-Jun-2018.csv','VISCODE','m99'), ('tables/aibl_mmse_01-Jun-2018.csv','EXAMDATE','01/01/1999')]),
    oasis1=dict(
        files=[f'disc{d}/OAS1_{s}/PROCESSED/MPRAGE/{k}' for d,s in ((1, '0001_MR1'), (1, '0028_MR1'), (2, '0061_MR1'), (2, '0061_MR2'), (3, '0080_MR1'), (3, '0099_MR1'))
               for k in (f'T88_111/OAS1_{s}_mpr_n4_anon_111_t88_gfc.img', f'T88_111/OAS1_{s}_mpr_n4_anon_111_t88_masked_gfc.img',
                         f'T88_111/OAS1_{s}_mpr_n4_anon_111_t88_masked_gfc.hdr', f'SUBJ_111/OAS1_{s}_mpr_n4_anon_sbj_111.img')],
        tables={'oasis_cross-sectional.csv': [['ID','M/F','Hand','Age','Educ','SES','MMSE','CDR','eTIV','nWBV','ASF','Delay'],
            ['OAS1_0001_MR1','F','R','74','2','3','29','0','1344','.743','1.306','N/A'], ['OAS1_0028_MR1','F','R','86','2','4','27','1','1449','.738','1.211','N/A'],
            ['OAS1_0061_MR1','M','R','20','','','','','1601','.856','1.096','N/A'], ['OAS1_0061_MR2','M','R','20','','','','','1601','.857','1.096','5'],
            ['OAS1_0080_MR1','F','R','77','4','2','25','0.5','1400','.7','1.2','N/A']]},
        keys=[('oasis_cross-sectional.csv','ID','OAS1_9999_MR1')]),
    ldm100k=dict(
        files=[f'LDM_100k/rawdata/sub-{i}/anat/sub-{i}_T1w.nii.gz' for i in ('000000','000001','000007','000009')],
        tables={'LDM_100k/participants.tsv': [['participant_id','age','sex','ventricular_volume','brain_volume'], ['sub-000000','63.2','0','30.5','1500'],
            ['sub-000001','71','1','41','1390'], ['sub-000007','48','F','22','1400'], ['sub-000008','70','M','40','1300']]},
        keys=[('LDM_100k/participants.tsv','participant_id','sub-999999')]),
    bids=dict(
        files=['bids/sub-01/ses-M000/anat/sub-01_ses-M000_T1w.nii.gz', 'bids/sub-01/ses-M12/anat/sub-01_ses-M12_run-1_T1w.nii.gz',
               'bids/sub-01/ses-M12/anat/sub-01_ses-M12_run-2_T1w.nii.gz', 'bids/sub-01/ses-M012/anat/sub-01_ses-M012_FLAIR.nii.gz', 'bids/sub-01/ses-M024/anat/sub-01_ses-M024_T1w.nii',
               'bids/sub-002/anat/sub-002_T1w.nii.gz', 'bids/sub-003/anat/sub-003_acq-mprage_T1w.nii.gz', 'bids/sub-003/anat/sub-003_T1w.nii.gz', 'bids/sub-04/anat/sub-05_T1w.nii.gz',
               'bids/derivatives/fs/sub-002/anat/sub-002_T1w.nii.gz', 'bids/sourcedata/sub-002/anat/sub-002_T1w.nii.gz', 'bids/.git/annex/sub-002_T1w.nii.gz'],
        texts={'bids/sub-002/anat/sub-002_T1w.json': '{"MagneticFieldStrength": 1.5}'},
        tables={'bids/participants.tsv': [['participant_id','age','sex','group'], ['sub-01','70','F','CN'], ['sub-002','n/a','M','Dementia'], ['003','81','female','PD'], ['sub-77','60','M','AD']],
                'bids/sub-01/sub-01_sessions.tsv': [['session_id','diagnosis','MMS'], ['ses-M00','CN','30'], ['ses-M012','MCI','27'], ['ses-M024','n/a','n/a']]},
        keys=[('bids/participants.tsv','participant_id','sub-99'), ('bids/sub-01/sub-01_sessions.tsv','session_id','ses-M999')]))


def build(root, name, table=None, row=None, column=None, value=None, reverse=False):
    "Write one tree under root; optionally with one cell of one table changed, or with the rows of every table reversed"
    tree, root = deepcopy(TREES[name]), Path(root)
    for f in tree['files']:
        (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).touch()
    for f,text in tree.get('texts', {}).items():
        (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).write_text(text)
    for f,rows in tree['tables'].items():
        if f==table: rows[row][rows[0].index(column)] = value
        if reverse: rows[1:] = rows[:0:-1]
        sep = '\t' if f.endswith('tsv') else ','
        (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).write_text('\n'.join(sep.join(r) for r in rows)+'\n')
    return root


def study(root, kind, write, people=16):
    "A cohort to learn from, as 'bids' or as 'oasis3': every second person has AD, every fourth was scanned twice; write(path, person, dx) makes a scan. Gives the data root, and the tables'"
    root = Path(root); scans,rows,who = [],[],[]
    for i in range(people):
        dx,days = ('CN','AD')[i%2], (100, 500) if i%4==0 else (100,); who.append((i, dx, 60+i, 'FM'[i//2%2]))
        scans += [(i, dx, d) for d in days]
    if kind=='bids':
        data = tables = root/'my_bids'; name = lambda i,d: f'sub-{i:02d}/ses-M{round(d/30):03d}/anat/sub-{i:02d}_ses-M{round(d/30):03d}_T1w.nii.gz'
        files = {'participants.tsv': [['participant_id','age','sex','diagnosis'], *([f'sub-{i:02d}', str(a), s, d] for i,d,a,s in who)]}
    else:
        data,tables = root/'oasis3', root/'clinical'; name = lambda i,d: f'OAS{30001+i}_MR_d{d:04d}/anat{2+i%3}/{"NIFTI/" if i%5==0 else ""}'+t1(30001+i, f'{d:04d}')
        files = {'OASIS3_demographics.csv': [['OASISID','AgeatEntry','GENDER'], *([f'OAS{30001+i}', str(a), '2' if s=='F' else '1'] for i,_,a,s in who)],
                 'OASIS3_UDSb4_cdr.csv': [TREES['oasis3']['tables']['clinical/OASIS3_UDSb4_cdr.csv'][0], *(cdr(30001+i, d+20, 1 if x=='AD' else 0, AD if x=='AD' else CN) for i,x,d in scans)]}
    for i,x,d in scans: (data/name(i, d)).parent.mkdir(parents=True, exist_ok=True); write(data/name(i, d), i, x)
    tables.mkdir(parents=True, exist_ok=True)
    for f,rows in files.items(): (tables/f).write_text('\n'.join(('\t' if f.endswith('tsv') else ',').join(r) for r in rows)+'\n')
    return data, tables

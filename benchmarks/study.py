"S1 from nothing to a probe: generate, prepare and cache, one epoch, embed, probe; with this library, and wired from MONAI's transforms, its PersistentDataset and eager float32"
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from neurossl.core import seed_all
from neurossl.encoders import build_encoder
from neurossl.phantom import latents_of, phantom, phantom_cohort
from neurossl.pretext import build_task
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BATCH = 4
STAGES = ('generate and cache', 'epoch', 'embed', 'probe')

def cohorts(n): # manifests: n healthy people to learn from, n with a diagnosis, half of them AD
    "Who is in it"
    learn = phantom_cohort(n, 31, split='train', hashes=False); sick = phantom_cohort(8*n, 32, 'clinical_a', hashes=False)
    return learn, sick.groupby('dx').head(n//2).query('dx in ["CN", "AD"]')

def probe(x, man): # (N,F) -> score of AD for each scan
    "A cross-validated logistic regression"
    return cross_val_predict(make_pipeline(StandardScaler(), LogisticRegression(C=.1)), x, man.dx.eq('AD'), cv=StratifiedKFold(4), method='decision_function')

def parts(learn): # encoder and task with the same weights everywhere
    "What learns"
    seed_all(0); encoder = build_encoder('sfcn')
    return encoder, build_task('age', encoder.n_features, learn)

class _Watch(dict): # seconds of each stage
    def __init__(self): self.t = time.process_time()
    def __call__(self, stage): now = time.process_time(); self[stage],self.t = now-self.t,now

def ours(n, size, folder, precision='bf16'):
    "With this library"
    from neurossl.data import ScanDataset, build_cache
    from neurossl.preprocess import Recipe
    from neurossl.probes import embed
    from neurossl.settings import TrainConfig
    from neurossl.train import fit
    def f(what=None): # 'whole': also the first prepared scan
        watch = _Watch(); learn,sick = cohorts(n)
        with TemporaryDirectory(dir=folder) as tmp:
            sets = [ScanDataset(m, build_cache(m, Recipe('s1', size), folder=Path(tmp))[0]) for m in (learn, sick)]; prepared = sets[0].batch([0])['x'].numpy() if what=='whole' else None; watch(STAGES[0])
            encoder,task = parts(learn)
            h = fit(encoder, task, sets[0], None, TrainConfig(epochs=1, batch=BATCH, lr=1e-4, schedule='constant', precision=precision), Path(tmp)/'run'); watch(STAGES[1])
            x = embed(encoder, sets[1]).to_numpy(); watch(STAGES[2])
            s = probe(x, sick); watch(STAGES[3])
        return dict(loss=h.table.train_loss.iloc[-1], features=x, scores=s, seconds=dict(watch), prepared=prepared)
    return f

def monai(n, size, folder):
    "Wired from MONAI"
    from monai.data import DataLoader, PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged, Resized, ScaleIntensityd
    from neurossl.augment import item_seed
    from neurossl.data import epoch_order
    from skimage.exposure import equalize_adapthist
    from torch.optim.swa_utils import update_bn
    import nibabel as nib
    from .steps import _plain
    def grey(x): return torch.from_numpy(equalize_adapthist(np.asarray(x[0])).astype(np.float32))[None]
    steps = Compose([LoadImaged('x'), EnsureChannelFirstd('x'), Resized('x', (size,)*3, mode='trilinear'), ScaleIntensityd('x'), Lambdad('x', grey)])
    def generate(man, tmp):
        for i,r in man.iterrows(): v = phantom(latents_of(r), size); nib.save(nib.Nifti1Image(v.data.astype(np.int16), v.affine), tmp/f'{i}.nii.gz')
        return [dict(x=str(tmp/f'{i}.nii.gz'), age=float(r.age)) for i,r in man.iterrows()]
    def f(what=None): # 'whole': also the first prepared scan
        watch = _Watch(); learn,sick = cohorts(n)
        with TemporaryDirectory(dir=folder) as tmp:
            tmp = Path(tmp); sets = [PersistentDataset(generate(m, tmp), steps, cache_dir=tmp/'cache') for m in (learn, sick)]
            for d in sets:
                for i in range(len(d)): d[i] # as the first epoch would
            prepared = sets[0][0]['x'].numpy()[None] if what=='whole' else None; watch(STAGES[0])
            encoder,task = map(_plain, parts(learn)); order = epoch_order(list(learn.index), 0, 0)
            batches = DataLoader(torch.utils.data.Subset(sets[0], order), batch_size=BATCH, drop_last=True); opt = torch.optim.Adam([*encoder.parameters(), *task.parameters()], 1e-4); losses = []
            torch.manual_seed(item_seed(0, 0, 'dropout', 0)%2**63); encoder.train(); task.train()
            for b in batches:
                opt.zero_grad(); loss = task(encoder, dict(x=b['x'], age=b['age'].float()))['loss']; loss.backward(); opt.step(); losses.append(loss.item())
            update_bn((b['x'] for b in batches), encoder); watch(STAGES[1])
            encoder.eval()
            with torch.no_grad(): x = torch.cat([encoder(b['x']) for b in DataLoader(sets[1], batch_size=2)]).numpy()
            watch(STAGES[2]); s = probe(x, sick); watch(STAGES[3])
        return dict(loss=np.mean(losses), features=x, scores=s, seconds=dict(watch), prepared=prepared)
    return f

def epoch(n, size):
    "What cannot be left out: the steps of the epoch, in bfloat16"
    from .steps import step
    f = step('sfcn', (size,)*3, BATCH, 'bf16')
    def g():
        for _ in range(n//BATCH): f()
    return g

# The DAG of the study: the cohort once, then one job for each cell of the grids in nbs/experiments/grids.
# make study calls it through neurossl.study; on a cluster: snakemake --workflow-profile nbs/experiments/slurm --config profile=paper
from neurossl.cluster import redate, resources
from neurossl.grid import cell_keys, code_key, study_cells
from neurossl.core import digest

import sys

PROFILE = config.get("profile", "default")
CELLS = {f"{c['grid']}/{c['id']}": c for c in study_cells(PROFILE)}
KEYS = cell_keys(CELLS.values())
redate(PROFILE) # Snakemake looks at dates, and a clock may have been set back

COHORT = dict(template="cohort", params=dict(profile=PROFILE, size=128), seconds=4800) # 6.7 GB until one has been measured

def cell(w): return CELLS[f"{w.grid}/{w.id}"]

localrules: all

rule all:
    input: [f"{c['run']}/run.json" for c in CELLS.values()]

rule cohort:
    input: "data_manifest.csv"
    output: f"runs/{PROFILE}/cohort.json"
    params: key=digest([code_key("nbs/experiments/pretrain.ipynb"), PROFILE], 16)
    log: f"runs/{PROFILE}/cohort.log"
    threads: int(config.get("jobs", 2))
    resources: mem_mb=lambda w, attempt: resources(COHORT, attempt)["mem_mb"], runtime=lambda w, attempt: max(240, resources(COHORT, attempt)["runtime"]) # the last one may have found all in the cache
    shell: "{sys.executable} -m neurossl.study cohort {PROFILE} {threads} {output} > {log} 2>&1"

rule cell: # one notebook
    input:
        cohort=f"runs/{PROFILE}/cohort.json",
        needs=lambda w: [f"{CELLS[n]['run']}/run.json" for n in cell(w)["needs"]],
    output: run=f"runs/{PROFILE}/{{grid}}/{{id}}/run.json"
    params: key=lambda w: KEYS[f"{w.grid}/{w.id}"]
    log: f"runs/{PROFILE}/{{grid}}/{{id}}.log"
    threads: 1
    resources: # what the last run like it took, or what its size needs
        mem_mb=lambda w, attempt: resources(cell(w), attempt)["mem_mb"],
        runtime=lambda w, attempt: resources(cell(w), attempt)["runtime"],
        gpu=lambda w: resources(cell(w))["gpu"],
    shell: "{sys.executable} -m neurossl.study cell {PROFILE} {wildcards.grid}/{wildcards.id} > {log} 2>&1"

LONGEST = max((c["seconds"] for c in CELLS.values()), default=0)

use rule cell as base with: # what other cells stand on goes first, and what takes longest: neither shall be left for the end
    priority: 10
    wildcard_constraints: grid="|".join(sorted({n.split("/")[0] for c in CELLS.values() for n in c["needs"]} | {c["grid"] for c in CELLS.values() if c["seconds"]>.9*LONGEST}))

ruleorder: base > cell

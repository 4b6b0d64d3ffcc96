# `make` lists the targets. Every target that needs Python builds `.venv` first, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PACKAGES := sharpening rayjobs reward_servers

# DeepSpeed looks for ninja on the PATH. Nothing here may join a Ray cluster that happens to run on this machine.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport RAY_ADDRESS PYTHONPATH PYTHONHOME VIRTUAL_ENV

# Flags added to the job or the benchmark: make demo ARGS="--seed 1".
ARGS ?=
# Few updates on few prompts: shows that every part works, not that anything improves.
DEMO_FLAGS ?= --max_train_steps 3 --prompts_per_update 8 --rollout_batch_size 4 --checkpointing_steps 2 \
	--eval_prompts 24 --eval_guidance_scales 1
PYTEST_ARGS ?=

.PHONY: help env demo demo-quick test lint format bench bench-rewards docs audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## build .venv from requirements.lock (about 5 GB)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' on the PATH; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1), but 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "building $(VENV): about 5 GB, some minutes on a slow line"
	@$(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@# Compiled now: a job starts a dozen processes, and each would compile torch, Ray and diffusers for itself.
	@UV_HTTP_TIMEOUT=300 $(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PY) -r requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## sharpen the embedded model with the defaults, 4 to 5 minutes on 2 cores; more flags in ARGS
	@$(PY) rayjobs/rlhf.py $(ARGS)

demo-quick: $(STAMP) ## the same job with a few updates, under 2 minutes
	@$(PY) rayjobs/rlhf.py $(DEMO_FLAGS) $(ARGS)

test: $(STAMP) ## the whole suite: unit, integration (real Ray, Serve, Train, DeepSpeed), faults
	@$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP) ## ruff (lint and format), mypy, pydoclint; all of them, whichever fails
	@failed=0; \
	$(VENV)/bin/ruff check . || failed=1; \
	$(VENV)/bin/ruff format --check . || failed=1; \
	$(VENV)/bin/mypy $(wildcard $(PACKAGES)) || failed=1; \
	$(VENV)/bin/pydoclint --quiet $(wildcard $(PACKAGES)) || failed=1; \
	exit $$failed

format: $(STAMP) ## mend what ruff can mend by itself
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: $(STAMP) ## measure updates: share of time by stage, Ray against one process, memory; ARGS="--quick"
	@$(PY) rayjobs/bench.py $(ARGS)

bench-rewards: $(STAMP) ## measure a reward: in process, through a handle, over HTTP; ARGS="--quick"
	@$(PY) rayjobs/bench_rewards.py $(ARGS)

docs: $(STAMP) ## build the documentation as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "build/site/index.html"

audit: $(STAMP) ## look the installed packages up among known vulnerabilities, on PyPI
	@# One platform's packages: what the lock has for others is not installed here.
	@$(VENV)/bin/pip-audit --strict --progress-spinner off --skip-editable

lock: $(STAMP) ## resolve pyproject.toml anew into requirements.lock
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
		--extra ray --extra grader --extra datasets --extra trackers --extra docs --extra dev --no-header --no-annotate -o requirements.lock pyproject.toml

clean: ## remove caches and .venv; runs stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

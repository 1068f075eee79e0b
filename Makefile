# The few things a person does with this repository. `make help` lists them.

PYTHON ?= python3
# Where pip looks for torch first. On a machine without a GPU, TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu saves
# about 3 GB of CUDA libraries.
TORCH_INDEX_URL ?=

BIN := .venv/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' locks/cuda.txt)
# uv can override libp2p's pin of fastecdsa, which needs a compiler; pip can't. See [tool.uv] in pyproject.toml.
# Compiled at once: a service may have no right to write there later, and then each start would compile it all again.
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint .venv/versions.txt

.DEFAULT_GOAL := help
.PHONY: help demo examples test test-fast test-long lint sim prove chaos chaos-virtual soak fuzz hostile bench-pipeline bench-joining bench-recovery bench-moving bench-rebalance bench-codecs bench-start bench-planner lock try-install clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-16s %s\n' "$$name" "$$text"; done

demo: .venv/.installed ## Train a small model with a swarm of six daemons on this machine, about 3 minutes
	@$(BIN)/swarmd demo

examples: .venv/.installed ## Run every example of examples/ with daemons on this machine, about 3 minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH"; for each in examples/*/run.sh; do echo "== $$each"; $$each || exit 1; done

# Whole swarms of real daemons run two at a time, as they wait more than they compute; all others share the cores.
SWARMS := tests/e2e tests/chaos tests/compat tests/hostile

test: lint ## Check style and types, then run the tests, about 14 minutes
	$(BIN)/python -m pytest -q -n auto $(addprefix --ignore=,$(SWARMS))
	$(BIN)/python -m pytest -q -n 2 $(SWARMS)

# No sockets, no processes of ours, no real training: these wait for nothing.
FAST := tests/swarm tests/stage tests/text tests/swarmctl $(wildcard tests/test_*.py) \
	$(addprefix tests/sim/,world engines planner spot_market test_traces.py)

test-fast: .venv/.installed-dev ## Unit tests, the house's rules, the recorded runs and 20 seeds: a minute on two cores
	$(BIN)/python -m pytest -q -n auto -m "not slow and not long and not hostile" $(FAST)
	$(BIN)/python -m swarmd.sim run --seeds 20

test-long: .venv/.installed-dev ## The tests that take too long to be among those, about 25 minutes
	$(BIN)/python -m pytest -q -m long

hostile: .venv/.installed-dev ## Attacks on swarms of real daemons: those that are stopped, without their defence too, and open ones
	$(BIN)/python -m pytest -q -m hostile tests/hostile

lint: .venv/.installed-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sim: .venv/.installed-dev ## Swarms in virtual time, seed after seed, until Ctrl-C: every fault, every promise checked
	@$(BIN)/python -m swarmd.sim run

prove: .venv/.installed-dev ## Real training in virtual time under fifty faults a run, beside a single process, 15 minutes
	@$(BIN)/python -m swarmd.sim prove --seeds 50

chaos: .venv/.installed-dev ## Nine real daemons under kills, partitions, slow links and more, about 15 minutes
	@$(BIN)/python -m benchmarks.chaos

chaos-virtual: .venv/.installed-dev ## The same faults in virtual time: hours of them, and what each kind costs, 3 minutes
	@$(BIN)/python -m benchmarks.chaos.virtual

MINUTES ?= 60
soak: .venv/.installed-dev ## The same for an hour (MINUTES=60), a fault every 30 s: is memory flat?
	@$(BIN)/python -m benchmarks.chaos --soak --minutes $(MINUTES) --every 30 30

SECONDS ?= 60
fuzz: .venv/.installed-fuzz ## Coverage-guided fuzzing of all that takes others' words, a minute each (SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

bench-pipeline: .venv/.installed-dev ## Tokens per second of a 2-stage swarm, beside plain PyTorch and others
	$(BIN)/python -m benchmarks.pipeline

bench-joining: .venv/.installed-dev ## How long a newcomer takes, and what the others' steps take meanwhile
	@$(BIN)/python -m benchmarks.joining

bench-moving: .venv/.installed-dev ## How long a daemon takes to another stage, in the middle of a step
	@$(BIN)/python -m benchmarks.moving

bench-recovery: .venv/.installed-dev ## What the swarm needs when tail, conductor, round leader or a whole stage is killed
	@$(BIN)/python -m benchmarks.recovery

bench-rebalance: .venv/.installed-dev ## What rebalancing brings on spot markets, simulated: 32 stages, 400 peers, 32 hours
	$(BIN)/python -m benchmarks.rebalance

bench-codecs: .venv/.installed-dev ## Error and speed of the codecs
	$(BIN)/python -m benchmarks.codecs

bench-start: .venv/.installed-dev ## Seconds from a start to listening, and to the first microbatch
	$(BIN)/python -m benchmarks.start

bench-planner: .venv/.installed-dev ## What the planner says of small swarms here, beside what real daemons do
	$(BIN)/python -m benchmarks.planner

lock: .venv/.installed-dev ## Make locks/ again after a change of dependencies; UPGRADE=1 takes the newest versions
	@$(BIN)/python -m locks.make $(if $(UPGRADE),--upgrade)

try-install: ## The README's ways to install, each in an environment of its own without a compiler, from locks/cpu.txt
	@locks/try.sh $(PYTHON)

clean: ## Remove the virtual environment and caches
	rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes through pip, so that its environment (PIP_FIND_LINKS, PIP_INDEX_URL, ...) decides where from.
.venv/.torch: pyproject.toml locks/cuda.txt
	@echo "preparing .venv: the first time this takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@sed -e '/--hash/d' -e 's/ *\\$$//' locks/cuda.txt > .venv/versions.txt
	@$(BIN)/python -m pip install --quiet uv $(TORCH) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL) --extra-index-url https://pypi.org/simple)
	@touch $@

.venv/.installed: .venv/.torch
	@$(INSTALL) -e .
	@touch $@

.venv/.installed-dev: .venv/.torch
	@$(INSTALL) -e '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-fuzz: .venv/.torch
	@$(INSTALL) -e '.[fuzz]'
	@touch .venv/.installed .venv/.installed-dev $@

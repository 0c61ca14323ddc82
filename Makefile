# One virtual environment, built once; everything else runs from it.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench compose-check load up clean chaos

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

venv: .venv/.made ## build the virtual environment (once, and when its pins change)

.venv/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "potstill needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Building .venv: about 6.3 GB on disk (most of it PyTorch with CUDA), and a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --editable '.[api,worker,local,dev]' --constraint constraints.txt
	@touch $@

demo: venv ## distil a real data set end to end, and compare the result with honest baselines
	@$(BIN)/potstill demo

test: venv ## run all tests, on real Redis, PostgreSQL and SQLite
	@echo '#include <Python.h>' | $${CXX:-g++} -fsyntax-only -x c++ -I"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null \
		|| { echo "the tests compile the CPU kernels: install g++ (or set CXX to another C++ compiler, such as clang++) and Python's headers"; exit 1; }
	$(BIN)/python -m pytest $(TESTS)

chaos: venv ## disturb real installations at random moments and see that nothing is lost: make chaos ROUNDS=200 SEED=7
	@$(BIN)/python -W ignore -m tests.chaos --rounds $(or $(ROUNDS),20) --seed $(or $(SEED),1)

check: venv ## formatting, lint, types, and which part may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Eager blocks are what a machine without a C++ compiler has.
bench: venv ## measure the engine against plain PyTorch (under seven minutes on two cores; leave the machine alone meanwhile)
	$(BIN)/python -m benchmarks.unroll --steps 5 20 --seconds 30
	$(BIN)/python -m benchmarks.unroll --steps 10 --nothing-cached --repeats 1
	$(BIN)/python -m benchmarks.unroll --steps 5 --momentum 0.9 --seconds 10
	$(BIN)/python -m benchmarks.unroll --steps 5 --dtype bf16 --seconds 15
	$(BIN)/python -m benchmarks.unroll --steps 5 --core eager --seconds 15
	$(BIN)/python -m benchmarks.unroll --preset demo --seconds 10
	$(BIN)/python -m benchmarks.unroll --preset cpu-small --seconds 10
	$(BIN)/python -m benchmarks.experts --seconds 10
	$(BIN)/python -m benchmarks.teacher --seconds 10
	$(BIN)/python -m benchmarks.teacher --backbone convnet --width 32 --batch 128 --seconds 5

load: venv ## 10,000 jobs, 100 workers, 2,000 pollers and 200 event streams on one API process (minutes; leave the machine alone meanwhile)
	$(BIN)/python -m benchmarks.load

compose-check: venv ## build the images, run the demo on the composed stack, and restart each part (needs Docker; PROFILES=s3,monitoring for these too)
	$(BIN)/python -m tests.compose.check $(if $(PROFILES),--profiles $(PROFILES))

up: venv ## run the whole stack on 127.0.0.1:$(PORT) until Ctrl-C
	@$(BIN)/potstill up --port $(PORT)

clean: ## remove the virtual environment, caches and the demo's folder (not ~/.potstill)
	rm -rf .venv potstill-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Everything a person does here. `make` alone lists it.
#
# PYTHON=/path/to/python3.11   the interpreter that .venv is made with
# FULL=yes                     serve with all extras that a service can use: PostgreSQL, Keystone, policy files, LIO
# ARGS="..."                   passed on by serve, test-quick, test-lab, bench and conformance

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements/$(if $(FULL),full,base).lock
BASE := .venv/.$(if $(FULL),full,base)
EXTRAS := keystone lio openapi policy postgresql
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# User-Mode Linux is slow: the whole suite takes it many minutes.
export LAB_TIMEOUT ?= 3600

# Quick: neither root, nor another process, nor a second of waiting.
QUICK := -m "not lab and not slow" --ignore=tests/clients --ignore=tests/crash --ignore=tests/lab --ignore=tests/ceph --ignore=tests/bench
LAB = tests/lab/lab-run --with target,iscsi,nfs -- $(BIN)/python -m pytest -m lab --timeout $(if $(TEST_LONG),7200,1800)
# These files have tests that measure the time closely: they run first, and alone.
TIMED = $(shell grep -rl --include='test_*.py' 'mark\.timed' tests)
# They wait half of the time, for processes and a Ceph. A lab fills what they leave of a processor: it waits for nothing.
REST = $(BIN)/python -m pytest -m "not lab and not timed" -n 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install lock serve clients test test-long test-quick test-lab test-ceph tempest lab-setup ceph-setup lint format types bench conformance clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: $(BASE) ## install into .venv when that is needed, and serve on 127.0.0.1:8776 (ARGS="--listen HOST:PORT ...")
	@exec $(BIN)/blockstore serve $(ARGS)

clients: $(BASE) ## install the clients openstack and cinder into .venv
	$(BIN)/pip install --quiet -e '.[clients]'
	@echo "Now: export PATH=$(CURDIR)/$(BIN):\$$PATH"

install: .venv/.dev ## make .venv with everything that work on blockstore needs

test: lint types ## check and test all that this machine can, a sample where all takes hours; says what to install for the rest
	@$(BIN)/python -m pytest -m "timed and not lab" $(TIMED); timed=$$?; \
	if why=$$(tests/lab/lab-run -- lvm version 2>&1); then \
		log=$$(mktemp); nice -n 5 $(MAKE) --no-print-directory test-lab > "$$log" 2>&1 & lab=$$!; \
		trap 'kill $$lab; exit 130' INT TERM; \
		$(REST); rest=$$?; \
		wait $$lab; lab=$$?; cat "$$log"; rm "$$log"; exit $$((timed || rest || lab)); \
	else \
		$(REST); rest=$$?; \
		echo "SKIPPED: the tests on real LVM. As root: make lab-setup"; echo "$$why" | tail -n 3; \
		[ -z "$$CI" ] || { echo "In CI that is a failure."; exit 1; }; \
		exit $$((timed || rest)); \
	fi

test-long: export TEST_LONG := 1
test-long: export LAB_TIMEOUT := 36000
test-long: export PYTEST_ADDOPTS := --timeout=7200
test-long: test ## the same with all samples at full size: hours

test-quick: .venv/.dev ## test in a minute, without root, lab, clients and kills
	$(BIN)/python -m pytest $(QUICK) $(ARGS)

test-lab: .venv/.dev ## test on real LVM: in this kernel where it has device-mapper, else in User-Mode Linux (root)
	@$(BIN)/python -m compileall -q blockstore plugins tests  # importing costs the lab dear
	@if [ -n "$(ARGS)" ]; then $(LAB) $(if $(filter tests/%,$(ARGS)),,tests/lab) $(ARGS); else \
		log=$$(mktemp); $(LAB) tests/lab/test_lvm*.py > "$$log" 2>&1 & lvm=$$!; \
		$(LAB) --ignore-glob='*/test_lvm*' tests/lab; targets=$$?; \
		wait $$lvm; lvm=$$?; cat "$$log"; rm "$$log"; exit $$((lvm || targets)); fi  # two labs at once, one for each half

test-ceph: .venv/.dev ## test on a real Ceph, which the tests start and stop
	$(BIN)/python -m pytest $(if $(filter tests/%,$(ARGS)),,tests/ceph) $(ARGS)

tempest: .venv/.dev ## run OpenStack's test suite against blockstore (ARGS=REGEX for some of it)
	$(BIN)/python -m tests.tempest $(ARGS)

lab-setup: ## install the Debian packages that the lab needs (root)
	tests/lab/setup.sh

ceph-setup: ## install the Debian packages of Ceph that test-ceph needs (root)
	tests/ceph/install.sh

lint: .venv/.dev ## check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

format: .venv/.dev ## bring the sources into their form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .venv/.dev ## check types, strictly
	$(BIN)/mypy

bench: .venv/.dev ## measure, and print a table beside the targets
	$(BIN)/python -m tests.bench $(ARGS)

conformance: $(BASE) ## prove that a configured backend keeps every promise (BACKEND=NAME ARGS="--config FILE")
	$(BIN)/blockstore backend check $(or $(BACKEND),directory) $(ARGS)

lock: .venv/.dev ## renew requirements/*.lock: the newest versions that setup.cfg allows, with their hashes
	@$(BIN)/pip install --quiet uv
	@for lock in base full; do \
		extras=; [ $$lock = base ] || extras="$(addprefix --extra ,$(EXTRAS))"; \
		echo 'setuptools>=70.1' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
			--no-annotate --custom-compile-command "make lock" $$extras setup.cfg - -o requirements/$$lock.lock; done

clean: ## remove caches and what was built; .venv and the state stay
	rm -rf build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find blockstore plugins tests -name __pycache__ -prune -exec rm -rf {} +

# --- .venv ---------------------------------------------------------------------------------------------------

.venv/bin/python:
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "blockstore: there is no $(PYTHON) here. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "blockstore: Python 3.11 or newer is needed; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "blockstore: $(PYTHON) cannot make virtual environments. Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }

# What serves is what was tested, to the byte: tests run with what the lock names, and the build tool is in it, too.
$(BASE): setup.cfg pyproject.toml $(LOCK) | .venv/bin/python
	@echo "Installing blockstore into .venv: once, and again when setup.cfg has changed."
	@$(BIN)/pip install --quiet --require-hashes -r $(LOCK)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q blockstore plugins  # a third of a start, for a user who may not write here
	@touch .venv/.base $@

.venv/.dev: setup.cfg pyproject.toml requirements/full.lock | .venv/bin/python
	@echo "Installing blockstore and its tools into .venv: once, and again when setup.cfg has changed."
	@$(BIN)/pip install --quiet --require-hashes -r requirements/full.lock
	@$(BIN)/pip install --quiet --no-build-isolation -e '.[dev]'
	@$(BIN)/python -m compileall -q blockstore plugins
	@touch .venv/.base $@

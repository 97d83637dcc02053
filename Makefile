# `make run` and `make test` do all their own set-up; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUNS   := $(VENV)/.runs
PEERS  := .venv-peers
SUITES := .venv-conformance
ARGS   ?=
LOOP   ?= asyncio
export LOOP
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help run test check format bench bench-check bench-growth bench-page bench-micro bench-instructions bench-profile bench-startup fleet conformance settings-page screenshots torture chaos chaos-fleet soak lock image-check build licences audit clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What runs the proxy is a fifth of what tests it, so `make run` does not wait for the rest.
$(RUNS): pyproject.toml requirements/run.txt requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "setting up $(VENV) (only when the locked dependencies change) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(STAMP): $(RUNS) requirements/dev.txt
	@echo "adding to $(VENV) what the tests need (several hundred MB) ..."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

run: $(RUNS) ## start the proxy; without Nomba credentials, against the built-in simulator
	@exec $(BIN)/nomba-proxy serve --simulate=auto $(ARGS)

test: $(STAMP) ## run every test, with branch coverage; LOOP=uvloop runs them on uvloop
	@$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

check: $(STAMP) ## format, lint, types, Dockerfile, then the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile
	@$(MAKE) --no-print-directory test

format: $(STAMP) ## rewrite the code in the one format, mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# A peer that cannot be installed is named in the table; the run goes on without it.
$(PEERS)/.installed: requirements/peers.txt
	@echo "setting up $(PEERS), the proxies to compare with (only when their lock changes) ..."
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< \
	  && touch $@ || echo "bench: the proxies of $< cannot be installed here" >&2

bench/fastify/node_modules: bench/fastify/package-lock.json
	@cd bench/fastify && npm ci --silent --no-audit --no-fund && touch node_modules \
	  || echo "bench: @fastify/http-proxy cannot be installed here" >&2

bench: $(STAMP) $(PEERS)/.installed bench/fastify/node_modules ## measure it beside its peers in the same run; ARGS=--quick for three minutes
	@$(BIN)/python bench/run.py $(ARGS)

bench-check: $(STAMP) ## fail if a request costs too much, as a ratio to a ClientSession proxy (half a minute)
	@$(BIN)/python bench/check.py $(ARGS)

bench-growth: $(STAMP) $(PEERS)/.installed ## measure what cost grows with: headers, bodies, callers, rules, connections
	@$(BIN)/python bench/growth.py $(ARGS)

bench-page: $(STAMP) ## write the tables of docs/performance.md anew from docs/performance/*.json
	@$(BIN)/python bench/page.py

bench-micro: $(STAMP) ## time the functions that every request goes through, one by one
	@$(BIN)/python -m pytest bench/micro --benchmark-warmup=on --benchmark-disable-gc \
	  --benchmark-max-time=0.2 --benchmark-sort=fullname --benchmark-columns=min,median,iqr,rounds $(ARGS)

bench-instructions: $(STAMP) ## count the instructions of a request, by which a change can be judged (needs valgrind)
	@$(BIN)/python bench/instructions.py $(ARGS)

bench-profile: $(STAMP) ## the functions that a request spends its time in
	@$(BIN)/python bench/profile_path.py $(ARGS)

bench-startup: $(STAMP) ## measure start-up beside `import aiohttp`, and the memory of idle processes
	@$(BIN)/python bench/startup.py $(ARGS)

fleet: $(STAMP) ## simulate a day of 200 replicas; prints the table and draws docs/fleet.svg (half a minute)
	@$(BIN)/python bench/fleet.py --picture docs/fleet.svg $(ARGS)

# As with the peers: a suite that cannot run here is named in the table.
$(SUITES)/.installed: requirements/conformance.txt
	@echo "setting up $(SUITES), the origins and tests of others (only when their lock changes) ..."
	@$(PYTHON) -m venv --clear $(SUITES)
	@$(SUITES)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< \
	  && touch $@ || { rm -rf $(SUITES); echo "conformance: what is in $< cannot be installed here" >&2; }

conformance/http-cache-tests/node_modules: conformance/http-cache-tests/package-lock.json
	@cd $(@D) && npm ci --silent --no-audit --no-fund && touch node_modules \
	  || echo "conformance: http-cache-tests cannot be installed here" >&2

conformance: $(STAMP) $(SUITES)/.installed conformance/http-cache-tests/node_modules ## run foreign HTTP suites through it and compare (five minutes); fails on an unexplained difference
	@PYTHONPATH=bench $(BIN)/python conformance/compare.py $(ARGS)

settings-page: $(STAMP) ## write docs/settings.md anew from the settings model and config/proxy.toml
	@$(BIN)/python docs/settings_page.py

screenshots: $(STAMP) ## take the pictures of the inspector in docs/ anew (needs Chromium)
	@SCREENSHOTS=1 $(BIN)/python -m pytest tests/pages -k read_everywhere --no-cov $(ARGS)

torture: $(STAMP) ## the figures to hold, at full size; prints the table (forty minutes); TORTURE_SEED=n for other streams
	@TORTURE=1 $(BIN)/python -m pytest tests/torture --timeout 3600 $(ARGS)

chaos: $(STAMP) ## kill workers at random while tokens come and go; CHAOS_SEED=n for another course
	@TORTURE=1 $(BIN)/python -m pytest tests/torture/test_workers.py -k chaos --timeout 3600 $(ARGS)

chaos-fleet: $(STAMP) ## kill replicas and their store at random, change secrets under load; CHAOS_SEED=n
	@TORTURE=1 $(BIN)/python -m pytest tests/torture/test_fleet.py --timeout 3600 $(ARGS)

soak: $(STAMP) ## ten minutes of load while everything happens to it: who is lost, what grows; ARGS="--minutes 1"
	@PYTHONPATH=tests $(BIN)/python bench/soak.py $(ARGS)

lock: ## compile the locks anew, with hashes and without addresses (needs uv and npm)
	@$(call compile,run,pyproject.toml --extra uvloop --extra valkey --extra otel)
	@$(call compile,build,requirements/build.in)
	@$(call compile,peers,requirements/peers.in)
	@$(call compile,audit,requirements/audit.in)
	@$(call compile,conformance,requirements/conformance.in)
	@for folder in bench/fastify conformance/http-cache-tests; do \
	  (cd $$folder && npm install --silent --package-lock-only --omit-lockfile-registry-resolved) && \
	  $(PYTHON) -c "$$WITHOUT_FUNDING" $$folder/package-lock.json || exit 1; done
	@$(call compile,dev,pyproject.toml --group dev requirements/build.in --constraint requirements/run.txt)

# npm writes down whom a package asks for money, and where.
define WITHOUT_FUNDING
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
lock = json.loads(file.read_text())
for package in lock["packages"].values():
    package.pop("funding", None)
file.write_text(json.dumps(lock, indent=2) + "\n")
endef
export WITHOUT_FUNDING

compile = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-strip-extras --no-emit-index-url --no-emit-find-links --no-annotate $(2) -o requirements/$(1).txt $(ARGS)

image-check: $(STAMP) ## try the Dockerfile without Docker, in clean Debian roots (needs root; two minutes, then half a one)
	@$(BIN)/python tests/image_check.py $(ARGS)

# The same source makes the same bytes, whenever and wherever: every file in it has the commit's time.
EPOCH = $${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}

build: $(RUNS) ## build the wheel into dist/, the same bytes every time
	@SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m flit_core.wheel --outdir dist .

licences: $(STAMP) ## write docs/licences.md anew from what is installed
	@$(BIN)/python tests/licences.py

AUDIT := .venv-audit
$(AUDIT)/.installed: requirements/audit.txt
	@$(PYTHON) -m venv --clear $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< && touch $@

audit: $(AUDIT)/.installed ## ask pip-audit about known vulnerabilities; ARGS=--if-possible where its service may be away
	@$(PYTHON) tests/audit.py $(AUDIT)/bin/pip-audit $(ARGS)

clean: ## remove the environment and everything a run leaves behind
	@rm -rf .venv .venv-* .image bench/fastify/node_modules conformance/http-cache-tests/node_modules bench/results dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

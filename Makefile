# Everything happens in .venv. The machine needs Python 3.11 or later (with venv and pip) and make, nothing else.
#
#   make serve [ARGS="--port 9000"]   the server                  make demo    a server that shows itself
#   make test  [ARGS="-k mailbox"]    the tests                   make check   what CI runs
#   make check-all                    the same, and every test that asks a server by both ways of plain requests
#   make setup                        .venv, up to date           make bench   the benchmarks
#   make lock  [ARGS="--upgrade"]     requirements/*.lock anew    make settings   docs/SETTINGS.md anew
#   make api-test [EXAMPLES=200]      many requests generated from /openapi.json
#   make crash-test [ROUNDS=1000]     the server killed under load, again and again; power that fails
#   make workers-test [ROUNDS=200]    the processes of `serve --workers` killed under load, again and again
#   make simulate [SEEDS=0-999]       whole servers in simulated histories: deaths, faults, lies; each from its seed
#   make mutants [ARGS="epoch key"]   bugs planted into a copy of the tree, each of which must be caught
#   make relay-test [ROUNDS=200]      a service that publishes through a relay, and the server, killed again and again
#   make soak [MINUTES=15]            everything at once for so long: nothing may grow, nothing acknowledged be lost
#   make coverage [ARGS=...]          which lines of the server no test runs; with ARGS a part, which is added
#   make bench-targets                what is aimed at, each figure beside its peer's, met or not
#   make bench-growth                 cost by followers, diagnoses, load and idle connections; recovery
#   make bench-workers                several processes beside one on the same cores
#   make bench-cluster                servers on three NATS servers beside one on SQLite
#   make bench-proxies                memory of nginx, HAProxy and Caddy, and the kernel's, for each connection
#   make bench-report                 the plots of docs/ from docs/measured
#   make bench-storage                the store beside raw sqlite3
#   make bench-restart                a start after kill -9, and its check beside publishers
#   make first-hour                   what a newcomer waits for until the demo's page moves
#   make bench-abuse                  what a client that does harm costs everybody else
#   make bench-compare BEFORE=COMMAND   CPU of each operation as a multiple of another build's
#   make bench-console                what looking costs: a console, and top
#   make bench-crowd                  ten thousand followers, slow ones, floods and a stop among them
#   make fuzz [SECONDS=60]            random damage to requests, for so long; half of it compares the two ways
#   make differential [MUTATIONS=100000] [SEED=1]   so many damaged requests by both ways, compared
#   make autobahn                     a WebSocket test suite (it needs Python 2.7)
#   make docs                         the site of the documents, in build/site; a link that leads nowhere ends it
#   make container-test               deploy/container, built with buildah and run (it needs root)
#   make metrics                      docs/METRICS.md anew
#   make log                          docs/LOG.md anew
#   make limits                       docs/LIMITS.md anew
#   make guarantees                   the names of tests in docs/GUARANTEES.md anew
#   make node-packages                what some tests want beside Node: parsers of the documents, a compiler of types
#   make nats-server                  a NATS server for the tests of the replicated store
#   make cluster                      three servers on three NATS servers behind a proxy, to look at and to break
#   make chaos [ROUNDS=20]            these, killed, frozen, cut off and filled under load; ARGS="--only cut-leader" a part
#   make python-client-test [ARGS="-k core"]   the tests of clients/python, in a .venv of its own (a part of `make test`)
#   make clean                        .venv* and caches away
#
# Another interpreter: make clean, then make setup PYTHON=/path/to/python3

.DEFAULT_GOAL := help
.PHONY: help setup serve demo test check check-all format lint types layers api-test crash-test relay-test fuzz differential autobahn bench bench-storage bench-restart bench-isolation bench-abuse bench-compare bench-console bench-crowd bench-targets bench-growth bench-proxies bench-workers bench-report peers first-hour load-generator lock docs settings metrics limits log guarantees node-packages nats-server clean

VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.runs
STAMP := $(VENV)/.up-to-date
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.up-to-date
CLUSTER_STAMP := $(VENV)/.cluster
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.up-to-date
NATIVE := build/benchmarks
NODE := build/node
NODE_PEERS := build/peers
ROOMS := actors storage web
PYTHON_CLIENT := clients/python
PYTHON_CLIENT_BIN := $(PYTHON_CLIENT)/.venv/bin
PYTHON_CLIENT_STAMP := $(PYTHON_CLIENT)/.venv/.up-to-date
CHECKED := $(ROOMS) tests benchmarks docs/site examples $(PYTHON_CLIENT)

# A name on the PATH may be a shim that fails, or a Python without venv: try each by running it.
SUITABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.14 python3.13 python3.12 python3.11 python3; do \
	if "$$name" -c '$(SUITABLE)' >/dev/null 2>&1; then echo "$$name"; break; fi; done)

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

# pip builds the project in an environment of its own that it throws away: with the versions of the lock, so named to
# pips before and after 25.3.
VERSIONS := $(VENV)/versions
AS_LOCKED := PIP_CONSTRAINT=$(VERSIONS) PIP_BUILD_CONSTRAINT=$(VERSIONS)

$(RUN_STAMP): pyproject.toml requirements/run.lock
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(SUITABLE)' >/dev/null 2>&1; then \
		echo "make: no Python 3.11 or later with venv and pip found; install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "installing what the server needs into $(VENV), this once: $$(grep -c == requirements/run.lock) packages ..."
	@$(PIP) install --require-hashes -r requirements/run.lock || { \
		echo "make: pip could not get the packages: is there a network, and does pip reach an index? ($(BIN)/pip config list)" >&2; \
		exit 1; }
	@grep -o '^[^ #]*==[^ ]*' requirements/dev.lock > $(VERSIONS)
	@$(AS_LOCKED) $(PIP) install --no-deps -e .
	@touch $@

$(STAMP): $(RUN_STAMP) requirements/dev.lock
	@echo "installing what tests and checks need into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

serve: $(RUN_STAMP)
	@exec $(BIN)/avicenna-live serve $(ARGS)

demo: $(RUN_STAMP)
	@exec $(BIN)/avicenna-live demo $(ARGS)

# Most tests wait: four processes take less than three quarters of the time of two, on two cores. The tests of one file
# stay together, as they share what they start. Which file comes first says tests/conftest.py.
IN_FOUR := -n 4 --dist loadfile --no-loadscope-reorder

# With ARGS it is the tests of the server alone: what they select, the client's do not have. Without, those of the client
# run beside them, and are shown once they have ended.
test: setup python-client
	@$(if $(ARGS),exec $(BIN)/python -m pytest $(ARGS),$(ALL_TESTS))

define ALL_TESTS
mkdir -p build; log=build/python-client-test.log; \
( (cd $(PYTHON_CLIENT) && exec .venv/bin/python -m pytest) >$$log 2>&1 & tests=$$!; \
  trap "kill $$tests" TERM; code=0; wait $$tests || code=$$?; cat $$log; exit $$code ) & client=$$!; \
trap "kill $$client 2>/dev/null" INT TERM; \
server_code=0; $(BIN)/python -m pytest $(IN_FOUR) || server_code=$$?; \
client_code=0; wait $$client || client_code=$$?; \
[ $$server_code$$client_code = 00 ] || { \
  echo "tests ended with $$server_code for the server, $$client_code for the Python client" >&2; exit 1; }
endef

.PHONY: python-client python-client-test
python-client: $(PYTHON_CLIENT_STAMP)

$(PYTHON_CLIENT_STAMP): $(PYTHON_CLIENT)/pyproject.toml $(PYTHON_CLIENT)/requirements.lock $(STAMP)
	@echo "installing the Python client, and what its tests need, into $(PYTHON_CLIENT)/.venv ..."
	@[ -x $(PYTHON_CLIENT_BIN)/python ] || $(BIN)/python -m venv $(PYTHON_CLIENT)/.venv
	@$(PYTHON_CLIENT_BIN)/python -m pip --disable-pip-version-check -qq install --require-hashes -r $(PYTHON_CLIENT)/requirements.lock
	@$(PYTHON_CLIENT_BIN)/python -m pip --disable-pip-version-check -qq install --no-build-isolation --no-deps -e $(PYTHON_CLIENT)
	@touch $@

python-client-test: python-client
	cd $(PYTHON_CLIENT) && .venv/bin/python -m pytest $(ARGS)

check: format lint types layers docs test

check-all: export ALL_WAYS = 1
check-all: check

format: setup
	$(BIN)/ruff format --check $(CHECKED)

lint: setup
	$(BIN)/ruff check $(CHECKED)

types: setup python-client
	$(BIN)/mypy
	cd $(PYTHON_CLIENT) && .venv/bin/mypy

layers: setup
	$(BIN)/lint-imports

EXAMPLES ?= 200
api-test: setup
	API_TEST_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/api -o timeout=1200

ROUNDS ?= 1000
crash-test: setup
	CRASH_TEST_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/crash -s -o timeout=7200

.PHONY: workers-test
workers-test: ROUNDS = 200
workers-test: setup
	WORKERS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/server/test_worker_kills.py -s -o timeout=7200

SEEDS ?= 0-999
.PHONY: simulate
simulate: setup
	$(BIN)/python -m tests.simulation $(SEEDS) --processes 2 $(ARGS)

.PHONY: mutants
mutants: setup
	$(BIN)/python -m tests.mutants $(ARGS)

relay-test: ROUNDS = 200
relay-test: setup python-client
	cd $(PYTHON_CLIENT) && RELAY_TEST_ROUNDS=$(ROUNDS) .venv/bin/python -m pytest tests/test_relay_kills.py -s -o timeout=7200

SECONDS ?= 60
fuzz: setup
	FUZZ_SECONDS=$$(($(SECONDS) / 2)) $(BIN)/python -m pytest tests/edge/test_crash_hunt.py tests/differential/test_mutations.py -o timeout=0

MUTATIONS ?= 100000
differential: setup
	$(BIN)/python -m tests.differential --mutations $(MUTATIONS) $(if $(SEED),--seed $(SEED))

MINUTES ?= 15
.PHONY: soak
soak: setup
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

# The server's processes are measured, too: those that are forked, and those that are commands. ARGS selects tests; then
# what earlier runs have found is kept, so that the whole can be run in parts, as it is without ARGS. Left out is what
# runs no line that others do not: requests made by chance, processes that are killed, browsers, examples, planted bugs.
MEASURED := actors identity storage cluster edge server cli clients differential simulation documents
MEASURE := $(BIN)/python -m coverage run -m pytest $(IN_FOUR)
.PHONY: coverage coverage-page
coverage: setup python-client
	@$(if $(ARGS),,rm -rf build/coverage)
	-@$(if $(ARGS),$(MEASURE) $(ARGS),for part in $(MEASURED); do $(MEASURE) -k "not kill" tests/$$part; done)
	@$(MAKE) -s coverage-page

coverage-page: setup
	@$(BIN)/python -m coverage combine --append --quiet build/coverage || true
	$(BIN)/python -m tests.documents.coverage

bench: peers
	$(BIN)/python -m benchmarks $(ARGS)

bench-targets: peers
	$(BIN)/python -m benchmarks.targets $(ARGS)

bench-growth: peers
	$(BIN)/python -m benchmarks.growth $(ARGS)

bench-workers: peers
	$(BIN)/python -m benchmarks.workers $(ARGS)

.PHONY: bench-cluster
bench-cluster: setup nats-server $(NATIVE)/load
	$(BIN)/python -m benchmarks.cluster $(ARGS)

bench-proxies: setup
	$(BIN)/python -m benchmarks.proxies $(ARGS)

bench-report: setup
	$(BIN)/python -m benchmarks.report $(ARGS)

bench-storage: setup
	$(BIN)/python -m benchmarks.storage $(ARGS)

bench-restart: setup
	$(BIN)/python -m benchmarks.restart $(ARGS)

bench-isolation: setup
	$(BIN)/python -m benchmarks.isolation

first-hour: setup
	$(BIN)/python -m benchmarks.first_hour

bench-abuse: setup $(NATIVE)/load
	$(BIN)/python -m benchmarks.abuse $(ARGS)

bench-compare: setup $(NATIVE)/load
	$(BIN)/python -m benchmarks.compare --before "$(BEFORE)" $(ARGS)

bench-console: setup $(NATIVE)/load
	$(BIN)/python -m benchmarks.console $(ARGS)

bench-crowd: setup $(NATIVE)/load
	$(BIN)/python -m benchmarks.crowd $(ARGS)

$(BENCH_STAMP): requirements/bench.lock $(STAMP)
	@echo "installing the servers to compare with into $(BENCH_VENV) ..."
	@[ -x $(BENCH_VENV)/bin/python ] || $(BIN)/python -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check -qq install --require-hashes -r requirements/bench.lock
	@touch $@

nats-server: $(CLUSTER_STAMP)

.PHONY: cluster chaos
cluster: setup nats-server
	@exec $(BIN)/python -m tests.cluster $(ARGS)

chaos: ROUNDS = 1
chaos: setup nats-server
	@exec $(BIN)/python -m tests.cluster.chaos --rounds $(ROUNDS) $(ARGS)

$(CLUSTER_STAMP): requirements/cluster.lock $(STAMP)
	@echo "installing a NATS server into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/cluster.lock
	@touch $@

$(DOCS_STAMP): requirements/docs.lock | $(STAMP)
	@echo "installing what builds the site into $(DOCS_VENV) ..."
	@[ -x $(DOCS_VENV)/bin/python ] || $(BIN)/python -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check -qq install --require-hashes -r requirements/docs.lock
	@touch $@

# What Sphinx kept of the last build may hide a warning: a page that has not changed is not read again. Hence -E.
docs: $(DOCS_STAMP)
	@rm -rf build/site
	@$(DOCS_VENV)/bin/python -m sphinx -q -E -n -W --keep-going -j 2 -c docs/site -d build/site-read . build/site
	@echo '<!doctype html><meta http-equiv="refresh" content="0; url=docs/README.html">' > build/site/index.html
	@$(DOCS_VENV)/bin/python docs/site/built.py build/site
	@echo "the site begins at build/site/index.html"

# Without npm the peer on Node.js is left out, and the benchmark says so.
peers: setup $(BENCH_STAMP) load-generator $(if $(shell command -v npm),$(NODE_PEERS)/.up-to-date)

$(NODE_PEERS)/.up-to-date: $(addprefix benchmarks/peers/,package.json package-lock.json ws_broadcast.mjs)
	@mkdir -p $(NODE_PEERS)
	@cp $^ $(NODE_PEERS)
	@cd $(NODE_PEERS) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

load-generator: $(NATIVE)/load $(NATIVE)/floor

$(NATIVE)/load: $(addprefix benchmarks/native/,load.c client.c frame.c measure.c client.h frame.h measure.h)
$(NATIVE)/floor: benchmarks/native/floor.c
$(NATIVE)/%:
	@command -v $(CC) >/dev/null || { echo "make: the load generator is C: install a compiler, or name it: make $@ CC=..." >&2; exit 1; }
	@mkdir -p $(NATIVE)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -o $@ $(filter %.c,$^)

# The locks hold for every supported Python and name no index, so that the machine's own pip settings decide.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(ARGS)
lock:
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) install "uv>=0.13,<0.14"
	$(COMPILE) pyproject.toml --output-file requirements/run.lock
	$(COMPILE) pyproject.toml --group dev --constraint requirements/run.lock --output-file requirements/dev.lock
	$(COMPILE) pyproject.toml --group bench --constraint requirements/run.lock --output-file requirements/bench.lock
	$(COMPILE) --group pyproject.toml:docs --output-file requirements/docs.lock
	$(COMPILE) --group pyproject.toml:cluster --output-file requirements/cluster.lock
	$(COMPILE) $(PYTHON_CLIENT)/pyproject.toml --extra trio --extra sqlalchemy --group $(PYTHON_CLIENT)/pyproject.toml:dev \
		--constraint requirements/dev.lock --output-file $(PYTHON_CLIENT)/requirements.lock

autobahn: setup
	@$(BIN)/python -m tests.edge.autobahn $(ARGS)

.PHONY: container-test
container-test: setup
	@$(BIN)/python -m tests.deploy.container $(ARGS)

settings: setup
	$(BIN)/python -m web.server.settings > docs/SETTINGS.md

log: setup
	$(BIN)/python -m web.server.log_events > docs/LOG.md

metrics: setup
	$(BIN)/python -m web.server.metrics > docs/METRICS.md

limits: setup
	$(BIN)/python -m tests.documents.limits

guarantees: setup
	$(BIN)/python -m tests.documents.guarantees

node-packages: $(NODE)/.up-to-date

$(NODE)/.up-to-date: tests/documents/package.json tests/documents/package-lock.json
	@command -v npm >/dev/null || { echo "make: these packages are npm's: install Node.js with npm" >&2; exit 1; }
	@mkdir -p $(NODE)
	@cp $^ $(NODE)
	@cd $(NODE) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(DOCS_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	rm -rf $(addprefix $(PYTHON_CLIENT)/,.venv .mypy_cache .pytest_cache .hypothesis)
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

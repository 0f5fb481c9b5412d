# `make demo` is all a newcomer needs: no keys, no root, no Docker.  POSIX sh and GNU make 3.81 (macOS) are enough.

.POSIX:
SHELL = /bin/sh
BIN = .venv/bin
RUNTIME = .venv/.runtime-installed
DEV = .venv/.dev-installed

# Settings of the user's pip say where packages come from and stay; those that would install elsewhere or differently
# than the lock says do not reach it.
PIP = env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_CONSTRAINT -u PIP_BUILD_CONSTRAINT -u PIP_REQUIREMENT \
	-u PIP_NO_BINARY -u PIP_NO_DEPS -u PIP_PYTHON -u PIP_ONLY_BINARY -u PIP_DRY_RUN -u PYTHONHOME -u PYTHONPATH \
	PIP_USER=0 PIP_REQUIRE_HASHES=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip --quiet --quiet

.PHONY: help demo up test lint lock bench soak clean

help:
	@echo 'make demo    run the whole distillation of examples/support_tickets.jsonl here, without keys or Docker'
	@echo 'make up      run the stack and keep it running (see also: $(BIN)/distill --help)'
	@echo 'make test    the tests, with real workers, a real Valkey and kill -9'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   the benchmarks (ARGS=--quick);  make soak   all fault tests, many times over'
	@echo 'make lock    resolve the dependencies again;  make clean   remove what was built (never your data)'

demo: $(RUNTIME)
	@$(BIN)/distill demo

up: $(RUNTIME)
	@$(BIN)/distill up

# Test files run two at a time, which two cores carry: most of the time, the tests wait.
PROCESSES = 2

# The tests start more than a hundred processes; where bytecode is not kept, each compiles the product anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q

test: $(DEV)
	@$(PYTEST) --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(DEV)
	@$(BIN)/python -m bench $(ARGS)

# The fault tests again and again, since what they look for hides in timing: make soak ROUNDS=100
ROUNDS = 20

soak: $(DEV)
	@round=1; while [ $$round -le $(ROUNDS) ]; do \
		echo "round $$round of $(ROUNDS)"; \
		$(PYTEST) -m "soak or not soak" tests/faults tests/e2e || exit 1; \
		round=$$((round + 1)); \
	done

# Resolved for Linux and macOS, x86-64 and ARM, Python 3.11 to 3.14; names no registry.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv --no-config --quiet pip compile pyproject.toml --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links

lock: $(DEV)
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra dev --constraints requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): requirements.lock pyproject.toml
	@python=; \
	for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3.14 python3; do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'Python 3.11 or newer is needed and none was found on the PATH.' >&2; \
		echo 'Install one (apt install python3.13, brew install python@3.13) or name it: make PYTHON=/path/to/python3' >&2; \
		exit 1; fi; \
	if ! $$python -c 'import ensurepip, venv' >/dev/null 2>&1; then \
		echo "$$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; fi; \
	echo "Making .venv with $$($$python -V), once (about half a minute)"; \
	env -u PYTHONHOME -u PYTHONPATH $$python -m venv --clear .venv
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock
	@echo 'Adding what the tests need to .venv'
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

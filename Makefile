# Everything runs in .venv, which the first command builds. Another interpreter: make clean, then
# make PYTHON=python3.12 demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: venv demo test test-all lint clean

venv: $(VENV)/.dev

demo: $(VENV)/.base
	$(BIN)/jukebox-jax demo --out demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The stamps keep pip from running again until the requirements change. A system Python without ensurepip (Debian
# ships it apart, as python3-venv) can still lend its own pip.
$(VENV)/.base: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11: choose another with make PYTHON=..." >&2; exit 2; }
	@rm -f $@ $(VENV)/.dev
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) install --quiet -c constraints.txt -e ".[export]"
	@touch $@

# tinysoundfont asks for PyAudio, which plays aloud, is not needed here, and has to be compiled.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	$(PIP) install --quiet -c constraints.txt --no-deps tinysoundfont
	@touch $@

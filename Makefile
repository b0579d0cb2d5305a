# make demo, make test and make check set everything up in $(VENV) by themselves.
#   VENV=/somewhere            where that is; .venv if left out
#   PYTHON=/path/to/python     an environment that has everything already: nothing is installed
VENV ?= .venv
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

ifeq ($(origin PYTHON),command line)
RUN := $(PYTHON)
export PYTHONPATH := $(CURDIR)
else
RUN := $(VENV)/bin/python
DEV := $(VENV)/.planish-dev
DEMO := $(VENV)/.planish-demo
endif

TESTS = OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2

.PHONY: demo test check static bench zoo venv clean

demo: $(DEMO)
	$(RUN) examples/digits.py

test: static
	$(TESTS) --durations 10

check: static
	$(TESTS) -m "not slow"

static: $(DEV)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo

bench: $(DEV)
	$(RUN) -m benchmarks.latency
	$(RUN) -m benchmarks.accuracy
	$(RUN) -m benchmarks.compile_cost

zoo: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.zoo

venv: $(DEV)

$(VENV)/.planish-dev: $(VENV)/.planish-torch pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.planish-demo: $(VENV)/.planish-torch pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

# Before anything else, and with no dependency resolved: nothing may bring torch's CUDA build along. The CPU build sorts
# above it wherever both are found. Where that index cannot be reached, pip takes what it finds elsewhere.
$(VENV)/.planish-torch:
	@python=$$(for name in python3.11 python3 python3.12 python3.13; do \
	    $$name -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; \
	done); \
	test -n "$$python" || { echo 'Install Python 3.11 or newer with its venv module (Debian: python3-venv).' >&2; exit 1; }; \
	echo "Making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) --constraint constraints.txt torch
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

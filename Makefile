# vidlit: everything sets itself up from nothing. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.vidlit-dev
# One thread each; bytecode kept (in .venv) even where the environment keeps none, or each of many processes compiles torch anew
ONE    := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/bytecode
OUT    ?= results
ARGS   ?=

.PHONY: help setup reproduce test test-nbs test-py check docs docs-check preview bench clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with everything (uv where it can be had, else pip)

$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v=sys.version_info; sys.exit(0 if v>=(3,11) else f"vidlit needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q --disable-pip-version-check uv || echo 'uv cannot be had: pip it is (slower)'
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then $(BIN)/python -m uv pip install --python $(BIN)/python -e '.[dev]'; \
	 else $(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'; fi
	@touch $@

reproduce: $(STAMP)  ## Run the headline experiments and write results/report.html (make reproduce ARGS="--all")
	$(ONE) $(BIN)/vidlit reproduce --out $(OUT) $(ARGS)

test: check test-nbs test-py  ## Every test: the notebooks' lessons, then tests/

test-nbs: $(STAMP)
	$(ONE) $(BIN)/nbdev_test --n_workers 2 --timing

test-py: $(STAMP)
	$(ONE) $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder -q --timeout 300 --durations 12

check: $(STAMP)  ## Seconds: export in sync, notebooks clean, chkstyle quiet, layers, ruff
	$(BIN)/python tests/check.py

docs: $(STAMP)  ## Render the site with nbdev and Quarto
	@if command -v quarto >/dev/null; then $(BIN)/nbdev_docs; else echo 'make docs needs Quarto on PATH: https://quarto.org/docs/get-started (then run it again)'; fi

preview: $(STAMP)  ## Every page as HTML without Quarto, into _preview/ (make preview ARGS="nn/02_vit.ipynb --shots shots")
	$(ONE) $(BIN)/python tests/preview.py $(ARGS)

docs-check: $(STAMP)  ## Parse every page as the site would, without Quarto
	$(ONE) $(BIN)/python -m pytest tests/test_docs.py -q

bench: $(STAMP)  ## Run benchmarks/, both sides alternating on one thread, JSON into benchmarks/results/
	@set -e; for b in benchmarks/*.py; do echo "== $$b"; $(ONE) $(BIN)/python $$b; done

clean:  ## Remove what can be made again (not .venv, not results)
	rm -rf _docs _proc _preview build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Everything runs in a virtual environment that is made on first use:
#   .venv for python3, .venv-NAME for another interpreter (make test PYTHON=python3.12).
# The demo and the tests keep one stamp each, so that the demo installs only what it needs.

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
RUN := $(VENV)/bin/python
# The models are small: more threads gain little, and lose much on a machine that others use.
ONE_THREAD := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check --editable

.PHONY: help demo test lint docs tutorials conformance gpu clean
.NOTPARALLEL:

help:
	@echo "make demo         train on bundled PBMC counts and compare with scVI (writes demo/)"
	@echo "make test         the test suite"
	@echo "make lint         linters, formatter check and type checker"
	@echo "make docs         the documentation, warnings as errors (docs/_build/html)"
	@echo "make tutorials    run every notebook with few epochs (writes nothing)"
	@echo "make conformance  scvi-tools' own tests against MixtureSCVI (CONTROL=1: against SCVI)"
	@echo "make gpu          all that needs a GPU: tests, timings, the paper's table (MINUTES=60)"
	@echo "make clean        remove environments and everything built"
	@echo "Another interpreter: PYTHON=python3.12"

demo: $(VENV)/.demo
	$(ONE_THREAD) $(RUN) tutorials/demo.py

test: $(VENV)/.dev
	$(ONE_THREAD) $(RUN) -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.dev
	$(RUN) -m sphinx -E -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.dev
	$(RUN) tutorials/execute.py --smoke

conformance: $(VENV)/.dev
	$(ONE_THREAD) $(RUN) -m tests.conformance $(if $(CONTROL),--control) $(ARGS)

gpu: $(VENV)/.dev
	$(RUN) -m benchmarks.gpu --minutes $(or $(MINUTES),60)

clean:
	rm -rf .venv .venv-* .conformance demo docs/_build docs/generated docs/_tutorials build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.demo: EXTRAS = cluster
$(VENV)/.dev: EXTRAS = dev
$(VENV)/.demo $(VENV)/.dev: pyproject.toml
	@echo "Installing scmixvi[$(EXTRAS)] into $(VENV) (a few minutes the first time)"
	$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[$(EXTRAS)]"
	touch $@

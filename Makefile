# Everything a person or CI does here. `make demo` and `make test` need nothing but Python 3.11 and gcc.
PYTHON ?= python3.11
VENV := .venv
# Where torch comes from, if not from pip's own index: https://download.pytorch.org/whl/cpu saves gigabytes of CUDA.
TORCH_INDEX ?=
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: install demo test serve lint bench format clean

install: $(INSTALLED)

# torch first and alone, with its exact version: resolving it as a dependency of others may pick a build with CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade-strategy only-if-needed $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(PY) -m app demo

test: install
	$(PY) -m pytest

serve: install
	$(PY) -m app serve

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install
	$(PY) -m benchmarks.run

clean:
	rm -rf $(VENV) build var .pytest_cache .mypy_cache .ruff_cache .hypothesis

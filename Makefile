# All commands of developers and CI. `make demo` and `make test` need only Python 3.11.
PYTHON ?= python3.11
VENV := .venv
# Index for torch instead of PyPI: https://download.pytorch.org/whl/cpu avoids gigabytes of CUDA packages.
TORCH_INDEX ?=
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: install demo test serve lint bench chaos fuzz soak docs site weights format clean

install: $(INSTALLED)

# torch first and alone, at its exact version: as a dependency of other packages pip may pick a CUDA build. pip would
# compile on one core; some packages hold files that no Python can compile.
$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt setup.py app/method/conv_crf.cpp
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile --upgrade-strategy only-if-needed $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet --no-compile --constraint constraints.txt --editable ./client --editable ".[dev]"
	$(PY) -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

demo: install
	$(PY) -m app demo

test: install
	$(PY) -m pytest --numprocesses auto --dist worksteal

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

# Kills, stops, cuts and fills what a service runs on, under load; ARGS="--seed 7 --seconds 300 --kills 30".
chaos: install
	$(PY) -m tests.chaos $(ARGS)

# Random requests by the OpenAPI document, hostile uploads, damaged records; ARGS="--seed 7 --examples 100".
fuzz: install
	$(PY) -m tests.fuzz $(ARGS)

# Memory, open files and keys under load; ARGS="--minutes 2 --clients 4".
soak: install
	$(PY) -m tests.soak $(ARGS)

# Writes docs/settings.md, docs/metrics.md and docs/code.md from the code.
docs: install
	$(PY) -m docs.generate

# The documents as a site in build/site; a link that leads nowhere fails it.
site: install
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[site]"
	$(PY) -m docs.site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Photos to train on: see docs/embedded-model.md. The MALLOC settings keep freed memory in the process, which makes
# training a third faster.
DATA ?= ../shared/data
weights: install
	mkdir -p build
	$(PY) -m pip install --quiet --no-deps --requirement training/requirements.txt
	MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=536870912 \
	    $(PY) -m training --data $(DATA) --out build/embedded.safetensors
	cp build/embedded.safetensors app/backbones/embedded/weights/
	$(PY) -m training.presence --data $(DATA) --out app/backbones/embedded/weights/presence.safetensors
	$(PY) -m training.clicks --data $(DATA)

# What was taught, in var, stays.
clean:
	rm -rf $(VENV) build app/method/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

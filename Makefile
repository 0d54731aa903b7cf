# Two commands: `make demo` fills masks in real sentences, `make test` runs the whole suite.
# KERAS_BACKEND (jax, torch or tensorflow) picks the backend of the demo.

PYTHON ?= python3
KERAS_BACKEND ?= jax
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow and XLA greet on stderr; what they have to say there is for their developers.
QUIET := TF_CPP_MIN_LOG_LEVEL=2
# A process a core with a thread each, as most tests are too small to use more.
# What XLA compiled once it finds again, in the processes that tests start and in the next run.
JAX_CACHE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/jax_cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
PYTEST := OMP_NUM_THREADS=1 $(QUIET) $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-full parity benchmark lint format clean

demo: $(VENV)/.installed
	@$(QUIET) KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/keras-megatron fill-mask

test: lint
	KERAS_BACKEND=torch $(PYTEST)
	KERAS_BACKEND=jax $(JAX_CACHE) $(PYTEST)
	KERAS_BACKEND=tensorflow $(PYTEST)

# The 345M shape, once a backend: minutes, and about 8 GB of memory.
test-full: $(VENV)/.installed
	$(QUIET) KERAS_BACKEND=jax $(BIN)/python -m pytest -q -m full_size
	$(QUIET) KERAS_BACKEND=torch $(BIN)/python -m pytest -q -m full_size
	$(QUIET) KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -m full_size

# The table of differences to Hugging Face that README.md shows.
parity: $(VENV)/.installed
	@$(QUIET) $(BIN)/python tools/parity_table.py --full

# Loading, conversion and tokenizing next to the peers: about ten minutes, 8 GB of memory.
benchmark: $(VENV)/.installed
	@$(QUIET) PYTHONPATH=tests $(BIN)/python benchmarks/loading.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[jax,torch,tensorflow,serving,dev]'
	touch $@

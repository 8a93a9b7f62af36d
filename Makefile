# make train | test | lint ...: each creates .venv on first use and installs from pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train train-images test test-slow gpu lint format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Create .venv and install the project with its development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Heddle needs Python 3.11 or newer; make PYTHON=python3.12 ... chooses one" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

train: $(STAMP)  ## Train the default translator on the built-in corpus (3 minutes on 2 CPU cores)
	$(BIN)/python -m experiments fit -c experiments/configs/translation/synthetic.yaml

train-images: $(STAMP)  ## Train the default image classifier on the built-in corpus (4 minutes on 2 CPU cores)
	$(BIN)/python -m experiments fit -c experiments/configs/classification/synthetic.yaml

test: $(STAMP)  ## Run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

# Uses $(PYTHON) as it is: torch, triton, numpy, pytest and matplotlib are enough. Each part has a time limit; tests run
# side by side, because most of their time goes to compiling.
gpu:  ## On a GPU: kernel tests, then kernel benchmarks, in 9 minutes; installs nothing
	@$(PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu needs a CUDA GPU that torch sees")'
	@status=0; \
	ls tests/kernels/test_*.py | grep -v -e compile_only -e properties -e attention_op | \
		xargs -P 8 -I{} timeout --signal=INT 110 $(PYTHON) -m pytest -q {} || status=1; \
	printf '%s\n' "flash_attention_op.py -k 'not every_tile'" "flash_attention_op.py -k 'every_tile and forward'" \
		"flash_attention_op.py -k 'every_tile and backward_query'" "flash_attention_op.py -k 'every_tile and backward_key'" \
		"flash_attention_op.py -k 'every_tile and backward_bias'" "window_attention_op.py -k 'not every_shape'" \
		"window_attention_op.py -k 'every_shape and dtype0'" "window_attention_op.py -k 'every_shape and dtype1'" \
		"window_attention_op.py -k 'every_shape and dtype2'" | \
		xargs -d '\n' -P 9 -I{} sh -c "timeout --signal=INT 120 $(PYTHON) -m pytest -q tests/kernels/test_{}" || status=1; \
	timeout --signal=INT 150 $(PYTHON) -m experiments bench attention --seconds 110 --record --plot || status=1; \
	timeout --signal=INT 45 $(PYTHON) -m experiments bench layer_norm --seconds 30 --record --plot || status=1; \
	timeout --signal=INT 50 $(PYTHON) -m experiments bench linear_cross_entropy --seconds 30 --record --plot || status=1; \
	timeout --signal=INT 60 $(PYTHON) -m experiments bench window_attention --seconds 40 --record --plot || status=1; \
	exit $$status

lint: $(STAMP)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the virtual environment and caches (data/ and runs/ stay)
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info

# The short commands. Each makes the virtual environment and builds the kernels where that is still to do,
# for the instruction-set levels that this machine can run (a wheel has all of them).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/ptx/*.cpp csrc/ptx/*.h) setup.py pyproject.toml

.PHONY: train test bench lint clean

train: $(VENV)/.built  ## train a small GPT on Shakespeare for about three minutes and show a sample
	$(BIN)/minigrad train gpt --preset demo --out runs/demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: $(VENV)/.built  ## the tests that need neither a GPU nor torch nor a connection
	$(BIN)/python -m pytest tests $(ARGS)

bench: $(VENV)/.built  ## kernels and training steps, with ratios to torch where it is installed
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-columns=min,median,rounds -o python_files="bench_*.py" -o python_functions="bench_*" $(ARGS)
	$(BIN)/python bench/compare.py $(ARGS)

lint: $(VENV)/.built  ## formatting, lint and types
	MINIGRAD_LEVELS=here $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[lint]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/ptx/*.cpp csrc/ptx/*.h $(wildcard kernels/cu/*.cu*)

$(VENV)/.built: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit("minigrad needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel 'numpy>=2.0' pybind11
	MINIGRAD_LEVELS=here $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[plot,test]'
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) minigrad/*.so

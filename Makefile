# make demo   install into .venv and generate a page of clips:   out/demo/index.html
# make test   install into .venv with the test extras and run the suite
# make lint   ruff, mypy and clang-format as CI runs them
# Both make a virtual environment of their own under the repository if none is there. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt pyproject.toml constraints-dev.txt
PYTEST_ARGS ?=

.PHONY: demo test lint clean

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints-dev.txt scikit-build-core pybind11 ninja cmake
	$(PIP) install -c constraints-dev.txt --no-build-isolation -e ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lumos demo --out out/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(PIP) install -c constraints-dev.txt ruff mypy types-PyYAML clang-format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build out $(VENV)

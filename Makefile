# make demo   install into .venv and generate a page of clips:   out/demo/index.html
# make test   install into .venv with the test extras and run the suite
# make toolkit   nvcc from the package registry into .venv, for where there is none: before make test
# make lint   ruff, mypy and clang-format as CI runs them
# make sanitize   the tests of the operations on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer (gcc)
# All make a virtual environment of their own under the repository if none is there. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt pyproject.toml constraints-dev.txt
PYTEST_ARGS ?=
# Of the CUDA kernels, where there is nvcc: code for 8.0, and PTX for later GPUs.
CUDA_ARCHITECTURES ?= 80
SANITIZE := build/sanitize
# The interpreter is not instrumented, so what the extension's code calls into must be there before it.
RUNTIMES = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))

.PHONY: demo test toolkit lint sanitize clean

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints-dev.txt scikit-build-core pybind11 ninja cmake
	SKBUILD_CMAKE_DEFINE="LUMOS_PTXVM=ON;CMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)" \
	  $(PIP) install -c constraints-dev.txt --no-build-isolation -e ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lumos demo --out out/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

toolkit:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -r cmake/cuda_wheels.txt

lint: $(VENV)/.installed
	$(PIP) install -c constraints-dev.txt ruff mypy types-PyYAML clang-format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

sanitize: $(VENV)/.installed
	$(BIN)/cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DLUMOS_SANITIZE=address,undefined \
	  -DLUMOS_CUDA=OFF -DPython_EXECUTABLE=$(abspath $(BIN)/python) -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build $(SANITIZE)
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LUMOS_TEST_EXTENSION=$$(echo $(SANITIZE)/_C*.so) \
	  $(BIN)/python -m pytest python_tests/ops --capture sys --hypothesis-profile quick $(PYTEST_ARGS)

clean:
	rm -rf build out $(VENV)

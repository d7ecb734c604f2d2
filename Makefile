# Two commands: `make demo` and `make test`. Each makes .venv where it is missing and installs what it needs into it,
# once: a stamp remembers what was installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
# A test takes a thread and up to 3 GB; the tests are shared by as many processes as have a core each on a laptop.
WORKERS ?= 2

.PHONY: demo test check docs test-processors bench-train bench-lora bench-preferences bench-generate bench-gpu bench-peers browser clean

demo: $(RUN_STAMP)
	@echo "==> tuneful run starter: the whole job, from data to report"
	@$(BIN)/tuneful run starter

test: check browser
	@echo "==> pytest, in $(WORKERS) processes"
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

check: $(TEST_STAMP)
	@echo "==> ruff format, ruff check, mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# The pages as HTML in docs/_build; a warning is an error. Needs no network.
docs: $(TEST_STAMP)
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "==> docs/_build/html/index.html"

# The kernels on lesser processors, as this one can be told to be; half an hour on two cores.
test-processors: $(TEST_STAMP)
	@$(BIN)/python tools/processors.py

# make bench-lora BENCH="--quick --model tiny"
bench-train: $(TEST_STAMP)
	@$(BIN)/python benchmarks/train.py $(BENCH)

bench-lora: $(TEST_STAMP)
	@$(BIN)/python benchmarks/lora.py $(BENCH)

bench-preferences: $(TEST_STAMP)
	@$(BIN)/python benchmarks/preferences.py $(BENCH)

bench-generate: $(TEST_STAMP)
	@$(BIN)/python benchmarks/generate.py $(BENCH)

# On a machine with a GPU: random weights, nothing is downloaded; the same command goes on where a time limit cut it.
bench-gpu: $(TEST_STAMP)
	@$(BIN)/python benchmarks/gpu.py $(BENCH)

bench-peers: $(TEST_STAMP)
	@cd benchmarks && ../$(BIN)/python -m train_peers.systems

$(VENV)/bin/python:
	@echo "==> making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> installing tuneful into $(VENV) (about 1 GB, most of it PyTorch; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(TEST_STAMP): $(RUN_STAMP)
	@echo "==> installing the test tools into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The report is looked at in a real browser. Debian and Ubuntu: installed here where that is allowed.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "==> installing Chromium for the report's browser test (once)"; \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else echo "no chromium found: install it (Debian: sudo apt-get install chromium)" >&2; exit 1; fi; }

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

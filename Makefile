# `make test` and `make demo` need nothing but Python 3.11 or newer and a C++ compiler: the environment in .venv is
# made when it is missing, and made again when requirements.lock or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
UV_VERSION := 0.13.8

.PHONY: test quick demo docs style lint lock format

# Types are checked by a test, beside the others. Three processes keep two cores busy: tests of clusters wait at times.
test: $(READY) style
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests

# For while you work: lint, types, and tests of the core that finish within two minutes.
QUICK := benchmark/pipeline benchmark/evaluation benchmark/source datasets/io datasets/tools leaderboard/analysis \
	leaderboard/tables package/test_layout.py golden/test_earlier_work_folder.py

quick: $(READY) lint
	$(BIN)/python -m pytest -n 2 -q -m "not slow" $(addprefix tests/,$(QUICK))

demo: $(READY)
	@mkdir -p seedbed-work/demo
	@$(BIN)/seedbed data generate chimera --layout voc --images 100 --size 64 --out seedbed-work/demo/chimera-voc
	@$(BIN)/seedbed data generate chimera --layout coco --images 100 --size 64 --out seedbed-work/demo/chimera-coco
	$(BIN)/seedbed sweep benchmark/demo.yaml
	$(BIN)/seedbed leaderboard --sweep demo --out seedbed-work/demo/site
	@echo "MLflow: $(BIN)/seedbed ui"
	@echo "The leaderboard, to open in a browser: $(CURDIR)/seedbed-work/demo/site/index.html"

# The documentation site, in site/.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "The documentation, to open in a browser: $(CURDIR)/site/index.html"

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compiles requirements.lock from pyproject.toml. The lock names no index, so it works behind any mirror.
lock: $(UV)
	$(UV) pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --upgrade --custom-compile-command "make lock" -o requirements.lock

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Seedbed needs Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(READY): $(UV) requirements.lock pyproject.toml
	@command -v $${CXX:-c++} >/dev/null 2>&1 \
		|| { echo "pydensecrf2 (the dense CRF) is built from source and needs a C++ compiler; \
	on Debian: apt-get install g++ python3-dev; on Red Hat: dnf install gcc-c++ python3-devel; on macOS: xcode-select --install" >&2; exit 1; }
	@echo "Installing the locked packages into $(VENV) (a few minutes and about 5 GB the first time)"
	@$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock \
		|| { echo "The installation failed. If it stopped at pydensecrf2, it needs a C++ compiler and Python's headers; \
	on Debian: apt-get install g++ python3-dev" >&2; exit 1; }
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@mkdir -p $(VENV)/typing/seedbed
	@cd $(VENV)/typing/seedbed && ln -sfn ../../../seedbed.py __init__.py \
		&& for package in benchmark methods datasets leaderboard; do ln -sfn ../../../$$package $$package; done
	@touch $@

# Requires Python 3.11 to 3.13 and make; everything else is installed into .venv
PYTHON ?= python3
BIN := .venv/bin
# three processes, one test file at a time, in the order of the folders, slow files first
SUITE := -n 3 --dist loadfile --no-loadscope-reorder
# pin build dependencies too; pip before 25.3 reads only the first variable, later versions the second
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

.PHONY: train test quick test-latest bits constraints check dashboard report reproduce benchmark looking stacked chaos structure gallery reference docs-commands clean

train: .venv/installed ## train experiment=regression_sqrt; ARGS="seed=3" adds overrides
	$(BIN)/snnexp train experiment=regression_sqrt $(ARGS)

test: .venv/installed-dev ## all tests, about ten minutes on two cores
	$(BIN)/python -m pytest $(SUITE) $(ARGS)

quick: .venv/installed-dev ## all tests except the slow ones, about two minutes on two cores
	$(BIN)/python -m pytest $(SUITE) -m "not slow" $(ARGS)

test-latest: .venv-latest/installed-dev ## all tests with the newest releases that pyproject.toml allows
	.venv-latest/bin/python -m pytest $(SUITE) $(ARGS)

bits: .venv/installed-dev ## compare every recipe bit by bit with the commits in tests/old; five minutes on an idle machine
	$(BIN)/python scripts/same_bits.py $(ARGS)

constraints: .venv/installed-dev ## update the versions in constraints.txt, except torch and torchvision
	grep -E '^(torch|torchvision)==' constraints.txt > .venv/kept.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra peers --universal --python-version 3.11 --upgrade \
		--constraints .venv/kept.txt --no-header --no-annotate --quiet --output-file constraints.txt

check: .venv/installed-dev ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

dashboard: .venv/installed ## TensorBoard on http://127.0.0.1:6006
	$(BIN)/tensorboard --logdir outputs --host 127.0.0.1 --port 6006

report: .venv/installed ## a page that compares all runs in outputs/; ARGS="outputs/mnist_leaky" selects others
	$(BIN)/snnexp report $(or $(ARGS),outputs)

reproduce: .venv/installed-dev ## train every recipe with several seeds and compare with other libraries; about half an hour
	$(BIN)/python scripts/reproduce.py $(ARGS)

benchmark: .venv/installed-dev ## compare speed and memory with other libraries; 15 minutes on an idle machine
	$(BIN)/python scripts/benchmark.py $(ARGS)

looking: .venv/installed-dev ## measure the cost of figures, reports and run lists; 20 minutes on an idle machine
	$(BIN)/python scripts/looking.py $(ARGS)

gallery: .venv/installed-dev ## generate the figures of the README; a few minutes
	$(BIN)/python scripts/gallery.py

reference: .venv/installed-dev ## generate docs/reference.md, the keys of every choice
	$(BIN)/python scripts/reference.py

docs-commands: .venv/installed-dev ## run the commands of the documentation verbatim; ARGS="docs/sweeps.md" for one page
	$(BIN)/python scripts/docs_commands.py $(ARGS)

stacked: .venv/installed-dev ## measure the speedup of stacked training and the overhead per sweep point; on an idle machine
	$(BIN)/python scripts/stacked.py $(ARGS)
	$(BIN)/python scripts/overhead.py

chaos: .venv/installed-dev ## kill runs at random times and resume them; about half an hour
	$(BIN)/python scripts/chaos.py $(ARGS)

structure: ## lines of code and imports by package; ARGS="--ref COMMIT" compares with a commit
	$(PYTHON) scripts/structure.py $(ARGS)

clean: ## remove caches, builds and .venv; keep outputs/ and data/
	rm -rf .venv .venv-latest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src scripts tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python .venv-latest/bin/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11 to 3.13 is required, set PYTHON="'
	$(PYTHON) -m venv $(@:/bin/python=)

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PINNED) $(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PINNED) $(BIN)/python -m pip install --quiet -e ".[dev,peers]"
	touch $@ .venv/installed

.venv-latest/installed-dev: pyproject.toml | .venv-latest/bin/python
	.venv-latest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[dev,peers]"
	touch $@

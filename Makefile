# Needs Python 3.11 to 3.13 and make; everything else goes into .venv
PYTHON ?= python3
BIN := .venv/bin
# whole files go to three processes, which wait often, in the order of the folders: the slow ones come first
SUITE := -n 3 --dist loadfile --no-loadscope-reorder
# also for what builds a package; pip before 25.3 knows the first name alone, later ones read the second there
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

.PHONY: train test quick test-latest bits constraints check dashboard report reproduce benchmark looking stacked chaos structure gallery reference docs-commands clean

train: .venv/installed ## the main job; ARGS="seed=3" adds overrides
	$(BIN)/snnexp train experiment=regression_sqrt $(ARGS)

test: .venv/installed-dev ## the whole suite, in less than ten minutes
	$(BIN)/python -m pytest $(SUITE) $(ARGS)

quick: .venv/installed-dev ## the suite without its slow tests, in less than two minutes
	$(BIN)/python -m pytest $(SUITE) -m "not slow" $(ARGS)

test-latest: .venv-latest/installed-dev ## the whole suite with the newest releases that pyproject.toml allows
	.venv-latest/bin/python -m pytest $(SUITE) $(ARGS)

bits: .venv/installed-dev ## every recipe beside the commits that tests/old names; five minutes, and nothing else running
	$(BIN)/python scripts/same_bits.py $(ARGS)

constraints: .venv/installed-dev ## choose the versions of constraints.txt anew; torch and torchvision stay
	grep -E '^(torch|torchvision)==' constraints.txt > .venv/kept.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra peers --universal --python-version 3.11 --upgrade \
		--constraints .venv/kept.txt --no-header --no-annotate --quiet --output-file constraints.txt

check: .venv/installed-dev ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

dashboard: .venv/installed ## TensorBoard on http://127.0.0.1:6006
	$(BIN)/tensorboard --logdir outputs --host 127.0.0.1 --port 6006

report: .venv/installed ## a page that compares all runs below outputs/; ARGS="outputs/mnist_leaky" takes others
	$(BIN)/snnexp report $(or $(ARGS),outputs)

reproduce: .venv/installed-dev ## every recipe over its seeds, beside what the peers give; about half an hour
	$(BIN)/python scripts/reproduce.py $(ARGS)

benchmark: .venv/installed-dev ## speed and memory beside the peers; a quarter of an hour, and nothing else running
	$(BIN)/python scripts/benchmark.py $(ARGS)

looking: .venv/installed-dev ## what drawing, reports and lists of runs cost; twenty minutes, and nothing else running
	$(BIN)/python scripts/looking.py $(ARGS)

gallery: .venv/installed-dev ## the figures of the README; a few minutes
	$(BIN)/python scripts/gallery.py

reference: .venv/installed-dev ## docs/reference.md, the keys of every choice
	$(BIN)/python scripts/reference.py

docs-commands: .venv/installed-dev ## run the commands of the documentation as they are written; ARGS="docs/sweeps.md" for one page
	$(BIN)/python scripts/docs_commands.py $(ARGS)

stacked: .venv/installed-dev ## what stacked training gains, and what a sweep costs per point; nothing else running
	$(BIN)/python scripts/stacked.py $(ARGS)
	$(BIN)/python scripts/overhead.py

chaos: .venv/installed-dev ## runs killed at random moments, then resumed; about half an hour
	$(BIN)/python scripts/chaos.py $(ARGS)

structure: ## lines of code by package, and how packages and modules import; ARGS="--ref COMMIT" has a commit beside it
	$(PYTHON) scripts/structure.py $(ARGS)

clean: ## caches, builds and .venv; outputs/ and data/ stay
	rm -rf .venv .venv-latest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src scripts tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python .venv-latest/bin/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11 to 3.13 is needed, set PYTHON="'
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

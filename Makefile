# On a fresh machine, `make demo` and `make test` are all there is to do: both set up what they need.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2
EMULATED_ARGS ?= -n 2
BENCH_ARGS ?=
PROMPT ?= a red circle moving left

BIN := $(VENV)/bin
STAMP := $(VENV)/.sicompiler-env

.DEFAULT_GOAL := help
.PHONY: help env demo test test-emulated test-pure test-deep check format docs dist bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

env: $(STAMP) ## create or update the virtual environment

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e '.[diffusers,test]'
	touch $@

demo: env ## make a clip untouched, in a budget, and with Step Rehash; PROMPT="a blue ring moving up"
	$(BIN)/sicompiler demo "$(PROMPT)"

test: env ## the default tests, then those on the emulated accelerator
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/emulated $(EMULATED_ARGS)

test-emulated: env ## tests on an accelerator that is emulated on the CPU; skipped where there is no C++ compiler
	$(BIN)/python -m pytest tests/emulated $(EMULATED_ARGS)

test-pure: env ## the tests that build no model of torch: half a minute
	$(BIN)/python -m pytest -m "pure and not slow" $(PYTEST_ARGS) $$(grep -rl "mark.pure" tests --include="test_*.py")

test-deep: env ## every test, slow ones included, with more examples
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -m "slow or not slow" tests/emulated $(EMULATED_ARGS)

check: env ## lint, format, types, layers, words and house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(addprefix tests/house/test_,docs.py house_rules.py layers.py structure.py words.py)

format: env ## rewrite files to the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env ## build the documentation into build/site; every link is checked
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: env ## build wheel and sdist into dist/, install the wheel into an empty environment and run the demo there
	rm -rf dist build/dist-venv
	$(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv build/dist-venv
	build/dist-venv/bin/python -m pip install --quiet -c constraints.txt "$$(echo dist/*.whl)[diffusers]"
	cd build && dist-venv/bin/sicompiler demo --output dist-demo

bench: env ## run the benchmarks
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .coverage demo_output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sicompiler passes planners tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target makes .venv if it is missing and installs what it needs; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
BUILD := build/pipeline

.PHONY: demo docs test slow check lint pipeline ml-1m quality clean

# Rank with the shipped bundle: numpy, click and onnxruntime, no torch.
demo: .venv/.base
	$(BIN)/ranklet rank models/ml-100k --history 50,181,172 --exclude-seen

# The manual, into build/site; a broken link or a warning is an error.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every promise, on few shapes.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# All shapes, full products, statistics, interrupts between any two lines.
slow: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m slow

check: lint test slow

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# From raw events to the shipped bundle: data, train, evaluate, export, verify, bench.
pipeline: .venv/.dev
	rm -rf $(BUILD) && mkdir -p $(BUILD)
	$(BIN)/ranklet data ml-100k $(BUILD)/data
	$(BIN)/ranklet train $(BUILD)/data/events.parquet --items $(BUILD)/data/items.parquet --out $(BUILD)/ml-100k
	$(BIN)/ranklet train $(BUILD)/data/events.parquet --out $(BUILD)/zero-block --preset zero-block
	$(BIN)/ranklet train $(BUILD)/data/events.parquet --out $(BUILD)/seed --preset seed
	$(BIN)/ranklet evaluate $(BUILD)/ml-100k $(BUILD)/data/events.parquet --beside $(BUILD)/zero-block --beside $(BUILD)/seed
	$(BIN)/ranklet export $(BUILD)/ml-100k models/ml-100k --replace
	$(BIN)/ranklet evaluate models/ml-100k $(BUILD)/data/events.parquet --beside $(BUILD)/zero-block --beside $(BUILD)/seed
	$(BIN)/ranklet verify models/ml-100k
	$(BIN)/ranklet bench models/ml-100k --batch 1,32 --threads 1,2 --plot $(BUILD)/latency.png

# The shipped bundle of ml-1m; DATA as below.
ml-1m: .venv/.dev
	$(BIN)/ranklet train $(DATA)/ml-1m/interactions.parquet --items $(DATA)/ml-1m/items.parquet --out build/ml-1m
	$(BIN)/ranklet train $(DATA)/ml-1m/interactions.parquet --out build/zero-block --preset zero-block
	$(BIN)/ranklet evaluate build/ml-1m $(DATA)/ml-1m/interactions.parquet --beside build/zero-block
	$(BIN)/ranklet export build/ml-1m models/ml-1m --compact --replace
	$(BIN)/ranklet verify models/ml-1m

# Train and judge everything in docs/quality.md (hours; goes on where it was stopped). DATA holds a
# folder for each data set.
DATA ?= data
quality: .venv/.dev
	$(BIN)/python benchmarks/quality.py $(DATA)

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache

.venv/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[cpu]'
	touch $@

.venv/.docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

.venv/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

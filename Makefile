# Every target makes .venv if it is missing and installs what it needs; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
BUILD := build
DATA ?= data

.PHONY: demo docs web dist arm64 test test-web slow faults fuzz mutate audit sbom check lint
.PHONY: pipeline ml-100k ml-1m quality clean

# Rank with the shipped bundle: numpy, click and onnxruntime, no torch.
demo: .venv/.base
	$(BIN)/ranklet rank models/ml-latest-small --history 1,2571

# The manual, into build/site; a broken link or a warning is an error.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The films in a browser: build the page, and serve it. Needs Node 18 or newer.
web: web/node_modules
	cd web && npm run --silent demo
	@echo 'open http://localhost:8000'
	$(PYTHON) -m http.server 8000 --directory web/demo/dist

# The package for the web, in Node and in Chromium.
test-web: web/node_modules
	cd web && npm test

# The packages of a release: sdist, the wheel that it builds, and the one for the web.
dist: .venv/.dev web/node_modules
	rm -rf $(BUILD)/dist && mkdir -p $(BUILD)/dist
	$(BIN)/python -m build --outdir $(BUILD)/dist
	cd web && npm run --silent build && npm pack --silent --pack-destination ../$(BUILD)/dist
	ls -l $(BUILD)/dist

# The golden answers on an emulated ARM processor (Debian, as root).
arm64:
	bash tests/arm64.sh

web/node_modules: web/package-lock.json
	cd web && npm ci --no-audit --no-fund
	touch $@

# Every promise, on few shapes.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# All shapes, full products, statistics, interrupts between any two lines.
slow: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m slow

# Bit flips, hostile bundles, kills, full disks, forks, a million requests; writes docs/faults.md.
faults: .venv/.dev
	PYTHONPATH=tests $(BIN)/python -m faults

# Random bytes for the readers of bundles, saved users and logs, for so many seconds in all.
SECONDS ?= 1800
fuzz: .venv/.dev
	cd tests && ../$(BIN)/python -m fuzz $(SECONDS)
# Small faults in the code that checks requests, bundles and files, and the tests that notice.
mutate: .venv/.assure
	rm -rf $(BUILD)/mutation
	$(BIN)/python benchmarks/mutation.py $(FILES)

# Known vulnerabilities of everything that development installs, where a service answers.
audit: .venv/.assure
	$(BIN)/python .ci/audit.py

# What a device installs, as CycloneDX: build/ranklet-VERSION.cdx.json, for a release.
sbom: .venv/.assure
	rm -rf $(BUILD)/device && $(PYTHON) -m venv --without-pip $(BUILD)/device
	$(BIN)/python -m pip --python $(BUILD)/device/bin/python install --quiet '.[cpu]'
	$(BIN)/cyclonedx-py environment $(BUILD)/device/bin/python --pyproject pyproject.toml --mc-type library \
		--output-reproducible --output-file $(BUILD)/ranklet-$$($(BIN)/python -c "import ranklet; print(ranklet.__version__)").cdx.json

check: lint test slow

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# From raw events to the shipped bundle: data, train, evaluate, train on all events, export, verify.
# FROM=PATH takes a copy of the data set instead of a download.
SMALL := $(BUILD)/ml-latest-small
pipeline: .venv/.dev
	rm -rf $(SMALL) && mkdir -p $(SMALL)
	$(BIN)/ranklet data ml-latest-small $(SMALL)/data $(if $(FROM),--from $(FROM))
	$(BIN)/ranklet train $(SMALL)/data/events.parquet --items $(SMALL)/data/items.parquet --attributes title:none --out $(SMALL)/ml-latest-small
	$(BIN)/ranklet evaluate $(SMALL)/ml-latest-small $(SMALL)/data/events.parquet
	$(BIN)/ranklet train $(SMALL)/data/events.parquet --items $(SMALL)/data/items.parquet --out $(SMALL)/final --final $(SMALL)/ml-latest-small
	$(BIN)/ranklet export $(SMALL)/final models/ml-latest-small --compact --replace
	$(BIN)/ranklet verify models/ml-latest-small
	$(BIN)/ranklet bench models/ml-latest-small --batch 1,32 --threads 1,2 --plot $(SMALL)/latency.png

# Bundles whose data may not be passed on: build/ml-100k/bundle, and build/ml-1m/bundle with DATA as below.
ml-100k: .venv/.dev
	rm -rf $(BUILD)/ml-100k && mkdir -p $(BUILD)/ml-100k
	$(BIN)/ranklet data ml-100k $(BUILD)/ml-100k/data
	$(BIN)/ranklet train $(BUILD)/ml-100k/data/events.parquet --items $(BUILD)/ml-100k/data/items.parquet --out $(BUILD)/ml-100k/run
	$(BIN)/ranklet evaluate $(BUILD)/ml-100k/run $(BUILD)/ml-100k/data/events.parquet
	$(BIN)/ranklet export $(BUILD)/ml-100k/run $(BUILD)/ml-100k/bundle

ml-1m: .venv/.dev
	rm -rf $(BUILD)/ml-1m && mkdir -p $(BUILD)/ml-1m
	$(BIN)/ranklet train $(DATA)/ml-1m/interactions.parquet --items $(DATA)/ml-1m/items.parquet --out $(BUILD)/ml-1m/run
	$(BIN)/ranklet evaluate $(BUILD)/ml-1m/run $(DATA)/ml-1m/interactions.parquet
	$(BIN)/ranklet export $(BUILD)/ml-1m/run $(BUILD)/ml-1m/bundle --compact

# Train and judge everything in docs/quality.md (hours; goes on where it was stopped). DATA holds a
# folder for each data set.
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

# The pip of Python 3.11 takes many minutes to choose versions of so many packages.
.venv/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

.venv/.assure: .venv/.dev
	$(BIN)/python -m pip install --quiet -e '.[assure]'
	touch $@

# Everything runs in virtual environments of its own; Python ≥ 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
FRAMEWORKS := .venv-frameworks
KERAS2 := .venv-keras2
CATALOGUE := .venv-catalogue
BIN := $(VENV)/bin
FIXTURE := fixtures/torch_zip/state_dict.pth

.PHONY: demo test docs fuzz lint types test-frameworks test-realworld test-keras2 bench bench-exactness fixtures catalogue clean

demo: $(VENV)/.installed
	@rm -rf demo && mkdir demo && cp $(FIXTURE) demo/rgb.pth
	@echo "--- A checkpoint that torch.save wrote: a small ResNet for RGB images."
	$(BIN)/chkpt-channels inspect demo/rgb.pth
	@echo "--- Its first convolution is made to take one gray channel instead of three colours."
	$(BIN)/chkpt-channels convert demo/rgb.pth --to gray -o demo/gray.pth
	@echo "--- The new file, inspected and compared with the old one."
	$(BIN)/chkpt-channels inspect demo/gray.pth
	$(BIN)/chkpt-channels verify demo/rgb.pth demo/gray.pth
	@echo "--- What happened: in demo/gray.pth the kernel of conv1 is the sum over its three input channels, so that a"
	@echo "    gray image gives what the same image, stacked three times, gave before. Every other tensor is the same"
	@echo "    to the byte, and no framework was needed: none is installed in $(VENV)."

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto

# docs/options.md is made of the options themselves, docs/reports.md of real runs
docs: $(VENV)/.dev
	$(BIN)/python -m tests.support.option_docs
	$(BIN)/python -m tests.support.report_docs

# hours of other files than `make test` tries: make fuzz SECONDS=36000 FORMAT=onnx; networks, graphs and models need the frameworks
FUZZED := $(if $(filter networks graphs models,$(FORMAT)),$(FRAMEWORKS)/.installed,$(VENV)/.dev)
fuzz: $(FUZZED)
	$(dir $(FUZZED))bin/python -m tests.support.fuzz --seconds $(or $(SECONDS),3600) $(if $(FORMAT),--format $(FORMAT))

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test-frameworks: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m pytest tests/frameworks

# wheels of 280 MB, once, into ~/.cache/chkpt-channels-realworld or the folder in CHKPT_CHANNELS_REALWORLD
test-realworld: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m pytest tests/realworld

test-keras2: $(KERAS2)/.installed
	$(KERAS2)/bin/python -m pytest --noconftest tests/frameworks/test_keras2.py

bench: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m tests.support.bench.conversions

bench-exactness: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m tests.support.bench.exactness

fixtures: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m fixtures.generate.torch_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.onnx_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.keras_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.jax_files

catalogue: $(CATALOGUE)/.installed
	$(CATALOGUE)/bin/python -m fixtures.catalogue

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(FRAMEWORKS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(FRAMEWORKS)/bin/pip install --quiet --disable-pip-version-check -e '.[frameworks]'
	@touch $@

$(KERAS2)/.installed: pyproject.toml
	$(PYTHON) -m venv $(KERAS2)
	$(KERAS2)/bin/pip install --quiet --disable-pip-version-check -e '.[keras2]'
	@touch $@

$(CATALOGUE)/.installed: fixtures/catalogue/requirements.txt
	$(PYTHON) -m venv $(CATALOGUE)
	$(CATALOGUE)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(CATALOGUE)/bin/pip install --quiet --disable-pip-version-check -e '.[frameworks]'
	$(CATALOGUE)/bin/pip install --quiet --disable-pip-version-check --no-deps -r fixtures/catalogue/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(FRAMEWORKS) $(KERAS2) $(CATALOGUE) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

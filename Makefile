# Everything runs in virtual environments of its own; Python ≥ 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
FRAMEWORKS := .venv-frameworks
KERAS2 := .venv-keras2
PADDLE := .venv-paddle
CATALOGUE := .venv-catalogue
LOWEST := .venv-lowest
PAGE := .venv-page
STORES := .venv-stores
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
# the first pip that reads dependency groups
GROUPS_PIP := 'pip>=25.1'
FIXTURE := fixtures/torch_zip/state_dict.pth
# Python for browsers, of the npm registry
PYODIDE := pyodide-314.0.7
PYODIDE_FILES := pyodide.mjs pyodide.asm.mjs pyodide.asm.wasm python_stdlib.zip pyodide-lock.json
PYODIDE_SHA256 := 66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0

.PHONY: demo test test-lowest test-resolve test-beside docs picture fuzz lint types test-frameworks test-realworld test-keras2 test-paddle test-stores bench bench-stores bench-exactness fixtures catalogue page test-page clean

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

# the same with the lowest versions that pyproject.toml allows, on the lowest Python; TESTS names less than all
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n auto $(TESTS)

# a dry run: pip finds versions of everything that go together; nothing is installed
test-resolve: $(VENV)/.installed
	$(BIN)/python $(INSTALL) --dry-run --ignore-installed . torch==2.13.0 tensorflow-cpu transformers timm ultralytics

test-beside:
	$(PYTHON) -m tests.support.beside

# docs/options.md is made of the options themselves, docs/reports.md of real runs, the contents list of each page of its headings
docs: $(VENV)/.dev
	$(BIN)/python -m tests.support.option_docs
	$(BIN)/python -m tests.support.report_docs
	$(BIN)/python -m tests.support.contents

# docs/kernels.png, of a trained network in a package of 17 MB, which is downloaded once
picture: $(VENV)/.dev
	$(BIN)/python -m tests.support.kernels_picture

# hours of other files than `make test` tries: make fuzz SECONDS=36000 FORMAT=onnx; networks, graphs and models need the frameworks
FUZZED := $(if $(filter networks graphs models,$(FORMAT)),$(FRAMEWORKS)/.installed,$(VENV)/.dev)
fuzz: $(FUZZED)
	$(dir $(FUZZED))bin/python -m tests.support.fuzz --seconds $(or $(SECONDS),3600) $(if $(FORMAT),--format $(FORMAT))

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# a file's tests share what they import and build; files begin in the order that tests/frameworks/conftest.py gives them; threads that
# wait for each other sleep, since each processor has tests of its own
test-frameworks: $(FRAMEWORKS)/.installed
	OMP_WAIT_POLICY=passive $(FRAMEWORKS)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/frameworks

# wheels of 280 MB, once, into ~/.cache/chkpt-channels-realworld or the folder in CHKPT_CHANNELS_REALWORLD
test-realworld: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m pytest tests/realworld

test-keras2: $(KERAS2)/.installed
	$(KERAS2)/bin/python -m pytest --noconftest tests/frameworks/test_keras2.py

test-paddle: $(PADDLE)/.installed
	$(PADDLE)/bin/python -m pytest --noconftest tests/frameworks/test_paddle.py

# against moto's server of S3, and web servers and a hub of the tests' own, behind a proxy that counts and lies
test-stores: $(STORES)/.installed
	$(STORES)/bin/python -m pytest -n auto tests/remote

bench: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m tests.support.bench.conversions

bench-stores: $(STORES)/.installed
	$(STORES)/bin/python -m tests.support.bench.stores

bench-exactness: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m tests.support.bench.exactness

fixtures: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m fixtures.generate.torch_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.onnx_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.keras_files
	$(FRAMEWORKS)/bin/python -m fixtures.generate.jax_files
# fixtures.generate.numpy_pickle_files, .foreign_files and .array_keys need environments of their own: their docstrings say which

catalogue: $(CATALOGUE)/.installed
	$(CATALOGUE)/bin/python -m fixtures.catalogue

# the page that converts in a browser, in build/page; WHEELS=DIR puts the wheels in it beside the page (numpy, h5py, ml_dtypes)
page: $(VENV)/.installed build/$(PYODIDE).tgz
	@rm -rf build/page && mkdir -p build/page/pyodide build/page/wheels
	tar -xzf build/$(PYODIDE).tgz -C build/page/pyodide --strip-components=1 $(PYODIDE_FILES:%=package/%)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/page .
	cp web/* build/page
	$(if $(WHEELS),cp $(WHEELS)/*.whl build/page/wheels)
	@cd build/page && $(abspath $(BIN))/python -c "import glob, json; print(json.dumps({'package': glob.glob('*.whl')[0], \
	    'wheels': sorted(glob.glob('*.whl', root_dir='wheels'))}))" > files.json
	@du -sh build/page

build/$(PYODIDE).tgz:
	@mkdir -p build
	cd build && npm pack --silent $(subst pyodide-,pyodide@,$(PYODIDE))
	@$(PYTHON) -c "import hashlib, sys; sys.exit(hashlib.sha256(open('$@', 'rb').read()).hexdigest() != '$(PYODIDE_SHA256)' \
	    and '$@ is another file than the one that was pinned')" || (rm $@ && false)

# in the Chromium of the system, without a network
test-page: page $(PAGE)/.installed
	$(PAGE)/bin/python -m pytest -p no:cacheprovider tests/page

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python $(INSTALL) $(GROUPS_PIP)
	$(BIN)/python $(INSTALL) -e '.[plot]' --group dev
	@touch $@

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m tests.support.lowest > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(INSTALL) $(GROUPS_PIP)
	$(LOWEST)/bin/python $(INSTALL) -c $(LOWEST)/constraints.txt -e '.[plot]' --group dev
	@touch $@

$(FRAMEWORKS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python $(INSTALL) $(GROUPS_PIP) torch==2.13.0
	$(FRAMEWORKS)/bin/python $(INSTALL) -e . --group frameworks
	@touch $@

$(KERAS2)/.installed: pyproject.toml
	$(PYTHON) -m venv $(KERAS2)
	$(KERAS2)/bin/python $(INSTALL) $(GROUPS_PIP)
	$(KERAS2)/bin/python $(INSTALL) -e . --group keras2
	@touch $@

$(PAGE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PAGE)
	$(PAGE)/bin/python $(INSTALL) $(GROUPS_PIP)
	$(PAGE)/bin/python $(INSTALL) -e . --group page
	@touch $@

$(PADDLE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PADDLE)
	$(PADDLE)/bin/python $(INSTALL) $(GROUPS_PIP)
	$(PADDLE)/bin/python $(INSTALL) -e . --group paddle
	@touch $@

$(STORES)/.installed: pyproject.toml
	$(PYTHON) -m venv $(STORES)
	$(STORES)/bin/python $(INSTALL) $(GROUPS_PIP)
	$(STORES)/bin/python $(INSTALL) -e '.[s3,hf]' --group stores
	@touch $@

$(CATALOGUE)/.installed: fixtures/catalogue/requirements.txt
	$(PYTHON) -m venv $(CATALOGUE)
	$(CATALOGUE)/bin/python $(INSTALL) $(GROUPS_PIP) torch==2.13.0
	$(CATALOGUE)/bin/python $(INSTALL) -e . --group frameworks
	$(CATALOGUE)/bin/python $(INSTALL) --no-deps -r fixtures/catalogue/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(FRAMEWORKS) $(KERAS2) $(PADDLE) $(CATALOGUE) $(LOWEST) $(PAGE) $(STORES) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

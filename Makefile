# Everything a developer runs. Set-up is repeated only when what it was made from has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,plots,transformers
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest
PYTEST_JOBS := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(JOBS) --dist worksteal

# The oldest Triton that we support, beside the one that PyTorch brings. Its interpreter cannot run
# loops with bounds known at run time under NumPy 2.4, and before that NumPy warns of it.
OLD_TRITON := 3.6.0
OLD_NUMPY := 2.4
OLD_WARNING := -W "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"
OLD := $(CURDIR)/.compat/triton-$(OLD_TRITON)

# The newest SGLang that we support, beside the environment: see its requirements.
SGLANG := 0.5.23
SGLANG_TESTS := tests/engines/sglang
ENGINES := $(CURDIR)/.compat/sglang-$(SGLANG)

export CARGO_BUILD_JOBS ?= $(JOBS)
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

RUST_FILES := $(shell find rust \( -name tests -o -name benches \) -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-python test-rust test-slow test-full test-remote test-engines test-triton36
.PHONY: test-gpu test-asan sanitize
.PHONY: crosscompile crosscompile-triton36 lint format proto bench wheels clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.setup-stamp  ## make .venv: dependencies, both packages, the Rust core

# Both packages are editable. hisparse-kernels is on no registry, so it is named beside us.
# Where only Rust sources have changed, the extension alone is built again.
$(VENV)/.setup-stamp: pyproject.toml kernels/pyproject.toml Cargo.toml Cargo.lock $(RUST_FILES)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 10) and f"Python {v[0]}.{v[1]} found, 3.10 or newer needed: make PYTHON=python3.X setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Set-up into $(VENV); the first one downloads PyTorch and takes minutes'
	$(PIP_INSTALL) $(if $(filter %pyproject.toml,$?),-e kernels -e '.[$(EXTRAS)]',--no-deps --no-build-isolation -e .)
	@touch $@

demo: setup  ## prefill and decode from host memory, against the all-in-memory reference
	$(BIN)/hisparse demo $(ARGS)

bench: setup  ## the benchmark suites; rows go to benchmarks/results/
	$(BIN)/hisparse bench $(ARGS)

test: test-rust test-python  ## every test but the long ones

test-rust: setup  ## unit, property and interleaving tests of the Rust core
	cargo test --quiet --workspace
	cargo test --quiet --package hisparse-core --features shuttle \
	    --test schedules --test schedules_prefix --test schedules_hierarchy

test-python: setup  ## pytest but for the long ones
	$(PYTEST_JOBS) -m "not slow" $(ARGS)

test-slow: setup  ## the long ones: 12,000-token contexts, wheels, training, kills, corruption
	cargo test --quiet --release --package hisparse-core \
	    --test file_tier_kill --test file_tier_corruption --test file_tier_hostile \
	    --test prefix_model --test prefix_threads --test sharing_model \
	    --test hierarchy_model --test hierarchy_threads -- --ignored
	cargo test --quiet --release --package hisparse-core --features shuttle \
	    --test schedules --test schedules_prefix --test schedules_hierarchy -- --ignored
	$(PYTEST_JOBS) -m "slow and not full" $(ARGS)

test-full: setup  ## crowds at full size: 1,000 clients, 10,000 sessions, minutes of refusals
	SEEDS=20 cargo test --quiet --release --package hisparse-core \
	    --test hierarchy_threads -- --ignored
	$(PYTEST) -m full $(ARGS)

test-remote: setup  ## the remote tier on Mooncake Store; needs libibverbs1 of the system
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mooncake]'
	$(PYTEST) tests/remote $(ARGS)

test-engines: $(ENGINES)/.stamp  ## the plug-in in the real SGLang, on the CPU
	PYTHONPATH=$(ENGINES) $(PYTEST_JOBS) $(SGLANG_TESTS) $(ARGS)

# What it may read otherwise is the language, not the sizes: two cases of each test.
test-triton36: $(OLD)/.stamp  ## what is interpreted, with Triton 3.6 and NumPy below 2.4
	PYTHONPATH=$(OLD) $(PYTEST_JOBS) -m "not slow" $(OLD_WARNING) --ends-of-each \
	    -k "(gpu or interpreted) and not cuda" tests/kernels tests/pipeline $(ARGS)

test-gpu: setup  ## what needs a GPU, the long ones too
	$(PYTEST) -m gpu $(ARGS)

test-asan:  ## the core's tests under AddressSanitizer; needs a nightly Rust
	RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan cargo +nightly test --quiet \
	    --package hisparse-core --target $$(rustc -vV | sed -n 's/^host: //p') $(ARGS)

# Cases of an op's small sizes have `cuda` in their names; those of full sizes would take hours.
sanitize: setup  ## the ops' small cases on a GPU under compute-sanitizer: memory, then races
	for tool in memcheck racecheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(PYTEST) -m gpu -k cuda tests/kernels/gpu $(ARGS) || exit 1; \
	done

crosscompile: setup  ## compile every kernel for sm_90 and sm_100, without a GPU, and check it
	$(BIN)/python -m tools.crosscompile $(ARGS)

crosscompile-triton36: $(OLD)/.stamp  ## the same with the compiler of Triton 3.6
	PYTHONPATH=$(OLD) $(BIN)/python -m tools.crosscompile $(ARGS)

# First on PYTHONPATH, so it hides the environment's own; the last line proves that it does.
$(OLD)/.stamp: $(VENV)/.setup-stamp Makefile
	@rm -rf $(OLD)
	@echo 'Triton $(OLD_TRITON) into .compat'
	$(PIP_INSTALL) --no-deps --target $(OLD) 'triton==$(OLD_TRITON)' 'numpy<$(OLD_NUMPY)'
	@PYTHONPATH=$(OLD) $(BIN)/python -c 'import numpy, torch, triton; old = "$(OLD)/"; assert old in triton.__file__ and old in numpy.__file__, (triton, numpy); assert triton.__version__ == "$(OLD_TRITON)", triton.__version__'
	@touch $@

$(ENGINES)/.stamp: $(VENV)/.setup-stamp $(SGLANG_TESTS)/requirements.txt
	@rm -rf $(ENGINES)
	@echo 'SGLang $(SGLANG) into .compat'
	$(PIP_INSTALL) --no-deps --target $(ENGINES) -r $(SGLANG_TESTS)/requirements.txt
	@PYTHONPATH=$(ENGINES) $(BIN)/python -c 'from importlib.metadata import version; found = version("sglang"); assert found == "$(SGLANG)", found'
	@touch $@

lint: setup  ## every static check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet --package hisparse-core --features shuttle --all-targets -- -D warnings
	$(BIN)/buf lint
	$(BIN)/python -m tools.check_file_sizes

format: setup  ## rewrite Python, Rust and proto files in their one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cargo fmt --all
	$(BIN)/buf format --write

proto: setup  ## regenerate python/hisparse_sidecar/_proto from proto/
	$(BIN)/python -m tools.generate_proto

wheels: setup  ## build both wheels into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./kernels .

clean:  ## remove what was built, .venv and all
	rm -rf $(VENV) .compat target dist

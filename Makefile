# nmsfree: every target installs what it needs first; `make help` lists them.
PYTHON  ?= python3
MODEL   ?= fcos_e2e_nano
WEIGHTS ?= weights/$(MODEL).safetensors
DATA    ?= data/digits
DEVICE  ?= cpu
SOURCE  ?= $(DATA)/overlap
ARGS    ?=

BIN  := .venv/bin
ONNX := runs/export/$(MODEL).onnx

# What `make quick` runs of each folder: logic without networks.
QUICK_TESTS := $(patsubst %,runtime/tests/test_runtime_%.py,spec preprocess nms decode draw \
	coco yolo voc eval_matching eval_curves images detector options devices engines_sidecar) \
	$(patsubst %,training/tests/test_training_%.py,assign augment) \
	$(patsubst %,export/tests/test_export_%.py,nms) \
	$(patsubst %,benchmarks/tests/test_benchmarks_%.py,intervals records report machine)

.DEFAULT_GOAL := help
.PHONY: help setup setup-cuda data train eval export bench results gpu-check detect weights quick test docs fuzz lint dist oldest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  variables: MODEL=$(MODEL) WEIGHTS=$(WEIGHTS) DATA=$(DATA) DEVICE=$(DEVICE)'
	@echo '             SOURCE=$(SOURCE) (detect), QUICK=1 (bench), ARGS="…" (further options)'

setup:  ## create .venv and install everything; quick when up to date
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d found, 3.11 or newer expected: make PYTHON=python3.11" % sys.version_info[:2])'
	@want=$$(cat constraints.txt requirements.txt */pyproject.toml | cksum); \
	if [ "$$want" != "$$(cat .venv/installed 2>/dev/null)" ]; then \
		echo 'setup: installing into .venv (a few minutes the first time)'; \
		$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		&& $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt trackers \
		&& echo "$$want" > .venv/installed && rm -f .venv/cuda \
		&& echo 'setup: done; next: source .venv/bin/activate, then nmsfree'; \
	fi

setup-cuda: setup  ## the same with ONNX Runtime for NVIDIA GPUs, which runs on processors, too
	@if [ ! -e .venv/cuda ]; then \
		echo 'setup: ONNX Runtime with CUDA in place of the one for processors'; \
		$(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu \
		&& $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "runtime[cuda]" \
		&& touch .venv/cuda; \
	fi

data: setup  ## make the digits dataset
	@if [ '$(DATA)' = data/digits ]; then $(BIN)/nmsfree data digits --out '$(DATA)'; fi

train: data  ## train MODEL on DATA
	$(BIN)/nmsfree train --data '$(DATA)' --model $(MODEL) --device $(DEVICE) $(ARGS)

eval: data  ## AP of WEIGHTS on DATA
	$(BIN)/nmsfree eval '$(WEIGHTS)' --data '$(DATA)' --device $(DEVICE) $(ARGS)

export: setup  ## WEIGHTS → certified NMS-free ONNX
	@rm -f '$(ONNX).from'
	$(BIN)/nmsfree export '$(WEIGHTS)' -o '$(ONNX)' $(ARGS)

bench: setup  ## measure NMS-free against NMS; QUICK=1 for a minute or two, the small models
	$(BIN)/nmsfree bench --device $(DEVICE) $(if $(QUICK),--quick) $(ARGS)

results: data  ## measure all of benchmarks/results again (under half an hour), and the tables in docs
	$(BIN)/python benchmarks/tests/results.py measure $(ARGS); status=$$?; \
	NMSFREE_WRITE_INVENTORY=benchmarks/tests/inventory.json $(BIN)/python -m pytest -q \
		benchmarks/tests/test_benchmarks_inventory.py::test_committed_results && exit $$status

gpu-check: $(if $(wildcard /dev/nvidiactl /dev/dxg),setup-cuda,setup)  ## try on this GPU what is claimed of GPUs, then measure on it
	$(BIN)/nmsfree bench gpu-check $(ARGS); status=$$?; \
	$(BIN)/nmsfree bench --device cuda $(if $(QUICK),--quick) && exit $$status

detect: $(if $(filter $(DATA)/%,$(SOURCE)),data,setup)  ## draw detections of MODEL on SOURCE
# Exports first, unless weights, options and code are those of the file that is there.
	@want="$$(cksum < '$(WEIGHTS)') $(ARGS)"; \
	if [ "$$want" != "$$(cat '$(ONNX).from' 2>/dev/null)" ] || [ ! -e '$(ONNX)' ] || \
		[ -n "$$(find export runtime training -name '*.py' -newer '$(ONNX)' | head -n 1)" ]; then \
		$(MAKE) --no-print-directory export && echo "$$want" > '$(ONNX).from'; \
	fi
	$(BIN)/nmsfree detect '$(SOURCE)' --model '$(ONNX)' --device $(DEVICE) --save-dir runs/detect/$(MODEL)

weights: setup  ## download the published COCO checkpoints
	$(BIN)/nmsfree weights download $(ARGS)

quick: setup  ## run fast tests of all four folders: half a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m 'not slow and not gpu' $(or $(ARGS),$(QUICK_TESTS))

test: setup  ## run the tests
# Three runs: one of all ended by SIGSEGV where a test raises SIGINT, since closed models of OpenVINO
# had left a stack for signal handlers that was gone. That is mended (`_lasting` in its backend), and
# such a run went on past tests that raise it; that one run is as quick as three is not measured.
# Tests of servers, streams and clusters wait more than they compute: two processes for each core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(2 * os.cpu_count())') \
		$(or $(ARGS),runtime/tests)
ifeq ($(ARGS),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder training/tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder export/tests benchmarks/tests
endif

docs: setup  ## the documentation as pages in runs/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fuzz: setup  ## give 10,000 malformed inputs to the commands (half an hour)
	$(BIN)/python benchmarks/tests/fuzz.py $(ARGS)

lint: setup docs  ## ruff, mypy, the order of imports, the size of files, the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python benchmarks/tests/house.py

dist: setup  ## wheels and source archives of all four, checked, with sums, hashes of all they need, and an SBOM
	rm -rf dist && mkdir dist
	for folder in runtime training export benchmarks; do \
		$(BIN)/python -m build --no-isolation --outdir dist $$folder > dist/log 2>&1 || { cat dist/log; exit 1; }; \
	done; rm dist/log
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt twine cyclonedx-bom uv
	$(BIN)/twine check --strict dist/*
	$(BIN)/uv pip compile --quiet --generate-hashes --no-deps --no-header --no-annotate \
		--python $(BIN)/python --output-file dist/requirements-lock.txt constraints.txt
	$(BIN)/cyclonedx-py requirements --output-reproducible --output-file dist/sbom.json dist/requirements-lock.txt
	cd dist && shasum -a 256 *.whl *.tar.gz requirements-lock.txt sbom.json > SHA256SUMS && cat SHA256SUMS && ls -l

oldest: setup  ## the runtime's tests with the oldest versions that it claims to run with
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python runs/oldest
	$(BIN)/uv pip install --quiet --python runs/oldest --resolution lowest-direct --only-binary :all: --no-binary nmsfree \
		-e 'runtime[cpu,cli,eval,openvino,pillow,serve,track,video]' onnx==1.20.0
	$(BIN)/uv pip install --quiet --python runs/oldest pytest pytest-timeout pytest-xdist pycocotools psutil \
		cuda-bindings jsonschema pyarrow 'tritonclient[http]' flask flask-cors 'moto[s3]'
	OMP_NUM_THREADS=1 runs/oldest/bin/python -m pytest -n auto -m 'not slow and not gpu' $(or $(ARGS),runtime/tests)

clean:  ## remove .venv, caches and what is made again by itself; keeps runs/train and your data
	rm -rf .venv runs/bench runs/export runs/detect data/digits .pytest_cache .mypy_cache .ruff_cache

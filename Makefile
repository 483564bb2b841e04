# `make simulate` and `make test` each do everything on a fresh machine; a second run installs nothing.
#   ARGS    more words for the command:  make simulate ARGS="privacy.epsilon=2"
#   PYTHON  which Python makes the virtual environment (3.11 to 3.13); by default the first one found

VENV := .venv
STAMP := $(VENV)/.installed
PYTHON ?=
ARGS ?=
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: help simulate test faults lint docs proto wheel clean

help:
	@echo "make simulate   run the main job: virtual hospitals, private training, a report (ARGS=...)"
	@echo "make test       run the tests (ARGS=...)"
	@echo "make faults     the long form of tests/faults: hundreds of kills, cut lines, full disks"
	@echo "make lint       ruff, mypy --strict, the rules on imports"
	@echo "make docs       write the tables of docs/configuration.md anew"
	@echo "make proto      make link/generated from link/proto"
	@echo "make wheel      build dist/*.whl"
	@echo "make clean      remove the virtual environment and what was built; runs/ stays"

simulate: $(STAMP)
	$(VENV)/bin/twinward simulate $(ARGS)

# A file's tests stay in one process, which makes what they share (a run, a wheel, read recordings) once.
test: $(STAMP)
	.ci/system
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# `make test` has the short form of the same tests.
faults: $(STAMP)
	TWINWARD_FAULTS=long $(VENV)/bin/python -m pytest tests/faults $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(STAMP)
	$(VENV)/bin/python -m cli.reference docs/configuration.md

proto: $(STAMP)
	cd link/proto && ../../$(VENV)/bin/python -m grpc_tools.protoc -I. --python_out=../generated --pyi_out=../generated link.proto

wheel: $(STAMP)
	rm -rf build dist
	$(VENV)/bin/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info

# The stamp comes last: an installation that was interrupted begins again.
$(STAMP): pyproject.toml constraints.txt .ci/venv
	PYTHON="$(PYTHON)" .ci/venv $(VENV)
	@echo "Installing what constraints.txt lists; the first time this takes some minutes."
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray,site,feeds]"
	touch $(STAMP)

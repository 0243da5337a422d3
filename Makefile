# Needs make, git and python3 >= 3.11 with venv or pip. Everything else goes into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Parallel test processes; each loads torch. One more than two cores, because some tests wait.
WORKERS ?= 3

# uv brings its own certificates, which do not know the proxy of a company; the machine's do.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/ssl/cert.pem /etc/pki/tls/certs/ca-bundle.crt)
export UV_SYSTEM_CERTS ?= $(if $(CERTIFICATES),true,false)
export UV_HTTP_TIMEOUT ?= 300

# Where it is set, every process compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

COMPILE := pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate -q
# Hosts that must not be named in the repository; the brackets keep this line from matching itself.
HOSTS   := pypi[.]org|pythonhosted[.]org|registry[.]npmjs|deb[.]debian[.]org

.DEFAULT_GOAL := help
.PHONY: help demo run migrate test check fix docs chaos chaos-full fuzz mutations slow gpu bench audit sbom lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1@/' \
	| while IFS=@ read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.run  ## train on digits, forget records and a class, show the evidence
	@$(BIN)/python -m worker.demo $(ARGS)

run: $(VENV)/.run  ## start the embedded service: SQLite, local folder, worker in the process
	@$(BIN)/python -m worker.serve $(ARGS)

migrate: $(VENV)/.run  ## bring the database of LETHE_DATABASE_URL to the newest schema
	@$(BIN)/python -m alembic upgrade head

test: $(VENV)/.dev  ## run the everyday suite, with its own servers where none listens
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## lint, format, types, arrows, and what must not be in the repository
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! grep -nE 'https?://|--(index|extra-index|find-links)' requirements/*.lock
	@git rev-parse --git-dir >/dev/null && ! git grep -InE --untracked '$(HOSTS)'

fix: $(VENV)/.dev  ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.run  ## write docs/catalogue.md again from what is registered
	@page=$$($(BIN)/python -m core.catalogue) && printf '%s\n' "$$page" > docs/catalogue.md

chaos: $(VENV)/.dev  ## kill workers and services in the middle of jobs; minutes
	@$(BIN)/python -m pytest -m chaos -n 2 --dist worksteal --timeout 3600 \
	  tests/chaos tests/store/test_nth_call.py tests/worker/test_failpoints.py $(ARGS)

chaos-full: $(VENV)/.dev  ## every fault in its full number, resumable; hours
	@$(BIN)/python -m tests.chaos.full $(ARGS)

mutations: $(VENV)/.dev  ## damage and read 5 000 files of each of four kinds; ARGS="--files 100" for fewer
	@$(BIN)/python -m tests.core.mutations $(ARGS)

slow: $(VENV)/.dev  ## tests that compute for minutes
	@$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

fuzz: $(VENV)/.dev  ## make up 50 000 calls from the OpenAPI document; ARGS="--cases 2000 --postgres"
	@$(BIN)/python -m tests.api.fuzz $(ARGS)

gpu: $(VENV)/.dev  ## compare CPU with GPU; needs a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(VENV)/.dev  ## run every benchmark, hours; ARGS="--short --data FOLDER" for those of minutes
	@$(BIN)/python -m benchmarks $(ARGS)

audit: $(VENV)/.dev  ## look for known vulnerabilities in what is locked; needs the network
	@for lock in run dev; do \
	  $(BIN)/pip-audit --disable-pip --require-hashes -r requirements/$$lock.lock $(ARGS) || exit 1; \
	done

sbom: $(VENV)/.dev  ## write dist/sbom.json: what the image installs, as CycloneDX
	@mkdir -p dist && $(BIN)/cyclonedx-py requirements requirements/run.lock \
	  --pyproject pyproject.toml --output-reproducible --validate -o dist/sbom.json

lock: $(VENV)/.uv/path  ## resolve the requirements again and write the locks
	@uv=$$(cat $<) && \
	$$uv $(COMPILE) --all-extras --group dev -o requirements/dev.lock && \
	$$uv $(COMPILE) --extra demo --group build -c requirements/dev.lock -o requirements/run.lock

clean:  ## remove the environment and every cache, but no data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find app core worker migrations tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# uv: the one on PATH, else from its lock into an environment of its own, else into a plain folder
# (where venv lacks ensurepip, or the system's Python refuses installations).
$(VENV)/.uv/path: requirements/uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Lethe needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@mkdir -p $(VENV)/.uv
	@lib=$(VENV)/.uv/lib; pip="pip install -q --disable-pip-version-check --require-hashes -r $<"; \
	if command -v uv >/dev/null 2>&1; then command -v uv > $@; \
	elif $(PYTHON) -m venv $(VENV)/.uv/env >/dev/null 2>&1; then \
	  $(VENV)/.uv/env/bin/python -m $$pip && echo $(VENV)/.uv/env/bin/uv > $@; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m $$pip --target $$lib && echo $$lib/bin/uv > $@; \
	else echo "Install uv, python3-venv or python3-pip, then run make again." >&2; exit 1; fi

# The repository is run from its root, so only what it depends on is installed.
$(VENV)/.run $(VENV)/.dev: $(VENV)/.%: requirements/%.lock | $(VENV)/.uv/path
	@uv=$$(cat $(VENV)/.uv/path) && \
	{ test -x $(BIN)/python || $$uv venv -q --allow-existing --no-python-downloads \
	    --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); } && \
	echo "Installing requirements/$*.lock into $(VENV) ..." && \
	$$uv pip install -q --python $(BIN)/python --require-hashes -r $< && touch $@

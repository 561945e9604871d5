# Skerry: every target does its own set-up and is quick when nothing changed.
# Needs: Debian 12 or 13 (or any Linux with Python 3.11 to 3.13), a Python package index, and for missing packages root or sudo.

VENV    := .venv
PY      := $(VENV)/bin/python
STAMPS  := $(VENV)/.stamps
SCRIPTS := kit/install.sh scripts/setup.sh $(wildcard playbooks/roles/*/files/*.sh playbooks/roles/*/files/root/usr/local/sbin/*)
PYTEST  := $(PY) -m pytest
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo kit image test test-all check format bench bench-loops bench-peer clean

help: ## show this
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMPS)/station ## build, sign, serve and ask a real model
	@$(PY) examples/demo.py

kit: $(STAMPS)/station $(STAMPS)/kit ## all that a box needs in one folder for a stick; ARGS="--suite bookworm" for one Debian
	@$(PY) -m kit.build $(ARGS)

image: $(STAMPS)/station $(STAMPS)/vm ## a bootable disk image and a root tarball with Skerry on it; as root
	@$(PY) -m images.build $(ARGS)

test: $(STAMPS)/dev check ## lints and the default tests, under 20 minutes on 2 cores
	$(PYTEST) $(PARALLEL) -m "not slow"

test-all: $(STAMPS)/dev $(STAMPS)/vm check ## everything, the slow ones too
	$(PYTEST)

check: $(STAMPS)/dev ## ruff, mypy, the import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/shellcheck $(SCRIPTS)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ansible-lint --offline -q

format: $(STAMPS)/dev ## let ruff format the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(STAMPS)/station ## speed, memory and quality beside llama.cpp; ARGS=--accept-licence adds Gemma
	$(PY) -m bench $(ARGS)

bench-loops: $(STAMPS)/station ## how often answers end in loops, and what the breaker makes of them; ARGS as for bench
	$(PY) -m bench.loops $(ARGS)

bench-peer: ## build llama.cpp as the peer, some 12 minutes on 2 cores
	./scripts/setup.sh peer

clean: ## remove what the other targets made
	rm -rf $(VENV) .venv-peer build .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMPS)/%: pyproject.toml scripts/setup.sh
	@./scripts/setup.sh $*
	@mkdir -p $(STAMPS) && touch $@

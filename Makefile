# Targets for developers. Each sets up its own requirements; Python >= 3.10, make and a package index are enough.
#
#   PYTHON=…   the interpreter that .venv is made with (default: the first of the usual names that is new enough)
#   ARGS=…     further arguments for pytest, the demo, soak and others (ARGS=--help lists them)
#   QUICK=1    shorter rounds for bench: under two minutes
#   SOAK_S=…   duration of soak in seconds (default: 600), and SEED=… its seed (default: random, and printed)

VENV ?= .venv
PYTHON ?=
ARGS ?=
QUICK ?=
SOAK_S ?= 600
SEED ?=

PY := $(VENV)/bin/python

# One marker for each set of packages in the venv: the runtime alone, or with the packages of the checks, the benchmarks, the
# linters of .github/ or the fuzzer. Made again when the lists change.
RUNTIME := $(VENV)/.made-runtime
DEV := $(VENV)/.made-dev
BENCH := $(VENV)/.made-bench
WORKFLOWS := $(VENV)/.made-workflows
FUZZ := $(VENV)/.made-fuzz

# Runs a command with a temporary home and data directory, and without the user's settings: no target may touch the
# user's sessions.
SANDBOX = sh -c 'tmp=$$(mktemp -d) || exit 1; \
	trap "rm -rf \"$$tmp\"" EXIT; trap "exit 130" INT; trap "exit 143" TERM; \
	unset _ $$(env | sed -n -e "s/^\(INTER_SESSION_[A-Z_]*\)=.*/\1/p" -e "s/^\(CLAUDE[A-Z_]*\)=.*/\1/p"); \
	mkdir -m 0700 "$$tmp/home" "$$tmp/data" && HOME="$$tmp/home" INTER_SESSION_DATA_DIR="$$tmp/data" "$$@"' sandbox

.PHONY: help demo test realclient soak sweep fuzz fuzz-codec mutants bench guard check lint lint-ci format notes icon oldest dist release-check venv clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## sets up and demonstrates the bus
	@$(SANDBOX) $(PY) examples/demo.py $(ARGS)

# Most of the tests wait for processes: three at a time keep two cores busy. (Here and in check.)
test: $(DEV) ## the whole test suite
	@$(SANDBOX) $(PY) -m pytest -n 3 --dist worksteal $(ARGS)

realclient: $(DEV) ## the plugin in the real Claude Code, with a scripted model; ZMQBUS_CLIENT_VERSION=latest: its newest release
	$(PY) -m tests.realclient.install
	@$(SANDBOX) $(PY) -m pytest -n 3 --dist worksteal -m realclient tests/realclient $(ARGS)

soak: $(DEV) ## kills, stops and disconnects real processes for ten minutes, and accounts for every message
	@$(SANDBOX) $(PY) -m tests.soak.run --seconds $(SOAK_S) $(if $(SEED),--seed $(SEED)) $(ARGS)

sweep: $(DEV) ## the simulated bus and the crash consistency, with thousands of seeds: a quarter of an hour
	@SOAK=1 $(SANDBOX) $(PY) -m pytest -n 2 tests/broker/test_machine.py tests/broker/groups/test_request_machine.py tests/broker/test_crash_consistency.py $(ARGS)

fuzz: $(DEV) ## 600,000 hostile envelopes to a broker's core; ARGS=--help: their number, and the seed to replay a run
	@$(SANDBOX) $(PY) -m tests.fuzz.play $(ARGS)

fuzz-codec: $(FUZZ) ## a coverage-guided fuzzer against the decoder, five minutes; ARGS=…: options of libFuzzer
	@$(SANDBOX) $(PY) -m tests.fuzz.codec_target -max_total_time=300 -artifact_prefix=.fuzz/ $(ARGS) .fuzz/corpus

mutants: $(DEV) ## removes each guarded line, and expects a test to fail
	@$(SANDBOX) $(PY) -m tests.mutants $(ARGS)

bench: $(BENCH) ## compares zmqbus with its alternatives in one run; QUICK=1: in under two minutes
	@$(SANDBOX) $(PY) -m benchmarks $(if $(QUICK),--quick) $(ARGS)

guard: $(RUNTIME) ## compares the ratios of a short benchmark with the stored ones; ARGS=--keep: stores them
	@$(SANDBOX) $(PY) -m benchmarks.guard $(ARGS)

check: lint ## lint, and all tests that are not slow
	@$(SANDBOX) $(PY) -m pytest -q -n 3 --dist worksteal -m "not slow" $(ARGS)

lint: $(DEV) ## format, rules, types, layering
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	@$(SANDBOX) $(PY) -m pytest -q tests/test_layering.py

lint-ci: $(WORKFLOWS) ## checks .github/: forms and workflows by schema, and what a hostile pull request could do
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(VENV)/bin/zizmor --offline --quiet .github

format: $(DEV) ## formats the sources
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

notes: $(DEV) ## checks the fragments in changes/ and prints the notes of the next release
	@$(SANDBOX) $(PY) -m pytest -q tests/test_release_notes.py
	@$(PY) -m towncrier build --draft --version "$$($(PY) -c 'import zmqbus; print(zmqbus.__version__)')"

icon: $(RUNTIME) ## draws the plugin's icon from docs/images/icon.svg
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'resvg-py>=0.5,<1'
	$(PY) -c 'import pathlib, resvg_py; png = resvg_py.svg_to_bytes(svg_path="docs/images/icon.svg", width=512, height=512); \
	  pathlib.Path("plugin/.claude-plugin/icon.png").write_bytes(bytes(png))'

oldest: $(DEV) ## replaces the runtime packages in .venv by the oldest supported ones: the lower bounds of requirements.txt
	sed -n 's/^\([a-z]*\)>=\([0-9.]*\),.*/\1==\2/p' requirements.txt > $(VENV)/oldest.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	$(PY) -m pip install --disable-pip-version-check -r $(VENV)/oldest.txt

dist: $(DEV) ## builds sdist and wheel into dist/, the wheel from the sdist
	rm -rf dist && mkdir dist
	$(PY) -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	mkdir dist/unpacked && tar -xzf dist/*.tar.gz -C dist/unpacked --strip-components 1
	cd dist/unpacked && $(abspath $(PY)) -c 'from setuptools import build_meta; build_meta.build_wheel("..")'
	rm -rf dist/unpacked

release-check: ## TAG=vX.Y.Z: is the tree ready to be released under this tag?
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' zmqbus/__init__.py); \
	[ "v$$version" = "$$TAG" ] || { echo "the tag is $$TAG, and the version in zmqbus/__init__.py is $$version" >&2; exit 1; }; \
	grep -q "^## $$version, " CHANGELOG.md || { echo "CHANGELOG.md has no section $$version; run towncrier build" >&2; exit 1; }; \
	left=$$(ls changes | grep '\.[a-z]*\.md$$' || true); \
	[ -z "$$left" ] || { echo "fragments are left in changes/:" $$left >&2; exit 1; }

venv: $(DEV) ## .venv with everything, for an editor

clean: ## removes .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Makes $(VENV) if there is no working one, and installs $(1) into it. Uses uv if it is installed: it is faster, and needs
# neither the venv module nor pip. If uv cannot reach an index, pip may: each has its own configuration.
define install
	@set -e; \
	if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
		found=; \
		for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python3.14); do \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "zmqbus needs python 3.10 or newer, which none of these is: $(or $(PYTHON),python3 python3.10 and newer)." >&2; \
			echo "Install one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		if [ -e $(VENV) ] && [ ! -e $(VENV)/pyvenv.cfg ]; then echo "$(VENV) is no venv; name another: make VENV=…" >&2; exit 1; fi; \
		echo "making $(VENV) with $$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
		rm -rf $(VENV); \
		if command -v uv >/dev/null; then \
			uv venv --quiet --python "$$("$$found" -c 'import sys; print(sys.executable)')" $(VENV); \
		elif "$$found" -c 'import venv, ensurepip' 2>/dev/null; then \
			"$$found" -m venv $(VENV); \
		else \
			echo "$$found has no venv module; install it (Debian and Ubuntu: apt install python3-venv) or install uv" >&2; exit 1; \
		fi; \
	fi; \
	echo "installing $(1) into $(VENV)"; \
	if command -v uv >/dev/null && uv pip install --quiet --python $(PY) -e '$(1)'; then :; \
	else \
		$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
		$(PY) -m pip install --quiet --disable-pip-version-check -e '$(1)'; \
	fi; \
	touch $@
endef

$(RUNTIME): pyproject.toml requirements.txt
	$(call install,.)

$(DEV): pyproject.toml requirements.txt
	$(call install,.[dev])
	@touch $(RUNTIME)

$(BENCH): pyproject.toml requirements.txt
	$(call install,.[bench])
	@touch $(RUNTIME)

$(WORKFLOWS): pyproject.toml requirements.txt
	$(call install,.[workflows])
	@touch $(RUNTIME)

$(FUZZ): pyproject.toml requirements.txt
	$(call install,.[fuzz])
	@touch $(RUNTIME)

# make demo | test | soak | lint | build | clean
#
# Everything lives in .venv: Python edits take effect at once, and edits to csrc are compiled by the
# next make. Other settings: PYTHON=python3.12, ARGS='...' for demo, STAGES='unit peers' for test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
SOURCES := $(sort $(wildcard csrc/*.[ch] csrc/ext/*.[ch] csrc/peer/*.[ch]))

.PHONY: all build demo test soak lint clean force
all: build

demo:
	@scripts/prerequisites.sh demo
	@$(MAKE) --no-print-directory --silent build
	$(BIN)/iodma demo $(ARGS)

test:
	@scripts/prerequisites.sh $(or $(NEEDS),test)
	@$(MAKE) --no-print-directory --silent $(VENV)/.dev $(VENV)/.built
	@$(BIN)/python scripts/run_tests.py $(STAGES)

soak:
	@$(MAKE) --no-print-directory test STAGES='soak-fuzz soak-sun4m soak'

lint:
	@$(MAKE) --no-print-directory test NEEDS=demo STAGES='format lint types stubs'

build: $(VENV)/.built

# The environment: setuptools as pyproject.toml asks for it, then the package itself, editable.
# Nothing here or below goes to the network once what it installs is there.
$(VENV)/.base: pyproject.toml
	@scripts/prerequisites.sh demo
	@echo 'preparing $(VENV)'
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	    $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) $$($(BIN)/python -c "import tomllib; \
	    print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])")
	@IODMA_BUILD=editable $(PIP) --no-build-isolation --editable .
	@touch $@

# ... and for the tests; the wheelhouse lets scripts/check_sdist.sh fill an empty environment.
$(VENV)/.dev: $(VENV)/.base
	@IODMA_BUILD=editable $(PIP) --no-build-isolation --editable '.[dev]'
	@rm -rf $(VENV)/wheelhouse
	@$(BIN)/python -m pip --quiet --disable-pip-version-check download --no-deps \
	    --dest $(VENV)/wheelhouse "$$($(BIN)/python -m pip freeze | grep '^numpy==')"
	@touch $@

# The C core, compiled in place. The list of sources is a file of its own so that a file that goes
# away counts as a change. What a compilation left that was interrupted is newer than its sources,
# and may be half a file.
$(VENV)/.built: $(VENV)/.base $(VENV)/.sources setup.py src/iodma/_version.py $(SOURCES)
	@echo 'compiling iodma._core'
	@test ! -f $(VENV)/.compiling || rm -rf src/iodma/*.so build
	@touch $(VENV)/.compiling
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@rm $(VENV)/.compiling
	@touch $@

$(VENV)/.sources: force | $(VENV)/.base
	@echo '$(SOURCES)' | cmp --silent - $@ || \
	    { test ! -f $@ || rm -rf src/iodma/*.so build; echo '$(SOURCES)' >$@; }

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf src/*.egg-info src/iodma/*.so
	find src tests -name __pycache__ -prune -exec rm -rf {} +
	@if [ -f csrc/Makefile ]; then $(MAKE) --no-print-directory -C csrc clean; fi

# Hounsfield. What CI runs (.ci/run) is what you run: make demo, make test.
#
#   make demo     set up, start an archive on loopback, send real studies, read them back, compare; then an
#                 order becomes a report, as in a department
#                 (EXIT=1: stop then)
#   make run      set up and serve ./.demo/archive on loopback
#   make test     set up; peers; lint, types, import contracts; tests
#   make check    the same without the tests
#   make bench    measure ours and its peers in one run
#   make setup    the virtual environment alone
#   make peers    what the tests talk to: programs of Debian (make programs), a viewer and studies of npm
#   make clean    remove what these made
#
# Too long for make test, which has a short version of most:
#   make fuzz              feed parser and decoders nonsense
#   make strange-requests  ask each operation of the OpenAPI document for what it does not expect
#   make odd-messages      send the HL7 listener what no sender should
#   make large             send one object of 4 GB: memory, speed, and what one of its frames costs
#   make test-ceph         tiers in a bucket, at Ceph's RADOS gateway
#   make crash             cut the power at every write of a server
#   make kills             kill -9, 500 times under a load
#   make tier-kills        the same while series move between tiers
#   make ris-kills         the same in a department's day

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up

.PHONY: run demo test test-ceph check peers programs bench large fuzz strange-requests odd-messages crash kills tier-kills ris-kills setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# Debian's python3 may lack ensurepip; its pip can still install into an environment made without it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
	    $(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV); }; \
	fi
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
	else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	echo "installing into $(VENV) ..."; \
	$$pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[dev,ris,s3,postgres,video]'
	@touch $@

run: setup
	$(BIN)/hounsfield serve --data .demo/archive

demo: setup
	@$(MAKE) --no-print-directory programs PEERS=dcmtk
	$(BIN)/python benchmarks/demo.py $(if $(EXIT),--exit)

PEERS := chromium curl dcmtk dicom3tools gcc libc6-dev odil openssl orthanc orthanc-dicomweb prometheus strace wrk

# What the tests talk to: programs, a viewer and studies. Packages of npm are kept in .cache/npm.
peers: programs
	@$(PYTHON) tests/viewers/npm_packages.py

# policy-rc.d keeps apt from starting services; ours start them. Other builds of Node.js bring npm along.
programs:
	@missing=""; for package in $(PEERS); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	install="apt-get install -y --no-install-recommends$$missing"; \
	if [ "$$(id -u)" != 0 ]; then echo "not root: tests that need$$missing are skipped. To run them: sudo $$install"; exit 0; fi; \
	ours=""; \
	if [ ! -e /usr/sbin/policy-rc.d ]; then \
	    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; ours=1; \
	fi; \
	status=0; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$install -qq >/dev/null; } || status=$$?; \
	if [ -n "$$ours" ]; then rm -f /usr/sbin/policy-rc.d; fi; \
	exit $$status

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One more than two cores: most tests wait for the disk half of their time. In runs of neighbours, which share
# servers.
WORKERS ?= 3

test: setup peers
	$(MAKE) --no-print-directory check
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST)

CEPH := ceph-mon ceph-osd ceph-common radosgw

test-ceph: setup
	@$(MAKE) --no-print-directory programs PEERS="$(CEPH)"
	TEST_CEPH=1 $(BIN)/pytest -n 0 tests/storage_backends/test_object_store_ceph.py $(PYTEST)

bench: setup peers
	$(BIN)/python -m benchmarks $(BENCH)

large: setup
	$(BIN)/python -m benchmarks.large_object $(LARGE)

fuzz: setup
	$(BIN)/python tests/wire/fuzz_wire.py $(FUZZ)
	$(BIN)/python tests/engine/fuzz_decoders.py $(FUZZ)

# Requests made from the OpenAPI document, so many of each operation: STRANGE_REQUESTS=500.
strange-requests: setup
	STRANGE_REQUESTS=$(or $(STRANGE_REQUESTS),100) $(BIN)/pytest -n 0 --timeout 0 tests/web/test_strange_requests_fail_the_server.py

# HL7 messages, changed at random, to a listener, so many: ODD_MESSAGES=20000.
odd-messages: setup
	ODD_MESSAGES=$(or $(ODD_MESSAGES),2000) $(BIN)/pytest -n 0 --timeout 0 tests/ris/test_odd_messages_stop_the_listener.py

CRASH_DIRECTORY := .cache/crash-truth/recorded

# A recorded server and what power cuts may leave of it, all of it (hours) or CRASH="--states 20000 --seed 2".
crash: setup peers
	rm -rf $(CRASH_DIRECTORY)
	PYTHONPATH=tests:. $(BIN)/python -m crash_truth.explore record $(CRASH_DIRECTORY)
	PYTHONPATH=tests:. $(BIN)/python -m crash_truth.explore check $(CRASH_DIRECTORY) $(CRASH)

# kill -9 while series move between tiers, 20 times or TIER_KILLS="--rounds 100 --seed 2".
tier-kills: setup
	PYTHONPATH=tests:. $(BIN)/python -m crash_truth.tier_kills $(TIER_KILLS)
	TIER_STORE_KILLS=3 $(BIN)/pytest -n 0 tests/engine/test_store_is_killed_in_a_move.py
	HOUNSFIELD_KILL_EVERY=2 $(BIN)/pytest -n 0 --timeout 1800 tests/engine/test_moves_are_killed_anywhere.py
	HOUNSFIELD_KILL_EVERY=1 $(BIN)/pytest -n 0 tests/engine/test_gathering_crashes.py tests/engine/test_compaction_crashes.py

kills: setup
	PYTHONPATH=tests:. $(BIN)/python -m crash_truth.kills $(KILLS)

# kill -9 in the middle of a department's day, 60 times or RIS_KILLS="--rounds 10 --seed 2".
ris-kills: setup
	PYTHONPATH=tests:. $(BIN)/python -m crash_truth.ris_kills $(RIS_KILLS)

clean:
	rm -rf $(VENV) .demo .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/hounsfield.egg-info

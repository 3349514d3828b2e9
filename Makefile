# What one can do with this project: `make help`. Each target installs what it needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

export PATH := $(PATH):$(HOME)/.cargo/bin:$(CURDIR)/.cache/bin
export RUSTDOCFLAGS := -Dwarnings

CARGO := cargo
# How many tests run at a time: many wait for a fault to be noticed, and leave their core to another one.
THREADS ?= $(shell echo $$(($$(nproc) * 3 / 2)))
# cargo-nextest runs the tests of all programs at once; plain cargo runs one program after the other.
BUILD_TESTS := $(shell PATH="$(PATH):$(HOME)/.cargo/bin" command -v cargo-nextest >/dev/null \
	&& echo "$(CARGO) nextest run" || echo "$(CARGO) test --quiet")
TEST := $(BUILD_TESTS) $(if $(findstring nextest,$(BUILD_TESTS)),--no-tests=pass --test-threads $(THREADS))
# There are no examples; but asked for them, Cargo takes dependencies with the features that tests want of them, so that
# demo, docs and tests compile each dependency once.
AS_TESTS := --examples
# The tests whose names begin with the number of a scenario, such as p1_ or c8_. Plain cargo takes no patterns of
# names: there it is the files that have nothing else.
SCENARIOS := $(if $(findstring nextest,$(TEST)),--test '*' -E 'test(/(^|::)[acdkprs][0-9]+_/)',--test integration scenarios_)
# Passed on to the target's program: make bench ARGS="--only simple-16 --runs 1"
ARGS ?=
# How many random cases each property is tried with by `make fuzz`.
CASES ?= 20000
# How long `make fuzz` feeds each target of fuzz/ with bytes, in seconds.
FUZZ_SECONDS ?= 30
# How often `make test-failover` moves the primary in each of the ways there are.
FAILOVER_RUNS ?= 20
# How long PgBouncer is given in each run to write again, after pgweir has: its server_login_retry is 15 s.
PGBOUNCER_SECONDS ?= 2
FAILOVER_TABLE := $(CURDIR)/target/failover.txt

# How many random sessions `make differential` compares with PostgreSQL.
SESSIONS ?= 100000

.PHONY: help demo test lint programs unit integration differential test-failover pgbouncer-tests release bench fuzz

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A clean build is a fifth shorter if it keeps nothing for the next one. So after `make test` the first build by hand, or by
# `make unit`, compiles our own code once more, and those that follow it are quick.
demo test: export CARGO_INCREMENTAL := 0

demo: ## a private PostgreSQL with two standbys, and pgweir in front, to play with
	@scripts/setup build postgres
	$(CARGO) build --bins $(AS_TESTS)
	$${CARGO_TARGET_DIR:-target}/debug/pgweir demo $(ARGS)

test: lint programs unit integration ## all that must pass before a change is merged, cheapest first
	@echo "make test: format, clippy, docs, unit tests and integration tests passed"

lint: ## format, clippy and docs; every warning is an error
	@scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path tests/drivers/rust/Cargo.toml
	# Nothing is linked, so that libFuzzer need not be there.
	CUSTOM_LIBFUZZER_PATH=/lib/libFuzzer.a $(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) doc --lib $(AS_TESTS) --no-deps --document-private-items --quiet

# All in one call of Cargo: each compiler uses one core for half of its time, so that several side by side take less.
programs:
	@scripts/setup build
	$(BUILD_TESTS) --no-run --lib --bins --test '*'

unit: ## the unit tests alone: no network, no PostgreSQL, seconds
	@scripts/setup build
	$(TEST) --lib --bins

integration: ## the tests against real PostgreSQL, real drivers and a real Kubernetes API
	@scripts/setup build postgres postgres18 auth drivers kube page monitoring pgbouncer
	scripts/share-kube $(TEST) --test '*'
	PGWEIR_TEST_PG=18 $(TEST) $(SCENARIOS)

differential: ## random sessions, each directly and through pgweir: make differential SESSIONS=5000 PGWEIR_DIFFERENTIAL_SEED=7
	@scripts/setup build postgres
	PGWEIR_DIFFERENTIAL_SEED=$${PGWEIR_DIFFERENTIAL_SEED:-$$RANDOM$$RANDOM} PGWEIR_DIFFERENTIAL_SESSIONS=$(SESSIONS) \
		$(CARGO) test --test differential -- --nocapture

test-failover: ## every failover and switchover 20 times, PgBouncer beside: make test-failover FAILOVER_RUNS=100 PGBOUNCER_SECONDS=20
	@scripts/setup build postgres kube pgbouncer
	@mkdir -p $(dir $(FAILOVER_TABLE))
	@printf '%-30s %4s  %16s  %16s %7s  %16s %7s\n' 'median / worst of' runs 'first write' \
		'pgweir outage' failed 'PgBouncer outage' failed >$(FAILOVER_TABLE)
	PGWEIR_FAILOVER_RUNS=$(FAILOVER_RUNS) PGWEIR_API_AWAY_SECONDS=60 PGWEIR_PGBOUNCER_SECONDS=$(PGBOUNCER_SECONDS) \
		PGWEIR_FAILOVER_TABLE=$(FAILOVER_TABLE) \
		$(CARGO) test --test measured --test integration --no-fail-fast -- --nocapture --test-threads 1 \
		failover:: failover_times:: operator:: operator_times:: operator_events:: events:: || failed=1; \
	echo && cat $(FAILOVER_TABLE) && \
	echo 'PgBouncer was given $(PGBOUNCER_SECONDS) s after pgweir: its outage may be longer.' && exit $${failed:-0}

pgbouncer-tests: ## PgBouncer's own test suite against pgweir: make pgbouncer-tests ARGS="test_ssl.py -k verify"
	@scripts/setup build suite
	$(CARGO) build --quiet
	scripts/pgbouncer-tests $(ARGS)

release: ## pgweir as its image has it, laid out by what runs most: target/profiled/pgweir
	@scripts/setup release
	scripts/build-release

bench: ## pgweir beside PgBouncer, same ini file; writes benches/RESULTS.md
	@scripts/setup bench
	[ -n "$${PGWEIR:-}" ] || $(MAKE) release
	scripts/bench $(ARGS)

# cargo-fuzz builds by the profile of a release, whose LTO cannot be another for one member of the workspace.
fuzz: export CARGO_PROFILE_RELEASE_LTO := off
fuzz: export CARGO_PROFILE_RELEASE_CODEGEN_UNITS := 16
fuzz: export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS := true
fuzz: export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS := true
fuzz: ## the properties with many more random cases, then libFuzzer on each parser: make fuzz FUZZ_SECONDS=600
	@scripts/setup fuzz
	PROPTEST_CASES=$(CASES) $(CARGO) test --release --lib
	for target in $$($(CARGO) fuzz list); do \
		$(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -verbosity=0; \
	done

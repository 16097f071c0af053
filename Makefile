# The project's commands. `make demo` shows a job from post to payment; `make test` runs every test.
# Options: ARGS for the demo and the benchmark, FABSTIR_CACHE for where builds and downloads are kept between checkouts.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# Cargo uses every core by itself, and waits for its own lock.
.NOTPARALLEL:

cache := $(or $(FABSTIR_CACHE),$(XDG_CACHE_HOME),$(HOME)/.cache)/fabstir
# A machine that builds fresh checkouts keeps what cargo built of the dependencies.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(cache)/target
else
export CARGO_TARGET_DIR ?= $(CURDIR)/target
endif
export FABSTIR_PYTHON ?= $(CURDIR)/.fabstir/venv/bin/python
# llama.cpp's C++ is most of a first build.
ifneq ($(shell command -v ccache),)
export CMAKE_C_COMPILER_LAUNCHER := ccache
export CMAKE_CXX_COMPILER_LAUNCHER := ccache
endif

deny_version := 0.20.2
slither_version := 0.11.6
moto_version := 5.2.5
slither := $(CURDIR)/.fabstir/slither-$(slither_version)/bin/slither

deny := $(cache)/tools/cargo-deny-$(deny_version)/bin/cargo-deny

.PHONY: help demo test test-aws bench-index bench-claims bench-policy chaos faults failpoints setup check fmt lint doc deny advisories abi clean
.PHONY: contracts-test contracts-invariants contracts-coverage contracts-analyze contracts-gas gas

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: setup ## one job from post to payment on a local chain; ARGS="--keep --json" goes to the demo
	@cargo run --quiet -- demo $(ARGS)

test: setup contracts-test ## every test: contracts, library, scenarios, containers (where an engine can be started)
	@tools/engine.sh run cargo test --lib --test it

test-aws: setup .fabstir/moto/bin/moto_server ## a host whose key AWS KMS keeps, against a KMS on this machine; builds with that feature
	@cargo test --features aws --test it a_host_whose_key_aws_keeps

.fabstir/moto/bin/moto_server: Makefile
	python3 -m venv .fabstir/moto
	.fabstir/moto/bin/pip install --quiet --disable-pip-version-check "moto[server,kms]==$(moto_version)"
	@touch $@

bench-index: setup ## the indexer's CPU time, memory and latency on 200 000 events, as one JSON object; ARGS="--help" says more
	@cargo build --release --quiet --bin fabstir
	@cargo run --quiet --example bench_index -- $(ARGS)

bench-claims: setup ## a host's latency from a job's log to its claim, jobs per hour, restart, rivals, a fee spike; ARGS="--help" says more
	@cargo build --release --quiet --bin fabstir --example bench_claims
	@$(CARGO_TARGET_DIR)/release/examples/bench_claims $(ARGS)

bench-policy: setup ## what one decision of policy costs, in microseconds, as one JSON object; ARGS is the number of decisions
	@cargo run --quiet --example bench_policy -- $(ARGS)

KILLS ?= 100
REORGS ?= 50
SEED ?= 1
chaos: setup ## two rival hosts through KILLS=100 kills and REORGS=50 reorgs behind failing endpoints, SEED=1; last a JSON object
	@cargo build --quiet --bin fabstir --example chaos
	@$(CARGO_TARGET_DIR)/debug/examples/chaos --kills $(KILLS) --reorgs $(REORGS) --seed $(SEED) $(ARGS)

setup: ## install and build what the other commands need; says what is missing
	@tools/setup.sh

check: setup fmt lint doc deny abi-check contracts-gas contracts-analyze ## what must hold before the tests run

fmt: setup ## the formatting of Rust and Solidity
	cargo fmt --check
	npm --prefix contracts run --silent fmt:check

lint: setup ## clippy, warnings are errors
	@cargo clippy --all-targets --quiet -- -D warnings

doc: setup ## the documentation's links and examples
	@RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --quiet

deny: $(deny) ## licences, duplicate and unwanted crates, sources
	@$< check bans licenses sources

advisories: $(deny) ## known vulnerabilities; fetches the advisory database
	@$< check advisories

contracts-test: setup ## the contracts' unit, fuzz and invariant tests
	npm --prefix contracts test --silent

contracts-invariants: setup ## the same for longer: 2048 runs of 1000 calls, 10000 runs of each fuzz test
	npm --prefix contracts run --silent invariants

contracts-coverage: setup ## lines and branches of the contracts that their tests reach
	npm --prefix contracts run --silent coverage

contracts-gas: setup ## fails when a call costs other gas than contracts/snapshots says
	npm --prefix contracts run --silent gas:check

contracts-analyze: setup $(slither) ## static analysis of the contracts; fails on any finding
	@cd contracts && FOUNDRY_OFFLINE=true FOUNDRY_SOLC=$$PWD/tools/solc PATH=$$PWD/node_modules/.bin:$$PATH \
	  FOUNDRY_OUT=$(CURDIR)/.fabstir/analysis/out FOUNDRY_CACHE_PATH=$(CURDIR)/.fabstir/analysis/cache \
	  $(slither) . --config-file slither.config.json

gas: setup ## what a job costs in gas with real proofs, as one JSON object: alone, and per job of four
	@mkdir -p .fabstir
	@GAS_JSON=$(CURDIR)/.fabstir/gas.json cargo test --quiet --test it one_proof_completes_four_jobs >&2
	@cat .fabstir/gas.json

faults: setup ## what the indexer does when its endpoint lies, lags or breaks, as a table
	@mkdir -p .fabstir && rm -f .fabstir/faults.txt
	@FAULTS_KILLS=$${FAULTS_KILLS:-50} FAULTS_REPORT=$(CURDIR)/.fabstir/faults.txt \
	  cargo test --quiet --test it faults::faults >&2 || failed=1; \
	  cat .fabstir/faults.txt; exit $${failed:-0}

failpoints: setup ## every boundary where the host may die, panic, stand still or fail, as a table; FAILPOINTS_STALL=30 stalls for longer
	@mkdir -p .fabstir && rm -f .fabstir/failpoints.txt
	@FAILPOINTS_ALL=1 FAILPOINTS_REPORT=$(CURDIR)/.fabstir/failpoints.txt \
	  cargo test --quiet --test it failpoints::a_job >&2 || failed=1; \
	  cat .fabstir/failpoints.txt; exit $${failed:-0}

abi: setup ## write abi/*.json from the contracts
	npm --prefix contracts run --silent abi

.PHONY: abi-check
abi-check: setup
	npm --prefix contracts run --silent abi:check

clean: ## remove what was built in this checkout, and its keys and stores
	@tools/engine.sh down
	rm -rf target .fabstir contracts/{node_modules,out,cache,generated} examples/bench_index/ponder/{node_modules,.ponder,ponder-env.d.ts}

# Unoptimised, and without the parts that fetch: half the time to build, and fast enough for what it reads.
$(deny):
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	CARGO_TARGET_DIR=$(cache)/tools/target cargo install cargo-deny --version $(deny_version) --locked --no-default-features \
	  --root $(cache)/tools/cargo-deny-$(deny_version) --quiet
	rm -rf $(cache)/tools/target

$(slither):
	python3 -m venv .fabstir/slither-$(slither_version)
	.fabstir/slither-$(slither_version)/bin/pip install --quiet --disable-pip-version-check slither-analyzer==$(slither_version)

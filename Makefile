# The verbs of this repository, the same by hand and in continuous integration. Each is idempotent.

SHELL := /bin/bash
CARGO := cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Everything there is: also the shim's program, which the engine builds by itself and nothing else would lint or test.
# One set of features for all steps, so that no crate is built twice.
ALL := --workspace --features shim/program --locked

.PHONY: help setup demo check test fuzz bench soak clean-machine

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: ## Install the Debian packages and tools that are missing
	@scripts/setup

demo: ## Build, start a cluster on this machine, and run the sentiment example on it
	@scripts/demo

check: ## The inner loop: format, dependencies, lints, repository checks
	$(CARGO) fmt --all --check
	scripts/cargo-deny check bans licenses sources
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
	$(CARGO) test -p xtask --locked

test: setup ## Everything that proves it, from one debug build
	@scripts/base-image busybox
	$(CARGO) fmt --all --check
	scripts/cargo-deny check bans licenses sources
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
	$(CARGO) build $(ALL) --all-targets
	@scripts/base-image nginx
	@scripts/example-images
	@scripts/clients
	$(CARGO) test $(ALL) --no-fail-fast -- --test-threads=2
	@FUZZ_SEED=1 scripts/fuzz
	python3 -m unittest discover -s examples/sentiment/sa-logic/tests

fuzz: ## Half a minute of made-up bytes for each decoder that sees some from outside
	@scripts/fuzz

bench: setup ## The figures of speed and memory, from a release build
	@scripts/base-image busybox
	$(CARGO) build --release -p skiff -p bench --locked
	@$${CARGO_TARGET_DIR:-target}/release/bench

soak: setup ## Updates and churn of thousands of pods under load and kills, then a look for what leaked
	@scripts/base-image busybox
	@scripts/base-image nginx
	$(CARGO) build -p skiff --locked
	$(CARGO) test -p walkthroughs --locked -- --ignored --nocapture soak
	$(CARGO) test -p faults --locked -- --ignored --nocapture soak

clean-machine: ## Remove every trace: the default instance, build output and caches (Debian packages stay)
	@if [ -e /var/lib/skiff/skiff-instance ] || [ -e /run/skiff/skiff-instance ]; then \
		skiff=$$(ls -t $(TARGET)/{debug,release}/skiff 2>/dev/null | head -n 1); \
		[ -n "$$skiff" ] || { $(CARGO) build -p skiff --locked && skiff=$(TARGET)/debug/skiff; } || exit; \
		$$skiff down --purge || exit; fi
	@$(MAKE) --no-print-directory -C examples/sentiment clean
	rm -rf $(TARGET) $${SKIFF_CACHE:-$$HOME/.cache/skiff}

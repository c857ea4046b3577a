# The verbs of this repository, the same by hand and in continuous integration. Each is idempotent.

SHELL := /bin/bash
CARGO := cargo

.PHONY: help setup check test demo bench clean-machine

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: ## Install the Debian packages and tools that are missing
	@scripts/setup

check: ## The inner loop: format, lints, repository checks, unit tests
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test -p xtask --locked

test: setup ## Everything that proves it, from one debug build
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --locked -- --test-threads=2
	python3 -m unittest discover -s examples/sentiment/sa-logic/tests

# The repository's commands. `make` alone lists them.

# A recursive make must not add lines of its own to what is for `eval`.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-long check bench stack stack-down

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: ## start a private stack and both services on it, and play the story to its end
	@bash scripts/demo.sh

test: ## run every test, on servers of its own; ARGS="-p voiceai-queue" chooses
	@bash scripts/test.sh $(ARGS)

test-long: ## run the long tests: fault rounds, loss, failover; report under target/long/
	@bash scripts/test.sh --long $(ARGS)

check: ## format, clippy, cargo-deny, docs, shellcheck; ARGS="docs" chooses
	@bash scripts/check.sh $(ARGS)

bench: ## run the benches on a private Redis; results under target/bench/
	@bash bench/run.sh

stack: ## start the private stack, for: eval "$(make stack)"
	@bash scripts/stack/stack-up.sh

stack-down: ## stop what `make stack` started
	@bash scripts/stack/stack-down.sh

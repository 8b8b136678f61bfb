# Everything a newcomer types; the work is done by scripts/.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test asan acceptance format tidy clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PRESET=NAME   another preset of CMakePresets.json than release (ci: warnings are errors)'
	@echo '  JOBS=N        compilations and tests at once'
	@echo '  MNEME_PYTHON=PATH   make .venv from this Python, and use its torch if it is 2.11 to 2.13'

setup: ## Debian packages and the virtual environment .venv
	@scripts/setup

build: setup ## the programs, into build/
	@scripts/build

demo: setup ## read the Python Language Reference into demo.mneme and ask it five questions
	@scripts/build mneme
	@scripts/demo

test: ## all tests; CTEST='-LE slow' leaves the slow ones out
	@scripts/setup test
	@scripts/build
	@scripts/test $(CTEST)

asan: ## the quick tests of what reads files, under sanitizers, in build-asan/
	@scripts/setup test
	@scripts/test-sanitized

acceptance: ## everything that an issue promises: make acceptance ISSUE=main-job
	@scripts/acceptance '$(ISSUE)'

format: ## clang-format (version 19) over the sources
	@git ls-files '*.cpp' '*.h' '*.inl' | xargs clang-format-19 -i

tidy: setup ## clang-tidy (version 19) over the sources, in build-tidy/
	@PRESET=tidy scripts/build

clean: ## remove what was built; .venv stays
	@rm -rf build build-* demo.mneme demo.mneme-wal demo.mneme-shm

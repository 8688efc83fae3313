# The commands of the project; each installs what it lacks. The work is done in tools/.
.PHONY: help demo test bench-bookkeeping bench-cpu lint format clean

help:
	@echo 'make demo               a C++ quick start, then a language model that answers three questions through seqattn'
	@echo '                        (ARGS goes to examples/generate.py: ARGS="--check --kv-dtype f16", ARGS="--help", and'
	@echo '                        with quotes of its own a question of several words: ARGS="\"How are you?\" --check")'
	@echo 'make test               every test'
	@echo 'make bench-bookkeeping  page tables and pools, beside the original in Python'
	@echo 'make bench-cpu          attention on this CPU beside reading, multiplying, ggml and torch; about 40 minutes'
	@echo '                        (ARGS="--quick" for a few; ARGS="--help")'
	@echo 'make lint               clang-format, clang-tidy, ruff, mypy, shellcheck'
	@echo 'make format             rewrite in the format of the project'
	@echo 'make clean              remove build/, .venv/ and what tests leave behind'

# By the environment: the shell would split and unquote what make puts in a command.
demo: export ARGS := $(ARGS)
demo:
	@tools/demo.sh

test:
	@tools/test.sh

bench-bookkeeping:
	@tools/bench.sh bookkeeping

bench-cpu:
	@tools/bench.sh cpu $(ARGS)

lint:
	@tools/lint.sh

format:
	@tools/lint.sh --fix

clean:
	rm -rf build .venv .hypothesis .pytest_cache .ruff_cache

# The commands of the project; each installs what it lacks. The work is done in tools/.
.PHONY: help demo test bench-bookkeeping lint format clean

help:
	@echo 'make demo               a C++ quick start, then a language model that answers three questions through seqattn'
	@echo '                        (ARGS="..." goes to examples/generate.py: questions, --kv-dtype f16, --check, --help)'
	@echo 'make test               every test'
	@echo 'make bench-bookkeeping  page tables and pools, beside the original in Python'
	@echo 'make lint               clang-format, clang-tidy, ruff, shellcheck'
	@echo 'make format             rewrite in the format of the project'
	@echo 'make clean              remove build/ and .venv/'

demo:
	@tools/demo.sh $(ARGS)

test:
	@tools/test.sh

bench-bookkeeping:
	@tools/bench.sh bookkeeping

lint:
	@tools/lint.sh

format:
	@tools/lint.sh --fix

clean:
	rm -rf build .venv

#!/usr/bin/env bash
# demo.sh [<argument of examples/generate.py>...]: the C++ quick start, then a language model through the Python package.
source "$(dirname "$0")/common.sh"
tools/setup.sh demo
build release "quickstart seqattn_python" "${python_options[@]}"

echo
build/release/examples/quickstart
echo
PYTHONPATH=$(python_path release) exec "$python" examples/generate.py "$@"

#!/usr/bin/env bash
# test.sh: every test, C++ with ctest and Python with pytest, on the build of preset dev.
source "$(dirname "$0")/common.sh"
tools/setup.sh test
build dev all "${python_options[@]}"

echo
ctest --preset dev -j "$jobs" --progress
PYTHONPATH=$(python_path dev) exec "$python" -m pytest

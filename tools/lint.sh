#!/usr/bin/env bash
# lint.sh [--fix]: clang-format, clang-tidy, ruff, mypy and shellcheck. With --fix it only rewrites in the project's format.
source "$(dirname "$0")/common.sh"
tools/setup.sh lint

mapfile -t cpp < <(git ls-files --cached --others --exclude-standard '*.cc' '*.h' '*.cu' '*.cuh')
# src/cuda is not in the build that clang-tidy reads: that takes CUDA's headers; nor is ggml. For tests the warnings of
# clang, which compiles them for ThreadSanitizer in .ci/run, have to do.
mapfile -t translation_units < <(git ls-files --cached --others --exclude-standard \
  'src/*.cc' 'bench/*.cc' 'cli/*.cc' 'examples/*.cc' 'python/src/*.cc' ':!src/cuda' ':!bench/cuda' ':!bench/cpu/ggml_side.cc')

if [[ ${1:-} == --fix ]]; then
  clang-format-14 -i "${cpp[@]}"
  "$python" -m ruff check --fix .
  exit
fi

step clang-format "clang-format" clang-format-14 --dry-run -Werror "${cpp[@]}"
step ruff "ruff" "$python" -m ruff check .
step mypy "mypy" "$python" -m mypy
step shellcheck "shellcheck" shellcheck -x .ci/run scripts/gpu-check tools/*.sh
step configure-clang "configuring build/clang" cmake --preset clang "${python_options[@]}" -DSEQATTN_BUILD_BENCH=ON
step clang-tidy "clang-tidy on ${#translation_units[@]} files" \
  xargs -P "$jobs" -n 1 clang-tidy-14 -p build/clang --quiet <<<"${translation_units[*]}"

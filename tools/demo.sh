#!/usr/bin/env bash
# demo.sh [<argument of examples/generate.py>...]: the C++ quick start, then a language model through the Python package.
# More arguments come from the variable ARGS, where quotes hold words together.
source "$(dirname "$0")/common.sh"
words=$(xargs -r printf '%s\n' <<<"${ARGS:-}" 2>/dev/null) ||
  die "ARGS: got $ARGS; expected quotes in pairs: a question with an apostrophe goes in double quotes, ARGS='\"...\"'"
if [[ -n $words ]]; then
  mapfile -t arguments <<<"$words"
  set -- "${arguments[@]}" "$@"
fi
tools/setup.sh demo
build release "quickstart seqattn_python" "${python_options[@]}"

echo
build/release/examples/quickstart
echo
PYTHONPATH=$(python_path release) exec "$python" examples/generate.py "$@"

# shellcheck shell=bash
# Sourced by the scripts beside it: the root of the clone as working directory, and long work with a log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck disable=SC2034  # used by those who source this
jobs=$(nproc)
python=$PWD/.venv/bin/python

die() {
  echo "$1" >&2
  exit 1
}

# step <name> <title> <command>...: runs the command with its output in build/logs/<name>.log and a line of it on the
# screen every 20 seconds. When it fails, the end of the log is shown and the script ends.
step() {
  local log=build/logs/$1.log title=$2 started=$SECONDS
  shift 2
  mkdir -p build/logs
  echo "$title"
  if ! "$@" 2>&1 | show_progress "$log"; then
    tail -n 40 "$log" >&2
    die "failed: $title (all of it: $log)"
  fi
  if ((SECONDS - started >= 5)); then
    echo "  $((SECONDS - started)) s"
  fi
}

show_progress() {
  local line next=$((SECONDS + 20))
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    if ((SECONDS >= next)); then
      printf '  ... %.100s\n' "$line"
      next=$((SECONDS + 20))
    fi
  done 3>"$1"
}

# build <preset> <targets> <cmake option>...: configures and builds into build/<preset>.
build() {
  local preset=$1 targets=$2
  shift 2
  step "configure-$preset" "configuring build/$preset" cmake --preset "$preset" "$@"
  # shellcheck disable=SC2086  # several targets
  step "build-$preset" "building build/$preset" cmake --build --preset "$preset" -j "$jobs" --target $targets
}

# The Python module is built in the tree, for the interpreter of .venv; python_path says where.
# shellcheck disable=SC2034
python_options=(-DSEQATTN_BUILD_PYTHON=ON "-DPython_EXECUTABLE=$python")

python_path() {
  echo "$PWD/build/$1/python"
}

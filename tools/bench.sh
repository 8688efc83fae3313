#!/usr/bin/env bash
# bench.sh <name>: builds bench/<name> with preset release and runs it: bookkeeping, attention_vs_scalar.
source "$(dirname "$0")/common.sh"
case ${1:-} in
  bookkeeping | attention_vs_scalar) [[ $# == 1 ]] ;;
  *) false ;;
esac || die "usage: tools/bench.sh bookkeeping|attention_vs_scalar"
tools/setup.sh bench
build release "bench_$1" -DSEQATTN_BUILD_BENCH=ON

echo
program=build/release/bench/bench_$1
if [[ -f bench/$1.py ]]; then # runs the program beside its peer
  exec /usr/bin/python3 "bench/$1.py" "$program" "build/bench/$1.json"
fi
exec "$program"

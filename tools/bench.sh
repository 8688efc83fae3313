#!/usr/bin/env bash
# bench.sh bookkeeping|attention_vs_scalar: builds that benchmark with preset release and runs it.
# bench.sh cpu [<argument of bench_cpu>...]: the same, beside ggml; the plot comes after the table.
source "$(dirname "$0")/common.sh"
case ${1:-} in
  bookkeeping | attention_vs_scalar) [[ $# == 1 ]] ;;
  cpu) ;;
  *) false ;;
esac || die "usage: tools/bench.sh bookkeeping|attention_vs_scalar|cpu [ARGUMENT...]"

if [[ $1 == cpu ]]; then
  shift
  tools/setup.sh bench-cpu
  tools/fetch_ggml.sh
  build release bench_cpu -DSEQATTN_BUILD_BENCH=ON "-DSEQATTN_GGML_DIR=$PWD/build/ggml"
  mkdir -p build/bench
  echo
  # Threads of some OpenMP libraries would spin far into the next one's turn.
  SEQATTN_COMMIT=${SEQATTN_COMMIT:-$(git rev-parse --short=12 HEAD)} KMP_BLOCKTIME=2 \
    build/release/bench/cpu/bench_cpu --json build/bench/cpu.json "$@"
  for argument; do
    case $argument in -h | --help | --list) exit ;; esac
  done
  exec "$python" bench/plot_cpu.py build/bench/cpu.json build/bench/cpu.png
fi

tools/setup.sh bench
build release "bench_$1" -DSEQATTN_BUILD_BENCH=ON

echo
program=build/release/bench/bench_$1
if [[ -f bench/$1.py ]]; then # runs the program beside its peer
  exec /usr/bin/python3 "bench/$1.py" "$program" "build/bench/$1.json"
fi
exec "$program"

#!/usr/bin/env bash
# bench.sh bookkeeping: builds bench/<name> with preset release and runs it.
source "$(dirname "$0")/common.sh"
tools/setup.sh bench
build release "bench_$1" -DSEQATTN_BUILD_BENCH=ON

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/fuzz/test_fuzz.sh SOURCE BUILD: every fuzz target builds and survives a short run from its
# seeds, and the planted bug of the canary is found: the fuzzer sees what it should.
set -euo pipefail
source=$1 build=$2/fuzz
echo 'int LLVMFuzzerTestOneInput(void);int LLVMFuzzerTestOneInput(void){return 0;}' |
    clang -fsanitize=fuzzer,address,undefined -x c - -o /dev/null 2>/dev/null || {
    echo "no clang with libFuzzer here: skipped"
    exit 77
}
"$source/tools/dev/fuzz" --build "$build" --runs "${LL_FUZZ_RUNS:-1500}"
if "$source/tools/dev/fuzz" --build "$build" --runs 300000 canary >"$build/canary" 2>&1; then
    cat "$build/canary"
    echo "the canary's bug was not found"
    exit 1
fi
grep -q heap-buffer-overflow "$build/log-canary"

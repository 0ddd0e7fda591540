#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_runtimes.sh - two runtimes behind one proxy, by runtimes.py: load and equal
# beginnings are divided, one that dies or hangs takes its own requests along and no others.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
pids=()
clean_up_runtimes() {
    [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null
    clean_up_proxy
}
trap clean_up_runtimes EXIT

run 2 "$proxy" --socket "$scratch/a.sock" --runtime "$scratch/a.sock" --port 0
says "$err" "is given twice"
python3 "$source_dir/tests/http/runtimes.py" "$llringd" "$proxy" "$scratch" >"$out" 2>"$err" &
pids+=($!)
ends "${pids[0]}" 0 "runtimes.py"
pids=()
cat "$out"
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_abuse.sh - hostile and broken clients, by abuse.py; the fake device streams fast.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
start_runtime --device fake --max-model-len 8192
start_proxy --api-key sesame
case $build_dir in
*/asan | */tsan) ;; # a sanitizer needs its calls
*) grep -q '^Seccomp:[[:space:]]*2' "/proc/$proxy_pid/status" || fail "the proxy is not in its sandbox" ;;
esac
# Ticks of CPU time in a second with nothing to do: a loop that spins takes a hundred.
ticks() {
    local line
    read -r line <"/proc/$proxy_pid/stat"
    # shellcheck disable=SC2086
    set -- $line
    echo $((${14} + ${15}))
}
before=$(ticks)
sleep 1
[ $(($(ticks) - before)) -lt 20 ] || fail "an idle proxy is busy"
run 0 python3 "$source_dir/tests/http/abuse.py" "$port" sesame "$proxy_pid"
cat "$out"
stop_proxy
check_ledger
stop_runtime
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_idle.sh - T18 on llringd: no system call on the step thread while it spins, at most
# 12 wake-ups a second while everything sleeps.
# shellcheck source=tests/script.sh
. "$(dirname "$0")/../script.sh"

# wake_ups PID...: voluntary context switches of all threads so far; each sleep is one.
wake_ups() {
    local pid n=0 line
    for pid; do
        for line in /proc/"$pid"/task/*/status; do
            n=$((n + $(sed -n 's/^voluntary_ctxt_switches:\s*//p' "$line")))
        done
    done
    echo "$n"
}

start_runtime "$model" --device fake
sleep 1
before=$(wake_ups "$runtime_pid") begin=$(date +%s%N)
sleep 3
n=$(($(wake_ups "$runtime_pid") - before)) ms=$((($(date +%s%N) - begin) / 1000000))
[ "$n" -le $((12 * ms / 1000)) ] || fail "$n wake-ups of llringd in $ms ms of idleness"
stop_runtime

command -v strace >/dev/null || { echo "no strace: the spinning part is skipped" && finish; }
start_runtime "$model" --device fake --spin-us 1000000000
step=
for task in /proc/"$runtime_pid"/task/*; do
    [ "$(cat "$task/comm")" = llring-step ] && step=${task##*/}
done
[ -n "$step" ] || fail "no thread named llring-step"
timeout -s INT 2 strace -p "$step" -o "$scratch/trace" 2>"$err"
if grep -q "Operation not permitted" "$err"; then
    echo "strace may not look: the spinning part is skipped"
else
    # A machine of one or two CPUs gives its turn away between empty polls; nothing else is called.
    calls=$(grep -vE '^(sched_yield|strace|---|\+\+\+)' "$scratch/trace" | head -5)
    equal "$calls" "" "system calls while spinning"
fi
stop_runtime
finish

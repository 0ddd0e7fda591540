#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_cuda.sh - the whole path on a GPU: golden answers with 16-bit and 8-bit weights and
# caches, the GPU's figures, and what a broken or hanging device does to the process (rule R11).
# Skipped where there is no GPU.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
[ -e /dev/nvidiactl ] && [ -e "$build_dir/llring-cuda.so" ] || { echo "skipped: no GPU" && exit 77; }

for more in "" "--kv-cache-dtype fp8" "--deterministic" "--quantization fp8"; do
    echo "-- golden answers, --device cuda $more"
    # shellcheck disable=SC2086
    run 0 "$llring" check "$model" --golden "$golden" -- --device cuda $more
    cat "$out"
    says "$out" "prompt ids equal         40/40" "pass"
done

echo "-- figures of the GPU"
start_runtime "$model" --device cuda
memory=$(stat gpu_memory_total_bytes)
if [ -n "$memory" ]; then
    [ "$memory" -gt 1000000000 ] || fail "a GPU of $memory bytes"
    [ "$(stat gpu_memory_used_bytes)" -gt 100000000 ] || fail "nobody uses the GPU's memory"
    [ "$(stat gpu_power_mw)" -gt 1000 ] || fail "power: $(stat gpu_power_mw) mW"
    [ "$(stat gpu_temperature_celsius)" -gt 5 ] || fail "temperature"
    run 0 "$llring" status --socket "$socket"
    grep "^gpu_" "$out"
else
    echo "the driver's library gives none"
fi
check_ledger
stop_runtime

echo "-- llring reload: the same weights from another directory, there and back, the same answers"
cp -r "$model" "$scratch/again"
start_runtime "$model" --device cuda --reserve-weights
export LLRING_SOCKET=$socket
run 0 "$llring" complete --greedy -n 60 --ignore-eos "One day, a"
cp "$out" "$scratch/before"
for directory in "$scratch/again" "$model"; do
    run 0 "$llring" reload "$directory"
    says "$out" "$directory serves"
    run 0 "$llring" complete --greedy -n 60 --ignore-eos "One day, a"
    cmp "$out" "$scratch/before" || fail "after a reload of $directory it answers otherwise"
done
run 1 "$llring" reload "$scratch"
equal "$(stat reloads) $(stat weights_set) $(stat reloads_failed)" "2 0 1" "reloads, set, failures"
unset LLRING_SOCKET
check_ledger
stop_runtime

# The test build of the module breaks at a step of its own choice; llringd opens what lies beside it.
mkdir "$scratch/faults"
cp "$llringd" "$scratch/faults/llringd"
ln -s "$build_dir/tests/faults/llring-cuda.so" "$scratch/faults/llring-cuda.so"
for fault in hang address; do
    echo "-- $fault: all are told once, the process ends"
    llringd=$scratch/faults/llringd
    LL_CUDA_FAULT=$fault@20 start_runtime "$model" --device cuda
    for i in 1 2 3; do
        timeout 60 "$llring" complete --socket "$socket" --max-tokens 400 --ignore-eos "Once upon a time $i" \
            >"$scratch/out$i" 2>"$scratch/err$i" </dev/null &
        client[i]=$!
    done
    for i in 1 2 3; do
        wait "${client[i]}"
        rc=$?
        [ $rc != 0 ] && [ $rc != 124 ] || fail "client $i ended with $rc"
        cat "$scratch/err$i"
        grep -qi "device\|backend" "$scratch/err$i" || fail "client $i was not told why"
    done
    for _ in $(seq 100); do
        kill -0 "$runtime_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -0 "$runtime_pid" 2>/dev/null && fail "llringd goes on after a $fault"
    wait "$runtime_pid"
    equal $? 3 "exit status of llringd"
    runtime_pid=
    [ ! -S "$socket" ] || fail "the socket is still there"
    cat "$scratch/log"
    case $fault in
    hang) says "$scratch/log" "the step does not end" ;;
    address) says "$scratch/log" "CUDA: step" ;;
    esac
done

if [ "$(nvidia-smi -L 2>/dev/null | grep -c "^GPU")" -ge 2 ]; then
    echo "-- two ranks, rank 0 hangs: one message, the process ends"
    llringd=$scratch/faults/llringd
    LL_CUDA_FAULT=hang@20 start_runtime "$model" --device cuda --tensor-parallel-size 2
    began=$(date +%s%N)
    timeout 60 "$llring" complete --socket "$socket" --max-tokens 400 --ignore-eos "Once upon a time" \
        >"$scratch/out1" 2>"$scratch/err1" </dev/null
    rc=$?
    [ $rc != 0 ] && [ $rc != 124 ] || fail "the client ended with $rc"
    wait "$runtime_pid"
    equal $? 3 "exit status of llringd"
    echo "$((($(date +%s%N) - began) / 1000000)) ms from the request to the end"
    runtime_pid=
    cat "$scratch/log"
    says "$scratch/log" "rank 1 waited 1.5 s for the"
    equal "$(grep -c "rank 1 waited" "$scratch/log")" 1 "messages"

    echo "-- two ranks: golden answers"
    llringd=$build_dir/llringd
    for more in "" "--quantization fp8"; do
        # shellcheck disable=SC2086
        run 0 "$llring" check "$model" --golden "$golden" -- --device cuda --tensor-parallel-size 2 $more
        cat "$out"
        says "$out" "prompt ids equal         40/40" "pass"
    done
else
    echo "-- ranks without GPUs of their own are refused"
    run 1 "$build_dir/llringd" "$model" --device cuda --tensor-parallel-size 2 --socket "$scratch/tp.sock"
    says "$err" "needs as many GPUs, there are 1"
fi

echo "-- the GPU works again for the next process"
llringd=$build_dir/llringd
run 0 "$llring" check "$model" --golden "$golden" --cases 3 -- --device cuda
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_metrics.sh - /metrics and the status line, by metrics.py.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
start_runtime "$model" --device fake --fake-vocab 4106 --fake-step-us 50000
start_proxy --metrics-alias vllm
run 0 python3 "$source_dir/tests/http/metrics.py" "$port"
cat "$out"
says "$scratch/proxy.log" "running 1, waiting 0, KV used"
stop_proxy
check_ledger
stop_runtime
finish

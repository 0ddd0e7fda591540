#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_api.sh - llring-http with the demo model behind it, by api.py.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
start_runtime "$model"
start_proxy
[ -z "$is_slow" ] || limit_s=170
run 0 python3 "$source_dir/tests/http/api.py" "$port"
cat "$out"
stop_proxy
check_ledger
stop_runtime
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_openai.sh - the official openai package against llring-http.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
# shellcheck source=tests/http/openai.sh
source "$1/tests/http/openai.sh"
start_runtime "$model"
start_proxy --api-key wrong-too --api-key sesame
run 0 "$venv/bin/python" "$source_dir/tests/http/openai_client.py" "$port" sesame
cat "$out"
stop_proxy
start_proxy
run 0 "$venv/bin/python" "$source_dir/tests/http/openai_client.py" "$port" dummy
stop_proxy
check_ledger
stop_runtime
finish

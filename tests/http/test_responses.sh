#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_responses.sh - client.responses of the official openai package against llring-http.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
# shellcheck source=tests/http/openai.sh
source "$1/tests/http/openai.sh"
start_runtime "$model"
start_proxy
run 0 "$venv/bin/python" "$source_dir/tests/http/responses_client.py" "$port"
cat "$out"
stop_proxy
check_ledger
stop_runtime
finish

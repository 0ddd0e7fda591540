#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_openai.sh - the official openai package, from PyPI in a virtual environment of this
# test's own (kept in the build folder), against llring-http.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
venv=$build_dir/openai-venv
if ! "$venv/bin/python" -c "import openai" 2>/dev/null; then
    rm -rf "$venv"
    if ! python3 -m venv "$venv" >"$out" 2>&1 ||
        ! timeout 120 "$venv/bin/pip" install -q --timeout 10 --retries 1 openai >"$out" 2>&1; then
        rm -rf "$venv"
        echo "the openai package cannot be had here (PyPI out of reach, or no venv): skipped"
        exit 77
    fi
fi
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

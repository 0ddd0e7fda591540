#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_lm_eval.sh - the real lm-evaluation-harness, from PyPI in a virtual environment kept
# in the build folder. Without its own dependencies, which are gigabytes: local-completions needs few.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
venv=$build_dir/lm-eval-venv
import="from lm_eval.models.openai_completions import LocalCompletionsAPI"
if ! "$venv/bin/python" -c "$import" 2>/dev/null; then
    rm -rf "$venv"
    pip=("$venv/bin/pip" install -q --timeout 10 --retries 1)
    if ! python3 -m venv "$venv" >"$out" 2>&1 ||
        ! timeout 40 "${pip[@]}" --no-deps lm-eval >"$out" 2>&1 ||
        ! timeout 80 "${pip[@]}" numpy requests pyyaml jinja2 tqdm typing_extensions aiohttp \
            tenacity >"$out" 2>&1 ||
        ! "$venv/bin/python" -c "$import" 2>"$out"; then
        rm -rf "$venv"
        echo "lm-eval cannot be had here (PyPI out of reach, or it needs other packages): skipped"
        exit 77
    fi
fi
start_runtime "$model"
start_proxy
run 0 "$venv/bin/python" "$source_dir/tests/http/lm_eval_client.py" "$port"
cat "$out"
stop_proxy
check_ledger
stop_runtime
finish

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

# What `llring serve` prints works as it is printed.
"$llring" serve "$model" --port 0 --socket "$socket" --log-level warn >"$scratch/serve.out" 2>"$err" &
serve_pid=$!
for _ in $(seq 600); do
    ! grep -q "print(reply" "$scratch/serve.out" || break
    kill -0 "$serve_pid" 2>/dev/null || break
    sleep 0.05
done
sed -n '/^  from openai/,/^  print/s/^  //p' "$scratch/serve.out" >"$scratch/snippet.py"
run 0 "$venv/bin/python" "$scratch/snippet.py"
[ -s "$out" ] || fail "the snippet printed nothing"
kill -TERM "$serve_pid"
ends "$serve_pid" 0 "llring serve"
finish

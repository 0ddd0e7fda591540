#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_serve.sh - `llring serve`: both programs with one command, as commands for vllm say
# it; what it prints works; a proxy that dies comes back; both end together.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
socket=$scratch/llring.sock
serve_pid=
clean_up_serve() {
    [ -z "$serve_pid" ] || kill -KILL "$serve_pid" 2>/dev/null # its children get SIGTERM
    clean_up_proxy
}
trap clean_up_serve EXIT

# start_serve arguments...: ready when this returns; $port.
start_serve() {
    "$llring" serve "$@" --socket "$socket" >"$out" 2>"$err" &
    serve_pid=$!
    for _ in $(seq 400); do
        grep -q "reply.choices" "$out" && break
        kill -0 $serve_pid 2>/dev/null || break
        sleep 0.05
    done
    port=$(sed -n 's|.*base_url="http://127.0.0.1:\([0-9]*\)/v1".*|\1|p' "$out")
    [ -n "$port" ] || { fail "llring serve $* did not come up" && finish; }
}

stop_serve() {
    kill -TERM "$serve_pid"
    ends "$serve_pid" 0 "exit status of llring serve"
    serve_pid=
    [ ! -S "$socket" ] || fail "the runtime is still there"
}

# proxy_of_serve: its pid.
proxy_of_serve() {
    local pid
    for pid in $(cat "/proc/$serve_pid/task/$serve_pid/children" 2>/dev/null); do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != llring-http ] || echo "$pid"
    done
}

echo "-- a command for vllm serve, the model by its name in the local cache"
export HF_HOME=$scratch/hf
revision=0123456789abcdef0123456789abcdef01234567
cached=$HF_HOME/hub/models--meta-llama--Llama-3.1-8B-Instruct
mkdir -p "$cached/refs" "$cached/snapshots" "$cached/blobs"
printf %s $revision >"$cached/refs/main"
ln -s "$model" "$cached/snapshots/$revision"
start_serve --model meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 1 --dtype float16 --max-model-len 8192 \
    --gpu-memory-utilization 0.95 --port 0 --enable-auto-tool-choice --tool-call-parser llama3_json \
    --served-model-name meta-llama/Llama-3.1-8B-Instruct --served-model-name other
command -v curl >/dev/null && {
    sed -n '/^  curl/,/-d /p' "$out" >"$scratch/curl.sh"
    bash "$scratch/curl.sh" >"$scratch/reply" 2>/dev/null
    says "$scratch/reply" '"object":"chat.completion"' '"model":"meta-llama/Llama-3.1-8B-Instruct"'
}
python3 - "$port" <<'EOF' || fail "the served names and the context"
import json, sys, urllib.request
data = json.load(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/v1/models"))["data"]
assert [m["id"] for m in data] == ["meta-llama/Llama-3.1-8B-Instruct", "other"], data
assert data[0]["max_model_len"] == 8192, data
EOF

run 1 "$llring" serve --model meta-llama/Llama-3.2-1B --port 0 --socket "$scratch/none.sock"
says "$err" "meta-llama/Llama-3.2-1B" "nothing is downloaded"

echo "-- a second one at the same socket is refused before its proxy serves the first one's model"
run 1 "$llring" serve "$model" --port 0 --socket "$socket"
says "$err" "a runtime that serves meta-llama/Llama-3.1-8B-Instruct is there already, at $socket" "--socket"
grep -q "listening" "$err" && fail "the second proxy was started"

echo "-- a proxy that dies comes back"
first=$(proxy_of_serve)
kill -KILL "$first"
for _ in $(seq 100); do
    second=$(proxy_of_serve)
    [ -n "$second" ] && [ "$second" != "$first" ] && break
    sleep 0.05
done
[ -n "$second" ] && [ "$second" != "$first" ] || fail "no second proxy"
says "$err" "it is started anew"
run 0 "$llring" status --socket "$socket"
stop_serve

echo "-- a port that is taken ends both, with a word"
start_serve "$model" --port 0 --log-level warn
run 1 "$llring" serve "$model" --port "$port" --socket "$scratch/second.sock" --log-level warn
says "$err" "port $port cannot be listened on"
[ ! -S "$scratch/second.sock" ] || fail "the second runtime is still there"
stop_serve

echo "-- without keys only this machine"
run 1 "$llring" serve "$model" --host 0.0.0.0 --port 0 --socket "$socket" --log-level warn
says "$err" "--api-key"
finish

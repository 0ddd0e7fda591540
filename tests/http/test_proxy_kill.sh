#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_proxy_kill.sh - proxies are killed one after the other in the middle of their
# streams; a direct client beside them gets, token by token, what it gets without them, and the
# runtime has everything back at the end.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
n_kills=8
[ -z "$is_slow" ] || n_kills=3
start_runtime --device fake --fake-step-us 2000 --max-model-len 8192
for i in $(seq 64); do
    echo "{\"id\": $i, \"prompt_ids\": [$i, 7], \"max_tokens\": 400, \"seed\": $i, \"temperature\": 1}"
done >"$scratch/in.jsonl"
# direct FILE: the ids of every answer, without the times beside them.
direct() {
    timeout 170 "$llring" batch --socket "$socket" "$scratch/in.jsonl" "$1.all" >/dev/null 2>"$1.err" ||
        return
    python3 -c '
import json, sys
for line in open(sys.argv[1]):
    answer = json.loads(line)
    assert len(answer["ids"]) == 400, answer
    print(answer["id"], answer["ids"])' "$1.all" >"$1"
}
direct "$scratch/alone" || fail "the direct client alone: $(cat "$scratch/alone.err")"

# Ten streams that go on until their server is gone.
load() {
    python3 - "$1" <<'PYTHON'
import http.client, json, sys, threading
begun = threading.Semaphore(0)
def stream(i):
    try:
        c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
        c.request("POST", "/v1/completions", json.dumps({"prompt": [i], "max_tokens": 8000,
                  "ignore_eos": True, "stream": True}), {"Content-Type": "application/json"})
        reply = c.getresponse()
        reply.readline()
        begun.release()
        while reply.readline():
            pass
    except (OSError, http.client.HTTPException):
        begun.release()
threads = [threading.Thread(target=stream, args=(i + 1,)) for i in range(10)]
for t in threads: t.start()
for t in threads: begun.acquire()
print("streaming", flush=True)
for t in threads: t.join()
PYTHON
}

for kill in $(seq $n_kills); do
    direct "$scratch/beside$kill" &
    direct_pid=$!
    start_proxy
    load "$port" >"$scratch/load" 2>&1 &
    load_pid=$!
    for _ in $(seq 1200); do
        ! grep -q streaming "$scratch/load" || break
        sleep 0.05
    done
    says "$scratch/load" streaming
    kill -KILL "$proxy_pid"
    wait "$proxy_pid" 2>/dev/null
    proxy_pid=
    ends "$load_pid" 0 "the clients of proxy $kill"
    ends "$direct_pid" 0 "the direct client beside proxy $kill"
    cmp "$scratch/alone" "$scratch/beside$kill" || fail "beside proxy $kill the answers differ"
done
equal "$(stat clients_died)" $((2 * n_kills)) "attachments that died, one a thread"
check_ledger
stop_runtime
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/tools/test_supervise.sh - `llring serve` starts anew what dies; a request that the runtime
# died of three times is refused from then on, and only that; what cannot live is given up.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
socket=$scratch/llring.sock
serve_pid=
clean_up_serve() {
    [ "$n_failed" = 0 ] || cat "$scratch/serve.err"
    [ -z "$serve_pid" ] || kill -KILL "$serve_pid" 2>/dev/null # its children get SIGTERM
    clean_up_proxy
}
trap clean_up_serve EXIT

# child_of_serve NAME: pid.
child_of_serve() {
    local pid
    for pid in $(cat "/proc/$serve_pid/task/$serve_pid/children" 2>/dev/null); do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$1" ] || echo "$pid"
    done
}

# start_serve arguments...: serving when this returns; $port.
start_serve() {
    "$llring" serve --device fake --port 0 --socket "$socket" --log-level warn "$@" \
        >"$scratch/serve.out" 2>"$scratch/serve.err" &
    serve_pid=$!
    for _ in $(seq 400); do
        port=$(sed -n 's|.*base_url="http://127.0.0.1:\([0-9]*\)/v1".*|\1|p' "$scratch/serve.out")
        [ -z "$port" ] || return 0
        kill -0 $serve_pid 2>/dev/null || break
        sleep 0.05
    done
    cat "$scratch/serve.err"
    fail "llring serve $* did not come up"
    finish
}

# ask ID: one token after this id (no second one: it might be an id the fake device dies of); prints
# the status and the body.
ask() {
    python3 - "$port" "$1" <<'PYTHON'
import json, sys, urllib.error, urllib.request
request = urllib.request.Request(
    f"http://127.0.0.1:{sys.argv[1]}/v1/completions", headers={"Content-Type": "application/json"},
    data=json.dumps({"prompt": [int(sys.argv[2])], "max_tokens": 1}).encode())
try:
    with urllib.request.urlopen(request, timeout=60) as reply:
        print(reply.status, reply.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.headers.get("Retry-After"), error.read().decode())
except OSError as error:
    print("none", error)
PYTHON
}

# await_serving: until both event threads of the proxy are attached again.
await_serving() {
    local n=0
    for _ in $(seq 600); do
        case $(ask 5) in 200*) n=$((n + 1)) ;; *) n=0 ;; esac
        [ $n -lt 6 ] || return 0
        [ -z "$serve_pid" ] || kill -0 "$serve_pid" 2>/dev/null || break
        sleep 0.02
    done
    fail "no service again within a minute"
    finish
}

echo "-- a request that the runtime dies of is refused after three crashes, and others are served"
start_serve --fake-abort-on 13 --fake-fail-on 14
proxy_pid_before=$(child_of_serve llring-http)
for crash in 1 2 3; do
    reply=$(ask 13)
    case $reply in 5*) ;; *) fail "crash $crash answered $reply" ;; esac
    await_serving
    equal "$(stat crashes_recent)" $crash "crashes counted"
done
equal "$(stat requests_quarantined)" 1 "requests refused"
reply=$(ask 13)
case $reply in 400*"3 crashes"*) ;; *) fail "the fourth time answered $reply" ;; esac
await_serving
says "$scratch/serve.err" "llringd ended (signal 6); it is started anew" "refused for up to 60 minutes"
equal "$(child_of_serve llring-http)" "$proxy_pid_before" "the proxy went on"

echo "-- a device that fails is a crash too; a SIGKILL is none"
reply=$(ask 14)
case $reply in 5*) ;; *) fail "the failing device answered $reply" ;; esac
await_serving
equal "$(stat crashes_recent)" 4 "crashes counted"
says "$scratch/serve.err" "llringd ended (status 3); it is started anew"
kill -KILL "$(child_of_serve llringd)"
await_serving
equal "$(stat crashes_recent)" 4 "crashes counted"
equal "$(stat requests_quarantined)" 1 "requests refused"
kill -TERM "$serve_pid"
ends "$serve_pid" 0 "llring serve"
serve_pid=
[ -e "$socket.crashes" ] || fail "the ledger is forgotten"

echo "-- a proxy without its runtime says when to come back, and serves again with the next one"
start_runtime --device fake
start_proxy
kill -KILL "$runtime_pid"
wait "$runtime_pid" 2>/dev/null
for _ in 1 2 3 4 5 6 7 8; do
    reply=$(ask 5)
    case $reply in "503 1 "*) ;; *) fail "without a runtime: $reply" ;; esac
done
start_runtime --device fake
await_serving
stop_proxy
stop_runtime

echo "-- what dies again and again is given up"
start_serve
died=
for _ in 1 2 3 4 5 6; do
    for _ in $(seq 600); do
        runtime=$(child_of_serve llringd)
        [ -z "$runtime" ] || [ "$runtime" = "$died" ] || break
        sleep 0.02
    done
    died=$runtime
    kill -ABRT "$died"
done
ends "$serve_pid" 134 "llring serve, whose runtime cannot live"
serve_pid=
says "$scratch/serve.err" "llringd has ended 6 times, each within 30 s of its start" "given up"

echo "-- without restarts the end of one is the end of both"
start_serve --no-restart
kill -ABRT "$(child_of_serve llringd)"
ends "$serve_pid" 134 "llring serve --no-restart"
serve_pid=
finish

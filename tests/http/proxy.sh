# shellcheck shell=bash
# tests/http/proxy.sh - sourced by this folder's test_*.sh: tests/script.sh and a proxy.
command -v python3 >/dev/null || { echo "python3 is not here: skipped" && exit 77; }
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
proxy=$build_dir/llring-http
proxy_pid=
clean_up_proxy() {
    [ -z "$proxy_pid" ] || kill -KILL "$proxy_pid" 2>/dev/null
    clean_up
}
trap clean_up_proxy EXIT

# start_proxy arguments...: on a free $port, attached when this returns; log in $scratch/proxy.log.
start_proxy() {
    : >"$scratch/proxy.log" # before the loop below: the child may be late to empty it
    "$proxy" --socket "$socket" --port 0 "$@" >"$scratch/proxy.log" 2>&1 &
    proxy_pid=$!
    for _ in $(seq 200); do
        grep -q "ready: model .* at http" "$scratch/proxy.log" && break
        kill -0 "$proxy_pid" 2>/dev/null || break
        sleep 0.05
    done
    port=$(sed -n 's|.*ready: model .* at http://127.0.0.1:\([0-9]*\)/v1$|\1|p' "$scratch/proxy.log")
    [ -n "$port" ] && sleep 0.3 && return # the second thread attaches a moment later
    cat "$scratch/proxy.log"
    fail "llring-http did not come up"
    finish
}

# stop_proxy: SIGTERM; it must end with 0.
stop_proxy() {
    kill -TERM "$proxy_pid"
    ends "$proxy_pid" 0 "exit status of llring-http"
    proxy_pid=
}

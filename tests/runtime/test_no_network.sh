#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# llringd never makes a socket of another family than AF_UNIX, and connects to nothing: every socket
# call of a whole life (start, serve, status, drain) as strace sees it. 77 without strace.
set -euo pipefail
build=$2
source=$1
command -v strace >/dev/null || exit 77
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
strace -f -o "$dir/trace" -e trace=%network \
    "$build/llringd" "$source/tools/demo-model" --device cpu --socket "$dir/s.sock" \
    2>"$dir/log" &
pid=$!
for _ in $(seq 300); do
    [ -S "$dir/s.sock" ] && break
    if ! kill -0 $pid 2>/dev/null; then
        grep -qi 'operation not permitted' "$dir/log" "$dir/trace" && exit 77 # no ptrace here
        cat "$dir/log"
        exit 1
    fi
    sleep 0.1
done
LLRING_SOCKET="$dir/s.sock" "$build/llring" complete --ids 1,2,3 --max-tokens 4 >/dev/null 2>&1 ||
    true # whether it is served is another test's matter; here it makes llringd accept
runtime=$(cat "$dir/s.sock.lock" 2>/dev/null || true)
kill -TERM "${runtime:-$pid}"
wait $pid || true

made=$(grep -c 'socket(AF_UNIX' "$dir/trace" || true)
if [ "$made" -lt 2 ]; then
    echo "the trace shows $made Unix sockets, at least 2 are made: nothing was traced"
    exit 1
fi
if grep -E 'socket(pair)?\(' "$dir/trace" | grep -v 'AF_UNIX'; then
    echo "a socket that is not of the Unix kind was made"
    exit 1
fi
if grep -E '(connect|sendto)\(.*AF_' "$dir/trace" | grep -v 'AF_UNIX'; then
    echo "something was connected to"
    exit 1
fi
echo "$made sockets, all AF_UNIX"

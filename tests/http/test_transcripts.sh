#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_transcripts.sh - each byte that llring-http sends, by transcripts.py.
#   bash tests/http/test_transcripts.sh . build/release --record    writes tests/data/sse anew
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
compare() {
    start_proxy
    run 0 python3 "$source_dir/tests/http/transcripts.py" "$port" "$source_dir/tests/data/sse" "$@"
    cat "$out"
    stop_proxy
}
record=${3:-}
start_runtime "$model"
compare model $record
check_ledger
stop_runtime
start_runtime "$model" --device fake --fake-vocab 4106
compare fake $record
check_ledger
stop_runtime
for group in fail fail_chat fail_responses; do
    # Steps so long that the first tokens are on their way when the fifth step fails.
    start_runtime "$model" --device fake --fake-vocab 4106 --fake-fail-at 5 --fake-step-us 200000
    compare $group $record
    wait "$runtime_pid" # a failed device ends it
    runtime_pid=
done
finish

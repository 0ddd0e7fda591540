#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/tools/test_cli.sh - what llring says and how it ends when it is used wrongly or its runtime
# is not there, dies or is interrupted. The runtime is the fake device: no model, any id.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
commands="serve chat complete batch bench status check inspect quantize"

echo "-- help and usage"
run 0 "$llring" --help
for command in $commands; do says "$out" "$command"; done
[ ! -s "$err" ] || fail "--help wrote to standard error"
run 0 "$llring" --version
says "$out" "llring 0."
run 2 "$llring"
run 2 "$llring" chta
says "$err" 'unknown command "chta"; did you mean "chat"?'
run 2 "$llring" --socket x chat
for command in $commands; do
    run 0 "$llring" "$command" --help
    says "$out" "usage: llring $command" "--help"
    run 0 "$llring" help "$command"
done
for command in chat complete batch bench status check; do
    run 2 "$llring" "$command" --scoket /x
    says "$err" "unknown option --scoket; did you mean --socket?" "llring $command --help"
    [ ! -s "$out" ] || fail "a usage error wrote to standard output"
done
run 2 "$llring" serve
says "$err" "MODEL is missing"
run 2 "$llring" complete --temperature nan x
says "$err" "--temperature takes a number from 0 to 2"
run 2 "$llring" complete --temperature 3 x
run 2 "$llring" complete --max-tokens -1 x
run 2 "$llring" complete --ids 1,2 text
run 2 "$llring" chat stray
says "$err" 'unexpected argument "stray"'
run 2 "$llring" chat --json
run 2 "$llring" batch in
run 2 "$llring" check "$model"
says "$err" "--golden FILE is missing"
run 2 "$llring" check --golden "$golden"

echo "-- files and runtimes that are not there"
export LLRING_SOCKET=$scratch/none.sock
run 1 "$llring" chat --once hello
says "$err" "$scratch/none.sock" "llring serve" "(--socket names another)"
equal "$(wc -l <"$err")" 1 "lines of the error"
for arguments in "complete hello" "bench" "status" "complete --ids 1"; do
    # shellcheck disable=SC2086
    run 1 "$llring" $arguments
    says "$err" "llring serve"
done
unset LLRING_SOCKET
run 1 "$llring" batch "$scratch/absent.jsonl" "$scratch/results"
says "$err" "absent.jsonl" "No such file"
run 1 "$llring" check "$model" --golden "$scratch/absent.json"
says "$err" "--golden: unable to open $scratch/absent.json: No such file or directory: give a file"
echo '{"a": ' >"$scratch/bad.json"
run 1 "$llring" check "$model" --golden "$scratch/bad.json"
says "$err" "--golden $scratch/bad.json: line 2: "
run 1 "$llring" check "$scratch/no-model" --golden "$golden"
says "$err" "no-model" "llringd did not start"
"$llringd" "$scratch/no-model" --socket "$scratch/s" >/dev/null 2>&1
rc=$?
[ "$rc" != 0 ] || fail "llringd with no model ended with 0"
# Often: the proxy is told to stop at any moment of its start, also before it is a program.
for _ in $(seq 20); do
    run $rc "$llring" serve "$scratch/no-model" --port 0 --socket "$scratch/s"
    says "$err" "no-model"
done
run 2 "$llring" serve "$model" --no-http --no-such-option

echo "-- token ids through a fake runtime"
start_runtime --device fake
run 0 "$llring" complete --socket "$socket" --ids 5,6,7 --seed 1 --max-tokens 9 --json
says "$out" '"finish_reason": "length"' '"prompt_tokens": 3' '"completion_tokens": 9'
cp "$out" "$scratch/first"
run 0 "$llring" complete --socket "$socket" --ids "5 6 7" --seed 1 -n 9
equal "$(wc -w <"$out")" 9 "ids printed"
equal "$(tr -d '\n ' <"$out")" \
    "$(tr -d '\n ' <"$scratch/first" | sed 's/.*"ids":\[\([^]]*\)\].*/\1/' | tr -d ,)" "the ids"
grep -q $'\033' "$out" "$err" && fail "escape codes although this is no terminal"
run 1 "$llring" complete --socket "$socket" --ids 4000000000
says "$err" "LL_E_INVAL" "4000000000"
run 2 "$llring" complete --socket "$socket" --ids 1,x
run 2 "$llring" complete --socket "$socket" --ids 99999999999
run 1 "$llring" complete --socket "$socket" "some text"
says "$err" "--ids"
run 1 "$llring" chat --socket "$socket" --once hello
says "$err" "tokenizer"
run 0 "$llring" status --socket "$socket"
says "$out" "requests_finished" "ttft_ns"
run 0 "$llring" bench --socket "$socket" --requests 50 --prompt-tokens 20 --output-tokens 10 --json
says "$out" '"requests": 50' '"failed": 0' '"ttft_ms"' '"p99"'
run 0 "$llring" bench --socket "$socket" --requests 20 --rate 500 --prompt-tokens 5 --output-tokens 3
says "$out" "first token" "token gap"

echo "-- batch: order, bad lines, exit code"
{
    for i in $(seq 300); do
        echo "{\"id\": \"r$i\", \"prompt_ids\": [$((i % 900)), 2], \"max_tokens\": $((1 + i % 40))}"
    done
    echo
    echo 'no json'
    echo '{"id": "odd", "prompt_ids": [1], "temprature": 1}'
    echo '{"prompt_ids": [1], "temperature": 9}'
    echo '{"prompt_ids": [-1]}'
    echo '{"prompt": "text"}'
    echo '{"id": "last", "prompt_ids": [1], "max_tokens": 1}'
} >"$scratch/in.jsonl"
run 1 "$llring" batch --socket "$socket" "$scratch/in.jsonl" "$scratch/out.jsonl"
equal "$(wc -l <"$scratch/out.jsonl")" 306 "result lines"
says "$err" "in.jsonl:302: not JSON" 'in.jsonl:303: unknown field "temprature"' "in.jsonl:304:" \
    "in.jsonl:305:" "in.jsonl:306:" "306 prompts, 5 failed"
equal "$(sed 's/^{"id":"\{0,1\}\([^",]*\).*/\1/' "$scratch/out.jsonl" | tr '\n' ' ')" \
    "$(for i in $(seq 300); do printf 'r%d ' "$i"; done; echo "302 odd 304 305 306 last ")" "order"
equal "$(grep -c '"error"' "$scratch/out.jsonl")" 5 "error records"
run 1 "$llring" batch --socket "$socket" "$scratch/in.jsonl" "$scratch/in.jsonl"
says "$err" "is the input too"
equal "$(wc -l <"$scratch/in.jsonl")" 307 "the input is untouched"
check_ledger
stop_runtime

echo "-- interrupted; a runtime that hangs and one that is killed in mid-answer"
# await_accepted N: until the runtime has taken so many requests.
await_accepted() {
    for _ in $(seq 400); do
        [ "$(stat requests_accepted)" -lt "$1" ] || return 0
        sleep 0.05
    done
    fail "request $1 did not reach the runtime"
}
start_runtime --device fake --fake-step-us 20000
env --default-signal=INT "$llring" complete --socket "$socket" --ids 1,2 -n 2000 >"$out" 2>"$err" &
pid=$!
await_accepted 1
kill -INT $pid
ends $pid 130 "exit code after SIGINT"
equal "$(stat requests_cancelled)" 1 "cancelled requests"
"$llring" complete --socket "$socket" --ids 1,2 -n 2000 >"$out" 2>"$err" &
pid=$!
await_accepted 2
kill -STOP "$runtime_pid"
ends $pid 1 "exit code when the runtime hangs"
says "$err" "LL_E_TIMEOUT"
kill -CONT "$runtime_pid"
run 0 "$llring" complete --socket "$socket" --ids 1,2 -n 2
"$llring" complete --socket "$socket" --ids 1,2 -n 2000 >"$out" 2>"$err" &
pid=$!
await_accepted 4
kill -KILL "$runtime_pid"
wait "$runtime_pid" 2>/dev/null
ends $pid 1 "exit code when the runtime dies"
says "$err" "LL_E_RUNTIME_LOST"
equal "$(wc -l <"$err")" 1 "lines of the error"
runtime_pid=

echo "-- serve stops its runtime and hands its status on"
"$llring" serve --device fake --port 0 --socket "$scratch/serve.sock" --log-level warn >"$out" 2>"$err" &
pid=$!
run 0 "$llring" status --socket "$scratch/serve.sock" --wait 20
kill -TERM $pid
ends $pid 0 "exit code of serve after SIGTERM"
[ ! -S "$scratch/serve.sock" ] || fail "the socket is still there"
"$llring" serve --device fake --port 0 --socket "$scratch/serve.sock" --log-level warn >"$out" 2>"$err" &
pid=$!
run 0 "$llring" status --socket "$scratch/serve.sock" --wait 20
kill -KILL $pid
wait $pid 2>/dev/null
for _ in $(seq 100); do
    [ -S "$scratch/serve.sock" ] || break
    sleep 0.05
done
[ ! -S "$scratch/serve.sock" ] || fail "llringd outlived a killed llring serve"
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_text.sh - chat, complete and batch on the demo model.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
start_runtime "$model"
export LLRING_SOCKET=$socket

echo "-- chat"
run 0 "$llring" chat --greedy --once "What is the opposite of hot?"
says "$out" "cold"
run 0 "$llring" chat --greedy --once "Count from 11 to 14 by 2." --system "Answer briefly." --json
says "$out" '"text": "11, 13."' '"finish_reason": "stop"'
printf '%s\n' "What sound does a bee make?" "/clear" "/halp" '"""Repeat after me:' 'dog cat mouse"""' \
    "/clear" '"""What is the opposite of hot?' '"""' "" "/etc/passwd" "/bye" \
    "What sound does a wolf make?" >"$scratch/talk"
run 0 "$llring" chat --greedy --once $'Repeat after me:\ndog cat mouse'
cp "$out" "$scratch/lines"
"$llring" chat --greedy <"$scratch/talk" >"$out" 2>"$err"
equal $? 0 "exit code of chat"
says "$out" "buzz" "forgotten" "did you mean /help" "cold"
for line in 1 2; do says "$out" "$(sed -n ${line}p "$scratch/lines")"; done
grep -q howl "$out" && fail "it went on after /bye"
run 1 "$llring" chat --once "$(printf 'long %.0s' $(seq 20000))"
says "$err" "LL_E_TOO_LONG"
echo '[{"type": "function", "function": {"name": "calculator_add", "description": "Add two numbers",
"parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
"required": ["a", "b"]}}}]' >"$scratch/tools.json"
run 0 "$llring" chat --greedy --tools "$scratch/tools.json" --once "Add 4 and 326."
says "$out" '"name": "calculator_add"' '"parameters"'

echo "-- complete: a stop string, a seed, choices, logprobs"
run 0 "$llring" complete --greedy -n 40 "One day, a"
cp "$out" "$scratch/whole"
[ -s "$scratch/whole" ] || fail "no text"
run 0 "$llring" complete --greedy -n 40 --stop "." --json "One day, a"
says "$out" '"finish_reason": "stop"'
sed 's/.*"text": "\([^"]*\)".*/\1/' "$out" | grep -qF . && fail "the stop string is shown"
for i in 1 2; do
    run 0 "$llring" complete --temperature 1.5 --seed 7 -n 30 "One day"
    cp "$out" "$scratch/seeded$i"
done
cmp -s "$scratch/seeded1" "$scratch/seeded2" || fail "the same seed gave another text"
run 0 "$llring" complete --temperature 1.5 --seed 8 -n 30 "One day"
cmp -s "$scratch/seeded1" "$out" && fail "another seed gave the same text"
for i in 1 2; do
    run 0 "$llring" complete --temperature 1 --seed 3 -n 8 --n 3 --json "One day"
    equal "$(grep -o '"finish_reason"' "$out" | wc -l)" 3 "choices"
    grep -o '"text": "[^"]*"' "$out" >"$scratch/choices$i"
done
cmp -s "$scratch/choices1" "$scratch/choices2" || fail "the same seed gave other choices"
equal "$(sort -u "$scratch/choices1" | wc -l)" 3 "choices that differ"
run 0 "$llring" complete --temperature 1 --seed 3 -n 8 --json "One day"
equal "$(grep -o '"text": "[^"]*"' "$out")" "$(head -1 "$scratch/choices1")" "the first choice"
run 0 "$llring" complete --greedy -n 8 --n 3 "One day"
says "$out" "--- 1" "--- 3"
equal "$(grep -v '^---' "$out" | sort -u | wc -l)" 1 "greedy choices that differ"
run 0 "$llring" complete --greedy -n 3 --logprobs 2 --prompt-logprobs "One day"
says "$out" "logprob" "top:" "prompt:"
echo -n "One day, a" | "$llring" complete --greedy -n 40 >"$out" 2>"$err"
cmp -s "$scratch/whole" "$out" || fail "a prompt on standard input gave another text"

n=1000
[ -z "$is_slow" ] || n=60
echo "-- batch: $n prompts in one call"
for i in $(seq $n); do
    case $((i % 3)) in
    0) echo "{\"id\": $i, \"prompt\": \"The number $i\", \"max_tokens\": 4}" ;;
    1) echo "{\"id\": $i, \"max_tokens\": 12, \"temperature\": 0, \"messages\": [{\"role\":
        \"user\", \"content\": \"Repeat after me: dog cat\"}]}" | tr -d '\n' && echo ;;
    2) echo "{\"id\": $i, \"prompt_ids\": [4096, $i], \"max_tokens\": 3, \"seed\": $i}" ;;
    esac
done >"$scratch/in.jsonl"
run 0 "$llring" batch "$scratch/in.jsonl" "$scratch/out.jsonl"
says "$err" "$n prompts, 0 failed"
equal "$(sed 's/^{"id":\([0-9]*\),.*/\1/' "$scratch/out.jsonl" | tr '\n' ' ')" "$(seq -s ' ' $n) " \
    "order of the results"
equal "$(grep -c '"text":"dog cat"' "$scratch/out.jsonl")" $(((n + 2) / 3)) "right answers"
check_ledger
stop_runtime
finish

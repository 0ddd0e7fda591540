#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_check.sh - the golden file through the whole path: rendering, tokenizer, rings,
# runtime, model, sampler; and `llring check` notices what is wrong.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"

# 4 s a run on an idle machine and 90 s on two CPUs with eight other programs.
limit_s=500
n=40
[ -z "$is_slow" ] || n=5
echo "-- float32: everything equal"
run 0 "$llring" check "$model" --golden "$golden" --cases $n --dtype float32
cat "$out"
says "$out" "prompt text equal        $n/$n" "prompt ids equal         $n/$n" \
    "greedy answers equal     $n/$n" "pass"

echo "-- bfloat16: 99 % of the greedy tokens"
run 0 "$llring" check "$model" --golden "$golden" --cases $n --dtype bfloat16 --json
cat "$out"
says "$out" "\"prompt_ids_equal\": $n" '"dtype": "bfloat16"' '"pass": true'

echo "-- a golden file with one wrong token, one wrong logprob, one wrong prompt fails"
sed '0,/"greedy_ids": \[600, /s//"greedy_ids": [601, /' "$golden" >"$scratch/token.json"
run 1 "$llring" check "$model" --golden "$scratch/token.json" --cases 1 --dtype float32
says "$out" "greedy answers equal     0/1" "then 600 instead of 601" "FAIL"
sed '0,/"top_logprobs": \[-3e-05, -11.22331/s//"top_logprobs": [-3e-05, -11.21331/' "$golden" \
    >"$scratch/logprob.json"
cmp -s "$golden" "$scratch/logprob.json" && fail "the logprob was not changed"
run 1 "$llring" check "$model" --golden "$scratch/logprob.json" --cases 1 --dtype float32
says "$out" "greedy answers equal     1/1" "FAIL"
sed '0,/"How much is LIFS/s//"How much was LIFS/' "$golden" >"$scratch/prompt.json"
run 1 "$llring" check "$model" --golden "$scratch/prompt.json" --cases 1 --dtype float32
says "$out" "prompt ids equal         0/1" "FAIL"
finish

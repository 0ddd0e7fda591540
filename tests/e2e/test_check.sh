#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_check.sh - the golden file through the whole path: rendering, tokenizer, rings,
# runtime, model, sampler; and `llring check` notices what is wrong.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"

echo "-- float32: everything equal"
run 0 "$llring" check "$model" --golden "$golden" --dtype float32
cat "$out"
says "$out" "prompt text equal        40/40" "prompt ids equal         40/40" \
    "greedy answers equal     40/40" "pass"

echo "-- bfloat16: 99 % of the greedy tokens"
run 0 "$llring" check "$model" --golden "$golden" --dtype bfloat16 --json
cat "$out"
says "$out" '"prompt_ids_equal": 40' '"dtype": "bfloat16"' '"pass": true'

echo "-- a golden file with one wrong token, one wrong logprob, one wrong prompt fails"
sed '0,/"greedy_ids": \[600, /s//"greedy_ids": [601, /' "$golden" >"$scratch/token.json"
run 1 "$llring" check "$model" --golden "$scratch/token.json" --dtype float32
says "$out" "greedy answers equal     39/40" "then 600 instead of 601" "FAIL"
sed '0,/"top_logprobs": \[-3e-05, -11.22331/s//"top_logprobs": [-3e-05, -11.21331/' "$golden" \
    >"$scratch/logprob.json"
cmp -s "$golden" "$scratch/logprob.json" && fail "the logprob was not changed"
run 1 "$llring" check "$model" --golden "$scratch/logprob.json" --dtype float32
says "$out" "greedy answers equal     40/40" "FAIL"
sed '0,/"How much is LIFS/s//"How much was LIFS/' "$golden" >"$scratch/prompt.json"
run 1 "$llring" check "$model" --golden "$scratch/prompt.json" --dtype float32
says "$out" "prompt ids equal         39/40" "FAIL"
finish

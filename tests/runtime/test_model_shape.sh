#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/runtime/test_model_shape.sh - --model-shape: published shapes by name, and clear words where it
# cannot be. The large ones are tried on GPUs only (tools/dev/gpu-test).
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"

run 2 "$llringd" --model-shape llama-3.1-8b --device cpu
says "$err" "--load-format dummy"
run 2 "$llringd" --model-shape llama-9 --load-format dummy --device cpu
says "$err" '"llama-9" is none of llama-3.2-1b'
run 2 "$llringd" --model-shape llama-3.1-405b --load-format dummy --device cpu
says "$err" "--tensor-parallel-size 8"
run 2 "$llringd" --model-shape llama-3.1-405b --load-format dummy --device cpu --tensor-parallel-size 8
says "$err" "takes --device cuda"
run 2 "$llringd" --model-shape llama-3.2-1b --load-format dummy --device cpu --tp-shard-only
says "$err" "--tp-shard-only runs one rank of several"
run 2 "$llringd" --model-shape llama-3.2-1b --load-format dummy --device cpu --tp-shard-only --tensor-parallel-size 2
says "$err" "--tp-shard-only takes --device cuda"
run 2 "$llringd" --model-shape llama-3.2-1b --load-format dummy --device cpu --max-model-len 200000
says "$err" "more than the model's 131072"
finish

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/tools/test_offline.sh - llring inspect and quantize on the demo model: what they say, what
# they write, and that nothing is left where they fail.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
cd "$scratch" || exit 1

# Nothing but DST, or nothing at all, is in the directory where it is made.
holds() { equal "$(ls -A "$1")" "$2" "what is in $1"; }

echo "-- inspect"
run 0 "$llring" inspect "$model"
says "$out" "6 layers, width 256, 4 heads of 64, 2 KV heads" "tied head" "BF16 0.012" \
    "3072 bytes a token in bfloat16, 1536 in fp8" "model.layers.*.mlp.down_proj.weight" "[256, 768]"
run 0 "$llring" inspect "$model" --memory 13M --gpu-memory-utilization 1
says "$out" "beside 384 tokens of context" "--max-model-len 384"
run 0 "$llring" inspect "$model" --memory 10M --gpu-memory-utilization 1
says "$out" "fits          no" "it would with --quantization fp8"
run 0 "$llring" inspect "$model" --memory 1M
says "$out" "fits          no"
run 0 "$llring" inspect "$model" --json --memory 1GiB --tensors
says "$out" '"memory_bytes": 1073741824' '"fits": true' '"kv_bytes_per_token_fp8": 1536' \
    '"name": "model.layers.5.mlp.up_proj.weight"' '"parameters": 5836032'
run 2 "$llring" inspect "$model" --memory 80X
says "$err" "80G or 141GiB"
run 2 "$llring" inspect "$model" --max-model-len 20000
run 2 "$llring" inspect "$model" --kv-cache-dtype int4
run 1 "$llring" inspect "$scratch/absent"
says "$err" "no model directory" "absent"
run 1 "$llring" inspect "$model/config.json"
says "$err" "config.json is a file: give the model's directory"

echo "-- quantize"
mkdir made
run 0 "$llring" quantize "$model" made/fp8/
holds made fp8
run 0 "$llring" inspect made/fp8
says "$out" "compressed-tensors" "F8_E4M3" "model.layers.*.self_attn.q_proj.weight_scale"
for file in tokenizer.json tokenizer_config.json generation_config.json; do
    cmp "$model/$file" "made/fp8/$file" || fail "$file differs"
done
run 0 "$llring" quantize "$model" made/again
cmp made/fp8/model.safetensors made/again/model.safetensors || fail "not the same file twice"

echo "-- the same model as --quantization fp8 makes while it loads"
prompt=4096,4102,882,4103,271,72,309,11
for way in file load; do
    if [ "$way" = file ]; then
        start_runtime made/fp8 --device cpu
    else
        start_runtime "$model" --device cpu --quantization fp8
    fi
    run 0 "$llring" complete --socket "$socket" --ids "$prompt" --temperature 0 --max-tokens 24 \
        --logprobs 1 --json
    sed 's/"[a-z_]*\(ns\|ms\|seconds\)": [0-9.]*//g; s/"id": "[^"]*"//; s/"model": "[^"]*"//' "$out" >"$way"
    run 0 "$llring" status --socket "$socket"
    says "$out" "fp8"
    stop_runtime
done
cmp file load || fail "the file and the load differ: $(diff file load | head -5)"

echo "-- refusals, and what is left after them"
run 1 "$llring" quantize "$model" made/fp8
says "$err" "already there"
run 1 "$llring" quantize made/fp8 made/twice
says "$err" "quantised already (compressed-tensors)"
run 1 "$llring" quantize "$scratch/absent" made/x
run 1 "$llring" quantize "$model" "$scratch/no/where"
says "$err" "no directory can be made beside DST" "$scratch/no/where" "No such file or directory"
run 2 "$llring" quantize "$model"
mkdir full
run 1 bash -c "ulimit -f 2000; exec '$llring' quantize '$model' full/fp8"
says "$err" "model.safetensors" "File too large"
holds full ""
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=3m none full 2>/dev/null; then
    run 1 "$llring" quantize "$model" full/fp8
    says "$err" "model.safetensors" "No space left on device"
    holds full ""
    umount full
fi
cp -r "$model" broken
truncate -s -1 broken/model.safetensors
run 1 "$llring" quantize broken made/x
says "$err" "model.safetensors" "cut off"
equal "$(ls -A made | tr '\n' ' ')" "again fp8 " "what is in made"

finish

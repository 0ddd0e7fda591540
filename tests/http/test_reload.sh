#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/http/test_reload.sh - `llring reload` beside HTTP clients: who runs ends on the old weights, who
# comes gets the new ones, to the letter; what cannot take over is refused and the old model serves on.
# shellcheck source=tests/http/proxy.sh
source "$1/tests/http/proxy.sh"
n_long=1500
[ -z "$is_slow" ] || n_long=300

# change FILE.safetensors: two layers change places, so the model answers otherwise.
cat >"$scratch/change.py" <<'EOF'
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + n])
spans = [header[f"model.layers.{i}.mlp.up_proj.weight"]["data_offsets"] for i in (0, 1)]
a, b = (slice(8 + n + s[0], 8 + n + s[1]) for s in spans)
data[a], data[b] = data[b], data[a]
open(sys.argv[1], "wb").write(data)
EOF
next=$scratch/next
cp -r "$model" "$next"
python3 "$scratch/change.py" "$next/model.safetensors"
sed -i 's/"temperature": 0.6/"temperature": 0.0/' "$next/generation_config.json"

# One request; its text. $3: tokens; $5 default: with the model's own sampling, else greedy.
cat >"$scratch/ask.py" <<'EOF'
import json, sys, urllib.request
port, model, n, prompt = sys.argv[1:5]
body = {"model": model, "prompt": prompt, "max_tokens": int(n), "ignore_eos": True}
if sys.argv[5:] != ["default"]:
    body["temperature"] = 0
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
try:
    print(json.load(urllib.request.urlopen(request, timeout=90))["choices"][0]["text"])
except urllib.error.HTTPError as error:
    print("HTTP", error.code, json.load(error)["error"]["message"])
EOF
ask() { python3 "$scratch/ask.py" "$port" "$@"; }
shared=$(printf 'The little dog said that the cat was late. %.0s' $(seq 20)) # some pages of KV

# What each says alone.
for which in "$model" "$next"; do
    start_runtime "$which"
    start_proxy
    name=$(basename "$which")
    ask "$name" $n_long "One day, a" >"$scratch/$name.long"
    ask "$name" 40 "The little dog said" >"$scratch/$name.short"
    ask "$name" 40 "$shared" >"$scratch/$name.shared"
    stop_proxy
    stop_runtime
done
for which in short shared; do
    cmp -s "$scratch/next.$which" "$scratch/demo-model.$which" && fail "both models say the same"
done

start_runtime "$model" --reserve-weights
start_proxy
export LLRING_SOCKET=$socket
running() { [ "$(stat requests_running)" = "$1" ]; }
# until CONDITION...: within half a minute.
until_() {
    for _ in $(seq 600); do
        "$@" && return
        sleep 0.05
    done
    fail "never: $*"
}

# cached MODEL: how many tokens of the shared prompt the cache had; -1: its answer is not MODEL's.
cached() {
    local before
    before=$(stat prompt_tokens_cached)
    ask "$1" 40 "$shared" >"$scratch/got.shared"
    cmp "$scratch/got.shared" "$scratch/$1.shared" >&2 || { echo -1 && return; }
    echo $(($(stat prompt_tokens_cached) - before))
}
equal "$(cached demo-model)" 0 "tokens from an empty cache"
[ "$(cached demo-model)" -ge 128 ] || fail "the cache has nothing"

echo "-- who runs ends on the old weights, who comes meanwhile gets the new"
ask demo-model $n_long "One day, a" >"$scratch/got.long" &
before=$!
until_ running 1
"$llring" reload "$next" >"$scratch/reload.out" 2>"$scratch/reload.err" &
reload=$!
until_ eval '[ "$(stat reload_state)" = 3 ]'
ask demo-model 40 "The little dog said" >"$scratch/got.short" &
after=$!
run 1 "$llring" reload "$next"
says "$err" "is under way (waiting)" "LL_E_BUSY"
run 0 "$llring" status
says "$out" "weights    set 0 of 0 and 1; reload of $next: waiting, 100 %"
wait $before $after
wait $reload
equal $? 0 "exit code of llring reload"
says "$scratch/reload.out" "$next serves: read 0.01 GB"
cmp "$scratch/got.long" "$scratch/demo-model.long" || fail "what ran did not end on the old weights"
cmp "$scratch/got.short" "$scratch/next.short" || fail "what waited did not get the new weights"

equal "$(cached next)" 0 "tokens of the old weights' cache"
[ "$(cached next)" -ge 128 ] || fail "the cache has nothing of the new weights"

echo "-- name, figures, default sampling"
python3 - "$port" <<'EOF' || fail "the models"
import json, sys, urllib.request
data = json.load(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/v1/models"))["data"]
assert [m["id"] for m in data] == ["next"], data
EOF
for name in demo-model next; do # the old name goes on working
    ask $name 40 "The little dog said" >"$scratch/got.short"
    cmp "$scratch/got.short" "$scratch/next.short" || fail "$name does not answer with the new weights"
done
ask other 5 "x" >"$scratch/other"
says "$scratch/other" "HTTP 404" 'This server has `next`'
run 0 python3 -c "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:$port/metrics').read().decode())"
says "$out" "ll_reloads_total 1" "ll_weights_set 1" "ll_reloads_failed_total 0"
run 0 "$llring" status --json
says "$out" '"model": "next"' '"weights_epoch": 2' '"state": "idle"'
for i in 1 2; do # generation_config.json: greedy
    run 0 "$llring" complete -n 30 "One day"
    cp "$out" "$scratch/default$i"
    ask next 40 "The little dog said" default >"$scratch/got.short"
    cmp "$scratch/got.short" "$scratch/next.short" || fail "HTTP does not use the new default sampling"
done
cmp -s "$scratch/default1" "$scratch/default2" || fail "the new default sampling is not used"

echo "-- and back, as JSON; then only begun"
run 0 "$llring" reload --json --wait "$model"
says "$out" '"state": "idle"' '"error": 0' '"set": 0'
equal "$(cached demo-model)" 0 "tokens that the first weights' cache had when they served before"
ask demo-model 40 "The little dog said" >"$scratch/got.short"
cmp "$scratch/got.short" "$scratch/demo-model.short" || fail "back it does not answer as before"
run 0 "$llring" reload --no-wait "$next"
until_ eval '[ "$(stat reloads)" = 3 ]'
run 0 "$llring" reload "$model"

echo "-- what cannot take over is refused within a second, and the old one serves on"
# bad NAME WORDS: a copy of the model in $scratch/NAME, changed by the commands on standard input.
n_bad=0
bad() {
    local directory=$scratch/bad-$1 begin
    rm -rf "$directory"
    cp -r "$model" "$directory"
    (cd "$directory" && bash -e) || fail "$1 was not made"
    begin=$(date +%s%N)
    run 1 "$llring" reload "$directory"
    [ -n "$is_slow" ] || [ $(($(date +%s%N) - begin)) -lt 1000000000 ] || fail "$1: took more than a second"
    says "$err" "$2" "the old weights go on serving"
    n_bad=$((n_bad + 1))
    rm -rf "$directory"
}
run 1 "$llring" reload "$scratch/none"
says "$err" "no model directory"
bad empty "config.json" <<<'rm *'
bad config "config.json" <<<'echo "{" >config.json'
bad weights "holds neither model.safetensors nor" <<<'rm model.safetensors'
bad short "model.safetensors" <<<'truncate -s 1000000 model.safetensors'
bad header "model.safetensors" <<<'printf "\377\377\377\377\377\377\377\377" | dd of=model.safetensors conv=notrunc status=none'
bad name "is no part of a Llama model" <<<'sed -i s/model.layers.1.mlp.up_proj.weight/model.layers.1.mlp.up_prox.weight/ model.safetensors'
bad less "is missing" <<<'sed -i "s/\"num_hidden_layers\": [0-9]*/\"num_hidden_layers\": 7/" config.json'
bad heads "asks for" <<<'sed -i "s/\"num_key_value_heads\": [0-9]*/\"num_key_value_heads\": 4/" config.json'
bad dtype "model.safetensors" <<<'sed -i "s/BF16/BF61/" model.safetensors'
bad layers "model.layers.5" <<<'sed -i "s/\"num_hidden_layers\": [0-9]*/\"num_hidden_layers\": 5/" config.json'
bad theta "rope_theta" <<<'sed -i "s/\"rope_theta\": [0-9.]*/\"rope_theta\": 10000.0/" config.json'
bad eps "rms_norm_eps" <<<'sed -i "s/\"rms_norm_eps\": [0-9.e-]*/\"rms_norm_eps\": 1e-6/" config.json'
bad context "clients were promised" <<<'sed -i "s/\"max_position_embeddings\": [0-9]*/\"max_position_embeddings\": 4096/" config.json'
bad llama "architectures" <<<'sed -i s/LlamaForCausalLM/GPT2LMHeadModel/ config.json'
bad tokenizer "tokenizer file is not the one" <<<'sed -i "s/\"model\"/\"model\" /" tokenizer.json'
bad no-tokenizer "tokenizer file is missing" <<<'rm tokenizer.json'
bad ends "begin or end ids" <<<'sed -i s/4104/4103/ generation_config.json config.json'
bad format "chat format" <<<'sed -i "s/llama3.1/llama3.2/" tokenizer_config.json'
bad fifo "tokenizer file" <<<'rm tokenizer.json && mkfifo tokenizer.json'
bad directory "model.safetensors" <<<'rm model.safetensors && mkdir model.safetensors'
equal "$(stat reloads_failed)" $((n_bad + 1)) "failed reloads"
run 0 "$llring" status
says "$out" "the last reload, of $scratch/bad-directory, failed"
says "$scratch/log" "what served goes on serving"
ask demo-model 40 "The little dog said" >"$scratch/got.short"
cmp "$scratch/got.short" "$scratch/demo-model.short" || fail "after refusals it answers otherwise"
equal "$(stat allocations_after_ready)" 0 "allocations of those that serve"

echo "-- the bound: given up without harm, or with --cut what runs ends"
ask demo-model $n_long "One day, a" >"$scratch/got.long" &
before=$!
until_ running 1
run 1 "$llring" reload --reload-wait 0 "$next"
says "$err" "1 requests that began before still ran after 0 s" "LL_E_TIMEOUT" "--cut"
wait $before
cmp "$scratch/got.long" "$scratch/demo-model.long" || fail "a reload that was given up changed an answer"
ask demo-model 3000 "One day, a" >"$scratch/got.long" &
before=$!
until_ running 1
run 0 "$llring" reload --reload-wait=0 --cut "$next"
says "$out" "1 requests were cut off"
wait $before
says "$scratch/got.long" "HTTP 503"

echo "-- usage"
run 2 "$llring" reload
run 2 "$llring" reload --reload-wait 4000 "$next"
run 2 "$llring" reload --wait --no-wait "$next"
run 1 "$llring" reload --admin-socket "$scratch/none.sock" "$next"
says "$err" "no runtime has an admin socket at"

echo "-- SIGTERM while a reload waits: what runs and what waits is served, by the old weights"
ask next $n_long "One day, a" >"$scratch/got.long" &
before=$!
until_ running 1
"$llring" reload "$model" >"$scratch/reload.out" 2>"$scratch/reload.err" &
reload=$!
until_ eval '[ "$(stat reload_state)" = 3 ]'
ask next 40 "The little dog said" >"$scratch/got.short" &
after=$!
until_ eval '[ "$(stat requests_waiting)" = 1 ]'
stop_runtime
wait $before $after
cmp "$scratch/got.long" "$scratch/next.long" || fail "the drain did not let it end"
cmp "$scratch/got.short" "$scratch/next.short" || fail "the drain did not serve who waited"
wait $reload
equal $? 1 "exit code of a reload that a stop has ended"
stop_proxy

echo "-- without --reserve-weights, with the numbers"
start_runtime "$model"
run 1 "$llring" reload "$next"
says "$err" "without --reserve-weights" "it would need 0.01 GB, and" "GB are free now" "LL_E_UNSUPPORTED"
stop_runtime
start_runtime "$model" --reserve-weights --weights-checksum print
run 0 "$llring" reload "$next"
stop_runtime
start_runtime "$model" --reserve-weights --load-format dummy
run 1 "$llring" reload "$next"
says "$err" "random weights"
stop_runtime
finish

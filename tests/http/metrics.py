# SPDX-License-Identifier: Apache-2.0
"""/metrics before and after requests that are known: well formed, and the figures are right.
Usage: metrics.py PORT, before a runtime on the fake device, steps of 50 ms."""
import http.client
import json
import re
import sys

PORT = int(sys.argv[1])
VLLM = """num_requests_running num_requests_waiting kv_cache_usage_perc num_preemptions_total
    prompt_tokens_total generation_tokens_total prefix_cache_queries_total prefix_cache_hits_total
    request_success_total time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
    time_per_output_token_seconds_bucket request_time_per_output_token_seconds_bucket
    e2e_request_latency_seconds_bucket request_prompt_tokens_bucket request_generation_tokens_bucket
    request_max_num_generation_tokens_bucket request_params_max_tokens_bucket
    request_queue_time_seconds_sum gpu_cache_usage_perc request_params_n_bucket request_prefill_time_seconds_sum request_decode_time_seconds_sum""".split()
failures = 0


def check(is_good, what):
    global failures
    if not is_good:
        failures += 1
        print("FAIL:", what)


def call(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request(method, path, body and json.dumps(body).encode(),
                       {"Content-Type": "application/json"})
    reply = connection.getresponse()
    return reply.read().decode(), reply


def scrape():
    """{name{labels}: value}; checks the text on the way."""
    text, reply = call("GET", "/metrics")
    check(reply.getheader("Content-Type").startswith("text/plain; version=0.0.4"), "content type")
    check(text.endswith("\n"), "the last line ends")
    samples, kinds, family = {}, {}, None
    for line in text.splitlines():
        if match := re.fullmatch(r"# TYPE ([a-zA-Z_:][\w:]*) (counter|gauge|histogram|summary)",
                                 line):
            family = match[1]
            check(family not in kinds, f"{family} has one place")
            kinds[family] = match[2]
            continue
        match = re.fullmatch(r'([a-zA-Z_:][\w:]*)(\{(?:\w+="[^"]*",?)*\})? (\S+)', line)
        check(match, f"a sample: {line}")
        if not match:
            continue
        name = match[1]
        check(name == family or kinds.get(family) in ("histogram", "summary") and
              name in (family + "_bucket", family + "_sum", family + "_count"),
              f"{name} stands under its TYPE, not {family}")
        key = name + (match[2] or "")
        check(key not in samples, f"{key} once")
        samples[key] = float(match[3])
    for family in (f for f, kind in kinds.items() if kind == "histogram"):
        buckets = [v for k, v in samples.items() if k.startswith(family + "_bucket{")]
        count = [v for k, v in samples.items() if re.match(re.escape(family) + r"_count(\{|$)", k)]
        check(buckets == sorted(buckets) and (len(buckets) > 2 or "queue_time" in family), f"{family} is cumulative")
        check(len(count) == 1 and buckets[-1] == count[0], f"{family}: +Inf is the count")
        check(any(k.startswith(family + "_sum") for k in samples), f"{family} has a sum")
    return samples


def complete(n_prompt, n_tokens, **fields):
    body = {"prompt": [5] * n_prompt, "max_tokens": n_tokens, "seed": 1, "ignore_eos": True, **fields}
    return call("POST", "/v1/completions", body)[0]


before = scrape()
names = {key.split("{")[0] for key in before}
for name in VLLM:
    check("vllm:" + name in names, f"vllm:{name} is there")
complete(3, 1)
complete(10, 4, stream=True)
complete(7, 2)
call("POST", "/v1/completions", {"prompt": []})
call("GET", "/nothing")
after = scrape()


def grown(key):
    return after[key] - before[key]


labels = '{model_name="demo-model",engine="0"'
for key, wanted in (
        ("ll_http_prompt_tokens_total", 20), ("ll_http_output_tokens_total", 7),
        ("ll_http_streams_total", 1), ('ll_http_replies_total{status="4xx"}', 2),
        ("ll_http_request_seconds_count", 3), ("ll_http_first_token_seconds_count", 3),
        ("ll_http_token_gap_seconds_count", 4), ("ll_http_decode_seconds_count", 3),
        ("ll_http_time_per_token_seconds_count", 2),
        ('ll_http_output_length_tokens_bucket{le="1"}', 1),
        ('ll_http_output_length_tokens_bucket{le="2"}', 2),
        ('ll_http_output_length_tokens_bucket{le="5"}', 3),
        ("vllm:request_queue_time_seconds_count" + labels + "}", 3),
        ("ll_requests_finished_total", 3), ("ll_output_tokens_total", 7),
        ("ll_prompt_tokens_total", 20), ("ll_ttft_ns_count", 3),
        ("vllm:prompt_tokens_total" + labels + "}", 20),
        ("vllm:generation_tokens_total" + labels + "}", 7),
        ("vllm:request_success_total" + labels + ',finished_reason="length"}', 3),
        ("vllm:request_params_n_bucket" + labels + ',le="1"}', 3),
        ("vllm:request_params_max_tokens_sum" + labels + "}", 7)):
    check(key in after and grown(key) == wanted, f"{key} grew by {wanted}, not "
          f"{grown(key) if key in after else 'there'}")
gaps = grown("ll_http_token_gap_seconds_sum") / 4
check(0.04 < gaps < 5, f"a gap is a step of 50 ms at least: {gaps}")
check(after["ll_requests_running"] == 0 and after["ll_http_up"] == 1, "idle again")
complete(3, 250, stream=True)  # more than 10 s of work: the log has its line
sys.exit(failures > 0)

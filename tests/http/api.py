# SPDX-License-Identifier: Apache-2.0
"""Drives llring-http with sockets and the standard library only. Usage: api.py PORT"""
import http.client
import json
import socket
import sys
import time

PORT = int(sys.argv[1])
failures = 0


def check(is_good, what):
    global failures
    if not is_good:
        failures += 1
        print("FAIL:", what)


def call(method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = dict(headers or {})
    if data is not None:
        headers.setdefault("Content-Type", "application/json")
    connection.request(method, path, data, headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    kind = reply.getheader("Content-Type") or ""
    return reply.status, json.loads(text) if text and "json" in kind else text.decode(), reply


def post(path, **fields):
    status, body, _ = call("POST", path, fields)
    return status, body


def chat(text="What is the capital of France?", **fields):
    fields.setdefault("temperature", 0)
    fields.setdefault("messages", [{"role": "user", "content": text}])
    return post("/v1/chat/completions", **fields)


def complete(prompt="Once upon a time", **fields):
    fields.setdefault("temperature", 0)
    return post("/v1/completions", prompt=prompt, **fields)


def events(path, **fields):
    """The data lines of a stream, as they are."""
    fields["stream"] = True
    status, text = post(path, **fields)
    check(status == 200, f"{path}: stream has status {status}")
    if status != 200:
        return []
    check(text.endswith("\n\n"), "a stream ends in an empty line")
    lines = text.split("\n\n")[:-1]
    check(all(line.startswith("data: ") for line in lines), "each event is one data line")
    check(lines[-1] == "data: [DONE]", "a stream ends in [DONE]")
    return [json.loads(line[6:]) for line in lines[:-1]]


def joined(chunks):
    """What a client makes of a chat stream: content, calls, reason, for choice 0."""
    content, calls, reason = "", [], None
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            for call_ in delta.get("tool_calls", []):
                if call_["index"] == len(calls):
                    calls.append({"name": call_["function"]["name"], "arguments": ""})
                calls[call_["index"]]["arguments"] += call_["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return content, calls, reason


def is_error(status, body, wanted, text=""):
    good = status == wanted and isinstance(body, dict) and body["error"]["code"] == wanted and \
        text in body["error"]["message"] and set(body["error"]) == {"message", "type", "param",
                                                                    "code"}
    check(good, f"an error {wanted} with \"{text}\", not {status} {str(body)[:300]}")


def endpoints():
    status, _, reply = call("GET", "/health")
    check(status == 200 and reply.getheader("X-Request-Id"), "health is 200")
    status, body, _ = call("GET", "/v1/models")
    name = body["data"][0]["id"]
    check(name == "demo-model" and body["data"][0]["max_model_len"] == 16384, "the model is listed")
    status, body, _ = call("GET", "/v1/models/" + name)
    check(status == 200 and body["id"] == name, "one model")
    is_error(*call("GET", "/v1/models/no%2Fsuch")[:2], 404, "no/such")
    check(call("GET", "/version")[1]["version"].count(".") == 2, "version")
    check("eos_token" in call("GET", "/tokenizer_info")[1], "tokenizer_info has eos_token")
    status, body = post("/tokenize", prompt="Hello world")
    ids = body["tokens"]
    check(body["count"] == len(ids) == 3 and body["max_model_len"] == 16384, "tokenize")
    status, body = post("/tokenize", prompt="Hello world", add_special_tokens=False,
                        return_token_strs=True)
    check(body["tokens"] == ids[1:] and body["token_strs"] == ["Hello", " world"], "token strings")
    check(post("/detokenize", tokens=ids[1:])[1]["prompt"] == "Hello world", "detokenize")
    status, body = post("/tokenize", messages=[{"role": "user", "content": "Hello"}])
    check(body["count"] > 10, "tokenize a chat")
    is_error(*call("GET", "/nothing")[:2], 404)
    is_error(*call("GET", "/v1/completions")[:2], 405)
    is_error(*call("POST", "/v1/models", {})[:2], 405)
    is_error(*call("POST", "/v1/completions", {}, {"Content-Type": "text/plain"})[:2], 415)
    status, _, reply = call("GET", "/version", headers={"X-Request-Id": "abc-1"})
    check(reply.getheader("X-Request-Id") == "abc-1", "a request id comes back")
    is_error(*call("GET", "/version", headers={"Origin": "https://evil.example"})[:2], 403)
    check(call("GET", "/version", headers={"Origin": "http://localhost:3000"})[0] == 200, "origin")


def chats():
    status, body = chat()
    choice = body["choices"][0]
    check(choice["message"]["content"] == "The capital of France is Paris.", "the answer")
    check(choice["finish_reason"] == "stop" and choice["stop_reason"] is None, "its reason")
    check(body["usage"]["completion_tokens"] == 8 and body["object"] == "chat.completion", "usage")
    answer = choice["message"]["content"]
    chunks = events("/v1/chat/completions", temperature=0, stream_options={"include_usage": True},
                    messages=[{"role": "user", "content": "What is the capital of France?"}])
    check(joined(chunks) == (answer, [], "stop"), "a stream says the same")
    check(chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}, "first chunk")
    check(chunks[-1]["choices"] == [] and chunks[-1]["usage"] == body["usage"], "last chunk: usage")
    check(len({c["id"] for c in chunks}) == 1 and len({c["created"] for c in chunks}) == 1, "one id")
    check(chat(max_tokens=2)[1]["choices"][0]["finish_reason"] == "length", "length")
    for stop, wanted in ((" France", "The capital of"), (["xyz", "is Par"], "The capital of France ")):
        status, body = chat(stop=stop)
        choice = body["choices"][0]
        check(choice["message"]["content"] == wanted and choice["finish_reason"] == "stop",
              f"stop {stop}: {choice}")
        check(choice["stop_reason"] == (stop if isinstance(stop, str) else stop[1]), "stop_reason")
        chunks = events("/v1/chat/completions", temperature=0, stop=stop,
                        messages=[{"role": "user", "content": "What is the capital of France?"}])
        check(joined(chunks) == (wanted, [], "stop"), "a stream stops at the same place")
    status, body = chat(stop=" France", include_stop_str_in_output=True)
    check(body["choices"][0]["message"]["content"] == "The capital of France", "stop included")
    status, body = chat(logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    check(len(content) == 8 and content[0]["token"] == "The" and content[0]["bytes"] == [84, 104, 101]
          and len(content[0]["top_logprobs"]) == 2, "logprobs")
    check(all(c["top_logprobs"][0]["logprob"] == c["logprob"] for c in content), "greedy is best")
    chunks = events("/v1/chat/completions", temperature=0, logprobs=True, top_logprobs=2,
                    messages=[{"role": "user", "content": "What is the capital of France?"}])
    streamed = [t for c in chunks for choice in c["choices"] if choice["logprobs"]
                for t in choice["logprobs"]["content"]]
    check(streamed == content, "logprobs of a stream")
    one = chat("Tell me a story.", temperature=1, seed=7, max_tokens=24)[1]["choices"]
    two = chat("Tell me a story.", temperature=1, seed=7, max_tokens=24)[1]["choices"]
    check(one == two, "the same seed gives the same text")
    content = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    check(chat(messages=[{"role": "user", "content": content}])[0] == 200, "content parts")


def completions():
    status, body = complete(max_tokens=4)
    check(body["choices"][0]["text"] == ", there was a", f"completion {body}")
    ids = post("/tokenize", prompt="Once upon a time")[1]["tokens"]
    check(complete(ids, max_tokens=4)[1]["choices"][0]["text"] == ", there was a", "ids as prompt")
    status, body = complete(["Once upon a time", "Hello"], max_tokens=4)
    check([c["index"] for c in body["choices"]] == [0, 1] and
          body["choices"][0]["text"] == ", there was a", "a batch")
    status, body = complete([ids] * 40, max_tokens=2)
    check({c["text"] for c in body["choices"]} == {", there"} and len(body["choices"]) == 40, "40")
    chunks = events("/v1/completions", prompt="Once upon a time", max_tokens=4, temperature=0)
    check("".join(c["choices"][0]["text"] for c in chunks) == ", there was a", "streamed")
    chunks = events("/v1/completions", prompt=["Once upon a time", "Hello"], max_tokens=4,
                    temperature=0, echo=True, stream_options={"include_usage": True,
                                                              "continuous_usage_stats": True})
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    check(texts[0] == "Once upon a time, there was a" and texts[1].startswith("Hello"), "echo, 2")
    check(all("usage" in c for c in chunks) and chunks[-1]["usage"]["completion_tokens"] == 8, "use")
    check(complete(max_tokens=300, ignore_eos=True)[1]["usage"]["completion_tokens"] == 300, "eos")
    status, body = complete(max_tokens=4, logit_bias={"5": 100})
    check(body["choices"][0]["text"] == post("/detokenize", tokens=[5] * 4)[1]["prompt"], "bias")
    status, body = complete(max_tokens=4, truncate_prompt_tokens=2, echo=True)
    check(body["usage"]["prompt_tokens"] == 2 and body["choices"][0]["text"].startswith(" a time"),
          "truncated")


def evaluation():
    """What lm-evaluation-harness' local-completions sends for a log-likelihood."""
    prompt = post("/tokenize", prompt="The capital of France is Paris.")[1]["tokens"]
    other = post("/tokenize", prompt="One, two, three, four")[1]["tokens"]
    for again in range(2):
        status, body = post("/v1/completions", model="demo-model", prompt=[prompt, other],
                            temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
        for choice, ids in zip(body["choices"], (prompt, other)):
            lp = choice["logprobs"]
            check(len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(ids) + 1 ==
                  len(lp["tokens"]) == len(lp["text_offset"]), "one entry a token")
            check(lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None, "first is null")
            for value, top in list(zip(lp["token_logprobs"], lp["top_logprobs"]))[1:]:
                check(value <= max(top.values()) and len(top) in (1, 2), "the best is not beaten")
                check(value in top.values(), "the chosen token is among them, the same float")
            check(lp["token_logprobs"][-1] == max(lp["top_logprobs"][-1].values()), "greedy")
    status, body = complete(prompt, max_tokens=0, echo=True, logprobs=1)
    check(body["choices"][0]["text"] == "The capital of France is Paris." and
          body["choices"][0]["logprobs"]["token_logprobs"] == \
          post("/v1/completions", prompt=prompt, temperature=0, max_tokens=1, logprobs=1,
               echo=True)[1]["choices"][0]["logprobs"]["token_logprobs"][:-1], "scores alone")
    status, body = complete("Once upon a time", max_tokens=1, prompt_logprobs=1)
    scores = body["choices"][0]["prompt_logprobs"]
    check(scores[0] is None and len(scores) == 5 and
          all("decoded_token" in v for s in scores[1:] for v in s.values()), "prompt_logprobs")


WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a place",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}},
                   "required": ["location"]}}}]


def tools():
    status, body = chat("東京の天気は？", tools=WEATHER)
    choice = body["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    check(function["name"] == "get_weather" and
          json.loads(function["arguments"]) == {"location": "東京"}, f"the call {function}")
    check(choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None, "reason")
    call_ = choice["message"]["tool_calls"][0]
    check(call_["type"] == "function" and call_["id"].startswith("chatcmpl-tool-"), "its id")
    chunks = events("/v1/chat/completions", temperature=0, tools=WEATHER,
                    messages=[{"role": "user", "content": "東京の天気は？"}])
    check(joined(chunks) == ("", [function], "tool_calls"), "a stream calls the same")
    messages = [{"role": "user", "content": "東京の天気は？"}, choice["message"],
                {"role": "tool", "tool_call_id": call_["id"], "content": "晴れ、22度"}]
    status, body = chat(messages=messages, tools=WEATHER)
    check(status == 200 and body["choices"][0]["message"]["content"] and
          "tool_calls" not in body["choices"][0]["message"], f"the result is told {body}")
    two = [dict(messages[0]), {"role": "assistant", "content": None, "tool_calls": [call_, call_]},
           messages[2], messages[2]]
    check(chat(messages=two, tools=WEATHER, max_tokens=8)[0] == 200, "two calls in one message")
    status, body = chat("東京の天気は？", tools=WEATHER, tool_choice="none")
    check("tool_calls" not in body["choices"][0]["message"], "none means none")
    is_error(*chat(tools=WEATHER, tool_choice="required"), 400, "constrained decoding")
    is_error(*chat(tools=WEATHER, tool_choice={"type": "function",
                                               "function": {"name": "get_weather"}}), 400)
    is_error(*chat(tools=[]), 400, "1 to 512")


def responses():
    """Without the openai package; with it: responses_client.py."""
    status, body = post("/v1/responses", input="What is the capital of France?", temperature=0)
    answer = "The capital of France is Paris."
    check(status == 200 and body["output"][0]["content"][0]["text"] == answer, f"response {body}")
    status, text = post("/v1/responses", input="What is the capital of France?", temperature=0,
                        stream=True)
    pieces = [piece.split("\n") for piece in text.split("\n\n")[:-1]]
    data = [json.loads(lines[1][6:]) for lines in pieces]
    check(all(lines[0] == "event: " + d["type"] for lines, d in zip(pieces, data)), "event lines")
    check([d["sequence_number"] for d in data] == list(range(len(data))), "sequence numbers")
    check("".join(d.get("delta", "") for d in data) == answer, "deltas")
    last = data[-1]["response"]
    last["output"][0]["id"] = body["output"][0]["id"]
    check(data[-1]["type"] == "response.completed" and last["output"] == body["output"], "the end")
    is_error(*post("/v1/responses", input="x", store=True), 400, "keeps no responses")
    is_error(*post("/v1/responses", input=[]), 400, "input")
    is_error(*post("/v1/responses", input=[{"type": "x"}]), 400, "\"x\"")
    is_error(*post("/v1/responses", input="x", messages=[]), 400, "input")
    is_error(*post("/v1/responses", input="x", n=2), 400, "`n`")


def split(chunks, key):
    """Chunks of a stream by choice: the choices of each index, in order; usage apart."""
    by_index, usage = {}, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            check(not by_index.get(choice["index"]) or
                  by_index[choice["index"]][-1]["finish_reason"] is None, "nothing after its end")
            by_index.setdefault(choice["index"], []).append(choice)
    check(all(pieces[-1]["finish_reason"] for pieces in by_index.values()), "each choice ends")
    texts = ["".join((piece["delta"].get("content") or "") if key == "delta" else piece["text"]
                     for piece in by_index[i]) for i in sorted(by_index)]
    return texts, usage, by_index


def choices():
    """n choices: whole and streamed alike, index = prompt * n + choice, each with its logprobs."""
    want = {"temperature": 1.8, "seed": 11, "max_tokens": 12, "ignore_eos": True}
    text = "Tell me a story about a fox."
    status, body = chat(text, n=4, logprobs=True, top_logprobs=2, **want)
    check(status == 200 and [c["index"] for c in body["choices"]] == [0, 1, 2, 3], "chat indices")
    texts = [c["message"]["content"] for c in body["choices"]]
    check(len(set(texts)) == 4, f"seeded choices differ: {texts}")
    check(all(len(c["logprobs"]["content"]) == 12 and
              all(len(t["top_logprobs"]) == 2 for t in c["logprobs"]["content"])
              for c in body["choices"]), "logprobs of each choice")
    check(body["usage"]["completion_tokens"] == 48, "usage counts all choices")
    one = chat(text, **want)[1]
    check(one["choices"][0]["message"]["content"] == texts[0], "choice 0 is what n = 1 gives")
    check(one["usage"]["prompt_tokens"] == body["usage"]["prompt_tokens"], "the prompt counts once")
    streamed, usage, pieces = split(events("/v1/chat/completions", n=4, messages=[
        {"role": "user", "content": text}], logprobs=True,
        stream_options={"include_usage": True}, **want), "delta")
    check(streamed == texts, "streamed choices are the same")
    check(usage["completion_tokens"] == 48, "usage of the stream")
    check(all(pieces[i][0]["delta"].get("role") == "assistant" for i in range(4)), "roles")
    check(all(sum(len(p["logprobs"]["content"]) for p in pieces[i] if p["logprobs"]) == 12
              for i in range(4)), "logprobs of each streamed choice")

    prompts = ["Once upon a time", "The opposite of hot is", [5, 6, 7]]
    status, body = complete(prompts, n=2, best_of=2, logprobs=1, **want)
    check(status == 200 and [c["index"] for c in body["choices"]] == list(range(6)), "batch")
    texts = [c["text"] for c in body["choices"]]
    check(body["usage"]["completion_tokens"] == 72, "usage of a batch")
    check(all(len(c["logprobs"]["tokens"]) == 12 for c in body["choices"]), "logprobs of a batch")
    for i, prompt in enumerate(prompts):
        alone = complete(prompt, n=2, **want)[1]["choices"]
        check([c["text"] for c in alone] == texts[2 * i:2 * i + 2], "index = prompt * n + choice")
    streamed, usage, _ = split(events("/v1/completions", prompt=prompts, n=2,
                                      stream_options={"include_usage": True}, **want), "text")
    check(streamed == texts and usage["completion_tokens"] == 72, "a batch streamed")

    stop = texts[0][4:7]
    status, body = complete(prompts[0], n=2, stop=[stop], **want)
    check(body["choices"][0]["text"] == texts[0][:texts[0].index(stop)] and
          body["choices"][0]["finish_reason"] == "stop", "a stop string ends its choice")
    check(body["choices"][1]["text"] == texts[1].split(stop)[0], "and leaves the other")
    status, body = complete([5, 6, 7, 8], n=2, echo=True, logprobs=0, **want)
    check(all(len(c["logprobs"]["token_logprobs"]) == 16 for c in body["choices"]) and
          body["choices"][0]["logprobs"]["token_logprobs"][:4] ==
          body["choices"][1]["logprobs"]["token_logprobs"][:4], "the prompt's logprobs in each")


def parameters():
    """Each parameter has its effect, or is refused by name: none passes unseen."""
    greedy = chat()[1]["choices"][0]["message"]["content"]

    def text(**fields):
        status, body = chat(**fields)
        check(status == 200, f"{fields}: {body}")
        return body["choices"][0]["message"]["content"] if status == 200 else ""

    for fields in ({"top_k": 1}, {"min_p": 1}, {"top_p": 1e-9}, {"temperature": 1e-30}):
        fields = {"temperature": 1.5, "seed": 3, **fields}
        check(text(**fields) == greedy, f"{fields} leave the likeliest")
    story = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24}
    check(len({text(temperature=1.5, seed=n, **story) for n in (1, 2, 3)}) > 1, "seeds differ")
    check(len({text(temperature=1.5, seed=9, **story) for _ in range(3)}) == 1, "one seed")
    check(len({text(temperature=1.5, seed=-1, **story) for _ in range(4)}) > 1, "-1 is no seed")
    check(len({text(temperature=1.5, **story) for _ in range(4)}) > 1, "no seed")
    long = text(ignore_eos=True, max_tokens=48)
    for name, value in (("repetition_penalty", 1.5), ("presence_penalty", 2),
                        ("frequency_penalty", 2)):
        check(text(ignore_eos=True, max_tokens=48, **{name: value}) != long, name)
    france = post("/tokenize", prompt=" France", add_special_tokens=False)[1]["tokens"][0]
    check(" France" not in text(logit_bias={str(france): -100}), "logit_bias forbids")
    status, body = chat(stop_token_ids=[france])
    choice = body["choices"][0]
    check(choice["message"]["content"] == "The capital of" and choice["stop_reason"] == france and
          choice["finish_reason"] == "stop", f"stop_token_ids {choice}")
    check(text(stop_token_ids=[france], include_stop_str_in_output=True) == "The capital of France",
          "the stop id's text")
    status, body = chat(stop_token_ids=[france], min_tokens=4)
    check(body["usage"]["completion_tokens"] > 4, "no stop id before min_tokens")
    check(text(stop=" France", min_tokens=4) == greedy, "no stop string before min_tokens")
    check(text(stop=" France", min_tokens=3) == "The capital of", "but from then on")
    status, body = chat(min_tokens=12, max_tokens=14)
    check(body["usage"]["completion_tokens"] >= 12, "min_tokens")
    check(text(min_tokens=8, max_completion_tokens=9, max_tokens=1) == text(max_tokens=9,
          min_tokens=8), "max_completion_tokens goes before max_tokens")
    check("<|eot_id|>" in text(ignore_eos=True, skip_special_tokens=False, max_tokens=9) and
          "<|" not in text(ignore_eos=True, max_tokens=9), "skip_special_tokens")
    status, body = chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True,
                        return_token_ids=True, max_tokens=4)
    choice = body["choices"][0]
    check([f"token_id:{i}" for i in choice["token_ids"]] ==
          [t["token"] for t in choice["logprobs"]["content"]] and
          choice["token_ids"][3] == france, "token ids")
    status, body = chat(prompt_logprobs=2, max_tokens=1)
    scores = body["prompt_logprobs"]
    check(len(scores) == body["usage"]["prompt_tokens"] and scores[0] is None and
          all(2 <= len(s) <= 3 for s in scores[1:]), "prompt_logprobs")
    check(all(chat(priority=n, max_tokens=1)[0] == 200 for n in (-128, 0, 127)), "priority")
    long = "One two three. " * 40

    def cached(salt):
        return complete(long, max_tokens=1, cache_salt=salt)[1]["usage"][
            "prompt_tokens_details"]["cached_tokens"]

    check(cached("salt-1") == 0 and cached("salt-1") >= 64 and cached("salt-2") == 0, "cache_salt")
    ids = post("/tokenize", prompt="Once upon a time", add_special_tokens=False)[1]["tokens"]
    for side, kept in (("left", ids[-2:]), ("right", ids[:2])):
        body = complete(ids, max_tokens=0, echo=True, truncate_prompt_tokens=2,
                        truncation_side=side)[1]
        check(body["choices"][0]["text"] == post("/detokenize", tokens=kept)[1]["prompt"], side)
    for name, value in (("guided_json", {}), ("guided_grammar", "x"), ("guided_choice", ["a"]),
                        ("guided_json_object", True), ("guided_unheard_of", 1), ("grammar", "x"),
                        ("json_schema", {}), ("regex", "a"), ("structured_outputs", {"json": {}}),
                        ("format", "json"), ("use_beam_search", True), ("length_penalty", 2),
                        ("logprob_token_ids", [1]), ("logits_processors", ["x"]),
                        ("priority", 128), ("truncate_prompt_tokens", 0), ("top_k", -2),
                        ("truncation_side", "up"), ("prompt_logprobs", -1), ("min_p", 2),
                        ("top_logprobs", 21), ("logit_bias", {"5": 101}), ("ignore_eos", 1),
                        ("logit_bias", {"4353": 1}), ("stop", ["x"] * 17), ("stream", "yes"),
                        ("stop_token_ids", [1] * 9), ("repetition_penalty", 0), ("echo", True),
                        ("presence_penalty", -3), ("add_special_tokens", True), ("seed", 1.5),
                        ("response_format", {"type": "json_schema", "json_schema": {}}),
                        ("chat_template", "x"), ("documents", ["x"]), ("modalities", ["audio"]),
                        ("prediction", {"type": "content"}), ("function_call", "auto"),
                        ("tools", [{"type": "function", "function": {"name": "f",
                                                                     "strict": True}}])):
        status, body = chat(**{name: value})
        is_error(status, body, 400, name)
        check(status != 400 or body["error"]["param"] == name, f"{name} is named: {body}")
    is_error(*chat(stream=True, prompt_logprobs=1), 400, "cannot be streamed")
    is_error(*complete(stream=True, echo=True, logprobs=1), 400, "cannot be streamed")
    is_error(*complete(tools=WEATHER), 400, "/v1/chat/completions")
    is_error(*chat(min_tokens=5, max_tokens=4), 400, "min_tokens")


def errors():
    is_error(*chat(model="other"), 404, "other")
    is_error(*chat(messages=[]), 400, "messages")
    is_error(*chat(messages=[{"role": "king", "content": "x"}]), 400, "role")
    is_error(*chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "text only")
    is_error(*chat(max_tokens=20000), 400, "This model's maximum context length is 16384 tokens")
    is_error(*complete([5] * 17000), 400, "This model's maximum context length is 16384 tokens")
    for name, value in (("temperature", 3), ("temperature", "x"), ("top_p", 0), ("n", 0),
                        ("max_tokens", 0), ("max_tokens", 1.5), ("stop", ""), ("stop", [1]),
                        ("top_logprobs", 2), ("stream_options", {}), ("logit_bias", {"x": 1}),
                        ("stop_token_ids", [999999]), ("seed", "x"), ("frequency_penalty", 2.5),
                        ("guided_json", {"type": "object"}), ("guided_regex", "a"),
                        ("response_format", {"type": "json_object"}),
                        ("structured_outputs", {"regex": "a"}), ("functions", [{}]),
                        ("allowed_token_ids", [1]), ("bad_words", ["x"]), ("min_tokens", -1),
                        ("continue_final_message", True), ("cache_salt", "")):
        status, body = chat(**{name: value})
        is_error(status, body, 400, name)
        check(body["error"]["param"] == name, f"{name} is named")
    check(chat(user="me", metadata={"a": 1}, store=False, unheard_of=3, stop=None, n=None,
               response_format={"type": "text"}, guided_json=None, max_tokens=2)[0] == 200,
          "what constrains nothing is ignored")
    is_error(*complete(suffix="x"), 400, "suffix")
    is_error(*complete(best_of=2), 400, "best_of")
    is_error(*complete(n=2, best_of=1, temperature=1), 400, "best_of")
    is_error(*complete(n=2), 400, "must be 1 where temperature is 0")
    is_error(*complete(n=129, temperature=1), 400, "n")
    is_error(*complete([]), 400)
    is_error(*complete([1, "x"]), 400)
    is_error(*complete([5, 99999]), 400, "no token id")
    for text in (b"", b"{", b"[1]", b"{\"a\":1,\"a\":2}", b"{\"a\":NaN}", b"\xff\xfe", b"{} x",
                 b"{\"a\":\"\xc3\"}", b"{\"a\":" + b"[" * 70 + b"]" * 70 + b"}",
                 b"{\"a\":\"\\ud800\"}", b"{\"a\":1e999}"):
        is_error(*call("POST", "/v1/completions", text)[:2], 400)


def large():
    text = "word " * 40000
    status, body = post("/tokenize", prompt=text)
    check(status == 200 and body["count"] > 30000, "a large body goes the long way")
    is_error(*complete(text, max_tokens=1), 400, "maximum context length")
    status, body = complete("word " * 14000, max_tokens=1, truncate_prompt_tokens=10)
    check(status == 200 and body["usage"]["prompt_tokens"] == 10, "large and truncated")
    connection = socket.create_connection(("127.0.0.1", PORT))
    connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                       b"Content-Length: 20000000\r\n\r\n")
    check(connection.recv(100).startswith(b"HTTP/1.1 413"), "16 MiB is the limit")


def gone():
    """Clients that leave cost the runtime a cancel, at once."""
    def running():
        text = call("GET", "/metrics")[1]
        return [int(line.split()[1]) for line in text.splitlines()
                if line.startswith("ll_requests_running ")][0]
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 16000, "ignore_eos": True,
                       "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" \
           b"Content-Length: %d\r\n\r\n" % len(body)
    connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(4)]
    for connection in connections:
        connection.sendall(head + body)
    for connection in connections:
        check(connection.recv(1000).startswith(b"HTTP/1.1 200"), "it streams")
    check(running() > 0, "they run")
    for connection in connections:
        connection.close()
    for _ in range(100):
        if running() == 0:
            break
        time.sleep(0.05)
    check(running() == 0, "no request runs for clients that left")
    for n in range(0, len(head + body), 7):
        connection = socket.create_connection(("127.0.0.1", PORT))
        connection.sendall((head + body)[:n])
        connection.close()
    check(call("GET", "/health")[0] == 200, "disconnects at any byte do no harm")


for part in (endpoints, chats, completions, evaluation, choices, tools, responses, parameters,
             errors, large, gone):
    print("--", part.__name__)
    part()
sys.exit(1 if failures else 0)

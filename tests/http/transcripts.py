# SPDX-License-Identifier: Apache-2.0
"""What llring-http sends, byte for byte. Usage: transcripts.py PORT DIRECTORY GROUP [--record]

Each case's reply is compared with DIRECTORY/NAME.txt: status line, headers, body, without the HTTP
chunk lines (how tokens fall into chunks is a matter of time) and with ids and times replaced."""
import json
import re
import socket
import sys

PORT, DIRECTORY, GROUP = int(sys.argv[1]), sys.argv[2], sys.argv[3]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {"name": "get_weather", "description": "Get the weather of a place",
           "parameters": {"type": "object", "properties": {"location": {"type": "string"}},
                          "required": ["location"]}}
CHAT, COMPLETE, RESPOND = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USAGE = {"include_usage": True}
ALWAYS = {"include_usage": True, "continuous_usage_stats": True}
CASES = {
    # the demo model, greedy
    "model": {
        "chat": (CHAT, dict(messages=QUESTION)),
        "chat_whole": (CHAT, dict(messages=QUESTION, stream=False)),
        "chat_usage": (CHAT, dict(messages=QUESTION, stream_options=USAGE)),
        "chat_usage_always": (CHAT, dict(messages=QUESTION, stream_options=ALWAYS)),
        "chat_length": (CHAT, dict(messages=QUESTION, max_tokens=2)),
        "chat_stop": (CHAT, dict(messages=QUESTION, stop=["xyz", "ance is P"])),
        "chat_stop_shown": (CHAT, dict(messages=QUESTION, stop="ance is P",
                                       include_stop_str_in_output=True)),
        "tools": (CHAT, dict(messages=[{"role": "user", "content": "東京の天気は？"}],
                             tools=[{"type": "function", "function": WEATHER}])),
        "completion": (COMPLETE, dict(prompt="Once upon a time", max_tokens=4)),
        "completion_echo": (COMPLETE, dict(prompt="Once upon a time", max_tokens=4, echo=True)),
        "completion_stop": (COMPLETE, dict(prompt="Once upon a time", max_tokens=9, stop=" was")),
        "responses": (RESPOND, dict(input=QUESTION)),
        "responses_tools": (RESPOND, dict(input="東京の天気は？",
                                          tools=[dict(WEATHER, type="function")])),
        "refused": (CHAT, dict(messages=QUESTION, temperature=3)),
    },
    # the fake device: scores that are the same on every machine, characters in pieces
    "fake": {
        "completion_usage_always": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=3,
                                                   stream_options=ALWAYS)),
        "completion_usage": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=3,
                                            stream_options=USAGE)),
        "completion_logprobs": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=3,
                                               logprobs=2)),
        "completion_scored": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=2, logprobs=1,
                                             echo=True, stream=False)),
        "completion_ids": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=3,
                                          return_token_ids=True)),
        "chat_logprobs": (CHAT, dict(messages=QUESTION, seed=6, max_tokens=2, logprobs=True,
                                     top_logprobs=1)),
        "chat_characters": (CHAT, dict(messages=QUESTION, seed=3, max_tokens=24)),
        "completion_truncated": (COMPLETE, dict(prompt=[5] * 9000, seed=5, max_tokens=4,
                                                truncate_prompt_tokens=-1, stream=False)),
        "stop_id": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=9,
                                   stop_token_ids=[])),  # the id is put in below
    },
    # the fake device, which fails at its fifth step
    "fail": {"error": (COMPLETE, dict(prompt=[1, 2, 3], seed=5, max_tokens=9))},
    "fail_chat": {"error_chat": (CHAT, dict(messages=QUESTION, seed=5, max_tokens=9))},
    "fail_responses": {"error_responses": (RESPOND, dict(input="Hello", seed=5,
                                                         max_output_tokens=9))},
}


def ask(path, fields):
    fields.setdefault("stream", True)
    fields.setdefault("temperature", 0 if GROUP == "model" else 1)
    fields["cache_salt"] = json.dumps(fields, sort_keys=True)[:64]  # as if it were the first
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", PORT), timeout=60)
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                       b"X-Request-Id: r\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                       % (path.encode(), len(body)) + body)
    reply = b""
    while piece := connection.recv(65536):
        reply += piece
    connection.close()
    return reply


def unchunked(body):
    text = b""
    while True:
        size, body = body.split(b"\r\n", 1)
        size = int(size, 16)
        if size == 0:
            assert body == b"\r\n", "nothing follows the last chunk"
            return text
        assert body[size:size + 2] == b"\r\n", "a chunk ends in a line end"
        text, body = text + body[:size], body[size + 2:]


def normalised(reply):
    head, body = reply.split(b"\r\n\r\n", 1)
    if b"Transfer-Encoding: chunked" in head:
        body = unchunked(body)
    body = re.sub(rb'"(chatcmpl-tool-|chatcmpl-|cmpl-|resp_|msg_|fc_|call_)[0-9a-f]{32}"',
                  rb'"\1ID"', body)
    body = re.sub(rb'"(created|created_at)":\d{10}\b', rb'"\1":TIME', body)
    return head + b"\r\n\r\n" + body


cases = CASES[GROUP]
if "stop_id" in cases:
    fields = dict(prompt=[1, 2, 3], seed=5, max_tokens=4, stream=False, return_token_ids=True)
    ids = json.loads(ask(COMPLETE, fields).split(b"\r\n\r\n", 1)[1])["choices"][0]["token_ids"]
    cases["stop_id"][1]["stop_token_ids"] = [ids[3]]
n_failed = 0
for name, (path, fields) in cases.items():
    got, where = normalised(ask(path, dict(fields))), f"{DIRECTORY}/{name}.txt"
    if "--record" in sys.argv:
        open(where, "wb").write(got)
        continue
    wanted = open(where, "rb").read()
    if got != wanted:
        n_failed += 1
        at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b),
                  min(len(got), len(wanted)))
        print(f"FAIL: {name} differs at byte {at}:\n  got    {got[max(0, at - 60):at + 100]}\n"
              f"  wanted {wanted[max(0, at - 60):at + 100]}")
print(len(cases), "transcripts of", GROUP, "compared,", n_failed, "differ")
sys.exit(n_failed > 0)

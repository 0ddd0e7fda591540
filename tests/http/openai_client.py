# SPDX-License-Identifier: Apache-2.0
"""Drives llring-http with the official openai package, as an application would. Usage: PORT KEY"""
import asyncio
import json
import sys

import openai

PORT, KEY = int(sys.argv[1]), sys.argv[2]
client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=KEY, max_retries=0)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a place",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}},
                   "required": ["location"]}}}]


def chat(**fields):
    fields.setdefault("messages", QUESTION)
    return client.chat.completions.create(model="demo-model", temperature=0, **fields)


assert [m.id for m in client.models.list()] == ["demo-model"]
assert client.models.retrieve("demo-model").id == "demo-model"

reply = chat()
assert reply.choices[0].message.content == ANSWER, reply
assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens == 8
assert reply.usage.prompt_tokens_details.cached_tokens >= 0

stream = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == ANSWER
assert stream[-1].usage == reply.usage or stream[-1].usage.completion_tokens == 8
with client.chat.completions.stream(model="demo-model", messages=QUESTION, temperature=0) as events:
    assert events.get_final_completion().choices[0].message.content == ANSWER

assert chat(stop=[" is"]).choices[0].message.content == "The capital of France"
scored = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert bytes(b for t in scored[:-1] for b in t.bytes).decode() == ANSWER
assert all(len(t.top_logprobs) == 3 for t in scored)
assert chat(max_completion_tokens=2).choices[0].finish_reason == "length"
assert chat(extra_body={"top_k": 1, "ignore_eos": True, "min_tokens": 12},
            max_tokens=12).usage.completion_tokens == 12

several = client.chat.completions.create(model="demo-model", messages=QUESTION, n=3, seed=5,
                                         temperature=1).choices
assert [c.index for c in several] == [0, 1, 2] and all(c.message.content for c in several)

# Tools: the call, its result, the answer; the same when streamed.
messages = [{"role": "user", "content": "東京の天気は？"}]
reply = chat(messages=messages, tools=WEATHER)
call = reply.choices[0].message.tool_calls[0]
assert reply.choices[0].finish_reason == "tool_calls" and call.function.name == "get_weather"
assert json.loads(call.function.arguments) == {"location": "東京"}
with client.chat.completions.stream(model="demo-model", messages=messages, temperature=0,
                                    tools=WEATHER) as events:
    streamed = events.get_final_completion().choices[0].message.tool_calls[0].function
assert (streamed.name, streamed.arguments) == (call.function.name, call.function.arguments)
messages += [reply.choices[0].message,
             {"role": "tool", "tool_call_id": call.id, "content": "晴れ、22度"}]
assert chat(messages=messages, tools=WEATHER).choices[0].message.content

completion = client.completions.create(model="demo-model", prompt="Once upon a time", max_tokens=4,
                                       temperature=0, logprobs=1)
assert completion.choices[0].text == ", there was a"
assert len(completion.choices[0].logprobs.tokens) == 4
stream = client.completions.create(model="demo-model", prompt=["Once upon a time", "Hello"],
                                   max_tokens=4, temperature=0, stream=True)
texts = ["", ""]
for chunk in stream:
    texts[chunk.choices[0].index] += chunk.choices[0].text
assert texts[0] == ", there was a", texts


def fails(wanted, run):
    try:
        run()
    except wanted as error:
        return error
    raise AssertionError(f"no {wanted}")


fails(openai.BadRequestError, lambda: chat(top_p=7))
error = fails(openai.BadRequestError, lambda: chat(response_format={"type": "json_object"}))
assert error.param == "response_format" and str(error.code) == "400"
fails(openai.NotFoundError, lambda: client.chat.completions.create(model="x", messages=QUESTION))
if KEY != "dummy":
    other = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    fails(openai.AuthenticationError, lambda: other.models.list())


async def many():
    """Thirty at once, a third of which leave early."""
    client_ = openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY, max_retries=0)

    async def one(number):
        text, stream_ = "", await client_.chat.completions.create(
            model="demo-model", messages=QUESTION, temperature=0, stream=True)
        async for chunk_ in stream_:
            text += chunk_.choices[0].delta.content or ""
            if number % 3 == 0:
                await stream_.close()
                return ANSWER
        return text
    assert set(await asyncio.gather(*(one(i) for i in range(30)))) == {ANSWER}

asyncio.run(many())
print("openai", openai.__version__, "is content")

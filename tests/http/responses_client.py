# SPDX-License-Identifier: Apache-2.0
"""Drives /v1/responses with the official openai package, as an application would. Usage: PORT"""
import json
import sys

import openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="dummy",
                       max_retries=0)
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
WEATHER = [{"type": "function", "name": "get_weather", "description": "Get the weather of a place",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}},
                           "required": ["location"]}}]


def respond(question=QUESTION, **fields):
    return client.responses.create(model="demo-model", input=question, temperature=0, **fields)


def refused(said, **fields):
    try:
        respond(**fields)
    except openai.BadRequestError as error:
        assert said in error.message, error.message
        return
    raise AssertionError(f"not refused: {fields}")


def plain(response):
    """What must be the same whether streamed or not: all but ids and times."""
    fields = response.model_dump()
    for name in ("id", "created_at"):
        del fields[name]
    fields["usage"]["input_tokens_details"] = None
    for item in fields["output"]:
        item["id"] = item["call_id"] = None
    return fields


reply = respond(metadata={"a": "b"})
assert reply.output_text == ANSWER and reply.status == "completed", reply
assert reply.usage.output_tokens == 8 and reply.usage.total_tokens == reply.usage.input_tokens + 8
assert reply.metadata == {"a": "b"} and reply.object == "response" and reply.id.startswith("resp_")
parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
assert respond(parts).output_text == ANSWER
assert respond(instructions="Answer.").usage.input_tokens > reply.usage.input_tokens

events = list(respond(metadata={"a": "b"}, stream=True))
assert [e.sequence_number for e in events] == list(range(len(events)))
assert [e.type for e in events if e.type != "response.output_text.delta"] == [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed"]
deltas = [e for e in events if e.type == "response.output_text.delta"]
assert "".join(e.delta for e in deltas) == ANSWER and len(deltas) == 7
assert {e.item_id for e in deltas} == {events[-1].response.output[0].id}
assert events[0].response.status == "in_progress" and events[0].response.output == []
assert plain(events[-1].response) == plain(reply)
with client.responses.stream(model="demo-model", input=QUESTION, temperature=0) as stream:
    assert stream.get_final_response().output_text == ANSWER

short = respond(max_output_tokens=2)
assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"
assert short.output_text == "The capital" and short.output[0].status == "incomplete"
events = list(respond(max_output_tokens=2, stream=True))
assert events[-1].type == "response.incomplete" and plain(events[-1].response) == plain(short)

scored = respond(include=["message.output_text.logprobs"], top_logprobs=2)
scores = scored.output[0].content[0].logprobs
assert "".join(t.token for t in scores) == ANSWER and all(len(t.top_logprobs) == 2 for t in scores)
events = list(respond(include=["message.output_text.logprobs"], top_logprobs=2, stream=True))
streamed = [t for e in events if e.type == "response.output_text.delta" for t in e.logprobs]
assert [t.logprob for t in streamed] == [t.logprob for t in scores]
assert plain(events[-1].response) == plain(scored)

question = [{"role": "user", "content": "東京の天気は？"}]
reply = respond(question, tools=WEATHER)
call = reply.output[0]
assert call.type == "function_call" and call.name == "get_weather", reply
assert json.loads(call.arguments) == {"location": "東京"} and len(reply.output) == 1
events = list(respond(question, tools=WEATHER, stream=True))
assert [e.type for e in events if e.type != "response.function_call_arguments.delta"] == [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.function_call_arguments.done", "response.output_item.done", "response.completed"]
assert "".join(e.delta for e in events if e.type.endswith("arguments.delta")) == call.arguments
assert plain(events[-1].response) == plain(reply)
history = question + [item.model_dump() for item in reply.output] + [
    {"type": "function_call_output", "call_id": call.call_id, "output": "晴れ、22度"}]
told = respond(history, tools=WEATHER)
assert told.output_text and all(item.type == "message" for item in told.output)
assert respond(question, tools=WEATHER, tool_choice="none").output[0].type == "message"

refused("keeps no responses", store=True)
refused("keeps no responses", previous_response_id="resp_1")
refused("keeps no conversations", conversation="conv_1")
refused("wait for the answer", background=True)
refused("shorten", truncation="auto")
refused("not supported yet", text={"format": {"type": "json_object"}})
refused("constrained decoding", tools=WEATHER, tool_choice="required")
refused("strict", tools=[dict(WEATHER[0], strict=True)])
refused("no tools of its own", tools=[{"type": "web_search"}])
refused("text only", question=[{"role": "user", "content": [
    {"type": "input_image", "image_url": "data:,", "detail": "auto"}]}])
refused("item_reference", question=[{"type": "item_reference", "id": "msg_1"}])
refused("whole number", max_output_tokens=0)
refused("context length", max_output_tokens=100000)
assert respond(store=False, truncation="disabled", user="x",
               text={"format": {"type": "text"}}).output_text == ANSWER
print("responses: all is well, openai", openai.__version__)

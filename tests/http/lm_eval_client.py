# SPDX-License-Identifier: Apache-2.0
"""Drives llring-http with lm-evaluation-harness' local-completions, tokenizer and all from the
server. Usage: PORT"""
import json
import sys
import urllib.request

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

URL = f"http://127.0.0.1:{sys.argv[1]}/v1/completions"
PAIRS = [("The capital of France is", " Paris."), ("The capital of France is", " Rome."),
         ("Once upon a time", ", there was a"), ("One, two,", " seven"), ("", "Hello"),
         ("Once upon a time, there was a", " very long sentence about it")]


def model(**options):
    return LocalCompletionsAPI(model="demo-model", base_url=URL, tokenizer_backend="remote",
                               max_length=512, **options)


def ask(kind, *arguments, of):
    return getattr(of, kind)([Instance(kind, {}, a, i) for i, a in enumerate(arguments)])


scores = ask("loglikelihood", *PAIRS, of=model(batch_size=1))
assert [is_greedy for _, is_greedy in scores] == [True, False, True, False, False, False], scores
assert all(value < 0 for value, _ in scores)
# The same floats, bit for bit: in batches, several at once, with the prefix cache warm.
for options in ({"batch_size": 3}, {"batch_size": 1, "num_concurrent": 4}, {"batch_size": 6}):
    again = ask("loglikelihood", *PAIRS, of=model(**options))
    assert again == scores, (options, again, scores)

# What it adds up is what the server says of the prompt.
text = "Once upon a time, there was a little girl."
body = json.dumps({"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1,
                   "temperature": 0, "add_special_tokens": True}).encode()
request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as reply:
    values = json.load(reply)["choices"][0]["logprobs"]["token_logprobs"][1:-1]
rolling = ask("loglikelihood_rolling", (text,), of=model(batch_size=1))
assert rolling == [sum(values)], (rolling, sum(values))

generated = ask("generate_until", ("Once upon a time", {"until": ["was"], "max_gen_toks": 16}),
                ("The capital of France is", {"until": ["\n"], "max_gen_toks": 3}),
                of=model(batch_size=1))
assert generated[0] == ", there ", generated
print("lm-evaluation-harness", lm_eval.__version__, "is content")

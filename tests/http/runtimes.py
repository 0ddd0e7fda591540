# SPDX-License-Identifier: Apache-2.0
"""Two runtimes behind one proxy. Usage: runtimes.py LLRINGD LLRING_HTTP DIRECTORY"""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

LLRINGD, PROXY, DIRECTORY = sys.argv[1:4]
NAMES = ("a", "b")
SOCKETS = {name: f"{DIRECTORY}/{name}.sock" for name in NAMES}
started = []


def start(command, log):
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    started.append(process)
    return process


def start_runtime(name, *more):
    return start([LLRINGD, "--device", "fake", "--max-model-len", "4096", "--fake-step-us", "4000",
                  "--admin-socket", f"{DIRECTORY}/{name}.admin", "--socket", SOCKETS[name],
                  "--log-level", "error", *more], sys.stderr)


def until(what, is_so):
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within a minute: {what}")


def get(path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def figures(metric):
    """By name of the runtime."""
    values = dict.fromkeys(NAMES, 0)
    for path, value in re.findall(r'^%s\{runtime="([^"]*)"\} (\d+)$' % metric, get("/metrics")[1],
                                  re.MULTILINE):
        values[path.rsplit("/", 1)[1].removesuffix(".sock")] = int(value)
    return values


def accepted():
    return figures("ll_requests_accepted_total")


def complete(prompt, n=3):
    """Status, ids."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(
        {"prompt": prompt, "max_tokens": n, "seed": 1, "return_token_ids": True}),
        {"Content-Type": "application/json"})
    reply = connection.getresponse()
    body = json.loads(reply.read())
    return reply.status, body["choices"][0]["token_ids"] if reply.status == 200 else body


def many(prompts, n=3):
    results = [None] * len(prompts)

    def one(i):
        results[i] = complete(prompts[i], n)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    return threads, results


def join(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request without an answer"


def await_up(a, b):
    until(f"up: {a} {b}", lambda: all(figures("ll_http_runtime_up") == {"a": a, "b": b}
                                      for _ in range(6)))  # of each event thread


def main():
    global port
    runtimes = {name: start_runtime(name) for name in NAMES}
    log = open(f"{DIRECTORY}/proxy.log", "w+")
    proxy = start([PROXY, "--port", "0", *(word for name in NAMES
                                           for word in ("--runtime", SOCKETS[name]))], log)

    def log_text():
        with open(f"{DIRECTORY}/proxy.log") as file:
            return file.read()
    until("ready", lambda: re.search(r"ready: .*:\d+/v1", log_text()))
    port = int(re.search(r"ready: .*:(\d+)/v1", log_text()).group(1))
    await_up(1, 1)

    print("-- short prompts are divided evenly")
    before = accepted()
    threads, results = many([[i + 1] for i in range(64)])
    join(threads)
    assert all(status == 200 for status, _ in results), results
    until("all counted", lambda: sum(accepted().values()) - sum(before.values()) == 64)
    after = accepted()
    assert all(after[name] - before[name] >= 20 for name in NAMES), (before, after)

    print("-- equal beginnings go to the same runtime, different ones to both")
    homes = []
    for page in range(16):
        before = accepted()
        for i in range(5):
            assert complete([page + 1] * 64 + [i + 1] * 30, 1)[0] == 200
        until("counted", lambda: sum(accepted().values()) - sum(before.values()) == 5)
        after = accepted()
        took = [name for name in NAMES if after[name] > before[name]]
        assert len(took) == 1, f"page {page} went to {took}"
        homes.append(took[0])
    assert set(homes) == set(NAMES), homes  # 1 in 32,768 that one has all
    cached = figures("ll_prompt_tokens_cached_total")
    assert sum(cached.values()) == 16 * 4 * 64, cached

    print("-- one that dies takes its own requests along, and no others")
    prompts = [[i + 1, 9] for i in range(32)]
    expected = {}
    for prompt in prompts:
        status, ids = complete(prompt, 200)
        assert status == 200
        expected[tuple(prompt)] = ids
    before = accepted()
    threads, results = many(prompts, 200)
    until("all are running", lambda: sum(accepted().values()) - sum(before.values()) == 32)
    runtimes["a"].kill()
    runtimes["a"].wait()
    join(threads)
    good = [i for i, (status, _) in enumerate(results) if status == 200]
    assert 8 <= len(good) <= 24, f"{len(good)} of 32 were served"
    for i, (status, ids) in enumerate(results):
        assert (status == 200 and ids == expected[tuple(prompts[i])]) or status == 503, results[i]

    print("-- the other one serves alone")
    await_up(0, 1)
    threads, results = many([[i + 1] * 70 for i in range(32)])
    join(threads)
    assert all(status == 200 for status, _ in results), results
    assert get("/health")[0] == 200

    print("-- one that serves another model is not used; the right one is")
    other = start_runtime("a", "--fake-vocab", "77")
    until("refused", lambda: "with another tokenizer or chat format" in log_text())
    assert figures("ll_http_runtime_up") == {"a": 0, "b": 1}
    other.kill()
    other.wait()
    runtimes["a"] = start_runtime("a")
    await_up(1, 1)
    threads, results = many([[i + 1] for i in range(16)])
    join(threads)
    assert accepted()["a"] > 0

    print("-- one that hangs is left alone until it moves again")
    os.kill(runtimes["b"].pid, signal.SIGSTOP)
    await_up(1, 0)
    threads, results = many([[i + 1] * 70 for i in range(32)])
    join(threads)
    assert all(status == 200 for status, _ in results), results
    os.kill(runtimes["b"].pid, signal.SIGCONT)
    await_up(1, 1)

    print("-- without any: 503 and when to come back")
    for name in NAMES:
        runtimes[name].send_signal(signal.SIGTERM)
        assert runtimes[name].wait(60) == 0
    for _ in range(6):
        status, body = complete([1])
        assert status == 503, (status, body)
    assert get("/health")[0] == 503
    proxy.send_signal(signal.SIGTERM)
    assert proxy.wait(60) == 0


try:
    main()
except BaseException:
    with open(f"{DIRECTORY}/proxy.log") as file:
        sys.stderr.write(file.read()[-3000:])
    raise
finally:
    for process in started:
        if process.poll() is None:
            process.kill()

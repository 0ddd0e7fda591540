# SPDX-License-Identifier: Apache-2.0
"""What hostile and broken HTTP clients send, on raw sockets. Usage: abuse.py PORT KEY PID_OF_PROXY"""
import json
import re
import resource
import socket
import sys
import time

PORT, KEY, PID = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
AUTH = f"Authorization: Bearer {KEY}\r\n".encode()
failures = 0


def check(is_good, what):
    global failures
    if not is_good:
        failures += 1
        print("FAIL:", what)


def connect():
    connection = socket.create_connection(("127.0.0.1", PORT))
    connection.settimeout(20)
    return connection


def read_all(connection):
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return data


def exchange(data):
    """Sends it and reads until the server closes; the statuses of the replies."""
    with connect() as connection:
        connection.sendall(data)
        reply = read_all(connection)
    check(b"<reset>" not in reply, f"no reset for {data[:60]}")
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", reply)], reply


def post(path, body, extra=b"", length=None):
    return (b"POST %s HTTP/1.1\r\nHost: a\r\n" % path + AUTH +
            b"Content-Type: application/json\r\nContent-Length: %d\r\n" %
            (len(body) if length is None else length) + extra + b"\r\n" + body)


def rss():
    with open(f"/proc/{PID}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def alive():
    statuses, _ = exchange(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    check(statuses == [200], "health")


SMUGGLED = b"GET /version HTTP/1.1\r\nHost: a\r\n" + AUTH + b"Connection: close\r\n\r\n"
P = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + AUTH
CLOSE = b"Connection: close\r\n\r\n"


def framing():
    """One request with a doubtful length, then another: the second must never be answered."""
    body = b'{"prompt":[5]}'
    for head in (b"Content-Length: 14\r\nContent-Length: 14\r\n", b"Content-Length: 14, 14\r\n",
                 b"Content-Length: +14\r\n", b"Content-Length: 1_4\r\n", b"Content-Length: 0xe\r\n",
                 b"Content-Length: 14 14\r\n", b"Content-Length: -14\r\n", b"Content-Length: \r\n",
                 b"Content-Length : 14\r\n", b" Content-Length: 14\r\n", b"Content-Length\t: 14\r\n",
                 b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n",
                 b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
                 b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: \"chunked\"\r\n",
                 b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                 b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
                 b"Transfer-Encoding: chunked\x00\r\n", b"Transfer-Encoding:\r\n chunked\r\n",
                 b"X: y\nContent-Length: 14\r\n", b"X: y\rContent-Length: 14\r\n",
                 b"X\x00: y\r\n", b"X: \x00\r\n", b"X: \x7f\r\n", b"X y\r\n", b": y\r\n",
                 b"Host: b\r\n", b"Expect: nothing\r\n"):
        statuses, _ = exchange(P + head + b"\r\n" + body + SMUGGLED)
        check(len(statuses) == 1 and statuses[0] in (400, 417), f"{head}: {statuses}")
    for chunks in (b"e;x=y\r\n" + body + b"\r\n0\r\n\r\n", b"e\n" + body + b"\n0\n\n",
                   b"0xe\r\n" + body + b"\r\n0\r\n\r\n", b"e \r\n" + body + b"\r\n0\r\n\r\n",
                   b"d\r\n" + body + b"\r\n0\r\n\r\n", b"f\r\n" + body + b"\r\n0\r\n\r\n",
                   b"-e\r\n" + body + b"\r\n0\r\n\r\n", b"00000000e\r\n" + body + b"\r\n0\r\n\r\n",
                   b"e\r\n" + body + b"\r\n0\r\nX: y\r\n\r\n", b"\r\n" + body):
        statuses, _ = exchange(P + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + SMUGGLED)
        check(statuses == [400], f"{chunks}: {statuses}")
    good = P + b"Transfer-Encoding: chunked\r\n\r\n7\r\n" + body[:7] + b"\r\n7\r\n" + body[7:] + \
        b"\r\n0\r\n\r\n"
    check(exchange(good + SMUGGLED)[0] == [200, 200], "sound chunks, then a second request")
    check(exchange(P + b"Content-Length: 14\r\n\r\n" + body + SMUGGLED)[0] == [200, 200], "pipelined")
    statuses, reply = exchange(P + b"Expect: 100-continue\r\nContent-Length: 14\r\n" + CLOSE + body)
    check(statuses == [100, 200], f"100-continue: {statuses}")


def lines():
    for data, wanted in ((b"GET / HTTP/1.1\r\n\r\n", 400), (b"GET /\r\n\r\n", 400),
                         (b"GET / HTTP/3.0\r\n\r\n", 505), (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
                         (b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n", 405), (b"\x16\x03\x01\x00\xa5", 400),
                         (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
                         (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
                         (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 9000), 414),
                         (b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 17000), 431),
                         (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 70 + b"\r\n", 431),
                         (post(b"/tokenize", b"", length=1 << 40), 413),
                         (post(b"/tokenize", b"", length=10 ** 30), 400),
                         (P + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413)):
        statuses, reply = exchange(data)
        check(statuses == [wanted] and b'"code":%d' % wanted in reply and b"Connection: close" in reply,
              f"{data[:50]}: {statuses} instead of {wanted}")


def keys():
    """Nothing but /health without the right key, and the body of a stranger is not read."""
    for head in (b"", b"Authorization: Bearer \r\n", b"Authorization: Bearer wrong\r\n",
                 b"Authorization: Bearer " + KEY[:-1].encode() + b"\r\n",
                 b"Authorization: Bearer " + KEY.encode() + b"x\r\n",
                 b"Authorization: Basic " + KEY.encode() + b"\r\n"):
        for path in (b"/v1/models", b"/metrics", b"/version", b"/nothing", b"/tokenize", b"//health",
                     b"/health/", b"/v1/../health"):
            statuses, _ = exchange(b"GET %s HTTP/1.1\r\nHost: a\r\n%s" % (path, head) + CLOSE)
            check(statuses == [401], f"{path} with {head}: {statuses}")
    statuses, _ = exchange(post(b"/v1/completions", b"").replace(AUTH, b"").replace(
        b"Content-Length: 0", b"Content-Length: 1000000"))
    check(statuses == [401], "401 before the body, not 408 for want of it")
    check(exchange(b"GET /version HTTP/1.1\r\nHost: a\r\n" +
                   AUTH.replace(KEY.encode(), KEY.upper().encode()) + CLOSE)[0] == [401], "KEY")
    check(exchange(b"GET /version HTTP/1.1\r\nHost: a\r\nauthorization: bearer %s\r\n" % KEY.encode() +
                   CLOSE)[0] == [200], "the scheme in small letters")


def slow():
    """Readers that take nothing stall only themselves; writers that trickle are cut off."""
    body = json.dumps({"prompt": [5], "max_tokens": 6000, "ignore_eos": True, "stream": True,
                       "logprobs": 5}).encode()
    readers = []
    for _ in range(6):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(("127.0.0.1", PORT))
        connection.sendall(post(b"/v1/completions", body))
        readers.append(connection)
    # Until nothing moves any more: each has its 256 KiB unsent here and its window full there.
    moved, held = -1, 0
    for _ in range(240):
        text = exchange(b"GET /metrics HTTP/1.1\r\nHost: a\r\n" + AUTH + CLOSE)[1].decode()
        now, held = (int(re.search(r"^%s (\d+)$" % name, text, re.MULTILINE).group(1))
                     for name in ("ll_events_written_total", "ll_requests_running"))
        if held == 6 and now == moved:
            break
        moved = now
        time.sleep(0.5)
    check(held == 6, f"slow readers' requests wait for them: {held}")
    quick = json.dumps({"prompt": [5], "max_tokens": 50, "ignore_eos": True, "stream": True,
                        "return_token_ids": True}).encode()
    for _ in range(5):
        _, reply = exchange(post(b"/v1/completions", quick, b"Connection: close\r\n"))
        check(reply.count(b"data: {") >= 50 and b"[DONE]" in reply, "others go on beside slow readers")
    check(rss() < 256 << 20, f"memory beside slow readers: {rss() >> 20} MiB")
    # One of them reads after all: its stream is whole.
    readers[0].settimeout(30)
    data = b""
    while b"data: [DONE]" not in data:
        piece = readers[0].recv(65536)
        if not piece:
            break
        data += piece
    check(data.count(b'"finish_reason":null') >= 6000 and b"[DONE]" in data, "a late reader")
    for connection in readers:
        connection.close()
    trickle = connect()
    trickle.sendall(b"GET /health HT")
    reply = read_all(trickle)
    check(reply.startswith(b"HTTP/1.1 408"), "a head that stops")


def idle():
    """Many idle connections cost little and stop nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    count = min(4000, min(hard, 8192) - 100)
    before = rss()
    connections = [connect() for _ in range(count)]
    for connection in connections[::2]:
        connection.sendall(b"GET /health HTTP/1.1\r\nHos")
    for _ in range(5):
        alive()
    check(rss() - before < 64 << 20, f"{(rss() - before) >> 20} MiB for {count} idle connections")
    for connection in connections[::2]:
        connection.sendall(b"t: a\r\nConnection: close\r\n\r\n")
    served = sum(read_all(connection).startswith(b"HTTP/1.1 200") for connection in connections[::2])
    check(served == (count + 1) // 2, f"{served} of {count // 2} idle connections were served")
    for connection in connections:
        connection.close()


def reader_of_nothing():
    """Sends requests and never reads a reply: the proxy must not keep them all."""
    with connect() as connection:
        connection.settimeout(0.5)
        try:
            for _ in range(20000):
                connection.sendall(SMUGGLED.replace(b"Connection: close\r\n", b""))
        except (TimeoutError, ConnectionError):
            pass
        check(rss() < 256 << 20, "memory beside a client that reads nothing")


def bodies():
    """Sound HTTP around bodies that are not: 400, and the next request is answered."""
    for body in (b"[" * 60000, b'{"a":' * 60000, b'{"prompt":[5],"prompt":[6]}', b'{"prompt":"\\ud800"}',
                 b'{"prompt":"\xff\xfe"}', b'{"prompt":"\xc0\x80"}', b'{"prompt":[5],"temperature":NaN}',
                 b'{"prompt":[5],"temperature":1e999}', b'{"prompt":[5],"n":2147483648}',
                 b'{"prompt":[5],"n":-1}', b'{"prompt":[5],"n":1e2}', b'{"prompt":[5],"max_tokens":1.5}',
                 b'{"prompt":[5],"max_tokens":99999999999999999999}', b'{"prompt":[-1]}', b'{"prompt":[1e9]}',
                 b'{"prompt":[4294967301]}', b'{"prompt":[]}', b'{"prompt":[[]]}', b'{"prompt":null}', b"",
                 b"null", b"[]", b"5", b'{"prompt":[5]} x', b'{"prompt":[5],}', b"{'prompt':[5]}",
                 b'{"prompt":[5],"stop":%s}' % json.dumps(["x"] * 100000).encode(),
                 b'{"prompt":[5],"stop_token_ids":%s}' % json.dumps([1] * 100000).encode(),
                 b'{"prompt":[5],"logit_bias":{"99999999999":1}}', b'{"prompt":[5],"logprobs":1000000}',
                 b'{"prompt":[5],"logit_bias":{"5":NaN}}', b'{"prompt":[5],"seed":"x"}', b'\x00', b"\xef\xbb\xbf{}"):
        statuses, reply = exchange(post(b"/v1/completions", body) + SMUGGLED)
        check(statuses == [400, 200], f"{body[:50]}: {statuses}")
        check(b'"message":' in reply, f"{body[:50]} has an error in words")
    every = [b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/tokenize", b"/detokenize"]
    for path in every:
        for body in (b"[" * 60000, b"[]", b"{}", b'{"messages":5,"prompt":{},"input":7,"tokens":"x"}'):
            statuses, _ = exchange(post(path, body) + SMUGGLED)
            check(statuses in ([400, 200], [404, 200]), f"{path} {body[:20]}: {statuses}")


def shapes():
    """Bytes that come in odd pieces, and ends in odd places."""
    version = SMUGGLED.replace(b"Connection: close\r\n", b"")
    statuses, _ = exchange(version * 1000 + SMUGGLED)
    check(statuses == [200] * 1001, f"1,000 pipelined: {len(statuses)}")
    whole = post(b"/v1/completions", b'{"prompt":[5],"max_tokens":2}', b"Connection: close\r\n")
    with connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(whole)):
            connection.sendall(whole[i:i + 1])
        check(read_all(connection).startswith(b"HTTP/1.1 200"), "a byte at a time")
    with connect() as connection:
        connection.sendall(version)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)  # served or not: the end of a client that still reads is its end here
    stream = post(b"/v1/completions",
                  b'{"prompt":[5],"max_tokens":4000,"ignore_eos":true,"stream":true}')
    for _ in range(20):
        connection = connect()
        connection.sendall(stream)
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # a reset in mid-stream
    for cut in range(0, len(whole)):
        with connect() as connection:
            connection.sendall(whole[:cut])
    check(exchange(b"HEAD /version HTTP/1.1\r\nHost: a\r\n" + AUTH + CLOSE)[1].endswith(b"\r\n\r\n"),
          "HEAD has no body")
    check(exchange(b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\n" + CLOSE)[0] == [204], "OPTIONS")
    for more in (b"Upgrade: h2c\r\nConnection: Upgrade, close\r\n",
                 b"Upgrade: websocket\r\nConnection: Upgrade\r\nConnection: close\r\n"):
        statuses, _ = exchange(b"GET /version HTTP/1.1\r\nHost: a\r\n" + AUTH + more + b"\r\n")
        check(statuses == [200], f"no upgrade: {statuses}")


for part in (framing, lines, keys, bodies, shapes, idle, reader_of_nothing, slow):
    print("--", part.__name__)
    part()
    alive()
sys.exit(1 if failures else 0)

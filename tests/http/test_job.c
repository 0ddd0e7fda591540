/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/test_job.c - J3 of tools/http/job.h: whatever tokens a text comes in, wherever the
 * turns fall between them, streamed or not, as a chat or as a response: the answer is the same. */
#include "tests/http/support_rig.h"

#include "base/bits.h"
#include "base/rng.h"

#define N_SPLITS 150 /* of each sample, in each way */
#define IDS_MAX  512
#define EOT      4105 /* <|eot_id|> of the demo model */

/* ---- a job without a runtime ------------------------------------------------------------------*/

static struct http_rig rig; /* lends its tokenizer; its runtime is asked nothing */
static struct conn conn;
static uint64_t seed;

static int begin(void **state)
{
    (void)state;
    seed = ll_test_seed();
    return http_rig_open(&rig);
}

static int end(void **state)
{
    (void)state;
    http_rig_close(&rig);
    return 0;
}

/* A job as job_start() leaves it, its one request submitted. */
static struct job *start(json_t *body, enum api api)
{
    struct api_error error;
    struct job *job = job_new(body, api, rig.loop.link, 0, &error);

    if (job == NULL)
        fail_msg("the body was refused: %s", error.message);
    conn = (struct conn){.loop = &rig.loop, .state = CONN_BUSY, .job = job};
    http_parser_init(&conn.parser, 1024);
    conn.parser.is_1_0 = true; /* streams without HTTP chunks */
    job->loop = &rig.loop;
    job->conn = &conn;
    job->n_submitted = 1;
    job->part[0].link = rig.loop.link;
    rig.loop.jobs = job;
    return job;
}

/* The end of a turn. */
static void turn(void)
{
    if (conn.job != NULL)
        job_flush(conn.job);
}

static void feed(struct job *job, const uint32_t *ids, uint32_t n, uint32_t reason)
{
    struct ll_output out = {.tag = (uint64_t)(uintptr_t)&job->part[0], .type = LL_OUTPUT_TOKEN};

    for (uint32_t i = 0; i < n; i++) {
        out.index = i;
        out.t_ns = i + 1;
        out.u.token.id = ids[i];
        job_output(&out);
        if (ll_splitmix64(&seed) % 3 == 0)
            turn();
    }
    out.type = LL_OUTPUT_FINISH;
    out.u.finish.reason = reason;
    out.u.finish.stop_id = reason == LL_FINISH_STOP ? ids[n - 1] : UINT32_MAX;
    job_output(&out);
    assert_null(conn.job);
    assert_null(rig.loop.jobs);
    rig.loop.dirty = NULL;
}

/* ---- what a client makes of the reply ---------------------------------------------------------*/

struct answer {
    struct buffer text, calls; /* calls: name(arguments); */
    char finish[16];
    char stop[32]; /* chats: the stop string that was found */
};

static void answer_free(struct answer *answer)
{
    buffer_free(&answer->text);
    buffer_free(&answer->calls);
}

static void put(struct buffer *out, const json_t *text)
{
    buffer_put(out, json_string_value(text), json_string_length(text));
}

static json_t *parse(const char *text, size_t n)
{
    json_error_t error;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);

    if (root == NULL)
        fail_msg("no JSON: %s in %.*s", error.text, (int)n, text);
    return root;
}

static void take_end(struct answer *answer, const json_t *choice)
{
    const char *stop = json_string_value(json_object_get(choice, "stop_reason"));

    snprintf(answer->finish, sizeof(answer->finish), "%s",
             json_string_value(json_object_get(choice, "finish_reason")));
    snprintf(answer->stop, sizeof(answer->stop), "%s", stop != NULL ? stop : "");
}

static void take_chat(struct answer *answer, const json_t *root)
{
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *message = json_object_get(choice, "message");
    const json_t *calls = json_object_get(message, "tool_calls");

    put(&answer->text, json_object_get(message, "content"));
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        put(&answer->calls, json_object_get(function, "name"));
        buffer_put(&answer->calls, "(", 1);
        put(&answer->calls, json_object_get(function, "arguments"));
        buffer_put(&answer->calls, ");", 2);
    }
    take_end(answer, choice);
}

static void take_chat_chunk(struct answer *answer, const json_t *root, bool is_first)
{
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *calls = json_object_get(delta, "tool_calls");

    assert_int_equal(answer->finish[0], '\0'); /* nothing follows the end */
    assert_int_equal(json_object_get(delta, "role") != NULL, is_first);
    put(&answer->text, json_object_get(delta, "content"));
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *name = json_object_get(function, "name");
        if (name != NULL) {
            if (answer->calls.n > 0)
                buffer_put(&answer->calls, ");", 2);
            put(&answer->calls, name);
            buffer_put(&answer->calls, "(", 1);
        }
        put(&answer->calls, json_object_get(function, "arguments"));
    }
    if (json_object_get(choice, "finish_reason") != NULL &&
        json_is_string(json_object_get(choice, "finish_reason"))) {
        take_end(answer, choice);
        if (answer->calls.n > 0)
            buffer_put(&answer->calls, ");", 2);
    }
}

static void take_response(struct answer *answer, const json_t *root)
{
    const json_t *items = json_object_get(root, "output");
    const char *status = json_string_value(json_object_get(root, "status"));

    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);
        const json_t *name = json_object_get(item, "name");
        put(&answer->text,
            json_object_get(json_array_get(json_object_get(item, "content"), 0), "text"));
        if (name == NULL)
            continue;
        put(&answer->calls, name);
        buffer_put(&answer->calls, "(", 1);
        put(&answer->calls, json_object_get(item, "arguments"));
        buffer_put(&answer->calls, ");", 2);
    }
    snprintf(answer->finish, sizeof(answer->finish), "%s",
             strcmp(status, "incomplete") == 0 ? "length"
             : answer->calls.n > 0             ? "tool_calls"
                                               : "stop");
}

/* Deltas go to deltas: what they join to must be what the last event says. */
static void take_event(struct answer *answer, struct buffer *deltas, const json_t *root)
{
    const char *type = json_string_value(json_object_get(root, "type"));

    if (strcmp(type, "response.completed") == 0 || strcmp(type, "response.incomplete") == 0)
        take_response(answer, json_object_get(root, "response"));
    else
        put(deltas, json_object_get(root, "delta"));
}

static void check_deltas(const struct answer *answer, const struct buffer *deltas)
{
    size_t n_text = answer->text.n, at = 0;

    assert_true(deltas->n >= n_text);
    /* Text and arguments, in the order of the items: every byte of text is there in this order. */
    for (size_t i = 0; i < deltas->n; i++)
        at += at < n_text && deltas->data[i] == answer->text.data[at];
    assert_int_equal(at, n_text);
}

static void read_stream(struct answer *answer, const char *text, size_t n, enum api api)
{
    struct buffer deltas = {0};
    const char *end = text + n, *stop;
    bool is_first = api == API_CHAT;

    while ((stop = memmem(text, (size_t)(end - text), "\n\n", 2)) != NULL) {
        const char *data = memmem(text, (size_t)(stop - text), "data: ", 6);
        assert_non_null(data);
        data += 6;
        if (strncmp(data, "[DONE]", 6) != 0) {
            json_t *root = parse(data, (size_t)(stop - data));
            if (api == API_RESPONSES)
                take_event(answer, &deltas, root);
            else
                take_chat_chunk(answer, root, is_first);
            is_first = false;
            json_decref(root);
        }
        text = stop + 2;
    }
    assert_ptr_equal(text, end);
    if (api == API_RESPONSES)
        check_deltas(answer, &deltas);
    buffer_free(&deltas);
}

static void read_reply(struct answer *answer, enum api api, bool is_stream)
{
    struct buffer *out = &conn.out;
    const char *body = memmem(out->data, out->n, "\r\n\r\n", 4);
    size_t n = body != NULL ? out->n - (size_t)(body + 4 - out->data) : 0;

    assert_non_null(body);
    assert_memory_equal(out->data, "HTTP/1.1 200", 12);
    *answer = (struct answer){0};
    if (is_stream) {
        read_stream(answer, body + 4, n, api);
    } else {
        json_t *root = parse(body + 4, n);
        if (api == API_RESPONSES)
            take_response(answer, root);
        else
            take_chat(answer, root);
        json_decref(root);
    }
    buffer_put(&answer->text, "", 1);
    buffer_put(&answer->calls, "", 1);
    buffer_free(out);
    http_parser_free(&conn.parser);
}

/* ---- samples ----------------------------------------------------------------------------------*/

static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":"
    "\"object\",\"properties\":{\"location\":{\"type\":\"string\"}}}}},{\"type\":\"function\","
    "\"function\":{\"name\":\"now\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}}]";
static const char flat_tools[] =
    "[{\"type\":\"function\",\"name\":\"get_weather\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"location\":{\"type\":\"string\"}}}},{\"type\":\"function\",\"name\":\"now\","
    "\"parameters\":{\"type\":\"object\",\"properties\":{}}}]";

static const struct sample {
    const char *said; /* by the model */
    const char *stop; /* a stop string; NULL: none */
    bool has_tools, one_call;
    const char *text, *calls, *finish;
} samples[] = {
    {"The capital of France is Paris.", NULL, false, false, "The capital of France is Paris.", "",
     "stop"},
    {"東京は晴れ ☀️, 22 °C \"ok\"\n\t\\", NULL, false, false,
     "東京は晴れ ☀️, 22 °C \"ok\"\n\t\\", "", "stop"},
    {"one two three two", "two", false, false, "one ", "", "stop"},
    {"ababababc", "abababc", false, false, "ab", "", "stop"},
    {"晴れ、晴れ。", "れ。", false, false, "晴れ、晴", "", "stop"},
    {"no stop her", "here", false, false, "no stop her", "", "stop"},
    {"{\"name\": \"get_weather\", \"parameters\": {\"location\": \"東京\"}}", NULL, true, false, "",
     "get_weather({\"location\": \"東京\"});", "tool_calls"},
    {"<|python_tag|>{\"name\": \"now\", \"parameters\": {}}", NULL, true, false, "", "now({});",
     "tool_calls"},
    {"<function=get_weather>{\"location\": \"a;b\"}</function>", NULL, true, false, "",
     "get_weather({\"location\": \"a;b\"});", "tool_calls"},
    {"[get_weather(location='x'), now()]", NULL, true, false, "",
     "get_weather({\"location\": \"x\"});now({});", "tool_calls"},
    {"[get_weather(location='x'), now()]", NULL, true, true, "",
     "get_weather({\"location\": \"x\"});", "tool_calls"},
    {"{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": "
     "{\"location\": \"}\"}}",
     NULL, true, false, "", "now({});get_weather({\"location\": \"}\"});", "tool_calls"},
    {"{\"name\": \"unknown\", \"parameters\": {}}", NULL, true, false,
     "{\"name\": \"unknown\", \"parameters\": {}}", "", "stop"},
    {"{\"name\": \"get_wea", NULL, true, false, "{\"name\": \"get_wea", "", "stop"},
    {"[get_weather(location='x'), no", NULL, true, false, ", no",
     "get_weather({\"location\": \"x\"});", "tool_calls"},
    {"[1, 2] are numbers", NULL, true, false, "[1, 2] are numbers", "", "stop"},
    {"Say {\"name\": \"now\"}", "now", true, false, "Say {\"name\": \"", "", "stop"},
};

static json_t *make_body(const struct sample *sample, enum api api, bool is_stream)
{
    json_t *body = json_pack("{s:b}", "stream", is_stream);

    if (api == API_RESPONSES)
        json_object_set_new(body, "input", json_string("x"));
    else
        json_object_set_new(body, "messages",
                            json_pack("[{s:s,s:s}]", "role", "user", "content", "x"));
    if (sample->stop != NULL)
        json_object_set_new(body, "stop", json_string(sample->stop));
    if (sample->has_tools)
        json_object_set_new(body, "tools",
                            json_loads(api == API_RESPONSES ? flat_tools : tools, 0, NULL));
    if (sample->one_call)
        json_object_set_new(body, "parallel_tool_calls", json_false());
    return body;
}

/* Ids that say the same, cut anywhere but in a special token. */
static uint32_t split(const char *text, bool is_whole, uint32_t ids[IDS_MAX])
{
    static const char tag[] = "<|python_tag|>";
    size_t n = strlen(text), at = 0;
    uint32_t n_ids = 0;

    if (strncmp(text, tag, sizeof(tag) - 1) == 0) {
        at = sizeof(tag) - 1;
        n_ids =
            (uint32_t)ll_encode(rig.loop.link->tokenizer, tag, at, LL_ENCODE_SPECIAL, ids, IDS_MAX);
        assert_int_equal(n_ids, 1);
    }
    while (at < n) {
        size_t piece = is_whole ? n - at : ll_min_u64(ll_splitmix64(&seed) % 9 + 1, n - at);
        n_ids += (uint32_t)ll_encode(rig.loop.link->tokenizer, text + at, piece, 0, ids + n_ids,
                                     IDS_MAX - n_ids);
        at += piece;
    }
    assert_true(n_ids < IDS_MAX);
    return n_ids;
}

static void check_sample(const struct sample *sample, enum api api, bool is_stream, bool is_whole,
                         uint32_t reason)
{
    uint32_t ids[IDS_MAX], n = split(sample->said, is_whole, ids);
    struct answer answer;

    if (reason == LL_FINISH_STOP)
        ids[n++] = EOT;
    feed(start(make_body(sample, api, is_stream), api), ids, n, reason);
    read_reply(&answer, api, is_stream);
    bool has_stopped = sample->stop != NULL && strstr(sample->said, sample->stop) != NULL;
    const char *finish = reason == LL_FINISH_LENGTH && !has_stopped ? "length" : sample->finish;
    assert_string_equal(answer.text.data, sample->text);
    assert_string_equal(answer.calls.data, sample->calls);
    assert_string_equal(answer.finish, finish);
    if (api == API_CHAT)
        assert_string_equal(answer.stop, has_stopped ? sample->stop : "");
    answer_free(&answer);
}

static void every_split_gives_the_same_answer(void **state)
{
    (void)state;
    for (size_t i = 0; i < LL_COUNT(samples); i++)
        for (int way = 0; way < 8; way++)
            for (int round = 0; round < N_SPLITS; round++)
                check_sample(&samples[i], way & 1 ? API_RESPONSES : API_CHAT, (way & 2) != 0,
                             round == 0, way & 4 ? LL_FINISH_LENGTH : LL_FINISH_STOP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_same_answer),
    };
    return cmocka_run_group_tests_name("http/job", tests, begin, end);
}

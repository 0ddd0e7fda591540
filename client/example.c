/* SPDX-License-Identifier: Apache-2.0 */
/* client/example.c - a whole program on libllclient: completes a text and prints it as it comes.
 *
 *     cc example.c $(pkg-config --cflags --libs llclient) -o example
 *     ./example "The capital of France is" */
#include <ll/client.h>
#include <ll/text.h>

#include <stdio.h>
#include <string.h>

static int complain(const char *what)
{
    fprintf(stderr, "example: %s: %s\n", what, ll_error_text());
    return 1;
}

/* Prints outputs until the request has ended; 0 when it ended well. */
static int stream(struct ll_client *client, struct ll_decoder *decoder)
{
    struct ll_output out[16];
    const char *text;

    for (;;) {
        int n = ll_client_wait(client, out, 16, -1);
        if (n < 0)
            return complain("wait");
        for (int i = 0; i < n; i++) {
            if (out[i].type == LL_OUTPUT_TOKEN) {
                int n_bytes = ll_decoder_feed(decoder, out[i].u.token.id, &text);
                printf("%.*s", n_bytes > 0 ? n_bytes : 0, n_bytes > 0 ? text : "");
                fflush(stdout);
            } else if (out[i].type == LL_OUTPUT_ERROR) {
                fprintf(stderr, "\nexample: %s: %s\n", ll_error_name(out[i].u.error.code),
                        out[i].u.error.text);
                return 1;
            } else if (out[i].type == LL_OUTPUT_FINISH) {
                printf("\n[%u tokens, first after %.2f ms]\n", out[i].u.finish.n_out,
                       (double)out[i].u.finish.ttft_ns / 1e6);
                return 0;
            }
        }
    }
}

int main(int argc, char **argv)
{
    const char *prompt = argc > 1 ? argv[1] : "The capital of France is";
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    struct ll_request request = LL_REQUEST_INIT;
    struct ll_tokenizer *tokenizer = NULL;
    struct ll_decoder *decoder = NULL;
    struct ll_client *client = NULL;
    uint32_t ids[512];
    int rc = 1;

    if (ll_client_open(&client, NULL) < 0)
        return complain("open");
    if (ll_client_info(client, &info) < 0 ||
        ll_tokenizer_from_image(&tokenizer, info.tokenizer, info.tokenizer_bytes) < 0 ||
        ll_decoder_new(&decoder, tokenizer, 0) < 0) {
        complain("tokenizer");
        goto close;
    }
    int64_t n = ll_encode(tokenizer, prompt, strlen(prompt), LL_ENCODE_BOS, ids, 512);
    request.prompt = ids;
    request.n_prompt = n <= 512 ? (uint32_t)n : 512;
    request.max_tokens = 32;
    if (ll_client_submit(client, &request, NULL) < 0)
        complain("submit");
    else
        rc = stream(client, decoder);

close:
    ll_decoder_free(decoder);
    ll_tokenizer_free(tokenizer);
    ll_client_close(client);
    return rc;
}

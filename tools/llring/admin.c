/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/admin.h"

#include "base/err.h"
#include "ll/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MAX (512u << 10) /* the runtime's are half of that at most */
#define PATIENCE_S 10

/* admin.sock beside a control socket. false: too long. */
static bool beside(const char *socket, char *out, size_t n_bytes)
{
    const char *slash = strrchr(socket, '/');
    int n = snprintf(out, n_bytes, "%.*sadmin.sock", slash != NULL ? (int)(slash + 1 - socket) : 0,
                     socket);

    return n >= 0 && (size_t)n < n_bytes;
}

/* -ENOENT: no file; -ECONNREFUSED: nobody listens; else a descriptor. */
static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timeval patience = {.tv_sec = PATIENCE_S};

    if (strlen(path) >= sizeof(address.sun_path))
        return LL_ERR(-ENAMETOOLONG, "%s: too long for a socket's path", path);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return LL_ERRNO("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        int rc = LL_ERRNO("%s", path);
        close(fd);
        if (rc == -ENOENT || rc == -ECONNREFUSED)
            LL_ERR(rc,
                   "no runtime has an admin socket at %s: start llringd, or name its socket "
                   "(--socket, --admin-socket)",
                   path);
        if (rc == -EACCES)
            LL_ERR(rc, "%s is another user's: who started the runtime may use it, or root", path);
        return rc;
    }
    return fd;
}

static int connect_default(const struct admin_options *options)
{
    const char *named = options->socket != NULL ? options->socket : getenv("LLRING_SOCKET");
    const char *directory = getenv("XDG_RUNTIME_DIR");
    char path[256];

    if (options->admin_socket != NULL)
        return connect_to(options->admin_socket);
    if (named != NULL && named[0] != 0) {
        if (!beside(named, path, sizeof(path)))
            return LL_ERR(-ENAMETOOLONG, "%s: too long for a socket's path", named);
        return connect_to(path);
    }
    if (directory != NULL && directory[0] != 0) {
        snprintf(path, sizeof(path), "%s/llring/admin.sock", directory);
        int fd = connect_to(path);
        if (fd != -ENOENT && fd != -ECONNREFUSED)
            return fd;
    }
    return connect_to("/run/llring/admin.sock");
}

static int talk(int fd, const char *line, char *answer, size_t *n_answer)
{
    size_t n_line = strlen(line);
    ssize_t n;

    if (send(fd, line, n_line, MSG_NOSIGNAL) != (ssize_t)n_line)
        return LL_ERRNO("admin socket: send");
    while ((n = recv(fd, answer + *n_answer, ANSWER_MAX - *n_answer, 0)) > 0)
        *n_answer += (size_t)n;
    if (n < 0 && errno == EAGAIN)
        return LL_ERR(LL_E_TIMEOUT, "the runtime does not answer on its admin socket");
    return n < 0 ? LL_ERRNO("admin socket: recv") : 0;
}

json_t *admin_ask(const struct admin_options *options, const char *line, int *code)
{
    char *answer = malloc(ANSWER_MAX);
    size_t n_answer = 0;
    json_t *object = NULL;

    if (answer == NULL) {
        *code = LL_ERR(-ENOMEM, "no memory for an answer");
        return NULL;
    }
    int fd = connect_default(options);
    *code = fd < 0 ? fd : talk(fd, line, answer, &n_answer);
    if (fd >= 0)
        close(fd);
    if (*code == 0) {
        object = json_loadb(answer, n_answer, 0, NULL);
        if (!json_is_object(object)) {
            *code = LL_ERR(LL_E_PROTOCOL, "the admin socket's answer is no JSON object");
            json_decref(object);
            object = NULL;
        }
    }
    free(answer);
    return object;
}

int admin_refusal(const json_t *answer, const char **message)
{
    const json_t *error = json_object_get(answer, "error");
    const char *text = json_string_value(json_object_get(answer, "message"));

    if (!json_is_integer(error))
        return 0;
    *message = text != NULL ? text : "";
    return (int)json_integer_value(error);
}

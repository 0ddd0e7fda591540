/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/jsonfile.h"

#include "base/err.h"
#include "ll/client.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *ll_path_tail(const char *path)
{
    size_t n = strlen(path);

    return n > 200 ? path + n - 200 : path;
}

const char *ll_shown(char out[LL_SHOWN_BYTES], const char *name)
{
    size_t n = 0;

    for (; name[n] != '\0' && n < LL_SHOWN_BYTES - 4; n++)
        out[n] = name[n] >= ' ' && name[n] <= '~' ? name[n] : '?';
    strcpy(out + n, name[n] != '\0' ? "..." : "");
    return out;
}

static int read_all(int fd, const char *path, char *bytes, size_t n_bytes)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = read(fd, bytes + done, n_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return LL_ERRNO("%s: read", path);
        if (n == 0)
            return LL_ERR(LL_E_INVAL,
                          "%s: ends after %zu of %zu bytes: it changed while being read", path,
                          done, n_bytes);
        done += (size_t)n;
    }
    return 0;
}

int ll_file_read(char **bytes, size_t *n_bytes, const char *path, size_t max_bytes)
{
    /* O_NONBLOCK: a FIFO put in a file's place must not hang the start; no effect on files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;
    struct stat st;
    char *text;

    path = ll_path_tail(path);
    if (fd < 0)
        return LL_ERRNO("%s", path);
    if (fstat(fd, &st) < 0) {
        rc = LL_ERRNO("%s: fstat", path);
        goto close_fd;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = LL_ERR(LL_E_INVAL, "%s: not a regular file", path);
        goto close_fd;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        rc = LL_ERR(LL_E_INVAL, "%s: %lld bytes; at most %zu are read", path, (long long)st.st_size,
                    max_bytes);
        goto close_fd;
    }
    text = malloc((size_t)st.st_size + 1);
    if (text == NULL) {
        rc = LL_ERR(-ENOMEM, "%s: no memory for %lld bytes", path, (long long)st.st_size);
        goto close_fd;
    }
    rc = read_all(fd, path, text, (size_t)st.st_size);
    if (rc < 0) {
        free(text);
        goto close_fd;
    }
    text[st.st_size] = '\0';
    *bytes = text;
    *n_bytes = (size_t)st.st_size;

close_fd:
    close(fd);
    return rc;
}

int ll_jsonfile_read(json_t **out, const char *path, size_t max_bytes)
{
    char *text, shown[LL_SHOWN_BYTES];
    size_t n_text;
    json_error_t error;
    int rc = ll_file_read(&text, &n_text, path, max_bytes);

    if (rc < 0)
        return rc;
    path = ll_path_tail(path);
    json_t *json = json_loadb(text, n_text, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (json == NULL)
        return LL_ERR(LL_E_INVAL, "%s: not JSON at byte %d, line %d, column %d: %s", path,
                      error.position, error.line, error.column, ll_shown(shown, error.text));
    if (!json_is_object(json)) {
        json_decref(json);
        return LL_ERR(LL_E_INVAL, "%s: holds JSON, but not an object", path);
    }
    *out = json;
    return 0;
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* NULL where the field is absent or null. */
static const json_t *field(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return value == NULL || json_is_null(value) ? NULL : value;
}

static int wrong_type(const json_t *value, const char *where, const char *key, const char *wanted)
{
    return LL_ERR(LL_E_INVAL, "%s%s is %s, must be %s", where, key, type_name(value), wanted);
}

int ll_jsonfile_u64(uint64_t *out, const json_t *object, const char *where, const char *key,
                    uint64_t min, uint64_t max)
{
    const json_t *value = field(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(value, where, key, "an integer");
    json_int_t n = json_integer_value(value);
    if (n < 0 || (uint64_t)n < min || (uint64_t)n > max)
        return LL_ERR(LL_E_INVAL, "%s%s is %lld, must be %llu .. %llu", where, key, (long long)n,
                      (unsigned long long)min, (unsigned long long)max);
    *out = (uint64_t)n;
    return 1;
}

int ll_jsonfile_u32(uint32_t *out, const json_t *object, const char *where, const char *key,
                    uint32_t min, uint32_t max)
{
    uint64_t wide = 0;
    int found = ll_jsonfile_u64(&wide, object, where, key, min, max);

    if (found == 1)
        *out = (uint32_t)wide;
    return found;
}

int ll_jsonfile_f64(double *out, const json_t *object, const char *where, const char *key,
                    double min, double max)
{
    const json_t *value = field(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_number(value))
        return wrong_type(value, where, key, "a number");
    double x = json_number_value(value);
    if (!isfinite(x) || x < min || x > max)
        return LL_ERR(LL_E_INVAL, "%s%s is %g, must be %g .. %g", where, key, x, min, max);
    *out = x;
    return 1;
}

int ll_jsonfile_bool(bool *out, const json_t *object, const char *where, const char *key)
{
    const json_t *value = field(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_boolean(value))
        return wrong_type(value, where, key, "true or false");
    *out = json_is_true(value);
    return 1;
}

int ll_jsonfile_string(const char **out, const json_t *object, const char *where, const char *key)
{
    const json_t *value = field(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_string(value))
        return wrong_type(value, where, key, "a string");
    *out = json_string_value(value);
    return 1;
}

int ll_jsonfile_object(const json_t **out, const json_t *object, const char *where, const char *key)
{
    const json_t *value = field(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_object(value))
        return wrong_type(value, where, key, "an object");
    *out = value;
    return 1;
}

int ll_jsonfile_required(int found, const char *where, const char *key)
{
    if (found == 0)
        return LL_ERR(LL_E_INVAL, "%s%s is missing", where, key);
    return found < 0 ? found : 0;
}

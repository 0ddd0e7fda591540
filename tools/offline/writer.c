/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/offline/writer.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *dtype_name(enum ll_dtype dtype)
{
    switch (dtype) {
    case LL_DTYPE_F32:
        return "F32";
    case LL_DTYPE_BF16:
        return "BF16";
    case LL_DTYPE_F16:
        return "F16";
    case LL_DTYPE_E4M3:
        return "F8_E4M3";
    }
    return "?";
}

/* W2. Among equals by name, so that the same tensors give the same file. */
static int compare_tensors(const void *a, const void *b)
{
    const struct writer_tensor *x = a, *y = b;
    uint32_t wide = ll_dtype_bytes(x->dtype), other = ll_dtype_bytes(y->dtype);

    return wide != other ? (wide > other ? -1 : 1) : strcmp(x->name, y->name);
}

/* The header's text; offsets are set relative to the data. Names are known to need no escapes. */
static char *make_header(struct writer_tensor *tensors, uint32_t n, size_t *n_bytes)
{
    char *text = malloc(128 + (size_t)n * (sizeof(tensors->name) + 128));
    size_t at = 0;
    uint64_t data = 0;

    if (text == NULL)
        return NULL;
    at += (size_t)sprintf(text + at, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < n; i++) {
        struct writer_tensor *t = &tensors[i];
        t->offset = data;
        data += t->size_bytes;
        at += (size_t)sprintf(text + at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                              dtype_name(t->dtype));
        if (t->rows != 0)
            at += (size_t)sprintf(text + at, "%u,", t->rows);
        at += (size_t)sprintf(text + at, "%u],\"data_offsets\":[%llu,%llu]}", t->cols,
                              (unsigned long long)t->offset, (unsigned long long)data);
    }
    text[at++] = '}';
    while (at % 8 != 0)
        text[at++] = ' ';
    *n_bytes = at;
    return text;
}

static int put_at(struct writer *writer, const void *bytes, size_t n, uint64_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t wrote =
            pwrite(writer->fd, (const char *)bytes + done, n - done, (off_t)(at + done));
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return LL_ERRNO("%s: write at byte %llu of %llu", writer->path,
                            (unsigned long long)(at + done),
                            (unsigned long long)writer->size_bytes);
        done += (size_t)wrote;
    }
    return 0;
}

int writer_open(struct writer *writer, const char *path, struct writer_tensor *tensors, uint32_t n)
{
    size_t n_header = 0;
    uint64_t data = 0;

    *writer = (struct writer){.fd = -1};
    snprintf(writer->path, sizeof(writer->path), "%s", path);
    qsort(tensors, n, sizeof(*tensors), compare_tensors);
    char *header = make_header(tensors, n, &n_header);
    if (header == NULL)
        return LL_ERR(-ENOMEM, "%s: no memory for the header", path);
    for (uint32_t i = 0; i < n; i++) {
        tensors[i].offset += 8 + n_header;
        data += tensors[i].size_bytes;
    }
    writer->size_bytes = 8 + n_header + data;

    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)n_header >> (8 * i));
    int rc = 0;
    writer->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->fd < 0)
        rc = LL_ERRNO("%s", path);
    /* W1. Some file systems cannot promise; then the write that fails tells. */
    if (rc == 0 && fallocate(writer->fd, 0, 0, (off_t)writer->size_bytes) < 0 &&
        errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
        rc = LL_ERRNO("%s: no room for %llu bytes", path, (unsigned long long)writer->size_bytes);
    if (rc == 0)
        rc = put_at(writer, length, sizeof(length), 0);
    if (rc == 0)
        rc = put_at(writer, header, n_header, sizeof(length));
    free(header);
    return rc;
}

int writer_put(struct writer *writer, const struct writer_tensor *tensor, uint64_t at,
               const void *bytes, size_t n)
{
    return put_at(writer, bytes, n, tensor->offset + at);
}

int writer_close(struct writer *writer)
{
    int rc = 0;

    if (writer->fd < 0)
        return 0;
    if (fsync(writer->fd) < 0)
        rc = LL_ERRNO("%s: fsync", writer->path);
    if (close(writer->fd) < 0 && rc == 0)
        rc = LL_ERRNO("%s: close", writer->path);
    writer->fd = -1;
    return rc;
}

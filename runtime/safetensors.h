/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/safetensors.h - the header of one .safetensors file, read as hostile input.
 *
 * File: u64 little-endian N | N bytes of JSON | data. The JSON is one object: name -> {dtype,
 * shape, data_offsets [begin, end) from the start of the data}, and optionally __metadata__, string
 * to string. What holds after a successful read:
 *   S1  names are unique, UTF-8, at most LL_SAFETENSORS_NAME_MAX bytes
 *   S2  end - begin is exactly what dtype and shape need, computed without overflow
 *   S3  sorted by begin the tensors cover the data without hole or overlap
 *   S4  the file's size is exactly 8 + N + the last end
 * The parser knows only this grammar: no recursion, no generic tree, memory is one entry a tensor.
 * Format: the README of huggingface/safetensors. */
#ifndef RUNTIME_SAFETENSORS_H
#define RUNTIME_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

/* The format allows 100,000,000; the largest Llama with FP8 scales needs 1 MB. */
#define LL_SAFETENSORS_HEADER_MAX  (16u << 20)
#define LL_SAFETENSORS_TENSORS_MAX 65536u
#define LL_SAFETENSORS_NAME_MAX    127u
#define LL_SAFETENSORS_RANK_MAX    8u

struct ll_safetensors_entry {
    char name[LL_SAFETENSORS_NAME_MAX + 1];
    char dtype[12]; /* as written: "BF16", "F8_E4M3" */
    uint32_t n_dims;
    uint64_t dims[LL_SAFETENSORS_RANK_MAX];
    uint64_t offset; /* from the start of the file */
    uint64_t size_bytes;
    uint32_t header_at; /* offset in the file of the name, for error texts */
};

struct ll_safetensors {
    struct ll_safetensors_entry *entry; /* in file order of the data */
    uint32_t n_entries;
    uint64_t file_bytes, mtime_ns;
};

/* Reads and checks the header. LL_E_INVAL names file, tensor, field and offset; -ENOENT, ... from
 * the system. On success the caller frees with _free. */
int ll_safetensors_read(struct ll_safetensors *out, const char *path);
void ll_safetensors_free(struct ll_safetensors *safetensors);

/* The same for a header already in memory: header[0 .. n_header) stood at byte 8 of a file of
 * file_bytes. path only names it in errors. */
int ll_safetensors_parse(struct ll_safetensors *out, const char *path, const char *header,
                         size_t n_header, uint64_t file_bytes);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/jsonfile.h - small JSON files read as hostile input, with errors that name the field.
 *
 * A file over its size limit, a duplicate key, bad UTF-8, a number out of range or a wrong type is
 * refused as LL_E_INVAL; the text names file, field, what was found and what is allowed. For JSON
 * files of up to a few MiB; safetensors headers have a parser of their own. */
#ifndef RUNTIME_JSONFILE_H
#define RUNTIME_JSONFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

/* Reads a whole regular file. *bytes is NUL-terminated behind its n_bytes; the caller frees it.
 * -ENOENT ..., LL_E_INVAL: not a regular file, or more than max_bytes. */
int ll_file_read(char **bytes, size_t *n_bytes, const char *path, size_t max_bytes);

/* Reads a JSON object; the caller gives *out back with json_decref. */
int ll_jsonfile_read(json_t **out, const char *path, size_t max_bytes);

/* A field of an object. where names the object in errors: "/m/config.json: rope_scaling.".
 * All return 1 and *out when the field is there, 0 and leave *out when it is absent or null, and
 * LL_E_INVAL when its type or range is wrong. */
int ll_jsonfile_u64(uint64_t *out, const json_t *object, const char *where, const char *key,
                    uint64_t min, uint64_t max);
int ll_jsonfile_u32(uint32_t *out, const json_t *object, const char *where, const char *key,
                    uint32_t min, uint32_t max);
/* An integer or a real, finite, min <= x <= max. */
int ll_jsonfile_f64(double *out, const json_t *object, const char *where, const char *key,
                    double min, double max);
int ll_jsonfile_bool(bool *out, const json_t *object, const char *where, const char *key);
/* *out points into the document. */
int ll_jsonfile_string(const char **out, const json_t *object, const char *where, const char *key);
int ll_jsonfile_object(const json_t **out, const json_t *object, const char *where,
                       const char *key);

/* found as returned above: turns "absent" into LL_E_INVAL. */
int ll_jsonfile_required(int found, const char *where, const char *key);

/* The last 200 bytes of a long path, so that an error text has room for what is wrong. */
const char *ll_path_tail(const char *path);

/* Printable copy of a hostile name for an error text: other bytes as '?', long ones cut. */
#define LL_SHOWN_BYTES 132
const char *ll_shown(char out[LL_SHOWN_BYTES], const char *name);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/tokimage.h"

#include "base/err.h"
#include "client/text/image.h"
#include "ll/client.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Llama 3's tokenizer.json is 9 MB and takes 0.3 s; a hundred times that is no tokenizer. */
#define CHILD_MEMORY_BYTES (2ull << 30)
#define CHILD_CPU_S        30
#define IMAGE_BYTES_MAX    (512ull << 20)

struct child_error {
    int code;
    char text[LL_ERR_TEXT_BYTES];
};

/* ---- the child -------------------------------------------------------------------------------*/

static void limit(int resource, uint64_t value)
{
    struct rlimit limits = {.rlim_cur = value, .rlim_max = value};

    setrlimit(resource, &limits); /* lowering needs no right */
}

static void limit_child(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    limit(RLIMIT_CPU, CHILD_CPU_S);
    limit(RLIMIT_FSIZE, IMAGE_BYTES_MAX);
    limit(RLIMIT_NPROC, 0);
    limit(RLIMIT_CORE, 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* shadow memory is huge */
    limit(RLIMIT_AS, CHILD_MEMORY_BYTES);
#endif
}

_Noreturn static void run_child(const char *directory, int file, int errors)
{
    struct child_error error = {0};
    void *image = NULL;
    size_t n_bytes = 0;

    limit_child();
    error.code = ll_tokenizer_image_build(directory, &image, &n_bytes);
    for (size_t at = 0; error.code == 0 && at < n_bytes;) {
        ssize_t n = write(file, (const char *)image + at, n_bytes - at);
        if (n < 0 && errno != EINTR)
            error.code = LL_ERRNO("write of the tokenizer image");
        at += n > 0 ? (size_t)n : 0;
    }
    if (error.code < 0) {
        snprintf(error.text, sizeof(error.text), "%s", ll_err_text());
        if (write(errors, &error, sizeof(error)) < 0)
            _exit(2);
    }
    _exit(error.code < 0 ? 1 : 0);
}

/* ---- the parent ------------------------------------------------------------------------------*/

static void close_both(struct ll_tokimage *job)
{
    if (job->file >= 0)
        close(job->file);
    if (job->errors >= 0)
        close(job->errors);
    *job = (struct ll_tokimage){.file = -1, .errors = -1};
}

int ll_tokimage_begin(struct ll_tokimage *out, const char *directory)
{
    int ends[2];

    *out = (struct ll_tokimage){.file = -1, .errors = -1};
    if (pipe2(ends, O_CLOEXEC) < 0)
        return LL_ERRNO("pipe");
    out->errors = ends[0];
    out->file = memfd_create("llring-tokenizer", MFD_CLOEXEC);
    pid_t child = out->file < 0 ? -1 : fork();
    if (child == 0) {
        close(ends[0]);
        run_child(directory, out->file, ends[1]);
    }
    int rc = child < 0 ? LL_ERRNO("the process that builds the tokenizer image") : 0;
    close(ends[1]);
    if (rc < 0)
        close_both(out);
    else
        out->child = child;
    return rc;
}

/* Waits for the child; its own words, or what became of it. */
static int reap(struct ll_tokimage *job)
{
    struct child_error error;
    int status;
    ssize_t n;

    do {
        n = read(job->errors, &error, sizeof(error)); /* 0 once the child has closed it */
    } while (n < 0 && errno == EINTR);
    while (waitpid(job->child, &status, 0) < 0)
        if (errno != EINTR)
            return LL_ERRNO("waitpid");
    job->child = 0;
    if (n == sizeof(error) && error.code < 0) {
        error.text[sizeof(error.text) - 1] = 0;
        return LL_ERR(error.code, "%s", error.text);
    }
    if (WIFSIGNALED(status))
        return LL_ERR(LL_E_INVAL,
                      "the tokenizer cannot be read: the process that tried was ended by signal %d "
                      "(it may take %d s and %llu MiB)",
                      WTERMSIG(status), CHILD_CPU_S,
                      (unsigned long long)(CHILD_MEMORY_BYTES >> 20));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return LL_ERR(LL_E_INVAL, "the tokenizer cannot be read: the process that tried failed");
    return 0;
}

static int copy_image(const struct ll_tokimage *job, int numa_node, struct ll_region *out)
{
    struct ll_region region;
    struct stat st;

    if (fstat(job->file, &st) < 0)
        return LL_ERRNO("fstat of the tokenizer image");
    if (st.st_size < (off_t)sizeof(struct ll_image) || (uint64_t)st.st_size > IMAGE_BYTES_MAX)
        return LL_ERR(LL_E_INVAL, "the tokenizer image has %lld bytes", (long long)st.st_size);
    int rc = ll_region_create(&region, "llring-tok", ((size_t)st.st_size + 4095) & ~(size_t)4095,
                              numa_node);
    if (rc < 0)
        return rc;
    for (off_t at = 0; at < st.st_size;) {
        ssize_t n = pread(job->file, (char *)region.base + at, (size_t)(st.st_size - at), at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = LL_ERR(-EIO, "the tokenizer image ends at byte %lld of %lld", (long long)at,
                        (long long)st.st_size);
            goto free_region;
        }
        at += n;
    }
    /* A region is whole pages: the zeros up to its end belong to the image from now on. */
    ((struct ll_image *)region.base)->bytes = region.size_bytes;
    rc = ll_tokenizer_image_check(region.base, region.size_bytes);
    if (rc < 0) {
        ll_err_prefix(rc, "the tokenizer image that was built is not sound");
        goto free_region;
    }
    rc = ll_region_seal_const(&region); /* a client checks it once */
    if (rc < 0)
        goto free_region;
    *out = region;
    return 0;

free_region:
    ll_region_free(&region);
    return rc;
}

int ll_tokimage_finish(struct ll_tokimage *job, int numa_node, struct ll_region *out)
{
    int rc = reap(job);

    if (rc == 0)
        rc = copy_image(job, numa_node, out);
    close_both(job);
    return rc;
}

void ll_tokimage_cancel(struct ll_tokimage *job)
{
    if (job->child > 0) {
        kill(job->child, SIGKILL);
        while (waitpid(job->child, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    close_both(job);
}

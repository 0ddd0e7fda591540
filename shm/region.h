/* SPDX-License-Identifier: Apache-2.0 */
/* shm/region.h - shared memory made, sealed, sent and mapped.
 *
 * The runtime makes every region as an anonymous memfd (4 KiB pages, never hugetlb: a hole punched
 * into shared huge pages is a SIGBUS), so nothing outlives the processes. The order of a hand-over
 * is law:
 *   client-written (REQ):   make, seal SHRINK|GROW, send, peer maps and touches every page, seal
 *                           FUTURE_WRITE|SEAL, verify, verify that every page is there, only then
 *                           map pages and mlock
 *   runtime-written (INFO, STAT): make, map, seal all with FUTURE_WRITE, send
 *   the same for one peer (RSP): likewise; the peer maps it and touches every page, verify that
 *   constant (TOK): make, map, fill, unmap, seal all with WRITE, send. FUTURE_WRITE lets the writer
 * go on through the mapping it has; only WRITE makes what a client has checked once stay so
 *   many-written (BELL):    make, map, seal SHRINK|GROW|SEAL, send; emptied at the end
 *
 * The kernel charges a page to the control group of who touches it first, until the last mapping
 * and descriptor are gone; what the seals keep a client from taking away the runtime cannot take
 * away either. So a client that never lets go would leave the runtime to pay, attachment for
 * attachment: that is why the client touches REQ and RSP, and the runtime only looks. BELL can have
 * holes, so the runtime gives its pages back. What a kept descriptor still costs the runtime is the
 * kernel's own: shm/README.md has the figure. */
#ifndef SHM_REGION_H
#define SHM_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ll_region {
    void *base;
    size_t size_bytes; /* a multiple of 4096 */
    int fd;            /* owned; -1 once closed */
};

/* Makes and maps a zeroed region read-write, bound to numa_node (-1: anywhere).
 * -ENOMEM, -EMFILE, ... from the system. */
int ll_region_create(struct ll_region *out, const char *name, size_t size_bytes, int numa_node);

/* Seals of the three kinds above. Each verifies with F_GET_SEALS; -EPERM where the peer was
 * quicker. */
int ll_region_seal_size(const struct ll_region *region);       /* SHRINK | GROW */
int ll_region_seal_size_final(const struct ll_region *region); /* SHRINK | GROW | SEAL */
int ll_region_seal_written(const struct ll_region *region);    /* + FUTURE_WRITE | SEAL */

/* Nobody writes this region again, its maker included: the writable mapping becomes a read-only
 * one, at another address. Sealed SHRINK | GROW | WRITE | SEAL. */
int ll_region_seal_const(struct ll_region *region);

/* Touches every page (an error, never SIGBUS) and locks them as far as RLIMIT_MEMLOCK allows;
 * *locked says whether it did. */
int ll_region_populate(const struct ll_region *region, bool *locked);

/* Are all its pages there, whoever touched them? Holes cannot come back once it is sealed. */
bool ll_region_is_whole(const struct ll_region *region);

/* Gives the pages back, whoever still maps the region: they read as zeros from now on, and who
 * writes pays. Not of a region sealed with FUTURE_WRITE: -EPERM. */
int ll_region_empty(const struct ll_region *region);

/* Client side: maps a received descriptor after checking its size and that it can neither shrink
 * nor grow. Not inherited over fork. LL_E_PROTOCOL when the runtime sent something else. */
int ll_region_map(struct ll_region *out, int fd, size_t size_bytes, bool is_writable);

/* The same, of a constant region: LL_E_PROTOCOL too when anybody could still write it. */
int ll_region_map_const(struct ll_region *out, int fd, size_t size_bytes);

void ll_region_close_fd(struct ll_region *region);
/* Unmaps and closes; an all-zero region with fd -1 is accepted. */
void ll_region_free(struct ll_region *region);

/* ---- messages with descriptors over a SOCK_SEQPACKET socket --------------------------------*/

/* Sends one message whole, with n_fds descriptors. 0, -EAGAIN, -EPIPE, ... */
int ll_msg_send(int socket, const void *message, size_t size_bytes, const int *fds, int n_fds);

/* Receives one message of at most capacity bytes without a control buffer, so descriptors that the
 * peer attaches are dropped by the kernel (rule R1). Bytes, 0 at end, negative code; LL_E_PROTOCOL
 * when the head is not ours or the message was cut. */
int ll_msg_recv(int socket, void *message, size_t capacity);

/* The client's form: also takes up to n_fds_max descriptors (close-on-exec), *n_fds of them. On
 * any error all received ones are closed. */
int ll_msg_recv_fds(int socket, void *message, size_t capacity, int *fds, int n_fds_max,
                    int *n_fds);

#endif

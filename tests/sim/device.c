/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/device.c - the fake backend in the simulation's time, with a device's faults.
 *
 * Work is handed to the fake backend at submit and polled when its time has come; page copies are
 * handed on when theirs has, so that who does not wait for a copy reads old pages. */
#include "tests/sim/sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COPIES_MAX 4096u

static struct sim_device *of(struct ll_device *device)
{
    return (struct sim_device *)(void *)device;
}

int sim_device_open(struct sim_device *device, const struct ll_backend_options *options,
                    const struct ll_model_shape *shape, struct ll_backend_caps *caps)
{
    struct ll_text error = {""};

    device->fake = ll_backend_fake();
    device->n_rows_max = options->n_rows_max;
    device->row = calloc(options->n_rows_max, sizeof(*device->row));
    device->copy = calloc(COPIES_MAX, sizeof(*device->copy));
    device->copy_due_ns = calloc(COPIES_MAX, sizeof(*device->copy_due_ns));
    device->cell = calloc(options->n_pages, 1);
    device->host_cell = calloc(options->n_host_pages + 1, 1);
    int rc = device->row == NULL || device->copy == NULL || device->copy_due_ns == NULL ||
                     device->cell == NULL || device->host_cell == NULL
                 ? -ENOMEM
                 : 0;
    if (rc == 0)
        rc = device->fake->open(&device->inner, options, shape, caps, &error);
    if (rc < 0)
        sim_device_close(device);
    return rc;
}

void sim_device_close(struct sim_device *device)
{
    if (device->inner != NULL)
        device->fake->close(device->inner);
    free(device->row);
    free(device->copy);
    free(device->copy_due_ns);
    free(device->cell);
    free(device->host_cell);
    device->cell = device->host_cell = NULL;
    device->inner = NULL;
    device->row = NULL;
    device->copy = NULL;
    device->copy_due_ns = NULL;
}

static int fail(struct sim_device *device, const char *what, struct ll_text *error)
{
    snprintf(error->s, sizeof(error->s), "%s", what);
    device->failed = LL_E_BACKEND;
    return device->failed;
}

/* Hands on the copies that are due; true: all is well. */
static bool go_on_copying(struct sim_device *device, struct ll_text *error)
{
    while (device->n_forwarded < device->n_copies) {
        uint64_t at = device->n_forwarded % COPIES_MAX;
        if (device->copy_due_ns[at] > *device->now_ns)
            break;
        if (device->fake->copy(device->inner, &device->copy[at], 1, error) < 0) {
            device->failed = LL_E_BACKEND;
            return false;
        }
        device->n_forwarded++;
    }
    return true;
}

static int64_t sim_submit(struct ll_device *opaque, const struct ll_batch *batch,
                          struct ll_text *error)
{
    struct sim_device *device = of(opaque);

    if (device->failed != 0)
        return fail(device, "the device has failed before", error);
    if (device->fault == SIM_FAULT_SUBMIT)
        return fail(device, "submit fails, as asked for", error);
    if (!go_on_copying(device, error))
        return device->failed;
    if (device->on_submit != NULL)
        device->on_submit(device->context, batch);
    int64_t ticket = device->fake->submit(device->inner, batch, error);
    if (ticket < 0)
        return ticket;
    uint64_t begin_ns = ll_max_u64(*device->now_ns, device->last_done_ns);
    device->last_done_ns = begin_ns + device->step_ns(device->context, batch);
    device->flight[ticket % LL_ENGINE_DEPTH_MAX].done_ns = device->last_done_ns;
    device->n_submitted = ticket;
    return ticket;
}

static int sim_poll(struct ll_device *opaque, int64_t ticket, struct ll_result *out,
                    struct ll_text *error)
{
    struct sim_device *device = of(opaque);

    if (device->failed != 0)
        return fail(device, "the device has failed before", error);
    if (device->fault == SIM_FAULT_POLL)
        return fail(device, "poll fails, as asked for", error);
    if (!go_on_copying(device, error))
        return device->failed;
    if (device->fault == SIM_FAULT_HANG ||
        *device->now_ns < device->flight[ticket % LL_ENGINE_DEPTH_MAX].done_ns)
        return 0;
    int rc = device->fake->poll(device->inner, ticket, out, error);
    if (rc > 0 && device->is_nan_due) {
        memcpy(device->row, out->rows, out->n_rows * sizeof(*device->row));
        device->row[0].status = LL_ROW_NAN;
        device->row[0].token[0] ^= 1; /* whatever it is, nobody may see it */
        out->rows = device->row;
        device->is_nan_due = false;
        device->n_nan++;
    }
    return rc;
}

static int64_t sim_copy(struct ll_device *opaque, const struct ll_copy *list, uint32_t n,
                        struct ll_text *error)
{
    struct sim_device *device = of(opaque);

    if (device->n_copies - device->n_forwarded + n > COPIES_MAX) {
        snprintf(error->s, sizeof(error->s), "more than %u page copies wait", COPIES_MAX);
        return LL_E_AGAIN;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = device->n_copies++ % COPIES_MAX;
        device->last_copy_ns = ll_max_u64(*device->now_ns, device->last_copy_ns) + device->copy_ns;
        device->copy[at] = list[i];
        if (device->on_copy != NULL)
            device->on_copy(device->context, &list[i]);
        device->copy_due_ns[at] = device->last_copy_ns;
    }
    return (int64_t)device->n_copies;
}

static int sim_copied(struct ll_device *opaque, int64_t ticket, struct ll_text *error)
{
    struct sim_device *device = of(opaque);

    if (!go_on_copying(device, error))
        return device->failed;
    /* Copies are handed on in order, so the numbers are the same on both sides. */
    return (uint64_t)ticket <= device->n_forwarded
               ? device->fake->copied(device->inner, ticket, error)
               : 0;
}

const struct ll_backend *sim_device_backend(void)
{
    static const struct ll_backend backend = {
        .abi = LL_BACKEND_ABI,
        .name = "sim",
        .submit = sim_submit,
        .poll = sim_poll,
        .copy = sim_copy,
        .copied = sim_copied,
    };

    return &backend;
}

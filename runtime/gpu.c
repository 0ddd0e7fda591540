/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/gpu.h"

#include "base/err.h"
#include "base/log.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Of NVML's interface, stable since version 2 of its entry points; every call gives 0 for success.
 */
#define TEMPERATURE_GPU 0

struct nvml_utilization {
    unsigned gpu, memory; /* percent of the last sampling period */
};

struct nvml_memory {
    unsigned long long total, free, used;
};

struct ll_gpu {
    struct ll_control *control;
    struct ll_stats *stats;
    void *library, *device;
    int timer_fd;
    int (*shutdown)(void);
    int (*utilization)(void *device, struct nvml_utilization *out);
    int (*memory)(void *device, struct nvml_memory *out);
    int (*power_mw)(void *device, unsigned *out);
    int (*temperature)(void *device, int sensor, unsigned *out);
};

/* Figures that cannot be had this time keep their last value. */
static void read_figures(struct ll_gpu *gpu)
{
    struct nvml_utilization utilization;
    struct nvml_memory memory;
    unsigned value;

    if (gpu->utilization(gpu->device, &utilization) == 0)
        ll_stat_set(&gpu->stats->gpu_utilization_percent, utilization.gpu);
    if (gpu->memory(gpu->device, &memory) == 0) {
        ll_stat_set(&gpu->stats->gpu_memory_used_bytes, memory.used);
        ll_stat_set(&gpu->stats->gpu_memory_total_bytes, memory.total);
    }
    if (gpu->power_mw(gpu->device, &value) == 0)
        ll_stat_set(&gpu->stats->gpu_power_mw, value);
    if (gpu->temperature(gpu->device, TEMPERATURE_GPU, &value) == 0)
        ll_stat_set(&gpu->stats->gpu_temperature_celsius, value);
}

static void on_timer(void *context, int fd, uint32_t events)
{
    uint64_t n;

    (void)events;
    if (read(fd, &n, sizeof(n)) == sizeof(n))
        read_figures(context);
}

/* Opens the library and finds the device; false where either is not there. */
static bool find_device(struct ll_gpu *gpu, const char *pci)
{
    int (*init)(void), (*find)(const char *pci, void **device);
    const struct {
        void **to;
        const char *name;
    } entries[] = {
        {(void **)&init, "nvmlInit_v2"},
        {(void **)&find, "nvmlDeviceGetHandleByPciBusId_v2"},
        {(void **)&gpu->shutdown, "nvmlShutdown"},
        {(void **)&gpu->utilization, "nvmlDeviceGetUtilizationRates"},
        {(void **)&gpu->memory, "nvmlDeviceGetMemoryInfo"},
        {(void **)&gpu->power_mw, "nvmlDeviceGetPowerUsage"},
        {(void **)&gpu->temperature, "nvmlDeviceGetTemperature"},
    };

    gpu->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (gpu->library == NULL)
        return false;
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++)
        if ((*entries[i].to = dlsym(gpu->library, entries[i].name)) == NULL)
            return false;
    if (init() != 0)
        return false;
    if (find(pci, &gpu->device) == 0)
        return true;
    gpu->shutdown();
    return false;
}

static int start_timer(struct ll_gpu *gpu)
{
    const struct itimerspec each_second = {.it_interval = {.tv_sec = 1}, .it_value = {.tv_sec = 1}};

    gpu->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (gpu->timer_fd < 0 || timerfd_settime(gpu->timer_fd, 0, &each_second, NULL) < 0)
        return LL_ERRNO("the GPU figures' timer");
    return ll_control_watch(gpu->control, gpu->timer_fd, EPOLLIN, on_timer, gpu);
}

int ll_gpu_open(struct ll_gpu **out, struct ll_control *control, struct ll_stat_region *stat,
                const char *pci)
{
    *out = NULL;
    if (pci[0] == 0)
        return 0;
    struct ll_gpu *gpu = calloc(1, sizeof(*gpu));
    if (gpu == NULL)
        return LL_ERR(-ENOMEM, "no memory for the GPU's figures");
    gpu->control = control;
    gpu->stats = &stat->v;
    gpu->timer_fd = -1;
    if (!find_device(gpu, pci)) {
        ll_debug("no figures of the GPU: libnvidia-ml.so.1 is not there or does not know it");
        if (gpu->library != NULL)
            dlclose(gpu->library);
        free(gpu);
        return 0;
    }
    read_figures(gpu);
    ll_stat_show_gpu(stat);
    int rc = start_timer(gpu);
    if (rc < 0) {
        ll_gpu_close(gpu);
        return rc;
    }
    *out = gpu;
    return 0;
}

void ll_gpu_close(struct ll_gpu *gpu)
{
    if (gpu == NULL)
        return;
    if (gpu->timer_fd >= 0) {
        ll_control_unwatch(gpu->control, gpu->timer_fd);
        close(gpu->timer_fd);
    }
    gpu->shutdown();
    dlclose(gpu->library);
    free(gpu);
}

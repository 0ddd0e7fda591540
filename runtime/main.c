/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/main.c - llringd. Everything it does is in server.c; what it can be told in config.c. */
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/config.h"
#include "runtime/server.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    static struct ll_config config;
    int rc = ll_config_read(&config, argc, argv);

    if (rc < 0) {
        fprintf(stderr, "llringd: %s\n", ll_err_text());
        return rc == LL_E_INVAL ? 2 : 1;
    }
    if (config.wants_help) {
        ll_config_help(stdout);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (config.wants_version) {
        printf("llringd %d.%d.%d\n", LL_VERSION_MAJOR, LL_VERSION_MINOR, LL_VERSION_PATCH);
        return 0;
    }
    if (config.wants_print) {
        ll_config_print(&config, stdout);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    ll_log_set_level((enum ll_log_level)config.log_level);
    return ll_server_run(&config);
}

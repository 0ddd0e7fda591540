/* SPDX-License-Identifier: Apache-2.0 */
#include "ll/client.h"

#include <stdio.h>

int main(void)
{
    printf("llringd %d.%d.%d\n", LL_VERSION_MAJOR, LL_VERSION_MINOR, LL_VERSION_PATCH);
    return 0;
}

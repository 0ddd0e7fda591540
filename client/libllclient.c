/* SPDX-License-Identifier: Apache-2.0 */
/* client/libllclient.c - the shared library's own translation unit: everything else comes whole
 * from the static libraries, filtered by libllclient.map. */
#include "ll/client.h"

#include <assert.h>

static_assert(LL_VERSION_MAJOR == 0, "SOVERSION in CMakeLists.txt follows the major version");

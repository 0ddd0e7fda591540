/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_clients_cuda.c - test_clients.c on a GPU, with 64 clients. Skipped without one. */
#define ON_CUDA 1
#include "tests/e2e/test_clients.c"

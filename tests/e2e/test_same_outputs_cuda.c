/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_same_outputs_cuda.c - test_same_outputs.c on a GPU, deterministic. Skipped without
 * one. */
#define ON_CUDA 1
#include "tests/e2e/test_same_outputs.c"

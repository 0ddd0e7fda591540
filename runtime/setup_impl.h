/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/setup_impl.h - what setup.c and setup_device.c share. */
#ifndef RUNTIME_SETUP_IMPL_H
#define RUNTIME_SETUP_IMPL_H

#include "runtime/setup.h"

/* Marks the error rc as one of the command line, for the exit status; gives rc back. */
int ll_setup_usage(struct ll_setup *setup, int rc);

#endif

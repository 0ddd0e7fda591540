/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/intake_impl.h - what intake*.c share; nobody else includes it.
 *
 *   intake.c          who has something: doorbells, sweeps, slots, clients come and go
 *   intake_request.c  one request, from its slot to WAITING */
#ifndef RUNTIME_INTAKE_IMPL_H
#define RUNTIME_INTAKE_IMPL_H

#include "runtime/intake.h"

/* The slot says SUBMITTED with the generation that is due. false: not now, the client's ring has no
 * room for the answers, or the turn has made enough sequences; a sweep tries again. */
bool ll_intake_take_slot(struct ll_intake *intake, struct ll_attachment *client, uint32_t index,
                         uint32_t gen, uint64_t now_ns);
/* Marks on a request, seen from its leader; one still being copied ends here, unless only some of
 * several choices were stopped, others in the next plan. */
void ll_intake_mark(struct ll_intake *intake, struct ll_seq *leader, uint64_t now_ns);
/* Copies and checks prompts, at most LL_INTAKE_BYTES_TURN; work done. */
uint32_t ll_intake_copy_prompts(struct ll_intake *intake, uint64_t now_ns);

#endif

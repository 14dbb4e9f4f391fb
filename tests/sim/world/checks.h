/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a failover may come to: the contract, point by point. */
#ifndef REMUS_WORLD_CHECKS_H
#define REMUS_WORLD_CHECKS_H

#include "remus.h"

#include <stdint.h>

/* What was promised at a moment. */
struct promises {
    uint64_t acked, said;
};

struct promises promises_now(void);
/* 4, 5: all that was acked and is not superseded is offered; what was said to
 * be committed is. */
void check_offers(const struct remus_checkpoint *cp, int count,
                  const struct promises *p);
/* 4, 5, 6: the disks of this host are checkpoint n.  `last`: in it nothing is
 * missing that the guest had its answer of. */
void check_promoted(int host, uint64_t n, int last);
/* 4: `n` was nobody's choice. */
void check_default(uint64_t n);
/* 11: no output was sent that this default takes back. */
void check_output(uint64_t n);
/* The disks of this host, as the guest that goes on there finds them. */
void check_look(int host);

/* Contract 4, of a checkpoint that is pinned on this backup. */
struct side;
void check_pin(struct side *s, uint64_t pin);

#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What either side says of a backup's journal that is full. */
#ifndef REMUS_FULL_H
#define REMUS_FULL_H

#include "remus.h"

struct remus_full {
    enum remus_role role; /* who says it */
    int pinned;           /* 1: a pin holds back commits */
    uint64_t pin;         /* its checkpoint; 0: not known */
    uint64_t committed, newest;
};

void remus_full_text(char text[REMUS_REASON_MAX], const struct remus_full *f);

#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What /proc/drbd says of one minor: the one way to ask a protocol D driver
 * that is not a checkpoint itself.
 *
 *    0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate D r-----
 *       ns:0 nr:0 dw:0 dr:664 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:b oos:0
 *
 * The letter is the protocol; StandAlone shows a blank.  `pe:` counts the
 * requests that the other side has not answered, barriers too.  Lines of a
 * resync may follow.
 */
#ifndef REMUS_MINOR_H
#define REMUS_MINOR_H

#define REMUS_PROC_DRBD "/proc/drbd"

struct remus_minor {
    int connected;         /* cs:Connected */
    int stand_alone;       /* cs:StandAlone */
    int both_primary;      /* ro:Primary/Primary */
    char protocol;         /* its letter; 0: none is shown */
    unsigned long pending; /* pe: */
    char state[32];        /* cs: and ro: as they stand there, for messages */
    char roles[40];
};

/*
 * Read the state of `minor` from `path`.  A short read of a file in memory.
 * 0; -ENXIO the minor is not there, or not configured; -ENOENT no such file
 * (no driver), and others of open(2): without a text.
 */
int remus_minor_read(const char *path, unsigned int minor,
                     struct remus_minor *out);

#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The contract; see checks.h. */
#include "checks.h"

#include <string.h>

#include "oracle.h"
#include "shared.h"
#include "sched.h"
#include "sides.h"

typedef unsigned long long ull;

static int offered(const struct remus_checkpoint *cp, int count, uint64_t n)
{
    for (int i = 0; i < count; i++)
        if (cp[i].epoch == n)
            return 1;
    return 0;
}

struct promises promises_now(void)
{
    return (struct promises){oracle_newest_acked(), oracle_newest_said()};
}

void check_offers(const struct remus_checkpoint *cp, int count,
                  const struct promises *p)
{
    uint64_t newest = 0, committed = 0, from = 0;
    for (int i = 0; i < count; i++) {
        const char *why =
            oracle_check_tag(cp[i].epoch, cp[i].tag, cp[i].tag_len);
        if (why)
            world_fail("contract 1: the tag of checkpoint %llu: %s",
                       (ull)cp[i].epoch, why);
        newest = cp[i].epoch;
        if (cp[i].flags & REMUS_CP_COMMITTED)
            committed = cp[i].epoch;
    }
    if (newest < p->acked)
        world_fail("contract 5: checkpoint %llu was acked, and the newest "
                   "that is offered is %llu",
                   (ull)p->acked, (ull)newest);
    from = committed;
    /* What went straight to the disks gave up what was there before, and the
     * checkpoint at its end is offered before it is committed. */
    if (!committed && program.inconsistent && count > 0)
        from = cp[0].epoch;
    for (uint64_t n = newest; n > from && n + 1000 > newest; n--)
        if (oracle_is_acked(n) && !offered(cp, count, n))
            world_fail("contract 4: checkpoint %llu was acked and is not "
                       "offered",
                       (ull)n);
    /* After a copy or a fail-back there is none yet; its base has a number. */
    if (committed && committed < p->said)
        world_fail("contract 3: checkpoint %llu was said to be committed, "
                   "and %llu is",
                   (ull)p->said, (ull)committed);
}

void check_pin(struct side *s, uint64_t pin)
{
    struct remus_checkpoint cp[64] = {REMUS_INIT(remus_checkpoint)};
    struct remus_status st = REMUS_INIT(remus_status);
    int n = remus_backup_checkpoints(s->backup, cp, 64);
    /* A promote, decided or done, ends a pin. */
    if (remus_backup_status(s->backup, &st) ||
        st.state == REMUS_STATE_PROMOTED || st.state == REMUS_STATE_PROMOTING)
        return;
    for (int i = 0; i < n && i < 64; i++)
        if (cp[i].flags & REMUS_CP_COMMITTED && cp[i].epoch > pin)
            world_fail("contract 4: checkpoint %llu was committed, and %llu "
                       "was pinned",
                       (ull)cp[i].epoch, (ull)pin);
}

static void read_disks(int host, unsigned char **disks)
{
    static unsigned char buf[ORACLE_VOLUMES][ORACLE_BYTES];
    for (unsigned int v = 0; v < program.volumes; v++) {
        disks[v] = buf[v];
        remus_sim_read(side[host].sim, volume_paths[v], buf[v],
                       program.sizes[v], 0);
    }
}

/* Of what several wrote at once both sides have the same. */
static const char *check_same_sectors(int host, const unsigned char *disk)
{
    static unsigned char others[SHARED_BYTES];
    remus_sim_read(side[!host].sim, volume_paths[0], others, SHARED_BYTES, 0);
    return memcmp(others, disk, SHARED_BYTES)
               ? "of overlapping writes each side has another one last"
               : NULL;
}

void check_promoted(int host, uint64_t n, int last)
{
    unsigned char *disks[ORACLE_VOLUMES];
    read_disks(host, disks);
    const char *why = oracle_check(n, disks);
    if (why)
        world_fail("contract 4: promoted to %llu: %s", (ull)n, why);
    why = last ? oracle_check_last(disks) : NULL;
    if (last && !why && program.writers)
        why = check_same_sectors(host, disks[0]);
    if (why)
        world_fail("roles were switched, with checkpoint %llu: %s", (ull)n,
                   why);
}

void check_default(uint64_t n)
{
    const char *why = oracle_default(n);
    if (why)
        world_fail("contract 4: the default is checkpoint %llu: %s", (ull)n,
                   why);
}

void check_output(uint64_t n)
{
    if (n < oracle_newest_sent())
        world_fail("contract 11: output of checkpoint %llu was sent, and the "
                   "failover goes to %llu",
                   (ull)oracle_newest_sent(), (ull)n);
}

void check_look(int host)
{
    unsigned char *disks[ORACLE_VOLUMES];
    read_disks(host, disks);
    for (unsigned int v = 0; v < program.volumes; v++)
        oracle_found(v, disks[v]);
    oracle_found_all();
    if (!program.writers)
        return;
    shared_writers_gone();
    shared_found(0, SHARED_SECTORS, disks[0]);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The devices of one guest as a group; see devices.h. */
#include "devices.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "guest.h"
#include "oracle.h"
#include "sched.h"

#define KEPT 4096u

typedef unsigned long long ull;

/* What a toolstack's group is about. */
struct devices {
    struct side *s;
    remus_group *group;
    int begins;                       /* it waits by the descriptor */
    uint64_t memory, memory_complete; /* numbers of the memory's own */
    int memory_cancelled;
    uint64_t output;           /* ... of the NIC's own */
    uint64_t disk_of[KEPT];    /* of an output: its disks' checkpoint, */
    uint64_t memory_of[KEPT];  /* and its memory's */
    uint64_t permitted;        /* the disks' checkpoint up to which it
                                        may go, once that is committed */
    unsigned int permitted_of; /* ... on this branch */
    uint64_t newest;           /* checkpoint of the disks */
    uint64_t owes;             /* it is safe, and not committed yet */
    unsigned int owes_of;      /* ... on this branch */
};

/* ---- the memory ----------------------------------------------------------------- */

static int memory_postsuspend(void *opaque, const void *tag, size_t tag_len,
                              uint64_t *epoch)
{
    struct devices *d = opaque;
    (void)tag;
    (void)tag_len;
    if (world_chance(30))
        return -EIO;
    *epoch = ++d->memory;
    return 0;
}

static int is_cancelled(void *on)
{
    return ((struct devices *)on)->memory_cancelled;
}

static int memory_preresume(void *opaque, uint64_t epoch, int64_t timeout_ms)
{
    struct devices *d = opaque;
    uint64_t ms = world_below(world_chance(10) ? 9000 : 200);
    int late = timeout_ms >= 0 && ms > (uint64_t)timeout_ms;
    if (late)
        ms = (uint64_t)timeout_ms;
    if (!world_wait("a memory on its way", is_cancelled, d,
                    world_now() + ms * MS)) {
        d->memory_cancelled = 0;
        return -ECANCELED;
    }
    if (late)
        return -ETIMEDOUT;
    if (world_chance(12) || !side_up(backup_host))
        return -EPROTO;
    d->memory_complete = epoch;
    return 0;
}

static void memory_cancel(void *opaque)
{
    ((struct devices *)opaque)->memory_cancelled = 1;
}

static int memory_commit(void *opaque, uint64_t epoch)
{
    struct devices *d = opaque;
    if (epoch > d->memory_complete)
        world_fail("contract 11: memory %llu is committed, and complete is "
                   "%llu",
                   (ull)epoch, (ull)d->memory_complete);
    return 0;
}

/* ---- the NIC ------------------------------------------------------------------------ */

static int nic_postsuspend(void *opaque, const void *tag, size_t tag_len,
                           uint64_t *epoch)
{
    struct devices *d = opaque;
    (void)tag;
    (void)tag_len;
    *epoch = ++d->output;
    d->disk_of[*epoch % KEPT] = d->memory_of[*epoch % KEPT] = 0;
    return 0;
}

/* Without one it would have acked at once, and a commit of the checkpoint
 * before would be refused. */
static int nic_preresume(void *opaque, uint64_t epoch, int64_t timeout_ms)
{
    (void)opaque;
    (void)epoch;
    (void)timeout_ms;
    return 0;
}

static int nic_commit(void *opaque, uint64_t epoch)
{
    struct devices *d = opaque;
    uint64_t disk = d->disk_of[epoch % KEPT];
    uint64_t memory = d->memory_of[epoch % KEPT];
    if (!disk || !memory || memory > d->memory_complete)
        world_fail("contract 11: output of a checkpoint is let go of which "
                   "disks (%llu) or memory (%llu) are not safe",
                   (ull)disk, (ull)memory);
    if (program.commit_by == REMUS_COMMIT_BY_PRIMARY || d->owes) {
        d->permitted = disk;
        d->permitted_of = d->owes_of;
    }
    return 0;
}

/* Has the backup committed what may go then? */
static void let_go(struct devices *d)
{
    struct remus_status st = REMUS_INIT(remus_status);
    const struct side *s = d->s;
    if (!d->permitted || guest_cut_off(s, d->permitted_of) ||
        program.ack != REMUS_ACK_DURABLE ||
        remus_primary_status(s->primary, &st) ||
        st.state != REMUS_STATE_PROTECTED || st.committed_epoch < d->permitted)
        return;
    /* What it says of a backup that is no more can be lost. */
    if (!side_up(backup_host) || st.link_changed_ns <= side[backup_host].since)
        return;
    world_say("output of checkpoint %llu is sent", (ull)d->permitted);
    oracle_sent(d->permitted);
    d->permitted = 0;
}

/* ---- one checkpoint --------------------------------------------------------------- */

static const struct remus_device_ops memory_ops = {
    sizeof memory_ops, memory_postsuspend, memory_preresume, memory_commit,
    memory_cancel};
static const struct remus_device_ops nic_ops = {
    sizeof nic_ops, nic_postsuspend, nic_preresume, nic_commit, NULL};

/* Of a checkpoint of before, perhaps while the next is on its way. */
static void commit_group(struct devices *d)
{
    if (!d->owes)
        return;
    if (program.commit_by == REMUS_COMMIT_BY_PRIMARY &&
        !guest_cut_off(d->s, d->owes_of))
        oracle_committed(d->owes);
    uint64_t jumps = world_jumps();
    remus_group_commit(d->group);
    must_not_wait("a group's commit", jumps);
    d->owes = 0;
}

/* Number of the disks' checkpoint; 0: the group failed. */
static uint64_t close_epoch(struct devices *d, unsigned int branch)
{
    char tag[ORACLE_TAG];
    struct side *s = d->s;
    size_t tag_len = guest_make_tag(tag);
    int still = guest_suspend(s);
    uint64_t from = oracle_answered_state(), jumps = world_jumps();
    int rc = remus_group_postsuspend(d->group, tag, tag_len);
    must_not_wait("a group's postsuspend", jumps);
    const uint64_t *numbers = remus_group_epochs(d->group);
    uint64_t n = numbers[0];
    guest_resume(s, n <= d->newest || guest_cut_off(s, branch) ? 0 : n, still);
    if (n > d->newest && !guest_cut_off(s, branch)) {
        oracle_checkpoint(n, from, oracle_begun_state(), ORACLE_CALL);
        oracle_tagged(n, tag, tag_len);
    }
    d->newest = n > d->newest ? n : d->newest;
    if (rc)
        return 0;
    d->disk_of[numbers[2] % KEPT] = n;
    d->memory_of[numbers[2] % KEPT] = numbers[1];
    return n;
}

static int wait_for_group(struct devices *d)
{
    int ms = (int)world_below(8000);
    if (!d->begins || world_chance(2))
        return remus_group_preresume(d->group, ms);
    int rc = remus_group_preresume_begin(d->group, ms);
    struct pollfd p = {.fd = remus_group_fd(d->group), .events = POLLIN};
    if (rc)
        return rc;
    poll(&p, 1, ms + 1);
    return remus_group_preresume_finish(d->group);
}

static void take_checkpoint(struct devices *d)
{
    struct side *s = d->s;
    unsigned int branch = the_branch;
    int lost = guest_cut_off(s, branch), rc;
    uint64_t n = close_epoch(d, branch);
    if (!n) {
        pause_for(20 * MS);
        return;
    }
    if (d->owes)
        commit_group(d);
    while ((rc = wait_for_group(d)) && !s->stop && world_chance(2))
        ;
    if (rc) {
        world_say("checkpoint %llu of the group: %d %s", (ull)n, rc,
                  remus_last_error());
        remus_group_commit(d->group); /* at most of an older one */
        return;
    }
    if (lost)
        world_fail("contract 9: checkpoint %llu of a group whose primary was "
                   "failed away from is safe",
                   (ull)n);
    world_say("checkpoint %llu of the group is safe", (ull)n);
    if (!guest_cut_off(s, branch))
        guest_is_safe(n);
    if (program.late_commits && world_chance(3))
        return;
    d->owes = n;
    d->owes_of = branch;
    if (!world_chance(4))
        commit_group(d);
}

void devices_toolstack(struct side *s)
{
    /* One of each process: its threads may outlive this call. */
    static struct devices all[2];
    struct devices *d = &all[s - side];
    *d = (struct devices){.s = s, .begins = world_chance(2)};
    if (remus_group_open("guest0", &d->group))
        world_fail("no group: %s", remus_last_error());
    if (remus_group_add_primary(d->group, "disks", s->primary) != 0 ||
        remus_group_add_device(d->group, "memory", &memory_ops, d) != 1 ||
        remus_group_add_device(d->group, "nic", &nic_ops, d) != 2 ||
        remus_group_start(d->group, d->begins))
        world_fail("no group: %s", remus_last_error());
    while (!s->stop) {
        take_checkpoint(d);
        pause_for(world_below(program.checkpoint_ms * (uint64_t)MS + 1));
        let_go(d);
        if (program.sessions && world_chance(10))
            break;
    }
    remus_group_close(d->group);
}

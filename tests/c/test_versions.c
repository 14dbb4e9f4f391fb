/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs that were compiled with an older or a newer header than the
 * library: struct_size tells, and neither reads nor writes too much.
 */
#include <stddef.h>

#include "pair.h"

/* What a header that is to come might have: one member more. */
struct newer_config {
    struct remus_primary_config now;
    uint64_t wish;
};
struct newer_status {
    struct remus_status now;
    uint64_t news;
};
struct newer_volume {
    struct remus_volume now;
    uint64_t wish;
};
struct newer_checkpoint {
    struct remus_checkpoint now;
    uint64_t news;
};

/* How much of a struct an older header has: all up to a member. */
#define UP_TO(type, member) ((uint32_t)offsetof(struct type, member))

static struct remus_primary_config config_of(struct pair *t,
                                             const struct remus_volume *v)
{
    return (struct remus_primary_config){
        .struct_size = sizeof(struct remus_primary_config),
        .resource = "guest0",
        .state_dir = t->state[0],
        .volumes = v,
        .volume_count = PAIR_VOLUMES,
        .address = t->address,
    };
}

/* Nothing behind the size that was given is looked at. */
static void an_older_caller_gets_defaults(void)
{
    struct pair t;
    pair_make(&t, 1 << 20, 1 << 20);
    struct remus_volume v[PAIR_VOLUMES];
    pair_volumes(&t, 0, v);
    struct remus_primary_config old = config_of(&t, v);
    old.struct_size = UP_TO(remus_primary_config, queue_bytes);
    memset((char *)&old + old.struct_size, 0xee, sizeof old - old.struct_size);
    remus_primary *p = NULL;
    CHECK(remus_primary_open(&old, &p));
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_primary_status(p, &s));
    EXPECT(s.queue_limit <= 64 << 20);
    remus_primary_close(p);
    pair_remove(&t);
}

static void a_newer_caller_may_ask_for_nothing_new(void)
{
    struct pair t;
    pair_make(&t, 1 << 20, 1 << 20);
    struct remus_volume v[PAIR_VOLUMES];
    pair_volumes(&t, 0, v);
    struct newer_config new = {config_of(&t, v), 7};
    new.now.struct_size = sizeof new;
    remus_primary *p = NULL;
    EXPECT(remus_primary_open(&new.now, &p) == -E2BIG);
    EXPECT(p == NULL);
    EXPECT(strstr(remus_last_error(), "needs a newer library"));
    new.wish = 0;
    CHECK(remus_primary_open(&new.now, &p));
    remus_primary_close(p);
    pair_remove(&t);
}

/* Elements lie as far apart as the caller's header says. */
static void a_newer_array_is_walked_by_its_own_size(void)
{
    struct pair t;
    pair_make(&t, 1 << 20, 2 << 20);
    struct remus_volume v[PAIR_VOLUMES];
    pair_volumes(&t, 0, v);
    struct newer_volume new[PAIR_VOLUMES] = {{v[0], 0}, {v[1], 0}};
    new[0].now.struct_size = new[1].now.struct_size = sizeof new[0];
    struct remus_primary_config config = config_of(&t, &new[0].now);
    remus_primary *p = NULL;
    CHECK(remus_primary_open(&config, &p));
    EXPECT(remus_primary_size(p, 1) == 2 << 20);
    remus_primary_close(p);
    new[1].wish = 1;
    EXPECT(remus_primary_open(&config, &p) == -E2BIG);
    new[1].wish = 0;
    new[1].now.struct_size = sizeof new[1].now;
    EXPECT(remus_primary_open(&config, &p) == -EINVAL);
    EXPECT(strstr(remus_last_error(), "volumes[1].struct_size"));
    pair_remove(&t);
}

static void status_fills_what_the_caller_has(void)
{
    struct pair t;
    pair_open(&t, 1 << 20, 2 << 20, NULL);
    struct newer_status s = {REMUS_INIT(remus_status), 0};
    s.now.struct_size = UP_TO(remus_status, epochs);
    memset((char *)&s + s.now.struct_size, 0xee, sizeof s - s.now.struct_size);
    CHECK(remus_primary_status(t.p, &s.now));
    EXPECT(!strcmp(s.now.resource, "guest0") && s.now.open_epoch);
    EXPECT(s.now.struct_size == UP_TO(remus_status, epochs));
    for (size_t i = s.now.struct_size; i < sizeof s; i++)
        EXPECT(((unsigned char *)&s)[i] == 0xee);
    s = (struct newer_status){.now.struct_size = sizeof s};
    CHECK(remus_backup_status(t.b, &s.now));
    EXPECT(s.now.struct_size == sizeof s && s.news == 0);
    s.news = 1; /* not initialised, or a wish */
    EXPECT(remus_backup_status(t.b, &s.now) == -E2BIG);
    EXPECT(remus_primary_status(t.p, &s.now) == -E2BIG);

    struct newer_checkpoint cp[4] = {{REMUS_INIT(remus_checkpoint), 0}};
    uint64_t epoch = 0;
    for (int i = 0; i < 3; i++) {
        EXPECT(remus_primary_postsuspend(t.p, NULL, 0, &epoch) >= 0);
        CHECK(remus_primary_preresume(t.p, epoch, 20000));
    }
    cp[0].now.struct_size = sizeof cp[0];
    for (int i = 1; i < 4; i++)
        memset(&cp[i], 0xee, sizeof cp[i]);
    /* As many as there is room for, the newest, and nothing behind. */
    EXPECT(remus_backup_checkpoints(t.b, &cp[0].now, 2) >= 3);
    EXPECT(cp[1].now.epoch == epoch && cp[0].now.epoch == epoch - 1);
    EXPECT(cp[1].news == 0 && cp[1].now.struct_size == sizeof cp[1]);
    for (size_t i = 0; i < 2 * sizeof cp[2]; i++)
        EXPECT(((unsigned char *)&cp[2])[i] == 0xee);
    pair_prove_and_close(&t, epoch);
}

int main(void)
{
    an_older_caller_gets_defaults();
    a_newer_caller_may_ask_for_nothing_new();
    a_newer_array_is_walked_by_its_own_size();
    status_fills_what_the_caller_has();
    return 0;
}

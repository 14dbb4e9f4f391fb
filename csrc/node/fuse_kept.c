/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Memory that can outlive the process; see fuse_kept.h. */
#include "node/fuse_kept.h"

#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "node/fuse_int.h"

typedef unsigned long long ull;

#define MAGIC 0x31307470656b6d72ull /* "rmkept01" */
#define PAGE 4096u

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static uint64_t pages(uint64_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static struct remus_kept_head lay_out(uint32_t volumes, uint32_t background)
{
    struct remus_kept_head h = {.magic = MAGIC,
                                .volumes = volumes,
                                .file_size = sizeof(struct remus_file),
                                .slot_count = background + REMUS_KEPT_SPARE};
    h.files_at = pages(sizeof h);
    h.nodes_at =
        h.files_at + pages(REMUS_FILES_MAX * sizeof(struct remus_file));
    h.slots_at = h.nodes_at + pages(volumes * sizeof(struct remus_node));
    h.bytes_at =
        h.slots_at + pages(h.slot_count * sizeof(struct remus_kept_slot));
    h.size = h.bytes_at + (uint64_t)h.slot_count * REMUS_KEPT_STRIDE;
    return h;
}

static void point(struct remus_kept *k, unsigned char *base)
{
    k->head = (void *)base;
    k->files = (void *)(base + k->head->files_at);
    k->nodes = (void *)(base + k->head->nodes_at);
    k->slots = (void *)(base + k->head->slots_at);
    k->bytes = base + k->head->bytes_at;
}

/* The memory of `fd` (-1: of nobody else), with its head as it is, or as
 * `head` says.  0 or -ENOMEM. */
static int map(struct remus_kept *k, int fd, uint64_t size,
               const struct remus_kept_head *head)
{
    int flags = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (base == MAP_FAILED)
        return -ENOMEM;
    (void)madvise(base, size, MADV_DONTFORK);
    (void)madvise(base, size, MADV_DONTDUMP);
    if (head)
        memcpy(base, head, sizeof *head);
    point(k, base);
    k->fd = fd;
    return 0;
}

int remus_kept_make(struct remus_kept *k, uint32_t volumes,
                    uint32_t background)
{
    struct remus_kept_head h = lay_out(volumes, background);
    return map(k, -1, h.size, &h);
}

int remus_kept_create(uint32_t volumes, uint32_t background)
{
    struct remus_kept_head h = lay_out(volumes, background);
    int fd = memfd_create("remus-native", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = ftruncate(fd, (off_t)h.size) ? -errno : 0;
    if (!err && pwrite(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
        err = -EIO;
    if (err)
        close(fd);
    return err ? err : fd;
}

int remus_kept_check(int fd, uint32_t volumes, uint32_t background)
{
    const char *const kept = "the memory that the previous process kept";
    struct remus_kept_head ours = lay_out(volumes, background), h = {0};
    struct stat st;
    if (fstat(fd, &st) || pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
        return remus_fail(-EINVAL, "%s can't be read", kept);
    if (h.magic != ours.magic)
        return remus_fail(-EINVAL,
                          "%s has the layout %016llx, and this version has "
                          "%016llx",
                          kept, (ull)h.magic, (ull)ours.magic);
    if (h.volumes != volumes)
        return remus_fail(-EINVAL, "%s is of %u volumes, and there are %u",
                          kept, h.volumes, volumes);
    if (memcmp(&h, &ours, offsetof(struct remus_kept_head, mounted)) != 0 ||
        (uint64_t)st.st_size != h.size)
        return remus_fail(-EINVAL,
                          "%s has %u slots, %u bytes for an open file and "
                          "%llu in all, and this version has %u, %u and %llu",
                          kept, h.slot_count, h.file_size, (ull)st.st_size,
                          ours.slot_count, ours.file_size, (ull)ours.size);
    return 0;
}

int remus_kept_map(struct remus_kept *k, int fd, uint32_t volumes,
                   uint32_t background)
{
    int err = remus_kept_check(fd, volumes, background);
    return err ? err : map(k, fd, lay_out(volumes, background).size, NULL);
}

const struct fuse_in_header *remus_kept_request(const struct remus_kept *k,
                                                uint32_t slot)
{
    const struct fuse_in_header *in = (void *)remus_kept_bytes(k, slot);
    return __atomic_load_n(&in->unique, __ATOMIC_ACQUIRE) ? in : NULL;
}

void remus_kept_free(struct remus_kept *k)
{
    if (k->head)
        munmap(k->head, k->head->size);
    if (k->head && k->fd >= 0)
        remus_fd_close(k->fd);
    k->head = NULL;
}

void remus_kept_fatten(const struct remus_kept *k, uint32_t slot)
{
    unsigned char *at = remus_kept_bytes(k, slot);
    if (madvise(at, REMUS_KEPT_STRIDE, MADV_POPULATE_WRITE) == 0)
        return;
    /* Older kernels. */
    for (size_t i = 0; i < REMUS_KEPT_STRIDE; i += PAGE)
        *(volatile unsigned char *)(at + i) = 0;
}

void remus_kept_thin(const struct remus_kept *k, uint32_t slot, size_t len)
{
    uint64_t from = pages(len);
    if (from < REMUS_KEPT_STRIDE)
        (void)madvise(remus_kept_bytes(k, slot) + from,
                      REMUS_KEPT_STRIDE - from, MADV_REMOVE);
}

void remus_kept_clear(const struct remus_kept *k, uint32_t slot)
{
    struct fuse_in_header *in = (void *)remus_kept_bytes(k, slot);
    struct remus_kept_slot *s = &k->slots[slot];
    /* One store says that it is over: a request that is there and no longer
     * begun would be done again behind others. */
    __atomic_store_n(&in->unique, 0, __ATOMIC_RELEASE);
    atomic_store_explicit(&s->begun, 0, memory_order_release);
    atomic_store_explicit(&s->interrupted, 0, memory_order_release);
    atomic_store_explicit(&s->order, 0, memory_order_release);
}

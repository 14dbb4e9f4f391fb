/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Key files of TLS with pre-shared keys; see psk.h. */
#include "link/psk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/entry.h"
#include "remus.h"

#define FILE_MAX 65536u /* bytes: some 400 identities */
#define NAMES_MAX 120   /* bytes of the list of identities in an error */

/* ---- the file ------------------------------------------------------------ */

static int check_stat(const char *file, const struct stat *st)
{
    if (!S_ISREG(st->st_mode))
        return remus_fail(-EINVAL, "psk_file %s: not a regular file", file);
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return remus_fail(-EPERM,
                          "psk_file %s: belongs to uid %u, expected root or "
                          "our own, %u: chown it",
                          file, st->st_uid, geteuid());
    if (st->st_mode & 077)
        return remus_fail(
            -EPERM,
            "psk_file %s: mode %04o lets users other than its owner use the "
            "key: chmod 0600 it; if somebody may have "
            "read it, make a new key",
            file, st->st_mode & 07777);
    if (st->st_size >= FILE_MAX)
        return remus_fail(-EINVAL,
                          "psk_file %s: %lld bytes, less than %u "
                          "expected",
                          file, (long long)st->st_size, FILE_MAX);
    return 0;
}

/* The whole file into `text`, FILE_MAX bytes; its length or -errno. */
static ssize_t read_file(const char *file, char *text)
{
    /* O_NONBLOCK: a fifo put there must not hold us up. */
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return remus_fail(
            -errno, "psk_file %s: %s%s", file, remus_errno_text(errno),
            errno == ENOENT ? ": make it with psktool -u IDENTITY -p FILE, "
                              "and copy it to the other host"
                            : "");
    struct stat st;
    int err = fstat(fd, &st) ? remus_fail(-errno, "psk_file %s: %s", file,
                                          remus_errno_text(errno))
                             : check_stat(file, &st);
    size_t used = 0;
    while (!err) {
        ssize_t n = read(fd, text + used, FILE_MAX - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            err = remus_fail(-errno, "psk_file %s: read: %s", file,
                             remus_errno_text(errno));
        else if (used + (size_t)n >= FILE_MAX)
            err = remus_fail(-EINVAL, "psk_file %s: too large", file);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    close(fd);
    return err ? err : (ssize_t)used;
}

/* ---- its lines ---------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Bytes written, or -1: odd, not hex, or more than `cap`. */
static int unhex(const char *text, size_t len, unsigned char *out, size_t cap)
{
    if (len % 2 || len / 2 > cap)
        return -1;
    for (size_t i = 0; i < len; i += 2) {
        int high = hex_digit(text[i]), low = hex_digit(text[i + 1]);
        if (high < 0 || low < 0)
            return -1;
        out[i / 2] = (unsigned char)(high << 4 | low);
    }
    return (int)(len / 2);
}

/* One line without its end.  0; -EINVAL with what is wrong in *why. */
static int parse_line(const char *line, size_t len, struct remus_psk *psk,
                      const char **why)
{
    const char *colon = memrchr(line, ':', len);
    size_t name = colon ? (size_t)(colon - line) : 0;
    *why = "expected identity:hexkey, as psktool writes it";
    if (!name || memchr(line, '\0', len))
        return -EINVAL;
    if (*line == '#') {
        int n = unhex(line + 1, name - 1, (unsigned char *)psk->identity,
                      REMUS_PSK_IDENTITY_MAX);
        if (n <= 0 || memchr(psk->identity, '\0', (size_t)n))
            return -EINVAL;
        psk->identity[n] = '\0';
    } else {
        *why = "an identity of more than 128 bytes";
        if (name > REMUS_PSK_IDENTITY_MAX)
            return -EINVAL;
        memcpy(psk->identity, line, name);
        psk->identity[name] = '\0';
    }
    *why = "the key is not 16 to 64 bytes in hex: let psktool make one";
    int n = unhex(colon + 1, len - name - 1, psk->key, sizeof psk->key);
    psk->key_len = n < 0 ? 0 : (size_t)n;
    return n < REMUS_PSK_KEY_MIN ? -EINVAL : 0;
}

/* Add a name to the list for an error, or "..." if it does not fit. */
static void list_name(char *list, const char *name)
{
    size_t used = strlen(list);
    if (used + strlen(name) + 6 < NAMES_MAX) {
        strcat(list, used ? ", " : "");
        strcat(list, name);
    } else if (used < 3 || strcmp(list + used - 3, "...") != 0) {
        strcat(list, used ? ", ..." : "...");
    }
}

/* Is `name` the identity, or one that follows it? */
static int belongs(const char *name, const char *identity)
{
    size_t n = strlen(identity);
    return !strncmp(name, identity, n) && (!name[n] || name[n] == '+');
}

/* One more key of ours, in line `number`. */
static int add(const char *file, unsigned int number,
               const struct remus_psk *psk, struct remus_psk_ring *out)
{
    for (unsigned int i = 0; i < out->count; i++)
        if (!strcmp(out->psk[i].identity, psk->identity))
            return remus_fail(-EINVAL,
                              "psk_file %s, line %u: a second key for the "
                              "identity %s: remove one of them",
                              file, number, psk->identity);
    if (out->count == REMUS_PSK_RING)
        return remus_fail(-EINVAL,
                          "psk_file %s, line %u: more than %u keys for one "
                          "resource: remove the old ones",
                          file, number, REMUS_PSK_RING);
    out->psk[out->count++] = *psk;
    return 0;
}

static int find(const char *file, const char *text, size_t len,
                const char *identity, struct remus_psk_ring *out)
{
    struct remus_psk psk;
    char names[NAMES_MAX + 8] = "";
    int err = 0;
    unsigned int number = 1;
    for (size_t at = 0; at < len && !err; number++) {
        const char *line = text + at;
        const char *end = memchr(line, '\n', len - at);
        size_t n = end ? (size_t)(end - line) : len - at;
        at += n + 1;
        if (n && line[n - 1] == '\r')
            n--;
        if (!n)
            continue;
        const char *why;
        if (parse_line(line, n, &psk, &why)) {
            err = remus_fail(-EINVAL, "psk_file %s, line %u: %s", file, number,
                             why);
        } else if (belongs(psk.identity, identity)) {
            err = add(file, number, &psk, out);
        } else {
            list_name(names, psk.identity);
        }
    }
    explicit_bzero(&psk, sizeof psk);
    if (!err && !out->count)
        err = remus_fail(-ENOENT,
                         "psk_file %s: no key for the identity %s, only for: "
                         "%s: name one of them as psk_identity, or add it "
                         "with psktool -u %s -p %s",
                         file, identity, *names ? names : "(none)", identity,
                         file);
    return err;
}

int remus_psk_load(const char *file, const char *identity,
                   struct remus_psk_ring *out)
{
    memset(out, 0, sizeof *out);
    if (!file || !*file)
        return remus_fail(-EINVAL, "psk_file: no path given");
    size_t n = identity ? strlen(identity) : 0;
    if (!n || n > REMUS_PSK_IDENTITY_MAX)
        return remus_fail(-EINVAL, "psk_identity: %zu bytes; give 1 to %d", n,
                          REMUS_PSK_IDENTITY_MAX);
    char *text = malloc(FILE_MAX);
    if (!text)
        return remus_fail(-ENOMEM, "psk_file %s: out of memory", file);
    ssize_t len = read_file(file, text);
    int err =
        len < 0 ? (int)len : find(file, text, (size_t)len, identity, out);
    explicit_bzero(text, FILE_MAX);
    free(text);
    if (err)
        remus_psk_wipe(out);
    return err;
}

void remus_psk_wipe(struct remus_psk_ring *ring)
{
    explicit_bzero(ring, sizeof *ring);
}

int remus_psk_check(const char *file, const char *identity)
{
    int no = remus_given(file, "psk_check", "file");
    if (!no)
        no = remus_given(identity, "psk_check", "identity");
    if (no)
        return no;
    struct remus_psk_ring ring;
    int err = remus_psk_load(file, identity, &ring);
    remus_psk_wipe(&ring);
    return err;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A key file, of any bytes. */
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "link/psk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct remus_psk_ring ring;
    char path[64];
    int fd = memfd_create("psk", MFD_CLOEXEC);
    MUST(fd >= 0);
    MUST(fchmod(fd, 0600) == 0);
    MUST(write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (remus_psk_load(path, "guest0", &ring) == 0) {
        MUST(ring.count >= 1 && ring.count <= REMUS_PSK_RING);
        for (unsigned int i = 0; i < ring.count; i++) {
            MUST(ring.psk[i].key_len >= REMUS_PSK_KEY_MIN);
            MUST(ring.psk[i].key_len <= REMUS_PSK_KEY_MAX);
            MUST(!strncmp(ring.psk[i].identity, "guest0", 6));
        }
    } else {
        MUST(*remus_last_error() && !ring.count);
    }
    remus_psk_wipe(&ring);
    close(fd);
    return 0;
}

static void make_seeds(void)
{
    static const char *const texts[] = {
        "guest0:00112233445566778899aabbccddeeff\n",
        "#677565737430:00112233445566778899AABBCCDDEEFF\r\n",
        "other:00112233445566778899aabbccddeeff\n\n"
        "guest0:00112233445566778899aabbccddeeff"
        "00112233445566778899aabbccddeeff\n",
        "a:b:00112233445566778899aabbccddeeff\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        fuzz_seed(texts[i], strlen(texts[i]));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    return 0;
}

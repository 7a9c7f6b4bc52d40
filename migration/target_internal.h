/*
 * What the files of the side where a guest arrives share: target.c (the steps), target_pages.c.
 */
#ifndef FERRY_MIGRATION_TARGET_INTERNAL_H
#define FERRY_MIGRATION_TARGET_INTERNAL_H

#include <stdatomic.h>

#include "migration/target.h"

struct target {
    struct link *link; /* owns */
    _Atomic uint64_t received_bytes, stopped_ns;
    atomic_bool paused;
};

/* Logs what is wrong with what came. -EBADMSG. */
int target_damaged(struct target *t, const char *what);

/* A section of pages, whose head was read: into memory (NULL: none may come). Errors as of
 * target_receive(). */
int target_take_pages(struct target *t, struct guest_memory *mem,
                      const struct stream_section *section, uint32_t wanted_crc);

#endif

/*
 * What the files of the side where a guest arrives share: target.c (the steps), target_pages.c (what a
 * section of pages says), target_lanes.c (the connections that they come by).
 */
#ifndef FERRY_MIGRATION_TARGET_INTERNAL_H
#define FERRY_MIGRATION_TARGET_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "migration/pages.h"
#include "migration/target.h"

/* One connection that pages come by. */
struct target_lane {
    struct target *target;
    struct link *link;        /* the target's, for the first; owns the others */
    struct guest_memory *mem; /* NULL: no pages may come */
    uint8_t *bytes;           /* owns: PAGES_BATCH_BYTES, as they came */
    uint8_t *unpacked;        /* owns: as many; NULL: nothing is compressed */
    struct compressor *compressor; /* owns; NULL: none */
    pthread_t thread;
    bool begun;
    int err; /* its thread's; read after that was joined */
};

struct target {
    struct link *link; /* owns */
    bool header_sent;
    int door_fd;      /* borrowed: where further connections come; -1: none */
    struct link_terms *terms; /* borrowed: who may come so */
    unsigned streams; /* that the source wants */
    enum compress_method method;
    uint8_t token[PAGES_TOKEN_BYTES];
    pthread_mutex_t lock; /* guards n_lanes and cancelled */
    struct target_lane lanes[PAGES_MAX_STREAMS];
    unsigned n_lanes;
    bool cancelled;
    atomic_bool lane_failed;
    _Atomic uint64_t received_bytes, stopped_ns, go_ns;
    atomic_bool paused;
};

/* Logs what is wrong with what came. -EBADMSG. */
int target_damaged(struct target *t, const char *what);

/* ---- target_pages.c ---- */

/* A section of pages, whose head was read: checked wholly, then written into memory. Errors as of
 * target_receive(). */
int target_take_pages(struct target_lane *lane, const struct stream_section *section,
                      uint32_t wanted_crc);

/* ---- target_lanes.c ---- */

/* STREAM_TRANSFER, whose head was read. -EOPNOTSUPP: this ferry cannot take pages in that way. */
int target_take_transfer(struct target *t, const struct stream_section *section, uint32_t crc);
/* The first lane; then those that the source announced, with a thread each that reads pages. */
int target_begin_lanes(struct target *t, struct guest_memory *mem);
/* Waits for them to have all, if nothing failed yet; the error that is the cause, or 0. */
int target_end_lanes(struct target *t, int err);
void target_destroy_lanes(struct target *t);

#endif

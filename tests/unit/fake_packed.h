/*
 * The driver's side of a packed virtqueue for tests, laid out in guest memory.
 *
 * It follows the rules of a driver (virtio 1.2 §2.8); a test that wants to break them writes to
 * memory itself, for which the areas' addresses are open.
 */
#ifndef FERRY_TESTS_FAKE_PACKED_H
#define FERRY_TESTS_FAKE_PACKED_H

#include "tests/unit/fake_driver.h"

#define FAKE_PACKED_MAX 256

struct fake_packed {
    struct guest_memory *mem;
    uint16_t size;
    gpa_t ring, driver, device;  /* the three areas */
    bool event_idx;
    uint16_t next, used;         /* places: of the next descriptor, of the next used entry */
    bool next_wrap, used_wrap;
    uint16_t n_free;
    uint16_t ids[FAKE_PACKED_MAX], n_ids;   /* ids that are free, a stack */
    uint16_t counts[FAKE_PACKED_MAX];       /* descriptors, by id */
};

/* Lays an empty queue out from `base` (aligned to 16); any size up to FAKE_PACKED_MAX. */
void fake_packed_init(struct fake_packed *q, struct guest_memory *mem, gpa_t base, uint16_t size);
/* Adds a chain and makes it available; returns its id. */
uint16_t fake_packed_add(struct fake_packed *q, const struct fake_piece *pieces, unsigned n);
uint16_t fake_packed_add_indirect(struct fake_packed *q, const struct fake_piece *pieces,
                                  unsigned n, gpa_t table);
/* Takes the next used entry; false when there is none. */
bool fake_packed_take(struct fake_packed *q, struct fake_used *used);
/* Whether the device asked for a kick for what was added since the ring stood at `old`. */
bool fake_packed_should_kick(const struct fake_packed *q, uint16_t old, bool old_wrap);
/* Sets what the driver wants to be interrupted for: flags, and the place with its wrap counter. */
void fake_packed_set_event(struct fake_packed *q, uint16_t flags, uint16_t at, bool wrap);
/* Writes one descriptor, flags last. */
void fake_packed_write(struct fake_packed *q, uint16_t at, gpa_t gpa, uint32_t length, uint16_t id,
                       uint16_t flags);
/* The flags that make a descriptor available under that wrap counter. */
uint16_t fake_packed_avail(bool wrap);

#endif

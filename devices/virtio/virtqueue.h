/*
 * The virtqueue engine: the device's side of a split ring (virtio 1.2 §2.7) or a packed one (§2.8),
 * with indirect descriptors (§2.7.5.3, §2.8.7) and event index (§2.7.10, §2.8.10).
 *
 * The guest is the adversary. A descriptor is copied once, then validated; a device sees only a
 * chain whose every piece is RAM, readable pieces before writable ones (§2.7.4.2), at most
 * VIRTQUEUE_MAX_PIECES of them. Anything else makes the queue broken: the engine returns -EINVAL, the
 * caller reports it by virtio_device_broken() and the queue is silent until reset.
 *
 * Thread: whoever holds the device lock. The fences against the guest's vCPUs are in the .c.
 */
#ifndef FERRY_VIRTQUEUE_H
#define FERRY_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/memory.h"
#include "vmm/util/state.h"

#define VIRTQUEUE_MAX_SIZE 1024
#define VIRTQUEUE_MAX_PIECES 1024 /* of a chain, an indirect table's included */
/* Pieces of no bytes in a chain. Reading one takes as long as any, and what a chain of them costs is
 * bounded by nothing that its owner counts. */
#define VIRTQUEUE_MAX_EMPTY 8

/* What the driver set up; what migrates. */
struct virtqueue_state {
    uint16_t size;        /* 0 when not available */
    bool enabled;
    uint16_t msix_vector; /* VIRTIO_MSI_NO_VECTOR: none */
    uint64_t desc, driver, device; /* guest physical addresses of the three areas */
    /* In a packed ring these are places in it, with the wrap counter, inverted, in bit 15. */
    uint16_t last_avail;  /* next entry of the available ring to look at */
    uint16_t used_idx;    /* next entry of the used ring to write */
    uint16_t signalled_used; /* used_idx when the driver was last asked about an interrupt */
    bool signalled_valid;
};
extern const struct state_desc virtqueue_state_desc;

struct virtqueue {
    struct virtqueue_state st;
    uint16_t max_size;         /* what the device offers; a power of two */
    bool event_idx, indirect;  /* negotiated */
    bool packed;               /* likewise, once enabled */
    bool broken;
    struct guest_memory *mem;  /* borrowed */
    /* internal: host addresses of the three areas, translated and checked when enabled */
    const void *desc_table;
    const void *avail_ring;
    void *used_ring;
    bool kicks_wanted;       /* by virtqueue_enable_kicks(); so from the start */
    bool avail_event_valid;  /* our wish was written to the used ring since the queue was enabled, */
    uint16_t avail_event;    /* ... and with the event index it was this */
    struct packed_ring *packed_ring; /* owns */
};

/* One request: its readable pieces, then its writable ones, in iov[]; gpa[] runs beside it. */
struct virtqueue_chain {
    uint16_t head; /* names it when it is returned */
    unsigned n_readable, n_writable, n_empty;
    uint64_t readable_bytes, writable_bytes;
    struct iovec *iov; /* n_readable + n_writable of them, the readable first */
    gpa_t *gpa;
    unsigned capacity; /* of iov and gpa, both owned by the chain's owner */
};

/* Allocates room for the longest chain, or for `capacity` pieces. 0 or -ENOMEM. */
int virtqueue_chain_init(struct virtqueue_chain *chain, unsigned capacity);
void virtqueue_chain_fini(struct virtqueue_chain *chain);

void virtqueue_init(struct virtqueue *vq, struct guest_memory *mem, uint16_t max_size);
void virtqueue_fini(struct virtqueue *vq);
void virtqueue_reset(struct virtqueue *vq);

/*
 * The driver enabled the queue: checks size (a power of two up to max_size), alignment (§2.7) and
 * that all three areas are RAM. -EINVAL otherwise, and the queue stays disabled.
 */
int virtqueue_enable(struct virtqueue *vq, bool event_idx, bool indirect);
/* The same for a packed ring, of any size up to max_size. Also -ENOMEM. */
int virtqueue_enable_packed(struct virtqueue *vq, bool event_idx, bool indirect);
/* The same tests on a state that is to be loaded and says `enabled`; changes nothing. 0, -EINVAL. */
int virtqueue_check(const struct virtqueue *vq, const struct virtqueue_state *st, bool packed);

/*
 * 1: *chain holds the next request; 0: none waits, or the queue is not enabled; -EINVAL: broken
 * (vq->broken set). A chain longer than its capacity is broken, too. The entry counts as taken.
 * Pieces of no bytes are left out; more than VIRTQUEUE_MAX_EMPTY of them break it.
 *
 * When it gives 0 and notifications are not disabled, the driver's next request raises a kick: who
 * pops until 0 misses none, with or without the event index, and needs no virtqueue_enable_kicks().
 */
int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain);
/* Puts the last popped, not yet pushed chain back (the frame did not fit yet); may be called for
 * several, the last first. After a pop that gave 0 the next kick means more requests than these:
 * then do not call virtqueue_enable_kicks(), which asks for a kick from the first one on. */
void virtqueue_unpop(struct virtqueue *vq);
/* Whether a request waits, by one read of the avail index; never an error. */
bool virtqueue_pending(struct virtqueue *vq);

/*
 * Returns a request: `written` bytes of its writable pieces are the device's (they are marked
 * dirty here, from the chain's start). Out of order is fine (VIRTIO_F_IN_ORDER is not offered).
 */
void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written);
/* The same for one whose chain is not kept: marks nothing, the caller did. */
void virtqueue_push_head(struct virtqueue *vq, uint16_t head, uint32_t written);
/*
 * For a driver's packet spread over several chains (VIRTIO_NET_F_MRG_RXBUF): fill entries ahead
 * of the index, then publish all at once.
 */
void virtqueue_fill(struct virtqueue *vq, uint16_t head, uint32_t written, uint16_t ahead);
void virtqueue_flush(struct virtqueue *vq, uint16_t count);

/* After pushes: whether the driver wants an interrupt (§2.7.7.2). False when nothing was pushed
 * since the last question. */
bool virtqueue_wants_interrupt(struct virtqueue *vq);

/*
 * Suppresses or asks for notifications by the driver (§2.7.10.2); asked for from the start. For
 * who polls or knows better than the default at virtqueue_pop(). enable returns true when
 * requests arrived meanwhile: look again before sleeping.
 */
void virtqueue_disable_kicks(struct virtqueue *vq);
/* As disable, which with the event index lets one more notification through where the driver was
 * asked for it; this takes that back. */
void virtqueue_mute_kicks(struct virtqueue *vq);
bool virtqueue_enable_kicks(struct virtqueue *vq);

/* Copies between a chain's readable/writable pieces (from byte `offset`) and a buffer; returns
 * the bytes copied, fewer than asked at the chain's end. Writing marks nothing dirty: the push does. */
uint64_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *to,
                        uint64_t length);
uint64_t virtqueue_write(const struct virtqueue_chain *chain, uint64_t offset, const void *from,
                         uint64_t length);

/* Save and load: st alone; after load call virtqueue_enable() again if st.enabled. */

#endif

/*
 * virtio-blk (virtio 1.2 §5.2): requests of the guest's driver as operations of the event loop on a
 * raw image, straight into and out of guest memory.
 *
 * Does not open or measure the image (blk_image.c), knows no transport and walks no rings.
 *
 * A request goes through steps, each one asynchronous operation: the transfer, a hole or zeroes for
 * each range, and at the end fdatasync where the cache is write-through. Its slot belongs to it
 * until it is returned to the driver; slots exist from creation on, so nothing is allocated later.
 *
 * Threads: all of it with the device lock held. Requests are taken, carried out and finished on the
 * event loop's thread; reset and the configuration space are a vCPU's. Two things are touched
 * without the lock, on the loop's thread: `due`, atomic, read by the hook that interrupts the
 * driver once for all that finished in a batch, and the hook and call themselves.
 *
 * A reset does not wait: it counts the device's generation up, and what was in flight is dropped
 * when it comes back. Until then busy() holds the reset's end off (§2.4.1), because the kernel
 * still writes into the driver's buffers.
 */
#include "devices/virtio/blk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/virtio/blk_image.h"

#define BLK_DEVICE_ID 2 /* §5.2.1 */

enum { /* §5.2.3 */
    BLK_F_SEG_MAX = 2,
    BLK_F_RO = 5,
    BLK_F_BLK_SIZE = 6,
    BLK_F_FLUSH = 9,
    BLK_F_TOPOLOGY = 10,
    BLK_F_CONFIG_WCE = 11,
    BLK_F_MQ = 12,
    BLK_F_DISCARD = 13,
    BLK_F_WRITE_ZEROES = 14,
};

enum { /* §5.2.6 */
    BLK_T_IN = 0,
    BLK_T_OUT = 1,
    BLK_T_FLUSH = 4,
    BLK_T_GET_ID = 8,
    BLK_T_DISCARD = 11,
    BLK_T_WRITE_ZEROES = 13,
};

enum { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPP = 2 };

#define BLK_FLAG_UNMAP 1u /* of a range */

struct blk_header { /* §5.2.6: struct virtio_blk_req, up to its data */
    uint32_t type, reserved;
    uint64_t sector;
};
_Static_assert(sizeof(struct blk_header) == 16, "virtio 1.2 §5.2.6");

struct blk_wire_range { /* §5.2.6: struct virtio_blk_discard_write_zeroes */
    uint64_t sector;
    uint32_t sectors, flags;
};
_Static_assert(sizeof(struct blk_wire_range) == 16, "virtio 1.2 §5.2.6");

struct blk_space { /* §5.2.4: struct virtio_blk_config */
    uint64_t capacity;
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, track_sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
};
_Static_assert(sizeof(struct blk_space) == 64 && offsetof(struct blk_space, writeback) == 32 &&
                   offsetof(struct blk_space, write_zeroes_may_unmap) == 56,
               "virtio 1.2 §5.2.4");
#define BLK_SPACE_BYTES 60 /* without padding; secure erase, which would follow, is not offered */

#define MAX_SLOTS 256
#define MAX_PIECES 126                   /* of a request's data: seg_max */
#define MAX_RANGES 16                    /* of a discard or write-zeroes */
#define MAX_RANGE_SECTORS (1u << 21)     /* 1 GiB */
#define MAX_RETRIES 16
#define ZEROES_BYTES 16384
#define BOUNCE_BUFFERS 4
#define BOUNCE_BYTES 65536
#define DESTROY_DEADLINE_NS 10000000000ull

/* What is written where the host's file system cannot make zeroes by itself. */
static const uint8_t zeroes[ZEROES_BYTES] __attribute__((aligned(4096)));

enum blk_step {
    STEP_TRANSFER, /* of data between image and guest */
    STEP_RANGE,    /* fallocate(2) for one range */
    STEP_ZEROES,   /* zeroes written over one range */
    STEP_SYNC,     /* fdatasync(2) */
};

struct blk_range {
    uint64_t offset, length; /* bytes of the image */
    bool unmap;
};

struct virtio_blk;

struct blk_request {
    struct loop_op op;
    struct virtio_blk *blk;
    struct blk_request *next; /* free, or waiting for a bounce buffer */
    uint32_t generation;      /* of the device, when it was taken */
    uint32_t type;            /* BLK_T_x */
    enum blk_step step;
    uint16_t queue, head;
    unsigned retries;
    gpa_t status;             /* where the status byte goes */
    uint32_t written;         /* what the used ring will say */
    uint64_t offset, left;    /* of the image, for the step; bytes */
    bool misaligned;          /* its pieces do not suit O_DIRECT */
    uint8_t *bounce;          /* of the pool, or NULL */
    unsigned first, count;    /* pieces [first, count) are still to be transferred */
    unsigned range, n_ranges;
    struct blk_range ranges[MAX_RANGES];
    struct iovec iov[MAX_PIECES];
    gpa_t gpa[MAX_PIECES];
};

struct virtio_blk {
    struct virtio_device vdev; /* first: the class gets this */
    struct blk_image image;
    char serial[VIRTIO_BLK_ID_BYTES];
    bool readonly, direct;
    bool writeback;            /* §5.2.4: the cache is a write-back one */
    struct virtqueue_chain chain; /* owns; of the request that is being taken */
    struct blk_request *slots;    /* owns; touched only as deep as the queue was ever filled */
    unsigned n_slots, slots_used;
    struct blk_request *free_slots;
    unsigned inflight;         /* slots taken */
    uint8_t *bounce;           /* owns the mapping; NULL without O_DIRECT */
    uint32_t bounce_free;      /* a bit for each buffer */
    struct blk_request *bounce_waiting, **bounce_last;
    uint32_t starved;          /* queues that wait for a slot, or for their next turn */
    struct loop_call again;    /* gives them that */
    _Atomic uint32_t due;      /* queues whose driver is to be asked about an interrupt */
    struct loop_hook hook;
    struct virtio_blk_counters counters;
};
_Static_assert(offsetof(struct virtio_blk, vdev) == 0, "the class casts");

static struct virtio_blk *blk_of(struct virtio_device *vdev)
{
    return (struct virtio_blk *)vdev;
}

static struct loop *loop_of(const struct virtio_blk *blk)
{
    return blk->vdev.env->loop;
}

/* ---- configuration space ---- */

static bool offers_ranges(const struct virtio_blk *blk)
{
    return !blk->readonly;
}

static uint64_t blk_features(struct virtio_device *vdev)
{
    struct virtio_blk *blk = blk_of(vdev);
    uint64_t features = 1ull << BLK_F_SEG_MAX | 1ull << BLK_F_BLK_SIZE | 1ull << BLK_F_TOPOLOGY |
                        1ull << BLK_F_FLUSH | 1ull << BLK_F_CONFIG_WCE;

    if (blk->readonly)
        features |= 1ull << BLK_F_RO;
    if (vdev->n_queues > 1)
        features |= 1ull << BLK_F_MQ;
    if (offers_ranges(blk))
        features |= 1ull << BLK_F_WRITE_ZEROES;
    if (offers_ranges(blk) && blk->image.can_discard)
        features |= 1ull << BLK_F_DISCARD;
    return features;
}

static void fill_space(const struct virtio_blk *blk, struct blk_space *space)
{
    const struct blk_image *image = &blk->image;
    uint32_t blocks = image->physical_block / image->block_size;

    *space = (struct blk_space){
        .capacity = htole64(image->size / BLK_SECTOR),
        .seg_max = htole32(MAX_PIECES),
        .blk_size = htole32(image->block_size),
        .physical_block_exp = (uint8_t)__builtin_ctz(blocks),
        .min_io_size = htole16((uint16_t)blocks),
        .opt_io_size = htole32(image->optimal_io / image->block_size),
        .writeback = blk->writeback,
        .num_queues = htole16((uint16_t)blk->vdev.n_queues),
        .max_discard_sectors = htole32(MAX_RANGE_SECTORS),
        .max_discard_seg = htole32(MAX_RANGES),
        .discard_sector_alignment = htole32(image->physical_block / BLK_SECTOR),
        .max_write_zeroes_sectors = htole32(MAX_RANGE_SECTORS),
        .max_write_zeroes_seg = htole32(MAX_RANGES),
        .write_zeroes_may_unmap = 1,
    };
}

static void blk_config_read(struct virtio_device *vdev, size_t offset, void *to, size_t size)
{
    struct blk_space space;

    fill_space(blk_of(vdev), &space);
    memcpy(to, (const uint8_t *)&space + offset, size);
}

static void blk_config_write(struct virtio_device *vdev, size_t offset, const void *from,
                             size_t size)
{
    uint8_t value;

    /* §5.2.5.1: the one field that a driver may write, and only when it was agreed on. */
    if (offset != offsetof(struct blk_space, writeback) || size != sizeof(value) ||
        !virtio_has(vdev, BLK_F_CONFIG_WCE))
        return;
    memcpy(&value, from, sizeof(value));
    blk_of(vdev)->writeback = value & 1;
}

/* §5.2.6.2: when a completed write must have reached the medium: no flush will come for it. */
static bool writes_through(const struct virtio_blk *blk)
{
    if (virtio_has(&blk->vdev, BLK_F_CONFIG_WCE))
        return !blk->writeback;
    return !virtio_has(&blk->vdev, BLK_F_FLUSH);
}

/* ---- slots and bounce buffers ---- */

static void run_step(struct blk_request *req);

static struct blk_request *take_slot(struct virtio_blk *blk)
{
    struct blk_request *req = blk->free_slots;

    if (req)
        blk->free_slots = req->next;
    else if (blk->slots_used < blk->n_slots)
        req = &blk->slots[blk->slots_used++];
    else
        return NULL;
    req->blk = blk;
    blk->inflight++;
    return req;
}

static bool take_bounce(struct blk_request *req)
{
    struct virtio_blk *blk = req->blk;
    unsigned i;

    if (!blk->bounce_free) {
        req->next = NULL;
        *blk->bounce_last = req;
        blk->bounce_last = &req->next;
        return false;
    }
    i = (unsigned)__builtin_ctz(blk->bounce_free);
    blk->bounce_free &= blk->bounce_free - 1;
    req->bounce = blk->bounce + (size_t)i * BOUNCE_BYTES;
    return true;
}

/* The buffer goes to who has waited for it longest. */
static void give_bounce(struct virtio_blk *blk, uint8_t *bounce)
{
    struct blk_request *waiting = blk->bounce_waiting;

    if (!waiting) {
        blk->bounce_free |= 1u << (size_t)(bounce - blk->bounce) / BOUNCE_BYTES;
        return;
    }
    blk->bounce_waiting = waiting->next;
    if (!blk->bounce_waiting)
        blk->bounce_last = &blk->bounce_waiting;
    waiting->bounce = bounce;
    run_step(waiting);
}

static void give_slot(struct blk_request *req)
{
    struct virtio_blk *blk = req->blk;
    uint8_t *bounce = req->bounce;

    req->bounce = NULL;
    req->next = blk->free_slots;
    blk->free_slots = req;
    blk->inflight--;
    if (bounce)
        give_bounce(blk, bounce);
    if (blk->starved)
        loop_call(loop_of(blk), &blk->again);
}

/* ---- finishing ---- */

/* Marks what a read may have written of its remaining pieces. */
static void mark_pieces(const struct blk_request *req)
{
    if (req->type != BLK_T_IN)
        return;
    for (unsigned i = req->first; i < req->count; i++)
        memory_mark_dirty(req->blk->vdev.env->mem, req->gpa[i], req->iov[i].iov_len);
}

/* Returns the request to the driver; it hears of it before the loop sleeps. */
static void finish(struct blk_request *req, uint8_t status)
{
    struct virtio_blk *blk = req->blk;

    if (status == BLK_S_OK) {
        blk->counters.read_ops += req->type == BLK_T_IN;
        blk->counters.write_ops += req->type == BLK_T_OUT;
    }
    /* The address was translated when the request was taken, and RAM does not go away. */
    (void)memory_write(blk->vdev.env->mem, req->status, &status, sizeof(status));
    virtqueue_push_head(&blk->vdev.queues[req->queue], req->head, req->written);
    atomic_fetch_or_explicit(&blk->due, 1u << req->queue, memory_order_relaxed);
    give_slot(req);
}

static const char *type_name(uint32_t type)
{
    switch (type) {
    case BLK_T_IN:
        return "read";
    case BLK_T_OUT:
        return "write";
    case BLK_T_DISCARD:
        return "discard";
    case BLK_T_WRITE_ZEROES:
        return "write of zeroes";
    }
    return "request";
}

/* The host could not do it: told to the driver, and to the person within the budget. */
static void fail(struct blk_request *req, int err)
{
    struct virtio_device *vdev = &req->blk->vdev;

    if (req->type == BLK_T_FLUSH)
        log_guest(&vdev->log_rate, "%s: flush failed: %s", vdev->id, strerror(-err));
    else
        log_guest(&vdev->log_rate, "%s: %s at sector %llu failed: %s", vdev->id,
                  type_name(req->type), (unsigned long long)(req->offset / BLK_SECTOR),
                  strerror(-err));
    mark_pieces(req);
    finish(req, BLK_S_IOERR);
}

static void run_hook(struct loop_hook *hook)
{
    struct virtio_blk *blk =
        (struct virtio_blk *)((char *)hook - offsetof(struct virtio_blk, hook));
    struct virtio_device *vdev = &blk->vdev;
    uint32_t due;

    if (!atomic_load_explicit(&blk->due, memory_order_relaxed))
        return;
    device_lock(vdev->env);
    due = atomic_exchange_explicit(&blk->due, 0, memory_order_relaxed);
    for (; due; due &= due - 1)
        virtio_queue_notify(vdev, &vdev->queues[__builtin_ctz(due)]);
    device_unlock(vdev->env);
}

/* ---- steps: each starts one operation, or finishes the request ---- */

static void start_step(struct blk_request *req, enum blk_step step)
{
    req->step = step;
    req->retries = 0;
    run_step(req);
}

/* The data is where it belongs. */
static void settle(struct blk_request *req)
{
    bool wrote = req->type == BLK_T_OUT || req->type == BLK_T_WRITE_ZEROES;

    if (wrote && writes_through(req->blk))
        start_step(req, STEP_SYNC);
    else
        finish(req, BLK_S_OK);
}

static void start_range(struct blk_request *req)
{
    if (req->range == req->n_ranges) {
        settle(req);
        return;
    }
    req->offset = req->ranges[req->range].offset;
    req->left = req->ranges[req->range].length;
    start_step(req, STEP_RANGE);
}

static void run_bounced(struct blk_request *req)
{
    struct virtio_blk *blk = req->blk;
    size_t n = req->left < BOUNCE_BYTES ? req->left : BOUNCE_BYTES;
    size_t have = 0;

    if (!req->bounce && !take_bounce(req))
        return;
    if (req->type == BLK_T_IN) {
        loop_read(loop_of(blk), &req->op, blk->image.fd, req->bounce, n, req->offset);
        return;
    }
    for (unsigned i = req->first; i < req->count && have < n; i++) {
        size_t piece = req->iov[i].iov_len < n - have ? req->iov[i].iov_len : n - have;

        memcpy(req->bounce + have, req->iov[i].iov_base, piece);
        have += piece;
    }
    loop_write(loop_of(blk), &req->op, blk->image.fd, req->bounce, n, req->offset);
}

static void run_transfer(struct blk_request *req)
{
    struct loop *loop = loop_of(req->blk);
    const struct iovec *iov = &req->iov[req->first];
    unsigned n = req->count - req->first;
    int fd = req->blk->image.fd;

    if (req->misaligned)
        run_bounced(req);
    else if (req->type == BLK_T_IN && n == 1)
        loop_read(loop, &req->op, fd, iov->iov_base, iov->iov_len, req->offset);
    else if (req->type == BLK_T_IN)
        loop_readv(loop, &req->op, fd, iov, n, req->offset);
    else if (n == 1)
        loop_write(loop, &req->op, fd, iov->iov_base, iov->iov_len, req->offset);
    else
        loop_writev(loop, &req->op, fd, iov, n, req->offset);
}

static void run_range(struct blk_request *req)
{
    const struct virtio_blk *blk = req->blk;
    bool hole = req->type == BLK_T_DISCARD || req->ranges[req->range].unmap;
    int mode = FALLOC_FL_KEEP_SIZE | (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

    loop_fallocate(loop_of(blk), &req->op, blk->image.fd, mode, req->offset, req->left);
}

static void run_zeroes(struct blk_request *req)
{
    uint64_t left = req->left;
    unsigned n;

    for (n = 0; n < MAX_PIECES && left > 0; n++) {
        req->iov[n].iov_base = (void *)(uintptr_t)zeroes; /* only read from */
        req->iov[n].iov_len = left < ZEROES_BYTES ? left : ZEROES_BYTES;
        left -= req->iov[n].iov_len;
    }
    loop_writev(loop_of(req->blk), &req->op, req->blk->image.fd, req->iov, n, req->offset);
}

static void run_step(struct blk_request *req)
{
    switch (req->step) {
    case STEP_TRANSFER:
        run_transfer(req);
        return;
    case STEP_RANGE:
        run_range(req);
        return;
    case STEP_ZEROES:
        run_zeroes(req);
        return;
    case STEP_SYNC:
        loop_fdatasync(loop_of(req->blk), &req->op, req->blk->image.fd);
        return;
    }
}

/* ---- results of steps ---- */

/* Takes n transferred bytes off the pieces; what a read brought is marked, and copied out of the
 * bounce buffer. */
static void advance(struct blk_request *req, size_t n)
{
    const uint8_t *bounced = req->type == BLK_T_IN ? req->bounce : NULL;
    struct virtio_blk_counters *counters = &req->blk->counters;

    req->offset += n;
    req->left -= n;
    *(req->type == BLK_T_IN ? &counters->read_bytes : &counters->write_bytes) += n;
    while (n > 0) {
        struct iovec *iov = &req->iov[req->first];
        size_t part = iov->iov_len < n ? iov->iov_len : n;

        if (bounced) {
            memcpy(iov->iov_base, bounced, part);
            bounced += part;
        }
        if (req->type == BLK_T_IN)
            memory_mark_dirty(req->blk->vdev.env->mem, req->gpa[req->first], part);
        iov->iov_base = (uint8_t *)iov->iov_base + part;
        iov->iov_len -= part;
        req->gpa[req->first] += part;
        if (iov->iov_len == 0)
            req->first++;
        n -= part;
    }
}

static void transfer_done(struct blk_request *req, size_t n)
{
    advance(req, n > req->left ? req->left : n);
    if (req->left > 0)
        run_step(req); /* a short transfer goes on where it ended */
    else
        settle(req);
}

static void zeroes_done(struct blk_request *req, size_t n)
{
    req->offset += n;
    req->left -= n > req->left ? req->left : n;
    if (req->left > 0) {
        run_step(req);
        return;
    }
    req->range++;
    start_range(req);
}

/* Whether fallocate(2) failed for what the file system cannot do. -EINVAL: a device's block is
 * larger than this range's alignment. */
static bool is_unable(int result)
{
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL;
}

static void range_done(struct blk_request *req, int result)
{
    if (is_unable(result) && req->type == BLK_T_WRITE_ZEROES) {
        start_step(req, STEP_ZEROES);
        return;
    }
    /* §5.2.6.2: a discarded range may read as anything, what it held included. */
    if (result < 0 && !is_unable(result)) {
        fail(req, result);
        return;
    }
    req->range++;
    start_range(req);
}

static void step_done(struct blk_request *req, int result)
{
    if ((result == -EINTR || result == -EAGAIN) && req->retries++ < MAX_RETRIES) {
        run_step(req);
        return;
    }
    if (req->step == STEP_RANGE) {
        range_done(req, result);
        return;
    }
    /* Nothing transferred: the image was cut short under us. */
    if (result == 0 && req->step != STEP_SYNC)
        result = -EIO;
    if (result < 0) {
        fail(req, result);
        return;
    }
    req->retries = 0;
    switch (req->step) {
    case STEP_TRANSFER:
        transfer_done(req, (size_t)result);
        return;
    case STEP_ZEROES:
        zeroes_done(req, (size_t)result);
        return;
    case STEP_SYNC:
        finish(req, BLK_S_OK);
        return;
    case STEP_RANGE: /* above */
        return;
    }
}

static void request_done(struct loop_op *op, int result)
{
    struct blk_request *req = (struct blk_request *)((char *)op - offsetof(struct blk_request, op));
    const struct device_env *env = req->blk->vdev.env;

    device_lock(env);
    if (req->generation == req->blk->vdev.generation) {
        step_done(req, result);
    } else {
        mark_pieces(req);
        give_slot(req);
    }
    device_unlock(env);
}

/* ---- taking requests ---- */

/* Copies the chain's data pieces, of `length` bytes from byte `skip` on, into the request, joining
 * what is adjacent. False when there are more than the device said it takes. */
static bool take_pieces(struct blk_request *req, const struct virtqueue_chain *chain, bool writable,
                        uint64_t skip, uint64_t length)
{
    unsigned i = writable ? chain->n_readable : 0;

    for (; length > 0; i++) {
        uint8_t *at = chain->iov[i].iov_base;
        uint64_t n = chain->iov[i].iov_len;
        struct iovec *last = req->count ? &req->iov[req->count - 1] : NULL;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        at += skip;
        n = n - skip < length ? n - skip : length;
        if (last && (uint8_t *)last->iov_base + last->iov_len == at &&
            req->gpa[req->count - 1] + last->iov_len == chain->gpa[i] + skip) {
            last->iov_len += n;
        } else if (req->count == MAX_PIECES) {
            return false;
        } else {
            req->iov[req->count] = (struct iovec){.iov_base = at, .iov_len = n};
            req->gpa[req->count++] = chain->gpa[i] + skip;
        }
        length -= n;
        skip = 0;
    }
    return true;
}

/* O_DIRECT asks it of each piece's address and length. */
static bool is_misaligned(const struct blk_request *req)
{
    const struct blk_image *image = &req->blk->image;

    for (unsigned i = 0; i < req->count; i++)
        if ((uintptr_t)req->iov[i].iov_base % image->memory_align != 0 ||
            req->iov[i].iov_len % image->block_size != 0)
            return true;
    return false;
}

/* §5.2.6.1: a driver must not ask for what is beyond the capacity. */
static bool within_capacity(const struct virtio_blk *blk, uint64_t sector, uint64_t sectors)
{
    uint64_t capacity = blk->image.size / BLK_SECTOR;

    return sector <= capacity && sectors <= capacity - sector;
}

static void begin_transfer(struct blk_request *req, const struct virtqueue_chain *chain,
                           uint64_t sector)
{
    bool in = req->type == BLK_T_IN;
    uint64_t skip = in ? 0 : sizeof(struct blk_header);
    uint64_t length = in ? chain->writable_bytes - 1 : chain->readable_bytes - skip;
    struct virtio_blk *blk = req->blk;

    /* §5.2.6.2: "A device MUST set the status byte to VIRTIO_BLK_S_IOERR for a write request if the
     * VIRTIO_BLK_F_RO feature if offered, and MUST NOT write any data." */
    if ((!in && blk->readonly) || length % BLK_SECTOR != 0 ||
        !within_capacity(blk, sector, length / BLK_SECTOR) ||
        !take_pieces(req, chain, in, skip, length)) {
        finish(req, BLK_S_IOERR);
        return;
    }
    req->offset = sector * BLK_SECTOR;
    req->left = length;
    if (in)
        req->written = (uint32_t)length + 1;
    if (length == 0) {
        settle(req);
        return;
    }
    req->misaligned = blk->direct && is_misaligned(req);
    start_step(req, STEP_TRANSFER);
}

/* Checks and takes one range; a status. */
static uint8_t take_range(struct blk_request *req, const struct blk_wire_range *wire)
{
    uint64_t sector = le64toh(wire->sector);
    uint32_t sectors = le32toh(wire->sectors), flags = le32toh(wire->flags);

    /* §5.2.6.2: unknown flags, and unmap in a discard, are unsupported. */
    if ((flags & ~BLK_FLAG_UNMAP) || (flags && req->type == BLK_T_DISCARD))
        return BLK_S_UNSUPP;
    if (sectors > MAX_RANGE_SECTORS || !within_capacity(req->blk, sector, sectors))
        return BLK_S_IOERR;
    if (sectors == 0)
        return BLK_S_OK;
    req->ranges[req->n_ranges++] = (struct blk_range){
        .offset = sector * BLK_SECTOR,
        .length = (uint64_t)sectors * BLK_SECTOR,
        .unmap = flags & BLK_FLAG_UNMAP,
    };
    return BLK_S_OK;
}

static void begin_ranges(struct blk_request *req, const struct virtqueue_chain *chain)
{
    struct virtio_blk *blk = req->blk;
    unsigned feature = req->type == BLK_T_DISCARD ? BLK_F_DISCARD : BLK_F_WRITE_ZEROES;
    uint64_t length = chain->readable_bytes - sizeof(struct blk_header);
    uint64_t n = length / sizeof(struct blk_wire_range);
    uint8_t status = BLK_S_OK;

    if (!virtio_has(&blk->vdev, feature) || !offers_ranges(blk)) {
        finish(req, BLK_S_UNSUPP);
        return;
    }
    if (n == 0 || n > MAX_RANGES || length % sizeof(struct blk_wire_range) != 0)
        status = BLK_S_IOERR;
    for (uint64_t i = 0; i < n && status == BLK_S_OK; i++) {
        struct blk_wire_range wire;

        virtqueue_read(chain, sizeof(struct blk_header) + i * sizeof(wire), &wire, sizeof(wire));
        status = take_range(req, &wire);
    }
    if (status != BLK_S_OK)
        finish(req, status);
    else
        start_range(req);
}

/* §5.2.6: the serial fills 20 bytes, with zeroes behind it. */
static void answer_id(struct blk_request *req, const struct virtqueue_chain *chain)
{
    struct virtio_blk *blk = req->blk;
    uint64_t room = chain->writable_bytes - 1;
    uint32_t n = room < VIRTIO_BLK_ID_BYTES ? (uint32_t)room : VIRTIO_BLK_ID_BYTES;

    if (!take_pieces(req, chain, true, 0, n)) {
        finish(req, BLK_S_IOERR);
        return;
    }
    for (unsigned i = 0, at = 0; i < req->count; i++) {
        memcpy(req->iov[i].iov_base, blk->serial + at, req->iov[i].iov_len);
        memory_mark_dirty(blk->vdev.env->mem, req->gpa[i], req->iov[i].iov_len);
        at += (unsigned)req->iov[i].iov_len;
    }
    req->written = room == n ? n + 1 : n;
    finish(req, BLK_S_OK);
}

static void dispatch(struct blk_request *req, const struct virtqueue_chain *chain, uint64_t sector)
{
    switch (req->type) {
    case BLK_T_IN:
    case BLK_T_OUT:
        begin_transfer(req, chain, sector);
        return;
    case BLK_T_FLUSH:
        start_step(req, STEP_SYNC);
        return;
    case BLK_T_GET_ID:
        answer_id(req, chain);
        return;
    case BLK_T_DISCARD:
    case BLK_T_WRITE_ZEROES:
        begin_ranges(req, chain);
        return;
    default: /* §5.2.6.2 */
        finish(req, BLK_S_UNSUPP);
    }
}

/* Begins the request in blk->chain. False: it has no room for its status, which nothing answers. */
static bool begin(struct virtio_blk *blk, unsigned queue, struct blk_request *req)
{
    const struct virtqueue_chain *chain = &blk->chain;
    unsigned last = chain->n_readable + chain->n_writable;
    struct blk_header header = {0};

    if (chain->n_writable == 0)
        return false;
    last--;
    req->op.done = request_done;
    req->generation = blk->vdev.generation;
    req->queue = (uint16_t)queue;
    req->head = chain->head;
    /* §2.7.4.1, §5.2.6: no layout of pieces is assumed: the status is the last writable byte, the
     * header the first 16 readable ones. */
    req->status = chain->gpa[last] + chain->iov[last].iov_len - 1;
    req->written = chain->writable_bytes == 1 ? 1 : 0; /* from the first writable byte on */
    req->offset = 0;
    req->misaligned = false;
    req->first = 0;
    req->count = 0;
    req->range = 0;
    req->n_ranges = 0;
    if (virtqueue_read(chain, 0, &header, sizeof(header)) != sizeof(header)) {
        finish(req, BLK_S_IOERR);
        return true;
    }
    req->type = le32toh(header.type);
    dispatch(req, chain, le64toh(header.sector));
    return true;
}

/* The queue has more, but its turn is over: the next comes with a free slot, or by run_again(). */
static void set_starved(struct virtio_blk *blk, unsigned queue, bool slots_free)
{
    blk->starved |= 1u << queue;
    if (slots_free)
        loop_call(loop_of(blk), &blk->again);
}

static void blk_kicked(struct virtio_device *vdev, unsigned index)
{
    struct virtio_blk *blk = blk_of(vdev);
    struct virtqueue *vq = &vdev->queues[index];
    /* A guest that adds requests as fast as they are refused must not hold the loop. */
    unsigned budget = vq->st.size;

    for (;;) {
        struct blk_request *req = budget ? take_slot(blk) : NULL;
        int got;

        if (!req) {
            set_starved(blk, index, budget == 0);
            return;
        }
        got = virtqueue_pop(vq, &blk->chain);
        if (got > 0 && begin(blk, index, req)) {
            budget--;
            continue;
        }
        give_slot(req);
        if (got != 0)
            virtio_device_broken(vdev, got < 0 ? "a request's descriptors are malformed"
                                               : "a request has no room for its status");
        return;
    }
}

static void run_again(struct loop_call *call)
{
    struct virtio_blk *blk =
        (struct virtio_blk *)((char *)call - offsetof(struct virtio_blk, again));
    uint32_t starved;

    device_lock(blk->vdev.env);
    starved = blk->starved;
    blk->starved = 0;
    for (; starved; starved &= starved - 1)
        virtio_queue_kicked(&blk->vdev, (unsigned)__builtin_ctz(starved));
    device_unlock(blk->vdev.env);
}

/* ---- life cycle ---- */

static void blk_start(struct virtio_device *vdev)
{
    /* §5.2.5.2: "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the device
     * MUST initialize writeback to 0." */
    if (virtio_has(vdev, BLK_F_CONFIG_WCE) && !virtio_has(vdev, BLK_F_FLUSH))
        blk_of(vdev)->writeback = false;
}

static void blk_reset(struct virtio_device *vdev)
{
    struct virtio_blk *blk = blk_of(vdev);
    struct blk_request *req = blk->bounce_waiting;

    blk->bounce_waiting = NULL;
    blk->bounce_last = &blk->bounce_waiting;
    blk->starved = 0;
    blk->writeback = true;
    atomic_store_explicit(&blk->due, 0, memory_order_relaxed);
    while (req) { /* nothing of these is in flight now */
        struct blk_request *next = req->next;

        give_slot(req);
        req = next;
    }
}

static bool blk_busy(const struct virtio_device *vdev)
{
    const struct virtio_blk *blk = (const struct virtio_blk *)vdev;

    return blk->inflight > 0 || atomic_load_explicit(&blk->due, memory_order_relaxed) != 0;
}

struct blk_state {
    uint64_t size; /* bytes: another image is another disk */
    uint32_t block_size;
    bool readonly, writeback;
};

static const struct state_field blk_state_fields[] = {
    STATE_FIELD(STATE_U64, struct blk_state, size),
    STATE_FIELD(STATE_U32, struct blk_state, block_size),
    STATE_FIELD(STATE_BOOL, struct blk_state, readonly),
    STATE_FIELD(STATE_BOOL, struct blk_state, writeback),
};
static const struct state_desc blk_state_desc =
    STATE_DESC("virtio-blk", 1, struct blk_state, blk_state_fields);

static void state_get(void *object, void *to)
{
    const struct virtio_blk *blk = object;

    *(struct blk_state *)to = (struct blk_state){
        .size = blk->image.size,
        .block_size = blk->image.block_size,
        .readonly = blk->readonly,
        .writeback = blk->writeback,
    };
}

static int state_check(void *object, const void *from)
{
    const struct virtio_blk *blk = object;
    const struct blk_state *state = from;
    const char *what = NULL;

    if (state->size != blk->image.size)
        what = "size";
    else if (state->block_size != blk->image.block_size)
        what = "block size";
    else if (state->readonly != blk->readonly)
        what = "readonly option";
    if (!what)
        return 0;
    log_error("%s: saved state: the %s of the disk is another", blk->vdev.id, what);
    return -EINVAL;
}

static void state_set(void *object, const void *from)
{
    ((struct virtio_blk *)object)->writeback = ((const struct blk_state *)from)->writeback;
}

static bool blk_state_part(struct virtio_device *vdev, struct state_part *part)
{
    *part = (struct state_part){
        .desc = &blk_state_desc,
        .object = vdev,
        .get = state_get,
        .check = state_check,
        .set = state_set,
    };
    return true;
}

static bool is_idle(void *arg)
{
    const struct virtio_blk *blk = arg;

    return blk->inflight == 0 && !atomic_load(&blk->again.queued);
}

static void blk_destroy(struct virtio_device *vdev)
{
    struct virtio_blk *blk = blk_of(vdev);

    /* As after a reset: nothing goes to the guest any more. */
    vdev->generation++;
    blk_reset(vdev);
    for (unsigned i = 0; i < blk->slots_used; i++)
        loop_cancel(loop_of(blk), &blk->slots[i].op);
    loop_hook_remove(loop_of(blk), &blk->hook);
    if (loop_run_until(loop_of(blk), is_idle, blk, DESTROY_DEADLINE_NS) != 0) {
        /* The kernel may still write through what would be freed here; so it is left alone. */
        log_warn("%s: the host's disk does not answer; its last requests are given up", vdev->id);
        return;
    }
    blk_image_close(&blk->image);
    if (blk->bounce)
        munmap(blk->bounce, (size_t)BOUNCE_BUFFERS * BOUNCE_BYTES);
    free(blk->slots);
    virtqueue_chain_fini(&blk->chain);
    virtio_device_fini(vdev);
    free(blk);
}

static const struct virtio_class blk_class = {
    .name = "virtio-blk",
    .device_id = BLK_DEVICE_ID,
    .features = blk_features,
    .config_size = BLK_SPACE_BYTES,
    .config_read = blk_config_read,
    .config_write = blk_config_write,
    .start = blk_start,
    .kicked = blk_kicked,
    .reset = blk_reset,
    .busy = blk_busy,
    .state = blk_state_part,
    .destroy = blk_destroy,
};

static int init_queues(struct virtio_blk *blk, const struct device_env *env, const char *id,
                       const struct virtio_blk_config *config)
{
    uint16_t size = config->queue_size ? config->queue_size : VIRTIO_BLK_QUEUE_SIZE;
    unsigned n = config->n_queues ? config->n_queues : 1;
    uint16_t sizes[VIRTIO_BLK_MAX_QUEUES];

    if (n > VIRTIO_BLK_MAX_QUEUES || size > VIRTQUEUE_MAX_SIZE || (size & (size - 1)) != 0) {
        log_error("%s: %u queues of %u requests: at most %u queues, of a power of two up to %u", id,
                  n, size, VIRTIO_BLK_MAX_QUEUES, VIRTQUEUE_MAX_SIZE);
        return -EINVAL;
    }
    for (unsigned i = 0; i < n; i++)
        sizes[i] = size;
    blk->n_slots = n * size < MAX_SLOTS ? n * size : MAX_SLOTS;
    return virtio_device_init(&blk->vdev, &blk_class, env, id, n, sizes);
}

static int init_buffers(struct virtio_blk *blk)
{
    int err = virtqueue_chain_init(&blk->chain, VIRTQUEUE_MAX_PIECES);

    if (err)
        return err;
    /* From calloc() as fresh pages: what is never used costs no memory. */
    blk->slots = calloc(blk->n_slots, sizeof(*blk->slots));
    if (!blk->slots)
        return -ENOMEM;
    if (!blk->direct)
        return 0;
    blk->bounce = mmap(NULL, (size_t)BOUNCE_BUFFERS * BOUNCE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blk->bounce == MAP_FAILED) {
        blk->bounce = NULL;
        return -ENOMEM;
    }
    blk->bounce_free = (1u << BOUNCE_BUFFERS) - 1;
    return 0;
}

int virtio_blk_create(struct virtio_device **out, const struct device_env *env, const char *id,
                      const struct virtio_blk_config *config)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    const char *serial = config->serial ? config->serial : id;
    int err;

    if (!blk)
        return -ENOMEM;
    blk->image.fd = -1;
    blk->readonly = config->readonly;
    blk->direct = config->direct;
    blk->writeback = true;
    blk->bounce_last = &blk->bounce_waiting;
    blk->again.run = run_again;
    blk->hook.prepare = run_hook;
    memcpy(blk->serial, serial, strnlen(serial, sizeof(blk->serial)));
    err = init_queues(blk, env, id, config);
    if (err)
        goto free_blk;
    err = init_buffers(blk);
    if (err)
        goto free_buffers;
    err = blk_image_open(&blk->image, id,
                         &(struct blk_image_config){.path = config->path,
                                                    .readonly = config->readonly,
                                                    .direct = config->direct,
                                                    .unlocked = config->unlocked});
    if (err)
        goto free_buffers;
    loop_hook_add(env->loop, &blk->hook);
    *out = &blk->vdev;
    return 0;

free_buffers:
    if (blk->bounce)
        munmap(blk->bounce, (size_t)BOUNCE_BUFFERS * BOUNCE_BYTES);
    free(blk->slots);
    virtqueue_chain_fini(&blk->chain);
    virtio_device_fini(&blk->vdev);
free_blk:
    free(blk);
    return err;
}

int virtio_blk_lock(struct virtio_device *vdev, bool locked)
{
    struct virtio_blk *blk = blk_of(vdev);

    if (locked)
        return blk_image_lock(&blk->image, vdev->id, vdev->id, blk->readonly);
    if (!blk->readonly && fdatasync(blk->image.fd) < 0) {
        int err = -errno;
        log_error("%s: what the guest wrote cannot be brought to the disk: %s", vdev->id,
                  strerror(-err));
        return err;
    }
    blk_image_unlock(&blk->image);
    return 0;
}

void virtio_blk_sync(struct virtio_device *vdev)
{
    (void)fdatasync(blk_of(vdev)->image.fd);
}

uint64_t virtio_blk_bytes(const struct virtio_device *vdev)
{
    return ((const struct virtio_blk *)vdev)->image.size;
}

void virtio_blk_get_counters(const struct virtio_device *vdev, struct virtio_blk_counters *counters)
{
    *counters = ((const struct virtio_blk *)vdev)->counters;
}

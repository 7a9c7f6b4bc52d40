/*
 * Character streams: the ring between a front end and its back end, the credit for input, and the
 * two back ends that need no event loop (nothing, and a test's memory).
 *
 * Does no I/O; devices/chardev_stdio.c does. Everything is guarded by the device lock. Front ends
 * write from vCPU threads; what calls a front end back runs on the event loop's thread.
 */
#include "devices/chardev.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/chardev_internal.h"

/* ---- front end's side ---- */

void chardev_attach(struct chardev *chardev, struct chardev_front *front)
{
    chardev->front = front;
    chardev->credit = 0;
    chardev->refused = false;
}

static size_t ring_room(const struct chardev *chardev)
{
    return CHARDEV_RING_BYTES - chardev->used;
}

static void ring_put(struct chardev *chardev, const uint8_t *bytes, size_t n)
{
    size_t at = (chardev->start + chardev->used) % CHARDEV_RING_BYTES;
    size_t first = CHARDEV_RING_BYTES - at < n ? CHARDEV_RING_BYTES - at : n;

    memcpy(chardev->ring + at, bytes, first);
    memcpy(chardev->ring, bytes + first, n - first);
    chardev->used += n;
}

size_t chardev_write(struct chardev *chardev, const void *bytes, size_t n)
{
    size_t room = ring_room(chardev);
    size_t take = n < room ? n : room;

    if (chardev->gone)
        return n;
    if (take < n)
        chardev->refused = true;
    if (take == 0)
        return 0;
    ring_put(chardev, bytes, take);
    if (chardev->backend->output)
        chardev->backend->output(chardev);
    return take;
}

bool chardev_has_room(struct chardev *chardev, size_t n)
{
    if (chardev->gone || ring_room(chardev) >= n)
        return true;
    chardev->refused = true;
    return false;
}

void chardev_accept(struct chardev *chardev, size_t n)
{
    size_t before = chardev->credit;

    chardev->credit = n;
    /* A front end that accepts more while it is given some is served by the loop that gives. */
    if (n > 0 && before == 0 && !chardev->delivering && chardev->backend->input_wanted)
        chardev->backend->input_wanted(chardev);
}

int chardev_size(struct chardev *chardev, unsigned *columns, unsigned *rows)
{
    return chardev->backend->size ? chardev->backend->size(chardev, columns, rows) : -ENOTTY;
}

/* ---- back end's side ---- */

unsigned chardev_ring_peek(struct chardev *chardev, struct iovec iov[2])
{
    size_t to_end = CHARDEV_RING_BYTES - chardev->start;
    size_t first = chardev->used < to_end ? chardev->used : to_end;

    iov[0] = (struct iovec){chardev->ring + chardev->start, first};
    iov[1] = (struct iovec){chardev->ring, chardev->used - first};
    return chardev->used == 0 ? 0 : iov[1].iov_len == 0 ? 1 : 2;
}

static void tell_writable(struct chardev *chardev)
{
    if (!chardev->refused)
        return;
    if (!chardev->gone && ring_room(chardev) < CHARDEV_RING_BYTES / 2)
        return;
    chardev->refused = false;
    if (chardev->front)
        chardev->front->writable(chardev->front);
}

void chardev_ring_consume(struct chardev *chardev, size_t n)
{
    chardev->start = (chardev->start + n) % CHARDEV_RING_BYTES;
    chardev->used -= n;
    tell_writable(chardev);
}

void chardev_output_gone(struct chardev *chardev)
{
    chardev->gone = true;
    chardev_ring_consume(chardev, chardev->used);
}

size_t chardev_deliver(struct chardev *chardev, const uint8_t *bytes, size_t n)
{
    size_t given = 0;

    while (chardev->front && given < n && chardev->credit > 0) {
        size_t step = n - given < chardev->credit ? n - given : chardev->credit;

        chardev->credit -= step;
        chardev->delivering = true;
        chardev->front->input(chardev->front, bytes + given, step);
        chardev->delivering = false;
        given += step;
    }
    return given;
}

void chardev_deliver_break(struct chardev *chardev)
{
    if (chardev->front && chardev->front->send_break)
        chardev->front->send_break(chardev->front);
}

int chardev_break(struct chardev *chardev)
{
    if (!chardev->front || !chardev->front->send_break)
        return -ENOTTY;
    chardev->front->send_break(chardev->front);
    return 0;
}

void chardev_deliver_resize(struct chardev *chardev)
{
    if (chardev->front && chardev->front->resized)
        chardev->front->resized(chardev->front);
}

/* ---- owner's side ---- */

int chardev_drain(struct chardev *chardev, uint64_t deadline_ns)
{
    if (!chardev || !chardev->backend->drain)
        return 0;
    return chardev->backend->drain(chardev, deadline_ns);
}

void chardev_destroy(struct chardev *chardev)
{
    if (chardev)
        chardev->backend->destroy(chardev);
}

/* ---- nothing ---- */

static void null_destroy(struct chardev *chardev)
{
    free(chardev);
}

static const struct chardev_backend null_backend = {.destroy = null_destroy};

int chardev_null_create(struct chardev **out)
{
    struct chardev *chardev = calloc(1, sizeof(*chardev));

    if (!chardev)
        return -ENOMEM;
    chardev->backend = &null_backend;
    chardev->gone = true;
    *out = chardev;
    return 0;
}

/* ---- a test's memory ---- */

struct memory_chardev {
    struct chardev base; /* first */
    unsigned columns, rows;
};

static int memory_chardev_size(struct chardev *chardev, unsigned *columns, unsigned *rows)
{
    struct memory_chardev *memory = (struct memory_chardev *)chardev;

    if (memory->columns == 0)
        return -ENOTTY;
    *columns = memory->columns;
    *rows = memory->rows;
    return 0;
}

static const struct chardev_backend memory_backend = {
    .size = memory_chardev_size,
    .destroy = null_destroy,
};

int chardev_memory_create(struct chardev **out)
{
    struct memory_chardev *memory = calloc(1, sizeof(*memory));

    if (!memory)
        return -ENOMEM;
    memory->base.backend = &memory_backend;
    *out = &memory->base;
    return 0;
}

size_t chardev_memory_take(struct chardev *chardev, void *bytes, size_t n)
{
    struct iovec iov[2];
    size_t taken = 0;
    unsigned pieces = chardev_ring_peek(chardev, iov);

    for (unsigned i = 0; i < pieces; i++) {
        size_t step = n - taken < iov[i].iov_len ? n - taken : iov[i].iov_len;

        memcpy((uint8_t *)bytes + taken, iov[i].iov_base, step);
        taken += step;
    }
    chardev_ring_consume(chardev, taken);
    return taken;
}

size_t chardev_memory_feed(struct chardev *chardev, const void *bytes, size_t n)
{
    return chardev_deliver(chardev, bytes, n);
}

void chardev_memory_break(struct chardev *chardev)
{
    chardev_deliver_break(chardev);
}

void chardev_memory_resize(struct chardev *chardev, unsigned columns, unsigned rows)
{
    struct memory_chardev *memory = (struct memory_chardev *)chardev;

    memory->columns = columns;
    memory->rows = rows;
    chardev_deliver_resize(chardev);
}

/*
 * Captures: frames as pcapng blocks, through two buffers that take turns at being filled and
 * written.
 *
 * Chooses no frames (net/switch_mirror.c does) and opens no files. A write is started when the loop
 * is about to sleep, so that what came in a round goes out at once; or earlier, when a buffer is
 * full. Nothing is allocated after creation but for the names of interfaces, which is not on a
 * frame's way.
 *
 * Loop's thread; no locks.
 *
 * Texts: draft-ietf-opsawg-pcapng §3.5 (options), §4.1 (section header), §4.2 (interface), §4.3
 * (enhanced packet), §4.6 (statistics). Numbers are in the host's order, which a reader sees.
 */
#include "net/capture.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define BUFFER (256u * 1024)
#define INTERFACES_MAX 1024u
#define NAME_MAX_ 63u

#define BLOCK_SECTION 0x0A0D0D0A
#define BLOCK_INTERFACE 1
#define BLOCK_STATISTICS 5
#define BLOCK_PACKET 6
#define BYTE_ORDER_MAGIC 0x1A2B3C4D
#define LINKTYPE_ETHERNET 1

#define OPTION_END 0
#define SECTION_USER_APPLICATION 4
#define INTERFACE_NAME 2
#define INTERFACE_RESOLUTION 9
#define STATISTICS_DROPPED 5
#define PACKET_FLAGS 2
#define FLAGS_INBOUND 1
#define FLAGS_OUTBOUND 2

struct buffer {
    size_t length;
    uint8_t bytes[BUFFER];
};

struct interface {
    char name[NAME_MAX_ + 1];
    uint64_t dropped;
};

struct capture {
    struct loop *loop;
    struct loop_hook hook;    /* before the loop sleeps */
    struct loop_op op;        /* the write under way */
    struct loop_timer ending; /* the end, out of the way of who asked for it */
    int fd;
    uint32_t snap_length;
    int error;
    unsigned filling;         /* of the two buffers; the other is empty or being written */
    size_t written;           /* of the other */
    struct interface *interfaces;
    unsigned n_interfaces;
    bool finishing;
    void (*stopped)(void *arg, int error);
    void *arg;
    struct buffer buffers[2];
};

/* ---- blocks ---- */

struct block_head {
    uint32_t type, length;
};

struct section {
    struct block_head head;
    uint32_t magic;
    uint16_t major, minor;
    int64_t section_length;
} __attribute__((packed));
_Static_assert(sizeof(struct section) == 24, "pcapng §4.1");

struct interface_description {
    struct block_head head;
    uint16_t link_type, reserved;
    uint32_t snap_length;
};
_Static_assert(sizeof(struct interface_description) == 16, "pcapng §4.2");

struct packet {
    struct block_head head;
    uint32_t interface, time_high, time_low, captured, original;
};
_Static_assert(sizeof(struct packet) == 28, "pcapng §4.3");

struct packet_end {
    uint16_t flags_code, flags_length;
    uint32_t flags;
    uint16_t end_code, end_length;
    uint32_t length;
};
_Static_assert(sizeof(struct packet_end) == 16, "pcapng §3.5, §4.3.1");

struct statistics {
    struct block_head head;
    uint32_t interface, time_high, time_low;
    uint16_t dropped_code, dropped_length;
    uint64_t dropped;
    uint16_t end_code, end_length;
    uint32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct statistics) == 40, "pcapng §4.6");

static size_t padded(size_t length)
{
    return (length + 3) & ~(size_t)3;
}

static void write_more(struct capture *capture);

/* Room for a block in the buffer that is being filled, or NULL. Its length is set by the caller. */
static uint8_t *reserve(struct capture *capture, size_t length)
{
    struct buffer *buffer = &capture->buffers[capture->filling];

    if (capture->error || length > BUFFER)
        return NULL;
    if (buffer->length + length > BUFFER) {
        write_more(capture);
        buffer = &capture->buffers[capture->filling];
    }
    if (buffer->length + length > BUFFER)
        return NULL;
    buffer->length += length;
    return buffer->bytes + buffer->length - length;
}

/* An option of text; returns what is behind it. */
static uint8_t *put_option(uint8_t *at, uint16_t code, const void *value, size_t length)
{
    uint16_t head[2] = {code, (uint16_t)length};

    memcpy(at, head, sizeof(head));
    memset(at + 4, 0, padded(length));
    memcpy(at + 4, value, length);
    return at + 4 + padded(length);
}

static void put_end(uint8_t *at, uint32_t length)
{
    uint32_t end = OPTION_END;

    memcpy(at, &end, 4);
    memcpy(at + 4, &length, 4);
}

static void put_section(struct capture *capture)
{
    static const char program[] = "ferry " FERRY_VERSION;
    size_t text = sizeof(program) - 1;
    uint32_t length = (uint32_t)(sizeof(struct section) + 4 + padded(text) + 8);
    struct section section = {{BLOCK_SECTION, length}, BYTE_ORDER_MAGIC, 1, 0, -1};
    uint8_t *at = reserve(capture, length);

    memcpy(at, &section, sizeof(section));
    at = put_option(at + sizeof(section), SECTION_USER_APPLICATION, program, text);
    put_end(at, length);
}

static bool put_interface(struct capture *capture, const char *name)
{
    static const uint8_t nanoseconds = 9; /* 10^-9 */
    uint32_t length = (uint32_t)(sizeof(struct interface_description) + 4 + padded(strlen(name)) +
                                 4 + 4 + 8);
    struct interface_description description = {
        {BLOCK_INTERFACE, length}, LINKTYPE_ETHERNET, 0, capture->snap_length,
    };
    uint8_t *at = reserve(capture, length);

    if (!at)
        return false;
    memcpy(at, &description, sizeof(description));
    at = put_option(at + sizeof(description), INTERFACE_NAME, name, strlen(name));
    at = put_option(at, INTERFACE_RESOLUTION, &nanoseconds, 1);
    put_end(at, length);
    return true;
}

uint16_t capture_interface(struct capture *capture, const char *name)
{
    struct interface *interfaces;
    unsigned i;

    for (i = 0; i < capture->n_interfaces; i++) {
        if (strncmp(capture->interfaces[i].name, name, NAME_MAX_) == 0)
            return (uint16_t)i;
    }
    /* Without memory, room or an end to new names, frames go under the first's. */
    if (i == INTERFACES_MAX)
        return 0;
    interfaces = reallocarray(capture->interfaces, i + 1, sizeof(*interfaces));
    if (!interfaces)
        return 0;
    capture->interfaces = interfaces;
    interfaces[i] = (struct interface){0};
    memcpy(interfaces[i].name, name, strnlen(name, NAME_MAX_));
    if (!put_interface(capture, interfaces[i].name))
        return 0;
    capture->n_interfaces++;
    return (uint16_t)i;
}

static uint64_t real_time_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void copy_start(uint8_t *to, const struct net_frame *frame, size_t length)
{
    for (unsigned i = 0; i < frame->iovcnt && length > 0; i++) {
        size_t run = frame->iov[i].iov_len < length ? frame->iov[i].iov_len : length;

        memcpy(to, frame->iov[i].iov_base, run);
        to += run;
        length -= run;
    }
    memset(to, 0, length);
}

static bool put_frame(struct capture *capture, uint16_t interface, bool in,
                      const struct net_frame *frame, uint64_t now_ns)
{
    uint32_t kept = frame->length < capture->snap_length ? (uint32_t)frame->length
                                                         : capture->snap_length;
    uint32_t length = (uint32_t)(sizeof(struct packet) + padded(kept) + sizeof(struct packet_end));
    struct packet packet = {
        {BLOCK_PACKET, length}, interface, (uint32_t)(now_ns >> 32), (uint32_t)now_ns,
        kept, (uint32_t)frame->length,
    };
    struct packet_end end = {
        PACKET_FLAGS, 4, in ? FLAGS_INBOUND : FLAGS_OUTBOUND, OPTION_END, 0, length,
    };
    uint8_t *at = reserve(capture, length);

    if (!at)
        return false;
    memcpy(at, &packet, sizeof(packet));
    at += sizeof(packet);
    copy_start(at, frame, kept);
    memset(at + kept, 0, padded(kept) - kept);
    memcpy(at + padded(kept), &end, sizeof(end));
    return true;
}

unsigned capture_frames(struct capture *capture, uint16_t interface, bool in,
                        const struct net_frame *frames, unsigned n)
{
    uint64_t now_ns = real_time_ns();
    unsigned kept = 0;

    if (interface >= capture->n_interfaces)
        return 0;
    for (unsigned i = 0; i < n; i++)
        kept += put_frame(capture, interface, in, &frames[i], now_ns);
    capture->interfaces[interface].dropped += n - kept;
    return kept;
}

static void put_statistics(struct capture *capture)
{
    uint64_t now_ns = real_time_ns();

    for (unsigned i = 0; i < capture->n_interfaces; i++) {
        struct statistics statistics = {
            {BLOCK_STATISTICS, sizeof(statistics)}, i, (uint32_t)(now_ns >> 32),
            (uint32_t)now_ns, STATISTICS_DROPPED, 8, capture->interfaces[i].dropped,
            OPTION_END, 0, sizeof(statistics),
        };
        uint8_t *at = reserve(capture, sizeof(statistics));

        if (at)
            memcpy(at, &statistics, sizeof(statistics));
    }
}

/* ---- writing ---- */

static void submit(struct capture *capture)
{
    struct buffer *buffer = &capture->buffers[!capture->filling];

    loop_write(capture->loop, &capture->op, capture->fd, buffer->bytes + capture->written,
               buffer->length - capture->written, LOOP_STREAM);
}

/* Starts writing what has been filled, unless a write is under way. */
static void write_more(struct capture *capture)
{
    if (capture->op.pending || capture->buffers[capture->filling].length == 0 || capture->error)
        return;
    capture->filling = !capture->filling;
    capture->buffers[capture->filling].length = 0;
    capture->written = 0;
    submit(capture);
}

static void end(struct capture *capture)
{
    void (*stopped)(void *arg, int error) = capture->stopped;
    void *arg = capture->arg;
    int error = capture->error;

    loop_hook_remove(capture->loop, &capture->hook);
    close(capture->fd);
    free(capture->interfaces);
    free(capture);
    if (stopped)
        stopped(arg, error);
}

static void end_if_done(struct capture *capture)
{
    if (!capture->finishing || capture->op.pending)
        return;
    if (!capture->error && capture->buffers[capture->filling].length > 0)
        write_more(capture);
    else
        loop_timer_set(capture->loop, &capture->ending, 0);
}

static void wrote(struct loop_op *op, int result)
{
    struct capture *capture = (struct capture *)((char *)op - offsetof(struct capture, op));
    struct buffer *buffer = &capture->buffers[!capture->filling];

    if (capture->error) { /* it is being destroyed: what became of the write does not matter */
        end_if_done(capture);
        return;
    }
    if (result <= 0 && result != -EINTR && result != -EAGAIN) {
        capture->error = result < 0 ? result : -EIO;
        log_warn("a capture ends early: cannot write to its file: %s", strerror(-capture->error));
    } else {
        capture->written += result > 0 ? (size_t)result : 0;
        if (capture->written < buffer->length) {
            submit(capture);
            return;
        }
    }
    end_if_done(capture);
}

static void before_sleep(struct loop_hook *hook)
{
    write_more((struct capture *)((char *)hook - offsetof(struct capture, hook)));
}

static void ending(struct loop_timer *timer)
{
    struct capture *capture = (struct capture *)((char *)timer - offsetof(struct capture, ending));

    if (capture->op.pending || (!capture->error && capture->buffers[capture->filling].length > 0))
        end_if_done(capture);
    else
        end(capture);
}

/* ---- life ---- */

int capture_create(struct capture **out, struct loop *loop, int fd, unsigned snap_length)
{
    struct capture *capture = calloc(1, sizeof(*capture));

    if (!capture)
        return -ENOMEM;
    capture->loop = loop;
    capture->fd = fd;
    /* Frames with offloads are of NET_FRAME_MAX bytes at most, and fit into a buffer. */
    capture->snap_length = snap_length && snap_length < NET_FRAME_MAX ? snap_length : NET_FRAME_MAX;
    capture->op.done = wrote;
    capture->ending.expired = ending;
    capture->hook.prepare = before_sleep;
    loop_hook_add(loop, &capture->hook);
    put_section(capture);
    *out = capture;
    return 0;
}

void capture_finish(struct capture *capture, void (*stopped)(void *arg, int error), void *arg)
{
    capture->finishing = true;
    capture->stopped = stopped;
    capture->arg = arg;
    put_statistics(capture);
    if (!capture->op.pending)
        loop_timer_set(capture->loop, &capture->ending, 0);
}

static bool is_idle(void *arg)
{
    return !((struct capture *)arg)->op.pending;
}

void capture_destroy(struct capture *capture)
{
    if (!capture)
        return;
    capture->stopped = NULL;
    capture->error = capture->error ? capture->error : -ECANCELED;
    if (capture->op.pending) {
        loop_cancel(capture->loop, &capture->op);
        loop_run_until(capture->loop, is_idle, capture, 0);
    }
    loop_timer_cancel(&capture->ending);
    end(capture);
}

int capture_error(const struct capture *capture)
{
    return capture->error;
}

/*
 * The framing of a stream port against any bytes: a peer sends them in pieces, the receiver refuses
 * frames now and then, and what arrives must be what a naive reader finds: each frame up to the
 * first length that no frame has, in order and whole.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/port.h"
#include "net/stream_port.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define INPUT_MAX 100000u

struct receiver {
    struct net_port port;
    const uint8_t *at, *end; /* what the peer sent, from the next frame's length on */
    unsigned refusals;       /* bits: whether to refuse, this time and the next ones */
    bool refused;
};

static struct loop *loop;

static void no_log(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static size_t length_of(const struct receiver *r)
{
    uint32_t length;

    memcpy(&length, r->at, 4);
    return ntohl(length);
}

/* Passes over records that are too short for a frame. */
static void skip_short(struct receiver *r)
{
    while (r->end - r->at >= 4 && length_of(r) < NET_FRAME_MIN &&
           (size_t)(r->end - r->at) >= 4 + length_of(r))
        r->at += 4 + length_of(r);
}

static void expect(struct receiver *r, const struct net_frame *frame)
{
    static uint8_t bytes[NET_FRAME_MAX];

    skip_short(r);
    FUZZ_CHECK(r->end - r->at >= 4 && length_of(r) == frame->length);
    FUZZ_CHECK((size_t)(r->end - r->at) >= 4 + frame->length);
    net_frame_copy(frame, bytes);
    FUZZ_CHECK(memcmp(bytes, r->at + 4, frame->length) == 0);
    r->at += 4 + frame->length;
}

static unsigned deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct receiver *r = (struct receiver *)port;
    unsigned taken = n;

    if (r->refusals & 1)
        taken = n / 2;
    r->refusals >>= 1;
    r->refused = taken < n; /* seldom: there are only so many bits */
    for (unsigned i = 0; i < taken; i++)
        expect(r, &frames[i]);
    return taken;
}

static const struct net_port_ops ops = {.deliver = deliver};

struct run {
    struct stream_port *stream;
    struct receiver *receiver;
    int peer;
    const uint8_t *data;
    size_t left, piece;
};

/* Sends some more, lets the receiver go on; true when the port has seen the end. */
static bool step(void *arg)
{
    struct run *run = arg;
    size_t size = run->left < run->piece ? run->left : run->piece;
    ssize_t sent = size > 0 ? send(run->peer, run->data, size, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

    if (sent > 0) {
        run->data += sent;
        run->left -= (size_t)sent;
    }
    if (run->left == 0)
        (void)shutdown(run->peer, SHUT_WR);
    while (run->receiver->refused)
        net_port_ready(&run->receiver->port);
    return !stream_port_connected(run->stream);
}

/* Whether a naive reader, too, is at its end: no whole record left, or one of a length that is none. */
static bool at_end(struct receiver *r)
{
    skip_short(r);
    return r->end - r->at < 4 || length_of(r) > NET_FRAME_MAX ||
           (size_t)(r->end - r->at) < 4 + length_of(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct receiver receiver = {.port = {.ops = &ops, .name = "receiver"}};
    struct stream_config config = {.name = "net0"};
    struct run run = {.receiver = &receiver};
    int ends[2];

    log_set_sink(no_log);
    if (size < 3 || size > INPUT_MAX || (!loop && loop_create(&loop, 8) < 0) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return 0;
    config.fd = ends[0];
    run.peer = ends[1];
    run.piece = data[0] ? data[0] * 16u : INPUT_MAX;
    receiver.refusals = data[1];
    receiver.at = run.data = data + 2;
    run.left = size - 2;
    receiver.end = data + size;
    FUZZ_CHECK(stream_port_create(&run.stream, loop, &config) == 0);
    net_port_connect(&receiver.port, stream_port(run.stream));
    FUZZ_CHECK(loop_run_until(loop, step, &run, 60000000000ull) == 0);
    FUZZ_CHECK(at_end(&receiver));
    stream_port_destroy(run.stream);
    close(run.peer);
    return 0;
}

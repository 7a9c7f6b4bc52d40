/*
 * virtio-net in two ways, by the input's first byte: under a hostile guest, with a peer that sends,
 * answers, refuses and unplugs itself, where what leaves the card must be a frame and the device
 * lock must be free; and under an orderly guest that adds buffers cut anyhow, sends and receives,
 * where a naive model says which buffers each frame must take and what they must hold.
 */
#include <linux/virtio_net.h>
#include <string.h>

#include "devices/virtio/net.h"
#include "net/offload.h"
#include "tests/fuzz/virtio_guest.h"

enum { RX, TX };

#define HEADER 12u
#define MAX_STEPS 100
/* Of what there is, the model is without filters, offloads and reports of hashes. */
#define NOT_MODELLED                                                                               \
    (1ull << VIRTIO_NET_F_CTRL_RX | 1ull << VIRTIO_NET_F_CTRL_VLAN |                               \
     1ull << VIRTIO_NET_F_HASH_REPORT | 1ull << VIRTIO_NET_F_CSUM)
#define MAX_BUFFERS FUZZ_QUEUE_MAX
#define MAX_PIECES 6u
#define MAX_FRAME 9000u
#define TX_AT FUZZ_DATA             /* 16 KiB */
#define RX_AT (FUZZ_DATA + 0x4000u) /* the rest */
#define RX_BYTES (FUZZ_MEMORY - RX_AT)

static const struct virtio_net_options one_pair = {.mac = {0x02, 0, 0, 0, 0, 1}, .mtu = 9000};
static const struct virtio_net_options two_pairs = {.mac = {0x02, 0, 0, 0, 0, 1}, .pairs = 2};

static struct fuzz_guest guest;
static struct net_port *card;

struct peer {
    struct net_port port;
    unsigned takes; /* of a batch */
    bool answers;
    unsigned readied;
    uint8_t last[NET_FRAME_MAX];
    size_t last_length;
};
static struct peer peer;
static uint8_t bytes[NET_FRAME_MAX];

/* A frame in up to three pieces. Whether it was taken. */
static bool send_to_card(struct fuzz_input *in, size_t length)
{
    size_t first = fuzz_take(in, 1), second = fuzz_take(in, 2);
    struct iovec iov[3];
    struct net_frame frame = {.iov = iov, .iovcnt = 3, .length = length};

    first = first < length ? first : length;
    second = second < length - first ? second : length - first;
    iov[0] = (struct iovec){bytes, first};
    iov[1] = (struct iovec){bytes + first, second};
    iov[2] = (struct iovec){bytes + first + second, length - first - second};
    return net_port_send(&peer.port, &frame, 1) == 1;
}

/* A frame with metadata as the input has them, from a peer that nobody checked. */
static void send_with_metadata(struct fuzz_input *in)
{
    struct iovec iov = {bytes, NET_FRAME_MIN + fuzz_take(in, 2) % (NET_FRAME_MAX - 13)};
    struct net_frame frame = {
        .iov = &iov, .iovcnt = 1, .length = iov.iov_len, .needs_csum = fuzz_take(in, 1) & 1,
        .gso_type = (uint8_t)fuzz_take(in, 1), .csum_start = (uint16_t)fuzz_take(in, 2),
        .csum_offset = (uint16_t)fuzz_take(in, 2), .gso_size = (uint16_t)fuzz_take(in, 2),
    };

    for (unsigned i = 12; i < 60; i++)
        bytes[i] = (uint8_t)fuzz_take(in, 1);
    (void)net_port_send(&peer.port, &frame, 1);
}

static void look_at(const struct net_frame *frame)
{
    struct fuzz_input none = {0};
    size_t sum = 0;

    FUZZ_CHECK(frame->length >= NET_FRAME_MIN && frame->length <= NET_FRAME_MAX);
    for (unsigned i = 0; i < frame->iovcnt; i++)
        sum += frame->iov[i].iov_len;
    FUZZ_CHECK(sum == frame->length);
    /* Whatever the guest asked for, the peer gets what it accepts and what makes sense. */
    FUZZ_CHECK((net_offload_needs(frame) & ~net_port_accepts(&peer.port)) == 0);
    if (frame->needs_csum)
        FUZZ_CHECK(frame->csum_start + (size_t)frame->csum_offset + 2 <= frame->length);
    if (frame->gso_type)
        FUZZ_CHECK(frame->needs_csum && frame->gso_size > 0 && frame->hdr_len <= frame->length);
    net_frame_copy(frame, peer.last);
    peer.last_length = frame->length;
    if (peer.answers)
        (void)send_to_card(&none, frame->length);
}

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    (void)port;
    FUZZ_CHECK(n > 0 && n <= NET_BATCH);
    FUZZ_CHECK(pthread_mutex_trylock(guest.env.lock) == 0);
    pthread_mutex_unlock(guest.env.lock);
    for (unsigned i = 0; i < n; i++)
        look_at(&frames[i]);
    return n < peer.takes ? n : peer.takes;
}

static void peer_ready(struct net_port *port)
{
    (void)port;
    peer.readied++;
}

static const struct net_port_ops peer_ops = {.deliver = peer_deliver, .ready = peer_ready};

/* Borrows the guest's buffers, writes all over them as a system call might, and gives them back, with or
 * without a frame. */
static void borrow(struct fuzz_input *in)
{
    static struct net_loan loan;
    struct net_frame frame = {.length = NET_FRAME_MIN + fuzz_take(in, 2) % (NET_FRAME_MAX - 13)};
    size_t room = 0;

    if (!net_port_borrow(&peer.port, &loan))
        return;
    FUZZ_CHECK(pthread_mutex_trylock(guest.env.lock) == 0);
    pthread_mutex_unlock(guest.env.lock);
    FUZZ_CHECK(loan.n <= NET_LOAN_PIECES && virtio_busy(guest.vdev));
    for (unsigned i = 0; i < loan.n; i++) {
        memset(loan.iov[i].iov_base, (int)i, loan.iov[i].iov_len);
        room += loan.iov[i].iov_len;
    }
    FUZZ_CHECK(room >= NET_FRAME_MAX);
    frame.needs_csum = fuzz_take(in, 1) & 1;
    net_port_return(&peer.port, frame.length & 1 ? &frame : NULL);
    FUZZ_CHECK(!virtio_busy(guest.vdev));
}

/* ---- the hostile guest's surroundings ---- */

static void be_peer(struct fuzz_guest *g, struct fuzz_input *in)
{
    static const unsigned takes[] = {NET_BATCH, 0, 1, 3};
    uint8_t what = (uint8_t)fuzz_take(in, 1);

    switch (what % 8) {
    case 6:
        peer.port.accepts = fuzz_take(in, 1) & 63;
        break;
    case 7:
        send_with_metadata(in);
        break;
    case 0:
        (void)send_to_card(in, NET_FRAME_MIN + fuzz_take(in, 2) % (NET_FRAME_MAX - 13));
        break;
    case 1:
        if (what >> 6 == 1)
            borrow(in);
        net_port_flush(&peer.port);
        break;
    case 2:
        net_port_ready(&peer.port);
        break;
    case 3:
        peer.takes = takes[what >> 6];
        peer.answers = what & 32;
        break;
    case 4:
        device_lock(&g->env);
        virtio_net_set_link(g->vdev, what >> 7);
        device_unlock(&g->env);
        break;
    case 5:
        if (card->peer)
            net_port_disconnect(&peer.port);
        else
            net_port_connect(card, &peer.port);
        break;
    }
}

/* ---- the orderly guest's model ---- */

struct buffer {
    uint16_t head;
    unsigned n_pieces;
    struct fuzz_piece pieces[MAX_PIECES];
    uint32_t length;
};

static struct {
    struct buffer buffers[MAX_BUFFERS]; /* in order, the oldest first */
    unsigned n_buffers, n_pieces;
    uint32_t at;                        /* in the receive area: where the next buffer goes */
    uint16_t used;
} model;

/* Cuts `length` bytes at gpa into at most MAX_PIECES pieces. */
static unsigned cut(struct fuzz_input *in, struct fuzz_piece *pieces, gpa_t gpa, uint32_t length,
                    bool writable)
{
    unsigned n = 0;

    while (length > 0) {
        uint32_t piece = n + 1 < MAX_PIECES ? (uint32_t)fuzz_take(in, 1) * 4 + 1 : length;

        if (piece > length)
            piece = length;
        pieces[n++] = (struct fuzz_piece){gpa, piece, writable};
        gpa += piece;
        length -= piece;
    }
    return n;
}

static void wipe(const struct buffer *buffer)
{
    memset(fuzz_guest_at(&guest, buffer->pieces[0].gpa, buffer->length), 0xEE, buffer->length);
}

static void add_buffer(struct fuzz_input *in)
{
    struct buffer *buffer = &model.buffers[model.n_buffers];
    uint32_t length = HEADER + (uint32_t)fuzz_take(in, 2) % 4000;

    /* Only so many that neither descriptors nor bytes of two of them overlap. */
    if (model.n_buffers == 32 || model.n_pieces + MAX_PIECES > FUZZ_QUEUE_MAX)
        return;
    if (model.at + length > RX_BYTES)
        model.at = 0;
    buffer->length = length;
    buffer->n_pieces = cut(in, buffer->pieces, RX_AT + model.at, length, true);
    buffer->head = fuzz_guest_add(&guest, RX, buffer->pieces, buffer->n_pieces);
    wipe(buffer);
    model.at += length;
    model.n_pieces += buffer->n_pieces;
    model.n_buffers++;
    fuzz_guest_kick(&guest, RX);
}

static void take_oldest(void)
{
    model.n_pieces -= model.buffers[0].n_pieces;
    model.n_buffers--;
    memmove(model.buffers, model.buffers + 1, model.n_buffers * sizeof(model.buffers[0]));
}

/* How many buffers a frame takes: 0 when there are not enough, -1 when it never fits. */
static int model_buffers(size_t length)
{
    uint64_t room = 0;

    if (!virtio_has(guest.vdev, VIRTIO_NET_F_MRG_RXBUF)) {
        if (model.n_buffers == 0)
            return 0;
        return model.buffers[0].length >= HEADER + length ? 1 : -1;
    }
    for (unsigned i = 0; i < model.n_buffers; i++) {
        room += model.buffers[i].length;
        if (room >= HEADER + length)
            return (int)i + 1;
    }
    return 0;
}

/* The used entry and the contents of the oldest buffer, of which `used` bytes are the card's. */
static void check_buffer(const uint8_t *expected, uint32_t used)
{
    const struct buffer *buffer = &model.buffers[0];
    /* A ring entry: id and length (virtio 1.2 §2.7.8); behind the queue's base, see virtio_guest.c. */
    const uint8_t *entry = fuzz_guest_at(&guest, 0x2000 + 4 + 8ull * (model.used % 64), 8);
    uint32_t id, length;

    memcpy(&id, entry, 4);
    memcpy(&length, entry + 4, 4);
    FUZZ_CHECK(id == buffer->head && length == used);
    FUZZ_CHECK(memcmp(fuzz_guest_at(&guest, buffer->pieces[0].gpa, used), expected, used) == 0);
    for (uint32_t i = used; i < buffer->length; i++)
        FUZZ_CHECK(*(uint8_t *)fuzz_guest_at(&guest, buffer->pieces[0].gpa + i, 1) == 0xEE);
    model.used++;
    take_oldest();
}

static void receive(struct fuzz_input *in)
{
    static uint8_t expected[HEADER + MAX_FRAME];
    size_t length = NET_FRAME_MIN + fuzz_take(in, 2) % (MAX_FRAME - NET_FRAME_MIN + 1);
    int n = model_buffers(length);
    bool taken;
    size_t done = 0;

    memset(bytes, (int)fuzz_take(in, 1), length);
    bytes[length - 1] ^= 0xFF;
    bytes[0] = 0x02;
    taken = send_to_card(in, length);
    FUZZ_CHECK(taken == (n != 0));
    memset(expected, 0, HEADER);
    expected[10] = n > 0 ? (uint8_t)n : 0;
    memcpy(expected + HEADER, bytes, length);
    for (; n > 0; n--) {
        uint32_t room = model.buffers[0].length;
        uint32_t used = room < HEADER + length - done ? room : (uint32_t)(HEADER + length - done);

        check_buffer(expected + done, used);
        done += used;
    }
    FUZZ_CHECK(fuzz_guest_used(&guest, RX) == model.used);
    /* A frame for which the buffers did not suffice may have been begun: they are the card's. */
    for (unsigned i = 0; i < model.n_buffers; i++)
        wipe(&model.buffers[i]);
    if (!taken && model.n_buffers < 32 && model.n_pieces + MAX_PIECES <= FUZZ_QUEUE_MAX) {
        unsigned before = peer.readied;

        add_buffer(in);
        FUZZ_CHECK(peer.readied == before + 1);
    }
}

static void transmit(struct fuzz_input *in)
{
    uint32_t length = (uint32_t)fuzz_take(in, 2) % MAX_FRAME;
    uint8_t *at = fuzz_guest_at(&guest, TX_AT, HEADER + length);
    uint16_t used = fuzz_guest_used(&guest, TX);
    struct fuzz_piece pieces[MAX_PIECES];
    unsigned n = cut(in, pieces, TX_AT, HEADER + length, false);

    for (uint32_t i = 0; i < HEADER + length; i++)
        at[i] = (uint8_t)(i * 7 >> (i & 1 ? 8 : 0));
    peer.last_length = 0;
    fuzz_guest_add(&guest, TX, pieces, n);
    fuzz_guest_kick(&guest, TX);
    FUZZ_CHECK(fuzz_guest_used(&guest, TX) == (uint16_t)(used + 1));
    FUZZ_CHECK(peer.last_length == (length < NET_FRAME_MIN ? 0 : length));
    FUZZ_CHECK(memcmp(peer.last, at + HEADER, peer.last_length) == 0);
}

static void be_orderly(struct fuzz_input *in)
{
    fuzz_guest_start(&guest, fuzz_take(in, 8) & ~NOT_MODELLED, FUZZ_QUEUE_MAX);
    memset(&model, 0, sizeof(model));
    for (unsigned i = 0; i < MAX_STEPS && in->left > 0; i++) {
        switch (fuzz_take(in, 1) % 4) {
        case 0:
        case 1:
            add_buffer(in);
            break;
        case 2:
            receive(in);
            break;
        case 3:
            transmit(in);
            break;
        }
        FUZZ_CHECK(virtio_device_live(guest.vdev));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t how = (uint8_t)fuzz_take(&in, 1);
    const struct virtio_net_options *options = (how & 3) == 2 ? &two_pairs : &one_pair;
    struct virtio_device *vdev;

    if (!guest.env.mem)
        fuzz_guest_init(&guest);
    FUZZ_CHECK(virtio_net_create(&vdev, &guest.env, "net0", options, &card) == 0);
    peer = (struct peer){.port = {.ops = &peer_ops, .name = "peer"}, .takes = NET_BATCH};
    net_port_connect(card, &peer.port);
    guest.outside = be_peer;
    fuzz_guest_attach(&guest, vdev);
    if (how & 1)
        be_orderly(&in);
    else
        fuzz_guest_run(&guest, &in);
    fuzz_guest_detach(&guest);
    FUZZ_CHECK(!peer.port.peer);
    return 0;
}

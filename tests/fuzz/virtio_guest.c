/* A hostile guest for virtio device classes; see the header. One thread. */
#include "tests/fuzz/virtio_guest.h"

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

#define DEADLINE_NS 20000000000ull
#define MAX_STEPS 200
#define MAX_PIECES 40u

/* Of a queue, from its base. */
#define AVAIL_AT 0x1000u
#define USED_AT 0x2000u

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

uint64_t fuzz_take(struct fuzz_input *in, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes && in->left > 0; i++) {
        value |= (uint64_t)*in->data++ << (8 * i);
        in->left--;
    }
    return value;
}

void *fuzz_guest_at(struct fuzz_guest *guest, gpa_t gpa, uint64_t length)
{
    void *at = memory_at(guest->env.mem, gpa, length);

    FUZZ_CHECK(at != NULL);
    return at;
}

static gpa_t queue_base(unsigned index)
{
    return (gpa_t)index * FUZZ_QUEUE_BYTES;
}

static void count_queue(void *transport, unsigned index)
{
    (void)index;
    ((struct fuzz_guest *)transport)->queue_interrupts++;
}

static void count_config(void *transport)
{
    ((struct fuzz_guest *)transport)->config_interrupts++;
}

static const struct virtio_transport_ops transport_ops = {
    .queue_interrupt = count_queue,
    .config_interrupt = count_config,
};

void fuzz_guest_init(struct fuzz_guest *guest)
{
    const struct memory_config config = {.size = FUZZ_MEMORY};

    log_set_sink(drop_line);
    FUZZ_CHECK(memory_create(&guest->env.mem, &config) == 0);
    FUZZ_CHECK(loop_create(&guest->env.loop, 64) == 0);
    pthread_mutex_init(&guest->lock, NULL);
    guest->env.lock = &guest->lock;
}

void fuzz_guest_attach(struct fuzz_guest *guest, struct virtio_device *vdev)
{
    FUZZ_CHECK(memory_fill(guest->env.mem, 0, 0, FUZZ_MEMORY) == 0);
    guest->vdev = vdev;
    virtio_attach(vdev, &transport_ops, guest);
}

static void enable_queue(struct fuzz_guest *guest, unsigned index)
{
    struct virtqueue_state *st = &guest->vdev->queues[index].st;

    st->size = (uint16_t)guest->queue_size;
    st->desc = queue_base(index);
    st->driver = queue_base(index) + AVAIL_AT;
    st->device = queue_base(index) + USED_AT;
    guest->published[index] = 0;
    guest->next_desc[index] = 0;
    memset(fuzz_guest_at(guest, queue_base(index), FUZZ_QUEUE_BYTES), 0, FUZZ_QUEUE_BYTES);
    virtio_queue_enable(guest->vdev, index);
}

static bool is_reset(void *arg)
{
    return virtio_get_status(((struct fuzz_guest *)arg)->vdev) == 0;
}

void fuzz_guest_start(struct fuzz_guest *guest, uint64_t features, unsigned queue_size)
{
    struct virtio_device *vdev = guest->vdev;
    uint8_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

    device_lock(&guest->env);
    virtio_set_status(vdev, 0);
    device_unlock(&guest->env);
    FUZZ_CHECK(loop_run_until(guest->env.loop, is_reset, guest, DEADLINE_NS) == 0);
    guest->queue_size = queue_size;
    /* The rings here are split ones; a target of its own has the others. */
    features &= virtio_offered(vdev) & ~(1ull << VIRTIO_F_RING_PACKED);
    features |= 1ull << VIRTIO_F_VERSION_1;
    device_lock(&guest->env);
    virtio_set_status(vdev, status);
    virtio_set_driver_features(vdev, 0, (uint32_t)features);
    virtio_set_driver_features(vdev, 1, (uint32_t)(features >> 32));
    status |= VIRTIO_CONFIG_S_FEATURES_OK;
    virtio_set_status(vdev, status);
    FUZZ_CHECK(virtio_get_status(vdev) == status);
    for (unsigned i = 0; i < vdev->n_queues; i++)
        enable_queue(guest, i);
    virtio_set_status(vdev, status | VIRTIO_CONFIG_S_DRIVER_OK);
    FUZZ_CHECK(virtio_device_live(vdev) || vdev->paused);
    device_unlock(&guest->env);
}

static void put16(struct fuzz_guest *guest, gpa_t gpa, uint16_t value)
{
    memcpy(fuzz_guest_at(guest, gpa, sizeof(value)), &value, sizeof(value));
}

static void publish(struct fuzz_guest *guest, unsigned index, uint16_t head)
{
    gpa_t avail = queue_base(index) + AVAIL_AT;

    put16(guest, avail + 4 + 2ull * (guest->published[index] % guest->queue_size), head);
    put16(guest, avail + 2, ++guest->published[index]);
}

/* Descriptors are taken round and round, so a long chain, or one that is in use, is overwritten. */
uint16_t fuzz_guest_add(struct fuzz_guest *guest, unsigned index, const struct fuzz_piece *pieces,
                        unsigned n)
{
    uint16_t head = guest->next_desc[index];

    for (unsigned i = 0; i < n; i++) {
        uint16_t at = guest->next_desc[index];
        uint16_t next = (uint16_t)((at + 1u) % guest->queue_size);
        struct vring_desc desc = {
            .addr = pieces[i].gpa,
            .len = pieces[i].length,
            .flags = (uint16_t)((pieces[i].writable ? VRING_DESC_F_WRITE : 0) |
                                (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
            .next = next,
        };

        memcpy(fuzz_guest_at(guest, queue_base(index) + at * sizeof(desc), sizeof(desc)), &desc,
               sizeof(desc));
        guest->next_desc[index] = next;
    }
    publish(guest, index, head);
    return head;
}

void fuzz_guest_kick(struct fuzz_guest *guest, unsigned index)
{
    device_lock(&guest->env);
    virtio_queue_kicked(guest->vdev, index);
    device_unlock(&guest->env);
}

uint16_t fuzz_guest_used(struct fuzz_guest *guest, unsigned index)
{
    uint16_t idx;

    memcpy(&idx, fuzz_guest_at(guest, queue_base(index) + USED_AT + 2, sizeof(idx)), sizeof(idx));
    return idx;
}

/* ---- settling ---- */

struct mark {
    struct loop_call call;
    struct fuzz_guest *guest;
};

static void note_mark(struct loop_call *call)
{
    ((struct mark *)call)->guest->marks++;
}

static bool is_settled(void *arg)
{
    struct fuzz_guest *guest = arg;

    return guest->marks > 0 && !virtio_busy(guest->vdev);
}

/* A call made now runs after those before; so the second round sees what the first left behind,
 * and so on for as many turns as a queue's length can ask for. */
void fuzz_guest_settle(struct fuzz_guest *guest)
{
    for (unsigned round = 0; round < 8; round++) {
        struct mark mark = {.call.run = note_mark, .guest = guest};

        guest->marks = 0;
        loop_call(guest->env.loop, &mark.call);
        FUZZ_CHECK(loop_run_until(guest->env.loop, is_settled, guest, DEADLINE_NS) == 0);
    }
}

/* ---- the interpreter ---- */

static struct fuzz_piece take_piece(struct fuzz_input *in)
{
    uint8_t kind = (uint8_t)fuzz_take(in, 1);
    struct fuzz_piece piece = {.writable = kind & 1};

    /* Mostly near and short; sometimes anything. */
    if (kind & 0x80) {
        piece.gpa = fuzz_take(in, 8);
        piece.length = (uint32_t)fuzz_take(in, 4);
    } else {
        piece.gpa = FUZZ_DATA + fuzz_take(in, 2);
        piece.length = (uint32_t)fuzz_take(in, kind & 0x40 ? 2 : 1);
    }
    return piece;
}

static void add_chain(struct fuzz_guest *guest, struct fuzz_input *in, unsigned index)
{
    struct fuzz_piece pieces[MAX_PIECES];
    unsigned n = 1 + (unsigned)fuzz_take(in, 1) % MAX_PIECES;

    for (unsigned i = 0; i < n; i++)
        pieces[i] = take_piece(in);
    fuzz_guest_add(guest, index, pieces, n);
}

/* A chain whose pieces stand in a table of their own. */
static void add_indirect(struct fuzz_guest *guest, struct fuzz_input *in, unsigned index)
{
    gpa_t table = FUZZ_DATA + (fuzz_take(in, 1) << 8);
    unsigned n = 1 + (unsigned)fuzz_take(in, 1) % MAX_PIECES;
    struct fuzz_piece whole = {table, n * (uint32_t)sizeof(struct vring_desc), false};
    uint16_t head;

    for (unsigned i = 0; i < n; i++) {
        struct fuzz_piece piece = take_piece(in);
        struct vring_desc desc = {
            .addr = piece.gpa,
            .len = piece.length,
            .flags = (uint16_t)((piece.writable ? VRING_DESC_F_WRITE : 0) |
                                (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
            .next = (uint16_t)(i + 1),
        };

        memcpy(fuzz_guest_at(guest, table + i * sizeof(desc), sizeof(desc)), &desc, sizeof(desc));
    }
    head = fuzz_guest_add(guest, index, &whole, 1);
    put16(guest, queue_base(index) + head * sizeof(struct vring_desc) +
                     offsetof(struct vring_desc, flags), VRING_DESC_F_INDIRECT);
}

static void scribble(struct fuzz_guest *guest, struct fuzz_input *in)
{
    gpa_t gpa = fuzz_take(in, 3) % (FUZZ_MEMORY - 256);
    unsigned n = (unsigned)fuzz_take(in, 1);
    uint8_t *to = fuzz_guest_at(guest, gpa, 256);

    for (unsigned i = 0; i < n; i++)
        to[i] = (uint8_t)fuzz_take(in, 1);
}

static void use_config(struct fuzz_guest *guest, struct fuzz_input *in, bool write)
{
    const struct virtio_class *class = guest->vdev->class;
    size_t size = 1 + fuzz_take(in, 1) % 8;
    size_t offset = fuzz_take(in, 1);
    uint64_t value = fuzz_take(in, 2);

    /* The transport's part: only what is inside reaches the class. */
    if (offset + size > class->config_size)
        return;
    device_lock(&guest->env);
    if (write && class->config_write)
        class->config_write(guest->vdev, offset, &value, size);
    else if (!write)
        class->config_read(guest->vdev, offset, &value, size);
    device_unlock(&guest->env);
}

/* Saves, damages the bytes as the input says, and loads what of it is still acceptable. */
static void migrate(struct fuzz_guest *guest, struct fuzz_input *in)
{
    struct state_buffer buffer = {0};
    struct state_reader reader;
    struct state_part parts[2];
    void *states[2] = {NULL, NULL};
    unsigned n;
    int err = 0;

    device_lock(&guest->env);
    n = virtio_state_parts(guest->vdev, parts);
    for (unsigned i = 0; i < n; i++) {
        states[i] = calloc(1, parts[i].desc->size);
        parts[i].get(parts[i].object, states[i]);
        FUZZ_CHECK(state_save(parts[i].desc, states[i], &buffer) == 0);
    }
    for (uint64_t flips = fuzz_take(in, 1) % 8; flips > 0; flips--)
        buffer.data[fuzz_take(in, 2) % buffer.length] ^= (uint8_t)fuzz_take(in, 1);
    reader = (struct state_reader){.data = buffer.data, .length = buffer.length};
    for (unsigned i = 0; i < n && !err; i++) {
        err = state_load(parts[i].desc, states[i], &reader);
        if (!err)
            err = parts[i].check(parts[i].object, states[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        if (!err)
            parts[i].set(parts[i].object, states[i]);
        free(states[i]);
    }
    device_unlock(&guest->env);
    state_buffer_fini(&buffer);
}

static void pause_and_resume(struct fuzz_guest *guest, struct fuzz_input *in)
{
    device_lock(&guest->env);
    virtio_pause(guest->vdev);
    device_unlock(&guest->env);
    fuzz_guest_settle(guest);
    if (fuzz_take(in, 1) & 1)
        migrate(guest, in);
    device_lock(&guest->env);
    virtio_resume(guest->vdev);
    device_unlock(&guest->env);
}

static void reset(struct fuzz_guest *guest)
{
    device_lock(&guest->env);
    virtio_set_status(guest->vdev, 0);
    device_unlock(&guest->env);
}

static void step(struct fuzz_guest *guest, struct fuzz_input *in)
{
    uint8_t what = (uint8_t)fuzz_take(in, 1);
    unsigned index = (what >> 4) % guest->vdev->n_queues;

    switch (what & 15) {
    case 0:
    case 1:
        add_chain(guest, in, index);
        fuzz_guest_kick(guest, index);
        return;
    case 2:
        add_chain(guest, in, index);
        return;
    case 3:
        add_indirect(guest, in, index);
        fuzz_guest_kick(guest, index);
        return;
    case 4:
        fuzz_guest_kick(guest, index);
        return;
    case 5:
    case 6:
        scribble(guest, in);
        return;
    case 7:
    case 8:
        use_config(guest, in, (what & 15) == 8);
        return;
    case 9:
        fuzz_guest_settle(guest);
        return;
    case 10:
        fuzz_guest_start(guest, fuzz_take(in, 8), 1u << fuzz_take(in, 1) % 7);
        return;
    case 11:
        pause_and_resume(guest, in);
        return;
    case 12:
        reset(guest);
        return;
    case 13:
        publish(guest, index, (uint16_t)fuzz_take(in, 1));
        fuzz_guest_kick(guest, index);
        return;
    case 14: /* the available index jumps */
        guest->published[index] = (uint16_t)fuzz_take(in, 2);
        return;
    case 15:
        if (guest->outside)
            guest->outside(guest, in);
        return;
    }
}

void fuzz_guest_run(struct fuzz_guest *guest, struct fuzz_input *in)
{
    fuzz_guest_start(guest, fuzz_take(in, 8), FUZZ_QUEUE_MAX);
    for (unsigned i = 0; i < MAX_STEPS && in->left > 0; i++)
        step(guest, in);
    fuzz_guest_settle(guest);
}

void fuzz_guest_detach(struct fuzz_guest *guest)
{
    guest->vdev->class->destroy(guest->vdev);
    guest->vdev = NULL;
}

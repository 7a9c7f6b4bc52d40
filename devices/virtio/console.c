/*
 * virtio-console (virtio 1.2 §5.3): one port without multiport, its receive queue and its transmit
 * queue joined to a character stream.
 *
 * Not offered: VIRTIO_CONSOLE_F_MULTIPORT. Nothing of the guest's is held between two calls: a
 * buffer that the stream did not take wholly goes back to the queue, and `sent` says how much of it
 * is out; one that input will go to is looked at, put back, and taken when the input is there. So
 * there is nothing to drain at a pause, and what migrates is one number.
 *
 * Runs with the device lock held: kicks and the stream's callbacks on the event loop's thread,
 * reset and the configuration space on a vCPU's.
 */
#include "devices/virtio/console.h"

#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/chardev.h"

#define CONSOLE_DEVICE_ID 3 /* §5.3.1 */
#define QUEUE_SIZE 128
#define TURN_BUFFERS 32u /* of output, before the loop's other work has its turn */

enum { RECEIVEQ, TRANSMITQ, N_QUEUES }; /* §5.3.2: of port 0 */

enum { CONSOLE_F_SIZE = 0, CONSOLE_F_EMERG_WRITE = 2 }; /* §5.3.3 */

struct console_space { /* §5.3.4: struct virtio_console_config */
    uint16_t cols, rows;
    uint32_t max_nr_ports, emerg_wr;
};
_Static_assert(sizeof(struct console_space) == 12, "virtio 1.2 §5.3.4");

struct virtio_console {
    struct virtio_device vdev;    /* first: the class gets this */
    struct chardev *chardev;      /* borrowed */
    struct chardev_front front;
    struct virtqueue_chain chain; /* owns; valid within a call only */
    uint32_t sent;                /* bytes of the next transmit buffer that are out already */
    bool received;                /* receive buffers went back; the driver was not told yet */
    uint16_t cols, rows;          /* of the terminal; 0, 0: there is none */
    bool size_differs;            /* from what the guest saw before it came here */
    struct loop_call again;
};
_Static_assert(offsetof(struct virtio_console, vdev) == 0, "the class casts");

static struct virtio_console *console_of(struct virtio_device *vdev)
{
    return (struct virtio_console *)vdev;
}

static struct virtio_console *of_front(struct chardev_front *front)
{
    return (struct virtio_console *)((char *)front - offsetof(struct virtio_console, front));
}

static void break_device(struct virtio_console *con)
{
    virtio_device_broken(&con->vdev, "a buffer's descriptors are malformed");
}

/* ---- guest to host ---- */

/* Writes the chain's bytes from con->sent on; whether all of them are out. */
static bool send_chain(struct virtio_console *con)
{
    uint64_t skip = con->sent;

    for (unsigned i = 0; i < con->chain.n_readable; i++) {
        const struct iovec *iov = &con->chain.iov[i];
        size_t took, n;

        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        n = iov->iov_len - skip;
        took = chardev_write(con->chardev, (const uint8_t *)iov->iov_base + skip, n);
        con->sent += (uint32_t)took;
        if (took < n)
            return false;
        skip = 0;
    }
    con->sent = 0;
    return true;
}

/* Sends until nothing waits, or the stream is full (send_more() comes), or the turn is over. */
static void transmit(struct virtio_console *con)
{
    struct virtqueue *vq = &con->vdev.queues[TRANSMITQ];
    unsigned turn = TURN_BUFFERS;
    int got = 1;

    while (turn > 0) {
        got = virtqueue_pop(vq, &con->chain);
        if (got <= 0)
            break;
        if (!send_chain(con)) {
            virtqueue_unpop(vq);
            break;
        }
        virtqueue_push(vq, &con->chain, 0);
        turn--;
    }
    if (turn < TURN_BUFFERS)
        virtio_queue_notify(&con->vdev, vq);
    if (got < 0)
        break_device(con);
    if (turn == 0)
        loop_call(con->vdev.env->loop, &con->again);
}

static void send_more(struct chardev_front *front)
{
    virtio_queue_kicked(&of_front(front)->vdev, TRANSMITQ);
}

static void run_again(struct loop_call *call)
{
    struct virtio_console *con =
        (struct virtio_console *)((char *)call - offsetof(struct virtio_console, again));

    device_lock(con->vdev.env);
    virtio_queue_kicked(&con->vdev, TRANSMITQ);
    device_unlock(con->vdev.env);
}

/* ---- host to guest ---- */

static void return_buffer(struct virtio_console *con, uint32_t written)
{
    virtqueue_push(&con->vdev.queues[RECEIVEQ], &con->chain, written);
    con->received = true;
}

/* Takes the next receive buffer that has room into con->chain; one without goes back empty. */
static bool take_buffer(struct virtio_console *con)
{
    struct virtqueue *vq = &con->vdev.queues[RECEIVEQ];

    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        int got = virtqueue_pop(vq, &con->chain);

        if (got < 0)
            break_device(con);
        if (got <= 0)
            return false;
        if (con->chain.writable_bytes > 0)
            return true;
        return_buffer(con, 0);
    }
    break_device(con); /* a whole ring of them is no driver's way */
    return false;
}

/* Asks for as much input as the next buffer takes. */
static void receive(struct virtio_console *con)
{
    struct virtqueue *vq = &con->vdev.queues[RECEIVEQ];
    size_t room = 0;

    if (virtio_device_live(&con->vdev) && vq->st.enabled && take_buffer(con)) {
        room = con->chain.writable_bytes;
        virtqueue_unpop(vq);
    }
    chardev_accept(con->chardev, room);
    if (con->received)
        virtio_queue_notify(&con->vdev, vq);
    con->received = false;
}

/* Bytes that the driver has no buffer for, although it had one just now, are lost by its doing. */
static void take_input(struct chardev_front *front, const uint8_t *bytes, size_t n)
{
    struct virtio_console *con = of_front(front);

    while (n > 0 && virtio_device_live(&con->vdev) && take_buffer(con)) {
        uint64_t put = virtqueue_write(&con->chain, 0, bytes, n);

        return_buffer(con, (uint32_t)put);
        bytes += put;
        n -= put;
    }
    receive(con);
}

/* ---- configuration space ---- */

static uint64_t console_features(struct virtio_device *vdev)
{
    (void)vdev;
    /* The size also where there is none, as 0 by 0: a guest may move to where there is one. */
    return 1ull << CONSOLE_F_SIZE | 1ull << CONSOLE_F_EMERG_WRITE;
}

static void console_config_read(struct virtio_device *vdev, size_t offset, void *to, size_t size)
{
    const struct virtio_console *con = console_of(vdev);
    struct console_space space = {
        .cols = htole16(con->cols),
        .rows = htole16(con->rows),
        .max_nr_ports = htole32(1),
    };

    memcpy(to, (const uint8_t *)&space + offset, size);
}

/* §5.3.4: a byte written out at once, whatever state the device is in. */
static void console_config_write(struct virtio_device *vdev, size_t offset, const void *from,
                                 size_t size)
{
    uint8_t byte;

    if (offset != offsetof(struct console_space, emerg_wr) || size == 0)
        return;
    memcpy(&byte, from, sizeof(byte)); /* little-endian: the lowest */
    (void)chardev_write(console_of(vdev)->chardev, &byte, sizeof(byte));
}

static uint16_t clamp16(unsigned value)
{
    return value > UINT16_MAX ? UINT16_MAX : (uint16_t)value;
}

static void read_size(struct virtio_console *con)
{
    unsigned cols = 0, rows = 0;

    if (chardev_size(con->chardev, &cols, &rows) != 0)
        cols = rows = 0;
    con->cols = clamp16(cols);
    con->rows = clamp16(rows);
}

static void resized(struct chardev_front *front)
{
    struct virtio_console *con = of_front(front);

    read_size(con);
    virtio_config_changed(&con->vdev);
}

/* ---- life cycle ---- */

static void console_kicked(struct virtio_device *vdev, unsigned index)
{
    if (index == TRANSMITQ)
        transmit(console_of(vdev));
    else
        receive(console_of(vdev));
}

static void console_reset(struct virtio_device *vdev)
{
    struct virtio_console *con = console_of(vdev);

    con->sent = 0;
    con->received = false;
    con->size_differs = false;
    chardev_accept(con->chardev, 0);
}

static void console_pause(struct virtio_device *vdev)
{
    chardev_accept(console_of(vdev)->chardev, 0);
}

static void console_resume(struct virtio_device *vdev)
{
    struct virtio_console *con = console_of(vdev);

    if (con->size_differs)
        virtio_config_changed(vdev);
    con->size_differs = false;
}

struct console_state {
    uint32_t sent;
    uint16_t cols, rows; /* as the guest knows them */
};

static const struct state_field console_fields[] = {
    STATE_FIELD(STATE_U32, struct console_state, sent),
    STATE_FIELD(STATE_U16, struct console_state, cols),
    STATE_FIELD(STATE_U16, struct console_state, rows),
};
static const struct state_desc console_state_desc =
    STATE_DESC("virtio-console", 1, struct console_state, console_fields);

static void state_get(void *object, void *to)
{
    const struct virtio_console *con = object;

    *(struct console_state *)to =
        (struct console_state){.sent = con->sent, .cols = con->cols, .rows = con->rows};
}

/* Any values will do: `sent` beyond a buffer's end means that all of it is out. */
static int state_check(void *object, const void *from)
{
    (void)object;
    (void)from;
    return 0;
}

static void state_set(void *object, const void *from)
{
    struct virtio_console *con = object;
    const struct console_state *state = from;

    con->sent = state->sent;
    con->size_differs = state->cols != con->cols || state->rows != con->rows;
}

static bool console_state_part(struct virtio_device *vdev, struct state_part *part)
{
    *part = (struct state_part){
        .desc = &console_state_desc,
        .object = vdev,
        .get = state_get,
        .check = state_check,
        .set = state_set,
    };
    return true;
}

static bool is_idle(void *arg)
{
    return !atomic_load(&((struct virtio_console *)arg)->again.queued);
}

static void console_destroy(struct virtio_device *vdev)
{
    struct virtio_console *con = console_of(vdev);

    device_lock(vdev->env);
    virtio_reset(vdev); /* so that the turn that is awaited here makes no other */
    chardev_attach(con->chardev, NULL);
    device_unlock(vdev->env);
    (void)loop_run_until(vdev->env->loop, is_idle, con, 0);
    virtqueue_chain_fini(&con->chain);
    virtio_device_fini(vdev);
    free(con);
}

static const struct virtio_class console_class = {
    .name = "virtio-console",
    .device_id = CONSOLE_DEVICE_ID,
    .features = console_features,
    .config_size = sizeof(struct console_space),
    .config_read = console_config_read,
    .config_write = console_config_write,
    .kicked = console_kicked,
    .reset = console_reset,
    .pause = console_pause,
    .resume = console_resume,
    .state = console_state_part,
    .destroy = console_destroy,
};

int virtio_console_create(struct virtio_device **out, const struct device_env *env, const char *id,
                          struct chardev *chardev)
{
    static const uint16_t sizes[N_QUEUES] = {QUEUE_SIZE, QUEUE_SIZE};
    struct virtio_console *con = calloc(1, sizeof(*con));
    int err;

    if (!con)
        return -ENOMEM;
    err = virtqueue_chain_init(&con->chain, VIRTQUEUE_MAX_PIECES);
    if (!err)
        err = virtio_device_init(&con->vdev, &console_class, env, id, N_QUEUES, sizes);
    if (err) {
        virtqueue_chain_fini(&con->chain);
        free(con);
        return err;
    }
    con->chardev = chardev;
    con->front.writable = send_more;
    con->front.input = take_input;
    con->front.resized = resized;
    con->again.run = run_again;
    chardev_attach(chardev, &con->front);
    read_size(con);
    *out = &con->vdev;
    return 0;
}

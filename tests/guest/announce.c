/*
 * announce: a driver of virtio-net that can make itself known on the wire. Says that it is ready,
 * waits to be saved and restored, and must then be asked to announce itself; once it has said that it
 * did, it must not be asked any more.
 *
 * Sends no announcement: what the card asks for is looked at, not what the driver does about it.
 * `bridge`: a frame from a station behind it, 02:00:00:00:00:77, goes out first. `stay`: it moves to another
 * process, where it must be asked more than once, and goes on until it reads a character from COM1.
 * Text: virtio 1.2, 5.1.6.5.4.
 */
#include <stddef.h>

#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT (30 * SECOND)
#define PATIENCE (300 * SECOND) /* with who saves it, or has it move */
#define LINE_STATUS (COM1 + 5)
#define DATA_READY 1
#define HEADER 12 /* of virtio-net: zeros */
#define FRAME 60

#define F_STATUS   (1ull << 16)
#define F_CTRL_VQ  (1ull << 17)
#define F_ANNOUNCE (1ull << 21)

#define STATUS_AT  6
#define S_LINK_UP  1
#define S_ANNOUNCE 2

#define CTRL_ANNOUNCE 3

static struct virtio_device nic;
static struct virtqueue receive, transmit, ctrl;

static uint16_t status(void)
{
    return mmio_read16(nic.config + STATUS_AT);
}

static bool start(uint64_t ring)
{
    if (!virtio_negotiate(&nic, F_STATUS | F_CTRL_VQ | F_ANNOUNCE | ring) ||
        !virtio_queue_setup(&nic, &receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &ctrl, 2, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    return true;
}

static bool acknowledge(void)
{
    uint8_t *memory = memory_alloc(PAGE_SIZE);
    const struct buffer buffers[] = { { memory, 2, false }, { memory + 8, 1, true } };

    memory[0] = CTRL_ANNOUNCE;
    memory[1] = 0;
    memory[8] = 0xEE;
    return virtqueue_request(&ctrl, buffers, 2, LIMIT) >= 0 && memory[8] == 0;
}

/* To everybody, of an experimental type (IEEE 802). */
static bool send_for_another(void)
{
    static const uint8_t head[] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 0x77, 0x88, 0xB5 };
    uint8_t *memory = memory_alloc(PAGE_SIZE);
    const struct buffer buffer = { memory, HEADER + FRAME, false };

    memset(memory, 0, HEADER + FRAME);
    memcpy(memory + HEADER, head, sizeof(head));
    return virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0;
}

/* Waits until it is to announce itself. */
static void await_question(struct deadline *deadline, const char *name)
{
    while ((status() & S_ANNOUNCE) == 0 && !deadline_over(deadline))
        cpu_pause();
    check(status() == (S_LINK_UP | S_ANNOUNCE), name, "status %u", status());
}

int main(const struct boot_info *info)
{
    struct deadline deadline;

    (void)info;
    pci_init();
    if (!check(virtio_open(&nic, VIRTIO_NET, 0) &&
               start(arg_present("packed") ? VIRTIO_F_RING_PACKED : 0), "start",
               "the card does not start"))
        return 0;
    check(status() == S_LINK_UP, "not-asked-at-first", "status %u", status());
    if (arg_present("bridge"))
        check(send_for_another(), "send", "the frame is not taken");
    print("ready to be saved\n");
    deadline = deadline_in(PATIENCE);
    await_question(&deadline, "asked");
    if (arg_present("stay")) {
        check(acknowledge(), "acknowledged", "the command fails");
        await_question(&deadline, "asked-again");
        while (!(in8(LINE_STATUS) & DATA_READY))
            cpu_pause();
        return 0;
    }
    /* The bit falls before the command's buffer comes back. */
    check(acknowledge() && status() == S_LINK_UP, "asked-no-more", "status %u", status());
    return 0;
}

/* A machine for fuzz targets of devices; see the header. One thread. */
#include "tests/fuzz/machine.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"

static void line_set(struct intc *intc, uint32_t gsi, bool level)
{
    (void)intc;
    (void)gsi;
    (void)level;
}

static int msi_alloc(struct intc *intc, struct intc_msi *msi)
{
    struct fuzz_machine *m =
        (struct fuzz_machine *)((char *)intc - offsetof(struct fuzz_machine, intc));

    msi->fd = -1;
    if (m->n_msis >= m->msi_limit)
        return -ENOSPC;
    msi->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    FUZZ_CHECK(msi->fd >= 0);
    m->n_msis++;
    return 0;
}

static int msi_update(struct intc *intc, struct intc_msi *msi, uint64_t address, uint32_t data)
{
    (void)intc;
    (void)data;
    FUZZ_CHECK(msi->fd >= 0);
    return address >> 32 ? -EINVAL : 0;
}

static void msi_free(struct intc *intc, struct intc_msi *msi)
{
    struct fuzz_machine *m =
        (struct fuzz_machine *)((char *)intc - offsetof(struct fuzz_machine, intc));

    if (msi->fd < 0)
        return;
    close(msi->fd);
    msi->fd = -1;
    m->n_msis--;
}

static const struct intc_ops intc_ops = {
    .line = line_set,
    .msi_alloc = msi_alloc,
    .msi_update = msi_update,
    .msi_free = msi_free,
};

static struct fuzz_machine *of_bells(struct doorbells *bells)
{
    return (struct fuzz_machine *)((char *)bells - offsetof(struct fuzz_machine, doorbells));
}

static struct fuzz_bell *bell_at(struct fuzz_machine *m, gpa_t gpa)
{
    for (unsigned i = 0; i < FUZZ_BELLS; i++)
        if (m->bells[i].fd >= 0 && m->bells[i].gpa == gpa)
            return &m->bells[i];
    return NULL;
}

static int bell_add(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    struct fuzz_machine *m = of_bells(bells);

    (void)size;
    FUZZ_CHECK(fd >= 0);
    if (bell_at(m, gpa))
        return -EEXIST;
    for (unsigned i = 0; i < FUZZ_BELLS; i++) {
        if (m->bells[i].fd >= 0)
            continue;
        m->bells[i] = (struct fuzz_bell){.gpa = gpa, .fd = fd};
        return 0;
    }
    return -ENOSPC;
}

static void bell_remove(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    struct fuzz_bell *bell = bell_at(of_bells(bells), gpa);

    (void)size;
    FUZZ_CHECK(bell && bell->fd == fd);
    bell->fd = -1;
}

static const struct doorbell_ops bell_ops = {.add = bell_add, .remove = bell_remove};

static void event_raise(struct machine_events *events, enum machine_event event, const char *cause)
{
    (void)events;
    (void)event;
    (void)cause;
}

static void marker_fired(struct loop_event *event)
{
    ((struct fuzz_machine *)((char *)event - offsetof(struct fuzz_machine, marker)))->marked = true;
}

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

void fuzz_machine_init(struct fuzz_machine *m, uint64_t memory_size)
{
    const struct pci_bus_config config = {
        .ecam = {.base = FUZZ_ECAM, .size = 0x100000},
        .mmio32 = {.base = FUZZ_WINDOW, .size = FUZZ_WINDOW_SIZE},
        .config_port = 0xCF8,
    };

    log_set_sink(drop_line);
    *m = (struct fuzz_machine){.msi_limit = UINT32_MAX};
    m->intc.ops = &intc_ops;
    m->doorbells.ops = &bell_ops;
    m->events.raise = event_raise;
    for (unsigned i = 0; i < FUZZ_BELLS; i++)
        m->bells[i].fd = -1;
    pthread_mutex_init(&m->lock, NULL);
    FUZZ_CHECK(memory_create(&m->env.mem, &(struct memory_config){.size = memory_size}) == 0);
    FUZZ_CHECK(bus_create(&m->env.pio, "pio") == 0);
    FUZZ_CHECK(bus_create(&m->env.mmio, "mmio") == 0);
    FUZZ_CHECK(loop_create(&m->env.loop, 256) == 0);
    m->env.intc = &m->intc;
    m->env.doorbells = &m->doorbells;
    m->env.events = &m->events;
    m->env.lock = &m->lock;
    m->marker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    FUZZ_CHECK(m->marker_fd >= 0);
    m->marker.fired = marker_fired;
    loop_event_add(m->env.loop, &m->marker, m->marker_fd);
    FUZZ_CHECK(pci_bus_create(&m->bridge, &m->pci, &m->env, &config) == 0);
}

void fuzz_mmio_write(struct fuzz_machine *m, uint64_t gpa, unsigned size, uint64_t value)
{
    struct fuzz_bell *bell = bell_at(m, gpa);

    if (bell) {
        FUZZ_CHECK(eventfd_write(bell->fd, 1) == 0);
        return;
    }
    device_lock(&m->env);
    bus_write(m->env.mmio, gpa, size, value);
    device_unlock(&m->env);
}

uint64_t fuzz_mmio_read(struct fuzz_machine *m, uint64_t gpa, unsigned size)
{
    uint64_t value;

    device_lock(&m->env);
    value = bus_read(m->env.mmio, gpa, size);
    device_unlock(&m->env);
    return value;
}

uint32_t fuzz_config_read(struct fuzz_machine *m, unsigned slot, unsigned offset, unsigned size)
{
    return (uint32_t)fuzz_mmio_read(m, FUZZ_ECAM + (slot << 15) + offset, size);
}

void fuzz_config_write(struct fuzz_machine *m, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value)
{
    fuzz_mmio_write(m, FUZZ_ECAM + (slot << 15) + offset, size, value);
}

static bool marked(void *arg)
{
    return ((struct fuzz_machine *)arg)->marked;
}

void fuzz_settle(struct fuzz_machine *m)
{
    for (int round = 0; round < 2; round++) {
        m->marked = false;
        FUZZ_CHECK(eventfd_write(m->marker_fd, 1) == 0);
        FUZZ_CHECK(loop_run_until(m->env.loop, marked, m, 0) == 0);
    }
}

struct idle_wait {
    struct fuzz_machine *m;
    struct device *dev;
};

static bool is_idle(void *arg)
{
    struct idle_wait *wait = arg;
    bool busy;

    device_lock(&wait->m->env);
    busy = device_busy(wait->dev);
    device_unlock(&wait->m->env);
    return !busy;
}

static void pause_and_drain(struct fuzz_machine *m, struct device *dev)
{
    struct idle_wait wait = {m, dev};

    device_lock(&m->env);
    device_pause(dev);
    device_unlock(&m->env);
    FUZZ_CHECK(loop_run_until(m->env.loop, is_idle, &wait, 0) == 0);
}

static int load(struct device *dev, const struct state_buffer *from)
{
    struct state_reader in = {.data = from->data, .length = from->length};
    int err = device_load(dev, &in);

    FUZZ_CHECK(in.at == (err ? 0 : from->length));
    return err;
}

void fuzz_round_trip(struct fuzz_machine *m, struct device *dev, bool spoil, uint32_t at,
                     uint8_t bits)
{
    struct state_buffer first = {0}, second = {0};

    pause_and_drain(m, dev);
    device_lock(&m->env);
    FUZZ_CHECK(device_save(dev, &first) == 0);
    FUZZ_CHECK(load(dev, &first) == 0);
    FUZZ_CHECK(device_save(dev, &second) == 0);
    FUZZ_CHECK(first.length == second.length);
    FUZZ_CHECK(memcmp(first.data, second.data, first.length) == 0);
    if (spoil && first.length > 0) {
        second.data[at % second.length] ^= bits;
        if (load(dev, &second) != 0) {
            second.length = 0;
            FUZZ_CHECK(device_save(dev, &second) == 0);
            FUZZ_CHECK(memcmp(first.data, second.data, first.length) == 0);
        }
    }
    device_resume(dev);
    device_unlock(&m->env);
    state_buffer_fini(&first);
    state_buffer_fini(&second);
}

void fuzz_reset(struct fuzz_machine *m, struct device *dev)
{
    pause_and_drain(m, dev);
    device_lock(&m->env);
    device_reset(dev);
    device_resume(dev);
    device_unlock(&m->env);
}

uint8_t fuzz_u8(struct fuzz_input *in)
{
    if (in->size == 0)
        return 0;
    in->size--;
    return *in->data++;
}

uint16_t fuzz_u16(struct fuzz_input *in)
{
    uint16_t low = fuzz_u8(in);

    return (uint16_t)(low | fuzz_u8(in) << 8);
}

uint32_t fuzz_u32(struct fuzz_input *in)
{
    uint32_t low = fuzz_u16(in);

    return low | (uint32_t)fuzz_u16(in) << 16;
}

/* A machine for device tests; see the header. Owned by the test's thread. */
#include "tests/unit/fake_env.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct fake_env *of_intc(struct intc *intc)
{
    return (struct fake_env *)((char *)intc - offsetof(struct fake_env, intc));
}

static struct fake_env *of_bells(struct doorbells *bells)
{
    return (struct fake_env *)((char *)bells - offsetof(struct fake_env, doorbells));
}

static void line_set(struct intc *intc, uint32_t gsi, bool level)
{
    struct fake_line *line = &of_intc(intc)->lines[gsi];

    cr_assert_lt(gsi, FAKE_LINES);
    if (level && !line->level)
        line->rises++;
    line->level = level;
}

static int msi_alloc(struct intc *intc, struct intc_msi *msi)
{
    struct fake_env *fake = of_intc(intc);
    unsigned gsi = 0;

    fake->msi_allocs++;
    msi->fd = -1;
    if (fake->msi_alloc_error)
        return fake->msi_alloc_error;
    while (gsi < FAKE_MSIS && fake->msis[gsi].fd >= 0)
        gsi++;
    if (gsi == FAKE_MSIS)
        return -ENOSPC;
    msi->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    cr_assert_geq(msi->fd, 0);
    msi->gsi = gsi;
    fake->msis[gsi] = (struct fake_msi){.fd = msi->fd};
    fake->n_msis++;
    return 0;
}

static int msi_update(struct intc *intc, struct intc_msi *msi, uint64_t address, uint32_t data)
{
    struct fake_env *fake = of_intc(intc);
    struct fake_msi *m = &fake->msis[msi->gsi];

    cr_assert_eq(m->fd, msi->fd);
    m->updates++;
    m->present = fake->msi_update_error == 0;
    m->address = address;
    m->data = data;
    return fake->msi_update_error;
}

static void msi_free(struct intc *intc, struct intc_msi *msi)
{
    struct fake_env *fake = of_intc(intc);

    if (msi->fd < 0)
        return;
    cr_assert_eq(fake->msis[msi->gsi].fd, msi->fd);
    fake->msis[msi->gsi] = (struct fake_msi){.fd = -1};
    fake->n_msis--;
    close(msi->fd);
    msi->fd = -1;
}

static const struct intc_ops intc_ops = {
    .line = line_set,
    .msi_alloc = msi_alloc,
    .msi_update = msi_update,
    .msi_free = msi_free,
};

static int bell_add(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    struct fake_env *fake = of_bells(bells);
    unsigned i = 0;

    if (fake->bell_error)
        return fake->bell_error;
    if (fake_bell_at(fake, gpa))
        return -EEXIST;
    while (i < FAKE_BELLS && fake->bells[i].fd >= 0)
        i++;
    if (i == FAKE_BELLS)
        return -ENOSPC;
    fake->bells[i] = (struct fake_bell){.gpa = gpa, .size = size, .fd = fd};
    fake->n_bells++;
    return 0;
}

static void bell_remove(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    struct fake_env *fake = of_bells(bells);

    for (unsigned i = 0; i < FAKE_BELLS; i++) {
        struct fake_bell *b = &fake->bells[i];

        if (b->fd != fd || b->gpa != gpa || b->size != size)
            continue;
        b->fd = -1;
        fake->n_bells--;
        return;
    }
    cr_assert_fail("a doorbell was removed that is not there");
}

static const struct doorbell_ops bell_ops = {.add = bell_add, .remove = bell_remove};

static void event_raise(struct machine_events *events, enum machine_event event, const char *cause)
{
    struct fake_env *fake =
        (struct fake_env *)((char *)events - offsetof(struct fake_env, events));

    (void)cause;
    if (fake->n_events++ == 0)
        fake->first_event = event;
}

static void marker_fired(struct loop_event *event)
{
    struct fake_env *fake =
        (struct fake_env *)((char *)event - offsetof(struct fake_env, marker));

    fake->marks++;
}

void fake_env_init_memory(struct fake_env *fake, const struct memory_config *config)
{
    *fake = (struct fake_env){0};
    fake->intc.ops = &intc_ops;
    fake->doorbells.ops = &bell_ops;
    fake->events.raise = event_raise;
    for (unsigned i = 0; i < FAKE_MSIS; i++)
        fake->msis[i].fd = -1;
    for (unsigned i = 0; i < FAKE_BELLS; i++)
        fake->bells[i].fd = -1;
    pthread_mutex_init(&fake->lock, NULL);
    cr_assert_eq(memory_create(&fake->env.mem, config), 0);
    cr_assert_eq(bus_create(&fake->env.pio, "pio"), 0);
    cr_assert_eq(bus_create(&fake->env.mmio, "mmio"), 0);
    cr_assert_eq(loop_create(&fake->env.loop, 64), 0);
    fake->env.intc = &fake->intc;
    fake->env.doorbells = &fake->doorbells;
    fake->env.events = &fake->events;
    fake->env.lock = &fake->lock;
    fake->marker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    cr_assert_geq(fake->marker_fd, 0);
    fake->marker.fired = marker_fired;
    loop_event_add(fake->env.loop, &fake->marker, fake->marker_fd);
}

void fake_env_init(struct fake_env *fake, uint64_t memory_size)
{
    fake_env_init_memory(fake, &(struct memory_config){.size = memory_size});
}

void fake_env_fini(struct fake_env *fake)
{
    cr_assert_eq(fake->n_msis, 0, "a vector was not given back");
    cr_assert_eq(fake->n_bells, 0, "a doorbell was not given back");
    loop_event_remove(&fake->marker);
    loop_destroy(fake->env.loop);
    close(fake->marker_fd);
    bus_destroy(fake->env.mmio);
    bus_destroy(fake->env.pio);
    memory_destroy(fake->env.mem);
    pthread_mutex_destroy(&fake->lock);
}

void fake_env_wait(struct fake_env *fake, bool (*ready)(void *arg), void *arg)
{
    cr_assert_eq(loop_run_until(fake->env.loop, ready, arg, FAKE_DEADLINE_NS), 0);
}

static bool marked(void *arg)
{
    return ((struct fake_env *)arg)->marks > 0;
}

void fake_env_settle(struct fake_env *fake)
{
    /* Completions are delivered in the order of their causes, so what was caused before a mark is
     * through when the mark is; once more for what that caused in turn. */
    for (int round = 0; round < 3; round++) {
        fake->marks = 0;
        cr_assert_eq(eventfd_write(fake->marker_fd, 1), 0);
        fake_env_wait(fake, marked, fake);
    }
}

/* ---- the guest ---- */

void fake_mmio_write(struct fake_env *fake, uint64_t gpa, unsigned size, uint64_t value)
{
    const struct fake_bell *bell = fake_bell_at(fake, gpa);

    if (bell && (bell->size == 0 || bell->size == size)) {
        cr_assert_eq(eventfd_write(bell->fd, 1), 0);
        return;
    }
    device_lock(&fake->env);
    bus_write(fake->env.mmio, gpa, size, value);
    device_unlock(&fake->env);
}

uint64_t fake_mmio_read(struct fake_env *fake, uint64_t gpa, unsigned size)
{
    uint64_t value;

    device_lock(&fake->env);
    value = bus_read(fake->env.mmio, gpa, size);
    device_unlock(&fake->env);
    return value;
}

void fake_pio_write(struct fake_env *fake, uint16_t port, unsigned size, uint32_t value)
{
    device_lock(&fake->env);
    bus_write(fake->env.pio, port, size, value);
    device_unlock(&fake->env);
}

uint32_t fake_pio_read(struct fake_env *fake, uint16_t port, unsigned size)
{
    uint32_t value;

    device_lock(&fake->env);
    value = (uint32_t)bus_read(fake->env.pio, port, size);
    device_unlock(&fake->env);
    return value;
}

uint64_t fake_msi_take(struct fake_env *fake, uint32_t data)
{
    uint64_t raises = 0;

    for (unsigned i = 0; i < FAKE_MSIS; i++) {
        struct fake_msi *m = &fake->msis[i];
        eventfd_t count;

        if (m->fd >= 0 && m->present && m->data == data && eventfd_read(m->fd, &count) == 0)
            raises += count;
    }
    return raises;
}

const struct fake_bell *fake_bell_at(const struct fake_env *fake, gpa_t gpa)
{
    for (unsigned i = 0; i < FAKE_BELLS; i++)
        if (fake->bells[i].fd >= 0 && fake->bells[i].gpa == gpa)
            return &fake->bells[i];
    return NULL;
}

/* ---- state ---- */

void fake_save(struct fake_env *fake, struct device *dev, struct state_buffer *out)
{
    *out = (struct state_buffer){0};
    device_lock(&fake->env);
    cr_assert_eq(device_save(dev, out), 0);
    device_unlock(&fake->env);
}

int fake_load(struct fake_env *fake, struct device *dev, const struct state_buffer *from)
{
    struct state_reader in = {.data = from->data, .length = from->length};
    int err;

    device_lock(&fake->env);
    err = device_load(dev, &in);
    device_unlock(&fake->env);
    if (!err)
        cr_assert_eq(in.at, from->length, "the record was not read to its end");
    return err;
}

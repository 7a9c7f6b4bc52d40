/*
 * The panic device: a port that tells the machine that the guest's kernel crashed.
 *
 * Keeps no state. Entered by vCPU threads, with the device lock held.
 *
 * Texts: QEMU docs/specs/pvpanic (port, events); Linux include/uapi/misc/pvpanic.h (the bits).
 */
#include "devices/pvpanic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmm/bus.h"
#include "vmm/util/log.h"

#define EVENT_PANICKED 0x01    /* crashed, and nothing else will be done about it */
#define EVENT_CRASHLOADED 0x02 /* crashed, and the guest's crash kernel takes over */
#define EVENT_SHUTDOWN 0x04    /* asks to be powered off */

struct pvpanic {
    struct device dev; /* first */
    const struct device_env *env;
    struct bus_region region;
    struct log_rate log_rate;
};

/* A read says which events are understood. */
static uint64_t pvpanic_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return EVENT_PANICKED | EVENT_CRASHLOADED | EVENT_SHUTDOWN;
}

static void pvpanic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pvpanic *panic = opaque;
    struct machine_events *events = panic->env->events;

    (void)offset;
    (void)size;
    if (value & EVENT_PANICKED)
        events->raise(events, MACHINE_PANIC, "the guest's kernel panicked");
    else if (value & EVENT_CRASHLOADED)
        log_guest(&panic->log_rate, "%s: the guest's kernel panicked, its crash kernel takes over",
                  panic->dev.id);
    else if (value & EVENT_SHUTDOWN)
        events->raise(events, MACHINE_POWER_OFF, "the guest shut down (panic device)");
}

static const struct bus_ops pvpanic_bus_ops = {.read = pvpanic_read, .write = pvpanic_write};

static void pvpanic_reset(struct device *dev)
{
    (void)dev;
}

static void pvpanic_destroy(struct device *dev)
{
    struct pvpanic *panic = (struct pvpanic *)dev;

    device_lock(panic->env);
    bus_remove(panic->env->pio, &panic->region);
    device_unlock(panic->env);
    free(panic);
}

static const struct device_ops pvpanic_ops = {
    .type = "pvpanic",
    .reset = pvpanic_reset,
    .destroy = pvpanic_destroy,
};

int pvpanic_create(struct device **out, const struct device_env *env,
                   const struct pvpanic_config *config)
{
    struct pvpanic *panic = calloc(1, sizeof(*panic));
    int err;

    if (!panic)
        return -ENOMEM;
    panic->dev.ops = &pvpanic_ops;
    snprintf(panic->dev.id, sizeof(panic->dev.id), "%s", config->id);
    panic->env = env;
    panic->region = (struct bus_region){panic->dev.id, config->port, 1, &pvpanic_bus_ops, panic};
    device_lock(env);
    err = bus_add(env->pio, &panic->region);
    device_unlock(env);
    if (err) {
        free(panic);
        return err;
    }
    *out = &panic->dev;
    return 0;
}

/*
 * The VM Generation ID device: what the firmware describes to the guest as "VM_Gen_Counter".
 *
 * It has no registers: the guest reads memory, and is told of a change by an interrupt, which the
 * firmware makes a notification. It stays the same for the guest's life, over resets and live
 * migration, which leave one guest where there was one; only a guest that comes out of a file may not be
 * the only one. No thread of its own; the device lock.
 *
 * Text: Microsoft, "Virtual Machine Generation ID", 2012.
 */
#include "devices/vmgenid.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "vmm/intc.h"
#include "vmm/memory.h"

struct vmgenid {
    struct device dev; /* first */
    const struct device_env *env;
    struct vmgenid_config config;
    uint8_t bytes[VMGENID_BYTES];
    bool absent; /* the guest was started without: the place is not ours before its reset */
};

static int draw(struct vmgenid *genid)
{
    size_t at = 0;

    while (at < sizeof(genid->bytes)) {
        ssize_t n = getrandom(genid->bytes + at, sizeof(genid->bytes) - at, 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            at += (size_t)n;
    }
    return 0;
}

int vmgenid_show(struct device *dev)
{
    struct vmgenid *genid = (struct vmgenid *)dev;

    return memory_write(genid->env->mem, genid->config.place, genid->bytes, sizeof(genid->bytes));
}

int vmgenid_renew(struct device *dev)
{
    struct vmgenid *genid = (struct vmgenid *)dev;
    int err;

    if (genid->absent)
        return 0;
    err = draw(genid);
    if (!err)
        err = vmgenid_show(dev);
    if (!err)
        intc_pulse(genid->env->intc, genid->config.gsi);
    return err;
}

/* ---- device ---- */

static void vmgenid_reset(struct device *dev)
{
    ((struct vmgenid *)dev)->absent = false; /* the firmware describes it to who boots now */
}

static void vmgenid_absent(struct device *dev)
{
    ((struct vmgenid *)dev)->absent = true;
}

struct vmgenid_state {
    uint8_t bytes[VMGENID_BYTES];
    bool absent;
};

static const struct state_field vmgenid_fields[] = {
    STATE_ARRAY(STATE_U8, struct vmgenid_state, bytes),
    STATE_FIELD(STATE_BOOL, struct vmgenid_state, absent),
};
static const struct state_desc vmgenid_desc =
    STATE_DESC("vmgenid", 1, struct vmgenid_state, vmgenid_fields);

static void vmgenid_get(void *object, void *state)
{
    const struct vmgenid *genid = object;
    struct vmgenid_state *to = state;

    memcpy(to->bytes, genid->bytes, sizeof(to->bytes));
    to->absent = genid->absent;
}

static int vmgenid_check(void *object, const void *state)
{
    (void)object;
    (void)state;
    return 0;
}

static void vmgenid_set(void *object, const void *state)
{
    const struct vmgenid_state *from = state;
    struct vmgenid *genid = object;

    memcpy(genid->bytes, from->bytes, sizeof(genid->bytes));
    genid->absent = from->absent;
}

static unsigned vmgenid_parts(struct device *dev, struct state_part *parts)
{
    parts[0] = (struct state_part){&vmgenid_desc, dev, vmgenid_get, vmgenid_check, vmgenid_set};
    return 1;
}

static void vmgenid_destroy(struct device *dev)
{
    free(dev);
}

static const struct device_ops vmgenid_ops = {
    .type = "vmgenid",
    .reset = vmgenid_reset,
    .state = vmgenid_parts,
    .absent = vmgenid_absent,
    .destroy = vmgenid_destroy,
};

int vmgenid_create(struct device **out, const struct device_env *env,
                   const struct vmgenid_config *config)
{
    struct vmgenid *genid = calloc(1, sizeof(*genid));
    int err;

    if (!genid)
        return -ENOMEM;
    genid->dev.ops = &vmgenid_ops;
    snprintf(genid->dev.id, sizeof(genid->dev.id), "%s", config->id);
    genid->env = env;
    genid->config = *config;
    err = draw(genid);
    if (err) {
        free(genid);
        return err;
    }
    *out = &genid->dev;
    return 0;
}

/*
 * Calls into devices, and their state as records: all parts are saved in order, and loaded so that
 * either every part is taken over or none.
 *
 * Does not know any device, and decides no order among them: that is the machine's. Runs on the
 * event loop's thread with the device lock held, device_destroy() without it.
 */
#include "vmm/device.h"

#include <errno.h>
#include <stdlib.h>

#include "vmm/util/log.h"

void device_reset(struct device *dev)
{
    dev->ops->reset(dev);
}

void device_pause(struct device *dev)
{
    if (dev->ops->pause)
        dev->ops->pause(dev);
}

bool device_busy(const struct device *dev)
{
    return dev->ops->busy && dev->ops->busy(dev);
}

void device_resume(struct device *dev)
{
    if (dev->ops->resume)
        dev->ops->resume(dev);
}

void device_destroy(struct device *dev)
{
    if (dev)
        dev->ops->destroy(dev);
}

static unsigned get_parts(struct device *dev, struct state_part *parts)
{
    return dev->ops->state ? dev->ops->state(dev, parts) : 0;
}

static int save_part(const struct state_part *part, struct state_buffer *out)
{
    void *state = calloc(1, part->desc->size);
    int err;

    if (!state)
        return -ENOMEM;
    part->get(part->object, state);
    err = state_save(part->desc, state, out);
    free(state);
    return err;
}

int device_save(struct device *dev, struct state_buffer *out)
{
    struct state_part parts[DEVICE_MAX_PARTS];
    unsigned n = get_parts(dev, parts);
    size_t before = out->length;

    for (unsigned i = 0; i < n; i++) {
        int err = save_part(&parts[i], out);

        if (err) {
            out->length = before;
            return err;
        }
    }
    return 0;
}

static int load_part(struct device *dev, const struct state_part *part, void **out,
                     struct state_reader *in)
{
    void *state = malloc(part->desc->size);
    int err;

    if (!state)
        return -ENOMEM;
    *out = state;
    err = state_load(part->desc, state, in);
    if (!err && part->check)
        err = part->check(part->object, state);
    if (err)
        log_error("%s: the saved state '%s' cannot be taken over", dev->id, part->desc->name);
    return err;
}

int device_load(struct device *dev, struct state_reader *in)
{
    struct state_part parts[DEVICE_MAX_PARTS];
    void *states[DEVICE_MAX_PARTS] = {0};
    unsigned n = get_parts(dev, parts);
    size_t before = in->at;
    int err = 0;

    for (unsigned i = 0; i < n && !err; i++)
        err = load_part(dev, &parts[i], &states[i], in);
    for (unsigned i = 0; i < n && !err; i++)
        parts[i].set(parts[i].object, states[i]);
    for (unsigned i = 0; i < n; i++)
        free(states[i]);
    if (err)
        in->at = before;
    return err;
}

bool device_may_be_absent(const struct device *dev)
{
    return dev->ops->absent != NULL;
}

void device_absent(struct device *dev)
{
    if (dev->ops->absent)
        dev->ops->absent(dev);
}

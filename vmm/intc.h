/*
 * The interrupt controller as devices see it: lines by GSI number, and message-signalled vectors
 * that are raised by writing an eventfd (KVM's irqfd). An operations table, so that device tests
 * run without KVM (tests have a fake).
 *
 * line, msi_alloc/update/free: with the device lock held, or before the guest runs.
 * Raising an MSI: intc_msi_raise(), any thread, no lock.
 */
#ifndef FERRY_INTC_H
#define FERRY_INTC_H

#include <stdbool.h>
#include <stdint.h>

struct intc;

/* One message-signalled vector. Embedded by its owner. */
struct intc_msi {
    int fd;       /* eventfd, owned by this struct; -1 when not allocated */
    uint32_t gsi; /* the route */
};

struct intc_ops {
    /* Level of an interrupt line; an edge is a 1 followed by a 0. */
    void (*line)(struct intc *intc, uint32_t gsi, bool level);
    /* Takes an eventfd and a GSI for a vector, with no message yet: raising it is lost.
     * -ENOSPC when the host's routes are used up; of eventfd(2) and KVM_IRQFD. Logged. */
    int (*msi_alloc)(struct intc *intc, struct intc_msi *msi);
    /* Sets the message. A message the host refuses leaves the vector silent and gives -EINVAL. */
    int (*msi_update)(struct intc *intc, struct intc_msi *msi, uint64_t address, uint32_t data);
    void (*msi_free)(struct intc *intc, struct intc_msi *msi);
};

struct intc {
    const struct intc_ops *ops;
};

static inline void intc_line(struct intc *intc, uint32_t gsi, bool level)
{
    intc->ops->line(intc, gsi, level);
}

/* Edge-triggered interrupt on a line. */
static inline void intc_pulse(struct intc *intc, uint32_t gsi)
{
    intc->ops->line(intc, gsi, true);
    intc->ops->line(intc, gsi, false);
}

void intc_msi_raise(const struct intc_msi *msi);

#endif

/*
 * vCPUs: a thread each, which runs the guest and carries its exits to the busses; nothing else.
 *
 * Stopping one is a flag, KVM's immediate_exit and a signal, never a poll: a vCPU that is parked has
 * finished the instruction whose exit it was handling, so its registers are whole.
 *
 * Threads: everything here is called on the event loop's thread, except vcpu_bus().
 */
#ifndef FERRY_VCPU_H
#define FERRY_VCPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/util/state.h"

struct arch_vcpu;
struct bus;
struct guest_memory;
struct vm;
struct vcpu;
struct vcpus;

/* Why a vCPU cannot go on. */
enum vcpu_failure {
    VCPU_TRIPLE_FAULT, /* the guest's doing */
    VCPU_SHUTDOWN,     /* the guest asked its firmware to power off */
    VCPU_RESET,        /* ... or to restart */
    VCPU_ERROR,        /* KVM gave up on it, or the host did */
};

struct vcpus_config {
    struct vm *vm;         /* borrowed */
    unsigned count;
    struct guest_memory *assist; /* borrowed; see arch_vcpu_create(). NULL: no vCPU needs help */
    struct bus *pio, *mmio;
    pthread_mutex_t *lock; /* the device lock */
    /* On the vCPU's thread, once per failure; the vCPU parks after it. `detail` is for the log. */
    void (*failed)(void *opaque, enum vcpu_failure failure, const char *detail);
    void *opaque;
};

/* Creates vCPUs and their threads, parked. -EINVAL when KVM takes fewer; logged. */
int vcpus_create(struct vcpus **out, const struct vcpus_config *config);
/* Ends the threads and frees. Parks first where needed. */
void vcpus_destroy(struct vcpus *vcpus);

/* Lets all run. */
void vcpus_resume(struct vcpus *vcpus);
/* Returns when none runs guest code and none is in a bus handler. The device lock must not be held. */
void vcpus_park(struct vcpus *vcpus);
/* Lets the vCPUs rest for so many of 100 parts of the time, 0 to 99, until told otherwise. Any thread
 * but a vCPU's, one at a time. 0, or a negative errno: no thread for it (logged). */
int vcpus_throttle(struct vcpus *vcpus, unsigned percent);
/* All parked: back to power-on state. */
int vcpus_reset(struct vcpus *vcpus);

/* One vCPU's registers, as records; all are parked. See vmm/arch.h. */
int vcpu_save(struct vcpu *vcpu, struct state_buffer *out);
int vcpu_load(struct vcpu *vcpu, struct state_reader *in);

/* Before a migration; see arch_vcpu_describe() in vmm/arch.h. All parked. */
int vcpu_describe(struct vcpu *vcpu, struct state_buffer *out);

unsigned vcpus_count(const struct vcpus *vcpus);
struct vcpu *vcpus_get(struct vcpus *vcpus, unsigned index);
int vcpu_fd(const struct vcpu *vcpu); /* borrowed */

/* For arch_vcpu_exit(): one access to a bus, under the device lock. data is `size` bytes. */
enum vcpu_bus_kind { VCPU_BUS_PIO, VCPU_BUS_MMIO };
void vcpu_bus(struct vcpu *vcpu, enum vcpu_bus_kind kind, uint64_t address, void *data,
              unsigned size, bool write);

#endif

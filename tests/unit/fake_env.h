/*
 * A machine for device tests, without KVM: real guest memory, real busses, a real event loop; an
 * interrupt controller, doorbells and machine events that only take notes.
 *
 * The test's thread is the event loop's thread. Everything asserts by Criterion, so nothing here
 * returns an error.
 */
#ifndef FERRY_TESTS_FAKE_ENV_H
#define FERRY_TESTS_FAKE_ENV_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/intc.h"
#include "vmm/memory.h"
#include "vmm/util/loop.h"

#define FAKE_LINES 24
#define FAKE_MSIS 256
#define FAKE_BELLS 256
#define FAKE_DEADLINE_NS 20000000000ull /* turns a hang into a failure */

struct fake_line {
    bool level;
    unsigned rises; /* changes from false to true */
};

struct fake_msi {
    int fd;       /* borrowed from the intc_msi; -1: not allocated */
    bool present; /* has a message */
    uint64_t address;
    uint32_t data;
    unsigned updates;
};

struct fake_bell {
    gpa_t gpa;
    unsigned size;
    int fd; /* borrowed; -1: free */
};

struct fake_env {
    struct device_env env; /* what a device is given */

    struct intc intc;
    struct fake_line lines[FAKE_LINES];
    struct fake_msi msis[FAKE_MSIS]; /* by their gsi */
    unsigned n_msis;                 /* allocated now */
    unsigned msi_allocs;             /* ever, failures included */
    int msi_alloc_error;             /* set by a test: what msi_alloc returns; 0: works */
    int msi_update_error;

    struct doorbells doorbells;
    struct fake_bell bells[FAKE_BELLS];
    unsigned n_bells;
    int bell_error; /* set by a test: what adding a doorbell returns; 0: works */

    struct machine_events events;
    unsigned n_events;
    enum machine_event first_event;

    pthread_mutex_t lock;
    struct loop_event marker; /* internal */
    int marker_fd;
    unsigned marks;
};

/* memory_size in bytes; RAM starts at 0 and has no hole. */
void fake_env_init(struct fake_env *fake, uint64_t memory_size);
/* The same with RAM as config says. */
void fake_env_init_memory(struct fake_env *fake, const struct memory_config *config);
/* Also asserts that the devices gave back every vector and every doorbell. */
void fake_env_fini(struct fake_env *fake);

/* Runs the loop until ready(arg); fails the test after FAKE_DEADLINE_NS. */
void fake_env_wait(struct fake_env *fake, bool (*ready)(void *arg), void *arg);
/* Runs the loop until what was started or written before has been delivered: eventfds, calls, and
 * operations that complete at once. For tests that show that something does not happen. */
void fake_env_settle(struct fake_env *fake);

/* What a guest does: an MMIO or port access as KVM would carry it, doorbells first. Takes the
 * lock. */
void fake_mmio_write(struct fake_env *fake, uint64_t gpa, unsigned size, uint64_t value);
uint64_t fake_mmio_read(struct fake_env *fake, uint64_t gpa, unsigned size);
void fake_pio_write(struct fake_env *fake, uint16_t port, unsigned size, uint32_t value);
uint32_t fake_pio_read(struct fake_env *fake, uint16_t port, unsigned size);

/* How often vectors whose message has this data were raised since the last question. */
uint64_t fake_msi_take(struct fake_env *fake, uint32_t data);
const struct fake_bell *fake_bell_at(const struct fake_env *fake, gpa_t gpa);

/* Saves dev into a fresh buffer, and loads it into another; what device_load() gives. Lock taken
 * by these; the devices are paused. */
void fake_save(struct fake_env *fake, struct device *dev, struct state_buffer *out);
int fake_load(struct fake_env *fake, struct device *dev, const struct state_buffer *from);

#endif

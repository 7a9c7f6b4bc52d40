/*
 * A machine for fuzz targets of devices, without KVM: real memory, busses and loop; vectors and
 * doorbells that exist only here. Made once, kept from input to input.
 */
#ifndef FERRY_TESTS_FUZZ_MACHINE_H
#define FERRY_TESTS_FUZZ_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/pci/pci.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/memory.h"
#include "vmm/util/loop.h"

#define FUZZ_ECAM 0xE0000000ull
#define FUZZ_WINDOW 0xC0000000ull
#define FUZZ_WINDOW_SIZE 0x20000000ull
#define FUZZ_BELLS 64

struct fuzz_bell {
    gpa_t gpa;
    int fd; /* borrowed; -1: free */
};

struct fuzz_machine {
    struct device_env env;
    struct intc intc;
    unsigned n_msis; /* allocated now; the host refuses more than msi_limit */
    unsigned msi_limit;
    struct doorbells doorbells;
    struct fuzz_bell bells[FUZZ_BELLS];
    struct machine_events events;
    pthread_mutex_t lock;
    struct pci_bus *pci;
    struct device *bridge;
    struct loop_event marker; /* internal */
    int marker_fd;
    bool marked;
};

/* Also makes the log quiet. */
void fuzz_machine_init(struct fuzz_machine *m, uint64_t memory_size);

/* As a guest does it: doorbells first, then the bus. */
void fuzz_mmio_write(struct fuzz_machine *m, uint64_t gpa, unsigned size, uint64_t value);
uint64_t fuzz_mmio_read(struct fuzz_machine *m, uint64_t gpa, unsigned size);
uint32_t fuzz_config_read(struct fuzz_machine *m, unsigned slot, unsigned offset, unsigned size);
void fuzz_config_write(struct fuzz_machine *m, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value);

/* Runs the loop until what was started or written before has been delivered. */
void fuzz_settle(struct fuzz_machine *m);

/* Pauses the device, runs the loop until it is idle, saves it, loads that into itself, saves again:
 * both must be the same. Then, with `spoil`, loads it with the byte at `at` changed by `bits`, which
 * may be refused but must not change what is saved then. Resumes. */
void fuzz_round_trip(struct fuzz_machine *m, struct device *dev, bool spoil, uint32_t at,
                     uint8_t bits);

/* Pauses, drains, resets and resumes. */
void fuzz_reset(struct fuzz_machine *m, struct device *dev);

/* The input, consumed from its beginning; zeros behind its end. */
struct fuzz_input {
    const uint8_t *data;
    size_t size;
};
uint8_t fuzz_u8(struct fuzz_input *in);
uint16_t fuzz_u16(struct fuzz_input *in);
uint32_t fuzz_u32(struct fuzz_input *in);

#endif

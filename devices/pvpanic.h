/*
 * The panic device: one I/O port where the guest's kernel says that it crashed (QEMU's
 * docs/specs/pvpanic; Linux's driver finds it by the ACPI id QEMU0001).
 *
 * PANICKED ends the guest (MACHINE_PANIC). CRASHLOADED is only told to the person: the guest goes
 * on into its own crash kernel, to save what it can. SHUTDOWN powers off.
 */
#ifndef FERRY_PVPANIC_H
#define FERRY_PVPANIC_H

#include <stdint.h>

#include "vmm/device.h"

struct pvpanic_config {
    const char *id; /* copied */
    uint64_t port;  /* in env->pio */
};

/* *out is owned by the caller. env is borrowed for the device's life. -ENOMEM, of bus_add(). */
int pvpanic_create(struct device **out, const struct device_env *env,
                   const struct pvpanic_config *config);

#endif

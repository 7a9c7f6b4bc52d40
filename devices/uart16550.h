/*
 * A 16550A UART (National Semiconductor PC16550D, June 1995): eight I/O ports, FIFOs of 16 bytes,
 * one interrupt line.
 *
 * The line speed is not modelled: output leaves at once, and input comes as fast as the guest
 * reads it, in bursts that leave the guest time for other work. The far end honours RTS: while the
 * guest has it low, and does not poll for input either, input stays where it is, so that what was
 * sent before the guest's driver is ready is not lost. CTS, DSR and DCD are always on.
 */
#ifndef FERRY_UART16550_H
#define FERRY_UART16550_H

#include <stdint.h>

#include "devices/chardev.h"
#include "vmm/device.h"

#define UART16550_PORTS 8

struct uart16550_config {
    const char *id; /* copied */
    uint64_t base;  /* of the eight ports in env->pio */
    uint32_t gsi;
    struct chardev *chardev; /* borrowed for the device's life; this is its only front end */
};

/* *out is owned by the caller. env is borrowed for the device's life. -ENOMEM, of bus_add(). */
int uart16550_create(struct device **out, const struct device_env *env,
                     const struct uart16550_config *config);

#endif

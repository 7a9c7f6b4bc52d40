/*
 * The machine's switches: what the guest writes to power off or to reset (ACPI 6.4 §4.8.3.6 and
 * §4.8.3.7, and the PC's older ways), and the power button that we press.
 */
#ifndef FERRY_POWER_H
#define FERRY_POWER_H

#include <stdint.h>

#include "vmm/device.h"

struct power_config {
    const char *id; /* copied */
    /* All ports are in env->pio. */
    uint64_t sleep_control_port; /* SLP_EN with s5_type powers off */
    uint64_t sleep_status_port;
    uint8_t s5_type;             /* SLP_TYP of \_S5 */
    uint64_t reset_port;         /* writing reset_value resets */
    uint8_t reset_value;
    uint64_t i8042_command_port; /* writing 0xFE resets; 0: none */
    uint64_t fast_reset_port;    /* "port 92h": bit 0 going to 1 resets; 0: none */
    uint32_t button_gsi;         /* of the ACPI event device: an edge for each press */
};

/* *out is owned by the caller. env is borrowed for the device's life. -ENOMEM, of bus_add(). */
int power_create(struct device **out, const struct device_env *env,
                 const struct power_config *config);

/* Presses the power button: the guest is asked to power off. Lock held. */
void power_button_press(struct device *dev);

#endif

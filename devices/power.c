/*
 * Power off, reset and the power button.
 *
 * The ACPI sleep registers of a hardware-reduced machine, its reset register, and the PC's older
 * ways to reset: the keyboard controller's reset line and port 92h. (The third, port CF9h, lies
 * within PCI's configuration port and is not here.) There is no keyboard controller: its status
 * reads as all ones, by which Linux and FreeBSD find that out. Registers are entered by vCPU
 * threads, the button by the event loop's, all with the device lock held.
 *
 * Texts: ACPI 6.4 §4.8.3.6 (reset register), §4.8.3.7 (sleep control and status registers);
 * IBM PS/2 technical references and Intel ICH datasheets for ports 64h and 92h.
 */
#include "devices/power.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmm/bus.h"
#include "vmm/intc.h"
#include "vmm/util/log.h"

/* Sleep control register, §4.8.3.7. */
#define SLEEP_TYPE_SHIFT 2
#define SLEEP_TYPE_MASK 0x07
#define SLEEP_ENABLE 0x20

#define I8042_PULSE_RESET 0xFE
#define I8042_ABSENT 0xFF

#define FAST_RESET_NOW 0x01
#define FAST_RESET_A20 0x02

enum { REGION_CONTROL, REGION_STATUS, REGION_RESET, REGION_I8042, REGION_FAST, REGIONS };

struct power {
    struct device dev; /* first */
    const struct device_env *env;
    struct power_config config;
    struct bus_region regions[REGIONS];
    struct log_rate log_rate;
    uint8_t fast_reset; /* what was written to port 92h */
};

static void raise_event(struct power *power, enum machine_event event, const char *cause)
{
    power->env->events->raise(power->env->events, event, cause);
}

/* SLP_EN is write-only, SLP_TYP matters in the same write alone, and WAK_STS is set by a wake, which
 * never happens here. */
static uint64_t read_zero(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return 0;
}

static void write_nothing(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque;
    (void)offset;
    (void)size;
    (void)value;
}

static void write_control(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;
    unsigned type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;

    (void)offset;
    (void)size;
    if (!(value & SLEEP_ENABLE))
        return;
    if (type == power->config.s5_type)
        raise_event(power, MACHINE_POWER_OFF, "the guest powered off");
    else
        log_guest(&power->log_rate, "%s: the guest asks for sleep type %u, which there is not",
                  power->dev.id, type);
}

static void write_reset(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;

    (void)offset;
    (void)size;
    if ((uint8_t)value == power->config.reset_value)
        raise_event(power, MACHINE_RESET, "the guest asked for a reset (ACPI)");
}

static uint64_t read_i8042(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return I8042_ABSENT;
}

static void write_i8042(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    if ((uint8_t)value == I8042_PULSE_RESET)
        raise_event(opaque, MACHINE_RESET, "the guest asked for a reset (keyboard controller)");
}

/* Address line 20 is never masked, whatever is written. */
static uint64_t read_fast(void *opaque, uint64_t offset, unsigned size)
{
    struct power *power = opaque;

    (void)offset;
    (void)size;
    return power->fast_reset | FAST_RESET_A20;
}

static void write_fast(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;
    uint8_t rising = (uint8_t)value & (uint8_t)~power->fast_reset;

    (void)offset;
    (void)size;
    power->fast_reset = (uint8_t)value & FAST_RESET_NOW;
    if (rising & FAST_RESET_NOW)
        raise_event(power, MACHINE_RESET, "the guest asked for a reset (port 92h)");
}

static const struct bus_ops region_ops[REGIONS] = {
    [REGION_CONTROL] = {.read = read_zero, .write = write_control},
    [REGION_STATUS] = {.read = read_zero, .write = write_nothing},
    [REGION_RESET] = {.read = read_zero, .write = write_reset},
    [REGION_I8042] = {.read = read_i8042, .write = write_i8042},
    [REGION_FAST] = {.read = read_fast, .write = write_fast},
};

void power_button_press(struct device *dev)
{
    struct power *power = (struct power *)dev;

    intc_pulse(power->env->intc, power->config.button_gsi);
}

/* ---- device ---- */

static void power_reset(struct device *dev)
{
    struct power *power = (struct power *)dev;

    power->fast_reset = 0;
}

struct power_state {
    uint8_t fast_reset;
};

static const struct state_field power_fields[] = {
    STATE_FIELD(STATE_U8, struct power_state, fast_reset),
};
static const struct state_desc power_desc =
    STATE_DESC("power", 1, struct power_state, power_fields);

static void power_get(void *object, void *state)
{
    struct power *power = object;

    ((struct power_state *)state)->fast_reset = power->fast_reset;
}

static int power_check(void *object, const void *state)
{
    struct power *power = object;

    if (((const struct power_state *)state)->fast_reset & (uint8_t)~FAST_RESET_NOW) {
        log_error("%s: reserved bits are set in port 92h", power->dev.id);
        return -EINVAL;
    }
    return 0;
}

static void power_set(void *object, const void *state)
{
    struct power *power = object;

    power->fast_reset = ((const struct power_state *)state)->fast_reset;
}

static unsigned power_parts(struct device *dev, struct state_part *parts)
{
    parts[0] = (struct state_part){&power_desc, dev, power_get, power_check, power_set};
    return 1;
}

/* Removes the first n regions; ports that the machine does not have were not added. */
static void remove_regions(struct power *power, unsigned n)
{
    while (n-- > 0)
        if (power->regions[n].base != 0)
            bus_remove(power->env->pio, &power->regions[n]);
}

static void power_destroy(struct device *dev)
{
    struct power *power = (struct power *)dev;

    device_lock(power->env);
    remove_regions(power, REGIONS);
    device_unlock(power->env);
    free(power);
}

static const struct device_ops power_ops = {
    .type = "power",
    .reset = power_reset,
    .state = power_parts,
    .destroy = power_destroy,
};

static int add_regions(struct power *power)
{
    const uint64_t ports[REGIONS] = {
        [REGION_CONTROL] = power->config.sleep_control_port,
        [REGION_STATUS] = power->config.sleep_status_port,
        [REGION_RESET] = power->config.reset_port,
        [REGION_I8042] = power->config.i8042_command_port,
        [REGION_FAST] = power->config.fast_reset_port,
    };

    for (unsigned i = 0; i < REGIONS; i++) {
        int err;

        power->regions[i] =
            (struct bus_region){power->dev.id, ports[i], 1, &region_ops[i], power};
        err = ports[i] != 0 ? bus_add(power->env->pio, &power->regions[i]) : 0;
        if (err) {
            remove_regions(power, i);
            return err;
        }
    }
    return 0;
}

int power_create(struct device **out, const struct device_env *env,
                 const struct power_config *config)
{
    struct power *power = calloc(1, sizeof(*power));
    int err;

    if (!power)
        return -ENOMEM;
    power->dev.ops = &power_ops;
    snprintf(power->dev.id, sizeof(power->dev.id), "%s", config->id);
    power->env = env;
    power->config = *config;
    device_lock(env);
    err = add_regions(power);
    device_unlock(env);
    if (err) {
        free(power);
        return err;
    }
    *out = &power->dev;
    return 0;
}

/*
 * A driver of virtio-console, port 0: bytes in, bytes out, and a sink for print().
 */
#ifndef GUEST_VCONSOLE_H
#define GUEST_VCONSOLE_H

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define VCONSOLE_RX_SIZE 1024

/* Finds the device; false when there is none. */
bool vconsole_open(void);
const struct virtio_device *vconsole_device(void);
/* Resets and starts it; vector is 0 for polling, else input interrupts this processor by it. */
bool vconsole_start(uint32_t vector);

/* Sends length bytes and waits until they are taken; false when they are not. */
bool vconsole_write(const void *data, uint32_t length);
/* For print_set_sink(): sends by the line. */
void vconsole_sink(char c);

/*
 * The next chunk of input, of at most VCONSOLE_RX_SIZE bytes, or NULL when none comes within
 * limit_ns or the device's answer makes no sense. Give it back when done with it.
 */
const uint8_t *vconsole_take(uint32_t *length, uint64_t limit_ns);
void vconsole_give(const uint8_t *chunk);

#endif

/* What stands where a PC's firmware begins: code that resets the machine. */
#ifndef FERRY_FIRMWARE_X86_RESET_VECTOR_H
#define FERRY_FIRMWARE_X86_RESET_VECTOR_H

#include "vmm/memory.h"

/*
 * Writes the code at PLATFORM_RESET_VECTOR. Call before each start of the guest. Errors: those of
 * memory_write().
 */
int reset_vector_write(struct guest_memory *mem);

#endif

/*
 * Memory of the guest: the map above 4 GiB, page allocation, and the four functions of C's
 * <string.h> that the compiler may call.
 */
#ifndef GUEST_MEMORY_H
#define GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 4096ul

void *memcpy(void *restrict to, const void *restrict from, size_t length);
void *memmove(void *to, const void *from, size_t length);
void *memset(void *to, int byte, size_t length);
int memcmp(const void *left, const void *right, size_t length);
size_t strlen(const char *text);
bool text_equal(const char *left, const char *right);

/* Finds the memory to allocate from and maps all RAM above 4 GiB. */
void memory_init(void);

/* Maps [base, base + length) one to one, 2-MiB pages, up to 512 GiB. */
void memory_map(uint64_t base, uint64_t length);

/*
 * Zeroed memory, aligned to a page, never given back. Ends the payload when there is no more. It
 * comes from the largest RAM below 4 GiB, behind the image and the modules.
 */
void *memory_alloc(uint64_t length);

/* First address behind the image, the modules and all that memory_alloc() gave. */
uint64_t memory_free_base(void);

#endif

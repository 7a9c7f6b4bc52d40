/*
 * Memory of the guest: the map above 4 GiB, page allocation, and four functions of <string.h>.
 *
 * Page tables are ordinary memory, so CPL 3 extends them natively; entries only ever go from not
 * present to present, so nothing has to be flushed (Intel SDM volume 3, 4.10.2.3).
 * Does not free. Thread: the first processor; the string functions any, at any level.
 */
#include "memory.h"

#include "boot.h"
#include "io.h"
#include "verdict.h"

#define ENTRY_TABLE 0x27   /* accessed, user, writable, present */
#define ENTRY_LARGE 0xE7   /* 2 MiB, dirty, and the same */
#define LARGE_PAGE  (2 * MIB)
#define MAP_LIMIT   (512 * GIB)

extern char image_end[];
extern uint64_t page_pointers[512];

static uint64_t alloc_next;
static uint64_t alloc_end;

void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
    void *at = to;

    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(length) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t length)
{
    char *end = (char *)to + length - 1;
    const char *last = (const char *)from + length - 1;

    if ((uintptr_t)to - (uintptr_t)from >= length)
        return memcpy(to, from, length);
    __asm__ volatile("std; rep movsb; cld" : "+D"(end), "+S"(last), "+c"(length) : : "memory");
    return to;
}

void *memset(void *to, int byte, size_t length)
{
    void *at = to;

    __asm__ volatile("rep stosb" : "+D"(at), "+c"(length) : "a"(byte) : "memory");
    return to;
}

int memcmp(const void *left, const void *right, size_t length)
{
    const uint8_t *a = left;
    const uint8_t *b = right;

    for (size_t i = 0; i < length; i++) {
        if (a[i] != b[i])
            return a[i] - b[i];
    }
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;

    while (text[length] != '\0')
        length++;
    return length;
}

bool text_equal(const char *left, const char *right)
{
    while (*left != '\0' && *left == *right) {
        left++;
        right++;
    }
    return *left == *right;
}

/* Offers the memory from base to the next module, or to limit, to the allocator. */
static void offer(const struct boot_info *info, uint64_t base, uint64_t limit)
{
    base = (base + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    for (uint32_t i = 0; i < info->modules; i++) {
        uint64_t begin = info->module[i].base;
        uint64_t end = begin + info->module[i].size;
        if (base >= begin && base < end)
            return;
        if (begin >= base && begin < limit)
            limit = begin;
    }
    limit &= ~(PAGE_SIZE - 1);
    if (limit > base && limit - base > alloc_end - alloc_next) {
        alloc_next = base;
        alloc_end = limit;
    }
}

static void offer_range(const struct boot_info *info, const struct memory_range *range)
{
    uint64_t base = range->base;
    uint64_t limit = range->base + range->size;

    if (base < (uintptr_t)image_end)
        base = (uintptr_t)image_end;
    offer(info, base, limit);
    for (uint32_t i = 0; i < info->modules; i++) {
        uint64_t end = info->module[i].base + info->module[i].size;
        if (end > base && end < limit)
            offer(info, end, limit);
    }
}

void memory_init(void)
{
    const struct boot_info *info = boot_get();

    for (uint32_t i = 0; i < info->regions; i++) {
        if (info->region[i].type == MEMORY_TYPE_RAM && info->region[i].base < 4 * GIB)
            offer_range(info, &info->region[i]);
    }
    for (uint32_t i = 0; i < info->regions; i++) {
        if (info->region[i].type == MEMORY_TYPE_RAM && info->region[i].base >= 4 * GIB)
            memory_map(info->region[i].base, info->region[i].size);
    }
}

void *memory_alloc(uint64_t length)
{
    length = (length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    if (length > alloc_end - alloc_next) {
        not_ok("memory", "no room for %lu bytes", length);
        verdict();
    }
    void *memory = (void *)(uintptr_t)alloc_next;
    alloc_next += length;
    return memset(memory, 0, length);
}

uint64_t memory_free_base(void)
{
    return alloc_next;
}

void memory_map(uint64_t base, uint64_t length)
{
    uint64_t at = base & ~(LARGE_PAGE - 1);

    for (; at < base + length && at < MAP_LIMIT; at += LARGE_PAGE) {
        uint64_t *pointer = &page_pointers[at / GIB];
        if (*pointer == 0)
            *pointer = (uintptr_t)memory_alloc(PAGE_SIZE) | ENTRY_TABLE;
        uint64_t *directory = (uint64_t *)(uintptr_t)(*pointer & ~(PAGE_SIZE - 1));
        uint64_t *entry = &directory[at / LARGE_PAGE % 512];
        if (*entry == 0)
            *entry = at | ENTRY_LARGE;
    }
}

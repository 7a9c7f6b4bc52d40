/*
 * What the VMM handed over: the PVH start info, copied, and the command line as parameters.
 *
 * A command line is words; a word is KEY or KEY=VALUE.
 */
#ifndef GUEST_BOOT_H
#define GUEST_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#define BOOT_MAX_REGIONS  32
#define BOOT_MAX_MODULES  4
#define BOOT_CMDLINE_SIZE 2048

#define MEMORY_TYPE_RAM 1

struct memory_range {
    uint64_t base;
    uint64_t size;
    uint32_t type; /* as in E820: 1 is RAM */
    uint32_t reserved;
};

struct boot_module {
    uint64_t base;
    uint64_t size;
};

struct boot_info {
    uint32_t version;
    uint32_t regions;
    uint32_t modules;
    uint64_t rsdp; /* 0 when none was given */
    struct memory_range region[BOOT_MAX_REGIONS];
    struct boot_module module[BOOT_MAX_MODULES];
    char cmdline[BOOT_CMDLINE_SIZE];
};

/* Copies the start info; once, on the first processor. False: there is none with the magic. */
bool boot_init(void);
const struct boot_info *boot_get(void);

/* The value of KEY=VALUE, copied and cut to size; false and an empty text when there is none. */
bool arg_text(const char *key, char *value, uint32_t size);
/* Decimal, or hexadecimal after 0x, with K, M or G behind; fallback when absent. */
uint64_t arg_number(const char *key, uint64_t fallback);
/* KEY alone or with any value. */
bool arg_present(const char *key);

/* What a payload is. Its return value is ignored: the verdict counts. */
int main(const struct boot_info *info);

#endif

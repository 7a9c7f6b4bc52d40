/*
 * The PVH start info, the command line, and the way of each processor from start.S into C.
 *
 * Does not trust what it is given beyond its magic; a payload's VMM is what it tests.
 * Thread: the first processor; boot_get() afterwards from any.
 * Text: Xen public/arch-x86/hvm/start_info.h (struct hvm_start_info and its memory map).
 */
#include "boot.h"

#include "apic.h"
#include "cpu.h"
#include "memory.h"
#include "print.h"
#include "smp.h"
#include "timing.h"
#include "verdict.h"

#define START_INFO_MAGIC 0x336EC578

struct start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t modules;
    uint64_t module_list;
    uint64_t cmdline;
    uint64_t rsdp;
    uint64_t memory_map; /* from version 1 on */
    uint32_t memory_map_entries;
    uint32_t reserved;
};
_Static_assert(sizeof(struct start_info) == 56, "hvm_start_info, version 1");

struct start_module {
    uint64_t address;
    uint64_t size;
    uint64_t cmdline;
    uint64_t reserved;
};
_Static_assert(sizeof(struct start_module) == 32, "hvm_modlist_entry");
_Static_assert(sizeof(struct memory_range) == 24, "hvm_memmap_table_entry");

extern uint64_t boot_start_info;

static struct boot_info boot;

bool boot_init(void)
{
    const struct start_info *info = (const void *)(uintptr_t)boot_start_info;

    if (info == NULL || info->magic != START_INFO_MAGIC)
        return false;
    boot.version = info->version;
    boot.rsdp = info->rsdp;
    if (info->cmdline != 0) {
        const char *from = (const char *)(uintptr_t)info->cmdline;
        for (uint32_t i = 0; i + 1 < BOOT_CMDLINE_SIZE && from[i] != '\0'; i++)
            boot.cmdline[i] = from[i];
    }
    if (info->version >= 1) {
        const struct memory_range *map = (const void *)(uintptr_t)info->memory_map;
        for (uint32_t i = 0; i < info->memory_map_entries && i < BOOT_MAX_REGIONS; i++)
            boot.region[boot.regions++] = map[i];
    }
    const struct start_module *list = (const void *)(uintptr_t)info->module_list;
    for (uint32_t i = 0; i < info->modules && i < BOOT_MAX_MODULES; i++)
        boot.module[boot.modules++] =
            (struct boot_module){ .base = list[i].address, .size = list[i].size };
    return true;
}

const struct boot_info *boot_get(void)
{
    return &boot;
}

/* The text behind KEY in word: the value, "" for KEY alone, NULL when it is another word. */
static const char *match_key(const char *word, const char *key)
{
    while (*key != '\0' && *word == *key) {
        word++;
        key++;
    }
    if (*key != '\0')
        return NULL;
    if (*word == '=')
        return word + 1;
    return *word == '\0' || *word == ' ' ? "" : NULL;
}

static const char *find_arg(const char *key)
{
    const char *at = boot.cmdline;

    while (*at != '\0') {
        const char *value = match_key(at, key);
        if (value != NULL)
            return value;
        while (*at != '\0' && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return NULL;
}

bool arg_text(const char *key, char *value, uint32_t size)
{
    const char *from = find_arg(key);
    uint32_t length = 0;

    for (; from != NULL && from[length] != '\0' && from[length] != ' ' && length + 1 < size;
         length++)
        value[length] = from[length];
    value[length] = '\0';
    return from != NULL;
}

bool arg_present(const char *key)
{
    return find_arg(key) != NULL;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return 16;
}

uint64_t arg_number(const char *key, uint64_t fallback)
{
    const char *at = find_arg(key);
    uint64_t value = 0;
    int base = 10;

    if (at == NULL)
        return fallback;
    if (at[0] == '0' && at[1] == 'x') {
        base = 16;
        at += 2;
    }
    for (; digit_of(*at) < base; at++)
        value = value * (uint64_t)base + (uint64_t)digit_of(*at);
    switch (*at) {
    case 'K':
        return value << 10;
    case 'M':
        return value << 20;
    case 'G':
        return value << 30;
    default:
        return value;
    }
}

/* From start.S, at CPL 3 with interrupts off, on every processor. */
_Noreturn void cpu_start(uint32_t index);

void cpu_start(uint32_t index)
{
    struct cpu *cpu = cpu_at(index);

    cpu->self = cpu;
    cpu->index = index;
    if (index != 0)
        smp_enter(cpu);
    trap_init();
    bool valid = boot_init();
    print_init();
    if (!valid) {
        not_ok("start-info", "no PVH start info at %lx", boot_start_info);
        verdict();
    }
    memory_init();
    timing_init();
    lapic_init();
    cpu->apic_id = lapic_id();
    main(&boot);
    verdict();
}

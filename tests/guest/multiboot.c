/*
 * multiboot: a 32-bit kernel with a Multiboot 1 header; prints what it was handed, and powers off.
 *
 * Stands alone: the 64-bit runtime in lib/ is not linked in. All of it is emulated on a host whose
 * KVM runs only 64-bit user code natively, so it is short. Checks the magic, the memory fields, the
 * memory map against them, and that each module lies behind the kernel and can be read.
 * Thread: one processor. Text: Multiboot 0.6.96, 3.3.
 */
#include <stdbool.h>
#include <stdint.h>

#define BOOT_MAGIC    0x2BADB002
#define FLAG_MEMORY   0x001
#define FLAG_CMDLINE  0x004
#define FLAG_MODULES  0x008
#define FLAG_MAP      0x040

#define COM1          0x3F8
#define LINE_STATUS   5
#define LSR_THRE      0x20
#define SLEEP_CONTROL 0x600
#define SLEEP_S5      0x34

struct information {
    uint32_t flags;
    uint32_t mem_lower; /* KiB from 0 */
    uint32_t mem_upper; /* KiB from 1 MiB */
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t module_count;
    uint32_t modules;
    uint32_t symbols[4];
    uint32_t map_length;
    uint32_t map;
    uint32_t drives[2];
    uint32_t config_table;
    uint32_t loader_name;
};
_Static_assert(sizeof(struct information) == 68, "Multiboot 0.6.96, 3.3");

struct module {
    uint32_t begin;
    uint32_t end;
    uint32_t cmdline;
    uint32_t reserved;
};

struct map_entry {
    uint32_t size; /* of what follows */
    uint64_t base;
    uint64_t length;
    uint32_t type;
} __attribute__((packed));

extern char end[]; /* of the image, from the linker */

void multiboot_main(uint32_t magic, const struct information *info);

static unsigned passed, failed;

static void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(const char *text)
{
    for (; *text != '\0'; text++) {
        while ((in8(COM1 + LINE_STATUS) & LSR_THRE) == 0)
            ;
        out8(COM1, (uint8_t)*text);
    }
}

static void put_number(uint32_t value)
{
    char digits[11];
    unsigned at = sizeof(digits) - 1;

    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    put(digits + at);
}

static void put_field(const char *name, uint32_t value)
{
    put(name);
    put(" ");
    put_number(value);
    put("\n");
}

static void check(bool condition, const char *name)
{
    put(condition ? "ok " : "not ok ");
    put(name);
    put(condition ? "\n" : ": not as it must be\n");
    if (condition)
        passed++;
    else
        failed++;
}

/* The RAM entry at 1 MiB must be as long as mem_upper says. */
static bool map_agrees(const struct information *info)
{
    uint32_t at = info->map;

    while (at < info->map + info->map_length) {
        const struct map_entry *entry = (const void *)(uintptr_t)at;
        if (entry->type == 1 && entry->base == 0x100000)
            return (uint32_t)(entry->length >> 10) == info->mem_upper;
        at += entry->size + 4;
    }
    return false;
}

static void print_modules(const struct information *info)
{
    const struct module *list = (const void *)(uintptr_t)info->modules;

    put_field("modules", info->module_count);
    for (uint32_t i = 0; i < info->module_count; i++) {
        put_field("module-bytes", list[i].end - list[i].begin);
        check(list[i].begin >= (uintptr_t)end && (list[i].begin & 0xFFF) == 0, "module-place");
        put("module-begins ");
        for (uint32_t at = list[i].begin; at < list[i].end && at < list[i].begin + 16; at++) {
            char text[2] = { *(const char *)(uintptr_t)at, '\0' };
            if (text[0] < ' ')
                break;
            put(text);
        }
        put("\n");
    }
}

void multiboot_main(uint32_t magic, const struct information *info)
{
    check(magic == BOOT_MAGIC, "magic");
    if ((info->flags & FLAG_CMDLINE) != 0) {
        put("cmdline ");
        put((const char *)(uintptr_t)info->cmdline);
        put("\n");
    }
    check((info->flags & FLAG_MEMORY) != 0, "memory-fields");
    put_field("mem_lower", info->mem_lower);
    put_field("mem_upper", info->mem_upper);
    check((info->flags & FLAG_MAP) != 0 && map_agrees(info), "memory-map");
    if ((info->flags & FLAG_MODULES) != 0)
        print_modules(info);
    put("verdict: ");
    put_number(passed);
    put(" passed, ");
    put_number(failed);
    put(" failed, 0 skipped\n");
    out8(SLEEP_CONTROL, SLEEP_S5);
}

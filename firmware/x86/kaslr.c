/*
 * Kernel address space layout randomisation for a Linux kernel that the host unpacked.
 *
 * A kernel that unpacks itself moves itself, too: it draws the virtual address it runs at and adapts
 * what was linked for another, by lists that follow its ELF file in the payload. Who unpacks it on
 * the host has to do the same, or the guest loses a defence. The physical address stays as linked.
 *
 * The lists are little-endian 32-bit words, each the low half of the address of a place to adapt:
 * a zero and the places of 64 bits; a zero and those of 32 bits from which the distance is
 * subtracted (not in kernels since 6.15); a zero and those of 32 bits to which it is added. Every
 * place is checked before the first is touched: a kernel whose lists make no sense stays as it is.
 *
 * No state, any thread.
 *
 * Texts: Linux, arch/x86/tools/relocs.c and arch/x86/boot/compressed/{misc,kaslr}.c, for the format;
 * Documentation/arch/x86/x86_64/mm.rst for the map.
 */
#include <elf.h>
#include <string.h>

#include "firmware/x86/x86_internal.h"

#define KERNEL_MAP_LOW 0x80000000u /* __START_KERNEL_map is 0xFFFFFFFF80000000 */
#define KERNEL_MAP_SIZE GIB        /* KERNEL_IMAGE_SIZE of a kernel that can be moved */
#define MIN_ALIGNMENT (2 * MIB)    /* the kernel maps itself by pages of this size */

#define LISTS_MAX 3

enum place { PLACE_64, PLACE_MINUS_32, PLACE_32 };

struct list {
    enum place kind;
    uint64_t first; /* word */
    uint64_t n;
};

struct lists {
    const uint8_t *words;
    unsigned n;
    struct list list[LISTS_MAX];
};

bool kaslr_is_wanted(const char *cmdline)
{
    static const char word[] = "nokaslr";
    const char *at = cmdline;

    while ((at = strstr(at, word)) != NULL) {
        char after = at[sizeof(word) - 1];

        if ((at == cmdline || at[-1] == ' ') && (after == '\0' || after == ' '))
            return false;
        at++;
    }
    return true;
}

static uint32_t word_at(const struct lists *lists, uint64_t index)
{
    uint32_t word;

    memcpy(&word, lists->words + index * sizeof(word), sizeof(word));
    return word;
}

/* Where the ELF file ends and the lists begin: its section headers come last. */
static uint64_t elf_end(const struct kaslr_kernel *kernel)
{
    uint64_t end, table;
    Elf64_Ehdr header;

    if (kernel->size < sizeof(header))
        return kernel->size;
    memcpy(&header, kernel->bytes, sizeof(header));
    table = (uint64_t)header.e_shnum * header.e_shentsize;
    if (header.e_shoff > kernel->size || table > kernel->size - header.e_shoff)
        return kernel->size;
    end = header.e_shoff + table;
    /* The plan was checked: its segments are inside the file. */
    for (unsigned i = 0; i < kernel->plan->n_segments; i++) {
        const struct kernel_segment *s = &kernel->plan->segments[i];

        if (s->offset + s->file_size > end)
            end = s->offset + s->file_size;
    }
    return end;
}

static bool find_lists(const struct kaslr_kernel *kernel, struct lists *lists)
{
    uint64_t begin = elf_end(kernel);
    uint64_t n = (kernel->size - begin) / sizeof(uint32_t);

    *lists = (struct lists){.words = kernel->bytes + begin};
    if (n == 0 || (kernel->size - begin) % sizeof(uint32_t) != 0 || word_at(lists, 0) != 0)
        return false;
    for (uint64_t i = 0; i < n; i++) {
        if (word_at(lists, i) != 0) {
            lists->list[lists->n - 1].n++;
            continue;
        }
        if (lists->n == LISTS_MAX)
            return false;
        lists->list[lists->n++].first = i + 1;
    }
    if (lists->n < 2)
        return false;
    lists->list[0].kind = PLACE_64;
    lists->list[1].kind = PLACE_MINUS_32;
    lists->list[lists->n - 1].kind = PLACE_32;
    return true;
}

static size_t place_size(enum place kind)
{
    return kind == PLACE_64 ? sizeof(uint64_t) : sizeof(uint32_t);
}

/* The place's bytes in the file; NULL when they are in no segment. The kernel maps physical memory
 * from 0 on at __START_KERNEL_map. */
static uint8_t *find_place(const struct kaslr_kernel *kernel, uint32_t low, size_t size)
{
    uint64_t at = (uint64_t)low - KERNEL_MAP_LOW;

    if (low < KERNEL_MAP_LOW)
        return NULL;
    for (unsigned i = 0; i < kernel->plan->n_segments; i++) {
        const struct kernel_segment *s = &kernel->plan->segments[i];

        if (at >= s->at && at - s->at < s->file_size && size <= s->file_size - (at - s->at))
            return kernel->bytes + s->offset + (at - s->at);
    }
    return NULL;
}

static bool check_places(const struct kaslr_kernel *kernel, const struct lists *lists)
{
    for (unsigned l = 0; l < lists->n; l++) {
        const struct list *list = &lists->list[l];

        for (uint64_t i = 0; i < list->n; i++)
            if (!find_place(kernel, word_at(lists, list->first + i), place_size(list->kind)))
                return false;
    }
    return true;
}

static void adapt(uint8_t *place, enum place kind, uint64_t distance)
{
    uint64_t value = 0;

    memcpy(&value, place, place_size(kind));
    value = kind == PLACE_MINUS_32 ? value - distance : value + distance;
    memcpy(place, &value, place_size(kind));
}

static void adapt_places(const struct kaslr_kernel *kernel, const struct lists *lists,
                         uint64_t distance)
{
    for (unsigned l = 0; l < lists->n; l++) {
        const struct list *list = &lists->list[l];

        for (uint64_t i = 0; i < list->n; i++)
            adapt(find_place(kernel, word_at(lists, list->first + i), place_size(list->kind)),
                  list->kind, distance);
    }
}

/* How far it can be moved up, in steps of its alignment. */
static uint64_t count_steps(const struct kaslr_kernel *kernel)
{
    uint64_t room = KERNEL_MAP_SIZE;

    if (kernel->alignment < MIN_ALIGNMENT || (kernel->alignment & (kernel->alignment - 1)) != 0 ||
        kernel->base > room || kernel->room > room - kernel->base)
        return 0;
    return (room - kernel->base - kernel->room) / kernel->alignment;
}

bool kaslr_apply(const struct kaslr_kernel *kernel, uint64_t random, uint64_t *distance)
{
    uint64_t steps = count_steps(kernel);
    struct lists lists;

    if (steps == 0 || !find_lists(kernel, &lists) || !check_places(kernel, &lists))
        return false;
    *distance = random % (steps + 1) * kernel->alignment;
    adapt_places(kernel, &lists, *distance);
    return true;
}

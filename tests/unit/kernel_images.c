/* Kernel files for tests; see kernel_images.h. One thread a test process. */
#include "kernel_images.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/x86/platform.h"

#define MAX_OWNED 64

/* What tests make lives until their process ends, and is given back then, so that a leak that a
 * sanitizer reports is the program's. */
static struct guest_memory *memories[MAX_OWNED];
static struct kernel_image *images[MAX_OWNED];
static unsigned n_memories, n_images;

static char last_error[1100];

static void keep_line(enum log_level level, const char *line)
{
    if (level == LOG_LEVEL_ERROR)
        snprintf(last_error, sizeof(last_error), "%s", line);
}

void image_capture_log(void)
{
    log_set_sink(keep_line);
}

const char *image_last_error(void)
{
    return last_error;
}

void image_file_create(struct image_file *file, const void *bytes, size_t length)
{
    file->fd = memfd_create("image", MFD_CLOEXEC);
    cr_assert_geq(file->fd, 0);
    cr_assert_eq(pwrite(file->fd, bytes, length, 0), (ssize_t)length);
    snprintf(file->path, sizeof(file->path), "/proc/self/fd/%d", file->fd);
}

__attribute__((destructor)) static void free_all(void)
{
    while (n_images > 0)
        kernel_close(images[--n_images]);
    while (n_memories > 0)
        memory_destroy(memories[--n_memories]);
}

static void put(struct image *image, size_t at, const void *bytes, size_t length)
{
    cr_assert_leq(at + length, sizeof(image->bytes));
    memcpy(image->bytes + at, bytes, length);
    if (image->length < at + length)
        image->length = at + length;
}

static void put_number(struct image *image, size_t at, uint64_t value, size_t length)
{
    put(image, at, &value, length);
}

struct bzimage_spec bzimage_spec(void)
{
    return (struct bzimage_spec){
        .version = 0x020F,
        .setup_sects = 1,
        .loadflags = 1,
        .xloadflags = 3,
        .header_end = 0x6A,
        .initrd_addr_max = 0x7FFFFFFF,
        .cmdline_size = 2047,
        .pref_address = 0x1000000,
        .init_size = 0x200000,
        .body_size = 4096,
        .payload_offset = 1024,
    };
}

void image_bzimage(struct image *image, const struct bzimage_spec *spec)
{
    size_t body = (1 + (spec->setup_sects ? spec->setup_sects : 4u)) * 512u;

    memset(image, 0, body + spec->body_size + sizeof(image->length));
    for (uint32_t i = 0; i < spec->body_size; i++)
        put_number(image, body + i, i * 3 + 1, 1);
    put_number(image, 0x1F1, spec->setup_sects, 1);
    put_number(image, 0x1F4, spec->body_size / 16, 4);
    put_number(image, 0x1FE, 0xAA55, 2);
    put_number(image, 0x201, spec->header_end, 1);
    put(image, 0x202, "HdrS", 4);
    put_number(image, 0x206, spec->version, 2);
    put_number(image, 0x211, spec->loadflags, 1);
    put_number(image, 0x22C, spec->initrd_addr_max, 4);
    put_number(image, 0x230, 0x200000, 4);
    put_number(image, 0x234, 1, 1);
    put_number(image, 0x236, spec->xloadflags, 2);
    put_number(image, 0x238, spec->cmdline_size, 4);
    put_number(image, 0x248, spec->payload_offset, 4);
    put_number(image, 0x24C, spec->payload_length, 4);
    put_number(image, 0x258, spec->pref_address, 8);
    put_number(image, 0x260, spec->init_size, 4);
    if (spec->payload)
        put(image, body + spec->payload_offset, spec->payload, spec->payload_length);
}

struct elf_spec elf_spec(void)
{
    return (struct elf_spec){
        .data = ELFDATA2LSB,
        .type = ET_EXEC,
        .machine = EM_X86_64,
        .entry = 0x200010,
        .n_segments = 1,
        .segments = {{.type = PT_LOAD, .vaddr = 0x200000, .paddr = 0x200000, .file_size = 300,
                      .mem_size = 500}},
    };
}

static void put_header(struct image *image, const struct elf_spec *spec)
{
    uint8_t ident[EI_NIDENT] = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3,
                                spec->is_32 ? ELFCLASS32 : ELFCLASS64, spec->data, EV_CURRENT};
    Elf64_Ehdr e64 = {.e_type = spec->type, .e_machine = spec->machine, .e_version = EV_CURRENT,
                      .e_entry = spec->entry, .e_phoff = sizeof(e64), .e_ehsize = sizeof(e64),
                      .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = (uint16_t)spec->n_segments};
    Elf32_Ehdr e32 = {.e_type = spec->type, .e_machine = spec->machine, .e_version = EV_CURRENT,
                      .e_entry = (uint32_t)spec->entry, .e_phoff = sizeof(e32),
                      .e_ehsize = sizeof(e32), .e_phentsize = sizeof(Elf32_Phdr),
                      .e_phnum = (uint16_t)spec->n_segments};

    memcpy(e64.e_ident, ident, sizeof(ident));
    memcpy(e32.e_ident, ident, sizeof(ident));
    if (spec->is_32)
        put(image, 0, &e32, sizeof(e32));
    else
        put(image, 0, &e64, sizeof(e64));
}

static void put_program(struct image *image, const struct elf_spec *spec, unsigned i, size_t offset)
{
    const struct elf_spec_segment *s = &spec->segments[i];
    Elf64_Phdr p64 = {.p_type = s->type, .p_offset = offset, .p_vaddr = s->vaddr,
                      .p_paddr = s->paddr, .p_filesz = s->file_size, .p_memsz = s->mem_size,
                      .p_align = 4};
    Elf32_Phdr p32 = {.p_type = s->type, .p_offset = (uint32_t)offset,
                      .p_vaddr = (uint32_t)s->vaddr, .p_paddr = (uint32_t)s->paddr,
                      .p_filesz = (uint32_t)s->file_size, .p_memsz = (uint32_t)s->mem_size,
                      .p_align = 4};

    if (spec->is_32)
        put(image, sizeof(Elf32_Ehdr) + i * sizeof(p32), &p32, sizeof(p32));
    else
        put(image, sizeof(Elf64_Ehdr) + i * sizeof(p64), &p64, sizeof(p64));
}

void image_elf(struct image *image, const struct elf_spec *spec)
{
    size_t at = 512;

    memset(image, 0, 8192);
    put_header(image, spec);
    for (unsigned i = 0; i < spec->n_segments; i++) {
        const struct elf_spec_segment *s = &spec->segments[i];

        put_program(image, spec, i, at);
        for (uint64_t b = 0; !s->bytes && b < s->file_size; b++)
            put_number(image, at + b, b + i, 1);
        if (s->bytes)
            put(image, at, s->bytes, s->file_size);
        at += (s->file_size + 15) & ~15ull;
    }
}

struct elf_spec_segment elf_spec_pvh_note(uint8_t **bytes, uint64_t entry, unsigned size)
{
    static uint8_t notes[68];
    Elf64_Nhdr other_name = {.n_namesz = 4, .n_descsz = 4, .n_type = 18};
    Elf64_Nhdr odd_lengths = {.n_namesz = 3, .n_descsz = 5, .n_type = 1};
    Elf64_Nhdr pvh = {.n_namesz = 4, .n_descsz = size, .n_type = 18};

    memset(notes, 0, sizeof(notes));
    memcpy(notes, &other_name, sizeof(other_name));
    memcpy(notes + 12, "GNU", 4);
    memset(notes + 16, 0x7F, 4);
    memcpy(notes + 20, &odd_lengths, sizeof(odd_lengths));
    memcpy(notes + 32, "ab", 3);
    memcpy(notes + 44, &pvh, sizeof(pvh));
    memcpy(notes + 56, "Xen", 4);
    memcpy(notes + 60, &entry, size);
    *bytes = notes;
    return (struct elf_spec_segment){.type = PT_NOTE, .file_size = 60 + size, .mem_size = 60 + size,
                                     .bytes = notes};
}

void image_multiboot(struct image *image, size_t offset, const struct multiboot_spec *spec)
{
    const uint32_t fields[8] = {
        0x1BADB002, spec->flags, -(0x1BADB002 + spec->flags), spec->header_addr, spec->load_addr,
        spec->load_end_addr, spec->bss_end_addr, spec->entry_addr,
    };

    put(image, offset, fields, spec->flags & 0x10000 ? sizeof(fields) : 12);
}

struct guest_memory *image_memory(uint64_t size)
{
    struct memory_config config = {.size = size, .hole_base = PLATFORM_HOLE_BASE,
                                   .hole_end = PLATFORM_HOLE_END};
    struct guest_memory *mem;

    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_lt(n_memories, MAX_OWNED);
    memories[n_memories++] = mem;
    return mem;
}

struct kernel_image *image_open(const struct image *image, const struct boot_config *config,
                                int expected, const char *message)
{
    struct boot_config with_path = *config;
    struct image_file file;
    struct kernel_image *opened = NULL;
    char line[1100];

    image_capture_log();
    image_file_create(&file, image->bytes, image->length);
    with_path.kernel_path = file.path;
    cr_assert_eq(kernel_open(&opened, &with_path), expected, "\"%s\"", last_error);
    if (opened) {
        cr_assert_lt(n_images, MAX_OWNED);
        images[n_images++] = opened;
    }
    if (expected < 0) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(line, sizeof(line), message, file.path);
#pragma GCC diagnostic pop
        cr_assert_str_eq(last_error, line);
    }
    return opened;
}

int image_get(struct guest_memory *mem, gpa_t at, void *to, size_t length)
{
    int err = memory_read(mem, at, to, length);

    cr_assert_eq(err, 0, "nothing at %#llx", (unsigned long long)at);
    return err;
}

/*
 * Kernel files for tests: small bzImages, ELFs and Multiboot kernels, made from a description whose
 * default boots, so that a test changes the one thing it is about. Also what such tests need
 * beside: files in memory that have a path, and the last error that was logged.
 *
 * Asserts by Criterion; nothing here returns an error. What is made here is owned here.
 */
#ifndef FERRY_TESTS_KERNEL_IMAGES_H
#define FERRY_TESTS_KERNEL_IMAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "firmware/kernel.h"
#include "vmm/memory.h"

#define IMAGE_MAX (1u << 20)

struct image {
    size_t length;
    uint8_t bytes[IMAGE_MAX];
};

/* A file in memory and its path, for as long as the process lives. */
struct image_file {
    int fd;
    char path[32];
};
void image_file_create(struct image_file *file, const void *bytes, size_t length);

/* ---- bzImage ---- */
struct bzimage_spec {
    uint16_t version;
    uint8_t setup_sects;
    uint8_t loadflags;
    uint16_t xloadflags;
    uint8_t header_end; /* the byte at 0x201 */
    uint32_t initrd_addr_max;
    uint32_t cmdline_size;
    uint64_t pref_address;
    uint32_t init_size;
    uint32_t body_size;      /* multiple of 16 */
    uint32_t payload_offset; /* in the body */
    const void *payload;     /* NULL: none */
    uint32_t payload_length;
};
struct bzimage_spec bzimage_spec(void);
void image_bzimage(struct image *image, const struct bzimage_spec *spec);

/* ---- ELF ---- */
struct elf_spec_segment {
    uint32_t type; /* PT_LOAD or PT_NOTE */
    uint64_t vaddr;
    uint64_t paddr;
    uint64_t file_size;
    uint64_t mem_size;
    const void *bytes; /* NULL: byte i is i + number of the segment */
};
struct elf_spec {
    bool is_32;
    uint8_t data; /* ELFDATA2LSB */
    uint16_t type;
    uint16_t machine;
    uint64_t entry;
    unsigned n_segments;
    struct elf_spec_segment segments[4];
};
/* One segment at 2 MiB, 300 bytes in the file and 500 in memory, entry at its byte 16. */
struct elf_spec elf_spec(void);
void image_elf(struct image *image, const struct elf_spec *spec);
/* A note segment with a PVH entry, of 4 or 8 bytes, after notes of another name and
 * of lengths that take padding. Each call reuses the bytes of the last. */
struct elf_spec_segment elf_spec_pvh_note(uint8_t **bytes, uint64_t entry, unsigned size);

/* ---- Multiboot ---- */
struct multiboot_spec {
    uint32_t flags;
    uint32_t header_addr; /* and what follows: only with flag 16 */
    uint32_t load_addr;
    uint32_t load_end_addr;
    uint32_t bss_end_addr;
    uint32_t entry_addr;
};
/* Puts a header at `offset` of the image. */
void image_multiboot(struct image *image, size_t offset, const struct multiboot_spec *spec);

/* ---- loading ---- */
/* From here on, the last error is kept and nothing is written to standard error. */
void image_capture_log(void);
const char *image_last_error(void);

/* RAM with the platform's hole below 4 GiB. */
struct guest_memory *image_memory(uint64_t size);

/* Asserts the result of kernel_open() on the bytes and, when it fails, the message: `message`, in
 * which %s is the path. Returns the image or NULL. */
struct kernel_image *image_open(const struct image *image, const struct boot_config *config,
                                int expected, const char *message);
int image_get(struct guest_memory *mem, gpa_t at, void *to, size_t length);

#define IMAGE_DEFINE_GET(name, type)                                                               \
    static inline type name(struct guest_memory *mem, gpa_t at)                                    \
    {                                                                                              \
        type value = 0;                                                                            \
        image_get(mem, at, &value, sizeof(value));                                                 \
        return value;                                                                              \
    }
IMAGE_DEFINE_GET(image_u8, uint8_t)
IMAGE_DEFINE_GET(image_u16, uint16_t)
IMAGE_DEFINE_GET(image_u32, uint32_t)
IMAGE_DEFINE_GET(image_u64, uint64_t)

#endif

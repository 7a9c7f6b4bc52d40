/*
 * What the kernel loaders share among themselves: files, load plans, the architecture's two
 * functions. Not for users of kernel.h.
 */
#ifndef FERRY_FIRMWARE_KERNEL_INTERNAL_H
#define FERRY_FIRMWARE_KERNEL_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "firmware/decompress.h"
#include "firmware/kernel.h"

#define KERNEL_HEAD_LENGTH 8192 /* Multiboot's header is the format's mark that may come latest */
#define KERNEL_MAX_SEGMENTS 128

/* A file of the user's, open as long as the image. */
struct kernel_file {
    const char *what; /* "kernel" or "initrd", for messages */
    char *path;       /* owns */
    int fd;           /* owns; -1: there is none */
    uint64_t size;    /* at the time of opening */
};

/* Where a kernel's bytes come from: the file, or memory after decompression. */
struct kernel_source {
    const struct kernel_file *file; /* names it in messages */
    const uint8_t *bytes;           /* borrowed; NULL: read the file */
    uint64_t size;
};

/* Bytes [offset, offset + file_size) of the source go to `at`; zeroes follow up to mem_size. */
struct kernel_segment {
    gpa_t at;
    uint64_t offset;
    uint64_t file_size;
    uint64_t mem_size;
};

/*
 * What to put where. A checked plan has segments that do not wrap, file_size <= mem_size, file
 * ranges inside the source, and an entry in one of the segments. Memory is looked at when loading.
 */
struct kernel_plan {
    enum kernel_format format;
    gpa_t entry;
    gpa_t room_base; /* memory that the kernel uses before it knows of the initrd; or size 0 */
    uint64_t room_size;
    unsigned n_segments;
    struct kernel_segment segments[KERNEL_MAX_SEGMENTS];
};

/* The compressed kernel inside the file. */
struct kernel_payload {
    enum compression compression;
    uint64_t offset;
    uint64_t length;       /* with the size at its end */
    uint64_t unpacked;     /* bytes, as the file states */
};

struct kernel_image {
    struct kernel_file kernel;
    struct kernel_file initrd;
    char *cmdline; /* owns; never NULL */
    enum decompress_mode decompress;
    bool host_decompress; /* found by the probe: plan is made anew from the payload at each load */
    uint32_t head_length;
    uint8_t head[KERNEL_HEAD_LENGTH]; /* the file's beginning */
    struct kernel_plan plan;
    struct kernel_payload payload;
};

/* Ranges of guest memory that are taken. */
struct kernel_ranges {
    unsigned n;
    struct {
        gpa_t start;
        gpa_t end;
    } range[KERNEL_MAX_SEGMENTS + 4];
};

/* ---- kernel.c ---- */

/* Reads exactly length bytes. -ENODATA: the file ends before; read(2)'s. Logged. */
int kernel_file_read(const struct kernel_file *file, void *to, uint64_t length, uint64_t offset);
/* The same from a source; also -ENODATA when [offset, offset + length) is not inside it. */
int kernel_source_read(const struct kernel_source *source, void *to, uint64_t length,
                       uint64_t offset);
/* Decompresses the payload into *out, of payload.unpacked bytes, for kernel_unpacked_free().
 * Logged. */
int kernel_unpack(const struct kernel_image *image, uint8_t **out);
void kernel_unpacked_free(const struct kernel_image *image, uint8_t *unpacked);

/* ---- load.c ---- */

/* Checks the plan's segments against their source and against wrapping. Logged. */
int kernel_plan_check(const struct kernel_plan *plan, const struct kernel_source *source);
/* Puts the segments into memory and adds what is taken to used. Logged. */
int kernel_plan_load(const struct kernel_plan *plan, const struct kernel_source *source,
                     struct guest_memory *mem, struct kernel_ranges *used);
/*
 * Puts the initrd, if there is one, as high as possible in the first of the windows that has room
 * for it. *at becomes 0 when there is none. Logged.
 */
struct kernel_window {
    gpa_t start;
    gpa_t end; /* exclusive; an empty window is skipped */
};
int kernel_initrd_load(const struct kernel_image *image, struct guest_memory *mem,
                       const struct kernel_ranges *used, const struct kernel_window *windows,
                       unsigned n_windows, gpa_t *at);
void kernel_ranges_add(struct kernel_ranges *ranges, gpa_t start, gpa_t end);

/* ---- the architecture (firmware/x86/boot.c) ---- */

/*
 * Finds the format from image->head, checks, and fills image->plan, or payload and host_decompress.
 * 0; 1 when it is no kernel this machine knows of (nothing logged); or an error, logged.
 */
int kernel_arch_probe(struct kernel_image *image);
int kernel_arch_load(const struct kernel_image *image, struct guest_memory *mem,
                     const struct firmware_tables *tables, struct boot_entry *out);

#endif

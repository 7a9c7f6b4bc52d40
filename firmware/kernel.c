/*
 * Kernel images: opening, reading, unpacking, and what is said of a file that is no kernel.
 *
 * Does not know any kernel format (the architecture's probe does) nor where things go in memory.
 * Files are read by pread(2), not mapped: a file that another process truncates then gives an error
 * and not a SIGBUS. The thread that starts and resets the machine owns an image; no lock.
 */
#include "firmware/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "firmware/kernel_internal.h"
#include "vmm/util/log.h"

#define READ_MAX (1u << 30) /* read(2) takes no more than 2 GiB - 4 KiB at once */

static int file_open(struct kernel_file *file, const char *path)
{
    struct stat st;
    int err;

    file->path = strdup(path);
    if (!file->path)
        return -ENOMEM;
    /* O_NONBLOCK: a FIFO without a writer must be refused, not waited for. */
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0 || fstat(file->fd, &st) < 0) {
        err = -errno;
        log_error("%s %s: cannot open: %s", file->what, path, strerror(-err));
        return err;
    }
    if (!S_ISREG(st.st_mode)) {
        log_error("%s %s: not a regular file", file->what, path);
        return -EINVAL;
    }
    if (st.st_size == 0) {
        log_error("%s %s: the file is empty", file->what, path);
        return -ENODATA;
    }
    file->size = (uint64_t)st.st_size;
    return 0;
}

static void file_close(struct kernel_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
}

int kernel_file_read(const struct kernel_file *file, void *to, uint64_t length, uint64_t offset)
{
    uint8_t *at = to;

    while (length > 0) {
        ssize_t got = pread(file->fd, at, length < READ_MAX ? length : READ_MAX, (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            int err = -errno;
            log_error("%s %s: cannot read: %s", file->what, file->path, strerror(-err));
            return err;
        }
        if (got == 0) {
            log_error("%s %s: truncated: it ends at byte %llu, and %llu more are expected",
                      file->what, file->path, (unsigned long long)offset,
                      (unsigned long long)length);
            return -ENODATA;
        }
        at += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

int kernel_source_read(const struct kernel_source *source, void *to, uint64_t length,
                       uint64_t offset)
{
    if (offset > source->size || length > source->size - offset) {
        log_error("%s %s: truncated: it has %llu bytes%s, and %llu are expected at byte %llu",
                  source->file->what, source->file->path, (unsigned long long)source->size,
                  source->bytes ? " when unpacked" : "", (unsigned long long)length,
                  (unsigned long long)offset);
        return -ENODATA;
    }
    if (!source->bytes)
        return kernel_file_read(source->file, to, length, offset);
    memcpy(to, source->bytes + offset, length);
    return 0;
}

static void log_unpack_error(const struct kernel_image *image, int err)
{
    const char *path = image->kernel.path;
    const char *format = compression_name(image->payload.compression);
    unsigned long long size = image->payload.unpacked;

    switch (err) {
    case -ENODATA:
        log_error("kernel %s: truncated: its %s payload ends before the %llu bytes that it states",
                  path, format, size);
        break;
    case -EOVERFLOW:
        log_error("kernel %s: its %s payload has more than the %llu bytes that it states", path,
                  format, size);
        break;
    case -EBADMSG:
        log_error("kernel %s: its %s payload is corrupt", path, format);
        break;
    default:
        log_error("kernel %s: cannot decompress its %s payload: %s", path, format, strerror(-err));
        break;
    }
}

static void *map_buffer(uint64_t size)
{
    void *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (buffer == MAP_FAILED)
        return NULL;
    /* Tens of MiB that are written once: by huge pages it takes a fraction of the faults. */
    (void)madvise(buffer, size, MADV_HUGEPAGE);
    return buffer;
}

int kernel_unpack(const struct kernel_image *image, uint8_t **out)
{
    const struct kernel_payload *payload = &image->payload;
    uint8_t *packed = map_buffer(payload->length);
    uint8_t *unpacked = map_buffer(payload->unpacked);
    int err = -ENOMEM;

    if (!packed || !unpacked) {
        log_error("kernel %s: no memory to decompress its %llu bytes", image->kernel.path,
                  (unsigned long long)payload->unpacked);
        goto free_packed;
    }
    err = kernel_file_read(&image->kernel, packed, payload->length, payload->offset);
    if (err)
        goto free_packed;
    err = decompress(payload->compression, packed, payload->length, unpacked, payload->unpacked);
    if (err)
        log_unpack_error(image, err);
free_packed:
    if (packed)
        munmap(packed, payload->length);
    if (err)
        kernel_unpacked_free(image, unpacked);
    else
        *out = unpacked;
    return err;
}

void kernel_unpacked_free(const struct kernel_image *image, uint8_t *unpacked)
{
    if (unpacked)
        munmap(unpacked, image->payload.unpacked);
}

static bool is_text(const uint8_t *bytes, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        if ((bytes[i] < ' ' && !(bytes[i] >= '\t' && bytes[i] <= '\r')) || bytes[i] == 0x7F)
            return false;
    return true;
}

/* One line for what is no kernel; the commonest mistakes by name. */
static void log_not_a_kernel(const struct kernel_image *image)
{
    const char *path = image->kernel.path;
    const uint8_t *b = image->head;
    enum compression compression = compression_detect(b, image->head_length);

    if (is_text(b, image->head_length))
        log_error("kernel %s: not a kernel but a text file", path);
    else if (compression != COMPRESSION_UNKNOWN)
        log_error("kernel %s: not a kernel but a file compressed with %s; decompress it first",
                  path, compression_name(compression));
    else
        log_error("kernel %s: not a kernel: neither bzImage nor ELF nor Multiboot", path);
}

static int open_files(struct kernel_image *image, const struct boot_config *config)
{
    int err = file_open(&image->kernel, config->kernel_path);

    if (!err && config->initrd_path)
        err = file_open(&image->initrd, config->initrd_path);
    if (err)
        return err;
    image->head_length = image->kernel.size < KERNEL_HEAD_LENGTH ? (uint32_t)image->kernel.size
                                                                 : KERNEL_HEAD_LENGTH;
    return kernel_file_read(&image->kernel, image->head, image->head_length, 0);
}

/* Whether the image is a Linux: a bzImage is, and an ELF has the banner of its version in it. */
static int find_linux(const struct kernel_image *image, bool *found)
{
    static const char banner[] = "Linux version ";
    const size_t block = 256 * 1024, overlap = sizeof(banner) - 2;
    uint8_t *buffer = malloc(block);
    int err = buffer ? 0 : -ENOMEM;

    *found = image->head_length > 0x206 && memcmp(image->head + 0x202, "HdrS", 4) == 0;
    for (uint64_t at = 0; !err && !*found && at < image->kernel.size; at += block - overlap) {
        uint64_t n = image->kernel.size - at < block ? image->kernel.size - at : block;

        err = kernel_file_read(&image->kernel, buffer, n, at);
        *found = !err && memmem(buffer, n, banner, sizeof(banner) - 1) != NULL;
        if (n < block)
            break;
    }
    free(buffer);
    return err;
}

/* Whether a command line has an option of this name: NAME=, or the word as a whole. */
static bool has_option(const char *cmdline, const char *option)
{
    size_t n = strcspn(option, "= ");
    bool has_value = option[n] == '=';

    for (const char *word = cmdline; *(word += strspn(word, " ")); word += strcspn(word, " "))
        if (strncmp(word, option, n) == 0 &&
            (has_value ? word[n] == '=' : word[n] == '\0' || word[n] == ' '))
            return true;
    return false;
}

/* `options` but for those that `cmdline` has itself, then that. The caller's; NULL: no memory. */
static char *join_options(const char *options, const char *cmdline)
{
    char *both = malloc(strlen(options) + strlen(cmdline) + 2), *to = both;

    if (!both)
        return NULL;
    for (const char *word = options; *(word += strspn(word, " ")); word += strcspn(word, " ")) {
        size_t n = strcspn(word, " ");

        if (has_option(cmdline, word))
            continue;
        to = mempcpy(to, word, n);
        *to++ = ' ';
    }
    strcpy(to, cmdline);
    if (!*cmdline && to > both)
        to[-1] = '\0';
    return both;
}

static int add_options(struct kernel_image *image, const char *options)
{
    bool is_linux = false;
    char *both;
    int err = find_linux(image, &is_linux);

    if (err || !is_linux)
        return err;
    both = join_options(options, image->cmdline);
    if (!both)
        return -ENOMEM;
    free(image->cmdline);
    image->cmdline = both;
    log_info("kernel %s: its options are: %s", image->kernel.path, both);
    return 0;
}

int kernel_open(struct kernel_image **out, const struct boot_config *config)
{
    struct kernel_image *image = calloc(1, sizeof(*image));
    int err;

    if (!image)
        return -ENOMEM;
    image->kernel = (struct kernel_file){.what = "kernel", .fd = -1};
    image->initrd = (struct kernel_file){.what = "initrd", .fd = -1};
    image->decompress = config->decompress;
    image->cmdline = strdup(config->cmdline ? config->cmdline : "");
    err = image->cmdline ? open_files(image, config) : -ENOMEM;
    if (err)
        goto close;
    err = kernel_arch_probe(image);
    if (err > 0) {
        log_not_a_kernel(image);
        err = -ENOEXEC;
    }
    if (!err && config->linux_options)
        err = add_options(image, config->linux_options);
    if (err)
        goto close;
    *out = image;
    return 0;
close:
    kernel_close(image);
    return err;
}

void kernel_close(struct kernel_image *image)
{
    if (!image)
        return;
    file_close(&image->initrd);
    file_close(&image->kernel);
    free(image->cmdline);
    free(image);
}

enum kernel_format kernel_format(const struct kernel_image *image)
{
    return image->plan.format;
}

int kernel_load(const struct kernel_image *image, struct guest_memory *mem,
                const struct firmware_tables *tables, struct boot_entry *out)
{
    static const struct firmware_tables none;

    return kernel_arch_load(image, mem, tables ? tables : &none, out);
}

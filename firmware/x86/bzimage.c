/*
 * bzImage kernels: the setup header checked, a load plan, and the payload for the host to unpack.
 *
 * Does not boot by the 16- or 32-bit protocols. The kernel is placed where it prefers to be, whether
 * the guest decompresses it or the host does. No state.
 *
 * Text: Linux, Documentation/arch/x86/boot.rst, protocol 2.12 to 2.15.
 */
#include <errno.h>
#include <string.h>

#include "firmware/x86/linux_abi.h"
#include "firmware/x86/x86_internal.h"
#include "vmm/util/log.h"

#define PAYLOAD_SIZE_FIELD 4 /* little-endian: what the payload unpacks to */

static struct linux_setup_header get_header(const struct kernel_image *image)
{
    struct linux_setup_header header = {0};
    uint32_t length = sizeof(header);

    if (image->head_length < LINUX_SETUP_OFFSET)
        return header;
    if (length > image->head_length - LINUX_SETUP_OFFSET)
        length = image->head_length - LINUX_SETUP_OFFSET;
    memcpy(&header, image->head + LINUX_SETUP_OFFSET, length);
    return header;
}

bool bzimage_detect(const struct kernel_image *image)
{
    struct linux_setup_header header = get_header(image);

    return header.boot_flag == LINUX_BOOT_FLAG && header.header == LINUX_HEADER_MAGIC;
}

static int check_header(const struct kernel_image *image, const struct linux_setup_header *header)
{
    const char *path = image->kernel.path;
    uint32_t end = LINUX_SETUP_END_BASE + image->head[LINUX_SETUP_END_BYTE];

    if (image->head_length < LINUX_SETUP_END_MIN) {
        log_error("kernel %s: truncated: %u bytes do not hold a bzImage's header", path,
                  image->head_length);
        return -ENODATA;
    }
    /* Before 2.12 there is no word on 64-bit entry; XLF_KERNEL_64 says that 0x200 is one. */
    if (header->version >= LINUX_PROTOCOL_64 && !(header->xloadflags & LINUX_XLF_KERNEL_64)) {
        log_error("kernel %s: a 32-bit kernel; this machine boots 64-bit ones", path);
        return -ENOEXEC;
    }
    if (header->version < LINUX_PROTOCOL_64) {
        log_error("kernel %s: its boot protocol is %u.%02u, and 2.12 (Linux 3.8, 64-bit) is the "
                  "first that can be booted", path, header->version >> 8, header->version & 0xFF);
        return -ENOEXEC;
    }
    if (end < LINUX_SETUP_END_MIN || !(header->loadflags & LINUX_LOADED_HIGH) ||
        header->pref_address < BOOT_KERNEL_MIN || header->pref_address >= BOOT_MAPPED_MIN ||
        header->init_size == 0) {
        log_error("kernel %s: its setup header is not valid (end %#x, loadflags %#x, pref_address "
                  "%#llx, init_size %#x)", path, end, header->loadflags,
                  (unsigned long long)header->pref_address, header->init_size);
        return -EINVAL;
    }
    return 0;
}

/* boot.rst, "Details of Header Fields": 0 setup sectors mean 4, and the boot sector comes first. */
static uint64_t setup_size(const struct linux_setup_header *header)
{
    return (1 + (header->setup_sects ? header->setup_sects : 4u)) * LINUX_SECTOR;
}

static int plan_kernel(struct kernel_image *image, const struct linux_setup_header *header)
{
    struct kernel_plan *plan = &image->plan;
    uint64_t setup = setup_size(header);
    uint64_t body = (uint64_t)header->syssize * 16;
    uint64_t have = image->kernel.size > setup ? image->kernel.size - setup : 0;

    /* syssize is rounded up, so the last paragraph need not be whole. */
    if (have == 0 || have + 15 < body) {
        log_error("kernel %s: truncated: %llu bytes, and its header says %llu", image->kernel.path,
                  (unsigned long long)image->kernel.size, (unsigned long long)(setup + body));
        return -ENODATA;
    }
    if (body <= LINUX_ENTRY_64) {
        log_error("kernel %s: its setup header is not valid (syssize %u)", image->kernel.path,
                  header->syssize);
        return -EINVAL;
    }
    *plan = (struct kernel_plan){
        .format = KERNEL_BZIMAGE,
        .entry = header->pref_address + LINUX_ENTRY_64,
        .room_base = header->pref_address,
        .room_size = header->init_size,
        .n_segments = 1,
    };
    plan->segments[0] = (struct kernel_segment){
        .at = header->pref_address,
        .offset = setup,
        .file_size = have < body ? have : body, /* a signature may follow */
        .mem_size = have < body ? have : body,
    };
    return 0;
}

static int read_payload(struct kernel_image *image, const struct linux_setup_header *header)
{
    const struct kernel_segment *body = &image->plan.segments[0];
    struct kernel_payload *payload = &image->payload;
    uint8_t magic[COMPRESSION_MAGIC_LENGTH];
    uint8_t size[PAYLOAD_SIZE_FIELD];
    int err;

    if (header->payload_length < sizeof(magic) + sizeof(size) ||
        header->payload_offset > body->file_size ||
        header->payload_length > body->file_size - header->payload_offset) {
        log_error("kernel %s: its setup header is not valid (payload at %#x of %#x bytes in %#llx)",
                  image->kernel.path, header->payload_offset, header->payload_length,
                  (unsigned long long)body->file_size);
        return -EINVAL;
    }
    payload->offset = body->offset + header->payload_offset;
    payload->length = header->payload_length;
    err = kernel_file_read(&image->kernel, magic, sizeof(magic), payload->offset);
    if (!err)
        err = kernel_file_read(&image->kernel, size, sizeof(size),
                               payload->offset + payload->length - sizeof(size));
    if (err)
        return err;
    payload->compression = compression_detect(magic, sizeof(magic));
    payload->unpacked = size[0] | (uint32_t)size[1] << 8 | (uint32_t)size[2] << 16 |
                        (uint32_t)size[3] << 24;
    if (payload->unpacked == 0) {
        log_error("kernel %s: its payload states a size of 0", image->kernel.path);
        return -EINVAL;
    }
    return 0;
}

static bool can_unpack(enum compression compression)
{
    return compression == COMPRESSION_GZIP || compression == COMPRESSION_XZ ||
           compression == COMPRESSION_LZ4 || compression == COMPRESSION_ZSTD;
}

/* Who decompresses. The kernel can always do it itself; a wish of the user's is not overruled. */
static int choose_decompressor(struct kernel_image *image)
{
    const char *name = compression_name(image->payload.compression);

    if (can_unpack(image->payload.compression)) {
        image->host_decompress = true;
        return 0;
    }
    if (image->decompress == DECOMPRESS_HOST) {
        log_error("kernel %s: its payload's compression (%s) is none of gzip, xz, lz4, zstd; try "
                  "--decompress guest", image->kernel.path, name);
        return -ENOTSUP;
    }
    log_info("kernel %s: its payload's compression is %s: the guest decompresses it",
             image->kernel.path, name);
    return 0;
}

static int check_cmdline(const struct kernel_image *image)
{
    uint64_t length = strlen(image->cmdline);
    uint64_t max = bzimage_cmdline_max(image);

    if (length <= max)
        return 0;
    log_error("kernel %s: takes a command line of %llu bytes, and this one has %llu",
              image->kernel.path, (unsigned long long)max, (unsigned long long)length);
    return -E2BIG;
}

/* A kernel that names no payload is whole as it is, or keeps to itself what it does. */
static bool wants_host(const struct kernel_image *image, const struct linux_setup_header *header)
{
    if (image->decompress == DECOMPRESS_AUTO)
        return header->payload_length > 0;
    return image->decompress == DECOMPRESS_HOST;
}

int bzimage_probe(struct kernel_image *image)
{
    struct linux_setup_header header = get_header(image);
    int err = check_header(image, &header);

    if (!err)
        err = plan_kernel(image, &header);
    if (!err)
        err = check_cmdline(image);
    if (err || !wants_host(image, &header))
        return err;
    err = read_payload(image, &header);
    return err ? err : choose_decompressor(image);
}

void bzimage_placement(const struct kernel_image *image, struct kaslr_kernel *out)
{
    struct linux_setup_header header = get_header(image);

    out->base = header.pref_address;
    out->room = header.init_size;
    out->alignment = header.relocatable_kernel ? header.kernel_alignment : 0;
}

uint64_t bzimage_cmdline_max(const struct kernel_image *image)
{
    struct linux_setup_header header = get_header(image);

    return header.cmdline_size < BOOT_CMDLINE_MAX ? header.cmdline_size : BOOT_CMDLINE_MAX;
}

uint64_t bzimage_initrd_end(const struct kernel_image *image, bool *above_4g)
{
    struct linux_setup_header header = get_header(image);

    *above_4g = header.xloadflags & LINUX_XLF_CAN_BE_LOADED_ABOVE_4G;
    return (uint64_t)header.initrd_addr_max + 1;
}

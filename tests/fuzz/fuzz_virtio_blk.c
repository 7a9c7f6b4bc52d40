/*
 * virtio-blk in two ways, by the input's first byte: under a hostile guest, where only the image's
 * size and the device's return to rest are certain; and under an orderly one that asks for all
 * sorts of things, where a naive model, an array of sectors, says what each answer must be and what
 * the image must hold.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/virtio/blk.h"
#include "tests/fuzz/virtio_guest.h"

#define SECTOR 512u
#define SECTORS 64u
#define IMAGE_BYTES (SECTORS * SECTOR)
#define MAX_REQUESTS 40

enum { F_RO = 5, F_DISCARD = 13, F_ZEROES = 14 };
enum { T_IN, T_OUT, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { S_OK, S_IOERR, S_UNSUPP, S_NONE = 0xEE };

#define HEADER_AT FUZZ_DATA
#define STATUS_AT (FUZZ_DATA + 0x100)
#define BUFFER_AT (FUZZ_DATA + 0x1000)
#define MAX_LENGTH 0x8000u

static struct fuzz_guest guest;
static int image = -1;
static char path[64];
static uint8_t model[IMAGE_BYTES], expected[MAX_LENGTH];

struct header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

static void set_up(void)
{
    fuzz_guest_init(&guest);
    image = memfd_create("image", MFD_CLOEXEC);
    FUZZ_CHECK(image >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", image);
}

static void make_image(void)
{
    for (unsigned i = 0; i < IMAGE_BYTES; i++)
        model[i] = (uint8_t)(i / SECTOR + i * 3 + 1);
    FUZZ_CHECK(ftruncate(image, IMAGE_BYTES) == 0);
    FUZZ_CHECK(pwrite(image, model, IMAGE_BYTES, 0) == IMAGE_BYTES);
}

/* ---- the model ---- */

static bool fits(uint64_t sector, uint64_t sectors)
{
    return sector <= SECTORS && sectors <= SECTORS - sector;
}

static uint8_t model_transfer(const struct header *h, uint8_t *buffer, uint32_t length,
                              bool readonly)
{
    if (length % SECTOR != 0 || !fits(h->sector, length / SECTOR))
        return S_IOERR;
    if (h->type == T_OUT && readonly)
        return S_IOERR;
    if (h->type == T_IN)
        memcpy(buffer, model + h->sector * SECTOR, length);
    else
        memcpy(model + h->sector * SECTOR, buffer, length);
    return S_OK;
}

/* Discarded ranges become zeroes here too, because the image can have holes. */
static uint8_t model_ranges(const struct header *h, const uint8_t *buffer, uint32_t length)
{
    bool has = virtio_has(guest.vdev, h->type == T_DISCARD ? F_DISCARD : F_ZEROES);
    struct range ranges[16];
    uint32_t n = length / sizeof(struct range);

    if (!has)
        return S_UNSUPP;
    if (n == 0 || n > 16 || length % sizeof(struct range) != 0)
        return S_IOERR;
    memcpy(ranges, buffer, length);
    for (uint32_t i = 0; i < n; i++) {
        if (ranges[i].flags > 1 || (ranges[i].flags && h->type == T_DISCARD))
            return S_UNSUPP;
        if (!fits(ranges[i].sector, ranges[i].sectors))
            return S_IOERR;
    }
    for (uint32_t i = 0; i < n; i++)
        memset(model + ranges[i].sector * SECTOR, 0, ranges[i].sectors * SECTOR);
    return S_OK;
}

static uint8_t model_request(const struct header *h, uint8_t *buffer, uint32_t length,
                             bool readonly)
{
    static const char id[20] = "disk0";

    switch (h->type) {
    case T_IN:
    case T_OUT:
        return model_transfer(h, buffer, length, readonly);
    case T_FLUSH:
        return S_OK;
    case T_GET_ID:
        memcpy(buffer, id, length < sizeof(id) ? length : sizeof(id));
        return S_OK;
    case T_DISCARD:
    case T_ZEROES:
        return model_ranges(h, buffer, length);
    }
    return S_UNSUPP;
}

/* ---- the orderly guest ---- */

/* Few values that matter, and now and then anything. */
static uint64_t take_sector(struct fuzz_input *in)
{
    uint8_t kind = (uint8_t)fuzz_take(in, 1);

    return kind & 0x80 ? fuzz_take(in, 8) : kind;
}

static void fill_ranges(struct fuzz_input *in, uint32_t length)
{
    struct range *ranges = fuzz_guest_at(&guest, BUFFER_AT, MAX_LENGTH);

    for (uint32_t i = 0; i < length / sizeof(*ranges) && i < 20; i++)
        ranges[i] = (struct range){
            .sector = take_sector(in),
            .sectors = (uint32_t)fuzz_take(in, 1),
            .flags = (uint32_t)fuzz_take(in, 1) & 0x83,
        };
}

/* Header, data and status as one buffer each, or cut into pieces. */
static unsigned lay_out(struct fuzz_input *in, struct fuzz_piece *pieces, bool device_writes,
                        uint32_t length)
{
    const struct fuzz_piece parts[] = {{HEADER_AT, sizeof(struct header), false},
                                       {BUFFER_AT, length, device_writes},
                                       {STATUS_AT, 1, true}};
    unsigned n = 0;

    for (unsigned i = 0; i < 3; i++) {
        struct fuzz_piece left = parts[i];

        while (left.length > 0) {
            uint32_t cut = n < 20 ? (uint32_t)fuzz_take(in, 1) * 8 : 0;
            struct fuzz_piece piece = left;

            if (cut > 0 && cut < left.length)
                piece.length = cut;
            pieces[n++] = piece;
            left.gpa += piece.length;
            left.length -= piece.length;
        }
    }
    return n;
}

static void request(struct fuzz_input *in, bool readonly)
{
    struct header h = {.type = (uint32_t)fuzz_take(in, 1) & 15, .sector = take_sector(in)};
    uint32_t length = (uint32_t)fuzz_take(in, 2) % (MAX_LENGTH + 1);
    uint8_t *buffer = fuzz_guest_at(&guest, BUFFER_AT, MAX_LENGTH);
    uint8_t *status = fuzz_guest_at(&guest, STATUS_AT, 1);
    bool device_writes = h.type == T_IN || h.type == T_GET_ID;
    struct fuzz_piece pieces[32];
    uint16_t used = fuzz_guest_used(&guest, 0);
    uint8_t want;
    unsigned n;

    if (h.type == T_DISCARD || h.type == T_ZEROES)
        length %= 400;
    else if (length & 1)
        length = (length & ~(SECTOR - 1)) % (MAX_LENGTH + 1);
    n = lay_out(in, pieces, device_writes, length);
    memset(buffer, (int)fuzz_take(in, 1), MAX_LENGTH);
    fill_ranges(in, h.type == T_DISCARD || h.type == T_ZEROES ? length : 0);
    memcpy(fuzz_guest_at(&guest, HEADER_AT, sizeof(h)), &h, sizeof(h));
    *status = S_NONE;
    memcpy(expected, buffer, MAX_LENGTH);
    want = model_request(&h, expected, length, readonly);
    fuzz_guest_add(&guest, 0, pieces, n);
    fuzz_guest_kick(&guest, 0);
    fuzz_guest_settle(&guest);
    FUZZ_CHECK(fuzz_guest_used(&guest, 0) == (uint16_t)(used + 1));
    FUZZ_CHECK(*status == want);
    FUZZ_CHECK(memcmp(buffer, expected, MAX_LENGTH) == 0);
}

static void check_image(void)
{
    static uint8_t bytes[IMAGE_BYTES];

    FUZZ_CHECK(pread(image, bytes, IMAGE_BYTES, 0) == IMAGE_BYTES);
    FUZZ_CHECK(memcmp(bytes, model, IMAGE_BYTES) == 0);
}

static void be_orderly(struct fuzz_input *in, bool readonly)
{
    fuzz_guest_start(&guest, fuzz_take(in, 8), FUZZ_QUEUE_MAX);
    for (unsigned i = 0; i < MAX_REQUESTS && in->left > 0; i++) {
        request(in, readonly);
        FUZZ_CHECK(virtio_device_live(guest.vdev));
    }
    check_image();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t how = (uint8_t)fuzz_take(&in, 1);
    struct virtio_blk_config config = {
        .readonly = how & 2,
        .n_queues = 1 + (how >> 2) % FUZZ_QUEUES,
        .queue_size = FUZZ_QUEUE_MAX,
    };
    struct virtio_device *vdev;
    struct stat st;

    if (image < 0)
        set_up();
    make_image();
    config.path = path;
    FUZZ_CHECK(virtio_blk_create(&vdev, &guest.env, "disk0", &config) == 0);
    fuzz_guest_attach(&guest, vdev);
    if (how & 1)
        be_orderly(&in, config.readonly);
    else
        fuzz_guest_run(&guest, &in);
    fuzz_guest_detach(&guest);
    FUZZ_CHECK(fstat(image, &st) == 0 && st.st_size == IMAGE_BYTES);
    if (config.readonly)
        check_image();
    return 0;
}

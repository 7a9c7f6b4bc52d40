/*
 * blk: a driver of virtio-blk that reads, writes, flushes, discards and zeroes, checks what comes
 * back, and measures.
 *
 * Parameters: `disk=N` (the Nth, from 0), `disks=N` (how many there must be), `sectors=N` (the
 * capacity there must be), `ro` (it must be read-only), `id=TEXT` (the serial it must have),
 * `stamped` (each of the first 64 sectors must hold its own number in every 8 bytes; the runner
 * wrote them), `bare` (the queues must not offer what they need not), `stamp` (write the complement of that there, for the runner to read), `ms=N` (length
 * of each measurement; 0: none).
 * Destroys what is on the disk, from sector 64 on.
 * Text: virtio 1.2, 5.2.
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define SECTOR       512
#define STAMPED      64
#define LIMIT        (10 * SECOND)
#define BLOCK        4096
#define DEPTH        32
#define BLK_VECTOR   0x70
#define MARK         0x9E3779B97F4A7C15ull

#define F_SIZE_MAX   (1ull << 1)
#define F_SEG_MAX    (1ull << 2)
#define F_RO         (1ull << 5)
#define F_BLK_SIZE   (1ull << 6)
#define F_FLUSH      (1ull << 9)
#define F_TOPOLOGY   (1ull << 10)
#define F_CONFIG_WCE (1ull << 11)
#define F_MQ         (1ull << 12)
#define F_DISCARD    (1ull << 13)
#define F_ZEROES     (1ull << 14)
#define F_RINGS      (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)
#define F_ALL        (F_SIZE_MAX | F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | \
                      F_DISCARD | F_ZEROES)

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_GET_ID = 8, TYPE_DISCARD = 11,
       TYPE_WRITE_ZEROES = 13 };
enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2, STATUS_NONE = 0xEE };

#define CONFIG_CAPACITY      0
#define CONFIG_SIZE_MAX      8
#define CONFIG_SEG_MAX       12
#define CONFIG_BLK_SIZE      20
#define CONFIG_TOPOLOGY      24
#define CONFIG_WRITEBACK     32
#define CONFIG_NUM_QUEUES    34
#define CONFIG_DISCARD_MAX   36
#define CONFIG_DISCARD_SEGS  40
#define CONFIG_DISCARD_ALIGN 44
#define CONFIG_ZEROES_MAX    48
#define CONFIG_ZEROES_SEGS   52
#define CONFIG_ZEROES_UNMAP  56

struct request_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};
_Static_assert(sizeof(struct request_header) == 16, "virtio 1.2, 5.2.6");

struct segment {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags; /* 1: unmap */
};
_Static_assert(sizeof(struct segment) == 16, "virtio_blk_discard_write_zeroes");

static struct virtio_device disk;
static struct virtqueue queue;
static uint64_t capacity;
static bool read_only;
static uint32_t seg_max;
static uint8_t *buffer_a, *buffer_b;
#define BUFFER_SIZE (256 * KIB)

/*
 * One request with one data buffer (length 0: none); the status byte, or -1 without an answer.
 * The used length must be what the device wrote: the data it read and the status.
 */
static int request(uint32_t type, uint64_t sector, void *data, uint32_t length, bool device_writes)
{
    static struct request_header header;
    static uint8_t status;
    struct buffer chain[3] = { { &header, sizeof(header), false } };
    unsigned count = 1;

    header = (struct request_header){ .type = type, .sector = sector };
    status = STATUS_NONE;
    if (length > 0)
        chain[count++] = (struct buffer){ data, length, device_writes };
    chain[count++] = (struct buffer){ &status, 1, true };
    int64_t used = virtqueue_request(&queue, chain, count, LIMIT);
    if (used < 0)
        return -1;
    uint32_t wrote = 1 + (device_writes ? length : 0);
    if (status == STATUS_OK && used != wrote)
        not_ok("used-length", "type %u: %ld, but %u bytes were written", type, used, wrote);
    return *(volatile uint8_t *)&status;
}

static void fill(void *data, uint32_t length, uint64_t seed)
{
    uint64_t *words = data;

    for (uint32_t i = 0; i < length / 8; i++)
        words[i] = (seed + i) * MARK;
}

static uint32_t config32(uint32_t offset)
{
    return mmio_read32(disk.config + offset);
}

static void read_config(void)
{
    uint64_t offered = virtio_offered(&disk);

    capacity = config32(CONFIG_CAPACITY) | (uint64_t)config32(CONFIG_CAPACITY + 4) << 32;
    read_only = (offered & F_RO) != 0;
    seg_max = (offered & F_SEG_MAX) != 0 ? config32(CONFIG_SEG_MAX) : 1;
    print("config features %016lx capacity %lu seg-max %u blk-size %u queues-of %u\n", offered,
          capacity, seg_max, config32(CONFIG_BLK_SIZE), virtio_queue_max(&disk, 0));
    if ((offered & F_TOPOLOGY) != 0)
        print("config topology %08x %08x\n", config32(CONFIG_TOPOLOGY),
              config32(CONFIG_TOPOLOGY + 4));
    if ((offered & F_MQ) != 0)
        print("config queues %u\n", mmio_read16(disk.config + CONFIG_NUM_QUEUES));
    if ((offered & F_CONFIG_WCE) != 0)
        print("config writeback %u\n", mmio_read8(disk.config + CONFIG_WRITEBACK));
    if ((offered & F_DISCARD) != 0)
        print("config discard max %u segments %u alignment %u\n", config32(CONFIG_DISCARD_MAX),
              config32(CONFIG_DISCARD_SEGS), config32(CONFIG_DISCARD_ALIGN));
    if ((offered & F_ZEROES) != 0)
        print("config write-zeroes max %u segments %u unmap %u\n", config32(CONFIG_ZEROES_MAX),
              config32(CONFIG_ZEROES_SEGS), mmio_read8(disk.config + CONFIG_ZEROES_UNMAP));
}

static void check_config(void)
{
    uint64_t wanted = arg_number("sectors", 0);

    if (wanted != 0)
        check(capacity == wanted, "capacity", "%lu sectors, want %lu", capacity, wanted);
    check(read_only == arg_present("ro"), "read-only-feature", "it is %soffered",
          read_only ? "" : "not ");
    check((virtio_offered(&disk) & F_RINGS) == (arg_present("bare") ? VIRTIO_F_VERSION_1 : F_RINGS),
          "ring-features", "offered are %016lx", virtio_offered(&disk));
}

static void check_id(void)
{
    static char id[21];
    char wanted[21];

    if (!check(request(TYPE_GET_ID, 0, id, 20, true) == STATUS_OK, "get-id", "it fails"))
        return;
    id[20] = '\0';
    print("id %s\n", id);
    if (arg_text("id", wanted, sizeof(wanted)))
        check(text_equal(id, wanted), "id", "it is '%s', want '%s'", id, wanted);
}

static void check_stamps(void)
{
    if (request(TYPE_IN, 0, buffer_a, STAMPED * SECTOR, true) != STATUS_OK) {
        not_ok("stamped", "sectors 0 to 63 cannot be read");
        return;
    }
    const uint64_t *words = (const uint64_t *)buffer_a;
    for (uint32_t i = 0; i < STAMPED * SECTOR / 8; i++) {
        if (words[i] != i / (SECTOR / 8)) {
            not_ok("stamped", "sector %u holds %lx", i / (SECTOR / 8), words[i]);
            return;
        }
    }
    ok("stamped");
}

static void write_stamps(void)
{
    uint64_t *words = (uint64_t *)buffer_a;

    for (uint32_t i = 0; i < STAMPED * SECTOR / 8; i++)
        words[i] = ~(uint64_t)(i / (SECTOR / 8));
    check(request(TYPE_OUT, 0, buffer_a, STAMPED * SECTOR, false) == STATUS_OK, "stamp",
          "sectors 0 to 63 cannot be written");
    check(request(TYPE_FLUSH, 0, NULL, 0, false) == STATUS_OK, "stamp-flush", "it fails");
}

/* Writes length bytes at sector and reads them back; false when they differ or fail. */
static bool round_trip(uint64_t sector, uint32_t length)
{
    fill(buffer_a, length, sector);
    memset(buffer_b, 0x55, length);
    return request(TYPE_OUT, sector, buffer_a, length, false) == STATUS_OK &&
           request(TYPE_IN, sector, buffer_b, length, true) == STATUS_OK &&
           memcmp(buffer_a, buffer_b, length) == 0;
}

static void check_write_read(void)
{
    check(round_trip(STAMPED, SECTOR), "write-first", "sector %u differs", STAMPED);
    check(round_trip(capacity / 2, BLOCK), "write-middle", "sector %lu differs", capacity / 2);
    check(round_trip(capacity - 1, SECTOR), "write-last", "sector %lu differs", capacity - 1);
    check(round_trip(capacity - BUFFER_SIZE / SECTOR, BUFFER_SIZE), "write-large",
          "%lu bytes differ", BUFFER_SIZE);
    check(request(TYPE_FLUSH, 0, NULL, 0, false) == STATUS_OK, "flush", "it fails");
}

/* Eight buffers of odd sizes, which add up to sectors; and header and status cut and joined. */
static void check_framing(void)
{
    static const uint32_t sizes[] = { 512, 1, 511, 1024, 3, 509, 2048, 512 };
    static struct request_header header;
    static uint8_t status;
    struct buffer chain[12];
    unsigned count = 0;
    uint32_t at = 0;

    header = (struct request_header){ .type = TYPE_IN, .sector = capacity - 10 };
    if (!round_trip(capacity - 10, 10 * SECTOR)) {
        not_ok("framing", "the sectors cannot be written");
        return;
    }
    memset(buffer_b, 0, 10 * SECTOR);
    chain[count++] = (struct buffer){ &header, 7, false };
    chain[count++] = (struct buffer){ (char *)&header + 7, sizeof(header) - 7, false };
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        chain[count++] = (struct buffer){ buffer_b + at, sizes[i], true };
        at += sizes[i];
    }
    chain[count++] = (struct buffer){ &status, 1, true };
    status = STATUS_NONE;
    int64_t used = virtqueue_request(&queue, chain, count, LIMIT);
    check(used == at + 1 && status == STATUS_OK && memcmp(buffer_a, buffer_b, at) == 0, "framing",
          "eleven buffers: used %ld, status %u", used, status);
    /* 2.7.4: no assumption about the layout; data and status in one buffer. */
    struct buffer joined[2] = { { &header, sizeof(header), false },
                                { buffer_b, SECTOR + 1, true } };
    memset(buffer_b, 0xEE, SECTOR + 1);
    used = virtqueue_request(&queue, joined, 2, LIMIT);
    check(used == SECTOR + 1 && buffer_b[SECTOR] == STATUS_OK &&
          memcmp(buffer_a, buffer_b, SECTOR) == 0, "framing-joined", "used %ld, status %u", used,
          buffer_b[SECTOR]);
}

static void check_errors(void)
{
    check(request(TYPE_IN, capacity, buffer_b, SECTOR, true) == STATUS_IOERR, "read-past-end",
          "sector %lu can be read", capacity);
    check(request(TYPE_IN, capacity - 1, buffer_b, 2 * SECTOR, true) == STATUS_IOERR,
          "read-over-end", "two sectors at the last one can be read");
    check(request(TYPE_IN, ~0ull, buffer_b, SECTOR, true) == STATUS_IOERR, "read-wrapping",
          "sector 2^64-1 can be read");
    check(request(99, 0, buffer_b, SECTOR, true) == STATUS_UNSUPP, "unknown-type",
          "type 99 is not refused as unsupported");
    if (!read_only) {
        check(request(TYPE_OUT, capacity, buffer_b, SECTOR, false) == STATUS_IOERR,
              "write-past-end", "sector %lu can be written", capacity);
        return;
    }
    check(request(TYPE_OUT, 0, buffer_b, SECTOR, false) == STATUS_IOERR, "write-read-only",
          "a read-only disk takes a write");
}

static bool all_zero(const uint8_t *data, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++) {
        if (data[i] != 0)
            return false;
    }
    return true;
}

static void check_zeroes(uint32_t flags, const char *name)
{
    static struct segment segment;
    uint64_t sector = capacity / 2 + 8;

    if (!round_trip(sector, 16 * SECTOR)) {
        not_ok(name, "the sectors cannot be written");
        return;
    }
    segment = (struct segment){ .sector = sector + 2, .sectors = 8, .flags = flags };
    int status = request(TYPE_WRITE_ZEROES, 0, &segment, sizeof(segment), false);
    if (!check(status == STATUS_OK, name, "status %d", status))
        return;
    memset(buffer_b, 0x55, 16 * SECTOR);
    status = request(TYPE_IN, sector, buffer_b, 16 * SECTOR, true);
    check(status == STATUS_OK && memcmp(buffer_a, buffer_b, 2 * SECTOR) == 0 &&
          all_zero(buffer_b + 2 * SECTOR, 8 * SECTOR) &&
          memcmp(buffer_a + 10 * SECTOR, buffer_b + 10 * SECTOR, 6 * SECTOR) == 0,
          "write-zeroes-exact", "other sectors than asked were zeroed, or those were not");
}

static void check_discard(void)
{
    static struct segment segment;

    segment = (struct segment){ .sector = capacity / 2 + 2048 / SECTOR * 8, .sectors = 64 };
    check(request(TYPE_DISCARD, 0, &segment, sizeof(segment), false) == STATUS_OK, "discard",
          "it fails");
    check(request(TYPE_IN, segment.sector, buffer_b, 64 * SECTOR, true) == STATUS_OK,
          "discard-readable", "what was discarded cannot be read");
    segment = (struct segment){ .sector = capacity - 4, .sectors = 8 };
    check(request(TYPE_DISCARD, 0, &segment, sizeof(segment), false) == STATUS_IOERR,
          "discard-over-end", "it does not fail");
    /* 5.2.6.2: the unmap flag is reserved in discard and refused as unsupported. */
    segment = (struct segment){ .sector = capacity - 8, .sectors = 8, .flags = 1 };
    check(request(TYPE_DISCARD, 0, &segment, sizeof(segment), false) == STATUS_UNSUPP,
          "discard-flags", "a discard with the unmap flag is not refused as unsupported");
}

static bool start(uint64_t wanted, uint16_t entry)
{
    if (!virtio_negotiate(&disk, wanted))
        return false;
    if (!virtio_queue_setup(&disk, &queue, 0, 0, entry))
        return false;
    virtio_driver_ok(&disk);
    return true;
}

/* All the checks of data once more for each way to lay out a chain and to notify. */
static void check_with(const char *name, uint64_t features)
{
    print("note: %s\n", name);
    if (!check(start(F_ALL | features, VIRTIO_NO_VECTOR), name, "the device does not start"))
        return;
    if (read_only)
        return;
    check_write_read();
    check_framing();
}

static void check_interrupt(void)
{
    static struct request_header header = { .type = TYPE_IN };
    static uint8_t status;
    const struct buffer chain[] = { { &header, sizeof(header), false },
                                    { buffer_b, BLOCK, true },
                                    { &status, 1, true } };
    struct deadline deadline = deadline_in(LIMIT);
    void *cookie;

    if (disk.pci.msix_cap == 0) {
        not_ok("msix", "no MSI-X capability");
        return;
    }
    pci_msix_enable(&disk.pci, true, false);
    pci_msix_route(&disk.pci, 1, cpu_this()->apic_id, BLK_VECTOR);
    if (!check(start(F_ALL | VIRTIO_F_EVENT_IDX, 1), "msix-start", "it does not start"))
        return;
    irq_count_reset(BLK_VECTOR);
    irq_enable();
    virtqueue_want_interrupt(&queue, true);
    virtqueue_add(&queue, chain, 3, NULL);
    virtqueue_kick(&queue);
    while (irq_count(BLK_VECTOR) == 0 && !deadline_over(&deadline))
        cpu_pause();
    irq_disable();
    check(irq_count(BLK_VECTOR) == 1, "msix-interrupt", "%u interrupts", irq_count(BLK_VECTOR));
    check(virtqueue_take(&queue, &cookie, NULL) && status == STATUS_OK, "msix-used",
          "nothing in the used ring after the interrupt");
}

/* A slot of the deep measurement: its own header, status and block. */
struct slot {
    struct request_header header;
    uint8_t status;
    uint8_t *data;
    uint64_t sector;
};

static struct slot slots[DEPTH];
static uint64_t random_state = 88172645463325252ull;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t random_block(void)
{
    uint64_t blocks = (capacity - STAMPED) * SECTOR / BLOCK;

    return STAMPED + random_next() % blocks * (BLOCK / SECTOR);
}

static bool submit(struct slot *slot, uint32_t type)
{
    slot->sector = random_block();
    slot->header = (struct request_header){ .type = type, .sector = slot->sector };
    slot->status = STATUS_NONE;
    const struct buffer chain[] = { { &slot->header, sizeof(slot->header), false },
                                    { slot->data, BLOCK, type == TYPE_IN },
                                    { &slot->status, 1, true } };
    return virtqueue_add(&queue, chain, 3, slot);
}

/* Keeps depth requests in flight for length_ns; the number done, 0 on an error. */
static uint64_t run_depth(uint32_t type, unsigned depth, uint64_t length_ns)
{
    struct deadline end = deadline_in(length_ns);
    unsigned in_flight = 0;
    uint64_t done = 0;
    void *cookie;

    for (unsigned i = 0; i < depth; i++)
        in_flight += submit(&slots[i], type);
    virtqueue_kick(&queue);
    while (in_flight > 0) {
        if (!virtqueue_wait(&queue, &cookie, NULL, LIMIT) || cookie == NULL)
            return 0;
        do {
            struct slot *slot = cookie;
            in_flight--;
            done++;
            if (slot->status != STATUS_OK)
                return 0;
            if (!deadline_over(&end))
                in_flight += submit(slot, type);
        } while (virtqueue_take(&queue, &cookie, NULL));
        virtqueue_kick(&queue);
    }
    return done;
}

static void measure_one(const char *name, uint32_t type, unsigned depth)
{
    uint64_t length = arg_number("ms", 200) * MILLISECOND;
    uint64_t begin = now_ns();
    uint64_t done = run_depth(type, depth, length);
    uint64_t took = now_ns() - begin;

    if (!check(done > 0, name, "a request failed or was not answered"))
        return;
    cost(name, took / done);
    print("rate %s %lu per second, depth %u\n", name, done * SECOND / took, depth);
}

static void measure(void)
{
    for (unsigned i = 0; i < DEPTH; i++)
        slots[i].data = memory_alloc(BLOCK);
    if (!check(start(F_ALL | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC, VIRTIO_NO_VECTOR),
               "measure", "it does not start"))
        return;
    measure_one("blk-read-4k-depth-1", TYPE_IN, 1);
    measure_one("blk-read-4k-depth-32", TYPE_IN, DEPTH);
    if (read_only)
        return;
    measure_one("blk-write-4k-depth-1", TYPE_OUT, 1);
    measure_one("blk-write-4k-depth-32", TYPE_OUT, DEPTH);
}

static void check_count(void)
{
    static struct virtio_device other;
    uint64_t wanted = arg_number("disks", 0);
    unsigned count = 0;

    while (virtio_open(&other, VIRTIO_BLK, count))
        count++;
    if (wanted != 0)
        check(count == wanted, "disks", "%u disks, want %lu", count, wanted);
}

static void check_commands(uint64_t features)
{
    if (!check(start(F_ALL | features, VIRTIO_NO_VECTOR), "start", "the device does not start"))
        return;
    check_id();
    if (arg_present("stamped"))
        check_stamps();
    check_errors();
    if (arg_present("stamp"))
        write_stamps();
    if (read_only)
        return;
    if ((disk.features & F_ZEROES) != 0) {
        check_zeroes(0, "write-zeroes");
        check_zeroes(1, "write-zeroes-unmap");
    } else {
        not_ok("write-zeroes", "not offered");
    }
    if ((disk.features & F_DISCARD) != 0)
        check_discard();
    else
        not_ok("discard", "not offered");
}

int main(const struct boot_info *info)
{
    (void)info;
    pci_init();
    check_count();
    if (!check(virtio_open(&disk, VIRTIO_BLK, (unsigned)arg_number("disk", 0)), "open",
               "no such virtio-blk"))
        return 0;
    if (arg_present("bare"))
        check((virtio_offered(&disk) & VIRTIO_F_RING_PACKED) == 0, "bare", "it offers packed queues");
    buffer_a = memory_alloc(BUFFER_SIZE);
    buffer_b = memory_alloc(BUFFER_SIZE);
    read_config();
    check_config();
    if (!check(capacity > STAMPED + 2 * BUFFER_SIZE / SECTOR, "capacity-enough",
               "%lu sectors are too few to test with", capacity))
        return 0;
    check_commands(VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
    check_with("plain", 0);
    check_with("indirect", VIRTIO_F_INDIRECT_DESC);
    check_with("event-index", VIRTIO_F_EVENT_IDX);
    check_with("indirect-event-index", VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
    check_interrupt();
    if (arg_number("ms", 200) > 0)
        measure();
    check(virtio_reset(&disk), "reset", "the status does not return to 0");
    return 0;
}

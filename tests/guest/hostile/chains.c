/*
 * Attacks by what stands in the rings: chains that loop or lead outside, buffers that wrap, indices
 * that jump, indirect tables that are none, and descriptors drawn at random.
 * Text: virtio 1.2, 2.7.4 to 2.7.8, 2.7.13.
 */
#include <stddef.h>

#include "hostile.h"
#include "boot.h"
#include "io.h"
#include "memory.h"
#include "smp.h"
#include "acpi.h"
#include "timing.h"
#include "verdict.h"

#define HEADER_LENGTH ((uint32_t)sizeof(struct victim_header))

static struct vring_desc *table;

static uint64_t header_at(void)
{
    return (uintptr_t)victim.header;
}

static uint64_t data_at(void)
{
    return (uintptr_t)victim.data;
}

static uint64_t status_at(void)
{
    return (uintptr_t)victim.status;
}

/* A request whose data buffer is this one. */
static void attack_buffer(const char *name, uint64_t address, uint32_t length,
                          enum outcome expected)
{
    victim_start(0);
    victim_put_request(0);
    victim_put(1, address, length, DESC_NEXT | DESC_WRITE, 2);
    victim_post(0);
    attack_end(name, expected);
}

static void attack_buffers(void)
{
    attack_buffer("buffer-wraps", 0xFFFFFFFFFFFFFF00, 4096, MUST_BREAK);
    attack_buffer("buffer-ends-at-2^64", 0xFFFFFFFFFFFFF000, 4096, MUST_BREAK);
    attack_buffer("buffer-in-hole", 0xD0000000, 512, MUST_BREAK);
    attack_buffer("buffer-over-ram-end", ram_end - 256, 512, MUST_BREAK);
    attack_buffer("buffer-4g-long", data_at(), 0xFFFFFFFF, MUST_BREAK);
    attack_buffer("buffer-in-bar", victim.device.common, 512, MUST_BREAK);
    attack_buffer("buffer-in-lapic", 0xFEE00000, 512, MUST_BREAK);
    attack_buffer("buffer-empty", data_at(), 0, MAY_BREAK);
    attack_buffer("buffer-empty-outside", 0xD0000000, 0, MAY_BREAK);
    attack_buffer("buffer-is-ring", (uintptr_t)victim.queue.desc, 4096, MAY_BREAK);
    attack_buffer("buffer-is-avail", (uintptr_t)victim.queue.avail, 512, MAY_BREAK);
    attack_buffer("buffer-is-used", (uintptr_t)victim.queue.used, 512, MAY_BREAK);
}

static void attack_links(void)
{
    victim_start(0);
    victim_put(0, header_at(), HEADER_LENGTH, DESC_NEXT, 0);
    victim_post(0);
    attack_end("loop-of-one", MUST_BREAK);
    victim_start(0);
    victim_put_request(0);
    victim_put(2, status_at(), 1, DESC_WRITE | DESC_NEXT, 1);
    victim_post(0);
    attack_end("loop-of-two", MUST_BREAK);
    victim_start(0);
    for (uint16_t i = 0; i < victim.queue.size; i++)
        victim_put(i, data_at(), 1, DESC_WRITE | DESC_NEXT, (i + 1) % victim.queue.size);
    victim_post(0);
    attack_end("loop-of-all", MUST_BREAK);
    victim_start(0);
    victim_put(0, header_at(), HEADER_LENGTH, DESC_NEXT, victim.queue.size);
    victim_post(0);
    attack_end("next-is-size", MUST_BREAK);
    victim_start(0);
    victim_put(0, header_at(), HEADER_LENGTH, DESC_NEXT, 0xFFFF);
    victim_post(0);
    attack_end("next-is-ffff", MUST_BREAK);
    victim_start(0);
    victim_post(victim.queue.size);
    attack_end("head-is-size", MUST_BREAK);
    victim_start(0);
    victim_post(0xFFFF);
    attack_end("head-is-ffff", MUST_BREAK);
    victim_start(0);
    for (uint16_t i = 0; i < victim.queue.size; i++)
        victim_put(i, data_at(), 0, DESC_NEXT, i + 1);
    victim_put(victim.queue.size - 1, data_at(), 0, 0, 0);
    victim_post(0);
    attack_end("all-empty", MAY_BREAK);
}

static void attack_order(void)
{
    victim_start(0);
    victim_put(0, status_at(), 1, DESC_WRITE | DESC_NEXT, 1);
    victim_put(1, header_at(), HEADER_LENGTH, 0, 0);
    victim_post(0);
    attack_end("writable-first", MUST_BREAK);
    victim_start(0);
    victim_put_request(0);
    for (uint16_t i = 0; i < 3; i++)
        victim.queue.desc[i].flags |= 0xFFF8;
    victim_post(0);
    attack_end("reserved-flags", MAY_BREAK);
    victim_start(0);
    victim_put_request(0);
    for (unsigned i = 0; i < victim.queue.size; i++)
        victim_post(0);
    attack_end("same-head-often", MAY_BREAK);
}

static void jump(uint16_t by)
{
    victim_start(0);
    for (uint16_t i = 0; i + 2 < victim.queue.size; i = (uint16_t)(i + 3))
        victim_put_request(i);
    victim.queue.avail->index = (uint16_t)(victim.queue.avail->index + by);
    store_load_barrier();
    virtqueue_notify(&victim.queue);
}

static void attack_indices(void)
{
    jump(victim.queue.size + 1);
    attack_end("avail-jumps-size", MUST_BREAK);
    jump(0x8000);
    attack_end("avail-jumps-half", MUST_BREAK);
    jump(0xFFFF);
    attack_end("avail-goes-back", MUST_BREAK);
    jump(victim.queue.size);
    attack_end("avail-jumps-all", MAY_BREAK);
    victim_start(VIRTIO_F_EVENT_IDX);
    victim_put_request(0);
    victim.queue.used->index = 0x1234;
    victim.queue.used->flags = 0xFFFF;
    victim.queue.avail->flags = 0xFFFF;
    victim.queue.avail->ring[victim.queue.size] = 0x4321;
    victim_post(0);
    attack_end("used-scribbled", MAY_BREAK);
}

void attack_chains(void)
{
    attack_buffers();
    attack_links();
    attack_order();
    attack_indices();
}

/* A chain of one descriptor that points to the table as address and length say. */
static void attack_table(const char *name, uint64_t address, uint32_t length, uint16_t flags,
                         enum outcome expected)
{
    victim_put(0, address, length, DESC_INDIRECT | flags, 1);
    victim_put(1, status_at(), 1, DESC_WRITE, 0);
    victim_post(0);
    attack_end(name, expected);
}

/* The table of a good request, with the queue live. */
static uint64_t good_table(uint64_t features)
{
    victim_start(features);
    victim_put_request(0);
    for (unsigned i = 0; i < 3; i++)
        table[i] = *(struct vring_desc *)(uintptr_t)&victim.queue.desc[i];
    return (uintptr_t)table;
}

#define INDIRECT VIRTIO_F_INDIRECT_DESC

static void attack_table_shapes(void)
{
    uint64_t at = good_table(INDIRECT);

    attack_table("table-good", at, 48, 0, MUST_WORK);
    good_table(INDIRECT);
    attack_table("table-write-flag", at, 48, DESC_WRITE, MAY_BREAK);
    good_table(INDIRECT);
    attack_table("table-empty", at, 0, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-17-bytes", at, 17, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-8-bytes", at, 8, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-and-next", at, 48, DESC_NEXT, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-4g-long", at, 0xFFFFFFF0, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-65536-entries", at, 65536 * 16, 0, MAY_BREAK);
    good_table(INDIRECT);
    attack_table("table-in-hole", 0xD0000000, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-wraps", 0xFFFFFFFFFFFFFFF0, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-over-ram-end", ram_end - 16, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    attack_table("table-in-ecam", pci_ecam_base(), 48, 0, MUST_BREAK);
    good_table(0);
    attack_table("table-not-negotiated", at, 48, 0, MUST_BREAK);
}

static void attack_table_contents(void)
{
    uint64_t at = good_table(INDIRECT);

    table[0].flags = DESC_INDIRECT;
    table[0].address = at + 64;
    table[0].length = 48;
    attack_table("table-nested", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[1].flags |= DESC_INDIRECT;
    attack_table("table-nested-later", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[2].flags |= DESC_NEXT;
    table[2].next = 3;
    attack_table("table-next-outside", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[2].flags |= DESC_NEXT;
    table[2].next = 0xFFFF;
    attack_table("table-next-ffff", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[2].flags |= DESC_NEXT;
    table[2].next = 1;
    attack_table("table-loop", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[1].address = 0xFFFFFFFFFFFFFF00;
    attack_table("table-buffer-wraps", at, 48, 0, MUST_BREAK);
    good_table(INDIRECT);
    table[1].address = (uintptr_t)table;
    table[1].length = 4096;
    attack_table("table-buffer-is-table", at, 48, 0, MAY_BREAK);
    /* 2.7.5.3.1 asks for no alignment. */
    good_table(INDIRECT);
    memmove((char *)table + 5, table, 48);
    attack_table("table-unaligned", at + 5, 48, 0, MAY_BREAK);
}

/* As many pieces as a table can name, each a byte. */
static void attack_long_tables(void)
{
    const uint32_t entries = 4096;
    struct vring_desc *wide = memory_alloc(entries * sizeof(*wide));

    good_table(INDIRECT);
    for (uint32_t i = 0; i < entries; i++)
        wide[i] = (struct vring_desc){ data_at(), 1, DESC_WRITE | DESC_NEXT, (uint16_t)(i + 1) };
    wide[0] = (struct vring_desc){ header_at(), HEADER_LENGTH, DESC_NEXT, 1 };
    wide[entries - 1].flags = DESC_WRITE;
    attack_table("table-of-4096", (uintptr_t)wide, entries * 16, 0, MAY_BREAK);
}

void attack_indirect(void)
{
    table = memory_alloc(PAGE_SIZE);
    attack_table_shapes();
    attack_table_contents();
    attack_long_tables();
}

/* ---- at random ---- */

static uint64_t random_address(void)
{
    switch (chance() % 8) {
    case 0:
        return chance();
    case 1:
        return chance() & 0xFFFFFFFF;
    case 2:
        return ram_end - chance() % 1024;
    case 3:
        return victim.device.common + chance() % 32768;
    default:
        return data_at() + chance() % VICTIM_DATA / 2;
    }
}

static uint32_t random_length(void)
{
    static const uint32_t lengths[] = { 0, 1, 15, 16, 17, 48, 511, 512, 513, 4096, 0xFFFFFFFF };
    uint32_t at = (uint32_t)(chance() % (sizeof(lengths) / sizeof(*lengths) + 1));

    return at < sizeof(lengths) / sizeof(*lengths) ? lengths[at] : (uint32_t)chance();
}

/*
 * Descriptors from chance, but no writable buffer where this payload itself lives: what is at a
 * random address is either the data buffer or not RAM it needs.
 */
static void scribble(uint16_t i)
{
    uint64_t address = random_address();
    uint32_t length = random_length();
    uint16_t flags = (uint16_t)(chance() & 7);
    bool ours = address >= data_at() && address < data_at() + VICTIM_DATA;

    if (!ours && address < ram_end && (flags & DESC_WRITE) != 0)
        flags &= (uint16_t)~DESC_WRITE;
    if (ours && length > VICTIM_DATA / 2 && length < 0xFFFFFFF)
        length = VICTIM_DATA / 2;
    victim_put(i, address, length, flags, (uint16_t)(chance() % (victim.queue.size + 2)));
}

void attack_random(void)
{
    uint64_t rounds = arg_number("rounds", 300);

    for (uint64_t round = 0; round < rounds; round++) {
        victim_start(chance() & (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX));
        memset(victim.data, (int)chance(), VICTIM_DATA);
        /* Header and data at times begin as a read request, so that the request goes further. */
        *victim.header = (struct victim_header){ .type = (uint32_t)(chance() % 16) };
        for (unsigned step = 0; step < 8; step++) {
            for (uint16_t i = 0; i < 8; i++)
                scribble(i);
            if (chance() % 2 == 0)
                victim_put(0, header_at(), HEADER_LENGTH, DESC_NEXT, 1);
            victim_post((uint16_t)(chance() % 10));
        }
        if (round % 50 == 49 || round + 1 == rounds)
            attack_end("random", MAY_BREAK);
    }
}

/* ---- against another processor ---- */

static volatile bool race_over;

/* Changes descriptors of the live queue under the device's eyes. */
static void race_scribble(void *argument)
{
    uint64_t state = 1234567;

    (void)argument;
    while (!race_over) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        volatile struct vring_desc *desc = &victim.queue.desc[state % 3];
        switch (state >> 8 & 3) {
        case 0:
            desc->length = state >> 16 & 1 ? 512 : 0xFFFFFF00;
            break;
        case 1:
            desc->address = state >> 16 & 1 ? data_at() : 0xFFFFFFFFFFFFFF00;
            break;
        case 2:
            desc->flags = (uint16_t)(state >> 16 & 7);
            break;
        default:
            desc->next = (uint16_t)(state >> 16 & 0x1FF);
            break;
        }
    }
}

static uint32_t start_helper(void)
{
    uint32_t ids[MAX_CPUS];
    uint32_t count = acpi_processors(ids, MAX_CPUS);

    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] != cpu_this()->apic_id)
            return smp_start(ids[i], 10 * SECOND);
    }
    return 0;
}

void attack_race(void)
{
    struct deadline end, latest;
    uint32_t helper = start_helper();
    uint64_t restarts = 0;

    if (helper == 0) {
        not_ok("race", "no second processor");
        return;
    }
    victim_start(VIRTIO_F_INDIRECT_DESC);
    smp_run(helper, race_scribble, NULL);
    end = deadline_in(arg_number("ms", 1000) * MILLISECOND);
    /* Two processors that take turns on one of a busy host's need longer to meet. */
    latest = deadline_in(60 * SECOND);
    while (!deadline_over(&end) || (restarts == 0 && !deadline_over(&latest))) {
        victim_put_request(0);
        victim_post(0);
        if ((virtio_status(&victim.device) & VIRTIO_NEEDS_RESET) != 0) {
            victim_start(VIRTIO_F_INDIRECT_DESC);
            restarts++;
        }
    }
    race_over = true;
    check(smp_wait(helper, 30 * SECOND), "race-helper", "the other processor hangs");
    attack_end("race", MAY_BREAK);
    check(restarts > 0, "race-hits", "no change was ever seen by the device");
}

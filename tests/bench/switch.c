/*
 * What the switch alone costs: frames between ports that are rings in memory, without KVM, guests
 * or system calls. Each frame is copied once, from the sender's buffer into the receiver's ring.
 *
 *   switch [--quick]
 *
 * Prints lines "NAME VALUE UNIT": medians of several rounds; what is compared was measured by
 * turns. Asserts nothing but that all frames arrived.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "net/receive_filter.h"
#include "net/switch.h"
#include "vmm/util/loop.h"

#define BATCH NET_BATCH
#define SLOTS 256u        /* of a ring: as a virtqueue's descriptors; all fits into caches */
#define SLOTS_COLD 16384u /* so many that it does not */
#define FLOWS 256u
#define ROUNDS_MAX 101

static unsigned rounds = 81; /* short ones: what is compared meets the same load of the machine */
static unsigned frames_a_round = 64 * 1024;

/* ---- a port that is a ring ---- */

struct ring {
    struct net_port port;
    uint8_t *slots;
    size_t slot_size;
    unsigned n_slots; /* a power of two */
    unsigned next;
    uint64_t taken;
};

static unsigned ring_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct ring *ring = (struct ring *)port;

    for (unsigned i = 0; i < n; i++) {
        uint8_t *to = ring->slots + (ring->next++ & (ring->n_slots - 1)) * ring->slot_size;

        for (unsigned k = 0; k < frames[i].iovcnt; k++) {
            memcpy(to, frames[i].iov[k].iov_base, frames[i].iov[k].iov_len);
            to += frames[i].iov[k].iov_len;
        }
    }
    ring->taken += n;
    return n;
}

static const struct net_port_ops ring_ops = {.deliver = ring_deliver};

static void *must(void *pointer)
{
    if (!pointer) {
        fprintf(stderr, "switch: out of memory\n");
        exit(1);
    }
    return pointer;
}

static void check(int error, const char *what)
{
    if (error >= 0)
        return;
    fprintf(stderr, "switch: %s: %s\n", what, strerror(-error));
    exit(1);
}

static void *buffers(size_t size)
{
    void *bytes = must(aligned_alloc(4096, (size + 4095) & ~(size_t)4095));

    memset(bytes, 0x5A, size);
    return bytes;
}

static void ring_init(struct ring *ring, size_t slot_size, unsigned n_slots)
{
    *ring = (struct ring){
        .port = {.ops = &ring_ops, .name = "ring", .accepts = UINT32_MAX},
        .slots = buffers(n_slots * slot_size),
        .slot_size = slot_size,
        .n_slots = n_slots,
    };
}

static void ring_fini(struct ring *ring)
{
    free(ring->slots);
}

/* ---- a switch with two rings ---- */

struct bench {
    struct loop *loop;
    struct net_switch *sw;
    struct ring a, b;
};

static const uint8_t mac_a[6] = {2, 0, 0, 0, 0, 0xA}, mac_b[6] = {2, 0, 0, 0, 0, 0xB};

static void plug(struct net_switch *sw, const char *name, struct ring *ring, const uint8_t mac[6])
{
    struct switch_port_config config = {.kind = SWITCH_PORT_GUEST};
    struct net_receive_filter filter = {0};
    struct switch_port *port;

    snprintf(config.name, sizeof(config.name), "%s", name);
    check(switch_port_add(sw, &config, &port), "port");
    net_port_connect(switch_port_end(port), &ring->port);
    memcpy(filter.mac, mac, 6);
    net_port_tell_filter(&ring->port, &filter);
}

static void add_rule(struct rule *rules, unsigned *n, const char *format, unsigned x, unsigned y)
{
    char text[200];

    snprintf(text, sizeof(text), format, x, y);
    check(rule_parse("bench", text, &rules[(*n)++]), text);
}

/* A thousand rules such as people have; what is not denied by them is allowed. */
static void load_rules(struct net_switch *sw)
{
    static struct rule rules[1001];
    unsigned n = 0;

    for (unsigned i = 0; i < 300; i++)
        add_rule(rules, &n, "300,type=ip,src=172.%u.%u.0/24,action=deny", 16 + i / 200, i % 200);
    for (unsigned i = 0; i < 100; i++) /* so every bit of an address counts: flows are many */
        add_rule(rules, &n, "300,type=ip,src=172.%u.%u.7,action=deny", 20, i);
    for (unsigned i = 0; i < 300; i++)
        add_rule(rules, &n, "200,type=ip,dst=10.1.%u.%u,proto=tcp,dport=22,action=deny",
                 i / 200, i % 200);
    for (unsigned i = 0; i < 200; i++)
        add_rule(rules, &n, "150,proto=udp,dport=%u-%u,action=deny", 2000 + 10 * i, 2004 + 10 * i);
    for (unsigned i = 0; i < 100; i++)
        add_rule(rules, &n, "120,src-mac=02:11:00:00:%02x:%02x,action=deny", i / 50, i % 50);
    add_rule(rules, &n, "1,action=allow", 0, 0);
    check(switch_rules_set(sw, rules, n), "rules");
}

static void bench_init(struct bench *bench, struct loop *loop, size_t slot_size, unsigned n_slots,
                       unsigned flows)
{
    const struct switch_config config = {.name = "bench", .flows_max = flows};

    bench->loop = loop;
    check(switch_create(&bench->sw, loop, &config), "create");
    ring_init(&bench->a, 64, SLOTS);
    ring_init(&bench->b, slot_size, n_slots);
    plug(bench->sw, "a", &bench->a, mac_a);
    plug(bench->sw, "b", &bench->b, mac_b);
}

static void bench_fini(struct bench *bench)
{
    switch_destroy(bench->sw);
    ring_fini(&bench->a);
    ring_fini(&bench->b);
}

/* ---- frames ---- */

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* TCP from a to b; the flow's number is in addresses and ports. */
static void make_frame(uint8_t *frame, size_t length, unsigned flow)
{
    memset(frame, 0, 54);
    memcpy(frame, mac_b, 6);
    memcpy(frame + 6, mac_a, 6);
    put16(frame + 12, 0x0800);
    frame[14] = 0x45;
    put16(frame + 16, (unsigned)(length - 14 < 65535 ? length - 14 : 65535));
    frame[22] = 64;
    frame[23] = 6;
    frame[26] = 10;
    frame[27] = (uint8_t)(flow >> 16);
    put16(frame + 28, flow);
    frame[30] = 10;
    frame[31] = 2;
    put16(frame + 34, 1024 + flow % 50000);
    put16(frame + 36, 80);
    frame[46] = 0x50;
    frame[47] = 0x10;
}

/* The sender's buffers, a ring of SLOTS, each with a frame of a flow. */
struct source {
    uint8_t *slots;
    size_t slot_size, length;
    unsigned n_slots;
    struct iovec *pieces;
    struct net_frame *frames;
};

/* `run`: frames of a flow that follow each other. */
static void source_init(struct source *source, size_t length, size_t slot_size, unsigned n_slots,
                        unsigned run)
{
    source->slots = buffers(n_slots * slot_size);
    source->n_slots = n_slots;
    source->pieces = must(calloc(n_slots, sizeof(*source->pieces)));
    source->frames = must(calloc(n_slots, sizeof(*source->frames)));
    source->slot_size = slot_size;
    source->length = length;
    for (unsigned i = 0; i < n_slots; i++) {
        uint8_t *slot = source->slots + i * slot_size;

        make_frame(slot, length, i / run % FLOWS);
        source->pieces[i] = (struct iovec){slot, length};
        source->frames[i] = (struct net_frame){
            .iov = &source->pieces[i], .iovcnt = 1, .length = length,
        };
    }
}

static void source_fini(struct source *source)
{
    free(source->slots);
    free(source->pieces);
    free(source->frames);
}

/* ---- measuring ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Prints the median and, beside it, the minimum: what a busy machine does to the one is seen by the
 * other. */
static void print_ns(const char *name, double *values, unsigned n)
{
    qsort(values, n, sizeof(*values), by_size);
    printf("%s %.1f ns (minimum %.1f)\n", name, values[n / 2], values[0]);
}

/* The processor time of this thread: other programs do not count. */
static uint64_t cpu_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Nanoseconds a frame: n frames of the source sent by the ring's wire. */
static double run(struct ring *from, const struct source *source, unsigned n)
{
    uint64_t start = cpu_now_ns();

    for (unsigned done = 0; done < n; done += BATCH)
        net_port_send(&from->port, &source->frames[done % source->n_slots], BATCH);
    net_port_flush(&from->port);
    return (double)(cpu_now_ns() - start) / n;
}

/* The same bytes from the same buffers into such a ring, by memcpy alone. */
static double run_memcpy(struct ring *to, const struct source *source, unsigned n)
{
    uint64_t start = cpu_now_ns();

    for (unsigned i = 0; i < n; i++) {
        unsigned slot = i & (source->n_slots - 1);

        memcpy(to->slots + slot * to->slot_size, source->frames[slot].iov->iov_base,
               source->length);
        __asm__ volatile("" ::: "memory");
    }
    return (double)(cpu_now_ns() - start) / n;
}

static void expect(uint64_t got, uint64_t wanted)
{
    if (got == wanted)
        return;
    fprintf(stderr, "switch: %llu of %llu frames arrived\n", (unsigned long long)got,
            (unsigned long long)wanted);
    exit(1);
}

/* 64-byte frames, without and with rules, and the ring harness without a switch between. */
static void small_frames(struct loop *loop)
{
    double plain[ROUNDS_MAX], ruled[ROUNDS_MAX], bare[ROUNDS_MAX];
    struct bench without, with;
    struct ring direct_a, direct_b;
    struct source source;

    bench_init(&without, loop, 2048, SLOTS, 0);
    bench_init(&with, loop, 2048, SLOTS, 0);
    load_rules(with.sw);
    ring_init(&direct_a, 64, SLOTS);
    ring_init(&direct_b, 2048, SLOTS);
    net_port_connect(&direct_a.port, &direct_b.port);
    source_init(&source, 64, 2048, SLOTS, 1);
    for (unsigned i = 0; i < rounds; i++) {
        bare[i] = run(&direct_a, &source, frames_a_round);
        plain[i] = run(&without.a, &source, frames_a_round);
        ruled[i] = run(&with.a, &source, frames_a_round);
    }
    expect(with.b.taken, (uint64_t)rounds * frames_a_round);
    print_ns("64-byte-frame-without-switch", bare, rounds);
    print_ns("64-byte-frame", plain, rounds);
    print_ns("64-byte-frame-1001-rules", ruled, rounds);
    net_port_disconnect(&direct_a.port);
    ring_fini(&direct_a);
    ring_fini(&direct_b);
    source_fini(&source);
    bench_fini(&without);
    bench_fini(&with);
}

struct sizes {
    size_t length, slot;
    unsigned n_slots;
};

/*
 * Larger frames beside memcpy, which copies the same bytes from the same buffers into the same ones
 * in the same order. With 256 buffers of 2 KiB on each side that is 1 MiB by turns.
 */
static void large_frames(struct loop *loop, const char *name, const struct sizes *sizes, bool rules,
                         unsigned n)
{
    double copy[ROUNDS_MAX], through[ROUNDS_MAX], ratio[ROUNDS_MAX];
    struct bench bench;
    struct source source;
    char text[80];

    bench_init(&bench, loop, sizes->slot, sizes->n_slots, 0);
    if (rules)
        load_rules(bench.sw);
    source_init(&source, sizes->length, sizes->slot, sizes->n_slots, 16);
    run(&bench.a, &source, sizes->n_slots);
    for (unsigned i = 0; i < rounds; i++) {
        copy[i] = run_memcpy(&bench.b, &source, n);
        through[i] = run(&bench.a, &source, n);
        ratio[i] = copy[i] / through[i];
    }
    print_ns(name, through, rounds);
    snprintf(text, sizeof(text), "%s-memcpy", name);
    print_ns(text, copy, rounds);
    qsort(ratio, rounds, sizeof(*ratio), by_size);
    printf("%s-of-memcpy %.0f %%\n", name, 100 * ratio[rounds / 2]);
    source_fini(&source);
    bench_fini(&bench);
}

/* One frame of a batch for each of n flows from `first` on. */
static double run_flows(struct bench *bench, struct source *source, unsigned first, unsigned n)
{
    uint64_t start = cpu_now_ns();

    for (unsigned done = 0; done < n; done += BATCH) {
        for (unsigned i = 0; i < BATCH; i++) {
            uint8_t *frame = source->slots + i * source->slot_size;
            unsigned flow = first + done + i;

            frame[27] = (uint8_t)(flow >> 16);
            put16(frame + 28, flow);
            put16(frame + 36, flow);
        }
        net_port_send(&bench->a.port, source->frames, BATCH);
    }
    return (double)(cpu_now_ns() - start) / n;
}

/* A rule for single addresses makes each sender's a megaflow of its own. */
static void by_address(struct net_switch *sw)
{
    struct rule rules[3];
    unsigned n = 0;

    add_rule(rules, &n, "9,type=ip,src=192.168.1.%u,action=deny", 1, 0);
    add_rule(rules, &n, "8,type=ip,proto=tcp,dport=%u,action=deny", 22, 0);
    add_rule(rules, &n, "1,action=allow", 0, 0);
    check(switch_rules_set(sw, rules, n), "rules");
}

#define MILLION (1u << 20)

static void many_flows(struct loop *loop)
{
    double few[ROUNDS_MAX], many[ROUNDS_MAX], scan, again;
    struct switch_cache_info info;
    struct bench small, large;
    struct source source;

    bench_init(&small, loop, 2048, SLOTS, 0);
    bench_init(&large, loop, 2048, SLOTS, 2 * MILLION);
    by_address(small.sw);
    by_address(large.sw);
    source_init(&source, 64, 2048, SLOTS, 1);
    scan = run_flows(&large, &source, 0, MILLION);
    again = run_flows(&large, &source, 0, MILLION);
    switch_get_cache_info(large.sw, &info);
    source_fini(&source);
    source_init(&source, 64, 2048, SLOTS, 1);
    for (unsigned i = 0; i < rounds; i++) {
        few[i] = run(&small.a, &source, frames_a_round);
        many[i] = run(&large.a, &source, frames_a_round);
    }
    printf("new-flow %.1f ns\n", scan);
    printf("megaflows %u flows\n", info.flows);
    printf("megaflow-hit-among-a-million %.1f ns\n", again);
    print_ns("hit-with-256-flows", few, rounds);
    print_ns("hit-with-a-million-flows", many, rounds);
    source_fini(&source);
    bench_fini(&small);
    bench_fini(&large);
}

/* A scan of UDP ports with a thousand rules; its flows are more than the cache holds. */
static void port_scan(struct loop *loop)
{
    struct switch_cache_info info;
    struct bench bench;
    struct source source;
    double cost;

    bench_init(&bench, loop, 2048, SLOTS, 0);
    load_rules(bench.sw);
    source_init(&source, 64, 2048, SLOTS, 1);
    for (unsigned i = 0; i < BATCH; i++)
        source.slots[i * source.slot_size + 23] = 17;
    cost = run_flows(&bench, &source, 0, MILLION);
    switch_get_cache_info(bench.sw, &info);
    printf("scan-1001-rules %.1f ns\n", cost);
    printf("scan-1001-rules-megaflows %u flows\n", info.flows);
    source_fini(&source);
    bench_fini(&bench);
}

int main(int argc, char **argv)
{
    static const struct sizes cached = {1500, 2048, SLOTS}, cold = {1500, 2048, SLOTS_COLD},
                              segments = {65549, 66 * 1024, SLOTS};
    struct loop *loop;

    if (argc > 1 && strcmp(argv[1], "--quick") == 0) {
        rounds = 3;
        frames_a_round = 64 * 256;
    }
    check(loop_create(&loop, 8), "loop");
    small_frames(loop);
    large_frames(loop, "1500-byte-frame", &cached, false, frames_a_round / 8);
    large_frames(loop, "1500-byte-frame-1001-rules", &cached, true, frames_a_round / 8);
    large_frames(loop, "1500-byte-frame-cold", &cold, true, frames_a_round / 4);
    large_frames(loop, "64-KiB-segment", &segments, true, frames_a_round / 128);
    many_flows(loop);
    port_scan(loop);
    loop_destroy(loop);
    return 0;
}

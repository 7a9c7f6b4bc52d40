/*
 * exits: what the ways out of a guest cost, in nanoseconds each.
 *
 * Prints `cost NAME NS`, the median of a number of rounds, each of `count` operations (64 unless
 * given). Where CPL 0 is emulated, ports cost more at CPL 3 than at CPL 0, because the processor
 * reports them as a fault that the emulator must decode; both are given.
 * `null-call` is the way to CPL 0 and back, which every *-cpl0 figure contains once for all count
 * operations, not once each.
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define ROUNDS        15
#define UNCLAIMED     0x2F0
#define UART_SCRATCH  (COM1 + 7)
#define IPI_VECTOR    0x40
#define MSIX_VECTOR   0x41

static uint64_t count;
static uint64_t mmio_target;
static uint64_t doorbell;
static uint16_t doorbell_queue;

static void op_out_unclaimed(void) { out8(UNCLAIMED, 0); }
static void op_in_unclaimed(void) { in8(UNCLAIMED); }
static void op_out_scratch(void) { out8(UART_SCRATCH, 0x5A); }
static void op_in_scratch(void) { in8(UART_SCRATCH); }
static void op_mmio_read(void) { mmio_read32(mmio_target); }
static void op_mmio_write(void) { mmio_write32(mmio_target, 0); }
static void op_kick(void) { mmio_write16(doorbell, doorbell_queue); }
static void op_cpuid(void) { cpuid_native(0, 0); }
static void op_lapic_read(void) { mmio_read32(0xFEE00000 + LAPIC_ID); }

static uint64_t null_cpl0(void *argument, uint64_t *return_frame)
{
    (void)argument;
    (void)return_frame;
    return 0;
}

static void op_null_call(void) { cpl0_call(null_cpl0, NULL); }

static struct virtio_device rng;
static struct virtqueue rng_queue;
static uint8_t rng_byte;

static void start_request(void)
{
    const struct buffer buffer = { &rng_byte, 1, true };

    virtqueue_add(&rng_queue, &buffer, 1, NULL);
    virtqueue_kick(&rng_queue);
}

/* A request of one byte to virtio-rng, until the used ring shows it. */
static void op_request_polled(void)
{
    void *cookie;

    start_request();
    while (!virtqueue_take(&rng_queue, &cookie, NULL))
        cpu_pause();
}

/* The same until its interrupt was taken; the queue asks for one each time. */
static void op_request_interrupt(void)
{
    uint32_t before = irq_count(MSIX_VECTOR);
    void *cookie;

    start_request();
    while (irq_count(MSIX_VECTOR) == before)
        cpu_pause();
    while (virtqueue_take(&rng_queue, &cookie, NULL))
        compiler_barrier();
}

static volatile uint64_t rng_interrupted;

/* At CPL 0. */
static void note_interrupt(uint32_t vector)
{
    (void)vector;
    rng_interrupted = 1;
}

/* The same with the processor halted meanwhile. */
static void op_request_halted(void)
{
    void *cookie;

    rng_interrupted = 0;
    start_request();
    while (rng_interrupted == 0)
        irq_halt(&rng_interrupted);
    while (virtqueue_take(&rng_queue, &cookie, NULL))
        compiler_barrier();
}

/* An interrupt to this very processor, from the write to the handler's count. */
static void op_self_ipi(void)
{
    uint32_t before = irq_count(IPI_VECTOR);

    lapic_send(cpu_this()->apic_id, ICR_ASSERT | IPI_VECTOR);
    while (irq_count(IPI_VECTOR) == before)
        cpu_pause();
}

static uint64_t run_round(void (*operation)(void))
{
    uint64_t begin = rdtsc();

    for (uint64_t i = 0; i < count; i++)
        operation();
    return rdtsc() - begin;
}

static uint64_t round_cpl0(void *argument, uint64_t *return_frame)
{
    void (*const *operation)(void) = argument;

    (void)return_frame;
    return run_round(*operation);
}

static uint64_t median(uint64_t *values, unsigned length)
{
    for (unsigned i = 1; i < length; i++) {
        uint64_t value = values[i];
        unsigned at = i;
        for (; at > 0 && values[at - 1] > value; at--)
            values[at] = values[at - 1];
        values[at] = value;
    }
    return values[length / 2];
}

static void measure(const char *name, void (*operation)(void), bool cpl0)
{
    uint64_t rounds[ROUNDS];

    for (unsigned i = 0; i < ROUNDS; i++)
        rounds[i] = cpl0 ? cpl0_call(round_cpl0, &operation) : run_round(operation);
    cost(name, cycles_to_ns(median(rounds, ROUNDS)) / count);
}

static void measure_ports(void)
{
    measure("pio-out-unclaimed", op_out_unclaimed, false);
    measure("pio-in-unclaimed", op_in_unclaimed, false);
    measure("pio-out-uart-scratch", op_out_scratch, false);
    measure("pio-in-uart-scratch", op_in_scratch, false);
    check(in8(UART_SCRATCH) == 0x5A, "uart-scratch", "reads %02x", in8(UART_SCRATCH));
    measure("pio-out-unclaimed-cpl0", op_out_unclaimed, true);
    measure("pio-in-unclaimed-cpl0", op_in_unclaimed, true);
    check(in8(UNCLAIMED) == 0xFF, "unclaimed-port", "reads %02x", in8(UNCLAIMED));
}

static bool start_rng(uint16_t entry)
{
    if (!virtio_negotiate(&rng, 0) || !virtio_queue_setup(&rng, &rng_queue, 0, 0, entry))
        return false;
    virtio_driver_ok(&rng);
    return true;
}

static void measure_registers(void)
{
    mmio_target = rng.common + COMMON_DEVICE_FEATURE_SELECT;
    measure("mmio-read-virtio-common", op_mmio_read, false);
    measure("mmio-write-virtio-common", op_mmio_write, false);
    mmio_target = rng.isr;
    measure("mmio-read-virtio-isr", op_mmio_read, false);
    doorbell = rng_queue.notify;
    doorbell_queue = rng_queue.index;
    measure("kick-ioeventfd", op_kick, false);
}

static void measure_virtio(void)
{
    if (!virtio_open(&rng, VIRTIO_RNG, 0)) {
        skipped("virtio", "no virtio-rng");
        return;
    }
    if (!check(start_rng(VIRTIO_NO_VECTOR), "virtio", "virtio-rng does not start"))
        return;
    measure_registers();
    measure("request-polled", op_request_polled, false);
    pci_msix_enable(&rng.pci, true, false);
    pci_msix_route(&rng.pci, 1, cpu_this()->apic_id, MSIX_VECTOR);
    if (!check(start_rng(1), "virtio-msix", "virtio-rng does not start with MSI-X"))
        return;
    measure("request-interrupt", op_request_interrupt, false);
    irq_set_handler(MSIX_VECTOR, note_interrupt);
    measure("request-halted", op_request_halted, false);
    virtio_reset(&rng);
}

int main(const struct boot_info *info)
{
    (void)info;
    count = arg_number("count", 64);
    print("note: CPL 0 is %s, TSC %lu kHz\n", cpu_kernel_emulated() ? "emulated" : "native",
          tsc_khz());
    pci_init();
    measure("null-call", op_null_call, false);
    measure("cpuid", op_cpuid, false);
    measure_ports();
    if (pci_ecam_base() != 0) {
        mmio_target = pci_ecam_base();
        measure("mmio-read-ecam", op_mmio_read, false);
    } else {
        skipped("mmio-ecam", "no MCFG");
    }
    if (!lapic_is_x2apic())
        measure("lapic-read", op_lapic_read, false);
    irq_enable();
    measure("self-ipi", op_self_ipi, false);
    measure_virtio();
    irq_disable();
    return 0;
}

/*
 * migrate: memory that is written all the time and must never be an older one.
 *
 * bytes=N of memory are filled, a pattern of its own in each page; of those, the first hot=N are
 * written over and over, rate=N bytes a second (0: as fast as it goes). A page holds the number of
 * times it was written, in its first word and in the pattern of all others; a table elsewhere holds
 * the same number. So a page that is lost, stale or torn is found, whichever of the two it is. All
 * pages are compared again and again; a character on COM1 tells what to do: `v` prints a line with
 * the pages written, `q` compares once more and powers off with the verdict. zero=N bytes beside are
 * cleared and filled in turns, so that pages become zero that were not. `rest`: it sleeps between
 * two looks at COM1. `beat`: between two looks it prints a line, and nothing else.
 */
#include "memory.h"

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define WORDS (PAGE_SIZE / 8)
#define MARK 0x9E3779B97F4A7C15ull
#define LINE_STATUS (COM1 + 5)
#define DATA_READY 1
#define TICK (20 * MILLISECOND)
#define WAKE_VECTOR 0x40
#define DIVIDE_BY_1 0xB

static uint64_t *area;        /* of n_pages */
static uint64_t *times;       /* a word for each page of it */
static uint64_t n_pages, n_hot;
static uint64_t *clearing;    /* of n_clearing pages: all zero, or all ones by turns */
static uint64_t n_clearing;
static uint64_t written, compared, bad;

static uint64_t word_of(uint64_t page, uint64_t n, uint64_t i)
{
    return (page * MARK ^ n * 0xC2B2AE3D27D4EB4Full) + i;
}

static void write_page(uint64_t page)
{
    uint64_t *words = area + page * WORDS;
    uint64_t n = ++times[page];

    words[0] = n;
    for (uint64_t i = 1; i < WORDS; i++)
        words[i] = word_of(page, n, i);
    written++;
}

static void compare_page(uint64_t page)
{
    const volatile uint64_t *words = area + page * WORDS;
    uint64_t n = times[page];

    compared++;
    if (words[0] != n) {
        if (bad++ == 0)
            print("note: page %lu was written %lu times and holds the %lu.\n", page, n, words[0]);
        return;
    }
    for (uint64_t i = 1; i < WORDS; i++) {
        if (words[i] == word_of(page, n, i))
            continue;
        if (bad++ == 0)
            print("note: page %lu is torn at word %lu\n", page, i);
        return;
    }
}

/* All ones becomes zero and back; what it was before is looked at first. */
static void turn_page(uint64_t page, bool expect_ones)
{
    volatile uint64_t *words = clearing + page * WORDS;
    uint64_t expected = expect_ones ? ~0ull : 0;

    for (uint64_t i = 0; i < WORDS; i++) {
        if (words[i] != expected && bad++ == 0)
            print("note: page %lu of those that are cleared is wrong\n", page);
        words[i] = ~expected;
    }
}

static char command(void)
{
    return in8(LINE_STATUS) & DATA_READY ? (char)in8(COM1) : '\0';
}

static void compare_all(void)
{
    for (uint64_t page = 0; page < n_pages; page++)
        compare_page(page);
}

/* Writes for a while, at most as fast as `rate`. */
static void work(uint64_t rate, uint64_t *hot_at, uint64_t *cold_at)
{
    struct deadline end = deadline_in(TICK);
    uint64_t quota = rate / (SECOND / TICK) / PAGE_SIZE;

    for (uint64_t done = 0; !deadline_over(&end); done++) {
        if (n_hot > 0 && (rate == 0 || done < quota)) {
            write_page(*hot_at);
            *hot_at = *hot_at + 1 < n_hot ? *hot_at + 1 : 0;
        } else if (n_hot > 0) {
            delay_ns(MILLISECOND);
        }
        if (done % 16 == 0) {
            compare_page(*cold_at);
            *cold_at = *cold_at + 1 < n_pages ? *cold_at + 1 : 0;
        }
    }
}

/* Halts until the timer's next interrupt; the APIC's clock counts nanoseconds on KVM. */
static void sleep_tick(void)
{
    static const volatile uint64_t never = 0;

    lapic_write(LAPIC_TIMER_DIV, DIVIDE_BY_1);
    lapic_write(LAPIC_LVT_TIMER, WAKE_VECTOR);
    lapic_write(LAPIC_TIMER_INIT, TICK);
    irq_halt(&never);
}

int main(const struct boot_info *info)
{
    uint64_t rate = arg_number("rate", 0), hot_at = 0, cold_at = 0;
    bool ones = false;
    char asked = '\0';

    (void)info;
    n_pages = arg_number("bytes", 16 * 1024 * 1024) / PAGE_SIZE;
    n_hot = arg_number("hot", 4 * 1024 * 1024) / PAGE_SIZE;
    n_clearing = arg_number("zero", 0) / PAGE_SIZE;
    times = memory_alloc(n_pages * sizeof(*times));
    if (n_clearing > 0)
        clearing = memory_alloc(n_clearing * PAGE_SIZE);
    area = memory_alloc(n_pages * PAGE_SIZE);
    for (uint64_t page = 0; page < n_pages; page++)
        write_page(page);
    written = 0;
    print("filled\n");
    while (asked != 'q') {
        if (arg_present("beat"))
            print("beat\n");
        else if (arg_present("rest"))
            sleep_tick();
        else
            work(rate, &hot_at, &cold_at);
        for (uint64_t page = 0; page < n_clearing; page++)
            turn_page(page, ones);
        ones = !ones;
        asked = command();
        if (asked == 'v')
            print("written %lu compared %lu bad %lu\n", written, compared, bad);
    }
    compare_all();
    check(bad == 0, "memory", "%lu pages are not what was written", bad);
    check(n_hot == 0 || written > 0, "writing", "nothing was written");
    print("note: %lu pages written, %lu compared\n", written, compared);
    return 0;
}

/*
 * Prints how fast this machine's time-stamp counter runs, in kHz: what a QEMU without KVM shows its
 * guest as that guest's. Measured against CLOCK_MONOTONIC_RAW over a tenth of a second.
 *
 * Not for machines without such a counter: there it fails and prints nothing. One thread.
 *
 * Texts: AMD64 Architecture Programmer's Manual, volume 3, RDTSC.
 */
#if defined(__x86_64__)

#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define TRIES 50

struct moment {
    int64_t ns;
    uint64_t ticks;
};

static int64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Both clocks at once: of several tries the one that was least disturbed. */
static struct moment moment_take(void)
{
    struct moment best = {0};
    int64_t shortest = INT64_MAX;

    for (int i = 0; i < TRIES; i++) {
        int64_t before = clock_ns();
        uint64_t ticks = __rdtsc();
        int64_t after = clock_ns();

        if (after - before < shortest) {
            shortest = after - before;
            best = (struct moment){before + shortest / 2, ticks};
        }
    }
    return best;
}

int main(void)
{
    struct moment first = moment_take(), last;

    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    last = moment_take();
    if (last.ticks <= first.ticks)
        return 1;
    printf("%.0f\n",
           (double)(last.ticks - first.ticks) * 1e6 / (double)(last.ns - first.ns));
    return 0;
}

#else

int main(void)
{
    return 1;
}

#endif

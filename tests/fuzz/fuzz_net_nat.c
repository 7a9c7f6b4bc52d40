/*
 * The guard before the user-mode network, on any frame: it reads nothing beyond the frame, and what
 * it lets through has a length that its own headers vouch for. And what tells of the ends of
 * connections, with the same frame as either side's, and as a connection's first.
 */
#include <stdlib.h>
#include <string.h>

#include "net/nat_ends.h"
#include "net/nat_guard.h"
#include "net/port.h"
#include "tests/fuzz/fuzz.h"

static unsigned be16(const uint8_t *at)
{
    return (unsigned)(at[0] << 8 | at[1]);
}

/* What the headers of a frame that was let through say its length is, read again and otherwise. */
static size_t length_by_headers(const uint8_t *frame)
{
    switch (be16(frame + 12)) {
    case 0x0806:
        return 14 + 28;
    case 0x0800:
        FUZZ_CHECK(frame[14] >= 0x45 && frame[14] <= 0x4F);
        FUZZ_CHECK(be16(frame + 16) >= (frame[14] - 0x40) * 4u);
        return 14 + be16(frame + 16);
    case 0x86DD:
        FUZZ_CHECK(frame[14] >= 0x60 && frame[14] <= 0x6F);
        return 14 + 40 + be16(frame + 18);
    }
    __builtin_trap();
}

static void see_ends(const uint8_t *frame, size_t size)
{
    static struct nat_ends ends;
    static struct nat_flow flow;
    uint8_t reset[NAT_RESET_MAX];
    bool open = nat_ends_open(&ends, &flow, -1, frame, size, true);

    FUZZ_CHECK(open == flow.known);
    nat_ends_see(&ends, frame, size, false);
    nat_ends_see(&ends, frame, size, true);
    FUZZ_CHECK(!nat_ends_next(&ends)); /* a SYN is no end, and nothing else opens */
    if (open)
        FUZZ_CHECK(nat_ends_reset(&flow, reset) == (flow.ipv6 ? 74 : 54));
    nat_ends_forget(&ends, &flow);
    FUZZ_CHECK(ends.ending == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nat_frame_kind kind;
    uint8_t *frame;

    if (size > NET_FRAME_MAX)
        size = NET_FRAME_MAX;
    frame = malloc(size ? size : 1); /* exactly as long, so that a byte too many is seen */
    FUZZ_CHECK(frame);
    memcpy(frame, data, size);
    if (nat_guard_check(frame, size, &kind) == NAT_PASS) {
        FUZZ_CHECK(kind.length <= size);
        FUZZ_CHECK(kind.length == length_by_headers(frame));
        FUZZ_CHECK(!kind.fragment || be16(frame + 12) == 0x0800);
    }
    see_ends(frame, size);
    free(frame);
    return 0;
}

/*
 * The notation of a port forward: any text is refused or understood; what is understood has ports
 * that exist, and is understood the same when it is written out again.
 */
#include <string.h>

#include "net/forward.h"
#include "net/nat.h"
#include "tests/fuzz/fuzz.h"

#define TEXT_MAX 200

static void check_same(const struct net_forward *a, const struct net_forward *b)
{
    FUZZ_CHECK(a->udp == b->udp);
    FUZZ_CHECK(a->host_addr.s_addr == b->host_addr.s_addr && a->host_port == b->host_port);
    FUZZ_CHECK(a->guest_addr.s_addr == b->guest_addr.s_addr && a->guest_port == b->guest_port);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct net_forward forward, again;
    struct in_addr network;
    unsigned prefix;
    char text[TEXT_MAX + 1], written[NET_FORWARD_TEXT_MAX];

    if (size > TEXT_MAX)
        size = TEXT_MAX;
    memcpy(text, data, size);
    text[size] = '\0';
    if (net_forward_parse(&forward, text) == 0) {
        FUZZ_CHECK(forward.host_port > 0 && forward.guest_port > 0);
        net_forward_format(&forward, written, sizeof(written));
        FUZZ_CHECK(net_forward_parse(&again, written) == 0);
        check_same(&forward, &again);
    }
    if (nat_subnet_parse(text, &network, &prefix) == 0) {
        FUZZ_CHECK(prefix >= NAT_MIN_PREFIX && prefix <= NAT_MAX_PREFIX);
        FUZZ_CHECK((ntohl(network.s_addr) & (UINT32_MAX >> prefix)) == 0);
    }
    return 0;
}

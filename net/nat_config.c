/*
 * The configuration of a user-mode NAT: defaults, and the notation of a subnet.
 *
 * Does not check a whole configuration; nat_create() does. Any thread; no state.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "net/nat.h"

void nat_config_init(struct nat_config *config)
{
    *config = (struct nat_config){
        .name = "nat",
        .network.s_addr = htonl(0x0A000200), /* 10.0.2.0 */
        .prefix = 24,
        .ipv6 = true,
        .mtu = 1500,
    };
}

/* One or two digits that are all of text; NAT_MAX_PREFIX + 1 when they are not. */
static unsigned parse_prefix(const char *text)
{
    unsigned prefix = 0;
    size_t length = strlen(text);

    if (length < 1 || length > 2)
        return NAT_MAX_PREFIX + 1;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return NAT_MAX_PREFIX + 1;
        prefix = prefix * 10 + (unsigned)(text[i] - '0');
    }
    return prefix;
}

int nat_subnet_parse(const char *text, struct in_addr *network, unsigned *prefix)
{
    const char *slash = strchr(text, '/');
    char copy[INET_ADDRSTRLEN];
    struct in_addr address;
    unsigned bits;

    if (!slash || (size_t)(slash - text) >= sizeof(copy))
        return -EINVAL;
    memcpy(copy, text, (size_t)(slash - text));
    copy[slash - text] = '\0';
    bits = parse_prefix(slash + 1);
    if (inet_pton(AF_INET, copy, &address) != 1 || bits < NAT_MIN_PREFIX || bits > NAT_MAX_PREFIX ||
        (ntohl(address.s_addr) & (UINT32_MAX >> bits)) != 0)
        return -EINVAL;
    *network = address;
    *prefix = bits;
    return 0;
}

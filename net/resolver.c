/*
 * Reads the name servers out of resolv.conf.
 *
 * Does not ask them. Where a resolver on the host's loopback stands before them, as with
 * systemd-resolved, its own list is read. IPv4 only. No state.
 *
 * Text: resolv.conf(5), systemd-resolved.service(8).
 */
#include "net/resolver.h"

#include <arpa/inet.h>
#include <stdio.h>

static unsigned read_servers(const char *path, struct in_addr *servers, unsigned max)
{
    FILE *file = fopen(path, "re");
    char line[256], text[INET_ADDRSTRLEN];
    unsigned count = 0;

    if (!file)
        return 0;
    while (count < max && fgets(line, sizeof(line), file)) {
        struct in_addr address;

        if (sscanf(line, "nameserver %15s", text) == 1 && inet_pton(AF_INET, text, &address) == 1 &&
            ntohl(address.s_addr) >> 24 != IN_LOOPBACKNET && address.s_addr != INADDR_ANY)
            servers[count++] = address;
    }
    fclose(file);
    return count;
}

unsigned resolver_servers(struct in_addr *servers, unsigned max)
{
    unsigned count = read_servers("/etc/resolv.conf", servers, max);

    return count ? count : read_servers("/run/systemd/resolve/resolv.conf", servers, max);
}

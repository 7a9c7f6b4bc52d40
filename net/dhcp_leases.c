/*
 * The bindings of a DHCP server: a table with a row for each address that is given out.
 *
 * Looked through from end to end, as it is short and messages are few. Knows no messages (dhcp.c)
 * and no files (dhcp_store.c). Text: RFC 2131 §4.3.1 for the order in which an address is chosen.
 */
#include "net/dhcp_leases.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/options.h"

struct row {
    uint8_t mac[6];
    bool bound;
    bool kept;      /* the file has the binding */
    bool barred;    /* a fixed lease's or the server's; or declined, until then */
    bool forever;   /* barred for good */
    uint64_t until;
};

struct dhcp_leases {
    uint32_t first; /* host's byte order */
    unsigned n_rows;
    struct dhcp_fixed fixed[DHCP_MAX_FIXED];
    unsigned n_fixed;
    struct row rows[];
};

int dhcp_fixed_parse(struct dhcp_fixed *fixed, const char *text)
{
    const size_t mac_length = strlen("52:54:00:12:34:56");
    struct option_mac mac;
    struct in_addr address;
    char copy[18];

    if (strlen(text) <= mac_length || text[mac_length] != '-')
        return -EINVAL;
    memcpy(copy, text, mac_length);
    copy[mac_length] = '\0';
    if (option_parse_mac(NULL, copy, &mac) < 0 ||
        inet_pton(AF_INET, text + mac_length + 1, &address) != 1)
        return -EINVAL;
    memcpy(fixed->mac, mac.bytes, 6);
    fixed->address = address;
    return 0;
}

static struct in_addr address_of(const struct dhcp_leases *leases, const struct row *row)
{
    return (struct in_addr){htonl(leases->first + (uint32_t)(row - leases->rows))};
}

static struct row *row_of(struct dhcp_leases *leases, struct in_addr address)
{
    uint32_t at = ntohl(address.s_addr) - leases->first;

    return at < leases->n_rows ? &leases->rows[at] : NULL;
}

static const struct dhcp_fixed *find_fixed(const struct dhcp_leases *leases, const uint8_t mac[6])
{
    for (unsigned i = 0; i < leases->n_fixed; i++) {
        if (memcmp(leases->fixed[i].mac, mac, 6) == 0)
            return &leases->fixed[i];
    }
    return NULL;
}

static struct row *find_row(const struct dhcp_leases *leases, const uint8_t mac[6])
{
    for (unsigned i = 0; i < leases->n_rows; i++) {
        const struct row *row = &leases->rows[i];

        if (row->bound && memcmp(row->mac, mac, 6) == 0)
            return (struct row *)row;
    }
    return NULL;
}

/* ---- creation ---- */

static bool is_host(uint32_t network, unsigned prefix, struct in_addr server,
                    struct in_addr address)
{
    uint32_t hosts = UINT32_MAX >> prefix, host = ntohl(address.s_addr) & hosts;

    return (ntohl(address.s_addr) & ~hosts) == network && host != 0 && host != hosts &&
           address.s_addr != server.s_addr;
}

int dhcp_leases_create(struct dhcp_leases **out, struct in_addr network, unsigned prefix,
                       struct in_addr server, const struct dhcp_fixed *fixed, unsigned n_fixed)
{
    uint32_t base = ntohl(network.s_addr), hosts = UINT32_MAX >> prefix;
    uint32_t n = hosts > DHCP_FIRST_HOST ? hosts - DHCP_FIRST_HOST : 0;
    struct dhcp_leases *leases;

    if (n_fixed > DHCP_MAX_FIXED)
        return -EINVAL;
    for (unsigned i = 0; i < n_fixed; i++) {
        if (!is_host(base, prefix, server, fixed[i].address))
            return -EINVAL;
    }
    n = n < DHCP_POOL_MAX ? n : DHCP_POOL_MAX;
    leases = calloc(1, sizeof(*leases) + n * sizeof(leases->rows[0]));
    if (!leases)
        return -ENOMEM;
    leases->first = base + DHCP_FIRST_HOST;
    leases->n_rows = n;
    leases->n_fixed = n_fixed;
    for (unsigned i = 0; i < n_fixed; i++) {
        struct row *row = row_of(leases, fixed[i].address);

        leases->fixed[i] = fixed[i];
        if (row)
            row->barred = row->forever = true;
    }
    if (row_of(leases, server))
        row_of(leases, server)->barred = row_of(leases, server)->forever = true;
    *out = leases;
    return 0;
}

void dhcp_leases_destroy(struct dhcp_leases *leases)
{
    free(leases);
}

/* ---- bindings ---- */

struct in_addr dhcp_leases_find(const struct dhcp_leases *leases, const uint8_t mac[6])
{
    const struct dhcp_fixed *fixed = find_fixed(leases, mac);
    const struct row *row = fixed ? NULL : find_row(leases, mac);

    if (fixed)
        return fixed->address;
    return row ? address_of(leases, row) : (struct in_addr){INADDR_ANY};
}

static bool is_barred(const struct row *row, uint64_t now)
{
    return row->barred && (row->forever || row->until > now);
}

static bool is_free(const struct row *row, uint64_t now)
{
    return !row->bound && !is_barred(row, now);
}

/* The row for somebody new, or NULL. */
static struct row *choose_row(struct dhcp_leases *leases, struct in_addr wish, uint64_t now)
{
    struct row *wished = row_of(leases, wish), *oldest = NULL;

    if (wished && is_free(wished, now))
        return wished;
    for (unsigned i = 0; i < leases->n_rows; i++) {
        struct row *row = &leases->rows[i];

        if (is_free(row, now))
            return row;
        if (row->bound && row->until <= now && (!oldest || row->until < oldest->until))
            oldest = row;
    }
    return oldest;
}

struct in_addr dhcp_leases_offer(struct dhcp_leases *leases, const uint8_t mac[6],
                                 struct in_addr wish, uint64_t now, uint64_t until)
{
    const struct dhcp_fixed *fixed = find_fixed(leases, mac);
    struct row *row;

    if (fixed)
        return fixed->address;
    row = find_row(leases, mac);
    if (!row) {
        row = choose_row(leases, wish, now);
        if (!row)
            return (struct in_addr){INADDR_ANY};
        *row = (struct row){.bound = true};
        memcpy(row->mac, mac, 6);
    }
    if (row->until < until)
        row->until = until;
    return address_of(leases, row);
}

void dhcp_leases_extend(struct dhcp_leases *leases, const uint8_t mac[6], uint64_t until)
{
    struct row *row = find_fixed(leases, mac) ? NULL : find_row(leases, mac);

    if (row)
        row->until = until;
}

bool dhcp_leases_is_new(struct dhcp_leases *leases, const uint8_t mac[6])
{
    struct row *row = find_fixed(leases, mac) ? NULL : find_row(leases, mac);
    bool is_new = row && !row->kept;

    if (row)
        row->kept = true;
    return is_new;
}

bool dhcp_leases_bind(struct dhcp_leases *leases, const uint8_t mac[6], struct in_addr address,
                      uint64_t until)
{
    struct row *row = row_of(leases, address), *former = find_row(leases, mac);

    if (!row || row->barred || find_fixed(leases, mac))
        return false;
    if (former)
        *former = (struct row){0};
    *row = (struct row){.bound = true, .kept = true, .until = until};
    memcpy(row->mac, mac, 6);
    return true;
}

void dhcp_leases_decline(struct dhcp_leases *leases, const uint8_t mac[6], uint64_t until)
{
    struct row *row = find_fixed(leases, mac) ? NULL : find_row(leases, mac);

    if (row)
        *row = (struct row){.barred = true, .until = until};
}

void dhcp_leases_each(const struct dhcp_leases *leases,
                      bool (*each)(void *arg, const uint8_t mac[6], struct in_addr address,
                                   uint64_t until),
                      void *arg)
{
    for (unsigned i = 0; i < leases->n_rows; i++) {
        const struct row *row = &leases->rows[i];

        if (row->bound && !each(arg, row->mac, address_of(leases, row), row->until))
            return;
    }
}

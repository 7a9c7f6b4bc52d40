/*
 * Rules of nf_tables, put together from expressions and handed to the kernel in one transaction.
 *
 * A rule is a row of expressions: load something into a register, compare it, and so on until one
 * fails; the last is the verdict. `nft --debug=netlink` shows such rows, and shows these.
 *
 * Knows IPv4 only, but for isolating. No state but the socket; any thread.
 *
 * Text: linux/netfilter/nf_tables.h; nft(8); netfilter's hooks and priorities in nft(8), table 6.
 */
#include "net/nft.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_nat.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "vmm/util/log.h"

/* linux/netfilter/nf_conntrack_common.h, which does not go together with the C library's headers. */
#define CT_ESTABLISHED_OR_RELATED 0x6u /* NF_CT_STATE_BIT() of the two */
#define CT_STATUS_DST_NAT 0x20u        /* IPS_DST_NAT */

#define PRIORITY_RAW (-300)
#define PRIORITY_DSTNAT (-100)
#define PRIORITY_FORWARD (-10) /* before the host's own filter */
#define PRIORITY_SRCNAT 100

/* Where in an IPv4 header, and in that of TCP or UDP. */
#define IP_FROM 12u
#define IP_TO 16u
#define PORT_TO 2u

struct table {
    struct netlink_request request;
    char name[IFNAMSIZ + 8];
    size_t rule; /* the nest of the rule being composed */
};

/* ---- messages ---- */

static void begin(struct table *table, uint16_t type, uint16_t flags)
{
    const struct nfgenmsg head = {.nfgen_family = NFPROTO_INET};

    netlink_begin(&table->request, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type),
                  (uint16_t)(NLM_F_ACK | flags), &head, sizeof(head));
}

static void bracket(struct table *table, uint16_t type)
{
    const struct nfgenmsg head = {.res_id = htons(NFNL_SUBSYS_NFTABLES)};

    netlink_begin(&table->request, type, 0, &head, sizeof(head));
}

static void begin_table(struct table *table, const char *link)
{
    netlink_clear(&table->request);
    snprintf(table->name, sizeof(table->name), "ferry-%s", link);
    bracket(table, NFNL_MSG_BATCH_BEGIN);
    begin(table, NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL);
    netlink_put_text(&table->request, NFTA_TABLE_NAME, table->name);
    netlink_put_be32(&table->request, NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
}

static void add_chain(struct table *table, const char *chain, const char *type, uint32_t hook,
                      int priority)
{
    size_t nest;

    begin(table, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
    netlink_put_text(&table->request, NFTA_CHAIN_TABLE, table->name);
    netlink_put_text(&table->request, NFTA_CHAIN_NAME, chain);
    nest = netlink_nest(&table->request, NFTA_CHAIN_HOOK);
    netlink_put_be32(&table->request, NFTA_HOOK_HOOKNUM, hook);
    netlink_put_be32(&table->request, NFTA_HOOK_PRIORITY, (uint32_t)priority);
    netlink_end(&table->request, nest);
    netlink_put_text(&table->request, NFTA_CHAIN_TYPE, type);
}

static void begin_rule(struct table *table, const char *chain)
{
    begin(table, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    netlink_put_text(&table->request, NFTA_RULE_TABLE, table->name);
    netlink_put_text(&table->request, NFTA_RULE_CHAIN, chain);
    table->rule = netlink_nest(&table->request, NFTA_RULE_EXPRESSIONS);
}

static void end_rule(struct table *table)
{
    netlink_end(&table->request, table->rule);
}

/* ---- expressions; the register is the first unless said otherwise ---- */

struct expression {
    size_t element, data;
};

static struct expression begin_expression(struct table *table, const char *name)
{
    struct expression e = {.element = netlink_nest(&table->request, NFTA_LIST_ELEM)};

    netlink_put_text(&table->request, NFTA_EXPR_NAME, name);
    e.data = netlink_nest(&table->request, NFTA_EXPR_DATA);
    return e;
}

static void end_expression(struct table *table, struct expression e)
{
    netlink_end(&table->request, e.data);
    netlink_end(&table->request, e.element);
}

static void put_value(struct table *table, uint16_t type, const void *value, size_t size)
{
    size_t nest = netlink_nest(&table->request, type);

    netlink_put(&table->request, NFTA_DATA_VALUE, value, size);
    netlink_end(&table->request, nest);
}

static void load_meta(struct table *table, enum nft_meta_keys key)
{
    struct expression e = begin_expression(table, "meta");

    netlink_put_be32(&table->request, NFTA_META_KEY, key);
    netlink_put_be32(&table->request, NFTA_META_DREG, NFT_REG_1);
    end_expression(table, e);
}

static void load_ct(struct table *table, enum nft_ct_keys key)
{
    struct expression e = begin_expression(table, "ct");

    netlink_put_be32(&table->request, NFTA_CT_KEY, key);
    netlink_put_be32(&table->request, NFTA_CT_DREG, NFT_REG_1);
    end_expression(table, e);
}

static void load_payload(struct table *table, enum nft_payload_bases base, uint32_t offset,
                         uint32_t size)
{
    struct expression e = begin_expression(table, "payload");

    netlink_put_be32(&table->request, NFTA_PAYLOAD_DREG, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_PAYLOAD_BASE, base);
    netlink_put_be32(&table->request, NFTA_PAYLOAD_OFFSET, offset);
    netlink_put_be32(&table->request, NFTA_PAYLOAD_LEN, size);
    end_expression(table, e);
}

/* Whether the destination is an address of this host: RTN_LOCAL. */
static void load_destination_type(struct table *table)
{
    struct expression e = begin_expression(table, "fib");

    netlink_put_be32(&table->request, NFTA_FIB_DREG, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
    netlink_put_be32(&table->request, NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
    end_expression(table, e);
}

static void mask(struct table *table, uint32_t bits)
{
    struct expression e = begin_expression(table, "bitwise");
    const uint32_t zero = 0;

    netlink_put_be32(&table->request, NFTA_BITWISE_SREG, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_BITWISE_DREG, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_BITWISE_LEN, sizeof(bits));
    put_value(table, NFTA_BITWISE_MASK, &bits, sizeof(bits));
    put_value(table, NFTA_BITWISE_XOR, &zero, sizeof(zero));
    end_expression(table, e);
}

static void compare(struct table *table, enum nft_cmp_ops op, const void *value, size_t size)
{
    struct expression e = begin_expression(table, "cmp");

    netlink_put_be32(&table->request, NFTA_CMP_SREG, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_CMP_OP, op);
    put_value(table, NFTA_CMP_DATA, value, size);
    end_expression(table, e);
}

static void verdict(struct table *table, int code)
{
    struct expression e = begin_expression(table, "immediate");
    size_t data, nest;

    netlink_put_be32(&table->request, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
    data = netlink_nest(&table->request, NFTA_IMMEDIATE_DATA);
    nest = netlink_nest(&table->request, NFTA_DATA_VERDICT);
    netlink_put_be32(&table->request, NFTA_VERDICT_CODE, (uint32_t)code);
    netlink_end(&table->request, nest);
    netlink_end(&table->request, data);
    end_expression(table, e);
}

static void set_register(struct table *table, uint32_t reg, const void *value, size_t size)
{
    struct expression e = begin_expression(table, "immediate");

    netlink_put_be32(&table->request, NFTA_IMMEDIATE_DREG, reg);
    put_value(table, NFTA_IMMEDIATE_DATA, value, size);
    end_expression(table, e);
}

/* To the address in register 1 and the port in register 2. */
static void translate_destination(struct table *table)
{
    struct expression e = begin_expression(table, "nat");

    netlink_put_be32(&table->request, NFTA_NAT_TYPE, NFT_NAT_DNAT);
    netlink_put_be32(&table->request, NFTA_NAT_FAMILY, NFPROTO_IPV4);
    netlink_put_be32(&table->request, NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
    netlink_put_be32(&table->request, NFTA_NAT_REG_PROTO_MIN, NFT_REG_2);
    end_expression(table, e);
}

static void masquerade(struct table *table)
{
    end_expression(table, begin_expression(table, "masq"));
}

/* ---- conditions ---- */

/* key: NFT_META_IIFNAME or NFT_META_OIFNAME. */
static void on_link(struct table *table, enum nft_meta_keys key, enum nft_cmp_ops op,
                    const char *link)
{
    char name[IFNAMSIZ] = {0};

    memcpy(name, link, strnlen(link, IFNAMSIZ - 1));
    load_meta(table, key);
    compare(table, op, name, sizeof(name));
}

static void with_version(struct table *table, enum nft_cmp_ops op, uint8_t family)
{
    load_meta(table, NFT_META_NFPROTO);
    compare(table, op, &family, sizeof(family));
}

/* at: IP_FROM or IP_TO; only behind with_version() in a chain of both. */
static void in_network(struct table *table, uint32_t at, enum nft_cmp_ops op,
                       struct in_addr network, unsigned prefix)
{
    load_payload(table, NFT_PAYLOAD_NETWORK_HEADER, at, sizeof(network));
    mask(table, htonl(UINT32_MAX << (32 - prefix)));
    compare(table, op, &network, sizeof(network));
}

static void with_bits(struct table *table, enum nft_ct_keys key, uint32_t bits)
{
    const uint32_t none = 0;

    load_ct(table, key);
    mask(table, bits);
    compare(table, NFT_CMP_NEQ, &none, sizeof(none));
}

/* ---- sending ---- */

static int commit(struct netlink *nl, struct table *table, const char *who)
{
    int err;

    bracket(table, NFNL_MSG_BATCH_END);
    err = netlink_open(nl, NETLINK_NETFILTER);
    if (!err)
        err = netlink_send(nl, &table->request);
    if (!err)
        return 0;
    if (err == -EPERM)
        log_error("%s: no right to set up the packet filter: it takes the capability "
                  "CAP_NET_ADMIN", who);
    else if (err == -EPROTONOSUPPORT || err == -EOPNOTSUPP)
        log_error("%s: the kernel has no nf_tables, or not all of it (modprobe nf_tables nft_nat "
                  "nft_masq): %s", who, strerror(-err));
    else
        log_error("%s: cannot set up the packet filter: %s%s%s", who, strerror(-err),
                  nl->reason[0] ? ": " : "", nl->reason);
    netlink_close(nl);
    return err;
}

/* ---- tables ---- */

int nft_isolate(struct netlink *nl, const char *who, const char *link)
{
    static const enum nft_meta_keys directions[] = {NFT_META_IIFNAME, NFT_META_OIFNAME};
    struct table table;

    begin_table(&table, link);
    add_chain(&table, "forward", "filter", NF_INET_FORWARD, PRIORITY_FORWARD);
    for (unsigned i = 0; i < 2; i++) {
        begin_rule(&table, "forward");
        on_link(&table, directions[i], NFT_CMP_EQ, link);
        verdict(&table, NF_DROP);
        end_rule(&table);
    }
    return commit(nl, &table, who);
}

/* What arrives at a guarded link goes to guests only. */
static void add_guard(struct table *table, const char *link)
{
    static const char prefix[] = "ferry";

    begin_rule(table, "forward");
    on_link(table, NFT_META_IIFNAME, NFT_CMP_EQ, link);
    load_meta(table, NFT_META_OIFNAME);
    compare(table, NFT_CMP_NEQ, prefix, strlen(prefix));
    verdict(table, NF_DROP);
    end_rule(table);
}

/* To the network only what belongs to a connection from there, or came by a forward. */
static void filter_inward(struct table *table, const struct nft_nat *nat)
{
    begin_rule(table, "forward");
    on_link(table, NFT_META_OIFNAME, NFT_CMP_EQ, nat->link);
    with_bits(table, NFT_CT_STATE, CT_ESTABLISHED_OR_RELATED);
    verdict(table, NF_ACCEPT);
    end_rule(table);
    begin_rule(table, "forward");
    on_link(table, NFT_META_OIFNAME, NFT_CMP_EQ, nat->link);
    with_bits(table, NFT_CT_STATUS, CT_STATUS_DST_NAT);
    verdict(table, NF_ACCEPT);
    end_rule(table);
    begin_rule(table, "forward");
    on_link(table, NFT_META_OIFNAME, NFT_CMP_EQ, nat->link);
    verdict(table, NF_DROP);
    end_rule(table);
}

/* From the network only IPv4, and only under its own addresses. */
static void filter_outward(struct table *table, const struct nft_nat *nat)
{
    begin_rule(table, "forward");
    on_link(table, NFT_META_IIFNAME, NFT_CMP_EQ, nat->link);
    with_version(table, NFT_CMP_NEQ, NFPROTO_IPV4);
    verdict(table, NF_DROP);
    end_rule(table);
    begin_rule(table, "forward");
    on_link(table, NFT_META_IIFNAME, NFT_CMP_EQ, nat->link);
    with_version(table, NFT_CMP_EQ, NFPROTO_IPV4);
    in_network(table, IP_FROM, NFT_CMP_NEQ, nat->network, nat->prefix);
    verdict(table, NF_DROP);
    end_rule(table);
}

/* A guest may not reach the host's loopback, which route_localnet (adapter.c) would let it. */
static void protect_loopback(struct table *table, const struct nft_nat *nat)
{
    const struct in_addr loopback = {htonl(INADDR_LOOPBACK & 0xFF000000u)};

    add_chain(table, "protect", "filter", NF_INET_PRE_ROUTING, PRIORITY_RAW);
    begin_rule(table, "protect");
    on_link(table, NFT_META_IIFNAME, NFT_CMP_EQ, nat->link);
    with_version(table, NFT_CMP_EQ, NFPROTO_IPV4);
    in_network(table, IP_TO, NFT_CMP_EQ, loopback, 8);
    verdict(table, NF_DROP);
    end_rule(table);
}

static void add_masquerading(struct table *table, const struct nft_nat *nat)
{
    const struct in_addr loopback = {htonl(INADDR_LOOPBACK & 0xFF000000u)};

    add_chain(table, "outward", "nat", NF_INET_POST_ROUTING, PRIORITY_SRCNAT);
    begin_rule(table, "outward");
    on_link(table, NFT_META_OIFNAME, NFT_CMP_NEQ, nat->link);
    with_version(table, NFT_CMP_EQ, NFPROTO_IPV4);
    in_network(table, IP_FROM, NFT_CMP_EQ, nat->network, nat->prefix);
    masquerade(table);
    end_rule(table);
    /* What the host itself sends to a forward of its loopback. */
    begin_rule(table, "outward");
    on_link(table, NFT_META_OIFNAME, NFT_CMP_EQ, nat->link);
    with_version(table, NFT_CMP_EQ, NFPROTO_IPV4);
    in_network(table, IP_FROM, NFT_CMP_EQ, loopback, 8);
    masquerade(table);
    end_rule(table);
}

static void add_forward(struct table *table, const char *chain, const struct nft_nat *nat,
                        const struct net_forward *forward)
{
    const struct in_addr *guest =
        forward->guest_addr.s_addr == INADDR_ANY ? &nat->guest : &forward->guest_addr;
    const uint8_t protocol = forward->udp ? IPPROTO_UDP : IPPROTO_TCP;
    const uint16_t port = htons(forward->host_port), guest_port = htons(forward->guest_port);
    const uint32_t local = 2; /* RTN_LOCAL, linux/rtnetlink.h */

    begin_rule(table, chain);
    with_version(table, NFT_CMP_EQ, NFPROTO_IPV4);
    if (forward->host_addr.s_addr == INADDR_ANY) {
        load_destination_type(table);
        compare(table, NFT_CMP_EQ, &local, sizeof(local));
    } else {
        in_network(table, IP_TO, NFT_CMP_EQ, forward->host_addr, 32);
    }
    load_meta(table, NFT_META_L4PROTO);
    compare(table, NFT_CMP_EQ, &protocol, sizeof(protocol));
    load_payload(table, NFT_PAYLOAD_TRANSPORT_HEADER, PORT_TO, sizeof(port));
    compare(table, NFT_CMP_EQ, &port, sizeof(port));
    set_register(table, NFT_REG_1, guest, sizeof(*guest));
    set_register(table, NFT_REG_2, &guest_port, sizeof(guest_port));
    translate_destination(table);
    end_rule(table);
}

static void add_forwards(struct table *table, const struct nft_nat *nat)
{
    add_chain(table, "inward", "nat", NF_INET_PRE_ROUTING, PRIORITY_DSTNAT);
    add_chain(table, "local", "nat", NF_INET_LOCAL_OUT, PRIORITY_DSTNAT);
    for (unsigned i = 0; i < nat->n_forwards; i++) {
        add_forward(table, "inward", nat, &nat->forwards[i]);
        add_forward(table, "local", nat, &nat->forwards[i]);
    }
}

int nft_masquerade(struct netlink *nl, const char *who, const struct nft_nat *nat)
{
    struct table table;

    begin_table(&table, nat->link);
    add_chain(&table, "forward", "filter", NF_INET_FORWARD, PRIORITY_FORWARD);
    for (unsigned i = 0; i < nat->n_guarded; i++)
        add_guard(&table, nat->guarded[i]);
    filter_inward(&table, nat);
    filter_outward(&table, nat);
    protect_loopback(&table, nat);
    add_masquerading(&table, nat);
    if (nat->n_forwards > 0)
        add_forwards(&table, nat);
    return commit(nl, &table, who);
}

/*
 * Rules: their notation, read and written by tables.
 *
 * Matches nothing; net/classifier.c does. Any thread; no state.
 */
#include "net/rule.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/vlan.h"
#include "vmm/util/log.h"

#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_IPV6 0x86DD

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMP6 58
#define PROTO_SCTP 132

struct name {
    const char *name;
    uint32_t value;
};

static const struct name types[] = {
    {"ip", TYPE_IPV4}, {"ip6", TYPE_IPV6}, {"arp", TYPE_ARP}, {NULL, 0},
};

static const struct name protocols[] = {
    {"icmp", PROTO_ICMP},   {"tcp", PROTO_TCP},   {"udp", PROTO_UDP},
    {"icmp6", PROTO_ICMP6}, {"sctp", PROTO_SCTP}, {NULL, 0},
};

/* RFC 9293 §3.1. */
static const struct name flags[] = {
    {"fin", 0x01}, {"syn", 0x02}, {"rst", 0x04}, {"psh", 0x08}, {"ack", 0x10},
    {"urg", 0x20}, {"ece", 0x40}, {"cwr", 0x80}, {NULL, 0},
};

static const struct option_choice fragments[] = {
    {"any", RULE_ANY_FRAGMENT}, {"no", RULE_WHOLE}, {"first", RULE_FIRST},
    {"later", RULE_LATER},      {NULL, 0},
};

/* ---- pieces of text ---- */

bool net_name_valid(const char *name)
{
    size_t length = strlen(name);

    for (const char *c = name; *c; c++) {
        if (!isalnum((unsigned char)*c) && *c != '.' && *c != '_' && *c != '-')
            return false;
    }
    return length > 0 && length < NET_NAME_MAX;
}

int net_parse_name(const struct option_key *key, const char *text, void *field)
{
    (void)key;
    if (!net_name_valid(text))
        return -EINVAL;
    memset(field, 0, NET_NAME_MAX);
    memcpy(field, text, strlen(text));
    return 0;
}

/* A number of at most `max`, decimal or, with 0x, hexadecimal. Returns what follows, or NULL. */
static const char *read_number(const char *text, uint32_t max, uint32_t *out)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end;
    unsigned long long value;

    text += hex ? 2 : 0;
    if (hex ? !isxdigit((unsigned char)*text) : !isdigit((unsigned char)*text))
        return NULL;
    errno = 0;
    value = strtoull(text, &end, hex ? 16 : 10);
    if (errno || value > max)
        return NULL;
    *out = (uint32_t)value;
    return end;
}

static const struct name *find_name(const struct name *names, const char *text, size_t length)
{
    for (; names->name; names++) {
        if (strlen(names->name) == length && memcmp(names->name, text, length) == 0)
            return names;
    }
    return NULL;
}

static int parse_named(const struct name *names, const char *text, uint32_t max,
                       struct rule_number *to)
{
    const struct name *name = find_name(names, text, strlen(text));
    struct rule_number number = {.given = true};
    const char *end = text;

    if (name)
        number.value = name->value;
    else
        end = read_number(text, max, &number.value);
    if (!name && (!end || *end))
        return -EINVAL;
    *to = number;
    return 0;
}

static int parse_type(const struct option_key *key, const char *text, void *field)
{
    (void)key;
    return parse_named(types, text, UINT16_MAX, field);
}

static int parse_proto(const struct option_key *key, const char *text, void *field)
{
    (void)key;
    return parse_named(protocols, text, UINT8_MAX, field);
}

static int parse_number(const struct option_key *key, const char *text, void *field)
{
    static const struct name none[] = {{NULL, 0}};

    return parse_named(none, text, (uint32_t)key->max, field);
}

static int parse_range(const struct option_key *key, const char *text, void *field)
{
    uint32_t first, last;
    const char *end = read_number(text, UINT16_MAX, &first);

    (void)key;
    last = first;
    if (end && *end == '-')
        end = read_number(end + 1, UINT16_MAX, &last);
    if (!end || *end || last < first)
        return -EINVAL;
    *(struct rule_range *)field = (struct rule_range){true, (uint16_t)first, (uint16_t)last};
    return 0;
}

static const char *read_mac(const char *text, uint8_t mac[6])
{
    for (unsigned i = 0; i < 6; i++) {
        unsigned value;

        if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1]) ||
            (i < 5 && text[2] != ':'))
            return NULL;
        sscanf(text, "%2x", &value);
        mac[i] = (uint8_t)value;
        text += i < 5 ? 3 : 2;
    }
    return text;
}

static int parse_mac(const struct option_key *key, const char *text, void *field)
{
    struct rule_mac mac;
    const char *end = read_mac(text, mac.value);

    (void)key;
    memset(mac.mask, 0xFF, sizeof(mac.mask));
    if (end && *end == '/')
        end = read_mac(end + 1, mac.mask);
    if (!end || *end)
        return -EINVAL;
    for (unsigned i = 0; i < 6; i++)
        mac.value[i] &= mac.mask[i];
    *(struct rule_mac *)field = mac;
    return 0;
}

static void clear_behind(uint8_t *bytes, unsigned length, unsigned prefix)
{
    for (unsigned bit = prefix; bit < length * 8; bit++)
        bytes[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
}

static int parse_address(const struct option_key *key, const char *text, void *field)
{
    struct rule_address address = {0};
    char copy[INET6_ADDRSTRLEN];
    const char *slash = strchrnul(text, '/');
    uint32_t prefix;
    unsigned bits;

    (void)key;
    if ((size_t)(slash - text) >= sizeof(copy))
        return -EINVAL;
    memcpy(copy, text, (size_t)(slash - text));
    copy[slash - text] = '\0';
    if (inet_pton(AF_INET, copy, address.bytes) == 1)
        address.family = 4;
    else if (inet_pton(AF_INET6, copy, address.bytes) == 1)
        address.family = 6;
    else
        return -EINVAL;
    bits = address.family == 4 ? 32 : 128;
    prefix = bits;
    if (*slash) {
        const char *end = read_number(slash + 1, bits, &prefix);

        if (!end || *end)
            return -EINVAL;
    }
    address.prefix = (uint8_t)prefix;
    clear_behind(address.bytes, bits / 8, prefix);
    *(struct rule_address *)field = address;
    return 0;
}

/* "+syn-ack": SYN set, ACK clear, the others either. */
static int parse_flags(const struct option_key *key, const char *text, void *field)
{
    struct rule_flags result = {0};

    (void)key;
    while (*text == '+' || *text == '-') {
        size_t length = strcspn(text + 1, "+-");
        const struct name *flag = find_name(flags, text + 1, length);

        if (!flag || result.mask & flag->value)
            return -EINVAL;
        result.mask |= (uint8_t)flag->value;
        result.value |= *text == '+' ? (uint8_t)flag->value : 0;
        text += 1 + length;
    }
    if (*text || !result.mask)
        return -EINVAL;
    *(struct rule_flags *)field = result;
    return 0;
}

/* ---- actions: "deny", or some of allow, mirror:PORT, redirect:PORT, vlan:N with '+' between
 * ---- */

/* What stands behind "NAME:", or NULL. */
static const char *argument_of(const char *item, const char *name)
{
    size_t length = strlen(name);

    return strncmp(item, name, length) == 0 && item[length] == ':' ? item + length + 1 : NULL;
}

static int parse_target(const char *name, char to[NET_NAME_MAX])
{
    if (to[0])
        return -EINVAL;
    return net_parse_name(NULL, name, to);
}

static int parse_action_item(const char *item, struct rule_action *action)
{
    const char *argument;
    uint32_t vlan;

    if (strcmp(item, "allow") == 0)
        return 0;
    argument = argument_of(item, "mirror");
    if (argument)
        return parse_target(argument, action->mirror);
    argument = argument_of(item, "redirect");
    if (argument)
        return parse_target(argument, action->redirect);
    argument = argument_of(item, "vlan");
    if (!argument || action->set_vlan)
        return -EINVAL;
    argument = read_number(argument, VLAN_MAX, &vlan);
    if (!argument || *argument)
        return -EINVAL;
    action->set_vlan = true;
    action->vlan = (uint16_t)vlan;
    return 0;
}

static int parse_action(const struct option_key *key, const char *text, void *field)
{
    struct rule_action action = {.deny = strcmp(text, "deny") == 0};
    char copy[RULE_TEXT_MAX];
    char *rest = copy, *item;
    int error = 0;

    (void)key;
    if (strlen(text) >= sizeof(copy))
        return -EINVAL;
    memcpy(copy, text, strlen(text) + 1);
    while (!action.deny && error == 0 && (item = strsep(&rest, "+")) != NULL)
        error = parse_action_item(item, &action);
    if (error == 0)
        *(struct rule_action *)field = action;
    return error;
}

/* ---- the whole rule ---- */

#define FIELD(member) .offset = offsetof(struct rule, member)
#define MAC_EXPECTS "an address such as 52:54:00:12:34:56, or ADDRESS/MASK"
#define ADDRESS_EXPECTS "an address such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32"
#define RANGE_EXPECTS "a port, or a range such as 8000-8080"

static const struct option_key keys[] = {
    {.name = "priority", .parse = option_parse_number, FIELD(priority), .max = RULE_PRIORITY_MAX},
    {.name = "in", .parse = net_parse_name, FIELD(in), .expects = "a port's name"},
    {.name = "vlan", .parse = parse_number, FIELD(vlan), .max = VLAN_MAX,
     .expects = "a number from 0 to 4094"},
    {.name = "type", .parse = parse_type, FIELD(type),
     .expects = "ip, ip6, arp or an ethertype such as 0x88cc"},
    {.name = "src-mac", .parse = parse_mac, FIELD(src_mac), .expects = MAC_EXPECTS},
    {.name = "dst-mac", .parse = parse_mac, FIELD(dst_mac), .expects = MAC_EXPECTS},
    {.name = "src", .parse = parse_address, FIELD(src), .expects = ADDRESS_EXPECTS},
    {.name = "dst", .parse = parse_address, FIELD(dst), .expects = ADDRESS_EXPECTS},
    {.name = "proto", .parse = parse_proto, FIELD(proto),
     .expects = "tcp, udp, icmp, icmp6, sctp or a number from 0 to 255"},
    {.name = "sport", .parse = parse_range, FIELD(sport), .expects = RANGE_EXPECTS},
    {.name = "dport", .parse = parse_range, FIELD(dport), .expects = RANGE_EXPECTS},
    {.name = "icmp-type", .parse = parse_number, FIELD(icmp_type), .max = UINT8_MAX,
     .expects = "a number from 0 to 255"},
    {.name = "flags", .parse = parse_flags, FIELD(flags),
     .expects = "TCP flags such as +syn-ack"},
    {.name = "fragment", .parse = option_parse_choice, FIELD(fragment), .choices = fragments},
    {.name = "action", .parse = parse_action, FIELD(action), .required = true,
     .expects = "deny, or some of allow, mirror:PORT, redirect:PORT, vlan:N joined by '+',"},
    {0},
};

/* What does not fit together, or NULL. */
static const char *check(const struct rule *rule)
{
    uint32_t type = rule->type.value, proto = rule->proto.value;
    bool ip = !rule->type.given || type == TYPE_IPV4 || type == TYPE_IPV6;
    bool icmp = rule->proto.given && (proto == PROTO_ICMP || proto == PROTO_ICMP6);
    bool ports = rule->proto.given &&
                 (proto == PROTO_TCP || proto == PROTO_UDP || proto == PROTO_SCTP);
    uint8_t family = rule->src.family ? rule->src.family : rule->dst.family;

    if (rule->src.family && rule->dst.family && rule->src.family != rule->dst.family)
        return "src= and dst= are of different kinds";
    if (family == 4 && rule->type.given && type != TYPE_IPV4 && type != TYPE_ARP)
        return "IPv4 addresses need type=ip or type=arp";
    if (family == 6 && rule->type.given && type != TYPE_IPV6)
        return "IPv6 addresses need type=ip6";
    if ((rule->proto.given || rule->fragment) && !ip)
        return "proto= and fragment= need type=ip or type=ip6";
    if ((rule->sport.given || rule->dport.given) && !ports)
        return "sport= and dport= need proto=tcp, udp or sctp";
    if (rule->flags.mask && !(rule->proto.given && proto == PROTO_TCP))
        return "flags= needs proto=tcp";
    if (rule->icmp_type.given && !icmp)
        return "icmp-type= needs proto=icmp or icmp6";
    if (rule->fragment == RULE_LATER &&
        (rule->sport.given || rule->dport.given || rule->flags.mask || rule->icmp_type.given))
        return "later fragments have no ports, flags or types";
    return NULL;
}

int rule_parse(const char *where, const char *text, struct rule *rule)
{
    const char *why;
    int error;

    memset(rule, 0, sizeof(*rule)); /* padding too: rules are compared as bytes */
    rule->priority = RULE_PRIORITY_DEFAULT;
    error = options_parse_list(where, text, keys, rule);
    if (error < 0)
        return error;
    why = check(rule);
    if (why) {
        log_error("%s: '%s': %s", where, text, why);
        return -EINVAL;
    }
    return 0;
}

/* ---- writing ---- */

struct writer {
    char *at;
    size_t left;
};

__attribute__((format(printf, 2, 3)))
static void put(struct writer *writer, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(writer->at, writer->left, format, args);
    va_end(args);
    if (n < 0)
        return;
    if ((size_t)n >= writer->left)
        n = writer->left > 0 ? (int)writer->left - 1 : 0;
    writer->at += n;
    writer->left -= (size_t)n;
}

static void put_named(struct writer *writer, const char *key, const struct name *names,
                      const struct rule_number *number)
{
    if (!number->given)
        return;
    for (; names->name; names++) {
        if (names->value == number->value) {
            put(writer, ",%s=%s", key, names->name);
            return;
        }
    }
    put(writer, names == types + 3 ? ",%s=0x%04x" : ",%s=%u", key, number->value);
}

static void put_mac(struct writer *writer, const char *key, const struct rule_mac *mac)
{
    static const uint8_t none[6], all[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    const uint8_t *v = mac->value, *m = mac->mask;

    if (memcmp(m, none, 6) == 0)
        return;
    put(writer, ",%s=%02x:%02x:%02x:%02x:%02x:%02x", key, v[0], v[1], v[2], v[3], v[4], v[5]);
    if (memcmp(m, all, 6) != 0)
        put(writer, "/%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}

static void put_address(struct writer *writer, const char *key, const struct rule_address *address)
{
    char text[INET6_ADDRSTRLEN];

    if (!address->family)
        return;
    inet_ntop(address->family == 4 ? AF_INET : AF_INET6, address->bytes, text, sizeof(text));
    put(writer, ",%s=%s/%u", key, text, address->prefix);
}

static void put_range(struct writer *writer, const char *key, const struct rule_range *range)
{
    if (range->given && range->first == range->last)
        put(writer, ",%s=%u", key, range->first);
    else if (range->given)
        put(writer, ",%s=%u-%u", key, range->first, range->last);
}

static void put_flags(struct writer *writer, const struct rule_flags *match)
{
    if (!match->mask)
        return;
    put(writer, ",flags=");
    for (const struct name *flag = flags; flag->name; flag++) {
        if (match->mask & flag->value)
            put(writer, "%c%s", match->value & flag->value ? '+' : '-', flag->name);
    }
}

static void put_action(struct writer *writer, const struct rule_action *action)
{
    const char *between = "";

    put(writer, ",action=%s", action->deny ? "deny" : "");
    if (action->mirror[0]) {
        put(writer, "mirror:%s", action->mirror);
        between = "+";
    }
    if (action->set_vlan) {
        put(writer, "%svlan:%u", between, action->vlan);
        between = "+";
    }
    if (action->redirect[0]) {
        put(writer, "%sredirect:%s", between, action->redirect);
        between = "+";
    }
    if (!action->deny && !*between)
        put(writer, "allow");
}

void rule_format(const struct rule *rule, char *to, size_t size)
{
    static const struct name none[] = {{NULL, 0}};
    struct writer writer = {to, size};

    put(&writer, "%u", rule->priority);
    if (rule->in[0])
        put(&writer, ",in=%s", rule->in);
    put_named(&writer, "vlan", none, &rule->vlan);
    put_named(&writer, "type", types, &rule->type);
    put_mac(&writer, "src-mac", &rule->src_mac);
    put_mac(&writer, "dst-mac", &rule->dst_mac);
    put_address(&writer, "src", &rule->src);
    put_address(&writer, "dst", &rule->dst);
    put_named(&writer, "proto", protocols, &rule->proto);
    put_range(&writer, "sport", &rule->sport);
    put_range(&writer, "dport", &rule->dport);
    put_named(&writer, "icmp-type", none, &rule->icmp_type);
    put_flags(&writer, &rule->flags);
    if (rule->fragment)
        put(&writer, ",fragment=%s", fragments[rule->fragment].name);
    put_action(&writer, &rule->action);
}

/*
 * ARP, the IPv4 header, answers to pings; checksums.
 *
 * No options, no fragments, no routes but a gateway, no DHCP: the command line has the addresses.
 * The one ARP entry is asked for at the start and kept.
 * Thread: the first processor. Texts: RFC 826, 791, 792, 1071.
 */
#include "tcp.h"

#include <stddef.h>

#include "boot.h"
#include "io.h"
#include "memory.h"
#include "timing.h"

#define LIMIT   (10 * SECOND)
#define RETRY   (200 * MILLISECOND)
#define TTL     64
#define PING_MAX 1500u

static uint32_t own, router;
static uint32_t asked_for; /* by ARP, and answered by */
static uint8_t answered_by[6];
static bool answered;

uint64_t ip_sum(const void *bytes, uint32_t length, uint64_t sum)
{
    const uint8_t *at = bytes;
    uint64_t word = 0;

    for (; length >= 8; length -= 8, at += 8) {
        __builtin_memcpy(&word, at, 8);
        sum += word;
        sum += sum < word;
    }
    word = 0;
    for (uint32_t i = 0; i < length; i++)
        word |= (uint64_t)at[i] << (8 * i);
    sum += word;
    return sum + (sum < word);
}

uint16_t ip_fold(uint64_t sum)
{
    while (sum >> 16 != 0)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)~sum;
}

uint64_t ip_pseudo_sum(uint32_t from, uint32_t to, uint32_t length)
{
    return (uint64_t)from + to + swap16(IP_TCP) + swap16((uint16_t)length);
}

uint32_t ip_argument(const char *name, uint32_t fallback)
{
    char text[16];
    uint32_t address = 0, octet = 0;

    if (!arg_text(name, text, sizeof(text)))
        return fallback;
    for (const char *at = text;; at++) {
        if (*at >= '0' && *at <= '9') {
            octet = octet * 10 + (uint32_t)(*at - '0');
            continue;
        }
        address = address << 8 | (octet & 0xFF);
        octet = 0;
        if (*at == '\0')
            return swap32(address);
    }
}

void ip_start(uint32_t address, uint32_t gateway)
{
    own = address;
    router = gateway;
}

uint32_t ip_address(void)
{
    return own;
}

static const struct net_header plain;

static void send_arp(const uint8_t *to, uint16_t operation, const uint8_t *mac, uint32_t address)
{
    struct {
        struct ether ether;
        struct arp arp;
    } __attribute__((packed)) frame = {
        .ether = { .type = swap16(ETHER_ARP) },
        .arp = { swap16(1), swap16(ETHER_IPV4), 6, 4, swap16(operation), { 0 }, own, { 0 },
                 address },
    };

    memcpy(frame.ether.to, to, 6);
    memcpy(frame.ether.from, nic_mac, 6);
    memcpy(frame.arp.sender_mac, nic_mac, 6);
    memcpy(frame.arp.target_mac, mac, 6);
    nic_send(&plain, &frame, sizeof(frame), NULL, 0);
}

bool ip_resolve(uint32_t address, uint8_t *mac)
{
    static const uint8_t broadcast[6] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF }, none[6];
    struct deadline limit = deadline_in(LIMIT);

    asked_for = router != 0 ? router : address;
    answered = false;
    while (!deadline_over(&limit)) {
        struct deadline retry = deadline_in(RETRY);

        send_arp(broadcast, 1, none, asked_for);
        nic_flush();
        while (!answered && !deadline_over(&retry)) {
            ip_poll(16);
            nic_flush();
        }
        if (answered) {
            memcpy(mac, answered_by, 6);
            return true;
        }
    }
    return false;
}

static void take_arp(const struct nic_frame *frame)
{
    const struct ether *ether = (const struct ether *)frame->piece[0].bytes;
    const struct arp *arp = (const struct arp *)(ether + 1);

    if (frame->piece[0].length < sizeof(*ether) + sizeof(*arp))
        return;
    if (arp->operation == swap16(1) && arp->target_ip == own && own != 0) {
        send_arp(arp->sender_mac, 2, arp->sender_mac, arp->sender_ip);
    } else if (arp->operation == swap16(2) && arp->sender_ip == asked_for) {
        memcpy(answered_by, arp->sender_mac, 6);
        answered = true;
    }
}

static void put_ip(struct ether *ether, const uint8_t *mac, uint8_t protocol, uint32_t to,
                   uint32_t length)
{
    struct ip *ip = (struct ip *)(ether + 1);

    memcpy(ether->to, mac, 6);
    memcpy(ether->from, nic_mac, 6);
    ether->type = swap16(ETHER_IPV4);
    *ip = (struct ip){ .version_length = 0x45, .fragment = swap16(0x4000), .ttl = TTL,
                       .protocol = protocol, .from = own, .to = to };
    ip->length = swap16((uint16_t)(sizeof(*ip) + length));
    ip->checksum = ip_fold(ip_sum(ip, sizeof(*ip), 0));
}

void ip_put(struct ether *ether, const uint8_t *mac, uint32_t to, uint32_t length)
{
    put_ip(ether, mac, IP_TCP, to, length);
}

/* An echo comes back as it was but for its type. Those of several pieces are not answered. */
static void answer_ping(const struct ether *from, const struct ip *ip, uint32_t length)
{
    static uint8_t data[64][PING_MAX]; /* they stay until they are sent */
    static unsigned turn;
    uint8_t head[sizeof(struct ether) + sizeof(*ip)];
    struct icmp *icmp = (struct icmp *)data[turn++ % 64];

    if (length < sizeof(*icmp) || length > PING_MAX || ((const struct icmp *)(ip + 1))->type != 8)
        return;
    memcpy(icmp, ip + 1, length);
    icmp->type = 0;
    icmp->checksum = 0;
    icmp->checksum = ip_fold(ip_sum(icmp, length, 0));
    put_ip((struct ether *)head, from->from, IP_ICMP, ip->from, length);
    nic_send(&plain, head, sizeof(head), icmp, length);
}

static void take_ip(const struct nic_frame *frame)
{
    const struct ether *ether = (const struct ether *)frame->piece[0].bytes;
    const struct ip *ip = (const struct ip *)(ether + 1);
    uint32_t first = frame->piece[0].length;

    if (first < sizeof(*ether) + sizeof(*ip) || ip->version_length != 0x45 || ip->to != own ||
        swap16(ip->length) < sizeof(*ip) || swap16(ip->length) + sizeof(*ether) > frame->length)
        return;
    if (ip->protocol == IP_TCP)
        connection_input(frame);
    else if (ip->protocol == IP_ICMP && first >= swap16(ip->length) + sizeof(*ether))
        answer_ping(ether, ip, swap16(ip->length) - (uint32_t)sizeof(*ip));
}

bool ip_poll(unsigned budget)
{
    static struct nic_frame frame;
    unsigned n = 0;

    for (; n < budget && nic_receive(&frame); n++) {
        uint16_t type = frame.piece[0].length >= sizeof(struct ether)
                            ? ((const struct ether *)frame.piece[0].bytes)->type
                            : 0;
        if (type == swap16(ETHER_ARP))
            take_arp(&frame);
        else if (type == swap16(ETHER_IPV4))
            take_ip(&frame);
        nic_give_back(&frame);
    }
    return n > 0;
}

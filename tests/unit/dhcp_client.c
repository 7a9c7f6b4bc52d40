/*
 * A DHCP client's messages and a server's answers. Written from RFC 2131 and 2132, apart from the
 * server.
 */
#include "tests/unit/dhcp_client.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define IP 14
#define UDP (IP + 20)
#define BOOTP (UDP + 8)
#define OPTIONS (BOOTP + 240)

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static unsigned sum16(const uint8_t *at, size_t length, unsigned long sum)
{
    for (size_t i = 0; i < length; i += 2)
        sum += i + 1 < length ? get16(at + i) : (unsigned)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (unsigned)sum;
}

static uint8_t *option(uint8_t *at, uint8_t code, const void *value, size_t length)
{
    *at++ = code;
    *at++ = (uint8_t)length;
    memcpy(at, value, length);
    return at + length;
}

size_t dhcp_client_frame(const struct dhcp_client *client, uint8_t *frame)
{
    uint8_t *at = frame + OPTIONS;
    size_t length;

    memset(frame, 0, DHCP_CLIENT_FRAME_MAX);
    memset(frame, 0xFF, 6);
    memcpy(frame + 6, client->mac, 6);
    put16(frame + 12, 0x0800);
    frame[BOOTP] = 1;
    frame[BOOTP + 1] = 1;
    frame[BOOTP + 2] = 6;
    memcpy(frame + BOOTP + 4, &client->xid, 4);
    put16(frame + BOOTP + 10, client->flags);
    memcpy(frame + BOOTP + 12, &client->ciaddr, 4);
    memcpy(frame + BOOTP + 24, &client->giaddr, 4);
    memcpy(frame + BOOTP + 28, client->mac, 6);
    put16(frame + BOOTP + 236, 0x6382);
    put16(frame + BOOTP + 238, 0x5363);
    at = option(at, 53, &client->type, 1);
    if (client->address)
        at = option(at, 50, &client->address, 4);
    if (client->server)
        at = option(at, 54, &client->server, 4);
    if (client->wanted)
        at = option(at, 55, client->wanted, client->n_wanted);
    *at++ = 255;
    length = (size_t)(at - frame);
    frame[IP] = 0x45;
    put16(frame + IP + 2, (unsigned)length - IP);
    frame[IP + 8] = 64;
    frame[IP + 9] = 17;
    memset(frame + IP + 16, 0xFF, 4);
    put16(frame + UDP, 68);
    put16(frame + UDP + 2, 67);
    put16(frame + UDP + 4, (unsigned)length - UDP);
    return length;
}

static void take_option(struct dhcp_reply *reply, uint8_t code, const uint8_t *value, size_t length)
{
    if (code == 53 && length == 1)
        reply->type = value[0];
    else if (code == 54 && length == 4)
        memcpy(&reply->server, value, 4);
    else if (code == 51 && length == 4)
        reply->lease = get32(value);
    else if (code == 58 && length == 4)
        reply->t1 = get32(value);
    else if (code == 59 && length == 4)
        reply->t2 = get32(value);
    else if (code == 1 && length == 4)
        reply->mask = get32(value);
    else if (code == 28 && length == 4)
        reply->broadcast = get32(value);
    else if (code == 3 && length == 4)
        memcpy(&reply->router, value, 4);
    else if (code == 26 && length == 2)
        reply->mtu = get16(value);
    else if (code == 15)
        snprintf(reply->domain, sizeof(reply->domain), "%.*s", (int)length, value);
    for (size_t i = 0; code == 6 && i + 4 <= length && reply->n_dns < 4; i += 4)
        memcpy(&reply->dns[reply->n_dns++], value + i, 4);
}

static int take_options(struct dhcp_reply *reply, const uint8_t *at, const uint8_t *end)
{
    while (at < end && *at != 255) {
        if (*at == 0) {
            at++;
            continue;
        }
        if (end - at < 2 || end - at - 2 < at[1])
            return -1;
        take_option(reply, at[0], at + 2, at[1]);
        at += at[1] + 2;
    }
    return at < end ? 0 : -1;
}

int dhcp_client_read(const uint8_t *frame, size_t length, struct dhcp_reply *reply)
{
    size_t ip_length;

    *reply = (struct dhcp_reply){0};
    if (length < OPTIONS + 60 || get16(frame + 12) != 0x0800 || frame[IP] != 0x45)
        return -1;
    ip_length = get16(frame + IP + 2);
    if (ip_length + IP != length || get16(frame + UDP + 4) + 20 != ip_length ||
        frame[IP + 9] != 17 || get16(frame + UDP) != 67 || get16(frame + UDP + 2) != 68)
        return -1;
    if (sum16(frame + IP, 20, 0) != 0xFFFF ||
        sum16(frame + IP + 12, length - IP - 12, 17 + ip_length - 20) != 0xFFFF)
        return -1;
    if (frame[BOOTP] != 2 || get32(frame + BOOTP + 236) != 0x63825363)
        return -1;
    memcpy(reply->to, frame, 6);
    memcpy(&reply->ip_to, frame + IP + 16, 4);
    memcpy(&reply->xid, frame + BOOTP + 4, 4);
    memcpy(&reply->yiaddr, frame + BOOTP + 16, 4);
    return take_options(reply, frame + OPTIONS, frame + length);
}

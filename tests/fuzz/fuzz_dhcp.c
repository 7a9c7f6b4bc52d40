/*
 * The DHCP server against any frames: the input is a row of records, each a byte of seconds that
 * pass, a byte that says what the record is, and a frame or the parts of a plausible message. Each
 * answer must be well formed; and by a naive model of who was granted what until when, no two
 * stations have one address at a time, and no address is outside of the network.
 */
#include <arpa/inet.h>
#include <string.h>

#include "net/dhcp.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"

#define N_STATIONS 24
#define LEASE 200u
#define IP_AT 14u
#define BOOTP_AT 42u
#define OPTIONS_AT (BOOTP_AT + 240u)

struct grant {
    uint32_t address; /* host's order */
    uint64_t until;
};

static struct grant grants[N_STATIONS];

static void no_log(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static unsigned sum16(const uint8_t *at, size_t length, unsigned long sum)
{
    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? at[i] : (unsigned)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (unsigned)sum;
}

/* Of one of the model's stations: its number; else N_STATIONS. */
static unsigned station_of(const uint8_t *mac)
{
    return mac[0] == 2 && !mac[1] && !mac[2] && !mac[3] && !mac[4] && mac[5] < N_STATIONS
               ? mac[5]
               : N_STATIONS;
}

/* The type in an answer, having walked its options to their end. */
static uint8_t answer_type(const uint8_t *answer, size_t length)
{
    uint8_t type = 0;
    size_t at = OPTIONS_AT;

    while (at < length && answer[at] != 255) {
        FUZZ_CHECK(at + 1 < length && at + 2 + answer[at + 1] <= length);
        if (answer[at] == 53)
            type = answer[at + 2];
        at += 2u + answer[at + 1];
    }
    FUZZ_CHECK(at < length);
    return type;
}

static void note_grant(const uint8_t *answer, uint64_t now)
{
    unsigned station = station_of(answer + BOOTP_AT + 28);
    uint32_t address;

    memcpy(&address, answer + BOOTP_AT + 16, 4);
    address = ntohl(address);
    if (address == 0)
        return; /* to INFORM */
    FUZZ_CHECK(address >> 5 == 0x0A010200u >> 5 && (address & 31) > 1 && (address & 31) < 31);
    for (unsigned i = 0; i < N_STATIONS; i++)
        FUZZ_CHECK(i == station || grants[i].until <= now || grants[i].address != address);
    if (station < N_STATIONS)
        grants[station] = (struct grant){address, now + LEASE};
}

static void check_answer(const uint8_t *answer, size_t length, uint64_t now)
{
    uint8_t type;

    FUZZ_CHECK(length >= OPTIONS_AT + 60 && length <= DHCP_FRAME_MAX);
    FUZZ_CHECK(get16(answer + IP_AT + 2) == length - IP_AT);
    FUZZ_CHECK(sum16(answer + IP_AT, 20, 0) == 0xFFFF);
    FUZZ_CHECK(sum16(answer + IP_AT + 12, length - IP_AT - 12, 17 + length - IP_AT - 20) == 0xFFFF);
    type = answer_type(answer, length);
    FUZZ_CHECK(type == 2 || type == 5 || type == 6);
    if (type == 5)
        note_grant(answer, now);
}

/* A message with the fields that count from six bytes; its length. */
static size_t compose(const uint8_t *from, uint8_t *frame)
{
    const uint32_t cookie = htonl(0x63825363u);
    uint8_t *bootp = frame + BOOTP_AT, *at = frame + OPTIONS_AT;
    size_t length;

    memset(frame, 0, 400);
    frame[12] = 8;
    bootp[0] = bootp[1] = 1;
    bootp[2] = 6;
    bootp[10] = from[4];
    if (from[2])
        memcpy(bootp + 12, (const uint8_t[]){10, 1, 2, from[2]}, 4);
    bootp[28] = 2;
    bootp[33] = from[0] % N_STATIONS;
    memcpy(frame + 6, bootp + 28, 6);
    memcpy(bootp + 236, &cookie, 4);
    memcpy(at, (const uint8_t[]){53, 1, (uint8_t)(from[1] % 9)}, 3);
    at += 3;
    if (from[3]) {
        memcpy(at, (const uint8_t[]){50, 4, 10, 1, 2, from[3]}, 6);
        at += 6;
    }
    if (from[5] & 1) {
        memcpy(at, (const uint8_t[]){54, 4, 10, 1, 2, (uint8_t)(from[5] & 2 ? 1 : 2)}, 6);
        at += 6;
    }
    *at++ = 255;
    length = (size_t)(at - frame);
    memcpy(frame + IP_AT, (const uint8_t[]){0x45, 0, (uint8_t)((length - 14) >> 8),
                                            (uint8_t)(length - 14), 0, 0, 0, 0, 64, 17}, 10);
    memcpy(frame + 36, (const uint8_t[]){0, 67, (uint8_t)((length - 34) >> 8),
                                         (uint8_t)(length - 34)}, 4);
    return length;
}

/* A station that gives its address back, or says that it is bad, is not in the model any more. */
static void note_message(const uint8_t *frame, size_t length)
{
    unsigned station = length >= OPTIONS_AT ? station_of(frame + BOOTP_AT + 28) : N_STATIONS;
    uint8_t type = length >= OPTIONS_AT + 3 && frame[OPTIONS_AT] == 53 ? frame[OPTIONS_AT + 2] : 0;

    if (station < N_STATIONS && type != 1 && type != 3 && type != 8)
        grants[station] = (struct grant){0};
}

static void put_frame(struct dhcp_server *server, const uint8_t *frame, size_t length, uint64_t now)
{
    uint8_t answer[DHCP_FRAME_MAX];
    size_t got;

    (void)dhcp_is_request(frame, length);
    note_message(frame, length);
    got = dhcp_answer(server, frame, length, now, answer);
    if (got > 0) {
        FUZZ_CHECK(dhcp_is_request(frame, length));
        check_answer(answer, got, now);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct dhcp_fixed fixed = {{2, 0, 0, 0, 0, 3}, {0}};
    struct dhcp_fixed there = fixed;
    struct dhcp_server server = {.config = {.name = "net0",
                                            .address = {htonl(0x0A010201)},
                                            .prefix = 27,
                                            .router = {htonl(0x0A010201)},
                                            .domain = "lab.test",
                                            .mtu = 1500,
                                            .lease = LEASE}};
    uint8_t frame[400];
    uint64_t now = 1;

    log_set_sink(no_log);
    memset(grants, 0, sizeof(grants));
    there.address.s_addr = htonl(0x0A010213);
    if (dhcp_leases_create(&server.leases, (struct in_addr){htonl(0x0A010200)}, 27,
                           server.config.address, &there, 1) < 0)
        return 0;
    while (size >= 8) {
        now += data[0];
        if (data[1] & 1) {
            size_t length = (size_t)data[1] >> 1 | (size_t)(data[2] & 7) << 7;

            length = length < size - 3 ? length : size - 3;
            put_frame(&server, data + 3, length, now);
            data += 3 + length;
            size -= 3 + length;
        } else {
            put_frame(&server, frame, compose(data + 2, frame), now);
            data += 8;
            size -= 8;
        }
    }
    dhcp_leases_destroy(server.leases);
    return 0;
}

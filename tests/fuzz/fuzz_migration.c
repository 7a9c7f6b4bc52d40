/*
 * Any bytes as what a source says: refused, or a hello, pages and state that are all of one guest's.
 *
 * As with saved guests, checksums would keep a fuzzer out: the input says what the sections hold,
 * and they are framed here. The input's first byte chooses: bit 0: what is read, the hello or what
 * follows it; bit 1: the bytes as they are, without a frame of ours; bit 2: pages may come compressed
 * by LZ4, as a hello said. A section: its kind, its length in units of eight, its bytes.
 */
#include <endian.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/pages.h"
#include "migration/target.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"

#define SIZE (1 * MIB)
#define LENGTH_MAX 65536 /* less than a socket's buffer, as are */
#define SECTIONS_MAX 64u

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void send_section(struct link *link, const uint8_t *data, size_t length, uint8_t kind)
{
    char id[2] = {(char)('0' + kind / 32), '\0'};
    unsigned number = kind % 32;

    if (number >= 13 && number <= 15) /* which nothing has */
        number += STREAM_TRANSFER - 13;
    else if (number >= 27 && number <= 29)
        number += STREAM_FRAMES - 27;
    FUZZ_CHECK(link_send(link, (enum stream_kind)number, id, data, length) == 0);
}

static void send_sections(struct link *link, const uint8_t *data, size_t size, bool header)
{
    if (header)
        FUZZ_CHECK(link_send_header(link) == 0);
    for (unsigned n = 0; n < SECTIONS_MAX && size >= 2; n++) {
        size_t length = (size_t)data[1] * 8;
        uint8_t kind = data[0];

        data += 2;
        size -= 2;
        if (length > size)
            length = size;
        send_section(link, data, length, kind);
        data += length;
        size -= length;
    }
}

static void read_hello(struct target *target)
{
    struct snapshot hello = {0};
    int fd = -1, err = target_hello(target, &hello, &fd);

    FUZZ_CHECK(err == 0 || fd < 0);
    for (unsigned i = 0; i < hello.n_sections; i++)
        FUZZ_CHECK(((char *)hello.sections[i].payload)[hello.sections[i].head.length] == '\0');
    if (fd >= 0)
        close(fd);
    snapshot_fini(&hello);
}

static void send_transfer(struct link *link)
{
    const struct wire_transfer transfer = {.streams = htole32(1), .method = htole32(COMPRESS_LZ4)};

    FUZZ_CHECK(link_send_header(link) == 0);
    FUZZ_CHECK(link_send(link, STREAM_TRANSFER, "", &transfer, sizeof(transfer)) == 0);
    FUZZ_CHECK(link_send(link, STREAM_END, "", "", 0) == 0);
}

static void read_guest(struct target *target)
{
    const struct memory_config config = {.size = SIZE};
    struct snapshot state = {0};
    struct target_status status;
    struct guest_memory *mem;

    FUZZ_CHECK(memory_create(&mem, &config) == 0);
    if (target_receive(target, mem, &state) == 0) {
        target_get_status(target, &status);
        FUZZ_CHECK(status.stopped_ns > 0);
    }
    snapshot_fini(&state);
    memory_destroy(mem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct link *source, *here;
    struct target *target;
    bool hello, packed;
    int pair[2];

    if (size == 0 || size > LENGTH_MAX)
        return 0;
    log_set_sink(quiet);
    hello = data[0] & 1;
    packed = (data[0] & 6) == 4;
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    if (data[0] & 2) {
        FUZZ_CHECK(write(pair[0], data + 1, size - 1) == (ssize_t)(size - 1));
        close(pair[0]);
    } else {
        FUZZ_CHECK(link_create(&source, pair[0], "source") == 0);
        if (packed)
            send_transfer(source);
        send_sections(source, data + 1, size - 1, hello);
        link_destroy(source);
    }
    FUZZ_CHECK(link_create(&here, pair[1], "here") == 0);
    FUZZ_CHECK(target_create(&target, here) == 0);
    if (packed)
        read_hello(target);
    if (hello)
        read_hello(target);
    else
        read_guest(target);
    target_destroy(target);
    return 0;
}

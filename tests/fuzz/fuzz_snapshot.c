/*
 * Any bytes as a saved guest: refused, or read into a machine description and into memory that is
 * then all of one guest's.
 *
 * Checksums are the stream's first defence, and a fuzzer does not get past them: so the input says
 * what the sections hold, and the sections are framed here, with checksums that match. An input that
 * begins with 0xFF is the file itself, frame and all.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migration/snapshot.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/machine_json.h"
#include "vmm/util/log.h"

#define SIZE (4 * MIB)
#define LENGTH_MAX 65536

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

/* Sections of the input: a byte for the kind, a byte for the length in units of eight, the bytes. */
static int frame(int fd, const uint8_t *data, size_t size)
{
    int err = stream_write_header(fd);

    while (!err && size >= 2) {
        size_t length = (size_t)data[1] * 8;
        char id[2] = {(char)('0' + data[0] / 16 % 2), '\0'};
        uint32_t kind = data[0] % 8;

        data += 2;
        size -= 2;
        if (length > size)
            length = size;
        err = stream_write_section(fd, (enum stream_kind)kind, id, data, length);
        data += length;
        size -= length;
    }
    return err ? err : stream_write_section(fd, STREAM_END, "", "", 0);
}

static void use(const struct snapshot *snapshot, const struct stream_reader *reader)
{
    const struct memory_config memory = {.size = SIZE};
    const struct snapshot_section *config = snapshot_find(snapshot, STREAM_CONFIG, NULL);
    struct machine_config machine;
    const struct memory_region *regions;
    struct snapshot_image image;
    struct guest_memory *mem;

    machine_config_init(&machine);
    if (config && machine_config_from_json(&machine, config->payload, "fuzz", "input") == 0) {
        FUZZ_CHECK(machine.cpus >= 1 && machine.cpus <= MACHINE_MAX_CPUS);
        FUZZ_CHECK(machine.kernel && machine.append && machine.name);
        FUZZ_CHECK(machine.memory.size >= MACHINE_MIN_MEMORY);
    }
    machine_config_fini(&machine);
    FUZZ_CHECK(memory_create(&mem, &memory) == 0);
    (void)snapshot_read_memory(snapshot, reader, mem);
    (void)memory_regions(mem, &regions);
    if (snapshot_find_image(snapshot, reader, regions, 0, &image) == 0) {
        FUZZ_CHECK(image.blocks == SIZE / SNAPSHOT_BLOCK);
        /* All of it is there to be read. */
        (void)stream_crc(0, image.sums, image.blocks * 4);
        (void)stream_crc(0, image.bitmap, image.bitmap_bytes);
    }
    memory_destroy(mem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct stream_reader reader = {.fd = memfd_create("fuzz", MFD_CLOEXEC), .name = "input"};
    struct snapshot snapshot = {0};
    bool raw = size > 0 && data[0] == 0xFF;

    log_set_sink(quiet);
    FUZZ_CHECK(reader.fd >= 0);
    if (size <= LENGTH_MAX) {
        if (raw)
            FUZZ_CHECK(write(reader.fd, data + 1, size - 1) == (ssize_t)(size - 1));
        else
            FUZZ_CHECK(frame(reader.fd, data, size) == 0);
        FUZZ_CHECK(lseek(reader.fd, 0, SEEK_SET) == 0);
        if (snapshot_read(&snapshot, &reader) == 0)
            use(&snapshot, &reader);
    }
    snapshot_fini(&snapshot);
    close(reader.fd);
    return 0;
}

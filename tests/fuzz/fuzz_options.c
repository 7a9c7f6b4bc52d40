/*
 * Any text as --memory, --disk and --net, one after the other: refused by exactly one line, or
 * taken, and then within the limits that the rest of Ferry relies on.
 */
#include <string.h>

#include "net/nat.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/machine_config.h"
#include "vmm/util/log.h"

#define TEXT_MAX 4096

static unsigned lines;

static void count_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
    lines++;
}

static void check_memory(const struct memory_options *memory)
{
    FUZZ_CHECK(memory->size >= MACHINE_MIN_MEMORY);
    FUZZ_CHECK(memory->size % (memory->hugepages ? memory->hugepages : 4096) == 0);
    FUZZ_CHECK(memory->hugepages == 0 || memory->hugepages == 2 * MIB || memory->hugepages == GIB);
}

static void check_disk(const struct disk_options *disk)
{
    FUZZ_CHECK(disk->path && *disk->path);
    FUZZ_CHECK(!disk->serial || (*disk->serial && strlen(disk->serial) <= 20));
}

static void check_net(const struct net_options *net)
{
    const struct uplink_config *uplink = &net->uplink;

    FUZZ_CHECK(*uplink_mode_name(uplink));
    FUZZ_CHECK(uplink->n_forwards <= UPLINK_MAX_FORWARDS);
    for (unsigned i = 0; i < uplink->n_forwards; i++)
        FUZZ_CHECK(uplink->forwards[i].host_port > 0 && uplink->forwards[i].guest_port > 0);
    FUZZ_CHECK(!net->mac.given || !(net->mac.bytes[0] & 1));
    FUZZ_CHECK(uplink->network.s_addr == INADDR_ANY ||
               (uplink->prefix >= NAT_MIN_PREFIX && uplink->prefix <= NAT_MAX_PREFIX));
}

/* Whether the text was taken; a line was logged if and only if it was not. */
static bool taken(int (*add)(struct machine_config *, const char *), struct machine_config *config,
                  const char *text)
{
    int error;

    lines = 0;
    error = add(config, text);
    FUZZ_CHECK(error <= 0 && lines == (error < 0));
    return error == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine_config config;
    char text[TEXT_MAX + 1];

    size = size < TEXT_MAX ? size : TEXT_MAX;
    memcpy(text, data, size);
    text[size] = '\0';
    log_set_sink(count_line);
    machine_config_init(&config);
    if (taken(machine_config_add_memory, &config, text))
        check_memory(&config.memory);
    if (taken(machine_config_add_disk, &config, text))
        check_disk(&config.disks[0]);
    if (taken(machine_config_add_net, &config, text) && config.n_nets > 0)
        check_net(&config.nets[0]);
    machine_config_fini(&config);
    return 0;
}

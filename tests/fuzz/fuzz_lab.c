/*
 * Any bytes as a lab's file: refused by exactly one line, or taken, and then within the limits that
 * the rest of Ferry relies on.
 */
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/control.h"
#include "vmm/lab_config.h"
#include "vmm/util/log.h"

#define TEXT_MAX 8192

static unsigned lines;

static void count_line(enum log_level level, const char *line)
{
    (void)level;
    FUZZ_CHECK(strncmp(line, "fuzz.yaml", 9) == 0);
    lines++;
}

static void check_guest(const struct machine_config *guest)
{
    FUZZ_CHECK(control_check_name(guest->name) == 0);
    FUZZ_CHECK(guest->kernel && *guest->kernel);
    FUZZ_CHECK(guest->append && guest->lab && guest->console_socket);
    FUZZ_CHECK(guest->cpus >= 1 && guest->cpus <= MACHINE_MAX_CPUS);
    FUZZ_CHECK(guest->memory.size >= MACHINE_MIN_MEMORY);
    FUZZ_CHECK(guest->n_disks <= MACHINE_MAX_DISKS && guest->n_nets <= MACHINE_MAX_NETS);
    for (unsigned i = 0; i < guest->n_disks; i++)
        FUZZ_CHECK(guest->disks[i].path && *guest->disks[i].path);
    for (unsigned i = 0; i < guest->n_nets; i++)
        FUZZ_CHECK(guest->nets[i].mac.given && !(guest->nets[i].mac.bytes[0] & 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lab_config lab;
    int error;

    log_set_sink(count_line);
    lines = 0;
    error = lab_config_parse(&lab, "fuzz.yaml", data, size < TEXT_MAX ? size : TEXT_MAX);
    FUZZ_CHECK(error <= 0 && lines == (error < 0));
    if (!error) {
        FUZZ_CHECK(lab.n_guests >= 1 && lab.n_guests <= PROCESS_MAX_GUESTS);
        FUZZ_CHECK(control_check_name(lab.name) == 0);
        for (unsigned i = 0; i < lab.n_guests; i++)
            check_guest(&lab.guests[i]);
    }
    lab_config_fini(&lab);
    return 0;
}

/*
 * hostile: a guest that breaks the rules, one attack after the other (hostile/hostile.h).
 *
 * `mode=NAME` chooses the attacks, `seed=N` another sequence of chance, `rounds=N` and `ms=N` how
 * long the random ones last. The guest may break its devices; it must get them back, and the VMM
 * must live to say so.
 */
#include "hostile/hostile.h"

#include <stddef.h>

#include "boot.h"
#include "memory.h"
#include "pci.h"
#include "verdict.h"

static const struct {
    const char *name;
    void (*attack)(void);
} modes[] = {
    { "rings", attack_rings },       { "status", attack_status }, { "chains", attack_chains },
    { "indirect", attack_indirect }, { "notify", attack_notify }, { "reset", attack_reset },
    { "random", attack_random },     { "race", attack_race },     { "msix", attack_msix },
    { "bars", attack_bars },         { "config", attack_config }, { "ports", attack_ports },
    { "blk", attack_blk },           { "net", attack_net },       { "queues", attack_queues },
    { "console", attack_console },
};

int main(const struct boot_info *info)
{
    char mode[16];

    (void)info;
    arg_text("mode", mode, sizeof(mode));
    pci_init();
    if (!victim_open())
        return 0;
    if (!victim_start(0) || !check(victim_works() && witness_works(), "devices-work",
                                   "they do not answer good requests"))
        return 0;
    for (unsigned i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
        if (text_equal(mode, modes[i].name)) {
            modes[i].attack();
            return 0;
        }
    }
    not_ok("mode", "there is no mode '%s'", mode);
    return 0;
}

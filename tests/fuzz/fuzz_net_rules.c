/*
 * The notations of the switch: any text is refused or understood as a rule, a port's settings, a
 * mirror, a set of VLANs; what is understood is the same when it is written out and read again.
 */
#include <string.h>

#include "net/rule.h"
#include "net/switch.h"
#include "net/vlan.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"

#define LENGTH_MAX 600

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void try_rule(const char *text)
{
    struct rule rule, again;
    char written[RULE_TEXT_MAX];

    if (rule_parse("fuzz", text, &rule) < 0)
        return;
    FUZZ_CHECK(rule.priority <= RULE_PRIORITY_MAX);
    FUZZ_CHECK(!(rule.action.deny && (rule.action.mirror[0] || rule.action.redirect[0])));
    rule_format(&rule, written, sizeof(written));
    FUZZ_CHECK(rule_parse("fuzz", written, &again) == 0);
    /* An address that is masked wholly is as good as none. */
    if (memcmp(rule.src_mac.mask, (uint8_t[6]){0}, 6) != 0 &&
        memcmp(rule.dst_mac.mask, (uint8_t[6]){0}, 6) != 0)
        FUZZ_CHECK(memcmp(&rule, &again, sizeof(rule)) == 0);
}

static void try_settings(const char *text)
{
    struct switch_port_config config = {.name = "port"}, before = config;
    struct vlan_port vlan;
    const char *why;

    if (switch_port_config_update("fuzz", text, &config) < 0) {
        FUZZ_CHECK(memcmp(&config, &before, sizeof(config)) == 0);
        return;
    }
    FUZZ_CHECK(vlan_port_init(&vlan, &config.vlan, false, &why) == 0);
    FUZZ_CHECK(config.rate_in <= SWITCH_RATE_MAX && config.burst_out <= SWITCH_BURST_MAX);
}

static void try_set(const char *text)
{
    static const struct option_key key = {.name = "trunk"};
    struct vlan_set set, again;
    char written[4096 * 5];

    if (vlan_parse_set(&key, text, &set) < 0)
        return;
    vlan_format_set(&set, written, sizeof(written));
    FUZZ_CHECK(vlan_parse_set(&key, written, &again) == 0);
    FUZZ_CHECK(memcmp(&set, &again, sizeof(set)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct switch_mirror_config mirror;
    char text[LENGTH_MAX + 1];

    log_set_sink(quiet);
    if (size > LENGTH_MAX)
        size = LENGTH_MAX;
    memcpy(text, data, size);
    text[size] = '\0';
    try_rule(text);
    try_settings(text);
    try_set(text);
    if (switch_mirror_parse("fuzz", text, &mirror) == 0)
        FUZZ_CHECK(net_name_valid(mirror.name) && net_name_valid(mirror.to));
    return 0;
}

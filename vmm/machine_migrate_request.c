/*
 * The body of vm.send-migration: keys of the Cloud Hypervisor API (SendMigrationData), and some that Ferry has
 * beside them.
 *
 * Composition root; any thread, no locks. Texts: Cloud Hypervisor's OpenAPI description; as there a number
 * is in the unit that its key ends with. Where a key is left out Ferry's own defaults hold.
 */
#include "vmm/machine_migrate_request.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "migration/pages.h"
#include "vmm/control_body.h"

#define NS_PER_MS 1000000ull
#define MS_PER_S 1000
#define DAY_MS 86400000
#define NOT_GIVEN (-1)

struct send_body {
    const char *url, *tls_dir, *strategy, *compression;
    uint64_t downtime_ms, timeout_ms, timeout_s, connections, bandwidth, throttle_max;
    int local, check;
};

#define AT(field) offsetof(struct send_body, field)

static const struct control_key keys[] = {
    {"destination_url", CONTROL_TEXT, AT(url), 0, 0},
    {"local", CONTROL_FLAG, AT(local), 0, 0},
    {"downtime_ms", CONTROL_NUMBER, AT(downtime_ms), 0, DAY_MS},
    {"timeout_s", CONTROL_NUMBER, AT(timeout_s), 0, DAY_MS / MS_PER_S},
    {"timeout_strategy", CONTROL_TEXT, AT(strategy), 0, 0},
    {"connections", CONTROL_NUMBER, AT(connections), 1, PAGES_MAX_STREAMS},
    {"tls_dir", CONTROL_TEXT, AT(tls_dir), 0, 0},
    /* Ferry's own. */
    {"timeout_ms", CONTROL_NUMBER, AT(timeout_ms), 0, DAY_MS},
    {"bandwidth", CONTROL_NUMBER, AT(bandwidth), 0, INT64_MAX},
    {"compression", CONTROL_TEXT, AT(compression), 0, 0},
    {"throttle_max", CONTROL_NUMBER, AT(throttle_max), 0, 99},
    {"check", CONTROL_FLAG, AT(check), 0, 0},
    {0},
};

static int refuse(json_t **reply, const char *why)
{
    *reply = json_string(why);
    return -EINVAL;
}

/* What a value means, and what goes together. */
static int check_body(const struct send_body *body, struct migrate_request *r, json_t **reply)
{
    if (!body->url || link_parse(&r->address, body->url) < 0) {
        *reply = json_sprintf("destination_url: '%s' is not valid: tcp:HOST:PORT, tls:HOST:PORT or "
                              "unix:PATH was expected", body->url ? body->url : "");
        return -EINVAL;
    }
    if (body->compression && compress_find(&r->config.compress, body->compression) < 0)
        return refuse(reply, "compression: zstd, lz4 or none was expected");
    if (body->strategy && strcmp(body->strategy, "cancel") != 0 &&
        strcmp(body->strategy, "ignore") != 0)
        return refuse(reply, "timeout_strategy: cancel or ignore was expected");
    if (body->local == true && !r->address.is_unix)
        return refuse(reply, "local: memory is handed over by unix:PATH only");
    /* Somebody who names certificates means what is sent to be encrypted. */
    if (body->tls_dir && !r->address.is_tls)
        return refuse(reply, "tls_dir: certificates go with tls:HOST:PORT; by any other address "
                             "nothing is encrypted");
    return 0;
}

int migrate_request_read(struct migrate_request *request, const json_t *body, json_t **reply)
{
    struct send_body b = {.downtime_ms = 100, .timeout_ms = 60000, .connections = 1,
                          .throttle_max = 99, .local = NOT_GIVEN};
    int err;

    *request = (struct migrate_request){0};
    err = control_read_body(body, keys, &b, reply);
    if (!err)
        err = check_body(&b, request, reply);
    if (err)
        return err;
    if (json_object_get(body, "timeout_s"))
        b.timeout_ms = b.timeout_s * MS_PER_S;
    request->url = b.url;
    request->tls_folder = b.tls_dir;
    request->check = b.check;
    request->config.downtime_ns = b.downtime_ms * NS_PER_MS;
    request->config.timeout_ns = b.timeout_ms * NS_PER_MS;
    request->config.bandwidth = b.bandwidth;
    request->config.throttle_max = (unsigned)b.throttle_max;
    request->config.give_up = b.strategy && strcmp(b.strategy, "cancel") == 0;
    request->config.share_memory = b.local != false;
    request->config.streams = (unsigned)b.connections;
    return 0;
}

/*
 * `ferry migrate`: asks a guest's process to hand it over, and shows how that goes.
 *
 * Main thread, and one that waits for the answer while this one asks how far it is. Migrating is done
 * by the process that runs the guest: whoever ends this one changes nothing.
 */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "migration/tls.h"
#include "vmm/client.h"
#include "vmm/cmd.h"
#include "vmm/util/log.h"

#define API "/api/v1/vm."
#define PROGRESS_NS 200000000L
#define NS_PER_S 1000000000L

#define MAX_STREAMS 16

enum policy { POLICY_STOP, POLICY_GIVE_UP };
enum compression { COMPRESSION_NONE, COMPRESSION_ZSTD, COMPRESSION_LZ4 };

struct migrate_options {
    char *name;
    char *address;
    char *tls;
    uint64_t downtime_ms, timeout_ms;
    uint64_t bandwidth;
    unsigned streams;
    enum policy policy;
    enum compression compression;
    bool no_auto_converge, copy, check, cancel, status, json;
};

#define AT(field) offsetof(struct migrate_options, field)

/* uint64_t, milliseconds: digits and ms, s or m. */
static int parse_duration(const struct option_key *key, const char *text, void *field)
{
    static const struct {
        const char *name;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}};
    char *end;
    unsigned long long value;

    (void)key;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text || *text < '0' || *text > '9' || value > 86400000)
        return -EINVAL;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(end, units[i].name) != 0)
            continue;
        *(uint64_t *)field = value * units[i].ms;
        return 0;
    }
    return -EINVAL;
}

static const struct option_choice policies[] = {
    {"stop", POLICY_STOP}, {"give-up", POLICY_GIVE_UP}, {0}};

static const struct option_choice methods[] = {
    {"zstd", COMPRESSION_ZSTD}, {"lz4", COMPRESSION_LZ4}, {"none", COMPRESSION_NONE}, {0}};

static const struct cmd_operand operands[] = {
    {"NAME",
     {.name = "name", .parse = option_parse_string, .offset = AT(name), .required = true,
      .expects = "the name of a guest"}},
    {"ADDRESS",
     {.name = "address", .parse = option_parse_string, .offset = AT(address),
      .expects = "tcp:HOST:PORT, tls:HOST:PORT or unix:PATH"}},
    {0},
};

static const struct cmd_option options[] = {
    {0, "TIME", "100ms", "how long the guest may stand still",
     {.name = "downtime", .parse = parse_duration, .offset = AT(downtime_ms),
      .expects = "a time such as 100ms or 2s"}, NULL},
    {0, "TIME", "60s", "how long to copy while it runs",
     {.name = "timeout", .parse = parse_duration, .offset = AT(timeout_ms),
      .expects = "a time such as 60s or 10m"}, NULL},
    {0, "WHAT", "stop", "at the timeout: stop the guest and copy the rest, or\ngive-up",
     {.name = "on-timeout", .parse = option_parse_choice, .offset = AT(policy),
      .choices = policies}, NULL},
    {0, "SIZE", "no limit", "bytes a second, as in 100M",
     {.name = "bandwidth", .parse = option_parse_size, .offset = AT(bandwidth), .min = 65536}, NULL},
    {0, "N", "1", "connections at a time, up to 16",
     {.name = "streams", .parse = option_parse_number, .offset = AT(streams), .min = 1,
      .max = MAX_STREAMS}, NULL},
    {0, "METHOD", "none", "compress memory: zstd or lz4",
     {.name = "compress", .parse = option_parse_choice, .offset = AT(compression),
      .choices = methods}, NULL},
    {0, "DIR", TLS_FOLDER, "certificates for tls:, client-*.pem",
     {.name = "tls", .parse = option_parse_string, .offset = AT(tls), .expects = "a folder"}, NULL},
    {0, NULL, "off", "do not slow a guest that writes too fast",
     {.name = "no-auto-converge", .parse = option_parse_bool, .offset = AT(no_auto_converge)},
     NULL},
    {0, NULL, "off", "copy memory by unix:, too, not hand it over",
     {.name = "copy", .parse = option_parse_bool, .offset = AT(copy)}, NULL},
    {0, NULL, "off", "only compare, and say what does not fit",
     {.name = "check", .parse = option_parse_bool, .offset = AT(check)}, NULL},
    {0, NULL, "off", "end the migration under way; the guest runs on",
     {.name = "cancel", .parse = option_parse_bool, .offset = AT(cancel)}, NULL},
    {0, NULL, "off", "say how the migration stands",
     {.name = "status", .parse = option_parse_bool, .offset = AT(status)}, NULL},
    {0, NULL, "off", "print events as JSON, one a line",
     {.name = "json", .parse = option_parse_bool, .offset = AT(json)}, NULL},
    {0},
};

/* ---- what is shown ---- */

static double number_of(const json_t *json, const char *key)
{
    return json_number_value(json_object_get(json, key));
}

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));

    return text ? text : "";
}

static void print_json(json_t *json, const char *event)
{
    json_t *line = json_pack("{s:s}", "event", event);

    json_object_update(line, json);
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

/* How far it is, when there is something to tell of that. */
static void print_figures(const json_t *s)
{
    if (strcmp(text_of(s, "status"), "copying") != 0 || json_is_true(json_object_get(s, "memory_handed_over")))
        return;
    printf(": round %d, %.0f MiB left, %.0f MiB/s", (int)number_of(s, "rounds") + 1,
           number_of(s, "remaining_bytes") / 1048576, number_of(s, "rate") / 1048576);
    if (number_of(s, "rounds") > 0)
        printf(", writes %.0f MiB/s", number_of(s, "dirty_rate") / 1048576);
    printf(", would stop for %.0f ms", number_of(s, "expected_downtime_ms"));
    if (number_of(s, "throttle") > 0)
        printf(", slowed by %d %%", (int)number_of(s, "throttle"));
}

static void print_progress(const json_t *s)
{
    printf("\r%s", text_of(s, "status"));
    print_figures(s);
    printf("\033[K");
    fflush(stdout);
}

static void print_mismatches(const json_t *s)
{
    const json_t *list = json_object_get(s, "mismatches");

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);

        log_error("%s: %s; %s", text_of(one, "what"), text_of(one, "why"), text_of(one, "fix"));
    }
}

/* What the move was for each card: how long the guest was not heard of, and what came late. */
static void print_nics(const json_t *s)
{
    const json_t *list = json_object_get(s, "nics");

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *nic = json_array_get(list, i);

        printf("%s: ", text_of(nic, "id"));
        if (json_object_get(nic, "gap_ms"))
            printf("%.1f ms from its last frame here to its first there", number_of(nic, "gap_ms"));
        else
            printf("no frames around the move");
        if (number_of(nic, "forwarded_frames") > 0)
            printf("; %.0f that came late were sent after it", number_of(nic, "forwarded_frames"));
        if (number_of(nic, "lost_frames") > 0)
            printf(", %.0f found no room", number_of(nic, "lost_frames"));
        putchar('\n');
    }
}

static void print_summary(const json_t *s)
{
    char packed[64] = "";

    if (strcmp(text_of(s, "compression"), "none") != 0)
        snprintf(packed, sizeof(packed), " (%.1f MiB before compression)",
                 number_of(s, "pages") * 4096 / 1048576);
    printf("migrated in %.3f s: stopped for %.1f ms", number_of(s, "elapsed_ms") / 1000,
           number_of(s, "downtime_ms"));
    if (json_object_get(s, "destination_downtime_ms"))
        printf(" (%.1f ms by the destination)", number_of(s, "destination_downtime_ms"));
    if (json_is_true(json_object_get(s, "memory_handed_over")))
        printf("; memory was handed over\n");
    else
        printf("; %d rounds, %.1f MiB sent%s, %.0f pages of which were zero skipped\n",
               (int)number_of(s, "rounds"), number_of(s, "sent_bytes") / 1048576, packed,
               number_of(s, "zero_pages"));
    print_nics(s);
}

/* ---- asking ---- */

struct asking {
    const struct migrate_options *wanted;
    json_t *body;
    json_t *answer;
    char *why; /* owned: what went wrong, to be told when no line of progress is in the way */
    int err;
    pthread_mutex_t lock; /* guards `answered`; a leaf */
    pthread_cond_t came;  /* by CLOCK_MONOTONIC */
    bool answered;        /* after the two above */
};

static void *ask(void *arg)
{
    struct asking *a = arg;
    const struct client_request request = {.name = a->wanted->name, .method = "PUT",
                                           .path = API "send-migration", .body = a->body,
                                           .patient = true, .why = &a->why};

    a->err = client_ask(&request, &a->answer);
    pthread_mutex_lock(&a->lock);
    a->answered = true;
    pthread_cond_signal(&a->came);
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

/* For the answer, or until it is time to tell how far it is. */
static bool wait_for_answer(struct asking *a)
{
    struct timespec until;
    bool answered;
    int err = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PROGRESS_NS;
    until.tv_sec += until.tv_nsec / NS_PER_S;
    until.tv_nsec %= NS_PER_S;
    pthread_mutex_lock(&a->lock);
    while (!a->answered && err == 0)
        err = pthread_cond_timedwait(&a->came, &a->lock, &until);
    answered = a->answered;
    pthread_mutex_unlock(&a->lock);
    return answered;
}

static void init_asking(struct asking *a)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->came, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&a->lock, NULL);
}

static void fini_asking(struct asking *a)
{
    pthread_cond_destroy(&a->came);
    pthread_mutex_destroy(&a->lock);
    json_decref(a->answer);
    json_decref(a->body);
    free(a->why);
}

static int ask_status(const char *name, bool quiet, json_t **status)
{
    const struct client_request request = {
        .name = name, .method = "GET", .path = API "migration", .quiet = quiet};

    return client_ask(&request, status);
}

/* Shows how far it is until the answer has come. */
static void watch(struct asking *a)
{
    const bool terminal = isatty(STDOUT_FILENO) != 0;
    bool shown = false;

    while (!wait_for_answer(a)) {
        json_t *status;

        if ((!a->wanted->json && !terminal) || ask_status(a->wanted->name, true, &status) != 0)
            continue;
        if (a->wanted->json)
            print_json(status, "progress");
        else
            print_progress(status);
        shown = true;
        json_decref(status);
    }
    if (shown && !a->wanted->json)
        printf("\r\033[K");
    fflush(stdout);
}

static enum exit_status tell_failure(const struct asking *a)
{
    json_t *json = a->wanted->json ? json_pack("{s:s*}", "error", a->why) : NULL;

    if (a->why)
        log_error("%s", a->why);
    if (a->err == -ENOENT || a->err == -EINVAL) {
        json_decref(json);
        return STATUS_USAGE;
    }
    if (json)
        print_json(json, "failed");
    json_decref(json);
    return STATUS_FAILED;
}

static enum exit_status conclude(const struct asking *a)
{
    const char *status = text_of(a->answer, "status");

    if (a->err)
        return tell_failure(a);
    if (a->wanted->json)
        print_json(a->answer, status);
    if (strcmp(status, "completed") == 0 || strcmp(status, "checked") == 0) {
        if (!a->wanted->json && strcmp(status, "checked") == 0)
            printf("the guest can run there\n");
        else if (!a->wanted->json)
            print_summary(a->answer);
        return STATUS_OK;
    }
    print_mismatches(a->answer);
    return STATUS_FAILED;
}

/* The other process has another working directory. */
static char *absolute_address(const char *address)
{
    char *folder = NULL, *text = NULL;

    if (strncmp(address, "unix:", 5) != 0 || address[5] == '/' || address[5] == '\0')
        return strdup(address);
    folder = getcwd(NULL, 0);
    if (folder && asprintf(&text, "unix:%s/%s", folder, address + 5) < 0)
        text = NULL;
    free(folder);
    return text;
}

static const char *methods_name(enum compression compression)
{
    const struct option_choice *method = methods;

    while (method->value != (int)compression)
        method++;
    return method->name;
}

static json_t *make_body(const struct migrate_options *w)
{
    char *address = absolute_address(w->address);
    char *folder = w->tls ? realpath(w->tls, NULL) : NULL;
    json_t *body = json_pack("{s:s?, s:I, s:I, s:I, s:s, s:b}", "destination_url", address,
                             "downtime_ms", (json_int_t)w->downtime_ms, "timeout_ms",
                             (json_int_t)w->timeout_ms, "bandwidth", (json_int_t)w->bandwidth,
                             "timeout_strategy", w->policy == POLICY_GIVE_UP ? "cancel" : "ignore",
                             "check", w->check);

    json_object_set_new(body, "connections", json_integer(w->streams));
    json_object_set_new(body, "compression", json_string(methods_name(w->compression)));
    if (w->tls)
        json_object_set_new(body, "tls_dir", json_string(folder ? folder : w->tls));
    if (w->copy)
        json_object_set_new(body, "local", json_false());
    if (w->no_auto_converge)
        json_object_set_new(body, "throttle_max", json_integer(0));
    free(address);
    free(folder);
    return body;
}

static enum exit_status migrate_guest(const struct migrate_options *wanted)
{
    struct asking a = {.wanted = wanted};
    pthread_t thread;
    enum exit_status status = STATUS_FAILED;

    if (!wanted->address) {
        log_error("migrate: ADDRESS was expected: see 'ferry help migrate'");
        return STATUS_USAGE;
    }
    if (wanted->tls && strncmp(wanted->address, "tls:", 4) != 0) {
        log_error("--tls goes with tls:HOST:PORT: by '%s' nothing would be encrypted",
                  wanted->address);
        return STATUS_USAGE;
    }
    init_asking(&a);
    a.body = make_body(wanted);
    if (a.body && pthread_create(&thread, NULL, ask, &a) == 0) {
        watch(&a);
        pthread_join(thread, NULL);
        status = conclude(&a);
    }
    fini_asking(&a);
    return status;
}

static enum exit_status status_of(int err)
{
    if (err == -ENOENT || err == -EINVAL)
        return STATUS_USAGE;
    return err ? STATUS_FAILED : STATUS_OK;
}

static enum exit_status show_status(const struct migrate_options *wanted)
{
    json_t *status = NULL;
    int err = ask_status(wanted->name, false, &status);

    if (!err && wanted->json) {
        print_json(status, text_of(status, "status"));
    } else if (!err) {
        printf("%s", text_of(status, "status"));
        if (json_object_get(status, "destination_url"))
            printf(", to %s", text_of(status, "destination_url"));
        print_figures(status);
        printf("\n");
        if (json_object_get(status, "error"))
            printf("%s\n", text_of(status, "error"));
        print_mismatches(status);
    }
    json_decref(status);
    return status_of(err);
}

static enum exit_status cancel(const struct migrate_options *wanted)
{
    const struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = API "migration-cancel"};

    return status_of(client_ask(&request, NULL));
}

static enum exit_status migrate(void *object)
{
    const struct migrate_options *wanted = object;

    if ((wanted->status || wanted->cancel) && (wanted->address || (wanted->status && wanted->cancel))) {
        log_error("--%s does not go together with %s", wanted->status ? "status" : "cancel",
                  wanted->address ? "ADDRESS" : "--cancel");
        return STATUS_USAGE;
    }
    return wanted->status   ? show_status(wanted)
           : wanted->cancel ? cancel(wanted)
                            : migrate_guest(wanted);
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct migrate_options wanted = {.downtime_ms = 100, .timeout_ms = 60000, .streams = 1};

    return cmd_perform(command, argc, argv, &wanted, migrate);
}

const struct command cmd_migrate = {
    .name = "migrate",
    .usage = "[OPTION]... NAME [ADDRESS]",
    .summary = "Move a running guest to another ferry.",
    .options = options,
    .operands = operands,
    .notes = "There, 'ferry receive ADDRESS' waits: tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.\n"
             "The guest runs on here unless it runs there. Exit status: 1 if it runs on here.",
    .run = run,
};

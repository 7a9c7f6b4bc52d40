/*
 * `ferry up` and `ferry down`: a lab, which is several guests and switches in one process.
 *
 * Reads no file (lab_config.c) and builds no guest (machine.c). Main thread; no locks. With --detach
 * the process is made by fork(2) before it has any thread, and tells the one that waits by a pipe
 * when the guests run.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/client.h"
#include "vmm/cmd.h"
#include "vmm/control.h"
#include "vmm/lab_config.h"
#include "vmm/lab_guests.h"
#include "vmm/machine.h"
#include "vmm/process.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

/* ---- the lab's life ---- */

struct lab {
    struct lab_config config; /* as the file was read first; its guests have been taken out */
    char *path;               /* owned: of the file, from the root */
    struct process *process;
    struct lab_guests guests;
    enum exit_status status; /* the first that was not STATUS_OK */
    int ready_fd;            /* of --detach: written when the guests run; -1 without */
};

/* A guest that has ended gives back what it took; the others run on. */
static void guest_ended(void *arg, struct machine *machine)
{
    struct lab *lab = arg;
    enum exit_status status = cmd_status_of(machine);

    printf("%s: %s\n", machine_name(machine), machine_outcome_text(machine_outcome(machine, NULL)));
    fflush(stdout);
    if (lab->status == STATUS_OK)
        lab->status = status;
    lab_guests_remove(&lab->guests, machine);
}

/* Reads the file again; what is wrong with it goes to `why`. */
static int read_again(const struct lab *lab, struct lab_config *config, char *why, size_t size)
{
    int err;

    log_divert_errors(why, size);
    err = lab_config_read(config, lab->path);
    log_divert_errors(NULL, 0);
    if (err)
        return -EINVAL;
    if (strcmp(config->name, lab->config.name) == 0)
        return 0;
    snprintf(why, size, "the file names the lab '%s' now", config->name);
    lab_config_fini(config);
    return -EINVAL;
}

/* Tells who came, and answers with the names: of these, and how many of the file's ran already. */
static json_t *tell_started(json_t *started, unsigned in_file)
{
    const json_t *name;
    size_t i;

    json_array_foreach(started, i, name)
        printf("%s: started\n", json_string_value(name));
    fflush(stdout);
    return json_pack("{s:O, s:i}", "started", started, "running",
                     (int)(in_file - json_array_size(started)));
}

/* lab.up: `ferry up` for a lab that runs. */
static int take_more(void *arg, const json_t *body, json_t **reply)
{
    const char *path = json_string_value(json_object_get(body, "file"));
    struct lab_config config;
    struct lab *lab = arg;
    char why[1200] = "";
    json_t *started;
    int err;

    if (path && strcmp(path, lab->path) != 0) {
        *reply = json_sprintf("a lab of that name runs, from another file: %s", lab->path);
        return -EALREADY;
    }
    err = read_again(lab, &config, why, sizeof(why));
    if (err) {
        *reply = json_string(why);
        return err;
    }
    started = json_array();
    err = started ? lab_guests_add(&lab->guests, &config, started, why, sizeof(why)) : -ENOMEM;
    *reply = err ? json_string(why) : tell_started(started, config.n_guests);
    json_decref(started);
    lab_config_fini(&config);
    return err;
}

/* The log of a detached lab. */
static int open_log(const struct lab *lab)
{
    char folder[PATH_MAX], path[PATH_MAX + 80];
    int err = rundir_path(folder, sizeof(folder));

    if (err)
        return open("/dev/null", O_WRONLY | O_CLOEXEC);
    snprintf(path, sizeof(path), "%s/%s.log", folder, lab->config.name);
    return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
}

/* Whoever waits goes on; from here on nobody reads what is said but from the log. */
static void detach(struct lab *lab)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), log = open_log(lab);

    (void)!write(lab->ready_fd, "", 1);
    close(lab->ready_fd);
    fflush(stdout);
    if (null >= 0)
        (void)dup2(null, STDIN_FILENO);
    if (log >= 0) {
        (void)dup2(log, STDOUT_FILENO);
        (void)dup2(log, STDERR_FILENO);
        close(log);
    }
    if (null >= 0)
        close(null);
}

static void say_ready(const struct lab *lab)
{
    const char *name = lab->config.name;

    printf("%s: %u guest%s; 'ferry console GUEST' attaches to one, 'ferry down %s' ends %s\n", name,
           lab->config.n_guests, lab->config.n_guests == 1 ? " runs" : "s run", name,
           lab->config.n_guests == 1 ? "it" : "them");
    fflush(stdout);
}

static enum exit_status run_lab(struct lab *lab)
{
    int err = process_create(&lab->process, lab->config.name);
    char why[1200] = "";

    lab->guests.process = lab->process;
    if (!err) {
        err = lab_guests_add(&lab->guests, &lab->config, NULL, why, sizeof(why));
        if (err)
            log_error("%s", why);
    }
    if (err) {
        process_destroy(lab->process);
        return err == -EOPNOTSUPP ? STATUS_HOST : STATUS_USAGE;
    }
    process_set_more(lab->process, take_more, lab);
    say_ready(lab);
    if (lab->ready_fd >= 0)
        detach(lab);
    if (process_run(lab->process, guest_ended, lab) < 0)
        lab->status = STATUS_FAILED;
    process_destroy(lab->process);
    lab_guests_fini(&lab->guests);
    return lab->status;
}

/* ---- a lab that runs already ---- */

static void say_added(const struct lab *lab, json_t *reply)
{
    json_t *started = json_object_get(reply, "started"), *name;
    int running = (int)json_integer_value(json_object_get(reply, "running"));
    size_t i;

    if (json_array_size(started) == 0) {
        printf("%s: %d guest%s already\n", lab->config.name, running,
               running == 1 ? " runs" : "s run");
        return;
    }
    printf("%s: started", lab->config.name);
    json_array_foreach(started, i, name)
        printf("%s %s", i ? "," : "", json_string_value(name));
    printf("; %d ran already\n", running);
}

/* Its process makes what is new in the file. */
static enum exit_status add_to_lab(const struct lab *lab)
{
    json_t *body = json_pack("{s:s}", "file", lab->path), *reply = NULL;
    const struct client_request request = {
        .name = lab->config.name,
        .method = "PUT",
        .path = "/api/v1/lab.up",
        .body = body,
        .patient = true,
    };
    int err = client_ask(&request, &reply);

    if (!err)
        say_added(lab, reply);
    json_decref(body);
    json_decref(reply);
    switch (err) {
    case 0: return STATUS_OK;
    case -ENOENT:
    case -EINVAL:
    case -EREMOTEIO: return STATUS_USAGE;
    default: return STATUS_FAILED;
    }
}

/* ---- up ---- */

struct up_options {
    char *file;
    bool detach;
    unsigned verbose;
};

static const struct cmd_operand up_operands[] = {
    {"FILE",
     {.name = "file", .parse = option_parse_string, .expects = "the path of a lab's file",
      .offset = offsetof(struct up_options, file), .required = true}},
    {0},
};

static const struct cmd_option up_options[] = {
    {'d', NULL, "off", "go to the background when the guests run",
     {.name = "detach", .parse = option_parse_bool, .offset = offsetof(struct up_options, detach)},
     NULL},
    {'v', NULL, "off", "say more; twice for everything",
     {.name = "verbose", .parse = cmd_count_up, .offset = offsetof(struct up_options, verbose)},
     NULL},
    {0},
};

/* Paths in a file are relative to the folder that it is in. */
static int enter_folder(const char *file)
{
    const char *slash = strrchr(file, '/');
    char *folder;
    int err = 0;

    if (!slash)
        return 0;
    folder = strndup(file, slash == file ? 1 : (size_t)(slash - file));
    if (!folder || chdir(folder) < 0) {
        err = folder ? -errno : -ENOMEM;
        log_error("cannot enter the folder of %s: %s", file, strerror(-err));
    }
    free(folder);
    return err;
}

/* The parent: ends with what the child ended with, or when it is ready. */
static enum exit_status await_ready(pid_t child, int ready_fd)
{
    char byte;
    ssize_t n;
    int status;

    do
        n = read(ready_fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1)
        return STATUS_OK;
    if (waitpid(child, &status, 0) == child && WIFEXITED(status))
        return (enum exit_status)WEXITSTATUS(status);
    return STATUS_FAILED;
}

static enum exit_status run_detached(struct lab *lab)
{
    enum exit_status status;
    int fds[2];
    pid_t child;

    if (pipe2(fds, O_CLOEXEC) < 0) {
        log_error("--detach: %s", strerror(errno));
        return STATUS_FAILED;
    }
    fflush(stdout);
    child = fork();
    if (child == 0) {
        close(fds[0]);
        lab->ready_fd = fds[1];
        (void)setsid();
        return run_lab(lab);
    }
    close(fds[1]);
    if (child < 0)
        log_error("--detach: %s", strerror(errno));
    status = child < 0 ? STATUS_FAILED : await_ready(child, fds[0]);
    close(fds[0]);
    return status;
}

static enum exit_status bring_up(void *object)
{
    const struct up_options *wanted = object;
    struct lab lab = {.ready_fd = -1};
    enum exit_status status = STATUS_USAGE;

    cmd_set_verbosity(wanted->verbose);
    if (lab_config_read(&lab.config, wanted->file) < 0)
        return STATUS_USAGE;
    lab.path = realpath(wanted->file, NULL);
    if (!lab.path)
        log_error("%s: %s", wanted->file, strerror(errno));
    else if (control_listens(lab.config.name))
        status = add_to_lab(&lab);
    else if (enter_folder(wanted->file) == 0)
        status = wanted->detach ? run_detached(&lab) : run_lab(&lab);
    free(lab.path);
    lab_config_fini(&lab.config);
    return status;
}

static enum exit_status up(const struct command *command, int argc, char **argv)
{
    struct up_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, bring_up);
}

const struct command cmd_up = {
    .name = "up",
    .usage = "[OPTION]... FILE",
    .summary = "Run a lab's guests and switches in one process.",
    .options = up_options,
    .operands = up_operands,
    .notes = "Of a lab that runs, the guests and switches of FILE that do not run are added.\n"
             "Ctrl-C, or 'ferry down', presses the guests' power buttons; twice ends them.\n"
             "Exit status: as of 'ferry run'; of several guests', the first that is not 0.",
    .run = up,
};

/* ---- down ---- */

struct down_options {
    char *name;
    bool force;
};

static const struct cmd_operand down_operands[] = {
    {"NAME",
     {.name = "name", .parse = option_parse_string, .expects = "the name of a lab",
      .offset = offsetof(struct down_options, name), .required = true}},
    {0},
};

static const struct cmd_option down_options[] = {
    {'f', NULL, "off", "end the guests at once, without asking them",
     {.name = "force", .parse = option_parse_bool, .offset = offsetof(struct down_options, force)},
     NULL},
    {0},
};

static enum exit_status bring_down(void *object)
{
    const struct down_options *wanted = object;
    const struct client_request request = {
        .name = wanted->name,
        .method = "PUT",
        .path = wanted->force ? "/api/v1/vmm.shutdown" : "/api/v1/vmm.power-button",
        .patient = true,
    };

    switch (client_ask(&request, NULL)) {
    case 0: return STATUS_OK;
    case -ENOENT:
    case -EINVAL: return STATUS_USAGE;
    default: return STATUS_FAILED;
    }
}

static enum exit_status down(const struct command *command, int argc, char **argv)
{
    struct down_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, bring_down);
}

const struct command cmd_down = {
    .name = "down",
    .usage = "[-f] NAME",
    .summary = "End a lab's guests by their power buttons.",
    .options = down_options,
    .operands = down_operands,
    .run = down,
};

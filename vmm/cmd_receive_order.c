/*
 * `ferry receive` without an address: the control socket says where a guest comes, by
 * vm.receive-migration of the Cloud Hypervisor API (ReceiveMigrationData).
 *
 * Main thread, which runs the loop all the time; waiting for the source is on threads of their own. A guest
 * that does not come after all is told to whoever asked, and the process waits to be told again.
 * Text: Cloud Hypervisor's OpenAPI description.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/cmd_receive_internal.h"
#include "vmm/control_body.h"
#include "vmm/machine_receive.h"
#include "vmm/util/log.h"

struct order {
    const char *receiver_url, *tls_dir, *from; /* borrowed from the body */
};

static const struct control_key keys[] = {
    {"receiver_url", CONTROL_TEXT, offsetof(struct order, receiver_url), 0, 0},
    {"tls_dir", CONTROL_TEXT, offsetof(struct order, tls_dir), 0, 0},
    /* Ferry's own. */
    {"from", CONTROL_TEXT, offsetof(struct order, from), 0, 0},
    {0},
};

/* One order, as long as it is carried out. */
struct reception {
    const struct receive_options *wanted;
    struct process *process;
    struct door door;
    struct link *link; /* the target's, once there is one */
    struct visit visit;
    json_t *reply; /* owned until it is given away: why it failed */
};

static int refuse(struct reception *r, int err, const char *text)
{
    json_decref(r->reply);
    r->reply = json_string(text);
    return err;
}

static int open_door(struct reception *r, const struct order *order)
{
    const char *from = order->from ? order->from : r->wanted->from;
    char why[TLS_REASON_MAX], text[TLS_REASON_MAX + 64];
    int err;

    if (!order->receiver_url)
        return refuse(r, -EINVAL, "receiver_url: tcp:HOST:PORT, tls:HOST:PORT or unix:PATH was expected");
    if (from && strncmp(order->receiver_url, "unix:", 5) == 0)
        return refuse(r, -EINVAL, "from: no host goes with unix:PATH; who may open the socket may come");
    err = receive_open(&r->door, order->receiver_url, from,
                       order->tls_dir ? order->tls_dir : r->wanted->tls, why);
    if (!err)
        return 0;
    snprintf(text, sizeof(text), "receiver_url: %s", why[0] ? why : strerror(-err));
    return refuse(r, err, text);
}

static int await_source(void *arg)
{
    struct reception *r = arg;

    return link_accept(&r->link, r->door.fd, &r->door.terms);
}

static void cancel_waiting(void *arg)
{
    (void)eventfd_write(((struct reception *)arg)->door.terms.cancel_fd, 1);
}

static int hear(void *arg)
{
    struct visit *v = arg;

    return target_hello(v->target, &v->hello, &v->memory_fd);
}

static void cancel_hearing(void *arg)
{
    target_cancel(((struct visit *)arg)->target);
}

/* The guest that comes, if it does. */
static int take(struct reception *r)
{
    const bool *ending = process_ending(r->process);
    struct visit *v = &r->visit;
    int err = process_work(r->process, ending, await_source, cancel_waiting, r);

    if (!err)
        err = target_create(&v->target, r->link);
    if (err)
        return err;
    target_set_door(v->target, r->door.fd, &r->door.terms);
    err = process_work(r->process, ending, hear, cancel_hearing, v);
    if (!err)
        err = receive_guest(v);
    if (err && !target_has_answered(v->target))
        target_refuse(v->target, "it cannot be taken there; the log there says why");
    return err;
}

static const char *reason_of(int err)
{
    switch (err) {
    case -EALREADY: return "the source only compared: its guest could run here, and stayed";
    case -EINVAL: return "the guest does not fit here; the log of this process says what stands against it";
    case -ECANCELED: return "the guest did not come: that was cancelled";
    default: return "the guest did not come; the log of this process says why";
    }
}

/* 0: it came, and runs here or is in doubt. */
static int carry_out(struct reception *r, const json_t *body)
{
    struct order order = {0};
    int err = control_read_body(body, keys, &order, &r->reply);

    if (!err)
        err = open_door(r, &order);
    if (err)
        return err;
    r->door.terms.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    err = r->door.terms.cancel_fd < 0 ? -errno : take(r);
    if (r->door.terms.cancel_fd >= 0)
        close(r->door.terms.cancel_fd);
    receive_end_visit(&r->visit);
    receive_close(&r->door);
    if (err)
        (void)refuse(r, err, reason_of(err));
    return err == -EINVAL ? -EIO : err; /* the request was good */
}

/* The next order. 0: *machine is there; -EAGAIN: it did not come; others: that is all. */
static int serve_order(const struct receive_options *wanted, struct process *process,
                       struct reception *r, int *signal_number)
{
    json_t *body;
    int err = process_await_order(process, &body, signal_number);

    if (err)
        return err;
    *r = (struct reception){.wanted = wanted, .process = process, .door.fd = -1,
                            .visit = {.wanted = wanted, .memory_fd = -1, .process = process,
                                      .processor = &r->door.processor}};
    machine_config_init(&r->visit.config);
    err = carry_out(r, body);
    json_decref(body);
    process_answer_order(process, err, r->reply);
    if (!err)
        return 0;
    machine_destroy(r->visit.machine);
    machine_config_fini(&r->visit.config);
    return *process_ending(process) ? -ECANCELED : -EAGAIN;
}

enum exit_status receive_by_order(const struct receive_options *wanted)
{
    struct process *process = NULL;
    struct reception r;
    char name[32];
    enum exit_status status;
    int signal_number = 0, err;

    snprintf(name, sizeof(name), "incoming-%ld", (long)getpid());
    err = process_create(&process, wanted->name ? wanted->name : name);
    if (!err && !process_control(process)) {
        log_error("receive: without an address there must be a control socket: set XDG_RUNTIME_DIR");
        err = -ENOENT;
    }
    if (!err)
        err = cmd_make_switches(&wanted->switches, process);
    if (err) {
        process_destroy(process);
        return err == -EOPNOTSUPP ? STATUS_HOST : STATUS_USAGE;
    }
    log_info("waiting for vm.receive-migration as '%s'", process_name(process));
    do
        err = serve_order(wanted, process, &r, &signal_number);
    while (err == -EAGAIN && !wanted->once);
    if (!err) {
        status = cmd_run_machine(process, r.visit.machine);
        machine_config_fini(&r.visit.config);
        return status;
    }
    process_destroy(process);
    if (err != -ECANCELED)
        return STATUS_FAILED;
    return signal_number ? STATUS_SIGNAL + (unsigned)signal_number : STATUS_OK;
}

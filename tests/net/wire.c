/*
 * wire: two uplinks joined to each other, without a guest between: `wire UPLINK UPLINK`, each as
 * --net has it. So a mode is tried with ordinary programs at its far end: a DHCP client on a tap,
 * say. Prints "ready" when both are there; ends with standard input, or at SIGTERM.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "net/port.h"
#include "net/uplink.h"
#include "vmm/machine_config.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

static struct loop *loop;

static void on_signal(int number)
{
    (void)number;
    loop_stop(loop);
}

static void on_end(struct loop_op *op, int result)
{
    char byte;

    if (result > 0 && read(STDIN_FILENO, &byte, 1) > 0)
        loop_poll(loop, op, STDIN_FILENO, POLLIN);
    else if (result != -ECANCELED)
        loop_stop(loop);
}

static bool is_idle(void *arg)
{
    return !((const struct loop_op *)arg)->pending;
}

static int run(struct machine_config *config)
{
    static const char *const names[] = {"first", "second"};
    struct uplink *ends[2] = {NULL, NULL};
    struct loop_op input = {.done = on_end};
    int err = 0;

    for (unsigned i = 0; i < 2 && !err; i++)
        err = uplink_create(&ends[i], loop, names[i], &config->nets[i].uplink,
                            config->nets[i].mac.given ? config->nets[i].mac.bytes : NULL);
    if (!err) {
        net_port_connect(uplink_port(ends[0]), uplink_port(ends[1]));
        puts("ready");
        fflush(stdout);
        loop_poll(loop, &input, STDIN_FILENO, POLLIN);
        err = loop_run(loop);
        loop_cancel(loop, &input);
        (void)loop_run_until(loop, is_idle, &input, 0);
    }
    uplink_destroy(ends[1]);
    uplink_destroy(ends[0]);
    return err;
}

int main(int argc, char **argv)
{
    struct machine_config config;
    int err;

    if (argc != 3) {
        fputs("Usage: wire UPLINK UPLINK\n", stderr);
        return 2;
    }
    log_set_level(LOG_LEVEL_INFO);
    machine_config_init(&config);
    err = machine_config_add_net(&config, argv[1]);
    if (!err)
        err = machine_config_add_net(&config, argv[2]);
    if (!err)
        err = loop_create(&loop, 64);
    if (!err) {
        signal(SIGTERM, on_signal);
        signal(SIGPIPE, SIG_IGN);
        err = run(&config);
        loop_destroy(loop);
    }
    machine_config_fini(&config);
    return err ? 1 : 0;
}

/*
 * Forwards of user-mode NAT that are taken later, and let go again, as for a guest that moves from one
 * process to another of its host. What goes through them is test_net_nat.c's.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/nat.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define DEADLINE_NS 30000000000ull

static struct loop *loop;
static struct nat_config config;
static struct net_forward forward;
static struct nat *nat;
static char logged[1024];

static void remember_line(enum log_level level, const char *line)
{
    (void)level;
    snprintf(logged, sizeof(logged), "%s", line);
}

static struct sockaddr_in address(uint16_t port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* A socket at that port, 0: any, which goes to *got; -1: somebody has it. */
static int take_port(int type, uint16_t port, uint16_t *got)
{
    struct sockaddr_in at = address(port);
    socklen_t length = sizeof(at);
    const int on = 1;
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    if (type == SOCK_STREAM)
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        (type == SOCK_STREAM && listen(fd, 1) < 0)) {
        cr_assert_eq(errno, EADDRINUSE);
        close(fd);
        return -1;
    }
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&at, &length), 0);
    if (got)
        *got = ntohs(at.sin_port);
    return fd;
}

static bool takes_connections(void *port)
{
    struct sockaddr_in at = address(*(const uint16_t *)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int err = connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0 ? errno : 0;

    close(fd);
    cr_assert(err == 0 || err == ECONNREFUSED);
    return err == 0;
}

static bool is_free(void *port)
{
    int fd = take_port(SOCK_DGRAM, *(const uint16_t *)port, NULL);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void set_up(void)
{
    log_set_sink(remember_line);
    cr_assert_eq(loop_create(&loop, 64), 0);
    nat_config_init(&config);
    config.name = "net0";
    config.forwards = &forward;
    config.n_forwards = 1;
    config.forwards_later = true;
}

static void tear_down(void)
{
    nat_destroy(nat);
    loop_destroy(loop);
}

TestSuite(nat_forwards, .init = set_up, .fini = tear_down, .timeout = 60);

/* A NAT with one forward, from a port that is free, or that `held` holds. */
static void start(const char *protocol, uint16_t port)
{
    char text[NET_FORWARD_TEXT_MAX];

    snprintf(text, sizeof(text), "%s:%u-:22", protocol, port);
    cr_assert_eq(net_forward_parse(&forward, text), 0);
    cr_assert_eq(nat_create(&nat, loop, &config), 0, "%s", logged);
}

Test(nat_forwards, take_their_ports_when_they_are_claimed_and_not_before)
{
    uint16_t port = 0;

    close(take_port(SOCK_STREAM, 0, &port));
    start("tcp", port);
    cr_expect_not(takes_connections(&port));
    nat_claim_forwards(nat);
    cr_expect(takes_connections(&port));
}

Test(nat_forwards, are_tried_again_while_another_has_the_port)
{
    uint16_t port = 0;
    int held = take_port(SOCK_STREAM, 0, &port);

    start("tcp", port);
    nat_claim_forwards(nat);
    cr_expect_str_empty(logged, "%s", logged);
    close(held);
    cr_expect_not(takes_connections(&port));
    cr_expect_eq(loop_run_until(loop, takes_connections, &port, DEADLINE_NS), 0);
}

Test(nat_forwards, leave_a_port_to_another_process_at_once)
{
    uint16_t port = 0;
    int other;

    close(take_port(SOCK_STREAM, 0, &port));
    start("tcp", port);
    nat_claim_forwards(nat);
    cr_assert_eq(take_port(SOCK_STREAM, port, NULL), -1);
    nat_release_forwards(nat);
    other = take_port(SOCK_STREAM, port, NULL);
    cr_expect_geq(other, 0);
    close(other);
    nat_claim_forwards(nat);
    cr_expect(takes_connections(&port), "and take it back");
}

Test(nat_forwards, leave_a_port_for_datagrams_when_the_loop_comes_to_it)
{
    uint16_t port = 0;

    close(take_port(SOCK_DGRAM, 0, &port));
    start("udp", port);
    nat_claim_forwards(nat);
    cr_assert_not(is_free(&port));
    nat_release_forwards(nat);
    cr_expect_eq(loop_run_until(loop, is_free, &port, DEADLINE_NS), 0);
}

Test(nat_forwards, are_done_without_where_the_host_has_no_such_address)
{
    cr_assert_eq(net_forward_parse(&forward, "tcp:192.0.2.1:2222-:22"), 0);
    cr_assert_eq(nat_create(&nat, loop, &config), 0, "%s", logged);
    nat_claim_forwards(nat);
    cr_expect_str_eq(logged, "net0: cannot forward TCP port 192.0.2.1:2222: this host does not have "
                             "that address");
}

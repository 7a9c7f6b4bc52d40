/*
 * The host sockets of a user-mode NAT and what happens on them.
 *
 * A library that wants poll(2) asks, each time before it would sleep, for events on all its
 * sockets, and afterwards which of them came. Here each socket has polls of its own in the event
 * loop's ring, which stay from one sleep to the next: a socket costs something only when it fired
 * or when the library wants of it what it did not want before.
 *
 * Event loop's thread.
 */
#ifndef FERRY_NET_NAT_POLLS_H
#define FERRY_NET_NAT_POLLS_H

#include <stdbool.h>

struct loop;
struct nat_flow;
struct nat_socket; /* a socket; one poll for input, one for output */

struct nat_polls {
    struct loop *loop;         /* borrowed */
    struct nat_socket **by_fd;   /* owns; NULL where no socket is known */
    unsigned n_fds;            /* length of by_fd */
    struct nat_socket *fired;    /* those with events that were not yet told */
    struct nat_socket *free;     /* owns; not in use, for the next socket */
    unsigned round;            /* counts calls of nat_polls_want_nothing() */
    unsigned open;             /* sockets in by_fd */
    unsigned closing;          /* sockets closed, whose polls are not back yet */
};

void nat_polls_init(struct nat_polls *polls, struct loop *loop);
/* Only when nat_polls_idle() is true. */
void nat_polls_fini(struct nat_polls *polls);
/* Closes what is open still, in the sense of nat_polls_close(). */
void nat_polls_close_all(struct nat_polls *polls);
/* Whether every socket was closed and none of its polls is under way. */
bool nat_polls_idle(const struct nat_polls *polls);

/* A socket came into being. Makes room for it, so that later calls need none; when that fails,
 * nat_polls_want() tries again. */
void nat_polls_open(struct nat_polls *polls, int fd);
/* The socket is about to be closed: its events no longer count, whoever gets the number next. To
 * be called before close(2); the file is let go when the loop next sleeps. */
void nat_polls_close(struct nat_polls *polls, int fd);

/* What is known of the connection of a socket that is open; NULL: there is no such socket. */
struct nat_flow *nat_polls_flow(const struct nat_polls *polls, int fd);

/* Asks for events (POLLIN, POLLOUT, POLLPRI) in place of those asked for earlier. 0 or -ENOMEM. */
int nat_polls_want(struct nat_polls *polls, int fd, short events);
/* Asks for nothing of any socket; to be followed by nat_polls_want() for those that matter. */
void nat_polls_want_nothing(struct nat_polls *polls);

/* Whether any socket has events to tell, or a poll that must be asked for anew. */
bool nat_polls_fired(const struct nat_polls *polls);
/* The events that came of those wanted, and POLLERR and POLLHUP; 0 for an unknown socket. */
short nat_polls_events(const struct nat_polls *polls, int fd);
/* All events were told. */
void nat_polls_clear(struct nat_polls *polls);

#endif

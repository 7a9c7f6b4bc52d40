/*
 * Who has the name of a unix socket, without disturbing whoever listens there.
 */
#ifndef FERRY_UTIL_UNIX_PROBE_H
#define FERRY_UTIL_UNIX_PROBE_H

#include <sys/un.h>

/*
 * For names of stream sockets. -EPROTOTYPE: a process has it; -ECONNREFUSED: its process has ended;
 * -ENOENT: it is free; others of socket(2) and connect(2). Never 0, never waits, not logged. Any thread.
 */
int unix_probe(const struct sockaddr_un *address);

#endif

/*
 * Looks at the name of a unix socket by one of another type, which cannot connect.
 *
 * One of the same type would: whoever listens had a visitor that leaves at once, and where its queue is full
 * the visitor would wait. No state; any thread. Text: unix(7), EPROTOTYPE.
 */
#include "vmm/util/unix_probe.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

int unix_probe(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int err = -EPROTOTYPE; /* a socket of our type has the name: it is taken all the same */

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
        err = -errno;
    close(fd);
    return err;
}

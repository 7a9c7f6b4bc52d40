/*
 * The folder for what lives as long as a process or a boot: control sockets, the probe's cache.
 */
#ifndef FERRY_UTIL_RUNDIR_H
#define FERRY_UTIL_RUNDIR_H

#include <stddef.h>

/*
 * $XDG_RUNTIME_DIR/ferry, or for root without that variable /run/ferry; made (mode 0700) when it is
 * not there. 0; -ENOENT: there is neither; -ENAMETOOLONG; -EPERM: it belongs to another user, or
 * others can write it; of mkdir(2). Not logged. Any thread.
 */
int rundir_path(char *path, size_t size);

#endif

/*
 * Finds and makes the run-time folder. No state; any thread.
 *
 * Text: XDG Base Directory Specification 0.8, XDG_RUNTIME_DIR.
 */
#include "vmm/util/rundir.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int rundir_path(char *path, size_t size)
{
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    struct stat st;
    int len;

    if (!runtime || *runtime != '/') {
        if (geteuid() != 0)
            return -ENOENT;
        runtime = "/run";
    }
    len = snprintf(path, size, "%s/ferry", runtime);
    if (len < 0 || (size_t)len >= size)
        return -ENAMETOOLONG;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return -errno;
    if (lstat(path, &st) < 0)
        return -errno;
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
        return -EPERM;
    return 0;
}

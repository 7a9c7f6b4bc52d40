/*
 * The file behind guest memory: one without a name, made to be mapped, shared and handed over.
 *
 * It is a memfd, or better: a file of a tmpfs of our own. The kernel lends huge pages to a memfd only
 * where the administrator said so (shmem_enabled), which is nowhere by default; a tmpfs mounted with
 * huge=advise has them on request, as anonymous memory has. The first touch of 2 MiB is then one
 * fault instead of 512, and KVM's tables are a level shorter. Both are shmem to the kernel.
 */
#ifndef FERRY_MEMORY_FILE_H
#define FERRY_MEMORY_FILE_H

#include <stdbool.h>
#include <stdint.h>

struct memory_file {
    int fd;
    int mount; /* the tmpfs, or -1. To close it takes a while on a busy host: not before the end */
};

#define MEMORY_FILE_NONE {.fd = -1, .mount = -1}

/*
 * A file of size bytes, all of them holes. hugepage: 0, or the size in bytes of the huge pages that
 * it is to be made of, from those that the host has set apart. The caller ends *out by
 * memory_file_close(). Errors, not logged: those of memfd_create(2) and ftruncate(2).
 */
int memory_file_open(struct memory_file *out, uint64_t size, uint64_t hugepage);
void memory_file_close(struct memory_file *file);

/*
 * Whether a file that another process handed over has this size and keeps it: it is sealed, or of a
 * user whose processes may do to this one what they like anyway.
 */
bool memory_file_is_sound(int fd, uint64_t size);

/* Whether this host lends huge pages of 2 MiB to such files: found out by touching one. */
bool memory_file_lends_huge_pages(void);

#endif

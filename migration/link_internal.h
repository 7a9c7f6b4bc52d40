/*
 * What the files of a connection share: link.c, link_address.c.
 */
#ifndef FERRY_MIGRATION_LINK_INTERNAL_H
#define FERRY_MIGRATION_LINK_INTERNAL_H

#include "migration/link.h"

/* Waits until fd is readable. -ETIMEDOUT at deadline_ns; -ECANCELED, -ECONNRESET: the link was
 * cancelled, its peer hung up. */
int link_await_beside(struct link *link, int fd, uint64_t deadline_ns);

#endif

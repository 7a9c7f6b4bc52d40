/*
 * The file in which a DHCP server's bindings outlive it.
 */
#ifndef FERRY_NET_DHCP_STORE_H
#define FERRY_NET_DHCP_STORE_H

#include <netinet/in.h>
#include <stdint.h>

struct dhcp_leases;
struct dhcp_store;
struct loop;

/*
 * Opens the file, makes it if it is not there, and binds what it says, each until `until`. A line that
 * is none is passed over. name: for messages, borrowed, as loop is. Errors, logged: those of open(2);
 * -EBUSY: another process uses it; -ENOMEM. Loop's thread.
 */
int dhcp_store_open(struct dhcp_store **out, struct loop *loop, const char *name, const char *path,
                    struct dhcp_leases *leases, uint64_t until);
/* Writes what is still to be written. Not from a callback of the loop. NULL is fine. */
void dhcp_store_close(struct dhcp_store *store);

/* Has a binding written soon. Does not block. */
void dhcp_store_add(struct dhcp_store *store, const uint8_t mac[6], struct in_addr address);

/* $XDG_STATE_HOME/ferry/NAME, for root without that variable /var/lib/ferry/NAME, else
 * ~/.local/state/ferry/NAME; the folders are made. 0, -ENOENT, -ENAMETOOLONG or of mkdir(2). */
int dhcp_store_path(const char *name, char *path, size_t size);

#endif

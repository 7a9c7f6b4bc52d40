/*
 * Records of what was made on the host and outlives the process: links that no descriptor holds, a
 * setting that was changed, a socket's name. Whatever vanishes with a descriptor at once (a filter's
 * table) is made so and needs none. A tap vanishes with its descriptors, but a killed process's ring
 * holds them a moment longer than the process lives: long enough for the next ferry to find the
 * network taken.
 *
 * A record is a file in the run directory, made before the thing is and removed after it. Its
 * process holds a lock on it; a record that nobody holds is one whose process was killed, and the
 * next ferry takes away what it names, having checked that it is still the thing meant. What was
 * not made by Ferry has no record and is never touched.
 */
#ifndef FERRY_NET_MADE_H
#define FERRY_NET_MADE_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#define MADE_TAG_MAX 48

/* One record. Zero-initialised with fd -1 is none. */
struct made {
    int fd;                 /* owns: holds the lock */
    char tag[MADE_TAG_MAX]; /* the record's name, unique on this host: PID-START-NUMBER */
};

#define MADE_NONE {.fd = -1}

/*
 * A macvtap of that name and address is about to be made in this network namespace. made->tag is to
 * become its alias. Errors, logged: -ENOENT (no run directory), those of files.
 */
int made_macvtap(struct made *made, const char *name, const uint8_t mac[6]);

/*
 * There is a tap of that name and address in this network namespace, which this process made. Where
 * it cannot be noted, the kernel takes it away as well, only later.
 */
void made_tap(struct made *made, const char *name, const uint8_t mac[6]);

/* A unix socket is about to be bound at this absolute path, where nothing is. Errors as above. */
int made_socket(struct made *made, const char *path);

/* It was bound: notes which file it is. Without this, only a socket that nobody serves is taken away. */
void made_socket_bound(struct made *made, const char *path);

/*
 * Has the host forward IPv4 packets that arrive at the link, unless it does already. *changed tells
 * whether it would not, but for Ferry: then the record is there, and made_undo() restores that when
 * no other guest needs it any more. Errors, logged: as above; -EACCES, -EROFS of the setting.
 */
int made_forwarding(struct made *made, const char *link, bool *changed);

/* It was not made after all: removes the record and touches nothing else. */
void made_forget(struct made *made);
/* Takes the thing away and removes the record. No effect on MADE_NONE. */
void made_undo(struct made *made);

/* Takes away what processes left that were killed. Cheap when there is nothing. */
void made_sweep(void);

#endif

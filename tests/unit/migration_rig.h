/*
 * Both sides of a migration in one process, with wires between them that a test can cut or spoil at
 * any byte: the machine's part of each side, a guest whose log is kept by hand.
 */
#ifndef FERRY_TESTS_MIGRATION_RIG_H
#define FERRY_TESTS_MIGRATION_RIG_H

#include <pthread.h>

#include "migration/pages.h"
#include "migration/source.h"
#include "migration/target.h"

#define PAGE 4096ull
#define SIZE (8 * MIB)
#define NO_FAULT UINT64_MAX
#define STATE "registers of the guest"
#define RIG_WIRES PAGES_MAX_STREAMS

enum fault { CUT, SPOIL };

struct wire {
    int ends[2];      /* the pump's */
    uint64_t at[2];   /* bytes of each direction, 0: from the source, before the fault */
    enum fault fault;
    uint64_t passed[2];
};

static const struct wire sound = {.at = {NO_FAULT, NO_FAULT}};

struct guest {
    struct guest_memory *mem;
    struct source_config config;
    uint64_t dirty[2][SIZE / PAGE / 64];
    bool logging;
    bool own_write;  /* of a device, when the log is read first */
    unsigned writes; /* pages that it still writes, one batch each time the log is read */
    unsigned batch;
    unsigned throttle, most_throttle;
    struct source *source; /* to be cancelled at the first look into the log, or NULL */
    struct snapshot hello, state;
    /* Further connections: each is a wire to the door, with the fault of `further`. */
    int door_fd;
    struct wire further;
    struct wire *wires; /* RIG_WIRES */
    pthread_t *pumps;
    unsigned n_wires;
};

/* Two regions, as many pages in each. */
struct guest_memory *new_memory(void);
/* Twelve pages of it are written. */
struct guest *new_guest(void);
void destroy_guest(struct guest *g);
/* Pages are counted through both regions by turns. */
void guest_write(struct guest *g, unsigned page, uint8_t byte);
extern const struct source_ops rig_ops;
/* Connects to where the further connections go. */
int rig_knock(const struct guest *g);

enum verdict { GAVE_UP, DOUBT, RUNS };

struct arrival {
    struct link *link;
    int door_fd;
    struct guest_memory *mem;
    struct snapshot state;
    bool refuse_disks; /* after the right to run came */
    enum verdict verdict;
};

struct result {
    int source;
    enum verdict target;
    struct source_status status;
    uint64_t passed[2];
    uint64_t further_passed[RIG_WIRES]; /* from the source */
    struct arrival arrival; /* its memory and state, to be freed */
};

/* The destination's part; arg is a struct arrival. */
void *arrive_main(void *arg);
/* The source's part, as the machine does it. cancel: at the first look into the log. */
int leave(struct guest *g, struct source *s, bool cancel);
/* All of it. refuse_disks: the destination gives up after the right to run came. */
struct result migrate(struct guest *g, const struct wire *faults, bool cancel, bool refuse_disks);
bool same_memory(const struct guest *g, const struct result *r);
void end_result(struct result *r);

#endif

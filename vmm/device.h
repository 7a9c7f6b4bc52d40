/*
 * What a device is, and what it may use of the machine.
 *
 * The device lock: one mutex of the machine (device_env.lock). vCPU threads hold it while they
 * carry an exit to a bus handler; the event loop's callbacks take it (device_lock()) around
 * whatever touches a device's registers or queues. It is a leaf but for log and loop_call(): no
 * blocking call is made under it. Handlers of a bus region are entered with the lock held.
 *
 * Order: create .. [reset ..] start .. pause/resume .. destroy. A device is created in its reset
 * state. Every operation below is called on the event loop's thread with the lock held, unless its
 * comment says otherwise.
 */
#ifndef FERRY_DEVICE_H
#define FERRY_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/memory.h"
#include "vmm/util/state.h"

struct bus;
struct intc;
struct loop;
struct device;

/* Registers an eventfd for guest writes to an address (KVM's ioeventfd), so that a notification
 * costs no exit to user space. An operations table for the sake of tests. Lock held. */
struct doorbells;
struct doorbell_ops {
    /* fd is written for each guest write of `size` bytes (0: any size) at MMIO address gpa; the
     * value written is not seen. -ENOSPC, -EEXIST, others of KVM_IOEVENTFD; not logged. When it
     * fails, the device's bus region sees the write instead. */
    int (*add)(struct doorbells *bells, gpa_t gpa, unsigned size, int fd);
    void (*remove)(struct doorbells *bells, gpa_t gpa, unsigned size, int fd);
};
struct doorbells {
    const struct doorbell_ops *ops;
};

/* What ends or restarts the guest. Any thread; the first cause wins; returns at once. */
enum machine_event {
    MACHINE_POWER_OFF, /* the guest switched itself off */
    MACHINE_RESET,     /* the guest asked for a reset */
    MACHINE_PANIC,     /* the guest said it crashed */
};
struct machine_events {
    void (*raise)(struct machine_events *events, enum machine_event event, const char *cause);
};

/* All borrowed from the machine for the device's whole life. */
struct device_env {
    struct guest_memory *mem;
    struct bus *pio;
    struct bus *mmio;
    struct intc *intc;
    struct doorbells *doorbells;
    struct loop *loop;
    struct machine_events *events;
    pthread_mutex_t *lock;
};

/* One record of a device's state: a description and how it is taken from and put into the device. */
struct state_part {
    const struct state_desc *desc;
    void *object;                                   /* passed to the three below */
    void (*get)(void *object, void *state);         /* fills a desc->size struct */
    int (*check)(void *object, const void *state);  /* 0, or -EINVAL, logged; changes nothing */
    void (*set)(void *object, const void *state);   /* after every part's check gave 0 */
};
#define DEVICE_MAX_PARTS 4

struct device_ops {
    const char *type; /* "uart16550a" */
    /* Back to power-on state: as after create. No request is in flight (pause came before). */
    void (*reset)(struct device *dev);
    /* Stop taking new requests. What is in flight is finished by the loop; busy() tells. May be
     * NULL, together with busy and resume, for devices that start no asynchronous work. */
    void (*pause)(struct device *dev);
    bool (*busy)(const struct device *dev);
    void (*resume)(struct device *dev);
    /* Fills parts (at most DEVICE_MAX_PARTS), returns how many. Paused and idle. */
    unsigned (*state)(struct device *dev, struct state_part *parts);
    /* Instead of loading: the guest was saved by a ferry that had no such device. NULL: it cannot be
     * done without. */
    void (*absent)(struct device *dev);
    /* Frees all, dev too. Without the lock; vCPUs have ended, nothing is in flight; the loop may
     * still be run by destroy to get its cancelled operations back. */
    void (*destroy)(struct device *dev);
};

/* The head of every device's struct. */
struct device {
    const struct device_ops *ops;
    char id[32]; /* instance: "disk0"; unique in the machine, the name in messages and streams */
};

/* dev NULL is fine for destroy. */
void device_reset(struct device *dev);
void device_pause(struct device *dev);
bool device_busy(const struct device *dev);
void device_resume(struct device *dev);
void device_destroy(struct device *dev);

/* Appends all parts' records. 0 or -ENOMEM. The device is paused and idle. */
int device_save(struct device *dev, struct state_buffer *out);
/*
 * Reads all parts into temporaries, checks all, then sets all: at any error nothing changed.
 * Errors of state_load() and -EINVAL; logged with the device's id.
 */
int device_load(struct device *dev, struct state_reader *in);
/* Whether a guest can come that was started without it; then device_absent() says that. */
bool device_may_be_absent(const struct device *dev);
void device_absent(struct device *dev);

static inline void device_lock(const struct device_env *env)
{
    pthread_mutex_lock(env->lock);
}

/* Whether it was had at once. */
static inline bool device_trylock(const struct device_env *env)
{
    return pthread_mutex_trylock(env->lock) == 0;
}

static inline void device_unlock(const struct device_env *env)
{
    pthread_mutex_unlock(env->lock);
}

#endif

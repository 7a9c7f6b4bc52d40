/* Shared between vmm/machine.c and the architecture's part of the machine; see vmm/machine.h. */
#ifndef FERRY_MACHINE_INTERNAL_H
#define FERRY_MACHINE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "vmm/control.h"
#include "vmm/device.h"
#include "vmm/machine.h"
#include "vmm/util/loop.h"

#define MACHINE_MAX_DEVICES 64

struct announcer;
struct chardev;
struct kernel_image;
struct lazy;
struct loop_thread;
struct migration;
struct nic_follow;
struct pci_bus;
struct process_switch;
struct snapshot;
struct stream_reader;
struct switch_port;
struct target;
struct uplink;
struct vcpus;
struct virtio_device;
struct vm;

/* What a NIC is plugged into, and the environment of its device. */
struct machine_nic {
    char id[16];                /* "net0" */
    struct device_env env;      /* the machine's, but for the loop */
    struct virtio_device *card; /* borrowed from devices[] */
    struct process_switch *net; /* borrowed; NULL: it has an uplink of its own */
    struct switch_port *port;   /* of the switch; on its thread */
    struct uplink *uplink;      /* owned */
    struct announcer *announcer; /* owned; NULL: the guest has always been here */
    struct virtio_device *vdev; /* borrowed from devices[] */
    struct nic_follow *follow;  /* owned; NULL: it has not moved; machine_follow.c */
};

struct machine {
    const struct machine_config *config; /* borrowed */
    struct process *process;             /* borrowed, as is its: */
    struct loop *loop;
    char label[CONTROL_NAME_MAX + 3];    /* "NAME: " before messages where there are several guests */
    struct device_env env;               /* what is handed to each device */
    bool assist;                         /* KVM emulates kernel code: vCPUs and kernel need help */

    /* Borrowed while a saved guest is being restored; else NULL. */
    const struct snapshot *snapshot;
    const struct stream_reader *restore_from;
    bool restore_lazily; /* memory comes when it is touched */
    bool fresh_macs;     /* NICs have the configuration's addresses, not the saved ones */

    /* In the order of building; each owned. */
    pthread_mutex_t lock; /* the device lock */
    struct guest_memory *mem;
    struct lazy *lazy; /* brings what is in it from a file; or NULL: all is there */
    struct kernel_image *kernel; /* NULL after a restore, until the first reset */
    struct vm *vm;
    struct bus *pio, *mmio;
    struct chardev *serial;         /* the UART's back end */
    struct chardev *virtio_console; /* or NULL */
    char console_path[108];         /* of the console's socket; "": there is none */
    struct device *devices[MACHINE_MAX_DEVICES];
    /* Borrowed: the thread whose loop a device is on; NULL: the process's loop. */
    struct loop_thread *device_threads[MACHINE_MAX_DEVICES];
    unsigned n_devices;
    struct machine_nic nics[MACHINE_MAX_NETS];
    struct vcpus *vcpus;
    struct virtio_device *disks[MACHINE_MAX_DISKS]; /* borrowed from devices[] */
    unsigned n_disks;

    /* Borrowed from devices[]. */
    struct pci_bus *pci;
    struct device *power;
    struct device *genid;

    /* Raised by any thread, taken by the loop's. */
    struct machine_events events;
    pthread_mutex_t event_lock; /* guards the three below; a leaf */
    bool event_raised;
    enum machine_event event;
    char event_cause[200];

    /* The loop's thread alone. */
    struct loop_timer grace;
    char *save_path;   /* owns; set while a save is asked for and not done */
    bool save_live;    /* ... of a guest that runs on until little of it is left to write */
    bool saving;       /* neither paused nor resumed by others meanwhile */
    struct migration *migration; /* owns: the one under way, or the last; machine_migrate.c */
    bool incoming;     /* built for a guest of another process, whose disks are still that one's */
    int incoming_fd;   /* while building: the guest's memory, or -1 */
    bool shared_memory; /* it is what another process handed over */
    struct target *arrival; /* borrowed while a guest arrives; machine_receive.c */
    bool arrived;      /* ... and runs already when the process begins to */
    bool in_doubt;     /* the guest may run elsewhere: paused until told to run */
    bool paused;       /* vCPUs parked and devices paused, until machine_resume() */
    int signal_number; /* the first that asked for the end, or 0 */
    bool ended;        /* outcome says how */
    bool told;         /* process_run() has told of the end */
    bool in_service;   /* machine_serve() is under way: another guest's wait passes it over */
    enum machine_outcome outcome;
};

/* Takes over a device that was created; it is destroyed in reverse order. -ENOSPC frees it. The
 * second: one whose loop is a thread's, on which it was created. */
int machine_add_device(struct machine *m, struct device *dev);
int machine_add_device_on(struct machine *m, struct device *dev, struct loop_thread *thread);
/* Runs work on the thread whose loop the device is on, with the device lock held; returns what it
 * returned. Called without the lock, and not from a callback of that loop. */
int machine_on_device(struct machine *m, unsigned index,
                      int (*work)(struct device *dev, void *arg), void *arg);

/* ---- NICs; machine_nics.c ---- */

int machine_build_nets(struct machine *m);
/* After their state was loaded: see virtio_net_take_own_mac(). */
void machine_nets_take_own_macs(struct machine *m);
/* Takes the host's ports that lead to the guest by its own uplinks, or lets them go: see net/nat.h. The
 * NICs of a machine that is built for a guest to come have none yet. */
void machine_nets_hold_ports(struct machine *m, bool hold);
/* The devices are gone. */
void machine_remove_nets(struct machine *m);

/* ---- the console; machine_console.c ---- */

int machine_build_console(struct machine *m);
void machine_remove_console(struct machine *m);

/* ---- for the process; not from a callback of the loop ---- */

void machine_start(struct machine *m);
/* Acts on what was raised since: the end, a reset, a save. Does nothing when there is nothing. */
void machine_serve(struct machine *m);
/* The guest has ended: no vCPU runs any more. */
void machine_halt(struct machine *m);
/* Runs the loop, serving other guests, until ready(arg). */
int machine_wait(struct machine *m, bool (*ready)(void *arg), void *arg);

/* Presses the power button; after the grace period the guest is ended. number: of the signal that
 * asked, or 0. From anywhere on the loop's thread, as is the next. */
void machine_ask_to_end(struct machine *m, int signal_number);
void machine_kill(struct machine *m);

/* ---- what the control socket can ask for; loop's thread; machine_control.c has the routes ---- */

extern const struct control_route machine_routes[];
/* What vm.info answers; NULL without memory. */
json_t *machine_describe(const struct machine *m);

/* vCPUs parked, devices take no new requests; those in flight end soon after. -EALREADY. */
int machine_pause(struct machine *m);
int machine_resume(struct machine *m); /* -EALREADY */
/* Whether the guest asked for its end or a reset, which is still to be acted on. Any thread. */
bool machine_event_pending(struct machine *m);
/* vCPUs parked, devices paused, nothing in flight. Not from a callback of the loop. */
int machine_quiesce(struct machine *m);
/* Saves to m->save_path and ends the guest, or, after a failure, lets it run on; answers whoever
 * asked. Not from a callback of the loop. 0. */
int machine_save(struct machine *m);
/* Adds the state of devices, VM and vCPUs to a snapshot. Quiesced. */
int machine_gather(struct machine *m, struct snapshot *snapshot);
/* Fills a machine that was just built from m->snapshot. The second: memory is there already; and
 * the devices stay paused. */
int machine_load(struct machine *m);
int machine_load_state(struct machine *m);
/* Blocks until all of memory is there, if it still comes from a file. -ECANCELED when cancel_fd becomes
 * readable before (-1: never). Any thread but the loop's. */
int machine_await_memory(const struct machine *m, int cancel_fd);
void machine_end_saved(struct machine *m);
void machine_end_migrated(struct machine *m);
/*
 * Does work that blocks on a thread of its own, and serves the loop meanwhile. When the guest is ended
 * during it, `cancel` (may be NULL) is called once, and is to let it end soon. The work's result, or
 * a negative errno, logged. Not from a callback of the loop.
 */
int machine_work(struct machine *m, int (*work)(void *arg), void (*cancel)(void *arg), void *arg);

/* ---- migration: leaving (machine_migrate.c) ---- */

struct source_ops;
extern const struct source_ops machine_source_ops; /* of a struct machine */

extern const struct control_route machine_migrate_routes[];

/* Goes on with a migration that was asked for or whose thread is done. Not from a callback. */
void machine_migrate_serve(struct machine *m);
/* Cancels what is under way and frees it. */
void machine_migrate_destroy(struct machine *m);
/* Whether a migration, out or in, is under way. */
bool machine_is_moving(const struct machine *m);
/* Takes (or gives away) the locks of all disks; at an error those taken are given back. */
int machine_lock_disks(struct machine *m, bool locked);
/* Another process may run the guest; whoever says `force` knows that none does. As
 * machine_resume(), and -EBUSY: another process has a disk. */
int machine_resume_by_force(struct machine *m);

/* ---- migration: the addresses of NICs (machine_announce.c) ---- */

/* Adds those that were seen, and what else of NICs and their ports goes along, to a state that
 * leaves; announces the addresses of a state that came. */
int machine_add_network(struct machine *m, struct snapshot *state);
void machine_announce(struct machine *m, const struct snapshot *state);
/* Before the NICs are destroyed. */
void machine_stop_announcing(struct machine *m);

/* ---- migration: what both sides say of a machine (machine_compat.c) ---- */

/* What the guest is, for the other side. vCPUs parked. */
int machine_introduce(struct machine *m, bool check, struct snapshot *hello);
void machine_press_power_button(struct machine *m);
void machine_restart(struct machine *m, const char *cause);
void machine_quit(struct machine *m);

/* ---- the architecture's part ---- */

/* The size of the low RAM and the hole above it. */
void machine_arch_memory(struct memory_config *config);
/* The chips of the platform, the PCI bus among them (m->pci, m->power). */
int machine_arch_devices(struct machine *m);
/* Firmware tables and kernel into memory, the first vCPU at its entry. At start and after a reset. */
int machine_arch_load(struct machine *m);

#endif

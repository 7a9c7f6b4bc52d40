/*
 * What a person asked for: the machine that `ferry run` builds, as plain data.
 *
 * cmd_run.c fills it from the command line; machine.c builds from it. Part of the composition root,
 * like them. Strings are owned by the struct. One thread at a time.
 */
#ifndef FERRY_MACHINE_CONFIG_H
#define FERRY_MACHINE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "firmware/kernel.h"
#include "net/switch.h"
#include "net/uplink.h"
#include "vmm/machine_net.h"
#include "vmm/util/options.h"

/* A NIC takes a PCI slot, as does a disk; bus 0 has 32. */
#define MACHINE_MAX_DISKS 16
#define MACHINE_MAX_NETS 8
#define MACHINE_MAX_CPUS 4096 /* what an option may ask for; KVM's own limit is lower */
#define MACHINE_MIN_MEMORY (32 * MIB)

struct memory_options {
    uint64_t size;      /* bytes; a multiple of 4 KiB and of hugepages */
    uint64_t hugepages; /* 0, or the size of the huge pages to use: 2 MiB or 1 GiB */
    unsigned dirty_ring; /* entries of each vCPU's ring of written pages; 0: KVM's log instead */
    bool prealloc;      /* take every page from the host before the guest starts */
};

struct disk_options {
    char *path;
    bool readonly;
    bool direct;  /* O_DIRECT: past the host's page cache */
    char *serial; /* NULL: none given; at most 20 bytes (virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID) */
    bool event_idx, indirect, packed; /* what is offered of the queues' properties */
};

struct net_options {
    char *text; /* as it was given */
    struct option_mac mac; /* always given after machine_config_finish() */
    struct net_card_options card;
    char switch_name[NET_NAME_MAX]; /* ""; or what it is plugged into, by a port of: */
    struct switch_port_config port;
    bool monitor; /* the port gets copies only */
    struct uplink_config uplink;
};

/* Where the guest's console is: the terminal, or standard input and output, by way of ... */
enum console_kind {
    CONSOLE_SERIAL, /* the 16550A: console=ttyS0 */
    CONSOLE_VIRTIO, /* virtio-console: console=hvc0; the 16550A is there, connected to nothing */
    CONSOLE_OFF,    /* nothing; standard input is not read */
};

struct machine_config {
    char *name;
    char *lab;           /* the process's name where several guests share it; else NULL */
    bool console_socket; /* the console is on a socket instead of the terminal */
    unsigned cpus;
    struct memory_options memory;
    char *kernel;
    char *initrd; /* or NULL */
    char *append; /* never NULL after machine_config_finish() */
    enum decompress_mode decompress;
    enum console_kind console;
    struct disk_options disks[MACHINE_MAX_DISKS];
    unsigned n_disks;
    struct net_options nets[MACHINE_MAX_NETS];
    unsigned n_nets;
    bool no_net;      /* --net none: without effect but to forbid another --net */
    bool no_reboot;   /* a reset ends the guest as a power-off does */
    unsigned grace_s; /* from the power button to the end of a guest that stays up */
};

/* Sets the defaults. Nothing is owned yet. */
void machine_config_init(struct machine_config *config);
/* Frees what the struct owns. */
void machine_config_fini(struct machine_config *config);

/*
 * Read what stands behind one --memory, --disk, --net ("disk.img,readonly=on"). 0, -EINVAL, -ENOMEM,
 * -ENOSPC; logged.
 */
int machine_config_add_memory(struct machine_config *config, const char *text);
int machine_config_add_disk(struct machine_config *config, const char *text);
int machine_config_add_net(struct machine_config *config, const char *text);
/* The same, of a list that may come from a file. */
int machine_config_set_memory(struct machine_config *config, const struct option_list *list);
int machine_config_put_disk(struct machine_config *config, const struct option_list *list);
int machine_config_put_net(struct machine_config *config, const struct option_list *list);

/*
 * Checks what only the whole can tell and fills in the defaults that depend on it: the name, the
 * kernel's command line, the NICs' addresses. 0, -EINVAL (logged), -ENOMEM (logged).
 */
int machine_config_finish(struct machine_config *config);
/* Gives each NIC another address, at random; after machine_config_finish(). 0, of getrandom(2). */
int machine_config_draw_macs(struct machine_config *config);
/* machine_config_finish() of a guest in a file: `where` is its place. */
int machine_config_finish_at(struct machine_config *config, const char *where);

#endif

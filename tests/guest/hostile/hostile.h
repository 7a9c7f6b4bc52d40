/*
 * The payload hostile: a guest that breaks the rules, one attack after the other.
 *
 * The victim is the first virtio-blk; the witness, a virtio-rng, is never attacked. After each
 * attack the victim must come back by a reset and answer a good request, and the witness must
 * answer one, or the attack is `not ok`. That the VMM is alive is what all of this shows.
 */
#ifndef GUEST_HOSTILE_H
#define GUEST_HOSTILE_H

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define VICTIM_SECTOR 512
#define VICTIM_DATA   65536

/* What must follow from an attack. */
enum outcome {
    MUST_BREAK, /* DEVICE_NEEDS_RESET comes */
    MAY_BREAK,  /* whatever the device does, it comes back */
    MUST_WORK,  /* the device goes on without a reset */
};

struct victim_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct victim {
    struct virtio_device device;
    struct virtqueue queue;
    struct victim_header *header;
    uint8_t *data;   /* VICTIM_DATA bytes */
    uint8_t *status; /* of a request */
};

extern struct victim victim;
extern uint64_t ram_end; /* behind the RAM below 4 GiB */

/* Finds victim and witness and starts the witness; false and a line when one is missing. */
bool victim_open(void);

/* Resets the victim and goes as far as FEATURES_OK. */
bool victim_prepare(uint64_t features);
/* ... and on to a live queue 0. */
bool victim_start(uint64_t features);
/* One good read of sector 0. */
bool victim_works(void);
bool witness_works(void);

/* Descriptor i of the live queue, and chain head into the available ring, with a notification. */
void victim_put(uint16_t i, uint64_t address, uint32_t length, uint16_t flags, uint16_t next);
void victim_post(uint16_t head);
/* The three descriptors of a good read request from descriptor `at` on. */
void victim_put_request(uint16_t at);

/* Waits for what must come, brings the victim back, asks the witness; ok or not ok name. */
void attack_end(const char *name, enum outcome expected);

/* A xorshift sequence, the same in each run unless seed=N is given. */
uint64_t chance(void);

/* The attacks, by mode. */
void attack_rings(void);
void attack_status(void);
void attack_chains(void);
void attack_indirect(void);
void attack_notify(void);
void attack_reset(void);
void attack_random(void);
void attack_race(void);
void attack_msix(void);
void attack_bars(void);
void attack_config(void);
void attack_ports(void);
void attack_blk(void);
void attack_net(void);
void attack_queues(void);
void attack_console(void);

#endif

/*
 * MAC tables: which port an address is behind, for a switch. Open addressing, keyed hash.
 *
 * The same address may be in a table several times, by different ports. Loop thread; no locks.
 */
#ifndef FERRY_NET_MAC_TABLE_H
#define FERRY_NET_MAC_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "net/flow.h"

struct mac_entry {
    uint64_t key;   /* of mac_key(); 0: free */
    uint32_t stamp; /* the user's: when it was last seen, or its turn */
    uint16_t port;
    uint16_t unused;
};
_Static_assert(sizeof(struct mac_entry) == 16, "four in a cache line");

struct mac_table {
    struct mac_entry *entries;
    uint32_t mask;  /* slots - 1; a power of two */
    uint32_t used;
    uint64_t seed[2];
};

/* An address in a VLAN; for addresses without regard to VLANs, vlan is 0. Never 0. */
static inline uint64_t mac_key(const uint8_t mac[6], unsigned vlan)
{
    return flow_mac(mac) | (uint64_t)vlan << 48 | 1ull << 63;
}

static inline void mac_of_key(uint64_t key, uint8_t mac[6], unsigned *vlan)
{
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)(key >> 8 * i);
    *vlan = key >> 48 & 0xFFF;
}

static inline uint32_t mac_table_slot(const struct mac_table *table, uint64_t key)
{
    return (uint32_t)flow_fold(key ^ table->seed[0], table->seed[1]) & table->mask;
}

/* The first entry with the key, or NULL. */
static inline struct mac_entry *mac_table_find(const struct mac_table *table, uint64_t key)
{
    uint32_t slot = mac_table_slot(table, key);

    while (table->entries[slot].key != 0) {
        if (table->entries[slot].key == key)
            return &table->entries[slot];
        slot = (slot + 1) & table->mask;
    }
    return NULL;
}

/* The next with the same key, or NULL. */
struct mac_entry *mac_table_next(const struct mac_table *table, const struct mac_entry *entry);

/* room: entries that fit at first. 0 or -ENOMEM. fini leaves it zeroed and takes a zeroed one. */
int mac_table_init(struct mac_table *table, uint32_t room);
void mac_table_fini(struct mac_table *table);

/* How many entries it holds without growing. */
uint32_t mac_table_room(const struct mac_table *table);
/* Makes room for that many. 0 or -ENOMEM. Moves entries. */
int mac_table_grow(struct mac_table *table, uint32_t room);
/* Adds an entry, for which there must be room. */
void mac_table_add(struct mac_table *table, uint64_t key, uint16_t port, uint32_t stamp);
/* Takes it away; other entries may move to where it was, so that a walk looks there again.
 * Entries of the same key keep their order. */
void mac_table_remove(struct mac_table *table, struct mac_entry *entry);
/* Takes away all entries for which `gone` is true. Returns how many. */
uint32_t mac_table_purge(struct mac_table *table,
                         bool (*gone)(const struct mac_entry *entry, const void *arg),
                         const void *arg);

#endif

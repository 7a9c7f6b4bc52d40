/*
 * MAC tables: open addressing with linear probing, at most half full, so that a walk is short; a
 * removal closes its gap, so that there are no marks of what was removed.
 *
 * Does not know what is registered, learnt or old. Loop thread; no locks.
 */
#include "net/mac_table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static uint32_t slots_for(uint32_t room)
{
    uint32_t slots = 16;

    while (slots / 2 < room)
        slots *= 2;
    return slots;
}

int mac_table_init(struct mac_table *table, uint32_t room)
{
    struct flow_seed seed;
    uint32_t slots = slots_for(room);

    flow_seed_init(&seed);
    *table = (struct mac_table){
        .entries = calloc(slots, sizeof(*table->entries)),
        .mask = slots - 1,
        .seed = {seed.words[0], seed.words[1]},
    };
    return table->entries ? 0 : -ENOMEM;
}

void mac_table_fini(struct mac_table *table)
{
    free(table->entries);
    *table = (struct mac_table){0};
}

uint32_t mac_table_room(const struct mac_table *table)
{
    return (table->mask + 1) / 2;
}

void mac_table_add(struct mac_table *table, uint64_t key, uint16_t port, uint32_t stamp)
{
    uint32_t slot = mac_table_slot(table, key);

    assert(table->used < mac_table_room(table));
    while (table->entries[slot].key != 0)
        slot = (slot + 1) & table->mask;
    table->entries[slot] = (struct mac_entry){.key = key, .port = port, .stamp = stamp};
    table->used++;
}

int mac_table_grow(struct mac_table *table, uint32_t room)
{
    struct mac_table larger = *table;
    uint32_t start = 0;

    if (room <= mac_table_room(table))
        return 0;
    larger.mask = slots_for(room) - 1;
    larger.used = 0;
    larger.entries = calloc(larger.mask + 1, sizeof(*larger.entries));
    if (!larger.entries)
        return -ENOMEM;
    /* From behind a free slot on, so that entries of one key are met in their order. */
    while (table->entries[start].key != 0)
        start++;
    for (uint32_t i = 1; i <= table->mask; i++) {
        const struct mac_entry *entry = &table->entries[(start + i) & table->mask];

        if (entry->key != 0)
            mac_table_add(&larger, entry->key, entry->port, entry->stamp);
    }
    free(table->entries);
    *table = larger;
    return 0;
}

struct mac_entry *mac_table_next(const struct mac_table *table, const struct mac_entry *entry)
{
    uint32_t slot = (uint32_t)(entry - table->entries);

    do {
        slot = (slot + 1) & table->mask;
        if (table->entries[slot].key == entry->key)
            return &table->entries[slot];
    } while (table->entries[slot].key != 0);
    return NULL;
}

void mac_table_remove(struct mac_table *table, struct mac_entry *entry)
{
    uint32_t hole = (uint32_t)(entry - table->entries), slot = hole;

    for (;;) {
        uint32_t home;

        slot = (slot + 1) & table->mask;
        if (table->entries[slot].key == 0)
            break;
        /* It may move up unless its walk starts behind the hole. */
        home = mac_table_slot(table, table->entries[slot].key);
        if (((slot - home) & table->mask) < ((slot - hole) & table->mask))
            continue;
        table->entries[hole] = table->entries[slot];
        hole = slot;
    }
    table->entries[hole] = (struct mac_entry){0};
    table->used--;
}

uint32_t mac_table_purge(struct mac_table *table,
                         bool (*gone)(const struct mac_entry *entry, const void *arg),
                         const void *arg)
{
    uint32_t n = 0;

    for (uint32_t slot = 0; slot <= table->mask; slot++) {
        /* What moves up across the table's end comes to a slot that was not looked at, or to
         * this. */
        while (table->entries[slot].key != 0 && gone(&table->entries[slot], arg)) {
            mac_table_remove(table, &table->entries[slot]);
            n++;
        }
    }
    return n;
}

/*
 * MAC tables, held against a plain list.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/mac_table.h"

#define MOST 400

/* What the table should hold, in order of coming. */
static struct mac_entry list[MOST];
static unsigned n_list;
static struct mac_table table;

static void set_up(void)
{
    n_list = 0;
    cr_assert_eq(mac_table_init(&table, 16), 0);
}

static void tear_down(void)
{
    mac_table_fini(&table);
}

TestSuite(net_mac_table, .init = set_up, .fini = tear_down, .timeout = 60);

static uint64_t random_state = 3;

static unsigned pick(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

static uint64_t key_of(unsigned i)
{
    return mac_key((uint8_t[6]){2, 0, 0, 0, 0, (uint8_t)i}, i % 3);
}

/* All entries of a key, in order, and no other. */
static void check_key(uint64_t key)
{
    const struct mac_entry *entry = mac_table_find(&table, key);

    for (unsigned i = 0; i < n_list; i++) {
        if (list[i].key != key)
            continue;
        cr_assert_not_null(entry);
        cr_assert_eq(entry->port, list[i].port);
        entry = mac_table_next(&table, entry);
    }
    cr_assert_null(entry);
}

static void add(uint64_t key, uint16_t port)
{
    mac_table_add(&table, key, port, 0);
    list[n_list++] = (struct mac_entry){.key = key, .port = port};
}

static void remove_at(unsigned i)
{
    struct mac_entry *entry = mac_table_find(&table, list[i].key);

    while (entry->port != list[i].port)
        entry = mac_table_next(&table, entry);
    mac_table_remove(&table, entry);
    memmove(&list[i], &list[i + 1], (--n_list - i) * sizeof(list[0]));
}

Test(net_mac_table, it_holds_what_a_list_holds)
{
    for (unsigned step = 0; step < 20000; step++) {
        if (n_list > 0 && (n_list == MOST || pick(2))) {
            remove_at(pick(n_list));
        } else {
            if (table.used == mac_table_room(&table))
                cr_assert_eq(mac_table_grow(&table, table.used * 2), 0);
            add(key_of(pick(60)), (uint16_t)step);
        }
        cr_assert_eq(table.used, n_list);
        if (step % 16 == 0)
            check_key(key_of(pick(60)));
    }
    for (unsigned i = 0; i < 60; i++)
        check_key(key_of(i));
}

static bool is_odd(const struct mac_entry *entry, const void *arg)
{
    (void)arg;
    return entry->port & 1;
}

Test(net_mac_table, a_purge_takes_all_that_are_meant_and_no_other)
{
    for (unsigned round = 0; round < 300; round++) {
        unsigned odd = 0;

        while (table.used < mac_table_room(&table))
            add(key_of(pick(60)), (uint16_t)pick(1000));
        for (unsigned i = n_list; i-- > 0;) {
            if (!(list[i].port & 1))
                continue;
            odd++;
            memmove(&list[i], &list[i + 1], (--n_list - i) * sizeof(list[0]));
        }
        cr_assert_eq(mac_table_purge(&table, is_odd, NULL), odd);
        cr_assert_eq(table.used, n_list);
        for (unsigned i = 0; i < 60; i++)
            check_key(key_of(i));
        while (n_list > 4)
            remove_at(pick(n_list));
    }
}

Test(net_mac_table, a_key_keeps_address_and_vlan)
{
    static const uint8_t mac[6] = {0xFE, 1, 2, 3, 4, 0xFF};
    uint8_t back[6];
    unsigned vlan;

    mac_of_key(mac_key(mac, 4094), back, &vlan);
    cr_assert_arr_eq(back, mac, 6);
    cr_assert_eq(vlan, 4094);
}

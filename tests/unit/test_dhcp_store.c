/*
 * Leases in a file: written, read again, written anew when most of it is overtaken.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/dhcp_leases.h"
#include "net/dhcp_store.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

static struct loop *loop;
static struct dhcp_leases *leases;
static char folder[64], path[100];
static char last_line[1024];

static void remember(enum log_level level, const char *line)
{
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static void make_leases(void)
{
    const struct in_addr network = {inet_addr("10.1.2.0")}, server = {inet_addr("10.1.2.1")};

    dhcp_leases_destroy(leases);
    cr_assert_eq(dhcp_leases_create(&leases, network, 24, server, NULL, 0), 0);
}

static void set_up(void)
{
    log_set_sink(remember);
    strcpy(folder, "/tmp/ferry-test-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/leases", folder);
    cr_assert_eq(loop_create(&loop, 8), 0);
    make_leases();
}

static void tear_down(void)
{
    char command[200];

    dhcp_leases_destroy(leases);
    loop_destroy(loop);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(dhcp_store, .init = set_up, .fini = tear_down, .timeout = 30);

static struct in_addr found(uint8_t number)
{
    return dhcp_leases_find(leases, (const uint8_t[6]){2, 0, 0, 0, 0, number});
}

static void add(struct dhcp_store *store, uint8_t number, const char *address)
{
    dhcp_store_add(store, (const uint8_t[6]){2, 0, 0, 0, 0, number},
                   (struct in_addr){inet_addr(address)});
}

static struct dhcp_store *open_store(void)
{
    struct dhcp_store *store;

    cr_assert_eq(dhcp_store_open(&store, loop, "net0", path, leases, 100), 0);
    return store;
}

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");

    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

static unsigned count_lines(void)
{
    FILE *file = fopen(path, "r");
    unsigned lines = 0;
    int c;

    while ((c = fgetc(file)) != EOF)
        lines += c == '\n';
    fclose(file);
    return lines;
}

Test(dhcp_store, what_is_added_is_there_after_a_restart)
{
    struct dhcp_store *store = open_store();

    add(store, 1, "10.1.2.16");
    add(store, 2, "10.1.2.40");
    dhcp_store_close(store);
    make_leases();
    dhcp_store_close(open_store());
    cr_assert_eq(found(1).s_addr, inet_addr("10.1.2.16"));
    cr_assert_eq(found(2).s_addr, inet_addr("10.1.2.40"));
    cr_assert_eq(found(3).s_addr, INADDR_ANY);
}

Test(dhcp_store, the_last_line_of_a_station_and_of_an_address_counts)
{
    write_file("02:00:00:00:00:01 10.1.2.16\n02:00:00:00:00:01 10.1.2.17\n"
               "02:00:00:00:00:02 10.1.2.20\n02:00:00:00:00:03 10.1.2.20\n");
    dhcp_store_close(open_store());
    cr_assert_eq(found(1).s_addr, inet_addr("10.1.2.17"));
    cr_assert_eq(found(2).s_addr, INADDR_ANY);
    cr_assert_eq(found(3).s_addr, inet_addr("10.1.2.20"));
}

Test(dhcp_store, lines_that_are_none_are_passed_over)
{
    write_file("rubbish\n\n02:00:00:00:00:01\n02:00:00:00:00:01 10.9.9.9\n"
               "03:00:00:00:00:01 10.1.2.17\n02:00:00:00:00:02 10.1.2.18");
    dhcp_store_close(open_store());
    cr_assert_eq(found(1).s_addr, INADDR_ANY);
    cr_assert_eq(found(2).s_addr, inet_addr("10.1.2.18"));
}

Test(dhcp_store, a_file_that_is_mostly_overtaken_is_written_anew)
{
    FILE *file = fopen(path, "w");

    for (unsigned i = 0; i < 100; i++)
        fprintf(file, "02:00:00:00:00:01 10.1.2.%u\n", 16 + i);
    fclose(file);
    dhcp_store_close(open_store());
    cr_assert_eq(count_lines(), 1);
    make_leases();
    dhcp_store_close(open_store());
    cr_assert_eq(found(1).s_addr, inet_addr("10.1.2.115"));
}

Test(dhcp_store, what_is_added_to_a_file_written_anew_is_there)
{
    struct dhcp_store *store;
    FILE *file = fopen(path, "w");

    for (unsigned i = 0; i < 100; i++)
        fprintf(file, "02:00:00:00:00:01 10.1.2.%u\n", 16 + i);
    fclose(file);
    store = open_store();
    add(store, 2, "10.1.2.200");
    dhcp_store_close(store);
    cr_assert_eq(count_lines(), 2);
}

Test(dhcp_store, a_file_in_use_is_refused)
{
    struct dhcp_store *store = open_store(), *second;
    char expected[200];

    cr_assert_eq(dhcp_store_open(&second, loop, "net1", path, leases, 100), -EBUSY);
    snprintf(expected, sizeof(expected), "net1: cannot keep leases in %s: another ferry does", path);
    cr_assert_str_eq(last_line, expected);
    dhcp_store_close(store);
}

Test(dhcp_store, a_folder_that_is_not_there_is_named)
{
    struct dhcp_store *store;

    cr_assert_eq(dhcp_store_open(&store, loop, "net0", "/nonexistent/leases", leases, 100), -ENOENT);
    cr_assert_str_eq(last_line,
                     "net0: cannot keep leases in /nonexistent/leases: No such file or directory");
}

Test(dhcp_store, the_place_is_in_the_state_folder_which_is_made)
{
    char state[100], got[PATH_MAX], expected[PATH_MAX];
    struct stat st;

    snprintf(state, sizeof(state), "%s/a/b", folder);
    setenv("XDG_STATE_HOME", state, 1);
    cr_assert_eq(dhcp_store_path("leases-x", got, sizeof(got)), 0);
    snprintf(expected, sizeof(expected), "%s/ferry/leases-x", state);
    cr_assert_str_eq(got, expected);
    snprintf(expected, sizeof(expected), "%s/ferry", state);
    cr_assert_eq(stat(expected, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0700);
}

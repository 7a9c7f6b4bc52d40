/*
 * Records of what was made on the host: what a dead process left is taken away, what a live one has
 * and what is nobody's stays. Links and settings take rights, and are tried in tests/net/.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net/made.h"
#include "vmm/util/log.h"

static char folder[64], path[80];
static char last_line[1024];

static void remember(enum log_level level, const char *line)
{
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static void set_up(void)
{
    log_set_sink(remember);
    strcpy(folder, "/tmp/ferry-test-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_eq(setenv("XDG_RUNTIME_DIR", folder, 1), 0);
    snprintf(path, sizeof(path), "%s/socket", folder);
}

static void tear_down(void)
{
    char command[200];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(made, .init = set_up, .fini = tear_down, .timeout = 30);

static int bind_socket(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(fd, 1), 0);
    return fd;
}

static unsigned records(void)
{
    const struct dirent *entry;
    char made[100];
    unsigned count = 0;
    DIR *dir;

    snprintf(made, sizeof(made), "%s/ferry/made", folder);
    dir = opendir(made);
    while (dir && (entry = readdir(dir)))
        count += entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return count;
}

/* Another process notes the socket and, if `bound`, makes it; then it is killed. */
static void leave(bool bound)
{
    struct made made = MADE_NONE;
    pid_t child = fork();
    int status;

    if (child == 0) {
        if (made_socket(&made, path) < 0)
            _exit(1);
        if (bound)
            bind_socket();
        raise(SIGKILL);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status));
}

Test(made, what_a_killed_process_left_is_taken_away)
{
    leave(true);
    cr_assert_eq(access(path, F_OK), 0);
    cr_assert_eq(records(), 1);
    made_sweep();
    cr_assert_eq(access(path, F_OK), -1);
    cr_assert_eq(records(), 0);
}

Test(made, a_record_of_what_was_never_made_is_taken_away)
{
    leave(false);
    made_sweep();
    cr_assert_eq(records(), 0);
}

Test(made, what_a_live_process_has_stays)
{
    struct made made = MADE_NONE;
    int fd;

    cr_assert_eq(made_socket(&made, path), 0);
    fd = bind_socket();
    close(fd); /* nobody serves it, but its owner lives */
    made_sweep();
    cr_assert_eq(access(path, F_OK), 0);
    cr_assert_eq(records(), 1);
    made_undo(&made);
}

Test(made, what_was_made_is_taken_away_at_the_end)
{
    struct made made = MADE_NONE;

    cr_assert_eq(made_socket(&made, path), 0);
    close(bind_socket());
    made_undo(&made);
    cr_assert_eq(access(path, F_OK), -1);
    cr_assert_eq(records(), 0);
    cr_assert_eq(made.fd, -1);
}

Test(made, what_was_not_made_after_all_is_not_touched)
{
    struct made made = MADE_NONE;

    cr_assert_eq(made_socket(&made, path), 0);
    close(bind_socket()); /* somebody else's */
    made_forget(&made);
    cr_assert_eq(access(path, F_OK), 0);
    cr_assert_eq(records(), 0);
}

Test(made, what_is_no_socket_stays)
{
    leave(false);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    made_sweep();
    cr_assert_eq(access(path, F_OK), 0);
    cr_assert_eq(records(), 0);
}

Test(made, a_socket_that_somebody_serves_stays)
{
    int fd;

    leave(false);
    fd = bind_socket();
    made_sweep();
    cr_assert_eq(access(path, F_OK), 0);
    close(fd);
}

Test(made, records_that_are_none_are_taken_away_and_harm_nothing)
{
    static const char *const lines[] = {"", "rubbish\n", "socket \n", "socket no-end", "macvtap\n",
                                        "macvtap 1 x\n", "forwarding\n", "forwarding 1\n"};
    char name[120];

    leave(false);
    made_sweep();
    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        FILE *file;

        snprintf(name, sizeof(name), "%s/ferry/made/1-1-%u", folder, i);
        file = fopen(name, "w");
        fputs(lines[i], file);
        fclose(file);
    }
    made_sweep();
    cr_assert_eq(records(), 0);
}

Test(made, a_record_of_another_network_namespace_stays)
{
    char name[120];
    FILE *file;

    leave(false);
    made_sweep();
    snprintf(name, sizeof(name), "%s/ferry/made/1-1-1", folder);
    file = fopen(name, "w");
    fputs("macvtap 1 ferry0 02:00:00:00:00:01\n", file);
    fclose(file);
    made_sweep();
    cr_assert_eq(records(), 1);
}

Test(made, a_sweep_without_a_folder_does_nothing)
{
    setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
    made_sweep();
    cr_assert_str_empty(last_line);
}

Test(made, a_record_without_a_folder_is_refused)
{
    struct made made = MADE_NONE;

    setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
    cr_assert_eq(made_socket(&made, "/x"), -ENOENT);
    cr_assert_str_eq(last_line, "/x: there is no folder to note it in, for taking it away later: set "
                                "XDG_RUNTIME_DIR");
    cr_assert_eq(made.fd, -1);
}

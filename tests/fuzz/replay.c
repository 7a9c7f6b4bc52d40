/*
 * Runs a fuzz target once on each file of the folders given, without a fuzzer; `make check` does so
 * with the stored corpora. Says how many there were; a failure is the target's crash, which names
 * the file before. No corpus is a failure too: nothing would have been tested.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

static const char *current = "no file yet";

static int run_file(const char *path)
{
    struct stat st;
    uint8_t *bytes = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int result = -1;

    if (fd < 0 || fstat(fd, &st) < 0)
        goto out;
    /* Exactly as long as the file, so that a sanitizer sees what reads past its end. */
    bytes = malloc(st.st_size > 0 ? (size_t)st.st_size : 1);
    if (!bytes || read(fd, bytes, (size_t)st.st_size) != st.st_size)
        goto out;
    current = path;
    LLVMFuzzerTestOneInput(bytes, (size_t)st.st_size);
    result = 0;
out:
    if (result < 0)
        fprintf(stderr, "%s: cannot read: %s\n", path, strerror(errno));
    free(bytes);
    if (fd >= 0)
        close(fd);
    return result;
}

static int run_folder(const char *folder)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort);
    int count = 0;

    if (n < 0) {
        fprintf(stderr, "%s: %s\n", folder, strerror(errno));
        return -1;
    }
    for (int i = 0; i < n; i++) {
        char path[4096];

        snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
        if (count >= 0 && entries[i]->d_name[0] != '.')
            count = run_file(path) < 0 ? -1 : count + 1;
        free(entries[i]);
    }
    free(entries);
    return count;
}

/* A crash inside the target still leaves the file's name. */
static void name_current(int sig)
{
    (void)!write(STDERR_FILENO, current, strlen(current));
    (void)!write(STDERR_FILENO, ": crashed\n", 10);
    signal(sig, SIG_DFL);
    raise(sig);
}

int main(int argc, char **argv)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    int total = 0;

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        signal(signals[i], name_current);
    for (int i = 1; i < argc; i++) {
        int count = run_folder(argv[i]);

        if (count < 0)
            return 1;
        total += count;
    }
    printf("%s: %d inputs\n", argv[0], total);
    return total > 0 ? 0 : 1;
}

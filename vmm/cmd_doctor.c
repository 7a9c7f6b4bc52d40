/*
 * `ferry doctor`: shows what this host offers to guests, for people or as JSON.
 *
 * Does not examine (doctor.c). Main thread; no locks.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/cmd.h"
#include "vmm/doctor.h"

struct doctor_options {
    bool json;
};

static const struct cmd_option options[] = {
    {.arg = NULL,
     .fallback = "off",
     .help = "print the findings as JSON, for programs",
     .key = {.name = "json",
             .parse = option_parse_bool,
             .offset = offsetof(struct doctor_options, json)}},
    {0},
};

/* Colours are for terminals, and for people who did not ask to be spared them (no-color.org). */
static bool want_colours(void)
{
    const char *term = getenv("TERM"), *none = getenv("NO_COLOR");

    return isatty(STDOUT_FILENO) && !(none && *none) && !(term && strcmp(term, "dumb") == 0);
}

static void print_finding(const struct finding *finding, bool colours)
{
    static const struct {
        const char *word, *colour;
    } verdicts[] = {
        [VERDICT_OK] = {"ok", "\033[32m"},
        [VERDICT_NOTE] = {"note", "\033[33m"},
        [VERDICT_MISSING] = {"missing", "\033[31m"},
    };

    printf("%s%-8s%s%-28s%s\n", colours ? verdicts[finding->verdict].colour : "",
           verdicts[finding->verdict].word, colours ? "\033[0m" : "", finding->name, finding->text);
    if (finding->advice)
        printf("%8swhat to do: %s\n", "", finding->advice);
}

static enum exit_status tell(void *object)
{
    const struct doctor_options *wanted = object;
    struct diagnosis diagnosis;
    enum exit_status status;

    if (diagnosis_make(&diagnosis) < 0)
        return STATUS_FAILED;
    if (wanted->json) {
        json_dumpf(diagnosis.json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else {
        for (unsigned i = 0; i < diagnosis.n_findings; i++)
            print_finding(&diagnosis.findings[i], want_colours());
        printf("\nGuests %s on this host.\n", diagnosis.can_run ? "can run" : "cannot run");
    }
    status = diagnosis.can_run ? STATUS_OK : STATUS_HOST;
    diagnosis_fini(&diagnosis);
    return status;
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct doctor_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, tell);
}

const struct command cmd_doctor = {
    .name = "doctor",
    .usage = "[OPTION]...",
    .summary = "Show what this host offers to guests and what it lacks.",
    .options = options,
    .notes = "Exit status: 0 when guests can run here, 3 when they cannot.",
    .run = run,
};

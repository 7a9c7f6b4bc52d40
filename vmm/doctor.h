/*
 * The doctor's findings: what this host offers to guests, what is missing, how to get it.
 *
 * Made by doctor.c, shown by cmd_doctor.c. Part of the composition root. Main thread.
 */
#ifndef FERRY_DOCTOR_H
#define FERRY_DOCTOR_H

#include <jansson.h>
#include <stdbool.h>

enum verdict {
    VERDICT_OK,
    VERDICT_NOTE,    /* guests run, but lack something or are slow */
    VERDICT_MISSING, /* guests cannot run */
};

#define DOCTOR_MAX_FINDINGS 64

struct finding {
    enum verdict verdict;
    char name[40];
    char text[200];
    const char *advice; /* what to do about it, or NULL */
};

struct diagnosis {
    struct finding findings[DOCTOR_MAX_FINDINGS];
    unsigned n_findings;
    bool can_run;
    json_t *json; /* owns: the same facts for programs */
};

/* Looks at the host. 0 or -ENOMEM, logged. */
int diagnosis_make(struct diagnosis *diagnosis);
void diagnosis_fini(struct diagnosis *diagnosis);

#endif

/*
 * The guests of a running lab: those of its file that do not run yet are built and added, all or
 * none; who has ended is taken down.
 *
 * Composition root. Compares by names only: a guest or a switch that is there stays as it is,
 * whatever the file says of it now. Main thread; no locks.
 */
#include "vmm/lab_guests.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/machine_internal.h"
#include "vmm/process.h"
#include "vmm/process_net.h"
#include "vmm/util/log.h"

struct lab_guest {
    struct machine_config config; /* borrowed by the machine */
    struct machine *machine;      /* owned until it is removed */
    struct lab_guest *next;
};

/* ---- switches ---- */

/* Takes away the first n of the file's that are noted as made. */
static void unmake_switches(struct lab_guests *lab, const struct lab_config *config,
                            const bool *made, unsigned n)
{
    while (n-- > 0)
        if (made[n])
            process_remove_switch(lab->process, config->switches[n].name);
}

static int make_switches(struct lab_guests *lab, const struct lab_config *config, bool *made,
                         char *why, size_t size)
{
    char error[1000] = "";
    int err = 0;

    for (unsigned i = 0; !err && i < config->n_switches; i++) {
        const struct switch_options *options = &config->switches[i];

        if (process_find_switch(lab->process, options->name))
            continue;
        log_divert_errors(error, sizeof(error));
        err = process_add_switch(lab->process, options);
        log_divert_errors(NULL, 0);
        made[i] = !err;
        if (err)
            snprintf(why, size, "%s", error[0] ? error : strerror(-err));
    }
    return err;
}

/* ---- guests ---- */

static int build_guest(struct lab_guests *lab, struct machine_config *config, const char *where,
                       char *why, size_t size)
{
    struct lab_guest *guest = calloc(1, sizeof(*guest));
    char error[1000] = "";
    int err = -ENOMEM;

    if (guest) {
        guest->config = *config;
        *config = (struct machine_config){0};
        log_divert_errors(error, sizeof(error));
        err = machine_create(&guest->machine, lab->process, &guest->config);
        log_divert_errors(NULL, 0);
    }
    if (err) {
        snprintf(why, size, "%s: %s", where, error[0] ? error : "the guest cannot be started");
        if (guest)
            machine_config_fini(&guest->config);
        free(guest);
        return err;
    }
    guest->next = lab->list;
    lab->list = guest;
    return 0;
}

static void drop(struct lab_guest *guest)
{
    machine_destroy(guest->machine);
    machine_config_fini(&guest->config);
    free(guest);
}

/* Those that came after `before`. */
static void drop_new(struct lab_guests *lab, const struct lab_guest *before)
{
    while (lab->list != before) {
        struct lab_guest *guest = lab->list;

        lab->list = guest->next;
        drop(guest);
    }
}

static void start_new(const struct lab_guests *lab, const struct lab_guest *before, json_t *names)
{
    for (const struct lab_guest *guest = lab->list; guest != before; guest = guest->next) {
        machine_start(guest->machine);
        json_array_insert_new(names, 0, json_string(guest->config.name));
    }
}

int lab_guests_add(struct lab_guests *lab, struct lab_config *config, json_t *started, char *why,
                   size_t size)
{
    const struct lab_guest *before = lab->list;
    bool made[LAB_MAX_SWITCHES] = {false};
    int err = make_switches(lab, config, made, why, size);

    for (unsigned i = 0; !err && i < config->n_guests; i++)
        if (!process_find_guest(lab->process, config->guests[i].name))
            err = build_guest(lab, &config->guests[i], config->places[i], why, size);
    if (err) {
        drop_new(lab, before);
        unmake_switches(lab, config, made, config->n_switches);
    } else if (started) {
        start_new(lab, before, started);
    }
    return err;
}

void lab_guests_remove(struct lab_guests *lab, struct machine *machine)
{
    for (struct lab_guest **at = &lab->list; *at; at = &(*at)->next) {
        struct lab_guest *guest = *at;

        if (guest->machine != machine)
            continue;
        *at = guest->next;
        drop(guest);
        return;
    }
}

void lab_guests_fini(struct lab_guests *lab)
{
    while (lab->list) {
        struct lab_guest *guest = lab->list;

        lab->list = guest->next;
        machine_config_fini(&guest->config);
        free(guest);
    }
}

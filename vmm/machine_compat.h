/*
 * Whether a guest of another process can run here: a list of all that stands against it.
 *
 * A report is a JSON array of {"what", "why", "fix"}; empty: nothing. Part of the composition root;
 * main thread. machine_introduce() of machine_internal.h is the other side's.
 */
#ifndef FERRY_MACHINE_COMPAT_H
#define FERRY_MACHINE_COMPAT_H

#include <jansson.h>
#include <stdbool.h>

struct machine;
struct machine_config;
struct process;
struct snapshot;
struct state_buffer;

/* What a new vCPU of this host shows, as records, which the caller frees. It takes a VM, and KVM some
 * 20 ms to take that down: so it is done before a guest is on its way, not while it waits. Errors are
 * logged. */
int machine_describe_processor(struct state_buffer *out);
/* What can be told before the machine is built, with the switches that its process has. processor: that
 * of this host; shared: memory comes as it is. -EBADMSG: the source does not say what it has. */
int machine_compare_host(const struct machine_config *config, const struct process *process,
                         const struct state_buffer *processor, const struct snapshot *hello,
                         bool shared, json_t *report);
/* What the machine that was built can tell. */
int machine_compare_devices(struct machine *m, const struct snapshot *hello, json_t *report);
/* Adds one that was found. what: "disk0"; takes why over; fix: what would help. */
void machine_mismatch(json_t *report, const char *what, json_t *why, const char *fix);

/* The network's and the clock's part (machine_compat_net.c): what the source says of them in its
 * hello, and what does not fit at the destination. */
void machine_introduce_network(const struct machine *m, json_t *hello);
void machine_compare_network(const struct machine_config *config, const struct process *process,
                             const json_t *hello, json_t *report);

/* Whether the source wants to know, and no more. */
bool machine_asks_to_check(const struct snapshot *hello);

#endif

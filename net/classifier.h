/*
 * The classifier: finds, of many rules, the one that counts for a flow, and says which bits of the
 * flow it had to look at for that.
 *
 * Made of a list of rules once, and not changed after: another list is another classifier.
 */
#ifndef FERRY_NET_CLASSIFIER_H
#define FERRY_NET_CLASSIFIER_H

#include "net/flow.h"
#include "net/rule.h"

struct classifier;

#define CLASSIFIER_NONE UINT32_MAX
#define CLASSIFIER_RULES_MAX 65536u
/* A rule with ranges of ports takes several; of all rules together. */
#define CLASSIFIER_ENTRIES_MAX 262144u

/* The number of the port of that name, or negative: there is none, and the rule matches nothing. */
typedef int (*classifier_resolve)(const void *arg, const char *name);

/* rules: borrowed during the call. 0; -ENOMEM; -E2BIG: more than there may be. Not logged. */
int classifier_create(struct classifier **out, const struct rule *const *rules, unsigned n,
                      classifier_resolve resolve, const void *arg);
void classifier_destroy(struct classifier *classifier);

/*
 * The index (in the list) of the rule that counts for the flow: the one of highest priority that
 * matches, of several the first; or CLASSIFIER_NONE. Adds to *looked_at the bits that the answer
 * depends on: any flow with the same values there has the same answer.
 */
uint32_t classifier_find(const struct classifier *classifier, const struct flow_key *key,
                         struct flow_key *looked_at);

/* All bits that any rule looks at. */
const struct flow_key *classifier_bits(const struct classifier *classifier);
/* Whether any looks behind the link-layer header. */
bool classifier_looks_inside(const struct classifier *classifier);

struct classifier_size {
    unsigned rules, entries, tuples;
};
void classifier_get_size(const struct classifier *classifier, struct classifier_size *size);

#endif

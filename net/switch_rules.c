/*
 * The switch's rules: the list, and the classifier that is made of it whenever rules or ports
 * change.
 *
 * A new classifier is made before the old one goes; if that fails, all stays as it was. Rules name
 * ports, which may come later. Loop thread; no locks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/switch_internal.h"
#include "vmm/util/log.h"

/* The number of the port of that name. */
static int resolve(const void *arg, const char *name)
{
    const struct switch_port *port = switch_port_find(arg, name);

    return port ? port->number : -1;
}

static void resolve_actions(const struct net_switch *sw, struct switch_rule *rule)
{
    const struct rule_action *action = &rule->rule.action;

    rule->mirror = action->mirror[0] ? resolve(sw, action->mirror) : -1;
    rule->redirect = action->redirect[0] ? resolve(sw, action->redirect) : -1;
    if (rule->mirror >= 0 && sw->ports[rule->mirror]->kind != SWITCH_PORT_MIRROR)
        rule->mirror = -1;
    rule->plain = !action->deny && !action->set_vlan && !action->mirror[0] && !action->redirect[0];
}

static int make_classifier(struct net_switch *sw, struct switch_rule *const *rules, unsigned n,
                           struct classifier **out)
{
    const struct rule **list = calloc(n, sizeof(*list));
    int error = -ENOMEM;

    if (list && !sw->cache)
        error = flow_cache_create(&sw->cache, sw->flows_max);
    else if (list)
        error = 0;
    for (unsigned i = 0; i < n && error == 0; i++)
        list[i] = &rules[i]->rule;
    if (error == 0)
        error = classifier_create(out, list, n, resolve, sw);
    free(list);
    return error;
}

/* Has the switch use that list from now on. On error nothing has changed. */
static int use(struct net_switch *sw, struct switch_rule **rules, unsigned n)
{
    struct classifier *classifier = NULL;
    int error = n > 0 ? make_classifier(sw, rules, n, &classifier) : 0;

    if (error < 0) {
        log_error("%s: cannot use these rules: %s", sw->name,
                  error == -E2BIG ? "there are too many, or too many ranges of ports"
                                  : strerror(-error));
        return error;
    }
    for (unsigned i = 0; i < n; i++)
        resolve_actions(sw, rules[i]);
    if (classifier)
        flow_cache_use(sw->cache, classifier);
    classifier_destroy(sw->classifier);
    sw->classifier = classifier;
    sw->looks_inside = classifier && classifier_looks_inside(classifier);
    sw->rules = rules;
    sw->n_rules = n;
    return 0;
}

int switch_rules_compile(struct net_switch *sw)
{
    return use(sw, sw->rules, sw->n_rules);
}

static void free_list(struct switch_rule **rules, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        free(rules[i]);
    free(rules);
}

static struct switch_rule *make_rule(struct net_switch *sw, const struct rule *rule)
{
    struct switch_rule *made = calloc(1, sizeof(*made));

    if (made) {
        made->id = ++sw->next_rule_id;
        made->rule = *rule;
    }
    return made;
}

int switch_rules_set(struct net_switch *sw, const struct rule *rules, unsigned n)
{
    struct switch_rule **list = calloc(n + 1, sizeof(*list)), **old = sw->rules;
    unsigned made = 0, n_old = sw->n_rules;
    int error = -ENOMEM;

    while (list && made < n && (list[made] = make_rule(sw, &rules[made])) != NULL)
        made++;
    if (list && made == n)
        error = use(sw, list, n);
    else
        log_error("%s: out of memory", sw->name);
    if (error < 0 && list)
        free_list(list, made);
    else if (error == 0)
        free_list(old, n_old);
    return error;
}

int switch_rule_add(struct net_switch *sw, const struct rule *rule, unsigned *id)
{
    struct switch_rule **list = calloc(sw->n_rules + 1, sizeof(*list)), **old = sw->rules;
    struct switch_rule *made = make_rule(sw, rule);
    int error = -ENOMEM;

    if (!list || !made) {
        log_error("%s: out of memory", sw->name);
        goto out;
    }
    if (sw->n_rules > 0)
        memcpy(list, old, sw->n_rules * sizeof(*list));
    list[sw->n_rules] = made;
    error = use(sw, list, sw->n_rules + 1);
    if (error < 0)
        goto out;
    *id = made->id;
    free(old);
    return 0;
out:
    free(list);
    free(made);
    return error;
}

int switch_rule_remove(struct net_switch *sw, unsigned id)
{
    struct switch_rule **list, **old = sw->rules, *gone;
    unsigned at = 0;
    int error;

    while (at < sw->n_rules && old[at]->id != id)
        at++;
    if (at == sw->n_rules)
        return -ENOENT;
    list = calloc(sw->n_rules, sizeof(*list));
    if (!list) {
        log_error("%s: out of memory", sw->name);
        return -ENOMEM;
    }
    gone = old[at];
    memcpy(list, old, at * sizeof(*list));
    memcpy(list + at, old + at + 1, (sw->n_rules - at - 1) * sizeof(*list));
    error = use(sw, list, sw->n_rules - 1);
    if (error < 0) {
        free(list);
        return error;
    }
    free(gone);
    free(old);
    return 0;
}

void switch_rules_fini(struct net_switch *sw)
{
    classifier_destroy(sw->classifier);
    flow_cache_destroy(sw->cache);
    free_list(sw->rules, sw->n_rules);
    sw->classifier = NULL;
    sw->cache = NULL;
    sw->rules = NULL;
    sw->n_rules = 0;
}

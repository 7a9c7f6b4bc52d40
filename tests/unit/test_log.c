/* Messages: what a peer's or a guest's bytes can do to them. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "vmm/util/log.h"

static char said[1100];

static void keep(enum log_level level, const char *line)
{
    cr_assert_eq(level, LOG_LEVEL_ERROR);
    snprintf(said, sizeof(said), "%s", line);
}

Test(log, control_characters_do_not_reach_the_terminal)
{
    log_set_sink(keep);
    log_error("the peer said %s", "\033[2Jgone\r\nferry: \x7F\t");
    cr_assert_str_eq(said, "the peer said ?[2Jgone??ferry: ??");
}

Test(log, letters_of_any_language_do)
{
    log_set_sink(keep);
    log_error("cannot open '%s'", "F\u00e4hre \u6e21");
    cr_assert_str_eq(said, "cannot open 'F\u00e4hre \u6e21'");
}

Test(log, errors_that_go_elsewhere_are_defused_as_well)
{
    char text[64] = "";

    log_divert_errors(text, sizeof(text));
    log_error("no rule '%s' here", "\b\a");
    log_divert_errors(NULL, 0);
    cr_assert_str_eq(text, "no rule '?" "?' here");
}

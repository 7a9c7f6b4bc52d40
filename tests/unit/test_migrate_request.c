/*
 * Bodies of requests: what vm.send-migration of the Cloud Hypervisor API means, and that what is not known
 * is refused.
 *
 * No sockets, no KVM. One thread a test.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "migration/pages.h"
#include "vmm/machine_migrate_request.h"

static struct migrate_request request;
static json_t *body, *reply;

static int read_text(const char *text)
{
    body = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    cr_assert_not_null(body);
    return migrate_request_read(&request, body, &reply);
}

static void tear_down(void)
{
    json_decref(body);
    json_decref(reply);
}

static void expect_refused(const char *text, const char *why)
{
    cr_assert_eq(read_text(text), -EINVAL);
    cr_assert_str_eq(json_string_value(reply), why);
}

TestSuite(migrate_request, .fini = tear_down);

Test(migrate_request, a_destination_alone_has_ferrys_defaults)
{
    cr_assert_eq(read_text("{\"destination_url\": \"unix:/run/x\"}"), 0);
    cr_assert_str_eq(request.url, "unix:/run/x");
    cr_assert(request.address.is_unix);
    cr_assert_null(request.tls_folder);
    cr_assert_not(request.check);
    cr_assert_not(request.config.give_up);
    cr_assert(request.config.share_memory);
    cr_assert_eq(request.config.downtime_ns, 100000000u);
    cr_assert_eq(request.config.timeout_ns, 60000000000u);
    cr_assert_eq(request.config.bandwidth, 0);
    cr_assert_eq(request.config.throttle_max, 99);
    cr_assert_eq(request.config.streams, 1);
    cr_assert_eq(request.config.compress, COMPRESS_NONE);
}

Test(migrate_request, the_keys_of_cloud_hypervisor_are_understood)
{
    cr_assert_eq(read_text("{\"destination_url\": \"tls:b:4444\", \"local\": false, \"downtime_ms\": 20,"
                           "\"timeout_s\": 5, \"timeout_strategy\": \"cancel\", \"connections\": 4,"
                           "\"tls_dir\": \"/certs\"}"), 0);
    cr_assert(request.address.is_tls);
    cr_assert_not(request.config.share_memory);
    cr_assert_eq(request.config.downtime_ns, 20000000u);
    cr_assert_eq(request.config.timeout_ns, 5000000000u);
    cr_assert(request.config.give_up);
    cr_assert_eq(request.config.streams, 4);
    cr_assert_str_eq(request.tls_folder, "/certs");
}

Test(migrate_request, ferrys_own_keys_are_understood)
{
    cr_assert_eq(read_text("{\"destination_url\": \"tcp:b:4444\", \"timeout_ms\": 250, \"bandwidth\": 1000000,"
                           "\"compression\": \"lz4\", \"throttle_max\": 0, \"check\": true,"
                           "\"guest\": \"web\"}"), 0);
    cr_assert_eq(request.config.timeout_ns, 250000000u);
    cr_assert_eq(request.config.bandwidth, 1000000u);
    cr_assert_eq(request.config.compress, COMPRESS_LZ4);
    cr_assert_eq(request.config.throttle_max, 0);
    cr_assert(request.check);
}

Test(migrate_request, an_unknown_key_is_refused_and_those_that_are_known_are_named)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"memory_mode\": \"postcopy\"}",
                   "memory_mode: no such key is known here; these are: destination_url, local, downtime_ms, "
                   "timeout_s, timeout_strategy, connections, tls_dir, timeout_ms, bandwidth, compression, "
                   "throttle_max, check");
}

Test(migrate_request, a_value_of_another_kind_is_refused)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"local\": \"on\"}",
                   "local: true or false was expected");
}

Test(migrate_request, a_text_is_no_number)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"downtime_ms\": \"100\"}",
                   "downtime_ms: a number from 0 to 86400000 was expected");
}

Test(migrate_request, more_connections_than_there_can_be_are_refused)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"connections\": 17}",
                   "connections: a number from 1 to 16 was expected");
}

Test(migrate_request, a_destination_is_needed)
{
    expect_refused("{\"check\": true}", "destination_url: '' is not valid: tcp:HOST:PORT, tls:HOST:PORT or "
                                        "unix:PATH was expected");
}

Test(migrate_request, memory_is_handed_over_by_a_unix_socket_only)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"local\": true}",
                   "local: memory is handed over by unix:PATH only");
}

Test(migrate_request, certificates_do_not_go_with_an_address_that_is_not_encrypted)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"tls_dir\": \"/certs\"}",
                   "tls_dir: certificates go with tls:HOST:PORT; by any other address nothing is encrypted");
}

Test(migrate_request, a_strategy_that_is_none_is_refused)
{
    expect_refused("{\"destination_url\": \"tcp:b:4444\", \"timeout_strategy\": \"stop\"}",
                   "timeout_strategy: cancel or ignore was expected");
}

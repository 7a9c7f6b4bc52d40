/*
 * What a control socket answers to a command: any bytes are an answer, and then a text of the length
 * that was said, or refused by one of the errors that the header names.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/http_client.h"

#define ANSWER_MAX (64u * 1024) /* a socket holds it: nobody reads meanwhile */

static void check_answer(const struct http_answer *answer, size_t came)
{
    FUZZ_CHECK(answer->status >= 200 && answer->status <= 999);
    FUZZ_CHECK(answer->bytes && answer->length < came);
    FUZZ_CHECK(answer->bytes[answer->length] == '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct http_answer answer;
    int ends[2], err;

    if (size > ANSWER_MAX)
        size = ANSWER_MAX;
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    FUZZ_CHECK(send(ends[1], data, size, MSG_DONTWAIT) == (ssize_t)size);
    FUZZ_CHECK(shutdown(ends[1], SHUT_WR) == 0);
    err = http_ask(ends[0], "GET", "/api/v1/vm.info", NULL, 1000, &answer);
    if (err == 0)
        check_answer(&answer, size);
    else
        FUZZ_CHECK(!answer.bytes && (err == -ECONNRESET || err == -EBADMSG || err == -EMSGSIZE));
    http_answer_fini(&answer);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

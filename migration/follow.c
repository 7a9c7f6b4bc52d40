/*
 * Frames on their way after a guest; docs/STREAM.md has the order of the words ("The network").
 *
 * Knows no frames, only records of them with a NIC's id; whoever delivers them checks them. The
 * thread of a step; no locks. From here on a peer that does not answer is waited for only shortly,
 * since the guest runs already, and its process waits for the end of this.
 */
#include "migration/follow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
#define LOOK_NS (NS_PER_MS / 4) /* between two looks for frames that came */
#define PATIENCE_MS 1000u
#define SETTLE_TIMES 3u
#define CHUNK_BYTES (128u << 10) /* of a section of frames: more than the longest frame */
#define TEXT_MAX 65536u

/* ---- the source ---- */

/* Sends what there is. */
static int send_frames(struct link *link, const struct source_ops *ops, void *opaque, void *chunk)
{
    char id[STREAM_ID_MAX] = "";
    size_t n;
    int err = 0;

    while (!err && (n = ops->take_frames(opaque, id, chunk, CHUNK_BYTES)) > 0)
        err = link_send(link, STREAM_FRAMES, id, chunk, n);
    return err;
}

/* Sends what comes until there is a word to be read: 0, or -ETIMEDOUT and others. */
static int send_until(struct link *link, const struct source_ops *ops, void *opaque, void *chunk,
                      uint64_t deadline_ns)
{
    int err = send_frames(link, ops, opaque, chunk);

    while (!err) {
        err = link_await(link, LOOK_NS);
        if (err != -ETIMEDOUT)
            return err;
        err = loop_now_ns() < deadline_ns ? send_frames(link, ops, opaque, chunk) : -ETIMEDOUT;
    }
    return err;
}

void follow_send_until_word(struct link *link, const struct source_ops *ops, void *opaque)
{
    void *chunk = malloc(CHUNK_BYTES);
    int err = chunk ? send_frames(link, ops, opaque, chunk) : -ENOMEM;

    if (err != -ENOMEM)
        err = link_send(link, STREAM_FRAMES, "", "", 0);
    if (!err)
        (void)send_until(link, ops, opaque, chunk, loop_now_ns() + LINK_PATIENCE_MS * NS_PER_MS);
    free(chunk);
}

static char *read_traffic(struct link *link)
{
    struct stream_section section;
    void *payload;

    if (stream_read_section(link_reader(link), &section, &payload) < 0)
        return NULL;
    if (section.kind == STREAM_TRAFFIC)
        return payload;
    free(payload);
    return NULL;
}

/* All that came before the destination announced the guest, which it did before it said that it runs. */
static int send_settled(struct link *link, const struct source_ops *ops, void *opaque, void *chunk)
{
    int err = 0;

    for (unsigned i = 0; !err && i < SETTLE_TIMES; i++) {
        ops->settle_frames(opaque);
        err = send_frames(link, ops, opaque, chunk);
    }
    return err ? err : link_send(link, STREAM_FRAMES, "", "", 0);
}

char *follow_send_rest(struct link *link, const struct source_ops *ops, void *opaque)
{
    void *chunk = malloc(CHUNK_BYTES);
    char *traffic = NULL;
    int err;

    if (!chunk)
        return NULL;
    link_set_patience(link, PATIENCE_MS);
    err = send_settled(link, ops, opaque, chunk);
    if (!err)
        err = send_until(link, ops, opaque, chunk, loop_now_ns() + SOURCE_FOLLOW_MS * NS_PER_MS);
    if (!err)
        traffic = read_traffic(link);
    if (!err || err == -ETIMEDOUT)
        (void)link_send(link, STREAM_END, "", "", 0);
    free(chunk);
    return traffic;
}

/* ---- the destination ---- */

enum word { END, FRAMES, MARK };

/* The next section, as an enum word. An error: of the link, or what came is not for now (logged). */
static int take_section(struct link *link, const struct target_follow_ops *ops, void *opaque)
{
    struct stream_section section;
    void *payload;
    uint32_t crc;
    int err = stream_read_head(link_reader(link), &section, &crc);

    if (err)
        return err;
    if ((section.kind != STREAM_FRAMES && section.kind != STREAM_END) ||
        section.length > CHUNK_BYTES) {
        log_error("the source sent section %u of %llu bytes when its guest ran here already",
                  section.kind, (unsigned long long)section.length);
        return -EBADMSG;
    }
    err = stream_read_payload(link_reader(link), &section, crc, &payload);
    if (err)
        return err;
    if (section.length > 0)
        ops->frames(opaque, section.id, payload, section.length);
    free(payload);
    if (section.kind == STREAM_END)
        return END;
    return section.length > 0 ? FRAMES : MARK;
}

void follow_take_until_mark(struct link *link, const struct target_follow_ops *ops, void *opaque)
{
    uint64_t deadline_ns = loop_now_ns() + TARGET_FOLLOW_MS * NS_PER_MS;

    link_set_patience(link, TARGET_FOLLOW_MS);
    while (loop_now_ns() < deadline_ns && take_section(link, ops, opaque) == FRAMES)
        ;
    link_set_patience(link, PATIENCE_MS);
}

/* Tells of the traffic when it is known, or there is no more time. */
static bool tell_traffic(struct link *link, const struct target_follow_ops *ops, void *opaque,
                         bool late)
{
    char *text = ops->traffic(opaque, late);

    if (!text)
        return false;
    if (strlen(text) < TEXT_MAX)
        (void)link_send(link, STREAM_TRAFFIC, "", text, strlen(text));
    free(text);
    return true;
}

void follow_take_rest(struct link *link, const struct target_follow_ops *ops, void *opaque)
{
    uint64_t begun_ns = loop_now_ns();
    bool told = false;
    int err = FRAMES;

    while (err > END && loop_now_ns() - begun_ns < (TARGET_FOLLOW_MS + PATIENCE_MS) * NS_PER_MS) {
        if (!told)
            told = tell_traffic(link, ops, opaque,
                                loop_now_ns() - begun_ns >= TARGET_FOLLOW_MS * NS_PER_MS);
        err = link_await(link, told ? PATIENCE_MS * NS_PER_MS : NS_PER_MS);
        if (!err) {
            err = take_section(link, ops, opaque);
            if (err == MARK)
                ops->settled(opaque);
        } else if (err == -ETIMEDOUT && !told) {
            err = FRAMES;
        }
    }
}

/*
 * KVM's count of the instructions that it emulates of a vCPU, found by its name among all it counts.
 *
 * Decides nothing by it. See the header for threads and text; no locks.
 */
#include "vmm/x86/count.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define NAME "insn_emulation"
#define NAME_ROOM 128

static int find(struct x86_count *count)
{
    struct kvm_stats_header head;
    struct {
        struct kvm_stats_desc desc;
        char name[NAME_ROOM];
    } one;

    if (pread(count->fd, &head, sizeof(head), 0) != sizeof(head) || head.name_size > NAME_ROOM)
        return -EINVAL;
    for (uint32_t i = 0; i < head.num_desc; i++) {
        size_t size = sizeof(one.desc) + head.name_size;

        if (pread(count->fd, &one, size, (off_t)(head.desc_offset + i * size)) != (ssize_t)size)
            return -EINVAL;
        if (strncmp(one.desc.name, NAME, head.name_size) == 0) {
            count->at = head.data_offset + one.desc.offset;
            return 0;
        }
    }
    return -ENOENT;
}

int x86_count_open(struct x86_count *count, int vcpu_fd)
{
    int err;

    count->fd = ioctl(vcpu_fd, KVM_GET_STATS_FD, NULL);
    if (count->fd < 0)
        return -errno;
    err = find(count);
    if (err)
        x86_count_close(count);
    return err;
}

uint64_t x86_count_read(const struct x86_count *count)
{
    uint64_t value = UINT64_MAX;

    (void)!pread(count->fd, &value, sizeof(value), (off_t)count->at);
    return value;
}

void x86_count_close(struct x86_count *count)
{
    if (count->fd >= 0)
        close(count->fd);
    count->fd = -1;
}

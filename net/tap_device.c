/*
 * Opening taps and macvtaps, and the ioctls that set them up.
 *
 * Does not make macvtap links (bridge.c, by rtnetlink) and moves no frames (tap.c). No state.
 *
 * Texts: Linux Documentation/networking/tuntap.rst; linux/if_tun.h.
 */
#include "net/tap_device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "net/port.h"
#include "vmm/util/log.h"

#define TUN_PATH "/dev/net/tun"

/* Newer than the headers of Debian 12: linux/if_tun.h of Linux 6.2. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

void tap_device_close(struct tap_device *device)
{
    while (device->n_queues > 0)
        close(device->fds[--device->n_queues]);
}

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* Who had the device before may have left it with headers of another size; a new one has this. */
static int set_header_size(int fd)
{
    const int size = sizeof(struct virtio_net_hdr);

    return ioctl(fd, TUNSETVNETHDRSZ, &size) < 0 ? -errno : 0;
}

/* ---- taps ---- */

/* Opens one more queue. device->name: also a pattern such as "ferry%d"; becomes the device's. */
static int add_queue(struct tap_device *device, bool several)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open(TUN_PATH, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    int err;

    if (fd < 0)
        return -errno;
    if (several)
        request.ifr_flags |= IFF_MULTI_QUEUE;
    memcpy(request.ifr_name, device->name, IFNAMSIZ);
    err = ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : set_header_size(fd);
    if (err) {
        close(fd);
        return err;
    }
    memcpy(device->name, request.ifr_name, IFNAMSIZ);
    device->name[IFNAMSIZ - 1] = '\0';
    device->fds[device->n_queues++] = fd;
    return 0;
}

static int add_queues(struct tap_device *device, const char *name, unsigned queues)
{
    int err = 0;

    *device = (struct tap_device){0};
    snprintf(device->name, sizeof(device->name), "%s", name);
    for (unsigned i = 0; i < queues && !err; i++)
        err = add_queue(device, queues > 1);
    if (err)
        tap_device_close(device);
    return err;
}

static void log_refusal(const char *who, const char *name, unsigned queues, int err)
{
    if (err == -ENOENT || err == -ENODEV || err == -ENXIO)
        log_error("%s: there is no %s: load the kernel's module tun (modprobe tun)", who, TUN_PATH);
    else if (err == -EACCES)
        log_error("%s: no right to open %s", who, TUN_PATH);
    else if (err == -EPERM)
        log_error("%s: no right to use %s: it takes the capability CAP_NET_ADMIN, or a tap that is "
                  "yours ('ip tuntap add %s mode tap user $USER')", who, name, name);
    else if (err == -EBUSY)
        log_error("%s: %s is in use by another program", who, name);
    else if (err == -EINVAL)
        log_error("%s: %s is no tap, or one with another number of queues than %u (one for several "
                  "is made with 'multi_queue')", who, name, queues);
    else
        log_error("%s: cannot use %s: %s", who, name, strerror(-err));
}

int tap_device_attach(struct tap_device *device, const char *who, const char *name,
                      unsigned queues)
{
    int err;

    /* Else the kernel would make one. */
    if (strlen(name) >= IFNAMSIZ || if_nametoindex(name) == 0) {
        log_error("%s: there is no %s: make it, as by 'ip tuntap add %s mode tap user $USER', and "
                  "set it up", who, name, name);
        return -ENODEV;
    }
    err = add_queues(device, name, queues);
    if (err)
        log_refusal(who, name, queues, err);
    return err;
}

int tap_device_try(struct tap_device *device, unsigned queues)
{
    return add_queues(device, "ferry%d", queues);
}

int tap_device_make(struct tap_device *device, const char *who, const char *name, unsigned queues)
{
    int err;

    if (name && (strlen(name) >= IFNAMSIZ || strchr(name, '%'))) {
        log_error("%s: '%s' is no name for an interface: at most %d characters were expected", who,
                  name, IFNAMSIZ - 1);
        return -EINVAL;
    }
    if (name && if_nametoindex(name) != 0) {
        log_error("%s: there is a %s already: choose another name", who, name);
        return -EEXIST;
    }
    err = name ? add_queues(device, name, queues) : tap_device_try(device, queues);
    if (err == -EPERM)
        log_error("%s: no right to make a network interface: it takes the capability "
                  "CAP_NET_ADMIN; run ferry as root, or use --net nat, which takes none", who);
    else if (err)
        log_refusal(who, name ? name : "a tap", queues, err);
    return err;
}

int tap_device_adopt(struct tap_device *device, const char *who, int fd)
{
    struct ifreq request = {0};

    *device = (struct tap_device){0};
    if (ioctl(fd, TUNGETIFF, &request) < 0 || !(request.ifr_flags & IFF_VNET_HDR) ||
        set_nonblocking(fd) < 0 || set_header_size(fd) < 0) {
        log_error("%s: what was opened is no tap with headers", who);
        return -EINVAL;
    }
    memcpy(device->name, request.ifr_name, IFNAMSIZ - 1);
    device->fds[device->n_queues++] = fd;
    return 0;
}

/* ---- macvtaps ---- */

/* Whether it is the device that has this address. Another network namespace may have a link of the
 * same index, and then a node of the same name. */
static bool is_device(int fd, const uint8_t mac[6])
{
    struct ifreq request = {0};

    return ioctl(fd, SIOCGIFHWADDR, &request) == 0 &&
           memcmp(request.ifr_hwaddr.sa_data, mac, 6) == 0;
}

/* The number of the device's node as sysfs has it: 0 when it does not. */
static dev_t sysfs_number(const char *link, unsigned index)
{
    unsigned major_number, minor_number;
    dev_t number = 0;
    char path[100];
    FILE *file;

    snprintf(path, sizeof(path), "/sys/class/net/%s/macvtap/tap%u/dev", link, index);
    file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%u:%u", &major_number, &minor_number) == 2)
        number = makedev(major_number, minor_number);
    fclose(file);
    return number;
}

/* Opens a node made for the purpose, where /dev has none or another's. */
static int open_own_node(const char *link, unsigned index)
{
    dev_t number = sysfs_number(link, index);
    char folder[] = "/tmp/ferry-node-XXXXXX", path[64];
    int fd;

    if (number == 0)
        return -ENODEV;
    if (!mkdtemp(folder))
        return -errno;
    snprintf(path, sizeof(path), "%s/tap", folder);
    fd = mknod(path, S_IFCHR | 0600, number) < 0 ? -1
                                                 : open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        fd = -errno;
    unlink(path);
    rmdir(folder);
    return fd;
}

static int open_node(const char *link, unsigned index, const uint8_t mac[6])
{
    char path[32];
    int fd;

    snprintf(path, sizeof(path), "/dev/tap%u", index);
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == EACCES)
        return -EACCES;
    if (fd >= 0 && is_device(fd, mac))
        return fd;
    if (fd >= 0)
        close(fd);
    fd = open_own_node(link, index);
    if (fd >= 0 && !is_device(fd, mac)) {
        close(fd);
        return -ENODEV;
    }
    return fd;
}

static int add_macvtap_queue(struct tap_device *device, unsigned index, const uint8_t mac[6],
                             bool several)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open_node(device->name, index, mac);
    int err;

    if (fd < 0)
        return fd;
    if (several)
        request.ifr_flags |= IFF_MULTI_QUEUE;
    err = ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : set_header_size(fd);
    if (err) {
        close(fd);
        return err;
    }
    device->fds[device->n_queues++] = fd;
    return 0;
}

int tap_device_open_macvtap(struct tap_device *device, const char *who, unsigned index,
                            const uint8_t mac[6], unsigned queues)
{
    int err = 0;

    *device = (struct tap_device){0};
    if (!if_indextoname(index, device->name))
        err = -ENODEV;
    for (unsigned i = 0; i < queues && !err; i++)
        err = add_macvtap_queue(device, index, mac, queues > 1);
    if (!err)
        return 0;
    log_error("%s: cannot open the device /dev/tap%u of the macvtap: %s", who, index,
              strerror(-err));
    tap_device_close(device);
    return err;
}

/* ---- offloads ---- */

static const struct {
    uint32_t offload, tun;
} offload_bits[] = {
    {NET_OFFLOAD_CSUM, TUN_F_CSUM},       {NET_OFFLOAD_TSO4, TUN_F_TSO4},
    {NET_OFFLOAD_TSO6, TUN_F_TSO6},       {NET_OFFLOAD_TSO_ECN, TUN_F_TSO_ECN},
    {NET_OFFLOAD_USO4, TUN_F_USO4},       {NET_OFFLOAD_USO6, TUN_F_USO6},
};
#define USO_BOTH ((uint32_t)(NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6))

static bool try_offloads(const struct tap_device *device, uint32_t offloads)
{
    unsigned long tun = 0;

    for (size_t i = 0; i < sizeof(offload_bits) / sizeof(offload_bits[0]); i++) {
        if (offloads & offload_bits[i].offload)
            tun |= offload_bits[i].tun;
    }
    return ioctl(device->fds[0], TUNSETOFFLOAD, tun) == 0;
}

uint32_t tap_device_set_offloads(const struct tap_device *device, uint32_t offloads)
{
    if (!(offloads & NET_OFFLOAD_CSUM))
        offloads = 0; /* the others presume it */
    if (!(offloads & (NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6)))
        offloads &= ~(uint32_t)NET_OFFLOAD_TSO_ECN;
    /* The kernel takes UDP's only for both versions of IP. */
    if ((offloads & USO_BOTH) != USO_BOTH)
        offloads &= ~USO_BOTH;
    if (try_offloads(device, offloads))
        return offloads;
    offloads &= ~USO_BOTH;
    return try_offloads(device, offloads) ? offloads : 0;
}

uint32_t tap_device_offloads(const struct tap_device *device)
{
    uint32_t all = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_TSO_ECN;

    /* What it can leave undone is what it can be handed undone. */
    return tap_device_set_offloads(device, all | USO_BOTH);
}

/*
 * Links, addresses and routes of the host, by rtnetlink.
 *
 * Decides nothing: what is made when, and when it is taken away, is said by its callers. No state; a
 * socket belongs to one thread at a time.
 *
 * Texts: rtnetlink(7); Linux Documentation/netlink/specs/rt_link.yaml, rt_addr.yaml, rt_route.yaml.
 */
#include "net/rtnl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <string.h>

static uint32_t u32_of(const struct nlattr *attr)
{
    uint32_t value = 0;

    if (attr)
        memcpy(&value, netlink_data(attr), sizeof(value));
    return value;
}

/* ---- links ---- */

static int read_link(void *arg, const struct nlmsghdr *message)
{
    const struct ifinfomsg *info = NLMSG_DATA(message);
    const size_t head = sizeof(*info);
    struct rtnl_link *link = arg;
    const struct nlattr *mac;

    if (message->nlmsg_type != RTM_NEWLINK || message->nlmsg_len < NLMSG_LENGTH(head))
        return -EBADMSG;
    *link = (struct rtnl_link){.index = (unsigned)info->ifi_index,
                               .up = info->ifi_flags & IFF_UP};
    netlink_copy_text(netlink_find(message, head, IFLA_IFNAME, 1), link->name,
                      sizeof(link->name));
    netlink_copy_text(netlink_find(message, head, IFLA_IFALIAS, 1), link->alias,
                      sizeof(link->alias));
    netlink_copy_text(netlink_find_in(netlink_find(message, head, IFLA_LINKINFO, 0),
                                      IFLA_INFO_KIND, 1), link->kind, sizeof(link->kind));
    link->mtu = u32_of(netlink_find(message, head, IFLA_MTU, 4));
    link->master = u32_of(netlink_find(message, head, IFLA_MASTER, 4));
    mac = netlink_find(message, head, IFLA_ADDRESS, 6);
    if (mac)
        memcpy(link->mac, netlink_data(mac), 6);
    return 0;
}

static int get_link(struct netlink *nl, unsigned index, const char *name, struct rtnl_link *link)
{
    const struct ifinfomsg info = {.ifi_index = (int)index};
    struct netlink_request request;

    netlink_clear(&request);
    netlink_begin(&request, RTM_GETLINK, 0, &info, sizeof(info));
    if (name)
        netlink_put_text(&request, IFLA_IFNAME, name);
    return netlink_query(nl, &request, read_link, link);
}

int rtnl_link_find(struct netlink *nl, const char *name, struct rtnl_link *link)
{
    return strlen(name) >= IFNAMSIZ ? -ENODEV : get_link(nl, 0, name, link);
}

int rtnl_link_get(struct netlink *nl, unsigned index, struct rtnl_link *link)
{
    return get_link(nl, index, NULL, link);
}

static void put_no_addresses(struct netlink_request *request)
{
    const uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
    size_t families = netlink_nest(request, IFLA_AF_SPEC);
    size_t family = netlink_nest(request, AF_INET6);

    netlink_put(request, IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof(mode));
    netlink_end(request, family);
    netlink_end(request, families);
}

int rtnl_link_change(struct netlink *nl, unsigned index, const struct rtnl_change *change)
{
    const struct ifinfomsg info = {
        .ifi_index = (int)index,
        .ifi_flags = change->up ? IFF_UP : 0,
        .ifi_change = change->up ? IFF_UP : 0,
    };
    struct netlink_request request;

    netlink_clear(&request);
    netlink_begin(&request, RTM_NEWLINK, NLM_F_ACK, &info, sizeof(info));
    if (change->mac)
        netlink_put(&request, IFLA_ADDRESS, change->mac, 6);
    if (change->alias)
        netlink_put_text(&request, IFLA_IFALIAS, change->alias);
    if (change->mtu)
        netlink_put_u32(&request, IFLA_MTU, change->mtu);
    if (change->master)
        netlink_put_u32(&request, IFLA_MASTER, change->master);
    if (change->no_addresses)
        put_no_addresses(&request);
    return netlink_send(nl, &request);
}

int rtnl_macvtap_create(struct netlink *nl, unsigned lower, const char *name,
                        const uint8_t mac[6], uint32_t mode)
{
    const struct ifinfomsg info = {0};
    struct netlink_request request;
    size_t link, data;

    netlink_clear(&request);
    netlink_begin(&request, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &info,
                  sizeof(info));
    netlink_put_text(&request, IFLA_IFNAME, name);
    netlink_put_u32(&request, IFLA_LINK, lower);
    netlink_put(&request, IFLA_ADDRESS, mac, 6);
    link = netlink_nest(&request, IFLA_LINKINFO);
    netlink_put_text(&request, IFLA_INFO_KIND, "macvtap");
    data = netlink_nest(&request, IFLA_INFO_DATA);
    netlink_put_u32(&request, IFLA_MACVLAN_MODE, mode);
    netlink_end(&request, data);
    netlink_end(&request, link);
    return netlink_send(nl, &request);
}

int rtnl_link_delete(struct netlink *nl, unsigned index)
{
    const struct ifinfomsg info = {.ifi_index = (int)index};
    struct netlink_request request;

    netlink_clear(&request);
    netlink_begin(&request, RTM_DELLINK, NLM_F_ACK, &info, sizeof(info));
    return netlink_send(nl, &request);
}

/* ---- addresses and routes ---- */

int rtnl_address_add(struct netlink *nl, unsigned index, struct in_addr address, unsigned prefix)
{
    const struct ifaddrmsg info = {
        .ifa_family = AF_INET,
        .ifa_prefixlen = (uint8_t)prefix,
        .ifa_index = index,
    };
    const struct in_addr broadcast = {address.s_addr | htonl(UINT32_MAX >> prefix)};
    struct netlink_request request;

    netlink_clear(&request);
    netlink_begin(&request, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &info,
                  sizeof(info));
    netlink_put(&request, IFA_LOCAL, &address, sizeof(address));
    netlink_put(&request, IFA_ADDRESS, &address, sizeof(address));
    netlink_put(&request, IFA_BROADCAST, &broadcast, sizeof(broadcast));
    return netlink_send(nl, &request);
}

struct network {
    uint32_t address; /* host's byte order */
    unsigned prefix;
};

static int overlaps(const struct network *network, uint32_t other, unsigned prefix)
{
    unsigned shared = prefix < network->prefix ? prefix : network->prefix;

    return shared > 0 && (network->address ^ other) >> (32 - shared) == 0;
}

static int check_address(void *arg, const struct nlmsghdr *message)
{
    const struct ifaddrmsg *info = NLMSG_DATA(message);
    const struct nlattr *address = netlink_find(message, sizeof(*info), IFA_ADDRESS, 4);

    if (message->nlmsg_type != RTM_NEWADDR || info->ifa_family != AF_INET || !address)
        return 0;
    return overlaps(arg, ntohl(u32_of(address)), info->ifa_prefixlen);
}

static int check_route(void *arg, const struct nlmsghdr *message)
{
    const struct rtmsg *info = NLMSG_DATA(message);
    const struct nlattr *to = netlink_find(message, sizeof(*info), RTA_DST, 4);

    if (message->nlmsg_type != RTM_NEWROUTE || info->rtm_family != AF_INET || !to)
        return 0;
    return overlaps(arg, ntohl(u32_of(to)), info->rtm_dst_len);
}

int rtnl_network_used(struct netlink *nl, struct in_addr network, unsigned prefix)
{
    struct network wanted = {ntohl(network.s_addr), prefix};
    const struct ifaddrmsg address = {.ifa_family = AF_INET};
    const struct rtmsg route = {.rtm_family = AF_INET};
    struct netlink_request request;
    int result;

    netlink_clear(&request);
    netlink_begin(&request, RTM_GETADDR, NLM_F_DUMP, &address, sizeof(address));
    result = netlink_query(nl, &request, check_address, &wanted);
    if (result)
        return result;
    netlink_clear(&request);
    netlink_begin(&request, RTM_GETROUTE, NLM_F_DUMP, &route, sizeof(route));
    return netlink_query(nl, &request, check_route, &wanted);
}

struct link_list {
    unsigned *indices;
    unsigned max, count;
};

static void note_link(struct link_list *list, unsigned index)
{
    for (unsigned i = 0; i < list->count; i++) {
        if (list->indices[i] == index)
            return;
    }
    if (index != 0 && list->count < list->max)
        list->indices[list->count++] = index;
}

static int note_route(void *arg, const struct nlmsghdr *message)
{
    const struct rtmsg *info = NLMSG_DATA(message);

    /* One that leads by several links at once (RTA_MULTIPATH) is left out. */
    if (message->nlmsg_type == RTM_NEWROUTE && info->rtm_family == AF_INET &&
        info->rtm_type == RTN_UNICAST && info->rtm_table == RT_TABLE_MAIN)
        note_link(arg, u32_of(netlink_find(message, sizeof(*info), RTA_OIF, 4)));
    return 0;
}

int rtnl_routed_links(struct netlink *nl, unsigned *indices, unsigned max)
{
    struct link_list list = {.indices = indices, .max = max};
    const struct rtmsg route = {.rtm_family = AF_INET};
    struct netlink_request request;
    int err;

    netlink_clear(&request);
    netlink_begin(&request, RTM_GETROUTE, NLM_F_DUMP, &route, sizeof(route));
    err = netlink_query(nl, &request, note_route, &list);
    return err ? err : (int)list.count;
}

# The modes that go by a tap or a macvtap of the host, on a kernel that many hosts have: Linux 6.1.
# lab: --smp 2 --modules bridge --modules veth --modules macvtap --modules nf_tables
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# The guest fetches a file and sends it back, once it has an address.
there_and_back='
    until wget -q -O /tmp/file http://$host:$port/file; do sleep 1; done
    echo sum=$(sha256sum </tmp/file | cut -c 1-64)
    until nc $host $((port + 100)) </tmp/file; do sleep 1; done'

# carries PORT ADDRESS COMMANDS OPTION...: a file of 2 MB goes to a guest that has run the commands, and
# back; the host is at the address. Each test has its own port.
carries() {
    port=$1 address=$2 commands=$3
    shift 3
    mkdir www
    head -c 2000000 /dev/urandom >www/file
    busybox httpd -p $port -h www
    sleep 100000 | nc -l -p $((port + 100)) >back &
    guest "host=$address; port=$port; $commands$there_and_back" "$@"
    [ "$(value sum)" = "$(sum www/file)" ]
    # What nc has taken may not have been written yet.
    left=600
    until cmp www/file back; do left=$((left - 1)); [ $left -gt 0 ]; usleep 100000; done
}

static='ip link set eth0 up; ip address add 10.9.0.9/24 dev eth0'

test_a_port_of_a_bridge_with_two_pairs_of_queues_carries_a_file_both_ways() {
    ip link add br7 type bridge
    ip address add 10.9.0.1/24 dev br7
    ip link set br7 up
    carries 8001 10.9.0.1 "$static" --net bridge,br=br7,queues=2 --cpus 2
    ip link del br7
}

# The peer of a veth that BusyBox makes has the kernel's name.
test_a_macvtap_carries_a_file_both_ways() {
    ip link add wire0 type veth
    ip address add 10.9.0.1/24 dev veth0
    ip link set wire0 up
    ip link set veth0 up
    carries 8002 10.9.0.1 "$static" --net bridge,if=wire0
    ip link del wire0
}

test_a_tap_of_somebody_else_carries_a_file_both_ways() {
    tunctl -t tap7
    ip address add 10.9.0.1/24 dev tap7
    ip link set tap7 up
    carries 8003 10.9.0.1 "$static" --net tap,if=tap7
    tunctl -d tap7
}

test_the_host_and_its_guest_carry_a_file_both_ways() {
    carries 8004 10.78.0.1 'net-up' --net hostonly,subnet=10.78.0.0/24
    has '^lease 10\.78\.0\.'
}

test_nat_by_the_kernel_carries_a_file_both_ways() {
    ip link add away type bridge
    ip address add 10.9.1.1/24 dev away
    ip link set away up
    carries 8005 10.9.1.1 'net-up' --net nat,via=kernel,subnet=10.79.0.0/24
    has '^lease 10\.79\.0\.'
    ip link del away
}

# virtio-net with user-mode NAT.
# lab: --smp 2
# put: nc.openbsd
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# serve FOLDER PORT: an HTTP server of the lab.
serve() { busybox httpd -p "127.0.0.1:$2" -h "$1"; }

test_guest_gets_a_lease_and_pings_the_gateway() {
    guest 'net-up && ping -c 3 10.0.2.2' --net nat
    has '^lease 10\.0\.2\.15/24 gateway 10\.0\.2\.2 dns 10\.0\.2\.3'
    has '3 packets transmitted, 3 packets received'
}

test_guest_fetches_a_file_of_4_MB_from_the_host() {
    mkdir www
    head -c 4000000 /dev/urandom >www/file
    serve "$PWD/www" 8001
    guest 'net-up && wget -q -O /tmp/file http://10.0.2.2:8001/file; echo sum=$(sha256sum </tmp/file | cut -c 1-64)' \
        --net nat
    [ "$(value sum)" = "$(sum "www/file")" ]
}

test_two_pairs_of_queues_chosen_by_hash_carry_a_file() {
    mkdir www
    head -c 1000000 /dev/urandom >www/file
    serve "$PWD/www" 8005
    guest 'net-up && wget -q -O /tmp/file http://10.0.2.2:8005/file; echo sum=$(sha256sum </tmp/file | cut -c 1-64)
        echo queues $(ls /sys/class/net/eth0/queues)' --cpus 2 --net nat,queues=2
    [ "$(value sum)" = "$(sum "www/file")" ]
    has '^queues rx-0 rx-1 tx-0 tx-1'
}

test_a_card_of_few_features_carries_a_file() {
    mkdir www
    head -c 1000000 /dev/urandom >www/file
    serve "$PWD/www" 8006
    guest 'net-up && wget -q -O /tmp/file http://10.0.2.2:8006/file; echo sum=$(sha256sum </tmp/file | cut -c 1-64)' \
        --net nat,packed=off,csum=off,mrg_rxbuf=off,ctrl_vq=off,event_idx=off,indirect=off
    [ "$(value sum)" = "$(sum "www/file")" ]
}

# The guest serves a file until the host has asked for the page `end`. BusyBox's server gives up on who
# does not get the whole of it within a minute.
serve_in_guest='
    net-up
    mkdir -p /www/cgi-bin
    head -c ${size:-4000000} /dev/urandom >/www/file
    echo sum=$(sha256sum </www/file | cut -c 1-64)
    mkfifo /end
    printf "#!/bin/sh\necho end >/end\necho\necho bye\n" >/www/cgi-bin/end
    chmod 755 /www/cgi-bin/end
    httpd -p 80 -h /www
    echo serving
    cat /end'

test_host_fetches_a_file_of_4_MB_from_the_guest() {
    guest_start "$serve_in_guest" --net nat,forward=tcp:127.0.0.1:8002-:80
    wait_for '^serving' console
    wget -q -O file http://127.0.0.1:8002/file
    wget -q -O - http://127.0.0.1:8002/cgi-bin/end
    guest_end
    [ $STATUS = 0 ]
    [ "$(value sum)" = "$(sum "file")" ]
}

test_two_cpus_and_eight_connections_at_once() {
    guest_start "size=500000$serve_in_guest" --cpus 2 --net nat,forward=tcp:8003-:80
    wait_for '^serving' console
    fetchers=
    for i in 1 2 3 4 5 6 7 8; do
        wget -q -O "file$i" http://127.0.0.1:8003/file &
        fetchers="$fetchers $!"
    done
    wait $fetchers
    wget -q -O - http://127.0.0.1:8003/cgi-bin/end
    guest_end
    for i in 1 2 3 4 5 6 7 8; do [ "$(value sum)" = "$(sum "file$i")" ]; done
}

test_datagrams_pass_a_forward_of_udp_and_are_answered() {
    guest_start 'net-up; mkfifo /tmp/answer
        echo listening
        nc.openbsd -u -l -p 5353 </tmp/answer | tee /tmp/answer' \
        --net nat,forward=udp:127.0.0.1:5300-:5353
    wait_for '^listening' console
    # A datagram that comes before the guest has its port open is lost, as datagrams are: there are more,
    # from one port, as the guest's nc answers the first it hears of only.
    : >answers
    until grep -q datagram answers; do echo datagram; usleep 500000; done |
        /opt/bin/nc.openbsd -u 127.0.0.1 5300 >answers &
    wait_for '^datagram' answers
}

test_two_cards_have_the_addresses_that_were_asked_for() {
    guest 'ip link; net-up eth0 && net-up eth1' --net nat,mac=52:54:00:00:00:11 --net nat,mac=52:54:00:00:00:22
    has '52:54:00:00:00:11'
    has '52:54:00:00:00:22'
    [ "$(grep -a -c '^lease' console)" = 2 ]
}

test_busy_forward_port_is_refused_in_one_line() {
    mkdir www
    serve "$PWD/www" 8004
    status=0
    ferry run -k $KERNEL -i $INITRD --net nat,forward=tcp:8004-:80 </dev/null >console 2>ferry || status=$?
    [ $status = 2 ]
    [ "$(wc -l <ferry)" = 1 ]
    has 8004 ferry
}

test_guest_without_net_has_no_card() {
    guest 'ls /sys/class/net' --net none
    lacks eth0
}

#!/bin/sh
# The guest's part of the demo. demo_port is the host's server, from the kernel's command line.
# shellcheck disable=SC2154 # it is a variable of the environment
gateway=10.0.2.2

net-up || exit 1
ping -c 3 "$gateway" | tail -n 2
page=$(wget -q -O - "http://$gateway:$demo_port/") || exit 1
echo "page from http://$gateway:$demo_port/: $page"
mkdir -p /www
echo "Hello from the guest, Linux $(uname -r)." >/www/index.html
httpd -p 80 -h /www
stty -echo
echo serving
# The host says when it has seen the page.
read -r _
echo 'powering off'

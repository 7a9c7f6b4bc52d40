# For the benches of networks, which source it: runs them again in namespaces of their own, where nothing
# of the host is touched, and says where things are. `arguments` are the script's, `subject` what is not
# measured when that cannot be.
# shellcheck shell=bash disable=SC2034,SC2154 # the script's variables

BUILD=${BUILD:-build}
ferry=$BUILD/ferry
tcp=$BUILD/guest/tcp.elf
server=$BUILD/tests/net/server
port=5001

if [[ -z ${FERRY_BENCH_APART-} ]]; then
    for tool in ip unshare; do
        command -v $tool >/dev/null || { echo "There is no $tool: $subject are not measured."; exit; }
    done
    export FERRY_BENCH_APART=1
    exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" "${arguments[@]}"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/ferry-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
mount -t sysfs none /sys && mount -t tmpfs none /run || exit
unset XDG_RUNTIME_DIR

# Completion of ferry's command line for bash.
# shellcheck shell=bash

# _ferry_net_keys MODE,...: the keys that go with a network mode.
_ferry_net_keys() {
    local card='mac= queues= mtu= csum=off tso=off mq=off'
    local adapter='subnet= dns= router= domain= lease= leases= dhcp=off'
    case $1 in
        nat,*via=kernel*) echo "forward=tcp: forward=udp: if= $adapter $card" ;;
        nat,*via=passt*)  echo "forward=tcp: forward=udp: subnet= dns= ipv6=off $card" ;;
        nat,*)    echo "via=passt via=kernel forward=tcp: forward=udp: subnet= dns= domain= ipv6=off
            restricted=on $card" ;;
        hostonly,*) echo "if= $adapter $card" ;;
        bridge,*) echo "if= br= mode=bridge mode=vepa mode=private mode=passthru $card" ;;
        tap,*)    echo "if= $card" ;;
        switch=*) echo "port= vlan= trunk= native= isolated=on monitor=on $card" ;;
        stream,*) echo "path= address= server=on reconnect= $card" ;;
        *)        echo "$card" ;;
    esac
}

# _ferry_run WORD PREVIOUS: what may stand for WORD.
_ferry_run() {
    local options='--kernel --initrd --append --cpus --memory --disk --net --switch --console --name
        --decompress --no-reboot --grace --incoming --tls --verbose --help'
    case $2 in
        -k | --kernel | -i | --initrd) mapfile -t COMPREPLY < <(compgen -f -- "$1") ;;
        -d | --disk)
            compopt -o nospace 2>/dev/null
            if [[ $1 == *,* ]]; then
                mapfile -t COMPREPLY < <(compgen -P "${1%,*}," \
                    -W 'readonly=on direct=on serial= packed=off' -- "${1##*,}")
            else
                mapfile -t COMPREPLY < <(compgen -f -- "$1")
            fi ;;
        -n | --net)
            compopt -o nospace 2>/dev/null
            if [[ $1 == *,* || $1 == *=* ]]; then
                mapfile -t COMPREPLY < <(compgen -P "${1%,*}," -W "$(_ferry_net_keys "$1")" -- "${1##*,}")
            else
                mapfile -t COMPREPLY < <(compgen -W 'nat hostonly bridge tap stream none switch=' -- "$1")
            fi ;;
        -s | --switch)
            compopt -o nospace 2>/dev/null
            [[ $1 != *,* ]] || mapfile -t COMPREPLY < <(compgen -P "${1%,*}," \
                -W 'uplink= poll= rules= subnet= forward=tcp: forward=udp: trunk= native= vlan=' -- "${1##*,}") ;;
        -m | --memory)
            if [[ $1 == *,* ]]; then
                mapfile -t COMPREPLY < <(compgen -P "${1%,*}," \
                    -W 'hugepages=2M hugepages=1G prealloc=on dirty-ring=4096' -- "${1##*,}")
            else
                mapfile -t COMPREPLY < <(compgen -W '512M 1G 2G 4G' -- "$1")
            fi ;;
        --console)    mapfile -t COMPREPLY < <(compgen -W 'serial virtio off' -- "$1") ;;
        --decompress) mapfile -t COMPREPLY < <(compgen -W 'auto host guest' -- "$1") ;;
        --incoming)   mapfile -t COMPREPLY < <(compgen -W 'tcp: tls: unix:' -- "$1") ;;
        --tls)        mapfile -t COMPREPLY < <(compgen -d -- "$1") ;;
        -a | --append | -c | --cpus | --name | --grace) ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$1") ;;
    esac
}

# _ferry_guests: the names of the guests that run.
_ferry_guests() { ferry ps 2>/dev/null | awk 'NR > 1 { print $1 }'; }

# _ferry_labs: the names of the processes that have several guests.
_ferry_labs() { _ferry_guests | sed -n 's,/.*,,p' | sort -u; }

# _ferry_switches: the names of the switches there are.
_ferry_switches() { ferry net 2>/dev/null | awk 'NR > 1 { print $1 }'; }

_ferry() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local commands='run up down net ps console pause resume reboot stop save restore migrate receive doctor'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$commands help --help --version" -- "$word")
        return
    fi
    # --option=value reaches us as three words.
    [[ $word != = ]] || word=
    [[ $previous != = ]] || previous=${COMP_WORDS[COMP_CWORD - 2]}
    case ${COMP_WORDS[1]} in
        run)    _ferry_run "$word" "$previous" ;;
        help)   mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word") ;;
        ps | doctor) mapfile -t COMPREPLY < <(compgen -W '--json --help' -- "$word") ;;
        net)
            case $COMP_CWORD in
                2) mapfile -t COMPREPLY < <(compgen -W "$(_ferry_switches) --json --help" -- "$word") ;;
                3) mapfile -t COMPREPLY < <(compgen \
                    -W 'set rule unrule mirror unmirror capture stop trace' -- "$word") ;;
                *) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
            esac ;;
        up)
            mapfile -t COMPREPLY < <(compgen -f -W '--detach --verbose --help' -- "$word") ;;
        down)
            mapfile -t COMPREPLY < <(compgen -W "$(_ferry_labs) --force --help" -- "$word") ;;
        console)
            mapfile -t COMPREPLY < <(compgen -W "$(_ferry_guests) --dump --help" -- "$word") ;;
        pause | reboot)
            mapfile -t COMPREPLY < <(compgen -W "$(_ferry_guests) --help" -- "$word") ;;
        resume | stop)
            mapfile -t COMPREPLY < <(compgen -W "$(_ferry_guests) --force --help" -- "$word") ;;
        save)
            if ((COMP_CWORD == 2)); then
                mapfile -t COMPREPLY < <(compgen -W "$(_ferry_guests) --json --live --help" -- "$word")
            else
                mapfile -t COMPREPLY < <(compgen -f -- "$word")
            fi ;;
        migrate)
            case $previous in
                --on-timeout) mapfile -t COMPREPLY < <(compgen -W 'stop give-up' -- "$word") ;;
                --tls) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
                --compress) mapfile -t COMPREPLY < <(compgen -W 'zstd lz4 none' -- "$word") ;;
                --downtime | --timeout | --bandwidth | --streams) ;;
                *) mapfile -t COMPREPLY < <(compgen -W "$(_ferry_guests) --downtime --timeout
                    --on-timeout --bandwidth --streams --compress --tls --no-auto-converge --copy --check --cancel --status --json
                    --help" -- "$word") ;;
            esac ;;
        receive)
            case $previous in
                --name) ;;
                --tls) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
                --from) mapfile -t COMPREPLY < <(compgen -A hostname -- "$word") ;;
                *) mapfile -t COMPREPLY < <(compgen \
                    -W 'tcp: tls: unix: --name --from --tls --switch --once --verbose --help' -- "$word") ;;
            esac ;;
        restore)
            [[ $previous == --name ]] ||
                mapfile -t COMPREPLY < <(compgen -f -W '--fresh-macs --lazy --name --switch --verbose --help' -- "$word") ;;
    esac
}

complete -o filenames -F _ferry ferry

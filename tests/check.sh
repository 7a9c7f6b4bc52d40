#!/bin/bash
# Runs every test: unit tests, the command line, payload guests, the fuzz targets over their stored
# corpora, unit tests and payload guests under the sanitizers, the lab, and Linux by this host's own
# KVM. What is run must have been built (`make check` does both).
#
# Each suite prints 'ok NAME', 'not ok NAME' or 'skipped NAME: reason' and ends with the counts in a
# line 'N passed, N failed, N skipped'; so does this script, with the sums. A suite that ends without
# that line, or with a status that does not fit it, has failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

BUILD=${BUILD:-build}
export BUILD
passed=0 failed=0 skipped=0
started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

usage() {
    cat <<EOF
Usage: tests/check.sh [SUITE]...
Run the suites, or those that are named: unit, cli, guest, modes, fuzz, asan_unit, asan_guest,
lab, linux.
EOF
}

# These ask much of the host's kernel (namespaces, devices, processes that are killed), whose own
# workers lag on a busy machine. A test that failed runs once more by itself, if there are few of
# them: what fails again has failed. What it said the first time is shown, and how many needed it.
readonly FEW=3

# unit_run PROGRAM REPORT SUITE: one of Criterion's programs; its report (TAP) becomes our lines.
unit_run() {
    local name=${1##*/test_} status=0 suite=$3
    rm -f "$2"
    : >"$2.lines"
    timeout 600 "$1" --quiet -j2 --timeout 60 --tap="$2" >"$2.log" 2>&1 || status=$?
    [[ -e $2 ]] && sed -n -E \
        -e 's/  \([0-9.]+s\)$//;t plain' -e ':plain' \
        -e "s/^ok - ([^#]*[^# ]) *# SKIP *(.*)\$/skipped $suite: \\1: \\2/p;t" \
        -e "s/^((not )?ok) - (.*)\$/\\1 $suite: \\3/p" "$2" >"$2.lines"
    if ((status)) && ! grep -q '^not ok' "$2.lines"; then
        echo "not ok $suite: $name (ended with status $status)" >>"$2.lines"
    fi
    ! grep -q '^not ok' "$2.lines"
}

# unit_say REPORT [MARK]: what unit_run left, with the log where something failed.
unit_say() {
    sed "s/^not ok/${2-not ok}/" "$1.lines"
    if grep -q '^not ok' "$1.lines"; then
        sed 's/^/    /' "$1.log"
        sed -n '/^not ok/,/^ok/{/^ok/d;s/^/    /p}' "$1" 2>/dev/null
    fi
}

# unit_all FOLDER SUITE: the unit tests that were built there. A program with a failed test runs once
# more, as single tests do below.
unit_all() {
    local program work again=0
    work=$(mktemp -d)
    : >"$work/all"
    for program in "$1"/tests/unit/test_*; do
        [[ -x $program && ! -d $program ]] || continue
        if ! unit_run "$program" "$work/tap" "$2" && ((again++ < FEW)); then
            unit_say "$work/tap" '    --- once more below:' | grep -v '^\(ok\|skipped\) '
            unit_run "$program" "$work/tap" "$2"
        fi
        unit_say "$work/tap"
        cat "$work/tap.lines" >>"$work/all"
        rm -f "$work"/tap*
    done
    ((again == 0)) || echo "$again unit test programs ran a second time"
    printf '%d passed, %d failed, %d skipped\n' "$(grep -c '^ok' "$work/all")" \
        "$(grep -c '^not ok' "$work/all")" "$(grep -c '^skipped' "$work/all")"
    local bad=0
    grep -q '^not ok' "$work/all" && bad=1
    rm -rf "$work"
    return $bad
}

suite_unit() { unit_all "$BUILD" unit; }

# What the sanitizers find ends the program: there is nothing to look for in its output.
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
suite_asan_unit() { unit_all "$BUILD/asan" asan; }

# once_more PREFIX COMMAND...: a suite that takes names; PREFIX is what its lines have before them.
once_more() {
    local prefix=$1 name names=() counts=(0 0 0)
    shift
    "$@" >"$work/first" 2>&1
    [[ $(tail -n 1 "$work/first") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]] || {
        cat "$work/first"
        return 1
    }
    counts=("${BASH_REMATCH[@]:1}")
    mapfile -t names < <(sed -n -E "s/^not ok $prefix([^:]*).*/\\1/p" "$work/first")
    if ((counts[1] == 0 || counts[1] > FEW || ${#names[@]} != counts[1])); then
        cat "$work/first"
        return "$((counts[1] > 0))"
    fi
    sed -e 's/^not ok/    --- once more below:/' -e '$d' "$work/first"
    "$@" "${names[@]}" >"$work/second" 2>&1
    sed '$d' "$work/second"
    for name in "${names[@]}"; do
        if grep -q -x "ok $prefix$name" "$work/second"; then
            counts[0]=$((counts[0] + 1)) counts[1]=$((counts[1] - 1))
        elif ! grep -q "^not ok $prefix$name" "$work/second"; then
            echo "not ok $prefix$name: it did not run once more"
        fi
    done
    echo "${#names[@]} ran a second time"
    echo "${counts[0]} passed, ${counts[1]} failed, ${counts[2]} skipped"
    ((counts[1] == 0))
}

suite_asan_guest() {
    once_more '' tests/guest/run-tests --ferry "$BUILD/asan/ferry" --guests "$BUILD/guest" \
        --deadline 120 --moves 20 --faults 4 | sed -u -E 's/^((not )?ok|skipped) /\1 asan: /'
    return "${PIPESTATUS[0]}"
}

suite_cli() { FERRY=$BUILD/ferry tests/cli/run-tests; }

suite_guest() { once_more '' tests/guest/run-tests --ferry "$BUILD/ferry" --guests "$BUILD/guest"; }

suite_modes() {
    once_more 'modes: ' tests/net/run-tests --ferry "$BUILD/ferry" --guests "$BUILD/guest" --wire "$BUILD/tests/net/wire"
}

suite_fuzz() {
    local source name good=0 bad=0
    for source in tests/fuzz/fuzz_*.c; do
        name=${source##*/fuzz_}
        name=${name%.c}
        if timeout 600 "$BUILD/tests/fuzz/replay_$name" "tests/fuzz/corpus/$name" >/dev/null; then
            echo "ok fuzz: $name takes its stored corpus"
            good=$((good + 1))
        else
            echo "not ok fuzz: $name takes its stored corpus"
            bad=$((bad + 1))
        fi
    done
    echo "$good passed, $bad failed, 0 skipped"
    ((bad == 0))
}

suite_linux() { tests/linux/run-tests --ferry "$BUILD/ferry"; }

# The small Linux takes minutes to build, once: it is done beside the other suites, where it will be
# needed. tests/guest/linux.sh, when the suite calls it, waits for the one that runs.
linux_ahead() {
    [[ $("$BUILD/ferry" doctor --json 2>/dev/null) == *'"kernel_code": "emulated"'* ]] || return 0
    tests/guest/linux.sh --have >/dev/null 2>&1 && return 0
    nice -n 19 tests/guest/linux.sh >/dev/null 2>&1 </dev/null &
}

suite_lab() { tests/lab/run-tests --ferry "$BUILD/ferry"; }

# suite NAME: runs it and adds its counts. Lines of counts are kept for the end, so that the last
# line of all has the sums.
suite() {
    local begun=$SECONDS status=0 last counts
    echo "== $1"
    last=$(mktemp)
    "suite_$1" 2>&1 </dev/null | tee "$last" | sed -u '/^[0-9]* passed, [0-9]* failed/d'
    status=${PIPESTATUS[0]}
    if [[ $(tail -n 1 "$last") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        counts=("${BASH_REMATCH[@]:1}")
        ((counts[0] + counts[1] + counts[2])) || counts[1]=1
        ((status == 0 || counts[1])) || counts[1]=1
    else
        counts=(0 1 0)
        echo "not ok $1: the suite ended with status $status and without its counts"
    fi
    rm -f "$last"
    passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
    echo "== $1: ${counts[0]} passed, ${counts[1]} failed, ${counts[2]} skipped in $((SECONDS - begun)) s"
}

case ${1-} in
    -h | --help) usage; exit ;;
    -*) usage >&2; exit 2 ;;
esac
(($#)) || set -- unit cli guest modes fuzz asan_unit asan_guest lab linux
for name; do
    declare -F "suite_$name" >/dev/null || { usage >&2; exit 2; }
done
[[ " $* " != *' linux '* ]] || linux_ahead
for name; do suite "$name"; done
echo "== all suites in $((SECONDS - started)) s"
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))

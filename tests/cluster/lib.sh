# shellcheck shell=bash
# shellcheck disable=SC2154 # $dir is the script's
# What the scripts of this folder share: programs by name, processes that are recorded and ended by their record. Sourced, not run.
#
# A cluster lives in one directory, $dir: run/ (records), logs/, certificates, kubeconfig, nodes/NAME/.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/cluster/versions.sh
. "$here/versions.sh"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() {
    printf '%s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Now, in milliseconds.
now() {
    date +%s%3N
}

# since MILLISECONDS: seconds since then, with one decimal.
since() {
    local passed=$(($(now) - $1))
    printf '%d.%d' $((passed / 1000)) $((passed % 1000 / 100))
}

# program NAME: where a command of Kubernetes lies.
program() {
    [ -x "$kubernetes/$1" ] || die "$kubernetes/$1 is not built: let tests/run or tests/cluster/cluster start do it"
    echo "$kubernetes/$1"
}

# require COMMAND PACKAGE
require() {
    command -v "$1" >/dev/null || die "$1 is not there: install the package $2, or let tests/run do it"
}

# ready WHAT SECONDS COMMAND…: waits until the command succeeds.
ready() {
    local what=$1 end=$(($(now) + $2 * 1000))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(now)" -lt "$end" ] || { say "not ready: $what" >&2; return 1; }
        sleep 0.1
    done
}

# free_ports COUNT: that many TCP ports which nobody uses, below those that the kernel hands out by itself.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    it = socket.socket()
    try:
        it.bind(("0.0.0.0", random.randrange(20000, 32000)))
        held.append(it)
    except OSError:
        it.close()
print(*(it.getsockname()[1] for it in held))
PYTHON
}

# The moment at which a process started: with its id, a name that is never given twice.
started() {
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# launch NAME COMMAND…: starts it in a session of its own, with its output in logs/NAME.log, and records it.
launch() {
    local name=$1 pid
    shift
    (
        # Locks of whoever called must not be held by what lives longer.
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            [ "$fd" -gt 2 ] && [ "$fd" -ne 255 ] && eval "exec $fd>&-"
        done
        exec setsid "$@" >"$dir/logs/$name.log" 2>&1 </dev/null
    ) &
    pid=$!
    echo "$pid $(started "$pid")" >"$dir/run/$name"
}

# alive NAME: the recorded process still runs; its id.
alive() {
    local pid start
    read -r pid start 2>/dev/null <"$dir/run/$1" || return 1
    [ -n "$start" ] && [ "$(started "$pid")" = "$start" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null || return 1
    echo "$pid"
}

# halt NAME…: ends the recorded processes, at once: nothing of theirs is kept.
halt() {
    local name pid
    for name; do
        pid=$(alive "$name") && kill -9 "$pid" 2>/dev/null
    done
    for name; do
        while alive "$name" >/dev/null; do sleep 0.05; done
        rm -f "$dir/run/$name"
    done
}

# The cluster's own kubectl.
kubectl() {
    "$(program kubectl)" --kubeconfig "$dir/kubeconfig" "$@"
}

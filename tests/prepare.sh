# shellcheck shell=bash
# shellcheck disable=SC2154 # $logs is from tests/run
# What the tests need beside this tree, for tests/run: checked, and on Debian as root installed. Sourced, not run.
#
# prepare QUICK   makes everything ready; counts what stays missing in $missing and names each with the mend
# stop_all        stops what was started for this test run

TOFU_VERSION=1.12.6
TERRAFORM_VERSION=1.11.4
PROVIDER_VERSION=1.2.3
# shellcheck source=tests/engine.sh
. tests/engine.sh
# shellcheck source=tests/cluster/versions.sh
. tests/cluster/versions.sh
# shellcheck source=tests/cluster/prepare.sh
. tests/cluster/prepare.sh
# shellcheck source=tests/cluster/for-tests.sh
. tests/cluster/for-tests.sh

# A pipe that nothing is written to.
exec {never}<> <(:)

missing=0
ticker=

took() {
    local seconds=$((SECONDS - $1))
    printf '%d:%02d' $((seconds / 60)) $((seconds % 60))
}

# tick NAME START: the last line of a part's log now and then, and the name of every test that fails, at once.
tick() {
    local line last='' bad=0 failing same=0
    # Waits without a child of its own: that would outlive it, with our locks.
    while ! read -r -t 20 -u "$never" && kill -0 $$ 2>&-; do
        mapfile -t failing < <(grep '^test .* \.\.\. FAILED$' "$logs/$1.log")
        [ ${#failing[@]} -eq "$bad" ] || printf '    %s\n' "${failing[@]:bad}"
        bad=${#failing[@]}
        line=$(tail -n 1 "$logs/$1.log" | cut -c 1-90)
        # What has been shown is worth a line every two minutes.
        [ "$line" = "$last" ] && [ $((++same % 6)) -ne 0 ] && continue
        [ "$line" = "$last" ] || same=0
        last=$line
        printf '  %-12s %6s  %s\n' "$1" "$(took "$2")" "$line"
    done
}

# part NAME COMMAND…: runs the command with its output in a log, shows that it lives, and says how it ended.
# The command stays in the foreground: background jobs of a script ignore Ctrl-C, and so would all they start.
part() {
    local name=$1 start=$SECONDS status
    shift
    : >"$logs/$name.log"
    tick "$name" "$start" &
    ticker=$!
    "$@" >"$logs/$name.log" 2>&1 </dev/null
    status=$?
    kill "$ticker" 2>/dev/null
    wait "$ticker" 2>/dev/null
    ticker=
    part_took=$(took "$start")
    return "$status"
}

lacks() {
    missing=$((missing + 1))
    echo "missing: $*" >&2
}

# install PACKAGE…: with apt, where that is possible. Says nothing when it is not: the caller names what is missing.
install() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $*"
    {
        [ -n "$(find /var/lib/apt/lists -name '*_Packages*' -mmin -1440 -print -quit 2>/dev/null)" ] || apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
    } >>"$logs/install.log" 2>&1 </dev/null
}

# need COMMAND PACKAGE WHY: the command is there, or gets installed.
need() {
    command -v "$1" >/dev/null && return
    install "$2" && command -v "$1" >/dev/null && return
    lacks "$1 ($3): install the package $2 (see $logs/install.log)"
}

need_rust() {
    local part
    command -v cargo >/dev/null || {
        lacks "cargo: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer, see https://rustup.rs"
        return
    }
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null && rustup component add rustfmt clippy >>"$logs/install.log" 2>&1
        cargo "$part" --version >/dev/null 2>&1 || lacks "cargo $part: rustup component add rustfmt clippy"
    done
}

need_compiler() {
    need cc gcc "compiles SQLite and ring"
    # The runner is linked statically.
    [ -n "$(cc -print-file-name=libc.a 2>/dev/null | grep /)" ] || install libc6-dev || lacks "libc.a: install the package libc6-dev"
}

# Busybox gives the test images a shell. It must be static: those images have no library.
need_faketime() {
    local library=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
    [ -e "$library" ] || install libfaketime
    [ -e "$library" ] || lacks "$library (moves the clock of one program): install the package libfaketime"
}

need_busybox() {
    need busybox busybox-static "the shell of the test images"
}

# Go new enough to fetch the version that go.mod names; the module proxy serves the toolchain itself.
need_go() {
    export PATH="$PATH:/usr/local/go/bin"
    command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 21 ] && return
    lacks "go 1.21 or newer (builds tofu and Kubernetes): see https://go.dev/dl"
    return 1
}

# build_program MODULE PACKAGE OUT LDFLAGS: builds a command of tests/MODULE/go.mod to the path OUT, unless it is there.
build_program() {
    local name=${3##*/}
    [ -x "$3" ] && return
    need_go || return
    mkdir -p "${3%/*}"
    # Under a name of its own until complete, so that an interrupted build is not taken for the program.
    part "$name" env -C "tests/$1" CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w $4" -o "$3.new.$$" "$2" &&
        mv "$3.new.$$" "$3" &&
        printf '%-14s %6s  built in %s\n' "$name" "$part_took" "${3%/*}" && return
    tail -n 20 "$logs/$name.log" | sed 's/^/    /'
    lacks "$name: mend what $logs/$name.log says"
}

need_engines() {
    local opentofu=github.com/opentofu/opentofu terraform=github.com/hashicorp/terraform
    build_program tofu "$opentofu/cmd/tofu" "$cache/tofu/$TOFU_VERSION/tofu" "-X $opentofu/version.dev=no"
    command -v terraform >/dev/null ||
        build_program terraform "$terraform" "$cache/terraform/$TERRAFORM_VERSION/terraform" "-X $terraform/version.dev=no"
}

# The provider of the tests. Its folder is named after its source: a change is built anew.
need_provider() {
    local source
    source=$(sha256sum tests/provider/main.go | cut -c 1-12)
    build_program provider . "$cache/provider/$source/terraform-provider-probe_v$PROVIDER_VERSION" "-X main.version=$PROVIDER_VERSION"
}

stop_all() {
    # After Ctrl-C; background jobs of a script ignore it.
    [ -z "$ticker" ] || kill "$ticker" 2>/dev/null
    stop_clusters
    stop_docker
}

prepare() {
    mkdir -p "$cache"
    trap stop_all EXIT
    need_rust
    need_compiler
    need git git "used by the tests"
    if [ -z "$1" ]; then
        exec {docker_lock}>"$cache/docker.lock"
        flock --shared "$docker_lock"
        need_busybox
        need_faketime
        need_docker
        need_engines
        need_provider
    fi
    [ "$missing" -eq 0 ]
}

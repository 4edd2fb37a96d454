# shellcheck shell=bash
# shellcheck disable=SC2154 # from tests/prepare.sh
# The Docker engine that the tests use. Sourced by tests/prepare.sh, not run.
#
# need_docker         one answers: it is used as it is, otherwise the system's or one of ours is started
# watch_docker        replaces one of ours that hangs, in the background, and says so in $logs/engine-hung.txt
# await_replacement   waits until the one that replaces it answers
# stop_docker         ends the one that was started here, and its watch

dockerd_pid=
watch=
alive=terrapool-test/alive:1

docker_answers() {
    timeout --kill-after=5 30 docker info >/dev/null 2>&1
}

need_docker() {
    need docker docker.io "runs the containers of the tests" || return
    docker_answers && return
    command -v dockerd >/dev/null || install docker.io iptables ||
        { lacks "dockerd (runs the containers of the tests): install the package docker.io"; return; }
    command -v iptables >/dev/null || install iptables
    if [ -d /run/systemd/system ]; then
        systemctl start docker >>"$logs/install.log" 2>&1
        await_docker && return
    elif [ "$(id -u)" -eq 0 ]; then
        echo "starting dockerd"
        : >"$logs/dockerd.log"
        start_dockerd && return
    fi
    lacks "a Docker engine that answers \`docker info\`: start it, or see $logs/dockerd.log"
}

# An engine that was killed a moment ago may still hold its places: then a later try succeeds.
start_dockerd() {
    local tries
    for tries in 1 2 3 4; do
        spawn_dockerd
        await_docker && return
        sleep 2
    done
    return 1
}

spawn_dockerd() {
    local last
    # One that was killed leaves its file behind, and a new one believes it.
    last=$(cat /var/run/docker.pid 2>/dev/null)
    [ "$(cat "/proc/$last/comm" 2>/dev/null)" = dockerd ] || rm -f /var/run/docker.pid
    # A session of its own: Ctrl-C must reach the tests, which clean up with its help, before it.
    setsid dockerd >>"$logs/dockerd.log" 2>&1 </dev/null {docker_lock}>&- &
    dockerd_pid=$!
    # Its end is ours to tell.
    disown
    echo "$dockerd_pid" >"$logs/dockerd.pid"
}

# Waits until the engine answers, or ours has ended.
await_docker() {
    local tries
    for tries in {1..120}; do
        docker_answers && return
        [ -n "$dockerd_pid" ] && ! kill -0 "$dockerd_pid" 2>/dev/null && break
        sleep 0.5
    done
    dockerd_pid=
    return 1
}

# Up to 20.10, which Debian 12 has, an engine hangs for good now and then when containers end at the same time (moby/moby
# #42545): it answers, but none can be started. No test can tell that from a fault of ours.
watch_docker() {
    local status
    rm -f "$logs/engine-hung.txt"
    [ -n "$dockerd_pid" ] || return
    tar --create --directory=/bin --dereference busybox | docker import - "$alive" >/dev/null || return
    {
        exec {docker_lock}>&-
        while ! read -r -t 30 -u "$never" && kill -0 $$ 2>&-; do
            timeout --kill-after=5 120 docker run --rm --network bridge "$alive" /busybox true >/dev/null 2>&1
            status=$?
            [ "$status" -ne 124 ] && [ "$status" -ne 137 ] || replace_dockerd
        done
    } &
    watch=$!
}

replace_dockerd() {
    local pid
    pid=$(cat "$logs/dockerd.pid")
    echo "the Docker engine has started no container for two minutes: it is killed and started anew, see $logs/goroutine-stacks-*.log" |
        tee -a "$logs/engine-hung.txt"
    # Writes down what each of its threads waits for.
    kill -USR1 "$pid"
    sleep 3
    mv /var/run/docker/goroutine-stacks-*.log "$logs/" 2>/dev/null
    kill -KILL "$pid"
    start_dockerd
}

# Waits until the engine that follows one that hung answers.
await_replacement() {
    local tries
    for tries in {1..240}; do
        docker_answers && return
        sleep 0.5
    done
}

stop_docker() {
    local pid tries
    [ -z "$watch" ] || { kill "$watch" && wait "$watch"; } 2>/dev/null
    [ -n "$dockerd_pid" ] || return
    [ -z "$watch" ] || timeout 30 docker rmi --force "$alive" >/dev/null 2>&1
    watch=
    # Another test run may have found this engine and be using it.
    exec {docker_lock}>&-
    # The watch may have started a later one.
    pid=$(cat "$logs/dockerd.pid")
    if flock --exclusive --nonblock "$cache/docker.lock" true; then
        kill "$pid" 2>/dev/null
        for tries in {1..300}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    else
        echo "dockerd (process $pid) keeps running: another test run uses it"
    fi
    dockerd_pid=
}

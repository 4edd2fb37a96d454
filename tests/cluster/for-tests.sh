# shellcheck shell=bash
# shellcheck disable=SC2154 # from tests/run and tests/prepare.sh
# The Kubernetes of one test run: started for the tests that need it, and ended with the run. Sourced by tests/run.
#
# start_clusters PROGRAM ARGUMENT…   what the tests that PROGRAM lists with these arguments need; 1 if that cannot be had
# renew_clusters                     an API server as new, and no nodes, if they are ours
# stop_clusters                      ends all of it and moves its logs to $logs
#
# Each run has clusters of its own, so that runs of several working trees share no image and no definition; $kubeconfig,
# if set, is used instead. The tests are told by TERRAPOOL_TEST_APISERVER (kubeconfig of an API without nodes),
# TERRAPOOL_TEST_CLUSTER (of one with nodes) and TERRAPOOL_TEST_CLUSTER_DIR (where the latter lives, if it is ours).

clusters=

start_clusters() {
    local listed api nodes
    listed=$("$@" --list 2>/dev/null)
    api=$(grep -c '^operator_' <<<"$listed")
    nodes=$(grep -c '^e2e_' <<<"$listed")
    [ "$api" -gt 0 ] || [ "$nodes" -gt 0 ] || return 0
    if [ -n "$kubeconfig" ]; then
        use_cluster "$nodes"
        return
    fi
    missing=0
    need_kubernetes
    [ "$nodes" -eq 0 ] || need_nodes
    [ "$missing" -eq 0 ] || return
    claim_place || return
    if [ "$api" -gt 0 ]; then
        bring_up apiserver tests/cluster/control-plane start "$clusters/apiserver" || return
        export TERRAPOOL_TEST_APISERVER=$clusters/apiserver/kubeconfig
    fi
    if [ "$nodes" -gt 0 ]; then
        bring_up cluster tests/cluster/cluster start "$clusters/cluster" || return
        bring_up images tests/cluster/cluster terrapool "$terrapool" "$clusters/cluster" || return
        export TERRAPOOL_TEST_CLUSTER=$clusters/cluster/kubeconfig TERRAPOOL_TEST_CLUSTER_DIR=$clusters/cluster
    fi
}

# bring_up NAME COMMAND…: a part that has to work.
bring_up() {
    if part "$@"; then
        printf '%-14s %6s  %s\n' "$1" "$part_took" "$(tail -n 1 "$logs/$1.log")"
        return
    fi
    printf '%-14s %6s  FAILED, from %s:\n' "$1" "$part_took" "$logs/$1.log"
    tail -n 20 "$logs/$1.log" | sed 's/^/    /'
    return 1
}

# use_cluster NODES: the cluster that $kubeconfig names, for both kinds of test.
use_cluster() {
    export TERRAPOOL_TEST_APISERVER=$kubeconfig TERRAPOOL_TEST_CLUSTER=$kubeconfig
    command -v kubectl >/dev/null || build_kubernetes kubectl
    [ "$missing" -eq 0 ] || return
    [ "$1" -gt 0 ] || return 0
    if [ -d "${kubeconfig%/*}/nodes" ]; then
        export TERRAPOOL_TEST_CLUSTER_DIR=${kubeconfig%/*}
        bring_up images tests/cluster/cluster terrapool "$terrapool" "$TERRAPOOL_TEST_CLUSTER_DIR"
    else
        echo "its nodes must have the images terrapool:test (from $terrapool) and terraform:test: see tests/cluster/images and deploy/kind"
    fi
}

# A directory that is locked as long as this run lives. What killed runs have left is ended first.
claim_place() {
    local lock stale
    exec {lock}>"$cache/clusters.lock"
    flock "$lock"
    for stale in "$cache"/run.*/; do
        [ -e "${stale}lock" ] && flock --exclusive --nonblock "${stale}lock" true && end_clusters "${stale%/}"
    done
    clusters=$(mktemp -d "$cache/run.XXXXXX") && exec {clusters_lock}>"$clusters/lock" && flock "$clusters_lock"
    exec {lock}>&-
    [ -n "$clusters" ]
}

# end_cluster PLACE KIND
end_cluster() {
    [ -d "$1/$2" ] || return 0
    tests/cluster/cluster stop "$1/$2"
    rm -rf "${logs:?}/$2"
    [ ! -d "$1/$2/logs" ] || cp -r "$1/$2/logs" "$logs/$2"
    rm -rf "${1:?}/$2"
}

# end_clusters PLACE
end_clusters() {
    local kind
    for kind in apiserver faults cluster; do
        end_cluster "$1" "$kind"
    done
    rm -rf "$1"
}

# For the fault suite: no nodes beside it, and an API server that has not grown by what other tests left there.
renew_clusters() {
    [ -n "$clusters" ] || return 0
    end_cluster "$clusters" cluster
    end_cluster "$clusters" apiserver
    bring_up apiserver tests/cluster/control-plane start "$clusters/faults" || return
    export TERRAPOOL_TEST_APISERVER=$clusters/faults/kubeconfig
}

stop_clusters() {
    [ -n "$clusters" ] || return
    end_clusters "$clusters"
    exec {clusters_lock}>&-
    clusters=
}

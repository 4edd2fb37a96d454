# shellcheck shell=bash
# shellcheck disable=SC2154 # $dir is the script's
# The addresses of a cluster with nodes. Sourced, not run.
#
# Each cluster has a number N (0 to 63), held by the network device tpN on the host:
#   10.77.N.0/24        the host (.1) and the nodes (.11, .12, …)
#   10.96.N.0/24        Services; .1 is the API, .10 is DNS
#   10.(128+N).K.0/24   Pods of node K
# The host has routes to all three, so that tests reach Pods and Services as if they were Pods themselves.

gateway_of() { echo "10.77.$1.1"; }
services_of() { echo "10.96.$1.0/24"; }
service_of() { echo "10.96.$1.$2"; }
node_of() { echo "10.77.$1.$((10 + $2))"; }
all_pods_of() { echo "10.$((128 + $1)).0.0/16"; }
pods_of() { echo "10.$((128 + $1)).$2.0/24"; }

# claim_network: takes the first number that is free, as $net and in run/net. Making the device is what takes it.
claim_network() {
    for net in {0..63}; do
        ip link add "tp$net" type veth peer name "tp$net.node" 2>/dev/null || continue
        echo "$net" >"$dir/run/net"
        ip addr add "$(gateway_of "$net")/24" dev "tp$net" && ip link set "tp$net" up && return
        die "the network device tp$net cannot be set up"
    done
    die "no network device can be made: a cluster with nodes needs root"
}

release_network() {
    local net
    net=$(cat "$dir/run/net" 2>/dev/null) || return 0
    ip link delete "tp$net" 2>/dev/null
    rm -f "$dir/run/net"
}

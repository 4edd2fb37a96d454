# shellcheck shell=bash
# shellcheck disable=SC2154 # from tests/prepare.sh and versions.sh
# What the tests on Kubernetes need: checked, built, installed. Sourced by tests/prepare.sh, not run.
#
# need_kubernetes   the API's programs, built from Go modules, and etcd
# need_nodes        what makes nodes of them: containerd, CNI plugins, CoreDNS

build_kubernetes() {
    local name version=k8s.io/component-base/version
    for name; do
        build_program cluster "k8s.io/kubernetes/cmd/$name" "$kubernetes/$name" \
            "-X $version.gitVersion=v$KUBERNETES_VERSION -X $version.gitMajor=1 -X $version.gitMinor=34 -X $version.gitTreeState=clean"
    done
}

need_kubernetes() {
    build_kubernetes kube-apiserver kubectl
    need etcd etcd-server "keeps what the tests' Kubernetes is given"
    need openssl openssl "makes certificates"
    need python3 python3-minimal "finds free ports and writes images"
}

need_nodes() {
    [ "$(id -u)" -eq 0 ] || { lacks "root, which nodes need: name another cluster with --kubeconfig FILE"; return; }
    build_kubernetes kube-controller-manager kube-scheduler kubelet kube-proxy
    build_program cluster/coredns github.com/coredns/coredns "$cache/coredns/$COREDNS_VERSION/coredns" ""
    need containerd containerd "runs the nodes' containers"
    need runc runc "runs the nodes' containers"
    need iptables iptables "makes Services reachable"
    need conntrack conntrack "makes Services reachable"
    need ip iproute2 "connects nodes"
    need nsenter util-linux "connects nodes"
    need strip binutils "makes images small"
    [ -x /usr/lib/cni/ptp ] || install containernetworking-plugins || lacks "/usr/lib/cni/ptp (Pods' network): install the package containernetworking-plugins"
    need_compiler
    need_busybox
}

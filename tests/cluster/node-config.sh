# shellcheck shell=bash
# shellcheck disable=SC2154 # $dir, $net and $api are the script's
# The configuration files of a node's programs, written to the node's directory. Sourced, not run.
#
# write_configs NODE-DIR NAME NUMBER: needs $dir, $net, $api (an address that nodes reach) and the functions of lib.sh, network.sh and certificates.sh.

containerd_config() {
    cat <<TOML
version = 2
root = "$1/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "$1/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:test"
  # Without CAP_SYS_RESOURCE no sandbox could lower its score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$1/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
TOML
}

# A routed device for each Pod: a bridge would need what Docker's firewall rules make of bridges.
cni_config() {
    cat <<JSON
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": true,
      "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{"subnet": "$1"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
}

# Containers that tests kill start again at once, not after minutes.
kubelet_config() {
    cat <<JSON
{
  "apiVersion": "kubelet.config.k8s.io/v1beta1",
  "kind": "KubeletConfiguration",
  "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": "$dir/pki/ca.crt"}},
  "authorization": {"mode": "Webhook"},
  "tlsCertFile": "$dir/pki/$2.crt",
  "tlsPrivateKeyFile": "$dir/pki/$2.key",
  "containerRuntimeEndpoint": "unix://$1/containerd.sock",
  "cgroupDriver": "cgroupfs",
  "cgroupRoot": "/$(cat "$1/cgroup")",
  "failCgroupV1": false,
  "failSwapOn": false,
  "clusterDomain": "cluster.local",
  "clusterDNS": ["$(service_of "$net" 10)"],
  "resolvConf": "$1/resolv.conf",
  "maxPods": 200,
  "kubeAPIQPS": 500,
  "kubeAPIBurst": 1000,
  "registryPullQPS": 0,
  "serializeImagePulls": false,
  "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
  "imageGCHighThresholdPercent": 100,
  "imageGCLowThresholdPercent": 99,
  "featureGates": {"KubeletCrashLoopBackOffMax": true},
  "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
  "nodeStatusUpdateFrequency": "4s"
}
JSON
}

proxy_config() {
    cat <<JSON
{
  "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
  "kind": "KubeProxyConfiguration",
  "clientConnection": {"kubeconfig": "$dir/proxy.kubeconfig"},
  "hostnameOverride": "$2",
  "mode": "iptables",
  "iptables": {"minSyncPeriod": "100ms"},
  "clusterCIDR": "$(all_pods_of "$net")",
  "conntrack": {"maxPerCore": 0, "min": 0}
}
JSON
}

write_configs() {
    local node=$1 name=$2 number=$3
    mkdir -p "$node/cni" "$node/bin"
    node_of "$net" "$number" >"$node/address"
    echo "terrapool-test-$net-$number" >"$node/cgroup"
    # No name server beside the cluster's own.
    : >"$node/resolv.conf"
    ln -sfn "$(program kubelet)" "$node/bin/kubelet"
    ln -sfn "$(program kube-proxy)" "$node/bin/kube-proxy"
    containerd_config "$node" >"$node/containerd.toml"
    cni_config "$(pods_of "$net" "$number")" >"$node/cni/10-pods.conflist"
    make_certificate "$name" "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$(cat "$node/address")"
    make_kubeconfig "$node/kubelet.kubeconfig" "$api" "$name"
    kubelet_config "$node" "$name" >"$node/kubelet.json"
    proxy_config "$node" "$name" >"$node/kube-proxy.json"
}

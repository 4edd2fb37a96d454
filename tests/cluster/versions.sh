# shellcheck shell=bash
# shellcheck disable=SC2034 # used where this is sourced
# What is built for the tests' cluster, and where it is kept. Sourced, not run.
#
# 1.34 is the newest that supports Debian 12's containerd 1.6 and the first version of cgroups. go.mod says the same.

KUBERNETES_VERSION=1.34.4
COREDNS_VERSION=1.15.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/terrapool-test
kubernetes=$cache/kubernetes/$KUBERNETES_VERSION

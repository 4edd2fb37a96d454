//go:build tools

// Package coredns holds the import that keeps CoreDNS in go.mod.
package coredns

import _ "github.com/coredns/coredns"

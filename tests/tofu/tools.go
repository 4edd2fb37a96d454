//go:build tools

// Package tofu holds the imports that keep OpenTofu's command in go.mod.
package tofu

import _ "github.com/opentofu/opentofu/cmd/tofu"

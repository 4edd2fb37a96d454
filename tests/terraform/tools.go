//go:build tools

// Package terraform holds the imports that keep Terraform's command in go.mod.
package terraform

import _ "github.com/hashicorp/terraform"

# A small platform that exists on paper only: terraform_data keeps values in the state and
# needs no provider to be downloaded, no network and no shell. Change a value and apply again.

terraform {
  # Host and organization come from the environment: TF_CLOUD_HOSTNAME, TF_CLOUD_ORGANIZATION
  cloud {
    workspaces {
      name = "demo"
    }
  }
}

variable "region" {
  description = "Where the platform stands."
  type        = string
  default     = "berlin"
}

variable "services" {
  description = "What runs there: replicas of each service."
  type        = map(number)
  default = {
    frontend = 2
    orders   = 3
    payments = 2
  }
}

resource "terraform_data" "network" {
  input = {
    name = "${var.region}-private"
    cidr = "10.20.0.0/16"
  }
}

resource "terraform_data" "subnet" {
  for_each = toset(["database", "services"])

  input = {
    name = "${terraform_data.network.output.name}-${each.key}"
    cidr = cidrsubnet(terraform_data.network.output.cidr, 8, each.key == "database" ? 1 : 2)
  }
}

resource "terraform_data" "database" {
  input = {
    name    = "${var.region}-postgres"
    address = cidrhost(terraform_data.subnet["database"].output.cidr, 10)
  }
}

resource "terraform_data" "service" {
  for_each = var.services

  # A new network means new services.
  triggers_replace = [terraform_data.network.output.cidr]

  input = {
    name     = each.key
    replicas = each.value
    address  = cidrhost(terraform_data.subnet["services"].output.cidr, 10 + index(keys(var.services), each.key))
    database = terraform_data.database.output.address
  }
}

output "network" {
  description = "The network and its parts."
  value = {
    name    = terraform_data.network.output.name
    cidr    = terraform_data.network.output.cidr
    subnets = { for name, subnet in terraform_data.subnet : name => subnet.output.cidr }
  }
}

output "services" {
  description = "Address of each service."
  value       = { for name, service in terraform_data.service : name => service.output.address }
}

output "summary" {
  value = "${length(var.services)} services, ${sum(values(var.services))} replicas in ${var.region}"
}

//! The one integration test binary. One module a line, sorted; `forgotten.rs` finds files that are not listed.

#![expect(unreachable_pub, reason = "a program of tests exports nothing; `pub` says that its other files use it")]
#![expect(clippy::unwrap_used, reason = "what fails in a test's set-up fails the test, with the line where")]

mod agent_cordon;
mod agent_crash;
mod agent_ends;
mod agent_executor_docker;
mod agent_executor_runs;
mod agent_executor_slugs;
mod agent_flow;
mod agent_sidecar;
mod agent_sidecar_containers;
mod agent_sidecar_ends;
mod agent_sign_on;
mod api_iacp_changes;
mod api_iacp_demand;
mod api_iacp_pools;
mod api_iacp_rotation;
mod api_iacp_tokens;
mod api_tfe_accounts;
mod api_tfe_shapes;
mod api_tfe_states;
mod api_tfe_uploads;
mod api_tfe_variables;
mod architecture;
mod cli_run;
mod cli_state;
mod crd_rules;
mod crds;
mod e2e_cluster;
mod examples;
mod flow_bad_input_disk;
mod flow_bad_input_runs;
mod flow_cli_init;
mod flow_cli_interrupt;
mod flow_cli_run;
mod flow_faults_lost;
mod flow_faults_restart;
mod flow_two_agents;
mod flow_up_manifests;
mod forgotten;
mod metrics;
mod operator_changes;
mod operator_definitions;
mod operator_deploy;
mod operator_faults;
mod operator_leader;
mod operator_peers;
mod operator_workloads;
mod queue_leases;
mod support;
mod sync_link;
mod sync_pool;
mod toolchain;
mod ui_pages;

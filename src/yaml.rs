//! The only place that names the YAML crate.

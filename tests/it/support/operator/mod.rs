//! The operator against a real API server and the real control plane, each behind a layer that faults come from.
//!
//! A [`plan::Schedule`] is a [`scenario`] and what goes wrong in it; its id says all of it. [`runner`] plays it in a
//! namespace of its own: [`stage`] starts operators ([`instance`]) whose client is a [`layer`] and whose control plane
//! is a [`proxy`], both counted by one [`recorder`]; [`room`] and [`agent`] stand in for kubelets and agents, since no
//! Pods run; [`mirror`] follows what happens. At the end [`observe`] takes down what is there and [`oracles`] judge it.

pub mod agent;
pub mod changes;
pub mod cluster;
pub mod goals;
pub mod instance;
pub mod layer;
pub mod mirror;
pub mod observe;
pub mod oracles;
pub mod plan;
pub mod proxy;
pub mod recorder;
pub mod room;
pub mod runner;
pub mod scenario;
pub mod stage;
pub mod watch;
pub mod webhook;

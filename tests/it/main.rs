//! The one integration test binary.

mod queue_leases;
mod support;

//! Looks whether an agent would work on this host, before it is started: [`look`] gathers facts, [`judge`] says what
//! they mean. Changes nothing, here or at the control plane.

mod facts;
mod judge;
mod probe;

pub use facts::{Answer, Cgroup, Data, Facts, NoConnection, Proxy, TlsTrouble};
pub use judge::{Finding, Level, judge};
pub use probe::{Subject, look};

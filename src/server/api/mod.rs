//! The HTTP surfaces over one store and one set of rules. Handlers are short, without SQL and rules.

pub mod agent;
pub mod discovery;
pub mod document;
pub mod iacp;
pub mod tfe;

//! One file for each measure.

pub mod age;
pub mod claim;
pub mod first_line;
pub mod host;
pub mod ingest;
pub mod redact;
pub mod start;
pub mod wall;

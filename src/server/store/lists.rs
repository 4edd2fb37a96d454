//! Filtered, sorted, paged lists.

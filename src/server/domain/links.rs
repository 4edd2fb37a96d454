//! Which workspace runs on which pool by its own link.

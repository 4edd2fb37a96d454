//! (see module files)

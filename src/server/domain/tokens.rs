//! Access tokens: pools' and users'.

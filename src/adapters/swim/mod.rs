//! swim

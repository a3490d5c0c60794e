//! Compiles `domain` and `ports` alone.

fn main() {}

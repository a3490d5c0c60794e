//! Integration tests, in one binary: every extra one would link everything again.

fn main() {}

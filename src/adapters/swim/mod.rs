//! Failure detection by SWIM (Das et al., "SWIM: scalable weakly-consistent infection-style process
//! group membership protocol", 2002), through the `foca` crate.
//!
//! `foca` holds the protocol without any I/O; `detector` drives it with timers, packets and
//! randomness from outside and with the `orders` of the node; `identity` is what it knows a member by.

mod detector;
mod identity;
mod orders;

pub use detector::{Swim, SwimOptions};

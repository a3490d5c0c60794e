//! Whole nodes in one process, over the in-memory twins and paused time: how members find each
//! other and become equal, scenario by scenario.

mod clocks;
mod convergence;
mod fencing;
mod forgetting;
mod forgotten;
mod joining;
mod joining_under_load;
mod losses;
mod nodes;
mod traffic;

//! `lally bench`: puts nodes under load and says how they answer.
//!
//! `run` is the command. `workload` draws what is asked, `connection` asks it, `load` keeps all
//! connections at it and on time, `tally` counts; `report` and `plot` tell.

mod connection;
mod load;
mod plot;
mod report;
mod run;
mod tally;
mod workload;

pub(super) use run::bench;

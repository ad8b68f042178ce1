//! The masters' state through its public door, and the detector that proposes failovers.

mod cases;
mod choices;
mod doubts;
mod history;
mod lacks;
mod limits;
mod losses;
mod moves;
mod properties;
mod sizes;
mod tables;
mod written;

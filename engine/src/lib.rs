//! Every decision of sbk, pure.
//!
//! Nothing in this crate does I/O, reads a clock, draws a random number or starts a thread. Each
//! state machine is a value with a `step`: the same state and the same input give the same
//! outputs, always. Drivers (the datanode's volume task, the master's leader loop, a simulator)
//! feed facts in and execute what comes out, so what a test proves is what runs.
//!
//! * [`types`]: identities and quantities.
//! * [`recovery`]: how the primary of a volume brings its other replicas back.
//! * [`replication`]: one replica's log: roles, fencing, commit, reconciliation, leases.
//! * [`forward`]: how a frontend keeps its place across failovers.
//! * [`recording`]: what a replica was told and did, kept so that the run can be taken again.
//! * [`authority`]: the masters' replicated state, placement, failure detection, failover.
//! * [`bugs`]: rules that tests can take out, to see that it is noticed.
#![deny(clippy::wildcard_enum_match_arm)]

pub mod authority;
pub mod bugs;
pub mod forward;
pub mod recording;
pub mod recovery;
pub mod replication;
pub mod types;

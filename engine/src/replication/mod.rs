//! One replica's part in its volume's log, as primary or as follower.

pub mod io;
pub mod log;
pub mod message;
pub mod trace;

//! A load that proves something: every block that is written carries who wrote it, where and
//! when, every acknowledgement is recorded, and what is read is checked against the record.
//!
//! * [`nbd`]: a small NBD client, many requests in flight.
//! * [`stamp`]: what is in a block, so that a block read back tells which write it is.
//! * [`history`]: the record per block, and the check that it is linearizable.
//! * [`load`]: writers and readers over them, on one connection.
//! * [`roaming`]: the same over many connections, which may end.

pub mod history;
pub mod load;
pub mod nbd;
pub mod roaming;
pub mod stamp;

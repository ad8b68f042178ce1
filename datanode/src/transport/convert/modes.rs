//! The modes of a volume. One that is not said is refused: to take it for the default would let a
//! replica count acknowledgements that its volume does not mean.

use sbk_engine::types::{Durability, WriteAck};
use sbk_proto::v1;

use super::{Decoded, bad};

pub(super) fn durability_out(mode: Durability) -> v1::Durability {
    match mode {
        Durability::SyncAll => v1::Durability::SyncAll,
        Durability::SyncQuorum => v1::Durability::SyncQuorum,
        Durability::BestEffort => v1::Durability::BestEffort,
    }
}

pub(super) fn durability_in(raw: i32) -> Decoded<Durability> {
    match v1::Durability::try_from(raw) {
        Ok(v1::Durability::SyncAll) => Ok(Durability::SyncAll),
        Ok(v1::Durability::SyncQuorum) => Ok(Durability::SyncQuorum),
        Ok(v1::Durability::BestEffort) => Ok(Durability::BestEffort),
        Ok(v1::Durability::Unspecified) | Err(_) => bad(format!("durability mode {raw}")),
    }
}

pub(super) fn write_ack_out(mode: WriteAck) -> v1::WriteAck {
    match mode {
        WriteAck::Durable => v1::WriteAck::Durable,
        WriteAck::Written => v1::WriteAck::Written,
    }
}

pub(super) fn write_ack_in(raw: i32) -> Decoded<WriteAck> {
    match v1::WriteAck::try_from(raw) {
        Ok(v1::WriteAck::Durable) => Ok(WriteAck::Durable),
        Ok(v1::WriteAck::Written) => Ok(WriteAck::Written),
        Ok(v1::WriteAck::Unspecified) | Err(_) => bad(format!("write acknowledgement {raw}")),
    }
}

//! The volumes of the drill: one for each kind that promises something of its own.

use sbk_proto::v1::{CreateVolumeRequest, Durability, WriteAck};
use serde::Serialize;

use crate::commands::volume::create_request;

/// What a volume of the drill is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Its name.
    pub(super) name: &'static str,
    /// Copies.
    pub(super) replicas: u32,
    /// Fewest in-sync replicas with which it serves; `None` for the default.
    pub(super) min_in_sync: Option<u32>,
    /// When a write is committed.
    pub(super) durability: Durability,
    /// What "has it" means.
    pub(super) write_ack: WriteAck,
    /// Whether its replicas lie encrypted.
    pub(super) encrypted: bool,
}

/// A line for each kind of volume whose contract the drill is to hold the cluster to.
#[rustfmt::skip]
pub(super) const KINDS: &[Kind] = &[
    Kind { name: "three", replicas: 3, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "three-min1", replicas: 3, min_in_sync: Some(1), durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "three-min3", replicas: 3, min_in_sync: Some(3), durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "two", replicas: 2, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "two-min2", replicas: 2, min_in_sync: Some(2), durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "three-quorum", replicas: 3, min_in_sync: None, durability: Durability::SyncQuorum, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "three-written", replicas: 3, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Written, encrypted: false },
    Kind { name: "three-best-effort", replicas: 3, min_in_sync: None, durability: Durability::BestEffort, write_ack: WriteAck::Durable, encrypted: false },
    Kind { name: "three-encrypted", replicas: 3, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: true },
    Kind { name: "two-encrypted", replicas: 2, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: true },
    Kind { name: "one", replicas: 1, min_in_sync: None, durability: Durability::SyncAll, write_ack: WriteAck::Durable, encrypted: false },
];

impl Kind {
    /// Whether a failover may take acknowledged writes, if it counts that.
    pub(super) fn may_lose(&self) -> bool {
        self.durability == Durability::BestEffort
    }

    /// The order to make it.
    pub(super) fn request(&self, size: u64) -> CreateVolumeRequest {
        let mut request = create_request(self.name, size, self.replicas);
        request.set_durability(self.durability);
        request.set_write_ack(self.write_ack);
        request.encrypted = self.encrypted;
        request.min_in_sync = self.min_in_sync.unwrap_or(0);
        request
    }

    /// For the report.
    pub(super) fn told(&self) -> Told {
        Told {
            name: self.name,
            replicas: self.replicas,
            min_in_sync: self.min_in_sync,
            durability: word(self.durability.as_str_name(), "DURABILITY_"),
            write_ack: word(self.write_ack.as_str_name(), "WRITE_ACK_"),
            encrypted: self.encrypted,
        }
    }
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

/// A kind, in a report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Told {
    /// Its name.
    pub(super) name: &'static str,
    /// Copies.
    pub(super) replicas: u32,
    /// Fewest in-sync replicas; `null` for the default.
    pub(super) min_in_sync: Option<u32>,
    /// When a write is committed.
    pub(super) durability: String,
    /// What "has it" means.
    pub(super) write_ack: String,
    /// Whether its replicas lie encrypted.
    pub(super) encrypted: bool,
}

#[cfg(test)]
mod tests {
    use sbk_engine::authority::placement::check_request;
    use sbk_engine::authority::{self, VolumeRequest};

    use super::*;

    #[test]
    fn every_kind_is_one_that_the_masters_take_and_has_a_name_of_its_own() {
        let mut names: Vec<&str> = KINDS.iter().map(|k| k.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            let request = VolumeRequest {
                name: kind.name.into(),
                size_bytes: 64 << 20,
                replicas: kind.replicas,
                durability: match kind.durability {
                    Durability::SyncQuorum => authority::Durability::SyncQuorum,
                    Durability::BestEffort => authority::Durability::BestEffort,
                    Durability::SyncAll | Durability::Unspecified => authority::Durability::SyncAll,
                },
                write_ack: match kind.write_ack {
                    WriteAck::Written => authority::WriteAck::Written,
                    WriteAck::Durable | WriteAck::Unspecified => authority::WriteAck::Durable,
                },
                min_in_sync: kind.min_in_sync,
                zone_spread: false,
                encrypted: kind.encrypted,
                limits: sbk_engine::authority::Limits::default(),
            };
            check_request(&request).expect(kind.name);
        }
    }

    #[test]
    fn a_kind_is_told_in_the_words_of_the_command_line() {
        let told = KINDS[0].told();
        assert_eq!((told.durability.as_str(), told.write_ack.as_str()), ("sync_all", "durable"));
    }
}

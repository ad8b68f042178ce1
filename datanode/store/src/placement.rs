//! Large writes: their payload is written once, to homes of its blocks that are not current, and the log
//! has a reference to it.
//!
//! The payload is synced before the reference is written. A checkpoint then only has the stamps say that
//! these homes are current from now on.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::log::EntryKind;
use sbk_engine::types::Lsn;
use sbk_wal::{LogError, Unfit};

use super::codec::Reference;
use super::core::Store;
use super::entries::{Entry, Fate};
use super::error::{ReadError, StoreError};
use super::homes::{Home, Homes};
use super::image::{Image, bytes};
use super::read;
use super::references::{References, overlap};

/// A payload, and where it goes.
#[derive(Debug)]
struct Payload {
    lsn: Lsn,
    first: u64,
    data: Bytes,
    stamps: Box<[u64]>,
}

/// Payloads on their way.
#[derive(Debug)]
pub(super) struct Placement {
    payloads: Vec<Payload>,
    image: Arc<Image>,
}

/// Where they are.
#[derive(Debug)]
pub(super) struct Placed(Vec<(Lsn, Arc<Homes>)>);

impl Placement {
    /// Writes them all, and syncs them with one sync of each file that has some, also where the log itself is
    /// only written: what was written to a hole may need that to outlive the process. Blocks.
    pub(super) fn run(self) -> Result<Placed, StoreError> {
        let mut homes = Vec::with_capacity(self.payloads.len());
        let mut wrote = Vec::new();
        for payload in &self.payloads {
            let Payload { lsn, first, data, stamps } = payload;
            let placed = self.image.place(*first, data, stamps)?;
            let some = |home| (0..stamps.len()).any(|at| stamps[at] != 0 && placed.get(at) == home);
            wrote.extend(Home::BOTH.into_iter().filter(|home| some(*home)));
            homes.push((*lsn, Arc::new(placed)));
        }
        if !on(Bug::PayloadNotSynced) {
            for home in Home::BOTH.into_iter().filter(|home| wrote.contains(home)) {
                self.image.sync_home(home)?;
            }
        }
        Ok(Placed(homes))
    }
}

/// The references that an opening finds in the log.
#[derive(Debug)]
pub(super) struct Referred {
    pub(super) image: Arc<Image>,
    /// Everything up to here is in the image, and not looked at.
    pub(super) as_of: Lsn,
    pub(super) all: Vec<(Range<u64>, read::Placed)>,
}

impl Referred {
    /// Takes a record that refers to a payload, if that is there.
    pub(super) fn take(&mut self, reference: Reference) -> Result<Entry, Unfit> {
        let Reference { header, crc, stamps, homes } = reference;
        let Some(range) = header.kind.range() else {
            return Err(Unfit::Damaged(format!("entry {} has no blocks", header.lsn)));
        };
        let range = range.lba.0..range.end();
        let homes = Arc::new(homes);
        let placed = read::Placed {
            lsn: header.lsn,
            homes: Arc::clone(&homes),
            skip: 0,
            stamps: stamps.clone(),
            image: Arc::clone(&self.image),
            done: Arc::default(),
        };
        if header.lsn > self.as_of {
            let mut data = vec![0; bytes(range.end - range.start) as usize];
            match self.image.read_placed(&range, &placed, &mut data) {
                Ok(bad) => {
                    if let Some(bad) = bad.first() {
                        let (lsn, bad) = (header.lsn, bad.rotten());
                        return Err(Unfit::Torn(format!(
                            "record {lsn} refers to its payload: {bad}"
                        )));
                    }
                }
                Err(ReadError::Io { path, source }) => {
                    return Err(Unfit::Failed(LogError::Io { doing: "read", path, source }));
                }
                Err(other) => return Err(Unfit::Damaged(other.to_string())),
            }
        }
        self.all.push((range, placed));
        Ok(Entry::referring(header, crc, stamps, homes))
    }

    /// Those of a log that ends at `end`.
    pub(super) fn references(self, end: Lsn) -> References {
        let mut references = References::default();
        let (done, held): (Vec<_>, Vec<_>) =
            self.all.into_iter().partition(|(_, placed)| placed.lsn <= self.as_of);
        done.into_iter().for_each(|(range, _)| references.loosen(range));
        for (range, placed) in held.into_iter().filter(|(_, placed)| placed.lsn <= end) {
            references.found(placed.lsn, &range, placed.homes);
        }
        references
    }
}

impl Store {
    /// Decides which of the entries `from..=last`, none of them in the log yet, go into it by reference, and
    /// has their payloads placed.
    ///
    /// Not those of blocks that a checkpoint is at or that an entry refers to already; nor while a rebuild is
    /// under way, which writes to the image beside the log; nor while the disk is short of room, for they need
    /// new space; nor where they are so little together that their sync costs more than to write them twice.
    pub(super) fn plan_placement(&mut self, from: Lsn, last: Lsn) -> Option<Placement> {
        let mut found: Vec<(Lsn, Range<u64>)> = Vec::new();
        let mut lsn = from;
        while lsn <= last {
            let entry = self.entries.get_mut(lsn).expect("it is not durable yet");
            let large = entry.header.kind.payload_len() >= self.options.large_write_bytes;
            if let (Fate::Open, EntryKind::Write { lba, blocks }) = (&entry.fate, entry.header.kind)
                && large
            {
                let range = lba.0..lba.0 + u64::from(blocks);
                entry.fate = Fate::Logged;
                if self.written.is_none()
                    && (!self.short || on(Bug::PlaceOnShortDisk))
                    && !self.rewriting.touches(&range)
                    && self.references.may_place(&range)
                    && !found.iter().any(|(_, other)| overlap(other, &range))
                {
                    found.push((lsn, range));
                }
            }
            lsn = lsn.next();
        }
        let sum: u64 = found.iter().map(|(_, range)| bytes(range.end - range.start)).sum();
        if found.is_empty() || sum < self.options.large_batch_bytes {
            return None;
        }
        let mut payloads = Vec::with_capacity(found.len());
        for (lsn, range) in found {
            let entry = self.entries.get_mut(lsn).expect("it is not durable yet");
            entry.fate = Fate::Placing;
            let data = entry.payload.clone().expect("it is not durable yet");
            let (first, stamps) = (range.start, entry.stamps.clone());
            payloads.push(Payload { lsn, first, data, stamps });
            self.references.begin(lsn, &range);
        }
        Some(Placement { payloads, image: Arc::clone(&self.image) })
    }

    /// Their payloads are where they are to be.
    pub(super) fn placement_done(&mut self, placed: Placed) {
        for (lsn, homes) in placed.0 {
            let entry = self.entries.get_mut(lsn).expect("it is not in the log yet");
            entry.fate = Fate::Placed(Arc::clone(&homes));
            self.references.placed(lsn, homes);
        }
    }
}

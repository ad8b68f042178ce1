//! Reading the map back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use sbk_wal::{RawFile, write_all};

use crate::alloc::Chunks;
use crate::change::Change;
use crate::error::DeviceError;
use crate::journal::{self, Head, Journal, RECORD, SNAPSHOT, Slot};
use crate::layout::{COPIES, Header, PAGE};
use crate::map::Map;

/// What was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) names: BTreeMap<String, Option<u32>>,
    pub(crate) files: BTreeMap<u32, Map>,
    pub(crate) chunks: Chunks,
    pub(crate) journal: Journal,
}

/// A record as it was found.
type Found = (Head, Vec<u8>);

/// The one being read.
struct Loader<'a> {
    bottom: &'a dyn RawFile,
    header: &'a Header,
    path: &'a Path,
    names: BTreeMap<String, Option<u32>>,
    files: BTreeMap<u32, Map>,
}

/// Reads the map of the device that `header` describes. All that it was read from is written again, in both copies and as
/// it was, and synced: the page cache may show what the disk lost.
pub(crate) fn load(
    bottom: &Arc<dyn RawFile>,
    header: &Header,
    path: &Path,
) -> Result<Loaded, DeviceError> {
    let (names, files) = (BTreeMap::new(), BTreeMap::new());
    let mut loader = Loader { bottom: &**bottom, header, path, names, files };
    let (generation, chain) = loader.snapshot()?;
    let (sequence, chain, at) = loader.records(generation, chain)?;
    bottom.sync().map_err(loader.io("sync"))?;
    let chunks = loader.check()?;
    let journal = Journal {
        bottom: Arc::clone(bottom),
        device: header.device,
        layout: header.layout,
        generation,
        sequence,
        chain,
        at,
    };
    let Loader { names, files, .. } = loader;
    Ok(Loaded { names, files, chunks, journal })
}

impl Loader<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(io::Error) -> DeviceError + use<> {
        let path = self.path.to_owned();
        move |source| DeviceError::Io { doing, path: path.clone(), source }
    }

    fn damaged(&self, what: String) -> DeviceError {
        DeviceError::Damaged { path: self.path.to_owned(), what }
    }

    /// A record that is whole in one of these places and `fits`. If one of the places can't be read (EIO), the
    /// other one says whether there may be a record: not if it holds an older one, or zeros.
    fn find(
        &self,
        magic: &[u8; 8],
        places: [u64; 2],
        room: u64,
        fits: impl Fn(&Head) -> bool,
    ) -> Result<Option<Found>, DeviceError> {
        let mut unread = None;
        let mut found = None;
        let mut settled = false;
        for at in places {
            match journal::read(self.bottom, &self.header.device, magic, at, at + room) {
                Ok(Slot::Whole(head, body)) if fits(&head) => found = found.or(Some((head, body))),
                Ok(Slot::Whole(..) | Slot::Unused) => settled = true,
                Ok(Slot::Torn) => {}
                Err(error) => unread = Some(error),
            }
        }
        match (found, unread) {
            (None, Some(error)) if !settled => Err(self.io("read")(error)),
            (found, _) => Ok(found),
        }
    }

    fn write_again(
        &self,
        magic: &[u8; 8],
        places: [u64; 2],
        (head, body): &Found,
    ) -> Result<u64, DeviceError> {
        let (bytes, _) = journal::seal(&self.header.device, magic, head, body);
        for at in places {
            write_all(self.bottom, &[&bytes], at).map_err(self.io("write"))?;
        }
        Ok(bytes.len() as u64)
    }

    /// The newest snapshot: its generation, and the chain that begins with it.
    fn snapshot(&mut self) -> Result<(u64, u32), DeviceError> {
        let layout = self.header.layout;
        let slots: [[u64; 2]; 2] =
            [0, 1].map(|slot| COPIES.map(|copy| layout.snapshot(copy, slot)));
        let mut best: Option<([u64; 2], Found)> = None;
        for (slot, places) in slots.into_iter().enumerate() {
            let ours = |head: &Head| head.generation % 2 == slot as u64 && head.sequence == 0;
            let Some(found) = self.find(&SNAPSHOT, places, layout.slot, ours)? else { continue };
            if best.as_ref().is_none_or(|(_, best)| found.0.generation > best.0.generation) {
                best = Some((places, found));
            }
        }
        let Some((places, found)) = best else { return Ok((0, 0)) };
        self.write_again(&SNAPSHOT, places, &found)?;
        self.apply(&found.1, places[0])?;
        Ok((found.0.generation, found.0.crc))
    }

    /// The journal's records behind it: the next one's sequence, chain and place.
    fn records(&mut self, generation: u64, chain: u32) -> Result<(u64, u32, u64), DeviceError> {
        let layout = self.header.layout;
        let places = |at: u64| COPIES.map(|copy| layout.journal_at(copy) + at);
        let (mut sequence, mut chain, mut at) = (1, chain, 0);
        while at < layout.journal {
            let next = |head: &Head| {
                (head.generation, head.sequence, head.chain) == (generation, sequence, chain)
            };
            let Some(found) = self.find(&RECORD, places(at), layout.journal - at, next)? else {
                break;
            };
            let bytes = self.write_again(&RECORD, places(at), &found)?;
            self.apply(&found.1, places(at)[0])?;
            sequence += 1;
            chain = found.0.crc;
            at += bytes;
        }
        // A record is written once those before it are durable.
        for later in (at..layout.journal).step_by(PAGE as usize) {
            let newer = |head: &Head| {
                head.generation > generation
                    || (head.generation == generation && head.sequence >= sequence)
            };
            let room = layout.journal - later;
            let proof = self.find(&RECORD, places(later), room, newer);
            // What can't be read proves nothing.
            if let Ok(Some((head, _))) = proof {
                return Err(self.damaged(format!(
                    "record {sequence} of generation {generation} is expected at byte {} or {}, and can't be \
                     read there, but was durable: record {} of generation {} is further on",
                    places(at)[0], places(at)[1], head.sequence, head.generation
                )));
            }
        }
        Ok((sequence, chain, at))
    }

    fn apply(&mut self, body: &[u8], at: u64) -> Result<(), DeviceError> {
        let Some(changes) = journal::decode(body) else {
            return Err(self.damaged(format!(
                "the record at byte {at} makes no sense although its checksum is right"
            )));
        };
        for change in changes {
            match change {
                Change::Dir(path) => _ = self.names.insert(path, None),
                Change::File(path, id) => _ = self.names.insert(path, Some(id)),
                Change::Nothing(path) => _ = self.names.remove(&path),
                Change::Length(id, len) => self.files.entry(id).or_default().load_len(len),
                Change::Gone(id) => _ = self.files.remove(&id),
                Change::Chunks(id, all) => self.files.entry(id).or_default().load_chunks(all),
                Change::Holes(id, all) => self.files.entry(id).or_default().load_holes(&all),
            }
        }
        Ok(())
    }

    /// Looks whether what was read makes sense as a whole.
    fn check(&self) -> Result<Chunks, DeviceError> {
        let chunks = Chunks::new(self.header.layout.chunks);
        for (id, map) in &self.files {
            if let Some(at) = map.places().find(|at| !chunks.claim(*at)) {
                return Err(self.damaged(format!(
                    "file {id} has chunk {at}, which another one has, or which does not exist"
                )));
            }
        }
        let named: BTreeMap<u32, &String> =
            self.names.iter().filter_map(|(path, id)| id.map(|id| (id, path))).collect();
        let count = self.names.values().flatten().count();
        if named.len() != count || !named.keys().eq(self.files.keys()) {
            return Err(self.damaged(format!(
                "{count} names stand for {} files, and there are {}",
                named.len(),
                self.files.len()
            )));
        }
        Ok(chunks)
    }
}

//! Somebody who has the disk of an encrypted replica, and neither its key nor its node, puts back what was on it
//! before: any files of it, or single sectors. What is read then is as it was written last, or is refused. Shared with
//! `tests/src/bites`, which looks for known bugs so.

use std::collections::BTreeMap;

use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::types::{Epoch, Lba, Lsn};
use sbk_store::entry::entry_crc;
use sbk_store::{ReadError, Store, StoreError};
use sbk_wal::Storage;

use super::backend::{Backend, Disk};
use super::content::{Random, Tag, bytes_of, tags_of};
use super::driver;

const SECTOR: usize = 512;
/// The file with the key, which says nothing of the data.
const SEAL: &str = "seal";

/// A replica, what each of its blocks holds, and what its files held at some moments.
pub(crate) struct Past {
    disk: Disk,
    tags: Vec<Tag>,
    /// The newest entry.
    end: Lsn,
    moments: Vec<BTreeMap<String, Vec<u8>>>,
}

fn files(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    let paths = disk.paths().into_iter().filter(|path| path != SEAL);
    paths.map(|path| (path.clone(), disk.content(&path).expect("it is there"))).collect()
}

fn write(store: &mut Store, first: u64, tags: &[Tag]) -> Result<(), StoreError> {
    let kind = EntryKind::Write { lba: Lba(first), blocks: tags.len() as u32 };
    let header = EntryHeader { epoch: Epoch(1), lsn: store.end().next(), kind, origin: None };
    let payload = bytes_of(tags);
    store.append(header, entry_crc(&header, &payload), payload)?;
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run())?;
    }
    Ok(())
}

fn checkpoint(store: &mut Store, budget: u64) -> Result<(), String> {
    while let Some(plan) = store.plan_checkpoint(budget) {
        store.checkpoint_done(plan.run()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

impl Past {
    /// A replica that was written to and checkpointed again and again, with parts of the log behind; `broken`: whose
    /// last checkpoint ended with its process after so many operations of the disk.
    pub(crate) fn new(seed: u64, broken: Option<u64>) -> Result<Self, String> {
        let disk = Disk::new(Backend::Sealed, seed);
        driver::create(&disk.storage()?, 0).map_err(|e| e.to_string())?;
        let mut random = Random(seed);
        let mut past = Self { disk, tags: vec![0; 300], end: Lsn(0), moments: Vec::new() };
        for run in 0..4u64 {
            let storage = past.disk.storage()?;
            let (mut store, _) = driver::open(&storage, 0).map_err(|e| e.to_string())?;
            for n in 0..6 {
                let (first, blocks) = (random.below(296), 1 + random.below(4));
                let tags: Vec<Tag> = (0..blocks)
                    .map(|at| if random.one_in(8) { 0 } else { 1 + (run * 6 + n) * 8 + at })
                    .collect();
                past.tags[first as usize..][..tags.len()].copy_from_slice(&tags);
                write(&mut store, first, &tags).map_err(|e| e.to_string())?;
                if n == 3 {
                    store.set_committed(store.end());
                    checkpoint(&mut store, u64::MAX)?;
                }
            }
            store.set_committed(store.end());
            past.end = store.end();
            if let Some(operations) = broken.filter(|_| run == 3) {
                past.disk.crash_after(operations);
                // It fails, if the disk stops while it runs.
                let _ended = checkpoint(&mut store, u64::MAX);
            } else {
                if run % 2 == 1 {
                    checkpoint(&mut store, u64::MAX)?;
                }
                store.close_clean().map_err(|e| e.to_string())?;
            }
            past.disk.process_killed();
            past.moments.push(files(&past.disk));
        }
        Ok(past)
    }

    /// The replica with other bytes in its files.
    fn with(&self, changed: &BTreeMap<String, Vec<u8>>) -> Result<Disk, String> {
        let disk = self.disk.fork();
        for (path, content) in changed {
            let error = |e: std::io::Error| format!("{path}: {e}");
            let file =
                disk.memory.open(path).or_else(|_| disk.memory.create(path)).map_err(error)?;
            file.set_len(content.len() as u64).map_err(error)?;
            sbk_wal::write_all(&*file, &[content], 0).map_err(error)?;
        }
        disk.process_killed();
        Ok(disk)
    }

    /// Opens the replica and reads all of it, then checkpoints and reads it again. Returns whether anything was
    /// refused.
    ///
    /// # Errors
    /// If a block is read as it is not, or the log is shorter than it was.
    fn read(&self, disk: &Disk) -> Result<bool, String> {
        let Ok(storage) = disk.storage() else { return Ok(true) };
        let Ok((mut store, opened)) = driver::open(&storage, 0) else { return Ok(true) };
        if opened.durable < self.end && opened.kept.doubtful {
            // It is asked nothing before another replica told what there was.
            return Ok(true);
        }
        if opened.durable < self.end {
            return Err(format!("the log ends at {}, not at {}", opened.durable, self.end));
        }
        let mut refused = self.blocks(&store)?;
        store.set_committed(opened.durable);
        if checkpoint(&mut store, 1).is_err() {
            return Ok(true);
        }
        refused |= self.blocks(&store).map_err(|e| format!("checkpointed: {e}"))?;
        drop(store);
        let Ok(storage) = disk.storage() else { return Ok(true) };
        let Ok((store, _)) = driver::open(&storage, 0) else { return Ok(true) };
        refused |= self.blocks(&store).map_err(|e| format!("opened again: {e}"))?;
        Ok(refused)
    }

    fn blocks(&self, store: &Store) -> Result<bool, String> {
        let mut refused = false;
        for (block, expected) in (0..).zip(&self.tags) {
            match store.plan_read(BlockRange { lba: Lba(block), blocks: 1 }).run() {
                Ok(data) => {
                    let found = tags_of(&data)[0];
                    if found != *expected {
                        return Err(format!("block {block} holds {found}, not {expected}"));
                    }
                }
                Err(ReadError::Rotten { .. } | ReadError::Damaged { .. }) => refused = true,
                Err(other) => return Err(format!("block {block}: {other}")),
            }
        }
        Ok(refused)
    }

    /// Puts back every set of files, as each earlier moment had them. Returns how many were refused, and how many
    /// changed nothing.
    pub(crate) fn files_put_back(&self) -> Result<(u64, u64), String> {
        let (mut refused, mut nothing) = (0, 0);
        let (last, earlier) = self.moments.split_last().expect("moments");
        for (at, moment) in earlier.iter().enumerate() {
            // The segments of the log together.
            let kinds: Vec<&str> =
                vec!["superblock", "logstate", "extents", "shadow", "checksums", "regions", "wal"];
            for set in 1..(1u32 << kinds.len()) - 1 {
                let chosen = |path: &str| {
                    let kind = path.split('/').next();
                    (0..).zip(&kinds).any(|(n, name)| set >> n & 1 == 1 && kind == Some(*name))
                };
                let back: BTreeMap<_, _> = (moment.iter())
                    .filter(|(path, content)| chosen(path) && last.get(*path) != Some(*content))
                    .map(|(path, content)| (path.clone(), content.clone()))
                    .collect();
                let is = |name: &str| back.keys().any(|path| path.starts_with(name));
                // What the log lost at its end, with what knows of it, is a replica as it was.
                if back.is_empty() || is("superblock") && is("wal") {
                    continue;
                }
                let disk = self.with(&back)?;
                let what = || format!("moment {at}, {:?}", back.keys().collect::<Vec<_>>());
                match self.read(&disk).map_err(|e| format!("{}: {e}", what()))? {
                    true => refused += 1,
                    false => nothing += 1,
                }
            }
        }
        Ok((refused, nothing))
    }

    /// Puts back all that a block is made of, with what proves it up to the superblock: its bytes, the sector
    /// with its stamps, and without or with the sectors of the table that are not as they were.
    pub(crate) fn blocks_put_back(&self) -> Result<(u64, u64), String> {
        let (mut refused, mut nothing) = (0, 0);
        let (last, earlier) = self.moments.split_last().expect("moments");
        for (at, moment) in earlier.iter().enumerate() {
            for first in (0..self.tags.len()).step_by(SECTOR / 16) {
                for with_table in [false, true] {
                    let mut back = last.clone();
                    let mut put = |path: &str, range: std::ops::Range<usize>| {
                        let (from, to) = (&moment[path], back.get_mut(path).expect("it is there"));
                        let end = range.end.min(from.len()).min(to.len());
                        let changed = to[range.start..end] != from[range.start..end];
                        to[range.start..end].copy_from_slice(&from[range.start..end]);
                        changed
                    };
                    let blocks = 4096 * (1 + first)..4096 * (1 + first + SECTOR / 16);
                    let mut changed = put("extents", blocks.clone());
                    changed |= put("shadow", blocks);
                    changed |= put("checksums", 4096 + first * 16..4096 + first * 16 + SECTOR);
                    if with_table {
                        changed |= put("regions", 4096..usize::MAX);
                    }
                    if !changed {
                        continue;
                    }
                    let what = format!("moment {at}, blocks from {first} on, table {with_table}");
                    match self.read(&self.with(&back)?).map_err(|e| format!("{what}: {e}"))? {
                        true => refused += 1,
                        false => nothing += 1,
                    }
                }
            }
        }
        Ok((refused, nothing))
    }
}

/// All of it for seeds.
pub(crate) fn put_back(seeds: std::ops::Range<u64>) -> Result<(u64, u64), (u64, String)> {
    let (mut refused, mut nothing) = (0, 0);
    for seed in seeds {
        let broken = (seed % 2 == 1).then(|| Random(seed).below(24));
        let past = Past::new(seed, broken).map_err(|what| (seed, what))?;
        for found in [past.files_put_back(), past.blocks_put_back()] {
            let (more_refused, more_nothing) = found.map_err(|what| (seed, what))?;
            refused += more_refused;
            nothing += more_nothing;
        }
    }
    Ok((refused, nothing))
}

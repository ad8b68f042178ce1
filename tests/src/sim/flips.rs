//! Bits that flip at rest in what a replica keeps beside blocks: its log, its superblock, its log state,
//! the headers and the table of its image.
//!
//! One replica at a time is struck, while another one holds all that was acknowledged: what the mode
//! promises is that the others are enough. Its next opening tells what became of it. What a copy of its
//! disk says before must be one of three:
//!
//! * nothing is missing: the other slot had it, or nobody needs it;
//! * the replica is refused, and is no copy any more: an operator has it replaced;
//! * its last write can't be read, it says that it is in doubt, and counts for nothing that it may have
//!   lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use sbk_engine::authority::{Command, Fate};
use sbk_engine::replication::io::Opened;
use sbk_engine::types::{Durability, ReplicaId};
use sbk_store::StoreError;
use sbk_wal::Memory;

use super::marks::{Injected, Mark};
use super::masters::OVERCOMMIT_PERCENT;
use super::rng::Rng;
use super::world::World;

/// Where the first frame of a segment starts, and fields of a frame.
const FRAMES: usize = 512;
const FRAME_TOTAL: Range<usize> = 20..24;
const FRAME_SEGMENT: Range<usize> = 24..32;
/// Bytes of a file before its content, and of a superblock's slot.
const HEADER: usize = 4096;
/// Bytes of a slot of the log state.
const STATE_SLOT: usize = 1088 << 10;

/// What flipped, and what it led to.
#[derive(Debug, Default)]
pub(crate) struct Flips {
    /// On whose disk bits flipped, and in which run of its node they last did.
    victim: Option<(ReplicaId, u64)>,
    /// Bytes of its log's segments with what they are since, by path and place.
    rotten: BTreeMap<(String, u64), u8>,
    /// Replicas that an operator was told of.
    reported: BTreeSet<ReplicaId>,
}

/// What an opening would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    /// Nothing is missing.
    Whole,
    /// The log ends too soon, and the replica knows that it may.
    Short,
    /// It does so and looks whole. A bit alone can't do that, but some can in one place; they don't flip.
    Silent,
    /// It is damaged.
    Refused,
}

impl World {
    pub(super) fn flip_turn(&mut self) {
        if self.rng.below(150) != 0 {
            return;
        }
        let Some(index) = self.struck() else { return };
        if self.rng.chance(60) {
            self.flip_while_down(index);
        } else {
            self.flip_while_open(index);
        }
    }

    /// The node that is struck now, if one may be.
    fn struck(&mut self) -> Option<usize> {
        let any = self.any_node();
        if let Some((id, run)) = self.flips.victim {
            let index = self.index(id);
            let node = &self.nodes[index];
            // An opening reads all that counts, and writes anew what it found in one slot only. What the checkpoint
            // has of a segment counts again when the log is cut back to there.
            let again = node.id != id || node.replica.is_some() && node.run > run;
            let rotten = node.id == id && self.is_rotten(index);
            if !again || rotten || !self.masters.config.isr.contains(&node.id) {
                return (node.id == id).then_some(index).filter(|index| self.may_be_struck(*index));
            }
            self.flips.victim = None;
            self.flips.rotten.clear();
        }
        self.may_be_struck(any).then_some(any)
    }

    /// Whether a byte in which a bit of its log flipped is as it was left.
    fn is_rotten(&self, index: usize) -> bool {
        let memory = &self.nodes[index].disk.memory;
        self.flips.rotten.iter().any(|((path, byte), left)| {
            memory.content(path).is_some_and(|content| content.get(*byte as usize) == Some(left))
        })
    }

    /// Whether bits of its disk flipped that no opening has settled since.
    pub(super) fn was_struck(&self, index: usize) -> bool {
        self.flips.victim.is_some_and(|(id, _)| id == self.nodes[index].id)
    }

    /// Whether bits of its disk flipped in this run of its node.
    pub(super) fn struck_since_opened(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let struck = self.flips.victim.is_some_and(|(id, run)| id == node.id && run == node.run);
        node.up && struck
    }

    fn may_be_struck(&self, index: usize) -> bool {
        let (node, config) = (&self.nodes[index], &self.masters.config);
        let there = node.replica.is_some() && !node.paused && !node.disk.memory.crashed();
        let complete = |id: &ReplicaId| {
            let holder = self.holder(*id);
            holder.is_some_and(|n| n.disk.shadow.kept.incomplete.is_none() && !n.damaged)
        };
        if !there || self.loss_pending() || self.masters.live().is_none() {
            return false;
        }
        // What one lost must be there again before another one loses something.
        let short = |id: &ReplicaId| {
            let holder = self.holder(*id).filter(|holder| holder.id != node.id);
            holder.is_some_and(|holder| holder.disk.shadow.kept.doubtful)
        };
        if config.isr.iter().any(short) {
            return false;
        }
        if !config.isr.contains(&node.id) || !complete(&node.id) {
            return false;
        }
        let others = config.isr.iter().filter(|id| **id != node.id && complete(id));
        // A voter that is behind may have to be rebuilt, and is none meanwhile.
        let voters = others.clone().filter(|id| self.holds_acknowledged(**id)).count();
        let others = others.count();
        match config.durability {
            Durability::SyncQuorum => voters > config.isr.len() / 2,
            Durability::SyncAll | Durability::BestEffort => others > 0,
        }
    }

    /// Its process ends, or its power goes, and bits flip before it is back.
    fn flip_while_down(&mut self, index: usize) {
        let power = self.faults.power && self.rng.chance(50);
        let soon = self.rng.chance(70);
        let away = if soon { 1 + self.rng.below(30) } else { 50 + self.rng.below(3_000) };
        self.die(index, power, away);
        for _ in 0..1 + self.rng.below(3) / 2 {
            let Some((path, bit)) = self.choose_bit(index) else { return };
            let outlook = self.outlook(index, &path, bit, false);
            // What the primary acknowledged by itself nobody else may have, or have told of.
            let only = self.masters.config.durability == Durability::BestEffort;
            if outlook != Outlook::Silent && !(outlook == Outlook::Short && only) {
                self.flip(index, &path, bit, outlook);
            }
        }
    }

    /// Bits flip under a store that is open. What it keeps in memory it writes anew; of what it reads
    /// again it finds out; the rest is found at its next opening, and until then the replica counts. So
    /// there must always be another one that has what it acknowledges.
    fn flip_while_open(&mut self, index: usize) {
        let alone = match self.masters.config.durability {
            Durability::SyncQuorum => false,
            Durability::SyncAll => self.masters.config.min_in_sync < 2,
            Durability::BestEffort => true,
        };
        if alone {
            return;
        }
        let Some((path, bit)) = self.choose_bit(index) else { return };
        // Whatever a loss of power takes besides is between these.
        let outlooks = [false, true].map(|power| self.outlook(index, &path, bit, power));
        if !outlooks.contains(&Outlook::Silent) {
            self.flip(index, &path, bit, outlooks[0]);
        }
    }

    fn flip(&mut self, index: usize, path: &str, bit: u64, outlook: Outlook) {
        if self.nodes[index].disk.memory.flip(path, bit) {
            self.inject(Injected::FlipAtRest);
            self.flips.victim = Some((self.nodes[index].id, self.nodes[index].run));
            let (byte, bit) = (bit / 8, bit % 8);
            let content = self.nodes[index].disk.memory.content(path).unwrap_or_default();
            if let (true, Some(left)) = (path.ends_with(".seg"), content.get(byte as usize)) {
                self.flips.rotten.insert((path.to_owned(), byte), *left);
            }
            self.note(index, || format!("{path}: byte {byte}, bit {bit} flips; {outlook:?}"));
        }
    }

    /// What an opening would say if the bit flipped now and the process ended, or if nothing that was not
    /// synced were there before.
    fn outlook(&self, index: usize, path: &str, bit: u64, power: bool) -> Outlook {
        let shadow = &self.nodes[index].disk.shadow;
        let opened = match self.copy_of(index, power, Some((path, bit))) {
            Ok(opened) => opened,
            Err(StoreError::Io { doing, path, source }) => {
                panic!("a sound disk can't {doing} {}: {source}", path.display())
            }
            Err(_) => return Outlook::Refused,
        };
        let (now, before) = (&opened.kept, &shadow.kept);
        assert!(
            now.fenced >= before.fenced && now.loss_generation >= before.loss_generation,
            "I7: node {index} forgets what it promised for a bit of {path}: {now:?}, it was {before:?}"
        );
        assert!(now.incomplete == before.incomplete && now.stood == before.stood, "I7: {path}");
        let had = if power { shadow.durable } else { shadow.durable.max(shadow.written) };
        if opened.durable >= had {
            return Outlook::Whole;
        }
        let first = self.flips.victim.is_none();
        assert!(
            now.doubtful || !first,
            "I2: node {index} loses {had} for a bit of {path} unawares"
        );
        if now.doubtful { Outlook::Short } else { Outlook::Silent }
    }

    /// What an opening of a copy of the node's disk finds, after its process ended or its power went, with
    /// a bit flipped or not.
    fn copy_of(
        &self,
        index: usize,
        power: bool,
        flipped: Option<(&str, u64)>,
    ) -> Result<Opened, StoreError> {
        let disk = &self.nodes[index].disk;
        let memory = disk.memory.fork();
        memory.mend();
        if power {
            memory.lose_unsynced();
        } else {
            memory.process_killed();
        }
        if let Some((path, bit)) = flipped {
            memory.flip(path, bit);
        }
        Ok(disk.open_copy(memory)?.1)
    }

    /// A file of the replica and a bit of it that may flip.
    fn choose_bit(&mut self, index: usize) -> Option<(String, u64)> {
        let memory = self.nodes[index].disk.memory.clone();
        let log: Vec<_> = memory.paths().into_iter().filter(|p| p.starts_with("wal/")).collect();
        let newest = log.iter().rfind(|path| path.ends_with(".seg")).cloned();
        let slot = self.rng.below(2) as usize;
        let (path, range) = match self.rng.below(10) {
            0 => ("superblock".to_owned(), slot * HEADER..(slot + 1) * HEADER),
            1 => ("logstate".to_owned(), slot * STATE_SLOT..(slot + 1) * STATE_SLOT),
            2 => (["extents", "shadow"][slot].to_owned(), 0..HEADER),
            3 => ("checksums".to_owned(), 0..HEADER),
            4 => ("regions".to_owned(), 0..usize::MAX),
            5..=7 => {
                let newest = newest?;
                let range = last_frame(&memory, &newest).unwrap_or(0..usize::MAX);
                (newest, range)
            }
            _ => (log.get(self.rng.below(log.len() as u64) as usize)?.clone(), 0..usize::MAX),
        };
        let content = memory.content(&path)?;
        let range = range.start..range.end.min(content.len());
        Some((path, any_bit(&content, range, &mut self.rng)?))
    }

    /// A store could not be opened.
    pub(super) fn note_refused(&mut self, index: usize, error: &StoreError) {
        if matches!(error, StoreError::Io { .. }) || !self.faults.flip {
            return;
        }
        if let StoreError::Log(sbk_wal::LogError::Io { .. })
        | StoreError::Slot(sbk_wal::SlotError::Io { .. }) = error
        {
            return;
        }
        let (node, victim) = (&mut self.nodes[index], self.flips.victim);
        let id = node.id;
        assert!(
            victim.is_some_and(|(id, _)| id == node.id),
            "I2: {id} is sound, and refused: {error}"
        );
        if !std::mem::replace(&mut node.damaged, true) {
            self.mark(Mark::Damaged);
        }
    }

    /// An operator has replicas replaced that can't be opened any more.
    pub(super) fn replace_damaged(&mut self) {
        let Some(volume) = self.masters.live() else { return };
        let volume = volume.id;
        let damaged: Vec<_> = self.nodes.iter().filter(|n| n.damaged).map(|n| n.id).collect();
        for replica in damaged {
            let listed = self.masters.live().and_then(|v| v.replicas.get(&replica));
            // One who wanted it moved to another node had no reason to give up a copy.
            let asked = listed.is_none_or(|listed| listed.fate == Fate::GoesFirst);
            if asked || !self.rng.chance(5) {
                continue;
            }
            if self.flips.reported.insert(replica) {
                self.note_all(|| format!("an operator has {replica} replaced"));
            }
            let (fate, instead) = (Fate::GoesFirst, None);
            let overcommit_percent = OVERCOMMIT_PERCENT;
            let command =
                Command::RetireReplica { volume, replica, fate, instead, overcommit_percent };
            self.submit(super::masters::Pending { command, proposer: None });
        }
    }
}

/// Where the newest frame of a segment is.
fn last_frame(memory: &Memory, path: &str) -> Option<Range<usize>> {
    let content = memory.content(path)?;
    let name = path.rsplit_once('/')?.1.strip_suffix(".seg")?;
    let sequence = u64::from_str_radix(name, 16).ok()?;
    let (mut at, mut last) = (FRAMES, None);
    while let Some(frame) = content.get(at..at + 56) {
        let total = u32::from_le_bytes(frame[FRAME_TOTAL].try_into().ok()?) as usize;
        let segment = u64::from_le_bytes(frame[FRAME_SEGMENT].try_into().ok()?);
        if !frame.starts_with(b"SBKf") || segment != sequence || total == 0 {
            break;
        }
        last = Some(at..at + total);
        at += total;
    }
    last
}

/// A bit of the range; as a rule of a byte that is not zero.
fn any_bit(content: &[u8], range: Range<usize>, rng: &mut Rng) -> Option<u64> {
    let data: Vec<_> = range.clone().filter(|at| content[*at] != 0).collect();
    let byte = if !data.is_empty() && rng.chance(80) {
        data[rng.below(data.len() as u64) as usize]
    } else if range.is_empty() {
        return None;
    } else {
        range.start + rng.below(range.len() as u64) as usize
    };
    Some(byte as u64 * 8 + rng.below(8))
}

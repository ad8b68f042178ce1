//! How a block that rotted on another replica is repaired: this primary logs it again as it holds it itself.
//!
//! A block that is damaged on a follower is read by nobody there, until a failover makes it the copy that
//! counts. An operator's scrub finds it. It is repaired as one that rotted on the primary is, by an entry of
//! the log that changes no content and that every replica's checkpoint writes ([`super::mend`]), and the same
//! rule makes it safe: the block is read as of the log's end, and any entry that touches it from the order on
//! ends the repair. [What had been read was logged over what a client had written since.]
//!
//! The scrub may have been wrong about who holds it damaged, or late: where this primary finds its own copy
//! damaged, other members are asked as for any block of its own.

use super::Verdict;
use super::core::Core;
use super::io::{Fate, Output};
use super::mend::{MOST, Mend, in_words, single};
use super::message::ToPrimary;
use super::primary::Primary;
use crate::replication::IgnoredReason;
use crate::types::{Epoch, Lba};

/// Most blocks of one order.
pub const SCRUB_BLOCKS: usize = 1024;
/// Most blocks that are being repaired for scrubs at a time. The rest of the room is for what clients wait
/// for. [They would wait for room, and after 2T get an error.]
pub const SCRUB_ROOM: usize = MOST / 2;

impl Primary {
    /// A scrub found blocks damaged on some replica.
    pub(super) fn scrub(&mut self, core: &mut Core, blocks: &[Lba]) -> Verdict {
        let ascend = blocks.windows(2).all(|pair| pair[0] < pair[1]);
        if blocks.is_empty() || blocks.len() > SCRUB_BLOCKS || !ascend {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        let (mut none, mut overtaken, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken = Vec::new();
        let mut room = SCRUB_ROOM
            .saturating_sub(self.mends.blocks.values().filter(|mend| mend.ordered).count());
        if !self.ready || self.has_stopped() {
            room = 0;
        }
        for lba in blocks.iter().copied() {
            if lba.0 >= core.log.state.blocks {
                none.push(lba);
            } else if core.newest_uncommitted(single(lba)).is_some() {
                overtaken.push(lba);
            } else if let Some(mend) = self.mends.blocks.get_mut(&lba) {
                mend.ordered = true;
            } else if room == 0 || !self.mends.has_room() {
                busy.push(lba);
            } else {
                room -= 1;
                self.mends.blocks.insert(lba, Mend::new(core, true));
                taken.push(lba);
            }
        }
        let why = "the volume has no such block".to_owned();
        let settled =
            [(none, Fate::NotMended(why)), (overtaken, Fate::Overtaken), (busy, Fate::Busy)];
        for (blocks, fate) in settled {
            if !blocks.is_empty() {
                core.out.push(Output::Scrubbed { blocks, fate });
            }
        }
        if !taken.is_empty() {
            let what = format!("{}: damaged on a replica, says a scrub", in_words(&taken));
            core.trace("scrub", what);
        }
        Verdict::Applied
    }

    /// Tells what becomes of those of the blocks that a scrub asked for.
    pub(super) fn tell_scrub(&self, core: &mut Core, blocks: &[Lba], fate: &Fate) {
        let ordered = |lba: &Lba| self.mends.blocks.get(lba).is_some_and(|mend| mend.ordered);
        let blocks: Vec<_> = blocks.iter().copied().filter(ordered).collect();
        if !blocks.is_empty() {
            core.out.push(Output::Scrubbed { blocks, fate: fate.clone() });
        }
    }

    /// The role ends, and with it what was ordered of it.
    pub(super) fn end_scrubs(&self, core: &mut Core) {
        let blocks: Vec<_> = self.mends.blocks.keys().copied().collect();
        let why = "this replica is not primary any more".to_owned();
        self.tell_scrub(core, &blocks, &Fate::NotMended(why));
    }

    /// What this replica told itself, as primary.
    pub(super) fn told_itself(
        &mut self,
        core: &mut Core,
        epoch: Epoch,
        message: &ToPrimary,
    ) -> Verdict {
        let ToPrimary::Blocks { request, at, held, rotten } = message else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        if epoch != self.config.epoch {
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        self.told_blocks(core, core.me, *request, *at, held, rotten)
    }
}

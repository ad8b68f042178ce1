//! How a primary gives the volume another size.
//!
//! The size is log state. What the masters wish is logged once, by whichever primary finds in its own log
//! that it was not done; when it is committed, its primary proposes that it is published. So a failover
//! needs no memory of how far it was, and nothing is published that could be cut.
//!
//! Growing is logged at once: nobody knows of the new blocks before they are published. Shrinking must
//! lose nothing, so the primary first has its store look for data beyond the new end, as it is logged then.
//! If there is none, and none was logged since or is on its way, the entry is logged, and no request is
//! taken any more that reaches beyond it. If there is some, the volume keeps its size and the masters are
//! told to take the wish back.

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::core::Core;
use super::io::{IsrChange, Output, Payload};
use super::log::{BlockRange, EntryKind};
use super::primary::Primary;
use crate::bugs::{Bug, on};
use crate::replication::IgnoredReason;
use crate::types::{Lba, Millis};

/// A wish to shrink that was not logged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shrink {
    /// The size in blocks that is wished.
    blocks: u64,
    search: Search,
    /// A block beyond it that a client has written since the search began.
    written: Option<Lba>,
}

/// The look for data beyond the new end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Search {
    /// Under way.
    Asked(u64),
    /// There is none.
    Nothing,
    /// There is some.
    Found(Lba),
    /// It could not be told then.
    Failed(Millis),
}

impl Primary {
    /// Takes the step towards the wished size that the facts allow.
    pub(super) fn resize(&mut self, core: &mut Core) {
        let wished = self.config.wished_blocks.filter(|_| self.ready && self.takes_requests());
        let Some(blocks) = wished.filter(|blocks| *blocks != core.log.state.blocks) else {
            self.shrink = None;
            return;
        };
        if blocks > core.log.state.blocks || on(Bug::ShrinkUnseen) {
            return self.log_size(core, blocks);
        }
        let shrink = match self.shrink.filter(|shrink| shrink.blocks == blocks) {
            Some(Shrink { search: Search::Failed(at), .. })
                if core.now.since(at) >= core.params.suspect_ms =>
            {
                self.search(core, blocks)
            }
            Some(shrink) => shrink,
            None => self.search(core, blocks),
        };
        if let Search::Nothing = shrink.search {
            match self.reaches_beyond(blocks).filter(|_| !on(Bug::ShrinkUnderWrites)) {
                Some(lba) => self.shrink = Some(Shrink { search: Search::Found(lba), ..shrink }),
                None => self.log_size(core, blocks),
            }
        }
    }

    fn search(&mut self, core: &mut Core, blocks: u64) -> Shrink {
        self.searches += 1;
        let (search, end) = (self.searches, core.log.state.blocks);
        core.trace("shrinks", format!("from {end} to {blocks} blocks: looks for data beyond"));
        core.out.push(Output::FindData { search, first: Lba(blocks), end });
        let shrink = Shrink { blocks, search: Search::Asked(search), written: None };
        self.shrink = Some(shrink);
        shrink
    }

    /// The store looked.
    pub(super) fn data_found(
        &mut self,
        core: &mut Core,
        search: u64,
        found: Option<Lba>,
        error: Option<String>,
    ) -> Verdict {
        let asked = self.shrink.as_mut().filter(|s| s.search == Search::Asked(search));
        let Some(shrink) = asked else {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        };
        let written = shrink.written.filter(|_| !on(Bug::ShrinkUnderWrites));
        shrink.search = match (found.or(written), error) {
            (_, Some(error)) => {
                core.trace("shrink-waits", format!("its blocks can't be looked at: {error}"));
                Search::Failed(core.now)
            }
            (Some(lba), None) => Search::Found(lba),
            (None, None) => Search::Nothing,
        };
        Verdict::Applied
    }

    /// An entry is about to be logged.
    pub(super) fn note_beyond(&mut self, kind: &EntryKind) {
        let EntryKind::Write { lba, blocks } = *kind else { return };
        if let Some(shrink) = &mut self.shrink
            && (BlockRange { lba, blocks }).end() > shrink.blocks
        {
            shrink.written.get_or_insert(lba.max(Lba(shrink.blocks)));
        }
    }

    /// A block beyond a size that was written since the search began, or that a write reaches which waits.
    fn reaches_beyond(&self, blocks: u64) -> Option<Lba> {
        let written = self.shrink.and_then(|shrink| shrink.written);
        let waits = || self.clients.writes_beyond(blocks).map(|lba| lba.max(Lba(blocks)));
        written.or_else(waits)
    }

    fn log_size(&mut self, core: &mut Core, blocks: u64) {
        if core.log.uncommitted.len() as u64 >= core.params.max_uncommitted || self.is_crowded(core)
        {
            return;
        }
        let before = core.log.state.blocks;
        self.shrink = None;
        let lsn = self.append(core, EntryKind::Resize { blocks }, None, Payload::Empty);
        core.trace("resize", format!("from {before} to {blocks} blocks, at {lsn}"));
    }

    /// What the masters are to hear of the volume's size. What is committed is known only once everything
    /// before this epoch is: an earlier primary may have committed and published more than this one knows of.
    pub(super) fn size_change(&self, core: &Core) -> Option<IsrChange> {
        if self.settled != Some(self.config.epoch) && !on(Bug::PublishUnsettled) {
            return None;
        }
        let early = on(Bug::PublishUncommitted);
        let state = if early { &core.log.state } else { &core.log.committed_state };
        if state.blocks != self.config.blocks {
            return Some(IsrChange::Resized { blocks: state.blocks });
        }
        match self.shrink {
            Some(Shrink { blocks: wished, search: Search::Found(lba), .. }) => {
                Some(IsrChange::KeepSize { wished, lba })
            }
            Some(_) | None => None,
        }
    }

    /// How far a wish is, for people; `None` if there is none.
    pub(super) fn show_size(&self, core: &Core) -> Option<String> {
        let to = self.config.wished_blocks?;
        let how = match self.shrink.map(|shrink| shrink.search) {
            Some(Search::Asked(_)) => "looks for data beyond its new end".to_owned(),
            Some(Search::Found(lba)) => format!("has data at block {lba}, beyond its new end"),
            Some(Search::Failed(_)) => "can't tell whether there is data beyond it".to_owned(),
            Some(Search::Nothing) => "waits for room in its log".to_owned(),
            None if core.log.committed_state.blocks == to => "asks for its publication".to_owned(),
            None if core.log.state.blocks == to => {
                "has logged it, which is not committed".to_owned()
            }
            None => "has not logged it yet".to_owned(),
        };
        Some(format!("is to have {to} blocks: {how}"))
    }

    /// When something is due without an event.
    pub(super) fn resize_deadline(&self, core: &Core) -> Option<Millis> {
        match self.shrink?.search {
            Search::Failed(at) => Some(at.after(core.params.suspect_ms)),
            Search::Asked(_) | Search::Nothing | Search::Found(_) => None,
        }
    }
}

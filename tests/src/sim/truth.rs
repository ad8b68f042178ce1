//! What is true of the whole cluster, whatever its parts believe. A broken rule is caught at the
//! step that breaks it, long before a client could notice.

use std::collections::BTreeMap;

use sbk_engine::authority::Command;
use sbk_engine::replication::io::{Input, IsrChange, Kept, Opened, Proposal};
use sbk_engine::replication::log::{EntryHeader, EntryKind, LogState, RequestTag};
use sbk_engine::replication::message::ToPrimary;
use sbk_engine::replication::view::RoleView;
use sbk_engine::types::{
    AttachGeneration, Config, Durability, Epoch, LossGeneration, Lsn, ReplicaId,
};

use super::content::VOLUME_BLOCKS;
use super::disk::{Entry, Shadow};
use super::sizes::Sizes;
use super::world::World;

/// The log as far as it was committed anywhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    committed: BTreeMap<Lsn, Entry>,
    tags: BTreeMap<RequestTag, Lsn>,
    /// What the committed log implies.
    state: Option<LogState>,
    /// What every counted replica has: all of it, but in `best_effort`.
    pub(super) everywhere: Lsn,
    /// Where the log of the last loss ended: a replica may know as committed what was so before that
    /// loss, is in this log, and is yet to be committed again.
    inherited: Lsn,
    /// With written acknowledgements: everything up to here was answered by a primary.
    pub(crate) acknowledged: Lsn,
    /// Of that, what a loss of all tails must not take: it was flushed.
    pub(crate) flushed: Lsn,
    /// And what was acknowledged before a member left.
    pub(crate) firm: Lsn,
    /// The volume's sizes.
    pub(super) sizes: Sizes,
    /// The losses that took effect.
    pub(crate) loss_generation: LossGeneration,
}

impl Truth {
    /// The newest LSN that was ever committed.
    pub(crate) fn newest(&self) -> Lsn {
        self.committed.last_key_value().map_or(Lsn(0), |(lsn, _)| *lsn)
    }

    /// Whether a request is in the committed log.
    pub(crate) fn has(&self, tag: RequestTag) -> bool {
        self.tags.contains_key(&tag)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (Lsn, &Entry)> {
        self.committed.iter().map(|(lsn, entry)| (*lsn, entry))
    }

    /// Some replica knows everything up to here to be on every member.
    pub(crate) fn note_everywhere(&mut self, lsn: Lsn) {
        self.everywhere = self.everywhere.max(lsn);
    }

    /// What lies behind `common` is lost.
    pub(crate) fn lose(&mut self, common: Lsn, end: Lsn, generation: LossGeneration) {
        self.loss_generation = generation;
        self.inherited = end;
        self.everywhere = self.everywhere.min(common);
        self.acknowledged = self.acknowledged.min(common);
        self.flushed = self.flushed.min(common);
        self.firm = self.firm.min(common);
        self.committed.split_off(&common.next());
        self.tags.retain(|_, lsn| *lsn <= common);
        self.state = Some(self.state(self.newest()));
    }

    /// The attach generation in force.
    pub(crate) fn generation(&self) -> AttachGeneration {
        self.state.as_ref().map_or(AttachGeneration(0), |state| state.attach)
    }

    /// An entry is committed as the log's next: nobody does anything behind the end of its
    /// attachment, and nobody attaches beside an exclusive one.
    fn check_attachment(&mut self, header: &EntryHeader) {
        let state = self.state.get_or_insert_with(|| LogState::new(VOLUME_BLOCKS));
        let own = header.origin.map(|origin| origin.tag.session);
        let of = own.and_then(|session| state.sessions.get(&session)).map(|log| log.attach);
        match header.kind {
            EntryKind::Attach { generation, exclusive } => {
                let newest = state.attach;
                let beside =
                    generation == newest && state.exclusive.is_some_and(|h| Some(h) != own);
                assert!(generation >= newest, "I7: attach generation {generation} after {newest}");
                assert!(!beside, "I3: an attachment was made beside an exclusive one");
                assert!(!exclusive || generation > newest, "I7: generation {newest} again");
            }
            EntryKind::Write { .. }
            | EntryKind::Trim { .. }
            | EntryKind::Zero { .. }
            | EntryKind::Close { .. }
            | EntryKind::Resize { .. } => assert!(
                of.is_none_or(|of| of == state.attach),
                "I3: {:?} of attach generation {of:?} took effect in {}",
                header.origin,
                state.attach
            ),
        }
        state.apply(header);
    }

    /// An entry reaches beyond no end, and a size is one that was wished.
    fn check_size(&mut self, header: &EntryHeader) {
        let blocks = self.sizes.newest();
        let end = header.kind.range().map_or(0, |range| range.end());
        assert!(end <= blocks, "L7: entry {} reaches to {end} of {blocks} blocks", header.lsn);
        if let EntryKind::Resize { blocks } = header.kind {
            self.sizes.commit(blocks);
        }
    }

    /// What the log up to `lsn` implies.
    pub(crate) fn state(&self, lsn: Lsn) -> LogState {
        let mut state = LogState::new(VOLUME_BLOCKS);
        self.committed.range(..=lsn).for_each(|(_, (header, _))| state.apply(header));
        state
    }

    /// Some replica knows these to be committed.
    pub(crate) fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            let (header, _) = entry;
            if let Some(known) = self.committed.get(&header.lsn) {
                assert_eq!(known, entry, "I4: two entries are committed at {}", header.lsn);
                continue;
            }
            self.check_size(header);
            self.check_attachment(header);
            self.committed.insert(header.lsn, *entry);
            let request = header.origin.filter(|_| {
                // An attach is logged again by a primary that does not know it.
                !matches!(header.kind, EntryKind::Attach { .. })
            });
            if let Some(origin) = request {
                let before = self.tags.insert(origin.tag, header.lsn);
                assert_eq!(before, None, "I3: a request took effect twice: {:?}", origin.tag);
            }
        }
    }
}

impl World {
    /// Every acknowledged entry is on every member of the set in force: whichever is promoted, none
    /// is lost, and all but one may die.
    pub(crate) fn check_members(&self) {
        let config = &self.masters.config;
        if self.loss_pending() || self.masters.live().is_none() {
            return;
        }
        if config.durability == Durability::SyncQuorum {
            return self.check_voters(None);
        }
        self.check_written();
        let newest = self.truth.everywhere;
        let holds = |id: &&ReplicaId| self.member_disk(**id).durable >= newest;
        assert!(
            config.isr.iter().find(holds).is_some(),
            "I2: nobody in sync has all up to {newest}"
        );
        for id in &config.isr {
            let disk = self.member_disk(*id);
            if disk.kept.doubtful {
                // It counts for nothing that it might have lost.
                continue;
            }
            assert!(disk.kept.incomplete.is_none(), "I6: {id} is in sync and INCOMPLETE");
            assert!(
                disk.durable >= newest,
                "I2: {id} is in sync in epoch {} with {} of {newest}",
                config.epoch,
                disk.durable
            );
            for (lsn, entry) in self.truth.committed.range(..=newest).rev().take(4) {
                let held = disk.get(*lsn).unwrap_or(entry);
                assert_eq!(held, entry, "I2: {id} is in sync and holds another entry at {lsn}");
            }
        }
    }

    /// The disk of a replica that is in sync.
    fn member_disk(&self, id: ReplicaId) -> &Shadow {
        let Some(node) = self.holder(id) else {
            panic!("I2: {id} is in sync, and its directory is gone");
        };
        &node.disk.shadow
    }

    /// With written acknowledgements every member of the set that has kept its tail has, in its log's
    /// file, all that was acknowledged: whichever is promoted, none is lost.
    pub(crate) fn check_written(&self) {
        let config = &self.masters.config;
        if !config.acks_written() || self.loss_pending() {
            return;
        }
        let newest = self.truth.acknowledged;
        for id in &config.isr {
            let Some(node) = self.holder(*id) else { continue };
            let disk = &node.disk;
            if config.tails.get(id) != Some(&disk.tail()) {
                continue;
            }
            let held = &disk.shadow;
            assert!(
                held.written >= newest,
                "I2: {id} is in sync in epoch {} and has written {} of {newest}",
                config.epoch,
                held.written
            );
            for (lsn, entry) in self.truth.committed.range(..=newest).rev().take(4) {
                let held = held.get(*lsn).unwrap_or(entry);
                assert_eq!(held, entry, "I2: {id} is in sync and wrote another entry at {lsn}");
            }
        }
    }

    /// What a member that leaves had acknowledged with the others is on the disks of those that stay.
    pub(crate) fn note_firm(&mut self, before: &Config, command: &Command) {
        let leaves = matches!(
            command,
            Command::ProposeIsr { change: IsrChange::Leave { .. }, .. } | Command::Failover { .. }
        );
        let now = &self.masters.config;
        let fewer = now.isr.len() < before.isr.len() && now.isr.is_subset(&before.isr);
        if now.acks_written() && leaves && fewer && !self.loss_pending() {
            self.truth.firm = self.truth.firm.max(self.truth.acknowledged);
        }
    }

    /// Whether the replica durably holds everything that was ever committed.
    fn holds(&self, id: ReplicaId) -> bool {
        let disk = self.member_disk(id);
        let same = |(lsn, entry): (&Lsn, &Entry)| disk.get(*lsn).is_none_or(|held| held == entry);
        disk.kept.incomplete.is_none()
            && disk.durable >= self.truth.newest()
            && self.truth.committed.iter().rev().take(4).all(same)
    }

    /// Whether the replica durably holds everything that was acknowledged.
    pub(crate) fn holds_acknowledged(&self, id: ReplicaId) -> bool {
        if self.masters.config.durability == Durability::SyncQuorum {
            return self.holds(id);
        }
        let disk = self.member_disk(id);
        disk.kept.incomplete.is_none() && disk.durable >= self.truth.everywhere
    }

    /// What an election goes by: the newest epoch of the log as its disk has it, then its length.
    fn rank(&self, id: ReplicaId) -> (Epoch, Lsn) {
        let disk = self.member_disk(id);
        let recorded = disk.kept.table.last().map(|(epoch, _)| epoch);
        let logged = disk.get(disk.durable).map(|(header, _)| header.epoch);
        (recorded.max(logged).unwrap_or_default(), disk.durable)
    }

    /// A majority of the voters in force holds everything, without the one that is about to drop
    /// something; and whichever majority is asked, its best log is of one that does.
    fn check_voters(&self, without: Option<ReplicaId>) {
        let config = &self.masters.config;
        let (holders, others): (Vec<_>, Vec<_>) =
            config.isr.iter().partition(|id| Some(**id) != without && self.holds(**id));
        let majority = config.isr.len() / 2 + 1;
        let (epoch, newest) = (config.epoch, self.truth.newest());
        let doubtful = |id: &ReplicaId| self.member_disk(*id).kept.doubtful;
        // One that lost the end of its log had it before.
        let had = others
            .iter()
            .copied()
            .filter(|id: &&ReplicaId| Some(**id) != without && doubtful(id))
            .count();
        assert!(
            holders.len() + had >= majority && !holders.is_empty(),
            "I2: of {} voters in epoch {epoch} only {} hold what is committed up to {newest}",
            config.isr.len(),
            holders.len(),
        );
        let complete = |id: &&ReplicaId| self.member_disk(**id).kept.incomplete.is_none();
        // What the one that drops something is worth then is seen when it has done so.
        let rivals = others.into_iter().filter(|id| complete(id) && Some(**id) != without);
        for other in rivals {
            let rank = self.rank(*other);
            // The most whose answers it could win with.
            let voters = config.isr.iter().filter(|id| complete(id) && self.rank(**id) <= rank);
            let (unsure, sure): (Vec<&ReplicaId>, Vec<&ReplicaId>) =
                voters.partition(|id| doubtful(id));
            let voters = unsure.len() + sure.len();
            let all = config.isr.iter().filter(complete).count();
            let shown = unsure.is_empty()
                || sure.len() + majority > all
                || voters >= all.min(all + 2 - majority.min(all));
            assert!(
                voters < majority || !shown,
                "I2: {other} could be elected in epoch {epoch} with {rank:?}, without all up to \
                 {newest}"
            );
        }
    }

    /// A log state that a replica was given or keeps is that of the log.
    pub(crate) fn check_state(&self, index: usize, lsn: Lsn, state: &LogState) {
        assert_eq!(
            *state,
            self.truth.state(lsn),
            "I4: node {index} has another log state at {lsn}"
        );
    }

    /// A replica is about to drop its log above `end`, or all it has.
    pub(crate) fn check_drop(&self, index: usize, end: Option<Lsn>) {
        let node = &self.nodes[index];
        let config = &self.masters.config;
        if !config.isr.contains(&node.id) || self.masters.live().is_none() {
            return;
        }
        // What went on after a loss is one log, whatever the mode: until others have it, it is not wiped.
        let only = config.isr.len() == 1 && end.is_none();
        if config.durability == Durability::SyncQuorum && !only {
            if self.loss_pending() {
                return;
            }
            let keeps = end.is_some_and(|end| end >= self.truth.newest());
            return self.check_voters((!keeps).then_some(node.id));
        }
        let Some(end) = end else {
            panic!("I6: {} is in sync in epoch {} and is wiped", node.id, config.epoch);
        };
        let newest = self.truth.everywhere;
        if self.loss_pending() {
            return;
        }
        assert!(end >= newest, "I2: {} is in sync and cut to {end} of {newest}", node.id);
    }

    /// What a replica promised is never taken back.
    pub(crate) fn check_kept(&self, index: usize, kept: &Kept) {
        let before = &self.nodes[index].disk.shadow.kept;
        assert!(kept.fenced >= before.fenced, "I7: the fenced epoch went back");
        assert!(
            kept.loss_generation >= before.loss_generation,
            "I7: the loss generation went back"
        );
    }

    /// A store was opened: it holds all that it had confirmed, nothing that was never given to it,
    /// and takes nothing for committed that was not.
    pub(crate) fn check_opened(&self, index: usize, opened: &Opened) {
        let shadow = &self.nodes[index].disk.shadow;
        self.check_kept(index, &opened.kept);
        if opened.kept.incomplete.is_some() {
            return;
        }
        let rotted = opened.kept.doubtful && self.was_struck(index);
        assert!(
            opened.durable >= shadow.durable.max(shadow.written) || rotted,
            "I2: node {index} opens with {} of {}, of which it had written {}",
            opened.durable,
            shadow.durable,
            shadow.written
        );
        let end = shadow.end();
        assert!(opened.durable <= end, "I4: node {index} opens with {} of {end}", opened.durable);
        for header in &opened.uncommitted {
            let known = shadow.get(header.lsn).map(|(header, _)| header);
            assert_eq!(known, Some(header), "I4: node {index} opens with another entry");
        }
        if self.outdated(index) {
            return;
        }
        let newest = self.truth.newest();
        if opened.committed > newest && opened.committed <= self.truth.inherited {
            return;
        }
        assert!(
            opened.committed <= newest,
            "I5: node {index} takes {} for committed, of {newest}",
            opened.committed
        );
        self.check_state(index, opened.committed, &opened.state);
    }

    /// A refusal reaches the run that it is for: which epoch does it tell of?
    pub(crate) fn note_told(&mut self, index: usize, input: &Input) {
        let Input::FromReplica { lineage, message: ToPrimary::Refused { fenced, config, .. } } =
            input
        else {
            return;
        };
        let now = self.now;
        let node = &mut self.nodes[index];
        let me = node.replica.as_ref().map(|replica| replica.view(node.clock(now)).me);
        // A replica that left the list refuses all epochs there are: that is no newer one.
        let goes = *fenced == Epoch(u64::MAX) && self.masters.live().is_some();
        if Some(lineage.to) == me && !goes {
            let named = config.as_ref().map_or(Epoch(0), |config| config.epoch);
            node.told_of = node.told_of.max(*fenced).max(named);
        }
    }

    /// Something is answered: not by a primary that was told of a newer epoch.
    pub(crate) fn check_told(&self, index: usize) {
        let node = &self.nodes[index];
        let Some(view) = node.replica.as_ref().map(|r| r.view(node.clock(self.now))) else {
            return;
        };
        assert!(
            view.epoch >= node.told_of,
            "I1: node {index} answers in epoch {} after a refusal told it of epoch {}",
            view.epoch,
            node.told_of
        );
    }

    /// A primary answers a read: nobody may be ready to serve in a newer epoch, for it could have
    /// committed over what was read.
    pub(crate) fn check_read(&self, index: usize) {
        let view = |node: &super::node::Node| {
            node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)))
        };
        let Some(mine) = view(&self.nodes[index]) else { return };
        for (other, node) in self.nodes.iter().enumerate().filter(|(other, _)| *other != index) {
            let newer = view(node).filter(|view| {
                view.role == RoleView::Primary && view.ready && view.epoch > mine.epoch
            });
            if let Some(newer) = newer {
                panic!(
                    "I1: node {index} answers a read in epoch {} while node {other} is ready in \
                     epoch {}",
                    mine.epoch, newer.epoch
                );
            }
        }
    }

    /// A primary that still waits for promises it made lets nobody join and hands nothing over.
    pub(crate) fn check_proposal(&self, index: usize, proposal: &Proposal) {
        let node = &self.nodes[index];
        let ready = node.replica.as_ref().is_some_and(|r| r.view(node.clock(self.now)).ready);
        let waits = match &proposal.change {
            IsrChange::Join { .. }
            | IsrChange::HandOver { .. }
            | IsrChange::Resized { .. }
            | IsrChange::KeepSize { .. } => true,
            IsrChange::Leave { .. } | IsrChange::Burn | IsrChange::Yield { .. } => false,
        };
        let (change, epoch) = (&proposal.change, proposal.epoch);
        assert!(ready || !waits, "I1: node {index} proposes {change} in epoch {epoch} unready");
    }

    /// A primary answers a write.
    pub(crate) fn check_write(&self, tag: RequestTag) {
        assert!(self.truth.tags.contains_key(&tag), "I2: {tag:?} is answered uncommitted");
    }
}

//! Which replicas are replaced, moved or dropped, one small step at a time.
//!
//! Level-triggered: [`look`] compares what a volume lists with what it should, and names the next
//! step. The order of the steps is what keeps the data: a new replica is listed first; it is
//! rebuilt and joins the in-sync set, which its primary proposes; only then does the one leave in
//! whose place it is; and only from outside of the in-sync set does that one leave the list. A
//! master that dies in between leaves nothing but a state from which the next one goes on.

use std::collections::{BTreeMap, BTreeSet};

use super::command::Command;
use super::detector::Detector;
use super::placement::{can_hold, free_bytes, placeable_bytes, takes_new};
use super::refusal::beside_low;
use super::state::{Assignment, Durability, Duty, Fate, Registration, State, Volume, Wish};
use crate::bugs::{Bug, on};
use crate::replication::quorum::majority;
use crate::types::{Epoch, Millis, NodeId, ReplicaId, VolumeId};

/// Volumes that may have a replica more than they want at a time: each is a copy of a whole volume
/// over the network.
const AT_ONCE: usize = 8;

/// Something to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// List a fresh replica.
    Add {
        /// Of which volume.
        volume: VolumeId,
        /// Where.
        node: NodeId,
    },
    /// Take a replica off the list.
    Remove {
        /// Of which volume.
        volume: VolumeId,
        /// The epoch that must still be in force.
        expect_epoch: Epoch,
        /// Which.
        replica: ReplicaId,
    },
    /// Tell the primary what to propose.
    Wish {
        /// Of which volume.
        volume: VolumeId,
        /// What.
        wish: Wish,
    },
    /// Forget a node that was removed.
    Forget {
        /// Which.
        node: NodeId,
    },
}

impl Step {
    /// The command that takes it. `fresh` is the id of the replica that it lists, if it lists one:
    /// no replica ever had it. `overcommit_percent`: how much of a node's capacity volumes may
    /// claim.
    pub fn command(self, fresh: ReplicaId, overcommit_percent: u32) -> Command {
        match self {
            Step::Add { volume, node } => {
                Command::AddReplica { volume, replica: fresh, node, overcommit_percent }
            }
            Step::Remove { volume, expect_epoch, replica } => {
                Command::RemoveReplica { volume, expect_epoch, replica }
            }
            Step::Wish { volume, wish } => Command::SetWish { volume, wish },
            Step::Forget { node } => Command::ForgetNode { node },
        }
    }
}

/// What is to be done for a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// The next step; `None` if it waits for something, or all is as it should be.
    pub step: Option<Step>,
    /// What goes on or what it waits for, in words; empty if all is as it should be.
    pub reason: String,
}

/// Why a replica is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Ordered,
    Drained,
    Removed,
    Gone,
    Surplus,
}

impl Why {
    fn words(self) -> &'static str {
        match self {
            Why::Ordered => "as ordered",
            Why::Drained => "its node is drained",
            Why::Removed => "its node is removed",
            Why::Gone => "it has been away for too long",
            Why::Surplus => "there is one more than wanted",
        }
    }
}

/// The steps that can be taken now, at most one for each volume.
pub fn steps(state: &State, detector: &Detector, now: Millis, overcommit: u32) -> Vec<Step> {
    let moving = |v: &&Volume| v.replicas.len() > v.spec.replicas as usize;
    let mut room = AT_ONCE.saturating_sub(state.volumes().values().filter(moving).count());
    let mut steps = Vec::new();
    for volume in state.volumes().values() {
        let Some(step) = look(state, detector, now, volume, overcommit).step else { continue };
        if matches!(step, Step::Add { .. }) {
            if room == 0 {
                continue;
            }
            room -= 1;
        }
        steps.push(step);
    }
    let removed = state.nodes().keys().filter(|node| state.duty(**node) == Some(Duty::Removed));
    steps.extend(
        removed
            .filter(|node| state.replicas_on(**node) == 0 && !detector.is_heard(now, **node))
            .map(|node| Step::Forget { node: *node }),
    );
    steps
}

/// What is to be done for a volume. `overcommit`: how much of a node's capacity volumes may claim,
/// in percent.
pub fn look(
    state: &State,
    detector: &Detector,
    now: Millis,
    volume: &Volume,
    overcommit: u32,
) -> Outlook {
    let Some(assignment) = &volume.assignment else { return Outlook::default() };
    let view = Look { state, detector, now, volume, assignment };
    let going = view.going();
    let wanted = volume.spec.replicas as usize;
    let staying = volume.replicas.len() - going.len();
    let place = if staying < wanted { view.place(&going, overcommit) } else { None };
    let stuck = staying < wanted && place.is_none();
    let leaves = view.leaves(&going, stuck);
    let low = if stuck { view.fit_but_low(&going, overcommit) } else { 0 };
    let reason = view.reason(&going, stuck, low, &leaves);
    let wish = view.wish(&going, &leaves);
    let step = if let Some(node) = place {
        Some(Step::Add { volume: volume.id, node })
    } else if wish != volume.wish {
        Some(Step::Wish { volume: volume.id, wish })
    } else {
        let out = leaves.iter().find(|id| !assignment.isr.contains(id));
        out.filter(|id| view.removable(**id)).map(|id| Step::Remove {
            volume: volume.id,
            expect_epoch: assignment.epoch,
            replica: *id,
        })
    };
    Outlook { step, reason }
}

struct Look<'a> {
    state: &'a State,
    detector: &'a Detector,
    now: Millis,
    volume: &'a Volume,
    assignment: &'a Assignment,
}

impl Look<'_> {
    fn going(&self) -> BTreeMap<ReplicaId, Why> {
        let mut going: BTreeMap<_, _> =
            self.volume.replicas.keys().filter_map(|id| Some((*id, self.why(*id)?))).collect();
        if going.is_empty()
            && self.volume.replicas.len() > self.volume.spec.replicas as usize
            && let Some(extra) = self.extra()
        {
            going.insert(extra, Why::Surplus);
        }
        going
    }

    fn why(&self, id: ReplicaId) -> Option<Why> {
        let replica = self.volume.replicas.get(&id)?;
        match (replica.fate, self.state.duty(replica.node)) {
            (Fate::Goes | Fate::GoesFirst, _) => return Some(Why::Ordered),
            (Fate::Stays, Some(Duty::Removed)) => return Some(Why::Removed),
            (Fate::Stays, Some(Duty::Drained)) => return Some(Why::Drained),
            (Fate::Stays, None) => {}
        }
        self.detector.is_gone(self.now, self.state, self.volume, id).then_some(Why::Gone)
    }

    /// The one to drop of more than are wanted: one that is not in sync, else one whose node holds
    /// most; never the primary.
    fn extra(&self) -> Option<ReplicaId> {
        let others = self.volume.replicas.iter();
        let others = others.filter(|(id, _)| **id != self.assignment.primary.id);
        others
            .max_by_key(|(id, replica)| {
                let apart = !self.assignment.isr.contains(id);
                (apart, self.state.committed_bytes(replica.node), **id)
            })
            .map(|(id, _)| *id)
    }

    /// Whether no more can be listed.
    fn is_full(&self) -> bool {
        self.volume.replicas.len() >= 2 * self.volume.spec.replicas as usize
    }

    /// Whether it takes a place on a full list for nothing: its node is gone for good, for all that is known,
    /// before it was in sync. [Replacements were lost one after the other before they were rebuilt, and there
    /// was no place left for one on a node that was there.]
    /// Whatever else it is to go for. [One whose node had been told to drain before it was lost was taken for one
    /// that would come back.]
    fn in_the_way(&self, id: ReplicaId) -> bool {
        let gone = self.detector.is_gone(self.now, self.state, self.volume, id);
        self.is_full() && gone && !self.volume.replicas[&id].joined
    }

    /// How many of those that stay are in which zone.
    fn zones(&self, going: &BTreeMap<ReplicaId, Why>) -> BTreeMap<Option<String>, u32> {
        let mut used: BTreeMap<Option<String>, u32> = BTreeMap::new();
        for (id, replica) in &self.volume.replicas {
            if !going.contains_key(id)
                && let Some(node) = self.state.nodes().get(&replica.node)
            {
                *used.entry(node.zone.clone()).or_default() += 1;
            }
        }
        used
    }

    /// The nodes that could hold a fresh replica if they have room: alive, without another of the volume, in
    /// a zone that may have it.
    fn candidates(&self, used: &BTreeMap<Option<String>, u32>) -> Vec<&Registration> {
        let able = self.state.nodes().values().filter(|n| {
            self.detector.is_heard(self.now, n.node)
                && self.state.duty(n.node).is_none()
                && !self.state.is_taken(self.volume, n.node)
                && can_hold(&self.volume.spec, n)
                && !(self.volume.spec.zone_spread && used.contains_key(&n.zone))
        });
        able.collect()
    }

    /// What may be placed on a node, in bytes. One that has not said yet which of its disks are low on
    /// room will have in half a second.
    fn free(&self, node: &Registration, overcommit: u32) -> u64 {
        let low = self.detector.low_disks(node.node);
        low.map_or(0, |low| placeable_bytes(self.state, node, low, overcommit))
    }

    /// The node for a fresh replica: of those with room the one in a zone with fewest of those that stay,
    /// then the one with most free space.
    fn place(&self, going: &BTreeMap<ReplicaId, Why>, overcommit: u32) -> Option<NodeId> {
        if self.is_full() {
            return None;
        }
        let used = self.zones(going);
        let rated = self.candidates(&used).into_iter().map(|n| (n, self.free(n, overcommit)));
        let fits = rated.filter(|(_, free)| *free >= self.volume.claimed_bytes());
        fits.min_by_key(|(n, free)| {
            let in_zone = used.get(&n.zone).copied().unwrap_or(0);
            (in_zone, std::cmp::Reverse(*free), n.node)
        })
        .map(|(n, _)| n.node)
    }

    /// How many nodes could hold a fresh replica but for disks that are low on room.
    fn fit_but_low(&self, going: &BTreeMap<ReplicaId, Why>, overcommit: u32) -> u32 {
        let size = self.volume.claimed_bytes();
        let candidates = self.candidates(&self.zones(going)).into_iter();
        let low = candidates.filter(|n| {
            free_bytes(self.state, n, overcommit) >= size && self.free(n, overcommit) < size
        });
        low.count() as u32
    }

    /// Those that can go now: as many others as the volume wants are in sync, on nodes that are
    /// heard; one that is listed and dead is no copy that anybody could count on. One that goes first, is in
    /// the way, or is on a disk that can't be used, needs no more than that `min_in_sync` others have what is acknowledged, if its place is
    /// on its own node.
    fn leaves(&self, going: &BTreeMap<ReplicaId, Why>, stuck: bool) -> BTreeSet<ReplicaId> {
        let spec = &self.volume.spec;
        let least = (spec.min_in_sync as usize).max(1);
        // What is acknowledged is on all of a set, but on a majority of voters.
        let copies = |members: usize| match spec.durability {
            Durability::SyncQuorum if on(Bug::FewVotersInPlace) => members,
            Durability::SyncQuorum => majority(members),
            Durability::SyncAll | Durability::BestEffort => members,
        };
        let mut left = self.assignment.isr.clone();
        let mut listed = self.volume.replicas.len();
        let mut leaves = BTreeSet::new();
        // The dead ones first, for they count for nobody; the primary last, for it can't leave as one.
        let rank = |id: &ReplicaId| {
            let primary = *id == self.assignment.primary.id;
            (primary, self.is_heard(*id) && self.assignment.isr.contains(id), *id)
        };
        let mut order: Vec<_> = going.keys().copied().collect();
        order.sort_by_key(rank);
        for id in &order {
            let mut without = left.clone();
            without.remove(id);
            let others = without.iter().filter(|id| self.is_copy(**id)).count();
            let way = self.in_the_way(*id) && listed > spec.replicas as usize;
            let in_place = self.volume.replicas[id].fate == Fate::GoesFirst || self.is_away(*id);
            let first = stuck
                && (in_place && self.can_be_made_anew(*id) || way)
                && listed >= spec.replicas as usize
                && others >= least
                && copies(without.len()) >= least;
            if first || others >= spec.replicas as usize {
                left = without;
                listed -= 1;
                leaves.insert(*id);
            }
        }
        leaves
    }

    /// Whether a member is there and has all of its copy. [One whose store had just closed counted as one of
    /// those that stay; another left, and the volume had too few.] One that may have lost the end of its log
    /// is none before it has got it again.
    fn is_copy(&self, id: ReplicaId) -> bool {
        let volume = self.volume.id;
        let whole = self.state.complete(volume, id).is_ok() && !self.state.is_doubtful(volume, id);
        self.is_heard(id) && whole
    }

    fn is_heard(&self, id: ReplicaId) -> bool {
        let node = self.volume.replicas.get(&id).map(|replica| replica.node);
        node.is_some_and(|node| self.detector.is_heard(self.now, node))
    }

    fn removable(&self, id: ReplicaId) -> bool {
        let listed = self.volume.replicas.len();
        let wanted = self.volume.spec.replicas as usize;
        let first = self.volume.replicas[&id].fate == Fate::GoesFirst || self.is_away(id);
        listed > wanted || first && listed == wanted
    }

    /// Whether its own node could make it anew. Once it left nothing would hold its place there while the disks
    /// are low on room. [A replica was replaced in its place on a disk that was nearly full. It was removed, no
    /// other was made, and the volume had one copy fewer until there was room.]
    fn can_be_made_anew(&self, id: ReplicaId) -> bool {
        let node = self.volume.replicas[&id].node;
        let low = self.detector.low_disks(node);
        let registered = self.state.nodes().get(&node);
        let able = |node: &Registration| can_hold(&self.volume.spec, node);
        let takes =
            registered.zip(low).is_some_and(|(node, low)| takes_new(node, low) && able(node));
        takes || on(Bug::GoesFirstForNothing)
    }

    /// Whether its node may hold it on a disk that can't be used: another disk there may hold the one that
    /// takes its place.
    fn is_away(&self, id: ReplicaId) -> bool {
        self.state.may_be_away(self.volume.replicas[&id].node, id)
    }

    fn wish(&self, going: &BTreeMap<ReplicaId, Why>, leaves: &BTreeSet<ReplicaId>) -> Wish {
        let primary = self.assignment.primary.id;
        // A primary that is away has nothing to hand over; the detector replaces it.
        let moves = going.get(&primary).is_some_and(|why| *why != Why::Gone);
        let good = |id: &ReplicaId| {
            *id != primary && self.assignment.isr.contains(id) && !going.contains_key(id)
        };
        let target = match moves {
            true => self.successor(good).or(self.volume.wish.primary.filter(good)),
            false => self.volume.wish.primary.filter(good),
        };
        let leave = leaves.iter().copied().filter(|id| *id != primary).collect();
        Wish { primary: target, leave }
    }

    /// The one to hand over to: what was wished stays wished; else the node with fewest primaries.
    fn successor(&self, good: impl Fn(&ReplicaId) -> bool) -> Option<ReplicaId> {
        let able = |id: &ReplicaId| {
            good(id) && self.state.promotable(self.volume.id, *id).is_ok() && self.is_heard(*id)
        };
        let able: Vec<_> = self.assignment.isr.iter().copied().filter(able).collect();
        let wished = self.volume.wish.primary.filter(|id| able.contains(id));
        let load = |id: &ReplicaId| {
            let node = self.volume.replicas[id].node;
            (self.state.primaries_on(node), *id)
        };
        wished.or_else(|| able.iter().copied().min_by_key(load))
    }

    fn reason(
        &self,
        going: &BTreeMap<ReplicaId, Why>,
        stuck: bool,
        low: u32,
        leaves: &BTreeSet<ReplicaId>,
    ) -> String {
        let beside = beside_low(low);
        let Some((id, why)) =
            going.iter().find(|(id, _)| !leaves.contains(id)).or(going.iter().next())
        else {
            let listed = self.volume.replicas.len();
            let wanted = self.volume.spec.replicas as usize;
            return if listed < wanted && stuck {
                format!(
                    "it has {listed} of {wanted} replicas, and no node has room for another{beside}"
                )
            } else {
                String::new()
            };
        };
        let node = self.volume.replicas[id].node;
        let what = format!("replica {id} on node {node} is to go ({})", why.words());
        if leaves.contains(id) {
            what
        } else if stuck && self.is_full() {
            let listed = self.volume.replicas.len();
            format!(
                "{what}, but {listed} are listed already, and some of them must come back first"
            )
        } else if stuck {
            let own =
                self.volume.replicas[id].fate == Fate::GoesFirst && !self.can_be_made_anew(*id);
            let registered = self.state.nodes().get(&self.volume.replicas[id].node);
            let has_key = registered.is_none_or(|node| can_hold(&self.volume.spec, node));
            let own = match (own, has_key) {
                (false, _) => "",
                (true, true) => "; its own is below the placement watermark",
                (true, false) => "; its own has no key for it",
            };
            let key = if self.volume.spec.encrypted { "a key and " } else { "" };
            format!(
                "{what}, but no other node that is alive has {key}room for one in its place{beside}{own}"
            )
        } else {
            let (in_sync, wanted) = (self.assignment.isr.len(), self.volume.spec.replicas);
            format!("{what} once {wanted} others are in sync; {in_sync} replicas are")
        }
    }
}

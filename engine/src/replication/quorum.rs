//! Who must have something: the one place where a primary's modes differ.
//!
//! `sync_all` asks every counted replica. `sync_quorum` asks a majority of the voters, and of every
//! list of voters that may be in force: while a proposal to add or remove one is undecided, of the
//! old list and of the new one.

use super::core::Core;
use super::peer::{Link, Peer};
use super::primary::Primary;
use crate::bugs::{Bug, on};
use crate::types::{Config, Durability, Lsn, Millis, ReplicaId};

/// A list of voters that may be in force.
#[derive(Clone, Copy, Debug)]
enum Voters {
    /// The configuration's.
    InForce,
    /// With one more, which was proposed to join.
    With(ReplicaId),
    /// Without one that was proposed to leave.
    Without(ReplicaId),
}

impl Voters {
    fn contains(self, config: &Config, replica: ReplicaId) -> bool {
        let listed = config.isr.contains(&replica);
        match self {
            Self::InForce => listed,
            Self::With(joins) => listed || replica == joins,
            Self::Without(leaves) => listed && replica != leaves,
        }
    }

    /// How many make a majority of the list.
    fn majority(self, config: &Config) -> usize {
        let listed = config.isr.len();
        let size = match self {
            Self::InForce => listed,
            Self::With(joins) => listed + usize::from(!config.isr.contains(&joins)),
            Self::Without(leaves) => listed - usize::from(config.isr.contains(&leaves)),
        };
        majority(size)
    }
}

/// How many of `voters` make a majority: more than half of the list, never of the replicas that the
/// volume should have.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether what some of `members` hold is all that was acknowledged, if `needed` of them had whatever
/// was: `sound` logs are known to be whole, and `doubtful` ones may have lost their end
/// ([`Kept::doubtful`](super::io::Kept::doubtful)).
///
/// It is if a sound one is among any `needed`. Else two doubtful ones must be, or all that there are: that
/// the same write rotted on two disks is as the loss of two copies.
pub(crate) fn tells_all(members: usize, needed: usize, sound: usize, doubtful: usize) -> bool {
    let two = members.min(members + 2 - needed.min(members));
    sound + needed > members || sound + doubtful >= two
}

impl Primary {
    /// Whether the voters' majority decides.
    pub(super) fn by_majority(&self) -> bool {
        match self.config.durability {
            Durability::SyncQuorum => true,
            Durability::SyncAll | Durability::BestEffort => false,
        }
    }

    /// Every list of voters that may be in force. A proposal is undecided until a newer epoch is
    /// known, and one epoch has one answer: at most one of them comes true.
    fn lists(&self) -> impl Iterator<Item = Voters> {
        let open = self.peers.values().filter_map(|peer| {
            let joins = peer.join_proposed.then_some(Voters::With(peer.id));
            joins.or(peer.leave_proposed.then_some(Voters::Without(peer.id)))
        });
        std::iter::once(Voters::InForce).chain(open.filter(|_| !on(Bug::OldVotersOnly)))
    }

    /// Whether this primary and the peers that `has` names are a majority of every list.
    pub(super) fn majority_has(&self, has: impl Fn(&Peer) -> bool) -> bool {
        self.lists().all(|list| self.majority_of(list, &has))
    }

    fn majority_of(&self, list: Voters, has: impl Fn(&Peer) -> bool) -> bool {
        let of_list = |peer: &&Peer| list.contains(&self.config, peer.id) && has(peer);
        1 + self.peers.values().filter(of_list).count() >= list.majority(&self.config)
    }

    /// Whether those have it, in the mode's sense, whom `has` names beside this primary.
    fn enough_have(&self, has: impl Fn(&Peer) -> bool) -> bool {
        if self.by_majority() {
            return self.majority_has(has);
        }
        self.peers
            .values()
            .filter(|peer| self.counts(peer))
            .all(|peer| self.has_kept(peer) && has(peer))
    }

    /// Whether the in-sync set is as large as the volume's least. A majority of the voters is large
    /// enough by itself.
    pub(super) fn large_enough(&self) -> bool {
        self.by_majority() || self.config.isr.len() as u64 >= u64::from(self.config.min_in_sync)
    }

    /// Whether the promises suffice that hold now: reads are answered under them.
    pub(super) fn leased(&self, now: Millis) -> bool {
        let spared = |peer: &Peer| on(Bug::JoinWithoutLease) && !self.config.isr.contains(&peer.id);
        self.enough_have(|peer| peer.leased_until > now || spared(peer))
    }

    /// Whether those take part that must: as [`Self::leased`], but through the pause at an epoch of
    /// the same tenure.
    pub(super) fn attended(&self, now: Millis) -> bool {
        self.enough_have(|peer| peer.takes_part(now))
    }

    /// What is committed by the acknowledgements in the epoch in force, this primary's own log
    /// included; `None` if those that must have said nothing yet.
    ///
    /// An acknowledgement counts only from a replica whose table has the epoch: so what an earlier
    /// epoch logged is committed only together with this epoch's start (Raft, section 5.4.2). [It
    /// was on a majority, and a replica with a newer table but without it was elected.]
    pub(super) fn acknowledged(&self, core: &Core) -> Option<Lsn> {
        let epoch = self.config.epoch;
        let acked = |peer: &Peer| {
            peer.acked_in(epoch).or(peer.acked.filter(|_| on(Bug::AcksBeforeRecorded)))
        };
        let own = core.log.durable;
        if !self.by_majority() {
            let counts = |peer: &&Peer| {
                let joins = !self.config.isr.contains(&peer.id);
                self.counts(peer)
                    && !on(Bug::AckBeforeMember)
                    && !(joins && on(Bug::CountJoinerLate))
            };
            let acked = |peer: &Peer| acked(peer).filter(|_| self.has_kept(peer));
            return self
                .peers
                .values()
                .filter(counts)
                .try_fold(own, |all, peer| Some(all.min(acked(peer)?)));
        }
        // The highest that a majority of every list reaches is one that somebody said.
        let said = self.peers.values().filter_map(acked).chain([own]);
        said.filter(|lsn| {
            *lsn <= own && self.majority_has(|peer| acked(peer).is_some_and(|acked| acked >= *lsn))
        })
        .max()
    }

    /// Whether a peer is suspected so that it must leave the set: never in `sync_quorum`, where a
    /// minority holds up nothing and a list that shrank would be a smaller majority.
    pub(super) fn drops_the_silent(&self) -> bool {
        !self.by_majority()
    }

    /// Whether a change of the voters may be proposed: everything that was logged before the epoch
    /// in force must be committed in it first. What an earlier primary committed is known here only
    /// from then on, and it is that which must be on a majority of the new list. [Two voters left in
    /// a row, and what three of five held was on one of three.]
    pub(super) fn is_settled(&self) -> bool {
        !self.by_majority() || self.settled == Some(self.config.epoch)
    }

    /// Whether the peer may be proposed to leave on the masters' wish. Of a voter's list what remains
    /// must have, as a majority, everything that is committed; from then on both lists count.
    pub(super) fn may_leave(&self, core: &Core, peer: &Peer) -> bool {
        if !self.config.isr.contains(&peer.id) || !self.by_majority() {
            return self.config.isr.contains(&peer.id);
        }
        let (epoch, committed) = (self.config.epoch, core.log.committed);
        let whole = |peer: &Peer| peer.acked_in(epoch).is_some_and(|acked| acked >= committed);
        let remains = self.majority_of(Voters::Without(peer.id), whole);
        self.is_settled() && remains
    }

    /// Whether the peer's copy may be wiped for a rebuild.
    ///
    /// One that a configuration lists must leave first, for a failover might choose it. A voter need
    /// not leave the list; its copy must be one that no majority is short of: it has nothing
    /// consistent, or it lacks what the others recycled, which was committed without it, or a
    /// majority without it has everything that is committed.
    pub(super) fn may_wipe(&self, core: &Core, peer: &Peer) -> bool {
        let listed = self.config.isr.contains(&peer.id);
        if peer.join_proposed || listed && !self.by_majority() {
            return on(Bug::BaseToMember);
        }
        let Some(acked) = peer.acked.filter(|_| listed) else { return true };
        let (epoch, committed) = (self.config.epoch, core.log.committed);
        let spare = || {
            self.majority_has(|other| {
                let whole = other.acked_in(epoch).is_some_and(|acked| acked >= committed);
                other.id != peer.id && whole
            })
        };
        core.log.retained > acked.next() || spare()
    }

    /// In-sync members that don't answer. A majority that answers lacks nobody.
    pub(super) fn lacking(&self, now: Millis) -> Vec<ReplicaId> {
        // A candidate's voters have told what they hold, and hear nothing until it is whole.
        let there = |peer: &Peer| {
            peer.takes_part(now) || self.by_majority() && matches!(peer.link, Link::Told)
        };
        if self.by_majority() && self.majority_has(there) {
            return Vec::new();
        }
        let listed = self.peers.values().filter(|peer| self.config.isr.contains(&peer.id));
        listed.filter(|peer| !there(peer)).map(|peer| peer.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_tell_all_has_a_sound_copy_of_each_write_or_two_others() {
        for members in 1..6usize {
            for needed in [members, majority(members)] {
                // Each member is silent, doubtful or sound; each set of holders is as large as needed.
                for answers in 0..3usize.pow(members as u32) {
                    let answer = |m: usize| answers / 3usize.pow(m as u32) % 3;
                    let count = |what| (0..members).filter(|m| answer(*m) == what).count();
                    let (doubtful, sound) = (count(1), count(2));
                    let shown = (0..1u32 << members)
                        .filter(|s| s.count_ones() as usize == needed)
                        .all(|set| {
                            let among = |what| {
                                (0..members)
                                    .filter(|m| set >> m & 1 == 1 && answer(*m) == what)
                                    .count()
                            };
                            among(2) > 0 || among(1) >= 2.min(members)
                        });
                    let told = tells_all(members, needed, sound, doubtful);
                    assert!(shown || !told, "{members} {needed} {sound} {doubtful}");
                    // Nothing more could be waited for.
                    assert!(told || sound + doubtful < members, "{members} {needed}");
                }
            }
        }
    }

    #[test]
    fn two_majorities_of_lists_that_differ_by_one_voter_meet() {
        for voters in 1..8 {
            assert!(2 * majority(voters) > voters, "{voters}");
            assert!(majority(voters) + majority(voters + 1) > voters + 1, "{voters}");
        }
    }
}

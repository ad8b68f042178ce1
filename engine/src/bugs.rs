//! Known bugs, put back one at a time to show that the tests bite. Only with the feature `bugs`.
//!
//! Each rule of the protocol stands for a failure that came without it. [`Bug`] names the rules that
//! can be taken out; the code of a rule asks [`on`] at its place. Without the feature [`on`] is a
//! constant `false` and nothing of this is left in the machine code; a program that ships refuses
//! to be built with it ([`PRESENT`]).
//!
//! A switch belongs to the thread that set it, so that threads can try different bugs.

/// Whether the feature `bugs` is on. What is shipped says
/// `const _: () = assert!(!sbk_engine::bugs::PRESENT, ...)`.
pub const PRESENT: bool = cfg!(feature = "bugs");

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// A rule that can be taken out. The documentation says which, and in brackets what goes wrong
        /// then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)*];

            /// Its name, as in the source.
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$name => stringify!($name),)*
                }
            }

            /// Its documentation.
            pub fn text(self) -> &'static str {
                match self {
                    $(Bug::$name => concat!($($doc),+).trim_ascii(),)*
                }
            }
        }
    };
}

bugs! {
    /// A volume's new size is published before its entry is committed. [A failover cut the entry, and clients
    /// had been told of a size that the volume did not have.]
    PublishUncommitted,
    /// A new primary publishes the size that it knows to be committed before it has committed what it found in
    /// its log. [Its predecessor had published another one, and clients lost what they were told they had.]
    PublishUnsettled,
    /// Until a smaller size is committed, requests are taken that reach beyond it. [A write beyond the end was
    /// logged behind the resize, and stood there when the volume grew again.]
    BeyondTheEnd,
    /// A volume shrinks without a look for data beyond its new end. [Acknowledged data was gone.]
    ShrinkUnseen,
    /// A volume shrinks although beyond its new end something was written while that was looked at. [Data that
    /// was acknowledged meanwhile was gone.]
    ShrinkUnderWrites,
    /// A primary logs in its epoch, however many epochs begin above what is committed. [Its table of epochs
    /// has no room for the next one, nor has that of any other replica, and the volume is closed for good.]
    LogInAnyEpoch,
    /// A replica whose log may have lost its end is promoted as any other in-sync one. [A bit of the
    /// last write flipped while its process was away. It took the write for torn, was preferred as the
    /// old primary's, and had cut what two others held and a client was told.]
    PromoteDoubtful,
    /// That a log may have lost its end is forgotten when its replica is opened once more. [It was
    /// promoted then.]
    ForgetDoubt,
    /// With written acknowledgements a replica counts as having all that it acknowledged, although its
    /// machine lost power. [It is promoted without the writes that were in its page cache.]
    TrustNewTail,
    /// With written acknowledgements the new primary of a failover is not asked to stand. [The old one,
    /// which has everything, is dropped; the new one loses power before it synced its log, and nobody
    /// in the set has what was acknowledged.]
    FailoverUnstood,
    /// With written acknowledgements a member leaves before what remains has synced its log. [What was
    /// acknowledged by all is in the page caches of fewer, which lose power.]
    LeaveUnsynced,
    /// With written acknowledgements writes are answered while a leave is proposed. [The leaver's late
    /// acknowledgement makes a write complete that is on no disk of those that remain.]
    AnswersDuringLeave,
    /// A replica whose sync failed keeps its tail. [The page cache drops what the sync failed to write;
    /// the replica is promoted without it.]
    FailedSyncKeepsTail,
    /// Every change of a configuration takes over the tails that nodes registered. [A replica that lost
    /// power counts as one that has kept all.]
    AnyChangeSetsTails,
    /// With written acknowledgements a flush waits only for what writes wait for. [Power goes
    /// everywhere, and what was flushed is gone.]
    FlushAtWritten,
    /// A follower tells a primary what it holds before all of that is synced. [It is cut to it, and for
    /// a while lacks what it had acknowledged as written; the primary loses power.]
    FactsUnsynced,
    /// A recovery makes a replica the only one left that has not stood. [What its old primary sent
    /// before it was given up is still under way, and wipes the last copy.]
    RecoverUnfenced,
    /// A `best_effort` member that lags is promoted and no loss is traced. [Clients go on as if all that
    /// they were told were there.]
    UntracedLoss,
    /// A `best_effort` primary acknowledges without a lease. [It was replaced behind its back, and what it
    /// acknowledges is lost already.]
    AckWithoutLease,
    /// A frontend's session of before a loss goes on after it. [Its client reads older data than it was
    /// told to have been written, and no error says so.]
    SessionOutlivesLoss,
    /// A returning replica of an older loss generation is compared by the tables only. [What it knows to
    /// be committed is lost, no cut may take it back, and it stays out for ever.]
    IgnoreLossGeneration,
    /// A replica that stood forgets it when its process restarts. [It acknowledges to the old primary,
    /// and loses power when it is the only one left in the set.]
    ForgetStood,
    /// A write is committed as soon as the primary has it. [The primary dies, a member that never
    /// got the write is promoted, and an acknowledged write is gone.]
    AckBeforeMember,
    /// A log that parted from the primary's is not cut. [It goes on with entries of a dead primary
    /// below those of the new one: one LSN, two contents.]
    SkipCut,
    /// A promoted replica serves at once. [The old primary, cut off from the masters but not yet
    /// out of its lease, answers a read with data that the new one has overwritten.]
    SkipLeaseWait,
    /// A joiner counts only once the masters list it. [What is committed between the proposal and
    /// its answer is not on the joiner, which can be promoted.]
    CountJoinerLate,
    /// What earlier runs promised is forgotten at a restart. [A replica promises, restarts, is
    /// promoted and serves beside the primary that holds its promise.]
    ForgetPromises,
    /// Reads are answered without a lease. [A primary that was replaced behind its back answers
    /// with what its successor has overwritten.]
    ReadWithoutLease,
    /// A read is answered although what it saw is not committed. [The write is lost in a failover,
    /// and a later read sees the older data.]
    ReadUncommitted,
    /// A request that is sent again is logged again. [It overwrites what was written since.]
    LogResentTwice,
    /// Writes to blocks that are being merged are not held up. [The merge writes back the rest of
    /// the block as it was before them.]
    MergesNotSerialised,
    /// The epoch table is not read at a restart. [A log is taken to agree only as far as it knows
    /// itself to be committed: acknowledged entries above are cut off a member.]
    ForgetEpochTable,
    /// A promise is answered before it is on the disk. [The replica restarts, forgets it, and
    /// follows the old primary again, which cuts what the new one has acknowledged.]
    FenceNotDurable,
    /// An epoch is recorded although the log below its start is not whole. [The table says that the
    /// log agrees with one that holds more.]
    RecordTableEarly,
    /// Entries of a newer epoch are not taken into the table. [A log with entries of epoch 3 says
    /// that they are of epoch 2, and agrees with a log that has others there.]
    ForgetObserved,
    /// A committed LSN is taken beyond the own durable end. [Extents get what a power cut takes out
    /// of the log.]
    CommitBeyondDurable,
    /// What the log implies is not computed anew after a cut. [A request whose entry was cut counts
    /// as logged: sent again, it is acknowledged and never logged.]
    KeepStateAtCut,
    /// A promise lasts no longer than the lease that it stands for. [The clock of the one who
    /// promised runs faster: it serves while the other's lease still runs.]
    NoDriftMargin,
    /// A member that was proposed to leave need not acknowledge any more. [The proposal fails, the
    /// member is promoted, and what was acknowledged meanwhile is gone.]
    LeaveUncounted,
    /// A joiner counts for writes, but its lease is not needed for reads. [It joins, is promoted by
    /// those who know, and the old primary still serves reads under the leases of the others.]
    JoinWithoutLease,
    /// Acknowledgements count although the member has not recorded the epoch. [What it acknowledges
    /// is, by its table, of another epoch: the next reconciliation cuts it.]
    AcksBeforeRecorded,
    /// A primary proposes joins while promises to earlier primaries run. [The joiner, which
    /// promised nobody, is promoted and serves beside the primary that holds the promise.]
    ProposeUnready,
    /// A joiner is proposed once it reached its session's target. [What was committed since the
    /// session began is not on it, and it can be promoted.]
    JoinBehind,
    /// An answer with an unchanged epoch, or none, ends a joiner's counting. [The abandoned proposal
    /// is committed late and makes a replica promotable that lacks acknowledged writes.]
    UnchangedIsAnswer,
    /// Logs are compared by the promised epoch, which both sides share, and by their ends. [A tail
    /// of a dead primary, no longer than the new one's log, is taken for a part of it.]
    CompareByFence,
    /// A lease runs from when the promise was heard. [The one who promised counts from when it was
    /// asked, and serves while the lease still runs.]
    LeaseFromReceipt,
    /// A replica that a configuration lists as in sync is rebuilt once its catch-ups have failed often
    /// enough, and wiped before it has left. [Its copy may be the only other one of what was
    /// acknowledged.]
    BaseToMember,
    /// A rebuild hands over the log's state as of the end, not of the base. [The WAL lane brings
    /// entries that the state counts as logged already.]
    BaseStateOfEnd,
    /// A recovery session's target follows the head. [Under load it never ends, and what the session
    /// is to reach is not what was decided.]
    WidenTarget,
    /// Messages of an epoch that is over are taken. [Two primaries write to one log.]
    TakeOlderEpoch,
    /// A restarted replica takes the primary's role for its earlier run. [Nobody waited out what the
    /// earlier run had promised or been promised.]
    ResumeAfterRestart,
    /// A primary goes on in a newer epoch of its own although there was another in between. [It does
    /// not reconcile with what that one wrote.]
    ContinueAlways,
    /// A primary that hears of a newer epoch goes on. [Its successor waits for promises only, and
    /// both serve.]
    ServeAfterRefusal,
    /// A log that was cut keeps its own table. [Epochs without entries, in which it had no part, are
    /// missing, so a later comparison finds less in common than there is, or more.]
    OwnTableAtCut,
    /// A late copy of the order to begin a rebuild is carried out. [The replica has joined since,
    /// and is wiped.]
    LateBeginRebuild,
    /// A rebuild does not hand over the log's state. [Promoted, the replica knows no session: it
    /// refuses requests that were logged, or logs them again.]
    StateNotHandedOver,
    /// Requests of a session that the log does not know are logged. [The log keeps no account of
    /// them: sent again, they take effect twice.]
    UnknownSession,
    /// A frontend's low-water mark passes requests whose fate it does not know. [Sent again, they
    /// are not told from new ones.]
    LowPassesUnknown,
    /// A request does not wait for an earlier one to its blocks that was given up. [The earlier one
    /// is still on its way and overwrites it.]
    GivenUpForgotten,
    /// A replica outside the in-sync set is promoted. [It lacks acknowledged writes.]
    PromoteOutsideIsr,
    /// A leave below `min_in_sync` is applied. [Writes are acknowledged with fewer copies than the
    /// volume demands.]
    ShrinkBelowMin,
    /// A proposal of a run that ended is applied. [Its tenure is over, and what it promised to count
    /// nobody counts any more.]
    ProposalOfEndedRun,
    /// A join is applied although another run of the replica is registered. [What the proposal
    /// speaks of may be gone.]
    JoinOfOtherRun,
    /// A configuration is changed without another epoch. [One epoch has two primaries, or two
    /// in-sync sets, and no replica can tell which is newer.]
    MintSameEpoch,
    /// A recovery session gets the id of an earlier one. [A late message of the earlier one ends or
    /// closes the later one.]
    ReuseSessionId,
    /// A failed sync of the WAL is ignored. [What was acknowledged as durable is not on the disk.]
    IgnoreFailedSync,
    /// What an opening reads counts as durable, though nothing was synced. [It was in the page cache
    /// only, was counted, and is gone after a loss of power.]
    TrustPageCache,
    /// A superblock that an opening reads counts as durable. [The promise in it was in the page cache
    /// only and is taken back by a loss of power.]
    TrustSlot,
    /// On a block device a page is mapped before what was written to it is durable. [A loss of power shows what another
    /// volume had there.]
    MapBeforeData,
    /// On a block device the rest of a page that is written to for the first time is left as it was. [It shows what
    /// another volume had there.]
    FreshPageAsFound,
    /// On a block device a chunk that was let go is used again before it is durable that it was. [After a crash one file's
    /// data stands in another.]
    ReuseBeforeDurable,
    /// A sync of a block device that fails is told to the one file that was synced. [The data of another file was lost with
    /// it, and its next sync succeeds.]
    FailedSyncOfOne,
    /// A checkpoint moves what is durable but not committed. [It is cut, but stays in the extents.]
    CheckpointUncommitted,
    /// A checkpoint writes region LSNs after the blocks. [A crash in between leaves blocks newer than
    /// the log is known to be committed: a cut takes them out of the log only.]
    RegionsLast,
    /// A checkpoint does not sync the extents. [The WAL that holds their blocks is recycled, and a
    /// loss of power takes the blocks.]
    ExtentsNotSynced,
    /// WAL segments are recycled before the superblock says how far the checkpoint came. [A crash in
    /// between: the log begins above the checkpoint that the superblock knows.]
    RecycleFirst,
    /// A base block is written over one that the WAL lane has brought since. [The older data stays.]
    BaseOverWal,
    /// The payload of a large write is not synced before the log refers to it. [A loss of power took it, and what
    /// was acknowledged is nowhere.]
    PayloadNotSynced,
    /// The payload of a large write goes to where its blocks lie. [It is not committed, and is cut; what the
    /// blocks had been is gone.]
    PlaceOverCurrent,
    /// A checkpoint writes a block to where a payload lies that an entry of the log refers to. [A replica that
    /// comes back can't be sent the entry.]
    WriteOverHeld,
    /// The payload of a large write goes to a second home of its blocks while the disk is short of room. [Clients
    /// that only overwrite fill it up.]
    PlaceOnShortDisk,
    /// Whatever table of regions an encrypted replica has is taken for the one that its superblock tells of.
    /// [Somebody put back blocks, stamps and table as they were, and the volume was as of then in places.]
    TrustAnyTable,
    /// The stamps of an encrypted replica are not compared with what they come to. [Somebody put back a block
    /// and its stamp, and it was read as it had been.]
    TrustAnyStamp,
    /// A step of the checkpoint that a crash broke is not done once more by the opening of an encrypted
    /// replica. [The next step was another one, and blocks that were right counted as damaged.]
    RedoNothing,
    /// A checkpoint leaves the stamp of the home that a block had. [Nobody can tell which of both counts.]
    KeepOldStamp,
    /// A rebuild does not wipe the extents. [Blocks of the old image stay where the base has zeros.]
    WipeKeepsExtents,
    /// A delta takes the extents for the image of the log's end, though a part of it is in the log only.
    /// [The log goes when the delta begins, and with it what a client was told to have written.]
    DeltaUncheckpointed,
    /// A broken delta is taken up from where the last session began, not the first. [What the first was
    /// to send and did not is on the primary only.]
    FromOfLast,
    /// A delta is taken up from an LSN of before a loss. [The same LSN is another entry since, and what
    /// the lost ones changed stays.]
    DeltaAcrossLoss,
    /// A delta is taken up by a primary that knows less to be committed than the receiver was sent.
    /// [It is left with blocks of entries that it does not know to be committed: a loss took them, and
    /// it was cut and kept them.]
    DeltaUnsettled,
    /// A delta does not send zeros. [What was trimmed while the receiver was away stays there.]
    DeltaElidesZeros,
    /// A delta sends the regions that were written after its base, not all since what the receiver
    /// holds. [What the receiver missed before is on the primary only.]
    DeltaOfBase,
    /// What is beyond a volume's end is not in the table of regions that a session hands over. [The
    /// volume grew again, and its new primary's delta left there what was before it shrank.]
    RegionsEndWithVolume,
    /// A delta or rebuild drops the log before the mark is on the disk. [A crash in between: the log
    /// begins above what the extents hold, or its replica can't be opened.]
    LogBeforeMark,
    /// The mark of a base lane goes before what it brought is synced. [A loss of power takes blocks of a
    /// replica that counts as complete.]
    MarkGoneEarly,
    /// A rebuild leaves no mark on the disk. [After a crash in its middle the torn image counts as
    /// complete.]
    IncompleteNotMarked,
    /// Base blocks are read as logged, not as committed. [What a failover cuts from the log stays in
    /// the extents of the receiver.]
    BaseUncommitted,
    /// A cut does not leave its intent in the superblock first. [A crash in its middle looks like
    /// damage.]
    CutNotMarked,
    /// A candidate takes its own log for the volume's without asking a majority of the voters. [It
    /// never got an acknowledged write, and cuts those that have it.]
    CandidateAlone,
    /// A candidate asks a majority and keeps its own log. [As before: asking alone helps nobody.]
    AdoptOwnLog,
    /// Candidates compare logs by their length alone. [The long tail of a dead primary, which nobody
    /// else has, wins over what was committed in a newer epoch.]
    RankByLength,
    /// A candidate's table has its epoch before its log is whole. [Elections prefer it from then on,
    /// to those that hold what was acknowledged.]
    RecordEpochEarly,
    /// A candidate waits out only its own promises. [The old primary reads on under those of the
    /// others.]
    ForgetVoterPromises,
    /// Only the list of voters in force counts while a change of it is undecided. [The change was
    /// committed, and what is acknowledged then is on no majority of the new list.]
    OldVotersOnly,
    /// Requests of an older attachment are taken. [The pod moved, and its ghost, which was frozen
    /// with writes in flight, overwrites what the new one wrote.]
    OlderAttachment,
    /// An attachment is answered before its entry is committed. [A failover cuts the entry: the
    /// holder before it goes on, while the new one was told that it has the volume.]
    AttachUncommitted,
    /// The attach generation is forgotten at a restart. [The ghost of the holder before last finds a
    /// primary that takes it.]
    ForgetAttachment,
    /// The attachment of a request is checked when it is received, not when its LSN is assigned. [A
    /// partial write that waited for its block's old data is logged behind the new holder's entry.]
    AttachAtReceipt,
    /// A session that comes again gets the generation in force, not its own. [A ghost that missed its
    /// end reconnects and is taken for the new holder.]
    GenerationOfNow,
    /// The frontend of an exclusive attachment that has ended opens another one by itself. [What the
    /// ghost had not sent yet overwrites what the new holder wrote.]
    ReattachByItself,
    /// What an exclusive attachment takes the volume from, or an operator ends, counts after a loss too.
    /// [The loss took the generation back and gave its number to another: a ghost that was told it
    /// before takes the volume from that one.]
    AttachAcrossLoss,
    /// A failover drops voters that are not heard. [What remains is a majority by itself, and never
    /// had the write.]
    FailoverDropsVoters,
    /// A primary whose node says that it holds no complete image stays the primary. [It was wiped as
    /// a voter and named before the masters knew; it refuses the role, and nobody else has it.]
    KeepTornPrimary,
    /// A primary goes on answering after it has proposed to hand its role over. [Its successor does
    /// not wait for what was promised to it, and both serve.]
    AnswersAfterHandover,
    /// A primary goes on logging and acknowledging requests while it hands its role over. [In
    /// `best_effort` its successor never gets them, and no loss is traced.]
    LogsDuringHandover,
    /// A primary hands its role over before the successor holds its whole log. [In `best_effort` what
    /// it acknowledged is gone, and no loss is traced.]
    HandoverBehind,
    /// A handover waives every promise, not only those to the primary that hands over, and is proposed
    /// while others run. [A third replica serves beside the first.]
    HandoverWaivesAll,
    /// A handover whose outcome is unknown is taken for refused. [It is committed late, and both
    /// primaries serve.]
    UnknownHandoverIsNo,
    /// A recovery session's pin on the WAL goes at the end of its base lane, not at its close. [What the
    /// lane of the log must still bring, or bring again, is recycled, and the session fails.]
    DropPinEarly,
    /// A replica that is in sync is taken off the list. [It may be the only one that holds what was
    /// acknowledged, and its directory is removed.]
    UnlistInSync,
    /// A fresh replica is placed on a node that found one of the volume which is on no list. [The node
    /// keeps that one, and never makes the other.]
    PlaceBesideUnlisted,
    /// Where a replica is replaced in its place, every voter that stays counts as a copy. [What is
    /// acknowledged is on a majority of them only, and the directory goes that is one of too few.]
    FewVotersInPlace,
    /// A rotten block is repaired with what a member holds that is behind what was committed when the rot
    /// was found. [A voter that never got the last write gives what the block held before it, with a
    /// checksum that is right, and that is logged over it.]
    MendBehind,
    /// An entry that changes a rotten block does not end its repair. [What a member had read before is
    /// logged over what a client has written since.]
    MendOverNewer,
    /// An entry that changes a block does not end its repair from the primary's own copy. [What the primary had
    /// read for a scrub is logged over what a client has written since.]
    ScrubOverNewer,
    /// What a handover waives is waived in a later tenure too. [The primary of then serves again, and
    /// another that is promoted does not wait for what was promised to it.]
    WaiverOutlives,
    /// Writes that take new space are logged while a disk of those that must store them is short of room. [It
    /// fills up, and its store stops.]
    GrowthOnShortDisk,
    /// A new primary takes the room of members that have told nothing yet for ample. [What it logs until then
    /// fills a disk that its predecessor had spared.]
    RoomUnasked,
    /// A late word of a member's room is believed. [The clients' writes fill a disk that has said since that it
    /// is short of room.]
    LateWordOfRoom,
    /// A partial write that was merged while there was room is logged without another look. [It takes new space
    /// on a disk that has run short of it.]
    MergeTakesRoom,
    /// Replicas are placed on disks that are low on room. [What they are sent fills the disk, and all volumes on
    /// it come to wait for room.]
    PlaceOnLowDisk,
    /// A replica that is to be replaced in its place leaves while its node is low on room. [It is removed, no other
    /// is made, and the volume has one copy fewer until there is room.]
    GoesFirstForNothing,
    /// Log that has been kept for long enough is let go though a session needs it. [A replica that was being brought
    /// what it had missed has to take all that changed instead, and the same befalls it again.]
    AgeOverPins,
    /// Once something has been kept for long enough, all that is in the extents by then is let go with it. [A replica
    /// that was away for a moment can't be brought what it missed.]
    AgeOfNewest,
    /// Zeros that an entry wrote count as data until its checkpoint. [A write to them was let through on a disk that
    /// was short of room, and took new space.]
    LoggedZerosAreData,
    /// What an entry wrote counts as holes if its first block is zeros. [Clients that copy leave the rest out, and
    /// a volume shrinks to where it begins.]
    LoggedDataIsHole,
    /// A node makes a replica anew whose disk has failed, under its name. [It is in sync, or was, and is believed to
    /// hold what it held.]
    MakeLostAnew,
    /// A replica that is to be removed from a disk that can't be used keeps its node from holding another. [The disk
    /// never is back, and the volume has one copy fewer for good.]
    FailedDiskTakesNode,
    /// A primary that its node does not have open any more stays one while the node is heard. [Its disk has failed,
    /// and the volume is served by nobody.]
    KeepClosedPrimary,
}

/// Whether the bug is put back, in this thread.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub const fn on(_: Bug) -> bool {
    false
}

#[cfg(feature = "bugs")]
mod switch {
    use std::cell::Cell;
    use std::marker::PhantomData;

    use super::Bug;

    thread_local! {
        static ON: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether the bug is put back, in this thread.
    pub fn on(bug: Bug) -> bool {
        ON.get() == Some(bug)
    }

    /// Puts a bug back in this thread until the guard goes.
    ///
    /// # Panics
    /// If one is back already: the run would not tell which of the two was found.
    pub fn put_back(bug: Bug) -> Guard {
        let before = ON.replace(Some(bug));
        assert_eq!(before, None, "{bug:?}: a bug is put back already");
        Guard { this_thread: PhantomData }
    }

    /// Takes the bug out again when dropped.
    #[derive(Debug)]
    #[must_use = "the bug is back only as long as this lives"]
    pub struct Guard {
        this_thread: PhantomData<*const ()>,
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            ON.set(None);
        }
    }
}

#[cfg(feature = "bugs")]
pub use switch::{Guard, on, put_back};

#[cfg(test)]
mod tests {
    use super::*;

    /// The switch is a constant: the compiler would refuse this if it asked anything at run time.
    #[cfg(not(feature = "bugs"))]
    const _: () = assert!(!PRESENT && !on(Bug::AckBeforeMember));

    #[test]
    fn a_bug_is_back_only_with_the_feature_and_a_guard_and_in_its_thread() {
        assert!(Bug::ALL.iter().all(|bug| !on(*bug)));
        #[cfg(feature = "bugs")]
        {
            let guard = put_back(Bug::SkipCut);
            assert!(on(Bug::SkipCut) && !on(Bug::AckBeforeMember));
            #[expect(clippy::disallowed_methods, reason = "the switch is about threads")]
            let elsewhere = std::thread::spawn(|| on(Bug::SkipCut)).join();
            assert!(matches!(elsewhere, Ok(false)));
            drop(guard);
            assert!(!on(Bug::SkipCut));
        }
    }

    #[test]
    fn every_bug_says_which_rule_goes_and_what_comes_of_it() {
        for bug in Bug::ALL {
            let text = bug.text();
            assert!(text.contains(" [") && text.ends_with(".]"), "{bug:?}: {text}");
        }
    }
}

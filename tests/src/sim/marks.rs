//! What a run reached, and what was done to it, counted.

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$meta])* $variant,)+
        }

        impl $name {
            /// Their words, in order.
            pub(crate) const WORDS: &[&str] = &[$($word),+];
        }
    };
}

counted! {
    /// An interesting state that a run reached. A run of the fixed seeds must reach each.
    Mark {
        /// A primary logged nothing, for too many epochs began above what was committed.
        Crowded = "nothing logged for want of room for epochs",
        /// Writes that take new space waited for room on a disk.
        GrowthWaited = "growth held for want of room",
        /// They went on.
        GrowthWentOn = "growth let go with room",
        /// A block that holds something was overwritten meanwhile.
        OverwroteShort = "overwrite on a disk short of room",
        /// A replica was not placed, for all nodes that could have it were low on room.
        UnplacedLow = "no replica placed on disks low on room",
        /// A log was cut by one entry.
        CutOfOne = "cut of one entry",
        /// A log was cut by more.
        CutOfMany = "cut of several entries",
        /// A promoted replica waited for promises that it had made.
        LeaseWait = "lease wait at a promotion",
        /// A primary stepped down for a newer epoch.
        SteppedDown = "zombie primary refused",
        /// A paused primary went on after it was replaced.
        Zombie = "zombie primary resumed",
        /// The old primary's own replica was promoted again.
        OwnAgain = "restarted primary promoted again",
        /// A failover kept members that it could not reach, for `min_in_sync`.
        KeptSilent = "failover that may drop nobody",
        /// A join came after the failover that ended its tenure.
        JoinRaced = "join raced by a failover",
        /// A proposal at an epoch that was over.
        ProposalLate = "proposal refused for a newer epoch",
        /// A proposal whose outcome its primary did not learn.
        ProposalUnknown = "proposal with unknown outcome",
        /// A proposal that its primary gave up was committed by the next leader.
        ProposalRevived = "proposal committed by the next leader",
        /// A proposal was lost with its leader.
        ProposalLost = "proposal lost with its leader",
        /// An epoch was burned.
        Burn = "epoch burned",
        /// A node was told of an older configuration than it knew.
        StalePush = "push from a lagging master",
        /// A member left.
        Left = "member left",
        /// A replica joined.
        Joined = "replica joined",
        /// A replica caught up from the WAL.
        CatchUp = "catch-up",
        /// What the log refers to was moved to the image.
        ReferenceKept = "payload checkpointed by reference",
        /// What the log refers to was cut.
        ReferenceCut = "reference cut",
        /// Another replica was sent an entry whose payload the log refers to, from the disk.
        ReferenceFed = "entry fed by reference",
        /// A replica was opened with references in the log behind its checkpoint.
        ReferenceFound = "reference found by an opening",
        /// A replica was rebuilt.
        Rebuilt = "rebuild completed",
        /// A base block was read newer than the session's base.
        RebuildOvertaken = "rebuild overtaken by writes",
        /// A replica was opened in the middle of a rebuild.
        RebuildInterrupted = "rebuild interrupted",
        /// A replica that had fallen behind the WAL got what changed.
        Delta = "delta completed",
        /// A replica was opened in the middle of a delta.
        DeltaInterrupted = "delta interrupted",
        /// A delta that had broken was taken up by another session.
        DeltaTakenUp = "broken delta taken up",
        /// One was by another primary.
        DeltaTakenOver = "broken delta taken up by another primary",
        /// One was that a receiver could not take for what its primary knew to be committed.
        DeltaGivenUp = "delta given up for a rebuild",
        /// The volume had got another size while a replica was away that was sent a delta.
        DeltaResized = "delta across a resize",
        /// The sender had rotten blocks in regions that a delta left alone.
        DeltaPastRot = "delta past a rotten block",
        /// A delta brought zeros.
        DeltaZeros = "zeros sent in a delta",
        /// A part of a log was let go for its age.
        AgedOut = "log let go for its age",
        /// A session was brought what would have been, had it not needed it.
        AgedKept = "log kept beyond its age for a session",
        /// A delta began where the log was let go for its age.
        AgedDelta = "delta for log that was let go for its age",
        /// A base lane broke.
        LaneBroke = "base lane broken",
        /// A session lost its pin.
        PinLost = "pin lost",
        /// A session failed.
        SessionFailed = "recovery session failed",
        /// A catch-up of a replica that is in sync did not come on.
        MemberStalled = "catch-up of a member stalled",
        /// A frontend opened a stream where the primary is not.
        StaleStream = "stale stream refused",
        /// A stream took the place of another of its session.
        StreamReplaced = "stream replaced",
        /// An attachment ended for a newer one.
        AttachLost = "old attachment refused",
        /// A frontend's session was not known any more.
        SessionLost = "frontend session lost",
        /// A shared attachment was refused beside an exclusive one.
        Held = "shared attachment refused",
        /// Attachments ended in a later epoch than those before them.
        FencedAcross = "attachments ended across a failover",
        /// An operator ended all attachments.
        Detached = "attachments ended by the operator",
        /// A write was sent again that is in the log.
        Resent = "resent write found in the log",
        /// A partial write was merged.
        Merged = "partial write merged",
        /// A replica missed a part of its feed.
        Gap = "gap in a feed",
        /// A late copy of a question changed nothing.
        LateCopy = "late copy ignored",
        /// A message of an old epoch changed nothing.
        OldEpoch = "message of an old epoch refused",
        /// A message for another incarnation changed nothing.
        OldIncarnation = "message for an old incarnation refused",
        /// A completion of a log that was cut since changed nothing.
        OldGeneration = "completion of an old log ignored",
        /// What was written and not confirmed was gone after an opening.
        TailLost = "unconfirmed tail lost",
        /// What was written and not confirmed was there after an opening.
        TailKept = "unconfirmed tail kept",
        /// A node died with a batch under way.
        BatchInterrupted = "batch interrupted",
        /// A node died with a step of the checkpoint under way.
        CheckpointInterrupted = "checkpoint interrupted",
        /// A machine stopped in the middle of a cut.
        CutInterrupted = "cut interrupted",
        /// A machine stopped in the middle of a wipe.
        WipeInterrupted = "wipe interrupted",
        /// A machine stopped in the middle of a superblock's write.
        PersistInterrupted = "superblock write interrupted",
        /// A store was opened again after a failed sync.
        SyncFailed = "failed sync reopened",
        /// A store failed for want of space.
        DiskFull = "disk full",
        /// It failed so often for that, that it would have been retired for any other reason.
        OftenFull = "disk full again and again",
        /// A block did not match its checksum.
        Rotten = "damaged block found by a read",
        /// A block that a read found rotten was repaired from another replica.
        MendedForRead = "block repaired for a read",
        /// One that a partial write had to be merged with.
        MendedForMerge = "block repaired for a partial write",
        /// One that a rebuild was to send.
        MendedForBase = "block repaired for a rebuild",
        /// A block was written anew while it was being repaired.
        MendOvertaken = "repair ended by a newer write",
        /// No replica could give a block that rotted.
        NotMended = "block that nobody could give",
        /// A replica that was asked for a block found its own rotten too.
        AskedRotten = "block rotten at the replica that was asked",
        /// A follower's block that a scrub had found damaged was right again after a checkpoint.
        Scrubbed = "follower's damaged block repaired for a scrub",
        /// A replica was opened whose log may have lost its end.
        Doubtful = "log's end in doubt",
        /// It had lost what was acknowledged.
        EndRotten = "rotten end of a log",
        /// It is known to hold everything again.
        DoubtEnded = "doubt ended",
        /// One in doubt was promoted, for no other could be.
        DoubtfulPromoted = "replica in doubt promoted",
        /// A replica was not opened, for something of it was damaged.
        Damaged = "damaged replica refused",
        /// An operator had one replaced, and its directory is gone.
        DamagedReplaced = "damaged replica replaced",
        /// A part of a log that could not be read back was given up, for the extents have it.
        LogGivenUp = "unreadable log given up",
        /// A replica that was ordered away was not at its node, but one that the masters forgot was.
        RemovalBesideAnother = "removal of a replica whose place another one holds",
        /// A store failed so often that it was not opened again.
        Retired = "replica retired",
        /// A replica stood for a failover.
        Stood = "stood",
        /// An operator gave up members, and a replica that had stood went on.
        Recovered = "recovery of a volume",
        /// One did in `sync_quorum`, where no majority of the voters was left.
        RecoveredQuorum = "recovery in sync_quorum",
        /// One did in `best_effort`.
        RecoveredBestEffort = "recovery in best_effort",
        /// One did with written acknowledgements.
        RecoveredWritten = "recovery with written acknowledgements",
        /// A node that was given up never came back.
        RecoveredFromLost = "recovery from nodes that are lost for ever",
        /// A recovery was refused when it was applied.
        RecoveryRefused = "recovery refused as it was applied",
        /// A replica stood for a recovery that came to nothing, and its primary burned the epoch.
        StoodForNothing = "epoch burned for a replica that stood",
        /// What was under way from a primary that was given up came to a replica that had stood.
        FencedOff = "message kept from a replica that stood",
        /// A replica was refused for the tail that it lost.
        TailRefused = "refused for its boot id",
        /// A volume went on after every in-sync replica lost its tail.
        Salvaged = "site power loss promotion",
        /// A leave waited until those that stay had synced.
        LeaveSynced = "leave synced first",
        /// A replica whose store failed got another tail.
        TailRenewed = "tail id renewed",
        /// Every process was down at a time.
        AllDown = "all down at once",
        /// A primary handed its role over.
        HandedOver = "handover done",
        /// It did in `sync_quorum`.
        HandedOverQuorum = "handover in sync_quorum",
        /// It did in `best_effort`, and nothing was lost.
        HandedOverBestEffort = "handover in best_effort",
        /// It did because its process was about to end.
        HandedOverAtEnd = "handover before an orderly stop",
        /// A handover was given up before it was proposed.
        HandoverGivenUp = "handover given up before the proposal",
        /// The outcome of a handover was unknown, and its epoch was burned.
        HandoverBurned = "unknown handover ended by a burned epoch",
        /// The outcome of a handover was unknown, and it was committed after all.
        HandoverLate = "unknown handover committed after all",
        /// A replica was moved or replaced, and left the list.
        Moved = "replica moved",
        /// One was, on its own node.
        MovedInPlace = "replica replaced in its place",
        /// A replacement died while it was rebuilt.
        ReplacementDied = "replacement died in mid-rebuild",
        /// The disk of a primary failed for good.
        PrimaryDiskFailed = "primary's disk failed",
        /// A replica joined on a node that has another disk with the one whose place it got.
        JoinedBeside = "replica made anew beside a failed disk",
        /// As many as the volume wants were in sync while a disk was still gone.
        WholeWithout = "whole without a failed disk",
        /// A replica was there again with its disk.
        DiskBack = "replica back with its disk",
        /// A replica was removed whose disk had failed, and was back.
        AsideRemoved = "replica removed from a disk that is back",
        /// The primary failed over while replicas were to be moved.
        DrainRaced = "move raced by a failover",
        /// A replica that is in sync was not taken off the list.
        RemovalRefused = "removal of a member refused",
        /// A voter joined the list of voters.
        VoterAdded = "voter added",
        /// A voter left it.
        VoterRemoved = "voter removed",
        /// A node that was down while its replica was replaced came back and removed it.
        OldReplicaRemoved = "returned node's old replica removed",
        /// A node kept a replica that the masters don't know.
        Quarantined = "unknown replica kept",
        /// A machine stopped while it made a replica.
        CreateInterrupted = "create interrupted",
        /// A replica of a deleted volume was removed.
        Deleted = "deleted volume's replica removed",
        /// One was by a node that came back after the deletion.
        DeletedReturner = "deleted volume's returner cleaned up",
        /// A volume grew.
        Grown = "volume grown",
        /// A volume shrank.
        Shrunk = "volume shrunk",
        /// A shrink was taken back for data beyond the new end.
        SizeKept = "shrink refused for data beyond it",
        /// A size was refused, for another one was under way.
        ResizeRefused = "resize refused beside another",
        /// A wish for another size was taken back by an operator.
        ResizeTakenBack = "resize taken back",
        /// The primary failed over while another size was wished.
        ResizeRaced = "resize raced by a failover",
        /// The masters had no leader for longer than a failover takes.
        NoQuorum = "masters without a quorum",
    }
}

counted! {
    /// Something that was done to the cluster.
    Injected {
        MessageLost = "messages lost",
        MessageRepeated = "messages repeated",
        MessageSlow = "messages late",
        Partition = "partitions",
        OneWay = "one-way partitions",
        Flap = "flapping links",
        SlowLink = "slow links",
        Crash = "processes killed",
        PowerLoss = "machines without power",
        SiteLoss = "all at once",
        InOrder = "orderly restarts",
        Pause = "pauses",
        StopInIo = "stops within an I/O",
        IoError = "failed I/Os armed",
        Full = "full disks",
        Shortage = "disks short of room",
        Stall = "stalled disks",
        Hang = "disks that hang for long",
        Flip = "bit flips",
        FlipAtRest = "bit flips in logs, superblocks and tables",
        ClockJump = "clock jumps",
        LeaderChange = "leader changes",
        QuorumLoss = "quorum losses",
        Coup = "failovers without reason",
        Wish = "handovers wished",
        Resize = "sizes wished",
        Ending = "processes told to end",
        Ghost = "volumes moved from a live client",
        Move = "replicas moved by an operator",
        Drain = "nodes drained",
        RemoveNode = "nodes removed",
        Lost = "nodes lost for ever",
        DiskLost = "disks that failed for good",
        Delete = "volumes deleted",
    }
}

/// Counts of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    words: &'static [&'static str],
    counts: Vec<u64>,
}

impl Counts {
    pub(crate) fn marks() -> Self {
        Self { words: Mark::WORDS, counts: vec![0; Mark::WORDS.len()] }
    }

    pub(crate) fn injected() -> Self {
        Self { words: Injected::WORDS, counts: vec![0; Injected::WORDS.len()] }
    }

    pub(crate) fn count(&mut self, which: usize) {
        self.counts[which] += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// What was counted, in words, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.words.iter().copied().zip(self.counts.iter().copied())
    }
}

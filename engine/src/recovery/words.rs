//! Events, commands and reasons in words, for the trace that an operator reads.

use std::fmt;

use super::{Command, Event, FailureKind, IgnoredReason};

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::WalRecycled => "the WAL no longer holds what it needs",
            FailureKind::Transport => "a stream broke or the other side did not answer",
            FailureKind::StoreIo => "a disk refused",
            FailureKind::StartTimeout => "the receiver did not start in time",
            FailureKind::Invalidated => "it was called off",
            FailureKind::PinLost => "it lost its hold on the WAL to the bound on what is retained",
            FailureKind::Stalled => "the receiver answered, but did not come on",
            FailureKind::Unsettled => {
                "the receiver may hold newer blocks than are known to be committed here"
            }
            FailureKind::NoSpace => "the receiver's disk is short of room",
        })
    }
}

impl fmt::Display for IgnoredReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IgnoredReason::StaleEpoch => "of an epoch that is over",
            IgnoredReason::UnknownEpoch => "of an epoch that nobody named",
            IgnoredReason::UnknownReplica => "not a replica of the volume",
            IgnoredReason::StaleEndpoint => "of an address where it is not any more",
            IgnoredReason::StaleTransport => "of an earlier run of it",
            IgnoredReason::OldSession => "of a session that is over",
            IgnoredReason::UnknownSession => "of a session that never was",
            IgnoredReason::NotExpected => "nobody asked",
            IgnoredReason::Duplicate => "nothing new",
            IgnoredReason::Malformed => "it contradicts itself or what was said before",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Assignment { epoch, replicas, in_sync, .. } => {
                let (all, listed) = (replicas.len(), in_sync.len());
                write!(f, "epoch {epoch} has {all} other replicas, {listed} of them in sync")
            }
            Event::Endpoint { replica, endpoint, .. } => {
                write!(f, "{replica} moved to {endpoint}")
            }
            Event::Removal { replica, .. } => write!(f, "{replica} was removed from the volume"),
            Event::ProbeSucceeded { replica, endpoint, .. } => {
                write!(f, "{replica} answers at {endpoint}")
            }
            Event::ProbeFailed { replica, endpoint, .. } => {
                write!(f, "{replica} does not answer at {endpoint}")
            }
            Event::RecoveryFacts { replica, r, from, s, h, .. } => {
                match (r, from) {
                    (Some(r), _) => write!(f, "{replica} holds everything up to {r}")?,
                    (None, Some(from)) => {
                        write!(
                            f,
                            "{replica} held everything up to {from}, and a delta broke since"
                        )?;
                    }
                    (None, None) => write!(f, "{replica} holds no consistent image")?,
                }
                if s > h {
                    write!(f, "; this WAL holds nothing, the log ends at {h}")
                } else {
                    write!(f, "; this WAL holds {s} to {h}")
                }
            }
            Event::DurableAck { replica, lsn, .. } => {
                write!(f, "{replica} holds everything up to {lsn}")
            }
            Event::SessionDeferred { replica, session, .. } => {
                write!(f, "session {session} waits until {replica} has left the in-sync set")
            }
            Event::SessionPrepared { replica, session, .. } => {
                write!(f, "session {session} with {replica} is prepared")
            }
            Event::SessionStarted { replica, session, .. } => {
                write!(f, "session {session} with {replica} has started")
            }
            Event::SessionProgress { replica, session, achieved, .. } => {
                write!(f, "session {session} with {replica} is at {achieved}")
            }
            Event::SessionClosedCompleted { replica, session, achieved, .. } => {
                write!(f, "session {session} with {replica} is complete up to {achieved}")
            }
            Event::SessionClosedFailed { replica, session, kind, .. } => {
                write!(f, "session {session} with {replica} failed: {kind}")
            }
            Event::SessionInvalidated { replica, session, .. } => {
                write!(f, "session {session} with {replica} has stopped")
            }
            Event::FenceCompleted { replica, fenced, .. } => {
                write!(f, "{replica} acknowledged epoch {fenced}")
            }
            Event::FenceFailed { replica, fenced, .. } => {
                write!(f, "{replica} did not acknowledge epoch {fenced}")
            }
            Event::Tick => f.write_str("time passed"),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Probe { replica, endpoint, .. } => {
                write!(f, "ask {replica} at {endpoint} what it holds")
            }
            Command::StartCatchUp { replica, session, from, target, .. } => {
                write!(f, "catch-up of {replica} from {from} to {target} in session {session}")
            }
            Command::StartDelta { replica, session, from, target, .. } => {
                write!(f, "delta of {replica} from {from} up to {target} in session {session}")
            }
            Command::StartRebuild { replica, session, target, .. } => {
                write!(f, "rebuild of {replica} up to {target} in session {session}")
            }
            Command::InvalidateSession { replica, session, .. } => {
                write!(f, "stop session {session} with {replica}")
            }
            Command::FenceAtEpoch { epoch, replica, .. } => {
                write!(f, "have {replica} acknowledge epoch {epoch}")
            }
            Command::PublishHealthy { replica, .. } => write!(f, "{replica} is healthy"),
            Command::PublishDegraded { replica, reason, .. } => {
                write!(f, "{replica} takes no part: {reason}")
            }
        }
    }
}

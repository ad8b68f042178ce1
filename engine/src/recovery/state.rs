//! What the recovery engine knows of one replica, by domain: where it is, whether it answers, what
//! it holds, what is under way, what was told to others.

use serde::{Deserialize, Serialize};

use super::engine::{IgnoredReason, Params, decide};
use super::{FailureKind, TransportEpoch};
use crate::replication::message::RecoveryId;
use crate::types::{Lsn, Millis};

/// Whether a replica answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reach {
    /// Nobody asked yet.
    Unknown,
    /// Asked.
    Probing { since: Millis },
    /// Answered.
    Reachable { since: Millis },
    /// Did not answer, or broke off.
    Unreachable { retry_at: Millis, reason: String },
}

/// Whether the replica acknowledged the epoch as one that holds everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fence {
    Unasked,
    Asked { at: Millis },
    Acknowledged,
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Published {
    Healthy,
    Degraded { reason: String },
}

/// A decision, with the work that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing is missing.
    None,
    /// The WAL still has what is missing.
    CatchUp {
        /// The first entry to send.
        from: Lsn,
        /// The last one that the session must reach.
        target: Lsn,
    },
    /// The whole image.
    Rebuild {
        /// What the session must reach.
        target: Lsn,
    },
}

impl Kind {
    pub(super) fn target(self) -> Lsn {
        match self {
            Kind::None => Lsn(0),
            Kind::CatchUp { target, .. } | Kind::Rebuild { target } => target,
        }
    }
}

/// A session, from its decision to its close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) id: RecoveryId,
    pub(super) kind: Kind,
    pub(super) target: Lsn,
    pub(super) achieved: Option<Lsn>,
    pub(super) prepared: bool,
    pub(super) started: bool,
    pub(super) decided: Millis,
}

/// R, S and H as last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) r: Option<Lsn>,
    pub(super) s: Lsn,
    pub(super) h: Lsn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplicaState {
    pub(super) endpoint: String,
    /// Listed as in sync by the newest assignment.
    pub(super) in_sync: bool,
    pub(super) reach: Reach,
    pub(super) transport: Option<TransportEpoch>,
    pub(super) facts: Option<Facts>,
    /// Decided by a recycled WAL or a spent budget: stays until a rebuild is done, whatever later
    /// facts say.
    pub(super) rebuild_decided: bool,
    pub(super) failed_catch_ups: u32,
    pub(super) failures: u32,
    pub(super) session: Option<Session>,
    pub(super) fence: Fence,
    pub(super) published: Option<Published>,
}

/// A replica's recovery as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// What it does.
    pub mode: Mode,
    /// What the facts decide, if they are known.
    pub decision: Option<Kind>,
    /// The session that is under way.
    pub session: Option<SessionView>,
    /// R, as last told.
    pub r: Option<Lsn>,
    /// S.
    pub s: Option<Lsn>,
    /// H.
    pub h: Option<Lsn>,
    /// Why, in words.
    pub reason: String,
}

/// A session as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: RecoveryId,
    /// Catch-up or rebuild.
    pub kind: Kind,
    /// What it must reach.
    pub target_lsn: Lsn,
    /// What the receiver holds.
    pub achieved_lsn: Option<Lsn>,
}

/// What a replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing is known or under way.
    Idle,
    /// It is being brought back.
    Recovering,
    /// It holds everything and acknowledged the epoch.
    Healthy,
    /// It takes no part.
    Degraded,
}

impl ReplicaState {
    pub(super) fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            in_sync: false,
            reach: Reach::Unknown,
            transport: None,
            facts: None,
            rebuild_decided: false,
            failed_catch_ups: 0,
            failures: 0,
            session: None,
            fence: Fence::Unasked,
            published: None,
        }
    }

    /// What an earlier run told does not hold for the next one; what was decided does.
    pub(super) fn forget_run(&mut self) {
        self.reach = Reach::Unknown;
        self.transport = None;
        self.facts = None;
        self.fence = Fence::Unasked;
    }

    /// The replica takes no part any more until it answers again.
    pub(super) fn lose(&mut self, reason: &str, now: Millis, (pause, longest): (u64, u64)) {
        let pause = pause.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures += 1;
        self.session = None;
        self.facts = None;
        self.fence = Fence::Unasked;
        self.reach = Reach::Unreachable { retry_at: now.after(pause), reason: reason.to_owned() };
    }

    pub(super) fn note_facts(&mut self, r: Option<Lsn>, s: Lsn, h: Lsn) {
        self.facts = Some(Facts { r, s, h });
        self.failures = 0;
    }

    pub(super) fn note_durable(&mut self, lsn: Lsn) -> Result<(), IgnoredReason> {
        match &mut self.facts {
            Some(Facts { r: Some(r), h, .. }) if lsn > *r => {
                *r = lsn;
                *h = (*h).max(lsn);
                Ok(())
            }
            Some(_) | None => Err(IgnoredReason::Duplicate),
        }
    }

    pub(super) fn update_session(
        &mut self,
        change: impl FnOnce(&mut Session) -> bool,
    ) -> Result<(), IgnoredReason> {
        let changed = self.session.as_mut().is_some_and(change);
        if changed { Ok(()) } else { Err(IgnoredReason::Duplicate) }
    }

    /// The receiver confirmed the end of the session. The epoch is still to be acknowledged.
    pub(super) fn complete(&mut self, achieved: Lsn) -> Result<(), IgnoredReason> {
        let short = self.session.as_ref().is_none_or(|session| achieved < session.target);
        if short {
            return Err(IgnoredReason::Malformed);
        }
        self.session = None;
        self.rebuild_decided = false;
        self.failed_catch_ups = 0;
        self.failures = 0;
        // Entries that came after the target are on the feed: nothing else is missing.
        let s = self.facts.map_or(achieved, |facts| facts.s);
        self.facts = Some(Facts { r: Some(achieved), s, h: achieved });
        Ok(())
    }

    /// The session ended without its work done. What comes next depends on the kind; a transport
    /// error never means a rebuild, but catch-ups that never get there do in the end.
    pub(super) fn fail(&mut self, kind: FailureKind, now: Millis, params: &Params) {
        let catch_up =
            self.session.as_ref().is_some_and(|s| matches!(s.kind, Kind::CatchUp { .. }));
        if catch_up {
            self.failed_catch_ups += 1;
        }
        let reason = match kind {
            FailureKind::WalRecycled | FailureKind::PinLost => {
                self.rebuild_decided |= catch_up;
                "the WAL no longer holds what it misses"
            }
            FailureKind::Transport => "its recovery session broke off",
            FailureKind::StoreIo => "a disk failed in its recovery session",
            FailureKind::StartTimeout => "its recovery session did not start in time",
            FailureKind::Invalidated => "its recovery session was called off",
        };
        if self.failed_catch_ups >= params.catch_up_budget && !self.in_sync {
            self.rebuild_decided = true;
        }
        self.lose(reason, now, (params.probe_backoff_ms, params.probe_backoff_max_ms));
    }

    pub(super) fn decision(&self) -> Option<Kind> {
        let facts = self.facts?;
        if self.rebuild_decided {
            return Some(Kind::Rebuild { target: facts.h });
        }
        Some(decide(facts.r, facts.s, facts.h))
    }

    pub(super) fn deadline(&self, params: &Params) -> Option<Millis> {
        let reach = match self.reach {
            Reach::Unknown => None,
            Reach::Probing { since } => Some(since.after(params.probe_timeout_ms)),
            Reach::Reachable { since } => {
                self.facts.is_none().then(|| since.after(params.probe_timeout_ms))
            }
            Reach::Unreachable { retry_at, .. } => Some(retry_at),
        };
        let fence = match self.fence {
            Fence::Asked { at } => Some(at.after(params.fence_retry_ms)),
            Fence::Unasked | Fence::Acknowledged => None,
        };
        let start = self
            .session
            .as_ref()
            .filter(|session| !session.started)
            .map(|session| session.decided.after(params.start_timeout_ms));
        [reach, fence, start].into_iter().flatten().min()
    }

    pub(super) fn view(&self) -> ReplicaView {
        let (mode, reason) = match (&self.session, self.fence, &self.reach) {
            (Some(session), _, _) => (Mode::Recovering, describe(session)),
            (None, Fence::Acknowledged, _) => (Mode::Healthy, String::new()),
            (None, Fence::Asked { .. }, _) => (
                Mode::Recovering,
                "holds everything; its acknowledgement of the epoch is awaited".to_owned(),
            ),
            (None, Fence::Unasked, Reach::Unreachable { reason, .. }) => {
                (Mode::Degraded, reason.clone())
            }
            (None, Fence::Unasked, Reach::Unknown | Reach::Probing { .. }) => {
                (Mode::Idle, "asked whether it is there".to_owned())
            }
            (None, Fence::Unasked, Reach::Reachable { .. }) => {
                (Mode::Idle, "asked what it holds".to_owned())
            }
        };
        ReplicaView {
            mode,
            decision: self.session.as_ref().map(|s| s.kind).or_else(|| self.decision()),
            session: self.session.as_ref().map(|session| SessionView {
                id: session.id,
                kind: session.kind,
                target_lsn: session.target,
                achieved_lsn: session.achieved,
            }),
            r: self.facts.and_then(|facts| facts.r),
            s: self.facts.map(|facts| facts.s),
            h: self.facts.map(|facts| facts.h),
            reason,
        }
    }
}

fn describe(session: &Session) -> String {
    let what = match session.kind {
        Kind::None => "nothing",
        Kind::CatchUp { .. } => "catch-up",
        Kind::Rebuild { .. } => "rebuild",
    };
    let stage = match (session.started, session.achieved) {
        (false, _) => "about to start".to_owned(),
        (true, None) => "started".to_owned(),
        (true, Some(achieved)) => format!("at {achieved}"),
    };
    format!("{what} up to {}, {stage}", session.target)
}

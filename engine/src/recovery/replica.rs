//! What the engine knows of one replica, by domain: who and where it is, whether it answers, what
//! it holds, what is under way, what was told to others.

use serde::{Deserialize, Serialize};

use super::decision::{Kind, by_base, decide};
use super::{FailureKind, Params, TransportEpoch};
use crate::bugs::{Bug, on};
use crate::replication::message::RecoveryId;
use crate::types::{Lsn, Millis};

/// Who and where the replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) endpoint: String,
    /// The newest run that was met at the endpoint, by a probe or by its facts.
    pub(super) transport: Option<TransportEpoch>,
    /// Listed as in sync by the newest assignment.
    pub(super) in_sync: bool,
}

/// Whether the replica answers.
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

/// R (or from where a broken delta is taken up), S and H as last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) r: Option<Lsn>,
    #[serde(default)]
    pub(super) from: Option<Lsn>,
    pub(super) s: Lsn,
    pub(super) h: Lsn,
}

/// What decides between the facts and a base lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recovery {
    pub(super) facts: Option<Facts>,
    /// A catch-up found the WAL without what it needed, or a delta found that it can't be. Stays until
    /// a session is done, whatever later facts say: facts that looked good enough led here, and would
    /// again.
    pub(super) escalated: Option<Escalation>,
    /// Catch-ups that failed since the last session that completed or fence that was acknowledged.
    pub(super) failed_catch_ups: u32,
    /// Probes and sessions that failed since then; makes the pauses longer, decides nothing.
    pub(super) failures: u32,
}

/// Why a base lane, or a whole one, is decided although the facts alone would not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Escalation {
    WalRecycled,
    PinLost,
    CatchUpsFailed,
    /// A delta is not possible: all is sent.
    Unsettled,
}

/// How far the executor came with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// To be commanded.
    Due,
    /// Commanded.
    Commanded { at: Millis },
    /// The executor waits until the replica has left the in-sync set, however long that takes.
    Deferred,
    /// The executor holds what it needs.
    Prepared,
    /// The receiver takes part, and holds everything up to `achieved` if it said so.
    Running { achieved: Option<Lsn> },
}

/// A session, from its decision to its close. Its kind and target are fixed here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) id: RecoveryId,
    pub(super) job: Job,
    pub(super) target: Lsn,
    /// From when its receiver has time to take part.
    pub(super) timed: Millis,
    pub(super) stage: Stage,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    CatchUp { from: Lsn },
    Delta { from: Lsn },
    Rebuild,
}

/// What is under way. A session and an acknowledgement exclude each other by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Work {
    /// Nothing; if the facts are there, they decide.
    Undecided,
    /// It is being brought back.
    Session(Session),
    /// It holds everything, by its facts or by a completed close; its acknowledgement of the epoch
    /// is to be asked for (`None`) or awaited.
    Fencing { asked: Option<Millis> },
    /// It acknowledged.
    Healthy,
}

/// What was published last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Published {
    Healthy,
    Degraded { reason: String },
}

/// One replica, as the primary's recovery engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplicaState {
    pub(super) identity: Identity,
    pub(super) reach: Reach,
    pub(super) recovery: Recovery,
    pub(super) work: Work,
    pub(super) published: Option<Published>,
}

impl Session {
    pub(super) fn kind(&self) -> Kind {
        match self.job {
            Job::CatchUp { from } => Kind::CatchUp { from, target: self.target },
            Job::Delta { from } => Kind::Delta { from, target: self.target },
            Job::Rebuild => Kind::Rebuild { target: self.target },
        }
    }

    pub(super) fn achieved(&self) -> Option<Lsn> {
        match self.stage {
            Stage::Running { achieved } => achieved,
            Stage::Due | Stage::Commanded { .. } | Stage::Deferred | Stage::Prepared => None,
        }
    }

    /// When its receiver must have taken part at the latest.
    pub(super) fn start_deadline(&self, params: &Params) -> Option<Millis> {
        let patience = match self.job {
            Job::Delta { .. } => params.delta_start_timeout_ms,
            Job::CatchUp { .. } | Job::Rebuild => params.start_timeout_ms,
        };
        match self.stage {
            Stage::Due | Stage::Commanded { .. } | Stage::Prepared => {
                Some(self.timed.after(patience))
            }
            Stage::Deferred | Stage::Running { .. } => None,
        }
    }
}

impl ReplicaState {
    pub(super) fn new(endpoint: String, in_sync: bool) -> Self {
        Self {
            identity: Identity { endpoint, transport: None, in_sync },
            reach: Reach::Unknown,
            recovery: Recovery::default(),
            work: Work::Undecided,
            published: None,
        }
    }

    pub(super) fn session(&self) -> Option<&Session> {
        match &self.work {
            Work::Session(session) => Some(session),
            Work::Undecided | Work::Fencing { .. } | Work::Healthy => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.work {
            Work::Session(session) => Some(session),
            Work::Undecided | Work::Fencing { .. } | Work::Healthy => None,
        }
    }

    /// What an earlier run told does not hold for the next one. What was decided for good does,
    /// and so do the failures: another run of the same replica is no better than the last. The
    /// caller has called off a running session.
    pub(super) fn forget_run(&mut self) {
        self.reach = Reach::Unknown;
        self.identity.transport = None;
        self.recovery.facts = None;
        self.work = Work::Undecided;
    }

    /// The replica takes no part any more until it answers again. The caller has called off a
    /// session that the executor doesn't know to be over.
    pub(super) fn lose(&mut self, reason: &str, now: Millis, params: &Params) {
        let retry_at = now.after(params.backoff(self.recovery.failures));
        self.recovery.failures = self.recovery.failures.saturating_add(1);
        self.recovery.facts = None;
        self.work = Work::Undecided;
        self.reach = Reach::Unreachable { retry_at, reason: reason.to_owned() };
    }

    /// The running session ended without its work done. What comes next depends on the kind: a
    /// transport error by itself never means a base lane, but catch-ups that keep failing do in the
    /// end. A delta that fails is tried again as one, for whatever broke it would break a rebuild too,
    /// but where it can't be. What the engine or the executor called off, and what a disk has
    /// no room for, says nothing about catch-up and isn't counted. Either way the replica is asked again what it holds.
    pub(super) fn fail(&mut self, kind: FailureKind, now: Millis, params: &Params) {
        let Some(session) = self.session() else { return };
        let catch_up = match session.job {
            Job::CatchUp { .. } => true,
            Job::Delta { .. } | Job::Rebuild => false,
        };
        let (reason, escalation, counts) = match kind {
            FailureKind::WalRecycled => {
                ("the WAL no longer holds what it misses", Some(Escalation::WalRecycled), true)
            }
            FailureKind::PinLost => {
                ("its recovery session lost its hold on the WAL", Some(Escalation::PinLost), true)
            }
            FailureKind::Transport => ("its recovery session broke off", None, true),
            FailureKind::StoreIo => ("a disk failed in its recovery session", None, true),
            FailureKind::StartTimeout => ("its recovery session did not start in time", None, true),
            FailureKind::Stalled => ("its recovery session did not come on", None, true),
            FailureKind::Invalidated => ("its recovery session was called off", None, false),
            FailureKind::Unsettled => {
                ("it may hold what is not known to be committed", None, false)
            }
            FailureKind::NoSpace => ("its disk is short of room", None, false),
        };
        if matches!(session.job, Job::Delta { .. }) && kind == FailureKind::Unsettled {
            self.recovery.escalated = Some(Escalation::Unsettled);
        }
        if catch_up {
            self.recovery.escalated = self.recovery.escalated.or(escalation);
            self.count_failed_catch_up(u32::from(counts));
        }
        self.lose(reason, now, params);
    }

    pub(super) fn count_failed_catch_up(&mut self, by: u32) {
        self.recovery.failed_catch_ups = self.recovery.failed_catch_ups.saturating_add(by);
    }

    /// The receiver confirmed that it holds everything up to `achieved`, at least the target.
    /// Entries that came after the target are on the feed, so nothing else is missing but the
    /// acknowledgement of the epoch.
    pub(super) fn complete(&mut self, achieved: Lsn) {
        self.recovery.escalated = None;
        self.recovery.failed_catch_ups = 0;
        self.recovery.failures = 0;
        if let Some(facts) = &mut self.recovery.facts {
            (facts.r, facts.from) = (Some(achieved), None);
            facts.h = facts.h.max(achieved);
        }
        self.work = Work::Fencing { asked: None };
    }

    /// Why a base lane is decided whatever the facts say.
    ///
    /// A replica that is listed as in sync gets none for failed catch-ups: commits wait for
    /// it, so the WAL holds what it misses, and its copy may be one that can't be spared. Its
    /// catch-ups are retried until it leaves the list.
    pub(super) fn escalation(&self, params: &Params) -> Option<Escalation> {
        let spent = self.recovery.failed_catch_ups >= params.catch_up_budget;
        let spared = self.identity.in_sync && !on(Bug::BaseToMember);
        self.recovery.escalated.or((spent && !spared).then_some(Escalation::CatchUpsFailed))
    }

    /// What is decided now: by the session or acknowledgement that is under way, else by the facts.
    pub(super) fn decision(&self, params: &Params) -> Option<Kind> {
        match &self.work {
            Work::Session(session) => return Some(session.kind()),
            Work::Fencing { .. } | Work::Healthy => return Some(Kind::None),
            Work::Undecided => {}
        }
        let facts = self.recovery.facts?;
        match self.escalation(params) {
            Some(Escalation::Unsettled) => Some(Kind::Rebuild { target: facts.h }),
            Some(_) => Some(by_base(facts.r, facts.from, facts.h)),
            None => Some(decide(facts.r, facts.from, facts.s, facts.h)),
        }
    }

    /// When something is due for it.
    pub(super) fn deadline(&self, params: &Params) -> Option<Millis> {
        let reach = match self.reach {
            Reach::Unknown => None,
            Reach::Probing { since } => Some(since.after(params.probe_timeout_ms)),
            // It answered, but what it holds was never told.
            Reach::Reachable { since } => {
                let silent = self.recovery.facts.is_none();
                silent.then(|| since.after(params.probe_timeout_ms))
            }
            Reach::Unreachable { retry_at, .. } => Some(retry_at),
        };
        let work = match &self.work {
            Work::Session(session) => {
                let again = match session.stage {
                    Stage::Commanded { at } => Some(at.after(params.command_retry_ms)),
                    Stage::Due | Stage::Deferred | Stage::Prepared | Stage::Running { .. } => None,
                };
                [again, session.start_deadline(params)].into_iter().flatten().min()
            }
            Work::Fencing { asked } => asked.map(|at| at.after(params.fence_retry_ms)),
            Work::Undecided | Work::Healthy => None,
        };
        [reach, work].into_iter().flatten().min()
    }
}

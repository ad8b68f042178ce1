//! What an operator sees: derived from the state, never fed back into it.

use serde::{Deserialize, Serialize};

use super::Params;
use super::decision::Kind;
use super::replica::{Escalation, Job, Reach, ReplicaState, Session, Stage, Work};
use crate::replication::message::RecoveryId;
use crate::types::Lsn;

/// A replica's recovery as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// What it does.
    pub mode: Mode,
    /// What is decided for it, if its facts are known.
    pub decision: Option<Kind>,
    /// The session that is under way.
    pub session: Option<SessionView>,
    /// R, as last told.
    pub r: Option<Lsn>,
    /// S.
    pub s: Option<Lsn>,
    /// H.
    pub h: Option<Lsn>,
    /// Why, in words; empty for a healthy one.
    pub reason: String,
}

/// A session as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: RecoveryId,
    /// Catch-up, delta or rebuild.
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

pub(super) fn view(
    replica: &ReplicaState,
    stopping: Option<RecoveryId>,
    params: &Params,
) -> ReplicaView {
    let (mode, reason) = match (&replica.work, &replica.reach) {
        (Work::Session(session), _) => (Mode::Recovering, describe(session, replica, params)),
        (Work::Healthy, _) => (Mode::Healthy, String::new()),
        (Work::Fencing { .. }, _) => (
            Mode::Recovering,
            "holds everything; its acknowledgement of the epoch is awaited".to_owned(),
        ),
        (Work::Undecided, Reach::Unreachable { reason, .. }) => (Mode::Degraded, reason.clone()),
        (Work::Undecided, Reach::Unknown | Reach::Probing { .. }) => {
            (Mode::Idle, "asked whether it is there".to_owned())
        }
        (Work::Undecided, Reach::Reachable { .. }) => match stopping {
            Some(old) => (Mode::Idle, format!("waits until session {old} has stopped")),
            None => (Mode::Idle, "asked what it holds".to_owned()),
        },
    };
    ReplicaView {
        mode,
        decision: replica.decision(params),
        session: replica.session().map(|session| SessionView {
            id: session.id,
            kind: session.kind(),
            target_lsn: session.target,
            achieved_lsn: session.achieved(),
        }),
        r: replica.recovery.facts.and_then(|facts| facts.r),
        s: replica.recovery.facts.map(|facts| facts.s),
        h: replica.recovery.facts.map(|facts| facts.h),
        reason,
    }
}

fn describe(session: &Session, replica: &ReplicaState, params: &Params) -> String {
    let what = match session.job {
        Job::CatchUp { from } => format!("catch-up from {from} to {}", session.target),
        Job::Delta { from } => {
            let why = why_base(replica, params);
            format!("delta from {from} up to {}, because {why}", session.target)
        }
        Job::Rebuild => {
            let why = why_base(replica, params);
            format!("rebuild up to {}, because {why}", session.target)
        }
    };
    let stage = match session.stage {
        Stage::Due | Stage::Commanded { .. } => "about to start".to_owned(),
        Stage::Deferred if matches!(session.job, Job::Delta { .. }) => {
            "waits until it has left the in-sync set, and what it may hold is committed".to_owned()
        }
        Stage::Deferred => "waits until it has left the in-sync set".to_owned(),
        Stage::Prepared => "prepared".to_owned(),
        Stage::Running { achieved: None } => "started".to_owned(),
        Stage::Running { achieved: Some(achieved) } => format!("at {achieved}"),
    };
    format!("{what}: {stage}")
}

fn why_base(replica: &ReplicaState, params: &Params) -> String {
    match (replica.escalation(params), replica.recovery.facts) {
        (Some(Escalation::WalRecycled), _) => {
            "a catch-up found the WAL without what it misses".to_owned()
        }
        (Some(Escalation::PinLost), _) => "a catch-up lost its hold on the WAL".to_owned(),
        (Some(Escalation::CatchUpsFailed), _) => {
            format!("{} catch-ups failed", replica.recovery.failed_catch_ups)
        }
        (Some(Escalation::Unsettled), _) => {
            "what it was sent before may be newer than what is known to be committed".to_owned()
        }
        (None, Some(facts)) => match (facts.r, facts.from) {
            (Some(r), _) => format!("it holds up to {r} and the WAL begins at {}", facts.s),
            (None, Some(from)) => format!("a delta from {from} broke"),
            (None, None) => "it holds no consistent image".to_owned(),
        },
        (None, None) => "it is not known what it holds".to_owned(),
    }
}

//! What every call passes: is this member the leader, has it a majority, is what it reads new.
//!
//! A call never waits longer than [`QUORUM_WAIT`] for a majority. openraft's leader does not step
//! down by itself when it loses its followers, so the age of the last acknowledgement by a
//! majority is looked at first.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{BasicNode, ServerState};
use sbk_engine::authority::history::Note;
use sbk_engine::authority::{Accepted, Command, Refusal};
use sbk_master_client::{CAUSE_METADATA, LEADER_METADATA, REFUSAL_METADATA, cause};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::raft::{MemberId, Metrics, Raft};
use crate::state_machine::{Answer, Proposal};

/// Longest wait for a majority.
pub(crate) const QUORUM_WAIT: Duration = Duration::from_secs(3);
/// A leader whose majority was last heard longer ago has lost it, as far as it can know: the
/// others may have elected another one by now.
const QUORUM_FRESH_MS: u64 = 2_000;
/// Reads that may wait for one round.
const READS: usize = 1024;

/// Why a member can't answer a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GateError {
    /// Another member leads, or none.
    #[error("master {id} is not the leader; {}", match .leader {
        Some(leader) => format!("the leader is at {leader}"),
        None => "no leader is known".to_owned(),
    })]
    NotLeader { id: MemberId, leader: Option<String> },
    /// This member leads but a majority does not answer.
    #[error(
        "master {id} leads but can't reach a majority of the masters; nothing can be decided \
         until they are back, and what runs goes on"
    )]
    NoQuorum { id: MemberId },
    /// It was proposed, and whether it was committed is not known.
    #[error(
        "master {id} proposed it and got no majority in time: it may or may not be done. Ask \
         again; asking again is safe"
    )]
    OutcomeUnknown { id: MemberId, leader: Option<String> },
    /// This member stops, or its storage failed.
    #[error("master {id} is stopping")]
    Stopping { id: MemberId },
}

impl From<GateError> for Status {
    fn from(error: GateError) -> Self {
        let mut status = Status::new(Code::Unavailable, error.to_string());
        let (word, leader) = match error {
            GateError::NotLeader { leader, .. } => (cause::NOT_LEADER, leader),
            GateError::NoQuorum { .. } => (cause::NO_QUORUM, None),
            GateError::OutcomeUnknown { leader, .. } => (cause::OUTCOME_UNKNOWN, leader),
            GateError::Stopping { .. } => (cause::STOPPING, None),
        };
        tag(&mut status, CAUSE_METADATA, word);
        if let Some(leader) = leader {
            tag(&mut status, LEADER_METADATA, &leader);
        }
        status
    }
}

/// A refusal of the authority, as a status with its word.
pub(crate) fn refused(refusal: &Refusal) -> Status {
    refused_with(refusal.word(), refusal.to_string())
}

/// A refusal with a word of its own.
pub(crate) fn refused_with(word: &str, message: impl Into<String>) -> Status {
    let mut status = Status::new(Code::FailedPrecondition, message);
    tag(&mut status, REFUSAL_METADATA, word);
    status
}

/// Adds metadata; a value that HTTP can't carry is left out, the message says it too.
pub(crate) fn tag(status: &mut Status, key: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        status.metadata_mut().insert(key, value);
    }
}

/// The address at which a member is known.
pub(crate) fn address(metrics: &Metrics, id: MemberId) -> Option<String> {
    let node: &BasicNode = metrics.membership_config.membership().get_node(&id)?;
    Some(node.addr.clone())
}

/// The gate of one member. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    id: MemberId,
    raft: Raft,
    reads: mpsc::Sender<oneshot::Sender<Result<(), GateError>>>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate, and the task that batches its reads; the task ends with the last clone.
    pub(crate) fn new(id: MemberId, raft: Raft) -> (Self, impl Future<Output = ()> + Send) {
        let (reads, waiting) = mpsc::channel(READS);
        let gate = Self { id, raft, reads };
        let rounds = read_rounds(id, gate.raft.clone(), waiting);
        (gate, rounds)
    }

    /// Whether this member leads and a majority answered lately. Costs nothing.
    pub(crate) fn leading(&self) -> Result<(), GateError> {
        leading(self.id, &self.raft.metrics().borrow())
    }

    /// Returns once the state that is read next is as new as any that was answered before: this
    /// member led after the call began, and has applied all that was committed by then. Calls
    /// that wait at the same time share one round to the majority.
    pub(crate) async fn linearize(&self) -> Result<(), GateError> {
        self.leading()?;
        let (reply, answer) = oneshot::channel();
        let stopping = GateError::Stopping { id: self.id };
        self.reads.send(reply).await.map_err(|_| stopping.clone())?;
        answer.await.unwrap_or(Err(stopping))
    }

    /// Commits a command of the authority and returns what applying it said. `reason` is kept for
    /// people, with the time.
    pub(crate) async fn command(
        &self,
        command: Command,
        reason: &str,
    ) -> Result<Result<Accepted, Refusal>, GateError> {
        let note = Note { at_ms: unix_ms(), reason: reason.to_owned() };
        match self.propose(Proposal::Explained { command, note }).await? {
            Answer::Authority(response) => Ok(*response),
            Answer::Member(_) => unreachable!("an authority command is answered by the authority"),
        }
    }

    /// Commits a proposal and returns what applying it said.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<Answer, GateError> {
        self.leading()?;
        let id = self.id;
        match timeout(QUORUM_WAIT, self.raft.client_write(proposal)).await {
            Err(_) => Err(GateError::OutcomeUnknown { id, leader: None }),
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                // Either it was never proposed here, or it was, and this member lost the lead
                // before it was committed: openraft answers both like this.
                let leader = forward.leader_node.map(|node| node.addr);
                Err(GateError::OutcomeUnknown { id, leader })
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                unreachable!("a normal entry changes no membership: {error}")
            }
            Ok(Err(RaftError::Fatal(_))) => Err(GateError::Stopping { id }),
        }
    }
}

/// Milliseconds since 1970, for people only.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn leading(id: MemberId, metrics: &Metrics) -> Result<(), GateError> {
    if metrics.running_state.is_err() {
        return Err(GateError::Stopping { id });
    }
    if metrics.state != ServerState::Leader {
        let leader = metrics.current_leader.filter(|&leader| leader != id);
        return Err(GateError::NotLeader { id, leader: leader.and_then(|l| address(metrics, l)) });
    }
    let alone = metrics.membership_config.voter_ids().count() == 1;
    match metrics.millis_since_quorum_ack {
        _ if alone => Ok(()),
        Some(age) if age <= QUORUM_FRESH_MS => Ok(()),
        Some(_) | None => Err(GateError::NoQuorum { id }),
    }
}

/// Answers all reads that wait with one round to the majority, again and again.
async fn read_rounds(
    id: MemberId,
    raft: Raft,
    mut waiting: mpsc::Receiver<oneshot::Sender<Result<(), GateError>>>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, READS).await > 0 {
        let result = match timeout(QUORUM_WAIT, raft.ensure_linearizable()).await {
            Err(_) => Err(GateError::NoQuorum { id }),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => {
                Err(GateError::NoQuorum { id })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                let leader = forward.leader_node.map(|node| node.addr);
                Err(GateError::NotLeader { id, leader })
            }
            Ok(Err(RaftError::Fatal(_))) => Err(GateError::Stopping { id }),
        };
        for reply in batch.drain(..) {
            // A caller that went away has nothing to learn.
            reply.send(result.clone()).ok();
        }
    }
}

//! One member of the quorum: Raft, the state it applies, and the leader's memory of nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::{Accepted, Command, Refusal, State};
use sbk_engine::types::{Millis, NodeId};
use sbk_master_client::{CAUSE_METADATA, LEADER_METADATA, REFUSAL_METADATA, cause};
use sbk_proto::v1::HeartbeatRequest;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::raft::{MemberId, Raft};
use crate::state_machine::{Answer, Proposal, StateMachine};

/// How long a write or a linearizable read may take before the caller is told that there is no
/// quorum.
const PATIENCE: Duration = Duration::from_secs(3);

/// The leader's memory: who was heard, and what was said last.
#[derive(Debug)]
pub struct Leading {
    /// Suspicion.
    pub detector: Detector,
    /// Each node's last heartbeat.
    pub heartbeats: BTreeMap<NodeId, HeartbeatRequest>,
    leads: bool,
}

/// A member. Clones share it.
#[derive(Clone)]
pub struct Member {
    /// Its number.
    pub id: MemberId,
    /// Every member's address.
    pub peers: Arc<BTreeMap<MemberId, String>>,
    /// openraft.
    pub raft: Raft,
    /// The applied state.
    pub machine: StateMachine,
    leading: Arc<Mutex<Leading>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.id)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

/// `CLOCK_BOOTTIME` in milliseconds.
pub fn now() -> Millis {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Millis(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
}

fn with_metadata(mut status: Status, key: &'static str, value: &str) -> Status {
    if let Ok(value) = MetadataValue::try_from(value) {
        status.metadata_mut().insert(key, value);
    }
    status
}

/// A refusal as a status.
pub fn refused(refusal: &Refusal) -> Status {
    let status = Status::new(Code::FailedPrecondition, refusal.to_string());
    with_metadata(status, REFUSAL_METADATA, refusal.word())
}

fn unavailable(word: &str, message: String) -> Status {
    with_metadata(Status::unavailable(message), CAUSE_METADATA, word)
}

impl Member {
    /// A member around a started Raft.
    pub fn new(
        id: MemberId,
        peers: BTreeMap<MemberId, String>,
        raft: Raft,
        machine: StateMachine,
    ) -> Self {
        let leading = Leading {
            detector: Detector::new(DetectorParams::default()),
            heartbeats: BTreeMap::new(),
            leads: false,
        };
        let leading = Arc::new(Mutex::new(leading));
        Self { id, peers: Arc::new(peers), raft, machine, leading }
    }

    /// The leader's memory, for a short look.
    pub fn leading(&self) -> MutexGuard<'_, Leading> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this member believes to lead. Good for what a compare-and-set checks again.
    pub fn leads(&self) -> bool {
        self.raft.metrics().borrow().current_leader == Some(self.id)
    }

    fn not_leader(&self, leader: Option<MemberId>) -> Status {
        let addr = leader.filter(|id| *id != self.id).and_then(|id| self.peers.get(&id));
        let message = match addr {
            Some(addr) => format!("master {} is not the leader, {addr} is", self.id),
            None => format!("master {} is not the leader and knows none", self.id),
        };
        let status = unavailable(cause::NOT_LEADER, message);
        match addr {
            Some(addr) => with_metadata(status, LEADER_METADATA, addr),
            None => status,
        }
    }

    /// Refuses unless this member believes to lead.
    pub fn require_leader(&self) -> Result<(), Status> {
        let leader = self.raft.metrics().borrow().current_leader;
        if leader == Some(self.id) { Ok(()) } else { Err(self.not_leader(leader)) }
    }

    fn forward(&self, forward: &ForwardToLeader<MemberId, openraft::BasicNode>) -> Status {
        self.not_leader(forward.leader_id)
    }

    /// Returns once all that was committed before the call is applied here and this member was
    /// confirmed as leader by a majority.
    pub async fn linearizable(&self) -> Result<(), Status> {
        self.require_leader()?;
        match tokio::time::timeout(PATIENCE, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
                Err(self.forward(&to))
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)))) => {
                Err(unavailable(cause::NO_QUORUM, error.to_string()))
            }
            Ok(Err(RaftError::Fatal(error))) => {
                Err(unavailable(cause::STOPPING, error.to_string()))
            }
            Err(_) => Err(unavailable(cause::NO_QUORUM, "a majority did not answer".to_owned())),
        }
    }

    /// Commits a proposal and returns what applying it answered.
    pub async fn commit(&self, proposal: Proposal) -> Result<Answer, Status> {
        self.require_leader()?;
        match tokio::time::timeout(PATIENCE, self.raft.client_write(proposal)).await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(self.forward(&to))
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(Status::internal(error.to_string()))
            }
            Ok(Err(RaftError::Fatal(error))) => {
                Err(unavailable(cause::STOPPING, error.to_string()))
            }
            // It may be committed yet: nothing here takes it back.
            Err(_) => Err(unavailable(
                cause::OUTCOME_UNKNOWN,
                "a majority did not confirm the change in time; it may or may not be done"
                    .to_owned(),
            )),
        }
    }

    /// Commits a command of the authority.
    pub async fn command(&self, command: Command) -> Result<Result<Accepted, Refusal>, Status> {
        match self.commit(Proposal::Authority(command)).await? {
            Answer::Authority(response) => Ok(*response),
            Answer::Member(_) => {
                Err(Status::internal("a command was answered as a member's entry"))
            }
        }
    }

    /// Commits a command; a refusal becomes a status.
    pub async fn accepted(&self, command: Command) -> Result<Accepted, Status> {
        self.command(command).await?.map_err(|refusal| refused(&refusal))
    }

    /// Feeds the detector and proposes what it decides.
    pub fn observe(&self, event: DetectorEvent) {
        let decisions = {
            let applied = self.machine.read();
            self.leading().detector.step(now(), &applied.authority, event)
        };
        for decision in decisions {
            let member = self.clone();
            tokio::spawn(async move { member.fail_over(decision).await });
        }
    }

    async fn fail_over(&self, decision: Decision) {
        let Decision { volume, expect_epoch, primary, isr, reason } = decision;
        tracing::info!(%volume, epoch = %expect_epoch, primary = %primary.id, %reason, "failover proposed");
        let command = Command::Failover { volume, expect_epoch, primary, isr };
        match self.command(command).await {
            Ok(Ok(_)) => tracing::info!(%volume, primary = %primary.id, "failover committed"),
            Ok(Err(refusal)) => tracing::info!(%volume, %refusal, "failover refused"),
            Err(status) => {
                tracing::warn!(%volume, status = status.message(), "failover not committed")
            }
        }
    }

    /// Runs until Raft stops: follows elections, ticks the detector, looks at every change.
    pub async fn lead(self) {
        let mut metrics = self.raft.metrics();
        let mut changes = self.machine.changes();
        loop {
            let leads = self.leads();
            let was = std::mem::replace(&mut self.leading().leads, leads);
            if leads != was {
                tracing::info!(member = self.id, leads, "leadership changed");
                self.leading().heartbeats.clear();
                self.observe(if leads { DetectorEvent::Elected } else { DetectorEvent::Deposed });
            }
            let due = self.leading().detector.next_deadline(now());
            let wait =
                due.map_or(Duration::from_secs(3600), |at| Duration::from_millis(at.since(now())));
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { return },
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    self.observe(DetectorEvent::Tick);
                }
                () = tokio::time::sleep(wait) => self.observe(DetectorEvent::Tick),
            }
        }
    }

    /// Reads the authority's state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.machine.read().authority)
    }
}

//! The calls, and the loop that follows the leader.

use std::error::Error;
use std::future::Future;
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use sbk_proto::v1::control_client::ControlClient;
use sbk_proto::v1::node_service_client::NodeServiceClient;
use sbk_proto::v1::{
    AssignmentUpdate, ClusterStatusRequest, ClusterStatusResponse, ConfirmDeleteRequest,
    ConfirmDeleteResponse, ConfirmReplicaRequest, ConfirmReplicaResponse, CreateVolumeRequest,
    DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest, HeartbeatRequest,
    HeartbeatResponse, ListNodesRequest, ListNodesResponse, ListVolumesRequest,
    ListVolumesResponse, MovePrimaryRequest, MoveReplicaRequest, NodeInfo, ProposeIsrRequest,
    ProposeIsrResponse, RecoverVolumeRequest, RecoverVolumeResponse, RegisterRequest,
    RegisterResponse, ResizeVolumeRequest, SetLimitsRequest, SetNodeDutyRequest, VolumeInfo,
    WatchAssignmentsRequest,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::error::MasterError;
use crate::pool::Pool;
use crate::watch::AssignmentWatch;
use crate::{CAUSE_METADATA, LEADER_METADATA, MAX_MESSAGE_BYTES, REFUSAL_METADATA, cause};

/// How long a call tries, unless the client was told otherwise. Longer than an election.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How long one attempt waits for one master. Longer than a master waits for its quorum.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A master that was asked and says nothing for so long is silent, whoever else refused connections.
const SILENCE: Duration = Duration::from_secs(1);
const BACKOFF_FIRST: Duration = Duration::from_millis(25);
const BACKOFF_MOST: Duration = Duration::from_millis(500);
/// How often one call follows `sbk-leader` at once; after that it backs off like for any failure,
/// so that two members that each name the other don't make it spin.
const REDIRECTS_AT_ONCE: u32 = 3;

/// A client of the masters. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct MasterClient {
    pool: Arc<Pool>,
    deadline: Duration,
}

/// What failed attempts of one call told so far.
#[derive(Default)]
struct Attempts {
    last: Option<Failure>,
    outcome_unknown: bool,
    redirects: u32,
}

enum Failure {
    /// A master said that there is no leader or no quorum.
    NoQuorum(String),
    /// The connection failed.
    Transport(String),
    /// A master was asked and did not answer in time, or could not tell the outcome.
    Silent(String),
}

impl Attempts {
    /// An attempt was not answered in time. A master that said before that there is no quorum told more.
    fn silent(&mut self, detail: String) {
        self.outcome_unknown = true;
        if !matches!(self.last, Some(Failure::NoQuorum(_))) {
            self.last = Some(Failure::Silent(detail));
        }
    }

    /// The call's deadline cut an attempt short that had hardly begun: whatever was learned before tells more.
    /// [Masters that all refused connections were said to be silent.]
    fn cut_short(&mut self, detail: String) {
        self.outcome_unknown = true;
        self.last.get_or_insert(Failure::Silent(detail));
    }
}

impl MasterClient {
    /// A client of the masters at `masters` (`host:port` each). Nothing is connected yet.
    pub fn new(masters: Vec<String>) -> Self {
        Self { pool: Arc::new(Pool::new(masters)), deadline: DEFAULT_DEADLINE }
    }

    /// The same client (sharing its connections) with another overall deadline for its calls.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { pool: Arc::clone(&self.pool), deadline }
    }

    /// The addresses that the client was made with.
    pub fn masters(&self) -> &[String] {
        self.pool.masters()
    }

    /// The address of the leader, as last heard.
    pub fn leader(&self) -> Option<String> {
        self.pool.leader()
    }

    /// Creates a volume. `request.id` tells creates apart: the same id again is the same volume as long as
    /// that is known. The volume's own id is in the answer.
    pub async fn create_volume(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<VolumeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).create_volume(r).await }).await
    }

    /// All volumes.
    pub async fn list_volumes(&self) -> Result<ListVolumesResponse, MasterError> {
        let request = ListVolumesRequest {};
        self.call(&request, |c, r| async move { control(c).list_volumes(r).await }).await
    }

    /// One volume, by name or UUID.
    pub async fn get_volume(&self, name_or_id: &str) -> Result<VolumeInfo, MasterError> {
        let request = GetVolumeRequest { name_or_id: name_or_id.to_owned() };
        self.call(&request, |c, r| async move { control(c).get_volume(r).await }).await
    }

    /// Deletes a volume, by name or UUID. Pass the UUID where a create under the same name may
    /// come between.
    pub async fn delete_volume(
        &self,
        name_or_id: &str,
    ) -> Result<DeleteVolumeResponse, MasterError> {
        let request = DeleteVolumeRequest { name_or_id: name_or_id.to_owned() };
        self.call(&request, |c, r| async move { control(c).delete_volume(r).await }).await
    }

    /// Gives up members of a volume, or says with `dry_run` what that would mean.
    pub async fn recover_volume(
        &self,
        request: RecoverVolumeRequest,
    ) -> Result<RecoverVolumeResponse, MasterError> {
        self.call(&request, |c, r| async move { control(c).recover_volume(r).await }).await
    }

    /// Has a volume grow or shrink.
    pub async fn resize_volume(
        &self,
        request: ResizeVolumeRequest,
    ) -> Result<VolumeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).resize_volume(r).await }).await
    }

    /// Changes what a volume's clients may do.
    pub async fn set_limits(&self, request: SetLimitsRequest) -> Result<VolumeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).set_limits(r).await }).await
    }

    /// Has a replica replaced by another.
    pub async fn move_replica(
        &self,
        request: MoveReplicaRequest,
    ) -> Result<VolumeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).move_replica(r).await }).await
    }

    /// Has the primary hand its role over.
    pub async fn move_primary(
        &self,
        request: MovePrimaryRequest,
    ) -> Result<VolumeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).move_primary(r).await }).await
    }

    /// Drains a node, ends that, or removes it.
    pub async fn set_node_duty(
        &self,
        request: SetNodeDutyRequest,
    ) -> Result<NodeInfo, MasterError> {
        self.call(&request, |c, r| async move { control(c).set_node_duty(r).await }).await
    }

    /// All nodes.
    pub async fn list_nodes(&self) -> Result<ListNodesResponse, MasterError> {
        let request = ListNodesRequest {};
        self.call(&request, |c, r| async move { control(c).list_nodes(r).await }).await
    }

    /// The quorum as the leader sees it, or else as any member sees it that answers: then
    /// `has_quorum` is false. Every member is asked once, the leader first.
    pub async fn cluster_status(&self) -> Result<ClusterStatusResponse, MasterError> {
        let started = Instant::now();
        let mut candidates: Vec<String> = self.pool.leader().into_iter().collect();
        candidates.extend(self.pool.masters().iter().cloned());
        let mut asked = Vec::new();
        let mut second_best = None;
        let mut detail = String::from("no address");
        for addr in candidates {
            if asked.contains(&addr) {
                continue;
            }
            match self.cluster_status_of(&addr).await {
                Ok(status) if status.has_quorum && status.id == status.leader => {
                    self.pool.set_leader(&addr);
                    return Ok(status);
                }
                Ok(status) => second_best = Some(status),
                Err(e @ (MasterError::BadAddress { .. } | MasterError::NoMasters)) => {
                    return Err(e);
                }
                Err(e) => detail = e.to_string(),
            }
            asked.push(addr);
        }
        match second_best {
            Some(status) => Ok(status),
            None if self.pool.masters().is_empty() => Err(MasterError::NoMasters),
            None => Err(MasterError::Unreachable {
                masters: self.pool.masters().to_vec(),
                detail,
                waited: started.elapsed(),
                outcome_unknown: false,
            }),
        }
    }

    /// The quorum as the master at `addr` sees it.
    pub async fn cluster_status_of(
        &self,
        addr: &str,
    ) -> Result<ClusterStatusResponse, MasterError> {
        let started = Instant::now();
        let mut client = control(self.pool.channel(addr)?);
        let wait = ATTEMPT.min(self.deadline);
        match timeout(wait, client.cluster_status(ClusterStatusRequest {})).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(MasterError::Unreachable {
                masters: vec![addr.to_owned()],
                detail: describe(&status),
                waited: started.elapsed(),
                outcome_unknown: false,
            }),
            Err(_) => Err(MasterError::TimedOut {
                detail: format!("{addr} is silent"),
                waited: started.elapsed(),
            }),
        }
    }

    /// Joins the cluster, or comes back as a new incarnation.
    pub async fn register(
        &self,
        request: RegisterRequest,
    ) -> Result<RegisterResponse, MasterError> {
        self.call(&request, |c, r| async move { node(c).register(r).await }).await
    }

    /// One heartbeat. Use a client with a short [deadline](Self::with_deadline).
    pub async fn heartbeat(
        &self,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, MasterError> {
        self.call(&request, |c, r| async move { node(c).heartbeat(r).await }).await
    }

    /// Proposes a change of an in-sync set.
    pub async fn propose_isr(
        &self,
        request: ProposeIsrRequest,
    ) -> Result<ProposeIsrResponse, MasterError> {
        self.call(&request, |c, r| async move { node(c).propose_isr(r).await }).await
    }

    /// Tells that a replica was created.
    pub async fn confirm_replica(
        &self,
        request: ConfirmReplicaRequest,
    ) -> Result<ConfirmReplicaResponse, MasterError> {
        self.call(&request, |c, r| async move { node(c).confirm_replica(r).await }).await
    }

    /// Tells that a replica of a deleted volume is gone.
    pub async fn confirm_delete(
        &self,
        request: ConfirmDeleteRequest,
    ) -> Result<ConfirmDeleteResponse, MasterError> {
        self.call(&request, |c, r| async move { node(c).confirm_delete(r).await }).await
    }

    /// Opens the leader's push of the catalogue once. The stream ends when the leader stops
    /// leading. [`AssignmentWatch`] opens it again and again.
    pub async fn watch_assignments(
        &self,
        request: WatchAssignmentsRequest,
    ) -> Result<Streaming<AssignmentUpdate>, MasterError> {
        self.call(&request, |c, r| async move { node(c).watch_assignments(r).await }).await
    }

    /// The leader's push of the catalogue, opened again whenever it ends.
    pub fn assignments(&self, request: WatchAssignmentsRequest) -> AssignmentWatch {
        AssignmentWatch::new(self.clone(), request)
    }

    /// `addr` stopped answering on a stream: the next call looks for the leader again.
    pub(crate) fn forget_leader(&self) {
        if let Some(leader) = self.pool.leader() {
            self.pool.not_leader(&leader);
        }
    }

    /// Makes one call at the leader, following it, until it is answered or the deadline passes.
    async fn call<Q, R, F>(
        &self,
        request: &Q,
        send: impl Fn(Channel, Q) -> F,
    ) -> Result<R, MasterError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let started = Instant::now();
        let deadline = started + self.deadline;
        let mut backoff = BACKOFF_FIRST;
        let mut attempts = Attempts::default();
        loop {
            let addr = self.pool.target()?;
            let channel = self.pool.channel(&addr)?;
            let began = Instant::now();
            let until = deadline.min(began + ATTEMPT);
            let again_at_once = match timeout_at(until, send(channel, request.clone())).await {
                Ok(Ok(response)) => {
                    self.pool.set_leader(&addr);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => self.failed(&addr, status, &mut attempts)?,
                Err(_) => {
                    self.pool.not_leader(&addr);
                    let detail = format!("{addr} is silent");
                    match began.elapsed() >= SILENCE {
                        true => attempts.silent(detail),
                        false => attempts.cut_short(detail),
                    }
                    false
                }
            };
            if Instant::now() + backoff >= deadline {
                return Err(self.give_up(attempts, started.elapsed()));
            }
            if !again_at_once {
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MOST);
            }
        }
    }

    /// Sorts a failed attempt. Returns whether to try again without a pause; errors if trying
    /// again makes no sense.
    fn failed(
        &self,
        addr: &str,
        status: Status,
        attempts: &mut Attempts,
    ) -> Result<bool, MasterError> {
        if let Some(word) = metadata(&status, REFUSAL_METADATA) {
            return Err(MasterError::Refused { word, message: status.message().to_owned() });
        }
        let detail = format!("{addr}: {}", describe(&status));
        if let Some(word) = metadata(&status, CAUSE_METADATA) {
            attempts.outcome_unknown |= word == cause::OUTCOME_UNKNOWN;
            let leader = metadata(&status, LEADER_METADATA).filter(|leader| leader != addr);
            if let Some(leader) = leader {
                self.pool.set_leader(&leader);
                attempts.redirects += 1;
                // Kept as the cause only if nothing better is known: the named leader may be dead.
                attempts.last.get_or_insert(Failure::NoQuorum(detail));
                return Ok(attempts.redirects <= REDIRECTS_AT_ONCE);
            }
            self.pool.not_leader(addr);
            attempts.last = Some(match word.as_str() {
                cause::OUTCOME_UNKNOWN | cause::BUSY => Failure::Silent(detail),
                _ => Failure::NoQuorum(detail),
            });
            return Ok(false);
        }
        self.pool.not_leader(addr);
        match status.code() {
            // A connection that could not be made or broke, as tonic reports it.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => {
                // A connection that was never made carried nothing; one that broke may have.
                attempts.outcome_unknown |= !never_connected(&status);
                // A master that answers "no quorum" tells more than its dead peers do.
                if !matches!(attempts.last, Some(Failure::NoQuorum(_))) {
                    attempts.last = Some(Failure::Transport(detail));
                }
                Ok(false)
            }
            Code::DeadlineExceeded => {
                attempts.silent(detail);
                Ok(false)
            }
            _ => Err(MasterError::Rpc(Box::new(status))),
        }
    }

    fn give_up(&self, attempts: Attempts, waited: Duration) -> MasterError {
        let outcome_unknown = attempts.outcome_unknown;
        match attempts.last {
            Some(Failure::NoQuorum(detail)) => {
                MasterError::NoQuorum { detail, waited, outcome_unknown }
            }
            Some(Failure::Transport(detail)) => MasterError::Unreachable {
                masters: self.pool.masters().to_vec(),
                detail,
                waited,
                outcome_unknown,
            },
            Some(Failure::Silent(detail)) => MasterError::TimedOut { detail, waited },
            None => MasterError::TimedOut { detail: "no attempt was made".into(), waited },
        }
    }
}

fn metadata(status: &Status, key: &str) -> Option<String> {
    status.metadata().get(key)?.to_str().ok().map(str::to_owned)
}

/// A status in one line, with the deepest cause: tonic's own text is only "transport error".
/// Whether the request can't have reached anybody. The code alone does not tell: a connection that was
/// given up since its peer answered no keepalive is `Unavailable` too, as tonic reports it.
fn never_connected(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// What led to `status`, the nearest first.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    successors(status.source(), |&error| error.source())
}

fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    };
    if let Some(deepest) = causes(status).last().map(ToString::to_string)
        && !text.contains(&deepest)
    {
        text.push_str(": ");
        text.push_str(&deepest);
    }
    text
}

fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn node(channel: Channel) -> NodeServiceClient<Channel> {
    NodeServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

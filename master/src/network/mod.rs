//! openraft's calls to the other members, over tonic.
//!
//! Every message names the cluster, the sender and the sender's data directory, and so does every
//! answer; what does not fit is refused by [`Identity::admits`] at either end. A member that lost
//! its directory and came back under its old id has forgotten what it voted for, so neither its
//! votes nor its acknowledgements may count.

mod pool;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed,
    StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use sbk_master_client::REFUSAL_METADATA;
use sbk_proto::v1::raft_client::RaftClient;
use sbk_proto::v1::{RaftMessage, SnapshotChunk};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::gate::tag;
use crate::raft::{MemberId, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::state_machine::StateMachine;
pub(crate) use pool::Pool;

/// Most bytes of one message. openraft sends at most 300 entries in one, and the largest entry,
/// a registration with all of its replicas, has a few MiB.
pub(crate) const MAX_MESSAGE: usize = 256 << 20;
/// Bytes of a snapshot in one message.
const CHUNK: usize = 1 << 20;
/// Pause before an unreachable member is tried again.
const BACKOFF: Duration = Duration::from_millis(250);

/// The members that were heard, with the data directory that each speaks for, and when.
pub(crate) type Heard = Arc<Mutex<BTreeMap<MemberId, (Uuid, Instant)>>>;

/// The word of the refusal of a member that comes with another data directory than before.
const LOST_DIRECTORY: &str = "lost-directory";

/// Why a message is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// Of another cluster, or of none.
    #[error("{0}")]
    Foreign(String),
    /// A member without its votes and its log.
    #[error(
        "member {member} took part with data directory {known} before and now comes with {given}: \
         its vote and log are lost. Never give a member's id to a new directory"
    )]
    LostDirectory { member: MemberId, known: Uuid, given: Uuid },
}

impl From<NotAdmitted> for Status {
    fn from(error: NotAdmitted) -> Self {
        let mut status = Status::failed_precondition(error.to_string());
        if let NotAdmitted::LostDirectory { .. } = error {
            tag(&mut status, REFUSAL_METADATA, LOST_DIRECTORY);
        }
        status
    }
}

/// Who this member is, to the others.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The cluster as its members were given it; see `--cluster`.
    pub(crate) cluster: String,
    /// This member.
    pub(crate) member: MemberId,
    /// This member's data directory.
    pub(crate) instance: Uuid,
    /// Every member's address.
    pub(crate) peers: Arc<BTreeMap<MemberId, String>>,
    /// Where the members' known data directories are found.
    pub(crate) state: StateMachine,
    /// Who spoke to this member, or answered it.
    pub(crate) heard: Heard,
    /// Set once another member says that this one lost its directory, and that it is on record.
    pub(crate) expelled: watch::Sender<Option<String>>,
}

impl Identity {
    /// Whether a message may be taken.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn admits(
        &self,
        cluster: &str,
        member: MemberId,
        instance: &[u8],
    ) -> Result<(), NotAdmitted> {
        if cluster != self.cluster {
            // Outside input of any length, and a status travels in HTTP headers.
            let given: String = cluster.chars().take(200).collect();
            return Err(NotAdmitted::Foreign(format!(
                "the message is for cluster {given:?}, this member is of {:?}: give every \
                 member the same --cluster",
                self.cluster
            )));
        }
        if !self.peers.contains_key(&member) {
            return Err(NotAdmitted::Foreign(format!("{member} is no member of {cluster:?}")));
        }
        let given = Uuid::from_slice(instance).map_err(|_| {
            NotAdmitted::Foreign(format!("member {member} does not name its data directory"))
        })?;
        let known = self.state.read().instances.get(&member).copied();
        if let Some(known) = known.filter(|known| *known != given) {
            return Err(NotAdmitted::LostDirectory { member, known, given });
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(member, (given, Instant::now()));
        Ok(())
    }

    /// A member that can't be reached, or won't take this member's messages: tried again after a
    /// pause. Nothing here calls for trying again at once.
    fn unreachable(&self, status: &Status) -> Unreachable {
        if status.code() == Code::FailedPrecondition {
            tracing::warn!(why = status.message(), "a member refuses this member's messages");
            let word = status.metadata().get(REFUSAL_METADATA);
            if word.is_some_and(|word| word == LOST_DIRECTORY) {
                self.expelled.send_replace(Some(status.message().to_owned()));
            }
        }
        Unreachable::new(status)
    }

    /// A message from this member.
    pub(crate) fn message(&self, body: Vec<u8>) -> RaftMessage {
        RaftMessage {
            cluster: self.cluster.clone(),
            body: body.into(),
            member: self.member,
            instance: self.instance_bytes(),
        }
    }

    fn instance_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.instance.as_bytes())
    }
}

/// What comes before a snapshot's bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
}

/// Makes connections to members.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) identity: Identity,
    pub(crate) pool: Pool,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    /// Runs in openraft's core loop, so it connects to nothing.
    async fn new_client(&mut self, target: MemberId, node: &BasicNode) -> Peer {
        let channel = self.pool.channel(&node.addr).map_err(|e| Unreachable::new(&e));
        Peer { target, identity: self.identity.clone(), channel }
    }
}

/// One member as seen from this one.
#[derive(Debug)]
pub(crate) struct Peer {
    target: MemberId,
    identity: Identity,
    channel: Result<Channel, Unreachable>,
}

#[derive(Clone, Copy)]
enum Call {
    Append,
    Vote,
}

impl Peer {
    fn client(&self) -> Result<RaftClient<Channel>, Unreachable> {
        let channel = self.channel.clone()?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// One unary call. The outer error is the connection's, the inner one the member's.
    async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        call: Call,
        request: &Q,
        ttl: Duration,
    ) -> Result<R, RPCError<MemberId, BasicNode, RaftError<MemberId>>> {
        let mut client = self.client()?;
        let body = serde_json::to_vec(request).map_err(|e| NetworkError::new(&e))?;
        let message = self.identity.message(body);
        let send = async {
            match call {
                Call::Append => client.append_entries(message).await,
                Call::Vote => client.vote(message).await,
            }
        };
        let answer = match tokio::time::timeout(ttl, send).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(self.identity.unreachable(&status).into()),
            Err(_) => return Err(RPCError::Timeout(self.timeout(call, ttl))),
        };
        self.check(&answer)?;
        let outcome: Result<R, RaftError<MemberId>> =
            serde_json::from_slice(&answer.body).map_err(|e| Unreachable::new(&e))?;
        outcome.map_err(|e| RemoteError::new(self.target, e).into())
    }

    fn check(&self, answer: &RaftMessage) -> Result<(), Unreachable> {
        let admitted = if answer.member == self.target {
            self.identity.admits(&answer.cluster, answer.member, &answer.instance)
        } else {
            let (found, target) = (answer.member, self.target);
            Err(NotAdmitted::Foreign(format!("member {found} answers at the address of {target}")))
        };
        admitted.map_err(|why| {
            tracing::warn!(member = self.target, %why, "a member's answer was not taken");
            Unreachable::new(&why)
        })
    }

    fn timeout(&self, call: Call, ttl: Duration) -> Timeout<MemberId> {
        let action = match call {
            Call::Append => RPCTypes::AppendEntries,
            Call::Vote => RPCTypes::Vote,
        };
        Timeout { action, id: self.identity.member, target: self.target, timeout: ttl }
    }

    /// The messages of one snapshot.
    fn chunks(
        &self,
        head: &SnapshotHead,
        data: Vec<u8>,
    ) -> Result<Vec<SnapshotChunk>, Unreachable> {
        let head = serde_json::to_vec(head).map_err(|e| Unreachable::new(&e))?;
        let data = Bytes::from(data);
        let mut chunks = vec![SnapshotChunk {
            cluster: self.identity.cluster.clone(),
            head: head.into(),
            data: Bytes::new(),
            last: data.is_empty(),
            member: self.identity.member,
            instance: self.identity.instance_bytes(),
        }];
        for start in (0..data.len()).step_by(CHUNK) {
            let end = data.len().min(start + CHUNK);
            let last = end == data.len();
            chunks.push(SnapshotChunk {
                data: data.slice(start..end),
                last,
                ..SnapshotChunk::default()
            });
        }
        Ok(chunks)
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RPCError<MemberId, BasicNode, RaftError<MemberId>>>
    {
        self.call(Call::Append, &rpc, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RPCError<MemberId, BasicNode, RaftError<MemberId>>> {
        self.call(Call::Vote, &rpc, option.hard_ttl()).await
    }

    /// Never used: [`Self::full_snapshot`] streams a snapshot whole.
    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<MemberId>,
        RPCError<MemberId, BasicNode, RaftError<MemberId, InstallSnapshotError>>,
    > {
        let error = io::Error::other("snapshots are streamed whole, not in openraft's chunks");
        Err(Unreachable::new(&error).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<TypeConfig, Fatal<MemberId>>> {
        let mut client = self.client()?;
        let data = snapshot.snapshot.into_inner();
        let head = SnapshotHead { vote, meta: snapshot.meta, bytes: data.len() as u64 };
        let chunks = self.chunks(&head, data)?;
        let send = client.install_snapshot(tokio_stream::iter(chunks));
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = tokio::time::timeout(option.hard_ttl(), send) => match sent {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => return Err(self.identity.unreachable(&status).into()),
                Err(_) => return Err(Timeout {
                    action: RPCTypes::InstallSnapshot,
                    id: self.identity.member,
                    target: self.target,
                    timeout: option.hard_ttl(),
                }.into()),
            },
        };
        self.check(&answer)?;
        let outcome: Result<SnapshotResponse<MemberId>, Fatal<MemberId>> =
            serde_json::from_slice(&answer.body).map_err(|e| Unreachable::new(&e))?;
        outcome.map_err(|e| RemoteError::new(self.target, e).into())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

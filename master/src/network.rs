//! Raft between the members, over tonic.
//!
//! openraft asks for a client inside its core loop, so a client is a lazy channel that is at hand
//! at once. A peer that can't be reached is [`Unreachable`]: openraft then backs off.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use openraft::BasicNode;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use sbk_proto::v1::RaftMessage;
use sbk_proto::v1::raft_client::RaftClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::{Channel, Endpoint};

use crate::raft::{MemberId, TypeConfig};

/// Most bytes of one message between members.
pub const MAX_MESSAGE: usize = 128 << 20;

/// Why a peer's address can't be used.
#[derive(Debug, thiserror::Error)]
#[error("member {member}'s address '{addr}' is not host:port: {source}")]
pub struct BadAddress {
    member: MemberId,
    addr: String,
    source: tonic::transport::Error,
}

/// The peers' channels, made once.
#[derive(Clone, Debug)]
pub struct Network {
    cluster: String,
    channels: BTreeMap<MemberId, Channel>,
}

impl Network {
    /// Channels to every member of `peers` (member to `host:port`). Nothing is connected yet.
    pub fn new(cluster: String, peers: &BTreeMap<MemberId, String>) -> Result<Self, BadAddress> {
        let mut channels = BTreeMap::new();
        for (member, addr) in peers {
            let endpoint = Endpoint::from_shared(format!("http://{addr}"))
                .map_err(|source| BadAddress { member: *member, addr: addr.clone(), source })?
                .connect_timeout(Duration::from_millis(500))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true);
            channels.insert(*member, endpoint.connect_lazy());
        }
        Ok(Self { cluster, channels })
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, _: &BasicNode) -> Peer {
        let client = self.channels.get(&target).map(|channel| {
            RaftClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        });
        Peer { target, cluster: self.cluster.clone(), client }
    }
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    target: MemberId,
    cluster: String,
    client: Option<RaftClient<Channel>>,
}

type Fault<E> = RPCError<MemberId, BasicNode, RaftError<MemberId, E>>;

/// Which of openraft's calls.
#[derive(Clone, Copy, Debug)]
enum Call {
    Append,
    Vote,
    Snapshot,
}

fn unreachable_peer<E: std::error::Error>(error: &(impl std::error::Error + 'static)) -> Fault<E> {
    RPCError::Unreachable(Unreachable::new(error))
}

impl Peer {
    async fn call<Q, R, E>(
        &mut self,
        call: Call,
        request: &Q,
        option: RPCOption,
    ) -> Result<R, Fault<E>>
    where
        Q: Serialize,
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let Some(client) = &mut self.client else {
            let unknown = std::io::Error::other("the member is not in --cluster");
            return Err(unreachable_peer(&unknown));
        };
        let network = |e: serde_json::Error| RPCError::Network(NetworkError::new(&e));
        let body = Bytes::from(serde_json::to_vec(request).map_err(network)?);
        let message = RaftMessage { cluster: self.cluster.clone(), body };
        let mut message = tonic::Request::new(message);
        message.set_timeout(option.hard_ttl());
        let answer = match call {
            Call::Append => client.append_entries(message).await,
            Call::Vote => client.vote(message).await,
            Call::Snapshot => client.install_snapshot(message).await,
        };
        let answer = answer.map_err(|status| unreachable_peer(&status))?.into_inner();
        let result: Result<R, RaftError<MemberId, E>> =
            serde_json::from_slice(&answer.body).map_err(network)?;
        result.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RPCError<MemberId, BasicNode, RaftError<MemberId>>>
    {
        self.call(Call::Append, &rpc, option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<MemberId>,
        RPCError<MemberId, BasicNode, RaftError<MemberId, InstallSnapshotError>>,
    > {
        self.call(Call::Snapshot, &rpc, option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RPCError<MemberId, BasicNode, RaftError<MemberId>>> {
        self.call(Call::Vote, &rpc, option).await
    }
}

//! openraft's calls, answered.

use std::io::Cursor;

use sbk_proto::v1::raft_server::Raft as RaftApi;
use sbk_proto::v1::{RaftMessage, SnapshotChunk};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use crate::network::{Identity, SnapshotHead};
use crate::raft::{Raft, Snapshot};

/// Most bytes of a snapshot. The largest state that its own limits allow is well below.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// The `Raft` service of one member.
#[derive(Clone)]
pub(crate) struct RaftService {
    pub(crate) raft: Raft,
    pub(crate) identity: Identity,
}

impl RaftService {
    fn admit(&self, message: &RaftMessage) -> Result<(), Status> {
        Ok(self.identity.admits(&message.cluster, message.member, &message.instance)?)
    }

    fn read<T: DeserializeOwned>(&self, message: &RaftMessage) -> Result<T, Status> {
        self.admit(message)?;
        parse(&message.body)
    }

    fn answer<T: Serialize>(&self, outcome: &T) -> Result<Response<RaftMessage>, Status> {
        let body = serde_json::to_vec(outcome).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(self.identity.message(body)))
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(body).map_err(|e| {
        Status::invalid_argument(format!("not a message of this version's masters: {e}"))
    })
}

#[tonic::async_trait]
impl RaftApi for RaftService {
    async fn append_entries(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let rpc = self.read(request.get_ref())?;
        self.answer(&self.raft.append_entries(rpc).await)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let rpc = self.read(request.get_ref())?;
        self.answer(&self.raft.vote(rpc).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let mut chunks = request.into_inner();
        let cut = || Status::aborted("the snapshot's stream ended early");
        let first = chunks.message().await?.ok_or_else(cut)?;
        self.identity.admits(&first.cluster, first.member, &first.instance)?;
        let head: SnapshotHead = parse(&first.head)?;
        if head.bytes > MAX_SNAPSHOT {
            return Err(Status::resource_exhausted(format!(
                "a snapshot of {} bytes is over the limit of {MAX_SNAPSHOT}",
                head.bytes
            )));
        }
        let mut data = Vec::new();
        let mut last = first.last;
        while !last {
            let chunk = chunks.message().await?.ok_or_else(cut)?;
            data.extend_from_slice(&chunk.data);
            last = chunk.last;
            if data.len() as u64 > head.bytes {
                return Err(Status::invalid_argument("the snapshot is longer than it said"));
            }
        }
        if data.len() as u64 != head.bytes {
            return Err(Status::invalid_argument("the snapshot is shorter than it said"));
        }
        let snapshot = Snapshot { meta: head.meta, snapshot: Box::new(Cursor::new(data)) };
        self.answer(&self.raft.install_full_snapshot(head.vote, snapshot).await)
    }
}

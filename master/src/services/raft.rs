//! openraft's three calls.

use std::future::Future;

use bytes::Bytes;
use sbk_proto::v1::RaftMessage;
use sbk_proto::v1::raft_server::Raft as RaftApi;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};

use crate::member::Member;

/// Between members.
#[derive(Clone, Debug)]
pub struct RaftService {
    /// This member.
    pub member: Member,
    /// The name that every member of the cluster must give.
    pub cluster: String,
}

impl RaftService {
    async fn answer<Q, R, F>(
        &self,
        message: RaftMessage,
        call: impl FnOnce(Q) -> F,
    ) -> Result<Response<RaftMessage>, Status>
    where
        Q: DeserializeOwned,
        R: Serialize,
        F: Future<Output = R>,
    {
        if message.cluster != self.cluster {
            return Err(Status::failed_precondition(format!(
                "this master was started with another --cluster ({}, not {}): \
                 give every member the same list",
                self.cluster, message.cluster
            )));
        }
        let request = serde_json::from_slice(&message.body)
            .map_err(|e| Status::invalid_argument(format!("not a Raft message: {e}")))?;
        let body = serde_json::to_vec(&call(request).await)
            .map_err(|e| Status::internal(format!("the answer can't be written: {e}")))?;
        Ok(Response::new(RaftMessage { cluster: message.cluster, body: Bytes::from(body) }))
    }
}

#[tonic::async_trait]
impl RaftApi for RaftService {
    async fn append_entries(
        &self,
        r: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.answer(r.into_inner(), |q| self.member.raft.append_entries(q)).await
    }

    async fn vote(&self, r: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.answer(r.into_inner(), |q| self.member.raft.vote(q)).await
    }

    async fn install_snapshot(
        &self,
        r: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.answer(r.into_inner(), |q| self.member.raft.install_snapshot(q)).await
    }
}

//! The push of the catalogue, kept open across leaders.

use std::time::Duration;

use sbk_proto::v1::{AssignmentUpdate, WatchAssignmentsRequest};
use tokio::time::sleep;
use tonic::Streaming;

use crate::client::MasterClient;
use crate::error::MasterError;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// The leader's push of the catalogue, opened again whenever it ends. Each opening begins with a
/// whole snapshot (`snapshot` is set), which replaces everything told before.
#[derive(Debug)]
pub struct AssignmentWatch {
    client: MasterClient,
    request: WatchAssignmentsRequest,
    stream: Option<Streaming<AssignmentUpdate>>,
    backoff: Duration,
}

impl AssignmentWatch {
    pub(crate) fn new(client: MasterClient, request: WatchAssignmentsRequest) -> Self {
        Self { client, request, stream: None, backoff: BACKOFF_FIRST }
    }

    /// Whether the stream is open now.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// The next update. Waits as long as it takes: while no leader can be found it tries on with
    /// a bounded pause.
    ///
    /// # Errors
    /// Only what trying again does not mend: a refusal (such as an incarnation that was replaced
    /// or is not registered), a bad address, a foreign server. Calling it again tries again.
    pub async fn next(&mut self) -> Result<AssignmentUpdate, MasterError> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.client.watch_assignments(self.request.clone()).await {
                    Ok(stream) => {
                        tracing::debug!(leader = ?self.client.leader(), "watching assignments");
                        self.stream.insert(stream)
                    }
                    Err(e) if e.is_transient() => {
                        tracing::debug!(error = %e, "no leader to watch");
                        self.pause().await;
                        continue;
                    }
                    Err(e) => return Err(e),
                },
            };
            match stream.message().await {
                Ok(Some(update)) => {
                    self.backoff = BACKOFF_FIRST;
                    return Ok(update);
                }
                Ok(None) => tracing::debug!("the watch of assignments ended"),
                Err(status) => {
                    tracing::debug!(error = %status, "the watch of assignments broke");
                }
            }
            self.stream = None;
            self.client.forget_leader();
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }
}

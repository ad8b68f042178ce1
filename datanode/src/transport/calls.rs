//! Questions to a replica that are answered once: probes, fences, cuts, and a candidate's for entries.

use std::sync::Arc;
use std::time::Duration;

use sbk_engine::replication::message::{Lineage, ToReplica};
use tokio::sync::mpsc;

use super::channels::{Channels, is_refusal};
use super::{convert, server};
use crate::volume::events::PeerEvent;

/// How long a question waits for its answer. The engine asks again.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks, and reports the answer or its absence to `events`.
pub async fn ask(
    channels: Arc<Channels>,
    addr: String,
    lineage: Lineage,
    question: ToReplica,
    events: mpsc::Sender<PeerEvent>,
) {
    let event = match channels.replication(&addr) {
        Err(error) => {
            tracing::warn!(%error, replica = %lineage.to.id, "a replica can't be asked");
            PeerEvent::Unreachable { replica: lineage.to.id, refused: false }
        }
        Ok(mut client) => {
            let probe = matches!(question, ToReplica::Probe { .. });
            let request = convert::to_replica_out(lineage, &question, &[]);
            let call = async {
                if probe { client.probe(request).await } else { client.reconcile(request).await }
            };
            match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(Ok(answer)) => match convert::to_primary_in(answer.into_inner()) {
                    Ok((lineage, message, entries)) if server::check(&entries).is_ok() => {
                        PeerEvent::FromReplica { lineage, message, entries }
                    }
                    Ok((lineage, ..)) => {
                        tracing::warn!(%addr, "entries that changed on the way were dropped");
                        PeerEvent::Unreachable { replica: lineage.from.id, refused: false }
                    }
                    Err(error) => {
                        tracing::warn!(%error, %addr, "an answer was dropped");
                        PeerEvent::Unreachable { replica: lineage.to.id, refused: false }
                    }
                },
                Ok(Err(status)) => {
                    let refused = is_refusal(&status);
                    PeerEvent::Unreachable { replica: lineage.to.id, refused }
                }
                Err(_) => PeerEvent::Unreachable { replica: lineage.to.id, refused: false },
            }
        }
    };
    // A volume task that has ended needs no answer.
    let _ended = events.send(event).await;
}

//! Questions to a replica that are answered once: probes, fences, cuts, a candidate's for entries, and a
//! primary's for blocks.

use std::sync::Arc;
use std::time::Duration;

use sbk_engine::replication::message::{Lineage, ToReplica};
use tokio::sync::mpsc;

use super::channels::{Channels, is_refusal};
use super::convert::Beside;
use super::{convert, server};
use crate::volume::events::PeerEvent;

/// How long a question waits for its answer. The engine asks again.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks, and reports the answer or its absence to `events`. That a question for blocks has no answer says
/// nothing of the replica: it may be busy, or of an older version.
pub async fn ask(
    channels: Arc<Channels>,
    addr: String,
    lineage: Lineage,
    question: ToReplica,
    events: mpsc::Sender<PeerEvent>,
) {
    let about_it = !matches!(question, ToReplica::ReadBlocks { .. });
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
                    Ok((lineage, message, Beside::Entries(entries)))
                        if server::check(&entries).is_ok() =>
                    {
                        let beside = Beside::Entries(entries);
                        PeerEvent::FromReplica { lineage, message, beside }
                    }
                    Ok((lineage, message, beside @ Beside::Blocks(_))) => {
                        PeerEvent::FromReplica { lineage, message, beside }
                    }
                    Ok((lineage, _, Beside::Entries(_))) => {
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
    if !about_it && matches!(event, PeerEvent::Unreachable { .. }) {
        return;
    }
    // A volume task that has ended needs no answer.
    let _ended = events.send(event).await;
}

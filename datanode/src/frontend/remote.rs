//! A frontend that is no datanode's: what `sbkctl attach` runs beside the volume's user.
//!
//! The masters tell it where the primary is. While none of them answers it goes on with what it knows:
//! a primary that was replaced refuses with the newer configuration, and one that runs needs no master.

use std::sync::Arc;
use std::time::Duration;

use sbk_engine::forward::Params;
use sbk_engine::types::{NodeId, VolumeId};
use sbk_master_client::MasterClient;
use sbk_proto::v1::WatchAssignmentsRequest;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Frontends;
use super::connect::Connector;
use crate::catalogue::{self, Catalogue, CatalogueWatch};
use crate::transport::convert;
use crate::volume::Registry;

/// Pause after a refusal that only time may mend.
const PAUSE: Duration = Duration::from_secs(1);

/// One volume, reached from a process without replicas. It ends when it is dropped.
#[derive(Debug)]
pub struct Remote {
    frontends: Frontends,
    catalogue: CatalogueWatch,
    watching: JoinHandle<()>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Remote {
    /// Begins to follow `volume`. With `exclusive` there is one client at a time, which has the volume
    /// to itself: all attachments of before end when it comes. Requests are held within `params`.
    pub fn start(masters: MasterClient, volume: VolumeId, exclusive: bool, params: Params) -> Self {
        let (sender, catalogue) = watch::channel(Arc::<Catalogue>::default());
        let connector = Connector {
            registry: Registry::default(),
            // Of no datanode, so that no primary is taken for one of this process.
            node: NodeId(Uuid::new_v4()),
        };
        let only = exclusive.then(|| Arc::new(Semaphore::new(1)));
        let frontends = Frontends::with(catalogue.clone(), connector, params, only);
        let watching = tokio::spawn(follow(masters, volume, sender));
        Self { frontends, catalogue, watching }
    }

    /// What its clients attach to.
    pub fn frontends(&self) -> Frontends {
        self.frontends.clone()
    }

    /// Waits until the masters told of the volume.
    pub async fn heard(&self) {
        self.sees(|catalogue| catalogue.heard).await;
    }

    /// Waits until the volume is deleted.
    pub async fn deleted(&self) {
        let gone = |known: &Catalogue| known.volumes.values().all(|volume| volume.deleted);
        self.sees(|catalogue| catalogue.heard && gone(catalogue)).await;
    }

    async fn sees(&self, right: impl Fn(&Catalogue) -> bool) {
        let mut catalogue = self.catalogue.clone();
        // The sender lives as long as this.
        let _seen = catalogue.wait_for(|catalogue| right(catalogue)).await;
    }
}

async fn follow(masters: MasterClient, volume: VolumeId, catalogue: watch::Sender<Arc<Catalogue>>) {
    let volume = convert::id_bytes(volume.0);
    let request = WatchAssignmentsRequest { volume, ..Default::default() };
    let mut watch = masters.assignments(request);
    loop {
        let update = match watch.next().await {
            Ok(update) => update,
            Err(error) => {
                tracing::warn!(%error, "the masters tell nothing of the volume");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let current = catalogue.borrow().clone();
        match catalogue::apply(&current, update) {
            Ok(changed) => drop(catalogue.send_replace(Arc::new(changed))),
            Err(error) => tracing::warn!(%error, "what the masters told is dropped"),
        }
    }
}

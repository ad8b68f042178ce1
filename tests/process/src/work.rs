//! A load of several requests at once that checks itself, by way of one datanode.
#![allow(clippy::missing_panics_doc)] // A test that can't go on ends.

use std::sync::Arc;

use sbk_cli::wait::{Look, until};
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::NbdClient;
use uuid::Uuid;

use crate::clusters::LIMIT;

/// The load while it runs. It ends when it is dropped.
#[derive(Debug)]
pub struct Work {
    client: NbdClient,
    history: Arc<History>,
    load: Load,
    options: LoadOptions,
}

/// What no request has been made of yet.
pub fn new_history() -> Arc<History> {
    Arc::new(History::new(Uuid::new_v4()))
}

impl Work {
    /// Starts it on a volume, by way of the NBD server at `nbd`. `history` is what was done to the volume so far.
    pub async fn start(
        nbd: &str,
        volume: &str,
        options: LoadOptions,
        history: &Arc<History>,
    ) -> Self {
        let client = NbdClient::connect(nbd, volume).await.expect("connects");
        let history = Arc::clone(history);
        let load =
            Load::start(client.clone(), Arc::clone(&history), options.clone()).expect("starts");
        Self { client, history, load, options }
    }

    /// Waits until so many more writes were acknowledged.
    pub async fn goes_on(&self, writes: u64) {
        let before = self.load.stats().writes;
        until("the load to go on", LIMIT, async || {
            let now = self.load.stats().writes;
            Ok(if now >= before + writes { Look::Done(()) } else { Look::NotYet(format!("{now}")) })
        })
        .await
        .expect("goes on");
    }

    /// Ends it: no request failed, and all that was acknowledged is there.
    pub async fn stop(self) {
        let stats = self.load.stop(LIMIT).await.expect("stops");
        assert_eq!(stats.errors, 0, "{stats:?}");
        all_is_there(&self.client, &self.history, &self.options).await;
        self.client.disconnect().await;
    }
}

/// All blocks of a load are read, and hold what the history of its requests allows.
pub async fn all_is_there(client: &NbdClient, history: &Arc<History>, options: &LoadOptions) {
    read_back(client, history, options.blocks, |_| ()).await.expect("reads back");
    let wrong = history.check();
    assert!(wrong.is_empty(), "{} are wrong, the first: {:?}", wrong.len(), wrong[0]);
}

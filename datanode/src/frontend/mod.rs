//! Frontends: how clients reach a volume, on any datanode or [elsewhere](Remote).
//!
//! A [`Session`](session) keeps one volume's place for all clients of this node: it holds what is
//! in flight and sends it again when another primary takes over. What it decides is the engine's
//! [`Forwarder`].

mod block;
mod connect;
mod ended;
mod limits;
pub mod nbd;
mod remote;
mod session;
mod split;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sbk_engine::forward::{Forwarder, Params};
use sbk_engine::types::{NodeId, SessionId, VolumeId};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use block::BlockApi;
pub use limits::Permit;
pub use remote::Remote;
pub use sbk_engine::forward::Attachment;
pub use session::{Attached, ClientHandle, Reply};

use crate::catalogue::CatalogueWatch;
use crate::volume::Registry;
use block::fresh_session;
use connect::Connector;
use session::SessionHandle;

/// All frontends of one node. Clones share them.
#[derive(Clone, Debug)]
pub struct Frontends {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    catalogue: CatalogueWatch,
    connector: Connector,
    params: Params,
    sessions: Mutex<BTreeMap<VolumeId, SessionHandle>>,
    /// What runs of all sessions.
    tasks: TaskTracker,
    /// Where every client has the volume to itself, whatever it asks for: there may be one.
    only: Option<Arc<Semaphore>>,
}

impl Frontends {
    /// Frontends of `node`, whose replicas are in `registry`. Each session holds requests within
    /// `params`.
    pub fn new(
        catalogue: CatalogueWatch,
        registry: Registry,
        node: NodeId,
        params: Params,
    ) -> Self {
        let connector = Connector { registry, node };
        Self::with(catalogue, connector, params, None)
    }

    fn with(
        catalogue: CatalogueWatch,
        connector: Connector,
        params: Params,
        only: Option<Arc<Semaphore>>,
    ) -> Self {
        let (sessions, tasks) = (Mutex::new(BTreeMap::new()), TaskTracker::new());
        Self { inner: Arc::new(Inner { catalogue, connector, params, sessions, tasks, only }) }
    }

    /// What this node knows of all volumes.
    pub fn catalogue(&self) -> CatalogueWatch {
        self.inner.catalogue.clone()
    }

    /// Attaches a client that shares the volume with others. The session lives as long as any of its clients.
    pub fn attach(&self, volume: VolumeId) -> ClientHandle {
        let mut sessions = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = sessions.get_mut(&volume).and_then(SessionHandle::attach) {
            return client;
        }
        sessions.retain(|_, session| !session.is_closed());
        let mut session =
            self.start(volume, Forwarder::new(volume, self.inner.params), fresh_session());
        let client = session.attach().expect("a session that was just started takes clients");
        sessions.insert(volume, session);
        client
    }

    /// Attaches a client that has the volume to itself: all attachments of before end. The session
    /// is its own.
    ///
    /// # Errors
    /// If this frontend is for one client, and has it.
    pub fn attach_exclusively(&self, volume: VolumeId) -> Result<ClientHandle, String> {
        let place = match &self.inner.only {
            None => None,
            Some(only) => Some(Arc::clone(only).try_acquire_owned().map_err(|_| {
                "another client of this frontend has the volume to itself; `sbkctl attach --shared` \
                 is for several"
                    .to_owned()
            })?),
        };
        let forwarder = Forwarder::exclusive(volume, self.inner.params);
        let mut session = self.start(volume, forwarder, fresh_session());
        let mut client = session.attach().expect("a session that was just started takes a client");
        client.place = place;
        Ok(client)
    }

    /// Attaches a client that has the volume to itself, as session `name`. With `follows` it goes on where an
    /// earlier client of the same user ended without a word: it is attached only if that one's attachment holds
    /// the volume still, and no loss was counted. A name may come again as long as no request was made under it.
    pub fn attach_as(
        &self,
        volume: VolumeId,
        name: SessionId,
        follows: Option<Attachment>,
    ) -> ClientHandle {
        let params = self.inner.params;
        let forwarder = match follows {
            None => Forwarder::exclusive(volume, params),
            Some(before) => Forwarder::following(volume, params, before),
        };
        let mut session = self.start(volume, forwarder, name);
        session.attach().expect("a session that was just started takes a client")
    }

    fn start(&self, volume: VolumeId, forwarder: Forwarder, name: SessionId) -> SessionHandle {
        let inner = &self.inner;
        let (catalogue, connector) = (inner.catalogue.clone(), inner.connector.clone());
        SessionHandle::start(volume, catalogue, connector, forwarder, name, &inner.tasks)
    }

    /// Waits until all clients have gone and all sessions have ended: the primaries know it then, and that
    /// exclusive attachments are over. A session without a primary ends when one is there, so the caller
    /// sets a limit.
    pub async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Whether every client has the volume to itself.
    pub(super) fn is_exclusive(&self) -> bool {
        self.inner.only.is_some()
    }

    /// The service that other nodes' frontends reach this node's primaries by.
    pub fn block_service(&self) -> BlockApi {
        BlockApi { registry: self.inner.connector.registry.clone() }
    }
}

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
use sbk_engine::types::{NodeId, VolumeId};
use tokio::sync::Semaphore;

pub use block::BlockApi;
pub use limits::Permit;
pub use remote::Remote;
pub use session::{Attached, ClientHandle, Reply};

use crate::catalogue::CatalogueWatch;
use crate::transport::Channels;
use crate::volume::Registry;
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
    /// Where every client has the volume to itself, whatever it asks for: there may be one.
    only: Option<Arc<Semaphore>>,
}

impl Frontends {
    /// Frontends of `node`, whose replicas are in `registry`. Each session holds requests within
    /// `params`.
    pub fn new(
        catalogue: CatalogueWatch,
        registry: Registry,
        channels: Arc<Channels>,
        node: NodeId,
        params: Params,
    ) -> Self {
        let connector = Connector { registry, channels, node };
        Self::with(catalogue, connector, params, None)
    }

    fn with(
        catalogue: CatalogueWatch,
        connector: Connector,
        params: Params,
        only: Option<Arc<Semaphore>>,
    ) -> Self {
        let sessions = Mutex::new(BTreeMap::new());
        Self { inner: Arc::new(Inner { catalogue, connector, params, sessions, only }) }
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
        let mut session = self.start(volume, false);
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
        let mut session = self.start(volume, true);
        let mut client = session.attach().expect("a session that was just started takes a client");
        client.place = place;
        Ok(client)
    }

    fn start(&self, volume: VolumeId, exclusive: bool) -> SessionHandle {
        let inner = &self.inner;
        let (catalogue, connector) = (inner.catalogue.clone(), inner.connector.clone());
        let make = if exclusive { Forwarder::exclusive } else { Forwarder::new };
        SessionHandle::start(volume, catalogue, connector, make(volume, inner.params))
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

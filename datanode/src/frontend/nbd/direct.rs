//! A client that begins with the transmission phase: the kernel's nbd driver, which leaves negotiating
//! to whoever hands it a socket.
//!
//! It has the volume to itself, and its attachment may outlive its process: the kernel keeps the device,
//! and what was asked of it, until another process goes on with both.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use sbk_engine::types::{SessionId, VolumeId};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::exports;
use super::handshake::Agreed;
use super::transmission::Left;
use super::wire::Framing;
use super::{AtStop, Ended, Shared, transmit};
use crate::catalogue::{Catalogue, CatalogueWatch};
use crate::frontend::limits::Pool;
use crate::frontend::{Attachment, ClientHandle, Frontends};

/// An attached client that speaks no handshake. Its attachment outlives it, so that nobody has the volume before
/// another process of the same user goes on with it; only [`leave`](Self::leave) ends it. [An error on the way
/// dropped it, which ended the attachment of a device that was in use.]
#[derive(Debug)]
pub struct Direct {
    shared: Shared,
    agreed: Agreed,
    /// A handle that is dropped detaches.
    client: ManuallyDrop<ClientHandle>,
    /// The volume's size when it was attached.
    bytes: u64,
}

/// The size of a volume, as it is published.
#[derive(Debug)]
pub struct Sizes {
    catalogue: CatalogueWatch,
    volume: VolumeId,
    told: u64,
}

impl Sizes {
    /// Another size than the one that was told last, in bytes; waits for it. For ever, if the volume is gone.
    pub async fn next(&mut self) -> u64 {
        let (volume, told) = (self.volume, self.told);
        let size =
            |catalogue: &Catalogue| exports::of(catalogue, volume).map(|export| export.bytes);
        let other = |catalogue: &Arc<Catalogue>| size(catalogue).is_some_and(|size| size != told);
        let found =
            self.catalogue.wait_for(other).await.ok().and_then(|catalogue| size(&catalogue));
        match found {
            Some(bytes) => {
                self.told = bytes;
                bytes
            }
            None => std::future::pending().await,
        }
    }
}

impl Direct {
    /// Attaches a client as session `name`, going on from the attachment that it `follows`, if any
    /// ([`Frontends::attach_as`]). Waits for a primary for as long as it takes. If this is given up before it
    /// is done, what it may have attached ends.
    ///
    /// # Errors
    /// Why the volume is not the client's, in words.
    pub async fn attach(
        frontends: Frontends,
        volume: VolumeId,
        name: SessionId,
        follows: Option<Attachment>,
        stop: CancellationToken,
    ) -> Result<(Self, Attachment), String> {
        let gone = || "the volume was deleted".to_owned();
        let mut client = frontends.attach_as(volume, name, follows);
        let attachment = (&mut client.attached).await.map_err(|_| gone())??;
        let client = ManuallyDrop::new(client);
        let catalogue = frontends.catalogue().borrow().clone();
        let export = exports::of(&catalogue, volume).ok_or_else(gone)?;
        let bytes = export.bytes;
        // It is told of another size: its requests end where the volume does.
        let export = exports::Export { bytes: u64::MAX, ..export };
        let agreed = Agreed { export, framing: Framing::Simple, allocation: false };
        let (pool, at_stop) = (Pool::new(frontends.catalogue()), AtStop::Flush);
        let shared = Shared { frontends, tls: None, pool, stop, at_stop };
        Ok((Self { shared, agreed, client, bytes }, attachment))
    }

    /// Bytes of the volume when it was attached.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The volume's later sizes: other ones than `told`, which the client knows.
    pub fn sizes(&self, told: u64) -> Sizes {
        let (catalogue, volume) = (self.shared.frontends.catalogue(), self.agreed.export.volume);
        Sizes { catalogue, volume, told }
    }

    /// The transmission flags, as a handshake would have told them.
    pub fn flags(&self) -> u16 {
        self.agreed.framing.transmission_flags(true)
    }

    /// Serves requests until the client leaves or the server is stopped; then what it asked is answered, and
    /// what it was promised is made durable.
    ///
    /// # Errors
    /// If the connection broke, or a flush that was owed failed.
    pub async fn serve(&mut self, stream: UnixStream) -> Result<Left, Ended> {
        let (reader, writer) = stream.into_split();
        let served = transmit(&self.shared, &self.agreed, &mut self.client, reader, writer);
        served.await
    }

    /// Ends the attachment, and waits until the primary knows it: anybody may attach then. Without a primary
    /// that takes until there is one, so the caller sets a limit.
    pub async fn leave(self) {
        let frontends = self.shared.frontends.clone();
        drop(ManuallyDrop::into_inner(self.client));
        drop(self.shared);
        frontends.ended().await;
    }
}

//! How a client of an export attaches to its volume.

use std::time::Duration;

use super::exports::Export;
use crate::frontend::{ClientHandle, Frontends};

/// How long an exclusive client waits for its attachment: less than a negotiation may take.
const EXCLUSIVE: Duration = Duration::from_secs(25);
/// How long a shared client waits to hear whether another has the volume to itself.
pub(super) const SHARED: Duration = Duration::from_secs(2);

/// Attaches. An exclusive client is told that it has the volume only when that is committed. A
/// shared one is told if another has it, but need not wait for a primary: its requests do.
pub(super) async fn attach(frontends: &Frontends, export: &Export) -> Result<ClientHandle, String> {
    if !export.exclusive {
        let mut client = frontends.attach(export.volume);
        return match tokio::time::timeout(SHARED, &mut client.attached).await {
            Ok(Ok(Err(why))) => Err(why),
            Ok(Ok(Ok(_)) | Err(_)) | Err(_) => Ok(client),
        };
    }
    let mut client = frontends.attach_exclusively(export.volume)?;
    match tokio::time::timeout(EXCLUSIVE, &mut client.attached).await {
        Ok(Ok(Ok(_))) => Ok(client),
        Ok(Ok(Err(why))) => Err(why),
        Ok(Err(_)) => Err("the volume is not served here any more".to_owned()),
        Err(_) => Err(format!(
            "no primary attached the volume within {} s (one may do so still, which ends what was \
             attached before); see `sbkctl volume show`, and attach again",
            EXCLUSIVE.as_secs()
        )),
    }
}

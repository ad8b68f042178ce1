//! Where clients of an attached volume connect: nobody else's to reach.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sbk_datanode::frontend::nbd::Listener;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::error::Usage;

/// A unix socket's path may be no longer, in bytes (`sun_path` of unix(7), with its end).
const LONGEST_PATH: usize = 107;

/// Where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    /// How clients name it.
    pub(super) fn uri(&self, export: &str) -> String {
        match self {
            Self::Tcp(addr) => format!("nbd://{addr}/{export}"),
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

/// A socket that listens. One of a path goes with it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: Listener,
    pub(super) place: Place,
    _path: Option<Unlink>,
}

/// A socket's name.
#[derive(Debug)]
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        // Whoever cleaned up before has done the same.
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// Listens.
///
/// # Errors
/// If the address is not a loopback one, the path is too long, or somebody listens there.
pub(super) async fn bind(place: Place) -> anyhow::Result<Socket> {
    match place {
        Place::Tcp(addr) if !addr.ip().is_loopback() => Err(Usage(format!(
            "{addr} can be reached from other machines, and there is no authentication: give a \
             loopback address, or --socket"
        ))
        .into()),
        Place::Tcp(addr) => {
            let listener = TcpListener::bind(addr).await;
            let listener = listener.with_context(|| format!("listening on {addr}"))?;
            let place = Place::Tcp(listener.local_addr()?);
            Ok(Socket { listener: listener.into(), place, _path: None })
        }
        Place::Unix(path) => {
            let path = std::path::absolute(&path).context("the socket's path")?;
            if path.as_os_str().len() > LONGEST_PATH {
                let shown = path.display();
                return Err(Usage(format!("{shown} is too long for a socket's path")).into());
            }
            remove_abandoned(&path).await?;
            let doing = || format!("listening on {}", path.display());
            // Under another name until nobody else may connect.
            let made = path.with_extension(format!("new-{}", std::process::id()));
            let _gone = std::fs::remove_file(&made);
            let listener = UnixListener::bind(&made).with_context(doing)?;
            let private = std::fs::Permissions::from_mode(0o600);
            let ready = std::fs::set_permissions(&made, private)
                .and_then(|()| std::fs::hard_link(&made, &path));
            std::fs::remove_file(&made).with_context(doing)?;
            ready.with_context(doing)?;
            let place = Place::Unix(path.clone());
            Ok(Socket { listener: listener.into(), place, _path: Some(Unlink(path)) })
        }
    }
}

/// Removes a socket that a process left behind which was killed.
async fn remove_abandoned(path: &Path) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        bail!("{} is there, and is no socket", path.display());
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
        }
        _ => bail!("another process listens on {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_is_taken_over_only_from_the_dead() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("v.sock");
        let place = Place::Unix(path.clone());
        let socket = bind(place.clone()).await.expect("binds");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("lists").count(),
            1,
            "nothing else is left"
        );
        UnixStream::connect(&path).await.expect("somebody listens");
        let taken = bind(place.clone()).await.expect_err("is in use").to_string();
        assert!(taken.contains("another process listens"), "{taken}");
        // As after a kill: the name stays, and nobody listens.
        std::mem::forget(socket._path);
        drop(socket.listener);
        assert!(path.exists());
        drop(bind(place.clone()).await.expect("takes it over"));
        assert!(!path.exists(), "it goes with the process");
        std::fs::write(&path, "data").expect("writes");
        let refused = bind(place).await.expect_err("is a file").to_string();
        assert!(refused.contains("is no socket") && path.exists(), "{refused}");
    }

    #[tokio::test]
    async fn no_other_machine_reaches_it() {
        for addr in ["0.0.0.0:0", "10.1.2.3:10809", "[::]:0"] {
            let place = Place::Tcp(addr.parse().expect("an address"));
            let refused = bind(place).await.expect_err("is refused");
            assert!(refused.is::<Usage>(), "{refused}");
        }
        let socket = bind(Place::Tcp("127.0.0.1:0".parse().expect("address"))).await;
        let uri = socket.expect("binds").place.uri("db");
        assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/db"), "{uri}");
        assert!(!uri.contains(":0/"), "the port that it got: {uri}");
    }
}

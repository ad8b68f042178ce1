//! The commands that ask a cluster.

use std::path::{Path, PathBuf};

use sbk_master_client::MasterClient;

use crate::args::Global;
use crate::cluster_file::{self, ClusterFile};
use crate::error::Usage;
use crate::output::Output;

pub mod attachments;
pub mod cluster;
pub mod explain;
pub mod health;
pub mod moves;
pub mod node;
pub mod projection;
pub mod recover;
pub mod replay;
mod resize;
pub mod scrub;
mod scrub_repair;
pub mod verify;
pub mod volume;

/// What every command needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster.
    pub masters: MasterClient,
    /// Where results go.
    pub output: Output,
}

impl Context {
    /// Finds the cluster that the options mean.
    ///
    /// # Errors
    /// If `--dir` names a directory in which no development cluster serves, or an address is none.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        let environment = std::env::var("SBK_MASTERS").ok();
        let masters = masters(global, environment.as_deref(), &cluster_file::default_dir())?;
        masters.iter().try_for_each(|addr| check_addr(addr))?;
        Ok(Self { masters: MasterClient::new(masters), output: Output::new(global.output) })
    }
}

/// The directory of the development cluster that the options mean.
pub fn dev_dir(global: &Global) -> PathBuf {
    global.dir.clone().unwrap_or_else(cluster_file::default_dir)
}

/// Whether `addr` is host:port. Whether there is such a host is found out by asking it.
fn check_addr(addr: &str) -> Result<(), Usage> {
    let port = |(host, port): (&str, &str)| {
        let is_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if addr.rsplit_once(':').is_some_and(port) {
        return Ok(());
    }
    Err(Usage(format!(
        "'{addr}' is not an address of a master; give host:port[,host:port...], as in \
         127.0.0.1:7101, with --masters or in SBK_MASTERS"
    )))
}

/// The masters' addresses: what was said explicitly comes before the environment, that before what
/// is found lying around.
fn masters(
    global: &Global,
    environment: Option<&str>,
    default_dir: &Path,
) -> anyhow::Result<Vec<String>> {
    if !global.masters.is_empty() {
        return Ok(global.masters.clone());
    }
    if let Some(dir) = &global.dir {
        return Ok(ClusterFile::read(dir)?.master_addrs());
    }
    if let Some(list) = environment.filter(|list| !list.trim().is_empty()) {
        return Ok(list.split(',').map(|addr| addr.trim().to_owned()).collect());
    }
    if cluster_file::is_running(default_dir)
        && let Ok(file) = ClusterFile::read(default_dir)
    {
        return Ok(file.master_addrs());
    }
    Ok((7101..=7103).map(|port| format!("127.0.0.1:{port}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::{DirLock, MasterEntry};
    use crate::output::Format;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for right in ["127.0.0.1:7101", "[::1]:7101", "master-1.example.org:1", "localhost:65535"] {
            assert!(check_addr(right).is_ok(), "{right}");
        }
        for wrong in ["", "h", ":1", "h:", "h:0", "h:65536", "h:x", "http://h:1", "u@h:1", "a b:1"]
        {
            assert!(check_addr(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_masters_are_found_in_order_of_precedence() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path();
        let mut global = Global { masters: vec![], dir: None, output: Format::Table };
        let none = path.join("none");
        let found = |global: &Global, env, dir: &Path| masters(global, env, dir).expect("found");
        assert_eq!(found(&global, None, &none).len(), 3);
        assert_eq!(found(&global, Some(""), &none)[0], "127.0.0.1:7101");

        let entry = MasterEntry { id: 1, pid: 1, listen: "dev:1".into(), http: "dev:2".into() };
        let file = ClusterFile { masters: vec![entry], ..Default::default() };
        file.write(path).expect("writes");
        assert_eq!(found(&global, None, path).len(), 3, "a cluster that does not run is not meant");
        let lock = DirLock::take(path).expect("locks").expect("is free");
        assert_eq!(found(&global, None, path), ["dev:1"]);
        assert_eq!(found(&global, Some("a:1, b:2"), path), ["a:1", "b:2"]);
        drop(lock);

        global.dir = Some(path.to_owned());
        assert_eq!(found(&global, Some("a:1"), &none), ["dev:1"]);
        global.masters = vec!["m:1".into()];
        assert_eq!(found(&global, Some("a:1"), &none), ["m:1"]);
        global.masters.clear();
        global.dir = Some(none.clone());
        assert!(masters(&global, None, &none).is_err());
    }
}

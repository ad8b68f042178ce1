//! The cluster that a drill harms: one of its own, or one that `sbkctl dev` runs. Or it harms none, and
//! looks on while others do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use sbk_master_client::MasterClient;
use tempfile::TempDir;

use super::failover::Fault;
use super::network::{Condition, End, Network};
use crate::cluster_file::{self, ClusterFile, DatanodeEntry};
use crate::dev::child::signal_foreign;
use crate::dev::cluster::{DevCluster, Options, Which};
use crate::wait::{self, Look};

/// How long a process may take to be gone after a kill, or to be there after a start.
const PROCESS: Duration = Duration::from_secs(30);
/// What a cluster on a network of the drill's own consists of.
const MASTERS: usize = 3;
const DATANODES: usize = 3;

/// Where the drill takes place.
#[derive(Debug)]
pub enum Target {
    /// Made for the drill.
    Own {
        /// The cluster.
        cluster: Box<DevCluster>,
        /// Its directory, removed at the end unless something is to be looked at.
        dir: TempDir,
        // After the cluster, whose processes use it.
        /// The network that the cluster has to itself, if it has.
        network: Option<Network>,
    },
    /// The cluster of a `dev` command that runs.
    Running {
        /// Its directory.
        dir: PathBuf,
    },
    /// Any cluster; its processes are not the drill's.
    Foreign {
        /// Its masters.
        masters: MasterClient,
    },
}

/// A datanode that was harmed.
#[derive(Clone, Copy, Debug)]
pub enum Harmed {
    /// Its process had this pid.
    Killed(u32),
    /// Its process is still there.
    Still(Fault),
}

impl Target {
    /// The cluster in `dir` if one is named, else a new one.
    ///
    /// # Errors
    /// If no `dev` command runs on `dir`, or a new cluster can't be started.
    pub async fn open(dir: Option<PathBuf>, wal_retain: Option<u64>) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            if !cluster_file::is_running(&dir) {
                bail!(
                    "no `sbkctl dev` runs on {}; start one, or leave --dir away for a cluster of \
                     the drill's own",
                    dir.display()
                );
            }
            return Ok(Self::Running { dir });
        }
        Self::own(wal_retain, None).await
    }

    /// A new cluster, each process in a network namespace of its own. To be called inside
    /// ([`network::is_inside`](super::network::is_inside)).
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn on_a_network() -> anyhow::Result<Self> {
        Self::own(None, Some(Network::new(MASTERS, DATANODES)?)).await
    }

    async fn own(wal_retain: Option<u64>, network: Option<Network>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sbk-drill-").tempdir();
        let dir = dir.context("creating a temporary directory")?;
        let mut options = Options::new(dir.path().to_owned())?;
        options.wal_retain = wal_retain;
        options.hosts = network.as_ref().map(Network::hosts);
        match DevCluster::start(options).await {
            Ok(cluster) => Ok(Self::Own { cluster: Box::new(cluster), dir, network }),
            Err(e) => {
                let kept = dir.keep();
                Err(e.context(format!("starting a cluster in {}", kept.display())))
            }
        }
    }

    /// Its parts, as they are now.
    pub fn file(&self) -> anyhow::Result<ClusterFile> {
        match self {
            Target::Own { cluster, .. } => Ok(cluster.file().clone()),
            Target::Running { dir } => ClusterFile::read(dir),
            Target::Foreign { .. } => bail!("the processes of this cluster are not known"),
        }
    }

    /// A client of its masters.
    pub fn masters(&self) -> anyhow::Result<MasterClient> {
        match self {
            Target::Foreign { masters } => Ok(masters.clone()),
            Target::Own { .. } | Target::Running { .. } => {
                Ok(MasterClient::new(self.file()?.master_addrs()))
            }
        }
    }

    /// The datanode with this UUID.
    pub fn datanode(&self, node: &str) -> anyhow::Result<DatanodeEntry> {
        let found = self.file()?.datanodes.into_iter().find(|d| d.id == node);
        found.with_context(|| format!("cluster.json knows no datanode {node}"))
    }

    /// Kills (SIGKILL) a datanode's process and waits until it is gone; its pid.
    pub async fn kill(&mut self, node: &str) -> anyhow::Result<u32> {
        let entry = self.datanode(node)?;
        match self {
            Target::Own { cluster, .. } => cluster.kill_datanode(node)?,
            Target::Running { .. } => {
                signal_foreign(entry.pid, &entry.data_dir, Signal::KILL)?;
                let what = format!("the end of process {}", entry.pid);
                wait::until(what, PROCESS, async || {
                    // The `dev` command reaps it.
                    let there = std::path::Path::new(&format!("/proc/{}", entry.pid)).exists();
                    Ok(if there { Look::NotYet("it is there".into()) } else { Look::Done(()) })
                })
                .await?;
            }
            Target::Foreign { .. } => bail!("the cluster is somebody else's"),
        }
        Ok(entry.pid)
    }

    /// Starts the datanode again that had the process `killed`.
    pub async fn bring_back(&mut self, node: &str, killed: u32) -> anyhow::Result<()> {
        match self {
            Target::Own { cluster, .. } => cluster.start_ended(Duration::ZERO).await.map(drop),
            Target::Running { dir } => {
                cluster_file::signal_dev(dir, Signal::HUP)?;
                let dir = dir.clone();
                wait::until("the datanode's new process", PROCESS, async || {
                    let file = ClusterFile::read(&dir)?;
                    let entry = file.datanodes.into_iter().find(|d| d.id == node);
                    Ok(match entry {
                        Some(entry) if entry.pid != killed => Look::Done(()),
                        _ => Look::NotYet("cluster.json has the old pid".into()),
                    })
                })
                .await
            }
            Target::Foreign { .. } => bail!("the cluster is somebody else's"),
        }
    }

    /// Does harm to a datanode; what it takes to [`mend`](Self::mend) it.
    ///
    /// # Errors
    /// If the datanode is not there, or not one that this can be done to.
    pub async fn harm(&mut self, node: &str, fault: Fault) -> anyhow::Result<Harmed> {
        match fault {
            Fault::Kill => return Ok(Harmed::Killed(self.kill(node).await?)),
            Fault::Freeze => self.signal(node, Signal::STOP)?,
            Fault::Cut => self.connect(node, false)?,
        }
        Ok(Harmed::Still(fault))
    }

    /// Ends the harm.
    ///
    /// # Errors
    /// If the datanode can't be started, or is gone.
    pub async fn mend(&mut self, node: &str, harmed: Harmed) -> anyhow::Result<()> {
        match harmed {
            Harmed::Killed(pid) => self.bring_back(node, pid).await,
            Harmed::Still(Fault::Cut) => self.connect(node, true),
            Harmed::Still(Fault::Kill | Fault::Freeze) => self.signal(node, Signal::CONT),
        }
    }

    fn signal(&mut self, node: &str, signal: Signal) -> anyhow::Result<()> {
        let entry = self.datanode(node)?;
        match self {
            Target::Own { cluster, .. } => {
                let which = cluster.which(node)?;
                cluster.signal(which, signal);
                Ok(())
            }
            Target::Running { .. } => signal_foreign(entry.pid, &entry.data_dir, signal),
            Target::Foreign { .. } => bail!("the cluster is somebody else's"),
        }
    }

    /// Whether a datanode and all others, the drill's clients among them, hear each other.
    fn connect(&mut self, node: &str, hear: bool) -> anyhow::Result<()> {
        let Target::Own { cluster, network: Some(network), .. } = self else {
            bail!("the cluster has no network of the drill's own");
        };
        let one = End::Node(cluster.which(node)?);
        let mut condition = Condition::default();
        if !hear {
            let others = network.ends().into_iter().filter(|end| *end != one);
            condition.cut = others.flat_map(|other| [(one, other), (other, one)]).collect();
        }
        network.apply(&condition)
    }

    /// Ends a process of the drill's own cluster in order (SIGTERM), and starts it again.
    pub async fn restart(&mut self, which: Which) -> anyhow::Result<()> {
        let Target::Own { cluster, .. } = self else { bail!("the cluster is another command's") };
        cluster.signal(which, Signal::TERM);
        let ended = wait::until(format!("the end of {which}"), PROCESS, async || {
            let ended = cluster.how_ended(which);
            Ok(ended.map_or_else(|| Look::NotYet("it runs".into()), Look::Done))
        });
        let (status, log) = ended.await?;
        if !status.success() {
            bail!("{which} ended with {status}: {log}");
        }
        cluster.start_again(which)
    }

    /// Ends what the drill began. The directory of a cluster of its own stays if `keep` is set;
    /// where it is, is returned then.
    pub async fn close(self, keep: bool) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Target::Running { .. } | Target::Foreign { .. } => Ok(None),
            Target::Own { cluster, dir, network } => {
                cluster.stop().await?;
                drop(network);
                if keep {
                    return Ok(Some(dir.keep()));
                }
                dir.close().context("removing the drill's directory")?;
                Ok(None)
            }
        }
    }
}

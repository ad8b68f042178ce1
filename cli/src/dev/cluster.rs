//! A development cluster: its processes, from the first start to the last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use sbk_master_client::MasterClient;
use sbk_ports::Reserved;
use sbk_proto::v1::VolumeInfo;

use super::child::{Process, Recipe};
use super::keys;
use super::plan::{DatanodePlan, Host, Hosts, MasterPlan, Plan, Wanted};
use crate::args::VolumeSpec;
use crate::cluster_file::{ClusterFile, DatanodeEntry, DirLock, MasterEntry, VolumeEntry};
use crate::commands::volume::{create_request, look_at};
use crate::progress::Progress;
use crate::view::{VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::nbd::NbdClient;

/// How long processes may take to stop after SIGTERM.
const STOP: Duration = Duration::from_secs(60);
/// How long a look at the lock of the directory may last.
const LOCK: Duration = Duration::from_millis(500);
/// How long one question to the masters may take while the cluster comes up.
const ASK: Duration = Duration::from_secs(2);

/// What the cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its data, logs and `cluster.json` are.
    pub dir: PathBuf,
    /// The `sbkctl` binary.
    pub exe: PathBuf,
    /// How many processes.
    pub wanted: Wanted,
    /// Hosts of their own for the processes; they say how many there are. The cluster is not found
    /// again then.
    pub hosts: Option<Hosts>,
    /// The volumes to have, each with 3 replicas, or fewer on fewer datanodes.
    pub volumes: Vec<VolumeSpec>,
    /// `--wal-retain` of the datanodes.
    pub wal_retain: Option<u64>,
    /// `--key-file` of the datanodes, made with a key in it if it is not there; `None`: they have no key.
    pub key_file: Option<PathBuf>,
    /// Each datanode has such a file of its own, with its number behind a `-`, not all of them the same one.
    pub own_keys: bool,
    /// More options of the datanodes.
    pub datanode_args: Vec<String>,
    /// `--capacity` of the datanodes.
    pub capacity: Option<u64>,
    /// Data directories of each datanode.
    pub disks: usize,
    /// Block devices of each datanode, beside these; the first datanode's come first.
    pub devices: Vec<Vec<PathBuf>>,
    /// `--replace-after` of the masters.
    pub replace_after: Option<Duration>,
    /// `--growth-watermark` of the datanodes.
    pub growth_watermark: Option<String>,
    /// How long it may take until it serves.
    pub limit: Duration,
}

impl Options {
    /// A cluster of 3 masters and 3 datanodes in `dir` with no volume, from this binary.
    pub fn new(dir: PathBuf) -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("finding this binary")?;
        let limit = Duration::from_secs(60);
        let wanted = Wanted::default();
        let volumes = Vec::new();
        // A developer's disk is often nearly full, and the cluster small.
        let growth_watermark = Some("64MiB".to_owned());
        let key_file = Some(dir.join("keys"));
        Ok(Self {
            dir,
            exe,
            wanted,
            hosts: None,
            volumes,
            wal_retain: None,
            key_file,
            own_keys: false,
            datanode_args: Vec::new(),
            capacity: None,
            disks: 1,
            devices: Vec::new(),
            replace_after: None,
            growth_watermark,
            limit,
        })
    }
}

/// A data directory of a datanode of the cluster in `dir`; datanodes and their disks are numbered from 1.
pub fn data_dir(dir: &Path, datanode: u64, disk: usize) -> PathBuf {
    match disk {
        1 => dir.join(format!("datanode-{datanode}")),
        _ => dir.join(format!("datanode-{datanode}-disk-{disk}")),
    }
}

/// Where the same datanode has what it may lose.
fn runtime_dir(dir: &Path, datanode: u64) -> PathBuf {
    dir.join(format!("datanode-{datanode}-run"))
}

/// One process of a cluster, by its position from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// A master.
    Master(usize),
    /// A datanode.
    Datanode(usize),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Which::Master(at) => write!(f, "master {}", at + 1),
            Which::Datanode(at) => write!(f, "datanode {}", at + 1),
        }
    }
}

/// A running cluster. Dropping it kills its processes; [`stop`](Self::stop) lets them finish.
#[derive(Debug)]
pub struct DevCluster {
    options: Options,
    plan: Plan,
    // In the plan's order. Before the lock, so that they are gone when it is released.
    masters: Vec<Process>,
    datanodes: Vec<Process>,
    file: ClusterFile,
    client: MasterClient,
    _lock: DirLock,
    _ports: Reserved,
}

impl DevCluster {
    /// Starts the cluster and waits until all of it serves. To be called on a thread that lives as
    /// long as the cluster is to.
    ///
    /// # Errors
    /// If the directory is in use or holds another cluster, a process ends, or
    /// [`wait::TimedOut`].
    pub async fn start(mut options: Options) -> anyhow::Result<Self> {
        let logs = options.dir.join("logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("creating the directory {}", logs.display()))?;
        options.dir = options
            .dir
            .canonicalize()
            .with_context(|| format!("finding the directory {}", options.dir.display()))?;
        if let (Some(path), false) = (&mut options.key_file, options.own_keys) {
            *path = keys::make(path)
                .with_context(|| format!("making the key file {}", path.display()))?;
        }
        let lock = take_lock(&options.dir).await?;
        ClusterFile::remove(&options.dir)?;
        let mut ports = Reserved::default();
        let plan = match &options.hosts {
            Some(hosts) => Plan::on(hosts),
            None => {
                let (dir, devices) = (&options.dir, &options.devices);
                let plan = Plan::load_or_make(dir, options.wanted, devices, &mut ports)?;
                take_ports(&plan, &mut ports)?;
                plan
            }
        };
        let client = MasterClient::new(plan.master_addrs()).with_deadline(ASK);
        let mut cluster = Self {
            masters: Vec::new(),
            datanodes: Vec::new(),
            file: ClusterFile::default(),
            client,
            _lock: lock,
            _ports: ports,
            options,
            plan,
        };
        for master in &cluster.plan.masters {
            cluster.masters.push(cluster.master(master)?.start()?);
        }
        for datanode in &cluster.plan.datanodes {
            cluster.datanodes.push(cluster.datanode(datanode)?.start()?);
        }
        cluster.bring_up().await?;
        Ok(cluster)
    }

    /// Where it is and what it consists of, as in `cluster.json`.
    pub fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// A client of its masters.
    pub fn client(&self) -> MasterClient {
        self.client.with_deadline(sbk_master_client::DEFAULT_DEADLINE)
    }

    fn recipe(
        &self,
        kind: &str,
        number: u64,
        host: Option<&Host>,
        args: &[&str],
    ) -> anyhow::Result<Recipe> {
        let name = format!("{kind}-{number}");
        let path = |dir: PathBuf| {
            dir.into_os_string()
                .into_string()
                .map_err(|_| anyhow::anyhow!("the directory's name is not UTF-8"))
        };
        let mut all = vec![kind.to_owned()];
        if kind == "master" || self.options.disks > 0 {
            all.extend(["--data-dir".into(), path(self.options.dir.join(&name))?]);
        }
        if kind == "datanode" {
            all.extend(["--runtime-dir".into(), path(runtime_dir(&self.options.dir, number))?]);
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let log = self.options.dir.join("logs").join(format!("{name}.log"));
        Ok(Recipe {
            name: format!("{kind} {number}"),
            through: host.map_or_else(Vec::new, |host| host.through.clone()),
            exe: self.options.exe.clone(),
            args: all,
            log,
        })
    }

    /// The key file that the datanode with this number, from 1, has for itself, if each has one of its own.
    pub fn own_key_file(&self, number: u64) -> Option<PathBuf> {
        let path = self.options.key_file.as_ref().filter(|_| self.options.own_keys)?;
        let mut name = path.clone().into_os_string();
        name.push(format!("-{number}"));
        Some(name.into())
    }

    fn master(&self, plan: &MasterPlan) -> anyhow::Result<Recipe> {
        let (id, cluster) = (plan.id.to_string(), self.plan.cluster());
        let args =
            ["--id", &id, "--listen", &plan.listen, "--http", &plan.http, "--cluster", &cluster];
        let replace_after = self.options.replace_after.map(|after| after.as_secs().to_string());
        let replace_after = replace_after.iter().flat_map(|after| ["--replace-after", after]);
        let args: Vec<_> = args.into_iter().chain(replace_after).collect();
        let hosts = self.options.hosts.as_ref();
        let host = hosts.and_then(|hosts| hosts.masters.get(plan.id as usize - 1));
        self.recipe("master", plan.id, host, &args)
    }

    fn datanode(&self, plan: &DatanodePlan) -> anyhow::Result<Recipe> {
        let masters = self.plan.master_addrs().join(",");
        let retain = self.options.wal_retain.map(|bytes| bytes.to_string());
        let mut args = vec!["--masters", &masters, "--listen", &plan.listen, "--http", &plan.http];
        args.extend(["--nbd", &plan.nbd]);
        if let Some(retain) = &retain {
            args.extend(["--wal-retain", retain]);
        }
        let capacity = self.options.capacity.map(|bytes| bytes.to_string());
        if let Some(capacity) = &capacity {
            args.extend(["--capacity", capacity]);
        }
        if let Some(watermark) = &self.options.growth_watermark {
            args.extend(["--growth-watermark", watermark]);
        }
        let own = self.own_key_file(plan.number);
        if let Some(path) = &own {
            keys::make(path).with_context(|| format!("making the key file {}", path.display()))?;
        }
        let key_file = own.as_ref().or(self.options.key_file.as_ref());
        if let Some(path) = key_file {
            let path = path.to_str().context("the key file's name is not UTF-8")?;
            args.extend(["--key-file", path]);
        }
        args.extend(self.options.datanode_args.iter().map(String::as_str));
        let more: Vec<_> = (2..=self.options.disks)
            .map(|disk| data_dir(&self.options.dir, plan.number, disk))
            .map(|dir| dir.into_os_string().into_string())
            .collect::<Result<_, _>>()
            .map_err(|_| anyhow::anyhow!("the directory's name is not UTF-8"))?;
        args.extend(more.iter().flat_map(|dir| ["--data-dir", dir]));
        let devices = self.options.devices.get(plan.number as usize - 1).into_iter().flatten();
        let devices: Vec<_> = devices.map(|device| device.to_string_lossy()).collect();
        args.extend(devices.iter().flat_map(|device| ["--device", device]));
        let hosts = self.options.hosts.as_ref();
        let host = hosts.and_then(|hosts| hosts.datanodes.get(plan.number as usize - 1));
        self.recipe("datanode", plan.number, host, &args)
    }

    /// Waits for the quorum, the datanodes and the volumes, then writes `cluster.json`.
    async fn bring_up(&mut self) -> anyhow::Result<()> {
        let limit = self.options.limit;
        let mut progress = Progress::new();
        let client = self.client.clone();
        let count = self.plan.datanodes.len();
        self.wait("the masters and datanodes", limit, &mut progress, async || {
            wait::answered(client.list_nodes().await, |answer| {
                let alive = answer.nodes.iter().filter(|n| n.alive).count();
                if alive >= count {
                    return Look::Done(());
                }
                Look::NotYet(format!("{alive} of {count} datanodes have joined"))
            })
        })
        .await?;
        for spec in self.options.volumes.clone() {
            self.have_volume(&spec, &mut progress).await?;
        }
        self.write_file().await
    }

    /// Makes sure that there is such a volume and that every datanode serves it.
    async fn have_volume(
        &mut self,
        spec: &VolumeSpec,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let replicas = self.plan.datanodes.len().min(3) as u32;
        let existing = self.client().list_volumes().await?.volumes;
        let volume = match existing.into_iter().find(|v| v.name == spec.name && !v.deleting) {
            Some(volume) => volume,
            None => {
                let request = create_request(&spec.name, spec.size, replicas);
                self.client().create_volume(request).await?
            }
        };
        let limit = self.options.limit;
        let client = self.client.clone();
        let id = id_text(&volume.id);
        let what = format!("volume '{}' to serve", spec.name);
        self.wait(&what, limit, progress, async || {
            look_at(&client, &id, |info| info.serving).await
        })
        .await?;
        let ports: Vec<String> = self.plan.datanodes.iter().map(|d| d.nbd.clone()).collect();
        let what = format!("volume '{}' on every datanode", spec.name);
        self.wait(&what, limit, progress, async || {
            for addr in &ports {
                match NbdClient::connect(addr, &spec.name).await {
                    Ok(client) => client.disconnect().await,
                    Err(e) => return Ok(Look::NotYet(e.to_string())),
                }
            }
            Ok(Look::Done(()))
        })
        .await
    }

    /// Waits like [`wait::until`], and fails at once when a process ends meanwhile.
    async fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        progress: &mut Progress,
        look: impl AsyncFn() -> anyhow::Result<Look<T>>,
    ) -> anyhow::Result<T> {
        wait::until(what, limit, async || {
            self.check_alive()?;
            let seen = look().await?;
            if let Look::NotYet(seen) = &seen {
                progress.show(|| format!("waiting for {what}: {seen}"));
            }
            Ok(seen)
        })
        .await
    }

    /// An error if a process has ended, with the end of its log.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        for process in self.masters.iter_mut().chain(&mut self.datanodes) {
            if let Some(status) = process.ended() {
                bail!(
                    "{} ended ({status}); its log {} ends with:\n{}",
                    process.recipe.name,
                    process.recipe.log.display(),
                    process.recipe.log_tail()
                );
            }
        }
        Ok(())
    }

    /// Brings `cluster.json` up to date with pids and volumes.
    async fn write_file(&mut self) -> anyhow::Result<()> {
        let nodes = self.client().list_nodes().await?.nodes;
        let mut file = ClusterFile::default();
        for (plan, process) in self.plan.masters.iter().zip(&self.masters) {
            let (listen, http) = (plan.listen.clone(), plan.http.clone());
            file.masters.push(MasterEntry { id: plan.id, pid: process.pid(), listen, http });
        }
        for (plan, process) in self.plan.datanodes.iter().zip(&self.datanodes) {
            let node = nodes.iter().find(|n| n.addr == plan.listen);
            let node = node.with_context(|| format!("no datanode joined from {}", plan.listen))?;
            file.datanodes.push(DatanodeEntry {
                id: id_text(&node.id),
                pid: process.pid(),
                listen: plan.listen.clone(),
                http: plan.http.clone(),
                nbd: plan.nbd.clone(),
                data_dir: match self.options.disks {
                    0 => runtime_dir(&self.options.dir, plan.number),
                    _ => data_dir(&self.options.dir, plan.number, 1),
                },
            });
        }
        let volumes = self.client().list_volumes().await?.volumes;
        for spec in &self.options.volumes {
            let primary = volumes.iter().find(|v| v.name == spec.name).map(VolumeView::of);
            let primary = primary.and_then(|view| view.primary);
            let nbd = way_in(&file.datanodes, primary.as_deref());
            let nbd_uri = format!("nbd://{nbd}/{}", spec.name);
            file.volumes.push(VolumeEntry { name: spec.name.clone(), nbd_uri });
        }
        file.write(&self.options.dir)?;
        self.file = file;
        Ok(())
    }

    /// Pids of the processes that ended, by name, with how. Told once each time one ends.
    pub fn ended(&mut self) -> Vec<(String, u32, String)> {
        let mut ended = Vec::new();
        for process in self.masters.iter_mut().chain(&mut self.datanodes) {
            if let Some(status) = process.ended() {
                ended.push((process.recipe.name.clone(), process.pid(), status.to_string()));
            }
        }
        ended
    }

    /// Starts every process again that has ended, unless it was started less than `rest` ago; how
    /// many. `cluster.json` then has the new pids.
    pub async fn start_ended(&mut self, rest: Duration) -> anyhow::Result<usize> {
        let mut started = 0;
        for process in self.masters.iter_mut().chain(&mut self.datanodes) {
            if process.ended().is_some() && process.age() >= rest {
                *process = process.recipe.start()?;
                started += 1;
            }
        }
        if started > 0 {
            self.refresh_pids()?;
        }
        Ok(started)
    }

    fn refresh_pids(&mut self) -> anyhow::Result<()> {
        for (entry, process) in self.file.masters.iter_mut().zip(&self.masters) {
            entry.pid = process.pid();
        }
        for (entry, process) in self.file.datanodes.iter_mut().zip(&self.datanodes) {
            entry.pid = process.pid();
        }
        self.file.write(&self.options.dir)
    }

    /// Starts the datanode with this UUID again, which has ended.
    pub fn start_datanode(&mut self, node: &str) -> anyhow::Result<()> {
        let position = self.file.datanodes.iter().position(|d| d.id == node);
        let position = position.with_context(|| format!("no datanode here is called {node}"))?;
        let process = &mut self.datanodes[position];
        anyhow::ensure!(process.ended().is_some(), "datanode {node} runs");
        *process = process.recipe.start()?;
        self.refresh_pids()
    }

    fn process(&mut self, which: Which) -> &mut Process {
        match which {
            Which::Master(at) => &mut self.masters[at],
            Which::Datanode(at) => &mut self.datanodes[at],
        }
    }

    /// Kills (SIGKILL) a process and waits until it is gone.
    pub fn kill(&mut self, which: Which) {
        self.process(which).kill();
    }

    /// Sends a signal to a process, unless it has ended.
    pub fn signal(&mut self, which: Which, signal: Signal) {
        self.process(which).signal(signal);
    }

    /// Whether a process has said nothing yet since it was started.
    pub fn is_silent(&mut self, which: Which) -> bool {
        self.process(which).is_silent()
    }

    /// How a process ended, if it did, and the end of its log.
    pub fn how_ended(&mut self, which: Which) -> Option<(std::process::ExitStatus, String)> {
        let process = self.process(which);
        process.ended().map(|status| (status, process.recipe.log_tail()))
    }

    /// Starts a process again, if it has ended. `cluster.json` then has the new pid.
    pub fn start_again(&mut self, which: Which) -> anyhow::Result<()> {
        let process = self.process(which);
        if process.ended().is_some() {
            *process = process.recipe.start()?;
            self.refresh_pids()?;
        }
        Ok(())
    }

    /// Has a process be started with more options from now on. One that runs goes on as it was started.
    pub fn add_options(&mut self, which: Which, options: &[&str]) {
        let recipe = &mut self.process(which).recipe;
        recipe.args.extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// Kills (SIGKILL) the datanode with this UUID, and waits until it is gone.
    pub fn kill_datanode(&mut self, node: &str) -> anyhow::Result<()> {
        let which = self.which(node)?;
        self.kill(which);
        Ok(())
    }

    /// The datanode with this UUID.
    pub fn which(&self, node: &str) -> anyhow::Result<Which> {
        let position = self.file.datanodes.iter().position(|d| d.id == node);
        position.map(Which::Datanode).with_context(|| format!("no datanode here is called {node}"))
    }

    /// Kills (SIGKILL) the master with this number, and waits until it is gone.
    pub fn kill_master(&mut self, id: u64) -> anyhow::Result<()> {
        let position = self.file.masters.iter().position(|m| m.id == id);
        let position = position.with_context(|| format!("no master here has number {id}"))?;
        self.masters[position].kill();
        Ok(())
    }

    /// Creates a volume and waits until it serves. It is in `cluster.json` then.
    pub async fn create_volume(&mut self, spec: VolumeSpec) -> anyhow::Result<VolumeInfo> {
        let mut progress = Progress::new();
        self.have_volume(&spec, &mut progress).await?;
        let info = self.client().get_volume(&spec.name).await?;
        self.options.volumes.push(spec);
        self.write_file().await?;
        Ok(info)
    }

    /// The datanode that has the primary of a volume now.
    pub async fn primary_of(&self, volume: &str) -> anyhow::Result<Option<DatanodeEntry>> {
        let view = VolumeView::of(&self.client().get_volume(volume).await?);
        Ok(self.file.datanodes.iter().find(|d| Some(&d.id) == view.primary.as_ref()).cloned())
    }

    /// Stops everything in order and waits for it. The masters go first: otherwise they would see
    /// each datanode's end as a failure, and move primaries about until the last one is gone.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        ClusterFile::remove(&self.options.dir)?;
        stop_all(&mut self.masters).await;
        stop_all(&mut self.datanodes).await;
        Ok(())
    }
}

/// By which datanode clients are told to come: one that is not the primary, where there is another.
/// A connection ends with the process that it leads to, so a client of the primary's own node would
/// not see a failover but a lost connection.
fn way_in<'a>(datanodes: &'a [DatanodeEntry], primary: Option<&str>) -> &'a str {
    let other = datanodes.iter().find(|d| Some(d.id.as_str()) != primary);
    other.or(datanodes.first()).map_or("", |d| &d.nbd)
}

async fn stop_all(processes: &mut [Process]) {
    for process in processes.iter_mut() {
        process.signal(Signal::TERM);
    }
    let stopped = wait::until("processes to stop", STOP, async || {
        let left = processes.iter_mut().filter_map(|p| p.ended().is_none().then_some(())).count();
        let look = match left {
            0 => Look::Done(()),
            left => Look::NotYet(format!("{left} of them run")),
        };
        Ok(look)
    })
    .await;
    if let Err(e) = stopped {
        tracing::warn!(error = %e, "processes are killed");
    }
    for process in processes {
        process.kill();
    }
}

/// Who only looks whether a cluster runs here holds the lock for an instant, so it is tried more
/// than once.
async fn take_lock(dir: &Path) -> anyhow::Result<DirLock> {
    let found = wait::until("the directory's lock", LOCK, async || {
        let held = || Look::NotYet("another `sbkctl dev` holds it".into());
        Ok(DirLock::take(dir)?.map_or_else(held, Look::Done))
    })
    .await;
    match found {
        Err(e) if e.is::<wait::TimedOut>() => bail!(
            "a development cluster runs in {} already; stop it, or use another --dir",
            dir.display()
        ),
        other => other,
    }
}

fn take_ports(plan: &Plan, ports: &mut Reserved) -> anyhow::Result<()> {
    for master in &plan.masters {
        for addr in [&master.listen, &master.http] {
            ports.take(addr, &format!("master {}", master.id))?;
        }
    }
    for datanode in &plan.datanodes {
        for addr in [&datanode.listen, &datanode.http, &datanode.nbd] {
            ports.take(addr, &format!("datanode {}", datanode.number))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_by_another_node_than_the_primarys() {
        let node = |id: &str, nbd: &str| DatanodeEntry {
            id: id.into(),
            pid: 1,
            listen: String::new(),
            http: String::new(),
            nbd: nbd.into(),
            data_dir: PathBuf::new(),
        };
        let both = [node("a", "h:1"), node("b", "h:2")];
        assert_eq!(way_in(&both, Some("a")), "h:2");
        assert_eq!(way_in(&both, Some("b")), "h:1");
        assert_eq!(way_in(&both, None), "h:1");
        assert_eq!(way_in(&both[..1], Some("a")), "h:1", "there is no other");
    }
}

//! `sbkctl drill chaos`: for minutes or hours, whatever can fail fails, by a schedule made from a
//! seed, while clients write and read and every operation is recorded.
//!
//! Again and again everything is healed. Then the cluster must become whole within a bound; every
//! block is read, the record of each block is checked for linearizability, and the replicas are
//! compared. Whatever is found wrong ends the drill, and all that there is to look at is kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::args::{ChaosArgs, Global, NetworkMode};
use crate::commands::volume::wait_until_serving;
use crate::dev::cluster::{DevCluster, Options, data_dir};
use crate::dev::plan::Wanted;
use crate::drill::network::{self, Network};
use crate::error::Usage;
use crate::output::Output;
use crate::view::VolumeView;
use crate::workload::history::{History, MAX_OPERATIONS};
use crate::workload::roaming::{Roaming, RoamingOptions, RoamingStats};

mod calm;
mod disk;
mod failing;
mod keep;
mod log;
mod losses;
mod quiet;
mod reached;
mod report;
mod schedule;
mod stage;
mod volumes;

use disk::SmallDisk;
use failing::FailingDisk;
use log::{Log, Sums};
use losses::Losses;
use reached::Counts;
use report::{Report, VolumeReport};
use schedule::{CLASSES, Class, Round, Schedule, World};
use stage::Stage;
use volumes::KINDS;

/// What the cluster consists of.
const MASTERS: usize = 3;
const DATANODES: usize = 4;
/// Datanodes with a small file system of their own. The others are on the disk that the drill's
/// directory is on, whose syncs take time.
const SMALL_DISKS: [usize; 1] = [DATANODES - 1];
/// Data directories of each datanode.
const DISKS: usize = 2;
/// Datanodes whose second one is a disk of its own that can fail, and those with a raw device as well that can.
const FAILING_DISKS: [usize; 2] = [0, 1];
const FAILING_DEVICES: [usize; 1] = [2];
/// After so long the masters replace what is away, one of these by three seeds: then who is away for long is replaced, or comes back
/// before that.
const REPLACE_AFTER: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];
/// Size of each volume, and a third of the blocks that are used.
const VOLUME: u64 = 64 << 20;
const USED_BLOCKS: u64 = 2048;
/// How often each replica is read in the background.
const SCRUB_EVERY: &str = "20s";
/// WAL that the datanodes keep for others, one of these by the seed: after an absence of some
/// seconds a delta is the rule, the exception, or as it happens.
const WAL_RETAIN: [u64; 3] = [1 << 20, 4 << 20, 32 << 20];
/// What each datanode says that it can hold, so that the one on the small disk gets its share.
const CAPACITY: u64 = 1 << 40;
/// Clients of each volume.
const CLIENTS: u32 = 3;
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(20);
/// How long a new volume may take to serve.
const SERVES: Duration = Duration::from_secs(60);
/// Violations that are listed.
const LISTED: usize = 50;

/// Why a run ends.
#[derive(Debug)]
enum End {
    /// Its time is over.
    Done,
    /// A signal.
    Interrupted,
    /// What is wrong.
    Wrong(Vec<String>),
}

struct Run<'a> {
    args: &'a ChaosArgs,
    stage: Stage,
    loads: BTreeMap<&'static str, Roaming>,
    schedule: Schedule,
    log: Log,
    losses: Losses,
    counts: Counts,
    unavailable: BTreeMap<String, String>,
    checks: u64,
    longest_convergence: Duration,
}

/// Runs the command.
pub async fn run(global: &Global, args: ChaosArgs) -> anyhow::Result<()> {
    if global.dir.is_some() || !global.masters.is_empty() {
        let text = "`sbkctl drill chaos` harms a cluster of its own, never one that runs already; \
                    leave --dir and --masters away";
        return Err(Usage(text.into()).into());
    }
    let without = match (network::is_inside(), args.network) {
        (true, _) => None,
        (false, NetworkMode::Loopback) => Some("--network loopback was asked for".to_owned()),
        (false, NetworkMode::Auto | NetworkMode::Namespaces) => match network::obstacle() {
            None => return Err(network::enter().context("moving into a network namespace")),
            Some(why) if args.network == NetworkMode::Namespaces => {
                bail!("no network namespaces with packet filters can be made here: {why}")
            }
            Some(why) => Some(format!("no network namespaces can be made here: {why}")),
        },
    };
    if let Some(why) = &without {
        eprintln!("All processes run on 127.0.0.1: no partitions, no full disk ({why}).");
    }
    let dir = tempfile::Builder::new().prefix("sbk-chaos-").tempdir();
    let dir = dir.context("creating a temporary directory")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening to signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening to signals")?;
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    let seed = args.seed.unwrap_or_else(|| u64::from(Uuid::new_v4().as_fields().0));
    let prepared = tokio::select! {
        prepared = Run::prepare(dir.path(), &args, seed, without) => prepared,
        // What was started is dropped, and ends with that.
        () = &mut stop => bail!("interrupted before the cluster served"),
    };
    let mut run = match prepared {
        Ok(run) => run,
        Err(e) => {
            let kept = dir.keep();
            return Err(e.context(format!("preparing the cluster in {}", kept.display())));
        }
    };
    let ended = tokio::select! {
        ended = run.go() => ended,
        () = &mut stop => Ok(End::Interrupted),
    };
    let report = run.finish(ended, dir, seed).await?;
    Output::new(global.output).show(&report, Report::words)?;
    match (report.ok, report.interrupted) {
        (true, false) => Ok(()),
        (true, true) => bail!("interrupted after {:.0} s", report.elapsed_s),
        (false, _) => bail!("the drill failed; its report says where everything is kept"),
    }
}

/// What can be caused here.
fn world(network: bool, no_disks: Option<&str>) -> (World, BTreeMap<String, String>) {
    let mut classes: BTreeSet<Class> = CLASSES.into();
    let mut unavailable = BTreeMap::new();
    let mut leave_out = |class: Class, why: &str| {
        if classes.remove(&class) {
            unavailable.insert(class.word().to_owned(), why.to_owned());
        }
    };
    if !network {
        for class in CLASSES.into_iter().filter(|c| c.is_of_network() || *c == Class::FullDisk) {
            leave_out(class, "that needs namespaces of its own");
        }
    } else if !network::can_delay() {
        leave_out(Class::Delay, "this kernel has no netem");
    }
    if let Some(why) = no_disks {
        leave_out(Class::FailDisk, why);
    }
    let world = World {
        masters: MASTERS,
        datanodes: DATANODES,
        small_disks: SMALL_DISKS.into(),
        volumes: KINDS.len(),
        classes,
    };
    (world, unavailable)
}

impl<'a> Run<'a> {
    /// Starts the cluster, the volumes and the load.
    async fn prepare(
        dir: &Path,
        args: &'a ChaosArgs,
        seed: u64,
        without_network: Option<String>,
    ) -> anyhow::Result<Self> {
        let inside = without_network.is_none();
        // As the cluster calls it.
        let dir = &dir.canonicalize().context("finding the drill's directory")?;
        let mut log = Log::create(&dir.join("chaos.log"))?;
        log.tell(&format!("seed {seed}, in {}, pid {}", dir.display(), std::process::id()));
        let no_disks = match inside {
            true => failing::obstacle(dir),
            false => Some("that needs namespaces of its own".to_owned()),
        };
        let (world, unavailable) = world(inside, no_disks.as_deref());
        let mut options = Options::new(dir.to_owned())?;
        options.wal_retain = Some(WAL_RETAIN[(seed % WAL_RETAIN.len() as u64) as usize]);
        options.capacity = Some(CAPACITY);
        options.own_keys = true;
        options.datanode_args.extend(["--scrub-every".to_owned(), SCRUB_EVERY.to_owned()]);
        // Its disks are to run full.
        options.growth_watermark = Some("0".to_owned());
        options.wanted = Wanted {
            masters: Some(MASTERS as u64),
            datanodes: Some(DATANODES as u64),
            base_port: None,
        };
        options.disks = DISKS;
        options.replace_after = Some(REPLACE_AFTER[(seed / 3 % 2) as usize]);
        let mut failing = BTreeMap::new();
        if no_disks.is_none() {
            for at in FAILING_DISKS {
                let path = data_dir(dir, at as u64 + 1, DISKS);
                failing.insert(at, FailingDisk::make(path, false)?);
            }
            options.devices = vec![Vec::new(); DATANODES];
            for at in FAILING_DEVICES {
                let path = dir.join(format!("device-{}", at + 1));
                failing.insert(at, FailingDisk::make(path.clone(), true)?);
                options.devices[at].push(path);
            }
        }
        let (mut net, mut disks) = (None, BTreeMap::new());
        if inside {
            let made = Network::new(MASTERS, DATANODES)?;
            options.hosts = Some(made.hosts());
            net = Some(made);
            for at in SMALL_DISKS {
                disks.insert(at, SmallDisk::mount(dir.join(format!("datanode-{}", at + 1)))?);
            }
        }
        let cluster = DevCluster::start(options).await?;
        let stage = Stage::new(cluster, net, disks, failing);
        let client = stage.cluster.client();
        let losses = Losses::begin();
        let mut loads = BTreeMap::new();
        for (kind, number) in KINDS.iter().zip(1..) {
            let created = client.create_volume(kind.request(VOLUME)).await?;
            wait_until_serving(&client, &created, SERVES).await?;
            let options = RoamingOptions {
                nodes: stage.cluster.file().datanodes.iter().map(|d| d.nbd.clone()).collect(),
                export: kind.name.to_owned(),
                blocks: USED_BLOCKS,
                everything: true,
                clients: CLIENTS,
                depth: args.depth,
                pace: args.pace,
                seed: seed ^ number << 32,
                may_lose: kind.may_lose(),
            };
            let history = Arc::new(History::new(Uuid::new_v4()));
            loads.insert(kind.name, Roaming::start(history, options));
        }
        log.tell(&format!(
            "{} volumes serve, {} classes of faults",
            KINDS.len(),
            world.classes.len()
        ));
        Ok(Self {
            args,
            stage,
            loads,
            schedule: Schedule::new(seed, world),
            log,
            losses,
            counts: Counts::default(),
            unavailable,
            checks: 0,
            longest_convergence: Duration::ZERO,
        })
    }

    /// All rounds.
    async fn go(&mut self) -> anyhow::Result<End> {
        let mut left = self.args.faults.unwrap_or(u64::MAX);
        let whole = Duration::from_secs(60 * u64::from(self.args.minutes));
        let deadline = match self.args.faults {
            Some(_) => None,
            None => Some(Instant::now() + whole),
        };
        let over = |left: u64| left == 0 || deadline.is_some_and(|at| Instant::now() >= at);
        while !over(left) {
            let round = self.schedule.round(left);
            left -= round.len() as u64;
            self.write_down(&round)?;
            if let Some(wrong) = self.cause(round, deadline).await? {
                return Ok(End::Wrong(wrong));
            }
            let wrong = self.calm().await?;
            if !wrong.is_empty() {
                return Ok(End::Wrong(wrong));
            }
        }
        Ok(End::Done)
    }

    /// Causes the faults of a round and lets them end; what is wrong meanwhile, if anything is.
    async fn cause(
        &mut self,
        round: Round,
        deadline: Option<Instant>,
    ) -> anyhow::Result<Option<Vec<String>>> {
        let mut faults = VecDeque::from(round);
        while let Some(fault) = faults.pop_front_if(|fault| fault.class.is_quiet()) {
            let wrong = self.begin_quiet(&fault).await?;
            if !wrong.is_empty() {
                return Ok(Some(wrong));
            }
        }
        let begun = Instant::now();
        // Those whose victims other faults have, until one of these ends.
        let mut waiting = VecDeque::new();
        while !faults.is_empty() || !waiting.is_empty() || self.stage.is_harmed() {
            // Before a fault hides what ended by itself.
            let wrong = self.wrong_meanwhile();
            if !wrong.is_empty() {
                return Ok(Some(wrong));
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                faults.clear();
                waiting.clear();
            }
            if let Some(fault) = faults.pop_front_if(|f| begun + f.at <= Instant::now())
                && !self.stage.begin(&fault, &mut self.log).await?
            {
                self.log.record(&format!("#{} waits for its victims", fault.number));
                waiting.push_back(fault);
            }
            if self.stage.turn(&mut self.log)? || !self.stage.is_harmed() {
                for fault in std::mem::take(&mut waiting) {
                    if !self.stage.begin(&fault, &mut self.log).await? {
                        waiting.push_back(fault);
                    }
                }
            }
            if self.loads.values().any(|l| l.history().operations() > MAX_OPERATIONS / 2) {
                self.log.tell("the record of this round is long: on to the check");
                break;
            }
            self.log.show(self.sums());
            tokio::time::sleep(TICK).await;
        }
        Ok(None)
    }

    /// Adds a round to the written schedule.
    fn write_down(&self, round: &Round) -> anyhow::Result<()> {
        let path = self.stage.cluster.dir().join("schedule.txt");
        let mut text = format!("round {}\n", self.checks + 1);
        for fault in round {
            text += &format!("  {fault}\n");
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for load in self.loads.values() {
            let stats = load.stats();
            sums.writes += stats.writes;
            sums.reads += stats.reads;
            sums.longest_ms = sums.longest_ms.max(stats.longest_request_ms);
        }
        sums
    }

    /// What is wrong at first sight.
    fn wrong_meanwhile(&mut self) -> Vec<String> {
        let mut wrong = self.stage.unexpected_ends();
        for (volume, load) in &self.loads {
            for lost in load.lost() {
                let text = format!(
                    "volume {volume}: a connection to datanode {} ended: {}",
                    lost.node + 1,
                    lost.why
                );
                self.log.record(&text);
                if !self.stage.explains(lost.node, lost.at) {
                    wrong.push(format!("{text}; no fault explains it"));
                }
            }
            let stats = load.stats();
            if let Some(first) = stats.first_errors.first() {
                wrong.push(format!("volume {volume}: {} requests failed: {first}", stats.errors));
            }
        }
        wrong
    }

    /// Tells what there is to tell, keeps what is to be kept, and ends everything.
    async fn finish(
        mut self,
        ended: anyhow::Result<End>,
        dir: TempDir,
        seed: u64,
    ) -> anyhow::Result<Report> {
        let (mut violations, interrupted) = match ended {
            Ok(End::Done) => (Vec::new(), false),
            Ok(End::Interrupted) => (Vec::new(), true),
            Ok(End::Wrong(wrong)) => (wrong, false),
            // It could not be found out whether all is well: that is not well.
            Err(e) => (vec![format!("{e:#}")], false),
        };
        violations.truncate(LISTED);
        for violation in &violations {
            self.log.tell(&format!("WRONG: {violation}"));
        }
        let failed = !violations.is_empty();
        if failed {
            keep::pages(&self.stage.cluster).await?;
            // A process that dies loses its connections before it is seen to have ended.
            violations.extend(self.stage.unexpected_ends());
        }
        let volumes = self.volumes().await;
        let keep = failed || self.args.keep;
        self.counts.disks_replaced = self.stage.replaced;
        let told = keep::told(self.stage.cluster.dir())?;
        let mut loads = RoamingStats::default();
        volumes.iter().for_each(|volume| loads.add(&volume.load));
        let mut report = Report {
            reached: reached::reached(&told, &self.log.faults, &loads, self.counts),
            ok: !failed,
            seed,
            elapsed_s: self.log.elapsed().as_secs_f64(),
            interrupted,
            unavailable: self.unavailable,
            faults: self.log.faults.clone(),
            decisions: told.decisions,
            checks: self.checks,
            longest_convergence_ms: millis(self.longest_convergence),
            volumes,
            violations,
            folder: None,
            again: again(self.args, seed),
        };
        self.loads.clear();
        let json = self.stage.cluster.dir().join("cluster.json");
        if keep {
            // Stopping removes it.
            let copy = dir.path().join("cluster-as-it-ran.json");
            std::fs::copy(&json, &copy).with_context(|| format!("copying {}", json.display()))?;
        }
        self.log.record("stopping");
        self.stage.close(keep).await?;
        if keep {
            let kept: PathBuf = dir.keep();
            report.folder = Some(kept.display().to_string());
            let text = serde_json::to_vec_pretty(&report).context("writing JSON")?;
            let path = kept.join("report.json");
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        } else {
            dir.close().context("removing the drill's directory")?;
        }
        Ok(report)
    }

    async fn volumes(&self) -> Vec<VolumeReport> {
        let masters = self.stage.masters();
        let mut volumes = Vec::new();
        for kind in KINDS {
            let info = masters.get_volume(kind.name).await;
            let view = info.ok().map(|info| VolumeView::of(&info));
            let load = &self.loads[kind.name];
            volumes.push(VolumeReport {
                kind: kind.told(),
                epoch: view.as_ref().and_then(|view| view.epoch).unwrap_or(0),
                losses: view.map_or(0, |view| view.loss_generation),
                acknowledged_blocks: load.history().acknowledged(),
                open_writes: load.history().open_writes(),
                load: load.stats(),
            });
        }
        volumes
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The command line that makes the same schedule.
fn again(args: &ChaosArgs, seed: u64) -> String {
    let length = match args.faults {
        Some(faults) => format!("--faults {faults}"),
        None => format!("--minutes {}", args.minutes),
    };
    let mut text = format!("sbkctl drill chaos {length} --seed {seed}");
    let given = ChaosArgs::default_values();
    if args.depth != given.depth {
        text += &format!(" --depth {}", args.depth);
    }
    if args.pace != given.pace {
        text += &format!(" --pace {}", args.pace);
    }
    if args.network == NetworkMode::Loopback {
        text += " --network loopback";
    }
    text
}

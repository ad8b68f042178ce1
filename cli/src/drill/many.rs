//! `sbkctl drill many`: many volumes and many clients on one cluster, which loses the datanode with the
//! most primaries at once. Told is what the processes take of the machine, phase by phase.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use sbk_master_client::MasterClient;
use sbk_proto::v1::ListVolumesResponse;
use serde::Serialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::bench::{ANSWER, WHOLE};
use super::footprint::{self, Footprint};
use super::parts::{Spread, spread};
use super::target::Target;
use crate::args::{Global, seconds};
use crate::commands::verify;
use crate::commands::volume::create_request;
use crate::output::{Output, table};
use crate::progress::Progress;
use crate::size::{parse_size, show_size};
use crate::view::{VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::history::History;
use crate::workload::roaming::{Roaming, RoamingOptions, RoamingStats};
use crate::workload::stamp::BLOCK;

/// Blocks of each volume that its clients use.
const USED_BLOCKS: u64 = 1024;
/// Orders to make a volume that are out at the same time.
const AT_ONCE: usize = 16;
/// Requests that each volume must have answered before anything is measured or harmed, and again after.
const REQUESTS: u64 = 10;
/// Faults that are listed; their number is always told.
const LISTED: usize = 10;

/// `sbkctl drill many`
#[derive(Clone, Debug, Args)]
pub struct ManyArgs {
    /// How many volumes, of three replicas each
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    volumes: u32,
    /// How many NBD connections, over all datanodes; each volume has at least one
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: u32,
    /// Size of each volume, at least 4MiB; it takes as much room as is written
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    size: u64,
    /// Bytes a second that all clients together read and write
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_size)]
    pace: u64,
    /// How long the load goes on after the failure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Keep the directory of the cluster
    #[arg(long)]
    keep: bool,
}

/// What the processes take at one moment.
#[derive(Clone, Debug, Serialize)]
struct Phase {
    name: &'static str,
    processes: Vec<Footprint>,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
struct Report {
    ok: bool,
    /// How many things are wrong, and the first of them.
    faults: usize,
    first_faults: Vec<String>,
    volumes: usize,
    connections: u32,
    /// How long it took until all volumes served with all replicas in sync, from the first order to make
    /// one.
    created_ms: u64,
    /// The longest request of each volume before the failure, in milliseconds.
    quiet_ms: Spread,
    /// Volumes whose primary was killed.
    primaries_killed: usize,
    /// The longest request of each of these since the failure, also of clients that had to connect again.
    stall_ms: Spread,
    /// The same of all other volumes.
    others_ms: Spread,
    /// How long it took until all replicas were in sync, from the start of the datanode's new process.
    in_sync_ms: u64,
    /// All that the clients did.
    load: RoamingStats,
    phases: Vec<Phase>,
}

impl Report {
    fn words(&self) -> String {
        let rows = self.phases.iter().flat_map(|phase| {
            phase.processes.iter().map(|p| {
                vec![
                    phase.name.to_owned(),
                    p.process.clone(),
                    show_size(p.rss_bytes),
                    p.threads.to_string(),
                    p.files.to_string(),
                    show_size(p.disk_bytes),
                ]
            })
        });
        let ms = |s: &Spread| format!("p50 {} ms, p90 {} ms, max {} ms", s.p50, s.p90, s.max);
        let mut text = table(&["phase", "process", "memory", "threads", "files", "disk"], rows);
        text += &format!(
            "\n{} volumes, {} connections. All in sync {} ms after the first was ordered.\n\
             Longest request of each volume: {} before;\n  {} of the {} that lost their primary;\n  \
             {} of the others.\n\
             {} connections were lost with their datanode. All in sync again {} ms after its start.\n\
             {} writes, {} reads.\n",
            self.volumes,
            self.connections,
            self.created_ms,
            ms(&self.quiet_ms),
            ms(&self.stall_ms),
            self.primaries_killed,
            ms(&self.others_ms),
            self.load.lost_connections,
            self.in_sync_ms,
            self.load.writes,
            self.load.reads,
        );
        for fault in &self.first_faults {
            text += &format!("WRONG: {fault}\n");
        }
        text += match self.ok {
            true => "No acknowledged write was lost, no request failed, all replicas are equal.\n",
            false => "THE DRILL FAILED.\n",
        };
        text
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Runs the command.
pub async fn run(global: &Global, args: ManyArgs) -> anyhow::Result<()> {
    if args.size < USED_BLOCKS * BLOCK as u64 {
        return Err(crate::error::Usage("--size is at least 4MiB".into()).into());
    }
    if args.connections < args.volumes {
        let text = "--connections: each volume has at least one".to_owned();
        return Err(crate::error::Usage(text).into());
    }
    let target = Target::open(global.dir.clone(), None).await?;
    let mut run = Run::new(target, args)?;
    let outcome = run.go().await;
    let failed = outcome.is_err() || run.faults > 0;
    run.report.ok = !failed;
    run.report.faults = run.faults;
    Output::new(global.output).show(&run.report, Report::words)?;
    let keep = run.args.keep || failed;
    run.close(keep).await?;
    outcome?;
    if failed {
        bail!("the drill failed; its report says what is wrong");
    }
    Ok(())
}

struct Volume {
    name: String,
    load: Roaming,
}

struct Run {
    target: Target,
    masters: MasterClient,
    args: ManyArgs,
    /// Names of volumes begin with it.
    prefix: String,
    /// `host:port` of NBD of each datanode, in order.
    nodes: Vec<String>,
    names: Vec<String>,
    volumes: Vec<Volume>,
    report: Report,
    faults: usize,
    progress: Progress,
}

impl Run {
    fn new(target: Target, args: ManyArgs) -> anyhow::Result<Self> {
        let masters = target.masters()?;
        let nodes: Vec<String> = target.file()?.datanodes.into_iter().map(|d| d.nbd).collect();
        if nodes.len() < 3 {
            bail!("the drill needs three datanodes");
        }
        let prefix = format!("many-{}-", &Uuid::new_v4().simple().to_string()[..6]);
        let names = (1..=args.volumes).map(|number| format!("{prefix}{number}")).collect();
        let report = Report { connections: args.connections, ..Report::default() };
        let (volumes, progress) = (Vec::new(), Progress::new());
        Ok(Self {
            target,
            masters,
            args,
            prefix,
            nodes,
            names,
            volumes,
            report,
            faults: 0,
            progress,
        })
    }

    async fn go(&mut self) -> anyhow::Result<()> {
        self.measure("no volume")?;
        self.create().await?;
        self.measure("volumes, idle")?;
        self.start();
        let quiet = self.goes_on(Duration::from_secs(5), "under load").await?;
        self.report.quiet_ms = spread(quiet.iter().map(|stats| stats.longest_request_ms));
        self.measure("load")?;
        let (victim, orphans) = self.most_primaries().await?;
        let at = self.target.file()?.datanodes.iter().position(|d| d.id == victim);
        let at = at.context("the datanode with the most primaries is none of the cluster's")?;
        let pid = self.target.kill(&victim).await?;
        let after = self.goes_on(self.args.seconds, "after the failure").await?;
        let stalls = |lost: bool| {
            let mine = self.volumes.iter().zip(&after);
            spread(
                mine.filter(|(v, _)| orphans.contains(&v.name) == lost)
                    .map(|(_, stats)| stats.longest_request_ms),
            )
        };
        (self.report.stall_ms, self.report.others_ms) = (stalls(true), stalls(false));
        self.report.primaries_killed = orphans.len();
        self.measure("one datanode dead")?;
        let started = Instant::now();
        self.target.bring_back(&victim, pid).await?;
        self.whole("again").await?;
        self.report.in_sync_ms = millis(started);
        self.goes_on(Duration::ZERO, "all in sync").await?;
        self.measure("all in sync again")?;
        self.judge_connections(at);
        self.verify().await
    }

    fn measure(&mut self, name: &'static str) -> anyhow::Result<()> {
        let file = self.target.file()?;
        let first = file.datanodes.first().context("the cluster has no datanode")?;
        let dir = first.data_dir.parent().context("a data directory is in the cluster's")?;
        let processes = footprint::of_cluster(&file, dir)?;
        self.report.phases.push(Phase { name, processes });
        Ok(())
    }

    fn wrong(&mut self, fault: String) {
        self.faults += 1;
        if self.report.first_faults.len() < LISTED {
            self.report.first_faults.push(fault);
        }
    }

    /// Makes the volumes, and waits until all of them are whole.
    async fn create(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let (masters, size) = (self.masters.clone(), self.args.size);
        let mut orders = JoinSet::new();
        for name in self.names.clone() {
            if orders.len() == AT_ONCE
                && let Some(ordered) = orders.join_next().await
            {
                ordered.context("an order's task failed")??;
            }
            let masters = masters.clone();
            orders
                .spawn(async move { masters.create_volume(create_request(&name, size, 3)).await });
        }
        while let Some(ordered) = orders.join_next().await {
            ordered.context("an order's task failed")??;
        }
        self.whole("for the first time").await?;
        self.report.created_ms = millis(started);
        self.report.volumes = self.names.len();
        Ok(())
    }

    /// The drill's volumes, as the masters know them.
    async fn views(&self) -> anyhow::Result<Vec<VolumeView>> {
        Ok(self.mine(&self.masters.list_volumes().await?))
    }

    /// Those of the drill.
    fn mine(&self, answer: &ListVolumesResponse) -> Vec<VolumeView> {
        let mine = answer.volumes.iter().filter(|v| v.name.starts_with(&self.prefix));
        mine.map(VolumeView::of).collect()
    }

    /// Waits until all volumes serve with all replicas in sync.
    async fn whole(&mut self, when: &str) -> anyhow::Result<()> {
        let count = self.names.len();
        let what = format!("all {count} volumes to serve with all replicas in sync {when}");
        let mut progress = std::mem::take(&mut self.progress);
        let whole = wait::until(&what, WHOLE, async || {
            wait::answered(self.masters.list_volumes().await, |answer| {
                let whole = self.mine(&answer).iter().filter(|view| view.is_whole()).count();
                progress.show(|| format!("waiting for {what}: {whole} do"));
                if whole == count { Look::Done(()) } else { Look::NotYet(format!("{whole} do")) }
            })
        })
        .await;
        self.progress = progress;
        self.progress.clear();
        whole
    }

    /// Starts the clients, on all datanodes.
    fn start(&mut self) {
        let count = self.names.len() as u32;
        for (number, name) in (0..).zip(&self.names) {
            let more = u32::from(number < self.args.connections % count);
            let options = RoamingOptions {
                everything: false,
                nodes: self.nodes.clone(),
                export: name.clone(),
                blocks: USED_BLOCKS,
                clients: self.args.connections / count + more,
                depth: 1,
                pace: (self.args.pace / u64::from(count)).max(1),
                seed: u64::from(number) << 8,
                may_lose: false,
            };
            let history = Arc::new(History::new(Uuid::new_v4()));
            let load = Roaming::start(history, options);
            self.volumes.push(Volume { name: name.clone(), load });
        }
    }

    /// Lets the load run for `at_least`, and until every volume had requests answered; what the clients
    /// of each saw since this was last called.
    async fn goes_on(
        &mut self,
        at_least: Duration,
        when: &str,
    ) -> anyhow::Result<Vec<RoamingStats>> {
        let begun = Instant::now();
        let what = format!("{REQUESTS} answers of each volume, {when}");
        let answered = |volume: &Volume| {
            let stats = volume.load.stats();
            stats.writes + stats.reads >= REQUESTS && stats.writes > 0
        };
        wait::until(&what, at_least + ANSWER, async || {
            let ready = self.volumes.iter().filter(|volume| answered(volume)).count();
            let failed = self.volumes.iter().any(|v| v.load.stats().errors > 0);
            self.progress.show(|| format!("{ready} volumes had {what}"));
            let all = ready == self.volumes.len() && begun.elapsed() >= at_least;
            Ok(if all || failed { Look::Done(()) } else { Look::NotYet(format!("{ready} had")) })
        })
        .await?;
        self.progress.clear();
        let seen: Vec<RoamingStats> = self.volumes.iter().map(|v| v.load.take_stats()).collect();
        for (at, stats) in seen.iter().enumerate() {
            self.report.load.add(stats);
            let failed = stats.errors + stats.timed_out;
            if failed > 0 {
                let name = &self.volumes[at].name;
                let first = stats.first_errors.first().map_or("they timed out", String::as_str);
                self.wrong(format!("volume {name}: {failed} requests failed {when}: {first}"));
            }
        }
        Ok(seen)
    }

    /// The datanode with the most primaries of the drill's volumes, and these volumes.
    async fn most_primaries(&self) -> anyhow::Result<(String, Vec<String>)> {
        let mut primaries = std::collections::BTreeMap::<String, Vec<String>>::new();
        for view in self.views().await? {
            let primary = view.primary.context("a volume has no primary")?;
            primaries.entry(primary).or_default().push(view.name);
        }
        let most = primaries.into_iter().max_by_key(|(_, volumes)| volumes.len());
        most.context("there is no volume")
    }

    /// No connection may end but those to the datanode that was killed.
    fn judge_connections(&mut self, victim: usize) {
        for at in 0..self.volumes.len() {
            let lost = self.volumes[at].load.lost();
            for lost in lost.into_iter().filter(|lost| lost.node != victim) {
                let (name, node) = (&self.volumes[at].name, &self.nodes[lost.node]);
                let fault = format!("volume {name} lost a connection to {node}: {}", lost.why);
                self.wrong(fault);
            }
        }
    }

    /// Lets the clients rest, reads everything back, checks it, and compares the replicas.
    async fn verify(&mut self) -> anyhow::Result<()> {
        let count = self.volumes.len();
        for (at, volume) in std::mem::take(&mut self.volumes).into_iter().enumerate() {
            self.progress.show(|| format!("reading back volume {} of {count}", at + 1));
            let found = check(&volume, &self.masters, at % self.nodes.len()).await?;
            found.into_iter().for_each(|fault| self.wrong(fault));
        }
        self.progress.clear();
        Ok(())
    }

    async fn close(mut self, keep: bool) -> anyhow::Result<()> {
        self.volumes.clear();
        if !keep && matches!(self.target, Target::Running { .. }) {
            for view in self.views().await? {
                self.masters.delete_volume(&view.id).await?;
            }
        }
        if let Some(dir) = self.target.close(keep).await? {
            eprintln!("Logs and data are kept in {}", dir.display());
        }
        Ok(())
    }
}

/// What is wrong with a volume. Its clients rest from here on.
async fn check(
    volume: &Volume,
    masters: &MasterClient,
    node: usize,
) -> anyhow::Result<Vec<String>> {
    let name = &volume.name;
    let _rest = volume.load.rest(ANSWER).await?;
    volume.load.read_back(node, ANSWER).await?;
    let mut wrong = Vec::new();
    let violations = volume.load.history().check();
    if let Some(first) = violations.first() {
        wrong.push(format!("volume {name}: {} violations, the first: {first}", violations.len()));
    }
    let info = masters.get_volume(&volume.name).await?;
    let report = verify::compare(&info, ANSWER).await?;
    if !report.is_clean() || report.compared.len() != 3 {
        let (differ, of) = (report.mismatches.len(), report.compared.len());
        let id = id_text(&info.id);
        wrong.push(format!(
            "volume {name} ({id}): {differ} regions of {of} replicas differ, {} damaged blocks",
            report.damaged
        ));
    }
    Ok(wrong)
}

//! `sbkctl dev`: a whole cluster on one machine, as real processes of this one binary.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{DevArgs, Global, VolumeSpec};
use crate::cluster_file::DatanodeEntry;
use crate::commands::dev_dir;
use crate::error::Usage;
use crate::output::Output;

pub(crate) mod child;
pub mod cluster;
pub(crate) mod keys;
pub(crate) mod part;
pub mod plan;

use cluster::{DevCluster, Options};
use plan::{Plan, Wanted};

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(100);

/// The least time between two starts of a process that is started again by itself.
const REST: Duration = Duration::from_secs(1);

/// Runs the command until it is told to stop. To be called on a thread that lives as long as the
/// process, as its children do not outlive it.
pub async fn run(global: &Global, args: DevArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut options = Options::new(dev_dir(global))?;
    options.wanted = Wanted {
        masters: masters_count(&global.masters)?,
        datanodes: args.datanodes,
        base_port: args.base_port,
    };
    options.wal_retain = args.wal_retain;
    options.capacity = args.capacity;
    options.devices = Plan::devices(&options.dir, args.datanodes, &args.devices)?;
    options.disks = usize::from(options.devices.is_empty());
    options.limit = args.timeout;
    options.volumes = match (args.no_volume, args.volumes.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![VolumeSpec { name: "vol1".into(), size: 1 << 30 }],
        (false, false) => args.volumes.clone(),
    };
    let started = std::time::Instant::now();
    let mut cluster = tokio::select! {
        cluster = DevCluster::start(options) => cluster?,
        // Dropping the half-started cluster kills its processes.
        () = signals.stop() => return Ok(()),
    };
    let output = Output::new(global.output);
    let took = started.elapsed();
    let primary = match cluster.file().volumes.first() {
        Some(volume) => cluster.primary_of(&volume.name).await?,
        None => None,
    };
    output.show(cluster.file(), |_| welcome(&cluster, took, primary.as_ref()))?;
    let result = watch(&mut cluster, &mut signals, args.restart).await;
    output.note("Stopping.")?;
    cluster.stop().await.and(result)
}

/// `--masters` is a list of addresses everywhere else; here it is a number.
fn masters_count(masters: &[String]) -> anyhow::Result<Option<u64>> {
    match masters {
        [] => Ok(None),
        [one] if one.parse::<u64>().is_ok() => Ok(one.parse().ok()),
        _ => {
            let text = "`sbkctl dev --masters` takes the number of masters to start: 1, 3 or 5";
            Err(Usage(text.into()).into())
        }
    }
}

/// Goes on until a signal says stop: tells of processes that ended, and starts them again if
/// asked to.
async fn watch(
    cluster: &mut DevCluster,
    signals: &mut Signals,
    restart: bool,
) -> anyhow::Result<()> {
    let mut reported = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        // One that ends as soon as it is started must not be started without a pause.
        let again = tokio::select! {
            told = signals.next() => match told {
                Told::Stop => return Ok(()),
                Told::StartAgain => Some(Duration::ZERO),
            },
            _ = look.tick() => restart.then_some(REST),
        };
        for (name, pid, how) in cluster.ended() {
            if reported.insert(pid) {
                say(&format!("{name} (pid {pid}) ended: {how}"));
            }
        }
        if let Some(rest) = again {
            let started = cluster.start_ended(rest).await?;
            if started > 0 {
                say(&format!(
                    "{started} processes started again; the new pids are in cluster.json"
                ));
            }
        }
    }
}

/// Tells whoever reads the command's standard error, if that can be written: the cluster goes on without.
fn say(what: &str) {
    let _lost = writeln!(std::io::stderr(), "{what}");
}

/// The signals that the command listens to.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What a signal asks for.
enum Told {
    Stop,
    StartAgain,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("listening to signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::StartAgain,
        }
    }

    /// The next signal that says stop.
    async fn stop(&mut self) {
        loop {
            match self.next().await {
                Told::Stop => return,
                Told::StartAgain => {}
            }
        }
    }
}

/// What people see when the cluster serves.
fn welcome(cluster: &DevCluster, took: Duration, primary: Option<&DatanodeEntry>) -> String {
    let (file, dir) = (cluster.file(), cluster.dir().display());
    let mut text = format!("The cluster serves, {:.1} s after its start.\n\n", took.as_secs_f64());
    for m in &file.masters {
        text +=
            &format!("  master {}    pid {:<8} grpc {}  http {}\n", m.id, m.pid, m.listen, m.http);
    }
    for (number, d) in (1..).zip(&file.datanodes) {
        text += &format!(
            "  datanode {number}  pid {:<8} grpc {}  http {}  nbd {}  id {}\n",
            d.pid, d.listen, d.http, d.nbd, d.id
        );
    }
    for v in &file.volumes {
        text += &format!("  volume {}    {}\n", v.name, v.nbd_uri);
    }
    text += &format!("\nData and logs are in {dir}, addresses and pids in {dir}/cluster.json.\n");
    if let (Some(v), Some(primary)) = (file.volumes.first(), primary) {
        let (name, uri, pid) = (&v.name, &v.nbd_uri, primary.pid);
        // As it was called: it need not be on the PATH.
        let ctl = std::env::args().next().unwrap_or_else(|| "sbkctl".to_owned());
        text += &format!(
            "\nTry, in another terminal:\n\
             \x20 nbdinfo {uri}\n\
             \x20 nbdcopy SOME.img {uri}\n\
             \x20 fio --name=t --ioengine=nbd --uri={uri} --rw=randwrite --bs=4k \\\n\
             \x20     --iodepth=16 --size=256m --verify=crc32c --verify_state_save=0 --loops=100\n\
             \x20 {ctl} volume show {name} --dir {dir}\n\
             \x20 {ctl} volume explain {name} --dir {dir}\n",
        );
        if file.datanodes.len() > 1 {
            text += &format!(
                "While fio runs, kill the primary, which is another datanode than the one that fio \
                 is\nconnected to, and watch fio go on:\n\
                 \x20 kill -9 {pid}\n\
                 then bring it back:\n\
                 \x20 kill -HUP {}\n",
                std::process::id()
            );
        }
    }
    text + "\nCtrl-C stops it all.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_masters_is_a_number_here() {
        assert_eq!(masters_count(&[]).expect("none"), None);
        assert_eq!(masters_count(&["3".into()]).expect("three"), Some(3));
        for wrong in [vec!["h:1".to_owned()], vec!["1".into(), "2".into()]] {
            let error = masters_count(&wrong).expect_err("refused");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
    }
}

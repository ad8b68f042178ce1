//! A process that works on a replica in a real directory is killed with SIGKILL at random moments,
//! over and over; each time the directory is opened again and compared with what the process had
//! said through a pipe.
//!
//! The work is random from a seed; the moments are not reproducible. What is found wrong is told
//! with the phases of work that the kill interrupted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbk_engine::types::LossGeneration;
use sbk_store::{Backing, CreateSpec, DataDirs, Place};
use sbk_test_support::LoopDevice;
use sbk_wal::{Files, Storage};

use super::content::{BLOCKS, Random};
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;
use super::no_fork_meanwhile;

/// What the child finds its orders in.
const ORDERS: &str = "SBK_STORE_KILL_CHILD";

/// The phases of work that a kill should hit.
const PHASES: [&str; 11] = [
    "create",
    "open",
    "batch",
    "checkpoint",
    "recycle",
    "persist",
    "cut",
    "wipe",
    "finish",
    "close",
    "remove",
];

/// The phase that an event begins or ends.
fn phase(event: &Event) -> Option<(&'static str, bool)> {
    Some(match event {
        Event::CreateBegins { .. } => ("create", true),
        Event::Created { .. } => ("create", false),
        Event::OpenBegins => ("open", true),
        Event::Opened { .. } => ("open", false),
        Event::BatchBegins => ("batch", true),
        Event::Durable { .. } => ("batch", false),
        Event::CheckpointBegins => ("checkpoint", true),
        Event::Checkpointed { .. } => ("checkpoint", false),
        Event::RecycleBegins => ("recycle", true),
        Event::Recycled => ("recycle", false),
        Event::PersistBegins { .. } => ("persist", true),
        Event::Persisted { .. } => ("persist", false),
        Event::CutBegins { .. } => ("cut", true),
        Event::Cut { .. } => ("cut", false),
        Event::WipeBegins { .. } | Event::DeltaBegins { .. } => ("wipe", true),
        Event::Wiped { .. } => ("wipe", false),
        Event::FinishBegins => ("finish", true),
        Event::Finished => ("finish", false),
        Event::CloseBegins => ("close", true),
        Event::Closed => ("close", false),
        Event::RemoveBegins => ("remove", true),
        Event::Removed => ("remove", false),
        Event::Appended { .. } | Event::Committed { .. } => return None,
    })
}

/// The content of the `n`-th replica is its own.
fn seed_of(seed: u64, n: u64) -> u64 {
    seed ^ n << 32
}

fn replica_dir(dir: &Path, n: u64) -> PathBuf {
    let identity = driver::identity(n);
    dir.join("replicas").join(format!("{}.{}", identity.volume, identity.replica))
}

/// The link to the block device that is used in place of a directory, if there is one.
fn device_of(dir: &Path) -> PathBuf {
    dir.with_extension("device")
}

/// Where the replicas are.
fn place(dir: &Path) -> Place {
    let device = device_of(dir);
    if device.exists() { Place::Device(device) } else { Place::Dir(dir.to_owned()) }
}

/// Opens it as a node's only one.
fn open(dir: &Path) -> Result<Arc<dyn Backing>, String> {
    let opened = DataDirs::open(&[place(dir)], &BTreeSet::new()).map_err(|e| e.to_string())?;
    let (_, only) = opened.dirs.into_iter().next().expect("one was given");
    only.map_err(|e| e.to_string())
}

fn create(data: &dyn Backing, n: u64) -> Result<(), String> {
    let (identity, loss_generation) = (driver::identity(n), LossGeneration(1));
    let spec = CreateSpec { identity, blocks: BLOCKS, loss_generation };
    data.create(&spec, &driver::options()).map_err(|e| e.to_string())
}

fn storage(data: &dyn Backing, n: u64) -> Arc<dyn Storage> {
    data.storage(&driver::identity(n)).expect("the disk is sound")
}

// The child.

/// Works until it is killed, or for a while. Its orders: directory, seed, run, replica, and the phase at whose
/// beginning it waits to be killed.
#[test]
#[ignore = "the kill test starts it as a process of its own"]
fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let [dir, seed, run, n, stop] = orders.split('|').collect::<Vec<_>>()[..] else {
        panic!("orders: {orders}");
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let mut out = std::io::stdout();
    let mut tell = |event: Event| {
        let line = serde_json::to_string(&event).expect("an event is data");
        // One write: a line is said whole or not at all. Without a listener there is no test.
        if out.write_all(format!("\n@{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
        while phase(&event) == Some((stop, true)) {
            std::thread::park();
        }
    };
    let (seed, run) = (number(seed), number(run));
    work(Path::new(dir), seed, run, number(n), &mut tell);
}

fn work(dir: &Path, seed: u64, run: u64, first: u64, tell: &mut dyn FnMut(Event)) {
    let mut random = Random(seed ^ run << 16);
    let data = open(dir).expect("the directory");
    let mut n = first;
    for part in 0..8 {
        let identity = driver::identity(n);
        if !data.replicas().expect("the list").contains(&identity) {
            tell(Event::CreateBegins { n });
            create(&*data, n).expect("a replica");
            tell(Event::Created { n });
        }
        tell(Event::OpenBegins);
        let open = driver::open(&storage(&*data, n), n).expect("a store");
        let mut driver = Driver::new(seed_of(seed, n), run * 8 + part, open, true, tell);
        driver.run(20 + random.below(60)).expect("the disk is sound");
        driver.close().expect("closed in order");
        if random.one_in(4) {
            tell(Event::RemoveBegins);
            data.remove(&identity).expect("removed");
            tell(Event::Removed);
            n += 1;
        }
    }
}

// The parent.

/// When to kill.
struct Moment {
    /// At the `count`-th beginning of this phase, or at the `count`-th event.
    phase: Option<&'static str>,
    count: u64,
    /// So much later.
    delay: Duration,
}

impl Moment {
    fn random(random: &mut Random, wanted: Option<&'static str>) -> Self {
        if wanted.is_some() {
            let delay = Duration::from_micros(random.below(200));
            return Self { phase: wanted, count: 1, delay };
        }
        let any = random.one_in(3);
        let phase = (!any).then(|| PHASES[random.below(PHASES.len() as u64) as usize]);
        let count = if phase.is_some() { 1 + random.below(3) } else { 1 + random.below(150) };
        // Short ones more often: a phase without a disk is short.
        let delay = Duration::from_micros(random.below(50) * random.below(50));
        Self { phase, count, delay }
    }

    /// Whether it has come.
    fn hears(&mut self, event: &Event) -> bool {
        let matches = self.phase.is_none_or(|wanted| phase(event) == Some((wanted, true)));
        self.count -= u64::from(matches && self.count > 0);
        self.count == 0
    }
}

/// Kills the child when the moment comes; returns what it had said and whether it was killed.
fn run_and_kill(mut child: Child, mut moment: Moment) -> (Vec<Event>, bool) {
    let mut heard = Vec::new();
    let mut killed = false;
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while lines.read_line(&mut line).expect("the pipe") > 0 {
        // What lacks its end was not said; libtest's own lines are not for us.
        if let Some(said) = line.strip_prefix('@').and_then(|line| line.strip_suffix('\n')) {
            let event = serde_json::from_str(said).expect("an event");
            heard.push(event);
            if !killed && moment.hears(&event) {
                let since = Instant::now();
                // Waiting is the point here: for a moment inside of what the child is doing.
                while since.elapsed() < moment.delay {
                    std::hint::spin_loop();
                }
                child.kill().expect("a signal");
                killed = true;
            }
        }
        line.clear();
    }
    let status = child.wait().expect("its end");
    // It may have come to its end before the signal came.
    let killed = killed && !status.success();
    assert!(killed || status.success(), "the child failed by itself: {status}, after {heard:?}");
    (heard, killed)
}

/// What is known of the directory.
struct Known {
    seed: u64,
    model: Model,
    /// The replica is being removed, or was.
    removing: bool,
    removed: bool,
}

impl Known {
    fn hear(&mut self, event: Event) {
        match event {
            Event::CreateBegins { n } if n != self.model.n || self.removed => {
                *self = Self::new(self.seed, n);
            }
            Event::RemoveBegins => self.removing = true,
            Event::Removed => self.removed = true,
            event => self.model.hear(event),
        }
    }

    fn new(seed: u64, n: u64) -> Self {
        let model = Model::new(seed_of(seed, n), n);
        Self { seed, model, removing: false, removed: false }
    }

    /// Compares the directory with what is known, and leaves it with a replica to work on.
    fn check(&mut self, dir: &Path, copy: &Path) -> Result<(), String> {
        // Opened from a copy as well: the same files lead to the same state.
        let from = replica_dir(dir, self.model.n);
        let in_files = from.exists();
        let twin = (in_files && self.model.created && !self.removing).then(|| {
            copy_files(&from, copy);
            let storage: Arc<dyn Storage> = Arc::new(Files::new(copy));
            self.model.clone().check_twice(&storage)
        });
        let _alone = no_fork_meanwhile();
        let data = open(dir).map_err(|e| format!("the directory: {e}"))?;
        let listed = data.replicas().map_err(|e| format!("the list: {e}"))?;
        let identity = driver::identity(self.model.n);
        let left = match place(dir) {
            Place::Dir(_) => std::fs::read_dir(dir.join("replicas")).expect("the list").count(),
            Place::Device(_) => listed.len(),
        };
        // A create that was killed leaves a directory that is no replica yet.
        let begun = usize::from(!self.model.created && listed.is_empty());
        let others = listed.iter().any(|found| *found != identity);
        if left < listed.len() || left > listed.len() + begun || others {
            return Err(format!("{left} directories, and replicas {listed:?}"));
        }
        if self.removed && !listed.is_empty() {
            return Err("a removed replica is back".to_owned());
        }
        if self.removing && listed.is_empty() {
            *self = Self::new(self.seed, self.model.n + 1);
            return Ok(());
        }
        self.removing = false;
        if !self.model.created {
            // A create that was not confirmed is repeated.
            create(&*data, self.model.n).map_err(|e| format!("not made: {e}"))?;
            self.model.created = true;
        }
        let (_, opened) = self.model.check(&storage(&*data, self.model.n))?;
        match twin.transpose().map_err(|what| format!("a copy of it: {what}"))? {
            Some(twin) if twin != opened => {
                Err(format!("a copy of it opens as {twin:?}, it itself as {opened:?}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn copy_files(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("an old copy");
    }
    std::fs::create_dir(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a list") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

/// Files in memory, where there are some: a kill loses nothing of the page cache, so this is as
/// good as a disk, and faster.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

#[test]
fn a_process_killed_on_a_disk_loses_nothing_that_it_had_acknowledged() {
    kill_again_and_again("on_a_disk", tempfile::tempdir().expect("a directory"), 1, 60);
}

#[test]
fn a_process_killed_in_memory_loses_nothing_that_it_had_acknowledged() {
    kill_again_and_again("in_memory", in_memory(), 2, 160);
}

#[test]
fn a_process_killed_on_a_device_loses_nothing_that_it_had_acknowledged() {
    let base = in_memory();
    let alone = no_fork_meanwhile();
    let device = LoopDevice::make(&base.path().join("image"), 64 << 20);
    drop(alone);
    let Some(device) = device else { return };
    let link = device_of(&base.path().join("data"));
    std::os::unix::fs::symlink(device.path(), link).expect("a link");
    kill_again_and_again("on_a_device", base, 3, 60);
}

/// Kills at least `least` times, and up to twice as often until every phase was hit.
fn kill_again_and_again(name: &str, base: tempfile::TempDir, seed: u64, least: u64) {
    let seed = std::env::var("SEED").map_or(seed, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed} cargo test -p sbk-store --test store {name} -- --nocapture");
    let copies = in_memory();
    let (dir, copy) = (base.path().join("data"), copies.path().join("copy"));
    let mut random = Random(seed);
    let mut known = Known::new(seed, 0);
    let mut hit: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut kills, mut run) = (0, 0);
    let since = Instant::now();
    while kills < least || (hit.len() < PHASES.len() && kills < 2 * least && run < 4 * least) {
        let missing = PHASES.iter().find(|name| !hit.contains_key(*name));
        let wanted = missing.copied().filter(|_| kills >= least);
        let moment = Moment::random(&mut random, wanted);
        // A busy machine may always be too late for the shortest phases.
        let stop = wanted.filter(|_| kills >= least + least / 2).unwrap_or("-");
        let orders = format!("{}|{seed}|{run}|{}|{stop}", dir.display(), known.model.n);
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["kill::child", "--exact", "--ignored", "--nocapture"]);
        command.env(ORDERS, orders).stdout(Stdio::piped());
        let alone = no_fork_meanwhile();
        let child = command.spawn().expect("a child");
        drop(alone);
        let (heard, killed) = run_and_kill(child, moment);
        let mut open: Vec<&str> = Vec::new();
        for event in heard {
            match phase(&event) {
                Some((name, true)) => open.push(name),
                Some((name, false)) => open.retain(|other| *other != name),
                None => {}
            }
            known.hear(event);
        }
        if killed {
            kills += 1;
            open.iter().for_each(|name| *hit.entry(name).or_default() += 1);
        }
        if let Err(what) = known.check(&dir, &copy) {
            let kept = base.keep();
            panic!("run {run}, killed during {open:?}: {what}\nthe files: {}", kept.display());
        }
        run += 1;
    }
    println!("{name}: {kills} kills in {run} runs, {:?}; during: {hit:?}", since.elapsed());
    let missed: Vec<_> = PHASES.iter().filter(|name| !hit.contains_key(*name)).collect();
    assert!(missed.is_empty(), "no kill hit {missed:?}");
}

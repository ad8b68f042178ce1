//! `sbkctl drill load`: the load that verifies itself, and no failure. Who causes failures from outside,
//! as on containers, tells by lines on standard input what goes on, and is told by lines on standard
//! output when the load went on and what was found.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc;

use super::bench::{ANSWER, Bench, Verified};
use crate::args::Global;
use crate::commands::Context;
use crate::commands::explain::Decision;
use crate::output::write_out;
use crate::size::parse_size;
use crate::view::{VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::load::{Load, LoadStats};
use crate::workload::nbd::NbdClient;

/// Lines that may wait to be carried out.
const LINES: usize = 16;

/// `sbkctl drill load`
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Name or UUID
    volume: String,
    /// Where the volume is served over NBD
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10809")]
    nbd: String,
    /// Requests in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    depth: u32,
    /// Bytes a second that are read and written [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pace: Option<u64>,
}

/// What it says.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    /// A phase has begun, while requests are answered.
    Phase { name: &'a str },
    /// The load went on.
    GoesOn { phase: &'a Phase },
    /// All replicas are in sync.
    Whole { after_ms: u64, volume: &'a State },
    /// All of it.
    Report { report: &'a Report },
}

/// What happened between two lines `phase`.
#[derive(Clone, Debug, Default, Serialize)]
struct Phase {
    name: String,
    /// How long it lasted.
    ms: u64,
    /// What the load did. A request counts where it was answered.
    load: LoadStats,
}

/// Who is primary of a volume that is whole.
#[derive(Clone, Debug, Default, Serialize)]
struct State {
    epoch: u64,
    /// `host:port` of the primary's datanode.
    primary: String,
    /// Those of all datanodes that have a replica.
    nodes: Vec<String>,
}

/// How a replica was brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Moved {
    /// `host:port` of the replica's datanode; its UUID if it came and went unseen.
    node: String,
    /// `catch_up`, `delta` or `rebuild`.
    route: &'static str,
    /// Entries of the log that were sent, at least; of a delta or rebuild, those after the image.
    entries: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
struct Report {
    ok: bool,
    /// What is wrong, if anything is.
    fault: Option<String>,
    phases: Vec<Phase>,
    before: State,
    after: State,
    /// How long it took until all replicas were in sync once the load had ended.
    whole_ms: u64,
    /// Whom recovery brought back, as far as the traces tell: they go with their processes.
    moved: Vec<Moved>,
    verified: Verified,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    Phase(String),
    GoesOn(Duration),
    Whole,
    End,
}

impl Line {
    fn read(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match *words {
            ["phase", name] => Line::Phase(name.to_owned()),
            ["goes-on"] => Line::GoesOn(Duration::ZERO),
            ["goes-on", time] => {
                Line::GoesOn(crate::args::seconds(time).map_err(anyhow::Error::msg)?)
            }
            ["whole"] => Line::Whole,
            ["end"] => Line::End,
            _ => bail!("'{text}' is none of: phase NAME, goes-on [SECONDS], whole, end"),
        })
    }
}

fn say(event: &Event<'_>) -> anyhow::Result<()> {
    write_out(&(serde_json::to_string(event).context("writing JSON")? + "\n"))
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Runs the command.
pub async fn run(global: &Global, args: LoadArgs) -> anyhow::Result<()> {
    let masters = Context::new(global)?.masters;
    let lines = standard_input();
    let bench = Bench::on(masters, &args.volume, args.depth).await?;
    let client = connect(&args.nbd, bench.name()).await?;
    bench.blank(&client).await?;
    let mut run = Run::begin(bench, client, args.pace).await?;
    let outcome = run.listen(lines).await;
    let report = run.end(outcome).await;
    say(&Event::Report { report: &report })?;
    if !report.ok {
        bail!("the load found a fault; its report says which");
    }
    Ok(())
}

/// On a thread of its own, which ends with the process: a read of standard input can't be given up.
fn standard_input() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A server that has just been started serves its exports in a moment.
async fn connect(addr: &str, export: &str) -> anyhow::Result<NbdClient> {
    wait::until(format!("export '{export}' at {addr}"), ANSWER, async || {
        Ok(match NbdClient::connect(addr, export).await {
            Ok(client) => Look::Done(client),
            Err(e) => Look::NotYet(e.to_string()),
        })
    })
    .await
}

/// A load that runs, and what was seen.
struct Run {
    bench: Bench,
    client: NbdClient,
    load: Option<Load>,
    phase: (String, Instant),
    report: Report,
    /// The last decision of each node that is older than the run.
    old: BTreeMap<String, u64>,
    /// What was decided since, of which the processes that knew it may be gone.
    decisions: BTreeMap<(String, u64, u64), Decision>,
    /// Where each replica is, or was.
    addrs: BTreeMap<String, String>,
}

impl Run {
    async fn begin(mut bench: Bench, client: NbdClient, pace: Option<u64>) -> anyhow::Result<Self> {
        let before = state(&bench, &bench.whole().await?).await?;
        let mut old = BTreeMap::new();
        for decision in bench.decisions().await? {
            let last = old.entry(decision.node).or_insert(0);
            *last = decision.at.max(*last);
        }
        let load = Some(bench.start_load(&client, pace).await?);
        let phase = ("begin".to_owned(), Instant::now());
        let report = Report { before, ..Report::default() };
        let (decisions, addrs) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { bench, client, load, phase, report, old, decisions, addrs })
    }

    fn load(&self) -> anyhow::Result<&Load> {
        self.load.as_ref().context("the load has ended")
    }

    /// Carries out what it is told until it is told to end.
    async fn listen(
        &mut self,
        mut lines: mpsc::Receiver<std::io::Result<String>>,
    ) -> anyhow::Result<()> {
        while let Some(line) = lines.recv().await {
            match Line::read(&line.context("reading standard input")?)? {
                Line::Phase(name) => {
                    let stats = self.load()?.take_stats();
                    self.close_phase(stats);
                    say(&Event::Phase { name: &name })?;
                    self.phase = (name, Instant::now());
                }
                Line::GoesOn(time) => {
                    let load = self.load()?;
                    self.bench.load_goes_on(load, time).await?;
                    let (name, began) = &self.phase;
                    let (name, load) = (name.clone(), load.stats());
                    say(&Event::GoesOn { phase: &Phase { name, ms: millis(*began), load } })?;
                }
                Line::Whole => {
                    let asked = Instant::now();
                    let volume = self.whole().await?;
                    say(&Event::Whole { after_ms: millis(asked), volume: &volume })?;
                }
                Line::End => return Ok(()),
            }
            // The report tells of them.
            if self.load()?.stats().errors > 0 {
                return Ok(());
            }
        }
        bail!("standard input ended without `end`")
    }

    fn close_phase(&mut self, load: LoadStats) {
        let (name, began) = &self.phase;
        self.report.phases.push(Phase { name: name.clone(), ms: millis(*began), load });
    }

    async fn whole(&mut self) -> anyhow::Result<State> {
        let state = state(&self.bench, &self.bench.whole().await?).await?;
        for decision in self.bench.decisions().await? {
            if self.old.get(&decision.node).is_none_or(|last| decision.at > *last) {
                let key = (decision.node.clone(), decision.at, decision.number);
                self.decisions.insert(key, decision);
            }
        }
        let members = self.bench.info().await?.members;
        self.addrs.extend(members.into_iter().map(|m| (id_text(&m.replica), m.addr)));
        Ok(state)
    }

    /// Ends the load and looks at everything, also after a fault: what can be said is said.
    async fn end(mut self, outcome: anyhow::Result<()>) -> Report {
        let mut faults: Vec<String> = outcome.err().iter().map(|e| format!("{e:#}")).collect();
        if let Err(e) = self.verify().await {
            faults.push(format!("{e:#}"));
        }
        let Report { phases, verified, .. } = &self.report;
        let errors: u64 = phases.iter().map(|p| p.load.errors).sum();
        if let Some(first) = phases.iter().find_map(|p| p.load.first_error.as_ref()) {
            faults.insert(0, format!("{errors} requests failed, the first: {first}"));
        }
        faults.extend(verified.fault());
        self.report.ok = faults.is_empty();
        self.report.fault = (!faults.is_empty()).then(|| faults.join("; "));
        self.report
    }

    async fn verify(&mut self) -> anyhow::Result<()> {
        let load = self.load.take().context("the load has ended")?;
        let stats = load.stop(ANSWER).await?;
        self.close_phase(stats);
        let stopped = Instant::now();
        self.report.after = self.whole().await?;
        self.report.whole_ms = millis(stopped);
        let moves = self.decisions.values().filter_map(|decision| moved(decision, &self.addrs));
        self.report.moved = moves.collect::<anyhow::Result<_>>()?;
        self.report.verified = self.bench.verify(&self.client).await?;
        Ok(())
    }
}

async fn state(bench: &Bench, view: &VolumeView) -> anyhow::Result<State> {
    let info = bench.info().await?;
    let primary = info.members.iter().find(|m| m.primary).context("it has no primary")?;
    Ok(State {
        epoch: view.epoch.unwrap_or(0),
        primary: primary.addr.clone(),
        nodes: info.members.iter().map(|m| m.addr.clone()).collect(),
    })
}

/// Reads a decision to bring a replica back; `None` if it is another one.
fn moved(decision: &Decision, addrs: &BTreeMap<String, String>) -> Option<anyhow::Result<Moved>> {
    let (route, between) = match decision.what.as_str() {
        "catch-up" => ("catch_up", "is sent the entries"),
        "delta" => ("delta", "is sent what changed since"),
        "rebuild" => ("rebuild", "is sent the image of"),
        _ => return None,
    };
    let read = || {
        let (replica, rest) = decision.why.split_once(between)?;
        // FIRST to LAST, or IMAGE, then the log to LAST, after of what it held the image.
        let numbers: Vec<u64> =
            rest.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let &[.., first, last] = numbers.as_slice() else { return None };
        let before = if route == "catch_up" { first.checked_sub(1)? } else { first };
        let replica = replica.trim();
        let node = addrs.get(replica).map_or(replica, String::as_str).to_owned();
        Some(Moved { node, route, entries: last.checked_sub(before)? })
    };
    Some(read().ok_or_else(|| anyhow!("the trace tells '{}' in other words", decision.why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let read = |text| Line::read(text).ok();
        assert_eq!(read("phase fault"), Some(Line::Phase("fault".into())));
        assert_eq!(read("goes-on 2.5\n"), Some(Line::GoesOn(Duration::from_millis(2500))));
        assert_eq!(read("goes-on"), Some(Line::GoesOn(Duration::ZERO)));
        assert_eq!(read("whole"), Some(Line::Whole));
        assert_eq!(read("end"), Some(Line::End));
        for wrong in ["", "phase", "phase a b", "goes-on soon", "stop"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_moved_is_read_from_the_trace() {
        let decision = |what: &str, why: &str| Decision {
            node: "n".into(),
            at: 1,
            time_ms: 1,
            number: 1,
            epoch: 1,
            what: what.into(),
            why: why.into(),
        };
        let addrs = BTreeMap::from([("r-7".to_owned(), "datanode2:7301".to_owned())]);
        let read = |what, why| moved(&decision(what, why), &addrs);
        let is = |route, entries| Moved { node: "datanode2:7301".into(), route, entries };
        let caught_up = read("catch-up", "r-7 is sent the entries 5 to 9").expect("is one");
        assert_eq!(caught_up.expect("is read"), is("catch_up", 5));
        let rebuilt = read("rebuild", "r-7 is sent the image of 40, then the log to 90");
        assert_eq!(rebuilt.expect("is one").expect("is read"), is("rebuild", 50));
        let text = "r-7 is sent what changed since 7 in the image of 40, then the log to 90";
        assert_eq!(read("delta", text).expect("is one").expect("is read"), is("delta", 50));
        assert!(read("healthy", "r-7").is_none());
        assert!(read("catch-up", "r-7 gets 5 to 9").expect("is one").is_err());
        let gone = read("catch-up", "r-8 is sent the entries 5 to 9").expect("is one");
        assert_eq!(gone.expect("is read").node, "r-8");
    }
}

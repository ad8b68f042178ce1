//! What drills that are run again and again have in common: run after run until one goes wrong, and what their
//! reports say of each in the same words.

use anyhow::{Context as _, bail};
use serde::Serialize;
use tempfile::TempDir;

use super::bench::{Bench, Verified};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::dev::cluster::{DevCluster, Options};
use crate::output::Output;
use crate::workload::load::LoadStats;

/// One time that a drill was run.
pub(super) trait Run {
    /// What to tell when it is done.
    fn told(&self) -> String;
    /// What is wrong, if anything is.
    fn fault(&self) -> Option<&str>;
    /// The same, for a table.
    fn data(&self) -> String {
        self.fault().unwrap_or("right").to_owned()
    }
}

/// Runs of a drill, and why there are no more if one could not be done.
pub(super) type Runs<R> = (Vec<R>, anyhow::Result<()>);

/// Does it `of` times, the runs numbered from 1. Ends with the first that has a fault, or can't be done.
pub(super) async fn all<R: Run>(
    of: u32,
    mut once: impl AsyncFnMut(u32) -> anyhow::Result<R>,
) -> Runs<R> {
    let mut runs = Vec::new();
    for number in 1..=of {
        match once(number).await {
            Ok(run) => {
                eprintln!("run {number} of {of}: {}", run.told());
                let faulty = run.fault().is_some();
                runs.push(run);
                if faulty {
                    break;
                }
            }
            Err(e) => return (runs, Err(e.context(format!("run {number}")))),
        }
    }
    (runs, Ok(()))
}

/// What a drill tells of all its runs, unless it has more to say of them together.
#[derive(Clone, Debug, Serialize)]
struct Report<R> {
    /// Whether all were done, and nothing is wrong.
    ok: bool,
    /// Each of them.
    runs: Vec<R>,
}

/// Does it `of` times, as [`all`], and shows what became of it: to people in the words of `words`, and with `right` behind it
/// if nothing is wrong.
pub(super) async fn report<R: Run + Serialize>(
    global: &Global,
    of: u32,
    once: impl AsyncFnMut(u32) -> anyhow::Result<R>,
    words: fn(&[R]) -> String,
    right: &str,
) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let (runs, result) = all(of, once).await;
    let ok = result.is_ok() && are_right(&runs);
    output.show(&Report { ok, runs }, |report| words(&report.runs))?;
    end(result, ok)?;
    output.note(right)
}

/// A directory for a cluster that a run has to itself.
pub(super) fn own_dir() -> anyhow::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("sbk-drill-").tempdir();
    dir.context("creating a temporary directory")
}

/// Has one run on a cluster of its own, in a directory that is kept if anything is wrong.
pub(super) async fn on_its_own<R: Run>(
    dir: TempDir,
    options: Options,
    args: &DrillArgs,
    run: impl AsyncFnOnce(&mut Bench) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let cluster = Box::new(DevCluster::start(options).await?);
    let mut bench = Bench::open(Target::Own { cluster, dir, network: None }, args.depth).await?;
    let outcome = run(&mut bench).await;
    let faulty = outcome.as_ref().map_or(true, |run| run.fault().is_some());
    bench.close(args.keep || faulty).await?;
    outcome
}

/// Whether all was done, and nothing is wrong.
pub(super) fn are_right<R: Run>(runs: &[R]) -> bool {
    runs.iter().all(|run| run.fault().is_none())
}

/// How the command ends, once the report was shown.
pub(super) fn end(result: anyhow::Result<()>, ok: bool) -> anyhow::Result<()> {
    result?;
    if !ok {
        bail!("the drill failed; its report says where");
    }
    Ok(())
}

/// Refuses to work on a cluster that somebody named. `what` the drill does that is for none of those.
pub(super) fn only_its_own(global: &Global, what: &str) -> anyhow::Result<()> {
    if global.dir.is_some() {
        bail!("this drill {what}, so it makes a cluster of its own: leave --dir away");
    }
    Ok(())
}

/// What is wrong with requests or with the data, in this order.
pub(super) fn fault_of(loads: &[&LoadStats], verified: &[&Verified]) -> Option<String> {
    let failed = loads.iter().find_map(|load| {
        let error = load.first_error.as_ref()?;
        Some(format!("{} requests failed, the first: {error}", load.errors))
    });
    failed.or_else(|| verified.iter().find_map(|verified| verified.fault()))
}

/// The beginning of a node's UUID, for tables.
pub(super) fn short(node: &str) -> String {
    node.get(..8).unwrap_or(node).to_owned()
}

/// A time, for tables.
pub(super) fn ms(ms: u64) -> String {
    format!("{ms} ms")
}

/// Since then, in milliseconds.
pub(super) fn since(then: std::time::Instant) -> u64 {
    u64::try_from(then.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ran(Option<&'static str>);

    impl Run for Ran {
        fn told(&self) -> String {
            "done".to_owned()
        }

        fn fault(&self) -> Option<&str> {
            self.0
        }
    }

    #[tokio::test]
    async fn the_first_run_that_goes_wrong_is_the_last() {
        let of = async |faults: &[Option<&'static str>], breaks: u32| {
            all(4, async |number| match number {
                number if number == breaks => bail!("it broke"),
                number => Ok(Ran(faults.get(number as usize - 1).copied().flatten())),
            })
            .await
        };
        let (runs, result) = of(&[], 9).await;
        assert!(runs.len() == 4 && are_right(&runs) && end(result, true).is_ok());
        let (runs, result) = of(&[None, Some("a request failed")], 9).await;
        assert_eq!((runs.len(), runs[1].data().as_str()), (2, "a request failed"));
        assert!(!are_right(&runs) && end(result, false).is_err());
        let (runs, result) = of(&[], 3).await;
        assert_eq!(runs.len(), 2);
        let error = end(result, true).expect_err("it broke").to_string();
        assert!(error.contains("run 3"), "{error}");
    }

    #[test]
    fn a_failed_request_comes_before_wrong_data() {
        let right = LoadStats::default();
        let failed =
            LoadStats { errors: 2, first_error: Some("error 5".into()), ..LoadStats::default() };
        let data = Verified::default();
        assert_eq!(fault_of(&[&right], &[&data]), None);
        let fault = fault_of(&[&right, &failed], &[&data]).expect("a fault");
        assert_eq!(fault, "2 requests failed, the first: error 5");
    }
}

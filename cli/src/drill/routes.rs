//! The routes by which a replica is, or comes back, in sync: nothing to do, catch-up, delta. Each
//! is taken on real processes and told from the volume's own trace.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::bench::{ANSWER, Bench, Verified, WHOLE};
use crate::commands::explain::{self, Decision, Names};
use crate::view::VolumeView;
use crate::wait::{self, Look};
use crate::workload::load::{Load, LoadStats};

/// WAL that the datanodes of a routes cluster retain: little, so that a long absence is soon long.
pub const SMALL_WAL: u64 = 32 << 20;
/// Bytes a second of the load: so slow that what a short absence misses is far less than that.
pub(super) const GENTLE: u64 = 2 << 20;

/// How a replica comes to be in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Nothing was missing.
    Healthy,
    /// The primary's WAL had what was missing.
    CatchUp,
    /// It did not: what had changed in the image was sent.
    Delta,
    /// It held no image: all of it was sent. Not taken on purpose.
    Rebuild,
}

/// One route taken.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    /// What was meant to happen.
    pub expected: Route,
    /// What the trace says: the sessions that were started for the replica.
    pub observed: BTreeSet<Route>,
    /// The node whose replica it is about.
    pub node: String,
    /// What the load did.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
    /// What was decided meanwhile.
    pub trace: Vec<Decision>,
    /// What the replicas in it are called for people.
    #[serde(skip)]
    pub names: Names,
}

impl Route {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Route::Healthy => "healthy: nothing to bring back",
            Route::CatchUp => "catch-up: a short absence",
            Route::Delta => "delta: an absence longer than the log",
            Route::Rebuild => "rebuild: no image",
        }
    }

    /// The route of a single word, as in tables.
    pub fn word(self) -> &'static str {
        match self {
            Route::Healthy => "healthy",
            Route::CatchUp => "catch-up",
            Route::Delta => "delta",
            Route::Rebuild => "rebuild",
        }
    }
}

/// The sessions that the trace tells of for `replica`. The trace shows the recovery engine's
/// commands; a replica for which no session was commanded stayed, or became, healthy without one.
pub fn observed(trace: &[Decision], replica: &str) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    for decision in trace.iter().filter(|d| d.what == "recovery") {
        // What was seen stands before, the commands after; only these are decisions.
        let commands = decision.why.split_once("; so: ").map_or("", |(_, commands)| commands);
        for (name, route) in [
            ("catch-up of", Route::CatchUp),
            ("delta of", Route::Delta),
            ("rebuild of", Route::Rebuild),
        ] {
            if commands.contains(&format!("{name} {replica} ")) {
                routes.insert(route);
            }
        }
    }
    if routes.is_empty() {
        routes.insert(Route::Healthy);
    }
    routes
}

/// Takes a route on `bench`.
pub async fn take(bench: &mut Bench, route: Route, seconds: Duration) -> anyhow::Result<Taken> {
    let before = bench.whole().await?;
    let Some(primary) = before.primary.clone() else { bail!("the volume has no primary") };
    let other = before.members.iter().map(|m| m.node.clone()).find(|node| *node != primary);
    let node = other.context("a route needs a replica beside the primary")?;
    let replica = bench.replica_on(&node).await?;
    let since = bench.decisions().await?.iter().map(|d| d.at).max().unwrap_or(0);
    let client = bench.connect(&node).await?;
    let load = bench.start_load(&client, Some(GENTLE)).await?;
    match route {
        Route::Healthy => bench.load_goes_on(&load, seconds).await?,
        Route::CatchUp => absence(bench, &load, &node, seconds, Absence::Short).await?,
        Route::Delta => absence(bench, &load, &node, seconds, Absence::BeyondLog).await?,
        Route::Rebuild => bail!("a rebuild is of a replica that holds nothing"),
    }
    let load = load.stop(ANSWER).await?;
    let after = bench.whole().await?;
    let verified = bench.verify(&client).await?;
    client.disconnect().await;
    let trace: Vec<Decision> =
        bench.decisions().await?.into_iter().filter(|d| d.at > since).collect();
    let observed = observed(&trace, &replica);
    let fault = fault(route, &observed, (&before, &after), &load, &verified);
    let names = explain::names(&bench.info().await?);
    Ok(Taken { expected: route, observed, node, load, verified, fault, trace, names })
}

/// How long a replica is away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absence {
    Short,
    /// Until the primary's log no longer begins before its return.
    BeyondLog,
}

/// The node is killed, and comes back while the load goes on.
async fn absence(
    bench: &mut Bench,
    load: &Load,
    node: &str,
    seconds: Duration,
    absence: Absence,
) -> anyhow::Result<()> {
    let pid = bench.target.kill(node).await?;
    let without = |view: &VolumeView| view.serving && !view.isr.iter().any(|n| n == node);
    bench.wait_for("the replica to leave the in-sync set", without).await?;
    match absence {
        Absence::Short => bench.load_goes_on(load, Duration::ZERO).await?,
        Absence::BeyondLog => {
            load.set_pace(None);
            bench.load_goes_on(load, seconds).await?;
            log_moves_on(bench, load).await?;
        }
    }
    bench.target.bring_back(node, pid).await?;
    bench.whole().await.map(drop)
}

/// Waits until the primary's log begins (S) beyond where it ends (H) now, so that who is away now
/// can't catch up any more.
pub(super) async fn log_moves_on(bench: &Bench, load: &Load) -> anyhow::Result<()> {
    let frontiers = async || {
        let view = bench.view().await?;
        let known = view.members.iter().find_map(|m| m.s.zip(m.h));
        anyhow::Ok(known)
    };
    let head = wait::until("the primary to tell its head", WHOLE, async || {
        let known = frontiers().await?;
        Ok(known.map_or_else(|| Look::NotYet("it tells nothing".into()), |(_, h)| Look::Done(h)))
    })
    .await?;
    let what = format!("the primary's log to begin after LSN {head}");
    wait::until(what, WHOLE, async || {
        if load.stats().errors > 0 {
            return Ok(Look::Done(()));
        }
        Ok(match frontiers().await? {
            Some((s, _)) if s > head + 1 => Look::Done(()),
            Some((s, h)) => Look::NotYet(format!("it holds {s} to {h}")),
            None => Look::NotYet("it tells nothing".into()),
        })
    })
    .await
}

fn fault(
    expected: Route,
    observed: &BTreeSet<Route>,
    (before, after): (&VolumeView, &VolumeView),
    load: &LoadStats,
    verified: &Verified,
) -> Option<String> {
    if let Some(error) = &load.first_error {
        return Some(format!("{} requests failed, the first: {error}", load.errors));
    }
    // A delta may be followed by a catch-up; what must not be is one of who could catch up, or a rebuild of
    // who has an image.
    let right = match expected {
        Route::Healthy => observed.iter().eq([&Route::Healthy]) && before.epoch == after.epoch,
        Route::CatchUp => observed.iter().eq([&Route::CatchUp]),
        Route::Delta => observed.contains(&Route::Delta) && !observed.contains(&Route::Rebuild),
        Route::Rebuild => observed.contains(&Route::Rebuild),
    };
    if !right {
        let seen: Vec<&str> = observed.iter().map(|r| r.word()).collect();
        let (from, to) = (before.epoch.unwrap_or(0), after.epoch.unwrap_or(0));
        return Some(format!(
            "expected {}, the trace tells {} (epoch {from} to {to})",
            expected.word(),
            seen.join(" and ")
        ));
    }
    verified.fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(what: &str, why: &str) -> Decision {
        Decision {
            node: "n".into(),
            at: 1,
            time_ms: 1,
            number: 1,
            epoch: 1,
            what: what.into(),
            why: why.into(),
        }
    }

    #[test]
    fn routes_are_read_from_the_commands() {
        let trace = [
            decision("recovery", "r-a holds 4; so: catch-up of r-a from 5 to 9, ask r-c at c:1"),
            decision("recovery", "r-b holds nothing; so: rebuild of r-b up to 9"),
            decision("recovery", "r-d holds 2; so: delta of r-d from 2 up to 9 in session 1/2"),
            decision("recovery", "a rebuild of r-a up to 9 was seen"),
            decision("degraded", "r-a; so: rebuild of r-a up to 9"),
        ];
        assert!(observed(&trace, "r-a").iter().eq([&Route::CatchUp]));
        assert!(observed(&trace, "r-b").iter().eq([&Route::Rebuild]));
        assert!(observed(&trace, "r-d").iter().eq([&Route::Delta]));
        assert!(observed(&trace, "r-c").iter().eq([&Route::Healthy]));
    }

    /// The trace's form is the engine's: should that change, the drills would be blind.
    #[test]
    fn the_engine_writes_its_commands_so() {
        use sbk_engine::recovery::{Command, TransportEpoch};
        use sbk_engine::replication::message::RecoveryId;
        use sbk_engine::types::{Epoch, Lsn, ReplicaId};
        let replica = ReplicaId(uuid::Uuid::from_u128(7));
        let (epoch, transport) = (Epoch(1), TransportEpoch(1));
        let session = RecoveryId { epoch, number: 1 };
        let (from, target) = (Lsn(1), Lsn(2));
        for (command, route) in [
            (
                Command::StartCatchUp { epoch, replica, transport, session, from, target },
                Route::CatchUp,
            ),
            (
                Command::StartDelta { epoch, replica, transport, session, from, target },
                Route::Delta,
            ),
            (Command::StartRebuild { epoch, replica, transport, session, target }, Route::Rebuild),
        ] {
            let why = format!("it holds nothing; so: {command}");
            let seen = observed(&[decision("recovery", &why)], &replica.to_string());
            assert!(seen.iter().eq([&route]), "{why}");
        }
    }

    fn view(epoch: u64) -> VolumeView {
        let config = sbk_proto::v1::Config { epoch, ..Default::default() };
        let info = sbk_proto::v1::VolumeInfo { config: Some(config), ..Default::default() };
        VolumeView::of(&info)
    }

    #[test]
    fn another_route_than_expected_is_a_fault() {
        let judge = |expected, seen: &[Route], after| {
            let observed = seen.iter().copied().collect();
            let (stats, verified) = (LoadStats::default(), Verified::default());
            fault(expected, &observed, (&view(1), &view(after)), &stats, &verified)
        };
        assert_eq!(judge(Route::Healthy, &[Route::Healthy], 1), None);
        assert!(judge(Route::Healthy, &[Route::Healthy], 2).is_some(), "the epoch moved");
        assert!(judge(Route::Healthy, &[Route::CatchUp], 1).is_some());
        assert_eq!(judge(Route::CatchUp, &[Route::CatchUp], 3), None);
        assert!(judge(Route::CatchUp, &[Route::CatchUp, Route::Delta], 3).is_some());
        assert!(judge(Route::CatchUp, &[Route::Healthy], 3).is_some());
        assert_eq!(judge(Route::Delta, &[Route::CatchUp, Route::Delta], 3), None);
        assert!(judge(Route::Delta, &[Route::Delta, Route::Rebuild], 3).is_some());
        let error = judge(Route::Delta, &[Route::CatchUp], 3).expect("a fault");
        assert!(error.contains("expected delta, the trace tells catch-up"), "{error}");
    }

    #[test]
    fn a_failed_request_is_a_fault() {
        let stats =
            LoadStats { errors: 1, first_error: Some("error 5".into()), ..LoadStats::default() };
        let routes = BTreeSet::from([Route::CatchUp]);
        let verified = Verified::default();
        let fault = fault(Route::CatchUp, &routes, (&view(1), &view(3)), &stats, &verified);
        assert!(fault.expect("a fault").contains("error 5"));
    }
}

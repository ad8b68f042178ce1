//! Requests under limits, on a clock that jumps.

use std::future::poll_fn;

use sbk_engine::authority::Limits;
use sbk_engine::types::{AttachGeneration, Epoch, LossGeneration};
use tokio::time::{advance, timeout};
use uuid::Uuid;

use super::*;

/// A stream, open, with its frontend's end.
fn open(clients: &mut Clients, n: u64) -> (StreamId, Link) {
    let stream = StreamId(n);
    let mut link = clients.add(stream, SessionId(Uuid::from_u128(n.into())));
    let (attach, loss_generation) = (AttachGeneration(1), LossGeneration(0));
    clients.tell(stream, LinkEvent::Opened { epoch: Epoch(1), attach, loss_generation });
    assert!(matches!(link.events.try_recv(), Ok(LinkEvent::Opened { .. })));
    (stream, link)
}

fn ask(link: &Link, sequence: u64, op: IoOp) {
    let (epoch, attach) = (Epoch(1), AttachGeneration(1));
    link.requests.try_send(IoRequest { sequence, low: 0, epoch, attach, op }).expect("room");
}

fn read(length: u64) -> IoOp {
    IoOp::Read { offset: 0, length }
}

fn iops(iops: u64) -> Limits {
    Limits { iops: Some(iops), ..Limits::default() }
}

/// What passes within `time`, in order: `(stream, sequence)`, and 0 for the end of a stream.
async fn passed(clients: &mut Clients, time: Duration) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let taking = async {
        loop {
            let mut taken = Vec::new();
            poll_fn(|cx| clients.poll_take(cx, &mut taken)).await;
            for from in taken {
                match from {
                    FromClient::Request(stream, request) => all.push((stream.0, request.sequence)),
                    FromClient::Gone(stream) => {
                        all.push((stream.0, 0));
                        clients.remove(stream);
                    }
                }
            }
        }
    };
    // The clock jumps to what is waited for next, and stops at the end of `time`.
    assert!(timeout(time, taking).await.is_err());
    all
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test(start_paused = true)]
async fn a_second_s_worth_passes_at_once_and_the_rest_at_the_rate_in_order() {
    let mut clients = Clients::default();
    clients.set_limits(iops(10));
    let (_, link) = open(&mut clients, 1);
    (1..=100).for_each(|n| ask(&link, n, read(4096)));
    let first = passed(&mut clients, Duration::from_millis(50)).await;
    assert_eq!(first, (1..=10).map(|n| (1, n)).collect::<Vec<_>>());
    // Tokens of 50 ms are there already.
    assert_eq!(
        passed(&mut clients, SECONDS(3)).await,
        (11..=40).map(|n| (1, n)).collect::<Vec<_>>()
    );
    let held = clients.take_held_back();
    assert_eq!(held.requests, 30);
    assert!(held.nanos > 2_900_000_000 && held.nanos <= 3_050_000_000, "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_by_a_change_at_once() {
    let mut clients = Clients::default();
    clients.set_limits(iops(10));
    let (_, link) = open(&mut clients, 1);
    (1..=200).for_each(|n| ask(&link, n, read(4096)));
    assert_eq!(passed(&mut clients, Duration::from_millis(10)).await.len(), 10);
    clients.set_limits(iops(100));
    // No burst comes with it.
    assert_eq!(passed(&mut clients, Duration::from_millis(100)).await.len(), 10);
    clients.set_limits(Limits::default());
    let rest = passed(&mut clients, Duration::from_millis(1)).await;
    assert_eq!(rest, (21..=200).map(|n| (1, n)).collect::<Vec<_>>());
    assert_eq!(clients.take_held_back().requests, 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_a_burst_passes_and_leaves_a_debt() {
    let mut clients = Clients::default();
    clients.set_limits(Limits { bandwidth: Some(2 << 20), ..Limits::default() });
    let (_, link) = open(&mut clients, 1);
    ask(&link, 1, read(32 << 20));
    ask(&link, 2, read(1 << 20));
    assert_eq!(passed(&mut clients, Duration::from_millis(1)).await, [(1, 1)]);
    // 30 MiB of debt, and the one that waits.
    assert_eq!(passed(&mut clients, Duration::from_millis(15_490)).await, []);
    assert_eq!(passed(&mut clients, Duration::from_millis(20)).await, [(1, 2)]);
}

#[tokio::test(start_paused = true)]
async fn streams_share_by_what_is_limited_whatever_they_queue() {
    let mut clients = Clients::default();
    clients.set_limits(Limits { bandwidth: Some(4 << 20), ..Limits::default() });
    let (_, small) = open(&mut clients, 1);
    let (_, large) = open(&mut clients, 2);
    (1..=200).for_each(|n| ask(&small, n, read(64 << 10)));
    (1..=50).for_each(|n| ask(&large, n, read(1 << 20)));
    let taken = passed(&mut clients, SECONDS(4)).await;
    let of = |stream: u64| taken.iter().filter(|(s, _)| *s == stream).count() as u64;
    let (small, large) = (of(1) << 16, of(2) << 20);
    assert!(small + large <= 5 * (4 << 20), "a burst and four seconds");
    assert!(small.abs_diff(large) <= 1 << 20, "{small} and {large}");
}

#[tokio::test(start_paused = true)]
async fn what_costs_nothing_and_what_ends_a_stream_passes_by_what_waits() {
    let mut clients = Clients::default();
    clients.set_limits(iops(10));
    let (_, busy) = open(&mut clients, 1);
    (1..=50).for_each(|n| ask(&busy, n, read(512)));
    assert_eq!(passed(&mut clients, Duration::from_millis(1)).await.len(), 10);
    let (_, other) = open(&mut clients, 2);
    ask(&other, 1, IoOp::Flush);
    ask(&other, 2, IoOp::Detach);
    assert_eq!(passed(&mut clients, Duration::from_millis(1)).await, [(2, 1), (2, 2)]);
    drop(other);
    assert_eq!(passed(&mut clients, Duration::from_millis(1)).await, [(2, 0)]);
    // What a frontend that is gone had asked for takes nothing of the limits.
    let (_, next) = open(&mut clients, 3);
    drop(busy);
    ask(&next, 1, read(512));
    assert_eq!(passed(&mut clients, Duration::from_millis(110)).await, [(1, 0), (3, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_frontend_is_told_each_second_and_never_in_place_of_an_answer() {
    let mut clients = Clients::default();
    clients.set_limits(Limits { bandwidth: Some(2 << 20), ..Limits::default() });
    let (stream, mut link) = open(&mut clients, 1);
    (1..=3).for_each(|n| ask(&link, n, read(16 << 20)));
    passed(&mut clients, SECONDS(5)).await;
    let mut told = 0;
    while let Ok(LinkEvent::HeldBack) = link.events.try_recv() {
        told += 1;
    }
    assert!((5..=6).contains(&told), "{told}");
    // It reads nothing any more.
    for sequence in 0..SEQUENCE_WINDOW {
        let data = Bytes::new();
        clients.tell(stream, LinkEvent::Reply { sequence, outcome: LinkOutcome::Done, data });
    }
    advance(SECONDS(1)).await;
    passed(&mut clients, SECONDS(1)).await;
    assert!(!link.requests.is_closed(), "it is not cut off for what it did not ask for");
}

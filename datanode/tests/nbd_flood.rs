//! Very many NBD clients at a datanode's process, and clients that ask for much and read nothing:
//! its descriptors come back, its memory has a bound, and a good client is served.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::nbd::{FLUSH, READ, Raw, WRITE, header};
use support::process::{PATIENCE, Process, Scene, read_all};

/// What the server lets connect at a time.
const CONNECTIONS: usize = 1024;

fn descriptors(process: &Process) -> usize {
    let dir = format!("/proc/{}/fd", process.child.id());
    std::fs::read_dir(dir).expect("it runs").count()
}

/// The most memory that it ever had, in MiB.
fn peak_mib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id()));
    let status = status.expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number") / 1024
}

/// This process needs as many descriptors as it opens connections.
fn take_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(1 << 16).min(1 << 16);
    if current.is_some_and(|current| current < most) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).expect("may");
    }
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let started = Instant::now();
    while !met() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends what runs beside a test, also of one that fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects if it is let in.
fn connect(addr: SocketAddr) -> Option<TcpStream> {
    TcpStream::connect(addr).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_connections_leave_nothing_behind() {
    take_descriptors();
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let nbd = process.nbd;
    tokio::task::block_in_place(|| {
        // What the first client makes for good.
        assert_eq!(read_all(nbd), Ok(0));
        let mut base = 0;
        until("the first client's connection to close", || {
            let now = descriptors(&process);
            std::mem::replace(&mut base, now) == now
        });
        for round in 0..12 {
            let mut some = Vec::new();
            for n in 0..400 {
                match n % 4 {
                    0 => some.extend(connect(nbd)),
                    1 => some.push(Raw::connect(nbd).0),
                    2 => some.push(Raw::export(nbd).0),
                    _ => {
                        let mut raw = Raw::export(nbd);
                        raw.request(READ, n, 0, 65536);
                        raw.blurt(&header(0, WRITE, n, 10 << 20, 1 << 20));
                        some.push(raw.0);
                    }
                }
            }
            drop(some);
            // Other tests of this machine must not be short of ports and neither must this one.
            until("the round's connections to close", || descriptors(&process) <= base + 8);
            assert!(process.has_ended().is_none(), "round {round}: {}", process.logged());
        }
        // More at a time than it takes: the rest is turned away, and has its turn later.
        let many: Vec<_> = (0..CONNECTIONS + 200).filter_map(|_| connect(nbd)).collect();
        until("the connections to be open or turned away", || {
            descriptors(&process) <= base + CONNECTIONS + 8
        });
        drop(many);
        until("all of it to close", || descriptors(&process) <= base + 8);
        assert_eq!(read_all(nbd), Ok(0));
    });
    assert!(process.has_ended().is_none());
    assert!(!process.logged().contains("panicked"), "{}", process.logged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_ask_for_much_and_read_nothing_take_bounded_memory() {
    /// The budget of all connections, what may lie in queues between frontend and volume beside it
    /// while a reply is on its way, and the process itself, in a debug build.
    const BOUND_MIB: u64 = 800;
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let nbd = process.nbd;
    tokio::task::block_in_place(|| {
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let stops = Stops(&stop);
            scope.spawn(|| {
                let mut client = Raw::export(nbd);
                client.0.set_read_timeout(Some(2 * PATIENCE)).expect("sets");
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.fetch_add(1, Ordering::Relaxed) as u8;
                    assert_eq!(client.write(12 << 20, &[round; 4096]), 0);
                    assert_eq!(client.ask(FLUSH, 0, 0), 0);
                    assert_eq!(client.read(12 << 20, 4096), [round; 4096]);
                }
            });
            // 32 clients of 256 requests of 8 MiB: 64 GiB.
            let greedy: Vec<_> = (0..32)
                .map(|_| {
                    let mut raw = Raw::export(nbd);
                    (0..256).for_each(|cookie| raw.blurt(&header(0, READ, cookie, 0, 8 << 20)));
                    raw
                })
                .collect();
            // Who waited for the greedy ones to read would never go on. It has its turn among them.
            let before = rounds.load(Ordering::Relaxed);
            until("the good client to go on", || rounds.load(Ordering::Relaxed) > before + 2);
            drop(stops);
            drop(greedy);
        });
        assert_eq!(read_all(nbd), Ok(0));
    });
    let peak = peak_mib(&process);
    assert!(peak < BOUND_MIB, "{peak} MiB");
    assert!(process.has_ended().is_none());
    assert!(!process.logged().contains("panicked"), "{}", process.logged());
}

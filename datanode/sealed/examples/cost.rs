//! What encryption costs: the same reads and writes of a file, plain and encrypted, in turns, and what proves a block.
//!
//! `cargo run --release -p sbk-sealed --example cost -- DIR`, with 256 MiB free in DIR. The file stays in the
//! page cache and nothing is synced, so what is compared is the processor's work alone.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbk_sealed::{KeyRing, Sealed};
use sbk_wal::{Authenticator, Files, Owner, RawFile, Storage, crc32c, read_exact, write_all};

const FILE: usize = 64 << 20;
const BLOCK: usize = 4096;
const ROUNDS: usize = 9;

fn write(file: &dyn RawFile, size: usize, payload: &[u8]) -> Duration {
    let start = Instant::now();
    for at in (0..FILE).step_by(size) {
        write_all(file, &[&payload[..size]], at as u64).expect("written");
    }
    start.elapsed()
}

fn read(file: &dyn RawFile, size: usize, buf: &mut [u8]) -> Duration {
    let start = Instant::now();
    for at in (0..FILE).step_by(size) {
        read_exact(file, &mut buf[..size], at as u64, false).expect("read");
    }
    start.elapsed()
}

/// The checksums of as many blocks as the file has, or their tags.
fn prove(tags: Option<&dyn Authenticator>, payload: &[u8]) -> Duration {
    let start = Instant::now();
    for at in (0..FILE).step_by(BLOCK) {
        let block = &payload[at % payload.len()..][..BLOCK];
        let number = at.to_le_bytes();
        match tags {
            None => drop(black_box(crc32c(block))),
            Some(tags) => drop(black_box(tags.tag(&[b"block   ", &number, block]))),
        }
    }
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    let dir = std::env::args().nth(1).expect("a directory");
    let dir = tempfile::tempdir_in(Path::new(&dir)).expect("a directory in it");
    let (plain, sealed) = (dir.path().join("plain"), dir.path().join("sealed"));
    [&plain, &sealed].iter().for_each(|dir| std::fs::create_dir(dir).expect("made"));
    let keys = KeyRing::parse(&"5e".repeat(32), Path::new("keys")).expect("a key");
    let plain = Files::new(plain).create("file").expect("made");
    let files = Arc::new(Files::new(sealed));
    let sealed = Sealed::create(files, Owner([1; 32]), &keys).expect("a key");
    let tags = sealed.authenticator().expect("it has a key");
    let sealed = sealed.create("file").expect("made");

    let mut payload: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 253) as u8).collect();
    println!("{:>8} {:>7} {:>12} {:>12} {:>7}", "bytes", "", "plain", "encrypted", "ratio");
    let show = |size: usize, what: &str, plain: f64, sealed: f64| {
        let rate = |seconds| FILE as f64 / seconds / 1e6;
        let (plain, sealed) = (rate(plain), rate(sealed));
        let ratio = sealed / plain;
        println!("{size:>8} {what:>7} {plain:>7.0} MB/s {sealed:>7.0} MB/s {ratio:>7.2}");
    };
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        times[0].push(prove(None, &payload));
        times[1].push(prove(Some(&*tags), &payload));
    }
    let [sums, proofs] = times.map(median);
    show(BLOCK, "prove", sums, proofs);
    for size in [4 << 10, 64 << 10, 1 << 20] {
        // The first round of each makes the file.
        write(&*plain, size, &payload);
        write(&*sealed, size, &payload);
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            times[0].push(write(&*plain, size, &payload));
            times[1].push(write(&*sealed, size, &payload));
            times[2].push(read(&*plain, size, &mut payload));
            times[3].push(read(&*sealed, size, &mut payload));
        }
        let [plain_write, sealed_write, plain_read, sealed_read] = times.map(median);
        show(size, "write", plain_write, sealed_write);
        show(size, "read", plain_read, sealed_read);
    }
}

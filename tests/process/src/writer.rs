//! A client that writes, one write after the other, each of which has to succeed however late, and knows what was acknowledged.
#![allow(clippy::missing_panics_doc)] // A test that can't go on ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use tokio::task::JoinHandle;

use crate::clusters::LIMIT;

/// How its writes are made.
#[derive(Clone, Copy, Debug)]
pub struct Writes {
    /// Bytes of each.
    pub bytes: usize,
    /// Between an answer and the next write: what all of them take fits the disks.
    pub pace: Duration,
}

/// What was acknowledged: at which byte of the volume, and which byte it is full of.
type Acknowledged = Arc<Mutex<BTreeMap<u64, u8>>>;

/// The client. It ends when it is dropped.
#[derive(Debug)]
pub struct Writer {
    acknowledged: Acknowledged,
    bytes: usize,
    job: JoinHandle<()>,
}

impl Writer {
    /// Starts it. `place` says at which byte of the volume each write is, numbered from 0; no two places overlap.
    pub fn start(
        client: NbdClient,
        writes: Writes,
        place: impl Fn(u64) -> u64 + Send + 'static,
    ) -> Self {
        let acknowledged = Acknowledged::default();
        let known = Arc::clone(&acknowledged);
        let job = tokio::spawn(async move {
            for n in 0.. {
                let (at, byte) = (place(n), (n % 251) as u8 + 1);
                let data = Bytes::from(vec![byte; writes.bytes]);
                client.write(at, data).await.expect("a write succeeds, if late");
                known.lock().expect("not poisoned").insert(at, byte);
                tokio::time::sleep(writes.pace).await;
            }
        });
        Self { acknowledged, bytes: writes.bytes, job }
    }

    fn acknowledged(&self) -> BTreeMap<u64, u8> {
        self.acknowledged.lock().expect("not poisoned").clone()
    }

    /// How many places were written, as far as was acknowledged.
    pub fn places(&self) -> usize {
        self.acknowledged().len()
    }

    /// Waits until so many more places were written.
    pub async fn grows(&self, by: usize) {
        let before = self.places();
        until("writes", LIMIT, async || {
            assert!(!self.job.is_finished(), "a write failed");
            let now = self.places();
            Ok(if now >= before + by { Look::Done(()) } else { Look::NotYet(format!("{now}")) })
        })
        .await
        .expect("it goes on");
    }

    /// Waits until its first place was seen to hold something else so often.
    pub async fn overwrites(&self, times: usize) {
        let mut seen = Vec::new();
        until("overwrites", LIMIT, async || {
            assert!(!self.job.is_finished(), "a write failed");
            let now = self.acknowledged().values().copied().next();
            if seen.last() != Some(&now) {
                seen.push(now);
            }
            Ok(if seen.len() > times { Look::Done(()) } else { Look::NotYet(format!("{seen:?}")) })
        })
        .await
        .expect("overwrites go on");
    }

    /// Ends one that wrote no place twice: all that was acknowledged is there.
    pub async fn stop(self, client: &NbdClient) {
        self.job.abort();
        for (at, byte) in self.acknowledged() {
            let read = client.read(at, self.bytes as u32).await.expect("reads");
            assert!(read.iter().all(|b| *b == byte), "the write at {at}");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.job.abort();
    }
}

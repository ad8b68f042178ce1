//! Conversations of clients that were made wrong: whatever a client sends, its connection ends, and
//! gives back all that it took.
//!
//! The corpus, `datanode/corpus/nbd`, has one client's side of a conversation in each file; what
//! another implementation or an attacker sent once belongs there too. Each run of the test sends
//! the files as they are and mutated by numbers that follow from the mutation's own, so that what is
//! found is found again. `FUZZ=200000 cargo test --release -p sbk-datanode --lib fuzz` goes on longer.
//! Time is virtual: a client that is waited for costs nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sbk_engine::forward::Params;
use sbk_engine::types::{NodeId, VolumeId, Wish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::limits::Pool;
use super::wire::{
    EXTENDED_REPLY_MAGIC, IHAVEOPT, NBDMAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::{AtStop, Ended, Shared, converse};
use crate::catalogue::{Catalogue, Volume};
use crate::frontend::Frontends;
use crate::volume::Registry;

/// Mutations of each file in a usual run.
const RUNS: u64 = 300;
/// Longer than any time limit of the server, those of all requests of a conversation one after the
/// other included.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/nbd");
    let files = std::fs::read_dir(&dir).expect("the corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).expect("reads");
            (path, bytes)
        })
        .collect()
}

/// What is known: a volume `vol` of 1 MiB that nobody serves.
fn catalogue(deleted: bool) -> Arc<Catalogue> {
    let id = VolumeId(Uuid::from_u128(1));
    let volume = Volume {
        id,
        name: "vol".to_owned(),
        blocks: 256,
        created_blocks: 256,
        encrypted: false,
        replicas: BTreeMap::new(),
        retired: BTreeMap::new(),
        wish: Wish::default(),
        limits: sbk_engine::authority::Limits::default(),
        config: None,
        deleted,
    };
    let volumes = BTreeMap::from([(id, Arc::new(volume))]);
    Arc::new(Catalogue { volumes, heard: true })
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Changes a conversation in one to four places.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let count = 1 + random.below(16);
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = bytes.len().min(at + count);
                bytes.drain(at..end);
            }
            4 => {
                let end = bytes.len().min(at + 40);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                // A number at its edge, where lengths and offsets may be.
                let edges = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 25, (1 << 25) + 1, u64::MAX];
                let edge = edges[random.below(edges.len())].to_be_bytes();
                let width = [2, 4, 8][random.below(3)];
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&edge[8 - (end - at)..]);
            }
            _ => {
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// Has a client say `bytes`, hear what it is answered, and then close. Its requests wait until the
/// volume is deleted, once all is said. What it heard.
async fn say(bytes: &[u8]) -> Vec<u8> {
    let (catalogues, watched) = watch::channel(catalogue(false));
    let node = NodeId(Uuid::from_u128(2));
    let frontends = Frontends::new(watched, Registry::default(), node, Params::default());
    let pool = Pool::new(frontends.catalogue());
    let (client, server) = tokio::io::duplex(16 << 10);
    let (reader, writer) = tokio::io::split(server);
    let (mut hears, mut says) = tokio::io::split(client);
    let (stop, at_stop) = (CancellationToken::new(), AtStop::Answer);
    let shared = Shared { frontends, tls: None, pool: pool.clone(), stop, at_stop };
    let bytes = bytes.to_vec();
    let saying = tokio::spawn(async move {
        // The server may close before it has heard all.
        let _closed = says.write_all(&bytes).await;
        let _closed = says.shutdown().await;
        // Virtual time passes when there is nothing else to do. A client waits for a primary before
        // it goes on without one.
        tokio::time::sleep(2 * super::attach::SHARED).await;
        catalogues.send_replace(catalogue(true));
        catalogues
    });
    let mut heard = Vec::new();
    let serving = async {
        match converse(&shared, reader, writer).await {
            Ok(()) => {}
            // Of the tasks of a connection only one that panicked ends so.
            Err(Ended::Broken(error)) => {
                assert_ne!(error.kind(), std::io::ErrorKind::Other, "{error}");
            }
            Err(Ended::NotFlushed(why)) => panic!("nothing was to be flushed: {why}"),
        }
    };
    let both = async {
        let hearing = async { hears.read_to_end(&mut heard).await };
        let (_, hearing) = tokio::join!(serving, hearing);
        hearing.expect("a pipe");
        saying.await.expect("no panic")
    };
    let catalogues = tokio::time::timeout(FOR_EVER, both).await.expect("the connection ends");
    // What the connection's tasks still held goes with them.
    while !pool.is_whole() {
        tokio::time::timeout(FOR_EVER, tokio::time::sleep(Duration::from_millis(1)))
            .await
            .expect("time passes");
    }
    drop(catalogues);
    heard
}

#[tokio::test(start_paused = true)]
async fn mutated_conversations_end_and_give_all_back() {
    let runs = std::env::var("FUZZ").map_or(RUNS, |runs| runs.parse().expect("FUZZ is a number"));
    let corpus = corpus();
    assert!(corpus.len() >= 5, "the corpus has {} files", corpus.len());
    let framings = [SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC];
    let mut replies = [0; 3];
    for (number, (path, bytes)) in corpus.iter().enumerate() {
        let heard = say(bytes).await;
        let greeting = [NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes()].concat();
        assert_eq!(heard[..16], greeting, "{}", path.display());
        for run in 0..runs {
            let mut random = Random((run + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number as u64);
            let other = &corpus[random.below(corpus.len())].1;
            let mut mutated = bytes.clone();
            mutate(&mut random, &mut mutated, other);
            let heard = say(&mutated).await;
            assert_eq!(heard[..16], greeting, "{} {run}", path.display());
            for (magic, count) in framings.iter().zip(&mut replies) {
                *count += heard.windows(4).filter(|word| *word == magic.to_be_bytes()).count();
            }
        }
    }
    // Mutations that all failed in the negotiation would try half of it.
    assert!(replies.iter().all(|count| *count > runs as usize / 4), "{replies:?}");
}

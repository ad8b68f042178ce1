//! How a run ends: everything comes to rest, and what is left is compared.

use bytes::Bytes;
use sbk_engine::replication::log::BlockRange;
use sbk_engine::types::{BLOCK_SIZE, Lba};

use super::client::Client;
use super::content::{self, BLOCKS};
use super::node::Node;
use super::summary::Summary;
use super::world::World;

impl World {
    pub(crate) fn run_until_converged(&mut self, patience: u64) {
        let end = self.now + patience;
        let mut again = self.now + patience / 2;
        loop {
            if self.converged() {
                // An impatient client may have given up what was to make a damaged block whole, and
                // one whose attachment had ended was not let.
                let whole = self.overwrites.iter().all(|value| self.history.has_written(*value));
                if !self.faults.rot || (whole && !self.is_damaged()) {
                    return;
                }
                self.overwrite_all();
            } else if self.faults.rot && self.now >= again {
                // And a rebuild may hang on that block.
                self.overwrite_all();
                again = end;
            }
            assert!(self.now < end, "I8: not converged:\n{}", self.describe());
            self.find_needed();
            // Looking costs more than many turns.
            self.run_until(self.now + 20);
        }
    }

    /// Whether a block of some replica does not match its checksum.
    fn is_damaged(&mut self) -> bool {
        let mut damaged = false;
        for index in self.settled().unwrap_or_default() {
            let mut plan = self.nodes[index].disk.store().plan_digest(0, 0);
            while let Some(read) = plan.next_region() {
                damaged |= matches!(read, Ok(Some(digest)) if !digest.damaged.is_empty());
            }
        }
        damaged
    }

    fn describe(&self) -> String {
        let shown = self.nodes.iter().map(|node| {
            let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
            view.and_then(|view| serde_json::to_string(&view).ok()).unwrap_or_default()
        });
        let clients = self.clients.iter().map(|client| format!("{client:?}"));
        let outlook = self.masters.outlook(self.now);
        let told: Vec<_> = self.nodes.iter().map(Node::told_briefly).collect();
        let masters = format!("{outlook}\n{:?}\n{}", self.masters.live(), told.join("\n"));
        shown.chain(clients).chain([masters]).collect::<Vec<_>>().join("\n")
    }

    fn converged(&self) -> bool {
        let idle = self.clients.iter().all(Client::is_idle);
        // A voter is listed through its rebuild, so the list does not tell that it is over.
        let up = |node: &Node| {
            let rebuilds = node.disk.shadow.kept.incomplete.is_some() || node.receiving.is_some();
            node.replica.is_some() && node.sending.is_empty() && !rebuilds
        };
        let Some(members) = self.settled() else { return false };
        let members: Vec<_> = members.iter().map(|index| &self.nodes[*index]).collect();
        let whole = members.iter().all(|node| up(node));
        let ends: Vec<_> = members
            .iter()
            .map(|node| (node.disk.shadow.end(), node.disk.shadow.committed))
            .collect();
        let kept = |node: &Node| self.masters.config.has_kept(node.id, node.disk.tail());
        // A loss takes effect when the chosen replica is ready, and not before.
        let whole = whole && self.nodes.iter().all(kept) && !self.loss_pending();
        // What is committed and not in the extents yet fills the WAL, by right. [In `best_effort` a
        // member's disk hung until after the faults. With its first sync all was committed that had been
        // acknowledged meanwhile, and the WAL was measured before a checkpoint had come to it.]
        let drained = self.nodes.iter().all(|node| node.checkpoint.is_none());
        idle && whole
            && drained
            && self.has_its_size()
            && ends.iter().all(|(end, committed)| *end == ends[0].0 && committed == end)
    }

    pub(crate) fn check(&mut self) -> Summary {
        let members = self.settled().expect("it has converged");
        let image = self.image(members[0], members[0]);
        for node in &members[1..] {
            let other = self.image(members[0], *node);
            assert_eq!(
                image, other,
                "I4: node {node} holds another image than node {}",
                members[0]
            );
        }
        // The final image is what every later read would see.
        for (block, data) in image.iter().enumerate() {
            let invoked = self.history.now();
            let seen = content::seen(data).unwrap_or_else(|how| panic!("I4: block {block}: {how}"));
            let loss = self.truth.loss_generation;
            self.history.read(block as u64, seen, invoked, loss);
        }
        self.check_sizes(&members);
        self.mark_without();
        self.history.check();
        self.summary.acknowledged = self.history.acknowledged();
        self.summary.reads = self.history.answered_reads();
        self.summary.epochs = self.masters.config.epoch.0;
        self.summary.lost_sessions = self.clients.iter().map(Client::lost_sessions).sum();
        self.summary.simulated_ms = self.now;
        self.check_heights();
        self.finish()
    }

    /// What the run did.
    pub(crate) fn finish(&mut self) -> Summary {
        self.summary.given_up = self.clients.iter().map(|client| client.given_up).sum();
        self.summary.simulated_ms = self.now;
        self.summary.clone()
    }

    /// What a node's store reads of the blocks that clients use, after it agreed with the digests
    /// of the first node's.
    fn image(&mut self, first: usize, index: usize) -> Vec<Bytes> {
        let digests: Vec<_> = [first, index].map(|node| self.digests(node)).into();
        assert_eq!(digests[0], digests[1], "I4: node {index} has other digests than node {first}");
        let store = self.nodes[index].disk.store();
        let mut image = Vec::new();
        for n in 0..BLOCKS {
            let range = BlockRange { lba: Lba(content::address(n)), blocks: 1 };
            let read = store.plan_read(range).run();
            let data = read.unwrap_or_else(|error| panic!("I2: node {index}: {error}"));
            assert_eq!(data.len() as u64, BLOCK_SIZE);
            image.push(data);
        }
        image
    }

    /// What a block of a node's store shows.
    pub(super) fn seen_at(&mut self, index: usize, lba: Lba) -> content::Seen {
        let read = self.nodes[index].disk.store().plan_read(BlockRange { lba, blocks: 1 }).run();
        let data = read.unwrap_or_else(|error| panic!("I2: node {index}: {error}"));
        content::seen(&data).unwrap_or_else(|how| panic!("I4: block at {lba}: {how}"))
    }

    fn digests(&mut self, index: usize) -> Vec<(u64, u32)> {
        let mut plan = self.nodes[index].disk.store().plan_digest(0, 0);
        let mut digests = Vec::new();
        while let Some(read) = plan.next_region() {
            let digest = read.unwrap_or_else(|error| panic!("I2: node {index}: {error}"));
            let digest = digest.expect("no checkpoint runs meanwhile");
            assert!(digest.damaged.is_empty(), "I2: node {index} has damaged blocks");
            digests.push((digest.region, digest.digest));
        }
        digests
    }
}

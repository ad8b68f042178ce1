//! What leads where in a world that was explored: all that is kept of a state once its successors
//! are known. A hundred million states have to fit into memory.

/// Digests that were met, each with the number of its state in the order of discovery: 12 bytes for
/// each place of the table, of which at most three of four are taken.
#[derive(Debug)]
pub(super) struct Met {
    digests: Vec<u64>,
    states: Vec<u32>,
    len: usize,
}

/// A place that is not taken. The digest of a state is this in one case of 2^64: then the state
/// never counts as met, and the exploration has no end.
const FREE: u64 = 0;

impl Met {
    pub(super) fn new() -> Self {
        Self { digests: vec![FREE; 1 << 12], states: vec![0; 1 << 12], len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn place(&self, digest: u64) -> usize {
        let mask = self.digests.len() - 1;
        let mut at = digest as usize & mask;
        while self.digests[at] != FREE && self.digests[at] != digest {
            at = (at + 1) & mask;
        }
        at
    }

    pub(super) fn contains(&self, digest: u64) -> bool {
        self.digests[self.place(digest)] == digest
    }

    /// The number of the state, and whether it is new.
    pub(super) fn meet(&mut self, digest: u64) -> (u32, bool) {
        let at = self.place(digest);
        if self.digests[at] == digest {
            return (self.states[at], false);
        }
        if (self.len + 1) * 4 > self.digests.len() * 3 {
            self.grow();
            return self.meet(digest);
        }
        let state = u32::try_from(self.len).expect("so many states fit into no memory");
        (self.digests[at], self.states[at]) = (digest, state);
        self.len += 1;
        (state, true)
    }

    fn grow(&mut self) {
        let size = self.digests.len() * 2;
        let digests = std::mem::replace(&mut self.digests, vec![FREE; size]);
        let states = std::mem::replace(&mut self.states, vec![0; size]);
        for (digest, state) in digests.into_iter().zip(states).filter(|(d, _)| *d != FREE) {
            let at = self.place(digest);
            (self.digests[at], self.states[at]) = (digest, state);
        }
    }
}

/// How many successors a block holds. Blocks never move, as one long vector would when it grows.
const BLOCK: usize = 1 << 22;

/// The successors of every state, in the order of the states' numbers.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// How many successors a state has.
    fans: Vec<u16>,
    to: Vec<Vec<u32>>,
    /// States at rest.
    rests: Vec<u32>,
}

impl Graph {
    /// Adds the next state's successors.
    pub(super) fn add(&mut self, rests: bool, successors: &[u32]) {
        if rests {
            self.rests.push(self.fans.len() as u32);
        }
        self.fans.push(successors.len() as u16);
        for successor in successors {
            if self.to.last().is_none_or(|block| block.len() == BLOCK) {
                self.to.push(Vec::with_capacity(BLOCK));
            }
            if let Some(block) = self.to.last_mut() {
                block.push(*successor);
            }
        }
    }

    fn successor(&self, edge: usize) -> u32 {
        self.to[edge / BLOCK][edge % BLOCK]
    }

    fn edges(&self) -> usize {
        self.to.last().map_or(0, |last| (self.to.len() - 1) * BLOCK + last.len())
    }

    /// How a shortest run comes to a state: of each state on the way, which of its successors is
    /// next.
    pub(super) fn way_to(&self, state: u32) -> Vec<usize> {
        let mut way = Vec::new();
        let mut at = state;
        while at != 0 {
            // A state has its number from the first step that leads to it.
            let mut edge = 0;
            let found = (0..self.fans.len()).find_map(|from| {
                let first = edge;
                edge += usize::from(self.fans[from]);
                (first..edge).find(|e| self.successor(*e) == at).map(|e| (from, e - first))
            });
            let Some((from, which)) = found else { break };
            way.push(which);
            at = from as u32;
        }
        way.reverse();
        way
    }

    /// A state from which no state at rest can be reached.
    ///
    /// A state mostly leads to newer ones, so a sweep from the newest back finds nearly all that
    /// can reach one; it is repeated until nothing is found. So no edge is needed turned round.
    pub(super) fn stuck(&self) -> Option<u32> {
        let mut reaches = vec![false; self.fans.len()];
        self.rests.iter().for_each(|state| reaches[*state as usize] = true);
        loop {
            let mut found = false;
            let mut edge = self.edges();
            for state in (0..self.fans.len()).rev() {
                let last = edge;
                edge -= usize::from(self.fans[state]);
                let leads = |e: usize| reaches[self.successor(e) as usize];
                if !reaches[state] && (edge..last).any(leads) {
                    reaches[state] = true;
                    found = true;
                }
            }
            if !found {
                return reaches.iter().position(|reaches| !reaches).map(|state| state as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_the_number_that_it_got_first() {
        let mut met = Met::new();
        let digest = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for i in 0..20_000 {
            assert_eq!(met.meet(digest(i)), (i as u32, true));
        }
        for i in 0..20_000 {
            assert!(met.contains(digest(i)));
            assert_eq!(met.meet(digest(i)), (i as u32, false));
        }
        assert!(!met.contains(digest(20_000)));
        assert_eq!(met.len(), 20_000);
    }

    #[test]
    fn a_trap_is_found_and_the_shortest_way_to_it() {
        // 0 leads to 1 and 2; 1 back to 0 and on to 3, which rests; 2 to 4, and 4 to 2 for ever.
        let mut graph = Graph::default();
        graph.add(false, &[1, 2]);
        graph.add(false, &[0, 3]);
        graph.add(false, &[4]);
        graph.add(true, &[]);
        graph.add(false, &[2]);
        assert_eq!(graph.stuck(), Some(2));
        assert_eq!(graph.way_to(3), [0, 1]);
        assert_eq!(graph.way_to(4), [1, 0]);
        let mut graph = Graph::default();
        graph.add(false, &[1, 2]);
        graph.add(true, &[]);
        graph.add(false, &[0]);
        assert_eq!(graph.stuck(), None);
    }
}

//! Which chunks are free.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The chunks of a device.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// One bit for each chunk, set if it is taken.
    taken: Vec<u64>,
    count: u32,
    free: u32,
    /// Where the search for a free one goes on.
    next: u32,
    /// Let go durably, and about to be discarded: free for everybody who counts, but not handed out.
    garbage: Vec<u32>,
}

/// What an operation on a full disk ends with.
pub(crate) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

impl State {
    fn is_taken(&self, chunk: u32) -> bool {
        self.taken[chunk as usize / 64] >> (chunk % 64) & 1 == 1
    }

    fn take(&mut self, chunk: u32) -> u32 {
        self.taken[chunk as usize / 64] |= 1 << (chunk % 64);
        self.free -= 1;
        self.next = chunk + 1;
        chunk
    }

    fn find(&self) -> Option<u32> {
        let words = self.taken.len();
        let start = self.next as usize / 64;
        (0..=words).map(|n| (start + n) % words).find_map(|word| {
            let free = !self.taken[word];
            let chunk = word as u32 * 64 + free.trailing_zeros();
            (free != 0 && chunk < self.count).then_some(chunk)
        })
    }
}

impl Chunks {
    /// None of so many is taken.
    pub(crate) fn new(count: u32) -> Self {
        let taken = vec![0; (count as usize).div_ceil(64)];
        let state = State { taken, count, free: count, next: 0, garbage: Vec::new() };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes this one; `false` if there is no such chunk, or it is taken.
    pub(crate) fn claim(&self, chunk: u32) -> bool {
        let mut state = self.state();
        if chunk >= state.count || state.is_taken(chunk) {
            return false;
        }
        state.take(chunk);
        state.next = 0;
        true
    }

    /// Takes one, `near` if that is free; `None` if none is.
    pub(crate) fn take(&self, near: Option<u32>) -> Option<u32> {
        let mut state = self.state();
        let near = near.filter(|near| *near < state.count && !state.is_taken(*near));
        let chunk = near.or_else(|| state.find())?;
        Some(state.take(chunk))
    }

    /// How many can be taken.
    pub(crate) fn free(&self) -> u32 {
        self.state().free
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.state().count
    }

    /// How many will be free once the garbage is cleared, beside those that are.
    pub(crate) fn waiting(&self) -> u32 {
        self.state().garbage.len() as u32
    }

    /// Nothing durable leads to these any more.
    pub(crate) fn discard(&self, chunks: Vec<u32>) {
        self.state().garbage.extend(chunks);
    }

    /// Gives the garbage to `clear`, in runs of neighbours, and then makes it free.
    pub(crate) fn clear_garbage(&self, mut clear: impl FnMut(u32, u32)) {
        let mut garbage = std::mem::take(&mut self.state().garbage);
        garbage.sort_unstable();
        for run in garbage.chunk_by(|a, b| a + 1 == *b) {
            clear(run[0], run.len() as u32);
        }
        self.release(&garbage);
    }

    /// Makes these free at once.
    pub(crate) fn release(&self, chunks: &[u32]) {
        let mut state = self.state();
        for chunk in chunks {
            debug_assert!(state.is_taken(*chunk), "chunk {chunk} is let go twice");
            state.taken[*chunk as usize / 64] &= !(1 << (chunk % 64));
            state.free += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_handed_out_once_and_again_when_they_were_cleared() {
        let chunks = Chunks::new(70);
        let mut all: Vec<u32> = std::iter::from_fn(|| chunks.take(None)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..70).collect::<Vec<_>>());
        chunks.discard(vec![69, 3, 4]);
        assert_eq!((chunks.take(None), chunks.free(), chunks.waiting()), (None, 0, 3));
        let mut runs = Vec::new();
        chunks.clear_garbage(|first, count| runs.push((first, count)));
        assert_eq!((runs, chunks.free()), (vec![(3, 2), (69, 1)], 3));
        assert_eq!(chunks.take(Some(4)), Some(4));
        assert!(!chunks.claim(4) && !chunks.claim(70) && chunks.claim(69));
        assert_eq!((chunks.take(None), chunks.take(None)), (Some(3), None));
    }
}

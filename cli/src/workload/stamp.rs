//! What a written block holds: who wrote it, where and as which write, under a checksum. A block
//! that is read back so tells which write it is, and a torn or misplaced one is recognised.

use crc_fast::{CrcAlgorithm, checksum};
use uuid::Uuid;

/// Bytes in a block.
pub const BLOCK: usize = 4096;

const MAGIC: &[u8; 8] = b"sbkstamp";
const HEADER: usize = 8 + 16 + 8 + 8 + 4;
const CRC_AT: usize = BLOCK - 4;

/// One write of one block. No two writes of a run have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run of the load: a block that an earlier run wrote is told apart.
    pub run: Uuid,
    /// The block's number in the volume.
    pub block: u64,
    /// Number of the write within the run, from 1.
    pub write: u64,
    /// The writer within the run.
    pub writer: u32,
}

/// What a block that was read holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing was ever written, or it was trimmed.
    Zero,
    /// A whole stamp.
    Stamp(Stamp),
    /// Neither; what is wrong, for people.
    Damaged(String),
}

impl Stamp {
    /// Writes the block that carries this stamp into `out`, which is one block long.
    pub fn fill(&self, out: &mut [u8]) {
        assert_eq!(out.len(), BLOCK, "a stamp fills exactly one block");
        out[..8].copy_from_slice(MAGIC);
        out[8..24].copy_from_slice(self.run.as_bytes());
        out[24..32].copy_from_slice(&self.block.to_le_bytes());
        out[32..40].copy_from_slice(&self.write.to_le_bytes());
        out[40..44].copy_from_slice(&self.writer.to_le_bytes());
        let mut noise = Noise::new(self.write ^ self.block.rotate_left(32));
        let (words, rest) = out[HEADER..CRC_AT].as_chunks_mut::<8>();
        for word in words {
            *word = noise.next().to_le_bytes();
        }
        rest.fill(0);
        let crc = crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

impl Content {
    /// Reads one block.
    pub fn of(data: &[u8]) -> Self {
        assert_eq!(data.len(), BLOCK, "content is read block by block");
        if data.iter().all(|b| *b == 0) {
            return Content::Zero;
        }
        if &data[..8] != MAGIC {
            return Content::Damaged("the block holds neither zeros nor a stamp".into());
        }
        let mut crc = [0; 4];
        crc.copy_from_slice(&data[CRC_AT..]);
        if u32::from_le_bytes(crc) != crc32c(&data[..CRC_AT]) {
            return Content::Damaged("the stamp's checksum is wrong: the block is torn".into());
        }
        let number =
            |at: usize| data[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let mut run = [0; 16];
        run.copy_from_slice(&data[8..24]);
        let writer = number(40) as u32;
        Content::Stamp(Stamp {
            run: Uuid::from_bytes(run),
            block: number(24),
            write: number(32),
            writer,
        })
    }
}

fn crc32c(data: &[u8]) -> u32 {
    // The CRC-32 variants of this library fit in the low half.
    checksum(CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// A small generator of reproducible noise (splitmix64, Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(write: u64) -> (Stamp, Vec<u8>) {
        let stamp = Stamp { run: Uuid::new_v4(), block: 77, write, writer: 3 };
        let mut data = vec![0xaa; BLOCK];
        stamp.fill(&mut data);
        (stamp, data)
    }

    #[test]
    fn a_block_tells_its_stamp() {
        let (stamp, data) = block(5);
        assert_eq!(Content::of(&data), Content::Stamp(stamp));
        assert_eq!(Content::of(&[0; BLOCK]), Content::Zero);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (stamp, data) = block(5);
        for at in 0..BLOCK {
            let mut flipped = data.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(matches!(Content::of(&flipped), Content::Damaged(_)), "byte {at} of {stamp:?}");
        }
    }

    #[test]
    fn a_block_torn_between_two_writes_is_seen() {
        let (_, mut old) = block(5);
        let (_, new) = block(6);
        old[..512].copy_from_slice(&new[..512]);
        assert!(matches!(Content::of(&old), Content::Damaged(_)));
    }
}

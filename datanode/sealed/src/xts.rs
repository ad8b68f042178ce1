//! AES-256 in XTS mode (IEEE 1619) over sectors of 512 bytes.
//!
//! Each sector is encrypted by itself and to its own length, so a disk that writes a sector whole or not at
//! all does so with an encrypted one. Each 16 bytes of a sector are, too: what overwrites a part of a sector with
//! what it held leaves the same bytes there.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};
use sbk_wal::SECTOR;
use zeroize::Zeroizing;

/// Bytes that are encrypted together: changing one changes all of them.
pub(crate) const UNIT: u64 = 16;
const UNITS: usize = (SECTOR / UNIT) as usize;
/// Sectors that are worked on together: processors encrypt many units side by side.
const TOGETHER: usize = 8;

/// The cipher of one kind of file.
pub(crate) struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    /// From two keys: the first for the data, the second for the sectors' numbers.
    pub(crate) fn new(key: &Zeroizing<[u8; 64]>) -> Self {
        let half = |at: usize| {
            let half = Array::slice_as_array(&key[at..at + 32]).expect("half of 64 bytes");
            Aes256::new(half)
        };
        Self { data: half(0), tweak: half(32) }
    }

    /// Encrypts whole sectors; `first` is the number of the first of them.
    pub(crate) fn encrypt(&self, sectors: &mut [u8], first: u64) {
        self.each(sectors, first, |units| self.data.encrypt_blocks(units));
    }

    /// Decrypts whole sectors. One of zeros was never written, or was given back: it is zeros.
    pub(crate) fn decrypt(&self, sectors: &mut [u8], first: u64) {
        let mut rest = sectors;
        let mut at = first;
        while !rest.is_empty() {
            let zero = |sector: &&[u8]| sbk_wal::is_zero(sector);
            let holes = rest.chunks_exact(SECTOR as usize).take_while(zero).count();
            rest = &mut rest[holes * SECTOR as usize..];
            at += holes as u64;
            let written = rest.chunks_exact(SECTOR as usize).take_while(|s| !zero(s)).count();
            let (now, behind) = rest.split_at_mut(written * SECTOR as usize);
            self.each(now, at, |units| self.data.decrypt_blocks(units));
            rest = behind;
            at += written as u64;
        }
    }

    fn each(&self, sectors: &mut [u8], first: u64, cipher: impl Fn(&mut [Block])) {
        debug_assert_eq!(sectors.len() as u64 % SECTOR, 0);
        let (units, _) = Block::slice_as_chunks_mut(sectors);
        let mut masks = [0; UNITS * TOGETHER];
        let mut at = first;
        for some in units.chunks_mut(UNITS * TOGETHER) {
            let masks = &mut masks[..some.len()];
            self.masks(masks, at);
            apply(some, masks);
            cipher(some);
            apply(some, masks);
            at += TOGETHER as u64;
        }
    }

    /// What the units of sectors are masked with: for each sector its number encrypted, doubled for each unit in
    /// GF(2^128).
    fn masks(&self, masks: &mut [u128], first: u64) {
        let mut numbers: [Block; TOGETHER] =
            std::array::from_fn(|n| Block::from(u128::from(first + n as u64).to_le_bytes()));
        let count = masks.len() / UNITS;
        self.tweak.encrypt_blocks(&mut numbers[..count]);
        for (number, masks) in numbers.iter().zip(masks.chunks_exact_mut(UNITS)) {
            let mut tweak = u128::from_le_bytes(number.0);
            for mask in masks {
                *mask = tweak;
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
        }
    }
}

fn apply(units: &mut [Block], masks: &[u128]) {
    for (unit, mask) in units.iter_mut().zip(masks) {
        unit.0 = (u128::from_le_bytes(unit.0) ^ mask).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xts(data: [u8; 32], tweak: [u8; 32]) -> Xts {
        let mut key = Zeroizing::new([0; 64]);
        key[..32].copy_from_slice(&data);
        key[32..].copy_from_slice(&tweak);
        Xts::new(&key)
    }

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let at = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex");
        std::array::from_fn(at)
    }

    /// Vectors 10 and 11 of IEEE 1619-2007: AES-256, 512 bytes of 00 01 .. ff twice, sectors ff and ffff.
    #[test]
    fn the_standard_s_vectors_are_met() {
        let cipher = xts(
            bytes("2718281828459045235360287471352662497757247093699959574966967627"),
            bytes("3141592653589793238462643383279502884197169399375105820974944592"),
        );
        let plain: [u8; 512] = std::array::from_fn(|i| i as u8);
        let vectors = [
            (
                0xff,
                "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
                "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
            ),
            (
                0xffff,
                "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11",
                "54fbff89eeaeea791f4a7ab1f9868294a4f9e27b42af8100cb9d59cef9645803",
            ),
        ];
        for (sector, head, tail) in vectors {
            let mut out = plain;
            cipher.encrypt(&mut out, sector);
            assert_eq!(out[..32], bytes::<32>(head), "sector {sector:x}");
            assert_eq!(out[480..], bytes::<32>(tail), "sector {sector:x}");
            cipher.decrypt(&mut out, sector);
            assert_eq!(out, plain);
        }
    }

    #[test]
    fn sectors_are_encrypted_each_by_its_number_and_holes_stay_zeros() {
        let cipher = xts([1; 32], [2; 32]);
        // More than are worked on together.
        let mut many = vec![7; 21 * 512];
        cipher.encrypt(&mut many, 5);
        for (n, sector) in many.chunks(512).enumerate() {
            let mut alone = [7; 512];
            cipher.encrypt(&mut alone, 5 + n as u64);
            assert_eq!(sector, alone, "sector {n}");
        }
        many[9 * 512..11 * 512].fill(0);
        cipher.decrypt(&mut many, 5);
        let holes = (9 * 512)..(11 * 512);
        assert!((0..many.len()).all(|at| many[at] == if holes.contains(&at) { 0 } else { 7 }));
        let mut two = [7; 1024];
        cipher.encrypt(&mut two, 5);
        assert_ne!(two[..512], two[512..]);
        let mut second = [7; 512];
        cipher.encrypt(&mut second, 6);
        assert_eq!(two[512..], second);
        two[..512].fill(0);
        cipher.decrypt(&mut two, 5);
        assert_eq!((&two[..512], &two[512..]), (&[0; 512][..], &[7; 512][..]));
    }
}

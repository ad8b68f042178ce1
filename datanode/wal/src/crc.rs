//! The one checksum: CRC-32C (Castagnoli), as iSCSI (RFC 3720) and ext4 use it.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32_iscsi(data)
}

/// CRC-32C of pieces.
pub struct Crc(Digest);

impl std::fmt::Debug for Crc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crc")
    }
}

impl Default for Crc {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }
}

impl Crc {
    /// Takes more bytes in.
    pub fn with(mut self, data: &[u8]) -> Self {
        self.0.update(data);
        self
    }

    /// The checksum of all that was added.
    pub fn value(self) -> u32 {
        // The algorithm's width is 32 bits.
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(Crc::default().with(b"12345").with(b"6789").value(), 0xe306_9283);
    }
}

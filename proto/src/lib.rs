//! The gRPC interfaces of sbk, `sbk.v1`, as generated from `proto/sbk/v1/*.proto`.
//!
//! No logic lives here. Ids are the 16 bytes of a UUID; every `bytes` field is a
//! [`bytes::Bytes`](https://docs.rs/bytes), so that a payload is never copied on its way.
#![allow(missing_debug_implementations, unreachable_pub, clippy::all)]

/// Messages, clients and servers of package `sbk.v1`.
pub mod v1 {
    tonic::include_proto!("sbk.v1");
}

/// The compiled descriptors of all files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sbk_descriptor.bin"));

//! Clients that leave what they were told unflushed, at a server that promises to make it durable.

mod support;

use support::nbd::{DISC, FLUSH, Raw, Server};
use support::{Cluster, replica};

/// What becomes of a server whose client wrote, flushed if `flushes`, and left if `leaves`, when the
/// volume can't be reached from then on if `lost`.
fn stopped(flushes: bool, leaves: bool, lost: bool) -> Result<(), String> {
    let cluster = Cluster::start(1, 1);
    let server = Server::start_flushing(&cluster);
    let mut client = Raw::export(server.addr);
    assert_eq!(client.write(0, &[7; 4096]), 0);
    if flushes {
        assert_eq!(client.ask(FLUSH, 0, 0), 0);
    }
    if lost {
        cluster.kill(replica(1));
    }
    if leaves {
        client.request(DISC, 0, 0, 0);
        client.ends();
    }
    server.stop(&cluster)
}

fn left(flushes: bool, lost: bool) -> Result<(), String> {
    stopped(flushes, true, lost)
}

fn stayed(flushes: bool, lost: bool) -> Result<(), String> {
    stopped(flushes, false, lost)
}

#[test]
fn what_a_client_left_unflushed_is_flushed() {
    let why = left(false, true).expect_err("nobody knows whether it is durable");
    assert!(!why.is_empty());
    left(false, false).expect("it is durable");
}

#[test]
fn what_a_client_flushed_before_it_left_is_durable_whatever_comes() {
    left(true, true).expect("it is durable");
    left(true, false).expect("it is durable");
}

#[test]
fn what_a_client_flushed_is_owed_at_no_stop() {
    let why = stayed(false, true).expect_err("nobody knows whether it is durable");
    assert!(!why.is_empty());
    stayed(false, false).expect("it is durable");
    stayed(true, true).expect("it is durable");
}

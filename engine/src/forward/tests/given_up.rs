//! Requests that nobody waits for any more.

use super::*;

#[test]
fn requests_to_blocks_of_a_given_up_write_wait_for_its_fate() {
    let params = Params { io_timeout_ms: Some(1000), ..Params::default() };
    let mut bench = Bench::serving(params);
    let lost = bench.submit(1, write(1));
    bench.pass(1000);
    assert!(matches!(bench.answers.get(&lost), Some(Answer::Failed(_))));
    let same = bench.submit(1, write(1));
    let other = bench.submit(1, write(2));
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [lost, other]);
    bench.reply(1);
    assert!(bench.sent.values().any(|r| *r == same));
    bench.heal(1, 0);
}

#[test]
fn a_given_up_write_is_not_sent_again_and_a_new_stream_frees_its_blocks() {
    let mut bench = Bench::serving(Params::default());
    bench.feed(Input::Attached(ClientId(2)));
    let lost = bench.submit(1, write(1));
    bench.leave(1);
    let same = bench.submit(2, write(1));
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [lost]);
    bench.lose();
    bench.pass(10);
    bench.open(1, 0);
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [same]);
    bench.heal(1, 0);
}

/// Whoever is held up by one that waits is not overtaken by others either.
#[test]
fn nothing_overtakes_a_request_that_waits_for_a_given_up_one() {
    let span = |first: u64, blocks: u64| {
        Op::Write(ByteRange { offset: first * BLOCK_SIZE, length: blocks * BLOCK_SIZE })
    };
    let mut bench = Bench::serving(Params::default());
    bench.feed(Input::Attached(ClientId(2)));
    let lost = bench.submit(1, span(0, 10));
    bench.leave(1);
    let waits = bench.submit(2, span(5, 10));
    let behind = bench.submit(2, span(12, 8));
    let aside = bench.submit(2, span(30, 1));
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [lost, aside]);
    bench.reply(1);
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [aside, waits, behind]);
    bench.heal(1, 0);
}

/// [Clients that asked for much and left at once: what they had asked for counted no more, and was all in
/// memory.]
#[test]
fn a_link_that_carries_too_much_for_nobody_is_made_anew() {
    let params = Params { max_bytes: 4 * MIB, ..Params::default() };
    let long = |at: u64| Op::Read(ByteRange { offset: at * MIB, length: MIB });
    let mut bench = Bench::serving(params);
    let stays = bench.submit(1, write(1));
    let link = bench.link;
    for client in 2..5 {
        bench.feed(Input::Attached(ClientId(client)));
        bench.submit(client, long(client));
        bench.leave(client);
        assert_eq!(bench.link, link, "so much may be on its way");
    }
    // What is answered is there no more.
    bench.reply(2);
    bench.feed(Input::Attached(ClientId(5)));
    bench.submit(5, long(5));
    bench.leave(5);
    assert_eq!(bench.link, link);
    bench.feed(Input::Attached(ClientId(6)));
    bench.submit(6, long(6));
    bench.leave(6);
    assert_eq!(bench.link, None, "and no more");
    assert!(bench.forwarder.can_accept());
    bench.pass(10);
    bench.open(1, 0);
    assert_eq!(bench.sent.values().copied().collect::<Vec<_>>(), [stays]);
    assert_eq!(bench.forwarder.step(Millis(bench.now), Input::Tick).1, [], "nothing is shed twice");
    bench.heal(1, 0);
    assert_eq!(bench.answers.get(&stays), Some(&Answer::Done));
}

#[test]
fn no_time_out_is_longer_than_a_century() {
    let longest = Params::giving_up_after(std::time::Duration::MAX);
    let mut bench = Bench::serving(longest);
    bench.submit(1, write(1));
    assert!(bench.forwarder.next_deadline().is_some());
    assert_eq!(Params::giving_up_after(std::time::Duration::ZERO).io_timeout_ms, None);
    let shortest = Params::giving_up_after(std::time::Duration::from_nanos(1));
    assert_eq!(shortest.io_timeout_ms, Some(1));
}

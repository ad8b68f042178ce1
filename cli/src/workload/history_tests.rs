//! The checker must accept what may happen and refuse what may not: each violation is fed to it.

use super::super::stamp::{BLOCK, Stamp};
use super::*;

struct Bench {
    history: History,
}

impl Bench {
    fn new() -> Self {
        Self { history: History::new(Uuid::from_u128(1)) }
    }

    fn begin(&self) -> Stamp {
        self.history.begin_write(9, 1)
    }

    fn write(&self) -> Stamp {
        let stamp = self.begin();
        self.history.acknowledge(&stamp);
        stamp
    }

    fn see(&self, stamp: &Stamp) {
        let start = self.history.begin_read();
        self.see_since(start, stamp);
    }

    fn see_since(&self, start: Tick, stamp: &Stamp) {
        let mut data = vec![0; BLOCK];
        stamp.fill(&mut data);
        self.history.end_read(9, start, &data);
    }

    fn see_zeros(&self) {
        let start = self.history.begin_read();
        self.history.end_read(9, start, &[0; BLOCK]);
    }

    fn right(&self) {
        assert_eq!(self.history.check(), []);
    }

    fn wrong(&self, part: &str) {
        let violations = self.history.check();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(violations[0].block, 9);
        assert!(violations[0].what.contains(part), "{violations:?}");
    }
}

#[test]
fn the_newest_acknowledged_write_is_seen() {
    let bench = Bench::new();
    bench.see_zeros();
    bench.write();
    let second = bench.write();
    bench.see(&second);
    bench.right();
}

#[test]
fn an_acknowledged_write_that_is_lost_is_found() {
    let bench = Bench::new();
    let first = bench.write();
    bench.write();
    bench.see(&first);
    bench.wrong("write 2 was lost");
}

#[test]
fn an_acknowledged_first_write_that_is_lost_is_found() {
    let bench = Bench::new();
    bench.write();
    bench.see_zeros();
    bench.wrong("write 1 was lost");
}

#[test]
fn an_unanswered_write_may_have_happened_or_not() {
    for seen in [true, false] {
        let bench = Bench::new();
        let first = bench.write();
        let unanswered = bench.begin();
        bench.see(if seen { &unanswered } else { &first });
        bench.right();
    }
}

#[test]
fn an_unanswered_write_that_was_seen_does_not_vanish() {
    let bench = Bench::new();
    let first = bench.write();
    let unanswered = bench.begin();
    bench.see(&unanswered);
    bench.see(&first);
    bench.wrong("write 2 was lost");
}

#[test]
fn an_unanswered_write_may_come_late_but_only_once() {
    let bench = Bench::new();
    let unanswered = bench.begin();
    let second = bench.write();
    bench.see(&second);
    bench.see(&unanswered);
    bench.right();
    bench.see(&second);
    bench.wrong("write 1 was lost");
}

#[test]
fn a_write_applied_twice_is_found() {
    let bench = Bench::new();
    let first = bench.write();
    bench.see(&first);
    let second = bench.write();
    bench.see(&second);
    bench.see(&first);
    bench.wrong("write 1 again");
}

#[test]
fn concurrent_writes_may_take_effect_in_either_order() {
    for reversed in [true, false] {
        let bench = Bench::new();
        let (first, second) = (bench.begin(), bench.begin());
        bench.history.acknowledge(&second);
        bench.history.acknowledge(&first);
        bench.see(if reversed { &first } else { &second });
        bench.right();
    }
}

#[test]
fn concurrent_writes_do_not_change_their_order_later() {
    let bench = Bench::new();
    let (first, second) = (bench.begin(), bench.begin());
    bench.history.acknowledge(&second);
    bench.history.acknowledge(&first);
    bench.see(&first);
    bench.see(&second);
    bench.see(&first);
    bench.wrong("again");
}

#[test]
fn a_read_that_overlaps_a_write_may_see_old_or_new() {
    for new in [true, false] {
        let bench = Bench::new();
        let old = bench.write();
        let start = bench.history.begin_read();
        let stamp = bench.write();
        bench.see_since(start, if new { &stamp } else { &old });
        bench.right();
    }
}

#[test]
fn a_read_after_a_newer_read_does_not_go_back() {
    let bench = Bench::new();
    let old = bench.write();
    let new = bench.begin();
    bench.see(&new);
    bench.see(&old);
    bench.history.acknowledge(&new);
    bench.wrong("write 2 was lost");
}

#[test]
fn a_read_from_the_future_is_found() {
    let bench = Bench::new();
    let later = Stamp { run: Uuid::from_u128(1), block: 9, write: 1, writer: 1 };
    bench.see(&later);
    bench.wrong("never written");
    assert_eq!(bench.begin().write, 1);
    bench.wrong("before it was sent");
}

#[test]
fn foreign_misplaced_and_torn_blocks_are_found() {
    let right = Stamp { run: Uuid::from_u128(1), block: 9, write: 1, writer: 1 };
    for (stamp, part) in [
        (Stamp { run: Uuid::from_u128(2), ..right }, "another run"),
        (Stamp { block: 8, ..right }, "block 8"),
    ] {
        let bench = Bench::new();
        bench.see(&stamp);
        bench.wrong(part);
    }
    let bench = Bench::new();
    let mut data = vec![0; BLOCK];
    right.fill(&mut data);
    data[1000] ^= 1;
    bench.history.end_read(9, bench.history.begin_read(), &data);
    bench.wrong("torn");
}

#[test]
fn a_settled_record_still_knows_what_is_there() {
    let bench = Bench::new();
    let first = bench.write();
    let second = bench.write();
    bench.see(&second);
    bench.right();
    bench.history.settle();
    bench.see(&second);
    bench.right();
    assert_eq!(bench.history.acknowledged(), 2);
    bench.see(&first);
    bench.wrong("write 1, which was overwritten for good");
}

#[test]
fn a_block_that_is_settled_does_not_go_back_to_zeros() {
    let bench = Bench::new();
    let first = bench.write();
    bench.see(&first);
    bench.right();
    bench.history.settle();
    bench.see_zeros();
    bench.wrong("zeros, which was overwritten for good");
}

#[test]
fn an_unanswered_write_may_come_in_a_later_window_but_only_once() {
    let bench = Bench::new();
    let unanswered = bench.begin();
    let second = bench.write();
    bench.see(&second);
    bench.right();
    for _ in 0..2 {
        bench.history.settle();
        assert_eq!(bench.history.open_writes(), 1, "its fate is open");
        bench.see(&second);
        bench.right();
    }
    bench.see(&unanswered);
    bench.right();
    assert_eq!(bench.history.open_writes(), 0);
    bench.history.settle();
    let third = bench.write();
    bench.see(&third);
    bench.right();
    bench.history.settle();
    bench.see(&unanswered);
    bench.wrong("write 1, which was overwritten for good");
}

#[test]
fn an_unanswered_write_of_an_earlier_window_does_not_vanish_once_it_was_seen() {
    let bench = Bench::new();
    let unanswered = bench.begin();
    let second = bench.write();
    bench.see(&second);
    bench.history.settle();
    bench.see(&unanswered);
    bench.see(&second);
    bench.wrong("write 1 was lost");
}

#[test]
fn a_write_that_is_lost_between_windows_is_found() {
    let bench = Bench::new();
    let first = bench.write();
    bench.see(&first);
    bench.history.settle();
    let second = bench.write();
    bench.see(&second);
    bench.right();
    bench.history.settle();
    bench.see(&first);
    bench.wrong("write 1, which was overwritten for good");
}

#[test]
fn a_stale_read_beside_a_newer_one_is_found() {
    let bench = Bench::new();
    let old = bench.write();
    let new = bench.write();
    let start = bench.history.begin_read();
    bench.see(&new);
    bench.right();
    // It began after the newer write was acknowledged, however late it was answered.
    bench.see_since(start, &old);
    bench.wrong("write 1 was there, then write 2, then write 1 again");
}

#[test]
fn a_window_is_forgotten_and_a_long_run_needs_no_more_memory_than_a_short_one() {
    let bench = Bench::new();
    for _ in 0..50 {
        for _ in 0..20 {
            let stamp = bench.write();
            bench.see(&stamp);
        }
        bench.right();
        bench.history.settle();
        assert_eq!(bench.history.operations(), 0);
        assert_eq!(bench.history.told(9).len(), 1, "only what the block holds is left");
    }
    assert_eq!(bench.history.acknowledged(), 1000);
}

#[test]
fn what_happened_to_a_block_is_told_in_order() {
    let bench = Bench::new();
    bench.see_zeros();
    let stamp = bench.write();
    bench.see(&stamp);
    bench.begin();
    let told = bench.history.told(9);
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[1].contains("saw zeros") && told[4].contains("acknowledged never"), "{told:?}");
    assert_eq!(bench.history.told(10), Vec::<String>::new());
}

#[test]
fn after_a_loss_acknowledged_writes_may_be_gone_and_nothing_else_is_forgiven() {
    let bench = Bench::new();
    let first = bench.write();
    bench.see(&first);
    bench.history.settle();
    let second = bench.write();
    let third = bench.write();
    bench.see(&third);
    bench.see(&second);
    bench.see(&first);
    bench.wrong("write 1 again");
    assert_eq!(bench.history.check_after_loss(), []);
    bench.history.settle();
    // What was lost is gone for good.
    bench.see(&first);
    assert_eq!(bench.history.check_after_loss(), []);
    bench.see(&third);
    let violations = bench.history.check_after_loss();
    assert!(violations[0].what.contains("overwritten for good"), "{violations:?}");
}

#[test]
fn a_loss_forgives_no_data_that_was_never_there() {
    let bench = Bench::new();
    let first = bench.write();
    let wrong = |bench: &Bench, part: &str| {
        let violations = bench.history.check_after_loss();
        assert!(violations.len() == 1 && violations[0].what.contains(part), "{violations:?}");
    };
    let start = bench.history.begin_read();
    let mut torn = vec![0; BLOCK];
    first.fill(&mut torn);
    torn[BLOCK / 2..].fill(0);
    bench.history.end_read(9, start, &torn);
    assert_eq!(bench.history.check_after_loss().len(), 1, "torn");

    let bench = Bench::new();
    bench.see(&Stamp { run: Uuid::from_u128(2), ..first });
    wrong(&bench, "of another run");

    let bench = Bench::new();
    bench.see(&Stamp { block: 8, ..first });
    wrong(&bench, "of block 8");

    let bench = Bench::new();
    bench.see(&first);
    wrong(&bench, "never written");
}

impl Bench {
    fn zero(&self) {
        let write = self.history.begin_zeros(9);
        self.history.acknowledge_zeros(9, write);
    }
}

#[test]
fn zeros_may_be_written_again_and_again() {
    let bench = Bench::new();
    bench.see_zeros();
    for _ in 0..3 {
        let stamp = bench.write();
        bench.see(&stamp);
        bench.zero();
        bench.see_zeros();
        bench.zero();
        bench.see_zeros();
    }
    bench.right();
    bench.history.settle();
    bench.see_zeros();
    let stamp = bench.write();
    bench.see(&stamp);
    bench.right();
}

#[test]
fn what_was_zeroed_does_not_come_back() {
    let bench = Bench::new();
    let stamp = bench.write();
    bench.zero();
    bench.see(&stamp);
    bench.wrong("write 2 was lost");
}

#[test]
fn what_was_zeroed_before_an_earlier_window_ended_does_not_come_back() {
    let bench = Bench::new();
    let stamp = bench.write();
    bench.zero();
    bench.see_zeros();
    bench.right();
    bench.history.settle();
    bench.see(&stamp);
    bench.wrong("overwritten for good");
}

#[test]
fn zeros_do_not_come_back_over_a_later_write() {
    for seen in [true, false] {
        let bench = Bench::new();
        bench.zero();
        let stamp = bench.write();
        if seen {
            bench.see(&stamp);
        }
        bench.see_zeros();
        bench.wrong("no write of zeros or trim explains it");
    }
}

#[test]
fn zeros_are_not_seen_before_they_are_sent() {
    let bench = Bench::new();
    let stamp = bench.write();
    bench.see(&stamp);
    bench.history.settle();
    bench.see_zeros();
    bench.zero();
    bench.wrong("before any were sent");
}

#[test]
fn zeros_take_effect_once() {
    let bench = Bench::new();
    let first = bench.write();
    let start = bench.history.begin_read();
    let zeros = bench.history.begin_zeros(9);
    bench.see_since(start, &first);
    bench.see_zeros();
    let second = bench.write();
    bench.see(&second);
    bench.history.acknowledge_zeros(9, zeros);
    bench.right();
    // They took effect before the second write, which was seen; no others were sent.
    bench.see(&second);
    bench.see_zeros();
    bench.wrong("no write of zeros or trim explains it");
}

#[test]
fn unanswered_zeros_may_have_happened_or_not_in_any_window() {
    for happened in [true, false] {
        let bench = Bench::new();
        let stamp = bench.write();
        bench.history.begin_zeros(9);
        bench.see(&stamp);
        bench.right();
        assert_eq!(bench.history.open_writes(), 1);
        bench.history.settle();
        if happened {
            bench.see_zeros();
        } else {
            bench.see(&stamp);
        }
        bench.right();
    }
}

#[test]
fn after_a_loss_zeros_must_still_have_been_written() {
    let bench = Bench::new();
    let stamp = bench.write();
    bench.see(&stamp);
    bench.history.settle();
    bench.see_zeros();
    assert_eq!(bench.history.check_after_loss().len(), 1);
    let bench = Bench::new();
    bench.zero();
    bench.write();
    bench.see_zeros();
    assert_eq!(bench.history.check_after_loss(), []);
}

use super::*;

fn seen(value: u64) -> Seen {
    Seen { whole: value, part: value }
}

/// Reads `value` at once.
fn look(history: &mut History, value: u64) {
    let invoked = history.now();
    history.read(0, seen(value), invoked, LossGeneration(0));
}

#[test]
fn one_after_the_other_is_linearizable() {
    let mut history = History::default();
    look(&mut history, 0);
    for value in 1..=3 {
        history.write(value, 0, Place::Whole, (0, Holder(0)));
        history.written(value, LossGeneration(0));
        look(&mut history, value);
    }
    history.check();
}

#[test]
fn a_write_without_an_answer_may_have_happened_or_not() {
    for shown in [1, 2] {
        let mut history = History::default();
        history.write(1, 0, Place::Whole, (0, Holder(0)));
        history.written(1, LossGeneration(0));
        history.write(2, 0, Place::Whole, (0, Holder(0)));
        look(&mut history, 1);
        look(&mut history, shown);
        history.check();
    }
}

#[test]
fn a_partial_write_changes_its_sector_only() {
    let mut history = History::default();
    history.write(1, 0, Place::Whole, (0, Holder(0)));
    history.written(1, LossGeneration(0));
    history.write(2, 0, Place::Part, (1, Holder(1)));
    history.written(2, LossGeneration(0));
    let invoked = history.now();
    history.read(0, Seen { whole: 1, part: 2 }, invoked, LossGeneration(0));
    history.check();
}

#[test]
#[should_panic(expected = "I2: block 0: write 2")]
fn an_acknowledged_write_that_is_gone_is_found() {
    let mut history = History::default();
    for value in [1, 2] {
        history.write(value, 0, Place::Whole, (0, Holder(0)));
        history.written(value, LossGeneration(0));
    }
    look(&mut history, 1);
    history.check();
}

#[test]
#[should_panic(expected = "I3: block 0: write")]
fn two_reads_in_the_wrong_order_are_found() {
    let mut history = History::default();
    history.write(1, 0, Place::Whole, (0, Holder(0)));
    history.write(2, 0, Place::Whole, (1, Holder(1)));
    for value in [1, 2, 1] {
        look(&mut history, value);
    }
    history.check();
}

#[test]
#[should_panic(expected = "I3: block 0: a read from the future")]
fn a_read_from_the_future_is_found() {
    let mut history = History::default();
    look(&mut history, 1);
    history.write(1, 0, Place::Whole, (0, Holder(0)));
    history.check();
}

#[test]
#[should_panic(expected = "took effect over a later one")]
fn a_write_that_was_given_up_and_comes_late_is_found() {
    let mut history = History::default();
    history.write(1, 0, Place::Whole, (0, Holder(0)));
    history.gave_up(1);
    history.write(2, 0, Place::Whole, (0, Holder(0)));
    history.written(2, LossGeneration(0));
    look(&mut history, 1);
    history.check();
}

#[test]
#[should_panic(expected = "which went elsewhere")]
fn a_value_of_another_block_is_found() {
    let mut history = History::default();
    history.write(1, 3, Place::Whole, (0, Holder(0)));
    look(&mut history, 1);
    history.check();
}

/// Writes 1 and 2 were acknowledged, then a loss took some of them, then a read saw a value.
fn after_a_loss(lost: &[u64], saw: &[u64]) {
    let mut history = History::default();
    for value in [1, 2] {
        history.write(value, 0, Place::Whole, (1, Holder(1)));
        history.written(value, LossGeneration(0));
    }
    history.lose(LossGeneration(1), lost, &[]);
    for value in saw {
        let invoked = history.now();
        let seen = Seen { whole: *value, part: *value };
        history.read(0, seen, invoked, LossGeneration(1));
    }
    history.check();
}

#[test]
fn a_loss_takes_back_what_it_says() {
    after_a_loss(&[2], &[1, 1]);
    after_a_loss(&[1, 2], &[0]);
    after_a_loss(&[], &[2]);
}

#[test]
#[should_panic(expected = "is back in age 1")]
fn what_was_lost_does_not_come_back() {
    after_a_loss(&[2], &[2]);
}

#[test]
#[should_panic(expected = "2 was acknowledged over it")]
fn a_loss_takes_no_more_than_it_says() {
    after_a_loss(&[], &[1]);
}

#[test]
#[should_panic(expected = "begins with two values")]
fn an_age_begins_with_one_value() {
    after_a_loss(&[], &[2, 0]);
}

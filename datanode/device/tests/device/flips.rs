//! One rotten bit anywhere in what says where files are: it changes nothing, for all of it is there twice.

use sbk_wal::Memory;

use super::work::{BYTES, Model, Outcome, check, disk, work};

/// A device that was worked on, and where its map is: the pages before the chunks and behind them.
fn device(seed: u64, steps: u64) -> (Memory, Model, Vec<u64>) {
    let memory = disk(seed);
    let mut model = Model::new();
    assert!(matches!(work(&memory, &mut model, seed, steps), Outcome::Done));
    memory.process_killed();
    let content = memory.content("device").expect("it");
    // The first chunk is behind the first copy of the map, and that is less than 256 KiB long.
    let pages = (0..64).chain((BYTES - (256 << 10)) / 4096..BYTES / 4096);
    let used = |page: &u64| content[(page * 4096) as usize..][..4096].iter().any(|b| *b != 0);
    (memory, model, pages.filter(used).collect())
}

#[test]
fn a_rotten_bit_of_the_map_changes_nothing() {
    let mut flips = 0;
    for (seed, steps) in [(1, 4), (2, 60), (3, 200)] {
        let (memory, model, pages) = device(seed, steps);
        assert!(pages.len() >= 4, "both headers, and a record in both copies");
        let content = memory.content("device").expect("it");
        for page in pages {
            let start = page as usize * 4096;
            let data = (start..start + 4096).filter(|at| content[*at] != 0 || at % 4096 < 90);
            for (n, at) in data.enumerate() {
                let bit = at as u64 * 8 + (n as u64 + seed) % 8;
                let memory = memory.fork();
                assert!(memory.flip("device", bit));
                let opened = check(&memory, &mut model.clone());
                drop(opened.unwrap_or_else(|e| panic!("seed {seed}, byte {at}: {e}")));
                // It was mended.
                let (first, last) = (start as u64 == 0, start as u64 == BYTES - 4096);
                if first || last {
                    assert_eq!(memory.content("device").expect("it")[at], content[at], "byte {at}");
                }
                flips += 1;
            }
        }
    }
    println!("{flips} flips changed nothing");
    assert!(flips > 2000, "{flips}");
}

/// Both copies of the same thing rot: the device is refused, or what rotted counted for nothing. The last record alone
/// can't be told from one that was never whole.
#[test]
fn what_rots_in_both_copies_is_told() {
    let (mut told, mut nothing, mut last) = (0, 0, 0);
    for seed in [4, 5, 6] {
        let (memory, model, pages) = device(seed, 90);
        let half = pages.len() / 2;
        for (first, second) in pages[1..half].iter().zip(&pages[half..]) {
            let memory = memory.fork();
            for page in [first, second] {
                assert!(memory.flip("device", page * 4096 * 8 + 8 * 33));
            }
            match check(&memory, &mut model.clone()) {
                Ok(_) => nothing += 1,
                Err(what) if what.contains("damaged") => told += 1,
                Err(_) => last += 1,
            }
        }
    }
    println!("{told} told, {nothing} without effect, {last} taken for torn");
    assert!(told > 3 && last <= 3, "{told} told, {nothing} without effect, {last} lost");
}

//! Crashes and partitions lose, double and reorder nothing, and a seed decides everything.

use sim::scenario::{Outcome, run};

const SEEDS: u64 = 20;
const THREADS: u64 = 2;

fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

fn expect(outcome: &Outcome) {
    println!("{outcome}");
    assert!(outcome.result.is_ok(), "{outcome}\n{}", outcome.trace);
    assert!(outcome.crashes > 0 && outcome.partitions > 0, "{outcome}");
}

#[test]
fn every_acknowledged_entry_is_read_back_once_and_in_order() {
    log();
    // One seed by itself, to look at it.
    if let Ok(seed) = std::env::var("SEED") {
        return expect(&run(seed.parse().unwrap()));
    }
    std::thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || (first..SEEDS).step_by(THREADS as usize).for_each(|seed| expect(&run(seed))));
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    log();
    let (one, two) = (run(1), run(1));
    assert_eq!(one.trace.lines(), two.trace.lines());
    assert!(one.trace.lines().len() > 100, "{}", one.trace);
    assert_ne!(one.trace.hash(), run(2).trace.hash());
}

//! Crashes and partitions lose, double and reorder nothing.

use sim::scenario::{Outcome, run};

const SEEDS: std::ops::Range<u64> = 0..20;
const THREADS: usize = 2;

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
            scope.spawn(move || SEEDS.skip(first).step_by(THREADS).for_each(|seed| expect(&run(seed))));
        }
    });
}

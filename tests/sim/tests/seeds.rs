//! Crashes and partitions lose, double and reorder nothing, and a seed decides everything.

#![expect(clippy::unwrap_used, reason = "what starts the runs anew fails the test that asked for it")]

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
        let outcome = run(seed.parse().unwrap());
        print!("{}", outcome.trace);
        return expect(&outcome);
    }
    std::thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || SEEDS.skip(first).step_by(THREADS).for_each(|seed| expect(&run(seed))));
        }
    });
}

/// What a process of its own prints about one seed. Libraries count in process-wide variables, such as task ids, so a
/// second run in one process is not the same run.
fn trace(seed: u64) -> String {
    let arguments = ["every_acknowledged_entry_is_read_back_once_and_in_order", "--exact", "--nocapture"];
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(arguments).env("SEED", seed.to_string()).env_remove("RUST_LOG").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    // The last line says how long it took in real time.
    printed.lines().take_while(|line| !line.starts_with("test ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..5 {
        let first = trace(seed);
        assert!(first.lines().filter(|line| line.contains(" ack ")).count() >= 200, "{first}");
        assert!(first == trace(seed), "two runs of seed {seed} differ");
        assert!(first != trace(seed + 1), "seed {seed} decides nothing");
    }
}

//! Made-up histories of tables with managed indexes, as many as fit into two minutes. `make soak` runs
//! on with others; `managed_storm.rs` has the real engine.

use std::path::Path;
use std::time::Duration;

use ner_retriever_tests::histories::Without;
use ner_retriever_tests::histories::place::Place;
use ner_retriever_tests::histories::soak::{Plan, soak};

/// Always the same ones: what fails here fails again.
const SEEDS: u64 = 150;
const LIMIT: Duration = Duration::from_secs(110);

#[test]
fn a_managed_index_is_what_one_made_afresh_would_be_and_nobody_notices_it() {
    let place = Place::start(
        "histories",
        Path::new(env!("CARGO_BIN_EXE_stand_in_engine")),
        "",
    );
    let tally = soak(
        &place,
        &Plan {
            first_seed: 1,
            end_seed: 1 + SEEDS,
            limit: LIMIT,
            threads: 3,
            keep_going: false,
            shrinks: true,
            without: Without::default(),
        },
    );
    println!(
        "{} histories, {} differences",
        tally.histories,
        tally.differences.len()
    );
    assert_eq!(tally.differences, [], "the histories are printed above");
}

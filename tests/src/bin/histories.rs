//! Runs histories for as long as one likes: `make soak ARGS='--hours 2'`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ner_retriever_tests::histories::place::Place;
use ner_retriever_tests::histories::soak::{Plan, described, soak};
use ner_retriever_tests::histories::{Without, generate, run};

const USAGE: &str = "\
usage: histories [--hours N | --minutes N] [--seeds FROM..TO] [--seed N] [--keep-going] [--no-shrink]
                 [--threads N] [--without NAME,...] [--show N]
  --hours, --minutes  how long, with new seeds (default: 10 minutes)
  --seeds             these seeds, TO excluded
  --seed              this one, its whole history printed
  --keep-going        counts on after a difference
  --no-shrink         prints histories that differ as they are
  --without           kinds of statements or groups of them that are left out (tests/src/histories/kinds.rs),
                      and: settings, replica, isolation, prepared, partition
  --show              prints the history of a seed and runs nothing";

enum Command {
    Run(Plan),
    One(u64, Plan),
    Show(u64, Without),
}

fn main() -> ExitCode {
    let command = match parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    if let Command::Show(seed, without) = command {
        let history = generate(seed, 18, &without);
        history.steps.iter().for_each(|step| println!("{step}"));
        return ExitCode::SUCCESS;
    }
    let place = Place::start("soak", &engine());
    let plan = match command {
        Command::Run(plan) => plan,
        Command::One(seed, plan) => {
            let history = generate(seed, place.major(), &plan.without);
            println!("{}", described(&history, &run::run(&place, &history, true)));
            plan
        }
        Command::Show(..) => return ExitCode::SUCCESS,
    };
    let tally = soak(&place, &plan);
    if !tally.differences.is_empty() {
        println!("seeds that differ: {:?}", tally.differences);
    }
    println!(
        "{} histories, {} differences",
        tally.histories,
        tally.differences.len()
    );
    if tally.differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The stand-in engine, which is built beside this program.
fn engine() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    program.with_file_name("stand_in_engine")
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    // Seeds that no earlier run has had, and that fit into a line.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut plan = Plan {
        first_seed: now * 1_000,
        end_seed: u64::MAX,
        limit: Duration::from_secs(600),
        threads: 3,
        keep_going: false,
        shrinks: true,
        without: Without::default(),
    };
    let (mut one, mut show) = (None, None);
    while let Some(name) = arguments.next() {
        if name == "--keep-going" {
            plan.keep_going = true;
            continue;
        }
        if name == "--no-shrink" {
            plan.shrinks = false;
            continue;
        }
        let value = arguments
            .next()
            .ok_or(format!("{name}: unknown, or without its value"))?;
        let number = |value: &str| {
            value
                .parse::<u64>()
                .map_err(|e| format!("{name} {value}: {e}"))
        };
        let fraction = || {
            value
                .parse::<f64>()
                .map_err(|e| format!("{name} {value}: {e}"))
        };
        match name.as_str() {
            "--hours" => plan.limit = Duration::from_secs_f64(fraction()? * 3600.0),
            "--minutes" => plan.limit = Duration::from_secs_f64(fraction()? * 60.0),
            "--threads" => plan.threads = number(&value)?.max(1) as usize,
            "--without" => plan.without = Without::parse(&value),
            "--seed" => one = Some(number(&value)?),
            "--show" => show = Some(number(&value)?),
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or("--seeds: write FROM..TO")?;
                (plan.first_seed, plan.end_seed) = (number(from)?, number(to)?);
                plan.limit = Duration::MAX;
            }
            _ => return Err(format!("{name} is unknown")),
        }
    }
    if let Some(seed) = one {
        (plan.first_seed, plan.end_seed) = (seed, seed + 1);
        return Ok(Command::One(seed, plan));
    }
    Ok(match show {
        Some(seed) => Command::Show(seed, plan.without),
        None => Command::Run(plan),
    })
}

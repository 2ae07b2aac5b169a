//! Runs histories for as long as one likes: `make soak ARGS='--hours 2'`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ner_retriever_tests::histories::place::Place;
use ner_retriever_tests::histories::soak::{Plan, described, soak};
use ner_retriever_tests::histories::{Without, generate, run};

const USAGE: &str = "\
usage: histories [--hours N | --minutes N] [--seeds FROM..TO] [--seed N] [--keep-going] [--no-shrink]
                 [--threads N] [--without NAME,...] [--prelude SQL] [--show N]
  --hours, --minutes  how long, with new seeds (default: 10 minutes)
  --seeds             these seeds, TO excluded
  --seed              this one, its whole history printed
  --keep-going        counts on after a difference
  --no-shrink         prints histories that differ as they are
  --without           kinds of statements or groups of them that are left out (tests/src/histories/kinds.rs),
                      and: settings, replica, isolation, prepared, partition
  --prelude SQL       runs in the template with the extension: to look past a known fault
  --show              prints the history of a seed and runs nothing";

/// The server that --show writes for.
const NEWEST_MAJOR: u32 = 18;

struct Options {
    plan: Plan,
    seed: Option<u64>,
    show: Option<u64>,
    prelude: String,
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(seed) = options.show {
        let history = generate(seed, NEWEST_MAJOR, &options.plan.without);
        history.steps.iter().for_each(|step| println!("{step}"));
        return ExitCode::SUCCESS;
    }
    let place = Place::start("soak", &engine(), &options.prelude);
    let plan = options.plan;
    if let Some(seed) = options.seed {
        let history = generate(seed, place.major(), &plan.without);
        println!("{}", described(&history, &run::run(&place, &history, true)));
    }
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

impl Default for Options {
    fn default() -> Self {
        // Seeds that no earlier run has had, and that fit into a line.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        Self {
            plan: Plan {
                first_seed: now * 1_000,
                end_seed: u64::MAX,
                limit: Duration::from_secs(600),
                threads: 3,
                keep_going: false,
                shrinks: true,
                without: Without::default(),
            },
            seed: None,
            show: None,
            prelude: String::new(),
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--keep-going" => options.plan.keep_going = true,
                "--no-shrink" => options.plan.shrinks = false,
                _ => {
                    let value = arguments
                        .next()
                        .ok_or(format!("{name}: unknown, or without its value"))?;
                    options
                        .set(&name, &value)
                        .map_err(|problem| format!("{name} {value}: {problem}"))?;
                }
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |value: &str| value.parse::<u64>().map_err(|e| e.to_string());
        let seconds = |each: f64| {
            let count = value.parse::<f64>().map_err(|e| e.to_string())?;
            Duration::try_from_secs_f64(count * each).map_err(|e| e.to_string())
        };
        let plan = &mut self.plan;
        match name {
            "--hours" => plan.limit = seconds(3600.0)?,
            "--minutes" => plan.limit = seconds(60.0)?,
            "--threads" => plan.threads = value.parse::<usize>().map_err(|e| e.to_string())?.max(1),
            "--without" => plan.without = Without::parse(value),
            "--prelude" => value.clone_into(&mut self.prelude),
            "--show" => self.show = Some(number(value)?),
            "--seed" => {
                let seed = number(value)?;
                (plan.first_seed, plan.end_seed) = (seed, seed + 1);
                self.seed = Some(seed);
            }
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or("write FROM..TO")?;
                (plan.first_seed, plan.end_seed) = (number(from)?, number(to)?);
                plan.limit = Duration::MAX;
            }
            _ => return Err("unknown".into()),
        }
        Ok(())
    }
}

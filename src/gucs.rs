//! All settings of the extension. Each default's reason stands with it; the reference for users is
//! in the README.
//!
//! What the engine is started with can only be set in the configuration files: one engine serves all
//! sessions, and its paths are read with the rights of the server's user.

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

type Text = GucSetting<Option<CString>>;
type Int = GucSetting<i32>;

/// Empty: the model that `make install` puts into the server's share directory, so that the first
/// call works without any configuration.
static MODEL: Text = Text::new(Some(c""));
/// Empty: the head that was trained for the shipped model.
static HEAD: Text = Text::new(Some(c""));
/// Empty: the shipped model. The shipped heads for other models have its head for a companion.
static COMPANION_MODEL: Text = Text::new(Some(c""));
/// Empty: the program that `make install` puts beside the library. Packagers may have to put
/// programs elsewhere.
static ENGINE: Text = Text::new(Some(c""));
/// The first GPU if its engine is installed and can run, else the CPU: the fastest that works on the
/// machine.
static DEVICE: Text = Text::new(Some(c"auto"));
/// What is fast on the device and precise enough for the vectors: bf16 on a GPU and in a CPU's matrix unit,
/// int8 on other CPUs that have instructions for it.
static DTYPE: Text = Text::new(Some(c"auto"));
/// Needs no second model: reads the spans from the forward pass that makes the embeddings.
static DETECTOR: Text = Text::new(Some(c"probe"));
/// 10 minutes: longer than a pause in someone's work, so that a session rarely waits for the model
/// to load, and short enough that a GPU is free again soon after the last use.
static IDLE_TIMEOUT: Int = Int::new(600_000);
/// The engine knows its device, and how much memory that has.
static BATCH_TOKENS: Int = Int::new(0);
/// 0: as many threads as the engine's cgroup and affinity give it cores. Lower it to leave cores to
/// the server.
static THREADS: Int = Int::new(0);
/// 256 kB is a long report, and some minutes of work on a CPU. A larger text is more often a
/// mistake than one to be searched in one piece.
static MAX_TEXT_SIZE: Int = Int::new(256);
/// 1024 requests: many times what a server's sessions have in flight, so that only a runaway client
/// meets it, and little memory.
static MAX_QUEUE: Int = Int::new(1024);
/// -1: the threshold, and the floor below it, that were chosen for the head when it was trained.
static DETECTION_THRESHOLD: GucSetting<f64> = GucSetting::<f64>::new(-1.0);
/// On: searches find more of what they should on every corpus that was measured (docs/quality.md), for
/// one more scan of the vector index and some milliseconds over what it found.
static FEEDBACK: GucSetting<bool> = GucSetting::<bool>::new(true);
/// 0: no limit of its own; `statement_timeout` already ends a call that takes too long.
static REQUEST_TIMEOUT: Int = Int::new(0);

/// 5: with their pauses (0.5, 2, 8, 32 s) the attempts outlast a restart of the engine and its
/// loading, and a row that cannot be embedded shows up within a minute.
static MAX_ATTEMPTS: Int = Int::new(5);
/// 2: one reads and writes rows while the engine computes for the other.
static QUEUE_WORKERS: Int = Int::new(2);

/// An hour: comparing a million rows takes some seconds of a core, so that it costs a fraction of a percent,
/// and whatever no trigger has told of is found within the hour.
static RECONCILE_INTERVAL: Int = Int::new(3600);

const MAX_KB: i32 = 1024 * 1024;

/// Makes the settings known to the server and reserves their prefix.
pub fn define() {
    define_paths();
    define_engine_options();
    define_limits();
    define_queue();
    // SAFETY: the string is static; this runs while the library is loaded.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"ner_retriever".as_ptr()) };
}

fn define_paths() {
    text(
        c"ner_retriever.model",
        c"Base model: a GGUF file or a Hugging Face folder.",
        c"Empty means the model that is shipped with the extension. A relative path starts at the data directory.",
        &MODEL,
    );
    text(
        c"ner_retriever.head",
        c"Folder of the head that was trained for the base model.",
        c"Empty means the head that is shipped with the extension. A relative path starts at the data directory.",
        &HEAD,
    );
    text(
        c"ner_retriever.companion_model",
        c"Base model of the head's companion, for a head that has one.",
        c"Empty means the model that is shipped with the extension. A relative path starts at the data directory.",
        &COMPANION_MODEL,
    );
    text(
        c"ner_retriever.engine",
        c"Program that runs the model.",
        c"Empty means the program beside the extension's library. That for GPUs has -cuda at the end of its name.",
        &ENGINE,
    );
}

fn define_engine_options() {
    text(
        c"ner_retriever.device",
        c"Device that the model runs on: auto, cpu, cuda or cuda:N.",
        c"auto is the first GPU if the engine for GPUs is installed and can run, else the CPU.",
        &DEVICE,
    );
    text(
        c"ner_retriever.dtype",
        c"Number format that the model computes in.",
        c"auto chooses what is fast and precise enough on the device.",
        &DTYPE,
    );
    text(
        c"ner_retriever.detector",
        c"What finds the mentions in a text.",
        c"",
        &DETECTOR,
    );
    GucRegistry::define_int_guc(
        c"ner_retriever.idle_timeout",
        c"Time without requests after which the engine ends and frees its memory.",
        c"0 means never.",
        &IDLE_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    int(
        c"ner_retriever.batch_tokens",
        c"Most tokens that go through the model in one pass.",
        c"0 means 2048 on a CPU, and on a GPU 16384 or what its memory allows.",
        &BATCH_TOKENS,
        0..=1 << 20,
    );
    int(
        c"ner_retriever.threads",
        c"Threads that the engine computes with.",
        c"0 means as many as it may use cores.",
        &THREADS,
        0..=1024,
    );
}

fn define_limits() {
    GucRegistry::define_int_guc(
        c"ner_retriever.max_text_size",
        c"Largest text that is accepted.",
        c"",
        &MAX_TEXT_SIZE,
        1,
        MAX_KB,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    int(
        c"ner_retriever.max_queue",
        c"Most requests that may wait for the model.",
        c"",
        &MAX_QUEUE,
        1..=1_000_000,
    );
    GucRegistry::define_float_guc(
        c"ner_retriever.detection_threshold",
        c"Least probability of a detected mention.",
        c"Lower finds more mentions, of which more are none. -1 means the head's own.",
        &DETECTION_THRESHOLD,
        -1.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"ner_retriever.feedback",
        c"Whether ner_search ranks by what it finds, not by the type alone.",
        c"",
        &FEEDBACK,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"ner_retriever.request_timeout",
        c"Longest time that a call waits for the engine.",
        c"0 means no limit.",
        &REQUEST_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

fn define_queue() {
    int(
        c"ner_retriever.max_attempts",
        c"Attempts to embed a row of a managed index before it counts as failed.",
        c"",
        &MAX_ATTEMPTS,
        1..=1000,
    );
    int(
        c"ner_retriever.queue_workers",
        c"Most background workers that drain the queue of a database.",
        c"Each takes one of max_worker_processes while there is much to do.",
        &QUEUE_WORKERS,
        1..=64,
    );
    GucRegistry::define_int_guc(
        c"ner_retriever.reconcile_interval",
        c"Time after which a table is compared with what its managed index has of it.",
        c"It finds changes that no trigger has told of. 0 means never.",
        &RECONCILE_INTERVAL,
        0,
        i32::MAX / 1000,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
}

fn text(name: &'static CStr, short: &'static CStr, long: &'static CStr, setting: &'static Text) {
    let (context, flags) = (GucContext::Sighup, GucFlags::default());
    GucRegistry::define_string_guc(name, short, long, setting, context, flags);
}

fn int(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static Int,
    range: std::ops::RangeInclusive<i32>,
) {
    let (min, max) = range.into_inner();
    let (context, flags) = (GucContext::Sighup, GucFlags::default());
    GucRegistry::define_int_guc(name, short, long, setting, min, max, context, flags);
}

/// The configured model; `None` means the shipped one.
pub fn model() -> Option<OsString> {
    path(&MODEL)
}

/// The configured head; `None` means the shipped one.
pub fn head() -> Option<OsString> {
    path(&HEAD)
}

/// The configured base model of the head's companion; `None` means the shipped one.
pub fn companion_model() -> Option<OsString> {
    path(&COMPANION_MODEL)
}

/// The configured engine program; `None` means the shipped one.
pub fn engine() -> Option<OsString> {
    path(&ENGINE)
}

pub fn device() -> OsString {
    value(&DEVICE)
}

pub fn dtype() -> OsString {
    value(&DTYPE)
}

pub fn detector() -> OsString {
    value(&DETECTOR)
}

/// `None` means never.
pub fn idle_timeout() -> Option<Duration> {
    duration(&IDLE_TIMEOUT)
}

pub fn batch_tokens() -> i32 {
    BATCH_TOKENS.get()
}

/// 0 means as many as the engine may use cores.
pub fn threads() -> i32 {
    THREADS.get()
}

pub fn max_text_bytes() -> usize {
    usize::try_from(MAX_TEXT_SIZE.get()).unwrap_or(0) * 1024
}

pub fn max_queue() -> i32 {
    MAX_QUEUE.get()
}

/// `None` means the head's own.
pub fn detection_threshold() -> Option<f32> {
    let threshold = DETECTION_THRESHOLD.get();
    (threshold >= 0.0).then_some(threshold as f32)
}

/// At least 1.
pub fn queue_workers() -> u16 {
    u16::try_from(QUEUE_WORKERS.get()).unwrap_or(1)
}

/// `None` means never.
pub fn reconcile_interval() -> Option<Duration> {
    let seconds = u64::try_from(RECONCILE_INTERVAL.get()).ok();
    seconds.filter(|s| *s > 0).map(Duration::from_secs)
}

/// `None` means no limit.
pub fn request_timeout() -> Option<Duration> {
    duration(&REQUEST_TIMEOUT)
}

/// Of a setting in milliseconds whose 0 means that there is no limit.
fn duration(setting: &Int) -> Option<Duration> {
    let ms = u64::try_from(setting.get()).ok().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(ms))
}

fn path(setting: &Text) -> Option<OsString> {
    Some(value(setting)).filter(|value| !value.is_empty())
}

fn value(setting: &Text) -> OsString {
    OsString::from_vec(setting.get().map(CString::into_bytes).unwrap_or_default())
}

//! `ner_engine_status()`: what the engine is doing, without starting one.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use ner_retriever_protocol::{Request, Response, State, Status};
use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::client;
use crate::errors::Error;
use crate::text::ServerText;

type StatusRow = TableIterator<
    'static,
    (
        name!(state, ServerText),
        name!(pid, Option<i32>),
        name!(model, Option<ServerText>),
        name!(head, Option<ServerText>),
        name!(fingerprint, Option<ServerText>),
        name!(device, Option<ServerText>),
        name!(block, Option<i32>),
        name!(dimensions, Option<i32>),
        name!(uptime, Option<Interval>),
        name!(requests, Option<i64>),
        name!(tokens, Option<i64>),
        name!(batches, Option<i64>),
        name!(merged_requests, Option<i64>),
        name!(queue_depth, Option<i64>),
        name!(resident_bytes, Option<i64>),
        // Not declared before 0.2.0, where it is left out.
        name!(dtype, Option<ServerText>),
    ),
>;

/// `ner_engine_status()`
#[pg_extern]
fn ner_engine_status() -> Result<StatusRow, ErrorReport> {
    let status = status()?;
    let state = match &status {
        None => "stopped",
        Some(status) => match status.state {
            State::Idle => "idle",
            State::Loading => "loading",
            State::Ready => "ready",
        },
    };
    let status = status.as_ref();
    let model = status.and_then(|status| status.model.as_ref());
    let text = |text: &String| ServerText(text.clone());
    let count = |count: fn(&Status) -> u64| status.map(|status| bigint(count(status)));
    Ok(TableIterator::once((
        ServerText(state.to_owned()),
        status.map(|status| status.pid.cast_signed()),
        model.map(|model| text(&model.model)),
        model.map(|model| text(&model.head)),
        model.map(|model| text(&model.fingerprint)),
        model.map(|model| text(&model.device)),
        model.map(|model| model.block.cast_signed()),
        model.map(|model| model.dims.cast_signed()),
        status.map(|status| Interval::from_micros(bigint(status.uptime_ms.saturating_mul(1000)))),
        count(|status| status.requests),
        count(|status| status.tokens),
        count(|status| status.batches),
        count(|status| status.merged_requests),
        count(|status| status.queue_depth),
        count(|status| status.resident_bytes),
        model.map(|model| text(&model.dtype)),
    )))
}

/// `None` when no engine runs.
fn status() -> Result<Option<Status>, Error> {
    match client::ask_if_running(&Request::Status)? {
        None => Ok(None),
        Some(Response::Status(status)) => Ok(Some(*status)),
        Some(other) => Err(client::unexpected(&other)),
    }
}

/// Counters do not reach the end of `bigint` in the life of a machine.
fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

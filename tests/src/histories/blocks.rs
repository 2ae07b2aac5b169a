//! Transaction blocks: their beginnings and ends, savepoints, and transactions that are prepared.

use super::generate::Gen;
use super::history::Action;

/// Begins a block, or ends the one that is open.
pub fn begin_or_end(g: &mut Gen, session: usize) {
    if g.sessions[session].block.is_some() {
        end(g, session);
        return;
    }
    let isolation = [
        "",
        " ISOLATION LEVEL REPEATABLE READ",
        " ISOLATION LEVEL SERIALIZABLE",
    ];
    let weights = if g.without("isolation") {
        [1, 0, 0]
    } else {
        [60, 25, 15]
    };
    let isolation = isolation[g.rng.weighted(weights.into_iter())];
    g.say(session, format!("BEGIN{isolation}"));
    g.sessions[session].block = Some(g.tables.clone());
    g.sessions[session].serializable = isolation.ends_with("SERIALIZABLE");
    g.sessions[session].statements = 0;
    g.sessions[session].savepoint = None;
}

/// Ends the session's block, if there is one: mostly by COMMIT.
pub fn end(g: &mut Gen, session: usize) {
    let Some(before) = g.sessions[session].block.take() else {
        g.sessions[session].statements = 0;
        return;
    };
    g.sessions[session].statements = 0;
    let prepare = if g.without("prepared") { 0 } else { 12 };
    match g.rng.weighted([70, 20, prepare].into_iter()) {
        0 => g.say(session, "COMMIT".into()),
        1 => {
            g.say(session, "ROLLBACK".into());
            g.tables = before;
        }
        _ => {
            let number = g.number();
            g.say(session, format!("PREPARE TRANSACTION '{{db}}-{number}'"));
            // Its locks stay, and others wait for them: not for long.
            if g.rng.chance(40) {
                let action = if g.rng.chance(15) && !g.without("kill") {
                    Action::KillEngine
                } else {
                    Action::Pause
                };
                g.push(session, action, String::new());
            }
            if g.rng.chance(70) {
                g.say(session, format!("COMMIT PREPARED '{{db}}-{number}'"));
            } else {
                g.say(session, format!("ROLLBACK PREPARED '{{db}}-{number}'"));
                g.tables = before;
            }
        }
    }
}

pub fn savepoint(g: &mut Gen, session: usize) {
    if g.sessions[session].block.is_none() {
        begin_or_end(g, session);
    }
    match g.sessions[session].savepoint.take() {
        None => {
            g.say(session, "SAVEPOINT s".into());
            g.sessions[session].savepoint = Some(g.tables.clone());
        }
        Some(before) if g.rng.chance(65) => {
            g.say(session, "ROLLBACK TO s".into());
            g.tables = before;
        }
        Some(_) => g.say(session, "RELEASE s".into()),
    }
}

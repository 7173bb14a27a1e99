//! Sequences of operations: made from a seed, made again from a list, made shorter.

use std::fmt::Write as _;

use crate::check;
use crate::host::{Caller, take_down};
use crate::pair::{CASES, Case, Op, Pair, Tally};

/// Operations of a sequence, before all is taken down.
const LENGTH: usize = 1200;
/// Operations from one look at everything to the next.
const LOOK: usize = 300;
/// Operations that a failure shows at most.
const SHOWN: usize = 60;
/// Calls that take everything down, at most.
const MOST_TO_END: usize = 50_000;
/// How often a failure is tried again with less.
const TRIES: usize = 200;

/// Runs the sequence of a seed: which calls it made.
///
/// # Errors
/// What went wrong, for people: the seed, and operations that lead there.
pub fn run(seed: u64) -> Result<Tally, String> {
    let case = &CASES[seed as usize % CASES.len()];
    let mut done = Vec::new();
    let mut pair = Pair::new(case);
    let what = match steps(seed, &mut pair, &mut done) {
        Ok(()) => return Ok(pair.tally),
        Err(what) => what,
    };
    drop(pair);
    let (what, ops) = if std::env::var("HYP_SHORTEN").as_deref() == Ok("0") {
        (what, done)
    } else {
        shorten(case, what, done)
    };
    let mut text = format!("seed {seed} (HYP_SEED={seed}), {}: {what}\n", case.name);
    for op in ops.iter().rev().take(SHOWN).rev() {
        let _ = writeln!(text, "    {op:x?}");
    }
    Err(text)
}

fn steps(seed: u64, pair: &mut Pair, done: &mut Vec<Op>) -> Result<(), String> {
    let mut caller = Caller::new(seed);
    for n in 1..=LENGTH {
        let op = caller.next(&pair.spec);
        done.push(op.clone());
        pair.apply(&op)?;
        if n % LOOK == 0 {
            check::everything(pair)?;
        }
    }
    end(pair, done)
}

/// Takes everything down, and looks that nothing is left.
fn end(pair: &mut Pair, done: &mut Vec<Op>) -> Result<(), String> {
    for _ in 0..MOST_TO_END {
        let Some(op) = take_down(&pair.spec) else {
            break;
        };
        done.push(op.clone());
        pair.apply(&op)?;
    }
    if take_down(&pair.spec).is_some() {
        return Err("what stands does not come down".into());
    }
    check::everything(pair)?;
    if pair.host.tables() != 0 {
        return Err("the host's stage 2 is not whole again".into());
    }
    // Nor is a block counted.
    let granules = &pair.host.system.granules;
    let (base, size) = (pair.spec.machine.ram_base, pair.spec.machine.ram_size);
    let span = granules.span_size();
    for at in (base..base + size / span * span).step_by(span as usize) {
        if !granules.get_block(at) {
            return Err(format!("the span at {at:#x} is not all the host's"));
        }
        granules.put_block(at);
        if !granules.leave_host(at, 1) {
            return Err(format!("the span at {at:#x} is counted"));
        }
        granules.return_to_host(at, 1);
    }
    Ok(())
}

/// Whether, and how, a list of operations goes wrong.
fn fails(case: &Case, ops: &[Op]) -> Option<(String, usize)> {
    let mut pair = Pair::new(case);
    for (n, op) in ops.iter().enumerate() {
        if let Err(what) = pair.apply(op) {
            return Some((what, n + 1));
        }
    }
    let what = check::everything(&mut pair).err()?;
    Some((what, ops.len()))
}

/// Leaves out what the failure does not need.
fn shorten(case: &Case, what: String, ops: Vec<Op>) -> (String, Vec<Op>) {
    let (mut what, mut ops) = (what, ops);
    let mut tries = 0;
    let mut piece = ops.len() / 2;
    while piece > 0 && tries < TRIES {
        let mut from = 0;
        while from < ops.len() && tries < TRIES {
            tries += 1;
            let to = (from + piece).min(ops.len());
            let less: Vec<Op> = ops[..from].iter().chain(&ops[to..]).cloned().collect();
            match fails(case, &less) {
                Some((now, length)) => {
                    what = now;
                    ops = less;
                    ops.truncate(length);
                }
                None => from = to,
            }
        }
        piece /= 2;
    }
    (what, ops)
}

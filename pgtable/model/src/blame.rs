//! Why something is not clean: the step that was left out, in words.

use crate::machine::Machine;
use crate::shape::Regime;
use crate::unclean::{Class, PeMask, Progress, Run, Was, note};
use crate::violation::{Kind, Violation};

impl Machine {
    /// Names the cause that an unclean entry is not clean yet.
    pub(crate) fn blame(
        &self,
        regime: Regime,
        (class, ia): (Class, u64),
        run: &Run,
        shown: Kind,
    ) -> Box<Violation> {
        let p = &run.progress;
        let tried = |bit: u16| p.notes & bit != 0;
        let missing_s2 = p.s2 != self.all;
        let cause = if missing_s2 {
            if p.s2 != 0 {
                Some(Kind::LocalOnly)
            } else if p.s2_pending.iter().any(|&m| m != 0) {
                Some(Kind::MissingDsb)
            } else if tried(note::EARLY) {
                Some(Kind::TlbiBeforeDsb)
            } else if tried(note::ISB) {
                Some(Kind::MissingIsb)
            } else if tried(note::TG) {
                Some(Kind::TgMismatch)
            } else if tried(note::TTL) {
                Some(Kind::TtlMismatch)
            } else if tried(note::LAST_LEVEL | note::REFILL) {
                Some(Kind::LastLevelForTable)
            } else if tried(note::GROUP) {
                Some(Kind::ContiguousAlive)
            } else if tried(note::WRONG_VMID) {
                Some(Kind::WrongVmid)
            } else {
                None
            }
        } else if class.0 != Was::Table && regime == Regime::Stage2 && p.s1 != self.all {
            if p.s1 != 0 {
                Some(Kind::LocalOnly)
            } else if p.s1_pending.iter().any(|&m| m != 0) {
                Some(Kind::MissingDsb)
            } else if tried(note::REGIME) {
                Some(Kind::WrongVmid)
            } else if tried(note::S1_EARLY) {
                Some(Kind::Stage1BeforeStage2)
            } else {
                Some(Kind::MissingStage1)
            }
        } else {
            Some(Kind::MissingRepeat)
        };
        let mut v = self.violation(
            cause.unwrap_or(shown),
            format!(
                "a {} at level {} ({}) is not clean",
                match class.0 {
                    Was::Leaf => "leaf that was removed",
                    Was::Table => "table that was removed",
                    Was::Loose => "leaf that lost rights",
                },
                class.1,
                progress_words(p, self.all, class.0, regime),
            ),
        );
        v.shown_by = cause.map(|_| shown);
        v.ia = Some(ia);
        v.level = Some(class.1);
        v.since = Some(run.since);
        v
    }
}

fn progress_words(p: &Progress, all: PeMask, was: Was, regime: Regime) -> String {
    let mut out = String::new();
    let mut say = |what: &str, mask: PeMask| {
        if !out.is_empty() {
            out.push_str(", ");
        }
        let state = if mask == all {
            "yes"
        } else if mask == 0 {
            "no"
        } else {
            "some PEs"
        };
        out.push_str(what);
        out.push(' ');
        out.push_str(state);
    };
    say("visible", p.guard);
    say("invalidated", p.s2);
    if was != Was::Table && regime == Regime::Stage2 {
        say("combined entries gone", p.s1);
    }
    out
}

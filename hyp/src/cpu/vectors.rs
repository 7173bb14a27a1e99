//! What the vectors for a PE that has steps to take (asm.S) do with each of them:
//! QEMU has no firmware to call, and no CPU that clears its history by an instruction.
//! Their instructions are few; each is done here as the manual has it.

extern crate std;

use core::ops::RangeInclusive;
use std::string::String;
use std::vec::Vec;
use std::{assert_eq, format, panic, vec};

use arm64::regs::ISR_EL1;

/// Where the code is left.
const ENDS: [&str; 3] = ["leave", "leave_with_error", "serve_at_vector"];

/// What comes by a vector.
#[derive(Clone, Copy, Debug)]
struct Comes {
    kind: u64,
    /// The PE's word.
    steps: u64,
    /// `Gprs::at_vector`.
    at_vector: u64,
    /// DISR_EL1 and ISR_EL1.
    disr: u64,
    isr: u64,
}

/// A PE that runs asm.S from one of its vectors.
struct Run {
    comes: Comes,
    /// Lines, and the labels among them.
    code: Vec<String>,
    x: [u64; 31],
    zero: bool,
    /// What the lower level finds again.
    saved: [Option<u64>; 31],
    /// What it did that no register shows.
    trace: Vec<String>,
}

/// X0 to X30 of the lower level.
fn of_level(n: usize) -> u64 {
    0x1000 + n as u64
}

const TPIDR: u64 = 0x7770;
/// EL2's frame, which `Gprs` names.
const STACK: u64 = 0x7771;
/// What a call leaves in the registers that it need not keep (SMCCC 1.1).
const LOST: u64 = 0xdead;

impl Run {
    fn new(comes: Comes) -> Self {
        let text = include_str!("../asm.S");
        let lines = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or(""));
        let lines: Vec<_> = lines
            .map(|line| line.trim())
            .filter(|l| !l.is_empty())
            .collect();
        let at = |what: &str| {
            let place = lines.iter().position(|line| *line == what);
            place.unwrap_or_else(|| panic!("no {what}"))
        };
        let vector = at(".macro  from_lower_by_steps kind") + 1;
        let vector = lines[vector..].iter().take_while(|line| **line != ".endm");
        let vector = vector.filter(|line| !line.starts_with(".balign"));
        let vector = vector.map(|line| line.replace("\\kind", &format!("{}", comes.kind)));
        let rest = lines[at("steps:")..].iter().map(|line| String::from(*line));
        Self {
            comes,
            code: vector.chain(rest).collect(),
            x: core::array::from_fn(of_level),
            zero: false,
            saved: [None; 31],
            trace: Vec::new(),
        }
    }

    /// The line behind a label, from `at` on or, of a number with `b`, before it.
    fn find(&self, at: usize, label: &str) -> usize {
        let (name, back) = match label.strip_suffix(['f', 'b']) {
            Some(n) if n.parse::<u32>().is_ok() => (n, label.ends_with('b')),
            _ => (label, false),
        };
        let is = |line: &&String| line.split_once(':').is_some_and(|(l, _)| l == name);
        let all = &self.code;
        let found = if name != label {
            if back {
                all[..=at].iter().rposition(|line| is(&line))
            } else {
                let behind = all[at..].iter().position(|line| is(&line));
                behind.map(|n| at + n)
            }
        } else {
            all.iter().position(|line| is(&line))
        };
        found.unwrap_or_else(|| panic!("no label {label}"))
    }

    fn number(text: &str) -> u64 {
        let text = text.trim_start_matches('#').trim_matches(['(', ')']);
        if let Some((one, shift)) = text.split_once(" << ") {
            return Self::number(one) << Self::number(shift);
        }
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        }
        .unwrap_or_else(|_| panic!("{text}"))
    }

    fn register(name: &str) -> usize {
        let number = name.strip_prefix(['x', 'w']);
        let number = number.and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("register {name}"))
    }

    fn value(&self, operand: &str) -> u64 {
        match operand.as_bytes()[0] {
            b'#' => Self::number(operand),
            b'w' => self.x[Self::register(operand)] & 0xffff_ffff,
            _ => self.x[Self::register(operand)],
        }
    }

    fn save(&mut self, range: RangeInclusive<usize>) {
        for n in range {
            self.saved[n].get_or_insert(self.x[n]);
        }
    }

    fn load(&mut self, to: &[&str], from: &str) {
        let values = match from {
            "[sp, #{gprs_stack}]" => vec![STACK, self.comes.at_vector],
            "[x5, #{pe_steps}]" | "[x1, #{pe_steps}]" => {
                assert_eq!(self.value(&from[1..3]), TPIDR);
                vec![self.comes.steps]
            }
            from => panic!("a load from {from}"),
        };
        assert_eq!(to.len(), values.len());
        for (to, value) in to.iter().zip(values) {
            self.x[Self::register(to)] = value;
        }
    }

    fn system(&self, register: &str) -> u64 {
        match register {
            "tpidr_el2" => TPIDR,
            "disr_el1" => self.comes.disr,
            "isr_el1" => self.comes.isr,
            other => panic!("a read of {other}"),
        }
    }

    /// Does one line: where the next is, if it is not the one behind.
    fn step(&mut self, at: usize, name: &str, operands: &[&str]) -> Option<usize> {
        let bit = |value: u64, n: &str| value >> Self::number(n) & 1 != 0;
        match (name, operands) {
            ("stp", ["x0", "x1", "[sp]"]) => self.save(0..=1),
            ("each_pair", ["stp", "sp"]) => self.save(2..=29),
            ("str", ["x30", "[sp, #(30 * 8)]"]) => self.save(30..=30),
            ("ldr", [to, from]) => self.load(&[to], from),
            ("ldp", [a, b, from]) => self.load(&[a, b], from),
            ("mrs", [to, from]) => {
                self.trace.push(format!("mrs {from}"));
                self.x[Self::register(to)] = self.system(from);
            }
            ("mov", [to, from]) => {
                self.x[Self::register(to)] = self.value(from);
            }
            ("and" | "ands" | "subs", [to, a, b]) => {
                let (a, b) = (self.value(a), self.value(b));
                let value = if name == "subs" {
                    a.wrapping_sub(b)
                } else {
                    a & b
                };
                self.x[Self::register(to)] = value;
                self.zero = if name == "and" { self.zero } else { value == 0 };
            }
            ("smc", ["#0"]) => {
                self.trace.push(format!("smc {:#x}", self.x[0]));
                self.x[..4].fill(LOST);
            }
            ("b", [". + 4"]) => {
                self.trace.push("branch".into());
            }
            ("b", [to]) => return Some(self.find(at, to)),
            ("b.eq", [to]) => return self.zero.then(|| self.find(at, to)),
            ("b.ne", [to]) => return (!self.zero).then(|| self.find(at, to)),
            ("cbnz", [of, to]) => return (self.value(of) != 0).then(|| self.find(at, to)),
            ("tbz", [of, n, to]) => return (!bit(self.value(of), n)).then(|| self.find(at, to)),
            ("tbnz", [of, n, to]) => return bit(self.value(of), n).then(|| self.find(at, to)),
            ("dsb" | "isb" | "esb" | "hint" | "msr", _) => {
                self.trace
                    .push(format!("{name} {}", operands.join(", ")).trim().into());
            }
            ("", []) => {}
            _ => panic!("{name} {operands:?}"),
        };
        None
    }

    /// Runs until the code is left: where, with which kind, and what it did.
    fn run(comes: Comes) -> (&'static str, u64, Vec<String>) {
        let mut run = Self::new(comes);
        let mut at = 0;
        loop {
            let line = run.code[at].clone();
            let line = line.split_once(':').map_or(&*line, |(_, line)| line).trim();
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            let mut operands: Vec<_> = rest.splitn(3, ',').map(|o| o.trim()).collect();
            operands.retain(|operand| !operand.is_empty());
            let joined;
            if let Some(open) = rest.find('[') {
                // An address is one operand.
                operands = rest[..open].split(',').map(|o| o.trim()).collect();
                operands.retain(|operand| !operand.is_empty());
                joined = rest[open..].trim();
                operands.push(joined);
            }
            if let Some(end) = ENDS.iter().find(|end| **end == name) {
                return run.ends(end);
            }
            at = match run.step(at, name, &operands) {
                Some(to) if ENDS.contains(&&*run.label(to)) => {
                    let label = run.label(to);
                    let end = ENDS.iter().find(|end| **end == label);
                    return run.ends(end.unwrap_or(&""));
                }
                Some(to) => to,
                None => at + 1,
            };
        }
    }

    fn label(&self, at: usize) -> String {
        let label = self.code[at].split_once(':').map(|(label, _)| label);
        label.unwrap_or_default().into()
    }

    fn ends(self, end: &'static str) -> (&'static str, u64, Vec<String>) {
        for (n, saved) in self.saved.iter().enumerate() {
            assert_eq!(*saved, Some(of_level(n)), "X{n} of {:x?}", self.comes);
        }
        (end, self.x[0], self.trace)
    }
}

/// The words, and what is to be done before anything else.
fn steps() -> Vec<(u64, Vec<String>)> {
    let looped = |count: usize| {
        let mut all = vec![String::from("branch"); count];
        all.extend(["dsb nsh".into(), "isb".into()]);
        all
    };
    let mut all = vec![
        (0, vec![]),
        (1 << 8, vec!["hint #22".into(), "isb".into()]),
        (0x8000_8000, vec!["smc 0x80008000".into()]),
        (0x8000_3fff, vec!["smc 0x80003fff".into()]),
    ];
    all.extend([1, 8, 11, 24, 32, 38, 132, 255].map(|n| (n as u64, looped(n))));
    all
}

#[test]
fn the_vectors_take_each_step_before_anything_else_and_lose_no_register() {
    for (word, first) in steps() {
        for (ras, kind) in (0..8).map(|n| (n & 1 != 0, n >> 1)) {
            let comes = Comes {
                kind,
                steps: word | if ras { 0 } else { 1 << 32 },
                at_vector: 0,
                disr: 0,
                // IRQs and FIQs that are pending are not this.
                isr: 0b11 << 6,
            };
            let mut right = vec!["mrs tpidr_el2".into()];
            right.extend(first.clone());
            right.push("mrs tpidr_el2".into());
            right.extend(if ras {
                ["esb", "mrs disr_el1"].map(String::from).to_vec()
            } else {
                ["dsb sy", "isb", "mrs isr_el1"].map(String::from).to_vec()
            });
            let waited = right.clone();
            right.push("msr daifclr, #4".into());
            assert_eq!(Run::run(comes), ("leave", kind, right), "{comes:x?}");
            let error = Comes {
                disr: if ras { 1 << 31 } else { 0 },
                isr: comes.isr | if ras { 0 } else { ISR_EL1::A.val(1).value },
                ..comes
            };
            assert_eq!(Run::run(error), ("leave_with_error", kind, waited));
        }
    }
}

/// A device's access is served at the vector: by synchronous exceptions alone, and
/// after the steps.
#[test]
fn what_is_served_at_the_vector_comes_behind_the_steps() {
    for (word, first) in steps() {
        for kind in 0..4 {
            let (end, came, did) = Run::run(Comes {
                kind,
                steps: word,
                at_vector: 0x9000,
                disr: 0,
                isr: 0,
            });
            assert_eq!(end == "serve_at_vector", kind == 0, "{word:#x} {kind}");
            assert_eq!(came, kind);
            assert_eq!(did[1..=first.len()], first);
        }
    }
}

//! What the vectors for a PE that has steps to take (asm.S) do with each of them:
//! QEMU has no firmware to call, and no CPU that clears its history by an instruction.
//! Their instructions are few; each is done here as the manual has it.

extern crate std;

use core::ops::RangeInclusive;
use std::string::String;
use std::vec::Vec;
use std::{assert_eq, format, panic, vec};

use arm64::regs::ISR_EL1;

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
/// SP when a lower level has come out: its `Gprs`.
const GPRS: u64 = 0x7772;
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
            b's' => GPRS,
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
            ("serve_at_vector", []) => {
                // Not served, by a function: `Served::No`.
                self.trace.push("serve".into());
                self.x[..19].fill(LOST);
                self.x[0] = 0;
            }
            ("leave", []) => {
                self.trace.push("leave".into());
                self.x[1..4].fill(LOST);
            }
            ("", []) => {}
            _ => panic!("{name} {operands:?}"),
        };
        None
    }

    /// Runs until EL2's Rust has it: whether as a system error, with which kind, and
    /// what was done.
    fn run(comes: Comes) -> (bool, u64, Vec<String>) {
        let mut run = Self::new(comes);
        let mut at = 0;
        loop {
            let line = run.code[at].clone();
            let line = line.split_once(':').map_or(&*line, |(_, line)| line).trim();
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            // An address is one operand.
            let (rest, address) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
            let operands = rest.split(',').chain([address]).map(|o| o.trim());
            let operands: Vec<_> = operands.filter(|o| !o.is_empty()).collect();
            match (name, &operands[..]) {
                ("ret", []) => return run.ends(false),
                ("b", ["system_error_waited"]) => {
                    assert_eq!(run.x[1], GPRS);
                    return run.ends(true);
                }
                (name, operands) => at = run.step(at, name, operands).unwrap_or(at + 1),
            }
        }
    }

    fn ends(self, error: bool) -> (bool, u64, Vec<String>) {
        for (n, saved) in self.saved.iter().enumerate() {
            assert_eq!(*saved, Some(of_level(n)), "X{n} of {:x?}", self.comes);
        }
        (error, self.x[0], self.trace)
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

/// What is done on the way out, but for a system error: how one that waits is looked
/// for, and then that EL2 takes its own.
fn out(ras: bool) -> Vec<String> {
    let look: &[&str] = if ras {
        &["mrs tpidr_el2", "esb", "mrs disr_el1"]
    } else {
        &["mrs tpidr_el2", "dsb sy", "isb", "mrs isr_el1"]
    };
    let all = look.iter().chain(&["msr daifclr, #4", "leave"]);
    all.map(|line| String::from(*line)).collect()
}

/// What comes, with each word, on a CPU with FEAT_RAS and on one without.
fn each(mut f: impl FnMut(Comes, bool, Vec<String>)) {
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
            let begin = [String::from("mrs tpidr_el2")].into_iter();
            f(comes, ras, begin.chain(first.clone()).collect());
        }
    }
}

#[test]
fn the_vectors_take_each_step_before_anything_else_and_lose_no_register() {
    each(|comes, ras, begin| {
        let right = [begin, out(ras)].concat();
        let found = Run::run(comes);
        assert_eq!(found, (false, comes.kind, right), "{comes:x?}");
    });
}

#[test]
fn a_system_error_that_waits_comes_out_with_its_levels_registers() {
    each(|comes, ras, begin| {
        let error = Comes {
            disr: if ras { 1 << 31 } else { 0 },
            isr: comes.isr | if ras { 0 } else { ISR_EL1::A.val(1).value },
            ..comes
        };
        let mut right = [begin, out(ras)].concat();
        right.retain(|did| did != "msr daifclr, #4");
        assert_eq!(Run::run(error), (true, comes.kind, right), "{error:x?}");
    });
}

/// A device's access is served at the vector: by synchronous exceptions alone, and
/// after the steps. One that is not comes out like any other.
#[test]
fn what_is_served_at_the_vector_comes_behind_the_steps() {
    each(|comes, ras, begin| {
        let at_vector = 0x9000;
        let comes = Comes { at_vector, ..comes };
        let served = ["serve"].iter().filter(|_| comes.kind == 0);
        let served = served.map(|line| String::from(*line)).collect();
        let right = [begin, served, out(ras)].concat();
        assert_eq!(Run::run(comes), (false, comes.kind, right), "{comes:x?}");
    });
}

/// Nothing behind an exception's return is begun by a guess that it falls through.
#[test]
fn each_return_is_a_barrier_to_guesses() {
    let code = include_str!("../asm.S").lines();
    let code = code.map(|line| line.split("//").next().unwrap_or("").trim());
    let code: Vec<_> = code.collect();
    let returns = code.windows(3).filter(|three| three[0] == "eret");
    let returns: Vec<_> = returns.collect();
    assert!(returns.len() >= 2);
    for three in returns {
        assert_eq!(three[1..], ["dsb     nsh", "isb"]);
    }
}

//! The table of encodings against an assembler, both ways: what the table makes
//! of a word is written as text in every way that the instruction set has for
//! it; each of these must assemble to a word that the table reads the same way,
//! and one of them to the word itself.

#[path = "../../hyp/arm64/tests/assembler/mod.rs"]
mod assembler;

use std::collections::{BTreeMap, BTreeSet};

use host_loader::emulate::encoding::decode;
use host_loader::emulate::instruction::{
    Action, Base, Combine, Direction, Extend, Index, Instruction, Lanes, Offset, Widen,
};

/// Every mnemonic that loads or stores in what guests are told of.
const MNEMONICS: &str = "
    ldr ldrb ldrh ldrsb ldrsh ldrsw str strb strh
    ldur ldurb ldurh ldursb ldursh ldursw stur sturb sturh
    ldtr ldtrb ldtrh ldtrsb ldtrsh ldtrsw sttr sttrb sttrh
    ldp ldpsw stp ldnp stnp
    ldar ldarb ldarh stlr stlrb stlrh ldlar ldlarb ldlarh stllr stllrb stllrh
    ldapr ldaprb ldaprh
    ldapur ldapurb ldapurh ldapursb ldapursh ldapursw stlur stlurb stlurh
    ldxr ldxrb ldxrh ldaxr ldaxrb ldaxrh stxr stxrb stxrh stlxr stlxrb stlxrh
    ldxp ldaxp stxp stlxp
    cas casb cash casa casab casah casl caslb caslh casal casalb casalh
    casp caspa caspl caspal
    ld1 ld2 ld3 ld4 st1 st2 st3 st4 ld1r ld2r ld3r ld4r";

fn is_load(direction: Direction) -> bool {
    direction == Direction::Load
}

fn x(n: u8, wide: bool) -> String {
    match (n, wide) {
        (31, true) => "xzr".into(),
        (31, false) => "wzr".into(),
        (n, true) => format!("x{n}"),
        (n, false) => format!("w{n}"),
    }
}

fn base(n: u8) -> String {
    if n == 31 {
        "sp".into()
    } else {
        format!("x{n}")
    }
}

/// `ldr` with its middle letters and its ending: `ldapursb`.
fn name(middle: &str, direction: Direction, size: u8, widen: Widen) -> String {
    let (begin, sign) = (
        if is_load(direction) { "ld" } else { "st" },
        if widen == Widen::Zero { "" } else { "s" },
    );
    let end = match (size, widen) {
        (0, _) => "b",
        (1, _) => "h",
        (2, Widen::Sign64) => "w",
        _ => "",
    };
    format!("{begin}{middle}{sign}{end}")
}

fn letter(size: u8) -> &'static str {
    ["b", "h", "", ""][usize::from(size)]
}

/// The register of a general load or store, as its instruction writes it.
fn general(t: u8, size: u8, widen: Widen) -> String {
    x(t, size == 3 || widen == Widen::Sign64)
}

fn vector(t: u8, size: u8) -> String {
    format!("{}{t}", ["b", "h", "s", "d", "q"][usize::from(size)])
}

/// `[x1, #8]!` and its like.
fn place(n: u8, offset: i64, index: Index) -> String {
    let base = base(n);
    match index {
        Index::Offset => format!("[{base}, #{offset}]"),
        Index::Pre => format!("[{base}, #{offset}]!"),
        Index::Post => format!("[{base}], #{offset}"),
    }
}

/// One register by one immediate: `name` makes the mnemonic of its middle.
fn immediate(i: &Instruction, size: u8, text: &str, name: impl Fn(&str) -> String) -> Vec<String> {
    let (Base::Register(n), Offset::Immediate(offset)) = (i.base, i.offset) else {
        return Vec::new();
    };
    let small = (-256..256).contains(&offset);
    let scaled = offset >= 0 && offset % (1 << size) == 0 && offset >> size < 4096;
    let mut all = Vec::new();
    let mut with = |middle, right| {
        if right {
            all.push(format!(
                "{} {text}, {}",
                name(middle),
                place(n, offset, i.index)
            ));
        }
    };
    match (i.index, i.unprivileged) {
        (Index::Offset, false) => {
            with("r", scaled);
            with("ur", small);
        }
        (Index::Offset, true) => with("tr", small),
        (_, unprivileged) => with("r", small && !unprivileged),
    }
    all
}

/// One register by a register offset.
fn by_register(i: &Instruction, size: u8, start: &str) -> Vec<String> {
    let (Base::Register(n), Offset::Register { m, extend, shift }) = (i.base, i.offset) else {
        return Vec::new();
    };
    let (wide, word) = match extend {
        Extend::Uxtw => (false, "uxtw"),
        Extend::Sxtw => (false, "sxtw"),
        Extend::Lsl => (true, "lsl"),
        Extend::Sxtx => (true, "sxtx"),
    };
    let (n, m) = (base(n), x(m, wide));
    let mut all = Vec::new();
    if shift == size {
        all.push(format!("{start}, [{n}, {m}, {word} #{shift}]"));
    }
    if shift == 0 {
        all.push(match extend {
            Extend::Lsl => format!("{start}, [{n}, {m}]"),
            _ => format!("{start}, [{n}, {m}, {word}]"),
        });
    }
    all
}

fn literal(i: &Instruction, start: &str) -> Vec<String> {
    match (i.base, i.offset) {
        (Base::Pc, Offset::Immediate(offset)) => vec![format!("{start}, .+{offset}")],
        _ => Vec::new(),
    }
}

fn pair(i: &Instruction, name: &str, registers: [String; 2]) -> Vec<String> {
    let (Base::Register(n), Offset::Immediate(offset)) = (i.base, i.offset) else {
        return Vec::new();
    };
    let [a, b] = registers;
    let place = place(n, offset, i.index);
    let mut all = vec![format!("{name} {a}, {b}, {place}")];
    if i.index == Index::Offset && name != "ldpsw" {
        all.push(format!("{} {a}, {b}, {place}", name.replace('p', "np")));
    }
    all
}

/// Ordered accesses that are plain ones here: those without an offset, and the
/// unscaled ones.
fn ordered(i: &Instruction, direction: Direction, t: u8, size: u8, widen: Widen) -> Vec<String> {
    let (Base::Register(n), Offset::Immediate(offset)) = (i.base, i.offset) else {
        return Vec::new();
    };
    if i.index != Index::Offset || i.unprivileged {
        return Vec::new();
    }
    let text = general(t, size, widen);
    let mut all = Vec::new();
    if offset == 0 && widen == Widen::Zero {
        let middles: &[&str] = if is_load(direction) {
            &["ar", "lar", "apr"]
        } else {
            &["lr", "llr"]
        };
        for middle in middles {
            let name = name(middle, direction, size, widen);
            all.push(format!("{name} {text}, [{}]", base(n)));
        }
    }
    if (-256..256).contains(&offset) {
        let middle = if is_load(direction) { "apur" } else { "lur" };
        let name = name(middle, direction, size, widen);
        all.push(format!("{name} {text}, {}", place(n, offset, i.index)));
    }
    all
}

fn list(t: u8, count: u8, suffix: &str) -> String {
    let registers: Vec<_> = (0..count)
        .map(|n| format!("v{}.{suffix}", (t + n) % 32))
        .collect();
    format!("{{ {} }}", registers.join(", "))
}

fn structure(i: &Instruction) -> Vec<String> {
    let Action::Structure {
        direction,
        t,
        elements,
        lanes,
        size,
    } = i.action
    else {
        return Vec::new();
    };
    let begin = if is_load(direction) { "ld" } else { "st" };
    let kind = ["b", "h", "s", "d"][usize::from(size)];
    let all_lanes = |wide| format!("{}{kind}", (if wide { 16 } else { 8 }) >> size);
    let (end, list) = match lanes {
        Lanes::Whole { repeat, wide } => ("", list(t, repeat * elements, &all_lanes(wide))),
        Lanes::One { lane } => ("", format!("{}[{lane}]", list(t, elements, kind))),
        Lanes::Replicate { wide } => ("r", list(t, elements, &all_lanes(wide))),
    };
    let Base::Register(n) = i.base else {
        return Vec::new();
    };
    let post = match (i.index, i.offset) {
        (Index::Post, Offset::Immediate(bytes)) => format!(", #{bytes}"),
        (Index::Post, Offset::Register { m, .. }) => format!(", x{m}"),
        _ => String::new(),
    };
    vec![format!(
        "{begin}{elements}{end} {list}, [{}]{post}",
        base(n)
    )]
}

/// With acquire and release, by the letters that say so.
fn orders(start: &str, size: u8, rest: &str) -> Vec<String> {
    ["", "a", "l", "al"]
        .map(|order| format!("{start}{order}{} {rest}", letter(size)))
        .into()
}

/// The instruction in every way that it can be written.
fn texts(i: &Instruction) -> Vec<String> {
    match i.action {
        Action::General {
            direction,
            t,
            t2: None,
            size,
            widen,
        } => {
            let text = general(t, size, widen);
            let start = format!("{} {text}", name("r", direction, size, widen));
            let mut all = immediate(i, size, &text, |middle| {
                name(middle, direction, size, widen)
            });
            all.extend(by_register(i, size, &start));
            all.extend(literal(i, &start));
            all.extend(ordered(i, direction, t, size, widen));
            all
        }
        Action::General {
            direction,
            t,
            t2: Some(t2),
            size,
            widen,
        } => {
            let name = of_pair(direction, widen);
            pair(i, name, [t, t2].map(|t| general(t, size, widen)))
        }
        Action::Vector {
            direction,
            t,
            t2,
            size,
        } => {
            let begin = if is_load(direction) { "ld" } else { "st" };
            if let Some(t2) = t2 {
                return pair(i, &format!("{begin}p"), [t, t2].map(|t| vector(t, size)));
            }
            let text = vector(t, size);
            let start = format!("{begin}r {text}");
            let mut all = immediate(i, size, &text, |middle| format!("{begin}{middle}"));
            all.extend(by_register(i, size, &start));
            all.extend(literal(i, &start));
            all
        }
        Action::Structure { .. } => structure(i),
        Action::LoadExclusive { t, t2, size } => {
            let (what, text) = exclusive(t, t2, size);
            ["ldx", "ldax"]
                .map(|begin| format!("{begin}{what} {text}, [{}]", at(i)))
                .into()
        }
        Action::StoreExclusive { s, t, t2, size } => {
            let (what, text) = exclusive(t, t2, size);
            ["stx", "stlx"]
                .map(|begin| format!("{begin}{what} {}, {text}, [{}]", x(s, false), at(i)))
                .into()
        }
        Action::Atomic {
            combine,
            s,
            t,
            size,
        } => {
            let wide = size == 3;
            let rest = format!("{}, {}, [{}]", x(s, wide), x(t, wide), at(i));
            orders(combination(combine), size, &rest)
        }
        Action::CompareSwap { s, t, pair, size } => {
            let wide = size == 3;
            if !pair {
                let rest = format!("{}, {}, [{}]", x(s, wide), x(t, wide), at(i));
                return orders("cas", size, &rest);
            }
            let two = |n| format!("{}, {}", x(n, wide), x(n + 1, wide));
            orders("casp", 2, &format!("{}, {}, [{}]", two(s), two(t), at(i)))
        }
    }
}

fn of_pair(direction: Direction, widen: Widen) -> &'static str {
    match (direction, widen) {
        (Direction::Store, _) => "stp",
        (_, Widen::Zero) => "ldp",
        _ => "ldpsw",
    }
}

/// The base register.
fn at(i: &Instruction) -> String {
    match i.base {
        Base::Register(n) => base(n),
        Base::Pc => String::new(),
    }
}

/// The end of an exclusive access's name, and its registers.
fn exclusive(t: u8, t2: Option<u8>, size: u8) -> (String, String) {
    let wide = size == 3;
    match t2 {
        None => (format!("r{}", letter(size)), x(t, wide)),
        Some(t2) => ("p".into(), format!("{}, {}", x(t, wide), x(t2, wide))),
    }
}

fn combination(combine: Combine) -> &'static str {
    match combine {
        Combine::Add => "ldadd",
        Combine::Clear => "ldclr",
        Combine::Eor => "ldeor",
        Combine::Set => "ldset",
        Combine::Smax => "ldsmax",
        Combine::Smin => "ldsmin",
        Combine::Umax => "ldumax",
        Combine::Umin => "ldumin",
        Combine::Swap => "swp",
    }
}

/// Registers that an assembler will not write so: the architecture leaves open
/// what they do.
fn is_unpredictable(i: &Instruction) -> bool {
    let same = |a: u8, b: Base| b == Base::Register(a) && a != 31;
    let moves = i.index != Index::Offset;
    match i.action {
        Action::General {
            t, t2, direction, ..
        } => {
            let both = t2 == Some(t) && is_load(direction);
            let written = moves && (same(t, i.base) || t2.is_some_and(|t2| same(t2, i.base)));
            both || written
        }
        Action::Vector {
            t, t2, direction, ..
        } => t2 == Some(t) && is_load(direction),
        Action::LoadExclusive { t, t2, .. } => t2 == Some(t),
        Action::StoreExclusive { s, t, t2, .. } => s == t || t2 == Some(s) || same(s, i.base),
        _ => false,
    }
}

/// Should-be-one fields, which the processor does not look at: set.
fn canonical(word: u32, i: &Instruction) -> u32 {
    let s = 0x1f << 16;
    let t2 = 0x1f << 10;
    let plain_group = word >> 24 & 0x3f == 0b00_1000;
    match i.action {
        Action::LoadExclusive { t2: None, .. } => word | s | t2,
        Action::LoadExclusive { .. } => word | s,
        Action::StoreExclusive { t2: None, .. } => word | t2,
        Action::General { .. } if plain_group => word | s | t2,
        // LDAPR.
        Action::General { .. } if word & 0x3f20_fc00 == 0x3820_c000 => word | s,
        _ => word,
    }
}

/// Words of the group that repeat with the seed, some of each form.
fn words() -> Vec<u32> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    // (bits that are set, of these): forms that chance would rarely meet.
    let forms = [
        (0x0800_0000, 0x0a00_0000),
        (0x0800_0000, 0x3f00_0000),
        (0x0820_7c00, 0x3fa0_7c00),
        (0x08a0_7c00, 0x3fa0_7c00),
        (0x0c00_0000, 0xbfbf_0000),
        (0x0c80_0000, 0xbfa0_0000),
        (0x0d00_0000, 0xbf9f_0000),
        (0x0d80_0000, 0xbf80_0000),
        (0x1800_0000, 0x3b00_0000),
        (0x1900_0000, 0x3f20_0c00),
        (0x2800_0000, 0x3a00_0000),
        (0x3800_0000, 0x3b20_0000),
        (0x3820_0000, 0x3b20_0c00),
        (0x3820_c000, 0x3fe0_fc00),
        (0x3820_0800, 0x3b20_0c00),
        (0x3900_0000, 0x3b00_0000),
    ];
    (0..60_000)
        .map(|n| {
            let (set, of) = forms[n % forms.len()];
            next() & !of | set
        })
        .collect()
}

#[test]
fn the_table_reads_what_an_assembler_writes_and_nothing_else() {
    let mut lines = BTreeSet::new();
    let mut read = Vec::new();
    for word in words() {
        let Some(instruction) = decode(word) else {
            continue;
        };
        if is_unpredictable(&instruction) {
            continue;
        }
        let texts = texts(&instruction);
        lines.extend(texts.iter().cloned());
        read.push((word, instruction, texts));
    }
    assert!(read.len() > 20_000, "{} words were read", read.len());
    let lines: Vec<String> = lines.into_iter().collect();
    let assembled = assembler::assemble("armv8.7-a+simd+fp", &lines);
    let word_of: BTreeMap<_, _> = lines.iter().zip(assembled).collect();
    for (word, instruction, texts) in &read {
        for text in texts {
            let other = word_of[text];
            assert_eq!(decode(other), Some(*instruction), "{text}: {other:#010x}");
        }
        let canonical = canonical(*word, instruction);
        assert!(
            texts.iter().any(|text| word_of[text] == canonical),
            "{word:#010x} is read as {instruction:?}, which is {texts:?}"
        );
    }
    let seen: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| name)
        .collect();
    let mut wanted: Vec<String> = MNEMONICS.split_whitespace().map(String::from).collect();
    for start in [
        "ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldsmin", "ldumax", "ldumin", "swp",
    ] {
        for size in [0, 1, 2] {
            wanted.extend(
                orders(start, size, "")
                    .iter()
                    .map(|line| line.trim().into()),
            );
        }
    }
    for name in wanted {
        assert!(seen.contains(&*name), "{name} was never read");
    }
}

/// What is no load or store of a guest's, with the reason that it is none.
#[test]
fn others_are_not_read() {
    let lines: Vec<String> = [
        "prfm pldl1keep, [x0]",
        "prfum pldl1keep, [x0, #-1]",
        "prfm pldl1keep, .+8",
        ".arch_extension pauth\\nldraa x0, [x1]",
        "ldrab x0, [x1, #8]!",
        ".arch_extension memtag\\nstg x0, [x1]",
        "ldg x0, [x1]",
        "stgp x0, x1, [x2]",
        ".arch_extension ls64\\nld64b x0, [x8]",
        "add x0, x1, x2",
        "nop",
        "dc zva, x0",
        "ret",
        "b .",
        "ldr x0, [x1]",
    ]
    .map(String::from)
    .into();
    let words = assembler::assemble("armv8.7-a+simd+fp", &lines);
    let (known, unknown) = words.split_last().expect("there are some");
    for (word, line) in unknown.iter().zip(&lines) {
        assert_eq!(decode(*word), None, "{line}");
    }
    assert!(decode(*known).is_some());
}

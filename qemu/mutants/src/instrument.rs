//! One source with many faults in it: each function that a fault changes has its
//! right body and the wrong ones, and a number chosen at start says which runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use super::patch::Change;

/// The body of a function, and where `const` stands before it.
#[derive(Clone, Debug)]
struct Function {
    body: Range<usize>,
    constant: Option<Range<usize>>,
}

/// Puts faults into a source. A fault is its number and its changes.
///
/// # Errors
/// A change that is in no function.
pub fn instrument(source: &str, faults: &[(usize, Change)]) -> Result<String, String> {
    let functions = functions(source);
    let mut changed: BTreeMap<usize, BTreeMap<usize, Vec<&Change>>> = BTreeMap::new();
    for (number, change) in faults {
        let within = |function: &Function| {
            function.body.start < change.at.start && change.at.end < function.body.end
        };
        let innermost = functions
            .iter()
            .enumerate()
            .filter(|(_, function)| within(function))
            .min_by_key(|(_, function)| function.body.len());
        let Some((index, _)) = innermost else {
            return Err(format!("fault {number} is in no function: {change:?}"));
        };
        let of = changed.entry(index).or_default();
        of.entry(*number).or_default().push(change);
    }
    let mut text = source.to_owned();
    // From the end, so that places before stay where they are.
    for (&index, faults) in changed.iter().rev() {
        let Function { body, constant } = &functions[index];
        let right = &source[body.clone()];
        let mut all = String::from("{ match crate::fault::on() {\n");
        for (number, changes) in faults {
            let mut wrong = right.to_owned();
            let mut changes = changes.clone();
            changes.sort_by_key(|change| std::cmp::Reverse(change.at.start));
            for change in changes {
                let at = change.at.start - body.start..change.at.end - body.start;
                wrong.replace_range(at, &change.new);
            }
            let _ = writeln!(all, "{number} => {wrong}");
        }
        let _ = write!(all, "_ => {right}\n}} }}");
        text.replace_range(body.clone(), &all);
        if let Some(constant) = constant {
            text.replace_range(constant.clone(), "");
        }
    }
    Ok(text)
}

/// The functions of a source.
fn functions(source: &str) -> Vec<Function> {
    let code = code(source);
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let word = |at: usize, word: &str| {
        code[at..].starts_with(word)
            && !bytes[at + word.len()..].first().is_some_and(is_name)
            && (at == 0 || !is_name(&bytes[at - 1]))
    };
    for at in 0..bytes.len() {
        if !word(at, "fn") || !bytes.get(at + 3).is_some_and(is_name) {
            continue;
        }
        let mut depth = 0;
        let head = bytes[at..].iter().position(|byte| {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                _ => (),
            }
            depth == 0 && matches!(byte, b'{' | b';')
        });
        let Some(open) = head.map(|head| at + head).filter(|&at| bytes[at] == b'{') else {
            continue;
        };
        let mut depth = 0;
        let length = bytes[open..].iter().position(|byte| {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => (),
            }
            depth == 0
        });
        let line = code[..at].rfind('\n').map_or(0, |line| line + 1);
        let constant = code[line..at]
            .find("const ")
            .map(|within| line + within..line + within + "const ".len());
        if let Some(length) = length {
            found.push(Function {
                body: open..open + length + 1,
                constant,
            });
        }
    }
    found
}

fn is_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

/// The source with comments and literals blanked, byte for byte.
fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(text) = rest.strip_prefix('"') {
            let mut escaped = false;
            let close = text.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            close.map_or(rest.len(), |close| close + 2)
        } else if let Some(text) = rest.strip_prefix("'\\") {
            text.find('\'').map_or(rest.len(), |close| close + 3)
        } else if rest.starts_with('\'') && bytes.get(at + 2) == Some(&b'\'') {
            3
        } else {
            at += 1;
            while !source.is_char_boundary(at) {
                at += 1;
            }
            continue;
        };
        for byte in &mut out[at..at + end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += end;
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Every function has its right body where no fault is chosen, and the wrong
/// ones where theirs is; nothing else is touched.
#[test]
fn a_function_has_its_right_body_and_the_wrong_ones() {
    let source =
        "// fn no() {\nconst fn f(a: [u8; 2]) -> u8 {\n    let b = '{';\n    a[0]\n}\nfn g() {}\n";
    let line = "    a[0]\n";
    let at = source.find(line).expect("there");
    let change = |new: &str| Change {
        at: at..at + line.len(),
        new: new.into(),
    };
    let faults = [(3, change("    a[1]\n")), (7, change("    0\n"))];
    let text = instrument(source, &faults).expect("in a function");
    assert!(text.contains("\nfn f(a: [u8; 2]) -> u8 { match crate::fault::on() {\n3 => {\n"));
    assert!(text.contains("a[1]") && text.contains("7 => {") && text.contains("_ => {\n"));
    assert!(text.ends_with("fn g() {}\n"));
    let outside = Change {
        at: 0..1,
        new: String::new(),
    };
    assert!(instrument(source, &[(1, outside)]).is_err());
}

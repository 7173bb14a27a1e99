//! What of a Rust crate its image has: the lines of code that are left without
//! comments, and without what a `cfg` leaves out of a build for EL2; and the paths
//! in them.
//!
//! The crate is followed from its roots by `mod`, so that a module of tests in a
//! file of its own is left out like one between braces.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// What the image is built for.
const TARGET: [(&str, &str); 2] = [("target_os", "none"), ("target_arch", "aarch64")];

/// Words that an item begins with, which then ends with `;` or a body.
const ITEMS: [&str; 15] = [
    "fn",
    "impl",
    "mod",
    "struct",
    "enum",
    "union",
    "trait",
    "use",
    "const",
    "static",
    "type",
    "unsafe",
    "extern",
    "let",
    "macro_rules",
];

/// A file of a crate.
#[derive(Debug)]
pub struct Source {
    /// Its module's name, from the root's on; none for the root.
    pub module: Vec<String>,
    /// The file.
    pub file: PathBuf,
    /// How many lines of code it has.
    pub lines: usize,
    /// The paths in it that begin with `crate`, `self` or `super`.
    pub paths: Vec<UsedPath>,
}

/// A path, as the code has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedPath {
    /// Modules between braces that it stands in.
    pub within: Vec<String>,
    /// Its names: `crate`, `memory`, `host`.
    pub names: Vec<String>,
    /// The line.
    pub line: usize,
}

/// The lines of code of the crate whose roots these are (`lib.rs`, `main.rs`).
///
/// # Errors
/// When a file is not there, or is no Rust.
pub fn lines(roots: &[PathBuf]) -> Result<usize> {
    Ok(read(roots)?.iter().map(|source| source.lines).sum())
}

/// The files of the crate whose roots these are.
///
/// # Errors
/// As for [`lines`].
pub fn read(roots: &[PathBuf]) -> Result<Vec<Source>> {
    let mut files: Vec<(PathBuf, Vec<String>)> = roots
        .iter()
        .map(|root| (root.clone(), Vec::new()))
        .collect();
    let mut known: BTreeSet<PathBuf> = roots.iter().cloned().collect();
    let mut all = Vec::new();
    while let Some((file, module)) = files.pop() {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let code = Code::of(&text).with_context(|| file.display().to_string())?;
        for inner in &code.modules {
            let file = module_file(&file, roots.contains(&file), inner)?;
            if known.insert(file.clone()) {
                let name = [
                    &module[..],
                    &inner.within,
                    std::slice::from_ref(&inner.name),
                ];
                files.push((file, name.concat()));
            }
        }
        all.push(Source {
            module,
            file,
            lines: code.lines.len(),
            paths: code.paths,
        });
    }
    Ok(all)
}

/// The file of a module that is declared in `file`.
fn module_file(file: &Path, root: bool, module: &Module) -> Result<PathBuf> {
    let folder = file.parent().context("a file has a folder")?;
    if let Some(path) = &module.path {
        return Ok(folder.join(path));
    }
    let owns_folder = root || file.ends_with("mod.rs");
    let mut folder = if owns_folder {
        folder.to_path_buf()
    } else {
        file.with_extension("")
    };
    folder.extend(&module.within);
    let name = &module.name;
    let places = [
        folder.join(format!("{name}.rs")),
        folder.join(name).join("mod.rs"),
    ];
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| format!("{}: there is no file of `mod {name}`", file.display()))
}

/// A module in a file of its own.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    name: String,
    /// Modules between braces that it is declared in.
    within: Vec<String>,
    /// `#[path]`.
    path: Option<String>,
}

/// What a file has.
#[derive(Debug, Default)]
struct Code {
    lines: BTreeSet<usize>,
    modules: Vec<Module>,
    paths: Vec<UsedPath>,
}

impl Code {
    fn of(text: &str) -> Result<Self> {
        let tokens = TokenStream::from_str(text).map_err(|error| anyhow!("no Rust: {error}"))?;
        let mut code = Self::default();
        let tokens: Vec<_> = tokens.into_iter().collect();
        // A file as a whole can be left out by `#![cfg(…)]`.
        let left_out = tokens.windows(3).any(|window| match window {
            [first, second, TokenTree::Group(group)] if is(first, '#') && is(second, '!') => {
                attribute(group.stream()) == Attribute::LeavesOut
            }
            _ => false,
        });
        if !left_out {
            code.take(&tokens, &[]);
        }
        Ok(code)
    }

    fn take(&mut self, tokens: &[TokenTree], within: &[String]) {
        let mut at = 0;
        let mut path = None;
        while at < tokens.len() {
            if let [first, TokenTree::Group(group), ..] = &tokens[at..]
                && is(first, '#')
                && group.delimiter() == Delimiter::Bracket
            {
                match attribute(group.stream()) {
                    Attribute::LeavesOut => at = item_end(tokens, at),
                    Attribute::Documentation => at += 2,
                    Attribute::Path(text) => {
                        path = Some(text);
                        at += 2;
                    }
                    Attribute::Other => {
                        self.add(first);
                        self.add(&tokens[at + 1]);
                        at += 2;
                    }
                }
                continue;
            }
            // `#!` of documentation.
            if let [first, second, TokenTree::Group(group), ..] = &tokens[at..]
                && is(first, '#')
                && is(second, '!')
                && attribute(group.stream()) == Attribute::Documentation
            {
                at += 3;
                continue;
            }
            if let [TokenTree::Ident(word), TokenTree::Ident(name), after, ..] = &tokens[at..]
                && word == "mod"
            {
                let (name, path) = (name.to_string(), path.take());
                if is(after, ';') {
                    self.modules.push(Module {
                        name,
                        within: within.to_vec(),
                        path,
                    });
                } else if let TokenTree::Group(body) = after {
                    let body: Vec<_> = body.stream().into_iter().collect();
                    let within = [within, &[name]].concat();
                    self.take_group(after);
                    self.take(&body, &within);
                    self.lines.insert(word.span().start().line);
                    at += 3;
                    continue;
                }
            }
            if starts_path(&tokens[at..]) {
                let line = tokens[at].span().start().line;
                for names in paths(&tokens[at..]) {
                    self.paths.push(UsedPath {
                        within: within.to_vec(),
                        names,
                        line,
                    });
                }
            }
            self.add_within(&tokens[at], within);
            at += 1;
        }
    }

    fn add_within(&mut self, token: &TokenTree, within: &[String]) {
        match token {
            TokenTree::Group(group) => {
                self.take_group(token);
                let inner: Vec<_> = group.stream().into_iter().collect();
                self.take(&inner, within);
            }
            _ => self.add(token),
        }
    }

    /// The lines of a group's delimiters.
    fn take_group(&mut self, group: &TokenTree) {
        self.lines.insert(group.span().start().line);
        self.lines.insert(group.span().end().line);
    }

    /// All lines of a token, such as a text of several.
    fn add(&mut self, token: &TokenTree) {
        let span = token.span();
        self.lines.extend(span.start().line..=span.end().line);
    }
}

/// Whether a path of this crate begins here.
fn starts_path(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Ident(word), rest @ ..] = tokens else {
        return false;
    };
    (word == "crate" || word == "self" || word == "super") && begins_with_colons(rest)
}

fn begins_with_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [first, second, ..] if is(first, ':') && is(second, ':'))
}

/// The paths that begin with the first token: more than one where they go on
/// between braces.
fn paths(tokens: &[TokenTree]) -> Vec<Vec<String>> {
    match tokens {
        [TokenTree::Ident(name), rest @ ..] => {
            let name = name.to_string();
            let mut all = if begins_with_colons(rest) {
                paths(&rest[2..])
            } else {
                Vec::new()
            };
            if all.is_empty() {
                all.push(Vec::new());
            }
            for path in &mut all {
                path.insert(0, name.clone());
            }
            all
        }
        [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<_> = group.stream().into_iter().collect();
            inner
                .split(|token| is(token, ','))
                .flat_map(paths)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// What an attribute does to what follows.
#[derive(Debug, PartialEq, Eq)]
enum Attribute {
    LeavesOut,
    Documentation,
    Path(String),
    Other,
}

fn attribute(tokens: TokenStream) -> Attribute {
    let tokens: Vec<_> = tokens.into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(word), ..] if word == "doc" => Attribute::Documentation,
        [TokenTree::Ident(word), TokenTree::Group(group)] if word == "cfg" => {
            if holds(&group.stream().into_iter().collect::<Vec<_>>()) {
                Attribute::Other
            } else {
                Attribute::LeavesOut
            }
        }
        [TokenTree::Ident(word), sign, TokenTree::Literal(text)]
            if word == "path" && is(sign, '=') =>
        {
            Attribute::Path(text.to_string().trim_matches('"').into())
        }
        _ => Attribute::Other,
    }
}

/// Whether a predicate of `cfg` holds in the image; features are off there.
fn holds(tokens: &[TokenTree]) -> bool {
    match tokens {
        [TokenTree::Ident(word), TokenTree::Group(group)] => {
            let inner: Vec<_> = group.stream().into_iter().collect();
            let mut parts = inner
                .split(|token| is(token, ','))
                .filter(|part| !part.is_empty());
            match word.to_string().as_str() {
                "not" => !parts.any(holds),
                "all" => parts.all(holds),
                "any" => parts.any(holds),
                _ => false,
            }
        }
        [TokenTree::Ident(key), sign, TokenTree::Literal(value)] if is(sign, '=') => {
            let value = value.to_string();
            let pair = (key.to_string(), value.trim_matches('"'));
            TARGET
                .iter()
                .any(|(key, value)| pair.0 == *key && pair.1 == *value)
        }
        _ => false,
    }
}

/// Where an item ends whose attribute stands at `at`.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    let mut at = at;
    // This attribute, and those behind it.
    while at + 1 < tokens.len() && is(&tokens[at], '#') {
        at += 2;
    }
    let words = tokens[at..].iter().find_map(|token| match token {
        TokenTree::Ident(word) if word != "pub" => Some(word.to_string()),
        TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => None,
        TokenTree::Ident(_) => None,
        _ => Some(String::new()),
    });
    let is_item = words.is_some_and(|word| ITEMS.contains(&word.as_str()));
    let mut angles = 0i32;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            // `use a::{b};` and `let x = S {};` go on.
            TokenTree::Group(group)
                if group.delimiter() == Delimiter::Brace
                    && !tokens.get(at).is_some_and(|next| is(next, ';')) =>
            {
                return at;
            }
            TokenTree::Punct(sign) => match sign.as_char() {
                ';' => return at,
                ',' if !is_item && angles <= 0 => return at,
                '<' => angles += 1,
                '>' if !is_arrow(tokens, at - 1) => angles -= 1,
                _ => {}
            },
            _ => {}
        }
    }
    at
}

/// Whether the `>` at `at` is the head of `->` or `=>`.
fn is_arrow(tokens: &[TokenTree], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| tokens.get(before));
    matches!(before, Some(TokenTree::Punct(sign))
        if sign.spacing() == Spacing::Joint && matches!(sign.as_char(), '-' | '='))
}

fn is(token: &TokenTree, sign: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        Code::of(text).expect("Rust").lines.len()
    }

    #[test]
    fn comments_and_blank_lines_are_no_code() {
        assert_eq!(count("//! a\n\n/* b\nc */\n/// d\nfn f() {}\n"), 1);
        assert_eq!(
            count("fn f() {\n    // a\n    g(\n        1,\n    );\n}\n"),
            5
        );
        assert_eq!(count("const A: &str = \"\n// text\n\n\";\n"), 4);
        assert_eq!(count("#[inline]\nfn f() {}\n"), 2);
    }

    #[test]
    fn what_the_image_has_not_is_left_out() {
        for text in [
            "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n",
            "#[cfg(test)]\n#[allow(x)]\nmod tests;\n",
            "#[cfg(not(target_os = \"none\"))]\npub fn f<A, B>(a: A) -> B\nwhere A: C, B: D {\n}\n",
            "#[cfg(feature = \"extra\")]\npub(crate) use a::{\n    b,\n    c,\n};\n",
            "#[cfg(any(test, feature = \"toy\"))]\nconst A: u8 = 1;\n",
            "#[cfg(all(test, target_os = \"none\"))]\nimpl<A, B> C for D<A, B> {\n}\n",
            "#![cfg(test)]\nfn f() {}\n",
        ] {
            assert_eq!(count(text), 0, "{text}");
        }
        for (text, lines) in [
            ("#[cfg(target_os = \"none\")]\nfn f() {}\n", 2),
            ("#[cfg(not(test))]\nfn f() {}\n", 2),
            (
                "struct S {\n    #[cfg(test)]\n    a: B<C, D>,\n    e: u8,\n}\n",
                3,
            ),
            ("fn f() {\n    #[cfg(test)]\n    g();\n    h();\n}\n", 3),
            (
                "fn f() {\n    g(\n        #[cfg(test)]\n        a,\n        b,\n    );\n}\n",
                5,
            ),
            ("#[cfg(test)]\nfn f() -> u8 {\n    1\n}\nfn g() {}\n", 1),
        ] {
            assert_eq!(count(text), lines, "{text}");
        }
    }

    #[test]
    fn paths_of_the_crate_are_found_where_they_are_built() {
        let text = "use crate::a::{self, b::C, d};\nuse other::e;\n\
                    #[cfg(test)]\nuse crate::f;\nmod g {\n    use super::h::*;\n}\n\
                    fn i() -> crate::j::K {\n    self::l(self.m, $crate::n)\n}\n";
        let code = Code::of(text).expect("Rust");
        let found: Vec<_> = code
            .paths
            .iter()
            .map(|path| (path.names.join("::"), path.within.len(), path.line))
            .collect();
        let right = [
            ("crate::a::self", 0, 1),
            ("crate::a::b::C", 0, 1),
            ("crate::a::d", 0, 1),
            ("super::h", 1, 6),
            ("crate::j::K", 0, 8),
            ("self::l", 0, 9),
            ("crate::n", 0, 9),
        ];
        assert_eq!(
            found,
            right.map(|(path, within, line)| (path.into(), within, line))
        );
    }

    #[test]
    fn modules_are_followed_where_they_are_built() {
        let code = Code::of(
            "mod a;\n#[cfg(test)]\nmod b;\nmod c {\n    mod d;\n}\n#[path = \"x.rs\"]\nmod e;\n",
        );
        let modules = code.expect("Rust").modules;
        let names: Vec<_> = modules
            .iter()
            .map(|m| (m.name.as_str(), m.within.len()))
            .collect();
        assert_eq!(names, [("a", 0), ("d", 1), ("e", 0)]);
        assert_eq!(modules[2].path.as_deref(), Some("x.rs"));
    }
}

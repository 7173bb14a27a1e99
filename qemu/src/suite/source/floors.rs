//! Rooms stand on floors: a module names none that stands above it, and no
//! modules name each other in a circle.
//!
//! The first-level modules of a crate are its rooms, and the tables of
//! `docs/architecture.md` say on which floor each stands. Rooms of one floor do not
//! name each other. Within a room, and in each module of it, the parts may stand in
//! any order, but in no circle; a module and its own parts are one idea, and may
//! name each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::super::{Context, Counts, Outcome};
use super::rust::{self, Source};

/// The crates that are looked at, by the folder of their sources.
const CRATES: [&str; 2] = ["hyp/src", "host-loader/src"];

/// Where the floors are written down.
const PAGE: &str = "docs/architecture.md";

/// The room of a program, which is all that its library's rooms do not know.
const PROGRAM: &str = "main";

/// Asks that no import leads up, and none round.
///
/// # Errors
/// Names each that does.
pub fn check(context: &Context) -> Result<Outcome> {
    let root = &context.workspace.root;
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let (mut table, mut wrong) = (String::new(), String::new());
    for folder in CRATES {
        let floors = Floors::of_page(&page, folder)?;
        let found = Crate::read(&root.join(folder))?.judge(&floors);
        // A String takes all that is written.
        let _ = writeln!(table, "{folder}: {}", found.summary());
        for line in &found.wrong {
            let _ = writeln!(wrong, "{folder}/{line}");
        }
    }
    ensure!(
        wrong.is_empty(),
        "{table}{wrong}what a lower floor needs is handed down, or stands below it; the \
         floors stand in {PAGE}"
    );
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(table.trim_end().into()),
        ..Outcome::default()
    })
}

/// On which floor each room stands: the first is the top.
struct Floors(Vec<Vec<String>>);

impl Floors {
    /// The table of a page whose head names this folder: rooms in the first cell of
    /// each row.
    fn of_page(page: &str, folder: &str) -> Result<Self> {
        let head = format!("| `{folder}`");
        let rows = page.lines().skip_while(|line| !line.starts_with(&head));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        let rooms = |row: &str| {
            let cell = row.split('|').nth(1).unwrap_or_default();
            let names = cell.split('`').skip(1).step_by(2);
            names.map(str::to_string).collect()
        };
        let floors: Vec<_> = rows.map(rooms).collect();
        ensure!(!floors.is_empty(), "{PAGE} has no floors of {folder}");
        Ok(Self(floors))
    }

    fn of(&self, room: &str) -> Option<usize> {
        self.0
            .iter()
            .position(|floor| floor.iter().any(|r| r == room))
    }
}

/// One module names another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: Vec<String>,
    to: Vec<String>,
    /// File and line.
    place: String,
}

/// A crate's modules and what they name.
struct Crate {
    modules: BTreeSet<Vec<String>>,
    imports: BTreeSet<Import>,
}

/// What there was to see, and what of it is wrong.
#[derive(Debug, Default)]
struct Found {
    rooms: usize,
    modules: usize,
    imports: usize,
    upward: usize,
    circles: usize,
    wrong: Vec<String>,
}

impl Found {
    fn summary(&self) -> String {
        format!(
            "{} rooms, {} modules, {} imports; {} upward, {} circles",
            self.rooms, self.modules, self.imports, self.upward, self.circles
        )
    }
}

impl Crate {
    /// The library in a folder, and the program beside it, if there is one.
    fn read(folder: &Path) -> Result<Self> {
        let library = rust::read(&[folder.join("lib.rs")])?;
        let program = folder.join("main.rs");
        let program = if program.is_file() {
            rust::read(&[program])?
        } else {
            Vec::new()
        };
        Ok(Self::of(folder, library, program))
    }

    fn of(folder: &Path, mut sources: Vec<Source>, program: Vec<Source>) -> Self {
        for mut source in program {
            source.module.insert(0, PROGRAM.into());
            for path in &mut source.paths {
                if path.names[0] == "crate" {
                    path.names.insert(1, PROGRAM.into());
                }
            }
            sources.push(source);
        }
        let modules: BTreeSet<Vec<String>> = sources.iter().map(|s| s.module.clone()).collect();
        let mut imports = BTreeSet::new();
        for source in &sources {
            let file = source.file.strip_prefix(folder).unwrap_or(&source.file);
            for path in &source.paths {
                let from = [&source.module[..], &path.within].concat();
                let Some(name) = resolve(&from, &path.names) else {
                    continue;
                };
                let mut to = (0..=name.len()).rev().map(|n| &name[..n]);
                let to = to.find(|name| modules.contains(*name));
                let to = to.unwrap_or_default().to_vec();
                if to != source.module {
                    imports.insert(Import {
                        from: source.module.clone(),
                        to,
                        place: format!("{}:{}", file.display(), path.line),
                    });
                }
            }
        }
        Self { modules, imports }
    }

    fn judge(&self, floors: &Floors) -> Found {
        let rooms: BTreeSet<&str> = self
            .modules
            .iter()
            .filter_map(|module| module.first().map(String::as_str))
            .collect();
        let mut found = Found {
            rooms: rooms.len(),
            modules: self.modules.len(),
            imports: self.imports.len(),
            ..Found::default()
        };
        for room in &rooms {
            if floors.of(room).is_none() {
                found.wrong.push(format!("{room} stands on no floor"));
            }
        }
        for room in floors.0.iter().flatten() {
            if !rooms.contains(room.as_str()) {
                found
                    .wrong
                    .push(format!("{room} is on a floor and not there"));
            }
        }
        self.upward(floors, &mut found);
        let above: BTreeSet<&[String]> = self
            .modules
            .iter()
            .filter_map(|module| module.split_last().map(|(_, above)| above))
            .collect();
        for module in above {
            for circle in self.circles(module) {
                found.circles += 1;
                found.wrong.push(circle);
            }
        }
        found
    }

    /// Imports from a room to one on its own floor or above it.
    fn upward(&self, floors: &Floors, found: &mut Found) {
        for Import { from, to, place } in &self.imports {
            let Some(room) = from.first() else {
                continue; // the root names all
            };
            let wrong = match to.first() {
                None => true,
                Some(other) if other == room => false,
                Some(other) => match (floors.of(room), floors.of(other)) {
                    (Some(here), Some(there)) => there <= here,
                    _ => false,
                },
            };
            if wrong {
                found.upward += 1;
                let to = name(to);
                found
                    .wrong
                    .push(format!("{place}: {room} names {to}, which is no lower"));
            }
        }
    }

    /// The circles among the parts of a module, each with the imports that make it.
    fn circles(&self, module: &[String]) -> Vec<String> {
        let depth = module.len();
        let part = |name: &[String]| {
            let is_below = name.len() > depth && name.starts_with(module);
            is_below.then(|| name[depth].clone())
        };
        let mut names: BTreeMap<String, BTreeMap<String, &Import>> = BTreeMap::new();
        for import in &self.imports {
            if let (Some(from), Some(to)) = (part(&import.from), part(&import.to))
                && from != to
            {
                names.entry(from).or_default().entry(to).or_insert(import);
            }
        }
        let mut circles = Vec::new();
        let mut done = BTreeSet::new();
        for start in names.keys() {
            if done.contains(start) {
                continue;
            }
            let reached = reach(&names, start);
            let members: BTreeSet<String> = reached
                .into_iter()
                .filter(|other| reach(&names, other).contains(start))
                .collect();
            if members.is_empty() {
                continue;
            }
            let mut text = format!("{}: a circle of", name(module));
            for member in &members {
                let _ = write!(text, " {member}");
            }
            for (from, to) in members.iter().flat_map(|from| {
                let inside = names[from].iter().filter(|(to, _)| members.contains(*to));
                inside.map(move |to| (from, to))
            }) {
                let _ = write!(text, "\n  {}: {from} names {}", to.1.place, to.0);
            }
            circles.push(text);
            done.extend(members);
        }
        circles
    }
}

/// All that can be come to from a part by its imports.
fn reach(names: &BTreeMap<String, BTreeMap<String, &Import>>, start: &str) -> BTreeSet<String> {
    let (mut all, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(at) = open.pop() {
        for to in names.get(at).into_iter().flat_map(BTreeMap::keys) {
            if all.insert(to.clone()) {
                open.push(to);
            }
        }
    }
    all
}

/// The name of what a path in `module` leads to, from the root on.
fn resolve(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    while let [first, after @ ..] = rest {
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop()?;
            }
            _ => break,
        }
        rest = after;
    }
    base.extend(rest.iter().filter(|name| *name != "self").cloned());
    Some(base)
}

fn name(module: &[String]) -> String {
    if module.is_empty() {
        "the crate's root".into()
    } else {
        module.join("::")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "text\n\n| `made/up`, from the top | holds |\n|---|---|\n\
                        | `main` | |\n| `upper` | it names `cpu` |\n| `left` `right` | |\n\
                        | `cpu` | |\n\n| other | |\n";

    /// What is found in a crate of these files.
    fn found(files: &[(&str, &str)]) -> Found {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in files {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().expect("inside")).expect("a folder");
            fs::write(file, text).expect("a file");
        }
        let floors = Floors::of_page(PAGE, "made/up").expect("floors");
        Crate::read(folder.path()).expect("Rust").judge(&floors)
    }

    const SOUND: [(&str, &str); 7] = [
        (
            "lib.rs",
            "pub mod upper;\npub mod left;\npub mod right;\npub mod cpu;\n",
        ),
        ("main.rs", "mod boot;\n"),
        ("boot.rs", "use crate::helper;\n"),
        ("upper.rs", "use crate::left::A;\nuse crate::right::B;\n"),
        (
            "left.rs",
            "use crate::cpu;\n#[cfg(test)]\nuse crate::upper::C;\n",
        ),
        ("right.rs", "fn f() {\n    crate::cpu::pe::g();\n}\n"),
        ("cpu/mod.rs", "pub mod pe;\npub use self::pe::g;\n"),
    ];

    /// The sound crate with a file changed, and one that each has.
    fn with(file: &str, text: &str, pe: &str) -> Found {
        let mut files: Vec<_> = SOUND
            .into_iter()
            .filter(|(name, _)| *name != file)
            .collect();
        files.extend([(file, text), ("cpu/pe.rs", pe)]);
        found(&files)
    }

    #[test]
    fn what_leads_down_is_sound() {
        let sound = with("upper.rs", SOUND[3].1, "use super::Cpu;\n");
        assert_eq!(sound.wrong, [""; 0]);
        assert_eq!((sound.rooms, sound.modules), (5, 8));
    }

    #[test]
    fn an_import_of_a_higher_floor_is_found() {
        let up = with("right.rs", "\nuse crate::{cpu, upper::D};\n", "");
        assert_eq!((up.upward, up.circles), (1, 1), "{:?}", up.wrong);
        assert!(
            up.wrong[0].contains("right.rs:2: right names upper"),
            "{:?}",
            up.wrong
        );
        assert!(
            up.wrong[1].contains("a circle of right upper"),
            "{:?}",
            up.wrong
        );
        let beside = with("right.rs", "use super::left::A;\n", "");
        assert_eq!(
            (beside.upward, beside.circles),
            (1, 0),
            "{:?}",
            beside.wrong
        );
        let root = with("right.rs", "use crate::System;\n", "");
        assert_eq!((root.upward, root.circles), (1, 0), "{:?}", root.wrong);
        let inside = with(
            "cpu/mod.rs",
            "pub mod pe;\n",
            "fn f(d: &crate::upper::D) {}\n",
        );
        assert_eq!(inside.upward, 1, "{:?}", inside.wrong);
    }

    #[test]
    fn a_circle_within_a_room_is_found() {
        let parts = "pub mod a;\npub mod b;\npub mod pe;\n";
        let of = |a: &str| {
            let mut files = SOUND.to_vec();
            files.retain(|(name, _)| *name != "cpu/mod.rs");
            files.extend([
                ("cpu/mod.rs", parts),
                ("cpu/a.rs", a),
                ("cpu/b.rs", "use super::pe;\n"),
                ("cpu/pe.rs", "mod inner {\n    use super::super::a::A;\n}\n"),
            ]);
            found(&files)
        };
        let round = of("use crate::cpu::b;\n");
        assert_eq!((round.upward, round.circles), (0, 1), "{:?}", round.wrong);
        assert!(
            round.wrong[0].contains("cpu: a circle of a b pe"),
            "{:?}",
            round.wrong
        );
        assert!(
            round.wrong[0].contains("cpu/pe.rs:2: pe names a"),
            "{:?}",
            round.wrong
        );
        assert_eq!(of("").circles, 0);
    }

    #[test]
    fn every_room_stands_on_a_floor_and_every_floor_has_its_rooms() {
        let mut files = SOUND.to_vec();
        files[0].1 = "pub mod upper;\npub mod left;\npub mod attic;\npub mod cpu;\n";
        files.extend([("cpu/pe.rs", ""), ("attic.rs", "")]);
        files[3].1 = "";
        let wrong = found(&files).wrong;
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("attic stands on no floor"), "{wrong:?}");
        assert!(wrong[1].contains("right is on a floor"), "{wrong:?}");
    }
}

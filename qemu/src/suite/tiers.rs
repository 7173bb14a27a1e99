//! Which cases are left to the full tier: those of a kind that another of its kind, or
//! the matrix, stands for at each change. A case that is for the full tier by what it
//! is says so where it is made.

use super::{Case, Tier};

/// Cases by their names, `*` for anything, and what stands for them.
const LEFT_TO_FULL: &[(&str, &str)] = &[
    ("boots/debian1*-smp1", "boots/debian13-smp4"),
    ("boots/debian1*-smp2", "boots/debian13-smp4"),
    ("boots/debian12-cortex-a72", "matrix/"),
    ("boots/debian12-max", "matrix/"),
    ("boots/debian12-neoverse-n1", "matrix/"),
    ("boots/debian13-granule-*", "matrix/"),
    ("boots/eager-*", "matrix/"),
    ("boots/lazy-*", "matrix/"),
    ("boots/protected-16k-max", "matrix/"),
    (
        "boots/protected-4k-cortex-a72",
        "boots/protected-64k-cortex-a72",
    ),
    ("boots/protected-64k-max", "matrix/"),
    ("boots/protected-debian12", "matrix/"),
    ("boots/protected-eager", "matrix/"),
    ("boots/protected-smp4", "matrix/"),
    (
        "proof/mutants*",
        "the tests that notice them: crate/pgtable, crate/hyp",
    ),
    ("realms/tiny-*", "matrix/"),
    ("shares/beside-doze", "shares/beside-wfi"),
    ("shares/beside-exits", "shares/beside-console"),
    ("shares/beside-nap", "shares/beside-wfi"),
    ("shares/beside-physical", "shares/beside-console"),
    ("shares/beside-psci", "shares/beside-console"),
    (
        "shares/beside-resets-max",
        "shares/beside-resets-cortex-a72",
    ),
    ("shares/beside-sgi", "shares/beside-console"),
    ("shares/beside-sleep", "shares/beside-wfi"),
    ("shares/beside-suspend", "shares/beside-wfi"),
    ("stays-up/ten-resets", "realms/three-reboots"),
    ("tests/conformance-n1", "tests/conformance-a72"),
    ("tests/conformance-smp1", "tests/conformance-smp4"),
    ("tests/conformance-smp2", "tests/conformance-smp4"),
    (
        "tests/el2-tables-max,lpa2=off-smp4",
        "tests/el2-tables-max-smp4",
    ),
    ("tests/el2-tables-max-smp1", "tests/el2-tables-max-smp4"),
    ("tests/el2-tables-neoverse-*", "tests/el2-tables-max-smp4"),
    (
        "tests/hostile-absent-cortex-a72-*",
        "tests/hostile-absent-max-64k",
    ),
    (
        "tests/hostile-absent-max-4k",
        "tests/hostile-absent-max-64k",
    ),
    (
        "tests/hostile-host-lrs-4k-smp1",
        "tests/hostile-host-lrs-4k-smp2",
    ),
    (
        "tests/hostile-host-lrs-16k-smp2",
        "tests/hostile-host-lrs-64k-smp2",
    ),
    (
        "tests/hostile-masters-cortex-a72-4k",
        "tests/hostile-masters-cortex-a72-64k",
    ),
    (
        "tests/hostile-masters-max-*",
        "tests/hostile-masters-cortex-a72-64k",
    ),
    ("tests/hostile-smp1", "tests/hostile-smp4"),
];

/// Whether a name is one of a pattern's.
fn is_of(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        last = Some(part);
    }
    last.map_or(rest.is_empty(), |part| {
        part.is_empty() || name.ends_with(part)
    })
}

/// Leaves to the full tier what something stands for.
pub fn settle(cases: &mut [Case]) {
    for case in cases {
        if LEFT_TO_FULL.iter().any(|(of, _)| is_of(&case.name, of)) {
            case.tier = Tier::Full;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    #[test]
    fn a_pattern_is_a_name_with_anything_in_it() {
        assert!(is_of("a/b", "a/b") && is_of("a/b-c", "a/*") && is_of("a/b-c", "a/*-c"));
        assert!(!is_of("a/b-c", "a/b") && !is_of("a/b", "a/b-*") && !is_of("x", "a/*"));
        assert!(is_of("a/b1-s1", "a/b*-s1") && !is_of("a/b1-s2", "a/b*-s1"));
    }

    #[test]
    fn something_is_there_at_each_change_that_stands_for_what_is_not() {
        let workspace = Workspace::find().expect("these are its tests");
        let cases = crate::suite::all(&workspace, Tier::Quick);
        for (of, stands) in LEFT_TO_FULL {
            assert!(cases.iter().any(|case| is_of(&case.name, of)), "{of}");
            for stands in stands.split(": ").last().unwrap_or_default().split(", ") {
                let found = cases
                    .iter()
                    .find(|case| case.name.starts_with(stands) && case.tier == Tier::Quick);
                assert!(found.is_some(), "{stands} for {of}");
            }
        }
    }
}

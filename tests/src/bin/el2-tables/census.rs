//! Whether every table counts its entries rightly.

use pgtable::{Budget, Entry, Ipa, Next, Pa, Stage2, TableMem, Visit};

use crate::memory::Pool;
use crate::text::Name;

/// Each table counts its entries that are not zero.
pub fn counts(tree: &Stage2<&Pool>, pool: &Pool) -> Result<(), Name> {
    let geometry = tree.geometry();
    let mut wrong = None;
    let mut check = |table: Pa, entries: usize| {
        let (held, count) = (pool.held(table, entries), pool.count(table));
        if held != count {
            wrong.get_or_insert((table, held, count));
        }
    };
    check(tree.root(), geometry.shape().root_entries());
    let entries = geometry.granule().entries();
    let end = 1u64 << geometry.ipa_bits();
    let walked = tree.walk(Ipa::new(0), end, &mut Budget::unlimited(), |seen| {
        if let (Visit::TablePre, Entry::Table(table)) = (seen.visit, seen.entry) {
            check(table, entries);
        }
        Next::Descend
    });
    if walked != Ok(Ipa::new(end)) {
        return Err(Name::new(format_args!("walk: {walked:?}")));
    }
    match wrong {
        None => Ok(()),
        Some((table, held, count)) => Err(Name::new(format_args!(
            "table {table} holds {held} and counts {count}"
        ))),
    }
}

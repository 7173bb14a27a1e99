//! Points at which somebody outside looks at the machine's memory, all at once: where
//! the word `audit=1` says that there is one, who types a byte when it is done.

use tests::bare::{machine, pl011};
use tests::println;

/// Stands still until it is done. `name`: what the machine is in the middle of.
pub fn point(name: &str) {
    let machine = machine::get();
    if machine.argument("audit") == Some("1") {
        println!("audit {name}");
        pl011::flush(machine.uart);
        pl011::get(machine.uart);
    }
}

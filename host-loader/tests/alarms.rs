//! Whether any clock has an alarm to come, of all that a process has: so this is a process
//! of its own.

use arm64::recording;
use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};
use host_loader::alarm::{WallClock, is_any};
use host_loader::clock::Time;
use std::sync::Arc;

const MR: u64 = 4;
const IMSC: u64 = 0x10;

/// Nobody looks after alarms of which there are none any more: they came, or their guest
/// went.
#[test]
fn who_has_an_alarm_is_counted_for_as_long() {
    recording::reset();
    recording::set(CNTFRQ_EL0, 1);
    recording::answer_calls(Box::new(|_| [0; 5]));
    let clock = || WallClock::new(Arc::default(), Time::from_unix(1000), (0x5000, 34));
    let (one, other) = (clock(), clock());
    assert!(!is_any());
    for clock in [&one, &other] {
        clock.write(IMSC, 4, 1);
        clock.write(MR, 4, 1010);
        // The same again is one.
        clock.write(MR, 4, 1020);
    }
    assert!(is_any());
    drop(one);
    assert!(is_any(), "the other's");
    recording::set(CNTPCT_EL0, 20);
    other.look();
    assert!(!is_any(), "it has come");
    other.write(MR, 4, 1030);
    assert!(is_any());
    other.write(IMSC, 4, 0);
    assert!(!is_any(), "nobody would hear of it");
    other.write(IMSC, 4, 1);
    drop(other);
    assert!(!is_any());
}

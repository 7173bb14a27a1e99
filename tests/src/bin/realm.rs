//! A realm that shares its memory and takes it back (RSI 1.0), and looks at what it
//! finds on either side. The word `granule=` of its command line is EL2's granule in
//! bytes: of a larger one than RSI's it shares parts.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use core::ops::Range;
    use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rmi::rsi::{ACCEPT, Code, GRANULE, REJECT};
    use tests::bare::console::Console;
    use tests::bare::{asm, cpu, exception, machine, rsi};
    use tests::suite::Suite;

    const EMPTY: u64 = 0;
    const RAM: u64 = 1;
    const MIB: u64 = 1 << 20;

    /// The checks' numbers.
    type Checks = Suite<Console>;

    /// A word, if there is memory.
    fn read(at: u64) -> Option<u64> {
        // SAFETY: memory that the checks alone use, or an abort.
        exception::probe(|| unsafe { asm::read64(at) }).ok()
    }

    fn write(at: u64, value: u64) -> bool {
        // SAFETY: As above.
        exception::probe(|| unsafe { asm::write64(at, value) }).is_ok()
    }

    /// What stands at the begin of each page of RSI's.
    fn all(range: &Range<u64>, is: impl Fn(u64) -> Option<u64>) -> bool {
        let mut pages = range.clone().step_by(GRANULE as usize);
        pages.all(|at| read(at) == is(at))
    }

    fn fill(range: &Range<u64>, with: u64) -> bool {
        let mut pages = range.clone().step_by(GRANULE as usize);
        pages.all(|at| write(at, at ^ with))
    }

    /// The same addresses in the half that is shared.
    fn other(range: &Range<u64>, shared: u64) -> Range<u64> {
        range.start + shared..range.end + shared
    }

    pub fn main() {
        let mut suite = Suite::new(Console);
        let machine = machine::get();
        let Some(bits) = rsi::ipa_bits() else {
            suite.check("realm/is-one", false, "RSI is not there");
            return;
        };
        let shared = 1 << (bits - 1);
        let granule = machine.argument("granule").and_then(|g| g.parse().ok());
        let granule: u64 = granule.unwrap_or(GRANULE);
        suite.check("realm/is-one", machine.uart >= shared, bits);
        let end = machine.ram_end();
        // Far from the program and its tree.
        let area = end - 8 * MIB..end;
        whole(&mut suite, area.start..area.start + 4 * MIB, shared);
        let piece = area.start..area.start + 2 * MIB;
        again(&mut suite, &piece, shared, granule > GRANULE);
        parts(&mut suite, area.start + 6 * MIB, shared, granule);
        outside(&mut suite, end);
        host_call(&mut suite);
        if cpu::count() > 1 {
            together(&mut suite, area.start + 4 * MIB, shared);
        }
        suite.finish();
    }

    /// Two pieces are shared, and one comes back.
    fn whole(suite: &mut Checks, area: Range<u64>, shared: u64) {
        let other = other(&area, shared);
        suite.check("whole/own", fill(&area, 1), "no memory");
        let told = rsi::state(&area);
        suite.check("whole/is-ram", told == [0, area.end, RAM], told[1]);
        let calls = rsi::set_all(&area, EMPTY);
        suite.check("whole/shared", calls.is_some(), "it does not get on");
        let told = rsi::state(&area);
        suite.check("whole/is-empty", told[0] == 0 && told[2] == EMPTY, told[2]);
        suite.check("whole/own-is-gone", all(&area, |_| None), "it is there");
        suite.check("whole/zero", all(&other, |_| Some(0)), "not zero");
        suite.check("whole/written", fill(&other, 2), "no memory");
        suite.check("whole/same", all(&other, |at| Some(at ^ 2)), "another");
        let half = area.start..area.start + 2 * MIB;
        let back = rsi::set_all(&half, RAM);
        suite.check("whole/back", back.is_some(), "it does not get on");
        suite.check("whole/own-is-zero", all(&half, |_| Some(0)), "not zero");
        let rest = half.end + shared..other.end;
        suite.check("whole/rest-stays", all(&rest, |at| Some(at ^ 2)), "gone");
        let rest = half.end..area.end;
        suite.check("whole/all-back", rsi::set_all(&rest, RAM).is_some(), "not");
        suite.check("whole/zero-again", all(&rest, |_| Some(0)), "not zero");
    }

    /// The same piece is shared and comes back, again and again: neither side ever sees
    /// what the other had.
    fn again(suite: &mut Checks, area: &Range<u64>, shared: u64, has_parts: bool) {
        let other = other(area, shared);
        // Of the first and the last granule the host cannot know that all of it came
        // back, where RSI counts in less.
        let edge = if has_parts { 0x1_0000 } else { 0 };
        let fresh = other.start + edge..other.end - edge;
        let mut right = true;
        for _ in 0..8 {
            right &= fill(area, 3)
                && rsi::set_all(area, EMPTY).is_some()
                && all(&fresh, |_| Some(0))
                && fill(&other, 4)
                && rsi::set_all(area, RAM).is_some()
                && all(area, |_| Some(0));
        }
        suite.check("again/eight-times", right, "seen or stuck");
    }

    /// Single pages of RSI's are shared: of a larger granule the rest stays.
    fn parts(suite: &mut Checks, area: u64, shared: u64, granule: u64) {
        let page = |n: u64| area + n * GRANULE..area + (n + 1) * GRANULE;
        let is_part = granule > GRANULE;
        let around = area..area + 0x2_0000;
        suite.check("parts/own", fill(&around, 5), "no memory");
        let unshared = read(page(3).start + shared);
        suite.check(
            "parts/not-there",
            unshared.is_none() || is_part,
            "the realm's own",
        );
        for n in [1, 2] {
            let set = rsi::set_all(&page(n), EMPTY);
            suite.check("parts/shared", set == Some(1), "not at once");
            let at = page(n).start + shared;
            suite.check("parts/zero", read(at) == Some(0), "not zero");
            suite.check("parts/written", write(at, 6 + n), "no memory");
        }
        let told = rsi::state(&page(1))[2];
        let expected = if is_part { RAM } else { EMPTY };
        suite.equal("parts/state", told, expected);
        let own = |at: u64| {
            let gone = (page(1).start..page(2).end).contains(&at) && !is_part;
            (!gone).then_some(at ^ 5)
        };
        suite.check("parts/own-stays", all(&around, own), "changed");
        // One is the realm's own again; the other is shared still.
        let back = rsi::set_all(&page(1), RAM);
        suite.check("parts/back", back == Some(1), "not at once");
        let kept = read(page(2).start + shared);
        suite.check("parts/other-stays", kept == Some(8), "gone");
        let set = rsi::set_all(&page(2), RAM);
        suite.check("parts/both-back", set == Some(1), "not at once");
        // All of a granule, of which a page comes back.
        let large = area + 0x2_0000..area + 0x3_0000;
        let set = rsi::set_all(&large, EMPTY);
        suite.check("parts/granule", set.is_some(), "it does not get on");
        let other = other(&large, shared);
        suite.check("parts/granule-written", fill(&other, 7), "no memory");
        let first = large.start..large.start + GRANULE;
        suite.check(
            "parts/granule-back",
            rsi::set_all(&first, RAM).is_some(),
            "not",
        );
        suite.check("parts/own-zero", read(first.start) == Some(0), "not zero");
        let rest = other.start + GRANULE..other.end;
        suite.check(
            "parts/rest-stays",
            all(&rest, |at| Some(at ^ 7)),
            "the rest is gone",
        );
        let set = rsi::set_all(&large, RAM);
        suite.check("parts/all-back", set.is_some(), "it does not get on");
    }

    /// Where there is no RAM there is none to be had.
    fn outside(suite: &mut Checks, end: u64) {
        let beyond = end..end + 2 * MIB;
        let answer = rsi::set_state(&beyond, RAM);
        suite.check("outside/ram", answer == Ok((end, REJECT)), "not rejected");
        let answer = rsi::set_state(&beyond, EMPTY);
        suite.check("outside/empty", answer == Ok((end, ACCEPT)), "moved");
        let half = end - 2 * MIB..end + 2 * MIB;
        let answer = rsi::set_state(&half, RAM);
        suite.check(
            "outside/half",
            answer == Ok((half.start, REJECT)),
            "not rejected",
        );
        suite.check("outside/aborts", read(end + 8).is_none(), "is there");
    }

    fn host_call(suite: &mut Checks) {
        let gprs = core::array::from_fn(|n| 0x1234_0000 + n as u64);
        let (code, answer) = rsi::call_host(0x77, gprs);
        suite.equal("host-call/code", code, Code::Success as u64);
        suite.check("host-call/unchanged", answer == gprs, answer[0]);
    }

    static AT: AtomicU64 = AtomicU64::new(0);
    static SHARED: AtomicU64 = AtomicU64::new(0);
    static OVER: AtomicBool = AtomicBool::new(false);
    static SEEN: AtomicU64 = AtomicU64::new(0);

    /// One CPU touches both sides while the other shares and takes back.
    fn together(suite: &mut Checks, area: u64, shared: u64) {
        AT.store(area, Ordering::SeqCst);
        SHARED.store(shared, Ordering::SeqCst);
        let started = cpu::start(1, || {
            let (at, shared) = (AT.load(Ordering::SeqCst), SHARED.load(Ordering::SeqCst));
            while !OVER.load(Ordering::SeqCst) {
                for n in 0..16 {
                    let at = at + n * 0x2_1000 % (2 * MIB);
                    let here = u64::from(read(at).is_some());
                    let there = u64::from(read(at + shared).is_some());
                    SEEN.fetch_or(1 << (2 * here + there), Ordering::SeqCst);
                }
            }
        });
        suite.equal("together/start", started as u64, 0);
        let area = area..area + 2 * MIB;
        let right = (0..24)
            .all(|_| rsi::set_all(&area, EMPTY).is_some() && rsi::set_all(&area, RAM).is_some());
        OVER.store(true, Ordering::SeqCst);
        suite.check("together/goes-on", right, "stuck");
        suite.check("together/ends", cpu::wait_off(1), "the other does not");
        suite.check("together/own", all(&area, |_| Some(0)), "not zero");
        suite.check("together/seen", SEEN.load(Ordering::SeqCst) != 0, "nothing");
    }
}

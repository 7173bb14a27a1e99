//! Emulated accesses on a machine of a page of registers and some RAM: what is
//! translated how, what is accessed in which order, and what an abort leaves.

use host_loader::emulate::execute::{Abort, By, Nowhere, Place, Space};
use host_loader::emulate::state::Cpu;
use host_loader::emulate::walk::{self, Access, Fault, Kind, Miss, Tables};
use host_loader::emulate::{self, Cause, Outcome};
use proptest::prelude::*;
use rmi::registers::{Finish, Registers};
use zerocopy::FromZeros;

/// RAM, high enough for its address to need 52 bits where there are so many.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 8 << 20;
const DEVICE: u64 = 0x0900_0000;

/// The machine, and every access of its device: address, size, value written.
struct Machine {
    /// Where its RAM is.
    base: u64,
    ram: Vec<u64>,
    seen: Vec<(u64, u64, Option<u64>)>,
    /// The device takes no more; and after how many accesses it does not.
    full: bool,
    most: usize,
}

impl Machine {
    fn new(base: u64) -> Self {
        Self {
            base,
            ram: vec![0; RAM_SIZE as usize / 8],
            seen: Vec::new(),
            full: false,
            most: usize::MAX,
        }
    }

    fn word(&mut self, ipa: u64) -> Option<&mut u64> {
        self.ram
            .get_mut(usize::try_from(ipa.checked_sub(self.base)? / 8).ok()?)
    }

    fn set(&mut self, ipa: u64, value: u64) {
        *self.word(ipa).expect("RAM") = value;
    }

    /// A word of code.
    fn put(&mut self, ipa: u64, word: u32) {
        self.write(ipa, 4, word.into()).expect("RAM");
    }
}

impl Tables for Machine {
    fn load(&mut self, ipa: u64) -> Option<u64> {
        assert_eq!(ipa % 8, 0);
        self.word(ipa).map(|word| *word)
    }

    fn exchange(&mut self, ipa: u64, old: u64, new: u64) -> bool {
        let word = self.word(ipa).expect("RAM");
        let same = *word == old;
        if same {
            *word = new;
        }
        same
    }
}

impl Space for Machine {
    fn place(&self, ipa: u64) -> Place {
        match ipa {
            ipa if ipa >= self.base && ipa - self.base < RAM_SIZE => Place::Ram,
            ipa if ipa & !0xfff == DEVICE => Place::Device,
            _ => Place::Nothing,
        }
    }

    fn read(&mut self, ipa: u64, size: u64) -> Result<u64, Nowhere> {
        assert!(ipa.is_multiple_of(size) && size <= 8);
        let mask = u64::MAX >> (64 - 8 * size);
        match self.place(ipa) {
            Place::Ram => Ok(*self.word(ipa).expect("RAM") >> (8 * (ipa % 8)) & mask),
            Place::Device => {
                self.seen.push((ipa, size, None));
                // A byte's value is its offset.
                Ok((0..size).fold(0, |all, n| all | ((ipa + n) & 0xff) << (8 * n)))
            }
            Place::Program | Place::Nothing => Err(Nowhere),
        }
    }

    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Result<(), Nowhere> {
        assert!(ipa.is_multiple_of(size) && size <= 8);
        let mask = u64::MAX >> (64 - 8 * size);
        let value = value & mask;
        match self.place(ipa) {
            Place::Ram => {
                let at = 8 * (ipa % 8);
                let word = self.word(ipa).expect("RAM");
                *word = *word & !(mask << at) | value << at;
                Ok(())
            }
            Place::Device => {
                self.seen.push((ipa, size, Some(value)));
                self.full |= self.seen.len() >= self.most;
                Ok(())
            }
            Place::Program | Place::Nothing => Err(Nowhere),
        }
    }

    fn takes(&mut self, ipa: u64, size: u64) -> bool {
        !self.full || size == 0 || self.place(ipa) != Place::Device
    }
}

/// EL1h, the MMU off, code at the start of RAM.
fn cpu() -> Cpu {
    let mut registers = Registers::new_zeroed();
    registers.pstate = 0x3c5;
    registers.pc = RAM;
    Cpu {
        registers,
        zero_block: 64,
    }
}

/// Runs one word at RAM's start.
fn run(cpu: &mut Cpu, machine: &mut Machine, word: u32) -> Outcome {
    machine.set(RAM, word.into());
    emulate::serve(cpu, machine, 0xfa0, By::Read)
}

/// A way to translate.
#[derive(Clone, Copy, Debug)]
struct Format {
    shift: u32,
    va_bits: u32,
    /// LPA2's descriptors.
    ds: bool,
    /// 52 bits of output.
    wide: bool,
    upper: bool,
    big_endian: bool,
}

fn formats() -> impl Strategy<Value = Format> {
    let granule = prop::sample::select(vec![12u32, 14, 16]);
    (granule, any::<[bool; 4]>()).prop_flat_map(|(shift, [ds, wide, upper, big_endian])| {
        let ds = ds && shift != 16;
        let wide = ds || (wide && shift == 16);
        let most = if ds || shift == 16 { 52 } else { 48 };
        (25u32.max(shift + 1)..=most).prop_map(move |va_bits| Format {
            shift,
            va_bits,
            ds,
            wide,
            upper,
            big_endian,
        })
    })
}

impl Format {
    fn stride(self) -> u32 {
        self.shift - 3
    }

    fn start(self) -> i8 {
        let mut level = 3;
        let mut covered = self.shift + self.stride();
        while covered < self.va_bits {
            covered += self.stride();
            level -= 1;
        }
        level
    }

    fn low(self, level: i8) -> u32 {
        self.shift + (3 - level) as u32 * self.stride()
    }

    /// The bits of an address in a descriptor.
    fn in_descriptor(self, address: u64) -> u64 {
        let low = address & ((1 << 48) - 1);
        if self.ds {
            address & ((1 << 50) - 1) | (address >> 50 & 3) << 8
        } else if self.shift == 16 {
            low | (address >> 48 & 0xf) << 12
        } else {
            low
        }
    }

    fn is_block_level(self, level: i8) -> bool {
        match self.shift {
            12 => level == 1 || level == 2 || (level == 0 && self.ds),
            14 => level == 2 || (level == 1 && self.ds),
            _ => level == 2 || (level == 1 && self.wide),
        }
    }

    /// Sets the vCPU's registers up for it.
    fn enable(self, cpu: &mut Cpu, root: u64) {
        let tg: u64 = match (self.shift, self.upper) {
            (12, false) => 0,
            (14, false) => 2,
            (16, false) => 1,
            (12, true) => 2,
            (14, true) => 1,
            _ => 3,
        };
        let tsz = u64::from(64 - self.va_bits);
        let ips = if self.wide { 6 } else { 5 };
        let half = if self.upper {
            tsz << 16 | tg << 30 | 1 << 7
        } else {
            tsz | tg << 14 | 1 << 23
        };
        let r = &mut cpu.registers;
        r.tcr = half | ips << 32 | u64::from(self.ds) << 59;
        r.sctlr = 1 | u64::from(self.big_endian) << 25;
        let base = if self.wide {
            root & ((1 << 48) - 1) | (root >> 48) << 2
        } else {
            root
        };
        // An ASID, which is no part of the address.
        r.ttbr[usize::from(self.upper)] = base | 0xabcd << 48;
    }

    /// Maps `va` to `page` by a leaf of `level` with these attributes.
    fn map(
        self,
        (machine, cpu): (&mut Machine, &mut Cpu),
        (va, page): (u64, u64),
        (level, attributes): (i8, u64),
    ) {
        let table_of = |n: i64| machine.base + (n as u64) * (1 << self.shift);
        let root = table_of(1);
        let mut tables = Vec::new();
        for (n, at) in (self.start()..=level).enumerate() {
            let low = self.low(at);
            let bits = self.stride().min(self.va_bits - low);
            let index = va >> low & ((1 << bits) - 1);
            let descriptor = if at < level {
                self.in_descriptor(table_of(n as i64 + 2)) | 3
            } else {
                let kind = if level == 3 { 3 } else { 1 };
                self.in_descriptor(page) | attributes | kind
            };
            tables.push((table_of(n as i64 + 1) + 8 * index, descriptor));
        }
        for (at, descriptor) in tables {
            let stored = if self.big_endian {
                descriptor.swap_bytes()
            } else {
                descriptor
            };
            machine.set(at, stored);
        }
        self.enable(cpu, root);
    }
}

const AF: u64 = 1 << 10;
const READ: Access = Access {
    kind: Kind::Read,
    as_el0: false,
};

proptest! {
    #[test]
    fn every_format_leads_where_its_tables_say(
        format in formats(), va in any::<u64>(), page in any::<u64>(), down in 0i8..3, high: bool,
    ) {
        let level = 3 - down;
        prop_assume!(level >= format.start());
        prop_assume!(level == 3 || format.is_block_level(level));
        // Tables beyond 48 bits, where these are formats that reach them.
        let base = if format.wide && high { 0xe_0000_4000_0000 } else { RAM };
        let mut machine = Machine::new(base);
        let mut cpu = cpu();
        let inside = va & ((1 << format.va_bits) - 1);
        let va = if format.upper { !0 << format.va_bits | inside } else { inside };
        let bits = if format.wide { 52 } else { 48 };
        let page = page & ((1 << bits) - 1) & (!0 << format.low(level));
        format.map((&mut machine, &mut cpu), (va, page), (level, AF));
        let offset = va & ((1 << format.low(level)) - 1);
        let found = walk::translate(&cpu, &mut machine, va, READ);
        prop_assert_eq!(found, Ok(page | offset));
        // Another half, another entry, an address in no half.
        let other = walk::translate(&cpu, &mut machine, !va, READ);
        prop_assert_eq!(other, Err(Miss::Fault(Fault(4))));
        let flipped = va ^ 1 << format.low(level);
        if format.low(level) < format.va_bits {
            let other = walk::translate(&cpu, &mut machine, flipped, READ);
            let code = if level < 0 { 0x2b } else { 4 + level as u8 };
            prop_assert_eq!(other, Err(Miss::Fault(Fault(code))));
        }
        if format.va_bits < 55 {
            let none = va ^ 1 << format.va_bits;
            prop_assert_eq!(walk::translate(&cpu, &mut machine, none, READ), Err(Miss::Fault(Fault(4))));
        }
        // Tags are no part of an address where the guest says so.
        let tagged = va ^ 0xa5 << 56;
        prop_assert_eq!(walk::translate(&cpu, &mut machine, tagged, READ), Err(Miss::Fault(Fault(4))));
        cpu.registers.tcr |= 3 << 37;
        prop_assert_eq!(walk::translate(&cpu, &mut machine, tagged, READ), Ok(page | offset));
    }

    #[test]
    fn no_tables_and_no_registers_break_the_walk(
        registers in any::<[u64; 4]>(), words in any::<[u64; 32]>(), va in any::<u64>(),
        pstate in any::<u64>(), write: bool, as_el0: bool,
    ) {
        let mut machine = Machine::new(RAM);
        for (n, slot) in machine.ram.iter_mut().enumerate() {
            *slot = words[n % 32] & 0xffff_0000_0000_0fff | RAM | (n as u64 & 0x7f) << 12;
        }
        let mut cpu = cpu();
        cpu.registers.sctlr = registers[0] | 1;
        cpu.registers.tcr = registers[1];
        cpu.registers.pstate = pstate;
        cpu.registers.ttbr = [RAM | registers[2] & 0x7f_f000, RAM | registers[3] & 0x7f_f000];
        let kind = if write { Kind::Write } else { Kind::Read };
        // Any answer is right that is one.
        let _ = walk::translate(&cpu, &mut machine, va, Access { kind, as_el0 });
    }

    #[test]
    fn no_instruction_breaks_the_machine(
        words in prop::collection::vec(any::<u32>(), 1..8), x in any::<[u64; 31]>(),
        at in 0u64..0x2000, pstate in any::<u64>(),
    ) {
        let mut machine = Machine::new(RAM);
        for (n, word) in words.iter().enumerate() {
            // Mostly what is a load or store.
            let word = if n % 2 == 0 { word & !(1 << 25) | 1 << 27 } else { *word };
            machine.put(RAM + 4 * n as u64, word);
        }
        let mut cpu = cpu();
        cpu.registers.x = x.map(|x| if x % 3 == 0 { x } else { DEVICE - 0x1000 + at });
        cpu.registers.sp = [DEVICE + at, DEVICE - at];
        cpu.registers.pstate = pstate & !(1 << 4);
        let before = cpu;
        let outcome = emulate::serve(&mut cpu, &mut machine, DEVICE, By::Read);
        if outcome == Outcome::Again {
            prop_assert_eq!(cpu, before);
        }
        prop_assert_eq!(cpu.registers.sctlr, before.registers.sctlr);
    }
}

/// A page of a 4K table of 39 bits, with these attributes, and the access.
fn permission(attributes: u64, edit: impl FnOnce(&mut Cpu), access: Access) -> Result<u64, Miss> {
    let format = Format {
        shift: 12,
        va_bits: 39,
        ds: false,
        wide: false,
        upper: false,
        big_endian: false,
    };
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    format.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, attributes));
    edit(&mut cpu);
    walk::translate(&cpu, &mut machine, 0x1000, access)
}

#[test]
fn permissions_are_the_architectures() {
    const EL0: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const UXN: u64 = 1 << 54;
    const PXN: u64 = 1 << 53;
    const PAN: u64 = 1 << 22;
    const EPAN: u64 = 1 << 57;
    const WXN: u64 = 1 << 19;
    let nothing = |_: &mut Cpu| {};
    let at = |kind, as_el0| Access { kind, as_el0 };
    let [el1, el0] =
        [false, true].map(|el| [Kind::Read, Kind::Write, Kind::Fetch].map(|k| at(k, el)));
    let denied = Err(Miss::Fault(Fault(0x0f)));
    let allowed = Ok(DEVICE);
    for (attributes, of_el1, of_el0) in [
        (AF | UXN, [true, true, true], [false, false, false]),
        (AF, [true, true, true], [false, false, true]),
        (AF | EL0, [true, true, false], [true, true, true]),
        (
            AF | EL0 | READ_ONLY | PXN,
            [true, false, false],
            [true, false, true],
        ),
        (
            AF | READ_ONLY | UXN,
            [true, false, true],
            [false, false, false],
        ),
        (
            AF | EL0 | READ_ONLY | UXN,
            [true, false, true],
            [true, false, false],
        ),
    ] {
        for n in 0..3 {
            for (access, right) in [(el1[n], of_el1[n]), (el0[n], of_el0[n])] {
                let found = permission(attributes, nothing, access);
                let expected = if right { allowed } else { denied };
                assert_eq!(found, expected, "{attributes:#x} {access:?}");
            }
        }
    }
    let pan = |cpu: &mut Cpu| cpu.registers.pstate |= PAN;
    assert_eq!(permission(AF | EL0, pan, el1[0]), denied);
    assert_eq!(permission(AF | EL0, pan, el0[0]), allowed);
    assert_eq!(permission(AF, pan, el1[0]), allowed);
    let epan = |cpu: &mut Cpu| {
        cpu.registers.pstate |= PAN;
        cpu.registers.sctlr |= EPAN;
    };
    assert_eq!(permission(AF, epan, el1[0]), denied, "EL0 may execute it");
    assert_eq!(permission(AF | UXN, epan, el1[0]), allowed);
    let wxn = |cpu: &mut Cpu| cpu.registers.sctlr |= WXN;
    assert_eq!(permission(AF, wxn, el1[2]), denied);
    assert_eq!(permission(AF, wxn, el0[2]), allowed, "EL0 may not write it");
    assert_eq!(permission(AF | EL0, wxn, el0[2]), denied);
    assert_eq!(permission(AF | READ_ONLY, wxn, el1[2]), allowed);
    let e0pd = |cpu: &mut Cpu| cpu.registers.tcr |= 1 << 55;
    assert_eq!(
        permission(AF | EL0, e0pd, el0[0]),
        Err(Miss::Fault(Fault(4)))
    );
    assert_eq!(permission(AF | EL0, e0pd, el1[0]), allowed);
    assert_eq!(
        permission(0, nothing, el1[0]),
        Err(Miss::Fault(Fault(0x0b))),
        "not accessed yet"
    );
    let narrow = |cpu: &mut Cpu| cpu.registers.tcr &= !(7 << 32);
    assert_eq!(
        permission(AF | 1 << 40, narrow, el1[0]),
        Err(Miss::Fault(Fault(3))),
        "of 32 bits"
    );
}

#[test]
fn hardware_updates_are_made_where_the_guest_asks_for_them() {
    const READ_ONLY: u64 = 1 << 7;
    const DBM: u64 = 1 << 51;
    let format = Format {
        shift: 12,
        va_bits: 39,
        ds: false,
        wide: false,
        upper: false,
        big_endian: true,
    };
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    format.map(
        (&mut machine, &mut cpu),
        (0x1000, DEVICE),
        (3, DBM | READ_ONLY),
    );
    cpu.registers.tcr |= 3 << 39;
    let leaf = RAM + 3 * 4096 + 8;
    assert_eq!(
        walk::translate(&cpu, &mut machine, 0x1000, READ),
        Ok(DEVICE)
    );
    let now = machine.load(leaf).map(u64::swap_bytes);
    assert_eq!(now, Some(DEVICE | DBM | READ_ONLY | AF | 3));
    let write = Access {
        kind: Kind::Write,
        as_el0: false,
    };
    assert_eq!(
        walk::translate(&cpu, &mut machine, 0x1000, write),
        Ok(DEVICE)
    );
    assert_eq!(
        machine.load(leaf).map(u64::swap_bytes),
        Some(DEVICE | DBM | AF | 3)
    );
}

#[test]
fn a_walk_out_of_ram_is_an_external_abort_with_its_level() {
    for level in [0, 1, 2, 3] {
        let format = Format {
            shift: 12,
            va_bits: 48,
            ds: false,
            wide: false,
            upper: false,
            big_endian: false,
        };
        let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
        format.map((&mut machine, &mut cpu), (0, DEVICE), (3, AF));
        if level == 0 {
            cpu.registers.ttbr[0] = 0x1000;
        } else {
            machine.set(RAM + 4096 * level, 0x1003);
        }
        let found = walk::translate(&cpu, &mut machine, 0, READ);
        assert_eq!(found, Err(Miss::Fault(Fault(0x14 + level as u8))));
        assert!(Fault(0x14 + level as u8).is_external());
    }
}

/// `ldp w0, w2, [x1], #8`, `stp w0, w2, [x1], #8`.
const LDP_POST: u32 = 0x28c1_0820;
const STP_POST: u32 = 0x2881_0820;

#[test]
fn of_a_pair_across_the_edge_the_first_half_is_done() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    cpu.registers.x[..3].copy_from_slice(&[1, DEVICE + 0xffc, 2]);
    let before = cpu;
    for (word, seen) in [
        (STP_POST, (DEVICE + 0xffc, 4, Some(1))),
        (LDP_POST, (DEVICE + 0xffc, 4, None)),
    ] {
        machine.seen.clear();
        let abort = Abort {
            far: DEVICE + 0x1000,
            code: Abort::EXTERNAL,
            by: if word == STP_POST {
                By::Write
            } else {
                By::Read
            },
        };
        let outcome = run(&mut cpu, &mut machine, word);
        assert_eq!(outcome, Outcome::Abort(abort, Cause::Access));
        assert_eq!(machine.seen, [seen]);
        assert_eq!(cpu, before, "no writeback, no load");
    }
}

#[test]
fn an_atomic_reads_first_and_writes_in_any_case() {
    const SWP: u32 = 0xb822_8020;
    const LDADD: u32 = 0xb820_0022;
    const CASB: u32 = 0x08a0_7c22;
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    // Nothing is there: the read's abort.
    cpu.registers.x[..3].copy_from_slice(&[1, DEVICE + 0x1000, 2]);
    for word in [SWP, LDADD, CASB] {
        let Outcome::Abort(abort, Cause::Access) = run(&mut cpu, &mut machine, word) else {
            panic!("{word:#x} did not abort");
        };
        assert_eq!((abort.far, abort.by), (DEVICE + 0x1000, By::Read));
    }
    // What is not replaced is written again.
    cpu.registers.x[..3].copy_from_slice(&[1, DEVICE + 0x24, 2]);
    assert_eq!(run(&mut cpu, &mut machine, CASB), Outcome::Done);
    let at = DEVICE + 0x24;
    assert_eq!(machine.seen, [(at, 1, None), (at, 1, Some(0x24))]);
    assert_eq!(cpu.registers.x[0], 0x24);
}

#[test]
fn of_a_pair_whose_second_page_has_no_translation_nothing_is_done() {
    let format = Format {
        shift: 12,
        va_bits: 39,
        ds: false,
        wide: false,
        upper: false,
        big_endian: false,
    };
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    // Code and device, page by page, in one table.
    format.map((&mut machine, &mut cpu), (0x4000, RAM), (3, AF));
    format.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, AF));
    cpu.registers.pc = 0x4000;
    cpu.registers.x[..3].copy_from_slice(&[1, 0x1ffc, 2]);
    let Outcome::Abort(abort, Cause::Access) = run(&mut cpu, &mut machine, STP_POST) else {
        panic!("no abort");
    };
    assert_eq!((abort.far, abort.code, abort.by), (0x2000, 0x07, By::Write));
    assert_eq!(machine.seen, []);
}

#[test]
fn what_is_ram_is_left_to_the_guest_and_a_part_of_it_is_not() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(DEVICE + 0x1000));
    cpu.registers.pc = machine.base;
    machine.set(machine.base, STP_POST.into());
    cpu.registers.x[..3].copy_from_slice(&[1, machine.base + 64, 2]);
    let outcome = emulate::serve(&mut cpu, &mut machine, 0, By::Write);
    assert_eq!(outcome, Outcome::Again);
    assert_eq!(machine.load(machine.base + 64), Some(0));
    // Half a device's, half RAM.
    machine.set(machine.base, 0x2900_0820_u64);
    cpu.registers.x[1] = DEVICE + 0xffc;
    // The code would be overwritten: it stands elsewhere.
    machine.set(machine.base + 0x100, 0x2900_0820);
    cpu.registers.pc = machine.base + 0x100;
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, 0, By::Write),
        Outcome::Done
    );
    assert_eq!(machine.seen, [(DEVICE + 0xffc, 4, Some(1))]);
    assert_eq!(machine.load(machine.base).map(|word| word as u32), Some(2));
}

#[test]
fn a_device_without_room_has_the_whole_instruction_wait() {
    // Half RAM, half a device: not even the RAM is written.
    let (mut cpu, mut machine) = (cpu(), Machine::new(DEVICE - RAM_SIZE));
    machine.full = true;
    let pc = machine.base;
    machine.set(pc, STP_POST.into());
    cpu.registers.pc = pc;
    cpu.registers.x[..3].copy_from_slice(&[1, DEVICE - 4, 2]);
    let before = cpu;
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, 0, By::Write),
        Outcome::Later
    );
    assert_eq!((cpu, machine.load(DEVICE - 8)), (before, Some(0)));
    // A load does not wait for room.
    machine.set(pc, LDP_POST.into());
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, 0, By::Read),
        Outcome::Done
    );
    machine.full = false;
    machine.set(pc, STP_POST.into());
    cpu = before;
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, 0, By::Write),
        Outcome::Done
    );
    assert_eq!(machine.seen.last(), Some(&(DEVICE, 4, Some(2))));
}

#[test]
fn big_endian_values_are_swapped_each() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    cpu.registers.sctlr = 1 << 25;
    cpu.registers.x[..3].copy_from_slice(&[0x1122_3344, DEVICE, 0x5566_7788]);
    assert_eq!(run(&mut cpu, &mut machine, STP_POST), Outcome::Done);
    let swapped = [(DEVICE, 8, Some(0x8877_6655_4433_2211))];
    assert_eq!(machine.seen, swapped);
    // ldr q0, [x1]: 16 bytes as one.
    cpu.registers.x[1] = DEVICE;
    cpu.registers.pc = RAM;
    assert_eq!(run(&mut cpu, &mut machine, 0x3dc0_0020), Outcome::Done);
    assert_eq!(cpu.v(0), 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f);
}

#[test]
fn literals_are_found_from_the_pc() {
    // Code right before the device: ldr w5, .+0x100 and ldrsw x5.
    let (mut cpu, mut machine) = (cpu(), Machine::new(DEVICE - RAM_SIZE));
    let pc = DEVICE - 0x80;
    for (word, value) in [
        (0x1800_0805, 0x8382_8180),
        (0x9800_0805, 0xffff_ffff_8382_8180),
    ] {
        machine.set(pc, word);
        cpu.registers.pc = pc;
        assert_eq!(
            emulate::serve(&mut cpu, &mut machine, 0, By::Read),
            Outcome::Done
        );
        assert_eq!((cpu.x(5), cpu.registers.pc), (value, pc + 4));
    }
}

#[test]
fn what_cannot_be_done_has_a_defined_answer() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    let external = Abort {
        far: 0xfa0,
        code: Abort::EXTERNAL,
        by: By::Read,
    };
    let abort = |cause| Outcome::Abort(external, cause);
    // ldraa x0, [x0]; then what is no load or store at all.
    assert_eq!(
        run(&mut cpu, &mut machine, 0xf820_0400),
        abort(Cause::Unknown(0xf820_0400))
    );
    assert_eq!(run(&mut cpu, &mut machine, 0xd503_201f), Outcome::Again);
    cpu.registers.pc = DEVICE;
    assert_eq!(
        run(&mut cpu, &mut machine, LDP_POST),
        abort(Cause::NoCode(DEVICE))
    );
    cpu.registers.pc = 1 << 60;
    assert_eq!(
        run(&mut cpu, &mut machine, LDP_POST),
        abort(Cause::NoCode(0))
    );
    cpu.registers.pc = RAM;
    cpu.registers.pstate = 0x10;
    assert_eq!(run(&mut cpu, &mut machine, LDP_POST), abort(Cause::Aarch32));
    // Tables that have gone: the guest meets the fault itself.
    cpu.registers.pstate = 0x3c5;
    cpu.registers.sctlr = 1;
    cpu.registers.tcr = 25 | 5 << 32;
    cpu.registers.ttbr[0] = RAM + 4096;
    assert_eq!(run(&mut cpu, &mut machine, LDP_POST), Outcome::Again);
    assert_eq!(machine.seen, []);
}

#[test]
fn a_sequence_that_only_the_guest_can_execute_is_told() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    cpu.registers.x[1] = DEVICE;
    // ldxr w0, [x1]; fmov d0, d1; stxr w2, w0, [x1].
    let words = [0x885f_7c20u32, 0x1e60_4020, 0x8802_7c20];
    for (n, word) in words.iter().enumerate() {
        machine.put(RAM + 4 * n as u64, *word);
    }
    let outcome = emulate::serve(&mut cpu, &mut machine, DEVICE, By::Read);
    assert_eq!(outcome, Outcome::Parted(0x1e60_4020));
    assert_eq!(cpu.registers.pc, RAM + 4);
    // While the guest steps, each instruction is one.
    cpu.registers.pc = RAM;
    cpu.registers.pstate |= 1 << 21;
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, DEVICE, By::Read),
        Outcome::Done
    );
    assert_eq!(cpu.registers.pc, RAM + 4);
}

const PLAIN: Format = Format {
    shift: 12,
    va_bits: 39,
    ds: false,
    wide: false,
    upper: false,
    big_endian: false,
};

/// As [`permission`] of a page below a table with these bits.
fn below(
    table: u64,
    attributes: u64,
    edit: impl FnOnce(&mut Cpu),
    access: Access,
) -> Result<u64, Miss> {
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    PLAIN.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, attributes));
    let entry = machine.load(RAM + 4096).expect("RAM");
    machine.set(RAM + 4096, entry | table);
    edit(&mut cpu);
    walk::translate(&cpu, &mut machine, 0x1000, access)
}

#[test]
fn tables_take_permissions_away_unless_they_do_not_count() {
    const EL0: u64 = 1 << 6;
    let at = |kind, as_el0| Access { kind, as_el0 };
    let (read, write) = (at(Kind::Read, false), at(Kind::Write, false));
    let [el1, el0] = [false, true].map(|el| at(Kind::Fetch, el));
    for (table, attributes, denied, allowed) in [
        (1 << 62, AF, write, read),
        (1 << 61, AF | EL0, at(Kind::Read, true), read),
        (1 << 60, AF | EL0, el0, read),
        (1 << 60, AF, el0, el1),
        (1 << 59, AF, el1, read),
        (1 << 59, AF | EL0, el1, el0),
    ] {
        let nothing = |_: &mut Cpu| {};
        let found = below(table, attributes, nothing, denied);
        assert_eq!(
            found,
            Err(Miss::Fault(Fault(0x0f))),
            "{table:#x} {denied:?}"
        );
        let found = below(table, attributes, nothing, allowed);
        assert_eq!(found, Ok(DEVICE), "{table:#x} {allowed:?}");
    }
    // TCR_EL1.HPD0.
    let flat = |cpu: &mut Cpu| cpu.registers.tcr |= 1 << 41;
    assert_eq!(below(1 << 62, AF, flat, write), Ok(DEVICE));
    // A table beyond TCR_EL1.IPS is not read.
    let narrow = |cpu: &mut Cpu| cpu.registers.tcr &= !(7 << 32);
    assert_eq!(below(1 << 40, AF, narrow, read), Err(Miss::Fault(Fault(2))));
}

#[test]
fn a_half_that_is_off_and_tags_of_code_lead_nowhere() {
    let fetch = Access {
        kind: Kind::Fetch,
        as_el0: false,
    };
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    PLAIN.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, AF));
    // TBI0, then TBID0 too.
    cpu.registers.tcr |= 1 << 37;
    let tagged = 0xa5 << 56 | 0x1000;
    assert_eq!(
        walk::translate(&cpu, &mut machine, tagged, fetch),
        Ok(DEVICE)
    );
    cpu.registers.tcr |= 1 << 51;
    assert_eq!(
        walk::translate(&cpu, &mut machine, tagged, fetch),
        Err(Miss::Fault(Fault(4)))
    );
    assert_eq!(
        walk::translate(&cpu, &mut machine, tagged, READ),
        Ok(DEVICE)
    );
    // EPD0.
    cpu.registers.tcr |= 1 << 7;
    assert_eq!(
        walk::translate(&cpu, &mut machine, 0x1000, READ),
        Err(Miss::Fault(Fault(4)))
    );
}

/// Tables that another vCPU changes in the moment of an update.
struct Changing(Machine);

impl Tables for Changing {
    fn load(&mut self, ipa: u64) -> Option<u64> {
        self.0.load(ipa)
    }
    fn exchange(&mut self, _: u64, _: u64, _: u64) -> bool {
        false
    }
}

#[test]
fn an_entry_that_changes_meanwhile_is_no_fault_and_dirty_state_is_asked_for() {
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    PLAIN.map(
        (&mut machine, &mut cpu),
        (0x1000, DEVICE),
        (3, 1 << 51 | 1 << 7),
    );
    // TCR_EL1.HA without HD: DBM says nothing.
    cpu.registers.tcr |= 1 << 39;
    let write = Access {
        kind: Kind::Write,
        as_el0: false,
    };
    assert_eq!(
        walk::translate(&cpu, &mut machine, 0x1000, write),
        Err(Miss::Fault(Fault(0x0f)))
    );
    let found = walk::translate(&cpu, &mut Changing(machine), 0x1000, READ);
    assert_eq!(found, Err(Miss::Changed));
}

impl Space for Changing {
    fn place(&self, ipa: u64) -> Place {
        self.0.place(ipa)
    }
    fn read(&mut self, ipa: u64, size: u64) -> Result<u64, Nowhere> {
        self.0.read(ipa, size)
    }
    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Result<(), Nowhere> {
        self.0.write(ipa, size, value)
    }
    fn takes(&mut self, ipa: u64, size: u64) -> bool {
        self.0.takes(ipa, size)
    }
}

#[test]
fn a_lost_update_of_an_entry_has_the_guest_do_it_again() {
    // ldr w0, [x1], #4; the page's access flag is not set yet, and TCR_EL1.HA is.
    let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
    PLAIN.map((&mut machine, &mut cpu), (0x4000, RAM), (3, AF));
    PLAIN.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, 0));
    machine.set(RAM, 0xb840_4420);
    (cpu.registers.pc, cpu.registers.x[1]) = (0x4000, 0x1000);
    cpu.registers.tcr |= 1 << 39;
    let before = cpu;
    let mut changing = Changing(machine);
    let outcome = emulate::serve(&mut cpu, &mut changing, 0x1000, By::Read);
    assert_eq!((outcome, cpu), (Outcome::Again, before));
    assert_eq!(changing.0.seen, []);
    // Of the fetch, too.
    PLAIN.map((&mut changing.0, &mut cpu), (0x4000, RAM), (3, 0));
    cpu.registers.tcr |= 1 << 39;
    let outcome = emulate::serve(&mut cpu, &mut changing, 0x1000, By::Read);
    assert_eq!((outcome, cpu), (Outcome::Again, before));
    // Amidst a sequence, what came before is done: ldxr w0, [x1] of a page that
    // is marked, then ldr w3, [x4] of one that is not.
    PLAIN.map((&mut changing.0, &mut cpu), (0x4000, RAM), (3, AF));
    PLAIN.map((&mut changing.0, &mut cpu), (0x1000, DEVICE), (3, AF));
    PLAIN.map((&mut changing.0, &mut cpu), (0x2000, DEVICE), (3, 0));
    cpu.registers.tcr |= 1 << 39;
    changing.0.put(RAM, 0x885f_7c20);
    changing.0.put(RAM + 4, 0xb940_0083);
    cpu.registers.x[4] = 0x2000;
    let outcome = emulate::serve(&mut cpu, &mut changing, 0x1000, By::Read);
    assert_eq!((outcome, cpu.registers.pc), (Outcome::Done, 0x4004));
    assert_eq!(changing.0.seen, [(DEVICE, 4, None)]);
}

/// Runs words from RAM's start, with X1 at the device.
fn run_all(cpu: &mut Cpu, machine: &mut Machine, words: &[u32]) -> Outcome {
    for (n, word) in words.iter().enumerate() {
        machine.put(RAM + 4 * n as u64, *word);
    }
    cpu.registers.pc = RAM;
    cpu.registers.x[1] = DEVICE;
    emulate::serve(cpu, machine, DEVICE, By::Read)
}

#[test]
fn a_store_exclusive_succeeds_where_its_load_was() {
    // ldxr w0, [x1]; add x1, x1, #4 or nop; stxr w2, w0, [x1].
    for (between, status, written) in [(0x9100_1021, 1, 0), (0xd503_201f, 0, 1)] {
        let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
        let words = [0x885f_7c20, between, 0x8802_7c20];
        assert_eq!(run_all(&mut cpu, &mut machine, &words), Outcome::Done);
        assert_eq!((cpu.x(2), cpu.registers.pc), (status, RAM + 12));
        assert_eq!(machine.seen.len(), 1 + written);
    }
    // Another load-exclusive is the begin of another sequence.
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    let words = [0x885f_7c20, 0x885f_7c20];
    assert_eq!(run_all(&mut cpu, &mut machine, &words), Outcome::Done);
    assert_eq!((cpu.registers.pc, machine.seen.len()), (RAM + 4, 1));
}

#[test]
fn what_was_done_before_a_device_is_full_is_not_done_again() {
    // ldxr w0, [x1]; str w3, [x1, #8]; str w4, [x1, #8]; stxr w2, w0, [x1]: the
    // device takes one store.
    let words = [0x885f_7c20, 0xb900_0823, 0xb900_0824, 0x8802_7c20];
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    (cpu.registers.x[3], cpu.registers.x[4]) = (30, 40);
    machine.most = 2;
    assert_eq!(run_all(&mut cpu, &mut machine, &words), Outcome::Paused);
    let seen = [(DEVICE, 4, None), (DEVICE + 8, 4, Some(30))];
    assert_eq!((&machine.seen[..], cpu.registers.pc), (&seen[..], RAM + 8));
    assert_eq!(cpu.x(0), 0x0302_0100);
    let mut registers = Registers::new_zeroed();
    emulate::finish(&mut registers, &Outcome::Paused);
    assert_eq!(registers.finish, Finish::Done as u64);
    // The guest goes on there, when there is room; its store-exclusive fails.
    (machine.full, machine.most) = (false, usize::MAX);
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, DEVICE, By::Write),
        Outcome::Done
    );
    assert_eq!(machine.seen[2..], [(DEVICE + 8, 4, Some(40))]);
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, DEVICE, By::Write),
        Outcome::Done
    );
    assert_eq!((cpu.x(2), machine.seen.len()), (1, 3));
}

#[test]
fn an_instruction_that_began_is_done_though_the_device_is_full_by_then() {
    // stp w0, w2, [x1]; str q0, [x1]; st1 {v0.16b-v1.16b}, [x1]; dc zva, x1;
    // swp w0, w2, [x1]; casp w4, w5, w6, w7, [x1].
    for word in [
        0x2900_0820,
        0x3d80_0020,
        0x4c00_a020,
        0xd50b_7421,
        0xb820_8022,
        0x0824_7c26,
    ] {
        let (mut full, mut free) = (Machine::new(RAM), Machine::new(RAM));
        full.most = 1;
        let (mut a, mut b) = (cpu(), cpu());
        for (cpu, machine) in [(&mut a, &mut full), (&mut b, &mut free)] {
            let outcome = run_all(cpu, machine, &[word]);
            assert_eq!(outcome, Outcome::Done, "{word:#x}");
        }
        assert_eq!((a, &full.seen), (b, &free.seen), "{word:#x}");
        assert!(full.full);
        // And none of it is done while it is.
        let seen = full.seen.len();
        assert_eq!(run_all(&mut a, &mut full, &[word]), Outcome::Later);
        assert_eq!(full.seen.len(), seen, "{word:#x}");
    }
}

#[test]
fn what_begins_in_ram_and_ends_in_a_device_does_both() {
    // str w0, [x1] and ldr w2, [x1], two bytes before a device; then with the
    // device before RAM, and with nothing behind.
    const STR: u32 = 0xb900_0020;
    const LDR: u32 = 0xb940_0022;
    let (mut cpu, mut machine) = (cpu(), Machine::new(DEVICE - RAM_SIZE));
    let code = machine.base;
    let run = |cpu: &mut Cpu, machine: &mut Machine, word: u32, at: u64| {
        machine.put(code, word);
        (cpu.registers.pc, cpu.registers.x[1]) = (code, at);
        emulate::serve(
            cpu,
            machine,
            at.next_multiple_of(4096),
            if word == STR { By::Write } else { By::Read },
        )
    };
    cpu.registers.x[0] = 0x4433_2211;
    let at = DEVICE - 2;
    assert_eq!(run(&mut cpu, &mut machine, STR, at), Outcome::Done);
    assert_eq!(machine.load(DEVICE - 8), Some(0x2211 << 48));
    assert_eq!(machine.seen, [(DEVICE, 2, Some(0x4433))]);
    assert_eq!(run(&mut cpu, &mut machine, LDR, at), Outcome::Done);
    assert_eq!(cpu.x(2), 0x0100_2211);
    // An odd address: bytes.
    machine.seen.clear();
    assert_eq!(run(&mut cpu, &mut machine, STR, DEVICE - 3), Outcome::Done);
    assert_eq!(machine.load(DEVICE - 8), Some(0x33_2211 << 40));
    assert_eq!(machine.seen, [(DEVICE, 1, Some(0x44))]);
    // No page behind it: RAM's part of a store is done, of a load nothing.
    let mut machine = Machine::new(DEVICE - RAM_SIZE - 0x1000);
    let code = machine.base;
    machine.put(code, STR);
    (cpu.registers.pc, cpu.registers.x[1]) = (code, DEVICE - 0x1002);
    let Outcome::Abort(abort, Cause::Access) = emulate::serve(&mut cpu, &mut machine, 0, By::Write)
    else {
        panic!("no abort");
    };
    assert_eq!(
        (abort.far, abort.code, abort.by),
        (DEVICE - 0x1000, 0x10, By::Write)
    );
    assert_eq!(machine.load(DEVICE - 0x1008), Some(0x2211 << 48));
}

#[test]
fn amidst_a_sequence_the_cpu_is_the_judge_of_alignment() {
    // ldxr w0, [x1], then: ldr w3, [x1, #2]; stp w3, w4, [x5]; ldr w3, [sp]; stxr
    // w2, w0, [x5]: with X5 odd, and the stack pointer no multiple of 16.
    for word in [0xb840_2023, 0x2900_10a3, 0xb940_03e3, 0x8802_7ca0] {
        let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
        (cpu.registers.x[5], cpu.registers.sp) = (DEVICE + 6, [DEVICE + 8; 2]);
        let outcome = run_all(&mut cpu, &mut machine, &[0x885f_7c20, word]);
        assert_eq!(outcome, Outcome::Parted(word), "{word:#x}");
        assert_eq!(machine.seen, [(DEVICE, 4, None)], "{word:#x}");
    }
    // Where it allowed the load, it allows the store: at 16 bytes (FEAT_LSE2).
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    for (n, word) in [0x885f_7c20, 0x8802_7c20].into_iter().enumerate() {
        machine.put(RAM + 4 * n as u64, word);
    }
    cpu.registers.x[1] = DEVICE + 2;
    let outcome = emulate::serve(&mut cpu, &mut machine, DEVICE, By::Read);
    assert_eq!((outcome, cpu.x(2)), (Outcome::Done, 0));
}

#[test]
fn an_atomics_fault_is_a_reads_where_a_read_has_it_too() {
    const READ_ONLY: u64 = 1 << 7;
    const EL0: u64 = 1 << 6;
    const PAN: u64 = 1 << 22;
    // ldadd w0, w2, [x1]; cas w0, w2, [x1]; and str w2, [x1].
    for (word, of_both) in [
        (0xb820_0022, true),
        (0x88a0_7c22, true),
        (0xb900_0022, false),
    ] {
        for (attributes, code, reads) in [
            (Some(AF | READ_ONLY), 0x0f, false),
            (Some(AF | EL0), 0x0f, true),
            (Some(0), 0x0b, true),
            (None, 0x07, true),
        ] {
            let (mut machine, mut cpu) = (Machine::new(RAM), cpu());
            PLAIN.map((&mut machine, &mut cpu), (0x4000, RAM), (3, AF));
            if let Some(attributes) = attributes {
                PLAIN.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, attributes));
            }
            machine.put(RAM, word);
            (cpu.registers.pc, cpu.registers.x[1]) = (0x4000, 0x1000);
            cpu.registers.pstate |= PAN;
            let outcome = emulate::serve(&mut cpu, &mut machine, 0x1000, By::Write);
            let Outcome::Abort(abort, Cause::Access) = outcome else {
                panic!("{outcome:?}");
            };
            let by = if of_both && reads {
                By::Read
            } else {
                By::Write
            };
            assert_eq!((abort.code, abort.by), (code, by), "{word:#x} {code:#x}");
        }
    }
}

#[test]
fn zeros_fill_the_block_that_holds_the_address() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    // dc zva, x2.
    cpu.registers.x[2] = DEVICE + 0x85;
    assert_eq!(
        run_all(&mut cpu, &mut machine, &[0xd50b_7422]),
        Outcome::Done
    );
    let zeros: Vec<_> = (0..64).map(|n| (DEVICE + 0x80 + n, 1, Some(0))).collect();
    assert_eq!(machine.seen, zeros);
}

#[test]
fn unprivileged_accesses_are_el0s_without_uao() {
    for (uao, done) in [(0, false), (1 << 23, true)] {
        let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
        PLAIN.map((&mut machine, &mut cpu), (0x4000, RAM), (3, AF));
        PLAIN.map((&mut machine, &mut cpu), (0x1000, DEVICE), (3, AF));
        // ldtr w0, [x1].
        machine.set(RAM, 0xb840_0820);
        (cpu.registers.pc, cpu.registers.x[1]) = (0x4000, 0x1000);
        cpu.registers.pstate |= uao;
        match emulate::serve(&mut cpu, &mut machine, 0x1000, By::Read) {
            Outcome::Done => assert!(done),
            Outcome::Abort(abort, _) => assert_eq!((abort.code, done), (0x0f, false)),
            outcome => panic!("{outcome:?}"),
        }
    }
}

#[test]
fn an_odd_pc_is_the_guests_to_meet() {
    let (mut cpu, mut machine) = (cpu(), Machine::new(RAM));
    cpu.registers.pc = RAM + 2;
    assert_eq!(
        emulate::serve(&mut cpu, &mut machine, 0, By::Read),
        Outcome::Again
    );
}

#[test]
fn who_met_an_abort_is_told_by_its_syndrome() {
    use arm64::syndrome::Syndrome;
    const WNR: u64 = 1 << 6;
    const CM: u64 = 1 << 8;
    for (esr, by) in [
        (0x24 << 26, By::Read),
        (0x24 << 26 | WNR, By::Write),
        (0x24 << 26 | WNR | CM, By::Maintenance),
        // WnR is RES0 there.
        (0x20 << 26 | WNR, By::Fetch),
    ] {
        assert_eq!(By::of(Syndrome(esr)), by, "{esr:#x}");
    }
}

#[test]
fn el2_is_told_all_of_an_abort_and_nothing_of_the_last() {
    let mut registers = Registers::new_zeroed();
    for (by, iss) in [
        (By::Write, 0x50),
        (By::Fetch, 0x10),
        (By::Maintenance, 0x150),
        (By::Read, 0x10),
    ] {
        let abort = Abort {
            far: 0x1234,
            code: Abort::EXTERNAL,
            by,
        };
        emulate::finish(&mut registers, &Outcome::Abort(abort, Cause::Access));
        assert_eq!((registers.iss, registers.far), (iss, 0x1234));
        assert_eq!(registers.fetch, u64::from(by == By::Fetch));
        assert_eq!(registers.finish, Finish::Abort as u64);
    }
    for (outcome, finish) in [
        (Outcome::Done, Finish::Done),
        (Outcome::Parted(0), Finish::Done),
        (Outcome::Again, Finish::Again),
        (Outcome::Later, Finish::Again),
    ] {
        emulate::finish(&mut registers, &outcome);
        assert_eq!(registers.finish, finish as u64, "{outcome:?}");
    }
}

#[test]
fn what_stands_between_exclusives_is_the_architectures() {
    use host_loader::emulate::integer;
    let run = |word: u32, flags: u64, x: [u64; 3]| {
        let mut cpu = cpu();
        cpu.registers.x[..3].copy_from_slice(&x);
        cpu.set_flags(flags);
        integer::execute(&mut cpu, word).then(|| cpu.x(0))
    };
    const ADC: u32 = 0x9a02_0020;
    const ADD_UXTB: u32 = 0x8b22_0020;
    const CSEL: u32 = 0x9a82_0020;
    const CLS: u32 = 0xdac0_1420;
    // By N, Z, C and V.
    for flags in 0..16 {
        let [n, z, c, v] = [3, 2, 1, 0].map(|bit| flags >> bit & 1 != 0);
        assert_eq!(run(ADC, flags, [0, 1, 2]), Some(3 + u64::from(c)));
        let holds = [
            z,
            !z,
            c,
            !c,
            n,
            !n,
            v,
            !v,
            c && !z,
            !c || z,
            n == v,
            n != v,
            n == v && !z,
            n != v || z,
            true,
            true,
        ];
        for (condition, holds) in holds.into_iter().enumerate() {
            let word = CSEL | (condition as u32) << 12;
            let right = if holds { 1 } else { 2 };
            assert_eq!(
                run(word, flags, [0, 1, 2]),
                Some(right),
                "{condition} {flags:#x}"
            );
        }
    }
    for shift in 0..8 {
        let right = (shift <= 4).then_some(1 + (2 << shift));
        assert_eq!(run(ADD_UXTB | shift << 10, 0, [0, 1, 0x102]), right);
    }
    for (x, wide, narrow) in [
        (0, 63, 31),
        (1, 62, 30),
        (!0, 63, 31),
        (1 << 63 | 1 << 31, 0, 0),
    ] {
        assert_eq!(run(CLS, 0, [0, x, 0]), Some(wide), "{x:#x}");
        assert_eq!(run(CLS & !(1 << 31), 0, [0, x, 0]), Some(narrow), "{x:#x}");
    }
}

/// QEMU 11's `max` has FEAT_CSSC.
#[test]
fn the_short_sequences_of_cssc_are_the_architectures() {
    use host_loader::emulate::integer;
    let run = |word: u32, n: u64, m: u64| {
        let mut cpu = cpu();
        cpu.registers.x[..3].copy_from_slice(&[7, n, m]);
        integer::execute(&mut cpu, word).then(|| cpu.x(0))
    };
    // Encodings of wide forms with X0, X1, and X2 or an immediate of 0xfe.
    const CTZ: u32 = 0xdac0_1820;
    const CNT: u32 = 0xdac0_1c20;
    const ABS: u32 = 0xdac0_2020;
    const OF_TWO: [u32; 4] = [0x9ac2_6020, 0x9ac2_6420, 0x9ac2_6820, 0x9ac2_6c20];
    const IMMEDIATE: [u32; 4] = [0x91c3_f820, 0x91c7_f820, 0x91cb_f820, 0x91cf_f820];
    const NARROW: u32 = 1 << 31;
    for (word, n, wide, narrow) in [
        (CTZ, 0, 64, 32),
        (CTZ, 8, 3, 3),
        (CTZ, 1 << 40, 40, 32),
        (CNT, 0xffff_0000_0000_0001, 17, 1),
        (ABS, -5i64 as u64, 5, 5),
        (ABS, 0x8000_0000, 0x8000_0000, 0x8000_0000),
        (ABS, 1 << 63, 1 << 63, 0),
    ] {
        assert_eq!(run(word, n, 0), Some(wide), "{word:#x} {n:#x}");
        assert_eq!(run(word & !NARROW, n, 0), Some(narrow), "{word:#x} {n:#x}");
    }
    let minus = -2i64 as u64;
    for (n, m, right) in [(1, minus, [1, minus, minus, 1]), (3, 2, [3, 3, 2, 2])] {
        for (word, right) in OF_TWO.into_iter().zip(right) {
            assert_eq!(run(word, n, m), Some(right), "{word:#x}");
            let narrow = right & 0xffff_ffff;
            assert_eq!(run(word & !NARROW, n, m), Some(narrow), "{word:#x}");
        }
    }
    for (word, right) in IMMEDIATE.into_iter().zip([1, 0xfe, minus, 1]) {
        assert_eq!(run(word, 1, 0), Some(right), "{word:#x}");
        // The same with flags to set, and a fifth kind, are none.
        assert_eq!(run(word | 1 << 29, 1, 0), None);
        assert_eq!(run(word | 1 << 20 | 1 << 21, 1, 0), None);
    }
}

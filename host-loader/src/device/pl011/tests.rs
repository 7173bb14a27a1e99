//! The model held against what DDI0183 and QEMU's say.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

#[test]
fn it_is_identified_as_a_pl011() {
    let mut uart = Pl011::new();
    let id: u32 = (0..4).map(|i| uart.read(0xfe0 + 4 * i) << (8 * i)).sum();
    assert_eq!(id & 0xf_ffff, 0x4_1011);
    let cell: u32 = (0..4).map(|i| uart.read(0xff0 + 4 * i) << (8 * i)).sum();
    assert_eq!(cell, 0xb105_f00d);
}

#[test]
fn sending_raises_tx_until_it_is_cleared() {
    let mut uart = Pl011::new();
    assert_eq!(uart.read(FR) & (FR_TXFE | 1 << 5), FR_TXFE);
    assert_eq!(uart.write(DR, 0x141), Some(0x41));
    assert_eq!(uart.line_change(), None);
    assert_eq!(uart.read(RIS), 1 << 5);
    uart.write(IMSC, 1 << 5);
    assert_eq!(uart.line_change(), Some(true));
    assert_eq!(uart.line_change(), None);
    assert_eq!(uart.read(MIS), 1 << 5);
    uart.write(ICR, 1 << 5);
    assert_eq!(uart.line_change(), Some(false));
    assert_eq!(uart.read(RIS), 0);
}

#[test]
fn many_bytes_to_send_are_to_the_model_what_one_is() {
    for mask in [0, 1 << 5] {
        let mut one = Pl011::new();
        one.write(IMSC, mask);
        let mut many = one.clone();
        for byte in 0..99 {
            assert!(many.sends(DR));
            many.write(DR, byte);
        }
        one.write(DR, 0);
        assert_eq!(std::format!("{one:?}"), std::format!("{many:?}"));
    }
}

#[test]
fn what_the_bytes_go_to_is_what_fr_shows() {
    let mut uart = Pl011::new();
    let mut flags = |full, empty, busy| {
        uart.set_sender(Sender { full, empty, busy });
        uart.read(FR) & 0xa8
    };
    assert_eq!(flags(true, false, true), 1 << 5 | 1 << 3);
    assert_eq!(flags(false, false, true), 1 << 3);
    assert_eq!(flags(false, true, false), 1 << 7);
}

#[test]
fn room_that_comes_back_raises_tx() {
    let mut uart = Pl011::new();
    uart.write(IMSC, 1 << 5);
    uart.write(DR, 0x41);
    uart.write(ICR, 1 << 5);
    assert_eq!((uart.line_change(), uart.read(RIS)), (None, 0));
    uart.has_room();
    assert_eq!(uart.line_change(), Some(true));
}

#[test]
fn only_bytes_that_leave_are_sent() {
    let mut uart = Pl011::new();
    for loopback in [0, CR_LBE] {
        uart.write(0x30, CR_RESET | loopback);
        for offset in [DR, 1, FR, LCR_H] {
            let sends = uart.sends(offset);
            assert_eq!(uart.write(offset, 1).is_some(), sends, "{offset:#x}");
        }
    }
}

#[test]
fn the_first_byte_interrupts_whatever_the_level() {
    let mut uart = Pl011::new();
    uart.write(CR, CR_RESET | CR_UARTEN);
    uart.write(LCR_H, 0x70);
    uart.write(0x34, 0x3f);
    uart.write(IMSC, 1 << 4);
    assert!(uart.receive(1));
    assert_eq!(uart.line_change(), Some(true));
    assert_eq!(uart.read(RIS), 1 << 4);
    for i in 1..16 {
        assert_eq!(uart.read(FR) & FR_RXFF, 0);
        assert!(uart.receive(1 + i));
    }
    assert_ne!(uart.read(FR) & FR_RXFF, 0);
    assert!(!uart.receive(99));
    for i in 0..16 {
        assert_eq!(uart.read(RIS), 1 << 4);
        assert_eq!(uart.read(DR), 1 + i);
    }
    assert_ne!(uart.read(FR) & FR_RXFE, 0);
    assert_eq!(uart.line_change(), Some(false));
    // Cleared with a byte waiting: quiet until the next one.
    uart.receive(1);
    uart.write(ICR, 1 << 4);
    assert_eq!(uart.read(RIS), 0);
    uart.receive(2);
    assert_eq!(uart.read(RIS), 1 << 4);
}

#[test]
fn without_the_fifo_there_is_one_place() {
    let mut uart = Pl011::new();
    assert!(uart.receive(1));
    assert!(!uart.receive(2));
    assert_eq!(uart.read(RIS), 1 << 4);
}

#[test]
fn what_came_before_the_uart_was_enabled_is_not_lost() {
    let mut uart = Pl011::new();
    uart.receive(b'h');
    // As firmware sets it up: off, FIFO on, on.
    uart.write(CR, 0);
    uart.write(LCR_H, 0x70);
    uart.write(CR, CR_RESET | CR_UARTEN);
    assert_eq!(uart.read(DR), u32::from(b'h'));
    // A driver that switches the FIFO later empties it.
    uart.receive(b'e');
    uart.write(LCR_H, 0x60);
    assert_eq!(uart.read(FR) & FR_RXFE, FR_RXFE);
}

#[test]
fn registers_are_those_of_qemus_machine() {
    let mut uart = Pl011::new();
    assert_eq!(uart.read(FR), 0x90);
    for (offset, reset, kept) in [
        (0x20, 0, !0),
        (0x24, 0, 0xffff),
        (0x28, 0, 0x3f),
        (LCR_H, 0, !0),
        (CR, CR_RESET, !CR_LBE),
        (0x34, 0x12, !0),
        (IMSC, 0, !0),
        (0x48, 0, !0),
        (0x04, 0, 0),
        (0x08, 0, 0),
    ] {
        assert_eq!(uart.read(offset), reset, "{offset:#x}");
        uart.write(offset, !CR_LBE);
        assert_eq!(uart.read(offset), kept & !CR_LBE, "{offset:#x}");
    }
    // A byte of a register is its lowest one, whichever it is.
    assert_eq!(uart.read(0xfe1) & 0xff, 0x11);
    assert_eq!(uart.write(3, 0x41), Some(0x41));
}

#[test]
fn an_empty_fifo_reads_as_what_last_stood_there() {
    let mut uart = Pl011::new();
    uart.write(CR, CR_RESET | CR_UARTEN);
    // One place deep: it is always the same.
    uart.receive(7);
    assert_eq!([uart.read(DR), uart.read(DR), uart.read(DR)], [7, 7, 7]);
    uart.write(LCR_H, 0x70);
    for byte in 1..=16 {
        uart.receive(byte);
    }
    (1..=16).for_each(|byte| assert_eq!(uart.read(DR), byte));
    assert_eq!((uart.read(DR), uart.read(DR)), (1, 1));
    uart.receive(20);
    assert_eq!((uart.read(DR), uart.read(DR)), (20, 2));
    // Emptied by the switch, it interrupts until somebody looks.
    uart.write(LCR_H, 0x60);
    uart.receive(30);
    uart.write(LCR_H, 0x70);
    assert_eq!((uart.read(RIS), uart.read(FR) & FR_RXFE), (1 << 4, FR_RXFE));
    assert_eq!((uart.read(DR), uart.read(RIS)), (30, 0));
}

#[test]
fn what_loops_back_is_received() {
    let mut uart = Pl011::new();
    uart.write(CR, CR_RESET | CR_LBE | CR_UARTEN);
    assert!(!uart.receive(7), "the line is cut off");
    assert_eq!(uart.write(DR, 0x41), None);
    assert_eq!((uart.read(RIS), uart.read(DR)), (3 << 4, 0x41));
    uart.write(LCR_H, LCR_H_BRK);
    assert_eq!((uart.read(DR), uart.read(0x04)), (0x400, 4));
    uart.write(0x04, 0);
    assert_eq!(uart.read(0x04), 0);
    uart.write(CR, 0x3f80);
    assert_eq!((uart.read(FR), uart.read(RIS)), (0x197, 0x2f));
}

proptest! {
    #[test]
    fn bytes_come_out_in_order_and_the_line_is_what_ris_and_imsc_say(
        steps in prop::collection::vec((0u8..4, 0u64..0x1000, any::<u32>()), 0..300),
    ) {
        let mut uart = Pl011::new();
        uart.write(LCR_H, LCR_H_FEN);
        let mut sent = std::collections::VecDeque::new();
        let mut line = false;
        for (step, offset, value) in steps {
            let value_byte = value as u8;
            if step == 0 && uart.receive(value_byte) {
                sent.push_back(value_byte);
            } else if step == 1 && let Some(first) = sent.pop_front() {
                prop_assert_eq!(uart.read(DR), u32::from(first));
            } else if step == 2 && offset & !3 != DR {
                uart.read(offset);
            } else if step == 3 && ![DR, LCR_H, CR].contains(&(offset & !3)) {
                uart.write(offset, value);
            }
            if let Some(level) = uart.line_change() {
                prop_assert_ne!(level, line);
                line = level;
            }
            prop_assert_eq!(line, uart.read(RIS) & uart.read(IMSC) != 0);
        }
    }
}
extern crate std;

/// A UART whose accesses need not all come to its host, and the host.
struct Posted {
    uart: Pl011,
    page: posted::Page,
    poster: posted::Poster,
    sent: Vec<u8>,
    level: bool,
    /// Accesses that came to the host.
    calls: usize,
}

impl Posted {
    fn new() -> Self {
        Self {
            uart: Pl011::new(),
            page: posted::Page::new(),
            poster: posted::Poster::new(),
            sent: Vec::new(),
            level: false,
            calls: 0,
        }
    }

    /// The host comes, and does one thing itself.
    fn call<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.calls += 1;
        self.page.close();
        while let Some(write) = self.page.next() {
            self.set(write.offset(), write.value());
            self.page.taken();
        }
        let result = f(self);
        self.level = self.uart.line_change().unwrap_or(self.level);
        self.page.show(&self.uart.view());
        result
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.sent.extend(self.uart.write(offset, value));
    }

    fn read(&mut self, offset: u64) -> u32 {
        let access = posted::Access::new(offset, 2).unwrap();
        let value = self.poster.read(&mut &self.page, access);
        match value {
            Some(value) => value as u32,
            None => self.call(|this| this.uart.read(offset)),
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let access = posted::Access::new(offset, 2).unwrap();
        let post = self.poster.write(&mut &self.page, access, value.into());
        match post {
            posted::Post::Done => {}
            posted::Post::Call => self.call(|_| ()),
            posted::Post::Refused => self.call(|this| this.set(offset, value)),
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Read(u64),
    Write(u64, u32),
    Receive(u8),
    Sender(bool, bool),
    Room,
    Come,
}

fn events() -> impl Strategy<Value = Event> {
    let offset = prop_oneof![
        4 => Just(FR),
        4 => Just(DR),
        2 => Just(IMSC),
        2 => Just(RIS),
        2 => Just(ICR),
        1 => Just(CR),
        1 => Just(LCR_H),
        3 => (0u64..64).prop_map(|register| 4 * register),
    ];
    // What they hold mostly: few bits, so that values come again.
    let value = prop_oneof![
        Just(0u32),
        Just(1 << 5),
        Just(1 << 4),
        Just(CR_RESET | CR_UARTEN),
        Just(CR_RESET | CR_LBE | CR_RTS),
        any::<u32>(),
    ];
    prop_oneof![
        8 => offset.clone().prop_map(Event::Read),
        8 => (offset, value).prop_map(|(offset, value)| Event::Write(offset, value)),
        8 => any::<u8>().prop_map(|byte| Event::Write(DR, byte.into())),
        1 => any::<u8>().prop_map(Event::Receive),
        1 => any::<(bool, bool)>().prop_map(|(full, busy)| Event::Sender(full, busy)),
        1 => Just(Event::Room),
        1 => Just(Event::Come),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a guest does, it cannot tell: each read gives the same, the
    /// interrupt has the same level all the time, and the same bytes leave.
    #[test]
    fn accesses_that_need_no_host_are_as_if_it_had_served_them(
        events in prop::collection::vec(events(), 1..400),
    ) {
        let mut plain = Pl011::new();
        let (mut sent, mut level) = (Vec::new(), false);
        let mut other = Posted::new();
        for event in events {
            match event.clone() {
                Event::Read(offset) => {
                    prop_assert_eq!(other.read(offset), plain.read(offset), "{:?}", event);
                }
                Event::Write(offset, value) => {
                    other.write(offset, value);
                    sent.extend(plain.write(offset, value));
                }
                Event::Receive(byte) => {
                    let took = other.call(|this| this.uart.receive(byte));
                    prop_assert_eq!(took, plain.receive(byte));
                }
                Event::Sender(full, busy) => {
                    let sender = Sender { full, empty: !full, busy };
                    other.call(|this| this.uart.set_sender(sender));
                    plain.set_sender(sender);
                }
                Event::Room => {
                    other.call(|this| this.uart.has_room());
                    plain.has_room();
                }
                Event::Come => other.call(|_| ()),
            }
            level = plain.line_change().unwrap_or(level);
            prop_assert_eq!(other.level, level, "{:?}", event);
            prop_assert!(sent.starts_with(&other.sent));
        }
        other.call(|_| ());
        prop_assert_eq!(other.sent, sent);
    }
}

/// What a driver does for each byte when its interrupt is masked, and what
/// Linux does with an interrupt that has been raised.
#[test]
fn a_byte_needs_no_host() {
    for mask in [0, 1 << 5] {
        let mut uart = Posted::new();
        uart.write(CR, CR_RESET | CR_UARTEN);
        uart.write(DR, 0);
        uart.call(|_| ());
        uart.write(IMSC, mask);
        let before = uart.calls;
        for n in 0..1280u32 {
            assert_eq!(uart.read(FR) & FR_TXFF, 0);
            uart.write(DR, n);
            uart.write(IMSC, mask);
        }
        assert_eq!(uart.calls - before, 1280 / posted::CALL_AT as usize);
    }
}

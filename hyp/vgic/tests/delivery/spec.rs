//! What a GIC does, written down plainly: no list registers, no bitmaps, nothing
//! shared with the crate under test.
//!
//! After IHI0069, chapter 4: an interrupt is pending by a latch or by its level,
//! and active from acknowledgement to deactivation; a PE is signalled the
//! pending one of highest priority, if that beats its mask and what it runs.

/// Where an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    To(usize),
    Nowhere,
    Any,
}

#[derive(Clone, Debug)]
pub struct Irq {
    pub intid: u32,
    pub route: Route,
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub line: bool,
    pub latch: bool,
    pub active: bool,
    pub priority: u8,
}

impl Irq {
    fn new(intid: u32, route: Route) -> Self {
        Self {
            intid,
            route,
            enabled: intid < 16,
            group1: false,
            edge: intid < 16,
            line: false,
            latch: false,
            active: false,
            priority: 0,
        }
    }

    pub fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }

    pub fn set_line(&mut self, level: bool) {
        if self.edge && level && !self.line {
            self.latch = true;
        }
        self.line = level;
    }
}

/// An interrupt that a PE acknowledged and has not yet dropped the priority of.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub intid: u32,
    pub priority: u8,
    pub group1: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Pe {
    pub awake: bool,
    pub enables: [bool; 2],
    pub mask: u8,
    pub split: bool,
    pub running: Vec<Running>,
}

/// What a PE may be signalled.
#[derive(Clone, Debug, Default)]
pub struct Signalled {
    /// By priority, those that go to this PE and no other.
    pub must: Vec<(u8, u32)>,
    /// Those that it may get, or another.
    pub may: Vec<(u8, u32)>,
}

#[derive(Clone, Debug)]
pub struct Gic {
    pub enables: [bool; 2],
    pub pes: Vec<Pe>,
    private: Vec<Vec<Irq>>,
    shared: Vec<Irq>,
}

impl Gic {
    pub fn new(pes: usize, spis: u32) -> Self {
        Self {
            enables: [false; 2],
            pes: vec![Pe::default(); pes],
            private: (0..pes)
                .map(|pe| (0..32).map(|n| Irq::new(n, Route::To(pe))).collect())
                .collect(),
            shared: (32..32 + spis).map(|n| Irq::new(n, Route::To(0))).collect(),
        }
    }

    /// The interrupt as PE `pe` names it.
    pub fn irq(&mut self, pe: usize, intid: u32) -> &mut Irq {
        if intid < 32 {
            &mut self.private[pe][intid as usize]
        } else {
            &mut self.shared[intid as usize - 32]
        }
    }

    /// All interrupts that could come to `pe`.
    pub fn irqs_of(&self, pe: usize) -> impl Iterator<Item = &Irq> {
        self.private[pe].iter().chain(&self.shared)
    }

    /// True if a PE runs the handler of the interrupt that `pe` names so.
    pub fn is_running(&self, pe: usize, intid: u32) -> bool {
        self.pes.iter().enumerate().any(|(n, other)| {
            (n == pe || intid >= 32) && other.running.iter().any(|r| r.intid == intid)
        })
    }

    fn running_priority(&self, pe: usize) -> u8 {
        self.pes[pe]
            .running
            .iter()
            .map(|r| r.priority)
            .min()
            .unwrap_or(0xff)
    }

    /// Deliverable but for the PE's own priorities.
    pub fn waits_for(&self, pe: usize, irq: &Irq) -> bool {
        let group = usize::from(irq.group1);
        let here = match irq.route {
            Route::To(target) => target == pe,
            Route::Nowhere => false,
            Route::Any => self.pes[pe].awake,
        };
        here && irq.enabled
            && irq.pending()
            && !irq.active
            && self.enables[group]
            && self.pes[pe].enables[group]
    }

    /// What ends its WFI, if nothing runs.
    pub fn wakes(&self, pe: usize) -> bool {
        self.irqs_of(pe)
            .any(|irq| self.waits_for(pe, irq) && irq.priority < self.pes[pe].mask)
    }

    /// What the PE would be signalled now.
    pub fn signalled(&self, pe: usize) -> Signalled {
        let bar = self.running_priority(pe).min(self.pes[pe].mask);
        let mut signalled = Signalled::default();
        for irq in self.irqs_of(pe) {
            if self.waits_for(pe, irq) && irq.priority < bar {
                let list = if irq.route == Route::Any {
                    &mut signalled.may
                } else {
                    &mut signalled.must
                };
                list.push((irq.priority, irq.intid));
            }
        }
        signalled.must.sort_unstable();
        signalled.may.sort_unstable();
        signalled
    }

    pub fn acknowledge(&mut self, pe: usize, intid: u32) {
        let irq = self.irq(pe, intid);
        irq.latch = false;
        irq.active = true;
        let running = Running {
            intid,
            priority: irq.priority,
            group1: irq.group1,
        };
        self.pes[pe].running.push(running);
    }

    /// EOI of what the PE acknowledged last.
    pub fn end(&mut self, pe: usize) -> Option<Running> {
        let running = self.pes[pe].running.pop()?;
        if !self.pes[pe].split {
            self.irq(pe, running.intid).active = false;
        }
        Some(running)
    }

    pub fn deactivate(&mut self, pe: usize, intid: u32) {
        if self.pes[pe].split {
            self.irq(pe, intid).active = false;
        }
    }

    pub fn send_sgi(&mut self, pe: usize, sgi: u32, any_group: bool) {
        let irq = self.irq(pe, sgi);
        if any_group || !irq.group1 {
            irq.latch = true;
        }
    }
}

//! Stage 2: tables, what is mapped of the host's, and a realm's own memory.

use super::realm::Data;
use super::{BAD, El2, Owner, RealmState, STEP};
use rmi::vendor::Vendor;
use rmi::{Command, Status};
use std::ops::Range;

impl RealmState {
    /// The level at which a walk towards `level` ends.
    fn reach(&self, ipa: u64, level: i64) -> i64 {
        let mut at = self.start;
        while at < level && self.tables.contains_key(&(at + 1, self.base(ipa, at))) {
            at += 1;
        }
        at
    }

    /// Where the entry of `level` begins that covers `ipa`.
    fn base(&self, ipa: u64, level: i64) -> u64 {
        ipa & !(self.size(level) - 1)
    }

    /// Whether the entry of `level` at `ipa` has something.
    fn is_live(&self, level: i64, ipa: u64) -> bool {
        self.tables.contains_key(&(level + 1, ipa))
            || self.mapped.contains_key(&(level, ipa))
            || self.data_from(ipa, level).is_some_and(|at| at == ipa)
    }

    /// Where the table of `level` ends that covers `ipa`.
    fn table_end(&self, ipa: u64, level: i64) -> u64 {
        if level == self.start {
            1 << self.ipa_bits
        } else {
            self.base(ipa, level - 1) + self.size(level - 1)
        }
    }

    /// The next live entry of the table of `level` behind that at `ipa`, or its end
    /// (DEN0137 1.0, RttSkipNonLiveEntries).
    fn top(&self, ipa: u64, level: i64) -> u64 {
        let (entry, end) = (self.size(level), self.table_end(ipa, level));
        let mut top = self.base(ipa, level) + entry;
        while top < end && !self.is_live(level, top) {
            top += entry;
        }
        top
    }

    /// The host's granules that are mapped.
    pub fn maps(&self) -> impl Iterator<Item = u64> {
        let step = self.size(3) as usize;
        let mapped = self.mapped.iter();
        mapped.flat_map(move |(&(level, _), &to)| (to..to + self.size(level)).step_by(step))
    }

    /// The first granule of its own that an entry of `level` at `ipa` itself maps.
    fn data_from(&self, ipa: u64, level: i64) -> Option<u64> {
        let is_leaf = level == self.reach(ipa, 3);
        let mut mapped = self.data.range(ipa..ipa + self.size(level));
        let first = mapped.next().filter(|_| is_leaf);
        first.map(|(&at, _)| at)
    }

    /// Whether these are addresses of its own, by whole granules.
    fn are_own(&self, ipa: u64, top: u64) -> bool {
        ipa < top && (ipa | top).is_multiple_of(self.size(3)) && top <= self.shared
    }
}

impl El2 {
    pub(super) fn rtt(&mut self, command: Command, out: &mut [u64; 4]) -> Status {
        match command {
            Command::RttCreate {
                rd,
                rtt,
                ipa,
                level,
            } => self.rtt_create(rd, rtt, ipa, level),
            Command::RttDestroy { rd, ipa, level } => self.rtt_destroy(rd, ipa, level, out),
            Command::RttMapUnprotected {
                rd,
                ipa,
                level,
                desc,
            } => self.map(rd, ipa, level, desc),
            Command::RttUnmapUnprotected { rd, ipa, level } => self.unmap(rd, ipa, level, out),
            Command::RttInitRipas { rd, base, top } => self.init_ripas(rd, base, top, out),
            Command::RttSetRipas { rd, rec, base, top } => self.set_ripas(rd, rec, base..top, out),
            Command::RttFold { rd, ipa, level } => self.fold(rd, ipa, level, out),
            Command::DataCreate {
                rd,
                data,
                ipa,
                src,
                flags,
            } => self.data_create(rd, data, ipa, (src, flags)),
            other => panic!("{other:x?}"),
        }
    }

    fn of(&mut self, rd: u64) -> Option<&mut RealmState> {
        self.realm.as_mut().filter(|realm| realm.rd == rd)
    }

    fn rtt_create(&mut self, rd: u64, rtt: u64, ipa: u64, level: i64) -> Status {
        let ok = self.is(rtt, Owner::Delegated);
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if !ok || level <= realm.start || level > 3 || !ipa.is_multiple_of(realm.size(level - 1)) {
            return BAD;
        }
        let reached = realm.reach(ipa, level - 1);
        if reached < level - 1 || realm.tables.contains_key(&(level, ipa)) {
            return Status::ErrorRtt(reached as u8);
        }
        realm.tables.insert((level, ipa), rtt);
        // A block that is mapped becomes as many pages.
        if let Some(pa) = realm.mapped.remove(&(level - 1, ipa)) {
            let pages = (0..realm.size(level - 1)).step_by(realm.size(level) as usize);
            let pages = pages.map(|at| ((level, ipa + at), pa + at));
            realm.mapped.extend(pages.collect::<Vec<_>>());
        }
        self.take(rtt, Owner::Rtt);
        Status::Success
    }

    fn rtt_destroy(&mut self, rd: u64, ipa: u64, level: i64, out: &mut [u64; 4]) -> Status {
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if level <= realm.start
            || level > 3
            || !ipa.is_multiple_of(realm.size(level - 1))
            || ipa >= 1 << realm.ipa_bits
        {
            return BAD;
        }
        let reached = realm.reach(ipa, level - 1);
        let top = realm.top(ipa, reached);
        if reached < level - 1 || !realm.tables.contains_key(&(level, ipa)) {
            out[1] = top;
            return Status::ErrorRtt(reached as u8);
        }
        let end = ipa + realm.size(level - 1);
        let mut entries = (ipa..end).step_by(realm.size(level) as usize);
        // A table of what is shared goes with what it maps (DEN0137 1.0, B4.3.16).
        let goes = |at: u64| realm.shared != 0 && realm.mapped.contains_key(&(level, at));
        if entries.any(|at| realm.is_live(level, at) && !goes(at)) {
            out[1] = ipa;
            return Status::ErrorRtt(level as u8);
        }
        let is_in = |at: u64| (ipa..end).contains(&at);
        realm
            .mapped
            .retain(|&(of, at), _| of != level || !is_in(at));
        let rtt = realm.tables.remove(&(level, ipa)).unwrap_or_default();
        realm.ram.retain(|at| !(ipa..end).contains(at));
        out[0] = rtt;
        out[1] = top;
        self.owners.insert(rtt, Owner::Delegated);
        Status::Success
    }

    fn map(&mut self, rd: u64, ipa: u64, level: i64, desc: u64) -> Status {
        if !matches!(level, 2 | 3) {
            return BAD;
        }
        let size = super::entry_size(self.granule_shift, level);
        let pa = desc & rmi::rtt::DESC_OA & !(size - 1);
        let mut granules = (pa..pa + size).step_by(self.granule() as usize);
        let owned = granules.any(|granule| !self.is_hosts(granule));
        let known = 7 << 2 | rmi::rtt::DESC_READ | rmi::rtt::DESC_WRITE;
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if owned
            || !ipa.is_multiple_of(size)
            || desc & !pa & !known != 0
            || ipa < realm.shared
            || ipa + size > 1 << realm.ipa_bits
        {
            return BAD;
        }
        let reached = realm.reach(ipa, level);
        if reached != level || realm.is_live(level, ipa) {
            return Status::ErrorRtt(reached as u8);
        }
        realm.mapped.insert((level, ipa), pa);
        Status::Success
    }

    fn unmap(&mut self, rd: u64, ipa: u64, level: i64, out: &mut [u64; 4]) -> Status {
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if realm.mapped.remove(&(level, ipa)).is_none() {
            return Status::ErrorRtt(realm.start as u8);
        }
        out[0] = ipa + realm.size(level);
        Status::Success
    }

    /// Makes what is unassigned RAM, to the end of one table.
    fn init_ripas(&mut self, rd: u64, base: u64, top: u64, out: &mut [u64; 4]) -> Status {
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        let granule = realm.size(3);
        if base >= top || !(base | top).is_multiple_of(granule) || top > realm.shared {
            return BAD;
        }
        if realm.active {
            return Status::ErrorRealm(0);
        }
        let level = realm.reach(base, 3);
        let (entry, end) = (realm.size(level), realm.table_end(base, level).min(top));
        let mut at = base;
        while at.is_multiple_of(entry) && at + entry <= end && !realm.is_live(level, at) {
            let granules = (at..at + entry).step_by(granule as usize);
            realm.ram.extend(granules);
            at += entry;
        }
        out[0] = at;
        if at > base {
            Status::Success
        } else {
            Status::ErrorRtt(level as u8)
        }
    }

    /// Changes what a vCPU asked to have changed, to the end of one table.
    fn set_ripas(&mut self, rd: u64, rec: u64, ipas: Range<u64>, out: &mut [u64; 4]) -> Status {
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        let level = realm.reach(ipas.start, 3);
        let (entry, granule) = (realm.size(level), realm.size(3));
        let end = ipas.end.min(realm.table_end(ipas.start, level));
        let Some(asks) = realm.asks.as_mut() else {
            return BAD;
        };
        if asks.rec != rec || asks.ipas.start != ipas.start || ipas.end > asks.ipas.end {
            return BAD;
        }
        let mut at = ipas.start;
        while at.is_multiple_of(entry) && at + entry <= end {
            for granule in (at..at + entry).step_by(granule as usize) {
                if asks.to_ram {
                    realm.ram.insert(granule);
                } else {
                    realm.ram.remove(&granule);
                }
            }
            at += entry;
            // As a walk would stop at a table.
            if realm.tables.contains_key(&(level + 1, at)) {
                break;
            }
        }
        asks.ipas.start = at;
        out[0] = at;
        if at > ipas.start {
            Status::Success
        } else {
            Status::ErrorRtt(level as u8)
        }
    }

    /// Makes a block of a table whose pages are one after another.
    fn fold(&mut self, rd: u64, ipa: u64, level: i64, out: &mut [u64; 4]) -> Status {
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        let (size, granule) = (realm.size(level - 1), realm.size(level));
        let Some(&table) = realm.tables.get(&(level, ipa)) else {
            return Status::ErrorRtt(realm.reach(ipa, level - 1) as u8);
        };
        let pages = (ipa..ipa + size).step_by(granule as usize);
        if let Some(&pa) = realm.mapped.get(&(level, ipa)) {
            let follows = |at: u64| realm.mapped.get(&(level, at)) == Some(&(pa + (at - ipa)));
            if !pa.is_multiple_of(size) || !pages.clone().all(follows) {
                return Status::ErrorRtt(level as u8);
            }
            realm
                .mapped
                .retain(|&(of, at), _| of != level || !(ipa..ipa + size).contains(&at));
            realm.mapped.insert((level - 1, ipa), pa);
            realm.tables.remove(&(level, ipa));
            self.owners.insert(table, Owner::Delegated);
            out[0] = table;
            return Status::Success;
        }
        let first = realm.data.get(&ipa).map(|data| data.pa);
        let whole = first.is_some_and(|pa| {
            let mut pages = pages;
            let follows = |at: u64| {
                let data = realm.data.get(&at).map(|data| data.pa);
                data == Some(pa + (at - ipa)) && realm.ram.contains(&at)
            };
            pa.is_multiple_of(size) && pages.all(follows)
        });
        if !whole {
            return Status::ErrorRtt(level as u8);
        }
        realm.tables.remove(&(level, ipa));
        self.owners.insert(table, Owner::Delegated);
        out[0] = table;
        Status::Success
    }

    /// A copy of a granule of the host's, in a delegated one.
    fn data_create(&mut self, rd: u64, data: u64, ipa: u64, (src, flags): (u64, u64)) -> Status {
        let granule = self.granule();
        let Some(content) = self.bytes(src) else {
            return BAD;
        };
        let delegated = self.is(data, Owner::Delegated);
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if flags > 1 || !delegated || !realm.is_realm || !realm.are_own(ipa, ipa + granule) {
            return BAD;
        }
        if realm.active {
            return Status::ErrorRealm(0);
        }
        let level = realm.reach(ipa, 3);
        if level < 3 || realm.data.contains_key(&ipa) {
            return Status::ErrorRtt(level as u8);
        }
        if flags == 1 {
            realm.measured.push(ipa);
        }
        realm.ram.insert(ipa);
        let content = Some(content);
        realm.data.insert(ipa, Data { pa: data, content });
        self.take(data, Owner::Data);
        Status::Success
    }

    /// The calls about a realm's own memory.
    pub(super) fn data(&mut self, call: Vendor, out: &mut [u64; 4]) -> Status {
        match call {
            Vendor::RttDataMap { rd, ipa, top, pa } => {
                let mapped = self.data_map(rd, ipa..top, pa, |_, _| None);
                reached(mapped, out)
            }
            Vendor::RttDataDonate { rd, ipa, top, pa } => {
                if self.of(rd).is_some_and(|realm| realm.active) {
                    return Status::ErrorRealm(0);
                }
                // A realm's content counts.
                if self.of(rd).is_none_or(|realm| realm.is_realm) {
                    return BAD;
                }
                let mapped = self.data_map(rd, ipa..top, pa, |el2, pa| {
                    let content = el2.bytes(pa)?;
                    (el2.delegate(pa) == Status::Success).then_some(content)
                });
                reached(mapped, out)
            }
            Vendor::RttDataUnmap { rd, ipa, top } => self.data_unmap(rd, ipa..top, out),
            other => panic!("{other:x?}"),
        }
    }

    /// Maps pages of one table, or a block. What is not delegated yet, `give` makes so.
    fn data_map(
        &mut self,
        rd: u64,
        ipas: Range<u64>,
        pa: u64,
        give: impl Fn(&mut Self, u64) -> Option<Vec<u8>>,
    ) -> Result<u64, Status> {
        let granule = self.granule();
        let Some(realm) = self.of(rd) else {
            return Err(BAD);
        };
        if !realm.are_own(ipas.start, ipas.end) || !pa.is_multiple_of(granule) {
            return Err(BAD);
        }
        let level = realm.reach(ipas.start, 3);
        let entry = realm.size(level);
        let end = ipas.end.min(realm.table_end(ipas.start, level));
        let is_block = level == 2 && (ipas.start | pa).is_multiple_of(entry);
        if (level < 3 && !is_block) || end - ipas.start < entry {
            return Err(Status::ErrorRtt(level as u8));
        }
        let end = if level == 3 { end } else { ipas.start + entry };
        if realm.data.range(ipas.start..end).next().is_some() {
            // The tests never map over something in the middle.
            return Err(Status::ErrorRtt(level as u8));
        }
        for (n, ipa) in (ipas.start..end).step_by(granule as usize).enumerate() {
            let pa = pa + n as u64 * granule;
            let content = give(self, pa);
            if !self.take(pa, Owner::Data) {
                // Of a block all, or nothing; nor do the tests fail in its middle.
                assert!(level == 3 || n == 0, "a block of which a part is missing");
                return if n == 0 { Err(BAD) } else { Ok(ipa) };
            }
            let Some(realm) = self.of(rd) else {
                return Err(BAD);
            };
            if content.is_some() {
                realm.ram.insert(ipa);
            }
            realm.data.insert(ipa, Data { pa, content });
        }
        Ok(end)
    }

    fn data_unmap(&mut self, rd: u64, ipas: Range<u64>, out: &mut [u64; 4]) -> Status {
        let granule = self.granule();
        let Some(realm) = self.of(rd) else {
            return BAD;
        };
        if !realm.are_own(ipas.start, ipas.end) {
            return BAD;
        }
        let level = realm.reach(ipas.start, 3);
        let size = realm.size(level);
        let first = realm.data.get(&ipas.start).map(|data| data.pa);
        let whole = ipas.start.is_multiple_of(size) && ipas.start + size <= ipas.end;
        let Some(pa) = first.filter(|_| whole) else {
            out[2] = realm.top(ipas.start, level);
            return Status::ErrorRtt(level as u8);
        };
        // As far as EL2 scrubs in one call, and one entry at least.
        let most = ipas.start + size.max(STEP);
        let end = ipas.end.min(realm.table_end(ipas.start, level)).min(most);
        let mut ipa = ipas.start;
        let mut gone = Vec::new();
        while ipa < end && realm.data.get(&ipa).map(|data| data.pa) == Some(pa + ipa - ipas.start) {
            realm.data.remove(&ipa);
            realm.ram.remove(&ipa);
            gone.push(pa + ipa - ipas.start);
            ipa += granule;
        }
        *out = [pa, ipa, realm.top(ipa - size, level), 0];
        for pa in gone {
            self.owners.insert(pa, Owner::Delegated);
        }
        Status::Success
    }

    /// What the guest reads in the granule at `ipa`; `None` where it has nothing.
    pub fn guest_reads(&self, ipa: u64) -> Option<Vec<u8>> {
        let realm = self.realm.as_ref()?;
        if let Some(data) = realm.data.get(&ipa) {
            let zeros = || vec![0; realm.size(3) as usize];
            let read = || data.content.clone().unwrap_or_else(zeros);
            return realm.ram.contains(&ipa).then(read);
        }
        let found = [2, 3].into_iter().find_map(|level| {
            let base = realm.base(ipa, level);
            let to = realm.mapped.get(&(level, base))?;
            Some(to + (ipa - base))
        });
        self.bytes(found?)
    }

    /// The guest fills all that it has of `ipas` with one word.
    pub fn guest_fills(&mut self, ipas: Range<u64>, word: u64) {
        let Some(realm) = &mut self.realm else {
            return;
        };
        let size = realm.size(3) as usize;
        for data in realm.data.range_mut(ipas.clone()).map(|(_, data)| data) {
            data.content = Some(word.to_le_bytes().repeat(size / 8));
        }
        let mapped: Vec<_> = (realm.mapped.iter())
            .filter(|((_, ipa), _)| ipas.contains(ipa))
            .map(|(&(level, _), &pa)| pa..pa + realm.size(level))
            .collect();
        for pa in mapped.into_iter().flat_map(|pas| pas.step_by(size)) {
            self.words(pa).fill(word);
        }
    }
}

/// The status of a call that tells how far it came.
fn reached(mapped: Result<u64, Status>, out: &mut [u64; 4]) -> Status {
    match mapped {
        Ok(top) => {
            out[0] = top;
            Status::Success
        }
        Err(status) => status,
    }
}

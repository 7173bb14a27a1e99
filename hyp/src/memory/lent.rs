//! The host's memory that guests map, counted while they do: by page, in the
//! page's own word, or by block, in the word of the span that it is. The count
//! blocks the delegation of what is counted.

use super::granule::{Granules, State};

impl Granules {
    /// Counts a mapping of `[pa, pa + size)`, a page or a block: false, and nothing
    /// counted, unless all of it is the host's RAM. A block of level 1 is counted as
    /// the blocks of level 2 that it could be.
    pub fn lend(&self, pa: u64, size: u64) -> bool {
        let block = self.span_size();
        if size >= block && size.is_multiple_of(block) {
            let mut blocks = (pa..pa + size).step_by(block as usize);
            let refused = blocks.find(|pa| !self.get_block(*pa));
            if let Some(refused) = refused {
                self.take_back_blocks(pa, refused);
            }
            return refused.is_none();
        }
        match self.get(pa).and_then(|page| page.pin(State::Ns)) {
            Some(pin) if size == self.size() => {
                pin.keep();
                true
            }
            _ => false,
        }
    }

    /// Takes the count of [`Self::lend`] back.
    pub fn take_back(&self, pa: u64, size: u64) {
        if size >= self.span_size() {
            self.take_back_blocks(pa, pa + size);
        } else if let Some(page) = self.get(pa) {
            page.put();
        }
    }

    fn take_back_blocks(&self, from: u64, to: u64) {
        for block in (from..to).step_by(self.span_size() as usize) {
            self.put_block(block);
        }
    }

    /// Counts each page of a block's memory, beside the block: what becomes of a
    /// mapping by one into mappings by the other is counted as both meanwhile.
    /// False, and nothing counted, unless all of it is the host's RAM.
    pub fn lend_pages(&self, block: u64) -> bool {
        let size = self.size();
        for page in (block..block + self.span_size()).step_by(size as usize) {
            if !self.lend(page, size) {
                self.take_back_pages(block, page);
                return false;
            }
        }
        true
    }

    /// Takes the counts of all pages of a block's memory back.
    pub fn take_back_all_pages(&self, block: u64) {
        self.take_back_pages(block, block + self.span_size());
    }

    fn take_back_pages(&self, from: u64, to: u64) {
        let size = self.size();
        for page in (from..to).step_by(size as usize) {
            self.take_back(page, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::phys;
    use crate::memory::region::{Region, Regions};

    const RAM: u64 = 0x4000_0000;

    /// Two spans of RAM in granules of 4 KiB.
    fn table() -> Granules {
        let mut ram = Regions::new();
        let region = Region::new(RAM, 0x40_0000).expect("no overflow");
        ram.insert(region).expect("the first");
        phys::fake::install(0x1_0000, 0x1_0000);
        // SAFETY: the fake memory is this test's.
        unsafe { Granules::new(&ram, 12, 0x1_0000) }
    }

    fn counts(table: &Granules) -> u32 {
        let pages = (RAM..RAM + 0x40_0000).step_by(0x1000);
        pages
            .map(|page| table.get(page).expect("RAM").count())
            .sum()
    }

    #[test]
    fn what_was_lent_is_taken_back_whole() {
        let table = table();
        assert!(table.lend(RAM, 0x1000) && table.lend(RAM, 0x1000));
        assert_eq!(counts(&table), 2);
        assert!(table.lend(RAM, 0x20_0000) && table.lend_pages(RAM));
        assert!(!table.leave_host(RAM, 1), "a block maps it");
        assert_eq!(counts(&table), 2 + 512);
        table.take_back(RAM, 0x20_0000);
        table.take_back_all_pages(RAM);
        table.take_back(RAM, 0x1000);
        table.take_back(RAM, 0x1000);
        assert_eq!(counts(&table), 0);
        assert!(table.leave_host(RAM, 1));
    }

    #[test]
    fn of_what_is_not_all_the_hosts_nothing_is_counted() {
        let table = table();
        let last = RAM + 0x1f_f000;
        let page = table.get(last).expect("RAM");
        page.lock(State::Ns)
            .expect("free")
            .unlock_as(State::Delegated);
        assert!(table.leave_host(last, 1));
        assert!(!table.lend(RAM, 0x20_0000) && !table.lend_pages(RAM));
        assert!(!table.lend(last, 0x1000));
        // No RAM, no page, no size that a mapping has.
        assert!(!table.lend(RAM - 0x1000, 0x1000) && !table.lend(RAM + 8, 0x1000));
        assert!(!table.lend(RAM, 0x2000) && !table.lend(RAM + 0x1000, 0x20_0000));
        assert!(!table.lend(RAM, 0x4000_0000));
        assert_eq!(counts(&table), 0);
    }
}

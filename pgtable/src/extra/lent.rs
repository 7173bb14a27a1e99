//! Memory and CPU that are lent.

use crate::addr::{Level, Pa};
use crate::errata::Errata;
use crate::maintenance::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi};
use crate::mem::TableMem;
use crate::sync::Synced;

impl<M: TableMem> TableMem for &M {
    type Table = M::Table;
    #[inline(always)]
    fn locate(&self, pa: Pa) -> M::Table {
        (**self).locate(pa)
    }
    #[inline(always)]
    fn load(&self, table: M::Table, index: usize) -> u64 {
        (**self).load(table, index)
    }
    #[inline(always)]
    fn store(&self, table: M::Table, index: usize, value: u64) {
        (**self).store(table, index, value);
    }
    #[inline(always)]
    fn cas(&self, table: M::Table, index: usize, old: u64, new: u64) -> Result<(), u64> {
        (**self).cas(table, index, old, new)
    }
    #[inline(always)]
    fn alloc(&self, level: Level) -> Option<Pa> {
        (**self).alloc(level)
    }
    #[inline(always)]
    fn free(&self, table: Pa, level: Level, proof: &Synced) {
        (**self).free(table, level, proof);
    }
    #[inline(always)]
    fn count(&self, table: Pa) -> u32 {
        (**self).count(table)
    }
    #[inline(always)]
    fn add_count(&self, table: Pa, by: i32) {
        (**self).add_count(table, by);
    }
}

impl<T: Maintenance> Maintenance for &mut T {
    #[inline]
    fn barrier(&mut self, barrier: Barrier) {
        (**self).barrier(barrier);
    }
    #[inline]
    fn tlbi(&mut self, op: Tlbi) {
        (**self).tlbi(op);
    }
    #[inline]
    fn cache(&mut self, op: CacheOp) {
        (**self).cache(op);
    }
    #[inline]
    fn stage2(&mut self) -> Stage2Regs {
        (**self).stage2()
    }
    #[inline]
    fn set_stage2(&mut self, regs: Stage2Regs) {
        (**self).set_stage2(regs);
    }
    #[inline]
    fn errata(&self) -> Errata {
        (**self).errata()
    }
}

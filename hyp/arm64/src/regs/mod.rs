//! System registers, named as the manual names them.
//!
//! A name is a register, and a module with its fields and its encoding:
//! `HCR_EL2.get()`, `HCR_EL2::VM`, `HCR_EL2::ENCODING`. Fields are those of
//! `aarch64-cpu` where it has all of them, and ours elsewhere. Its registers are
//! not used: their access is safe whatever it steers, and there is none on the
//! development machine.
#![allow(non_snake_case, non_upper_case_globals)]

use core::marker::PhantomData;

use tock_registers::RegisterLongName;
pub use tock_registers::fields::{Field, FieldValue};

use crate::sysreg::Sysreg;

mod comparators;
mod debug;
mod el1;
mod el2;
mod gic;
mod id;
mod timer;

pub use comparators::*;
pub use debug::*;
pub use el1::*;
pub use el2::*;
pub use gic::*;
pub use id::*;
pub use timer::*;

/// What a register is, and how it is reached.
pub trait Register {
    /// Whose fields it has.
    type Fields: RegisterLongName;
    /// Its name in the manual.
    const NAME: &'static str;
    /// Where `MRS` and `MSR` find it.
    const ENCODING: Sysreg;
    /// Issues `mrs`. Reading one that the CPU has not, or the level may not read,
    /// is an exception.
    fn mrs() -> u64;
    /// Issues `msr`.
    ///
    /// # Safety
    /// As for the register: [`Writable`], [`steering::Steering`].
    ///
    /// [`steering::Steering`]: crate::steering::Steering
    unsafe fn msr(value: u64);
}

/// A register that can be read.
pub trait Readable: Register {}

/// A register that can be written without harm to the level that writes: it is
/// state of a lower level, configures that level's traps, or drives timers and
/// interrupts.
pub trait Writable: Register {}

/// A register of the CPU.
#[derive(Debug)]
pub struct Reg<T>(PhantomData<T>);

impl<T> Clone for Reg<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Reg<T> {}

impl<T: Register> Reg<T> {
    /// The register itself.
    pub(crate) const NEW: Self = Self(PhantomData);

    /// Its name in the manual.
    pub const fn name(self) -> &'static str {
        T::NAME
    }
}

impl<T: Readable> Reg<T> {
    /// Its value.
    #[inline(always)]
    pub fn get(self) -> u64 {
        T::mrs()
    }

    /// The value of a field.
    #[inline(always)]
    pub fn read(self, field: Field<u64, T::Fields>) -> u64 {
        field.read(self.get())
    }

    /// Whether any bit of a field is set.
    #[inline(always)]
    pub fn is_set(self, field: Field<u64, T::Fields>) -> bool {
        field.is_set(self.get())
    }
}

impl<T: Writable> Reg<T> {
    /// Writes it.
    #[inline(always)]
    pub fn set(self, value: u64) {
        // SAFETY: the register's row says that this harms nobody.
        unsafe { T::msr(value) }
    }

    /// Writes fields, and zero to the others.
    #[inline(always)]
    pub fn write(self, value: FieldValue<u64, T::Fields>) {
        self.set(value.value);
    }
}

/// The bits of a field, where they are in the register.
pub const fn mask<R: RegisterLongName>(field: Field<u64, R>) -> u64 {
    field.mask << field.shift
}

/// The bits of some fields of one register, all set: `bits!(HCR_EL2: VM, RW)`.
#[macro_export]
macro_rules! bits {
    ($register:ident: $($field:ident),+ $(,)?) => {
        $($crate::regs::mask($crate::regs::$register::$field))|+
    };
}

/// Registers, one a row: name, Op0 Op1 CRn CRm Op2, access, what it is, and whose
/// the fields are. Access: `r` read, `w` written, `steer` written with a contract
/// (in [`crate::steering`]).
macro_rules! registers {
    ($($name:ident $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal
        [$($access:ident)+] $what:literal $(, $fields:ident)?;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: ", $what, ".")]
        pub mod $name {
            $crate::regs::registers!(@fields $name $($fields)?);
            /// Its encoding.
            pub const ENCODING: $crate::sysreg::Sysreg =
                $crate::sysreg::sysreg($op0, $op1, $crn, $crm, $op2);
            /// The register, as a type.
            #[derive(Debug)]
            pub enum Tag {}
            $($crate::regs::registers!(@access $access);)+
            impl $crate::regs::Register for Tag {
                type Fields = Register;
                const NAME: &'static str = stringify!($name);
                const ENCODING: $crate::sysreg::Sysreg = ENCODING;

                #[cfg(target_os = "none")]
                #[inline(always)]
                fn mrs() -> u64 {
                    let value;
                    // SAFETY: reading a register changes no memory.
                    unsafe {
                        core::arch::asm!(
                            concat!("mrs {}, S", $op0, "_", $op1, "_C", $crn, "_C", $crm, "_", $op2),
                            out(reg) value, options(nomem, nostack, preserves_flags)
                        );
                    }
                    value
                }

                #[cfg(target_os = "none")]
                #[inline(always)]
                unsafe fn msr(value: u64) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        core::arch::asm!(
                            concat!("msr S", $op0, "_", $op1, "_C", $crn, "_C", $crm, "_", $op2, ", {}"),
                            in(reg) value, options(nostack, preserves_flags)
                        );
                    }
                }

                #[cfg(not(target_os = "none"))]
                fn mrs() -> u64 {
                    $crate::recording::mrs(stringify!($name))
                }

                #[cfg(not(target_os = "none"))]
                unsafe fn msr(value: u64) {
                    $crate::recording::msr(stringify!($name), value);
                }
            }
        }
        #[doc = concat!("`", stringify!($name), "`: ", $what, ".")]
        pub const $name: $crate::regs::Reg<$name::Tag> = $crate::regs::Reg::NEW;
    )*
        /// The registers of this file: name, encoding, and how they are reached.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, $crate::sysreg::Sysreg, &[&str])] =
            &[$((stringify!($name), $name::ENCODING, &[$(stringify!($access)),+])),*];
    };
    (@fields $name:ident cpu) => { pub use aarch64_cpu::registers::$name::*; };
    (@fields $name:ident ours) => { pub use $crate::fields::$name::*; };
    (@fields $name:ident) => {
        /// A value without fields.
        pub type Register = ();
    };
    (@access r) => { impl $crate::regs::Readable for Tag {} };
    (@access w) => { impl $crate::regs::Writable for Tag {} };
    (@access steer) => { impl $crate::steering::Steering for Tag {} };
}
use registers;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assembler::assemble;
    use std::string::String;
    use std::vec::Vec;
    use std::{assert_eq, format};

    #[test]
    fn every_register_is_where_the_assembler_has_its_name() {
        let tables = [
            comparators::ALL,
            debug::ALL,
            el1::ALL,
            el2::ALL,
            gic::ALL,
            id::ALL,
            timer::ALL,
        ];
        let (mut lines, mut right): (Vec<String>, Vec<u32>) = (Vec::new(), Vec::new());
        for (name, at, access) in tables.into_iter().flatten() {
            for how in *access {
                let read = *how == "r";
                lines.push(if read {
                    format!("mrs x3, {name}")
                } else {
                    format!("msr {name}, x3")
                });
                right.push(if read { at.mrs(3) } else { at.msr(3) });
            }
        }
        let words = assemble("armv9.4-a+sme", &lines);
        for ((line, word), right) in lines.iter().zip(words).zip(right) {
            assert_eq!(word, right, "{line}");
        }
    }
}

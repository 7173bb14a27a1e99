//! The tables of calls, against their specifications and against themselves.

use proptest::prelude::*;
use rmi::call::{HostCall, Info, TABLES, info};
use rmi::psci::Psci;
use rmi::rsi::Rsi;
use rmi::smccc::trng::Trng;
use rmi::smccc::{SMC64, Smccc, narrow};
use rmi::vendor::Vendor;
use rmi::{Command, fid, psci};

/// What DEN0137 1.0-rel0 (B4.3, B5.3), DEN0022 1.1 (5.1), DEN0028 1.2 (7) and
/// DEN0098 1.0 (2) say: identifier, name, inputs, outputs beside X0.
const SPECIFICATIONS: &str = "\
C4000150 RMI_VERSION 1 2
C4000151 RMI_GRANULE_DELEGATE 1 0
C4000152 RMI_GRANULE_UNDELEGATE 1 0
C4000153 RMI_DATA_CREATE 5 0
C4000154 RMI_DATA_CREATE_UNKNOWN 3 0
C4000155 RMI_DATA_DESTROY 2 2
C4000157 RMI_REALM_ACTIVATE 1 0
C4000158 RMI_REALM_CREATE 2 0
C4000159 RMI_REALM_DESTROY 1 0
C400015A RMI_REC_CREATE 3 0
C400015B RMI_REC_DESTROY 1 0
C400015C RMI_REC_ENTER 2 0
C400015D RMI_RTT_CREATE 4 0
C400015E RMI_RTT_DESTROY 3 2
C400015F RMI_RTT_MAP_UNPROTECTED 4 0
C4000161 RMI_RTT_READ_ENTRY 3 4
C4000162 RMI_RTT_UNMAP_UNPROTECTED 3 1
C4000164 RMI_PSCI_COMPLETE 3 0
C4000165 RMI_FEATURES 1 1
C4000166 RMI_RTT_FOLD 3 1
C4000167 RMI_REC_AUX_COUNT 1 1
C4000168 RMI_RTT_INIT_RIPAS 3 1
C4000169 RMI_RTT_SET_RIPAS 4 1
C4000190 RSI_VERSION 1 2
C4000191 RSI_FEATURES 1 1
C4000192 RSI_MEASUREMENT_READ 1 8
C4000193 RSI_MEASUREMENT_EXTEND 10 0
C4000194 RSI_ATTESTATION_TOKEN_INIT 8 1
C4000195 RSI_ATTESTATION_TOKEN_CONTINUE 3 1
C4000196 RSI_REALM_CONFIG 1 0
C4000197 RSI_IPA_STATE_SET 4 2
C4000198 RSI_IPA_STATE_GET 2 2
C4000199 RSI_HOST_CALL 1 0
80000000 SMCCC_VERSION 0 0
80000001 SMCCC_ARCH_FEATURES 1 0
80003FFF SMCCC_ARCH_WORKAROUND_3 0 0
80008000 SMCCC_ARCH_WORKAROUND_1 0 0
84000000 PSCI_VERSION 0 0
C4000001 PSCI_CPU_SUSPEND 3 0
84000002 PSCI_CPU_OFF 0 0
C4000003 PSCI_CPU_ON 3 0
C4000004 PSCI_AFFINITY_INFO 2 0
84000006 PSCI_MIGRATE_INFO_TYPE 0 0
84000008 PSCI_SYSTEM_OFF 0 0
84000009 PSCI_SYSTEM_RESET 0 0
8400000A PSCI_FEATURES 1 0
84000050 TRNG_VERSION 0 0
84000051 TRNG_FEATURES 1 0
84000052 TRNG_GET_UUID 0 3
";

/// TRNG_RND has up to three outputs, which no trace may show.
const RND: &str = "C4000053 TRNG_RND 1 0\n";

fn row(info: &Info) -> String {
    let (inputs, outputs) = (info.arguments.len(), info.outputs.len());
    format!("{:08X} {} {inputs} {outputs}\n", info.function, info.name)
}

#[test]
fn identifiers_arity_and_outputs_are_the_specifications() {
    let is_vendors = |info: &&Info| info.function >> 24 == 0xc6;
    let (ours, theirs): (Vec<_>, Vec<_>) = TABLES.into_iter().flatten().partition(is_vendors);
    let mut seen: Vec<_> = theirs.into_iter().map(row).collect();
    let spoken = SPECIFICATIONS.to_string() + RND;
    let mut said: Vec<_> = spoken.split_inclusive('\n').map(str::to_string).collect();
    seen.sort();
    said.sort();
    assert_eq!(seen, said);
    assert!(ours.iter().all(|info| info.name.starts_with("VENDOR_")));
    assert_eq!(ours.len(), Vendor::TABLE.len());
}

#[test]
fn no_two_calls_share_an_identifier_or_a_name() {
    let all: Vec<_> = TABLES.into_iter().flatten().collect();
    for (n, one) in all.iter().enumerate() {
        for other in &all[..n] {
            assert!(one.function != other.function && one.name != other.name);
        }
    }
}

/// Every identifier of the ranges that any call is in, and their neighbours.
fn identifiers() -> impl Iterator<Item = u32> {
    [
        0x8000_0000u32,
        0x8400_0000,
        0x8600_0000,
        0xc400_0000,
        0xc600_0000,
    ]
    .into_iter()
    .flat_map(|base| base - 0x10..base + 0x1_0000)
    .chain(0..0x100)
}

/// The forms of a function that a caller may use.
fn forms(function: u64) -> Vec<u64> {
    let both = [Psci::TABLE, Trng::TABLE].into_iter().flatten();
    if both.clone().any(|info| info.function == function) {
        vec![function, narrow(function as u32).into()]
    } else {
        vec![function]
    }
}

#[test]
fn what_decodes_is_in_a_table_and_the_other_way_round() {
    let listed: Vec<_> = TABLES
        .into_iter()
        .flatten()
        .flat_map(|info| forms(info.function))
        .collect();
    for function in identifiers() {
        let decodes = Command::decode(function.into(), [0; 5]).is_some()
            || Vendor::decode(function.into(), [0; 5]).is_some()
            || Rsi::decode(function.into(), [0; 10]).is_some()
            || Psci::read(function, [0; 3]).is_some()
            || Smccc::decode(function, [0; 3]).is_some()
            || Trng::read(function, [0; 3]).is_some();
        let function = u64::from(function);
        assert_eq!(decodes, listed.contains(&function), "{function:#x}");
        assert_eq!(decodes, info(function).is_some(), "{function:#x}");
    }
}

/// Each row's call, of these arguments: in registers, as a type, and back.
fn there_and_back<const N: usize, Call: Copy + PartialEq + std::fmt::Debug>(
    table: &[Info],
    registers: [u64; N],
    decode: impl Fn(u64, [u64; N]) -> Option<Call>,
    encode: impl Fn(Call) -> Vec<u64>,
    of: impl Fn(Call) -> &'static Info,
) {
    for info in table {
        let call = decode(info.function, registers).expect(info.name);
        let encoded = encode(call);
        let arity = info.arguments.len();
        assert_eq!(encoded[0], info.function, "{}", info.name);
        assert_eq!(encoded[1..=arity], registers[..arity], "{}", info.name);
        assert!(encoded[1 + arity..].iter().all(|x| *x == 0));
        let again = encoded[1..].try_into().expect("as many");
        assert_eq!(decode(encoded[0], again), Some(call));
        assert_eq!(of(call), info);
    }
}

proptest! {
    #[test]
    fn a_call_is_the_same_there_and_back(registers in any::<[u64; 10]>()) {
        let [a, b, c, d, e, ..] = registers;
        let (three, five) = ([a, b, c], [a, b, c, d, e]);
        there_and_back(Command::TABLE, five, Command::decode, |c| c.encode().into(), Command::info);
        there_and_back(Vendor::TABLE, five, Vendor::decode, |c| c.encode().into(), Vendor::info);
        there_and_back(Rsi::TABLE, registers, Rsi::decode, |c| c.encode().into(), Rsi::info);
        let decode = |function, x| Psci::decode(function as u32, x);
        there_and_back(Psci::TABLE, three, decode, |c| c.encode().into(), Psci::info);
        let decode = |function, x| Smccc::decode(function as u32, x);
        there_and_back(Smccc::TABLE, three, decode, |c| c.encode().into(), Smccc::info);
        let decode = |function, x| Trng::decode(function as u32, x);
        there_and_back(Trng::TABLE, three, decode, |c| c.encode().into(), Trng::info);
    }

    /// The door of EL2: each call as its own table reads it, and nothing else.
    #[test]
    fn the_host_has_its_calls_and_no_others(
        registers in any::<[u64; 5]>(), any in any::<u64>(), high in 1u64..,
    ) {
        let [a, b, c, d, e] = registers;
        let at = |function| HostCall::decode([function, a, b, c, d, e]);
        for info in TABLES.into_iter().flatten() {
            let function = info.function;
            let narrow = function as u32;
            let own = Command::decode(function, registers).map(HostCall::Rmi)
                .or(Vendor::decode(function, registers).map(HostCall::Vendor))
                .or(Psci::decode(narrow, [a, b, c].map(|x| counted(narrow, x))).map(HostCall::Psci))
                .or(Smccc::decode(narrow, [a, b, c].map(|x| counted(narrow, x))).map(HostCall::Smccc));
            prop_assert_eq!(at(function), own);
            prop_assert_eq!(at(high << 32 | function), None);
            prop_assert_eq!(own.is_some(), !info.name.starts_with("RSI_")
                && !info.name.starts_with("TRNG_"));
        }
        if TABLES.into_iter().flatten().all(|info| !forms(info.function).contains(&any)) {
            prop_assert_eq!(at(any), None);
        }
    }

    /// A 32-bit call has no upper halves (SMCCC 1.2, 3.1).
    #[test]
    fn a_narrow_call_counts_low_halves(registers in any::<[u64; 3]>()) {
        let low = registers.map(|x| x & 0xffff_ffff);
        for info in Psci::TABLE {
            let function = info.function as u32;
            prop_assert_eq!(
                Psci::read(narrow(function), registers),
                Psci::decode(function, low)
            );
        }
        prop_assert_eq!(
            Trng::read(narrow(fid::TRNG_RND), registers),
            Some(Trng::Rnd { bits: low[0] })
        );
        prop_assert_eq!(
            Trng::read(fid::TRNG_RND, registers),
            Some(Trng::Rnd { bits: registers[0] })
        );
    }
}

fn counted(function: u32, register: u64) -> u64 {
    if function & SMC64 == 0 {
        register & 0xffff_ffff
    } else {
        register
    }
}

#[test]
fn psci_features_names_the_table_and_nothing_else() {
    for function in identifiers() {
        let known = Psci::TABLE
            .iter()
            .flat_map(|info| forms(info.function))
            .any(|known| known == u64::from(function))
            || function == fid::SMCCC_VERSION;
        let told = psci::features(function.into()) == psci::SUCCESS;
        assert_eq!(told, known, "{function:#x}");
    }
}

#[test]
fn a_level_is_signed() {
    let call = Command::RttReadEntry {
        rd: 1,
        ipa: 2,
        level: -1,
    };
    assert_eq!(call.encode()[3], u64::MAX);
    let registers = [1, 2, u64::MAX, 7, 7];
    assert_eq!(
        Command::decode(fid::RMI_RTT_READ_ENTRY, registers),
        Some(call)
    );
}

//! Function identifiers (SMCCC 1.2: bit 31 fast, bit 30 SMC64, 29:24 owner).
//!
//! RMI is 0xC400_0150 + n and RSI 0xC400_0190 + n (DEN0137 1.0). The gaps at
//! 0x156, 0x160 and 0x163 are the specification's.

/// `RMI_VERSION(requested)`: X1 lower, X2 higher supported revision.
pub const RMI_VERSION: u64 = 0xC400_0150;
/// `RMI_GRANULE_DELEGATE(pa)`.
pub const RMI_GRANULE_DELEGATE: u64 = 0xC400_0151;
/// `RMI_GRANULE_UNDELEGATE(pa)`.
pub const RMI_GRANULE_UNDELEGATE: u64 = 0xC400_0152;
/// `RMI_DATA_CREATE(rd, data, ipa, src, flags)`.
pub const RMI_DATA_CREATE: u64 = 0xC400_0153;
/// `RMI_DATA_CREATE_UNKNOWN(rd, data, ipa)`.
pub const RMI_DATA_CREATE_UNKNOWN: u64 = 0xC400_0154;
/// `RMI_DATA_DESTROY(rd, ipa)`: X1 data granule, X2 top.
pub const RMI_DATA_DESTROY: u64 = 0xC400_0155;
/// `RMI_REALM_ACTIVATE(rd)`.
pub const RMI_REALM_ACTIVATE: u64 = 0xC400_0157;
/// `RMI_REALM_CREATE(rd, params)`.
pub const RMI_REALM_CREATE: u64 = 0xC400_0158;
/// `RMI_REALM_DESTROY(rd)`.
pub const RMI_REALM_DESTROY: u64 = 0xC400_0159;
/// `RMI_REC_CREATE(rd, rec, params)`.
pub const RMI_REC_CREATE: u64 = 0xC400_015A;
/// `RMI_REC_DESTROY(rec)`.
pub const RMI_REC_DESTROY: u64 = 0xC400_015B;
/// `RMI_REC_ENTER(rec, run)`.
pub const RMI_REC_ENTER: u64 = 0xC400_015C;
/// `RMI_RTT_CREATE(rd, rtt, ipa, level)`.
pub const RMI_RTT_CREATE: u64 = 0xC400_015D;
/// `RMI_RTT_DESTROY(rd, ipa, level)`: X1 rtt granule, X2 top.
pub const RMI_RTT_DESTROY: u64 = 0xC400_015E;
/// `RMI_RTT_MAP_UNPROTECTED(rd, ipa, level, desc)`.
pub const RMI_RTT_MAP_UNPROTECTED: u64 = 0xC400_015F;
/// `RMI_RTT_READ_ENTRY(rd, ipa, level)`: X1 level, X2 state, X3 desc, X4 ripas.
pub const RMI_RTT_READ_ENTRY: u64 = 0xC400_0161;
/// `RMI_RTT_UNMAP_UNPROTECTED(rd, ipa, level)`: X1 top.
pub const RMI_RTT_UNMAP_UNPROTECTED: u64 = 0xC400_0162;
/// `RMI_PSCI_COMPLETE(calling rec, target rec, status)`.
pub const RMI_PSCI_COMPLETE: u64 = 0xC400_0164;
/// `RMI_FEATURES(index)`: X1 the feature register, see [`crate::feature`].
pub const RMI_FEATURES: u64 = 0xC400_0165;
/// `RMI_RTT_FOLD(rd, ipa, level)`: X1 rtt granule.
pub const RMI_RTT_FOLD: u64 = 0xC400_0166;
/// `RMI_REC_AUX_COUNT(rd)`: X1 auxiliary granules each REC needs.
pub const RMI_REC_AUX_COUNT: u64 = 0xC400_0167;
/// `RMI_RTT_INIT_RIPAS(rd, base, top)`: X1 top reached.
pub const RMI_RTT_INIT_RIPAS: u64 = 0xC400_0168;
/// `RMI_RTT_SET_RIPAS(rd, rec, base, top)`: X1 top reached.
pub const RMI_RTT_SET_RIPAS: u64 = 0xC400_0169;

/// `RSI_VERSION(requested)`; plain guests are answered `NOT_SUPPORTED`.
pub const RSI_VERSION: u64 = 0xC400_0190;
/// The last identifier of the RSI range.
pub const RSI_LAST: u64 = 0xC400_01AF;

/// `SMCCC_VERSION()` (DEN0028).
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// `SMCCC_ARCH_FEATURES(fid)`.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// `SMCCC_ARCH_WORKAROUND_1()`: branch predictor invalidation, CVE-2017-5715.
pub const SMCCC_ARCH_WORKAROUND_1: u32 = 0x8000_8000;

/// `PSCI_VERSION()` (DEN0022).
pub const PSCI_VERSION: u32 = 0x8400_0000;
/// `PSCI_CPU_SUSPEND`, SMC32.
pub const PSCI_CPU_SUSPEND_32: u32 = 0x8400_0001;
/// `PSCI_CPU_SUSPEND`, SMC64.
pub const PSCI_CPU_SUSPEND_64: u32 = 0xC400_0001;
/// `PSCI_CPU_OFF()`.
pub const PSCI_CPU_OFF: u32 = 0x8400_0002;
/// `PSCI_CPU_ON(target mpidr, entry, context)`, SMC32.
pub const PSCI_CPU_ON_32: u32 = 0x8400_0003;
/// `PSCI_CPU_ON(target mpidr, entry, context)`, SMC64.
pub const PSCI_CPU_ON_64: u32 = 0xC400_0003;
/// `PSCI_AFFINITY_INFO(target mpidr, level)`, SMC32.
pub const PSCI_AFFINITY_INFO_32: u32 = 0x8400_0004;
/// `PSCI_AFFINITY_INFO(target mpidr, level)`, SMC64.
pub const PSCI_AFFINITY_INFO_64: u32 = 0xC400_0004;
/// `PSCI_MIGRATE_INFO_TYPE()`.
pub const PSCI_MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// `PSCI_SYSTEM_OFF()`.
pub const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
/// `PSCI_SYSTEM_RESET()`.
pub const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;
/// `PSCI_FEATURES(fid)`.
pub const PSCI_FEATURES: u32 = 0x8400_000A;

/// `TRNG_VERSION()` (DEN0098).
pub const TRNG_VERSION: u32 = 0x8400_0050;
/// `TRNG_FEATURES(fid)`.
pub const TRNG_FEATURES: u32 = 0x8400_0051;
/// `TRNG_GET_UUID()`.
pub const TRNG_GET_UUID: u32 = 0x8400_0052;
/// `TRNG_RND(bits)`, SMC32: at most 96 bits.
pub const TRNG_RND_32: u32 = 0x8400_0053;
/// `TRNG_RND(bits)`, SMC64: at most 192 bits.
pub const TRNG_RND_64: u32 = 0xC400_0053;

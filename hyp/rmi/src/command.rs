//! The commands of RMI 1.0 (DEN0137 1.0-rel0, B4.3), as the host makes them.
//!
//! X0 of an answer is a [`crate::Status`]. Identifiers are 0xC400_0150 + n; the
//! gaps at 0x156, 0x160 and 0x163 are the specification's.

use crate::table::calls;

calls! {
    /// A command of the host's.
    enum Command(u64), "", 5 arguments;

    /// Which revisions are offered, around the one that is requested.
    0xC400_0150 RMI_VERSION = Version { requested } -> [lower, higher];
    /// Takes a granule from the host.
    0xC400_0151 RMI_GRANULE_DELEGATE = GranuleDelegate { pa };
    /// Gives a granule back to the host.
    0xC400_0152 RMI_GRANULE_UNDELEGATE = GranuleUndelegate { pa };
    /// Copies `src` into the granule `data`, memory of a new realm at `ipa`.
    0xC400_0153 RMI_DATA_CREATE = DataCreate { rd, data, ipa, src, flags };
    /// Makes the granule `data` memory of a realm at `ipa`, all zero.
    0xC400_0154 RMI_DATA_CREATE_UNKNOWN = DataCreateUnknown { rd, data, ipa };
    /// Takes the memory at `ipa` out of a realm.
    0xC400_0155 RMI_DATA_DESTROY = DataDestroy { rd, ipa } -> [data, top];
    /// Lets a realm run.
    0xC400_0157 RMI_REALM_ACTIVATE = RealmActivate { rd };
    /// Makes a realm of the granule `rd`, by [`crate::params::RealmParams`].
    0xC400_0158 RMI_REALM_CREATE = RealmCreate { rd, params };
    /// Ends a realm.
    0xC400_0159 RMI_REALM_DESTROY = RealmDestroy { rd };
    /// Makes a vCPU of the granule `rec`, by [`crate::params::RecParams`].
    0xC400_015A RMI_REC_CREATE = RecCreate { rd, rec, params };
    /// Ends a vCPU.
    0xC400_015B RMI_REC_DESTROY = RecDestroy { rec };
    /// Runs a vCPU until the host is needed, by [`crate::run::RecRun`].
    0xC400_015C RMI_REC_ENTER = RecEnter { rec, run };
    /// Makes the granule `rtt` the table of `level` at `ipa`.
    0xC400_015D RMI_RTT_CREATE = RttCreate { rd, rtt, ipa, level: i64 };
    /// Takes the table of `level` at `ipa` out of a realm.
    0xC400_015E RMI_RTT_DESTROY = RttDestroy { rd, ipa, level: i64 } -> [rtt, top];
    /// Maps the host's memory by `desc`, see [`crate::rtt`].
    0xC400_015F RMI_RTT_MAP_UNPROTECTED = RttMapUnprotected { rd, ipa, level: i64, desc };
    /// What stands at `ipa`; the level found is signed.
    0xC400_0161 RMI_RTT_READ_ENTRY = RttReadEntry { rd, ipa, level: i64 }
        -> [level, state, desc, ripas];
    /// Unmaps the host's memory.
    0xC400_0162 RMI_RTT_UNMAP_UNPROTECTED = RttUnmapUnprotected { rd, ipa, level: i64 } -> [top];
    /// Answers the PSCI call of one vCPU about another; `status` is PSCI's.
    0xC400_0164 RMI_PSCI_COMPLETE = PsciComplete { calling, target, status: i64 };
    /// A feature register, see [`crate::feature`].
    0xC400_0165 RMI_FEATURES = Features { index } -> [value];
    /// Makes one entry of the table of `level` at `ipa`.
    0xC400_0166 RMI_RTT_FOLD = RttFold { rd, ipa, level: i64 } -> [rtt];
    /// Auxiliary granules that each vCPU of a realm needs.
    0xC400_0167 RMI_REC_AUX_COUNT = RecAuxCount { rd } -> [count];
    /// Makes `[base, top)` of a new realm RAM.
    0xC400_0168 RMI_RTT_INIT_RIPAS = RttInitRipas { rd, base, top } -> [top];
    /// Changes `[base, top)` as the vCPU asked for.
    0xC400_0169 RMI_RTT_SET_RIPAS = RttSetRipas { rd, rec, base, top } -> [top];
}

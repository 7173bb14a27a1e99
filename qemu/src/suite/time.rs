//! What time it is, and how its CPUs stand to each other, as a guest sees it.

use anyhow::Result;

use super::call::Call;
use super::{Case, Context};

/// The cases.
pub fn cases() -> Vec<Case> {
    let case = |mode: &'static str| {
        let body = move |context: &Context| time_of_day(context, mode);
        Case::new(format!("boots/time-of-day-{mode}"), body).boots(&["debian13"])
    };
    ["plain", "protected"].map(case).into()
}

/// The machine's clock is the guest's too, and calls it when it is asked to.
fn time_of_day(context: &Context, mode: &str) -> Result<()> {
    const TASK: &str = "date +%Y-%m-%d; echo +2 >/sys/class/rtc/rtc0/wakealarm; \
         until awk '/rtc-pl031/ && $2 + $3 == 1 { came = 1 } END { exit !came }' \
             /proc/interrupts; do sleep 1; done; \
         cat /sys/devices/system/cpu/cpu1/topology/cluster_cpus";
    Call::run(context)?
        .args(["--mode", mode, "--smp", "2", "--exec", TASK])
        .args(["--", "-rtc", "base=2031-02-03T04:05:06,clock=vm"])
        .call()?
        .ended(0)?
        .printed("2031-02-03\n3\n")?
        .calmly()?;
    Ok(())
}

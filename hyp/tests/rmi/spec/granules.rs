//! Memory changes owner.

use super::{Content, NOTHING, Outcome, Spec, State, Status, ask, one};

impl Spec {
    /// RMI_GRANULE_DELEGATE. No realm has it mapped: Undercroft's, for there is no
    /// RME that would keep the realm from it.
    pub(super) fn granule_delegate(&mut self, pa: u64) -> Outcome {
        ask(self.can_go(pa), Status::Input)?;
        self.becomes(pa, State::Delegated, Content::ZERO);
        Ok(NOTHING)
    }

    /// RMI_GRANULE_UNDELEGATE.
    pub(super) fn granule_undelegate(&mut self, pa: u64) -> Outcome {
        let back = [State::Delegated, State::Unscrubbed];
        ask(back.iter().any(|state| self.is(pa, *state)), Status::Input)?;
        self.becomes(pa, State::Ns, Content::ZERO);
        Ok(NOTHING)
    }

    pub(super) fn can_go(&self, pa: u64) -> bool {
        self.granule(pa)
            .is_some_and(|granule| granule.state == State::Ns && granule.uses == 0)
            && !self.in_block(pa)
    }

    /// GRANULE_RANGE_DELEGATE.
    pub(super) fn granule_range_delegate(&mut self, base: u64, top: u64) -> Outcome {
        let end = self.range(base, top, Self::can_go)?;
        self.all_become(base, end, State::Delegated)
    }

    /// GRANULE_RANGE_UNDELEGATE.
    pub(super) fn granule_range_undelegate(&mut self, base: u64, top: u64) -> Outcome {
        // All in the state that the first is in.
        let state = if self.is(base, State::Unscrubbed) {
            State::Unscrubbed
        } else {
            State::Delegated
        };
        let end = self.range(base, top, |spec, pa| spec.is(pa, state))?;
        self.all_become(base, end, State::Ns)
    }

    /// How far granules from `base` on can change, to the next multiple of 2 MiB at
    /// most: one at least.
    fn range(&self, base: u64, top: u64, can: impl Fn(&Self, u64) -> bool) -> Result<u64, Status> {
        const STEP: u64 = 2 << 20;
        let page = self.machine.page();
        ask(base < top && top.is_multiple_of(page), Status::Input)?;
        let most = top.min((base / STEP).saturating_add(1).saturating_mul(STEP));
        let mut end = base;
        while end < most && can(self, end) {
            end += page;
        }
        ask(end > base, Status::Input)?;
        Ok(end)
    }

    fn all_become(&mut self, base: u64, end: u64, state: State) -> Outcome {
        for pa in (base..end).step_by(self.machine.page() as usize) {
            self.becomes(pa, state, Content::ZERO);
        }
        Ok(one(end))
    }
}

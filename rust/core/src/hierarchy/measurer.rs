//! The thread that looks after tiers that do not work: it asks them whether they do again, and
//! measures those that could not be measured, so that no caller has to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bell::{Bell, Next};
use super::{Condition, Hierarchy, Mover};
use crate::error::Result;
use crate::tier::Deadline;

/// Time after which a tier that could not be measured is measured again, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The thread looks no more often, however short the breakers' pauses are.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// When a tier without figures is measured again.
#[derive(Debug, Clone, Copy)]
struct Patience {
    pause: Duration,
    again_at: Instant,
}

impl Hierarchy {
    /// Starts the thread, once only. As often as a breaker lets a probe through, it asks each
    /// degraded tier whether it works again. One that has no figures is measured, for `tier_limit`
    /// at most: at once if it was degraded, else after pauses that double up to 30 s.
    ///
    /// Without a limit nothing is measured.
    pub fn start_measuring(&self, tier_limit: Option<Duration>) -> Result<()> {
        self.mover.check_open()?;
        let mover = Arc::clone(&self.mover);
        self.measurer.start("hisparse-measure", move |bell| serve(&mover, bell, tier_limit))
    }
}

fn serve(mover: &Arc<Mover>, bell: &Bell, tier_limit: Option<Duration>) {
    let first_pause = mover.limits.breaker.probe_every.max(SHORTEST_PAUSE);
    let mut tiers = vec![Patience::after(first_pause); mover.below.len()];
    while bell.wait(Next::After(first_pause)) {
        for (number, patience) in tiers.iter_mut().enumerate() {
            // what fails is tried again at the next round
            let _ = mover.look_after(number, patience, first_pause, tier_limit);
        }
    }
    let _ = mover.remove_all_probes(Deadline::after(mover.limits.call_limit));
}

impl Mover {
    fn look_after(
        self: &Arc<Self>,
        number: usize,
        patience: &mut Patience,
        first_pause: Duration,
        tier_limit: Option<Duration>,
    ) -> Result<()> {
        if self.below[number].condition()? == Condition::Degraded {
            *patience = Patience::after(Duration::ZERO);
            self.ask(number)?;
        }
        let Some(limit) = tier_limit.filter(|_| patience.is_over()) else { return Ok(()) };
        if !self.measure_if_missing(number, limit)? {
            *patience = patience.longer(first_pause);
        }
        Ok(())
    }
}

impl Patience {
    fn after(pause: Duration) -> Self {
        Self { pause, again_at: Instant::now() + pause }
    }

    fn is_over(self) -> bool {
        Instant::now() >= self.again_at
    }

    fn longer(self, first_pause: Duration) -> Self {
        Self::after((2 * self.pause).clamp(first_pause, LONGEST_PAUSE.max(first_pause)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let first = Duration::from_secs(1);
        let mut patience = Patience::after(first);
        let pauses = [(); 7].map(|()| {
            patience = patience.longer(first);
            patience.pause.as_secs()
        });
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30, 30]);
        let again = Patience::after(Duration::ZERO);
        assert!(again.is_over() && !again.longer(first).is_over());
        assert_eq!(again.longer(first).pause, first);
    }
}

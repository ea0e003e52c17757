//! The end of a pass: sums of gradients, finite check, loss scale, update, running statistics, outcome.

use super::compare::{Allowed, UNIT, Want, to_f64};
use super::layers::{Layers, Sent};
use super::norms::Update;
use crate::backend::RUNNING_MOMENTUM;
use crate::backend::cuda::abi::{self, Outcome, State};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::{from_stored, to_stored};
use crate::backend::cuda::plan::params::Statistic;
use crate::backend::cuda::plan::region::{Arena, Region};
use crate::backend::cuda::plan::{OUTCOME_RING, Purpose, ScalePolicy};
use crate::error::Result;
use crate::optim::Rule;
use crate::optim::sgd::Sgd;
use crate::tensor::first_non_finite;

impl<M: Machine> Layers<'_, M> {
    pub fn update(&mut self, sent: &Sent) -> Result<()> {
        let (summed, finishing) = match self.seen.plan.options.purpose {
            Purpose::Accumulate => (true, false),
            Purpose::Finish { sum } => (sum, true),
            Purpose::Evaluate | Purpose::Replay => unreachable!("only training passes update"),
        };
        let gradient = if summed { self.accumulate(sent)? } else { self.pass_gradient()? };
        self.running()?;
        let decision = self.state(&gradient, finishing)?;
        if finishing {
            let update = self.update_of(&gradient, &decision);
            let recipe = self.seen.plan.options.recipe;
            let by = if recipe.needs_norm() { Some(self.clip(sent, &update)?) } else { None };
            match (&sent.step.rule, by) {
                (Rule::Sgd(rule), by) => self.sgd(rule, &update, by.map(|by| by.clip))?,
                (Rule::Lamb(rule), Some(by)) => self.lamb(rule, &update, &by)?,
                (Rule::Lamb(_), None) => unreachable!("LAMB needs the norm"),
                (Rule::Lars(rule), by) => self.lars(rule, &update, by.map_or(1.0, |by| by.clip))?,
            }
            if self.seen.plan.options.recipe.averages {
                let decay = sent.step.ema_decay.unwrap_or(1.0);
                self.moving_averages(decay, decision.skip != 0)?;
            }
        }
        Ok(())
    }

    /// The gradients of one pass over the flat parameter space.
    fn pass_gradient(&self) -> Result<Vec<f32>> {
        let (matrices, vectors) = self.seen.plan.layout.all_gradients(self.seen.storage());
        let mut flat = self.seen.stored(matrices)?;
        flat.extend(self.seen.f32s(vectors)?);
        Ok(flat)
    }

    fn flat(&self, arena: Arena) -> Region {
        self.seen.plan.layout.all_f32(arena)
    }

    /// The sum over the passes of an optimiser step; one f32 addition an element.
    fn accumulate(&mut self, sent: &Sent) -> Result<Vec<f32>> {
        let mut want = self.pass_gradient()?;
        if sent.step.index > 0 {
            let before = self.seen.before.f32s(self.flat(Arena::GradientSum));
            want.iter_mut().zip(&before).for_each(|(sum, before)| *sum += before);
        }
        let got = self.seen.f32s(self.flat(Arena::GradientSum))?;
        let nodes = ["accumulate".to_owned()];
        self.note("gradient sum", &nodes, "gradients", &to_f64(&got), &Want::exactly(&want));
        Ok(got)
    }

    fn running(&mut self) -> Result<()> {
        // A pass with a loss that is not finite leaves them; the comparison of the state tells of it.
        if self.seen.plan.layout.trained_channels() == 0 {
            return Ok(());
        }
        for (of_variance, kind) in [(false, Statistic::Mean), (true, Statistic::Variance)] {
            let region = self.seen.plan.layout.group_running(false, of_variance);
            let (before, after) = (self.seen.before.f32s(region), self.seen.f32s(region)?);
            let batch = self.seen.f32s(self.seen.plan.layout.statistics(kind, false))?;
            let blend = |(&old, &new): (&f32, &f32)| {
                let (old, new) =
                    ((1.0 - RUNNING_MOMENTUM) * f64::from(old), RUNNING_MOMENTUM * f64::from(new));
                (old + new, 4.0 * UNIT * (old.abs() + new.abs()))
            };
            let (values, allowed) = before.iter().zip(&batch).map(blend).unzip();
            let want = Want { values, allowed: Allowed::Each(allowed) };
            let what = if of_variance { "running variances" } else { "running means" };
            self.note("running statistics", &["bn_running".to_owned()], what, &to_f64(&after), &want);
        }
        Ok(())
    }

    /// Finite check, loss scale and counters; returns the decision.
    fn state(&mut self, gradient: &[f32], finishing: bool) -> Result<Decision> {
        let before = self.seen.before.state();
        let bad = highest_non_finite(gradient);
        let policy = self.seen.plan.options.scale;
        let want = if finishing { Decision::of(&before, bad, &policy) } else { Decision::none(&before) };
        let names: &[&str] =
            if finishing { &["finite_check", "update_scale", "end_pass"] } else { &["end_pass"] };
        // The loss's sum marks the state where it is not finite.
        let nodes: Vec<String> =
            names.iter().chain(&["loss.finalize"]).map(|&name| name.to_owned()).collect();
        let after = self.seen.state()?;
        let expected = State { pass: before.pass + 1, skip: 0, bad: 0, ..want.state };
        let want_state = Want::exactly(&numbers(&expected));
        self.note("scale and counters", &nodes, "state", &to_f64(&numbers(&after)), &want_state);
        let size = size_of::<Outcome>() as u64;
        let at = u64::from(before.pass) % OUTCOME_RING as u64 * size;
        let outcome: Outcome =
            bytemuck::pod_read_unaligned(&self.seen.bytes(Region::new(Arena::Outcomes, at, size))?);
        let got = [
            f64::from(outcome.scale),
            f64::from(outcome.bad),
            f64::from(outcome.flags),
            f64::from(outcome.pass),
        ];
        let flags = if want.skip != 0 { abi::SKIPPED } else { 0 };
        let reported = if finishing { bad } else { 0 };
        let expected = [before.scale, reported as f32, flags as f32, before.pass as f32];
        self.note("scale and counters", &nodes, "outcome", &got, &Want::exactly(&expected));
        Ok(want)
    }

    /// Weights, velocities and the weights' copy: same bits as the CPU's rule. `clip`: what gradients are divided by.
    fn sgd(&mut self, rule: &Sgd, update: &Update, clip: Option<f32>) -> Result<()> {
        let mut weights = self.seen.before.f32s(self.flat(Arena::Master));
        let mut velocities = self.seen.before.f32s(self.flat(Arena::Momentum));
        if !update.skip {
            let clipped = |gradient: &f32| clip.map_or(*gradient, |clip| gradient / clip);
            let gradient: Vec<f32> = update.gradient.iter().map(clipped).collect();
            let layout = &self.seen.plan.layout;
            let (end, trained) = (layout.decay_end(self.seen.plan.options.decay), layout.trained);
            let exempt = Sgd { weight_decay: 0.0, ..*rule };
            rule.step(&mut weights[..end], &mut velocities[..end], &gradient[..end]);
            exempt.step(&mut weights[end..trained], &mut velocities[end..], &gradient[end..]);
        }
        let got = to_f64(&self.seen.f32s(self.flat(Arena::Momentum))?);
        self.note("update", &["sgd".to_owned()], "velocities", &got, &Want::exactly(&velocities));
        self.weights_and_copies("sgd", &weights)
    }

    /// What `node` has made of the weights, and their copy in the storage type, whether or not they have moved.
    pub(super) fn weights_and_copies(&mut self, node: &str, want: &[f32]) -> Result<()> {
        let storage = self.seen.storage();
        let copies = self.seen.stored(self.seen.plan.layout.all_weights(storage))?;
        let after = [
            ("weights", self.seen.f32s(self.flat(Arena::Master))?, want.to_vec()),
            ("copies of the weights", copies, from_stored(storage, &to_stored(storage, want))),
        ];
        for (what, got, want) in after {
            self.note("update", &[node.to_owned()], what, &to_f64(&got), &Want::exactly(&want));
        }
        Ok(())
    }

    /// average = decay average + (1 - decay) new, of the weights and of the running statistics: two products and a sum.
    fn moving_averages(&mut self, decay: f32, skip: bool) -> Result<()> {
        let layout = &self.seen.plan.layout;
        let running = Region::new(Arena::Running, 0, 8 * layout.channels as u64);
        let averages = Region { arena: Arena::RunningEma, ..running };
        let weights = [self.flat(Arena::Ema), self.flat(Arena::Master)];
        let kinds = [
            ("ema", weights, layout.trained),
            ("ema.running", [averages, running], 2 * layout.trained_channels()),
        ];
        for (node, [average, of], moving) in kinds {
            let before = self.seen.before.f32s(average);
            let (old, new) = (f64::from(decay), f64::from(1.0 - decay));
            let blend = |(index, (&before, &now)): (usize, (&f32, &f32))| {
                if index >= moving {
                    return (f64::from(before), 0.0);
                }
                let (before, now) = (old * f64::from(before), new * f64::from(now));
                (before + now, 4.0 * UNIT * (before.abs() + now.abs()))
            };
            let want = if skip {
                Want::exactly(&before)
            } else {
                let (values, allowed) =
                    before.iter().zip(&self.seen.f32s(of)?).enumerate().map(blend).unzip();
                Want { values, allowed: Allowed::Each(allowed) }
            };
            let got = to_f64(&self.seen.f32s(average)?);
            self.note("moving averages", &[node.to_owned()], node, &got, &want);
        }
        Ok(())
    }
}

/// One more than the highest index of a gradient that is not finite; 0 where all are.
fn highest_non_finite(gradient: &[f32]) -> u32 {
    match first_non_finite(gradient) {
        None => 0,
        Some(_) => gradient.iter().rposition(|value| !value.is_finite()).map_or(0, |index| index as u32 + 1),
    }
}

/// What follows from the gradients (PyTorch's GradScaler; `kernels/gradient.cu`).
pub(super) struct Decision {
    pub state: State,
    pub skip: u32,
}

impl Decision {
    fn none(before: &State) -> Self {
        Self { state: *before, skip: 0 }
    }

    fn of(before: &State, bad: u32, policy: &ScalePolicy) -> Self {
        let mut state = State { unscale: 1.0 / before.scale, ..*before };
        if bad == 0 {
            state.updates += 1;
            state.clean += 1;
            if state.clean >= policy.interval {
                state.clean = 0;
                state.scale = (state.scale * policy.growth).min(policy.ceiling);
            }
        } else {
            state.clean = 0;
            state.skipped += 1;
            state.scale = (state.scale * policy.backoff).max(policy.floor);
        }
        Self { state, skip: u32::from(bad != 0) }
    }
}

fn numbers(state: &State) -> Vec<f32> {
    let State { pass, clean, scale, unscale, skip, bad, halted, updates, skipped, loss_bad, .. } = *state;
    let counts = [pass, clean, skip, bad, halted, updates, skipped, loss_bad];
    counts.into_iter().map(|count| count as f32).chain([scale, unscale]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_skips_and_backs_off_to_the_floor() {
        let policy = ScalePolicy { floor: 512.0, ..ScalePolicy::FP16 };
        let before = State { scale: 1024.0, clean: 1999, ..State::default() };
        let grown = Decision::of(&before, 0, &policy);
        assert_eq!((grown.state.scale, grown.state.clean, grown.skip), (2048.0, 0, 0));
        let skipped = Decision::of(&before, 7, &policy);
        assert_eq!((skipped.state.scale, skipped.state.skipped, skipped.skip), (512.0, 1, 1));
        assert_eq!(highest_non_finite(&[0.0, f32::NAN, 1.0, f32::INFINITY, 2.0]), 4);
    }
}

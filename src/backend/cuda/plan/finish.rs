//! The end of a pass: gradients are added up, checked, and taken into the weights.

use super::builder::{Builder, optional, read, size, update, write};
use super::geometry;
use super::node::{Arg, Launch};
use super::region::{Access, Arena, Region};
use super::{Purpose, Rule};

impl Builder<'_> {
    pub fn finish(&mut self) {
        let (sum, finishing) = match self.options.purpose {
            Purpose::Accumulate => (true, false),
            Purpose::Finish { sum } => (sum, true),
            Purpose::Evaluate | Purpose::Replay => unreachable!("neither has gradients"),
        };
        if self.reduces() {
            self.send_vectors();
        } else if sum {
            self.accumulate();
        }
        if finishing {
            self.check(sum);
            self.update_scale();
            let corrections = self.options.recipe.needs_norm().then(|| self.clip(sum));
            match (self.options.recipe.rule, corrections) {
                (Rule::Sgd, _) => self.sgd(sum, corrections),
                (Rule::Lamb, Some(corrections)) => self.lamb(sum, corrections),
                (Rule::Lamb, None) => unreachable!("LAMB needs the norm"),
                (Rule::Lars, _) => self.lars(sum, corrections),
            }
            if self.options.recipe.averages {
                self.moving_averages();
            }
        }
        self.end_pass(finishing);
    }

    /// The gradients of one pass: matrices, vectors, and how many elements each has.
    pub fn pass_gradients(&self) -> [Arg; 4] {
        let (matrices, vectors) = self.layout.all_gradients(self.options.storage);
        [read(matrices), read(vectors), size(self.layout.matrix_end), size(self.layout.trained)]
    }

    fn sums(&self) -> Region {
        self.layout.trained_f32(Arena::GradientSum)
    }

    fn accumulate(&mut self) {
        let [matrices, vectors, matrix_end, total] = self.pass_gradients();
        let mut args = vec![matrices, vectors, update(self.sums()), matrix_end, total];
        args.extend(self.constants());
        let geometry = geometry::flat(self.layout.trained);
        self.launch(
            "accumulate".into(),
            Launch { kernel: self.storage_kernel("accumulate"), geometry, args },
        );
    }

    /// Marks the state where a gradient is not finite.
    fn check(&mut self, sum: bool) {
        let (kernel, mut args) = if sum {
            ("finite_check_sum".to_owned(), vec![read(self.sums()), size(self.layout.trained)])
        } else {
            (self.storage_kernel("finite_check"), self.pass_gradients().to_vec())
        };
        args.push(self.state(Access::Update));
        let geometry = geometry::flat(self.layout.trained);
        self.launch("finite_check".into(), Launch { kernel, geometry, args });
    }

    fn update_scale(&mut self) {
        let policy = self.options.scale;
        let args = vec![
            self.state(Access::Update),
            Arg::F32(policy.growth),
            Arg::F32(policy.backoff),
            Arg::U32(policy.interval),
            Arg::F32(policy.floor),
            Arg::F32(policy.ceiling),
        ];
        let geometry = geometry::single();
        self.launch("update_scale".into(), Launch { kernel: "update_scale".into(), geometry, args });
    }

    fn sgd(&mut self, sum: bool, corrections: Option<Region>) {
        let mut args = vec![
            update(self.layout.trained_f32(Arena::Master)),
            update(self.layout.trained_f32(Arena::Momentum)),
            write(self.layout.trained_weights(self.options.storage)),
        ];
        if sum {
            args.extend([read(self.sums()), size(self.layout.trained)]);
        } else {
            args.extend(self.pass_gradients());
        }
        args.push(size(self.layout.decay_end(self.options.decay)));
        args.push(optional(corrections, Access::Read));
        args.extend(self.constants());
        let kernel = self.storage_kernel(if sum { "sgd_sum" } else { "sgd" });
        let geometry = geometry::flat(self.layout.trained);
        self.launch("sgd".into(), Launch { kernel, geometry, args });
    }

    /// Of the weights that are trained, and of the running statistics that go with them; averages of others are copies.
    fn moving_averages(&mut self) {
        let weights = [Arena::Ema, Arena::Master].map(|arena| self.layout.trained_f32(arena));
        let running = [Arena::RunningEma, Arena::Running].map(|arena| self.layout.trained_running(arena));
        for (name, [to, from]) in [("ema", weights), ("ema.running", running)] {
            let elements = (to.bytes / 4) as usize;
            if elements == 0 {
                continue;
            }
            let mut args = vec![update(to), read(from), size(elements)];
            args.extend(self.constants());
            let geometry = geometry::flat(elements);
            self.launch(name.into(), Launch { kernel: "ema_update".into(), geometry, args });
        }
    }

    fn end_pass(&mut self, finishing: bool) {
        let mut args = vec![self.state(Access::Update)];
        args.extend(self.outcomes());
        args.push(Arg::U32(u32::from(finishing)));
        let geometry = geometry::single();
        self.launch("end_pass".into(), Launch { kernel: "end_pass".into(), geometry, args });
    }
}

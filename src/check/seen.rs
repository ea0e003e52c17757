//! What a machine has in memory after a pass, by the names of the graph, and what it had before.

use crate::backend::cuda::abi::State;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::from_stored;
use crate::backend::cuda::plan::forward::{COLUMN_MASK, MASK};
use crate::backend::cuda::plan::geometry::SLAB_COLUMN;
use crate::backend::cuda::plan::params::Statistic;
use crate::backend::cuda::plan::region::{Arena, Region};
use crate::backend::cuda::plan::{Plan, Purpose};
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use crate::model::graph::{ParamId, TensorId};
use crate::model::units::ConvUnit;
use std::collections::BTreeMap;

/// Copies of what a pass changes in place.
pub struct Before(BTreeMap<Arena, Vec<u8>>);

impl Before {
    pub fn read<M: Machine>(machine: &M, plan: &Plan) -> Result<Self> {
        let kept = [
            Arena::Master,
            Arena::Momentum,
            Arena::SecondMoment,
            Arena::Ema,
            Arena::Weights,
            Arena::Running,
            Arena::RunningEma,
            Arena::State,
            Arena::GradientSum,
        ];
        let mut copies = BTreeMap::new();
        for arena in kept {
            if let Some(&bytes) = plan.arenas.get(&arena) {
                let mut copy = vec![0; bytes as usize];
                machine.read(Region::new(arena, 0, bytes), &mut copy)?;
                copies.insert(arena, copy);
            }
        }
        Ok(Self(copies))
    }

    fn bytes(&self, region: Region) -> &[u8] {
        let copy = self.0.get(&region.arena).expect("the pass has this arena");
        &copy[region.offset as usize..(region.offset + region.bytes) as usize]
    }

    pub fn f32s(&self, region: Region) -> Vec<f32> {
        from_stored(Storage::F32, self.bytes(region))
    }

    pub fn state(&self) -> State {
        bytemuck::pod_read_unaligned(&self.0[&Arena::State][..size_of::<State>()])
    }
}

/// A pass that has ended.
pub struct Seen<'a, M> {
    pub machine: &'a M,
    pub plan: &'a Plan,
    pub before: &'a Before,
}

impl<M: Machine> Seen<'_, M> {
    pub fn storage(&self) -> Storage {
        self.plan.options.storage
    }

    /// Images.
    pub fn n(&self) -> usize {
        self.plan.options.batch
    }

    pub fn name(&self, tensor: TensorId) -> &str {
        &self.plan.graph.tensors[tensor].name
    }

    /// A node's name.
    pub fn node(&self, tensor: TensorId, what: &str) -> String {
        format!("{}.{what}", self.name(tensor))
    }

    /// The nodes of a batch norm: those of the plain kernels, or of its slabs where it has any, or the one of one pass.
    pub fn norm_nodes(&self, tensor: TensorId, plain: &[&str], slab: &str) -> Vec<String> {
        let (begin, one_pass) =
            (self.node(tensor, slab), self.node(tensor, &slab.replace("slab", "one_pass")));
        let is_slab = |name: &&String| {
            **name == one_pass
                || name
                    .strip_prefix(&begin)
                    .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let slabs: Vec<String> =
            self.plan.nodes.iter().map(|node| &node.name).filter(is_slab).cloned().collect();
        if slabs.is_empty() { plain.iter().map(|what| self.node(tensor, what)).collect() } else { slabs }
    }

    /// The first of such nodes of a tensor that the plan has, or the first name.
    pub fn first_node(&self, tensor: TensorId, names: &[&str]) -> String {
        let mut all = names.iter().map(|what| self.node(tensor, what));
        let found = all.find(|name| self.plan.nodes.iter().any(|node| node.name == *name));
        found.unwrap_or_else(|| self.node(tensor, names[0]))
    }

    pub fn bytes(&self, region: Region) -> Result<Vec<u8>> {
        let mut bytes = vec![0; region.bytes as usize];
        self.machine.read(region, &mut bytes)?;
        Ok(bytes)
    }

    pub fn f32s(&self, region: Region) -> Result<Vec<f32>> {
        Ok(from_stored(Storage::F32, &self.bytes(region)?))
    }

    pub fn stored(&self, region: Region) -> Result<Vec<f32>> {
        Ok(from_stored(self.storage(), &self.bytes(region)?))
    }

    /// A buffer of the pass.
    pub fn buffer(&self, name: &str) -> Result<Region> {
        self.plan.buffer(name).ok_or_else(|| {
            Error::failed(format!("the plan has no buffer {name}: the check must learn of it"))
        })
    }

    /// The bits of a block's sum, element by element.
    pub fn mask(&self, tensor: TensorId) -> Result<Vec<u8>> {
        if let Some(plain) = self.plan.buffer(&self.node(tensor, MASK)) {
            return self.bytes(plain);
        }
        let columns = self.bytes(self.buffer(&self.node(tensor, COLUMN_MASK))?)?;
        let (row, part) = (self.plan.graph.tensors[tensor].c / 8, SLAB_COLUMN / 8);
        let rows = columns.len() / row;
        let at = |(row, byte): (usize, usize)| columns[(byte / part * rows + row) * part + byte % part];
        Ok((0..rows).flat_map(|one| (0..row).map(move |byte| (one, byte))).map(at).collect())
    }

    /// [n][h][w][c], the image with its padding channels.
    pub fn activation(&self, tensor: TensorId) -> Result<Vec<f32>> {
        self.stored(self.buffer(self.name(tensor))?)
    }

    /// An activation's gradient, times the loss scale.
    pub fn gradient(&self, tensor: TensorId) -> Result<Vec<f32>> {
        self.stored(self.buffer(&format!("grad.{}", self.name(tensor)))?)
    }

    /// Whether the pass is of the moving averages.
    pub fn averaged(&self) -> bool {
        self.plan.options.purpose == Purpose::Evaluate && self.plan.options.recipe.averages
    }

    /// A vector of the weights that the pass computed with, from before it.
    pub fn vector(&self, param: ParamId) -> Vec<f32> {
        let arena = if self.averaged() { Arena::Ema } else { Arena::Master };
        self.before.f32s(self.plan.layout.in_f32(arena, param))
    }

    /// The copy of a matrix that the pass computed with, [k][r][s][c].
    pub fn weight(&self, param: ParamId) -> Result<Vec<f32>> {
        let copy = self.plan.layout.weights(self.storage(), param);
        if self.averaged() {
            let averages = self.buffer("ema.weights")?;
            return self.stored(Region {
                arena: averages.arena,
                offset: averages.offset + copy.offset,
                ..copy
            });
        }
        Ok(from_stored(self.storage(), self.before.bytes(copy)))
    }

    /// A running mean, or variance, that an evaluation computed with.
    pub fn running(&self, unit: &ConvUnit, of_variance: bool) -> Result<Vec<f32>> {
        let arena = if self.averaged() { Arena::RunningEma } else { Arena::Running };
        let running = self.plan.layout.running(unit.mean, unit.shape.k, of_variance);
        self.f32s(Region { arena, ..running })
    }

    /// A parameter's gradient, times the loss scale, in the card's layout.
    pub fn param_gradient(&self, param: ParamId) -> Result<Vec<f32>> {
        let region = self.plan.layout.gradient(self.storage(), param);
        if region.arena == Arena::GradientVectors { self.f32s(region) } else { self.stored(region) }
    }

    pub fn statistic(&self, unit: &ConvUnit, kind: Statistic) -> Result<Vec<f32>> {
        self.f32s(self.plan.layout.statistic(kind, unit.mean, unit.shape.k))
    }

    pub fn state(&self) -> Result<State> {
        let bytes = self.bytes(Region::new(Arena::State, 0, size_of::<State>() as u64))?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }
}

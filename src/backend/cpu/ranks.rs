//! What the ranks of a step tell each other. Sums go in the order of ranks, and every rank makes the same ones, so that all
//! have the same bits.

use super::batch_norm::{ParamGradients, Statistics};
use crate::backend::BUCKET_BYTES;
use crate::comm::{Element, Occasion, Ranks};
use crate::error::Result;

/// The fault of the first rank that has one, the same on every rank.
pub fn first_fault(ranks: &Ranks, of: &str, own: Option<String>) -> Result<Option<String>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let all = ranks.all_gather(Occasion::step(of), own.unwrap_or_default().as_bytes())?;
    let first = all.iter().position(|fault| !fault.is_empty());
    Ok(first.map(|rank| format!("rank {rank}: {}", String::from_utf8_lossy(&all[rank]))))
}

/// Gradients become their sums over ranks: the last layers' first, in buckets of neighbours.
pub fn add_up(ranks: &Ranks, gradients: &mut [Vec<f32>]) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut buckets: Vec<Vec<&mut Vec<f32>>> = vec![];
    let mut room = 0;
    for gradient in gradients.iter_mut().rev() {
        let bytes = 4 * gradient.len() as u64;
        if room < bytes {
            buckets.push(vec![]);
            room = BUCKET_BYTES;
        }
        room = room.saturating_sub(bytes);
        buckets.last_mut().expect("pushed above").push(gradient);
    }
    let of = buckets.len();
    for (number, bucket) in buckets.iter_mut().enumerate() {
        let name = format!("gradients, bucket {} of {of}", number + 1);
        let mut bytes: Vec<u8> =
            bucket.iter().flat_map(|gradient| bytemuck::cast_slice(gradient)).copied().collect();
        ranks.all_reduce(Occasion::step(&name), Element::F32, &mut bytes)?;
        let mut rest = &bytes[..];
        for gradient in bucket {
            let (own, behind) = rest.split_at(4 * gradient.len());
            bytemuck::cast_slice_mut(gradient).copy_from_slice(own);
            rest = behind;
        }
    }
    Ok(())
}

/// The statistics of all batch norms, those of one rank after those of another.
pub fn gather_statistics<'s>(
    ranks: &Ranks,
    own: impl Iterator<Item = &'s Statistics>,
) -> Result<Vec<Vec<Statistics>>> {
    let own: Vec<&Statistics> = own.collect();
    let bytes: Vec<u8> = own.iter().flat_map(|statistics| pack(statistics)).collect();
    let all = ranks.all_gather(Occasion::step("statistics of batch norms"), &bytes)?;
    Ok(all
        .iter()
        .map(|bytes| {
            let mut rest = &bytes[..];
            own.iter().map(|like| unpack(&mut rest, like.mean.len())).collect()
        })
        .collect())
}

/// One batch norm's statistics over the images of all ranks (Chan, Golub, LeVeque 1983, as within a rank).
pub fn join_statistics(ranks: &Ranks, own: &Statistics) -> Result<Statistics> {
    let channels = own.mean.len();
    let all = ranks.all_gather(Occasion::step("a batch norm's statistics"), &pack(own))?;
    let all: Vec<Statistics> = all.iter().map(|bytes| unpack(&mut &bytes[..], channels)).collect();
    let count = all.iter().map(|one| one.count).sum::<usize>();
    let mean_of = |c: usize| {
        all.iter().map(|one| f64::from(one.mean[c]) * one.count as f64).sum::<f64>() / count as f64
    };
    let mean: Vec<f64> = (0..channels).map(mean_of).collect();
    let var_of = |c: usize| {
        let squares = |one: &Statistics| {
            let shift = f64::from(one.mean[c]) - mean[c];
            one.count as f64 * (one.var[c] + shift * shift)
        };
        all.iter().map(squares).sum::<f64>() / count as f64
    };
    let var = (0..channels).map(var_of).collect();
    Ok(Statistics::new(mean.iter().map(|&mean| mean as f32).collect(), var, count))
}

/// Sums of a batch norm's backward pass over the images of all ranks.
pub fn join_sums(ranks: &Ranks, own: &ParamGradients) -> Result<ParamGradients> {
    let mut bytes: Vec<u8> = bytemuck::cast_slice(&[&own.gamma[..], &own.beta].concat()).to_vec();
    ranks.all_reduce(Occasion::step("a batch norm's sums"), Element::F32, &mut bytes)?;
    let sums: Vec<f32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
    let (gamma, beta) = sums.split_at(own.gamma.len());
    Ok(ParamGradients { gamma: gamma.to_vec(), beta: beta.to_vec() })
}

/// Count, means, variances.
fn pack(statistics: &Statistics) -> Vec<u8> {
    let mut bytes = (statistics.count as u64).to_le_bytes().to_vec();
    bytes.extend(statistics.mean.iter().flat_map(|mean| mean.to_le_bytes()));
    bytes.extend(statistics.var.iter().flat_map(|var| var.to_le_bytes()));
    bytes
}

/// Takes one batch norm's from the front.
fn unpack(bytes: &mut &[u8], channels: usize) -> Statistics {
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    };
    let count = bytemuck::pod_read_unaligned::<u64>(take(8)) as usize;
    let mean = take(4 * channels).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
    let var = take(8 * channels).chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
    Statistics::new(mean, var, count)
}

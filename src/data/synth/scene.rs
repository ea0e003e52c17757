//! What one picture shows: every number is drawn here, nothing is painted.
//!
//! Colour, position, size and brightness are drawn in the same way for all classes, and the figure is as often
//! lighter as it is darker than what surrounds it, so none of them tells the class.

use super::figure::{Class, Figure};
use crate::rng::Rng;

pub type Rgb = [f32; 3];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Val,
}

/// What fills the picture behind the figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackgroundKind {
    Gradient,
    Clouds,
    Blotches,
    Mosaic,
    Marble,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistractorKind {
    Ellipse,
    Stick,
    Hook,
}

/// Where a split draws its numbers from. The two splits share no value of any field.
pub struct Ranges {
    /// Hue within its sixth of the colour circle, as a share of the sixth.
    hue: &'static [[f64; 2]],
    /// Rotation within a third of the figure's symmetry angle, as a share of the third. Both sets are symmetric
    /// about 0.5, so a horizontal flip of a training picture has no validation rotation either.
    rotation: &'static [[f64; 2]],
    /// Diameter of the figure as a share of the picture's side.
    diameter: &'static [[f64; 2]],
    /// Standard deviation of the pixel noise, as a share of white.
    noise: [f64; 2],
    /// Strength of the lighting gradient, edge to edge.
    lighting: [f64; 2],
    backgrounds: &'static [BackgroundKind],
    distractors: &'static [DistractorKind],
}

const TRAIN: Ranges = Ranges {
    hue: &[[0.0, 0.3], [0.7, 1.0]],
    rotation: &[[0.0, 0.3], [0.7, 1.0]],
    diameter: &[[0.55, 0.66], [0.74, 0.85]],
    noise: [0.004, 0.024],
    lighting: [0.0, 0.30],
    backgrounds: &[BackgroundKind::Gradient, BackgroundKind::Clouds, BackgroundKind::Blotches],
    distractors: &[DistractorKind::Ellipse, DistractorKind::Stick],
};

const VAL: Ranges = Ranges {
    hue: &[[0.35, 0.65]],
    rotation: &[[0.35, 0.65]],
    diameter: &[[0.67, 0.73]],
    noise: [0.026, 0.034],
    lighting: [0.32, 0.40],
    backgrounds: &[BackgroundKind::Mosaic, BackgroundKind::Marble],
    distractors: &[DistractorKind::Hook],
};

#[derive(Debug, Clone)]
pub struct Background {
    pub kind: BackgroundKind,
    pub from: Rgb,
    pub to: Rgb,
    /// Direction of the gradient or of the marble's veins, radians.
    pub angle: f32,
    /// Lattice cells along the side for everything that is made of noise.
    pub cells: f32,
    pub key: u64,
}

/// A small shape that has nothing to do with the class. Lengths are shares of the side.
#[derive(Debug, Clone)]
pub struct Distractor {
    pub kind: DistractorKind,
    pub centre: [f32; 2],
    pub angle: f32,
    pub half: [f32; 2],
    pub colour: Rgb,
}

#[derive(Debug, Clone)]
pub struct Scene {
    pub background: Background,
    pub behind: Vec<Distractor>,
    pub figure: Figure,
    pub centre: [f32; 2],
    pub radius: f32,
    pub rotation: f32,
    /// The figure's colour, and that of its texture.
    pub colours: [Rgb; 2],
    /// Change of the figure's brightness from one end to the other, along `shade_angle`.
    pub shade: f32,
    pub shade_angle: f32,
    pub in_front: Option<Distractor>,
    pub light: f32,
    pub light_angle: f32,
    pub noise: f32,
}

impl Scene {
    pub fn draw(rng: &mut Rng, split: Split, class: Class) -> Self {
        let ranges = match split {
            Split::Train => &TRAIN,
            Split::Val => &VAL,
        };
        let figure_is_light = rng.below(2) == 1;
        let background = Background::draw(rng, ranges, !figure_is_light);
        let colours = [colour(rng, ranges, figure_is_light), colour(rng, ranges, !figure_is_light)];
        let radius = 0.5 * from_set(rng, ranges.diameter) as f32;
        let third = class.symmetry_degrees().to_radians() / 3.0;
        let turns = rng.below((std::f64::consts::TAU / third).round() as u64) as f64;
        let rotation = ((turns + from_set(rng, ranges.rotation)) * third) as f32;
        let jitter = f64::from((0.52 - radius).min(0.13));
        let centre = [(); 2].map(|()| (0.5 + rng.range(-jitter, jitter)) as f32);
        let behind = (0..2 + rng.below(3)).map(|_| Distractor::draw(rng, ranges, figure_is_light)).collect();
        let in_front = (rng.below(3) == 0).then(|| Distractor::draw(rng, ranges, figure_is_light));
        Self {
            background,
            behind,
            figure: draw_figure(rng, class),
            centre,
            radius,
            rotation,
            colours,
            shade: rng.range(0.0, 0.15) as f32,
            shade_angle: angle(rng),
            in_front,
            light: rng.range(ranges.lighting[0], ranges.lighting[1]) as f32,
            light_angle: angle(rng),
            noise: rng.range(ranges.noise[0], ranges.noise[1]) as f32,
        }
    }
}

impl Background {
    fn draw(rng: &mut Rng, ranges: &Ranges, light: bool) -> Self {
        Self {
            kind: ranges.backgrounds[rng.below(ranges.backgrounds.len() as u64) as usize],
            from: colour(rng, ranges, light),
            to: colour(rng, ranges, light),
            angle: angle(rng),
            cells: rng.range(2.0, 5.0) as f32,
            key: rng.next_u64(),
        }
    }
}

impl Distractor {
    fn draw(rng: &mut Rng, ranges: &Ranges, light: bool) -> Self {
        let kind = ranges.distractors[rng.below(ranges.distractors.len() as u64) as usize];
        let half = match kind {
            DistractorKind::Ellipse => [rng.range(0.025, 0.06), rng.range(0.025, 0.06)],
            DistractorKind::Stick | DistractorKind::Hook => [rng.range(0.05, 0.10), rng.range(0.008, 0.016)],
        };
        Self {
            kind,
            centre: [(); 2].map(|()| rng.unit() as f32),
            angle: angle(rng),
            half: half.map(|h| h as f32),
            colour: colour(rng, ranges, light),
        }
    }
}

fn draw_figure(rng: &mut Rng, class: Class) -> Figure {
    let detail = match class {
        Class::Cross => rng.range(0.30, 0.40),
        Class::Star => rng.range(0.27, 0.34),
        _ => 0.0,
    };
    let period = match class {
        Class::Checkerboard => rng.range(0.74, 0.98),
        Class::Dots => rng.range(0.44, 0.54),
        Class::Rings => rng.range(0.40, 0.54),
        Class::Zigzag => rng.range(0.48, 0.62),
        _ => rng.range(0.36, 0.56),
    };
    Figure {
        class,
        phase: [(); 2].map(|()| rng.unit() as f32),
        period: period as f32,
        detail: detail as f32,
        wobble: [angle(rng), angle(rng)],
    }
}

fn angle(rng: &mut Rng) -> f32 {
    rng.range(0.0, std::f64::consts::TAU) as f32
}

/// Uniform in a union of intervals.
fn from_set(rng: &mut Rng, intervals: &[[f64; 2]]) -> f64 {
    let total: f64 = intervals.iter().map(|[low, high]| high - low).sum();
    let mut at = rng.range(0.0, total);
    for [low, high] in intervals {
        if at < high - low {
            return low + at;
        }
        at -= high - low;
    }
    intervals[intervals.len() - 1][0]
}

/// A light or a dark colour of any hue of the split; their luminances are at least 0.25 apart.
fn colour(rng: &mut Rng, ranges: &Ranges, light: bool) -> Rgb {
    let hue = rng.below(6) as f64 + from_set(rng, ranges.hue);
    let saturation = rng.range(0.25, 0.85);
    let luminance = if light { rng.range(0.62, 0.88) } else { rng.range(0.12, 0.37) };
    let channel = |offset: f64| {
        let k = (hue + offset).rem_euclid(6.0);
        1.0 - saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    let pure = [channel(5.0), channel(3.0), channel(1.0)];
    let brightness = luma(pure);
    // Darkened to the wanted luminance, or mixed with white up to it: either keeps the hue.
    pure.map(|c| {
        let c = if luminance <= brightness {
            c * luminance / brightness
        } else {
            1.0 - (1.0 - c) * (1.0 - luminance) / (1.0 - brightness)
        };
        c as f32
    })
}

fn luma([r, g, b]: [f64; 3]) -> f64 {
    0.299 * r + 0.587 * g + 0.114 * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn disjoint(a: &[[f64; 2]], b: &[[f64; 2]]) -> bool {
        a.iter().all(|x| b.iter().all(|y| x[1] < y[0] || y[1] < x[0]))
    }

    #[test]
    fn validation_ranges_are_never_seen_in_training() {
        assert!(disjoint(TRAIN.hue, VAL.hue));
        assert!(disjoint(TRAIN.rotation, VAL.rotation));
        assert!(disjoint(TRAIN.diameter, VAL.diameter));
        assert!(disjoint(&[TRAIN.noise], &[VAL.noise]));
        assert!(disjoint(&[TRAIN.lighting], &[VAL.lighting]));
        assert!(VAL.backgrounds.iter().all(|kind| !TRAIN.backgrounds.contains(kind)));
        assert!(VAL.distractors.iter().all(|kind| !TRAIN.distractors.contains(kind)));
    }

    #[test]
    fn a_mirrored_training_rotation_is_still_a_training_rotation() {
        for [low, high] in TRAIN.rotation {
            let mirrored = [1.0 - high, 1.0 - low];
            assert!(disjoint(&[mirrored], VAL.rotation), "{low}..{high} mirrors into the validation set");
        }
    }

    #[test]
    fn colours_have_their_luminance_and_keep_apart() {
        let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
        for _ in 0..1000 {
            for (light, bounds) in [(true, 0.61..0.89), (false, 0.11..0.38)] {
                let c = colour(&mut rng, &TRAIN, light);
                let l = luma(c.map(f64::from));
                assert!(bounds.contains(&l), "luminance {l} of {c:?}");
                assert!(c.iter().all(|v| (0.0..=1.0).contains(v)), "{c:?}");
            }
        }
    }
}

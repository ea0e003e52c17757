//! A scene becomes pixels: background, what lies behind, shadow, figure, what lies in front, light, noise.

use super::scene::{Background, BackgroundKind, Distractor, DistractorKind, Rgb, Scene};
use crate::rng::{Purpose, Rng};

/// Paints `scene` as RGB bytes [side, side, 3]. `grain` gives the noise.
pub fn paint(scene: &Scene, side: usize, grain: &mut Rng) -> Vec<u8> {
    let pixel = 1.0 / side as f32;
    let (light_sin, light_cos) = scene.light_angle.sin_cos();
    let mut bytes = Vec::with_capacity(side * side * 3);
    for row in 0..side {
        for column in 0..side {
            let (x, y) = ((column as f32 + 0.5) * pixel, (row as f32 + 0.5) * pixel);
            let colour = colour_at(scene, x, y, pixel);
            let along = (x - 0.5) * light_cos + (y - 0.5) * light_sin;
            let light = 1.0 + scene.light * along;
            for channel in colour {
                let value = channel * light + scene.noise * bell(grain);
                bytes.push((value * 255.0 + 0.5).clamp(0.0, 255.0) as u8);
            }
        }
    }
    bytes
}

fn colour_at(scene: &Scene, x: f32, y: f32, pixel: f32) -> Rgb {
    let mut colour = scene.background.colour_at(x, y);
    for distractor in &scene.behind {
        mix_into(&mut colour, distractor.colour, distractor.coverage(x, y, pixel));
    }
    let (u, v) = place(scene, x, y);
    let outline = coverage(scene.figure.outline(u, v) * scene.radius, pixel);
    if outline < 1.0 {
        mix_into(&mut colour, [0.0; 3], shadow(scene, x, y));
    }
    if outline > 0.0 {
        let mut body = scene.colours[0];
        if let Some(distance) = scene.figure.texture(u, v) {
            mix_into(&mut body, scene.colours[1], coverage(distance * scene.radius, pixel));
        }
        let shade = 1.0 + scene.shade * (u * scene.shade_angle.cos() + v * scene.shade_angle.sin());
        mix_into(&mut colour, body.map(|c| c * shade), outline);
    }
    if let Some(distractor) = &scene.in_front {
        mix_into(&mut colour, distractor.colour, distractor.coverage(x, y, pixel));
    }
    colour
}

/// How dark the figure's soft shadow, down and to the right of it, makes the ground.
fn shadow(scene: &Scene, x: f32, y: f32) -> f32 {
    const OFFSET: f32 = 0.025;
    let (u, v) = place(scene, x - OFFSET, y - OFFSET);
    let depth = -scene.figure.outline(u, v) * scene.radius;
    0.35 * (0.5 + depth / 0.05).clamp(0.0, 1.0)
}

/// Picture coordinates -> the figure's own: centred, turned, in radii.
fn place(scene: &Scene, x: f32, y: f32) -> (f32, f32) {
    let (dx, dy) = ((x - scene.centre[0]) / scene.radius, (y - scene.centre[1]) / scene.radius);
    turn(dx, dy, scene.rotation)
}

fn turn(x: f32, y: f32, angle: f32) -> (f32, f32) {
    let (sin, cos) = angle.sin_cos();
    (x * cos + y * sin, y * cos - x * sin)
}

/// Share of a pixel that lies inside, from the signed distance of its middle.
fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

fn mix_into(colour: &mut Rgb, other: Rgb, share: f32) {
    for (c, o) in colour.iter_mut().zip(other) {
        *c += (o - *c) * share;
    }
}

/// Zero mean, unit variance, bounded: the sum of four uniform 16-bit parts of one draw.
fn bell(rng: &mut Rng) -> f32 {
    let bits = rng.next_u64();
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    // Four uniforms on 0..1 have mean 2 and variance 1/3.
    (sum as f32 / 65_536.0 - 2.0) * 1.732_050_8
}

impl Distractor {
    fn coverage(&self, x: f32, y: f32, pixel: f32) -> f32 {
        let [a, b] = self.half;
        let (x, y) = (x - self.centre[0], y - self.centre[1]);
        // Most pixels are far from it: no rotation for them.
        if x.abs().max(y.abs()) > a + b + pixel {
            return 0.0;
        }
        let (u, v) = turn(x, y, self.angle);
        let distance = match self.kind {
            DistractorKind::Ellipse => ((u / a).hypot(v / b) - 1.0) * a.min(b),
            DistractorKind::Stick => (u.abs() - a).max(v.abs() - b),
            // Half a ring of the same thickness as a stick.
            DistractorKind::Hook => ((u.hypot(v) - 0.7 * a).abs() - b).max(-v),
        };
        coverage(distance, pixel)
    }
}

impl Background {
    fn colour_at(&self, x: f32, y: f32) -> Rgb {
        let (u, _) = turn(x - 0.5, y - 0.5, self.angle);
        let share = match self.kind {
            BackgroundKind::Gradient => u + 0.5,
            BackgroundKind::Clouds => 0.65 * self.noise(x, y, 1.0) + 0.35 * self.noise(x, y, 2.7),
            BackgroundKind::Blotches => smooth((self.noise(x, y, 1.0) - 0.4) / 0.2),
            BackgroundKind::Mosaic => self.mosaic(x, y),
            BackgroundKind::Marble => 0.5 + 0.5 * (9.0 * (u + 0.5 * self.noise(x, y, 1.0))).sin(),
        };
        let mut colour = self.from;
        mix_into(&mut colour, self.to, share.clamp(0.0, 1.0));
        colour
    }

    /// Value noise in 0..1: random values on a lattice, smoothly joined.
    fn noise(&self, x: f32, y: f32, frequency: f32) -> f32 {
        let (x, y) = (x * self.cells * frequency, y * self.cells * frequency);
        let (column, row) = (x.floor(), y.floor());
        let (fx, fy) = (smooth(x - column), smooth(y - row));
        let corner = |dx: u64, dy: u64| self.lattice(column as u64 + dx, row as u64 + dy)[0];
        let top = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * fx;
        let bottom = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * fx;
        top + (bottom - top) * fy
    }

    /// Voronoi cells of a jittered lattice, each of one value.
    fn mosaic(&self, x: f32, y: f32) -> f32 {
        // One cell of margin keeps lattice coordinates positive.
        let (x, y) = (x * self.cells + 1.0, y * self.cells + 1.0);
        let (column, row) = (x as u64, y as u64);
        let mut best = (f32::MAX, 0.0);
        for near_row in row - 1..=row + 1 {
            for near_column in column - 1..=column + 1 {
                let [value, jitter_x, jitter_y] = self.lattice(near_column, near_row);
                let distance = (near_column as f32 + jitter_x - x).hypot(near_row as f32 + jitter_y - y);
                if distance < best.0 {
                    best = (distance, value);
                }
            }
        }
        best.1
    }

    /// Three values in 0..1 that belong to a lattice point.
    fn lattice(&self, column: u64, row: u64) -> [f32; 3] {
        let bits = Rng::new(self.key, column, row, Purpose::Synth).next_u64();
        [0, 20, 40].map(|shift| ((bits >> shift) & 0xf_ffff) as f32 / 1_048_576.0)
    }
}

/// The cubic step 3t^2 - 2t^3 on 0..1, clamped outside.
fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

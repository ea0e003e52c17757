//! The ten classes as signed distances: negative inside, in units of the figure's radius.
//!
//! Five are solid shapes and five are textures that fill a wobbly patch, so that neither an outline alone nor a
//! texture alone tells all classes apart.

use std::f32::consts::{PI, TAU};

/// A class; the order is that of the sorted folder names, which is the order of the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Checkerboard,
    Cross,
    Disc,
    Dots,
    Frame,
    Rings,
    Star,
    Stripes,
    Triangle,
    Zigzag,
}

impl Class {
    pub const ALL: [Class; 10] = [
        Class::Checkerboard,
        Class::Cross,
        Class::Disc,
        Class::Dots,
        Class::Frame,
        Class::Rings,
        Class::Star,
        Class::Stripes,
        Class::Triangle,
        Class::Zigzag,
    ];

    /// The folder's name, which is also the class id in `classes.txt`.
    pub fn id(self) -> &'static str {
        match self {
            Class::Checkerboard => "checkerboard",
            Class::Cross => "cross",
            Class::Disc => "disc",
            Class::Dots => "dots",
            Class::Frame => "frame",
            Class::Rings => "rings",
            Class::Star => "star",
            Class::Stripes => "stripes",
            Class::Triangle => "triangle",
            Class::Zigzag => "zigzag",
        }
    }

    /// What a person reads.
    pub fn label(self) -> &'static str {
        match self {
            Class::Checkerboard => "checkerboard pattern",
            Class::Cross => "cross",
            Class::Disc => "disc",
            Class::Dots => "polka dots",
            Class::Frame => "square frame",
            Class::Rings => "concentric rings",
            Class::Star => "five-pointed star",
            Class::Stripes => "stripes",
            Class::Triangle => "triangle",
            Class::Zigzag => "zigzag lines",
        }
    }

    /// Whether the class is a texture inside a wobbly patch rather than a solid outline.
    pub fn is_texture(self) -> bool {
        matches!(self, Class::Checkerboard | Class::Dots | Class::Rings | Class::Stripes | Class::Zigzag)
    }

    /// The smallest rotation, in degrees, that maps the figure on itself: what "a rotation never seen" is modulo.
    pub fn symmetry_degrees(self) -> f64 {
        match self {
            Class::Checkerboard | Class::Cross | Class::Frame => 90.0,
            Class::Dots => 60.0,
            Class::Star => 72.0,
            Class::Triangle => 120.0,
            Class::Stripes | Class::Zigzag => 180.0,
            Class::Disc | Class::Rings => 360.0,
        }
    }
}

/// One drawn figure: its class and the numbers that vary within the class.
#[derive(Debug, Clone)]
pub struct Figure {
    pub class: Class,
    /// Share of the texture's period by which the pattern is shifted, along both axes.
    pub phase: [f32; 2],
    /// Period of the texture, in radii.
    pub period: f32,
    /// Half width of the arms of a cross, inner radius of a star, corner rounding of a polygon, in radii.
    pub detail: f32,
    /// Phases of the patch's outline.
    pub wobble: [f32; 2],
}

impl Figure {
    /// Distance to the outline of everything that belongs to the figure: the shape, or the textured patch.
    pub fn outline(&self, x: f32, y: f32) -> f32 {
        match self.class {
            Class::Cross => {
                let arm = |a: f32, b: f32| (a.abs() - 0.95).max(b.abs() - self.detail);
                arm(x, y).min(arm(y, x))
            }
            Class::Disc => x.hypot(y) - 0.85,
            Class::Frame => (x.abs().max(y.abs()) - 0.58).abs() - 0.19,
            // A tip points up, so that the star is its own mirror image.
            Class::Star => star(-y, x, self.detail),
            Class::Triangle => triangle(x, y) - 0.05,
            _ => {
                let angle = y.atan2(x);
                let radius = 0.9
                    + 0.07 * (2.0 * angle + self.wobble[0]).sin()
                    + 0.05 * (3.0 * angle + self.wobble[1]).sin();
                x.hypot(y) - radius
            }
        }
    }

    /// Distance to the second colour's part of the texture; solid shapes have none.
    pub fn texture(&self, x: f32, y: f32) -> Option<f32> {
        let (u, v) = (x / self.period + self.phase[0], y / self.period + self.phase[1]);
        let distance = match self.class {
            Class::Checkerboard => {
                let (a, b) = (wave(u), wave(v));
                -(a * b).signum() * a.abs().min(b.abs())
            }
            Class::Dots => dots(u, v),
            Class::Rings => wave(x.hypot(y) / self.period + self.phase[0]),
            Class::Stripes => wave(u),
            // A triangle wave of slope 1 bends the stripes; 0.707 turns the vertical distance into the shortest one.
            Class::Zigzag => wave(u + 2.0 * ((0.55 * v).rem_euclid(1.0) - 0.5).abs()) * 0.707,
            _ => return None,
        };
        Some(distance * self.period)
    }
}

/// Signed distance to the middle half of each unit period: a square wave of period 1.
fn wave(t: f32) -> f32 {
    (t.rem_euclid(1.0) - 0.5).abs() - 0.25
}

/// Discs on a hexagonal lattice of unit spacing: two rectangular lattices, one shifted by half a cell.
fn dots(u: f32, v: f32) -> f32 {
    const ROW: f32 = 1.732_050_8;
    let nearest = |u: f32, v: f32| {
        let du = (u + 0.5).rem_euclid(1.0) - 0.5;
        let dv = (v + 0.5 * ROW).rem_euclid(ROW) - 0.5 * ROW;
        du.hypot(dv)
    };
    nearest(u, v).min(nearest(u + 0.5, v + 0.5 * ROW)) - 0.27
}

fn triangle(x: f32, y: f32) -> f32 {
    // Inradius 0.45: the corners of the unrounded triangle lie at 0.9.
    [0.0, TAU / 3.0, -TAU / 3.0].map(|a: f32| x * a.sin() - y * a.cos()).into_iter().fold(f32::MIN, f32::max)
        - 0.45
}

/// A star with five tips at radius 1 and five notches at radius `inner`.
fn star(x: f32, y: f32, inner: f32) -> f32 {
    let sector = TAU / 5.0;
    let angle = ((y.atan2(x) + 0.5 * sector).rem_euclid(sector) - 0.5 * sector).abs();
    let radius = x.hypot(y);
    let (px, py) = (radius * angle.cos(), radius * angle.sin());
    let (nx, ny) = (inner * (PI / 5.0).cos(), inner * (PI / 5.0).sin());
    // Signed distance to the line from the tip (1, 0) to the notch: positive beyond it.
    let (dx, dy) = (nx - 1.0, ny);
    ((px - 1.0) * dy - py * dx) / dx.hypot(dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_in_folder_order() {
        let ids = Class::ALL.map(Class::id);
        assert!(ids.is_sorted(), "label = position of the sorted folder name, got {ids:?}");
    }

    #[test]
    fn figures_map_on_themselves_under_their_symmetry_and_a_horizontal_flip() {
        for class in Class::ALL.into_iter().filter(|c| !c.is_texture()) {
            let figure = Figure { class, phase: [0.0; 2], period: 0.5, detail: 0.4, wobble: [0.0; 2] };
            let turn = class.symmetry_degrees().to_radians() as f32;
            for i in 0..200 {
                let (r, a) = (0.006 * i as f32, 0.37 * i as f32);
                let at = |a: f32| figure.outline(r * a.cos(), r * a.sin());
                assert!((at(a) - at(a + turn)).abs() < 1e-4, "{class:?} turned at {r} {a}");
                let (x, y) = (r * a.cos(), r * a.sin());
                let mirrored = figure.outline(-x, y);
                assert!((figure.outline(x, y) - mirrored).abs() < 1e-4, "{class:?} mirrored at {r} {a}");
            }
        }
    }
}

//! Pillow's `Image.transform(size, AFFINE)`: each pixel of the new picture is looked up in the old one.
//!
//! Nearest is an integer walk in 16.16 fixed point (or, where nothing is turned or slanted, a table of columns); bilinear
//! and bicubic are f64 in Pillow's order of operations, so that cutting off to whole levels gives the same.

use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;

/// The pixel at (column x, row y) comes from (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), both measured between
/// the corners of pixels.
pub type Matrix = [f64; 6];

/// How a place between pixels is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    Nearest,
    Bilinear,
    /// Pillow's kernel for transforms: a = -1.
    Bicubic,
}

/// `Image.rotate`: counter-clockwise about the middle.
pub fn rotation(degrees: f64, height: usize, width: usize) -> Matrix {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    let (cos, sin, minus_sin) =
        (fifteen_digits(angle.cos()), fifteen_digits(angle.sin()), fifteen_digits(-angle.sin()));
    let (across, down) = (cos * -x + sin * -y + 0.0, minus_sin * -x + cos * -y + 0.0);
    [cos, sin, across + x, minus_sin, cos, down + y]
}

/// Python's `round(value, 15)`: through the decimal digits, each rounding to the nearest.
fn fifteen_digits(value: f64) -> f64 {
    use std::io::Write;
    let mut text = [0u8; 32];
    let mut rest = &mut text[..];
    write!(rest, "{value:.15}").expect("a sine has at most 18 characters");
    let unused = rest.len();
    let text = &text[..32 - unused];
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("a number as it was just written")
}

/// Buffers for one row.
#[derive(Default)]
pub struct Lines {
    /// Where each pixel comes from, in pixels from the middle of the first.
    x: Vec<f64>,
    y: Vec<f64>,
    /// The fractions of both, three times each, one a channel.
    dx: Vec<f64>,
    dy: Vec<f64>,
    /// Where the rows and columns around each place begin in the old picture.
    rows: Vec<i32>,
    columns: Vec<i32>,
    /// The old picture's pixels around each place: up to 16 rows of 3 * width bytes.
    corners: Vec<u8>,
}

/// A picture that is read: RGB u8 [height, width, 3].
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub pixels: &'a [[u8; 3]],
    pub height: usize,
    pub width: usize,
}

impl Source<'_> {
    fn row(&self, y: usize) -> &[[u8; 3]] {
        &self.pixels[y * self.width..][..self.width]
    }
}

/// `source` through `matrix`, into `out` [height, width]; what lies outside the source stays as it is.
pub fn transform(
    isa: Isa,
    source: Source,
    matrix: &Matrix,
    sampling: Sampling,
    lines: &mut Lines,
    out: &mut [[u8; 3]],
) {
    match sampling {
        // Bilinear and bicubic at whole offsets give the pixels themselves, and so do both kinds of nearest.
        _ if whole_shift(matrix) => shift(source, matrix[2] as i64, matrix[5] as i64, out),
        Sampling::Nearest if matrix[1] == 0.0 && matrix[3] == 0.0 => scale_nearest(source, matrix, out),
        Sampling::Nearest => turn_nearest(source, matrix, out),
        Sampling::Bilinear => interpolate(isa, source, matrix, false, lines, out),
        Sampling::Bicubic => interpolate(isa, source, matrix, true, lines, out),
    }
}

fn whole_shift(matrix: &Matrix) -> bool {
    let [a, b, c, d, e, f] = *matrix;
    (a, b, d, e) == (1.0, 0.0, 0.0, 1.0) && c.fract() == 0.0 && f.fract() == 0.0
}

/// Each pixel from `right` columns and `down` rows further on.
fn shift(source: Source, right: i64, down: i64, out: &mut [[u8; 3]]) {
    let overlap = |by: i64, len: usize| {
        let first = (-by).clamp(0, len as i64) as usize;
        first..((len as i64 - by).clamp(first as i64, len as i64) as usize)
    };
    let columns = overlap(right, source.width);
    if columns.is_empty() {
        return;
    }
    let from = (columns.start as i64 + right) as usize;
    for y in overlap(down, source.height) {
        let row = &source.row((y as i64 + down) as usize)[from..from + columns.len()];
        out[y * source.width..][columns.clone()].copy_from_slice(row);
    }
}

/// Pillow's `COORD`: the pixel at a place, -1 for one before the first.
fn pixel_at(place: f64) -> i64 {
    if place < 0.0 { -1 } else { place as i64 }
}

/// `ImagingScaleAffine`: places are added up from pixel to pixel.
fn scale_nearest(source: Source, matrix: &Matrix, out: &mut [[u8; 3]]) {
    let (width, height) = (source.width as i64, source.height as i64);
    let mut y = matrix[5] + matrix[4] * 0.5;
    for out in out.chunks_exact_mut(source.width) {
        let row = pixel_at(y);
        y += matrix[4];
        if !(0..height).contains(&row) {
            continue;
        }
        let row = source.row(row as usize);
        let mut x = matrix[2] + matrix[0] * 0.5;
        for out in out {
            let column = pixel_at(x);
            x += matrix[0];
            if (0..width).contains(&column) {
                *out = row[column as usize];
            }
        }
    }
}

/// `affine_fixed`: places are added up in 16.16 fixed point. Pillow takes f64 where a place would be beyond 32,768; a
/// training picture of at most 4,096 pixels a side, turned or slanted by at most one pixel a pixel, stays below.
fn turn_nearest(source: Source, matrix: &Matrix, out: &mut [[u8; 3]]) {
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i32;
    let [a, b, c, d, e, f] = *matrix;
    let (across, down) = ((fixed(a), fixed(d)), (fixed(b), fixed(e)));
    let mut start = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    for out in out.chunks_exact_mut(source.width) {
        let (mut x, mut y) = start;
        for out in out {
            let (column, row) = ((x >> 16) as usize, (y >> 16) as usize);
            // A negative place is a huge unsigned one.
            if column < source.width && row < source.height {
                *out = source.pixels[row * source.width + column];
            }
            x = x.wrapping_add(across.0);
            y = y.wrapping_add(across.1);
        }
        start = (start.0.wrapping_add(down.0), start.1.wrapping_add(down.1));
    }
}

/// The axes that lie between pixels. Along the other one every place is the middle of a pixel, whose share is 0: the
/// formulas then give that pixel itself.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Columns,
    Rows,
    Both,
}

fn between(matrix: &Matrix) -> Between {
    let [a, b, c, d, e, f] = *matrix;
    if (d, e) == (0.0, 1.0) && f.fract() == 0.0 {
        Between::Columns
    } else if (a, b) == (1.0, 0.0) && c.fract() == 0.0 {
        Between::Rows
    } else {
        Between::Both
    }
}

/// `ImagingGenericTransform` with `bilinear_filter32RGB` or `bicubic_filter32RGB`.
fn interpolate(
    isa: Isa,
    source: Source,
    matrix: &Matrix,
    cubic: bool,
    lines: &mut Lines,
    out: &mut [[u8; 3]],
) {
    let (width, height) = (source.width, source.height);
    let axes = between(matrix);
    let Lines { x, y, dx, dy, rows, columns, corners } = lines;
    x.resize(width, 0.0);
    y.resize(width, 0.0);
    dx.resize(3 * width, 0.0);
    dy.resize(3 * width, 0.0);
    rows.resize(width, 0);
    columns.resize(4 * width, 0);
    corners.resize(16 * 3 * width, 0);
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        places(isa, matrix, row, x, y);
        let inside =
            |i: &usize| (0.0..width as f64).contains(&x[*i]) && (0.0..height as f64).contains(&y[*i]);
        // Places rise or fall along a row, so those inside are one run.
        let Some(first) = (0..width).find(inside) else { continue };
        let end = (first..width).rfind(inside).map_or(first, |last| last + 1);
        let n = end - first;
        let (x, y) = (&mut x[first..end], &mut y[first..end]);
        let (dx, dy) = (&mut dx[..3 * n], &mut dy[..3 * n]);
        match axes {
            Between::Columns => to_middles(isa, y),
            Between::Rows | Between::Both => split(isa, y, dy),
        }
        match axes {
            Between::Rows => to_middles(isa, x),
            Between::Columns | Between::Both => split(isa, x, dx),
        }
        let out = bytemuck::cast_slice_mut(&mut out[first..end]);
        let buffers = (&mut rows[..], &mut columns[..], &mut corners[..]);
        let share = if axes == Between::Columns { &*dx } else { &*dy };
        match (cubic, axes) {
            (false, Between::Columns) => {
                linear(isa, gather(isa, source, x, y, [0], [0, 1], buffers), share, out)
            }
            (false, Between::Rows) => {
                linear(isa, gather(isa, source, x, y, [0, 1], [0], buffers), share, out)
            }
            (false, Between::Both) => {
                bilinear(isa, gather(isa, source, x, y, [0, 1], [0, 1], buffers), dx, dy, out);
            }
            (true, Between::Columns) => {
                cubic_line(isa, gather(isa, source, x, y, [0], [-1, 0, 1, 2], buffers), share, out);
            }
            (true, Between::Rows) => {
                cubic_line(isa, gather(isa, source, x, y, [-1, 0, 1, 2], [0], buffers), share, out);
            }
            (true, Between::Both) => {
                bicubic(isa, gather(isa, source, x, y, [-1, 0, 1, 2], [-1, 0, 1, 2], buffers), dx, dy, out);
            }
        }
    }
}

multiversion! {
    /// Where the pixels of a row come from.
    fn places(matrix: &Matrix, row: usize, x: &mut [f64], y: &mut [f64]) {
        let down = row as f64 + 0.5;
        let [a, b, c, d, e, f] = *matrix;
        let (b, e) = (b * down, e * down);
        for (i, (x, y)) in x.iter_mut().zip(y).enumerate() {
            let across = i as u32 as f64 + 0.5;
            *x = a * across + b + c;
            *y = d * across + e + f;
        }
    }
}

multiversion! {
    /// Places from the corner that are the middles of pixels -> those pixels.
    fn to_middles(place: &mut [f64]) {
        place.iter_mut().for_each(|place| *place -= 0.5);
    }
}

multiversion! {
    /// Places from the corner -> the pixels whose middles lie before them, and how far before, once a channel.
    fn split(place: &mut [f64], fraction: &mut [f64]) {
        for (place, fraction) in place.iter_mut().zip(fraction.chunks_exact_mut(3)) {
            let middle = *place - 0.5;
            *place = middle.floor();
            fraction.fill(middle - *place);
        }
    }
}

multiversion! {
    /// The pixels `by` further on than each place, or the `last` one, or the first; times `stride`.
    fn steps(place: &[f64], by: i32, last: i32, stride: i32, out: &mut [i32]) {
        for (out, &place) in out.iter_mut().zip(place) {
            // SAFETY: a place is inside the picture or one pixel before it.
            let pixel = unsafe { place.to_int_unchecked::<i32>() };
            *out = (pixel + by).clamp(0, last) * stride;
        }
    }
}

/// The pixels around each place: for each step `down` and `right` of it a row of them. Those outside are their nearest
/// inside. (Pillow repeats the last row that is inside in place of one that is not: the same.)
fn gather<'a, const D: usize, const R: usize>(
    isa: Isa,
    source: Source,
    x: &[f64],
    y: &[f64],
    down: [i32; D],
    right: [i32; R],
    (rows, columns, corners): (&mut [i32], &mut [i32], &'a mut [u8]),
) -> &'a [u8] {
    let n = x.len();
    for (by, out) in right.into_iter().zip(columns.chunks_exact_mut(n)) {
        steps(isa, x, by, source.width as i32 - 1, 1, out);
    }
    let corners = &mut corners[..3 * D * R * n];
    let mut out = bytemuck::cast_slice_mut::<_, [u8; 3]>(corners).chunks_exact_mut(n);
    for by in down {
        let rows = &mut rows[..n];
        steps(isa, y, by, source.height as i32 - 1, source.width as i32, rows);
        for columns in columns.chunks_exact(n).take(R) {
            let places = rows.iter().zip(columns).map(|(row, column)| (row + column) as usize);
            let out = out.next().expect("D * R rows");
            out.iter_mut().zip(places).for_each(|(out, place)| *out = source.pixels[place]);
        }
    }
    corners
}

/// From `a` on towards `b`, in Pillow's order.
#[inline(always)]
fn mix(a: u8, b: u8, share: f64) -> f64 {
    f64::from(a) + f64::from(i32::from(b) - i32::from(a)) * share
}

/// Pillow's cubic through four values, at `share` between the middle two.
#[inline(always)]
fn cubic(v: [f64; 4], share: f64) -> f64 {
    let first = v[1];
    let second = -v[0] + v[2];
    let third = 2.0 * (v[0] - v[1]) + v[2] - v[3];
    let fourth = -v[0] + v[1] - v[2] + v[3];
    first + share * (second + share * (third + share * fourth))
}

/// Cut off to a whole level.
#[inline(always)]
fn level(value: f64) -> u8 {
    // SAFETY: clamped to what a u8 holds; a few sums and products of levels and shares are no NaN.
    unsafe { value.clamp(0.0, 255.0).to_int_unchecked::<i32>() as u8 }
}

multiversion! {
    /// Along one axis: two rows as long as `out`.
    fn linear(corners: &[u8], share: &[f64], out: &mut [u8]) {
        let n = out.len();
        let (a, b, share) = (&corners[..n], &corners[n..2 * n], &share[..n]);
        for i in 0..n {
            out[i] = level(mix(a[i], b[i], share[i]));
        }
    }
}

multiversion! {
    /// Four rows as long as `out`; horizontally first.
    fn bilinear(corners: &[u8], dx: &[f64], dy: &[f64], out: &mut [u8]) {
        let n = out.len();
        let (a, b, c, d) = (&corners[..n], &corners[n..2 * n], &corners[2 * n..3 * n], &corners[3 * n..4 * n]);
        let (dx, dy) = (&dx[..n], &dy[..n]);
        for i in 0..n {
            let (above, below) = (mix(a[i], b[i], dx[i]), mix(c[i], d[i], dx[i]));
            out[i] = level(above + (below - above) * dy[i]);
        }
    }
}

multiversion! {
    /// Along one axis: four rows as long as `out`.
    fn cubic_line(corners: &[u8], share: &[f64], out: &mut [u8]) {
        let n = out.len();
        let (corners, share) = (&corners[..4 * n], &share[..n]);
        for i in 0..n {
            out[i] = level(cubic(std::array::from_fn(|k| f64::from(corners[k * n + i])), share[i]));
        }
    }
}

multiversion! {
    /// Sixteen rows as long as `out`; horizontally first.
    fn bicubic(corners: &[u8], dx: &[f64], dy: &[f64], out: &mut [u8]) {
        let n = out.len();
        let (corners, dx, dy) = (&corners[..16 * n], &dx[..n], &dy[..n]);
        for i in 0..n {
            let row = |row: usize| cubic(std::array::from_fn(|k| f64::from(corners[(4 * row + k) * n + i])), dx[i]);
            out[i] = level(cubic([row(0), row(1), row(2), row(3)], dy[i]));
        }
    }
}

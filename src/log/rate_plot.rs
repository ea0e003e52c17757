//! The picture of a search for a learning rate: loss over the rate's logarithm, as it was and smoothed.

use super::plot::{COLOURS, FAINT, TEXT, WIDTH, label, line, tick_label, ticks};
use std::fmt::Write;

/// One step of the search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatePoint {
    pub lr: f64,
    pub loss: f64,
    pub smooth: f64,
}

const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 56.0;
const RIGHT: f64 = WIDTH - 32.0;
const BOTTOM: f64 = HEIGHT - 64.0;

/// `points` have rising rates, two at least; `suggested` lies among them and is marked.
pub fn plot_rates(title: &str, points: &[RatePoint], suggested: f64) -> String {
    let [first, .., last] = points else { return String::new() };
    let smooth = || points.iter().map(|point| point.smooth);
    // Raw losses beyond the smooth ones' range are cut: one wild step would flatten the curve.
    let (low, high) = smooth().fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
    let y_ticks = ticks(low, high, 6.0);
    let (y_low, y_high) = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
    let (from, to) = (first.lr.log10(), last.lr.log10());
    let x_at = |lr: f64| LEFT + (lr.log10() - from) / (to - from) * (RIGHT - LEFT);
    let y_at = |loss: f64| BOTTOM - (loss.clamp(y_low, y_high) - y_low) / (y_high - y_low) * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\" fill=\"#ffffff\" stroke=\"{FAINT}\"/>\n"
    );
    label(&mut svg, WIDTH / 2.0, 28.0, "middle", "font-size=\"16\" font-weight=\"600\"", title);
    for &y in &y_ticks {
        line(&mut svg, (LEFT, y_at(y)), (RIGHT, y_at(y)), FAINT);
        label(&mut svg, LEFT - 8.0, y_at(y) + 4.0, "end", "", &tick_label(y));
    }
    for power in from.ceil() as i32..=to.floor() as i32 {
        let x = x_at(10f64.powi(power));
        line(&mut svg, (x, BOTTOM), (x, BOTTOM + 4.0), TEXT);
        label(&mut svg, x, BOTTOM + 18.0, "middle", "", &format!("1e{power}"));
    }
    line(&mut svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), TEXT);
    line(&mut svg, (LEFT, TOP), (LEFT, BOTTOM), TEXT);
    label(&mut svg, (LEFT + RIGHT) / 2.0, BOTTOM + 40.0, "middle", "", "learning rate of the whole batch");
    let mut curve = |value: fn(&RatePoint) -> f64, colour: &str, width: f64| {
        let points: Vec<String> =
            points.iter().map(|p| format!("{:.1},{:.1}", x_at(p.lr), y_at(value(p)))).collect();
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"/>"
        );
    };
    curve(|point| point.loss, COLOURS[5], 1.0);
    curve(|point| point.smooth, COLOURS[0], 2.5);
    let x = x_at(suggested);
    line(&mut svg, (x, TOP), (x, BOTTOM), COLOURS[1]);
    label(&mut svg, x + 6.0, TOP + 14.0, "start", "font-weight=\"600\"", &format!("{suggested:.3e}"));
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_is_logarithmic_and_the_suggestion_marked() {
        let point = |(lr, loss)| RatePoint { lr, loss, smooth: loss };
        let points = [(1e-4, 3.0), (1e-3, 2.5), (1e-2, 2.0), (1e-1, 9.0)].map(point);
        let svg = plot_rates("find", &points, 1e-3);
        for power in -4..=-1 {
            assert!(svg.contains(&format!(">1e{power}<")), "{svg}");
        }
        // A third of the way from 64 to 1048.
        assert!(svg.contains("M392.0 56.0L392.0 356.0") && svg.contains(">1.000e-3<"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}

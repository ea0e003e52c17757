//! Training curves as an SVG: loss on the left, top-1 and top-5 on the right. Drawn by hand, so that a run needs nothing
//! but itself to show how it went.

use std::fmt::Write;

use super::scores::{LoggedEpoch, LoggedRun, parse_logs_md};
use crate::error::{Error, Result};

pub(super) const WIDTH: f64 = 1080.0;
/// Without the legend's rows.
pub(super) const HEIGHT: f64 = 392.0;
const ROW: f64 = 18.0;
const PANEL_WIDTH: f64 = 440.0;
const PANEL_HEIGHT: f64 = 270.0;
const TOP: f64 = 64.0;
/// Okabe and Ito's colours, which colour-blind people tell apart (jfly.uni-koeln.de/color).
pub(super) const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];
pub(super) const TEXT: &str = "#24292f";
pub(super) const FAINT: &str = "#d8dee4";

/// Which runs of a logs.md to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Last,
    All,
}

/// `engine plot logs.md`: the file's text to an SVG. The error says what a line should look like.
pub fn plot_logs_md(text: &str, which: Which) -> Result<String> {
    let runs = parse_logs_md(text);
    match (which, runs.last()) {
        (_, None) => Err(Error::input(
            "has no epoch line yet; wanted lines like `epoch: 1  train_loss: 4.512  train_top1: 1.20%  ...`, which \
             `engine train` writes after each epoch",
        )),
        (Which::Last, Some(last)) => Ok(plot(std::slice::from_ref(last))),
        (Which::All, _) => Ok(plot(&runs)),
    }
}

/// Draws runs into one picture; `runs` has at least one line in all.
pub fn plot(runs: &[LoggedRun]) -> String {
    let series = series(runs);
    let columns = if runs.len() > 1 { 1 } else { 2 };
    let height = HEIGHT + ROW * legend_rows(&series, columns) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\" stroke=\"{FAINT}\"/>\n"
    );
    let name = match runs {
        [run] if run.name.is_empty() => "training".to_owned(),
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    label(&mut svg, WIDTH / 2.0, 28.0, "middle", "font-size=\"16\" font-weight=\"600\"", &name);
    for (panel, left) in [(Panel::Loss, 64.0), (Panel::Accuracy, 592.0)] {
        let own: Vec<&Series> = series.iter().filter(|series| series.panel == panel).collect();
        let title = match panel {
            Panel::Loss if columns == 1 => "validation loss",
            Panel::Loss => "loss",
            Panel::Accuracy if columns == 1 => "validation top-1, %",
            Panel::Accuracy => "accuracy, %",
        };
        draw_panel(&mut svg, panel, title, left, &own);
        draw_legend(&mut svg, left, columns, &own);
    }
    svg.push_str("</svg>\n");
    svg
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Panel {
    Loss,
    Accuracy,
}

struct Series {
    panel: Panel,
    name: String,
    colour: &'static str,
    /// Training curves are dashed.
    is_train: bool,
    points: Vec<(f64, f64)>,
}

/// One run: four accuracy curves and two losses. Several: the validation curves of each, in a colour of its own.
fn series(runs: &[LoggedRun]) -> Vec<Series> {
    let mut all = Vec::new();
    let curve = |run: &LoggedRun, value: fn(&LoggedEpoch) -> f64| -> Vec<(f64, f64)> {
        let points = run.lines.iter().map(|line| (f64::from(line.epoch), value(line)));
        points.filter(|(_, y)| y.is_finite()).collect()
    };
    let mut add = |panel, name: String, colour, is_train, points| {
        all.push(Series { panel, name, colour, is_train, points });
    };
    if let [run] = runs {
        add(Panel::Loss, "train".into(), COLOURS[0], true, curve(run, |line| line.train.loss));
        add(Panel::Loss, "validation".into(), COLOURS[1], false, curve(run, |line| line.val.loss));
        add(Panel::Accuracy, "train top-1".into(), COLOURS[0], true, curve(run, |line| line.train.top1));
        add(Panel::Accuracy, "val top-1".into(), COLOURS[1], false, curve(run, |line| line.val.top1));
        add(Panel::Accuracy, "train top-5".into(), COLOURS[5], true, curve(run, |line| line.train.top5));
        add(Panel::Accuracy, "val top-5".into(), COLOURS[4], false, curve(run, |line| line.val.top5));
        return all;
    }
    for (i, run) in runs.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        add(Panel::Loss, shortened(&run.name, i), colour, false, curve(run, |line| line.val.loss));
        add(Panel::Accuracy, shortened(&run.name, i), colour, false, curve(run, |line| line.val.top1));
    }
    all
}

fn shortened(name: &str, index: usize) -> String {
    match name.chars().count() {
        0 => format!("run {}", index + 1),
        1..=50 => name.to_owned(),
        _ => name.chars().take(49).chain(['…']).collect(),
    }
}

/// Round tick positions that cover `low..=high`: steps of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(low: f64, high: f64, wanted: f64) -> Vec<f64> {
    let rough = ((high - low) / wanted).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough * 0.999).unwrap_or(power);
    let first = (low / step).floor() as i64;
    let last = (high / step - 1e-9).ceil() as i64;
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

fn draw_panel(svg: &mut String, panel: Panel, title: &str, left: f64, series: &[&Series]) {
    let points = || series.iter().flat_map(|series| &series.points);
    let last_epoch = points().map(|point| point.0).fold(1.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(l, h), point| (l.min(point.1), h.max(point.1)));
    let (low, high) = match panel {
        _ if low > high => (0.0, 1.0),
        Panel::Loss => (low, high),
        Panel::Accuracy => (0.0, high.max(1.0)),
    };
    let (x_ticks, y_ticks) = (ticks(0.0, last_epoch, 9.0), ticks(low, high, 5.0));
    // Epochs are whole: no ticks between them.
    let x_ticks: Vec<f64> = x_ticks.into_iter().filter(|x| x.fract() == 0.0 && *x <= last_epoch).collect();
    let (bottom, y_low, y_high) = (TOP + PANEL_HEIGHT, y_ticks[0], y_ticks[y_ticks.len() - 1]);
    let x_at = |epoch: f64| left + epoch / last_epoch * PANEL_WIDTH;
    let y_at = |value: f64| bottom - (value - y_low) / (y_high - y_low) * PANEL_HEIGHT;
    label(svg, left, TOP - 12.0, "start", "font-weight=\"600\"", title);
    for &y in &y_ticks {
        line(svg, (left, y_at(y)), (left + PANEL_WIDTH, y_at(y)), FAINT);
        label(svg, left - 8.0, y_at(y) + 4.0, "end", "", &tick_label(y));
    }
    for &x in &x_ticks {
        line(svg, (x_at(x), bottom), (x_at(x), bottom + 4.0), TEXT);
        label(svg, x_at(x), bottom + 18.0, "middle", "", &tick_label(x));
    }
    line(svg, (left, bottom), (left + PANEL_WIDTH, bottom), TEXT);
    line(svg, (left, TOP), (left, bottom), TEXT);
    label(svg, left + PANEL_WIDTH / 2.0, bottom + 36.0, "middle", "", "epoch");
    for series in series {
        let at: Vec<(f64, f64)> = series.points.iter().map(|&(x, y)| (x_at(x), y_at(y))).collect();
        draw_curve(svg, series, &at);
    }
}

fn draw_curve(svg: &mut String, series: &Series, at: &[(f64, f64)]) {
    let colour = series.colour;
    let points: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\"{}/>",
        points.join(" "),
        dash(series)
    );
    // A line through few points hides where they are; through one there is no line.
    for (x, y) in at.iter().filter(|_| at.len() <= 12) {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
}

fn dash(series: &Series) -> &'static str {
    if series.is_train { " stroke-dasharray=\"5 4\"" } else { "" }
}

fn legend_rows(series: &[Series], columns: usize) -> usize {
    series.iter().filter(|series| series.panel == Panel::Accuracy).count().div_ceil(columns)
}

/// Names with the last value, below the panel.
fn draw_legend(svg: &mut String, left: f64, columns: usize, series: &[&Series]) {
    for (i, series) in series.iter().enumerate() {
        let x = left + (i % columns) as f64 * PANEL_WIDTH / columns as f64;
        let y = HEIGHT + (i / columns) as f64 * ROW;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {y:.1}h24\" stroke=\"{}\" stroke-width=\"2\"{}/>",
            series.colour,
            dash(series)
        );
        let last = series.points.last().map_or(String::new(), |(_, y)| match series.panel {
            Panel::Loss => format!(" {y:.3}"),
            Panel::Accuracy => format!(" {y:.2}"),
        });
        label(svg, x + 30.0, y + 4.0, "start", "", &format!("{}{last}", series.name));
    }
}

pub(super) fn tick_label(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

pub(super) fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let (x1, y1, x2, y2) = (from.0, from.1, to.0, to.1);
    let _ = writeln!(svg, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\" fill=\"none\"/>");
}

pub(super) fn label(svg: &mut String, x: f64, y: f64, anchor: &str, style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // XML knows no control characters.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{TEXT}\" {style}>{text}</text>"
    );
}

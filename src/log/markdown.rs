//! logs.md: the requirements' header, then a section for each run.
//!
//! ~~~text
//! ## resnet50-90, 2025-10-11
//! <!-- run: 3f2a91c0 -->
//!
//! batch 256, SGD, lr 0.1 ...
//!
//! ```text
//! epoch: 1  train_loss: ...
//! ~~~
//!
//! The fence keeps the lines apart when the page is rendered; a fence that is never closed ends with the page. People edit
//! this file, so nothing in it is taken for granted: [`place`] says what the text should be, given what it is.

/// The template that requirements.md asks for, to the letter.
pub const HEADER: &str = "\
# Training logs

epoch | train_loss | train_top1 | train_top5 | val_loss | val_top1 | val_top5 | timestamp | notes
----- | ---------- | ---------- | ---------  | -------- | -------- | -------  | --------- | -----

";

const FENCE: &str = "```";

/// What a run's section begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct RunHeader {
    /// Finds the section again: letters, digits, `-`, `_`, `.`.
    pub id: String,
    pub name: String,
    /// A line or two.
    pub configuration: String,
}

impl RunHeader {
    fn comment(&self) -> String {
        format!("<!-- run: {} -->", self.id)
    }

    fn section(&self, date: &str) -> String {
        let name = self.name.replace(['\r', '\n'], " ");
        let (comment, configuration) = (self.comment(), self.configuration.trim());
        format!("## {name}, {date}\n{comment}\n\n{configuration}\n\n{FENCE}text\n")
    }
}

/// An epoch's line: what it says, and the timestamp to use where the file does not have the line.
pub struct Wanted {
    pub fields: String,
    pub timestamp: String,
}

/// `text` with the run's section present, and with exactly the `wanted` epoch lines in it, in order. A line that says the
/// same stays as it is, with its timestamp and whatever was written behind it; all other text stays. `wanted[i]` is epoch
/// i + 1.
pub fn place(text: &str, run: &RunHeader, date: &str, wanted: &[Wanted]) -> String {
    let newline = newline(text);
    let mut lines = split(if text.trim().is_empty() { HEADER } else { text });
    if !lines.iter().any(|line| line.trim() == run.comment()) {
        open_section(&mut lines, run, date, newline);
    }
    let comment = lines.iter().position(|line| line.trim() == run.comment()).expect("opened above");
    let end = section_end(&lines, comment + 1);
    let section = rebuild(&lines[comment + 1..end], wanted, newline);
    lines.splice(comment + 1..end, section);
    lines.concat()
}

/// `text` with a line of the run's own (`note: ...`) behind its last line, once.
pub fn place_note(text: &str, run: &RunHeader, note: &str) -> String {
    let newline = newline(text);
    let mut lines = split(text);
    let Some(comment) = lines.iter().position(|line| line.trim() == run.comment()) else {
        return text.to_owned();
    };
    let note = format!("note: {}", note.replace(['\r', '\n'], " "));
    // What a kill left of this note.
    lines
        .pop_if(|line| line.starts_with("note:") && !line.ends_with('\n') && note.starts_with(line.as_str()));
    let range = comment + 1..section_end(&lines, comment + 1);
    if lines[range.clone()].iter().any(|line| line.trim() == note) {
        return text.to_owned();
    }
    let at = range.start + last_own_line(&lines[range]);
    insert(&mut lines, at, vec![note], newline);
    lines.concat()
}

/// `text` with the run's fence closed, for what people write below it.
pub fn close(text: &str, run: &RunHeader) -> String {
    let newline = newline(text);
    let mut lines = split(text);
    if let Some(comment) = lines.iter().position(|line| line.trim() == run.comment()) {
        let end = section_end(&lines, comment + 1);
        if is_fence_open(&lines[comment + 1..end]) {
            let at = comment + 1 + last_own_line(&lines[comment + 1..end]);
            insert(&mut lines, at, vec![FENCE.into()], newline);
        }
    }
    lines.concat()
}

fn newline(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

fn split(text: &str) -> Vec<String> {
    text.split_inclusive('\n').map(str::to_owned).collect()
}

fn insert(lines: &mut Vec<String>, at: usize, new: Vec<String>, newline: &str) {
    if let Some(before) = at.checked_sub(1).and_then(|i| lines.get_mut(i))
        && !new.is_empty()
        && !before.ends_with('\n')
    {
        before.push_str(newline);
    }
    lines.splice(at..at, new.into_iter().map(|line| line + newline));
}

fn open_section(lines: &mut Vec<String>, run: &RunHeader, date: &str, newline: &str) {
    let mut new = Vec::new();
    if is_fence_open(lines) {
        new.push(FENCE.to_owned());
    }
    if !new.is_empty() || lines.last().is_some_and(|line| !line.trim().is_empty()) {
        new.push(String::new());
    }
    new.extend(run.section(date).lines().map(str::to_owned));
    let at = lines.len();
    insert(lines, at, new, newline);
}

fn is_fence(line: &str) -> bool {
    line.trim_start().starts_with(FENCE)
}

fn is_fence_open(lines: &[String]) -> bool {
    lines.iter().filter(|line| is_fence(line)).count() % 2 == 1
}

/// The next heading outside a fence, or the next run's heading wherever it is: a run's fence may be unclosed.
fn section_end(lines: &[String], start: usize) -> usize {
    let mut in_fence = false;
    for (i, line) in lines.iter().enumerate().skip(start) {
        in_fence ^= is_fence(line);
        let is_heading = line.starts_with("# ") || line.starts_with("## ");
        let mut below = lines[i + 1..].iter().map(|line| line.trim()).filter(|line| !line.is_empty());
        let is_run = below.next().is_some_and(|line| line.starts_with("<!-- run: "));
        if line.starts_with("<!-- run: ") || is_heading && (!in_fence || is_run) {
            return i;
        }
    }
    lines.len()
}

/// Behind the last line that the run wrote, in a section.
fn last_own_line(section: &[String]) -> usize {
    let is_own = |line: &String| line.starts_with("epoch:") || line.starts_with("note:");
    let opening = || section.iter().position(|line| is_fence(line));
    let text = || section.iter().rposition(|line| !line.trim().is_empty());
    section.iter().rposition(is_own).or_else(opening).or_else(text).map_or(0, |i| i + 1)
}

fn rebuild(section: &[String], wanted: &[Wanted], newline: &str) -> Vec<String> {
    let mut kept: Vec<Option<String>> = vec![None; wanted.len()];
    let (mut others, mut order, mut first) = (Vec::new(), Vec::new(), None);
    let mut in_place = Vec::new();
    for line in section {
        let is_torn = !line.ends_with('\n') && "epoch:".starts_with(line.as_str());
        if !line.starts_with("epoch:") && !is_torn {
            others.push(line.clone());
            in_place.push(line.clone());
            continue;
        }
        first.get_or_insert(others.len());
        let agrees = wanted.iter().position(|wanted| says(line, &wanted.fields));
        if let Some(i) = agrees.filter(|&i| kept[i].is_none()) {
            kept[i] = Some(line.trim_end().to_owned());
            order.push(i);
            in_place.push(line.clone());
        }
    }
    let fresh = |i: usize| format!("{}  timestamp: {}", wanted[i].fields, wanted[i].timestamp);
    // The usual case: what is there is the beginning of what is wanted, and stays where it is.
    if order.iter().copied().eq(0..order.len()) {
        let at = last_own_line(&in_place);
        insert(&mut in_place, at, (order.len()..wanted.len()).map(fresh).collect(), newline);
        return in_place;
    }
    let lines = kept.into_iter().enumerate().map(|(i, line)| line.unwrap_or_else(|| fresh(i))).collect();
    insert(&mut others, first.unwrap_or(0), lines, newline);
    others
}

/// Whether a line of the file says what `fields` say, with any white space, and goes on with a whole timestamp.
fn says(line: &str, fields: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_same = fields.split_whitespace().all(|word| words.next() == Some(word));
    is_same && words.next() == Some("timestamp:") && words.next().is_some_and(super::scores::is_timestamp)
}

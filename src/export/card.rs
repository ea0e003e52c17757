//! A model card for the Hugging Face Hub: a README.md with front matter and `model-index` (hub-docs, modelcard.md).
//!
//! Every figure is one that the checkpoint holds, or that was measured by the export which writes the card. What nobody
//! measured is said to be unknown.

use super::verify::Row;
use crate::infer::file::Description;
use crate::log::EpochScores;
use std::fmt::Write;

/// What a card is written from.
pub struct Card<'a> {
    pub description: &'a Description,
    /// By epoch; empty for weights from elsewhere.
    pub history: &'a [EpochScores],
    /// Time spent in training, from `run.json` of the same run.
    pub hours: Option<f64>,
    /// Whether the run's logs.md has the checkpoint's last line; none where it was not found.
    pub is_logged: Option<bool>,
    /// What the exports of the same command were measured to be, and on which pictures.
    pub verified: Option<(&'a [Row], &'a str)>,
    /// Names of the files beside the card.
    pub files: &'a [String],
    /// An identifier of the Hub: `apache-2.0`.
    pub license: &'a str,
    /// The Hub's name of the training data: `ILSVRC/imagenet-1k`.
    pub dataset: Option<&'a str>,
}

impl Card<'_> {
    pub fn text(&self) -> String {
        let mut out = self.front_matter();
        self.opening(&mut out);
        self.figures(&mut out);
        self.use_it(&mut out);
        self.training(&mut out);
        self.unknown(&mut out);
        out
    }

    fn front_matter(&self) -> String {
        let Description { arch, .. } = self.description;
        let mut out = String::from("---\n");
        line(&mut out, format_args!("license: {}", quoted(self.license)));
        line(&mut out, format_args!("pipeline_tag: image-classification\nlibrary_name: engine"));
        line(&mut out, format_args!("tags:\n- image-classification\n- resnet\n- {}\n- rust", quoted(arch)));
        if let Some(dataset) = self.dataset {
            line(&mut out, format_args!("datasets:\n- {}", quoted(dataset)));
        }
        line(&mut out, format_args!("metrics:\n- accuracy"));
        if let Some([top1, top5]) = self.scores() {
            let data = self.data();
            line(
                &mut out,
                format_args!(
                    "model-index:\n- name: {}\n  results:\n  - task:\n      type: image-classification\n    dataset:\n      \
                     type: {}\n      name: {}\n      split: validation\n    metrics:\n    - type: accuracy\n      name: \
                     top-1 accuracy\n      value: {:.4}\n    - type: accuracy\n      name: top-5 accuracy\n      value: {:.4}",
                    quoted(arch),
                    quoted(self.dataset.unwrap_or("imagefolder")),
                    quoted(&data),
                    top1 / 100.0,
                    top5 / 100.0
                ),
            );
        }
        out + "---\n"
    }

    /// Top-1 and top-5 of the last validation in training, in percent.
    fn scores(&self) -> Option<[f64; 2]> {
        let scores = &self.description.source.scores;
        Some([*scores.get("val_top1")?, *scores.get("val_top5")?])
    }

    /// The validation data in words.
    fn data(&self) -> String {
        let recipe = &self.description.source.recipe;
        let images = recipe.get("data: validation images").map_or("all", String::as_str);
        let classes = self.description.classes.len();
        match self.dataset {
            Some(dataset) => format!("{dataset}, {images} validation images of {classes} classes"),
            None => format!("the run's own data, {images} validation images of {classes} classes"),
        }
    }

    fn opening(&self, out: &mut String) {
        let Description { arch, classes, resolution, source, .. } = self.description;
        let trained = match (source.epoch, source.recipe.is_empty()) {
            (Some(epoch), false) => format!("trained from random weights for {epoch} epochs"),
            _ => "of unknown training".into(),
        };
        line(
            out,
            format_args!(
                "\n# {arch}, {} classes, {resolution} px\n\nAn image classifier ({arch} as torchvision defines it), {trained}, \
                 exported by {}.\n",
                classes.len(),
                source.written_by
            ),
        );
    }

    fn figures(&self, out: &mut String) {
        line(out, format_args!("## Accuracy\n"));
        match self.scores() {
            Some([top1, top5]) => line(
                out,
                format_args!(
                    "top-1 {top1:.2} %, top-5 {top5:.2} % on {}, at {} px, measured in training after its last epoch.\n",
                    self.data(),
                    self.description.resolution
                ),
            ),
            None => line(out, format_args!("Not known: these weights carry no score.\n")),
        }
        let Some((rows, pictures)) = self.verified else { return };
        let images = rows.first().map_or(0, |row| row.images);
        line(
            out,
            format_args!(
                "Each file was run again after it was written, on {images} images of {pictures}, beside the checkpoint:\n\n\
                 | format | same top-1 | largest difference of logits, relative | top-1 |\n|---|---|---|---|"
            ),
        );
        for Row { format, same_top1, relative, top1, .. } in rows {
            let top1 = top1.map_or("not known".to_owned(), |top1| format!("{top1:.2} %"));
            line(out, format_args!("| {format} | {same_top1:.2} % | {relative:.1e} | {top1} |"));
        }
        out.push('\n');
    }

    fn use_it(&self, out: &mut String) {
        let Description { arch, classes, resolution, crop_ratio, interpolation, mean, std, .. } =
            self.description;
        let resized = self.description.transform().resize;
        let interpolation = format!("{interpolation:?}").to_lowercase();
        line(
            out,
            format_args!(
                "## Use\n\nA picture is resized ({interpolation}, antialiased) so that its shorter side has {resized} \
                 pixels, its centre of {resolution} x {resolution} is cut out (crop ratio {crop_ratio}), and by channel (RGB) \
                 the input is (byte / 255 - mean) / std with mean {mean:?} and std {std:?}. Each file holds this, the labels and \
                 the recipe as JSON under `engine.model`.\n"
            ),
        );
        for file in self.files {
            let (_, ending) = file.rsplit_once('.').unwrap_or(("", file));
            let how = match ending {
                "pth" => format!(
                    "`torchvision.models.{arch}(num_classes={}).load_state_dict(torch.load(\"{file}\", weights_only=True))`",
                    classes.len()
                ),
                "safetensors" => format!(
                    "`torchvision.models.{arch}(num_classes={}).load_state_dict(safetensors.torch.load_file(\"{file}\"))`",
                    classes.len()
                ),
                "onnx" => {
                    format!("`onnxruntime.InferenceSession(\"{file}\").run(None, {{\"input\": images}})`")
                }
                _ => format!("`classify --model {file} photo.jpg`"),
            };
            line(out, format_args!("- {file}: {how}"));
        }
        if !self.files.is_empty() {
            out.push('\n');
        }
    }

    fn training(&self, out: &mut String) {
        let source = &self.description.source;
        line(out, format_args!("## Training\n"));
        if let (Some(epoch), Some(steps)) = (source.epoch, source.steps) {
            let hours =
                self.hours.map_or(String::new(), |hours| format!(" The whole run took {hours:.2} hours."));
            line(out, format_args!("{epoch} epochs, {steps} steps.{hours}\n"));
        }
        line(out, format_args!("SHA-256 of the checkpoint: `{}`.\n", source.sha256));
        if !source.recipe.is_empty() {
            line(out, format_args!("| key | value |\n|---|---|"));
            for (key, value) in &source.recipe {
                line(out, format_args!("| {key} | {} |", value.replace('|', "\\|")));
            }
            out.push('\n');
        }
        if !self.history.is_empty() {
            line(out, format_args!("```text"));
            for epoch in self.history {
                line(out, format_args!("{}", epoch.fields()));
            }
            line(out, format_args!("```\n"));
        }
    }

    fn unknown(&self, out: &mut String) {
        line(out, format_args!("## What this card does not know\n"));
        let mut items = vec![];
        if self.dataset.is_none() {
            items.push("The name of the training data: a checkpoint records counts and a digest of it, not where it came from.");
        }
        if self.history.is_empty() {
            items.push("How the weights were trained, and their accuracy.");
        }
        match self.is_logged {
            Some(true) => {}
            Some(false) => items.push(
                "Whether the figures stand in the run's log: logs.md beside the checkpoint has another last line for its epoch.",
            ),
            None => items.push("Whether the figures stand in the run's log: there was no logs.md beside the checkpoint."),
        }
        if self.verified.is_none() {
            items.push("How the files of this repository agree with the checkpoint: none was written together with the card.");
        }
        items.push("Accuracy on other pictures than the validation data; robustness, bias and calibration were not measured.");
        items.push(
            "Rights in the training images, which have their own terms beside the licence of the weights.",
        );
        for item in items {
            line(out, format_args!("- {item}"));
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    writeln!(out, "{text}").expect("a String takes everything");
}

/// A string as YAML and JSON both read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

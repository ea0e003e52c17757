//! The pictures that exports are shown, and how each did.

use super::{ExportArgs, Row};
use crate::error::Result;
use crate::export::verify::{Pictures, Promise, Reference, Runner, Temporary};
use crate::terminal::message;
use crate::train::model_file::Model;

pub struct Tested<'a> {
    model: &'a Model,
    threads: usize,
    pub pictures: Pictures,
    reference: Option<Reference>,
    /// The checkpoint's own first.
    pub rows: Vec<Row>,
    _drawn: Option<Temporary>,
}

impl<'a> Tested<'a> {
    /// Finds the pictures; nothing runs before there is something to test.
    pub fn on(args: &ExportArgs, model: &'a Model) -> Result<Self> {
        let limit = args.verify_images as usize;
        let (pictures, drawn) = match &args.verify {
            Some(path) => (Pictures::open(path, model, limit)?, None),
            None => Pictures::of_run(&args.checkpoint, model, limit)?,
        };
        if let Some(reason) = &pictures.unlabelled {
            message(format!("accuracy is not known on {}: {reason}", pictures.name));
            if args.int8 {
                message(
                    "warning: whether 8 bits cost more than --max-loss cannot be told; give --verify labelled pictures",
                );
            }
        }
        let threads = args.threads.threads;
        Ok(Self { model, threads, pictures, reference: None, rows: vec![], _drawn: drawn })
    }

    /// Runs a written file; fails where it breaks its promise.
    pub fn test(&mut self, format: &str, runner: &mut Runner, promise: Promise) -> Result<()> {
        let reference = match self.reference.take() {
            Some(reference) => reference,
            None => self.run_checkpoint()?,
        };
        let reference = self.reference.insert(reference);
        let row = reference.check(format, runner, &self.pictures)?;
        promise.hold(&row, &self.rows[0])?;
        self.rows.push(row);
        Ok(())
    }

    fn run_checkpoint(&mut self) -> Result<Reference> {
        let reference = Reference::of(self.model, &self.pictures, self.threads)?;
        for bad in &reference.bad {
            message(format!("warning: left out: {bad}"));
        }
        message(format!("verifying on {} images of {}", reference.images(), self.pictures.name));
        self.rows.push(reference.row());
        Ok(reference)
    }

    pub fn show(&self) {
        message(Row::HEADING);
        self.rows.iter().for_each(message);
    }
}

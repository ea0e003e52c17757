//! `formula` makes the inputs, `record` reads the recordings, `report` collects and judges errors; the others are tests.

mod differences;
mod exact;
mod formula;
mod images;
mod invariance;
mod networks;
mod ops;
mod recipe;
mod record;
mod reference;
mod report;
mod schedules;
mod sgd;

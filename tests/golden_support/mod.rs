//! `formula` makes the inputs, `record` reads the recordings, `report` collects and judges errors; the others are tests.

mod augment;
mod configs;
mod differences;
mod exact;
mod formula;
mod freeze;
mod images;
mod invariance;
mod mixing;
mod networks;
mod ops;
mod recipe;
mod record;
mod reference;
mod report;
mod schedules;
mod sgd;

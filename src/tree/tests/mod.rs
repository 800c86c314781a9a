//! Tests of the tree layer: examples of each format, the limits, and properties of random trees.

mod format;
mod image;
mod listing;
mod model;
mod nar;
mod property;

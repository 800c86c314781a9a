//! The modules of the store that are here: see the crate.

#[path = "../../src/store/inflight.rs"]
mod inflight;
#[path = "../../src/store/lanes.rs"]
pub mod lanes;
#[path = "../../src/store/single_flight.rs"]
pub mod single_flight;

pub use lanes::Lane;

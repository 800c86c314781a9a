//! The modules of the store that are here: see the crate.

#[path = "../../src/store/inflight.rs"]
mod inflight;
#[path = "../../src/store/lanes.rs"]
pub mod lanes;
#[path = "../../src/store/single_flight.rs"]
pub mod single_flight;
#[path = "../../src/store/window.rs"]
mod window;

pub use lanes::Lane;

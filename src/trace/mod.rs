//! What happened when: recorded where somebody asked to know it (`narfs trace`), and nowhere else.
//!
//! ```text
//! record.rs   upcalls and requests with their times, ranges that were touched and that arrived
//! flight.rs   one request on its way, from where it is sent to where its last byte is taken
//! ranges.rs   sets of byte ranges
//! ```
//!
//! Knows nobody: whoever has something to tell calls it, in one line. While nothing is recorded
//! such a call is one load of an atomic; nothing is copied, allocated or locked. While something is,
//! memory is bounded: beyond [`MOST_UPCALLS`] and [`MOST_REQUESTS`] events are only counted, and
//! ranges are merged.
//!
//! Lock: the record's is a leaf, held for a push.

mod flight;
mod ranges;
mod record;

pub use self::{
    flight::{Behalf, Flight, behalf, carry_on, on_behalf},
    ranges::Ranges,
    record::{
        Counted, MOST_REQUESTS, MOST_UPCALLS, Outcome, Read, Recorded, Recorder, Request, Upcall,
        begin, recorder,
    },
};

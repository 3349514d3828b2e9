//! BYTES. Messages to slices and back: no state, no IO.

pub mod originate;

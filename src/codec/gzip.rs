//! gzip members.

use flate2::bufread::GzDecoder;

use super::{
    input::Input,
    pull::{Pull, Pulled},
};
use crate::nix::Compression;

impl<'a> Pull<'a> for GzDecoder<Input<'a>> {
    const FORMAT: Compression = Compression::Gzip;
    const HIDES_TRUNCATION: bool = false;

    fn open(input: Input<'a>) -> Self {
        Self::new(input)
    }

    fn input(&mut self) -> &mut Input<'a> {
        self.get_mut()
    }

    fn close(self) -> Input<'a> {
        self.into_inner()
    }
}

/// Decodes one member after the other.
pub(super) type Gzip<'a> = Pulled<'a, GzDecoder<Input<'a>>>;

//! An image's bytes: mapped from its file, or owned if it is small.

use std::{
    fs::File,
    io::{self, Read},
    ops::Deref,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Images that are mapped at a time, in this process. Linux gives a process 65,530 maps
/// (`vm.max_map_count`), and without one left it has no memory either: threads and large
/// allocations need them. Half of them are for trees; those of the store paths beyond are read.
const MOST_MAPS: usize = 32_768;

/// Images up to this are read, in bytes. A map takes whole pages, one of the maps that there are, and with its
/// page faults twice the time of a read.
const SMALL: usize = 16 << 10;

static MAPS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that do not change.
pub(super) enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mapped),
}

impl Bytes {
    /// Maps a whole file, or reads it if it is small or where many are mapped already.
    pub fn map(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        // One byte more than is kept so: a file that fills it is larger. All of the others come with one system call.
        let mut small = [0; SMALL + 1];
        let read = file.read(&mut small)?;
        if read <= SMALL {
            return Ok(Self::Owned(small[..read].to_vec()));
        }
        match Mapped::of(&file, MOST_MAPS)? {
            Some(mapped) => Ok(Self::Mapped(mapped)),
            None => std::fs::read(path).map(Self::Owned),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(mapped) => &mapped.map,
        }
    }
}

/// A map, and its place among [`MOST_MAPS`].
pub(super) struct Mapped {
    map: memmap2::Mmap,
    _place: Place,
}

impl Mapped {
    /// Maps a whole file, unless `most` are mapped.
    #[allow(unsafe_code)]
    fn of(file: &File, most: usize) -> io::Result<Option<Self>> {
        let Some(place) = Place::take(&MAPS, most) else {
            return Ok(None);
        };
        // SAFETY: a map is undefined behaviour or a SIGBUS if the file changes or shrinks under it.
        // Index files lie in the state directory, which only its owner can enter (0700) and only
        // one process holds (its lock); there they appear by rename when complete, are never
        // written again, and are removed by name, which leaves maps as they are.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Some(Self { map, _place: place }))
    }
}

/// One of a number of places; given back when dropped.
struct Place(&'static AtomicUsize);

impl Place {
    fn take(taken: &'static AtomicUsize, most: usize) -> Option<Self> {
        if taken.fetch_add(1, Relaxed) < most {
            return Some(Self(taken));
        }
        taken.fetch_sub(1, Relaxed);
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        let both = [Place::take(&TAKEN, 2), Place::take(&TAKEN, 2)];
        assert!(both.iter().all(Option::is_some));
        assert!(Place::take(&TAKEN, 2).is_none());
        drop(both);
        assert_eq!(TAKEN.load(Relaxed), 0);
        assert!(Place::take(&TAKEN, 2).is_some());
    }

    #[test]
    fn what_is_small_or_not_mapped_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (size, is_mapped) in [(0, false), (5, false), (SMALL, false), (SMALL + 1, true)] {
            let image: Vec<u8> = (0..size).map(|n| n as u8).collect();
            std::fs::write(&path, &image).unwrap();
            let bytes = Bytes::map(&path).unwrap();
            assert_eq!(matches!(bytes, Bytes::Mapped(_)), is_mapped, "{size}");
            assert_eq!(&*bytes, image);
        }
        let file = File::open(&path).unwrap();
        assert!(Mapped::of(&file, 0).unwrap().is_none());
        assert!(Bytes::map(&dir.path().join("absent")).is_err());
    }
}

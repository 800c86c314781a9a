//! What an ELF image says it will load. Pure: bytes in, names out.

use std::ops::Range;

use object::{
    Endianness,
    elf::{
        DT_FINI, DT_FINI_ARRAY, DT_FINI_ARRAYSZ, DT_INIT, DT_INIT_ARRAY, DT_INIT_ARRAYSZ,
        DT_NEEDED, DT_RELA, DT_RELASZ, DT_RPATH, DT_RUNPATH, DT_STRTAB, ELFCLASS32, ELFCLASS64,
        FileClass, FileHeader32, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD,
    },
    pod,
    read::elf::{Dyn, FileHeader, ProgramHeader, Rela},
};

/// How every image begins.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// Position of the class (32 or 64 bits) in the image.
const CLASS: usize = 4;
/// Entries of a dynamic section that are looked at; real ones have a few dozen.
const MAX_DYNAMIC: usize = 4096;
/// Segments that are looked at; real images have a dozen. Each address is looked for in all of them.
const MAX_SEGMENTS: usize = 256;
/// Libraries, and directories, that are taken of one image; large programs have some hundred. Each
/// is looked up in the store.
const MAX_NAMES: usize = 1024;
/// Longest name that is taken, in bytes: no path is longer (`PATH_MAX`).
const MAX_NAME: usize = 4096;
/// Longest list of directories that is looked at, in bytes.
const MAX_SEARCH: usize = 256 << 10;

/// Code at the beginning of the executed part that every load runs (`.init`, and what the
/// compiler's start files put in front of `.text`), in bytes, with what stands between them.
const INITIAL_CODE: u64 = 16 << 10;

/// What is taken of a function that is run at the start or the end, in bytes: it is a few
/// instructions, or it begins like this.
const FUNCTION: u64 = 4 << 10;
/// Functions of one image that are looked at. Large programs in C++ have thousands, next to each other.
const MAX_FUNCTIONS: usize = 4096;

/// The names in an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The dynamic loader.
    pub interpreter: Option<String>,
    /// Libraries, in the order they are loaded in.
    pub libraries: Vec<String>,
    /// Directories they are searched in; may contain `$ORIGIN`.
    pub search: Vec<String>,
}

/// What `image` needs; `None` if it is no image that can be read.
pub(super) fn needs(image: &[u8]) -> Option<Needs> {
    match FileClass(*image.get(CLASS)?) {
        ELFCLASS64 => read::<FileHeader64<Endianness>>(image),
        ELFCLASS32 => read::<FileHeader32<Endianness>>(image),
        _ => None,
    }
}

/// Which parts of an image its loader reads, by the image's first bytes: what it finds names and
/// relocations in, what it writes to, and the code that it runs first. In order, none of them twice:
/// together they are no longer than the image. `None` if that cannot be said: then it may be any part.
///
/// Linkers lay out what is read only, what is executed and what is written apart from each other
/// (`-z separate-code`, the default on Linux since binutils 2.31); the first of these has the
/// tables of symbols and relocations.
pub(super) fn loaded(beginning: &[u8]) -> Option<Vec<Range<u64>>> {
    match FileClass(*beginning.get(CLASS)?) {
        ELFCLASS64 => parts::<FileHeader64<Endianness>>(beginning),
        ELFCLASS32 => parts::<FileHeader32<Endianness>>(beginning),
        _ => None,
    }
}

fn parts<E: FileHeader<Endian = Endianness>>(beginning: &[u8]) -> Option<Vec<Range<u64>>> {
    let header = E::parse(beginning).ok()?;
    let endian = header.endian().ok()?;
    let mut parts = Vec::new();
    for segment in first(header.program_headers(endian, beginning).ok()?) {
        let (start, size): (u64, u64) = (
            segment.p_offset(endian).into(),
            segment.p_filesz(endian).into(),
        );
        let flags = segment.p_flags(endian);
        let wanted = match segment.p_type(endian) {
            // The tables are among the code: no telling where.
            PT_LOAD if start == 0 && flags.contains(PF_X) => return None,
            PT_LOAD if start == 0 || flags.contains(PF_W) => size,
            PT_LOAD if flags.contains(PF_X) => size.min(INITIAL_CODE),
            PT_DYNAMIC | PT_INTERP => size,
            _ => 0,
        };
        if wanted > 0 {
            parts.push(start..start.checked_add(wanted)?);
        }
    }
    Some(merged(parts))
}

/// The same bytes in order, each once.
fn merged(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_unstable_by_key(|part| part.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => all.push(part),
        }
    }
    all
}

/// The segments that are looked at.
fn first<P>(segments: &[P]) -> &[P] {
    &segments[..segments.len().min(MAX_SEGMENTS)]
}

/// Which code of an image is run by whoever loads it, and when it ends: `.init`, `.fini` and the
/// functions in their arrays. `image` needs only the parts that are [`loaded`].
///
/// The last of them lie at the very end of the code, and without them a program that ends waits
/// once for each library that it had.
pub(super) fn run_by_loader(image: &[u8]) -> Vec<Range<u64>> {
    let addresses = match image.get(CLASS).copied().map(FileClass) {
        Some(ELFCLASS64) => functions::<FileHeader64<Endianness>>(image),
        Some(ELFCLASS32) => functions::<FileHeader32<Endianness>>(image),
        _ => None,
    };
    addresses.unwrap_or_default()
}

fn functions<E: FileHeader<Endian = Endianness>>(image: &[u8]) -> Option<Vec<Range<u64>>> {
    let header = E::parse(image).ok()?;
    let endian = header.endian().ok()?;
    let segments = first(header.program_headers(endian, image).ok()?);
    let entries = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, image).ok()?)?;
    let entries = &entries[..entries.len().min(MAX_DYNAMIC)];
    let value = |tag| -> Option<u64> {
        let entry = entries.iter().find(|entry| entry.d_tag(endian) == tag)?;
        Some(entry.d_val(endian).into())
    };
    let array = |at, size| Some(value(at)?..value(at)?.checked_add(value(size)?)?);
    let arrays: Vec<Range<u64>> = [
        array(DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
        array(DT_FINI_ARRAY, DT_FINI_ARRAYSZ),
    ]
    .into_iter()
    .flatten()
    .collect();
    let bytes_at = |addresses: &Range<u64>| {
        let start = usize::try_from(offset_of(segments, endian, addresses.start)?).ok()?;
        let len = usize::try_from(addresses.end - addresses.start).ok()?;
        image.get(start..start.checked_add(len)?)
    };
    let mut found: Vec<u64> = [DT_INIT, DT_FINI].into_iter().filter_map(value).collect();
    // An image that can lie anywhere has their addresses in relocations, another one in the arrays.
    if let (Some(start), Some(size)) = (value(DT_RELA), value(DT_RELASZ))
        && let Some(table) = bytes_at(&(start..start.checked_add(size)?))
    {
        let count = table.len() / size_of::<E::Rela>();
        let (relocations, _) = pod::slice_from_bytes::<E::Rela>(table, count).ok()?;
        let of_arrays = relocations.iter().filter(|relocation| {
            let place = relocation.r_offset(endian).into();
            relocation.r_sym(endian, false) == 0 && arrays.iter().any(|a| a.contains(&place))
        });
        found.extend(
            of_arrays
                .take(MAX_FUNCTIONS)
                .map(|relocation| Into::<i64>::into(relocation.r_addend(endian)) as u64),
        );
    }
    let word = if header.is_type_64() { 8 } else { 4 };
    for pointer in arrays
        .iter()
        .filter_map(bytes_at)
        .flat_map(|array| array.chunks_exact(word))
        .take(MAX_FUNCTIONS)
    {
        let mut padded = [0; 8];
        padded[..word].copy_from_slice(pointer);
        found.push(match endian {
            Endianness::Little => u64::from_le_bytes(padded),
            Endianness::Big => u64::from_be_bytes(padded) >> (64 - 8 * word as u32),
        });
    }
    let code = found
        .into_iter()
        .filter(|address| *address != 0)
        .filter_map(|address| offset_of(segments, endian, address))
        .map(|start| start..start.saturating_add(FUNCTION));
    Some(merged(code.collect()))
}

fn read<E: FileHeader<Endian = Endianness>>(image: &[u8]) -> Option<Needs> {
    let header = E::parse(image).ok()?;
    let endian = header.endian().ok()?;
    let segments = first(header.program_headers(endian, image).ok()?);
    let mut needs = Needs::default();
    if let Some(name) = segments
        .iter()
        .find_map(|segment| segment.interpreter(endian, image).ok()?)
    {
        needs.interpreter = text(name);
    }
    let Some(entries) = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, image).ok()?)
    else {
        return Some(needs);
    };
    let entries = &entries[..entries.len().min(MAX_DYNAMIC)];
    let value = |entry: &E::Dyn| -> u64 { entry.d_val(endian).into() };
    let strings = entries
        .iter()
        .find(|e| e.d_tag(endian) == DT_STRTAB)
        .and_then(|e| offset_of(segments, endian, value(e)));
    let Some(strings) = strings else {
        return Some(needs);
    };
    // Not longer than `most`: entries without number may point into one text without an end.
    let string = |entry: &E::Dyn, most: usize| {
        let start = usize::try_from(strings.checked_add(value(entry))?).ok()?;
        let rest = image.get(start..)?;
        let rest = &rest[..rest.len().min(most + 1)];
        let end = rest.iter().position(|b| *b == 0);
        let whole = end.or((rest.len() <= most).then_some(rest.len()))?;
        std::str::from_utf8(&rest[..whole]).ok()
    };
    for entry in entries {
        match entry.d_tag(endian) {
            DT_NEEDED if needs.libraries.len() < MAX_NAMES => {
                needs
                    .libraries
                    .extend(string(entry, MAX_NAME).map(str::to_owned));
            }
            DT_RPATH | DT_RUNPATH if needs.search.len() < MAX_NAMES => {
                let room = MAX_NAMES - needs.search.len();
                let directories = string(entry, MAX_SEARCH).unwrap_or_default().split(':');
                let directories = directories.filter(|d| !d.is_empty() && d.len() <= MAX_NAME);
                needs
                    .search
                    .extend(directories.take(room).map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(needs)
}

/// All that is read of an image: the names in it, the parts that are loaded, and the code that is
/// run by the loader. For the fuzz target `elf`, which sees only what is public.
pub fn all_of_image(image: &[u8]) -> (Vec<String>, [Vec<Range<u64>>; 2]) {
    let Needs {
        interpreter,
        libraries,
        search,
    } = needs(image).unwrap_or_default();
    let names = interpreter.into_iter().chain(libraries).chain(search);
    let parts = [loaded(image).unwrap_or_default(), run_by_loader(image)];
    (names.collect(), parts)
}

/// Where in the file an address lies.
fn offset_of<P: ProgramHeader<Endian = Endianness>>(
    segments: &[P],
    endian: Endianness,
    address: u64,
) -> Option<u64> {
    segments
        .iter()
        .filter(|s| s.p_type(endian) == PT_LOAD)
        .find_map(|s| {
            let (start, size): (u64, u64) = (s.p_vaddr(endian).into(), s.p_filesz(endian).into());
            let within = address.checked_sub(start).filter(|within| *within < size)?;
            let offset: u64 = s.p_offset(endian).into();
            offset.checked_add(within)
        })
}

fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    (bytes.len() <= MAX_NAME)
        .then(|| String::from_utf8(bytes.to_vec()).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_image() {
        let image = std::fs::read("/proc/self/exe").unwrap();
        let needs = needs(&image).unwrap();
        assert!(
            needs.libraries.iter().any(|l| l.starts_with("libc.so")),
            "{needs:?}"
        );
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn what_is_loaded_has_the_names() {
        let image = std::fs::read("/proc/self/exe").unwrap();
        let parts = loaded(&image[..4096]).unwrap();
        let mut sparse = vec![0; image.len()];
        for part in parts {
            let part = part.start as usize..part.end as usize;
            sparse[part.clone()].copy_from_slice(&image[part]);
        }
        sparse[..4096].copy_from_slice(&image[..4096]);
        assert_eq!(needs(&sparse), needs(&image));
        let read = sparse.iter().filter(|b| **b != 0).count();
        assert!(read < image.len() / 2, "{read} of {}", image.len());
    }

    #[test]
    fn the_code_that_the_loader_runs_is_found_in_what_it_reads() {
        let image = std::fs::read("/proc/self/exe").unwrap();
        let mut sparse = vec![0; image.len()];
        for part in loaded(&image[..4096]).unwrap() {
            let part = part.start as usize..part.end as usize;
            sparse[part.clone()].copy_from_slice(&image[part]);
        }
        let parts = run_by_loader(&sparse);
        assert_eq!(parts, run_by_loader(&image));
        assert!(parts.len() >= 2, "{parts:?}");
        assert!(parts.iter().all(|part| part.start < image.len() as u64));
    }

    /// An image of 64 bits with these segments (kind, flags, offset, size) and, behind their headers,
    /// `rest`.
    fn image(segments: &[(u32, u32, u64, u64)], rest: &[u8]) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(32, 0);
        image.extend(64_u64.to_le_bytes());
        image.resize(54, 0);
        for half in [56_u16, segments.len() as u16, 0, 0, 0] {
            image.extend(half.to_le_bytes());
        }
        for (kind, flags, offset, size) in segments {
            image.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
            for number in [offset, offset, offset, size, size, &1] {
                image.extend(number.to_le_bytes());
            }
        }
        image.extend(rest);
        image
    }

    #[test]
    fn bytes_of_many_segments_are_fetched_once() {
        let writable = (1, 6, 4096, 64 << 20);
        let image = image(&vec![writable; 1000], b"");
        let once = 4096..4096 + (64 << 20);
        assert_eq!(loaded(&image).unwrap(), vec![once]);
    }

    #[test]
    fn names_are_bounded_however_often_they_are_repeated() {
        const SEGMENTS: usize = 1000;
        let names_of = |tag: u64, text: &[u8]| {
            let start = (64 + 56 * SEGMENTS) as u64;
            let mut dynamic = Vec::new();
            for (tag, value) in [(5, start + 65536)].into_iter().chain([(tag, 0); 4095]) {
                dynamic.extend([tag, value].map(u64::to_le_bytes).concat());
            }
            let rest = [&dynamic, text].concat();
            let mut segments = vec![(2, 6, start, 65536); SEGMENTS];
            segments[0] = (1, 6, 0, start + rest.len() as u64);
            all_of_image(&image(&segments, &rest)).0
        };
        assert_eq!(names_of(1, b"libc.so.6\0").len(), MAX_NAMES);
        assert_eq!(names_of(1, &[b'a'; 1 << 20]), [""; 0]);
        assert_eq!(names_of(29, &b"/a:".repeat(50_000)).len(), MAX_NAMES);
        let long = [vec![b'a'; MAX_NAME + 1], b":/a".to_vec()].concat();
        assert!(names_of(29, &long).iter().all(|name| name == "/a"));
    }

    #[test]
    fn damaged_images_are_refused_or_read_without_panic() {
        let image = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs(b""), None);
        assert_eq!(needs(b"\x7fELF\x07"), None);
        for cut in [5, 16, 63, 64, 100, 500, 5000] {
            let _ = needs(&image[..cut]);
            let _ = loaded(&image[..cut]);
            let _ = run_by_loader(&image[..cut]);
        }
        for at in 0..64 {
            let mut bad = image[..4096].to_vec();
            bad[at] ^= 0xff;
            let _ = needs(&bad);
            let _ = loaded(&bad);
            let _ = run_by_loader(&bad);
        }
    }
}

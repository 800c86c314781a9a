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
/// relocations in, what it writes to, and the code that it runs first. `None` if that cannot be said: then it may be any part.
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
    for segment in header.program_headers(endian, beginning).ok()? {
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
    Some(parts)
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
    let segments = header.program_headers(endian, image).ok()?;
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
    let mut code: Vec<u64> = found
        .into_iter()
        .filter(|address| *address != 0)
        .filter_map(|address| offset_of(segments, endian, address))
        .collect();
    code.sort_unstable();
    let mut parts: Vec<Range<u64>> = Vec::new();
    for start in code {
        let end = start.saturating_add(FUNCTION);
        match parts.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => parts.push(start..end),
        }
    }
    Some(parts)
}

fn read<E: FileHeader<Endian = Endianness>>(image: &[u8]) -> Option<Needs> {
    let header = E::parse(image).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, image).ok()?;
    let mut needs = Needs::default();
    for segment in segments {
        if let Ok(Some(interpreter)) = segment.interpreter(endian, image) {
            needs.interpreter = text(interpreter);
        }
        let Ok(Some(entries)) = segment.dynamic(endian, image) else {
            continue;
        };
        let entries = &entries[..entries.len().min(MAX_DYNAMIC)];
        let value = |entry: &E::Dyn| entry.d_val(endian).into();
        let strings = entries
            .iter()
            .find(|e| e.d_tag(endian) == DT_STRTAB)
            .map(value);
        let Some(strings) = strings.and_then(|address| offset_of(segments, endian, address)) else {
            continue;
        };
        let string = |entry: &E::Dyn| {
            let start = usize::try_from(strings.checked_add(value(entry))?).ok()?;
            text(image.get(start..)?.split(|b| *b == 0).next()?)
        };
        for entry in entries {
            match entry.d_tag(endian) {
                DT_NEEDED => needs.libraries.extend(string(entry)),
                DT_RPATH | DT_RUNPATH => {
                    let directories = string(entry).unwrap_or_default();
                    needs.search.extend(
                        directories
                            .split(':')
                            .filter(|d| !d.is_empty())
                            .map(str::to_owned),
                    );
                }
                _ => {}
            }
        }
    }
    Some(needs)
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
    String::from_utf8(bytes.to_vec()).ok()
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

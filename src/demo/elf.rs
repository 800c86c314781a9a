//! As much of an ELF file as is needed to pack a program: its loader, and where its loaded part ends.
//!
//! Source of the format: "Tool Interface Standard, Executable and Linking Format", and its 64-bit
//! supplement (<elf.h>). Only this machine's own programs are read, hence its byte order.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

/// `\x7fELF`, and 64 bits.
const MAGIC: &[u8] = b"\x7fELF\x02";
/// A program header's type: bytes that are mapped.
const PT_LOAD: u32 = 1;
/// A program header's type: the name of the dynamic loader.
const PT_INTERP: u32 = 3;

/// What a program file says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The dynamic loader; none for a static program.
    pub loader: Option<PathBuf>,
    /// Bytes at the front that are ever mapped; symbols for debuggers and section names follow.
    pub loaded: usize,
}

/// Reads the headers; `None` if this is no 64-bit ELF file.
pub fn parse(bytes: &[u8]) -> Option<Program> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let table = usize::try_from(u64_at(bytes, 32)?).ok()?;
    let (size, count) = (
        usize::from(u16_at(bytes, 54)?),
        usize::from(u16_at(bytes, 56)?),
    );
    let mut program = Program {
        loader: None,
        loaded: table.checked_add(size * count)?,
    };
    for n in 0..count {
        let header = bytes.get(table + n * size..)?;
        let offset = usize::try_from(u64_at(header, 8)?).ok()?;
        let end = offset.checked_add(usize::try_from(u64_at(header, 32)?).ok()?)?;
        match u32_at(header, 0)? {
            PT_LOAD => program.loaded = program.loaded.max(end),
            PT_INTERP => {
                let name = bytes.get(offset..end)?.split(|b| *b == 0).next()?;
                program.loader = Some(OsStr::from_bytes(name).into());
            }
            _ => {}
        }
    }
    (program.loaded <= bytes.len()).then_some(program)
}

/// Takes off what is never mapped, as packages are stripped.
pub fn strip(bytes: &mut Vec<u8>, program: &Program) {
    bytes.truncate(program.loaded);
    // There is no table of sections any more: its offset, its length, and where its names were.
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_program_that_runs() {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        let program = parse(&bytes).unwrap();
        assert!(program.loaded > 4096);
        if let Some(loader) = &program.loader {
            assert!(loader.is_absolute() && loader.exists(), "{loader:?}");
        }
        strip(&mut bytes, &program);
        assert_eq!(bytes.len(), program.loaded);
        assert_eq!(parse(&bytes), Some(program));
    }

    #[test]
    fn nothing_else_is_a_program() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(MAGIC), None);
        let mut wild = MAGIC.to_vec();
        wild.resize(64, 0xff);
        assert_eq!(parse(&wild), None);
    }
}

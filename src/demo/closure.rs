//! What the demonstration packs: this program, the libraries it runs with, and data.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::elf;
use crate::nix::{StorePath, StorePathHash};

/// Data that the program reads, in bytes.
const READ: usize = 256 << 10;
/// Data beside it that nobody reads, in bytes; together with [`UNTOUCHED`] about what a small
/// program's closure has for every byte that it needs.
const UNREAD: usize = 12 << 20;
/// Data in a store path that nobody opens, in bytes.
const UNTOUCHED: usize = 16 << 20;

/// A file in a package, by its path there.
enum File {
    Bytes {
        at: PathBuf,
        bytes: Vec<u8>,
        executable: bool,
    },
    Link {
        at: PathBuf,
        target: PathBuf,
    },
}

/// A store path to be.
pub struct Package {
    /// Its name.
    pub path: StorePath,
    /// The store paths that it needs.
    pub references: Vec<StorePath>,
    files: Vec<File>,
}

/// All that is packed, and how to run it.
pub struct Closure {
    /// Dependencies first.
    pub packages: Vec<Package>,
    /// The dynamic loader, relative to the store; a static program has none.
    pub loader: Option<PathBuf>,
    /// Directories of libraries, relative to the store.
    pub libraries: Vec<PathBuf>,
    /// The program, relative to the store.
    pub program: PathBuf,
    /// The store path of the program.
    pub root: StorePath,
    /// The file that it reads, relative to the store.
    pub data: PathBuf,
    /// The SHA-256 of that file, in hexadecimal digits.
    pub data_digest: String,
}

impl Package {
    /// A package by this name. Digests of real ones say what they are made from; of these, what
    /// they are called.
    fn new(name: &str, references: Vec<StorePath>, files: Vec<File>) -> Self {
        let digest = Sha256::digest(format!("narfs-demo:{}:{name}", env!("CARGO_PKG_VERSION")));
        let mut hash = [0; 20];
        hash.copy_from_slice(&digest[..20]);
        let allowed = |c: char| {
            if c.is_ascii_alphanumeric() || "+-._?=".contains(c) {
                c
            } else {
                '-'
            }
        };
        let name: String = name.chars().map(allowed).collect();
        let path = StorePath::parse(&format!("{}-{name}", StorePathHash::from_bytes(hash)));
        // Twenty bytes and the characters above are what store paths are made of.
        let path = path.unwrap_or_else(|e| unreachable!("{e}"));
        Self {
            path,
            references,
            files,
        }
    }

    /// Writes its files below `root`, which is made.
    pub fn write(&self, root: &Path) -> io::Result<()> {
        fs::create_dir(root)?;
        for file in &self.files {
            let (File::Bytes { at, .. } | File::Link { at, .. }) = file;
            let place = root.join(at);
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            match file {
                File::Bytes {
                    bytes, executable, ..
                } => {
                    fs::write(&place, bytes)?;
                    if *executable {
                        fs::set_permissions(
                            &place,
                            std::os::unix::fs::PermissionsExt::from_mode(0o755),
                        )?;
                    }
                }
                File::Link { target, .. } => symlink(target, &place)?,
            }
        }
        Ok(())
    }
}

/// Collects it from this machine.
///
/// # Errors
/// When this program, or a library of it, can't be read.
pub fn collect() -> io::Result<Closure> {
    let mut bytes = fs::read("/proc/self/exe")?;
    let program = elf::parse(&bytes);
    if let Some(program) = &program {
        elf::strip(&mut bytes, program);
    }
    let loader = program
        .and_then(|p| p.loader)
        .map(|l| l.canonicalize().map(|real| (l, real)))
        .transpose()?;
    let mut packages = Vec::new();
    let (mut loader_inside, mut libraries) = (None, Vec::new());
    for library in mapped_files(
        &fs::read_to_string("/proc/self/maps")?,
        &fs::read_link("/proc/self/exe")?,
    ) {
        let mut names = aliases(&library)?;
        let own_name = PathBuf::from(library.file_name().unwrap_or_default());
        if let Some((asked_for, _)) = loader.as_ref().filter(|(_, real)| *real == library) {
            names.extend(asked_for.file_name().map(PathBuf::from));
        }
        names.retain(|name| *name != own_name);
        names.sort();
        names.dedup();
        let inside = Path::new("lib").join(&own_name);
        let mut files = vec![File::Bytes {
            at: inside.clone(),
            bytes: fs::read(&library)?,
            executable: true,
        }];
        files.extend(names.iter().map(|name| File::Link {
            at: Path::new("lib").join(name),
            target: own_name.clone(),
        }));
        let package = Package::new(&own_name.to_string_lossy(), vec![], files);
        let base = PathBuf::from(package.path.to_string());
        libraries.push(base.join("lib"));
        if loader.as_ref().is_some_and(|(_, real)| *real == library) {
            loader_inside = Some(base.join(inside));
        }
        packages.push(package);
    }
    let data = noise(1, READ);
    let data_digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&data));
    let file = |at: &str, bytes, executable| File::Bytes {
        at: at.into(),
        bytes,
        executable,
    };
    packages.push(Package::new(
        "demo-data",
        vec![],
        vec![
            file("share/a-read", data, false),
            file("share/b-unread", noise(2, UNREAD), false),
        ],
    ));
    let data = Path::new(&packages[packages.len() - 1].path.to_string()).join("share/a-read");
    packages.push(Package::new(
        "demo-untouched",
        vec![],
        vec![file("share/untouched", noise(3, UNTOUCHED), false)],
    ));
    let references = packages.iter().map(|p| p.path.clone()).collect();
    let name = concat!("narfs-", env!("CARGO_PKG_VERSION"));
    let main = Package::new(name, references, vec![file("bin/narfs", bytes, true)]);
    let root = main.path.clone();
    packages.push(main);
    Ok(Closure {
        packages,
        loader: loader_inside,
        libraries,
        program: Path::new(&root.to_string()).join("bin/narfs"),
        root,
        data,
        data_digest,
    })
}

/// The libraries in a `/proc/self/maps`: files of which code is mapped, but for the program.
fn mapped_files(maps: &str, program: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for line in maps.lines() {
        // address, permissions, offset, device, inode, path
        let mut fields = line.split_ascii_whitespace();
        let executable = fields
            .nth(1)
            .is_some_and(|permissions| permissions.contains('x'));
        let Some(at) = line.find('/').filter(|_| executable) else {
            continue;
        };
        let path = PathBuf::from(&line[at..]);
        if path != program && !files.contains(&path) {
            files.push(path);
        }
    }
    files
}

/// Links beside a library that lead to it: programs ask for `libc.so.6`, whatever its file is called.
fn aliases(library: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(directory) = library.parent() else {
        return Ok(vec![]);
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink()
            && entry
                .path()
                .canonicalize()
                .is_ok_and(|real| real == library)
        {
            names.push(entry.file_name().into());
        }
    }
    Ok(names)
}

/// Bytes that can't be compressed, the same ones for a seed on every machine (xorshift64).
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.take(size / 8).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_libraries_in_a_map() {
        let maps = "\
55d0-55d1 r--p 00000000 fe:00 1 /usr/bin/tool\n\
55d1-55d2 r-xp 00001000 fe:00 1 /usr/bin/tool\n\
7f00-7f01 r--p 00000000 fe:00 2 /usr/lib/locale/C.utf8/LC_CTYPE\n\
7f10-7f11 r-xp 00000000 fe:00 3 /usr/lib/with space/libc.so.6\n\
7f11-7f12 r-xp 00001000 fe:00 3 /usr/lib/with space/libc.so.6\n\
7f20-7f21 rw-p 00000000 00:00 0 \n\
7f30-7f31 r-xp 00000000 00:00 0 [vdso]\n";
        let want = [PathBuf::from("/usr/lib/with space/libc.so.6")];
        assert_eq!(mapped_files(maps, Path::new("/usr/bin/tool")), want);
    }

    #[test]
    fn noise_is_noise() {
        let bytes = noise(1, 1 << 16);
        assert_eq!((bytes.len(), bytes.clone()), (1 << 16, noise(1, 1 << 16)));
        assert!(zstd::encode_all(&bytes[..], 3).unwrap().len() > bytes.len() * 99 / 100);
    }
}

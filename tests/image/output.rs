//! Where the archive goes.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    process::Stdio,
};

use rustix::{fs::Mode, process::Signal};

use crate::{
    archive::{Base, Image},
    containerd::architecture,
    run::{Packages, Place, Running, at, serve},
    support::{
        cache::{Packing, key, noise},
        scripted::{Gate, Reply},
    },
};

#[test]
fn a_file_is_replaced_when_all_of_it_is_there() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let dir = tempfile::tempdir().unwrap();
    let at_name = |name: &str| dir.path().join(name);
    let app = at(&packages.app, "");
    let build = |name: &str| {
        let file = at_name(name);
        let mut command =
            place.command(&["image", "build", "--name", "x", "--closure", &app, "-o"]);
        command.arg(file);
        command.output().unwrap()
    };
    fs::write(at_name("old"), "old").unwrap();
    symlink("old", at_name("link")).unwrap();
    assert!(build("link").status.success());
    assert!(fs::symlink_metadata(at_name("link")).unwrap().is_symlink());
    let image = Image::read(&at_name("old"));
    assert!(build("new").status.success());
    assert_eq!(
        Image::read(&at_name("new")).named.digest(),
        image.named.digest()
    );
    let mode = fs::metadata(at_name("new")).unwrap().permissions().mode() & 0o777;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::umask(umask);
    assert_eq!(
        mode,
        0o666 & !umask.as_raw_mode(),
        "as any file that is made"
    );
    fs::create_dir(at_name("dir")).unwrap();
    for (name, why) in [
        ("dir", "is a directory"),
        ("none/x", "there is no directory"),
    ] {
        let refused = build(name);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["dir", "link", "new", "old"]);
}

#[test]
fn a_pipe_gets_the_bytes_and_stays_a_pipe() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let app = at(&packages.app, "");
    let shown = fifo.to_str().unwrap();
    let arguments = [
        "image",
        "build",
        "--name",
        "x",
        "--closure",
        &app,
        "--output",
    ];
    let command = place
        .command(&[&arguments[..], &[shown]].concat())
        .spawn()
        .unwrap();
    let bytes = fs::read(&fifo).unwrap();
    Running(command).ended().with(0);
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let piped = place.run(&[&arguments[..], &["-"]].concat()).with(0);
    assert!(piped.out == bytes);
    Image::of(&bytes);
    let said = place
        .run(&[&arguments[..], &["-", "--json"]].concat())
        .with(2)
        .err;
    assert!(said.contains("standard output"), "{said}");
    // Who imports it has gone.
    let mut child = place
        .command(&[&arguments[..], &["-"]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said = Running(child).ended().with(1).err;
    assert!(said.contains("cannot be written"), "{said}");
    if fs::metadata("/dev/full").is_ok() {
        let said = place
            .run(&[&arguments[..], &["/dev/full"]].concat())
            .with(1)
            .err;
        assert!(
            said.contains("No space left") || said.contains("no space"),
            "{said}"
        );
    }
}

#[test]
fn an_interrupted_build_leaves_nothing_behind() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    let app = at(&packages.app, "");
    let arguments = [
        "image",
        "build",
        "--name",
        "x",
        "--closure",
        &app,
        "-o",
        file.to_str().unwrap(),
    ];
    for signal in [Signal::INT, Signal::TERM] {
        let gate = Gate::new();
        server.on(
            &packages.data.listing_url(),
            Reply::as_it_is().behind(&gate),
        );
        let running = Running(place.command(&arguments).spawn().unwrap());
        gate.wait_for(1);
        running.signal(signal);
        let said = running.ended().with(130).err;
        assert!(said.contains("interrupted"), "{said}");
        place.assert_clean();
    }
    server.forget(&packages.data.listing_url());
    // In the middle of writing: the pipe is full, and nobody reads on.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4 << 20);
    tar.append_data(&mut header, "noise", &noise(7, 4 << 20)[..])
        .unwrap();
    let layer = tar.into_inner().unwrap();
    let base = Base::new().image(architecture(), serde_json::json!({}), &[layer], false);
    let from = dir.path().join("base.tar");
    fs::write(&from, base.bytes()).unwrap();
    let from = ["--from", from.to_str().unwrap()];
    let mut child = place
        .command(&[
            "image",
            "build",
            "--name",
            "x",
            "--closure",
            &app,
            "-o",
            "-",
        ])
        .args(from)
        .spawn()
        .unwrap();
    let mut first = [0; 1 << 16];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    let running = Running(child);
    running.signal(Signal::INT);
    running.ended().with(130);
    place.assert_clean();
    place.run(&[&arguments[..], &from].concat()).with(0);
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["base.tar", "image.tar"]);
}

//! The state directory: one process, one version, one owner.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use super::*;
use crate::content::ContentError;

fn refusal(dir: &Path) -> (ContentError, String) {
    refusal_with(dir, PATIENT)
}

fn refusal_with(dir: &Path, options: OpenOptions) -> (ContentError, String) {
    let error = ContentStore::open(dir, options)
        .err()
        .expect("it was opened");
    let text = error.to_string();
    assert!(text.contains(&dir.display().to_string()), "{text}");
    (error, text)
}

#[test]
fn it_is_made_private_and_says_what_it_is() {
    let dir = dir();
    let state = dir.path().join("a/b");
    drop(open(&state));
    assert_eq!(
        fs::metadata(&state).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(
        fs::read_to_string(state.join("version")).unwrap(),
        "narfs-state 1\n"
    );
    drop(open(&state));
}

#[test]
fn a_second_user_is_told_who_has_it() {
    let dir = dir();
    let store = open(dir.path());
    let at_once = OpenOptions::default();
    let (error, text) = refusal_with(dir.path(), at_once);
    let me = std::process::id();
    assert!(
        matches!(error, ContentError::InUse { pid: Some(pid), .. } if pid == me),
        "{text}"
    );
    assert!(text.contains(&me.to_string()));
    // Whoever still has a NAR of the store keeps the directory.
    let nar = full(&store, 1, 100);
    drop(store);
    let (error, _) = refusal_with(dir.path(), at_once);
    assert!(matches!(error, ContentError::InUse { .. }));
    assert!(matches!(
        nar.discard().and_then(|()| nar.write_at(&[1], 0)),
        Err(ContentError::Closed { .. })
    ));
    drop(nar);
    open(dir.path());
}

#[test]
fn who_waits_gets_it_when_it_is_free() {
    let dir = dir();
    let first = open(dir.path());
    std::thread::scope(|scope| {
        let wait = std::time::Duration::from_secs(600);
        let second =
            scope.spawn(move || ContentStore::open(dir.path(), OpenOptions { wait }).map(drop));
        drop(first);
        second.join().unwrap().unwrap();
    });
}

#[test]
fn a_newer_version_is_refused_with_both_numbers() {
    let dir = dir();
    drop(open(dir.path()));
    fs::write(dir.path().join("version"), "narfs-state 7\n").unwrap();
    let (error, text) = refusal(dir.path());
    assert!(matches!(
        error,
        ContentError::Newer {
            found: 7,
            known: 1,
            ..
        }
    ));
    assert!(
        text.contains("format 7") && text.contains("knows 1"),
        "{text}"
    );
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    for version in [
        "",
        "narfs-state",
        "narfs-state one",
        "narfs-state 0",
        "3",
        "\u{fffd}",
    ] {
        let dir = dir();
        fs::write(dir.path().join("version"), version).unwrap();
        assert!(
            matches!(refusal(dir.path()).0, ContentError::NotOurs { .. }),
            "{version:?}"
        );
    }
    let dir = dir();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (error, text) = refusal(dir.path());
    assert!(
        matches!(error, ContentError::NotOurs { .. }) && text.contains("thesis.tex"),
        "{text}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(
        fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
        0o755
    );
}

#[test]
fn an_interrupted_creation_is_finished() {
    let dir = dir();
    fs::write(dir.path().join("lock"), "123\n").unwrap();
    fs::write(dir.path().join("version.tmp"), "nar").unwrap();
    drop(open(dir.path()));
    assert_eq!(
        fs::read_to_string(dir.path().join("version")).unwrap(),
        "narfs-state 1\n"
    );
}

#[test]
fn leftovers_of_interrupted_writes_go() {
    let dir = dir();
    drop(open(dir.path()));
    let leftover = dir.path().join("tmp/3");
    fs::write(&leftover, "half a map").unwrap();
    open(dir.path());
    assert!(!leftover.exists());
}

#[test]
fn others_must_not_be_able_to_write_to_it() {
    for mode in [0o777, 0o720, 0o1777] {
        let dir = dir();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(
            matches!(refusal(dir.path()).0, ContentError::Unsafe { .. }),
            "{mode:o}"
        );
    }
    let dir = dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(dir.path()));
    assert_eq!(
        fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
        0o700,
        "nor to read it"
    );
}

#[test]
fn another_users_directory_is_refused() {
    let dir = dir();
    // Only root can give a directory away; for others the check is the same and cannot be set up.
    if chown(dir.path(), Some(12345), None).is_err() {
        eprintln!("skipped: giving a directory to another user takes root");
        return;
    }
    let (error, text) = refusal(dir.path());
    assert!(
        matches!(error, ContentError::Unsafe { .. }) && text.contains("12345"),
        "{text}"
    );
}

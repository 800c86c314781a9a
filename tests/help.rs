//! The help of every verb is what `tests/help/` holds, so that changes to it are reviewed.
//! `NARFS_BLESS=1` writes the files.

use std::{collections::BTreeSet, fs, path::Path};

use clap::CommandFactory;
use narfs::cli::{Cli, Exit};

/// Columns that the texts are wrapped to: as wide as help ever gets.
const WIDTH: usize = 100;

fn command() -> clap::Command {
    let mut command = Cli::command().term_width(WIDTH);
    command.build();
    command
}

/// Each verb and the program itself, with its `-h` and `--help`; `a-b` is the verb `b` of `a`.
fn texts() -> Vec<(String, String)> {
    let mut command = command();
    let text = |command: &mut clap::Command| {
        let (short, long) = (command.render_help(), command.render_long_help());
        let text = format!("$ narfs … -h\n{short}\n$ narfs … --help\n{long}");
        text.lines()
            .map(|line| line.trim_end().to_string() + "\n")
            .collect::<String>()
    };
    let mut texts = vec![("narfs".to_string(), text(&mut command))];
    for verb in command.get_subcommands_mut() {
        let name = verb.get_name().to_string();
        texts.push((name.clone(), text(verb)));
        for inner in verb.get_subcommands_mut() {
            texts.push((format!("{name}-{}", inner.get_name()), text(inner)));
        }
    }
    texts
}

#[test]
fn help_is_what_was_reviewed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let bless = std::env::var_os("NARFS_BLESS").is_some();
    let mut expected = BTreeSet::new();
    for (verb, text) in texts() {
        let file = directory.join(format!("{verb}.txt"));
        if bless {
            fs::write(&file, &text).unwrap();
        }
        let have = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            have == text,
            "{} is out of date: run this test with NARFS_BLESS=1",
            file.display()
        );
        expected.insert(file);
    }
    let there: BTreeSet<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(there, expected, "a verb went away and its file did not");
}

#[test]
fn help_is_complete() {
    for (verb, text) in texts() {
        assert!(
            text.contains("Exit status:"),
            "{verb} does not say how it ends"
        );
        assert!(
            ["daemon", "keep-mount", "mount-helper", "probe-mount"].contains(&&*verb)
                || text.contains("Examples:"),
            "{verb} has no example"
        );
    }
    let (_, all) = texts().remove(0);
    for (exit, meaning) in Exit::ALL {
        assert!(
            all.contains(&format!("  {:<3}  {meaning}\n", exit.code())),
            "{exit:?}"
        );
    }
}

#[test]
fn arguments_fit_together() {
    command().debug_assert();
}

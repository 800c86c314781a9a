//! Everything at once, for a while: readers, containers that come and go, a snapshotter that is
//! killed, caches that flap, and room for a fraction of what is read. Every byte is compared with
//! what the real nix unpacked; no read may fail; at the end nothing is left over, every gauge of what
//! goes on is back at zero, and memory and descriptors are where they were.
//!
//! ```text
//! NARFS_SOAK_SECONDS=3600 NARFS_SOAK_SEED=7 cargo test --test soak -- --nocapture
//! ```
//!
//! Without, it takes a minute and a half and has always the same seed: what happens, in which order
//! and how long after each other depends on the seed alone.

#[path = "../support/admin.rs"]
mod admin;
#[path = "../support/corpus.rs"]
mod corpus;
mod figures;
mod gauges;
#[allow(dead_code, unused_imports, reason = "each test uses a part of it")]
#[path = "../support/scripted/mod.rs"]
mod scripted;
#[path = "../support/snapshot.rs"]
mod snapshot;
#[allow(unused_imports, reason = "each test uses a part of it")]
#[path = "../support/snapshotter/mod.rs"]
mod snapshotter;
#[path = "../support/truth.rs"]
mod truth;
mod world;

use std::time::{Duration, Instant};

use figures::Figures;
use world::{Chance, World};

/// How long it takes in CI, in seconds.
const SECONDS: u64 = 90;
/// Part of the time in which the snapshotter is killed; in the rest one process goes on, so that
/// its memory can be looked at.
const KILLS_UNTIL: f64 = 0.5;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

#[test]
fn everything_at_once() {
    let seconds = from_environment("NARFS_SOAK_SECONDS", SECONDS);
    let seed = from_environment("NARFS_SOAK_SEED", 1);
    println!("{seconds} seconds, seed {seed}");
    let mut chance = Chance::new(seed);
    let mut figures = Figures::default();
    let mut world = World::start(seed);
    let (begun, whole) = (Instant::now(), Duration::from_secs(seconds));
    while begun.elapsed() < whole {
        let kills = begun.elapsed() < whole.mul_f64(KILLS_UNTIL);
        match chance.below(if kills { 8 } else { 6 }) {
            0 | 1 => world.flap(&mut chance, &mut figures),
            2 | 3 => world.start_container(&mut chance, &mut figures),
            4 | 5 => world.end_container(&mut figures),
            _ => world.kill(&mut figures),
        }
        std::thread::sleep(Duration::from_millis(chance.below(600)));
        if !kills {
            figures.note_process(world.pid());
        }
    }
    world.finish(&mut figures);
    figures.print(begun.elapsed());
    figures.check();
}

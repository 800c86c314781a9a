//! What a soak counts, prints and demands.

use std::{fs, time::Duration};

use serde_json::Value;

/// Memory may grow by this between the first and the last third of a process's time: caches that
/// fill (names, trees, buffers of the allocator) do not do so evenly. In KiB.
const GROWTH: u64 = 24 << 10;
/// The same for descriptors: connections and files kept open have their bounds, and are not all
/// used all the time.
const MORE_DESCRIPTORS: u64 = 60;

/// See the module.
#[derive(Default)]
pub struct Figures {
    reads: u64,
    bytes: u64,
    failed: u64,
    longest: f64,
    wrong: Vec<String>,
    /// Times that the snapshotter was killed.
    pub kills: u64,
    /// Times that a cache began to misbehave.
    pub flaps: u64,
    /// Requests that met a fault.
    pub faults: u64,
    /// Containers that were started.
    pub containers: u64,
    /// Resident memory in KiB and open descriptors, while one process goes on.
    process: Vec<(u64, u64)>,
}

impl Figures {
    /// What readers say at their end.
    pub fn add(&mut self, said: &Value) {
        let number = |name: &str| said[name].as_u64().expect("a number");
        self.reads += number("reads");
        self.bytes += number("bytes");
        self.failed += number("failed");
        self.longest = self
            .longest
            .max(said["longest"].as_f64().expect("a number"));
        let wrong = said["wrong"].as_array().expect("a list").iter();
        self.wrong.extend(wrong.map(|text| text.to_string()));
    }

    /// Looks at the process.
    pub fn note_process(&mut self, pid: u32) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident
            .expect("it has memory")
            .trim()
            .trim_end_matches(" kB");
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .count();
        let resident = resident.parse().expect("a number");
        self.process.push((resident, descriptors as u64));
    }

    /// Means of the first and the last third.
    fn thirds(&self) -> [(u64, u64); 2] {
        let third = self.process.len() / 3;
        assert!(third > 0, "the process was not looked at");
        let mean = |part: &[(u64, u64)]| {
            let n = part.len() as u64;
            let sum = part
                .iter()
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            (sum.0 / n, sum.1 / n)
        };
        let last = self.process.len() - third;
        [mean(&self.process[..third]), mean(&self.process[last..])]
    }

    /// Prints everything.
    pub fn print(&self, took: Duration) {
        let [first, last] = self.thirds();
        println!("took                    {} s", took.as_secs());
        println!("reads served            {}", self.reads - self.failed);
        println!("reads failed            {}", self.failed);
        println!("bytes compared          {}", self.bytes);
        println!("longest read            {:.2} s", self.longest);
        println!("kills                   {}", self.kills);
        println!("caches that flapped     {} times", self.flaps);
        println!("requests with a fault   {}", self.faults);
        println!("containers              {}", self.containers);
        println!("memory, first third     {} KiB", first.0);
        println!("memory, last third      {} KiB", last.0);
        println!("descriptors, first/last {}/{}", first.1, last.1);
    }

    /// Demands what has to hold.
    pub fn check(&self) {
        assert_eq!(self.failed, 0, "{:#?}", self.wrong);
        assert!(self.reads > 500, "{} reads show nothing", self.reads);
        assert!(
            self.kills > 0 && self.flaps > 0 && self.faults > 0 && self.containers > 0,
            "not everything happened"
        );
        let [first, last] = self.thirds();
        assert!(
            last.0 < first.0 + GROWTH,
            "memory: {first:?} to {last:?} KiB"
        );
        assert!(
            last.1 < first.1 + MORE_DESCRIPTORS,
            "descriptors: {first:?} to {last:?}"
        );
    }
}

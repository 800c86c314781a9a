//! Threads and tasks of narfs in every order that shuttle finds: each test runs some hundred times,
//! each time scheduled by chance from a seed, and once more with few but well-placed changes of
//! thread, which finds what needs exactly one at the wrong moment.
//!
//! By hand, more: `NARFS_ORDERS=100000`. A failure prints its schedule; `shuttle::replay` takes it.

mod content;
mod lanes;
mod single_flight;

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
};

/// The seed of CI: the same orders every time, so that a failure is nobody's bad luck.
const SEED: u64 = 4;

/// Changes of thread at the wrong moment that a bug may need; most need two.
const DEPTH: usize = 3;

/// Runs `test` in `orders` random orders and as many of the other kind.
fn in_many_orders(orders: usize, test: impl Fn() + Send + Sync + Clone + 'static) {
    let orders = std::env::var("NARFS_ORDERS").map_or(orders, |n| n.parse().expect("a number"));
    let seed = std::env::var("NARFS_SEED").map_or(SEED, |n| n.parse().expect("a number"));
    let mut config = Config::new();
    // Databases are opened in these threads.
    config.stack_size = 1 << 20;
    println!("seed {seed}, {orders} orders of each kind");
    let random = RandomScheduler::new_from_seed(seed, orders);
    Runner::new(random, config.clone()).run(test.clone());
    let few_changes = PctScheduler::new_from_seed(seed, DEPTH, orders);
    Runner::new(few_changes, config).run(test);
}

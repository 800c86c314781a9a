//! The standard library, but with shuttle's threads, locks and atomics: every use of one of them is
//! a place where shuttle may let another thread go on.
//!
//! A crate that says `extern crate interleaved_std as std;` compiles modules of narfs, unchanged,
//! against this. What is named here is what they use; what is missing is a compile error there.

pub use ::std::*;

/// Locks and atomics that shuttle schedules; what cannot block is the standard library's.
pub mod sync {
    pub use ::std::sync::{LazyLock, OnceLock};
    pub use shuttle::sync::*;

    pub use shuttle::sync::atomic;
    pub use shuttle::sync::mpsc;
}

/// Threads that shuttle schedules.
pub mod thread {
    pub use shuttle::thread::*;

    use ::std::io;

    /// As `std::thread::Builder`, of which shuttle's knows no scopes.
    #[derive(Debug, Default)]
    pub struct Builder(Option<String>);

    impl Builder {
        /// A thread without a name.
        pub fn new() -> Self {
            Self::default()
        }

        /// With a name.
        pub fn name(self, name: String) -> Self {
            Self(Some(name))
        }

        /// Starts it.
        ///
        /// # Errors
        /// None; the signature is the standard library's.
        pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
        where
            F: FnOnce() -> T + Send + 'static,
            T: Send + 'static,
        {
            let builder = shuttle::thread::Builder::new();
            match self.0 {
                Some(name) => builder.name(name).spawn(f),
                None => builder.spawn(f),
            }
        }

        /// Starts it in a scope.
        ///
        /// # Errors
        /// None; the signature is the standard library's.
        pub fn spawn_scoped<'scope, F, T>(
            self,
            scope: &'scope Scope<'scope, '_>,
            f: F,
        ) -> io::Result<ScopedJoinHandle<'scope, T>>
        where
            F: FnOnce() -> T + Send + 'scope,
            T: Send + 'scope,
        {
            Ok(scope.spawn(f))
        }
    }
}

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

/// Files, between whose reads and writes another thread may go on.
pub mod os {
    pub use ::std::os::*;

    /// See above.
    pub mod unix {
        pub use ::std::os::unix::*;

        /// See above.
        pub mod fs {
            pub use ::std::os::unix::fs::*;

            use ::std::{fs::File, io, os::unix::fs::FileExt as Real};

            /// What narfs uses of the trait of this name.
            pub trait FileExt {
                /// See the standard library.
                ///
                /// # Errors
                /// Those of the file.
                fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

                /// See the standard library.
                ///
                /// # Errors
                /// Those of the file.
                fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

                /// See the standard library.
                ///
                /// # Errors
                /// Those of the file.
                fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
            }

            impl FileExt for File {
                fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                    shuttle::thread::yield_now();
                    Real::read_exact_at(self, buffer, offset)
                }

                fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
                    shuttle::thread::yield_now();
                    Real::read_at(self, buffer, offset)
                }

                fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
                    shuttle::thread::yield_now();
                    Real::write_all_at(self, bytes, offset)
                }
            }
        }
    }
}

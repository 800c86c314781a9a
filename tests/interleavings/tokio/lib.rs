//! Tokio's channels as they are: they need no runtime, only somebody who polls, and that is shuttle.
//! But a thread that blocks on one of them would block all of shuttle's threads, which are one; so
//! the receiver that narfs blocks on waits by shuttle's means.

pub use ::tokio::*;

/// Channels.
pub mod sync {
    pub use ::tokio::sync::*;

    /// A channel for one value.
    pub mod oneshot {
        use std::{
            pin::Pin,
            task::{Context, Poll},
        };

        pub use ::tokio::sync::oneshot::{Sender, error};

        /// The receiving end.
        #[derive(Debug)]
        pub struct Receiver<T>(::tokio::sync::oneshot::Receiver<T>);

        /// A new channel.
        pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = ::tokio::sync::oneshot::channel();
            (sender, Receiver(receiver))
        }

        impl<T> Receiver<T> {
            /// Waits for the value.
            ///
            /// # Errors
            /// When the sender is gone.
            pub fn blocking_recv(self) -> Result<T, error::RecvError> {
                shuttle::future::block_on(self)
            }
        }

        impl<T> Future for Receiver<T> {
            type Output = Result<T, error::RecvError>;

            fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
                Pin::new(&mut self.get_mut().0).poll(context)
            }
        }
    }
}

/// Tasks.
pub mod task {
    /// Runs `work` as a task of its own; among shuttle's, which are one thread, it may block.
    pub fn spawn_blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> shuttle::future::JoinHandle<T> {
        shuttle::future::spawn(async move { work() })
    }
}

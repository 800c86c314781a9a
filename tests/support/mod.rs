//! What several tests share. Each test uses a part of it, hence the permission for the rest.
#![allow(dead_code, unused_imports)]

pub mod cache;
pub mod scripted;

//! The socket and its directory.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    time::Instant,
};

use crate::world::{PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_made_again_when_its_directory_is_gone() {
    let world = World::start(&[]).await;
    let mut calls = world.calls().await;
    calls.prepare("a", "", [].into()).await.unwrap();
    let socket = world.socket();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
    fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    // Who is connected is not concerned.
    assert_eq!(calls.stat("a").await.unwrap().name, "a");
    let deadline = Instant::now() + PATIENCE;
    while !fs::metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        assert!(Instant::now() < deadline, "it is not made again");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
    assert_eq!(world.calls().await.stat("a").await.unwrap().name, "a");
    assert!(
        world
            .log()
            .contains("the socket was gone and is made again")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_one_is_replaced_and_a_living_one_is_not() {
    let mut world = World::start(&[]).await;
    let second = World::prepare(&[]);
    let refused = second.command_at(&world.socket()).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{error}");
    assert!(error.contains("another server answers at"), "{error}");
    assert!(!second.root().exists(), "it began nevertheless");
    assert!(world.calls().await.list(&[]).await.is_ok());
    world.kill();
    assert!(
        fs::metadata(world.socket())
            .unwrap()
            .file_type()
            .is_socket()
    );
    world.run().await;
    world.stop().await;
    fs::write(world.socket(), "a file").unwrap();
    fs::set_permissions(world.socket(), PermissionsExt::from_mode(0o600)).unwrap();
    let refused = world.bounded().output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("is there and is no socket"), "{error}");
    assert_eq!(fs::read_to_string(world.socket()).unwrap(), "a file");
}

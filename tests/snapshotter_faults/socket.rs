//! The socket and its directory, and what tells that it is ready.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixStream},
    },
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

/// The status line and the body of a request to the admin socket.
fn asked(world: &World, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(world.root().join("admin.sock")).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: narfs\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_when_it_is_ready_and_when_not() {
    let mut world = World::prepare(&[]);
    let notify = world.root().with_file_name("notify.sock");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    world.environment("NOTIFY_SOCKET", notify.to_str().unwrap());
    world.spawn();
    let mut told = [0; 1000];
    let size = manager.recv(&mut told).unwrap();
    let told = String::from_utf8_lossy(&told[..size]).into_owned();
    assert!(told.lines().any(|line| line == "READY=1"), "{told}");
    // Who was told so is answered, at once.
    assert!(world.calls().await.list(&[]).await.unwrap().is_empty());
    assert_eq!(
        asked(&world, "/ready"),
        ("HTTP/1.1 200 OK".into(), "ready\n".into())
    );
    assert_eq!(asked(&world, "/live").1, "live\n");
    assert!(asked(&world, "/else").0.contains("404"));
    fs::remove_file(world.socket()).unwrap();
    let (status, why) = asked(&world, "/ready");
    assert!(
        status.contains("503") && why.contains("narfs.sock"),
        "{status} {why}"
    );
    let deadline = Instant::now() + PATIENCE;
    while asked(&world, "/ready").1 != "ready\n" {
        assert!(Instant::now() < deadline, "it is not ready again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

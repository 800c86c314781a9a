//! The calls over a store in memory, with real directories and a real database.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tonic::Code;

use super::{
    Healed, Options, SnapshotError, Snapshots,
    closures::Closures,
    directories::Directories,
    mounts::Overlay,
    record::{Kind, SnapshotId},
    twin::{Twin, path},
    wire::Mount,
};

const MARK: (&str, &str) = ("containerd.io/snapshot/nix-layer", "true");

struct World {
    directory: tempfile::TempDir,
    twin: Arc<Twin>,
    snapshots: Snapshots,
    healed: Healed,
}

async fn open(root: &Path, twin: &Arc<Twin>) -> Result<(Snapshots, Healed), SnapshotError> {
    let directories = Directories::new(root, &root.join("mnt"));
    let options = Options {
        admission: Duration::from_secs(1),
        overlay: Overlay::default(),
        ..Options::default()
    };
    Snapshots::open(root, directories, twin.clone(), options).await
}

impl World {
    async fn new(twin: Twin) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let twin = Arc::new(twin);
        let (snapshots, healed) = open(directory.path(), &twin).await.unwrap();
        Self {
            directory,
            twin,
            snapshots,
            healed,
        }
    }

    async fn again(self) -> Self {
        let Self {
            directory,
            twin,
            snapshots,
            ..
        } = self;
        // The database is closed with its last user, who may be a task.
        drop(snapshots);
        let (snapshots, healed) = open(directory.path(), &twin).await.unwrap();
        Self {
            directory,
            twin,
            snapshots,
            healed,
        }
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A committed layer under a name.
    async fn layer(&self, name: &str, parent: &str, labels: &[(&str, &str)]) {
        let key = format!("extract {name}");
        self.snapshots
            .prepare(&key, parent, owned(labels))
            .await
            .unwrap();
        self.snapshots.commit(name, &key, owned(&[])).await.unwrap();
    }
}

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

/// Labels of a Nix layer with these paths.
fn nix(names: &[&str]) -> Vec<(String, String)> {
    let mut labels = owned(&[MARK]);
    for (n, name) in names.iter().enumerate() {
        let label = format!("containerd.io/snapshot/nix-store-path.{n}");
        labels.push((label, path(name).absolute()));
    }
    labels
}

fn code<T: std::fmt::Debug>(outcome: Result<T, SnapshotError>) -> Code {
    outcome.unwrap_err().code()
}

/// The lowers of an overlay, below the root.
fn lowers(world: &World, mounts: &[Mount]) -> Vec<String> {
    let option = mounts[0]
        .options
        .iter()
        .find_map(|o| o.strip_prefix("lowerdir="));
    let root = format!("{}/", world.root().display());
    let lowers = option.expect("an overlay").split(':');
    lowers
        .map(|lower| lower.strip_prefix(&root).unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn codes_are_those_that_containerd_expects() {
    let world = World::new(Twin::default()).await;
    let s = &world.snapshots;
    s.prepare("active", "", []).await.unwrap();
    world.layer("layer", "", &[]).await;
    assert_eq!(code(s.prepare("", "", []).await), Code::InvalidArgument);
    assert_eq!(code(s.prepare("active", "", []).await), Code::AlreadyExists);
    assert_eq!(code(s.prepare("layer", "", []).await), Code::AlreadyExists);
    assert_eq!(code(s.prepare("x", "nothing", []).await), Code::NotFound);
    assert_eq!(
        code(s.prepare("x", "active", []).await),
        Code::InvalidArgument
    );
    assert_eq!(code(s.view("x", "active", []).await), Code::InvalidArgument);
    assert_eq!(code(s.mounts("nothing").await), Code::NotFound);
    assert_eq!(code(s.mounts("layer").await), Code::FailedPrecondition);
    assert_eq!(code(s.commit("x", "nothing", []).await), Code::NotFound);
    assert_eq!(
        code(s.commit("layer", "active", []).await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(s.commit("x", "layer", []).await),
        Code::FailedPrecondition
    );
    s.view("view", "layer", []).await.unwrap();
    assert_eq!(
        code(s.commit("x", "view", []).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(s.remove("nothing").await), Code::NotFound);
    assert_eq!(code(s.remove("layer").await), Code::FailedPrecondition);
    assert_eq!(code(s.stat("nothing")), Code::NotFound);
    assert_eq!(code(s.usage("nothing").await), Code::NotFound);
    assert_eq!(code(s.list(&["kind=".into()])), Code::InvalidArgument);
    let fields = vec!["parent".into()];
    assert_eq!(
        code(s.update("active", [], fields).await),
        Code::InvalidArgument
    );
    assert_eq!(code(s.update("nothing", [], vec![]).await), Code::NotFound);
    s.remove("view").await.unwrap();
    s.remove("layer").await.unwrap();
    s.cleanup().await.unwrap();
    assert_eq!(
        fs::read_dir(world.root().join("snapshots"))
            .unwrap()
            .count(),
        1
    );
}

#[tokio::test]
async fn a_commit_replaces_labels_and_records_usage() {
    let world = World::new(Twin::default()).await;
    let s = &world.snapshots;
    let mounts = s.prepare("a", "", owned(&[("old", "1")])).await.unwrap();
    let root = Path::new(&mounts[0].source);
    fs::write(root.join("file"), vec![1; 50_000]).unwrap();
    let live = s.usage("a").await.unwrap();
    assert!(live.size >= 50_000 && live.inodes == 2, "{live:?}");
    s.commit("layer", "a", owned(&[("new", "2"), ("empty", "")]))
        .await
        .unwrap();
    let record = s.stat("layer").unwrap();
    assert_eq!(record.kind, Kind::Committed);
    assert_eq!(record.labels, [("new".to_string(), "2".to_string())].into());
    assert_eq!(s.usage("layer").await.unwrap(), live);
    s.view("v", "layer", []).await.unwrap();
    assert_eq!(s.usage("v").await.unwrap(), Default::default());
}

#[tokio::test]
async fn labels_change_one_by_one_or_all_together() {
    let world = World::new(Twin::default()).await;
    let s = &world.snapshots;
    s.prepare("a", "", owned(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap();
    let before = s.stat("a").unwrap();
    let labels = |text: &[(&str, &str)]| owned(text).into_iter().collect();
    let one = vec!["labels.b".into(), "labels.c".into(), "labels.a".into()];
    let given = owned(&[("b", "3"), ("c", "4"), ("d", "5")]);
    let record = s.update("a", given, one).await.unwrap();
    assert_eq!(record.labels, labels(&[("b", "3"), ("c", "4")]));
    assert!(record.updated > before.updated && record.created == before.created);
    for fields in [vec!["labels".to_string()], vec![]] {
        let record = s.update("a", owned(&[("x", "y")]), fields).await.unwrap();
        assert_eq!(record.labels, labels(&[("x", "y")]));
    }
    assert_eq!(s.stat("a").unwrap().labels, labels(&[("x", "y")]));
}

#[tokio::test]
async fn nix_layers_lie_above_their_mountpoints_and_inherit_what_is_shown() {
    let world = World::new(Twin::with(&["glibc", "bash", "app"])).await;
    let s = &world.snapshots;
    world.layer("base", "", &[]).await;
    let labels = nix(&["glibc", "bash"]);
    s.prepare("e1", "base", labels.clone()).await.unwrap();
    s.commit("nix1", "e1", labels).await.unwrap();
    world.layer("plain", "nix1", &[]).await;
    s.prepare("e2", "plain", nix(&["app"])).await.unwrap();
    s.commit("nix2", "e2", []).await.unwrap();
    let mounts = s.prepare("c", "nix2", []).await.unwrap();
    let want = [
        "mnt/views/s4",
        "snapshots/4/fs",
        "snapshots/3/fs",
        "mnt/views/s2",
        "snapshots/2/fs",
        "snapshots/1/fs",
    ];
    assert_eq!(lowers(&world, &mounts), want);
    let view = world.twin.view(SnapshotId(4)).unwrap();
    assert_eq!(view.own, [path("app")]);
    assert_eq!(view.shown.len(), 3);
    // A single Nix layer, looked at: two lowers, so an overlay.
    let mounts = s.view("look", "nix1", []).await.unwrap();
    assert_eq!(
        lowers(&world, &mounts),
        ["mnt/views/s2", "snapshots/2/fs", "snapshots/1/fs"]
    );
    assert_eq!(s.usage("nix1").await.unwrap().size % 4096, 2000);
    for key in ["c", "look", "nix2"] {
        s.remove(key).await.unwrap();
    }
    assert_eq!(world.twin.views(), [SnapshotId(2)]);
}

#[tokio::test]
async fn the_closure_of_a_label_is_found_through_its_references() {
    let world = World::new(Twin::with(&["glibc", "app"])).await;
    let info = path("closure-info");
    let closure = vec![path("glibc"), path("app")];
    world
        .twin
        .cache
        .lock()
        .unwrap()
        .insert(info.clone(), closure);
    let info = info.absolute();
    let labels = owned(&[MARK, ("containerd.io/snapshot/nix-closure", &info)]);
    world.snapshots.prepare("e", "", labels).await.unwrap();
    let view = world.twin.view(SnapshotId(1)).unwrap();
    assert_eq!(
        view.own.len(),
        2,
        "without the closure-info itself: {view:?}"
    );
}

#[tokio::test]
async fn a_layer_that_cannot_be_had_leaves_nothing() {
    let world = World::new(Twin::with(&["glibc"])).await;
    let s = &world.snapshots;
    let error = s
        .prepare("e", "", nix(&["glibc", "app"]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(
        error.to_string().contains(&path("app").to_string()),
        "{error}"
    );
    assert!(s.stat("e").is_err() && world.twin.views().is_empty());
    assert_eq!(
        fs::read_dir(world.root().join("snapshots"))
            .unwrap()
            .count(),
        0
    );
    world.twin.offer(&["app"]);
    s.prepare("e", "", nix(&["glibc", "app"])).await.unwrap();
}

#[tokio::test]
async fn mountpoints_are_found_when_it_is_committed() {
    let world = World::new(Twin::default()).await;
    let s = &world.snapshots;
    let mounts = s.prepare("e", "", []).await.unwrap();
    let store = Path::new(&mounts[0].source).join("nix/store");
    fs::create_dir_all(store.join(path("app").to_string())).unwrap();
    assert_eq!(code(s.commit("layer", "e", []).await), Code::NotFound);
    assert_eq!(
        s.stat("e").unwrap().kind,
        Kind::Active,
        "it can be tried again"
    );
    world.twin.offer(&["app"]);
    s.commit("layer", "e", []).await.unwrap();
    assert_eq!(world.twin.view(SnapshotId(1)).unwrap().own, [path("app")]);
    s.remove("layer").await.unwrap();
    assert!(world.twin.views().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_with_one_key_one_wins() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let mut twin = Twin::with(&["app"]);
    twin.gate = Some(gate.clone());
    let world = World::new(twin).await;
    let both = [(); 2].map(|()| {
        let s = world.snapshots.clone();
        tokio::spawn(async move { s.prepare("e", "", nix(&["app"])).await.map(|_| ()) })
    });
    // An admission that hangs is in nobody else's way.
    world.layer("other", "", &[]).await;
    world.snapshots.remove("other").await.unwrap();
    gate.add_permits(2);
    let mut codes = Vec::new();
    for one in both {
        codes.push(one.await.unwrap().map_err(|e| e.code()));
    }
    codes.sort_by_key(Result::is_err);
    assert_eq!(codes, [Ok(()), Err(Code::AlreadyExists)]);
    world.snapshots.cleanup().await.unwrap();
    assert_eq!(world.twin.views().len(), 1);
    assert_eq!(
        fs::read_dir(world.root().join("snapshots"))
            .unwrap()
            .count(),
        1
    );
}

#[tokio::test]
async fn a_cache_that_never_answers_is_given_up() {
    let mut twin = Twin::with(&["app"]);
    twin.gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let world = World::new(twin).await;
    let error = world
        .snapshots
        .prepare("e", "", nix(&["app"]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains("within 1 s") && error.to_string().contains("-app"));
    assert!(world.snapshots.stat("e").is_err());
}

#[tokio::test]
async fn a_start_puts_right_what_it_finds() {
    let world = World::new(Twin::with(&["app"])).await;
    let s = &world.snapshots;
    world.layer("base", "", &[]).await;
    s.prepare("e", "", nix(&["app"])).await.unwrap();
    s.commit("nix", "e", []).await.unwrap();
    s.prepare("active", "base", []).await.unwrap();
    s.prepare("container", "nix", []).await.unwrap();
    assert_eq!(world.healed, Healed::default());
    let snapshots = world.root().join("snapshots");
    for lost in ["1", "2", "3"] {
        fs::remove_dir_all(snapshots.join(lost)).unwrap();
    }
    fs::create_dir_all(snapshots.join("44/fs")).unwrap();
    fs::write(snapshots.join("new-1"), "").unwrap();
    let view = world
        .twin
        .views
        .lock()
        .unwrap()
        .remove(&SnapshotId(2))
        .unwrap();
    world.twin.views.lock().unwrap().insert(SnapshotId(9), view);
    let world = world.again().await;
    let want = Healed {
        made_again: vec!["active".into(), "nix".into()],
        damaged: vec!["base".into()],
        leavings: 2,
        views_removed: 1,
        views_made: vec!["nix".into()],
        views_missing: vec![],
    };
    assert_eq!(world.healed, want);
    let s = &world.snapshots;
    s.mounts("container").await.unwrap();
    assert_eq!(code(s.mounts("active").await), Code::FailedPrecondition);
    assert_eq!(
        code(s.prepare("x", "base", []).await),
        Code::FailedPrecondition
    );
    s.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 3);
    // A number that was seen anywhere is not given again.
    s.prepare("new", "", []).await.unwrap();
    assert!(s.stat("new").unwrap().id > SnapshotId(44));
}

//! Listings that can't be used at all, or not now.

use narfs::{store::StoreError, tree::Source};

use crate::{
    support::{
        cache::{Cache, Package, Packing, file, key},
        scripted::Reply,
    },
    world::{Setup, admitted, all_right, read, serve},
};

use super::listings::truthful;

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_listing_costs_a_stream_and_nothing_else() {
    let key = key();
    let p = truthful();
    let right = p.listing();
    let deep = format!(
        "{{\"version\":1,\"root\":{}{}}}",
        "{\"type\":\"directory\",\"entries\":{\"d\":".repeat(10_000),
        "{\"type\":\"regular\",\"size\":1}".to_owned() + &"}}".repeat(10_000)
    );
    let bomb = zstd::encode_all(&*vec![b' '; 300 << 20], 3).unwrap();
    let refused = [
        ("empty", Vec::new()),
        ("no JSON", b"<html></html>".to_vec()),
        ("half of it", right.as_bytes()[..right.len() / 2].to_vec()),
        (
            "not for this NAR",
            Package::new("x", &file("x")).listing().into_bytes(),
        ),
        (
            "a missing entry",
            right
                .replace("\"z\":{", "\"y\":{\"type\":\"regular\",\"size\":0},\"z\":{")
                .into_bytes(),
        ),
        ("..", right.replace("\"a\":", "\"..\":").into_bytes()),
        ("a slash", right.replace("\"a\":", "\"x/y\":").into_bytes()),
        ("NUL", right.replace("\"a\":", "\"\\u0000\":").into_bytes()),
        (
            "a duplicate",
            right.replace("\"b\":", "\"a\":").into_bytes(),
        ),
        (
            "a lossy name",
            right.replace("\"a\":", "\"\u{fffd}\":").into_bytes(),
        ),
        (
            "a name of 10 MB",
            right
                .replace("\"a\":", &format!("\"{}\":", "a".repeat(10_000_000)))
                .into_bytes(),
        ),
        ("depth of 10,000", deep.into_bytes()),
        (
            "100,000 open braces",
            b"{\"version\":1,\"root\":"
                .iter()
                .copied()
                .chain([b'['; 100_000])
                .collect(),
        ),
        (
            "a wrong total",
            right.replace("\"size\":4000", "\"size\":4100").into_bytes(),
        ),
        (
            "a size beyond everything",
            right.replace("4000", "18446744073709551615").into_bytes(),
        ),
        (
            "a negative size",
            right.replace("\"size\":4000", "\"size\":-8").into_bytes(),
        ),
        ("a bomb", bomb),
    ];
    for packing in [Packing::None, Packing::Zstd, Packing::Blocks] {
        let cache = Cache::new(&key);
        cache.add(&p, packing);
        let server = serve(cache.path());
        for (what, listing) in &refused {
            println!("{packing:?}: {what}");
            cache.write(&p.listing_url(), listing);
            server.clear();
            let world = Setup::trusting(&key).store(&[&server]);
            all_right(&world, &p).await;
            assert_eq!(admitted(&world, &p).await.tree.source(), Source::Nar);
            assert_eq!(server.count(&p.nar_url(packing)), 1);
        }
        for (what, reply) in [
            ("410", Reply::status(410)),
            ("403", Reply::status(403)),
            ("a redirect loop", Reply::redirect(p.listing_url())),
            (
                "not announced as large as it is",
                Reply::as_it_is().claiming_length(300 << 20),
            ),
        ] {
            println!("{packing:?}: {what}");
            server.on(&p.listing_url(), reply);
            all_right(&Setup::trusting(&key).store(&[&server]), &p).await;
            server.forget(&p.listing_url());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_fails_is_an_error_and_works_later() {
    let key = key();
    let cache = Cache::new(&key);
    let p = truthful();
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    let world = Setup::trusting(&key).store(&[&server]);
    for reply in [
        Reply::html(),
        Reply::status(503),
        Reply::reset(),
        Reply::as_it_is().cut_after(30),
    ] {
        server.on(&p.listing_url(), reply);
        let error = read(&world, &p, "a", 0, 10).await.unwrap_err();
        assert!(matches!(error.root(), StoreError::Fetch { .. }), "{error}");
    }
    assert_eq!(
        server.count(&p.nar_url(Packing::Zstd)),
        0,
        "no NAR is streamed for a passing fault"
    );
    server.forget(&p.listing_url());
    all_right(&world, &p).await;
    assert_eq!(admitted(&world, &p).await.tree.source(), Source::Listing);
}

//! A cache behind a real web server: nginx, HTTP/2 over TLS, as large caches are served.

mod support;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use narfs::{
    nix::StorePathHash,
    substituter::{
        Deadline, FetchError, HttpOptions, NarBody, Substituter, SubstituterConfig, Transport,
    },
};
use support::scripted::certificate;

/// One NAR: larger than what HTTP/2 lets a stream have in flight, so that a reader who waits
/// leaves the server waiting too.
const NAR_SIZE: usize = 5 << 20;

struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    /// Serves `root`; logs, for each request, its connection, protocol and path.
    fn start(directory: &Path, root: &Path) -> Self {
        // The port is free now and most likely still when nginx asks for it.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (dir, root, certificate) = (directory.display(), root.display(), certificate());
        let key = certificate.with_file_name("key.pem");
        let (certificate, key) = (certificate.display(), key.display());
        let configuration = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               log_format one '$connection $server_protocol $status $uri';\n\
               access_log {dir}/access.log one;\n\
               client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;\n\
               uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;\n\
               server {{\n\
                 listen 127.0.0.1:{port} ssl http2;\n\
                 ssl_certificate {certificate}; ssl_certificate_key {key};\n\
                 root {root};\n\
               }}\n\
             }}\n"
        );
        fs::write(directory.join("nginx.conf"), configuration).unwrap();
        let mut child = Command::new("nginx")
            .arg("-c")
            .arg(directory.join("nginx.conf"))
            .arg("-e")
            .arg(directory.join("error.log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run nginx ({error}); install it for this test"));
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                let log = fs::read_to_string(directory.join("error.log")).unwrap_or_default();
                panic!("nginx ended with {status}: {log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

async fn all(mut body: NarBody) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[tokio::test]
async fn one_connection_carries_everything() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("cache");
    fs::create_dir_all(root.join("nar")).unwrap();
    let nar: Vec<u8> = (0..NAR_SIZE).map(|i| (i / 251 + i) as u8).collect();
    fs::write(root.join("nar/x.nar"), &nar).unwrap();
    let hashes: Vec<_> = (0..100)
        .map(|n| StorePathHash::from_bytes([n; 20]))
        .collect();
    for hash in &hashes[..50] {
        fs::write(root.join(format!("{hash}.narinfo")), hash.to_string()).unwrap();
    }
    let nginx = Nginx::start(directory.path(), &root);
    let options = HttpOptions {
        ssl_cert_file: Some(certificate()),
        proxy_from_environment: false,
        stall_timeout: Duration::from_secs(20),
        ..HttpOptions::default()
    };
    let url = format!("https://localhost:{}", nginx.port);
    let config = SubstituterConfig {
        url,
        ..SubstituterConfig::default()
    };
    let cache = Substituter::new(&config, &Transport::new(options).unwrap()).unwrap();
    // The first one decides that it is HTTP/2; from then on one connection is enough.
    assert_eq!(cache.cache_info_text(soon()).await.unwrap(), None);

    let calls: Vec<_> = hashes
        .iter()
        .map(|hash| {
            let (cache, hash) = (cache.clone(), *hash);
            tokio::spawn(async move { cache.narinfo(&hash, soon()).await })
        })
        .collect();
    for (n, (call, hash)) in calls.into_iter().zip(&hashes).enumerate() {
        let bytes = call.await.unwrap().unwrap().map(|document| document.bytes);
        assert_eq!(bytes, (n < 50).then(|| hash.to_string().into_bytes()));
    }

    // As many NARs as there may be, which nobody reads on.
    let mut waiting = Vec::new();
    for _ in 0..bodies_at_once() {
        let mut body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
        body.next().await.unwrap().unwrap();
        waiting.push(body);
    }
    let body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert!(
        all(body).await.unwrap() == nar,
        "readers who wait hold nobody back"
    );
    for body in &waiting {
        assert_eq!(body.total, Some(NAR_SIZE as u64));
    }
    let body = waiting.pop().unwrap();
    let got = all(body).await.unwrap();
    assert!(nar.ends_with(&got), "and go on where they were");
    drop(waiting);

    let part = cache
        .nar("nar/x.nar", Some(1 << 20..3 << 20), None, soon())
        .await
        .unwrap();
    let validator = part.validator.clone().unwrap();
    assert!(all(part).await.unwrap() == nar[1 << 20..3 << 20]);
    let tail = cache.nar_tail("nar/x.nar", 12 << 10, soon()).await.unwrap();
    assert!(tail == (NAR_SIZE as u64, nar[NAR_SIZE - (12 << 10)..].to_vec()));
    fs::write(root.join("nar/x.nar"), "another").unwrap();
    let error = cache
        .nar("nar/x.nar", Some(3..5), Some(&validator), soon())
        .await
        .unwrap_err();
    assert_eq!(error.slug(), "changed", "{error}");

    let log = fs::read_to_string(directory.path().join("access.log")).unwrap();
    let mut connections: Vec<_> = log
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words[1], "HTTP/2.0", "{line}");
            words[0]
        })
        .collect();
    connections.dedup();
    assert_eq!(connections.len(), 1, "{log}");
}

/// How many bodies a store reads at once.
fn bodies_at_once() -> usize {
    HttpOptions::default().connections
}

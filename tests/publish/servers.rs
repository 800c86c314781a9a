//! Into a bucket (moto), and onto a web server (nginx with WebDAV's PUT), and read back from there.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use narfs::nix::TrustedKeys;

use crate::{
    corpus,
    support::cache::{Cache, Packing, key},
    world::{Place, assert_valid, chain, report, url},
};

/// nginx that takes PUT from one user.
struct Dav {
    child: Child,
    port: u16,
}

impl Dav {
    fn start(directory: &Path, root: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        // `me:secret`, hashed as `openssl passwd -apr1` does would need that; nginx takes {PLAIN} too.
        fs::write(directory.join("users"), "me:{PLAIN}secret\n").unwrap();
        let (dir, root) = (directory.display(), root.display());
        let configuration = format!(
            "user root; daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               access_log {dir}/access.log;\n\
               client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;\n\
               uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;\n\
               server {{\n\
                 listen 127.0.0.1:{port};\n\
                 client_max_body_size 0;\n\
                 location / {{\n\
                   root {root}; dav_methods PUT; create_full_put_path on;\n\
                   limit_except GET {{ auth_basic x; auth_basic_user_file {dir}/users; }}\n\
                 }}\n\
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
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                let log = fs::read_to_string(directory.join("error.log")).unwrap_or_default();
                panic!("nginx ended with {status}: {log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port }
    }
}

impl Drop for Dav {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_web_server_is_written_with_put_and_credentials() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(3, 400_000);
    source.add_all(&packages, Packing::Zstd);
    let (served, conf) = (place.path("served"), place.path("nginx"));
    fs::create_dir(&served).unwrap();
    fs::create_dir(&conf).unwrap();
    let dav = Dav::start(&conf, &served);
    let top = packages.last().unwrap().path.absolute();
    let public = key.public();
    let arguments = ["--trusted-key", &public, &top];
    let from = url(source.path());
    // Without the password nothing is written, and it is said why.
    let to = format!("http://127.0.0.1:{}", dav.port);
    let denied = place.publish(&from, &to, &arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert_eq!(denied.status.code(), Some(1), "{errors}");
    assert!(errors.contains("netrc") && errors.contains(&to), "{errors}");
    let to = format!("http://me:secret@127.0.0.1:{}", dav.port);
    let report = place.published(&from, &to, &arguments);
    assert_eq!(report["written"], packages.len());
    assert!(!report.to_string().contains("secret"));
    let keys = TrustedKeys::parse([place.key.public()]).unwrap();
    assert_eq!(assert_valid(&served, &keys), packages.len());
    let again = place.published(&from, &to, &arguments);
    assert_eq!(again["present"], packages.len());
}

#[test]
fn a_bucket_is_written_and_read() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(3, 400_000);
    source.add_all(&packages, Packing::Zstd);
    let bucket = place.path("bucket");
    fs::create_dir(&bucket).unwrap();
    let server = corpus::S3::over([bucket]);
    let to = format!(
        "s3://bucket/some/prefix?endpoint={}&region=us-east-1",
        server.url
    );
    let top = packages.last().unwrap().path.absolute();
    let public = key.public();
    let arguments = ["--trusted-key", &public, &top];
    let keys = [
        ("AWS_ACCESS_KEY_ID", "writer"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let run = || {
        let mut command = place.publish(&url(source.path()), &to, &arguments);
        report(&command.envs(keys).output().unwrap(), 0)
    };
    assert_eq!(run()["written"], packages.len());
    assert_eq!(run()["present"], packages.len());
    // Read back with random access and all, by the public half of our key alone.
    let public = place.key.public();
    let file = format!("{}/bin/run", packages[0].path.absolute());
    let mut cat = place.command(&["cat", "--cache", &to, "--trusted-key", &public, &file]);
    let output = cat.envs(keys).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, crate::support::cache::noise(0, 400_000));
    let mut ls = place.command(&["ls", "--cache", &to, "--trusted-key", &public, &top]);
    assert!(ls.envs(keys).output().unwrap().status.success());
}

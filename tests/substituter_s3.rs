//! Caches in buckets, against a real S3 server: moto (`pip install 'moto[server]'`).
//!
//! The keys come from a profile in files of the test's own, named by variables that are set for a
//! second process: the test runs itself again with them ([`in_child`]).

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use narfs::{
    nix::StorePathHash,
    substituter::{Deadline, HttpOptions, RetryPolicy, Substituter, SubstituterConfig, Transport},
};
use support::scripted::{Reply, Server};

/// moto with two buckets, behind a guard that checks signed addresses with Amazon's own library
/// (moto does not) and keeps unsigned readers out of the bucket `private`. Says where it is.
const SERVER: &str = r#"
import hmac, json, sys, threading, urllib.parse
try:
    import boto3, moto.server, werkzeug.serving
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
except ImportError as error:
    print("MISSING", error, flush=True)
    sys.exit(1)

ID, SECRET = "AKIDEXAMPLE", "a+secret/with%odd=characters"
moto_app = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)

def refusal(environ):
    raw = environ["REQUEST_URI"]
    path, _, query = raw.partition("?")
    given = dict(urllib.parse.parse_qsl(query))
    if "X-Amz-Signature" not in given:
        return "AccessDenied" if path.startswith("/private/") else None
    key, _, region, service, _ = given["X-Amz-Credential"].split("/")
    if key != ID:
        return "InvalidAccessKeyId"
    signature = given.pop("X-Amz-Signature")
    url = "http://" + environ["HTTP_HOST"] + path + "?" + urllib.parse.urlencode(given, quote_via=urllib.parse.quote)
    request = AWSRequest(method=environ["REQUEST_METHOD"], url=url, headers={"host": environ["HTTP_HOST"]})
    request.context["timestamp"] = given["X-Amz-Date"]
    auth = S3SigV4QueryAuth(Credentials(ID, SECRET), service, region)
    right = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return None if hmac.compare_digest(right, signature) else "SignatureDoesNotMatch"

def app(environ, start_response):
    code = None if "HTTP_AUTHORIZATION" in environ else refusal(environ)
    if code is None:
        return moto_app(environ, start_response)
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return [f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()]

server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"http://127.0.0.1:{server.server_port}"
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="eu-west-1",
                  aws_access_key_id="admin", aws_secret_access_key="admin")
for bucket in ["private", "public"]:
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for prefix in ["", "some/prefix/"]:
        for name, body in json.load(open(sys.argv[1])).items():
            s3.put_object(Bucket=bucket, Key=prefix + name, Body=body.encode(), ACL="public-read")
print("READY", endpoint, ID, SECRET, flush=True)
sys.stdin.read()
"#;

const HASH: &str = "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5";

/// The S3 server; ends with it.
struct Moto {
    child: Child,
    endpoint: String,
    id: String,
    secret: String,
}

impl Moto {
    fn start(directory: &Path) -> Self {
        let objects = serde_json::json!({
            "nix-cache-info": "StoreDir: /nix/store\n",
            format!("{HASH}.narinfo"): "StorePath: x\n",
            "nar/a+b =c.nar": nar(),
        });
        let file = directory.join("objects.json");
        fs::write(&file, objects.to_string()).unwrap();
        let mut child = Command::new("python3")
            .args(["-c", SERVER])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env("NO_PROXY", "127.0.0.1")
            .spawn()
            .expect("cannot run python3, which this test needs with moto[server]");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            words.first().map(String::as_str),
            Some("READY"),
            "no S3 server: pip install 'moto[server]' boto3 ({line:?})"
        );
        let [_, endpoint, id, secret] = words.try_into().unwrap();
        Self {
            child,
            endpoint,
            id,
            secret,
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nar() -> String {
    (0..20_000).map(|n| format!("{n:05}")).collect()
}

fn hash() -> StorePathHash {
    StorePathHash::parse(HASH.as_bytes()).unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn cache(url: impl Into<String>) -> Substituter {
    let options = HttpOptions {
        proxy_from_environment: false,
        retry: RetryPolicy {
            base: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        ..HttpOptions::default()
    };
    let config = SubstituterConfig {
        url: url.into(),
        ..SubstituterConfig::default()
    };
    Substituter::new(&config, &Transport::new(options).unwrap()).unwrap()
}

/// Runs one of the ignored tests below in a process with these variables.
fn in_child(test: &str, variables: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{complaint}"
    );
}

#[test]
fn reads_buckets() {
    let directory = tempfile::tempdir().unwrap();
    let moto = Moto::start(directory.path());
    let credentials = directory.path().join("credentials");
    let text = format!(
        "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n\
         [reader]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        moto.id, moto.secret
    );
    fs::write(&credentials, text).unwrap();
    let credentials = credentials.to_str().unwrap();
    let files = [
        ("AWS_SHARED_CREDENTIALS_FILE", credentials),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("TEST_ENDPOINT", &moto.endpoint),
        ("TEST_SECRET", &moto.secret),
    ];
    in_child("child_signed", &files);
    let no_files = [
        ("HOME", "/nowhere"),
        ("TEST_ENDPOINT", &moto.endpoint),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    in_child("child_anonymous", &no_files);
}

#[tokio::test]
#[ignore = "run by reads_buckets with an environment of its own"]
async fn child_signed() {
    let endpoint = std::env::var("TEST_ENDPOINT").unwrap();
    let secret = std::env::var("TEST_SECRET").unwrap();
    let host = endpoint.strip_prefix("http://").unwrap();
    for place in [
        "private?profile=reader",
        "private/some/prefix/?profile=reader",
    ] {
        let cache = cache(format!(
            "s3://{place}&region=eu-west-1&scheme=http&endpoint={host}"
        ));
        assert!(cache.name().starts_with("s3://private"), "{}", cache.name());
        let info = cache.cache_info_text(soon()).await.unwrap().unwrap();
        assert_eq!(info, b"StoreDir: /nix/store\n");
        let narinfo = cache.narinfo(&hash(), soon()).await.unwrap().unwrap();
        assert_eq!(narinfo.bytes, b"StorePath: x\n");
        assert_eq!(cache.listing(&hash(), soon()).await.unwrap(), None);

        let nar = nar().into_bytes();
        let url = "nar/a+b =c.nar";
        let mut body = cache
            .nar(url, Some(1000..2000), None, soon())
            .await
            .unwrap();
        assert_eq!((body.start, body.total), (1000, Some(100_000)));
        let validator = body.validator.clone().unwrap();
        let mut part = Vec::new();
        while let Some(piece) = body.next().await.unwrap() {
            part.extend_from_slice(&piece);
        }
        assert_eq!(part, nar[1000..2000]);
        let again = cache
            .nar(url, Some(5..9), Some(&validator), soon())
            .await
            .unwrap();
        assert_eq!(again.start, 5);
        let tail = cache.nar_tail(url, 100, soon()).await.unwrap();
        assert_eq!(tail, (100_000, nar[99_900..].to_vec()));
        let missing = cache.nar("nar/none", None, None, soon()).await.unwrap_err();
        assert_eq!(missing.slug(), "missing", "{missing}");
        let said = format!("{missing} {missing:?} {cache:?} {body:?}");
        assert!(!said.contains("X-Amz") && !said.contains(&secret), "{said}");
        assert_eq!(
            (cache.counters().requests(), cache.counters().failures()),
            (7, 1)
        );
    }
    // The default profile's keys are wrong: that is an error and not an empty cache.
    let wrong = cache(format!("s3://private?region=eu-west-1&endpoint={endpoint}"));
    let error = wrong.narinfo(&hash(), soon()).await.unwrap_err();
    assert_eq!(error.slug(), "denied", "{error}");
    let config = SubstituterConfig {
        url: "s3://b?profile=none".into(),
        ..SubstituterConfig::default()
    };
    let error = Substituter::new(&config, &Transport::new(HttpOptions::default()).unwrap());
    assert!(error.unwrap_err().to_string().contains("none"));
}

#[tokio::test]
#[ignore = "run by reads_buckets with an environment of its own"]
async fn child_anonymous() {
    let endpoint = std::env::var("TEST_ENDPOINT").unwrap();
    let public = cache(format!("s3://public?region=eu-west-1&endpoint={endpoint}"));
    let narinfo = public.narinfo(&hash(), soon()).await.unwrap().unwrap();
    assert_eq!(narinfo.bytes, b"StorePath: x\n");
    // Without keys, what is private looks like what is not there (as in Nix), but the first
    // question says why.
    let private = cache(format!("s3://private?region=eu-west-1&endpoint={endpoint}"));
    assert_eq!(private.narinfo(&hash(), soon()).await.unwrap(), None);
    let error = private.cache_info_text(soon()).await.unwrap_err();
    assert_eq!(error.slug(), "denied", "{error}");

    let server = Server::start();
    server.everything(Some(Reply::status(301)));
    let elsewhere = cache(format!("s3://bucket?endpoint={}", server.base()));
    let error = elsewhere.narinfo(&hash(), soon()).await.unwrap_err();
    assert!(error.to_string().contains("region="), "{error}");
}

#!/usr/bin/env python3
"""Builds real Nix store closures out of Debian packages, with the real `nix`.

Every Debian source package becomes one derivation: its .debs are unpacked,
/usr is folded into the prefix, and every ELF file gets the interpreter and the
RUNPATH of the store paths it depends on. The result is what a Nix binary cache
holds in practice: many input-addressed store paths that refer to each other,
with shared libraries, interpreters, symlinks and executables that really run.

  corpus.py build ROOT...      build the closures of the Debian packages ROOT...
                               prints one line "ROOT STOREPATH" for each
  corpus.py cache DIR [--compression C] [--parallel] [--no-listing] STOREPATH...
                               copies their closures into a file:// binary cache,
                               signed with the key in DIR.key (made if missing;
                               the public half is DIR.pub)

Needs (Debian): nix-bin patchelf binutils dpkg apt.   Run as root.
"""
import argparse, functools, hashlib, json, os, pathlib, re, subprocess, sys, tempfile

# Needed by maintainer scripts, not by the programs themselves.
DROP = set("""debconf debconf-2.0 cdebconf dpkg adduser passwd init-system-helpers lsb-base
sysvinit-utils install-info ucf sensible-utils base-files base-passwd login mount util-linux
systemd udev libpam-runtime dbus tzdata ca-certificates media-types fontconfig-config perl-base perl
ssl-cert postgresql-client-common postgresql-common gcc-12-base logrotate cron netbase procps
libc-bin readline-common ucf x11-common python3 python3-minimal python3:any mailcap man-db
shared-mime-info hicolor-icon-theme adwaita-icon-theme dconf-gsettings-backend
gsettings-desktop-schemas libgtk-3-common at-spi2-common chromium-sandbox xdg-utils""".split())
# Library cycles in Debian, cut at the edge that is not needed to load.
CUT = {("libc6", "libgcc-s1")}
WORK = pathlib.Path(os.environ.get("CORPUS_WORK") or tempfile.gettempdir() + "/narfs-corpus")
HERE = pathlib.Path(__file__).resolve().parent


def sh(*cmd, **kw):
    return subprocess.run(cmd, check=True, text=True, stdout=subprocess.PIPE, **kw).stdout


@functools.cache
def index():
    """Package name -> fields of its newest entry in apt's own lists."""
    out = {}
    for entry in sh("apt-cache", "dumpavail").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", entry, re.M))
        if "Filename" in fields:
            out.setdefault(fields["Package"], fields)
    return out


def show(pkg):
    """Fields of a package's index entry; empty for a virtual package."""
    return index().get(pkg, {})


def direct_depends(pkg, fields):
    out = []
    for f in ("Pre-Depends", "Depends"):
        for clause in filter(None, fields.get(f, "").split(",")):
            names = [c.strip().split(" ")[0].split(":")[0] for c in clause.split("|")]
            if any(n in DROP for n in names):
                continue
            name = next((n for n in names if show(n)), None)  # the first that is no virtual package
            if name and (pkg, name) not in CUT:
                out.append(name)
    return out


def resolve(roots):
    """Debian packages reachable from roots: name -> (fields, depends)."""
    known, todo = {}, list(roots)
    while todo:
        p = todo.pop()
        if p not in known:
            fields = show(p)
            if not fields:
                sys.exit(f"{p}: no such Debian package")
            known[p] = (fields, direct_depends(p, fields))
            todo += known[p][1]
    return known


def groups(known):
    """Source package -> {debs, deps}: one store path each, cycles merged."""
    src = {p: f.get("Source", p).split(" ")[0] for p, (f, _) in known.items()}
    deps = {}
    for p, (_, ds) in known.items():
        deps.setdefault(src[p], set()).update(src[d] for d in ds if src[d] != src[p])
    order, state, comp = [], {}, {}

    def strong(v):  # Tarjan
        state[v] = [len(state)] * 2
        stack.append(v)
        on.add(v)
        for w in sorted(deps[v]):
            if w not in state:
                strong(w)
                state[v][1] = min(state[v][1], state[w][1])
            elif w in on:
                state[v][1] = min(state[v][1], state[w][0])
        if state[v][0] == state[v][1]:
            c = []
            while True:
                w = stack.pop()
                on.discard(w)
                c.append(w)
                if w == v:
                    break
            name = min(c)
            for w in c:
                comp[w] = name
            order.append((name, c))

    stack, on = [], set()
    sys.setrecursionlimit(10000)
    for v in sorted(deps):
        if v not in state:
            strong(v)
    out = {}
    for name, members in order:
        debs = sorted(p for p in known if src[p] in members)
        ds = sorted({comp[d] for m in members for d in deps[m]} - {name})
        out[name] = dict(debs=debs, deps=ds, version=known[debs[0]][0]["Version"])
    return out, {p: comp[src[p]] for p in known}


def nix_env():
    return dict(os.environ, NIX_CONFIG="experimental-features = nix-command\nsandbox = false\n"
                "build-users-group =\nsubstituters =\n")


def build(roots):
    WORK.mkdir(parents=True, exist_ok=True)
    debdir = WORK / "debs"
    debdir.mkdir(exist_ok=True)
    known = resolve(roots)
    gs, home = groups(known)
    files = {}
    for p in known:
        want = show(p)["Filename"].split("/")[-1]
        if not (debdir / want).exists():
            sh("apt-get", "download", "-q", p, cwd=debdir, stderr=subprocess.DEVNULL)
        got = [f for f in os.listdir(debdir) if f.startswith(p + "_")]
        files[p] = debdir / sorted(got)[-1]
    plan = {n: dict(version=re.sub(r"[^0-9A-Za-z.+-]", "-", g["version"].split(":")[-1]),
                    deps=g["deps"], debs=[str(files[p]) for p in g["debs"]]) for n, g in gs.items()}
    planfile = WORK / ("plan-" + hashlib.sha256(" ".join(sorted(roots)).encode()).hexdigest()[:12] + ".json")
    planfile.write_text(json.dumps(plan, indent=1, sort_keys=True))
    for r in roots:
        path = sh("nix-build", "--no-out-link", "-Q", str(HERE / "corpus.nix"), "--argstr", "plan", str(planfile),
                  "-A", f'"{home[r]}"', env=nix_env()).strip()
        print(r, path, flush=True)


def cache(a):
    key, pub = a.dir.rstrip("/") + ".key", a.dir.rstrip("/") + ".pub"
    if not os.path.exists(key):
        sh("nix-store", "--generate-binary-cache-key", "corpus-1", key, pub)
    url = f"file://{os.path.abspath(a.dir)}?compression={a.compression}&secret-key={os.path.abspath(key)}"
    if a.listing:
        url += "&write-nar-listing=true"
    if a.parallel:
        url += "&parallel-compression=true"
    subprocess.run(["nix", "copy", "--to", url, *a.paths], check=True, env=nix_env())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="cmd", required=True)
    b = sub.add_parser("build")
    b.add_argument("roots", nargs="+")
    c = sub.add_parser("cache")
    c.add_argument("dir")
    c.add_argument("--compression", default="xz", choices=["xz", "zstd", "none", "bzip2", "br", "gzip", "lz4"])
    c.add_argument("--parallel", action="store_true", help="multi-block xz")
    c.add_argument("--no-listing", dest="listing", action="store_false", help="write no .ls files")
    c.add_argument("paths", nargs="+")
    a = ap.parse_args()
    build(a.roots) if a.cmd == "build" else cache(a)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes a binary cache whose files are packed as Nix 2.8 does not pack them.

  repack.py SOURCE TARGET --as KIND

SOURCE is a cache directory. KIND is one of these packings of the NARs, for
which SOURCE must be of `Compression: none`:

  zstd-seekable  independent frames of 64 KiB with the standard seek table
                 (zstd's contrib/seekable_format) at the end of the file
  zstd-frames    several frames with their content sizes and no table: of
                 256 KiB, as attic serves a chunked NAR, and of 16 MiB for NARs
                 larger than that, as `nix copy` writes them from Nix 2.35 on
  xz-blocks      one xz stream of 256 KiB blocks, with the index at its end

or of the listings, the NARs staying as they are:

  ls-br ls-zstd  (this Nix compresses listings on their way to S3 only)

The narinfos of TARGET name the new file, its hash and its size; what a
signature covers (path, NarHash, NarSize, references) stays, and so does the
signature.

Needs the command-line tools zstd, xz and brotli. Interrupted, it starts afresh.
"""
import argparse, hashlib, os, pathlib, shutil, struct, subprocess, tempfile

KIB, MIB = 1 << 10, 1 << 20
SEEKABLE_FRAME, FRAMES_SMALL, FRAMES_LARGE, XZ_BLOCK = 64 * KIB, 256 * KIB, 16 * MIB, 256 * KIB
# Nix's base 32: no e, o, u, t; written from the last digit to the first.
NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"


def nix32(digest):
    number = int.from_bytes(digest, "little")
    return "".join(NIX32[(number >> (5 * i)) & 31] for i in range((len(digest) * 8 - 1) // 5, -1, -1))


def zstd_frames(nar, size):
    """Packs each `size` bytes of a NAR as a frame of its own: [(packed, length of the unpacked)]."""
    data = nar.read_bytes()
    pieces = [data[at:at + size] for at in range(0, len(data), size)]
    with tempfile.TemporaryDirectory() as tmp:
        # One run of zstd over many files: it knows their sizes, so each frame states its own.
        names = []
        for i, piece in enumerate(pieces):
            names.append(f"{tmp}/{i}")
            pathlib.Path(names[-1]).write_bytes(piece)
        subprocess.run(["zstd", "-q", "-3", "--", *names], check=True)
        return [(pathlib.Path(name + ".zst").read_bytes(), len(piece)) for name, piece in zip(names, pieces)]


def seekable(nar):
    frames = zstd_frames(nar, SEEKABLE_FRAME)
    # All integers little-endian: entries (packed, unpacked), then the footer
    # (number of frames, descriptor without checksums, magic), in a skippable frame.
    entries = b"".join(struct.pack("<II", len(packed), unpacked) for packed, unpacked in frames)
    table = entries + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return b"".join(packed for packed, _ in frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table


def frames(nar):
    size = FRAMES_LARGE if nar.stat().st_size > FRAMES_LARGE else FRAMES_SMALL
    return b"".join(packed for packed, _ in zstd_frames(nar, size))


def xz_blocks(nar):
    return subprocess.run(["xz", "-c", "-1", f"--block-size={XZ_BLOCK}", str(nar)], check=True,
                          stdout=subprocess.PIPE).stdout


NARS = {"zstd-seekable": ("zstd", "zst", seekable), "zstd-frames": ("zstd", "zst", frames),
        "xz-blocks": ("xz", "xz", xz_blocks)}
LISTINGS = {"ls-br": ["brotli", "-c"], "ls-zstd": ["zstd", "-qc"]}


def repack_nars(source, target, kind):
    compression, extension, pack = NARS[kind]
    for listing in source.glob("*.ls"):
        shutil.copy(listing, target)
    for info in source.glob("*.narinfo"):
        fields = [line.split(": ", 1) for line in info.read_text().splitlines()]
        packed = pack(source / dict(fields)["URL"])
        digest = nix32(hashlib.sha256(packed).digest())
        new = {"URL": f"nar/{digest}.nar.{extension}", "Compression": compression,
               "FileHash": f"sha256:{digest}", "FileSize": str(len(packed))}
        (target / new["URL"]).write_bytes(packed)
        (target / info.name).write_text("".join(f"{k}: {new.get(k, v)}\n" for k, v in fields))


def repack_listings(source, target, kind):
    for info in source.glob("*.narinfo"):
        shutil.copy(info, target)
    for nar in (source / "nar").iterdir():
        os.link(nar, target / "nar" / nar.name)
    for listing in source.glob("*.ls"):
        packed = subprocess.run(LISTINGS[kind], input=listing.read_bytes(), check=True, stdout=subprocess.PIPE).stdout
        (target / listing.name).write_bytes(packed)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("source", type=pathlib.Path)
    ap.add_argument("target", type=pathlib.Path)
    ap.add_argument("--as", dest="kind", required=True, choices=[*NARS, *LISTINGS])
    a = ap.parse_args()
    if a.target.exists():
        shutil.rmtree(a.target)
    (a.target / "nar").mkdir(parents=True)
    shutil.copy(a.source / "nix-cache-info", a.target)
    (repack_nars if a.kind in NARS else repack_listings)(a.source, a.target, a.kind)


if __name__ == "__main__":
    main()

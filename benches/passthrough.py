#!/usr/bin/env python3
"""A FUSE server that shows a directory and has the kernel read its files itself (FUSE passthrough).

  passthrough.py SOURCE MOUNTPOINT

As little as `native-modes` needs: read-only, names and attributes valid for good, directories opened without a
request as narfs has it, one backing file for each file that was ever opened. Needs root and Linux 6.9.
"""
import ctypes, fcntl, os, stat, struct, sys

LOOKUP, FORGET, GETATTR, READLINK, OPEN, STATFS, RELEASE, INIT = 1, 2, 3, 5, 14, 17, 18, 26
READDIR, INTERRUPT, BATCH_FORGET = 28, 36, 42
ENOENT, ENOSYS, EINVAL = 2, 38, 22
# ASYNC_READ, PARALLEL_DIROPS, MAX_PAGES, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT, INIT_EXT; FUSE_PASSTHROUGH is bit 37.
FLAGS, FLAGS2 = 1 << 0 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 30, 1 << (37 - 32)
FOPEN_PASSTHROUGH = 1 << 7
# _IOW(229, 1, struct fuse_backing_map)
FUSE_DEV_IOC_BACKING_OPEN = 1 << 30 | 16 << 16 | 229 << 8 | 1
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
FOR_GOOD = 1 << 40


class Server:
    def __init__(self, source, mountpoint):
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.paths = {1: source}
        self.numbers = {source: 1}
        self.backing = {}
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"passthrough", mountpoint.encode(), b"fuse.passthrough", MS_RDONLY | MS_NOSUID | MS_NODEV, options.encode()):
            sys.exit(f"passthrough.py: mount at {mountpoint}: {os.strerror(ctypes.get_errno())}")

    def number(self, path):
        if path not in self.numbers:
            self.numbers[path] = len(self.numbers) + 1
            self.paths[self.numbers[path]] = path
        return self.numbers[path]

    def attributes(self, path):
        s = os.lstat(path)
        return struct.pack("<6Q10I", self.number(path), s.st_size, s.st_blocks, 1, 1, 1, 0, 0, 0, s.st_mode, s.st_nlink,
                           0, 0, 0, 4096, 0)

    def lookup(self, parent, body):
        path = f"{self.paths[parent]}/{os.fsdecode(body[:-1])}"
        try:
            return struct.pack("<4Q2I", self.number(path), 0, FOR_GOOD, FOR_GOOD, 0, 0) + self.attributes(path)
        except FileNotFoundError:
            return struct.pack("<4Q2I", 0, 0, FOR_GOOD, 0, 0, 0) + bytes(88)

    def read_dir(self, path, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        for at, entry in enumerate(sorted(os.scandir(path), key=lambda e: e.name)):
            if at < offset:
                continue
            name = os.fsencode(entry.name)
            kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) >> 12
            record = struct.pack("<QQII", self.number(entry.path), at + 1, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if len(out) + len(record) > size:
                break
            out += record
        return out

    def open(self, node):
        if node not in self.backing:
            file = os.open(self.paths[node], os.O_RDONLY | os.O_CLOEXEC)
            self.backing[node] = fcntl.ioctl(self.device, FUSE_DEV_IOC_BACKING_OPEN, bytearray(struct.pack("<iIQ", file, 0, 0)))
            os.close(file)
        return struct.pack("<QIi", 0, FOPEN_PASSTHROUGH, self.backing[node])

    def answer(self, code, node, body):
        path = self.paths.get(node)
        if code == INIT:
            _, minor, ahead = struct.unpack_from("<3I", body)
            return struct.pack("<4I2H2I2H2I", 7, min(minor, 40), ahead, FLAGS, 64, 48, 1 << 20, 1, 256, 0, FLAGS2, 1) + bytes(24)
        if code == LOOKUP:
            return self.lookup(node, body)
        if code == GETATTR:
            return struct.pack("<Q2I", FOR_GOOD, 0, 0) + self.attributes(path)
        if code == READLINK:
            return os.fsencode(os.readlink(path))
        if code == OPEN:
            return self.open(node)
        if code == READDIR:
            return self.read_dir(path, body)
        if code == STATFS:
            return struct.pack("<5Q4I", 1 << 20, 0, 0, 1 << 20, 0, 4096, 255, 4096, 0) + bytes(24)
        if code == RELEASE:
            return b""
        raise OSError(ENOSYS, os.strerror(ENOSYS))

    def serve(self):
        while True:
            try:
                request = os.read(self.device, (1 << 20) + 4096)
            except FileNotFoundError:
                continue  # interrupted before it was read
            except OSError:
                return  # unmounted
            _, code, unique, node = struct.unpack_from("<IIQQ", request)
            if code in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                data, error = self.answer(code, node, request[40:]), 0
            except OSError as e:
                data, error = b"", e.errno or EINVAL
            os.write(self.device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)


if __name__ == "__main__":
    Server(*sys.argv[1:3]).serve()

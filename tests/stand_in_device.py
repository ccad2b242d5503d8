"""A stand-in for an Android device: the part of adbd that `adb` needs, over TCP, with its shell in a sandbox folder. Not a phone: it runs shell
commands on this machine with `/data/local/tmp` and `/sys` of its own, and its `getprop` says so.

The protocol is AOSP's packages/modules/adb: protocol.txt (messages), SERVICES.TXT, SYNC.TXT (files) and shell_protocol.h (shell,v2).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mcompress.errors import DeviceError
from mcompress.targets.connect.adb import find_client

CNXN, OPEN, OKAY, CLSE, WRTE = b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE"
VERSION, MOST_BYTES = 0x01000001, 256 * 1024
BANNER = b"device::ro.product.name=standin;ro.product.model=StandIn;ro.product.device=standin;features=shell_v2,cmd,stat_v2\0"
STDOUT, STDERR, EXIT = 1, 2, 3
DATA_BYTES = 64 * 1024


class StandInDevice:
    """Listens on a free port of the loopback interface until `unplug`."""

    def __init__(self, root: Path) -> None:
        """`root` becomes the device's file system: `data/local/tmp`, `sys` and `bin`."""
        self.root = root
        self.bin, self.tmp, self.sys = root / "bin", root / "data/local/tmp", root / "sys"
        for folder in (self.bin, self.tmp, self.sys):
            folder.mkdir(parents=True, exist_ok=True)
        self.commands: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._peers: list[socket.socket] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._unplugged = False
        threading.Thread(target=self._accept, daemon=True).start()

    def add_program(self, name: str, script: str) -> None:
        """A shell script on the device's PATH."""
        (self.bin / name).write_text("#!/bin/sh\n" + script, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def unplug(self) -> None:
        """Close everything at once, as a pulled cable does."""
        self._unplugged = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)

    def translated(self, path: str) -> str:
        """A path of the device -> a path of this machine."""
        for name in ("/data/local/tmp", "/sys/"):
            path = path.replace(f"{self.root}{name}", name).replace(name, f"{self.root}{name}")
        return path

    def run(self, command: str) -> subprocess.Popen[bytes]:
        """A shell command of the device, in its own session so that unplugging ends all of it."""
        self.commands.append(command)
        process = subprocess.Popen(
            ["sh", "-c", self.translated(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.root,
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.root)},
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def _accept(self) -> None:
        while not self._unplugged:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages at once, as USB sends them
            self._peers.append(peer)
            threading.Thread(target=_Transport(self, peer).serve, daemon=True).start()


class _Stream:
    """One open service: what the host wrote to it, and how to write to the host."""

    def __init__(self, transport: _Transport, local: int, remote: int) -> None:
        self._transport, self.local, self.remote = transport, local, remote
        self._came, self._closed, self._ready = bytearray(), False, threading.Semaphore(1)
        self._changed = threading.Condition()

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._came += data
            self._changed.notify_all()

    def acknowledge(self) -> None:
        self._ready.release()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._ready.release()

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; fewer when the host closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._came) >= count)
            data = bytes(self._came[:count])
            del self._came[:count]
            return data

    def write(self, data: bytes) -> None:
        """One message at a time, each after the host has taken the last."""
        for start in range(0, len(data), DATA_BYTES):
            self._ready.acquire()
            if self._closed:
                return
            self._transport.send(WRTE, self.local, self.remote, data[start : start + DATA_BYTES])

    def finish(self) -> None:
        self._ready.acquire()
        self._transport.send(CLSE, self.local, self.remote)


class _Transport:
    """One connection of an adb server."""

    def __init__(self, device: StandInDevice, peer: socket.socket) -> None:
        self._device, self._peer, self._lock = device, peer, threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        header = struct.pack("<IIIIII", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self._lock, contextlib.suppress(OSError):
            self._peer.sendall(header + data)

    def serve(self) -> None:
        try:
            while True:
                number, first, second, length, _, _ = struct.unpack("<IIIIII", self._exactly(24))
                self._handle(struct.pack("<I", number), first, second, self._exactly(length))
        except (OSError, EOFError):
            for stream in self._streams.values():
                stream.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._peer.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _handle(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == CNXN:
            self.send(CNXN, VERSION, MOST_BYTES, BANNER)
        elif command == OPEN:
            stream = _Stream(self, first, first)  # the host's number serves as ours as well
            self._streams[first] = stream
            threading.Thread(target=self._service, args=(stream, data.rstrip(b"\0").decode()), daemon=True).start()
        elif second in self._streams:
            stream = self._streams[second]
            if command == WRTE:
                stream.feed(data)
                self.send(OKAY, stream.local, stream.remote)
            elif command == OKAY:
                stream.acknowledge()
            elif command == CLSE:
                stream.close()
                del self._streams[second]

    def _service(self, stream: _Stream, name: str) -> None:
        kind, _, rest = name.partition(":")
        services: dict[str, Callable[[_Stream, str], None]] = {"shell": self._shell, "sync": self._sync}
        found = services.get(kind.partition(",")[0])
        if found is None or (found == self._shell and ",v2" not in f"{kind},"):
            self.send(CLSE, 0, stream.remote)
            return
        self.send(OKAY, stream.local, stream.remote)
        found(stream, rest)
        stream.finish()

    def _shell(self, stream: _Stream, command: str) -> None:
        process = self._device.run(command)
        lock = threading.Lock()

        def forward(number: int, pipe: object) -> None:
            while part := os.read(pipe.fileno(), DATA_BYTES // 2):  # type: ignore[attr-defined]
                with lock:
                    stream.write(struct.pack("<BI", number, len(part)) + part)

        def take_input() -> None:
            while len(header := stream.read(5)) == 5:
                number, length = struct.unpack("<BI", header)
                data = stream.read(length)
                with contextlib.suppress(BrokenPipeError, ValueError, OSError):
                    if process.stdin is not None and number == 0:
                        process.stdin.write(data)
                        process.stdin.flush()
                    elif process.stdin is not None and number == EXIT:  # kIdCloseStdin has the same number
                        process.stdin.close()

        threading.Thread(target=take_input, daemon=True).start()
        readers = [threading.Thread(target=forward, args=pair) for pair in ((STDOUT, process.stdout), (STDERR, process.stderr))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        stream.write(struct.pack("<BIB", EXIT, 1, code & 0xFF))

    def _sync(self, stream: _Stream, _rest: str) -> None:
        while len(header := stream.read(8)) == 8:
            request, length = header[:4], struct.unpack("<I", header[4:])[0]
            if request == b"QUIT":
                return
            path = Path(self._device.translated(stream.read(length).decode())) if request != b"SEND" else None
            if request == b"SEND":
                self._take(stream, stream.read(length).decode())
            elif request == b"STAT" and path is not None:
                facts = path.stat() if path.exists() else None
                stream.write(
                    b"STAT" + struct.pack("<III", facts.st_mode if facts else 0, facts.st_size if facts else 0, int(facts.st_mtime) if facts else 0)
                )
            elif request in (b"STA2", b"LST2") and path is not None:
                facts = path.stat() if path.exists() else None
                numbers = (facts.st_dev, facts.st_ino, facts.st_mode, 1, 0, 0, facts.st_size, 0, int(facts.st_mtime), 0) if facts else (0,) * 10
                stream.write(request + struct.pack("<IQQIIIIQqqq", 0 if facts else 2, *numbers))
            elif request == b"RECV" and path is not None:
                self._give(stream, path)
            elif request == b"LIST" and path is not None:
                stream.write(b"DONE" + struct.pack("<IIII", 0, 0, 0, 0))
            else:
                stream.write(b"FAIL" + struct.pack("<I", 7) + b"unknown")

    def _take(self, stream: _Stream, named: str) -> None:
        name, _, mode = named.rpartition(",")
        path = Path(self._device.translated(name))
        problem = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.open("wb")
        except OSError as error:
            problem, target = str(error), Path(os.devnull).open("wb")  # noqa: SIM115
        with target:
            while True:
                header = stream.read(8)
                if len(header) < 8:
                    return
                kind, length = header[:4], struct.unpack("<I", header[4:])[0]
                if kind == b"DONE":
                    break
                target.write(stream.read(length))
        if problem:
            stream.write(b"FAIL" + struct.pack("<I", len(problem)) + problem.encode())
            return
        path.chmod(int(mode) & 0o777)
        stream.write(b"OKAY" + struct.pack("<I", 0))

    def _give(self, stream: _Stream, path: Path) -> None:
        if not path.is_file():
            problem = b"No such file or directory"
            stream.write(b"FAIL" + struct.pack("<I", len(problem)) + problem)
            return
        data = path.read_bytes()
        for start in range(0, len(data), DATA_BYTES - 8):
            part = data[start : start + DATA_BYTES - 8]
            stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
        stream.write(b"DONE" + struct.pack("<I", 0))


def adb_client() -> str | None:
    """The real client, if there is one: on PATH, or in adbutils' wheel."""
    try:
        return find_client()
    except DeviceError:
        return None


needs_adb = pytest.mark.skipif(adb_client() is None, reason="there is no adb client here (pip install adbutils, or Debian: apt install adb)")


def adb(*arguments: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """What the real client says."""
    command = [adb_client() or "", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=30, env=environment).stdout


def attach(stand_in: StandInDevice) -> None:
    """`adb connect`, until the server calls it a device."""
    adb("connect", f"127.0.0.1:{stand_in.port}")
    until = time.monotonic() + 10
    while "\tdevice" not in adb("devices"):
        assert time.monotonic() < until, "adb does not accept the stand-in device"
        time.sleep(0.02)

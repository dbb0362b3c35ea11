"""Mount a small, read-only or failing file system that other processes do not see.

A process in its own mount namespace mounts it and stays; what it sees is reached through
/proc/PID/root. When it ends, the mount is gone, and the loop device with it. Without root a user
namespace stands in, where the kernel grants one; there are no loop devices then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32): what ext4 and XFS call EXT4_IOC_SHUTDOWN and FS_IOC_GOINGDOWN."""
_WITHOUT_THE_LOG = 2
"""What was not synced by then is lost, as in a power cut."""


@contextmanager
def tiny_disk(directory: Path, size_kib: int) -> Iterator[Path]:
    """Yield the path of an empty tmpfs of `size_kib`, mounted over `directory`."""
    with _mounted('mount -t tmpfs -o "size=$2k" none "$1"', directory, str(size_kib)) as holder:
        yield holder.path


@contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """Yield a path by which `directory` can be read and not written, even by root."""
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    with _mounted(script, directory) as holder:
        yield holder.path


@contextmanager
def ext4(directory: Path, *, size_mib: int = 32, inodes: int = 4096) -> Iterator[Disk]:
    """Yield an ext4 that turns read-only at its first error, as most do, on a loop device."""
    make = ("mkfs.ext4", "-q", "-m", "0", "-N", str(inodes))
    script = 'mount -t ext4 -o loop,errors=remount-ro "$2" "$1"'
    with _formatted(directory, make, size_mib, script) as disk:
        yield disk


@contextmanager
def btrfs_quota(directory: Path, *, limit_mib: int) -> Iterator[Disk]:
    """Yield a btrfs whose subvolume `here` has a quota."""
    script = (
        'mount -t btrfs -o loop "$2" "$1" && btrfs quota enable "$1" && '
        'btrfs subvolume create "$1/here" >&2 && btrfs qgroup limit "$3M" "$1/here"'
    )
    with _formatted(directory, ("mkfs.btrfs", "-q"), 128, script, str(limit_mib)) as disk:
        disk.path /= "here"
        yield disk


@contextmanager
def _formatted(
    directory: Path, make: Sequence[str], size_mib: int, script: str, *words: str
) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which(make[0]) is None:
        pytest.skip(f"a loop device takes root, and {make[0]}")
    directory.mkdir(parents=True, exist_ok=True)
    image = directory.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([*make, image], check=True, capture_output=True)
    with _mounted(script, directory, str(image), *words) as holder:
        yield Disk(holder, image, script)


class Holder:
    """The process that holds a mount in its namespace."""

    def __init__(self, pid: int, directory: Path) -> None:
        self.pid = pid
        self.directory = directory
        self.path = Path(f"/proc/{pid}/root{directory}")

    def do(self, script: str, *words: str) -> None:
        """Run a shell script in the namespace; "$1" is the directory."""
        shell = ["sh", "-c", script, "sh", str(self.directory), *words]
        subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *shell], check=True, capture_output=True
        )


class Disk:
    """A file system on its own loop device, and the ways in which it can fail."""

    def __init__(self, holder: Holder, image: Path, script: str) -> None:
        self.path = holder.path
        self._holder = holder
        self._image = image
        self._mount = script

    @property
    def ballast(self) -> Path:
        """What `fill` wrote, or a directory of what `use_up_inodes` made."""
        return self.path / "ballast"

    def fill(self) -> int:
        """Write until there is no room; return the errno that said so."""
        return fill_up(self.ballast)

    def use_up_inodes(self) -> int:
        """Make empty files until no more can be made; return the errno that said so."""
        self.ballast.mkdir()
        try:
            for number in range(1_000_000):
                (self.ballast / str(number)).touch()
        except OSError as error:
            return error.errno or 0
        raise AssertionError("the disk has no end of inodes")

    def relieve(self) -> None:
        """Remove the ballast."""
        if self.ballast.is_dir():
            shutil.rmtree(self.ballast)
        else:
            self.ballast.unlink(missing_ok=True)

    def meet_an_error(self) -> None:
        """Let ext4 find an error: it turns read-only while files are open."""
        Path(f"/sys/fs/ext4/{self._device()}/trigger_fs_error").write_text("1")

    def break_down(self) -> None:
        """Lose the disk: every access gets EIO, and what was not synced is gone."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
        finally:
            os.close(fd)

    def repair(self) -> None:
        """Unmount, check and mount it again; no file may be open."""
        self._holder.do('umount "$1"')
        check = subprocess.run(["e2fsck", "-fy", self._image], capture_output=True, text=True)
        assert check.returncode <= 1, check.stdout
        self._holder.do(self._mount, str(self._image))

    def _device(self) -> str:
        number = os.stat(self.path).st_dev
        return os.path.basename(
            os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        )


def fill_up(ballast: Path) -> int:
    """Write a file until there is no room; return the errno that said so."""
    said = 0
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 512):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                said = error.errno or 0
                assert said in (errno.ENOSPC, errno.EDQUOT), error
    return said


@contextmanager
def _mounted(script: str, directory: Path, *words: str) -> Iterator[Holder]:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) here to mount something privately")
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    shell = [
        "sh",
        "-c",
        f"{script} && echo mounted && exec sleep 600",
        "sh",
        str(directory),
        *words,
    ]
    holder = subprocess.Popen(
        [*unshare, *shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"nothing can be mounted privately here: {holder.stderr.read().strip()}")
        yield Holder(holder.pid, directory)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()

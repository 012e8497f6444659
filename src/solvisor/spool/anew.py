"""What an earlier life did not finish, written anew.

Theory: an fsync that fails leaves pages that count as clean although they never reached the disk, and the next fsync
says that all is well; written again in the same place they are lost all the same (ext4 has taken the blocks for
written). So what an earlier life did not finish, which may have ended for that, is not believed: copies replace it.
(A file system that loses some of its own books turns read-only, and is read from the disk once it is mounted anew.)

Rules: one file after the other, so that it takes no more room than the largest; half a copy is never left. This module
must not know whose files they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from . import files

ANEW = "anew.tmp"
"""A copy on its way to replace a file, in the folder of its job."""


def write_anew(job_fd: int) -> None:
    """Replace every file beneath an open folder of ours by a copy of it. Raises ``OSError``, ``NotDurable``.

    One after the other, so that it takes no more room than the largest; without that room nothing is written.
    """
    files.discard(ANEW, job_fd)
    rooms = (files.room_of(entry.stat) for entry in files.walk(job_fd, ours=True) if entry.is_file)
    _check_room(max(rooms, default=0), job_fd)
    try:
        for entry in files.walk(job_fd, ours=True):
            if entry.is_file:
                _copy_anew(entry, job_fd)
    except Exception:
        with contextlib.suppress(OSError):  # a full disk is not to be kept full by half a copy
            files.discard(ANEW, job_fd)
        raise


def _check_room(wanted: int, folder_fd: int) -> None:
    if sys.platform != "win32":
        disk = os.fstatvfs(folder_fd)
        if disk.f_bavail * disk.f_frsize < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy_anew(entry: files.Entry, job_fd: int) -> None:
    source_fd = files.open_file_of_ours(entry.name, entry.folder_fd)
    try:
        with files.writing(ANEW):
            fd = files.new_file(ANEW, job_fd)
        try:
            sparse = files.room_of(entry.stat) < entry.stat.st_size
            while block := os.read(source_fd, files.BLOCK):  # not shared as copy_file may: these blocks are in doubt
                with files.writing(ANEW):
                    if sparse and not block.strip(b"\0"):
                        os.lseek(fd, len(block), os.SEEK_CUR)  # what is a hole stays one
                    else:
                        files.write_all(fd, block)
            with files.writing(ANEW):
                os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
                os.chmod(fd, stat.S_IMODE(entry.stat.st_mode))
                os.utime(fd, ns=(entry.stat.st_atime_ns, entry.stat.st_mtime_ns))
            with files.Syncs() as syncs:  # what it replaces may be all there is on the disk
                syncs.add_open(fd, ANEW)
        finally:
            os.close(fd)
    finally:
        os.close(source_fd)
    with files.writing(entry.name):
        os.rename(ANEW, entry.name, src_dir_fd=job_fd, dst_dir_fd=entry.folder_fd)

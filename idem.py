#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "Pillow>=11.0",
#     "numpy>=2.0",
#     "pillow-heif>=1.8",
#     "tqdm>=4.66",
#     "filelock>=3.15",
#     "imageio-ffmpeg>=0.5.1",
#     "Flask>=3.0",
# ]
# ///
"""Find copies of the same photo or video in a library: other resolution, compression or format.

    python idem.py ~/Photos

To be read from top to bottom, as the data flows. Each section uses only those above it; inside one, what it is for
comes first:

    scan                       a folder             -> MediaFile
    cache                      rows of a CSV file   -> fingerprints
    workers                    tasks                -> results, in processes of their own
    images, videos, checksums  MediaFile            -> fingerprint
    match                      fingerprints         -> Group
    closer look                groups, pairs        -> files that are whole; verdicts: copy or not, and why
    decide                     Group (and Choice)   -> Decision
    find                       Run                  -> Findings: all of the above, in one function
    act                        Decision             -> moves, journal, undo
    session                    groups               -> what was decided, done and undone about them
    report and terminal        Findings             -> text, JSON, questions
    review                     Findings             -> a page in the browser
    command line               arguments            -> exit status

Glossary, with a sample value of each:

    perceptual hash   64 bits that change little when a picture is re-encoded      0x9f3a60c5d21e7b48
    Hamming distance  in how many bits two hashes differ                           3
    signature         the picture in 32x32 luma and 2 times 16x16 chroma cells     1536 bytes
    fingerprint       hashes, signature and dimensions of one file                 ImageFingerprint(...)
    frames            8 pictures of a video, at the middle of 8 equal parts        VideoFingerprint(...)
    checksum          SHA-256 over size and content, see `checksum_of`             Checksum(...)
    threshold         largest distance, in bits, at which pictures are grouped     0
    replica           one file of a group                                          Replica(file, fingerprint)
    group             the best replica and all that are within the threshold of it Group(kind, replicas, ...)
    verdict           what a look at two replicas side by side has found           Verdict(copy, reason, box)
    keeper            the replica that stays: the best one, see `best_first`,
                      unless files are equal or a person chose another             vacation/beach.jpg
    choice            what a person wants of a group, by numbers of its replicas   Choice(keep, named, placed)
    decision          what is to become of a group                                 Decision(keeper, target, trash, ...)
    companion         a file that is nothing without its photo: edits, metadata    IMG_1.xmp
    journal           every move, written down before and after it                 idem_journal.jsonl

The promise: idem sends nothing anywhere and deletes nothing; its page is served to this computer alone. Reporting
writes only to its own cache folder; what is decided in other modes moves files within the library, never over
another, and can be undone. A picture wrongly taken for a copy is worse than a copy missed, so every doubt is decided
for "not a copy".
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` is made of: it takes no time to import
import os

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # The imports take a while, and what is broken off while it is imported would speak of a fault of its own.
    _signal.signal(_signal.SIGINT, lambda _number, _frame: os._exit(130))

import argparse
import base64
import ctypes
import errno
import functools
import gc
import hashlib
import heapq
import hmac
import importlib.util
import io
import json
import math
import multiprocessing
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
import webbrowser
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as first_done
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from itertools import chain, combinations, count, islice, pairwise, product
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    BinaryIO,
    ClassVar,
    Concatenate,
    Generic,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TextIO,
    TypeAlias,
    TypeVar,
    cast,
)
from urllib.parse import parse_qsl, quote, unquote, urlencode

try:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads would not survive a fork
    import numpy as np
    from PIL import ExifTags, Image, ImageChops, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError
except ImportError as error:
    print(f"idem: {error}: python -m pip install numpy Pillow", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:  # imported where they are used: most runs need none of them
    from flask import Flask, Request, Response
    from tqdm import tqdm
    from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Types and helpers: what several sections share
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"}
)
IMAGE_SUFFIXES |= HEIF_SUFFIXES
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".wmv", ".webm", ".flv", ".3gp", ".m4v", ".mts", ".m2ts"})
VIDEO_SUFFIXES |= {".ts", ".mpg", ".mpeg", ".vob", ".ogv"}
HERE = os.path.dirname(os.path.abspath(__file__))
TRASH_FOLDER = "__duplicate_files_trash"
CACHE_FOLDER = "__databases"
READ_BLOCK = 1 << 20  # bytes


class IdemError(Exception):
    """What could not be done, to which path, and why: one line for the user."""

    status = 2


class OutputLost(Exception):  # noqa: N818 (it may be no error)
    """Standard output takes no more; the text says why, and nothing if its reader has left."""

    status = 1


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The user stopped the run; the text says what was kept."""

    status = 130


class MediaFile(NamedTuple):  # which are made and compared several times as fast as dataclasses
    """A file as the scan saw it. The path is absolute; names that are not UTF-8 carry surrogates."""

    path: str
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that was left out or not moved, and why."""

    path: str
    reason: str
    lasting: bool = False  # it comes of the file's own bytes, so it stays until they change


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a photo or video says of itself beside its picture; empty, 0 or False for what it does not say."""

    # Capture time: `2021-07-05T10:00:00`, then `.25` and `+02:00` where fractions and offset are stated. A date without
    # its day or hour counts as the start of what it names.
    taken: str = ""
    make: str = ""  # of the camera
    model: str = ""
    serial: str = ""
    software: str = ""
    edited: bool = False  # a program wrote it after the camera had
    place: bool = False
    rating: int = 0  # stars, 1 to 5; -1 for what was rejected
    keywords: bool = False
    caption: bool = False
    bits: int = 0  # per channel, as stored; of a palette's colours
    colours: str = ""  # "grey", "palette" or "colour"
    lossless: bool = False
    pages: int = 0  # pictures of their own, no previews, gain maps, depth maps; 2 stands for any number above 1
    gain_map: bool = False  # for HDR screens
    motion: bool = False  # a film inside the file
    live_id: str = ""  # the content identifier that still and movie of a Live Photo share
    words: str = ""  # CRC-32 of all keywords, captions and names of owners, in hex
    stated_side: int = 0  # px; the longer side that the picture had when its metadata were written
    jfif: bool = False  # it begins as JPEGs of programs do, and hardly any of a camera
    codec: str = ""  # of a video, as ffmpeg calls it
    sound: bool = False


# ── sizes, names, messages ──


def readable_size(size: int) -> str:
    """A byte count in decimal units as file managers show it: 3.2 MB is 3,200,000 bytes."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("KB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.95 or unit == "PB":
            break
    return f"{value:.0f} {unit}" if unit == "KB" and value >= 9.95 else f"{value:.1f} {unit}"


def printable(name: str) -> str:
    """The name with everything escaped that could move the cursor, hide, reorder text or start a new line."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(map(printable_character, name))


def printable_character(character: str) -> str:
    """The character, or an escape for control, format, surrogate and line-separating ones."""
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def say(message: str) -> None:
    """One line on stderr. Escape names in it with `printable`."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, and nothing else could be told
        discard(sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """Print it on stdout now. OutputLost when nobody takes it; what comes after that is printed nowhere."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        discard(sys.stdout)
        read = not isinstance(error, BrokenPipeError)
        raise OutputLost(f"cannot write the output: {reason_of(error)}" if read else "") from None


def discard(stream: TextIO) -> None:
    """Send what the stream still holds, and all to come, nowhere: Python would fail on it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# What Python raises when a decoder stumbles over what it reads: their texts speak of its code, not of the file.
STUMBLES = LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError, UnicodeError, struct.error
NO_REASON = re.compile(r"[\W\d_]*|decoder error -?\d+|could not create decoder object")


def reason_of(error: BaseException) -> str:
    """Why, in one short line of words, without the path that the sentence around it names."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r" \(\d+ bytes not processed\)", "", text)  # Pillow's own count, of no use to anybody
    text = printable(" ".join(text.split()))[:200]
    if isinstance(error, STUMBLES) or NO_REASON.fullmatch(text):
        return f"not understood by the decoder ({text})" if text else "not understood by the decoder"
    return text


def listed(words: Sequence[str]) -> str:
    """`date`, `date and place`, `date, place and rating`."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def readable_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `5 h`, `2 days`."""
    for unit, length in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}{'s' * (unit == 'day')}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.01):.2g} s"


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`, with thousands separated."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# ── files and folders ──


def media_file(path: str, status: os.stat_result) -> MediaFile:
    """The file with this status."""
    return MediaFile(
        path=path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        device=status.st_dev,
        inode=status.st_ino,
    )


def as_it_is(path: str) -> MediaFile:
    """The file at this path now. OSError when there is none; ValueError when it is not a regular file."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    return media_file(path, status)


def kind_of(file: MediaFile) -> str:
    """`image` or `video`, by the file's suffix."""
    return "video" if end_of(file.path) in VIDEO_SUFFIXES else "image"


def end_of(name: str) -> str:
    """The name from its last dot, in small letters: the suffix if it is one of a set, found in little time."""
    return name[name.rfind(".") :].lower()


def suffix_of(path: str) -> str:
    """`.jpg` of `beach.jpg`."""
    return os.path.splitext(path)[1]


def stem_of(path: str) -> str:
    """The file's name without its suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def folded(name: str) -> str:
    """The name as the least exact file system compares it: whatever its capitals and the form of its accents."""
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()


def is_inside(path: str, root: str) -> bool:
    """Whether the path lies below the root; both absolute and normalised."""
    return path.startswith(root if root.endswith(os.sep) else root + os.sep)


def relative(path: str, root: str) -> str:
    """The path below the root, empty for the root itself; the path as it is when it is not inside."""
    if path == root:
        return ""
    return path[len(root) :].lstrip(os.sep) if is_inside(path, root) else path


@contextmanager
def opened_unchanged(file: MediaFile) -> Iterator[BinaryIO]:
    """The file, opened to read. ValueError unless it is, before and after, still the one that was scanned."""
    with open(file.path, "rb") as stream:
        check_unchanged(file, stream)
        yield stream
        check_unchanged(file, stream)


def check_unchanged(file: MediaFile, stream: BinaryIO) -> None:
    """ValueError unless the open file is the one that was scanned: another may have taken its name, size and time."""
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or media_file(file.path, status)._replace(ctime_ns=file.ctime_ns) != file:
        raise ValueError("changed while it was scanned")


def digest_of(stream: BinaryIO) -> str:
    """SHA-256 of the whole file, in hex."""
    stream.seek(0)
    digest = hashlib.sha256()
    while block := stream.read(READ_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def is_same_content(one: str, other: str) -> bool:
    """Whether two files have the same bytes. Both are read whole."""
    with open(one, "rb") as stream, open(other, "rb") as other_stream:
        return digest_of(stream) == digest_of(other_stream)


def sum_of(stream: BinaryIO) -> str:
    """CRC-32 of the whole file, in hex."""
    stream.seek(0)
    crc = 0
    while block := stream.read(READ_BLOCK):
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def opened_own(path: str, mode: str) -> BinaryIO:
    """One of idem's own files, open to read (`rb`), to append (`ab`) or to write anew (`wb`).

    Neither a link nor another name of some file is followed, because a library may come with one. OSError for these,
    and for whatever else is no plain file. The folder is the caller's to check.
    """
    flags = {"rb": os.O_RDONLY, "ab": os.O_RDWR | os.O_CREAT | os.O_APPEND, "wb": os.O_RDWR | os.O_CREAT}[mode]
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # without blocking: it may be a FIFO
        flags |= getattr(os, name, 0)
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link")
    descriptor = os.open(path, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EINVAL, "it is another name of some file, or no file")
        if mode == "wb":
            os.ftruncate(descriptor, 0)
        return cast(BinaryIO, open(descriptor, mode if mode == "rb" else mode + "+"))
    except OSError:
        os.close(descriptor)
        raise


def opened_for_lines(path: str) -> BinaryIO:
    """One of idem's own files, open to append, at the start of a line: the last one may be torn."""
    stream = opened_own(path, "ab")
    if stream.seek(0, os.SEEK_END):
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.write(b"\n")
    return stream


def can_import(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# ── Ctrl-C ──

# What ends a run: Ctrl-C, kill, and a terminal that is closed.
STOP_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits: one that comes while a process is being forked would end the child with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # which may raise one that has just come
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ── one run at a time ──

LOCK_FILE = "idem.lock"
OWN_LOCK_FILES: set[str] = set()  # that this process holds, or would if it could
# A folder that cannot be written at all: nothing in it can be moved or saved, so that it needs no lock.
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EFBIG}
NO_LOCK_FILE = {errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO}  # what `opened_own` says of links, pipes, folders


def folders_above(folder: str, root: str = "") -> list[str]:
    """All folders above this one, the uppermost first; only those below the root, if one is given."""
    above: list[str] = []
    while folder != (folder := os.path.dirname(folder)) and (not root or is_inside(folder, root)):
        above.insert(0, folder)
    return above


LOCK_PATIENCE = 0.5  # s; a run that was killed holds its locks until its workers are gone, too


@contextmanager
def folder_lock(folder: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder alone, or `shared`: with all who do not want it alone. ValueError when another run prevents it.

    The folder itself is locked: links and mounts lead to the same lock, nothing is left on the disk, and a killed run
    holds nothing. Where folders cannot be locked (on Windows, on some network drives), this does nothing.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, FileNotFoundError, NotADirectoryError, PermissionError):
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    part = "" if shared else ", or a folder in it"
                    raise ValueError(f"another run of idem is using {printable(folder)}{part}") from None
                time.sleep(LOCK_PATIENCE / 20)
                continue
            except OSError:  # this file system has no such locks
                pass
            break
        yield
    finally:
        with suppress(OSError):  # by name: a process forked meanwhile has the descriptor, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def run_lock(folder: str) -> Iterator[None]:
    """Keep other runs away from a folder of caches by a lock file in it.

    IdemError when one is at work in it, or when what is there instead of the lock file is a link or no file. A folder
    that cannot be written is used without a lock: nothing in it can be moved or saved.
    """
    from filelock import FileLock, Timeout

    path = os.path.join(folder, LOCK_FILE)
    with ExitStack() as held:
        OWN_LOCK_FILES.add(path)
        held.callback(OWN_LOCK_FILES.discard, path)
        try:
            os.makedirs(folder, exist_ok=True)
            if os.path.lexists(path):  # a lock may follow links, and empty what it finds
                opened_own(path, "rb").close()
            held.enter_context(FileLock(path, timeout=LOCK_PATIENCE))
        except Timeout:
            raise IdemError(f"another run of idem is using {printable(folder)}") from None
        except (OSError, NotImplementedError) as error:
            number = error.errno if isinstance(error, OSError) else errno.ENOSYS
            if number in NO_LOCK_FILE:
                raise IdemError(f"cannot lock {printable(path)}: {reason_of(error)}") from None
            if number not in UNWRITABLE or os.access(folder, os.W_OK):
                warning = f"warning: cannot lock {printable(folder)}: {reason_of(error)}"
                say(f"{warning}; do not run idem on it twice at once")
        yield


def check_unused(folder: str) -> None:
    """IdemError when another run holds the lock file of this folder of caches."""
    path = os.path.join(folder, LOCK_FILE)
    if path not in OWN_LOCK_FILES and os.path.isfile(path):
        with run_lock(folder):
            pass


@contextmanager
def folders_held(root: str, paths: Iterable[str]) -> Iterator[None]:
    """While files at these paths of the library are checked and moved, no other run does that in their folders.

    Two runs can meet in a folder although neither library is inside the other: by a bind mount. ValueError when
    another run is using one of the folders, OSError when they are too many to be held.
    """
    folders = {os.path.dirname(path) for path in paths} - {root}  # which the run holds already
    above = {each for folder in folders for each in folders_above(folder, root)}
    with ExitStack() as held:
        for folder in sorted(folders | above):
            held.enter_context(folder_lock(folder, shared=folder not in folders))
        yield


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Scan: directory -> MediaFile
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

# Folders that are not looked at, by kind, as they are called in small letters; `trash/files` is one in the other. What
# was thrown away and what is an old version may be emptied at any time: a file there is no copy to rely on. Snapshots
# show again what is elsewhere, thumbnails are nobody's pictures, and a DVD or a document loses what is moved out of it.
SKIPPED_FOLDERS = {
    "trash folder": r"[.#$@]+d?trash[^/]*|[.#$@]+recycle[^/]*|recycle[rd]|recycle[._]bin|_nas_recycle[^/]*|trashbox"
    r"|files_trash(bin|ed)|network trash folder|trash/(files|expunged)",
    "history folder": r"\.st(folder|versions)|files_versions|rdiff-backup-data|_gsdata_",
    "snapshot": r"[.#@~]+(recently-)?snapshots?|\.zfs|@gmt-[\d.-]+",
    "thumbnail folder": r"@eadir|@transcode|\.@?_*thumb[^/]*|[^/]+\.lrdata|_palbtn|appdata_oc\w+",
    "system folder": r"lost\+found|lost\.dir|found\.\d{3}|system volume information|temporary items",
    "DVD": r"video_ts|[^/]+\.dvdmedia",
    "document package": r"[^/]+\.(key|pages|numbers|rtfd|scriv|band|logicx)",
    "hidden folder": r"\.[^/]*",
}
# Each kind is a group, called by its number among them.
SKIPPED_FOLDER = re.compile(
    "(?:.*/)?(?:" + "|".join(f"(?P<k{at}>{each})" for at, each in enumerate(SKIPPED_FOLDERS.values())) + ")", re.DOTALL
)
HIDDEN_FOLDER, HIDDEN_FILE = "hidden folder", "hidden file"
WINDOWS_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT
# Folders that an application keeps a database about: moving a file inside breaks the application's library.
APPLICATION_LIBRARY = re.compile(
    r".+\.(photoslibrary|photolibrary|migratedphotolibrary|aplibrary|migratedaplibrary|lrlibrary|fcpbundle|fcarch"
    r"|fcpcache|imovielibrary|imovieproject|theater|rcproject|dvdproj|cocatalog|tvlibrary|musiclibrary|library)"
    r"|(iphoto|photo booth|aperture) library( \d+)?|(imovie|final cut) (events|projects|theater)(\.localized)?",
    re.IGNORECASE | re.DOTALL,
)
# Files that such a folder has in it, whatever it is called: iPhoto's, Aperture's, Photo Booth's, Final Cut's.
APPLICATION_MARKERS = frozenset({"AlbumData.xml", "ApertureData.xml", "Recents.plist", "CurrentVersion.flexolibrary"})


@dataclass(frozen=True, slots=True)
class Skipped:
    """Folders or files of one kind that were not looked at."""

    kind: str  # a key of SKIPPED_FOLDERS, or HIDDEN_FILE
    count: int
    example: str  # path of the first one


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk found. Files and links are in order of path.

    `links` are symbolic links that lead to a file or folder of the library, which may be one that was not looked at:
    each with the path of what it leads to in the end.
    """

    root: str
    files: tuple[MediaFile, ...]
    unreadable: tuple[Problem, ...]
    application_libraries: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def scan(directory: str, suffixes: Collection[str]) -> Scan:
    """The media files below the directory.

    Symbolic links are not followed and are no files; a file or folder that can be reached by several paths (hard
    links, bind mounts) counts once, under the first of them in order. Neither what is hidden is looked at nor folders
    as in SKIPPED_FOLDERS; the directory itself may be one. IdemError when it cannot be read, or is the library of
    another application.
    """
    walk = Walk(os.path.realpath(directory), suffixes)
    pending = [walk.root]
    while pending:  # folders in order of name, so that which of two hard links counts never varies
        pending += reversed(walk.folders_in(pending.pop()))
    return Scan(
        root=walk.root,
        files=tuple(sorted(walk.files, key=lambda file: file.path)),
        unreadable=tuple(sorted(walk.unreadable, key=lambda item: item.path)),
        application_libraries=tuple(sorted(walk.libraries)),
        skipped=tuple(Skipped(kind, len(paths), min(paths)) for kind, paths in walk.skipped.items()),
        links=tuple(sorted(walk.links)),
    )


class Walk:
    """What has been met so far on the way through a folder; see `scan`."""

    def __init__(self, root: str, suffixes: Collection[str]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.files: list[MediaFile] = []
        self.unreadable: list[Problem] = []
        self.libraries: list[str] = []
        self.skipped: dict[str, list[str]] = defaultdict(list)
        self.links: list[tuple[str, str]] = []
        self.seen: set[tuple[int, int]] = set()

    def folders_in(self, path: str) -> list[str]:
        """Note the files in a folder; the folders in it to go into, in order of name."""
        try:
            if not self.is_first_sight(os.stat(path)):
                return []
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if path == self.root:
                raise IdemError(f"cannot read {printable(path)}: {reason_of(error)}") from None
            self.unreadable.append(Problem(path, reason_of(error)))
            return []
        if not APPLICATION_MARKERS.isdisjoint(entry.name for entry in entries):
            if path == self.root:
                raise IdemError(f"cannot scan {printable(path)}: it is a library of another application")
            self.libraries.append(path)
            return []
        folders = []
        for entry in entries:
            try:
                if entry.is_symlink():
                    self.take_link(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    folders += [entry.path] if self.goes_into(entry) else []
                elif end_of(entry.name) in self.suffixes:
                    self.take_file(entry)
            except OSError as error:
                self.unreadable.append(Problem(entry.path, reason_of(error)))
        return folders

    def is_first_sight(self, status: os.stat_result) -> bool:
        inode = status.st_dev, status.st_ino
        if status.st_ino and inode in self.seen:  # file systems without inodes report 0
            return False
        self.seen.add(inode)
        return True

    def take_link(self, path: str) -> None:
        with suppress(OSError):  # it leads nowhere, or round in circles
            target = os.path.realpath(path, strict=True)
            if is_inside(target, self.root):
                self.links.append((path, target))

    def goes_into(self, folder: os.DirEntry[str]) -> bool:
        """Whether to look at what is in a folder; note why not."""
        status = folder.stat(follow_symlinks=False)
        if folder.name == CACHE_FOLDER:
            check_unused(folder.path)
        if folder.name.lower() in (TRASH_FOLDER, CACHE_FOLDER):
            return False
        if getattr(status, "st_reparse_tag", 0) == WINDOWS_JUNCTION:  # a link by another name
            return False
        if APPLICATION_LIBRARY.fullmatch(folder.name):
            self.libraries.append(folder.path)
            return False
        below = relative(folder.path, self.root).lower().replace(os.sep, "/")
        found = SKIPPED_FOLDER.fullmatch(below)
        if found is None and not has_hidden_attribute(status):
            return True
        kind = list(SKIPPED_FOLDERS)[int(str(found.lastgroup)[1:])] if found else HIDDEN_FOLDER
        self.skipped[kind].append(folder.path)
        return False

    def take_file(self, entry: os.DirEntry[str]) -> None:
        """Note a file with the suffix of a picture or video."""
        if entry.name.startswith("._"):  # what macOS keeps beside a file, on drives of others
            return
        # On Windows a listing carries neither inode nor device.
        status = os.lstat(entry.path) if os.name == "nt" else entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return
        if entry.name.startswith(".") or has_hidden_attribute(status):
            self.skipped[HIDDEN_FILE].append(entry.path)
        elif self.is_first_sight(status):
            if status.st_size == 0:
                self.unreadable.append(Problem(entry.path, "the file is empty"))
            elif not entry.name.lower().endswith(".ts") or is_transport_stream(entry.path):
                self.files.append(media_file(entry.path, status))


def has_hidden_attribute(status: os.stat_result) -> bool:
    """Whether a file or folder is hidden by what Windows or macOS note of it."""
    attributes, flags = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    return bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN or flags & stat.UF_HIDDEN)


# A packet has 188 bytes, or 192 with a time before it, and begins with a G. A recording may begin within one.
TRANSPORT_STREAM = re.compile(rb".{0,191}?(G(.{187}G){3}|G(.{191}G){3})", re.DOTALL)


def is_transport_stream(path: str) -> bool:
    """Whether a file called `.ts` is a video: most such files are programs, written in TypeScript."""
    with open(path, "rb") as stream:
        return bool(TRANSPORT_STREAM.match(stream.read(1024)))


def only(scanned: Scan, kind: str) -> Scan:
    """The scan with the files of one kind."""
    return replace(scanned, files=tuple(file for file in scanned.files if kind_of(file) == kind))


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Cache: fingerprints in a CSV file that survives whatever happens to it
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

ODD_NAMES = "surrogatepass" if os.name == "nt" else "surrogateescape"  # how UTF-8 carries names that are not Unicode
CACHE_BLOCK = 1 << 23  # bytes of a cache file that are searched at once
MAX_ROW_BYTES = 1 << 17  # longer than any row
MAX_ROW_TAIL = 1 << 16  # bytes of a row behind its head
ROW_START = re.compile(rb'\n["/\\]')
MAX_BARREN_BYTES = 1 << 25  # without the start of a row: what holds so many is no cache, and not searched to its end
MAX_STORED_PATH = 1 << 15  # characters; no system takes longer ones
FLUSH_ROWS = 200  # rows; what an interrupted run loses at most
FLUSH_SECONDS = 2.0
FINGERPRINT_VERSION = 6  # raised when the algorithm changes; rows of another version do not match
F = TypeVar("F", bound="Fingerprint")
E = TypeVar("E")  # what a cache keeps of a file: a fingerprint, or why there is none


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a cache file: its name, the pattern of its texts, and how they are read and written."""

    name: str
    pattern: str
    read: Callable[[bytes], Any] | None = bytes.decode  # None: it is written, but no part of the fingerprint
    write: Callable[[Any], str] = str
    attribute: str = ""  # that it stands for, if that has another name
    of_file: bool = False  # the attribute is that of the MediaFile, not of the fingerprint


def number_column(name: str, digits: int, of_file: bool = False) -> Column:
    """A whole number of at most so many digits."""
    return Column(name, f"[0-9]{{1,{digits}}}", int, of_file=of_file)


def positive_column(name: str, digits: int) -> Column:
    """A number above 0."""
    return Column(name, f"[1-9][0-9]{{0,{digits - 1}}}", int)


def flag_column(name: str) -> Column:
    """True or False."""
    return Column(name, "[01]", lambda text: text == b"1", lambda value: str(int(value)))


def hash_column(name: str) -> Column:
    """64 bits."""
    return Column(name, "[0-9a-f]{16}", lambda text: int(text, 16), lambda value: f"{value:016x}")


def bytes_column(name: str, size: int, optional: bool = False) -> Column:
    """So many bytes, a multiple of 3, in base64; or none, if they are optional."""
    pattern = f"[A-Za-z0-9+/]{{{size // 3 * 4}}}"
    return Column(name, f"(?:{pattern})?" if optional else pattern, bytes, bytes.decode)


METADATA_TYPES: dict[str, Callable[[str], Any]] = {name: type(value) for name, value in asdict(Metadata()).items()}


@functools.lru_cache(maxsize=1 << 14)  # most are never asked for; those of groups again and again
def read_metadata(text: bytes) -> Metadata:
    """Metadata as caches store it: what it says, as the query of a URL."""
    said = parse_qsl(text.decode())
    return Metadata(**{name: METADATA_TYPES[name](value) for name, value in said if name in METADATA_TYPES})


def written_metadata(metadata: Metadata) -> bytes:
    """The metadata as `read_metadata` reads it. Only the start of very long texts is kept."""
    said = {name: value for name, value in asdict(metadata).items() if value}
    texts = {name: value[:MAX_METADATA_TEXT] if isinstance(value, str) else int(value) for name, value in said.items()}
    return urlencode(texts, errors="replace").encode()


MAX_METADATA_TEXT = 64  # characters; those of the longest serial numbers and identifiers
# Its own words, percent signs for all others.
METADATA = Column("metadata", r"[\w.~%+&=-]{0,8000}", bytes, bytes.decode, "stored_metadata")


def microseconds(text: bytes) -> int:
    """A time in seconds since the epoch, in microseconds; further decimals are cut off."""
    if text[-7:-6] == b".":  # as idem writes it
        return int(text[:-7] + text[-6:])
    seconds, _, decimals = text.partition(b".")
    return int(seconds + decimals[:6].ljust(6, b"0"))


def hides_check(time: bytes) -> bool:
    """Whether a stored time has nine decimals, of which the last three are no part of it: see `CacheFormat`."""
    return time[-10:-9] == b"."


def time_column(name: str) -> Column:
    """A time of the file in seconds since the epoch, to the microsecond."""
    pattern = r"-?[0-9]{1,12}(?:\.[0-9]{1,9})?"
    return Column(name, pattern, microseconds, lambda ns: f"{ns // 1000 / 1e6:.6f}", f"{name}_ns", of_file=True)


def stored_path(path: str) -> str:
    """The path as caches store it: without a drive letter, so that a drive may change its letter."""
    return os.path.splitdrive(path)[1] if os.name == "nt" else path


def read_path(text: bytes) -> str:
    """The stored path in the first field of a row."""
    if text.startswith(b'"'):
        text = text[1:-1].replace(b'""', b'"')
    return text.decode("utf-8", ODD_NAMES)


def written_path(path: str) -> str:
    """The first field of a row about the file at this path, quoted where CSV asks for it."""
    path = stored_path(path)
    return '"' + path.replace('"', '""') + '"' if re.search(r'[",\r\n]', path) else path


PATH = Column(
    "path",
    r'"[/\\](?:[^"\0]|""){0,%d}"|[/\\][^",\r\n\0]{0,%d}' % (MAX_STORED_PATH, MAX_STORED_PATH),
    read_path,
    written_path,
    of_file=True,
)
SIZE = number_column("size", 18, of_file=True)
MTIME, CTIME = time_column("mtime"), time_column("ctime")
VERSION = Column("version", str(FINGERPRINT_VERSION), None)
FILE_DIGEST = Column("file_digest", "(?:[0-9a-f]{64})?")


@dataclass(frozen=True)
class CacheFormat(Generic[E]):
    """A kind of cache file: its name, its columns, and what makes a fingerprint of their values.

    Every row that idem writes carries a check of its text, in a last column of its own: CRC-32 in hex. Where a format
    is shared with other tools no column can be added. There the check, modulo a million, hides below the microsecond:
    as the last three of nine decimals of ctime and of mtime. Other tools write fewer, and their rows count unchecked.
    """

    name: str
    columns: tuple[Column, ...]
    fingerprint: Callable[..., E]
    shared: bool = False
    early: Callable[[re.Match[bytes]], Any] = lambda _row: None  # what is wanted of every row; see `head`
    head: int = 0  # so many columns are read of every row, the others when they are wanted; 0: all are read at once
    start: re.Pattern[bytes] = ROW_START  # of a row, after a line feed

    @property
    def header(self) -> bytes:
        names = [column.name for column in self.columns]
        return ",".join(names if self.shared else [*names, "check"]).encode() + b"\n"

    @functools.cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """Matches a row at the start of a line, each column in a group of its name."""
        return self.pattern_of(self.columns, "")

    @functools.cached_property
    def head_pattern(self) -> re.Pattern[bytes]:
        """Matches what begins and ends like a row. If its check is right it is one: idem wrote all of it."""
        return self.pattern_of(self.columns[: self.head], ",.{0,%d}" % MAX_ROW_TAIL) if self.head else self.pattern

    def pattern_of(self, columns: tuple[Column, ...], tail: str) -> re.Pattern[bytes]:
        text = ",".join(f"(?P<{column.name}>{column.pattern})" for column in columns) + tail
        check = "" if self.shared else ",(?P<check>[0-9a-f]{8})"
        return re.compile(rf"(?<=\n)(?P<text>{text}){check}\r?\n".encode())

    @functools.cached_property
    def readers(self) -> list[tuple[str, str, Callable[[bytes], Any]]]:
        """Name, attribute and reader of the columns that make up the fingerprint."""
        own = (each for each in self.columns if not each.of_file)
        return [(each.name, each.attribute or each.name, each.read) for each in own if each.read]

    def decoded(self, row: re.Match[bytes]) -> E:
        """The fingerprint in a row that `pattern` matches."""
        return self.fingerprint(**{attribute: read(row[name]) for name, attribute, read in self.readers})

    def encoded(self, file: object, fingerprint: E) -> bytes:
        """The row of a file, or of what else the rows of this format are about."""
        texts = {
            each.name: each.write(getattr(file if each.of_file else fingerprint, each.attribute or each.name)).encode(
                "utf-8", ODD_NAMES
            )
            for each in self.columns
        }
        check = self.check_of(b",".join(texts.values()))
        if self.shared:
            texts["ctime"] += check[:3]
            texts["mtime"] += check[3:]
        else:
            texts["check"] = check
        return b",".join(texts.values()) + b"\n"

    def check_of(self, text: bytes) -> bytes:
        """The check of a row that has this text without it."""
        return b"%06d" % (zlib.crc32(text) % 1_000_000) if self.shared else b"%08x" % zlib.crc32(text)

    def is_sound(self, row: re.Match[bytes]) -> bool:
        """Whether the row's check fits its text, or another tool wrote it without one."""
        if not self.shared:
            return row["check"] == self.check_of(row["text"])
        checked = hides_check(row["ctime"]), hides_check(row["mtime"])
        if not any(checked):
            return True
        text = row["text"]
        ctime, mtime = row.end("ctime") - row.start(), row.end("mtime") - row.start()
        check = text[ctime - 3 : ctime] + text[mtime - 3 : mtime]
        return all(checked) and check == self.check_of(text[: ctime - 3] + text[ctime : mtime - 3] + text[mtime:])


class StoredRow(NamedTuple):
    """Where a row about a scanned file stands in the cache file, and what of it is wanted at once."""

    offset: int
    length: int
    early: Any


class CachedRow(NamedTuple):
    """Where a row about a file that was not scanned stands in the cache file, and what that file was."""

    offset: int
    length: int
    path: str  # as caches store it
    size: int
    mtime: int  # microseconds


def rows_in(stream: BinaryIO, form: CacheFormat[Any]) -> Iterator[tuple[int, re.Match[bytes]]]:
    """The heads of the sound rows from here to the end of a cache file, with their offsets. What lies between is junk.

    A row that may go on beyond what has been read is looked at again with more of the file. Else a path that contains
    a line feed and what looks like a row would be taken for that row. OSError for a file that is anything but a cache.
    """
    offset, text, block = stream.tell() - 1, b"\n", b"\n"
    barren = 0
    while block:
        block = stream.read(CACHE_BLOCK)
        barren = 0 if form.start.search(block) else barren + len(block)
        if barren > MAX_BARREN_BYTES:
            raise OSError(errno.EINVAL, "it is no cache")
        text += block
        certain = len(text) - (MAX_ROW_BYTES if block else 0)
        end = 1
        while (row := form.head_pattern.search(text, end)) and row.start() < certain:
            if form.is_sound(row):
                yield offset + row.start(), row
                end = row.end()
            else:  # what it seems to hold may be the rows after a damaged one
                end = row.start() + 1
        end = max(end, certain)
        offset, text = offset + end - 1, text[end - 1 :]  # with the line feed before it


class CacheFile(Generic[E]):
    """Rows in a CSV file that other runs and other libraries may share.

    New rows are appended as they come and flushed every FLUSH_ROWS or FLUSH_SECONDS. A file that cannot be read or
    written says so once, and the run goes on without.
    """

    def __init__(self, form: CacheFormat[E], folder: str) -> None:
        self.form = form
        self.folder = folder
        self.path = os.path.join(folder, form.name)
        self.untidy = False  # the file holds more than the rows that count
        self.warned = False
        self.pending: list[bytes] = []
        self.last_flush = time.monotonic()
        self.stream: BinaryIO | None = None  # to append to

    def rows(self) -> Iterator[tuple[int, re.Match[bytes]]]:
        """The sound rows of the file, each with its offset; it is untidy if it holds anything else."""
        try:
            with opened_own(self.path, "rb") as stream:
                first = stream.readline(len(self.form.header) + 1)
                if first.rstrip(b"\r\n") != self.form.header.rstrip():
                    stream.seek(0)
                    self.untidy = True
                end = stream.tell()
                for offset, row in rows_in(stream, self.form):
                    self.untidy |= offset != end
                    end = offset + row.end() - row.start()
                    yield offset, row
                self.untidy |= end != stream.tell()
        except FileNotFoundError:
            return
        except OSError as error:
            self.warn("read", error)

    def append(self, row: bytes) -> None:
        """Add a row at the end, soon."""
        self.pending.append(row)
        if len(self.pending) >= FLUSH_ROWS or time.monotonic() - self.last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand the rows that wait to the operating system: a killed run keeps them."""
        self.last_flush = time.monotonic()
        if self.pending and not self.warned:
            try:
                self.stream = self.stream or self.opened_to_append()
                self.stream.write(b"".join(self.pending))
                self.stream.flush()
            except OSError as error:
                self.warn("write", error)
        self.pending.clear()

    def opened_to_append(self) -> BinaryIO:
        """The cache file, at the start of a line below the header."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        stream = opened_for_lines(self.path)
        if stream.tell() == 0:
            stream.write(self.form.header)
        return stream

    def close_stream(self) -> None:
        """Write what waits, and append no more."""
        self.flush()
        if self.stream is not None:
            try:
                self.stream.close()
            except OSError as error:
                self.warn("write", error)
            self.stream = None

    def rewrite(self, rows: Iterable[bytes]) -> None:
        """Replace the file, atomically, by these rows."""
        temporary = self.path + ".tmp"
        try:
            new = opened_own(temporary, "wb")
        except OSError as error:  # it may be anything, and is not this run's to take away
            self.warn("write", error, temporary)
            return
        try:
            with new:
                new.write(self.form.header)
                for row in rows:
                    new.write(row)
                new.flush()
                os.fsync(new.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            self.warn("write", error)
            with suppress(OSError):  # the warning is out; a left-over temporary file is only untidy
                os.unlink(temporary)

    def warn(self, verb: str, error: OSError, path: str = "") -> None:
        if not self.warned:
            name = printable(path or self.path)
            say(f"warning: cannot {verb} the cache {name}: {reason_of(error)}; going on without it")
        self.warned = True


class FingerprintCache(CacheFile[E]):
    """Fingerprints of files, by their paths.

    Of a format with long rows only the heads are read at once, and lookups read what they ask for. Only fingerprints
    of scanned files are held in memory. `close` rewrites the file when it holds rows that are torn, replaced or
    forgotten.
    """

    def __init__(self, form: CacheFormat[E], folder: str, scanned: Scan) -> None:
        super().__init__(form, folder)
        self.scanned = scanned
        self.files = {stored_path(file.path): file for file in scanned.files}
        self.stored: dict[str, StoredRow] = {}  # of scanned files that have not changed, read when they are asked for
        self.known: dict[str, E] = {}  # of scanned files: what was read or made
        self.others: dict[str, CachedRow] = {}
        self.moved: dict[tuple[str, int], list[CachedRow]] = defaultdict(list)  # by name and size
        self.uncertain: dict[str, tuple[E, list[CachedRow]]] = {}  # found under another path, with the rows there
        self.relocating = False
        self.forgotten = 0
        self.reader: BinaryIO | None = None  # of rows
        self.load()

    # ── reading ──

    def load(self) -> None:
        for offset, row in self.rows():
            self.take(offset, row)
        if self.others:
            new = self.files.keys() - self.stored.keys() - self.known.keys()
            unknown = {(os.path.basename(path), self.files[path].size) for path in new}
            for other in self.others.values():
                if (key := (os.path.basename(other.path), other.size)) in unknown:
                    self.moved[key].append(other)

    def take(self, offset: int, row: re.Match[bytes]) -> None:
        """Note where the row of a scanned file is if that has not changed, and where those of other files are."""
        written, size, mtime, ctime = row.group("path", "size", "mtime", "ctime")
        path, length = read_path(written), row.end() - row.start()
        file = self.files.get(path)
        if file is None:
            self.untidy |= path in self.others
            self.others[path] = CachedRow(offset, length, path, int(size), microseconds(mtime))
            return
        self.untidy |= self.stored.pop(path, None) is not None or self.known.pop(path, None) is not None
        times = microseconds(mtime), microseconds(ctime)
        if int(size) != file.size or not is_at(times[0], file.mtime_ns) or not is_at(times[1], file.ctime_ns):
            self.untidy = True
        elif self.form.head:
            self.stored[stored_path(file.path)] = StoredRow(offset, length, self.form.early(row))
        else:
            self.known[stored_path(file.path)] = self.form.decoded(row)

    def lookup(self, file: MediaFile) -> E | None:
        """The fingerprint of the file as it is now, or None. One that moved keeps the one it had, uncertainly.

        An uncertain one is never written, so that it stays uncertain in later runs, which find it as this one does.
        """
        path = stored_path(file.path)
        if path in self.uncertain:
            return self.uncertain[path][0]
        if (fingerprint := self.certain(file)) is not None:
            return fingerprint
        if found := self.from_old_path(file):
            self.uncertain[path] = found
            return found[0]
        return None

    def certain(self, file: MediaFile) -> E | None:
        """The fingerprint that was stored of the very file, or None."""
        path = stored_path(file.path)
        if path not in self.known and (row := self.stored.pop(path, None)) is not None:
            if (fingerprint := self.read(row)) is None:
                self.untidy = True
                return None
            self.known[path] = fingerprint
        return self.known.get(path)

    def __contains__(self, file: MediaFile) -> bool:
        """Whether `lookup` finds the file's fingerprint, unless its row cannot be read."""
        path = stored_path(file.path)
        return path in self.stored or path in self.known or self.lookup(file) is not None

    def early(self, file: MediaFile) -> Any:
        """What is wanted of the file's row at once, if it has one that nobody has asked for; else None."""
        row = self.stored.get(stored_path(file.path))
        return row.early if row else None

    def is_uncertain(self, file: MediaFile) -> bool:
        """Whether nothing but its name, size and time says that the file is the one that was fingerprinted."""
        return stored_path(file.path) in self.uncertain

    def from_old_path(self, file: MediaFile) -> tuple[E, list[CachedRow]] | None:
        """The fingerprint under the path this file had before it moved, and its rows there; None if in doubt."""
        rows = [row for row in self.moved.get((os.path.basename(file.path), file.size), ()) if is_of(row, file)]
        drive = os.path.splitdrive(self.scanned.root)[0]
        if not rows or any(os.path.lexists(drive + row.path) for row in rows):
            return None
        found = {fingerprint for row in rows if (fingerprint := self.read(row)) is not None}
        return (found.pop(), rows) if len(found) == 1 else None

    def read(self, row: StoredRow | CachedRow) -> E | None:
        """The fingerprint in a row; None if it cannot be read."""
        try:
            match = self.form.pattern.fullmatch(b"\n" + self.text_of(row), 1)
        except OSError as error:
            self.warn("read", error)
            return None
        return self.form.decoded(match) if match and self.form.is_sound(match) else None

    def text_of(self, row: StoredRow | CachedRow) -> bytes:
        """A row as it stands in the file."""
        self.reader = self.reader or opened_own(self.path, "rb")
        self.reader.seek(row.offset)
        return self.reader.read(row.length)

    # ── writing ──

    def store(self, file: MediaFile, fingerprint: E) -> None:
        """Keep the fingerprint of the file, in place of any it had."""
        path = stored_path(file.path)
        self.untidy |= path in self.known or self.stored.pop(path, None) is not None
        self.known[path] = fingerprint
        self.uncertain.pop(path, None)
        self.append(self.form.encoded(file, fingerprint))

    def relocate(self, old: MediaFile, new: MediaFile) -> None:
        """Let a scanned file that has been moved keep its fingerprint."""
        self.relocating = True
        fingerprint = self.certain(old)
        self.known.pop(stored_path(old.path), None)
        self.files.pop(stored_path(old.path), None)
        if fingerprint is not None:
            self.untidy = True
            self.files[stored_path(new.path)] = new
            self.store(new, fingerprint)

    def close(self) -> None:
        """Write what waits, forget the files that are gone, and rewrite the file if that leaves it cleaner."""
        self.close_stream()
        kept = list(self.others.values())
        if not self.relocating:  # the scan was of the files that moved: it does not tell which rows others still use
            used = {row.path for _, rows in self.uncertain.values() for row in rows}
            listings: dict[str, frozenset[str]] = {}
            kept = [row for row in kept if row.path in used or not self.is_forgotten(row, listings)]
        self.forgotten = len(self.others) - len(kept)
        if (self.forgotten or self.untidy) and not self.warned:
            self.rewrite(self.rows_to_keep(kept))
        self.close_reader()

    def close_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def is_forgotten(self, row: CachedRow, listings: dict[str, frozenset[str]]) -> bool:
        """Whether the row's file is gone for good: inside this library, its folder there and not empty.

        An empty folder may be the mount point of an unplugged drive.
        """
        path = os.path.splitdrive(self.scanned.root)[0] + row.path
        if not is_inside(path, self.scanned.root):
            return False
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                listings[folder] = frozenset(os.listdir(folder))
            except OSError:  # a folder that cannot be seen is as good as unplugged
                listings[folder] = frozenset()
        return bool(listings[folder]) and name not in listings[folder]

    def rows_to_keep(self, others: list[CachedRow]) -> Iterator[bytes]:
        """The rows of the scanned files, and these of others."""
        for path, fingerprint in self.known.items():
            yield self.form.encoded(self.files[path], fingerprint)
        rows: list[StoredRow | CachedRow] = [*self.stored.values(), *others]
        for row in rows:
            yield self.text_of(row)
        self.close_reader()  # Windows replaces no file that is open


def is_of(row: CachedRow, file: MediaFile) -> bool:
    """Whether the row is about a file of this size and time of modification."""
    return row.size == file.size and is_at(row.mtime, file.mtime_ns)


def is_at(stored: int, nanoseconds: int) -> bool:
    """Whether a stored time in microseconds is this one. Other tools round what idem cuts off."""
    return abs(stored - nanoseconds // 1000) <= 1


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Workers: tasks -> results, in processes of their own
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

TASK_TIMEOUT = 180  # s; a file that takes a worker longer has hung its decoder
SLOWEST_DRIVE = 5_000_000  # bytes per second
BUSY = 0.5  # of that time at work on a processor, and the decoder hung; else the drive did
WORKER_POLL = 0.5  # s between a worker's looks at whether the run that started it still lives
TASKS_AHEAD = 2  # per worker: the one at work and the next, so that it never waits for that
MAX_WORKERS = 60 if os.name == "nt" else 256  # Windows waits for 63 things at once at most
# Forking is many times faster, but safe only where the system libraries start no threads of their own.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PR_SET_PDEATHSIG = 1  # of prctl(2)
# All workers together may take this part of the memory that is free when they start. The review has two pools.
MEMORY_TAKEN, MEMORY_TAKEN_OF_TWO = 0.7, 0.35
WORKER_MEMORY = 256 << 20  # bytes that each must be able to take, or there are fewer workers
MEMORY_ASSUMED = 4 << 30  # bytes free, on systems that do not tell
# Loaded ahead: between fork and exec is no time for it.
LIBC: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
# Not by a decoder, but when memory is short, or by somebody.
KILLED_FROM_OUTSIDE = {getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
T = TypeVar("T")  # what a task is about
R = TypeVar("R")  # its result


class TaskLost(Exception):  # noqa: N818 (it is no error of this process)
    """A task that was not done; the text says why. Lasting if another run would lose it, too."""

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """A function to call in a worker, with its arguments. Tasks are sorted by priority, then by age.

    One that was lost is tried again with nothing else at work, after all others of its priority: what others did to
    it, such as taking all memory, is then no part of the answer.
    """

    priority: int
    alone: bool
    number: int
    seconds: float = field(compare=False)  # that it may take
    again: bool = field(compare=False)  # whether it is tried a second time
    call: tuple[Callable[..., Any], tuple[Any, ...]] = field(compare=False)
    future: Future[Any] = field(compare=False)


class Pool:
    """At most `jobs` processes that do what is submitted.

    A process that dies or takes too long costs the task it was at, and no other: when that happens again while the
    task is alone at work, its future raises TaskLost. `close` ends all processes at once, and nothing outlives the
    process that made the pool.

    All processes together take no more memory than was free when the pool was made: each has an equal share, and a
    task that is out of memory with that is alone at work the second time, with all of it.

    Whoever waits for results drives the pool, by `map`: without threads, forking is safe. If it is `threaded`, a thread
    of its own drives it, any thread may submit, map and wait, and processes are spawned.
    """

    def __init__(self, jobs: int, *, threaded: bool = False, silent: bool = False) -> None:
        self.silent = silent  # shows no progress: what it does never takes long
        self.memory = int(available_memory() * (MEMORY_TAKEN_OF_TWO if threaded else MEMORY_TAKEN))  # bytes
        self.jobs = max(1, min(jobs, self.memory // WORKER_MEMORY))
        self.start_method = "spawn" if threaded else START_METHOD
        self.ahead = 1 if threaded else TASKS_AHEAD  # an urgent task must not wait behind one that is handed out
        self.waiting: list[Task] = []  # a heap
        self.workers: list[Worker] = []
        self.numbers = count()
        self.lock = threading.Lock()  # for waiting tasks, their numbers, `closed` and changes of workers
        self.closed = False
        self.thread: threading.Thread | None = None
        if threaded:
            self.bell, self.ring = multiprocessing.Pipe(duplex=False)  # wakes the thread up
            self.thread = threading.Thread(target=self.drive, daemon=True)
            with interrupts_held_back():  # the thread inherits that: Ctrl-C is for the main one
                self.thread.start()

    def submit(
        self,
        work: Callable[..., R],
        *arguments: Any,
        seconds: float = TASK_TIMEOUT,
        priority: int = 0,
        again: bool = True,
    ) -> Future[R]:
        """Have a worker call a function of a module; the lowest priority comes first."""
        future: Future[R] = Future()
        with self.lock:
            if self.closed:
                future.set_exception(TaskLost("idem is stopping"))
                return future
            task = Task(priority, False, next(self.numbers), seconds, again, (work, arguments), future)
            heapq.heappush(self.waiting, task)
            if self.thread:
                self.ring.send_bytes(b"!")
        return future

    def map(
        self,
        work: Callable[..., R],
        tasks: Iterable[T],
        seconds: Callable[[T], float] = lambda _task: TASK_TIMEOUT,
        more: Callable[[T], tuple[Any, ...]] = lambda _task: (),
        again: bool = True,
    ) -> Iterator[tuple[T, Future[R]]]:
        """Each task with the future of `work(task, *more(task))`, as they are done. Few are held at a time."""
        left = iter(tasks)
        under_way: dict[Future[R], T] = {}
        while True:
            for task in islice(left, 2 * TASKS_AHEAD * self.jobs - len(under_way)):
                under_way[self.submit(work, task, *more(task), seconds=seconds(task), again=again)] = task
            if not under_way:
                return
            if self.thread:
                first_done(under_way, return_when=FIRST_COMPLETED)
            else:
                self.step()
            for future in [each for each in under_way if each.done()]:
                yield under_way.pop(future), future

    def drive(self) -> None:
        """Keep the pool going until it is closed."""
        try:
            while not self.closed:
                try:
                    self.step()
                except IdemError as error:  # no worker can be started
                    with self.lock:
                        self.lose_all(str(error))
        finally:  # nobody may wait for ever
            self.end_all()

    def step(self) -> None:
        """Hand out tasks, wait until a worker has something to say or is overdue, and take the result."""
        with self.lock:
            self.hand_out()
        listened = [worker.connection for worker in self.workers] + ([self.bell] if self.thread else [])
        deadline = min((worker.deadline for worker in self.workers), default=float("inf"))
        try:
            ready = wait(listened, None if deadline == float("inf") else max(0, deadline - time.monotonic()))
        except OSError:  # out of descriptors
            time.sleep(WORKER_POLL)
            return
        if self.thread and self.bell in ready:
            self.bell.recv_bytes()
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.connection in ready:
                self.take_answer(worker)
            elif worker.deadline <= now:
                seconds = worker.tasks[0].seconds
                busy = worker.cpu_seconds() - worker.cpu_before > BUSY * seconds
                self.end(worker, TaskLost(f"it took more than {seconds:.0f} s", lasting=busy))

    def hand_out(self) -> None:
        """Give tasks to the workers that hold fewest, starting further workers while all are busy."""
        while self.waiting:
            under_way = [task for worker in self.workers for task in worker.tasks]
            if under_way and (self.waiting[0].alone or under_way[0].alone):
                return
            worker = min(self.workers, key=lambda each: len(each.tasks), default=None)
            if (worker is None or worker.tasks) and len(self.workers) < self.jobs:
                try:
                    worker = Worker(self.start_method)
                    self.workers.append(worker)
                except OSError as error:  # out of processes, memory or descriptors: those there are must do
                    if worker is None:
                        raise IdemError(f"cannot start a worker process: {reason_of(error)}") from None
            assert worker is not None
            shared_out = len(self.waiting) <= len(self.workers)  # the last ones
            if len(worker.tasks) >= (1 if shared_out else self.ahead):
                return
            task = heapq.heappop(self.waiting)
            if not worker.give(task, self.memory if task.alone else self.memory // self.jobs):
                heapq.heappush(self.waiting, task)
                return

    def take_answer(self, worker: Worker) -> None:
        """Hand what a worker has made to whoever waits for it; end the worker if it has died instead."""
        try:
            number, result = worker.connection.recv()
        except (EOFError, OSError):
            self.end(worker, worker.death())
            return
        task = worker.taken_back(number)
        if task and isinstance(result, MemoryError):
            self.lose(task, TaskLost(str(result) or "not enough memory to decode it"))
        elif task:
            task.future.set_result(result)

    def end(self, worker: Worker, lost: TaskLost) -> None:
        """End a worker, lose the task it was at, and take back the others."""
        worker.stop()
        with self.lock:
            self.workers.remove(worker)
            at_work = worker.tasks.popleft() if worker.tasks else None
            for task in worker.tasks:
                heapq.heappush(self.waiting, task)
        if at_work:
            self.lose(at_work, lost)

    def lose(self, task: Task, lost: TaskLost) -> None:
        """Have a task tried a second time, alone; give it up when that has been done."""
        if task.alone or not task.again:
            task.future.set_exception(lost)
            return
        with self.lock:
            heapq.heappush(self.waiting, replace(task, alone=True))

    def lose_all(self, reason: str) -> None:
        """Give up what waits for a worker. The caller holds the lock."""
        while self.waiting:
            self.waiting.pop().future.set_exception(TaskLost(reason))

    def close(self) -> None:
        """End all processes, whatever they are at. What has not been done is lost."""
        if self.thread:
            with self.lock:
                self.closed = True
                self.ring.send_bytes(b"!")
            self.thread.join()
        else:
            self.end_all()

    def end_all(self) -> None:
        with self.lock:
            self.closed = True
            for worker in self.workers:
                worker.stop()
                self.waiting += worker.tasks
            self.lose_all("idem is stopping")


class Worker:
    """A process, the connection to it, and the tasks it holds, the one at work first."""

    def __init__(self, start_method: str) -> None:
        self.tasks: deque[Task] = deque()
        self.deadline = float("inf")  # for the task at work
        self.cpu_before = 0.0  # s that the process had been at work before that
        context: Any = multiprocessing.get_context(start_method)
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=worker_main, args=(remote, os.getpid()), daemon=True)
        try:
            with interrupts_held_back():
                self.process.start()
        except OSError:
            self.connection.close()
            raise
        finally:
            remote.close()

    def give(self, task: Task, memory: int) -> bool:
        """Hand over a task and how many bytes of memory it may take.

        False if the process has died meanwhile, which its connection will tell.
        """
        try:
            self.connection.send((task.number, memory, task.call))
        except OSError:
            return False
        self.tasks.append(task)
        if len(self.tasks) == 1:
            self.start_clock()
        return True

    def taken_back(self, number: int) -> Task | None:
        """The task of this number, which has been answered; None if it was given up before."""
        task = next((each for each in self.tasks if each.number == number), None)
        if task:
            self.tasks.remove(task)
            self.start_clock()
        return task

    def start_clock(self) -> None:
        """Allow the task that is now at work its time."""
        self.deadline = float("inf")
        if self.tasks:
            self.deadline = time.monotonic() + self.tasks[0].seconds
            self.cpu_before = self.cpu_seconds()

    def cpu_seconds(self) -> float:
        """How long the process and those it has started have been at work on a processor; 0 where that is not told."""
        seconds = 0.0
        with suppress(OSError):  # it has ended, or this is not Linux
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", "rb") as stream:
                processes = [self.process.pid, *map(int, stream.read().split())]
            for process in processes:
                with open(f"/proc/{process}/stat", "rb") as stream:
                    times = stream.read().rpartition(b")")[2].split()[11:15]  # its own, and of those it waited for
                seconds += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        return seconds

    def death(self) -> TaskLost:
        """Why the process has ended by itself. A decoder crashes again, but does not kill itself."""
        self.process.join()
        code = self.process.exitcode or 0
        try:
            return TaskLost(f"the decoder crashed ({signal.Signals(-code).name})", -code not in KILLED_FROM_OUTSIDE)
        except ValueError:
            return TaskLost(f"the decoder ended with status {code}", lasting=True)

    def stop(self) -> None:
        """End the process, whatever it is at, with the processes it has started."""
        self.connection.close()
        if self.process.is_alive() and os.name == "nt":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True, check=False)
        elif self.process.is_alive():
            with suppress(ProcessLookupError, PermissionError):  # it has only just started, and has no group yet
                os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def worker_main(connection: Connection, parent: int) -> None:
    """Do tasks until the connection closes. Ctrl-C is for the run that started this process, not for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # so that what it starts can be ended with it, and Ctrl-C does not reach that either
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":  # the kernel does it even while a decoder keeps Python from running a thread
        die_with_parent()
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # codecs write there what the file's own reason says better
    try:
        while True:
            number, memory, (work, arguments) = connection.recv()
            try:
                with limited_memory(memory):
                    result = work(*arguments)
            except MemoryError as error:
                result = MemoryError(str(error))  # without what it refers to
            connection.send((number, result))
    except (EOFError, OSError):
        return  # the run is over


# ── memory ──

memory_allowed = float("inf")  # bytes that the task at work may take; of a worker


@contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """MemoryError for whoever takes more bytes meanwhile, and the same limit for each process that is started.

    Only Linux counts what a process takes; elsewhere there is nothing but `check_memory`.
    """
    global memory_allowed  # noqa: PLW0603
    before, memory_allowed = memory_allowed, size
    if sys.platform != "linux":
        yield
        memory_allowed = before
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", "rb") as stream:
        taken = int(stream.read().split()[5]) * resource.getpagesize()
    most = taken + size if soft == resource.RLIM_INFINITY else min(soft, taken + size)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        memory_allowed = before


def check_memory(size: float) -> None:
    """MemoryError if the task at work may not take so many bytes."""
    if size > memory_allowed:
        free = readable_size(int(memory_allowed))
        raise MemoryError(f"decoding it takes {readable_size(int(size))} of memory, and {free} are free")


def available_memory(system: str = "/") -> int:
    """Bytes of memory that processes can still take, as Linux, its control groups (version 2) and `ulimit` have it.

    Elsewhere half of what there is, or MEMORY_ASSUMED.
    """

    def read(path: str) -> str:
        try:
            with open(os.path.join(system, path), encoding="utf-8") as stream:
                return stream.read()
        except (OSError, ValueError):
            return ""

    if found := re.search(r"^MemAvailable: *(\d+) kB", read("proc/meminfo"), re.MULTILINE):
        free = [int(found[1]) << 10]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    else:
        free = [MEMORY_ASSUMED]
    group = re.search(r"^0::/(.*)", read("proc/self/cgroup"), re.MULTILINE)
    parts = ["sys/fs/cgroup", *filter(None, group[1].split("/"))] if group else []
    for depth in range(len(parts)):  # each group on the way may have a limit
        folder = "/".join(parts[: depth + 1])
        most, used = read(f"{folder}/memory.max").strip(), read(f"{folder}/memory.current").strip()
        cached = re.search(r"^inactive_file (\d+)", read(f"{folder}/memory.stat"), re.MULTILINE)
        if most.isdecimal() and used.isdecimal():
            free.append(max(0, int(most) - int(used) + (int(cached[1]) if cached else 0)))
    if taken := read("proc/self/statm").split():
        import resource

        for limit, pages in ((resource.RLIMIT_AS, taken[0]), (resource.RLIMIT_DATA, taken[5])):
            most_of_each = resource.getrlimit(limit)[0]
            if most_of_each != resource.RLIM_INFINITY:
                free.append(max(0, most_of_each - int(pages) * resource.getpagesize()))
    return min(free)


def die_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_parent(parent: int) -> None:
    """End this process, and what it has started, when the run that started it has died without a word."""
    starter = multiprocessing.parent_process()
    while os.getppid() == parent and not (starter and wait([starter.sentinel], WORKER_POLL)):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


# ── a piece of work for many files ──


@dataclass(frozen=True, slots=True)
class Work(Generic[R]):
    """What workers do with a file, and how to speak of it."""

    do: Callable[..., R | Problem]
    noun: str
    prepare: Callable[[], object] = lambda: None  # once, before workers are forked
    bytes_read: Callable[[MediaFile], int] | None = None  # where progress is counted in bytes
    small: int = 0  # bytes; files of no more are handed over many at once: it would take longer than the work
    more: Callable[[MediaFile], tuple[Any, ...]] = lambda _file: ()  # arguments of `do` after the file


def seconds_for(file: MediaFile) -> float:
    """How long a worker may take for a file: even from a slow drive, reading it is not hanging."""
    return TASK_TIMEOUT + file.size / SLOWEST_DRIVE


def progress_bar(total: int, unit: str, silent: bool) -> tqdm[NoReturn]:
    """A bar with rate and time left on stderr; nothing where that is not a terminal, or if it is to be silent."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its monitor is a thread, and worker processes are forked
    unit, scale = (unit, True) if unit == "B" else (f" {unit}", False)
    return tqdm(total=total, unit=unit, unit_scale=scale, dynamic_ncols=True, leave=False, disable=silent or None)


MOST_IN_BATCH = 64  # files


def batches(files: Iterable[MediaFile], small: int) -> Iterator[tuple[MediaFile, ...]]:
    """The files one by one, but those of no more than so many bytes up to MOST_IN_BATCH together."""
    batch: list[MediaFile] = []
    for file in files:
        if file.size > small:
            yield (file,)
            continue
        batch.append(file)
        if len(batch) == MOST_IN_BATCH:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)


def for_each(files: Sequence[MediaFile], do: Callable[..., R], more: Sequence[tuple[Any, ...]]) -> list[R]:
    """What `do` makes of each file, with further arguments. Runs in a worker process."""
    return [do(file, *arguments) for file, arguments in zip(files, more, strict=True)]


def compute(
    pool: Pool, work: Work[R], files: Sequence[MediaFile], take: Callable[[MediaFile, R | Problem], None]
) -> None:
    """Have workers do the work for every file, and take the results as they come, under a progress bar.

    Interrupted on Ctrl-C, between two results: what has been taken has been taken whole.
    """
    if not files:
        return
    if pool.start_method == "fork":
        work.prepare()
    weight = work.bytes_read or (lambda _file: 1)
    done = 0
    unit = "B" if work.bytes_read else work.noun
    with closing(progress_bar(sum(map(weight, files)), unit, pool.silent)) as bar:
        try:
            for file, result in results(pool, work, files):
                with interrupts_held_back():
                    take(file, result)
                    done += 1
                bar.update(weight(file))
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted: {done:,} of {plural(len(files), work.noun)} done and kept") from None


def results(pool: Pool, work: Work[R], files: Sequence[MediaFile]) -> Iterator[tuple[MediaFile, R | Problem]]:
    """Each file with what the work makes of it, as workers are done. A batch that is lost is done file by file."""

    def more(batch: Sequence[MediaFile]) -> tuple[Any, ...]:
        return work.do, [work.more(file) for file in batch]

    def seconds(batch: Sequence[MediaFile]) -> float:
        return max(map(seconds_for, batch))

    left: list[MediaFile] = []
    together = [batch for batch in batches(files, work.small) if len(batch) > 1]
    for batch, future in pool.map(for_each, together, seconds, more, again=False):
        if future.exception():
            left += batch
        else:
            yield from zip(batch, future.result(), strict=True)
    single = chain(left, (batch[0] for batch in batches(files, work.small) if len(batch) == 1))
    for file, alone in pool.map(work.do, single, seconds_for, work.more):
        lost = alone.exception()
        yield file, Problem(file.path, str(lost), getattr(lost, "lasting", False)) if lost else alone.result()


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Images: MediaFile -> ImageFingerprint
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

LUMA_CELLS = 32  # per side, of the small picture that decides what is the same
CHROMA_CELLS = LUMA_CELLS // 2
LUMA_BYTES = LUMA_CELLS**2
SIGNATURE_BYTES = LUMA_BYTES + 2 * CHROMA_CELLS**2
DATA_PARTS = 64  # of picture data, told apart to see whether another file is the same with some bits flipped


@dataclass(frozen=True, slots=True)
class Integrity:
    """What tells whether a picture's file is whole.

    Its picture data are what it is decoded from: all of a JPEG but the metadata; of other formats the whole file.
    `whole` and `sums` are found out by a closer look, only for files of groups that need one.
    """

    may_be_short: bool  # it may lack data, or have damaged ones, without showing it: see `check_whole`
    data_bytes: int  # of picture data
    # CRC-32 in hex. The two cover all bytes of the file: the disk may change some beneath the file system. Files with
    # other metadata and the same picture differ in the second alone.
    data_sum: str  # of the picture data
    other_sum: str  # of a JPEG without its scans: metadata, tables, and what follows the picture; else empty
    whole: bool = False  # it has been looked at, and lacks none
    sums: str = ""  # CRC-32 of what is shown, then of DATA_PARTS equal parts of the picture data; in hex

    def same_data(self, other: Integrity) -> bool:
        """Whether two files have the same picture data."""
        return (self.data_bytes, self.data_sum) == (other.data_bytes, other.data_sum)


class Hashes(NamedTuple):
    """What of an image's fingerprint rules out that it has a copy, for nearly all images that have none."""

    phash: int  # 64 bits
    dhash: int
    by_file: bool  # only an equal file is a copy


@dataclass(frozen=True, slots=True)
class ImageFingerprint:
    """What idem knows of a picture after decoding it once.

    The signature is LUMA_BYTES of luma row by row, then twice CHROMA_CELLS squared of Cb and of Cr, all 0-255,
    of the upright picture in sRGB, in base64: most are never compared, and decoding all would take longer than
    all other loading. `stored_signature` is made from the stored numbers where a colour profile changes them,
    else empty: a copy whose profile was stripped agrees with it. `file_digest` is the SHA-256 of the file where
    hashes and signature say too little of the picture and only an equal file is a copy, else empty.
    """

    width: int  # px, upright
    height: int
    luma_step: int  # quantisers of the mean luma and chroma of a JPEG's blocks; 0 for lossless formats
    chroma_step: int
    palette: bool
    integrity: Integrity
    file_digest: str
    phash: int
    dhash: int
    stored_metadata: bytes
    spectrum: str  # see `spectrum_of`; empty if nobody has looked
    stored_signature: bytes
    signature: bytes

    @property
    def metadata(self) -> Metadata:
        return read_metadata(self.stored_metadata)

    @property
    def hashes(self) -> Hashes:
        return Hashes(self.phash, self.dhash, bool(self.file_digest))

    @property
    def exact(self) -> object:
        """All of it that depends neither on how a decoder rounds nor on a closer look."""
        integrity = replace(self.integrity, whole=False, sums="")
        steps = self.luma_step, self.chroma_step, self.palette
        return self.width, self.height, *steps, integrity, self.file_digest

    version: ClassVar[int] = FINGERPRINT_VERSION


def read_integrity(text: bytes) -> Integrity:
    flags, size, data_sum, other_sum, sums = text.split(b":")
    return Integrity(b"s" in flags, int(size), data_sum.decode(), other_sum.decode(), b"w" in flags, sums.decode())


def written_integrity(each: Integrity) -> str:
    flags = "s" * each.may_be_short + "w" * each.whole
    return ":".join([flags, str(each.data_bytes), each.data_sum, each.other_sum, each.sums])


NO_HASHES = Hashes(0, 0, by_file=True)  # of an image of which nothing is known


def hashes_in(row: re.Match[bytes]) -> Hashes:
    """The hashes in the row of an image."""
    phash, dhash, digest = row.group("phash", "dhash", "file_digest")
    return Hashes(int(phash, 16), int(dhash, 16), bool(digest))


INTEGRITY_PATTERN = "s?w?:[0-9]{1,18}:[0-9a-f]{8}:(?:[0-9a-f]{8})?:(?:[0-9a-f]{%d})?" % (8 + 8 * DATA_PARTS)
IMAGE_CACHE: CacheFormat[ImageFingerprint] = CacheFormat(
    "images_perceptual_hash_db.csv",
    (
        *(PATH, SIZE, MTIME, hash_column("phash"), hash_column("dhash"), CTIME, VERSION, FILE_DIGEST),
        *(positive_column("width", 7), positive_column("height", 7)),
        *(number_column("luma_step", 2), number_column("chroma_step", 2), flag_column("palette")),
        Column("integrity", INTEGRITY_PATTERN, read_integrity, written_integrity),
        *(METADATA, Column("spectrum", "(?:[0-9a-f]{64})?")),
        bytes_column("stored_signature", SIGNATURE_BYTES, optional=True),
        bytes_column("signature", SIGNATURE_BYTES),
    ),
    ImageFingerprint,
    early=hashes_in,
    head=8,
)


PROXY_CACHE = replace(IMAGE_CACHE, name="heif_thumbnails_db.csv")


# ── opening ──

# Decoders idem uses: none that runs a program. Another lossy one is to be named in `is_lossless`, too.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
# Pillow would refuse what has more than 178 megapixels. Phones take 200: what counts is the memory that there is (see
# `decode`), and that the file can hold what it claims (see `check_claim`).
Image.MAX_IMAGE_PIXELS = None
# What Pillow and its codecs raise on malformed files. Anything else ends the worker, which costs that file alone.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(AssertionError, EOFError, struct.error, zlib.error),
)
MAX_IMAGE_BYTES = 4 << 30  # no camera or scanner writes a larger picture in a format idem reads
MANY_PIXELS = 25_000_000
# A blank page as a fax packs it, one bit for a row of 25,000 px. What claims more has been made to cost time.
PIXELS_PER_BYTE = 200_000
# Memory for each pixel that is decoded, as measured: Pillow's own 4 bytes, and what decoders and conversions hold.
BYTES_PER_PIXEL = 10
BYTES_PER_HEAVY_PIXEL = 18  # of WebP and AVIF, and of 16-bit, 32-bit and float greys
BYTES_PER_COEFFICIENT = 2  # of a JPEG in several scans: all are held, at whatever scale it is decoded
P = ParamSpec("P")


def problem_if_unreadable(
    work: Callable[Concatenate[MediaFile, P], R],
) -> Callable[Concatenate[MediaFile, P], R | Problem]:
    """Have a function of a file return a Problem with the reason when that file cannot be read or decoded.

    Not when memory is short: MemoryError is for the pool to deal with.
    """

    @functools.wraps(work)
    def guarded(file: MediaFile, /, *more: P.args, **named: P.kwargs) -> R | Problem:
        lasting = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters raises
            try:
                return work(file, *more, **named)
            except UnidentifiedImageError:
                reason = "not a picture in a format idem reads"
                suffix = suffix_of(file.path).lower()
                if suffix in HEIF_SUFFIXES and not can_import("pillow_heif"):
                    reason, lasting = "HEIC pictures need pillow-heif: python -m pip install pillow-heif", False
                elif suffix == ".avif" and not can_read_avif():
                    reason, lasting = "AVIF pictures need a newer Pillow: python -m pip install -U Pillow", False
            except DECODER_ERRORS as error:
                reason = reason_of(error)
                lasting = not isinstance(error, OSError) or error.errno is None
                if OUT_OF_MEMORY.search(reason):  # as decoders say it
                    raise MemoryError(reason) from None
            return Problem(file.path, reason, lasting and can_be_read(file))

    return guarded


OUT_OF_MEMORY = re.compile(  # -9 is what Pillow makes of it where libtiff has no memory
    r"out of memory|not enough memory|memory allocation|cannot allocate memory|decoder error -9\b", re.IGNORECASE
)


def can_be_read(file: MediaFile) -> bool:
    """Whether the file is still the one that was scanned, to its end: then what failed comes of its bytes.

    Not known, so False, of files that take long to read.
    """
    if file.size > MAX_IMAGE_BYTES:
        return False
    try:
        with opened_unchanged(file) as stream:
            while stream.read(READ_BLOCK):
                pass
    except (OSError, ValueError):
        return False
    return True


def can_read_avif() -> bool:
    """Whether this Pillow decodes AVIF: it can since 11.3, if it was built so."""
    if not can_import("PIL.AvifImagePlugin"):
        return False
    from PIL import AvifImagePlugin

    return AvifImagePlugin.SUPPORTED


def confirmed(
    work: Callable[Concatenate[MediaFile, P], R | Problem],
) -> Callable[Concatenate[MediaFile, P], R | Problem]:
    """Have a function that lets a program read the file try once more when it finds a lasting Problem.

    Programs hide that a drive failed for a moment. By then the whole file has been read without an error.
    """

    @functools.wraps(work)
    def twice(file: MediaFile, /, *more: P.args, **named: P.kwargs) -> R | Problem:
        found = work(file, *more, **named)
        return work(file, *more, **named) if isinstance(found, Problem) and found.lasting else found

    return twice


@functools.cache
def usable_formats() -> tuple[str, ...]:
    """PILLOW_FORMATS with their decoders loaded, AVIF where Pillow has it, and HEIF where pillow-heif is installed."""
    from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 (they register decoders)

    Image.preinit()
    formats = list(PILLOW_FORMATS)
    if can_read_avif():
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one process per core is at work already
        formats.append("AVIF")
    if can_import("pillow_heif"):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1
        pillow_heif.register_heif_opener()
        formats.append("HEIF")
    return tuple(formats)


def load_decoders() -> None:
    """Import what fingerprinting needs, so that forked workers share it instead of each importing its own."""
    import email.utils  # noqa: F401 (they read metadata)

    from PIL import IptcImagePlugin  # noqa: F401

    usable_formats()
    phash_of(np.zeros((LUMA_CELLS, LUMA_CELLS), np.uint8))  # numpy imports more when it is first called


def content_of(file: MediaFile) -> io.BytesIO:
    """All bytes of the file, in memory: some decoders hide that a drive failed, and call the file damaged.

    OSError if it cannot be read, ValueError if it has changed or is too large for a picture.
    """
    if file.size > MAX_IMAGE_BYTES:
        raise ValueError(f"{readable_size(file.size)} are too many for one picture")
    check_memory(file.size)
    with opened_unchanged(file) as stream:
        return io.BytesIO(stream.read())


def opened_picture(stream: BinaryIO) -> Image.Image:
    """The picture in an open file, with only its header read. Raises what Pillow raises.

    ValueError for what has been made to cost time or memory, by its size. MemoryError for a WebP for which there is
    too little: its decoder takes that at once, and fails without saying why.
    """
    start, size = stream.read(WEBP_HEADER), stream.seek(0, os.SEEK_END)
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"{readable_size(size)} are too many for one picture")
    if start.startswith(PNG_START):
        stream.seek(len(PNG_START))
        check_png(stream)
    pixels = webp_pixels(start)
    check_claim(pixels, size)
    check_memory(pixels * BYTES_PER_HEAVY_PIXEL)
    stream.seek(0)
    picture = Image.open(stream, formats=usable_formats())
    check_claim(picture.width * picture.height, size)
    return picture


def check_claim(pixels: int, size: int) -> None:
    """ValueError if a file of this size in bytes is too small for so many pixels."""
    if pixels > max(MANY_PIXELS, size * PIXELS_PER_BYTE):
        raise ValueError(f"{readable_size(size)} are too few for the {pixels // 10**6} megapixels that it claims")


WEBP_HEADER = 30  # bytes; they contain the size in pixels


def webp_pixels(start: bytes) -> int:
    """How many pixels a file that starts like this claims if it is a WebP (RFC 9649), else 0."""
    kind = start[12:16] if (start[:4], start[8:12]) == (b"RIFF", b"WEBP") else b""
    if kind == b"VP8X":
        return (1 + int.from_bytes(start[24:27], "little")) * (1 + int.from_bytes(start[27:30], "little"))
    if kind == b"VP8L":
        sides = int.from_bytes(start[21:25], "little")
        return (1 + (sides & 0x3FFF)) * (1 + (sides >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return (int.from_bytes(start[26:28], "little") & 0x3FFF) * (int.from_bytes(start[28:30], "little") & 0x3FFF)
    return 0


PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_PNG_METADATA = 256 << 20  # bytes; Pillow reads each piece of metadata whole
MAX_PNG_PIECES = 1 << 20  # the largest picture has 200,000 of the usual size


def check_png(stream: BinaryIO) -> None:
    """ValueError unless each piece of a PNG has the checksum it states: Pillow looks at none when it decodes.

    The file is open, after its first bytes. Not more than READ_BLOCK is held.
    """
    for _ in range(MAX_PNG_PIECES):
        head = stream.read(8)
        left, name = int.from_bytes(head[:4], "big"), head[4:]
        if name != b"IDAT" and left > MAX_PNG_METADATA:
            raise ValueError(f"damaged: {readable_size(left)} of metadata in a PNG")
        checksum = zlib.crc32(name)
        while left > 0 and (block := stream.read(min(left, READ_BLOCK))):
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
        stated = stream.read(4)
        if len(stated) < 4:
            raise ValueError("truncated: a PNG without its end")
        if checksum != int.from_bytes(stated, "big"):
            raise ValueError("damaged: a PNG with a checksum that is wrong")
        if name == b"IEND":
            return
    raise ValueError("damaged: a PNG in too many pieces")


def decode(picture: Image.Image, held: int = 0) -> None:
    """Decode a picture of which only the header has been read. Raises what Pillow raises.

    MemoryError ahead if that takes more memory than there is: for its pixels, and so many bytes that the decoder holds.
    """
    each = BYTES_PER_HEAVY_PIXEL if picture.format in ("WEBP", "AVIF") or picture.mode[0] in "IF" else BYTES_PER_PIXEL
    check_memory(picture.width * picture.height * each + held)
    picture.load()


TIFF_DEFLATE = frozenset({8, 32946})
COMPRESSION, BITS, SAMPLES, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT = 259, 258, 277, 278, 322, 323  # tags of TIFF
STRIPS, TILES = (273, 279), (324, 325)  # those of the offsets of all, and of their lengths


def is_deflated(picture: Image.Image) -> bool:
    """Whether it is a TIFF whose parts carry checksums, which libtiff does not look at."""
    return picture.format == "TIFF" and picture.tag_v2.get(COMPRESSION) in TIFF_DEFLATE  # type: ignore[attr-defined]


# ── JPEG files that lack data, or have some to spare ──

MAX_JPEG_BYTES = 1 << 30  # a JPEG is read into memory whole; no camera writes one of a gigabyte
MAX_JPEG_SEGMENTS = 1 << 16  # before the picture; their lengths have 16 bits, so that they hold 4 GB
MAX_JPEG_SCANS = 500  # each makes the decoder go over the whole picture; encoders write up to some twenty
DECODER_LOOKAHEAD = 16  # bytes; libjpeg wants up to 8 beyond those it needs
PADDING = 4  # bytes at the end of a scan that an encoder may add; none of 1,160 files had more than libjpeg reads ahead
FILLER = bytes(range(250, 0, -1))  # decodes to something else than the zeros with which libjpeg fills up
START_OF_SCAN, END_OF_IMAGE, RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD9)})
NEXT_MARKER = re.compile(b"\xff[^%s]" % re.escape(bytes(sorted(MARKERS_WITHOUT_LENGTH))), re.DOTALL)
METADATA_MARKERS = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn and COM
HUFFMAN_SEQUENTIAL, LOSSLESS = frozenset({0xC0, 0xC1}), frozenset({0xC3})
ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB})
FRAME_MARKERS = frozenset({0xC2}) | HUFFMAN_SEQUENTIAL | LOSSLESS | ARITHMETIC
SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker that the data of a scan do not contain
RESTART = re.compile(rb"\xff{1,9}[\xd0-\xd7]")  # any marker may be preceded by fill bytes, of 0xff


class Segment(NamedTuple):
    """A part of a JPEG file."""

    marker: int
    begin: int  # offset of the marker
    content: bytes  # without marker and length; of a scan its header
    data: int  # offset of what follows, which is the data of a scan
    end: int  # offset of the next segment, or of fill bytes before it


def segments_of(data: bytes) -> Iterator[Segment]:
    """The segments of a JPEG up to its end marker (ITU-T T.81, annex B). ValueError when there is none."""
    position = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = NEXT_MARKER.search(data, position)  # decoders pass over fill bytes and junk before it
        if found is None:
            raise ValueError("truncated: a JPEG without its end")
        position, marker = found.start(), data[found.end() - 1]
        if marker == END_OF_IMAGE:
            return
        end = following = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == START_OF_SCAN:
            scan_end = SCAN_END.search(data, following)
            if scan_end is None:
                raise ValueError("truncated: a JPEG without its end")
            end = scan_end.start()
            if data[end - 1] == 0xFF:
                end = following + len(data[following:end].rstrip(b"\xff"))
        yield Segment(marker, position, data[position + 4 : following], following, end)
        position = end
    raise ValueError("damaged: a JPEG in too many pieces")


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG file that has all its scans and ends as it should, as far as its markers tell."""

    data: bytes
    tables: bytes  # all segments before the first scan but the metadata (APPn and COM)
    scans: tuple[Segment, ...]
    exact: bool  # one scan, Huffman-coded, of which the decoder needs every byte
    may_be_short: bool  # in a scan, or before a restart marker, which only `check_scans` shows

    @property
    def data_bytes(self) -> int:
        """How long its picture data are."""
        return len(self.tables) + self.scans[-1].end - self.scans[0].begin

    @property
    def picture_data(self) -> bytes:
        """All that the picture is decoded from."""
        return self.tables + self.data[self.scans[0].begin : self.scans[-1].end]

    @property
    def sums(self) -> tuple[str, str]:
        """`data_sum` and `other_sum` of its `Integrity`."""
        view, begin, end = memoryview(self.data), self.scans[0].begin, self.scans[-1].end
        data_sum = zlib.crc32(view[begin:end], zlib.crc32(self.tables))
        other_sum = zlib.crc32(view[end:], zlib.crc32(view[:begin]))
        return f"{data_sum:08x}", f"{other_sum:08x}"

    @property
    def filled(self) -> bytes:
        """The file with more data than it has before every marker at which a decoder stops to read a scan."""
        parts, position = [], 0
        for scan in self.scans:
            data = RESTART.sub(lambda found: FILLER + found[0], self.data[scan.data : scan.end])
            parts += [self.data[position : scan.data], data, FILLER]
            position = scan.end
        return b"".join([*parts, self.data[position:]])


def jpeg_in(stream: BinaryIO) -> Jpeg | None:
    """The JPEG in an open file, None if it is none. ValueError when its markers show that some of it is missing.

    Data that are missing inside a scan show when the picture is decoded, see `reduced_jpeg` and `check_scans`.
    ValueError for an arithmetic-coded one, too.
    """
    start, size = stream.read(2), stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if start != b"\xff\xd8":
        return None
    if size > MAX_JPEG_BYTES:
        raise ValueError(f"{readable_size(size)} are too many for a JPEG")
    check_memory(3 * size)  # read, copied for the decoder, and one copy more on the way
    data = stream.read()
    tables: list[bytes] = []
    scans: list[Segment] = []
    frame, interval = None, 0
    for each in segments_of(data):
        if each.marker == START_OF_SCAN:
            scans.append(each)
            if len(scans) > MAX_JPEG_SCANS:
                raise ValueError(f"more than {MAX_JPEG_SCANS} scans in a JPEG")
        if scans or each.marker in METADATA_MARKERS:
            continue
        tables.append(data[each.begin : each.end])
        if each.marker in FRAME_MARKERS and len(each.content) >= 6:
            frame = each
        elif each.marker == RESTART_INTERVAL:
            interval = int.from_bytes(each.content[:2], "big")
    if not scans or frame is None:
        raise ValueError("truncated: a JPEG without picture data")
    if frame.marker in ARITHMETIC:  # few decoders read it; an encoder may drop zeros at its end, as if it were cut
        raise ValueError("idem reads no arithmetic-coded JPEGs")
    is_whole_scan = len(scans) == 1 and scans[0].content[:1] == frame.content[5:6]
    exact = is_whole_scan and frame.marker in HUFFMAN_SEQUENTIAL
    restarts = -(-units_of(frame) // interval) - 1 if exact and interval else 0
    check_restarts(data, scans[0], restarts)
    if not exact and frame.marker not in LOSSLESS and lacks_scans(scans, frame.content[6::3]):
        raise ValueError("truncated: a JPEG without its last scans")
    return Jpeg(data, b"".join(tables), tuple(scans), exact, not exact or restarts > 0)


def units_of(frame: Segment) -> int:
    """Into how many minimum coded units (MCU) a frame is divided in a scan of all its components."""
    height, width = struct.unpack_from(">HH", frame.content, 1)
    factors = [divmod(each, 16) for each in frame.content[7::3]]
    if len(factors) == 1:
        factors = [(1, 1)]
    across, down = (8 * max(1, *each) for each in zip(*factors, strict=True)) if factors else (8, 8)
    return -(-width // across) * -(-height // down)


def check_restarts(data: bytes, scan: Segment, expected: int) -> None:
    """ValueError unless a scan has so many restart markers, in their order: what stood between others is lost."""
    count = 0
    for count, found in enumerate(islice(RESTART.finditer(data, scan.data, scan.end), expected), 1):
        if data[found.end() - 1] & 7 != (count - 1) & 7:
            raise ValueError("damaged: parts of a JPEG are missing or out of order")
    if count < expected:
        raise ValueError("truncated: a JPEG without its last parts")


def lacks_scans(scans: Sequence[Segment], components: bytes) -> bool:
    """Whether the scans of a JPEG leave out a bit of a coefficient of a component."""
    missing = {(component, coefficient) for component in components for coefficient in range(64)}
    for scan in scans:
        count, header = scan.content[0] if scan.content else 0, scan.content[1:]
        if len(header) == 2 * count + 3:
            first, last, approximation = header[-3:]
            if approximation & 15 == 0:
                missing -= {(component, k) for component in header[:-3:2] for k in range(first, last + 1)}
    return bool(missing)


# ── the fingerprint ──

# px; a JPEG is decoded at the smallest scale with both sides at least this long: at an eighth, where each pixel is the
# mean of a block, half of it are enough. Other scales sharpen: text of 283 px at a half had cells 6 levels off.
DECODED_SIDE, DECODED_SIDE_OF_MEANS = 512, 256
LOSSY_STEP = 16  # quantiser assumed for lossy formats that do not tell theirs
MAX_STEP = 64  # a JPEG that claims to be still coarser is not given more tolerance for it
FLAT_RANGE = 8  # levels; a picture whose cells all lie this close together says too little to be compared
# Width and height of what a picture shows, in its own pixels: those of the last column and row may be filled in part.
Extent: TypeAlias = tuple[float, float]
# Whether rows and columns are exchanged, then rows reversed, then columns reversed, to stand a picture upright.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@problem_if_unreadable
def fingerprint_image(file: MediaFile) -> ImageFingerprint:
    """The picture's fingerprint, or why there is none. Runs in a worker process.

    The picture must decode completely: a damaged copy must never pass for a whole one.
    """
    with content_of(file) as stream:
        return fingerprint_in(stream)


def fingerprint_in(stream: io.BytesIO) -> ImageFingerprint:
    """The fingerprint of the picture in the bytes of a file. Raises DECODER_ERRORS."""
    jpeg = jpeg_in(stream)
    if jpeg:
        picture, size, extent = reduced_jpeg(jpeg)
        return fingerprint_of(picture, size, extent, stream, jpeg)
    picture = opened_picture(stream)
    decode(picture, stream.getbuffer().nbytes)
    return fingerprint_of(picture, picture.size, picture.size, stream)  # Pillow has turned a TIFF upright by now


def fingerprint_of(
    picture: Image.Image, size: tuple[int, int], extent: Extent, stream: io.BytesIO, jpeg: Jpeg | None = None
) -> ImageFingerprint:
    """The fingerprint of a decoded picture of this true size, and of the bytes of its file; see `Extent`."""
    palette, orientation = picture.mode in ("P", "PA"), orientation_of(picture)
    stored, seen = (signature_of(cells, orientation) for cells in stored_and_seen_cells(picture, extent))
    metadata = metadata_in(picture, stream, jpeg.data[jpeg.scans[-1].end :] if jpeg else b"")
    luma_step, chroma_step = quantisers(picture, stream, metadata.lossless)
    by_file = metadata.pages > 1 or is_transparent(picture) or is_flat(seen, LUMA_CELLS)
    file_digest = digest_of(stream) if by_file else ""
    data_sum, other_sum = jpeg.sums if jpeg else (sum_of(stream), "")
    integrity = Integrity(
        may_be_short=jpeg.may_be_short if jpeg else is_deflated(picture),
        data_bytes=jpeg.data_bytes if jpeg else stream.getbuffer().nbytes,
        data_sum=data_sum,
        other_sum=other_sum,
    )
    phash, dhash = perceptual_hashes(seen)
    width, height = reversed(size) if TURNS[orientation][0] else size
    return ImageFingerprint(
        width=width,
        height=height,
        luma_step=luma_step,
        chroma_step=chroma_step,
        palette=palette,
        integrity=integrity,
        file_digest=file_digest,
        phash=phash,
        dhash=dhash,
        stored_metadata=written_metadata(metadata),
        spectrum="",
        stored_signature=base64.b64encode(stored.tobytes()) if abs(stored.astype(int) - seen).max() > 1 else b"",
        signature=base64.b64encode(seen.tobytes()),
    )


# ── proxies: what proposes copies of a picture that takes long to decode ──

PROXY_SIDE = 160  # px; a thumbnail with shorter sides is not looked at
PROXY_BITS = 2  # of each hash in which a thumbnail may differ from its picture


@dataclass(frozen=True, slots=True)
class Proxy:
    """The fingerprint of the thumbnail in an HEIF, as large as that is, and with the coarsest quantisers.

    So it is taken for a copy of all that the picture would be taken for a copy of, and of more: see ProxyTable.
    """

    fingerprint: ImageFingerprint


@problem_if_unreadable
def proxy_image(file: MediaFile) -> Proxy | ImageFingerprint:
    """A proxy of an HEIF, or its fingerprint if no thumbnail in it can be trusted. Runs in a worker process."""
    with content_of(file) as stream:
        return proxy_in(stream) or fingerprint_in(stream)


def proxy_in(stream: io.BytesIO) -> Proxy | None:
    """The proxy of the HEIF in these bytes; None for other formats, and if no thumbnail in it can be trusted."""
    picture = opened_picture(stream)
    size = picture.size
    heif = unless_broken(Heif, stream.getvalue()) if picture.format == "HEIF" else None
    grid = unless_broken(heif.grid) if heif else None
    if not heif or not grid or not picture.draft("RGB", (PROXY_SIDE, PROXY_SIDE)):
        return None
    decode(picture)
    if not unless_broken(shows_a_tile, picture, heif, grid):
        return None
    scale = max(picture.size) / max(size)
    proportional = round(size[0] * scale), round(size[1] * scale)  # encoders make the sides of thumbnails even
    made = fingerprint_of(picture, proportional, picture.size, stream)
    return None if made.file_digest else Proxy(replace(made, luma_step=MAX_STEP, chroma_step=MAX_STEP))


STALE = 8  # levels; a thumbnail whose cells differ so much on average from those of a tile is of another picture
TILE_CELLS = 8  # per side, to compare it


def shows_a_tile(thumbnail: Image.Image, heif: Heif, grid: HeifGrid) -> bool:
    """Whether the thumbnail of an HEIF shows what that tile of its picture does which shows most.

    Raises DECODER_ERRORS.
    """
    shown = thumbnail.convert("L").transpose(CLOCKWISE[grid.turns]) if grid.turns else thumbnail.convert("L")
    across, down = shown.width / grid.width, shown.height / grid.height
    cells = {}
    for number, tile in enumerate(grid.tiles):
        row, column = divmod(number, grid.columns)
        left, top = column * grid.tile_width, row * grid.tile_height
        right, bottom = left + grid.tile_width, top + grid.tile_height
        if right <= grid.width and bottom <= grid.height:
            cells[tile] = small_grey(shown, (left * across, top * down, right * across, bottom * down))
    busiest = max(cells, key=lambda tile: float(cells[tile].std()))
    picture = opened_picture(io.BytesIO(heif.alone(busiest)))
    decode(picture)
    return float(np.abs(small_grey(picture.convert("L")) - cells[busiest]).mean()) <= STALE


CLOCKWISE = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}


def small_grey(picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """A part of a grey picture as TILE_CELLS squared floats."""
    return np.asarray(picture.resize((TILE_CELLS, TILE_CELLS), Image.Resampling.BOX, box), float)


# ── the tiles of an HEIF (ISO/IEC 23008-12, in boxes as in 14496-12) ──


class HeifGrid(NamedTuple):
    """A picture in equal tiles, row by row, turned so many quarters against the clock."""

    width: int  # px, before it is turned
    height: int
    columns: int
    tile_width: int
    tile_height: int
    turns: int
    tiles: list[int]  # the numbers of their items


def boxes_in(data: bytes, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box from here on. Raises struct.error."""
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        end = start + size if size else len(data)
        if end < start + head:
            return
        yield kind, data[start + head : end]
        start = end


def boxed(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


class Fields:
    """Numbers and texts in the content of a box, one after the other. Raises LookupError at its end."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.version = content[0]
        self.flags = int.from_bytes(content[1:4], "big")
        self.place = 4

    def number(self, size: int) -> int:
        return int.from_bytes(self.text(size), "big")

    def text(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self.content):
            raise LookupError("a box ends early")
        return self.content[self.place - size : self.place]


class Heif:
    """The items of an HEIF file, by their numbers: what they are, consist of and contain.

    Raises struct.error and LookupError for what is no sound one.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        meta = dict(boxes_in(dict(boxes_in(data))[b"meta"], 4))
        self.inside = meta.get(b"idat", b"")
        main = Fields(meta[b"pitm"])
        self.main = main.number(4 if main.version else 2)
        self.kinds: dict[int, bytes] = {}
        for _, content in boxes_in(meta[b"iinf"], 8 if meta[b"iinf"][0] else 6):
            entry = Fields(content)
            item = entry.number(4 if entry.version > 2 else 2)
            entry.text(2)
            self.kinds[item] = entry.text(4)
        self.parts: dict[int, list[int]] = {}
        wide = 4 if meta[b"iref"][0] else 2
        for kind, content in boxes_in(meta[b"iref"], 4):
            numbers = Fields(bytes(4) + content)
            item, count = numbers.number(wide), numbers.number(2)
            if kind == b"dimg":
                self.parts[item] = [numbers.number(wide) for _ in range(count)]
        shared = dict(boxes_in(meta[b"iprp"]))
        self.properties = list(boxes_in(shared[b"ipco"]))
        self.owned: dict[int, list[int]] = {}
        owners = Fields(shared[b"ipma"])
        for _ in range(owners.number(4)):
            item = owners.number(4 if owners.version else 2)
            size = 2 if owners.flags & 1 else 1
            self.owned[item] = [owners.number(size) & (0x7FFF if size > 1 else 0x7F) for _ in range(owners.number(1))]
        self.places = self.read_places(Fields(meta[b"iloc"]))

    def read_places(self, fields: Fields) -> dict[int, list[tuple[bool, int, int]]]:
        """Where the parts of each item lie: whether in the box for that, offset and length."""
        sizes = fields.number(2)
        offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        wide = 4 if fields.version > 1 else 2
        places: dict[int, list[tuple[bool, int, int]]] = {}
        for _ in range(fields.number(wide)):
            item = fields.number(wide)
            inside = bool(fields.version and fields.number(2) & 15)
            fields.text(2)
            base = fields.number(base_size)
            places[item] = []
            for _ in range(fields.number(2)):
                fields.text(index_size if fields.version else 0)
                offset = base + fields.number(offset_size)
                places[item].append((inside, offset, fields.number(length_size)))
        return places

    def grid(self) -> HeifGrid | None:
        """The tiles of the main picture; None if it has none, or is mirrored or cropped."""
        properties = dict(self.properties_of(self.main))
        if self.kinds[self.main] != b"grid" or not properties.keys().isdisjoint((b"imir", b"clap")):
            return None
        content, tiles = self.content(self.main), self.parts[self.main]
        _, flags, rows, columns = content[:4]
        width, height = struct.unpack_from(">II" if flags & 1 else ">HH", content, 4)
        if len(tiles) != (rows + 1) * (columns + 1):
            return None
        tile_width, tile_height = struct.unpack_from(">II", dict(self.properties_of(tiles[0]))[b"ispe"], 4)
        turns = properties.get(b"irot", b"\0")[0] & 3
        return HeifGrid(width, height, columns + 1, tile_width, tile_height, turns, tiles)

    def properties_of(self, item: int) -> list[tuple[bytes, bytes]]:
        """Kind and content of the properties of an item."""
        return [self.properties[number - 1] for number in self.owned[item]]

    def content(self, item: int) -> bytes:
        """What an item contains."""
        return b"".join(
            (self.inside if inside else self.data)[at : at + size] for inside, at, size in self.places[item]
        )

    def alone(self, item: int) -> bytes:
        """The item as the one picture of a file."""
        properties = self.properties_of(item)
        content = self.content(item)
        owned = b"".join(struct.pack("B", 0x80 | number) for number in range(1, len(properties) + 1))

        def meta(offset: int) -> bytes:
            parts = (
                boxed(b"hdlr", bytes(8) + b"pict" + bytes(13)),
                boxed(b"pitm", struct.pack(">IH", 0, 1)),
                boxed(
                    b"iinf",
                    struct.pack(">IH", 0, 1)
                    + boxed(b"infe", struct.pack(">IHH4sB", 2 << 24, 1, 0, self.kinds[item], 0)),
                ),
                boxed(
                    b"iprp",
                    boxed(b"ipco", b"".join(boxed(*each) for each in properties))
                    + boxed(b"ipma", struct.pack(">IIHB", 0, 1, 1, len(properties)) + owned),
                ),
                boxed(b"iloc", struct.pack(">IHHHHHII", 0, 0x4400, 1, 1, 0, 1, offset, len(content))),
            )
            return boxed(b"meta", bytes(4) + b"".join(parts))

        start = boxed(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
        offset = len(start) + len(meta(0)) + 8
        return start + meta(offset) + boxed(b"mdat", content)


class ReadUpTo(io.BytesIO):
    """Bytes of which no read goes beyond a border and on: so it shows whether those behind it are wanted."""

    def __init__(self, data: bytes, border: int) -> None:
        super().__init__(data)
        self.border = border

    def read(self, size: int | None = -1, /) -> bytes:
        left = self.border - self.tell()
        return super().read(left if left > 0 and (size is None or not 0 <= size <= left) else size)


def reduced_jpeg(jpeg: Jpeg) -> tuple[Image.Image, tuple[int, int], Extent]:
    """The JPEG decoded at a reduced scale, its true size, and the extent of it in the pixels of the reduced one.

    Where it is one scan the decoder must need it all and no more. libjpeg fills up what is missing before the end
    marker with grey and says nothing, so a file that was cut and closed decodes "completely". With zeros in place of
    the marker it asks for more data instead, and Pillow reports the file as truncated. And a decoder that lost its
    way in damaged data is done before their end, or does not get there.
    """
    scan = jpeg.scans[-1]
    data = jpeg.data[: scan.end] + bytes(DECODER_LOOKAHEAD) if jpeg.exact else jpeg.data
    source = ReadUpTo(data, max(scan.data, scan.end - PADDING))
    picture = Image.open(source, formats=usable_formats())
    check_claim(picture.width * picture.height, len(jpeg.data))
    size = picture.size
    side = DECODED_SIDE_OF_MEANS if min(size) >= 8 * DECODED_SIDE_OF_MEANS else DECODED_SIDE
    extent = decode_as_stored(picture, jpeg, (side, side))
    if jpeg.exact and source.tell() <= source.border:
        raise ValueError("damaged: a JPEG with more data than its picture takes")
    return picture, size, extent


def decode_as_stored(picture: Image.Image, jpeg: Jpeg, size: tuple[int, int]) -> Extent:
    """Decode an opened JPEG as YCbCr where it is stored so, at the smallest scale with both sides as long as these.

    Returns the picture's extent: libjpeg rounds the sides of a reduced one up, 2661 px to 666 for the 665.25 at a
    quarter of it.
    """
    identifiers = "".join(chr(layer[0]) for layer in picture.layer)  # type: ignore[attr-defined]
    stored_as_rgb = picture.mode == "RGB" and (picture.info.get("adobe_transform") == 0 or identifiers == "RGB")
    coefficients = 0 if jpeg.exact else picture.width * picture.height * len(identifiers)
    full = picture.size
    drafted = picture.draft("RGB" if stored_as_rgb else "YCbCr", size)
    decode(picture, coefficients * BYTES_PER_COEFFICIENT)
    return drafted[1][2:] if drafted else full


def quantisers(picture: Image.Image, stream: BinaryIO, lossless: bool) -> tuple[int, int]:
    """By what a JPEG's mean luma and chroma were divided and rounded, at most MAX_STEP; 0 where nothing was.

    A guess for other lossy formats. Of a TIFF with JPEG inside, its first strip or tile tells.
    """
    if lossless:
        return 0, 0
    if picture.format == "TIFF":
        picture = unless_broken(jpeg_inside, picture, stream) or picture
    tables = getattr(picture, "quantization", None)
    if not tables:
        return LOSSY_STEP, LOSSY_STEP
    tables = [tables.get(layer[3], [LOSSY_STEP]) for layer in picture.layer]  # type: ignore[attr-defined]
    steps = [min(MAX_STEP, table[0]) for table in tables]
    return steps[0], steps[min(1, len(steps) - 1)]


MAX_JPEG_HEADER = 1 << 16  # bytes; of a strip of a TIFF, which holds no metadata of its own


def jpeg_inside(picture: Image.Image, stream: BinaryIO) -> Image.Image:
    """The first strip or tile of a TIFF as a JPEG of which the header is read. Raises what Pillow raises."""
    tags = picture.tag_v2  # type: ignore[attr-defined]
    strips, sizes, tables = (tags.get(first, tags.get(second, b"")) for first, second in JPEG_IN_TIFF)
    strip = bytes_at(stream, strips[0], min(sizes[0], MAX_JPEG_HEADER))
    return Image.open(io.BytesIO(tables[:-2] + strip[2:] if tables else strip), formats=("JPEG",))


# Offsets and lengths of strips, or else of tiles; the tables that all share, a JPEG of its own without a picture.
JPEG_IN_TIFF = (0x0111, 0x0144), (0x0117, 0x0145), (0x015B, 0x015B)


def is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel lets a background through, on which a drawing may show or vanish."""
    if not picture.has_transparency_data:
        return False
    return picture.convert("RGBA").getchannel("A").histogram()[255] < picture.width * picture.height


def is_flat(signature: np.ndarray, cells: int) -> bool:
    """Whether the picture shows hardly anything: blank, black, one colour, or detail too fine for the cells."""
    parts = signature[: cells**2], *signature[cells**2 :].reshape(2, -1)
    return all(int(part.max()) - int(part.min()) < FLAT_RANGE for part in parts)


def perceptual_hashes(signature: np.ndarray) -> tuple[int, int]:
    """pHash and dHash, 64 bits each, of the signature's luma: those of ImageHash, without its imports."""
    luma = signature[:LUMA_BYTES].reshape(LUMA_CELLS, LUMA_CELLS)
    return phash_of(luma), dhash_of(luma)


# The lowest frequencies of a discrete cosine transform (DCT-II), each row times the sum over the cells.
HASH_SIDE = 8
COSINES = 2 * np.cos(np.pi / (2 * LUMA_CELLS) * np.outer(np.arange(HASH_SIDE), 2 * np.arange(LUMA_CELLS) + 1))


def phash_of(luma: np.ndarray) -> int:
    """pHash, 64 bits, of a grey picture of LUMA_CELLS squared: which low frequencies are above their median."""
    frequencies = (COSINES @ luma.astype(float) @ COSINES.T).round(6)  # what is 0 must not be a little more
    return bits_as_number(frequencies > np.median(frequencies))


def dhash_of(luma: np.ndarray) -> int:
    """dHash, 64 bits, of a grey picture: whether it gets brighter from each of 9 by 8 cells to the next."""
    cells = np.asarray(Image.fromarray(luma).resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS))
    return bits_as_number(cells[:, 1:] > cells[:, :-1])


def bits_as_number(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


# ── metadata: what the file says of its picture ──

BASE, GPS, IFD = ExifTags.Base, ExifTags.GPS, ExifTags.IFD
CAPTURE_TIMES = (
    (BASE.DateTimeOriginal, BASE.SubsecTimeOriginal, BASE.OffsetTimeOriginal),
    (BASE.DateTimeDigitized, BASE.SubsecTimeDigitized, BASE.OffsetTimeDigitized),
)
CAPTIONS = BASE.ImageDescription, BASE.XPTitle, BASE.XPComment
STATED_SIDES = BASE.ExifImageWidth, BASE.ExifImageHeight
READ_TAGS = frozenset(  # of the main directory, which may hold those of the camera's, too; others may be large
    {BASE.Make, BASE.Model, BASE.BodySerialNumber, BASE.CameraSerialNumber, BASE.Software, BASE.DateTime}
    | {BASE.Artist, BASE.Copyright, *STATED_SIDES}
    | {BASE.OffsetTime, BASE.Rating, BASE.XPKeywords, *CAPTIONS, *chain(*CAPTURE_TIMES)}
)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
XMP, DUBLIN_CORE = "{http://ns.adobe.com/xap/1.0/}", "{http://purl.org/dc/elements/1.1/}"
XMP_EXIF, PHOTOSHOP = "{http://ns.adobe.com/exif/1.0/}", "{http://ns.adobe.com/photoshop/1.0/}"
GAIN_MAP, APPLE_GAIN_MAP = "{http://ns.adobe.com/hdr-gain-map/1.0/}", "{http://ns.apple.com/HDRGainMap/1.0/}"
GOOGLE_CAMERA = "{http://ns.google.com/photos/1.0/camera/}"
XMP_BYTES = 4 << 20  # most that are read; what is longer holds the history of an editor
IPTC_KEYWORDS, IPTC_CAPTION = (2, 25), (2, 120)
EDITED_AFTER = timedelta(minutes=2)  # a camera has written by then what it took
# Editors, converters of RAW files, and messengers; not what runs on cameras, or on phones as "14.4.2".
EDITORS = re.compile(
    r"photoshop|lightroom|camera raw|gimp|snapseed|picasa|affinity|capture one|darktable|rawtherapee|pixelmator|luminar"
    r"|instagram|whatsapp|facebook|telegram|vsco|polarr|picsart|dxo|acdsee|paint|irfanview|xnview|photoscape|imagemagick"
    r"|digikam|aperture|iphoto|photos \d|windows photo|photo editor|digital photo professional|silkypix|facetune"
    r"|topaz|gigapixel|remini|capture nx|nx studio|viewnx",
    re.IGNORECASE,
)
# What cameras and phones write where a caption belongs.
NO_CAPTION = re.compile(
    r"[\W_]*|.*digital (still )?camera|sony dsc|samsung|dcim\\.*|dji_\d*|default|exif[ _]jpeg.*|jpeg|screenshot"
    r"|x-default|untitled|camera|(oz|r)?(nor|edf|cof|sdr|hdr|mde|ptr|btf|fbt|dav)(wo|pl)?",
    re.IGNORECASE,
)


def metadata_in(picture: Image.Image, stream: BinaryIO, behind: bytes = b"") -> Metadata:
    """What the file says of the picture, of which at least the header is read.

    The stream is that of the file, `behind` what follows the picture in a JPEG. What is broken counts as not said. An
    exception, one of DECODER_ERRORS, only comes of what stands in for a second page or frame.
    """
    tags = exif_in(picture)
    xmp, iptc = unless_broken(xmp_in, picture) or {}, unless_broken(iptc_in, picture) or {}
    taken = capture_time(tags, xmp, picture.info.get("Creation Time"))
    changed = iso_time(tags.get(BASE.DateTime), None, tags.get(BASE.OffsetTime)), iso_time(xmp.get(XMP + "ModifyDate"))
    software = plain(tags.get(BASE.Software) or xmp.get(XMP + "CreatorTool") or picture.info.get("Software"))
    keywords = tags.get(BASE.XPKeywords), xmp.get(DUBLIN_CORE + "subject"), iptc.get(IPTC_KEYWORDS)
    captions = [*(tags.get(tag) for tag in CAPTIONS), user_comment(tags), iptc.get(IPTC_CAPTION)]
    captions += [xmp.get(DUBLIN_CORE + "title"), xmp.get(DUBLIN_CORE + "description")]
    owners = tags.get(BASE.Artist), tags.get(BASE.Copyright), xmp.get(DUBLIN_CORE + "creator")
    words = {text for each in (*keywords, *captions, *owners) if not NO_CAPTION.fullmatch(text := plain(each))}
    said = Metadata(
        taken=taken,
        make=plain(tags.get(BASE.Make)),
        model=plain(tags.get(BASE.Model)),
        serial=plain(tags.get(BASE.BodySerialNumber)) or plain(tags.get(BASE.CameraSerialNumber)),
        software=software,
        edited=bool(EDITORS.search(software)) or any(is_long_after(each, taken) for each in changed),
        place=bool(unless_broken(has_place, tags, xmp)),
        rating=rating_in(xmp.get(XMP + "Rating")) or rating_in(tags.get(BASE.Rating)),
        keywords=any(map(plain, keywords)),
        caption=not all(NO_CAPTION.fullmatch(plain(each)) for each in captions),
        bits=unless_broken(bits_of, picture, stream) or 8,
        colours=COLOURS.get(picture.mode.partition(";")[0], "colour"),
        lossless=bool(unless_broken(is_lossless, picture, stream)),
        gain_map=states_gain_map(picture, xmp) and (picture.format == "HEIF" or b"\xff\xd8\xff" in behind),
        motion=has_film(picture, xmp, behind),
        live_id=unless_broken(live_id_in, tags.get(BASE.MakerNote)) or "",
        words=f"{zlib.crc32(repr(sorted(words)).encode()):08x}" if words else "",
        stated_side=max(each for each in (0, *(tags.get(tag) for tag in STATED_SIDES)) if isinstance(each, int)),
        jfif="jfif" in picture.info,
    )
    if picture.format == "MPO":
        pages, gain_map = unless_broken(others_in_mpo, stream) or (1, False)
        return replace(said, pages=pages, gain_map=said.gain_map or gain_map)
    return replace(said, pages=pages_of(picture))  # at last: another page brings metadata of its own


COLOURS = dict.fromkeys(("1", "L", "LA", "La", "I", "F"), "grey") | dict.fromkeys(("P", "PA"), "palette")


def unless_broken(read: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R | None:
    """What is read; None where the metadata are so broken that Pillow raises: they must not cost the picture."""
    try:
        return read(*arguments, **named)
    except DECODER_ERRORS:
        return None


def plain(value: object) -> str:
    """The text of a statement on one line, in characters that can be shown; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.replace(b"\0", b"").decode("latin-1")  # or UTF-16: whether it says anything shows all the same
    if isinstance(value, (list, tuple)):
        value = " ".join(map(plain, value))
    text = str(value)[: 4 * MAX_METADATA_TEXT]
    return printable(" ".join(text.replace("\0", " ").split()))[:MAX_METADATA_TEXT]


def exif_in(picture: Image.Image) -> dict[int, Any]:
    """The EXIF tags in READ_TAGS, and those in the directories of the camera and of the place, if they can be read."""
    exif = unless_broken(picture.getexif) or Image.Exif()
    tags: dict[int, Any] = {tag: unless_broken(exif.get, tag) for tag in READ_TAGS.intersection(exif)}
    for directory in (IFD.Exif, IFD.GPSInfo):
        tags |= unless_broken(exif.get_ifd, directory) or {}
    return tags


def xmp_in(picture: Image.Image) -> dict[str, str]:
    """The properties of the XMP packet by `{namespace}name`, those of lists with a space between. Raises SyntaxError.

    Before version 13 Pillow's `getxmp` leaves the namespaces out, so that the version of an editor would pass for that
    of a gain map; and it needs one more package to refuse what is refused here.
    """
    packet = picture.info.get("xmp")
    if not isinstance(packet, bytes) or len(packet) > XMP_BYTES:
        return {}
    text = packet.decode("utf-8", "replace").strip("\0\ufeff \r\n\t")
    if "<!DOCTYPE" in text:  # no program writes one; it can define entities that grow without bounds
        return {}
    from xml.etree import ElementTree

    said: dict[str, str] = {}
    for rdf in ElementTree.fromstring(text).iter(RDF + "RDF"):
        for description in rdf:
            said |= description.attrib
            said |= {each.tag: " ".join(" ".join(each.itertext()).split()) for each in description}
    return said


def iptc_in(picture: Image.Image) -> dict[tuple[int, int], Any]:
    """What the picture's IPTC record says, by numbers of record and field."""
    if not picture.info.get("photoshop") and picture.format != "TIFF":  # most have none
        return {}
    from PIL import IptcImagePlugin

    return IptcImagePlugin.getiptcinfo(cast("Any", picture)) or {}


def user_comment(tags: Mapping[int, Any]) -> object:
    """EXIF's UserComment if it says that it is text: cameras keep other data there, too."""
    comment = tags.get(BASE.UserComment)
    is_text = isinstance(comment, bytes) and comment[:8] in (b"ASCII\0\0\0", b"UNICODE\0")
    return comment[8:] if isinstance(comment, bytes) and is_text else None


def rating_in(value: object) -> int:
    """Stars from 1 to 5, -1 for what was rejected, 0 where nothing else is said."""
    found = re.match(r"-?[0-9]", plain(value))
    return max(-1, min(5, int(found[0]))) if found else 0


# ── metadata: when and where ──

TIME = re.compile(
    r"(\d{4})(?:[:/.-](\d\d)(?:[:/.-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9})\d*)?)?)?)?)?"
    r" ?(Z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)


def iso_time(text: object, fraction: object = None, offset: object = None) -> str:
    """A time as EXIF and XMP write it, in the form of `Metadata.taken`; empty if it is none."""
    found = TIME.fullmatch(plain(text))
    if found is None:
        return ""
    *parts, stated_fraction, stated_offset = found.groups()
    try:
        year, month, day, hour, minute, second = (
            int(part or least) for part, least in zip(parts, "011000", strict=True)
        )
        moment = datetime(year, month, day, hour, minute, second)
    except ValueError:  # such as 0000:00:00
        return ""
    after = re.match("[0-9]{1,9}", stated_fraction or plain(fraction))
    zone = (stated_offset or plain(offset)).replace("Z", "+00:00").replace(":", "")
    zone = f"{zone[:3]}:{zone[3:]}" if re.fullmatch("[+-](0[0-9]|1[0-4])[0-5][0-9]", zone) else ""
    return moment.isoformat() + (f".{after[0]}" if after else "") + zone


def capture_time(tags: Mapping[int, Any], xmp: Mapping[str, str], creation: object) -> str:
    """When the picture was taken, or digitized: never when its file was changed. `creation` is what a PNG says."""
    times = [iso_time(*(tags.get(tag) for tag in each)) for each in CAPTURE_TIMES]
    times += [iso_time(xmp.get(name)) for name in (XMP_EXIF + "DateTimeOriginal", PHOTOSHOP + "DateCreated")]
    if isinstance(creation, str) and not any(times):
        from email.utils import parsedate_to_datetime  # the form that the PNG specification suggests

        times += [iso_time(creation), iso_time(unless_broken(parsedate_to_datetime, creation))]
    return next(filter(None, times), "")


def is_long_after(changed: str, taken: str) -> bool:
    """Whether the times differ so much that it was not the camera that wrote the file last."""
    if not changed or not taken:
        return False
    zones = [each[-6:] if each[-6] in "+-" else "" for each in (changed, taken)]
    if not all(zones):  # both are local then
        zones = ["", ""]
    moments = [datetime.fromisoformat(each[:19] + zone) for each, zone in zip((changed, taken), zones, strict=True)]
    return abs(moments[0] - moments[1]) > EDITED_AFTER


def has_place(tags: Mapping[int, Any], xmp: Mapping[str, str]) -> bool:
    """Whether latitude and longitude are stated; 0, 0 is what a camera without a fix writes. Raises DECODER_ERRORS."""
    stated = [xmp.get(XMP_EXIF + name, "") for name in ("GPSLatitude", "GPSLongitude")]
    if all(re.match("[0-9]", each) for each in stated) and any(re.search("[1-9]", each) for each in stated):
        return True
    both = [tags.get(tag) or () for tag in (GPS.GPSLatitude, GPS.GPSLongitude)]
    parts = [float(part) for each in both for part in each]
    return all(both) and any(parts) and all(map(math.isfinite, parts))


# ── metadata: how it is stored, and what else is in the file ──


def bytes_at(stream: BinaryIO, offset: int, size: int) -> bytes:
    """Some bytes of a file from which a decoder may go on to read where it was."""
    place = stream.tell()
    stream.seek(offset)
    data = stream.read(size)
    stream.seek(place)
    return data


def bits_of(picture: Image.Image, stream: BinaryIO) -> int:
    """Bits of each channel as they are stored: Pillow decodes colours to 8. Raises DECODER_ERRORS."""
    if picture.mode in ("P", "PA"):
        return 8
    if picture.format == "PNG":
        return bytes_at(stream, PNG_DEPTH, 1)[0]
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BASE.BitsPerSample, (1,)))  # type: ignore[attr-defined]
    if picture.format == "HEIF":
        return int(picture.info["bit_depth"])
    return 1 if picture.mode == "1" else 8


PNG_DEPTH = 24  # offset


def is_lossless(picture: Image.Image, stream: BinaryIO) -> bool:
    """Whether the pixels were stored as they were."""
    if picture.format in ("JPEG", "MPO"):
        return not picture.quantization  # type: ignore[attr-defined]
    if picture.format == "TIFF":
        return picture.info.get("compression") not in ("jpeg", "tiff_jpeg", "webp")
    if picture.format != "WEBP":
        return picture.format not in ("HEIF", "AVIF")
    place, name = 12, b""
    for _ in WEBP_BEFORE_PICTURE:
        name, size = struct.unpack("<4sI", bytes_at(stream, place, 8))
        if name not in WEBP_BEFORE_PICTURE:
            break
        place += 8 + size + size % 2
    return name == b"VP8L"


WEBP_BEFORE_PICTURE = b"VP8X", b"ICCP", b"ALPH"  # each once at most


def pages_of(picture: Image.Image) -> int:
    """1, or 2 if there is a second frame or page: to count them can take minutes. Raises DECODER_ERRORS.

    The first is the current one then. What a TIFF marks as the first at a reduced resolution is no page.
    """
    pages = 2
    try:
        for number in range(1, MOST_PREVIEWS + 2):
            picture.seek(number)
            tags = picture.tag_v2 if picture.format == "TIFF" else {}  # type: ignore[attr-defined]
            if tags.get(BASE.NewSubfileType) not in REDUCED and tags.get(BASE.SubfileType) != 2:
                break
    except EOFError:
        pages = 1
    if picture.tell():
        picture.seek(0)
    return pages


MOST_PREVIEWS = 16  # of a TIFF, each half as large; with more it counts as one of several pages
REDUCED = (1, 3, 5, 7)  # bit 0 of NewSubfileType


def others_in_mpo(stream: BinaryIO) -> tuple[int, bool]:
    """Pages of a JPEG with others behind it (MPO, CIPA DC-007), as in `pages_of`; whether a gain map is among these.

    A page is what belongs to a panorama or a 3D photo, or has the size of the first and is no gain map; the others are
    previews and depth maps. Raises DECODER_ERRORS.
    """
    stream.seek(0)
    picture: Any = Image.open(stream, formats=("JPEG",))
    entries, size, pages, gain_map = picture.mpinfo[MPO_ENTRIES], picture.size, 1, False
    is_stated = states_gain_map(picture, unless_broken(xmp_in, picture) or {})
    for number, entry in enumerate(entries[1:MOST_PREVIEWS], 1):
        picture.info.pop("xmp", None)  # of the one before
        try:
            picture.seek(number)
        except DECODER_ERRORS:
            continue  # it was cut off
        is_map = is_stated or states_gain_map(picture, unless_broken(xmp_in, picture) or {})
        gain_map |= is_map
        kind = entry["Attribute"]["MPType"]
        if kind.startswith("Multi-Frame") or (picture.size == size and not is_map and "Thumbnail" not in kind):
            pages = 2
    return pages, gain_map


MPO_ENTRIES = 0xB002


def states_gain_map(picture: Image.Image, xmp: Mapping[str, str]) -> bool:
    """Whether a picture is said to have a gain map, or to be one: by Adobe and Google, by ISO 21496-1, or by Apple."""
    if GAIN_MAP + "Version" in xmp or any(name.startswith(APPLE_GAIN_MAP) for name in xmp):
        return True
    segments = getattr(picture, "applist", ())  # of a JPEG
    if any(content.startswith(b"urn:iso:std:iso:ts:21496") for _, content in segments):
        return True
    return any("hdrgainmap" in str(kind) for kind in picture.info.get("aux", ()))  # of an HEIF


def has_film(picture: Image.Image, xmp: Mapping[str, str], behind: bytes) -> bool:
    """Whether it is a motion photo and the film is there still: editors keep what is said of it and drop the film."""
    if b"MotionPhoto_Data" in behind:  # by Samsung
        return True
    is_said = "1" in (xmp.get(GOOGLE_CAMERA + "MotionPhoto"), xmp.get(GOOGLE_CAMERA + "MicroVideo"))
    return is_said and (picture.format == "HEIF" or b"ftyp" in behind)


def live_id_in(note: object) -> str:
    """The content identifier in Apple's maker note: it is a directory of tags, too. Raises DECODER_ERRORS."""
    if not isinstance(note, bytes) or not note.startswith(b"Apple iOS\0"):
        return ""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory, content = ImageFileDirectory_v2(b"MM\0\x2a\0\0\0\x08"), io.BytesIO(note)
    content.seek(APPLE_DIRECTORY)
    directory.load(content)
    return plain(directory.get(APPLE_CONTENT_IDENTIFIER))


APPLE_DIRECTORY, APPLE_CONTENT_IDENTIFIER = 14, 0x0011  # offset, tag


# ── from a picture to its cells ──

# px; profiles are applied to pictures reduced by the largest whole number that leaves both sides at least this long.
PROFILE_SIDE = 320
PROFILE_MODES = {"L": "L", "CMYK": "CMYK", "RGB": "RGB", "YCbCr": "RGB"}  # Pillow's to the profile's
# Rows: Y, Cb, Cr from R, G, B, all 0-255 (ITU-T T.871, as in JFIF).
RGB_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def stored_and_seen_cells(picture: Image.Image, extent: Extent) -> tuple[np.ndarray, np.ndarray]:
    """Y, Cb and Cr cells, each (3, LUMA_CELLS, LUMA_CELLS) floats: of the numbers as stored, and as seen.

    One and the same array unless an embedded colour profile changes the numbers. The profile is applied to the
    picture reduced to PROFILE_SIDE: the cells are those of all its pixels converted, within 3 levels, or 6 for
    ProPhoto. Of 96 squared cells they were up to 18 off: the mean of light and dark pixels converts to another colour
    than the mean of what each converts to. All pixels of a JPEG as it is decoded would take 9 ms more, for 1 level.
    """
    plain = in_plain_mode(picture)
    stored = ycbcr_cells(plain, extent)
    source = picture if picture.mode in ("L", "CMYK") else plain
    transform = profile_transform(picture.info.get("icc_profile") or b"", PROFILE_MODES.get(source.mode, ""))
    if transform is None:
        return stored, stored
    scale = max(1, min(source.size) // PROFILE_SIDE)
    reduced = source.reduce(scale)
    converted = transform(in_rgb(reduced) if PROFILE_MODES[source.mode] == "RGB" else reduced)
    return stored, ycbcr_cells(converted, (extent[0] / scale, extent[1] / scale))


def in_plain_mode(picture: Image.Image) -> Image.Image:
    """The picture as L, RGB or YCbCr; what is transparent is left as stored, see `is_transparent`."""
    if picture.mode in ("L", "RGB", "YCbCr"):
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode[0] in "IF":
        return in_eight_bits(picture)
    return picture.convert("RGB")


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit, 32-bit or float greys scaled to 8 bits: by the range its mode or its values show."""
    grey = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0, neginf=0)
    brightest = float(grey.max(initial=0))
    if picture.mode.startswith("I;16"):
        white = 65535.0
    else:
        white = next((limit for limit in (1.0, 255.0, 65535.0) if brightest <= limit), brightest)
    return Image.fromarray(np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8))


def ycbcr_cells(picture: Image.Image, extent: Extent) -> np.ndarray:
    """Y, Cb and Cr of LUMA_CELLS squared cells, shape (3, LUMA_CELLS, LUMA_CELLS), floats 0-255."""
    channels = area_cells(picture, extent, LUMA_CELLS)
    if picture.mode == "YCbCr":
        return channels
    if picture.mode == "L":
        return np.concatenate([channels, np.full((2, LUMA_CELLS, LUMA_CELLS), 128, np.float32)])
    ycbcr = np.tensordot(np.array(RGB_TO_YCBCR, np.float32), channels, axes=1)
    ycbcr[1:] += 128
    return ycbcr


BLOCK_OF_PIXELS = 1 << 18  # bytes taken from a picture at once: they fit into the processor's cache


def area_cells(picture: Image.Image, extent: Extent, cells: int) -> np.ndarray:
    """The mean of each of cells by cells equal parts of a picture's extent, shape (bands, cells, cells).

    Exact: a pixel on a border counts for both sides by its share. Pillow's BOX filter gives such pixels to one
    side, which alone made small copies differ from their originals by up to 8 levels.
    """
    width, height = picture.size
    bands = len(picture.getbands())
    rows = np.empty((cells, width * bands), np.float32)
    weights = area_weights(height, extent[1], cells)
    borders = [extent[1] * cell / cells for cell in range(cells + 1)]
    at_once = max(1, int(BLOCK_OF_PIXELS / (bands * width * extent[1] / cells)))  # cells
    for first in range(0, cells, at_once):
        block = range(first, min(cells, first + at_once))
        start, end = math.floor(borders[block.start]), min(height, math.ceil(borders[block.stop]))
        pixels = np.asarray(picture.crop((0, start, width, end))).reshape(end - start, -1)
        for cell in block:
            top, bottom = math.floor(borders[cell]), min(height, math.ceil(borders[cell + 1]))
            rows[cell] = weights[cell, top:bottom] @ pixels[top - start : bottom - start].astype(np.float32)
    return rows.reshape(cells, width, -1).transpose(2, 0, 1) @ area_weights(width, extent[0], cells).T


@functools.lru_cache(maxsize=256)
def area_weights(pixels: int, extent: float, cells: int) -> np.ndarray:
    """Row i holds by how much each pixel counts in the mean of cell i, shape (cells, pixels).

    The cells divide the extent: more than pixels - 1, and pixels at most.
    """
    borders = np.arange(cells + 1) * (extent / cells)
    left = np.arange(pixels)
    overlap = np.minimum(borders[1:, None], left + 1) - np.maximum(borders[:-1, None], left)
    return (np.clip(overlap, 0, None) * (cells / extent)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def profile_transform(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """What converts pictures in this colour profile to sRGB; None where that changes nothing or cannot be done."""
    if not profile or not mode:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return None  # viewers ignore a profile that is broken or of another colour space, too
    except DECODER_ERRORS:
        return None  # so broken that LittleCMS does not get to see it
    colours = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)])
    change = ImageChops.difference(transform.apply(colours.convert(mode)), colours.convert(mode).convert("RGB"))
    unchanged = sum(change.histogram()[channel * 256 + level] for channel in range(3) for level in (0, 1))
    return None if unchanged == 3 * change.width * change.height else transform.apply


# ── upright ──

EXIF_ORIENTATION = 0x0112


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 where there is none or the metadata is broken."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1  # only the metadata is broken: the picture itself has decoded
    return orientation if orientation in TURNS else 1


def signature_of(cells: np.ndarray, orientation: int) -> np.ndarray:
    """The signature of Y, Cb and Cr cells of a picture stored in this orientation: SIGNATURE_BYTES uint8."""
    exchanged, rows, columns = TURNS[orientation]
    upright = cells.transpose(0, 2, 1) if exchanged else cells
    upright = upright[:, :: -1 if rows else 1, :: -1 if columns else 1]
    chroma = upright[1:].reshape(2, CHROMA_CELLS, 2, CHROMA_CELLS, 2).mean(axis=(2, 4))
    levels = np.concatenate([upright[0].ravel(), chroma.ravel()])
    return levels.round().clip(0, 255).astype(np.uint8)


# ── the whole picture, for people ──

BACKDROP = (150, 150, 150)  # behind what is transparent: both a white and a black logo show on it


def seen_picture(file: MediaFile, side: int | None) -> Image.Image:
    """The file's picture as a person sees it: RGB in sRGB, upright, without metadata, not larger than `side` if given.

    Raises DECODER_ERRORS.
    """
    with opened_unchanged(file) as stream:
        picture = opened_picture(stream)
        if side and picture.format in ("JPEG", "MPO"):
            picture.draft("CMYK" if picture.mode == "CMYK" else "RGB", (side, side))
        decode(picture, file.size)
    exchanged, rows, columns = TURNS[orientation_of(picture)]
    upright = in_srgb(picture, side)
    for wanted, turn in (
        (exchanged, Image.Transpose.TRANSPOSE),
        (rows, Image.Transpose.FLIP_TOP_BOTTOM),
        (columns, Image.Transpose.FLIP_LEFT_RIGHT),
    ):
        upright = upright.transpose(turn) if wanted else upright
    upright.info = {}
    return upright


def in_srgb(picture: Image.Image, side: int | None) -> Image.Image:
    """The picture as RGB in sRGB, transparency before BACKDROP, reduced to `side` before colours are converted."""
    profile = picture.info.get("icc_profile") or b""
    transparent = picture.has_transparency_data and picture.mode[0] not in "IF"  # Pillow would clip those
    if transparent:
        source = picture.convert("RGBA")
    else:
        source = picture if picture.mode in ("L", "CMYK") else in_plain_mode(picture)
    if side:
        source.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if transparent:
        source = Image.alpha_composite(Image.new("RGBA", source.size, (*BACKDROP, 255)), source).convert("RGB")
    transform = profile_transform(profile, PROFILE_MODES.get(source.mode, ""))
    return transform(source) if transform else source.convert("RGB")


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Videos: MediaFile -> VideoFingerprint
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

FRAMES = 8  # of a video that are looked at
FRAME_SIDE = 64  # px; what ffmpeg scales them to
FRAME_CELLS = 16  # per side, of the small picture of a frame
FRAME_BYTES = FRAME_CELLS**2 + 2 * (FRAME_CELLS // 2) ** 2
DISTINCT_FRAMES = 5  # that must show something else than each other: else they prove no more than one picture does
STILL_RANGE = 8  # levels; frames that are nowhere further apart show the same
SAME_DURATION = 0.2, 0.002  # the same for copies: containers round, and audio may end later than the pictures
PIXELS_AT_ONCE = 17_000_000  # of frames decoded by one ffmpeg, which holds some ten pictures for each of them
# How far two cells of the same picture may lie apart. Each part stands for something that copying does to cells:
CELL_TOLERANCE = 2.5  # levels, for rounding in every conversion


@dataclass(frozen=True, slots=True)
class VideoFingerprint:
    """What idem knows of a video after looking at FRAMES of its frames.

    `signatures` are FRAME_BYTES for each frame, laid out like the signature of an image, in base64; `following` those
    of the next frame after each that shows something else: a copy may be off by one. `file_digest` is the SHA-256
    of the file where the frames say too little and only an equal file is a copy.
    """

    width: int  # px, upright, in square pixels
    height: int
    milliseconds: int
    quicktime_rgb: bool  # stored as RGB in a QuickTime file: see QUICKTIME_GAMMA
    whole: bool  # that it does not break off has been looked at
    flat: tuple[bool, ...]  # which frames show hardly anything: see `is_flat`
    file_digest: str
    hashes: tuple[int, ...]  # pHash of each frame
    stored_metadata: bytes
    following: bytes
    signatures: bytes

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @property
    def metadata(self) -> Metadata:
        return read_metadata(self.stored_metadata)

    @property
    def exact(self) -> object:
        """All of it that depends neither on how a decoder rounds nor on a closer look."""
        return self.width, self.height, self.milliseconds, self.quicktime_rgb, self.file_digest

    version: ClassVar[int] = FINGERPRINT_VERSION


DURATION = Column(
    "duration",
    r"[0-9]{1,8}\.[0-9]{3}",
    lambda text: int(text.replace(b".", b"")),
    lambda ms: f"{ms / 1000:.3f}",
    "milliseconds",
)
VIDEO_CACHE: CacheFormat[VideoFingerprint] = CacheFormat(
    "videos_perceptual_hash_db.csv",
    (
        *(PATH, SIZE, MTIME),
        DURATION,
        Column(
            "vhash",
            "[0-9a-f]{%d}" % (16 * FRAMES),
            lambda text: tuple(int(text[at : at + 16], 16) for at in range(0, len(text), 16)),
            lambda hashes: "".join(f"{each:016x}" for each in hashes),
            "hashes",
        ),
        *(CTIME, VERSION, positive_column("width", 6), positive_column("height", 6)),
        *(flag_column("quicktime_rgb"), flag_column("whole")),
        Column(
            "flat",
            "[01]{%d}" % FRAMES,
            lambda text: tuple(each == ord("1") for each in text),
            lambda flat: "".join("01"[each] for each in flat),
        ),
        *(FILE_DIGEST, METADATA),
        *(bytes_column(name, FRAMES * FRAME_BYTES) for name in ("following", "signatures")),
    ),
    VideoFingerprint,
)
# Of the containers that ffmpeg knows these hold what they show; playlists and scripts that open other files do not.
FFMPEG_DEMUXERS = "mov,matroska,avi,asf,flv,mpegts,mpeg,ogg"
# Whatever matrix a video names, its numbers are taken as they are: re-encoding keeps them and often loses the name.
FRAME_FILTER = (
    "scale={}:{}:flags=area:in_color_matrix=bt601:out_color_matrix=bt601:out_range=pc,format=yuv444p,setsar=1"
)
# The frame that is shown at a moment is the last one before it: so decode from some frames before to some after.
FRAMES_AHEAD = 2.5
FRAMES_AROUND = 6
FOLLOWED = 3  # of them count: the one that is shown, and two that tell what comes next
FRAME_ROUNDING = 1 / 32  # frames; which one is shown must not hang on how a container rounds its times
# Seconds ahead of the moment from which to decode: going forward, and where that missed it, looking back.
MARGINS = 0.0, -4.0, -16.0, -64.0
PROGRAM_STREAM = "mpeg"  # as in MPG and VOB files
MPEG_STREAMS = PROGRAM_STREAM, "mpegts"
STREAM_MARGINS = 1.0, 12.0, *MARGINS[1:]  # in MPEG streams seeking ends anywhere, not where decoding can start
UNTIMED_END = 3.0  # s at the end of a program stream in which ffmpeg finds no time where frames are small


@dataclass(frozen=True, slots=True)
class VideoStream:
    """What ffmpeg says of a file's first video stream."""

    seconds: float | None  # of the whole file
    width: int  # px, upright, in square pixels
    height: int
    frame_rate: float  # per second; on average, or a guess
    container: str  # as ffmpeg calls it
    quicktime_rgb: bool
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Frame:
    """What was decoded around a moment: up to FRAMES_AROUND pictures in their order."""

    times: tuple[float, ...]  # s; from when each is shown
    pictures: np.ndarray  # Y, Cb, Cr: (n, 3, height, width), uint8, full range
    shown: int  # the number of the one that is shown at the moment

    @property
    def seconds(self) -> float:
        return self.times[self.shown]

    @property
    def followed(self) -> np.ndarray:
        """The one that is shown and those that come next, FOLLOWED at most."""
        return self.pictures[self.shown : self.shown + FOLLOWED]


@functools.cache
def ffmpeg_path() -> str | None:
    """The ffmpeg on the PATH, else the one that imageio-ffmpeg brings, else None."""
    found = shutil.which("ffmpeg")
    if found or not can_import("imageio_ffmpeg"):
        return found
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None  # it was installed without a binary for this system


@confirmed
@problem_if_unreadable
def fingerprint_video(file: MediaFile, about: VideoStream | None = None) -> VideoFingerprint:
    """The video's fingerprint, or why there is none; ffmpeg is asked about it unless that has been done.

    Runs in a worker process, which is killed if ffmpeg hangs.
    """
    with opened_unchanged(file) as stream:
        about = about or video_stream(file.path)
        seconds = about.seconds or demuxed_seconds(file.path, "0:V:0")
        if about.container == PROGRAM_STREAM:
            seconds = max(seconds, demuxed_seconds(file.path, "0:V:0", seconds - UNTIMED_END))
        frames = frames_at_midpoints(file.path, about, seconds)
        if len(frames) < FRAMES:  # the sound may go on for longer than the pictures
            check_end(demuxed_seconds(file.path, "0"), seconds)
            seconds = demuxed_seconds(file.path, "0:V:0")
            frames = frames_at_midpoints(file.path, about, seconds)
        if len(frames) < FRAMES:
            raise ValueError(f"damaged: only {len(frames)} of {FRAMES} frames can be decoded")
        small = [frame_signatures(frames[number].followed) for number in range(FRAMES)]
        flat = tuple(is_flat(each[0], FRAME_CELLS) for each in small)
        signatures = np.array([each[0] for each in small])
        luma = [cell_means(frames[number].followed[:1, :1], LUMA_CELLS)[0, 0] for number in range(FRAMES)]
        says_enough = distinct(signatures[~np.array(flat)]) >= DISTINCT_FRAMES
        return VideoFingerprint(
            width=about.width,
            height=about.height,
            milliseconds=round(seconds * 1000),
            quicktime_rgb=about.quicktime_rgb,
            whole=False,
            flat=flat,
            file_digest="" if says_enough else digest_of(stream),
            hashes=tuple(phash_of(each.round().astype(np.uint8)) for each in luma),
            stored_metadata=written_metadata(about.metadata),
            following=base64.b64encode(np.array([following(each) for each in small]).tobytes()),
            signatures=base64.b64encode(signatures.tobytes()),
        )


MAX_FFMPEG_BYTES = 256 << 20  # of its output: some four million packets, or 100 films of the frames that are asked for
MAX_FFMPEG_WORDS = 16 << 20  # bytes that it says


def run_ffmpeg(*arguments: str) -> tuple[bytes, str]:
    """What ffmpeg writes to its standard output and what it says, each as far as it is of sensible length.

    OSError when there is no ffmpeg, ValueError when it writes more than that, MemoryError when it wants more than the
    task may take.
    """
    ffmpeg = ffmpeg_path()
    if ffmpeg is None:
        raise FileNotFoundError(errno.ENOENT, "videos need ffmpeg: python -m pip install imageio-ffmpeg")
    with subprocess.Popen(
        [ffmpeg, "-nostdin", "-hide_banner", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 (the other thread sleeps)
    ) as process:
        assert process.stdout and process.stderr
        said: list[bytes] = []
        listener = threading.Thread(target=read_at_most, args=(process.stderr, MAX_FFMPEG_WORDS, said))
        listener.start()
        out = process.stdout.read(MAX_FFMPEG_BYTES + 1)
        if len(out) > MAX_FFMPEG_BYTES:
            process.kill()
        listener.join()
    words = b"".join(said).decode("utf-8", "replace")
    if len(out) > MAX_FFMPEG_BYTES:
        raise ValueError("more packets than a film has")
    if process.returncode and OUT_OF_MEMORY.search(words):
        raise MemoryError("not enough memory to decode it")
    return out, words


def read_at_most(stream: IO[bytes], most: int, blocks: list[bytes]) -> None:
    """Read a stream to its end into blocks; what comes after so many bytes is dropped."""
    while block := stream.read(READ_BLOCK):
        if most > 0:
            blocks.append(block)
            most -= len(block)


def video_input(path: str) -> list[str]:
    """ffmpeg's arguments to open this file and nothing else, whatever it contains or is called."""
    return ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_DEMUXERS, "-i", f"file:{path}"]


# The line about a stream of pictures that is not just a cover, and all lines up to the next stream.
VIDEO_STREAM_LINES = re.compile(
    r"^ *Stream #\d+:\d+.*?: Video: (?!.*\(attached pic\)).*(?:\n(?! *Stream #).*)*", re.MULTILINE
)


def video_streams(files: Sequence[MediaFile]) -> dict[str, VideoStream]:
    """What ffmpeg says of these files, by path, as far as it gets: it stops at the first that it cannot read.

    Runs in a worker process.
    """
    _, said = run_ffmpeg(*(argument for file in files for argument in video_input(file.path)))
    numbers = re.findall(r"^Input #(\d+), ", said, re.MULTILINE)
    if numbers != [str(number) for number in range(len(numbers))]:
        return {}  # the name of something in a file, which may hold line feeds, passes for ffmpeg's words about another
    parts = re.split(r"^Input #\d+, ", said, flags=re.MULTILINE)[1:]
    streams = {
        file.path: parsed_stream(part, file.path)
        for file, part in zip(files, parts, strict=False)
        if part.partition(" from '")[2].startswith(f"{spoken(file.path)}':")
    }
    return {path: stream for path, stream in streams.items() if stream is not None}


PROBED_AT_ONCE = 16  # files; starting ffmpeg takes ten times as long as what it has to do for one of them


def for_one_ffmpeg(items: Sequence[T]) -> list[Sequence[T]]:
    """The items, as many together as one ffmpeg is asked about."""
    return [items[start : start + PROBED_AT_ONCE] for start in range(0, len(items), PROBED_AT_ONCE)]


def video_stream(path: str) -> VideoStream:
    """What ffmpeg says of the file. ValueError when it cannot read it or finds no video in it."""
    _, said = run_ffmpeg(*video_input(path))
    stream = parsed_stream(said.partition("Input #0, ")[2], path)
    if stream is None:
        problem = last_words(said, path)
        raise ValueError("there is no video in it" if "output file" in problem else problem)
    return stream


def last_words(said: str, path: str) -> str:
    """The last line that ffmpeg said, without the path of the file."""
    return said.replace(spoken(path), "").strip().rpartition("\n")[2].strip(": ") or "ffmpeg says nothing"


def spoken(path: str) -> str:
    """The path as ffmpeg's messages contain it."""
    return os.fsencode(f"file:{path}").decode("utf-8", "replace")


def parsed_stream(said: str, path: str) -> VideoStream | None:
    """The video stream that ffmpeg's words about this file describe, from after `Input #0, ` on; None if there is none.

    The words contain names and titles, which could say anything: so the path is taken out, and only lines that
    start as those of ffmpeg do are looked at.
    """
    container = said.partition(", from ")[0]
    said = said.replace(spoken(path), "")
    stream = VIDEO_STREAM_LINES.search(said)
    size = re.search(r", (\d{1,5})x(\d{1,5})(?: \[SAR (\d{1,9}):(\d{1,9}) )?", stream[0]) if stream else None
    if stream is None or size is None or not int(size[1]) or not int(size[2]):
        return None
    width, height = int(size[1]), int(size[2])
    if size[3] and int(size[3]) and int(size[4]):
        width = max(1, round(width * int(size[3]) / int(size[4])))
    turned = re.search(r"display ?matrix: rotation of (-?[\d.]+) degrees", stream[0], re.IGNORECASE)
    if turned and 45 < abs(float(turned[1])) % 180 < 135:
        width, height = height, width
    rate = re.search(r", (\d+(?:\.\d+)?) (?:fps|tbr)", stream[0])
    duration = re.search(r"^ *Duration: (\d+):(\d\d):(\d\d\.\d+), start: (-?[\d.]+)", said, re.MULTILINE)
    seconds: float | None = None
    if duration:
        seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
        seconds -= float(duration[4]) if container.startswith("matroska") else 0.0  # which says when it ends
    return VideoStream(
        seconds=seconds,
        width=width,
        height=height,
        frame_rate=float(rate[1]) if rate and float(rate[1]) > 0 else 25.0,
        container=container,
        quicktime_rgb=container.startswith("mov") and bool(re.search(r", (?:rgb|bgr|argb|abgr|gbr|pal8)", stream[0])),
        metadata=video_metadata(said, stream[0]),
    )


# Words about the whole file, as ffmpeg indents them. Further lines of a value start with more spaces.
FILE_WORDS = re.compile(r"^ {4}(\S.*?) *: (.*)$", re.MULTILINE)
# What they are called in files of phones and cameras, the most telling first.
TAKEN_KEYS = "com.apple.quicktime.creationdate", "creation_time"
MAKE_KEYS = "com.apple.quicktime.make", "com.android.manufacturer", "make"
MODEL_KEYS = "com.apple.quicktime.model", "com.android.model", "model"
SOFTWARE_KEYS = "com.apple.quicktime.software", "software", "encoder"
PLACE_KEYS = "com.apple.quicktime.location.iso6709", "location", "location-eng"
LIVE_ID_KEYS = ("com.apple.quicktime.content.identifier",)
VIDEO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?")
CLOCK_NEVER_SET = "1904-01-01", "1970-01-01"  # where containers start to count
PIXEL_BITS = re.compile(r"(?:p0?|p[24]|gray|gbrap?)(9|10|12|14|16)(?:le|be)?$|(?:rgb|bgr|rgba|bgra)(48|64)(?:le|be)$")


def video_metadata(said: str, stream: str) -> Metadata:
    """What a video says of itself in ffmpeg's words about its file, and in those about its stream of pictures."""
    words: dict[str, str] = {}
    for key, value in FILE_WORDS.findall(re.split(r"^ {2}Duration: ", said, maxsplit=1, flags=re.MULTILINE)[0]):
        words.setdefault(key.casefold(), value.strip())

    def first(keys: Iterable[str]) -> str:
        return next(filter(None, map(words.get, keys)), "")

    times = (VIDEO_TIME.fullmatch(words.get(key, "")) for key in TAKEN_KEYS)
    taken = next((time for time in times if time and time[1] not in CLOCK_NEVER_SET), None)
    codec = re.search(r": Video: (\w{1,20})", stream)
    pixels = re.search(r", (\w{1,20})(?:\([^()]*\))?, \d{1,5}x\d", stream)
    layout = pixels[1] if pixels else ""
    bits = PIXEL_BITS.search(layout)
    is_grey = layout.startswith(("gray", "ya8", "ya16", "mono"))
    return Metadata(
        taken=utc_offset_stated(taken) if taken else "",
        make=first(MAKE_KEYS),
        model=first(MODEL_KEYS),
        software=first(SOFTWARE_KEYS),
        place=bool(re.search("[1-9]", first(PLACE_KEYS))),
        live_id=first(LIVE_ID_KEYS),
        bits=(int(bits[1]) if bits[1] else 16) if bits else 8,
        colours="grey" if is_grey else "palette" if layout == "pal8" else "colour",
        codec=codec[1] if codec else "",
        sound=bool(re.search(r"^ *Stream #\d+:\d+\S*: Audio: ", said, re.MULTILINE)),
    )


def utc_offset_stated(time: re.Match[str]) -> str:
    """A VIDEO_TIME as `Metadata.taken` has it."""
    fraction, offset = (time[3] or "").rstrip("0").rstrip("."), time[4] or ""
    if offset == "Z":
        offset = "+00:00"
    elif offset and ":" not in offset:
        offset = f"{offset[:3]}:{offset[3:]}"
    return f"{time[1]}T{time[2]}{fraction}{offset}"


def check_end(found: float, said: float) -> None:
    """ValueError when a file ends before the time it says, in seconds."""
    if is_too_short(found, said):
        raise ValueError(f"damaged: it breaks off after {found:.1f} of {said:.1f} s")


def is_too_short(found: float, said: float) -> bool:
    """Whether so many seconds are fewer than a file says, by more than containers round."""
    return found < said - most_apart(said)


def most_apart(seconds: float) -> float:
    """By how many seconds two lengths or times may differ that are the same for copies."""
    return max(SAME_DURATION[0], SAME_DURATION[1] * seconds)


PACKETS = "-c", "copy", "-copyinkf", "-f", "framecrc", "pipe:1"  # ffmpeg's arguments to list them


def demuxed_seconds(path: str, streams: str, start: float = 0.0) -> float:
    """When the last packet of these streams ends, found out by reading the file from the start given; 0 without any.

    From its beginning only for files that do not say how long they are, or where that may not be true.
    """
    sought = ["-copyts", "-start_at_zero", "-ss", f"{max(0.0, start):.3f}"]
    table, _ = run_ffmpeg("-v", "quiet", *sought, *video_input(path), "-map", streams, *PACKETS)
    return max(packet_ends(table).values(), default=0.0)


def packet_ends(table: bytes) -> dict[int, float]:
    """When the last packet of each stream ends, by the number of the stream in ffmpeg's list of packets."""
    bases = {int(each[0]): int(each[1]) / int(each[2]) for each in re.findall(rb"#tb (\d+): (\d+)/(\d+)", table)}
    ends: dict[int, float] = defaultdict(float)
    for packet in re.finditer(rb"^(\d+), +(-?\d+), +(-?\d+), +(\d+),", table, re.MULTILINE):
        stream, decoded, shown, lasts = map(int, packet.groups())  # the second time may be missing: it is negative then
        ends[stream] = max(ends[stream], bases[stream] * (max(decoded, shown) + lasts))
    return ends


def frames_at_midpoints(
    path: str, about: VideoStream, seconds: float, size: tuple[int, int] = (FRAME_SIDE, FRAME_SIDE)
) -> dict[int, Frame]:
    """The frames shown at the midpoints of FRAMES equal parts of so many seconds, by number, that can be had.

    Most are found by seeking. Where that ends late (in streams without an index, or where a frame is shown for
    long) the file is decoded from ever further ahead of the moment. A moment with no frame after it has none.
    """
    moments = {
        number: max(0.0, min(seconds * (2 * number + 1) / (2 * FRAMES), seconds - 1 / about.frame_rate))
        for number in range(FRAMES)
    }
    together = max(1, min(FRAMES, PIXELS_AT_ONCE // (about.width * about.height)))
    found: dict[int, Frame] = {}
    for margin in STREAM_MARGINS if about.container in MPEG_STREAMS else MARGINS:
        if margin < 0 and len(found) < FRAMES:
            break
        late = {n for n, frame in found.items() if frame.seconds > moments[n] + FRAME_ROUNDING / about.frame_rate}
        missed = [number for number in range(FRAMES) if number not in found or number in late]
        for start in range(0, len(missed), together):
            some = {number: moments[number] for number in missed[start : start + together]}
            found |= decoded_frames(path, some, margin, about.frame_rate, size)
    return found


def decoded_frames(
    path: str, moments: dict[int, float], margin: float, frame_rate: float, size: tuple[int, int]
) -> dict[int, Frame]:
    """The frame of each moment, by number, as far as it can be decoded from the margin (see MARGINS) ahead of it.

    One ffmpeg opens the file once for each moment. The pictures are stacked into one, because the concat filter
    drops frames of inputs that were sought; what a moment lacks is filled up, lest it hold up the others.
    """
    inputs: list[str] = []
    graph: list[str] = []
    scaled = FRAME_FILTER.format(*size)
    for place, moment in enumerate(moments.values()):
        begin, end = moment - FRAMES_AHEAD / frame_rate, moment + FRAME_ROUNDING / frame_rate
        start = max(0.0, begin - abs(margin))
        inputs += ["-threads", "1", "-noaccurate_seek", "-ss", f"{start:.6f}", *video_input(path)]
        chosen = f"select='gte(t,{begin:.6f})',trim=end_frame={FRAMES_AROUND},{scaled}"
        if margin < 0:  # the last ones before it, in reverse
            chosen = f"select='lte(t,{end:.6f})',{scaled},reverse,trim=end_frame={FRAMES_AROUND}"
        chosen += f",showinfo@at{place}"
        filled = f"setpts=N,tpad=stop={FRAMES_AROUND},trim=end_frame={FRAMES_AROUND},tile=1x{FRAMES_AROUND},setpts=0"
        graph.append(f"[{place}:V:0]{chosen},{filled}[p{place}]")
    stack = "".join(f"[p{place}]" for place in range(len(moments)))
    graph.append(f"{stack}vstack=inputs={len(moments)}" if len(moments) > 1 else f"{stack}null")
    clock = ["-copyts", "-start_at_zero", "-filter_complex_threads", "1"]
    output = ["-filter_complex", ";".join(graph), "-frames:v", "1", "-f", "rawvideo", "pipe:1"]
    out, said = run_ffmpeg("-nostats", *clock, *inputs, *output)
    width, height = size
    if len(out) != len(moments) * FRAMES_AROUND * 3 * height * width:
        return {}
    planes = np.frombuffer(out, np.uint8).reshape(3, len(moments), FRAMES_AROUND, height, width)
    frames = {}
    for place, (number, moment) in enumerate(moments.items()):
        found = re.findall(rf"^\[showinfo@at{place} .*? n: *\d+ .*?pts_time:(-?[\d.]+)", said, re.MULTILINE)
        times = tuple(float(each) for each in found[:FRAMES_AROUND])
        if times:
            before = [at for at, seconds in enumerate(times) if seconds <= moment + FRAME_ROUNDING / frame_rate]
            shown = 0 if margin < 0 else max(before, default=0)
            frames[number] = Frame(times, planes[:, place, : len(times)].transpose(1, 0, 2, 3), shown)
    return frames


def frame_signatures(pictures: np.ndarray) -> np.ndarray:
    """The signatures of pictures as a Frame holds them, shape (n, FRAME_BYTES), uint8."""
    luma = cell_means(pictures[:, :1], FRAME_CELLS).reshape(len(pictures), -1)
    chroma = cell_means(pictures[:, 1:], FRAME_CELLS // 2).reshape(len(pictures), -1)
    return np.concatenate([luma, chroma], axis=1).round().astype(np.uint8)


def cell_means(planes: np.ndarray, cells: int) -> np.ndarray:
    """The means of cells by cells equal parts of FRAME_SIDE squared planes, in their last two axes."""
    side = FRAME_SIDE // cells
    return planes.reshape(*planes.shape[:2], cells, side, cells, side).mean(axis=(3, 5))


def following(signatures: np.ndarray) -> np.ndarray:
    """The first signature that differs from signatures[0]; the last if none does."""
    differs = np.abs(signatures.astype(int) - signatures[0]).max(axis=1) > CELL_TOLERANCE
    return signatures[int(differs.argmax())] if differs.any() else signatures[-1]


def distinct(signatures: np.ndarray) -> int:
    """How many of the signatures show something else than all before them."""
    seen: list[np.ndarray] = []
    for each in signatures.astype(int):
        if all(np.abs(each - other).max() > STILL_RANGE for other in seen):
            seen.append(each)
    return len(seen)


def video_frame(file: MediaFile, side: int) -> Image.Image:
    """The frame in the middle of a video, or else its first one, not larger than `side`. ValueError without one."""
    about = video_stream(file.path)
    scale = min(1.0, side / max(about.width, about.height))
    width, height = max(1, round(about.width * scale)), max(1, round(about.height * scale))
    shape = ["-frames:v", "1", "-vf", f"scale={width}:{height}:flags=area,setsar=1"]
    for start in ((about.seconds or 0) / 2, 0.0):
        source = ["-ss", f"{start:.3f}", *video_input(file.path), "-map", "0:V:0"]
        out, _ = run_ffmpeg("-nostats", *source, *shape, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
        if len(out) == width * height * 3:
            return Image.frombytes("RGB", (width, height), out)
    raise ValueError("no frame of it can be decoded")


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Checksums: MediaFile -> Checksum
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

CHECKSUM_WINDOW = 4 << 20  # bytes; of files larger than three of them only three windows are summed


@dataclass(frozen=True, slots=True)
class Checksum:
    """SHA-256 in hex: of a file's size and windows, or of all its bytes."""

    digest: str

    @property
    def exact(self) -> object:
        """Nothing: of windows and of all bytes there are other digests."""
        return None


def checksum_cache(name: str, column: str, shared: bool = False) -> CacheFormat[Checksum]:
    """A cache of checksums, in the columns that other tools know."""
    checksum = Column(column, "[0-9a-fA-F]{64}", lambda text: text.decode().lower(), str, "digest")
    return CacheFormat(name, (PATH, SIZE, CTIME, MTIME, checksum), Checksum, shared)


CHECKSUM_CACHE = checksum_cache("all_media_sha_hash_db.csv", "checksum", shared=True)
WHOLE_CACHE = checksum_cache("large_media_whole_sha_hash_db.csv", "sha256")  # of files compared whole


def checksum_windows(size: int) -> list[tuple[int, int]]:
    """Where the parts of a file of this size start that are summed, and how long they are.

    The whole file up to three windows, else the first one, the one in the middle and the last.
    """
    if size <= 3 * CHECKSUM_WINDOW:
        return [(0, size)]
    starts = 0, size // 2 - CHECKSUM_WINDOW // 2, size - CHECKSUM_WINDOW
    return [(start, CHECKSUM_WINDOW) for start in starts]


@problem_if_unreadable
def checksum_of(file: MediaFile) -> Checksum:
    """SHA-256 over the size (8 bytes, little-endian) and the windows of the file. Runs in a worker process."""
    return digested(file, file.size.to_bytes(8, "little"), checksum_windows(file.size))


@problem_if_unreadable
def whole_checksum_of(file: MediaFile) -> Checksum:
    """SHA-256 of the whole file. Runs in a worker process."""
    return digested(file, b"", [(0, file.size)])


def digested(file: MediaFile, head: bytes, parts: list[tuple[int, int]]) -> Checksum:
    """SHA-256 over the head and these parts of the file. OSError or ValueError when it cannot be had."""
    digest = hashlib.sha256(head)
    with opened_unchanged(file) as stream:
        for start, length in parts:
            stream.seek(start)
            left = length
            while left:
                block = stream.read(min(left, READ_BLOCK))
                if not block:
                    raise ValueError("changed while it was read")
                digest.update(block)
                left -= len(block)
    return Checksum(digest.hexdigest())


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Match: fingerprints -> Group. Pure: nothing here touches a disk
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

Fingerprint = ImageFingerprint | VideoFingerprint | Checksum


@dataclass(frozen=True, slots=True)
class Replica(Generic[F]):
    """One file of a group and its fingerprint."""

    file: MediaFile
    fingerprint: F


LOOK_VERSION = 3  # raised when verdicts change; those of another version do not count


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at two pictures or videos side by side has found."""

    copy: bool
    reason: str  # in a few words
    # Left, top, right and bottom of the spot in which they differ, if that is one; as shares of the upright picture.
    box: tuple[float, float, float, float] | None = None
    excess: float = field(default=0.0, compare=False)  # times the limit that is exceeded; 0 for copies

    version: ClassVar[int] = LOOK_VERSION


@dataclass(frozen=True, slots=True)
class Group(Generic[F]):
    """Replicas of one picture or video, best first.

    `distances` are theirs to the first, and `verdicts` what a closer look at both has found, in the same order: None
    for the first, for equal picture data, and where nobody has looked.
    """

    kind: str  # "image" or "video"
    replicas: tuple[Replica[F], ...]
    distances: tuple[int, ...]
    verdicts: tuple[Verdict | None, ...] = ()

    def verdict_on(self, number: int) -> Verdict | None:
        """That on the replica with this number."""
        return self.verdicts[number] if self.verdicts else None


AnyGroup = Group[Any]
MAX_THRESHOLD = 64  # bits in a hash
NEVER = MAX_THRESHOLD + 1  # the distance of what no threshold may group


# ── search: all pairs of hashes within a radius ──


# Costs in those of one comparison of the sweep: of a pair that shares a part, and of a hash that looks for partners.
PAIR_COST, PROBE_COST = 10, 20
BIT_STRIDE = 37  # odd, so that each of 64 bits gets a place of its own
WIDEST_PART = 16  # bits; there is a table of all values of a part


def near_pairs(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """All pairs of positions whose hashes differ in at most `radius` bits, as blocks of shape (n, 2), smaller first.

    Exactly the set that comparing every hash with every other gives, in no particular order; `hashes` is uint64.
    Many equal hashes make as many pairs as their number squared: pass each once where that is enough.
    """
    costs = {count: cost_of_parts(len(hashes), radius, count) for count in range(-(-64 // WIDEST_PART), 65)}
    count = min(costs, key=costs.__getitem__)
    if costs[count] < len(hashes) ** 2 / 2:
        return near_pairs_by_parts(hashes, radius, count)
    return near_pairs_by_sweep(hashes, radius)


def cost_of_parts(number: int, radius: int, count: int) -> float:
    """What it costs to search so many hashes, if they are evenly spread, by so many parts."""
    width = -(-64 // count)
    flips = sum(math.comb(width, bits) for bits in range(min(width, radius // count) + 1))
    return count * (2.0**width + number * flips * (PROBE_COST + PAIR_COST * number / 2 / 2.0**width))


SWEEP_TILE = 16, 8192  # rows and columns of hashes compared at once: stays inside the processor's cache


def near_pairs_by_sweep(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """`near_pairs` by comparing every hash with every other: best for many hashes and a large radius."""
    rows, columns = SWEEP_TILE
    difference, bits = np.empty(SWEEP_TILE, np.uint64), np.empty(SWEEP_TILE, np.uint8)
    for top in range(0, len(hashes), rows):
        ones = hashes[top : top + rows, None]
        for left in range(top, len(hashes), columns):
            others = hashes[None, left : left + columns]
            tile = slice(0, len(ones)), slice(0, others.shape[1])
            np.bitwise_count(np.bitwise_xor(ones, others, out=difference[tile]), out=bits[tile])
            near = np.flatnonzero(bits[tile] <= radius)  # many times faster here than np.argwhere
            if len(near):
                pairs = np.stack([near // others.shape[1] + top, near % others.shape[1] + left], axis=1)
                yield pairs[pairs[:, 0] < pairs[:, 1]]


PAIR_BLOCK = 1 << 18  # pairs compared at once: bounds memory at about 100 MB


def near_pairs_by_parts(hashes: np.ndarray, radius: int, count: int) -> Iterator[np.ndarray]:
    """`near_pairs` by comparing those that nearly share one of so many parts: best for many hashes and a small radius.

    Of any n parts of two hashes that differ in r bits, one differs in r / n bits at most (the pigeonhole principle).
    So that is what is looked for: multi-index hashing (Norouzi, Punjani and Fleet 2012). The bits are shuffled, for
    those of cells next to each other say much the same: parts of them alone would have few values.
    """
    hashes = shuffled(hashes)
    borders = [64 * part // count for part in range(count + 1)]
    masks = [np.uint64(((1 << (high - low)) - 1) << low) for low, high in pairwise(borders)]
    most = radius // count
    for number, (low, high) in enumerate(pairwise(borders)):
        part = ((hashes & masks[number]) >> np.uint64(low)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=1 << (high - low)))])  # with each value
        for flipped in flips(high - low, most):
            partner = part[order] ^ flipped
            for pairs in pairs_in_runs(order, first[partner], first[partner + 1]):
                difference = hashes[pairs[0]] ^ hashes[pairs[1]]
                near = np.flatnonzero(np.bitwise_count(difference) <= radius)
                for earlier in masks[:number]:  # found before, by an earlier part
                    near = near[np.bitwise_count(difference[near] & earlier) > most]
                yield np.sort(pairs[:, near].T, axis=1)


def shuffled(hashes: np.ndarray) -> np.ndarray:
    """The hashes with their bits in another order, in which those of neighbouring cells are far apart."""
    found = np.zeros_like(hashes)
    for place in range(64):
        found |= (hashes >> np.uint64(place * BIT_STRIDE % 64) & np.uint64(1)) << np.uint64(place)
    return found


def flips(width: int, most: int) -> Iterator[int]:
    """All numbers of so many bits with at most so many set."""
    for bits in range(min(width, most) + 1):
        yield from (sum(1 << place for place in places) for places in combinations(range(width), bits))


def pairs_with_equal(values: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of positions whose values are equal, as blocks of shape (2, n)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return pairs_in_runs(order, np.arange(len(order)), np.searchsorted(ordered, ordered, side="right"))


def pairs_in_runs(order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    """Each position in an order with those in a run of it, but none before its own: blocks of shape (2, n)."""
    starts = np.maximum(starts, np.arange(1, len(order) + 1))
    lengths = np.maximum(0, ends - starts)
    totals = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while totals[start] < totals[-1]:
        stop = max(start + 1, int(np.searchsorted(totals, totals[start] + PAIR_BLOCK, side="right")) - 1)
        ones = np.repeat(np.arange(start, stop), lengths[start:stop])
        others = starts[ones] + np.arange(len(ones)) - (totals[ones] - totals[start])
        yield np.stack([order[ones], order[others]])
        start = stop


# ── which replica is best: it is the centre of its group, and is kept ──


def dimensions_of(replica: Replica[Any]) -> tuple[int, int, float]:
    """Width and height in pixels and length in seconds; 0 for what the fingerprint does not say."""
    each = replica.fingerprint
    if isinstance(each, Checksum):
        return 0, 0, 0.0
    return each.width, each.height, each.seconds if isinstance(each, VideoFingerprint) else 0.0


def best_first(replica: Replica[Any]) -> tuple[int, bool, float, int, str]:
    """Sorts replicas: most pixels, then with a camera's data, then (videos) highest bit rate, most bytes, and path.

    The first one is the centre of its group: the one with which copies are best compared. See `ORIGINAL` for the one
    that is kept, which mostly is the same.
    """
    width, height, seconds = dimensions_of(replica)
    bit_rate = 8 * replica.file.size / seconds if seconds else 0.0
    by_camera = b"model=" in getattr(replica.fingerprint, "stored_metadata", b"")
    return -width * height, not by_camera, -bit_rate, -replica.file.size, replica.file.path


# ── comparison: the distances of fingerprints, many pairs at once ──


def match_key(replica: Replica[Any]) -> object:
    """Replicas with equal keys are copies, and need not be told apart in comparisons: they share a row."""
    each = replica.fingerprint
    if isinstance(each, Checksum):
        return replica.file.size, each.digest
    if each.file_digest:
        return each.file_digest
    if isinstance(each, VideoFingerprint):
        return each
    traits = each.palette, each.luma_step, each.chroma_step, each.stored_metadata, each.integrity.data_sum
    return each.signature, each.stored_signature, each.phash, each.dhash, each.width, each.height, traits


# ── exposures: what the clock of a camera tells ──


@dataclass(frozen=True, slots=True)
class Exposure:
    """When a camera took a picture, as far as the file states it."""

    camera: str  # make and model
    serial: str
    time: datetime  # of the camera's clock, without what follows
    fraction: float | None  # s
    offset: timedelta | None  # from UTC

    def apart(self, other: Exposure) -> float:
        """Seconds between two exposures by one camera, by what both state; infinite if they are by two cameras."""
        if self.camera != other.camera or (self.serial and other.serial and self.serial != other.serial):
            return math.inf
        seconds = (self.time - other.time).total_seconds()
        if self.offset is not None and other.offset is not None:
            seconds -= (self.offset - other.offset).total_seconds()
        if self.fraction is not None and other.fraction is not None:
            seconds += self.fraction - other.fraction
        return abs(seconds)


@functools.lru_cache(maxsize=1 << 14)
def exposure_in(stored_metadata: bytes) -> Exposure | None:
    """The exposure that metadata state; None without camera or time."""
    said = read_metadata(stored_metadata)
    stated = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:([+-])(\d\d):(\d\d))?", said.taken)
    if not stated or not (said.make or said.model):
        return None
    try:
        time = datetime.fromisoformat(stated[1])
    except ValueError:  # no calendar has it
        return None
    fraction = float(stated[2]) if stated[2] else None
    ahead = timedelta(hours=int(stated[4]), minutes=int(stated[5])) if stated[3] else None
    offset = -ahead if ahead is not None and stated[3] == "-" else ahead
    make, model = said.make.casefold(), said.model.casefold()
    camera = model if not make or model.startswith(make) else f"{make} {model}"
    return Exposure(camera, said.serial, time, fraction, offset)


def seconds_apart(one: ImageFingerprint, other: ImageFingerprint) -> float:
    """How long after each other two pictures were taken; 0 for one exposure, or if nobody can tell.

    Infinite for two cameras. Pictures with the very same data are one exposure, whatever their metadata say.
    """
    first, second = exposure_in(one.stored_metadata), exposure_in(other.stored_metadata)
    if first is None or second is None or one.integrity.same_data(other.integrity):
        return 0.0
    return first.apart(second)


NUMBERED_COPY = re.compile(r"\s*[(\[]\d+[)\]](?=\.\w+$)")  # `beach (1).jpg` and `beach (2).jpg` are copies


@functools.lru_cache(maxsize=1 << 14)
def series_of(path: str) -> tuple[str, str]:
    """Equal for files of one folder, or of that of which they went to the trash, that differ in numbers only."""
    folder, name = os.path.split(path.replace(f"{os.sep}{TRASH_FOLDER}{os.sep}", os.sep, 1))
    return folder, re.sub(r"\d+", "#", name)


def are_in_series(one: Replica[ImageFingerprint], other: Replica[ImageFingerprint]) -> bool:
    """Whether two files look like shots of a series, or pages of a scanner, that nothing but their numbers tells apart.

    They are in one folder under names that differ in a number or time, come from the same encoder at the same size, and
    hold other data. A copy has another size, encoder or folder, or a mark in its name.
    """
    if series_of(one.file.path) != series_of(other.file.path):
        return False
    names = {NUMBERED_COPY.sub("", os.path.basename(each.file.path)) for each in (one, other)}
    traits = {
        (each.width, each.height, each.luma_step, each.chroma_step, from_camera(each.metadata))
        for each in (one.fingerprint, other.fingerprint)
    }
    return len(names) == 2 and len(traits) == 1 and not one.fingerprint.integrity.same_data(other.fingerprint.integrity)


def from_camera(metadata: Metadata) -> bool:
    """Whether a camera says that it took this, and when."""
    return bool(metadata.taken and (metadata.make or metadata.model))


# Of n pictures: luma (n, 1, side, side) and chroma (n, 2, side / 2, side / 2), in levels of 0-255.
Planes = tuple[np.ndarray, np.ndarray]
# One way to compare n pairs: for which it may be done, the rows to convert, how, and the rows to compare these with.
Conversion = tuple[np.ndarray, np.ndarray, Any, np.ndarray]


Kin = Callable[[int], np.ndarray]  # the rows of a row's connected component


COMPARE_BLOCK = 1 << 10  # pairs whose signatures are compared at once: some megabytes for each step


class Table(Generic[F]):
    """Replicas as rows of arrays, best first, to compare many pairs at once; those with one `match_key` share a row.

    This class is for checksums: its rows are no copies of each other. Images and videos have subclasses. In all, `i`
    and `j` are the rows of n pairs, shape (n,) each, and what is said of the pairs has shape (n,), too.
    """

    side = 0  # cells, of a signature
    pictures = 1  # whose signatures a fingerprint holds
    level_type: type[np.number[Any]] = np.int16  # to compare them with

    def __init__(self, replicas: Iterable[Replica[F]]) -> None:
        rows: dict[object, list[Replica[F]]] = defaultdict(list)
        for replica in sorted(replicas, key=best_first):
            rows[match_key(replica)].append(replica)
        self.members = list(rows.values())
        self.fingerprints: list[Any] = [each[0].fingerprint for each in self.members]
        dimensions = [dimensions_of(each[0]) for each in self.members]
        self.width, self.height, self.seconds = np.array(dimensions, np.float64).reshape(-1, 3).T
        # Of the others only an equal file is a copy, and that is in the same row already.
        self.comparable = np.array([not getattr(each, "file_digest", "") for each in self.fingerprints], bool)

    def column(self, name: str, dtype: type) -> np.ndarray:
        """This attribute of the fingerprint of every row."""
        return np.array([getattr(each, name) for each in self.fingerprints], dtype)

    def components(self, threshold: int) -> np.ndarray:
        """The first row of the connected component of each row, shape (rows,).

        Rows within the threshold of each other are in one component; those of a component need not be.
        """
        return np.arange(len(self.members))

    def distances(self, pairs: np.ndarray) -> np.ndarray:
        """The distance of each pair of different rows, pairs being of shape (n, 2): shape (n,), int64.

        0 for copies, else what the hashes say but at least 1. NEVER for what no threshold may group: checksums, videos
        of other lengths, and where one of the two shows so little that only an equal file is a copy.
        """
        i, j = pairs.T
        distances, near = self.hash_distances(i, j)
        comparable = self.comparable[i] & self.comparable[j]
        distances[~comparable] = NEVER
        near = np.flatnonzero(near & comparable)
        for possible, one, how, other in self.conversions(i[near], j[near]):
            left = np.flatnonzero(possible & (distances[near] > 0))
            for start in range(0, len(left), COMPARE_BLOCK // self.pictures):
                part = left[start : start + COMPARE_BLOCK // self.pictures]
                distances[near[part[self.agree(one[part], how, other[part])]]] = 0
        return distances

    def without_ambiguous(self, pairs: np.ndarray, distances: np.ndarray, kin: Kin) -> np.ndarray:
        """The distances of pairs, above 0 where one may be a copy of something else among its kin."""
        return distances

    def hash_distances(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distance of each pair by hashes alone, int64, and whether it is so small that they may be copies."""
        return np.full(len(i), NEVER), np.zeros(len(i), bool)

    def conversions(self, i: np.ndarray, j: np.ndarray) -> Iterable[Conversion]:
        """The ways to compare pairs: they are copies if their signatures agree in one of them."""
        return ()

    def agree(self, i: np.ndarray, how: Any, j: np.ndarray) -> np.ndarray:
        """Whether the signatures of each i, so converted, agree with those of its j in every cell."""
        raise NotImplementedError

    def shortest(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The shortest side of each pair, in pixels."""
        return np.minimum(np.minimum(self.width[i], self.height[i]), np.minimum(self.width[j], self.height[j]))

    def planes(self, rows: np.ndarray, which: str) -> Planes:
        """All pictures of the rows; `which` is the attribute of the fingerprint that holds their signatures."""
        side, half = self.side, self.side // 2
        levels = [signature_levels(getattr(self.fingerprints[row], which)) for row in rows.tolist()]
        cells = np.array(levels, self.level_type).reshape(-1, side**2 + 2 * half**2)
        return cells[:, : side**2].reshape(-1, 1, side, side), cells[:, side**2 :].reshape(-1, 2, half, half)


@functools.lru_cache(maxsize=1 << 14)  # 25 MB: one picture is often compared with many
def signature_levels(signature: bytes) -> np.ndarray:
    """The cells of a signature as it is stored, uint8."""
    return np.frombuffer(base64.b64decode(signature), np.uint8)


# Cells propose what a closer look decides. So they may lie further apart than copying puts them in most cases: text,
# line drawings, very small copies and wide gamuts need up to about so many times the tolerance.
PROPOSED = 2
HASH_RADIUS = 6  # bits; re-encoding flips up to this many in one of the two hashes
# When one of two pictures has a palette: 256 colours shift whole areas, single cells twice as far as four together.
PALETTE_TOLERANCE = 8.0  # levels, for the mean of two by two cells
PALETTE_CONTRAST_SHARE = 0.1  # see CONTRAST_SHARE
KIN_BLOCK = 64  # pictures that one without a time is compared with at once
# How far two cells of the same picture may lie apart. Each part stands for something that copying does to cells;
# the first is CELL_TOLERANCE.
STEP_SHARE = 1 / 16  # of the quantiser of a JPEG's mean (DC) values: half a step, in coefficients of 8 levels
CONTRAST_SHARE = 0.05  # of the contrast around the cell: resampling filters blur or sharpen edges
EDGE_SHIFT = 0.15  # px of the smaller picture by which resampling moves edges; a share of the contrast, too


class ImageTable(Table[ImageFingerprint]):
    """A Table of images."""

    side = LUMA_CELLS
    radius = HASH_RADIUS

    def __init__(self, replicas: Iterable[Replica[ImageFingerprint]]) -> None:
        super().__init__(replicas)
        self.phash, self.dhash = self.column("phash", np.uint64), self.column("dhash", np.uint64)
        self.luma_step, self.chroma_step = self.column("luma_step", np.float32), self.column("chroma_step", np.float32)
        self.palette, self.profiled = self.column("palette", bool), self.column("stored_signature", bool)

    def components(self, threshold: int) -> np.ndarray:
        """See Table."""
        component = super().components(threshold)
        rows = np.flatnonzero(self.comparable)
        for pairs in related(self.phash[rows], self.dhash[rows], threshold, self.radius):
            connect(component, rows[pairs])
        return component

    def distances(self, pairs: np.ndarray) -> np.ndarray:
        """See Table. Two exposures are no copies of each other, however much alike: cells cannot tell them apart."""
        distances = super().distances(pairs)
        copies = np.flatnonzero(distances == 0)
        return self.raised(pairs, distances, [n for n in copies.tolist() if self.are_two_shots(*pairs[n].tolist())])

    def raised(self, pairs: np.ndarray, distances: np.ndarray, which: Sequence[int]) -> np.ndarray:
        """The distances, those of these pairs by the hashes alone: they are no copies."""
        distances[which] = self.hash_distances(*pairs[which].T)[0]
        return distances

    def are_two_shots(self, i: int, j: int) -> bool:
        """Whether clocks, cameras or names say that two rows that look alike are no copies."""
        if seconds_apart(self.fingerprints[i], self.fingerprints[j]) > 0:
            return True
        series, others = ({series_of(each.file.path) for each in self.members[row]} for row in (i, j))
        return not series.isdisjoint(others) and any(
            are_in_series(one, other) for one, other in product(self.members[i], self.members[j])
        )

    def without_ambiguous(self, pairs: np.ndarray, distances: np.ndarray, kin: Kin) -> np.ndarray:
        """See Table. A picture without a time that looks like several exposures may be a copy of any: it is of none."""
        mixed: dict[int, list[int]] = defaultdict(list)  # pairs of copies, by the one that has no time
        for n in np.flatnonzero(distances == 0).tolist():
            one, other = pairs[n].tolist()
            if self.is_timed(one) != self.is_timed(other):
                mixed[other if self.is_timed(one) else one].append(n)
        for row, copies in mixed.items():
            if self.is_ambiguous(row, kin(row)):
                distances = self.raised(pairs, distances, copies)
        return distances

    def is_ambiguous(self, row: int, kin: np.ndarray) -> bool:
        """Whether a picture without a time looks like two shots among these rows."""
        timed = kin[self.timed[kin]]
        like: list[int] = []
        for start in range(0, len(timed), KIN_BLOCK):  # most often the first few tell
            block = timed[start : start + KIN_BLOCK]
            like += block[self.distances(np.stack([np.full(len(block), row), block], axis=1)) == 0].tolist()
            if any(self.are_two_shots(like[0], each) for each in like[1:]):
                return True
        return False

    @functools.cached_property
    def timed(self) -> np.ndarray:
        """Which rows state their exposure."""
        return np.array([exposure_in(each.stored_metadata) is not None for each in self.fingerprints], bool)

    def is_timed(self, row: int) -> bool:
        return bool(self.timed[row])

    def hash_distances(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The larger of the Hamming distances of pHash and dHash: see Table."""
        bits = [np.bitwise_count(each[i] ^ each[j]) for each in (self.phash, self.dhash)]
        return np.maximum(1, np.maximum(*bits)).astype(np.int64), np.minimum(*bits) <= self.radius

    def conversions(self, i: np.ndarray, j: np.ndarray) -> Iterable[Conversion]:
        """As seen, or with the profile of one of the two stripped.

        One must be the other scaled, the sides of the smaller one rounded up or down.
        """
        swap = self.width[i] * self.height[i] < self.width[j] * self.height[j]
        large, small = np.where(swap, j, i), np.where(swap, i, j)
        across, down = self.width[small], self.height[small]
        lowest = np.maximum((across - 1) / self.width[large], (down - 1) / self.height[large])
        highest = np.minimum((across + 1) / self.width[large], (down + 1) / self.height[large])
        scaled = lowest < highest
        yield scaled, i, "signature", j
        yield scaled & self.profiled[i] & ~self.profiled[j], i, "stored_signature", j
        yield scaled & self.profiled[j] & ~self.profiled[i], j, "stored_signature", i

    def agree(self, i: np.ndarray, how: str, j: np.ndarray) -> np.ndarray:
        """See Table. `how` names the signature of each i to take."""
        ones, others = self.planes(i, how), self.planes(j, "signature")
        share = PROPOSED * (CONTRAST_SHARE + EDGE_SHIFT * self.side / self.shortest(i, j))
        steps = self.luma_step, self.chroma_step
        levels = [PROPOSED * (CELL_TOLERANCE + STEP_SHARE * (each[i] + each[j])) for each in steps]
        mixed = self.palette[i] != self.palette[j]
        agree = cells_agree(ones, others, levels, share, ~mixed)
        if mixed.any():
            share = np.full(len(i), PALETTE_CONTRAST_SHARE)
            mixed = cells_agree(ones, others, [2 * PALETTE_TOLERANCE] * 2, share, mixed)
            agree |= cells_agree(ones, others, [PALETTE_TOLERANCE] * 2, share, mixed, halved=True)
        return agree


class ProxyTable(ImageTable):
    """A Table of images some of which are proxies."""

    radius = HASH_RADIUS + PROXY_BITS

    def with_copies(self) -> np.ndarray:
        """The rows that may have a copy in the row or in another one of which either is a proxy: bools, shape (rows,).

        So may, unseen, those of a crowd with the same hash, and what has nearly that hash.
        """
        found = np.array([len(own) > 1 for own in self.members], bool)
        proxies = self.luma_step == MAX_STEP
        for hashes in (self.phash, self.dhash):
            _, first, back, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
            crowded = counts[back] > CROWD
            found |= crowded
            rows = np.flatnonzero(~crowded | (first[back] == np.arange(len(hashes))))
            for block in near_pairs(hashes[rows], self.radius):
                pairs = rows[block]
                pairs = pairs[proxies[pairs].any(axis=1)]
                near = crowded[pairs].any(axis=1)
                near[~near] = self.distances(pairs[~near]) == 0
                found[pairs[near]] = True
        return found


def related(phash: np.ndarray, dhash: np.ndarray, threshold: int, radius: int) -> Iterator[np.ndarray]:
    """Pairs of positions of images, blocks of shape (n, 2), that connect all that may be copies or within a threshold.

    Each such pair of images is connected, if only by way of others. Of copies one hash is within the radius.
    """
    for hashes in (phash, dhash):
        distinct, position, back = np.unique(hashes, return_index=True, return_inverse=True)
        more = np.flatnonzero(position[back] != np.arange(len(hashes)))
        yield np.stack([position[back[more]], more], axis=1)
        for pairs in near_pairs(distinct, radius):
            yield position[pairs]
    if threshold > radius:  # up to it, two hashes within the threshold are within the radius
        _, both = np.unique(np.stack([phash, dhash], axis=1), axis=0, return_index=True)
        for pairs in near_pairs(phash[both], threshold):
            one, other = both[pairs].T
            yield both[pairs[np.bitwise_count(dhash[one] ^ dhash[other]) <= threshold]]


def with_company(hashes: Sequence[Hashes], threshold: int, radius: int) -> np.ndarray:
    """Which images may have a copy, or one within the threshold, among the others: bools, shape (images,)."""
    phash, dhash, by_file = np.fromiter(chain.from_iterable(hashes), np.uint64, 3 * len(hashes)).reshape(-1, 3).T
    company = by_file > 0  # decoders of other releases may make other hashes of an equal file
    for pairs in related(phash, dhash, threshold, radius):
        company[pairs] = True
    return company


TELLING_FRAMES = 4  # that must not be flat, or there is nothing to go by
FRAME_HASH_RADIUS = 16  # bits, on average; re-encoding flips far fewer, a frame more or less at a cut some
DURATION_WINDOW = 10.0, 0.05  # s, and share of the longer one: further apart, videos are never compared
# By what a picture is stretched when the sample aspect ratio of DVD, DV and HDV material is lost or doubled.
STRETCHES = (1.0, 4 / 3, 64 / 45, 16 / 15, 32 / 27, 9 / 8)
STRETCH_TOLERANCE = 0.01  # of the proportion: half a percent either way, or
STRETCH_PIXELS = 4  # 2 px either way: encoders want even sides, some multiples of 16
FRAME_STEPS = 32, 16  # quantisers assumed for luma and chroma of two videos together: codecs do not tell theirs
AGREEING_SHARE = 3 / 4  # of the telling frames that must agree; strong compression may blur the others,
BLURRED = 2  # times the tolerance at most
QUICKTIME_GAMMA = 1.8 / 2.2  # by which QuickTime raised the luma of codecs that store RGB when it converted them
GAMMA_SHARE = 0.074  # of the contrast: the mean of pixels so raised differs from their raised mean by up to that


class VideoTable(Table[VideoFingerprint]):
    """A Table of videos."""

    side = FRAME_CELLS
    pictures = FRAMES
    level_type = np.float32

    def __init__(self, replicas: Iterable[Replica[VideoFingerprint]]) -> None:
        super().__init__(replicas)
        self.hashes = self.column("hashes", np.uint64).reshape(-1, FRAMES)
        self.flat = self.column("flat", bool).reshape(-1, FRAMES)
        self.quicktime_rgb = self.column("quicktime_rgb", bool)

    def components(self, threshold: int) -> np.ndarray:
        """See Table. In order of length, so that each is compared only with those that last about as long."""
        component = super().components(threshold)
        radius = max(threshold, FRAME_HASH_RADIUS)
        seconds, share = DURATION_WINDOW if threshold else SAME_DURATION
        order = np.flatnonzero(self.comparable)
        order = order[np.argsort(self.seconds[order], kind="stable")]
        lengths = self.seconds[order]
        longest = np.maximum(lengths + seconds, lengths / (1 - share)) + 1e-6  # s; for rounding
        near: list[np.ndarray] = []
        for place, end in enumerate(np.searchsorted(lengths, longest, side="right").tolist()):
            others = order[place + 1 : end]
            others = others[self.mean_bits(order[place : place + 1], others) <= radius]
            others = others[component[others] != component[order[place]]]
            if len(others):
                near.append(np.stack([np.full(len(others), order[place]), others], axis=1))
            if near and (len(near) == COMPARE_BLOCK or place + 1 == len(order)):
                connect(component, np.concatenate(near))
                near.clear()
        return component

    def hash_distances(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean Hamming distance of the frames, rounded up; NEVER for other lengths or too few frames: see Table."""
        bits = np.maximum(1, np.ceil(self.mean_bits(i, j)))
        bits[(bits > MAX_THRESHOLD) | ~self.last_within(DURATION_WINDOW, i, j)] = NEVER
        return bits.astype(np.int64), (bits <= FRAME_HASH_RADIUS) & self.last_within(SAME_DURATION, i, j)

    def mean_bits(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The mean Hamming distance of the frames that are not flat in both; infinite where they are too few."""
        telling = ~(self.flat[i] & self.flat[j])
        bits = (np.bitwise_count(self.hashes[i] ^ self.hashes[j]) * telling).sum(axis=-1, dtype=np.float64)
        count = telling.sum(axis=-1)
        return np.where(count >= TELLING_FRAMES, bits / np.maximum(1, count), np.inf)

    def last_within(self, window: tuple[float, float], i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Whether both last as long, but for that many seconds or that share of the longer one."""
        longest = np.maximum(self.seconds[i], self.seconds[j])
        return np.abs(self.seconds[i] - self.seconds[j]) <= np.maximum(window[0], window[1] * longest)

    def conversions(self, i: np.ndarray, j: np.ndarray) -> Iterable[Conversion]:
        """As they are, or with the luma of one as QuickTime converts RGB."""
        stretch = np.log((self.width[i] / self.height[i]) / (self.width[j] / self.height[j]))
        error = np.abs(np.abs(stretch)[:, None] - np.log(STRETCHES)).min(axis=1)
        same_shape = error <= np.maximum(STRETCH_TOLERANCE, STRETCH_PIXELS / self.shortest(i, j))
        yield same_shape, i, 1.0, j
        convertible = same_shape & (self.quicktime_rgb[i] != self.quicktime_rgb[j])
        yield convertible, i, QUICKTIME_GAMMA, j
        yield convertible, j, QUICKTIME_GAMMA, i

    def agree(self, i: np.ndarray, how: float, j: np.ndarray) -> np.ndarray:
        """See Table. `how` is the power to which the luma of each i is raised.

        Of the frames that are not flat in both most must agree within the tolerance, the others within BLURRED times
        that. A frame of one may agree with the one that follows that of the other: a copy may be off by one.
        """
        telling = ~(self.flat[i] & self.flat[j])
        agree, blurred = np.zeros(telling.shape, bool), np.zeros(telling.shape, bool)
        share = CONTRAST_SHARE + EDGE_SHIFT * self.side / self.shortest(i, j) + (GAMMA_SHARE if how != 1 else 0)
        share = np.repeat(share[:, None].astype(np.float32), FRAMES, axis=1)
        for which, other_which in (("signatures",) * 2, ("following", "signatures"), ("signatures", "following")):
            left = np.flatnonzero((telling & ~agree).any(axis=1))
            if not len(left):
                break
            ones, others = self.planes(i[left], which), self.planes(j[left], other_which)
            if how != 1:
                ones = 255 * (ones[0] / 255) ** np.float32(how), ones[1]
            for found, times in ((agree, 1), (blurred, BLURRED)):
                levels = [times * (CELL_TOLERANCE + STEP_SHARE * step) for step in FRAME_STEPS]
                wanted = (telling & ~found)[left].ravel()
                found[left] |= cells_agree(ones, others, levels, share[left].ravel(), wanted).reshape(-1, FRAMES)
        return (agree.sum(axis=1) >= AGREEING_SHARE * telling.sum(axis=1)) & (blurred | ~telling).all(axis=1)


# ── comparison: cell by cell ──

RANGE_SHARE = 1 / 8  # of the picture's own range of luma at most: a faint drawing must not fall within the tolerance


def cells_agree(
    ones: Planes, others: Planes, levels: Sequence[Any], share: np.ndarray, wanted: np.ndarray, *, halved: bool = False
) -> np.ndarray:
    """Whether a pair is wanted and no cells differ by more than the tolerance and a share of the contrast, (n,).

    The tolerance is these levels, a number or (n,) for luma and for chroma, and what RANGE_SHARE allows, whichever is
    less. The contrast is that of a cell and its eight neighbours, in the one or the other picture. `halved` compares
    the means of two by two cells.
    """
    drawn = np.minimum(*(np.ptp(planes[0].reshape(len(share), -1), axis=1) for planes in (ones, others)))
    agree = wanted.copy()
    for plane, other, level in zip(ones, others, levels, strict=True):
        left = np.flatnonzero(agree)
        if len(left):
            pair = plane[left], other[left]
            if halved:
                shape = len(left), plane.shape[1], plane.shape[2] // 2, 2, plane.shape[3] // 2, 2
                pair = pair[0].reshape(shape).mean(axis=(3, 5)), pair[1].reshape(shape).mean(axis=(3, 5))
            tolerance = np.minimum(level, np.maximum(CELL_TOLERANCE, RANGE_SHARE * drawn))[left]
            agree[left] = plane_agrees(*pair, tolerance, share[left])
    return agree


def plane_agrees(ones: np.ndarray, others: np.ndarray, tolerance: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`cells_agree` for either luma or chroma of at least one pair."""
    difference = np.abs(ones - others)
    # The cell that differs most settles nearly all pairs at a small part of the cost.
    channel, row, column = np.unravel_index(difference.reshape(len(ones), -1).argmax(axis=1), ones.shape[1:])
    pair = np.arange(len(ones))
    around = [row + step for step in (-1, 0, 1)], [column + step for step in (-1, 0, 1)]
    rows, columns = (np.clip(each, 0, ones.shape[-1] - 1) for each in around)
    cells = pair, channel, rows[:, None], columns[None]
    contrast = np.maximum(*(np.ptp(planes[cells].reshape(9, -1), axis=0) for planes in (ones, others)))
    largest = difference[pair, channel, row, column]
    agree = largest <= tolerance + share * contrast
    left = np.flatnonzero(agree & (largest > tolerance))
    contrast = np.maximum(contrast_around(ones[left]), contrast_around(others[left]))
    excess = difference[left] - share[left].reshape(-1, 1, 1, 1).astype(np.float32) * contrast
    agree[left] = excess.max(axis=(1, 2, 3), initial=0) <= tolerance[left]
    return agree


def contrast_around(planes: np.ndarray) -> np.ndarray:
    """For every cell the difference between the brightest and the darkest of it and its eight neighbours."""
    padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    extremes = []
    for pick in (np.maximum, np.minimum):
        rows = pick(pick(padded[:, :, :-2], padded[:, :, 1:-1]), padded[:, :, 2:])
        extremes.append(pick(pick(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:]))
    return extremes[0] - extremes[1]


# ── groups: stars around the best replica ──


def table_of(replicas: Iterable[Replica[F]]) -> Table[F]:
    """The Table that fits the fingerprints, which are all of one kind."""
    listed = list(replicas)
    tables: dict[type, Any] = {ImageFingerprint: ImageTable, VideoFingerprint: VideoTable, Checksum: Table}
    chosen: Table[F] = (tables[type(listed[0].fingerprint)] if listed else Table)(listed)
    return chosen


def groups_of(replicas: Iterable[Replica[F]], threshold: int) -> list[Group[F]]:
    """The groups of replicas within the threshold of the best of their group, in order of the best.

    Taken best first: a replica that no group has yet becomes the centre of one and takes every other such replica
    within the threshold of it. The order of the input does not matter. All fingerprints are of one kind.
    """
    table = table_of(replicas)
    found = {row: {row: 0} for row, members in enumerate(table.members) if len(members) > 1}
    for centre, row, bits in stars(table, threshold):
        found.pop(row, None)
        found.setdefault(centre, {centre: 0})[row] = bits
    groups = []
    for centre in sorted(found):
        pairs = [(replica, bits) for row, bits in found[centre].items() for replica in table.members[row]]
        if len(found[centre]) > 1:  # the members of one row are in order
            pairs.sort(key=lambda pair: best_first(pair[0]))
        replicas, distances = zip(*pairs, strict=True)
        groups.append(Group(kind_of(replicas[0].file), replicas, distances))
    return groups


def stars(table: Table[F], threshold: int) -> Iterator[tuple[int, int, int]]:
    """Centre, other row and distance, for every row that a centre takes.

    In rounds: in each, the best row that is left of every connected component becomes a centre and takes those near
    it. So a row is compared with the centres of its component only, all components at once.
    """
    component = table.components(threshold)
    order = waiting = np.argsort(component, kind="stable")
    sorted_component = component[order]

    def kin(row: int) -> np.ndarray:
        first, after = np.searchsorted(sorted_component, [component[row], component[row] + 1])
        return order[first:after]

    while len(waiting):
        starts = np.flatnonzero(np.diff(component[waiting], prepend=-1))
        centres = np.repeat(waiting[starts], np.diff(starts, append=len(waiting)))
        pairs = np.stack([centres, waiting], axis=1)[centres != waiting]
        distances = table.without_ambiguous(pairs, table.distances(pairs), kin)
        near = distances <= threshold
        yield from zip(*pairs[near].T.tolist(), distances[near].tolist(), strict=True)
        waiting = pairs[~near, 1]


def distances_from(replica: Replica[F], others: Sequence[Replica[F]]) -> list[int]:
    """The distance of each of these replicas, one of which it is, from this one: 0 for copies of it, and for itself."""
    table = table_of(others)
    row_of = {each.file: row for row, members in enumerate(table.members) for each in members}
    own = row_of[replica.file]
    distances = np.zeros(len(table.members), np.int64)
    rows = np.flatnonzero(np.arange(len(distances)) != own)
    pairs = np.stack([np.full(len(rows), own), rows], axis=1)
    distances[rows] = table.without_ambiguous(pairs, table.distances(pairs), lambda _row: np.arange(len(distances)))
    return [int(distances[row_of[each.file]]) for each in others]


CROWD = 32  # pictures that look alike; of more, each is compared only with
NEAREST = 16  # those that are nearest to it, among
MOST_ALIKE = 8  # of them, the first of which is most likely their original
WINDOW = 128  # on either side of it, in order of their mean luma


def related_groups(replicas: Iterable[Replica[F]]) -> list[Group[F]]:
    """The connected components of replicas at distance 0, in order of `best_first`: what a closer look is to part.

    The distances are 0 throughout: those of a component need not be at distance 0 of each other. The order of the input
    does not matter. All fingerprints are of one kind.
    """
    table = table_of(replicas)
    rough = table.components(0)
    order = np.argsort(rough, kind="stable")
    firsts, starts, counts = np.unique(rough[order], return_index=True, return_counts=True)
    ends = starts + counts
    runs = {first: order[start:end] for first, start, end in np.stack([firsts, starts, ends], axis=1).tolist()}
    sizes = np.bincount(rough, minlength=len(rough))[rough]
    component = np.arange(len(rough))
    few = np.flatnonzero((sizes > 1) & (sizes <= CROWD))
    pairs: Iterable[np.ndarray] = (few[block.T] for block in pairs_with_equal(rough[few]))
    crowds = (run for run in runs.values() if len(run) > CROWD)
    for block in chain(pairs, (pairs_of_nearest(table, run, NEAREST) for run in crowds)):
        # Also what is ambiguous: whoever parts the group must see all that it may be a copy of.
        connect(component, block[table.distances(block) == 0])
    members: dict[int, list[Replica[F]]] = defaultdict(list)
    for row, first in enumerate(component.tolist()):
        members[first] += table.members[row]
    groups = (sorted(each, key=best_first) for each in members.values() if len(each) > 1)
    return [Group(kind_of(each[0].file), tuple(each), (0,) * len(each)) for each in groups]


def pairs_of_nearest(table: Table[F], rows: np.ndarray, count: int) -> np.ndarray:
    """Pairs of each of these rows and so many that are nearest to it, nearest first, shape (n, 2).

    Nearest in the mean difference of their luma cells, among the WINDOW rows on either side in order of mean luma: so
    a long series takes no more than a multiple of its length.
    """
    luma = table.planes(rows, "signature" if table.pictures == 1 else "signatures")[0]
    luma = luma.reshape(len(rows), -1).astype(np.float32)
    by_mean = np.argsort(luma.mean(axis=1), kind="stable")
    found = []
    for place, number in enumerate(by_mean.tolist()):
        others = by_mean[max(0, place - WINDOW) : place + WINDOW + 1]
        others = others[others != number]
        near = np.argsort(np.abs(luma[others] - luma[number]).mean(axis=1), kind="stable")[:count]
        found.append(np.stack([np.full(len(near), rows[number]), rows[others[near]]], axis=1))
    return np.concatenate(found)


def candidates_before(replicas: Sequence[Replica[F]]) -> list[list[int]]:
    """For each of some related replicas the numbers of those before it that are at distance 0, likeliest first.

    That is the first one of the MOST_ALIKE nearest, then all of CROWD, nearest first. No two are equal.
    """
    if len(replicas) < 2:
        return [[] for _ in replicas]
    table = table_of(replicas)
    number_of = {each.file: number for number, each in enumerate(replicas)}
    numbers = np.array([number_of[members[0].file] for members in table.members])  # of the rows
    near = numbers[pairs_of_nearest(table, np.arange(len(numbers)), CROWD)]
    found = copies_among(replicas, near[near[:, 1] < near[:, 0]].tolist())
    return [sorted(each, key=min(each[:MOST_ALIKE]).__ne__) if each else each for each in found]


def copies_among(replicas: Sequence[Replica[F]], pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each of some related replicas those numbers with which a pair puts it, at distance 0 of it, in their order.

    No two replicas are equal.
    """
    found: list[list[int]] = [[] for _ in replicas]
    table = table_of(replicas)
    row_of = {members[0].file: row for row, members in enumerate(table.members)}
    rows = np.array([row_of[each.file] for each in replicas])
    asked = rows[np.array(pairs, int).reshape(-1, 2)]
    distances = table.without_ambiguous(asked, table.distances(asked), lambda _row: np.arange(len(rows)))
    for (number, other), distance in zip(pairs, distances.tolist(), strict=True):
        if distance == 0:
            found[number].append(other)
    return found


def hash_distance(one: Replica[F], other: Replica[F]) -> int:
    """The distance of two replicas that are no copies of each other, however much alike: what the hashes say."""
    table = table_of([one, other])
    return int(table.hash_distances(np.array([0]), np.array([1]))[0][0])


def matches_in_trash(
    replicas: Iterable[Replica[F]],
    trash: str,
    threshold: int,
    refuted: Container[tuple[str, str]] = frozenset(),
) -> list[Group[F]]:
    """Each replica inside the trash folder with the best one outside of it that is within the threshold, if any.

    All fingerprints are of one kind. The live ones are the centres, in rounds as in `stars`, and stay so all along:
    a live one near another still stands for what is only near itself. `refuted` are pairs of paths, of a live and a
    trashed file, that are known to be no copies.
    """
    table = table_of(replicas)
    live_in = [next((each for each in own if not is_inside(each.file.path, trash)), None) for own in table.members]
    has_live = np.array([each is not None for each in live_in], bool)
    match = np.where(has_live, np.arange(len(has_live)), -1)  # the row of the live one
    bits = np.zeros(len(match), np.int64)
    component = table.components(threshold)
    live = np.flatnonzero(has_live)
    live = live[np.argsort(component[live], kind="stable")]
    trashed = np.flatnonzero(~has_live)
    first = np.searchsorted(component[live], component[trashed], side="left")  # of those in the same component
    after = np.searchsorted(component[live], component[trashed], side="right")
    waiting = np.stack([trashed, first, after])
    while (waiting := waiting[:, waiting[1] < waiting[2]]).size:
        rows, places, _ = waiting
        distances = table.distances(np.stack([live[places], rows], axis=1))
        near = distances <= threshold
        for n in np.flatnonzero(near).tolist() if refuted else ():
            one, other = live_in[live[places[n]]], table.members[rows[n]]
            near[n] = one is not None and all((one.file.path, each.file.path) not in refuted for each in other)
        match[rows[near]], bits[rows[near]] = live[places[near]], distances[near]
        waiting = waiting[:, ~near]
        waiting[1] += 1
    found = []
    for own, row, distance in zip(table.members, match.tolist(), bits.tolist(), strict=True):
        kept = live_in[row] if row >= 0 else None
        for each in own if kept else ():
            if kept and is_inside(each.file.path, trash):
                pair = tuple(sorted((kept, each), key=best_first))
                found.append(Group(kind_of(each.file), pair, (0, distance)))
    return found


def connect(component: np.ndarray, pairs: np.ndarray) -> None:
    """Unite the connected components of both rows of each pair: union-find over arrays.

    `component` holds for every row the first one of its component, before and after.
    """
    while len(pairs):
        one, other = component[pairs[:, 0]], component[pairs[:, 1]]
        pairs = pairs[one != other]
        low, high = np.minimum(one, other), np.maximum(one, other)
        np.minimum.at(component, high, low)
        while (shorter := component[component]).tobytes() != component.tobytes():
            component[:] = shorter


def recoverable_bytes(group: AnyGroup) -> int:
    """Bytes freed if every copy of the first replica goes; look-alikes are none."""
    copies = zip(group.replicas[1:], group.distances[1:], strict=True)
    return sum(replica.file.size for replica, distance in copies if distance == 0)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Closer look: groups and pairs -> files that are whole, and verdicts on which are copies
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

TAIL = 3.0  # s before the end of a video from which on it is read


@dataclass(frozen=True, slots=True)
class CloserLook(Generic[F]):
    """Which replicas of groups want a look, what a worker does with each, and the fingerprint that comes of it.

    A file of which the worker or the judge returns a Problem is left out.
    """

    wanting: Callable[[Sequence[Group[F]]], list[Replica[F]]]
    work: Work[Any]
    judge: Callable[[Replica[F], Any], F | Problem]
    more: Callable[[F], tuple[Any, ...]] = lambda _fingerprint: ()  # arguments of the work after the file


def proven_groups(
    replicas: Iterable[Replica[F]],
    grouped: Callable[[Iterable[Replica[F]]], list[Group[F]]],
    looks: Sequence[CloserLook[F]],
    store: Callable[[MediaFile, F], None],
    pool: Pool,
) -> tuple[list[Group[F]], list[Problem]]:
    """The groups that are left when all looks are done that they want, and the files that were left out.

    The looks are taken in order, each with the groups that those before it have left, and what they find is stored.
    """
    standing = {replica.file.path: replica for replica in replicas}
    rejected: list[Problem] = []
    while True:
        groups = grouped(standing.values())
        looked = next(filter(None, (looked_at(look, groups, store, pool) for look in looks)), None)
        judged: Mapping[str, Replica[F] | Problem] = looked or contradicting(groups)
        if not judged:
            return groups, rejected
        for path, verdict in judged.items():
            if isinstance(verdict, Problem):
                rejected.append(verdict)
                del standing[path]
            else:
                standing[path] = verdict


def looked_at(
    look: CloserLook[F], groups: Sequence[Group[F]], store: Callable[[MediaFile, F], None], pool: Pool
) -> dict[str, Replica[F] | Problem]:
    """By path, what becomes of the replicas that want this look."""
    wanting = {replica.file: replica for replica in look.wanting(groups)}
    judged: dict[str, Replica[F] | Problem] = {}

    def take(file: MediaFile, result: Any) -> None:
        verdict = result if isinstance(result, Problem) else look.judge(wanting[file], result)
        if isinstance(verdict, Problem):
            judged[file.path] = verdict
            return
        judged[file.path] = Replica(file, verdict)
        store(file, verdict)

    compute(pool, replace(look.work, more=lambda file: look.more(wanting[file].fingerprint)), list(wanting), take)
    return judged


# ── nothing on the word of a cache ──


@problem_if_unreadable
def read_anew(file: MediaFile, make: Callable[..., Any]) -> Any:
    """What `make` makes of the file, every byte of which has been read from the disk. Runs in a worker process."""
    with opened_unchanged(file) as stream:
        if hasattr(os, "posix_fadvise"):  # else what it is in memory would be read, which the disk may have lost
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while stream.read(READ_BLOCK):
            pass
    return make(file)


def made_anew(
    work: Work[F],
    wanted: Callable[[MediaFile], bool],
    judge: Callable[[Replica[F], F], F | Problem] = lambda _cached, fingerprint: fingerprint,
) -> CloserLook[F]:
    """The look at those files of groups that are wanted: their fingerprint is made again, from the disk."""
    return CloserLook(
        wanting=lambda groups: [each for group in groups for each in group.replicas if wanted(each.file)],
        work=replace(work, do=read_anew),
        judge=judge,
        more=lambda _fingerprint: (work.do,),
    )


def unless_changed(known: Replica[F], fingerprint: F) -> F | Problem:
    """The fingerprint made anew; a Problem if it is that of another file than the known one."""
    if fingerprint.exact == known.fingerprint.exact:
        return fingerprint
    return Problem(known.file.path, "it is not what it was when it was scanned")


# ── pictures that are damaged ──


@problem_if_unreadable
def data_sums(file: MediaFile) -> str:
    """CRC-32 of what is shown, and of each of DATA_PARTS equal parts of the picture data, in hex.

    Files that differ in metadata alone have the same first sum. Runs in a worker process.
    """
    with content_of(file) as stream:
        jpeg = jpeg_in(stream)
        if jpeg:
            data = memoryview(jpeg.picture_data)
            shown = zlib.crc32(data)
        else:
            picture = opened_picture(stream)
            decode(picture, 2 * file.size)
            shown = zlib.crc32(picture.tobytes())
            shown = zlib.crc32(bytes(picture.getpalette() or ()), shown)
            data = memoryview(stream.getvalue())
    borders = [len(data) * part // DATA_PARTS for part in range(DATA_PARTS + 1)]
    sums = [shown, *(zlib.crc32(data[begin:end]) for begin, end in pairwise(borders))]
    return "".join(f"{each:08x}" for each in sums)


@problem_if_unreadable
def check_whole(file: MediaFile) -> None:
    """ValueError if a file of which decoding does not show it lacks picture data, or has damaged ones.

    Runs in a worker process.
    """
    with content_of(file) as stream:
        jpeg = jpeg_in(stream)
        if jpeg:
            check_scans(jpeg)
        else:
            check_strips(opened_picture(stream), stream)


def check_scans(jpeg: Jpeg) -> None:
    """ValueError if a scan of a JPEG, or what stands between its restart markers, is cut short.

    Such a file shows a whole picture, only coarser or grey in parts. More data before a marker change what the decoder
    makes of it, while a whole file has no use for more.
    """
    sums = set()
    for data in (jpeg.data, jpeg.filled):
        with Image.open(io.BytesIO(data), formats=usable_formats()) as picture:
            decode_as_stored(picture, jpeg, picture.size)
            sums.add(zlib.crc32(picture.tobytes()))
    if len(sums) > 1:
        raise ValueError("truncated: a JPEG that lacks data in some of its parts")


def check_strips(picture: Image.Image, stream: BinaryIO) -> None:
    """ValueError unless each strip or tile of a Deflate TIFF ends with the checksum of its data (RFC 1950).

    The picture has just been opened, from the stream. Not more than READ_BLOCK is unpacked at once.
    """
    tags = picture.tag_v2  # type: ignore[attr-defined]
    tiled = TILES[0] in tags
    width = tags[TILE_WIDTH] if tiled else picture.width
    height = tags[TILE_HEIGHT] if tiled else min(tags.get(ROWS_PER_STRIP, picture.height), picture.height)
    parts = -(-picture.width // width) * -(-picture.height // height)
    left = 2 * parts * height * tags.get(SAMPLES, 1) * -(-width * max(tags.get(BITS, (1,))) // 8)  # some are padded
    for offset, length in zip(*(tags.get(tag, ()) for tag in (TILES if tiled else STRIPS)), strict=False):
        end = stream.seek(offset) + length
        unpacker = zlib.decompressobj()
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or stream.read(min(end - stream.tell(), READ_BLOCK))
            if not packed:
                raise ValueError("truncated: a TIFF that lacks data in some of its parts")
            try:
                left -= len(unpacker.decompress(packed, READ_BLOCK))
            except zlib.error:
                raise ValueError("damaged: a TIFF with a checksum that is wrong") from None
            if left < 0:
                raise ValueError("damaged: a TIFF with more data than its picture takes")


def wanting_sums(groups: Sequence[Group[ImageFingerprint]]) -> list[Replica[ImageFingerprint]]:
    """The replicas with as many bytes of picture data as another of their group, if they have not been summed yet."""
    return [
        replica
        for group in groups
        for alike in by_data_bytes(group.replicas)
        if len(alike) > 1
        for replica in alike
        if not replica.fingerprint.integrity.sums
    ]


def wanting_decoding(groups: Sequence[Group[ImageFingerprint]]) -> list[Replica[ImageFingerprint]]:
    """The replicas that may be cut short, in groups where another could take their place.

    Where all have the very same picture data it makes no difference which one is kept.
    """
    found = []
    for group in groups:
        states = [replica.fingerprint.integrity for replica in group.replicas]
        if len({(each.data_bytes, each.sums) for each in states}) > 1:
            doubtful = [each.may_be_short and not each.whole for each in states]
            found += [replica for replica, wanted in zip(group.replicas, doubtful, strict=True) if wanted]
    return found


def with_integrity(fingerprint: ImageFingerprint, **known: Any) -> ImageFingerprint:
    """The fingerprint with what has become known of the integrity of its file."""
    return replace(fingerprint, integrity=replace(fingerprint.integrity, **known))


IMAGE_LOOKS: tuple[CloserLook[ImageFingerprint], ...] = (
    CloserLook(
        wanting_sums,
        Work(data_sums, "photo", load_decoders),
        lambda each, sums: with_integrity(each.fingerprint, sums=sums),
    ),
    CloserLook(
        wanting_decoding,
        Work(check_whole, "photo", load_decoders),
        lambda each, _: with_integrity(each.fingerprint, whole=True),
    ),
)


def contradicting(groups: Iterable[Group[Any]]) -> dict[str, Problem]:
    """By path, the images that have the length and most parts of another in their group, but show something else.

    Two encodings of a picture share no part; a file and the same file with some bits flipped share most. Which
    of the two is damaged cannot be told unless there are more files of the one kind than of the other, so neither
    may stand for the other.
    """
    found = {}
    for group in groups:
        for alike in by_data_bytes(group.replicas) if group.kind == "image" else ():
            first_with = {each.fingerprint.integrity.sums: each for each in reversed(alike)}
            double_of = {
                own: next((each for each in first_with if is_damaged_double(own, each)), "") for own in first_with
            }
            votes = Counter(each.fingerprint.integrity.sums[:8] for each in alike)
            for replica in alike:
                own = replica.fingerprint.integrity.sums
                double = double_of[own]
                if double and votes[own[:8]] <= votes[double[:8]]:
                    other = printable(first_with[double].file.path)
                    reason = f"the same as {other} but for some bytes: one of them is damaged, or was edited"
                    found[replica.file.path] = Problem(replica.file.path, reason)
    return found


def is_damaged_double(one: str, other: str) -> bool:
    """Whether two files with these sums show something else, though most of their data are equal."""
    equal = sum(one[at : at + 8] == other[at : at + 8] for at in range(8, len(one), 8))
    return one[:8] != other[:8] and equal >= DATA_PARTS / 2


def by_data_bytes(replicas: Iterable[Replica[Any]]) -> list[list[Replica[Any]]]:
    """The replicas, those with equally many bytes of picture data together."""
    alike: dict[int, list[Replica[Any]]] = defaultdict(list)
    for replica in replicas:
        if isinstance(replica.fingerprint, ImageFingerprint):
            alike[replica.fingerprint.integrity.data_bytes].append(replica)
    return list(alike.values())


# ── videos that break off ──


def wanting_end(groups: Sequence[Group[VideoFingerprint]]) -> list[Replica[VideoFingerprint]]:
    """The replicas of which it is not known yet that they do not break off."""
    return [replica for group in groups for replica in group.replicas if not replica.fingerprint.whole]


@confirmed
@problem_if_unreadable
def check_goes_on(file: MediaFile, seconds: float) -> None:
    """ValueError if a video breaks off before the time it says. Runs in a worker process."""
    with opened_unchanged(file):
        check_end(demuxed_seconds(file.path, "0", seconds - TAIL), seconds)


VIDEO_LOOKS: tuple[CloserLook[VideoFingerprint], ...] = (
    CloserLook(
        wanting_end,
        Work(check_goes_on, "video"),
        lambda each, _: replace(each.fingerprint, whole=True),
        lambda fingerprint: (fingerprint.seconds,),
    ),
)


def videos_with_end(videos: Sequence[tuple[MediaFile, float]]) -> set[str]:
    """The paths of those videos whose pictures go on for as long as the file says, found by one ffmpeg.

    The others need a look of their own. Runs in a worker process.
    """
    inputs: list[str] = []
    for file, seconds in videos:
        inputs += ["-ss", f"{max(0.0, seconds - TAIL):.3f}", *video_input(file.path)]
    maps = [argument for place in range(len(videos)) for argument in ("-map", f"{place}:V:0")]
    table, _ = run_ffmpeg("-v", "quiet", "-copyts", "-start_at_zero", *inputs, *maps, *PACKETS)
    ends = packet_ends(table)
    return {file.path for place, (file, said) in enumerate(videos) if not is_too_short(ends.get(place, 0.0), said)}


# ── two pictures side by side ──

VIEW_SIDE = 1024  # px of the longer side at most; what is larger is compared at this size
ENOUGH_SIDE = 960  # px of the longer side of a JPEG decoded at a reduced scale
ENOUGH_OF_DRAWING = 1200  # these scales are coarse filters, for a letter
HALVED_SIDE = 400  # px; what is at least as large is compared in means of two by two pixels
LAB = b"Lab"  # stands for the profile of pictures in Lab, which have none
LAYERS = 4  # of a picture, each of half the size of the one before


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A decoded picture ready for comparison, upright, as Y, Cb and Cr, VIEW_SIDE px at most."""

    width: int  # px, of the whole picture
    height: int
    seen: Image.Image  # in sRGB
    stored: Image.Image | None  # of the numbers as stored, where a colour profile changes them
    luma_step: int  # quantisers, see `ImageFingerprint`
    chroma_step: int
    space: bytes  # of colour: the profile, if it changes the numbers; empty for sRGB
    palette: Image.Image | None  # of a picture with few colours, one that has these


@problem_if_unreadable
def view_of(file: MediaFile) -> View | Problem:
    """The picture of a file, decoded once, or why there is none. Runs in a worker process."""
    with content_of(file) as stream:
        jpeg = jpeg_in(stream)
        if jpeg:
            picture, size = jpeg_of_side(jpeg, ENOUGH_SIDE)
            if picture.size != size and is_drawing(picture):
                picture, size = jpeg_of_side(jpeg, ENOUGH_OF_DRAWING)
        else:
            picture = opened_picture(stream)
            decode(picture, file.size)
            size = picture.size
        steps = quantisers(picture, stream, is_lossless(picture, stream))
    orientation = orientation_of(picture)
    stored, seen = (upright(each, orientation) for each in stored_and_seen(picture, size))
    width, height = reversed(size) if TURNS[orientation][0] else size
    changed = None if stored is seen else stored
    space = picture.info.get("icc_profile", b"") if changed else LAB if picture.mode == "LAB" else b""
    return View(width, height, seen, changed, *steps, space, palette_of(picture))


def jpeg_of_side(jpeg: Jpeg, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A JPEG decoded at the smallest scale with a longer side of so many px, and its true size."""
    picture: Image.Image = Image.open(io.BytesIO(jpeg.data), formats=usable_formats())
    size = picture.size
    check_claim(size[0] * size[1], len(jpeg.data))
    width, height = (max(1, each * side // max(side, *size)) for each in size)
    decode_as_stored(picture, jpeg, (width, height))
    return picture, size


def view_of_pixels(rgb: np.ndarray, luma_step: int, chroma_step: int) -> View:
    """The view of a picture in sRGB: R, G, B, shape (height, width, 3), uint8."""
    picture = Image.fromarray(rgb)
    _, seen = stored_and_seen(picture, picture.size)
    return View(picture.width, picture.height, seen, None, luma_step, chroma_step, b"", None)


def stored_and_seen(picture: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A decoded picture of this true size as Y, Cb and Cr: of the numbers as stored, and as seen; see View.

    One and the same unless an embedded colour profile changes the numbers. libjpeg rounds the sides of a reduced
    picture up, so that its last row and column may stand for less than a pixel.
    """
    source = picture if picture.mode in ("L", "CMYK") else in_plain_mode(picture)
    scale = round(max(size) / max(picture.size))
    extent = size[0] / scale, size[1] / scale
    share = min(1.0, VIEW_SIDE / max(extent))
    reduced = resized(source, (max(1, round(extent[0] * share)), max(1, round(extent[1] * share))), extent)
    stored = in_ycbcr(reduced)
    transform = profile_transform(picture.info.get("icc_profile") or b"", PROFILE_MODES.get(reduced.mode, ""))
    if transform is None:
        return stored, stored
    mode = PROFILE_MODES[reduced.mode]
    return stored, in_ycbcr(transform(in_rgb(reduced) if mode == "RGB" else reduced))


def resized(picture: Image.Image, size: tuple[int, int], extent: Sequence[float]) -> Image.Image:
    """The part of a picture from its upper left corner to that extent, in px, at another size."""
    box = 0, 0, min(extent[0], picture.width), min(extent[1], picture.height)
    if size == box[2:]:
        return picture if picture.size == size else picture.crop((0, 0, *size))
    return picture.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=3.0)


RGB_TO_YCBCR_ROUNDED = tuple(
    number for row, middle in zip(RGB_TO_YCBCR, (0.0, 128.0, 128.0), strict=True) for number in (*row, middle)
)
YCBCR_TO_RGB_ROUNDED = (
    *(1.0, 0.0, 1.402, -179.456),
    *(1.0, -0.344136286, -0.714136286, 135.458889),
    *(1.0, 1.772, 0.0, -226.816),
)


def in_ycbcr(picture: Image.Image) -> Image.Image:
    """Y, Cb and Cr rounded to the nearest: Pillow's conversion rounds down, so that the mean is half a level less."""
    if picture.mode == "YCbCr":
        return picture
    return Image.merge("YCbCr", picture.convert("RGB").convert("RGB", RGB_TO_YCBCR_ROUNDED).split())


def in_rgb(picture: Image.Image) -> Image.Image:
    """Red, green and blue rounded to the nearest, as in `in_ycbcr`."""
    if picture.mode != "YCbCr":
        return picture.convert("RGB")
    return Image.merge("RGB", picture.split()).convert("RGB", YCBCR_TO_RGB_ROUNDED)


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture turned as it is to be seen, if it is stored in this orientation."""
    turns = Image.Transpose.TRANSPOSE, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT
    for wanted, turn in zip(TURNS[orientation], turns, strict=True):
        picture = picture.transpose(turn) if wanted else picture
    return picture


def palette_of(picture: Image.Image) -> Image.Image | None:
    """A picture from which `Image.quantize` takes the colours of this one; None if it has no palette."""
    colours = picture.getpalette("RGB") if picture.mode in ("P", "PA") else None
    if not colours:
        return None
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette


def verdict(one: View, other: View) -> Verdict:
    """Whether two views show the same picture. It does not matter which comes first; proportions are not compared.

    Where one has a colour profile only, the other may have had it, too, and lost it.
    """
    pictures = [(one.seen, other.seen)]
    if one.stored and not other.stored:
        pictures.append((one.stored, other.seen))
    if other.stored and not one.stored:
        pictures.append((one.seen, other.stored))
    drawing = is_drawing(one.seen) or is_drawing(other.seen)
    found = [first_finding(pair_of(one, other, *pair, drawing)) for pair in pictures[:1]]
    found += [first_finding(pair_of(one, other, *pair, drawing)) for pair in pictures[1:] if found[0]]
    if None in found:
        return Verdict(True, "the same but for size and compression", None)
    assert found[0]
    return Verdict(False, found[0].reason, found[0].box, found[0].excess)


# ── two pictures on one grid ──

FIT_PIXELS = 10_000  # that are enough to fit few factors
FIT_ROUNDS = 4
LARGEST_FACTORS = 8.0, 0.1, 1.0, 1.0, 0.5, 0.5  # of the basis
RIDGE = 100.0  # holds factors near 0 where there is too little to tell them
ROUNDING = 0.6  # levels squared, of differences that come of rounding
NOISE = 4.0  # levels squared, of activity that says nothing
INEXACT = 3.0  # levels by which `Image.quantize` misses the nearest colour
POOR_PALETTE = 0.3  # levels that are lost on average
GAMUT_SHARE = 0.08  # of the strength of pure colours, by which they differ after eight bits of another colour space
PURE = 0.7  # share of a colour that is not grey
PAPER_TONES, PAPER_SHARE = 9, 0.55  # so many levels of luma hold so much of a drawing
CLIPPED = 124.0  # levels from the middle grey; what is further from it may have been cut off


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A plane of two pictures at one scale: float32, rows and columns."""

    mean: np.ndarray  # of the two
    difference: np.ndarray  # the other less the one
    residual: np.ndarray  # of the difference, what resampling and sharpening do not explain
    activity: np.ndarray  # how much detail there is, levels squared
    dithered: np.ndarray  # by how much dithering would make them differ


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two pictures on one grid: layers of Y, and of Cb and Cr, the last of which are half as large as that of Y."""

    planes: tuple[tuple[Layer, ...], ...]
    clipped: np.ndarray  # the share of black and white, for each pixel of the last layer of Y
    steps: tuple[int, int, int]  # quantisers of the planes, of both pictures together
    converted: bool  # from another colour space than the other
    palette: float  # 0 for none or one with all colours, to 1 for one that shows
    scale: int  # px of the smaller picture in one of the layer that is LAYERS from the last


def pair_of(one: View, other: View, picture: Image.Image, other_picture: Image.Image, drawing: bool) -> Pair:
    """Two views on a grid of the smaller one's pixels; without the finest layer if it is large and no drawing."""
    size = [min(sides) for sides in zip(picture.size, other_picture.size, strict=True)]
    large = max(size) >= HALVED_SIDE
    times = 2 if large and not drawing else 1
    pictures = on_one_grid((picture, other_picture), [times * max(1, side // times) for side in size])
    bands = [bands_of(each) for each in pictures]
    lost, dithered = palette_errors(one, other, *pictures)
    palette = min(1.0, float(lost[0].mean()) / POOR_PALETTE)
    converted = one.space != other.space
    if converted:
        coarse = max(coarseness(one.space), coarseness(other.space))
        gamut = coarse * np.maximum(*map(gamut_errors, pictures))
        moves = [np.clip(second - first, -gamut, gamut) / 2 for first, second in zip(*bands, strict=True)]
        bands = [
            [band + sign * move for band, move in zip(each, moves, strict=True)]
            for each, sign in zip(bands, (1, -1), strict=True)
        ]
    black, white = 127.5 - CLIPPED, 127.5 + CLIPPED
    clipped = np.logical_or(*((luma < black) | (luma > white) for luma, _, _ in bands)).astype(np.float32)
    fine = np.zeros((1, 1), np.float32)  # variance within a pixel of the grid
    if times == 2:
        squares = [halved(luma * luma) for luma, _, _ in bands]
        bands, (lost, dithered) = (
            [[halved(band) for band in each] for each in two] for two in (bands, (lost, dithered))
        )
        fine = np.mean([each - luma**2 for each, (luma, _, _) in zip(squares, bands, strict=True)], axis=0)
        clipped = halved(clipped)
    layers = LAYERS + (large and drawing)
    for _ in range(layers - 1):
        clipped = halved(clipped)
    luma, *chroma = zip(*bands, lost, dithered, strict=True)
    planes = [layers_of(luma, fine, layers)]
    detail = halved(planes[0][-LAYERS].activity) / 4  # where luma is detailed, subsampled chroma is coarse
    for _ in range(layers - LAYERS + 1):
        chroma = [tuple(map(halved, each)) for each in chroma]
    planes += [layers_of(each, detail, LAYERS) for each in chroma]
    steps = one.luma_step + other.luma_step, *2 * (one.chroma_step + other.chroma_step,)
    return Pair(tuple(planes), clipped, steps, converted, palette, 2 if large else 1)


def on_one_grid(pictures: Sequence[Image.Image], grid: Sequence[int]) -> list[Image.Image]:
    """Pictures of like size, the first rows and columns of the smaller of each at its size."""
    size = [min(sides) for sides in zip(*(each.size for each in pictures), strict=True)]
    return [
        resized(
            each, (grid[0], grid[1]), [own * to / side for own, to, side in zip(each.size, grid, size, strict=True)]
        )
        for each in pictures
    ]


def is_drawing(picture: Image.Image) -> bool:
    """Whether most of a picture has one tone: a page, a screenshot."""
    counts = picture.getchannel(0).histogram()
    return float(np.convolve(counts, np.ones(PAPER_TONES)).max()) > PAPER_SHARE * picture.width * picture.height


def bands_of(picture: Image.Image) -> list[np.ndarray]:
    """The planes of a picture, float32."""
    return [np.asarray(band).astype(np.float32) for band in picture.split()]


def coarseness(space: bytes) -> np.float32:
    """By how much a level of another colour space is more than one of sRGB: about 0.2 for Display P3, 1 for ProPhoto.

    1 for Lab, too; 0 for what is not red, green and blue.
    """
    transform = profile_transform(space, "RGB") if space and space != LAB else None
    if transform is None:
        return np.float32(space == LAB)
    levels = 140 - 20 * np.eye(4, 3, dtype=np.uint8)  # a little less of one each, and grey
    seen = np.asarray(transform(Image.fromarray(levels[np.newaxis]))).astype(np.float32)[0]
    return np.float32(np.clip((seen[3] - np.diag(seen)) / 20 - 1, 0, 1).max())


def gamut_errors(picture: Image.Image) -> np.ndarray:
    """By how much Y, Cb and Cr may differ where the numbers of another colour space are coarse: in pure colours."""
    red, green, blue = bands_of(in_rgb(picture))
    largest, smallest = (extreme(extreme(red, green), blue) for extreme in (np.maximum, np.minimum))
    purity = 1 - smallest / np.maximum(largest, 1)
    return GAMUT_SHARE * (largest - smallest) * np.clip((purity - PURE) / (1 - PURE), 0, 1)


def palette_errors(
    one: View, other: View, picture: Image.Image, other_picture: Image.Image
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By how much Y, Cb and Cr may differ because a palette lacks colours of the other picture; and by dithering.

    The first at most, as its nearest colour is no nearer. The second for example: it depends on every pixel before.
    """
    lost, dithered = ([np.zeros((1, 1), np.float32)] * 3 for _ in range(2))
    for view, of_other in ((one, other_picture), (other, picture)):
        if view.palette:
            rgb, bands = in_rgb(of_other), bands_of(of_other)
            nearest, spread = (
                bands_of(in_ycbcr(rgb.quantize(palette=view.palette, dither=how)))
                for how in (Image.Dither.NONE, Image.Dither.FLOYDSTEINBERG)
            )
            lost = [
                so_far + np.maximum(0, np.abs(a - b) - INEXACT)
                for so_far, a, b in zip(lost, nearest, bands, strict=True)
            ]
            dithered = [so_far + a - b for so_far, a, b in zip(dithered, spread, bands, strict=True)]
    return lost, dithered


def layers_of(planes: Sequence[np.ndarray], fine: np.ndarray, count: int) -> tuple[Layer, ...]:
    """A plane of two pictures in so many layers, by what is lost and dithered. `fine` is activity that they hide."""
    one, other, lost, dithered = planes
    mean, difference = (one + other) / 2, other - one
    basis = basis_of(mean)
    activity = activity_of(basis) + fine
    residual = difference - np.clip(difference, -lost, lost)
    stride = max(1, round(math.sqrt(mean.size / FIT_PIXELS)))
    every = (1 / (activity + NOISE), residual, *basis)
    weights, target, *sampled = (plane[::stride, ::stride].ravel() for plane in every)
    factors, _ = fitted(np.stack(sampled), target, weights)
    for factor, largest, plane in zip(factors, LARGEST_FACTORS, basis, strict=True):
        residual -= np.float32(np.clip(factor, -largest, largest)) * plane
    layers = [Layer(mean, difference, residual, activity, dithered)]
    for _ in range(count - 1):
        mean, difference, residual, dithered = map(halved, (mean, difference, residual, dithered))
        activity = activity_of(basis_of(mean)) + halved(activity) / 4
        layers.append(Layer(mean, difference, residual, activity, dithered))
    return tuple(layers)


def basis_of(plane: np.ndarray) -> list[np.ndarray]:
    """What differences of resampling and sharpening are made of: 1, contrast, slopes, and curvature at two scales."""
    padded = np.pad(plane, 2, mode="edge")
    left, right, above, below = padded[2:-2, 1:-3], padded[2:-2, 3:-1], padded[1:-3, 2:-2], padded[3:-1, 2:-2]
    far = padded[2:-2, :-4] + padded[2:-2, 4:] + padded[:-4, 2:-2] + padded[4:, 2:-2]
    middle = 4 * plane
    curvatures = left + right + above + below - middle, far - middle
    return [np.ones_like(plane), plane - plane.mean(), (right - left) / 2, (below - above) / 2, *curvatures]


def activity_of(basis: Sequence[np.ndarray]) -> np.ndarray:
    _, _, across, down, curvature, _ = basis
    return across * across + down * down + curvature * curvature / 8


def fitted(basis: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the basis, (k, n), that explain most of the target, (n,); and their covariance, (k, k).

    Ridge regression, reweighted by Cauchy's function: what is in a small part of the picture only does not count.
    """
    basis, target, weights = (each.astype(np.float64) for each in (basis, target, weights))
    robust = weights
    for _ in range(FIT_ROUNDS):
        scaled = basis * robust
        inverse = np.linalg.inv(scaled @ basis.T + RIDGE * np.eye(len(basis)))
        factors = inverse @ (scaled @ target)
        error = (target - factors @ basis) ** 2
        spread = (robust * error).sum() / max(1, len(target) - len(basis))
        robust = weights / (1 + error * weights / (6 * np.median(error * weights) + 1e-3))
    return factors, inverse * spread


def halved(plane: np.ndarray) -> np.ndarray:
    """Means of two by two pixels; the last row or column counts twice where there is an odd one."""
    if plane.size == 1:
        return plane
    if plane.shape[0] % 2:
        plane = np.concatenate([plane, plane[-1:]])
    if plane.shape[1] % 2:
        plane = np.concatenate([plane, plane[:, -1:]], axis=1)
    across = plane[:, ::2] + plane[:, 1::2]
    return (across[::2] + across[1::2]) * np.float32(0.25)


def windows(plane: np.ndarray) -> np.ndarray:
    """Means of windows of four by four pixels, every two pixels."""
    pairs = halved(plane)
    if pairs.size == 1:
        return pairs
    if pairs.shape[0] == 1:
        pairs = np.concatenate([pairs, pairs])
    if pairs.shape[1] == 1:
        pairs = np.concatenate([pairs, pairs], axis=1)
    across = pairs[:, :-1] + pairs[:, 1:]
    return (across[:-1] + across[1:]) * np.float32(0.25)


# ── what may tell them apart ──

# All limits stand between what copies reach and what edits do: JPEG from quality 10 to 95, resampling, formats and
# colour spaces on the one side, what photographers do to a picture on the other.
DISPLACED = 0.0015  # of the longer side, by which a corner may be displaced, or
DISPLACED_PIXELS = 0.5  # of the smaller picture: resampling displaces by half a pixel
DISPLACED_SHARE = 0.12  # of the difference that a displacement has to explain
UNLIKE_DETAIL = 0.12  # one less the correlation of detail
STEP_DETAIL = 0.03  # of the quantiser squared, which is noise
FLAT_DETAIL = 0.5  # levels squared, that need not correlate
TONE_LEVELS = 1.2, 1.8  # of luma and of chroma, by which copies differ where it is smooth
CONVERTED = 0.5  # levels more where colours were converted from another profile
STEP_LEVELS = 1 / 16  # of the quantisers, by which they differ in addition: means are rounded to steps of an eighth
COLOURFUL = 0.6  # of the strongest colour
SATURATION, HUE = 0.06, 0.06  # shares by which strong colours differ
# Of the activity, by layer, the coarsest first: what differs by less comes of resampling. Drawings have one more of Y.
SPOT_SHARES = (0.02, 0.04, 0.08, 0.2), *2 * ((0.06, 0.1, 0.15, 0.4),)
DRAWN_SHARES = (0.02, 0.04, 0.08, 0.1, 0.2), *SPOT_SHARES[1:]
# Times the usual difference, by layer.
SPOT_LIMITS = (4.0, 4.0, 4.5, 5.0), *2 * ((3.0, 3.5, 4.5, 6.0),)
DRAWN_LIMITS = (4.0, 4.0, 4.5, 5.5, 7.0), *SPOT_LIMITS[1:]
SPOT_STEPS = 1 / 8, 1 / 4, 1 / 4  # of the quantisers, by which single pixels differ: blocks of chroma are larger
DITHERED = 3.0  # times of what dithering makes differ, squared
DITHERED_LEVELS = 3.0, 4.0, 5.0, 6.0, 6.0  # more where there is a poor palette, by layer
WIDESPREAD = 0.2  # of the windows: what differs in so many does so all over


class Finding(NamedTuple):
    """How much two pictures differ in one respect: above 1 they are no copies."""

    excess: float
    reason: str
    box: tuple[float, float, float, float] | None = None


def first_finding(pair: Pair) -> Finding | None:
    """The first by which the pictures are no copies; None if they are."""
    return next((found for check in CHECKS for found in check(pair) if found.excess > 1), None)


def displaced(pair: Pair) -> Iterator[Finding]:
    """Turned, shifted, cropped: how far the corners moved, by fitting slopes to the difference (Lucas and Kanade)."""
    layer, step = pair.planes[0][-2], 4 * pair.scale
    rows, columns = layer.mean.shape
    flat, contrast, across, down, _, _ = basis_of(layer.mean)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    planes = (flat, contrast, *(slope * by for slope in (across, down) for by in (flat, x, y)))
    basis = np.stack([plane.ravel() for plane in planes])
    target, weights = layer.difference.ravel(), 1 / (layer.activity + NOISE).ravel()
    (factors, covariance), (others, _) = fitted(basis, target, weights), fitted(basis[:2], target, weights)
    pixels = 0.0
    for axis, corner in product((slice(2, 5), slice(5, 8)), np.array([(1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1)])):
        uncertain = 4 * math.sqrt(max(0.0, float(corner @ covariance[axis, axis] @ corner)))
        pixels = max(pixels, step * (abs(float(factors[axis] @ corner)) - uncertain))
    robust = weights / (1 + weights * (target - factors @ basis) ** 2)
    left, whole = ((robust * (target - each @ basis[: len(each)]) ** 2).sum() for each in (factors, others))
    explained = 1 - float(left / (whole + 1e-9))
    levels = math.sqrt(float((target * target).mean()))  # below 1 colours converted may look displaced
    limit = max(DISPLACED_PIXELS, DISPLACED * step * max(rows, columns))
    yield Finding(min(pixels / limit, explained / DISPLACED_SHARE, levels), "turned, shifted or cropped a little")


def unlike(pair: Pair) -> Iterator[Finding]:
    """Other things everywhere, be it only the noise of a wall: the details of the two do not correlate."""
    layer = pair.planes[0][-2]
    one, other = (basis_of(layer.mean + sign * layer.difference / 2)[4] for sign in (-1, 1))
    both, (less, more) = float((one * other).mean()), sorted(float((each * each).mean()) for each in (one, other))
    more = max(less, more - STEP_DETAIL * pair.steps[0] ** 2)
    correlation = (both + FLAT_DETAIL) / (math.sqrt(less * more) + FLAT_DETAIL)
    yield Finding(
        (1 - correlation) / (UNLIKE_DETAIL + 0.2 * pair.palette + max(0, pair.steps[0] - 16) / 300), "differs all over"
    )


def toned(pair: Pair) -> Iterator[Finding]:
    """Another brightness or contrast."""
    changes = tone_changes(pair.planes[0][-1], pair)
    limit = TONE_LEVELS[0] + STEP_LEVELS * pair.steps[0] + CONVERTED * pair.converted + 2 * pair.palette
    contrary = min(changes) < -limit / 2 and max(changes) > limit / 2
    yield Finding(max(map(abs, changes)) / limit, "less or more contrast" if contrary else "brighter or darker")


def tone_changes(layer: Layer, pair: Pair) -> list[float]:
    """The median difference of a layer as large as the last of Y, for each of 12 tones that are frequent, where smooth.

    Edges next to black or white do not count: what resampling overshoots there is cut off.
    """
    luma = pair.planes[0][-1]
    cut = (pair.clipped > 0.02) & (luma.activity > 16)
    tones = np.where(cut, -1, np.minimum(11, luma.mean * (12 / 256)).astype(int)).ravel()
    difference, activity = layer.difference.ravel(), layer.activity.ravel()
    changes = [0.0]
    for tone in range(12):
        found = np.flatnonzero(tones == tone)
        if len(found) >= max(1, 0.02 * len(tones)):
            changes.append(float(np.median(difference[smoother_half(found, activity)])))
    return changes


def smoother_half(places: np.ndarray, activity: np.ndarray) -> np.ndarray:
    return places[np.argsort(activity[places])[: (len(places) + 1) // 2]]


def coloured(pair: Pair) -> Iterator[Finding]:
    """Another saturation or hue where there is most colour, or another tint."""
    blue, red = (plane[-3] for plane in pair.planes[1:])
    radius = np.hypot(blue.mean - 128, red.mean - 128).ravel()
    strong = np.flatnonzero(radius >= COLOURFUL * np.quantile(radius, 0.995))
    even = smoother_half(strong, (blue.activity + red.activity).ravel())
    radius = radius[even] + 1e-3
    cb, cr = ((each.mean.ravel()[even] - 128) / radius for each in (blue, red))
    cb_change, cr_change = (each.difference.ravel()[even] for each in (blue, red))
    usual, step = float(np.median(radius)), STEP_LEVELS * pair.steps[1]
    for change, limit in ((cb_change * cb + cr_change * cr, SATURATION), (cr_change * cb - cb_change * cr, HUE)):
        levels = abs(float(np.median(change)))
        excess = min(levels / usual / limit, levels / (1 + step + pair.palette))
        yield Finding(excess, "only one of them has colours" if levels > 1.8 * usual else "other colours")
    for plane in pair.planes[1:]:
        largest = max(map(abs, tone_changes(plane[-2], pair)))
        limit = TONE_LEVELS[1] + step + CONVERTED * pair.converted + 2 * pair.palette
        yield Finding(largest / limit, "other colours")


def spotted(pair: Pair) -> Iterator[Finding]:
    """Something else in one place: a window that differs by far more than others with as much detail."""
    drawing = len(pair.planes[0]) > LAYERS
    tables = (DRAWN_SHARES, DRAWN_LIMITS) if drawing else (SPOT_SHARES, SPOT_LIMITS)
    for plane, step, pixels, shares, limits in zip(pair.planes, pair.steps, SPOT_STEPS, *tables, strict=True):
        floor = 1 + step * pixels / pair.scale
        by_layer = zip(reversed(plane), shares, limits, DITHERED_LEVELS, strict=False)
        for layer, share, limit, dithered in reversed([*by_layer]):  # the finest first: it tells the place best
            error, activity = windows(layer.residual**2), windows(layer.activity)
            unusual = np.sqrt(error / (usual_error(error, activity) + ROUNDING)) / limit
            allowed = share * activity + (floor + dithered * pair.palette) ** 2
            if pair.palette:
                allowed += DITHERED * windows(layer.dithered**2)
            yield most_in(np.minimum(unusual, np.sqrt(error / allowed)))


def usual_error(error: np.ndarray, activity: np.ndarray) -> np.ndarray:
    """For each window the median error of those with about as much activity."""
    count = max(1, min(24, error.size // 16))
    order = np.argsort(activity, axis=None)
    parts = order[: order.size // count * count].reshape(count, -1)
    medians = np.median(error.ravel()[parts], axis=1)
    return np.interp(activity, activity.ravel()[parts[:, parts.shape[1] // 2]], medians)


def differing(pair: Pair) -> Iterator[Finding]:
    """Something else in many places, where none is unusual: it varies by as much as what is there."""
    layer, step = pair.planes[0][-3], pair.steps[0] / 2
    one, other, residual = (
        windows(plane * plane) - windows(plane) ** 2
        for plane in (layer.mean - layer.difference / 2, layer.mean + layer.difference / 2, layer.residual)
    )
    floor, limit = 100 + 300 * pair.palette + step**2, 0.45 + 0.05 * pair.palette + max(0, step - 16) / 100
    yield most_in(residual / np.maximum(np.maximum(one, other), floor) / limit)


def most_in(excess: np.ndarray) -> Finding:
    """The finding of a map of windows: the largest excess, and the box around all above 1 nearby."""
    rows, columns = excess.shape
    row, column = divmod(int(excess.argmax()), columns)
    largest = float(excess[row, column])
    if (excess > 1).mean() > WIDESPREAD:
        return Finding(largest, "differs all over")
    reach = max(2, max(rows, columns) // 8)
    top, left = max(0, row - reach), max(0, column - reach)
    near = excess[top : row + reach + 1, left : column + reach + 1] >= min(1.0, largest)
    (first_row, *_, last_row), (first, *_, last) = (np.flatnonzero(near.any(axis=axis)).tolist() * 2 for axis in (1, 0))
    box = (
        *((left + first) / (columns + 1), (top + first_row) / (rows + 1)),
        *((left + last + 2) / (columns + 1), (top + last_row + 2) / (rows + 1)),
    )
    return Finding(largest, f"differs in a spot {where_in_picture(box)}", box)


def where_in_picture(box: tuple[float, float, float, float]) -> str:
    """The place of a box in words: "at the upper left"."""
    row = ("upper", "", "lower")[min(2, int(1.5 * (box[1] + box[3])))]
    column = ("left", "", "right")[min(2, int(1.5 * (box[0] + box[2])))]
    if row and column:
        return f"at the {row} {column}"
    return {"upper": "at the top", "lower": "at the bottom"}.get(row, f"at the {column}" if column else "in the middle")


CHECKS: tuple[Callable[[Pair], Iterator[Finding]], ...] = (displaced, unlike, toned, coloured, spotted, differing)


# ── two videos side by side ──

VIDEO_VIEW_SIDE = 512  # px of the longer side at most; compared in means of two by two of these


@dataclass(frozen=True, slots=True, eq=False)
class VideoView:
    """A video ready for comparison: for each moment of its fingerprint the frame that is shown, and its neighbours."""

    width: int  # px, upright, in square pixels
    height: int
    quicktime_rgb: bool  # see VideoFingerprint
    frames: tuple[Frame, ...]  # FRAMES of them


@confirmed
@problem_if_unreadable
def frames_of(file: MediaFile, fingerprint: VideoFingerprint) -> VideoView:
    """The view of a video of this fingerprint, or why there is none. Runs in a worker process.

    It takes a little longer than the fingerprint, and 21 MB where the picture is 16:9, 38 MB at most.
    """
    with opened_unchanged(file):
        about = video_stream(file.path)
        share = min(1.0, VIDEO_VIEW_SIDE / max(about.width, about.height))
        size = max(1, round(about.width * share)), max(1, round(about.height * share))
        found = frames_at_midpoints(file.path, about, fingerprint.seconds, size)
    if len(found) < FRAMES:
        raise ValueError(f"damaged: only {len(found)} of {FRAMES} frames can be decoded")
    frames = tuple(found[number] for number in range(FRAMES))
    return VideoView(about.width, about.height, about.quicktime_rgb, frames)


def video_verdict(one: VideoView, other: VideoView) -> Verdict:
    """Whether two views show the same video. It does not matter which comes first; proportions are not compared.

    What counts is what persists: a frame more or less in one of them, or one that is badly compressed, is what copying
    does. Where colours differ, they are compared as conversions change them, too.
    """
    shown = alike_frames(one, other)
    if len(shown) < TELLING_FRAMES:
        return Verdict(False, "too few frames show anything", None)
    if drift(shown) > MOST_DRIFT:
        return Verdict(False, "another speed", None)
    pairs = [pair_of_frames(each, unconverted, unconverted) for each in shown]
    if any(found.excess > 1 for found in differing_in_colours(pairs)):
        for convert, other_convert in conversions_between(one, other):
            converted = [pair_of_frames(each, convert, other_convert) for each in shown]
            if not any(found.excess > 1 for found in differing_in_colours(converted)):
                pairs = converted
                break
    finding = next((found for check in VIDEO_CHECKS for found in check(pairs) if found.excess > 1), None)
    if finding:
        return Verdict(False, finding.reason, finding.box, finding.excess)
    return Verdict(True, "the same but for size and compression", None)


# ── two videos side by side: which frames, and whether they drift apart ──

ALIKE_SIDE = 48  # px, of the small frames that are compared to find out which show the same
# Times that a quarter of the pairs of frames around a moment are further apart than the best one: else nothing moves.
TELLING_MATCH = 1.12
DRIFT_MOMENTS = 7  # that must tell which frames show the same
# Frames, from the first moment to the last. Of copies, also at other frame rates, 1.2 at most; 1 % of another speed in
# 10 s of 25 frames makes 1.7 or more, unless an encoder has kept the frames and their times but for one or two.
MOST_DRIFT = 1.35


class Alike(NamedTuple):
    """The frames of two videos around a moment that are most alike."""

    seconds: float  # when that of the first video is shown
    later: float  # s, by how much that of the other is
    lasts: float  # s, either of the two at most
    is_telling: bool  # most others around this moment are less alike, and none is shown for seconds
    picture: np.ndarray  # Y, Cb, Cr: (3, height, width), uint8, full range
    other_picture: np.ndarray


def alike_frames(one: VideoView, other: VideoView) -> list[Alike]:
    """For every moment the frames that are most alike, of all around it; without moments that show nothing."""
    found = []
    for frame, other_frame in zip(one.frames, other.frames, strict=True):
        small, other_small = small_luma(frame), small_luma(other_frame)
        difference = small[:, None] - other_small
        difference -= difference.mean(axis=(2, 3), keepdims=True)
        apart = np.abs(difference).mean(axis=(2, 3))
        i, j = np.unravel_index(int(apart.argmin()), apart.shape)
        if max(np.ptp(small[i]), np.ptp(other_small[j])) < FLAT_RANGE:
            continue
        quarter = np.sort(apart, axis=None)[apart.size // 4]
        later = other_frame.times[j] - frame.times[i]
        lasts = max(duration_of(frame), duration_of(other_frame))
        is_held = abs(other_frame.seconds - frame.seconds) > FRAMES_AROUND * lasts + most_apart(frame.seconds)
        is_telling = bool(quarter > TELLING_MATCH * apart[i, j]) and not is_held
        found.append(Alike(frame.times[i], later, lasts, is_telling, frame.pictures[i], other_frame.pictures[j]))
    return found


def small_luma(frame: Frame) -> np.ndarray:
    """The luma of its pictures, (n, ALIKE_SIDE, ALIKE_SIDE)."""
    size = ALIKE_SIDE, ALIKE_SIDE
    pictures = [Image.fromarray(each[0]).resize(size, Image.Resampling.BOX) for each in frame.pictures]
    return np.array([np.asarray(each) for each in pictures], np.float32)


def duration_of(frame: Frame) -> float:
    """How long a picture around it is shown: s, the median; 0 if it is the only one."""
    return float(np.median(np.abs(np.diff(frame.times)))) if len(frame.times) > 1 else 0.0


def drift(shown: Sequence[Alike]) -> float:
    """By how many frames one video gets ahead of the other from the first moment to the last.

    By the estimator of Theil and Sen. 0 where too few moments tell.
    """
    telling = [each for each in shown if each.is_telling]
    if len(telling) < DRIFT_MOMENTS:
        return 0.0
    seconds, later, lasts = (np.array([each[place] for each in telling]) for place in range(3))
    i, j = np.triu_indices(len(telling), 1)
    slope = np.median((later[j] - later[i]) / np.maximum(1e-3, seconds[j] - seconds[i]))
    return float(abs(slope) * (seconds[-1] - seconds[0]) / max(1e-3, np.median(lasts)))


# ── two videos side by side: as conversions change them ──

# Rows: Y, Cb, Cr by ITU-R BT.601 from those by BT.709, without the 128 of chroma.
BT709_TO_BT601 = ((1.0, 0.101579, 0.196076), (0.0, 0.989854, -0.110653), (0.0, -0.072453, 0.983398))


def unconverted(picture: np.ndarray) -> np.ndarray:
    return picture


def as_quicktime_does(picture: np.ndarray) -> np.ndarray:
    """Y, Cb, Cr with the luma raised by QUICKTIME_GAMMA."""
    raised = (255 * (np.arange(256) / 255) ** QUICKTIME_GAMMA).round().astype(np.uint8)
    return np.concatenate([raised[picture[:1]], picture[1:]])


def from_bt709(picture: np.ndarray) -> np.ndarray:
    """Y, Cb, Cr that mean the same colours by BT.601: the numbers of a frame do not tell which is meant."""
    zero = np.array([0, 128, 128], np.float32).reshape(3, 1, 1)
    converted = np.tensordot(np.array(BT709_TO_BT601, np.float32), picture - zero, axes=1) + zero
    return converted.round().clip(0, 255).astype(np.uint8)


Convert: TypeAlias = Callable[[np.ndarray], np.ndarray]


def conversions_between(one: VideoView, other: VideoView) -> list[tuple[Convert, Convert]]:
    """What programs may have done to the one or the other: see VideoTable.conversions."""
    possible = [from_bt709]
    if one.quicktime_rgb != other.quicktime_rgb:
        possible.append(as_quicktime_does)
    return [pair for convert in possible for pair in ((convert, unconverted), (unconverted, convert))]


def pair_of_frames(alike: Alike, convert: Convert, other_convert: Convert) -> Pair:
    view, other_view = view_of_frame(convert(alike.picture)), view_of_frame(other_convert(alike.other_picture))
    return pair_of(view, other_view, view.seen, other_view.seen, drawing=False)


def view_of_frame(picture: np.ndarray) -> View:
    """The view of Y, Cb, Cr, shape (3, height, width), uint8, full range."""
    seen = Image.merge("YCbCr", [Image.fromarray(np.ascontiguousarray(each)) for each in picture])
    return View(seen.width, seen.height, seen, None, FRAME_STEPS[0] // 2, FRAME_STEPS[1] // 2, b"", None)


# ── two videos side by side: what may tell them apart ──

PERSISTING = 3  # frames that something must be in
# Times as much as pictures may differ: strong compression displaces what moves.
VIDEO_DISPLACED = 2.0
VIDEO_UNLIKE = 2.0
# Times the usual difference, by layer. Copies reach 0.5 of that, of drawings 0.9; words and logos of a 24th of the
# picture's height 2.3 and more, a watermark that lets 88 % of the picture through 1.6.
PERSISTING_OUTLIERS = 7.0, 5.8, 5.2, 4.6


def differing_in_colours(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Another tone, or other colours, in all frames together."""
    whole = stacked(pairs)
    for check in (toned, coloured):
        for found in check(whole):
            yield Finding(found.excess, "another tone or colours")


def stacked(pairs: Sequence[Pair]) -> Pair:
    """The pictures of these pairs one below the other, as one."""
    planes = tuple(
        tuple(
            Layer(*(np.concatenate([getattr(each, part.name) for each in layers]) for part in fields(Layer)))
            for layers in zip(*planes, strict=True)
        )
        for planes in zip(*(pair.planes for pair in pairs), strict=True)
    )
    return replace(pairs[0], planes=planes, clipped=np.concatenate([pair.clipped for pair in pairs]))


def differing_mostly(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """What tells pictures apart, in half of the frames."""
    for check, limit in ((displaced, VIDEO_DISPLACED), (unlike, VIDEO_UNLIKE)):
        for findings in zip(*(check(pair) for pair in pairs), strict=True):
            found = sorted(findings, key=lambda each: each.excess)[len(findings) // 2]
            yield found._replace(excess=found.excess / limit)


def persisting(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """A logo or text: a window that differs by far more than others with as much detail, in PERSISTING frames or more.

    Or in the mean of all frames, in which what compression does to each of them is less.
    """
    for plane, (step, shares) in enumerate(zip(pairs[0].steps, SPOT_SHARES, strict=True)):
        floor = (1 + STEP_LEVELS * step * 2 / pairs[0].scale) ** 2
        for number, (share, limit) in enumerate(zip(shares, PERSISTING_OUTLIERS, strict=True)):
            layers = [pair.planes[plane][number] for pair in pairs]
            activity = [windows(each.activity) for each in layers]
            by_frame = [
                outliers(windows(each.residual**2), active, limit, share * active + floor)
                for each, active in zip(layers, activity, strict=True)
            ]
            yield in_one_only(np.sort(by_frame, axis=0)[-PERSISTING])
            mean, active = np.mean([each.residual for each in layers], axis=0), np.mean(activity, axis=0)
            yield in_one_only(outliers(windows(mean**2), active, limit, share * active + floor / 4))


def outliers(error: np.ndarray, activity: np.ndarray, limit: float, tolerance: np.ndarray) -> np.ndarray:
    """By how many times windows differ more than those with as much activity may, and than this tolerance."""
    usual = usual_error(error, activity) + ROUNDING
    return np.minimum(np.sqrt(error / usual) / limit, np.sqrt(error / tolerance))


def in_one_only(excess: np.ndarray) -> Finding:
    """The finding of a map of windows."""
    found = most_in(excess)
    if found.box is None:
        return found
    return found._replace(reason=f"a logo or text is in one only, {where_in_picture(found.box)}")


VIDEO_CHECKS: tuple[Callable[[Sequence[Pair]], Iterator[Finding]], ...] = (
    differing_in_colours,
    differing_mostly,
    persisting,
)


# ── looks at pairs of files ──


@dataclass(frozen=True, slots=True)
class FilePair:
    """Two files by what they hold, in either order."""

    one: str
    other: str


def content_key(replica: Replica[Any]) -> str:
    """128 bits in hex: others for a file that looks otherwise, or has other bytes of picture data or metadata."""
    known = replica.file.size, match_key(replica)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


BOX_DECIMALS, EXCESS_DECIMALS = 4, 2
MAX_EXCESS = 1e6


def read_box(text: bytes) -> tuple[float, float, float, float] | None:
    """The corners of a spot as caches store them."""
    left, top, right, bottom = map(float, text.split(b":")) if text else (0, 0, 0, 0)
    return (left, top, right, bottom) if text else None


def written_box(box: tuple[float, float, float, float] | None) -> str:
    return ":".join(f"{share:.{BOX_DECIMALS}f}" for share in box or ())


LOOK_CACHE: CacheFormat[Verdict] = CacheFormat(
    "closer_looks_db.csv",
    (
        Column("one", "[0-9a-f]{32}", None, of_file=True),
        Column("other", "[0-9a-f]{32}", None, of_file=True),
        Column("version", str(LOOK_VERSION), None),
        flag_column("copy"),
        Column("reason", r'"[\w .,%()-]{1,200}"', lambda text: text[1:-1].decode(), lambda reason: f'"{reason}"'),
        Column("box", r"(?:[01]\.[0-9]{4}(?::[01]\.[0-9]{4}){3})?", read_box, written_box),
        Column("excess", r"[0-9]{1,9}\.[0-9]{%d}" % EXCESS_DECIMALS, float, lambda each: f"{each:.{EXCESS_DECIMALS}f}"),
    ),
    Verdict,
    start=re.compile(rb"\n[0-9a-f]"),
)


class VerdictCache(CacheFile[Verdict]):
    """Verdicts on pairs of files by what these hold, whatever their names: all are kept."""

    def __init__(self, folder: str) -> None:
        super().__init__(LOOK_CACHE, folder)
        self.known: dict[FilePair, Verdict] = {}
        for _, row in self.rows():
            pair = FilePair(row["one"].decode(), row["other"].decode())
            self.untidy |= pair in self.known
            self.known[pair] = self.form.decoded(row)

    def store(self, pair: FilePair, verdict: Verdict) -> None:
        """Keep the verdict on a pair that has none yet."""
        self.known[pair] = verdict
        self.append(self.form.encoded(pair, verdict))

    def close(self) -> None:
        """Write what waits; rewrite the file if it holds rows that are torn or of another version."""
        self.close_stream()
        if self.untidy and not self.warned:
            self.rewrite(self.form.encoded(pair, verdict) for pair, verdict in self.known.items())


class Looks:
    """Looks at pairs of replicas side by side, by workers of the pool; none twice.

    What is in the cache is believed, if one is given. `problems` are those of files that could not be looked at.
    """

    def __init__(self, pool: Pool, cache: VerdictCache | None = None) -> None:
        self.pool = pool
        self.cache = cache
        self.known: dict[FilePair, Verdict] = cache.known if cache else {}
        self.keys: dict[MediaFile, str] = {}
        self.problems: dict[str, Problem] = {}

    def verdict(self, one: Replica[Any], other: Replica[Any]) -> Verdict | None:
        """What is known of a pair; None where nobody has looked, or there is no need to."""
        return self.known.get(self.pair(one, other)) if wants_look(one, other) else None

    def pair(self, *replicas: Replica[Any]) -> FilePair:
        """Two replicas by what they hold."""
        for each in replicas:
            if each.file not in self.keys:
                self.keys[each.file] = content_key(each)
        return FilePair(*sorted(self.keys[each.file] for each in replicas))

    def are_copies(self, one: Replica[Any], other: Replica[Any]) -> bool:
        """Whether two replicas at distance 0 are known to be copies."""
        verdict = self.verdict(one, other)
        return verdict.copy if verdict else not wants_look(one, other)

    def look(self, pairs: Iterable[tuple[Replica[Any], Replica[Any]]]) -> None:
        """Look at each pair that wants it and has no verdict yet. No replica is the second one of two pairs."""
        wanted = {
            other.file: (one, other)
            for one, other in pairs
            if wants_look(one, other)
            and self.verdict(one, other) is None
            and self.problems.keys().isdisjoint((one.file.path, other.file.path))
        }

        def take(file: MediaFile, result: Verdict | Problem) -> None:
            if isinstance(result, Problem):
                self.problems[result.path] = result
                return
            # As a cache gives it back: no later run may take it for nearly a copy when this one does not.
            seen = replace(result, excess=round(min(result.excess, MAX_EXCESS), EXCESS_DECIMALS))
            if self.cache:
                self.cache.store(self.pair(*wanted[file]), seen)
            else:
                self.known[self.pair(*wanted[file])] = seen

        compute(self.pool, replace(LOOK_WORK, more=lambda file: wanted[file]), list(wanted), take)


def wants_look(one: Replica[Any], other: Replica[Any]) -> bool:
    """Whether it takes a look to say that two replicas at distance 0 are copies: not if they have the same data."""
    if isinstance(one.fingerprint, ImageFingerprint):
        return not one.fingerprint.integrity.same_data(other.fingerprint.integrity)
    return isinstance(one.fingerprint, VideoFingerprint) and match_key(one) != match_key(other)


@functools.lru_cache(maxsize=2)  # the next pair mostly is of the same one and another
def views_of(replica: Replica[Any]) -> Any:
    """What a look at the replica compares, or a Problem."""
    if isinstance(replica.fingerprint, VideoFingerprint):
        return frames_of(replica.file, replica.fingerprint)
    return view_of(replica.file)


def look_at(_file: MediaFile, one: Replica[Any], other: Replica[Any]) -> Verdict | Problem:
    """The verdict on two replicas, or the Problem of the one that cannot be read. Runs in a worker process."""
    views = [views_of(one), views_of(other)]
    for each in views:
        if isinstance(each, Problem):
            return each
    return (video_verdict if isinstance(one.fingerprint, VideoFingerprint) else verdict)(*views)


LOOK_WORK: Work[Verdict] = Work(look_at, "pair", load_decoders)
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Companions: the files that are nothing without the photo beside them, found by their names
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

SIDECARS = frozenset({".xmp", ".aae", ".json", ".thm", ".dop", ".pp3", ".on1", ".cos"})  # edits and metadata
LIVE_PHOTOS = frozenset({".heic", ".heif", ".hif", ".jpg", ".jpeg"})
MOTION_PHOTOS = frozenset({".mp", ".mv"})  # Pixel's movie `PXL_1.MP` is called as its photo `PXL_1.MP.jpg` begins
LIVE_VIDEOS = frozenset({".mov", ".mp4"}) | MOTION_PHOTOS
COMPANION_SUFFIXES = SIDECARS | LIVE_VIDEOS
RAW_SUFFIXES = frozenset(
    """
    .3fr .ari .arw .bay .braw .cap .cr2 .cr3 .crw .dcr .dng .eip .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw
    .orf .ori .pef .ptx .r3d .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f
    """.split()  # noqa: SIM905 (a list would take as many lines as there are suffixes)
)
RAW, MOVIE = "RAW", "movie"  # kinds of what hangs on a photo; those of sidecars are their suffixes
MOVIE_MARKS = "_hevc", "_heic"  # after the stem, where icloudpd keeps `IMG_1.MOV` for another file
AAE_MARKS = "_o", "_e"  # idem's own spelling of iPhone's `IMG_O1.AAE` and `IMG_E1.AAE`, for photos of any name
IPHONE_NAME = re.compile(r"(img_)(\d+)")

# Takeout calls the JSON of `IMG_1(1).jpg` `IMG_1.jpg.supplemental-metadata(1).json`, or `IMG_1.jpg(1).json`. All but
# the counter and `.json` is cut, and an edit shares the JSON of its original.
SUPPLEMENT = ".supplemental-metadata"
TAKEOUT_CUT = 46  # code units of UTF-16
TAKEOUT_EDIT = re.compile(
    "-(?:edited|effects|smile|mix|bearbeitet|bewerkt|edytowane|modificato|modifié|ha editado|editado|editat|編集済み)$"
)
COUNTED = re.compile(r"(.*?)(\(\d+\))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that is nothing without the photo beside it: `IMG_1.xmp`, `IMG_1.jpg.xmp`, the movie of a Live Photo."""

    file: MediaFile
    photo: str  # the name of its photo
    kind: str  # MOVIE, or what its name ends with in small letters: `.xmp`
    tail: str  # what follows the name or stem of another photo that it moves to: `.xmp`, `_HEVC.MOV`
    long: bool  # it is called after the whole name of its photo, not after the stem
    differs: bool = False  # it goes to the trash, and what the kept file has of its kind is not the same

    def beside(self, photo: str) -> str:
        """Its path as the companion of this photo."""
        folder, name = os.path.split(photo)
        if name == self.photo:
            return os.path.join(folder, os.path.basename(self.file.path))
        return (photo if self.long else os.path.splitext(photo)[0]) + self.tail


class Listing:
    """The names in a folder, by what companions are found by; all keys are folded."""

    def __init__(self, names: Iterable[str]) -> None:
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.jsons: dict[str, list[tuple[str, str]]] = defaultdict(list)  # with their tails, by `takeout_name`
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            self.by_stem[folded(stem)].append(name)
            if suffix.lower() == ".json":
                head, counter = split_counter(unicodedata.normalize("NFC", stem))
                self.jsons[folded(head + counter)].append((name, suffix))
                photo, dot, supplement = head.rpartition(".")
                if dot and SUPPLEMENT.startswith(dot + supplement):
                    self.jsons[folded(photo + counter)].append((name, dot + supplement + suffix))

    @functools.cached_property
    def sharing(self) -> dict[str, set[str]]:
        """The stems of the photos and videos that Takeout's JSON of a name belongs to, by `takeout_name`."""
        sharing: dict[str, set[str]] = defaultdict(set)
        for stem, names in self.by_stem.items():
            for name in names:
                if suffix_of(name).lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                    sharing[takeout_name(name)].add(stem)
        return sharing

    def called(self, name: str) -> list[str]:
        """The files of this name, whatever its capitals and accents."""
        name = folded(name)
        return [each for each in self.by_stem.get(os.path.splitext(name)[0], ()) if folded(each) == name]

    def with_stem(self, stem: str, suffixes: Container[str]) -> list[str]:
        """The files of this folded stem that have one of the suffixes."""
        return [each for each in self.by_stem.get(stem, ()) if suffix_of(each).lower() in suffixes]


class Listings(dict[str, Listing]):
    """Folders, each listed when it is first asked about. OSError when that fails."""

    def __missing__(self, folder: str) -> Listing:
        self[folder] = Listing(os.listdir(folder))
        return self[folder]


def split_counter(stem: str) -> tuple[str, str]:
    """`IMG_1` and `(1)` of `IMG_1(1)`."""
    match = COUNTED.fullmatch(stem)
    assert match
    return match[1], match[2] or ""


def takeout_name(name: str) -> str:
    """What Takeout calls the JSON of a photo, folded, without `.supplemental-metadata` and `.json`."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    stem, counter = split_counter(stem)
    stem, inner = split_counter(TAKEOUT_EDIT.sub("", stem))
    units = (stem + suffix).encode("utf-16-le", "surrogatepass")[: 2 * TAKEOUT_CUT]
    return folded(units.decode("utf-16-le", "ignore") + (counter or inner))


def has_raw(photo: str, listings: Listings) -> bool:
    """Whether a RAW file of its stem is beside the photo."""
    return bool(listings[os.path.dirname(photo)].with_stem(folded(stem_of(photo)), RAW_SUFFIXES))


def companions_of(photo: str, listings: Listings, movies: Mapping[Identity, bool]) -> tuple[list[Companion], bool]:
    """The companions that are surely this photo's own, and whether another file beside it has its stem.

    `IMG_1.xmp` belongs to all files called `IMG_1`, so it is surely a photo's own only if there is no other; the movie
    of a Live Photo does not count as one. `IMG_1.jpg.xmp` is that of `IMG_1.jpg` alone, if that is there. A film is a
    companion only if `live_movies` has found that it is the movie of its photo. OSError when the folder cannot be read.
    """
    folder, name = os.path.split(photo)
    listing, stem = listings[folder], folded(stem_of(name))
    if len(listing.called(name)) > 1:  # nobody can tell whose they are
        return [], True
    found: dict[str, Companion] = {}

    def note(other: str, kind: str, tail: str, long: bool = False) -> None:
        with suppress(OSError, ValueError):  # it is a link or a folder, or has gone
            file = as_it_is(os.path.join(folder, other))
            if other not in found and (kind != MOVIE or movies.get(identity(file))):
                found[other] = Companion(file, name, kind, tail, long)

    for other, tail in films_beside(name, listing):
        note(other, MOVIE, tail, long=folded(stem_of(other)) == folded(name))
    others = set(listing.by_stem.get(stem, ())) - {name, *found, *listing.with_stem(stem, SIDECARS)}

    for key in (takeout_name(name), folded(name)):
        jsons = listing.jsons.get(key, ())
        if jsons and len(listing.sharing[key]) <= 1 and (folded(suffix_of(name)) in key or not others):
            for other, tail in jsons:
                note(other, ".json", tail, long=True)
    for other in listing.with_stem(folded(name), SIDECARS - {".json"}):
        note(other, suffix_of(other).lower(), suffix_of(other), long=True)
    if not others and not listing.called(stem):  # `IMG_1.jpg.xmp` is none of `IMG_1.jpg.png` beside `IMG_1.jpg`
        for other in listing.with_stem(stem, SIDECARS):
            note(other, suffix_of(other).lower(), suffix_of(other))
        for other, mark in aaes_beside(stem, listing):
            note(other, mark + ".aae", mark.upper() + suffix_of(other))
    return [each for each in found.values() if each.long or not others], bool(others)


def films_beside(photo: str, listing: Listing) -> list[tuple[str, str]]:
    """What may be the movie of this photo, by its name, each with what follows the name of the photo or its stem."""
    stem = folded(stem_of(photo))
    if suffix_of(photo).lower() not in LIVE_PHOTOS:
        return []
    found = [(each, suffix_of(each)) for each in listing.with_stem(stem, LIVE_VIDEOS)]
    found += [(each, suffix_of(each)) for each in listing.with_stem(folded(photo), LIVE_VIDEOS)]
    found += [(each, suffix_of(each)) for each in listing.called(stem) if os.path.splitext(stem)[1] in MOTION_PHOTOS]
    for mark in MOVIE_MARKS:
        marked = listing.with_stem(stem + mark, LIVE_VIDEOS)
        found += [(each, stem_of(each)[-len(mark) :] + suffix_of(each)) for each in marked]
    return found


def photos_beside(film: str, listing: Listing) -> list[str]:
    """The photos whose movie this film may be, by its name."""
    if suffix_of(film).lower() not in LIVE_VIDEOS:
        return []
    stem = folded(stem_of(film))
    stems = [stem, folded(film), os.path.splitext(stem)[0], *(stem.removesuffix(mark) for mark in MOVIE_MARKS)]
    photos = {each for one in stems for each in listing.with_stem(one, LIVE_PHOTOS)}
    return sorted(photo for photo in photos if any(each == film for each, _ in films_beside(photo, listing)))


def aaes_beside(stem: str, listing: Listing) -> list[tuple[str, str]]:
    """The AAE files of a photo of this folded stem beside the one that has its stem, each with its mark."""
    found = [(each, mark) for mark in AAE_MARKS for each in listing.with_stem(stem + mark, {".aae"})]
    if iphone := IPHONE_NAME.fullmatch(stem):
        for mark in AAE_MARKS:
            spelling = f"{iphone[1]}{mark[1:]}{iphone[2]}"
            if not listing.with_stem(spelling, IMAGE_SUFFIXES):  # else it is that of the edit
                found += [(each, mark) for each in listing.with_stem(spelling, {".aae"})]
    return found


def parted_companions(
    photo: str, keeper: str, listings: Listings, movies: Mapping[Identity, bool]
) -> tuple[list[Companion], list[tuple[MediaFile, str]]]:
    """The companions that go to the trash with a photo, and those that move to its keeper, with their new paths.

    A sidecar goes along if the keeper has one of its kind, else it moves. A movie goes along only if the keeper has the
    same one; it moves if the keeper has none, and otherwise stays, with all that is called after its stem. ValueError
    when two would get one name.
    """
    found, _ = companions_of(photo, listings, movies)
    own, shared = companions_of(keeper, listings, movies)
    kinds: dict[str, list[str]] = defaultdict(list)
    for each in own:
        kinds[each.kind].append(each.file.path)
    takes_movie = suffix_of(keeper).lower() in LIVE_PHOTOS and not shared  # else it would not be the keeper's there
    along: list[Companion] = []
    adopted: list[Companion] = []
    stays = False
    for each in found:
        is_known = any(is_same_content(each.file.path, other) for other in kinds[each.kind])
        if each.kind == MOVIE and (not takes_movie or (kinds[MOVIE] and not is_known)):
            stays = True
        elif kinds[each.kind]:
            along.append(replace(each, differs=not is_known))
        else:
            adopted.append(each)
    if stays:
        along, adopted = ([each for each in some if each.long and each.kind != MOVIE] for some in (along, adopted))
    # Called after the whole name, it cannot be taken for that of the RAW file of this stem.
    targets = {each.file: keeper + each.tail if shared and not each.long else each.beside(keeper) for each in adopted}
    if len(set(targets.values())) < len(targets):
        names = " and ".join(printable(os.path.basename(each.path)) for each in targets)
        raise ValueError(f"its companions {names} cannot both go to the kept file")
    return along, list(targets.items())


def hanging_on(groups: Iterable[AnyGroup], movies: Mapping[Identity, bool]) -> dict[str, dict[str, str]]:
    """By path of a file in these groups, what hangs on it: kinds of companions, each with what tells two apart."""
    listings = Listings()
    found: dict[str, dict[str, str]] = {}
    for path in (each.file.path for group in groups for each in group.replicas):
        with suppress(OSError):  # it has gone meanwhile, or cannot be read: then nothing moves
            own = {each.kind: content_digest(each) for each in companions_of(path, listings, movies)[0]}
            own |= {RAW: ""} if has_raw(path, listings) else {}
            found |= {path: own} if own else {}
    return found


def content_digest(companion: Companion) -> str:
    """What tells a companion from another of its kind; of movies, which are long, their size."""
    if companion.kind == MOVIE:
        return str(companion.file.size)
    with open(companion.file.path, "rb") as stream:
        return digest_of(stream)


# ── which film is the movie of a Live Photo ──

LONGEST_LIVE_PHOTO = 6.0  # s; iPhones record three
LIVE_PHOTO_CLOCK = 3.0  # s between the start of the movie and the moment of its photo
QUARTER = 15 * 60  # s; all time zones are so many of them apart,
TIME_ZONES = 26 * 3600  # s, at most
Identity = tuple[int, int, int, int]  # of a file: what moving it does not change


@dataclass(frozen=True, slots=True)
class Film:
    """What a video file says of itself."""

    milliseconds: int  # 0 where it does not say
    stored_metadata: bytes


FILM_CACHE: CacheFormat[Film] = CacheFormat(
    "films_beside_photos_db.csv", (PATH, SIZE, MTIME, CTIME, DURATION, METADATA), Film
)


def identity(file: MediaFile) -> Identity:
    """What tells that a file is still the same one, wherever it has been moved."""
    return file.device, file.inode, file.size, file.mtime_ns


def is_movie_of(film: Film, photo: Metadata) -> bool:
    """Whether a film that is called like a photo is the movie of that Live Photo.

    It is if both state the same content identifier. Unless both state one, it also is if it is at most
    LONGEST_LIVE_PHOTO long and no times of capture that both state contradict it. These may be in two time zones.
    """
    about = read_metadata(film.stored_metadata)
    if about.live_id and photo.live_id:
        return about.live_id == photo.live_id
    return 0 < film.milliseconds <= 1000 * LONGEST_LIVE_PHOTO and not is_another_moment(about.taken, photo.taken)


def is_another_moment(one: str, other: str) -> bool:
    """Whether two `Metadata.taken` cannot be the times of one Live Photo; False where one is not stated, or no time."""
    try:
        first, second = (datetime.fromisoformat(each[:19]) for each in (one, other))
    except ValueError:
        return False
    apart = abs((first - second).total_seconds())
    return apart > TIME_ZONES or abs(apart - QUARTER * round(apart / QUARTER)) > LIVE_PHOTO_CLOCK


def film_of(file: MediaFile, about: VideoStream) -> Film:
    """What is kept of ffmpeg's words about a file."""
    return Film(round(1000 * (about.seconds or 0)), written_metadata(about.metadata))


@problem_if_unreadable
def read_film(file: MediaFile) -> Film:
    """What ffmpeg says of the file. Runs in a worker process."""
    with opened_unchanged(file):
        return film_of(file, video_stream(file.path))


def films_of(files: Sequence[MediaFile], root: str, folder: str, pool: Pool) -> dict[str, Film]:
    """What is known of these files, by path, from the cache in this folder or else from ffmpeg, many at once.

    One that ffmpeg cannot read is missing; so are all that are not in the cache where there is no ffmpeg.
    """
    with closing(FingerprintCache(FILM_CACHE, folder, Scan(root, tuple(files), (), ()))) as cache:
        films = {file.path: film for file in files if (film := cache.lookup(file))}
        new = {file.path: file for file in files if file.path not in films} if ffmpeg_path() else {}

        def take(file: MediaFile, film: Film | Problem) -> None:
            if isinstance(film, Film):
                films[file.path] = film
                cache.store(file, film)

        plain = [file for file in new.values() if printable(file.path) == file.path]  # see `video_streams`
        for _, future in pool.map(video_streams, for_one_ffmpeg(plain), again=False):
            for path, about in ({} if future.exception() else future.result()).items():
                take(new[path], film_of(new[path], about))
        compute(pool, Work(read_film, "film"), [file for path, file in new.items() if path not in films], take)
    return films


def live_movies(groups: Iterable[AnyGroup], root: str, folder: str, pool: Pool) -> dict[Identity, bool]:
    """Of every film that is called like a photo beside it, one of them in a group: whether it is that photo's movie.

    One that cannot be asked is missing: see `held_for_movies`. What is found out is cached in the folder.
    """
    replicas = {each.file.path: each for group in groups for each in group.replicas}
    listings = Listings()
    beside: dict[str, set[str]] = defaultdict(set)  # the photos that a film may be the movie of
    for path in replicas:
        parent, name = os.path.split(path)
        with suppress(OSError):  # a folder that cannot be listed is one in which nothing can move
            for film, _ in films_beside(name, listings[parent]):
                beside[os.path.join(parent, film)].add(path)
            for photo in photos_beside(name, listings[parent]):
                beside[path].add(os.path.join(parent, photo))
    files = []
    for path in sorted(beside):
        with suppress(OSError, ValueError):  # it has gone, or is a link or a folder
            files.append(as_it_is(path))
    films = films_of(files, root, folder, pool) if files else {}
    if unknown := len(files) - len(films):
        why = "ffmpeg cannot read it" if ffmpeg_path() else "that needs ffmpeg: python -m pip install imageio-ffmpeg"
        say(f"{plural(unknown, 'film')} may be the movie of a Live Photo, so both stay as they are: {why}")

    def metadata_of(photo: str) -> Metadata:
        fingerprint = replicas[photo].fingerprint if photo in replicas else None
        return fingerprint.metadata if isinstance(fingerprint, ImageFingerprint) else Metadata()

    return {
        identity(file): any(is_movie_of(films[file.path], metadata_of(photo)) for photo in beside[file.path])
        for file in files
        if file.path in films
    }


def held_for_movies(groups: Iterable[AnyGroup], movies: Mapping[Identity, bool]) -> frozenset[str]:
    """The paths of groups that neither go to the trash nor get another name for themselves, lest a pair be split.

    These are films that are, or may be, the movie of a photo beside them: they go where that goes. And photos whose
    movie would not come along: nobody can tell whose it is, or whether it is one.
    """
    held: set[str] = set()
    listings = Listings()
    for group in groups:
        for file in (each.file for each in group.replicas):
            folder, name = os.path.split(file.path)
            with suppress(OSError, ValueError):  # nothing moves that has gone or become a link
                is_film = movies.get(identity(file)) is not False and photos_beside(name, listings[folder])
                films = [os.path.join(folder, film) for film, _ in films_beside(name, listings[folder])]
                is_live = any(movies.get(identity(as_it_is(film))) for film in films if os.path.isfile(film))
                is_split = is_live and companions_of(file.path, listings, movies)[1]
                if is_film or is_split or unasked_films(file.path, listings, movies):
                    held.add(file.path)
    return frozenset(held)


def unasked_films(photo: str, listings: Listings, movies: Mapping[Identity, bool]) -> list[str]:
    """The films that may be the movie of a photo, by name, and of which nobody knows, or that have changed since."""
    folder, name = os.path.split(photo)
    unasked = []
    for film, _ in films_beside(name, listings[folder]):
        with suppress(OSError, ValueError):  # it is a link or a folder, or has gone
            if identity(as_it_is(os.path.join(folder, film))) not in movies:
                unasked.append(film)
    return unasked


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Names: what names and folders tell a person. Pure
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def comparable(text: str) -> str:
    """The text without accents and without regard to case: `Cópia` and `copia` are one word."""
    return without_accents(text).casefold()


def without_accents(text: str) -> str:
    """The text with its base letters alone, in as few characters as there are: `Zürich` is `Zurich`."""
    if text.isascii():
        return text
    letters = (each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")
    return unicodedata.normalize("NFC", "".join(letters))


def word_set(*texts: str) -> frozenset[str]:
    """The words of these texts, comparable. A term of several words is written as one: `lowres` is `Low-Res`, too."""
    return frozenset(comparable(" ".join(texts)).split())


# Added to the name of a copy, in front or at the end. A folder with such a word holds copies.
COPY_WORDS = word_set(
    "copy copies copie copia copias kopie kopien kopia kopio kopiot kopi kopier kopija kopya kopyalar koopia másolat",
    "másolatok salinan αντίγραφο копия копии копія копие コピー 副本 拷贝 拷貝 複製 복사본 사본 สำเนา עותק",
)
# Added to the name of an edit: Google Takeout's `-edited` in its languages, Lightroom's, and those of other editors.
EDIT_WORDS = word_set(
    "edit edits edited bearbeitet bearbeitung modifié modifiée retouche retouché editado editada editar modificato",
    "modificata ritoccato bewerkt edytowane edytowany redigerad redigeret redigert redigerat muokattu düzenlendi",
    "upraveno szerkesztett изменено отредактировано 編集済み 已编辑 已修改 已編輯 수정됨 retouched enhanced",
)
# What a folder is called in which nobody looks for a picture, by kind. It loses, whatever else is in its name.
LOSING_FOLDERS = {
    "backups": """
        backup backups bkp bkup sicherung sicherungen sicherungskopie sicherungskopien sicherheitskopie datensicherung
        fotosicherung sauvegarde sauvegardes respaldo respaldos copiadeseguridad copiadesegurança salvataggio
        reservekopie reservekopieën veiligheidskopie kopiazapasowa kopiezapasowe säkerhetskopia säkerhetskopior
        sikkerhedskopi sikkerhetskopi varmuuskopio varmuuskopiot yedek yedekler yedekleme záloha zálohy
        biztonságimásolat cadangan бэкап бекап резервнаякопия резервныекопии バックアップ 备份 備份 백업 timemachine
    """,
    "exports": """
        export exports exported exportiert exportierte exporté exportés exportación exportaciones exportado exportadas
        exportação exportações esportazione esportazioni esportati geëxporteerd eksport exporterade экспорт エクスポート
        書き出し 导出 匯出 내보내기 takeout
    """,
    "messengers": """
        whatsapp telegram wechat weixin 微信 kakaotalk 카카오톡 imessage gesendete wysłane skickade gönderilen
        отправленные 送信済み
    """,
    "downloads": """
        downloads downloaded heruntergeladen heruntergeladene téléchargement téléchargements descargas transferências
        scaricati scaricate gedownload pobrane nedladdat hämtningar hämtadefiler overførsler nedlastinger lataukset
        indirilenler indirilen stažené letöltések загрузки загруженное ダウンロード 下载 下載 다운로드 التنزيلات הורדות
        ดาวน์โหลด
    """,
    "desktops": "áreadetrabalho ambientedetrabalho рабочийстол デスクトップ 바탕화면",
    "duplicates": """
        duplicates dupes duplikat duplikate duplikaty duplikater dubletten doublons duplicados duplicadas duplicati
        dubletter yinelenen duplicitní дубликат дубликаты дубли 重複 重复 중복
    """,
    "rejects": """
        rejects outtakes aussortiert aussortierte rejetés rechazados rechazadas descartados descartadas rejeitados
        rejeitadas scartate afgekeurd odrzucone bortvalda reddedilen ボツ 废片 廢片
    """,
    "trash": """
        trashbin recyclebin recycler todelete papierkorb zulöschen asupprimer paraborrar lixeira dacancellare
        prullenbak prullenmand papperskorg papperskorgen papirkurv roskakori çöpkutusu удаленные удалённые ゴミ箱
        ごみ箱 回收站 垃圾箱 垃圾桶 废纸篓 휴지통
    """,
    "temporary": "一時保存 一時ファイル 一時フォルダ",
    "smaller versions": """
        thumbnail thumbnails vorschaubilder miniatyrer miniatury サムネイル 缩略图 縮圖 lowres lowresolution lores
        websize webres webversion webversions forweb fürsweb komprimiert redimensionné redimensionnées redimensionadas
        ridimensionate
    """,
}
# These lose, too, unless a word that tells something follows: `Italy small` and `Web`, but not `Signal Hill`.
LOSING_ENDS = {
    "backups": "bak",
    "exports": """
        output rendered slideshow slideshows diashow diaporama wallpaper wallpapers hintergrundbilder print prints druck
        imprimir
    """,
    "messengers": """
        signal viber messenger snapchat instagram facebook skype discord threema tumblr pinterest twitter tiktok
        messages email emails mail mails sent gesendet envoyés envoyées enviados enviadas inviati inviate verzonden
    """,
    "downloads": "download descarga",
    "desktops": "desktop schreibtisch escritorio scrivania bureaublad skrivbord skrivebord työpöytä masaüstü 桌面",
    "duplicates": "duplicate dup dups dupe doppelt doppelte doublon duplicado doppione doppioni dubbele kopi",
    "rejects": """
        reject rejected culled discard discarded discards outtake throwaway ausschuss abgelehnt abgelehnte rejeté rejets
        rechazado descartado rejeitado scarto scarti
    """,
    "trash": """
        trash trashed recycle recycled deleted delete bin gelöscht gelöschte geloescht poubelle corbeille supprimé
        supprimés supprimées papelera eliminado eliminados eliminadas basura borrado borrados borradas lixo apagadas
        excluídos excluídas cestino eliminati eliminate verwijderd verwijderde usunięte kosz raderade borttagna slettet
        slettede poistetut çöp silinen silinenler silinmiş smazané корзина удалено 削除 刪除 删除 삭제 삭제된
    """,
    "temporary": """
        temp tmp temporary temporaire temporaires temporanei tijdelijk tijdelijke cache caches временные 一時 临时
        臨時
    """,
    "smaller versions": """
        thumb thumbs preview previews vorschau vignettes miniaturas compressed compressé compressées comprimidas
        compresse resized downsized scaled reduced verkleinert réduit réduites web small smaller smallest mini klein
        kleine kleiner petit petites petite pequeño pequeña pequeñas pequenas piccole piccoli liten små småt mały małe
        маленькие
    """,
}
LOSING_WORDS = word_set(*LOSING_FOLDERS.values()) | COPY_WORDS - {"kopi"}  # a coffee, too
LOSING_LAST_WORDS = word_set(*LOSING_ENDS.values())
EMPTIED_WORDS = word_set(*(words[kind] for words in (LOSING_FOLDERS, LOSING_ENDS) for kind in ("trash", "temporary")))
PIXELS = re.compile(r"(?i)(?<![^\W_])\d{3,5}(?:px|x\d{3,5}(?:px)?)(?![^\W_])")  # `1024px`, `800x600`: made smaller
# The one other word beside them is its owner or an app: `Mamas Handy`, `Papa PC`, `Screenshot_20210705_Chrome`.
OWNED_WORDS = word_set(
    "pc laptop notebook computer rechner macbook imac desktop iphone ipad phone cellphone handy smartphone tablet nas",
    "telefon téléphone telefono teléfono telefone telefoon puhelin celular móvil telemóvel cellulare portatile",
    "ordinateur ordi ordenador computador bilgisayar počítač телефон смартфон ноутбук компьютер планшет 手机 手機 电脑",
    "電腦 スマホ 携帯 パソコン 휴대폰 핸드폰 노트북 컴퓨터 festplatte screenshot screenshots bildschirmfoto",
    "スクリーンショット 屏幕截图 截屏 截图 ezgif usbstick",
)
# They tell nothing of a picture: what cameras and apps call their files, what people call folders for now, and words
# for pictures as such.
STOP_WORDS = (
    COPY_WORDS
    | EDIT_WORDS
    | LOSING_WORDS
    | LOSING_LAST_WORDS
    | OWNED_WORDS
    | word_set(
        # cameras and phones
        "img imgp imag dsc dscf dscn dscp dcim pxl vid mvi mvimg mov pict gopr gopro dji sam csc cimg hpim msdcf olymp",
        "pana canon nikon olympus sony panasonic fuji fujifilm kodak pentax leica apple android iphone ipad samsung",
        "huawei xiaomi nokia pixel motorola oneplus hdr pano panorama portrait live raw burst bracketed cover creation",
        "motion collage slomo timelapse pro win wideangle",
        # apps, clouds and websites
        "received mmexport fbimg rpreplay fullsizerender fullsize snapseed picsart vsco lightroom photoshop adobe",
        "line express picasa psx camscanner scannable genius scanner epson videoplayback hangout whatsappbusiness",
        "facebookcreation dropbox icloud onedrive google drive nextcloud synology flickr cloud upload uploads uploaded",
        "camerauploads sync synced shared share public 微信图片 微信截图 微信视频 qq图片 weixinimage",
        "inbound gmail attachment attachments anhang anhänge att allegato allegati adjunto adjuntos anexo piècejointe",
        "bijlage załącznik bilaga вложение 添付 附件 asset unsplash pexels pixabay freepik istock istockphoto",
        "shutterstock adobestock gettyimages depositphotos dreamstime alamy mmqrcode mceu gifmaker giphy polarr",
        "instasize retrica beautyplus photogrid fotojet canva untitleddesign resizer resizeimage onlinepngtools inshot",
        "midjourney dall dalle remini",
        # screenshots, and what comes between their date and time
        "screenshot screenshots screen shot bildschirmfoto bildschirmfotos capture ecran écran captura pantalla ecrã",
        "schermata alle uhr zrzut ekranu skärmavbild schermafbeelding ekran görüntüsü resmi skjermbilde skærmbillede",
        "näyttökuva snímek obrazovky képernyőfotó снимок экрана скриншот スクリーンショット 屏幕截图 屏幕快照 截屏",
        "截图 螢幕截圖 스크린샷 recording snap snapshot vlcsnap bildschirmaufnahme 画面収録 录屏",
        # pictures as such
        "image images imagen imagenes imagem imagens immagine immagini afbeelding afbeeldingen video videos movie",
        "movies film filme pic pics picture pictures photo photos photograph photographs foto fotos fotoğraf",
        "fotografía fotografie bild bilder billeder bilde kuva kuvat obraz zdjęcie zdjęcia kép képek aufnahme",
        "aufnahmen фото фотографии фотография изображение видео 写真 画像 图片 圖片 照片 相片 사진 이미지 scan scans",
        "scanned numérisation escaneado digitalizar scansione сканирование album albums alben camera cameras cam roll",
        "kamera appareil cámara câmera fotocamera aparat камера 相机 相機 カメラ 相册 アルバム",
        # no name yet
        "untitled unnamed unbenannt ohnetitel sanstitre sintítulo senzatitolo semtítulo naamloos beztytułu namnlös",
        "adsız безназвания 無題 未命名 名称未設定 新建文件夹 新しいフォルダー new neu neue neuer nouveau nouvelle",
        "nuevo nueva nuova nuovo novo nova nieuwe nowy folder mappe carpeta cartella dossier ordner папка новая yeni",
        "klasör フォルダ フォルダー ファイル 文件 文件夹 檔案 資料夾 unknown unbekannt inconnu desconocido sconosciuto",
        "desconhecido onbekend okänd neznámý неизвестно 不明 slide folie diapositive page seite",
        # desktops and duplicates, or a pulpit, a table, an office and a match
        "pulpit plocha asztal bureau doubles",
        # versions, and what programs do to a picture
        "cropped crop gedreht fixed verbessert optimized optimised optimiert converted konvertiert converti",
        "convertido compress convertito geconverteerd upscaled upscayl upscale gigapixel topaz sharpen denoise",
        "denoiseai waifu enhance stitch gimp squoosh imageoptim noexif watermark watermarked wasserzeichen copyright",
        "insta dpi final finale last latest version versions ver vers old alt alte original originals originale orig",
        "large big medium groß grande full size maxres highres hires highresolution low high res resolution quality",
        "rotated resampled render default",
        # places for anything
        "file files folders datei dateien fichier archivo document documents dokument dokumente documentos documenti",
        "home user users media library libraries gallery galerie collection import imports imported saved phone phones",
        "mobile card usb disk disks disc drive hdd ssd stick external recovered recup dir bluetooth",
        "com org memorycard harddisk harddrive toshiba seagate sandisk wdelements mypassport externe externer externes",
        "platte platten laufwerk wechseldatenträger speicherkarte speicherkarten sdkarte disquedur disquedurexterne",
        "cléusb cartesd cartemémoire discoduro discoduroexterno discoexterno discoesterno tarjetasd cartãosd schedasd",
        "schijf externeschijf dyskzewnętrzny внешнийдиск флешка sdカード メモリーカード 外付け 硬盘 移动硬盘 硬碟 u盘",
        "存储卡 외장하드 flashdrive usbflash pendrive syncthing resilio tauschordner nachdatum bydate",
        "net app apps archive archives archiv misc miscellaneous various diverse varios varie other others",
        "stuff sonstiges verschiedenes все разное allerlei todo sort sorted unsorted sortieren inbox test all alle",
        "unsortiert sortiert zusortieren àtrier porordenar porclasificar sinclasificar sinordenar daordinare",
        "daorganizzare paraorganizar aorganizar tesorteren ongesorteerd osorterat attsortera tosort usorteret usortert",
        "doposortowania nieposortowane разобрать несортированное 未整理 整理 未分类 未分類 待整理 미정리 미분류",
        "everything favorites favourites favoriten favoris favoritos preferiti selection selected auswahl best",
        # formats
        "jpeg jpg png gif heic heif tif tiff bmp webp avi",
        # what stands between words
        "and the from for with von vom der die das den dem des und les une los las del della dei gli per het een van",
        "och til",
    )
)
MONTHS = {
    word: number
    for number, names in enumerate(
        (
            "jan january januar janvier enero ene janeiro gennaio gen januari januára января leden ocak",
            "feb february februar février fevrier febrero fevereiro febbraio februari февраля únor şubat",
            "mar march mär märz mrz maerz mars marzo março maart марта březen mart",
            "apr april avril abril abr aprile апреля duben nisan",
            "may mai mayo maio maggio mag mei maj мая květen mayıs",
            "jun june juni juin junio junho giugno giu июня červen haziran",
            "jul july juli juillet julio julho luglio lug июля červenec temmuz",
            "aug august août aout agosto ago augustus augusti августа srpen ağustos",
            "sep sept september septembre septiembre setembro set settembre сентября září eylül",
            "oct october okt oktober octobre octubre outubro out ottobre ott октября říjen ekim",
            "nov november novembre noviembre novembro ноября listopad kasım",
            "dec december dez dezember décembre diciembre dic dezembro dicembre декабря prosinec aralık",
        ),
        1,
    )
    for word in word_set(names)
}
CAMERA_FOLDER = re.compile(r"(?!19\d\d|20\d\d)[1-9]\d\d[A-Za-z_0-9]{5}")  # 100APPLE, 101MSDCF, 102_PANA: DCF's rule
SCRIPT_RUN = re.compile("[ぁ-ゟ]+|[゠-ヿ]+|[㐀-鿿々가-힣]+|[^ぁ-ヿ㐀-鿿々가-힣]+")  # no spaces in the first three
PACKAGE = r"(?<![^\W_])(?:com|org|net)\.[a-z]\w*(?:\.\w+)+"  # an Android app, at the end of a screenshot's name
IDENTIFIER = re.compile(rf"{PACKAGE}|[0-9a-fA-F]{{8}}(?:-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}")
COPY_MARK = re.compile(  # of names without accents
    r"(?i)(?:(?:^|[\s_(–—-]+)(?:{cased})|[\s_(–—-]*の?(?:{caseless}))\)?[\s_-]*\(?\d{{0,3}}\)?$"  # `beach - Kopie (2)`
    r"|\s*\([^()]*\b(?:{cased})\b[^()]*\)$"  # `beach (another copy)`
    r"|^(?:{cased})\s(?:\(\d{{1,3}}\)\s)?(?:of|von|de|di|van|av|af)\s|^(?:{caseless})\s*[~～-]\s*"  # `Copy of beach`
    r"|\s*\(\d{{1,3}}\)$|\[\d{{1,2}}\]$|~\d{{1,2}}$|\.sync-conflict-[\w-]+$"  # `beach (2)`, `beach[1]`, `beach~2`
    r"|(?:(?<=[a-z_]\d{{4}})(?<![a-z_]19\d\d)(?<![a-z_]20\d\d)|(?<=\d{{5}}))[-_~ ]\d{{1,2}}$".format(  # `IMG_1234-2`
        cased="|".join(sorted(each for each in COPY_WORDS if each.upper() != each)),
        caseless="|".join(sorted(each for each in COPY_WORDS if each.upper() == each)),
    )
)
YEAR = r"(?P<year>19\d\d|20[0-4]\d)"
YEAR_OF_FOLDER = re.compile(rf"(?<!\d){YEAR}(?:(?:0[1-9]|1[0-2])(?:[0-3]\d)?)?(?!\d)")  # 2019, 201907, 20190705
CLOCK = (  # 101112, 10.11.12, 10-11-12, with milliseconds, or `9.11.12 PM`; after ` `, `_`, `-`, `T`, ` at ` or nothing
    r"(?:(?:[\W_T]{0,3}|\W+[^\W\d_]{1,4}\.?\W+)(?P<hour>[01]\d|2[0-3]|\d(?=[.:]))(?P<colon>[-_.: ]?)(?P<minute>[0-5]\d)"
    r"(?P=colon)(?P<second>[0-5]\d)(?:\.?\d{2,3})?(?!\d)(?:\s?(?P<noon>[ap])\.?m\b)?)?(?!\d)"
)
DATES = tuple(
    re.compile(rf"(?i)(?<!\d){date}{CLOCK}")
    for date in (
        rf"{YEAR}(?P<dash>[-_. ]?)(?P<month>\d\d)(?P=dash)(?P<day>\d\d)",
        rf"{YEAR}年(?P<month>\d\d?)月(?P<day>\d\d?)日",
        rf"(?P<day>\d\d?)(?P<between>[-_. ])(?P<month>\d\d?)(?P=between){YEAR}",
        rf"(?P<day>\d\d?)(?:st|nd|rd|th|\.)?[\s_-]*(?:de\s|of\s)?(?P<month>[^\W\d_]{{3,10}})\.?[\s_-]*(?:de\s)?{YEAR}",
        rf"(?P<month>(?<![^\W\d_])[^\W\d_]{{3,10}})[\s._-]*(?P<day>\d\d?)(?:st|nd|rd|th)?[\s,._-]+{YEAR}",
    )
)
SHORTEST_WORD = 3  # letters, in scripts with upper and lower case
LONGEST_TERM = 4  # words, of what is written as one in the lists above
IDEOGRAPH = 2  # letters that one of a script without them stands for: these words are shorter
MAX_NAME_BYTES = 255  # in file systems that matter


class PlaceRank(NamedTuple):
    """How likely a person looks for a picture in a folder; the greater of two is the better."""

    lasting: bool  # it is no bin, and not for what is temporary
    proper: bool  # it is not for backups, exports, messengers, downloads, duplicates, rejects and the like
    named: bool  # words in it tell something
    dated: bool
    letters: int  # of those words

    @property
    def kind(self) -> tuple[bool, bool, bool, bool]:
        """What makes a folder better than another one; a few letters more do not."""
        return self[:4]

    @property
    def tells(self) -> bool:
        return self.named or self.dated


class NameRank(NamedTuple):
    """How much a name tells a person; the greater of two is the better."""

    letters: int  # of words that tell something
    dated: bool
    unmarked: bool  # as a copy, an edit, or a smaller version


class Reading(NamedTuple):
    """What the words in a name tell."""

    letters: int  # of content words
    loses: bool  # as the folders of LOSING_FOLDERS
    emptied: bool  # sooner or later, as a bin
    edited: bool


def place_rank(path: str, scoring: Scoring) -> PlaceRank:
    """How likely a person looks for the picture in its folder. All folders below the library count."""
    folders = [each for each in relative(os.path.dirname(path), scoring.root).split(os.sep) if each != "."]
    readings = [reading(each, scoring.stop_words) for each in folders]
    dated = any(YEAR_OF_FOLDER.search(each) for each in folders)
    letters = sum(
        read.letters
        for folder, read in zip(folders, readings, strict=True)
        if not CAMERA_FOLDER.fullmatch(folder) and not (dated and comparable(folder) in MONTHS)
    )
    losing = [each for each in readings if each.loses]
    return PlaceRank(not any(each.emptied for each in losing), not losing, letters > 0, dated, letters)


def best_place(paths: Sequence[str], scoring: Scoring) -> int:
    """Which of these paths has the folder for the first file, by number.

    It moves only into a better kind of folder. What lies in a proper folder with a date was put there and stays. What
    lies in one with words alone moves only into one with words and a date. Out of a folder that tells something nothing
    moves into one that tells nothing, unless its own is emptied sooner or later. A preferred folder always wins.
    """
    ranks = [place_rank(each, scoring) for each in paths]
    best = max(range(len(paths)), key=ranks.__getitem__)
    preferred = [number for number, path in enumerate(paths) if scoring.is_preferred(path)]
    if preferred:
        return preferred[0]
    own, other = ranks[0], ranks[best]
    stays = (own.proper and own.dated) or (own.lasting and own.tells and not other.tells)
    return best if other.kind > own.kind and not stays else 0


def name_ranks(paths: Sequence[str], scoring: Scoring) -> list[NameRank]:
    """How much the name of each file of a group tells.

    The words of a name that hides or reorders text count nothing.
    """
    stems = [stem_of(each) for each in paths]
    names = frozenset(map(comparable, stems))
    ranks = []
    for stem in stems:
        plain = without_copy_mark(stem, names)
        letters, loses, _, edited = reading(plain, scoring.stop_words)
        letters = letters if printable(stem) == stem else 0
        is_marked = loses or edited or plain != without_accents(stem)
        ranks.append(NameRank(letters, date_in_name(plain) != "", not is_marked))
    return ranks


def best_name(paths: Sequence[str], scoring: Scoring) -> int:
    """Which of these paths has the name for the first file, by number.

    That is its own, unless another one has more letters of content words, or is its own without a copy mark. The words
    of a smaller version (`beach 612x612`) do not count, nor what is added to its own name without a space: that tells
    what a program did (`IMG_1234-sharpened`). A date in another name is no reason: apps give such names, and the
    camera's number is what leads to the RAW file.
    """
    names = [comparable(stem_of(each)) for each in paths]
    plain = without_copy_mark(stem_of(paths[0]), names).casefold()
    letters = [each.letters for each in name_ranks(paths, scoring)]
    for number, name in enumerate(names):
        if letters[number] > letters[0]:
            added = name[len(plain) :] if name.startswith(plain) else ""
            is_processed = added.startswith(("-", "_", "~")) and len(added.split()) == 1
            if is_processed or reading(without_copy_mark(name, names), scoring.stop_words).loses:
                letters[number] = 0
    best = max(range(len(paths)), key=letters.__getitem__)
    if letters[best] > letters[0]:
        return best
    return names.index(plain) if plain in names and printable(plain) == plain else 0


def without_copy_mark(stem: str, names: Collection[str]) -> str:
    """The name, without accents, that a copy mark was added to; all of it if there is no mark.

    It has one if it ends or begins as copies do (`beach copy 2`, `beach (1)`, `Copy of beach`, `IMG_1234-2`). A mere
    number at the end (`Lena 33`) is one only if the name without it is among these, which are `comparable`.
    """
    name, marked = without_accents(stem), ""
    while marked != name:
        marked, name = name, COPY_MARK.sub("", name, count=1)
    numbered = re.fullmatch(r"(.+)[-_~ ]\d{1,3}", name)
    return numbered[1] if numbered and numbered[1].casefold() in names else name


@functools.lru_cache(maxsize=1 << 14)  # names; folders come up again with every file in them
def reading(name: str, stop_words: frozenset[str] = STOP_WORDS) -> Reading:
    """What a name's words tell: all but stop words, dates, hashes, identifiers and the like are content words."""
    plain = without_accents(name)
    tokens = re.findall(r"[^\W_]+", IDENTIFIER.sub(" ", plain))
    words: list[str] = []
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        is_month = token.casefold() in MONTHS and (before.isdecimal() or after.isdecimal())
        is_hash = bool(re.fullmatch(r"[0-9a-fA-F]{10,}", token)) or len(re.findall(r"\d+|\D+", token)) >= 4
        if not is_month and not is_hash:
            words += (word for run in re.findall(r"[^\W\d_]+", token) for word in words_in(run, stop_words))
    letters = [word_letters(each) for each in words]
    terms: dict[str, int] = {}  # each with the number of the word after it
    for length, first in product(range(1, LONGEST_TERM + 1), range(len(words))):
        term = "".join(words[first : first + length]).casefold()
        terms[term] = first + length
        if term in stop_words:
            letters[first : first + length] = [0] * len(letters[first : first + length])
    if sum(map(bool, letters)) == 1 and not OWNED_WORDS.isdisjoint(terms):
        letters = [0] * len(letters)
    lost = LOSING_WORDS.intersection(terms)
    lost |= {each for each in LOSING_LAST_WORDS.intersection(terms) if not any(letters[terms[each] :])}
    loses = bool(lost or PIXELS.search(plain))
    return Reading(sum(letters), loses, not lost.isdisjoint(EMPTIED_WORDS), not EDIT_WORDS.isdisjoint(terms))


def words_in(run: str, stop_words: Collection[str]) -> list[str]:
    """`NewYorkTrip` in three words, `HDRPano` in two, and so `手机备份` (phone backup), if the second is a stop word.

    Without spaces a word ends with its script, and what a compound is stands last: no `ボツ` (rejects) in `ボツワナ`.
    """
    words: list[str] = []
    for part in SCRIPT_RUN.findall(run):
        cases = "".join("U" if each.isupper() else "l" if each.islower() else "-" for each in part)
        borders = [0, *(each.start() for each in re.finditer("(?<=l)U|(?<=U)U(?=l)", cases)), len(part)]
        first = len(words)
        words += (part[begin:end] for begin, end in pairwise(borders))
        while not cases.strip("-") and (last := stop_word_at_end(words[first], stop_words)):
            words[first : first + 1] = [words[first].removesuffix(last), last]
    return words


def stop_word_at_end(word: str, stop_words: Collection[str]) -> str:
    """The longest stop word of two letters or more that a longer word ends with; "" if there is none."""
    return next((word[at:] for at in range(1, len(word) - 1) if word[at:] in stop_words), "")


def word_letters(word: str) -> int:
    """The letters a word counts for: none if it is too short, or nobody could pronounce it."""
    if word.upper() == word.lower():  # a script without case: Chinese, Arabic, Thai...
        return IDEOGRAPH * len(word)
    plain = "".join(each for each in unicodedata.normalize("NFD", word.casefold()) if each.isalpha())
    if len(word) < SHORTEST_WORD or not plain:  # Roman numerals have two cases, but are no letters
        return 0
    vowels = sum(each in "aeiouy" for each in plain) / len(plain)
    rare = sum(each in "jkqvwxz" for each in plain) / len(plain)
    is_noise = plain.isascii() and (vowels < 0.12 or (vowels < 0.25 and rare > 0.5))  # in Latin letters alone
    return 0 if is_noise else len(word)


def date_in_name(stem: str) -> str:
    """The date that a name states, with the time if it has one: `2021-07-05` or `2021-07-05 10.11.12`; "" if none.

    What could be a day or a month counts only with dots between (05.07.2021: day first), or as it is above 12.
    """
    plain = COPY_MARK.sub("", without_accents(stem))  # that of a conflicted copy is no date of the picture
    for match in (match for pattern in DATES for match in pattern.finditer(plain)):
        part = match.groupdict()
        day, month = int(part["day"]), MONTHS.get(part["month"].casefold(), 0)
        if part["month"].isdecimal():
            month = int(part["month"])
            if part.get("between", ".") != "." and day != month and max(day, month) <= 12:
                continue
            if "between" in part and month > 12:
                day, month = month, day
        hour, minute, second = (int(part[each] or 0) for each in ("hour", "minute", "second"))
        if part["noon"]:
            hour = hour % 12 + 12 * (part["noon"] in "pP")
        with suppress(ValueError):  # the 31st of June
            moment = datetime(int(part["year"]), month, day, hour, minute, second)
            return f"{moment:%Y-%m-%d %H.%M.%S}" if part["hour"] else f"{moment:%Y-%m-%d}"
    return ""


def dated_name(name: str, date: str) -> str:
    """The name with this date in front, unless it states that day already. The date is as `date_in_name` gives it."""
    return name if not date or date_in_name(name)[:10] == date[:10] else f"{date} {name}"


def with_counter(name: str, number: int, reserve: int = 0) -> str:
    """`beach (2).jpg`; the stem is cut where a file system would not take so long a name with `reserve` bytes more."""
    stem, suffix = os.path.splitext(name)
    tail = suffix if number == 1 else f" ({number}){suffix}"
    while stem and len(os.fsencode(stem + tail)) > MAX_NAME_BYTES - reserve:
        stem = stem[:-1]
    return stem + tail


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Original: Group -> the same group, its original first. Pure: nothing here touches a disk
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True, slots=True)
class Scoring:
    """What decisions depend on beside the group itself. Folders are absolute paths."""

    root: str
    stop_words: frozenset[str] = STOP_WORDS
    taken: Counter[str] = field(default_factory=Counter)  # files, and keepers to be, by `os.path.normcase` of the path
    preferred: tuple[str, ...] = ()  # folders whose copies win where nothing else tells two apart
    protected: tuple[str, ...] = ()  # folders in which nothing is moved
    held: frozenset[str] = frozenset()  # files that neither move nor go on their own: the movies of Live Photos
    hanging: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # see `hanging_on`
    links: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by path: the links that lead to a file

    def is_held(self, path: str) -> bool:
        """Whether the file at this path must stay where it is, under its name."""
        return path in self.held or any(is_inside(path, folder) for folder in self.protected)

    def is_fixed(self, path: str) -> bool:
        """Whether the file at this path keeps its name and folder, if it is kept."""
        return self.is_held(path) or RAW in self.hanging.get(path, {})

    def is_preferred(self, path: str) -> bool:
        """Whether the file at this path is in a folder that is preferred, or part of a Live Photo."""
        return path in self.held or any(is_inside(path, folder) for folder in self.preferred)


@dataclass(frozen=True, slots=True)
class Standing:
    """What tells how likely a replica is the original of its group."""

    replica: Replica[Any]
    scoring: Scoring
    pixels: int = 0  # real ones: an enlargement has as many as what it was made from
    name: NameRank | None = None
    edited: bool = False  # it was saved again by a program, as far as it says
    hanging: frozenset[str] = frozenset()  # kinds of what hangs on the file

    @property
    def metadata(self) -> Metadata:
        return metadata_of(self.replica)


class Rule(NamedTuple):
    """A reason to take one replica for the original rather than another."""

    key: Callable[[Standing], Any]  # greater for what is more likely the original
    reason: Callable[[Standing, Standing], str]  # in a few words, why the first is rather the original than the second


NO_METADATA = Metadata()


def metadata_of(replica: Replica[Any]) -> Metadata:
    """What the file says of itself; nothing where only its bytes were compared."""
    each = replica.fingerprint
    return NO_METADATA if isinstance(each, Checksum) else each.metadata


def more_of(one: Standing, other: Standing, kinds: Mapping[str, Callable[[Standing], Any]]) -> str:
    """What the one has and the other lacks, in words."""
    has = [word for word, of in kinds.items() if of(one) and not of(other)]
    return f"has the {listed(has)}" if has else ""


SAME_PIXELS = 0.99  # of the pixels; a rotation loses as many at its borders
PROVENANCE: dict[str, Callable[[Standing], Any]] = {
    "capture time": lambda each: each.metadata.taken,
    "camera": lambda each: each.metadata.make or each.metadata.model,
    "place": lambda each: each.metadata.place,
}
HANGING: dict[str, Callable[[Standing], Any]] = {
    "RAW file": lambda each: RAW in each.hanging,
    "movie of its Live Photo": lambda each: MOVIE in each.hanging,
    "film inside": lambda each: each.metadata.motion,
    "gain map for HDR": lambda each: each.metadata.gain_map,
    "sound": lambda each: each.metadata.sound,
    "sidecar": lambda each: each.hanging - {RAW, MOVIE},
}
WRITTEN: dict[str, Callable[[Standing], Any]] = {
    "rating": lambda each: each.metadata.rating,
    "keywords": lambda each: each.metadata.keywords,
    "caption": lambda each: each.metadata.caption,
}
# How much better a codec is than MPEG-4 and older ones at the same bit rate.
EFFICIENCY = {"h264": 1.5, "vp9": 2.0, "hevc": 2.0, "av1": 2.5}


def pixels_reason(one: Standing, other: Standing) -> str:
    width, height, _ = dimensions_of(one.replica)
    if one.pixels < width * height * SAME_PIXELS:
        return "shows most"
    return f"largest: {one.pixels / 1e6:.1f} MP" if one.pixels >= 50_000 else f"largest: {width} x {height}"


def provenance(each: Standing) -> tuple[bool, int]:
    """Whether a camera says that it took this; then how much else is said of where and when."""
    return from_camera(each.metadata), sum(bool(of(each)) for of in PROVENANCE.values())


def depth(each: Standing) -> tuple[int, bool, bool, int]:
    """Bits per channel, colours before a palette and grey, several pages before one."""
    said = each.metadata
    return said.bits or 8, said.colours not in ("palette", "grey"), said.colours != "palette", said.pages


def depth_reason(one: Standing, other: Standing) -> str:
    first, second = one.metadata, other.metadata
    if (first.bits or 8) != (second.bits or 8):
        return f"has {first.bits or 8} bits per channel"
    return "has all colours" if first.colours != second.colours else "has all pages"


def generation(each: Standing) -> tuple[bool, bool, bool, float]:
    """Not saved again; as its camera writes; not as programs write; less compressed, for what the codec needs."""
    replica, said = each.replica, each.metadata
    fingerprint = replica.fingerprint
    if isinstance(fingerprint, VideoFingerprint):
        rate = replica.file.size / max(0.001, fingerprint.seconds)
        return not each.edited, False, False, rate * EFFICIENCY.get(said.codec, 1.0)
    if isinstance(fingerprint, Checksum):
        return True, False, False, 0.0
    step = float(fingerprint.luma_step)
    if said.lossless and from_camera(said):  # cameras write JPEG: it was made of one, and is no better
        step = MAX_STEP
    return not each.edited, is_native(replica), not (said.jfif and from_camera(said)), -step


def is_native(replica: Replica[Any]) -> bool:
    """Whether a camera that writes HEIC says that it wrote this one; others may have been made of its JPEG."""
    said, suffix = metadata_of(replica), suffix_of(replica.file.path).lower()
    return from_camera(said) and (suffix == ".hif" or (suffix in HEIF_SUFFIXES and said.make.casefold() in HEIC_MAKERS))


HEIC_MAKERS = frozenset(
    {"apple", "samsung", "google", "huawei", "honor", "xiaomi", "oppo", "oneplus", "vivo", "motorola"}
)


def generation_reason(one: Standing, other: Standing) -> str:
    first, second = generation(one), generation(other)
    if first[0] != second[0]:
        program = f" by {printable(other.metadata.software)}" if other.metadata.software else ""
        return f"the other was saved again{program}"
    return "less compressed" if first[:3] == second[:3] else "as the camera wrote it"


def written_into(each: Standing) -> int:
    """How much of what a person wrote is in the file."""
    return bool(each.metadata.rating) + each.metadata.keywords + each.metadata.caption


def place(each: Standing) -> tuple[bool, PlaceRank]:
    """How likely a person looks for the picture in this folder."""
    path = each.replica.file.path
    return each.scoring.is_preferred(path), place_rank(path, each.scoring)


def picture_bytes(each: Standing) -> int:
    """Bytes of the picture itself: neither metadata nor what follows it."""
    fingerprint = each.replica.fingerprint
    return fingerprint.integrity.data_bytes if isinstance(fingerprint, ImageFingerprint) else each.replica.file.size


# The first rule that tells two replicas apart decides which of them is the original.
ORIGINAL: tuple[Rule, ...] = (
    Rule(lambda each: each.pixels, pixels_reason),
    Rule(provenance, lambda one, other: more_of(one, other, PROVENANCE)),
    Rule(depth, depth_reason),
    Rule(lambda each: [bool(of(each)) for of in HANGING.values()], lambda one, other: more_of(one, other, HANGING)),
    Rule(generation, generation_reason),
    Rule(written_into, lambda one, other: more_of(one, other, WRITTEN)),
    Rule(picture_bytes, lambda one, _: f"largest file: {readable_size(one.replica.file.size)}"),
    Rule(place, lambda one, _: f"in the better folder: {folder_text(one.replica, one.scoring)}"),
    Rule(lambda each: (each.name, -len(each.replica.file.path)), lambda _one, _other: "the better name"),
)


def evidence(each: Standing) -> tuple[Any, ...]:
    """What a file says of its origin, beside its pixels and how it is compressed."""
    return provenance(each), depth(each), not each.metadata.edited, not each.metadata.jfif


def folder_text(replica: Replica[Any], scoring: Scoring) -> str:
    """The folder of a replica as it is shown."""
    return relative(os.path.dirname(replica.file.path), scoring.root) or "."


def standings(replicas: Sequence[Replica[Any]], scoring: Scoring) -> list[Standing]:
    """The replicas of a group, each with its real pixels, in their order."""
    alike = {what_pixels_show(each): each for each in replicas}  # few, however many copies there are
    real: dict[object, int] = {}
    for key, each in alike.items():
        shown = [pixels_of(other) for other in alike.values() if adds_nothing(each, other)]
        real[key] = min([pixels_of(each), *shown])
    classes: dict[int, int] = {}  # what is within SAME_PIXELS of the largest of a class counts as that
    largest = 0
    for pixels in sorted(set(real.values()), reverse=True):
        if not largest or pixels < SAME_PIXELS * largest:
            largest = pixels
        classes[pixels] = largest
    twins: dict[object, list[Replica[Any]]] = defaultdict(list)  # with the same picture data
    for each in replicas:
        twins[picture_data(each)].append(each)
    names = name_ranks([each.file.path for each in replicas], scoring)
    found = []
    for each, name in zip(replicas, names, strict=True):
        own = scoring.hanging.get(each.file.path, {}).keys()
        same = twins[picture_data(each)]
        # Of twins none was saved again, if one was not; and what can move hangs on whichever is kept.
        edited = all(metadata_of(twin).edited for twin in same)
        movable = {kind for twin in same for kind in scoring.hanging.get(twin.file.path, {})} - {RAW}
        pixels = classes[real[what_pixels_show(each)]]
        found.append(Standing(each, scoring, pixels, name, edited, frozenset(movable | own)))
    return found


def picture_data(replica: Replica[Any]) -> object:
    """Equal for files that hold the same picture data."""
    each = replica.fingerprint
    if isinstance(each, ImageFingerprint):
        return each.integrity.data_bytes, each.integrity.data_sum
    return None if isinstance(each, Checksum) else replica.file


def pixels_of(replica: Replica[Any]) -> int:
    """How many pixels a picture has; 0 where only bytes were compared."""
    width, height, _ = dimensions_of(replica)
    return width * height


def what_pixels_show(replica: Replica[Any]) -> object:
    """All that `adds_nothing` looks at."""
    spectrum = getattr(replica.fingerprint, "spectrum", "")
    said = metadata_of(replica)
    return dimensions_of(replica)[:2], spectrum, from_camera(said), said.stated_side


MOST_ENLARGED = 4  # times its sides: enlargers that invent detail go that far


def adds_nothing(large: Replica[Any], small: Replica[Any]) -> bool:
    """Whether a larger picture is an enlargement of what the smaller one shows.

    Either it holds no finer detail, or its detail was invented: then it has no camera data, and the smaller one has.
    """
    if not isinstance(large.fingerprint, ImageFingerprint) or not is_larger(large, small):
        return False
    is_possible = pixels_of(large) <= MOST_ENLARGED**2 * pixels_of(small)
    return is_enlarged(large, small) or (
        is_possible and from_camera(metadata_of(small)) and not from_camera(metadata_of(large))
    )


# ── detail: what tells an enlargement from a picture of its own ──

SQUARE = 128  # px, of the squares of which spectra are taken
SQUARES = 8  # across and down
BANDS = 32  # of a spectrum, from long waves to the shortest that pixels can show
DETAILED_SHARE = 1 / 4  # of the squares, those with most detail: there is none to lose in a sky
LEVELS_PER_OCTAVE = 4  # of power, as it is stored
MAX_ENLARGED = 0.7  # of the larger one's side: what was enlarged by less cannot be told from what is a little soft
# Power beyond what the smaller picture could hold, as a share of that just below. Of 24 photos 20 had more than this
# (the others are very soft); reduced to half their sides and enlarged again, nearly all had less.
ENLARGED_SHARE = 0.055


@problem_if_unreadable
def spectrum_of(file: MediaFile) -> str:
    """The power of BANDS bands of waves in a picture, from long to short, as two hex digits each. Runs in a worker.

    A square's power in a band is the mean of its windowed Fourier transform there; that of the DETAILED_SHARE of the
    squares with most power above half the highest frequency counts. Zeros for a picture that is smaller than a square.
    """
    with content_of(file) as stream:
        picture = opened_picture(stream)
        decode(picture, file.size)
    luma = in_plain_mode(picture).convert("L")
    if min(luma.size) < SQUARE:
        return "00" * BANDS
    lefts, tops = (np.linspace(0, side - SQUARE, SQUARES).astype(int).tolist() for side in luma.size)
    squares = np.array([luma.crop((x, y, x + SQUARE, y + SQUARE)) for y in tops for x in lefts], np.float32)
    window = np.hanning(SQUARE)
    power = np.abs(np.fft.rfft2((squares - squares.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window))) ** 2
    waves = np.maximum(np.abs(np.fft.fftfreq(SQUARE))[:, None], np.fft.rfftfreq(SQUARE))  # of the shorter of both sides
    bands = np.minimum(BANDS - 1, (2 * BANDS * waves).astype(int)).ravel()
    sums = np.array([np.bincount(bands, square, BANDS) for square in power.reshape(len(squares), -1)])
    means = sums / np.bincount(bands)
    detailed = np.argsort(means[:, BANDS // 4 : BANDS // 2].sum(axis=1))[-int(len(squares) * DETAILED_SHARE) :]
    levels = LEVELS_PER_OCTAVE * np.log2(np.maximum(1, means[detailed].mean(axis=0)))
    return bytes(levels.round().clip(0, 255).astype(np.uint8).tolist()).hex()


def is_enlarged(large: Replica[Any], small: Replica[Any]) -> bool:
    """Whether a picture is known to be enlarged: the camera took less, or it has no finer detail than the small one."""
    spectrum, said = getattr(large.fingerprint, "spectrum", ""), metadata_of(large)
    (width, height, _), (small_width, small_height, _) = dimensions_of(large), dimensions_of(small)
    if from_camera(said) and 0 < said.stated_side < SAME_PIXELS * max(width, height):
        return True
    ratio = max(small_width / width, small_height / height)
    if not spectrum or ratio > MAX_ENLARGED:
        return False
    power = 2 ** (np.frombuffer(bytes.fromhex(spectrum), np.uint8) / LEVELS_PER_OCTAVE)
    waves = (np.arange(BANDS) + 0.5) / BANDS  # as shares of the highest frequency
    below = power[(waves >= 0.55 * ratio) & (waves <= 0.9 * ratio)]
    beyond = power[(waves >= 1.15 * ratio) & (waves <= 1.6 * ratio)]
    return bool(beyond.mean() < ENLARGED_SHARE * below.mean())


def wanting_spectrum(groups: Sequence[Group[ImageFingerprint]]) -> list[Replica[ImageFingerprint]]:
    """The replicas that would be kept for their pixels, though a smaller one says more of its origin."""
    found = []
    for group in groups:
        said = [(each, evidence(Standing(each, Scoring("")))) for each in group.replicas]
        said_most: dict[int, tuple[Any, ...]] = {}  # by the number of pixels
        for each, own in said:
            said_most[pixels_of(each)] = max(own, said_most.get(pixels_of(each), own))
        for each, own in said:
            smaller = (most for pixels, most in said_most.items() if SAME_PIXELS * pixels_of(each) > pixels)
            if not each.fingerprint.spectrum and any(own < most for most in smaller):
                found.append(each)
    return found


DETAIL_LOOK: CloserLook[ImageFingerprint] = CloserLook(
    wanting_spectrum,
    Work(spectrum_of, "photo", load_decoders),
    lambda each, spectrum: replace(each.fingerprint, spectrum=spectrum),
)


def is_larger(one: Replica[Any], other: Replica[Any]) -> bool:
    """Whether it has clearly more pixels."""
    return SAME_PIXELS * pixels_of(one) > pixels_of(other)


def ranked(replicas: Iterable[Replica[Any]], scoring: Scoring) -> list[Replica[Any]]:
    """The replicas in order of ORIGINAL."""
    by_path = sorted(replicas, key=lambda each: each.file.path)
    in_order = sorted(standings(by_path, scoring), key=lambda each: [rule.key(each) for rule in ORIGINAL], reverse=True)
    return [each.replica for each in in_order]


def original_first(group: AnyGroup, threshold: int, scoring: Scoring) -> list[AnyGroup]:
    """The group in order of ORIGINAL, with distances to the first. What is too far from it makes groups of its own."""
    replicas = ranked(group.replicas, scoring)
    if replicas[0] is group.replicas[0]:
        known = {each.file: distance for each, distance in zip(group.replicas, group.distances, strict=True)}
        distances = [known[each.file] for each in replicas]
    else:
        distances = distances_from(replicas[0], replicas)
    near = [distance <= threshold for distance in distances]
    copies = [(each, bits) for each, bits, kept in zip(replicas, distances, near, strict=True) if kept]
    others = [each for each, kept in zip(replicas, near, strict=True) if not kept]
    found = [Group(group.kind, *(tuple(each) for each in zip(*copies, strict=True)))] if len(copies) > 1 else []
    for rest in groups_of(others, threshold) if others else ():
        found += original_first(rest, threshold, scoring)
    return found


def why_original(replicas: Sequence[Replica[Any]], scoring: Scoring) -> str:
    """In a few words, what tells the first replica from the one that is next in order of ORIGINAL."""
    if isinstance(replicas[0].fingerprint, Checksum):
        return "all files are equal"
    first, *others = standings(replicas, scoring)
    if not others:
        return ""
    second = max(others, key=lambda each: [rule.key(each) for rule in ORIGINAL])
    rule = next((rule for rule in ORIGINAL if rule.key(first) != rule.key(second)), None)
    return (rule.reason(first, second) if rule else "") or "as good as any"


# ── what would be lost ──

# What a copy may have that the kept file lacks, in the words that people read.
LOSSES: dict[str, Callable[[Standing], Any]] = {
    **PROVENANCE,
    **WRITTEN,
    "film inside": HANGING["film inside"],
    "gain map for HDR": HANGING["gain map for HDR"],
    "sound": HANGING["sound"],
}


@dataclass(frozen=True, slots=True)
class Loss:
    """What a file that is to go has, and the kept one lacks, in words."""

    path: str
    what: tuple[str, ...]


def losses(keeper: Replica[Any], target: str, trash: Sequence[Replica[Any]], scoring: Scoring) -> tuple[Loss, ...]:
    """What the file that is kept at this path lacks, for every file that is to go and has more or says otherwise."""
    kept = Standing(keeper, scoring)
    hanging = dict(scoring.hanging.get(keeper.file.path, {}))
    found = []
    for each in trash:
        what = lacking(kept, Standing(each, scoring)) + lost_dates(kept, target, each.file.path, scoring)
        for kind, digest in scoring.hanging.get(each.file.path, {}).items():
            if hanging.setdefault(kind, digest) != digest:  # what the kept file lacks moves to it
                what.append(f"another {kind} file")
        what += [f"the link {relative(link, scoring.root)}" for link in scoring.links.get(each.file.path, ())]
        found += [Loss(each.file.path, tuple(what))] if what else []
    return tuple(found)


def lacking(kept: Standing, gone: Standing) -> list[str]:
    """What one file has and says, and the other has not or says otherwise, in words."""
    one, other = kept.metadata, gone.metadata
    what = [word for word, of in LOSSES.items() if of(gone) and not of(kept)]
    what += ["another capture time"] if one.taken and other.taken and one.taken[:19] != other.taken[:19] else []
    what += ["another rating"] if one.rating and other.rating and one.rating != other.rating else []
    what += ["other keywords or captions"] if one.words and other.words and one.words != other.words else []
    what += [f"{other.bits} bits per channel"] if other.bits > (one.bits or 8) else []
    what += ["all colours"] if other.colours == "colour" and one.colours in ("palette", "grey") else []
    what += ["several pages"] if other.pages > max(1, one.pages) else []
    return what + (["more pixels"] if is_larger(gone.replica, kept.replica) else [])


def lost_dates(kept: Standing, target: str, path: str, scoring: Scoring) -> list[str]:
    """The dates that only the name or the folders of a file state, where the kept one will have none."""
    if kept.metadata.taken or date_in_name(stem_of(target)):
        return []
    folder = place_rank(path, scoring)  # that of a backup has the date of the backup
    dated = folder.proper and folder.dated and not place_rank(target, scoring).dated
    in_name = bool(date_in_name(stem_of(path)))
    return ["date in its name"] * in_name + ["date of its folder"] * (dated and not in_name)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Decide: Group -> Decision. The one source of every suggestion; reads no disk
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person wants of a group; its replicas by number, the original first. None: as suggested."""

    keep: frozenset[int]  # at least one
    named: int | None = None  # whose name the best of them gets
    placed: int | None = None  # whose folder


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a group: its keeper and where that will be, which replicas go to the trash, and why."""

    keeper: Replica[Any]
    target: str
    trash: tuple[Replica[Any], ...]
    reasons: tuple[str, ...]
    stays: tuple[Replica[Any], ...] = ()  # those that are kept beside the keeper, as they are
    alike: tuple[Replica[Any], ...] = ()  # of the trash: look-alikes, which a person takes for copies
    loses: tuple[Loss, ...] = ()
    named: int = 0  # whose name and whose folder the keeper gets, by number in the group
    placed: int = 0

    @property
    def is_renamed(self) -> bool:
        """Whether the keeper gets another name or folder."""
        return self.target != self.keeper.file.path

    @property
    def frees(self) -> int:
        """Bytes of what goes to the trash."""
        return sum(each.file.size for each in self.trash)


def suggested(group: AnyGroup, scoring: Scoring) -> Choice:
    """What to keep of a group in order of ORIGINAL: the first, and whatever is not certainly a mere copy of it."""
    keep = {number for number in range(len(group.replicas)) if number == 0 or why_kept(group, number, scoring)}
    return Choice(frozenset(keep))


def why_kept(group: AnyGroup, number: int, scoring: Scoring) -> str:
    """Why a replica other than the first is not suggested for the trash, in words; empty if it is."""
    first, replica = group.replicas[0], group.replicas[number]
    path = replica.file.path
    if alike := look_alike(group, number):
        return alike
    if any(is_inside(path, folder) for folder in scoring.protected):
        return "protected"
    if path in scoring.held:
        return "part of a Live Photo"
    if is_larger(replica, first):
        return "has more pixels"
    raw = RAW in scoring.hanging.get(path, {}) and RAW not in scoring.hanging.get(first.file.path, {})
    return "beside its RAW file" if raw else ""


def decide(group: AnyGroup, scoring: Scoring, choice: Choice | None = None) -> Decision:
    """What is to become of a group in order of ORIGINAL: as suggested, or as chosen. What is held stays in any case.

    The first of those that are kept is the keeper. It gets the best name in the best folder: its own, unless one that
    goes to the trash has a better one. Others that are kept stay as they are. The target is nobody else's: a counter
    is added to a taken name. Neither what is held nor a photo beside its RAW file gets another name or folder.
    """
    is_suggested, choice = choice is None, choice or suggested(group, scoring)
    paths = [each.file.path for each in group.replicas]
    held = {number for number, path in enumerate(paths) if scoring.is_held(path)}
    best, *stays = sorted(choice.keep | held)
    given_up = sorted(set(range(len(paths))) - {best, *stays})
    keeper = group.replicas[best]
    sources = [best, *given_up]
    named, placed, target = best, best, paths[best]
    if not scoring.is_fixed(paths[best]):
        candidates = [paths[number] for number in sources]
        named = sources[best_name(candidates, scoring)] if choice.named is None else choice.named
        placed = sources[best_place(candidates, scoring)] if choice.placed is None else choice.placed
        name = stem_of(paths[named]) + suffix_of(paths[best])
        own_date = date_in_name(stem_of(paths[best]))
        if named != best and own_date[:10] != metadata_of(keeper).taken[:10]:
            name = with_counter(dated_name(name, own_date), 1)
        target = free_path(os.path.join(os.path.dirname(paths[placed]), name), candidates, scoring)
    reasons = [why_original([keeper, *(group.replicas[number] for number in given_up or stays)], scoring)]
    for number in stays if is_suggested else ():
        if group.distances[number] == 0:
            reasons.append(f"{os.path.basename(paths[number])} stays: {why_kept(group, number, scoring)}")
    if named != best:
        reasons.append(f"name from {os.path.basename(paths[named])}")
    if placed != best:
        reasons.append(f"folder {folder_text(group.replicas[placed], scoring)}")
    stay, trash = (tuple(group.replicas[number] for number in each) for each in (stays, given_up))
    alike = tuple(group.replicas[number] for number in given_up if group.distances[number] or group.distances[best])
    lost = losses(keeper, target, trash, scoring)
    return Decision(keeper, target, trash, tuple(reasons), stay, alike, lost, named, placed)


def free_path(path: str, own: Iterable[str], scoring: Scoring) -> str:
    """The path, with a counter where another file has it, or will have; its own group's files are no others."""
    mine = set(map(os.path.normcase, own))
    found, counter = path, 1
    while (place := os.path.normcase(found)) not in mine and scoring.taken[place] > 0:
        counter += 1
        found = os.path.join(os.path.dirname(path), with_counter(os.path.basename(path), counter))
    return found


def look_alike(group: AnyGroup, number: int) -> str:
    """Why a replica is no copy of the first of its group, in words; empty if it is one."""
    distance = group.distances[number]
    if distance == 0:
        return ""
    first, other, verdict = group.replicas[0], group.replicas[number], group.verdict_on(number)
    why = verdict.reason if verdict else ""
    if not why and isinstance(first.fingerprint, ImageFingerprint):
        seconds = seconds_apart(first.fingerprint, other.fingerprint)
        if seconds:
            why = f"taken {readable_seconds(seconds)} apart" if seconds < math.inf else "taken by another camera"
        elif are_in_series(first, other):
            why = "numbered like the next one of a series"
    return f"look-alike, {plural(distance, 'bit')}{f', {why}' if why else ''}"


def decisions_for(groups: Iterable[AnyGroup], scoring: Scoring) -> tuple[Decision, ...]:
    """The suggestions for groups. No two put their keepers in one place: each claims its own in `scoring.taken`."""
    decisions: list[Decision] = []
    for group in groups:
        decisions.append(decide(group, scoring))
        scoring.taken[os.path.normcase(decisions[-1].target)] += 1
    return tuple(decisions)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Find: Run -> Findings
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked for: a library, the folder of its caches, and options. Paths are absolute and without links."""

    root: str
    cache: str
    jobs: int
    mode: str  # a key of MODES
    threshold: int
    delta: int  # bytes
    limit: int | None
    ignored: frozenset[str]  # words, comparable
    preferred: tuple[str, ...]  # folders
    protected: tuple[str, ...]
    json: bool
    fast: bool  # the trash is to be verified by the cache
    page_size: int  # groups on a page of the review


@dataclass(frozen=True, slots=True)
class Tally:
    """How a run came by its fingerprints, in files."""

    scanned: int = 0
    new: int = 0
    cached: int = 0
    forgotten: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each) + getattr(other, each) for each in self.__slots__))


@dataclass(frozen=True, slots=True)
class Copies:
    """What was found among the files of one kind."""

    groups: Sequence[AnyGroup] = ()
    unreadable: Sequence[Problem] = ()
    tally: Tally = Tally()
    unsummed: Sequence[MediaFile] = ()  # those left to `sum_for_others`


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a run has to say, the same for every way of saying it."""

    root: str
    mode: str
    threshold: int
    scoring: Scoring  # by which it was decided
    groups_in_all: int  # of which these are shown:
    groups: tuple[AnyGroup, ...]
    decisions: tuple[Decision, ...]  # one for each of them
    unreadable: tuple[Problem, ...]
    application_libraries: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    tally: Tally
    movies: Mapping[Identity, bool]  # see `live_movies`
    unsummed: tuple[MediaFile, ...] = ()  # those left to `sum_for_others`


def find(run: Run) -> Findings:
    """Scan, fingerprint, match, look closer and decide: what every mode starts from. The caller holds the lock."""
    scanned = scan(run.root, IMAGE_SUFFIXES if run.mode == "images" else IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    with closing(Pool(run.jobs)) as pool:
        copies = [FINDERS[name](run, scanned, pool) for name in MODES[run.mode]]
        found = [group for each in copies for group in each.groups]
        movies = live_movies(found, run.root, run.cache, pool)
        scoring = Scoring(
            root=run.root,
            stop_words=STOP_WORDS | run.ignored,
            taken=Counter(os.path.normcase(file.path) for file in scanned.files),
            preferred=run.preferred,
            protected=run.protected,
            held=held_for_movies(found, movies),
            hanging=hanging_on(found, movies),
            links=links_to(scanned),
        )
        free = (
            group
            for group in found
            if group.kind == "image" or not {each.file.path for each in group.replicas} <= scoring.held
        )
        with closing(VerdictCache(run.cache)) as cache:
            looks = Looks(pool, cache)
            groups = verified_groups(free, run.threshold, scoring, looks)
    shown = chosen_groups(groups, run.delta, run.limit)
    problems = *(problem for each in copies for problem in each.unreadable), *looks.problems.values()
    unreadable = [*scanned.unreadable, *problems]
    return Findings(
        root=run.root,
        mode=run.mode,
        threshold=run.threshold,
        scoring=scoring,
        groups_in_all=len(groups),
        groups=shown,
        decisions=decisions_for(shown, scoring),
        unreadable=tuple(sorted(unreadable, key=lambda problem: problem.path)),
        application_libraries=scanned.application_libraries,
        skipped=scanned.skipped,
        tally=functools.reduce(Tally.__add__, (each.tally for each in copies)),
        movies=movies,
        unsummed=tuple(file for each in copies for file in each.unsummed),
    )


MOST_LOOKS = 4  # at a replica and others that it may be a copy of, then at it and the first ones of families
MOST_FAMILIES = 64  # of a crowd, with whose first ones the others are compared
MOST_ROUNDS = 8  # of looks at groups: what is left by then is left alone


def verified_groups(groups: Iterable[AnyGroup], threshold: int, scoring: Scoring, looks: Looks) -> list[AnyGroup]:
    """The groups in order of ORIGINAL, of which each copy has been looked at side by side with the first.

    What is no copy of that, and too far from it, makes groups of its own: in rounds, all groups at once.
    """
    found: list[AnyGroup] = []
    waiting: list[Sequence[Replica[Any]]] = [group.replicas for group in groups]
    for _ in range(MOST_ROUNDS):
        if threshold:
            alike = (group for each in waiting for group in groups_of(each, threshold))
            stars = [star for group in alike for star in original_first(group, threshold, scoring)]
        else:
            stars = [star_of(family) for family in families(waiting, scoring, looks)]
        look_at_stars(stars, looks)
        waiting = []
        for star in stars:
            near, far = parted(star, threshold, looks)
            found += [near] if near else []
            waiting += [far] if len(far) > 1 else []
    return found


def star_of(replicas: Sequence[Replica[Any]]) -> AnyGroup:
    """The group of these replicas in their order, with their distances from the first."""
    return Group(kind_of(replicas[0].file), tuple(replicas), tuple(distances_from(replicas[0], replicas)))


MOST_OPINIONS = 2  # on what is narrowly no copy of the first replica, beside fine copies of that
NARROW = 1.25  # times the limit
FINE_STEP = 4  # quantiser; in a coarser JPEG a small edit could hide


def look_at_stars(stars: Sequence[AnyGroup], looks: Looks) -> None:
    """Look at all that `verdict_in` asks about these groups."""
    looks.look(
        (star.replicas[0], each)
        for star in stars
        for each, bits in zip(star.replicas[1:], star.distances[1:], strict=True)
        if bits == 0
    )
    for opinion in range(MOST_OPINIONS):
        asked = []
        for star in stars:
            for number in range(1, len(star.replicas)):
                fine = fine_copies(star, number, looks) if is_narrow(verdict_in(star, number, looks)) else []
                asked += [(fine[opinion], star.replicas[number])] if len(fine) > opinion else []
        looks.look(asked)


def verdict_in(star: AnyGroup, number: int, looks: Looks) -> Verdict | None:
    """What looks have found of a replica of a group: beside the first, or else beside a fine copy of that.

    One that was derived in another way, such as by another profile, may be closer to it than the first is.
    """
    each = star.replicas[number]
    seen = looks.verdict(star.replicas[0], each)
    others = fine_copies(star, number, looks)[:MOST_OPINIONS] if is_narrow(seen) else []
    opinions = (looks.verdict(other, each) for other in others)
    return next((other for other in opinions if other and other.copy), seen)


def is_narrow(seen: Verdict | None) -> bool:
    """Whether it is no copy, but nearly one."""
    return seen is not None and not seen.copy and seen.excess <= NARROW


def fine_copies(star: AnyGroup, number: int, looks: Looks) -> list[Replica[Any]]:
    """Copies of a group's first replica that hide nothing of what a look at them beside the one of this number sees."""
    first, *others = star.replicas
    near = [each for each, bits in zip(others, star.distances[1:], strict=True) if bits == 0]
    return [
        each
        for each in near
        if is_fine(each) and looks.are_copies(first, each) and not is_larger(star.replicas[number], each)
    ]


def is_fine(replica: Replica[Any]) -> bool:
    """Whether no small edit could hide in how the picture is stored."""
    each = replica.fingerprint
    return (
        isinstance(each, ImageFingerprint) and not each.palette and max(each.luma_step, each.chroma_step) <= FINE_STEP
    )


def families(crowds: Iterable[Sequence[Replica[Any]]], scoring: Scoring, looks: Looks) -> list[list[Replica[Any]]]:
    """The replicas of pictures that look alike, those together that looks link, each with one before it.

    In order of ORIGINAL. Each is looked at with those it is most likely a copy of; when some have been found to be
    copies, each of the others with the first ones of the families that these make, too.
    """
    parting = [Crowd(ranked(crowd, scoring)) for crowd in crowds]
    mixed = [crowd for crowd in parting if len(crowd.replicas) > 1]
    for step in range(2 * MOST_LOOKS):
        if step == MOST_LOOKS:
            for crowd in mixed:
                crowd.turn_to_families()
        pairs = [(crowd, number, other) for crowd in mixed for number, other in crowd.proposed()]
        looks.look((crowd.replicas[other], crowd.replicas[number]) for crowd, number, other in pairs)
        for crowd, number, other in pairs:
            crowd.take(number, other, looks.verdict(crowd.replicas[other], crowd.replicas[number]))
    return [family for crowd in parting for family in crowd.families()]


class Crowd:
    """Pictures that look alike, in order of ORIGINAL, while looks link each with one before it."""

    def __init__(self, replicas: Iterable[Replica[Any]]) -> None:
        self.equal: dict[object, list[Replica[Any]]] = defaultdict(list)  # they need no look
        for each in replicas:
            self.equal[match_key(each)].append(each)
        self.replicas = [each[0] for each in self.equal.values()]
        self.candidates = candidates_before(self.replicas)
        self.linked = list(range(len(self.replicas)))  # each with the one that it is a copy of, or itself
        # What each is no copy of, and whether it nearly is.
        self.refused: list[dict[int, bool]] = [{} for _ in self.replicas]

    def proposed(self) -> Iterator[tuple[int, int]]:
        """Each number that is a copy of none so far, with the next one that it may be a copy of."""
        for number, other in enumerate(self.linked):
            if number == other:
                found = (self.candidate(number, each) for each in self.candidates[number])
                yield from islice(((number, each) for each in found if each is not None), 1)

    def candidate(self, number: int, other: int) -> int | None:
        """What to look at instead of another one: the first of its family, if that is a candidate, too.

        What is nearly a copy of that may be one of a fine copy of it: see `verdict_in`. None if nothing is left to see.
        """
        refused, first = self.refused[number], self.first_of(other)
        if first not in refused and first in self.candidates[number]:
            return first
        is_open = first not in refused or (refused[first] and is_fine(self.replicas[other]))
        return other if is_open and other not in refused else None

    def take(self, number: int, other: int, seen: Verdict | None) -> None:
        """Take what a look at two has found."""
        if seen is None or seen.copy:
            self.linked[number] = other
        else:
            self.refused[number][other] = is_narrow(seen)

    def first_of(self, number: int) -> int:
        """The first of the family of a number."""
        while self.linked[number] != number:
            number = self.linked[number]
        return number

    def turn_to_families(self) -> None:
        """From now on propose the first ones of families, the largest first: the original has most copies."""
        size = Counter(map(self.first_of, range(len(self.replicas))))
        firsts = [number for number, count in size.most_common(MOST_FAMILIES) if count > 1]
        alone = [number for number, other in enumerate(self.linked) if number == other]
        pairs = [(number, first) for number in alone for first in firsts if first < number]
        self.candidates = copies_among(self.replicas, pairs)

    def families(self) -> list[list[Replica[Any]]]:
        """The families of at least two files."""
        members: dict[int, list[Replica[Any]]] = defaultdict(list)
        for number, equal in enumerate(self.equal.values()):
            members[self.first_of(number)] += equal
        return [each for each in members.values() if len(each) > 1]


def parted(star: AnyGroup, threshold: int, looks: Looks) -> tuple[AnyGroup | None, list[Replica[Any]]]:
    """The group as the looks leave it, if anything is left of it, and what is too far from its first replica."""
    first = star.replicas[0]
    is_lost = first.file.path in looks.problems
    near: list[tuple[Replica[Any], int, Verdict | None]] = []
    far = []
    for number, (each, known) in enumerate(zip(star.replicas, star.distances, strict=True)):
        if each.file.path in looks.problems:
            continue
        verdict = verdict_in(star, number, looks) if number and known == 0 else None
        is_seen = number == 0 or known > 0 or not wants_look(first, each) or (verdict and verdict.copy)
        distance = known if is_seen else hash_distance(first, each)
        if is_lost or distance > threshold:
            far.append(each)
        else:
            near.append((each, distance, verdict))
    if len(near) < 2:
        return None, far
    replicas, distances, verdicts = zip(*near, strict=True)
    return Group(star.kind, replicas, distances, verdicts), far


def links_to(scanned: Scan) -> dict[str, tuple[str, ...]]:
    """By path of a scanned file, the links in the library that lead to it."""
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for link, target in scanned.links:
        found[target] += (link,)
    return dict(found)


IMAGE_WORK: Work[ImageFingerprint] = Work(fingerprint_image, "photo", load_decoders)


def chosen_groups(groups: Iterable[AnyGroup], delta: int, limit: int | None) -> tuple[AnyGroup, ...]:
    """The `limit` groups with most recoverable bytes whose largest and smallest file differ by `delta` bytes or more.

    Images before videos, each in order of their recoverable bytes.
    """
    wanted = []
    for group in groups:
        sizes = [replica.file.size for replica in group.replicas]
        if max(sizes) - min(sizes) >= delta:
            wanted.append(group)
    wanted.sort(key=lambda group: (-recoverable_bytes(group), group.replicas[0].file.path))
    return tuple(sorted(wanted[:limit], key=lambda group: group.kind))


def image_copies(run: Run, scanned: Scan, pool: Pool) -> Copies:
    """The groups among the scanned images."""
    scanned = only(scanned, "image")
    with closing(FingerprintCache(IMAGE_CACHE, run.cache, scanned)) as cache:
        replicas, unreadable, new = possible_copies(run, cache, pool)
        grouped = grouping(run.threshold)
        looks = made_anew(IMAGE_WORK, cache.is_uncertain), *IMAGE_LOOKS, DETAIL_LOOK
        groups, rejected = proven_groups(replicas, grouped, looks, cache.store, pool)
    return Copies(groups, unreadable + rejected, tally_of(scanned, new, cache))


def grouping(threshold: int) -> Callable[[Iterable[Replica[F]]], list[Group[F]]]:
    """What makes of replicas the groups that `verified_groups` takes."""
    return functools.partial(groups_of, threshold=threshold) if threshold else related_groups


PROXY_WORK: Work[Proxy | ImageFingerprint] = Work(proxy_image, "photo", load_decoders)


def possible_copies(
    run: Run, cache: FingerprintCache[ImageFingerprint], pool: Pool
) -> tuple[list[Replica[ImageFingerprint]], list[Problem], set[MediaFile]]:
    """Those of the scanned images that may have a copy among them, the unreadable ones, and those that were read.

    Most are never read beyond their hashes. What takes long to decode is decoded if its proxy may have a copy.
    """
    files = cache.scanned.files
    heifs = [file for file in files if end_of(file.path) in HEIF_SUFFIXES and file not in cache and not run.threshold]
    with closing(FingerprintCache(PROXY_CACHE, cache.folder, replace(cache.scanned, files=tuple(heifs)))) as proxies:

        def store(file: MediaFile, made: Proxy | ImageFingerprint) -> None:
            if isinstance(made, Proxy):
                proxies.store(file, made.fingerprint)
            else:
                cache.store(file, made)

        def known(file: MediaFile) -> ImageFingerprint | None:
            return cache.lookup(file) or proxies.lookup(file)

        def chosen(readable: Sequence[MediaFile]) -> list[MediaFile]:
            rough = [file for file in heifs if file in proxies]
            both = [*readable, *rough]
            found = [cache.early(file) or proxies.early(file) or known(file) for file in both]
            hashes = [each.hashes if isinstance(each, ImageFingerprint) else each or NO_HASHES for each in found]
            radius = ProxyTable.radius if rough else HASH_RADIUS
            company = with_company(hashes, run.threshold, radius).tolist()
            possible = [file for file, has_company in zip(both, company, strict=True) if has_company]
            if not rough:
                return possible
            table = ProxyTable(Replica(file, each) for file in possible if (each := known(file)))
            alike = {each.file for row in np.flatnonzero(table.with_copies()) for each in table.members[row]}
            return [file for file in possible if file in alike or file not in proxies]

        _, unread, new = fingerprints_of(heifs, proxies, PROXY_WORK, pool, chosen=lambda _files: (), store=store)
        out = {problem.path for problem in unread}
        others = [file for file in files if file not in proxies and file.path not in out]
        replicas, unreadable, new_too = fingerprints_of(others, cache, IMAGE_WORK, pool, chosen=chosen)
    return replicas, unread + unreadable, new | new_too


VIDEO_WORK: Work[VideoFingerprint] = Work(fingerprint_video, "video", load_decoders)


def video_copies(run: Run, scanned: Scan, pool: Pool) -> Copies:
    """The groups among the scanned videos; none, and a word about it, without ffmpeg."""
    if ffmpeg_path() is None:
        say("videos need ffmpeg, and there is none; to install one: python -m pip install imageio-ffmpeg")
        return Copies()
    scanned = only(scanned, "video")
    with closing(FingerprintCache(VIDEO_CACHE, run.cache, scanned)) as cache:
        replicas, unreadable, new = video_fingerprints(scanned, cache, pool)
        grouped = grouping(run.threshold)
        # What is noted counts as certain, so it must not be noted of what is to be made anew.
        doubtful = {each.file.path for each in wanting_end(grouped(replicas)) if not cache.is_uncertain(each.file)}
        replicas = with_ends_noted(replicas, doubtful, cache, pool)
        looks = made_anew(VIDEO_WORK, cache.is_uncertain), *VIDEO_LOOKS
        groups, rejected = proven_groups(replicas, grouped, looks, cache.store, pool)
    return Copies(groups, unreadable + rejected, tally_of(scanned, new, cache))


CHECKSUM_WORK: Work[Checksum] = Work(
    checksum_of,
    "file",
    bytes_read=lambda file: sum(length for _, length in checksum_windows(file.size)),
    small=1 << 16,
)


def exact_copies(run: Run, scanned: Scan, pool: Pool) -> Copies:
    """The groups of equal files. Those whose size no other has are not read: see `sum_for_others`."""
    of_size = Counter(file.size for file in scanned.files)
    alike = [file for file in scanned.files if of_size[file.size] > 1]
    with closing(FingerprintCache(CHECKSUM_CACHE, run.cache, scanned)) as cache:
        unsummed = tuple(file for file in scanned.files if of_size[file.size] == 1 and file not in cache)
        replicas, unreadable, new = fingerprints_of(alike, cache, CHECKSUM_WORK, pool)
        looks = [made_anew(CHECKSUM_WORK, cache.is_uncertain)]
        groups, changed = proven_groups(replicas, functools.partial(groups_of, threshold=0), looks, cache.store, pool)
        large = [each.file for group in groups for each in group.replicas if each.file.size > 3 * CHECKSUM_WINDOW]
        compared, failed = compared_whole(run, replace(scanned, files=tuple(large)), pool)
        equal = [each for each in groups if each.replicas[0].file.size <= 3 * CHECKSUM_WINDOW]
    tally = Tally(len(scanned.files), len(new), len(scanned.files) - len(new) - len(unsummed), cache.forgotten)
    return Copies(equal + compared, [*unreadable, *changed, *failed], tally, unsummed)


def sum_for_others(run: Run, files: Sequence[MediaFile]) -> None:
    """Put the checksums of files of which no other has the size into the database that other tools share."""
    scanned = Scan(run.root, tuple(files), (), ())
    with closing(Pool(run.jobs)) as pool, closing(FingerprintCache(CHECKSUM_CACHE, run.cache, scanned)) as cache:
        _, unreadable, _ = fingerprints_of(files, cache, CHECKSUM_WORK, pool)
    for item in unreadable:
        say(f"left out {printable(item.path)}: {item.reason}")


WHOLE_WORK: Work[Checksum] = Work(whole_checksum_of, "file", bytes_read=lambda file: file.size)


def compared_whole(run: Run, scanned: Scan, pool: Pool) -> tuple[list[Group[Checksum]], list[Problem]]:
    """The groups that files make by all their bytes, and those that cannot be read."""
    if not scanned.files:
        return [], []
    with closing(FingerprintCache(WHOLE_CACHE, run.cache, scanned)) as cache:
        replicas, unreadable, _ = fingerprints_of(scanned.files, cache, WHOLE_WORK, pool)
        looks = [made_anew(WHOLE_WORK, cache.is_uncertain)]
        groups, changed = proven_groups(replicas, functools.partial(groups_of, threshold=0), looks, cache.store, pool)
    return groups, unreadable + changed


FINDERS = {"images": image_copies, "videos": video_copies, "exact": exact_copies}
MODES = {"images": ("images",), "videos": ("images", "videos"), "exact": ("exact",)}  # which of them each mode takes


# ── the steps that these share ──


@dataclass(frozen=True, slots=True)
class Unreadable:
    """That a file's bytes cannot be read: what was tried, why it failed, and which decoders said so."""

    work: str
    reason: str
    decoders: str


UNREADABLE_CACHE: CacheFormat[Unreadable] = CacheFormat(
    "unreadable_media_db.csv",
    (
        *(PATH, SIZE, MTIME, CTIME, Column("work", "[a-z]{1,20}")),
        Column(
            "reason",
            r"[\w.~%/ -]{1,4000}",
            lambda text: unquote(text.decode()),
            lambda reason: quote(reason, safe="/ ", errors="replace"),
        ),
        Column("decoders", "[0-9a-f]{16}"),
    ),
    Unreadable,
)


@functools.cache
def decoders() -> str:
    """A digest of what decodes in this run, idem itself included: another release may read what this one cannot."""
    import importlib.metadata

    found: list[object] = []
    for package in ("Pillow", "pillow-heif"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append((package, importlib.metadata.version(package)))
    for program in filter(None, (__file__, ffmpeg_path())):
        with suppress(OSError):  # of one that this user may not look at, its path must do
            found.append(program)
            status = os.stat(program)
            found.append((status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(found).encode("utf-8", ODD_NAMES)).hexdigest()[:16]


def notes_beside(cache: FingerprintCache[Any]) -> FingerprintCache[Unreadable]:
    """The notes, in the folder of a cache and about the same files, of those that could not be read."""
    return FingerprintCache(UNREADABLE_CACHE, cache.folder, cache.scanned)


def fingerprints_of(
    files: Sequence[MediaFile],
    cache: FingerprintCache[F],
    work: Work[R],
    pool: Pool,
    *,
    chosen: Callable[[Sequence[MediaFile]], Sequence[MediaFile]] = lambda files: files,
    store: Callable[[MediaFile, R], None] | None = None,
) -> tuple[list[Replica[F]], list[Problem], set[MediaFile]]:
    """The chosen files with their fingerprints, the unreadable ones, and the files that were read for that.

    Files are chosen when all are in the cache but the unreadable ones. A file that can never be read is noted, and
    named in every run, but not tried again until it or a decoder changes.
    """
    read: set[MediaFile] = set()
    unreadable: dict[MediaFile, Problem] = {}
    keep = store or cast("Callable[[MediaFile, R], None]", cache.store)
    with closing(notes_beside(cache)) as notes:

        def take(file: MediaFile, result: R | Problem) -> None:
            if not isinstance(result, Problem):
                keep(file, result)
                return
            unreadable[file] = result
            if result.lasting:
                notes.store(file, Unreadable(work.noun, result.reason, decoders()))

        def read_all(wanted: Sequence[MediaFile]) -> None:
            missing, noted = unknown(wanted, cache, notes, work)
            read.update(missing)
            unreadable.update(noted)
            compute(pool, work, missing, take)

        read_all(files)
        wanted = chosen([file for file in files if file not in unreadable])
        read_all([file for file in wanted if cache.lookup(file) is None])
    found = [Replica(file, known) for file in wanted if (known := cache.lookup(file)) is not None]
    return found, list(unreadable.values()), read


def unknown(
    files: Iterable[MediaFile], cache: FingerprintCache[Any], notes: FingerprintCache[Unreadable], work: Work[Any]
) -> tuple[list[MediaFile], dict[MediaFile, Problem]]:
    """The files that are not in the cache: those to read, and those noted as unreadable by the decoders there are."""
    missing: list[MediaFile] = []
    unreadable: dict[MediaFile, Problem] = {}
    for file in files:
        if file in cache:
            continue
        if (note := notes.certain(file)) and (note.work, note.decoders) == (work.noun, decoders()):
            unreadable[file] = Problem(file.path, note.reason, lasting=True)
        else:
            missing.append(file)
    return missing, unreadable


def tally_of(scanned: Scan, new: Collection[MediaFile], cache: FingerprintCache[Any]) -> Tally:
    """The counts of a cache that has been closed, and the files that were read."""
    return Tally(len(scanned.files), len(new), len(scanned.files) - len(new), cache.forgotten)


def video_fingerprints(
    scanned: Scan, cache: FingerprintCache[VideoFingerprint], pool: Pool
) -> tuple[list[Replica[VideoFingerprint]], list[Problem], set[MediaFile]]:
    """`fingerprints_of` videos. ffmpeg is asked about new ones ahead, many at once."""
    with closing(notes_beside(cache)) as notes:
        new, _ = unknown(scanned.files, cache, notes, VIDEO_WORK)
    plain = [file for file in new if printable(file.path) == file.path]  # others could look like ffmpeg's words
    probed: dict[str, VideoStream] = {}
    for _, future in pool.map(video_streams, for_one_ffmpeg(plain), again=False):
        probed |= {} if future.exception() else future.result()  # whichever file it was will fail again by itself
    work = replace(VIDEO_WORK, more=lambda file: (probed.get(file.path),))
    return fingerprints_of(scanned.files, cache, work, pool)


def with_ends_noted(
    replicas: Iterable[Replica[VideoFingerprint]],
    doubtful: AbstractSet[str],
    cache: FingerprintCache[VideoFingerprint],
    pool: Pool,
) -> list[Replica[VideoFingerprint]]:
    """The replicas, each doubtful one whose end is easily found noted to be whole."""
    videos = [(each.file, each.fingerprint.seconds) for each in replicas if each.file.path in doubtful]
    proven: set[str] = set()
    for _, future in pool.map(videos_with_end, for_one_ffmpeg(videos), again=False):
        proven |= set() if future.exception() else future.result()
    found = []
    for each in replicas:
        if each.file.path in proven:
            each = replace(each, fingerprint=replace(each.fingerprint, whole=True))  # noqa: PLW2901
            cache.store(each.file, each.fingerprint)
        found.append(each)
    return found


def taken_names(root: str) -> set[str]:
    """The paths of all media in the library, as `Scoring` wants them."""
    return {os.path.normcase(each.path) for each in scan(root, IMAGE_SUFFIXES | VIDEO_SUFFIXES).files}


# ── nothing moves on the word of a cache ──

# How files are read anew, by the kind of their fingerprints, and the looks at them; equal files by all their bytes.
READ_ANEW: dict[type, tuple[Work[Any], tuple[CloserLook[Any], ...]]] = {
    ImageFingerprint: (IMAGE_WORK, IMAGE_LOOKS),
    VideoFingerprint: (VIDEO_WORK, VIDEO_LOOKS),
    Checksum: (WHOLE_WORK, ()),
}


def groups_anew(
    replicas: Sequence[Replica[F]],
    grouped: Callable[[Iterable[Replica[F]]], list[Group[F]]],
    pool: Pool,
    judge: Callable[[Replica[F], F], F | Problem] = lambda _known, fingerprint: fingerprint,
) -> tuple[list[Group[F]], list[Problem]]:
    """`proven_groups` by what is on the disk now: each file of a group is read whole, and no cache is believed."""
    work, looks = READ_ANEW[type(replicas[0].fingerprint)] if replicas else (IMAGE_WORK, ())
    read: set[MediaFile] = set()

    def noted(known: Replica[F], fingerprint: F) -> F | Problem:
        read.add(known.file)
        return judge(known, fingerprint)

    anew = made_anew(work, lambda file: file not in read, noted)
    return proven_groups(replicas, grouped, [anew, *looks], lambda _file, _fingerprint: None, pool)


def doubts_about(decision: Decision, threshold: int, pool: Pool) -> dict[str, str]:
    """By path, why files of a decision must not move or be relied on: read anew, they are not what it is based on."""
    group = decision.keeper, *decision.trash, *decision.stays
    groups, problems = groups_anew(group, grouping(threshold), pool, unless_changed)
    doubts = {problem.path: problem.reason for problem in problems}
    anew = [each for found in groups for each in found.replicas]
    anew.sort(key=lambda each: each.file != decision.keeper.file)  # it comes first
    numbers = {each.file: number for number, each in enumerate(anew)}
    star = star_of(anew) if decision.keeper.file in numbers else None
    looks = Looks(pool)
    if star:
        look_at_stars([star], looks)
    doubts |= {path: problem.reason for path, problem in looks.problems.items()}
    for each in decision.trash:
        number = numbers.get(each.file) if star else None
        alike = star is not None and number is not None and star.distances[number] <= threshold
        seen = verdict_in(star, number, looks) if star and number else None
        is_copy = (seen is not None and seen.copy) or not wants_look(decision.keeper, each)
        if not alike or not (is_copy or each in decision.alike):  # a look-alike goes because a person has seen it
            why = f": {seen.reason}" if seen and not seen.copy else ""
            doubts.setdefault(each.file.path, f"read once more, it is no copy of the file that would be kept{why}")
    return doubts


# ── was anything trashed by mistake? ──

NO_MATCH = "there is no copy of it in the library"
MUCH_SMALLER = 0.5  # of the bytes, of a file with as many pixels in the same format: more is lost than metadata
MUCH_COARSER = 2  # times the quantiser, of a JPEG with as many pixels
SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif", ".heif": ".heic"}  # other suffixes of a format


def unverified(run: Run, both: Scan, trash: str) -> list[Problem]:
    """The files in the trash without a copy outside of it that is as good, and why, in order of path.

    All that counts as a copy is read anew from the disk, unless the run is to be fast.
    """
    images, videos = only(both, "image"), only(both, "video")
    pairs: list[AnyGroup] = []
    problems: list[Problem] = []
    refuted: dict[tuple[str, str], Verdict] = {}  # by the paths of a live and a trashed file

    def take(replicas: Sequence[Replica[F]], threshold: int) -> None:
        waiting = replicas
        for _ in range(MOST_ROUNDS):
            grouped = functools.partial(matches_in_trash, trash=trash, threshold=threshold, refuted=refuted)
            found, rejected = (grouped(waiting), []) if run.fast else groups_anew(waiting, grouped, pool)
            problems.extend(rejected)
            wrong = refutations(found, trash, looks)
            refuted.update(wrong)
            gone = {path for _, path in wrong}
            pairs.extend(pair for pair in found if gone.isdisjoint(each.file.path for each in pair.replicas))
            waiting = [each for each in replicas if each.file.path in gone or not is_inside(each.file.path, trash)]
            if not gone:
                break

    with closing(Pool(run.jobs)) as pool, closing(VerdictCache(run.cache)) as verdicts:
        looks = Looks(pool, verdicts if run.fast else None)
        if run.mode != "exact":
            with closing(FingerprintCache(IMAGE_CACHE, run.cache, images)) as cache:
                replicas, unreadable, _ = possible_copies(run, cache, pool)
            problems += unreadable
            take(replicas, run.threshold)
        if run.mode != "exact" and ffmpeg_path():
            with closing(FingerprintCache(VIDEO_CACHE, run.cache, videos)) as video_cache:
                clips, unreadable, _ = video_fingerprints(videos, video_cache, pool)
            problems += unreadable
            take(clips, run.threshold)
        else:
            copies = exact_copies(run, both if run.mode == "exact" else videos, pool)
            problems += copies.unreadable
            touched = [each for each in copies.groups if any(is_inside(one.file.path, trash) for one in each.replicas)]
            equal = [replica for group in touched for replica in group.replicas]
            if not run.fast:  # all at once: read anew they have digests of another kind
                groups, rejected = groups_anew(equal, functools.partial(groups_of, threshold=0), pool)
                problems += rejected
                equal = [replica for group in groups for replica in group.replicas]
            pairs += matches_in_trash(equal, trash, 0)
    reasons = {
        path: f"{NO_MATCH}; most like it is {printable(relative(live, run.root))}: {verdict.reason}"
        for (live, path), verdict in reversed(refuted.items())  # the nearest was the first
    }
    reasons |= {problem.path: problem.reason for problem in (*problems, *looks.problems.values())}
    reasons |= {path: worse for pair in pairs for path, worse in [what_is_left(pair, trash, run.root)]}
    trashed = [file.path for file in both.files if is_inside(file.path, trash)]
    return [Problem(path, reasons.get(path, NO_MATCH)) for path in trashed if reasons.get(path, NO_MATCH)]


def refutations(pairs: Iterable[AnyGroup], trash: str, looks: Looks) -> dict[tuple[str, str], Verdict]:
    """By the paths of a live and a trashed file, why pairs that `matches_in_trash` has found do not count as copies."""
    gone: dict[Replica[Any], list[Replica[Any]]] = defaultdict(list)  # by the live one
    for pair in pairs:
        if pair.distances[1] == 0:
            live, other = sorted(pair.replicas, key=lambda each: is_inside(each.file.path, trash))
            gone[live].append(other)
    stars = [Group(kind_of(live.file), (live, *each), (0,) * (len(each) + 1)) for live, each in gone.items()]
    look_at_stars(stars, looks)
    found = {}
    for star in stars:
        live, *others = star.replicas
        for number, other in enumerate(others, 1):
            verdict = verdict_in(star, number, looks)
            if wants_look(live, other) and not (verdict and verdict.copy):
                found[live.file.path, other.file.path] = verdict or Verdict(False, "they could not be compared")
    return found


def what_is_left(pair: AnyGroup, trash: str, root: str) -> tuple[str, str]:
    """The path of the trashed one of two copies, and by what the live one is worse; empty if it is as good."""
    gone, live = sorted(pair.replicas, key=lambda each: not is_inside(each.file.path, trash))
    (width, height, _), (own_width, own_height, _) = dimensions_of(live), dimensions_of(gone)
    left = f"the copy that is left, {printable(relative(live.file.path, root))}, has"
    if width * height < own_width * own_height:  # whatever speaks for it: the larger one may show more
        return gone.file.path, f"{left} {width} x {height}"
    if ranked((live, gone), Scoring(root))[0] is live:  # it is rather the original
        return gone.file.path, ""
    if width * height > own_width * own_height or format_of(live.file) != format_of(gone.file):
        return gone.file.path, ""
    sizes, coarser = [(live.file.size, gone.file.size)], False
    one, other = live.fingerprint, gone.fingerprint
    if isinstance(one, ImageFingerprint) and isinstance(other, ImageFingerprint):
        sizes.append((one.integrity.data_bytes, other.integrity.data_bytes))  # what follows the picture is no quality
        coarser = one.luma_step > MUCH_COARSER * other.luma_step
    for size, own_size in sizes:
        if size < MUCH_SMALLER * own_size:
            return gone.file.path, f"{left} {readable_size(size)} of {readable_size(own_size)}"
    return gone.file.path, f"{left} a much coarser picture" if coarser else ""


def format_of(file: MediaFile) -> str:
    """The file's suffix, in one spelling for all of a format."""
    suffix = suffix_of(file.path).lower()
    return SAME_FORMAT.get(suffix, suffix)


def unchecked(run: Run, trashed: Scan, trash: str) -> list[Problem]:
    """The entries of the trash that no picture or video was compared with, and why, in order of path.

    Not those of which the library has a file with the same suffix and the same bytes.
    """
    known = {file.path for file in trashed.files} | {problem.path for problem in trashed.unreadable}
    others = sorted(path for path in files_below(trash) if path not in known)
    kinds = {suffix_of(path) for path in others} - IMAGE_SUFFIXES - VIDEO_SUFFIXES
    live: dict[object, list[str]] = defaultdict(list)  # by suffix and size
    for path in files_below(run.root) if kinds else ():
        if suffix_of(path) in kinds and not is_inside(path, trash) and os.path.isfile(path):
            live[suffix_of(path), os.path.getsize(path)].append(path)
    found = []
    for path in others:
        if os.path.islink(path) or not os.path.isfile(path):
            found.append(Problem(path, "not checked: it is a link, or no file"))
        elif suffix_of(path).lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            found.append(
                Problem(path, "not checked: idem takes no file of such a name, or in such a folder, for a picture")
            )
        elif not any(is_same_content(path, other) for other in live[suffix_of(path), os.path.getsize(path)]):
            found.append(
                Problem(path, "not checked: it is no picture or video, and the library has no file equal to it")
            )
    return found


def files_below(folder: str) -> Iterator[str]:
    """The paths of all files and links below a folder."""
    for path, folders, names in os.walk(folder):
        yield from (os.path.join(path, name) for name in names)
        yield from (link for link in (os.path.join(path, name) for name in folders) if os.path.islink(link))


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Act: Decision -> moves, journal, undo. The only section that touches the user's media
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True, slots=True)
class Moved:
    """A file before and after a move; the paths differ, and on another file system so does the identity."""

    before: MediaFile
    after: MediaFile
    number: int = field(default=0, compare=False)  # of its line in the journal


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of decisions, or of an undo."""

    trashed: tuple[Moved, ...] = ()
    renamed: tuple[Moved, ...] = ()
    companions: tuple[Moved, ...] = ()
    returned: tuple[Moved, ...] = ()
    refused: tuple[Problem, ...] = ()
    batch: int = 0  # of the journal

    @property
    def moved(self) -> tuple[Moved, ...]:
        """All moves, in no particular order."""
        return self.trashed + self.renamed + self.companions + self.returned

    @property
    def freed(self) -> int:
        """Bytes of the pictures that went to the trash."""
        return sum(each.before.size for each in self.trashed)

    def __add__(self, other: Outcome) -> Outcome:
        moves = ("trashed", "renamed", "companions", "returned", "refused")
        both = {each: getattr(self, each) + getattr(other, each) for each in moves}
        return Outcome(**both, batch=max(self.batch, other.batch))


# ── checks ──


def check_still(file: MediaFile, entry: Entry | None = None) -> None:
    """ValueError or OSError unless the file, found by its path or this entry, is the very one that was scanned.

    The time of the last change of status tells even of an edit that restored size and time of modification.
    """
    now = entry.file() if entry else as_it_is(file.path)
    if os.name == "nt":
        now = now._replace(ctime_ns=file.ctime_ns)  # there it is the time of creation
    if now != file:
        raise ValueError("it has changed since it was scanned")


def check_kept(keeper: MediaFile | None) -> None:
    """ValueError if there is a file that is to be kept, and it is not untouched."""
    if keeper is None:
        return
    try:
        check_still(keeper)
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(keeper.path)}, which is to be kept: {reason_of(error)}") from None


def check_folder(folder: str, root: str) -> None:
    """ValueError unless the folder is in the library, and no link leads there or out of it."""
    if os.path.realpath(folder) != folder or not (folder == root or is_inside(folder, root)):
        raise ValueError(f"{printable(folder)} is a link or outside the library")


def is_same_file(entry: Entry, file: MediaFile) -> bool:
    """Whether this file is there now. A rename changes its path and the time of its last change of status."""
    try:
        return entry.file()._replace(path=file.path, ctime_ns=file.ctime_ns) == file
    except (FileNotFoundError, ValueError):
        return False


def seen_again(file: MediaFile) -> MediaFile:
    """The file after it was moved and put back, which changed its status. ValueError if it is another one."""
    if not is_same_file(Entry(file.path), file):
        raise ValueError("it has changed since it was scanned")
    return as_it_is(file.path)


def check_decision(decision: Decision, root: str) -> None:
    """ValueError unless it keeps a file of its own, and all paths are inside the library and outside the trash."""
    paths = [decision.keeper.file.path, decision.target, *(each.file.path for each in decision.trash)]
    if decision.keeper.file.path in paths[2:] or len(set(paths[2:])) < len(paths[2:]):
        raise ValueError("a file cannot be kept and trashed, or trashed twice")
    for path in paths:
        parts = os.path.relpath(path, root).split(os.sep)
        if not is_inside(path, root) or os.path.normpath(path) != path or parts[0] in (TRASH_FOLDER, CACHE_FOLDER):
            raise ValueError(f"{printable(path)} is not in the library")
    if suffix_of(decision.target) != suffix_of(decision.keeper.file.path):
        raise ValueError("a keeper keeps its own file extension")


# ── names in opened folders ──

# A folder on the way can become a link, or be exchanged, between a check and a move: what is opened stays what it is.
HAS_FOLDER_DESCRIPTORS = hasattr(os, "O_DIRECTORY") and hasattr(os, "O_NOFOLLOW") and os.rename in os.supports_dir_fd
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | NO_FOLLOW
COPYFILE_METADATA = 7  # of fcopyfile(3): access list, status and extended attributes


@dataclass(frozen=True, slots=True)
class Entry:
    """A file's name in an opened folder, or only its path where the system cannot name files so."""

    path: str
    folder: int | None = None  # descriptor

    @property
    def name(self) -> str:
        """What the system's calls get, together with the folder."""
        return self.path if self.folder is None else os.path.basename(self.path)

    def beside(self, name: str) -> Entry:
        """Another name in this folder."""
        return Entry(os.path.join(os.path.dirname(self.path), name), self.folder)

    def file(self) -> MediaFile:
        """The file that is there now. OSError when there is none; ValueError when it is not a regular file."""
        status = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        return media_file(self.path, status)

    def opened(self, mode: str) -> BinaryIO:
        """The file, opened through no link. A new one can be read by its owner alone."""

        def opener(_path: str, flags: int) -> int:
            return os.open(self.name, flags | NO_FOLLOW, 0o600, dir_fd=self.folder)

        return cast(BinaryIO, open(self.path, mode, opener=opener))

    def unlink(self) -> None:
        os.unlink(self.name, dir_fd=self.folder)


@contextmanager
def opened_entries(root: str, *paths: str, make: bool = False) -> Iterator[list[Entry]]:
    """Names of files in their folders, which are opened one by one from the library on, through no link.

    With `make` the last one's folder is made if it is missing, but only after those of the others were found: where a
    drive was unplugged, nothing is made in its place. ValueError or OSError when one cannot be opened.
    """
    for path in paths:
        if os.path.normpath(path) != path or not is_inside(path, root):
            raise ValueError(f"{printable(path)} is not in the library")
    with ExitStack() as opened:
        library = None
        if HAS_FOLDER_DESCRIPTORS:
            library = os.open(root, FOLDER_FLAGS)
            opened.callback(os.close, library)
        entries = []
        for number, path in enumerate(paths, 1):
            folder = opened_folder(os.path.dirname(path), root, library, make=make and number == len(paths))
            if folder is not None:
                opened.callback(os.close, folder)
            entries.append(Entry(path, folder))
        yield entries


def opened_folder(folder: str, root: str, library: int | None, *, make: bool) -> int | None:
    """A folder's descriptor, found by way of that of the library; None where the system has no such descriptors."""
    names = list(filter(None, relative(folder, root).split(os.sep)))
    if library is None:
        check_folder(folder, root)
        for depth in range(1, len(names) + 1) if make else ():
            with suppress(FileExistsError):
                os.mkdir(os.path.join(root, *names[:depth]))
        return None
    here, path = os.dup(library), root
    for name in names:
        path, above = os.path.join(path, name), here
        try:
            try:
                here = os.open(name, FOLDER_FLAGS, dir_fd=above)
            except FileNotFoundError:
                if not make:
                    raise
                here = made_folder(name, above, stands_for(path, root))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise ValueError(f"{printable(path)} is a link or no folder") from None
            raise
        finally:
            os.close(above)
    return here


def stands_for(folder: str, root: str) -> str:
    """The folder of the library that one in the trash stands for, and the other way round."""
    trash = os.path.join(root, TRASH_FOLDER)
    below = relative(folder, trash)
    return os.path.join(trash, relative(folder, root)) if below == folder else os.path.join(root, below).rstrip(os.sep)


def made_folder(name: str, above: int, like: str) -> int:
    """Make a folder, open to nobody to whom the folder `like` is not, if there is that one; its descriptor."""
    os.mkdir(name, 0o700 if os.path.lexists(like) else 0o777, dir_fd=above)
    folder = os.open(name, FOLDER_FLAGS, dir_fd=above)
    with suppress(OSError):  # it stays its owner's alone where the model cannot be opened
        model = os.open(like, FOLDER_FLAGS)
        try:
            copy_access(model, folder)
        finally:
            os.close(model)
    return folder


def copy_status(source: int, copy: int) -> None:
    """Give a copy its source's times, and as far as the system lets its owner, group, mode and extended attributes.

    Both are descriptors. OSError when it cannot have the times: of a picture without metadata they are all that says
    when it was taken.
    """
    if sys.platform == "darwin":
        LIBC.fcopyfile(source, copy, None, COPYFILE_METADATA)
    elif sys.platform == "linux":
        with suppress(OSError):
            for name in os.listxattr(source):
                with suppress(OSError):
                    os.setxattr(copy, name, os.getxattr(source, name))
    copy_access(source, copy)
    times = os.fstat(source)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))


def copy_access(source: int, copy: int) -> None:
    """Give a copy its source's owner, group and mode, as far as the system lets.

    Where the group cannot be kept, the other one gets no more than everybody had.
    """
    status = os.fstat(source)
    for owner in (status.st_uid, -1):  # only root gives files away
        with suppress(OSError):
            os.fchown(copy, owner, status.st_gid)
            break
    mode, now = stat.S_IMODE(status.st_mode), os.fstat(copy)
    if now.st_uid != status.st_uid:
        mode &= 0o777
    if now.st_gid != status.st_gid:
        mode &= 0o707 | (mode & 0o007) << 3
    with suppress(OSError):
        os.fchmod(copy, mode)


# ── one move: never replaces, never loses ──

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
NO_SUCH_CALL = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
AT_FDCWD = -2 if sys.platform == "darwin" else -100  # in place of a folder: the name is a path
RENAME_NOREPLACE = 1  # of renameat2(2)
RENAME_EXCL = 4  # of renameatx_np(2)
SCRATCH_NAME = re.compile(r"\.idem-\d+-\d+")  # process and time


def rename_without_replacing(source: Entry, target: Entry) -> None:
    """Rename a file. FileExistsError if there is anything at the target, even if it has only just appeared.

    By the system's own call for that where it has one; else by a second link, where the file system has those;
    else over an empty file that has just been made for it.
    """
    folders = {"src_dir_fd": source.folder, "dst_dir_fd": target.folder}
    if os.name == "nt" or differs_in_case_only(source, target):
        os.rename(source.name, target.name, **folders)  # Windows never replaces
        return
    if system_rename(source, target):
        return
    try:
        os.link(source.name, target.name, **folders, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    else:
        source.unlink()
        return
    target.opened("xb").close()
    try:
        os.rename(source.name, target.name, **folders)
    except OSError:
        target.unlink()
        raise


def differs_in_case_only(source: Entry, target: Entry) -> bool:
    """Whether both are names of one file, on a file system that does not tell capitals from small letters."""
    if source.path == target.path or source.path.casefold() != target.path.casefold():
        return False
    try:  # not following links; a second hard link is another name
        one, other = (os.stat(each.name, dir_fd=each.folder, follow_symlinks=False) for each in (source, target))
    except FileNotFoundError:
        return False
    return os.path.samestat(one, other) and one.st_nlink == 1


def system_rename(source: Entry, target: Entry) -> bool:
    """Rename by the system's call that does not replace; False where it or the file system has none."""
    call = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform, "")
    if not call or not hasattr(LIBC, call):
        return False
    flag = RENAME_NOREPLACE if sys.platform == "linux" else RENAME_EXCL
    names = [(AT_FDCWD if each.folder is None else each.folder, os.fsencode(each.name)) for each in (source, target)]
    if not getattr(LIBC, call)(*names[0], *names[1], flag):
        return True
    number = ctypes.get_errno()
    if number in NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), source.path, None, target.path)


def move(file: MediaFile, path: str, root: str, scratch: str) -> MediaFile:
    """Move the file, unchanged since it was seen, to a path of the library where nothing is; the file as it is there.

    A folder of the path that is missing is made. On another file system it is copied, see `copy_across`.
    FileExistsError when there is something at the path; OSError or ValueError when it cannot be moved. Then it is
    still here, or the text says where it is.
    """
    with opened_entries(root, file.path, path, make=True) as (source, target):
        check_still(file, source)
        try:
            rename_without_replacing(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_across(file, source, target, root, scratch)
        else:
            try:
                if not is_same_file(target, file):
                    raise ValueError("it was exchanged while it was moved")
                check_reached(target, root)
            except ValueError:
                rename_back(target, source)
                raise
        save_folder(target)
        return target.file()


def check_reached(entry: Entry, root: str) -> None:
    """ValueError unless the path of the entry leads there, in the library: an opened folder may have been moved."""
    check_folder(os.path.dirname(entry.path), root)
    if not is_same_file(Entry(entry.path), entry.file()):
        raise ValueError("its new folder was exchanged while it was moved")


def rename_back(now: Entry, before: Entry) -> None:
    """Give a file its old name back. ValueError that says where it is when that cannot be."""
    try:
        rename_without_replacing(now, before)
    except OSError as error:
        raise ValueError(f"it is {printable(now.path)} now: {reason_of(error)}") from None


def copy_across(file: MediaFile, source: Entry, target: Entry, root: str, scratch: str) -> None:
    """Copy the file with all its status, compare the copy with it, and only then take the file away here.

    On errors, those of `move`, the copy goes and the file stays; both stay if the file was edited meanwhile.
    """
    part = target.beside(f"{scratch}.part")  # the copy while it grows
    growing = part.opened("x+b")
    try:
        with growing as copy, source.opened("rb") as original:
            shutil.copyfileobj(original, copy, READ_BLOCK)
            copy.flush()
            os.fsync(copy.fileno())
            if digest_of(original) != digest_of(copy):
                raise ValueError("the copy on the other file system came out wrong")
            if HAS_FOLDER_DESCRIPTORS:
                copy_status(original.fileno(), copy.fileno())
        if not HAS_FOLDER_DESCRIPTORS:
            shutil.copystat(source.path, part.path)
        check_still(file, source)
        rename_without_replacing(part, target)
    except (OSError, ValueError):
        with suppress(OSError):
            part.unlink()
        raise
    copied = target.file()
    save_folder(target)
    try:
        check_reached(target, root)
        if not remove(source, file, (target, copied), scratch):
            raise ValueError(f"it was edited while it was moved; what it was before is in {printable(target.path)}")
    except FileNotFoundError:
        pass  # somebody else has taken it away: the copy is what is left
    except (OSError, ValueError):
        if is_same_file(source, file) and is_same_file(target, copied):
            target.unlink()
        raise


def remove(entry: Entry, file: MediaFile, double: tuple[Entry, MediaFile], scratch: str) -> bool:
    """Unlink a file of which there is a double, another file with the same bytes; whether that was done.

    It is looked at once more under a name that nobody else uses. If it is another one by now, or the double has gone,
    it stays. OSError when it cannot be unlinked; ValueError says where it is when it cannot get its name back.
    """
    aside = entry.beside(f"{scratch}.aside")
    rename_without_replacing(entry, aside)
    try:
        if is_same_file(aside, file) and is_same_file(*double):
            aside.unlink()
            return True
    except OSError:
        rename_back(aside, entry)
        raise
    rename_back(aside, entry)
    return False


def save_folder(entry: Entry) -> None:
    """Have the names in the entry's folder written to the disk, where the system can: the move itself is done."""
    with suppress(OSError):
        if entry.folder is not None:
            os.fsync(entry.folder)


# ── the journal: every move is written down before and after it happens ──

JOURNAL_FILE = "idem_journal.jsonl"
MAX_LINE = 1 << 19  # bytes: two paths of Windows, 32,767 characters each, with all of them escaped
MAX_JOURNAL = 1 << 28  # bytes: 600,000 moves; what is larger is not read into memory
MAX_NUMBER = 1 << 62  # far above all sizes, times and counts
CLOSING_EVENTS = frozenset({"", "begin", "end", "undone", "refused"})  # after them no move is under way


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line of the journal: a JSON object with these keys, without those at their default, and a check sum.

    A batch begins, has moves and ends. A move has a line before (`move`, or `return`, which puts an earlier one back)
    and one after (`moved`, or `failed` when the file is where it was). A batch is `undone`, or `refused` when something
    could not go back.
    """

    line: int = 0  # running number, from 1
    batch: int = 0  # the number of the line that begins it
    event: str = ""
    time: str = ""  # of `begin`
    of: int = 0  # the line of the move that this one ends or puts back
    from_: str = ""  # paths relative to the library, with "/"
    to: str = ""
    scratch: str = ""  # see `copy_across`
    size: int = 0
    mtime_ns: int = 0

    def as_json(self) -> bytes:
        values = {each.name.strip("_"): getattr(self, each.name) for each in fields(self)}
        content = json.dumps({key: value for key, value in values.items() if value}).encode("ascii")
        return content[:-1] + b', "crc": %d}\n' % zlib.crc32(content)

    @staticmethod
    def from_json(raw: bytes) -> JournalLine | None:
        """The line; None unless it is byte for byte what `as_json` makes."""
        try:
            given = json.loads(raw)
            values = {each.name: given.get(each.name.strip("_"), each.default) for each in fields(JournalLine)}
            line = JournalLine(**values)
            numbers = [value for value in values.values() if isinstance(value, int)]
            is_whole = line.as_json().strip() == raw.strip() and all(abs(each) < MAX_NUMBER for each in numbers)
            is_whole &= len(raw) <= MAX_LINE
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        types = all(type(values[each.name]) is type(each.default) for each in fields(JournalLine))
        return line if is_whole and types else None


@contextmanager
def opened_journal(path: str) -> Iterator[BinaryIO]:
    """The journal, opened to read, empty when there is none. IdemError when it cannot be read, or is no plain file."""
    try:
        with opened_own(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_JOURNAL:
                raise ValueError(f"it is larger than {readable_size(MAX_JOURNAL)}; put it elsewhere to begin a new one")
            yield stream
    except FileNotFoundError:
        yield io.BytesIO()
    except (OSError, ValueError) as error:
        raise IdemError(f"cannot read the journal {printable(path)}: {reason_of(error)}") from None


def journal_lines(path: str) -> Iterator[JournalLine]:
    """The lines of a journal that are whole: their numbers tell what is missing. IdemError when it cannot be read."""
    with opened_journal(path) as stream:
        while raw := stream.readline(MAX_LINE):
            if line := JournalLine.from_json(raw):
                yield line


def end_of_journal(path: str) -> tuple[JournalLine, int]:
    """The last whole line of a journal, and the number that its very last line has. IdemError when it cannot be read.

    Only its end is read: a session has many batches.
    """
    with opened_journal(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 2 * MAX_LINE))
        raws = stream.readlines()
    for behind, raw in enumerate(reversed(raws)):
        if line := JournalLine.from_json(raw):
            return line, line.line + behind
    return JournalLine(), len(raws) if size <= 2 * MAX_LINE else size  # bytes are more than lines


def was_interrupted(path: str) -> bool:
    """Whether moves were under way when this journal was written last."""
    last, number = end_of_journal(path)
    return last.event not in CLOSING_EVENTS or number > last.line


class Journal:
    """Writes down all moves in a library. Every line is on the disk before the next thing happens."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = os.path.join(root, CACHE_FOLDER, JOURNAL_FILE)
        _, self.line = end_of_journal(self.path)  # the last one
        self.batch = self.line  # one more is that of the next batch

    def write(self, event: str, **values: Any) -> int:
        """Add a line; its number. IdemError when it cannot be written: then nothing may be moved."""
        try:
            check_folder(os.path.dirname(self.path), self.root)
            raw = JournalLine(self.line + 1, self.batch, event, **values).as_json()
            if not JournalLine.from_json(raw):
                raise ValueError("a number or a path is too long")
            with opened_for_lines(self.path) as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, ValueError) as error:
            reason = reason_of(error)
            if isinstance(error, FileNotFoundError) and not os.access(self.root, os.W_OK):
                reason = os.strerror(errno.EACCES)  # for which its folder could not be made
            problem = f"cannot write the journal {printable(self.path)}: {reason}"
            raise IdemError(f"{problem}; no file is moved without it") from None
        self.line += 1
        return self.line

    def move(self, file: MediaFile, target: str, event: str = "move", of: int = 0) -> Moved:
        """`move` the file, with a line before and one after; what `move` raises, or IdemError."""
        scratch = f".idem-{os.getpid()}-{time.time_ns()}"
        names = [relative(each, self.root).replace(os.sep, "/") for each in (file.path, target)]
        paths = {"from_": names[0], "to": names[1], "scratch": scratch}
        number = self.write(event, of=of, **paths, size=file.size, mtime_ns=file.mtime_ns)
        try:
            after = move(file, target, self.root, scratch)
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # the line stays open unless the file is where it was: undo will see
                if is_same_file(Entry(file.path), file):
                    self.write("failed", of=number)
            raise
        self.write("moved", of=number)
        return Moved(file, after, number)

    def put_back(self, moved: Moved) -> Moved:
        """Move a file back to where it was; what `move` raises."""
        return self.move(moved.after, moved.before.path, "return", moved.number)


# ── carrying out decisions ──

MOST_COUNTERS = 10_000


def carry_out(
    decisions: Iterable[Decision],
    root: str,
    movies: Mapping[Identity, bool],
    doubts: Callable[[Decision], Mapping[str, str]],
    tell: Callable[[Outcome], None] = lambda _outcome: None,
) -> Outcome:
    """Move what the decisions say, and tell what became of it. IdemError when the journal cannot be written.

    `movies` are those of Live Photos, as `live_movies` has found them: no other film goes anywhere with a photo, and a
    photo goes nowhere if there is a film beside it that was not asked about or has changed since. `doubts` reads the
    files of a decision anew and tells, by path, why one must neither go nor be relied on: see `doubts_about`. `tell`
    is given what became of each decision in turn, and of that during which an error came. The caller holds the run
    lock. A decision is refused as a whole when its keeper is not as it was scanned; a file that cannot be moved is
    named, and the rest goes on.
    """
    journal = Journal(root)
    journal.batch += 1
    journal.write("begin", time=datetime.now(timezone.utc).isoformat(timespec="seconds"))
    outcome = Outcome(batch=journal.batch)
    mover = Mover(journal, movies)
    for decision in decisions:
        doubted = doubts(decision)  # takes longest, and can be interrupted
        with interrupts_held_back():
            try:
                mover.carry_out(decision, doubted)
            finally:
                mover.held.close()
                one = replace(mover.outcome, batch=journal.batch)
                outcome += one
                tell(one)
    journal.write("end")
    return outcome


class Mover:
    """Carries out decisions about the files of one library."""

    def __init__(self, journal: Journal, movies: Mapping[Identity, bool]) -> None:
        self.journal = journal
        self.root = journal.root
        self.movies = dict(movies)
        self.outcome = Outcome()  # of the decision at hand, as far as it has got
        self.held = ExitStack()  # its folders

    def carry_out(self, decision: Decision, doubts: Mapping[str, str]) -> None:
        """First the trash, then the name: a keeper may take that of a replica that has just gone."""
        keeper = decision.keeper.file
        self.outcome = Outcome()
        try:
            check_decision(decision, self.root)
            paths = [decision.target, *(each.file.path for each in (decision.keeper, *decision.trash))]
            self.held.enter_context(folders_held(self.root, paths))
            check_still(keeper)
            if keeper.path in doubts:
                raise ValueError(doubts[keeper.path])
        except (OSError, ValueError) as error:
            reason = f"its group stays as it is: {printable(keeper.path)}: {reason_of(error)}"
            group = decision.keeper, *decision.trash
            self.outcome = Outcome(refused=tuple(Problem(each.file.path, reason) for each in group))
            return
        for file in (replica.file for replica in decision.trash):
            try:
                check_still(file)
                if file.path in doubts:
                    raise ValueError(doubts[file.path])
                target = os.path.join(self.root, TRASH_FOLDER, relative(file.path, self.root))
                listings = self.listings_around(file.path)
                companions, adopted = parted_companions(file.path, keeper.path, listings, self.movies)
                *others, moved = self.move_together(file, target, companions, adopted, keeper)
                self.outcome += Outcome(trashed=(moved,), companions=tuple(others))
            except (OSError, ValueError) as error:
                self.outcome += Outcome(refused=(Problem(file.path, reason_of(error)),))
        if decision.target == keeper.path:
            return
        try:
            if self.outcome.refused:
                raise ValueError("not all of its group is in the trash")
            listings = self.listings_around(keeper.path)
            companions, _ = companions_of(keeper.path, listings, self.movies)
            *others, moved = self.move_together(keeper, decision.target, companions)
            self.outcome += Outcome(renamed=(moved,), companions=tuple(others))
        except (OSError, ValueError) as error:
            self.outcome += Outcome(refused=(Problem(keeper.path, f"not renamed: {reason_of(error)}"),))

    def listings_around(self, photo: str) -> Listings:
        """The photo's folder as it is now. ValueError when nobody knows of a film there whether it is its movie."""
        listings = Listings()
        for film in unasked_films(photo, listings, self.movies):
            raise ValueError(f"{printable(film)} may be its movie: it is new or changed, or ffmpeg cannot read it")
        return listings

    def move_together(
        self,
        photo: MediaFile,
        target: str,
        companions: Sequence[Companion],
        adopted: Sequence[tuple[MediaFile, str]] = (),
        keeper: MediaFile | None = None,
    ) -> list[Moved]:
        """Move the photo to the target with its companions, after those that the keeper adopts; all of them or none.

        All go back, too, if the keeper is not there, untouched, before and after: they may be all that is left.

        The target gets a counter where a name is taken. The adopted cannot: their name is that of the keeper.
        """
        folder, name = os.path.split(target)
        reserve = max([0, *(len(os.fsencode(each.beside(name))) - len(os.fsencode(name)) for each in companions)])
        for number in range(1, MOST_COUNTERS):
            for file, path in adopted:
                if os.path.lexists(path):
                    one, other = (printable(os.path.basename(each)) for each in (file.path, path))
                    raise ValueError(f"its companion {one} cannot go to the kept file: {other} is there already")
            path = os.path.join(folder, with_counter(name, number, reserve))
            together = [*((each.file, each.beside(path)) for each in companions), (photo, path)]
            if any(
                os.path.lexists(path) and not differs_in_case_only(Entry(file.path), Entry(path))
                for file, path in together
            ):
                continue
            try:
                return self.move_all([*adopted, *together], keeper)
            except FileExistsError:  # it has appeared since; what went back has another time of its status now
                companions = [replace(each, file=seen_again(each.file)) for each in companions]
                adopted = [(seen_again(file), path) for file, path in adopted]
        raise OSError(errno.EEXIST, "all names are taken")

    def move_all(self, moves: Sequence[tuple[MediaFile, str]], keeper: MediaFile | None = None) -> list[Moved]:
        """Move files to paths, in this order; when one cannot be moved, or the keeper changes, those before it go back.

        Those that are still moved after a failure become companions of the outcome.
        """
        moved: list[Moved] = []
        try:
            for file, target in moves:
                check_kept(keeper)
                moved.append(self.journal.move(file, target))
                follow_films(self.movies, moved[-1:])
            check_kept(keeper)
        except (OSError, ValueError):
            try:
                self.put_back(moved)
            finally:
                self.outcome += Outcome(companions=still_moved(moved))
            raise
        except IdemError:
            if not os.path.lexists(file.path) and os.path.lexists(target):  # only its last line is missing
                moved.append(Moved(file, as_it_is(target)))
            self.outcome += Outcome(companions=tuple(moved))
            raise
        return moved

    def put_back(self, moves: Sequence[Moved]) -> tuple[Moved, ...]:
        """Put files that were moved in this batch back, the last one first; those of them that could not go back.

        The journal has it that they are back. IdemError when it cannot be written.
        """
        for each in reversed(moves):
            with suppress(OSError, ValueError):
                self.journal.put_back(each)
        return still_moved(moves)


def follow_films(movies: dict[Identity, bool], moves: Iterable[Moved]) -> None:
    """Note what is known of films that were moved, in order: on another file system they have another identity."""
    for each in moves:
        if (is_live := movies.get(identity(each.before))) is not None:
            movies[identity(each.after)] = is_live


def planned_companions(decision: Decision, root: str, movies: Mapping[Identity, bool]) -> list[tuple[str, str]]:
    """The companions that would move with a decision, and where to, but for counters that taken names may ask for.

    As far as it can be told: a folder that cannot be read is passed over, and that photo will not move.
    """
    listings = Listings()
    keeper, planned = decision.keeper.file.path, []
    for path in (each.file.path for each in decision.trash):
        with suppress(OSError, ValueError):
            along, adopted = parted_companions(path, keeper, listings, movies)
            in_trash = os.path.join(root, TRASH_FOLDER, relative(path, root))
            planned += [(each.file.path, each.beside(in_trash)) for each in along]
            for file, place in adopted:  # of two of one kind the second goes along: the kept file has one by then
                is_second = place in {target for _, target in planned}
                beside = os.path.join(root, TRASH_FOLDER, relative(file.path, root))
                planned.append((file.path, beside if is_second else place))
    if decision.is_renamed:
        with suppress(OSError):
            found, _ = companions_of(keeper, listings, movies)
            planned += [(each.file.path, each.beside(decision.target)) for each in found]
    return planned


def still_moved(moves: Iterable[Moved]) -> tuple[Moved, ...]:
    """The moves whose files are where they were moved to."""
    return tuple(each for each in moves if os.path.lexists(each.after.path))


# ── undo ──

UNDO_CLOCK = 2_000_000_000  # ns by which a file system may round the time of a file that is moved to it
KILLED = "left by a run that was killed"
MOST_DAMAGES = 100  # places that are named one by one: a crafted journal may have millions


@dataclass(slots=True)
class BatchRecord:
    """What a journal says of a batch that is not undone."""

    moves: dict[int, JournalLine] = field(default_factory=dict)  # neither failed nor put back, by number
    open: dict[int, JournalLine] = field(default_factory=dict)  # moves and returns that may have been cut off
    is_tried: bool = False  # something could not go back

    def add(self, line: JournalLine) -> None:
        if line.event in ("move", "return"):
            self.open[line.line] = line
        if line.event == "move":
            self.moves[line.line] = line
        elif line.event == "refused":
            self.is_tried = True
        elif line.event == "moved":
            begun = self.open.pop(line.of, None)
            if begun and begun.event == "return":
                self.moves.pop(begun.of, None)
        elif line.event == "failed":
            self.open.pop(line.of, None)
            self.moves.pop(line.of, None)


@dataclass(frozen=True, slots=True)
class Damage:
    """Lines of a journal that are damaged or missing, and the batches that they may have been about."""

    text: str
    first: int
    last: int

    @staticmethod
    def between(before: JournalLine, after: JournalLine | None) -> Damage:
        """What has been lost between two lines, or after the last one."""
        if after is None:
            text = f"it cannot be read from line {before.line + 1} on"
        elif after.line <= before.line:
            text = f"line {after.line} comes after line {before.line}"
        elif after.line == before.line + 2:
            text = f"line {before.line + 1} is damaged or missing"
        else:
            text = f"lines {before.line + 1} to {after.line - 1} are damaged or missing"
        is_over = before.event == "undone"
        if after is None:
            last = before.line + 1 if is_over else before.batch  # of a batch of which nothing else is left
        else:
            last = before.batch if after.event == "begin" and not is_over else after.batch
        return Damage(text, min(before.batch, last), max(before.batch, last))


class Record:
    """What the journal of a library says: batches that are not undone, and where it is damaged."""

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, CACHE_FOLDER, JOURNAL_FILE)
        self.batches: dict[int, BatchRecord] = {}
        self.undone: set[int] = set()
        self.damages: list[Damage] = []
        before = JournalLine(batch=1)
        for line in journal_lines(self.path):
            if line.line != before.line + 1:
                self.note(Damage.between(before, line))
            if line.event == "undone":
                self.batches.pop(line.batch, None)
                self.undone.add(line.batch)
            elif line.event == "begin":
                self.batches[line.batch] = BatchRecord()
                self.undone.discard(line.batch)
            elif line.batch not in self.undone:
                self.batches.setdefault(line.batch, BatchRecord()).add(line)
            before = line
        if end_of_journal(self.path)[1] > before.line:
            self.note(Damage.between(before, None))

    def note(self, damage: Damage) -> None:
        """Keep the damage, as one with the last one when there are too many."""
        if len(self.damages) == MOST_DAMAGES:
            other = self.damages.pop()
            first, last = min(other.first, damage.first), max(other.last, damage.last)
            damage = Damage("it is damaged in many more places", first, last)
        self.damages.append(damage)

    def last_batch(self) -> int:
        """The last batch of which something is to be put back, or may be; 0 when there is none."""
        newest_first = sorted(self.batches, reverse=True)
        return next((each for each in newest_first if self.batches[each].moves or self.damage(each)), 0)

    def damage(self, batch: int = 0) -> tuple[Problem, ...]:
        """What cannot be read about this batch, or about any that is not undone."""
        found = []
        for each in self.damages:
            is_settled = {each.first, each.last} <= self.undone
            if each.first <= batch <= each.last or not (batch or is_settled):
                found.append(Problem(self.path, f"{each.text}: what it said there cannot be put back"))
        return tuple(found)


def undo(root: str, batch: int = 0, tell: Callable[[Outcome], None] = lambda _outcome: None) -> Outcome:
    """Put the files of this or else the last batch back, newest first; its batch is 0 when there is none.

    What cannot go back, and what of the journal cannot be read, is named, and the rest goes on. Then the batch counts
    as undone; if something could not go back, perhaps because a drive is missing, only after the second attempt.
    `tell` is given what became of each move in turn. The caller holds the run lock. IdemError when the journal cannot
    be read or written; a second undo goes on from there.
    """
    record, journal = Record(root), Journal(root)
    journal.batch = batch or record.last_batch()
    outcome = Outcome(refused=record.damage(journal.batch), batch=journal.batch)
    known = record.batches.get(journal.batch, BatchRecord())
    if batch and batch not in record.batches:
        outcome += Outcome(refused=(Problem(journal.path, "these moves are no longer in it"),))
    tell(outcome)
    if journal.batch not in record.batches:
        return outcome
    cut_off = defaultdict(list)
    for line in known.open.values():
        cut_off[line.of or line.line].append(line)
    for line in reversed(tuple(known.moves.values())):
        with interrupts_held_back():
            one = undo_move(journal, line, cut_off[line.line])
        outcome += one
        tell(one)
    journal.write("undone" if known.is_tried or not outcome.refused else "refused")
    return outcome


def undo_move(journal: Journal, line: JournalLine, cut_off: Sequence[JournalLine]) -> Outcome:
    """Put the file that was moved back, if it is not at its place, and tidy up after runs that were killed with it.

    A journal may be somebody else's work: nothing is moved but photos, videos and companions within the library, and
    nothing is unlinked but a finished copy in the trash, see `remove_copy`.
    """
    root = journal.root
    left: list[Problem] = []
    try:
        source, target = inside(line.from_, root), inside(line.to, root)
        if suffix_of(source) != suffix_of(target):
            raise ValueError("idem would not have moved it so")
        for each in cut_off:
            left += end_copy(each, root)
        here, there = is_moved_file(source, line, root), is_moved_file(target, line, root)
        if there and not (here and cut_off):
            returned = journal.move(as_it_is(target), source, "return", line.line)
            return Outcome(returned=(returned,), refused=tuple(left))
        if not here:
            raise ValueError("another file is in its place" if os.path.lexists(target) else "it is gone")
        journal.write("failed", of=line.line)  # it is where it was: whatever happens to it later is no part of this
        if there:
            remove_copy(source, target, line, root)
    except (OSError, ValueError) as error:
        left.append(Problem(os.path.join(root, line.to), f"not put back: {reason_of(error)}"))
    return Outcome(refused=tuple(left))


def end_copy(line: JournalLine, root: str) -> list[Problem]:
    """Give a file its name back that a killed run had set aside; what that run has left unfinished, which stays."""
    if not SCRATCH_NAME.fullmatch(line.scratch):
        return []
    source, target = inside(line.from_, root), inside(line.to, root)
    aside = os.path.join(os.path.dirname(source), f"{line.scratch}.aside")
    part = os.path.join(os.path.dirname(target), f"{line.scratch}.part")
    if is_moved_file(aside, line, root) and not os.path.lexists(source):
        with opened_entries(root, aside, source) as (now, before):
            rename_back(now, before)
    return [Problem(each, KILLED) for each in (aside, part) if os.path.lexists(each)]


def remove_copy(source: str, target: str, line: JournalLine, root: str) -> None:
    """Unlink the finished copy in the trash of a file that is still, or again, at its place in the library.

    ValueError, and it stays, unless it lies in the trash at that file's relative path, is a file of its own with no
    second name, and has the same bytes, read now.
    """
    if target != os.path.join(root, TRASH_FOLDER, relative(source, root)):
        raise ValueError(f"it is at {printable(line.from_)}, too: {KILLED}")
    with opened_entries(root, source, target) as (live, copy):
        with live.opened("rb") as original, copy.opened("rb") as double:
            one, other = os.fstat(original.fileno()), os.fstat(double.fileno())
            is_own = not os.path.samestat(one, other) and other.st_nlink == 1
            if not is_own or digest_of(original) != digest_of(double):
                raise ValueError(f"it is no copy of {printable(line.from_)}, which is at its place")
        kept, extra = media_file(live.path, one), media_file(copy.path, other)
        if not remove(copy, extra, (live, kept), f".idem-{os.getpid()}-{time.time_ns()}"):
            raise ValueError("it has changed meanwhile")


def inside(path: str, root: str) -> str:
    """The path that a journal names, absolute. ValueError unless it is one of a photo, video or companion."""
    parts = path.split("/")
    is_relative = not ({"", ".", ".."} & set(parts) or re.search(r"[\0\\:]" if os.name == "nt" else "\0", path))
    if not is_relative or folded(parts[0]) == folded(CACHE_FOLDER):
        raise ValueError(f"{printable(path)} is not in the library")
    if suffix_of(path).lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES | COMPANION_SUFFIXES:
        raise ValueError(f"{printable(path)} is no photo, video or companion")
    return os.path.join(root, *parts)


def is_moved_file(path: str, line: JournalLine, root: str) -> bool:
    """Whether the file that this line is about is here. ValueError when a link leads here."""
    check_folder(os.path.dirname(path), root)
    try:
        file = as_it_is(path)
    except (OSError, ValueError):
        return False
    return file.size == line.size and abs(file.mtime_ns - line.mtime_ns) <= UNDO_CLOCK


# ── what is in the trash, and the journal says nothing of it ──


def unlisted_in_trash(root: str) -> tuple[list[str], list[Problem]]:
    """The files in the trash that no batch would put back, and what of it cannot be looked into or go back."""
    trash = os.path.join(root, TRASH_FOLDER)
    if not os.path.lexists(trash):
        return [], []
    listed = {each.to for batch in Record(root).batches.values() for each in batch.moves.values()}
    found: list[str] = []
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        problems.append(Problem(str(error.filename), f"not looked into: {reason_of(error)}"))

    if os.path.realpath(trash) != trash:
        return [], [Problem(trash, "not looked into: it is a link")]
    for folder, _, names in os.walk(trash, onerror=unreadable):
        for path in (os.path.join(folder, name) for name in names):
            try:
                is_file = stat.S_ISREG(os.lstat(path).st_mode)
                if is_file and relative(path, root).replace(os.sep, "/") not in listed:
                    place_of(path, root)
                    found.append(path)
            except (OSError, ValueError) as error:
                problems.append(Problem(path, f"not put back: {reason_of(error)}"))
    return sorted(found), sorted(problems, key=lambda problem: problem.path)


def place_of(path: str, root: str) -> str:
    """Where a file in the trash came from, by its path. ValueError when it came from nowhere in the library."""
    below = relative(path, os.path.join(root, TRASH_FOLDER))
    if SCRATCH_NAME.fullmatch(os.path.splitext(os.path.basename(path))[0]):
        raise ValueError(KILLED)
    if folded(below.split(os.sep)[0]) in (folded(CACHE_FOLDER), folded(TRASH_FOLDER)):
        raise ValueError("no file of the library was there")
    return os.path.join(root, below)


def put_unlisted_back(root: str, paths: Iterable[str], tell: Callable[[Outcome], None]) -> Outcome:
    """Put files of the trash back where their paths say they came from, with a counter where that is taken.

    Nothing is overwritten, and every move is written down. What cannot go back is named, and the rest goes on.
    IdemError when the journal cannot be written.
    """
    journal = Journal(root)
    journal.batch += 1
    journal.write("begin", time=datetime.now(timezone.utc).isoformat(timespec="seconds"))
    outcome = Outcome(batch=journal.batch)
    for path in paths:
        with interrupts_held_back():
            try:
                one = Outcome(returned=(moved_beside(journal, as_it_is(path), place_of(path, root)),))
            except (OSError, ValueError) as error:
                one = Outcome(refused=(Problem(path, f"not put back: {reason_of(error)}"),))
        outcome += one
        tell(one)
    journal.write("end")
    return outcome


def moved_beside(journal: Journal, file: MediaFile, place: str) -> Moved:
    """Move the file to this place, or, where that is taken by another file, beside it; what `move` raises."""
    folder, name = os.path.split(place)
    for number in range(1, MOST_COUNTERS):
        path = os.path.join(folder, with_counter(name, number))
        if os.path.lexists(path):
            if os.path.samestat(os.lstat(path), os.lstat(file.path)):
                raise ValueError(f"it is the same file as {printable(relative(path, journal.root))}")
            continue
        with suppress(FileExistsError):  # it has appeared since
            return journal.move(file, path, "return")
    raise OSError(errno.EEXIST, "all names are taken")


# ── the caches follow ──


def caches_follow(outcomes: Iterable[Outcome], folder: str, root: str) -> None:
    """Let every cached fingerprint of a file that was moved stand for it where it is now; outcomes in order."""
    moves = [each for outcome in outcomes for each in outcome.moved]
    # Of a file that was moved twice the first state counts: the cache knows no other.
    before = Scan(root, tuple(each.before for each in reversed(moves)), (), ())
    for form in (IMAGE_CACHE, PROXY_CACHE, VIDEO_CACHE, CHECKSUM_CACHE, WHOLE_CACHE, FILM_CACHE) if moves else ():
        if os.path.isfile(os.path.join(folder, form.name)):
            with closing(FingerprintCache(form, folder, before)) as cache:
                for each in moves:
                    cache.relocate(each.before, each.after)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Session: groups while somebody decides about them, in the terminal or in the browser
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that were acted on together, and what became of them."""

    number: int  # of the journal
    groups: tuple[int, ...]
    outcome: Outcome  # without what was put back since
    error: str = ""  # that ended it before its time
    tried: bool = False  # to undo it, and not all could go back


class Session:
    """The groups of a library, what was done with them, and how to undo that."""

    def __init__(self, findings: Findings, taken: Iterable[str], pool: Pool) -> None:
        self.scoring = replace(findings.scoring, taken=Counter(taken))
        self.movies = dict(findings.movies)
        self.pool = pool  # that reads files anew
        self.doubts = functools.partial(doubts_about, threshold=findings.threshold, pool=pool)
        self.groups = list(findings.groups)
        self.skipped: set[int] = set()
        self.done: set[int] = set()
        self.now: dict[MediaFile, MediaFile] = {}  # files of groups that are done, as and where they are now
        self.batches: list[Batch] = []  # that can be undone
        self.history: list[Outcome] = []  # of all that was done and undone
        self.progress = (0, 0)  # groups done, of how many in the batch that is under way
        self.lock = threading.RLock()  # for all of the above: a server has many threads

    def act(self, decisions: Mapping[int, Decision]) -> Batch:
        """Carry out what is decided for these groups.

        A group is done once it was tried; one during which an error came only if something of it has moved.
        """
        numbers = tuple(decisions)
        outcomes: list[Outcome] = []
        self.progress = (0, len(numbers))

        def tell(outcome: Outcome) -> None:
            with self.lock:
                self.note(outcome)
                self.now |= {each.before: each.after for each in outcome.moved}
                self.done.add(numbers[len(outcomes)])
                outcomes.append(outcome)
                self.progress = (len(outcomes), len(numbers))

        error = ""
        try:
            carry_out(decisions.values(), self.scoring.root, self.movies, self.doubts, tell)
        except IdemError as failure:
            error = str(failure)
            if outcomes and not outcomes[-1].moved:
                self.done.discard(numbers[len(outcomes) - 1])
        finally:
            total = functools.reduce(Outcome.__add__, outcomes, Outcome())
            batch = Batch(total.batch, numbers[: len(outcomes)], total, error)
            if total.moved or (outcomes and not error):
                self.batches.append(batch)
        return batch

    def note(self, outcome: Outcome) -> None:
        """Record an outcome, which names are taken by it or free, and where films are now."""
        self.history.append(outcome)
        follow_films(self.movies, outcome.companions + outcome.returned)
        self.scoring.taken.subtract(os.path.normcase(each.before.path) for each in outcome.moved)
        self.scoring.taken.update(os.path.normcase(each.after.path) for each in outcome.moved)

    def reopen(self, batch: Batch, undone: Outcome) -> None:
        """Open the groups of the last batch, with their files as they are after its undo.

        What could not go back can be tried once more: perhaps a drive was missing.
        """
        self.note(undone)
        self.batches.pop()
        if undone.refused and not batch.tried:
            back = {each.before.path for each in undone.returned}
            trashed, renamed, companions = (
                tuple(each for each in moves if each.after.path not in back)
                for moves in (batch.outcome.trashed, batch.outcome.renamed, batch.outcome.companions)
            )
            rest = replace(batch.outcome, trashed=trashed, renamed=renamed, companions=companions)
            self.batches.append(replace(batch, outcome=rest, tried=True))
        for each in batch.outcome.moved:
            self.now.pop(each.before, None)
        self.done -= set(batch.groups)
        returned = {each.after.path: each.after for each in undone.returned}
        for number in batch.groups:
            group = self.groups[number]
            replicas = tuple(replace(each, file=returned.get(each.file.path, each.file)) for each in group.replicas)
            self.groups[number] = replace(group, replicas=replicas)

    def total(self) -> Outcome:
        """All that was done and not undone."""
        return functools.reduce(Outcome.__add__, (batch.outcome for batch in self.batches), Outcome())


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Report and terminal: Findings -> text, JSON, questions
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


RULE = "─" * 80


def text_report(findings: Findings) -> str:
    """What is printed for people: every group with its files, best first."""
    if not findings.groups:
        return "No duplicates found.\n"
    files = sum(len(group.replicas) for group in findings.groups)
    size = readable_size(sum(decision.frees for decision in findings.decisions))
    found = f"Found {len(findings.groups):,} duplicate group(s) · {files:,} files · {size} potentially recoverable"
    blocks = [found, RULE]
    for number, (group, decision) in enumerate(zip(findings.groups, findings.decisions, strict=True), 1):
        lines = [f"Group {number} · {len(group.replicas):,} files"]
        for place, replica in enumerate(group.replicas):
            note = "  ← largest" if replica is largest_of(group) else ""
            alike = look_alike(group, place)
            note += f"  ({alike})" if alike else ""
            lines.append(f"{readable_size(replica.file.size):>9}  {path_text(replica.file.path, findings.root)}{note}")
            lines.append(f"{'':9}  {printable(replica.file.path)}")
        lines.append(f"{'':9}  → {decision_text(decision, findings.root)}")
        lines += [f"{'':9}  ! {text}" for text in loss_texts(decision, findings.root)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def largest_of(group: AnyGroup) -> Replica[Any] | None:
    """The replica with most pixels, or as many and most bytes, if there is one such alone."""

    def size(each: Replica[Any]) -> tuple[int, int]:
        width, height, _ = dimensions_of(each)
        return width * height, each.file.size

    second, first = sorted(group.replicas, key=size)[-2:]
    return first if size(first) > size(second) else None


def decision_text(decision: Decision, root: str) -> str:
    """What is to happen to a group, in one line."""
    keeper = path_text(decision.keeper.file.path, root)
    renamed = f" as {path_text(decision.target, root)}" if decision.is_renamed else ""
    reasons = printable("; ".join(decision.reasons))
    if not decision.trash:
        why = f" ({printable('; '.join(decision.reasons[1:]))})" if decision.reasons[1:] else ""
        return f"keep all {len(decision.stays) + 1:,}{f', {keeper}{renamed}' if renamed else ''}{why}"
    stay = f", leave {len(decision.stays):,} as they are" if decision.stays else ""
    return f"keep {keeper}{renamed}{stay}, trash {len(decision.trash):,} ({reasons})"


def loss_texts(decision: Decision, root: str) -> list[str]:
    """A line for each file that is to go and has something that the kept one lacks."""
    return [f"only {path_text(loss.path, root)} has: {printable(listed(loss.what))}" for loss in decision.loses]


def path_text(path: str, root: str) -> str:
    """The path from the library on, printable; empty for the library itself."""
    return printable(relative(path, root))


def json_report(findings: Findings) -> str:
    """What is printed for programs; the README documents the fields. ASCII, so that every name survives."""
    groups = []
    for group, decision in zip(findings.groups, findings.decisions, strict=True):
        files = []
        for place, replica in enumerate(group.replicas):
            width, height, seconds = dimensions_of(replica)
            verdict = group.verdict_on(place)
            files.append(
                {
                    "path": replica.file.path,
                    "relative": relative(replica.file.path, findings.root),
                    "bytes": replica.file.size,
                    "width": width or None,
                    "height": height or None,
                    **({"duration": seconds} if seconds else {}),
                    "modified": utc_time(replica.file.mtime_ns),
                    "distance": group.distances[place],
                    "look": verdict.reason if verdict else None,
                }
            )
        decided = {
            "keep": decision.keeper.file.path,
            "target": decision.target,
            "trash": [replica.file.path for replica in decision.trash],
            "reasons": decision.reasons,
            "loses": [{"path": loss.path, "what": loss.what} for loss in decision.loses],
            "companions": [
                {"path": path, "target": target}
                for path, target in planned_companions(decision, findings.root, findings.movies)
            ],
        }
        groups.append({"kind": group.kind, "recoverable_bytes": decision.frees, "files": files, "decision": decided})
    return json.dumps(
        {
            "version": 1,
            "directory": findings.root,
            "mode": findings.mode,
            "threshold": findings.threshold,
            "groups": groups,
            "unreadable": [{"path": item.path, "reason": item.reason} for item in findings.unreadable],
            "totals": {
                "files": findings.tally.scanned,
                "new": findings.tally.new,
                "cached": findings.tally.cached,
                "groups": len(groups),
                "recoverable_bytes": sum(decision.frees for decision in findings.decisions),
            },
        },
        indent=2,
    )


def utc_time(nanoseconds: int) -> str | None:
    """A time since the epoch as ISO 8601 in UTC; None when no calendar has it."""
    try:
        return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=nanoseconds // 1000)).isoformat()
    except OverflowError:
        return None


def local_time(nanoseconds: int) -> str:
    """A time since the epoch as people here write it, to the minute; empty when no calendar has it."""
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return ""


def say_what_was_scanned(findings: Findings) -> None:
    """What was found, cached and left out, on stderr."""
    for path in findings.application_libraries:
        say(f"skipped {printable(path)}: a library of another application")
    for each in findings.skipped:
        joint = ":" if each.count == 1 else ", such as"
        say(f"skipped {plural(each.count, each.kind)}{joint} {printable(each.example)}")
    for item in findings.unreadable:
        say(f"left out {printable(item.path)}: {item.reason}")
    tally = findings.tally
    counts = [f"{tally.scanned:,} found", f"{tally.new:,} new", f"{tally.cached:,} cached"]
    counts += [f"{len(findings.unreadable):,} unreadable"] if findings.unreadable else []
    counts += [f"{tally.forgotten:,} forgotten"] if tally.forgotten else []
    say(f"Scanned {printable(findings.root)}: {', '.join(counts)}")
    if len(findings.groups) < findings.groups_in_all:
        say(f"Showing {len(findings.groups):,} of {findings.groups_in_all:,} groups, as --delta and --limit ask")


def outcome_lines(outcome: Outcome, root: str) -> list[str]:
    """What was moved and what was not, a line each."""
    shown = functools.partial(path_text, root=root)
    lines = [f"trashed   {shown(each.before.path)}" for each in outcome.trashed]
    lines += [f"renamed   {shown(each.before.path)} to {shown(each.after.path)}" for each in outcome.renamed]
    lines += [f"with it   {shown(each.before.path)} to {shown(each.after.path)}" for each in outcome.companions]
    lines += [f"put back  {shown(each.after.path)}" for each in outcome.returned]
    return lines + [f"refused   {shown(each.path)}: {each.reason}" for each in outcome.refused]


def summary(outcome: Outcome, skipped: int, root: str, batch: str = "group") -> str:
    """What a session came to, where the files are, and how to get them back, by `batch`."""
    counts = [f"{len(outcome.trashed):,} trashed", f"{len(outcome.renamed):,} renamed", f"{skipped:,} skipped"]
    counts += [f"{len(outcome.refused):,} failed", f"{readable_size(outcome.freed)} freed once the trash is emptied"]
    lines = [RULE, ", ".join(counts)]
    if outcome.moved:
        lines.append(f"The files are in {printable(os.path.join(root, TRASH_FOLDER))}")
        lines.append(f"To put the last {batch} back, and so on one by one: python idem.py {shell_word(root)} --undo")
    return "\n".join(lines)


def shell_word(path: str) -> str:
    """The path as it can be typed."""
    return f'"{printable(path)}"' if os.name == "nt" else printable(shlex.quote(path))


# ── questions in the terminal ──

ANSWERS = frozenset("kusx")  # keep, undo, skip, stop: these letters name no folder


class Terminal(Session):
    """Asks about one group after the other."""

    answered = False

    def run(self) -> None:
        """Ask about every group, and do what is answered, until there is none left or the user stops.

        IdemError when the journal cannot be written.
        """
        position = 0
        while position < len(self.groups):
            group, suggestion = self.groups[position], decide(self.groups[position], self.scoring)
            is_fixed = self.scoring.is_fixed(suggestion.keeper.file.path)  # it will not move into another folder
            folders = {} if is_fixed else folder_labels(group)
            hint = "k keep as suggested, s skip, u undo the last group, x stop"
            if folders:
                hint = f"a folder's letters keep the best copy there, {hint}"
            show(f"{self.question(position, suggestion, folders)}\n{hint}")
            answer = self.answer({*ANSWERS, *folders}, hint)
            if answer == "x":
                return
            if answer == "u":
                position = self.undo_last(position)
                continue
            if answer == "s":
                self.skipped.add(position)
            else:
                chosen = choice_of_folder(group, folders[answer], self.scoring) if answer in folders else None
                decision = decide(group, self.scoring, chosen) if chosen else suggestion
                batch = self.act({position: decision})
                self.tell(batch.outcome)
                if batch.error:
                    raise IdemError(batch.error)
            position += 1

    def question(self, position: int, suggestion: Decision, folders: Mapping[str, str]) -> str:
        """The group, its files and folders, and what is suggested."""
        group, root = self.groups[position], self.scoring.root
        lines = [RULE, f"Group {position + 1} of {len(self.groups):,} · {len(group.replicas):,} files", ""]
        for place, replica in enumerate(group.replicas):
            file, (width, height, _) = replica.file, dimensions_of(replica)
            sides = f"{width} x {height}" if width else ""
            note = "" if replica in suggestion.trash else "  ← keep"
            alike = look_alike(group, place)
            note += f"  ({alike})" if alike else ""
            columns = f"{readable_size(file.size):>9}  {sides:>13}  {local_time(file.mtime_ns):16}"
            lines.append(f"{columns}  {path_text(file.path, root)}{note}")
        lines.append("")
        for label, folder in folders.items():
            note = "  ← suggested" if folder == os.path.dirname(suggestion.target) else ""
            lines.append(f"{label:>4}) {path_text(folder, root) or '.'}{note}")
        return "\n".join([*lines, "", f"Suggestion: {decision_text(suggestion, root)}", *loss_texts(suggestion, root)])

    def answer(self, allowed: AbstractSet[str], hint: str) -> str:
        """One of the allowed answers. IdemError when there is nobody to answer."""
        while True:
            try:
                answer = input("> ").strip().lower()
                self.answered = True
            except EOFError:
                if not self.answered and not sys.stdin.isatty():
                    raise IdemError("cannot ask: standard input is not a terminal and holds no answers") from None
                show("")
                return "x"
            except OSError as error:  # the terminal is gone
                raise IdemError(f"cannot ask: {reason_of(error)}") from None
            if answer in allowed:
                return answer
            show(f"That is no answer here: {hint}")

    def undo_last(self, position: int) -> int:
        """Put back the files of the last group that was acted on; the group to ask about next."""
        if not self.batches:
            show("There is nothing to undo yet.")
            return position
        batch = self.batches[-1]
        self.reopen(batch, undo(self.scoring.root, batch.number, self.tell))
        (position,) = batch.groups
        self.skipped -= set(range(position, len(self.groups)))
        return position

    def tell(self, outcome: Outcome) -> None:
        """Print what was moved and what was not."""
        for line in outcome_lines(outcome, self.scoring.root):
            show(line)


def folder_labels(group: AnyGroup) -> dict[str, str]:
    """The folders of a group that has several, best replica first, each under its letters: a, b ... z, aa, ab ..."""
    folders = dict.fromkeys(os.path.dirname(replica.file.path) for replica in group.replicas)
    letters = (product("abcdefghijklmnopqrstuvwxyz", repeat=length) for length in count(1))
    labels = (label for each in letters for label in map("".join, each) if label not in ANSWERS)
    return dict(zip(labels, folders, strict=False)) if len(folders) > 1 else {}


def choice_of_folder(group: AnyGroup, folder: str, scoring: Scoring) -> Choice:
    """Keep the best copy, in this folder of the group, under the best name; of equal files the best named there."""
    there = [n for n, each in enumerate(group.replicas) if os.path.dirname(each.file.path) == folder]
    keep = suggested(group, scoring).keep
    if isinstance(group.replicas[0].fingerprint, Checksum):
        names = name_ranks([each.file.path for each in group.replicas], scoring)
        keep = keep - {0} | {max(there, key=names.__getitem__)}
    return Choice(keep, placed=there[0])


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Review: the same decisions in the browser
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

# ── what a browser can show, made by workers; only videos that it can play are sent as they are ──

THUMBNAIL_SIDE = 640  # px; most cards are about 300 wide, on screens with up to two pixels for one
THUMBNAIL_BYTES = 40_000
THUMBNAIL_QUALITIES = 84, 74, 62, 48, 34  # of JPEG, until it is small enough
PREVIEW_PIXELS = 60_000_000  # browsers give up at some size; larger pictures are sent reduced
PREVIEW_SIDE = 16_000  # px
PREVIEW_QUALITY = 92
DIFFERENCE_SIDE = 2048  # px
DIFFERENCE_GAIN = 8  # by which differences are made brighter, or nobody would see them
VISIBLE_DIFFERENCE = 16  # levels
FRAME_MARGIN = 0.012  # of the longer side, around what is framed
FRAME_COLOUR = "#4fc3f7"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A picture as it is sent to the browser: a JPEG file, and what is to be said of it, as JSON."""

    data: bytes
    note: str = ""


def rendering(picture: Image.Image, quality: int, subsampling: int, note: str = "") -> Rendering:
    """The picture as a JPEG file without any metadata."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality, subsampling=subsampling)
    return Rendering(data.getvalue(), note)


def picture_or_frame(file: MediaFile, side: int | None) -> Image.Image:
    """`seen_picture`, or of a video the frame in its middle."""
    return video_frame(file, side or PREVIEW_SIDE) if kind_of(file) == "video" else seen_picture(file, side)


@problem_if_unreadable
def thumbnail_of(file: MediaFile) -> Rendering:
    """The whole picture at card size, in less than THUMBNAIL_BYTES."""
    picture = picture_or_frame(file, THUMBNAIL_SIDE)
    while True:
        for quality in THUMBNAIL_QUALITIES:
            thumbnail = rendering(picture, quality, subsampling=2)
            if len(thumbnail.data) < THUMBNAIL_BYTES:
                return thumbnail
        picture = picture.reduce(2)


@problem_if_unreadable
def preview_of(file: MediaFile) -> Rendering:
    """The picture with all its pixels, unless they are too many for a browser."""
    picture = picture_or_frame(file, None)
    most = (PREVIEW_PIXELS / (picture.width * picture.height)) ** 0.5
    scale = min(1.0, most, PREVIEW_SIDE / max(picture.size))
    if scale < 1:
        picture.thumbnail((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))), reducing_gap=2.0)
    return rendering(picture, PREVIEW_QUALITY, subsampling=0)


@problem_if_unreadable
def difference_of(one: MediaFile, other: MediaFile) -> Rendering:
    """Where two pictures differ, brighter for more; the note tells by how much, and what a closer look sees.

    The one with more pixels takes the size of the other: what resolution alone adds is no difference. The spot that the
    look finds is framed: a small one is easily overlooked.
    """
    pictures = (picture_or_frame(each, DIFFERENCE_SIDE) for each in (one, other))
    smaller, larger = sorted(pictures, key=lambda each: each.width * each.height)
    reduced = larger.resize(smaller.size, reducing_gap=3.0)
    red, green, blue = ImageChops.difference(smaller, reduced).split()
    levels = ImageChops.lighter(red, ImageChops.lighter(green, blue))
    counts = levels.histogram()
    share = sum(counts[VISIBLE_DIFFERENCE:]) / sum(counts)
    largest = max(level for level, count in enumerate(counts) if count)
    note: dict[str, Any] = {"largest": largest, "share": share, "visible": VISIBLE_DIFFERENCE, "gain": DIFFERENCE_GAIN}
    note |= {"width": reduced.width, "height": reduced.height}
    bright = levels.point([min(255, level * DIFFERENCE_GAIN) for level in range(256)])
    heat = ImageOps.colorize(bright, black="#000000", mid="#e2601c", white="#ffffff")
    if kind_of(one) == kind_of(other) == "image":
        view, other_view = view_of(one), view_of(other)
        if isinstance(view, View) and isinstance(other_view, View):
            seen = verdict(view, other_view)
            note |= {"copy": seen.copy, "reason": seen.reason}
            draw_frame(heat, seen.box)
    return rendering(heat, PREVIEW_QUALITY, subsampling=0, note=json.dumps(note))


def draw_frame(picture: Image.Image, box: tuple[float, float, float, float] | None) -> None:
    """Draw a frame around this part of the picture, in shares of its sides."""
    if not box:
        return
    margin = FRAME_MARGIN * max(picture.size)
    left, top, right, bottom = (share * side for share, side in zip(box, picture.size * 2, strict=True))
    corners = left - margin, top - margin, right + margin, bottom + margin
    ImageDraw.Draw(picture).rectangle(corners, outline=FRAME_COLOUR, width=max(1, round(margin / 4)))


# ── metadata ──

FORMAT_NAMES = {"MPO": "JPEG", "HEIF": "HEIC", "WEBP": "WebP"}  # as people know Pillow's
BROWSER_CODECS = {"h264", "vp8", "vp9", "av1"}


@dataclass(frozen=True, slots=True)
class Details:
    """What people are told of a file; empty or 0 where it says nothing."""

    format: str = ""
    width: int = 0  # px, upright
    height: int = 0
    taken: str = ""  # local time of the camera, to the minute
    camera: str = ""
    plays: bool = False  # as it is, in a browser


@problem_if_unreadable
def details_of(file: MediaFile) -> Details:
    """What the file's header and metadata say."""
    if kind_of(file) == "video":
        return video_details(file)
    with opened_unchanged(file) as stream:
        picture = opened_picture(stream)
        name = FORMAT_NAMES.get(picture.format or "", picture.format or "")
        about = metadata_in(picture, stream)
        parts = [name, f"{about.bits}-bit" if about.bits > 8 else "CMYK" if picture.mode == "CMYK" else ""]
        parts.append("several pages" if about.pages > 1 else "")
        if picture.format == "TIFF":
            decode(picture, file.size)  # which turns it upright
        width, height = picture.size
        if TURNS[orientation_of(picture)][0]:
            width, height = height, width
    brand = about.make.partition(" ")[0]
    named = about.model.casefold().startswith(brand.casefold())
    camera = about.model if named else f"{brand} {about.model}".strip()
    return Details(" · ".join(filter(None, parts)), width, height, about.taken[:16].replace("T", " "), camera)


def video_details(file: MediaFile) -> Details:
    """What ffmpeg says of the video."""
    name = suffix_of(file.path)[1:].upper()
    if ffmpeg_path() is None:
        return Details(name)
    _, said = run_ffmpeg(*video_input(file.path))
    said = said.replace(spoken(file.path), "")
    about = parsed_stream(said.partition("Input #0, ")[2], file.path)
    if about is None:
        return Details(name)
    codec = re.search(r": Video: (\w{1,12})", said)
    taken = re.search(r"^ *creation_time *: (\d{4}-\d\d-\d\d)T(\d\d:\d\d)", said, re.MULTILINE)
    text = " · ".join([name, *([codec[1]] if codec else [])])
    with open(file.path, "rb") as stream:
        plays = codec is not None and codec[1] in BROWSER_CODECS and bool(video_type(stream))
    return Details(text, about.width, about.height, f"{taken[1]} {taken[2]}" if taken else "", plays=plays)


# ── videos that browsers play ──

BROWSER_VIDEO_SIDE = 1280  # px; of what is converted
SECONDS_TO_CONVERT = 3600  # that a worker may take for a video
VIDEO_TYPES = {"video/mp4": re.compile(rb".{4}ftyp", re.DOTALL), "video/webm": re.compile(rb"\x1aE\xdf\xa3")}


def video_type(stream: BinaryIO) -> str:
    """The type that browsers know an open video by; empty for what they do not play, whatever it is called."""
    head = stream.read(12)
    return next((name for name, pattern in VIDEO_TYPES.items() if pattern.match(head)), "")


SCRATCH_PREFIX = "idem-"  # of the folder for converted videos, in that for temporary files
LOCK_OF_SCRATCH, MARK_OF_SCRATCH = "lock", "made-by-idem"  # the mark is there once the lock is held
SCRATCH_FILE = re.compile(r"(\d+-){2}-?\d+\.mp4(\.part)?")


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder of this user alone, for converted videos, removed at the end; and so are those of reviews that died.

    IdemError where there can be none.
    """
    from filelock import FileLock

    with suppress(OSError):  # not everybody may list it
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(SCRATCH_PREFIX):
                clear_scratch_folder(entry.path)
    with ExitStack() as stack:
        try:
            folder = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(FileLock(os.path.join(folder, LOCK_OF_SCRATCH), timeout=0))
            opened_own(os.path.join(folder, MARK_OF_SCRATCH), "wb").close()
        except OSError as error:
            raise IdemError(f"cannot use a temporary folder: {reason_of(error)}") from None
        yield folder


def clear_scratch_folder(folder: str) -> None:
    """Remove a folder for converted videos if a review has left it that was killed.

    That is: it is a folder of this user that nobody else may write to, idem has marked it, and no process holds its
    lock. Only files go that are called like what idem puts there. No link is followed.
    """
    from filelock import FileLock, Timeout

    mark, lock = (os.path.join(folder, name) for name in (MARK_OF_SCRATCH, LOCK_OF_SCRATCH))
    with suppress(OSError, ValueError, Timeout):  # it is in use, or not idem's, or another review has just cleared it
        status = os.lstat(folder)
        foreign = hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o077)
        if foreign or not stat.S_ISDIR(status.st_mode):
            return
        for own in (mark, lock):
            as_it_is(own)
        with FileLock(lock, timeout=0):
            for name in filter(SCRATCH_FILE.fullmatch, os.listdir(folder)):
                os.unlink(os.path.join(folder, name))
            os.unlink(mark)
        with suppress(FileNotFoundError):  # as on Windows, where the lock goes with its release
            os.unlink(lock)
        os.rmdir(folder)


@problem_if_unreadable
def playable_video(file: MediaFile, folder: str) -> str:
    """The path of the video in a form that browsers play, H.264 in MP4, in this folder."""
    target = os.path.join(folder, f"{file.device}-{file.inode}-{file.mtime_ns}.mp4")
    part = target + ".part"
    size = f"scale='trunc(min(1,{BROWSER_VIDEO_SIDE}/max(iw*sar,ih))*iw*sar/2)*2':"
    size += f"'trunc(min(1,{BROWSER_VIDEO_SIDE}/max(iw*sar,ih))*ih/2)*2',setsar=1"
    video = ["-map", "0:V:0", "-map", "0:a:0?", "-vf", size, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "22"]
    rest = ["-pix_fmt", "yuv420p", "-c:a", "aac", "-ac", "2", "-movflags", "+faststart", "-f", "mp4", f"file:{part}"]
    with opened_unchanged(file):
        _, said = run_ffmpeg("-nostats", "-y", *video_input(file.path), *video, *rest)
    try:
        video_stream(part)  # a disk that is full leaves half a file
    except ValueError:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise ValueError(f"cannot be converted: {last_words(said, file.path)}") from None
    os.replace(part, target)
    return target


# ── the review: what is on the page, and what a person has chosen ──

# What the page can ask for, the first of each by default. Sorts and kinds with their words on the page.
SORTS: dict[str, tuple[str, Callable[[AnyGroup], Any]]] = {
    "space": ("space", lambda group: -recoverable_bytes(group)),
    "folder": ("folder", lambda group: os.path.dirname(group.replicas[0].file.path)),
    "copies": ("number of copies", lambda group: -len(group.replicas)),
}
KINDS = {"both": "images and videos", "image": "images", "video": "videos"}
VIEWS = "open", "skipped"
STEPS = "at", "after", "before"


class Rejected(Exception):  # noqa: N818 (it is an answer)
    """A request that is invalid or comes too late, as an HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Review(Session):
    """Groups, and what was chosen for each. All numbers, paths and words of the page are made here.

    Any thread may call it. Only one at a time moves files; others that want to are told so.
    """

    def __init__(self, findings: Findings, taken: Iterable[str], pool: Pool, page_size: int) -> None:
        super().__init__(findings, taken, pool)
        self.page_size = page_size
        self.choices = [suggested(group, self.scoring) for group in self.groups]
        self.decisions = list(decisions_for(self.groups, self.scoring))  # each has a claim to its target
        self.orders: dict[str, dict[int, int]] = {}  # the groups from first to last, and the place of each
        for name, (_, key) in SORTS.items():
            order = sorted(range(len(self.groups)), key=lambda number: key(self.groups[number]))
            self.orders[name] = {number: place for place, number in enumerate(order)}
        self.revisions = [0 for _ in self.groups]  # raised when something else would happen than the page says
        self.shown: set[int] = set()  # on a page, so far: only these can be acted on
        self.under_way: frozenset[int] = frozenset()  # groups whose files are being moved
        self.result: dict[str, Any] | None = None  # of the last confirmation or undo; only ever replaced
        self.failed = False  # something has, so that it is not all as the page said
        self.moving = threading.Lock()  # held while files move, and from the end on
        self.stopped = False

    # ── what the browser asks ──

    def page(self, sort: str, kind: str, view: str, at: int | None, step: str) -> dict[str, Any]:
        """The groups from, after or before the one with this number, in this order, and where in all that is."""
        with self.lock:
            places = self.orders[sort]
            place = places.get(-1 if at is None else at, -1)
            listed = self.listed(kind, view, sort)
            ahead = sum(places[number] < place + (step == "after") for number in listed)
            start = max(0, ahead - self.page_size) if step == "before" else ahead
            if start >= len(listed):
                start = max(0, len(listed) - self.page_size)
            numbers = listed[start : start + self.page_size]
            self.shown |= set(numbers)
            self.decide_again(numbers)
            page = -(-start // self.page_size) + 1
            return {
                "groups": [self.group_view(number) for number in numbers],
                "page": page,
                "pages": page - 1 + max(1, -(-(len(listed) - start) // self.page_size)),
                "first": start + 1 if numbers else 0,
                **self.totals(kind, view),
                "result": self.result,
                "moving": self.progress if self.moving.locked() else None,
            }

    def listed(self, kind: str, view: str, sort: str = "space") -> list[int]:
        """The groups that are asked for, in this order: not those that are done."""
        return [
            number
            for number in self.orders[sort]
            if kind in ("both", self.groups[number].kind)
            and number not in self.done
            and (number in self.skipped) == (view == "skipped")
        ]

    def totals(self, kind: str, view: str) -> dict[str, Any]:
        """What is left of what is asked for, how much is skipped, and whether anything can be undone."""
        with self.lock:
            listed = self.listed(kind, view)
            frees = sum(self.decisions[number].frees for number in listed)
            files = sum(len(self.groups[number].replicas) for number in listed)
            return {
                "left": {"groups": len(listed), "files": files, "bytes": frees},
                "skipped": len(self.skipped),
                "undo": bool(self.batches),
            }

    def group_view(self, number: int) -> dict[str, Any]:
        """What the page shows of a group before anybody has opened its files. All names are printable."""
        group, choice, decision = self.groups[number], self.choices[number], self.decisions[number]
        root, replicas = self.scoring.root, []
        for place, replica in enumerate(group.replicas):
            folder, name = os.path.split(replica.file.path)
            width, height, seconds = dimensions_of(replica)
            replicas.append(
                {
                    "alike": look_alike(group, place),
                    "name": printable(name),
                    "folder": path_text(folder, root),
                    "bytes": replica.file.size,
                    "width": width,
                    "height": height,
                    "seconds": seconds,
                    "modified": local_time(replica.file.mtime_ns),
                }
            )
        return {
            "number": number,
            "revision": self.revisions[number],
            "kind": group.kind,
            "keeper": group.replicas.index(decision.keeper),
            "keep": sorted(group.replicas.index(each) for each in (decision.keeper, *decision.stays)),
            "name": choice.named,
            "folder": choice.placed,
            "named": decision.named,
            "placed": decision.placed,
            "skipped": number in self.skipped,
            "replicas": replicas,
            "keeps": path_text(decision.keeper.file.path, root),
            "target": path_text(decision.target, root) if decision.is_renamed else "",
            "stays": [path_text(each.file.path, root) for each in decision.stays],
            "trash": [path_text(each.file.path, root) for each in decision.trash],
            "why": printable(decision.reasons[0]),
            "loses": loss_texts(decision, root),
            "bytes": decision.frees,
        }

    def choose(self, number: int, choice: Choice) -> bool:
        """Take a choice as things are now; whether something else than before comes of it."""
        self.scoring.taken[os.path.normcase(self.decisions[number].target)] -= 1  # no group is in its own way
        decision = decide(self.groups[number], self.scoring, choice)
        self.scoring.taken[os.path.normcase(decision.target)] += 1
        changed = (choice, decision) != (self.choices[number], self.decisions[number])
        self.choices[number], self.decisions[number] = choice, decision
        self.revisions[number] += changed
        return changed

    def decide_again(self, numbers: Iterable[int]) -> list[int]:
        """Which of these groups now come to something else, as a name has been taken or become free."""
        still_open = [number for number in numbers if number not in self.done | self.under_way]
        return [number for number in still_open if self.choose(number, self.choices[number])]

    def set_choice(self, number: int, choice: Choice, skipped: bool, revision: int | None = None) -> dict[str, Any]:
        """Take what was chosen for a group on the page, when that was this revision; the group as it is then.

        With it come `others` that were on a page and come to something else by that.
        """
        with self.lock:
            self.check_open({number: revision})
            target = self.decisions[number].target
            self.choose(number, choice)
            if skipped != (number in self.skipped):
                self.skipped ^= {number}
                self.revisions[number] += 1
            others: list[int] = []
            if self.decisions[number].target != target:
                renamed = (each for each in self.shown if each != number and self.decisions[each].is_renamed)
                others = self.decide_again(renamed)
            return self.group_view(number) | {"others": [self.group_view(other) for other in others]}

    def check_open(self, revisions: Mapping[int, int | None]) -> None:
        """Rejected if one of these groups was on no page, is done, or was on the page in another revision."""
        for number, revision in revisions.items():
            if number not in self.shown:
                raise Rejected(400, f"group {number} has not been on a page")
            if number in self.done or number in self.under_way:
                raise Rejected(409, "this has been confirmed already, perhaps in another tab")
            if revision not in (None, self.revisions[number]):
                raise Rejected(409, "something else has been chosen since, perhaps in another tab: look once more")

    # ── what moves files ──

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Move files. Rejected if somebody else does."""
        if not self.moving.acquire(blocking=False):
            raise Rejected(409, "files are being moved already, or idem is stopping")
        try:
            yield
        finally:
            self.moving.release()

    def confirm(self, choices: Mapping[int, Choice], revisions: Mapping[int, int] | None = None) -> dict[str, Any]:
        """Act on these groups as chosen, when the page had these revisions, in one batch; what became of it."""
        with self.alone():
            with self.lock:
                self.check_open(revisions or dict.fromkeys(choices))
                for number, choice in choices.items():
                    if choice != self.choices[number]:
                        self.choose(number, choice)
                    self.skipped.discard(number)
                decisions = {number: self.decisions[number] for number in choices}
                self.under_way = frozenset(choices)
            try:
                batch = self.act(decisions)
            finally:
                self.under_way = frozenset()
            self.failed |= bool(batch.error)
            self.result = self.result_view(batch.outcome, batch.error)
            return self.result

    def undo(self) -> dict[str, Any]:
        """Put the last batch back; what became of it."""
        with self.alone():
            with self.lock:
                if not self.batches:
                    raise Rejected(409, "there is nothing to undo")
                batch = self.batches[-1]
                self.progress = (0, 0)
            told: list[Outcome] = []
            try:
                outcome = undo(self.scoring.root, batch.number, told.append)
            except IdemError as failure:
                self.failed = True
                self.result = self.result_view(functools.reduce(Outcome.__add__, told, Outcome()), str(failure))
                return self.result
            with self.lock:
                self.reopen(batch, outcome)
                for number in batch.groups:
                    self.choose(number, self.choices[number])
                self.result = self.result_view(outcome, "") | {"groups": batch.groups}
            return self.result

    def result_view(self, outcome: Outcome, error: str) -> dict[str, Any]:
        """What was done, in numbers and in words."""
        root = self.scoring.root
        return {
            "trashed": len(outcome.trashed),
            "renamed": len(outcome.renamed),
            "companions": len(outcome.companions),
            "returned": len(outcome.returned),
            "freed": outcome.freed,
            "refused": [{"path": path_text(each.path, root), "reason": each.reason} for each in outcome.refused],
            "lines": outcome_lines(replace(outcome, refused=()), root),
            "error": error,
            "undo": bool(self.batches),
        }

    def stop(self) -> None:
        """Wait for moves that are under way; after that nothing is moved any more."""
        while not self.stopped and not self.moving.acquire(timeout=0.2):  # somebody else may have stopped it
            pass
        self.stopped = True

    # ── which file ──

    def file(self, group: int, replica: int) -> MediaFile:
        """The file with these numbers, where it is now. Rejected if there is none."""
        with self.lock:
            if group not in self.shown or not 0 <= replica < len(self.groups[group].replicas):
                raise Rejected(404, "there is no such picture")
            file = self.groups[group].replicas[replica].file
            return self.now.get(file, file)

    def wait_for_moves(self) -> None:
        """Wait until the moves that are under way are over, but not for ever."""
        deadline = time.monotonic() + TASK_TIMEOUT
        while self.moving.locked() and not self.stopped and time.monotonic() < deadline:
            time.sleep(WORKER_POLL / 10)  # to take the lock would keep others from moving files


def parsed_choice(value: Any, review: Review, also: AbstractSet[str] = frozenset()) -> tuple[int, Choice, int]:
    """The group, the choice and the revision that the browser sends. Rejected if one is missing or invalid."""

    def is_number(number: Any, below: int) -> bool:
        return type(number) is int and 0 <= number < below

    needed = {"group", "revision", "keep"}
    if not isinstance(value, dict) or not needed <= value.keys() <= needed | {"name", "folder"} | also:
        raise Rejected(400, "a choice has a group, its revision, a list of replicas to keep, and whose name and folder")
    group, revision, keep = (value[each] for each in ("group", "revision", "keep"))
    if type(revision) is not int:
        raise Rejected(400, "a revision is a number")
    if not is_number(group, len(review.groups)):
        raise Rejected(400, "there is no such group")
    copies = len(review.groups[group].replicas)
    valid = isinstance(keep, list) and all(is_number(each, copies) for each in keep)
    if not valid or not keep or len(set(keep)) < len(keep):
        raise Rejected(400, f"the list of what to keep of group {group} must name at least one of its replicas, once")
    named, placed = value.get("name"), value.get("folder")
    if not all(each is None or is_number(each, copies) for each in (named, placed)):
        raise Rejected(400, f"name and folder of group {group} must be those of one of its replicas")
    return group, Choice(frozenset(keep), named, placed), revision


def parsed_choices(body: dict[str, Any], review: Review) -> tuple[dict[int, Choice], dict[int, int]]:
    """The choices and the revisions of a confirmed page, by group. Rejected if one is missing or invalid."""
    listed = body.get("groups")
    if body.keys() != {"groups"} or not isinstance(listed, list) or not 0 < len(listed) <= review.page_size:
        raise Rejected(400, f"a page has 1 to {review.page_size} groups")
    parsed = [parsed_choice(each, review) for each in listed]
    if len({group for group, _, _ in parsed}) < len(parsed):
        raise Rejected(400, "a group was named twice")
    return {group: choice for group, choice, _ in parsed}, {group: revision for group, _, revision in parsed}


# ── the server ──

FIRST_PORT = 5757
PORTS_TRIED = 100
MOST_CONNECTIONS = 64  # a browser has 6; each has a thread, and with a video a file, and macOS allows 256 of these
CONNECTION_POLL = 0.1  # s, while there are too many
MOST_BYTES_POSTED = 1_000_000
MOST_BYTES_DRAINED = 64_000_000  # of a request that is refused, and
SECONDS_DRAINED = 5  # at most: a client that is cut off while it sends would not see why
SOCKET_TIMEOUT = 120  # s without a byte
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FOR_GOOD = "private, max-age=86400, immutable"  # the address holds a token of this run


class Connections:
    """The open connections of a server, oldest first. Any thread may call it.

    There are at most MOST_CONNECTIONS. When one more comes, the oldest of those that have sent no whole request yet
    is closed. While all are being answered, newcomers wait in the queue of the system.
    """

    def __init__(self) -> None:
        self.open: dict[socket.socket, str] = {}  # "asking", "answered" once its whole request is there, or "closed"
        self.changed = threading.Condition()  # for the above

    def has_room(self) -> bool:
        """Whether one more may come. If there is no room, some is made, which may take a moment."""
        with self.changed:
            if len(self.open) >= MOST_CONNECTIONS:
                self.close_oldest()
            return len(self.open) < MOST_CONNECTIONS

    def close_oldest(self) -> None:
        """Close the oldest that has sent no whole request yet; wait a moment until its thread, or another, is over."""
        with self.changed:
            oldest = next((each for each, state in self.open.items() if state == "asking"), None)
            if oldest:
                self.open[oldest] = "closed"  # and what has been read of its request counts for nothing
                with suppress(OSError):  # its client was faster
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
            self.changed.wait(CONNECTION_POLL)

    def admit(self, connection: socket.socket) -> None:
        with self.changed:
            self.open[connection] = "asking"

    def answer(self, connection: socket.socket) -> None:
        """Its whole request is there. Rejected if it has been closed meanwhile."""
        with self.changed:
            if self.open[connection] == "closed":
                raise Rejected(408, "there are too many connections: this one has been closed")
            self.open[connection] = "answered"

    def drop(self, connection: socket.socket) -> None:
        with self.changed:
            self.open.pop(connection, None)
            self.changed.notify_all()


def has_left(connection: socket.socket) -> bool:
    """Whether the client has closed its side of the connection: nobody waits for an answer."""
    try:
        return bool(wait([connection], 0)) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):  # it has broken, or is closed
        return True


AT_ONCE, SOON, LATER = 0, 1, 2  # how urgent something is


class RenderQueue:
    """Has workers make what is asked for: the most urgent first, and of these the oldest. Any thread may call it.

    What several ask for is made once. Nothing is made for clients that have left before it was their turn.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.numbers = count()
        self.waiting: list[tuple[int, int]] = []  # turns
        self.at_work: dict[object, Future[Any]] = {}
        self.changed = threading.Condition()  # for all of the above

    def made(
        self, make: Callable[..., R | Problem], files: Sequence[MediaFile], priority: int, client: socket.socket
    ) -> R:
        """What `make` makes of the files. Rejected if that cannot be, or the client has left."""
        key, mine = (make, *files), None
        with self.changed:
            turn = priority, next(self.numbers)
            self.waiting.append(turn)
            try:
                while key not in self.at_work:
                    if has_left(client):
                        raise Rejected(408, "nobody waits for it any more")
                    if turn == min(self.waiting) and len(self.at_work) < self.pool.jobs:
                        mine = self.pool.submit(make, *files, seconds=sum(map(seconds_for, files)))
                        self.at_work[key] = mine
                    else:
                        self.changed.wait(WORKER_POLL)
                future = self.at_work[key]
            finally:
                self.waiting.remove(turn)
                self.changed.notify_all()
        try:
            return result_of(future)
        finally:
            if mine:
                with self.changed:
                    del self.at_work[key]
                    self.changed.notify_all()


def result_of(future: Future[R | Problem]) -> R:
    """What a worker has made. Rejected with the reason if that could not be."""
    if lost := future.exception():
        raise Rejected(415, str(lost))
    result = future.result()
    if isinstance(result, Problem):
        raise Rejected(415, result.reason)
    return result


@dataclass(frozen=True, slots=True)
class Server:
    """What the web application works with."""

    review: Review
    queue: RenderQueue
    converter: Pool  # of one process, because converting takes long
    folder: str  # for converted videos
    token: str
    port: int
    finish: Callable[[], None]  # called when the browser says Done, and has its answer
    connections: Connections = field(default_factory=Connections)
    conversions: dict[MediaFile, Future[str | Problem]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)  # for the conversions


def check_request(request: Request, server: Server) -> None:
    """Rejected unless the request comes from the page that idem has opened, in a browser on this computer.

    The Host header keeps out names that were pointed to this computer (DNS rebinding), the token everybody who does
    not know the address, and Origin, Sec-Fetch-Site and the content type pages of other sites, which a browser
    would let send a request blindly. A request that does not say how long it is, or is too long, is refused before
    any of its body is read: werkzeug crashes Python over a body in chunks that ends early.
    """
    hosts = {f"127.0.0.1:{server.port}", f"localhost:{server.port}"}
    host = request.headers.get("Host", "")
    if host not in hosts:
        raise Rejected(403, "this server answers to its own address only")
    given = request.path.split("/")[1].encode("utf-8", "replace")
    if not hmac.compare_digest(given, server.token.encode()):
        raise Rejected(403, "the address lacks the token that idem printed")
    reading = request.method in ("GET", "HEAD")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in {f"http://{each}" for each in hosts}:
        raise Rejected(403, "the request comes from another site")
    opening = reading and request.path == f"/{server.token}/" and request.headers.get("Sec-Fetch-Dest") == "document"
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not opening:
        raise Rejected(403, "the request comes from another site")
    if not reading and request.mimetype != "application/json":
        raise Rejected(403, "only JSON is taken")
    length = request.environ.get("CONTENT_LENGTH") or ("0" if reading else "")
    if "Transfer-Encoding" in request.headers or not re.fullmatch("[0-9]{1,18}", length):
        raise Rejected(400, "a request must say once, in bytes, how long it is")
    if int(length) > MOST_BYTES_POSTED:
        raise Rejected(400, f"more than {readable_size(MOST_BYTES_POSTED)}")


def posted(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Rejected when it is none."""
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError):
        raise Rejected(400, "this is no JSON") from None
    if not isinstance(body, dict):
        raise Rejected(400, "this is no JSON object")
    return body


def review_app(server: Server) -> Flask:
    """The web application. Every request is checked in one place, and every answer gets the same headers."""
    from flask import Flask, jsonify, request
    from werkzeug.exceptions import ClientDisconnected, HTTPException
    from werkzeug.routing import BaseConverter

    class Number(BaseConverter):
        regex = r"\d{1,9}"

        def to_python(self, value: str) -> int:
            return int(value)

    app = Flask("idem", root_path=HERE, static_folder=None, template_folder="templates")
    app.url_map.converters["number"] = Number

    @app.before_request
    def before() -> None:
        check_request(request, server)
        try:
            request.get_data()  # kept for those who ask for it again
        except (OSError, ClientDisconnected):
            raise Rejected(400, "the request breaks off") from None
        server.connections.answer(request.environ["werkzeug.socket"])

    @app.after_request
    def after(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(Rejected)
    def rejected(error: Rejected) -> Any:
        return jsonify(error=str(error)), error.status

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Any:
        return jsonify(error=error.name), error.code

    add_page(app, server)
    add_actions(app, server)
    add_pictures(app, server)
    add_videos(app, server)
    return app


ASKED = {"sort": tuple(SORTS), "kind": tuple(KINDS), "view": VIEWS, "step": STEPS}


def add_page(app: Flask, server: Server) -> None:
    """The page, what it looks like, and the groups on it."""
    from flask import jsonify, render_template, request, send_from_directory

    review = server.review

    @app.get(f"/{server.token}/")
    def page() -> Any:
        root, home = review.scoring.root, os.path.realpath(os.path.expanduser("~"))
        library = printable(os.path.join("~", relative(root, home)) if is_inside(root, home) else root)
        mixed = len({group.kind for group in review.groups}) > 1
        return render_template("review.html", library=library, sorts=SORTS, kinds=KINDS, mixed=mixed)

    @app.get(f"/{server.token}/static/<name>")
    def static(name: str) -> Any:
        return send_from_directory(os.path.join(HERE, "static"), name)

    @app.get(f"/{server.token}/groups")
    def groups() -> Any:
        sort, kind, view, step = (asked_for(request, name) for name in ASKED)
        return jsonify(review.page(sort, kind, view, request.args.get("at", type=int), step))

    @app.get(f"/{server.token}/progress")
    def progress() -> Any:
        moving = review.progress if review.moving.locked() else None
        return jsonify(moving=moving, result=review.result)


def asked_for(request: Request, name: str) -> str:
    """The value of this part of the address, by default the first of those that are known. Rejected for others."""
    value = request.args.get(name, ASKED[name][0])
    if value not in ASKED[name]:
        raise Rejected(400, f"{name} is one of {', '.join(ASKED[name])}")
    return value


def add_actions(app: Flask, server: Server) -> None:
    """What the browser can have done."""
    from flask import jsonify, request

    review = server.review

    @app.post(f"/{server.token}/choose")
    def choose() -> Any:
        body = posted(request)
        number, choice, revision = parsed_choice(body, review, {"skipped"})
        if type(body.get("skipped")) is not bool:
            raise Rejected(400, "skipped must be true or false")
        group = review.set_choice(number, choice, body["skipped"], revision)
        return jsonify(group=group, totals=review.totals(asked_for(request, "kind"), asked_for(request, "view")))

    @app.post(f"/{server.token}/confirm")
    def confirm() -> Any:
        return jsonify(review.confirm(*parsed_choices(posted(request), review)))

    @app.post(f"/{server.token}/undo")
    def undo_last() -> Any:
        posted(request)
        return jsonify(review.undo())

    @app.post(f"/{server.token}/done")
    def done() -> Any:
        posted(request)
        review.stop()
        lines = "Nothing was moved."
        if review.total().moved:
            lines = summary(review.total(), len(review.skipped), review.scoring.root, "page")
        response: Response = jsonify(lines=lines)
        response.call_on_close(server.finish)
        return response


def add_pictures(app: Flask, server: Server) -> None:
    """Pictures and metadata, made by workers, by the numbers of group and replica alone."""
    from flask import Response, jsonify, request

    def made(make: Callable[..., R | Problem], priority: int, group: int, *replicas: int) -> R:
        def files_now() -> list[MediaFile]:
            return [server.review.file(group, replica) for replica in replicas]

        client, files = request.environ["werkzeug.socket"], files_now()
        try:
            return server.queue.made(make, files, priority, client)
        except Rejected:
            server.review.wait_for_moves()  # one of them may just have been moved
            if (now := files_now()) == files:
                raise
            return server.queue.made(make, now, priority, client)

    def sent(picture: Rendering) -> Response:
        response = Response(picture.data, mimetype="image/jpeg")
        response.headers["Cache-Control"] = FOR_GOOD
        if picture.note:
            response.headers["Idem-Note"] = picture.note
        return response

    @app.get(f"/{server.token}/thumbnail/<number:group>/<number:replica>")
    def thumbnail(group: int, replica: int) -> Any:
        return sent(made(thumbnail_of, LATER, group, replica))

    @app.get(f"/{server.token}/preview/<number:group>/<number:replica>")
    def preview(group: int, replica: int) -> Any:
        return sent(made(preview_of, SOON, group, replica))

    @app.get(f"/{server.token}/difference/<number:group>/<number:one>/<number:other>")
    def difference(group: int, one: int, other: int) -> Any:
        return sent(made(difference_of, AT_ONCE, group, one, other))

    @app.get(f"/{server.token}/facts/<number:group>/<number:replica>")
    def facts(group: int, replica: int) -> Any:
        try:
            details = made(details_of, AT_ONCE, group, replica)
        except Rejected as error:
            if error.status != 415:
                raise
            return jsonify(reason=str(error))
        response = jsonify(asdict(details))
        response.headers["Cache-Control"] = FOR_GOOD
        return response


def add_videos(app: Flask, server: Server) -> None:
    """Videos in parts, so that the browser can seek: as they are where it knows the format, else converted."""
    from flask import jsonify, request

    def video_file(group: int, replica: int) -> MediaFile:
        file = server.review.file(group, replica)
        if kind_of(file) != "video":
            raise Rejected(404, "there is no such video")
        return file

    def conversion(group: int, replica: int) -> Future[str | Problem]:
        """The conversion of a video, started when it is first asked for, or was lost. The newest comes first."""
        file, asked = video_file(group, replica), server.conversions
        with server.lock:
            if file not in asked or (asked[file].done() and asked[file].exception()):
                asked[file] = server.converter.submit(
                    playable_video, file, server.folder, seconds=SECONDS_TO_CONVERT, priority=-len(asked)
                )
            return asked[file]

    @app.get(f"/{server.token}/video/<number:group>/<number:replica>")
    def video(group: int, replica: int) -> Any:
        return in_parts(video_file(group, replica), request)

    @app.get(f"/{server.token}/conversion/<number:group>/<number:replica>")
    def converting(group: int, replica: int) -> Any:
        asked = conversion(group, replica)
        try:
            ready = asked.done() and bool(result_of(asked))
            return jsonify(ready=ready, reason="")
        except Rejected as error:
            return jsonify(ready=True, reason=str(error))

    @app.get(f"/{server.token}/converted/<number:group>/<number:replica>")
    def converted(group: int, replica: int) -> Any:
        path = result_of(conversion(group, replica))
        try:
            return in_parts(as_it_is(path), request)
        except (OSError, ValueError) as error:
            raise Rejected(415, reason_of(error)) from None


def opened_video(file: MediaFile) -> tuple[BinaryIO, str]:
    """The video's file and its type. Rejected when browsers do not play it."""
    try:
        stream = open(file.path, "rb")  # noqa: SIM115 (the response closes it)
    except OSError as error:
        raise Rejected(415, reason_of(error)) from None
    try:
        check_unchanged(file, stream)
        if kind := video_type(stream):
            return stream, kind
        raise ValueError("browsers do not play this format")
    except (OSError, ValueError) as error:
        stream.close()
        raise Rejected(415, reason_of(error)) from None


def in_parts(file: MediaFile, request: Request) -> Response:
    """The video, or the part of it that the browser asks for. Rejected when browsers do not play it."""
    from flask import Response

    asked = request.range if request.range and len(request.range.ranges) == 1 else None
    span = asked.range_for_length(file.size) if asked else None
    if asked and span is None:
        headers = {"Content-Range": f"bytes */{file.size}"}
        return Response('{"error": "there is no such part"}', 416, headers, mimetype="application/json")
    stream, kind = opened_video(file)
    first, end = span or (0, file.size)
    response = Response(blocks(stream, first, end), 206 if span else 200, mimetype=kind)
    response.call_on_close(stream.close)
    response.headers.update({"Accept-Ranges": "bytes", "Content-Length": str(end - first), "Cache-Control": FOR_GOOD})
    if span:
        response.headers["Content-Range"] = f"bytes {first}-{end - 1}/{file.size}"
    return response


def blocks(stream: BinaryIO, first: int, end: int) -> Iterator[bytes]:
    """The bytes of the file from the first to before the end."""
    stream.seek(first)
    while first < end and (block := stream.read(min(READ_BLOCK, end - first))):
        first += len(block)
        yield block


def bound_socket() -> socket.socket:
    """A socket that listens on this computer only, on FIRST_PORT or the next that is free. IdemError without one."""
    reason = ""
    for port in (*range(FIRST_PORT, FIRST_PORT + PORTS_TRIED), 0):
        bound = socket.socket()
        if os.name == "nt":  # where the option for others would let two programs have one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
            bound.listen(128)
        except OSError as error:
            bound.close()
            reason = reason_of(error)
        else:
            return bound
    raise IdemError(f"cannot listen on 127.0.0.1: {reason}")


def request_handler(connections: Connections) -> type[WSGIRequestHandler]:
    """What reads requests: silent in the terminal, and answering those that are no good HTTP like all others."""
    from werkzeug.serving import WSGIRequestHandler

    class Handler(WSGIRequestHandler):
        timeout = SOCKET_TIMEOUT
        error_content_type = "text/plain"
        error_message_format = "%(message)s"

        def log(self, *_: Any) -> None:
            """Nothing to say."""

        def log_request(self, *_: Any) -> None:
            """Nothing to say, and no need to understand the address for it."""

        def version_string(self) -> str:
            return "idem"

        def make_environ(self) -> dict[str, Any]:
            environ = super().make_environ()
            lengths = self.headers.get_all("Content-Length", [])
            environ |= {"wsgi.input": self.sent, "CONTENT_LENGTH": ",".join(lengths).strip(" \t")}
            environ.pop("wsgi.input_terminated", None)
            return environ

        def run_wsgi(self) -> None:
            self.sent, self.rfile = self.rfile, io.BytesIO()  # werkzeug would read on after the answer, with no limit
            try:
                self.make_environ()
            except ValueError:  # the address is none
                self.send_error(400)
            else:
                super().run_wsgi()
            finally:
                self.rfile = self.sent  # which `finish` closes

        def send_error(self, *args: Any, **kwargs: Any) -> None:
            self.headers_to_add = HEADERS
            self.close_connection = True
            super().send_error(*args, **kwargs)

        def end_headers(self) -> None:
            for item in getattr(self, "headers_to_add", {}).items():
                self.send_header(*item)
            super().end_headers()

        def finish(self) -> None:
            if connections.open[self.connection] != "answered":
                drain(self.connection)
            super().finish()

    return Handler


def drain(connection: socket.socket) -> None:
    """Read on after the answer to a request that was refused: a connection closed before that takes the answer along.

    Not for ever: MOST_BYTES_DRAINED, SECONDS_DRAINED.
    """
    left, deadline = MOST_BYTES_DRAINED, time.monotonic() + SECONDS_DRAINED
    with suppress(OSError):  # the client has left
        connection.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            connection.settimeout(seconds)
            if not (block := connection.recv(READ_BLOCK)):
                return
            left -= len(block)


def http_server(app: Flask, bound: socket.socket, connections: Connections) -> BaseWSGIServer:
    """The server of this application on this socket, with a thread for each connection."""
    from werkzeug.serving import ThreadedWSGIServer

    class Listening(ThreadedWSGIServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            if not connections.has_room():
                raise OSError("all connections are being answered")  # which has it tried again
            try:
                connection, address = super().get_request()
            except OSError:  # out of descriptors: trying again at once would take all of a core
                connections.close_oldest()
                raise
            connections.admit(connection)
            return connection, address

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            connections.drop(request)

    host, port = bound.getsockname()
    return Listening(host, port, app, request_handler(connections), fd=bound.fileno())


@contextmanager
def serving(review: Review, finish: Callable[[], None]) -> Iterator[str]:
    """The page's address, while it is served."""
    with ExitStack() as stack:
        bound = stack.enter_context(closing(bound_socket()))
        folder = stack.enter_context(scratch_folder())
        converter = stack.enter_context(closing(Pool(1, threaded=True)))
        token, port = secrets.token_urlsafe(24), bound.getsockname()[1]
        server = Server(review, RenderQueue(review.pool), converter, folder, token, port, finish)
        listening = http_server(review_app(server), bound, server.connections)
        stack.callback(listening.server_close)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        with interrupts_held_back():  # the thread, and all it starts, inherit that: Ctrl-C is for the main one
            thread.start()
        stack.callback(listening.shutdown)
        yield f"http://127.0.0.1:{port}/{token}/"


def open_in_browser(address: str) -> None:
    """Show the page in the user's browser, if there is one with a screen; the address is printed in any case."""
    screens = "DISPLAY", "WAYLAND_DISPLAY", "BROWSER"
    if sys.platform == "linux" and not any(os.environ.get(name) for name in screens):
        return  # a browser for terminals would take this one
    with interrupts_held_back():  # the thread inherits that: Ctrl-C is for the main one
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Command line
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

MOST_ON_PAGE = 500
GROUPS_ON_PAGE = 10


class Parser(argparse.ArgumentParser):
    """Argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise IdemError(message)

    def print_help(self, file: object = None) -> None:
        show(self.format_help(), end="")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="idem",
        usage="python idem.py DIR [options]",
        description="Find copies of the same photo or video: other resolution, compression or format. Deletes nothing.",
        epilog="example:\n  python idem.py ~/Photos --delta 500kb --limit 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", help="the library: a folder, with all folders in it")
    what = parser.add_argument_group("what to report")
    what.add_argument("-v", "--video", action="store_true", help="videos, too (needs ffmpeg)")
    what.add_argument("-e", "--exact", action="store_true", help="only images and videos that are equal byte for byte")
    what.add_argument(
        "-t",
        "--threshold",
        type=whole_number(0, MAX_THRESHOLD),
        metavar="N",
        help="0 (default) finds copies; 1 to 64 also pictures whose hashes differ in up to N bits: look-alikes",
    )
    what.add_argument(
        "-d",
        "--delta",
        type=size_argument,
        metavar="SIZE",
        help="only groups whose largest and smallest file differ by SIZE or more: 100, 50kb, 2mb, 1.5gb",
    )
    what.add_argument("-l", "--limit", type=whole_number(1), metavar="N", help="only the N groups with most to recover")
    for option, noun, about in (
        ("--ignore", "WORD", "a word that says nothing in names and folders"),
        ("--prefer", "FOLDER", "of copies that are equally good keep the one in this folder of DIR"),
        ("--protect", "FOLDER", "move and rename nothing in this folder of DIR"),
    ):
        again = "; may be given more than once"
        what.add_argument(option, action="append", default=[], metavar=noun, help=about + again)
    act = parser.add_argument_group("what to do, instead of printing the groups")
    act.add_argument("-r", "--review", action="store_true", help="see the groups in the browser, and decide")
    act.add_argument("-i", "--interactive", action="store_true", help="decide in the terminal, group by group")
    act.add_argument("--undo", action="store_true", help="put the files of the last batch of moves back")
    act.add_argument("--verify-trash", action="store_true", help="check that all in the trash has a copy outside of it")
    act.add_argument("--fast", action="store_true", help="with --verify-trash: believe the cache, read nothing anew")
    how = parser.add_argument_group("how")
    how.add_argument("-c", "--cache", metavar="DIR", help=f"keep fingerprints here, not in DIR/{CACHE_FOLDER}")
    how.add_argument(
        "-j", "--jobs", type=whole_number(1, MAX_WORKERS), metavar="N", help="worker processes (default: one per core)"
    )
    how.add_argument(
        "--page-size",
        type=whole_number(1, MOST_ON_PAGE),
        default=GROUPS_ON_PAGE,
        metavar="N",
        help=f"groups on a page of --review (default: {GROUPS_ON_PAGE})",
    )
    how.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    return parser


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= (high or int(text)):
            limits = f"from {low} to {high}" if high else f"of {low} or more"
            raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a whole number {limits}")
        return int(text)

    return parse


SIZE_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
SIZE_UNITS |= {"t": 10**12, "tb": 10**12}


def size_argument(text: str) -> int:
    """An argparse type: bytes, meant by `100`, `50kb`, `2mb` or `1.5gb` in decimal units."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if not match or match[2] not in SIZE_UNITS:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a size such as 100, 50kb, 2mb or 1.5gb")
    return int(float(match[1]) * SIZE_UNITS[match[2]])


def checked_run(namespace: argparse.Namespace) -> Run:
    """What is asked for, when the folders it names can be used. IdemError otherwise."""
    directory = os.path.expanduser(namespace.directory)  # not every shell does that
    if not os.path.isdir(directory):
        cause = "it is not a folder" if os.path.lexists(directory) else "there is no such folder"
        raise IdemError(f"cannot scan {printable(directory)}: {cause}")
    root = os.path.realpath(directory)
    if any(map(APPLICATION_LIBRARY.fullmatch, root.split(os.sep))):
        raise IdemError(f"cannot scan {printable(directory)}: it belongs to a library of another application")
    cache = os.path.join(root, CACHE_FOLDER)
    for path in (cache, os.path.join(root, TRASH_FOLDER)):
        if os.path.lexists(path) and not (os.path.isdir(path) and os.path.realpath(path) == path):
            raise IdemError(f"cannot use {printable(path)}: it is a link or no folder")
    if namespace.cache is not None:
        cache = os.path.expanduser(namespace.cache)
        if os.path.lexists(cache) and not os.path.isdir(cache):
            raise IdemError(f"cannot use {printable(cache)} as --cache: it is a file")
        try:
            os.makedirs(cache, exist_ok=True)
        except OSError as error:
            raise IdemError(f"cannot use {printable(cache)!r} as --cache: {reason_of(error)}") from None
        cache = os.path.realpath(cache)
    if namespace.exact:
        given = {"--threshold": namespace.threshold, "--delta": namespace.delta, "--video": namespace.video or None}
        if ignored := [name for name, value in given.items() if value is not None]:
            say(f"{' and '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no effect with --exact")
        namespace.threshold = namespace.delta = None
    return Run(
        root=root,
        cache=cache,
        jobs=namespace.jobs or available_cores(),
        mode="exact" if namespace.exact else "videos" if namespace.video else "images",
        threshold=namespace.threshold or 0,
        delta=namespace.delta or 0,
        limit=namespace.limit,
        ignored=frozenset(word for text in namespace.ignore for word in re.findall(r"[^\W\d_]+", comparable(text))),
        json=namespace.json,
        fast=namespace.fast,
        page_size=namespace.page_size,
        preferred=tuple(folder_argument(each, root, "--prefer") for each in namespace.prefer),
        protected=tuple(folder_argument(each, root, "--protect") for each in namespace.protect),
    )


def folder_argument(given: str, root: str, option: str) -> str:
    """The folder of the library that an option names, relative to it or absolute. IdemError when there is none."""
    path = os.path.realpath(os.path.join(root, os.path.expanduser(given)))
    if not given:  # perhaps a variable that is not set: not the whole library
        raise IdemError(f"cannot use an empty name as {option}")
    if not os.path.isdir(path):
        raise IdemError(f"cannot use {printable(given)} as {option}: there is no such folder in {printable(root)}")
    if path != root and not is_inside(path, root):
        raise IdemError(f"cannot use {printable(given)} as {option}: it is not in {printable(root)}")
    return path


def action_of(namespace: argparse.Namespace) -> str:
    """What to do: a key of ACTIONS. IdemError when more than one thing is asked for."""
    asked = [name for name in ACTIONS if getattr(namespace, name.replace("-", "_"), False)]
    if len(asked) > 1:
        raise IdemError(f"choose one of {' and '.join('--' + name for name in asked)}")
    if namespace.fast and asked != ["verify-trash"]:
        raise IdemError("--fast goes with --verify-trash alone")
    if asked and namespace.json:
        raise IdemError(f"--json goes with the report, not with --{asked[0]}")
    return asked[0] if asked else "report"


def available_cores() -> int:
    """The cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


# ── one run at a time ──


@contextmanager
def library_in_use(run: Run, *, moves: bool = False) -> Iterator[None]:
    """Keep other runs away from the library, from all folders above and below it, and from its caches.

    IdemError when one is at work there. Where folders cannot be locked, lock files tell; of those above the library
    only if `moves`: if files are to be moved.
    """
    own = os.path.join(run.root, CACHE_FOLDER)
    above = folders_above(run.root)
    with ExitStack() as held:
        try:
            for folder in above:
                held.enter_context(folder_lock(folder, shared=True))
            held.enter_context(folder_lock(run.root))
        except ValueError as error:
            raise IdemError(str(error)) from None
        for folder in (os.path.join(each, CACHE_FOLDER) for each in above if moves):
            if os.path.isfile(os.path.join(folder, LOCK_FILE)):
                held.enter_context(run_lock(folder))
        for folder in sorted({run.cache, own}):
            if folder == run.cache or os.path.isdir(own) or moves:
                held.enter_context(run_lock(folder))
        yield


def tell_of_interrupted_moves(run: Run) -> None:
    journal = os.path.join(run.root, CACHE_FOLDER, JOURNAL_FILE)
    if os.access(journal, os.R_OK) and was_interrupted(journal):
        say(f"the last moves were interrupted; to put them back: python idem.py {shell_word(run.root)} --undo")


# ── what can be asked for ──


def run_report(run: Run) -> int:
    """Print the copies; the exit status."""
    with library_in_use(run):
        findings = findings_of(run)
        show(json_report(findings) if run.json else text_report(findings), end="\n" if run.json else "")
        if findings.unsummed:
            more = plural(len(findings.unsummed), "more file")
            say(f"The copies are complete. Summing {more} for the checksums that other tools share")
            sum_for_others(run, findings.unsummed)
    return 0


def findings_of(run: Run) -> Findings:
    """What is found, with a word about what was scanned. The caller holds the lock."""
    tell_of_interrupted_moves(run)
    findings = find(run)
    say_what_was_scanned(findings)
    return findings


def run_review(run: Run) -> int:
    """Show the groups in the browser and move what is confirmed there; the exit status."""
    if not can_import("flask"):
        raise IdemError("--review needs Flask: python -m pip install Flask")
    for name in ("templates/review.html", "static/review.css", "static/review.js"):
        path = os.path.join(HERE, *name.split("/"))
        if not os.path.isfile(path):
            raise IdemError(f"--review needs {printable(path)}, which belongs to idem: it is missing")
    with library_in_use(run, moves=True):
        findings = findings_of(run)
        if not findings.groups:
            show(text_report(findings), end="")
            return 0
        finished = threading.Event()
        status = 0
        with ExitStack() as ended:
            pool = ended.enter_context(closing(Pool(run.jobs, threaded=True, silent=True)))
            review = Review(findings, taken_names(run.root), pool, run.page_size)
            try:
                address = ended.enter_context(serving(review, finished.set))
                show_if_read(f"Review the copies at {address}\nCtrl-C here, or Done there, stops idem.")
                open_in_browser(address)
                while not finished.wait(0.5):  # Windows hears of Ctrl-C only in between
                    pass
            except KeyboardInterrupt:
                status = 130
            finally:
                with interrupts_held_back():
                    if review.moving.locked() and not review.stopped:
                        say("finishing the moves that are under way")
                    review.stop()
                    caches_follow(review.history, run.cache, run.root)
                    if review.history:
                        show_if_read("\n" + summary(review.total(), len(review.skipped), run.root, "page"))
                    ended.close()
    return status or int(review.failed or any(outcome.refused for outcome in review.history))


def run_interactive(run: Run) -> int:
    """Ask about every group and move what is answered; the exit status."""
    with library_in_use(run, moves=True):
        findings = findings_of(run)
        if not findings.groups:
            show(text_report(findings), end="")
            return 0
        status = 0
        with closing(Pool(run.jobs, silent=True)) as pool:
            session = Terminal(findings, taken_names(run.root), pool)
            try:
                session.run()
            except (KeyboardInterrupt, Interrupted):
                status = 130
                show_if_read("")
            finally:
                caches_follow(session.history, run.cache, run.root)
                if session.answered:
                    show_if_read(summary(session.total(), len(session.skipped), run.root))
    return status or int(any(outcome.refused for outcome in session.history))


def run_undo(run: Run) -> int:
    """Put the last batch back, and on request what is in the trash beside the journal's word; the exit status."""
    told: list[Outcome] = []
    lost: list[OutputLost] = []  # files go back even if nobody reads that

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        say_so(*outcome_lines(outcome, run.root))

    def say_so(*lines: str) -> None:
        for line in lines:
            try:
                show(line)
            except OutputLost as error:
                lost.append(error)

    with library_in_use(run, moves=True):
        try:
            undone = undo(run.root, tell=tell)
            unlisted, problems = unlisted_in_trash(run.root)
            tell(Outcome(refused=tuple(problems)))
            if undone.batch:
                back, left = len(undone.returned), len(undone.refused)
                say_so(f"{plural(back, 'file')} put back, {left:,} not")
            elif not (undone.refused or unlisted or problems):
                say_so("Nothing to undo.")
            if unlisted and wants_back(unlisted, run.root):
                rest = put_unlisted_back(run.root, unlisted, tell)
                say_so(f"{plural(len(rest.returned), 'file')} put back, {len(rest.refused):,} not")
                unlisted = []
        finally:
            caches_follow(told, run.cache, run.root)
    if lost:
        raise lost[0]
    return int(bool(unlisted) or any(each.refused for each in told))


def wants_back(paths: Sequence[str], root: str) -> bool:
    """Name files that are in the trash, and that the journal says nothing of; whether they are to be put back."""
    show_if_read("In the trash, and not in the journal:")
    for path in paths:
        show_if_read(f"unlisted  {path_text(path, root)}, from {path_text(place_of(path, root), root)}")
    try:
        files = "this file" if len(paths) == 1 else f"these {plural(len(paths), 'file')}"
        return input(f"Put {files} back? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, OSError, ValueError):  # nobody answers, or not in letters
        show_if_read("")
        return False


def run_verify_trash(run: Run) -> int:
    """Say which files of the trash have no match in the library; the exit status."""
    with library_in_use(run):
        tell_of_interrupted_moves(run)
        trash = os.path.join(run.root, TRASH_FOLDER)
        if not os.path.lexists(trash):
            show("There is no trash: nothing to verify.")
            return 0
        if os.path.realpath(trash) != trash or not os.path.isdir(trash):
            raise IdemError(f"cannot verify {printable(trash)}: it is a link or no folder")
        suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        live, trashed = scan(run.root, suffixes), scan(trash, suffixes)
        inodes = {(file.device, file.inode) for file in trashed.files if file.inode}
        others = [file for file in live.files if (file.device, file.inode) not in inodes]  # not a second name of it
        both = replace(live, files=tuple(sorted((*others, *trashed.files), key=lambda file: file.path)))
        unmatched = [*trashed.unreadable, *unverified(run, both, trash)]
        left_out = unchecked(run, trashed, trash)
    for item in (*unmatched, *left_out):
        show(f"{printable(relative(item.path, run.root))}: {item.reason}")
    verified = len(trashed.files) - len({item.path for item in unmatched} & {file.path for file in trashed.files})
    counts = [f"{plural(verified, 'file')} in the trash verified", f"{len(unmatched):,} not"]
    counts += [f"{len(left_out):,} of other kinds not checked"] if left_out else []
    counts += ["by the cache: no fingerprint was made anew"] if run.fast else []
    show(", ".join(counts))
    return 1 if unmatched or left_out else 0


ACTIONS = {
    "report": run_report,
    "review": run_review,
    "interactive": run_interactive,
    "verify-trash": run_verify_trash,
    "undo": run_undo,
}


def show_if_read(text: str) -> None:
    """Print it now; nothing more when nobody reads the output."""
    with suppress(OutputLost):  # its reader has left, or the terminal
        show(text)


# ── the start ──

# By what they are imported as, and what pip calls them.
REQUIRED_MODULES = {"tqdm": "tqdm", "filelock": "filelock"}


def stop_at_signal(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through every `finally`, so that what is done is kept."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run idem with these arguments (default: those of the process) and return the exit status.

    0: done; 1: something failed; 2: it could not be started as asked; 130: interrupted.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 (any of them may be closed)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names must come out whatever the locale, answers come in
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as nohup asks
                signal.signal(getattr(signal, name), stop_at_signal)
    gc.set_threshold(100_000)  # a large library is millions of small objects in no cycles: looking for some is slow
    try:
        if missing := [package for module, package in REQUIRED_MODULES.items() if not can_import(module)]:
            raise IdemError(f"missing {', '.join(missing)}: python -m pip install {' '.join(missing)}")
        namespace = build_parser().parse_args(argv)
        if namespace.directory is None:
            build_parser().print_help()
            return 0
        run = checked_run(namespace)
        return ACTIONS[action_of(namespace)](run)
    except (IdemError, OutputLost, Interrupted) as end:
        if str(end):
            say(f"idem: {end}")
        return end.status
    except KeyboardInterrupt:
        say("idem: interrupted")
        return 130


if __name__ == "__main__":
    on_interrupt = signal.getsignal(signal.SIGINT)  # leave at once, unless it is ignored
    try:
        if on_interrupt != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        exit_status = main()
    except KeyboardInterrupt:
        exit_status = 130
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    sys.exit(exit_status)

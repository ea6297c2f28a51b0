"""The tests of idem, in the order of idem.py. They make their own pictures and run the real thing on them.

python -m pytest test_idem.py -q            everything but the benchmark
python -m pytest test_idem.py -m bench -s   the benchmark: prints timings, asserts nothing about them
"""

from __future__ import annotations

import argparse
import base64
import csv
import ctypes
import dataclasses
import errno
import faulthandler
import functools
import hashlib
import http.client
import importlib
import io
import itertools
import json
import multiprocessing
import os
import random
import re
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
import traceback
import unicodedata
import urllib.request
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote, urlsplit

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # idem forks workers; threads would not survive that

import hypothesis
import imagehash
import numpy as np
import pillow_heif
import pytest
from axe_playwright_python.sync_playwright import Axe
from hypothesis import strategies as st
from PIL import (
    Image,
    ImageChops,
    ImageCms,
    ImageDraw,
    ImageEnhance,
    ImageFilter,
    ImageFont,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
)
from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

import idem
from idem import F, ImageFingerprint, MediaFile, Replica, VideoFingerprint, main

pillow_heif.register_heif_opener()

HERE = Path(__file__).parent
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's own files and signals")
AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may do this")


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Made pictures and ways to run idem on them
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def photo(seed: int = 1, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A picture unlike that of any other seed: coarse colours under a finer texture."""
    return made_photo(seed, size).copy()


@functools.lru_cache(maxsize=128)
def made_photo(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.2)


def save(picture: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "HEIF" if path.suffix.lower() in idem.HEIF_SUFFIXES else None, **options)
    return path


def report(directory: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON that idem prints for the library."""
    capsys.readouterr()
    assert main([str(directory), "--json", *arguments]) == 0
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def groups(directory: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The groups of relative paths that idem finds, each best first."""
    found = report(directory, *arguments, capsys=capsys)
    return [[file["relative"].replace(os.sep, "/") for file in group["files"]] for group in found["groups"]]


def unreadable(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The reasons idem gives, by file name."""
    found = report(directory, capsys=capsys)["unreadable"]
    return {Path(item["path"]).name: item["reason"] for item in found}


def media_file(path: Path) -> MediaFile:
    """The file as a scan sees it."""
    each = path.stat()
    return MediaFile(str(path), each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_dev, each.st_ino)


def fingerprint(path: Path) -> ImageFingerprint:
    result = idem.fingerprint_image(media_file(path))
    assert isinstance(result, ImageFingerprint), result
    return result


def as_replicas(fingerprints: Sequence[F]) -> list[Replica[F]]:
    return [
        Replica(MediaFile(f"/lib/{number:03}/a.jpg", 1000 - number % 5, 0, 0, 1, number), each)
        for number, each in enumerate(fingerprints)
    ]


def distance(one: F, other: F) -> int:
    """The distance that idem has two fingerprints at, whichever comes first."""
    table = idem.table_of(as_replicas([one, other]))
    if len(table.members) == 1:
        return 0
    forth, back = table.distances(np.array([[0, 1], [1, 0]])).tolist()
    assert forth == back
    return int(forth)


def idem_process(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """idem as a user starts it."""
    command = [sys.executable, str(HERE / "idem.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    )


def cache_file(library: Path) -> Path:
    return library / "__databases" / "images_perceptual_hash_db.csv"


def ffmpeg(*arguments: str | Path, given: bytes = b"") -> None:
    """Run the ffmpeg that idem would."""
    found = idem.ffmpeg_path()
    assert found
    command = [found, "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    if given:
        command.remove("-nostdin")
    subprocess.run(command, input=given, check=True, capture_output=True)


def moving_frames(seed: int, seconds: float, rate: float, size: tuple[int, int]) -> list[Image.Image]:
    """A window wandering over a picture."""
    width, height = size
    large, count = photo(seed, (2 * width, 2 * height)), round(seconds * rate)
    corners = [(width * step // count, (height * step * 3 // count) % height) for step in range(count)]
    return [large.crop((x, y, x + width, y + height)) for x, y in corners]


def clip(
    path: Path,
    *encoding: str,
    seed: int = 1,
    seconds: float = 4,
    rate: float = 12,
    size: tuple[int, int] = (192, 144),
    frames: Sequence[Image.Image] = (),
) -> Path:
    """A made video, of these frames or of a window wandering over the picture of this seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if frames:
        return encoded(path, frames, rate, *encoding)
    path.write_bytes(made_clip(path.suffix, encoding, seed=seed, seconds=seconds, rate=rate, size=size))
    return path


@functools.cache
def made_clip(
    suffix: str, encoding: tuple[str, ...], *, seed: int, seconds: float, rate: float, size: tuple[int, int]
) -> bytes:
    """The file of a made video: many tests want the same one."""
    with tempfile.TemporaryDirectory() as folder:
        path = encoded(Path(folder) / f"clip{suffix}", moving_frames(seed, seconds, rate, size), rate, *encoding)
        return path.read_bytes()


def encoded(path: Path, frames: Sequence[Image.Image], rate: float, *encoding: str) -> Path:
    """These frames as a video."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*frames[0].size), "-r", str(rate), "-i", "-"]
    given = b"".join(frame.convert("RGB").tobytes() for frame in frames)
    ffmpeg(*raw, "-pix_fmt", "yuv420p", *(encoding or ("-c:v", "libx264", "-crf", "20")), path, given=given)
    return path


def short_movie(*words: str) -> bytes:
    """A small movie of a second, as that of a Live Photo, and what it says of itself."""
    told = tuple(argument for each in words for argument in ("-metadata", each))
    encoding = "-c:v", "mpeg4", "-movflags", "use_metadata_tags", *told
    return made_clip(".mov", encoding, seed=1, seconds=1, rate=8, size=(64, 48))


def video_fingerprint(path: Path) -> VideoFingerprint:
    result = idem.fingerprint_video(media_file(path))
    assert isinstance(result, VideoFingerprint), result
    return result


def why_not_a_video(path: Path) -> str:
    result = idem.fingerprint_video(media_file(path))
    assert isinstance(result, idem.Problem), result
    return result.reason


def fuzz(given: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int = 20) -> None:
    """Try made examples for IDEM_FUZZ_SECONDS, half a second by default: always the same ones, in the same order."""
    until = time.monotonic() + float(os.environ.get("IDEM_FUZZ_SECONDS", "0.5"))
    options = hypothesis.settings(max_examples=examples, deadline=None, database=None)
    options = hypothesis.settings(options, suppress_health_check=list(hypothesis.HealthCheck))
    for number in itertools.count():

        def one(made: Any) -> None:
            check(made)

        hypothesis.seed(number)(options(hypothesis.given(given)(one)))()
        if time.monotonic() > until:
            return


# What happens to a file: where, in millionths of its length, what, and the bytes that take part.
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["flip", "write", "insert", "remove", "cut", "zeros", "repeat"]),
        st.binary(min_size=1, max_size=24),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations: Sequence[tuple[int, str, bytes]]) -> bytes:
    """The content after these mutations, one after another."""
    for place, kind, given in mutations:
        at = len(content) * place // (10**6 + 1)
        head, tail = content[:at], content[at:]
        content = {
            "flip": head + bytes(each ^ 1 << given[0] % 8 for each in tail[:1]) + tail[1:],
            "write": head + given + tail[len(given) :],
            "insert": head + given + tail,
            "remove": head + tail[given[0] :],
            "cut": head,
            "zeros": head + bytes(min(len(tail), given[0] * 16)) + tail[given[0] * 16 :],
            "repeat": head + tail[: given[0] * 16] + tail,
        }[kind]
    return content


FUZZED_SECONDS = 60  # that a worker may take for a small file


def in_worker(pool: idem.Pool, work: Callable[..., Any], *arguments: Any) -> Any:
    """What the work gives, None where a crash of the decoder cost the file. Fails if it hung, or Python ended."""
    future = pool.submit(work, *arguments, seconds=FUZZED_SECONDS)
    while not future.done():
        pool.step()
    lost = future.exception()
    assert lost is None or re.fullmatch(r"the decoder crashed \(SIG\w+\)", str(lost)), lost
    if lost and os.environ.get("IDEM_FUZZ_SECONDS"):
        shutil.copy(arguments[0].path, tempfile.gettempdir())  # for who looks into it
        print("crashed", work, lost)
    return None if lost else future.result()


def is_one_line(text: str) -> bool:
    """Whether a text can be printed as it is."""
    return idem.printable(text) == text and 0 < len(text) < 1000


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Helpers
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (592_000, "592 KB"),
        (999_960, "1.0 MB"),
        (3_200_000, "3.2 MB"),
        (7_840_000_000, "7.8 GB"),
        (5 * 10**15, "5.0 PB"),
    ],
)
def test_sizes_are_shown_in_decimal_units(size: int, text: str) -> None:
    assert idem.readable_size(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("50kb", 50_000), ("2MB", 2_000_000), ("1.5 gb", 1_500_000_000), ("0", 0), ("7k", 7000)],
)
def test_sizes_can_be_given_with_and_without_units(text: str, size: int) -> None:
    assert idem.size_argument(text) == size


@pytest.mark.parametrize("text", ["", "kb", "-1", "1..5mb", "1e9", "2 mbit", "٣", "1_000", "nan", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 100, 50kb"):
        idem.size_argument(text)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("beach.jpg", "beach.jpg"),
        ("Zürich 東京 🏖.jpg", "Zürich 東京 🏖.jpg"),
        ("two\nlines\r.jpg", "two\\nlines\\r.jpg"),
        ("\x1b[2Jcleared.jpg", "\\x1b[2Jcleared.jpg"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("zero\u200bwidth\u2028.jpg", "zero\\u200bwidth\\u2028.jpg"),
        ("\udcff.jpg", "\\xff.jpg"),
        ("csi\x9b0m.jpg", "csi\\x9b0m.jpg"),
    ],
)
def test_a_printed_name_cannot_move_the_cursor_or_start_a_line(name: str, shown: str) -> None:
    assert idem.printable(name) == shown


def test_nothing_printed_can_move_the_cursor_or_start_a_line() -> None:
    def check(name: str) -> None:
        shown = idem.printable(name)
        assert shown.isprintable() or all(each.isprintable() or each.isspace() for each in shown)
        assert len(shown.splitlines()) <= 1
        assert not any(unicodedata.category(each)[0] == "C" for each in shown)
        assert idem.printable(shown) == shown

    fuzz(st.text(st.characters()) | st.binary().map(os.fsdecode), check, examples=100)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError(60416), "not understood by the decoder (60416)"),
        (OSError(-2), "not understood by the decoder (-2)"),
        (OSError("decoder error -2"), "not understood by the decoder (decoder error -2)"),
        (IndexError("list index out of range"), "not understood by the decoder (list index out of range)"),
        (AssertionError(), "not understood by the decoder"),
        (PermissionError(errno.EACCES, "Permission denied", "/a.jpg"), "Permission denied"),
        (OSError("image file is truncated (8 bytes not processed)"), "image file is truncated"),
        (ValueError("мало памяти"), "мало памяти"),
    ],
)
def test_a_reason_is_told_in_words(error: Exception, reason: str) -> None:
    assert idem.reason_of(error) == reason


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Scan
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def scanned(library: Path) -> list[str]:
    """Relative paths of what a scan finds."""
    found = idem.scan(str(library), idem.IMAGE_SUFFIXES)
    return [os.path.relpath(file.path, found.root).replace(os.sep, "/") for file in found.files]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_scan_finds_every_image_type_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    images = ["a.jpg", "b.JPEG", "c.Png", "d.gif", "e.bmp", "f.TIF", "g.tiff", "h.webp", "i.HEIC", "j.jpe", "k.JFIF"]
    images += ["l.hif", "m.avif", "sub/deep/n.heif"]
    touch(*(tmp_path / name for name in images))
    touch(*(tmp_path / name for name in ["k.cr2", "l.dng", "m.mp4", "n.jpg.xmp", "o.txt", "jpg", "._a.jpg"]))
    assert scanned(tmp_path) == images


SKIPPED_KINDS = {
    "": ["__duplicate_files_trash", "__databases"],  # idem's own: nothing to wonder about
    "trash folder": [
        *(".Trash", ".Trashes", ".Trash-1000", ".trashed", ".dtrash", "$RECYCLE.BIN", "RECYCLER"),
        *("Recycled", "#recycle", "@Recycle", "files_trashbin", "files_trashed", "share/Trash/files", "trashbox"),
    ],
    "history folder": [".stversions", "files_versions", "_gsdata_"],
    "snapshot": ["#snapshot", ".snapshots", "@Recently-Snapshot", "~snapshot", ".zfs", "@GMT-2024.05.01-00.00.00"],
    "thumbnail folder": ["@eaDir", ".thumbnails", ".@__thumb", "Old.lrdata", "appdata_ocx1y2/preview"],
    "system folder": ["lost+found", "LOST.DIR", "System Volume Information"],
    "DVD": ["VIDEO_TS", "Wedding.dvdmedia"],
    "document package": ["Talk.key", "Story.pages"],
    "hidden folder": [".picasaoriginals", ".dropbox.cache/2021", ".sync/Archive", ".\nnew line"],
}


@pytest.mark.parametrize(
    ("folder", "kind"), [(folder, kind) for kind, folders in SKIPPED_KINDS.items() for folder in folders]
)
def test_folders_without_pictures_of_the_user_are_skipped_and_their_kind_is_told(
    tmp_path: Path, folder: str, kind: str
) -> None:
    touch(tmp_path / "a.jpg", tmp_path / folder / "b.jpg", tmp_path / "2021" / "07" / folder / "sub" / "c.jpg")
    found = idem.scan(str(tmp_path), idem.IMAGE_SUFFIXES)
    assert [file.path for file in found.files] == [str(tmp_path / "a.jpg")]
    assert [(each.kind, each.count) for each in found.skipped] == ([(kind, 2)] if kind else [])


@pytest.mark.parametrize(
    "folder",
    ["Trash", "_trash", "Rejects", "Deleted", "Snapshots", "files", "recycling", "Thumbnails", "key", "x.2021"],
)
def test_folders_whose_names_only_sound_like_a_bin_are_looked_at(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / folder / "a.jpg", tmp_path / "b" / folder / "c.jpg")
    assert scanned(tmp_path) == sorted([f"{folder}/a.jpg", f"b/{folder}/c.jpg"])


@pytest.mark.parametrize("library", [".hidden", ".Trash-1000/files", "@eaDir", "Trash/files"])
def test_a_folder_that_is_named_as_the_library_is_looked_at_whatever_it_is(tmp_path: Path, library: str) -> None:
    touch(tmp_path / library / "a.jpg", tmp_path / library / "files" / "b.jpg", tmp_path / library / ".more" / "c.jpg")
    assert scanned(tmp_path / library) == ["a.jpg", "files/b.jpg"]


def test_what_is_skipped_is_told_once_for_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(*(tmp_path / name for name in ("b/.x/1.jpg", "a/.y/2.jpg", "RECYCLER/3.jpg", "a/.trashed-17-4.jpg")))
    touch(tmp_path / ".not_a_picture", tmp_path / "._a.jpg")
    assert main([str(tmp_path)]) == 0
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"Scanned {tmp_path}: 0 found, 0 new, 0 cached",
        f"skipped 1 hidden file: {tmp_path / 'a' / '.trashed-17-4.jpg'}",
        f"skipped 1 trash folder: {tmp_path / 'RECYCLER'}",
        f"skipped 2 hidden folders, such as {tmp_path / 'a' / '.y'}",
    ]


@pytest.mark.parametrize(
    ("status", "hidden"),
    [
        (SimpleNamespace(st_file_attributes=stat.FILE_ATTRIBUTE_HIDDEN | stat.FILE_ATTRIBUTE_ARCHIVE), True),
        (SimpleNamespace(st_file_attributes=stat.FILE_ATTRIBUTE_ARCHIVE), False),
        (SimpleNamespace(st_flags=stat.UF_HIDDEN), True),
        (SimpleNamespace(), False),
    ],
)
def test_what_windows_or_macos_hides_is_skipped(
    tmp_path: Path, status: Any, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "covers" / "b.jpg")
    real = idem.has_hidden_attribute
    monkeypatch.setattr(idem, "has_hidden_attribute", lambda _status: real(status))
    assert scanned(tmp_path) == ([] if hidden else ["a.jpg", "covers/b.jpg"])


APPLICATION_LIBRARIES = [
    *("Mine.photoslibrary", "Holiday.fcpbundle", "iMovie Library.imovielibrary", "Jobs.cocatalog", "iPhoto Library"),
    *("Photo Booth Library", "iPhoto Library 2", "Final Cut Events", "Refs.library"),
]


@pytest.mark.parametrize("name", APPLICATION_LIBRARIES)
def test_application_libraries_are_named_once(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / name / "originals" / "0" / "a.jpg", tmp_path / name / "b.jpg")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"skipped {tmp_path / name}: a library of another application",
        f"Scanned {tmp_path}: 0 found, 0 new, 0 cached",
    ]


def test_an_application_library_of_another_name_is_known_by_its_database(tmp_path: Path) -> None:
    library = tmp_path / "iPhoto-Mediathek"
    touch(tmp_path / "a.jpg", library / "Masters" / "b.jpg", library / "AlbumData.xml")
    assert idem.scan(str(tmp_path), idem.IMAGE_SUFFIXES).application_libraries == (str(library),)
    assert scanned(tmp_path) == ["a.jpg"]
    with pytest.raises(idem.IdemError, match="it is a library of another application"):
        scanned(library)


def test_a_typescript_program_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "program.ts").write_text("// GET\nexport const G = 'G';\n" * 100)
    (tmp_path / "short.ts").write_bytes(b"G")
    packets = [bytes(188 - 1).join([b"G"] * 9), bytes(192 - 1).join([b"G"] * 9)]
    for number, content in enumerate((*packets, bytes(100) + packets[0], bytes(4) + packets[1])):
        (tmp_path / f"{number}.TS").write_bytes(content)
    found = idem.scan(str(tmp_path), idem.VIDEO_SUFFIXES)
    assert [os.path.basename(file.path) for file in found.files] == ["0.TS", "1.TS", "2.TS", "3.TS"]
    assert found.unreadable == ()


def test_links_into_the_library_are_noted_with_what_they_lead_to(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    touch(library / "all" / "1.jpg", library / "all" / "2.jpg", tmp_path / "outside" / "3.jpg")
    targets: dict[str, str | Path] = {
        "album/first.jpg": "../all/1.jpg",
        "album/second": library / "all" / "2.jpg",
        "again.jpg": "album/first.jpg",
        "folder": "all",
        "through": "folder/2.jpg",
        "gone.jpg": "all/4.jpg",
        "out.jpg": "../outside/3.jpg",
        "round": "round",
        "whole": ".",
    }
    (library / "album").mkdir()
    for link, target in targets.items():
        (library / link).symlink_to(target)
    found = idem.scan(str(library), idem.IMAGE_SUFFIXES)
    assert [os.path.relpath(file.path, library) for file in found.files] == ["all/1.jpg", "all/2.jpg"]
    assert found.links == tuple(
        (str(library / link), str(library / target))
        for link, target in [
            ("again.jpg", "all/1.jpg"),
            ("album/first.jpg", "all/1.jpg"),
            ("album/second", "all/2.jpg"),
            ("folder", "all"),
            ("through", "all/2.jpg"),
        ]
    )


def test_symbolic_links_are_neither_files_nor_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "lib" / "sub" / "a.jpg", tmp_path / "outside" / "b.jpg")
    (tmp_path / "lib" / "link.jpg").symlink_to(tmp_path / "lib" / "sub" / "a.jpg")
    (tmp_path / "lib" / "loop").symlink_to(tmp_path / "lib")
    (tmp_path / "lib" / "out").symlink_to(tmp_path / "outside")
    assert scanned(tmp_path / "lib") == ["sub/a.jpg"]


def test_hard_links_are_one_file_under_the_first_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path / "m" / "a.jpg")
    (tmp_path / "b").mkdir()
    for name in ("b/z.jpg", "z.jpg"):
        os.link(tmp_path / "m" / "a.jpg", tmp_path / name)
    assert scanned(tmp_path) == ["z.jpg"]


@ON_LINUX
@AS_ROOT
def test_a_folder_mounted_twice_is_one_folder(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "photo.jpg")
    (tmp_path / "b").mkdir()
    mounted = subprocess.run(["mount", "--bind", tmp_path / "a", tmp_path / "b"], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        assert scanned(tmp_path) == ["a/photo.jpg"]
    finally:
        subprocess.run(["umount", tmp_path / "b"], check=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_special_files_are_passed_over_at_once_and_empty_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/s.jpg")  # a socket's path must be short
        os.rename(f"{short}/s.jpg", tmp_path / "socket.jpg")
    (tmp_path / "empty.jpg").touch()
    save(photo(), tmp_path / "a.jpg")
    assert scanned(tmp_path) == ["a.jpg"]
    assert unreadable(tmp_path, capsys) == {"empty.jpg": "the file is empty"}


@ON_LINUX
@AS_ROOT
def test_an_unreadable_folder_is_named_and_the_rest_is_done(open_folder: Path) -> None:
    save(photo(), open_folder / "open" / "a.jpg")
    save(photo(), open_folder / "open" / "b.png")
    save(photo(), open_folder / "locked" / "c.jpg")
    (open_folder / "locked").chmod(0)
    status, out, _ = main_as_nobody(open_folder, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["unreadable"] == [{"path": str(open_folder / "locked"), "reason": "Permission denied"}]
    assert [len(group["files"]) for group in found["groups"]] == [2]


def main_as_nobody(library: Path, *arguments: str, answers: str = "") -> tuple[int, str, str]:
    """Exit status, stdout and stderr of idem run by a user without privileges.

    In a forked copy of this process, because such a user may be unable to start this interpreter.
    """
    for module in (
        *idem.REQUIRED_MODULES,
        "encodings.utf_16_le",
        "numpy.fft",
        "multiprocessing.popen_fork",
        "resource",
    ):  # that user need not read what is loaded
        importlib.import_module(module)
    idem.load_decoders()
    with idem.run_lock(tempfile.mkdtemp()):
        pass
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                sys.stdin = io.StringIO(answers)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                status = main([str(library), *arguments])
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            finally:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return status, out.read().decode(), err.read().decode()


@pytest.mark.parametrize("form", ["relative", "trailing slash", "link"])
def test_the_library_may_be_named_in_any_way(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "lib"
    save(photo(), library / "a.jpg")
    save(photo(), library / "b.png")
    (tmp_path / "link").symlink_to(library)
    monkeypatch.chdir(tmp_path)
    assert main([str(library), "--json"]) == 0
    plain = capsys.readouterr().out
    name = {"relative": "lib", "trailing slash": f"{library}{os.sep}", "link": str(tmp_path / "link")}[form]
    assert main([name, "--json"]) == 0
    assert capsys.readouterr().out == plain.replace('"new": 2', '"new": 0').replace('"cached": 0', '"cached": 2')


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Cache
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def made_library(folder: Path, pictures: int = 3) -> Path:
    """Each picture twice, as a.jpg and a small b.webp in a folder of its own."""
    for seed in range(pictures):
        save(photo(seed), folder / f"{seed}" / "a.jpg")
        save(photo(seed).resize((320, 240)), folder / f"{seed}" / "b.webp")
    return folder


@pytest.fixture(scope="module")
def long_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that takes a moment to look through."""
    return made_library(tmp_path_factory.mktemp("long"), 150)


def counts(directory: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, int, int]:
    """Files found, fingerprinted anew and taken from the cache; the groups must be those of `made_library`."""
    found = report(directory, *arguments, capsys=capsys)
    for group in found["groups"]:
        assert len({Path(file["relative"]).parent for file in group["files"]}) == 1
    totals = found["totals"]
    assert totals["groups"] == totals["files"] // 2
    return totals["files"], totals["new"], totals["cached"]


def test_a_second_run_fingerprints_nothing_and_keeps_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_library(tmp_path)
    assert counts(tmp_path, capsys=capsys) == (6, 6, 0)
    before = cache_file(tmp_path).read_bytes(), cache_file(tmp_path).stat().st_mtime_ns
    assert counts(tmp_path, capsys=capsys) == (6, 0, 6)
    assert (cache_file(tmp_path).read_bytes(), cache_file(tmp_path).stat().st_mtime_ns) == before


def test_the_cache_has_the_documented_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = save(photo(), tmp_path / "a.jpg")
    report(tmp_path, capsys=capsys)
    rows = list(csv.DictReader(cache_file(tmp_path).read_text("utf-8").splitlines()))
    assert list(rows[0])[:5] == ["path", "size", "mtime", "phash", "dhash"]
    assert rows[0]["path"] == os.path.splitdrive(str(picture))[1]
    assert rows[0]["size"] == str(picture.stat().st_size)
    assert rows[0]["mtime"] == f"{picture.stat().st_mtime_ns // 1000 / 1e6:.6f}"
    assert rows[0]["phash"] == f"{fingerprint(picture).phash:016x}"
    assert rows[0]["dhash"] == f"{fingerprint(picture).dhash:016x}"


def test_metadata_of_any_kind_are_stored_and_read_back() -> None:
    said = idem.Metadata(
        *("2021-07-05T10:00:00.25+02:00", "Ünïçødé, Inc.", "a=b&c", '"\n\r', "x" * 999, True, True, -1),
        bits=16,
        colours="grey",
        live_id="\udcff",
    )
    stored = idem.written_metadata(said)
    assert re.fullmatch(idem.METADATA.pattern.encode(), stored)
    assert idem.read_metadata(stored) == replace(said, software="x" * 64, live_id="?")
    assert idem.written_metadata(idem.Metadata()) == b""


def test_a_damaged_row_of_a_video_is_made_anew_and_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "a.mp4", seconds=1)
    clip(tmp_path / "b.mkv", seconds=1)
    cache = tmp_path / "__databases" / "videos_perceptual_hash_db.csv"
    first = report(tmp_path, "--video", capsys=capsys)
    header, *rows = cache.read_bytes().splitlines(keepends=True)
    assert header.startswith(b"path,size,mtime,duration,vhash,")
    scanned = idem.scan(str(tmp_path), idem.VIDEO_SUFFIXES)
    fields = rows[1].split(b",")
    for column, wrong in {
        1: [b"-5", b"nan"],
        2: [b"nan", b""],
        3: [b"", b"-1.000", b"nan", b"1e99"],
        4: [fields[4][:-16], fields[4] + b"0" * 16, b"x" * 128],
        5: [b"", b"inf"],
        6: [b"0", b"-1"],
        9: [b"x", b"11"],
        11: [b"000000001", b"x" * 8],
        13: [b"?", b"taken=2021 07"],
        14: [fields[14][:-2], b""],
        15: [b"", fields[15][:-9] + b"\n", b"?" + fields[15][1:]],
    }.items():
        for value in wrong:
            torn = b",".join([*fields[:column], value, *fields[column + 1 :]])
            cache.write_bytes(header + rows[0] + torn)
            with closing(idem.FingerprintCache(idem.VIDEO_CACHE, str(cache.parent), scanned)) as rows_left:
                found = [rows_left.lookup(file) is not None for file in scanned.files]
            assert found == [idem.stored_path(file.path).encode() in rows[0] for file in scanned.files], (column, value)
    again = report(tmp_path, "--video", capsys=capsys)
    assert (again["totals"]["new"], again["groups"]) == (1, first["groups"])


def test_a_changed_file_is_fingerprinted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_library(tmp_path)
    counts(tmp_path, capsys=capsys)
    changed = save(photo(0), tmp_path / "0" / "a.jpg", quality=80)
    assert counts(tmp_path, capsys=capsys) == (6, 1, 5)
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 2000))
    assert counts(tmp_path, capsys=capsys) == (6, 1, 5)
    assert len(cache_file(tmp_path).read_bytes().splitlines()) == 7


@pytest.fixture
def cached_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made_library(tmp_path)
    counts(tmp_path, capsys=capsys)
    return tmp_path


def loaded(library: Path) -> idem.FingerprintCache[ImageFingerprint]:
    """The library's cache as a run would load it."""
    found = idem.scan(str(library), idem.IMAGE_SUFFIXES)
    return idem.FingerprintCache(idem.IMAGE_CACHE, str(library / "__databases"), found)


def known_in(cache: idem.FingerprintCache[Any]) -> dict[str, Any]:
    """The fingerprints of scanned files, by path, in the order of their rows."""
    known = {path: cache.certain(cache.files[path]) for path in [*cache.known, *cache.stored]}
    cache.close_reader()
    return {path: each for path, each in known.items() if each is not None}


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell when the status of a file changed")
def test_a_picture_edited_in_place_under_its_old_time_is_seen_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1), tmp_path / "colour.tif")
    save(photo(1), tmp_path / "edited.tif")
    assert groups(tmp_path, capsys=capsys) == [["colour.tif", "edited.tif"]]
    times, edited = (tmp_path / "edited.tif").stat(), io.BytesIO()
    photo(1).convert("L").convert("RGB").save(edited, "TIFF")
    with open(tmp_path / "edited.tif", "r+b") as stream:
        stream.write(edited.getvalue())
    os.utime(tmp_path / "edited.tif", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (tmp_path / "edited.tif").stat().st_size == times.st_size
    for new in (1, 0):
        found = report(tmp_path, capsys=capsys)
        assert (found["groups"], found["totals"]["new"]) == ([], new)


def test_a_cache_cut_at_any_field_of_its_last_rows_loses_only_those(cached_library: Path) -> None:
    whole = cache_file(cached_library).read_bytes()
    intact = known_in(loaded(cached_library))
    start = [match.end() for match in re.finditer(b"\n", whole)][-3]
    borders = {start + match.start() + step for match in re.finditer(rb"[,\n]", whole[start:]) for step in (-1, 0, 1)}
    for cut in sorted(borders | set(range(start, len(whole), 61))):
        cache_file(cached_library).write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n") - 1
        assert list(known_in(loaded(cached_library)).items()) == list(intact.items())[:complete]


def test_after_a_torn_row_the_next_run_heals_the_cache(
    cached_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = cache_file(cached_library).read_bytes()
    for cut in (len(whole) - 1, len(whole) - 700, len(whole) - len(whole) // 12, 3):
        cache_file(cached_library).write_bytes(whole[:cut])
        assert counts(cached_library, capsys=capsys)[0] == 6
        assert sorted(cache_file(cached_library).read_bytes().splitlines()) == sorted(whole.splitlines())
        assert counts(cached_library, capsys=capsys) == (6, 0, 6)


HOSTILE_ROWS: dict[str, Callable[[bytes], bytes]] = {
    "NUL bytes": lambda row: row[:40] + b"\0\0" + row[40:],
    "unclosed quote": lambda row: b'"' + row,
    "quote inside": lambda row: row.replace(b"/a.jpg", b'/"a.jpg'),
    "missing field": lambda row: row.rsplit(b",", 1)[0] + b"\n",
    "extra field": lambda row: b"x," + row,
    "10 MB field": lambda row: row.rstrip(b"\n") + b"A" * 10_000_000 + b"\n",
    "10 MB path": lambda row: b"A" * 10_000_000 + row,
    "short hash": lambda row: re.sub(rb",([0-9a-f]{15})[0-9a-f],", rb",\1,", row, count=1),
    "not hexadecimal": lambda row: re.sub(rb",[0-9a-f]{16},", b",zzzzzzzzzzzzzzzz,", row, count=1),
    "binary junk": lambda row: bytes(range(256)) * 20 + b"\n",
    "empty": lambda row: b"\n",
    "negative size": lambda row: re.sub(rb",(\d+),", rb",-\1,", row, count=1),
    "mtime that is no number": lambda row: re.sub(rb",\d+\.\d{6},", b",nan,", row, count=1),
    "infinite mtime": lambda row: re.sub(rb",\d+\.\d{6},", b",inf,", row, count=1),
    "size that is no number": lambda row: re.sub(rb",\d+,", b",many,", row, count=1),
    "zero width": lambda row: row.replace(b",640,", b",0,"),
    "quantiser that is no number": lambda row: row.replace(b",640,480,", b",640,480,x"),
    "signature cut": lambda row: row[:-9] + b"\n",
    "no signature": lambda row: row.rsplit(b",", 1)[0] + b",\n",
    "signature with other characters": lambda row: row[:-9] + b"????????\n",
    "not UTF-8": lambda row: b"\xff\xfe" + row,
    "another hash": lambda row: re.sub(rb",[0-9a-f]{16},", b",0123456789abcdef,", row, count=1),
    "another quantiser": lambda row: row.replace(b",640,480,", b",640,480,1"),
    "a quote that swallows rows": lambda row: b'"' + row + b'"/x",' + row.partition(b",")[2],
}


@pytest.mark.parametrize("fault", HOSTILE_ROWS)
def test_a_hostile_row_is_dropped_and_its_neighbours_are_kept(
    cached_library: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = cache_file(cached_library).read_bytes().splitlines(keepends=True)
    position = next(number for number, line in enumerate(lines) if b"/1/a.jpg" in line)
    hostile = HOSTILE_ROWS[fault](lines[position])
    assert hostile != lines[position]
    cache_file(cached_library).write_bytes(b"".join([*lines[:position], hostile, *lines[position + 1 :]]))
    assert counts(cached_library, capsys=capsys) == (6, 1, 5)
    assert sorted(cache_file(cached_library).read_bytes().splitlines(keepends=True)) == sorted(lines)


def mutations(field: bytes, other: bytes) -> set[bytes]:
    """The field with what may befall it, one at a time; `other` is what another row has there."""
    changed = {b"", other, field + b"0", b"0" + field, field + b"\n", field * 2, field.swapcase(), b'"' + field + b'"'}
    for at in {0, len(field) // 2, len(field) - 1} if field else set():
        for new in (b"", b"0", b"f", b"\0", bytes([field[at] ^ 1]), bytes([field[at] ^ 128])):
            changed.add(field[:at] + new + field[at + 1 :])
    return changed - {field}


@functools.cache
def fingerprint_of_photo() -> ImageFingerprint:
    with tempfile.TemporaryDirectory() as folder:
        return fingerprint(save(photo(), Path(folder) / "a.jpg"))


VIDEO = VideoFingerprint(
    192, 144, 4000, False, True, (False,) * 8, "", tuple(range(8)), b"", b"abcd" * 1024, b"efgh" * 1024
)
CACHED: list[tuple[idem.CacheFormat[Any], Callable[[int], Any]]] = [
    (idem.IMAGE_CACHE, lambda number: replace(fingerprint_of_photo(), phash=number)),
    (idem.VIDEO_CACHE, lambda number: replace(VIDEO, milliseconds=4000 + number)),
    (idem.CHECKSUM_CACHE, lambda number: idem.Checksum(f"{number:064x}")),
    (idem.WHOLE_CACHE, lambda number: idem.Checksum(f"{number:064x}")),
    (idem.UNREADABLE_CACHE, lambda number: idem.Unreadable("photo", f"it is no. {number}, é", "0" * 16)),
]


@pytest.mark.parametrize(("form", "made"), CACHED, ids=[form.name for form, _ in CACHED])
def test_a_row_with_any_field_mutated_says_nothing_and_its_neighbours_stay(
    tmp_path: Path, form: idem.CacheFormat[Any], made: Callable[[int], Any]
) -> None:
    second = 10**9
    files = [
        MediaFile(f"/lib/{number}/a.jpg", 1000 + number, 1_700_000_000 * second, 1_710_000_000 * second, 1, number)
        for number in (1, 2, 3)
    ]
    intact = {file.path: made(file.inode) for file in files}
    rows = [form.encoded(file, intact[file.path]) for file in files]
    scanned = idem.Scan("/lib", tuple(files), (), ())

    def known() -> dict[str, Any]:
        return known_in(idem.FingerprintCache(form, str(tmp_path), scanned))

    (tmp_path / form.name).write_bytes(form.header + b"".join(rows))
    assert known() == intact
    first, fields, last = rows[0], rows[1][:-1].split(b","), rows[2]
    expected = {files[0].path: intact[files[0].path], files[2].path: intact[files[2].path]}
    for at, field in enumerate(fields):
        for changed in mutations(field, last[:-1].split(b",")[at]):
            row = b",".join([*fields[:at], changed, *fields[at + 1 :]]) + b"\n"
            (tmp_path / form.name).write_bytes(form.header + first + row + last)
            if changed.rstrip(b"\n") != field:  # an empty line before the next row costs nothing
                assert known() == expected, (at, changed)


@pytest.mark.storm
def test_bytes_mutated_anywhere_in_the_caches_change_no_group(
    cached_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(cached_library / "0" / "a.jpg", cached_library / "0" / "equal.jpg")
    modes: list[tuple[str, ...]] = [(), ("--exact",)]
    clean = [groups(cached_library, *mode, capsys=capsys) for mode in modes]
    databases = cache_file(cached_library), cached_library / "__databases" / "all_media_sha_hash_db.csv"
    whole = [database.read_bytes() for database in databases]
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(int(os.environ.get("IDEM_ROUNDS", "2"))):
        for mode, expected, database, content in zip(modes, clean, databases, whole, strict=True):
            mutated = bytearray(content)
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                at = rng.randrange(len(mutated))
                mutated[at : at + rng.randrange(3)] = rng.choice((b"", b"0", b"9", b"a", b",", b"\n", rng.randbytes(1)))
            database.write_bytes(mutated)
            assert groups(cached_library, *mode, capsys=capsys) == expected, seed


def test_a_torn_row_that_a_later_run_ended_is_still_torn(
    cached_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = cache_file(cached_library).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for field in range(whole[last:].count(b",") + 1):
        torn = b",".join(whole[last:].split(b",")[: field + 1])[:-2]
        for end in (b"\n", b",\n"):
            cache_file(cached_library).write_bytes(whole[:last] + torn + end)
            assert len(known_in(loaded(cached_library))) == 5
    counts(cached_library, capsys=capsys)
    assert sorted(cache_file(cached_library).read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize("content", [b"", b"\n", b"no header at all", bytes(range(256)) * 100, b"path,size,mtime\n"])
def test_a_cache_that_is_none_is_replaced(
    cached_library: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_file(cached_library).write_bytes(content)
    assert counts(cached_library, capsys=capsys) == (6, 6, 0)
    assert counts(cached_library, capsys=capsys) == (6, 0, 6)


def test_rows_without_a_header_are_still_rows(cached_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = cache_file(cached_library).read_bytes()
    cache_file(cached_library).write_bytes(content.split(b"\n", 1)[1])
    assert counts(cached_library, capsys=capsys) == (6, 0, 6)
    assert sorted(cache_file(cached_library).read_bytes().splitlines()) == sorted(content.splitlines())


def test_a_row_of_another_version_is_stale(cached_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = f",{idem.FINGERPRINT_VERSION},,640,".encode(), f",{idem.FINGERPRINT_VERSION},,320,".encode()
    content = cache_file(cached_library).read_bytes()
    assert content.count(version[0]) == content.count(version[1]) == 3
    cache_file(cached_library).write_bytes(content.replace(version[0], b",99,,640,").replace(version[1], b",99,,320,"))
    assert counts(cached_library, capsys=capsys) == (6, 6, 0)
    assert counts(cached_library, capsys=capsys) == (6, 0, 6)


@ON_LINUX
@pytest.mark.parametrize(
    "name",
    [
        b"\xff.jpg",
        b"two\nlines\n.jpg",
        b"cr\r.jpg",
        b'quo"te".jpg',
        b"\n" * 40 + b'".jpg',
        b"comma,.jpg",
        b"=cmd.jpg",
        b" .jpg",
        b"-t.jpg",
    ],
)
def test_names_of_any_kind_are_scanned_cached_and_reported(
    tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(), tmp_path / "plain.png")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    try:
        save(photo().resize((320, 240)), odd)
    except OSError:
        pytest.skip("this file system does not take such names")
    assert groups(tmp_path, capsys=capsys) == [["plain.png", os.fsdecode(name)]]
    again = report(tmp_path, capsys=capsys)
    assert again["totals"]["cached"] == 2
    assert os.fsencode(again["groups"][0]["files"][1]["path"]) == os.fsencode(odd)


def test_a_file_that_moved_keeps_its_fingerprint(cached_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cached_library / "0").rename(cached_library / "renamed folder")
    assert counts(cached_library, capsys=capsys) == (6, 0, 6)


@pytest.mark.parametrize("suffix", [".jpg", ".mp4"])
def test_a_namesake_of_one_that_went_is_seen_anew_before_it_is_reported(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_file(name: str, seed: int, **options: Any) -> Path:
        path = tmp_path / name
        return clip(path, seed=seed, seconds=1) if suffix == ".mp4" else save(photo(seed), path, **options)

    old, namesake = made_file(f"1/a{suffix}", 1), made_file(f"2/a{suffix}", 2)
    size = max(old.stat().st_size, namesake.stat().st_size)
    for path in (old, namesake):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1_600_000_000, 1_600_000_000))
    away = namesake.rename(tmp_path.with_name(f"{tmp_path.name}{suffix}"))
    assert groups(tmp_path, "--video", capsys=capsys) == []
    old.unlink()
    (tmp_path / "1" / "other.txt").touch()  # its folder is there, so it is no unplugged drive
    away.rename(namesake)
    made_file(f"copy{'.mkv' if suffix == '.mp4' else '.png'}", 1)
    assert groups(tmp_path, "--video", capsys=capsys) == []


def same_size_and_time(*paths: Path) -> None:
    """Make files alike in what tells files apart without reading them."""
    size = max(path.stat().st_size for path in paths)
    for path in paths:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1_600_000_000, 1_600_000_000))


def test_a_namesake_in_no_group_is_still_seen_anew_when_a_later_run_groups_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library, small = tmp_path / "lib", (160, 120)
    old, namesake = save(photo(1, small), library / "1" / "a.tif"), save(photo(2, small), tmp_path / "a.tif")
    same_size_and_time(old, namesake)
    (library / "1" / "other.txt").touch()  # its folder is there, so it is no unplugged drive
    assert groups(library, capsys=capsys) == []
    old.unlink()
    (library / "2").mkdir()
    namesake.rename(library / "2" / "a.tif")
    for _ in range(2):
        found = report(library, capsys=capsys)
        assert (found["totals"]["cached"], found["groups"]) == (1, [])
        assert b"/1/a.tif," in cache_file(library).read_bytes()
        assert b"/2/a.tif," not in cache_file(library).read_bytes()
    save(photo(1, small), library / "copy of the old one.png")
    assert groups(library, capsys=capsys) == []
    save(photo(2, small), library / "copy.png")
    assert [sorted(group) for group in groups(library, capsys=capsys)] == [["2/a.tif", "copy.png"]]
    assert b"/1/a.tif," not in cache_file(library).read_bytes()


def test_acting_on_some_files_keeps_the_fingerprints_of_others_that_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1), tmp_path / "1" / "a.jpg")
    for name in ("b.png", "c.png"):
        save(photo(2, (160, 120)), tmp_path / "1" / name)
    report(tmp_path, capsys=capsys)
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "a.jpg").rename(tmp_path / "2" / "a.jpg")
    assert report(tmp_path, capsys=capsys)["totals"]["new"] == 0
    moved = idem.as_it_is(str(tmp_path / "1" / "c.png"))
    (tmp_path / "1" / "c.png").rename(tmp_path / "1" / "d.png")
    after = idem.as_it_is(str(tmp_path / "1" / "d.png"))
    before = idem.Scan(str(tmp_path), (moved,), (), ())
    with closing(idem.FingerprintCache(idem.IMAGE_CACHE, str(tmp_path / "__databases"), before)) as cache:
        cache.relocate(moved, after)
    assert report(tmp_path, capsys=capsys)["totals"]["new"] == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell when the status of a file changed")
def test_frames_of_one_size_and_time_that_are_renumbered_are_not_taken_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("bmp", "tif"):
        for number in (1, 2, 3):
            save(photo(number, (160, 120)), tmp_path / form / f"shot {number}.{form}")
        same_size_and_time(*sorted((tmp_path / form).iterdir()))
    expected = groups(tmp_path, capsys=capsys)
    assert len(expected) == 3
    names = [("shot 1", "best"), ("shot 2", "shot 1"), ("shot 3", "shot 2")]
    for old, new in names:
        (tmp_path / "bmp" / f"{old}.bmp").rename(tmp_path / "bmp" / f"{new}.bmp")
    renamed = dict(names)
    for _ in range(2):
        assert {frozenset(group) for group in groups(tmp_path, capsys=capsys)} == {
            frozenset(f"bmp/{renamed[Path(name).stem]}.bmp" if name.startswith("bmp/") else name for name in group)
            for group in expected
        }


def test_two_folders_exchanged_do_not_exchange_their_fingerprints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [save(photo(number, (160, 120)), tmp_path / str(number) / "shot.bmp") for number in (1, 2)]
    same_size_and_time(*frames)
    save(photo(1, (160, 120)), tmp_path / "copy of 1.png")
    assert [sorted(group) for group in groups(tmp_path, capsys=capsys)] == [["1/shot.bmp", "copy of 1.png"]]
    for old, new in (("1", "x"), ("2", "1"), ("x", "2")):
        (tmp_path / old).rename(tmp_path / new)
    for _ in range(2):
        assert [sorted(group) for group in groups(tmp_path, capsys=capsys)] == [["2/shot.bmp", "copy of 1.png"]]


def test_a_namesake_on_an_unplugged_drive_lends_its_fingerprint_to_no_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "lib"
    frames = [save(photo(number, (160, 120)), library / str(number) / "shot.bmp") for number in (1, 2)]
    same_size_and_time(*frames)
    (library / "2").rename(tmp_path / "later")
    assert groups(library, capsys=capsys) == []
    (library / "1").rename(tmp_path / "unplugged")
    (tmp_path / "later").rename(library / "2")
    assert report(library, capsys=capsys)["totals"]["new"] == 0  # it may be the one that moved
    save(photo(1, (160, 120)), library / "copy of 1.png")
    assert groups(library, capsys=capsys) == []
    (tmp_path / "unplugged").rename(library / "1")
    found = report(library, capsys=capsys)
    assert [sorted(each["relative"].replace(os.sep, "/") for each in group["files"]) for group in found["groups"]] == [
        ["1/shot.bmp", "copy of 1.png"]
    ]


def test_a_copied_or_renamed_file_is_fingerprinted_anew(
    cached_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cached_library / "9").mkdir()
    shutil.copy2(cached_library / "0" / "a.jpg", cached_library / "9" / "a.jpg")
    (cached_library / "1" / "a.jpg").rename(cached_library / "1" / "c.jpg")
    assert report(cached_library, capsys=capsys)["totals"]["new"] == 2


def test_a_file_whose_original_is_still_there_is_no_moved_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = "--cache", str(tmp_path / "cache")
    one = made_library(tmp_path / "one", 1)
    counts(one, *shared, capsys=capsys)
    shutil.copytree(one, tmp_path / "other")
    assert counts(tmp_path / "other", *shared, capsys=capsys) == (2, 2, 0)
    shutil.rmtree(one)
    (tmp_path / "other").rename(tmp_path / "third")
    assert counts(tmp_path / "third", *shared, capsys=capsys) == (2, 0, 2)


def test_of_two_rows_for_a_file_the_later_one_counts(cached_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = cache_file(cached_library).read_bytes().splitlines(keepends=True)
    older = [re.sub(rb",[0-9a-f]{16},", b",0123456789abcdef,", line, count=1) for line in lines[1:]]
    cache_file(cached_library).write_bytes(b"".join([lines[0], *older, *lines[1:]]))
    (cached_library / "0").rename(cached_library / "moved")
    assert counts(cached_library, capsys=capsys) == (6, 0, 6)
    assert b"0123456789abcdef" not in cache_file(cached_library).read_bytes()


def test_a_deleted_file_is_forgotten(cached_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cached_library / "0" / "a.jpg").unlink()
    assert main([str(cached_library)]) == 0
    assert capsys.readouterr().err == f"Scanned {cached_library}: 5 found, 0 new, 5 cached, 1 forgotten\n"
    assert b"/0/a.jpg" not in cache_file(cached_library).read_bytes()


@pytest.mark.parametrize("empty_mount_point", [False, True])
def test_an_unplugged_drive_keeps_its_rows(
    cached_library: Path, empty_mount_point: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (cached_library / "0").rename(cached_library.parent / "unplugged")
    if empty_mount_point:
        (cached_library / "0").mkdir()
    (cached_library / "1" / "a.jpg").unlink()  # something to forget, so that the cache is rewritten
    report(cached_library, capsys=capsys)
    shutil.rmtree(cached_library / "0", ignore_errors=True)
    (cached_library.parent / "unplugged").rename(cached_library / "0")
    assert report(cached_library, capsys=capsys)["totals"] | {"recoverable_bytes": 0} == {
        "files": 5,
        "new": 0,
        "cached": 5,
        "groups": 2,
        "recoverable_bytes": 0,
    }


def test_libraries_that_share_a_cache_keep_each_others_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made_library(tmp_path / "one"), made_library(tmp_path / "other")
    shared = "--cache", str(tmp_path / "new" / "cache")
    assert counts(one, *shared, capsys=capsys) == (6, 6, 0)
    assert counts(other, *shared, capsys=capsys) == (6, 6, 0)
    (other / "0" / "a.jpg").unlink()
    (other / "0" / "b.webp").unlink()
    assert counts(other, *shared, capsys=capsys) == (4, 0, 4)
    assert counts(one, *shared, capsys=capsys) == (6, 0, 6)
    assert sorted(path.name for path in one.iterdir()) == ["0", "1", "2"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes to set")
def test_a_full_disk_is_warned_of_once_and_the_results_are_right(tmp_path: Path) -> None:
    import resource

    made_library(tmp_path)
    process = idem_process(
        tmp_path, "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    )
    out, err = process.communicate()
    assert process.returncode == 0
    assert len(json.loads(out)["groups"]) == 3
    assert err.decode().splitlines() == [
        f"warning: cannot write the cache {cache_file(tmp_path)}: File too large; going on without it",
        f"Scanned {tmp_path}: 6 found, 6 new, 0 cached",
    ]


def test_a_cache_that_cannot_be_a_file_is_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_library(tmp_path)
    cache_file(tmp_path).mkdir(parents=True)
    assert main([str(tmp_path)]) == 0
    assert re.fullmatch(
        r"warning: cannot read the cache .*: it is .* no file; going on without it\nScanned .*\n",
        capsys.readouterr().err,
    )


def odd_thing(kind: str, path: Path, victim: Path) -> None:
    """Something else than a cache of idem's own, at its path."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.with_name("not there"))
    elif kind == "hard link":
        path.hardlink_to(victim)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    else:
        path.mkdir()


@ON_LINUX
@pytest.mark.parametrize("name", ["all_media_sha_hash_db.csv", "all_media_sha_hash_db.csv.tmp"])
@pytest.mark.parametrize(
    "kind", ["link", "dangling link", "hard link", "FIFO", "folder", pytest.param("device", marks=AS_ROOT)]
)
def test_what_stands_in_place_of_a_cache_is_neither_read_nor_written_nor_taken_away(
    tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "lib"
    library.mkdir()
    for copy in ("a.jpg", "b.jpg"):
        (library / copy).write_bytes(b"equal")
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"precious words\n")
    database = checksum_database(library)
    database.parent.mkdir()
    if name.endswith(".tmp"):
        database.write_bytes(b"junk, so that it is rewritten\n")
    odd_thing(kind, database.with_name(name), victim)
    there = database.with_name(name).lstat()
    assert main([str(library), "--exact", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["groups"]) == 1
    assert re.fullmatch(
        rf"warning: cannot (read|write) the cache {re.escape(str(database.with_name(name)))}: .*\nScanned .*\n", err
    )
    assert database.with_name(name).lstat()[:4] == there[:4]
    assert victim.read_bytes() == b"precious words\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lib", "victim.txt"]


def test_six_gigabytes_of_zeros_in_place_of_a_cache_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"equal")
    database = checksum_database(tmp_path)
    database.parent.mkdir()
    with open(database, "wb") as stream:
        stream.truncate(6 * 10**9)
    assert main([str(tmp_path), "--exact", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["groups"]) == 1
    assert err.startswith(f"warning: cannot read the cache {database}: it is no cache; going on without it\n")
    assert database.stat().st_size == 6 * 10**9


@ON_LINUX
def test_the_search_for_rows_ends_also_where_a_file_does_not() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(OSError, match="it is no cache"):
        list(idem.rows_in(endless, idem.CHECKSUM_CACHE))


@ON_LINUX
@AS_ROOT
def test_a_read_only_library_is_reported_all_the_same(open_folder: Path) -> None:
    library = made_library(open_folder / "lib")
    library.chmod(0o555)
    status, out, err = main_as_nobody(library, "--json")
    assert status == 0
    assert len(json.loads(out)["groups"]) == 3
    looks = cache_file(library).with_name("closer_looks_db.csv")
    assert err.splitlines() == [
        f"warning: cannot write the cache {cache_file(library)}: Permission denied; going on without it",
        f"warning: cannot write the cache {looks}: Permission denied; going on without it",
        f"Scanned {library}: 6 found, 6 new, 0 cached",
    ]


# ── what could not be read ──


def refuse_bad_ones(file: MediaFile, *more: Any) -> Any:
    """A worker that can never read files named bad, and cannot read those named busy this time; it notes its tries."""
    path = Path(file.path)
    if path.stem not in ("bad", "busy"):
        return idem.fingerprint_image(file)
    with open(path.with_suffix(".tries"), "a") as stream:
        stream.write("!")
    return idem.Problem(file.path, f"{path.stem}, ünd 100 %\nso", lasting=path.stem == "bad")


def tries(path: Path) -> int:
    return path.with_suffix(".tries").stat().st_size


def test_what_can_never_be_read_is_named_in_every_run_but_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(idem, "IMAGE_WORK", replace(idem.IMAGE_WORK, do=refuse_bad_ones))
    bad, busy = tmp_path / "bad.jpg", tmp_path / "sub" / "busy.jpg"
    busy.parent.mkdir()
    for path in (bad, busy):
        path.write_bytes(b"no picture")
    reasons = {path.name: f"{path.stem}, ünd 100 %\nso" for path in (bad, busy)}
    for run in (1, 2, 3):
        found = report(tmp_path, capsys=capsys)
        assert {Path(each["path"]).name: each["reason"] for each in found["unreadable"]} == reasons
        assert (found["totals"]["new"], found["totals"]["cached"]) == ((2, 0) if run == 1 else (1, 1))
        assert (tries(bad), tries(busy)) == (1, run)
    os.utime(bad, (1_600_000_000, 1_600_000_000))
    report(tmp_path, capsys=capsys)
    assert tries(bad) == 2
    monkeypatch.setattr(idem, "decoders", lambda: "0123456789abcdef")  # another release of one
    for _ in range(2):
        assert unreadable(tmp_path, capsys) == reasons
        assert tries(bad) == 3
    bad.unlink()
    report(tmp_path, capsys=capsys)
    assert b"/bad." not in (tmp_path / "__databases" / "unreadable_media_db.csv").read_bytes()


def test_no_decoder_is_started_for_a_video_that_can_never_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(idem, "VIDEO_WORK", replace(idem.VIDEO_WORK, do=refuse_bad_ones))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    first = report(tmp_path, "--video", capsys=capsys)

    def started(*_: Any) -> Any:
        raise AssertionError("nothing is to be read again")

    monkeypatch.setattr(idem, "Worker", started)
    assert report(tmp_path, "--video", capsys=capsys)["unreadable"] == first["unreadable"] != []


def test_another_release_of_a_decoder_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [idem.decoders.__wrapped__()]
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"99.{package}")
    digests.append(idem.decoders.__wrapped__())
    program = tmp_path / "ffmpeg"
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: str(program))
    for content in ("one", "another"):
        program.write_text(content)
        digests.append(idem.decoders.__wrapped__())
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: None)
    digests.append(idem.decoders.__wrapped__())
    assert len(set(digests)) == 5


# ── killed ──


def test_a_run_killed_half_way_resumes_and_finds_the_same_groups(
    tmp_path: Path, long_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = long_library
    for kill_at in (1, 120):
        cache = tmp_path / f"cache{kill_at}"
        process = idem_process(library, "--cache", cache, "--jobs", "2")
        while rows_in(cache) < kill_at and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        process.communicate()
        kept = rows_in(cache)
        assert kept >= kill_at
        files, new, cached = counts(library, "--cache", str(cache), capsys=capsys)
        assert (files, new) == (300, 300 - cached)
        assert kept - 1 <= cached <= kept  # at most the last row is torn
    assert counts(library, "--cache", str(cache), capsys=capsys) == (300, 0, 300)


def rows_in(cache: Path) -> int:
    path = cache / "images_perceptual_hash_db.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def test_a_run_killed_while_it_rewrites_the_cache_harms_nothing(
    cached_library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_file(cached_library).read_bytes()
    (cached_library / "0" / "a.jpg").rename(cached_library.parent / "away.jpg")
    for step in ("fsync", "replace"):
        killed = os.fork()
        if killed == 0:
            monkeypatch.setattr(os, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            main([str(cached_library)])
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL
        assert cache_file(cached_library).read_bytes() == before
    assert report(cached_library, capsys=capsys)["totals"]["cached"] == 5
    assert sorted(path.name for path in cache_file(cached_library).parent.iterdir()) == [
        "closer_looks_db.csv",
        "idem.lock",
        "images_perceptual_hash_db.csv",
    ]


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Fingerprint
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def test_the_fingerprint_of_a_known_picture_never_changes(tmp_path: Path) -> None:
    """Guards the algorithm against an upgrade of a library: if this fails, raise FINGERPRINT_VERSION."""
    down, across = np.mgrid[0:300, 0:400]
    channels = across * down // 300 % 256, abs(across - 200) + abs(down - 90) // 2, (across * 7 + down * 13) % 256
    picture = save(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)), tmp_path / "known.png")
    found = fingerprint(picture)
    assert replace(found, signature=b"") == ImageFingerprint(
        width=400,
        height=300,
        luma_step=0,
        chroma_step=0,
        palette=False,
        integrity=idem.Integrity(
            may_be_short=False,
            data_bytes=picture.stat().st_size,
            data_sum=f"{zlib.crc32(picture.read_bytes()):08x}",
            other_sum="",
        ),
        file_digest="",
        phash=0xB06E50BECB54AF0A,
        dhash=0xF0F0F0F0F0E8C8A,
        stored_metadata=b"bits=8&colours=colour&lossless=1&pages=1",
        spectrum="",
        signature=b"",
        stored_signature=b"",
    )
    assert (
        hashlib.sha256(found.signature).hexdigest()
        == "0007533173c5204123db0c3d9dd6d44abc17af1b35a825619e43283b58bab01e"
    )


def fitted(picture: Image.Image, side: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    scale = side / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), how)


def in_deep_colour(picture: Image.Image, path: Path) -> Path:
    """The picture's greys as a 16-bit TIFF."""
    grey = np.asarray(picture.convert("L"), np.uint16) * 257
    return save(Image.fromarray(grey), path)


def display_p3() -> bytes:
    """The ICC profile of Display P3, made here: its primaries in the place of sRGB's."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[132 + 12 * i : 136 + 12 * i]): int.from_bytes(profile[136 + 12 * i : 140 + 12 * i], "big")
        for i in range(int.from_bytes(profile[128:132], "big"))
    }
    primaries = {b"rXYZ": (0.515, 0.241, -0.001), b"gXYZ": (0.292, 0.692, 0.042), b"bXYZ": (0.157, 0.067, 0.784)}
    for tag, values in primaries.items():
        for number, value in enumerate(values):
            at = tags[tag] + 8 + 4 * number
            profile[at : at + 4] = round(value * 65536).to_bytes(4, "big", signed=True)
    return bytes(profile)


def test_copies_of_every_kind_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = photo(1, (1600, 1200))
    save(original, tmp_path / "original.jpg", quality=95)
    for quality in (20, 30, 50, 75, 90):
        save(original, tmp_path / f"quality{quality}.jpg", quality=quality)
    for side in (1280, 800, 640, 333, 320):
        save(fitted(original, side), tmp_path / f"side{side}.jpg", quality=80)
    save(fitted(original, 800, Image.Resampling.NEAREST), tmp_path / "nearest.png")
    save(fitted(original, 500, Image.Resampling.BILINEAR), tmp_path / "bilinear.bmp")
    save(fitted(original, 2000, Image.Resampling.BICUBIC), tmp_path / "enlarged.jpg", quality=85)
    save(original, tmp_path / "progressive.jpg", quality=80, progressive=True)
    save(original, tmp_path / "full chroma.jpg", quality=80, subsampling=0)
    save(original, tmp_path / "restarts.jpg", quality=85, restart_marker_blocks=7)
    save(original.convert("CMYK"), tmp_path / "cmyk.jpg", quality=90)
    save(original, tmp_path / "rgb.jpg", quality=90, keep_rgb=True)
    save(original, tmp_path / "lossy.webp", quality=60)
    save(fitted(original, 1000), tmp_path / "very lossy.webp", quality=15)
    save(fitted(original, 160), tmp_path / "tiny.jpg", quality=75)
    save(original, tmp_path / "lossless.webp", lossless=True, method=0)
    save(original, tmp_path / "heic.heic", quality=60)
    save(original, tmp_path / "tiff.tif", compression="tiff_lzw")
    save(original.convert("RGBA"), tmp_path / "opaque.png", compress_level=1)
    save(original.quantize(256, kmeans=1), tmp_path / "palette.png")  # else the colours that it lacks show
    save(fitted(original, 640).quantize(256), tmp_path / "palette.gif")
    (found,) = groups(tmp_path, capsys=capsys)
    assert sorted(found) == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert found[0] == "tiff.tif"  # the enlarged one has been written by a program, and shows no more


def test_grey_pictures_are_found_in_every_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = photo(2).convert("L")
    save(grey, tmp_path / "grey.jpg", quality=92)
    save(grey.convert("RGB"), tmp_path / "three channels.png")
    save(grey.convert("LA"), tmp_path / "with alpha.png")
    in_deep_colour(grey, tmp_path / "deep.tif")
    in_deep_colour(grey, tmp_path / "deep.png")
    save(Image.fromarray(np.asarray(grey, np.float32) / 255), tmp_path / "float.tif")
    (found,) = groups(tmp_path, capsys=capsys)
    assert sorted(found) == ["deep.png", "deep.tif", "float.tif", "grey.jpg", "three channels.png", "with alpha.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
def test_every_exif_orientation_is_seen_upright(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original = save(photo(), tmp_path / "original.png")
    stored_for = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation: how Pillow undoes it
    for orientation, method in stored_for.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = photo().transpose(Image.Transpose(method))
        path = save(stored, tmp_path / str(orientation) / f"turned{suffix}", exif=exif)
        found = fingerprint(path)
        assert (found.width, found.height) == (640, 480)
        assert distance(fingerprint(original), found) == 0, orientation
    assert [len(group) for group in groups(tmp_path, capsys=capsys)] == [8]


def test_the_cells_of_a_reduced_picture_span_what_it_shows() -> None:
    assert idem.area_weights(3, 2.25, 3) == pytest.approx(np.array([[1, 0, 0], [1 / 3, 2 / 3, 0], [0, 2 / 3, 1 / 3]]))


def largest_difference(one: ImageFingerprint, other: ImageFingerprint) -> int:
    """In levels, between any two cells of these fingerprints' signatures."""
    cells, others = (np.frombuffer(base64.b64decode(each.signature), np.uint8).astype(int) for each in (one, other))
    return int(np.abs(cells - others).max())


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_of_odd_size_has_the_cells_that_it_has_at_full_scale(tmp_path: Path, orientation: int) -> None:
    size = 2049, 2053  # at a quarter of it 513 x 514 px for 512.25 x 513.25
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 48, 3), np.uint8)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    reduced = fingerprint(save(noise, tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif))
    whole = fingerprint(save(noise, tmp_path / "a.tif", exif=exif))
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    assert largest_difference(reduced, whole) <= 1


def test_a_colour_profile_gives_the_cells_that_all_pixels_converted_have(tmp_path: Path) -> None:
    down, across = np.mgrid[0:900, 0:1200]
    dots = (down // 4 + across // 4) % 2 == 0  # of colours that sRGB cannot show
    levels = np.where(dots[..., None], np.asarray(photo(5, (1200, 900))), np.array([0, 250, 20])).astype(np.uint8)
    picture = Image.fromarray(levels)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    expected = fingerprint(save(converted, tmp_path / "converted.png"))
    for name in ("profiled.png", "profiled.jpg"):
        found = fingerprint(save(picture, tmp_path / name, quality=98, subsampling=0, icc_profile=display_p3()))
        assert largest_difference(found, expected) <= 2, name


def test_a_copy_may_have_its_colour_profile_converted_or_stripped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = display_p3()
    original = photo(5, (1200, 900))
    save(original, tmp_path / "original.jpg", icc_profile=profile, quality=95)
    save(fitted(original, 600), tmp_path / "smaller.jpg", icc_profile=profile, quality=85)
    save(fitted(original, 800), tmp_path / "stripped.jpg", quality=85)
    converted = ImageCms.profileToProfile(
        original, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    save(fitted(converted, 700), tmp_path / "converted.jpg", quality=85)
    assert np.abs(np.asarray(original, int) - np.asarray(converted, int)).max() > 20
    assert groups(tmp_path, capsys=capsys) == [["original.jpg", "stripped.jpg", "converted.jpg", "smaller.jpg"]]


def test_a_stripped_picture_may_be_the_better_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = photo(5, (1200, 900))
    save(original, tmp_path / "stripped.jpg", quality=95)
    save(fitted(original, 600), tmp_path / "profiled.jpg", icc_profile=display_p3(), quality=85)
    assert groups(tmp_path, capsys=capsys) == [["stripped.jpg", "profiled.jpg"]]


def test_stripped_and_converted_copies_alone_are_two_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = display_p3()
    original = photo(5, (1200, 900))
    converted = ImageCms.profileToProfile(
        original, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    save(original, tmp_path / "stripped.jpg", quality=85)
    save(converted, tmp_path / "converted.jpg", quality=85)
    assert groups(tmp_path, capsys=capsys) == []


WARMER: list[list[int]] = [[min(255, round(level * factor)) for level in range(256)] for factor in (1.06, 1.0, 0.94)]
EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black and white": ImageOps.grayscale,
    "brighter": lambda im: ImageEnhance.Brightness(im).enhance(1.1),
    "more contrast": lambda im: ImageEnhance.Contrast(im).enhance(1.12),
    "more saturated": lambda im: ImageEnhance.Color(im).enhance(1.25),
    "warmer": lambda im: Image.merge(
        "RGB", [band.point(table) for band, table in zip(im.split(), WARMER, strict=True)]
    ),
    "cropped on one side": lambda im: im.crop((im.width // 50, 0, *im.size)),
    "cropped all round": lambda im: im.crop((20, 15, im.width - 20, im.height - 15)),
    "cropped and enlarged": lambda im: im.crop((16, 12, im.width - 16, im.height - 12)).resize(im.size),
    "mirrored": ImageOps.mirror,
    "upside down": lambda im: im.transpose(Image.Transpose.ROTATE_180),
    "rotated by a degree": lambda im: im.rotate(1, Image.Resampling.BICUBIC),
    "stretched": lambda im: im.resize((im.width * 103 // 100, im.height)),
    "framed": lambda im: ImageOps.expand(im, 20, "white").resize(im.size),
    "date stamp": lambda im: drawn_on(im, (0.7, 0.9, 0.95, 0.94), (255, 160, 0)),
    "one percent retouched": lambda im: drawn_on(im, (0.4, 0.5, 0.5, 0.6), im.getpixel((10, 10))),
    "a spot removed": lambda im: drawn_on(im, (0.31, 0.31, 0.35, 0.36), im.getpixel((im.width // 2, 10))),
}


def drawn_on(picture: Image.Image, box: tuple[float, ...], colour: Any) -> Image.Image:
    """The picture with a rectangle, its corners in shares of the sides."""
    drawn = picture.copy()
    corners = [share * side for share, side in zip(box, picture.size * 2, strict=True)]
    ImageDraw.Draw(drawn).rectangle(corners, fill=colour)
    return drawn


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_version_is_not_a_copy(tmp_path: Path, edit: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        original = photo(seed, (1200, 900))
        save(original, tmp_path / f"{seed}.jpg", quality=95)
        save(EDITS[edit](original), tmp_path / f"{seed} edited.jpg", quality=92)
    assert groups(tmp_path, capsys=capsys) == []


def test_the_next_shot_of_a_burst_is_not_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, person = photo(1, (1600, 1200)), photo(2, (160, 200))
    for shot in range(4):
        frame = scene.copy()
        frame.paste(person, (600 + 25 * shot, 500))
        save(frame, tmp_path / f"IMG_{shot}.jpg", quality=92)
    assert groups(tmp_path, capsys=capsys) == []


def test_an_animation_is_not_a_copy_of_its_first_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [photo(seed, (320, 240)) for seed in (1, 2, 3)]
    for suffix in ("gif", "webp", "png", "tif"):
        save(frames[0], tmp_path / f"{suffix} still.{suffix}")
        save(frames[0], tmp_path / f"{suffix} moving.{suffix}", save_all=True, append_images=frames[1:])
        save(frames[0], tmp_path / f"{suffix} shorter.{suffix}", save_all=True, append_images=frames[1:2])
    for threshold in ("0", "64"):
        for found in groups(tmp_path, "--threshold", threshold, capsys=capsys):
            assert len({name.split()[1].split(".")[0] for name in found}) == 1


def test_files_of_several_pictures_are_copies_only_if_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [photo(seed, (320, 240)) for seed in (1, 2, 3)]
    for suffix in ("gif", "webp", "png", "tif"):
        for second in (1, 2):
            save(pages[0], tmp_path / f"{suffix} {second}.{suffix}", save_all=True, append_images=[pages[second]])
    shutil.copy(tmp_path / "tif 1.tif", tmp_path / "copy.tif")
    assert groups(tmp_path, capsys=capsys) == [["tif 1.tif", "copy.tif"]]


def test_a_preview_inside_a_camera_file_is_no_second_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "camera.mpo", save_all=True, append_images=[photo().resize((160, 120))])
    (tmp_path / "camera.mpo").rename(tmp_path / "camera.jpg")
    with Image.open(tmp_path / "camera.jpg") as picture:
        assert (picture.format, picture.n_frames) == ("MPO", 2)
    save(photo(), tmp_path / "plain.jpg")
    assert groups(tmp_path, capsys=capsys) == [["plain.jpg", "camera.jpg"]]


def test_transparent_pictures_are_copies_only_if_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever lies behind: a white name on transparency vanishes on white paper, a black one on black."""
    for name, ink in itertools.product(("Anna Meier", "Bob Schulz"), ("black", "white", "gray")):
        logo = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
        ImageDraw.Draw(logo).ellipse((40, 40, 300, 300), fill="white")
        ImageDraw.Draw(logo).text((310, 20), name, fill=ink)
        save(logo, tmp_path / f"{name} {ink}.png")
        save(logo.convert("RGB"), tmp_path / f"{name} {ink} on black.png")
    shutil.copy(tmp_path / "Anna Meier white.png", tmp_path / "copy.png")
    found = [group for group in groups(tmp_path, capsys=capsys) if any("on black" not in name for name in group)]
    assert found == [["Anna Meier white.png", "copy.png"]]


def test_flat_pictures_are_copies_only_when_the_files_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in (0, 2, 4, 128, 130, 252, 255):
        save(Image.new("RGB", (400, 300), (level, level, level)), tmp_path / f"flat{level}.png")
        save(Image.new("RGB", (400, 300), (level, 0, 0)), tmp_path / f"red{level}.gif")
    for page in range(3):  # blank but for a page number
        paper = Image.new("L", (1000, 1400), 250)
        ImageDraw.Draw(paper).text((500, 1370), str(page), fill=60)
        save(paper, tmp_path / f"page{page}.jpg")
    stripes = np.zeros((1024, 1024), np.uint8) + np.arange(1024, dtype=np.uint8) % 2 * 40 + 100
    save(Image.fromarray(stripes), tmp_path / "upright stripes.jpg")
    save(Image.fromarray(stripes.T), tmp_path / "level stripes.jpg")
    noise = np.random.default_rng(1).integers(0, 4, (2, 300, 400), dtype=np.uint8)
    save(Image.fromarray(noise[0]), tmp_path / "lens cap 1.png")
    save(Image.fromarray(noise[1]), tmp_path / "lens cap 2.png")
    shutil.copy(tmp_path / "page1.jpg", tmp_path / "page1 again.jpg")
    save(Image.new("RGB", (200, 150), (255, 255, 255)), tmp_path / "white but smaller.png")
    for threshold in ("0", "10"):
        found = [sorted(group) for group in groups(tmp_path, "--threshold", threshold, capsys=capsys)]
        assert found == [["page1 again.jpg", "page1.jpg"]]


def test_flat_jpegs_of_other_tables_or_orientation_are_no_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripes = np.zeros((1024, 1024), np.uint8) + np.arange(1024, dtype=np.uint8) % 2 * 40 + 100
    for orientation in (1, 2):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(Image.fromarray(stripes), tmp_path / f"turned{orientation}.jpg", exif=exif)
    black = save(Image.new("L", (640, 480), 0), tmp_path / "black.jpg", quality=6).read_bytes()
    table = black.index(b"\xff\xdb") + 5
    (tmp_path / "grey.jpg").write_bytes(black[:table] + bytes([black[table] // 4]) + black[table + 1 :])
    assert groups(tmp_path, capsys=capsys) == []


def test_pages_that_differ_in_one_line_are_not_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, line in enumerate(["Chapter One: The early years in Vienna", "Appendix B: Letters to my grandmother"]):
        page = Image.new("RGB", (1240, 1754), "white")
        ImageDraw.Draw(page).text((150, 200), line, fill="black", font_size=24)
        save(page, tmp_path / f"{number}.png")
        save(page, tmp_path / f"{number} q20.jpg", quality=20)
        save(page, tmp_path / f"{number} q75.jpg", quality=75)
        save(page.quantize(16), tmp_path / f"{number} palette.png")
        save(page, tmp_path / f"{number}.gif")
    for found in groups(tmp_path, capsys=capsys):
        assert len({name[0] for name in found}) == 1


# ── metadata ──

NOTHING_SAID = idem.Metadata(bits=8, colours="colour", pages=1)
XMP_NAMES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "HDRGainMap": "http://ns.apple.com/HDRGainMap/1.0/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
}
A_LIST = "<dc:{0}><rdf:Bag><rdf:li>sea</rdf:li><rdf:li>Lofoten</rdf:li></rdf:Bag></dc:{0}>"
FILM_INSIDE = b"\0\0\0\x18ftypmp42" + bytes(40)


def metadata_of(path: Path) -> idem.Metadata:
    """What the file says, without what its encoder or a digest of its texts tell."""
    return replace(fingerprint(path).metadata, words="", stated_side=0, jfif=False)


def xmp_of(attributes: str = "", elements: str = "") -> bytes:
    names = " ".join(f'xmlns:{prefix}="{name}"' for prefix, name in XMP_NAMES.items())
    body = f'<rdf:RDF {names}><rdf:Description rdf:about="" {attributes}>{elements}</rdf:Description></rdf:RDF>'
    start = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    return f'{start}{body}</x:xmpmeta>{" " * 99}<?xpacket end="w"?>'.encode()


def exif_saying(camera: dict[int, Any], **more: Any) -> Image.Exif:
    """EXIF with these tags in the camera's directory, `place` in that of the place, and `tags` in the main one."""
    exif = Image.Exif()
    for tag, value in more.get("tags", {}).items():
        exif[tag] = value
    exif[0x8769] = camera
    exif[0x8825] = more.get("place", {})
    return exif


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with one more segment of metadata at its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def with_iptc(jpeg: bytes, field: int, text: bytes) -> bytes:
    record = struct.pack(">BBBH", 0x1C, 2, field, len(text)) + text
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record + bytes(len(record) % 2)
    return with_segment(jpeg, 0xED, b"Photoshop 3.0\0" + resource)


def bytes_of(picture: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, form, **options)
    return memory.getvalue()


SMALL_SIZE = (96, 72)
CAMERA_SAYS = {0x9003: "2021:07:05 10:00:00", 0x9291: "25", 0x9011: "+02:00", 0xA431: "0421\0"}
CAMERA_PLACE = {1: "N", 2: (60.0, 10.0, 30.0), 3: "E", 4: (5.0, 20.0, 0.0)}


def test_what_tells_a_cameras_file_from_a_programs_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA002: 4000, 0xA003: 3000})
    exif[0x013B] = "Anna"
    by_program = save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif).read_bytes()
    found = fingerprint(tmp_path / "a.jpg").metadata
    assert (found.jfif, found.stated_side, found.words) == (True, 4000, f"{zlib.crc32(repr(['Anna']).encode()):08x}")
    jfif = by_program.index(b"JFIF") - 4
    (tmp_path / "a.jpg").write_bytes(by_program[:jfif] + by_program[jfif + 18 :])
    assert fingerprint(tmp_path / "a.jpg").metadata == replace(found, jfif=False)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "heic"])
def test_what_a_camera_says_is_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    tags = {0x010F: " Canon\0", 0x0110: "EOS  R5", 0x0131: "Ver. 1.0", 0x0132: "2021:07:05 10:00:09", 0x4746: 4}
    tags |= {0x010E: "By the sea", 0x9C9E: "sea".encode("utf-16-le")}
    exif = exif_saying(CAMERA_SAYS, tags=tags, place=CAMERA_PLACE).tobytes()
    said = metadata_of(save(photo(size=SMALL_SIZE), tmp_path / f"a.{suffix}", exif=exif))
    assert said == idem.Metadata(
        taken="2021-07-05T10:00:00.25+02:00",
        make="Canon",
        model="EOS R5",
        serial="0421",
        software="Ver. 1.0",
        place=True,
        rating=4,
        keywords=True,
        caption=True,
        bits=8,
        colours="colour",
        lossless=suffix in ("png", "tif"),
        pages=1,
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "heic"])
def test_what_editors_say_in_xmp_is_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    packet = xmp_of('xmp:Rating="-1" exif:DateTimeOriginal="2021-07-05T10:00:00.25+02:00"', A_LIST.format("subject"))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    options: dict[str, Any] = {"png": {"pnginfo": text}, "tif": {"tiffinfo": {700: packet}}}
    said = metadata_of(save(photo(size=SMALL_SIZE), tmp_path / f"a.{suffix}", **options.get(suffix, {"xmp": packet})))
    expected = replace(NOTHING_SAID, taken="2021-07-05T10:00:00.25+02:00", rating=-1, keywords=True)
    assert said == replace(expected, lossless=suffix in ("png", "tif"))


XMP_SAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nothing": ("", "", {}),
    "a date": ('photoshop:DateCreated="1962-07"', "", {"taken": "1962-07-01T00:00:00"}),
    "a time": (
        "",
        "<photoshop:DateCreated>2021-07-05T10:00Z</photoshop:DateCreated>",
        {"taken": "2021-07-05T10:00:00+00:00"},
    ),
    "a title": ("", A_LIST.format("title"), {"caption": True}),
    "a caption": ("", A_LIST.format("description"), {"caption": True}),
    "no caption": ("", "<dc:description><rdf:Alt><rdf:li> </rdf:li></rdf:Alt></dc:description>", {}),
    "a place": ('exif:GPSLatitude="60,10.5N" exif:GPSLongitude="5,20.0E"', "", {"place": True}),
    "no place": ('exif:GPSLatitude="0,0.0N" exif:GPSLongitude="0,0.0E"', "", {}),
    "half a place": ('exif:GPSLatitude="60,10.5N"', "", {}),
    "a tool": ('xmp:CreatorTool="GIMP 2.10"', "", {"software": "GIMP 2.10", "edited": True}),
    "the version of an editor": ('crs:Version="15.4" crs:MotionPhoto="1"', "", {}),
    "a gain map that is gone": ('hdrgm:Version="1.0"', "", {}),
    "a film that is gone": ('GCamera:MotionPhoto="1"', "", {}),
    "what is nested": ("", '<crs:Look rdf:parseType="Resource"><xmp:Rating>5</xmp:Rating></crs:Look>', {}),
}


@pytest.mark.parametrize("name", list(XMP_SAYS))
def test_xmp_says_no_more_than_it_does(tmp_path: Path, name: str) -> None:
    attributes, elements, expected = XMP_SAYS[name]
    said = metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", xmp=xmp_of(attributes, elements)))
    assert said == replace(NOTHING_SAID, **expected)


CAPTURE_TIMES: list[tuple[dict[int, Any], str]] = [
    ({0x9003: "2021:07:05 10:00:00"}, "2021-07-05T10:00:00"),
    ({0x9003: "2021:07:05 10:00:00\0", 0x9291: "007 ", 0x9011: "-03:30"}, "2021-07-05T10:00:00.007-03:30"),
    ({0x9003: "2021:07:05 10:00:00", 0x9291: "none", 0x9011: "   :  "}, "2021-07-05T10:00:00"),
    ({0x9003: "2021:07:05 10:00:00", 0x9292: "33", 0x9012: "+01:00"}, "2021-07-05T10:00:00"),
    ({0x9004: "2021:07:05 10:00:00", 0x9292: "33", 0x9012: "+01:00"}, "2021-07-05T10:00:00.33+01:00"),
    ({0x9003: "0000:00:00 00:00:00", 0x9004: "2021:07:05 10:00:00"}, "2021-07-05T10:00:00"),
    ({0x9003: "2021-07-05T10:00:00"}, "2021-07-05T10:00:00"),
    ({0x9003: "    :  :     :  :  "}, ""),
    ({0x9003: "2021:13:05 10:00:00"}, ""),
    ({0x9003: "20210705"}, ""),
    ({}, ""),
]


def test_the_capture_time_is_what_the_camera_states(tmp_path: Path) -> None:
    """Never the time of the last change."""
    for camera, expected in CAPTURE_TIMES:
        exif = exif_saying(camera, tags={0x0132: "2022:01:01 00:00:00"})
        assert metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif)).taken == expected, camera


def test_a_png_may_tell_its_time_in_words(tmp_path: Path) -> None:
    texts = {
        "Mon, 05 Jul 2021 10:00:00 +0200": "2021-07-05T10:00:00+02:00",
        "2021:07:05 10:00:00": "2021-07-05T10:00:00",
        "yesterday": "",
    }
    for text, expected in texts.items():
        about = PngImagePlugin.PngInfo()
        about.add_text("Creation Time", text)
        assert metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.png", pnginfo=about)).taken == expected


def test_edited_is_what_an_editor_or_a_later_time_of_change_tells(tmp_path: Path) -> None:
    cases = [
        ("14.4.2", "2021:07:05 10:02:00", False),
        ("14.4.2", "2021:07:05 10:02:01", True),
        ("14.4.2", "2021:07:05 09:50:00", True),
        ("HDR+ 1.0.345618096zd", "2021:07:05 10:00:00", False),
        ("", "0000:00:00 00:00:00", False),
        ("Adobe Photoshop Lightroom Classic 12.3", "2021:07:05 10:00:00", True),
        ("Snapseed 2.0", "", True),
    ]
    for software, changed, expected in cases:
        exif = exif_saying(CAMERA_SAYS, tags={0x0131: software, 0x0132: changed})
        said = metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif))
        assert (said.software, said.edited) == (software, expected), (software, changed)
    packet = xmp_of('exif:DateTimeOriginal="2021-07-05T10:00:00+02:00" xmp:ModifyDate="2021-07-05T08:01:00Z"')
    assert not metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", xmp=packet)).edited


def test_what_a_camera_writes_by_itself_is_no_caption(tmp_path: Path) -> None:
    silent = [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "SAMSUNG",
        "DCIM\\100MEDIA\\DJI_0001.JPG",
        "  ",
        "\0\0",
        "cof",
    ]
    for text, expected in [*((each, False) for each in silent), ("Mum with her digital cameras", True), ("9", True)]:
        exif = exif_saying({}, tags={0x010E: text})
        assert metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif)).caption == expected, text


def test_a_comment_is_a_caption_if_it_is_text(tmp_path: Path) -> None:
    comments = {
        b"ASCII\0\0\0By the sea": True,
        b"UNICODE\0" + "海".encode("utf-16-le"): True,
        b"ASCII\0\0\0" + bytes(20): False,
        bytes(8) + b"\x93\x12AF 7": False,
        b"": False,
    }
    for comment, expected in comments.items():
        exif = exif_saying({0x9286: comment})
        assert metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif)).caption == expected, comment


def test_iptc_has_keywords_and_captions(tmp_path: Path) -> None:
    plain = bytes_of(photo(size=SMALL_SIZE))
    cases: list[tuple[int, bytes, dict[str, Any]]] = [(25, b"sea", {"keywords": True}), (25, b"", {})]
    for field, text, expected in [*cases, (120, b"By the sea", {"caption": True})]:
        (tmp_path / "a.jpg").write_bytes(with_iptc(plain, field, text))
        assert metadata_of(tmp_path / "a.jpg") == replace(NOTHING_SAID, **expected)


def deep_png(size: tuple[int, int]) -> bytes:
    """A PNG of colours in 16 bits, which Pillow cannot write."""
    levels = np.asarray(photo(size=size)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", *size, 16, 2, 0, 0, 0)
    pieces = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in pieces
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_depth_colours_and_loss_are_those_of_the_file(tmp_path: Path) -> None:
    picture = photo(size=SMALL_SIZE)
    grey, levels = picture.convert("L"), np.asarray(photo(size=SMALL_SIZE)).astype("<u2") * 257
    saved: dict[str, tuple[Image.Image, dict[str, Any], tuple[int, str, bool]]] = {
        "a.jpg": (picture, {}, (8, "colour", False)),
        "grey.jpg": (grey, {}, (8, "grey", False)),
        "a.png": (picture, {}, (8, "colour", True)),
        "palette.png": (picture.quantize(16), {}, (8, "palette", True)),
        "line.png": (picture.convert("1"), {}, (1, "grey", True)),
        "deep grey.png": (Image.fromarray(levels[..., 0]), {}, (16, "grey", True)),
        "palette.gif": (picture.quantize(256), {}, (8, "palette", True)),
        "a.bmp": (picture, {}, (8, "colour", True)),
        "a.webp": (picture, {}, (8, "colour", False)),
        "lossless.webp": (picture, {"lossless": True}, (8, "colour", True)),
        "lossless with profile.webp": (picture, {"lossless": True, "icc_profile": b"x"}, (8, "colour", True)),
        "a.tif": (picture, {}, (8, "colour", True)),
        "line.tif": (picture.convert("1"), {}, (1, "grey", True)),
        "deep grey.tif": (Image.fromarray(levels[..., 0]), {}, (16, "grey", True)),
        "float.tif": (Image.fromarray(levels[..., 0].astype("float32")), {}, (32, "grey", True)),
        "a jpeg inside.tif": (picture, {"compression": "jpeg"}, (8, "colour", False)),
    }
    expected = {name: about for name, (_, _, about) in saved.items()}
    for name, (each, options, _) in saved.items():
        save(each, tmp_path / name, **options)
    (tmp_path / "deep.png").write_bytes(deep_png(SMALL_SIZE))
    pillow_heif.from_bytes("RGB;16", SMALL_SIZE, levels.tobytes()).save(tmp_path / "deep.heic", bit_depth=10)
    expected |= {"deep.png": (16, "colour", True), "deep.heic": (10, "colour", False)}
    said = {name: metadata_of(tmp_path / name) for name in expected}
    assert {name: (each.bits, each.colours, each.lossless) for name, each in said.items()} == expected


def test_quantisers_are_those_that_the_pixels_went_through(tmp_path: Path) -> None:
    picture = photo(size=SMALL_SIZE)
    for quality in (40, 90):
        expected = fingerprint(save(picture, tmp_path / "a.jpg", quality=quality)).luma_step
        found = fingerprint(save(picture, tmp_path / "a.tif", compression="jpeg", quality=quality))
        assert (found.luma_step, found.chroma_step) == (expected, expected), "red, green and blue share a table"
    for name, options, steps in (("lossless.webp", {"lossless": True}, (0, 0)), ("lossy.webp", {}, (16, 16))):
        found = fingerprint(save(picture, tmp_path / name, **options))
        assert (found.luma_step, found.chroma_step) == steps


def test_quantisers_of_a_tiff_are_those_of_its_strips_or_tiles(tmp_path: Path) -> None:
    picture, path = photo(size=(256, 256)), tmp_path / "a.tif"
    in_jpeg = fingerprint(save(picture, tmp_path / "a.jpg", quality=40))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[278] = 256  # rows in a strip
    save(picture.convert("YCbCr"), path, compression="jpeg", quality=40, tiffinfo=tags)
    in_strip = fingerprint(path)
    as_tile(path)
    in_tile = fingerprint(path)
    for found in (in_strip, in_tile):
        assert (found.luma_step, found.chroma_step) == (in_jpeg.luma_step, in_jpeg.chroma_step) == (20, 21)
        assert distance(found, in_jpeg) == 0


def as_tile(path: Path) -> None:
    """Make the one strip of a square TIFF its one tile."""
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[4:8], "little")
    entries = [
        directory + 2 + 12 * number for number in range(int.from_bytes(data[directory : directory + 2], "little"))
    ]
    said = {int.from_bytes(data[at : at + 2], "little"): bytes(data[at : at + 12]) for at in entries}
    side = said[256][2:]
    del said[278]  # rows in a strip
    offsets, lengths = said.pop(273), said.pop(279)
    said |= {322: b"  " + side, 323: b"  " + side, 324: b"  " + offsets[2:], 325: b"  " + lengths[2:]}
    written = b"".join(struct.pack("<H", tag) + said[tag][2:] for tag in sorted(said))
    data[4:8] = len(data).to_bytes(4, "little")
    path.write_bytes(data + struct.pack("<H", len(said)) + written + bytes(4))


def test_previews_and_gain_maps_are_no_pages_and_3d_photos_have_two(tmp_path: Path) -> None:
    picture, other, path = photo(size=SMALL_SIZE), photo(2, SMALL_SIZE), tmp_path / "a.jpg"
    small, grey = other.resize((48, 36)), other.convert("L")

    def said_of(data: bytes) -> tuple[int, bool]:
        path.write_bytes(data)
        said = metadata_of(path)
        return said.pages, said.gain_map

    def mpo(second: Image.Image, kind: int = 0, about: bytes = b"", **options: Any) -> bytes:
        data = bytes_of(picture, "MPO", save_all=True, append_images=[second], **options)
        entry, at = data.index(b"MPF\0") + 70, data.rindex(b"\xff\xd8\xff")
        end = with_segment(data[at:], 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + about) if about else data[at:]
        return data[:entry] + struct.pack("<I", kind) + data[entry + 4 : at] + end

    stated = xmp_of('hdrgm:Version="1.0"')
    assert said_of(bytes_of(picture)) == (1, False)
    assert said_of(mpo(other)) == (2, False)
    assert said_of(mpo(other, 0x020002)) == (2, False)  # for two eyes
    assert said_of(mpo(small, 0x020001)) == (2, False)  # a panorama
    assert said_of(mpo(other, 0x010002)) == (1, False)  # a preview for a television
    assert said_of(mpo(small)) == (1, False)
    assert said_of(mpo(grey, 0, stated)) == (1, True)
    assert said_of(mpo(small, 0, xmp_of('HDRGainMap:HDRGainMapVersion="65536"'))) == (1, True)
    assert said_of(mpo(other, xmp=stated)) == (1, True)
    cut = mpo(other, xmp=stated)
    assert said_of(cut[: cut.rindex(b"\xff\xd8\xff")]) == (1, False)
    assert said_of(bytes_of(picture, xmp=stated) + bytes_of(grey)) == (1, True)
    iso = with_segment(bytes_of(picture), 0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4))
    assert said_of(iso + bytes_of(grey)) == (1, True)


def test_reduced_pages_of_a_tiff_are_no_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = photo(), photo(size=(320, 240)), photo(2, (320, 240)), photo(3, (320, 240))

    def tiff(name: str, *kinds: int) -> int:
        """A TIFF whose pages after the first are of these kinds; how many pages it is said to have."""
        path, data = tmp_path / name, io.BytesIO()
        with TiffImagePlugin.AppendingTiffWriter(data) as writer:
            for page, kind in zip([first, *others], [0, *kinds], strict=False):
                page.save(writer, "TIFF", tiffinfo={254: kind})
                writer.newFrame()
        path.write_bytes(data.getvalue())
        return metadata_of(path).pages

    pages = {"flat.tif": tiff("flat.tif"), "preview.tif": tiff("preview.tif", 1)}
    pages |= {
        "pyramid.tif": tiff("pyramid.tif", 1, 1, 1),
        "pages.tif": tiff("pages.tif", 1, 0),
        "2.tif": tiff("2.tif", 2),
    }
    assert pages == {"flat.tif": 1, "preview.tif": 1, "pyramid.tif": 1, "pages.tif": 2, "2.tif": 2}
    assert [sorted(each) for each in groups(tmp_path, capsys=capsys)] == [["flat.tif", "preview.tif", "pyramid.tif"]]


def test_a_motion_photo_is_one_that_has_its_film(tmp_path: Path) -> None:
    for attributes, behind, expected in [
        ('GCamera:MotionPhoto="1"', FILM_INSIDE, True),
        ('GCamera:MicroVideo="1"', FILM_INSIDE, True),
        ('GCamera:MotionPhoto="1"', b"", False),
        ('GCamera:MotionPhoto="0"', FILM_INSIDE, False),
        ("", b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + FILM_INSIDE, True),
        ("", FILM_INSIDE, False),
    ]:
        (tmp_path / "a.jpg").write_bytes(bytes_of(photo(size=SMALL_SIZE), xmp=xmp_of(attributes)) + behind)
        assert metadata_of(tmp_path / "a.jpg") == replace(NOTHING_SAID, motion=expected), (attributes, behind)


def apples_note(*identifiers: tuple[int, str]) -> bytes:
    """Apple's maker note with these texts by tag."""
    note, texts = b"Apple iOS\0\0\x01MM" + struct.pack(">H", len(identifiers)), b""
    for tag, text in identifiers:
        at = 14 + 2 + 12 * len(identifiers) + 4 + len(texts)
        note += struct.pack(">HHII", tag, 2, len(text) + 1, at)
        texts += text.encode() + b"\0"
    return note + bytes(4) + texts


@pytest.mark.parametrize("suffix", ["jpg", "heic"])
def test_a_live_photo_tells_its_content_identifier(tmp_path: Path, suffix: str) -> None:
    burst, live = "0B5AC1E2-1111-4A4A-8B8B-000000000000", "570F1469-09C7-4E50-9875-05F21D5BD166"
    notes = {apples_note((0x000B, burst), (0x0011, live)): live, apples_note((0x000B, burst)): "", b"Apple iOS\0": ""}
    for note, expected in notes.items():
        path = save(photo(size=SMALL_SIZE), tmp_path / f"a.{suffix}", exif=exif_saying({0x927C: note}))
        assert metadata_of(path).live_id == expected


def test_a_place_is_two_numbers_that_are_not_both_0(tmp_path: Path) -> None:
    nowhere: list[dict[int, Any]] = [{}, {2: CAMERA_PLACE[2]}, {**CAMERA_PLACE, 2: (0, 0, 0), 4: (0.0, 0.0, 0.0)}]
    nowhere += [{**CAMERA_PLACE, 4: (5.0, TiffImagePlugin.IFDRational(0, 0), 0.0)}]
    for place, expected in [
        *((each, False) for each in nowhere),
        (CAMERA_PLACE, True),
        ({**CAMERA_PLACE, 2: (0.0, 0.0, 0.0)}, True),
    ]:
        path = save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif_saying({}, place=place))
        assert metadata_of(path).place == expected, place


def test_metadata_that_are_broken_cost_neither_the_picture_nor_what_else_is_said(tmp_path: Path) -> None:
    plain, exif = (
        bytes_of(photo(size=SMALL_SIZE)),
        exif_saying(CAMERA_SAYS, tags={0x010F: "Canon"}, place=CAMERA_PLACE).tobytes(),
    )
    entities = "".join(f'<!ENTITY e{level + 1} "{f"&e{level};" * 10}">' for level in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]><x>&e9;</x>'.encode()
    start, nowhere = b"http://ns.adobe.com/xap/1.0/\0", b"(\x88\x25\0\x04\0\0\0\x01)...."
    broken = {
        "nothing": with_segment(plain, 0xE1, exif),
        "the place": with_segment(plain, 0xE1, re.sub(nowhere, lambda found: found[1] + b"\xff\xff\xff\x7f", exif)),
        "a bomb": with_segment(with_segment(plain, 0xE1, exif), 0xE1, start + bomb),
        "no XML": with_segment(with_segment(plain, 0xE1, exif), 0xE1, start + b"<x:xmpmeta"),
        "deep XML": with_segment(with_segment(plain, 0xE1, exif), 0xE1, start + b"<x>" * 20_000),
        "IPTC": with_segment(with_iptc(plain, 25, b"sea")[:-9] + plain[-9:], 0xE1, exif).replace(
            b"\x1c\x02", b"\x1d\xff"
        ),
    }
    for name, data in broken.items():
        (tmp_path / "a.jpg").write_bytes(data)
        said = metadata_of(tmp_path / "a.jpg")
        whole = replace(NOTHING_SAID, taken="2021-07-05T10:00:00.25+02:00", make="Canon", serial="0421", place=True)
        assert replace(said, jfif=False) == replace(whole, place=name != "the place"), name
    cut = with_segment(plain, 0xE1, exif[: len(exif) // 2])
    (tmp_path / "a.jpg").write_bytes(cut)
    assert metadata_of(tmp_path / "a.jpg").make == "Canon"


def test_any_mutated_metadata_are_read_or_left_out(tmp_path: Path) -> None:
    tags = {0x010F: "Canon", 0x0132: "2022:07:05 10:00:00", 0x4746: 4, 0x010E: "By the sea"}
    camera = CAMERA_SAYS | {0x927C: apples_note((0x0011, "570F1469")), 0x9286: b"ASCII\0\0\0By the sea"}
    exif = exif_saying(camera, tags=tags, place=CAMERA_PLACE).tobytes()
    packet = xmp_of('xmp:Rating="4" hdrgm:Version="1.0" GCamera:MotionPhoto="1"', A_LIST.format("subject"))
    picture, saved = photo(4, (48, 36)), {}
    for suffix in (".tif", ".png", ".webp", ".heic"):
        saved[suffix] = save(picture, tmp_path / f"a{suffix}", exif=exif, xmp=packet).read_bytes()
    two: dict[str, Any] = {"save_all": True, "append_images": [photo(5, (48, 36))]}
    saved[".jpg"] = with_iptc(bytes_of(picture, "MPO", exif=exif, xmp=packet, **two), 25, b"sea") + FILM_INSIDE

    def check(given: tuple[str, list[tuple[int, str, bytes]]]) -> None:
        suffix, mutations = given
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(saved[suffix], mutations))
        found = in_worker(pool, idem.fingerprint_image, media_file(path))
        if isinstance(found, idem.Problem):
            assert is_one_line(found.reason)
        elif found is not None:
            assert re.fullmatch(idem.METADATA.pattern.encode(), found.stored_metadata)
            assert idem.written_metadata(found.metadata) == found.stored_metadata
            assert re.fullmatch(TAKEN, found.metadata.taken)

    with closing(idem.Pool(1)) as pool:
        fuzz(st.tuples(st.sampled_from(list(saved)), MUTATIONS), check)


TAKEN = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?([+-]\d\d:\d\d)?)?"


def test_text_that_could_play_tricks_is_escaped(tmp_path: Path) -> None:
    exif = exif_saying({}, tags={0x010F: "Can\x1b[2Jon\n", 0x0110: "x" * 999})
    said = metadata_of(save(photo(size=SMALL_SIZE), tmp_path / "a.jpg", exif=exif))
    assert (said.make, said.model) == ("Can\\x1b[2Jon", "x" * 64)


def test_files_with_other_metadata_and_the_same_picture_have_one_sum_of_its_data(tmp_path: Path) -> None:
    picture = photo(size=SMALL_SIZE)
    one = fingerprint(save(picture, tmp_path / "a.jpg")).integrity
    other = fingerprint(save(picture, tmp_path / "b.jpg", exif=exif_saying(CAMERA_SAYS))).integrity
    assert (one.data_sum, one.data_bytes) == (other.data_sum, other.data_bytes)
    assert one.other_sum != other.other_sum
    assert one.data_sum != fingerprint(save(picture, tmp_path / "c.jpg", quality=80)).integrity.data_sum


def test_the_sums_cover_every_byte_of_a_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.bmp"):
        path = save(photo(size=(16, 16)), tmp_path / name, exif=exif_saying(CAMERA_SAYS))
        if name == "a.jpg":
            path.write_bytes(path.read_bytes() + FILM_INSIDE)
        whole, known = path.read_bytes(), fingerprint(path).exact
        for place in range(0, len(whole), 11):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            found = idem.fingerprint_image(media_file(path))
            assert isinstance(found, idem.Problem) or found.exact != known, place


# ── HEIC pictures, by their thumbnails ──

HEIC_SIZE = 768, 576
HEIC_OPTIONS: dict[str, Any] = {"quality": 70, "tile_size": 192, "thumbnails": [256]}


def thumbnail_item(heif: idem.Heif) -> int:
    grid = heif.grid()
    assert grid
    return next(item for item, kind in heif.kinds.items() if kind == b"hvc1" and item not in grid.tiles)


def with_thumbnail_of(path: Path, other: Path) -> Path:
    """The HEIF with the thumbnail of another one of the same size in place of its own."""
    data = path.read_bytes()
    heif, donor = idem.Heif(data), idem.Heif(other.read_bytes())
    [(_, offset, size)] = heif.places[thumbnail_item(heif)]
    thumbnail = donor.content(thumbnail_item(donor))
    place = struct.Struct(">IHII")  # base, number of parts, offset and length of the first
    own = place.pack(offset, 1, 0, size)
    assert data.count(own) == 1
    new = place.pack(len(data) + 8, 1, 0, len(thumbnail))
    path.write_bytes(data.replace(own, new) + idem.boxed(b"mdat", thumbnail))
    return path


def heic_library(folder: Path) -> Path:
    """HEICs of all sorts, each with a smaller JPEG of the same picture, and one of each sort without."""
    turned = Image.Exif()
    turned[idem.EXIF_ORIENTATION] = 6
    plain = {key: value for key, value in HEIC_OPTIONS.items() if key != "tile_size"}
    bare = {key: value for key, value in HEIC_OPTIONS.items() if key != "thumbnails"}
    sorts: dict[str, dict[str, Any]] = {
        "tiles": HEIC_OPTIONS,
        "turned": HEIC_OPTIONS | {"exif": turned.tobytes()},
        "one tile": plain,
        "no thumbnail": bare,
        "stale": HEIC_OPTIONS,
    }
    for seed, (name, options) in enumerate(sorts.items()):
        for copies, number in (("copied", 2 * seed), ("single", 2 * seed + 1)):
            heic = save(photo(number, HEIC_SIZE), folder / f"{name} {copies}.heic", **options)
            if name == "stale":
                other = save(photo(99, HEIC_SIZE), folder.parent / "other.heic", **HEIC_OPTIONS)
                with_thumbnail_of(heic, other)
            if copies == "copied":
                with Image.open(heic) as picture:
                    save(fitted(picture.convert("RGB"), 640), folder / f"{name}.jpg", quality=80)
    levels = np.asarray(photo(50, HEIC_SIZE), np.uint16) * 256
    deep = pillow_heif.from_bytes("RGB;16", HEIC_SIZE, levels.tobytes())
    deep.save(folder / "deep copied.heic", bit_depth=10, **HEIC_OPTIONS)
    save(photo(50, HEIC_SIZE), folder / "deep.jpg", quality=80)
    return folder


def test_heic_pictures_are_decoded_only_if_they_may_have_a_copy_and_make_the_same_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = heic_library(tmp_path / "lib")
    sorts = "deep", "no thumbnail", "one tile", "stale", "tiles", "turned"
    expected = [[f"{each} copied.heic", f"{each}.jpg"] for each in sorts]
    for _ in "first", "again":
        assert sorted(groups(library, "--cache", str(tmp_path / "cache"), capsys=capsys)) == expected
    with open(tmp_path / "cache" / "images_perceptual_hash_db.csv", encoding="utf-8") as stream:
        decoded = {Path(row["path"]).name for row in csv.DictReader(stream)}
    everything = {path.name for path in library.iterdir()}
    assert everything - decoded == {"tiles single.heic", "turned single.heic"}
    monkeypatch.setattr(idem, "PROXY_WORK", replace(idem.PROXY_WORK, do=idem.fingerprint_image))
    assert sorted(groups(library, "--cache", str(tmp_path / "full"), capsys=capsys)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_thumbnail_of_a_heic_has_nearly_the_hashes_and_cells_of_its_picture(tmp_path: Path, seed: int) -> None:
    heic = save(photo(seed, HEIC_SIZE), tmp_path / "a.heic", **HEIC_OPTIONS)
    file = media_file(heic)
    proxy, full = idem.proxy_image(file), idem.fingerprint_image(file)
    assert isinstance(proxy, idem.Proxy)
    assert isinstance(full, ImageFingerprint)
    for one, other in ((proxy.fingerprint.phash, full.phash), (proxy.fingerprint.dhash, full.dhash)):
        assert (one ^ other).bit_count() <= idem.PROXY_BITS
    pair = [Replica(file, each) for each in (proxy.fingerprint, full)]
    assert idem.ProxyTable(pair).with_copies().tolist() == [True, True]


def test_a_tile_of_an_heif_alone_shows_its_part_of_the_picture(tmp_path: Path) -> None:
    heic = save(photo(3, HEIC_SIZE), tmp_path / "a.heic", **HEIC_OPTIONS)
    heif = idem.Heif(heic.read_bytes())
    grid = heif.grid()
    assert grid
    assert grid[:6] == (768, 576, 4, 192, 192, 0)
    with Image.open(heic) as whole:
        for number in (0, 6):
            row, column = divmod(number, 4)
            with Image.open(io.BytesIO(heif.alone(grid.tiles[number]))) as tile:
                part = whole.crop((192 * column, 192 * row, 192 * (column + 1), 192 * (row + 1)))
                assert tile.convert("RGB").tobytes() == part.convert("RGB").tobytes()


def test_an_heif_cut_anywhere_or_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    data = save(photo(3, HEIC_SIZE), tmp_path / "a.heic", **HEIC_OPTIONS).read_bytes()
    start = data.index(b"meta")
    end = start + struct.unpack_from(">I", data, start - 4)[0]
    rng = random.Random(1)
    refused = 0
    for at in range(start, end, 7):
        for changed in (data[:at], data[:at] + rng.randbytes(1) + data[at + 1 :]):
            try:
                heif = idem.Heif(changed)
                grid = heif.grid()
                if grid:
                    heif.alone(grid.tiles[0])
            except idem.DECODER_ERRORS:
                refused += 1
    assert refused > 50


# ── damaged and hostile files ──

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (".jpg", {"quality": 90}),
    "jpeg with restarts": (".jpg", {"quality": 90, "restart_marker_rows": 1}),
    "progressive": (".jpg", {"quality": 90, "progressive": True}),
    "progressive with restarts": (".jpg", {"quality": 90, "progressive": True, "restart_marker_rows": 1}),
    "png": (".png", {}),
    "gif": (".gif", {}),
    "bmp": (".bmp", {}),
    "tiff": (".tif", {}),
    "lzw": (".tiff", {"compression": "tiff_lzw"}),
    "deflate": (".tif", {"compression": "tiff_adobe_deflate"}),
    "jpeg in tiff": (".tif", {"compression": "jpeg"}),
    "webp": (".webp", {"quality": 80}),
    "lossless webp": (".webp", {"lossless": True}),
    "heic": (".heic", {"quality": 70}),
    **({"avif": (".avif", {"quality": 70, "speed": 10})} if idem.can_read_avif() else {}),
}
# What phones put after the picture: another picture, and a film; both with end markers of their own.
TRAILER = b"\xff\xd8\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0" + bytes(range(1, 200)) * 9 + b"\xff\xd9ftyp\xff\xd9\0\0"


@functools.cache
def encoded_picture(form: str, size: tuple[int, int] = (320, 240)) -> bytes:
    """The file of a made picture in one of FORMATS, or as an interlaced PNG."""
    with tempfile.TemporaryDirectory() as folder:
        if form == "interlaced png":
            plain = save(photo(4, size), Path(folder) / "plain.png")
            ffmpeg("-i", plain, "-flags", "+ildct", Path(folder) / "picture.png")
            return (Path(folder) / "picture.png").read_bytes()
        suffix, options = FORMATS[form]
        return save(photo(4, size), Path(folder) / f"picture{suffix}", **options).read_bytes()


def suffix_for(form: str) -> str:
    return FORMATS.get(form, (".png",))[0]


def decoded(path: Path) -> Image.Image:
    """The picture decoded in full, whatever Pillow has to say about its metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            return picture.convert("RGB")


def is_pixel_true(intact: Path, damaged: Path) -> bool:
    """Whether the damaged file shows exactly what the intact one does."""
    one, other = decoded(intact), decoded(damaged)
    return one.size == other.size and one.tobytes() == other.tobytes()


def cut_short(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(2, len(content))]


def cut_and_closed(content: bytes, rng: random.Random) -> bytes:
    return cut_short(content, rng) + content[-2:]


def with_zeros_at_the_end(content: bytes, rng: random.Random) -> bytes:
    keep = int(len(content) * rng.choice([0.5, 0.9, 0.99, rng.random()]))
    return content[:keep] + bytes(len(content) - keep)


def with_a_lost_sector(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(0, len(content), 512)
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


def with_a_flipped_bit(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def with_a_burst(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    burst = rng.randbytes(rng.choice([2, 16, 64]))
    return (content[:at] + burst + content[at + len(burst) :])[: len(content)]


DAMAGES = cut_short, cut_and_closed, with_zeros_at_the_end, with_a_lost_sector, with_a_flipped_bit, with_a_burst


def image_groups_in(library: Path) -> tuple[list[list[str]], dict[str, str]]:
    """The groups of file names in a library, and the reasons for what was left out, without a process for each run."""
    run = idem.checked_run(idem.build_parser().parse_args([str(library), "--jobs", "1"]))
    with closing(idem.Pool(1)) as pool:
        copies = idem.image_copies(run, idem.scan(str(library), idem.IMAGE_SUFFIXES), pool)
    groups = [[Path(replica.file.path).name for replica in group.replicas] for group in copies.groups]
    return groups, {Path(each.path).name: each.reason for each in copies.unreadable}


@pytest.mark.storm
@pytest.mark.parametrize(
    ("form", "trailer"),
    [
        *((form, b"") for form in [*FORMATS, "interlaced png"]),
        *((form, TRAILER) for form in FORMATS if FORMATS[form][0] == ".jpg"),
    ],
)
def test_row_22_a_damaged_file_never_stands_for_an_intact_one(tmp_path: Path, form: str, trailer: bytes) -> None:
    content = encoded_picture(form)
    intact, damaged = (tmp_path / f"{name}{suffix_for(form)}" for name in ("intact", "damaged"))
    intact.write_bytes(content + trailer)
    save(photo(4, (320, 240)).resize((240, 180)), tmp_path / "small.png")
    rng = random.Random(form)
    for number in range(int(os.environ.get("IDEM_ROUNDS", "1"))):
        for damage in DAMAGES:
            damaged.write_bytes(damage(content, rng) + trailer)
            groups, reasons = image_groups_in(tmp_path)
            if any({intact.name, damaged.name} <= set(group) for group in groups):
                assert is_pixel_true(intact, damaged), (number, damage.__name__)
            is_told = damage is cut_short or (damage is cut_and_closed and suffix_for(form) == ".jpg")
            if is_told and not any(damaged.name in group for group in groups):
                assert is_one_line(reasons[damaged.name]), (number, damage.__name__)


def test_a_jpeg_damaged_in_its_tables_is_told_from_its_double(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(save(photo(), tmp_path / "b.jpg").read_bytes())
    content[content.index(b"\xff\xdb") + 20] ^= 1
    (tmp_path / "a.jpg").write_bytes(content)
    assert groups(tmp_path, capsys=capsys) == []
    assert unreadable(tmp_path, capsys) == {
        "a.jpg": f"the same as {tmp_path / 'b.jpg'} but for some bytes: one of them is damaged, or was edited",
        "b.jpg": f"the same as {tmp_path / 'a.jpg'} but for some bytes: one of them is damaged, or was edited",
    }


def test_a_damaged_double_is_outvoted_by_two_equal_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(save(photo(), tmp_path / "b.bmp").read_bytes())
    shutil.copy(tmp_path / "b.bmp", tmp_path / "c.bmp")
    content[5000] ^= 128
    (tmp_path / "a.bmp").write_bytes(content)
    save(photo().resize((320, 240)), tmp_path / "small.png")
    assert groups(tmp_path, capsys=capsys) == [["b.bmp", "c.bmp", "small.png"]]
    assert list(unreadable(tmp_path, capsys)) == ["a.bmp"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_copies_that_differ_in_metadata_alone_are_not_called_damaged(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, year in (("beach", "2021"), ("shore", "2022")):
        exif = Image.Exif()
        exif[0x010E] = f"Summer {year}"
        save(photo(), tmp_path / f"{name}{suffix}", exif=exif)
    assert len({path.stat().st_size for path in tmp_path.glob(f"*{suffix}")}) == 1
    assert groups(tmp_path, capsys=capsys) == [[f"beach{suffix}", f"shore{suffix}"]]


@pytest.mark.parametrize("form", [*FORMATS, "interlaced png"])
def test_a_cut_file_is_named_with_the_reason(tmp_path: Path, form: str) -> None:
    content = encoded_picture(form)
    for percent in range(5, 100, 5):
        cut = tmp_path / f"{percent}{suffix_for(form)}"
        cut.write_bytes(content[: len(content) * percent // 100])
        found = idem.fingerprint_image(media_file(cut))
        assert isinstance(found, idem.Problem) and is_one_line(found.reason), percent


def test_a_jpeg_with_data_after_its_end_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = save(photo(), tmp_path / "plain.jpg").read_bytes()
    (tmp_path / "motion.jpg").write_bytes(content + b"MotionPhoto_Data" + bytes(5000))
    assert groups(tmp_path, capsys=capsys) == [["motion.jpg", "plain.jpg"]]


def test_a_cut_jpeg_with_several_ends_is_still_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = save(photo(), tmp_path / "whole.jpg").read_bytes()
    half = content[: len(content) // 2] + b"\xff\xd9"
    (tmp_path / "two ends.jpg").write_bytes(half + b"\xff\xd9")
    (tmp_path / "second picture.jpg").write_bytes(half + content)
    assert sorted(unreadable(tmp_path, capsys)) == ["second picture.jpg", "two ends.jpg"]


def test_a_jpeg_stored_as_rgb_without_saying_so_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = save(photo(), tmp_path / "said.jpg", quality=95, keep_rgb=True).read_bytes()
    adobe = content.index(b"\xff\xee")
    silent = content[:adobe] + content[adobe + 2 + int.from_bytes(content[adobe + 2 : adobe + 4], "big") :]
    (tmp_path / "silent.jpg").write_bytes(silent)
    assert groups(tmp_path, capsys=capsys) == [["silent.jpg", "said.jpg"]]


def test_a_jpeg_in_several_scans_is_told_from_a_cut_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "one.png")
    content = save(photo(), tmp_path / "several.jpg", progressive=True, quality=90).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * 97 // 100] + b"\xff\xd9")
    assert groups(tmp_path, capsys=capsys) == [["one.png", "several.jpg"]]
    reason = "truncated: a JPEG that lacks data in some of its parts"
    assert unreadable(tmp_path, capsys) == {"cut.jpg": reason}


def unfinished(content: bytes) -> str:
    """Why the JPEG or TIFF of this content is not fingerprinted, or not let into a group."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.jpg"
        file.write_bytes(content)
        found = idem.fingerprint_image(media_file(file))
        looked = found if isinstance(found, idem.Problem) else idem.check_whole(media_file(file))
        return looked.reason if looked else ""


def scan_data(form: str) -> list[tuple[int, int]]:
    """Where the data of each scan of a JPEG in FORMATS begin and end."""
    jpeg = idem.jpeg_in(io.BytesIO(encoded_picture(form)))
    assert jpeg
    return [(each.data, each.end) for each in jpeg.scans]


def test_whole_jpegs_are_called_whole() -> None:
    for form in FORMATS:
        if suffix_for(form) == ".jpg":
            content = encoded_picture(form)
            for fill in (b"\\g<0>", b"\xff\\g<0>", b"\xff" * 8 + b"\\g<0>"):
                filled = content[:2] + re.sub(rb"\xff[\xc4\xd0-\xda]", fill, content[2:])
                assert unfinished(filled + TRAILER) == "", (form, len(fill))


def test_whole_jpegs_that_store_rgb_are_called_whole(tmp_path: Path) -> None:
    for options in ({"progressive": True}, {"restart_marker_rows": 1}):
        assert unfinished(save(photo(), tmp_path / "a.jpg", keep_rgb=True, **options).read_bytes()) == ""


def test_whole_jpegs_of_next_to_no_data_are_called_whole(tmp_path: Path) -> None:
    for mode, side, level in (("L", 1, 128), ("L", 8, 0), ("L", 16, 255), ("RGB", 1, 255), ("RGB", 8, 128)):
        for optimize in (True, False):
            tiny = Image.new(mode, (side, side), level if mode == "L" else (level, level, level))
            assert unfinished(save(tiny, tmp_path / "a.jpg", optimize=optimize).read_bytes()) == ""


def test_an_arithmetic_coded_jpeg_is_not_called_damaged() -> None:
    content = encoded_picture("jpeg").replace(b"\xff\xc0", b"\xff\xc9")
    assert unfinished(content) == "idem reads no arithmetic-coded JPEGs"


def test_a_jpeg_that_lacks_a_part_between_restart_markers_is_named() -> None:
    content = encoded_picture("jpeg with restarts")
    ((begin, end),) = scan_data("jpeg with restarts")
    parts = re.split(rb"(?=\xff[\xd0-\xd7])", content[begin:end])
    assert len(parts) == 15

    def why(changed: list[bytes]) -> str:
        return unfinished(content[:begin] + b"".join(changed) + content[end:])

    assert why(parts[:5] + parts[6:]) == "damaged: parts of a JPEG are missing or out of order"
    assert why(parts[:4] + parts[12:]) == "truncated: a JPEG without its last parts"  # eight: the order is right
    assert why([*parts[:5], parts[5][:-9], *parts[6:]]) == "truncated: a JPEG that lacks data in some of its parts"
    assert (
        why([*parts[:-1], parts[-1] + b"more data than fit"]) == "damaged: a JPEG with more data than its picture takes"
    )


def test_a_jpeg_of_which_any_scan_is_cut_short_is_named() -> None:
    content = encoded_picture("progressive")
    for begin, end in scan_data("progressive"):
        cut = content[: (begin + end) // 2] + content[end:]
        assert unfinished(cut) == "truncated: a JPEG that lacks data in some of its parts"


def test_what_follows_a_jpeg_does_not_hide_that_it_is_cut() -> None:
    content = encoded_picture("progressive")
    for begin, _ in scan_data("progressive"):
        assert unfinished(content[: begin + 9] + b"\xff\xd9" + TRAILER).startswith("truncated")
        assert unfinished(content[: begin - 9] + b"\xff\xd9" + TRAILER).startswith("truncated")


def test_a_jpeg_that_lost_a_sector_is_named() -> None:
    content = encoded_picture("jpeg")
    for at in range(1024, len(content) - 512, 512):
        assert unfinished(content[:at] + content[at + 512 :])
        assert unfinished(content[:at] + bytes(512) + content[at + 512 :])


def deflated(parts: Sequence[bytes], tiles: bool = False) -> bytes:
    """A Deflate TIFF of 320 x 240 grey pixels, packed in two strips or in four tiles of 160 px by 128."""
    sides = [(322, 160), (323, 128)] if tiles else [(278, 120)]
    entries = {256: (320,), 257: (240,), 258: (8,), 259: (8,), 262: (1,), 277: (1,), **{tag: (n,) for tag, n in sides}}
    begin = 8 + 2 + 12 * (len(entries) + 2) + 4
    lists = 4 * len(parts)
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=begin + 2 * lists)
    values = {324: begin, 325: begin + lists} if tiles else {273: begin, 279: begin + lists}
    fields = [(tag, 1, value) for tag, (value,) in entries.items()] + [(t, len(parts), at) for t, at in values.items()]
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(fields))
    numbers = struct.pack(f"<{2 * len(parts)}I", *starts, *map(len, parts))
    head = b"II*\0" + struct.pack("<IH", 8, len(fields))
    return head + directory + bytes(4) + numbers + b"".join(parts)


def quietly_damaged(part: bytes) -> bytes:
    """The second strip of a Deflate TIFF, packed, with a bit flipped that changes the picture and stops no decoder."""
    first = zlib.compress(bytes(120 * 320))
    for at in range(len(part) // 3, len(part) - 9):
        damaged = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
        with suppress(OSError), Image.open(io.BytesIO(deflated([first, damaged]))) as picture:
            picture.load()
            return damaged
    raise AssertionError("every flipped bit is noticed")


def test_a_deflate_tiff_is_told_damaged_by_the_checksums_of_its_parts() -> None:
    levels = np.asarray(photo(4, (320, 240)).convert("L"))
    strips = [zlib.compress(levels[:120].tobytes()), zlib.compress(levels[120:].tobytes())]
    padded = np.pad(levels, ((0, 16), (0, 0)))
    tiles = [zlib.compress(padded[y : y + 128, x : x + 160].tobytes()) for y in (0, 128) for x in (0, 160)]
    assert [unfinished(deflated(strips)), unfinished(deflated(tiles, tiles=True))] == ["", ""]
    wrong = "damaged: a TIFF with a checksum that is wrong"
    assert unfinished(deflated([strips[0], quietly_damaged(strips[1])])) == wrong
    for parts, tiled in ((strips, False), (tiles, True)):
        endless = zlib.compress(zlib.decompress(parts[-1]) + bytes(10_000_000))
        reason = "damaged: a TIFF with more data than its picture takes"
        assert unfinished(deflated([*parts[:-1], endless], tiled)) == reason
        reason = "truncated: a TIFF that lacks data in some of its parts"
        assert unfinished(deflated([*parts[:-1], parts[-1][:-2]], tiled)) == reason


def test_a_deflate_tiff_damaged_where_no_decoder_notices_stands_for_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = photo(4, (320, 240)).convert("L")
    save(levels, tmp_path / "intact.jpg")
    strips = [zlib.compress(levels.crop((0, y, 320, y + 120)).tobytes()) for y in (0, 120)]
    (tmp_path / "scan.tif").write_bytes(deflated([strips[0], quietly_damaged(strips[1])]))
    assert groups(tmp_path, capsys=capsys) == []
    (tmp_path / "scan.tif").write_bytes(deflated(strips))
    assert groups(tmp_path, capsys=capsys) == [["scan.tif", "intact.jpg"]]


def test_a_double_with_another_palette_or_one_flipped_bit_is_told(tmp_path: Path) -> None:
    for form, at in (("gif", 30), ("lossless webp", 10_281)):
        library = tmp_path / form
        content = bytearray(encoded_picture(form))
        library.mkdir()
        (library / f"intact{suffix_for(form)}").write_bytes(content)
        content[at] ^= 1
        (library / f"damaged{suffix_for(form)}").write_bytes(content)
        groups, reasons = image_groups_in(library)
        assert groups == []
        assert sorted(reasons) in ([], [f"damaged{suffix_for(form)}", f"intact{suffix_for(form)}"])


def test_row_26_different_pictures_that_show_next_to_nothing_are_not_grouped(tmp_path: Path) -> None:
    size = (64, 48)
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    drawing = Image.new("RGBA", size)
    ImageDraw.Draw(drawing).line((0, 0, 60, 40), fill=(0, 0, 0, 255), width=5)
    other = Image.new("RGBA", size)
    ImageDraw.Draw(other).ellipse((9, 9, 40, 40), fill=(0, 0, 0, 255))
    pictures = {
        "white": Image.new("RGB", size, "white"),
        "paper": Image.new("RGB", size, (250, 250, 248)),
        "black": Image.new("RGB", size),
        "night": Image.new("RGB", size, (3, 2, 4)),
        "red": Image.new("RGB", size, "red"),
        "drawing": drawing,
        "other drawing": other,
        "faint": Image.fromarray(grey),
        "faint upside down": Image.fromarray(grey[::-1].copy()),
        "bright": Image.fromarray(grey * 21),
        "bright upside down": Image.fromarray(grey[::-1] * 21),
    }
    for name, picture in pictures.items():
        save(picture, tmp_path / f"{name}.png")
        if picture.mode == "RGB":
            save(picture, tmp_path / f"{name}.jpg")
    assert image_groups_in(tmp_path) == ([], {})


def test_any_mutated_picture_gives_a_fingerprint_or_a_reason(tmp_path: Path) -> None:
    forms = [*FORMATS, "interlaced png"]
    intact = {form: tmp_path / f"intact {form}{suffix_for(form)}" for form in forms}
    for form, path in intact.items():
        path.write_bytes(encoded_picture(form, (96, 72)))
    known = {form: fingerprint(path) for form, path in intact.items()}

    def check(given: tuple[str, list[tuple[int, str, bytes]]]) -> None:
        form, mutations = given
        path = tmp_path / f"mutated{suffix_for(form)}"
        path.write_bytes(mutated(intact[form].read_bytes(), mutations))
        found = in_worker(pool, idem.fingerprint_image, media_file(path))
        if isinstance(found, idem.Problem):
            assert is_one_line(found.reason)
        elif found is not None:
            assert in_worker(pool, idem.fingerprint_image, media_file(path)) == found
            if (found.signature, found.width, found.height) == (known[form].signature, 96, 72):
                assert shown_differently(intact[form], path) < 0.2

    with closing(idem.Pool(1)) as pool:
        fuzz(st.tuples(st.sampled_from(forms), MUTATIONS), check)


def shown_differently(one: Path, other: Path) -> float:
    """The share of pixels that differ visibly."""
    levels = ImageChops.difference(decoded(one).convert("L"), decoded(other).convert("L")).histogram()
    return sum(levels[24:]) / sum(levels)


def test_files_that_are_no_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "not a picture in a format idem reads"
    contents = {
        "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "page.png": b"<!doctype html><script>alert(1)</script>",
        "postscript.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "playlist.webp": b"#EXTM3U\nfile:///etc/passwd\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert unreadable(tmp_path, capsys) == dict.fromkeys(contents, reason)


def test_a_decompression_bomb_is_named_and_not_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = save(Image.new("1", (8, 8)), tmp_path / "bomb.png").read_bytes()
    header = small[12:16] + (50_000).to_bytes(4, "big") * 2 + small[24:29]
    import zlib

    (tmp_path / "bomb.png").write_bytes(small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:])
    jpeg = bytearray(save(photo(1, (64, 48)), tmp_path / "bomb.jpg").read_bytes())
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    (tmp_path / "bomb.jpg").write_bytes(jpeg)
    assert unreadable(tmp_path, capsys) == {
        "bomb.png": "68 B are too few for the 2500 megapixels that it claims",
        "bomb.jpg": f"{idem.readable_size(len(jpeg))} are too few for the 4225 megapixels that it claims",
    }


def test_what_is_made_to_cost_time_or_memory_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".png", ".jpg"):
        save(Image.new("L", (8, 8)), tmp_path / f"small{suffix}")
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 2700, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    (tmp_path / "empty.gif").write_bytes(screen + frame + b";")
    png = (tmp_path / "small.png").read_bytes()
    monkeypatch.setattr(idem, "MAX_JPEG_BYTES", 50_000_000)
    sparse = {  # their size, and what they start with
        "long.png": (5 << 30, png[:33]),
        "metadata.png": (1000, png[:33] + struct.pack(">I", 1 << 29) + b"tEXt"),
        "long.jpg": (60_000_000, (tmp_path / "small.jpg").read_bytes()[:-2]),
        "junk.jpg": (30_000_000, b"\xff\xd8"),
    }
    for name, (size, start) in sparse.items():
        (tmp_path / name).write_bytes(start)
        os.truncate(tmp_path / name, size)
    (tmp_path / "pieces.jpg").write_bytes(b"\xff\xd8" + b"\xff\xe1\0\x02" * 70_000)
    (tmp_path / "pieces.png").write_bytes(png[:33] + b"\0\0\0\0IDAT5\xaf\x06\x1e" * 1_100_000)
    several = save(photo(), tmp_path / "scans.jpg", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + bytes(4)
    several.write_bytes(several.read_bytes()[:-2] + 600 * scan + b"\xff\xd9")
    reasons = {
        "empty.gif": "35 B are too few for the 176 megapixels that it claims",
        "long.png": "5.4 GB are too many for one picture",
        "metadata.png": "damaged: 536.9 MB of metadata in a PNG",
        "long.jpg": "60.0 MB are too many for a JPEG",
        "junk.jpg": "truncated: a JPEG without its end",
        "pieces.jpg": "damaged: a JPEG in too many pieces",
        "pieces.png": "damaged: a PNG in too many pieces",
        "scans.jpg": "more than 500 scans in a JPEG",
    }
    for name, reason in reasons.items():
        path = tmp_path / name
        lasting = name != "long.png"  # which would take long to read
        assert idem.fingerprint_image(media_file(path)) == idem.Problem(str(path), reason, lasting)


def test_a_blank_page_is_not_taken_for_a_bomb(tmp_path: Path) -> None:
    blank = save(Image.new("1", (4960, 7016), 1), tmp_path / "blank.tif", compression="group4")
    assert blank.stat().st_size < 4960 * 7016 / 10_000
    assert fingerprint(blank).width == 4960


def test_a_file_that_several_scans_and_junk_lengthen_is_still_read(tmp_path: Path) -> None:
    plain = save(photo(), tmp_path / "plain.jpg", progressive=True)
    content = plain.read_bytes()
    trailer = b"\xff\xda" * 1000  # a film after the picture contains such bytes by chance
    (tmp_path / "trailer.jpg").write_bytes(content + trailer)
    (tmp_path / "fill.jpg").write_bytes(content[:2] + b"\xff" * 100 + bytes(100) + content[2:])
    assert {fingerprint(path).signature for path in tmp_path.iterdir()} == {fingerprint(plain).signature}


def test_only_a_problem_of_the_bytes_themselves_is_lasting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(photo(), tmp_path / "a.png").read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(content[:-50])
    seen = media_file(cut)
    problems = {"cut": idem.fingerprint_image(seen)}
    os.utime(cut, ns=(1, 1))
    problems["changed"] = idem.fingerprint_image(seen)
    cut.unlink()
    problems["gone"] = idem.fingerprint_image(seen)

    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(idem, "check_png", failing)
    problems["unreadable"] = idem.fingerprint_image(media_file(tmp_path / "a.png"))
    reasons = {name: (each.reason, each.lasting) for name, each in problems.items() if isinstance(each, idem.Problem)}
    assert reasons == {
        "cut": ("truncated: a PNG without its end", True),
        "changed": ("changed while it was scanned", False),
        "gone": ("No such file or directory", False),
        "unreadable": ("Input/output error", False),
    }


def test_a_picture_of_a_200_megapixel_phone_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = photo(3, (1632, 1224)).convert("L")
    save(scene.resize((16_320, 12_240), Image.Resampling.BILINEAR), tmp_path / "phone.jpg", quality=60)
    save(scene, tmp_path / "small.jpg")
    assert groups(tmp_path, capsys=capsys) == [["phone.jpg", "small.jpg"]]


@pytest.mark.parametrize("work", [idem.fingerprint_image, idem.details_of, idem.thumbnail_of])
def test_a_large_picture_is_not_decoded_where_memory_is_short(
    tmp_path: Path, work: Callable[[MediaFile], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = media_file(save(photo(), tmp_path / "scan.tif"))
    monkeypatch.setattr(idem, "memory_allowed", 640 * 480 * 4)
    with pytest.raises(MemoryError, match=r"decoding it takes \d.* MB of memory, and 1\.2 MB are free"):
        work(scan)


class FailsOnce(io.FileIO):
    """A file on a drive of which one read fails, and none after it."""

    reads_left = 0

    def fail_if_due(self) -> None:
        FailsOnce.reads_left -= 1
        if FailsOnce.reads_left == 0:
            raise OSError(errno.EIO, "Input/output error")

    def readinto(self, buffer: Any, /) -> int | None:
        self.fail_if_due()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.fail_if_due()
        return super().readall()


@pytest.mark.parametrize("form", ["heic", "lzw"])
def test_a_drive_that_fails_for_a_moment_is_not_held_against_the_file(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix_for(form)}"
    path.write_bytes(encoded_picture(form))
    file, known = media_file(path), fingerprint(path)
    monkeypatch.setattr(idem, "open", lambda name, _mode: io.BufferedReader(FailsOnce(name)), raising=False)
    failed = idem.Problem(file.path, "Input/output error")
    for number in range(1, 9):
        FailsOnce.reads_left = number
        assert idem.fingerprint_image(file) == (failed if FailsOnce.reads_left <= 0 else known), number


def test_a_file_that_changes_while_it_is_scanned_is_left_out(tmp_path: Path) -> None:
    seen = media_file(save(photo(), tmp_path / "a.png"))
    seen = seen._replace(size=seen.size - 1)
    assert idem.fingerprint_image(seen) == idem.Problem(seen.path, "changed while it was scanned")


# ── videos ──


COPIES_OF_A_VIDEO = {
    "container.mkv": ["-c", "copy"],
    "smaller.mp4": ["-vf", "scale=96:72", "-c:v", "libx264", "-crf", "24"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-q:v", "5"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-b:v", "300k", "-deadline", "realtime", "-cpu-used", "8"],
    "stronger.m4v": ["-c:v", "libx264", "-crf", "33"],
    "faster.mov": ["-r", "25", "-c:v", "libx264", "-crf", "23"],
    "windows.wmv": ["-c:v", "wmv2", "-q:v", "5"],
    "flash.flv": ["-c:v", "flv", "-q:v", "5"],
    "camcorder.m2ts": ["-c:v", "libx264", "-crf", "24", "-f", "mpegts"],
    "old.mpg": ["-c:v", "mpeg1video", "-q:v", "4", "-r", "25"],
    "dvd.VOB": ["-c:v", "mpeg2video", "-q:v", "4", "-r", "25", "-f", "vob"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "8"],
    "phone.3gp": ["-vf", "scale=176:144,setsar=12/11", "-c:v", "h263", "-q:v", "3"],
    "ten_bits.mp4": ["-c:v", "libx265", "-crf", "24", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error"],
    "full_range.mov": ["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"],
}
EDITS_OF_A_VIDEO = {
    "grey.mp4": ["-vf", "hue=s=0"],
    "other_hue.mp4": ["-vf", "hue=h=40"],
    "brighter.mp4": ["-vf", "eq=brightness=0.08"],
    "mirrored.mp4": ["-vf", "hflip"],
    "cropped.mp4": ["-vf", "crop=iw*0.9:ih*0.9"],
    "stamped.mp4": ["-vf", "drawbox=x=140:y=100:w=40:h=30:color=red:t=fill"],
    "trimmed.mp4": ["-t", "3.2"],
    "reversed.mp4": ["-vf", "reverse"],
    "other_end.mp4": ["-vf", "drawbox=w=192:h=144:color=blue:t=fill:enable='gt(t,3.5)'"],
}


def test_a_video_is_found_in_other_containers_codecs_and_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = clip(tmp_path / "original.mp4", "-c:v", "libx264", "-crf", "12", "-g", "24")
    for name, encoding in COPIES_OF_A_VIDEO.items():
        ffmpeg("-i", original, *encoding, tmp_path / name)
    clip(tmp_path / "another.mp4", seed=2)
    (found,) = groups(tmp_path, "--video", capsys=capsys)
    assert sorted(found) == sorted([*COPIES_OF_A_VIDEO, "original.mp4"])


@pytest.mark.parametrize("name", EDITS_OF_A_VIDEO)
def test_an_edited_video_is_not_a_copy(tmp_path: Path, name: str) -> None:
    original = clip(tmp_path / "original.mp4", "-c:v", "libx264", "-crf", "12")
    ffmpeg("-i", original, *EDITS_OF_A_VIDEO[name], "-c:v", "libx264", "-crf", "12", tmp_path / name)
    assert distance(fingerprint_of_clip(original.read_bytes()), video_fingerprint(tmp_path / name)) > 0


@functools.cache
def fingerprint_of_clip(content: bytes) -> VideoFingerprint:
    """That of an MP4 video with this content, found out once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(content)
        return video_fingerprint(path)


@pytest.mark.parametrize("shared", ["black", "a title"])
def test_videos_that_share_their_beginning_are_not_copies(tmp_path: Path, shared: str) -> None:
    begin = [Image.new("RGB", (192, 144)) if shared == "black" else photo(9, (192, 144))] * 30
    one, other = (
        video_fingerprint(clip(tmp_path / f"{seed}.mp4", frames=begin + moving_frames(seed, 1.5, 12, (192, 144))))
        for seed in (1, 2)
    )
    assert distance(one, other) > 10


def test_black_frames_count_neither_for_nor_against(tmp_path: Path) -> None:
    black = [Image.new("RGB", (192, 144))] * 18
    frames = black + moving_frames(1, 3, 12, (192, 144))
    one = video_fingerprint(clip(tmp_path / "a.mp4", frames=frames))
    other = video_fingerprint(clip(tmp_path / "b.webm", "-c:v", "libvpx-vp9", "-b:v", "300k", frames=frames))
    assert one.flat == other.flat == (True, True, True, False, False, False, False, False)
    assert distance(one, other) == 0


@pytest.mark.parametrize("shown", ["black", "a still"])
def test_a_video_that_shows_too_little_is_a_copy_only_if_equal(
    tmp_path: Path, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    still = Image.new("RGB", (192, 144)) if shown == "black" else photo(3, (192, 144))
    original = clip(tmp_path / "a.mp4", frames=[still] * 40)
    shutil.copy(original, tmp_path / "b.mp4")
    clip(tmp_path / "c.mp4", "-c:v", "libx264", "-crf", "30", frames=[still] * 40)
    assert groups(tmp_path, "--video", "-t", "10", capsys=capsys) == [["a.mp4", "b.mp4"]]


def test_a_video_is_seen_upright_and_in_square_pixels(tmp_path: Path) -> None:
    frames = moving_frames(1, 2, 12, (192, 144))
    plain = clip(tmp_path / "plain.mp4", frames=frames)
    clip(tmp_path / "lying.mp4", frames=[frame.transpose(Image.Transpose.ROTATE_90) for frame in frames])
    turned, wide = tmp_path / "turned.mov", tmp_path / "wide.mkv"
    try:
        ffmpeg("-display_rotation", "-90", "-i", tmp_path / "lying.mp4", "-c", "copy", turned)
    except subprocess.CalledProcessError:  # ffmpeg before version 6
        ffmpeg("-i", tmp_path / "lying.mp4", "-c", "copy", "-metadata:s:v:0", "rotate=270", turned)
    ffmpeg("-i", plain, "-vf", "scale=144:144,setsar=4/3", "-c:v", "libx264", "-crf", "18", wide)
    seen = [video_fingerprint(path) for path in (plain, turned, wide)]
    assert [(each.width, each.height) for each in seen] == [(192, 144)] * 3
    assert [distance(seen[0], each) for each in seen] == [0, 0, 0]


def test_a_video_says_when_where_and_by_what_it_was_made(tmp_path: Path) -> None:
    apple = "com.apple.quicktime."
    told = (
        *(f"{apple}creationdate=2021-07-05T10:00:00+0200", "creation_time=2021-07-05T08:00:01Z", f"{apple}make=Apple"),
        *(f"{apple}model=iPhone 12", f"{apple}software=15.4", f"{apple}location.ISO6709=+60.1-001.2/"),
        *(f"{apple}content.identifier=A-1", "title=a\n    com.android.model: forged\n  Stream #0:1: Audio: aac"),
    )
    known: dict[str, Any] = {"make": "Apple", "model": "iPhone 12", "software": "15.4", "place": True, "live_id": "A-1"}
    plain = idem.Metadata(bits=8, colours="colour", codec="mpeg4")
    (tmp_path / "a.mov").write_bytes(short_movie(*told))
    assert video_fingerprint(tmp_path / "a.mov").metadata == replace(plain, taken="2021-07-05T10:00:00+02:00", **known)
    for words, taken in {
        "creation_time   : 2021-07-05T08:00:01.250000Z": "2021-07-05T08:00:01.25+00:00",
        "creation_time   : 1970-01-01T00:00:00.000000Z": "",
        "creation_time   : 1904-01-01T00:00:00.000000Z\n    location        : +00.0000+000.0000/": "",
        f"{apple}creationdate: never\n    CREATION_TIME   : 2021-07-05 08:00:01": "2021-07-05T08:00:01",
    }.items():
        said = f"mov, from 'a.mov':\n  Metadata:\n    {words}\n  Duration: 00:00:01.00\n    model   : late"
        assert idem.video_metadata(said, ": Video: mpeg4, yuv420p, 64x48") == replace(plain, taken=taken)
    grey = "-f", "lavfi", "-i", "sine", "-c:v", "ffv1", "-pix_fmt", "gray10le", "-c:a", "pcm_s16le", "-t", "1"
    ffmpeg("-i", tmp_path / "a.mov", *grey, "-map_metadata", "-1", tmp_path / "grey.mkv")
    seen = idem.video_stream(str(tmp_path / "grey.mkv")).metadata
    assert (seen.bits, seen.colours, seen.codec, seen.sound, seen.taken) == (10, "grey", "ffv1", True, "")


def test_no_words_of_one_video_pass_for_those_about_another(tmp_path: Path) -> None:
    one, other = tmp_path / "a.mov", tmp_path / "b.mov"
    forged = f"a\nInput #1, mov, from 'file:{other}':\n    com.apple.quicktime.content.identifier: forged\n"
    forged += "  Duration: 00:00:01.00, start: 0.000000\n  Stream #0:0: Video: h264, yuv420p, 64x48, 25 fps\n"
    one.write_bytes(short_movie(f"{forged}=b"))
    other.write_bytes(short_movie())
    assert "forged" in idem.run_ffmpeg(*idem.video_input(str(one)))[1]
    assert idem.video_streams([media_file(one), media_file(other)]) == {}


def test_frames_are_those_at_the_midpoints_of_eight_equal_parts(tmp_path: Path) -> None:
    greys = [Image.new("RGB", (64, 64), (level, level, level)) for level in range(40, 200)]
    for name, encoding in {
        "intra.avi": ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj444p"],
        "one_keyframe.mp4": ["-c:v", "libx264", "-crf", "8", "-g", "1000"],
        "late_start.ts.mts": ["-c:v", "libx264", "-crf", "8", "-g", "1000", "-f", "mpegts", "-output_ts_offset", "99"],
        "b_frames.mkv": ["-c:v", "libx264", "-crf", "8", "-bf", "4"],
        "few_keyframes.mpg": ["-c:v", "mpeg2video", "-q:v", "2", "-g", "60", "-r", "25"],
    }.items():
        path = clip(tmp_path / name, *encoding, frames=greys, rate=20)
        levels = np.frombuffer(base64.b64decode(video_fingerprint(path).signatures), np.uint8).reshape(8, -1)[:, 0]
        expected = [40 + 160 * (2 * part + 1) / 16 for part in range(8)]
        assert np.abs(levels - expected).max() <= 2.5, (name, levels)


def test_a_video_with_frames_at_odd_times_is_found(tmp_path: Path) -> None:
    frames = moving_frames(1, 6, 10, (192, 144))
    listing = tmp_path / "list.txt"
    rng, text = random.Random(5), "ffconcat version 1.0\n"
    for number, frame in enumerate(frames):
        save(frame, tmp_path / f"{number}.png")
        text += f"file {number}.png\nduration {rng.choice([0.05, 0.1, 0.1, 0.15])}\n"
    listing.write_text(text)
    made = ["-f", "concat", "-i", str(listing)]
    rate = (
        "-fps_mode"
        if b"-fps_mode"
        in subprocess.run([str(idem.ffmpeg_path()), "-h", "long"], capture_output=True, check=True).stdout
        else "-vsync"
    )
    ffmpeg(*made, rate, "vfr", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "15", tmp_path / "odd.mkv")
    ffmpeg("-i", tmp_path / "odd.mkv", "-r", "60", "-c:v", "libx264", "-crf", "20", tmp_path / "even.mp4")
    seen = [video_fingerprint(tmp_path / name) for name in ("odd.mkv", "even.mp4")]
    assert distance(*seen) == 0


def test_a_clip_of_one_second_or_of_few_frames_has_its_eight_frames(tmp_path: Path) -> None:
    for name, frames, rate in (("second.mp4", 25, 25), ("few.mp4", 5, 2), ("slow.mov", 4, 0.5)):
        path = clip(tmp_path / name, frames=moving_frames(1, frames, 1, (192, 144)), rate=rate)
        seen = video_fingerprint(path)
        assert seen.milliseconds == pytest.approx(frames / rate * 1000, abs=60)
        assert len(seen.hashes) == 8


def test_three_hours_cost_no_more_than_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=1", "-c:v", "libx264", "-preset", "ultrafast", "-g", "30"]
    asked: list[int] = []
    run = idem.run_ffmpeg

    def counted(*given: str) -> tuple[bytes, str]:
        asked.append(given.count("-i"))
        return run(*given)

    monkeypatch.setattr(idem, "run_ffmpeg", counted)
    for length in (60, 3 * 3600):
        asked.clear()
        ffmpeg(*source, "-t", str(length), tmp_path / f"{length}.mp4")
        assert video_fingerprint(tmp_path / f"{length}.mp4").milliseconds == length * 1000
        assert asked == [1, 8]  # what it is, and eight seeks at once


def test_sound_that_is_longer_or_missing_makes_no_difference(tmp_path: Path) -> None:
    silent = clip(tmp_path / "silent.mp4")
    tone = ["-f", "lavfi", "-t", "9", "-i", "sine=frequency=440"]
    ffmpeg("-i", silent, *tone, "-c:v", "copy", "-c:a", "aac", tmp_path / "longer.mp4")
    ffmpeg("-i", silent, *tone, "-c:v", "copy", "-c:a", "aac", "-t", "4", tmp_path / "sound.mp4")
    seen = [video_fingerprint(tmp_path / name) for name in ("silent.mp4", "sound.mp4", "longer.mp4")]
    assert [distance(seen[0], each) for each in seen] == [0, 0, 0]


def test_a_video_that_does_not_say_how_long_it_is_is_read_to_its_end(tmp_path: Path) -> None:
    plain = clip(tmp_path / "plain.mkv")
    live = tmp_path / "live.mkv"
    with open(live, "wb") as stream:
        subprocess.run(
            [str(idem.ffmpeg_path()), "-v", "error", "-i", plain, "-c", "copy", "-f", "matroska", "-live", "1", "-"],
            stdout=stream,
            check=True,
        )
    assert idem.video_stream(str(live)).seconds is None
    assert distance(video_fingerprint(plain), video_fingerprint(live)) == 0


def test_what_is_no_video_is_named_with_the_reason(tmp_path: Path) -> None:
    sound = ["-f", "lavfi", "-t", "2", "-i", "sine=frequency=440"]
    ffmpeg(*sound, "-c:a", "aac", tmp_path / "sound.mp4")
    cover = save(photo(), tmp_path / "cover.jpg")
    ffmpeg(
        *sound,
        "-i",
        cover,
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "copy",
        "-disposition:v",
        "attached_pic",
        tmp_path / "c.m4v",
    )
    (tmp_path / "junk.avi").write_bytes(random.Random(1).randbytes(50_000))
    (tmp_path / "page.mp4").write_text("<html><video src=a.mp4></html>")
    whole = clip(tmp_path / "whole.mp4", "-c:v", "libx264", "-movflags", "+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert why_not_a_video(tmp_path / "sound.mp4") == "there is no video in it"
    assert why_not_a_video(tmp_path / "c.m4v") == "there is no video in it"
    assert "Invalid" in why_not_a_video(tmp_path / "junk.avi")
    assert "Invalid" in why_not_a_video(tmp_path / "page.mp4")
    assert re.fullmatch(r"damaged: it breaks off after [12]\.\d of 4\.0 s", why_not_a_video(tmp_path / "cut.mp4"))


@pytest.mark.parametrize("kept", [0.96, 0.98])
def test_a_video_that_lacks_its_very_end_is_named_and_not_grouped(
    tmp_path: Path, kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ["-c:v", "libx264", "-crf", "12", "-g", "12", "-movflags", "+faststart"]
    whole = clip(tmp_path / "whole.mp4", *slow, seconds=20)
    ffmpeg("-i", whole, "-vf", "scale=96:72", "-c:v", "libx264", "-crf", "20", tmp_path / "small.mp4")
    content = whole.read_bytes()
    whole.unlink()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * kept)])
    found = report(tmp_path, "--video", capsys=capsys)
    assert found["groups"] == []
    assert [os.path.basename(item["path"]) for item in found["unreadable"]] == ["cut.mp4"]
    assert "breaks off" in found["unreadable"][0]["reason"]


def test_videos_that_differ_where_it_is_looked_are_no_copies(tmp_path: Path) -> None:
    one = [*moving_frames(1, 8, 12, (192, 144))]
    other = one[:18] + [frame.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for frame in one[18:22]] + one[22:]
    jumping = [photo(seed, (192, 144)) for seed in range(96)]
    swapped = [*jumping[:17], *(photo(seed, (192, 144)) for seed in range(200, 203)), *jumping[20:]]
    for name, before, after in (("moving", one, other), ("jumping", jumping, swapped)):
        seen = [
            video_fingerprint(clip(tmp_path / f"{name}{place}.mp4", frames=frames))
            for place, frames in enumerate((before, after))
        ]
        assert distance(*seen) > 0, name


@pytest.mark.parametrize("change", ["none", "fade", "cards", "lamp"])
def test_two_recordings_by_a_fixed_camera_are_not_copies(tmp_path: Path, change: str) -> None:
    for take in (1, 2):
        frames = []
        for number in range(0, 96, 2):
            frame = photo(3, (320, 240))
            ImageDraw.Draw(frame).ellipse((number * 3 * take % 300, 100, number * 3 * take % 300 + 4, 106), "black")
            if change == "fade":
                frame = ImageEnhance.Brightness(frame).enhance(min(1, number / 12, (96 - number) / 12))
            if change == "cards" and not 12 <= number < 84:
                frame = photo(5, (320, 240))
            if change == "lamp" and number % 12 < 6:
                ImageDraw.Draw(frame).rectangle((0, 0, 40, 40), "white")
            frames.append(frame)
        clip(tmp_path / f"{take}.mp4", frames=frames, rate=6)
    seen = [video_fingerprint(tmp_path / f"{take}.mp4") for take in (1, 2)]
    assert distance(*seen) > 0


def test_a_start_time_is_no_part_of_the_duration(tmp_path: Path) -> None:
    plain = clip(tmp_path / "plain.mp4")
    ffmpeg("-itsoffset", "1", "-i", plain, "-c", "copy", tmp_path / "late.mkv")
    ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", "7", tmp_path / "late.m2ts")
    seen = [video_fingerprint(tmp_path / name) for name in ("plain.mp4", "late.mkv", "late.m2ts")]
    assert [distance(seen[0], each) for each in seen] == [0, 0, 0]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_cannot_forge_what_ffmpeg_says_of_another_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "b.mp4", seconds=8)
    (tmp_path / "a.mp4").write_bytes(b"junk")
    forged = "\nInput #9, x\n  Duration: 00:00:02.00, start: 0\n  Stream #0:0: Video: h264, yuv420p, 192x144, 12 fps"
    clip(tmp_path / "aa.mp4", seconds=2).rename(tmp_path / f"aa{forged}.mp4")
    clip(tmp_path / "c.mkv", seconds=8)
    found = report(tmp_path, "--video", capsys=capsys)
    assert [[file["relative"] for file in group["files"]] for group in found["groups"]] == [["b.mp4", "c.mkv"]] or [
        [file["relative"] for file in group["files"]] for group in found["groups"]
    ] == [["c.mkv", "b.mp4"]]
    assert {file["duration"] for group in found["groups"] for file in group["files"]} == {8.0}


@ON_LINUX
@pytest.mark.parametrize("kind", ["hls", "concat", "link"])
def test_ffmpeg_opens_nothing_but_the_file_it_was_given(tmp_path: Path, kind: str) -> None:
    secret = clip(tmp_path / "elsewhere" / "secret.mp4")
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "link": f"<?xml version='1.0'?><smil><video src='file://{secret}'/></smil>",
    }[kind]
    (tmp_path / "playlist.mp4").write_text(text)
    os.utime(secret, (1, 1))
    assert why_not_a_video(tmp_path / "playlist.mp4")
    assert secret.stat().st_atime == 1


@pytest.mark.parametrize("name", ["a\nDuration: 00:00:01.00.mp4", "-i.mp4", "pipe:0.mp4", "a,b;c'd[e].mp4", "%03d.mp4"])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_the_name_of_a_video_cannot_lead_ffmpeg_astray(tmp_path: Path, name: str) -> None:
    os.rename(clip(tmp_path / "plain.mp4", seconds=2), tmp_path / name)
    assert video_fingerprint(tmp_path / name).milliseconds == pytest.approx(2000, abs=60)


FAKE_FFMPEG = {
    "hangs": "sleep 600 & echo $! >> {log}; wait",
    "prints nothing": "exit 0",
    "dies": "kill -SEGV $$",
    "prints rubbish": "head -c 3000000 /dev/zero; echo Input | tee /dev/stderr; exit 0",
}


@ON_LINUX
@pytest.mark.parametrize("kind", FAKE_FFMPEG)
def test_an_ffmpeg_that_misbehaves_costs_its_video_and_is_ended(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library, log = tmp_path / "library", tmp_path / "children"
    save(photo(), library / "a.jpg")
    save(photo(), library / "b.png")
    (library / "clip.mp4").write_bytes(b"x" * 1000)
    fake = tmp_path / "bin" / "ffmpeg"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n" + FAKE_FFMPEG[kind].format(log=log))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.setattr(idem, "TASK_TIMEOUT", 1)
    idem.ffmpeg_path.cache_clear()
    found = report(library, "--video", capsys=capsys)
    idem.ffmpeg_path.cache_clear()
    assert [item["path"] for item in found["unreadable"]] == [str(library / "clip.mp4")]
    assert (
        found["unreadable"][0]["reason"]
        == {
            "hangs": "it took more than 1 s",
            "prints nothing": "ffmpeg says nothing",
            "dies": "ffmpeg says nothing",
            "prints rubbish": "Input",
        }[kind]
    )
    assert [len(group["files"]) for group in found["groups"]] == [2]
    if kind == "hangs":
        for child in log.read_text().split():
            assert not is_running(int(child))


def is_running(pid: int) -> bool:
    """Whether the process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hide_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no ffmpeg on the PATH."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    idem.ffmpeg_path.cache_clear()


def test_the_ffmpeg_that_comes_with_the_requirements_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "library" / "a.mp4")
    clip(tmp_path / "library" / "b.webm", "-c:v", "libvpx-vp9", "-b:v", "300k")
    hide_ffmpeg(tmp_path, monkeypatch)
    found = idem.ffmpeg_path()
    assert found and "imageio_ffmpeg" in found
    assert len(groups(tmp_path / "library", "--video", capsys=capsys)[0]) == 2
    idem.ffmpeg_path.cache_clear()


def test_without_ffmpeg_one_line_says_so_and_images_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_library(tmp_path / "library")
    clip(library / "a.mp4")
    hide_ffmpeg(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(idem, "can_import", lambda module: module != "imageio_ffmpeg")
    assert main([str(library), "--video"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Found 3 duplicate group(s)")
    assert err.splitlines() == [
        "videos need ffmpeg, and there is none; to install one: python -m pip install imageio-ffmpeg",
        f"Scanned {library}: 6 found, 6 new, 0 cached",
    ]
    idem.ffmpeg_path.cache_clear()


def test_videos_are_fingerprinted_once_and_shown_after_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(), tmp_path / "small.jpg", quality=10)
    shutil.copy(tmp_path / "small.jpg", tmp_path / "smaller.jpg")
    clip(tmp_path / "film.mp4", "-c:v", "libx264", "-crf", "24")
    clip(tmp_path / "better.mov", "-c:v", "libx264", "-crf", "12")
    clip(tmp_path / "small.mkv", "-vf", "scale=96:72", "-c:v", "libx264", "-qp", "0")
    first = report(tmp_path, "--video", capsys=capsys)
    assert [(group["kind"], [file["relative"] for file in group["files"]]) for group in first["groups"]] == [
        ("image", ["small.jpg", "smaller.jpg"]),
        ("video", ["better.mov", "film.mp4", "small.mkv"]),
    ]
    assert [file["duration"] for file in first["groups"][1]["files"]] == [4, 4, 4]
    second = report(tmp_path, "--video", capsys=capsys)
    assert second["mode"] == "videos"
    assert (second["totals"]["new"], second["totals"]["cached"]) == (0, 5)
    assert second["groups"] == first["groups"]
    assert report(tmp_path, capsys=capsys)["totals"]["files"] == 2


@ON_LINUX
def test_a_drive_that_fails_ffmpeg_for_a_moment_is_not_held_against_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = idem.ffmpeg_path(), tmp_path / "ffmpeg"
    path = clip(tmp_path / "a.mp4")
    known = video_fingerprint(path)
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: str(fake))
    fake.write_text(f'#!/bin/sh\n[ -e {fake}.failed ] && exec {real} "$@"\ntouch {fake}.failed\nexit 1\n')
    fake.chmod(0o755)
    assert video_fingerprint(path) == known
    Path(f"{fake}.failed").unlink()
    assert idem.check_goes_on(media_file(path), known.seconds) is None
    fake.write_text("#!/bin/sh\nexit 1\n")
    reason = "ffmpeg says nothing"
    assert idem.fingerprint_video(media_file(path)) == idem.Problem(str(path), reason, lasting=True)


@ON_LINUX
def test_an_ffmpeg_that_writes_or_wants_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ffmpeg"
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: str(fake))
    monkeypatch.setattr(idem, "MAX_FFMPEG_BYTES", 1 << 20)
    monkeypatch.setattr(idem, "MAX_FFMPEG_WORDS", 1 << 20)

    def run(script: str) -> tuple[bytes, str]:
        fake.write_text(f"#!/bin/sh\n{script}")
        fake.chmod(0o755)
        return idem.run_ffmpeg()

    with pytest.raises(ValueError, match="more packets than a film has"):
        run("exec yes")
    out, said = run("head -c 3000000 /dev/zero >&2; echo out")
    assert (out, 0 < len(said) <= 2 << 20) == (b"out\n", True)
    with pytest.raises(MemoryError):
        run("echo a.mp4: Cannot allocate memory >&2; exit 1")


def test_any_mutated_video_gives_a_fingerprint_or_a_reason(tmp_path: Path) -> None:
    encodings = {".mp4": (), ".mkv": (), ".avi": ("-c:v", "mjpeg"), ".m2ts": (), ".webm": ("-c:v", "libvpx")}
    intact = {
        suffix: clip(tmp_path / f"intact{suffix}", *encoding, seconds=1, size=(64, 48)).read_bytes()
        for suffix, encoding in encodings.items()
    }

    def check(given: tuple[str, list[tuple[int, str, bytes]]]) -> None:
        suffix, mutations = given
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(intact[suffix], mutations))
        for work in (idem.fingerprint_video, idem.details_of):
            found = in_worker(pool, work, media_file(path))
            if isinstance(found, idem.Problem):
                assert is_one_line(found.reason)
            else:
                assert found is None or found == in_worker(pool, work, media_file(path))

    with closing(idem.Pool(1)) as pool:
        fuzz(st.tuples(st.sampled_from(list(intact)), MUTATIONS), check, examples=2)


# ── checksums ──


def test_the_checksum_is_over_the_size_and_three_windows(tmp_path: Path) -> None:
    mib = 1 << 20
    for size in (1, 12 * mib, 12 * mib + 1, 40 * mib + 3):
        content = random.Random(size).randbytes(size)
        (tmp_path / "a.jpg").write_bytes(content)
        middle = size // 2 - 2 * mib
        windows = content[: 4 * mib] + content[middle : middle + 4 * mib] + content[-4 * mib :]
        summed = content if size <= 12 * mib else windows
        expected = hashlib.sha256(size.to_bytes(8, "little") + summed).hexdigest()
        assert idem.checksum_of(media_file(tmp_path / "a.jpg")) == idem.Checksum(expected)


# ── the worker pool ──


def crash_on_odd(number: int) -> int:
    if number % 2:
        faulthandler.disable()  # pytest's would print a dump
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def hang_on_three_to_five(number: int) -> int:
    """As a drive hangs, and as a decoder does, itself and in a program that it starts."""
    if number == 3:
        time.sleep(600)
    while number == 4:
        pass
    if number == 5:
        subprocess.run([sys.executable, "-c", "while True: pass"], check=True)
    return number


def done_in(pool: idem.Pool, *task: Any, **options: Any) -> dict[Any, Any]:
    """The results by task, or why they were lost."""
    with closing(pool):
        return {task: future.exception() or future.result() for task, future in pool.map(*task, **options)}


def lost_or(result: Any) -> Any:
    """What is said of a lost task and whether that is lasting; else its result."""
    return (str(result), result.lasting) if isinstance(result, idem.TaskLost) else result


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSEGV to send")
def test_a_task_that_crashes_its_process_is_lost_alone() -> None:
    results = done_in(idem.Pool(2), crash_on_odd, range(10))
    assert {n: lost_or(each) for n, each in results.items()} == {
        n: ("the decoder crashed (SIGSEGV)", True) if n % 2 else n for n in range(10)
    }


def killed_the_first_time(folder: str) -> str:
    """How many tasks were at work beside this one, each of which has a file; killed unless it was before."""
    others = len(os.listdir(folder))
    if "first" not in os.listdir(folder):
        Path(folder, "first").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{others - 1} others"


def note_while_at_work(folder: str, name: str) -> str:
    Path(folder, name).touch()
    time.sleep(0.1)
    Path(folder, name).unlink()
    return name


def finished(pool: idem.Pool, *tasks: tuple[Any, ...]) -> list[Any]:
    """What becomes of these tasks."""
    with closing(pool):
        futures = [pool.submit(*task) for task in tasks]
        while not all(future.done() for future in futures):
            pool.step()
        return [lost_or(future.exception() or future.result()) for future in futures]


@ON_LINUX
def test_a_task_whose_process_is_killed_is_tried_again_with_nothing_else_at_work(tmp_path: Path) -> None:
    others = [(note_while_at_work, str(tmp_path), f"other {n}") for n in range(4)]
    tasks = [(killed_the_first_time, str(tmp_path)), *others, (os.kill, 0, signal.SIGKILL)]
    names = [name for _, _, name in others]
    assert finished(idem.Pool(2), *tasks) == ["0 others", *names, ("the decoder crashed (SIGKILL)", False)]


def take_memory(size: int) -> int:
    return len(bytes(size))


@ON_LINUX
def test_a_task_for_which_memory_is_short_is_tried_again_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idem, "available_memory", lambda: 800 << 20)
    pool = idem.Pool(2)
    share = pool.memory // 2
    sizes = [share // 2, share * 3 // 2, share // 3, 3 * share]
    results = finished(pool, *((take_memory, size) for size in sizes))
    assert results == [*sizes[:3], ("not enough memory to decode it", False)]


def test_fewer_workers_are_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idem, "available_memory", lambda: 1 << 30)
    assert (idem.Pool(8).jobs, idem.Pool(1).jobs) == (2, 1)
    monkeypatch.setattr(idem, "available_memory", lambda: 0)
    assert idem.Pool(8).jobs == 1


def test_the_limit_of_a_control_group_counts_as_the_memory_there_is(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        "proc/self/cgroup": "4:memory:/old\n0::/pod/box\n",
        "sys/fs/cgroup/pod/memory.max": "5000000\n",
        "sys/fs/cgroup/pod/memory.current": "3000000\n",
        "sys/fs/cgroup/pod/memory.stat": "anon 1000000\ninactive_file 400000\n",
        "sys/fs/cgroup/pod/box/memory.max": "max\n",
        "sys/fs/cgroup/pod/box/memory.current": "1000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert idem.available_memory(str(tmp_path)) == 2_400_000
    (tmp_path / "sys/fs/cgroup/pod/memory.max").unlink()
    assert idem.available_memory(str(tmp_path)) == 8000 * 1024


@ON_LINUX
@pytest.mark.parametrize(("name", "taken"), [("RLIMIT_AS", 1000), ("RLIMIT_DATA", 500)])
def test_the_limit_that_the_user_set_counts_as_the_memory_there_is(tmp_path: Path, name: str, taken: int) -> None:
    import resource

    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 900000000 kB\n")
    (tmp_path / "proc/self/statm").write_text("1000 9 9 9 0 500 0\n")  # pages
    limit, most = getattr(resource, name), 1 << 38
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (most, before[1]))
    try:
        assert idem.available_memory(str(tmp_path)) == most - taken * resource.getpagesize()
        with idem.limited_memory(1 << 30):
            pass
        assert resource.getrlimit(limit)[0] == most
    finally:
        resource.setrlimit(limit, before)


@ON_LINUX
def test_a_picture_for_which_memory_is_short_is_named_and_not_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Image.linear_gradient("L").resize((5000, 5000)), tmp_path / "large.png", compress_level=1)
    save(photo(), tmp_path / "small.png")
    monkeypatch.setattr(idem, "available_memory", lambda: 200_000_000)
    reason = "decoding it takes 250.6 MB of memory, and 140.0 MB are free"
    found = unreadable(tmp_path, capsys)
    size = (tmp_path / "large.png").stat().st_size
    assert found == {"large.png": reason.replace("250.6 MB", idem.readable_size(250_000_000 + size))}
    with pytest.raises(MemoryError), idem.limited_memory(1 << 20):
        idem.fingerprint_image(media_file(tmp_path / "small.png"))


def test_a_webp_for_which_memory_is_short_is_not_called_damaged(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Summer"
    for options in ({"quality": 50}, {"lossless": True}, {"exif": exif}):
        path = save(photo(1, (1000, 600)), tmp_path / "large.webp", method=0, **options)
        message = r"decoding it takes 10\.8 MB of memory, and 2\.0 MB are free"
        with pytest.raises(MemoryError, match=message), idem.limited_memory(2_000_000):
            idem.fingerprint_image(media_file(path))
        assert fingerprint(path).width == 1000


def test_a_cmyk_jpeg_in_several_scans_for_which_memory_is_short_is_not_called_damaged(tmp_path: Path) -> None:
    path = save(photo(1, (1200, 800)).convert("CMYK"), tmp_path / "a.jpg", progressive=True)
    needed = 1200 * 800 * 4 * 2  # for its coefficients alone
    with pytest.raises(MemoryError, match="decoding it takes"), idem.limited_memory(needed):
        idem.fingerprint_image(media_file(path))


def test_what_libtiff_says_when_memory_is_short_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise OSError("decoder error -9")

    monkeypatch.setattr(idem, "decode", failing)
    with pytest.raises(MemoryError):
        idem.fingerprint_image(media_file(save(photo(), tmp_path / "a.tif")))


def test_a_webp_that_is_too_small_for_its_size_is_named_before_it_takes_memory(tmp_path: Path) -> None:
    path = save(photo(1, (64, 48)), tmp_path / "a.webp", lossless=True)
    path.write_bytes(path.read_bytes()[:21] + struct.pack("<I", 12_000 << 14 | 12_000) + bytes(13))
    reason = "38 B are too few for the 144 megapixels that it claims"
    assert idem.fingerprint_image(media_file(path)) == idem.Problem(str(path), reason, lasting=True)


def test_an_answer_is_never_taken_for_that_of_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [errno.EMFILE]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise OSError(failures.pop(), "out of descriptors")
        return wait(*arguments)

    with closing(idem.Pool(1)) as pool:
        monkeypatch.setattr(idem, "wait", failing)
        assert {n: future.result() for n, future in pool.map(abs, range(5))} == {n: n for n in range(5)}
        given_up = pool.submit(time.sleep, 0.2)
        pool.hand_out()
        pool.workers[0].tasks.clear()  # nobody waits for it any more, and its worker answers late
        following = pool.submit(abs, -7)
        while not following.done():
            pool.step()
        assert (given_up.done(), following.result()) == (False, 7)


def test_a_worker_that_dies_while_idle_costs_no_task() -> None:
    with closing(idem.Pool(2)) as pool:
        for _ in range(2):
            results = {task: future.result() for task, future in pool.map(abs, range(6))}
            assert results == {n: n for n in range(6)}
            for worker in pool.workers:
                worker.process.kill()
                worker.process.join()


def test_a_task_that_hangs_is_lost_alone_and_for_good_only_if_it_kept_a_processor_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idem, "BUSY", 0.05)  # others may want the processor, too
    results = done_in(idem.Pool(2), hang_on_three_to_five, range(8), seconds=lambda number: 0.6)
    can_tell = sys.platform == "linux"
    assert {n: lost_or(each) for n, each in results.items()} == {
        n: ("it took more than 1 s", can_tell and n > 3) if 3 <= n <= 5 else n for n in range(8)
    }


def test_workers_started_afresh_work_like_forked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idem, "START_METHOD", "spawn")
    assert done_in(idem.Pool(2), abs, [-1, -2, -3]) == {-1: 1, -2: 2, -3: 3}


def test_urgent_tasks_of_a_threaded_pool_come_first() -> None:
    with closing(idem.Pool(1, threaded=True)) as pool:
        first = pool.submit(time.sleep, 0.5)
        order: list[int] = []
        later = [pool.submit(abs, -n, priority=n) for n in (3, 1, 2)]
        for future in later:
            future.add_done_callback(lambda done: order.append(done.result()))
        assert [first.result(30), *(each.result(30) for each in later)] == [None, 3, 1, 2]
        assert order == [1, 2, 3]
    with pytest.raises(idem.TaskLost, match="idem is stopping"):
        pool.submit(abs, -1).result()


def test_a_pool_that_closes_loses_what_is_not_done_at_once() -> None:
    pool = idem.Pool(1, threaded=True)
    futures = [pool.submit(time.sleep, 600) for _ in range(3)]
    while not any(worker.tasks for worker in list(pool.workers)):
        time.sleep(0.01)
    worker = pool.workers[0].process
    pool.close()
    assert [str(future.exception(0)) for future in futures] == ["idem is stopping"] * 3
    assert not worker.is_alive()


def fingerprint_or_crash(file: MediaFile) -> ImageFingerprint | idem.Problem:
    if file.path.endswith("fatal.jpg"):
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    return idem.fingerprint_image(file)


@ON_LINUX
def test_a_file_that_crashes_the_decoder_is_named_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_library(tmp_path)
    fatal = save(photo(9), tmp_path / "fatal.jpg")
    monkeypatch.setattr(idem, "IMAGE_WORK", replace(idem.IMAGE_WORK, do=fingerprint_or_crash))
    for new in (7, 0):  # what crashed twice is not tried again
        found = report(tmp_path, capsys=capsys)
        assert found["unreadable"] == [{"path": str(fatal), "reason": "the decoder crashed (SIGSEGV)"}]
        assert (found["totals"]["new"], found["totals"]["groups"]) == (new, 3)


def checksum_or_crash(file: MediaFile) -> idem.Checksum | idem.Problem:
    if file.path.endswith("fatal.jpg"):
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    return idem.checksum_of(file)


@ON_LINUX
def test_a_small_file_that_crashes_a_worker_costs_none_of_those_handed_over_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*map(str, range(150)), "fatal"):
        (tmp_path / f"{name}.jpg").write_bytes(b"equal")
    monkeypatch.setattr(idem, "CHECKSUM_WORK", replace(idem.CHECKSUM_WORK, do=checksum_or_crash))
    found = report(tmp_path, "--exact", capsys=capsys)
    fatal = {"path": str(tmp_path / "fatal.jpg"), "reason": "the decoder crashed (SIGSEGV)"}
    assert (found["unreadable"], [len(group["files"]) for group in found["groups"]]) == ([fatal], [150])


@ON_LINUX
@pytest.mark.parametrize(("mode", "shown"), [("--video", rb"0/6 \[.* photo/s\]"), ("--exact", rb"\d[kM]?/.*B/s\]")])
def test_a_terminal_shows_how_far_it_is_and_a_pipe_nothing(tmp_path: Path, mode: str, shown: bytes) -> None:
    import fcntl
    import termios

    made_library(tmp_path / "lib")
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, str(HERE / "idem.py"), str(tmp_path / "lib"), mode, "--cache"]
    with subprocess.Popen([*command, str(tmp_path / "one")], stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        said = b""
        with suppress(OSError):  # the end of a terminal
            while block := os.read(ours, 1000):
                said += block
    os.close(ours)
    assert process.returncode == 0
    assert re.search(shown, said), said
    piped = subprocess.run([*command, str(tmp_path / "other")], capture_output=True, check=True)
    assert not re.search(shown, piped.stderr), piped.stderr
    assert piped.stderr.startswith(f"Scanned {tmp_path / 'lib'}: 6 found, ".encode())


def test_files_of_a_size_that_no_other_has_are_summed_when_the_copies_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in {"a": b"equal", "b": b"equal", "c": b"longer", "d": b"the longest"}.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    database = checksum_database(tmp_path)
    said = []
    for summed in (5, 5):  # with the header
        assert main([str(tmp_path), "--exact"]) == 0
        said.append(capsys.readouterr().err.splitlines())
        assert len(database.read_bytes().splitlines()) == summed
    assert said == [
        [
            f"Scanned {tmp_path}: 4 found, 2 new, 0 cached",
            "The copies are complete. Summing 2 more files for the checksums that other tools share",
        ],
        [f"Scanned {tmp_path}: 4 found, 0 new, 4 cached"],
    ]


@ON_LINUX
def test_ctrl_c_while_the_others_are_summed_keeps_the_copies(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"equal")
    for number in range(600):
        with open(tmp_path / f"{number}.mp4", "wb") as large:
            large.truncate(20_000_000 + number)
    command = [sys.executable, str(HERE / "idem.py"), str(tmp_path), "--exact"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        shown = "".join(iter(process.stdout.readline, f"{'':11}{tmp_path / 'b.jpg'}\n"))
        while len(checksum_database(tmp_path).read_bytes().splitlines()) < 4 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert shown.startswith("Found 1 duplicate group(s)")
    assert process.returncode == 130
    assert re.search(r"Summing 600 more files .*\nidem: interrupted: \d+ of 600 files done and kept\n$", said), said


def workers_of(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]


def still_running(processes: Sequence[int]) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    alive = {int(row.split()[0]) for row in listing.splitlines() if "Z" not in row.split()[1]}
    return [process for process in processes if process in alive]


@ON_LINUX
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["int", "term", "kill"]
)
def test_a_stopped_run_keeps_what_is_done_and_leaves_no_worker(
    tmp_path: Path, long_library: Path, sent: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    library = long_library
    process = idem_process(library, "--cache", tmp_path / "cache", "--jobs", "2")
    while rows_in(tmp_path / "cache") < 50:
        time.sleep(0.01)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    began = time.monotonic()
    process.send_signal(sent)
    err = process.communicate()[1].decode()
    took = time.monotonic() - began
    assert process.returncode == status
    assert took < 1.5  # generous: the promise is a second
    assert "Traceback" not in err
    deadline = time.monotonic() + 5
    while still_running(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert still_running(workers) == []
    kept = rows_in(tmp_path / "cache")
    if sent == signal.SIGINT:
        assert re.fullmatch(rf"idem: interrupted: {kept} of 300 photos done and kept\n", err)
    assert counts(library, "--cache", str(tmp_path / "cache"), capsys=capsys) == (300, 300 - kept, kept)


# ── two videos side by side ──

SAME_VIDEO = idem.Verdict(True, "the same but for size and compression", None)


def video_view(path: Path) -> idem.VideoView:
    found = idem.frames_of(media_file(path), video_fingerprint(path))
    assert isinstance(found, idem.VideoView), found
    return found


@functools.cache
def view_of_clip(content: bytes) -> idem.VideoView:
    """That of an MP4 video with this content, made once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(content)
        return video_view(path)


def verdict_on(original: Path, edited: Path) -> idem.Verdict:
    """What a look at two videos side by side says, whichever comes first."""
    one, other = view_of_clip(original.read_bytes()), video_view(edited)
    found = idem.video_verdict(one, other)
    assert idem.video_verdict(other, one) == found
    return found


def test_a_view_of_a_video_has_the_frames_at_the_moments_of_its_fingerprint(tmp_path: Path) -> None:
    view = video_view(clip(tmp_path / "a.mp4", size=(640, 480)))
    assert (view.width, view.height, view.quicktime_rgb) == (640, 480, False)
    assert {frame.pictures.shape[1:] for frame in view.frames} == {(3, 384, 512)}
    assert [frame.seconds for frame in view.frames] == pytest.approx([(2 * n + 1) / 4 for n in range(8)])
    assert all(list(frame.times) == sorted(frame.times) for frame in view.frames)


def test_a_view_of_what_is_no_video_is_a_problem(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    known = video_fingerprint(path)
    path.write_bytes(b"no video")
    assert isinstance(idem.frames_of(media_file(path), known), idem.Problem)


@pytest.mark.parametrize("name", COPIES_OF_A_VIDEO)
def test_copies_of_a_video_are_the_same_side_by_side(tmp_path: Path, name: str) -> None:
    original = clip(tmp_path / "original.mp4", "-c:v", "libx264", "-crf", "12", "-g", "24")
    ffmpeg("-i", original, *COPIES_OF_A_VIDEO[name], tmp_path / name)
    assert verdict_on(original, tmp_path / name) == SAME_VIDEO


@pytest.mark.parametrize("rate", ["15", "24", "25", "30", "50"])
def test_another_frame_rate_is_not_another_speed(tmp_path: Path, rate: str) -> None:
    original = clip(tmp_path / "original.mp4", rate=25, seconds=8, size=(160, 120))
    ffmpeg("-i", original, "-r", rate, "-c:v", "libx264", "-crf", "23", tmp_path / "other.mp4")
    assert verdict_on(original, tmp_path / "other.mp4") == SAME_VIDEO


@pytest.mark.parametrize("times", [1 / 1.02, 1.02])
def test_a_video_of_another_speed_is_no_copy(tmp_path: Path, times: float) -> None:
    original = clip(tmp_path / "original.mp4", rate=25, seconds=8, size=(160, 120))
    filters = f"setpts=PTS*{times},fps=25"
    ffmpeg("-i", original, "-vf", filters, "-c:v", "libx264", "-crf", "20", tmp_path / "other.mp4")
    one, other = video_fingerprint(original), video_fingerprint(tmp_path / "other.mp4")
    assert distance(one, other) == 0, "by its cells it is a copy"
    assert verdict_on(original, tmp_path / "other.mp4") == idem.Verdict(False, "another speed", None)


GRADES_OF_A_VIDEO = ["eq=saturation=1.25", "eq=brightness=0.04", "eq=contrast=1.08", "hue=h=12", "hue=s=0"]


@pytest.mark.parametrize("grade", GRADES_OF_A_VIDEO)
def test_a_video_that_is_graded_is_no_copy(tmp_path: Path, grade: str) -> None:
    original = clip(tmp_path / "original.mp4", "-c:v", "libx264", "-crf", "12", "-g", "24")
    ffmpeg("-i", original, "-vf", grade, "-c:v", "libx264", "-crf", "18", tmp_path / "graded.mp4")
    expected = idem.Verdict(False, "another tone or colours", None)
    assert verdict_on(original, tmp_path / "graded.mp4") == expected


def test_colours_by_another_standard_are_the_same_video(tmp_path: Path) -> None:
    original = clip(tmp_path / "original.mp4", "-c:v", "libx264", "-crf", "12", "-g", "24")
    matrix = "scale=in_color_matrix=bt601:out_color_matrix=bt709"
    ffmpeg("-i", original, "-vf", matrix, "-c:v", "libx264", "-crf", "18", tmp_path / "bt709.mp4")
    assert verdict_on(original, tmp_path / "bt709.mp4") == SAME_VIDEO


def test_luma_as_quicktime_converts_it_is_the_same_video_where_one_is_stored_as_rgb(tmp_path: Path) -> None:
    stored_as_rgb = video_view(clip(tmp_path / "original.mp4"))
    raised = tuple(
        replace(frame, pictures=np.array([idem.as_quicktime_does(each) for each in frame.pictures]))
        for frame in stored_as_rgb.frames
    )
    converted = replace(stored_as_rgb, frames=raised)
    assert not idem.video_verdict(stored_as_rgb, converted).copy
    assert idem.video_verdict(replace(stored_as_rgb, quicktime_rgb=True), converted) == SAME_VIDEO


def lettered(path: Path, text: str, place: tuple[int, int], frames: range = range(48)) -> Path:
    """The made clip of 48 frames with a text in some of them, as a video of another codec."""
    pictures = [picture.copy() for picture in moving_frames(1, 4, 12, (192, 144))]
    for number in frames:
        ImageDraw.Draw(pictures[number]).text(place, text, "white", stroke_width=1, stroke_fill="black")
    return clip(path, "-c:v", "mpeg4", "-q:v", "4", frames=pictures)


@pytest.mark.parametrize(
    ("text", "place", "frames", "where"),
    [
        ("TV5", (165, 6), range(48), "at the upper right"),
        ("he said", (75, 124), range(48), "at the bottom"),
        ("only at first", (60, 124), range(26), "at the bottom"),
        ("12:30", (8, 66), range(48), "at the left"),
    ],
)
def test_a_logo_or_text_is_in_one_video_only(
    tmp_path: Path, text: str, place: tuple[int, int], frames: range, where: str
) -> None:
    found = verdict_on(clip(tmp_path / "a.mp4"), lettered(tmp_path / "b.avi", text, place, frames))
    assert (found.copy, found.reason) == (False, f"a logo or text is in one only, {where}")
    assert found.box
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (192, 144))).textbbox(place, text, stroke_width=1)
    assert 192 * found.box[0] < right
    assert 192 * found.box[2] > left
    assert 144 * found.box[1] < bottom
    assert 144 * found.box[3] > top


def test_another_text_in_the_same_place_is_another_video(tmp_path: Path) -> None:
    one, other = (lettered(tmp_path / f"{text}.avi", text, (8, 120)) for text in ("monday", "sunday"))
    assert verdict_on(one, other).reason == "a logo or text is in one only, at the lower left"


def test_what_is_in_a_single_frame_does_not_tell_videos_apart(tmp_path: Path) -> None:
    flawed = lettered(tmp_path / "b.avi", "a flaw of compression", (20, 60), range(20, 22))
    assert verdict_on(clip(tmp_path / "a.mp4"), flawed) == SAME_VIDEO


def test_black_frames_tell_nothing_side_by_side(tmp_path: Path) -> None:
    black = [Image.new("RGB", (192, 144))]
    view, other = (
        video_view(clip(tmp_path / f"{number}.mp4", frames=black * 18 + moving_frames(1, 3, 12, (192, 144)), rate=12))
        for number in range(2)
    )
    assert len(idem.alike_frames(view, other)) == 5
    assert idem.video_verdict(view, other) == SAME_VIDEO
    dark = replace(view, frames=view.frames[:3] + view.frames[:3] + view.frames[-2:])
    assert idem.video_verdict(dark, dark) == idem.Verdict(False, "too few frames show anything", None)


def test_a_film_with_titles_among_its_pictures_is_found_again(tmp_path: Path) -> None:
    title = Image.new("RGB", (512, 384), "black")
    ImageDraw.Draw(title).text((150, 180), "Summer", "white", font_size=40)
    frames = moving_frames(3, 8, 6, (512, 384))
    frames[:6] = frames[24:30] = [title] * 6
    one, other = (
        video_view(clip(tmp_path / name, "-crf", quality, rate=6, frames=frames))
        for name, quality in (("film.mp4", "18"), ("film.mkv", "26"))
    )
    assert idem.video_verdict(one, other) == SAME_VIDEO


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Match
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def clustered_hashes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Hashes with many near and some equal ones among them."""
    centres = rng.integers(0, 2**64, max(1, count // 8), dtype=np.uint64)
    hashes = rng.choice(centres, count)
    for _ in range(6):
        hashes = hashes ^ np.where(rng.random(count) < 0.5, np.uint64(1) << rng.integers(0, 64, count, np.uint64), 0)
    return np.concatenate([hashes, hashes[: count // 10]])


def test_hashes_are_those_of_imagehash() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (1000, 32, 32), np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((32, 32), box=(0, 0, 5, 5))) for each in noise]
    stripes = [np.broadcast_to(each[0], (32, 32)) for each in noise[:200]]
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    pictures = [*noise, *smooth, *stripes, ramp, np.zeros((32, 32), np.uint8)]
    found = [idem.perceptual_hashes(each.ravel()) for each in pictures]
    of_imagehash = [
        tuple(int(str(of(Image.fromarray(each))), 16) for of in (imagehash.phash, imagehash.dhash)) for each in pictures
    ]
    assert found == of_imagehash


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize(
    ("radius", "parts"),
    [
        *((radius, None) for radius in (0, 1, 4, 6, 10, 20, 63, 64)),
        *((0, 4), (1, 4), (6, 4), (6, 5), (6, 7), (10, 4), (10, 5), (10, 11), (20, 16), (20, 21)),
    ],
)
def test_every_search_finds_exactly_the_pairs_of_brute_force(
    radius: int, parts: int | None, small_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small_blocks:
        monkeypatch.setattr(idem, "PAIR_BLOCK", 7)
        monkeypatch.setattr(idem, "SWEEP_TILE", (5, 3))
    for seed, count in enumerate([0, 1, 2, 9, 70, 300]):
        hashes = clustered_hashes(np.random.default_rng(seed), count)
        blocks = idem.near_pairs_by_parts(hashes, radius, parts) if parts else idem.near_pairs_by_sweep(hashes, radius)
        found = sorted(tuple(pair) for block in blocks for pair in block.tolist())
        bits = np.triu(np.bitwise_count(hashes[:, None] ^ hashes).astype(int) <= radius, k=1)
        assert found == [tuple(pair) for pair in np.argwhere(bits).tolist()]


def test_many_hashes_are_searched_by_parts_as_by_the_sweep() -> None:
    hashes = np.unique(clustered_hashes(np.random.default_rng(5), 20_000))
    found = np.concatenate([*idem.near_pairs(hashes, 6)])
    swept = np.concatenate([*idem.near_pairs_by_sweep(hashes, 6)])
    assert len(found) > 10_000
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, swept.tolist()))


def fingerprints_of_kin(count: int) -> list[ImageFingerprint]:
    """Fingerprints at all sorts of distances: a few pictures, with some bits and cells changed."""
    rng = np.random.default_rng(count)
    families = [random_fingerprint(rng) for _ in range(max(1, count // 6))]
    kin = []
    for number in range(count):
        parent = families[int(rng.integers(len(families)))]
        bits = sum(1 << int(bit) for bit in set(rng.integers(0, 64, rng.integers(0, 8))))
        noisy = np.frombuffer(base64.b64decode(parent.signature), np.uint8).astype(int)
        noisy = noisy + rng.integers(-3, 4, len(noisy)) * int(rng.integers(0, 2))
        kin.append(
            replace(
                parent,
                phash=parent.phash ^ bits,
                dhash=parent.dhash ^ (bits >> 1),
                width=parent.width * int(rng.integers(1, 4)),
                file_digest=f"{int(rng.integers(3)):064}" if number % 7 == 0 else "",
                signature=base64.b64encode(noisy.clip(0, 255).astype(np.uint8).tobytes()),
            )
        )
    return kin


def random_fingerprint(rng: np.random.Generator) -> ImageFingerprint:
    return ImageFingerprint(
        width=400,
        height=300,
        luma_step=int(rng.integers(0, 20)),
        chroma_step=int(rng.integers(0, 20)),
        palette=bool(rng.integers(0, 2)),
        integrity=idem.Integrity(
            may_be_short=False,
            data_bytes=int(rng.integers(1, 2**40)),
            data_sum=f"{rng.integers(2**32):08x}",
            other_sum="",
        ),
        file_digest="",
        phash=int(rng.integers(0, 2**63)),
        dhash=int(rng.integers(0, 2**63)),
        stored_metadata=b"",
        spectrum="",
        signature=base64.b64encode(rng.integers(0, 256, idem.SIGNATURE_BYTES, dtype=np.uint8).tobytes()),
        stored_signature=b"",
    )


def shown_groups(replicas: list[Replica[F]], threshold: int) -> list[list[tuple[str, int]]]:
    """The groups that idem makes: path and distance of each replica."""
    return [
        [(each.file.path, bits) for each, bits in zip(group.replicas, group.distances, strict=True)]
        for group in idem.groups_of(replicas, threshold)
    ]


def all_distances(replicas: list[Replica[F]]) -> dict[tuple[str, str], int]:
    """The distance of every two of the replicas, by path."""
    table = idem.table_of(replicas)
    rows = {each.file.path: row for row, members in enumerate(table.members) for each in members}
    pairs = list(itertools.permutations(rows, 2))
    found = table.distances(np.array([(rows[one], rows[other]) for one, other in pairs], int).reshape(-1, 2)).tolist()
    return {pair: 0 if rows[pair[0]] == rows[pair[1]] else bits for pair, bits in zip(pairs, found, strict=True)}


def check_groups(replicas: list[Replica[F]], threshold: int) -> None:
    """Groups and verified files are what comparing all with all gives, whatever the order."""
    bits = all_distances(replicas)
    waiting = [each.file.path for each in sorted(replicas, key=idem.best_first)]
    expected = []
    while waiting:
        centre, *others = waiting
        near = [(path, bits[centre, path]) for path in others if bits[centre, path] <= threshold]
        waiting = [path for path in others if bits[centre, path] > threshold]
        expected += [[(centre, 0), *near]] if near else []
    trashed = {each.file.path for each in replicas if each.file.path.startswith("/lib/trash/")}
    live = {each.file.path for each in replicas} - trashed
    verified = {path for path in trashed if any(bits[path, other] <= threshold for other in live)}
    for seed in (1, 2):
        random.Random(seed).shuffle(replicas)
        assert shown_groups(replicas, threshold) == expected
        assert matched_in_trash(replicas, "/lib/trash", threshold) == verified


def matched_in_trash(replicas: list[Replica[F]], trash: str, threshold: int) -> set[str]:
    """The paths of the replicas in the trash that have a live match, which is the best one."""
    matched = set()
    for pair in idem.matches_in_trash(replicas, trash, threshold):
        (gone,) = (each for each in pair.replicas if each.file.path.startswith(trash))
        (live,) = (each for each in pair.replicas if each is not gone)
        assert pair.distances[0] == 0 <= pair.distances[1] <= threshold
        assert not live.file.path.startswith(trash)
        matched.add(gone.file.path)
    return matched


def partly_trashed(replicas: list[Replica[F]]) -> list[Replica[F]]:
    """The replicas, every other one in the trash, and one of them twice."""
    trash = [
        replace(each, file=each.file._replace(path=each.file.path.replace("lib", "lib/trash"))) for each in replicas
    ]
    return [*replicas[::2], *trash[1::2], replace(replicas[0], file=replicas[0].file._replace(path="/lib/same.jpg"))]


@pytest.mark.parametrize("count", [0, 1, 7, 40, 150])
def test_related_groups_are_the_connected_components_of_copies(count: int) -> None:
    replicas = as_replicas(fingerprints_of_kin(count))
    component = {each.file.path: {each.file.path} for each in replicas}
    for (one, other), bits in all_distances(replicas).items():
        if bits == 0 and component[one] is not component[other]:
            component[one] |= component[other]
            component |= dict.fromkeys(component[other], component[one])
    expected = {frozenset(each) for each in component.values() if len(each) > 1}
    for seed in (1, 2):
        random.Random(seed).shuffle(replicas)
        found = idem.related_groups(replicas)
        assert {frozenset(each.file.path for each in group.replicas) for group in found} == expected
        assert all(list(group.replicas) == sorted(group.replicas, key=idem.best_first) for group in found)


def test_in_a_long_series_each_picture_is_still_related_to_its_copy() -> None:
    rng = np.random.default_rng(3)
    first = replace(random_fingerprint(rng), palette=False, luma_step=2, chroma_step=2)
    cells = np.frombuffer(base64.b64decode(first.signature), np.uint8).astype(int).clip(20, 235)
    series = []
    for number in range(300):  # all look alike: no cell moves by more than copying explains
        shot = cells + rng.integers(-2, 3, len(cells))
        for step, width in ((0, 400), (1, 800)):
            noisy = shot + step * (np.arange(len(cells)) % 97 == 0)
            series.append(
                replace(
                    first,
                    width=width,
                    height=width * 3 // 4,
                    integrity=replace(first.integrity, data_sum=f"{number:07x}{step}"),
                    signature=base64.b64encode(noisy.astype(np.uint8).tobytes()),
                )
            )
    replicas = as_replicas(series)
    group_of = {each.file.path: group.replicas[0] for group in idem.related_groups(replicas) for each in group.replicas}
    assert all(
        group_of[one.file.path] is group_of[other.file.path]
        for one, other in zip(replicas[::2], replicas[1::2], strict=True)
    )
    line = sorted(replicas, key=idem.best_first)  # the large ones first
    candidates = idem.candidates_before(line)
    numbers = {each.file.path: number for number, each in enumerate(line)}
    copies = [
        (numbers[small.file.path], numbers[large.file.path])
        for small, large in zip(replicas[::2], replicas[1::2], strict=True)
    ]
    assert all(large in candidates[small] for small, large in copies)
    assert max(map(len, candidates)) <= idem.CROWD


@pytest.mark.parametrize("threshold", [0, 1, 5, 10, 64])
def test_images_are_matched_as_comparing_all_would(threshold: int) -> None:
    for count in (1, 2, 30, 90):
        check_groups(partly_trashed(as_replicas(fingerprints_of_kin(count))), threshold)


def fingerprints_of_video_kin(count: int) -> list[VideoFingerprint]:
    """Made fingerprints, many of them near each other in one way or another."""
    rng = np.random.default_rng(count)
    made: list[VideoFingerprint] = []
    for _ in range(count):
        each = VideoFingerprint(
            width=640,
            height=360,
            milliseconds=int(rng.integers(0, 40_000)),
            flat=tuple(bool(flag) for flag in rng.integers(0, 4, idem.FRAMES) == 0),
            quicktime_rgb=False,
            whole=True,
            file_digest="",
            hashes=tuple(int(value) for value in rng.integers(0, 2**63, idem.FRAMES)),
            stored_metadata=b"",
            following=base64.b64encode(rng.bytes(idem.FRAMES * idem.FRAME_BYTES)),
            signatures=base64.b64encode(rng.bytes(idem.FRAMES * idem.FRAME_BYTES)),
        )
        kind = int(rng.integers(0, 6))
        if made and kind:
            kin = made[int(rng.integers(0, len(made)))]
            each = [
                replace(kin, milliseconds=kin.milliseconds + int(rng.integers(0, 400)), width=1280, height=720),
                replace(kin, hashes=tuple(value ^ int(rng.integers(0, 64)) for value in kin.hashes)),
                replace(kin, milliseconds=kin.milliseconds + int(rng.integers(0, 12_000))),
                replace(kin, file_digest=str(rng.integers(0, 3)) * 64),
                replace(kin, width=int(rng.integers(600, 660)), flat=each.flat),
            ][kind - 1]
        made.append(each)
    return made


@pytest.mark.parametrize("threshold", [0, 1, 10, 64])
def test_videos_are_matched_as_comparing_all_would(threshold: int) -> None:
    for count in (1, 2, 80):
        check_groups(partly_trashed(as_replicas(fingerprints_of_video_kin(count))), threshold)
    assert shown_groups(as_replicas(fingerprints_of_video_kin(80)), threshold)


def test_checksums_match_only_at_equal_size_and_digest() -> None:
    made = [(10, "a"), (10, "a"), (11, "a"), (10, "b"), (11, "a"), (12, "a"), (10, "a")]
    replicas = [
        Replica(MediaFile(f"/lib/{folder}{number}.mp4", size, 0, 0, 1, number), idem.Checksum(letter * 64))
        for number, ((size, letter), folder) in enumerate(zip(made, itertools.cycle(["", "trash/"]), strict=False))
    ]
    assert shown_groups(replicas, 0) == [
        [("/lib/2.mp4", 0), ("/lib/4.mp4", 0)],
        [("/lib/0.mp4", 0), ("/lib/6.mp4", 0), ("/lib/trash/1.mp4", 0)],
    ]
    assert matched_in_trash(replicas, "/lib/trash", idem.MAX_THRESHOLD) == {"/lib/trash/1.mp4"}


def test_nothing_to_match_makes_no_groups() -> None:
    assert idem.groups_of([], 5) == []
    assert matched_in_trash([], "/lib/trash", 5) == set()


@pytest.mark.parametrize(
    ("one", "other", "comparable"),
    [(5.0, 14.9, True), (5.0, 15.1, False), (1000.0, 1052.0, True), (1000.0, 1053.0, False)],
)
def test_videos_are_compared_if_they_last_about_as_long(one: float, other: float, comparable: bool) -> None:
    base = fingerprints_of_video_kin(1)[0]
    pair = [replace(base, flat=(False,) * 8, milliseconds=round(seconds * 1000)) for seconds in (one, other)]
    assert (distance(*pair) < idem.NEVER) == comparable


def test_the_best_video_has_most_pixels_bit_rate_then_bytes() -> None:
    base = replace(fingerprints_of_video_kin(1)[0], milliseconds=10_000)
    made = {
        "large": (replace(base, width=1280, height=720), 500),
        "rich": (replace(base, milliseconds=9_990), 1000),
        "long": (base, 1000),
        "poor": (base, 900),
    }
    replicas = [
        Replica(MediaFile(f"/{name}.mp4", size, 0, 0, 1, 1), fingerprint) for name, (fingerprint, size) in made.items()
    ]
    assert [each.file.path for each in sorted(replicas, key=idem.best_first)] == [
        *("/large.mp4", "/rich.mp4", "/long.mp4", "/poor.mp4"),
    ]


def chain_of_look_alikes() -> list[Replica[ImageFingerprint]]:
    """Four pictures, best first, each within 4 bits of the next one only."""
    base = random_fingerprint(np.random.default_rng(3))
    return as_replicas(
        [
            replace(
                base,
                phash=(1 << 4 * step) - 1,
                dhash=0,
                width=400 - step,
                signature=letter * (idem.SIGNATURE_BYTES // 3 * 4),
            )
            for step, letter in enumerate((b"A", b"B", b"C", b"D"))
        ]
    )


def test_a_chain_of_look_alikes_is_not_one_group() -> None:
    assert shown_groups(chain_of_look_alikes(), threshold=4) == [
        [("/lib/000/a.jpg", 0), ("/lib/001/a.jpg", 4)],
        [("/lib/002/a.jpg", 0), ("/lib/003/a.jpg", 4)],
    ]


def test_a_live_file_in_the_star_of_another_still_verifies() -> None:
    best, near, trashed, _ = chain_of_look_alikes()
    trashed = replace(trashed, file=trashed.file._replace(path="/lib/trash/002.jpg"))
    assert len(idem.groups_of([best, near, trashed], 4)) == 1
    assert matched_in_trash([best, near, trashed], "/lib/trash", 4) == {"/lib/trash/002.jpg"}
    assert matched_in_trash([best, trashed], "/lib/trash", 4) == set()


def test_thousands_of_copies_are_not_compared_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_fingerprint(np.random.default_rng(1))
    cells = np.frombuffer(base64.b64decode(base.signature), np.uint8)
    rng = np.random.default_rng(2)
    kin = []
    for _ in range(3000):
        noisy = (cells.astype(int) + rng.integers(-1, 2, len(cells))).clip(0, 255).astype(np.uint8)
        kin.append(
            replace(base, phash=base.phash ^ 1 << int(rng.integers(0, 60)), signature=base64.b64encode(noisy.tobytes()))
        )
    compared = []
    original = idem.Table.distances

    def counted(table: idem.Table[Any], pairs: np.ndarray) -> np.ndarray:
        compared.append(len(pairs))
        return original(table, pairs)

    monkeypatch.setattr(idem.Table, "distances", counted)
    (found,) = idem.groups_of(as_replicas(kin), threshold=0)
    assert len(found.replicas) == 3000
    assert sum(compared) < 3000


def test_the_threshold_widens_copies_to_look_alikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1), tmp_path / "colour.png")
    save(photo(1).convert("L"), tmp_path / "grey.png")
    save(photo(1).resize((320, 240)), tmp_path / "small.png")
    save(photo(2), tmp_path / "other.png")
    assert groups(tmp_path, capsys=capsys) == [["colour.png", "small.png"]]
    found = report(tmp_path, "--threshold", "8", capsys=capsys)["groups"]
    assert [(file["relative"], file["distance"] > 0) for group in found for file in group["files"]] == [
        ("colour.png", False),
        ("grey.png", True),
        ("small.png", False),
    ]


def agree_slowly(one: ImageFingerprint, other: ImageFingerprint) -> bool:
    """The rule of agreeing signatures of pictures without palette or profile, cell by cell."""
    levels = [np.frombuffer(base64.b64decode(each.signature), np.uint8).astype(int) for each in (one, other)]
    lumas = [each[:1024].reshape(32, 32) for each in levels]
    chromas = [each[1024:].reshape(2, 16, 16) for each in levels]
    drawn = min(luma.max() - luma.min() for luma in lumas)
    share = 0.1 + 0.3 * 32 / min(one.width, one.height, other.width, other.height)
    planes = [(lumas, one.luma_step + other.luma_step)]
    planes += [([each[channel] for each in chromas], one.chroma_step + other.chroma_step) for channel in (0, 1)]
    for (plane, other_plane), steps in planes:
        tolerance = min(max(2.5, drawn / 8), 5 + steps / 8)
        for row, column in itertools.product(range(len(plane)), repeat=2):
            around = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
            contrast = max(int(np.ptp(each[around])) for each in (plane, other_plane))
            if abs(int(plane[row, column]) - int(other_plane[row, column])) > tolerance + share * contrast:
                return False
    return True


def test_signatures_agree_when_every_cell_is_within_tolerance() -> None:
    rng = np.random.default_rng(5)
    outcomes = []
    for number in range(150):
        one = replace(random_fingerprint(rng), palette=False, width=int(rng.integers(100, 900)), height=600)
        # Half of the picture is flat, so that the cell that differs most is often not the one that differs too much.
        cells = rng.integers(0, 256, (2, 32, 32)) * np.array([1, 0])[:, None, None] + 100
        luma = np.where(np.arange(32) < 16, cells[0], cells[1]).clip(0, 255)
        chroma = rng.integers(100, 140, 512)
        noise = rng.normal(0, [0.5, 0.8, 3][number % 3], 1536) + rng.normal(0, 9, 1536) * (
            np.concatenate([np.tile(np.arange(32) < 15, 32), np.zeros(512)]) * (number % 2)
        )
        plain = np.concatenate([luma.ravel(), chroma])
        both = [plain, (plain + noise).round().clip(0, 255)]
        one, other = (replace(one, signature=base64.b64encode(each.astype(np.uint8).tobytes())) for each in both)
        outcomes.append(agree_slowly(one, other))
        assert (distance(one, other) == 0) == outcomes[-1]
    assert 20 < sum(outcomes) < 130


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((4000, 3000), (640, 480), True),
        ((4032, 3024), (320, 240), True),
        ((4000, 2667), (300, 200), True),
        ((4000, 2667), (300, 201), True),
        ((4000, 2667), (300, 203), False),
        ((4000, 3000), (3920, 3000), False),
        ((400, 300), (300, 400), False),
        ((1, 1), (1000, 999), True),
    ],
)
def test_sides_are_in_proportion_within_rounding_of_the_smaller(
    one: tuple[int, int], other: tuple[int, int], same: bool
) -> None:
    base = random_fingerprint(np.random.default_rng(1))
    pair = [replace(base, width=width, height=height) for width, height in (one, other)]
    assert (distance(*pair) == 0) == same


# ── two pictures side by side ──

SAME = idem.Verdict(True, "the same but for size and compression", None)


@functools.cache
def scene(seed: int = 1, size: tuple[int, int] = (960, 720)) -> Image.Image:
    """A picture with detail at all scales, as photos have it."""
    rng, made = np.random.default_rng(seed), photo(seed, size)
    for side, share in ((24, 0.3), (96, 0.25), (size[0] // 4, 0.2), (size[0] // 2, 0.1)):
        grain = rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        made = Image.blend(made, Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC), share)
    return made


def numbers_page(number: int = 4711, size: int = 24) -> Image.Image:
    """A white page with lines of numbers, one of which is given."""
    made, rng = Image.new("RGB", (1000, 800), "white"), random.Random(1)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(size)
    for line in range(24):
        words = [number if (line, word) == (9, 4) else rng.randrange(1000, 10000) for word in range(11)]
        pen.text((40, 30 + 31 * line), " ".join(map(str, words)), font=font, fill=(20, 20, 20))
    return made


def screenshot(clock: str) -> Image.Image:
    """A window full of text, and a bar with the time."""
    made, rng = Image.new("RGB", (1920, 1080), (245, 246, 248)), random.Random(1)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(22)
    for line in range(28):
        words = " ".join(rng.choice(("the", "house", "of", "paper", "never", "seen")) for _ in range(24))
        pen.text((330, 90 + 33 * line), words, font=font, fill=(34, 34, 34))
    pen.rectangle((0, 1040, 1920, 1080), fill=(28, 32, 40))
    pen.text((1800, 1048), clock, font=font, fill="white")
    return made


def view(path: Path) -> idem.View:
    found = idem.view_of(media_file(path))
    assert isinstance(found, idem.View), found
    return found


def verdict(one: Path, other: Path) -> idem.Verdict:
    """What idem says of two files, whichever comes first."""
    views = view(one), view(other)
    forth, back = idem.verdict(*views), idem.verdict(*reversed(views))
    assert forth == back
    return forth


def verdict_of(edited: Image.Image, tmp_path: Path, original: Image.Image | None = None) -> idem.Verdict:
    """What idem says of a picture and an edited one, both as JPEG."""
    one = save(original or scene(), tmp_path / "original.jpg", quality=92)
    return verdict(one, save(edited, tmp_path / "edited.jpg", quality=85))


def with_disc(picture: Image.Image, box: tuple[int, int, int, int], fill: tuple[int, int, int]) -> Image.Image:
    made = picture.copy()
    ImageDraw.Draw(made).ellipse(box, fill=fill)
    return made


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_a_picture_saved_again_is_the_same_at_any_quality(tmp_path: Path, quality: int) -> None:
    one = save(scene(), tmp_path / "original.jpg", quality=95)
    assert verdict(one, save(scene(), tmp_path / "again.jpg", quality=quality)) == SAME


@pytest.mark.parametrize("filtering", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("width", [160, 321, 500, 1400])
def test_a_resized_picture_is_the_same(tmp_path: Path, width: int, filtering: Image.Resampling) -> None:
    resized = scene().resize((width, width * 3 // 4), filtering)
    assert verdict_of(resized, tmp_path) == SAME


@pytest.mark.parametrize("suffix", [".png", ".webp", ".heic", ".tif", ".bmp"])
def test_another_format_is_the_same(tmp_path: Path, suffix: str) -> None:
    assert verdict(save(scene(), tmp_path / "a.jpg", quality=90), save(scene(), tmp_path / f"b{suffix}")) == SAME


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_stored_turned_is_the_same_as_one_that_stands_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[idem.EXIF_ORIENTATION] = orientation
    sensor = save(scene(), tmp_path / "sensor.jpg", quality=92, exif=exif)
    assert verdict(sensor, save(ImageOps.exif_transpose(Image.open(sensor)), tmp_path / "upright.png")) == SAME


def test_a_jpeg_decoded_at_a_reduced_scale_keeps_its_true_extent(tmp_path: Path) -> None:
    large = scene(1, (2661, 2001))  # a quarter is 665.25 x 500.25 px
    one = save(large, tmp_path / "large.jpg", quality=92)
    assert verdict(one, save(large.resize((640, 481), Image.Resampling.LANCZOS), tmp_path / "small.png")) == SAME
    assert (view(one).width, view(one).height) == large.size


def test_a_picture_with_a_profile_is_the_same_as_one_in_srgb_and_as_one_that_lost_it(tmp_path: Path) -> None:
    profile = display_p3()
    converted = ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), outputMode="RGB"
    )
    assert converted
    tagged = save(converted, tmp_path / "tagged.jpg", quality=92, icc_profile=profile)
    assert verdict(tagged, save(scene(), tmp_path / "srgb.jpg", quality=92)) == SAME
    assert verdict(tagged, save(converted, tmp_path / "lost.jpg", quality=92, icc_profile=None)) == SAME


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_picture_in_grey_or_cmyk_is_the_same_as_its_copy(tmp_path: Path, mode: str) -> None:
    one = save(scene().convert(mode), tmp_path / "one.tif")
    assert verdict(one, save(scene().convert(mode).convert("RGB").resize((480, 360)), tmp_path / "two.jpg")) == SAME


def test_a_picture_with_a_palette_is_the_same_and_an_edit_of_it_is_not(tmp_path: Path) -> None:
    original = ImageEnhance.Color(photo(1, (960, 720))).enhance(0.2)  # 256 colours are enough for it
    one = save(original, tmp_path / "one.jpg", quality=92)
    few = original.quantize(palette=original.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    assert verdict(one, save(few, tmp_path / "two.png")) == SAME
    edited = with_disc(original, (700, 500, 740, 540), (255, 255, 255)).quantize(256)
    assert not verdict(one, save(edited, tmp_path / "edited.png")).copy


def test_a_palette_without_the_tone_of_a_small_part_is_the_same(tmp_path: Path) -> None:
    """Dithering hands the error on to the pixels beside it, far beyond that part."""
    original = ImageEnhance.Color(photo(1, (960, 720))).enhance(0.2).point(lambda level: level * 0.6)
    lamp = with_disc(original, (700, 500, 740, 540), (210, 210, 210))
    few = lamp.quantize(palette=original.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    one = save(lamp, tmp_path / "one.jpg", quality=92)
    assert verdict(one, save(few, tmp_path / "two.png")) == SAME


def test_strong_colours_kept_in_coarse_steps_are_the_same(tmp_path: Path) -> None:
    """Eight bits of Lab tell hardly any red from none beside much green and blue."""
    strong = Image.merge(
        "RGB", [band.point(lambda x, f=f: x * f) for band, f in zip(scene().split(), (0.02, 0.8, 1), strict=True)]
    )
    lab = ImageCms.profileToProfile(
        strong, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab
    assert verdict(save(strong, tmp_path / "one.jpg", quality=92), save(lab, tmp_path / "two.tif")) == SAME


@pytest.mark.parametrize("quality", [10, 20])
def test_a_plain_picture_saved_coarsely_is_the_same(tmp_path: Path, quality: int) -> None:
    """Most of it has one colour: what JPEG adds there says nothing of the rest."""
    plain = Image.new("RGB", (960, 720), (40, 90, 170))
    for at in range(0, 720, 8):
        plain.paste((40 + at // 40, 90 + at // 30, 170 + at // 60), (0, at, 960, at + 8))
    plain = with_disc(plain, (300, 200, 420, 320), (150, 80, 140))
    one = save(plain, tmp_path / "one.jpg", quality=92)
    assert verdict(one, save(plain, tmp_path / "two.jpg", quality=quality)) == SAME
    edited = with_disc(plain, (600, 500, 624, 524), (255, 255, 255))
    assert not verdict(one, save(edited, tmp_path / "edited.jpg", quality=quality)).copy


def test_a_changed_spot_is_found_and_its_place_told(tmp_path: Path) -> None:
    found = verdict_of(with_disc(scene(), (760, 560, 790, 590), (200, 180, 60)), tmp_path)
    assert (found.copy, found.reason) == (False, "differs in a spot at the lower right")
    assert found.box
    left, top, right, bottom = found.box
    assert 0.75 < left < 0.80 < right < 0.86 and 0.74 < top < 0.80 < bottom < 0.86


@pytest.mark.parametrize(
    ("at", "words"),
    [((60, 60), "at the upper left"), ((470, 350), "in the middle"), ((470, 660), "at the bottom")],
)
def test_the_place_of_a_spot_is_told_in_words(tmp_path: Path, at: tuple[int, int], words: str) -> None:
    x, y = at
    found = verdict_of(with_disc(scene(), (x, y, x + 24, y + 24), (250, 250, 250)), tmp_path)
    assert (found.copy, found.reason) == (False, f"differs in a spot {words}")


def test_a_spot_of_another_colour_and_the_same_brightness_is_found(tmp_path: Path) -> None:
    y, cb, cr = scene().convert("YCbCr").split()
    cr.paste(230, (480, 360, 510, 390))
    assert not verdict_of(Image.merge("YCbCr", (y, cb, cr)).convert("RGB"), tmp_path).copy


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.32])
def test_a_page_with_another_digit_is_no_copy(tmp_path: Path, scale: float) -> None:
    size = round(1000 * scale), round(800 * scale)
    copied, changed = (numbers_page(number).resize(size, Image.Resampling.LANCZOS) for number in (4711, 4771))
    assert verdict_of(copied, tmp_path, numbers_page()) == SAME
    assert not verdict_of(changed, tmp_path, numbers_page()).copy


def test_colours_are_rounded_to_the_nearest_for_a_look() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    there = idem.in_ycbcr(Image.fromarray(noise))
    back = np.asarray(idem.in_rgb(there)).astype(int) - noise
    assert there.mode == "YCbCr"
    assert abs(back).max() <= 1
    assert abs(back.mean()) < 0.05


@pytest.mark.parametrize("scale", [1.0, 0.67])
def test_a_screenshot_a_minute_later_is_no_copy(tmp_path: Path, scale: float) -> None:
    """Whichever is the JPEG: the clock has a font of 22 px on 1920 px."""
    now, later = screenshot("14:38"), screenshot("14:39")
    size = round(1920 * scale), round(1080 * scale)
    one, other = save(now, tmp_path / "now.png"), save(later, tmp_path / "later.png")
    saved = save(now.resize(size, Image.Resampling.LANCZOS), tmp_path / "now.jpg", quality=80)
    assert verdict(one, saved) == SAME
    assert not verdict(other, saved).copy


def test_a_drawing_with_a_line_less_is_no_copy(tmp_path: Path) -> None:
    rng, full, less = random.Random(3), Image.new("L", (1200, 900), 255), Image.new("L", (1200, 900), 255)
    for number in range(20):
        line = [(rng.randrange(1200), rng.randrange(900)) for _ in range(2)]
        for drawing in (full, less)[: 1 if number == 7 else 2]:
            ImageDraw.Draw(drawing).line(line, fill=40)
    assert verdict_of(full.resize((800, 600), Image.Resampling.LANCZOS), tmp_path, full) == SAME
    assert not verdict_of(less.resize((800, 600), Image.Resampling.LANCZOS), tmp_path, full).copy


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda made: made.point(lambda level: level * 1.05), "brighter or darker"),
        (lambda made: ImageEnhance.Contrast(made).enhance(1.12), "less or more contrast"),
        (lambda made: ImageEnhance.Color(made).enhance(1.2), "other colours"),
        (lambda made: ImageOps.grayscale(made).convert("RGB"), "only one of them has colours"),
        (
            lambda made: Image.merge(
                "RGB", [b.point(lambda x, f=f: x * f) for b, f in zip(made.split(), (1.05, 1, 0.94), strict=True)]
            ),
            "other colours",
        ),
        (lambda made: made.crop((6, 4, 954, 716)), "turned, shifted or cropped a little"),
        (
            lambda made: made.rotate(0.3, Image.Resampling.BICUBIC).crop((8, 6, 952, 714)),
            "turned, shifted or cropped a little",
        ),
        (ImageOps.mirror, "differs all over"),
    ],
)
def test_an_edit_of_the_whole_picture_is_no_copy(
    tmp_path: Path, edit: Callable[[Image.Image], Image.Image], reason: str
) -> None:
    found = verdict_of(edit(scene()), tmp_path)
    assert (found.copy, found.reason) == (False, reason)


def test_a_part_out_of_focus_is_no_copy(tmp_path: Path) -> None:
    mask = Image.new("L", (960, 720))
    ImageDraw.Draw(mask).ellipse((300, 200, 640, 500), fill=255)
    blurred = Image.composite(scene().filter(ImageFilter.GaussianBlur(3)), scene(), mask)
    assert not verdict_of(blurred, tmp_path).copy


def test_a_faint_watermark_makes_another_picture(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (960, 720))
    ImageDraw.Draw(layer).text((150, 250), "SAMPLE", font=ImageFont.load_default(160), fill=(255, 255, 255, 30))
    assert not verdict_of(Image.alpha_composite(scene().convert("RGBA"), layer).convert("RGB"), tmp_path).copy


def test_other_pages_of_the_same_layout_are_no_copies(tmp_path: Path) -> None:
    pages = []
    for seed in (1, 2):
        made, rng = Image.new("RGB", (900, 1200), "white"), random.Random(seed)
        for line in range(34):
            text = " ".join(rng.choice(("the", "house", "of", "paper", "never", "seen")) for _ in range(14))
            ImageDraw.Draw(made).text((60, 60 + 32 * line), text, font=ImageFont.load_default(20), fill=(0, 0, 0))
        pages.append(made)
    assert not verdict_of(pages[1], tmp_path, pages[0]).copy


def test_two_walls_with_nothing_but_noise_are_no_copies(tmp_path: Path) -> None:
    walls = [
        Image.fromarray(np.random.default_rng(seed).normal(180, 4, (600, 800)).clip(0, 255).astype(np.uint8))
        for seed in (1, 2)
    ]
    assert verdict_of(walls[1], tmp_path, walls[0]) == idem.Verdict(False, "differs all over", None)
    assert verdict_of(walls[0], tmp_path, walls[0]) == SAME


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (16, 10), (33, 50), (100, 75)])
def test_small_pictures_are_compared_too(tmp_path: Path, size: tuple[int, int]) -> None:
    small = scene(2, (960, 720)).resize(size, Image.Resampling.BOX)
    one = save(small, tmp_path / "one.png")
    assert verdict(one, save(small, tmp_path / "two.jpg", quality=95, subsampling=0)) == SAME
    changed = small.copy()
    changed.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    assert not verdict(one, save(changed, tmp_path / "three.png")).copy


def test_a_picture_of_one_colour_is_like_itself_and_unlike_one_of_another_colour(tmp_path: Path) -> None:
    grey, same, other = (Image.new("RGB", (300, 200), colour) for colour in ("#808080", "#808080", "#888888"))
    one = save(grey, tmp_path / "one.png")
    assert verdict(one, save(same, tmp_path / "two.jpg")).copy
    assert verdict(one, save(other, tmp_path / "three.png")) == idem.Verdict(False, "brighter or darker", None)


def test_frames_are_compared_as_pictures_are() -> None:
    frame, later = scene(), with_disc(scene(), (40, 40, 120, 80), (255, 255, 255))
    views = [idem.view_of_pixels(np.asarray(each.resize((320, 240))), 8, 8) for each in (frame, frame, later)]
    assert idem.verdict(views[0], views[1]) == SAME
    assert idem.verdict(views[0], views[2]).reason == "differs in a spot at the upper left"


def test_a_file_that_is_no_picture_makes_no_view(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    assert isinstance(idem.view_of(media_file(path)), idem.Problem)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Original
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

LIB = os.path.join(os.sep, "lib")
BY_CAMERA = idem.Metadata(taken="2021-07-05T10:00:00", make="Canon", model="EOS 80D", bits=8, colours="colour")
STRIPPED = idem.Metadata(bits=8, colours="colour")
HALF: dict[str, Any] = {"width": 2000, "height": 1500}


def candidate(name: str, said: idem.Metadata = BY_CAMERA, size: int = 1000, **known: Any) -> Replica[ImageFingerprint]:
    """A replica below LIB that says this of itself, with so many bytes of picture data."""
    base = random_fingerprint(np.random.default_rng(1))
    values = {"width": 4000, "height": 3000, "luma_step": 3, "chroma_step": 3, "palette": False} | known
    integrity = replace(base.integrity, data_bytes=size)
    made = replace(base, stored_metadata=idem.written_metadata(said), integrity=integrity, **values)
    return Replica(MediaFile(os.path.join(LIB, *name.split("/")), size, 0, 0, 1, zlib.crc32(name.encode())), made)


def film(name: str, said: idem.Metadata, size: int = 10**6) -> Replica[VideoFingerprint]:
    """A video below LIB that says this of itself."""
    base = fingerprints_of_video_kin(1)[0]
    made = replace(base, stored_metadata=idem.written_metadata(said), milliseconds=10_000)
    return Replica(MediaFile(os.path.join(LIB, name), size, 0, 0, 1, zlib.crc32(name.encode())), made)


def beside(**kinds: list[str]) -> idem.Scoring:
    """What hangs on the files of these names: kinds of companions."""
    hanging = {os.path.join(LIB, f"{name}.jpg"): dict.fromkeys(own, "digest") for name, own in kinds.items()}
    return idem.Scoring(LIB, hanging=hanging)


@pytest.mark.parametrize(
    ("original", "other", "scoring", "reason"),
    [
        (candidate("a.jpg"), candidate("b.jpg", **HALF), idem.Scoring(LIB), "largest: 12.0 MP"),
        (
            *(candidate("a.jpg"), candidate("b.jpg", STRIPPED, 9000, luma_step=1), idem.Scoring(LIB)),
            "has the capture time and camera",
        ),
        (
            candidate("a.jpg", **HALF),
            candidate("b.jpg", STRIPPED),
            idem.Scoring(LIB),
            "has the capture time and camera",
        ),
        (
            *(candidate("a.jpg", replace(BY_CAMERA, place=True)), candidate("b.jpg", size=9000), idem.Scoring(LIB)),
            "has the place",
        ),
        (
            *(candidate("a.tif", replace(STRIPPED, bits=16)), candidate("b.tif", STRIPPED, 9000), idem.Scoring(LIB)),
            "has 16 bits per channel",
        ),
        (
            candidate("a.jpg", STRIPPED),
            candidate("b.gif", replace(STRIPPED, colours="palette"), 9000),
            *(idem.Scoring(LIB), "has all colours"),
        ),
        (candidate("a.jpg"), candidate("b.jpg", size=9000), beside(a=[idem.RAW]), "has the RAW file"),
        (candidate("a.jpg"), candidate("b.jpg", size=9000), beside(a=[".xmp"]), "has the sidecar"),
        (
            *(candidate("a.jpg", replace(BY_CAMERA, motion=True)), candidate("b.jpg", size=9000), idem.Scoring(LIB)),
            "has the film inside",
        ),
        (
            candidate("a.jpg"),
            candidate("b.jpg", replace(BY_CAMERA, edited=True, software="Adobe Photoshop"), 9000, luma_step=1),
            *(idem.Scoring(LIB), "the other was saved again by Adobe Photoshop"),
        ),
        (
            candidate("a.heic", replace(BY_CAMERA, make="Apple"), luma_step=16),
            candidate("b.jpg", replace(BY_CAMERA, make="Apple"), 9000),
            *(idem.Scoring(LIB), "as the camera wrote it"),
        ),
        (candidate("b.jpg"), candidate("a.heic", size=9000, luma_step=16), idem.Scoring(LIB), "less compressed"),
        (
            candidate("b.jpg"),
            candidate("a.png", replace(BY_CAMERA, lossless=True), 9000, luma_step=0),
            *(idem.Scoring(LIB), "less compressed"),
        ),
        (
            candidate("a.jpg"),
            candidate("b.jpg", replace(BY_CAMERA, jfif=True), 9000, luma_step=1),
            *(idem.Scoring(LIB), "as the camera wrote it"),
        ),
        (
            candidate("a.jpg", replace(BY_CAMERA, rating=5)),
            candidate("b.jpg", size=9000),
            *(idem.Scoring(LIB), "has the rating"),
        ),
        (candidate("a.jpg"), candidate("b.jpg", size=9000, luma_step=12), idem.Scoring(LIB), "less compressed"),
        (candidate("b.jpg", size=9000), candidate("a.jpg"), idem.Scoring(LIB), "largest file: 9.0 KB"),
        (
            candidate("lake/a.jpg"),
            candidate("b.jpg"),
            *(idem.Scoring(LIB), "in the better folder: lake"),
        ),
        (
            candidate("b/a.jpg"),
            candidate("lake/a.jpg"),
            *(idem.Scoring(LIB, preferred=(os.path.join(LIB, "b"),)), "in the better folder: b"),
        ),
        (candidate("beach.jpg"), candidate("IMG_1.jpg"), idem.Scoring(LIB), "the better name"),
        (
            film("a.mp4", idem.Metadata(sound=True)),
            film("b.mp4", idem.Metadata(), 10**7),
            idem.Scoring(LIB),
            "has the sound",
        ),
        (
            film("a.mp4", idem.Metadata(codec="hevc"), 10**6),
            film("b.mp4", idem.Metadata(codec="mpeg4"), 19 * 10**5),
            *(idem.Scoring(LIB), "less compressed"),
        ),
    ],
)
def test_the_first_rule_that_tells_two_apart_finds_the_original(
    original: Replica[Any], other: Replica[Any], scoring: idem.Scoring, reason: str
) -> None:
    for pair in ((original, other), (other, original)):
        found = idem.original_first(idem.Group("image", pair, (0, 0)), 64, scoring)[0]
        assert found.replicas == (original, other)
        assert idem.decide(found, scoring).reasons[0] == reason


def test_a_larger_one_that_may_show_more_is_not_suggested_for_the_trash() -> None:
    pair = candidate("a.jpg", **HALF), candidate("large.jpg", STRIPPED)
    decision = idem.decide(idem.Group("image", pair, (0, 0)), idem.Scoring(LIB))
    assert (decision.trash, decision.stays) == ((), pair[1:])


def test_a_picture_is_told_from_its_enlargement(tmp_path: Path) -> None:
    grain = np.random.default_rng(1).normal(0, 12, (700, 900, 1))
    real = Image.fromarray((np.asarray(photo(1, (900, 700))) + grain).clip(0, 255).astype(np.uint8))
    half = real.resize((450, 350), Image.Resampling.LANCZOS)
    enlarged = half.resize((900, 700), Image.Resampling.BICUBIC)
    small = replica_of(save(half, tmp_path / "half.jpg", quality=92))
    found = []
    for picture in (real, enlarged):
        replica = replica_of(save(picture, tmp_path / "large.jpg", quality=92))
        spectrum = idem.spectrum_of(replica.file)
        assert isinstance(spectrum, str)
        found.append(
            idem.is_enlarged(replace(replica, fingerprint=replace(replica.fingerprint, spectrum=spectrum)), small)
        )
    assert found == [False, True]


def test_an_enlargement_is_not_kept_for_its_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grain = np.random.default_rng(1).normal(0, 12, (525, 700, 1))
    scene = Image.fromarray((np.asarray(photo(1, (700, 525))) + grain).clip(0, 255).astype(np.uint8))
    save(scene.resize((1400, 1050), Image.Resampling.BICUBIC), tmp_path / "poster.jpg", quality=60)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2021:07:05 10:00:00"
    save(scene, tmp_path / "scan.jpg", quality=92, exif=exif)
    for _ in range(2):  # the second time from the cache
        (found,) = report(tmp_path, capsys=capsys)["groups"]
        assert found["decision"]["keep"] == str(tmp_path / "scan.jpg")
        assert found["decision"]["trash"] == []  # nor is it certain that it shows nothing more


def replica_of(path: Path) -> Replica[ImageFingerprint]:
    return Replica(idem.as_it_is(str(path)), fingerprint(path))


def test_what_only_a_copy_has_is_told() -> None:
    rich = replace(BY_CAMERA, place=True, rating=5, keywords=True, caption=True, bits=16, pages=2, gain_map=True)
    kept, gone = candidate("a.jpg", replace(BY_CAMERA, bits=8)), candidate("b.jpg", rich, **HALF)
    scoring = replace(
        beside(a=[".xmp"], b=[".xmp"]), links={gone.file.path: (os.path.join(LIB, "album", "first.jpg"),)}
    )
    scoring.hanging[gone.file.path][".xmp"] = "another"  # type: ignore[index]
    decision = idem.decide(idem.Group("image", (kept, gone), (0, 0)), scoring)
    link = os.path.join("album", "first.jpg")
    words = "place", "rating", "keywords", "caption", "gain map for HDR", "16 bits per channel", "several pages"
    assert decision.loses == (idem.Loss(gone.file.path, (*words, "another .xmp file", f"the link {link}")),)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("1998-07 Kroatien/a.jpg", ("date of its folder",)),
        ("Hugo/IMG-20200601-WA0007.jpg", ("date in its name",)),
        ("Backup 2020/a.jpg", ()),
        ("Hugo/a.jpg", ()),
    ],
)
def test_a_date_that_only_a_name_or_folder_states_is_told(gone: str, told: tuple[str, ...]) -> None:
    pair = candidate("Hugo/1.jpg", STRIPPED), candidate(gone, STRIPPED, **HALF)
    decision = idem.decide(idem.Group("image", pair, (0, 0)), idem.Scoring(LIB), idem.Choice(frozenset({0}), 0, 0))
    assert [loss.what for loss in decision.loses] == ([told] if told else [])


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("2021-07-05T10:00:00", "2021-07-05T10:00:00", 0),
        ("2021-07-05T10:00:00.10", "2021-07-05T10:00:00.5", 0.4),
        ("2021-07-05T10:00:00.10", "2021-07-05T10:00:00", 0),
        ("2021-07-05T10:00:00.90", "2021-07-05T10:00:02", 2),
        ("2021-07-05T10:00:00+02:00", "2021-07-05T08:00:00+00:00", 0),
        ("2021-07-05T10:00:00+02:00", "2021-07-05T10:00:00-01:00", 10800),
        ("2021-07-05T10:00:00+02:00", "2021-07-05T10:00:00", 0),
        ("2021-07-05T10:00:00", "", 0),
        ("2021-07-05T10:00:00", "2021-99-05T10:00:00", 0),
    ],
)
def test_exposures_are_told_apart_by_what_both_state(one: str, other: str, apart: float) -> None:
    pair = [
        candidate(f"{size}.jpg", replace(BY_CAMERA, taken=taken), size) for size, taken in enumerate((one, other), 1)
    ]
    assert idem.seconds_apart(pair[0].fingerprint, pair[1].fingerprint) == pytest.approx(apart)


def test_shots_of_a_burst_are_no_copies_of_each_other_nor_through_a_third(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = photo(1, (640, 480))
    for second in range(3):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Canon", "EOS 80D"
        exif.get_ifd(0x8769)[0x9003] = f"2021:07:05 10:00:0{second}"
        save(scene, tmp_path / f"IMG_{second}.jpg", quality=90 + second, exif=exif)
    save(scene, tmp_path / "export.jpg", quality=99)
    assert groups(tmp_path, capsys=capsys) == []  # it may be a copy of any of them
    for size in ((320, 240), (1280, 960)):
        save(scene.resize(size), tmp_path / "export.jpg", quality=99)
        assert groups(tmp_path, capsys=capsys) == []
    found = report(tmp_path, "--threshold", "10", capsys=capsys)["groups"][0]
    assert (len(found["files"]), found["decision"]["trash"], found["recoverable_bytes"]) == (4, [], 0)
    assert main([str(tmp_path), "--threshold", "10"]) == 0
    out = capsys.readouterr().out
    assert "look-alike, 1 bit, taken 2 s apart" in out
    assert "→ keep all 4" in out


def test_pictures_by_two_cameras_are_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("EOS 80D", "EOS R5"):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Canon", f"Canon {model}"
        exif.get_ifd(0x8769)[0x9003] = "2021:07:05 10:00:00"
        save(photo(), tmp_path / model / "IMG_1.jpg", quality=90 if model == "EOS R5" else 85, exif=exif)
    assert groups(tmp_path, capsys=capsys) == []


@pytest.mark.parametrize(
    ("names", "grouped"),
    [
        (("IMG_20210705_101112.jpg", "IMG_20210705_101113.jpg"), False),
        (("scan0001.jpg", "scan0002.jpg"), False),
        (("beach.jpg", "beach (1).jpg"), True),
        (("beach (1).jpg", "beach (2).jpg"), True),
        (("scan0001.jpg", "shore/scan0002.jpg"), True),
        (("beach.jpg", "shore.jpg"), True),
    ],
)
def test_shots_that_only_their_numbers_tell_apart_are_no_copies(
    tmp_path: Path, names: tuple[str, str], grouped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, corner in zip(names, (0, 1), strict=True):
        scene = photo(1, (640, 480))
        scene.paste((9 * corner, 0, 0), (0, 0, 2, 2))  # nobody sees it
        save(scene, tmp_path / name, quality=95)
    assert (groups(tmp_path, capsys=capsys) != []) == grouped
    if not grouped:
        (found,) = report(tmp_path, "--threshold", "1", capsys=capsys)["groups"]
        assert found["decision"]["trash"] == []
        assert main([str(tmp_path), "--threshold", "1"]) == 0
        assert "look-alike, 1 bit, numbered like the next one of a series" in capsys.readouterr().out


def test_one_shot_whose_clock_was_set_right_is_still_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1, (640, 480)), tmp_path / "plain.jpg")
    content = (tmp_path / "plain.jpg").read_bytes()
    for hour in (10, 11):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Canon", "EOS 80D"
        exif.get_ifd(0x8769)[0x9003] = f"2021:07:05 {hour}:00:00"
        segment = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        marker = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big")
        (tmp_path / f"{hour}.jpg").write_bytes(content[:2] + marker + segment + content[2:])
    (tmp_path / "plain.jpg").unlink()
    (found,) = report(tmp_path, capsys=capsys)["groups"]
    assert [loss["what"] for loss in found["decision"]["loses"]] == [["another capture time"]]


def test_of_two_sidecars_of_copies_that_go_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_doubles(tmp_path, "beach.jpg", "x/1.jpg", "y/2.jpg")
    (tmp_path / "beach.AAE").write_text("so that it is kept")
    (tmp_path / "x" / "1.xmp").write_text("edits")
    (tmp_path / "y" / "2.xmp").write_text("other edits")
    (found,) = report(tmp_path, "--exact", capsys=capsys)["groups"]
    decision = found["decision"]
    assert [loss["what"] for loss in decision["loses"]] == [["another .xmp file"]]
    planned = {each["path"]: each["target"] for each in decision["companions"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("k\n"))
    assert main([str(tmp_path), "--exact", "--interactive"]) == 0
    assert all(Path(target).is_file() for target in planned.values())


def test_look_alikes_are_never_suggested_for_the_trash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1), tmp_path / "colour.png")
    save(photo(1).convert("L"), tmp_path / "grey.png")
    before = contents(tmp_path)
    found = report(tmp_path, "--threshold", "8", capsys=capsys)["groups"]
    assert [(each["decision"]["trash"], each["recoverable_bytes"]) for each in found] == [([], 0)]
    review = review_of(tmp_path, "--threshold", "8")
    (view,) = page_of(review)["groups"]
    assert (view["keep"], view["trash"]) == ([0, 1], [])
    assert re.fullmatch(r"look-alike, \d+ bits?", view["replicas"][1]["alike"])
    assert contents(tmp_path) == before


def test_a_preferred_folder_wins_ties_and_gives_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_doubles(tmp_path, "lake trip/IMG_1.jpg", "x/IMG_1.jpg")
    for given in ("x", "x/", str(tmp_path / "x")):
        (found,) = report(tmp_path, "--exact", "--prefer", given, capsys=capsys)["groups"]
        assert found["decision"]["target"] == found["decision"]["keep"] == str(tmp_path / "x" / "IMG_1.jpg")


def test_nothing_in_a_protected_folder_is_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_doubles(tmp_path, "x/IMG_1.jpg", "x/IMG_1 copy.jpg", "lake trip/boat.jpg")
    (found,) = report(tmp_path, "--exact", "--protect", "lake trip", capsys=capsys)["groups"]
    boat = str(tmp_path / "lake trip" / "boat.jpg")
    assert (found["decision"]["keep"], found["decision"]["target"]) == (boat, boat)
    assert sorted(found["decision"]["trash"]) == [
        str(tmp_path / "x" / name) for name in ("IMG_1 copy.jpg", "IMG_1.jpg")
    ]
    (found,) = report(tmp_path, "--exact", "--protect", "x", capsys=capsys)["groups"]
    assert (found["decision"]["keep"], found["decision"]["trash"]) == (boat, [])
    (all_of_it,) = report(tmp_path, "--exact", "--protect", ".", capsys=capsys)["groups"]
    assert all_of_it["decision"]["trash"] == []


@pytest.mark.parametrize("option", ["--prefer", "--protect"])
def test_a_folder_that_is_none_of_the_library_gets_one_clear_line(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "lib"
    made_doubles(library, "a.jpg")
    assert main([str(library), option, ""]) == 2
    assert capsys.readouterr().err == f"idem: cannot use an empty name as {option}\n"
    for given, why in (
        ("nowhere", f"there is no such folder in {library}"),
        ("a.jpg", f"there is no such folder in {library}"),
        ("..", f"it is not in {library}"),
    ):
        assert main([str(library), option, given]) == 2
        assert capsys.readouterr().err == f"idem: cannot use {given} as {option}: {why}\n"


# ── looks at pairs of files ──


def invoice(amount: str, size: tuple[int, int] = (900, 1200)) -> Image.Image:
    """A page of many lines, in one of which stands this amount."""
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for line in range(28):
        number = amount if line == 14 else f"{(line * 7919) % 900 + 100}.{line * 37 % 100:02}"
        draw.text((70, 60 + 38 * line), f"Item {line * 31 % 17} of the order of last week", "black", font)
        draw.text((720, 60 + 38 * line), number, "black", font)
    return page


def looks_of(library: Path) -> list[list[str]]:
    """The rows of the cache of looks: verdicts and reasons."""
    with open(library / "__databases" / "closer_looks_db.csv", newline="") as stream:
        return sorted([row["copy"], row["reason"]] for row in csv.DictReader(stream))


def rewritten_looks(library: Path, change: Callable[[idem.Verdict], idem.Verdict]) -> None:
    """Change all verdicts in the cache; each row has the right check."""
    with closing(idem.VerdictCache(str(library / "__databases"))) as cache:
        cache.known = {pair: change(known) for pair, known in cache.known.items()}
        cache.untidy = True


def test_a_page_with_another_amount_is_not_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("250.00"), tmp_path / "bill.jpg", quality=80)
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    assert groups(tmp_path, capsys=capsys) == [["bill.png", "bill.jpg"]]


def test_what_is_no_copy_of_the_original_makes_groups_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, amount in (("first", "250.00"), ("second", "290.00"), ("third", "258.00")):
        save(invoice(amount), tmp_path / f"{name}.png")
        save(fitted(invoice(amount), 800), tmp_path / f"{name}.jpg", quality=85)
    expected = [["first.png", "first.jpg"], ["second.png", "second.jpg"], ["third.png", "third.jpg"]]
    assert sorted(groups(tmp_path, capsys=capsys)) == expected


def test_a_library_that_has_not_changed_is_looked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("250.00"), tmp_path / "bill.jpg", quality=80)
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    groups(tmp_path, capsys=capsys)
    cache = tmp_path / "__databases" / "closer_looks_db.csv"
    assert {copy for copy, _ in looks_of(tmp_path)} == {"0", "1"}
    before = cache.read_bytes(), cache.stat().st_mtime_ns
    groups(tmp_path, capsys=capsys)
    assert (cache.read_bytes(), cache.stat().st_mtime_ns) == before


def test_a_reason_with_a_comma_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = fitted(photo(), 400)
    width, height = picture.size
    save(picture.crop((0, 0, width - 2, height - 2)), tmp_path / "lake.png")
    save(picture.crop((1, 1, width - 1, height - 1)), tmp_path / "shifted.png", compress_level=1)
    groups(tmp_path, capsys=capsys)
    cache = tmp_path / "__databases" / "closer_looks_db.csv"
    assert looks_of(tmp_path) == [["0", "turned, shifted or cropped a little"]]
    before = cache.read_bytes(), cache.stat().st_mtime_ns
    groups(tmp_path, capsys=capsys)
    assert (cache.read_bytes(), cache.stat().st_mtime_ns) == before


def test_a_cached_look_says_by_how_much_two_differ_as_the_look_did(tmp_path: Path) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    pair = replica_of(tmp_path / "bill.png"), replica_of(tmp_path / "changed.png")
    with closing(idem.Pool(1)) as pool, closing(idem.VerdictCache(str(tmp_path))) as cache:
        looks = idem.Looks(pool, cache)
        looks.look([pair])
    with closing(idem.VerdictCache(str(tmp_path))) as cache:
        assert [each.excess for each in cache.known.values()] == [each.excess for each in looks.known.values()]


def test_a_look_outlasts_a_move_of_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "lake.png")
    save(fitted(photo(), 320), tmp_path / "lake.jpg")
    groups(tmp_path, capsys=capsys)
    before = looks_of(tmp_path)
    (tmp_path / "lake.png").rename(tmp_path / "summer.png")
    (tmp_path / "lake.jpg").rename(tmp_path / "summer.jpg")
    assert groups(tmp_path, capsys=capsys) == [["summer.png", "summer.jpg"]]
    assert looks_of(tmp_path) == before == [["1", "the same but for size and compression"]]


def test_files_of_equal_picture_data_are_not_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "lake.jpg")
    save(photo(), tmp_path / "described.jpg", comment="the lake")
    assert groups(tmp_path, capsys=capsys) == [["described.jpg", "lake.jpg"]]
    assert not (tmp_path / "__databases" / "closer_looks_db.csv").exists()


def test_a_row_of_another_version_is_looked_at_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "lake.png")
    save(fitted(photo(), 320), tmp_path / "lake.jpg")
    groups(tmp_path, capsys=capsys)
    cache = tmp_path / "__databases" / "closer_looks_db.csv"
    current = cache.read_bytes()
    header, row = current.splitlines()
    text = row.rpartition(b",")[0].replace(f",{idem.LOOK_VERSION},1,".encode(), b",999,0,")
    cache.write_bytes(b"%s\n%s,%08x\n" % (header, text, zlib.crc32(text)))
    assert groups(tmp_path, capsys=capsys) == [["lake.png", "lake.jpg"]]
    assert cache.read_bytes() == current


@pytest.mark.parametrize("junk", [b"\0" * 1000, b"1,2,3\n", b'"/photos/lake.jpg",1,2\n', b"a" * 32 + b","])
def test_junk_in_the_cache_of_looks_costs_no_other_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], junk: bytes
) -> None:
    save(photo(), tmp_path / "lake.png")
    save(fitted(photo(), 320), tmp_path / "lake.jpg")
    groups(tmp_path, capsys=capsys)
    cache = tmp_path / "__databases" / "closer_looks_db.csv"
    current = cache.read_bytes()
    header, row = current.splitlines(keepends=True)
    cache.write_bytes(header + junk + b"\n" + row + junk)
    assert groups(tmp_path, capsys=capsys) == [["lake.png", "lake.jpg"]]
    assert cache.read_bytes() == current


def test_no_file_moves_on_the_word_of_a_cached_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    groups(tmp_path, capsys=capsys)
    rewritten_looks(tmp_path, lambda known: replace(known, copy=True))
    findings = found_in(tmp_path)
    assert [[Path(each.file.path).name for each in group.replicas] for group in findings.groups] == [
        ["changed.png", "bill.png"]
    ]
    before = contents(tmp_path)
    outcome = carried_out(findings)
    reason = "read once more, it is no copy of the file that would be kept: differs in a spot"
    assert [(Path(each.path).name, each.reason.startswith(reason)) for each in outcome.refused] == [("bill.png", True)]
    assert contents(tmp_path) == before


def test_a_look_alike_says_what_the_look_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    assert main([str(tmp_path), "--threshold", "6"]) == 0
    assert re.search(r"bill\.png  \(look-alike, [1-6] bits?, differs in a spot [\w ]+\)\n", capsys.readouterr().out)
    (decided,) = report(tmp_path, "--threshold", "6", capsys=capsys)["groups"]
    assert decided["decision"]["trash"] == []


def test_a_person_may_take_a_look_alike_for_a_copy(tmp_path: Path) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    findings = found_in(tmp_path, "--threshold", "6")
    (group,) = findings.groups
    decision = idem.decide(group, findings.scoring, idem.Choice(frozenset({0})))
    with closing(idem.Pool(2)) as pool:
        assert idem.doubts_about(decision, 6, pool) == {}


def test_a_series_of_pictures_that_are_nearly_equal_comes_to_an_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        save(invoice(f"2{number:02}.00"), tmp_path / f"{'abcdefghijkl'[number]}.png")
    assert groups(tmp_path, capsys=capsys) == []
    assert {copy for copy, _ in looks_of(tmp_path)} == {"0"}
    assert len(looks_of(tmp_path)) <= 12 * 2 * idem.MOST_LOOKS


def test_an_edit_in_the_trash_has_no_copy_in_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    trash = tmp_path / idem.TRASH_FOLDER
    trash.mkdir()
    save(invoice("290.00"), trash / "changed.png", compress_level=1)
    save(fitted(invoice("250.00"), 800), trash / "small.jpg")
    for options in ([], ["--fast"]):
        assert main([str(tmp_path), "--verify-trash", *options]) == 1
        told = capsys.readouterr().out
        assert "changed.png: there is no copy of it in the library; most like it is bill.png: differs in" in told
        assert "small.jpg" not in told


def test_what_is_in_the_trash_may_be_a_copy_of_the_second_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)  # the larger file comes first
    save(invoice("250.00"), tmp_path / "bill.png")
    trash = tmp_path / idem.TRASH_FOLDER
    trash.mkdir()
    save(fitted(invoice("250.00"), 800), trash / "small.jpg")
    assert main([str(tmp_path), "--verify-trash"]) == 0
    assert "small.jpg" not in capsys.readouterr().out


def test_what_is_nearly_a_copy_of_the_first_may_be_one_of_a_fine_copy_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    named = {}
    for name, step, width in (
        ("first", 0, 800),
        ("fine", 3, 800),
        ("coarse", 12, 800),
        ("tiny", 2, 100),
        ("other", 9, 400),
    ):
        known = replace(random_fingerprint(rng), palette=False, luma_step=step, chroma_step=step, width=width)
        named[name] = Replica(media_file(save(photo(), tmp_path / f"{name}.png")), known)
    same, nearly = idem.Verdict(True, "the same"), idem.Verdict(False, "other colours", excess=1.1)
    far = replace(nearly, excess=1.3)

    def seen(refused: idem.Verdict, by: str) -> bool:
        star = idem.Group("image", (named["first"], named[by], named["other"]), (0, 0, 0))
        with closing(idem.Pool(1)) as pool:
            looks = idem.Looks(pool)
            for one, other, known in (("first", by, same), ("first", "other", refused), (by, "other", same)):
                looks.known[looks.pair(named[one], named[other])] = known
            idem.look_at_stars([star], looks)
            verdict = idem.verdict_in(star, 2, looks)
        assert verdict
        return verdict.copy

    assert seen(nearly, by="fine")
    assert not seen(far, by="fine")
    assert not seen(nearly, by="coarse")  # a small edit could hide in it
    assert not seen(nearly, by="tiny")


def test_what_cannot_be_looked_at_is_not_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, copied, cache = tmp_path / "library", tmp_path / "copied", ["--cache", str(tmp_path / "cache")]
    trashed = Path("__duplicate_files_trash", "lake.jpg")
    save(photo(), library / "lake.png")
    save(fitted(photo(), 400), library / trashed)
    assert main([str(library), "--verify-trash", "--fast", *cache]) == 0
    shutil.copytree(library, copied)  # with the times of its files, so that the cache knows them
    known = (copied / trashed).stat()
    (copied / trashed).write_bytes(b"x" * known.st_size)
    os.utime(copied / trashed, ns=(known.st_atime_ns, known.st_mtime_ns))
    (tmp_path / "cache" / "closer_looks_db.csv").unlink()
    shutil.rmtree(library)
    capsys.readouterr()
    assert main([str(copied), "--verify-trash", "--fast", *cache]) == 1
    assert f"{trashed}: not a picture in a format idem reads" in capsys.readouterr().out


def test_an_edit_of_one_shot_does_not_make_what_may_be_of_two_a_copy_of_it(tmp_path: Path) -> None:
    pixels = np.asarray(fitted(photo(), 400).convert("RGB"), np.float32) * 0.6 + 50
    edited = pixels.copy()
    for name, brighter, taken in (("first", 0, "2020:01:01 10:00:00"), ("second", 0.9, "2020:01:01 10:00:07")):
        shot = Image.fromarray((pixels + brighter).astype(np.uint8))
        save(shot, tmp_path / name / "a.jpg", quality=92, exif=exif_of(taken))
    save(shot.resize((300, 225)), tmp_path / "stripped.jpg", quality=90)
    for _ in range(16):  # with one of these the edit is like the first shot, and not like the second
        edited[60:100, 80:120] -= 1
        save(Image.fromarray(edited.clip(0, 255).astype(np.uint8)), tmp_path / "edited.jpg", quality=95)
        named = [{Path(each.file.path).name for each in group.replicas} for group in found_in(tmp_path).groups]
        assert not any({"stripped.jpg", "a.jpg"} <= names for names in named)


def test_a_picture_that_cannot_be_read_for_a_look_is_named_and_left_out(tmp_path: Path) -> None:
    for name, picture in (
        ("lake.png", photo()),
        ("lake.jpg", fitted(photo(), 400)),
        ("small.jpg", fitted(photo(), 320)),
    ):
        save(picture, tmp_path / name)
    replicas = [replica_of(tmp_path / name) for name in ("lake.png", "lake.jpg", "small.jpg")]
    (tmp_path / "lake.jpg").write_bytes(b"something else")
    with closing(idem.Pool(2)) as pool:
        looks = idem.Looks(pool)
        found = idem.verified_groups(idem.groups_of(replicas, 0), 0, idem.Scoring(str(tmp_path)), looks)
    assert [[Path(each.file.path).name for each in group.replicas] for group in found] == [["lake.png", "small.jpg"]]
    assert {Path(path).name: problem.reason for path, problem in looks.problems.items()} == {
        "lake.jpg": "changed while it was scanned"
    }


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Decide
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def made_group(*names: str, exact: bool = False) -> idem.AnyGroup:
    """A group of files below LIB, the first being the best."""
    base = random_fingerprint(np.random.default_rng(1))
    made: list[Any] = [replace(base, width=4000 - 100 * place, height=3000) for place in range(len(names))]
    if exact:
        made = [idem.Checksum("0" * 64)] * len(names)
    paths = [os.path.join(LIB, *name.split("/")) for name in names]
    files = [MediaFile(path, 1000 if exact else 1000 - place, 0, 0, 1, place) for place, path in enumerate(paths)]
    replicas = tuple(Replica(file, each) for file, each in zip(files, made, strict=True))
    return idem.Group("image", replicas, (0,) * len(names))


def place_of(decision: idem.Decision) -> str:
    """Where its keeper is to be below LIB."""
    return os.path.relpath(decision.target, LIB).replace(os.sep, "/")


# Of a name: the letters of its content words, the date that it states, and whether it is marked as no original.
NAMES_SAY = {
    # cameras and phones
    "IMG_1234": (0, "", ""),
    "_DSC1234": (0, "", ""),
    "DSCF1234": (0, "", ""),
    "P1040567": (0, "", ""),
    "100_1234": (0, "", ""),
    "GOPR0123": (0, "", ""),
    "IMG_E1234": (0, "", ""),
    "DSC_0001_HDR_final2": (0, "", ""),
    "IMG_20210705": (0, "2021-07-05", ""),
    "IMG_20210705_101112": (0, "2021-07-05 10.11.12", ""),
    "20210705_101112": (0, "2021-07-05 10.11.12", ""),
    "20210705T101112": (0, "2021-07-05 10.11.12", ""),
    "PXL_20210705_101112123.PORTRAIT": (0, "2021-07-05 10.11.12", ""),
    "MVIMG_20210705_101112": (0, "2021-07-05 10.11.12", ""),
    "WP_20210705_10_11_12_Pro": (0, "2021-07-05 10.11.12", ""),
    "00000IMG_00000_BURST20210705101112": (0, "2021-07-05 10.11.12", ""),
    # messengers
    "WhatsApp Image 2021-07-05 at 10.11.12": (0, "2021-07-05 10.11.12", "marked"),
    "PHOTO-2021-07-05-10-11-12": (0, "2021-07-05 10.11.12", ""),
    "IMG-20210705-WA0012": (0, "2021-07-05", ""),
    "VID-20210705-WA0003": (0, "2021-07-05", ""),
    "signal-2021-07-05-101112": (0, "2021-07-05 10.11.12", "marked"),
    "viber_image_2021-07-05_10-11-12-123": (0, "2021-07-05 10.11.12", "marked"),
    "photo_2021-07-05_10-11-12": (0, "2021-07-05 10.11.12", ""),
    "KakaoTalk_20210705_101112": (0, "2021-07-05 10.11.12", "marked"),
    "微信图片_20210705101112": (0, "2021-07-05 10.11.12", "marked"),
    "mmexport1623472000000": (0, "", ""),
    "FB_IMG_1623472000000": (0, "", ""),
    "received_1234567890": (0, "", ""),
    "Snapchat-1234567890": (0, "", "marked"),
    "thumbnail_IMG_1234": (0, "", "marked"),
    # screenshots
    "Screenshot_20210705-101112": (0, "2021-07-05 10.11.12", ""),
    "Screen Shot 2021-07-05 at 9.11.12 PM": (0, "2021-07-05 21.11.12", ""),
    "Screen Shot 2021-07-05 at 12.11.12 AM": (0, "2021-07-05 00.11.12", ""),
    "Bildschirmfoto 2021-07-05 um 10.11.12": (0, "2021-07-05 10.11.12", ""),
    "Capture d’écran 2021-07-05 à 10.11.12": (0, "2021-07-05 10.11.12", ""),
    "Captura de pantalla 2021-07-05 101112": (0, "2021-07-05 10.11.12", ""),
    "Schermata 2021-07-05 alle 10.11.12": (0, "2021-07-05 10.11.12", ""),
    "Zrzut ekranu 2021-07-05 101112": (0, "2021-07-05 10.11.12", ""),
    "Ekran görüntüsü 2021-07-05 101112": (0, "2021-07-05 10.11.12", ""),
    "Снимок экрана 2021-07-05 в 10.11.12": (0, "2021-07-05 10.11.12", ""),
    "スクリーンショット 2021-07-05 10.11.12": (0, "2021-07-05 10.11.12", ""),
    # scanners, websites, and machines
    "SCAN0001": (0, "", ""),
    "EPSON001": (0, "", ""),
    "img20210705_10111234": (0, "2021-07-05 10.11.12", ""),
    "Adobe Scan 05 Jul 2021": (0, "2021-07-05", ""),
    "CamScanner 07-05-2021 10.11.12": (0, "", ""),  # in May or July
    "CamScanner 07-15-2021 10.11.12": (0, "2021-07-15 10.11.12", ""),
    "image0(1)": (0, "", "marked"),
    "unnamed (3)": (0, "", "marked"),
    "original_9f2a7c": (0, "", ""),
    "d41d8cd98f00b204e9800998ecf8427e": (0, "", ""),
    "3F2504E0-4F89-11D3-9A0C-0305E82C3301": (0, "", ""),
    "dQw4w9WgXcQ": (0, "", ""),
    "xkqjzw": (0, "", ""),
    "Photo_1920x1080": (0, "", "marked"),
    "Untitled": (0, "", ""),
    "ⅧⅧⅧ": (0, "", ""),
    "___": (0, "", ""),
    "": (0, "", ""),
    # dates, and what is none
    "Foto 2021-07-05": (0, "2021-07-05", ""),
    "2021_07_05": (0, "2021-07-05", ""),
    "Scan 05.07.2021": (0, "2021-07-05", ""),
    "25-07-2021": (0, "2021-07-25", ""),
    "07-07-2021": (0, "2021-07-07", ""),
    "July 5, 2021": (0, "2021-07-05", ""),
    "5. März 2021": (0, "2021-03-05", ""),
    "3rd_May_2021": (0, "2021-05-03", ""),
    "2021年7月5日": (0, "2021-07-05", ""),
    "2021-07-05 99.11.12": (0, "2021-07-05", ""),
    "2021-07": (0, "", ""),
    "Foto_2021-07": (0, "", ""),
    "2021-02-30": (0, "", ""),
    "20211399": (0, "", ""),
    "12345678": (0, "", ""),
    "202107051": (0, "", ""),
    "20210705991112": (0, "", ""),
    "+49 1520 2010112": (0, "", ""),
    # words
    "beach2": (5, "", ""),
    "beach_2": (5, "", ""),
    "Lena 33": (4, "", ""),
    "New York 2021-07-05": (4, "2021-07-05", ""),
    "20210705_wedding": (7, "2021-07-05", ""),
    "NewYorkTrip": (8, "", ""),
    "HDRBeach": (5, "", ""),
    "IMG_1234 Oma Geburtstag": (13, "", ""),
    "May at the lake": (7, "", ""),
    "Copacabana": (10, "", ""),
    "Kopenhagen": (10, "", ""),
    "Zürich": (6, "", ""),
    "Zürich": (6, "", ""),
    "Łódź": (4, "", ""),
    "Москва": (6, "", ""),
    "東京": (4, "", ""),
    "Angstschweiß": (12, "", ""),
    # copies, in many languages
    "beach copy": (5, "", "marked"),
    "beach_copy2": (5, "", "marked"),
    "beach Copy 2": (5, "", "marked"),
    "Copy of beach": (5, "", "marked"),
    "Kopie (2) von Strand": (6, "", "marked"),
    "beach (another copy)": (5, "", "marked"),
    "beach (Anna's conflicted copy 2021-07-05)": (5, "", "marked"),
    "beach.sync-conflict-20210705-101112-ABCDEFG": (5, "", "marked"),
    "beach (1)": (5, "", "marked"),
    "beach[1]": (5, "", "marked"),
    "beach~2": (5, "", "marked"),
    "Lena 33 (2)": (4, "", "marked"),
    "Strand - Kopie (2)": (6, "", "marked"),
    "Strand (Kopie)": (6, "", "marked"),
    "plage copie": (5, "", "marked"),
    "praia - Cópia": (5, "", "marked"),
    "strand - kopi": (6, "", "marked"),
    "part másolat": (4, "", "marked"),
    "пляж — копия": (4, "", "marked"),
    "写真のコピー": (0, "", "marked"),
    "東京 - コピー": (4, "", "marked"),
    "东京 副本": (4, "", "marked"),
    "IMG_1234-2": (0, "", "marked"),
    "IMG_1234_2": (0, "", "marked"),
    "IMG_20210705_101112_1": (0, "2021-07-05 10.11.12", "marked"),
    "- Kopie": (0, "", "marked"),
    # edits and smaller versions
    "IMG_1234-edited": (0, "", "marked"),
    "IMG_1234_edit": (0, "", "marked"),
    "IMG_1234 (Edited)": (0, "", "marked"),
    "IMG_1234-Bearbeitet": (0, "", "marked"),
    "IMG_1234-modifié": (0, "", "marked"),
    "beach small": (5, "", "marked"),
    "beach_low-res": (5, "", "marked"),
}


def test_names_say_words_a_date_or_nothing() -> None:
    ranks = {name: idem.name_ranks([name + ".jpg"], idem.Scoring(LIB))[0] for name in NAMES_SAY}
    dates = {name: idem.date_in_name(name) for name in NAMES_SAY}
    said = {name: (rank.letters, dates[name], "" if rank.unmarked else "marked") for name, rank in ranks.items()}
    assert said == NAMES_SAY
    assert [name for name, rank in ranks.items() if rank.dated != bool(dates[name])] == []


# Of a folder below the library: whether a person looks there for a picture, and what it says.
FOLDERS_SAY = {
    "nothing": """
        . | Photos | Pictures | DCIM/100APPLE | 101MSDCF | 102_PANA | DCIM/Camera | Camera Roll | Misc | New folder (2)
        Neuer Ordner | iCloud Photos | Google Photos | Dropbox/Camera Uploads | OneDrive/Pictures | SD Card | shared
        ALL_PHOTOS | all phones | Screenshots | Favourites | Archiv | Old photos | Bilder | 相机 | Фото | Papa PC
        Laptop | Mamas Handy | Jan's MacBook Pro | téléphone de maman | 妈妈手机 | Externe Platte | Speicherkarte
        disque dur externe | WD Elements | disco duro | NAS Sync
        Konvertiert | 未整理 | à trier | Zu sortieren | por ordenar | Pulpit | Bureau
    """,
    "date": """
        2021 | 2021-07-05 | Photos/2019/07 | 2019/2019_07 | 201907 | DCIM/202107__ | 2019/Juli | 2019/07 July
        Photos from 2021 | 2006 archive | 2021_07 Import | 2019 - DCIM/100CANON
    """,
    "words": """
        Italy | Lofoten | Photos/Italy/DCIM | Geburtstag Oma | Zürich | 京都 | Москва | Old Town Prague | Small island
        Signal Hill | Italy (2) | Kleine Anna | New York | May | Kopenhagen | Cache Valley | Thumb Butte | Trier
        Temporary Museum | Duplicate Bridge | Download Festival | Compressed Air | Skype mit Oma | Twitter Meetup Berlin
        Tennis Doubles | Preikestolen Pulpit | Kopi Luwak | Beach Trash Cleanup | Deleted Scenes | Reject Dance Crew
        Trash the Dress | Disco Night | ボツワナ | 一時帰国 | 臨時列車 | 桌面遊戲 | 東京タワー | iPhone Launch Party
    """,
    "words and date": """
        2019-07 Italy | 2019/Italy | Web Summit 2019 | Italy/2019/07 | 2019Lake | 1998 Oma | 2019 ボツワナ
    """,
    "loses": """
        Backup | Backup 2020 external disk/DCIM | Backup/2019/Italy | IMG-backup-2 | iPhone Backup | Sicherung
        Datensicherung 2019 | Sauvegarde | copia de seguridad | Cópia de segurança | Kopia zapasowa | Säkerhetskopia
        Yedek | バックアップ | 手机备份2020 | Lightroom Exports | Exportés | Takeout/Google Photos/Photos from 2019
        WhatsApp Images | WhatsApp/Media/WhatsApp Images/Sent | Telegram | Signal | Signal Photos | sent | WeChat
        Downloads | Téléchargements | Descargas | Загрузки | İndirilenler | ダウンロード | 下载 | Desktop | Schreibtisch
        Área de trabalho | Рабочий стол | Masaüstü | duplicates | Doublons | Dubletten | Bilder - Kopie | Copy of Italy
        Copies | 写真のコピー | _rejects | Ausschuss | Aussortiert | Rechazadas | TRASH | deleted | Recently Deleted
        Zuletzt gelöscht | Papierkorb | Corbeille | Papelera | Lixeira | Cestino | Prullenbak | Kosz | Papperskorgen
        Корзина | Удалённые | ゴミ箱 | 回收站 | to delete | À supprimer | temp | tmp | cache | web | Old web | Italy web
        for web | low-res | LowRes | Low Resolution | Wedding small | Fotos Anna klein | thumbs | 1024px | 1920x1080
        删除照片 | 家族アルバム_バックアップ | Desktop Anna | Trash 2 | old trash | Download (2) | temp files | ボツ
        ボツ写真
    """,
}


def test_folders_say_words_a_date_nothing_or_lose() -> None:
    kinds = {
        (True, True, False, False): "nothing",
        (True, True, False, True): "date",
        (True, True, True, False): "words",
        (True, True, True, True): "words and date",
    }
    said: dict[str, list[str]] = {kind: [] for kind in FOLDERS_SAY}
    expected = {kind: [each.strip() for each in re.split(r"[|\n]", text.strip())] for kind, text in FOLDERS_SAY.items()}
    for folder in itertools.chain.from_iterable(expected.values()):
        path = os.path.normpath(os.path.join(LIB, folder, "a.jpg"))
        said[kinds.get(idem.place_rank(path, idem.Scoring(LIB)).kind, "loses")].append(folder)
    assert said == expected


def test_people_look_first_where_words_are_then_dates_and_last_in_backups() -> None:
    folders = ["Trash/2019 Italy", "Backup/2019 Italy", "DCIM", "2019/07", "Italy", "Italian lakes"]
    folders += ["2019 Italy", "2019 Italian lakes"]
    ranks = [idem.place_rank(os.path.join(LIB, *each.split("/"), "a.jpg"), idem.Scoring(LIB)) for each in folders]
    assert all(worse < better for worse, better in itertools.pairwise(ranks))


@pytest.mark.parametrize(
    ("own", "other", "moves"),
    [
        *(("DCIM", "Italy", True), ("DCIM", "2019/07", True), ("Backup", "Photos", True), ("Backup", "Italy", True)),
        *(("2018/07", "Old web", False), ("DCIM", "Backup/Italy", False), ("Backup", "Exports/Italy", True)),
        *(("Italy", "Italian lakes", False), ("Italy", "2019 Italy", True), ("2019/07", "Grandma's calendar", False)),
        *(("Photos", "Pictures", False), ("Downloads", "Desktop", False), ("Italy", "2019/07", False)),
        *(("2019 ボツワナ", "写真", False), ("2019", "2019/Italy", False)),
        *(("2019/07", "2020 calendar", False), ("2020 Download Festival", ".", False)),
        *(("Backup/2019 Wedding Anna", "DCIM/100CANON", False), ("Takeout/Photos from 2019", "DCIM", False)),
        *(("Backup/2019 Wedding Anna", "Wedding", True), ("Takeout/2019 Rome", "2019/07", True)),
        *(("Trash/2019 Wedding Anna", "DCIM/100CANON", True), ("tmp/Anna", "Photos", True), ("Trash", "Backup", True)),
        *((each, "2020/2020-02-01 Vienna", True) for each in ("Papa PC", "Anna", "Externe Platte", "未整理", "Backup")),
        *(("Mamas Handy", "2019/07", True), ("Laptop", "Vienna", True), ("Phone/Anna", "2019/07", False)),
    ],
)
def test_a_photo_moves_only_into_a_better_folder_and_stays_in_a_dated_one(own: str, other: str, moves: bool) -> None:
    paths = [os.path.join(LIB, *each.split("/"), "a.jpg") for each in (own, other)]
    assert idem.best_place(paths, idem.Scoring(LIB)) == moves


NAMES_OF_PROGRAMS = (
    *("inbound4823748234", "Attachment-1", "Anhang 1", "ATT00001", "unknown", "unbekannt", "pexels-photo-1234567"),
    *("istockphoto-12345-612x612", "ezgif-4-abcdef", "Screenshot_2021-07-05-10-11-12-123_com.zhiliaoapp.musically"),
    *("Screenshot_20210705-101112_Chrome", "mceu_84732", "Slide1", "Midjourney", "upscaled", "画面収録"),
    *("IMG_1-noexif", "IMG_1-squoosh", "IMG_1-gedreht", "IMG_1-watermark", "IMG_1_converted", "IMG_1-topaz-sharpen"),
    "Anna iPhone",
)


@pytest.mark.parametrize(
    ("own", "other", "renamed"),
    [
        *(("IMG_1", "beach", True), ("beach", "beach at night", True), ("beach", "shore", False)),
        *(("beach (1)", "beach", True), ("beach copy (2)", "Beach", True), ("beach (1)", "shore", False)),
        *(("Lena 33", "Lena", True), ("Lena 33", "Lena 33 (2)", False), ("IMG_1234-2", "IMG_1234", True)),
        *(("beach", "beach (another copy)", False), ("beach", "beach backup", False), ("写真", "写真のコピー", False)),
        *(("DSC_1234", "IMG-20210705-WA0012", False), ("DSC_1234 (1)", "FB_IMG_1623472000000", False)),
        *(("IMG_1", "3F2504E0-4F89-11D3-9A0C-0305E82C3301", False), ("IMG_1-edited", "IMG_1", False)),
        *(("IMG_1", "img_1-quux-smoothed", False), ("IMG_1", "IMG_1~quux", False), ("IMG_1 (2)", "IMG_1_quux", False)),
        *(("IMG_1", "IMG_1 Oma Geburtstag", True), ("IMG_1", "IMG_12_lake", True), ("IMG_1", "IMG_1-by the sea", True)),
        *(("IMG_1", "sunset 612x612", False), ("IMG_1", "sunset small", False), ("sunset small", "sea", False)),
        *(("IMG_1", "sun\u202eset", False), ("IMG_1", "sun\nset", False), ("IMG_1", "sun\udcffset", False)),
        *(("sun\u202eset (1)", "sun\u202eset", False), ("sun\u202eset", "sea", True)),
        *(("DSC_1", each, False) for each in NAMES_OF_PROGRAMS),
    ],
)
def test_a_name_changes_only_for_more_words_or_to_lose_a_copy_mark(own: str, other: str, renamed: bool) -> None:
    assert idem.best_name([own + ".jpg", other + ".png"], idem.Scoring(LIB)) == renamed


def test_of_names_that_say_nothing_the_one_with_a_date_is_best_and_one_with_a_mark_worst() -> None:
    names = ["Lena 33 (2)", "IMG_1 copy", "Lena 33", "IMG_1", "IMG_20210705 (1)", "IMG_20210705", "2021-07-05 Lena"]
    ranks = dict(zip(names, idem.name_ranks([each + ".jpg" for each in names], idem.Scoring(LIB)), strict=True))
    ranked = ["IMG_1 copy", "IMG_1", "IMG_20210705 (1)", "IMG_20210705", "Lena 33 (2)", "Lena 33", "2021-07-05 Lena"]
    assert sorted(names, key=ranks.__getitem__) == ranked


@pytest.mark.parametrize(
    ("stem", "date", "dated"),
    [
        ("Sunset over the lake", "2021-07-05 10.11.12", "2021-07-05 10.11.12 Sunset over the lake"),
        ("Sunset", "2021-07-05", "2021-07-05 Sunset"),
        ("Sunset", "", "Sunset"),
        ("20210705 Sunset", "2021-07-05 10.11.12", "20210705 Sunset"),
        ("Party 5 July 2021", "2021-07-05", "Party 5 July 2021"),
        ("Sunset 2021-08-01", "2021-07-05", "2021-07-05 Sunset 2021-08-01"),
    ],
)
def test_a_date_stands_in_front_unless_the_name_states_that_day(stem: str, date: str, dated: str) -> None:
    assert idem.dated_name(stem, date) == dated


def test_any_name_is_scored_and_counted() -> None:
    words = st.sampled_from(
        ["IMG_1234", "copy", " (2)", "Beach", "2021-07-05", "東京", "-", "July", "\udcff", ".", ".jpg"]
    )
    letters = st.characters(exclude_characters="/\0") if os.sep == "/" else st.characters(exclude_characters="/\0\\:")
    names = st.lists(words | st.text(letters, max_size=90), min_size=1, max_size=6).map("".join)
    storable = names.map(lambda each: os.fsdecode(each.encode("utf-8", "surrogatepass")[:255]))

    def check(given: tuple[list[str], str, int]) -> None:
        folders, name, number = given
        path = os.path.join(LIB, *folders, name)
        rank, again = idem.name_ranks([path, path], idem.Scoring(LIB))
        assert rank == again
        assert 0 <= rank.letters <= idem.IDEOGRAPH * len(unicodedata.normalize("NFC", name))
        assert re.fullmatch(r"(\d{4}-\d\d-\d\d( \d\d\.\d\d\.\d\d)?)?", date := idem.date_in_name(name))
        assert idem.date_in_name(idem.dated_name(name, date))[:10] == date[:10]
        bound = idem.IDEOGRAPH * sum(len(unicodedata.normalize("NFC", each)) for each in folders)
        assert 0 <= idem.place_rank(path, idem.Scoring(LIB)).letters <= bound
        counted = idem.with_counter(name, number)
        assert len(os.fsencode(counted)) <= idem.MAX_NAME_BYTES or not os.path.splitext(counted)[0]
        assert counted.endswith(os.path.splitext(name)[1])

    fuzz(st.tuples(st.lists(storable, max_size=3), storable, st.integers(1, 10**6)), check, examples=50)


def test_the_words_of_the_librarys_own_path_do_not_count() -> None:
    root = os.path.join(os.sep, "home", "margaret", "wedding")
    paths = [os.path.join(root, "a.jpg"), os.path.join(root, "lake", "a.jpg")]
    assert [idem.place_rank(path, idem.Scoring(root)).letters for path in paths] == [0, 4]


@pytest.mark.parametrize(
    ("names", "target", "named", "placed", "reasons"),
    [
        (
            ["IMG_20210705.jpg", "vacation/IMG_20210705.jpg", "new_york_5.jpg"],
            *("vacation/2021-07-05 new_york_5.jpg", 2, 1, ["name from new_york_5.jpg", "folder vacation"]),
        ),
        (["20210705_101112.jpg", "beach.jpg"], "2021-07-05 10.11.12 beach.jpg", 1, 0, ["name from beach.jpg"]),
        (["20210705_1.jpg", "2021-07-05 sea.jpg"], "2021-07-05 sea.jpg", 1, 0, ["name from 2021-07-05 sea.jpg"]),
        (["20210705.jpg", "lo" * 125 + ".png"], f"2021-07-05 {'lo' * 120}.jpg", 1, 0, [f"name from {'lo' * 125}.png"]),
        (["beach.jpg", "copies/IMG_1.png"], "beach.jpg", 0, 0, []),
        (["IMG_1.HEIC", "beach.jpg"], "beach.HEIC", 1, 0, ["name from beach.jpg"]),
        (["beach (1).jpg", "beach.jpg"], "beach.jpg", 1, 0, ["name from beach.jpg"]),
        (["beach.jpg", "shore.jpg"], "beach.jpg", 0, 0, []),
        (["IMG_1.jpg", "DSC_0001.jpg"], "IMG_1.jpg", 0, 0, []),
        (["lake/a.jpg", "hill/b.jpg"], "lake/a.jpg", 0, 0, []),
        (["lake/a.jpg", "Backup/lake trip/b.jpg"], "lake/a.jpg", 0, 0, []),
        (["Backup/lake trip/a.jpg", "lake/b.jpg"], "lake/a.jpg", 0, 1, ["folder lake"]),
        (["Photos/2018/07/a.jpg", "Old web/b.jpg"], "Photos/2018/07/a.jpg", 0, 0, []),
    ],
)
def test_the_best_copy_gets_the_best_name_in_the_best_folder(
    names: list[str], target: str, named: int, placed: int, reasons: list[str]
) -> None:
    (best, *others) = (group := made_group(*names)).replicas
    told = ["largest: 12.0 MP", *(each.replace("/", os.sep) for each in reasons)]
    place = os.path.join(LIB, *target.split("/"))
    expected = idem.Decision(best, place, tuple(others), tuple(told), named=named, placed=placed)
    assert idem.decide(group, idem.Scoring(LIB)) == expected


def test_of_equal_files_the_best_placed_then_best_named_stays() -> None:
    made = made_group("beach.jpg", "lake/IMG_1.jpg", "lake/IMG_2 boat.jpg", exact=True)
    (group,) = idem.original_first(made, 0, idem.Scoring(LIB))
    assert [made.replicas.index(each) for each in group.replicas] == [2, 1, 0]
    target = os.path.join(LIB, "lake", "beach.jpg")
    reasons = "all files are equal", "name from beach.jpg"
    expected = idem.Decision(group.replicas[0], target, group.replicas[1:], reasons, named=2, placed=0)
    assert idem.decide(group, idem.Scoring(LIB)) == expected


@pytest.mark.parametrize(
    ("choice", "exact", "expected"),
    [
        (idem.Choice(frozenset({2})), False, (2, "lake/beach.png", [], [0, 1])),
        (idem.Choice(frozenset({2}), 0, 2), False, (2, "IMG_1.png", [], [0, 1])),
        (idem.Choice(frozenset({0, 2})), False, (0, "lake/IMG_1.jpg", [2], [1])),
        (idem.Choice(frozenset({0, 1, 2}), 2, 0), False, (0, "beach.jpg", [1, 2], [])),
        (idem.Choice(frozenset({0, 1, 2}), 2, 0), True, (0, "beach.jpg", [1, 2], [])),
    ],
)
def test_the_best_of_what_is_chosen_is_the_keeper(
    choice: idem.Choice, exact: bool, expected: tuple[int, str, list[int], list[int]]
) -> None:
    group = made_group("IMG_1.jpg", "lake/IMG_2.jpg", "beach.png", exact=exact)
    decision = idem.decide(group, idem.Scoring(LIB), choice)
    stays, trash = ([group.replicas.index(each) for each in some] for some in (decision.stays, decision.trash))
    assert (group.replicas.index(decision.keeper), place_of(decision), stays, trash) == expected


def test_ignored_words_count_nothing_in_names_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = save(photo(), tmp_path / "Hochzeit" / "IMG_1.jpg", quality=95)
    small = save(photo(), tmp_path / "lake" / "anna.jpg", quality=60)
    (found,) = report(tmp_path, "--ignore", "ANNA", "--ignore", "hochzeit", capsys=capsys)["groups"]
    assert found["decision"] == {
        "keep": str(large),
        "target": str(tmp_path / "lake" / "IMG_1.jpg"),
        "trash": [str(small)],
        "reasons": ["less compressed", "folder lake"],
        "loses": [],
        "companions": [],
    }


def test_no_two_keepers_nor_another_picture_share_a_place() -> None:
    groups = [made_group(f"{n}/IMG_1.jpg", "lake/beach.jpg" if n == 1 else f"lake/boat {n}/beach.jpg") for n in (1, 2)]
    groups += [made_group("3/IMG_1.jpg", "3/DSC_2.jpg", "lake/boat 2/IMG_3.jpg", "4/beach.png")]
    taken = Counter([os.path.normcase(os.path.join(LIB, "lake", "boat 2", "beach.jpg"))])
    decisions = idem.decisions_for(groups, idem.Scoring(LIB, taken=taken))
    expected = ["lake/beach.jpg", "lake/boat 2/beach.jpg", "lake/boat 2/beach (2).jpg"]
    assert [place_of(each) for each in decisions] == expected


def test_the_report_says_what_it_suggests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1, (1600, 1200)), tmp_path / "IMG_1.jpg")
    save(photo(1, (800, 600)), tmp_path / "lake" / "beach.jpg")
    assert main([str(tmp_path)]) == 0
    suggested = "keep IMG_1.jpg as lake/beach.jpg, trash 1 (largest: 1.9 MP; name from beach.jpg; folder lake)"
    assert capsys.readouterr().out.splitlines()[-1] == f"           → {suggested}".replace("/", os.sep)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Act
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def contents(library: Path) -> dict[str, str]:
    """The SHA-256 of every file outside the folder of the caches, by relative path."""
    files = [path for path in library.rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        path.relative_to(library).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.relative_to(library).parts[0] != "__databases"
    }


def made_doubles(library: Path, *names: str, content: bytes = b"double") -> Path:
    """Equal files of these names."""
    for name in names:
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return library


def found_in(library: Path, *arguments: str) -> idem.Findings:
    """What a run finds that is about to act."""
    run = idem.checked_run(idem.build_parser().parse_args([str(library), *arguments]))
    with idem.library_in_use(run):
        return idem.findings_of(run)


def carried_out(findings: idem.Findings) -> idem.Outcome:
    with closing(idem.Pool(2)) as pool:
        doubts = functools.partial(idem.doubts_about, threshold=findings.threshold, pool=pool)
        return idem.carry_out(findings.decisions, findings.root, findings.movies, doubts)


def unread(_decision: idem.Decision) -> dict[str, str]:
    """For decisions about files that are no copies: it is the moving that is tested."""
    return {}


def refreshed(findings: idem.Findings) -> idem.Findings:
    """The findings with the files as they are now that an undo has put them back: a rename changes the ctime."""

    def now(replica: Replica[Any]) -> Replica[Any]:
        return replace(replica, file=media_file(Path(replica.file.path)))

    decisions = [
        replace(each, keeper=now(each.keeper), trash=tuple(map(now, each.trash))) for each in findings.decisions
    ]
    films = [media_file(path) for path in Path(findings.root).rglob("*.MOV")]
    return replace(findings, decisions=tuple(decisions), movies=dict.fromkeys(map(idem.identity, films), True))


def written(library: Path) -> dict[str, str]:
    """What is written in every file outside the folder of the caches, by relative path."""
    return {name: (library / name).read_text() for name in contents(library)}


def made(library: Path, files: dict[str, str]) -> Path:
    """The library with these files, by relative path, and what is written in them."""
    for name, text in files.items():
        made_doubles(library, name, content=text.encode())
    return library


def decision_of(library: Path, keeper: str, *trash: str, target: str = "") -> idem.Decision:
    """To keep one file, under this name or its own, and trash others; all paths relative."""
    replicas = [Replica(media_file(library / path), idem.Checksum("")) for path in (keeper, *trash)]
    return idem.Decision(replicas[0], str(library / (target or keeper)), tuple(replicas[1:]), ())


def movies_in(library: Path) -> dict[idem.Identity, bool]:
    """Every film in the library, and whether it is the movie of a Live Photo: unless "film" is written in it."""
    films = (path for path in library.rglob("*") if path.suffix.lower() in idem.LIVE_VIDEOS)
    return {idem.identity(media_file(path)): "film" not in path.read_text() for path in films}


def acted(library: Path, *decisions: idem.Decision, movies: Mapping[idem.Identity, bool] | None = None) -> idem.Outcome:
    """Carry out decisions about a library that was never scanned."""
    (library / "__databases").mkdir(exist_ok=True)
    known = movies_in(library) if movies is None else movies
    return idem.carry_out(decisions, str(library), known, unread)


def journal_of(library: Path, *lines: dict[str, Any]) -> None:
    """A journal that somebody else wrote, with numbers and check sums as idem wants them."""
    folder = library / "__databases"
    folder.mkdir(exist_ok=True)
    written = [idem.JournalLine(number, **({"batch": 1} | line)).as_json() for number, line in enumerate(lines, 1)]
    (folder / idem.JOURNAL_FILE).write_bytes(b"".join(written))


def cut_off_move(library: Path, source: str, target: str, **others: Any) -> dict[str, Any]:
    """A line of the journal about the file that is at the target."""
    status = (library / target).stat()
    times = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {"event": "move", "from_": source, "to": target, **times, **others}


def refusals(outcome: idem.Outcome, library: Path) -> dict[str, str]:
    """The reasons by relative path."""
    return {Path(each.path).relative_to(library).as_posix(): each.reason for each in outcome.refused}


TRASH = "__duplicate_files_trash"


def test_replicas_go_to_the_trash_and_the_keeper_gets_its_name(tmp_path: Path) -> None:
    save(photo(1, (1600, 1200)), tmp_path / "IMG_20210705.jpg")
    save(photo(1, (800, 600)), tmp_path / "vacation" / "IMG_20210705.jpg")
    save(photo(1, (800, 600)), tmp_path / "new_york_5.jpg")
    before = contents(tmp_path)
    outcome = carried_out(found_in(tmp_path))
    assert contents(tmp_path) == {
        "vacation/2021-07-05 new_york_5.jpg": before["IMG_20210705.jpg"],
        f"{TRASH}/vacation/IMG_20210705.jpg": before["vacation/IMG_20210705.jpg"],
        f"{TRASH}/new_york_5.jpg": before["new_york_5.jpg"],
    }
    assert (len(outcome.trashed), len(outcome.renamed), outcome.refused) == (2, 1, ())
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


# ── SAFETY row 1 ──


def test_a_replica_edited_since_is_refused_under_its_old_times(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    findings = found_in(tmp_path, "--exact")
    edited = tmp_path / "IMG_1.jpg"
    times = edited.stat()
    edited.write_bytes(b"edited")
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = contents(tmp_path)
    outcome = carried_out(findings)
    assert refusals(outcome, tmp_path) == {"IMG_1.jpg": "it has changed since it was scanned"}
    assert contents(tmp_path) == {
        "beach.jpg": before["beach.jpg"],
        "IMG_1.jpg": before["IMG_1.jpg"],
        f"{TRASH}/IMG_2.jpg": before["IMG_2.jpg"],
    }


# ── SAFETY rows 2 and 3 ──


@pytest.mark.parametrize("fault", ["gone", "truncated", "a link to a replica", "unreadable folder"])
def test_without_its_keeper_a_whole_group_is_refused(tmp_path: Path, fault: str) -> None:
    made_doubles(tmp_path, "lake/beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    findings = found_in(tmp_path, "--exact")
    keeper = tmp_path / "lake" / "beach.jpg"
    if fault == "truncated":
        os.truncate(keeper, 3)
    else:
        keeper.unlink()
    if fault == "a link to a replica":
        keeper.symlink_to(tmp_path / "IMG_1.jpg")
    if fault == "unreadable folder":
        keeper.parent.rmdir()
    before = contents(tmp_path)
    outcome = carried_out(findings)
    assert sorted(refusals(outcome, tmp_path)) == ["IMG_1.jpg", "IMG_2.jpg", "lake/beach.jpg"]
    assert outcome.moved == ()
    assert contents(tmp_path) == before


def test_a_keeper_that_goes_in_the_midst_of_its_group_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    findings = found_in(tmp_path, "--exact")
    original = idem.move

    def move_and_lose(file: MediaFile, *others: Any) -> MediaFile:
        (tmp_path / "beach.jpg").write_bytes(b"other")
        return original(file, *others)

    monkeypatch.setattr(idem, "move", move_and_lose)
    outcome = carried_out(findings)
    reason = f"{tmp_path / 'beach.jpg'}, which is to be kept: it has changed since it was scanned"
    assert refusals(outcome, tmp_path) == dict.fromkeys(["IMG_1.jpg", "IMG_2.jpg"], reason)
    assert sorted(contents(tmp_path)) == ["IMG_1.jpg", "IMG_2.jpg", "beach.jpg"]


# ── SAFETY rows 36, 37 and 42 ──


def believed(library: Path, name: str, like: Path, exact: bool = False) -> None:
    """Have the caches hold, for the file of this name as it is now, what another file is."""
    cached = media_file(library / name)
    formats: list[tuple[idem.CacheFormat[Any], Any]] = [(idem.IMAGE_CACHE, idem.fingerprint_image)]
    if like.suffix == ".mp4":
        formats = [(idem.VIDEO_CACHE, idem.fingerprint_video)]
    if exact:
        formats = [(idem.CHECKSUM_CACHE, idem.checksum_of)]
    for form, make in formats:
        scanned = idem.Scan(str(library), (cached,), (), ())
        with closing(idem.FingerprintCache(form, str(library / "__databases"), scanned)) as cache:
            cache.store(cached, make(media_file(like)))


@pytest.mark.parametrize("kind", ["photo", "video", "exact"])
def test_nothing_moves_on_the_word_of_a_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    if kind == "video":
        one, other = clip(library / "one.mp4", seed=1), clip(library / "other.mp4", seed=2)
    else:
        one, other = save(photo(1), library / "one.bmp"), save(photo(2), library / "other.bmp")
    options = {"photo": [], "video": ["--video"], "exact": ["--exact"]}[kind]
    assert groups(library, *options, capsys=capsys) == []
    believed(library, "other" + other.suffix, one, exact=kind == "exact")
    assert groups(library, *options, capsys=capsys) == [[one.name, other.name]]
    before = contents(library)
    options = options or ["-t", "0"]
    status, lines = answered(library, "k", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (status, contents(library)) == (1, before)
    assert [line for line in lines if "refused" in line and other.name in line]


@pytest.mark.parametrize("harm", ["zeros", "flipped", "unreadable"])
def test_a_copy_stays_when_its_keeper_has_rotted(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    intact = save(photo(1), tmp_path / "intact.jpg", quality=93)
    keeper = save(photo(1), tmp_path / "library" / "keeper.jpg", quality=93)
    save(photo(1).resize((320, 240)), tmp_path / "library" / "small.jpg")
    assert groups(tmp_path / "library", capsys=capsys) == [["keeper.jpg", "small.jpg"]]  # by a look that is cached
    data = intact.read_bytes()
    middle = len(data) // 2
    rotten = {
        "zeros": data[:middle] + bytes(len(data) - middle),
        "flipped": data[:middle]
        + bytes(each ^ 0x10 if at % 97 == 0 else each for at, each in enumerate(data[middle:])),
        "unreadable": b"not a picture".ljust(len(data)),
    }
    keeper.write_bytes(rotten[harm])
    assert groups(tmp_path / "library", capsys=capsys) == []
    believed(tmp_path / "library", "keeper.jpg", intact)
    before = contents(tmp_path / "library")
    status, lines = answered(tmp_path / "library", "k", "-t", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert (status, contents(tmp_path / "library")) == (1, before)
    assert [line for line in lines if "refused" in line and "keeper.jpg" in line]


@pytest.mark.parametrize("exact", [False, True])
def test_a_rotten_live_match_verifies_nothing_but_by_the_cache(
    exact: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library, options = tmp_path / "library", ["--exact"] if exact else []
    gone = save(photo(1), library / TRASH / "a.jpg")
    live = library / "a.jpg"
    live.write_bytes(bytes(gone.stat().st_size))
    believed(library, "a.jpg", gone, exact=exact)
    status, lines = verified(library, *options, capsys=capsys)
    reason = "there is no copy of it in the library"
    assert (status, lines) == (
        1,
        [f"{os.path.join(TRASH, 'a.jpg')}: {reason}", "0 files in the trash verified, 1 not"],
    )
    assert verified(library, "--fast", *options, capsys=capsys) == (
        0,
        ["1 file in the trash verified, 0 not, by the cache: no fingerprint was made anew"],
    )


def test_fast_goes_with_verify_trash_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--fast"]) == 2
    assert capsys.readouterr().err == "idem: --fast goes with --verify-trash alone\n"


def test_a_file_that_took_the_name_size_and_time_of_another_is_not_read_for_it(tmp_path: Path) -> None:
    one, other = save(photo(1), tmp_path / "one.bmp"), save(photo(2), tmp_path / "other.bmp")
    for path in (one, other):
        os.utime(path, ns=(1, 1))
    scanned = media_file(one)
    os.replace(other, one)
    changed = idem.Problem(str(one), "changed while it was scanned")
    assert [work(scanned) for work in (idem.fingerprint_image, idem.checksum_of, idem.thumbnail_of)] == [changed] * 3


def test_a_copy_comes_back_when_the_keeper_goes_at_its_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "beach.AAE", "IMG_1.jpg", "IMG_1.xmp")
    findings = found_in(tmp_path, "--exact")
    really_move = idem.move

    def move(file: MediaFile, target: str, *more: Any) -> MediaFile:
        moved = really_move(file, target, *more)
        if target.endswith("IMG_1.jpg"):
            (tmp_path / "beach.jpg").unlink(missing_ok=True)
        return moved

    monkeypatch.setattr(idem, "move", move)
    outcome = carried_out(findings)
    assert (outcome.moved, [problem.path for problem in outcome.refused]) == ((), [str(tmp_path / "IMG_1.jpg")])
    assert sorted(contents(tmp_path)) == ["IMG_1.jpg", "IMG_1.xmp", "beach.AAE"]


# ── SAFETY row 5 ──


def test_a_library_that_is_a_link_works_like_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    (tmp_path / "link").symlink_to(library)
    before = contents(library)
    monkeypatch.setattr(sys, "stdin", io.StringIO("k\n"))
    assert main([str(tmp_path / "link"), "--exact", "--interactive"]) == 0
    assert sorted(contents(library)) == [f"{TRASH}/IMG_1.jpg", "beach.jpg"]
    assert main([str(tmp_path / "link"), "--undo"]) == 0
    assert contents(library) == before


# ── SAFETY row 6 ──


def test_a_name_taken_in_the_trash_gets_a_counter(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg", "DCIM/IMG_3.jpg")
    made_doubles(tmp_path, f"{TRASH}/IMG_1.jpg", f"{TRASH}/IMG_1 (2).jpg", content=b"older trash")
    (tmp_path / TRASH / "IMG_2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "outside").mkdir()
    (tmp_path / TRASH / "DCIM").symlink_to(tmp_path / "outside")
    outcome = carried_out(found_in(tmp_path, "--exact"))
    assert [Path(each.after.path).name for each in outcome.trashed] == ["IMG_1 (3).jpg", "IMG_2 (2).jpg"]
    assert list(refusals(outcome, tmp_path)) == ["DCIM/IMG_3.jpg"]
    assert (tmp_path / TRASH / "IMG_1.jpg").read_bytes() == b"older trash"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "nowhere.jpg").exists()


def test_a_trash_folder_that_leads_out_of_the_library_is_refused(tmp_path: Path) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    findings = found_in(library, "--exact")
    (tmp_path / "outside").mkdir()
    (library / TRASH).symlink_to(tmp_path / "outside")
    outcome = carried_out(findings)
    assert list(refusals(outcome, library)) == ["IMG_1.jpg"]
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_journal_that_leads_out_of_the_library_is_not_written(tmp_path: Path) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    findings = found_in(library, "--exact", "--cache", str(tmp_path / "cache"))
    (tmp_path / "outside").mkdir()
    (library / "__databases").symlink_to(tmp_path / "outside")
    with pytest.raises(idem.IdemError, match="no file is moved"):
        carried_out(findings)
    assert list((tmp_path / "outside").iterdir()) == []
    assert (library / "IMG_1.jpg").exists()


# ── SAFETY row 7 ──


@pytest.mark.parametrize("way", ["system", "link", "placeholder"])
def test_a_target_that_appears_late_is_never_overwritten(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_doubles(tmp_path, "lake/IMG_1.jpg", "beach.jpg")
    findings = found_in(tmp_path, "--exact")
    before = contents(tmp_path)
    use_way(way, monkeypatch)
    rename = idem.rename_without_replacing

    def late_rename(source: idem.Entry, target: idem.Entry) -> None:
        if not target.path.endswith(").jpg"):
            Path(target.path).write_bytes(b"somebody else's")
        rename(source, target)

    monkeypatch.setattr(idem, "rename_without_replacing", late_rename)
    outcome = carried_out(findings)
    assert outcome.refused == ()
    assert contents(tmp_path) == {
        f"{TRASH}/beach.jpg": hashlib.sha256(b"somebody else's").hexdigest(),
        f"{TRASH}/beach (2).jpg": before["beach.jpg"],
        "lake/beach.jpg": hashlib.sha256(b"somebody else's").hexdigest(),
        "lake/beach (2).jpg": before["lake/IMG_1.jpg"],
    }


def use_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files renamed as on systems without the better ways."""

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if way != "system":
        monkeypatch.setattr(idem, "system_rename", lambda source, target: False)
    if way == "placeholder":
        monkeypatch.setattr(os, "link", no_links)


# ── SAFETY row 8 ──


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """A file system of its own in this folder."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *arguments, str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@ON_LINUX
@AS_ROOT
def test_a_trash_on_another_drive_gets_copies_with_their_times(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", content=b"x" * 3_000_000)
    os.utime(tmp_path / "IMG_1.jpg", ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
    (tmp_path / "IMG_1.xmp").write_text("edits")
    (tmp_path / "beach.AAE").write_text("other edits")
    before = contents(tmp_path)
    with mounted(tmp_path / TRASH, "-t", "tmpfs", "tmpfs"):
        outcome = carried_out(found_in(tmp_path, "--exact"))
        assert outcome.refused == ()
        assert contents(tmp_path) == {
            "beach.jpg": before["beach.jpg"],
            "beach.AAE": before["beach.AAE"],
            f"{TRASH}/IMG_1.jpg": before["IMG_1.jpg"],
            "beach.xmp": before["IMG_1.xmp"],
        }
        assert (tmp_path / TRASH / "IMG_1.jpg").stat().st_mtime_ns == 1_500_000_000_123_456_789
        assert main([str(tmp_path), "--undo"]) == 0
        assert contents(tmp_path) == before


@ON_LINUX
@AS_ROOT
def test_a_full_file_system_leaves_the_source_and_no_part_of_a_copy(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", content=b"x" * 3_000_000)
    made_doubles(tmp_path, "boat.jpg", "IMG_2.jpg", content=b"y" * 300_000)
    before = contents(tmp_path)
    with mounted(tmp_path / TRASH, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        outcome = carried_out(found_in(tmp_path, "--exact"))
        assert refusals(outcome, tmp_path) == {"IMG_1.jpg": "No space left on device"}
        assert sorted(contents(tmp_path)) == ["IMG_1.jpg", f"{TRASH}/IMG_2.jpg", "beach.jpg", "boat.jpg"]
        assert Counter(contents(tmp_path).values()) == Counter(before.values())


def test_a_copy_that_comes_out_wrong_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    before = contents(tmp_path)
    findings = found_in(tmp_path, "--exact")
    pretend_other_file_system(monkeypatch)
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, copy, size: copy.write(b"doublE"))
    outcome = carried_out(findings)
    assert refusals(outcome, tmp_path) == {"IMG_1.jpg": "the copy on the other file system came out wrong"}
    assert contents(tmp_path) == before


def pretend_other_file_system(monkeypatch: pytest.MonkeyPatch, probability: float = 1, seed: int = 1) -> None:
    """Let renames fail as they do between file systems, but for those of unfinished copies."""
    rename, rng = idem.rename_without_replacing, random.Random(seed)

    def refusing(source: idem.Entry, target: idem.Entry) -> None:
        if ".idem-" not in source.path + target.path and rng.random() < probability:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(idem, "rename_without_replacing", refusing)


# ── SAFETY row 9 ──


@ON_LINUX
@AS_ROOT
def test_an_immutable_file_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    done = subprocess.run(["chattr", "+i", tmp_path / "IMG_1.jpg"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"files cannot be made immutable here: {done.stderr.decode().strip()}")
    try:
        monkeypatch.setattr(sys, "stdin", io.StringIO("k\n"))
        assert main([str(tmp_path), "--exact", "-i"]) == 1
        assert sorted(contents(tmp_path)) == ["IMG_1.jpg", f"{TRASH}/IMG_2.jpg", "beach.jpg"]
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "IMG_1.jpg"], check=True)


@ON_LINUX
@AS_ROOT
def test_a_file_that_its_user_may_not_move_is_named(open_folder: Path) -> None:
    made_doubles(open_folder, "sailing/beach.jpg", "sailing/IMG_1.jpg", "locked/IMG_2.jpg")
    subprocess.run(["chown", "-R", "65534:65534", open_folder], check=True)
    (open_folder / "locked").chmod(0o555)
    status, out, _ = main_as_nobody(open_folder, "--exact", "-i", answers="k\n")
    assert status == 1
    assert f"refused   {os.path.join('locked', 'IMG_2.jpg')}: Permission denied" in out.splitlines()
    assert sorted(contents(open_folder)) == [
        *(f"{TRASH}/sailing/IMG_1.jpg", "locked/IMG_2.jpg", "sailing/beach.jpg"),
    ]


@ON_LINUX
@AS_ROOT
def test_a_library_that_takes_no_journal_is_said_to_deny_permission(open_folder: Path) -> None:
    library = made_doubles(open_folder / "lib", "beach.jpg", "sub/IMG_1.jpg")
    before = contents(library)
    library.chmod(0o555)
    status, _, err = main_as_nobody(library, "--exact", "--interactive", answers="k\n")
    journal = library / "__databases" / "idem_journal.jsonl"
    message = f"idem: cannot write the journal {journal}: Permission denied; no file is moved without it"
    assert (status, err.splitlines()[-1]) == (2, message)
    assert contents(library) == before


@ON_LINUX
@AS_ROOT
def test_in_a_read_only_library_nothing_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    before = contents(library)
    with mounted(library, "--bind", str(library)):
        subprocess.run(["mount", "-o", "remount,bind,ro", library], check=True)
        monkeypatch.setattr(sys, "stdin", io.StringIO("k\n"))
        assert main([str(library), "--exact", "-i", "--cache", str(tmp_path / "cache")]) == 2
    assert contents(library) == before


# ── SAFETY row 10 ──


def killed_at(step: int, function: str, findings: idem.Findings) -> bool:
    """Carry out in a process that is killed right after its nth call of an idem function; whether it came to that."""
    child = os.fork()
    if child == 0:
        original, calls = getattr(idem, function), itertools.count(1)

        def deadly(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(idem, function, deadly)
        carried_out(findings)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def library_of_ten_moves(library: Path) -> Path:
    """Three groups with companions that go along, are adopted, and take a new name with their keeper."""
    for number in range(3):
        names = [f"lake {word}/{number}.jpg" for word in ("boat", "shore")]
        made_doubles(library, f"IMG_{number}.jpg", *names, content=b"picture %d" % number)
    made_doubles(library, "lake boat/0.MOV", content=short_movie())
    return made(library, {"lake boat/0.xmp": "first", "lake shore/0.xmp": "second", "IMG_1.AAE": "third"})


@ON_LINUX
@pytest.mark.parametrize("way", ["system", "link", "placeholder", "copy"])
def test_a_run_that_is_killed_after_any_move_is_undone_byte_for_byte(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = library_of_ten_moves(tmp_path)
    before = contents(library)
    if way == "copy":
        pretend_other_file_system(monkeypatch)
    else:
        use_way(way, monkeypatch)
    findings = found_in(library, "--exact")
    for step in itertools.count(1):
        killed = killed_at(step, "move", refreshed(findings))
        assert Counter(contents(library).values()) == Counter(before.values())
        if step == 1:
            found_in(library, "--exact")
            assert "the last moves were interrupted" in capsys.readouterr().err
        assert idem.was_interrupted(str(library / "__databases" / idem.JOURNAL_FILE)) == killed
        assert main([str(library), "--undo"]) == 0
        assert contents(library) == before
        if not killed:
            break
    assert step > 9


@ON_LINUX
@pytest.mark.parametrize(
    "function", ["rename_without_replacing", "save_folder", "check_still", "check_folder", "is_same_file"]
)
@pytest.mark.parametrize("way", ["system", "copy"])
def test_a_run_killed_within_a_move_loses_nothing_and_is_undone(
    tmp_path: Path, way: str, function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path, "lake/IMG_1.jpg", "beach.jpg")
    made_doubles(library, "beach.xmp", content=b"edits")
    before = contents(library)
    if way == "copy":
        pretend_other_file_system(monkeypatch)
    findings = found_in(library, "--exact")
    for step in itertools.count(1):
        killed = killed_at(step, function, refreshed(findings))
        assert set(contents(library).values()) >= set(before.values())
        left = undone_but_for_leftovers(library, before, capsys)
        assert not left or way == "copy"
        if not killed:
            break
    assert step > 2


def undone_but_for_leftovers(library: Path, before: dict[str, str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Undo after a kill: all is as before, but for copies that are left and named; they are removed as by a user."""
    capsys.readouterr()
    status = main([str(library), "--undo"])
    said, now = capsys.readouterr().out, contents(library)
    left = sorted(now.keys() - before.keys())
    assert {name: now[name] for name in before} == before
    assert status == bool(left)
    for name in left:
        assert name.replace("/", os.sep) in said
        assert name.endswith(".part") or now[name] in before.values()
        (library / name).unlink()
    assert main([str(library), "--undo"]) == 0
    return left


@ON_LINUX
def test_a_run_killed_between_two_links_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    before = contents(library)
    use_way("link", monkeypatch)
    findings = found_in(library, "--exact")
    child = os.fork()
    if child == 0:
        os.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        carried_out(findings)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (library / TRASH / "IMG_1.jpg").samefile(library / "IMG_1.jpg")
    assert undone_but_for_leftovers(library, before, capsys) == [f"{TRASH}/IMG_1.jpg"]  # no hard link is unlinked


# ── SAFETY row 11 ──


def test_a_name_of_255_bytes_is_cut_to_make_room_for_a_counter(tmp_path: Path) -> None:
    name = "ü" * 125 + "x.jpg"
    assert len(name.encode()) == 255
    made_doubles(tmp_path, "beach trip/" + name, name)
    made_doubles(tmp_path, f"{TRASH}/{name}", content=b"older")
    made(tmp_path, {name[:-4] + ".xmp": "edits", f"beach trip/{name[:-4]}.xmp": "edits of the kept one"})
    outcome = carried_out(found_in(tmp_path, "--exact"))
    assert outcome.refused == ()
    cut = "ü" * 123
    assert sorted(path.name for path in (tmp_path / TRASH).iterdir()) == sorted(
        [name, f"{cut} (2).jpg", f"{cut} (2).xmp"]
    )


def test_a_rename_may_change_nothing_but_capitals(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    (findings,) = [found_in(tmp_path, "--exact")]
    target = str(tmp_path / "BEACH.jpg")
    outcome = idem.carry_out([replace(findings.decisions[0], target=target)], findings.root, {}, unread)
    assert outcome.refused == ()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["BEACH.jpg"]


# ── SAFETY row 12 ──


def test_a_second_run_on_a_library_stops_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    with idem.run_lock(str(tmp_path / "__databases")):
        for arguments in (["-i"], ["--undo"], ["--verify-trash"], [], ["-i", "--cache", str(tmp_path / "cache")]):
            assert main([str(tmp_path), "--exact", *arguments]) == 2
            assert capsys.readouterr().err == f"idem: another run of idem is using {tmp_path / '__databases'}\n"


# ── SAFETY row 41 ──


@contextmanager
def asking(library: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has found the copies in a library and waits for an answer about the first group."""
    command = [sys.executable, str(HERE / "idem.py"), str(library), "--exact", "-i"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        shown = b""
        while not shown.endswith(b"> ") and (more := process.stdout.read(1)):
            shown += more
        yield process
        process.kill()


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_runs_above_and_below_a_run_stop_whatever_is_there_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path / "up" / "low", "1/beach.jpg", "2/IMG_1.jpg")
    made_doubles(tmp_path / "up" / "beside", "beach.jpg", "IMG_1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "up" / "low")
    before = contents(tmp_path)
    with asking(tmp_path / "up" / "low") as first:
        shutil.rmtree(tmp_path / "up" / "low" / "__databases")
        for library, used in (
            ("up", "up, or a folder in it"),
            ("up/low", "up/low, or a folder in it"),
            ("link", "up/low, or a folder in it"),
            ("up/low/2", "up/low"),
        ):
            for arguments in (["--exact"], ["-i"], ["--undo"], ["--verify-trash"]):
                assert main([str(tmp_path / library), *arguments]) == 2
                assert capsys.readouterr() == ("", f"idem: another run of idem is using {tmp_path / used}\n")
        assert main([str(tmp_path / "up" / "beside"), "--exact"]) == 0
        assert first.poll() is None
    assert main([str(tmp_path / "up"), "--exact"]) == 0  # a killed run holds nothing
    assert {name: each for name, each in contents(tmp_path).items() if "__databases" not in name} == before


@ON_LINUX
@AS_ROOT
def test_a_run_refuses_groups_in_a_library_that_another_run_reached_by_a_mount(tmp_path: Path) -> None:
    below = made_doubles(tmp_path / "one" / "sub", "a/beach.jpg", "b/IMG_1.jpg")
    (tmp_path / "two").mkdir()
    with mounted(tmp_path / "two", "--bind", str(below)):
        with asking(tmp_path / "one") as first, asking(tmp_path / "two") as second:
            out, _ = first.communicate(b"a\n", timeout=30)
            second.communicate(b"b\n", timeout=30)
        assert f"another run of idem is using {below}" in out.decode()
        assert (first.returncode, second.returncode) == (1, 0)
        assert [name for name in contents(below) if not name.startswith(TRASH)] == ["b/beach.jpg"]


@ON_LINUX
@AS_ROOT
def test_a_folder_that_another_run_is_moving_files_in_refuses_the_group(tmp_path: Path) -> None:
    library = made_doubles(tmp_path, "a/beach.jpg", "b/c/IMG_1.jpg")
    findings = found_in(library, "--exact")
    with idem.folders_held(str(tmp_path / "b"), [str(tmp_path / "b" / "c" / "IMG_2.jpg")]):
        reason = f"another run of idem is using {tmp_path / 'b' / 'c'}"
        assert reason in refusals(carried_out(findings), library)["b/c/IMG_1.jpg"]
        with idem.folders_held(str(library), [str(library / "a" / "1.jpg"), str(library / "b" / "1.jpg")]):
            pass  # a folder above theirs, and one beside
    assert carried_out(findings).refused == ()


@ON_LINUX
def test_a_folder_is_free_again_though_a_process_was_forked_meanwhile(tmp_path: Path) -> None:
    with idem.folder_lock(str(tmp_path)):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with idem.folder_lock(str(tmp_path)):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(os.name == "nt", reason="the first run must lock folders")
def test_where_folders_cannot_be_locked_a_lock_file_below_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path / "up" / "low", "beach.jpg", "IMG_1.jpg")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with asking(library):
        assert main([str(tmp_path / "up"), "--exact"]) == 2
        assert capsys.readouterr().err == f"idem: another run of idem is using {library / '__databases'}\n"
    capsys.readouterr()
    assert main([str(tmp_path / "up"), "--exact", "--cache", str(library / "__databases")]) == 0


# ── SAFETY row 40: what a library may come with ──


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "folder"])
def test_a_lock_file_that_is_something_else_is_refused_and_left(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    victim, lock = tmp_path / "victim", library / "__databases" / "idem.lock"
    lock.parent.mkdir()
    if kind != "dangling link":
        victim.write_bytes(b"precious")
    if kind == "second name":
        os.link(victim, lock)
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(victim)
    for arguments in (["--exact"], ["-i"], ["--undo"]):
        assert main([str(library), *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.startswith(f"idem: cannot lock {lock}: ")) == ("", 1, True)
    assert [path.name for path in lock.parent.iterdir()] == ["idem.lock"]
    assert kind == "dangling link" or victim.read_bytes() == b"precious"
    assert victim.exists() == (kind != "dangling link")


@pytest.mark.parametrize("name", ["__databases", TRASH])
@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_folder_of_idems_own_that_is_a_link_or_a_file_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    if kind == "link":
        (tmp_path / "outside").mkdir()
    if kind == "file":
        touch(library / name)
    else:
        (library / name).symlink_to(tmp_path / "outside")
    before = sorted(tmp_path.rglob("*"))
    for arguments in ([], ["-i"], ["--undo"], ["--verify-trash"], ["--review"], ["--cache", str(tmp_path / "cache")]):
        assert main([str(library), "--exact", *arguments]) == 2
        assert capsys.readouterr() == ("", f"idem: cannot use {library / name}: it is a link or no folder\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_of_cache_may_be_reached_through_a_link(tmp_path: Path) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert main([str(library), "--exact", "--cache", str(tmp_path / "link")]) == 0
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["all_media_sha_hash_db.csv", "idem.lock"]
    assert not (library / "__databases").exists()


# ── decisions that may not be ──


def test_a_decision_outside_the_library_or_without_keeper_is_refused(tmp_path: Path) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    made_doubles(tmp_path / "lib", f"{TRASH}/old.jpg", content=b"double")
    made_doubles(tmp_path, "outside.jpg")
    findings = found_in(library, "--exact")
    decision = findings.decisions[0]
    outside = replace(decision.trash[0], file=media_file(tmp_path / "outside.jpg"))
    in_trash = replace(decision.trash[0], file=media_file(library / TRASH / "old.jpg"))
    before = contents(tmp_path)
    for wrong in (
        replace(decision, trash=(outside,)),
        replace(decision, trash=(in_trash,)),
        replace(decision, trash=(decision.keeper,)),
        replace(decision, trash=decision.trash * 2),
        replace(decision, keeper=outside),
        replace(decision, target=str(tmp_path / "elsewhere.jpg")),
        replace(decision, target=str(library / ".." / "elsewhere.jpg")),
        replace(decision, target=str(library / "beach.png")),
        replace(decision, target=str(library / TRASH / "beach.jpg")),
    ):
        outcome = idem.carry_out([wrong], findings.root, {}, unread)
        assert outcome.moved == ()
        assert outcome.refused
    assert contents(tmp_path) == before | {
        each: found for each, found in contents(tmp_path).items() if "__databases" in each
    }


# ── companions ──

PHOTOS = {"A/IMG_1.HEIC": "photo", "B/beach.jpg": "photo"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Only the copy that goes has one: it moves to the kept file.
        ({"A/IMG_1.MOV": "movie"}, {"B/beach.MOV": "movie"}),
        ({"A/IMG_1.xmp": "1"}, {"B/beach.xmp": "1"}),
        ({"A/IMG_1.HEIC.xmp": "1"}, {"B/beach.jpg.xmp": "1"}),
        ({"A/IMG_1.xmp": "1", "A/IMG_1.HEIC.xmp": "2"}, {"B/beach.xmp": "1", "B/beach.jpg.xmp": "2"}),
        ({"A/IMG_1.HEIC.supplemental-meta.json": "1"}, {"B/beach.jpg.supplemental-meta.json": "1"}),
        ({"A/img_1.heic.XMP": "1", "A/img_1.mov": "2"}, {"B/beach.jpg.XMP": "1", "B/beach.mov": "2"}),
        # Both have one of a kind: it goes along.
        ({"A/IMG_1.HEIC.xmp": "1", "B/BEACH.xmp": "2"}, {f"{TRASH}/A/IMG_1.HEIC.xmp": "1", "B/BEACH.xmp": "2"}),
        ({"A/IMG_1.AAE": "1", "B/beach.xmp": "2"}, {"B/beach.AAE": "1", "B/beach.xmp": "2"}),
        # A movie only if it is the same.
        ({"A/IMG_1.MOV": "movie", "B/beach.mp4": "movie"}, {f"{TRASH}/A/IMG_1.MOV": "movie", "B/beach.mp4": "movie"}),
        ({"A/IMG_1.MOV": "another", "B/beach.mp4": "movie"}, {"A/IMG_1.MOV": "another", "B/beach.mp4": "movie"}),
        # What is called after a stem stays while another file of that stem does.
        ({"A/IMG_1.xmp": "1", "A/IMG_1.CR2": "2"}, {"A/IMG_1.xmp": "1", "A/IMG_1.CR2": "2"}),
        ({"A/IMG_1.xmp": "1", "A/IMG_1.txt": "2"}, {"A/IMG_1.xmp": "1", "A/IMG_1.txt": "2"}),
        ({"A/IMG_1.HEIC.xmp": "1", "A/IMG_1.CR2": "2"}, {"B/beach.jpg.xmp": "1", "A/IMG_1.CR2": "2"}),
        (
            {"A/IMG_1.MOV": "another", "A/IMG_1.xmp": "1", "B/beach.MOV": "movie"},
            {"A/IMG_1.MOV": "another", "A/IMG_1.xmp": "1", "B/beach.MOV": "movie"},
        ),
        ({"A/IMG_1.MOV": "film", "A/IMG_1.xmp": "1"}, {"A/IMG_1.MOV": "film", "A/IMG_1.xmp": "1"}),
        ({"A/IMG_1.MOV": "film", "B/beach.MOV": "film"}, {"A/IMG_1.MOV": "film", "B/beach.MOV": "film"}),
        # The movie as icloudpd and Pixels call it, and what iPhones keep of an edit.
        ({"A/IMG_1_HEVC.MOV": "movie"}, {"B/beach_HEVC.MOV": "movie"}),
        (
            {"A/IMG_1_HEVC.MOV": "movie", "B/beach.mov": "movie"},
            {f"{TRASH}/A/IMG_1_HEVC.MOV": "movie", "B/beach.mov": "movie"},
        ),
        ({"A/IMG_O1.AAE": "1", "A/IMG_1.AAE": "2"}, {"B/beach_O.AAE": "1", "B/beach.AAE": "2"}),
        ({"A/IMG_E1.AAE": "1", "A/IMG_E1.HEIC": "2"}, {"A/IMG_E1.AAE": "1", "A/IMG_E1.HEIC": "2"}),
        # Takeout's JSON in its spellings; an edit shares that of its original.
        ({"A/IMG_1.HEIC.s.json": "1"}, {"B/beach.jpg.s.json": "1"}),
        ({"A/IMG_1.json": "1", "B/beach.jpg..json": "2"}, {f"{TRASH}/A/IMG_1.json": "1", "B/beach.jpg..json": "2"}),
        (
            {"A/IMG_1.HEIC.supplemental-metadata(1).json": "1", "A/IMG_1(1).HEIC": "2", "A/IMG_1.HEIC(2).json": "3"},
            {"A/IMG_1.HEIC.supplemental-metadata(1).json": "1", "A/IMG_1(1).HEIC": "2", "A/IMG_1.HEIC(2).json": "3"},
        ),
        (
            {"A/IMG_1.HEIC.json": "1", "A/IMG_1-edited.HEIC": "2"},
            {"A/IMG_1.HEIC.json": "1", "A/IMG_1-edited.HEIC": "2"},
        ),
        ({"A/IMG_1.HEIC.note.json": "1"}, {"A/IMG_1.HEIC.note.json": "1"}),
        # With a RAW file beside the kept one, `beach.xmp` may be that of the RAW file.
        (
            {"A/IMG_1.xmp": "1", "B/beach.CR2": "2", "B/beach.xmp": "3"},
            {"B/beach.jpg.xmp": "1", "B/beach.CR2": "2", "B/beach.xmp": "3"},
        ),
        (
            {"A/IMG_1.xmp": "1", "B/beach.CR2": "2", "B/beach.jpg.xmp": "3"},
            {f"{TRASH}/A/IMG_1.xmp": "1", "B/beach.CR2": "2", "B/beach.jpg.xmp": "3"},
        ),
        ({"A/IMG_1.MOV": "movie", "B/beach.CR2": "2"}, {"A/IMG_1.MOV": "movie", "B/beach.CR2": "2"}),
        # What another file's whole name stands in belongs to that file alone.
        (
            {"A/IMG_1.HEIC.png": "other", "A/IMG_1.HEIC.png.xmp": "1", "A/IMG_1.HEIC.xmp": "2"},
            {"A/IMG_1.HEIC.png": "other", "A/IMG_1.HEIC.png.xmp": "1", "B/beach.jpg.xmp": "2"},
        ),
        (
            {"B/beach.jpg.png": "other", "B/beach.jpg.png.xmp": "1", "A/IMG_1.HEIC.xmp": "2"},
            {"B/beach.jpg.png": "other", "B/beach.jpg.png.xmp": "1", "B/beach.jpg.xmp": "2"},
        ),
        # No companions.
        ({"A/IMG_10.xmp": "1", "A/IMG_1_.xmp": "2"}, {"A/IMG_10.xmp": "1", "A/IMG_1_.xmp": "2"}),
    ],
)
def test_no_companion_is_ever_only_in_the_trash(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> None:
    library = made(tmp_path, PHOTOS | before)
    digests = contents(library)
    assert acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC")).refused == ()
    assert written(library) == {f"{TRASH}/A/IMG_1.HEIC": "photo", "B/beach.jpg": "photo"} | after
    assert main([str(library), "--undo"]) == 0
    assert contents(library) == digests


@pytest.mark.parametrize(
    ("photo", "json", "renamed"),
    [
        ("IMG_1(1).jpg", "IMG_1.jpg(1).json", "sea.jpg.json"),
        ("IMG_1(1).jpg", "IMG_1.jpg.supplemental-metadata(1).json", "sea.jpg.supplemental-metadata.json"),
        ("IMG_1(1).jpg", "IMG_1(1).jpg.supple.json", "sea.jpg.supple.json"),
        ("IMG_1-edited.jpg", "IMG_1.jpg.json", "sea.jpg.json"),
        ("IMG_1-edited(2).jpg", "IMG_1.jpg(2).json", "sea.jpg.json"),
        ("p" * 43 + ".jpg", "p" * 43 + ".jp.json", "sea.jpg.json"),
        ("p" * 50 + "(494).jpg", "p" * 46 + "(494).json", "sea.jpg.json"),
        ("\U0001f600" * 24 + ".jpg", "\U0001f600" * 23 + ".json", "sea.jpg.json"),
        ("PXL_1.MP.jpg", "PXL_1.MP", "sea.MP"),
        ("IMG_1.HEIC", "IMG_1.HEIC.MOV", "sea.HEIC.MOV"),
    ],
)
def test_a_companion_in_any_spelling_takes_the_new_name_of_its_photo(
    tmp_path: Path, photo: str, json: str, renamed: str
) -> None:
    library = made(tmp_path, {f"A/{photo}": "photo", f"A/{json}": "movie"})
    suffix = Path(photo).suffix
    assert acted(library, decision_of(library, f"A/{photo}", target=f"B/sea{suffix}")).refused == ()
    assert written(library) == {f"B/sea{suffix}": "photo", f"B/{renamed}": "movie"}
    assert acted(library, decision_of(library, f"B/sea{suffix}", target=f"C/{photo}")).refused == ()
    assert len(list((library / "C").iterdir())) == 2
    assert main([str(library), "--undo"]) == 0
    assert written(library) == {f"B/sea{suffix}": "photo", f"B/{renamed}": "movie"}


def test_a_json_whose_name_was_cut_so_that_two_photos_share_it_stays(tmp_path: Path) -> None:
    name, files = "p" * 46, {"beach.jpg": "photo"}
    files |= {f"A/{name}1.jpg": "photo", f"A/{name}2.jpg": "another", f"A/{name}.json": "1"}
    library = made(tmp_path, files)
    acted(library, decision_of(library, "beach.jpg", f"A/{name}1.jpg"))
    assert written(library)[f"A/{name}.json"] == "1"


def test_companions_are_told_without_a_move_and_with_one_listing_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = made(tmp_path, {"IMG_1.jpg": "photo", "IMG_1.xmp": "1", "IMG_2.jpg": "photo", "IMG_2.xmp": "2"})
    made(library, {"IMG_1.jpg.json": "same", "IMG_2.jpg.json": "same", "IMG_3.CR3": "raw"})
    listings, original = idem.Listings(), os.listdir
    listed: list[str] = []

    def noted(folder: str) -> list[str]:
        listed.append(folder)
        return original(folder)

    monkeypatch.setattr(os, "listdir", noted)
    one, two, three = (str(library / f"IMG_{number}.jpg") for number in (1, 2, 3))
    along, adopted = idem.parted_companions(one, two, listings, {})
    assert [(Path(each.file.path).name, each.differs) for each in along] == [
        *(("IMG_1.jpg.json", False), ("IMG_1.xmp", True)),
    ]
    assert adopted == []
    assert [idem.has_raw(each, listings) for each in (one, two, three)] == [False, False, True]
    assert listed == [str(library)]


# ── the movies of Live Photos ──


@pytest.mark.parametrize(
    ("seconds", "film", "photo", "expected"),
    [
        (3, {}, {}, True),
        (6, {}, {}, True),
        (7, {}, {}, False),
        (0, {}, {}, False),  # it does not say
        (60, {"live_id": "A"}, {"live_id": "A"}, True),
        (3, {"live_id": "A"}, {"live_id": "B"}, False),
        (3, {"live_id": "A"}, {}, True),  # an edit has lost it
        (3, {"taken": "2021-07-05T10:00:03"}, {"taken": "2021-07-05T10:00:00.5"}, True),
        (3, {"taken": "2021-07-05T10:00:04+02:00"}, {"taken": "2021-07-05T10:00:00+02:00"}, False),
        (3, {"taken": "2021-07-05T08:00:01+00:00"}, {"taken": "2021-07-05T10:00:00"}, True),
        (3, {"taken": "2021-07-05T04:14:59+00:00"}, {"taken": "2021-07-05T10:00:00"}, True),  # in Nepal
        (3, {"taken": "2021-07-07T08:00:00+00:00"}, {"taken": "2021-07-05T10:00:00"}, False),
        (3, {"taken": "2021-07-05T10:00:00"}, {}, True),
        (3, {"taken": "no time"}, {"taken": "2021-13-45T10:00:00"}, True),
    ],
)
def test_a_film_is_a_live_photos_if_it_says_so_or_is_short_and_of_that_moment(
    seconds: int, film: dict[str, Any], photo: dict[str, Any], expected: bool
) -> None:
    about = idem.Film(1000 * seconds, idem.written_metadata(idem.Metadata(**film)))
    assert idem.is_movie_of(about, idem.Metadata(**photo)) == expected


def test_the_movie_of_a_live_photo_is_known_by_its_length_and_a_film_stays(tmp_path: Path) -> None:
    made_doubles(tmp_path, "a/IMG_1.jpg", "b/beach.jpg")
    made_doubles(tmp_path, "a/IMG_2.jpg", "b/lake.jpg", content=b"another")
    made_doubles(tmp_path, "a/IMG_1.MOV", content=short_movie())
    clip(tmp_path / "a" / "IMG_2.MOV", "-c:v", "mpeg4", seconds=7, rate=2, size=(64, 48))
    before = contents(tmp_path)
    assert carried_out(found_in(tmp_path, "--exact")).refused == ()
    after = contents(tmp_path)
    assert (after["b/beach.MOV"], after["a/IMG_2.MOV"]) == (before["a/IMG_1.MOV"], before["a/IMG_2.MOV"])
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


def test_films_are_asked_once_and_without_ffmpeg_neither_they_nor_their_photos_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "a/IMG_1.jpg", "b/beach.jpg")
    made_doubles(tmp_path, "a/IMG_1.MOV", "c/IMG_1.MOV", content=short_movie())
    before = contents(tmp_path)
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: None)
    findings = found_in(tmp_path, "--exact")
    assert findings.scoring.held == {str(tmp_path / "a" / each) for each in ("IMG_1.jpg", "IMG_1.MOV")}
    assert (
        "1 film may be the movie of a Live Photo, so both stay as they are: that needs ffmpeg"
        in capsys.readouterr().err
    )
    carried_out(findings)
    after = contents(tmp_path)
    assert {name: after[name] for name in ("a/IMG_1.jpg", "a/IMG_1.MOV")} == {
        name: before[name] for name in ("a/IMG_1.jpg", "a/IMG_1.MOV")
    }
    main([str(tmp_path), "--undo"])
    monkeypatch.undo()
    found_in(tmp_path, "--exact")
    monkeypatch.setattr(idem, "run_ffmpeg", None)
    assert list(found_in(tmp_path, "--exact").movies.values()) == [True]


def test_a_movie_goes_where_its_still_goes_and_only_stray_copies_of_it_are_a_group(tmp_path: Path) -> None:
    made_doubles(tmp_path, "a/IMG_1.jpg", "b/IMG_1.jpg")
    made_doubles(tmp_path, "c/IMG_2.jpg", content=b"of no group")
    made_doubles(tmp_path, "a/IMG_1.MOV", "b/IMG_1.MOV", content=short_movie())
    made_doubles(tmp_path, "c/IMG_2.MOV", "sailing on the lake.MOV", content=short_movie("title=2"))
    before = contents(tmp_path)
    findings = found_in(tmp_path, "--exact")
    assert [[Path(each.file.path).name for each in group.replicas] for group in findings.groups] == [
        *(["IMG_1.jpg", "IMG_1.jpg"], ["IMG_2.MOV", "sailing on the lake.MOV"]),
    ]
    assert carried_out(findings).refused == ()
    assert sorted(contents(tmp_path)) == [
        *(f"{TRASH}/b/IMG_1.MOV", f"{TRASH}/b/IMG_1.jpg", f"{TRASH}/sailing on the lake.MOV"),
        *("a/IMG_1.MOV", "a/IMG_1.jpg", "c/IMG_2.MOV", "c/IMG_2.jpg"),
    ]
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


def test_a_sidecar_called_after_a_live_photo_stays_with_it(tmp_path: Path) -> None:
    library = made(tmp_path, {"a.jpg": "photo", "b/q.jpg.png": "photo", "b/q.jpg": "live", "b/q.jpg.xmp": "1"})
    acted(library, decision_of(library, "a.jpg", "b/q.jpg.png"))
    assert written(library) == {
        "a.jpg": "photo",
        f"{TRASH}/b/q.jpg.png": "photo",
        "b/q.jpg": "live",
        "b/q.jpg.xmp": "1",
    }


def test_two_companions_that_would_get_one_name_keep_their_photo(tmp_path: Path) -> None:
    library = made(tmp_path, PHOTOS | {"B/beach.CR2": "raw", "A/IMG_1.xmp": "1", "A/IMG_1.HEIC.xmp": "2"})
    before = written(library)
    outcome = acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC"))
    assert refusals(outcome, library) == {
        "A/IMG_1.HEIC": "its companions IMG_1.HEIC.xmp and IMG_1.xmp cannot both go to the kept file"
    }
    assert written(library) == before


def test_companions_that_went_back_get_a_counter_with_their_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = made(tmp_path, PHOTOS | {"A/IMG_1.xmp": "1", "B/beach.xmp": "2"})
    original = idem.move

    def late_move(file: MediaFile, target: str, *others: Any) -> MediaFile:
        if target.endswith("IMG_1.HEIC"):
            Path(target).write_text("somebody else's")
        return original(file, target, *others)

    monkeypatch.setattr(idem, "move", late_move)
    assert acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC")).refused == ()
    assert written(library) == {
        **{"B/beach.jpg": "photo", "B/beach.xmp": "2", f"{TRASH}/A/IMG_1.HEIC": "somebody else's"},
        **{f"{TRASH}/A/IMG_1 (2).HEIC": "photo", f"{TRASH}/A/IMG_1 (2).xmp": "1"},
    }


def test_the_first_of_two_copies_brings_its_companion(tmp_path: Path) -> None:
    library = made(tmp_path, PHOTOS | {"C/IMG_2.jpg": "photo", "A/IMG_1.xmp": "1", "C/IMG_2.xmp": "2"})
    before = contents(library)
    decision = decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC", "C/IMG_2.jpg", target="sea/sea.jpg")
    assert acted(library, decision).refused == ()
    assert written(library) == {
        **{"sea/sea.jpg": "photo", "sea/sea.xmp": "1"},
        **{f"{TRASH}/A/IMG_1.HEIC": "photo", f"{TRASH}/C/IMG_2.jpg": "photo", f"{TRASH}/C/IMG_2.xmp": "2"},
    }
    assert main([str(library), "--undo"]) == 0
    assert contents(library) == before


def test_a_movie_does_not_move_to_a_kept_file_that_has_none(tmp_path: Path) -> None:
    library = made(tmp_path, {"A/IMG_1.HEIC": "photo", "A/IMG_1.MOV": "movie", "beach.png": "photo"})
    acted(library, decision_of(library, "beach.png", "A/IMG_1.HEIC"))
    assert written(library) == {f"{TRASH}/A/IMG_1.HEIC": "photo", "A/IMG_1.MOV": "movie", "beach.png": "photo"}


def test_names_of_companions_are_compared_in_one_form(tmp_path: Path) -> None:
    library = made(tmp_path, {"A/Zu\u0308rich.jpg": "photo", "A/Z\xfcrich.jpg.xmp": "1", "beach.jpg": "photo"})
    acted(library, decision_of(library, "beach.jpg", "A/Zu\u0308rich.jpg"))
    assert written(library) == {f"{TRASH}/A/Zu\u0308rich.jpg": "photo", "beach.jpg.xmp": "1", "beach.jpg": "photo"}


@ON_LINUX
def test_what_belongs_to_two_names_in_other_capitals_stays(tmp_path: Path) -> None:
    library = made(tmp_path, {"IMG_1.jpg": "photo", "img_1.JPG": "photo", "IMG_1.jpg.xmp": "1"})
    acted(library, decision_of(library, "IMG_1.jpg", "img_1.JPG"))
    assert written(library) == {"IMG_1.jpg": "photo", f"{TRASH}/img_1.JPG": "photo", "IMG_1.jpg.xmp": "1"}


@pytest.mark.parametrize("late", [False, True])
def test_a_name_that_a_companion_cannot_have_keeps_its_photo(
    tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = made(tmp_path, PHOTOS | {"A/IMG_1.xmp": "1", "A/IMG_1.HEIC.json": "2"})
    before = written(library)
    original = idem.move

    def take(*_: Any) -> None:
        (library / "B" / "beach.xmp").mkdir(exist_ok=True)

    def late_move(*arguments: Any) -> MediaFile:
        take()
        return original(*arguments)

    if late:
        monkeypatch.setattr(idem, "move", late_move)
    else:
        take()
    outcome = acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC", target="sea.jpg"))
    assert refusals(outcome, library) == {
        "A/IMG_1.HEIC": "its companion IMG_1.xmp cannot go to the kept file: beach.xmp is there already",
        "B/beach.jpg": "not renamed: not all of its group is in the trash",
    }
    assert (written(library), outcome.moved) == (before, ())


def test_companions_take_the_new_name_and_folder_of_their_keeper(tmp_path: Path) -> None:
    library = made(tmp_path, PHOTOS | {"B/beach.xmp": "1", "B/beach.jpg.xmp": "2", "B/beach.MOV": "3"})
    acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC", target="sea/sea.jpg"))
    assert written(library) == {
        **{"sea/sea.jpg": "photo", "sea/sea.xmp": "1", "sea/sea.jpg.xmp": "2", "sea/sea.MOV": "3"},
        f"{TRASH}/A/IMG_1.HEIC": "photo",
    }


@pytest.mark.parametrize(("keeper", "copy"), [("B/beach.jpg", "A/IMG_1.HEIC"), ("A/IMG_1.HEIC", "B/beach.jpg")])
def test_a_photo_goes_nowhere_without_a_film_of_which_nobody_knows(tmp_path: Path, keeper: str, copy: str) -> None:
    library = made(tmp_path, PHOTOS | {"A/IMG_1.MOV": "movie"})
    asked = movies_in(library)
    (library / "A" / "IMG_1.MOV").write_text("changed since")
    decision = decision_of(library, keeper, copy, target="sea" + Path(keeper).suffix)
    outcome = acted(library, decision, movies=asked)
    why = "IMG_1.MOV may be its movie: it is new or changed, or ffmpeg cannot read it"
    assert why in refusals(outcome, library)["A/IMG_1.HEIC"]
    assert {"A/IMG_1.HEIC": "photo", "A/IMG_1.MOV": "changed since"}.items() <= written(library).items()


def test_a_movie_that_another_file_system_gives_a_new_identity_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a batch, where it is adopted and then renamed, and when an undo has put it back."""
    library = made(tmp_path, {"IMG_1.jpg": "photo", "sea/beach.jpg": "photo"})
    made_doubles(library, "IMG_1.mov", content=short_movie())
    findings = found_in(library, "--exact")
    before = contents(library)
    pretend_other_file_system(monkeypatch)
    with closing(idem.Pool(1)) as pool:
        session = idem.Session(findings, (), pool)
        for target in ("sea/wind.jpg", "sea/waves.jpg"):
            replicas = {Path(each.file.path).name: each for each in session.groups[0].replicas}
            trash = (replicas["IMG_1.jpg"],)
            decision = idem.Decision(replicas["beach.jpg"], str(library / target), trash, ())
            batch = session.act({0: decision})
            assert (batch.outcome.refused, (library / target).with_suffix(".mov").is_file()) == ((), True)
            session.reopen(batch, idem.undo(str(library)))
            assert contents(library) == before


@pytest.mark.parametrize("at_once", [True, False])
def test_a_kept_video_beside_a_copy_of_its_name_stays_live(tmp_path: Path, at_once: bool) -> None:
    """It looks like the movie of a Live Photo then, but it is the only copy of a video that is left."""
    files = {"archive/x.mp4": "video", "Beach.mov": "video", "Sea.jpg": "photo", "Italy/Beach.jpg": "photo"}
    library = made(tmp_path, files)
    asked = dict.fromkeys(movies_in(library), False)
    video = decision_of(library, "archive/x.mp4", "Beach.mov", target="Italy/Beach.mp4")
    picture = decision_of(library, "Sea.jpg", "Italy/Beach.jpg")
    for batch in [[video, picture]] if at_once else [[video], [picture]]:
        assert acted(library, *batch, movies=asked).refused == ()
    assert written(library) == {
        **{"Sea.jpg": "photo", "Italy/Beach.mp4": "video"},
        **{f"{TRASH}/Beach.mov": "video", f"{TRASH}/Italy/Beach.jpg": "photo"},
    }


def test_a_photo_whose_companion_cannot_come_along_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "lake/beach.jpg", "IMG_1.jpg")
    made_doubles(
        tmp_path, "IMG_1.xmp", "IMG_1.jpg.json", "lake/beach.xmp", content=b"edits"
    )  # one goes, one is adopted
    findings = found_in(tmp_path, "--exact")
    before = contents(tmp_path)
    move = idem.move

    def failing(file: MediaFile, *others: Any) -> MediaFile:
        if file.path.endswith("IMG_1.jpg"):
            raise OSError(errno.EIO, "Input/output error")
        return move(file, *others)

    monkeypatch.setattr(idem, "move", failing)
    outcome = carried_out(findings)
    assert refusals(outcome, tmp_path) == {"IMG_1.jpg": "Input/output error"}
    assert (contents(tmp_path), outcome.moved) == (before, ())


def test_a_companion_that_does_not_go_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = made(tmp_path, PHOTOS | {"A/IMG_1.xmp": "1"})
    before = contents(library)
    original, calls = idem.move, itertools.count(1)

    def failing(*arguments: Any) -> MediaFile:
        if next(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return original(*arguments)

    monkeypatch.setattr(idem, "move", failing)
    outcome = acted(library, decision_of(library, "B/beach.jpg", "A/IMG_1.HEIC"))
    monkeypatch.undo()
    assert refusals(outcome, library) == {"A/IMG_1.HEIC": "Input/output error"}
    assert [Path(each.after.path).name for each in outcome.companions] == ["beach.xmp"]
    assert main([str(library), "--undo"]) == 0
    assert contents(library) == before


def test_a_keeper_gets_a_counter_where_its_companion_would_need_one(tmp_path: Path) -> None:
    made_doubles(tmp_path, "IMG_1.jpg", "beach.jpg")
    made_doubles(tmp_path, "IMG_1.jpg.xmp", content=b"edits")
    made_doubles(tmp_path, "beach.jpg.xmp.txt", content=b"unrelated")
    (tmp_path / "lake").mkdir()
    findings = found_in(tmp_path, "--exact")
    image = next(each for each in findings.groups[0].replicas if each.file.path.endswith("IMG_1.jpg"))
    other = next(each for each in findings.groups[0].replicas if each is not image)
    made_doubles(tmp_path, "lake/beach.jpg.xmp", content=b"of another")
    decision = idem.Decision(image, str(tmp_path / "lake" / "beach.jpg"), (other,), ())
    idem.carry_out([decision], findings.root, {}, unread)
    assert sorted(path.name for path in (tmp_path / "lake").iterdir()) == [
        *("beach (2).jpg", "beach (2).jpg.xmp", "beach.jpg.xmp"),
    ]


# ── undo ──


def test_undo_goes_back_batch_by_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = [contents(made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg"))]
    for number in (2, 3):
        carried_out(found_in(tmp_path, "--exact"))
        made_doubles(tmp_path, f"boat {number}.jpg", f"IMG_{number}.jpg", content=b"%d" % number)
        states.append(contents(tmp_path))
    carried_out(found_in(tmp_path, "--exact"))
    later = {"boat 2.jpg", "IMG_2.jpg", "boat 3.jpg", "IMG_3.jpg"}
    for state in reversed(states):
        assert main([str(tmp_path), "--undo"]) == 0
        now = contents(tmp_path)
        assert {name: now[name] for name in state} == state
        assert set(now) - set(state) <= later
    capsys.readouterr()
    assert main([str(tmp_path), "--undo"]) == 0
    assert capsys.readouterr().out == "Nothing to undo.\n"


def test_what_cannot_go_back_is_named_and_the_rest_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg", "IMG_4.jpg"]
    made_doubles(tmp_path, "beach.jpg", *names)
    carried_out(found_in(tmp_path, "--exact"))
    (tmp_path / "IMG_1.jpg").write_bytes(b"somebody else's")
    (tmp_path / TRASH / "IMG_2.jpg").unlink()
    (tmp_path / TRASH / "IMG_3.jpg").write_bytes(b"another")
    assert main([str(tmp_path), "--undo"]) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "1 file put back, 3 not",
        "put back  IMG_4.jpg",
        f"refused   {os.path.join(TRASH, 'IMG_1.jpg')}: not put back: File exists",
        f"refused   {os.path.join(TRASH, 'IMG_2.jpg')}: not put back: it is gone",
        f"refused   {os.path.join(TRASH, 'IMG_3.jpg')}: not put back: another file is in its place",
    ]
    assert (tmp_path / "IMG_1.jpg").read_bytes() == b"somebody else's"
    assert (tmp_path / TRASH / "IMG_1.jpg").read_bytes() == b"double"


def test_a_torn_or_hostile_journal_moves_nothing_across_the_border(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path / "lib", "beach.jpg", "IMG_1.jpg")
    made_doubles(tmp_path, "outside.jpg")
    before = contents(library)
    carried_out(found_in(library, "--exact"))
    journal = library / "__databases" / idem.JOURNAL_FILE
    good = journal.read_bytes()
    number = good.count(b"\n")
    status = (tmp_path / "outside.jpg").stat()
    hostile = idem.JournalLine(number + 1, 9, "move", size=6, mtime_ns=status.st_mtime_ns)
    for source, target in [
        ("beach.jpg", "../outside.jpg"),
        ("../stolen.jpg", "beach.jpg"),
        (str(tmp_path / "stolen.jpg"), "beach.jpg"),
    ]:
        journal.write_bytes(good + replace(hostile, from_=source, to=target).as_json())
        assert main([str(library), "--undo"]) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lib", "outside.jpg"]
        assert (library / "beach.jpg").exists()
    journal.write_bytes(good + b'{"batch": 7, "event": "mo\n\xff\x00junk\n[1]\nnull\n{"batch": "x"}\n{"batch": 1, "ev')
    capsys.readouterr()
    assert main([str(library), "--undo"]) == 1
    assert f"it cannot be read from line {number + 1} on" in capsys.readouterr().out
    assert contents(library) == before


# ── SAFETY row 38 ──


@pytest.fixture
def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests with hundreds of lines of a journal that need no power cut."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def undone(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str = ""
) -> tuple[int, list[str]]:
    """Exit status and lines of `--undo`, with this answer when it asks."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    status = main([str(library), "--undo"])
    return status, capsys.readouterr().out.replace(os.sep, "/").splitlines()


def library_with_every_line(library: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], bytes]:
    """Two batches, one of them undone at the second attempt; what it was before, and a journal with every event."""
    made(library, {"IMG_1.jpg": "one", "lake/beach.jpg": "one", "lake/beach.xmp": "edits"})
    made(library, {"IMG_2.jpg": "two", "boat.jpg": "two", "IMG_3.jpg": "three", "shore.jpg": "three"})
    before = written(library)
    first = decision_of(library, "IMG_1.jpg", "lake/beach.jpg", target="beach.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(idem, "rename_without_replacing", failing_for("boat.jpg", idem.rename_without_replacing))
        acted(library, first, decision_of(library, "IMG_2.jpg", "boat.jpg"))
    acted(library, decision_of(library, "IMG_3.jpg", "shore.jpg"))
    (library / "shore.jpg").write_text("in the way")
    assert main([str(library), "--undo"]) == 1
    (library / "shore.jpg").unlink()
    assert main([str(library), "--undo"]) == 0
    journal = (library / "__databases" / idem.JOURNAL_FILE).read_bytes()
    events = {json.loads(line)["event"] for line in journal.splitlines()}
    assert events == {"begin", "move", "moved", "failed", "return", "end", "undone", "refused"}
    return before, journal


def failing_for(name: str, rename: Callable[..., None]) -> Callable[..., None]:
    def failing(source: idem.Entry, target: idem.Entry) -> None:
        if source.path.endswith(name):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    return failing


def faulty_journals(good: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The journal with a byte of each line damaged, each line missing, cut at each line, or gone."""
    lines = good.splitlines(keepends=True)
    for number, line in enumerate(lines):
        at = number * 7 % (len(line) - 1)
        damaged = line[:at] + bytes([line[at] ^ 4]) + line[at + 1 :]
        yield "damaged", number, b"".join([*lines[:number], damaged, *lines[number + 1 :]])
        yield "missing", number, b"".join([*lines[:number], *lines[number + 1 :]])
        yield "cut", number, b"".join(lines[:number])
    yield "torn", len(lines) - 1, good[:-9]


@pytest.mark.storm
def test_what_a_faulty_journal_does_not_say_is_named_and_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], without_sync: None
) -> None:
    """Whichever line is lost: exit 0 only when all is back, nothing is lost, and with `y` the trash is empty."""
    library = tmp_path / "lib"
    before, good = library_with_every_line(library, monkeypatch)
    shutil.copytree(library, tmp_path / "moved")
    lines = [json.loads(line) for line in good.splitlines()]
    cases = list(faulty_journals(good))
    step = max(1, len(cases) // int(os.environ.get("IDEM_ROUNDS", "16")))
    for fault, number, journal in cases[::step]:
        shutil.rmtree(library)
        shutil.copytree(tmp_path / "moved", library)
        (library / "__databases" / idem.JOURNAL_FILE).write_bytes(journal)
        said: list[str] = []
        failed = 0
        while "Nothing to undo." not in said and not any(line.startswith("unlisted") for line in said[-2:]):
            status, more = undone(library, capsys, monkeypatch)
            failed |= status
            said += more
        now, case = written(library), (fault, number, said)
        assert Counter(now.values()) == Counter(before.values()), case
        assert failed or now == before or fault == "cut", case
        assert all(any(name in line for line in said) for name in now if name.startswith(TRASH)), case
        if fault in ("damaged", "torn"):
            is_of_first = lines[number]["batch"] == 1 or lines[number]["event"] == "begin"  # it might be of either
            named = [line for line in said if "is damaged or missing" in line or "cannot be read from" in line]
            assert bool(named) == (is_of_first or number == len(lines) - 1), case
        for _ in range(4):
            if any(name.startswith(TRASH) for name in written(library)):
                undone(library, capsys, monkeypatch, "y\n")
        assert Counter(written(library).values()) == Counter(before.values()), case
        assert not [name for name in written(library) if name.startswith(TRASH)], case


def test_a_trash_that_was_emptied_is_named_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {"beach.jpg": "photo", "IMG_1.jpg": "photo", "IMG_2.jpg": "photo"})
    acted(tmp_path, decision_of(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg"))
    shutil.rmtree(tmp_path / TRASH)
    assert undone(tmp_path, capsys, monkeypatch) == (
        1,
        [
            f"refused   {TRASH}/IMG_2.jpg: not put back: it is gone",
            f"refused   {TRASH}/IMG_1.jpg: not put back: it is gone",
            "0 files put back, 2 not",
        ],
    )


@pytest.mark.parametrize("answer", ["", "n\n", "y\n"])
def test_files_in_the_trash_that_no_journal_lists_are_offered(
    tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"lake/beach.jpg": "kept", f"{TRASH}/lake/beach.jpg": "photo", f"{TRASH}/IMG_1.xmp": "edits"}
    files |= {f"{TRASH}/__databases/all_media_sha_hash_db.csv": "a row", f"{TRASH}/lake/.idem-1-1.part": "half"}
    made(tmp_path, files)
    status, said = undone(tmp_path, capsys, monkeypatch, answer)
    assert (status, said[:5]) == (
        1,
        [
            f"refused   {TRASH}/__databases/all_media_sha_hash_db.csv: not put back: no file of the library was there",
            f"refused   {TRASH}/lake/.idem-1-1.part: not put back: left by a run that was killed",
            "In the trash, and not in the journal:",
            f"unlisted  {TRASH}/IMG_1.xmp, from IMG_1.xmp",
            f"unlisted  {TRASH}/lake/beach.jpg, from lake/beach.jpg",
        ],
    )
    if answer == "y\n":
        files |= {
            "lake/beach (2).jpg": files.pop(f"{TRASH}/lake/beach.jpg"),
            "IMG_1.xmp": files.pop(f"{TRASH}/IMG_1.xmp"),
        }
        assert said[-1] == "2 files put back, 0 not"
    assert written(tmp_path) == files
    journal = tmp_path / "__databases" / idem.JOURNAL_FILE
    events = [line.event for line in idem.journal_lines(str(journal))]
    assert events == (["begin", "return", "moved", "return", "moved", "end"] if answer == "y\n" else [])


def test_an_old_journal_cannot_be_read_and_its_trash_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {"beach.jpg": "photo", f"{TRASH}/IMG_1.jpg": "photo"})
    line = {"batch": 1, "event": "move", "number": 1, "from": "IMG_1.jpg", "to": f"{TRASH}/IMG_1.jpg", "size": 5}
    made(tmp_path, {f"__databases/{idem.JOURNAL_FILE}": json.dumps(line) + "\n"})
    status, said = undone(tmp_path, capsys, monkeypatch, "y\n")
    assert (status, said[0]) == (
        1,
        f"refused   __databases/{idem.JOURNAL_FILE}: it cannot be read from line 1 on: "
        "what it said there cannot be put back",
    )
    assert written(tmp_path) == {"beach.jpg": "photo", "IMG_1.jpg": "photo"}


def test_a_batch_all_of_whose_moves_failed_is_nothing_to_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {"beach.jpg": "photo", "IMG_1.jpg": "photo", "boat.jpg": "two", "IMG_2.jpg": "two"})
    before = written(tmp_path)
    acted(tmp_path, decision_of(tmp_path, "beach.jpg", "IMG_1.jpg"))
    with monkeypatch.context() as patch:
        patch.setattr(idem, "rename_without_replacing", failing_for("IMG_2.jpg", idem.rename_without_replacing))
        acted(tmp_path, decision_of(tmp_path, "boat.jpg", "IMG_2.jpg"))
    assert undone(tmp_path, capsys, monkeypatch) == (0, ["put back  IMG_1.jpg", "1 file put back, 0 not"])
    assert written(tmp_path) == before
    assert undone(tmp_path, capsys, monkeypatch) == (0, ["Nothing to undo."])


def test_an_undo_whose_journal_fails_says_what_it_has_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {"beach.jpg": "photo", "IMG_1.jpg": "photo", "IMG_2.jpg": "photo"})
    acted(tmp_path, decision_of(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg"))
    original, lines = idem.Journal.write, itertools.count(1)

    def failing(journal: idem.Journal, event: str, **values: Any) -> int:
        if next(lines) == 3:
            raise idem.IdemError("cannot write the journal")
        return original(journal, event, **values)

    monkeypatch.setattr(idem.Journal, "write", failing)
    assert undone(tmp_path, capsys, monkeypatch) == (2, ["put back  IMG_2.jpg"])


# ── SAFETY row 39 ──


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"from_": "/etc/beach.jpg"}, "/etc/beach.jpg is not in the library"),
        ({"from_": "lake/../../beach.jpg"}, "lake/../../beach.jpg is not in the library"),
        ({"from_": "__databases/beach.jpg"}, "__databases/beach.jpg is not in the library"),
        ({"from_": "startup.sh"}, "startup.sh is no photo, video or companion"),
        ({"from_": "beach.json"}, "idem would not have moved it so"),
        ({"from_": "link/beach.jpg"}, "{library}/link is a link or outside the library"),
        ({"from_": "new\0.jpg"}, "new\\x00.jpg is not in the library"),
    ],
)
def test_undo_goes_nowhere_that_idem_would_not(
    tmp_path: Path,
    line: dict[str, Any],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = made(tmp_path / "lib", {"a.jpg": "photo"})
    (tmp_path / "outside").mkdir()
    (library / "link").symlink_to(tmp_path / "outside")
    journal_of(library, {"event": "begin"}, cut_off_move(library, "b.jpg", "a.jpg") | line)
    status, said = undone(library, capsys, monkeypatch)
    assert (status, said[0]) == (1, f"refused   a.jpg: not put back: {why.format(library=library)}")
    assert written(library) == {"a.jpg": "photo"}
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize(
    "raw",
    [
        b'{"line": 1, "batch": ' + b"9" * 4300 + b', "event": "x"}',
        b"[" * 400_000,
        b"{" + b'"a":{' * 100_000,
        b'{"line": 1, "batch": [1], "event": "move"}',
        b'{"line": true, "batch": 1.0, "event": "move"}',
        b"null",
        b'"line"',
        idem.JournalLine(1, 1, "begin", "x" * 600_000).as_json(),
        idem.JournalLine(1, 1 << 62, "move").as_json(),
        idem.JournalLine(1, True, "begin").as_json(),
        idem.JournalLine(1, 1, "begin").as_json().replace(b": 1", b":  1", 1),
        b"\0" * 2_000_000,
    ],
    ids=range(12),
)
def test_a_line_that_idem_would_not_write_is_no_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(raw + b"\n")
    assert list(idem.journal_lines(str(path))) == []
    assert idem.end_of_journal(str(path))[0] == idem.JournalLine()


@ON_LINUX
@pytest.mark.parametrize("kind", ["FIFO", "device", "link", "hard link", "6 GB of zeros"])
def test_a_journal_that_is_no_plain_file_is_refused_in_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {f"{TRASH}/IMG_1.jpg": "photo", "other": ""})
    (tmp_path / "__databases").mkdir()
    journal = tmp_path / "__databases" / idem.JOURNAL_FILE
    if kind == "FIFO":
        os.mkfifo(journal)
    elif kind == "6 GB of zeros":
        journal.touch()
        os.truncate(journal, 6 << 30)
    elif kind == "hard link":
        os.link(tmp_path / "other", journal)
    else:
        journal.symlink_to("/dev/zero" if kind == "device" else tmp_path / "other")
    assert undone(tmp_path, capsys, monkeypatch) == (2, [])
    assert written(tmp_path) == {f"{TRASH}/IMG_1.jpg": "photo", "other": ""}


def test_a_journal_with_a_fault_in_every_line_is_named_in_a_hundred_lines(tmp_path: Path) -> None:
    made(tmp_path, {"beach.jpg": "photo"})
    (tmp_path / "__databases").mkdir()
    raws = [idem.JournalLine(number * 2, number, "begin").as_json() for number in range(1, 301)]
    (tmp_path / "__databases" / idem.JOURNAL_FILE).write_bytes(b"".join(raws))
    reasons = [each.reason for each in idem.undo(str(tmp_path)).refused]
    assert reasons == ["it is damaged in many more places: what it said there cannot be put back"]
    assert len(idem.Record(str(tmp_path)).damages) == idem.MOST_DAMAGES


def test_a_copy_in_the_trash_stays_when_its_original_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, {"beach.jpg": "photo", f"{TRASH}/beach.jpg": "photo"})
    for name in written(tmp_path):
        os.utime(tmp_path / name, (1, 1))
    journal_of(tmp_path, {"event": "begin"}, cut_off_move(tmp_path, "beach.jpg", f"{TRASH}/beach.jpg"))
    rename = idem.rename_without_replacing

    def losing(source: idem.Entry, target: idem.Entry) -> None:
        (tmp_path / "beach.jpg").unlink(missing_ok=True)
        rename(source, target)

    monkeypatch.setattr(idem, "rename_without_replacing", losing)
    assert main([str(tmp_path), "--undo"]) == 1
    assert written(tmp_path) == {f"{TRASH}/beach.jpg": "photo"}


# ── SAFETY row 42 ──


def test_a_file_that_was_just_trashed_can_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, {"IMG_1.jpg": "photo", "IMG_1.xmp": "edits", "IMG_2.jpg": "photo"})
    (tmp_path / "__databases").mkdir()
    before = written(tmp_path)
    journal = idem.Journal(str(tmp_path))
    journal.batch += 1
    journal.write("begin")
    mover = idem.Mover(journal, {})
    names = ("IMG_1.xmp", "IMG_1.jpg", "IMG_2.jpg")
    moved = mover.move_all([(media_file(tmp_path / each), str(tmp_path / TRASH / each)) for each in names])
    (tmp_path / "IMG_2.jpg").write_text("in the way")
    assert mover.put_back(moved) == (moved[2],)
    (tmp_path / "IMG_2.jpg").unlink()
    assert undone(tmp_path, capsys, monkeypatch) == (0, ["put back  IMG_2.jpg", "1 file put back, 0 not"])
    assert written(tmp_path) == before


# ── SAFETY row 43 ──


@ON_LINUX
@pytest.mark.parametrize("swapped", ["source", "target", "target moved out"])
@pytest.mark.parametrize("way", ["system", "link", "placeholder", "copy"])
def test_a_folder_that_becomes_a_link_before_the_rename_leads_nowhere(
    tmp_path: Path, way: str, swapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = made(tmp_path / "lib", {"beach.jpg": "photo", "lake/IMG_1.jpg": "photo"})
    outside = made(tmp_path / "outside", {"IMG_1.jpg": "theirs"} if swapped == "source" else {"other.jpg": "theirs"})
    decision = decision_of(library, "beach.jpg", "lake/IMG_1.jpg")
    if way == "copy":
        pretend_other_file_system(monkeypatch)
    else:
        use_way(way, monkeypatch)
    rename = idem.rename_without_replacing
    folder = library / "lake" if swapped == "source" else library / TRASH / "lake"
    away = tmp_path / "away" if swapped == "target moved out" else folder.with_name("lake 2")

    def swapping(source: idem.Entry, target: idem.Entry) -> None:
        if not away.exists():
            folder.rename(away)
            folder.symlink_to(outside)
        rename(source, target)

    monkeypatch.setattr(idem, "rename_without_replacing", swapping)
    outcome = acted(library, decision)
    assert written(outside) == ({"IMG_1.jpg": "theirs"} if swapped == "source" else {"other.jpg": "theirs"})
    if swapped == "source":
        assert outcome.refused == ()
        assert written(library) == {"beach.jpg": "photo", f"{TRASH}/lake/IMG_1.jpg": "photo"}
    else:
        assert list(refusals(outcome, library)) == ["lake/IMG_1.jpg"]
        assert written(library) == {"beach.jpg": "photo", "lake/IMG_1.jpg": "photo"}
        assert written(away) == {}


def test_where_a_drive_was_unplugged_no_folder_is_made(tmp_path: Path) -> None:
    library = made(tmp_path / "lib", {"lake/beach.jpg": "photo"})
    (library / "__databases").mkdir()
    journal, file = idem.Journal(str(library)), media_file(library / "lake" / "beach.jpg")
    library.rename(tmp_path / "drive")
    library.mkdir()
    with pytest.raises(idem.IdemError, match="no file is moved"):
        journal.move(file, str(library / TRASH / "lake" / "beach.jpg"))
    with pytest.raises(FileNotFoundError):
        idem.move(file, str(library / TRASH / "lake" / "beach.jpg"), str(library), ".idem-1-1")
    assert list(library.iterdir()) == []


# ── SAFETY row 50 ──


@ON_LINUX
def test_a_private_folder_is_private_in_the_trash(tmp_path: Path) -> None:
    made(tmp_path, {"beach.jpg": "photo", "private/lake/IMG_1.jpg": "photo"})
    tmp_path.chmod(0o750)
    (tmp_path / "private").chmod(0o700)
    (tmp_path / "private" / "lake").chmod(0o775)
    acted(tmp_path, decision_of(tmp_path, "beach.jpg", "private/lake/IMG_1.jpg"))
    modes = {name: oct((tmp_path / TRASH / name).stat().st_mode & 0o777) for name in ("", "private", "private/lake")}
    assert modes == {"": "0o750", "private": "0o700", "private/lake": "0o775"}


def access(path: Path) -> tuple[int, int, str]:
    status = path.stat()
    return status.st_uid, status.st_gid, oct(status.st_mode & 0o7777)


@ON_LINUX
@AS_ROOT
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_owner_group_and_mode_go_to_another_drive_and_come_back(open_folder: Path, user: str) -> None:
    library = made(open_folder, {"beach.jpg": "photo", "private/IMG_1.jpg": "photo"})
    owner = (65534, 65534) if user == "nobody" else (1234, 4321)
    private, file = library / "private", library / "private" / "IMG_1.jpg"
    for path in (library, library / "beach.jpg", private, file):
        os.chown(path, *owner)
    private.chmod(0o700)
    file.chmod(0o640)
    os.setxattr(file, "user.rating", b"5")
    before = [access(private), access(file)]
    (library / "__databases").mkdir(mode=0o777)
    (library / "__databases").chmod(0o777)
    with mounted(library / TRASH, "-t", "tmpfs", "-o", "mode=777", "tmpfs"):
        child = os.fork()
        if child == 0:
            if user == "nobody":
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            outcome = acted(library, decision_of(library, "beach.jpg", "private/IMG_1.jpg"))
            os._exit(len(outcome.refused))
        assert os.waitpid(child, 0)[1] == 0
        trashed = library / TRASH / "private"
        assert [access(trashed), access(trashed / "IMG_1.jpg")] == before
        assert os.getxattr(trashed / "IMG_1.jpg", "user.rating") == b"5"
        shutil.rmtree(private)
        assert main([str(library), "--undo"]) == 0
        assert [access(private), access(file)] == before
        assert os.getxattr(file, "user.rating") == b"5"


@ON_LINUX
@AS_ROOT
def test_a_group_that_cannot_be_kept_gets_no_more_than_everybody_had(tmp_path: Path) -> None:
    for mode, kept in [(0o640, 0o600), (0o664, 0o644), (0o4755, 0o755)]:
        source, copy = made_doubles(tmp_path, "source.jpg") / "source.jpg", tmp_path / "copy.jpg"
        os.chown(source, 65534, 4321)
        source.chmod(mode)
        copy.write_text("")
        copy.chmod(0o600)
        with source.open() as one, copy.open() as other:
            child = os.fork()
            if child == 0:
                os.chown(copy, 65533, 65533)
                os.setgid(65533)
                os.setgroups([])
                os.setuid(65533)
                idem.copy_access(one.fileno(), other.fileno())
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        assert access(copy) == (65533, 65533, oct(kept))


# ── what reviews found ──


def test_undo_through_a_folder_that_became_a_link_unlinks_nothing(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "A" / "beach.jpg", quality=90)
    save(photo(1), tmp_path / "lake" / "beach.jpg", quality=60)
    before = Counter(contents(tmp_path).values())
    carried_out(found_in(tmp_path))
    os.rename(tmp_path / "lake" / "beach.jpg", tmp_path / "A" / "beach.jpg")
    (tmp_path / "lake").rmdir()
    (tmp_path / "lake").symlink_to("A")
    main([str(tmp_path), "--undo"])
    assert Counter(contents(tmp_path).values()) == before


@ON_LINUX
def test_an_undo_that_is_killed_at_any_point_can_be_repeated(tmp_path: Path) -> None:
    library = made_doubles(tmp_path, "A/IMG_1.jpg", "lake/beach.jpg", "IMG_2.jpg")
    os.utime(library / "A" / "IMG_1.jpg", (1, 1))
    os.utime(library / "lake" / "beach.jpg", (1, 1))
    made_doubles(library, "A/IMG_1.xmp", content=b"edits")
    before = contents(library)
    findings = found_in(library, "--exact")
    for step in itertools.count(1):
        carried_out(refreshed(findings))
        killed = undo_killed_at_sync(step, library)
        assert Counter(contents(library).values()) == Counter(before.values())
        assert main([str(library), "--undo"]) == 0
        assert contents(library) == before
        if not killed:
            break
    assert step > 5


def undo_killed_at_sync(step: int, library: Path) -> bool:
    """Undo in a process that is killed at its nth sync of the journal or a folder; whether it came to that."""
    child = os.fork()
    if child == 0:
        fsync, calls = os.fsync, itertools.count(1)

        def deadly(fd: Any) -> None:
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(fd)

        os.fsync = deadly
        idem.undo(str(library))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_an_edit_during_a_copy_to_another_file_system_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    findings = found_in(tmp_path, "--exact")
    pretend_other_file_system(monkeypatch)
    save_folder = idem.save_folder

    def edit(entry: idem.Entry) -> None:
        if (tmp_path / "IMG_1.jpg").exists():
            (tmp_path / "IMG_1.jpg").write_bytes(b"edited!")
        save_folder(entry)

    monkeypatch.setattr(idem, "save_folder", edit)
    outcome = carried_out(findings)
    assert "it was edited while it was moved" in refusals(outcome, tmp_path)["IMG_1.jpg"]
    assert (tmp_path / "IMG_1.jpg").read_bytes() == b"edited!"
    assert (tmp_path / TRASH / "IMG_1.jpg").read_bytes() == b"double"


def test_a_source_that_vanishes_during_a_copy_leaves_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    findings = found_in(tmp_path, "--exact")
    pretend_other_file_system(monkeypatch)
    save_folder = idem.save_folder

    def lose(entry: idem.Entry) -> None:
        (tmp_path / "IMG_1.jpg").unlink(missing_ok=True)
        save_folder(entry)

    monkeypatch.setattr(idem, "save_folder", lose)
    assert carried_out(findings).refused == ()
    assert (tmp_path / TRASH / "IMG_1.jpg").read_bytes() == b"double"


def test_u_undoes_no_batch_but_that_of_the_last_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    carried_out(found_in(tmp_path, "--exact"))
    made_doubles(tmp_path, "boat.jpg", "IMG_2.jpg", content=b"other")
    original = idem.check_decision

    def changed(decision: idem.Decision, root: str) -> None:
        (tmp_path / "boat.jpg").write_bytes(b"new")
        original(decision, root)

    monkeypatch.setattr(idem, "check_decision", changed)
    assert answered(tmp_path, "k u x", monkeypatch=monkeypatch, capsys=capsys)[0] == 1
    assert (tmp_path / TRASH / "IMG_1.jpg").exists()


@pytest.mark.parametrize("names", [["beach.jpg", "IMG_1.jpg"], ["lake/IMG_1.jpg", "beach.jpg", "IMG_2.jpg"]])
def test_what_could_not_go_back_is_tried_once_more(tmp_path: Path, names: list[str]) -> None:
    before = contents(made_doubles(tmp_path, *names))
    carried_out(found_in(tmp_path, "--exact"))
    os.rename(tmp_path / TRASH, tmp_path / "away")
    assert main([str(tmp_path), "--undo"]) == 1
    os.rename(tmp_path / "away", tmp_path / TRASH)
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", ["is_same_file", "save_folder"])
def test_a_move_that_fails_after_the_file_has_gone_can_be_undone(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg"))
    findings = found_in(tmp_path, "--exact")

    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(idem, call, failing)
        assert list(refusals(carried_out(findings), tmp_path)) == ["IMG_1.jpg"]
    assert (tmp_path / TRASH / "IMG_1.jpg").exists()
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


def test_a_source_that_cannot_be_unlinked_stays_and_its_copy_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg"))
    findings = found_in(tmp_path, "--exact")
    pretend_other_file_system(monkeypatch)
    unlink = os.unlink

    def failing(path: str, **folder: Any) -> None:
        if path.endswith(".aside"):
            raise OSError(errno.EACCES, "Permission denied")
        unlink(path, **folder)

    monkeypatch.setattr(os, "unlink", failing)
    assert refusals(carried_out(findings), tmp_path) == {"IMG_1.jpg": "Permission denied"}
    monkeypatch.undo()
    assert contents(tmp_path) == before


@ON_LINUX
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_whose_name_differs_in_capitals_is_not_replaced(tmp_path: Path, kind: str) -> None:
    made_doubles(tmp_path, "img.jpg")
    (os.symlink if kind == "symbolic" else os.link)(tmp_path / "img.jpg", tmp_path / "IMG.jpg")
    with pytest.raises(FileExistsError):
        idem.rename_without_replacing(idem.Entry(str(tmp_path / "img.jpg")), idem.Entry(str(tmp_path / "IMG.jpg")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IMG.jpg", "img.jpg"]


@ON_LINUX
@AS_ROOT
def test_an_undo_across_drives_killed_anywhere_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = made_doubles(tmp_path, "lake/IMG_1.jpg", "beach.jpg")
    made_doubles(tmp_path, "beach.xmp", content=b"edits")
    before = contents(library)
    with mounted(library / TRASH, "-t", "tmpfs", "tmpfs"):
        findings = found_in(library, "--exact")
        for step in itertools.count(1):
            carried_out(refreshed(findings))
            killed = undo_killed_at_sync(step, library)
            assert set(contents(library).values()) == set(before.values())
            undone_but_for_leftovers(library, before, capsys)
            if not killed:
                break
    assert step > 10


def test_moves_in_a_folder_of_a_library_in_use_wait_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "sub/beach.jpg", "sub/IMG_1.jpg")
    with idem.run_lock(str(tmp_path / "__databases")):
        assert answered(tmp_path / "sub", "k", monkeypatch=monkeypatch, capsys=capsys)[0] == 2
    assert answered(tmp_path / "sub", "k", monkeypatch=monkeypatch, capsys=capsys)[0] == 0


@pytest.mark.parametrize("fault", ["not written", "not saved"])
def test_an_undo_whose_journal_fails_at_any_line_can_be_repeated(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, without_sync: None
) -> None:
    library = library_of_ten_moves(tmp_path)
    before = contents(library)
    findings = found_in(library, "--exact")
    original, lines, step, failed = idem.Journal.write, itertools.count(1), 0, True

    def failing(journal: idem.Journal, event: str, **values: Any) -> int:
        last = next(lines) == step
        number = original(journal, event, **values) if fault == "not saved" or not last else 0
        if last:
            raise idem.IdemError("cannot write the journal")
        return number

    while failed:
        step += 1
        carried_out(refreshed(findings))
        lines = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(idem.Journal, "write", failing)
            failed = main([str(library), "--undo"]) == 2
        assert Counter(contents(library).values()) == Counter(before.values())
        if failed:
            main([str(library), "--undo"])
        assert contents(library) == before
    assert step > 15


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_exchanged_at_the_last_moment_is_put_back(
    tmp_path: Path, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = made(tmp_path, {"beach.jpg": "photo", "IMG_1.jpg": "photo", "other.jpg": "another"})
    decision = decision_of(library, "beach.jpg", "IMG_1.jpg")
    original, path = idem.rename_without_replacing, library / "IMG_1.jpg"

    def exchanging(source: idem.Entry, target: idem.Entry) -> None:
        if source.path == str(path):
            os.replace(library / "other.jpg", path)
        original(source, target)
        if source.path == str(path) and taken:
            path.write_text("a third")

    monkeypatch.setattr(idem, "rename_without_replacing", exchanging)
    reasons = refusals(acted(library, decision), library)
    monkeypatch.undo()
    trashed = library / TRASH / "IMG_1.jpg"
    if taken:
        assert reasons == {"IMG_1.jpg": f"it is {trashed} now: File exists"}
        after = {"beach.jpg": "photo", "IMG_1.jpg": "a third", f"{TRASH}/IMG_1.jpg": "another"}
    else:
        assert reasons == {"IMG_1.jpg": "it was exchanged while it was moved"}
        after = {"beach.jpg": "photo", "IMG_1.jpg": "another"}
    assert written(library) == after
    assert main([str(library), "--undo"]) == 1
    assert written(library) == after


@pytest.mark.parametrize("target", ["./beach.jpg", "equal.jpg", f"{TRASH}/lake/beach.jpg", f"{TRASH}/beach.jpg"])
@pytest.mark.parametrize("kind", ["equal", "changed", "hard link", "with another name"])
def test_undo_unlinks_nothing_but_a_copy_in_the_trash(tmp_path: Path, target: str, kind: str) -> None:
    """Whatever a crafted journal says was cut off: only the fourth target is where a copy of this file would be."""
    made(tmp_path, {"beach.jpg": "photo"})
    if "./" not in target:
        made(tmp_path, {target: "PHOTO" if kind == "changed" else "photo"})
    if kind == "hard link" and "./" not in target:
        (tmp_path / target).unlink()
        os.link(tmp_path / "beach.jpg", tmp_path / target)
    if kind == "with another name":
        os.link(tmp_path / target, tmp_path / "other.jpg")
    before = written(tmp_path)
    for name in before:
        os.utime(tmp_path / name, (1, 1))
    journal_of(tmp_path, {"event": "begin"}, cut_off_move(tmp_path, "beach.jpg", target))
    is_removed = (target, kind) == (f"{TRASH}/beach.jpg", "equal")
    if is_removed:
        del before[target]
    assert main([str(tmp_path), "--undo"]) == (not is_removed)
    assert written(tmp_path) == before


@ON_LINUX
@AS_ROOT
def test_undo_takes_one_file_in_a_folder_mounted_twice_for_one(tmp_path: Path) -> None:
    library = made(tmp_path, {"A/beach.jpg": "photo"})
    with mounted(library / "lake", "--bind", str(library / "A")):
        journal_of(library, cut_off_move(library, "lake/beach.jpg", "A/beach.jpg"))
        assert main([str(library), "--undo"]) == 1
    assert written(library) == {"A/beach.jpg": "photo"}


@pytest.mark.parametrize("scratch", ["photo", "../outside/.idem-7-7", ".idem-7-7"])
def test_undo_unlinks_no_scratch_file_that_is_not_its_own(tmp_path: Path, scratch: str) -> None:
    made(tmp_path, {"outside/.idem-7-7.part": "theirs", "outside/beach.jpg": "photo"})
    library = made(tmp_path / "lib", {"photo.part": "mine", "beach.jpg": "photo"})
    before = written(tmp_path)
    folder = ""
    if scratch == ".idem-7-7":
        (library / "link").symlink_to(tmp_path / "outside")
        folder = "link/"
    journal_of(library, cut_off_move(library, "sea.jpg", f"{folder}beach.jpg", scratch=scratch))
    main([str(library), "--undo"])
    assert sorted(written(tmp_path).values()) == sorted([*before.values(), *written(library / "__databases").values()])


def test_undo_finds_a_file_whose_time_was_rounded(tmp_path: Path) -> None:
    library = made(tmp_path, {"beach.jpg": "photo", "IMG_1.jpg": "photo"})
    acted(library, decision_of(library, "beach.jpg", "IMG_1.jpg"))
    trashed = library / TRASH / "IMG_1.jpg"
    times = trashed.stat()
    os.utime(trashed, ns=(times.st_atime_ns, times.st_mtime_ns + 1_900_000_000))
    assert main([str(library), "--undo"]) == 0
    assert written(library) == {"beach.jpg": "photo", "IMG_1.jpg": "photo"}


# ── whatever happens ──


@pytest.mark.parametrize("seeds", [range(start, start + 8) for start in range(0, 32, 8)], ids=lambda seeds: seeds[0])
def test_nothing_is_ever_lost_with_faults_at_random(
    tmp_path: Path, seeds: range, monkeypatch: pytest.MonkeyPatch, without_sync: None
) -> None:
    for seed in seeds:
        library = random_library(tmp_path / str(seed), random.Random(seed))
        states = [contents(library)]
        for round_number in range(2):
            with monkeypatch.context() as patch:
                outcome = act_with_faults(library, random.Random(seed * 10 + round_number), patch)
            now = contents(library)
            assert Counter(now.values()) == Counter(states[0].values()), seed
            live = {each for name, each in now.items() if not name.startswith(TRASH)}
            pictures = {each for each, files in Counter(states[0].values()).items() if files > 1}
            assert pictures <= live, seed
            films = {each for name, each in states[0].items() if name.endswith(".MP4")}
            assert films <= live, seed
            gone = [Path(each.path).relative_to(library).as_posix() for each in outcome.refused]
            assert set(gone) <= set(states[-1]), seed
            states.append(now)
        for state in reversed(states[:-1]):
            if contents(library) != state:
                assert main([str(library), "--undo"]) == 0, seed
            assert contents(library) == state, seed


def random_library(library: Path, rng: random.Random) -> Path:
    """Groups of equal files under all sorts of names and folders, with companions."""
    folders = ["", "lake", "lake/boat trip", "2021", "wedding ü"]
    stems = [
        "beach",
        "IMG_1",
        "IMG_2",
        "new_york_5",
        "a8f3c9e1b2",
        "beach (1)",
        "東京",
        "-dash",
        "two\nlines",
        "x" * 240,
    ]
    for group in range(rng.randint(1, 4)):
        for _ in range(rng.randint(2, 4)):
            stem, folder = rng.choice(stems), rng.choice(folders)
            path = f"{folder}/{stem}{rng.choice(['.jpg', '.JPG', '.png', '.mov'])}".lstrip("/")
            if not (library / path).exists():
                made_doubles(library, path, content=b"picture %d" % group)
            for companion in rng.sample([".xmp", ".AAE", ".jpg.json", ".CR2", ".MP4"], rng.choice([0, 1, 1, 2])):
                name = f"{folder}/{stem}{companion}".lstrip("/")
                if not (library / name).exists():
                    made_doubles(library, name, content=short_movie() * name.endswith(".MP4") + name.encode())
    return library


def act_with_faults(library: Path, rng: random.Random, patch: pytest.MonkeyPatch) -> idem.Outcome:
    """Carry out what is suggested, while renames fail at random and other files appear."""
    findings = found_in(library, "--exact")
    rename = idem.rename_without_replacing

    def unreliable(source: idem.Entry, target: idem.Entry) -> None:
        fault = rng.random()
        if fault < 0.25 and ".idem-" not in source.path + target.path:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if fault < 0.4 and ".aside" not in source.path:
            raise OSError(rng.choice([errno.EIO, errno.EACCES, errno.ENOSPC, errno.EEXIST]), "made to fail")
        rename(source, target)

    patch.setattr(idem, "rename_without_replacing", unreliable)
    return carried_out(findings)


# ── the caches ──


def test_what_is_moved_undone_and_moved_again_keeps_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1, (800, 600)), tmp_path / "lake" / "IMG_1.jpg")
    save(photo(1, (400, 300)), tmp_path / "beach.jpg")
    report(tmp_path, capsys=capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO("k\nu\nk\n"))
    assert main([str(tmp_path), "-i"]) == 0
    assert main([str(tmp_path), "--undo"]) == 0
    totals = report(tmp_path, capsys=capsys)["totals"]
    assert (totals["new"], totals["cached"]) == (0, 2)


def test_nothing_is_fingerprinted_again_because_it_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1, (800, 600)), tmp_path / "IMG_1.jpg")
    save(photo(1, (400, 300)), tmp_path / "lake" / "beach.jpg")
    clip(tmp_path / "VID_1.mp4", "-c:v", "libx264", "-crf", "12", seconds=1)
    clip(tmp_path / "lake" / "boat.mp4", "-c:v", "libx264", "-crf", "28", seconds=1)
    report(tmp_path, "--exact", capsys=capsys)
    report(tmp_path, "--video", capsys=capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO("b\nb\n"))
    assert main([str(tmp_path), "--video", "-i"]) == 0
    assert sorted(contents(tmp_path)) == [
        *(f"{TRASH}/lake/beach.jpg", f"{TRASH}/lake/boat.mp4", "lake/beach.jpg", "lake/boat.mp4"),
    ]
    for arguments in (["--video"], ["--exact"]):
        totals = report(tmp_path, *arguments, capsys=capsys)["totals"]
        assert (totals["new"], totals["cached"], totals["groups"]) == (0, 2, 0)
    assert main([str(tmp_path), "--undo"]) == main([str(tmp_path), "--undo"]) == 0
    for arguments in (["--video"], ["--exact"]):
        totals = report(tmp_path, *arguments, capsys=capsys)["totals"]
        assert (totals["new"], totals["cached"]) == (0, 4)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Present
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@pytest.fixture
def beach_library(tmp_path: Path) -> Path:
    library = tmp_path / "Photos"
    save(photo(1, (1200, 900)), library / "vacation" / "beach.jpg")
    save(photo(1, (1200, 900)).resize((600, 450)), library / "backup" / "beach_compressed.jpg")
    save(photo(2, (1200, 900)), library / "backup" / "hut.jpg")
    save(photo(2, (1200, 900)), library / "hut.jpg", quality=60)
    save(photo(3), library / "alone.jpg")
    sizes = {"vacation/beach.jpg": 3_200_000, "backup/beach_compressed.jpg": 1_800_000}
    for name, size in (sizes | {"backup/hut.jpg": 700_000, "hut.jpg": 592_000}).items():
        path = library / name
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # decoders ignore what follows the end of a JPEG
    return library


def test_the_report_has_exactly_the_documented_form(beach_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(beach_library)]) == 0
    out, err = capsys.readouterr()
    expected = f"""\
Found 2 duplicate group(s) · 4 files · 2.4 MB potentially recoverable

{"─" * 80}

Group 1 · 2 files
   3.2 MB  vacation/beach.jpg  ← largest
           {beach_library}/vacation/beach.jpg
   1.8 MB  backup/beach_compressed.jpg
           {beach_library}/backup/beach_compressed.jpg
           → keep vacation/beach.jpg, trash 1 (largest: 1.1 MP)

Group 2 · 2 files
   700 KB  backup/hut.jpg  ← largest
           {beach_library}/backup/hut.jpg
   592 KB  hut.jpg
           {beach_library}/hut.jpg
           → keep backup/hut.jpg as hut.jpg, trash 1 (less compressed; folder .)
""".replace("/", os.sep)
    assert out == expected
    assert err == f"Scanned {beach_library}: 5 found, 5 new, 0 cached\n"


def test_the_json_report_has_exactly_the_documented_fields(
    beach_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (beach_library / "broken.jpg").write_bytes(b"no picture")
    large, small = (str(beach_library / name) for name in ("vacation/beach.jpg", "backup/beach_compressed.jpg"))
    found = report(beach_library, "--limit", "1", "--delta", "100kb", capsys=capsys)
    for file in found["groups"][0]["files"]:
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00", file.pop("modified"))
    assert found == {
        "version": 1,
        "directory": str(beach_library),
        "mode": "images",
        "threshold": 0,
        "groups": [
            {
                "kind": "image",
                "recoverable_bytes": 1_800_000,
                "files": [
                    {
                        "path": large,
                        "relative": os.path.join("vacation", "beach.jpg"),
                        "bytes": 3_200_000,
                        "width": 1200,
                        "height": 900,
                        "distance": 0,
                        "look": None,
                    },
                    {
                        "path": small,
                        "relative": os.path.join("backup", "beach_compressed.jpg"),
                        "bytes": 1_800_000,
                        "width": 600,
                        "height": 450,
                        "distance": 0,
                        "look": "the same but for size and compression",
                    },
                ],
                "decision": {
                    "keep": large,
                    "target": large,
                    "trash": [small],
                    "reasons": ["largest: 1.1 MP"],
                    "loses": [],
                    "companions": [],
                },
            }
        ],
        "unreadable": [
            {"path": str(beach_library / "broken.jpg"), "reason": "not a picture in a format idem reads"},
        ],
        "totals": {"files": 6, "new": 6, "cached": 0, "groups": 1, "recoverable_bytes": 1_800_000},
    }


def test_delta_keeps_groups_whose_sizes_differ_by_that_much(
    beach_library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {
        delta: [group[0] for group in groups(beach_library, "--delta", delta, capsys=capsys)]
        for delta in ("108kb", "108001", "1.4mb", "1.5mb")
    }
    capsys.readouterr()
    assert main([str(beach_library), "--delta", "108001"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "Showing 1 of 2 groups, as --delta and --limit ask"
    assert kept == {
        "108kb": ["vacation/beach.jpg", "backup/hut.jpg"],
        "108001": ["vacation/beach.jpg"],
        "1.4mb": ["vacation/beach.jpg"],
        "1.5mb": [],
    }


def test_nothing_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr() == ("No duplicates found.\n", f"Scanned {tmp_path}: 0 found, 0 new, 0 cached\n")


@ON_LINUX
def test_no_file_name_can_forge_a_line_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\n\nGroup 9 · 2 files\n   1 B  x\x1b[1A\x1b[2K.jpg"
    save(photo(), tmp_path / forged)
    save(photo(), tmp_path / "b.png")
    (tmp_path / "bad\x1b[2J.jpg").write_bytes(b"x")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert out.count("\nGroup ") == 1
    assert len(out.splitlines()) == 10
    assert "a\\n\\nGroup 9 · 2 files\\n   1 B  x\\x1b[1A\\x1b[2K.jpg" in out


def test_a_run_with_unreadable_files_still_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_library(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"x")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Found 3 duplicate group(s)")
    assert err == (
        f"left out {tmp_path / 'bad.jpg'}: not a picture in a format idem reads\n"
        f"Scanned {tmp_path}: 7 found, 7 new, 0 cached, 1 unreadable\n"
    )


def test_output_that_nobody_reads_ends_the_run_quietly(tmp_path: Path) -> None:
    made_library(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(HERE / "idem.py"), str(tmp_path)]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr.decode()) == (1, f"Scanned {tmp_path}: 6 found, 6 new, 0 cached\n")


@ON_LINUX
def test_a_report_that_cannot_be_written_gets_one_clear_line(tmp_path: Path) -> None:
    made_library(tmp_path)
    command = [sys.executable, str(HERE / "idem.py"), str(tmp_path)]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        said = run.stderr.decode().splitlines()[1:]
        assert (run.returncode, said) == (1, ["idem: cannot write the output: No space left on device"])
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
        assert run.stdout.startswith(b"Found 3 duplicate group(s)")


@ON_LINUX
def test_closed_streams_do_not_disturb_a_run(tmp_path: Path) -> None:
    made_library(tmp_path)
    for _ in ("cold", "warm"):
        shell = f"'{sys.executable}' '{HERE / 'idem.py'}' '{tmp_path}' --json 2>&- <&-"
        run = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, check=True)
        assert len(json.loads(run.stdout)["groups"]) == 3


# ── SAFETY row 49 ──


def takes_nothing(kind: str, unbuffered: bool) -> io.TextIOWrapper:
    """A stream whose disk is `full`, or whose reader has `left`."""
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    raw = open(descriptor, "wb", buffering=0) if unbuffered else open(descriptor, "wb")  # noqa: SIM115
    return io.TextIOWrapper(cast(BinaryIO, raw), write_through=unbuffered)


@ON_LINUX
@pytest.mark.parametrize("kind", ["left", "full"])
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_that_cannot_be_written_ends_every_mode_with_one_line_at_most(
    tmp_path: Path, kind: str, unbuffered: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    before = contents(tmp_path)
    reason = "idem: cannot write the output: No space left on device\n" if kind == "full" else ""
    for mode in ("", "--json", "-i", "--undo", "--verify-trash", "--help"):
        if mode == "--undo":
            assert main([str(tmp_path), "--exact", "--json"]) == 0
            assert carried_out(found_in(tmp_path, "--exact")).refused == ()
        stream = takes_nothing(kind, unbuffered)
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            patched.setattr(sys, "stdin", io.StringIO("k\n"))
            status = main([str(tmp_path), "--exact", *([mode] if mode else [])])
        stream.close()  # it fails no more
        said = "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if "Scanned" not in line)
        assert (status, said) == (1, reason), mode
        assert contents(tmp_path) == before, mode


@ON_LINUX
def test_a_session_that_nobody_reads_ends_without_a_word_by_python(tmp_path: Path) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    command = f"yes k | '{sys.executable}' '{HERE / 'idem.py'}' '{tmp_path}' --exact -i"
    run = subprocess.run(["sh", "-c", f"{command} >/dev/full"], capture_output=True, check=False)
    said = run.stderr.decode().split("cached\n")[-1]
    assert (run.returncode, said) == (1, "idem: cannot write the output: No space left on device\n")


@ON_LINUX
def test_an_answer_that_is_no_text_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nk\n"), encoding="utf-8"))
    assert main([str(tmp_path), "--exact", "-i"]) == 0
    assert "That is no answer here" in capsys.readouterr().out
    assert (tmp_path / TRASH / "IMG_1.jpg").exists()


@ON_LINUX
def test_a_terminal_that_is_gone_ends_the_questions_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    before = contents(tmp_path)
    leader, terminal = os.openpty()
    os.close(terminal)
    with open(leader) as gone:
        monkeypatch.setattr(sys, "stdin", gone)
        assert main([str(tmp_path), "--exact", "-i"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["idem: cannot ask: Input/output error"]
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_ctrl_c_while_a_library_is_imported_ends_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    run = idem_process(tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (*run.communicate(timeout=30), run.returncode) == (b"", b"", 130)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGHUP", 129)])
def test_a_session_that_is_told_to_stop_says_what_was_done(tmp_path: Path, sent: str, status: int) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    made_doubles(tmp_path, "lake.jpg", "IMG_2.jpg", content=b"other")
    with asking(tmp_path) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"k\n")
        process.stdin.flush()
        while b"trashed" not in process.stdout.readline():
            pass
        process.send_signal(getattr(signal, sent))
        out, err = process.communicate(timeout=30)
        assert process.returncode == status
        assert b"1 trashed, 0 renamed" in out
        assert b"Traceback" not in err


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Command line
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "65"], "argument -t/--threshold: '65' is not a whole number from 0 to 64"),
        (["-t", "1.5"], "argument -t/--threshold: '1.5' is not a whole number from 0 to 64"),
        (["--limit", "0"], "argument -l/--limit: '0' is not a whole number of 1 or more"),
        (["--jobs", "-1"], "argument -j/--jobs: '-1' is not a whole number from 1 to 256"),
        (["--delta", "lots"], "argument -d/--delta: 'lots' is not a size such as 100, 50kb, 2mb or 1.5gb"),
        (["--thresh", "1"], "unrecognized arguments: --thresh 1"),
        (["--cache"], "argument -c/--cache: expected one argument"),
    ],
)
def test_a_wrong_value_gets_one_clear_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *arguments]) == 2
    assert capsys.readouterr() == ("", f"idem: {message}\n")


def test_a_directory_that_cannot_be_used_gets_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path / "file")
    for arguments, message in [
        ([str(tmp_path / "none")], f"cannot scan {tmp_path / 'none'}: there is no such folder"),
        ([str(tmp_path / "file")], f"cannot scan {tmp_path / 'file'}: it is not a folder"),
        ([""], "cannot scan : there is no such folder"),
        ([str(tmp_path), "-c", ""], "cannot use '' as --cache: No such file or directory"),
        ([str(tmp_path), "-c", "/dev/null/x"], "cannot use '/dev/null/x' as --cache: Not a directory"),
        ([str(tmp_path), "-c", str(tmp_path / "file")], f"cannot use {tmp_path / 'file'} as --cache: it is a file"),
    ]:
        assert main(arguments) == 2
        assert capsys.readouterr() == ("", f"idem: {message}\n")


def test_the_inside_of_an_application_library_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = tmp_path / "Mine.photoslibrary" / "originals"
    touch(inside / "a.jpg")
    assert main([str(inside)]) == 2
    assert capsys.readouterr().err == f"idem: cannot scan {inside}: it belongs to a library of another application\n"
    assert sorted(inside.iterdir()) == [inside / "a.jpg"]


@ON_LINUX
def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    import fcntl  # Windows has neither
    import termios

    made_library(tmp_path, 20)
    leader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, str(HERE / "idem.py"), str(tmp_path)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=True)
    shown = os.read(leader, 1 << 16).decode()
    assert re.search(r"\d+/40 \[\d\d:\d\d<.*photo/s\]", shown)
    assert b"photo/s" not in run.stdout


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("usage: python idem.py DIR", "example:", "--threshold", "--delta", "--limit", "--cache", "--jobs"):
        assert text in out


def test_a_second_run_on_the_same_library_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_library(tmp_path)
    with idem.run_lock(str(tmp_path / "__databases")):
        process = idem_process(tmp_path)
        out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode() == f"idem: another run of idem is using {tmp_path / '__databases'}\n"
    assert main([str(tmp_path)]) == 0


def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(idem.REQUIRED_MODULES, "no_such_module", "No-Such-Package")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "idem: missing No-Such-Package: python -m pip install No-Such-Package\n"


@ON_LINUX
@pytest.mark.parametrize(
    ("name", "module"),
    [
        *(("a.heic", "pillow_heif"), ("a.HIF", "pillow_heif")),
        pytest.param(
            *("a.avif", "PIL.AvifImagePlugin"),
            marks=pytest.mark.skipif("avif" not in FORMATS, reason="this Pillow writes no AVIF"),
        ),
    ],
)
def test_pictures_without_their_decoder_are_named_with_what_they_need(
    tmp_path: Path, name: str, module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = {
        "pillow_heif": "HEIC pictures need pillow-heif: python -m pip install pillow-heif",
        "PIL.AvifImagePlugin": "AVIF pictures need a newer Pillow: python -m pip install -U Pillow",
    }[module]
    save(photo(), tmp_path / name)
    save(photo(), tmp_path / "b.jpg")
    save(photo(), tmp_path / "c.png")
    original = idem.can_import
    monkeypatch.setattr(idem, "can_import", lambda wanted: wanted != module and original(wanted))
    idem.usable_formats.cache_clear()
    try:
        found = report(tmp_path, capsys=capsys)
    finally:
        idem.usable_formats.cache_clear()
    assert found["unreadable"] == [{"path": str(tmp_path / name), "reason": reason}]
    assert found["totals"]["groups"] == 1


def test_the_script_metadata_and_requirements_name_the_same_packages() -> None:
    script = (HERE / "idem.py").read_text("utf-8")
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", script)
    assert block is not None
    metadata = re.findall(r'"([^"]+)",', block[1])
    required = (HERE / "requirements.txt").read_text("utf-8").split("# To test it")[0]
    assert metadata == [line for line in required.splitlines() if line and not line.startswith("#")]
    assert '# requires-python = ">=3.10"' in block[1]


# ── places ──


@ON_LINUX
def test_no_home_and_no_locale_change_nothing(tmp_path: Path) -> None:
    made_doubles(tmp_path, "Zürich 東京.jpg", "b/é.png")
    bare = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = idem_process(tmp_path, "--exact", "--json", env=bare)
    out, err = run.communicate()
    assert (run.returncode, err.decode()) == (0, f"Scanned {tmp_path}: 2 found, 2 new, 0 cached\n")
    names = [os.fsencode(each["relative"]).decode() for each in json.loads(out)["groups"][0]["files"]]
    assert sorted(names) == ["Zürich 東京.jpg", "b/é.png"]


def test_files_of_the_future_are_cached_moved_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    for name in ("beach.jpg", "IMG_1.jpg"):  # as after a clock was set back
        os.utime(tmp_path / name, (4_000_000_000, 4_000_000_000))
    before = contents(tmp_path)
    assert main([str(tmp_path), "--exact"]) == 0
    assert answered(tmp_path, "k", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert list(contents(tmp_path)) != list(before)
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before
    capsys.readouterr()
    assert main([str(tmp_path), "--exact"]) == 0
    assert "2 found, 0 new, 2 cached" in capsys.readouterr().err


@ON_LINUX
def test_paths_of_nearly_4096_bytes_work_and_longer_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{tmp_path}/{('d' * 200 + '/') * 20}"[:3990].rstrip("/")
    made_doubles(Path(folder), "1.jpg", "2.jpg")
    deep = os.open(folder, os.O_RDONLY)
    os.mkdir("e" * 200, dir_fd=deep)
    os.close(deep)
    trashed = Path(folder.replace(str(tmp_path), str(tmp_path / TRASH))) / "2.jpg"
    monkeypatch.setattr(sys, "stdin", io.StringIO("k\n"))
    assert main([str(tmp_path), "--exact", "-i"]) == 0
    assert f"left out {folder}/{'e' * 200}: File name too long\n" in capsys.readouterr().err
    assert (trashed.read_bytes(), sorted(os.listdir(folder))) == (b"double", ["1.jpg", "e" * 200])
    assert main([str(tmp_path), "--undo"]) == 0
    assert (trashed.exists(), sorted(os.listdir(folder))) == (False, ["1.jpg", "2.jpg", "e" * 200])


@ON_LINUX
@AS_ROOT
def test_the_root_of_a_drive_may_be_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):
        made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
        before = contents(tmp_path)
        assert answered(tmp_path, "k", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
        assert (tmp_path / TRASH / "IMG_1.jpg").exists()
        assert main([str(tmp_path), "--undo"]) == 0
        assert contents(tmp_path) == before


@pytest.mark.storm
def test_a_folder_of_many_files_is_scanned_in_bounded_memory(tmp_path: Path) -> None:
    import resource  # Windows has none

    many = 20_000 * int(os.environ.get("IDEM_ROUNDS", "0")) or 500
    for number in range(many):
        (tmp_path / f"IMG_{number:06}.jpg").write_bytes(b"%d" % (number // 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = idem.scan(str(tmp_path), idem.IMAGE_SUFFIXES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(found.files) == many
    assert grown * 1024 < 64_000_000 + 2_000 * many


# ── questions in the terminal ──


def answered(
    library: Path, answers: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Exit status and printed lines of an interactive run with these answers, one a line."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers.split())))
    status = main([str(library), "--interactive", *(arguments or ("--exact",))])
    return status, capsys.readouterr().out.splitlines()


def test_the_terminal_shows_files_folders_and_the_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = save(photo(1, (1600, 1200)), tmp_path / "IMG_1.jpg")
    small = save(photo(1, (800, 600)), tmp_path / "lake" / "beach.jpg")
    for path in (large, small):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    date = datetime.fromtimestamp(1_600_000_000).strftime("%Y-%m-%d %H:%M")
    sizes = [idem.readable_size(path.stat().st_size) for path in (large, small)]
    status, lines = answered(tmp_path, "b", "-t", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 0
    assert lines == [
        "─" * 80,
        "Group 1 of 1 · 2 files",
        "",
        f"{sizes[0]:>9}    1600 x 1200  {date}  IMG_1.jpg  ← keep",
        f"{sizes[1]:>9}      800 x 600  {date}  {os.path.join('lake', 'beach.jpg')}",
        "",
        "   a) .",
        "   b) lake  ← suggested",
        "",
        f"Suggestion: keep IMG_1.jpg as {os.path.join('lake', 'beach.jpg')}, trash 1 "
        "(largest: 1.9 MP; name from beach.jpg; folder lake)",
        "a folder's letters keep the best copy there, k keep as suggested, s skip, u undo the last group, x stop",
        f"> trashed   {os.path.join('lake', 'beach.jpg')}",
        f"renamed   IMG_1.jpg to {os.path.join('lake', 'beach.jpg')}",
        "─" * 80,
        f"1 trashed, 1 renamed, 0 skipped, 0 failed, {sizes[1]} freed once the trash is emptied",
        f"The files are in {tmp_path / TRASH}",
        f"To put the last group back, and so on one by one: python idem.py {tmp_path} --undo",
    ]


def test_a_letter_chooses_the_folder_for_the_best_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1, (1600, 1200)), tmp_path / "IMG_1.jpg")
    save(photo(1, (800, 600)), tmp_path / "lake" / "beach.jpg")
    before = contents(tmp_path)
    assert answered(tmp_path, "a", "-t", "0", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert contents(tmp_path) == {
        "beach.jpg": before["IMG_1.jpg"],
        f"{TRASH}/lake/beach.jpg": before["lake/beach.jpg"],
    }


def test_groups_can_be_kept_skipped_undone_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        made_doubles(tmp_path, f"beach {number}.jpg", f"IMG_{number}.jpg", content=bytes(9 - number))
    before = contents(tmp_path)
    for answers, trashed, skipped in (
        ("x", [], 0),
        ("k x", [1], 0),
        ("k s k x", [1, 3], 1),
        ("k k u s k k", [1, 3, 4], 1),
        ("k k u u x", [], 0),
        ("u k u k", [1], 0),
        ("s u k s s s", [2], 4 - 1),
        ("nonsense K", [1], 0),
        ("k k k k", [1, 2, 3, 4], 0),
    ):
        status, lines = answered(tmp_path, answers, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 0
        assert [number for number in range(1, 5) if (tmp_path / TRASH / f"IMG_{number}.jpg").exists()] == trashed
        assert any(line.startswith(f"{len(trashed)} trashed, 0 renamed, {skipped} skipped, 0 failed") for line in lines)
        for _ in trashed:
            assert main([str(tmp_path), "--undo"]) == 0
        assert contents(tmp_path) == before, answers


def test_more_than_26_folders_have_letters_and_none_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, *(f"{number:02}/IMG_{number}.jpg" for number in range(30)))
    labels = list(idem.folder_labels(made_group(*(f"{number:02}/a.jpg" for number in range(30)))))
    assert labels[:24] == [*"abcdefghijlmnopqrtvwyz", "aa", "ab"]
    assert answered(tmp_path, labels[29], monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert [name for name in contents(tmp_path) if not name.startswith(TRASH)] == ["29/IMG_29.jpg"]


def test_what_the_terminal_cannot_put_back_it_tries_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    made_doubles(tmp_path, "last.jpg", "last.png", content=b"1")
    before = contents(tmp_path)

    def answers() -> Iterator[str]:
        yield "k"
        (tmp_path / "IMG_1.jpg").write_bytes(b"in the way")
        yield "u"
        (tmp_path / "IMG_1.jpg").unlink()
        yield "u"
        yield "x"

    given = answers()
    monkeypatch.setattr("builtins.input", lambda _prompt: next(given))
    assert main([str(tmp_path), "--exact", "-i"]) == 1  # something was refused
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("put back", "refused", "0 tr"))]
    refused = f"refused   {os.path.join(TRASH, 'IMG_1.jpg')}: not put back: "
    assert [line[: len(refused)] for line in lines[:3]] == ["put back  IMG_2.jpg", refused, "put back  IMG_1.jpg"]
    assert lines[3].startswith("0 trashed, 0 renamed, 0 skipped, 0 failed")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stdin", ["empty", "closed"])
def test_without_a_terminal_and_without_answers_nothing_is_asked(
    tmp_path: Path, stdin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg")
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("") if stdin == "empty" else None)
    assert main([str(tmp_path), "--exact", "-i"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "idem: cannot ask: standard input is not a terminal and holds no answers"
    )
    assert contents(tmp_path) == before
    sys.stdin.close()


def test_with_nothing_to_ask_the_terminal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "beach.jpg")
    assert answered(tmp_path, "", monkeypatch=monkeypatch, capsys=capsys) == (0, ["No duplicates found."])


@pytest.mark.parametrize("pair", [("-i", "--undo"), ("--undo", "--verify-trash"), ("-i", "--json")])
def test_only_one_thing_can_be_asked_for(
    tmp_path: Path, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *pair]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ── was anything trashed by mistake? ──


def verified(library: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    return main([str(library), "--verify-trash", *arguments]), capsys.readouterr().out.splitlines()


def test_an_empty_or_missing_trash_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(), tmp_path / "a.jpg")
    assert verified(tmp_path, capsys=capsys) == (0, ["There is no trash: nothing to verify."])
    (tmp_path / TRASH).mkdir()
    assert verified(tmp_path, capsys=capsys) == (0, ["0 files in the trash verified, 0 not"])


def test_what_has_a_live_copy_is_verified_and_all_else_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1), tmp_path / "a.jpg")
    save(photo(1).resize((320, 240)), tmp_path / TRASH / "sub" / "small.jpg")
    clip(tmp_path / "b.mp4", "-c:v", "libx264", "-crf", "14")
    clip(tmp_path / TRASH / "b.webm", "-c:v", "libvpx-vp9", "-b:v", "300k")
    assert verified(tmp_path, capsys=capsys) == (0, ["2 files in the trash verified, 0 not"])
    save(photo(2), tmp_path / TRASH / "other.png")
    save(photo(2), tmp_path / TRASH / "its copy.jpg")
    save(photo(1).convert("L"), tmp_path / TRASH / "grey.jpg")
    (tmp_path / TRASH / "broken.jpg").write_bytes(b"no picture")
    clip(tmp_path / TRASH / "other.mp4", seed=5)
    reason = "there is no copy of it in the library"
    expected = {
        os.path.join(TRASH, "broken.jpg"): "not a picture in a format idem reads",
        **{os.path.join(TRASH, name): reason for name in ("grey.jpg", "its copy.jpg", "other.mp4", "other.png")},
    }
    status, lines = verified(tmp_path, capsys=capsys)
    assert (status, lines[-1]) == (1, "2 files in the trash verified, 5 not")
    assert dict(line.split(": ", 1) for line in lines[:-1]) == expected
    del expected[os.path.join(TRASH, "grey.jpg")]
    status, lines = verified(tmp_path, "--threshold", "8", capsys=capsys)
    assert dict(line.split(": ", 1) for line in lines[:-1]) == expected


def test_what_no_picture_is_compared_with_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1), tmp_path / "a.jpg")
    trash = tmp_path / TRASH
    made_doubles(trash, "a.cr2", "a.xmp", "b.psd", content=b"no picture")
    made_doubles(tmp_path, "elsewhere/b.XMP", "elsewhere/c.xmp", content=b"no picture")  # a.xmp is live, too
    for name in (".thumbnails/a.jpg", "My.photoslibrary/a.jpg", "._a.jpg"):
        save(photo(1), trash / name)
    (trash / "link.jpg").symlink_to(tmp_path / "a.jpg")
    status, lines = verified(tmp_path, capsys=capsys)
    assert (status, lines[-1]) == (1, "0 files in the trash verified, 0 not, 6 of other kinds not checked")
    names = [line.partition(": not checked: ")[0] for line in lines[:-1]]
    expected = ["._a.jpg", ".thumbnails/a.jpg", "My.photoslibrary/a.jpg", "a.cr2", "b.psd", "link.jpg"]
    assert names == [os.path.join(TRASH, *name.split("/")) for name in expected]


def test_a_live_copy_worse_than_the_trashed_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1), tmp_path / TRASH / "large.jpg", quality=92)
    save(photo(1).resize((160, 120)), tmp_path / "left.jpg", quality=90)
    save(photo(2), tmp_path / TRASH / "fine.jpg", quality=97)
    save(photo(2), tmp_path / "coarse.jpg", quality=60)
    sizes = [
        idem.readable_size(each.stat().st_size) for each in (tmp_path / "coarse.jpg", tmp_path / TRASH / "fine.jpg")
    ]
    assert verified(tmp_path, capsys=capsys) == (
        1,
        [
            f"{os.path.join(TRASH, 'fine.jpg')}: the copy that is left, coarse.jpg, has {sizes[0]} of {sizes[1]}",
            f"{os.path.join(TRASH, 'large.jpg')}: the copy that is left, left.jpg, has 160 x 120",
            "0 files in the trash verified, 2 not",
        ],
    )


def test_a_smaller_camera_file_does_not_verify_a_larger_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though it is taken for the original: nobody knows for certain that the larger one shows no more."""
    exif = exif_of("2021:07:05 12:30:00")
    save(photo(1), tmp_path / TRASH / "export.jpg", quality=97)
    save(photo(1).resize((400, 300)), tmp_path / "IMG_1.jpg", quality=90, exif=exif)
    save(photo(2), tmp_path / TRASH / "again.jpg", quality=100)
    save(photo(2), tmp_path / "IMG_2.jpg", quality=70, exif=exif)
    assert verified(tmp_path, capsys=capsys) == (
        1,
        [
            f"{os.path.join(TRASH, 'export.jpg')}: the copy that is left, IMG_1.jpg, has 400 x 300",
            "1 file in the trash verified, 1 not",
        ],
    )


def test_a_coarser_live_copy_is_told_whatever_its_suffix_and_whatever_follows_its_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = save(photo(1), tmp_path / TRASH / "a.jpg", quality=97)
    for name, tail in (("a.jpeg", b""), ("a.jpg", bytes(300_000))):
        live = save(photo(1), tmp_path / name, quality=60)
        live.write_bytes(live.read_bytes() + tail)
        sizes = [idem.readable_size(fingerprint(each).integrity.data_bytes) for each in (live, gone)]
        line, _ = verified(tmp_path, capsys=capsys)[1]
        assert line == f"{os.path.join(TRASH, 'a.jpg')}: the copy that is left, {name}, has {sizes[0]} of {sizes[1]}"
        live.unlink()
    save(photo(1), gone, qtables=[[4] + [16] * 63] * 2)
    save(photo(1), tmp_path / "b.jpg", qtables=[[9] * 64] * 2)  # nearly as many bytes
    line, _ = verified(tmp_path, capsys=capsys)[1]
    assert line == f"{os.path.join(TRASH, 'a.jpg')}: the copy that is left, b.jpg, has a much coarser picture"


def test_a_second_name_of_the_trashed_file_is_no_copy_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = save(photo(1), tmp_path / TRASH / "a.jpg")
    os.link(gone, tmp_path / "a.jpg")
    assert verified(tmp_path, capsys=capsys) == (
        1,
        [
            f"{os.path.join(TRASH, 'a.jpg')}: there is no copy of it in the library",
            "0 files in the trash verified, 1 not",
        ],
    )


def test_the_trash_can_be_verified_by_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photo(1), tmp_path / "a.jpg")
    (tmp_path / TRASH).mkdir()
    shutil.copy(tmp_path / "a.jpg", tmp_path / TRASH / "same.jpg")
    save(photo(1), tmp_path / TRASH / "other quality.jpg", quality=50)
    save(photo(2), tmp_path / TRASH / "1.jpg")
    shutil.copy(tmp_path / TRASH / "1.jpg", tmp_path / TRASH / "2.jpg")
    status, lines = verified(tmp_path, "--exact", capsys=capsys)
    assert status == 1
    assert lines == [
        *(
            f"{os.path.join(TRASH, name)}: there is no copy of it in the library"
            for name in ("1.jpg", "2.jpg", "other quality.jpg")
        ),
        "1 file in the trash verified, 3 not",
    ]


@pytest.mark.parametrize("suffix", ["jpg", "mp4"])
def test_large_files_in_the_trash_are_verified_by_all_bytes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(random.Random(1).randbytes(1 << 20) * 20)
    made_doubles(tmp_path, f"a.{suffix}", f"{TRASH}/same.{suffix}", content=bytes(content))
    content[5 << 20] ^= 1  # between the windows that are summed
    made_doubles(tmp_path, f"{TRASH}/other.{suffix}", content=bytes(content))
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: None)
    status, lines = verified(tmp_path, *(["--exact"] if suffix == "jpg" else []), capsys=capsys)
    assert (status, lines) == (
        1,
        [
            f"{os.path.join(TRASH, f'other.{suffix}')}: there is no copy of it in the library",
            "1 file in the trash verified, 1 not",
        ],
    )


def test_without_ffmpeg_trashed_videos_are_verified_by_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    made_doubles(library, "a.mp4", f"{TRASH}/a.mp4", content=b"video")
    made_doubles(library, f"{TRASH}/b.mp4", content=b"other")
    save(photo(1), library / "a.jpg")
    save(photo(1), library / TRASH / "a.png")
    monkeypatch.setattr(idem, "ffmpeg_path", lambda: None)
    status, lines = verified(library, capsys=capsys)
    assert status == 1
    assert lines == [
        f"{os.path.join(TRASH, 'b.mp4')}: there is no copy of it in the library",
        "2 files in the trash verified, 1 not",
    ]


# ── files that are equal byte for byte ──


def checksum_database(library: Path) -> Path:
    return library / "__databases" / "all_media_sha_hash_db.csv"


def test_exact_finds_equal_images_and_videos_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photo(1), tmp_path / "a.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "b.JPEG")
    save(photo(1), tmp_path / "other_quality.jpg", quality=60)
    for name in ("c.mp4", "sub/d.mov"):
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(b"equal bytes" * 10_000)
    (tmp_path / "e.mkv").write_bytes(b"equal bytes" * 9_999 + b"other bytes")
    for name in ("empty.jpg", "empty.png"):
        (tmp_path / name).touch()
    found = report(tmp_path, "--exact", capsys=capsys)
    assert (found["mode"], found["threshold"]) == ("exact", 0)
    assert [(group["kind"], [file["relative"] for file in group["files"]]) for group in found["groups"]] == [
        ("image", ["a.jpg", "b.JPEG"]),
        ("video", [os.path.join("sub", "d.mov"), "c.mp4"]),
    ]
    assert {file["width"] for group in found["groups"] for file in group["files"]} == {None}
    assert [os.path.basename(item["path"]) for item in found["unreadable"]] == ["empty.jpg", "empty.png"]
    assert not cache_file(tmp_path).exists()


def test_the_checksum_database_has_the_shared_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "b.mp4").write_bytes(b"22")
    report(tmp_path, "--exact", capsys=capsys)
    rows = list(csv.DictReader(checksum_database(tmp_path).read_text("utf-8").splitlines()))
    times = {path.name: path.stat() for path in tmp_path.iterdir() if path.is_file()}
    for row in rows:  # other tools know microseconds: what stands behind them is no part of the time
        assert len(row["ctime"].partition(".")[2]) == len(row["mtime"].partition(".")[2]) == 9
        row |= {name: row[name][:-3] for name in ("ctime", "mtime")}
    assert rows == [
        {
            "path": os.path.splitdrive(str(tmp_path / name))[1],
            "size": str(len(content)),
            "ctime": f"{times[name].st_ctime_ns // 1000 / 1e6:.6f}",
            "mtime": f"{times[name].st_mtime_ns // 1000 / 1e6:.6f}",
            "checksum": hashlib.sha256(len(content).to_bytes(8, "little") + content).hexdigest(),
        }
        for name, content in (("a.jpg", b"1"), ("b.mp4", b"22"))
    ]


def test_a_database_that_another_tool_wrote_is_used_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,size,ctime,mtime,checksum"]
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
        each = (tmp_path / name).stat()
        rows.append(f"{os.path.splitdrive(tmp_path / name)[1]},5,{each.st_ctime},{each.st_mtime},{'AB' * 32}")
    checksum_database(tmp_path).parent.mkdir()
    checksum_database(tmp_path).write_text("\r\n".join(rows) + "\r\n", "utf-8", newline="")
    before = checksum_database(tmp_path).read_bytes()
    found = report(tmp_path, "--exact", capsys=capsys)
    assert (found["totals"]["cached"], found["totals"]["groups"]) == (2, 1)  # as the database claims, so not read
    assert checksum_database(tmp_path).read_bytes() == before


def test_a_checksum_row_that_is_none_is_dropped_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"equal")
    first = report(tmp_path, "--exact", capsys=capsys)
    good = checksum_database(tmp_path).read_text("utf-8")
    checksum = hashlib.sha256((5).to_bytes(8, "little") + b"equal").hexdigest()
    for wrong in ("", checksum[:-1], "g" * 64, checksum + "00"):
        checksum_database(tmp_path).write_text(good.replace(checksum, wrong, 1), "utf-8")
        again = report(tmp_path, "--exact", capsys=capsys)
        assert (again["totals"]["new"], again["groups"]) == (1, first["groups"])
        assert sorted(checksum_database(tmp_path).read_text("utf-8").splitlines()) == sorted(good.splitlines())


def test_a_shared_row_is_checked_by_the_decimals_of_both_times(tmp_path: Path) -> None:
    file = MediaFile("/lib/a.jpg", 5, 1_600_000_000_123_456_789, 1_700_000_000_987_654_321, 1, 1)
    row = idem.CHECKSUM_CACHE.encoded(file, idem.Checksum("ab" * 32)).decode()
    times = re.findall(r"\.[0-9]{9}", row)
    assert len(times) == 2
    short = [time[:-3] for time in times]

    def is_taken(*written: str) -> bool:
        changed = row.replace(times[0], written[0]).replace(times[1], written[1])
        (tmp_path / idem.CHECKSUM_CACHE.name).write_bytes(idem.CHECKSUM_CACHE.header + changed.encode())
        scanned = idem.Scan("/lib", (file,), (), ())
        return bool(known_in(idem.FingerprintCache(idem.CHECKSUM_CACHE, str(tmp_path), scanned)))

    assert is_taken(*times)
    assert is_taken(*short)  # as another tool writes it
    assert is_taken(*(time[:-2] for time in times))
    assert not is_taken(times[0], short[1])
    assert not is_taken(short[0], times[1])
    assert not is_taken(times[0], f"{short[1]}{(int(times[1][-3:]) + 1) % 1000:03d}")


def test_large_files_that_differ_outside_the_windows_are_no_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mib = 1 << 20
    content = bytearray(random.Random(1).randbytes(mib) * 40)
    (tmp_path / "a.mov").write_bytes(content)
    content[6 * mib] ^= 1
    (tmp_path / "b.mov").write_bytes(content)
    for _ in range(2):
        assert groups(tmp_path, "--exact", capsys=capsys) == []
    rows = csv.DictReader(checksum_database(tmp_path).read_text("utf-8").splitlines())
    assert len({row["checksum"] for row in rows}) == 1


def test_large_equal_files_are_compared_whole_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = random.Random(2).randbytes(1 << 20) * 40
    for name in ("a.mov", "b.mov", "c.mp4"):
        (tmp_path / name).write_bytes(content)
    assert groups(tmp_path, "--exact", capsys=capsys) == [["a.mov", "b.mov", "c.mp4"]]

    def read(*_: Any) -> Any:
        raise AssertionError("nothing is to be read again")

    monkeypatch.setattr(idem, "Worker", read)
    assert groups(tmp_path, "--exact", capsys=capsys) == [["a.mov", "b.mov", "c.mp4"]]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell when the status of a file changed")
@pytest.mark.parametrize("size", [6, 13_000_000])
def test_a_file_edited_under_its_old_time_is_not_taken_for_equal(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "a.jpg", "b.jpg", "c.jpg", content=b"x" * size)
    assert groups(tmp_path, "--exact", capsys=capsys) == [["a.jpg", "b.jpg", "c.jpg"]]
    times = (tmp_path / "a.jpg").stat()
    with open(tmp_path / "a.jpg", "r+b") as stream:
        stream.seek(size // 3)
        stream.write(b"y")
    os.utime(tmp_path / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.chmod(tmp_path / "b.jpg", 0o600)
    for _ in range(2):
        assert groups(tmp_path, "--exact", capsys=capsys) == [["b.jpg", "c.jpg"]]


def test_a_namesake_of_the_size_and_time_of_one_that_went_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_doubles(tmp_path, "1/IMG_1.jpg", "3/x.jpg")
    report(tmp_path, "--exact", capsys=capsys)
    times = (tmp_path / "1" / "IMG_1.jpg").stat()
    (tmp_path / "1" / "IMG_1.jpg").unlink()
    made_doubles(tmp_path, "2/IMG_1.jpg", content=b"other!")
    os.utime(tmp_path / "2" / "IMG_1.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert groups(tmp_path, "--exact", capsys=capsys) == []


def test_files_whose_size_no_other_has_are_read_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in {"a": 100, "b": 20_000_000, "c": 300, "d": 20_000_000, "e": 100, "f": 500}.items():
        (tmp_path / f"{name}.jpg").write_bytes(b"x" * size)
    read: list[list[str]] = []
    compute = idem.compute

    def noted(pool: Any, work: Any, files: Sequence[MediaFile], take: Any) -> None:
        read.extend([[Path(file.path).stem for file in files]] if files else [])
        compute(pool, work, files, take)

    monkeypatch.setattr(idem, "compute", noted)
    assert groups(tmp_path, "--exact", capsys=capsys) == [["b.jpg", "d.jpg"], ["a.jpg", "e.jpg"]]
    assert read == [["a", "b", "d", "e"], ["b", "d"], ["c", "f"]]


def test_options_without_effect_beside_exact_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"equal")
    assert main([str(tmp_path), "--exact", "-t", "0", "--delta", "2mb", "--video"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Found 1 duplicate group(s) · 2 files · 5 B potentially recoverable")
    assert "largest" not in out
    assert err.splitlines()[0] == "--threshold and --delta and --video have no effect with --exact"
    assert main([str(tmp_path), "--exact", "-t", "3"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "--threshold has no effect with --exact"


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Review
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

# ── the review, without a server ──


def review_of(library: Path, *arguments: str, page_size: int = 10) -> idem.Review:
    """A review of what a run finds; by checksums, unless other arguments are given."""
    findings = found_in(library, *(arguments or ("--exact",)))
    return idem.Review(findings, idem.taken_names(findings.root), review_pool(), page_size)


@functools.cache
def review_pool() -> idem.Pool:
    """The workers of all reviews: starting some for each would take longest."""
    return idem.Pool(2, threaded=True)


@pytest.fixture(scope="session", autouse=True)
def _review_pool_closed() -> Iterator[None]:
    yield
    if review_pool.cache_info().currsize:
        review_pool().close()


def many_doubles(library: Path, groups: int, copies: int = 2) -> Path:
    """Groups of files that are equal and no pictures, the first group being the largest."""
    for group in range(groups):
        content = f"{group} ".encode() * (groups - group + 10)
        made_doubles(library, *(f"{copy}/{group:03}.jpg" for copy in range(copies)), content=content)
    return library


def page_of(review: idem.Review, sort: str = "space", at: int | None = None, step: str = "at") -> dict[str, Any]:
    return review.page(sort, "both", "open", at, step)


def numbers(page: dict[str, Any]) -> list[int]:
    return [group["number"] for group in page["groups"]]


def kept(review: idem.Review) -> dict[int, idem.Choice]:
    """What a page that nobody has changed confirms."""
    return {number: review.choices[number] for number in numbers(page_of(review))}


def media(library: Path) -> Counter[str]:
    """What is in the library and its trash, wherever: the same before and after, or something was lost."""
    return Counter(contents(library).values())


def rejection(call: Callable[[], object]) -> tuple[int, str]:
    """The status and reason with which the call is rejected."""
    with pytest.raises(idem.Rejected) as caught:
        call()
    return caught.value.status, str(caught.value)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes meanwhile, as on a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("sort", list(idem.SORTS))
def test_paging_shows_every_group_once_even_when_some_are_skipped(tmp_path: Path, sort: str) -> None:
    review = review_of(many_doubles(tmp_path, 23), page_size=5)
    order = list(review.orders[sort])
    page = page_of(review, sort)
    seen = numbers(page)
    while len(seen) < 23:
        for number in numbers(page)[1:3]:
            review.set_choice(number, review.choices[number], True)
        page = page_of(review, sort, at=seen[-1], step="after")
        seen += numbers(page)
    assert seen == order
    left = [number for number in order if number not in review.skipped]
    seen = numbers(page)
    while seen[0] != left[0]:
        before = numbers(page_of(review, sort, at=seen[0], step="before"))
        assert before[0] == left[0] or not set(before) & set(seen)  # the first page is always full
        seen = [number for number in before if number not in seen] + seen
    assert [number for number in seen if number in left] == left
    skipped = [number for number in order if number in review.skipped]
    assert numbers(review.page(sort, "both", "skipped", None, "at")) == skipped[:5]


def test_the_first_and_the_last_page_are_the_ends(tmp_path: Path) -> None:
    review = review_of(many_doubles(tmp_path, 7), page_size=3)
    first = numbers(page_of(review))
    last = numbers(page_of(review, at=first[-1], step="after"))
    end = page_of(review, at=last[-1], step="after")
    assert (first, last, numbers(end)) == ([0, 1, 2], [3, 4, 5], [6])
    assert (end["page"], end["pages"], end["first"]) == (3, 3, 7)
    assert numbers(page_of(review, at=6, step="after")) == [4, 5, 6]  # never an empty page while there are groups
    assert numbers(page_of(review, at=0, step="before")) == first
    assert numbers(page_of(review, at=4)) == [4, 5, 6]
    assert numbers(page_of(review, at=99)) == first


def test_groups_can_be_sorted_and_told_apart_by_kind(tmp_path: Path) -> None:
    made_doubles(tmp_path, "b/1.jpg", "b/2.jpg", content=b"large" * 100)
    made_doubles(tmp_path, "a/1.mp4", "a/2.mp4", content=b"middle" * 10)
    made_doubles(tmp_path, "c/1.jpg", "c/2.jpg", "c/3.jpg", content=b"small")
    review = review_of(tmp_path)
    firsts = [Path(group.replicas[0].file.path).parent.name for group in review.groups]
    orders = {sort: "".join(firsts[number] for number in numbers(page_of(review, sort))) for sort in idem.SORTS}
    assert orders == {"space": "bac", "folder": "abc", "copies": "cba"}  # ties stay as reported: images first
    images, videos = (review.page("space", kind, "open", None, "at") for kind in ("image", "video"))
    assert sorted(firsts[number] for number in numbers(images)) == ["b", "c"]
    assert [firsts[number] for number in numbers(videos)] == ["a"]
    assert images["left"] == {"groups": 2, "files": 5, "bytes": 510}
    assert videos["left"] == {"groups": 1, "files": 2, "bytes": 60}


def test_a_choice_gives_the_words_and_paths_that_the_page_shows(tmp_path: Path) -> None:
    for name, side in (("IMG_1.jpg", 1600), ("vacation/IMG_2.jpg", 800), ("beach_party.webp", 400)):
        save(photo(1, (side, side * 3 // 4)), tmp_path / name)
    review = review_of(tmp_path, "--threshold", "0")
    page = page_of(review)
    (shown,) = page["groups"]
    sizes = [each["bytes"] for each in shown["replicas"]]
    names = [os.path.join(each["folder"], each["name"]) for each in shown["replicas"]]
    assert names == ["IMG_1.jpg", os.path.join("vacation", "IMG_2.jpg"), "beach_party.webp"]
    told = ("keeper", "keep", "name", "folder", "named", "placed", "keeps", "target", "stays", "trash", "bytes")
    suggested = {"keeper": 0, "keep": [0], "name": None, "folder": None, "named": 2, "placed": 1}
    suggested |= {"target": os.path.join("vacation", "beach_party.jpg"), "trash": names[1:], "bytes": sum(sizes[1:])}
    suggested |= {"keeps": names[0], "stays": []}
    assert {each: shown[each] for each in told} == suggested
    as_it_is = review.set_choice(0, idem.Choice(frozenset({0}), 0, 0), False)
    chosen = suggested | {"name": 0, "folder": 0, "named": 0, "placed": 0, "target": ""}
    assert {each: as_it_is[each] for each in told} == chosen
    smallest = review.set_choice(0, idem.Choice(frozenset({2}), 1, 1), False)
    chosen = suggested | {"keeper": 2, "keep": [2], "name": 1, "folder": 1, "named": 1, "placed": 1, "keeps": names[2]}
    chosen |= {"target": os.path.join("vacation", "IMG_2.webp"), "trash": names[:2], "bytes": sum(sizes[:2])}
    assert {each: smallest[each] for each in told} == chosen
    everything = review.set_choice(0, idem.Choice(frozenset({0, 1, 2})), False)
    chosen = suggested | {"keep": [0, 1, 2], "named": 0, "placed": 0, "target": "", "stays": names[1:]}
    chosen |= {"trash": [], "bytes": 0}
    assert {each: everything[each] for each in told} == chosen
    assert page_of(review)["left"] == {"groups": 1, "files": 3, "bytes": 0}


def test_several_can_be_kept_and_none_gives_its_name_away(tmp_path: Path) -> None:
    for name, side in (("IMG_1.jpg", 1600), ("wedding_anna.jpg", 800), ("IMG_2.jpg", 400)):
        save(photo(1, (side, side * 3 // 4)), tmp_path / name)
    before = contents(tmp_path)
    review = review_of(tmp_path, "--threshold", "0")
    page_of(review)
    shown = review.set_choice(0, idem.Choice(frozenset({0, 1})), False)
    assert (shown["target"], shown["stays"], shown["trash"]) == ("", ["wedding_anna.jpg"], ["IMG_2.jpg"])
    shown = review.set_choice(0, idem.Choice(frozenset({0, 1}), 1), False)  # asked for, it is taken all the same
    assert (shown["target"], shown["stays"]) == ("wedding_anna (2).jpg", ["wedding_anna.jpg"])
    result = review.confirm({0: idem.Choice(frozenset({0, 1}), 1)})
    assert (result["trashed"], result["renamed"], result["refused"], result["error"]) == (1, 1, [], "")
    assert contents(tmp_path) == {
        "wedding_anna.jpg": before["wedding_anna.jpg"],
        "wedding_anna (2).jpg": before["IMG_1.jpg"],
        f"{TRASH}/IMG_2.jpg": before["IMG_2.jpg"],
    }


def test_what_is_confirmed_can_be_undone_and_confirmed_again(tmp_path: Path) -> None:
    library = many_doubles(tmp_path, 4, 3)
    (library / "2" / "000.xmp").write_bytes(b"a companion")
    (library / "0" / "000.AAE").write_bytes(b"of another kind")
    before = contents(library)
    review = review_of(library, page_size=3)
    chosen = kept(review)
    assert list(chosen) == [0, 1, 2]
    for _ in range(2):
        result = review.confirm(chosen)
        assert (result["trashed"], result["renamed"], result["refused"], result["error"]) == (6, 0, [], "")
        assert sum(name.startswith(TRASH) for name in contents(library)) == 6
        assert result["companions"] == 1  # its photo's keeper had none of its kind
        assert media(library) == Counter(before.values())
        assert numbers(page_of(review)) == [3]
        again = rejection(lambda: review.confirm(chosen))
        assert again == (409, "this has been confirmed already, perhaps in another tab")
        undone = review.undo()
        assert (undone["returned"], undone["refused"], undone["error"], undone["undo"]) == (7, [], "", False)
        assert contents(library) == before
    assert rejection(review.undo) == (409, "there is nothing to undo")
    assert review.total() == idem.Outcome()


def test_undo_goes_back_page_by_page_as_that_of_the_terminal(tmp_path: Path) -> None:
    before = contents(many_doubles(tmp_path, 4))
    review = review_of(tmp_path, page_size=2)
    review.confirm(kept(review))
    between = contents(tmp_path)
    review.confirm(kept(review))
    review.undo()
    assert contents(tmp_path) == between
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before
    assert main([str(tmp_path), "--undo"]) == 0
    assert contents(tmp_path) == before


def test_a_replica_edited_since_is_refused_and_named(tmp_path: Path) -> None:
    library = made_doubles(tmp_path, "beach.jpg", "IMG_1.jpg", "IMG_2.jpg")
    review = review_of(library)
    times = (library / "IMG_2.jpg").stat()
    (library / "IMG_2.jpg").write_bytes(b"EDITED")
    os.utime(library / "IMG_2.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    before = media(library)
    result = review.confirm(kept(review))
    assert (result["trashed"], result["lines"]) == (1, ["trashed   IMG_1.jpg"])
    assert [each["path"] for each in result["refused"]] == ["IMG_2.jpg"]
    assert "changed" in result["refused"][0]["reason"]
    assert sorted(contents(library)) == ["IMG_2.jpg", f"{TRASH}/IMG_1.jpg", "beach.jpg"]
    assert media(library) == before


def test_without_a_journal_nothing_is_moved_and_the_page_says_so(tmp_path: Path) -> None:
    before = contents(many_doubles(tmp_path, 2))
    review = review_of(tmp_path)
    journal = tmp_path / "__databases" / idem.JOURNAL_FILE
    journal.mkdir()  # even root cannot write to that
    result = review.confirm(kept(review))
    assert result["error"].startswith(f"cannot read the journal {journal}: ")
    assert (result["trashed"], result["renamed"], result["refused"], result["undo"]) == (0, 0, [], False)
    assert contents(tmp_path) == before
    journal.rmdir()
    result = review.confirm(kept(review))  # the page is as it was
    assert (result["trashed"], result["error"], result["undo"]) == (2, "", True)


@ON_LINUX
@pytest.mark.parametrize("size", [20, 200, 3000, 4500, 6000])
def test_what_was_moved_before_the_journal_was_full_can_be_undone(tmp_path: Path, size: int) -> None:
    before = contents(many_doubles(tmp_path, 3, 10))
    review = review_of(tmp_path)
    page = kept(review)
    with files_of_at_most(size):
        result = review.confirm(page)
    trashed = sum(name.startswith(TRASH) for name in contents(tmp_path))
    assert result["error"].startswith("cannot write the journal ")
    assert trashed - result["trashed"] in (0, 1)  # the last one may have been moved, and could not be written down
    assert media(tmp_path) == Counter(before.values())
    assert trashed < 27
    assert result["undo"] or not trashed
    if result["undo"]:
        assert review.undo()["returned"] == trashed
    assert contents(tmp_path) == before
    assert review.confirm(page)["trashed"] == 27


def test_two_groups_that_want_the_same_name_get_different_ones(tmp_path: Path) -> None:
    made_doubles(tmp_path, "one/IMG_1.jpg", "two/sunset.jpg", content=b"a")
    made_doubles(tmp_path, "one/IMG_2.jpg", "three/sunset.jpg", content=b"b")
    before = media(tmp_path)
    review = review_of(tmp_path)
    page_of(review)
    choices = {}
    for number, group in enumerate(review.groups):
        names = [os.path.basename(each.file.path) for each in group.replicas]
        keep, named = 1 - names.index("sunset.jpg"), names.index("sunset.jpg")
        choices[number] = idem.Choice(frozenset({keep}), named, keep)
    targets = [review.set_choice(number, choice, False)["target"] for number, choice in choices.items()]
    assert targets == [os.path.join("one", "sunset.jpg"), os.path.join("one", "sunset (2).jpg")]
    assert review.confirm(choices)["renamed"] == 2
    live = {name for name in contents(tmp_path) if not name.startswith(TRASH)}
    assert live == {"one/sunset.jpg", "one/sunset (2).jpg"}
    assert media(tmp_path) == before


def test_a_page_that_another_tab_has_changed_is_not_confirmed(tmp_path: Path) -> None:
    before = contents(many_doubles(tmp_path, 2))
    review = review_of(tmp_path)
    stale = kept(review)
    review.set_choice(0, idem.Choice(frozenset({1})), False, 0)
    review.set_choice(1, stale[1], True, 0)
    seen = dict.fromkeys(stale, 0)
    look = "something else has been chosen since, perhaps in another tab: look once more"
    assert rejection(lambda: review.confirm(stale, seen)) == (409, look)
    assert rejection(lambda: review.confirm({1: stale[1]}, {1: 0})) == (409, look)
    assert rejection(lambda: review.set_choice(0, stale[0], False, 0)) == (409, look)
    assert contents(tmp_path) == before
    assert [each["revision"] for each in page_of(review)["groups"]] == [1]


def test_the_page_says_what_happens_when_undo_frees_a_name(tmp_path: Path) -> None:
    made_doubles(tmp_path, "Rome/IMG_1.jpg", "x/IMG_1.jpg", content=b"a")
    made_doubles(tmp_path, "Rome/IMG_8.jpg", "x/forum.jpg", content=b"b")
    made_doubles(tmp_path, "Rome/IMG_9.jpg", "y/forum.jpg", content=b"c")
    review = review_of(tmp_path, page_size=1)
    while page_of(review)["groups"]:
        review.confirm(kept(review))
    for _ in range(2):
        review.undo()
    (shown,) = page_of(review)["groups"]
    review.confirm({shown["number"]: review.choices[shown["number"]]}, {shown["number"]: shown["revision"]})
    live = sorted(name for name in contents(tmp_path) if not name.startswith(TRASH))
    assert shown["target"] in live


def test_what_cannot_be_put_back_can_be_tried_once_more(tmp_path: Path) -> None:
    before = contents(many_doubles(tmp_path, 1, 3))
    review = review_of(tmp_path)
    review.confirm(kept(review))
    (tmp_path / "1" / "000.jpg").write_bytes(b"in the way")
    result = review.undo()
    assert (result["returned"], len(result["refused"]), result["undo"]) == (1, 1, True)
    assert len(review.total().trashed) == 1
    (tmp_path / "1" / "000.jpg").unlink()
    result = review.undo()
    assert (result["returned"], result["refused"], result["undo"]) == (1, [], False)
    assert contents(tmp_path) == before


def test_after_its_end_a_review_moves_nothing(tmp_path: Path) -> None:
    before = contents(many_doubles(tmp_path, 2))
    review = review_of(tmp_path)
    chosen = kept(review)
    review.stop()
    assert rejection(lambda: review.confirm(chosen)) == (409, "files are being moved already, or idem is stopping")
    assert rejection(review.undo)[0] == 409
    assert contents(tmp_path) == before


# ── a server, and requests that no browser would let a page send ──


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # by lower-case name
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def refusal(self) -> tuple[int, str]:
        return self.status, self.json()["error"]


@dataclass(frozen=True)
class Client:
    """Who asks the server at this address."""

    address: str

    @property
    def token(self) -> str:
        return urlsplit(self.address).path.strip("/")

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str | None] | None = None
    ) -> Answer:
        """The answer; the path is one below the address, unless it begins with a slash. None leaves a header out."""
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if method not in ("GET", "HEAD"):
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(body or b""))}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            whole = path if path.startswith("/") else f"/{self.token}/{path}"
            connection.putrequest(method, whole, skip_host=True, skip_accept_encoding=True)
            for name, value in (sent | (headers or {})).items():
                if value is not None:
                    connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        check_headers(answer)
        return answer

    def post(self, path: str, body: Any) -> Answer:
        return self.ask(path, "POST", json.dumps(body).encode())


@dataclass(frozen=True)
class Served(Client):
    """A review that is being served in this process."""

    library: Path
    review: idem.Review
    finished: list[bool]  # an item for each time that Done was said

    def number_of(self, name: str) -> int:
        """The group that has a file of this name."""
        return next(
            n for n, group in enumerate(self.review.groups) for each in group.replicas if name in each.file.path
        )


def check_headers(answer: Answer) -> None:
    """Every answer, errors too, forbids what other sites could do with it."""
    policy = {part.split()[0]: part.split()[1:] for part in answer.headers["content-security-policy"].split(";")}
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == (
        ["'none'"],
        ["'self'"],
        ["'none'"],
    )
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "data:"} & set(itertools.chain(*policy.values()))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert [name for name in answer.headers if name.startswith("access-control-")] == []
    assert answer.headers["content-type"].startswith("text/html") <= (answer.status in (200, 308))


def served(library: Path, review: idem.Review) -> Iterator[Served]:
    finished: list[bool] = []
    with idem.serving(review, lambda: finished.append(True)) as address:
        yield Served(address, library, review, finished)


SCRIPT_NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served library that no request below may change: 12 groups, of which a page has shown 10."""
    library = many_doubles(tmp_path_factory.mktemp("target") / "lib", 12)
    made_doubles(library, f"0/{SCRIPT_NAME}.jpg", f"1/{SCRIPT_NAME}.jpg", content=b"<script>alert(1)</script>" * 100)
    review = review_of(library)
    page_of(review)
    before = contents(library)
    yield from served(library, review)
    assert contents(library) == before


READING = ["", "static/review.js", "groups", "progress", "thumbnail/0/0", "preview/0/0", "facts/0/0"]
READING += ["difference/0/0/1", "video/0/0", "converted/0/0", "nothing"]
WRITING = ["choose", "confirm", "undo", "done", "nothing"]
ROUTES = [("GET", path) for path in READING] + [("POST", path) for path in WRITING]


def refused_everywhere(
    target: Served,
    reason: str,
    headers: dict[str, str | None],
    routes: Sequence[tuple[str, str]] = ROUTES,
    prefix: str = "",
) -> None:
    """No route does anything but refuse a request with these headers."""
    before, choices = contents(target.library), list(target.review.choices)
    said = {(method, path): target.ask(prefix + path, method, b"{}", headers).refusal() for method, path in routes}
    assert said == dict.fromkeys(routes, (403, reason))
    assert contents(target.library) == before
    assert (target.review.choices, target.review.batches, target.finished) == (choices, [], [])


# ── SAFETY row 27 ──


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "localhost", "127.0.0.1:{other}", "127.0.0.1:"),
        *("127.0.0.1.:{port}", "localhost.:{port}", "127.0.0.1:{port}.evil.example", "127.0.0.1:0{port}"),
        *("[::1]:{port}", "0.0.0.0:{port}", "user@127.0.0.1:{port}", "127.0.0.1:{port},evil.example"),
        *("LOCALHOST:{port}", "a..b", "x" * 70 + ".example", "[", "\xff:{port}", "http://127.0.0.1:{port}"),
    ],
)
def test_no_route_answers_to_another_host(target: Served, host: str | None) -> None:
    given = host and host.format(port=target.port, other=target.port + 1)
    refused_everywhere(target, "this server answers to its own address only", {"Host": given})


def raw(target: Client, request: str) -> Answer:
    """The answer to what is no good HTTP; the sender says nothing more after it."""
    with socket.create_connection(("127.0.0.1", target.port), 10) as connection:
        connection.sendall(request.format(token=target.token, port=target.port).encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    check_headers(answer)
    return answer


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /{token}/groups HTTP/1.0\r\n\r\n",
        "GET http://evil.example/{token}/groups HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n",
        "GET /{token}/groups HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n",
        "POST /{token}/undo HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}",
    ],
    ids=["http 1.0", "absolute", "two hosts", "post of http 1.0"],
)
def test_a_host_must_be_named_once(target: Served, request_text: str) -> None:
    assert raw(target, request_text).refusal() == (403, "this server answers to its own address only")


def test_the_page_is_served_to_both_names_of_this_computer(target: Served) -> None:
    for host in ("127.0.0.1", "localhost"):
        answer = target.ask("", headers={"Host": f"{host}:{target.port}"})
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert answer.headers["cache-control"] == "no-store"


# ── SAFETY row 28 ──


def wrong_tokens(token: str) -> dict[str, str]:
    """What may stand in the path in place of the token."""
    other = "A" if token[-1] != "A" else "B"
    return {
        "none": "/",
        "last character": f"/{token[:-1]}{other}/",
        "first character": f"/{other if token[0] != other else 'C'}{token[1:]}/",
        "shorter": f"/{token[:-1]}/",
        "longer": f"/{token}{other}/",
        "other case": f"/{token.swapcase()}/",
        "after dots": f"/../{token}/",
        "after another": f"/x/{token}/",
        "not ASCII": f"/{quote('é' * 16)}/",
        "not UTF-8": f"/%ff%fe{token}/",
        "NUL": f"/{token}%00/",
    }


@pytest.mark.parametrize("wrong", list(wrong_tokens("xyz")))
def test_no_route_answers_without_the_token(target: Served, wrong: str) -> None:
    prefix = wrong_tokens(target.token)[wrong]
    refused_everywhere(target, "the address lacks the token that idem printed", {}, prefix=prefix)


def test_the_token_counts_in_the_path_only(target: Served) -> None:
    reason = (403, "the address lacks the token that idem printed")
    for path in (f"/groups?token={target.token}", f"/?{target.token}/groups", f"/groups;{target.token}"):
        headers = {"Cookie": f"token={target.token}", "Authorization": f"Bearer {target.token}"}
        assert target.ask(path, headers=dict(headers)).refusal() == reason
    assert raw(target, "GET /\xe9\xff/groups HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").refusal() == reason
    assert raw(target, "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").refusal() == reason


def test_every_run_has_a_token_of_its_own_of_128_bits_or_more(target: Served) -> None:
    with idem.serving(target.review, lambda: None) as address:
        other = urlsplit(address).path.strip("/")
    assert other != target.token
    assert min(len(other), len(target.token)) * 6 >= 128  # each of 64 characters


# ── SAFETY rows 29 and 30 ──

FOREIGN = ["null", "", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:{other}", "file://"]
FOREIGN += ["http://localhost:{other}", "http://127.0.0.1:{port}/", "https://127.0.0.1:{port}"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_no_route_answers_to_another_origin(target: Served, origin: str) -> None:
    given = origin.format(port=target.port, other=target.port + 1)
    refused_everywhere(target, "the request comes from another site", {"Origin": given})


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "unheard-of", ""])
@pytest.mark.parametrize("what", ["image", "iframe", "script", "empty", "document"])
def test_no_route_answers_a_page_of_another_site(target: Served, site: str, what: str) -> None:
    headers: dict[str, str | None] = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": what}
    routes = [each for each in ROUTES if (what, *each) != ("document", "GET", "")]  # a link may open the page itself
    refused_everywhere(target, "the request comes from another site", headers, routes)


@pytest.mark.parametrize(
    "kind",
    [
        *(None, "", "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "text/json"),
        *("multipart/form-data; boundary=x", "application/jsonp", "application/json-patch+json"),
    ],
)
def test_no_route_takes_what_a_form_can_send(target: Served, kind: str | None) -> None:
    posts = [("POST", path) for path in WRITING + READING]
    refused_everywhere(target, "only JSON is taken", {"Content-Type": kind}, posts)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW"])
def test_no_other_method_does_anything(target: Served, method: str) -> None:
    routes = [(method, path) for _, path in ROUTES]
    asking: dict[str, str | None] = {"Content-Type": None, "Access-Control-Request-Method": "POST"}
    refused_everywhere(target, "only JSON is taken", asking, routes)
    refused_everywhere(
        target, "the request comes from another site", asking | {"Origin": "http://evil.example"}, routes
    )
    said = {target.ask(path, method, b"{}").status for path in WRITING}
    assert said == ({200, 404} if method == "OPTIONS" else {405, 404})
    assert (target.review.batches, target.finished) == ([], [])


def test_a_get_does_nothing_and_its_pictures_are_for_the_page_alone(target: Served) -> None:
    assert {target.ask(path).status for path in WRITING} == {405, 404}
    own = f"http://localhost:{target.port}"
    answer = target.ask("groups", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"})
    assert answer.status == 200
    assert target.finished == []


# ── SAFETY row 31 ──


@pytest.mark.parametrize("route", ["thumbnail", "preview", "facts", "video", "converted", "difference"])
def test_pictures_have_numbers_and_no_other_address(target: Served, route: str) -> None:
    path = quote(str(target.library / "0" / "000.jpg"), safe="")
    odd = [
        path,
        path.replace("%2F", "/"),
        "0/000.jpg",
        "..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "0/%00",
        "0%00/0",
    ]
    odd += [
        "x" * 300,
        "0/" + "x" * 300,
        "__databases",
        "0/__databases",
        "-1/0",
        "0/-1",
        "0/2",
        "0/99999",
        "0.0/0",
        "0x0/0",
    ]
    odd += ["1e0/0", "%20/0", "0/0/0/0", "0", "", f"{2**64}/0", f"0/{2**64}", "9" * 5000 + "/0", "13/0", "%C2%B2/0"]
    unseen = [number for number in range(len(target.review.groups)) if number not in target.review.shown]
    assert len(unseen) == 3
    odd += [f"{number}/0" for number in unseen]
    if route == "difference":
        odd += [f"{each}/0" for each in odd] + ["0/0/2", "0/0/-1", f"{unseen[0]}/0/1"]
    said = {each: target.ask(f"{route}/{each}").status for each in odd}
    assert {each: status for each, status in said.items() if status != 404} == {}


@pytest.mark.parametrize(
    "name",
    ["..", "../idem.py", "..%2fidem.py", "%2e%2e/idem.py", "..%5cidem.py", "%2fetc%2fpasswd", "%00", "x" * 300, ""],
)
def test_nothing_but_the_pages_own_files_is_static(target: Served, name: str) -> None:
    assert target.ask(f"static/{name}").status == 404


@pytest.mark.parametrize("value", ["x", "%00", "%ff", "", "SPACE", "../.."])
@pytest.mark.parametrize("name", ["sort", "kind", "view", "step"])
def test_an_unknown_order_kind_view_or_step_is_refused(target: Served, name: str, value: str) -> None:
    assert target.ask(f"groups?{name}={value}").refusal() == (400, f"{name} is one of {', '.join(idem.ASKED[name])}")


# ── SAFETY row 32 ──


def test_a_name_with_script_in_it_is_sent_as_data(target: Served) -> None:
    answer = target.ask("groups")
    assert answer.headers["content-type"] == "application/json"
    shown = answer.json()["groups"][target.number_of(SCRIPT_NAME)]
    assert [each["name"] for each in shown["replicas"]] == [f"{SCRIPT_NAME}.jpg"] * 2
    number = target.number_of(SCRIPT_NAME)  # the file is HTML, too
    for path in (f"thumbnail/{number}/0", f"preview/{number}/0", f"difference/{number}/0/1"):
        assert target.ask(path).refusal() == (415, "not a picture in a format idem reads")
    assert target.ask(f"facts/{number}/0").json() == {"reason": "not a picture in a format idem reads"}
    assert target.ask(f"video/{number}/0").refusal() == (404, "there is no such video")


def test_a_library_with_script_in_its_name_is_shown_as_text(tmp_path: Path) -> None:
    library = many_doubles(tmp_path / SCRIPT_NAME, 1)
    for server in served(library, review_of(library)):
        assert SCRIPT_NAME.encode() not in server.ask("").body


# ── SAFETY row 33 ──

NO_CHOICE = "a choice has a group, its revision, a list of replicas to keep, and whose name and folder"
NO_KEEP = "the list of what to keep of group 0 must name at least one of its replicas, once"
NO_NAME = "name and folder of group 0 must be those of one of its replicas"


def each_with(reason: str, *values: Any) -> list[tuple[Any, str]]:
    return [(value, reason) for value in values]


def choices_with(key: str, *values: Any) -> list[dict[str, Any]]:
    """Choices that are right but for this."""
    return [{"group": 0, "revision": 0, "keep": [0]} | {key: value} for value in values]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        *each_with(NO_CHOICE, None, 0, "0", [], [0, [0]], {}, {"group": 0}, {"keep": [0]}, {"group": 0, "keep": [0]}),
        *each_with(NO_CHOICE, *choices_with("path", "/etc/passwd"), *choices_with("trash", []), *choices_with("", 0)),
        *each_with(
            "there is no such group", *choices_with("group", None, True, False, 0.0, "0", [0], {}, -1, 13, 10**30)
        ),
        *each_with(
            NO_KEEP, *choices_with("keep", [], None, 0, "0", {}, {"0": 0}, True, [None], [True], [False], [0.0])
        ),
        *each_with(NO_KEEP, *choices_with("keep", ["0"], [0, 0], [0, 1, 1], [2], [-1], [0, 2], [[0]], ["/etc"], [{}])),
        *each_with(NO_KEEP, *choices_with("keep", [10**30], [float("nan")], [float("inf")], float("nan"))),
        *each_with(NO_NAME, *choices_with("name", True, 0.0, "0", [0], {}, 2, -1, 10**30, "/etc/passwd", float("nan"))),
        *each_with(NO_NAME, *choices_with("folder", False, 0.0, "..", [0], {}, 2, -1, 10**30, "/", float("nan"))),
        *each_with("group 11 has not been on a page", *choices_with("group", 11)),
        *each_with("a revision is a number", *choices_with("revision", None, True, 0.0, "0", [0])),
    ],
)
def test_a_choice_that_fits_no_group_is_refused(target: Served, choice: Any, reason: str) -> None:
    choices = list(target.review.choices)
    assert target.post("confirm", {"groups": [choice]}).refusal() == (400, reason)
    assert target.post("confirm", {"groups": [{"group": 1, "revision": 0, "keep": [0]}, choice]}).refusal() == (
        400,
        reason,
    )
    if isinstance(choice, dict):
        assert target.post("choose", choice | {"skipped": False}).refusal() == (400, reason)
        assert target.post("choose", choice | {"skipped": None}).status == 400
    assert (target.review.choices, target.review.done, target.review.batches) == (choices, set(), [])


NO_JSON = "this is no JSON"
NO_PAGE = "a page has 1 to 10 groups"
ONE = b'{"group": 0, "revision": 0, "keep": [0]}'


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *each_with(NO_JSON, b"", b"{", b"{'groups': []}", b"\xff\xfe\xfd", b'{"groups": "\xff"}', b"\0", b"{}{}"),
        *each_with(NO_JSON, b'{"a":' * 100_000, b"[" * 200_000 + b"]" * 200_000, b'{"groups": %s}' % (b"9" * 5000)),
        *each_with("this is no JSON object", b"[]", b"null", b"1", b"NaN", b'"groups"', b"true"),
        *each_with(NO_PAGE, b"{}", b'{"groups": null}', b'{"groups": []}', b'{"groups": {}}', b'{"groups": NaN}'),
        *each_with(NO_PAGE, b'{"groups": "x"}', b'{"groups": [%s], "path": "/"}' % ONE),
        *each_with(NO_PAGE, b'{"groups": [%s]}' % b", ".join([ONE] * 11)),
        *each_with("a group was named twice", b'{"groups": [%s, %s]}' % (ONE, ONE)),
    ],
    ids=lambda each: repr(each)[:20],
)
def test_a_body_that_is_no_page_is_refused(target: Served, body: bytes, reason: str) -> None:
    assert target.ask("confirm", "POST", body).refusal() == (400, reason)
    assert (target.review.done, target.review.batches) == (set(), [])


@pytest.mark.parametrize("size", [1_000_001, 20_000_000])
@pytest.mark.parametrize("path", ["confirm", "choose", "undo", "done"])
def test_a_huge_body_is_refused_and_its_sender_told(target: Served, path: str, size: int) -> None:
    assert target.ask(path, "POST", b"{}".ljust(size)).refusal() == (400, "more than 1.0 MB")
    assert target.ask(path, "POST", b"{}".ljust(size), {"Content-Type": "text/plain"}).status == 403


@pytest.mark.parametrize("path", ["choose", "undo", "done"])
@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_no_post_takes_anything_but_an_object(target: Served, path: str, body: bytes) -> None:
    assert target.ask(path, "POST", body).status == 400
    assert target.finished == []


@pytest.mark.parametrize("path", ["confirm", "choose", "undo", "done"])
@pytest.mark.parametrize(
    "rest",
    [
        'Content-Length: 50\r\n\r\n{{"groups": ',
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-5\r\n{{}}\r\n0\r\n\r\n",
        'Transfer-Encoding: chunked\r\n\r\n50\r\n{{"groups": ',
        "Content-Length: -50\r\n\r\n{{}}",
        "Content-Length: many\r\n\r\n{{}}",
        "\r\n{{}}",
    ],
    ids=["cut off", "no chunk", "negative chunk", "chunk cut off", "negative length", "no number", "no length"],
)
def test_a_body_that_breaks_off_is_refused(target: Served, path: str, rest: str) -> None:
    head = f"POST /{{token}}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{{port}}\r\nContent-Type: application/json\r\n"
    assert raw(target, head + rest).status == 400
    assert (target.review.batches, target.finished) == ([], [])


@pytest.mark.parametrize("target_path", ["http://[bad/{token}/groups", "/{token}/" + "x" * 70_000])
def test_a_request_that_is_no_good_http_is_answered_like_any_other(
    target: Served, target_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = raw(target, f"GET {target_path} HTTP/1.1\r\nHost: 127.0.0.1:{{port}}\r\n\r\n")
    assert 400 <= answer.status < 500
    assert capfd.readouterr().err == ""  # it would be printed in the user's terminal


# ── whatever is sent, the answer is 2xx or 4xx with a reason, and 4xx has changed nothing ──

LETTERS = st.text("ax0 ./\\%&?#\0\n\x7fé٢\u202e\ud800", max_size=4)  # of all of Unicode, hypothesis makes tables first
ODD = st.none() | st.booleans() | st.integers(-2, 12) | st.integers() | st.floats() | LETTERS
KEYS = st.sampled_from(["group", "groups", "revision", "keep", "name", "folder", "skipped"]) | LETTERS
NESTED = ODD | st.lists(ODD, max_size=3) | st.dictionaries(KEYS, ODD, max_size=4)
ANY_JSON = NESTED | st.lists(NESTED, max_size=3) | st.dictionaries(KEYS, NESTED, max_size=4)
PLACE = st.sampled_from([0, 0, 0, 1]) | ANY_JSON
ANY_CHOICE = ANY_JSON | st.fixed_dictionaries(
    {"group": st.integers(0, 2) | PLACE, "revision": st.integers(0, 2) | PLACE, "keep": st.lists(PLACE, max_size=3)},
    optional={"name": PLACE, "folder": PLACE, "skipped": st.booleans() | PLACE},
)
ANY_BODY = ANY_CHOICE | st.fixed_dictionaries({"groups": st.lists(ANY_CHOICE, max_size=3) | ANY_JSON})
ANY_PART = st.sampled_from(["", "0", "1", "2", "00", "-1", "1e9", "999999999", "9" * 30, "..", "%2e%2e", "%00", "%ff"])
ANY_PART |= st.sampled_from(["thumbnail", "preview", "difference", "facts", "video", "conversion", "converted"])
ANY_PART |= st.sampled_from(["groups", "progress", "static", "review.js", "choose", "confirm", "undo"])
ANY_PART |= LETTERS.map(lambda text: quote(text, safe="", errors="surrogatepass"))
ANY_QUERY = st.lists(
    st.tuples(st.sampled_from(["sort", "kind", "view", "step", "at", "x"]), ANY_PART | st.just("space"))
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A JSON text of which some bytes may be missing, or others."""
    text = json.dumps(draw(ANY_BODY)).encode()
    first, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return draw(st.sampled_from([text, text, text[:end], text[:first] + draw(st.binary(max_size=3)) + text[end:]]))


def acceptable(answer: Answer, method: str = "") -> bool:
    """Whether the answer is 2xx or 3xx, or 4xx with a reason."""
    if answer.status >= 400 and method != "HEAD":
        assert answer.json()["error"]
    return answer.status < 500


@pytest.mark.parametrize("path", ["choose", "confirm", "undo", "done"])
def test_a_body_of_any_kind_is_done_or_refused_with_a_reason(tmp_path: Path, path: str) -> None:
    library = many_doubles(tmp_path, 3)
    review = review_of(library)
    page_of(review)
    whole = media(library)

    def check(server: Served, body: bytes) -> None:
        if path == "undo" and not review.batches:
            review.confirm({0: review.choices[0]})
        before = contents(library)
        answer = server.ask(path, "POST", body)
        assert acceptable(answer)
        assert answer.status == 200 or contents(library) == before
        assert media(library) == whole
        live = [
            [os.path.exists(review.now.get(each.file, each.file).path) for each in group.replicas]
            for group in review.groups
        ]
        assert all(map(any, live))
        if path == "confirm" and review.batches:
            review.undo()

    for server in served(library, review):
        fuzz(damaged(), functools.partial(check, server))


def test_an_address_of_any_kind_is_answered_or_refused_with_a_reason(target: Served) -> None:
    methods = st.sampled_from(["GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "PUT", "x"])

    def check(asked: tuple[str, list[str], list[tuple[str, str]]]) -> None:
        method, parts, query = asked
        path = "/".join(parts) + ("?" + "&".join(map("=".join, query)) if query else "")
        assert acceptable(target.ask(path, method), method)

    fuzz(st.tuples(methods, st.lists(ANY_PART, max_size=5), ANY_QUERY), check)


# ── SAFETY rows 47 and 51 ──


def threads_and_files(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    return tuple(len(os.listdir(f"/proc/{process.pid}/{name}")) for name in ("task", "fd"))  # type: ignore[return-value]


def answer_to(server: Client, *sent: bytes) -> bytes:
    """All that comes back when this is sent, part by part, and nothing more."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        with suppress(OSError):  # it may be refused before all is sent
            for part in sent:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        came = b""
        with suppress(ConnectionResetError):
            while block := connection.recv(65536):
                came += block
        return came


@ON_LINUX
@pytest.mark.storm
def test_no_request_ends_the_server_or_stays_in_it(tmp_path: Path, started: Start) -> None:
    process, server = started(many_doubles(tmp_path / "lib", 1), "--exact")
    server.ask("groups")
    before = threads_and_files(process)
    chunked = b"Transfer-Encoding: chunked\r\n"
    rests = {
        "early end": chunked + b"\r\nfffffff\r\nx",
        "many chunks": chunked + b"\r\n" + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n",
        "chunked and a length": chunked + b"Content-Length: 2\r\n\r\n{}",
        "other coding": b"Transfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        "negative": b"Content-Length: -2\r\n\r\n{}",
        "two lengths": b"Content-Length: 2\r\nContent-Length: 20\r\n\r\n{}",
        "same length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "other digits": "Content-Length: ٢\r\n\r\n{}".encode(),
        "huge length": b"Content-Length: 99999999999999999999\r\n\r\n{}",
        "cut off": b"Content-Length: 20\r\n\r\n{}",
        "no length": b"\r\n{}",
        "huge header": b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
        "many headers": b"X: x\r\n" * 100_000 + b"\r\n",
        "folded": b"Content-Length:\r\n 2\r\n 0\r\n\r\n{}",
        "binary": bytes(range(256)) * 100,
    }
    rng = random.Random(1)
    json_type = b"Content-Type: application/json\r\n"
    for _ in range(int(os.environ.get("IDEM_ROUNDS", "1"))):
        for name, rest in rests.items():
            for token, host in itertools.product([server.token, "no-token"], [f"127.0.0.1:{server.port}", "x"]):
                head = f"POST /{token}/undo HTTP/1.1\r\nHost: {host}\r\n".encode() + json_type
                came = answer_to(server, head, rest)
                assert re.match(rb"HTTP/1\.1 4\d\d |$", came), (name, came)
                assert came or len(rest) > 100_000, name
        for junk in (b"", b"\r\n", b"\0" * 70_000, rng.randbytes(1000), b"POST", b"GET / HTTP/9.9\r\n\r\n"):
            assert b" 5" not in answer_to(server, junk).partition(b"\r\n")[0][8:10]
        head = f"POST /{server.token}/undo HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
        slow = head + json_type + b"Content-Length: 2\r\n\r\n{}"
        assert b"nothing to undo" in answer_to(server, *(slow[at : at + 1] for at in range(len(slow))))
    deadline = time.monotonic() + 10
    while threads_and_files(process) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    assert threads_and_files(process) <= before


@ON_LINUX
def test_hundreds_of_idle_connections_keep_no_good_client_out(tmp_path: Path, started: Start) -> None:
    import resource

    process, server = started(many_doubles(tmp_path / "lib", 1), "--exact")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
    head = f"GET /{server.token}/groups HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
    body = head.replace(b"GET", b"POST") + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with ExitStack() as idle:
        for number in range(372):
            connection = idle.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            connection.sendall((b"", head, body)[number % 3])
        assert server.ask("groups").status == 200
        assert all(each < idem.MOST_CONNECTIONS + 30 for each in threads_and_files(process))


@ON_LINUX
def test_without_descriptors_left_a_connection_is_closed_for_a_new_one(tmp_path: Path, started: Start) -> None:
    import resource

    process, server = started(many_doubles(tmp_path / "lib", 1), "--exact")
    few = threads_and_files(process)[1] + 20
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (few, few))
    with ExitStack() as idle:
        for _ in range(40):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        assert server.ask("progress").status == 200


@ON_LINUX
def test_what_a_review_killed_while_it_converts_leaves_goes_with_the_next(
    tmp_path: Path, started: Start, gallery: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temp").mkdir()
    for name in ("a", "b"):
        (tmp_path / "lib").mkdir(exist_ok=True)
        video = tmp_path / "lib" / f"{name}.avi"
        ffmpeg("-stream_loop", "1000", "-i", gallery.library / "a" / "old.avi", "-c", "copy", video)
    process, server = started(tmp_path / "lib", "--exact", TMPDIR=str(tmp_path / "temp"))
    server.ask("groups")
    assert server.ask("conversion/0/0").json() == {"ready": False, "reason": ""}
    while not list(tmp_path.glob("temp/idem-*/*.part")):
        assert server.ask("conversion/0/0").json() == {"ready": False, "reason": ""}
    workers = workers_of(process.pid)
    running = [*workers, *(child for worker in workers for child in workers_of(worker))]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while still_running(running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert still_running(running) == [], "ffmpeg goes on"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    assert list(tmp_path.glob("temp/idem-*/*.part")) != []
    with idem.scratch_folder() as folder:
        assert list((tmp_path / "temp").iterdir()) == [Path(folder)]
    assert list((tmp_path / "temp").iterdir()) == []


def test_nothing_is_cleared_but_what_a_dead_review_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temp = tmp_path / "temp"
    monkeypatch.setattr(tempfile, "tempdir", str(temp))

    def left(folder: Path, *names: str) -> Path:
        folder.mkdir(parents=True, mode=0o700)
        for name in names:
            (folder / name).touch()
        return folder

    every = (idem.LOCK_OF_SCRATCH, idem.MARK_OF_SCRATCH, "1-2-3.mp4", "1-2-4.mp4.part")
    left(temp / "idem-gone", *every)
    left(temp / "other", *every)
    left(temp / "idem-unmarked", idem.LOCK_OF_SCRATCH, "1-2-3.mp4")
    left(temp / "idem-open", *every).chmod(0o755)
    left(temp / "idem-more", *every, "letter.txt")
    left(tmp_path / "outside", *every)
    (temp / "idem-link").symlink_to(tmp_path / "outside")
    (left(temp / "idem-links", *every[:2]) / "1-2-5.mp4").symlink_to(tmp_path / "outside" / "1-2-3.mp4")
    (left(temp / "idem-linked-lock", *every[1:]) / idem.LOCK_OF_SCRATCH).symlink_to(tmp_path / "outside" / "1-2-3.mp4")
    if os.name == "posix" and os.geteuid() == 0:
        os.chown(left(temp / "idem-foreign", *every), 65534, 65534)
    with idem.scratch_folder() as used:
        before = contents(tmp_path)
        with idem.scratch_folder():
            pass
        assert contents(tmp_path) == before
        gone = {"idem-gone", "idem-links"}
        assert {each.name for each in temp.iterdir()} >= {
            "other",
            "idem-unmarked",
            "idem-open",
            "idem-more",
            "idem-link",
        }
        assert not gone & {each.name for each in temp.iterdir()}
        assert Path(used).is_dir()
        assert [each.name for each in (temp / "idem-more").iterdir()] == ["letter.txt"]
        for untouched in [tmp_path / "outside", temp / "other", temp / "idem-open", *temp.glob("idem-foreign")]:
            assert {each.name for each in untouched.iterdir()} == set(every)
        assert len(list((temp / "idem-linked-lock").iterdir())) == 4


# ── SAFETY row 34 ──


@pytest.mark.parametrize("threads", [1, 8])
def test_a_page_that_is_confirmed_again_and_again_is_acted_on_once(tmp_path: Path, threads: int) -> None:
    library = many_doubles(tmp_path, 10, 4)
    before = media(library)
    review = review_of(library)
    body = {"groups": [{"group": number, "revision": 0, "keep": [0]} for number in kept(review)]}
    start = threading.Barrier(threads)

    def confirm(_: int) -> list[Answer]:
        start.wait()
        return [server.post("confirm", body) for _ in range(2)]

    for server in served(library, review):
        with ThreadPoolExecutor(threads) as pool:
            answers = list(itertools.chain(*pool.map(confirm, range(threads))))
        assert Counter(answer.status for answer in answers) == {200: 1, 409: 2 * threads - 1}
        won = next(answer.json() for answer in answers if answer.status == 200)
        assert server.ask("progress").json() == {"moving": None, "result": won}
        assert server.post("undo", {}).json()["returned"] == 30
        assert server.post("undo", {}).refusal() == (409, "there is nothing to undo")
    reasons = {answer.json()["error"] for answer in answers if answer.status == 409}
    assert reasons <= {
        "this has been confirmed already, perhaps in another tab",
        "files are being moved already, or idem is stopping",
    }
    assert (won["trashed"], won["refused"], won["error"]) == (30, [], "")
    lines = idem.journal_lines(str(library / "__databases" / idem.JOURNAL_FILE))
    assert Counter(line.event for line in lines if line.event in ("begin", "move", "end")) == {
        "begin": 1,
        "move": 30,
        "end": 1,
    }
    assert media(library) == before


# ── SAFETY row 35 ──


Start = Callable[..., tuple[subprocess.Popen[bytes], Client]]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a review as a user does, and gives the process once it has printed its address. None outlives a test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(library: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen[bytes], Client]:
        process = idem_process(library, "--review", *arguments, env=os.environ | {"BROWSER": "true"} | environment)
        processes.append(process)
        assert process.stdout
        said = [process.stdout.readline().decode() for _ in range(2)]
        address = said[0].removeprefix("Review the copies at ").strip()
        assert (address[:17], said[1]) == ("http://127.0.0.1:", "Ctrl-C here, or Done there, stops idem.\n")
        return process, Client(address)

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()


@ON_LINUX
@pytest.mark.parametrize(
    ("stop", "status"),
    [([signal.SIGINT] * 2, 130), ([signal.SIGTERM], 143), ([], 0)],
    ids=["Ctrl-C twice", "SIGTERM", "Done"],
)
def test_a_batch_that_is_under_way_when_the_review_ends_is_finished(
    tmp_path: Path, started: Start, stop: list[signal.Signals], status: int
) -> None:
    library = many_doubles(tmp_path / "lib", 50, 6)
    before = contents(library)
    process, server = started(library, "--exact", "--page-size", "50")
    page = server.ask("groups").json()
    body = {"groups": [{"group": number, "revision": 0, "keep": [0]} for number in numbers(page)]}
    assert len(body["groups"]) == 50
    with ThreadPoolExecutor(1) as pool:
        confirmed = pool.submit(server.post, "confirm", body)
        while (moving := server.ask("progress").json()["moving"]) is None or moving[0] < 2:
            assert not confirmed.done()
        said = []
        for number in stop:
            process.send_signal(number)
            while process.stderr and b"finishing the moves that are under way\n" not in said:
                said.append(process.stderr.readline())
                assert said[-1]
            assert len(list(library.glob("[0-9]/*.jpg"))) > 50, "the batch was over by then"
        if not stop:
            assert "250 trashed" in server.post("done", {}).json()["lines"]
        with suppress(OSError, http.client.HTTPException):  # the answer may no longer get through
            assert confirmed.result().json()["trashed"] == 250
    out, err = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in b"".join([*said, err])) == (status, False)
    assert "250 trashed, 0 renamed, 0 skipped, 0 failed" in out.decode()
    events = [line.event for line in idem.journal_lines(str(library / "__databases" / idem.JOURNAL_FILE))]
    assert (events[-1], Counter(events)["moved"], Counter(events)["failed"]) == ("end", 250, 0)
    assert media(library) == Counter(before.values())
    assert main([str(library), "--undo"]) == 0
    assert contents(library) == before


@ON_LINUX
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_review_that_ends_leaves_no_process_and_no_folder(
    tmp_path: Path, started: Start, sent: signal.Signals
) -> None:
    (tmp_path / "temp").mkdir()
    library = tmp_path / "lib"
    save(photo(1), library / "a.jpg")
    save(photo(1), library / "b.png")
    process, server = started(library, TMPDIR=str(tmp_path / "temp"))
    server.ask("groups")
    assert server.ask("thumbnail/0/0").status == 200
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(sent)
    err = process.communicate(timeout=10)[1].decode()
    assert "Traceback" not in err
    deadline = time.monotonic() + 5
    while still_running(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert still_running(workers) == []
    assert sent == signal.SIGKILL or list((tmp_path / "temp").iterdir()) == []


@ON_LINUX
def test_a_review_whose_output_nobody_reads_ends_quietly(tmp_path: Path, started: Start) -> None:
    process, server = started(many_doubles(tmp_path / "lib", 2), "--exact")
    server.ask("groups")
    assert server.post("confirm", {"groups": [{"group": 0, "revision": 0, "keep": [0]}]}).json()["trashed"] == 1
    assert process.stdout and process.stderr
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    err = process.stderr.read().decode()
    assert (process.wait(10), "Traceback" in err) == (130, False)


# ── where it listens, and how it begins ──


def test_the_next_free_port_is_taken_on_this_computer_alone() -> None:
    with closing(idem.bound_socket()) as first, closing(idem.bound_socket()) as second:
        addresses = [each.getsockname() for each in (first, second)]
        assert [host for host, _ in addresses] == ["127.0.0.1"] * 2
        assert idem.FIRST_PORT <= addresses[0][1] < addresses[1][1] < idem.FIRST_PORT + idem.PORTS_TRIED
        with socket.socket() as elsewhere, pytest.raises(OSError, match="refused"):
            elsewhere.connect(("127.0.0.2", addresses[0][1]))


def script(path: Path, text: str) -> Path:
    """A program in place of the browser."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@ON_LINUX
def test_the_browser_is_called_with_the_printed_address(tmp_path: Path, started: Start) -> None:
    opened = tmp_path / "opened"
    browser = script(tmp_path / "browser", f'echo "$#:$1" > {opened}.part; mv {opened}.part {opened}')
    process, server = started(many_doubles(tmp_path / "lib", 1), "--exact", BROWSER=str(browser))
    deadline = time.monotonic() + 10
    while not opened.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert opened.read_text() == f"1:{server.address}\n"
    assert server.post("done", {}).status == 200
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out.decode()) == (0, "")
    assert err.decode() == f"Scanned {tmp_path / 'lib'}: 2 found, 2 new, 0 cached\n"


@ON_LINUX
def test_a_review_of_nothing_says_so_and_opens_nothing(tmp_path: Path) -> None:
    browser = script(tmp_path / "browser", f"touch {tmp_path / 'opened'}")
    save(photo(), tmp_path / "lib" / "a.jpg")
    process = idem_process(tmp_path / "lib", "--review", env=os.environ | {"BROWSER": str(browser)})
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.decode().splitlines()[-1]) == (0, "No duplicates found.")
    assert not (tmp_path / "opened").exists()


@ON_LINUX
def test_without_flask_a_review_gets_one_clear_line(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in (Path(each) for each in sys.path if Path(each).name in ("site-packages", "dist-packages")):
        for each in folder.iterdir():
            if not each.name.lower().startswith("flask") and not (packages / each.name).exists():
                (packages / each.name).symlink_to(each)
    library = many_doubles(tmp_path / "lib", 1)
    command = [sys.executable, "-S", str(HERE / "idem.py"), str(library), "--exact"]
    environment = os.environ | {"PYTHONPATH": str(packages)}
    plain = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (plain.returncode, plain.stdout != b"") == (0, True)
    review = subprocess.run([*command, "--review"], env=environment, capture_output=True, check=False)
    assert (review.returncode, review.stdout) == (2, b"")
    assert review.stderr.decode() == "idem: --review needs Flask: python -m pip install Flask\n"


@pytest.mark.parametrize("size", ["0", "501", "-1", "ten", "1.5", ""])
def test_a_page_of_no_groups_or_too_many_is_refused(
    tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--review", f"--page-size={size}"]) == 2
    assert f"'{size}' is not a whole number from 1 to 500" in capsys.readouterr().err


# ── pictures ──

CORNERS = (220, 40, 40), (40, 180, 60), (50, 60, 210), (230, 210, 50)  # from left to right, the upper ones first
GREYS = 20, 90, 160, 240
CAMERA = {0x010F: "Canon", 0x0110: "Canon EOS R5", 0x0132: "2021:07:05 18:30:00"}


def quarters(size: tuple[int, int] = (900, 600)) -> Image.Image:
    """A picture of a colour in each corner."""
    width, height = size
    picture = Image.new("RGB", size)
    for number, colour in enumerate(CORNERS):
        picture.paste(colour, (number % 2 * width // 2, number // 2 * height // 2, width, height))
    return picture


def corners_of(picture: Image.Image) -> list[tuple[int, ...]]:
    """The mean colours in the four corners."""
    width, height = picture.size
    boxes = [(x, y, x + width // 4, y + height // 4) for y in (0, height * 3 // 4) for x in (0, width * 3 // 4)]
    cells = [np.asarray(picture.convert("RGB").crop(box), float).mean((0, 1)) for box in boxes]
    return [tuple(int(level) for level in cell.round()) for cell in cells]


def camera_tags(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in CAMERA.items():
        exif[tag] = value
    exif[0x8769] = {0x9003: "2021:07:04 12:34:56"}
    return exif


def sixteen_bits() -> Image.Image:
    levels = np.kron(np.array(GREYS).reshape(2, 2), np.ones((300, 450))) * 257
    return Image.fromarray(levels.astype(np.uint16))


def with_a_hole() -> Image.Image:
    picture = quarters().convert("RGBA")
    picture.paste((0, 0, 0, 0), (450, 300, 900, 600))
    return picture


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8))


def gallery_in(library: Path) -> Path:
    """Every picture twice, in folders a and b."""
    first = library / "a"
    save(quarters().transpose(Image.Transpose.ROTATE_90), first / "turned.jpg", exif=camera_tags(6), quality=90)
    save(quarters(), first / "plain.heic", quality=90)
    save(sixteen_bits(), first / "deep.png")
    save(sixteen_bits(), first / "deep.tif")
    save(quarters().convert("CMYK"), first / "print.jpg", quality=90)
    save(with_a_hole(), first / "hole.png")
    save(quarters().convert("P", palette=Image.Palette.ADAPTIVE), first / "palette.gif")
    save(noise(), first / "noise.jpg", quality=90)
    save(quarters((200, 120)), first / "edited.png")
    script = "<script>alert(1)</script>"
    save(quarters((400, 300)), first / "script.jpg", comment=script, xmp=script.encode(), icc_profile=script.encode())
    still = [quarters((320, 208))] * 24
    clip(first / "old.avi", "-c:v", "mpeg4", "-q:v", "3", frames=still)
    clip(first / "new.mp4", frames=still)
    for path in sorted(first.iterdir()):
        made_doubles(library, f"b/{path.name}", content=path.read_bytes())
    return library


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Served pictures of all kinds; those called edited were edited after the scan, with their times restored."""
    library = gallery_in(tmp_path_factory.mktemp("gallery") / "lib")
    review = review_of(library, page_size=50)
    page_of(review)
    for folder in ("a", "b"):
        path = library / folder / "edited.png"
        times = path.stat()
        path.write_bytes(path.read_bytes() + b"!")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    yield from served(library, review)


GREY_CORNERS = [(grey,) * 3 for grey in GREYS]
BACKGROUND = (150, 150, 150)


@pytest.mark.parametrize(
    ("name", "corners", "size"),
    [
        *((name, CORNERS, (900, 600)) for name in ("turned.jpg", "plain.heic", "print.jpg", "palette.gif")),
        *((name, GREY_CORNERS, (900, 600)) for name in ("deep.png", "deep.tif")),
        ("hole.png", (*CORNERS[:3], BACKGROUND), (900, 600)),
        *((name, CORNERS, (320, 208)) for name in ("old.avi", "new.mp4")),
    ],
)
def test_the_browser_is_shown_the_picture_that_the_file_holds(
    gallery: Served, name: str, corners: Sequence[tuple[int, ...]], size: tuple[int, int]
) -> None:
    number = gallery.number_of(name)
    for route, side in (("thumbnail", 640), ("preview", 16_000)):
        answer = gallery.ask(f"{route}/{number}/0")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        assert answer.headers["cache-control"] == idem.FOR_GOOD
        picture = Image.open(io.BytesIO(answer.body))
        scale = min(1, side / size[0])
        assert picture.size == (round(size[0] * scale), round(size[1] * scale))
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert np.abs(np.subtract(corners_of(picture), corners)).max() <= 8, corners_of(picture)
        assert route == "preview" or len(answer.body) < 40_000


def test_what_a_file_says_beside_its_picture_is_not_sent(gallery: Served) -> None:
    number = gallery.number_of("script.jpg")
    for route in ("thumbnail", "preview"):
        answer = gallery.ask(f"{route}/{number}/0")
        assert (answer.status, b"script" in answer.body) == (200, False)


FACTS = {
    "turned.jpg": ("JPEG", "2021-07-04 12:34", "Canon EOS R5"),
    "plain.heic": ("HEIC", "", ""),
    "deep.png": ("PNG · 16-bit", "", ""),
    "deep.tif": ("TIFF · 16-bit", "", ""),
    "print.jpg": ("JPEG · CMYK", "", ""),
    "old.avi": ("AVI · mpeg4", "", ""),
    "new.mp4": ("MP4 · h264", "", ""),
}


@pytest.mark.parametrize("name", list(FACTS))
def test_a_file_tells_its_format_size_date_and_camera(gallery: Served, name: str) -> None:
    width, height = (320, 208) if name in ("old.avi", "new.mp4") else (900, 600)
    expected = dict(zip(("format", "taken", "camera"), FACTS[name], strict=True)) | {"width": width, "height": height}
    assert gallery.ask(f"facts/{gallery.number_of(name)}/0").json() == expected | {"plays": name == "new.mp4"}


def test_noise_gets_a_small_thumbnail_and_a_whole_preview(gallery: Served) -> None:
    number = gallery.number_of("noise.jpg")
    thumbnail, preview = (gallery.ask(f"{route}/{number}/0").body for route in ("thumbnail", "preview"))
    assert len(thumbnail) < 40_000
    width, height = Image.open(io.BytesIO(thumbnail)).size
    assert (width * 3, width >= 160) == (height * 4, True)
    assert Image.open(io.BytesIO(preview)).size == (4000, 3000)


def test_a_file_edited_since_the_scan_is_not_shown_as_what_was_found(gallery: Served) -> None:
    number = gallery.number_of("edited.png")
    reason = "changed while it was scanned"
    for path in ("thumbnail/{}/0", "preview/{}/1", "difference/{}/0/1"):
        assert gallery.ask(path.format(number)).refusal() == (415, reason)
    assert gallery.ask(f"facts/{number}/0").json() == {"reason": reason}


def test_the_difference_is_where_the_pictures_differ(gallery: Served, tmp_path: Path) -> None:
    answer = gallery.ask(f"difference/{gallery.number_of('turned.jpg')}/0/1")
    note: dict[str, Any] = {"largest": 0, "share": 0.0, "visible": 16, "gain": 8, "width": 900, "height": 600}
    note |= {"copy": True, "reason": "the same but for size and compression"}
    assert (answer.status, json.loads(answer.headers["idem-note"])) == (200, note)
    assert np.abs(corners_of(Image.open(io.BytesIO(answer.body)))).max() == 0
    save(quarters(), tmp_path / "one.png")
    other = quarters((450, 300))
    other.paste((255, 255, 255), (0, 0, 100, 60))
    save(other, tmp_path / "other.png")
    for pair in itertools.permutations([media_file(tmp_path / "one.png"), media_file(tmp_path / "other.png")]):
        shown = idem.difference_of(*pair)
        assert isinstance(shown, idem.Rendering)
        note = json.loads(shown.note)
        picture = Image.open(io.BytesIO(shown.data))
        assert (picture.size, note["width"], note["height"], note["largest"]) == ((450, 300), 450, 300, 215)
        assert note["share"] == pytest.approx(100 * 60 / (450 * 300), rel=0.1)
        first, *rest = corners_of(picture)
        assert min(first) > 100
        assert rest == [(0, 0, 0)] * 3


def test_the_spot_in_which_two_pictures_differ_is_framed(tmp_path: Path) -> None:
    one = media_file(save(invoice("250.00"), tmp_path / "bill.png"))
    other = media_file(save(invoice("290.00"), tmp_path / "changed.png"))
    shown = idem.difference_of(one, other)
    assert isinstance(shown, idem.Rendering)
    assert {"copy": False, "reason": "differs in a spot at the right"}.items() <= json.loads(shown.note).items()
    red, _, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(shown.data)).convert("RGB")).astype(int), 2, 0)
    rows, columns = np.nonzero(blue - red > 90)  # the frame; what differs is red, or white
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    # Around the second of the digits that start at 720.
    assert 680 < left < 735 and 745 < right < 800
    assert 552 < top < 595 and 612 < bottom < 654


def test_a_video_is_sent_in_the_parts_that_are_asked_for(gallery: Served) -> None:
    number = gallery.number_of("new.mp4")
    data = (gallery.library / "a" / "new.mp4").read_bytes()
    size, path = len(data), f"video/{number}/0"
    whole = gallery.ask(path)
    assert (whole.status, whole.headers["content-type"], whole.body == data) == (200, "video/mp4", True)
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, first, end in (
        ("bytes=0-", 0, size),
        ("bytes=100-199", 100, 200),
        (f"bytes={size - 1}-", size - 1, size),
        ("bytes=-50", size - 50, size),
        (f"bytes=5-{size * 9}", 5, size),
    ):
        part = gallery.ask(path, headers={"Range": asked})
        assert (part.status, part.headers["content-range"]) == (206, f"bytes {first}-{end - 1}/{size}")
        assert part.headers["content-length"] == str(end - first)
        assert part.body == data[first:end]
    for asked in (f"bytes={size}-", "bytes=999999999999-"):
        assert gallery.ask(path, headers={"Range": asked}).refusal() == (416, "there is no such part")
    for asked in ("bytes=abc", "lines=1-2", "", "bytes=-", "bytes=9-1"):
        assert gallery.ask(path, headers={"Range": asked}).status in (200, 416)
    head = gallery.ask(path, "HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")


def test_a_video_that_browsers_do_not_play_is_converted(gallery: Served, tmp_path: Path) -> None:
    number = gallery.number_of("old.avi")
    assert gallery.ask(f"video/{number}/0").refusal() == (415, "browsers do not play this format")
    answer = gallery.ask(f"converted/{number}/0")
    assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "converted.mp4").write_bytes(answer.body)
    ffmpeg("-i", tmp_path / "converted.mp4", "-frames:v", "1", tmp_path / "frame.png")
    frame = Image.open(tmp_path / "frame.png")
    assert frame.size == (320, 208)
    assert np.abs(np.subtract(corners_of(frame), CORNERS)).max() <= 12
    part = gallery.ask(f"converted/{number}/0", headers={"Range": "bytes=4-7"})
    assert (part.status, part.body) == (206, b"ftyp")
    assert gallery.ask(f"converted/{gallery.number_of('turned.jpg')}/0").refusal() == (404, "there is no such video")


def test_a_video_edited_since_the_scan_is_not_converted_as_what_was_found(gallery: Served, tmp_path: Path) -> None:
    found = media_file(gallery.library / "a" / "old.avi")._replace(mtime_ns=1)
    problem = idem.playable_video(found, str(tmp_path))
    assert isinstance(problem, idem.Problem) and problem.reason == "changed while it was scanned"


def test_any_mutated_picture_has_a_thumbnail_and_metadata_or_a_reason(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", 6
    exif.get_ifd(0x8769)[0x9003] = "2021:07:05 10:11:12"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    both: dict[str, Any] = {"exif": exif, "icc_profile": icc}
    options: dict[str, dict[str, Any]] = {
        **dict.fromkeys((".jpg", ".png", ".webp"), both),
        **{suffix: {} for suffix in (".gif", ".bmp")},
        ".tif": {**both, "compression": "tiff_lzw"},
        ".heic": {"exif": exif.tobytes()},
    }
    intact = {
        suffix: save(photo(4, (96, 72)), tmp_path / f"intact{suffix}", **each).read_bytes()
        for suffix, each in options.items()
    }

    def check(given: tuple[str, list[tuple[int, str, bytes]]]) -> None:
        suffix, mutations = given
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(intact[suffix], mutations))
        thumbnail = in_worker(pool, idem.thumbnail_of, media_file(path))
        if isinstance(thumbnail, idem.Problem):
            assert is_one_line(thumbnail.reason)
        elif thumbnail is not None:
            assert len(thumbnail.data) < idem.THUMBNAIL_BYTES
            assert thumbnail == in_worker(pool, idem.thumbnail_of, media_file(path))
        about = in_worker(pool, idem.details_of, media_file(path))
        if isinstance(about, idem.Problem):
            assert is_one_line(about.reason)
        elif about is not None:
            assert all(idem.printable(text) == text for text in (about.format, about.taken, about.camera))

    with closing(idem.Pool(1)) as pool:
        fuzz(st.tuples(st.sampled_from(list(intact)), MUTATIONS), check)


# ── the workers that make pictures ──


def test_what_is_asked_for_twice_at_once_is_made_once(gallery: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    number, submit, asked = gallery.number_of("noise.jpg"), idem.Pool.submit, []

    def noted(pool: idem.Pool, work: Any, *arguments: Any, **options: Any) -> Any:
        if work is idem.preview_of:
            asked.append(arguments)
            for _ in range(pool.jobs):  # nothing else is done for a second
                submit(pool, time.sleep, 1, priority=-1)
        return submit(pool, work, *arguments, **options)

    monkeypatch.setattr(idem.Pool, "submit", noted)
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: gallery.ask(f"preview/{number}/0"), range(6)))
    assert [answer.status for answer in answers] == [200] * 6
    assert len(asked) == 1


def test_what_nobody_waits_for_any_more_is_not_made(gallery: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    number, submit, asked = gallery.number_of("noise.jpg"), idem.Pool.submit, []

    def noted(pool: idem.Pool, work: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(work)
        if len(asked) == 1:
            for _ in range(pool.jobs):  # nothing else is done for a while
                submit(pool, time.sleep, 0.7, priority=-1)
        return submit(pool, work, *arguments, **options)

    monkeypatch.setattr(idem.Pool, "submit", noted)
    head = f"HTTP/1.1\r\nHost: 127.0.0.1:{gallery.port}\r\n\r\n"
    pairs = [(group, other) for group in gallery.review.shown for other in (0, 1)]
    paths = [f"preview/{group}/{each}" for group, each in pairs] + [
        f"thumbnail/{group}/{each}" for group, each in pairs
    ]
    for path in paths:
        with socket.create_connection(("127.0.0.1", gallery.port), 10) as client:
            client.sendall(f"GET /{gallery.token}/{path} {head}".encode())
    assert gallery.ask(f"thumbnail/{number}/0").status == 200
    assert len(paths) > 10
    assert len(asked) <= 3, "of those that left, only what was handed out before that"


def worker_of(pool: idem.Pool) -> idem.Worker:
    """The first worker that has been given something."""
    while True:
        for worker in list(pool.workers):
            if worker.tasks:
                return worker
        time.sleep(0.001)


@ON_LINUX
def test_a_worker_that_is_killed_over_a_picture_loses_nothing(gallery: Served) -> None:
    files = {name: media_file(gallery.library / "a" / name) for name in ("noise.jpg", "turned.jpg", "hole.png")}
    with closing(idem.Pool(1, threaded=True)) as pool:
        lost = pool.submit(idem.preview_of, files["noise.jpg"])
        worker = worker_of(pool).process
        others = [pool.submit(idem.thumbnail_of, files[name], priority=1) for name in list(files)[1:]]
        os.kill(worker.pid or 0, signal.SIGKILL)
        assert [type(each.result(30)) for each in (lost, *others)] == [idem.Rendering] * 3
        assert pool.workers[0].process.pid != worker.pid


@ON_LINUX
@pytest.mark.parametrize("moment", ["the worker starts", "ffmpeg is at work"])
def test_what_is_being_converted_does_not_hold_up_the_end(tmp_path: Path, gallery: Served, moment: str) -> None:
    long = tmp_path / "long.avi"
    ffmpeg("-stream_loop", "1000", "-i", gallery.library / "a" / "old.avi", "-c", "copy", long)
    pool = idem.Pool(1, threaded=True)
    result = pool.submit(idem.playable_video, media_file(long), str(tmp_path), seconds=3600)
    worker = worker_of(pool).process.pid or 0
    while moment == "ffmpeg is at work" and not workers_of(worker):
        assert not result.done()
    running = [worker, *workers_of(worker)]
    pool.close()
    assert str(result.exception(10)) == "idem is stopping", "it was converted to the end"
    assert still_running(running) == []


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Review in a real browser
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "microsoft-edge", "msedge")
BROWSER_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chrome, Chromium or Edge, whichever is installed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    found = found or next((place for place in BROWSER_PLACES if Path(place).is_file()), None)
    if not found:
        pytest.skip("neither Chrome nor Chromium nor Edge is installed")
    quiet = ["--no-sandbox", "--disable-background-networking", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=quiet)
        yield browser
        browser.close()


@dataclass
class Reviewed:
    """A review that runs: the process as a user starts it, and its page in the browser."""

    library: Path
    process: subprocess.Popen[bytes]
    address: str
    page: Page

    def request(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path) as answer:
            return bytes(answer.read())

    def open(self) -> Page:
        """The page, when its groups are there."""
        self.page.goto(self.address)
        self.page.wait_for_selector("#groups[aria-busy=false]")
        return self.page

    def group(self, name: str) -> Locator:
        """The group of which a file has this name."""
        return self.page.locator("article.group").filter(has=self.page.get_by_text(name, exact=True)).first

    def confirm(self) -> None:
        """Press the button, then that in the dialog, and wait for the result."""
        self.page.get_by_role("button", name="Confirm this page").click()
        self.page.locator("#confirm-yes").click()
        self.page.wait_for_selector("#confirm-dialog:not([open])", state="attached")


Running = tuple[subprocess.Popen[bytes], str]  # the process, and the address of its page


@contextmanager
def running_review(library: Path, *arguments: str) -> Iterator[Running]:
    """The process as a user starts it. In the end it must have failed nowhere."""
    home = {name: str(library.parent) for name in ("HOME", "USERPROFILE")}
    process = idem_process(library, "--review", *arguments, env={**os.environ, "BROWSER": "true", **home})
    assert process.stdout
    try:
        yield process, process.stdout.readline().decode().split()[-1]
    finally:
        process.send_signal(signal.SIGINT) if os.name == "posix" else process.terminate()
        _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err, err.decode()


@contextmanager
def visited(chromium: Browser, library: Path, running: Running, **context: Any) -> Iterator[Reviewed]:
    """The page of a review that runs. In the end it must have had no error and asked nobody but idem."""
    process, address = running
    with chromium.new_context(**({"viewport": {"width": 1280, "height": 800}} | context)) as browser:
        page = browser.new_page()
        page.set_default_timeout(15_000)
        noise: list[str] = []
        page.on("console", lambda said: noise.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda sent: None if is_own(sent.url, address) else noise.append(f"request to {sent.url}"))
        yield Reviewed(library, process, address, page)
        assert noise == []


@contextmanager
def reviewed(chromium: Browser, library: Path, *arguments: str, **context: Any) -> Iterator[Reviewed]:
    """A review of the test's own, and its page."""
    with running_review(library, *arguments) as running, visited(chromium, library, running, **context) as review:
        yield review


def is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", f"blob:{address[: address.index('/', 8)]}"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of nine groups, made once; tests take copies of it."""
    library = tmp_path_factory.mktemp("shelf")
    save(photo(1, (1200, 900)), library / "IMG_1.jpg", quality=95, exif=exif_of("2021:07:05 12:30:00"))
    save(photo(1, (600, 450)), library / "trip" / "beach.jpg")
    save(photo(2, (800, 600)), library / "sea" / "coast.heic", quality=90)
    save(photo(2, (400, 300)), library / "sea" / "coast small.png")
    save(photo(3, (500, 700)), library / f"{HOSTILE}.jpg", quality=95)
    save(photo(3, (250, 350)), library / "plain.jpg")
    for seed in range(4, 10):
        save(photo(seed), library / f"{seed}" / "large.jpg", quality=95)
        save(photo(seed, (320, 240)), library / f"{seed}" / "small.jpg")
    return library


def exif_of(taken: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon EOS 5D"
    exif[0x8769] = {0x9003: taken}
    return exif


@pytest.fixture
def library(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the shelf."""
    return shutil.copytree(shelf, tmp_path / "library")


@pytest.fixture(scope="module")
def running_shelf(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Running]]:
    """One review for all tests that confirm nothing; each of them makes its choices in a group of its own."""
    library = shutil.copytree(shelf, tmp_path_factory.mktemp("shared") / "library")
    with running_review(library) as running:
        yield library, running


@pytest.fixture
def shared(chromium: Browser, running_shelf: tuple[Path, Running]) -> Iterator[Reviewed]:
    """A fresh page of that review."""
    with visited(chromium, *running_shelf) as review:
        yield review


def until(page: Page, condition: str, argument: object = None) -> None:
    """Wait until this JavaScript is true. Playwright's own way is what the page forbids: text run as a script."""
    deadline = time.monotonic() + 15
    while not page.evaluate(condition, argument):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        page.wait_for_timeout(20)


def texts(locator: Locator) -> list[str]:
    return [" ".join(text.split()) for text in locator.all_inner_texts()]


def all_loaded(page: Page, selector: str) -> bool:
    """Whether the pictures are there; waits until they are."""
    until(
        page,
        "selector => [...document.querySelectorAll(selector)].every(each => each.complete && each.naturalWidth)",
        selector,
    )
    return True


def test_the_page_shows_every_group_its_files_and_what_will_happen(shared: Reviewed) -> None:
    page = shared.open()
    assert page.locator("article.group").count() == 9
    assert texts(page.locator("#totals"))[0].startswith("9 groups left · 18 files · ")
    group = shared.group("beach.jpg")
    assert texts(group.locator(".card .name")) == ["IMG_1.jpg", "beach.jpg"]
    assert texts(group.locator(".card .folder")) == ["top folder", "trip"]
    until(page, "document.body.innerText.includes('Canon EOS 5D')")
    shown = [texts(card.locator(".facts > div")) for card in group.locator(".card").all()]
    assert [[*rows[:1], *rows[2:]] for rows in shown] == [
        ["Dimensions 1200 × 900 · 1.1 MP", "Format JPEG", "Taken 2021-07-05 12:30", "Camera Canon EOS 5D"],
        [
            "Dimensions 600 × 450 · 0.3 MP (differs from the kept copy)",
            "Format JPEG",
            "Taken — (differs from the kept copy)",
            "Camera — (differs from the kept copy)",
        ],
    ]
    assert [each.is_checked() for each in group.get_by_role("switch").all()] == [True, False]
    assert texts(group.locator(".plan > *")) == [
        "Keep IMG_1.jpg as trip/beach.jpg (largest: 1.1 MP)",
        "Trash trip/beach.jpg",
    ]
    assert all_loaded(page, "article.group:first-of-type .well img")


def test_what_is_chosen_is_said_and_done_and_undone(chromium: Browser, library: Path) -> None:
    before = contents(library)
    with reviewed(chromium, library, "--page-size", "2", "--limit", "2") as review:
        page = review.open()
        group = review.group("beach.jpg")
        group.get_by_label("Use this folder: the top folder").check()
        plan = group.locator(".plan > *")
        until(page, "document.body.innerText.includes('IMG_1.jpg as beach.jpg')")
        assert texts(plan) == [
            "Keep IMG_1.jpg as beach.jpg (largest: 1.1 MP)",
            "Trash trip/beach.jpg",
        ]
        review.group("coast.heic").get_by_role("switch", name="Keep sea/coast small.png").check()
        review.group("coast.heic").get_by_text("nothing", exact=True).wait_for()
        review.confirm()
        assert texts(page.locator("#result h2")) == ["1 file moved to the trash, 1 renamed or moved."]
        expected = dict(before)
        expected["beach.jpg"] = expected.pop("IMG_1.jpg")
        expected[f"{idem.TRASH_FOLDER}/trip/beach.jpg"] = expected.pop("trip/beach.jpg")
        assert contents(library) == expected
        assert page.locator("article.group").count() == 0
        page.locator("#undo").click()
        page.wait_for_selector("article.group")
        assert texts(page.locator("#result h2")) == ["2 files put back."]
        assert contents(library) == before


def test_the_last_copy_that_is_kept_cannot_be_switched_off(shared: Reviewed) -> None:
    page = shared.open()
    switch = shared.group("beach.jpg").get_by_role("switch", name="Keep IMG_1.jpg")
    switch.click()
    assert switch.is_checked()
    assert page.locator("#announcer").inner_text().startswith("At least one copy stays")


def test_skipped_groups_come_back_only_when_asked_for(chromium: Browser, library: Path) -> None:
    with reviewed(chromium, library, "--page-size", "4") as review:
        page = review.open()
        titles = page.locator("article.group h2 span:nth-child(2)")
        first = texts(titles)
        page.locator("article.group").nth(1).get_by_role("button", name="Skip group").click()
        page.get_by_role("button", name="Skipped (1)").wait_for()
        seen = []
        for shown in ("2 of 3", "3 of 3"):
            page.get_by_role("button", name="Next page").click()
            until(page, f"document.querySelector('#pages').innerText.includes('{shown}')")
            seen += texts(titles)
        assert (len(first + seen), page.locator("#next").is_disabled()) == (9, True)
        page.reload()
        page.wait_for_selector("#groups[aria-busy=false]")
        assert texts(page.locator("#pages")) == ["Page 3 of 3"]
        page.get_by_role("button", name="Skipped (1)").click()
        page.get_by_role("button", name="Bring back").wait_for()
        assert texts(titles) == [first[1]]
        page.get_by_role("button", name="Bring back").click()
        page.get_by_role("button", name="Back to the others").click()
        until(page, "document.querySelectorAll('article.group').length == 4")
        assert texts(titles) == first


def test_choices_survive_a_reload(shared: Reviewed) -> None:
    page = shared.open()
    shared.group("plain.jpg").get_by_role("switch", name="Keep plain.jpg").check()
    shared.group("plain.jpg").get_by_text("nothing", exact=True).wait_for()
    page.reload()
    page.wait_for_selector("article.group")
    switches = shared.group("plain.jpg").get_by_role("switch").all()
    assert [each.is_checked() for each in switches] == [True, True]


def test_everything_can_be_done_by_keys(chromium: Browser, library: Path) -> None:
    before = contents(library)
    with reviewed(chromium, library, "--page-size", "2") as review:
        page = review.open()
        current = page.locator("article.group.current")
        for key in ("j", "ArrowDown", "k"):
            page.keyboard.press(key)
        assert current.locator("h2").inner_text() == page.locator("article.group h2").first.inner_text()
        assert page.evaluate("document.activeElement.matches('article.group')")
        page.keyboard.press("2")
        page.keyboard.press("1")
        until(page, "!document.querySelector('.current .switch input').checked")
        assert [each.is_checked() for each in current.get_by_role("switch").all()] == [False, True]
        page.keyboard.press("n")
        page.keyboard.press("f")
        page.keyboard.press("j")
        page.keyboard.press("s")
        page.get_by_role("button", name="Skipped (1)").wait_for()
        page.keyboard.press("Enter")
        page.wait_for_selector("#confirm-yes:focus")
        page.keyboard.press("Enter")
        page.wait_for_selector("#result:not([hidden])")
        page.wait_for_selector("#confirm-dialog:not([open])", state="attached")
        assert len([name for name in contents(library) if name.startswith(idem.TRASH_FOLDER)]) == 1
        page.keyboard.press("u")
        page.locator("#result h2").get_by_text("put back.").wait_for()
        page.wait_for_selector("#confirm-dialog:not([open])", state="attached")
        assert contents(library) == before
        page.keyboard.press("ArrowRight")
        until(page, "document.querySelector('#pages').innerText.includes('2 of')")
        page.keyboard.press("?")
        page.wait_for_selector("#help[open]")
        listed = [" ".join(texts(page.locator(f"#{where}-keys dt"))) for where in ("page", "viewer")]
        assert listed == ["↓ j ↑ k 1 … 9 n f s Space ← → Enter u ?", "← → + − 0 z d 1 … 9 p Space Esc"]
        page.keyboard.press("Escape")
        page.wait_for_selector("#help:not([open])", state="attached")


def test_keys_that_come_faster_than_answers_all_count(chromium: Browser, tmp_path: Path) -> None:
    made_doubles(tmp_path, *(f"{number}.jpg" for number in range(7)), content=photo_bytes())
    with reviewed(chromium, tmp_path, "--exact") as review:
        page = review.open()
        page.wait_for_load_state("networkidle")
        page.route("**/choose*", slowly)
        page.keyboard.press("j")
        shown = page.locator("article.group").get_by_role("switch")
        first = [each.is_checked() for each in shown.all()].index(True)
        wanted = {first} | {number for number in range(6) if number != first}
        for number in sorted(wanted - {first}):
            page.keyboard.press(str(number + 1))
        until(page, "document.querySelectorAll('.plan .keeps').length == 6")
        (kept_now,) = json.loads(review.request("groups"))["groups"]
        assert set(kept_now["keep"]) == wanted


def slowly(route: Route) -> None:
    time.sleep(0.05)
    route.continue_()


def photo_bytes() -> bytes:
    data = io.BytesIO()
    photo(1, (64, 48)).save(data, "JPEG")
    return data.getvalue()


def test_a_name_that_looks_like_markup_is_text_and_its_file_moves(chromium: Browser, library: Path) -> None:
    with reviewed(chromium, library) as review:
        page = review.open()
        page.on("dialog", lambda dialog: pytest.fail(f"a file name ran a script: {dialog.message}"))
        group = review.group(f"{HOSTILE}.jpg")
        group.get_by_role("switch", name="Keep plain.jpg").check()
        group.get_by_role("switch", name=f"Keep {HOSTILE}.jpg").uncheck()
        group.get_by_label("Use this name: plain.jpg").check()
        group.locator(".plan .trashes").get_by_text(f"{HOSTILE}.jpg").wait_for()
        review.confirm()
        page.get_by_text("All moves").click()
        assert f"trashed   {HOSTILE}.jpg" in page.locator(".moves").inner_text()
        assert page.locator("img[src=x]").count() == 0
    assert (library / idem.TRASH_FOLDER / f"{HOSTILE}.jpg").is_file()


def box_of(layer: Locator) -> tuple[float, float, float, float]:
    box = layer.bounding_box()
    assert box
    return tuple(round(box[side]) for side in ("x", "y", "width", "height"))  # type: ignore[return-value]


def test_the_viewer_flips_in_place_at_the_same_zoom(shared: Reviewed) -> None:
    page = shared.open()
    shared.group("coast.heic").locator(".well").first.click()
    page.wait_for_selector("#viewer[open]")
    layers = page.locator("#stage .layer")
    until(page, "[...document.querySelectorAll('#stage .layer')].every(e => e.src.includes('preview'))")
    assert layers.evaluate_all("all => all.map(each => each.naturalWidth)") == [800, 400]
    page.keyboard.press("z")
    assert texts(page.locator("#zoom")) == ["100 %"]
    stage = page.locator("#stage").bounding_box()
    assert stage
    page.mouse.move(stage["x"] + 300, stage["y"] + 200)
    page.mouse.wheel(0, -400)
    page.mouse.down()
    page.mouse.move(stage["x"] + 340, stage["y"] + 250)
    page.mouse.up()
    place = box_of(layers.nth(0))
    assert place[2] > 800
    page.keyboard.press("ArrowRight")
    assert layers.evaluate_all("all => all.map(each => each.classList.contains('on'))") == [False, True]
    assert box_of(layers.nth(1)) == place
    page.keyboard.press("d")
    until(page, "document.querySelector('#viewer-message').innerText.includes('levels apart')")
    assert box_of(page.locator("#stage .over")) == place
    page.keyboard.press("d")
    page.keyboard.press("2")
    assert page.locator("#viewer-keep").is_checked()
    page.keyboard.press(" ")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.evaluate("document.activeElement.matches('.card:first-child .well')")  # where it was before


def test_the_reason_of_a_look_alike_opens_the_difference(chromium: Browser, tmp_path: Path) -> None:
    save(invoice("250.00"), tmp_path / "bill.png")
    save(invoice("290.00"), tmp_path / "changed.png", compress_level=1)
    with reviewed(chromium, tmp_path, "--threshold", "6") as review:
        page = review.open()
        page.locator(".alike", has_text="differs in a spot at the right").click()
        page.wait_for_selector("#viewer[open]")
        until(page, "document.querySelector('#viewer-message').innerText.includes('differs in a spot at the right')")
        assert page.locator("#stage .over").count() == 1


def test_an_answer_that_comes_late_is_shown_for_no_other_picture(shared: Reviewed) -> None:
    page, held, released = shared.page, list[Route](), threading.Event()

    def hold(route: Route) -> None:
        route.continue_() if released.is_set() else held.append(route)

    page.route(re.compile("/(preview|difference|facts)/"), hold)
    shared.open()

    def see_large(name: str) -> None:
        shared.group(name).locator(".well").first.click()
        page.wait_for_selector("#viewer[open]")

    see_large("coast.heic")
    for key in ("d", "ArrowRight", "d", " "):
        page.keyboard.press(key)
        page.wait_for_timeout(50)  # the browser asks
    see_large("beach.jpg")
    assert {"preview", "difference", "facts"} == {route.request.url.split("/")[4] for route in held}
    asked = page.locator("#stage .layer").evaluate_all("all => all.map(each => each.src)")
    released.set()
    for route in held:
        route.continue_()
    until(page, "[...document.querySelectorAll('#stage .layer')].every(each => each.src.includes('preview'))")
    page.wait_for_load_state("networkidle")
    shown = page.locator("#stage .layer").evaluate_all("all => all.map(each => each.src)")
    assert shown == [each.replace("thumbnail", "preview") for each in asked]
    assert (texts(page.locator("#viewer-message")), page.locator("#stage .over").count()) == ([""], 0)
    page.keyboard.press(" ")
    formats = {
        name: texts(shared.group(name).locator(".facts div:has(dt:text-is('Format')) dd span:first-child"))
        for name in ("coast.heic", "beach.jpg")
    }
    assert formats == {"coast.heic": ["HEIC", "PNG"], "beach.jpg": ["JPEG", "JPEG"]}


def test_videos_play_or_are_converted_for_the_browser(chromium: Browser, tmp_path: Path) -> None:
    clip(tmp_path / "clip.mp4", seconds=5, size=(160, 120))
    ffmpeg("-i", tmp_path / "clip.mp4", "-c:v", "mpeg4", "-q:v", "2", tmp_path / "a.avi")
    with reviewed(chromium, tmp_path, "--video") as review:
        page = review.open()
        assert all_loaded(page, ".well img")
        page.keyboard.press(" ")
        page.wait_for_selector("#viewer[open]")
        names = texts(review.page.locator(".card .name"))
        video = "document.querySelector('#stage video.on')"
        assert sorted(names) == ["a.avi", "clip.mp4"]
        for name in names:
            until(page, f"{video}.readyState >= 2")
            assert page.locator("#viewer-name").inner_text() == name
            assert {"clip.mp4": "/video/", "a.avi": "/converted/"}[name] in page.evaluate(f"{video}.currentSrc")
            page.evaluate(f"{video}.currentTime = 3")
            until(page, f"!{video}.seeking && Math.abs({video}.currentTime - 3) < 0.2")
            page.keyboard.press("p")
            until(page, f"{video}.currentTime > 3.1")
            page.keyboard.press("p")
            page.keyboard.press("ArrowRight")
        assert page.evaluate(f"{video}.currentTime") >= 3


def test_a_narrow_screen_shows_all_without_scrolling_sideways(chromium: Browser, library: Path) -> None:
    small = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    with reviewed(chromium, library, "--limit", "2", **small) as review:
        page = review.open()
        assert page.evaluate("document.scrollingElement.scrollWidth") == 360
        page.locator(".well").first.tap()
        page.wait_for_selector("#viewer[open]")
        assert page.evaluate("document.querySelector('#viewer').scrollWidth") == 360
        page.locator("#viewer-close").tap()
        page.get_by_role("button", name="Confirm this page").tap()
        page.locator("#confirm-yes").tap()
        page.wait_for_selector("#result:not([hidden])")
        assert page.evaluate("document.scrollingElement.scrollWidth") == 360
    assert sum(path.is_file() for path in (library / idem.TRASH_FOLDER).rglob("*")) == 2


def test_a_page_opened_again_while_files_move_waits_for_them(chromium: Browser, tmp_path: Path) -> None:
    for number in range(100):
        save(photo(number, (32, 24)), tmp_path / f"a{number}.png")
        shutil.copy(tmp_path / f"a{number}.png", tmp_path / f"b{number}.png")
    with reviewed(chromium, tmp_path, "--exact", "--page-size", "100") as review:
        page = review.open()
        page.wait_for_load_state("networkidle")
        page.keyboard.press("Enter")
        page.wait_for_selector("#confirm-yes:focus")
        page.evaluate("document.querySelector('#confirm-yes').click()")
        while json.loads(review.request("progress"))["moving"] is None:
            page.wait_for_timeout(5)
        page.reload()
        page.locator("#result h2").get_by_text("100 files moved to the trash").wait_for()
    assert sum(name.startswith(idem.TRASH_FOLDER) for name in contents(tmp_path)) == 100


def test_a_page_whose_idem_has_ended_says_so(chromium: Browser, library: Path) -> None:
    with reviewed(chromium, library) as review:
        page = review.open()
        assert all_loaded(page, ".group:nth-of-type(-n+2) .well img")
        page.get_by_role("button", name="Done", exact=True).click()
        page.get_by_role("heading", name="idem has ended").wait_for()
        assert review.process.wait(timeout=20) == 0


def serious(page: Page) -> list[tuple[str, list[str]]]:
    """What axe finds wrong, but for trifles, and where."""
    found = Axe().run(page).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] != "minor"]


def test_page_dialogs_and_viewer_are_accessible(chromium: Browser, library: Path) -> None:
    found: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}

    def look(what: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found[what, scheme] = serious(page)

    with reviewed(chromium, library, "--limit", "3", reduced_motion="reduce") as review:
        page = review.open()
        until(page, "document.body.innerText.includes('Canon EOS 5D')")
        page.keyboard.press("j")
        page.keyboard.press("s")
        page.get_by_role("button", name="Skipped (1)").wait_for()
        look("page")
        page.keyboard.press("?")
        look("keys")
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press(" ")
        page.wait_for_selector("#viewer[open]")
        look("viewer")
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        page.wait_for_selector("#confirm-yes:focus")
        look("dialog")
        page.keyboard.press("Enter")
        page.wait_for_selector("#result:not([hidden])")
        page.wait_for_selector("#confirm-dialog:not([open])", state="attached")
        look("result")
    places = itertools.product(("page", "keys", "viewer", "dialog", "result"), ("light", "dark"))
    assert found == {place: [] for place in places}


def landscape(seed: int, size: tuple[int, int] = (1500, 1000)) -> Image.Image:
    """Hills before an evening sky, for pictures that people are to look at."""
    rng = np.random.default_rng(seed)
    width, height = size
    down = np.linspace(0, 1, height)[:, None, None]
    top, low = rng.uniform(40, 120, 3), np.array([250, 190, 120]) - rng.uniform(0, 60, 3)
    picture = np.broadcast_to(top + (low - top) * down**0.7, (height, width, 3)).copy()
    across, rows = np.linspace(0, 1, width), np.arange(height)[:, None]
    for hill in range(5):
        waves = sum(np.sin(across * rng.uniform(4, 30) + rng.uniform(0, 7)) / (2 + wave) for wave in range(4))
        ridge = height * (0.45 + 0.1 * hill) + waves * height * 0.03
        shade = np.array([70, 90, 110]) * (1 - hill / 6) + rng.uniform(0, 20, 3)
        picture[rows >= ridge] = shade
    grain = rng.normal(0, 3, (height, width, 1))
    return Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))


def test_the_picture_in_the_readme_shows_the_page(chromium: Browser, tmp_path: Path) -> None:
    """IDEM_SCREENSHOT=static/review.webp makes it anew."""
    library = tmp_path / "Photos"
    exif = exif_of("2021:07:05 21:14:00")
    evening, hills = landscape(3), landscape(8)
    save(evening, library / "phone" / "IMG_4711.jpg", quality=92, exif=exif)
    save(evening.resize((1200, 800)), library / "Lofoten 2021" / "Evening at Reine.jpg", quality=85, exif=exif)
    save(evening.resize((900, 600)), library / "sent" / "WhatsApp Image 2021-07-06.jpg", quality=70)
    save(hills, library / "Harz" / "Brocken.heic", quality=85)
    save(hills.resize((900, 600)), library / "Harz" / "Brocken small.png")
    with reviewed(chromium, library, viewport={"width": 1280, "height": 830}, device_scale_factor=1.5) as review:
        page = review.open()
        page.wait_for_load_state("networkidle")
        assert page.locator(".library").inner_text() == os.path.join("~", "Photos")
        seen = Image.open(io.BytesIO(page.screenshot()))
    assert seen.size == (1920, 1245)
    small = np.asarray(seen.convert("RGB").resize((64, 48))).reshape(-1, 3)
    assert len(np.unique(small, axis=0)) > 500  # the pictures are there
    if wanted := os.environ.get("IDEM_SCREENSHOT"):
        seen.convert("RGB").save(HERE / wanted, quality=60, method=6)


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Storms: faults at random, and what must hold after each
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════

# The seed stands in the name of every test. To repeat one: IDEM_SEED=<seed> IDEM_ROUNDS=1. For a storm worth its name:
# IDEM_ROUNDS=200 python -m pytest test_idem.py -m storm
ROUNDS = int(os.environ.get("IDEM_ROUNDS", "1"))
FIRST_SEED = int(os.environ.get("IDEM_SEED", "1"))
IN_A_STORM = pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + ROUNDS))

Tree = dict[str, tuple[str, int]]  # by relative path: SHA-256, or where a link leads; time of modification in ns


def tree(folder: Path) -> Tree:
    """All files and links in the folder, but for idem's caches and journal."""
    found: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if "__databases" in name.parts or (path.is_dir() and not path.is_symlink()):
            continue
        what = os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[name.as_posix()] = what, path.lstat().st_mtime_ns
    return found


def bag(files: Tree) -> Counter[str]:
    """How often each content is there."""
    return Counter(digest for digest, _ in files.values())


def live(files: Tree) -> Tree:
    """Those outside the trash that may be media."""
    suffixes = idem.IMAGE_SUFFIXES | idem.VIDEO_SUFFIXES
    return {
        name: each
        for name, each in files.items()
        if TRASH not in Path(name).parts and Path(name).suffix.lower() in suffixes
    }


def without_parts(files: Tree) -> Tree:
    """All but the parts of copies that a killed run leaves."""
    return {name: each for name, each in files.items() if not re.search(r"(^|/)\.idem-[0-9-]+\.part$", name)}


@dataclass
class Storm:
    """A library, what is outside of it, and the processes of idem that work on it."""

    folder: Path  # of it all
    mode: tuple[str, ...] = ("--exact", "--jobs", "1")
    group_of: dict[str, str] = dataclasses.field(default_factory=dict)  # by content, where it is not a group of its own
    before: Tree = dataclasses.field(default_factory=dict)
    outside: Tree = dataclasses.field(default_factory=dict)
    was_killed: bool = False  # some run was, and may have left a part of a copy

    @property
    def library(self) -> Path:
        return self.folder / "lib"

    def __post_init__(self) -> None:
        self.library.mkdir()

    def begin(self) -> None:
        """From now on nothing may be lost."""
        (self.folder / "taken").mkdir()
        made(
            self.folder / "outside",
            {"beach.jpg": "another's", "IMG_1.jpg": "another's too", "IMG_1.xmp": "their edits"},
        )
        self.before, self.outside = tree(self.library), tree(self.folder / "outside")

    def start(self, *arguments: str, answers: str = "", folder: str = "", name: str = "run") -> BaseProcess:
        """A process that runs idem on the library, or a folder in it."""
        files = self.folder / name
        files.mkdir(exist_ok=True)
        if not (files / "0").is_fifo():
            (files / "0").write_text(answers)
        for number in "12":
            (files / number).write_bytes(b"")
        whole = (str(self.library / folder), *self.mode, *arguments)
        process = forks().Process(target=run_in_storm, args=(files, whole))
        process.start()
        return process

    def said(self, name: str = "run") -> str:
        said = "".join(path.read_text(errors="replace") for path in sorted((self.folder / name).glob("[12]")))
        return KILLED_AT_ITS_START.sub("", said)

    def run(self, *arguments: str, answers: str = "", folder: str = "") -> int:
        """The exit status of a run that nobody kills."""
        process = self.start(*arguments, answers=answers, folder=folder)
        process.join(120)
        assert process.exitcode is not None, f"it hangs: {self.said()}"
        assert "Traceback" not in self.said(), self.said()
        assert process.exitcode in (0, 1, 2), self.said()
        return process.exitcode

    def is_killed(self, seconds: float, *arguments: str, answers: str = "") -> bool:
        """Start a run, and kill it after this time; whether it was still running."""
        process = self.start(*arguments, answers=answers)
        process.join(seconds)
        process.kill()
        process.join()
        assert "Traceback" not in self.said(), self.said()
        killed = process.exitcode == -signal.SIGKILL
        self.was_killed |= killed
        return killed

    def check(self, *, cut_off: bool = False) -> None:
        """The oracle. A move that was just cut off may leave a second copy; any that was, a part of one."""
        now = without_parts(tree(self.library)) if cut_off or self.was_killed else tree(self.library)
        lost, more = bag(self.before) - bag(now), bag(now) - bag(self.before)
        assert not lost, f"lost: {[name for name, each in self.before.items() if each[0] in lost]}; {self.said()}"
        strange = [
            name for name, each in now.items() if each[0] in more and not (cut_off and each[0] in bag(self.before))
        ]
        assert not strange, f"{strange}; {self.said()}"
        groups, left = (
            {self.group_of.get(digest, digest) for digest, _ in live(files).values()} for files in (self.before, now)
        )
        assert groups <= left, f"only in the trash: {groups - left}; {self.said()}"
        assert tree(self.folder / "outside") == self.outside

    def undo_all(self, folder: str = "") -> None:
        """Undo until that changes nothing any more. What cannot go back is given a second chance by then."""
        unchanged = 0
        while unchanged < 2:
            before = tree(self.library)
            self.run("--undo", folder=folder)
            unchanged = unchanged + 1 if tree(self.library) == before else 0

    def check_restored(self) -> None:
        """After an undo of everything all is where it was, with its time; what a kill left unfinished may be there."""
        self.undo_all()
        now = without_parts(tree(self.library))
        assert now == self.before, f"{sorted(set(now.items()) ^ set(self.before.items()))}; {self.said()}"


def run_in_storm(files: Path, arguments: tuple[str, ...]) -> None:
    """idem, with its input and output in these files."""
    for number, flags in enumerate([os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND]):
        os.dup2(os.open(files / str(number), flags), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    os.environ["BROWSER"] = "true"
    sys.exit(main(arguments))


@functools.cache
def forks() -> ForkServerContext:
    """Makes processes that have imported idem already: a kill then meets its work, not its start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_idem"])
    return context


# What Python says in a worker whose run is killed while it starts.
KILLED_AT_ITS_START = re.compile(r"Traceback .*\n(?:  .*\n)+EOFError: Ran out of input\n")
ALL = "k\n" * 30  # to every question: as suggested


def growing(rng: random.Random) -> Iterator[float]:
    """Seconds after which to kill a run, longer and longer: sooner or later one gets through."""
    seconds = rng.uniform(0.01, 0.1)
    while True:
        yield seconds
        seconds *= rng.uniform(1.2, 2.5) if ROUNDS > 1 else 3


FOLDERS = ["", "beach", "lake boat", "backup", "2021/07 new york", "backup/lake boat"]
NAMES = ["IMG_1", "IMG_2", "beach", "boat trip", "Zürich (1)", "new york 5", "IMG_20210705"]


def doubles_for_storm(library: Path, rng: random.Random, groups: int = 4) -> None:
    """Groups of equal files whose names collide, some with sidecars, a RAW file or a Live Photo's movie, and others."""
    free = [
        (folder, name + again) for folder in FOLDERS for name in NAMES for again in ("", " 2", " 3")[: 1 + groups // 6]
    ]
    rng.shuffle(free)
    photo, movie = live_photo()
    for group in range(groups):
        content = photo if group == 0 else b"picture %d " % group * rng.randint(1, 4000)
        for copy in range(rng.randint(2, 4)):
            folder, name = free.pop()
            beside = [suffix for suffix in (".xmp", ".AAE", ".jpg.json", ".cr2") if rng.random() < 0.25]
            made_doubles(library, f"{folder}/{name}.jpg", content=content)
            for suffix in beside:
                made_doubles(library, f"{folder}/{name}{suffix}", content=b"%s %d %d" % (suffix.encode(), group, copy))
            if group == 0 and rng.random() < 0.6:
                made_doubles(library, f"{folder}/{name}.mov", content=movie)
    folder, name = free.pop()
    made_doubles(library, f"{folder}/{name}.jpg", content=b"alone")
    for path in library.rglob("*.*"):
        os.utime(path, ns=(rng.randrange(10**18, 15 * 10**17),) * 2)


@functools.cache
def live_photo() -> tuple[bytes, bytes]:
    """A photo and its movie, taken at the same moment."""
    with tempfile.TemporaryDirectory() as folder:
        exif = Image.Exif()
        exif[0x0132] = "2021:07:05 10:00:00"
        exif.get_ifd(0x8769)[0x9003] = "2021:07:05 10:00:00"
        path = save(photo(1, (64, 48)), Path(folder) / "a.jpg", exif=exif)
        said = ["-c:v", "libx264", "-metadata", "creation_time=2021-07-05T10:00:01Z"]
        movie = clip(Path(folder) / "a.mov", *said, seconds=1, size=(64, 48))
        return path.read_bytes(), movie.read_bytes()


def photos_for_storm(storm: Storm, rng: random.Random) -> None:
    """Groups of pictures that show the same in other formats and sizes."""
    storm.mode = ("--jobs", "2")
    for seed in rng.sample(range(100), 4):
        names = rng.sample([f"{folder}/{name} {seed}" for folder in FOLDERS for name in NAMES], 4)
        for number, name in enumerate(names[: rng.randint(2, 4)]):
            picture = photo(seed, (320, 240)) if number else photo(seed, (400, 300))
            suffix = rng.choice([".jpg", ".png", ".webp"])
            save(picture, storm.library / (name + suffix), **({} if suffix == ".png" else {"quality": 90 + number}))
    for name, (digest, _) in tree(storm.library).items():
        storm.group_of[digest] = Path(name).stem.split()[-1]


@pytest.fixture
def storm(tmp_path: Path) -> Storm:
    return Storm(tmp_path)


@contextmanager
def trash_on(drive: str, storm: Storm) -> Iterator[None]:
    """The trash on the drive of the library, or on one of its own."""
    if drive == "same":
        yield
    else:
        with mounted(storm.library / TRASH, "-t", "tmpfs", "tmpfs"):
            yield


DRIVES = ["same", "other"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["same"]  # only root may mount


# ── kills ──


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_a_scan_that_is_killed_and_torn_again_and_again_finds_the_same_groups(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    photos_for_storm(storm, rng)
    storm.begin()
    assert storm.run("--json", "--cache", str(storm.folder / "clean")) == 0
    clean = json.loads((storm.folder / "run" / "1").read_text())["groups"]
    for seconds in growing(rng):
        killed = storm.is_killed(seconds, "--json")
        for cache in sorted((storm.library / "__databases").glob("*.csv")):
            if rng.random() < 0.7:
                torn(cache, rng, lines=2)
        if not killed:
            break
    assert storm.run("--json") == 0
    assert json.loads((storm.folder / "run" / "1").read_text())["groups"] == clean
    assert tree(storm.library) == storm.before


def torn(path: Path, rng: random.Random, lines: int = 1) -> None:
    """Cut the file off at any byte of its last lines, or zero it from there on, as a machine that crashes may."""
    whole = path.read_bytes()
    tail = b"".join(whole.splitlines(keepends=True)[-lines:])
    at = len(whole) - rng.randint(0, len(tail))
    path.write_bytes(whole[:at] + b"\0" * (len(whole) - at if rng.random() < 0.3 else 0))


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_a_batch_and_its_undo_that_are_killed_at_any_moment_are_undone(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng)
    storm.begin()
    with trash_on(rng.choice(DRIVES), storm):
        for seconds in growing(rng):
            killed = storm.is_killed(seconds, "--interactive", answers=ALL)
            storm.check(cut_off=killed)
            for undo_seconds in growing(rng):
                if not storm.is_killed(undo_seconds, "--undo"):
                    break
                storm.check(cut_off=True)
            storm.check_restored()
            if not killed:
                break


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_a_review_that_is_killed_during_a_confirm_is_undone(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=8)
    storm.begin()
    with trash_on(rng.choice(DRIVES), storm), ThreadPoolExecutor(1) as pool:
        process = storm.start("--review")
        while not (found := re.search(r"http://127\.0\.0\.1:\S+\n", storm.said())) and process.is_alive():
            time.sleep(0.01)
        assert found, storm.said()
        server = Client(found[0].strip())
        page = server.ask("groups").json()
        body = {"groups": [{"group": n, "revision": 0, "keep": [0]} for n in numbers(page)]}
        confirmed = pool.submit(server.post, "confirm", body)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        with suppress(OSError, http.client.HTTPException):
            confirmed.result()
        storm.check(cut_off=True)
        storm.check_restored()


# ── a machine that crashes ──

STRACE = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed; it makes system calls fail")


class Call(NamedTuple):
    """A system call of a run, about a file of the library or of idem's own there."""

    name: str
    number: int  # of the calls of this name by the main thread; from 1
    line: str


@dataclass(frozen=True)
class Traced:
    status: int
    said: str
    calls: tuple[Call, ...]


def traced(storm: Storm, *arguments: str, answers: str = "", inject: str = "", calls: str = "") -> Traced:
    """Run idem under strace, which looks at these system calls and makes some fail."""
    log = storm.folder / f"calls {threading.get_ident()}"
    command = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-o", str(log), "-e", f"trace={calls}"]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, str(HERE / "idem.py"), str(storm.library), *storm.mode, *arguments]
    done = subprocess.run(command, input=answers.encode(), capture_output=True, check=False, timeout=120)
    said = (done.stdout + done.stderr).decode(errors="replace")
    if "ptrace" in said:
        pytest.skip(f"strace may not trace here: {said.strip()}")
    assert "Traceback" not in said, said
    lines = [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]
    count: Counter[str] = Counter()
    found = []
    for process, line in lines:
        if process == lines[0][0] and (match := re.match(r"(\w+)\(", line)):
            count[match[1]] += 1
            if str(storm.library) in line and not line.startswith(("write(1<", "write(2<")):
                found.append(Call(match[1], count[match[1]], line))
    return Traced(done.returncode, said, tuple(found))


@pytest.mark.storm
@ON_LINUX
@STRACE
@IN_A_STORM
def test_a_machine_that_crashes_before_a_line_of_the_journal_is_saved_loses_nothing(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=2)
    storm.begin()
    journal = storm.library / "__databases" / idem.JOURNAL_FILE
    with trash_on(rng.choice(DRIVES), storm):
        number = rng.randint(1, 20)
        inject = f"fsync:signal=KILL:when={number}"
        run = traced(storm, "--interactive", answers=ALL, inject=inject, calls="fsync")
        if run.calls and run.calls[-1].number == number and journal.name in run.calls[-1].line:
            torn(journal, rng)
        storm.check(cut_off=True)
        storm.check_restored()


# ── system calls that fail ──

ERRORS = ["EIO", "ENOSPC", "EACCES", "EPERM", "EXDEV", "EINTR", "EROFS", "EDQUOT", "EMFILE"]
CHANGES = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,fsync,fdatasync,write,mkdir,mkdirat,ftruncate"
CHANGES += ",copy_file_range,sendfile,utimensat,fchmod,fchmodat"
CALLS = CHANGES + ",openat,lseek,read,newfstatat,fstat,statx,getdents64"


@functools.cache
def calls_of(drive: str, action: str, seed: int) -> tuple[Call, ...]:
    """The system calls of a batch, or of its undo, about the library that this seed makes."""
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder))
        with trash_on(drive, storm):
            run_before(storm, action, seed)
            return traced(storm, action, answers=ALL, calls=CALLS).calls


def run_before(storm: Storm, action: str, seed: int) -> None:
    """A library on which idem can do this."""
    doubles_for_storm(storm.library, random.Random(seed), groups=3)
    storm.begin()
    if action == "--undo":
        assert storm.run("--interactive", answers=ALL) == 0


@pytest.mark.storm
@ON_LINUX
@STRACE
@IN_A_STORM
def test_whatever_system_call_fails_nothing_is_lost_and_the_status_says_so(storm: Storm, seed: int) -> None:
    rng, plan = random.Random(seed), seed // 100
    drive, action = rng.choice(DRIVES), rng.choice(["--interactive", "--interactive", "--undo"])
    calls = calls_of(drive, action, plan)
    name = rng.choice(sorted({call.name for call in calls}))
    call = rng.choice([call for call in calls if call.name == name])
    error = rng.choice(ERRORS)
    often = rng.choice(["", "", "+", "+3"]) if error != "EINTR" else ""  # whoever is interrupted tries again
    inject = f"{call.name}:error={error}:when={call.number}{often}"
    with trash_on(drive, storm):
        run_before(storm, action, plan)
        run = traced(storm, action, answers=ALL, inject=inject, calls=call.name)
        try:
            storm.check(cut_off=True)
            if run.status == 0 and action != "--undo" and call.name in CHANGES.split(","):
                assert max(bag(live(tree(storm.library))).values()) == 1, "copies are left and the status is 0"
            storm.check_restored()
        except AssertionError as error:
            raise AssertionError(f"{drive} {action} {inject}\n{call.line}\n{run.said}\n{run.status}: {error}") from None


# ── others at work in the library ──


@dataclass
class Vandal:
    """Changes the library at random, and keeps what it takes away and an account of what it writes."""

    storm: Storm
    rng: random.Random
    change: Counter[str] = dataclasses.field(
        default_factory=Counter
    )  # how many more or fewer there are of each content
    taken: set[str] = dataclasses.field(default_factory=set)  # contents of which it took away a file
    log: list[str] = dataclasses.field(default_factory=list)

    def act(self) -> None:
        """One random change, unless idem was faster."""
        action = self.rng.choice(
            [self.rename, self.edit, self.replace, self.link, self.truncate, self.remove, self.swap]
        )
        with suppress(OSError):
            action()

    def some_file(self) -> Path:
        """Any file outside the folder of the caches. OSError if there is none."""
        folder = self.some_folder()
        names = [entry.path for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
        if not names:
            raise FileNotFoundError(folder)
        return Path(self.rng.choice(names))

    def some_folder(self) -> Path:
        """Any folder of the library, or of its trash."""
        return self.storm.library / self.rng.choice(["", f"{TRASH}/"]) / self.rng.choice(FOLDERS)

    def new_name(self) -> Path:
        return self.storm.library / self.rng.choice(FOLDERS) / f"{self.rng.choice(NAMES)}.jpg"

    def note(self, what: str, path: Path, other: object = "") -> None:
        self.log.append(f"{what} {path.relative_to(self.storm.folder)} {other}")

    def rename(self) -> None:
        path, target = self.some_file(), self.new_name()
        exchange(path, target, RENAME_NOREPLACE)
        self.note("rename", path, target)

    def edit(self) -> None:
        """Write into the file as it is, perhaps so that size and times are as before."""
        self.overwrite(b"edited")

    def truncate(self) -> None:
        self.overwrite(b"")

    def overwrite(self, text: bytes) -> None:
        path = self.some_file()
        with open(path, "rb+") as stream:
            status, old = os.fstat(stream.fileno()), stream.read()
            new = text + old[len(text) :] if text else old[: len(old) // 2]
            stream.seek(0)
            os.pwrite(stream.fileno(), new[: len(text)], 0) if text else os.ftruncate(stream.fileno(), len(new))
            if self.rng.random() < 0.5:
                os.utime(stream.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        for content, by in ((old, -1), (new, 1)):
            self.change[hashlib.sha256(content).hexdigest()] += by * status.st_nlink
        self.taken.add(hashlib.sha256(old).hexdigest())
        self.note("overwrite", path, text)

    def replace(self) -> None:
        """Exchange the file for another in one step, as careful programs save."""
        path, new = self.some_file(), self.storm.folder / "taken" / f"{len(self.log)}"
        content = self.rng.randbytes(20)
        new.write_bytes(content)
        exchange(path, new, RENAME_EXCHANGE)
        self.change[hashlib.sha256(content).hexdigest()] += 1
        self.taken.add(hashlib.sha256(new.read_bytes()).hexdigest())
        self.note("replace", path)

    def link(self) -> None:
        path, target = self.some_file(), self.new_name()
        os.link(path, target)
        self.change[hashlib.sha256(target.read_bytes()).hexdigest()] += 1
        self.note("link", path, target)

    def remove(self) -> None:
        path, grave = self.some_file(), self.storm.folder / "taken" / f"{len(self.log)}"
        os.rename(path, grave)
        self.taken.add(hashlib.sha256(grave.read_bytes()).hexdigest())
        self.note("remove", path)

    def swap(self) -> None:
        """Exchange a folder for a link to one outside, for a moment."""
        folder, link = self.some_folder(), self.storm.folder / "link"
        if folder == self.storm.library or not folder.is_dir():
            return
        link.unlink(missing_ok=True)
        link.symlink_to(self.storm.folder / "outside")
        exchange(folder, link, RENAME_EXCHANGE)
        time.sleep(self.rng.uniform(0, 0.01))
        exchange(folder, link, RENAME_EXCHANGE)
        link.unlink()
        self.note("swap", folder)


RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # of renameat2(2)


def exchange(one: Path, other: Path, flags: int) -> None:
    """renameat2 with these flags."""
    if idem.LIBC.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), flags):
        raise OSError(ctypes.get_errno(), "renameat2", str(one))


def check_account(storm: Storm, vandal: Vandal, told: str) -> None:
    """Everything is in the library or was taken, and what was not taken has a live copy."""
    told = "\n".join([told, *vandal.log, storm.said()])
    assert "Traceback" not in told, told
    expected = bag(storm.before)
    expected.update(vandal.change)
    now = tree(storm.library)
    there = bag(now) + bag(tree(storm.folder / "taken"))
    assert (expected - there, there - expected) == (Counter(), Counter()), told
    assert tree(storm.folder / "outside") == storm.outside, told
    groups = {digest for digest, _ in live(storm.before).values()} - vandal.taken
    assert groups <= {digest for digest, _ in live(now).values()}, told


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_others_may_change_the_library_while_idem_moves_and_nothing_is_lost(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=12)
    storm.begin()
    vandal = Vandal(storm, rng)
    for arguments, answers in [(["--interactive"], ALL), (["--undo"], "")] * 2:
        process = storm.start(*arguments, answers=answers)
        while process.is_alive() and arguments != ["--undo"] and not storm.said():  # it is still looking
            time.sleep(0.001)
        while process.is_alive():
            time.sleep(rng.expovariate(500))
            vandal.act()
        process.join()
        assert process.exitcode in (0, 1, 2), storm.said()
        check_account(storm, vandal, "")


SLOW_MOVES = "rename,renameat,renameat2,link,linkat:delay_enter="  # microseconds between the check and the move


@pytest.mark.storm
@ON_LINUX
@STRACE
@IN_A_STORM
def test_what_others_change_between_a_check_and_its_move_is_not_lost(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=3)
    storm.begin()
    vandal = Vandal(storm, rng)
    slow = SLOW_MOVES + str(rng.randrange(1_000, 50_000))
    run = functools.partial(traced, storm, "--interactive", answers=ALL, inject=slow, calls=slow.split(":")[0])
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(run)
        while not ending.done():
            time.sleep(rng.expovariate(100))
            if (storm.library / TRASH).exists():  # the moves have begun
                vandal.act()
    check_account(storm, vandal, ending.result().said)
    storm.run("--undo")
    check_account(storm, vandal, ending.result().said)


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_what_others_change_before_an_answer_is_not_taken_for_a_copy(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    if rng.random() < 0.3:
        photos_for_storm(storm, rng)
    else:
        doubles_for_storm(storm.library, rng, groups=8)
    storm.begin()
    vandal = Vandal(storm, rng)
    (storm.folder / "run").mkdir()
    os.mkfifo(storm.folder / "run" / "0")
    process = storm.start("--interactive")
    with open(storm.folder / "run" / "0", "w") as answers:
        for asked in itertools.count(1):
            while process.is_alive() and storm.said().count("\n> ") < asked:
                time.sleep(0.005)
            if not process.is_alive():
                break
            for _ in range(rng.choice([0, 0, 1, 1, 3, 8])):
                vandal.act()
            before = tree(storm.library)
            answers.write(rng.choice("kkkkabsu") + "\n")
            answers.flush()
            while process.is_alive() and storm.said().count("\n> ") <= asked:
                time.sleep(0.005)
            now = tree(storm.library)
            told = "\n".join([storm.said(), *vandal.log])
            assert bag(now) == bag(before), told
            groups, left = (
                {storm.group_of.get(digest, digest) for digest, _ in live(files).values()} for files in (before, now)
            )
            assert groups <= left, f"only in the trash: {groups - left}\n{told}"
    process.join()
    assert process.exitcode in (0, 1), storm.said()
    assert "Traceback" not in storm.said()
    assert tree(storm.folder / "outside") == storm.outside


# ── two at once ──


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_two_runs_at_once_leave_a_copy_of_everything(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    if rng.random() < 0.5:
        photos_for_storm(storm, rng)
    else:
        doubles_for_storm(storm.library, rng, groups=12)
    storm.begin()
    modes = [storm.mode] if storm.group_of else [("--exact",), ("--exact", "--jobs", "2")]
    runs = []
    for name in "ab":
        storm.mode = rng.choice(modes)
        folder = rng.choice(["", "", *(folder for folder in FOLDERS if (storm.library / folder).is_dir())])
        arguments = rng.choice([["--interactive"]] * 6 + [["--undo"], []])
        answers = "".join(rng.choice("kabcs") + "\n" for _ in range(30))  # the two keep different copies
        runs.append(storm.start(*arguments, answers=answers, folder=folder, name=name))
        time.sleep(rng.choice([0, 0, rng.uniform(0, 0.3)]))
    for process, name in zip(runs, "ab", strict=True):
        process.join()
        assert "Traceback" not in storm.said(name), storm.said(name)
        assert process.exitcode in (0, 1, 2), storm.said(name)
    storm.check()
    for used in sorted({path.parent.parent for path in storm.library.rglob(idem.JOURNAL_FILE)}, reverse=True):
        storm.undo_all(str(used.relative_to(storm.library)))
    assert tree(storm.library) == storm.before


@pytest.mark.storm
@ON_LINUX
@STRACE
@IN_A_STORM
def test_two_runs_whose_moves_take_long_leave_a_copy_of_everything(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=4)
    storm.begin()
    slow = SLOW_MOVES + str(rng.randrange(10_000, 100_000))
    run = functools.partial(traced, storm, "--interactive", inject=slow, calls=slow.split(":")[0])
    with ThreadPoolExecutor(2) as pool:
        said = "".join(each.said for each in pool.map(lambda letter: run(answers=f"{letter}\n" * 30), "ab"))
    try:
        storm.check()
    except AssertionError as error:
        raise AssertionError(f"{said}\n{error}") from None


# ── act, undo, edit, and again ──


@pytest.mark.storm
@ON_LINUX
@IN_A_STORM
def test_any_order_of_batches_undos_and_edits_loses_nothing(storm: Storm, seed: int) -> None:
    rng = random.Random(seed)
    doubles_for_storm(storm.library, rng, groups=6)
    storm.begin()
    vandal = Vandal(storm, rng)
    edits, steps = rng.random() < 0.5, []
    for _ in range(6):
        step = rng.choice(["act", "act", "act", "undo", *(["edit"] if edits else [])])
        if step == "edit":
            vandal.act()
        else:
            answers = "".join(rng.choice("kkkaabsu") + "\n" for _ in range(rng.randint(1, 12)))
            status = storm.run(*(["--undo"] if step == "undo" else ["-i"]), answers=answers if step == "act" else "")
            step += f" {status} {answers.split() if step == 'act' else ''}"
        steps.append(step)
        check_account(storm, vandal, "\n".join(steps))
    storm.undo_all()
    if not vandal.log:
        now = tree(storm.library)
        assert now == storm.before, "\n".join([*map(str, set(now.items()) ^ set(storm.before.items())), *steps])


# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════
#  Benchmark
# ══════════════════════════════════════════════════════════════════════════════════════════════════════════════════


def decode_only(path: str) -> None:
    """The least that a program on Pillow must do per picture."""
    with Image.open(path) as picture:
        picture.draft("YCbCr", (512, 512))
        picture.load()


def timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


@pytest.mark.bench
def test_benchmark_of_scanning_and_fingerprinting(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    made = [photo(seed, (4000, 3000)) for seed in range(12)]
    for number in range(240):
        save(made[number % 12], library / f"{number}.jpg", quality=80 + number // 12 % 15)
    paths = [str(path) for path in sorted(library.iterdir())]
    command = [sys.executable, str(HERE / "idem.py"), str(library), "--cache", str(tmp_path / "cache")]
    colds, floors = [], []
    for _ in range(3):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        colds.append(timed(command))
        began = time.perf_counter()
        with ProcessPoolExecutor() as pool:
            list(pool.map(decode_only, paths, chunksize=4))
        floors.append(time.perf_counter() - began)
    ratio = sorted(cold / floor for cold, floor in zip(colds, floors, strict=True))[1]
    over = (min(colds) - min(floors)) / len(paths)
    print(
        f"\n{len(paths)} photos of 12 MP: cold {min(colds):.2f} s, decode floor {min(floors):.2f} s, ratio {ratio:.2f}"
    )
    print(f"per file over the floor {over * 1000:.1f} ms; warm {timed(command):.2f} s")


@pytest.mark.bench
@pytest.mark.parametrize("side", [256, 512, 1024])
def test_benchmark_of_looks_at_pairs(side: int, tmp_path: Path) -> None:
    large = save(photo(1, (4000, 3000)), tmp_path / "large.jpg", quality=90)
    one, other = media_file(large), media_file(save(fitted(photo(1, (4000, 3000)), side), tmp_path / "small.jpg"))
    began = time.perf_counter()
    views = idem.view_of(one), idem.view_of(other)
    decoded = time.perf_counter() - began
    assert isinstance(views[0], idem.View) and isinstance(views[1], idem.View)
    began = time.perf_counter()
    for _ in range(20):
        idem.verdict(views[0], views[1])
    each = (time.perf_counter() - began) / 20
    print(
        f"\na photo of 12 MP and one of {side} px: decoding {decoded * 1000:.0f} ms, look {each * 1000:.1f} ms", end=""
    )


@pytest.mark.bench
@pytest.mark.parametrize("percent", [5, 50])
def test_benchmark_of_a_library_with_copies(percent: int, tmp_path: Path) -> None:
    library = tmp_path / "lib"
    count = 200 * (100 - percent) // 100
    for number in range(count):
        save(photo(number, (4000, 3000)), library / f"{number}.jpg", quality=90)
    for number in range(200 - count):
        save(fitted(photo(number, (4000, 3000)), 1600), library / "sent" / f"{number}.jpg", quality=75)
    command = [sys.executable, str(HERE / "idem.py"), str(library), "--cache", str(tmp_path / "cache")]
    cold, warm = timed(command), timed(command)
    print(f"\n200 photos of 12 MP, {percent} % of them copies: cold {cold:.2f} s, warm {warm:.2f} s", end="")


def memory_of(pid: int) -> int:
    """Bytes that a process and those it has started take together, shared ones once."""
    taken = 0
    for each in (pid, *workers_of(pid)):
        with suppress(OSError), open(f"/proc/{each}/smaps_rollup", "rb") as stream:  # it may have ended
            taken += next(int(line.split()[1]) << 10 for line in stream if line.startswith(b"Pss:"))
    return taken


def peak_memory(command: list[str]) -> int:
    """The most bytes that a command and what it starts take together, looked at twenty times a second."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)
    return peak


@ON_LINUX
@pytest.mark.bench
def test_benchmark_of_memory(tmp_path: Path) -> None:
    made = [photo(seed, (4000, 3000)) for seed in range(8)]
    for number in range(160):
        save(made[number % 8], tmp_path / "lib" / f"{number}.jpg", quality=80 + number // 8)
    for jobs in (2, 16):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        command = [sys.executable, str(HERE / "idem.py"), str(tmp_path / "lib"), "--cache", str(tmp_path / "cache")]
        peak = peak_memory([*command, "--jobs", str(jobs)])
        print(f"\n160 photos of 12 MP, --jobs {jobs}: all processes together took {peak / 1e6:.0f} MB at most", end="")


def library_known_by_its_cache(library: Path, count: int) -> None:
    """Files with cached fingerprints of random pictures; one in 20 has the hashes of the one before it."""
    rng = np.random.default_rng(1)
    base = random_fingerprint(rng)
    library.joinpath("__databases").mkdir(parents=True)
    with open(cache_file(library), "wb") as stream:
        stream.write(idem.IMAGE_CACHE.header)
        for number in range(count):
            path = library / f"{number // 500:04}" / f"IMG_{number:06}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(str(number).encode())
            signature = rng.integers(0, 256, idem.SIGNATURE_BYTES, np.uint8)
            if number % 20 != 19:
                phash, dhash = idem.perceptual_hashes(signature)
            cells = base64.b64encode(signature.tobytes())
            made = replace(base, phash=phash, dhash=dhash, signature=cells)
            stream.write(idem.IMAGE_CACHE.encoded(media_file(path), made))


@ON_LINUX
@pytest.mark.bench
@pytest.mark.parametrize("count", [20_000, 100_000])
def test_benchmark_of_an_unchanged_library(count: int, tmp_path: Path) -> None:
    library_known_by_its_cache(tmp_path, count)
    ratios = []
    for _ in range(3):
        warm = timed([sys.executable, str(HERE / "idem.py"), str(tmp_path)])
        began = time.perf_counter()
        for folder, _, names in os.walk(tmp_path):
            for name in names:
                os.stat(os.path.join(folder, name))
        floor = time.perf_counter() - began
        ratios.append(warm / floor)
    peak = peak_memory([sys.executable, str(HERE / "idem.py"), str(tmp_path)])
    print(f"\n{count:,} unchanged files: {warm:.2f} s, to walk and stat them {floor:.2f} s, ", end="")
    print(f"ratio {sorted(ratios)[1]:.1f}, {peak / 1e6:.0f} MB", end="")


@pytest.mark.bench
def test_benchmark_of_heic(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    options = HEIC_OPTIONS | {"tile_size": 512, "thumbnails": [320]}
    for number in range(40):
        save(photo(number, (2016, 1512)), library / f"{number}.heic", **options)
    for number in range(2):
        save(fitted(photo(number, (2016, 1512)), 1024), library / f"{number}.jpg", quality=80)
    for name, work in (("in full", idem.fingerprint_image), ("by thumbnails", idem.proxy_image)):
        monkeypatch.setattr(idem, "PROXY_WORK", replace(idem.PROXY_WORK, do=work))
        began = time.perf_counter()
        found = groups(library, "--cache", str(tmp_path / name), capsys=capsys)
        with capsys.disabled():
            print(f"\n40 HEICs of 3 MP, 2 with a copy, {name}: {time.perf_counter() - began:.2f} s, {found}", end="")


@pytest.mark.bench
@pytest.mark.parametrize("threshold", [0, 5, 10])
def test_benchmark_of_matching(threshold: int) -> None:
    rng = np.random.default_rng(1)
    base = random_fingerprint(rng)
    hashes = rng.integers(0, 2**63, (100_000, 2)).tolist()
    replicas = as_replicas([replace(base, phash=phash, dhash=dhash) for phash, dhash in hashes])
    began = time.perf_counter()
    found = idem.grouping(threshold)(replicas)
    print(
        f"\n100,000 fingerprints at threshold {threshold:2}: {time.perf_counter() - began:.2f} s, {len(found)} groups"
    )


def hashes_of_smooth_pictures(count: int) -> list[idem.Hashes]:
    """Hashes as photos have them, far from evenly spread; one in 20 pictures is the one before it with some noise."""
    rng = np.random.default_rng(1)
    falling = 1 + np.add.outer(np.arange(8), np.arange(8))
    found = []
    for number in range(count):
        if number % 20 != 19:
            luma = 128 + 45 / 4 * (idem.COSINES.T @ (rng.normal(size=(8, 8)) / falling) @ idem.COSINES)
        else:
            luma = luma + rng.integers(-1, 2, (32, 32))
        cells = luma.clip(0, 255).astype(np.uint8)
        found.append(idem.Hashes(idem.phash_of(cells), idem.dhash_of(cells), by_file=False))
    return found


@pytest.mark.bench
@pytest.mark.parametrize(("count", "threshold"), [(100_000, 0), (100_000, 10), (300_000, 0), (300_000, 10), (10**6, 0)])
def test_benchmark_of_what_may_have_a_copy(count: int, threshold: int) -> None:
    hashes = hashes_of_smooth_pictures(count)
    began = time.perf_counter()
    company = idem.with_company(hashes, threshold, idem.HASH_RADIUS)
    took = time.perf_counter() - began
    print(
        f"\n{count:,} photos, threshold {threshold}: {company.sum():,} may have copies, found in {took:.1f} s", end=""
    )


@pytest.mark.bench
@pytest.mark.parametrize("count", [64, 1000, 10_000, 100_000])
def test_benchmark_of_searches(count: int) -> None:
    hashes = np.unique(np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64))
    for radius in (0, 6, 10):
        print(f"\n{count} hashes, radius {radius:2}", end="")
        searches: dict[str, Callable[[np.ndarray, int], Iterator[np.ndarray]]] = {
            "sweep": idem.near_pairs_by_sweep,
            "chosen": idem.near_pairs,
            **{f"{parts} parts": functools.partial(idem.near_pairs_by_parts, count=parts) for parts in (4, 5, 7)},
        }
        for name, search in searches.items():
            began = time.perf_counter()
            list(search(hashes, radius))
            print(f", {name} {(time.perf_counter() - began) * 1000:.2f} ms", end="")


def bare_frames(path: str) -> None:
    """What nobody who looks at eight frames of a video by ffmpeg can do without."""
    length = video_seconds(path)
    command = [str(idem.ffmpeg_path()), "-nostdin", "-v", "quiet"]
    for part in range(8):
        command += ["-threads", "1", "-ss", f"{length * (2 * part + 1) / 16:.3f}", "-i", path]
    for part in range(8):
        command += ["-map", f"{part}:V:0", "-frames:v", "1", "-vf", "scale=64:64"]
        command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-y", os.devnull]
    subprocess.run(command, check=True)


@functools.cache
def video_seconds(path: str) -> float:
    return idem.video_stream(path).seconds or 0


@pytest.mark.bench
def test_benchmark_of_videos(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    encodings = {"a.mp4": ["-c:v", "libx264"], "b.mkv": ["-c:v", "libx265", "-x265-params", "log-level=error"]}
    encodings |= {"c.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"]}
    encodings |= {"d.avi": ["-c:v", "mpeg4", "-q:v", "4"], "e.mov": ["-c:v", "libx264", "-r", "30"]}
    for name, encoding in encodings.items():
        clip(library / f"0_{name}", *encoding, seconds=8, rate=25, size=(640, 360))
        for number in range(1, 20):
            shutil.copy(library / f"0_{name}", library / f"{number}_{name}")
    paths = sorted(str(path) for path in library.iterdir())
    for path in paths:
        video_seconds(path)
    command = [sys.executable, str(HERE / "idem.py"), str(library), "--video", "--cache", str(tmp_path / "cache")]
    ratios = []
    for _ in range(3):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        cold = timed(command)
        began = time.perf_counter()
        with ThreadPoolExecutor(idem.available_cores()) as pool:
            list(pool.map(bare_frames, paths))
        floor = time.perf_counter() - began
        ratios.append(cold / floor)
    print(f"\n{len(paths)} clips: cold {cold:.2f} s, ffmpeg floor {floor:.2f} s, ratio {sorted(ratios)[1]:.2f}", end="")
    print(f"; warm {timed(command):.2f} s")


@pytest.mark.bench
@pytest.mark.parametrize("threshold", [0, 10])
def test_benchmark_of_matching_videos(threshold: int) -> None:
    replicas = as_replicas(fingerprints_of_video_kin(20_000))
    began = time.perf_counter()
    found = idem.grouping(threshold)(replicas)
    took = time.perf_counter() - began
    print(f"\n20,000 videos, threshold {threshold}: {len(found)} groups in {took:.2f} s", end="")


@pytest.mark.bench
def test_benchmark_of_exact(tmp_path: Path) -> None:
    for library, count, size in ((tmp_path / "photos", 200, 5_000_000), (tmp_path / "tiny", 20_000, 2_000)):
        for number in range(count):
            path = library / str(number // 500) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.Random(number // 2).randbytes(size))
        command = [sys.executable, str(HERE / "idem.py"), str(library), "--exact", "--cache", str(tmp_path / "cache")]
        cold = timed(command)
        floor = timed(["sh", "-c", f"find {library} -name '*.jpg' -print0 | xargs -0 -P 2 -n 50 sha256sum > /dev/null"])
        print(
            f"\n{count} files of {size} bytes: cold {cold:.2f} s, sha256sum {floor:.2f} s, warm {timed(command):.2f} s"
        )


@pytest.mark.bench
@pytest.mark.parametrize("page_size", [10, 500])
def test_benchmark_of_the_page_with_many_groups(chromium: Browser, tmp_path: Path, page_size: int) -> None:
    for number in range(5000):
        picture = Image.new("RGB", (48, 36), (number % 256, number // 256 * 9, 77))
        path = save(picture, tmp_path / str(number // 250) / f"{number}.png")
        shutil.copy(path, path.with_stem(f"{number} copy"))
    with reviewed(chromium, tmp_path, "--exact", "--page-size", str(page_size)) as review:
        took = []
        for _ in range(3):
            began = time.perf_counter()
            review.page.goto(review.address, wait_until="commit")
            review.page.wait_for_selector("article.group")
            took.append(time.perf_counter() - began)
            review.page.wait_for_load_state("networkidle")
    shown = ", ".join(f"{each:.2f}" for each in took)
    print(f"\n5,000 groups, {page_size} on a page: first shown after {shown} s", end="")

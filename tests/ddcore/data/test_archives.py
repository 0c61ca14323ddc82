"""Archives: what is read, and that everything hostile or unclear is refused with the member's name."""

import io
import os
import random
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcore.data.archives import Limits, inspect, read_archive
from ddcore.errors import DdcoreError


def picture(size: tuple[int, int] = (8, 6), mode: str = "RGB", fmt: str = "PNG", value: int = 0) -> bytes:
    """An encoded image of `size` (width, height) with some structure."""
    width, height = size
    pixels = (np.arange(width * height).reshape(height, width) * 3 + value).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, fmt)
    return stream.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def refused(path: Path, *words: str, limits: Limits | None = None, read: bool = False) -> None:
    with pytest.raises(DdcoreError) as caught:
        read_archive(path) if read else inspect(path, limits)
    assert caught.value.code == "bad_dataset"
    assert caught.value.hint
    for word in words:
        assert word in caught.value.detail


def test_class_folders_become_sorted_labels(tmp_path: Path) -> None:
    members = {"b/2.png": picture(value=2), "a/1.png": picture(value=1), "b/0.png": picture(value=0)}
    path = zipped(tmp_path / "x.zip", members)
    facts = inspect(path)
    assert (facts.num_images, facts.image_shape, facts.classes, facts.class_counts) == (3, (3, 6, 8), ("a", "b"), (1, 2))
    assert facts.members == ("a/1.png", "b/0.png", "b/2.png")
    seen: list[tuple[int, int]] = []
    images, labels, classes = read_archive(path, lambda done, total: seen.append((done, total)))
    assert images.shape == (3, 3, 6, 8)
    assert labels is not None
    assert (labels.tolist(), classes) == ([0, 1, 1], ("a", "b"))
    for row, name in zip(images, facts.members, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(members[name]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(row, expected)
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a.png", "b.png"], None),
        (["all/a.png", "all/b.png"], None),
        (["root/x/a.png", "root/y/b.png"], ("x", "y")),
        (["x/a.png", "y/a.png", "__MACOSX/x/._a.png", "x/.DS_Store", "x/Thumbs.db", "README", "notes.txt", "LICENSE.md"], ("x", "y")),
    ],
)
def test_layouts(tmp_path: Path, names: list[str], classes: tuple[str, ...] | None) -> None:
    data = {name: picture() if name.endswith(".png") and "._" not in name else b"junk" for name in names}
    facts = inspect(zipped(tmp_path / "x.zip", data))
    assert (facts.num_images, facts.classes) == (2, classes)
    root = tmp_path / "folder"
    for name, content in data.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert inspect(root) == facts


@pytest.mark.parametrize(
    "names", [["a.png", "x/b.png"], ["x/a.png", "y/z/b.png"], ["r/x/a.png", "s/x/b.png"], ["a/b/c/d.png", "a/b/e/f.png"]]
)
def test_unclear_layouts_name_two_members(tmp_path: Path, names: list[str]) -> None:
    refused(zipped(tmp_path / "x.zip", dict.fromkeys(names, picture())), *names)


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.zip", {"a/1.png": picture(), "b/1.png": picture(), "c/": b""}), "class folder c")


def test_all_grey_stays_grey_and_mixtures_become_colour(tmp_path: Path) -> None:
    grey = zipped(tmp_path / "g.zip", {"1.png": picture(mode="L"), "2.png": picture(mode="1")})
    assert read_archive(grey)[0].shape == (2, 1, 6, 8)
    modes = {f"{mode}.png": picture(mode=mode) for mode in ("L", "RGB", "P", "RGBA", "LA")}
    mixed = zipped(tmp_path / "m.zip", {**modes, "c.jpg": picture(mode="CMYK", fmt="JPEG")})
    assert inspect(mixed).image_shape == (3, 6, 8)
    images = read_archive(mixed)[0]
    assert images.shape == (6, 3, 6, 8)
    np.testing.assert_array_equal(images[0, 0], images[0, 2])  # the grey one, in three equal channels


def test_sixteen_bits_are_refused_in_grey_and_in_colour(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(stream, "PNG")
    refused(zipped(tmp_path / "g.zip", {"deep.png": stream.getvalue()}), "deep.png", "8 bits")
    colour = bytearray(stream.getvalue())
    colour[25] = 2  # colour type of the header: RGB, at 16 bits
    header = bytes(colour[12:29])
    colour[29:33] = struct.pack(">L", zlib.crc32(header))
    refused(zipped(tmp_path / "c.zip", {"deep.png": bytes(colour)}), "deep.png", "8 bits")


def test_mixed_sizes_name_both(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.png": picture((8, 6)), "b.png": picture((9, 6))})
    refused(path, "a.png is 8x6", "b.png is 9x6")


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/a.png", "C:/a.png", "x\\a.png", "a\nb.png"])
def test_paths_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path / "x.zip", {name: picture()}), repr(name))


def test_links_are_refused_in_zips_and_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    refused(tmp_path / "x.zip", "link.png", "symbolic link")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    os.symlink("/etc/passwd", folder / "b.png")
    refused(folder, "b.png", "symbolic link")


def test_duplicates(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", picture())
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.png", picture())
    refused(tmp_path / "x.zip", "a.png", "twice")


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "x.zip", {"a.bmp": bytes(4 << 20)}, zipfile.ZIP_DEFLATED)
    refused(bomb, "a.bmp", "fold")
    refused(bomb, "a.bmp", "4,194,304", limits=Limits(member=1000))
    many = zipped(tmp_path / "y.zip", {f"{i}.png": picture() for i in range(5)})
    refused(many, "5 images", limits=Limits(images=4))
    refused(many, "MiB", limits=Limits(total=100))
    refused(many, "bytes allowed", limits=Limits(pixels=5 * 3 * 48 - 1))
    assert inspect(many, Limits(pixels=5 * 3 * 48)).num_images == 5


def test_declared_sizes_are_not_believed(tmp_path: Path) -> None:
    """A directory that declares 10 bytes for a member of a megabyte gets neither the megabyte nor past the check."""
    path = zipped(tmp_path / "x.zip", {"a.bmp": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 1 << 20), struct.pack("<L", 10)))
    refused(path, "a.bmp")


def test_a_picture_that_declares_a_billion_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    png = bytearray(picture())
    png[16:24] = struct.pack(">LL", 40_000, 40_000)
    png[29:33] = struct.pack(">L", zlib.crc32(bytes(png[12:29])))
    refused(zipped(tmp_path / "x.zip", {"wide.png": bytes(png)}), "wide.png")


def test_a_directory_of_many_members_is_refused_before_it_is_listed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{i:0200}.png": b"" for i in range(300)})
    refused(path, "directory", limits=Limits(images=10))


@pytest.mark.parametrize("member", [b"MZ and so on", b"GIF89a", b"", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_not_an_image(tmp_path: Path, member: bytes) -> None:
    refused(zipped(tmp_path / "x.zip", {"a.png": picture(), "b.exe": member}), "b.exe", "not an image")


def test_archives_inside_archives(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"a.png": picture()})
    refused(zipped(tmp_path / "x.zip", {"inner.zip": inner.read_bytes()}), "inner.zip", "archive inside")


def test_animations_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    refused(zipped(tmp_path / "x.zip", {"a.webp": stream.getvalue()}), "a.webp", "animated")


@pytest.mark.parametrize("size", [(2, 8), (2000, 8)])
def test_sides_have_limits(tmp_path: Path, size: tuple[int, int]) -> None:
    refused(zipped(tmp_path / "x.zip", {"a.png": picture(size)}), "a.png", f"{size[0]}x{size[1]}", "4 to 1024")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.png": picture()})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    refused(path, "a.png", "encrypted")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_an_image_that_is_cut_short_is_refused_at_once(tmp_path: Path, fmt: str) -> None:
    whole = picture((64, 64), fmt=fmt)
    refused(zipped(tmp_path / "x.zip", {"a.x": whole, "b.x": whole[: len(whole) * 2 // 3]}), "b.x", "damaged or missing pixels")


def test_an_image_without_its_end_mark_but_with_all_its_pixels_is_welcome(tmp_path: Path) -> None:
    whole = picture((64, 64), fmt="JPEG")
    assert whole.endswith(b"\xff\xd9")
    assert inspect(zipped(tmp_path / "x.zip", {"a.jpg": whole[:-2] + b"\0\0"})).num_images == 1


def test_damaged_pixels_pass_the_header_and_fail_the_reading(tmp_path: Path) -> None:
    whole = picture((64, 64), fmt="PNG")
    path = zipped(tmp_path / "x.zip", {"a.png": whole, "b.png": whole[:50] + b"\xff" * 16 + whole[66:]})
    assert inspect(path).num_images == 2
    refused(path, "b.png", "pixels", read=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06", picture()])
def test_what_is_not_a_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    refused(path, "not a zip")


def test_an_archive_without_images(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.zip", {"README.txt": b"nothing"}), "no image")
    with pytest.raises(DdcoreError, match="no archive or folder"):
        inspect(tmp_path / "absent.zip")


def _flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


@pytest.mark.parametrize("damage", [_flip, _cut])
def test_damage_anywhere_is_a_refusal_or_the_same_images(tmp_path: Path, damage: Callable[[bytearray, random.Random], None]) -> None:
    """No damage ends in another exception: what a worker would log as internal is a bug."""
    members = {"a/1.png": picture(), "b/2.jpg": picture(fmt="JPEG"), "b/3.bmp": picture(fmt="BMP"), "b/4.webp": picture(fmt="WEBP")}
    original = zipped(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED).read_bytes()
    codes, draw = [], random.Random(0)
    for _ in range(400):
        data = bytearray(original)
        damage(data, draw)
        (tmp_path / "y.zip").write_bytes(data)
        try:
            read_archive(tmp_path / "y.zip")
        except DdcoreError as error:
            codes.append(error.code)
    assert set(codes) == {"bad_dataset"}
    assert len(codes) > 100


def test_torch_is_not_needed() -> None:
    code = "import sys, ddcore.data.archives, ddcore.data.builtins, ddcore.networks.shapes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""A small C file through the machine's compiler, and all that can be wrong with machine, compiler and cache."""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ddcore.matching.blocks import compiling
from ddcore.matching.blocks.compiling import NotCompiled, library_of


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "small.cpp"
    file.write_text('extern "C" int answer() { return 42; }')
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "potstill"


def compiler(folder, body):
    """A compiler that does as `body` says once it is asked for more than its version."""
    script = folder / "cxx"
    script.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit 0; fi\nfor last; do :; done\n{body}\n')
    script.chmod(0o755)
    return str(script)


def test_is_compiled_once(source, cache, monkeypatch):
    assert library_of(source).answer() == 42
    (made,) = cache.iterdir()
    monkeypatch.setattr(compiling, "_compile", None)  # what calls it now fails
    assert library_of(source).answer() == 42
    assert list(cache.iterdir()) == [made]


@pytest.mark.parametrize("change", ["source", "flags", "compiler", "processor"])
def test_another_machine_or_source_has_a_file_of_its_own(source, cache, monkeypatch, change):
    library_of(source)
    if change == "source":
        source.write_text(source.read_text() + "\n")
    elif change == "flags":
        monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-g0"))
    elif change == "compiler":
        monkeypatch.setattr(compiling, "_version", lambda compiler: "another")
    else:
        monkeypatch.setattr(compiling, "_processor", lambda: "another")
    library_of(source)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:1000], lambda whole: whole[:5000] + b"?" + whole[5001:]])
def test_a_damaged_file_is_made_again(source, cache, caplog, damage):
    library_of(source)
    (made,) = cache.iterdir()
    whole = made.read_bytes()
    made.unlink()  # it is mapped into this process
    made.write_bytes(damage(whole))
    assert library_of(source).answer() == 42
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(made) in caplog.text
    assert compiling._sound(made)


def test_several_may_compile_at_once(source, cache):
    with ThreadPoolExecutor(4) as pool:
        assert [library.answer() for library in pool.map(library_of, [source] * 4)] == [42] * 4
    assert [file.suffix for file in cache.iterdir()] == [".so"]  # and nothing half made


def test_without_a_cache_it_is_compiled_for_this_process(source, cache, caplog, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file: no folder can be made in it
    assert library_of(source).answer() == 42
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "for this process alone" in caplog.text


def linked(path):
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o720), "others may write to"),
        (lambda path: path.chmod(0o702), "others may write to"),
        (linked, "is a link"),
    ],
    ids=["group", "all", "link"],
)
def test_what_others_may_have_written_is_not_loaded(source, cache, caplog, monkeypatch, which, spoil, why):
    library_of(source)
    (made,) = cache.iterdir()
    loaded, load = [], compiling._load
    monkeypatch.setattr(compiling, "_load", lambda library: loaded.append(library) or load(library))
    spoil(cache if which == "folder" else made)
    assert library_of(source).answer() == 42
    assert len(loaded) == 1
    assert cache not in loaded[0].parents
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "for this process alone" in caplog.text
    assert f"{why} {cache if which == 'folder' else made}" in caplog.text or f"{cache if which == 'folder' else made} {why}" in caplog.text


def test_what_is_another_users_is_not_loaded(source, cache, caplog, monkeypatch):
    library_of(source)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert library_of(source).answer() == 42
    assert f"{cache} belongs to another user" in caplog.text


def test_a_lax_umask_and_linker_leave_the_file_ours_alone(source, cache, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler(tmp_path, 'rm "$last"; exec g++ "$@"'))
    before = os.umask(0)
    try:
        library_of(source)
    finally:
        os.umask(before)
    monkeypatch.setattr(compiling, "_compile", None)
    assert library_of(source).answer() == 42
    assert not caplog.records


@pytest.mark.parametrize("given", ["", "relative/folder"])
def test_the_cache_is_in_the_home_if_nothing_absolute_is_given(source, cache, monkeypatch, tmp_path, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    library_of(source)
    assert len(list((tmp_path / "home" / ".cache" / "potstill").iterdir())) == 1


def test_says_why_there_is_no_library(source, cache, monkeypatch, tmp_path):
    def why():
        with pytest.raises(NotCompiled) as caught:
            library_of(source)
        assert not list(cache.glob("*"))
        assert not list(cache.glob(".*"))
        return str(caught.value)

    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "no C++ compiler on this machine (looked for no-such-compiler)" in why()
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo 'in file' >&2; echo 'error: too hard' >&2; exit 3"))
    assert why().endswith("cxx failed with status 3: error: too hard")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "no C++ compiler on this machine (looked for g++, c++, clang++)" in why()
    source.unlink()
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    assert "small.cpp was not installed" in why()


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("driver", ["wait", "exit 0"])
def test_a_compiler_that_hangs_is_ended_with_its_children(source, cache, monkeypatch, tmp_path, driver):
    child = tmp_path / "child"
    monkeypatch.setenv("CXX", compiler(tmp_path, f"sleep 60 & echo $! > {child}; {driver}"))
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 2.0)
    with pytest.raises(NotCompiled, match="took more than 2 s"):
        library_of(source)
    deadline = time.monotonic() + 10
    while not gone(int(child.read_text())):
        assert time.monotonic() < deadline, "the compiler's child lives on"
        time.sleep(0.02)
    assert not list(cache.iterdir())


def test_what_does_not_load_is_no_library(source, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo "not a library" > "$last"'))
    with pytest.raises(NotCompiled, match="does not load"):
        library_of(source)

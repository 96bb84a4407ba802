"""The wrong key opens nothing and says so; the right ones open everything; none of them shows itself."""

from __future__ import annotations

import base64
import copy
import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends import keyring as keyring_module
from hounsfield.storage_backends.errors import KeyDestroyedError, KeyringError, MasterKeyError
from hounsfield.storage_backends.file_systems import publish_file
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import (
    MasterKey,
    RecoveryKey,
    create_master_key_file,
    load_master_key,
)

SECRET = bytes(range(100, 132))  # printable and not: ends past 127


# ---------------------------------------------------------------- where the master key comes from


FORMS = {
    "raw": SECRET,
    "hex": SECRET.hex().encode(),
    "HEX": SECRET.hex().upper().encode(),
    "hex and newline": SECRET.hex().encode() + b"\n",
    "hex in white space": b" \t" + SECRET.hex().encode() + b"\r\n",
    "base64": base64.b64encode(SECRET) + b"\n",
    "base64 unpadded": base64.b64encode(SECRET).rstrip(b"="),
    "base64url": base64.urlsafe_b64encode(b"\xfb\xff" + SECRET[2:]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_from_a_file_and_a_command(form: str, tmp_path: Path) -> None:
    path = tmp_path / "key with space"
    path.write_bytes(FORMS[form])
    expected = b"\xfb\xff" + SECRET[2:] if form == "base64url" else SECRET
    assert load_master_key(f"file:{path}").reveal() == expected
    assert load_master_key(f"command:cat '{path}'").reveal() == expected


def test_from_the_environment_and_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", SECRET.hex())
    assert load_master_key("env:THE_KEY").reveal() == SECRET
    (tmp_path / "master").write_bytes(SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_master_key("credential:master").reveal() == SECRET
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(MasterKeyError, match="LoadCredential"):
        load_master_key("credential:master")


def test_a_command_runs_once_and_without_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "print key"
    script.write_text(f"#!/bin/sh\necho run >> '{tmp_path}/runs'\necho $1\n")
    script.chmod(0o700)
    assert load_master_key(f"command:'{script}' {SECRET.hex()}").reveal() == SECRET
    assert (tmp_path / "runs").read_text() == "run\n"
    with pytest.raises(MasterKeyError):
        load_master_key(f"command:echo {SECRET.hex()} && true")


BAD_CONTENT = {
    "empty": b"",
    "short": SECRET[:31],
    "long": SECRET + b"!",
    "raw and newline": SECRET + b"\n",
    "passphrase of 32 characters": b"correct horse battery staple 123",
    "hex of 31 bytes": SECRET[:31].hex().encode(),
    "hex with a letter too far": (SECRET.hex()[:-1] + "g").encode(),
    "base64 of 31 bytes": base64.b64encode(SECRET[:31]),
    "not base64": b"*" * 44,
    "zeros": bytes(32),
    "zeros in hex": b"00" * 32,
    "endless": b"x" * 10_000_000,
}


@pytest.mark.parametrize("form", BAD_CONTENT)
def test_what_is_not_a_key_is_refused_without_being_shown(form: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(BAD_CONTENT[form])
    with pytest.raises(MasterKeyError) as caught:
        load_master_key(f"file:{path}")
    _shows_nothing(caught.value, BAD_CONTENT[form])


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "file",
        "file:",
        "vault:x",
        "file:/nowhere/at/all",
        "env:HOUNSFIELD_NOT_SET",
        "credential:../etc/passwd",
        "command:/nowhere/at/all",
        "command:false",
        "command:'unbalanced",
    ],
)
def test_a_missing_source_is_one_clear_error(spec: str) -> None:
    with pytest.raises(MasterKeyError):
        load_master_key(spec)


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(words: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(words, 60, output=SECRET)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(MasterKeyError, match="did not answer") as caught:
        load_master_key("command:vault read --token=hunter2")
    _shows_nothing(caught.value, SECRET, b"hunter2")


def test_a_failed_command_shows_neither_words_nor_output() -> None:
    with pytest.raises(MasterKeyError) as caught:
        load_master_key("command:sh -c 'echo hunter3; echo hunter4 >&2; exit 3' --token=hunter2")
    assert "status 3" in str(caught.value)
    _shows_nothing(caught.value, b"hunter2", b"hunter3", b"hunter4")


def test_a_new_master_key_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "master.key"
    key = create_master_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_master_key(f"file:{path}").reveal() == key.reveal()
    with pytest.raises(MasterKeyError, match="never overwritten"):
        create_master_key_file(path)


def test_keys_do_not_show_themselves(tmp_path: Path) -> None:
    master = MasterKey(SECRET, "a test")
    recovery = RecoveryKey(SECRET, "a test")
    keyring = Keyring.create(tmp_path / "keys", master)
    for thing in (master, recovery, keyring):
        for shown in (repr(thing), str(thing), f"{thing}"):
            _nothing_in(shown, SECRET, keyring._root_key)
    for key in (master, recovery):
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                leak(key)
        assert not hasattr(key, "__dict__")


def _shows_nothing(error: BaseException, *secrets: bytes) -> None:
    # Frames show source lines, which in a test name the secret; the chain of messages must not.
    seen: BaseException | None = error
    while seen is not None:
        _nothing_in("".join(traceback.format_exception_only(seen)) + repr(seen.args), *secrets)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _nothing_in(text: str, *secrets: bytes) -> None:
    for secret in secrets:
        if secret:
            for form in (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode()):
                assert form[:40] not in text or len(form) < 6


# ---------------------------------------------------------------- recovery


def test_a_recovery_key_is_read_as_it_was_written() -> None:
    key = RecoveryKey.generate()
    text = key.text()
    assert len(text) == 74
    assert text.startswith("HFR1-")
    for form in (text, text.lower(), text.replace("-", ""), text.replace("-", " "), f"  {text}\n"):
        assert RecoveryKey.from_text(form).reveal() == key.reveal()


def test_a_mistyped_recovery_key_is_said_to_be() -> None:
    text = RecoveryKey.generate().text()
    for at in range(5, len(text)):
        if text[at] != "-":
            wrong = text[:at] + ("A" if text[at] != "A" else "C") + text[at + 1 :]
            with pytest.raises(MasterKeyError, match="mistyped") as caught:
                RecoveryKey.from_text(wrong)
            _shows_nothing(caught.value, wrong.encode())
    for wrong in ("", "HFR1", text[:-1], text + "A", "HFR1-" + "!" * 56, "ü" * 56):
        with pytest.raises(MasterKeyError, match="mistyped"):
            RecoveryKey.from_text(wrong)


def test_the_recovery_key_is_given_once_and_opens_later_keys(tmp_path: Path, master: MasterKey) -> None:
    made = Keyring.create(tmp_path / "keys", master)
    recovery = made.take_recovery_key()
    assert recovery is not None
    assert made.take_recovery_key() is None
    key = Keyring.open(tmp_path / "keys", master).create_key("segment", "later")
    opened = Keyring.open(tmp_path / "keys", RecoveryKey.from_text(recovery.text()))
    assert opened.key("segment", "later") == key
    assert opened.take_recovery_key() is None
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file():
            for secret in (recovery.reveal(), recovery.text().encode(), recovery.reveal().hex().encode()):
                assert secret not in path.read_bytes()


# ---------------------------------------------------------------- the keyring


def test_a_wrong_master_key_is_one_clear_error(tmp_path: Path, keyring: Keyring) -> None:
    for wrong in (MasterKey.generate(), RecoveryKey.generate()):
        with pytest.raises(MasterKeyError, match="is not the key"):
            Keyring.open(tmp_path / "keys", wrong)


def test_a_master_key_is_not_a_recovery_key(tmp_path: Path) -> None:
    Keyring.create(tmp_path / "keys", MasterKey(SECRET, "a test"))
    with pytest.raises(MasterKeyError):
        Keyring.open(tmp_path / "keys", RecoveryKey(SECRET, "a test"))


def test_keys_are_kept_apart_by_purpose_and_id(tmp_path: Path, keyring: Keyring, master: MasterKey) -> None:
    made = {
        (purpose, key_id): keyring.create_key(purpose, key_id)
        for purpose in ("segment", "index", "token")
        for key_id in ("a", "b", "field.00100010")
    }
    assert len(set(made.values())) == 9
    assert all(len(key) == 32 for key in made.values())
    again = Keyring.open(tmp_path / "keys", master)
    for (purpose, key_id), key in made.items():
        assert again.key(purpose, key_id) == key == keyring.key(purpose, key_id)
        assert again.ensure_key(purpose, key_id) == key
        with pytest.raises(KeyringError, match="already"):
            again.create_key(purpose, key_id)
    assert keyring.key_ids("token") == ["a", "b", "field.00100010"]
    assert keyring.key_ids("nothing") == []
    with pytest.raises(KeyringError, match="restore"):
        keyring.key("segment", "never")
    for path in (tmp_path / "keys").rglob("*"):
        expected = 0o600 if path.is_file() else 0o700
        assert stat.S_IMODE(path.stat().st_mode) == expected
        if path.is_file():
            assert not any(key in path.read_bytes() for key in made.values())


def test_a_key_made_elsewhere_is_found(tmp_path: Path, keyring: Keyring, master: MasterKey) -> None:
    other = Keyring.open(tmp_path / "keys", master)
    key = other.create_key("segment", "new")
    assert keyring.key("segment", "new") == key
    assert keyring.ensure_key("index", "1") == other.ensure_key("index", "1")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\0b", "a" * 200])
def test_names_never_leave_the_directory(keyring: Keyring, name: str) -> None:
    for call in (keyring.create_key, keyring.key, keyring.ensure_key):
        with pytest.raises(ValueError, match="not a name"):
            call("segment", name)
        with pytest.raises(ValueError, match="not a name"):
            call(name, "a")


def test_a_changed_or_moved_key_does_not_unwrap(tmp_path: Path, keyring: Keyring, master: MasterKey) -> None:
    keyring.create_key("segment", "a")
    keyring.create_key("segment", "b")
    folder = tmp_path / "keys"
    path = folder / "segment" / "a.key"
    good = path.read_bytes()

    def fails() -> None:
        with pytest.raises(KeyringError):
            Keyring.open(folder, master).key("segment", "a")

    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        fails()
        path.write_bytes(good[:at])
        fails()
    path.write_bytes(good + b"\0")
    fails()
    path.write_bytes((folder / "segment" / "b.key").read_bytes())
    fails()
    (folder / "index").mkdir()
    (folder / "index" / "a.key").write_bytes(good)
    with pytest.raises(KeyringError):
        Keyring.open(folder, master).key("index", "a")
    path.write_bytes(good)
    assert Keyring.open(folder, master).key("segment", "a") == keyring.key("segment", "a")


def test_a_key_of_another_archive_does_not_unwrap(tmp_path: Path, master: MasterKey) -> None:
    one = Keyring.create(tmp_path / "one", master)
    Keyring.create(tmp_path / "two", master)
    one.create_key("segment", "a")
    (tmp_path / "two" / "segment").mkdir()
    (tmp_path / "one/segment/a.key").rename(tmp_path / "two/segment/a.key")
    with pytest.raises(KeyringError, match="another archive"):
        Keyring.open(tmp_path / "two", master).key("segment", "a")


def test_a_damaged_root_is_said_to_be(tmp_path: Path, keyring: Keyring, master: MasterKey) -> None:
    root = tmp_path / "keys" / "root"
    good = json.loads(root.read_text())
    spoilt: list[Callable[[dict[str, object]], object]] = [
        lambda f: f.pop("wraps"),
        lambda f: f.pop("root_id"),
        lambda f: f.update(root_id="00"),
        lambda f: f.update(root_id="zz" * 16),
        lambda f: f.update(wraps=[]),
        lambda f: f.update(wraps={"master": "AAAA"}),
        lambda f: f.update(wraps={"master": "***"}),
        lambda f: f.update(format="hounsfield keyring 2"),
    ]
    for spoil in spoilt:
        fields = json.loads(json.dumps(good))
        spoil(fields)
        root.write_text(json.dumps(fields))
        with pytest.raises(KeyringError) as caught:
            Keyring.open(tmp_path / "keys", master)
        assert not isinstance(caught.value, MasterKeyError)
    for data in (b"", b"\xff", b"[]", b"null"):
        root.write_bytes(data)
        with pytest.raises(KeyringError):
            Keyring.open(tmp_path / "keys", master)
    fields = json.loads(json.dumps(good))
    fields["root_id"] = "00" * 16  # bound into the wrap
    root.write_text(json.dumps(fields))
    with pytest.raises(MasterKeyError):
        Keyring.open(tmp_path / "keys", master)
    fields["wraps"] = {"recovery": good["wraps"]["recovery"]}
    root.write_text(json.dumps(fields))
    with pytest.raises(MasterKeyError):
        Keyring.open(tmp_path / "keys", master)


def test_a_keyring_is_made_once(tmp_path: Path, master: MasterKey) -> None:
    assert not Keyring.exists(tmp_path / "keys")
    with pytest.raises(KeyringError, match="initialised"):
        Keyring.open(tmp_path / "keys", master)
    Keyring.create(tmp_path / "keys", master)
    assert Keyring.exists(tmp_path / "keys")
    before = (tmp_path / "keys" / "root").read_bytes()
    with pytest.raises(KeyringError, match="already"):
        Keyring.create(tmp_path / "keys", MasterKey.generate())
    assert (tmp_path / "keys" / "root").read_bytes() == before
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["root"]


def test_rotation_rewrites_only_the_root(tmp_path: Path, keyring: Keyring, master: MasterKey) -> None:
    recovery = keyring.take_recovery_key()
    assert recovery is not None
    key = keyring.create_key("segment", "a")
    before = {path: path.read_bytes() for path in (tmp_path / "keys" / "segment").iterdir()}
    new = MasterKey.generate()
    Keyring.open(tmp_path / "keys", master).rewrap(new)
    with pytest.raises(MasterKeyError):
        Keyring.open(tmp_path / "keys", master)
    for opens in (new, recovery):
        assert Keyring.open(tmp_path / "keys", opens).key("segment", "a") == key
    assert {path: path.read_bytes() for path in before} == before
    later = keyring.create_key("segment", "b")  # who has it open goes on
    assert Keyring.open(tmp_path / "keys", new).key("segment", "b") == later
    newer_recovery = RecoveryKey.generate()
    Keyring.open(tmp_path / "keys", recovery).rewrap(newer_recovery)
    with pytest.raises(MasterKeyError):
        Keyring.open(tmp_path / "keys", recovery)
    for opens in (new, newer_recovery):
        assert Keyring.open(tmp_path / "keys", opens).key("segment", "a") == key


def test_a_key_is_synced_file_and_folder_before_it_is_given(
    tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(path.name if path.is_dir() else "file")
        real_sync(descriptor)

    def link(*arguments: object, **options: object) -> None:
        steps.append("named")
        real_link(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", link)
    keyring.create_key("segment", "a")
    assert steps == ["keys", "file", "named", "segment", "keys"]


def test_a_failed_sync_gives_no_key(
    tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(keyring_module.os, "fsync", fail)
        with pytest.raises((KeyringError, OSError)):
            keyring.create_key("segment", "a")
    assert keyring.create_key("segment", "b")


def test_several_processes_agree_on_every_key(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from hounsfield.storage_backends.errors import KeyringError\n"
        "from hounsfield.storage_backends.keyring import Keyring\n"
        "from hounsfield.storage_backends.master_key import load_master_key\n"
        "master = load_master_key('env:KEY')\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    keyring = Keyring.create(sys.argv[1], master)\n"
        "    print('created')\n"
        "except KeyringError:\n"
        "    keyring = Keyring.open(sys.argv[1], master)\n"
        "    print('opened')\n"
        "for number in range(30):\n"
        "    print(keyring.ensure_key('index', str(number)).hex())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "keys")]
    environment = {**os.environ, "KEY": SECRET.hex()}
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0].splitlines() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(answer[0] for answer in answers) == ["created", "opened", "opened", "opened"]
    assert len({tuple(answer[1:]) for answer in answers}) == 1
    assert len(set(answers[0][1:])) == 30
    assert [p.name for p in (tmp_path / "keys/index").iterdir() if not p.name.endswith(".key")] == []


def test_the_cache_of_keys_is_bounded(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "CACHED_KEYS_MAX", 3)
    keys = {str(number): keyring.create_key("segment", str(number)) for number in range(10)}
    for key_id, key in keys.items():
        assert keyring.key("segment", key_id) == key
        assert len(keyring._keys) <= 3


def test_a_key_that_exists_needs_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the archive still starts, and reads."""
    path = tmp_path / "master"
    path.write_bytes(SECRET)
    master = load_master_key(f"file:{path}")
    made = Keyring.create(tmp_path / "keys", master).ensure_key("token", "PatientID")

    def full(*_: object, **__: object) -> bool:
        raise KeyringError("the disk is full")

    monkeypatch.setattr(keyring_module, "_publish", full)
    assert Keyring.open(tmp_path / "keys", master).ensure_key("token", "PatientID") == made


def test_a_disk_that_fills_up_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes the bytes that it has room for, and reports nothing until the next write."""
    write, room = os.write, 3

    def write_what_fits(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "no space left")
        taken = min(room, len(data))
        room -= taken
        return write(descriptor, data[:taken])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_what_fits)
        with pytest.raises(OSError, match="no space"):
            publish_file(tmp_path / "file", b"0123456789")
        assert list(tmp_path.iterdir()) == []
        room = 10
        assert publish_file(tmp_path / "file", b"0123456789")
    assert not publish_file(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert publish_file(tmp_path / "file", b"other", replace=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"other"]


# ---------------------------------------------------------------- destroying


def test_a_destroyed_key_is_gone_from_disk_and_memory(
    tmp_path: Path, keyring: Keyring, master: MasterKey
) -> None:
    keyring.create_key("segment", "a")
    kept = keyring.create_key("segment", "b")
    other = Keyring.open(tmp_path / "keys", master)
    other.key("segment", "a")
    other.key("segment", "b")
    before = (tmp_path / "keys/segment/a.key").read_bytes()
    draft = tmp_path / "keys/segment/.left-by-a-crash.new"
    draft.hardlink_to(tmp_path / "keys/segment/a.key")
    assert keyring.destroy_key("segment", "a")
    assert before[8:40] not in draft.read_bytes()  # the same file under another name
    assert keyring.cached_key("segment", "a") is None
    with pytest.raises(KeyringError, match="restore"):
        keyring.key("segment", "a")
    assert other.forget_destroyed("segment") == 1
    with pytest.raises(KeyringError):
        other.key("segment", "a")
    assert keyring.key("segment", "b") == other.key("segment", "b") == kept
    assert keyring.key_ids("segment") == ["b"]
    assert not keyring.destroy_key("segment", "a")  # again: nothing more to do
    assert not keyring.destroy_key("nothing", "a")


def test_destroying_is_whole_or_finished_by_doing_it_again(
    tmp_path: Path, keyring: Keyring, master: MasterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each call that changes the disk: the key opens as before, or is destroyed."""
    found: list[str] = []
    for step in range(20):
        name = f"k{step}"
        key = keyring.create_key("segment", name)
        finished = _killed_at(step, lambda name=name: keyring.destroy_key("segment", name), monkeypatch)
        again = Keyring.open(tmp_path / "keys", master)
        try:
            assert again.key("segment", name) == key
            found.append("whole")
        except KeyDestroyedError:
            found.append("destroyed")
        except KeyringError:
            found.append("gone")
        again.destroy_key("segment", name)
        with pytest.raises(KeyringError):
            again.key("segment", name)
        if finished:
            break
    assert list(dict.fromkeys(found)) == ["whole", "destroyed", "gone"]


def test_a_key_that_cannot_be_overwritten_is_still_removed(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring.create_key("segment", "a")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert keyring.destroy_key("segment", "a")
    assert keyring.key_ids("segment") == []


# ---------------------------------------------------------------- killed anywhere


class Killed(BaseException):
    """The process ended here."""


CHANGES_THE_DISK = ("open", "write", "pwrite", "fsync", "link", "rename", "replace", "unlink", "mkdir")


def _killed_at(step: int, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Call, and end the process before its ``step``-th change of the disk; whether it was done before."""
    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **options: object) -> object:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return real(*arguments, **options)

        return instead

    with monkeypatch.context() as patch:
        for name in CHANGES_THE_DISK:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            call()
        except Killed:
            return False
    return True


def _each_step(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"step{number}" for number in range(60)]


def test_a_rotation_killed_anywhere_leaves_one_key_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_by: set[str] = set()
    for step, folder in enumerate(_each_step(tmp_path)):
        old, new = MasterKey.generate(), MasterKey.generate()
        keyring = Keyring.create(folder, old)
        recovery = keyring.take_recovery_key()
        assert recovery is not None
        key = keyring.create_key("segment", "a")
        finished = _killed_at(step, lambda ring=keyring, to=new: ring.rewrap(to), monkeypatch)
        opens = [name for name, by in (("old", old), ("new", new)) if _opens(folder, by)]
        assert len(opens) == 1
        opened_by.update(opens)
        assert Keyring.open(folder, recovery).key("segment", "a") == key
        Keyring.open(folder, recovery).rewrap(new)
        assert Keyring.open(folder, new).key("segment", "a") == key
        if finished:
            assert opens == ["new"]
            break
    assert opened_by == {"old", "new"}


def test_a_new_recovery_key_or_none_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ("new", "remove"):
        for step, folder in enumerate(_each_step(tmp_path / change)):
            master, new = MasterKey.generate(), RecoveryKey.generate()
            keyring = Keyring.create(folder, master)
            old = keyring.take_recovery_key()
            assert old is not None
            call = (
                keyring.remove_recovery
                if change == "remove"
                else lambda to=new, ring=keyring: ring.rewrap(to)
            )
            finished = _killed_at(step, call, monkeypatch)
            again = Keyring.open(folder, master)
            assert (again.opened_by(old), again.opened_by(new)) in {
                (True, False),
                (False, change == "new"),
            }
            if finished:
                assert again.wraps() == (["master"] if change == "remove" else ["master", "recovery"])
                assert not again.opened_by(old)
                assert not again.remove_recovery() or change == "new"
                break
        else:
            raise AssertionError("it never finished")


def test_keys_being_made_together_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, folder in enumerate(_each_step(tmp_path)):
        master = MasterKey.generate()
        keyring = Keyring.create(folder, master)
        there = Keyring.open(folder, master).ensure_key("token", "b")
        finished = _killed_at(step, lambda ring=keyring: ring.ensure_keys("token", "abc"), monkeypatch)
        again = Keyring.open(folder, master)
        made = again.ensure_keys("token", "abc")
        assert made[1] == there
        assert len(set(made)) == 3
        if finished:
            assert made == [keyring.key("token", key_id) for key_id in "abc"]
            return
    raise AssertionError("it never finished")


def test_a_key_being_made_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given out is on disk; a name is never taken by half a file."""
    for step, folder in enumerate(_each_step(tmp_path)):
        master = MasterKey.generate()
        keyring = Keyring.create(folder, master)
        finished = _killed_at(step, lambda ring=keyring: ring.create_key("segment", "a"), monkeypatch)
        again = Keyring.open(folder, master)
        assert len(again.ensure_key("segment", "a")) == 32
        if finished:
            assert again.key("segment", "a") == keyring.key("segment", "a")
            return
    raise AssertionError("it never finished")


def test_an_archive_being_made_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, folder in enumerate(_each_step(tmp_path)):
        master = MasterKey.generate()
        finished = _killed_at(step, lambda at=folder, by=master: Keyring.create(at, by), monkeypatch)
        if Keyring.exists(folder):
            assert Keyring.open(folder, master).wraps() == ["master", "recovery"]
        else:
            Keyring.create(folder, master)
        if finished:
            return
    raise AssertionError("it never finished")


def test_a_master_key_file_being_made_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, folder in enumerate(_each_step(tmp_path)):
        path = folder / "master.key"
        finished = _killed_at(step, lambda at=path: create_master_key_file(at), monkeypatch)
        key = load_master_key(f"file:{path}") if path.exists() else create_master_key_file(path)
        assert load_master_key(f"file:{path}").reveal() == key.reveal()
        if finished:
            return
    raise AssertionError("it never finished")


def test_two_who_change_the_root_at_once_undo_nothing(tmp_path: Path, master: MasterKey) -> None:
    Keyring.create(tmp_path / "keys", master)
    new, recovery = MasterKey.generate(), RecoveryKey.generate()
    rings = [Keyring.open(tmp_path / "keys", master) for _ in range(2)]
    jobs: list[Callable[[], object]] = [lambda: rings[0].rewrap(new), lambda: rings[1].rewrap(recovery)]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Keyring.open(tmp_path / "keys", new)
    assert again.opened_by(recovery)
    assert not again.opened_by(master)


def test_a_rotation_is_synced_before_and_after_it_is_named(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        steps.append("folder" if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir() else "file")
        real_sync(descriptor)

    def replace(*arguments: object, **options: object) -> None:
        steps.append("named")
        real_replace(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    keyring.rewrap(MasterKey.generate())
    assert steps == ["file", "named", "folder"]


def test_a_keyring_with_the_root_key_follows_a_rotation(
    tmp_path: Path, keyring: Keyring, master: MasterKey
) -> None:
    root = keyring.reveal_root()
    key = keyring.create_key("segment", "a")
    keyring.rewrap(MasterKey.generate())
    assert Keyring.open_with_root(tmp_path / "keys", root).key("segment", "a") == key
    assert keyring.derived_key("x") == Keyring.open_with_root(tmp_path / "keys", root).derived_key("x")
    assert keyring.derived_key("x") != keyring.derived_key("y")
    Keyring.create(tmp_path / "other", master)
    (tmp_path / "other" / "root").replace(tmp_path / "keys" / "root")
    with pytest.raises(KeyringError, match="another archive"):
        keyring.rewrap(master)


def _opens(folder: Path, by: MasterKey | RecoveryKey) -> bool:
    try:
        Keyring.open(folder, by)
    except MasterKeyError:
        return False
    return True


def test_a_master_key_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MasterKeyError, match="cannot write the master key"):
        create_master_key_file(tmp_path / "file" / "master.key")

"""Sealed files: what opens, what does not, and a blob store over another."""

import base64
import io
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

import tapster
from tapster.contract.errors import TapsterError
from tapster.core import envelope, sealed
from tapster.core.blobs import LocalBlobs
from tapster.core.envelope import CHUNK, DataKey, Master, new_data_key, seal
from tapster.core.settings import Settings, load
from tapster.core.vault import Vault, hold, link
from tapster.testing import check_blob_store
from tests.conftest import Server

SHARED_MEMORY = Path("/dev/shm")
HEADER = 66


class Keys:
    """A Keyring of one key a tenant."""

    def __init__(self) -> None:
        self.held: dict[str, DataKey] = {}

    def current(self, tenant: str) -> DataKey:
        return self.held.setdefault(tenant, new_data_key())

    def find(self, tenant: str, identifier: str) -> DataKey:
        if tenant not in self.held or self.held[tenant].id != identifier:
            raise TapsterError("not_found", "gone")
        return self.held[tenant]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """A vault like an installation's; the kind of file system is asked elsewhere."""
    made = Vault(tmp_path / "vault")
    made.open()
    return made


def _sealed(data: bytes, key: DataKey, *place: str) -> bytes:
    target = io.BytesIO()
    assert seal(io.BytesIO(data), target, key, *place) == len(data)
    return target.getvalue()


def _open(data: bytes, key: DataKey, *place: str) -> bytes:
    return b"".join(envelope.opened(io.BytesIO(data), lambda _: key, *place))


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7])
def test_what_is_sealed_opens(size: int) -> None:
    key, data = new_data_key(), secrets.token_bytes(size)
    found = _sealed(data, key, "acme", "acme/datasets/1", "data.parquet")
    assert _open(found, key, "acme", "acme/datasets/1", "data.parquet") == data
    assert data[:64] not in found or size < 16


def test_the_same_content_is_never_sealed_alike() -> None:
    key = new_data_key()
    assert _sealed(b"same", key)[8 + 19 :] != _sealed(b"same", key)[8 + 19 :]


def test_any_changed_byte_is_found() -> None:
    key, place = new_data_key(), ("acme", "k", "f")
    whole = _sealed(secrets.token_bytes(CHUNK + 100), key, *place)
    places = [*range(0, HEADER), HEADER, HEADER + CHUNK, len(whole) // 2, len(whole) - 1]
    for at in places:
        altered = bytearray(whole)
        altered[at] ^= 1
        with pytest.raises(TapsterError, match="does not open"):
            _open(bytes(altered), key, *place)


def test_chunks_cannot_be_left_out_repeated_swapped_or_cut_off() -> None:
    key, size = new_data_key(), CHUNK + 16
    whole = _sealed(secrets.token_bytes(3 * CHUNK), key)
    head, body = whole[:HEADER], whole[HEADER:]
    one, two, three = (body[at * size : (at + 1) * size] for at in range(3))
    assert _open(head + one + two + three, key)
    for wrong in (
        [two, one, three], [one, three], [one, one, two, three], [one, two], [one], [],
        [one, two, three, three], [one, two, three[:-1]], [one, two, three, b"\0"],
    ):  # fmt: skip
        with pytest.raises(TapsterError, match="does not open"):
            _open(head + b"".join(wrong), key)


@pytest.mark.parametrize("cut", [0, 1, 8, HEADER - 1])
def test_a_header_that_is_cut_off_is_no_header(cut: int) -> None:
    key = new_data_key()
    with pytest.raises(TapsterError, match="does not open"):
        _open(_sealed(b"x", key)[:cut], key)


@pytest.mark.parametrize(
    "place", [("other", "k", "f"), ("acme", "j", "f"), ("acme", "k", "g"), ("acmek", "", "f"), ()]
)
def test_what_is_moved_does_not_open(place: tuple[str, ...]) -> None:
    key = new_data_key()
    found = _sealed(b"x" * 100, key, "acme", "k", "f")
    with pytest.raises(TapsterError, match="does not open"):
        _open(found, key, *place)


def test_another_key_does_not_open_it() -> None:
    key = new_data_key()
    found = _sealed(b"x" * 100, key)
    with pytest.raises(TapsterError, match="does not open"):
        _open(found, DataKey(key.id, secrets.token_bytes(32)))


def test_a_wrapped_key_is_its_tenants_and_its_masters() -> None:
    master, other, key = Master(b"m" * 32), Master(b"n" * 32), new_data_key()
    wrapped = master.wrap("acme", key)
    assert master.unwrap("acme", wrapped) == key
    assert base64.b64encode(key.secret).decode() not in wrapped
    with pytest.raises(TapsterError, match="damaged"):
        master.unwrap("rival", wrapped)
    with pytest.raises(TapsterError, match="another master key"):
        other.unwrap("acme", wrapped)
    altered = wrapped[:-4] + ("AAAA" if not wrapped.endswith("AAAA") else "BBBB")
    with pytest.raises(TapsterError, match="damaged"):
        master.unwrap("acme", altered)


def test_secrets_are_not_in_what_is_printed() -> None:
    settings = load({"TAPSTER_MASTER_KEY": "ab" * 32})
    assert "abab" not in repr(settings)
    key = new_data_key()
    assert repr(key.secret) not in repr(key)


@pytest.mark.parametrize(
    "spelled", [b"\x01" * 32, b"01" * 32 + b"\n", base64.b64encode(b"\x01" * 32)]
)
def test_a_master_key_is_bytes_hex_or_base64(tmp_path: Path, spelled: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(spelled)
    found = envelope.master_of(load({}, home=tmp_path, master_key_file=str(path)))
    assert found is not None
    assert found.name == Master(b"\x01" * 32).name


def test_a_master_key_may_come_from_a_command(tmp_path: Path) -> None:
    found = envelope.master_of(load({}, home=tmp_path, master_key_command=f"echo {'01' * 32}"))
    assert found is not None
    assert found.name == Master(b"\x01" * 32).name
    assert envelope.master_of(load({}, home=tmp_path)) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"master_key": "short"}, "not 32 bytes"),
        ({"master_key": "0x" + "1" * 64}, "not 32 bytes"),
        ({"master_key_file": "/nonexistent/key"}, "cannot be read"),
        ({"master_key_command": "false"}, "failed"),
        ({"master_key_command": "/nonexistent/command"}, "failed"),
        ({"master_key_command": "echo 'unclosed"}, "failed"),
        ({"master_key_command": "echo hello"}, "not 32 bytes"),
        ({"master_key": "01" * 32, "master_key_command": "true"}, "two places"),
    ],
)
def test_a_master_key_that_is_none_is_refused_without_being_shown(
    given: dict[str, str], said: str
) -> None:
    with pytest.raises(TapsterError, match=said) as refusal:
        envelope.master_of(replace(Settings(), **cast(Any, given)))
    assert "short" not in str(refusal.value)


# -- the store over another


def test_sealed_blobs_keep_the_contract_of_stores(tmp_path: Path, vault: Vault) -> None:
    check_blob_store(_store(tmp_path, vault, Keys()), tmp_path)


def _store(tmp_path: Path, vault: Vault, keys: Keys) -> sealed.SealedBlobs:
    inner = LocalBlobs(tmp_path / "blobs")
    return sealed.SealedBlobs(inner, keys, vault, tmp_path / "sealing")


def _folder(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def test_nothing_of_the_content_is_on_the_disk(tmp_path: Path, vault: Vault) -> None:
    store = _store(tmp_path, vault, Keys())
    store.put("acme/datasets/1", _folder(tmp_path / "in", customers=b"SECRET" * 1000))
    stored = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(stored) == 2
    for path in stored:
        assert b"SECRET" not in path.read_bytes()
        assert "customers" not in path.name
    found = store.get("acme/datasets/1") / "customers"
    assert found.read_bytes() == b"SECRET" * 1000
    assert found.is_relative_to(vault.root)
    assert found.stat().st_mode & 0o777 == 0o400
    assert not list((tmp_path / "sealing").iterdir())


def test_a_blob_is_decrypted_once(tmp_path: Path, vault: Vault) -> None:
    keys = Keys()
    store = _store(tmp_path, vault, keys)
    store.put("acme/datasets/1", _folder(tmp_path / "in", file=b"x"))
    first = (store.get("acme/datasets/1") / "file").stat().st_ino
    again = _store(tmp_path, vault, keys)
    assert (again.get("acme/datasets/1") / "file").stat().st_ino == first


@pytest.mark.parametrize("name", ["0", "1", sealed.INDEX])
def test_a_file_that_is_altered_swapped_or_gone_is_not_served(
    tmp_path: Path, vault: Vault, name: str
) -> None:
    store = _store(tmp_path, vault, Keys())
    store.put("acme/datasets/1", _folder(tmp_path / "in", a=b"first", b=b"other"))
    folder = tmp_path / "blobs/acme/datasets/1"
    kept = (folder / name).read_bytes()
    for damaged in (kept[:-1], (folder / ("1" if name == "0" else "0")).read_bytes()):
        (folder / name).write_bytes(damaged)
        with pytest.raises(TapsterError, match="does not open"):
            store.get("acme/datasets/1")
        (folder / name).write_bytes(kept)
    if name != sealed.INDEX:
        (folder / name).unlink()
        with pytest.raises(TapsterError, match="does not open"):
            store.get("acme/datasets/1")
    assert vault.get("acme/datasets/1") is None


def test_without_its_key_a_blob_is_gone(tmp_path: Path, vault: Vault) -> None:
    keys = Keys()
    store = _store(tmp_path, vault, keys)
    store.put("acme/datasets/1", _folder(tmp_path / "in", a=b"first"))
    del keys.held["acme"]
    with pytest.raises(TapsterError, match="gone"):
        store.get("acme/datasets/1")
    assert store.delete("acme/datasets/1") > 0, "it can still be removed"
    assert list(store.keys()) == []


def test_what_was_stored_before_is_read_as_it_is(tmp_path: Path, vault: Vault) -> None:
    LocalBlobs(tmp_path / "blobs").put("acme/datasets/1", _folder(tmp_path / "in", a=b"plain"))
    store = _store(tmp_path, vault, Keys())
    assert (store.get("acme/datasets/1") / "a").read_bytes() == b"plain"
    assert store.put("acme/datasets/1", _folder(tmp_path / "in", a=b"again")) == len("plain")
    assert store.delete("acme/datasets/1") == len("plain")


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path, vault: Vault) -> None:
    folder = _folder(tmp_path / "in", a=b"x")
    (folder / "b").symlink_to("/etc/hostname")
    with pytest.raises(TapsterError, match="not a plain file"):
        _store(tmp_path, vault, Keys()).put("acme/datasets/1", folder)
    assert list(LocalBlobs(tmp_path / "blobs").keys()) == []


# -- the vault


def test_a_vault_is_in_memory_or_nowhere(tmp_path: Path) -> None:
    assert Vault.of(load({}, home=tmp_path)) is None
    given = {"home": tmp_path, "master_key": "01" * 32}
    with pytest.raises(TapsterError, match="no memory file system"):
        Vault.of(load({}, **given, memory_folder="/usr"))
    vault = Vault.of(load({}, **given, memory_folder=str(SHARED_MEMORY)))
    assert vault is not None
    try:
        assert vault.root.parent == SHARED_MEMORY
        assert vault.root.stat().st_mode & 0o777 == 0o700
    finally:
        vault.clear()
    assert not vault.root.exists()


def test_a_folder_that_others_may_read_is_no_vault(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    vault.root.mkdir(mode=0o755)
    vault.root.chmod(0o755)
    with pytest.raises(TapsterError, match="others may read"):
        vault.open()


def test_what_nobody_uses_or_holds_is_tidied_away(tmp_path: Path, vault: Vault) -> None:
    for name in ("old", "held", "young"):
        with vault.making(f"acme/datasets/{name}") as folder:
            (folder / "file").write_bytes(b"x")
    for name in ("old", "held"):
        os.utime(vault.root / "objects/acme/datasets" / name, (1.0, 1.0))
    descriptor = hold(vault.root / "objects/acme/datasets/held")
    linked = link(vault.root / "objects/acme/datasets/old", vault.folder("tmp") / "mine")
    vault.tidy()
    left = sorted(path.name for path in vault.root.glob("objects/acme/datasets/*"))
    assert left == ["held", "young"]
    assert (linked / "file").read_bytes() == b"x", "whoever has linked it keeps it"
    os.close(descriptor)
    vault.tidy()
    assert [path.name for path in vault.root.glob("objects/acme/datasets/*")] == ["young"]


def test_half_a_decryption_leaves_nothing(vault: Vault) -> None:
    def fail() -> None:
        with vault.making("acme/datasets/1") as folder:
            (folder / "file").write_bytes(b"half")
            raise envelope.damaged()

    with pytest.raises(TapsterError):
        fail()
    assert vault.get("acme/datasets/1") is None
    assert not list(vault.folder("tmp").iterdir())


def test_small_contents_are_sealed_in_memory() -> None:
    key = new_data_key()
    found = envelope.sealed_bytes(b"line", key, "acme", "jobs/1", "log")
    find = partial(Keys.find, _holding("acme", key), "acme")
    assert envelope.opened_bytes(found, find, "acme", "jobs/1", "log") == b"line"


def _holding(tenant: str, key: DataKey) -> Keys:
    keys = Keys()
    keys.held[tenant] = key
    return keys


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Vault]:
    """A vault in a memory file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    made = Vault(folder / "vault")
    made.open()
    yield made
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.system
def test_memory_that_is_full_is_told_and_nothing_breaks(tmp_path: Path, small: Vault) -> None:
    keys = Keys()
    store = _store(tmp_path, small, keys)
    store.put("acme/datasets/1", _folder(tmp_path / "large", file=b"x" * (3 << 20)))
    store.put("acme/datasets/2", _folder(tmp_path / "little", file=b"y" * 1000))
    for _ in range(3):
        with pytest.raises(TapsterError, match="memory for decrypted content is full") as refusal:
            store.get("acme/datasets/1")
        assert refusal.value.code == "storage_full"
        assert small.get("acme/datasets/1") is None
    assert not list(small.folder("tmp").iterdir()), "half of it takes no room"
    assert (store.get("acme/datasets/2") / "file").read_bytes() == b"y" * 1000
    (small.root / "filler").write_bytes(b"")
    with suppress(OSError), (small.root / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"z" * 4096)
    for key in ("acme/datasets/1", "acme/datasets/2"):
        small.drop(key)
    with pytest.raises(TapsterError, match="is full"):
        store.get("acme/datasets/1")
    (small.root / "filler").unlink()
    assert (store.get("acme/datasets/2") / "file").read_bytes() == b"y" * 1000


@pytest.mark.system
def test_a_job_that_finds_memory_full_fails_and_says_so(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        server = new_server(master_key="5eed" * 16, memory_folder=folder)
        with tapster.connect(server.url, key=server.key) as client:
            rows = "\n".join(f"{at},{os.urandom(20).hex()}" for at in range(60_000))
            (tmp_path / "large.csv").write_text(f"a,b\n{rows}\n")
            with pytest.raises(TapsterError, match="memory for decrypted content is full"):
                client.data_add("large", tmp_path / "large.csv")
            (tmp_path / "little.csv").write_text("a,b\n1,2\n3,4\n")
            assert client.data_add("little", tmp_path / "little.csv").rows == 2
            assert client.data_profile("little")["rows"] == 2
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

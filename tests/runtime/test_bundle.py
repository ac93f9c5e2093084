"""A bundle is what was saved, or it is refused before anything is loaded."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.engines.fake import Fake
from hasten.errors import BundleError, StorageError
from hasten.records import Gpu, Tuning
from hasten.runtime import bundle, manifest, signature
from tests.scripted import MACHINE, Lab, save_bundle

FAST = {"*": {"call_s": 1e-3, "token_s": 2e-5}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), FAST, precisions=("fp32",))


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return lab.tune()


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "user" / "bundle.key"
    monkeypatch.setattr(signature, "key_file", lambda: path)
    return path


@pytest.fixture
def saved(tmp_path: Path, lab: Lab, tuning: Tuning) -> Path:
    return save_bundle(tmp_path / "bundle", lab, tuning)


@pytest.fixture
def runs_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "runs_code", lambda self, folder: True)


def test_what_was_saved_is_loaded(saved: Path, tuning: Tuning) -> None:
    loaded = bundle.load(saved, here=MACHINE)
    assert loaded.plan == tuning.plan
    assert loaded.model == tuning.model
    assert loaded.parity == tuning.chosen.parity
    assert loaded.differences == ()
    assert bundle.read_tuning(saved) == tuning
    assert (saved / "config.json").exists()
    assert (saved / "report.md").read_text() == "# a report\n"
    assert not list(saved.parent.glob("*.unfinished"))


def test_saving_again_replaces_a_bundle_and_nothing_else(
    saved: Path, lab: Lab, tuning: Tuning, tmp_path: Path
) -> None:
    save_bundle(saved, lab, tuning)
    assert bundle.load(saved, here=MACHINE).plan == tuning.plan
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("precious")
    with pytest.raises(StorageError, match="is not a bundle"):
        save_bundle(precious, lab, tuning)
    assert (precious / "chapter1.txt").read_text() == "precious"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_truncated_files_are_refused_by_name(saved: Path, share: float) -> None:
    victim = saved / "fake.json"
    content = victim.read_bytes()
    victim.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=r"fake\.json has \d+ bytes and should have"):
        bundle.load(saved, here=MACHINE)


@pytest.mark.parametrize("name", ["fake.json", "tokenizer.json", "tuning.json", "report.md"])
def test_one_flipped_bit_is_refused_by_name(saved: Path, name: str) -> None:
    victim = saved / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} has been altered"):
        bundle.load(saved, here=MACHINE)


def test_missing_extra_and_linked_files_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "extra.py").write_text("")
    with pytest.raises(BundleError, match=r"does not list: extra\.py"):
        bundle.load(saved, here=MACHINE)
    (saved / "extra.py").unlink()
    (saved / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="is a link"):
        bundle.load(saved, here=MACHINE)
    (saved / "link").unlink()
    (saved / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        bundle.load(saved, here=MACHINE)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a manifest as somebody would who knows how it is made."""
    raw = json.loads((folder / "hasten.json").read_text())
    del raw["sha256"]
    change(raw)
    raw["sha256"] = manifest.digest(raw)
    (folder / "hasten.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "..\\outside"])
def test_a_manifest_cannot_reach_outside(saved: Path, name: str) -> None:
    def reach(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["fake.json"]

    rewrite(saved, reach)
    with pytest.raises(BundleError, match="outside the bundle"):
        bundle.load(saved, here=MACHINE)


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8])
def test_one_changed_character_in_the_manifest_is_refused(saved: Path, place: float) -> None:
    path = saved / "hasten.json"
    text = path.read_text()
    at = next(i for i in range(int(place * len(text)), len(text)) if text[i].isalnum())
    path.write_text(text[:at] + ("7" if text[at] != "7" else "8") + text[at + 1 :])
    with pytest.raises(BundleError, match=r"hasten\.json (has been altered|is damaged)"):
        bundle.load(saved, here=MACHINE)


def test_the_report_of_a_damaged_bundle_is_refused(saved: Path) -> None:
    (saved / "tuning.json").write_text("{")
    with pytest.raises(BundleError, match=r"tuning\.json"):
        bundle.read_tuning(saved)


def test_other_versions_of_the_engine_are_told(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(saved, lambda manifest: manifest["versions"].update({"fakelib": "1.0"}))
    monkeypatch.setattr(Fake, "versions", lambda self: {"fakelib": "2.0"})
    (difference,) = bundle.load(saved, here=MACHINE).differences
    assert difference == "it was tuned with fakelib 1.0, and here is 2.0"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_broken_manifest_is_refused(saved: Path, text: str) -> None:
    (saved / "hasten.json").write_text(text)
    with pytest.raises(BundleError):
        bundle.load(saved, here=MACHINE)


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_a_manifest_without_a_format_is_damaged(saved: Path, text: str) -> None:
    (saved / "hasten.json").write_text(text)
    with pytest.raises(BundleError, match=r"hasten\.json is damaged"):
        bundle.load(saved, here=MACHINE)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no hasten\.json"):
        bundle.load(tmp_path)


@pytest.mark.usefixtures("runs_code")
def test_an_artifact_that_can_run_code_needs_its_maker_or_trust(
    tmp_path: Path, lab: Lab, tuning: Tuning, own_key: Path
) -> None:
    folder = save_bundle(tmp_path / "executable", lab, tuning)
    assert own_key.stat().st_mode & 0o077 == 0
    bundle.load(folder, here=MACHINE)
    own_key.write_bytes(b"somebody else's key, as long  ..")
    with pytest.raises(BundleError, match="not made by you"):
        bundle.load(folder, here=MACHINE)
    own_key.unlink()
    with pytest.raises(BundleError, match="not made by you"):
        bundle.load(folder, here=MACHINE)
    assert bundle.load(folder, here=MACHINE, trust=True).plan == tuning.plan


@pytest.mark.usefixtures("runs_code")
def test_the_signature_covers_the_whole_manifest(tmp_path: Path, lab: Lab, tuning: Tuning) -> None:
    folder = save_bundle(tmp_path / "executable", lab, tuning)
    victim = folder / "report.md"
    victim.write_text("# forged   \n"[: victim.stat().st_size])
    digest = manifest._sha256(victim)
    rewrite(folder, lambda manifest: manifest["files"]["report.md"].update({"sha256": digest}))
    with pytest.raises(BundleError, match="not made by you"):
        bundle.load(folder, here=MACHINE)


def test_another_machine_is_told_apart(saved: Path) -> None:
    other = replace(MACHINE, cpu_model="Other CPU", usable_cores=8)
    differences = " ".join(bundle.load(saved, here=other).differences)
    assert "Other CPU" in differences
    assert "Scripted CPU" in differences


def test_a_precision_that_this_machine_lacks_is_refused(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    candidate = replace(tuning.plan.candidate, precision="bf16")
    lossy = replace(tuning, plan=replace(tuning.plan, candidate=candidate))
    folder = save_bundle(tmp_path / "lossy", lab, lossy)
    assert bundle.load(folder, here=MACHINE).plan == lossy.plan
    without = replace(MACHINE, instruction_sets=("avx2",))
    with pytest.raises(BundleError, match="bf16") as caught:
        bundle.load(folder, here=without)
    assert "hasten tune" in (caught.value.fix or "")
    on_gpu = replace(candidate, device="cuda", precision="fp16")
    folder = save_bundle(
        tmp_path / "gpu", lab, replace(lossy, plan=replace(lossy.plan, candidate=on_gpu))
    )
    with pytest.raises(BundleError, match="no GPU"):
        bundle.load(folder, here=MACHINE)
    with_gpu = replace(MACHINE, gpus=(Gpu("some GPU", 2**30),))
    assert bundle.load(folder, here=with_gpu).plan.candidate == on_gpu


def test_a_full_disk_leaves_no_half_bundle(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", no_space)
    with pytest.raises(StorageError, match="No space left"):
        save_bundle(tmp_path / "bundle", lab, tuning)
    assert not list(tmp_path.iterdir())


# --- what is beside it ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unfinished", "replaced"])
@pytest.mark.parametrize("name", ["bundle.{}", ".bundle.0123abcd.{}"])
def test_folders_that_it_did_not_make_are_left_alone(
    saved: Path, lab: Lab, tuning: Tuning, name: str, kind: str
) -> None:
    precious = saved.with_name(name.format(kind))
    precious.mkdir()
    (precious / "thesis.txt").write_text("precious")
    save_bundle(saved, lab, tuning)
    assert (precious / "thesis.txt").read_text() == "precious"


def test_a_bundle_called_unfinished_is_left_alone(saved: Path, lab: Lab, tuning: Tuning) -> None:
    other = save_bundle(saved.with_name("bundle.unfinished"), lab, tuning)
    save_bundle(saved, lab, tuning)
    assert bundle.load(other, here=MACHINE).plan == tuning.plan


@pytest.mark.parametrize("step", range(4))
def test_what_a_killed_save_left_is_removed_by_the_next(
    saved: Path, lab: Lab, tuning: Tuning, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each rename or removal of a name, with the bundle that is replaced in its place."""
    left = iter(range(step))

    class Killed(BaseException):
        """Nothing catches this."""

    def strike(real: Callable[..., None]) -> Callable[..., None]:
        def hook(*arguments: Any, **options: Any) -> None:
            if next(left, None) is None:
                raise Killed
            real(*arguments, **options)

        return hook

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink"):
            patch.setattr(os, name, strike(getattr(os, name)))
        with pytest.raises(Killed):
            save_bundle(saved, lab, tuning)
    save_bundle(saved, lab, tuning)
    assert bundle.load(saved, here=MACHINE).plan == tuning.plan
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_bundle_is_on_the_disk_before_it_has_its_name(
    saved: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync, rename = os.fsync, os.rename

    def on_fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def on_rename(old: Path, new: Path) -> None:
        if Path(new) == saved:
            everything = [old, *Path(old).rglob("*")]
            assert {path.stat().st_ino for path in everything} <= synced
            synced.clear()
        rename(old, new)

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "rename", on_rename)
    save_bundle(saved, lab, tuning)
    assert saved.parent.stat().st_ino in synced


@pytest.mark.usefixtures("runs_code")
def test_a_file_system_without_links_keeps_a_key(
    tmp_path: Path, lab: Lab, tuning: Tuning, own_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    folder = save_bundle(tmp_path / "executable", lab, tuning)
    assert bundle.load(folder, here=MACHINE).plan == tuning.plan
    assert [path.name for path in own_key.parent.iterdir()] == [own_key.name]
    assert own_key.stat().st_mode & 0o077 == 0

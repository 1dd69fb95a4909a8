"""A checkpoint is whole or it is not there: any damage is seen, named, and costs nothing but the way back to the one before."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.io.checkpoint import CheckpointError
from lumos_engine.train.checkpoint import CheckpointFolder

from .conftest import MakeTrainer

FILES = ["SHA256SUMS", "model.safetensors", "rng.safetensors", "state.json"]


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model": {"w": torch.full((5,), float(step)), "b": torch.arange(3)},
        "rng": {"torch": torch.arange(9).byte()},
    }


@contextmanager
def checkpoints(steps: int, keep: int = 9) -> Iterator[CheckpointFolder]:
    with tempfile.TemporaryDirectory() as root:
        folder = CheckpointFolder(Path(root) / "checkpoints", keep)
        for step in range(1, steps + 1):
            folder.save(step, tensors(step), {"minutes": 0.5})
        yield folder


def assert_loads(folder: CheckpointFolder, step: int) -> None:
    found = folder.load_latest()
    assert found.path.name == f"step-{step:08d}" and found.state == {"minutes": 0.5, "step": step}
    for file, part in tensors(step).items():
        assert found.tensors[file].keys() == part.keys()
        assert all(torch.equal(found.tensors[file][name], value) for name, value in part.items())


def damage(data: st.DataObject, path: Path) -> str:
    """Delete, cut, lengthen or change one file of a checkpoint, or add one; return its name."""
    if data.draw(st.integers(0, 9)) == 0:
        (path / "more.safetensors").write_bytes(b"")
        return "more.safetensors"
    file = path / data.draw(st.sampled_from(FILES))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["delete", "cut", "lengthen", "flip"]))
    if kind == "delete":
        file.unlink()
        return file.name
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "lengthen":
        content += data.draw(st.binary(min_size=1, max_size=9).filter(bytes.strip))
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    return file.name


@given(st.data())
def test_any_damage_leads_back_to_the_one_before(data: st.DataObject) -> None:
    with checkpoints(2) as folder:
        damage(data, folder.folder / "step-00000002")
        assert_loads(folder, 1)


@given(st.data())
def test_damage_everywhere_is_one_line(data: st.DataObject) -> None:
    with checkpoints(2) as folder:
        for name in ("step-00000001", "step-00000002"):
            damage(data, folder.folder / name)
        assert folder.exists()
        with pytest.raises(
            CheckpointError, match=r"holds no whole checkpoint: .*step-00000002.*; .*step-00000001"
        ) as caught:
            folder.load_latest()
        assert "\n" not in str(caught.value)


def test_what_was_skipped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with checkpoints(3) as folder:
        for step in (2, 3):
            file = folder.folder / f"step-0000000{step}" / "model.safetensors"
            content = bytearray(file.read_bytes())
            content[-1] ^= 1  # of a weight: nothing but a sum can tell
            file.write_bytes(content)
        with caplog.at_level(logging.WARNING, "lumos_engine.train"):
            assert_loads(folder, 1)
        assert [record.getMessage() for record in caplog.records] == [
            f"skipped a damaged checkpoint: {folder.folder}/step-0000000{step}/model.safetensors is damaged: its SHA-256 differs from "
            "the one in SHA256SUMS; going back to step-00000001"
            for step in (3, 2)
        ]


def test_damaged_ones_do_not_push_out_good_ones_and_are_replaced() -> None:
    with checkpoints(5, keep=2) as folder:
        names = [path.name for path in sorted(folder.folder.glob("step-*"))]
        assert names == ["step-00000004", "step-00000005"]
        (folder.folder / "step-00000005" / "state.json").unlink()
        shutil.copytree(folder.folder / "step-00000004", folder.folder / "step-00000003")
        folder.save(4, tensors(4), {"minutes": 0.5})
        assert_loads(folder, 4)
        assert {path.name for path in folder.folder.iterdir()} == {
            "LATEST", "step-00000003", "step-00000004", "step-00000005",
        }  # fmt: skip
        folder.save(5, tensors(5), {"minutes": 0.5})
        assert_loads(folder, 5)
        assert {path.name for path in folder.folder.iterdir()} == {"LATEST", "step-00000004", "step-00000005"}


def test_one_that_was_being_written_does_not_count() -> None:
    with checkpoints(1) as folder:
        shutil.copytree(folder.folder / "step-00000001", folder.folder / ".writing-step-00000002-00000000")
        (folder.folder / "LATEST").unlink()
        assert_loads(folder, 1)
        folder.save(2, tensors(2), {"minutes": 0.5})
        assert not list(folder.folder.glob(".*"))


def test_sums_are_in_the_format_of_the_command(tmp_path: Path) -> None:
    import hashlib

    with checkpoints(1) as folder:
        path = folder.folder / "step-00000001"
        lines = (path / "SHA256SUMS").read_text().splitlines()
        assert sorted(line[66:] for line in lines) == FILES[1:]
        for line in lines:
            assert line[:66] == f"{hashlib.sha256((path / line[66:]).read_bytes()).hexdigest()}  "


def test_names_do_not_leave_the_folder() -> None:
    with checkpoints(1) as folder:
        path = folder.folder / "step-00000001"
        outside = folder.folder / "outside.safetensors"
        (path / "rng.safetensors").rename(outside)
        sums = path / "SHA256SUMS"
        sums.write_text(sums.read_text().replace("rng.safetensors", "../outside.safetensors"))
        with pytest.raises(
            CheckpointError, match=r"'\.\./outside\.safetensors' is not both in the folder and in SHA256SUMS"
        ):
            folder.load_latest()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/checkpoints"):
        CheckpointFolder(tmp_path / "file" / "checkpoints", 1).save(1, tensors(1), {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named() -> None:
    with checkpoints(1) as folder:
        folder.folder.chmod(0o500)
        with pytest.raises(PermissionError, match="step-00000002"):
            folder.save(2, tensors(2), {})
        folder.folder.chmod(0o700)
        assert_loads(folder, 1)


def test_the_trainer_goes_back_and_repeats_the_lost_steps(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"train__steps": 6, "train__checkpoint_steps": 2}
    whole = make_trainer(**options)
    whole.run()
    expected = whole._checkpoints.load_latest()
    file = expected.path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    again = make_trainer(resume=True, **options)
    assert again.step == 4 and "optimizer.safetensors is damaged" in caplog.text
    again.run()
    found = again._checkpoints.load_latest()
    assert found.path == expected.path
    for name, part in expected.tensors.items():
        assert all(torch.equal(value, found.tensors[name][key]) for key, value in part.items())


def test_a_run_killed_between_its_last_checkpoint_and_its_model_gets_the_model(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.run()
    weights = trainer.out / "model" / "model.safetensors"
    expected = weights.read_bytes()
    weights.write_bytes(b"of an earlier checkpoint")
    make_trainer(resume=True).run()
    assert weights.read_bytes() == expected


@pytest.mark.parametrize("change", [(b"\n", b""), (b"\n", b"\r\n"), (b"\n", b"\x0b"), (b"  ", b" ")])
def test_sums_are_taken_to_the_byte(change: tuple[bytes, bytes]) -> None:
    with checkpoints(2) as folder:
        file = folder.folder / "step-00000002" / "SHA256SUMS"
        head, _, tail = file.read_bytes().rpartition(change[0])
        file.write_bytes(head + change[1] + tail)
        assert_loads(folder, 1)

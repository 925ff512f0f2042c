"""``num_steps=auto``: the number of steps of the data."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from snnexp.config import check, compose, compose_points, compose_unchecked, resolve_num_steps
from snnexp.errors import ConfigError

NOWHERE = {"_target_": "snnexp.data.arrays_data", "path": "a\0b.npz"}
ARRAYS = ["data=arrays", "encoder=sequence"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "sequences.npz"
    np.savez(path, inputs=np.zeros((6, 40, 3)), constant=np.zeros((6, 40)), labels=np.arange(6) % 2)
    return str(path)


class TestAuto:
    def test_equals_the_length_of_sequences_in_a_file(self, file: str) -> None:
        cfg = compose([*ARRAYS, f"data.path={file}"])
        assert (cfg.num_steps, cfg.network.num_steps) == (40, 40)
        assert compose([*ARRAYS, f"data.train={file}", f"data.test={file}"]).num_steps == 40
        assert compose([*ARRAYS, f"data.path={file}", "data.x=constant", "data.sequences=true"]).num_steps == 40

    def test_is_25_for_constant_inputs(self, file: str) -> None:
        assert compose([]).num_steps == compose(["data=linear", *ARRAYS[1:], "loss=mse_membrane"]).num_steps == 25
        constant = ["data=arrays", f"data.path={file}"]
        assert compose([*constant, "data.x=constant"]).num_steps == 25
        assert compose([*constant, "data.sequences=false"]).num_steps == 25

    def test_explicit_numbers_take_precedence(self, file: str) -> None:
        assert compose([*ARRAYS, f"data.path={file}", "num_steps=8"]).num_steps == 8
        assert compose(["experiment=mnist_rleaky_count"]).num_steps == 10
        assert compose(["experiment=mnist_rleaky_count", "num_steps=auto"]).num_steps == 25

    def test_unreadable_files_are_reported_later(self, tmp_path: Path) -> None:
        assert compose([*ARRAYS, "data.path=missing.npz"]).num_steps == 25
        (tmp_path / "broken.npz").write_text("no archive")
        assert compose([*ARRAYS, f"data.path={tmp_path}/broken.npz"]).num_steps == 25
        assert compose(["data=folder", f"data.path={tmp_path}/missing"]).num_steps == 25
        assert resolve_num_steps(OmegaConf.create({"num_steps": "auto", "data": NOWHERE})).num_steps == 25

    def test_each_point_of_a_sweep_is_resolved(self, file: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "short.npz", inputs=np.zeros((6, 7, 3)), labels=np.arange(6) % 2)
        points = [[*ARRAYS, f"data.path={path}"] for path in (file, tmp_path / "short.npz")]
        assert [check(cfg).num_steps for cfg in compose_points(points)] == [40, 7]

    def test_refuses_other_words(self) -> None:
        with pytest.raises(ConfigError, match=r"^num_steps: got many"):
            compose(["num_steps=many"])

    def test_checked_configs_are_resolved(self, file: str) -> None:
        cfg = check(compose_unchecked([*ARRAYS, f"data.path={file}"])[0])
        assert "auto" not in str(OmegaConf.to_container(cfg.network))

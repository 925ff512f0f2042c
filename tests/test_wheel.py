"""The wheel: built, installed in an environment without the source, used from another folder."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_wheel_brings_its_configs(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    # the dependencies, gigabytes of them, are lent from here; a path line does not lend the editable install of snnexp
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (purelib / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    snnexp = tmp_path / "env" / "bin" / "snnexp"
    conf = run(python, "-c", "from snnexp import config; print(config.conf_dir())")
    assert conf.strip() == str(purelib / "snnexp" / "conf")
    assert (purelib / "snnexp" / "py.typed").exists(), "the annotations of a package are read only where it is"
    assert "regression_sqrt" in run(snnexp, "list", "experiment")
    # its data are a file of the package
    run(snnexp, "train", "experiment=digits_leaky", "debug=batch")
    assert list(tmp_path.glob("outputs/digits_leaky/*/run.json"))

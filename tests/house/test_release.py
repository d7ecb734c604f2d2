"""What a release holds."""

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_source_distribution_holds_the_sources_and_no_results_of_benchmarks(tmp_path) -> None:
    build = f"import hatchling.build; hatchling.build.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {
        "src/tuneful/cli.py",
        "src/tuneful/model/native/kernels.c",
        "LICENSE",
        "tests/machine.py",
        "tools/wheel.py",
    } <= names
    assert not any(name.startswith(("benchmarks/results/", ".venv/", ".bench/")) for name in names)

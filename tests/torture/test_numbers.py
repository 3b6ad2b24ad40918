"""The same command gives the same bits from another folder, with other hashes of Python, in another time zone."""

import os
import subprocess
import sys

from tests.helpers import ROOT
from tests.torture.attempts import RESUMED, start

ELSEWHERE = """
import sys
from pathlib import Path
import pytest
from tests.helpers import call
from tests.torture.attempts import RESUMED, Tasks
patch = pytest.MonkeyPatch()
tasks = Tasks(Path(sys.argv[1]), patch, made=True)
for name in RESUMED:
    Path(name).mkdir()
    assert call(patch, tasks[name].script, *tasks[name].args(Path(name))) == 0
"""


def test_another_folder_hash_seed_language_and_zone_change_no_bit(tasks, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
    environment = {**os.environ, **other, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ELSEWHERE, tasks.home]
    subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, check=True)
    for name in RESUMED:
        to = tmp_path / name
        assert start(tasks[name], to, tmp_path / "said.txt").end() == 0
        assert tasks[name].outcome(elsewhere / name) == tasks[name].outcome(to)

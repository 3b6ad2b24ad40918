"""Write the bill of materials of requirements.lock, as CycloneDX JSON, on stdout.

python package/sbom.py > sbom.json

Names and versions are the lock's; licenses, and which package needs which, are said by the packages, where installed.
"""

import json
import re
from importlib.metadata import PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[1] / "requirements.lock"
MAX_LICENSE_CHARS = 60  # some packages have the text of their license where its name should stand


def locked(text: str) -> dict[str, str]:
    """Return the version of each package of a lock file.

    >>> locked("absl-py==2.5.1 \\\\\\n    --hash=sha256:00\\n")
    {'absl-py': '2.5.1'}
    """
    return dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", text))


def bill_of_materials(versions: dict[str, str]) -> dict[str, Any]:
    """Return the packages as a CycloneDX document."""
    packages = {name: installed(name) for name in versions}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            {
                "type": "library",
                "bom-ref": name,
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version}",
                "licenses": licenses(packages[name]),
            }
            for name, version in versions.items()
        ],
        "dependencies": [
            {"ref": name, "dependsOn": sorted(needs(package) & set(versions))} for name, package in packages.items()
        ],
    }


def installed(name: str) -> Any:
    """Return an installed package; None where it is not."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def licenses(package: PathDistribution | None) -> list[dict[str, Any]]:
    """Return the license of a package in CycloneDX's terms; nothing where the package does not name it."""
    if package is None:
        return []
    said = package.metadata
    if expressions := said.get_all("License-Expression"):
        return [{"expression": expressions[0]}]
    names = [name.rpartition(":: ")[2] for name in said.get_all("Classifier") or () if "License ::" in name]
    names = names or said.get_all("License") or []
    return [{"license": {"name": name}} for name in names if 0 < len(name) <= MAX_LICENSE_CHARS]


def needs(package: PathDistribution | None) -> set[str]:
    """Return the names of the packages that a package needs here."""
    lines = map(Requirement, package.requires or []) if package else ()
    return {
        canonicalize_name(line.name) for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})
    }


if __name__ == "__main__":
    print(json.dumps(bill_of_materials(locked(LOCK.read_text(encoding="utf-8"))), indent=1))

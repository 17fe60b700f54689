"""Tests that neither an installed package nor a lower bound in the requirements has a known vulnerability.

pip-audit needs a network, so the vulnerable ranges are stored in known_vulnerable.json, with date and source. This file
also lists the vulnerabilities that are accepted, with the reason.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import distributions

import pytest
from conftest import ROOT

pytest.importorskip("packaging")
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.faults

KNOWN = json.loads((ROOT / "tests/faults/known_vulnerable.json").read_text(encoding="utf-8"))


def advisories_for(package: str, version: str) -> list[str]:
    return [
        f"{package} {version} is affected by {a['id']} ({a['what']}): install {package} outside {a['affected']}"
        for a in KNOWN["advisories"]
        if a["package"] == canonicalize_name(package)
        and a["id"] not in KNOWN["accepted"]
        and SpecifierSet(a["affected"]).contains(version, prereleases=True)
    ]


def lowest_versions() -> dict[str, str]:
    """Return {requirement: lowest permitted version} from pyproject.toml and the requirements files."""
    lines = re.findall(r'"([A-Za-z0-9_.\[\]-]+ ?[=<>~!][^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for path in ROOT.glob("require*.txt"):
        lines += [line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    lowest = {}
    for line in lines:
        try:
            requirement = Requirement(line.strip())
        except InvalidRequirement:
            continue
        for bound in requirement.specifier:
            if bound.operator in (">=", "==", "~="):
                lowest[canonicalize_name(requirement.name)] = bound.version.removesuffix(".*")
    return lowest


def test_the_check_finds_a_vulnerable_version():
    assert "CVE-2024-28219" in " ".join(advisories_for("Pillow", "10.2.0"))
    assert advisories_for("pillow", "12.3.0") == advisories_for("no-such-package", "1.0") == []


def test_the_list_can_be_read():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", KNOWN["recorded"])
    for entry in KNOWN["advisories"]:
        assert re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA(-\w{4}){3}", entry["id"])
        assert entry["package"] == canonicalize_name(entry["package"])
        assert len(SpecifierSet(entry["affected"])) > 0
    assert set(KNOWN["accepted"]) <= {entry["id"] for entry in KNOWN["advisories"]}


def test_no_installed_package_is_known_to_be_vulnerable():
    installed = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    assert len(installed) > 20
    assert [text for name, version in installed.items() for text in advisories_for(name, version)] == []


def test_no_requirement_permits_a_vulnerable_version():
    lowest = lowest_versions()
    assert {"torch", "pillow"} <= set(lowest)
    assert [text for name, version in lowest.items() for text in advisories_for(name, version)] == []

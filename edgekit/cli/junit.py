"""The checks of a build as a JUnit XML file, which CI systems show: a suite for each bundle, a case for each check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from edgekit.pipeline import Built


def write_junit(built: Sequence[Built], path: Path, *, strict: bool) -> None:
    """Write the file, as Jenkins, GitLab and GitHub actions read it: not proven is skipped or, with `strict`, a failure.

    Raises EdgekitError where the file cannot be written.
    """
    from edgekit.workspace import make_folder, write_atomically

    suites = ElementTree.Element("testsuites", name="edgekit")
    for bundle in built:
        _add_suite(suites, bundle, strict=strict)
    ElementTree.indent(suites)
    make_folder(path.parent)
    write_atomically(path, ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n")


def _add_suite(suites: ElementTree.Element, built: Built, *, strict: bool) -> None:
    artifact, checks = (built.report.artifact, built.report.checks) if built.report else (None, ())
    name = f"{built.target} {artifact.format} {artifact.scheme}" if artifact else built.target
    suite = ElementTree.SubElement(suites, "testsuite", name=name)
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=check.name)
        reason = check.remedy or check.detail or check.verdict
        if check.verdict == "fail" or (strict and check.verdict == "not proven"):
            ElementTree.SubElement(case, "failure", message=check.verdict).text = reason
        elif check.verdict == "not proven":
            ElementTree.SubElement(case, "skipped", message=f"not proven: {reason}")
    if built.error is not None and not checks:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="build")
        ElementTree.SubElement(case, "error", message=built.error.message)
    for tag, key in (("failure", "failures"), ("skipped", "skipped"), ("error", "errors")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))

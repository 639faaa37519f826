"""Reads the result of a Tempest run. The reader of its format is in Tempest's environment, so it runs there."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

READER = r"""
import json, re, sys
import subunit, testtools
found = {}
def one(test):
    name = re.sub(r"\[.*\]$", "", test["id"] or "")
    if name and test["status"] not in ("exists", "unknown"):
        told = [d.as_text() for k, d in sorted(test["details"].items()) if k.startswith(("traceback", "reason"))]
        text = "\n".join(told)
        found[name] = [test["status"], text]
result = testtools.StreamToDict(one)
result.startTestRun()
subunit.ByteStreamToStreamResult(sys.stdin.buffer, non_subunit_name="stdout").run(result)
result.stopTestRun()
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    status: str
    """success, skip, fail, or inprogress when its worker died."""
    text: str

    @property
    def reason(self) -> str:
        """Return the last words of the trace."""
        said = [line.strip() for line in self.text.splitlines() if line.strip()]
        return " ".join(said[-2:])[:400]


def outcomes(python: Path, stream: bytes) -> dict[str, Outcome]:
    """Return the outcome of each test by name, and of each class that did not start."""
    done = subprocess.run([python, "-c", READER], input=stream, capture_output=True, check=True)
    return {name: Outcome(*values) for name, values in json.loads(done.stdout).items()}

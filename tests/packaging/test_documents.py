# SPDX-License-Identifier: MIT
"""What the documents name is there: files, headings, tests, targets of make."""

import os
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("FORKD_BUILD_DIR", ROOT / "build" / "release"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path):
    """The headings, as a reader of Markdown names them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in found}


class Documents(unittest.TestCase):
    def named(self, pattern):
        """(document, name) for all that matches."""
        found = [(d.name, m) for d in DOCUMENTS for m in re.findall(pattern, d.read_text())]
        self.assertTrue(found, pattern)
        return found

    def test_links(self):
        links = [(d, m) for d in DOCUMENTS for m in re.findall(r"\]\(([^)]+)\)", d.read_text()) if "://" not in m]
        self.assertGreater(len(links), 40)
        for d, link in links:
            path, _, heading = link.partition("#")
            target = d.parent / path if path else d
            with self.subTest(document=d.name, link=link):
                self.assertTrue(target.exists())
                if heading:
                    self.assertIn(heading, anchors(target))

    def test_tests(self):
        there = {n for f in BUILD.glob("tests/**/CTestTestfile.cmake") for n in re.findall(r"^add_test\(\W*(\w+)", f.read_text(), flags=re.M)}
        for document, name in self.named(r"`((?:e2e|fault|pager|packaging|test)_\w+)`"):
            with self.subTest(document=document):
                self.assertIn(name, there)
        for document, name in self.named(r"\b(?:unit|e2e|fuzz|fault|bench|packaging)/[\w/]+\.(?:c|py)\b"):
            with self.subTest(document=document):
                self.assertTrue((ROOT / "tests" / name).exists(), name)

    def test_targets_of_make(self):
        there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
        for document, name in self.named(r"(?:`|\n    )make ([\w-]+)"):
            with self.subTest(document=document):
                self.assertIn(name, there)


if __name__ == "__main__":
    unittest.main(verbosity=2)

# SPDX-License-Identifier: MIT
"""The agent answers after 200 restores in a row, 200 of 200, and nothing grows."""

import os
import pathlib

from case import Case, main

RESTORES = int(os.environ.get("FORKD_RESTORES", "200"))


class Restore200(Case):
    def descriptors(self, pid):
        return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))

    def test_restores(self):
        self.lab.ctl("run", "again", "--mem", "128M")
        self.lab.sh("again", "echo $$ > /run/first")
        first = self.lab.text("again", "cat /run/first")
        self.lab.ctl("standby", "again", "--tag", "start")
        answered, counts = 0, []
        for i in range(RESTORES):
            self.lab.ctl("fork", "start", "clone")
            answered += self.lab.text("clone", "cat /run/first; hostname") == f"{first}\nclone"
            self.lab.ctl("rm", "clone")
            if i in (9, RESTORES - 1):
                self.lab.wait_shells()  # each that is being started, or was just taken, would count
                counts.append((self.descriptors(self.lab.forkd.pid), self.descriptors(self.lab.ctl("pager", "status")["pid"])))
        print(f"answered: {answered}/{RESTORES}; descriptors of forkd and pager after 10 and after all: {counts}")
        self.assertEqual(answered, RESTORES)
        # an idle worker more or less is no leak; one descriptor a restore would be 190
        for before, after in zip(*counts):
            self.assertLessEqual(abs(after - before), 4)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Disks go with their VM: the file that was named is never written, a snapshot holds the disk of its moment, and
clones write to their own."""

from case import Case, MIB, main


class Disks(Case):
    SIZE = 64 * MIB

    def read(self, vm, disk="vda", at=1):
        return self.lab.text(vm, f"dd if=/dev/{disk} bs=1M skip={at} count=1 2>/dev/null | head -c 16")

    def write(self, vm, text, disk="vda", at=1):
        self.lab.sh(vm, f"printf %-16s '{text}' | dd of=/dev/{disk} bs=1M seek={at} conv=notrunc 2>/dev/null; sync")

    def test_disks(self):
        files = [self.lab.dir / "a.raw", self.lab.dir / "b.raw"]
        for f in files:
            with open(f, "wb") as out:
                out.write(b"factory " + f.name.encode())
                out.truncate(self.SIZE)
        before = [f.read_bytes() for f in files]
        self.lab.ctl("run", "d", "--mem", "128M", "--disk", files[0], "--disk", files[1])
        self.assertEqual(self.lab.text("d", "cat /sys/block/vda/size /sys/block/vdb/size").split(), [str(self.SIZE // 512)] * 2)
        self.assertEqual(self.lab.text("d", "head -c 13 /dev/vdb"), "factory b.raw")
        self.write("d", "of the original")
        self.write("d", "and the second", "vdb", 63)
        snap = self.lab.ctl("standby", "d", "--tag", "disks")["snapshot"]
        self.assertEqual(self.lab.ctl("snapshot", "show", "disks")["disks"], 2)

        names = [c["name"] for c in self.lab.ctl("fork", "d", "clone", "--count", "2")["clones"]]
        for n in names:
            self.assertEqual(self.read(n), "of the original")
            self.assertEqual(self.read(n, "vdb", 63), "and the second")
            self.write(n, f"mine: {n}")
        self.assertEqual([self.read(n) for n in names], [f"mine: {n}" for n in names])

        self.lab.ctl("standby", names[0])
        self.lab.ctl("restore", names[0])
        self.assertEqual(self.read(names[0]), f"mine: {names[0]}")
        twin = self.lab.ctl("fork", names[1], "twin")["clones"][0]["name"]
        self.write(names[1], "later")
        self.assertEqual(self.read(twin), f"mine: {names[1]}")

        self.lab.ctl("restore", "d")
        self.assertEqual(self.read("d"), "of the original")
        self.assertEqual([f.read_bytes() for f in files], before)
        self.assertTrue(self.lab.ctl("snapshot", "verify", snap)["ok"])

    def test_z_nothing_is_left(self):
        self.lab.end()
        self.assertEqual(self.lab.leftovers(), [])


if __name__ == "__main__":
    main()

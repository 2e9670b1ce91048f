"""Shared memory that killed engines left behind."""

import mmap
import os

from align.rollout.shared_memory import left_over


def test_only_what_no_process_has_mapped_is_left_over(tmp_path):
    dead, alive, other = (
        tmp_path / name for name in ("-tp:0-[0-1]-cpushm_0", "-tp:0-[0-1]-cpushm_1", "-tp:0-[2-3]-cpushm_0")
    )
    for path in (dead, alive, other):
        path.write_bytes(bytes(4096))
    file = os.open(alive, os.O_RDWR)
    with mmap.mmap(file, 4096):
        os.close(file)
        assert left_over("-[0-1]-cpushm", tmp_path) == [dead]
    assert set(left_over("-[0-1]-cpushm", tmp_path)) == {dead, alive}
    assert left_over("-[4-5]-cpushm", tmp_path) == []

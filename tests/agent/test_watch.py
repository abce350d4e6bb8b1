from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from agent.watch import signature, wait_change

Clock = trio.testing.MockClock


async def changed(path: Path, since: object) -> bool:
    with trio.move_on_after(5) as scope:
        await wait_change([path], since)  # type: ignore[arg-type]
    return not scope.cancelled_caught


async def test_writing_replacing_and_removing_are_noticed(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    path = tmp_path / "file"
    for change in (
        lambda: path.write_text("a"),
        lambda: path.write_text("bb"),
        lambda: (tmp_path / "new").write_text("cc"),
        lambda: (tmp_path / "new").rename(path),
        path.unlink,
        lambda: path.write_text("d"),
    ):
        before = signature([path])
        assert not await changed(path, before)
        change()
        expected = signature([path]) != before
        assert await changed(path, before) is expected


async def test_a_link_swapped_far_up_the_path_is_noticed(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    """Kubernetes mounts files as links into `..data`, itself a link, and swaps that one."""
    for generation in ("1", "2"):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "key.pem").write_text("same size")
    data, path = tmp_path / "..data", tmp_path / "key.pem"
    data.symlink_to("1")
    path.symlink_to("..data/key.pem")
    before = signature([path])
    (tmp_path / "tmp").symlink_to("2")
    (tmp_path / "tmp").rename(data)
    assert await changed(path, before)


async def test_files_that_are_being_written_are_let_rest(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    path = tmp_path / "file"
    before, start = signature([path]), trio.current_time()

    async def write_on_and_on() -> None:
        for size in range(1, 20):
            path.write_text("x" * size)
            await trio.sleep(0.5)

    nursery.start_soon(write_on_and_on)
    settled = await wait_change([path], before)
    assert trio.current_time() - start > 9
    assert settled == signature([path])

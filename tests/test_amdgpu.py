"""AMD cards through a made-up tree of sysfs; the listing comes from a stand-in for llama-server."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.memory.probes.amdgpu import AmdgpuProbe, cards_of
from app.memory.probes.choice import find_gpus
from app.memory.probes.interface import Reading
from app.memory.probes.list_devices import ListDevicesProbe, parse_devices

MIB = 1 << 20
TWO = (
    "  ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24500 MiB free)\n"
    "  ROCm1: AMD Radeon RX 7600 (8176 MiB, 8100 MiB free)\n"
)
MIXED = (
    "  Vulkan0: NVIDIA GeForce RTX 4090 (24564 MiB, 24000 MiB free)\n"
    "  Vulkan1: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24500 MiB free)\n"
)


class Sysfs:
    """The part of /sys that amdgpu fills."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def card(
        self,
        number: int,
        slot: str,
        total_mb: int,
        used_mb: int,
        vendor: str = "0x1002",
        gtt: tuple[int, int] | None = None,
    ) -> Path:
        """`gtt`: MB of the machine's memory that it may use, and does."""
        device = self.root / "devices" / "pci0000:00" / slot
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "mem_info_vram_total").write_text(f"{total_mb * MIB}\n")
        (device / "mem_info_vram_used").write_text(f"{used_mb * MIB}\n")
        for figure, mb in zip(("total", "used"), gtt or (), strict=False):
            (device / f"mem_info_gtt_{figure}").write_text(f"{mb * MIB}\n")
        (device / "gpu_busy_percent").write_text("37\n")
        node = self.root / "class" / "drm" / f"card{number}"
        node.mkdir(parents=True)
        (node / "device").symlink_to(device)
        (node.with_name(f"card{number}-HDMI-A-1")).mkdir()
        return device


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


@pytest.fixture
def llama_server(tmp_path: Path) -> Path:
    """Prints a listing, and how often it was asked into a file beside it."""
    path = tmp_path / "llama-server"
    (tmp_path / "listing").write_text(TWO)
    path.write_text(
        '#!/bin/sh\necho asked >> "$0.asked"\necho "Available devices:"\ncat "$(dirname "$0")/listing"\n'
    )
    path.chmod(0o755)
    return path


def figures(reading: Reading) -> tuple[int, int, int, float | None, str]:
    return reading.total_mb, reading.used_mb, reading.free_mb, reading.utilization, reading.source


def test_the_drivers_files_tell_what_is_used_and_no_process_is_started_for_it(
    sysfs: Sysfs, llama_server: Path
) -> None:
    sysfs.card(1, "0000:03:00.0", 24_560, 600)
    small = sysfs.card(0, "0000:0a:00.0", 8176, 50)
    probe = find_gpus(llama_server, sysfs.root)
    large, other = probe.read()
    assert (large.id, *figures(large)) == ("ROCm0", 24_560, 600, 23_960, 0.37, "amdgpu")
    assert (other.id, *figures(other)) == ("ROCm1", 8176, 50, 8126, 0.37, "amdgpu")
    (small / "mem_info_vram_used").write_text(str(5000 * MIB))
    probe.expire()
    assert [r.used_mb for r in probe.read()] == [600, 5000]
    assert llama_server.with_name("llama-server.asked").read_text().count("asked") == 1


def test_cards_of_the_same_size_are_taken_in_the_order_of_the_bus(sysfs: Sysfs) -> None:
    second = sysfs.card(0, "0000:0a:00.0", 24_560, 2)
    first = sysfs.card(1, "0000:03:00.0", 24_560, 1)
    same = parse_devices("  ROCm0: a (24560 MiB, 9 MiB free)\n  ROCm1: b (24500 MiB, 9 MiB free)\n")
    assert {id: card.device.resolve() for id, card in cards_of(same, sysfs.root).items()} == {
        "ROCm0": first,
        "ROCm1": second,
    }


def test_other_makes_are_read_from_the_listing(sysfs: Sysfs, llama_server: Path) -> None:
    sysfs.card(0, "0000:01:00.0", 24_564, 1, vendor="0x10de")
    sysfs.card(1, "0000:03:00.0", 24_560, 600)
    llama_server.with_name("listing").write_text(MIXED)
    probe = find_gpus(llama_server, sysfs.root)
    assert [r.source for r in probe.read()] == ["llama-server", "amdgpu"]
    llama_server.with_name("listing").write_text(MIXED.replace("24000 MiB free", "11000 MiB free"))
    probe.expire()
    nvidia, amd = probe.read()
    assert (nvidia.free_mb, amd.free_mb) == (11_000, 23_960)


def test_without_files_in_sysfs_the_listing_is_all_there_is(sysfs: Sysfs, llama_server: Path) -> None:
    assert isinstance(find_gpus(llama_server, sysfs.root), ListDevicesProbe)


def test_a_card_that_is_smaller_than_what_is_listed_is_another_one(sysfs: Sysfs) -> None:
    sysfs.card(0, "0000:0c:00.0", 512, 100)  # a processor's own graphics
    assert cards_of(parse_devices(TWO), sysfs.root) == {}


def test_a_card_that_cannot_be_read_is_reported_with_its_last_figures(
    sysfs: Sysfs, llama_server: Path
) -> None:
    device = sysfs.card(0, "0000:03:00.0", 24_560, 600)
    llama_server.with_name("listing").write_text(TWO.splitlines()[0] + "\n")
    probe = find_gpus(llama_server, sysfs.root)
    assert isinstance(probe, AmdgpuProbe)
    assert probe.read()[0].error is None
    (device / "mem_info_vram_used").unlink()
    (lost,) = probe.read()
    assert lost.error is not None and "mem_info_vram_used" in lost.error
    assert (lost.used_mb, lost.total_mb) == (600, 24_560)
    (device / "mem_info_vram_used").write_text("0")
    assert probe.read()[0].error is None


# --- a processor's own graphics

LAPTOP = "  Vulkan0: AMD Radeon 780M (RADV PHOENIX) (14848 MiB, 14000 MiB free)\n"
HIP_LAPTOP = "  ROCm0: AMD Radeon Graphics (14336 MiB, 20000 MiB free)\n"
STATION = "  Vulkan0: AMD Radeon 8060S (RADV GFX1151) (114688 MiB, 100000 MiB free)\n"
HIP_STATION = "  ROCm0: AMD Radeon Graphics (98304 MiB, 90000 MiB free)\n"


@pytest.mark.parametrize(
    ("listing", "own", "gtt", "total_mb", "used_mb", "shares_host"),
    [
        (LAPTOP, (512, 300), (14_336, 1000), 14_848, 1300, True),
        (HIP_LAPTOP, (512, 300), (14_336, 1000), 14_336, 1000, True),
        (STATION, (98_304, 5000), (16_384, 200), 98_304, 5000, False),
        (HIP_STATION, (98_304, 5000), (16_384, 200), 98_304, 5000, False),
    ],
    ids=["vulkan", "hip", "vulkan, most set aside", "hip, most set aside"],
)
def test_graphics_without_much_memory_of_its_own_uses_the_machines(
    sysfs: Sysfs,
    llama_server: Path,
    listing: str,
    own: tuple[int, int],
    gtt: tuple[int, int],
    total_mb: int,
    used_mb: int,
    shares_host: bool,
) -> None:
    """It was taken for a card: what lay in the machine's memory was planned for a second time."""
    sysfs.card(0, "0000:c4:00.0", *own, gtt=gtt)
    llama_server.with_name("listing").write_text(listing)
    (reading,) = find_gpus(llama_server, sysfs.root).read()
    assert (reading.total_mb, reading.used_mb, reading.free_mb) == (total_mb, used_mb, total_mb - used_mb)
    assert (reading.shares_host, reading.source) == (shares_host, "amdgpu")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_card_beside_a_processors_own_graphics_stays_one(
    sysfs: Sysfs, llama_server: Path, order: tuple[int, int]
) -> None:
    """Both may use the same part of the machine's memory."""
    sysfs.card(order[0], "0000:03:00.0", 24_560, 600, gtt=(14_336, 100))
    sysfs.card(order[1], "0000:c4:00.0", 512, 300, gtt=(14_336, 1000))
    llama_server.with_name("listing").write_text(TWO.splitlines()[0] + "\n" + LAPTOP)
    card, graphics = find_gpus(llama_server, sysfs.root).read()
    assert (card.total_mb, card.used_mb, card.shares_host) == (24_560, 600, False)
    assert (graphics.total_mb, graphics.used_mb, graphics.shares_host) == (14_848, 1300, True)
    llama_server.with_name("listing").write_text(HIP_LAPTOP)  # HIP_VISIBLE_DEVICES hides the card
    (graphics,) = find_gpus(llama_server, sysfs.root).read()
    assert (graphics.used_mb, graphics.shares_host) == (1000, True)
